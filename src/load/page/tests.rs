//! The page as a whole, on runs made up here: nothing in it was measured.

use super::*;
use crate::load::record::{FORMAT, empty_histogram};
use std::collections::BTreeMap;

/// A generator of numbers (splitmix64), so that the same seed draws the same page.
struct Random(u64);

impl Random {
    /// Uniform in 0 to 1, without the ends.
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64 + f64::EPSILON
    }

    /// `count` latencies: log-normal about `median` nanoseconds, one in a thousand stalled.
    fn latencies(&mut self, count: usize, median: f64, spread: f64) -> Latencies {
        let mut histogram = empty_histogram();
        for _ in 0..count {
            let normal = (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos();
            let stall = if self.uniform() < 0.001 { 20.0 * self.uniform() } else { 1.0 };
            histogram.saturating_record((median * (spread * normal).exp() * stall.max(1.0)) as u64);
        }
        Latencies::of(&histogram)
    }
}

/// A run of one step for each of `rates`, against a server that can answer `capacity` a second.
fn sample(label: &str, capacity: f64, rates: &[f64]) -> Run {
    let mut random = Random(label.len() as u64 ^ capacity.to_bits());
    let steps = rates.iter().map(|rate| {
        let load = (rate / capacity).min(0.98);
        let answered = rate.min(capacity);
        let median = 1.5e10 / capacity / (1.0 - load);
        Step {
            intended_per_second: Some(*rate),
            duration_seconds: 10.0,
            offered: (rate * 10.0) as u64,
            offered_per_second: *rate,
            send_failures: 0,
            answered: (answered * 10.0) as u64,
            answered_per_second: answered,
            kisses: BTreeMap::new(),
            late: 3,
            in_flight: 0,
            lost: ((rate - answered) * 10.0) as u64,
            duplicates: 0,
            invalid: BTreeMap::new(),
            unfinished_checksums: 0,
            round_trip: random.latencies(20_000, median, 0.25 + load / 3.0),
            turnaround: random.latencies(20_000, median / 9.0, 0.2),
            send_delay: random.latencies(2_000, 300.0, 0.4),
        }
    });
    Run {
        format: FORMAT,
        label: label.into(),
        version: "0.1.0".into(),
        started: "2026-11-22T21:12:02Z".into(),
        target: "10.99.0.2:123".into(),
        interface: "tb0".into(),
        mode: "basic".into(),
        clients: 65_536,
        sources: "10.99.4.0/22".into(),
        engine: "live-frames".into(),
        engine_reason: "the interface is a veth, where AF_XDP can only copy".into(),
        machine: Machine { processor: "A Processor @ 2.10GHz".into(), cpus: 2, kernel: "6.1.0".into() },
        interrupted: false,
        failure: None,
        steps: steps.collect(),
    }
}

const SWEEP: [f64; 8] = [5e4, 1e5, 2e5, 3e5, 4e5, 6e5, 8e5, 1e6];

/// Nothing in the page asks for anything outside it, runs anything, or is a number that is none.
fn assert_sound(page: &str) {
    let lower = page.to_lowercase();
    for forbidden in
        ["<script", "://", "src=", "href=", "@import", "url(", "nan", "infinity", ">inf", "onerror="]
    {
        assert!(!lower.contains(forbidden), "{forbidden} in {page}");
    }
    for element in ["svg", "figure", "table", "tbody", "ul", "div", "tr", "text", "th"] {
        let opened =
            page.matches(&format!("<{element} ")).count() + page.matches(&format!("<{element}>")).count();
        assert_eq!(opened, page.matches(&format!("</{element}>")).count(), "{element}");
    }
    assert!(page.ends_with("</html>\n"));
}

/// How many charts (not keys) have this prefix of their id.
fn charts_named(page: &str, prefix: &str) -> usize {
    page.matches(&format!("<title id=\"{prefix}")).count()
}

#[test]
fn shows_a_single_step_without_rate_charts() {
    let page = render(&[sample("timeball", 8e5, &[2e5])]);
    assert_sound(&page);
    assert_eq!(
        ["round-trip", "turnaround", "answered", "steps"].map(|id| charts_named(&page, id)),
        [1, 1, 0, 0]
    );
    assert!(page.contains("<th scope=\"row\">200\u{a0}k/s</th><td>200,000</td><td>200,000</td>"));
}

