//! The page for Prometheus: that it is well formed, that its numbers are those of `timeball status`, that nobody who
//! reaches the port can hold it up, and that the dashboard asks for what is there.

#![cfg(feature = "metrics")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod exposition;

use common::asker::{Asker, CLIENT, as_server};
use common::{Carrier, Daemon, Lab, SERVER, can_have_labs, project, run, text};
use exposition::Page;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};
use timeball::daemon::prometheus::page;

const ADDRESS: &str = "127.0.0.1:9124";
/// How long a page may be old, and some more.
const PAGE_TIME: Duration = Duration::from_millis(300);

/// A report in which everything that can be there is.
fn full_report() -> Value {
    let path = json!({
        "replies": 30, "kisses": {"RATE": 2}, "refusals": {"rate-limited": 20, "malformed": 3, "denied": 4},
        "unstamped": 1, "unsent": 5,
        "service_time": {"count": 6, "sum_nanoseconds": 60_000, "buckets": [1, 2, 3]},
    });
    let queue = json!({
        "interface": "eth\"0", "queue": 3, "worker": 1, "zero_copy": true, "tx_metadata": true, "pages": "normal",
        "refused": [], "counters": {"rx_packets": 9, "tx_full": 2, "tx_dropped": 3}, "kernel": {"rx_ring_full": 7},
        "frames": {"total": 4096, "free": 4096}, "frames_balanced": true, "memory_bytes": 1,
        "transmit_error": {"samples": 2, "mean_nanoseconds": -1500, "max_nanoseconds": 9},
    });
    json!({
        "version": "1.2.3", "pid": 1, "start_time_seconds": 1.8e9, "uptime_seconds": 1.5, "port": 123,
        "clock": {
            "source": "local", "synchronised": true, "leap": "insert", "stratum": 10, "reference_id": "127.127.1.1",
            "precision": -23, "root_delay_seconds": 0.001, "root_dispersion_seconds": 0.0000305, "problem": null,
        },
        "interfaces": [{
            "name": "eth\"0", "index": 2, "path": "af-xdp", "rung": "driver + copy", "attempts": [],
            "steered_addresses": 4, "receive_dropped": 18, "nic_dropped": 11, "verdicts": {"redirected": 9, "dropped_denied": 8},
            "queues": [queue],
        }],
        "control": {
            "lateness": {"count": 3, "sum_nanoseconds": 3_000_000, "buckets": [0, 3]},
            "packets": {"received": 9, "strays": 1, "discarded": 2},
        },
        "workers": [
            {"worker": 0, "core": 1, "af_xdp": path, "socket": path, "socket_counters": {"kernel_dropped": 1}},
            {"worker": 1, "core": null, "af_xdp": path, "socket": {}, "socket_counters": {"kernel_dropped": 2}},
        ],
        "socket_addresses": [], "unsolicited": {"6": 2},
        "memory": {"rate_limit_bytes": 1, "client_statistics_bytes": 2, "queues_bytes": 3},
        "tables": {"distinct_clients_estimate": 5, "client_entries_max": 8192, "rate_limit_entries_max": 1_048_576,
            "rate_limit_huge_page_bytes": 0},
    })
}

