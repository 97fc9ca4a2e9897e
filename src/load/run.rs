//! Drives an engine through its steps and records what it measured.
//!
//! Owns: the order of steps, when to stop, the arithmetic from counts to the record. Does not own: options, engines.
//!
//! The one idea a newcomer lacks: whoever stops a run early still gets the record of what was done until then, so the
//! record grows step by step, also where an engine fails half way.

use super::engine::{Engine, EngineError, Measured, Plan, Progress};
use super::judge::Flaw;
use super::record::{Latencies, Machine, Step};
use std::fs;
use std::time::SystemTime;

/// Runs these steps, one after the other, and appends each to `steps` when it is done. `watch` hears, several times a
/// second, which step is running and how far it is; once it returns `false`, the step ends early and is the last.
///
/// # Errors
/// The engine's; `steps` has what was done before.
pub fn run(
    engine: &mut dyn Engine,
    plans: &[Plan],
    steps: &mut Vec<Step>,
    watch: &mut dyn FnMut(usize, Progress) -> bool,
) -> Result<(), EngineError> {
    for (index, plan) in plans.iter().enumerate() {
        let mut goes_on = true;
        let measured = engine.run(plan, &mut |progress| {
            goes_on &= watch(index, progress);
            goes_on
        })?;
        steps.push(step(plan, &measured));
        if !goes_on {
            break;
        }
    }
    Ok(())
}

/// The record of a step.
fn step(plan: &Plan, measured: &Measured) -> Step {
    let seconds = measured.duration.as_secs_f64();
    // From the first request to the last there is one interval less than there are requests.
    let intervals = measured.offered.saturating_sub(1) as f64 / measured.offered.max(1) as f64;
    let per_second = |count: u64| if seconds > 0.0 { count as f64 * intervals / seconds } else { 0.0 };
    let refused: u64 = measured.kisses.iter().map(|kiss| kiss.1).sum();
    let answered = measured.answered + measured.late + refused;
    let mut record = Step {
        intended_per_second: plan.rate,
        duration_seconds: seconds,
        offered: measured.offered,
        offered_per_second: per_second(measured.offered),
        send_failures: measured.send_failures,
        answered: measured.answered,
        answered_per_second: per_second(measured.answered),
        kisses: Default::default(),
        late: measured.late,
        lost: measured.offered.saturating_sub(answered),
        duplicates: measured.duplicates,
        invalid: Default::default(),
        unfinished_checksums: measured.unfinished_checksums,
        round_trip: Latencies::of(&measured.round_trip),
        turnaround: Latencies::of(&measured.turnaround),
        send_delay: Latencies::of(&measured.send_delay),
    };
    for (code, count) in &measured.kisses {
        *record.kisses.entry(code.escape_ascii().to_string()).or_default() += count;
    }
    for (flaw, count) in Flaw::ALL.into_iter().zip(measured.flaws).filter(|(_, count)| *count > 0) {
        record.invalid.insert(flaw.name().to_owned(), count);
    }
    record
}

/// This machine, as far as it tells.
#[must_use]
pub fn machine() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (processor, cpus) = processors(&read("/proc/cpuinfo"));
    Machine { processor, cpus, kernel: read("/proc/sys/kernel/osrelease").trim().to_owned() }
}

/// The processor's name and how many are online, from /proc/cpuinfo. Not every architecture has the name there.
fn processors(cpuinfo: &str) -> (String, usize) {
    let fields = || cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let name = fields().find(|(field, _)| field.trim_end() == "model name");
    let name = name.map_or(std::env::consts::ARCH, |(_, value)| value.trim());
    (name.to_owned(), fields().filter(|(field, _)| field.trim_end() == "processor").count())
}

