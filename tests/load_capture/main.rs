//! Does the load generator's histogram tell what really happened? A capture that shares no code with it watches the same
//! packets pass between client and server, and both have to agree.
//!
//! The link is cut in the middle by a bridge, because packets that XDP sends or takes are seen by no capture on the
//! generator's own interface. The server is stopped for a while during the run, so that there is something to measure:
//! a generator that waited for replies before it asked again would show one long delay instead of a hundred.

#![cfg(feature = "load")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

#[path = "../common/mod.rs"]
mod common;

use common::{Carrier, Daemon, Lab, can_have_labs, project, run_well};
use hdrhistogram::Histogram;
use serde::Deserialize;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use timeball::load::record::{Run, empty_histogram};

const RATE: u64 = 500;
const SECONDS: u64 = 2;
const STALL: Duration = Duration::from_millis(400);

/// What lies between the capture's two stamps and the generator's two times: the way to the bridge and back, and what
/// a busy machine puts between. The captured times are exact to a microsecond; this is the resolution of the place.
const PLACE_NANOSECONDS: u64 = 4_000_000;

/// A namespace with a bridge in the middle of a lab's link.
struct Middle(String);

impl Middle {
    fn new(lab: &Lab) -> Self {
        let namespace = |path: std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        let (server, client) = (namespace(lab.server_namespace()), namespace(lab.client_namespace()));
        let name = format!("{}m", &server[..server.len() - 1]);
        lab.server_ip("link del tb0");
        ip(&format!("netns add {name}"));
        let middle = Self(name);
        let name = &middle.0;
        ip(&format!("-n {name} link add bridge type bridge mcast_snooping 0"));
        for (side, end, last) in [(&server, "s", 1), (&client, "c", 2)] {
            ip(&format!("link add tb0 netns {side} type veth peer name {end} netns {name}"));
            ip(&format!("-n {side} addr add 10.99.1.{last}/24 dev tb0"));
            ip(&format!("-n {name} link set {end} master bridge"));
            // Live frames vanish at an end without NAPI.
            run_well(Command::new("ip").args(["netns", "exec", name, "ethtool", "-K", end, "gro", "on"]));
            ip(&format!("-n {name} link set {end} up"));
            ip(&format!("-n {side} link set tb0 up"));
        }
        ip(&format!("-n {name} link set bridge up"));
        middle
    }

    /// A capture that is watching.
    fn capture(&self) -> Child {
        let script = project("tests/load_capture/capture.py");
        let mut capture = Command::new("ip")
            .args(["netns", "exec", &self.0, "python3"])
            .arg(script)
            .arg("c")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        // One line and no more, so that nothing of what follows is lost in a buffer.
        let mut one = BufReader::with_capacity(1, capture.stdout.as_mut().unwrap());
        one.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        capture
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[track_caller]
fn ip(arguments: &str) {
    run_well(Command::new("ip").args(arguments.split_whitespace()));
}

#[derive(Deserialize)]
struct Captured {
    asked: u64,
    again: u64,
    /// Nanoseconds from request to reply, and T3 - T2 in units of 2^-32 s.
    answered: Vec<(u64, u64)>,
}

fn histogram(values: impl Iterator<Item = u64>) -> Histogram<u64> {
    let mut histogram = empty_histogram();
    values.for_each(|value| histogram.record(value).unwrap());
    histogram
}

/// A busy machine may take the CPU away between the capture's stamp and the generator's time, which is nobody's mistake. It
/// does not do so three times, and a generator that is wrong is wrong each time.
const ATTEMPTS: usize = 3;

fn agrees_with_a_capture(engine: &str) {
    if !can_have_labs() {
        return;
    }
    for attempt in 1..=ATTEMPTS {
        match capture_and_compare(engine) {
            Ok(()) => return,
            Err(difference) => eprintln!("attempt {attempt}: {difference}"),
        }
    }
    panic!("{engine}: the histograms differed {ATTEMPTS} times");
}

/// Panics where what may not differ does; an error says which percentile does, which time may excuse.
fn capture_and_compare(engine: &str) -> Result<(), String> {
    let lab = Lab::new(&[]);
    let middle = Middle::new(&lab);
    let daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    // Neighbours are known then, and the bridge has learned both sides.
    lab.answers_eventually("10.99.1.1");
    let mut capture = middle.capture();
    let mut load = lab.on_client(env!("CARGO_BIN_EXE_timeball"));
    load.args(["load", "--target", "10.99.1.1", "--interface", "tb0", "--engine", engine, "--json"]).args([
        "--rate",
        &RATE.to_string(),
        "--duration",
        &SECONDS.to_string(),
        "--clients",
        "100",
    ]);
    let load = load.stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(700));
    daemon.pause();
    std::thread::sleep(STALL);
    daemon.resume();
    let output = load.wait_with_output().unwrap();
    drop(capture.stdin.take());
    let mut text = String::new();
    capture.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    capture.wait().unwrap();
    let captured: Captured = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let run: Run = serde_json::from_slice(&output.stdout).unwrap();
    let step = &run.steps[0];

    assert_eq!((step.offered, captured.asked), (RATE * SECONDS, RATE * SECONDS), "every request passed");
    assert_eq!((step.answered, captured.answered.len() as u64), (RATE * SECONDS, RATE * SECONDS));
    assert_eq!((step.duplicates, captured.again), (0, 0));

    // T3 - T2 is in the packets: not one value may differ.
    let units = captured.answered.iter().map(|answer| answer.1);
    let turnaround = histogram(units.map(|units| ((u128::from(units) * 1_000_000_000) >> 32) as u64));
    assert_eq!(step.turnaround.histogram().unwrap(), turnaround);

    let seen = histogram(captured.answered.iter().map(|answer| answer.0));
    let measured = step.round_trip.histogram().unwrap();
    for percent in [1, 10, 25, 50, 75, 85, 90, 95, 99, 100] {
        let at = f64::from(percent) / 100.0;
        let (seen, measured) = (seen.value_at_quantile(at), measured.value_at_quantile(at));
        eprintln!("{engine}: {percent} %: {seen} ns by the capture, {measured} ns by the generator");
        // A thousandth is the histograms' own resolution.
        let tolerance = PLACE_NANOSECONDS + seen / 1000;
        if measured.abs_diff(seen) > tolerance {
            return Err(format!("{percent} %: {seen} ns seen, {measured} ns measured"));
        }
    }
    // A fifth of all requests fell into the stall, and their delays are spread evenly over it.
    let stalled = measured.count_between(STALL.as_nanos() as u64 / 10, measured.max());
    let expected = RATE * STALL.as_millis() as u64 / 1000 * 9 / 10;
    assert!(stalled.abs_diff(expected) <= expected / 5, "{stalled} long delays, not about {expected}");
    Ok(())
}

#[test]
fn the_kernel_engines_histogram_agrees_with_a_capture() {
    agrees_with_a_capture("live-frames");
}

#[test]
fn the_af_xdp_engines_histogram_agrees_with_a_capture() {
    agrees_with_a_capture("af-xdp");
}
