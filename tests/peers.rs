//! Other projects' NTP clients get the right time from the daemon, over each of its ways in, and the counters prove
//! which way that was.
//!
//! All clients and the server share one machine and so one clock: the right answer is "offset zero, stratum 10".

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{Carrier, Daemon, Lab, SERVER, can_have_labs, peer, run, run_well, text};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// Offsets beyond this are no jitter of a busy test machine any more. A clock of another scale or era is.
const OFFSET_SECONDS_MAX: f64 = 0.05;

/// A client program: asks `server` from the client's namespace and fails the test unless the answer is right.
/// Returns how many requests it sent at least.
type Client = fn(lab: &Lab, program: &Path, server: &str) -> u64;

#[track_caller]
fn assert_right(client: &str, offset: f64, output: &str) {
    assert!(offset.abs() < OFFSET_SECONDS_MAX, "{client} measured {offset} s:\n{output}");
}

fn chronyd(lab: &Lab, program: &Path, server: &str) -> u64 {
    let folder = TempDir::new().unwrap();
    let configuration = folder.path().join("chrony.conf");
    fs::write(&configuration, format!("server {server} iburst maxsamples 1\ncmdport 0\n")).unwrap();
    let output = run(lab.on_client(program).args(["-Q", "-t", "5", "-u", "root", "-f"]).arg(configuration));
    let output = text(&output);
    let offset = output.split("System clock wrong by ").nth(1).and_then(|rest| rest.split(' ').next());
    assert_right("chronyd", offset.expect(&output).parse().unwrap(), &output);
    1
}

/// ntpdig and sntp both print `DATE TIME (ZONE) OFFSET +/- ERROR ADDRESS sSTRATUM LEAP`.
#[track_caller]
fn judge_sntp_line(client: &str, output: &str, server: &str) {
    let line =
        output.lines().find(|line| line.contains(" +/- ")).unwrap_or_else(|| panic!("{client}:\n{output}"));
    let words: Vec<_> = line.split_whitespace().collect();
    assert_right(client, words[3].parse().unwrap(), output);
    assert!(
        words.contains(&"s10") && words.contains(&"no-leap") && words.contains(&server),
        "{client}:\n{line}"
    );
}

fn ntpdig(lab: &Lab, program: &Path, server: &str) -> u64 {
    judge_sntp_line("ntpdig", &run_well(lab.on_client(program).arg(server)), server);
    1
}

fn sntp(lab: &Lab, program: &Path, server: &str) -> u64 {
    judge_sntp_line("sntp", &run_well(lab.on_client(program).args(["-K", "/dev/null", server])), server);
    1
}

fn ntplib(lab: &Lab, program: &Path, server: &str) -> u64 {
    let code = "\
import ntplib, sys
for version in 1, 2, 3, 4:
    reply = ntplib.NTPClient().request(sys.argv[1], version=version, port=123, timeout=3)
    print(reply.version, reply.mode, reply.stratum, reply.leap, reply.offset)";
    let output = run_well(lab.on_client(program).args(["-c", code, server]));
    for (line, version) in output.lines().zip(1..) {
        assert!(line.starts_with(&format!("{version} 4 10 0 ")), "ntplib:\n{output}");
        assert_right("ntplib", line.split(' ').nth(4).unwrap().parse().unwrap(), &output);
    }
    assert_eq!(output.lines().count(), 4);
    4
}

/// One client asks one daemon over IPv4 and IPv6; every reply has to have left through `carrier`.
/// `vlan` is empty, or `100`, or `200.30` for two tags.
#[track_caller]
fn is_answered(name: &str, client: Client, carrier: Carrier, vlan: &str) {
    if !can_have_labs() {
        return;
    }
    let Some(program) = peer(name) else { return };
    let lab = if vlan.is_empty() { Lab::new(&[]) } else { Lab::new(&["--tagged", vlan]) };
    let daemon = Daemon::start(&lab, &carrier.configuration(vlan));
    for server in SERVER {
        let before = daemon.replies();
        let requests = client(&lab, &program, server);
        let after = daemon.replies();
        let (af_xdp, socket) = (after.af_xdp - before.af_xdp, after.socket - before.socket);
        let (used, unused) = if carrier == Carrier::Socket { (socket, af_xdp) } else { (af_xdp, socket) };
        assert!(used >= requests, "{used} of {requests} replies to {server} left through {carrier:?}");
        assert_eq!(unused, 0, "replies to {server} left another way than {carrier:?}");
    }
}

#[test]
fn chronyd_is_answered_in_driver_mode() {
    is_answered("chronyd", chronyd, Carrier::Driver, "");
}

#[test]
fn chronyd_is_answered_in_skb_mode() {
    is_answered("chronyd", chronyd, Carrier::Skb, "");
}

#[test]
fn chronyd_is_answered_over_sockets() {
    is_answered("chronyd", chronyd, Carrier::Socket, "");
}

#[test]
fn chronyd_is_answered_on_a_vlan() {
    is_answered("chronyd", chronyd, Carrier::Driver, "100");
}

#[test]
fn chronyd_is_answered_on_a_vlan_in_skb_mode() {
    is_answered("chronyd", chronyd, Carrier::Skb, "100");
}

#[test]
fn chronyd_is_answered_on_a_vlan_inside_a_vlan() {
    is_answered("chronyd", chronyd, Carrier::Driver, "200.30");
}

#[test]
fn ntpdig_is_answered_in_driver_mode() {
    is_answered("ntpdig", ntpdig, Carrier::Driver, "");
}

#[test]
fn ntpdig_is_answered_in_skb_mode() {
    is_answered("ntpdig", ntpdig, Carrier::Skb, "");
}

#[test]
fn ntpdig_is_answered_over_sockets() {
    is_answered("ntpdig", ntpdig, Carrier::Socket, "");
}

#[test]
fn sntp_is_answered_in_driver_mode() {
    is_answered("sntp", sntp, Carrier::Driver, "");
}

#[test]
fn sntp_is_answered_in_skb_mode() {
    is_answered("sntp", sntp, Carrier::Skb, "");
}

#[test]
fn sntp_is_answered_over_sockets() {
    is_answered("sntp", sntp, Carrier::Socket, "");
}

#[test]
fn ntplib_is_answered_in_driver_mode() {
    is_answered("ntplib", ntplib, Carrier::Driver, "");
}

#[test]
fn ntplib_is_answered_in_skb_mode() {
    is_answered("ntplib", ntplib, Carrier::Skb, "");
}

#[test]
fn ntplib_is_answered_over_sockets() {
    is_answered("ntplib", ntplib, Carrier::Socket, "");
}
