//! `timeball load` and `timeball report` as their users meet them: what they refuse, in which words and with which exit
//! code, and what they make of stored runs. What an engine measures is tested with the engines.

#![cfg(feature = "load")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{Lab, can_have_labs, run, text};
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

fn timeball(arguments: &[&str]) -> Output {
    run(Command::new(env!("CARGO_BIN_EXE_timeball")).args(arguments))
}

/// The exit code is `code`, and standard error, with nothing on standard output, has all of `parts`.
#[track_caller]
fn says(output: &Output, code: i32, parts: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{}", text(output));
    let stderr = String::from_utf8_lossy(&output.stderr);
    for part in parts {
        assert!(stderr.contains(part), "standard error does not have {part:?}: {stderr}");
    }
    assert_eq!(output.stdout.len(), 0, "{}", text(output));
    assert!(!stderr.contains("panicked"), "{stderr}");
}

fn load(flags: &str) -> Output {
    let flags: Vec<&str> = flags.split_whitespace().collect();
    timeball(&[&["load", "--interface", "tb0"], &flags[..]].concat())
}

#[test]
fn wrong_flags_are_the_users_error_and_named_with_value_and_range() {
    let cases: [(&str, &[&str]); 9] = [
        ("--target 10.99.1.1 --rate 0", &["--rate", "'0'", "1 to 100M"]),
        ("--target 10.99.1.1 --sweep 5k:1k", &["--sweep", "'5k:1k'", "the lower first"]),
        ("--target 10.99.1.1 --duration 2h", &["--duration", "'2h'", "100ms to 1h"]),
        ("--target 10.99.1.1 --timeout 11", &["--timeout", "'11'", "1ms to 10s"]),
        ("--target 10.99.1.1 --clients 70k", &["--clients 70000", "1 to 64512", "--sources"]),
        ("--target 10.99.1.1 --rate 10M --duration 10min", &["--duration 600 s", "at most 429 s", "2^32"]),
        ("--target 10.99.1.1 --sources fd99::/64", &["--sources fd99::/64", "same family"]),
        ("--target 10.99.1.1 --mode interleaved", &["--mode interleaved", "must be basic"]),
        ("--target ntp.example.org", &["--target", "must be an address"]),
    ];
    for (flags, parts) in cases {
        says(&load(flags), 2, parts);
    }
    says(&timeball(&["load", "--target", "10.99.1.1"]), 2, &["--interface"]);
}

#[test]
fn it_is_a_load_test_and_not_a_weapon() {
    for target in ["8.8.8.8", "192.0.2.1", "2001:db8::1", "100.128.0.1", "172.32.0.1", "64:ff9b::808:808"] {
        says(&load(&format!("--target {target}")), 2, &["--target", target, "--target-is-mine"]);
    }
    for target in ["224.0.1.1", "255.255.255.255", "0.0.0.0", "::", "ff02::101", "::ffff:8.8.8.8"] {
        says(
            &load(&format!("--target {target} --target-is-mine")),
            2,
            &["--target", target, "single machine"],
        );
    }
    says(&load("--target 10.99.1.1 --sources 8.8.8.0/24"), 2, &["--sources 8.8.8.0/24", "--target-is-mine"]);
    says(&load("--target 10.99.1.1 --sources 0.0.0.0/0 --target-is-mine"), 2, &["--sources 0.0.0.0/0"]);
    for sources in ["127.0.0.0/8", "126.0.0.0/7"] {
        let flags = format!("--target 10.99.1.1 --sources {sources} --target-is-mine");
        says(&load(&flags), 2, &[&format!("--sources {sources}: must not have loopback"), "10.0.0.0/8"]);
    }
    says(&load("--target 10.99.1.1 --sources 10.99.0.0/16"), 2, &["--sources 10.99.0.0/16", "10.99.1.1"]);
}

