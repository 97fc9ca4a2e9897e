//! What the control socket is asked, and the answers.

use super::report::{ClientReport, ClientsReport, ClockReport, MemoryReport, QueueReport, StatusReport};
use super::server::Server;
use crate::clock::ReferenceKind;
use crate::serve::clients::{ClientStatistics, merge};
use crate::snapshot::SystemSnapshot;
use crate::sys::clock;
use crate::wire::Leap;
use serde::Serialize;
use std::collections::BTreeMap;

/// Clients listed unless the question names a number.
const TOP_DEFAULT: usize = 20;

/// The answer to one question, as JSON.
pub(super) fn answer(server: &mut Server, question: &str) -> Vec<u8> {
    let mut words = question.split_ascii_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("status"), None, None) => json(&status(server)),
        (Some("clients"), None, None) => json(&clients(server, TOP_DEFAULT)),
        (Some("clients"), Some(top), None) => match top.parse() {
            Ok(top) => json(&clients(server, top)),
            Err(_) => refusal("how many clients?"),
        },
        _ => refusal("unknown question; known are: status, clients [N]"),
    }
}

#[derive(Serialize)]
struct Refused<'a> {
    error: &'a str,
}

fn refusal(error: &str) -> Vec<u8> {
    json(&Refused { error })
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Strings and numbers under string keys: there is nothing in a report that JSON could not say.
    let mut bytes = serde_json::to_vec(value).unwrap_or_else(|error| error.to_string().into_bytes());
    bytes.push(b'\n');
    bytes
}

fn status(server: &mut Server) -> StatusReport {
    server.count_passed();
    let (workers, queues) = server.crew.report();
    let config = &server.config;
    StatusReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: server.started.elapsed().as_secs_f64(),
        port: config.port,
        clock: clock_report(server),
        interfaces: server.links.report(&queues),
        workers,
        socket_addresses: server.group.addresses().map(|local| local.address().to_string()).collect(),
        unsolicited: server.unsolicited,
        memory: memory(server, &queues),
    }
}

fn memory(server: &Server, queues: &[QueueReport]) -> MemoryReport {
    MemoryReport {
        rate_limit_bytes: server.limiters.iter().flatten().map(|limiter| limiter.memory_bytes()).sum(),
        client_statistics_bytes: server.statistics.iter().map(|own| own.memory_bytes()).sum(),
        queues_bytes: queues.iter().map(|queue| queue.memory_bytes).sum(),
    }
}

fn clock_report(server: &Server) -> ClockReport {
    let snapshot: SystemSnapshot = server.current_snapshot();
    let source = match server.reference_kind() {
        ReferenceKind::Local => "local",
        ReferenceKind::System => "system",
        ReferenceKind::None => "none",
    };
    let leap = match snapshot.leap {
        Leap::None => "none",
        Leap::Insert => "insert",
        Leap::Delete => "delete",
        Leap::Unsynchronised => "unsynchronised",
    };
    let dispersion = snapshot.root_dispersion_at(clock::realtime().to_ntp()).to_duration();
    ClockReport {
        source: source.to_owned(),
        synchronised: snapshot.is_synchronised(),
        leap: leap.to_owned(),
        stratum: if snapshot.stratum == 0 { 16 } else { snapshot.stratum },
        reference_id: snapshot.reference_id.to_string(),
        precision: snapshot.precision.0,
        root_delay_seconds: snapshot.root_delay.seconds(),
        root_dispersion_seconds: dispersion.seconds(),
        problem: server.trouble.as_ref().map(ToString::to_string),
    }
}

fn clients(server: &Server, top: usize) -> ClientsReport {
    let now = clock::monotonic();
    let merged = merge(server.statistics.iter().map(|own| own.snapshot_top(top)).collect());
    let heaviest = merged.into_iter().take(top).map(|record| ClientReport {
        client: record.client.to_string(),
        requests: record.requests,
        error: record.error,
        refused: record.refused,
        idle_seconds: (now.nanoseconds_since(record.last_seen).max(0) as f64) / 1e9,
    });
    ClientsReport {
        distinct_estimate: ClientStatistics::distinct_estimate(server.statistics.iter().map(AsRef::as_ref)),
        by_version: totals(server, ClientStatistics::by_version),
        by_length: totals(server, ClientStatistics::by_length),
        heaviest: heaviest.collect(),
    }
}

/// Sums one kind of totals over all workers.
fn totals<I>(server: &Server, of: impl Fn(&ClientStatistics) -> I) -> BTreeMap<String, u64>
where
    I: IntoIterator<Item = (&'static str, u64)>,
{
    let mut sums = BTreeMap::new();
    for own in &server.statistics {
        for (name, count) in of(own) {
            *sums.entry(name.to_owned()).or_default() += count;
        }
    }
    sums
}