/// The same for its sources: one that is used, one that is not yet, one that takes time from us, and one that came unasked.
fn full_sources() -> Value {
    let row = |name, mode, sign, state, more: Value| {
        let mut row = json!({
            "name": name, "mode": mode, "sign": sign, "state": state, "reason": "", "sent": 3, "received": 2,
        });
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row
    };
    let measured = json!({
        "address": "192.0.2.1:123", "stratum": 2, "reference_id": "192.0.2.9", "poll": 6, "reach": 0xfe,
        "last_sample_seconds": 12.5, "offset_seconds": -0.001, "measured_offset_seconds": -0.001,
        "error_bound_seconds": 0.01, "delay_seconds": 0.002, "dispersion_seconds": 0.0004, "jitter_seconds": 0.0001,
    });
    let guest = json!({"address": "192.0.2.66:123", "stratum": 5, "poll": 6, "reach": 1});
    json!({
        "synchronisation": {
            "steering": true, "system_peer": "192.0.2.1:123", "offset_seconds": -0.0005, "jitter_seconds": 0.0002,
            "frequency_ppm": 12.5, "slew_ppm": -3.0, "steps": 2, "foreign_steps": 1, "sources": 3, "used": 1,
        },
        "sources": [
            row("ntp.example.org", "server", "*", "selected", measured),
            row("slow.example.org", "server", "?", "resolving", json!({})),
            row("224.0.1.1", "broadcast", " ", "serving", json!({"address": "224.0.1.1:123", "poll": 6})),
            row("", "passive", "-", "outlier", guest),
        ],
    })
}

fn full_page() -> Page {
    let report = serde_json::from_value(full_report()).unwrap();
    let sources = serde_json::from_value(full_sources()).unwrap();
    Page::parse(&page(&report, &sources)).unwrap()
}

#[test]
fn the_page_is_well_formed_and_sums_up_the_workers() {
    let page = full_page();
    let af_xdp = ("path", "af_xdp");
    assert_eq!(page.value("timeball_replies_total", &[af_xdp]), 60.0);
    assert_eq!(page.value("timeball_requests_total", &[af_xdp]), 60.0 + 54.0);
    assert_eq!(page.value("timeball_refusals_total", &[("path", "socket"), ("reason", "malformed")]), 3.0);
    assert_eq!(page.value("timeball_refusals_total", &[("path", "socket"), ("reason", "mode")]), 0.0);
    assert_eq!(page.value("timeball_service_time_seconds_count", &[af_xdp]), 12.0);
    assert_eq!(page.value("timeball_service_time_seconds_sum", &[af_xdp]), 0.000_12);
    // 2^-23 s and half an octave more.
    let buckets = [("0.00000011920928955078125", 2.0), ("0.00000017881393432617188", 6.0), ("0.125", 12.0)];
    for (le, count) in buckets {
        assert_eq!(page.value("timeball_service_time_seconds_bucket", &[af_xdp, ("le", le)]), count);
    }
    let interface = ("interface", "eth\"0");
    assert_eq!(page.value("timeball_xdp_packets_total", &[interface, ("verdict", "redirected")]), 9.0);
    let info = [interface, ("path", "af_xdp"), ("rung", "driver + copy")];
    assert_eq!(page.value("timeball_interface_info", &info), 1.0);
    assert_eq!(page.value("timeball_clock_leap", &[("leap", "insert")]), 1.0);
    assert_eq!(page.value("timeball_clock_leap", &[("leap", "none")]), 0.0);
    // What has not come yet is there too.
    assert_eq!(page.value("timeball_unsolicited_packets_total", &[("mode", "6")]), 2.0);
    assert_eq!(page.value("timeball_unsolicited_packets_total", &[("mode", "1")]), 0.0);
}