#[test]
fn files_that_cannot_be_written_or_read_are_found_before_the_run() {
    let folder = TempDir::new().unwrap();
    let absent = folder.path().join("absent/file");
    let absent = absent.to_str().unwrap();
    says(&load(&format!("--target 10.99.1.1 --hdr {absent}")), 2, &["--hdr", absent]);
    says(&load(&format!("--target 10.99.1.1 --report {absent}")), 2, &["--report", absent]);
    let page = folder.path().join("page.html");
    let page = page.to_str().unwrap();
    says(&load(&format!("--target 10.99.1.1 --report {page} --compare {absent}")), 2, &[absent]);
    // tb0 does not exist here (or we may not use it), so nothing is measured; nothing is left behind either.
    let output = load(&format!("--target 10.99.1.1 --report {page}"));
    assert!(!output.status.success(), "{}", text(&output));
    assert!(!Path::new(page).exists());
    // A link to where nothing is yet is not ours to remove.
    let link = folder.path().join("link.html");
    std::os::unix::fs::symlink("nothing.html", &link).unwrap();
    let output = load(&format!("--target 10.99.1.1 --report {}", link.display()));
    assert!(!output.status.success(), "{}", text(&output));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(!link.exists());
    // Nor is there to be any waiting for somebody to read a pipe.
    let pipe = folder.path().join("pipe");
    assert!(run(Command::new("mkfifo").arg(&pipe)).status.success());
    let pipe = pipe.to_str().unwrap();
    let load = format!("exec timeout 5 {} load --interface tb0", env!("CARGO_BIN_EXE_timeball"));
    let line = format!("{load} --target 10.99.1.1 --hdr {pipe}");
    says(
        &run(Command::new("sh").args(["-c", &line])),
        2,
        &["--hdr", pipe, "must be a file that can be written"],
    );
    // One that has a reader will do.
    let line = format!("exec 3<>{pipe}; {load} --target 10.99.1.1 --hdr {pipe}");
    let output = run(Command::new("bash").args(["-c", &line]));
    assert!(text(&output).contains("--interface tb0: must be"), "{}", text(&output));
}

/// A run as this version writes it, with one empty step.
fn stored(label: &str) -> String {
    let latencies = r#"{"count": 0, "min": 0, "mean": 0.0, "p50": 0, "p90": 0, "p99": 0, "p99_9": 0, "p99_99": 0,
        "max": 0, "histogram": ""}"#;
    format!(
        r#"{{"format": 1, "label": "{label}", "version": "0.1.0", "started": "2026-01-01T00:00:00Z",
        "target": "10.99.1.1:123", "interface": "tb0", "mode": "basic", "clients": 10, "sources": "10.99.1.2/32",
        "engine": "af-xdp", "engine_reason": "a test", "machine": {{"processor": "x", "cpus": 2, "kernel": "6.18"}},
        "steps": [{{"intended_per_second": 100.0, "duration_seconds": 1.0, "offered": 100, "offered_per_second": 100.0,
        "send_failures": 0, "answered": 0, "answered_per_second": 0.0, "kisses": {{}}, "late": 0, "lost": 100,
        "duplicates": 0, "invalid": {{}}, "unfinished_checksums": 0, "round_trip": {latencies},
        "turnaround": {latencies}, "send_delay": {latencies}}}]}}"#
    )
}

#[test]
fn stored_runs_become_one_page() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (one, two, page) = (path("one.json"), path("two.json"), path("page.html"));
    fs::write(&one, stored("before & after")).unwrap();
    fs::write(&two, stored("chronyd")).unwrap();
    let output = timeball(&["report", &one, &two, "--output", &page]);
    assert!(output.status.success() && text(&output).contains(&page), "{}", text(&output));
    let page = fs::read_to_string(&page).unwrap();
    assert!(page.contains("before &amp; after") && page.contains("chronyd"), "{page}");
}

#[test]
fn other_formats_and_other_files_are_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (one, newer, page) = (path("one.json"), path("newer.json"), path("page.html"));
    fs::write(&one, stored("one")).unwrap();
    fs::write(&newer, stored("two").replace("\"format\": 1", "\"format\": 2")).unwrap();
    says(&timeball(&["report", &one, &newer, "--output", &page]), 2, &[&newer, "format 2", "must be 1"]);
    fs::write(&newer, "<html>").unwrap();
    says(&timeball(&["report", &newer, "--output", &page]), 2, &[&newer, "not the record of a run"]);
    says(&timeball(&["report", &one, "--output", folder.path().to_str().unwrap()]), 2, &["--output"]);
    assert!(!Path::new(&page).exists());
}

