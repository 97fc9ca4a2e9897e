//! The daemon steers a clock: one of its own (`tests/shim/own-clock.c`), by a chronyd that has the machine's. The machine's is
//! out of its reach, and what cannot be steered is only measured, and said.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::peers::{Kind, Peer, THEIRS, in_time, lab};
use common::{Daemon, Lab, can_have_labs, eventually, project, run_well};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// A clock of the daemon's own, and what was done to it.
struct Clock {
    folder: TempDir,
    environment: [String; 2],
}

impl Clock {
    fn new(ahead: f64, fast_ppm: f64) -> Self {
        let folder = TempDir::new().unwrap();
        let (shim, log) = (folder.path().join("own-clock.so"), folder.path().join("log"));
        let source = project("tests/shim/own-clock.c");
        run_well(
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-pthread", "-o"]).arg(&shim).arg(source),
        );
        let preload = format!("LD_PRELOAD={}", shim.display());
        let clock = format!("TIMEBALL_TEST_CLOCK={ahead} {fast_ppm} {}", log.display());
        Self { folder, environment: [preload, clock] }
    }

    fn drift_file(&self) -> PathBuf {
        self.folder.path().join("drift")
    }

    fn daemon(&self, lab: &Lab, clock_lines: &str) -> Daemon {
        let configuration = format!(
            "datapath = \"socket\"\n[clock]\ndrift-file = \"{}\"\n{clock_lines}\n\
             [[server]]\naddress = \"{}\"\niburst = true\nmin-poll = 1\nmax-poll = 1\n",
            self.drift_file().display(),
            THEIRS[0]
        );
        let environment: Vec<&str> = self.environment.iter().map(String::as_str).collect();
        Daemon::start_steering(lab, &environment, &[], &configuration)
    }

    /// What was done, by this name, with its first number.
    fn deeds(&self, name: &str) -> Vec<String> {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let rest = log.lines().filter_map(|line| line.strip_prefix(name));
        rest.map(|rest| rest.trim().to_owned()).collect()
    }

    fn steps(&self) -> Vec<f64> {
        self.deeds("step").iter().map(|step| step.parse().unwrap()).collect()
    }
}

#[test]
fn a_wrong_clock_is_stepped_once_and_steered_and_its_drift_remembered() {
    if !can_have_labs() {
        return;
    }
    let (lab, clock) = (lab(), Clock::new(-3.25, 60.0));
    let Some(_server) = Peer::start(&lab, Kind::Chronyd, Kind::Chronyd.local()) else { return };
    let daemon = clock.daemon(&lab, "");
    in_time("the clock is right", || {
        let report = daemon.sources();
        let row = &report["sources"][0];
        let frequency = report["synchronisation"]["frequency_ppm"].as_f64().unwrap();
        let is_right = row["sign"] == "*"
            && row["measured_offset_seconds"].as_f64().is_some_and(|offset| offset.abs() < 1e-3);
        if is_right && (frequency + 60.0).abs() < 20.0 { Ok(()) } else { Err(report.to_string()) }
    });
    let steps = clock.steps();
    assert!(steps.len() == 1 && (steps[0] - 3.25).abs() < 0.1, "{steps:?}");
    assert!(daemon.log().contains("the clock was stepped by +3.2"), "{}", daemon.log());
    assert_eq!(daemon.status()["clock"]["stratum"], 4);
    // Other programs are told: not STA_UNSYNC, and how wrong it may be.
    eventually("the kernel is told", || {
        clock.deeds("status").last().is_some_and(|told| told.starts_with("0 ")).then_some(())
    });
    let (_, log) = daemon.terminate();
    let drift = fs::read_to_string(clock.drift_file()).unwrap_or_else(|error| panic!("{error}:\n{log}"));
    let drift: f64 = drift.split_whitespace().next().unwrap().parse().unwrap();
    assert!((drift + 60.0).abs() < 25.0, "{drift}");
    let last: f64 = clock.deeds("frequency").last().unwrap().parse().unwrap();
    assert!((last - drift).abs() < 0.01, "no slew is left: {last} and {drift}");

    // The next one begins with it.
    let next = Clock { folder: clock.folder, environment: clock.environment };
    fs::write(next.folder.path().join("log"), "").unwrap();
    let daemon = next.daemon(&lab, "");
    eventually("the frequency is set at once", || {
        let first: f64 = next.deeds("frequency").get(1)?.parse().ok()?;
        assert!((first - drift).abs() < 0.01, "{first}");
        Some(())
    });
    assert!(daemon.log().contains("drift file read"), "{}", daemon.log());
}

/// Answers at the client's address as a server of stratum 1 whose clock is so many seconds ahead of the machine's, and which
/// announces a leap second.
struct Announcer(Child);

