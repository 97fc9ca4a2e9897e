//! `timeball sources` says in words what keeps a source from being of use, also where nobody answers or nothing can be sent.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::peers::lab;
use common::{Daemon, Lab, TIMEBALL, can_have_labs, eventually, run_well};
use serde_json::Value;
use std::process::{Command, Stdio};

/// The row of this mode and name, once its reason contains these words.
#[track_caller]
fn says(daemon: &Daemon, mode: &str, name: &str, words: &str) -> Value {
    eventually(&format!("{mode} {name} says {words:?}"), || {
        let report = daemon.sources();
        let mut rows = report["sources"].as_array().unwrap().iter();
        let is_it = |row: &&Value| {
            row["mode"] == mode && row["name"] == name && row["reason"].as_str().unwrap().contains(words)
        };
        rows.find(is_it).cloned()
    })
}

/// The client tells the group, from port 123 and without a signature, that it is a server of stratum 2.
fn broadcast_once(lab: &Lab) {
    let code = "\
import socket, struct, time
speaker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
speaker.bind(('10.99.1.2', 123))
now = int((time.time() + 2208988800) * 2**32)
speaker.sendto(struct.pack('!BBbb11I', 0x25, 2, 3, -20, 0, 0, 0x7f7f0101, now >> 32, 0, 0, 0, 0, 0, now >> 32, now & 0xffffffff), ('224.0.1.1', 123))";
    run_well(lab.on_client("python3").args(["-c", code]));
}

#[test]
fn what_cannot_be_sent_to_says_so_and_is_logged_once() {
    if !can_have_labs() {
        return;
    }
    let lab = lab();
    let everybody = "[[broadcast]]\naddress = \"255.255.255.255\"\ninterval = 0\n";
    // There is no route to the first; the second needs none.
    let configuration = format!(
        "datapath = \"socket\"\n{everybody}{everybody}interface = \"tb0\"\n\
         [[server]]\naddress = \"198.51.100.1\"\nmin-poll = 0\nmax-poll = 0\n"
    );
    let daemon = Daemon::start(&lab, &configuration);
    let row = says(&daemon, "broadcast", "255.255.255.255", "cannot be sent to: Network is unreachable");
    assert_eq!(row["sent"], 0, "{row}");
    says(&daemon, "broadcast", "255.255.255.255", "3 packets sent");
    let row = says(&daemon, "server", "198.51.100.1", "cannot be sent to: Network is unreachable");
    assert_eq!((&row["sign"], &row["state"]), (&"?".into(), &"unreachable".into()), "{row}");
    let log = daemon.log();
    assert_eq!(log.matches("cannot be sent to; it is tried again").count(), 2, "{log}");
    assert!(!log.contains("can be sent to again"), "{log}");
}

#[test]
fn a_search_says_where_it_stands() {
    if !can_have_labs() {
        return;
    }
    let lab = lab();
    let search = "[[manycast-client]]\nttl = 1\nmin-poll = 1\nmax-poll = 1\ntimeout = 4\n";
    let daemon = Daemon::start(&lab, &format!("datapath = \"socket\"\n{search}"));
    says(&daemon, "manycast-client", "224.0.1.1", "servers are sought with TTL 1");
    says(
        &daemon,
        "manycast-client",
        "224.0.1.1",
        "too few servers answered up to TTL 1; the search rests for 16 s",
    );
}

/// Whoever sends a broadcast to nobody's benefit is told from one who is not there.
#[test]
fn a_listener_says_whom_it_hears_in_vain() {
    if !can_have_labs() {
        return;
    }
    let lab = lab();
    let listener = "datapath = \"socket\"\n[[broadcast-client]]\naddress = \"224.0.1.1\"\n";
    let daemon = Daemon::start(&lab, listener);
    says(&daemon, "broadcast-client", "224.0.1.1", "nothing heard yet");
    broadcast_once(&lab);
    let words = "nothing of use heard yet; so far 1 packets failed test 5 (authentication)";
    says(&daemon, "broadcast-client", "224.0.1.1", words);
    drop(daemon);

    let daemon = Daemon::start(&lab, &format!("{listener}[[server]]\naddress = \"10.99.1.2\"\n"));
    broadcast_once(&lab);
    let words = "heard only from servers that are sources already, 1 packets";
    says(&daemon, "broadcast-client", "224.0.1.1", words);
}

