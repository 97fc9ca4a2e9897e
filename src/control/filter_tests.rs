//! RFC 5905 section 10, by hand and by chance.

use super::*;
use proptest::prelude::*;

const PRECISION: Log2Seconds = Log2Seconds(-20);

fn at(seconds: i64) -> Timestamp<Monotonic> {
    Timestamp::from_nanoseconds(seconds * 1_000_000_000)
}

fn milliseconds(count: i64) -> NtpDuration {
    NtpDuration::from_nanoseconds(count * 1_000_000)
}

/// Offset and delay in milliseconds, time in seconds, dispersion 1 ms.
fn sample(offset: i64, delay: i64, seconds: i64) -> Sample {
    Sample {
        offset: milliseconds(offset),
        delay: milliseconds(delay),
        dispersion: milliseconds(1),
        time: at(seconds),
    }
}

fn filter(samples: &[Sample]) -> ClockFilter {
    let mut filter = ClockFilter::new(PRECISION);
    samples.iter().for_each(|&sample| filter.insert(sample));
    filter
}

fn near(duration: NtpDuration, seconds: f64) -> bool {
    (duration.seconds() - seconds).abs() < 1e-6
}

/// Checklist 47.
#[test]
fn an_empty_register_is_a_little_less_than_16_s() {
    assert_eq!(ClockFilter::new(PRECISION).estimate(at(0)), None);
    let dispersion = register_dispersion(&[None; STAGES], at(0));
    assert!(near(dispersion, 16.0 * 255.0 / 256.0), "{dispersion}");
}

/// Checklist 48: the sum by hand, with samples that came at once, so that nothing grew meanwhile.
#[test]
fn dispersion_is_the_weighted_sum_in_order_of_delay() {
    let stage = |delay, dispersion| Sample { dispersion: milliseconds(dispersion), ..sample(0, delay, 0) };
    let filter = filter(&[stage(10, 2), stage(30, 8), stage(20, 4)]);
    let dummies = 16.0 * (1.0 / 16.0 + 1.0 / 32.0 + 1.0 / 64.0 + 1.0 / 128.0 + 1.0 / 256.0);
    let expected = 0.002 / 2.0 + 0.004 / 4.0 + 0.008 / 8.0 + dummies;
    let estimate = filter.estimate(at(0)).unwrap();
    assert!(near(estimate.dispersion, expected), "{}", estimate.dispersion);
    assert_eq!((estimate.delay, estimate.samples), (milliseconds(10), 3));
}

/// Checklist 51, observations (b) and (c), also when the first sample stays the best.
#[test]
fn four_samples_bring_the_dispersion_below_one_second() {
    for delays in [[9, 8, 7, 6], [6, 7, 8, 9]] {
        let mut filter = ClockFilter::new(PRECISION);
        let mut last = 16.0;
        for (index, delay) in delays.into_iter().enumerate() {
            filter.insert(sample(0, delay, index as i64));
            let dispersion = filter.estimate(at(index as i64)).unwrap().dispersion.seconds();
            assert!(dispersion < last * 0.51, "{dispersion} after {last}");
            assert_eq!(dispersion < 1.0, index + 1 >= usize::from(SAMPLES_NEEDED));
            last = dispersion;
        }
    }
}

#[test]
fn the_shortest_delay_is_chosen() {
    let estimate = filter(&[sample(5, 40, 0), sample(1, 10, 1), sample(-7, 60, 2)]).estimate(at(2)).unwrap();
    assert_eq!((estimate.offset, estimate.delay, estimate.time), (milliseconds(1), milliseconds(10), at(1)));
}

#[test]
fn of_equal_delays_the_newest_is_chosen() {
    let estimate = filter(&[sample(1, 10, 0), sample(2, 10, 1)]).estimate(at(1)).unwrap();
    assert_eq!((estimate.offset, estimate.is_new), (milliseconds(2), true));
}

/// Checklist 49.
#[test]
fn a_sample_that_is_not_the_best_changes_neither_offset_nor_delay_nor_time() {
    let mut filter = filter(&[sample(1, 10, 0)]);
    assert!(filter.estimate(at(0)).unwrap().is_new);
    filter.insert(sample(9, 30, 64));
    let estimate = filter.estimate(at(64)).unwrap();
    assert_eq!((estimate.offset, estimate.delay, estimate.time), (milliseconds(1), milliseconds(10), at(0)));
    assert!(!estimate.is_new);
}

#[test]
fn the_best_sample_leaves_after_eight_and_a_later_one_is_new() {
    let mut filter = filter(&[sample(1, 10, 0)]);
    for poll in 1..8 {
        filter.insert(sample(1, 20 + poll, poll));
        assert!(!filter.estimate(at(poll)).unwrap().is_new);
    }
    filter.insert(sample(1, 40, 8));
    let estimate = filter.estimate(at(8)).unwrap();
    assert_eq!((estimate.delay, estimate.time, estimate.is_new), (milliseconds(21), at(1), true));
}

