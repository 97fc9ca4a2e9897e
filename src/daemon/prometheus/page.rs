//! The metrics: which there are, their names, units and help.
//!
//! The one idea a newcomer lacks: every number here is one of `timeball status --json`, of `sources --json`, or a sum of them, so that the
//! two can be compared. Labels that could come up later are there from the start with 0: a counter that appears only
//! with its first event hides that event from `rate()`.

use super::exposition::{Exposition, Family, Kind};
use super::sources;
use crate::daemon::associations::SourcesReport;
use crate::daemon::counters::{KISS_CODES, PathReport, ServiceTimeReport};
use crate::daemon::report::{ClockReport, InterfaceReport, QueueReport, StatusReport};
use crate::metrics::Histogram;
use crate::serve::Refusal;
use std::collections::BTreeMap;
use timeball_xdp_prog::Verdict;

/// 2^-32 s, which `f64` holds exactly.
const UNIT_SECONDS: f64 = 1.0 / 4_294_967_296.0;

/// All of it, as Prometheus reads it.
#[must_use]
pub fn page(report: &StatusReport, by: &SourcesReport) -> String {
    let mut out = Exposition::default();
    daemon(&mut out, report);
    clock(&mut out, &report.clock);
    sources::synchronisation(&mut out, &by.synchronisation);
    sources::sources(&mut out, by);
    sources::control(&mut out, &report.control);
    let (af_xdp, socket) = report.totals();
    let paths = [("af_xdp", &af_xdp), ("socket", &socket)];
    requests(&mut out, &paths);
    service_time(&mut out, paths.map(|(name, path)| (name, &path.service_time)));
    let sockets = socket_counters(report);
    drops(&mut out, report, &paths, &sockets);
    let several = report.instances.len() > 1;
    interfaces(&mut out, &report.interfaces, several);
    queues(&mut out, &report.interfaces.iter().flat_map(|one| &one.queues).collect::<Vec<_>>(), several);
    let mut events = out.counter("timeball_socket_events_total", "Events of the kernel sockets, by kind.");
    sockets.iter().for_each(|(event, count)| events.sample(&[("event", event)], count));
    let mut packets = out.counter(
        "timeball_unsolicited_packets_total",
        "Packets of modes other than 3 that no association asked for, by mode.",
    );
    report.unsolicited.iter().for_each(|(mode, count)| packets.sample(&[("mode", mode)], count));
    out.into_text()
}

fn daemon(out: &mut Exposition, report: &StatusReport) {
    out.gauge("timeball_build_info", "The version in service; always 1.")
        .sample(&[("version", &report.version)], 1);
    out.gauge(
        "timeball_start_time_seconds",
        "When the daemon began to serve, in Unix time by its clock then.",
    )
    .sample(&[], report.start_time_seconds);
    let mut workers =
        out.gauge("timeball_worker_info", "Threads that answer, and the CPU each is pinned to; always 1.");
    for worker in &report.workers {
        let cpu = worker.core.map_or(String::new(), |core| core.to_string());
        workers.sample(&[("worker", &worker.worker.to_string()), ("cpu", &cpu)], 1);
    }
    let memory = &report.memory;
    let mut bytes = out.gauge("timeball_memory_bytes", "Memory taken at the start, by what it is for.");
    bytes.sample(&[("part", "queues")], memory.queues_bytes);
    bytes.sample(&[("part", "rate_limit")], memory.rate_limit_bytes);
    bytes.sample(&[("part", "client_statistics")], memory.client_statistics_bytes);
    let tables = &report.tables;
    out.gauge("timeball_distinct_clients", "About how many different clients have asked since the start.")
        .sample(&[], tables.distinct_clients_estimate);
    out.gauge("timeball_client_table_entries", "Clients that the statistics can list at once.")
        .sample(&[], tables.client_entries_max);
    out.gauge(
        "timeball_rate_limit_table_entries",
        "Clients that the rate limit can tell apart; 0 without one.",
    )
    .sample(&[], tables.rate_limit_entries_max);
}

