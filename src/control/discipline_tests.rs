use super::super::chance::Chance;
use super::*;

const START: Timestamp<Monotonic> = Timestamp::from_nanoseconds(1_000_000_000_000);

fn milliseconds(milliseconds: i64) -> NtpDuration {
    NtpDuration::from_nanoseconds(milliseconds * 1_000_000)
}

/// A clock that does what the discipline says, with an oscillator that is wrong by a constant.
struct Bench {
    discipline: Discipline,
    chance: Chance,
    now: Timestamp<Monotonic>,
    /// Seconds, positive: behind.
    offset: f64,
    /// Of the oscillator, positive: it must be made faster by so much.
    error: f64,
}

impl Bench {
    fn new(options: DisciplineOptions, offset: f64, error_ppm: f64) -> Self {
        let discipline = Discipline::new(options);
        Self { discipline, chance: Chance::new([9; 32]), now: START, offset, error: error_ppm * 1e-6 }
    }

    /// Lets time pass, the ends of slews included.
    fn pass(&mut self, seconds: f64) {
        let until = self.now + NtpDuration::from_nanoseconds((seconds * 1e9) as i64);
        while self.now < until {
            let next = self.discipline.next().map_or(until, |next| next.min(until)).max(self.now);
            let elapsed = (next - self.now).seconds();
            self.offset += (self.error - fraction(self.discipline.frequency().total())) * elapsed;
            self.now = next;
            self.discipline.on_time(next);
        }
    }

    /// Measures with evenly spread noise of this amplitude.
    fn measure(&mut self, noise: f64) -> Verdict {
        let random = self.chance.below(NtpDuration::from_seconds(2)).seconds() - 1.0;
        let measured = NtpDuration::from_nanoseconds(((self.offset + random * noise) * 1e9) as i64);
        let jitter = NtpDuration::from_nanoseconds((noise * 0.577 * 1e9) as i64 + 500);
        let verdict = self.discipline.update(self.now, measured, jitter, NtpDuration::ZERO);
        if let Verdict::Step(step) = verdict {
            self.offset -= step.seconds();
        }
        verdict
    }

    /// The largest |offset| of so many polls, in seconds.
    fn run(&mut self, polls: usize, interval: f64, noise: f64) -> f64 {
        let mut worst = 0_f64;
        for _ in 0..polls {
            self.pass(interval);
            self.measure(noise);
            worst = worst.max(self.offset.abs());
        }
        worst
    }
}

#[test]
fn offset_and_frequency_error_both_vanish() {
    for (offset, error) in [(0.1, 100.0), (-0.1, 100.0), (0.05, -250.0), (0.0, 450.0), (0.1, 0.0)] {
        let mut bench = Bench::new(DisciplineOptions::default(), offset, error);
        bench.run(40, 64.0, 100e-6);
        let worst = bench.run(100, 64.0, 100e-6);
        assert!(worst < 200e-6, "{offset} s and {error} ppm: still {worst} s");
        let found = bench.discipline.frequency().base.ppm();
        assert!((found - error).abs() < 1.0, "{error} ppm found as {found}");
    }
}

#[test]
fn it_is_steadier_than_its_measurements_at_every_poll_interval() {
    for interval in [16.0, 64.0, 256.0, 1024.0] {
        let mut bench = Bench::new(DisciplineOptions::default(), 0.02, 30.0);
        bench.run(60, interval, 1e-3);
        let worst = bench.run(200, interval, 1e-3);
        assert!(worst < 1e-3, "{worst} s at {interval} s, from measurements that are off by up to 1 ms");
    }
}

#[test]
fn it_follows_an_oscillator_that_changes() {
    let mut bench = Bench::new(DisciplineOptions::default(), 0.0, 10.0);
    bench.run(100, 64.0, 50e-6);
    bench.error += 5e-6;
    bench.run(30, 64.0, 50e-6);
    let worst = bench.run(30, 64.0, 50e-6);
    assert!(worst < 150e-6, "{worst} s");
}

/// RFC 5905 figure 28: the first offset beyond STEPT is stepped at once, a later one after WATCH only, and not at all
/// if an inlier comes first.
#[test]
fn a_large_offset_is_stepped_at_the_start_and_else_after_the_stepout() {
    let mut bench = Bench::new(DisciplineOptions::default(), 0.5, 20.0);
    let half = NtpDuration::from_nanoseconds(500_000_000);
    let first = bench.measure(0.0);
    assert!(matches!(first, Verdict::Step(step) if (step - half).seconds().abs() < 1e-6), "{first:?}");
    bench.run(20, 64.0, 50e-6);

    bench.offset += 0.5;
    assert_eq!(bench.measure(50e-6), Verdict::Ignored);
    bench.pass(64.0);
    bench.offset -= 0.5;
    assert_eq!(bench.measure(50e-6), Verdict::Used, "an inlier ends the spike");

    bench.offset += 0.5;
    let mut waited = 0.0;
    while bench.measure(50e-6) == Verdict::Ignored {
        bench.pass(64.0);
        waited += 64.0;
        assert!(waited < 2000.0, "never stepped");
    }
    assert!((900.0..1000.0).contains(&waited), "stepped after {waited} s");
    assert!(bench.run(20, 64.0, 50e-6) < 1e-3);
}