#[test]
fn no_file_is_written_that_is_read_or_written_already() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (one, linked, pointer) = (path("one.json"), path("linked.json"), path("pointer.json"));
    fs::write(&one, stored("one")).unwrap();
    fs::hard_link(&one, &linked).unwrap();
    std::os::unix::fs::symlink(&one, &pointer).unwrap();
    for output in [&one, &linked, &pointer] {
        says(
            &timeball(&["report", &one, "--output", output]),
            2,
            &["--output", output, "another file than", &one],
        );
        assert_eq!(fs::read_to_string(&one).unwrap(), stored("one"), "{output}");
    }
    // The same record twice is odd, but harms nobody.
    assert!(timeball(&["report", &one, &linked, "--output", &path("page.html")]).status.success());

    let both = path("both");
    let flags = format!("--target 10.99.1.1 --hdr {both} --report {both}");
    says(&load(&flags), 2, &["--report", "another file than --hdr", &both]);
    assert!(!Path::new(&both).exists());
    let flags = format!("--target 10.99.1.1 --report {linked} --compare {one}");
    says(&load(&flags), 2, &["--report", &linked, "another file than", &one]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_timeball"));
    command.args(["load", "--interface", "tb0", "--target", "10.99.1.1", "--json", "--report", &both]);
    let output = command.stdin(Stdio::null()).stdout(fs::File::create(&both).unwrap()).stderr(Stdio::piped());
    let output = output.spawn().unwrap().wait_with_output().unwrap();
    says(&output, 2, &["--report", &both, "another file than standard output"]);
}

#[test]
fn records_are_files_or_pipes_of_bounded_length() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (one, page, huge) = (path("one.json"), path("page.html"), path("huge.json"));
    for device in ["/dev/zero", "/dev/null", folder.path().to_str().unwrap()] {
        says(&timeball(&["report", device, "--output", &page]), 2, &[device, "must be a file or a pipe"]);
    }
    fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    says(&timeball(&["report", &huge, "--output", &page]), 2, &[&huge, "at most 64 MiB"]);
    fs::write(&huge, [0xff]).unwrap();
    says(&timeball(&["report", &huge, "--output", &page]), 2, &[&huge, "must be text"]);
    assert!(!Path::new(&page).exists());

    fs::write(&one, stored("by a pipe")).unwrap();
    let piped = |source: &str| {
        let line = format!("{} report <({source}) --output {page}", env!("CARGO_BIN_EXE_timeball"));
        run(Command::new("bash").args(["-c", &line]))
    };
    assert!(piped(&format!("cat {one}")).status.success());
    assert!(fs::read_to_string(&page).unwrap().contains("by a pipe"));
    says(&piped("cat /dev/zero"), 2, &["/dev/fd/", "at most 64 MiB"]);
}

#[test]
fn a_hostile_histogram_is_refused_by_name_and_takes_no_memory() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (hostile, page) = (path("hostile.json"), path("page.html"));
    // An undeflated histogram of our range that says that 4 GiB of counts follow.
    let histogram = "HISTE/////8AAAAAAAAAAwAAAAAAAAABAAAADfhHWAA/8AAAAAAAAA==";
    fs::write(
        &hostile,
        stored("x").replacen("\"histogram\": \"\"", &format!("\"histogram\": \"{histogram}\""), 1),
    )
    .unwrap();
    // A gigabyte of address space is plenty for everything else.
    let line = format!(
        "ulimit -v 1048576; exec {} report {hostile} --output {page}",
        env!("CARGO_BIN_EXE_timeball")
    );
    let output = run(Command::new("bash").args(["-c", &line]));
    says(&output, 2, &[&hostile, "step 1, round-trip: must be a histogram"]);
}