/// Nobody but the workers may have a socket at an address of ours, or its clients get no answer.
#[test]
fn a_listener_at_an_address_of_ours_is_refused_and_clients_are_answered() {
    if !can_have_labs() {
        return;
    }
    let lab = lab();
    let listener = "[[broadcast-client]]\nallow-unsigned = true\naddress = ";
    let daemon = Daemon::start(
        &lab,
        &format!("datapath = \"socket\"\n{listener}\"10.99.1.1\"\n{listener}\"10.99.1.9\"\n"),
    );
    let words = "not listened at: it is an address of this machine, and no broadcast address";
    says(&daemon, "broadcast-client", "10.99.1.1", words);
    says(&daemon, "broadcast-client", "10.99.1.9", "not listened at: Cannot assign requested address");
    lab.server_ip("address add 10.99.1.9/24 dev tb0");
    says(&daemon, "broadcast-client", "10.99.1.9", words);
    for server in ["10.99.1.1", "10.99.1.9"] {
        lab.answers_eventually(server);
    }
}

/// `timeball sources --json | head -c 1` of more than a pipe holds.
#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    if !can_have_labs() {
        return;
    }
    let lab = lab();
    let server = |number: u16| format!("[[server]]\naddress = \"10.99.1.2\"\nport = {number}\n");
    let many: String = (1000..1200).map(server).collect();
    let daemon = Daemon::start(&lab, &format!("datapath = \"socket\"\n{many}"));
    let script = format!(
        "set -o pipefail; {TIMEBALL} sources --json --socket {} | head -c 1",
        daemon.socket().display()
    );
    assert_eq!(run_well(Command::new("bash").args(["-c", &script])), "{");
}

/// "It is tried again": nothing about the interfaces changes when another program goes.
#[test]
fn a_listener_whose_address_was_in_use_listens_when_it_is_free() {
    if !can_have_labs() {
        return;
    }
    let lab = lab();
    let code = "import socket, time\n\
                other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                other.bind(('10.99.1.255', 123))\n\
                time.sleep(60)";
    let mut other = lab.on_server("python3").args(["-c", code]).stdin(Stdio::null()).spawn().unwrap();
    eventually("the other one listens", || {
        let bound = run_well(lab.on_server("ss").args(["-Hlun", "sport", "=", "123"]));
        (!bound.is_empty()).then_some(())
    });
    let listener = "datapath = \"socket\"\n[[broadcast-client]]\naddress = \"10.99.1.255\"\n";
    let daemon = Daemon::start(&lab, listener);
    says(&daemon, "broadcast-client", "10.99.1.255", "not listened at: Address already in use");
    other.kill().unwrap();
    other.wait().unwrap();
    says(&daemon, "broadcast-client", "10.99.1.255", "nothing heard yet");
    assert_eq!(daemon.log().matches("not listened at").count(), 1, "{}", daemon.log());
}

/// What is configured and not there is shown among the sources, not among those who expect nothing of it.
#[test]
fn a_source_whose_interface_is_missing_is_shown_as_unusable() {
    if !can_have_labs() {
        return;
    }
    let lab = lab();
    let configuration = "datapath = \"socket\"\n[[server]]\naddress = \"fe80::1%nosuch0\"\n\
                         [[broadcast]]\ninterface = \"nosuch0\"\n";
    let daemon = Daemon::start(&lab, configuration);
    let row = says(&daemon, "server", "fe80::1%nosuch0", "interface nosuch0 does not exist");
    assert_eq!(row["sign"], "?", "{row}");
    let row = says(&daemon, "broadcast", "224.0.1.1", "interface nosuch0 does not exist");
    assert_eq!(row["sign"], " ", "{row}");
}