fn clock(out: &mut Exposition, clock: &ClockReport) {
    out.gauge("timeball_clock_info", "Where the time comes from, and what clients are told; always 1.")
        .sample(&[("source", &clock.source), ("reference_id", &clock.reference_id)], 1);
    out.gauge("timeball_clock_synchronised", "Whether there is a reference: 1 or 0.")
        .sample(&[], u8::from(clock.synchronised));
    out.gauge("timeball_clock_stratum", "What clients are told; 16 means unsynchronised.")
        .sample(&[], clock.stratum);
    let mut leap = out.gauge("timeball_clock_leap", "The leap indicator served: 1 for it, 0 for the others.");
    for state in ["none", "insert", "delete", "unsynchronised"] {
        leap.sample(&[("leap", state)], u8::from(clock.leap == state));
    }
    out.gauge("timeball_clock_precision_seconds", "How finely the clock can be read.")
        .sample(&[], f64::from(clock.precision).exp2());
    out.gauge("timeball_clock_root_delay_seconds", "Round trip to the primary source.")
        .sample(&[], clock.root_delay_seconds);
    out.gauge(
        "timeball_clock_root_dispersion_seconds",
        "How wrong the clock may be besides half the root delay.",
    )
    .sample(&[], clock.root_dispersion_seconds);
}

fn requests(out: &mut Exposition, paths: &[(&str, &PathReport)]) {
    let mut requests =
        out.counter("timeball_requests_total", "Requests judged: each is a reply or a refusal as well.");
    paths.iter().for_each(|(name, path)| requests.sample(&[("path", name)], path.requests()));
    let mut replies = out.counter(
        "timeball_replies_total",
        "Replies that tell the time, those that could not be sent included (timeball_unsent_replies_total).",
    );
    paths.iter().for_each(|(name, path)| replies.sample(&[("path", name)], path.replies));
    let mut refusals = out.counter(
        "timeball_refusals_total",
        "Requests that got no time, by reason; those told so by a kiss or a crypto-NAK are among them.",
    );
    for (name, path) in paths {
        for reason in Refusal::ALL.map(|refusal| refusal.to_string()) {
            let count = counted(&path.refusals, &reason);
            refusals.sample(&[("path", name), ("reason", &reason)], count);
        }
    }
    let mut signed = out.counter("timeball_signed_replies_total", "Replies with a MAC that tell the time.");
    paths.iter().for_each(|(name, path)| signed.sample(&[("path", name)], path.signed_replies));
    let mut naks = out.counter(
        "timeball_crypto_naks_total",
        "Replies to requests with a wrong MAC or an unknown key, which say so.",
    );
    paths.iter().for_each(|(name, path)| naks.sample(&[("path", name)], path.crypto_naks));
    let mut kisses = out.counter("timeball_kisses_total", "Kiss-o'-Death packets, by code.");
    for (name, path) in paths {
        for code in KISS_CODES.map(|code| code.reference_id().to_string()) {
            kisses.sample(&[("path", name), ("code", &code)], counted(&path.kisses, &code));
        }
    }
    let mut unsent = out.counter(
        "timeball_unsent_replies_total",
        "Replies and kisses that could not be sent: ring full, interface down, no route.",
    );
    paths.iter().for_each(|(name, path)| unsent.sample(&[("path", name)], path.unsent));
    let mut unstamped = out.counter(
        "timeball_unstamped_requests_total",
        "Requests whose receive stamp was missing or could not be true; the clock was read instead.",
    );
    paths.iter().for_each(|(name, path)| unstamped.sample(&[("path", name)], path.unstamped));
}

fn service_time(out: &mut Exposition, paths: [(&str, &ServiceTimeReport); 2]) {
    let mut family = out.family(
        Kind::Histogram,
        "timeball_service_time_seconds",
        "From receive to transmit timestamp of replies and kisses, as clients read them.",
    );
    for (path, times) in paths {
        histogram(&mut family, &[("path", path)], times);
    }
}

