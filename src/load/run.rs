//! Drives an engine through its steps and records what it measured.
//!
//! Owns: the order of steps, when to stop, the arithmetic from counts to the record. Does not own: options, engines.
//!
//! The one idea a newcomer lacks: whoever stops a run early still gets the record of what was done until then, so the
//! record grows step by step, also where an engine fails half way.

use super::engine::{Engine, EngineError, Measured, Plan, Progress, Wish};
use super::judge::Flaw;
use super::record::{Latencies, Machine, Step};
use std::fs;
use std::time::SystemTime;

/// How a run ended.
#[derive(Debug, Default)]
pub struct Ending {
    /// Whoever watched it had it end before its time.
    pub interrupted: bool,
    /// The engine could not go on.
    pub failure: Option<EngineError>,
}

/// Runs these steps, one after the other, and appends each to `steps` when it is done, one that the engine could not
/// finish among them. `watch` hears, several times a second, which step is running and how far it is; once it wishes
/// anything but to go on, the step is the last.
pub fn run(
    engine: &mut dyn Engine,
    plans: &[Plan],
    steps: &mut Vec<Step>,
    watch: &mut dyn FnMut(usize, Progress) -> Wish,
) -> Ending {
    let mut interrupted = false;
    for (index, plan) in plans.iter().enumerate() {
        let outcome = engine.run(plan, &mut |progress| {
            let wish = watch(index, progress);
            interrupted |= wish != Wish::GoOn;
            wish
        });
        let failure = match outcome {
            Ok(measured) => {
                // A step that ended before its first request says nothing.
                if measured.offered > 0 || measured.broken.is_none() && !interrupted {
                    steps.push(step(plan, &measured));
                }
                measured.broken
            }
            Err(error) => Some(error.0),
        };
        if let Some(failure) = failure {
            let place = if plans.len() > 1 {
                format!("step {} of {}: ", index + 1, plans.len())
            } else {
                String::new()
            };
            return Ending { interrupted, failure: Some(EngineError(format!("{place}{failure}"))) };
        }
        if interrupted {
            break;
        }
    }
    Ending { interrupted, failure: None }
}

