//! From runs to charts: percentile curves, and offered rate against what came of it.
//!
//! Owns: which steps are drawn, and their points. Does not own: the drawing (`chart`).
//!
//! The one idea a newcomer lacks: on a linear scale of percentiles the tail, which is what hurts, is a sliver at the edge.
//! HdrHistogram's scale gives every further nine the same width: a quantile q is drawn at -log10(1 - q).

use super::chart::{Axis, Chart, LOOKS_COUNT, Point, Series, Size};
use super::{STEPS_MAX, text};
use crate::load::record::{Latencies, Run, Step};

/// A step that loses more than this share is not the one a run is judged by.
const LOSS_MAX: f64 = 0.01;

/// Most lines in the chart of one run's steps: more cannot be read.
const STEPS_DRAWN_MAX: usize = 8;

/// Points of a curve are at least so far apart, in decades: about two drawing units.
const SPACING: f64 = 0.006;

/// The step a run is shown by: the highest rate that lost less than [`LOSS_MAX`], or else the one that lost least.
pub fn shown(run: &Run) -> Option<&Step> {
    let measured = || run.steps.iter().take(STEPS_MAX).filter(|step| step.round_trip.count > 0);
    let kept = measured().filter(|step| step.loss() < LOSS_MAX && step.offered_per_second.is_finite());
    kept.max_by(|a, b| a.offered_per_second.total_cmp(&b.offered_per_second))
        .or_else(|| measured().min_by(|a, b| a.loss().total_cmp(&b.loss())))
}

/// The line through all of a histogram, and its marks at 50, 90, 99 ... per cent. Nothing where nothing was counted.
fn curve(latencies: &Latencies) -> Option<(Vec<Point>, Vec<Point>)> {
    let histogram = latencies.histogram().filter(|histogram| !histogram.is_empty())?;
    let total = histogram.len();
    // The largest value is that of the quantile 1, which is infinitely far to the right; it is drawn where it begins
    // when one request alone had it.
    let end = (total as f64).log10().max(0.5_f64.log10().abs());
    let height = |value: u64| (value.max(1) as f64).log10();
    let mut line: Vec<Point> = Vec::new();
    let (mut passed, mut at) = (0_u64, 0.0);
    for step in histogram.iter_recorded() {
        passed = passed.saturating_add(step.count_since_last_iteration());
        let left = total.saturating_sub(passed);
        let reaches = if left == 0 { end } else { (total as f64 / left as f64).log10() };
        if reaches - line.last().map_or(f64::MIN, |point| point.0) >= SPACING || left == 0 {
            line.push((at, height(step.value_iterated_to())));
            line.push((reaches, height(step.value_iterated_to())));
        }
        at = reaches;
    }
    let nines = (1..=9).map(f64::from).take_while(|nines| *nines <= end);
    let marks = std::iter::once(0.5_f64.log10().abs()).chain(nines);
    let marks = marks.map(|x| (x, height(histogram.value_at_quantile(1.0 - 10_f64.powf(-x))))).collect();
    Some((line, marks))
}

/// A chart of percentile curves; `None` without a curve. `lines` are look, name and latencies.
fn percentile_chart<'a>(
    id: String,
    title: String,
    size: Size,
    caption: &'static str,
    lines: impl Iterator<Item = (usize, String, &'a Latencies)>,
) -> Option<Chart> {
    let mut description = String::from("Percentile curves, latency on a logarithmic scale.");
    let mut series = Vec::new();
    for (look, name, latencies) in lines {
        let Some((line, marks)) = curve(latencies) else { continue };
        let [p50, p99, max] =
            [latencies.p50, latencies.p99, latencies.max].map(|value| text::latency(value as f64));
        description += &format!("\n{name}: half within {p50}, 99 % within {p99}, all within {max}.");
        series.push(Series { look, name, line, marks });
    }
    let points = || series.iter().flat_map(|series| series.line.iter().chain(&series.marks));
    let x = Axis::percentiles(points().map(|point| point.0).fold(0.0, f64::max));
    let y = Axis::latencies(caption, points().map(|point| point.1));
    (!series.is_empty()).then_some(Chart {
        id,
        title,
        description,
        size,
        x,
        y,
        reference: Vec::new(),
        series,
    })
}

/// What a step is called: its rate, and what it lost.
fn step_name(step: &Step) -> String {
    let rate = text::rate(step.offered_per_second);
    let saturating = if step.intended_per_second.is_none() { " (saturating)" } else { "" };
    format!("{rate}{saturating}, {} lost", text::percent(step.loss()))
}