/// One histogram of a family.
pub(super) fn histogram(family: &mut Family<'_>, labels: &[(&str, &str)], times: &ServiceTimeReport) {
    let (mut sum, mut counts) = (0, times.buckets.iter());
    let mut bucket =
        |bound: &str, count| family.suffixed("_bucket", &[labels, &[("le", bound)]].concat(), count);
    for bound in Histogram::bounds() {
        sum += counts.next().unwrap_or(&0);
        let bound = bound as f64 * UNIT_SECONDS;
        bucket(&bound.to_string(), sum);
    }
    bucket("+Inf", times.count);
    family.suffixed("_sum", labels, times.sum_nanoseconds as f64 / 1e9);
    family.suffixed("_count", labels, times.count);
}

/// What was lost where, each packet under one cause. `nic` is without what the AF_XDP sockets refused on veth, which
/// counts that too (`daemon::drops`); of other drivers it is not known.
fn drops(
    out: &mut Exposition,
    report: &StatusReport,
    paths: &[(&str, &PathReport)],
    sockets: &BTreeMap<&str, u64>,
) {
    let mut drops = out.counter(
        "timeball_drops_total",
        "Packets lost, by cause: nic (rx drop of /proc/net/dev: NIC and kernel, NTP or not; on veth without those of ring and \
         frame, which it counts too, and other drivers may); \
         ring (AF_XDP receive ring full); frame (no free frame for it, or longer than one); \
         reply (AF_XDP transmit ring full, or dropped by the interface); socket (a socket's buffer full); \
         limiter (over the rate limit and not told so); access (denied by the access list and not told so); \
         parse (malformed, of an unknown version, or no datagram for us).",
    );
    for interface in &report.interfaces {
        let name = ("interface", interface.name.as_str());
        let of = instance(&interface.instance, report.instances.len() > 1);
        if let Some(count) = interface.nic_dropped {
            drops.sample(&[("cause", "nic"), of, name], count);
        }
        if interface.path == "af-xdp" {
            drops.sample(&[("cause", "access"), of, name], counted(&interface.verdicts, "dropped_denied"));
        }
        for queue in &interface.queues {
            let number = queue.queue.to_string();
            let mut lost =
                |cause, count| drops.sample(&[("cause", cause), of, name, ("queue", &number)], count);
            lost("ring", counted(&queue.kernel, "rx_ring_full"));
            lost("frame", counted(&queue.kernel, "rx_dropped"));
            lost("reply", counted(&queue.counters, "tx_full") + counted(&queue.counters, "tx_dropped"));
        }
    }
    drops.sample(&[("cause", "socket")], counted(sockets, "kernel_dropped"));
    for (path, counts) in paths {
        let silent = |reasons: &[Refusal], kisses: &[&str]| {
            let refused: u64 =
                reasons.iter().map(|reason| counted(&counts.refusals, &reason.to_string())).sum();
            refused.saturating_sub(kisses.iter().map(|code| counted(&counts.kisses, code)).sum())
        };
        let mut lost = |cause, count| drops.sample(&[("cause", cause), ("path", path)], count);
        lost("limiter", silent(&[Refusal::RateLimited], &["RATE"]));
        lost("access", silent(&[Refusal::Denied, Refusal::Restricted, Refusal::Dropped], &["DENY", "RSTR"]));
        lost("parse", silent(&[Refusal::Malformed, Refusal::Version, Refusal::Frame], &[]));
    }
}

fn interfaces(out: &mut Exposition, interfaces: &[InterfaceReport], several: bool) {
    let mut info = out.gauge(
        "timeball_interface_info",
        "How an interface is served: path, and the rung of the ladder it stands on; always 1.",
    );
    for one in interfaces {
        // As the other families spell it.
        let path = one.path.replace('-', "_");
        info.sample(
            &[
                instance(&one.instance, several),
                ("interface", &one.name),
                ("path", &path),
                ("rung", &one.rung),
            ],
            1,
        );
    }
    let mut steered =
        out.gauge("timeball_interface_steered_addresses", "Addresses whose requests go to AF_XDP.");
    interfaces.iter().for_each(|one| {
        steered.sample(&[instance(&one.instance, several), ("interface", &one.name)], one.steered_addresses)
    });
    let mut verdicts = out.counter(
        "timeball_xdp_packets_total",
        "Packets that the XDP program saw, by its verdict: redirected to AF_XDP, passed to the kernel, or dropped.",
    );
    for one in interfaces.iter().filter(|one| one.path == "af-xdp") {
        for verdict in Verdict::ALL.map(Verdict::name) {
            let count = counted(&one.verdicts, verdict);
            verdicts.sample(
                &[instance(&one.instance, several), ("interface", &one.name), ("verdict", verdict)],
                count,
            );
        }
    }
}

