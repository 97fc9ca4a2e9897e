//! What the control socket is asked, and the answers.

use super::instance::Instance;
use super::report::{
    ClientReport, ClientsReport, ClockReport, MemoryReport, QueueReport, StatusReport, TablesReport,
};
use super::server::Server;
use crate::clock::ReferenceKind;
use crate::serve::clients::{DistinctSketch, LengthClass, merge};
use crate::snapshot::SystemSnapshot;
use crate::sys::clock;
use crate::wire::{Leap, Version};
use ipnet::IpNet;
use serde::Serialize;

/// Clients listed unless the question names a number.
const TOP_DEFAULT: usize = 20;

/// The answer to one question, as JSON.
pub(super) fn answer(server: &mut Server, question: &str) -> Vec<u8> {
    let mut words = question.split_ascii_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("status"), None, None) => json(&status(server)),
        (Some("sources"), None, None) => json(&server.associations.report()),
        (Some("clients"), None, None) => json(&clients(server, TOP_DEFAULT)),
        (Some("clients"), Some(top), None) => match top.parse() {
            Ok(top) => json(&clients(server, top)),
            Err(_) => refusal("how many clients?"),
        },
        _ => refusal("unknown question; known are: status, sources, clients [N]"),
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
    server.take_notices();
    let dropped: Vec<_> = server.instances.iter().map(Instance::receive_dropped).collect();
    let (workers, queues) = server.crew.report();
    let links = server.instances.iter_mut().zip(&dropped);
    let interfaces = links.flat_map(|(one, dropped)| one.links.report(dropped, &queues)).collect();
    let instances: Vec<_> = server.instances.iter().map(Instance::report).collect();
    let config = &server.config;
    StatusReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        start_time_seconds: server.start_time.nanoseconds() as f64 / 1e9,
        uptime_seconds: server.started.elapsed().as_secs_f64(),
        port: config.port,
        clock: clock_report(server),
        synchronisation: server.associations.synchronisation(),
        control: server.associations.control(),
        interfaces,
        workers,
        socket_addresses: instances.iter().flat_map(|one| one.socket_addresses.clone()).collect(),
        instances,
        unsolicited: server
            .unsolicited
            .iter()
            .map(|(mode, count)| ((*mode as u8).to_string(), *count))
            .collect(),
        memory: memory(server, &queues),
        tables: TablesReport {
            distinct_clients_estimate: distinct_clients(server),
            client_entries_max: server.statistics.len() as u64 * u64::from(config.clients.entries),
            rate_limit_entries_max: match config.rate_limit.enabled {
                true => config.rate_limit.slots().into(),
                false => 0,
            },
            rate_limit_huge_page_bytes: server.limiters_huge_bytes,
        },
    }
}

fn distinct_clients(server: &Server) -> u64 {
    let mut distinct = DistinctSketch::empty();
    for own in &server.statistics {
        distinct.merge(&own.distinct());
    }
    distinct.estimate()
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
    let is_by_sources = server.associations.is_synchronised();
    let source = match server.reference_kind() {
        _ if is_by_sources => "sources",
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
        problem: match &server.trouble {
            _ if is_by_sources => None,
            None if !snapshot.is_synchronised() => Some(match server.associations.is_following() {
                false => {
                    "no source is selected, so stratum 16 is served; `timeball sources` says why".to_owned()
                }
                true => "by the selected source this clock is too far off to be served, so stratum 16 is; \
                         `timeball sources` says how far"
                    .to_owned(),
            }),
            trouble => trouble.as_ref().map(ToString::to_string),
        },
    }
}

fn clients(server: &Server, top: usize) -> ClientsReport {
    let now = clock::monotonic();
    // Whole tables: a client of little weight with one worker may be the heaviest of all.
    let merged = merge(server.statistics.iter().map(|own| own.snapshot_top(usize::MAX)).collect());
    let instances = server.instances.iter().map(|one| one.place().name.to_string());
    let instances: Vec<String> = instances.collect();
    let heaviest = merged.into_iter().take(top).map(|record| ClientReport {
        client: host_or_prefix(record.prefix),
        instance: instances.get(usize::from(record.instance.0)).cloned().unwrap_or_default(),
        requests: record.requests,
        error: record.overcount,
        refused: record.refused,
        idle_seconds: now.nanoseconds_since(record.last_seen).max(0) as f64 / 1e9,
    });
    let mut report = ClientsReport {
        distinct_estimate: distinct_clients(server),
        heaviest: heaviest.collect(),
        instances: instances.clone(),
        ..ClientsReport::default()
    };
    for version in (1..=4).filter_map(Version::new) {
        for class in LengthClass::ALL {
            let count: u64 = server.statistics.iter().map(|own| own.total(version, class)).sum();
            if count > 0 {
                *report.by_version.entry(version.number().to_string()).or_default() += count;
                *report.by_length.entry(class.label().to_owned()).or_default() += count;
            }
        }
    }
    report
}

/// A single address without its length, which says nothing.
fn host_or_prefix(prefix: IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        prefix.addr().to_string()
    } else {
        prefix.to_string()
    }
}