/// Checklist 50: sqrt((3^2 + 4^2) / 2).
#[test]
fn jitter_is_the_rms_about_the_chosen_sample_floored_at_the_precision() {
    assert_eq!(filter(&[sample(1, 10, 0)]).estimate(at(0)).unwrap().jitter, PRECISION.to_duration());
    let equal = filter(&[sample(1, 10, 0), sample(1, 11, 1)]);
    assert_eq!(equal.estimate(at(1)).unwrap().jitter, PRECISION.to_duration());
    let varied = filter(&[sample(4, 20, 0), sample(-3, 30, 1), sample(0, 10, 2)]);
    let jitter = varied.estimate(at(2)).unwrap().jitter;
    assert!(near(jitter, 12.5_f64.sqrt() / 1e3), "{jitter}");
}

/// A register of five samples with a jitter of about 1 ms, used at 0 ms.
fn steady() -> ClockFilter {
    filter(&[sample(1, 15, 0), sample(-1, 14, 1), sample(1, 13, 2), sample(-1, 12, 3), sample(0, 11, 4)])
}

/// A.5.2.
#[test]
fn a_spike_is_held_back_once() {
    let mut filter = steady();
    filter.insert(sample(50, 5, 5));
    let held = filter.estimate(at(5)).unwrap();
    assert_eq!((held.offset, held.time, held.is_new), (NtpDuration::ZERO, at(4), false));
    filter.insert(sample(50, 6, 6));
    let believed = filter.estimate(at(6)).unwrap();
    assert_eq!((believed.offset, believed.time, believed.is_new), (milliseconds(50), at(5), true));
}

#[test]
fn within_three_times_the_jitter_is_no_spike() {
    let mut filter = steady();
    let jitter = filter.estimate(at(4)).unwrap().jitter;
    assert!(near(jitter, 0.001), "{jitter}");
    filter.insert(Sample { offset: jitter.times(3), ..sample(0, 5, 5) });
    assert!(filter.estimate(at(5)).unwrap().is_new);
}

/// Checklist 39: the tuple of section 10, not the skeleton's with delay 0.
#[test]
fn dummies_raise_the_dispersion_and_choose_nothing() {
    let mut filter = filter(&(0..8).map(|poll| sample(3, 10 + poll, poll)).collect::<Vec<_>>());
    let before = filter.estimate(at(7)).unwrap();
    filter.shift_dummy(at(8));
    let after = filter.estimate(at(8)).unwrap();
    assert_eq!((after.offset, after.delay, after.time), (before.offset, before.delay, before.time));
    assert!(!after.is_new);
    assert!(after.dispersion.seconds() > 16.0 / 256.0, "{}", after.dispersion);
    (9..12).for_each(|poll| filter.shift_dummy(at(poll)));
    assert!(filter.estimate(at(11)).unwrap().dispersion.seconds() > 0.9);
    (12..16).for_each(|poll| filter.shift_dummy(at(poll)));
    assert_eq!(filter.estimate(at(15)), None, "after eight, the register is as it was at the start");
    filter.insert(sample(2, 90, 16));
    assert!(filter.estimate(at(16)).unwrap().is_new);
}

/// Checklist 59: lambda, and in it epsilon, grows at PHI.
#[test]
fn dispersion_grows_at_phi_between_samples() {
    let filter = steady();
    let dispersion = |seconds| filter.estimate(at(seconds)).unwrap().dispersion;
    let grown = dispersion(4 + 10_000) - dispersion(4);
    assert!((0.15..0.150_01).contains(&grown.seconds()), "{grown}");
    assert_eq!(filter.estimate(at(4)).unwrap().dispersion_at(at(10_004)), dispersion(10_004));
    assert_eq!(dispersion(10_000_000), MAX_DISPERSION);
}

/// The weighted sum alone would say 54 ms here: half of what the chosen sample has grown to.
#[test]
fn the_bound_covers_the_age_of_the_chosen_sample() {
    let mut filter = filter(&[sample(0, 1, 0)]);
    (1..8).for_each(|poll| filter.insert(sample(0, 10, 7000 + poll)));
    let dispersion = filter.estimate(at(7007)).unwrap().dispersion.seconds();
    assert!((0.106..0.107).contains(&dispersion), "{dispersion}");
}

#[test]
fn clear_forgets_also_what_was_used() {
    let mut filter = steady();
    filter.clear();
    assert_eq!(filter.estimate(at(4)), None);
    filter.insert(sample(7, 90, 2));
    let estimate = filter.estimate(at(4)).unwrap();
    assert_eq!((estimate.offset, estimate.is_new, estimate.samples), (milliseconds(7), true, 1));
}

#[derive(Clone, Debug)]
enum Step {
    Insert(i64, i64, i64),
    Dummy,
}

