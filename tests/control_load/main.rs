//! Issue 4's limit for the control core: 1,000 configured sources, and 10,000 hostile packets a second to port 123 and to the
//! sockets that wait for answers. Each of them may cost 8 us of the control thread, polls that are due leave within 20 ms,
//! and clients of the workers notice nothing.
//!
//! As a test it runs an unoptimised daemon beside whatever else the machine does, and so has wider limits, named below.
//! `scripts/control-load` runs it on an optimised one, for longer, and with the limits themselves.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and a measurement is shown"
)]

#[path = "../common/mod.rs"]
mod common;
mod network;

use common::asker::{allow_any_source, as_client};
use common::peers::{Keys, in_time};
use common::{Carrier, Daemon, Lab, can_have_labs};
use network::{MUTE, Network, server};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const SOURCES: u32 = 1000;
const HOSTILE_PER_SECOND: u64 = 10_000;
/// What the clients ask in the meantime, of whom the workers are to take no less care.
const CLIENTS_PER_SECOND: u64 = 10_000;

/// What is allowed.
struct Limits {
    /// Seconds of one window; so many with and so many without the hostile, in turn.
    window: u64,
    pairs: usize,
    microseconds_per_packet: f64,
    /// The share of due polls that leave within the 15.6 ms of the histogram's bound below 20 ms.
    polls_in_time: f64,
    /// The workers' p99 with the hostile, in terms of that without: medians of the windows, each of 20,000 answers or more.
    /// On a shared machine two windows without differ by a factor of eight, because somebody else had the CPU in one of them,
    /// so there have to be many short ones. None where there is but one of each.
    worker_p99_ratio: Option<f64>,
}

/// As issue 4 has them.
const EXACT: Limits = Limits {
    window: 2,
    pairs: 60,
    microseconds_per_packet: 8.0,
    polls_in_time: 1.0,
    worker_p99_ratio: Some(1.1),
};

/// For a debug build beside other tests' leftovers on two cores: a fault of the order of what was found and mended, such as a
/// walk through all sources for each packet, still fails it.
const ROUGH: Limits = Limits {
    window: 16,
    pairs: 1,
    microseconds_per_packet: 40.0,
    polls_in_time: 0.97,
    worker_p99_ratio: None,
};

/// What one window came to.
#[derive(Clone, Debug)]
struct Window {
    seconds: f64,
    control_seconds: f64,
    worker_seconds: f64,
    /// Hostile packets that left, and that the control core was handed.
    sent: u64,
    received: u64,
    to_exchanges: u64,
    polls: u64,
    polls_in_time: u64,
    /// Of the polls, by bucket.
    lateness: Vec<u64>,
    worker_median_nanoseconds: f64,
    worker_p99_nanoseconds: f64,
    /// Requests of clients, and replies.
    asked: u64,
    answered: u64,
}

/// CPU time of a thread: the first number of its schedstat, in nanoseconds.
fn cpu_seconds(pid: u32, thread: &str) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let named = tasks.map(|task| task.unwrap().path()).filter(|task| {
        let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
        name.trim_end() == thread
    });
    let of = |task: std::path::PathBuf| {
        let schedstat = fs::read_to_string(task.join("schedstat")).unwrap();
        schedstat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
    };
    named.map(of).sum()
}

fn buckets(value: &Value) -> Vec<u64> {
    value["buckets"].as_array().unwrap().iter().map(|count| count.as_u64().unwrap()).collect()
}

fn difference(after: &[u64], before: &[u64]) -> Vec<u64> {
    after.iter().zip(before).map(|(after, before)| after - before).collect()
}

/// In nanoseconds, on a straight line through the bucket: as Prometheus reads such a histogram.
fn quantile(counts: &[u64], quantile: f64) -> f64 {
    let rank = counts.iter().sum::<u64>() as f64 * quantile;
    let (mut below, mut lower) = (0.0, 0.0);
    for (count, upper) in counts.iter().zip(bounds()) {
        let count = *count as f64;
        if count > 0.0 && below + count >= rank {
            return 1e9 * (lower + (upper - lower) * (rank - below) / count);
        }
        (below, lower) = (below + count, upper);
    }
    f64::INFINITY
}

/// The histograms' bounds, in seconds.
fn bounds() -> impl Iterator<Item = f64> {
    timeball::metrics::Histogram::bounds().map(|units| units as f64 / 2_f64.powi(32))
}

struct Bench<'a> {
    daemon: &'a Daemon,
    network: &'a Network,
}

