//! The metrics of the sources: how the clock is kept, by whom, and how the core that keeps it fares.
//!
//! The one idea a newcomer lacks: a database keeps every series that it has ever seen, so labels must not take values
//! without end. Here they are what the configuration names and the addresses that come of it; who comes unasked is counted
//! and has no series of his own.

use super::exposition::{Exposition, Kind};
use super::page::{histogram, instance};
use crate::daemon::associations::{ControlReport, SourceReport, SourcesReport, SynchronisationReport};
use std::collections::{BTreeMap, BTreeSet};

/// The most associations that have series of their own, in the order of the configuration. Beyond, they are only counted:
/// a site with more looks at them by `timeball sources`.
const SHOWN_MAX: usize = 256;

/// One metric of a source.
type Metric = (&'static str, &'static str, fn(&SourceReport) -> Option<f64>);

/// Those that are a number of the report as it stands, or nearly.
const METRICS: [Metric; 10] = [
    (
        "timeball_source_used",
        "Whether the clock is set by the source, the system peer or combined with it: 1 or 0.",
        |row| Some(f64::from(u8::from(is_used(row)))),
    ),
    ("timeball_source_stratum", "The source's stratum; 16 means unsynchronised.", |row| {
        row.stratum.map(f64::from)
    }),
    (
        "timeball_source_reach_ratio",
        "Which share of the last eight polls brought a valid answer (or of the broadcasts that were due, came).",
        |row| row.reach.map(|reach| f64::from(reach.count_ones()) / 8.0),
    ),
    ("timeball_source_poll_interval_seconds", "How often the source is asked or heard.", |row| {
        row.poll.map(|poll| f64::from(poll).exp2())
    }),
    (
        "timeball_source_offset_seconds",
        "The source's clock minus ours as of now; positive: ours is behind.",
        |row| row.offset_seconds,
    ),
    ("timeball_source_delay_seconds", "Round trip to the source, of the chosen sample.", |row| {
        row.delay_seconds
    }),
    (
        "timeball_source_dispersion_seconds",
        "The error that reading the clocks, and their drift since, may have brought into the chosen sample.",
        |row| row.dispersion_seconds,
    ),
    ("timeball_source_jitter_seconds", "How far the source's samples differ.", |row| row.jitter_seconds),
    (
        "timeball_source_error_bound_seconds",
        "The error that the offset may have at most: the root distance.",
        |row| row.error_bound_seconds,
    ),
    ("timeball_source_last_sample_age_seconds", "Since the last measurement.", |row| row.last_sample_seconds),
];

fn is_used(row: &SourceReport) -> bool {
    matches!(row.sign.as_str(), "*" | "+")
}

/// How the clock is kept.
pub(super) fn synchronisation(out: &mut Exposition, report: &SynchronisationReport) {
    let mut gauge = |name, help, value: Option<f64>| {
        if let Some(value) = value {
            out.gauge(name, help).sample(&[], value);
        }
    };
    gauge(
        "timeball_clock_offset_seconds",
        "The last offset that the sources agreed on; positive: our clock was behind.",
        report.offset_seconds,
    );
    gauge(
        "timeball_clock_jitter_seconds",
        "How far the offsets of the sources differ.",
        report.jitter_seconds,
    );
    gauge(
        "timeball_clock_frequency_ppm",
        "How much faster than by itself the clock is made to run, in parts per million, without what works off an offset.",
        report.frequency_ppm,
    );
    gauge("timeball_clock_slew_ppm", "What works off an offset, on top.", report.slew_ppm);
    gauge(
        "timeball_clock_steered",
        "Whether the clock is steered (1) or only measured (0).",
        Some(f64::from(u8::from(report.steering))),
    );
    let mut steps = out.counter("timeball_clock_steps_total", "Steps of the clock, by whom: us or others.");
    steps.sample(&[("by", "us")], report.steps);
    steps.sample(&[("by", "others")], report.foreign_steps);
}

/// By whom.
pub(super) fn sources(out: &mut Exposition, report: &SourcesReport) {
    let synchronisation = &report.synchronisation;
    let mut counts = out.gauge("timeball_sources", "Associations that could give time, and those that do.");
    counts.sample(&[("state", "configured")], synchronisation.sources);
    counts.sample(&[("state", "used")], synchronisation.used);
    let several = report.instances.len() > 1;
    let shown: Vec<&SourceReport> =
        report.sources.iter().filter(|row| !row.name.is_empty()).take(SHOWN_MAX).collect();
    let mut info = out.gauge(
        "timeball_source_info",
        "A source, and how far it got in the selection (`timeball sources` says why); always 1.",
    );
    let states: BTreeSet<_> = shown
        .iter()
        .map(|row| {
            [&labels(row, several)[..], &[("mode", row.mode.as_str()), ("state", row.state.as_str())]]
                .concat()
        })
        .collect();
    states.iter().for_each(|labels| info.sample(labels, 1));
    let mut told = BTreeSet::new();
    let givers: Vec<_> =
        shown.iter().filter(|row| row.sign != " ").filter(|row| told.insert(labels(row, several))).collect();
    for (name, help, value) in METRICS {
        let mut family = out.gauge(name, help);
        for row in &givers {
            if let Some(value) = value(row) {
                family.sample(&labels(row, several), value);
            }
        }
    }
    let mut packets =
        out.counter("timeball_source_packets_total", "Packets exchanged with a source, by direction.");
    let mut sums = BTreeMap::<_, [u64; 2]>::new();
    for row in shown.iter().filter(|row| row.address.is_some()) {
        let [sent, received] = sums.entry(labels(row, several)).or_default();
        *sent += row.sent;
        *received += row.received;
    }
    for (labels, [sent, received]) in sums {
        packets.sample(&[&labels[..], &[("direction", "sent")]].concat(), sent);
        packets.sample(&[&labels[..], &[("direction", "received")]].concat(), received);
    }
}

/// What tells one source that gives time from another. (One group may be spoken to on two networks: that is one series.)
fn labels(row: &SourceReport, several: bool) -> [(&'static str, &str); 3] {
    [
        instance(&row.instance, several),
        ("source", &row.name),
        ("address", row.address.as_deref().unwrap_or_default()),
    ]
}

/// The core itself.
pub(super) fn control(out: &mut Exposition, report: &ControlReport) {
    let mut family = out.family(
        Kind::Histogram,
        "timeball_control_lateness_seconds",
        "How late polls and other packets of ours leave: from when each was due until the kernel had it.",
    );
    histogram(&mut family, &[], &report.lateness);
    let mut packets = out.counter(
        "timeball_control_packets_total",
        "Packets that came to the control core, requests not included: received is all of them, the others are those that were \
         of no use, by reason (strays: to a socket that was not theirs; duplicate, bogus and so on: tests 1 to 7 of RFC \
         5905).",
    );
    report.packets.iter().for_each(|(outcome, count)| packets.sample(&[("outcome", outcome)], count));
}
