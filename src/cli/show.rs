//! `timeball status` and `timeball clients`: asks the running daemon and shows what it says.

use super::Failure;
use super::table::{columns, grouped};
use crate::daemon::control_socket;
use crate::daemon::counters::PathReport;
use crate::daemon::report::{
    ClientsReport, InstanceReport, InterfaceReport, QueueReport, StatusReport, WorkerReport,
};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

pub(super) fn status(socket: &Path, json: bool) -> Result<(), Failure> {
    show(socket, "status", json, status_text)
}

pub(super) fn sources(socket: &Path, json: bool) -> Result<(), Failure> {
    show(socket, "sources", json, super::sources::text)
}

pub(super) fn clients(socket: &Path, top: u32, json: bool) -> Result<(), Failure> {
    show(socket, &format!("clients {top}"), json, clients_text)
}

fn show<T: DeserializeOwned>(
    socket: &Path,
    question: &str,
    json: bool,
    text: impl Fn(&T) -> String,
) -> Result<(), Failure> {
    let answer = control_socket::ask(socket, question).map_err(|error| {
        let path = socket.display();
        Failure::failed(format_args!("no daemon answers on {path}: {error}; is `timeball serve` running?"))
    })?;
    if json {
        return print(&answer);
    }
    let report: T = serde_json::from_str(&answer)
        .map_err(|error| Failure::failed(format_args!("the daemon's answer cannot be read: {error}")))?;
    print(&text(&report))
}

/// A reader that has seen enough, like `head`, is no failure.
fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn status_text(report: &StatusReport) -> String {
    let mut text = String::new();
    let several = report.instances.len() > 1;
    let clock = &report.clock;
    let _ = writeln!(
        text,
        "timeball {}, pid {}, up {}, UDP port {}",
        report.version,
        report.pid,
        duration(report.uptime_seconds),
        report.port
    );
    let _ = writeln!(
        text,
        "clock    source {}, stratum {}, reference {}, leap {}, precision 2^{} s, root delay {:.6} s, \
         root dispersion {:.6} s",
        clock.source,
        clock.stratum,
        clock.reference_id,
        clock.leap,
        clock.precision,
        clock.root_delay_seconds,
        clock.root_dispersion_seconds
    );
    if report.synchronisation.sources > 0 {
        let _ =
            writeln!(text, "sources  {}", super::sources::synchronisation(&report.synchronisation, several));
    }
    if let Some(problem) = &clock.problem {
        let _ = writeln!(text, "problem  {problem}");
    }
    let memory = &report.memory;
    let _ = writeln!(
        text,
        "memory   queues {}, rate limit {}{}, client statistics {}\n",
        bytes(memory.queues_bytes),
        bytes(memory.rate_limit_bytes),
        on_huge_pages(report.tables.rate_limit_huge_page_bytes),
        bytes(memory.client_statistics_bytes)
    );
    text.push_str(&replies_table(report));
    text.push_str(&priority_text(&report.workers));
    for interface in &report.interfaces {
        text.push('\n');
        text.push_str(&interface_text(interface, several));
    }
    text.push('\n');
    if several {
        for InstanceReport { name, network, socket_addresses } in &report.instances {
            let _ = writeln!(text, "instance {name} ({network}): sockets {}", listed(socket_addresses));
        }
    } else {
        let _ = writeln!(text, "sockets  {}", listed(&report.socket_addresses));
    }
    let dropped: u64 =
        report.workers.iter().filter_map(|worker| worker.socket_counters.get("kernel_dropped")).sum();
    if dropped > 0 {
        let _ = writeln!(
            text,
            "         dropped by the kernel, as the workers were behind: {}",
            grouped(dropped)
        );
    }
    if !report.unsolicited.is_empty() {
        let _ =
            writeln!(text, "         packets without association, by mode: {}", counts(&report.unsolicited));
    }
    text
}

/// How the workers are scheduled, each way once; nothing where the kernel does not say.
fn priority_text(workers: &[WorkerReport]) -> String {
    let mut ways: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for worker in workers {
        if let Some(way) = scheduling(worker) {
            ways.entry(way).or_default().push(worker.worker);
        }
    }
    let is_one = ways.len() == 1;
    let ways: Vec<String> = ways
        .into_iter()
        .map(|(way, workers)| {
            let names: Vec<_> = workers.iter().map(usize::to_string).collect();
            if is_one { way } else { format!("{way} (worker {})", names.join(", ")) }
        })
        .collect();
    let refused = workers.iter().find_map(|worker| worker.priority_refused.as_ref());
    let refused = refused.map_or_else(String::new, |reason| format!(", not as configured: {reason}"));
    if ways.is_empty() && refused.is_empty() {
        return String::new();
    }
    format!("priority {}{refused}\n", if ways.is_empty() { "unknown".to_owned() } else { ways.join("; ") })
}