impl Bench<'_> {
    /// Clients ask for so long; what happened meanwhile.
    fn window(&self, seconds: u64, is_hostile: bool) -> Window {
        let (pid, network) = (self.daemon.pid(), self.network);
        network.is_hostile.store(is_hostile, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(300));
        let read = || {
            let counts = [&network.sent, &network.to_exchanges, &network.asked, &network.answered];
            (
                self.daemon.status(),
                [cpu_seconds(pid, "timeball"), cpu_seconds(pid, "worker-0")],
                counts.map(|count| count.load(Ordering::Relaxed)),
                Instant::now(),
            )
        };
        let (before, cpu_before, sent_before, began) = read();
        std::thread::sleep(Duration::from_secs(seconds));
        let (after, cpu_after, sent_after, ended) = read();
        network.is_hostile.store(false, Ordering::Relaxed);
        let packets = |name: &str| {
            let count = |status: &Value| status["control"]["packets"][name].as_u64().unwrap();
            count(&after) - count(&before)
        };
        let lateness =
            difference(&buckets(&after["control"]["lateness"]), &buckets(&before["control"]["lateness"]));
        let served = |status: &Value| buckets(&status["workers"][0]["af_xdp"]["service_time"]);
        let served = difference(&served(&after), &served(&before));
        let in_time = lateness.iter().zip(bounds()).filter(|(_, bound)| *bound < 0.020);
        Window {
            seconds: (ended - began).as_secs_f64(),
            control_seconds: cpu_after[0] - cpu_before[0],
            worker_seconds: cpu_after[1] - cpu_before[1],
            sent: sent_after[0] - sent_before[0],
            to_exchanges: sent_after[1] - sent_before[1],
            received: packets("received"),
            polls: lateness.iter().sum(),
            polls_in_time: in_time.map(|(count, _)| count).sum(),
            worker_median_nanoseconds: quantile(&served, 0.5),
            worker_p99_nanoseconds: quantile(&served, 0.99),
            asked: sent_after[2] - sent_before[2],
            answered: sent_after[3] - sent_before[3],
            lateness,
        }
    }
}

fn configuration(keys: &Keys) -> String {
    let mut text = format!("workers = 1\n{}{}", Carrier::Driver.configuration(""), keys.lines());
    for number in 0..SOURCES {
        // Four times as often as usual, so that each window sees many polls. All of them at about the same time, as with any
        // daemon that was started not long ago.
        let (address, poll) = (server(number), if number < MUTE { 1 } else { 4 });
        writeln!(
            text,
            "[[server]]\naddress = \"{address}\"\niburst = true\nmin-poll = {poll}\nmax-poll = {poll}"
        )
        .unwrap();
    }
    text
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU of the control thread for each hostile packet that it was handed, in microseconds, over all windows.
fn microseconds_per_packet(quiet: &[Window], hostile: &[Window]) -> f64 {
    let per_second = |windows: &[Window]| {
        let seconds: f64 = windows.iter().map(|window| window.seconds).sum();
        let control: f64 = windows.iter().map(|window| window.control_seconds).sum();
        let received: u64 = windows.iter().map(|window| window.received).sum();
        (control / seconds, received as f64 / seconds)
    };
    let ((quiet_load, quiet_rate), (load, rate)) = (per_second(quiet), per_second(hostile));
    1e6 * (load - quiet_load) / (rate - quiet_rate)
}

fn run(limits: &Limits) {
    let (lab, keys, network) = (Lab::new(&[]), Keys::new(), Network::default());
    allow_any_source(&lab);
    std::thread::scope(|scope| {
        scope.spawn(|| as_client(&lab, || on_first_cpu(|| network.serve())));
        scope.spawn(|| as_client(&lab, || on_first_cpu(|| network.assail(HOSTILE_PER_SECOND, SOURCES))));
        scope.spawn(|| as_client(&lab, || on_first_cpu(|| network.ask(CLIENTS_PER_SECOND))));
        let over = Over(&network);
        let daemon = Daemon::start_with(&lab, &[], &[], &configuration(&keys));
        // Until the bursts of the beginning are over.
        in_time("the daemon follows most of them", || {
            let status = daemon.status();
            let used = status["synchronisation"]["used"].as_u64().unwrap();
            if used > 2 { Ok(()) } else { Err(status["clock"].to_string()) }
        });
        std::thread::sleep(Duration::from_secs(15));
        let bench = Bench { daemon: &daemon, network: &network };
        let (mut quiet, mut hostile) = (Vec::new(), Vec::new());
        for pair in 0..limits.pairs {
            // Now the one first, now the other: what drifts meanwhile is in both.
            for is_hostile in [pair % 2 == 1, pair % 2 == 0] {
                let windows = if is_hostile { &mut hostile } else { &mut quiet };
                windows.push(bench.window(limits.window, is_hostile));
            }
        }
        report(&quiet, &hostile);
        judge(limits, &daemon, &quiet, &hostile);
        drop(over);
    });
}

/// Ends the threads, also of a test that fails.
struct Over<'a>(&'a Network);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
        self.0.is_hostile.store(false, Ordering::Relaxed);
    }
}

