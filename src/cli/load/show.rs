//! A run as people read it: tables, a histogram, hints.
//!
//! Owns: text. Does not own: numbers (`load::record`), warnings.
//!
//! The one idea a newcomer lacks: what is usual takes no line, so that what is odd is seen.

use super::super::table::{columns, grouped};
use crate::load::record::{Latencies, Run, Step};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Longest bar of the histogram, in characters.
const BAR: f64 = 50.0;

/// Everything about a run, but for its warnings.
pub(super) fn text(run: &Run) -> String {
    let mut text = format!(
        "{} over {}, asked by {} clients of {}, engine {}\n\nround trip, from the time a request should have left\n",
        run.target,
        run.interface,
        grouped(run.clients),
        run.sources,
        run.engine
    );
    text.push_str(&requests(&run.steps));
    for note in early_end(run) {
        let _ = writeln!(text, "\n{note}");
    }
    if run.steps.iter().any(|step| step.turnaround.count > 0) {
        text.push_str("\nserver's turnaround, T3 - T2\n");
        text.push_str(&turnarounds(&run.steps));
    }
    let oddities: Vec<_> = run.steps.iter().map(|step| (at_rate(step), oddities(step))).collect();
    for (rate, oddities) in oddities.iter().filter(|(_, oddities)| !oddities.is_empty()) {
        let _ = writeln!(text, "\n{rate}: {}", oddities.join("; "));
    }
    if let [step] = run.steps.as_slice() {
        text.push_str(&histogram(&step.round_trip));
    }
    text
}

