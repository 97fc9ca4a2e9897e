//! Manycast with ntp.org's ntpd, both ways. (Nobody else has it.)

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::can_have_labs;
use common::peers::{Keys, Kind, OURS, Peer, THEIRS, follows, is_followed, lab, timeball};

/// They answer in the group, and we find them.
#[track_caller]
fn we_find(their_lines: &str, ours: &str, remote: &str) {
    if !can_have_labs() {
        return;
    }
    let (lab, keys) = (lab(), Keys::new());
    let lines = format!("{}\n{their_lines}", Kind::Ntpd.local());
    let Some(_server) = Peer::start(&lab, Kind::Ntpd, &lines) else { return };
    let configuration = format!(
        "datapath = \"socket\"\n{}[[manycast-client]]\nenough = 1\nmin-poll = 2\nmax-poll = 2\ntimeout = 4\niburst = true\n{ours}\n",
        keys.lines()
    );
    let daemon = timeball(&lab, &[], &configuration);
    follows(&daemon, "manycast", remote, Kind::Ntpd.local_stratum());
}

/// We answer, and they find us.
#[track_caller]
fn we_are_found(their_line: &str, ours: &str, our_reference: &str) {
    if !can_have_labs() {
        return;
    }
    let (lab, keys) = (lab(), Keys::new());
    let configuration = format!("datapath = \"socket\"\n{}[[manycast-server]]\n{ours}\n", keys.lines());
    let _daemon = timeball(&lab, &["--local-stratum", "5"], &configuration);
    let lines =
        format!("tos minclock 1 minsane 1 ceiling 14 floor 1\n{their_line} ttl 1 iburst minpoll 4 maxpoll 4");
    let Some(_client) = Peer::start(&lab, Kind::Ntpd, &lines) else { return };
    is_followed(&lab, THEIRS[0], our_reference, 6);
}

#[test]
fn we_find_ntpd() {
    let ours = "address = \"224.0.1.1\"\nallow-unsigned = true";
    we_find("disable auth\nmanycastserver 224.0.1.1", ours, "10.99.1.2:123");
}

#[test]
fn we_find_ntpd_with_a_key() {
    let ours = "address = \"224.0.1.1\"\nkey = 2";
    we_find("manycastserver 224.0.1.1", ours, "10.99.1.2:123");
}

#[test]
fn we_find_ntpd_over_ipv6() {
    let ours = "address = \"ff05::101\"\nallow-unsigned = true\ninterface = \"tb0\"";
    we_find("disable auth\nmanycastserver ff05::101", ours, "[fd99:1::2]:123");
}

#[test]
fn ntpd_finds_us() {
    let ours = "address = \"224.0.1.1\"\nallow-unsigned = true";
    we_are_found("disable auth\nmanycastclient 224.0.1.1", ours, OURS[0]);
}

#[test]
fn ntpd_finds_us_over_ipv6() {
    let ours = "address = \"ff05::101\"\nallow-unsigned = true\ninterface = \"tb0\"";
    we_are_found("disable auth\nmanycastclient ff05::101", ours, OUR_V6_REFERENCE);
}

/// The first octets of the MD5 digest of fd99:1::1.
const OUR_V6_REFERENCE: &str = "77.14.249.191";

#[test]
fn ntpd_finds_us_with_a_key() {
    let ours = "address = \"224.0.1.1\"\nkey = 1";
    we_are_found("manycastclient 224.0.1.1 key 1", ours, OURS[0]);
}
