//! Broadcast and multicast with chronyd and ntp.org's ntpd, both ways. (chronyd is a broadcast server only; ntpsec has removed
//! the modes.)

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::peers::{Keys, Kind, OURS, Peer, THEIRS, follows, in_time, is_followed, lab, timeball};
use common::{can_have_labs, run_well};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

const BROADCAST: &str = "10.99.1.255";
const GROUP: &str = "224.0.1.1";
const GROUP_V6: &str = "ff05::101";

/// How far their clock is ahead of ours, and how near to that our measurement must come, and theirs.
const AHEAD_SECONDS: f64 = 0.030;
const CALIBRATION_SECONDS_MAX: f64 = 0.000_2;
/// Of so many of ntpd's offsets the middle one counts: one packet may be held up on a busy machine.
const OFFSETS: usize = 3;
/// So often is ntpd given the chance that the packet by which it calibrates itself is not held up.
const CALIBRATIONS: usize = 4;

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

/// We tell, and they listen: they follow us, and measure how far their clock is ahead of ours by what they hear.
#[track_caller]
fn we_are_heard(their_lines: &str, ours: &str, our_reference: &str) {
    if !can_have_labs() {
        return;
    }
    let (lab, keys) = (lab(), Keys::new());
    let configuration =
        format!("datapath = \"socket\"\n{}[[broadcast]]\ninterval = 3\n{ours}\n", keys.lines());
    let daemon = timeball(&lab, &["--local-stratum", "5"], &configuration);
    let is_right = |heard: &Heard| (heard.offset + AHEAD_SECONDS).abs() <= CALIBRATION_SECONDS_MAX;
    let mut all: Vec<Heard> = Vec::new();
    while !all.last().is_some_and(is_right) {
        assert!(all.len() < CALIBRATIONS, "the first broadcast was held up each time: {all:?}");
        let statistics = TempDir::new().unwrap();
        let lines = format!("{}\n{their_lines}", statistics_lines(statistics.path()));
        let Some(_client) = Peer::start_ahead(&lab, Kind::Ntpd, &lines, AHEAD_SECONDS) else { return };
        is_followed(&lab, THEIRS[0], our_reference, 6);
        all.push(in_time("our clock is measured", || {
            let heard = Heard::read(statistics.path())?;
            let is_known = is_right(&heard) || heard.first_late > CALIBRATION_SECONDS_MAX;
            if is_known { Ok(heard) } else { Err(format!("{heard:?}")) }
        }));
    }
    let report = daemon.sources();
    let row = &report["sources"][0];
    assert!(row["mode"] == "broadcast" && row["sent"].as_u64().unwrap() >= 1, "{row}");
}

/// What ntpd has made of our broadcasts, in seconds. It takes half of the delay from the offset of its volley and that of the
/// first broadcast after it, and never again: if that one is held up by 5 ms, all that it hears is 5 ms off from then on
/// (seen: -25.127 ms in place of -30). That is no fault of ours, so it is started anew, unless it happens each time.
#[derive(Debug)]
struct Heard {
    /// The middle one of the last offsets, as ntpq shows them (> 0: its clock is behind).
    offset: f64,
    /// How much longer the first was under way than the quickest after it.
    first_late: f64,
}

impl Heard {
    /// When there are enough of them.
    fn read(statistics: &Path) -> Result<Self, String> {
        let read = |name| fs::read_to_string(statistics.join(name)).unwrap_or_default();
        // DAY SECOND FROM TO ORG REC XMT DST LEAP VERSION MODE ...: answers to its volley are in mode 4.
        let packets = read("rawstats");
        let fields = packets.lines().rev().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let heard: Vec<_> = fields
            .filter(|fields| fields.len() > 10 && ["4", "5"].contains(&fields[10]))
            .take_while(|fields| fields[10] == "5")
            .collect();
        // The first only says again what the volley did.
        if heard.len() <= OFFSETS {
            return Err(format!("{} broadcasts since its volley", heard.len()));
        }
        let seconds = |text: &str| text.parse::<f64>().map_err(|error| format!("{text}: {error}"));
        let ways: Result<Vec<f64>, String> =
            heard.iter().map(|fields| Ok(seconds(fields[7])? - seconds(fields[6])?)).collect();
        let ways = ways?;
        let (first, later) = ways.split_last().ok_or("none")?;
        // DAY SECOND FROM STATUS OFFSET DELAY DISPERSION JITTER
        let offsets = read("peerstats");
        let offsets = offsets.lines().rev().filter_map(|line| line.split_whitespace().nth(4)?.parse().ok());
        let mut offsets: Vec<f64> = offsets.take(OFFSETS).collect();
        offsets.sort_unstable_by(f64::total_cmp);
        let offset = offsets.get(OFFSETS / 2).copied().ok_or_else(|| format!("{offsets:?}"))?;
        Ok(Self { offset, first_late: first - later.iter().copied().fold(f64::INFINITY, f64::min) })
    }
}

/// What makes ntpd write down in this folder what comes and what it makes of it.
fn statistics_lines(folder: &Path) -> String {
    let files = ["peerstats", "rawstats"].map(|name| format!("filegen {name} file {name} type none enable"));
    format!("statsdir {}/\nstatistics peerstats rawstats\n{}", folder.display(), files.join("\n"))
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
