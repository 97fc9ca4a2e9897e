//! Symmetric active and passive associations with chronyd and ntp.org's ntpd, each end leading once. (ntpsec has removed these
//! modes.)

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::peers::{Keys, Kind, OURS, Peer, THEIRS, follows, in_time, is_followed, lab, timeball};
use common::{can_have_labs, eventually, run_well};

const SOCKETS: &str = "datapath = \"socket\"\n";

/// A peer of ours that is configured, with what the test adds.
fn active(more: &str) -> String {
    format!("[[peer]]\naddress = \"{}\"\nmin-poll = 3\nmax-poll = 3\n{more}\n", THEIRS[0])
}

/// Their line for us.
fn theirs(kind: Kind, more: &str) -> String {
    let polls = if kind == Kind::Chronyd { "minpoll 1 maxpoll 1" } else { "minpoll 3 maxpoll 3" };
    format!("peer {} {polls} {more}", OURS[0])
}

/// They have the time, and we take it from them.
#[track_caller]
fn we_follow(kind: Kind, their_lines: &str, mode: &str, configuration: &str) {
    if !can_have_labs() {
        return;
    }
    let (lab, keys) = (lab(), Keys::new());
    let Some(_peer) = Peer::start(&lab, kind, &format!("{}\n{their_lines}", kind.local())) else { return };
    let daemon = timeball(&lab, &[], &format!("{configuration}\n{}", keys.lines()));
    follows(&daemon, mode, "10.99.1.2:123", kind.local_stratum());
}

/// We have the time, and they take it from us.
#[track_caller]
fn they_follow(kind: Kind, their_lines: &str, configuration: &str) {
    if !can_have_labs() {
        return;
    }
    let (lab, keys) = (lab(), Keys::new());
    let configuration = format!("{configuration}\n{}", keys.lines());
    let daemon = timeball(&lab, &["--local-stratum", "5"], &configuration);
    let Some(_peer) = Peer::start(&lab, kind, their_lines) else { return };
    is_followed(&lab, THEIRS[0], OURS[0], 6);
    assert_eq!(daemon.status()["clock"]["stratum"], 5, "who follows us is not followed");
}

#[test]
fn active_and_active_with_chronyd_leading() {
    we_follow(Kind::Chronyd, &theirs(Kind::Chronyd, ""), "peer", &format!("{SOCKETS}{}", active("")));
}

#[test]
fn active_and_active_with_chronyd_following() {
    they_follow(Kind::Chronyd, &theirs(Kind::Chronyd, ""), &format!("{SOCKETS}{}", active("")));
}

#[test]
fn active_and_active_with_chronyd_leading_with_a_key() {
    let ours = format!("{SOCKETS}{}", active("key = 1\nvolley = false"));
    we_follow(Kind::Chronyd, &theirs(Kind::Chronyd, "key 1"), "peer", &ours);
}

#[test]
fn active_and_active_with_chronyd_following_with_a_key() {
    they_follow(Kind::Chronyd, &theirs(Kind::Chronyd, "key 1"), &format!("{SOCKETS}{}", active("key = 1")));
}

/// What AF_XDP does not take is passed to the kernel's sockets, and by them to the control thread.
#[test]
fn active_and_active_with_chronyd_leading_with_af_xdp_on_the_interface() {
    let carrier = "datapath = \"af-xdp\"\n[[interface]]\nname = \"tb0\"\n";
    we_follow(Kind::Chronyd, &theirs(Kind::Chronyd, ""), "peer", &format!("{carrier}{}", active("")));
}

#[test]
fn passive_with_chronyd_leading_without_workers() {
    let ours = format!("{SOCKETS}workers = 0\npassive-peers = \"anyone\"");
    we_follow(Kind::Chronyd, &theirs(Kind::Chronyd, ""), "passive", &ours);
}

#[test]
fn passive_with_chronyd_leading() {
    let ours = format!("{SOCKETS}passive-peers = \"anyone\"");
    we_follow(Kind::Chronyd, &theirs(Kind::Chronyd, ""), "passive", &ours);
}

#[test]
fn passive_with_chronyd_leading_with_a_key() {
    we_follow(Kind::Chronyd, &theirs(Kind::Chronyd, "key 2"), "passive", SOCKETS);
}

