//! Broadcast and multicast with chronyd and ntp.org's ntpd, both ways. (chronyd is a broadcast server only; ntpsec has removed
//! the modes.)

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::peers::{Keys, Kind, OURS, Peer, THEIRS, follows, in_time, is_followed, lab, timeball};
use common::{can_have_labs, run_well};

const BROADCAST: &str = "10.99.1.255";
const GROUP: &str = "224.0.1.1";
const GROUP_V6: &str = "ff05::101";

/// How far their clock is ahead of ours, and how near to that our measurement must come.
const AHEAD_SECONDS: f64 = 0.030;
const CALIBRATION_SECONDS_MAX: f64 = 0.000_2;

/// They tell, and we listen.
#[track_caller]
fn we_hear(kind: Kind, their_lines: &str, ours: &str, remote: &str) {
    we_hear_over("datapath = \"socket\"", kind, their_lines, ours, remote);
}

#[track_caller]
fn we_hear_over(carrier: &str, kind: Kind, their_lines: &str, ours: &str, remote: &str) {
    if !can_have_labs() {
        return;
    }
    let (lab, keys) = (lab(), Keys::new());
    // Without it chronyd has no way to 255.255.255.255.
    run_well(lab.on_client("ip").args(["route", "add", "default", "dev", "tb0"]));
    let lines = format!("{}\n{their_lines}", kind.local());
    let Some(_server) = Peer::start_ahead(&lab, kind, &lines, AHEAD_SECONDS) else { return };
    let configuration = format!("{carrier}\n{}[[broadcast-client]]\n{ours}\n", keys.lines());
    let daemon = timeball(&lab, &[], &configuration);
    let row = follows(&daemon, "broadcast-client", remote, kind.local_stratum());
    assert_eq!(row["stamp"], "kernel", "{row}");
    in_time("their clock is measured", || {
        let report = daemon.sources();
        let rows = report["sources"].as_array().unwrap();
        let row = rows.iter().find(|row| row["address"] == remote).ok_or("it is gone")?;
        let offset = row["offset_seconds"].as_f64().unwrap_or(f64::INFINITY);
        let is_right = (offset - AHEAD_SECONDS).abs() <= CALIBRATION_SECONDS_MAX;
        if is_right { Ok(()) } else { Err(row.to_string()) }
    });
}

/// We tell, and they listen.
#[track_caller]
fn we_are_heard(their_lines: &str, ours: &str, our_reference: &str) {
    if !can_have_labs() {
        return;
    }
    let (lab, keys) = (lab(), Keys::new());
    let configuration =
        format!("datapath = \"socket\"\n{}[[broadcast]]\ninterval = 3\n{ours}\n", keys.lines());
    let daemon = timeball(&lab, &["--local-stratum", "5"], &configuration);
    let Some(_client) = Peer::start(&lab, Kind::Ntpd, their_lines) else { return };
    is_followed(&lab, THEIRS[0], our_reference, 6);
    let report = daemon.sources();
    let row = &report["sources"][0];
    assert!(row["mode"] == "broadcast" && row["sent"].as_u64().unwrap() >= 1, "{row}");
}

#[test]
fn we_hear_chronyd_broadcast() {
    // chronyd's shortest interval is a second.
    let ours = "address = \"0.0.0.0\"\nallow-unsigned = true";
    we_hear(Kind::Chronyd, "broadcast 4 10.99.1.255", ours, "10.99.1.2:123");
}

#[test]
fn we_hear_chronyd_broadcast_with_af_xdp_on_the_interface() {
    let ours = "address = \"0.0.0.0\"\nallow-unsigned = true";
    let carrier = "datapath = \"af-xdp\"\n[[interface]]\nname = \"tb0\"";
    we_hear_over(carrier, Kind::Chronyd, "broadcast 4 10.99.1.255", ours, "10.99.1.2:123");
}

#[test]
fn we_hear_chronyd_broadcast_without_workers() {
    let ours = "address = \"0.0.0.0\"\nallow-unsigned = true";
    let carrier = "datapath = \"socket\"\nworkers = 0";
    we_hear_over(carrier, Kind::Chronyd, "broadcast 4 10.99.1.255", ours, "10.99.1.2:123");
}

/// (ntpd does not hear it: it drops what comes to its wildcard socket.)
#[test]
fn we_hear_chronyd_limited_broadcast() {
    let ours = "address = \"255.255.255.255\"\nallow-unsigned = true\ninterface = \"tb0\"";
    we_hear(Kind::Chronyd, "broadcast 4 255.255.255.255", ours, "10.99.1.2:123");
}

#[test]
fn we_hear_chronyd_multicast() {
    let ours = format!("address = \"{GROUP}\"\nallow-unsigned = true");
    we_hear(Kind::Chronyd, "broadcast 4 224.0.1.1", &ours, "10.99.1.2:123");
}

#[test]
fn we_hear_chronyd_multicast_over_ipv6() {
    let ours = format!("address = \"{GROUP_V6}\"\nallow-unsigned = true\ninterface = \"tb0\"");
    we_hear(Kind::Chronyd, "broadcast 4 ff05::101", &ours, "[fd99:1::2]:123");
}

#[test]
fn we_hear_ntpd_broadcast() {
    let ours = format!("address = \"{BROADCAST}\"\nallow-unsigned = true");
    we_hear(Kind::Ntpd, "broadcast 10.99.1.255 minpoll 3 maxpoll 3", &ours, "10.99.1.2:123");
}

#[test]
fn we_hear_ntpd_broadcast_and_send_nothing() {
    let ours = "address = \"0.0.0.0\"\nallow-unsigned = true\ndelay = \"100us\"\ninterface = \"tb0\"";
    we_hear(Kind::Ntpd, "broadcast 10.99.1.255 minpoll 3 maxpoll 3", ours, "10.99.1.2:123");
}