fn scheduling(worker: &WorkerReport) -> Option<String> {
    let policy = worker.policy.as_deref()?;
    let slice = worker.time_slice_nanoseconds.map(|slice| format!(", time slice {} us", slice as f64 / 1e3));
    let slice = slice.unwrap_or_default();
    Some(match (worker.realtime_priority, worker.nice) {
        (Some(priority), _) => format!("real-time ({policy}), {priority}"),
        (None, Some(nice)) if policy == "SCHED_OTHER" => format!("nice {nice}{slice}"),
        (None, Some(nice)) => format!("nice {nice} ({policy}){slice}"),
        (None, None) => policy.to_owned(),
    })
}

/// One line per worker and path that was used, and the sums.
fn replies_table(report: &StatusReport) -> String {
    let mut rows = vec![heading(&[
        "worker",
        "cpu",
        "path",
        "replies",
        "kisses",
        "refused",
        "unsent",
        "unstamped",
        "p50 us",
        "p99 us",
        "refusals by reason",
    ])];
    let row = |worker: &str, cpu: &str, path: &str, counts: &PathReport| {
        let reasons: Vec<String> =
            counts.refusals.iter().map(|(reason, count)| format!("{reason} {}", grouped(*count))).collect();
        vec![
            worker.to_owned(),
            cpu.to_owned(),
            path.to_owned(),
            grouped(counts.replies),
            grouped(counts.kisses.values().sum()),
            grouped(counts.refused()),
            grouped(counts.unsent),
            grouped(counts.unstamped),
            microseconds(counts, counts.service_time.p50_nanoseconds),
            microseconds(counts, counts.service_time.p99_nanoseconds),
            reasons.join(", "),
        ]
    };
    for worker in &report.workers {
        let (name, cpu) =
            (worker.worker.to_string(), worker.core.map_or("-".to_owned(), |core| core.to_string()));
        rows.push(row(&name, &cpu, "AF_XDP", &worker.af_xdp));
        rows.push(row(&name, &cpu, "socket", &worker.socket));
    }
    if report.workers.len() > 1 {
        let (af_xdp, socket) = report.totals();
        rows.push(row("all", "-", "AF_XDP", &af_xdp));
        rows.push(row("all", "-", "socket", &socket));
    }
    columns(&rows)
}

/// From receive to transmit timestamp; `-` where nothing was served.
fn microseconds(counts: &PathReport, nanoseconds: u64) -> String {
    if counts.service_time.count == 0 { "-".to_owned() } else { format!("{:.1}", nanoseconds as f64 / 1e3) }
}

/// `several`: is there more than one instance?
fn interface_text(interface: &InterfaceReport, several: bool) -> String {
    let instance = if several { format!(" in {}", interface.instance) } else { String::new() };
    let mut text = format!("{}{instance}: {}", interface.name, interface.rung);
    if interface.path == "af-xdp" {
        let _ = write!(text, ", {} addresses steered", interface.steered_addresses);
    }
    text.push('\n');
    for attempt in interface.attempts.iter().filter(|attempt| attempt.outcome != "chosen") {
        let _ = writeln!(text, "  not {}: {}", attempt.rung, attempt.outcome);
    }
    if !interface.queues.is_empty() {
        text.push_str(&indented(&queue_table(&interface.queues)));
    }
    if !interface.verdicts.is_empty() {
        let _ = writeln!(text, "  XDP program: {}", counts(&interface.verdicts));
    }
    for queue in &interface.queues {
        for reason in &queue.refused {
            let _ = writeln!(text, "  queue {} does without {reason}", queue.queue);
        }
        if let Some(error) = queue.transmit_error {
            let _ = writeln!(
                text,
                "  queue {}: replies left {:.1} us after their transmit timestamp on average, {:.1} us at most \
                 ({} stamped)",
                queue.queue,
                error.mean_nanoseconds as f64 / 1e3,
                error.max_nanoseconds as f64 / 1e3,
                grouped(error.samples)
            );
        }
    }
    text
}