/// A right MAC is not enough: its key must be one of `keys.trusted`. SIGHUP brings the list into force, also for a peer that is
/// there already.
#[test]
fn passive_only_by_a_trusted_key() {
    if !can_have_labs() {
        return;
    }
    let (lab, keys) = (lab(), Keys::new());
    let lines = format!("{}\n{}", Kind::Chronyd.local(), theirs(Kind::Chronyd, "key 2"));
    let Some(_peer) = Peer::start(&lab, Kind::Chronyd, &lines) else { return };
    let trusting = |ids: &str| format!("{SOCKETS}{}trusted = {ids}\n", keys.lines());
    let daemon = timeball(&lab, &[], &trusting("[1]"));
    let refused = || daemon.status()["control"]["packets"]["peers_refused"].as_u64().unwrap();
    in_time("two packets are refused", || if refused() >= 2 { Ok(()) } else { Err(refused().to_string()) });
    assert_eq!(daemon.sources()["sources"].as_array().unwrap().len(), 0);
    daemon.reconfigure(&trusting("[1, 2]"));
    follows(&daemon, "passive", "10.99.1.2:123", Kind::Chronyd.local_stratum());
    daemon.reconfigure(&trusting("[1]"));
    in_time("it is let go", || match daemon.sources()["sources"].as_array().unwrap().len() {
        0 => Ok(()),
        _ => Err(daemon.sources().to_string()),
    });
    assert!(daemon.log().contains("by a key that is not trusted any more"), "{}", daemon.log());
}

#[test]
fn passive_with_chronyd_following() {
    they_follow(Kind::Chronyd, &theirs(Kind::Chronyd, ""), &format!("{SOCKETS}passive-peers = \"anyone\""));
}

#[test]
fn active_and_active_with_ntpd_leading() {
    we_follow(Kind::Ntpd, &theirs(Kind::Ntpd, ""), "peer", &format!("{SOCKETS}{}", active("")));
}

#[test]
fn active_and_active_with_ntpd_following() {
    they_follow(Kind::Ntpd, &theirs(Kind::Ntpd, ""), &format!("{SOCKETS}{}", active("")));
}

#[test]
fn active_and_active_with_ntpd_leading_with_a_key() {
    we_follow(Kind::Ntpd, &theirs(Kind::Ntpd, "key 1"), "peer", &format!("{SOCKETS}{}", active("key = 1")));
}

#[test]
fn active_with_ntpd_passive_and_leading() {
    let ours = format!("{SOCKETS}{}", active("volley = false"));
    we_follow(Kind::Ntpd, "disable auth", "peer", &ours);
}

#[test]
fn active_with_ntpd_passive_and_leading_with_a_key() {
    let ours = format!("{SOCKETS}{}", active("key = 2\nvolley = false"));
    we_follow(Kind::Ntpd, "", "peer", &ours);
}

#[test]
fn active_with_ntpd_passive_and_following() {
    they_follow(Kind::Ntpd, "disable auth", &format!("{SOCKETS}{}", active("volley = false")));
}

#[test]
fn passive_with_ntpd_leading() {
    let ours = format!("{SOCKETS}passive-peers = \"anyone\"");
    we_follow(Kind::Ntpd, &theirs(Kind::Ntpd, ""), "passive", &ours);
}

#[test]
fn passive_with_ntpd_following_with_a_key() {
    they_follow(Kind::Ntpd, &theirs(Kind::Ntpd, "key 2"), SOCKETS);
}

/// Whoever has us as a peer has one of our addresses, and takes nobody else for us: not one of those that a host makes up
/// for its clients' privacy (RFC 8981), and that Linux would rather send from.
#[test]
fn a_peer_is_sent_to_from_an_address_that_lasts() {
    if !can_have_labs() {
        return;
    }
    let lab = lab();
    run_well(lab.on_server("sysctl").args(["-qw", "net.ipv6.conf.tb0.use_tempaddr=2"]));
    lab.server_ip("address del fd99:1::1/64 dev tb0");
    lab.server_ip("address add fd99:1::a:b:c:d/64 dev tb0 nodad mngtmpaddr");
    eventually("there is a temporary address", || {
        lab.server_ip("-6 address show dev tb0").contains("scope global temporary").then_some(())
    });
    let configuration = "datapath = \"socket\"\n\
                         [[peer]]\naddress = \"fd99:1::2\"\nvolley = false\nmin-poll = 0\nmax-poll = 0\n";
    let _daemon = timeball(&lab, &[], configuration);
    let code = "import socket\n\
                peer = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n\
                peer.settimeout(10)\n\
                peer.bind(('fd99:1::2', 123))\n\
                print(peer.recvfrom(100)[1][0])";
    assert_eq!(run_well(lab.on_client("python3").args(["-c", code])).trim(), "fd99:1::a:b:c:d");
}