/// The round-trip curves of all runs in one chart.
pub fn round_trip(runs: &[Run]) -> Option<Chart> {
    let lines = runs.iter().enumerate().filter_map(|(look, run)| {
        shown(run)
            .map(|step| (look, format!("{}: {}", text::short(&run.label), step_name(step)), &step.round_trip))
    });
    percentile_chart("round-trip".into(), "Round trip, by percentile".into(), Size::Wide, "round trip", lines)
}

/// The turnaround curves of all runs whose replies tell it.
pub fn turnaround(runs: &[Run]) -> Option<Chart> {
    let lines = runs.iter().enumerate().filter_map(|(look, run)| {
        shown(run)
            .map(|step| (look, format!("{}: {}", text::short(&run.label), step_name(step)), &step.turnaround))
    });
    let title = "Turnaround in the server, by percentile";
    percentile_chart("turnaround".into(), title.into(), Size::Wide, "turnaround", lines)
}

/// One chart for each run of several steps: the round-trip curve of each step, eight of them at most.
pub fn by_step(runs: &[Run]) -> Vec<Chart> {
    let several = || runs.iter().enumerate().filter(|(_, run)| run.steps.len() > 1);
    // A small drawing on all of the page's width would have huge letters.
    let size = if several().nth(1).is_none() { Size::Wide } else { Size::Small };
    let charts = several().filter_map(|(index, run)| {
        let steps = &run.steps[..run.steps.len().min(STEPS_MAX)];
        let drawn = steps.len().min(STEPS_DRAWN_MAX);
        // Evenly spread, the first and the last among them.
        let lines = (0..drawn).map(|look| {
            let step = &steps[look * (steps.len() - 1) / (drawn - 1)];
            (look, step_name(step), &step.round_trip)
        });
        percentile_chart(format!("steps-{index}"), text::short(&run.label), size, "round trip", lines)
    });
    charts.collect()
}

/// Offered rate against answered rate, loss and p99; nothing when no run has several steps.
pub fn by_rate(runs: &[Run]) -> Vec<Chart> {
    if runs.iter().all(|run| run.steps.len() < 2) {
        return Vec::new();
    }
    let answered = rate_series(runs, |step| Some(step.answered_per_second));
    let lost = rate_series(runs, |step| Some(step.loss()));
    let p99 =
        rate_series(runs, |step| (step.round_trip.p99 > 0).then(|| (step.round_trip.p99 as f64).log10()));
    let most = |series: &[Series], of: fn(&Point) -> f64| {
        series.iter().flat_map(|series| &series.marks).map(of).fold(0.0, f64::max)
    };
    let offered_most = most(&answered, |point| point.0);
    let answered_most = most(&answered, |point| point.1);
    let diagonal = offered_most.min(answered_most);
    let axis_answered = Axis::linear("answered", answered_most, text::rate);
    let axis_lost = Axis::linear("lost or late", most(&lost, |point| point.1).max(0.01), text::percent);
    let axis_p99 =
        Axis::latencies("round trip p99", p99.iter().flat_map(|series| &series.marks).map(|point| point.1));
    let chart = |id: &str, title: &str, y, reference, series| Chart {
        id: id.into(),
        title: title.into(),
        description: format!(
            "{title}, a line for each run with a mark for each step. The table has the numbers."
        ),
        size: Size::Small,
        x: Axis::linear("offered", offered_most, text::rate),
        y,
        reference,
        series,
    };
    vec![
        chart(
            "answered",
            "Answered, by offered rate",
            axis_answered,
            vec![(0.0, 0.0), (diagonal, diagonal)],
            answered,
        ),
        chart("lost", "Lost, by offered rate", axis_lost, Vec::new(), lost),
        chart("p99", "Round trip p99, by offered rate", axis_p99, Vec::new(), p99),
    ]
}

/// For each run its steps in the order of their offered rate, against what `of` says of them.
fn rate_series(runs: &[Run], of: fn(&Step) -> Option<f64>) -> Vec<Series> {
    let points = |run: &Run| {
        let steps = run.steps.iter().take(STEPS_MAX);
        let points = steps.filter_map(|step| of(step).map(|value| (step.offered_per_second, value)));
        let mut points: Vec<Point> =
            points.filter(|(x, y)| [x, y].iter().all(|v| (0.0..RATE_MAX).contains(*v))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    let series = runs.iter().enumerate().map(|(look, run)| {
        let line = points(run);
        Series { look: look % LOOKS_COUNT, name: text::short(&run.label), marks: line.clone(), line }
    });
    series.filter(|series| !series.marks.is_empty()).collect()
}

/// No interface carries more a second; a record that says so is not drawn.
const RATE_MAX: f64 = 1e12;