/// The record of a step.
fn step(plan: &Plan, measured: &Measured) -> Step {
    let seconds = measured.duration.as_secs_f64();
    let pace = pace(plan, measured);
    let per_second =
        |count: u64| if measured.offered > 0 { count as f64 / measured.offered as f64 * pace } else { 0.0 };
    let refused: u64 = measured.kisses.iter().map(|kiss| kiss.1).sum();
    let known = measured.answered + measured.late + refused + measured.in_flight;
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
        in_flight: measured.in_flight,
        lost: measured.offered.saturating_sub(known),
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

/// Requests a second that were sent.
fn pace(plan: &Plan, measured: &Measured) -> f64 {
    let seconds = measured.duration.as_secs_f64();
    match (measured.offered, plan.rate) {
        (0, _) => 0.0,
        // From the first request to the last there is one interval less than there are requests.
        (2.., _) if seconds > 0.0 => (measured.offered - 1) as f64 / seconds,
        // A single one has no interval to measure. It was on time, if no other was due.
        (1, Some(rate)) if measured.send_failures == 0 => rate,
        (offered, _) => offered as f64 / plan.duration.as_secs_f64(),
    }
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

    /// Answers every tenth request late, fails in step `fails_in`, and loses its link in step `breaks_in`.
    #[derive(Default)]
    struct Fake {
        step: usize,
        fails_in: usize,
        breaks_in: usize,
    }

    impl Engine for Fake {
        fn run(
            &mut self,
            plan: &Plan,
            progress: &mut dyn FnMut(Progress) -> Wish,
        ) -> Result<Measured, EngineError> {
            self.step += 1;
            if self.step == self.fails_in {
                return Err(EngineError("the program was refused".into()));
            }
            let broken = (self.step == self.breaks_in).then(|| "the link went down".into());
            let mut measured = Measured { broken, ..Measured::default() };
            for second in 1..=plan.duration.as_secs() {
                measured.duration = Duration::from_secs(second);
                measured.offered = (plan.rate.unwrap() * second as f64) as u64 + 1;
                measured.late = measured.offered / 10;
                measured.answered = measured.offered - measured.late;
                if progress(Progress { elapsed: measured.duration, offered: measured.offered, answered: 0 })
                    != Wish::GoOn
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
            Wish::GoOn
        };
        let ending = run(&mut Fake::default(), &[plan(10.0), plan(20.0)], &mut steps, &mut watch);
        assert!(!ending.interrupted && ending.failure.is_none());
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
        let mut watch = |_, progress: Progress| {
            if progress.elapsed < Duration::from_secs(2) { Wish::GoOn } else { Wish::Finish }
        };
        let ending = run(&mut Fake::default(), &[plan(10.0), plan(20.0)], &mut steps, &mut watch);
        assert!(ending.interrupted && ending.failure.is_none());
        assert_eq!(steps.len(), 1);
        assert_eq!((steps[0].offered, steps[0].duration_seconds), (21, 2.0));
    }

    #[test]
    fn a_step_that_did_not_begin_is_not_recorded() {
        let mut steps = Vec::new();
        let plans = [plan(10.0), Plan { duration: Duration::ZERO, ..plan(20.0) }];
        struct Waiting(Fake);
        impl Engine for Waiting {
            fn run(
                &mut self,
                plan: &Plan,
                progress: &mut dyn FnMut(Progress) -> Wish,
            ) -> Result<Measured, EngineError> {
                if progress(Progress::default()) != Wish::GoOn {
                    return Ok(Measured::default());
                }
                self.0.run(plan, progress)
            }
        }
        let mut watch = |step, _| if step == 0 { Wish::GoOn } else { Wish::Finish };
        let ending = run(&mut Waiting(Fake::default()), &plans, &mut steps, &mut watch);
        assert!(ending.interrupted && ending.failure.is_none());
        assert_eq!(steps.iter().map(|step| step.offered).collect::<Vec<_>>(), [41]);
    }

    #[test]
    fn a_failing_engine_leaves_the_steps_before() {
        let plans = [plan(10.0), plan(20.0), plan(30.0)];
        let mut steps = Vec::new();
        let ending =
            run(&mut Fake { fails_in: 3, ..Fake::default() }, &plans, &mut steps, &mut |_, _| Wish::GoOn);
        assert_eq!(ending.failure.unwrap().to_string(), "step 3 of 3: the program was refused");
        assert_eq!(steps.len(), 2);
    }

    #[test]
    fn a_broken_step_is_kept_and_is_the_last() {
        let plans = [plan(10.0), plan(20.0), plan(30.0)];
        let mut steps = Vec::new();
        let ending =
            run(&mut Fake { breaks_in: 2, ..Fake::default() }, &plans, &mut steps, &mut |_, _| Wish::GoOn);
        assert_eq!(ending.failure.unwrap().to_string(), "step 2 of 3: the link went down");
        assert_eq!(steps.iter().map(|step| step.offered).collect::<Vec<_>>(), [41, 81]);
    }

    #[test]
    fn a_single_request_has_the_rate_it_was_planned_at() {
        let single = Measured { offered: 1, answered: 1, ..Measured::default() };
        let record = step(&plan(1.0), &single);
        assert_eq!((record.offered_per_second, record.answered_per_second), (1.0, 1.0));
        assert_eq!(record.offered_too_little(), None);
        // Not so if others were due.
        let slow = Measured { send_failures: 3, ..single };
        assert_eq!(step(&plan(1.0), &slow).offered_per_second, 0.25);
    }

    #[test]
    fn what_was_in_flight_at_an_early_end_is_not_lost() {
        let measured = Measured { offered: 100, answered: 60, in_flight: 30, late: 1, ..Measured::default() };
        let record = step(&plan(50.0), &measured);
        assert_eq!((record.in_flight, record.lost, record.loss()), (30, 9, 10.0 / 70.0));
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
