//! Our daemon asks other projects' servers for the time, and their daemons follow what it then serves.
//!
//! All share one machine and so one clock: the right answer is "offset zero, one stratum more".

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::peers::{Keys, Kind, OURS, Peer, THEIRS, follows, in_time, is_followed, lab, timeball};
use common::{can_have_labs, run_well};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

/// A source that is asked every two seconds.
fn server(address: &str, more: &str) -> String {
    format!("[[server]]\naddress = \"{address}\"\niburst = true\nmin-poll = 1\nmax-poll = 1\n{more}\n")
}

#[track_caller]
fn we_follow(kind: Kind, address: &str, configuration: &str, more: &str) {
    if !can_have_labs() {
        return;
    }
    let (lab, keys) = (lab(), Keys::new());
    let Some(_server) = Peer::start(&lab, kind, kind.local()) else { return };
    let configuration = format!("{configuration}\n{}{}", keys.lines(), server(address, more));
    let daemon = timeball(&lab, &[], &configuration);
    let remote = if address.contains(':') { format!("[{address}]:123") } else { format!("{address}:123") };
    let row = follows(&daemon, "server", &remote, kind.local_stratum());
    assert_eq!(row["stamp"], "kernel", "{row}");
    let shown = daemon.sources_text();
    assert!(shown.lines().any(|line| line.starts_with('*') && line.contains("system peer")), "{shown}");
    assert!(daemon.status_text().contains("synchronised to "), "{}", daemon.status_text());
}

#[test]
fn we_follow_chronyd() {
    we_follow(Kind::Chronyd, THEIRS[0], "datapath = \"socket\"", "");
}

#[test]
fn we_follow_chronyd_over_ipv6() {
    we_follow(Kind::Chronyd, THEIRS[1], "datapath = \"socket\"", "");
}

#[test]
fn we_follow_chronyd_with_af_xdp_on_the_interface() {
    let carrier = "datapath = \"af-xdp\"\n[[interface]]\nname = \"tb0\"";
    we_follow(Kind::Chronyd, THEIRS[0], carrier, "");
}

#[test]
fn we_follow_chronyd_without_workers() {
    we_follow(Kind::Chronyd, THEIRS[0], "datapath = \"socket\"\nworkers = 0", "");
}

#[test]
fn we_follow_chronyd_with_an_aes_key() {
    we_follow(Kind::Chronyd, THEIRS[0], "datapath = \"socket\"", "key = 1");
}

/// It asks us over one family and is asked over the other, so that its reference id is another address of ours than the one
/// it is asked from.
#[track_caller]
fn we_do_not_follow_who_follows_us(ours: &str, theirs: &str, remote: &str) {
    if !can_have_labs() {
        return;
    }
    let lab = lab();
    let configuration = format!("datapath = \"socket\"\n{}", server(theirs, ""));
    let daemon = timeball(&lab, &["--local-stratum", "5"], &configuration);
    let lines = format!("server {ours} iburst minpoll 1 maxpoll 1");
    let Some(_follower) = Peer::start(&lab, Kind::Chronyd, &lines) else { return };
    in_time("it is seen that it follows us", || {
        let report = daemon.sources();
        let rows = report["sources"].as_array().unwrap();
        let row = rows.iter().find(|row| row["address"] == remote).ok_or("it is not there")?;
        assert_ne!(row["sign"], "*", "{row}");
        if row["state"] == "follows-us" { Ok(()) } else { Err(row.to_string()) }
    });
    let clock = &daemon.status()["clock"];
    assert_eq!((&clock["stratum"], &clock["source"]), (&5.into(), &"local".into()), "{clock}");
}

#[test]
fn we_do_not_follow_chronyd_that_follows_our_ipv6_address() {
    we_do_not_follow_who_follows_us(OURS[1], THEIRS[0], "10.99.1.2:123");
}

#[test]
fn we_do_not_follow_chronyd_that_follows_our_ipv4_address() {
    we_do_not_follow_who_follows_us(OURS[0], THEIRS[1], "[fd99:1::2]:123");
}

/// Its answers are of the version of the question, without and with a MAC.
#[test]
fn we_follow_chronyd_in_version_3() {
    we_follow(Kind::Chronyd, THEIRS[0], "datapath = \"socket\"", "version = 3\nkey = 2");
}

#[test]
fn we_follow_ntpd_in_version_3() {
    we_follow(Kind::Ntpd, THEIRS[0], "datapath = \"socket\"", "version = 3");
}