fn queue_table(queues: &[QueueReport]) -> String {
    let mut rows = vec![heading(&[
        "queue",
        "worker",
        "mode",
        "received",
        "sent",
        "ring full",
        "fill empty",
        "no buffer",
        "tx lost",
        "frames",
        "memory",
    ])];
    for queue in queues {
        let counter = |name: &str| queue.counters.get(name).copied().unwrap_or(0);
        let ours = |name: &str| grouped(counter(name));
        let kernel = |name: &str| grouped(queue.kernel.get(name).copied().unwrap_or(0));
        rows.push(vec![
            queue.queue.to_string(),
            queue.worker.to_string(),
            if queue.zero_copy { "zero-copy" } else { "copy" }.to_owned(),
            ours("rx_packets"),
            ours("tx_packets"),
            kernel("rx_ring_full"),
            kernel("fill_ring_empty"),
            kernel("rx_dropped"),
            grouped(counter("tx_full") + counter("tx_dropped")),
            if queue.frames_balanced { "all there" } else { "ASTRAY" }.to_owned(),
            bytes(queue.memory_bytes),
        ]);
    }
    columns(&rows)
}

fn clients_text(report: &ClientsReport) -> String {
    let mut text = format!("about {} clients\n", grouped(report.distinct_estimate));
    let _ = writeln!(text, "requests by version: {}", counts(&report.by_version));
    let _ = writeln!(text, "requests by length:  {}\n", counts(&report.by_length));
    let several = report.instances.len() > 1;
    let mut rows =
        vec![heading(&["client", "instance", "requests", "may be too high by", "refused", "last seen"])];
    for client in &report.heaviest {
        rows.push(vec![
            client.client.clone(),
            client.instance.clone(),
            grouped(client.requests),
            grouped(client.error),
            grouped(client.refused),
            format!("{} ago", duration(client.idle_seconds)),
        ]);
    }
    if !several {
        rows.iter_mut().for_each(|row| _ = row.remove(1));
    }
    text.push_str(&columns(&rows));
    text
}

/// The first of them, and how many more.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 12;
    match names.len() {
        0 => "none".to_owned(),
        count if count > SHOWN => format!("{} and {} more", names[..SHOWN].join(", "), count - SHOWN),
        _ => names.join(", "),
    }
}

fn heading(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn counts(map: &BTreeMap<String, u64>) -> String {
    let parts: Vec<String> = map.iter().map(|(name, count)| format!("{name} {}", grouped(*count))).collect();
    if parts.is_empty() { "none yet".to_owned() } else { parts.join(", ") }
}

fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |all, line| all + "  " + line + "\n")
}

fn bytes(count: usize) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{:.0} KiB", count as f64 / 1024.0),
        _ => format!("{:.1} MiB", count as f64 / 1_048_576.0),
    }
}

fn on_huge_pages(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" ({} on huge pages)", bytes(count)) }
}

fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(number: usize, scheduling: &str) -> WorkerReport {
        let path = serde_json::to_string(&PathReport::default()).unwrap();
        let text = format!(
            r#"{{"worker": {number}, {scheduling} "af_xdp": {path}, "socket": {path}, "socket_counters": {{}}}}"#
        );
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[test]
    fn workers_that_are_scheduled_alike_are_told_of_once() {
        let favoured = r#""policy": "SCHED_OTHER", "nice": -10, "time_slice_nanoseconds": 100000,"#;
        let own = r#""policy": "SCHED_BATCH", "nice": 0,"#;
        let fifo = r#""policy": "SCHED_FIFO", "realtime_priority": 7,"#;
        let idle = r#""policy": "SCHED_IDLE", "priority_refused": "no right","#;
        for (schedulings, text) in [
            (vec![favoured, favoured], "priority nice -10, time slice 100 us\n"),
            (vec![fifo], "priority real-time (SCHED_FIFO), 7\n"),
            (
                vec![own, favoured, own],
                "priority nice -10, time slice 100 us (worker 1); nice 0 (SCHED_BATCH) (worker 0, 2)\n",
            ),
            (vec![idle], "priority SCHED_IDLE, not as configured: no right\n"),
            // An older daemon does not say.
            (vec![""], ""),
            (vec![], ""),
        ] {
            let workers: Vec<_> = schedulings
                .iter()
                .enumerate()
                .map(|(number, scheduling)| worker(number, scheduling))
                .collect();
            assert_eq!(priority_text(&workers), text, "{schedulings:?}");
        }
    }
}