#[test]
fn the_way_to_the_target_is_found_or_its_lack_explained() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let ask = |arguments: &str| {
        let mut command = lab.on_client(env!("CARGO_BIN_EXE_timeball"));
        run(command.args(["load", "--duration", "0.2", "--rate", "500"]).args(arguments.split_whitespace()))
    };
    says(&ask("--target 10.99.1.1 --interface lo"), 2, &["--interface lo", "Ethernet"]);
    says(&ask("--target 10.99.1.1 --interface nosuch0"), 2, &["--interface nosuch0", "tb0"]);
    let mut nowhere = Command::new("unshare");
    nowhere.args([
        "--net",
        env!("CARGO_BIN_EXE_timeball"),
        "load",
        "--target",
        "10.99.1.1",
        "--interface",
        "tb0",
    ]);
    says(&run(&mut nowhere), 2, &["--interface tb0", "which has none"]);
    says(&ask("--target 10.99.1.2 --interface tb0"), 2, &["--target 10.99.1.2", "this machine"]);
    says(&ask("--target 10.99.1.255 --interface tb0 --target-is-mine"), 2, &["--target 10.99.1.255"]);
    says(&ask("--target 10.99.1.77 --interface tb0"), 1, &["10.99.1.77 does not answer on tb0"]);
    says(&ask("--target fd99:1::77 --interface tb0"), 1, &["fd99:1::77 does not answer on tb0"]);
    let mut command = lab.on_client("setpriv");
    command.args(["--bounding-set", "-all", "--inh-caps", "-all", "--", env!("CARGO_BIN_EXE_timeball")]);
    let output = run(command.args(["load", "--target", "10.99.1.1", "--interface", "tb0"]));
    says(&output, 1, &["CAP_NET_ADMIN"]);
}

/// Needs no particular engine: whichever is chosen on a veth has to send, wait in vain, and say so.
#[test]
fn silence_is_a_failure_with_a_hint_and_still_a_record() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    for target in common::SERVER {
        let mut command = lab.on_client(env!("CARGO_BIN_EXE_timeball"));
        command.args(["load", "--target", target, "--interface", "tb0", "--json"]);
        let output = run(command.args(["--duration", "0.5", "--rate", "1k", "--timeout", "100ms"]));
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("no reply came") && stderr.contains("timeball: engine "), "{stderr}");
        let record: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let step = &record["steps"][0];
        assert_eq!((&step["answered"], &step["lost"]), (&0.into(), &step["offered"]), "{step}");
        assert!(step["offered"].as_u64().unwrap() > 400, "{step}");
    }
}

/// `timeball load` on the lab's client, running.
fn start_load(lab: &Lab, flags: &str) -> std::process::Child {
    let mut command = lab.on_client(env!("CARGO_BIN_EXE_timeball"));
    command
        .args(["load", "--target", common::SERVER[0], "--interface", "tb0"])
        .args(flags.split_whitespace());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn interrupt(child: &std::process::Child) {
    signal(child, "INT");
}

fn signal(child: &std::process::Child, name: &str) {
    run(Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]));
}

fn record_of(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(output)))
}

/// Ctrl-C ends the sending, not the report, and what is on its way is waited for.
#[test]
fn an_interrupted_run_shows_what_it_measured() {
    if !can_have_labs() {
        return;
    }
    for engine in ["live-frames", "af-xdp"] {
        let lab = Lab::new(&[]);
        let daemon = common::Daemon::start(&lab, &common::Carrier::Driver.configuration(""));
        let folder = TempDir::new().unwrap();
        let page = folder.path().join("page.html");
        let flags = format!(
            "--engine {engine} --sweep 500:1k:3 --json --duration 60 --timeout 3 --report {}",
            page.display()
        );
        let child = start_load(&lab, &flags);
        std::thread::sleep(Duration::from_secs(3));
        // Half a second of requests is open when the signal comes.
        daemon.pause();
        std::thread::sleep(Duration::from_millis(500));
        interrupt(&child);
        std::thread::sleep(Duration::from_millis(500));
        daemon.resume();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert!(text(&output).contains("interrupted: sends no more"), "{}", text(&output));
        let record = record_of(&output);
        assert_eq!(record["interrupted"], true, "{engine}");
        let steps = record["steps"].as_array().unwrap();
        let seconds = steps[0]["duration_seconds"].as_f64().unwrap();
        assert!(steps.len() == 1 && (0.1..30.0).contains(&seconds), "{} steps, {seconds} s", steps.len());
        let step = &steps[0];
        assert!(step["answered"].as_u64().unwrap() > 500, "{engine}: {step}");
        // veth's ring has 256 entries; what came beyond while the server slept is lost rightly.
        assert_eq!(step["in_flight"], 0, "{engine}");
        assert!(step["round_trip"]["max"].as_u64().unwrap() > 400_000_000, "{engine}: {step}");
        assert!(fs::read_to_string(&page).unwrap().contains("interrupted"), "{engine}");
    }
}