#[test]
fn sources_are_shown_by_name_and_only_those_that_are_configured() {
    let page = full_page();
    let source = [("source", "ntp.example.org"), ("address", "192.0.2.1:123")];
    for (name, value) in [
        ("used", 1.0),
        ("stratum", 2.0),
        ("reach_ratio", 0.875),
        ("poll_interval_seconds", 64.0),
        ("offset_seconds", -0.001),
        ("delay_seconds", 0.002),
        ("dispersion_seconds", 0.0004),
        ("jitter_seconds", 0.0001),
        ("error_bound_seconds", 0.01),
        ("last_sample_age_seconds", 12.5),
    ] {
        assert_eq!(page.value(&format!("timeball_source_{name}"), &source), value, "{name}");
    }
    let state = [("mode", "server"), ("state", "selected")];
    assert_eq!(page.value("timeball_source_info", &[&source[..], &state[..]].concat()), 1.0);
    let sent = [("direction", "sent")];
    assert_eq!(page.value("timeball_source_packets_total", &[&source[..], &sent[..]].concat()), 3.0);
    assert_eq!(page.value("timeball_source_used", &[("source", "slow.example.org")]), 0.0);
    let of = |name: &str| page.samples.iter().filter(|sample| sample.name == name).count();
    assert_eq!(
        (of("timeball_source_info"), of("timeball_source_used"), of("timeball_source_stratum")),
        (3, 2, 1)
    );
    let counts = ["configured", "used"].map(|state| page.value("timeball_sources", &[("state", state)]));
    assert_eq!(counts, [3.0, 1.0]);
    assert_eq!(page.value("timeball_clock_offset_seconds", &[]), -0.0005);
    assert_eq!(page.value("timeball_clock_frequency_ppm", &[]), 12.5);
    assert_eq!(page.value("timeball_clock_slew_ppm", &[]), -3.0);
    let steps = ["us", "others"].map(|by| page.value("timeball_clock_steps_total", &[("by", by)]));
    assert_eq!(steps, [2.0, 1.0]);
    assert_eq!(page.value("timeball_control_packets_total", &[("outcome", "strays")]), 1.0);
    assert_eq!(page.value("timeball_control_lateness_seconds_count", &[]), 3.0);
}

/// Two tables may speak to one group, on two interfaces; a page with one series twice would be refused as a whole.
#[test]
fn what_has_one_name_is_one_series() {
    let mut sources = full_sources();
    let rows = sources["sources"].as_array_mut().unwrap();
    let again: Vec<Value> = rows[1..3].to_vec();
    rows.extend(again);
    let report = serde_json::from_value(full_report()).unwrap();
    let page = Page::parse(&page(&report, &serde_json::from_value(sources).unwrap()))
        .unwrap_or_else(|problem| panic!("{problem:?}"));
    let group = [("source", "224.0.1.1"), ("address", "224.0.1.1:123"), ("direction", "sent")];
    assert_eq!(page.value("timeball_source_packets_total", &group), 6.0);
}

/// A thousand of them are counted, and not a thousand times ten series.
#[test]
fn the_number_of_series_is_bounded() {
    let mut sources = full_sources();
    let row = sources["sources"][0].clone();
    let rows = (0..1000).map(|number| {
        let mut row = row.clone();
        row["name"] = format!("{number}.example.org").into();
        row
    });
    sources["sources"] = rows.collect();
    let report = serde_json::from_value(full_report()).unwrap();
    let page = Page::parse(&page(&report, &serde_json::from_value(sources).unwrap())).unwrap();
    let of = |name: &str| page.samples.iter().filter(|sample| sample.name == name).count();
    assert_eq!((of("timeball_source_info"), of("timeball_source_offset_seconds")), (256, 256));
    assert!(page.samples.len() < 5000, "{}", page.samples.len());
}

#[test]
fn drops_have_the_cause_that_the_report_shows() {
    let page = full_page();
    let drops = |cause, more: &[(&str, &str)]| {
        page.value("timeball_drops_total", &[&[("cause", cause)], more].concat())
    };
    let interface = ("interface", "eth\"0");
    let queue = [interface, ("queue", "3")];
    assert_eq!(drops("nic", &[interface]), 11.0);
    assert_eq!(drops("access", &[interface]), 8.0);
    assert_eq!(drops("ring", &queue), 7.0);
    assert_eq!(drops("frame", &queue), 0.0);
    assert_eq!(drops("reply", &queue), 5.0);
    assert_eq!(drops("socket", &[]), 3.0);
    assert_eq!(drops("limiter", &[("path", "socket")]), 18.0, "two were told");
    assert_eq!(drops("access", &[("path", "af_xdp")]), 8.0);
    assert_eq!(drops("parse", &[("path", "af_xdp")]), 6.0);
}

