//! The daemon answers what it should and nothing else, byte for byte the same on both of its paths.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{Carrier, Daemon, Lab, Probed, SERVER, all_ok, can_have_labs, run_well};

/// Every case of the packet probe, good and bad, over IPv4 and IPv6.
#[track_caller]
fn every_case_is_handled(carrier: Carrier) {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &carrier.configuration(""));
    for server in SERVER {
        all_ok(&lab.probe(&["--interface", "tb0", "--server", server]));
    }
    let replies = daemon.replies();
    if carrier == Carrier::Socket {
        assert_eq!(replies.af_xdp, 0, "no AF_XDP was asked for");
    } else {
        assert!(replies.af_xdp > replies.socket, "most replies leave through AF_XDP: {replies:?}");
        assert_eq!(daemon.queues_in_balance(), 1);
        assert!(replies.socket > 0, "options and fragments are the kernel's to parse: {replies:?}");
    }
}

#[test]
fn every_case_is_handled_in_driver_mode() {
    every_case_is_handled(Carrier::Driver);
}

#[test]
fn every_case_is_handled_in_skb_mode() {
    every_case_is_handled(Carrier::Skb);
}

#[test]
fn every_case_is_handled_over_sockets() {
    every_case_is_handled(Carrier::Socket);
}

/// Raw tagged frames: the reply carries the request's tags, and no other VLAN is served. (`PacketSocket` in the probe
/// checks the tags of each reply.)
#[track_caller]
fn replies_stay_on_their_vlan(vlan: &str) {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &Carrier::Driver.configuration(vlan));
    for server in SERVER {
        let cases = ["--case", "version-3", "--case", "version-4", "--case", "vlan-unknown"];
        let options = ["--interface", "tb0", "--server", server, "--vlan", vlan];
        all_ok(&lab.probe(&[&options[..], &cases[..]].concat()));
        assert!(lab.answers(server), "untagged requests are still answered");
    }
    assert_eq!(daemon.replies().socket, 0);
}

#[test]
fn replies_stay_on_their_vlan_with_one_tag() {
    replies_stay_on_their_vlan("100");
}

#[test]
fn replies_stay_on_their_vlan_with_two_tags() {
    replies_stay_on_their_vlan("200.30");
}

/// Reference, receive and transmit timestamps differ between any two replies; the origin timestamp must not. The
/// root dispersion grows with the age of the reference timestamp, which is a second at most: two units of 15 us.
fn without_timestamps(reply: &[u8]) -> Vec<u8> {
    let mut reply = reply.to_vec();
    assert!(matches!(reply[8..12], [0, 0, 0, 0..=2]), "root dispersion {:?}", &reply[8..12]);
    reply[8..12].fill(0);
    reply[16..24].fill(0);
    reply[32..48].fill(0);
    reply
}

#[test]
fn both_paths_give_the_same_bytes() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    for server in SERVER {
        let options = ["--udp", "--server", server, "--seed", "7"];
        let before = daemon.replies();
        let over_af_xdp = lab.probe(&options);
        let between = daemon.replies();
        let over_sockets = lab.probe_from_server(&options);
        let after = daemon.replies();
        assert_eq!(between.socket, before.socket, "the client's requests go through AF_XDP");
        assert_eq!(after.af_xdp, between.af_xdp, "the server's own requests go over loopback");
        let comparable = |case: &Probed| (case.case.clone(), case.reply.as_deref().map(without_timestamps));
        let over_af_xdp: Vec<_> = over_af_xdp.iter().map(comparable).collect();
        let over_sockets: Vec<_> = over_sockets.iter().map(comparable).collect();
        assert!(over_af_xdp.iter().filter(|(_, reply)| reply.is_some()).count() > 10);
        assert_eq!(over_af_xdp, over_sockets);
    }
}

#[test]
fn every_queue_is_served() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&["--queues", "2"]);
    let daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    // The probe's cases come from as many ports, so the kernel's hash spreads them over the queues.
    all_ok(&lab.probe(&["--interface", "tb0", "--server", SERVER[0]]));
    assert!(daemon.replies().af_xdp > 10);
    assert_eq!(daemon.queues_in_balance(), 2);
}

#[test]
fn query_reads_what_the_daemon_serves() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    for server in SERVER {
        let before = daemon.replies().af_xdp;
        let answer =
            run_well(lab.on_client(env!("CARGO_BIN_EXE_timeball")).args(["query", server, "--json"]));
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["stratum"], 10, "{answer}");
        assert!(daemon.replies().af_xdp > before, "the answer came through AF_XDP");
    }
}