fn on_first_cpu(what: impl FnOnce()) {
    core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
    what();
}

/// Medians, and what half of the windows lie between.
fn report(quiet: &[Window], hostile: &[Window]) {
    type Column = (&'static str, fn(&Window) -> f64);
    let columns: [Column; 12] = [
        ("control CPU, %", |window| 100.0 * window.control_seconds / window.seconds),
        ("worker's CPU, %", |window| 100.0 * window.worker_seconds / window.seconds),
        ("hostile packets/s", |window| window.sent as f64 / window.seconds),
        ("  at exchanges", |window| window.to_exchanges as f64 / window.seconds),
        ("  handed to control", |window| window.received as f64 / window.seconds),
        ("polls", |window| window.polls as f64),
        ("  later than 16 ms", |window| (window.polls - window.polls_in_time) as f64),
        ("  p99 late, ms", |window| quantile(&window.lateness, 0.99) / 1e6),
        ("workers' median, us", |window| window.worker_median_nanoseconds / 1e3),
        ("workers' p99, us", |window| window.worker_p99_nanoseconds / 1e3),
        ("requests/s", |window| window.asked as f64 / window.seconds),
        ("replies/s", |window| window.answered as f64 / window.seconds),
    ];
    println!("  {} windows each: medians (quartiles)", quiet.len());
    println!("  {:22} {:>32} {:>32}", "", "without", "hostile");
    for (name, column) in columns {
        let told = [quiet, hostile].map(|windows| {
            let mut values: Vec<f64> = windows.iter().map(column).collect();
            values.sort_by(f64::total_cmp);
            let at = |quarter: usize| values[(values.len() * quarter / 4).min(values.len() - 1)];
            format!("{:.2} ({:.2} to {:.2})", at(2), at(1), at(3))
        });
        println!("  {name:22} {:>32} {:>32}", told[0], told[1]);
    }
    println!("  {:.2} us of control CPU for each hostile packet", microseconds_per_packet(quiet, hostile));
}

fn judge(limits: &Limits, daemon: &Daemon, quiet: &[Window], hostile: &[Window]) {
    for window in hostile {
        let (sent, handed) = (window.sent as f64 / window.seconds, window.received as f64 / window.seconds);
        assert!(sent > 0.9 * HOSTILE_PER_SECOND as f64, "{sent} hostile packets a second left");
        assert!(handed > 0.8 * sent, "the control core was handed {handed} of {sent} a second");
        assert!(window.to_exchanges > window.sent / 20, "{window:?}");
    }
    let per_packet = microseconds_per_packet(quiet, hostile);
    let most = limits.microseconds_per_packet;
    assert!(per_packet <= most, "{per_packet:.2} us of control CPU a packet, {most} us at most");
    let polls: u64 = hostile.iter().map(|window| window.polls).sum();
    let in_time: u64 = hostile.iter().map(|window| window.polls_in_time).sum();
    let share = in_time as f64 / polls as f64;
    assert!(polls > 30 * limits.window * limits.pairs as u64, "{polls} polls");
    assert!(share >= limits.polls_in_time, "{in_time} of {polls} polls left within 16 ms");
    let p99 =
        |windows: &[Window]| median(windows.iter().map(|window| window.worker_p99_nanoseconds).collect());
    let ratio = p99(hostile) / p99(quiet);
    println!("  the workers' p99 is {ratio:.2} times that without the hostile");
    assert!(
        limits.worker_p99_ratio.is_none_or(|most| ratio <= most),
        "the workers' p99 is {ratio:.2} times that without the hostile"
    );
    // None of it was believed, and none of it did harm.
    let status = daemon.status();
    assert_eq!((&status["clock"]["source"], &status["clock"]["stratum"]), (&"sources".into(), &3.into()));
    let sources = daemon.sources();
    let rows = sources["sources"].as_array().unwrap();
    assert_eq!(rows.len(), SOURCES as usize);
    let used = rows.iter().filter(|row| row["reach"] != 0).count();
    assert_eq!(used, (SOURCES - MUTE) as usize, "sources are reachable");
    assert!(!daemon.log().contains("DENY"), "nobody was believed to refuse us");
}

#[test]
fn strangers_cost_the_control_core_little() {
    if !can_have_labs() {
        return;
    }
    let is_exact = std::env::var_os("TIMEBALL_LIMITS").is_some_and(|limits| limits == "exact");
    run(if is_exact { &EXACT } else { &ROUGH });
}