#[test]
fn we_hear_ntpd_broadcast_with_a_key() {
    let ours = "address = \"0.0.0.0\"\nkey = 2";
    we_hear(Kind::Ntpd, "broadcast 10.99.1.255 key 2 minpoll 3 maxpoll 3", ours, "10.99.1.2:123");
}

#[test]
fn we_hear_ntpd_multicast() {
    let ours = format!("address = \"{GROUP}\"\nallow-unsigned = true");
    we_hear(Kind::Ntpd, "broadcast 224.0.1.1 ttl 1 minpoll 3 maxpoll 3", &ours, "10.99.1.2:123");
}

#[test]
fn we_hear_ntpd_multicast_with_a_key() {
    let ours = format!("address = \"{GROUP}\"");
    we_hear(Kind::Ntpd, "broadcast 224.0.1.1 key 1 ttl 1 minpoll 3 maxpoll 3", &ours, "10.99.1.2:123");
}

#[test]
fn we_hear_ntpd_multicast_over_ipv6() {
    let ours = format!("address = \"{GROUP_V6}\"\nallow-unsigned = true\ninterface = \"tb0\"");
    we_hear(Kind::Ntpd, "broadcast ff05::101 ttl 1 minpoll 3 maxpoll 3", &ours, "[fd99:1::2]:123");
}

#[test]
fn we_hear_ntpd_multicast_over_ipv6_with_a_key() {
    let ours = format!("address = \"{GROUP_V6}\"\nkey = 2");
    we_hear(Kind::Ntpd, "broadcast ff05::101 key 2 ttl 1 minpoll 3 maxpoll 3", &ours, "[fd99:1::2]:123");
}

/// Whoever can send to us could set our clock (RFC 8633 section 5.5).
#[test]
fn we_do_not_hear_the_unsigned_unless_told_to() {
    if !can_have_labs() {
        return;
    }
    let (lab, keys) = (lab(), Keys::new());
    let lines = format!("{}\nbroadcast 1 10.99.1.255", Kind::Chronyd.local());
    let Some(_server) = Peer::start(&lab, Kind::Chronyd, &lines) else { return };
    let configuration = format!(
        "datapath = \"socket\"\n{}[[broadcast-client]]\naddress = \"0.0.0.0\"\n[[broadcast-client]]\naddress = \"{GROUP}\"\nallow-unsigned = true\n",
        keys.lines()
    );
    let daemon = timeball(&lab, &[], &configuration);
    std::thread::sleep(std::time::Duration::from_secs(10));
    let report = daemon.sources();
    let rows = report["sources"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["state"] == "listening"), "{report}");
}

#[test]
fn ntpd_hears_our_broadcast() {
    let ours = format!("address = \"{BROADCAST}\"");
    we_are_heard("disable auth\nbroadcastclient", &ours, OURS[0]);
}

#[test]
fn ntpd_hears_our_broadcast_with_a_key() {
    let ours = format!("address = \"{BROADCAST}\"\nkey = 2");
    we_are_heard("broadcastclient", &ours, OURS[0]);
}

/// To NTP's own group, since none is named.
#[test]
fn ntpd_hears_our_multicast() {
    we_are_heard("disable auth\nmulticastclient 224.0.1.1", "interface = \"tb0\"", OURS[0]);
}

#[test]
fn ntpd_hears_our_multicast_with_a_key() {
    let ours = format!("address = \"{GROUP}\"\nkey = 1");
    we_are_heard("multicastclient 224.0.1.1", &ours, OURS[0]);
}

#[test]
fn ntpd_hears_our_multicast_over_ipv6() {
    // The first four octets of the MD5 digest of fd99:1::1.
    let ours = format!("address = \"{GROUP_V6}\"\ninterface = \"tb0\"");
    we_are_heard("disable auth\nmulticastclient ff05::101", &ours, OUR_V6_REFERENCE);
}

#[test]
fn ntpd_hears_our_multicast_over_ipv6_with_a_key() {
    let ours = format!("address = \"{GROUP_V6}\"\nkey = 2\ninterface = \"tb0\"");
    we_are_heard("multicastclient ff05::101", &ours, OUR_V6_REFERENCE);
}

const OUR_V6_REFERENCE: &str = "77.14.249.191";

/// Two of ours, the second of which is told nothing but the group: what leaves is heard, and our own broadcast, which the
/// kernel hands back to us, is not taken for a server's.
#[test]
fn we_do_not_hear_ourselves() {
    if !can_have_labs() {
        return;
    }
    let lab = lab();
    let both = format!(
        "datapath = \"socket\"\n[[broadcast]]\naddress = \"{BROADCAST}\"\ninterval = 0\n[[broadcast]]\naddress = \"{GROUP}\"\ninterval = 0\n\
         [[broadcast-client]]\naddress = \"0.0.0.0\"\nallow-unsigned = true\n[[broadcast-client]]\naddress = \"{GROUP}\"\nallow-unsigned = true\n"
    );
    let daemon = timeball(&lab, &["--local-stratum", "5"], &both);
    in_time("eight packets are sent to each", || {
        let report = daemon.sources();
        let rows = report["sources"].as_array().unwrap().iter();
        let sent = |row: &serde_json::Value| row["mode"] == "broadcast" && row["sent"].as_u64().unwrap() >= 8;
        if rows.filter(|row| sent(row)).count() == 2 { Ok(()) } else { Err(report.to_string()) }
    });
    let report = daemon.sources();
    let rows = report["sources"].as_array().unwrap();
    assert_eq!(rows.iter().filter(|row| row["state"] == "listening").count(), 2, "{report}");
    assert_eq!(daemon.status()["clock"]["stratum"], 5);
}