/// The second Ctrl-C ends it at once, and what is open then is no loss.
#[test]
fn a_second_interruption_waits_for_nothing() {
    if !can_have_labs() {
        return;
    }
    for engine in ["live-frames", "af-xdp"] {
        let lab = Lab::new(&[]);
        let daemon = common::Daemon::start(&lab, &common::Carrier::Driver.configuration(""));
        let child = start_load(&lab, &format!("--engine {engine} --rate 100 --duration 60 --timeout 10"));
        std::thread::sleep(Duration::from_secs(3));
        daemon.pause();
        std::thread::sleep(Duration::from_secs(1));
        interrupt(&child);
        std::thread::sleep(Duration::from_millis(500));
        let second = std::time::Instant::now();
        interrupt(&child);
        let output = child.wait_with_output().unwrap();
        assert!(second.elapsed() < Duration::from_secs(2), "{engine}: {:?}", second.elapsed());
        daemon.resume();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(table.contains("\ninterrupted: the run was ended before its time"), "{engine}: {table}");
        assert!(table.contains("requests that were open when the step was ended"), "{engine}: {table}");
        let line = table.lines().find(|line| line.trim_start().starts_with("100 ")).unwrap();
        assert!(line.contains(" 0.00 "), "nothing is lost: {engine}: {table}");
    }
}

