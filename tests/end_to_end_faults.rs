//! Nothing goes dark: what happens to a network and its server in the field, and the service afterwards.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::asker::{Asker, request};
use common::{Carrier, Daemon, Lab, SERVER, can_have_labs, eventually, run_well};
use std::time::{Duration, Instant};

/// A lab with a daemon that has answered through AF_XDP in driver mode; None without root.
fn serving_lab() -> Option<(Lab, Daemon)> {
    if !can_have_labs() {
        return None;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    assert_answers_over_af_xdp(&lab, &daemon);
    Some((lab, daemon))
}

/// Both address families are answered, at once or within the harness's patience, and through AF_XDP again.
#[track_caller]
fn assert_answers_over_af_xdp(lab: &Lab, daemon: &Daemon) {
    for server in SERVER {
        // The socket path may bridge the gap until the rings are back.
        eventually(&format!("{server} answers over AF_XDP"), || {
            let before = daemon.replies().af_xdp;
            (lab.answers(server) && daemon.replies().af_xdp > before).then_some(())
        });
    }
}

#[test]
fn kill_9_leaves_no_program_and_the_next_start_works_at_once() {
    let Some((lab, daemon)) = serving_lab() else { return };
    assert!(lab.has_xdp_program());
    daemon.kill_9();
    eventually("the kernel removes the program of a dead process", || (!lab.has_xdp_program()).then_some(()));
    let started = Instant::now();
    let daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    assert!(lab.answers(SERVER[0]), "{:?} after the start", started.elapsed());
    assert_answers_over_af_xdp(&lab, &daemon);
}

#[test]
fn sigterm_ends_well_and_leaves_the_interface_as_it_was() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let features = || run_well(lab.on_server("ethtool").args(["-k", "tb0"]));
    let before = features();
    let daemon = Daemon::start(&lab, &Carrier::Driver.configuration("100"));
    assert!(lab.answers(SERVER[0]));
    let (status, log) = daemon.terminate();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!lab.has_xdp_program());
    assert_eq!(features(), before, "offloads are as they were");
}

/// Python that sends requests to argv[1] as fast as it can for argv[2] seconds and prints how many replies it saw.
const FLOOD: &str = "\
import socket, sys, time
flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
flood.connect((sys.argv[1], 123))
flood.setblocking(False)
replies = 0
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    try:
        flood.send(b'\\x23' + bytes(47))
        while flood.recv(64):
            replies += 1
    except OSError:
        pass
print(replies)";

#[test]
fn sigterm_under_load_ends_well() {
    let Some((lab, daemon)) = serving_lab() else { return };
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| run_well(lab.on_client("python3").args(["-c", FLOOD, SERVER[0], "1.5"])));
        std::thread::sleep(Duration::from_millis(700));
        let (status, log) = daemon.terminate();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("panicked"), "{log}");
        let replies: u64 = flood.join().unwrap().trim().parse().unwrap();
        assert!(replies > 100, "there was a load: {replies} replies");
    });
    assert!(!lab.has_xdp_program());
}

#[test]
fn serves_again_after_the_link_was_down() {
    let Some((lab, daemon)) = serving_lab() else { return };
    lab.server_ip("link set tb0 down");
    assert!(!lab.answers(SERVER[0]));
    lab.server_ip("link set tb0 up");
    // The kernel drops IPv6 addresses with the link.
    lab.server_ip("address replace fd99:1::1/64 dev tb0 nodad");
    assert_answers_over_af_xdp(&lab, &daemon);
}

#[test]
fn serves_again_after_the_interface_was_removed_and_came_back() {
    let Some((lab, daemon)) = serving_lab() else { return };
    lab.manage("unplug", &[]);
    // Long enough for a daemon that cannot bear it to fall over.
    std::thread::sleep(Duration::from_secs(1));
    assert!(daemon.status().is_object(), "still there without its interface");
    lab.manage("plug", &[]);
    assert_answers_over_af_xdp(&lab, &daemon);
    assert!(lab.has_xdp_program());
}

#[test]
fn follows_addresses_that_come_and_go() {
    let Some((lab, daemon)) = serving_lab() else { return };
    for address in ["10.99.1.50/24", "fd99:1::50/64"] {
        let host = address.split('/').next().unwrap();
        let nodad = if host.contains(':') { "nodad" } else { "" };
        assert!(!lab.answers(host), "{host} is not ours yet");
        lab.server_ip(&format!("address add {address} dev tb0 {nodad}"));
        lab.answers_eventually(host);
        let before = daemon.replies().af_xdp;
        assert!(lab.answers(host) && daemon.replies().af_xdp > before, "{host} is answered over AF_XDP");
        lab.server_ip(&format!("address del {address} dev tb0"));
        eventually(&format!("{host} falls silent"), || (!lab.answers(host)).then_some(()));
    }
    assert_answers_over_af_xdp(&lab, &daemon);
}

#[test]
fn a_flood_loses_no_frame_and_no_later_request() {
    let Some((lab, daemon)) = serving_lab() else { return };
    run_well(lab.on_client("python3").args(["-c", FLOOD, SERVER[0], "2"]));
    assert_answers_over_af_xdp(&lab, &daemon);
    assert_eq!(daemon.queues_in_balance(), 1);
}

/// Strangers' packets are the control thread's from the start: the workers neither receive nor count them. A flood of them
/// keeps no client waiting.
#[test]
fn what_is_no_request_does_not_reach_the_workers() {
    if !can_have_labs() {
        return;
    }
    const ROUNDS: u64 = 20;
    let lab = Lab::new(&[]);
    for carrier in [Carrier::Driver, Carrier::Socket] {
        let daemon = Daemon::start(&lab, &format!("workers = 2\n{}", carrier.configuration("")));
        for (source, server) in ["0.0.0.0", "::"].into_iter().zip(SERVER) {
            let asker = Asker::new(&lab, source, server);
            for mode in [1, 2, 4, 5, 6, 7, 0].repeat(ROUNDS as usize) {
                let mut packet = request(4, 7);
                packet[0] = 4 << 3 | mode;
                asker.send_request(&packet);
            }
            assert!(asker.ask().is_some(), "a client beside it");
        }
        eventually("all are counted by the control thread", || {
            let status = daemon.status();
            let of = |mode: u8| status["unsolicited"][mode.to_string()].as_u64();
            [0, 1, 2, 4, 5, 6, 7].iter().all(|mode| of(*mode) == Some(2 * ROUNDS)).then_some(())
        });
        let status = daemon.status();
        let workers = status["workers"].as_array().unwrap();
        let received = workers.iter().map(|worker| worker["socket_counters"]["received"].as_u64().unwrap());
        let asked = if carrier == Carrier::Socket { 2 } else { 0 };
        assert_eq!((workers.len(), received.sum::<u64>()), (2, asked), "{status}");
        assert_eq!(status["unsolicited"].get("3"), None, "{status}");
    }
}