#[test]
fn shows_sweeps_side_by_side() {
    let runs =
        [sample("timeball", 8e5, &SWEEP), sample("chronyd", 1.2e5, &SWEEP), sample("sockets", 3e5, &SWEEP)];
    let page = render(&runs);
    assert_sound(&page);
    let ids = ["round-trip", "turnaround", "answered", "lost", "p99", "steps"];
    assert_eq!(ids.map(|id| charts_named(&page, id)), [1, 1, 1, 1, 1, 3]);
    // The step each run is shown by is the last one its capacity covers.
    // A third of the page each; a single sweep has all of it, at the same size of letters.
    assert_eq!(page.matches("<figure class=\"small\">").count(), 6);
    let one = render(&runs[..1]);
    assert_eq!(
        ["small", "wide"].map(|class| one.matches(&format!("<figure class=\"{class}\">")).count()),
        [3, 3]
    );
    for legend in ["timeball: 800\u{a0}k/s", "chronyd: 100\u{a0}k/s", "sockets: 300\u{a0}k/s"] {
        assert!(page.contains(&format!("<span>{legend}, &lt;")), "{legend}");
    }
}

#[test]
fn a_run_that_always_loses_is_shown_by_its_least_loss() {
    let run = sample("slow", 1e4, &SWEEP);
    assert_eq!(curves::shown(&run).unwrap().offered_per_second, 5e4);
}

#[test]
fn leaves_out_turnaround_where_nobody_tells_it() {
    let mut run = sample("echo", 8e5, &[2e5]);
    run.steps[0].turnaround = Latencies::of(&empty_histogram());
    let page = render(&[run]);
    assert_sound(&page);
    assert_eq!(["round-trip", "turnaround"].map(|id| charts_named(&page, id)), [1, 0]);
}

#[test]
fn draws_the_values_of_the_histogram() {
    let mut histogram = empty_histogram();
    histogram.record_n(1_000, 9_000).unwrap();
    histogram.record_n(100_000, 1_000).unwrap();
    let mut run = sample("two values", 8e5, &[2e5]);
    run.steps[0].round_trip = Latencies::of(&histogram);
    let chart = curves::round_trip(&[run]).unwrap();
    let close = |point: (f64, f64), x: f64, y: f64| (point.0 - x).abs() < 0.01 && (point.1 - y).abs() < 0.01;
    let line = &chart.series[0].line;
    assert_eq!(line.len(), 4);
    for (point, (x, y)) in line.iter().zip([(0.0, 3.0), (1.0, 3.0), (1.0, 5.0), (4.0, 5.0)]) {
        assert!(close(*point, x, y), "{line:?}");
    }
    let marks = &chart.series[0].marks;
    assert!(close(marks[0], 0.301, 3.0) && close(marks[2], 2.0, 5.0), "{marks:?}");
}

#[test]
fn marks_steps_that_the_generator_limited() {
    let mut run = sample("timeball", 8e5, &[1e5, 1e5, 1e5]);
    run.steps[1].offered_per_second = 9.8e4;
    run.steps[2].send_delay.p99 = run.steps[2].round_trip.p99 / 5;
    let limits: Vec<_> = run.steps.iter().map(generator_limit).collect();
    assert_eq!(limits[0], None);
    assert_eq!(
        limits[1].as_deref(),
        Some("\u{26a0} the generator was the limit: offered 98\u{a0}% of what was intended")
    );
    assert!(limits[2].as_deref().unwrap().contains(": sent late, which is "));
    run.steps[2].send_delay.p99 = run.steps[2].round_trip.p99 * 2;
    let longer = generator_limit(&run.steps[2]).unwrap();
    assert!(longer.contains(": sent late, longer than the p99 round trip, so not all"), "{longer}");
    assert_eq!(render(&[run]).matches("class=\"limit\"").count(), 2);
}

#[test]
fn says_which_runs_ended_early_and_why() {
    let mut runs = [sample("whole", 8e5, &[1e5]), sample("cut", 8e5, &[1e5]), sample("broken", 8e5, &[1e5])];
    runs[1].interrupted = true;
    runs[2].failure = Some("<tb0> has no link".into());
    let page = render(&runs);
    assert_sound(&page);
    assert_eq!(page.matches("interrupted: ended before its time").count(), 1);
    assert_eq!(page.matches("ended early: &lt;tb0&gt; has no link").count(), 1);
}

#[test]
fn low_rates_keep_their_digits() {
    let page = render(&[sample("slow", 8e5, &[1.25])]);
    assert!(page.contains("<th scope=\"row\">1.25\u{a0}/s</th><td>1.25</td><td>1.25</td>"), "{page}");
}