/// Until then it may have waited for a neighbour, or for its link.
#[test]
fn an_interruption_before_the_first_request_leaves_nothing_behind() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut command = lab.on_client(env!("CARGO_BIN_EXE_timeball"));
    command.args(["load", "--target", "10.99.1.77", "--interface", "tb0"]);
    command.arg("--hdr").arg(path("run.hdr")).arg("--report").arg(path("run.html"));
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Two and a half seconds pass until it knows that nobody is there.
    std::thread::sleep(Duration::from_secs(1));
    assert!(path("run.html").exists());
    let since = std::time::Instant::now();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    says(&output, 1, &["interrupted before the first request"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Once there is nothing left to put back, a signal ends it as it ends any program.
#[test]
fn output_that_nobody_reads_can_be_interrupted() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let _daemon = common::Daemon::start(&lab, &common::Carrier::Driver.configuration(""));
    let folder = TempDir::new().unwrap();
    let page = folder.path().join("page.html");
    let (_reader, mut writer) = std::io::pipe().unwrap();
    // What a pipe holds.
    writer.write_all(&[b'x'; 65536]).unwrap();
    let mut command = lab.on_client(env!("CARGO_BIN_EXE_timeball"));
    command.args([
        "load",
        "--target",
        "10.99.1.1",
        "--interface",
        "tb0",
        "--duration",
        "0.2",
        "--timeout",
        "0.1",
    ]);
    command.arg("--report").arg(&page).stdin(Stdio::null()).stdout(writer).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    // The file is written although standard output is stuck.
    let is_written = || fs::read_to_string(&page).is_ok_and(|page| page.ends_with("</html>\n"));
    let ended = |child: &mut std::process::Child, milliseconds: u64| {
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.try_wait().unwrap()
    };
    for _ in 0..100 {
        if is_written() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(ended(&mut child, 500), None, "it waits for its reader");
    // Not INT, which is ignored by whatever a shell has started in the background.
    signal(&child, "TERM");
    let status = ended(&mut child, 1000);
    let _ = child.kill();
    assert_eq!(status.map(|status| status.signal()), Some(Some(15)), "it cannot be interrupted");
    assert!(is_written());
}

/// Millions of requests are open then, and none of them is worth a second.
#[test]
fn a_flood_ends_when_it_is_interrupted() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = common::Daemon::start(&lab, &common::Carrier::Driver.configuration(""));
    daemon.pause();
    for (timeout, signals) in [("1", 1), ("10", 2)] {
        let child =
            start_load(&lab, &format!("--engine live-frames --saturate --duration 60 --timeout {timeout}"));
        std::thread::sleep(Duration::from_secs(4));
        let mut last = std::time::Instant::now();
        for _ in 0..signals {
            last = std::time::Instant::now();
            interrupt(&child);
            std::thread::sleep(Duration::from_millis(300));
        }
        let output = child.wait_with_output().unwrap();
        let took = last.elapsed();
        let waits = Duration::from_secs(if signals == 1 { 1 } else { 0 });
        assert!(took < waits + Duration::from_millis(1500), "{signals} signals: {took:?}");
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(table.contains("\ninterrupted: "), "{table}");
    }
    daemon.resume();
}

#[test]
fn a_link_that_goes_away_fails_the_run_and_keeps_what_was_measured() {
    if !can_have_labs() {
        return;
    }
    for engine in ["live-frames", "af-xdp"] {
        let lab = Lab::new(&[]);
        let _daemon = common::Daemon::start(&lab, &common::Carrier::Driver.configuration(""));
        let child = start_load(&lab, &format!("--engine {engine} --sweep 500:1k:2 --duration 30 --json"));
        std::thread::sleep(Duration::from_secs(3));
        lab.break_link(common::Break::TheirsDown);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let record = record_of(&output);
        let failure = record["failure"].as_str().unwrap();
        assert!(failure.starts_with("step 1 of 2: tb0 has no link"), "{engine}: {failure}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(&format!("timeball: error: {failure}")), "{engine}: {stderr}");
        let step = &record["steps"][0];
        assert!(step["answered"].as_u64().unwrap() > 500 && step["lost"] == 0, "{engine}: {step}");
        assert_eq!(record["interrupted"], false);
    }
}

#[test]
fn outputs_that_fail_do_not_take_the_others_with_them() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let _daemon = common::Daemon::start(&lab, &common::Carrier::Driver.configuration(""));
    let folder = TempDir::new().unwrap();
    let (page, log) = (folder.path().join("page.html"), folder.path().join("run.hdr"));
    let short = "--rate 500 --duration 0.3 --timeout 100ms";
    let flags = format!("{short} --hdr /dev/full --report {}", page.display());
    let output = start_load(&lab, &flags).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("error: /dev/full: "), "{}", text(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("asked/s"), "{}", text(&output));
    assert!(fs::read_to_string(&page).unwrap().ends_with("</html>\n"));

    fs::remove_file(&page).unwrap();
    let mut command = lab.on_client("sh");
    let line = format!(
        "exec {} load --target 10.99.1.1 --interface tb0 {short} --json --hdr {} --report {} >/dev/full",
        env!("CARGO_BIN_EXE_timeball"),
        log.display(),
        page.display()
    );
    says(&run(command.args(["-c", &line])), 1, &["error: standard output: "]);
    assert!(fs::read_to_string(&page).unwrap().ends_with("</html>\n"));
    assert!(fs::read_to_string(&log).unwrap().contains("Tag=500/s:round-trip,"));
}

#[test]
fn a_sweep_with_an_impossible_step_does_not_begin() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    for (engine, flags) in
        [("af-xdp", "--sweep 1k:1M:3 --timeout 3"), ("live-frames", "--sweep 1k:10M:3 --timeout 3")]
    {
        let output =
            start_load(&lab, &format!("--engine {engine} --duration 1 {flags}")).wait_with_output().unwrap();
        says(
            &output,
            2,
            &["--timeout 3s: must be at most ", " requests/s, as the engine remembers ", " open requests"],
        );
    }
}