/// A time as RFC 3339 writes it, UTC, to the second.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (mut days, second) = (seconds / 86400, seconds % 86400);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Answers every tenth request late, and fails in step `fails_in`.
    struct Fake {
        step: usize,
        fails_in: usize,
    }

    impl Engine for Fake {
        fn run(
            &mut self,
            plan: &Plan,
            progress: &mut dyn FnMut(Progress) -> bool,
        ) -> Result<Measured, EngineError> {
            self.step += 1;
            if self.step == self.fails_in {
                return Err(EngineError("the link went down".into()));
            }
            let mut measured = Measured::default();
            for second in 1..=plan.duration.as_secs() {
                measured.duration = Duration::from_secs(second);
                measured.offered = (plan.rate.unwrap() * second as f64) as u64 + 1;
                measured.late = measured.offered / 10;
                measured.answered = measured.offered - measured.late;
                if !progress(Progress { elapsed: measured.duration, offered: measured.offered, answered: 0 })
                {
                    break;
                }
            }
            measured.round_trip.record_n(20_000, measured.answered).unwrap();
            Ok(measured)
        }
    }

    fn plan(rate: f64) -> Plan {
        let second = Duration::from_secs(1);
        Plan { rate: Some(rate), duration: 4 * second, timeout: second, nonce: 0 }
    }

    #[test]
    fn every_step_is_recorded_in_order() {
        let (mut steps, mut seen) = (Vec::new(), Vec::new());
        let mut watch = |index, _| {
            seen.push(index);
            true
        };
        run(&mut Fake { step: 0, fails_in: 9 }, &[plan(10.0), plan(20.0)], &mut steps, &mut watch).unwrap();
        assert_eq!(seen, [0, 0, 0, 0, 1, 1, 1, 1]);
        let rates: Vec<_> = steps.iter().map(|step| (step.offered_per_second, step.offered)).collect();
        assert_eq!(rates, [(10.0, 41), (20.0, 81)]);
        assert_eq!(
            (steps[1].answered, steps[1].late, steps[1].lost, steps[1].loss()),
            (73, 8, 0, 8.0 / 81.0)
        );
    }

    #[test]
    fn stopping_ends_the_step_and_the_run_but_keeps_what_was_measured() {
        let mut steps = Vec::new();
        let mut watch = |_, progress: Progress| progress.elapsed < Duration::from_secs(2);
        run(&mut Fake { step: 0, fails_in: 9 }, &[plan(10.0), plan(20.0)], &mut steps, &mut watch).unwrap();
        assert_eq!(steps.len(), 1);
        assert_eq!((steps[0].offered, steps[0].duration_seconds), (21, 2.0));
    }

    #[test]
    fn a_failing_engine_leaves_the_steps_before() {
        let mut steps = Vec::new();
        let plans = [plan(10.0), plan(20.0), plan(30.0)];
        let error = run(&mut Fake { step: 0, fails_in: 3 }, &plans, &mut steps, &mut |_, _| true);
        assert_eq!(error.unwrap_err().to_string(), "the link went down");
        assert_eq!(steps.len(), 2);
    }

    #[test]
    fn what_is_neither_answered_nor_late_nor_refused_is_lost() {
        let mut flaws = [0; Flaw::COUNT];
        flaws[Flaw::Order as usize] = 3;
        let measured = Measured {
            duration: Duration::from_secs(2),
            offered: 101,
            answered: 61,
            late: 5,
            kisses: vec![(*b"RATE", 7), ([0, 1, b',', b'A'], 1)],
            flaws,
            ..Measured::default()
        };
        let record = step(&plan(50.0), &measured);
        assert_eq!((record.lost, record.answered_per_second), (27, 61.0 * 50.0 / 101.0));
        let kisses: Vec<_> = record.kisses.iter().map(|(code, count)| (code.as_str(), *count)).collect();
        assert_eq!(kisses, [("RATE", 7), ("\\x00\\x01,A", 1)]);
        assert_eq!(record.invalid.into_iter().collect::<Vec<_>>(), [("order".to_owned(), 3)]);
        assert_eq!(step(&plan(1.0), &Measured::default()).offered_per_second, 0.0);
    }

    #[test]
    fn times_are_written_as_rfc_3339_wants() {
        let at = |seconds| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        // date -u -d @N
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn the_processor_is_named_and_counted() {
        let cpuinfo =
            "processor\t: 0\nmodel name\t: Fast CPU: 9\n\nprocessor\t: 1\nmodel name\t: Fast CPU: 9\n";
        assert_eq!(processors(cpuinfo), ("Fast CPU: 9".to_owned(), 2));
        assert_eq!(processors("processor : 0\n").0, std::env::consts::ARCH);
    }
}