/// Requests that a stopped daemon had no frames for, told once whichever counters the kernel raised for them.
#[test]
fn a_dropped_request_is_one_drop() {
    if !can_have_labs() {
        return;
    }
    for carrier in [Carrier::Driver, Carrier::Skb] {
        let lab = Lab::new(&[]);
        let listen = format!("\n[metrics]\nlisten = \"{ADDRESS}\"\n");
        let daemon = Daemon::start(&lab, &format!("{}{listen}", carrier.configuration("")));
        let client = Asker::new(&lab, CLIENT, SERVER[0]);
        daemon.pause();
        for cookie in 0..3000 {
            client.send(cookie);
        }
        daemon.resume();
        std::thread::sleep(Duration::from_millis(500));
        let page = scrape(&lab);
        let (interface, queue) = (("interface", "tb0"), ("queue", "0"));
        let drops = |cause, more: &[(&str, &str)]| {
            page.value("timeball_drops_total", &[&[("cause", cause), interface], more].concat())
        };
        let (nic, ring, frame) = (drops("nic", &[]), drops("ring", &[queue]), drops("frame", &[queue]));
        let lost = 3000 - daemon.queue_sum("counters", "rx_packets");
        assert!(lost > 1000, "{carrier:?}: {lost} were lost");
        assert_eq!(nic + ring + frame, lost as f64, "{carrier:?}: nic {nic}, ring {ring}, frame {frame}");
        assert_eq!(nic, 0.0, "{carrier:?}: each was the socket's");
        let in_all = daemon.status()["interfaces"][0]["receive_dropped"].as_u64().unwrap();
        let expected = if carrier == Carrier::Driver { lost } else { 0 };
        assert_eq!(in_all, expected, "{carrier:?}: if this differs, veth counts otherwise than it did");
    }
}

/// All names of metrics in a text, as in PromQL.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let starts = text.match_indices("timeball_").map(|(at, _)| &text[at..]);
    let name = |text: &str| {
        let end = text.find(|letter: char| !letter.is_ascii_lowercase() && letter != '_');
        text[..end.unwrap_or(text.len())].to_owned()
    };
    starts.map(name).collect()
}