fn queues(out: &mut Exposition, queues: &[&QueueReport], several: bool) {
    let numbers: Vec<String> = queues.iter().map(|queue| queue.queue.to_string()).collect();
    let each =
        || queues.iter().zip(&numbers).map(|(queue, number)| (*queue, of_queue(queue, number, several)));
    let mut info =
        out.gauge("timeball_queue_info", "How an AF_XDP queue is served, and by which worker; always 1.");
    for (queue, [of, interface, number]) in each() {
        let mode = ("mode", if queue.zero_copy { "zero_copy" } else { "copy" });
        let worker = queue.worker.to_string();
        info.sample(&[of, interface, number, ("worker", &worker), mode, ("pages", &queue.pages)], 1);
    }
    let mut events = out.counter(
        "timeball_queue_events_total",
        "Events of an AF_XDP queue that we counted, by kind: rx_packets and tx_packets are its traffic.",
    );
    each().for_each(|(queue, labels)| by_name(&mut events, labels, "event", &queue.counters));
    let mut events = out.counter(
        "timeball_xsk_events_total",
        "Events of an AF_XDP socket that the kernel counted (XDP_STATISTICS), by kind.",
    );
    each().for_each(|(queue, labels)| by_name(&mut events, labels, "event", &queue.kernel));
    let mut frames = out.gauge(
        "timeball_queue_frames",
        "Where the frames of an AF_XDP queue are, by state; total is how many there are.",
    );
    each().for_each(|(queue, labels)| by_name(&mut frames, labels, "state", &queue.frames));
    let mut balanced = out
        .gauge("timeball_queue_frames_balanced", "Whether every frame of a queue is accounted for: 1 or 0.");
    each().for_each(|(queue, labels)| balanced.sample(&labels, u8::from(queue.frames_balanced)));
    let mut error = out.gauge(
        "timeball_queue_transmit_error_mean_seconds",
        "How much later than their transmit timestamp replies left, on average since the start, where it is measured.",
    );
    for (queue, labels) in each() {
        if let Some(measured) = queue.transmit_error {
            error.sample(&labels, measured.mean_nanoseconds as f64 / 1e9);
        }
    }
}

fn of_queue<'q>(queue: &'q QueueReport, number: &'q str, several: bool) -> [(&'static str, &'q str); 3] {
    [instance(&queue.instance, several), ("interface", &queue.interface), ("queue", number)]
}

/// The label that tells instances apart, where there are several. (`instance` is Prometheus's own word for whom it asks.)
pub(super) const fn instance(name: &str, several: bool) -> (&'static str, &str) {
    ("ntp_instance", if several { name } else { "" })
}

/// A sample for each name, which becomes a further label.
fn by_name(family: &mut Family<'_>, labels: [(&str, &str); 3], label: &str, counts: &BTreeMap<String, u64>) {
    let [first, second, third] = labels;
    counts.iter().for_each(|(name, count)| family.sample(&[first, second, third, (label, name)], count));
}

/// Over all workers.
fn socket_counters(report: &StatusReport) -> BTreeMap<&str, u64> {
    let mut sums = BTreeMap::new();
    for (name, count) in report.workers.iter().flat_map(|worker| &worker.socket_counters) {
        *sums.entry(name.as_str()).or_default() += count;
    }
    sums
}

fn counted<K: std::borrow::Borrow<str> + Ord>(counts: &BTreeMap<K, u64>, name: &str) -> u64 {
    counts.get(name).copied().unwrap_or(0)
}