fn requests(steps: &[Step]) -> String {
    let counts = |step: &Step| {
        [
            rate(step),
            per_second(step.offered_per_second),
            per_second(step.answered_per_second),
            percent(step.loss()),
            grouped(step.late),
        ]
    };
    let heading = [
        "asked/s",
        "offered/s",
        "answered/s",
        "lost %",
        "late",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "p99.99",
        "max",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(steps.iter().map(|step| [&counts(step)[..], &percentiles(&step.round_trip)].concat()));
    columns(&rows)
}

fn turnarounds(steps: &[Step]) -> String {
    let heading = ["asked/s", "p50", "p90", "p99", "p99.9", "p99.99", "max"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(steps.iter().map(|step| [&[rate(step)], &percentiles(&step.turnaround)[..]].concat()));
    columns(&rows)
}

fn percentiles(latencies: &Latencies) -> [String; 6] {
    let Latencies { p50, p90, p99, p99_9, p99_99, max, .. } = *latencies;
    [p50, p90, p99, p99_9, p99_99, max].map(|value| match latencies.count {
        0 => "-".to_owned(),
        _ => latency(value),
    })
}

pub(super) fn rate(step: &Step) -> String {
    step.intended_per_second.map_or("all it can".to_owned(), per_second)
}

fn at_rate(step: &Step) -> String {
    step.intended_per_second.map_or("at all it can".to_owned(), |rate| format!("at {}/s", per_second(rate)))
}

/// A rate: three digits at least, and no fraction behind them.
pub(super) fn per_second(rate: f64) -> String {
    let decimals = if rate < 9.995 { 2 } else { usize::from(rate < 99.95) };
    let text = format!("{rate:.decimals$}");
    match text.split_once('.') {
        Some(_) => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        None => grouped(rate.round() as u64),
    }
}

/// Why a run was over before its time, if it was.
fn early_end(run: &Run) -> Vec<String> {
    let mut notes = Vec::new();
    if run.interrupted {
        notes.push(
            "interrupted: the run was ended before its time; its last step is shorter than planned, and further ones \
             are missing"
                .to_owned(),
        );
    }
    notes.extend(run.failure.iter().map(|failure| format!("ended early: {failure}")));
    notes
}

/// What only deserves a line when it is there.
fn oddities(step: &Step) -> Vec<String> {
    let mut found = Vec::new();
    let listed = |counts: &BTreeMap<String, u64>| {
        counts
            .iter()
            .map(|(name, count)| format!("{name} {}", grouped(*count)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    if !step.kisses.is_empty() {
        found.push(format!("refused by kiss-o'-death: {}", listed(&step.kisses)));
    }
    if !step.invalid.is_empty() {
        found.push(format!("wrong replies: {}", listed(&step.invalid)));
    }
    let unfinished =
        "replies with a UDP checksum that was left for hardware to finish (usual on veth): not verified";
    let counts = [
        (step.in_flight, "requests that were open when the step was ended, neither answered nor lost"),
        (step.duplicates, "duplicate replies"),
        (step.send_failures, "requests that were due but could not be sent, not counted as offered"),
        (step.unfinished_checksums, unfinished),
    ];
    found.extend(
        counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{} {what}", grouped(*count))),
    );
    found
}

/// What to look at when no request at all had its right reply.
pub(super) fn hint(run: &Run) -> Option<String> {
    let sum = |count: fn(&Step) -> u64| run.steps.iter().map(count).sum::<u64>();
    if sum(|step| step.answered) > 0 {
        return None;
    }
    let (target, sources) = (&run.target, &run.sources);
    Some(if sum(|step| step.offered) == 0 {
        "nothing was sent".to_owned()
    } else if sum(|step| step.offered) == sum(|step| step.in_flight) {
        "ended before any reply was due".to_owned()
    } else if sum(|step| step.late) > 0 {
        "every right reply was late: give a longer --timeout or a lower --rate".to_owned()
    } else if sum(|step| step.kisses.values().sum()) > 0 {
        format!("{target} refused every request by kiss-o'-death: see its rate limit and access list")
    } else if sum(|step| step.invalid.values().sum()) > 0 {
        format!("no reply was right: is {target} a synchronised server (or, with --echo, a bare reflector)?")
    } else {
        format!(
            "no reply came: does {target} serve NTP to {sources}, and has it a route (and neighbours) back to there?"
        )
    })
}

/// Bars by powers of two, each with the share of the replies in it and the share up to it.
fn histogram(latencies: &Latencies) -> String {
    let mut text = String::new();
    let Some(histogram) = latencies.histogram().filter(|histogram| !histogram.is_empty()) else {
        return text;
    };
    let floor = |value: u64| 63 - value.max(1).leading_zeros();
    let (first, last) = (floor(latencies.min), floor(latencies.max));
    let total = histogram.len() as f64;
    let counts: Vec<u64> =
        (first..=last).map(|power| histogram.count_between(1 << power, (2 << power) - 1)).collect();
    let largest = counts.iter().copied().max().unwrap_or(1).max(1) as f64;
    let mut rows = vec![["round trip up to", "replies", "so far", ""].map(str::to_owned).to_vec()];
    let mut sum = 0;
    for (power, count) in (first..=last).zip(counts) {
        sum += count;
        let bar = "#".repeat((count as f64 / largest * BAR).ceil() as usize);
        let share = |count: u64| format!("{:.3}", 100.0 * count as f64 / total);
        rows.push(vec![latency((2 << power) - 1), share(count), share(sum), bar]);
    }
    rows[0][1].push_str(" %");
    rows[0][2].push_str(" %");
    let _ = write!(text, "\n{}", columns(&rows));
    text
}

/// Three significant digits and a unit; `nanoseconds` up to minutes.
pub(super) fn latency(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    let (value, unit) = match value {
        ..999.5 => return format!("{nanoseconds} ns"),
        ..999.5e3 => (value / 1e3, "us"),
        ..999.5e6 => (value / 1e6, "ms"),
        _ => (value / 1e9, "s"),
    };
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {unit}")
}

/// Two digits behind the point, or as many as it takes to see that it is not nothing.
fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent == 0.0 || percent >= 0.01 { format!("{percent:.2}") } else { format!("{percent:.6}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::testing;

    #[test]
    fn latencies_have_three_digits() {
        let cases = [
            (0, "0 ns"),
            (999, "999 ns"),
            (1000, "1.00 us"),
            (9_994, "9.99 us"),
            (9_996, "10.0 us"),
            (99_960, "100 us"),
            (999_499, "999 us"),
            (999_500, "1.00 ms"),
            (12_345_678, "12.3 ms"),
            (60_000_000_000, "60.0 s"),
        ];
        for (nanoseconds, text) in cases {
            assert_eq!(latency(nanoseconds), text);
        }
        assert_eq!([percent(0.0), percent(1.0 / 3.0), percent(1e-6)], ["0.00", "33.33", "0.000100"]);
    }

    #[test]
    fn a_sweep_shows_every_step_and_what_was_odd() {
        let text = text(&testing::run());
        let expected = "\
10.99.1.1:123 over tb0, asked by 1 000 clients of 10.99.8.0/22, engine live-frames

round trip, from the time a request should have left
asked/s     offered/s  answered/s  lost %  late      p50      p90      p99    p99.9   p99.99      max
1 000           1 000         995    0.30     1  6.00 us  2.00 ms  2.00 ms  2.00 ms  2.00 ms  2.00 ms
all it can      1 000         995    0.30     1  6.00 us  2.00 ms  2.00 ms  2.00 ms  2.00 ms  2.00 ms

server's turnaround, T3 - T2
";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("\n1 000       800 ns  900 ns  900 ns  900 ns  900 ns  900 ns\n"), "{text}");
        let odd =
            "at 1 000/s: refused by kiss-o'-death: RATE 4; wrong replies: origin 2; 1 990 replies with a UDP";
        assert!(text.contains(odd), "{text}");
        assert!(!text.contains('#'), "{text}");
    }

    #[test]
    fn one_step_has_its_histogram() {
        let mut run = testing::run();
        run.steps.truncate(1);
        let text = text(&run);
        let bars: Vec<&str> = text.lines().filter(|line| line.contains('#')).collect();
        assert_eq!(bars.len(), 2, "{text}");
        assert_eq!(
            bars[0].split_whitespace().collect::<Vec<_>>(),
            ["8.19", "us", "80.000", "80.000", &"#".repeat(50)]
        );
        assert_eq!(
            bars[1].split_whitespace().collect::<Vec<_>>(),
            ["2.10", "ms", "20.000", "100.000", &"#".repeat(13)]
        );
    }

    #[test]
    fn rates_have_three_digits_or_all_of_them() {
        let cases = [
            (0.0, "0"),
            (0.5, "0.5"),
            (1.0, "1"),
            (1.25, "1.25"),
            (9.996, "10"),
            (33.33, "33.3"),
            (99.96, "100"),
            (1234.4, "1 234"),
        ];
        for (rate, text) in cases {
            assert_eq!(per_second(rate), text);
        }
    }

    #[test]
    fn an_early_end_is_said_with_its_reason() {
        let mut run = testing::run();
        assert!(!text(&run).contains("interrupted") && !text(&run).contains("ended early"));
        run.interrupted = true;
        run.failure = Some("tb0 is gone".into());
        run.steps[1].in_flight = 12;
        let text = text(&run);
        assert!(text.contains("\ninterrupted: the run was ended before its time"), "{text}");
        assert!(text.contains("\nended early: tb0 is gone\n"), "{text}");
        assert!(
            text.contains("at all it can: ") && text.contains("12 requests that were open when"),
            "{text}"
        );
    }

    #[test]
    fn silence_has_a_hint_for_each_of_its_causes() {
        let mut run = testing::run();
        run.steps.truncate(1);
        assert_eq!(hint(&run), None);
        run.steps[0].answered = 0;
        let mut says = |change: fn(&mut Step), text: &str| {
            let hint = hint(&run).expect(text);
            assert!(hint.contains(text), "{hint}");
            change(&mut run.steps[0]);
        };
        says(|step| step.late = 0, "--timeout");
        says(|step| step.kisses.clear(), "kiss-o'-death");
        says(|step| step.invalid.clear(), "--echo");
        says(|step| step.in_flight = step.offered, "a route (and neighbours) back");
        says(|step| step.offered = 0, "before any reply was due");
        says(|_| (), "nothing was sent");
    }
}