#[test]
fn we_follow_ntpsec() {
    we_follow(Kind::Ntpsec, THEIRS[0], "datapath = \"socket\"", "");
}

#[test]
fn we_follow_ntpsec_with_a_sha1_key() {
    we_follow(Kind::Ntpsec, THEIRS[0], "datapath = \"socket\"", "key = 2");
}

#[test]
fn we_follow_ntpd() {
    we_follow(Kind::Ntpd, THEIRS[0], "datapath = \"socket\"", "");
}

#[test]
fn we_follow_ntpd_with_an_aes_key() {
    we_follow(Kind::Ntpd, THEIRS[1], "datapath = \"socket\"", "key = 1");
}

/// The other daemon has another key of this id, which is as good as none.
/// One server, asked at one address for each of these keys: all its answers are authentic, or nothing were measured.
#[track_caller]
fn we_follow_with_each_key(kind: Kind, keys: &str, ids: &[u8]) {
    if !can_have_labs() {
        return;
    }
    let (lab, folder) = (lab(), TempDir::new().unwrap());
    let path = folder.path().join("keys");
    fs::write(&path, keys).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let address = |id: &u8| format!("10.99.1.{}", 20 + id);
    for id in ids {
        run_well(lab.on_client("ip").args(["address", "add", &format!("{}/24", address(id)), "dev", "tb0"]));
    }
    let trusted: Vec<String> = ids.iter().map(u8::to_string).collect();
    let theirs = match kind {
        Kind::Chronyd => format!("keyfile {}", path.display()),
        Kind::Ntpd | Kind::Ntpsec => format!("keys {}\ntrustedkey {}", path.display(), trusted.join(" ")),
    };
    let Some(_server) = Peer::start(&lab, kind, &format!("{}\n{theirs}", kind.local())) else { return };
    let servers = ids.iter().map(|id| server(&address(id), &format!("key = {id}")));
    let configuration =
        format!("datapath = \"socket\"\n[keys]\nfile = \"{}\"\nallow-md5 = true\n", path.display());
    let daemon = timeball(&lab, &[], &(configuration + &servers.collect::<String>()));
    in_time("each key is right", || {
        let report = daemon.sources();
        let rows = report["sources"].as_array().unwrap();
        // One measurement each: ntpsec does not answer one address for long at the rate of all.
        let is_right = |row: &&Value| row["measured_offset_seconds"].is_f64();
        let signed: Vec<u64> = rows.iter().filter(is_right).filter_map(|row| row["key"].as_u64()).collect();
        if ids.iter().map(|id| u64::from(*id)).eq(signed) { Ok(()) } else { Err(report.to_string()) }
    });
}

const HEX_16: &str = "000102030405060708090a0b0c0d0e0f";
const HEX_20: &str = "a27872d3030a9025b8446c751b4551a7629af65c";

#[test]
fn we_follow_chronyd_with_each_key() {
    let keys = format!(
        "1 MD5 ASCII:secret\n2 SHA1 HEX:{HEX_20}\n3 SHA256 HEX:{HEX_16}\n4 SHA384 HEX:{HEX_16}\n\
         5 SHA512 HEX:{HEX_16}\n6 AES128 HEX:{HEX_16}\n7 AES256 HEX:{HEX_16}{HEX_16}\n"
    );
    we_follow_with_each_key(Kind::Chronyd, &keys, &[1, 2, 3, 4, 5, 6, 7]);
}

/// The types that ntpd and ntpsec have, in words that both understand.
fn ntpds() -> String {
    format!("1 MD5 secret\n2 SHA1 {HEX_20}\n3 SHA256 {HEX_20}\n6 AES128CMAC {HEX_16}\n")
}

#[test]
fn we_follow_ntpd_with_each_key() {
    we_follow_with_each_key(Kind::Ntpd, &ntpds(), &[1, 2, 3, 6]);
}

#[test]
fn we_follow_ntpsec_with_each_key() {
    we_follow_with_each_key(Kind::Ntpsec, &ntpds(), &[1, 2, 3, 6]);
}