/// RFC 5905 sections 11.2.3 and 11.3: beyond PANICT nothing is done; once at the start it may be.
#[test]
fn beyond_the_panic_threshold_nothing_is_done_unless_allowed_at_the_start() {
    let mut bench = Bench::new(DisciplineOptions::default(), -1001.0, 0.0);
    assert_eq!(bench.measure(0.0), Verdict::Panic);
    assert_eq!(bench.discipline.frequency(), Frequency::default());

    let options = DisciplineOptions { first_step: FirstStep::AnySize, ..DisciplineOptions::default() };
    let mut bench = Bench::new(options, -1e8, 0.0);
    assert!(matches!(bench.measure(0.0), Verdict::Step(_)));
    assert!(bench.offset.abs() < 1e-6);
    bench.offset = 1e8;
    bench.pass(64.0);
    assert_eq!(bench.measure(0.0), Verdict::Panic, "once only");
}

#[test]
fn without_a_step_threshold_everything_is_slewed() {
    let options = DisciplineOptions { step_threshold: None, ..DisciplineOptions::default() };
    let mut bench = Bench::new(options, 3.0, 50.0);
    for _ in 0..200 {
        bench.pass(64.0);
        assert_eq!(bench.measure(50e-6), Verdict::Used);
        assert!(bench.discipline.frequency().total().ppm().abs() < 500.1);
    }
    assert!(bench.offset.abs() < 1e-3, "{} s left", bench.offset);
}

/// RFC 5905 A.5.5.6: the frequency stays within 500 ppm.
#[test]
fn the_frequency_stays_within_500_ppm() {
    let mut bench = Bench::new(DisciplineOptions::default(), 0.1, 3000.0);
    for _ in 0..50 {
        bench.pass(16.0);
        bench.measure(1e-6);
        let Frequency { base, slew } = bench.discipline.frequency();
        assert!(base.ppm().abs() < 500.1 && (base.ppm() + slew.ppm()).abs() < 500.1, "{base:?} {slew:?}");
    }
}

#[test]
fn a_known_frequency_is_used_from_the_start() {
    let options = DisciplineOptions { frequency: Some(Ppm::from_ppm(80.0)), ..DisciplineOptions::default() };
    let mut bench = Bench::new(options, 0.0, 80.0);
    assert!((bench.discipline.frequency().base.ppm() - 80.0).abs() < 0.001);
    assert!(bench.run(30, 64.0, 100e-6) < 200e-6);
}

#[test]
fn without_steering_the_frequency_is_never_touched() {
    let options = DisciplineOptions { steering: Steering::Off, ..DisciplineOptions::default() };
    let mut bench = Bench::new(options, 2000.0, 10.0);
    assert_eq!(bench.measure(0.0), Verdict::Used, "no panic, no step");
    bench.run(20, 64.0, 0.0);
    assert_eq!(bench.discipline.frequency(), Frequency::default());
    assert_eq!(bench.discipline.next(), None);
}

#[test]
fn what_was_slewed_is_told_at_any_time() {
    let mut bench = Bench::new(DisciplineOptions::default(), 0.004, 0.0);
    bench.measure(0.0);
    assert_eq!(bench.discipline.slewed(bench.now), NtpDuration::ZERO);
    let half = bench.now + NtpDuration::from_seconds(8);
    assert!((bench.discipline.slewed(half) - milliseconds(2)).seconds().abs() < 1e-6);
    bench.pass(100.0);
    assert!((bench.discipline.slewed(bench.now) - milliseconds(4)).seconds().abs() < 1e-6);
}

#[test]
fn a_step_by_somebody_else_is_no_news_of_the_oscillator() {
    let mut bench = Bench::new(DisciplineOptions::default(), 0.0, 10.0);
    bench.run(60, 64.0, 20e-6);
    let before = bench.discipline.frequency().base.ppm();
    bench.offset -= 0.05;
    bench.discipline.on_foreign_step(milliseconds(50));
    bench.run(10, 64.0, 20e-6);
    let after = bench.discipline.frequency().base.ppm();
    assert!((before - after).abs() < 0.5, "{before} ppm became {after}");
    assert!(bench.offset.abs() < 100e-6);
}
