//! What makes a run's numbers the generator's and not the server's, in words.
//!
//! Owns: those words, one line for each thing however many steps it befell. Does not own: when it is so (`load::record`).
//!
//! The one idea a newcomer lacks: a generator that was late or could not send what was asked measures itself, so that is
//! said, and as loudly as the result.

use super::show::{latency, per_second, rate};
use crate::load::record::{Run, Step};

const LIMIT: &str = "the generator, not the server, is the limit";

/// One line for each thing that was wrong; none if all was well.
pub(super) fn warnings(run: &Run) -> Vec<String> {
    let short = worst_first(&run.steps, |step| step.offered_too_little().map(|share| -share));
    // Saturating, a request is due when it is sent.
    let late = worst_first(&run.steps, |step| step.intended_per_second.and(step.sent_too_late()));
    let line = |affected: &[usize], alone: fn(&Step) -> String, what: &str, worst: fn(&Step) -> String| {
        let step = run.steps.get(*affected.first()?)?;
        let text = match affected {
            [_] => alone(step),
            _ => format!("at {}, {what}; worst at {}/s: {}", places(run, affected), rate(step), worst(step)),
        };
        Some(format!("{text}: {LIMIT}"))
    };
    let short = line(
        &short,
        |step| {
            format!(
                "asked for {}/s, but only {}/s were sent",
                rate(step),
                per_second(step.offered_per_second)
            )
        },
        "fewer requests were sent than asked for",
        |step| format!("only {}/s", per_second(step.offered_per_second)),
    );
    let late = line(
        &late,
        |step| format!("at {}/s, {}", rate(step), lateness(step)),
        "requests left late",
        lateness,
    );
    short.into_iter().chain(late).collect()
}

/// The steps that something is wrong with, those where `badness` is highest first.
fn worst_first(steps: &[Step], badness: impl Fn(&Step) -> Option<f64>) -> Vec<usize> {
    let mut found: Vec<(usize, f64)> =
        steps.iter().enumerate().filter_map(|(index, step)| Some((index, badness(step)?))).collect();
    found.sort_by(|one, other| other.1.total_cmp(&one.1));
    found.into_iter().map(|(index, _)| index).collect()
}

/// How late 99 % of the requests left, beside the round trip that lateness is part of. Round trips are those of replies in
/// time, so where the lateness is the longer of the two, requests that left so late had none.
fn lateness(step: &Step) -> String {
    let (late, trip) = (step.send_delay.p99, step.round_trip.p99);
    let (late_text, trip_text) = (latency(late), latency(trip));
    if late <= trip {
        format!(
            "99 % of requests left up to {late_text} late, which is part of the round trip ({trip_text} for 99 %)"
        )
    } else {
        format!(
            "1 % of requests left {late_text} late or more, longer than the round trip of 99 % of the replies \
             ({trip_text}), so that not all of them had a reply in time"
        )
    }
}

/// The rates of these steps, neighbours put together, and how many of how many they are.
fn places(run: &Run, steps: &[usize]) -> String {
    let mut sorted = steps.to_vec();
    sorted.sort_unstable();
    let name =
        |index: &usize| run.steps.get(*index).map_or_else(String::new, |step| format!("{}/s", rate(step)));
    let groups: Vec<String> = sorted
        .chunk_by(|one, next| one + 1 == *next)
        .map(|group| match group {
            [first, .., last] => format!("{} to {}", name(first), name(last)),
            one => one.iter().map(name).collect(),
        })
        .collect();
    format!("{} ({} of {} steps)", groups.join(", "), steps.len(), run.steps.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::testing;

    /// A sweep of 1000, 2000, ... requests a second, in which all is well.
    fn sweep(steps: u32) -> Run {
        let mut run = testing::run();
        let step = run.steps.swap_remove(0);
        run.steps = (1..=steps)
            .map(|number| {
                let rate = f64::from(number) * 1000.0;
                Step { intended_per_second: Some(rate), offered_per_second: rate, ..step.clone() }
            })
            .collect();
        run
    }

    #[test]
    fn a_generator_that_is_the_limit_is_named() {
        let mut run = testing::run();
        assert_eq!(warnings(&run), [""; 0]);
        // Saturating there is nothing to fall short of, and to be late for.
        for step in &mut run.steps {
            step.offered_per_second = 900.0;
            step.send_delay.p99 = 1_000_000;
        }
        assert_eq!(
            warnings(&run),
            [
                "asked for 1 000/s, but only 900/s were sent: the generator, not the server, is the limit",
                "at 1 000/s, 99 % of requests left up to 1.00 ms late, which is part of the round trip (2.00 ms for \
                 99 %): the generator, not the server, is the limit"
            ]
        );
    }

    #[test]
    fn a_lateness_beyond_the_round_trip_is_not_called_a_part_of_it() {
        let mut run = sweep(1);
        run.steps[0].send_delay.p99 = 5_000_000;
        let warnings = warnings(&run);
        assert_eq!(
            warnings,
            [
                "at 1 000/s, 1 % of requests left 5.00 ms late or more, longer than the round trip of 99 % of the replies \
              (2.00 ms), so that not all of them had a reply in time: the generator, not the server, is the limit"
            ]
        );
    }

    #[test]
    fn a_long_sweep_has_one_line_for_each_thing_that_names_its_steps() {
        let mut run = sweep(100);
        for index in [0, 4, 5, 6, 97, 98] {
            run.steps[index].offered_per_second *= if index == 5 { 0.5 } else { 0.9 };
        }
        for index in [50, 51] {
            run.steps[index].send_delay.p99 = 500_000 + index as u64 * 10_000;
        }
        let limit = "the generator, not the server, is the limit";
        assert_eq!(
            warnings(&run),
            [
                format!(
                    "at 1 000/s, 5 000/s to 7 000/s, 98 000/s to 99 000/s (6 of 100 steps), fewer requests were \
                     sent than asked for; worst at 6 000/s: only 3 000/s: {limit}"
                ),
                format!(
                    "at 51 000/s to 52 000/s (2 of 100 steps), requests left late; worst at 52 000/s: 99 % of requests \
                     left up to 1.01 ms late, which is part of the round trip (2.00 ms for 99 %): {limit}"
                ),
            ]
        );
    }
}