#[test]
fn we_do_not_follow_who_cannot_sign() {
    if !can_have_labs() {
        return;
    }
    let (lab, folder) = (lab(), tempfile::TempDir::new().unwrap());
    let Some(_server) = Peer::start(&lab, Kind::Chronyd, Kind::Chronyd.local()) else { return };
    let path = folder.path().join("other.keys");
    std::fs::write(&path, "1 AES128 HEX:ff0102030405060708090a0b0c0d0e0f\n").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let keys = format!("[keys]\nfile = \"{}\"\n", path.display());
    let daemon =
        timeball(&lab, &[], &format!("datapath = \"socket\"\n{keys}{}", server(THEIRS[0], "key = 1")));
    in_time("eight questions were asked in vain", || {
        let row = daemon.sources()["sources"][0].clone();
        if row["sent"].as_u64().unwrap() < 8 { Err(row.to_string()) } else { Ok(()) }
    });
    let row = daemon.sources()["sources"][0].clone();
    assert_eq!(
        (&row["sign"], &row["state"], &row["reach"]),
        (&"?".into(), &"unreachable".into(), &0.into()),
        "{row}"
    );
    assert_eq!(daemon.status()["clock"]["stratum"], 16);
    // SIGHUP reads the file again, for our sources too.
    std::fs::write(&path, "1 AES128 HEX:000102030405060708090a0b0c0d0e0f\n").unwrap();
    common::run_well(std::process::Command::new("sh").args(["-c", &format!("kill -HUP {}", daemon.pid())]));
    follows(&daemon, "server", "10.99.1.2:123", 3);
}

/// The resolver finds both loopback addresses, and a daemon answers on both. (Its time is not used: who has our own address is
/// taken for ourselves.)
#[test]
fn names_are_resolved_and_a_pool_has_several_members() {
    if !can_have_labs() {
        return;
    }
    if std::net::ToSocketAddrs::to_socket_addrs("localhost:123").is_err() {
        return common::skip("this machine has no localhost: there is no /etc/hosts");
    }
    let lab = lab();
    let Some(_server) = Peer::start_beside(&lab, Kind::Chronyd, "local stratum 3\nport 11123") else {
        return;
    };
    let pool = "[[pool]]\naddress = \"localhost\"\nport = 11123\niburst = true\nmin-poll = 1\nmax-poll = 1\n";
    let daemon = timeball(&lab, &[], &format!("datapath = \"socket\"\n{pool}"));
    let rows = in_time("the members are measured", || {
        let report = daemon.sources();
        let rows = report["sources"].as_array().unwrap().clone();
        let is_measured = |row: &serde_json::Value| row["state"] == "follows-us" && row["reach"] != 0;
        if rows.iter().all(is_measured) { Ok(rows) } else { Err(report.to_string()) }
    });
    let addresses: Vec<&str> = rows.iter().map(|row| row["address"].as_str().unwrap()).collect();
    assert!(addresses.contains(&"127.0.0.1:11123"), "{addresses:?}");
    assert!(rows.iter().all(|row| row["mode"] == "pool" && row["name"] == "localhost"), "{rows:?}");
}

/// A daemon beside ours, whose time comes from ours, whose time comes from chronyd.
#[track_caller]
fn the_time_is_passed_on(kind: Kind, follower: &str, port: &str) {
    if !can_have_labs() {
        return;
    }
    let lab = lab();
    let Some(_server) = Peer::start(&lab, Kind::Chronyd, "local stratum 3") else { return };
    let daemon = timeball(&lab, &[], &format!("datapath = \"socket\"\n{}", server(THEIRS[0], "")));
    follows(&daemon, "server", "10.99.1.2:123", 3);
    let Some(_follower) = Peer::start_beside(&lab, kind, follower) else { return };
    is_followed(&lab, &format!("{}:{port}", OURS[0]), OURS[0], 5);
}

#[test]
fn chronyd_follows_what_we_serve_of_chronyds_time() {
    let follower = format!("server {} iburst minpoll 1 maxpoll 1\nmaxdistance 16\nport 11123", OURS[0]);
    the_time_is_passed_on(Kind::Chronyd, &follower, "11123");
}

/// ntpsec cannot have another port, so it is in the other namespace and we serve a clock of our own.
#[track_caller]
fn our_clock_is_followed(kind: Kind, lines: &str, stratum: u64) {
    if !can_have_labs() {
        return;
    }
    let lab = lab();
    let _daemon = timeball(&lab, &["--local-stratum", "5"], "datapath = \"socket\"");
    let Some(_follower) = Peer::start(&lab, kind, lines) else { return };
    is_followed(&lab, THEIRS[0], OURS[0], stratum);
}

#[test]
fn ntpsec_follows_us() {
    our_clock_is_followed(Kind::Ntpsec, "server 10.99.1.1 iburst minpoll 4 maxpoll 4", 6);
}

#[test]
fn ntpd_follows_us() {
    our_clock_is_followed(Kind::Ntpd, "server 10.99.1.1 iburst minpoll 4 maxpoll 4", 6);
}
