//! The report page: one HTML file that shows one or more runs, side by side.
//!
//! Owns: what the page says, and its tables. Does not own: the curves (`curves`), the drawing (`chart`).
//!
//! The one idea a newcomer lacks: the page is a document, not a program. It has no script and asks nothing of the network,
//! so it can be mailed, archived and printed, and will show the same in ten years.

mod chart;
mod curves;
#[cfg(test)]
mod tests;
mod text;

use super::record::{Latencies, Machine, Run, Step};
use std::fmt::Write;
use text::{count, escape, latency, per_second, percent, rate};

/// Most runs on one page: more lines cannot be told apart.
pub const RUNS_MAX: usize = chart::LOOKS_COUNT;

/// Most steps shown of each run.
pub const STEPS_MAX: usize = 64;

/// Columns of the table of all steps.
const COLUMNS: usize = 18;

/// What latency means, for people who see such a page for the first time.
const MEANING: &str = "<h2>What is measured</h2>
<p>Requests leave by a timetable that no reply can change, as they do when many independent clients ask. \
<strong>Round trip</strong> counts from the moment a request was due, not from the moment it left, until its reply is back: \
if anything stalls, every request that was due meanwhile is charged for its wait. Requests without a right reply have no \
latency: they are in the column of losses, so read the two together.</p>
<p><strong>Turnaround</strong> is the time between receiving and sending as the server itself says in its reply. \
<strong>Send delay</strong> is how late the generator was: it is contained in the round trip. Where a step has a mark (⚠), the \
generator could not keep to the timetable, and the numbers say as much about it as about the server.</p>
<p>A percentile is the time within which that share of the replies came. Each further nine has the same width, so that the rare \
slow replies can be seen. Percentiles of different runs cannot be averaged.</p>
";

/// The page for `runs`: the first [`RUNS_MAX`] of them, and the first [`STEPS_MAX`] steps of each. The runs may come from
/// anywhere: whatever they hold, the page is well formed and says nothing but text.
#[must_use]
pub fn render(runs: &[Run]) -> String {
    let shown = &runs[..runs.len().min(RUNS_MAX)];
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>timeball load: {}</title>\n\
         <style>\n{}{}</style>\n</head>\n<body>\n<main>\n",
        shown.iter().map(|run| escape(&run.label)).collect::<Vec<_>>().join(", "),
        include_str!("page/page.css"),
        chart::style_sheet()
    );
    page += &heading(shown);
    if shown.is_empty() {
        return page + "<p>There is no run to show.</p>\n</main>\n</body>\n</html>\n";
    }
    page += &run_table(shown);
    page += &cut_note(runs);
    page += MEANING;
    page += &charts(shown);
    page += &step_table(shown);
    page + "</main>\n</body>\n</html>\n"
}

fn heading(runs: &[Run]) -> String {
    let mut heading = String::from("<header>\n<h1>NTP load test</h1>\n");
    for machine in machines(runs) {
        let _ = writeln!(heading, "<p class=\"soft\">Generator on {}</p>", machine_text(machine));
    }
    if let Some(first) = runs.first() {
        let (started, version) = (escape(&first.started), escape(&first.version));
        let _ = writeln!(heading, "<p class=\"soft\">{started}, timeball {version}</p>");
    }
    heading + "</header>\n"
}

/// The machines of all runs, each once.
fn machines(runs: &[Run]) -> Vec<&Machine> {
    let mut machines: Vec<&Machine> = Vec::new();
    for run in runs {
        if !machines.contains(&&run.machine) {
            machines.push(&run.machine);
        }
    }
    machines
}

fn machine_text(machine: &Machine) -> String {
    let Machine { processor, cpus, kernel } = machine;
    let plural = if *cpus == 1 { "" } else { "s" };
    format!("{}, {cpus} CPU{plural}, kernel {}", escape(processor), escape(kernel))
}

fn run_table(runs: &[Run]) -> String {
    let mut table = String::from(
        "<h2>Runs</h2>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Runs\">\n",
    );
    table += "<table class=\"runs\">\n<thead><tr>";
    for name in ["Run", "Target", "Engine", "Clients", "Mode", "Started"] {
        let _ = write!(table, "<th scope=\"col\">{name}</th>");
    }
    table += "</tr></thead>\n<tbody>\n";
    let several_machines = machines(runs).len() > 1;
    for (look, run) in runs.iter().enumerate() {
        let machine = if several_machines {
            format!("<small>{}</small>", machine_text(&run.machine))
        } else {
            String::new()
        };
        let _ = writeln!(
            table,
            "<tr><th scope=\"row\">{} {}{}</th><td>{}<small>by {}</small></td><td>{}<small>{}</small></td>\
             <td>{}<small>from {}</small></td><td>{}</td><td>{}{machine}</td></tr>",
            chart::key(look),
            escape(&run.label),
            early_end(run),
            escape(&run.target),
            escape(&run.interface),
            escape(&run.engine),
            escape(&run.engine_reason),
            count(run.clients as f64),
            escape(&run.sources),
            escape(&run.mode),
            escape(&run.started),
        );
    }
    table + "</tbody>\n</table>\n</div>\n"
}

/// Why a run was over before its time; nothing if it was not.
fn early_end(run: &Run) -> String {
    let mut notes = String::new();
    if run.interrupted {
        notes += "<small class=\"limit\">\u{26a0} interrupted: ended before its time</small>";
    }
    if let Some(failure) = &run.failure {
        let _ = write!(notes, "<small class=\"limit\">\u{26a0} ended early: {}</small>", escape(failure));
    }
    notes
}