impl Announcer {
    fn start(lab: &Lab, ahead: f64) -> Self {
        let code = format!(
            "\
import socket, struct, time
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(('10.99.1.2', 123))
now = lambda: int((time.time() + {ahead} + 2208988800) * 2**32)
while True:
    request, client = server.recvfrom(100)
    came = now()
    server.sendto(struct.pack('!BBbbII4sQ8sQQ', 0x64, 1, 1, -20, 0, 0, b'TEST', came, request[40:48], came, now()), client)"
        );
        let child = lab.on_client("python3").args(["-c", &code]).stdin(Stdio::null()).spawn().unwrap();
        Self(child)
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// RFC 5905 section 7.3: a leap second comes at the end of the month, though it is announced before. The kernel inserts it at
/// the end of the day on which it is told.
#[test]
fn the_kernel_is_told_of_a_leap_second_on_the_last_day_of_the_month() {
    if !can_have_labs() {
        return;
    }
    // Noon of 2030-12-30 and of the day after. (Both clocks are there, so that nothing is stepped.)
    for (noon, told) in [(1_924_862_400.0_f64, "0 "), (1_924_948_800.0, "0x10 ")] {
        let machine = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let ahead = (noon - machine).round();
        let (lab, clock) = (lab(), Clock::new(ahead, 0.0));
        let _server = Announcer::start(&lab, ahead);
        let daemon = clock.daemon(&lab, "");
        in_time("the leap second is announced", || {
            let clock = &daemon.status()["clock"];
            if clock["leap"] == "insert" { Ok(()) } else { Err(clock.to_string()) }
        });
        eventually("the kernel is told of the clock", || {
            clock.deeds("status").last().is_some_and(|deed| deed.starts_with(told)).then_some(())
        });
        assert_eq!(clock.steps(), Vec::<f64>::new());
    }
}

#[test]
fn beyond_the_panic_threshold_nothing_is_done_unless_allowed_at_the_start() {
    if !can_have_labs() {
        return;
    }
    let lab = lab();
    let Some(_server) = Peer::start(&lab, Kind::Chronyd, Kind::Chronyd.local()) else { return };
    let limited = Clock::new(2000.0, 0.0);
    let daemon = limited.daemon(&lab, "");
    in_time("it panics", || {
        if daemon.log().contains("beyond the panic limit") { Ok(()) } else { Err(daemon.log()) }
    });
    let clock = &daemon.status()["clock"];
    assert_eq!((limited.steps(), clock["stratum"].as_u64()), (vec![], Some(16)));
    assert!(clock["problem"].as_str().unwrap().contains("too far off to be served"), "{clock}");
    let shown = daemon.sources_text();
    assert!(shown.contains("not synchronised: by 10.99.1.2:123, which is selected"), "{shown}");
    drop(daemon);
    let allowed = Clock::new(2000.0, 0.0);
    let daemon = allowed.daemon(&lab, "first-step = \"any-size\"");
    in_time("it is set", || {
        let status = daemon.status();
        if status["clock"]["stratum"] == 4 { Ok(()) } else { Err(status["clock"].to_string()) }
    });
    let steps = allowed.steps();
    assert!(steps.len() == 1 && (steps[0] + 2000.0).abs() < 0.1, "{steps:?}");
}

#[test]
fn a_clock_that_cannot_be_set_is_measured_and_served_and_that_is_said_once() {
    if !can_have_labs() {
        return;
    }
    let lab = lab();
    let Some(_server) = Peer::start(&lab, Kind::Chronyd, Kind::Chronyd.local()) else { return };
    let daemon = Daemon::start_steering(&lab, &[], &["--upstream", THEIRS[0]], "datapath = \"socket\"");
    in_time("it is served", || {
        let status = daemon.status();
        if status["clock"]["stratum"] == 4 { Ok(()) } else { Err(status["clock"].to_string()) }
    });
    assert_eq!(daemon.sources()["synchronisation"]["steering"], false);
    assert_eq!(daemon.log().matches("the clock cannot be set").count(), 1, "{}", daemon.log());
}

/// Names that lead nowhere, addresses without a route: a line each, and the daemon goes on.
#[test]
fn sources_that_cannot_be_had_are_named_once_and_stop_nothing() {
    if !can_have_labs() {
        return;
    }
    let lab = lab();
    let flags = ["--upstream", "no.such.invalid", "--upstream", "192.0.2.1", "--upstream", THEIRS[0]];
    let daemon = Daemon::start_with(&lab, &[], &flags, "datapath = \"socket\"");
    let count = |words: &str| daemon.log().lines().filter(|line| line.contains(words)).count();
    eventually("both are named", || {
        (count("no.such.invalid") > 0 && count("to=192.0.2.1:123") > 0).then_some(())
    });
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!((count("no.such.invalid"), count("to=192.0.2.1:123")), (1, 1), "{}", daemon.log());
    let report = daemon.sources();
    let rows = report["sources"].as_array().unwrap();
    let states: Vec<&str> = rows.iter().map(|row| row["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["unresolved", "unreachable", "unreachable"], "{report}");
    let clock = &daemon.status()["clock"];
    assert!(
        clock["stratum"] == 16 && clock["problem"].as_str().unwrap().contains("timeball sources"),
        "{clock}"
    );
    assert_eq!(count("no time reference"), 0, "{}", daemon.log());
}