#[test]
fn foreign_text_stays_text() {
    let hostile = "</title></svg><script>alert(1)</script>\"' onerror=x & <img src=x>";
    let mut run = sample(hostile, 8e5, &SWEEP[..2]);
    for field in [&mut run.version, &mut run.started, &mut run.target, &mut run.interface, &mut run.mode] {
        *field = hostile.into();
    }
    for field in [&mut run.sources, &mut run.engine, &mut run.engine_reason] {
        *field = hostile.into();
    }
    run.failure = Some(hostile.into());
    run.machine.processor = hostile.into();
    run.machine.kernel = hostile.into();
    run.steps[0].invalid.insert(hostile.into(), 1);
    let page = render(&[run]);
    assert!(!page.contains("<script") && !page.contains("<img") && !page.contains("\"' onerror"));
    assert!(page.contains("&lt;script&gt;alert(1)"));
    assert_eq!(page.matches("</title>").count(), page.matches("<title").count());
}

#[test]
fn hostile_numbers_neither_panic_nor_show() {
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 0.0, f64::MAX, f64::MIN_POSITIVE] {
        let mut run = sample("hostile", 8e5, &[1e5, 2e5, 3e5]);
        for step in &mut run.steps[..2] {
            step.intended_per_second = Some(number);
            step.offered_per_second = number;
            step.answered_per_second = number;
            step.round_trip.mean = number;
            (step.lost, step.late) = (u64::MAX, u64::MAX);
            step.kisses = BTreeMap::from([("RATE".into(), u64::MAX), ("DENY".into(), u64::MAX)]);
        }
        run.steps[0].offered = 0;
        run.steps[1].round_trip.p99 = u64::MAX;
        assert_sound(&render(&[run.clone()]));
        run.steps.truncate(2);
        assert_sound(&render(&[run]));
    }
}

#[test]
fn records_without_histograms_are_still_tabled() {
    let mut run = sample("no histograms", 8e5, &[1e5, 2e5]);
    for step in &mut run.steps {
        step.round_trip.histogram = "no histogram".into();
        step.turnaround = Latencies::default();
    }
    let page = render(&[run]);
    assert_sound(&page);
    assert_eq!(["round-trip", "turnaround", "answered"].map(|id| charts_named(&page, id)), [0, 0, 1]);
    assert!(page.contains("100,000"));
}

#[test]
fn few_values_are_drawn() {
    for count in [1, 2, 9] {
        let mut run = sample("few", 8e5, &[1e5]);
        run.steps[0].round_trip = Random(count as u64).latencies(count, 2e4, 0.3);
        let page = render(&[run]);
        assert_sound(&page);
        assert_eq!(charts_named(&page, "round-trip"), 1);
    }
}

#[test]
fn runs_and_steps_are_bounded() {
    assert_sound(&render(&[]));
    let empty = sample("no steps", 8e5, &[]);
    assert_sound(&render(std::slice::from_ref(&empty)));
    let page = render(&vec![empty; 40]);
    assert_sound(&page);
    assert!(page.contains("The first 10 of 40 runs are shown."));
    let mut run = sample("many", 8e5, &[1e5]);
    run.steps = vec![run.steps[0].clone(); 100];
    let page = render(&[run]);
    assert_sound(&page);
    assert_eq!(page.matches("<th scope=\"row\">100\u{a0}k/s</th>").count(), STEPS_MAX);
}

#[test]
#[ignore = "writes pages to look at in a browser, into the folder for temporary files"]
fn writes_samples_to_look_at() {
    let several = |count: usize, rates: &[f64]| -> Vec<Run> {
        (0..count)
            .map(|index| sample(&format!("run {index}"), 8e5 / (1.0 + index as f64 / 2.0), rates))
            .collect()
    };
    let sweeps =
        [sample("timeball", 8e5, &SWEEP), sample("chronyd", 1.2e5, &SWEEP), sample("sockets", 3e5, &SWEEP)];
    let mut long = sweeps.clone();
    long[0].label = "a label of many words that somebody thought would help, and then some more ".repeat(3);
    long[1].label = "one_word_without_a_place_to_break".repeat(6);
    let mut limited = sweeps.to_vec();
    limited[2].steps[7].offered_per_second = 7e5;
    limited[1].steps[6].intended_per_second = None;
    limited[1].steps[5].send_delay = limited[1].steps[5].round_trip.clone();
    let pages = [
        ("one", several(1, &[2e5])),
        ("three", limited),
        ("ten", several(10, &[5e4])),
        ("long", long.to_vec()),
        ("sweep", several(1, &SWEEP)),
        ("cut", {
            let mut cut = several(2, &SWEEP);
            cut[0].interrupted = true;
            cut[1].failure = Some(
                "step 8 of 9: tb0 has no link: it or its other end is down, 1.3 s after the step began"
                    .into(),
            );
            cut
        }),
    ];
    for (name, runs) in pages {
        std::fs::write(std::env::temp_dir().join(format!("timeball-page-{name}.html")), render(&runs))
            .unwrap();
    }
}