/// Says what was left out.
fn cut_note(runs: &[Run]) -> String {
    let mut note = String::new();
    if runs.len() > RUNS_MAX {
        let _ = writeln!(note, "<p>The first {RUNS_MAX} of {} runs are shown.</p>", runs.len());
    }
    if runs.iter().any(|run| run.steps.len() > STEPS_MAX) {
        let _ = writeln!(note, "<p>The first {STEPS_MAX} steps of each run are shown.</p>");
    }
    note
}

fn charts(runs: &[Run]) -> String {
    let mut section = String::from("<h2>Latency</h2>\n");
    if runs.iter().any(|run| run.steps.len() > 1) {
        section += "<p class=\"soft\">Of a run with several steps: the highest rate that lost under 1\u{a0}%; \
                    where every rate lost more, the one that lost least.</p>\n";
    }
    match curves::round_trip(runs) {
        Some(chart) => section += &chart.figure(),
        None => section += "<p>No right reply came in time, so there is no latency to draw.</p>\n",
    }
    section += &curves::turnaround(runs).map_or_else(String::new, |chart| chart.figure());
    section +=
        &grid("Offered rate, and what came of it", "Dotted: every request answered.", &curves::by_rate(runs));
    section
        + &grid(
            "Round trip at each rate, by percentile",
            "Eight rates of each run at most.",
            &curves::by_step(runs),
        )
}

/// Small charts side by side under a heading; nothing without charts.
fn grid(title: &str, note: &str, charts: &[chart::Chart]) -> String {
    if charts.is_empty() {
        return String::new();
    }
    let figures: String = charts.iter().map(chart::Chart::figure).collect();
    format!("<h2>{title}</h2>\n<p class=\"soft\">{note}</p>\n<div class=\"grid\">\n{figures}</div>\n")
}

fn step_table(runs: &[Run]) -> String {
    let mut table = String::from(
        "<h2>All numbers</h2>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"All numbers\">\n\
         <table class=\"numbers\">\n<thead>\n<tr><td></td><th scope=\"colgroup\" colspan=\"2\">Per second</th>\
         <th scope=\"colgroup\" colspan=\"5\">Requests</th><th scope=\"colgroup\" colspan=\"6\">Round trip</th>\
         <th scope=\"colgroup\" colspan=\"3\">Turnaround</th><th scope=\"colgroup\">Generator</th></tr>\n<tr>",
    );
    let names = "Intended|offered|answered|lost|late|invalid|kisses|dupli&shy;cates|p50|p90|p99|p99.9|p99.99|max|p50|p99|max|\
                 send delay p99";
    for name in names.split('|') {
        let _ = write!(table, "<th scope=\"col\">{name}</th>");
    }
    table += "</tr>\n</thead>\n";
    for (look, run) in runs.iter().enumerate() {
        let (key, label) = (chart::key(look), escape(&run.label));
        let _ = writeln!(
            table,
            "<tbody>\n<tr><th scope=\"rowgroup\" colspan=\"{COLUMNS}\">{key}{label}</th></tr>"
        );
        for step in run.steps.iter().take(STEPS_MAX) {
            table += &step_row(step);
        }
        table += "</tbody>\n";
    }
    table
        + "</table>\n</div>\n<p class=\"soft\">Lost counts requests without a right reply in time, late ones among them, \
             as a share of those offered; a reply is late when it came after the timeout.</p>\n"
}

fn step_row(step: &Step) -> String {
    let (trip, turnaround, delay) = (&step.round_trip, &step.turnaround, &step.send_delay);
    let sum = |counts: &std::collections::BTreeMap<String, u64>| {
        count(counts.values().map(|count| *count as f64).sum())
    };
    let cells = [
        per_second(step.offered_per_second),
        per_second(step.answered_per_second),
        percent(step.loss()),
        count(step.late as f64),
        sum(&step.invalid),
        sum(&step.kisses),
        count(step.duplicates as f64),
        cell(trip, trip.p50),
        cell(trip, trip.p90),
        cell(trip, trip.p99),
        cell(trip, trip.p99_9),
        cell(trip, trip.p99_99),
        cell(trip, trip.max),
        cell(turnaround, turnaround.p50),
        cell(turnaround, turnaround.p99),
        cell(turnaround, turnaround.max),
        cell(delay, delay.p99),
    ];
    let intended = step.intended_per_second.map_or_else(|| "saturate".into(), rate);
    let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
    // In a row of its own, as a column more would not fit the page.
    let limit = generator_limit(step).map_or_else(String::new, |why| {
        format!("<tr><td class=\"limit\" colspan=\"{COLUMNS}\">{}</td></tr>\n", escape(&why))
    });
    format!("<tr><th scope=\"row\">{intended}</th>{cells}</tr>\n{limit}")
}

/// A value of `latencies`, or a dash if none was counted. A turnaround of 0 is one: clocks have a resolution.
fn cell(latencies: &Latencies, value: u64) -> String {
    if latencies.count > 0 && value == 0 { "0".into() } else { latency(value as f64) }
}

/// Why the generator, not the server, set the numbers of this step; `None` if it did not.
fn generator_limit(step: &Step) -> Option<String> {
    let offered =
        step.offered_too_little().map(|share| format!("offered {} of what was intended", percent(share)));
    let late = || {
        step.sent_too_late().map(|share| {
            // Round trips are those of replies in time.
            if share > 1.0 {
                "sent late, longer than the p99 round trip, so not all that left late had a reply in time"
                    .into()
            } else {
                format!("sent late, which is {} of the p99 round trip", percent(share))
            }
        })
    };
    offered.or_else(late).map(|why| format!("\u{26a0} the generator was the limit: {why}"))
}