fn steps() -> impl Strategy<Value = Vec<(u32, Step)>> {
    let step = prop_oneof![
        3 => (any::<i64>(), any::<i64>(), any::<i64>()).prop_map(|(offset, delay, dispersion)| Step::Insert(offset, delay, dispersion)),
        3 => (-1_000_000_i64..1_000_000, 1_i64..1_000_000_000, 1_i64..100_000).prop_map(|(offset, delay, dispersion)| Step::Insert(offset, delay, dispersion)),
        2 => Just(Step::Dummy),
    ];
    proptest::collection::vec((0_u32..200_000, step), 1..60)
}

proptest! {
    #[test]
    fn dispersion_never_shrinks_without_a_sample_and_every_number_is_sane(steps in steps()) {
        let mut filter = ClockFilter::new(PRECISION);
        let mut now = at(0);
        let mut latest = None;
        for (seconds, step) in steps {
            let before = filter.estimate(now);
            now = now + NtpDuration::from_seconds(i64::from(seconds));
            let waited = filter.estimate(now);
            match step {
                Step::Insert(offset, delay, dispersion) => filter.insert(Sample {
                    offset: NtpDuration::from_bits(offset),
                    delay: NtpDuration::from_bits(delay),
                    dispersion: NtpDuration::from_bits(dispersion),
                    time: now,
                }),
                Step::Dummy => filter.shift_dummy(now),
            }
            let after = filter.estimate(now);
            if let (Some(before), Some(waited)) = (before, waited) {
                prop_assert!(waited.dispersion >= before.dispersion);
                if let (Step::Dummy, Some(after)) = (&step, after) {
                    prop_assert!(after.dispersion >= waited.dispersion);
                    prop_assert!(!after.is_new);
                }
            }
            if let Some(after) = after {
                prop_assert!(after.dispersion <= MAX_DISPERSION && after.dispersion >= NtpDuration::ZERO);
                prop_assert!(after.jitter >= PRECISION.to_duration());
                prop_assert!((1..=8).contains(&after.samples));
                // "Use a sample only once and never a sample older than the latest one."
                if after.is_new {
                    prop_assert!(latest.is_none_or(|latest| after.time >= latest));
                    latest = Some(after.time);
                }
            }
        }
    }

    /// Section 10, the oracle: sort, sum and RMS in floating point over the last eight.
    #[test]
    fn agrees_with_the_formulas(samples in proptest::collection::vec((-1_000_i64..1_000, 1_i64..1_000), 1..20)) {
        let samples: Vec<Sample> =
            samples.iter().enumerate().map(|(index, &(offset, delay))| sample(offset, delay, index as i64)).collect();
        let filter = filter(&samples);
        let now = at(samples.len() as i64 - 1);
        let mut last: Vec<Sample> = samples.iter().rev().take(8).copied().collect();
        last.sort_by_key(|sample| sample.delay);
        let epsilon = |index: usize| last.get(index).map_or(16.0, |sample| 0.001 + 15e-6 * (now - sample.time).seconds());
        let sum: f64 = (0..8).map(|index| epsilon(index) / 2_f64.powi(index as i32 + 1)).sum();
        let estimate = filter.estimate(now).unwrap();
        prop_assert!((estimate.dispersion.seconds() - sum.max(epsilon(0))).abs() < 1e-7 || !estimate.is_new);
        // Unless the best one is being held back as a spike.
        if estimate.time == last[0].time {
            prop_assert_eq!(estimate.offset, last[0].offset);
            let squares: f64 = last.iter().map(|sample| (sample.offset - last[0].offset).seconds().powi(2)).sum();
            let psi = (squares / (last.len() as f64 - 1.0).max(1.0)).sqrt().max(2_f64.powi(-20));
            prop_assert!((estimate.jitter.seconds() - psi).abs() < 1e-6);
        } else {
            prop_assert!(!estimate.is_new);
        }
    }
}

/// A clock that ran 100 ppm fast and was then set right: the samples say what they would have said if it had been
/// right all along, so that neither the choice of an old one nor the jitter is disturbed.
#[test]
fn a_change_of_the_frequency_is_told_to_the_samples() {
    let mut filter = ClockFilter::new(PRECISION);
    let at = |seconds: i64| Timestamp::from_nanoseconds(seconds * 1_000_000_000);
    for poll in 0..8 {
        let drifted = NtpDuration::from_nanoseconds(-100_000 * 64 * poll);
        let delay = NtpDuration::from_nanoseconds(1_000_000 + poll);
        let dispersion = NtpDuration::from_nanoseconds(1000);
        filter.insert(Sample { offset: drifted, delay, dispersion, time: at(64 * poll) });
    }
    let now = at(64 * 7);
    let before = filter.estimate(now).unwrap();
    assert!(before.jitter.seconds() > 20e-3, "{}", before.jitter);
    filter.on_frequency_change(now, Ppm::from_ppm(-100.0));
    let after = filter.estimate(now).unwrap();
    assert_eq!(after.time, before.time);
    assert!((after.offset.seconds() - -44.8e-3).abs() < 1e-6, "{}: the offset of now", after.offset);
    assert!(after.jitter.seconds() < 2e-6, "{}", after.jitter);
}