/// Every text under one of these keys, at any depth.
fn texts_under<'v>(value: &'v Value, keys: &[&str], found: &mut Vec<&'v str>) {
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                match value {
                    Value::String(text) if keys.contains(&key.as_str()) => found.push(text),
                    _ => texts_under(value, keys, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| texts_under(item, keys, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_asks_for_every_metric_and_no_other() {
    let dashboard = std::fs::read_to_string(project("scripts/grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let mut queries = Vec::new();
    texts_under(&dashboard, &["expr", "query", "definition"], &mut queries);
    let asked: BTreeSet<String> = queries.iter().flat_map(|query| metrics_in(query)).collect();
    let page = full_page();
    let there: BTreeSet<&String> = page.samples.iter().map(|sample| &sample.name).collect();
    for name in &asked {
        assert!(there.contains(name), "the dashboard asks for {name}, which is not there");
    }
    for family in page.families.keys() {
        let shown = asked.iter().any(|name| name == family || name.strip_suffix("_bucket") == Some(family));
        assert!(shown, "the dashboard does not show {family}");
    }
    for query in queries.iter().filter(|query| query.contains("_total")) {
        assert!(query.contains("rate(") || query.contains("increase("), "a counter as it stands: {query}");
    }
}

#[test]
fn the_dashboard_leaves_the_data_source_to_the_user() {
    let dashboard = std::fs::read_to_string(project("scripts/grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert_eq!((&variables[0]["name"], &variables[0]["type"]), (&json!("datasource"), &json!("datasource")));
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "an id comes twice: {}", panel["title"]);
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
}

/// Connects to the page's port from inside the server's namespace.
fn connect(lab: &Lab) -> TcpStream {
    let stream = as_server(lab, || TcpStream::connect(ADDRESS).unwrap());
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

/// Status line and body of the answer to these octets.
fn ask(lab: &Lab, request: &[u8]) -> (String, String) {
    let mut stream = connect(lab);
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[track_caller]
fn scrape(lab: &Lab) -> Page {
    std::thread::sleep(PAGE_TIME);
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n";
    let (status, body) = ask(lab, request.as_bytes());
    assert_eq!(status, "HTTP/1.1 200 OK", "{body}");
    Page::parse(&body).unwrap()
}

/// The configuration of a carrier with a rate limit that the first 30 requests of a client pass.
fn configuration(carrier: Carrier) -> String {
    let limit = "\n[rate-limit]\ninterval = \"1day\"\nburst = 30\nleak = 0\n";
    format!("kod = true\n{}{limit}[metrics]\nlisten = \"{ADDRESS}\"\n", carrier.configuration(""))
}

#[test]
fn numbers_are_those_of_the_status() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &configuration(Carrier::Driver));
    let client = Asker::new(&lab, CLIENT, SERVER[0]);
    let here = as_server(&lab, || Asker::here(SERVER[0], SERVER[0]));
    for cookie in 0..50 {
        client.send(cookie);
        if cookie < 10 {
            here.send(cookie);
        }
    }
    // Of mode 3 by its first octet, or it would be none of the workers' business.
    here.send_request(b"#too short");
    assert_eq!(client.receive_all(Duration::from_millis(300)).len(), 32);
    assert_eq!(here.receive_all(Duration::from_millis(300)).len(), 10);

    let (page, status) = (scrape(&lab), daemon.status());
    for (path, replies, rate_limited, kisses, malformed) in
        [("af_xdp", 30.0, 20.0, 2.0, 0.0), ("socket", 10.0, 0.0, 0.0, 1.0)]
    {
        let label = ("path", path);
        let sum = |keys: &[&str]| -> f64 {
            let workers = status["workers"].as_array().unwrap();
            let of =
                |worker: &Value| keys.iter().fold(worker[path].clone(), |value, key| value[*key].clone());
            workers.iter().map(|worker| of(worker).as_u64().unwrap_or(0) as f64).sum()
        };
        let pairs = [
            (page.value("timeball_replies_total", &[label]), replies, sum(&["replies"])),
            (
                page.value("timeball_refusals_total", &[label, ("reason", "rate-limited")]),
                rate_limited,
                sum(&["refusals", "rate-limited"]),
            ),
            (
                page.value("timeball_refusals_total", &[label, ("reason", "malformed")]),
                malformed,
                sum(&["refusals", "malformed"]),
            ),
            (
                page.value("timeball_kisses_total", &[label, ("code", "RATE")]),
                kisses,
                sum(&["kisses", "RATE"]),
            ),
            (
                page.value("timeball_service_time_seconds_count", &[label]),
                replies + kisses,
                sum(&["service_time", "count"]),
            ),
            (
                (page.value("timeball_service_time_seconds_sum", &[label]) * 1e9).round(),
                sum(&["service_time", "sum_nanoseconds"]),
                sum(&["service_time", "sum_nanoseconds"]),
            ),
        ];
        for (index, (told, expected, in_status)) in pairs.into_iter().enumerate() {
            assert_eq!((told, told), (expected, in_status), "{path}, pair {index}");
        }
        let mean = page.value("timeball_service_time_seconds_sum", &[label]) / (replies + kisses);
        assert!((1e-7..0.1).contains(&mean), "{path}: a reply took {mean} s");
        let silent = rate_limited - kisses;
        assert_eq!(page.value("timeball_drops_total", &[("cause", "limiter"), label]), silent);
        assert_eq!(page.value("timeball_drops_total", &[("cause", "parse"), label]), malformed);
    }
    let (interface, queue) = (("interface", "tb0"), ("queue", "0"));
    let of_queue = |event| page.value("timeball_queue_events_total", &[interface, queue, ("event", event)]);
    assert_eq!((of_queue("rx_packets"), of_queue("tx_packets")), (50.0, 32.0));
    assert_eq!(of_queue("rx_packets") as u64, daemon.queue_sum("counters", "rx_packets"));
    let redirected = page.value("timeball_xdp_packets_total", &[interface, ("verdict", "redirected")]);
    assert_eq!((redirected, daemon.verdicts("redirected")), (50.0, 50));
    assert_eq!(page.value("timeball_clock_stratum", &[]), 10.0);
    let memory = &status["memory"]["queues_bytes"];
    assert_eq!(page.value("timeball_memory_bytes", &[("part", "queues")]), memory.as_f64().unwrap());
    let rung = status["interfaces"][0]["rung"].as_str().unwrap();
    page.value("timeball_interface_info", &[interface, ("path", "af_xdp"), ("rung", rung)]);
    let start = page.value("timeball_start_time_seconds", &[]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((0.0..60.0).contains(&(now - start)), "it began {} s ago", now - start);
}

#[test]
fn slow_and_rude_connections_hold_nobody_up() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &configuration(Carrier::Socket));
    let threads = || std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().count();
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let quiet = scrape(&lab);
    let (threads_before, descriptors_before) = (threads(), descriptors());

    for (request, status) in [
        (&b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n"[..], "405"),
        (b"GET /else HTTP/1.1\r\n\r\n", "404"),
        (b"\x16\x03\x01\xff\x00\r\n\r\n", "400"),
    ] {
        let (told, _) = ask(&lab, request);
        assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{told}");
    }
    let mut endless = connect(&lab);
    // The daemon may close while we still write.
    let _ = endless.write_all(&[b'x'; 100_000]);
    let slow: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = connect(&lab);
            let _ = stream.write_all(b"GET /metrics HT");
            stream
        })
        .collect();
    let started = Instant::now();
    let page = scrape(&lab);
    assert!(started.elapsed() < Duration::from_secs(1), "a scrape took {:?}", started.elapsed());
    assert_eq!(page.families.keys().collect::<Vec<_>>(), quiet.families.keys().collect::<Vec<_>>());
    assert_eq!(threads(), threads_before);
    assert!(descriptors() <= descriptors_before + 16, "{} descriptors for 100 slow clients", descriptors());
    assert!(lab.answers(SERVER[0]), "and NTP is served");
    // The last ones are closed when they have had their time.
    let mut last = slow.last().unwrap();
    assert_eq!(last.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn a_port_in_use_is_one_clear_line() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let _daemon = Daemon::start(&lab, &configuration(Carrier::Socket));
    let folder = tempfile::tempdir().unwrap();
    let mut second = lab.on_server("timeout");
    second.args([
        "20",
        env!("CARGO_BIN_EXE_timeball"),
        "serve",
        "--local-stratum",
        "10",
        "--no-clock-control",
    ]);
    second.args(["--datapath", "socket", "--interface", "tb0", "--port", "1123", "--metrics", ADDRESS]);
    let output = run(second.arg("--socket").arg(folder.path().join("socket")));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let expected = format!("timeball: error: metrics on {ADDRESS}: Address already in use");
    let last = String::from_utf8_lossy(&output.stderr).lines().last().unwrap().to_owned();
    assert!(last.to_lowercase().starts_with(&expected.to_lowercase()), "{last}");
}

#[test]
fn an_address_that_others_reach_is_refused_unless_allowed() {
    let mut serve = Command::new(env!("CARGO_BIN_EXE_timeball"));
    let output = run(serve.args(["serve", "--interface", "lo", "--metrics", "0.0.0.0:9124"]));
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    let expected = "timeball: error: --metrics 0.0.0.0:9124: must be on loopback, like \"127.0.0.1:9124\", unless \
                    metrics.allow-remote = true\n";
    assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
}