/// With the privileges that the help names each engine works, and with one less it says which one that is.
#[test]
fn each_engine_needs_the_privileges_that_it_asks_for_and_no_others() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let _daemon = common::Daemon::start(&lab, &common::Carrier::Driver.configuration(""));
    let ask = |engine: &str, capabilities: &[&str]| {
        let mut command = lab.on_client("setpriv");
        let set: String = capabilities.iter().map(|capability| format!(",+{capability}")).collect();
        command.args(["--bounding-set", &format!("-all{set}"), "--inh-caps", "-all", "--"]);
        command.args([env!("CARGO_BIN_EXE_timeball"), "load", "--target", "10.99.1.1", "--interface", "tb0"]);
        command.args(["--engine", engine, "--rate", "500", "--duration", "0.2", "--timeout", "100ms"]);
        run(&mut command)
    };
    for (engine, needs) in [
        ("live-frames", &["net_admin", "bpf", "perfmon"][..]),
        ("live-frames", &["net_admin", "sys_admin"]),
        ("af-xdp", &["net_admin", "bpf", "net_raw", "ipc_lock"]),
    ] {
        let output = ask(engine, needs);
        assert_eq!(output.status.code(), Some(0), "{engine}, {needs:?}: {}", text(&output));
        let way = match (engine, needs.contains(&"sys_admin")) {
            ("af-xdp", _) => "program and rings are driver + copy",
            (_, true) => "replies are judged at the traffic control hook\n",
            (_, false) => "replies are judged by an XDP program, which costs more",
        };
        assert!(text(&output).contains(&format!("timeball: engine {engine}: {way}")), "{}", text(&output));
        for missing in needs.iter().filter(|needed| **needed != "sys_admin") {
            let others: Vec<&str> = needs.iter().copied().filter(|other| other != missing).collect();
            says(&ask(engine, &others), 1, &["root, or ", &format!("CAP_{}", missing.to_uppercase())]);
        }
    }
}

/// One request a second is little, but not none.
#[test]
fn low_rates_are_shown_with_their_digits() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let _daemon = common::Daemon::start(&lab, &common::Carrier::Driver.configuration(""));
    for engine in ["live-frames", "af-xdp"] {
        for (rate, seconds) in [("1", "1"), ("1.5", "2")] {
            let flags =
                format!("--engine {engine} --rate {rate} --duration {seconds} --clients 1 --timeout 300ms");
            let output = start_load(&lab, &flags).wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{}", text(&output));
            let table = String::from_utf8_lossy(&output.stdout).into_owned();
            let row = table.lines().skip_while(|line| !line.starts_with("asked/s")).nth(1).unwrap();
            let cells: Vec<&str> = row.split_whitespace().take(3).collect();
            let near =
                |cell: &str| (cell.parse::<f64>().unwrap() / rate.parse::<f64>().unwrap() - 1.0).abs() < 0.05;
            assert!(cells[0] == rate && near(cells[1]) && near(cells[2]), "{engine}: {table}");
            assert!(!String::from_utf8_lossy(&output.stderr).contains("were sent"), "{}", text(&output));
        }
    }
}

#[test]
fn a_server_is_measured_and_stored_runs_stand_beside_it() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let _daemon = common::Daemon::start(&lab, &common::Carrier::Driver.configuration(""));
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (one, page, log) = (path("one.json"), path("page.html"), path("one.hdr"));
    fs::write(&one, stored("the one before")).unwrap();
    let mut command = lab.on_client(env!("CARGO_BIN_EXE_timeball"));
    command.args(["load", "--target", common::SERVER[0], "--interface", "tb0", "--sources", "10.99.8.0/24"]);
    command.args([
        "--sweep",
        "500:2k:2",
        "--duration",
        "500ms",
        "--timeout",
        "200ms",
        "--label",
        "the new one",
    ]);
    let output = run(command.args(["--hdr", &log, "--report", &page, "--compare", &one]));
    assert!(output.status.success(), "{}", text(&output));
    // The lab's peer has the daemon's XDP program in driver mode, so frames redirected to it arrive.
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with("timeball: engine live-frames: tb0 is a veth"), "{stderr}");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(
        table.contains("asked/s") && table.contains("turnaround") && table.contains("\n  2 000"),
        "{table}"
    );
    let page = fs::read_to_string(&page).unwrap();
    assert!(page.contains("the one before") && page.contains("the new one"));
    let log = fs::read_to_string(&log).unwrap();
    assert!(log.contains("Tag=500/s:round-trip,") && log.contains("Tag=2:2000/s:round-trip,"), "{log}");
}
