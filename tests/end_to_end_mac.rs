//! A request is answered from the MAC it was sent to, so only one that was sent to ours may be answered over AF_XDP.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{Carrier, Daemon, Lab, Probed, SERVER, can_have_labs, eventually, run_well};

/// Nobody's, and another one that the server's interface gets.
const FOREIGN_MAC: &str = "02:00:00:00:00:99";
const NEW_MAC: &str = "02:00:00:00:00:42";

/// One good request in a raw frame to `mac`.
fn ask_at(lab: &Lab, server: &str, mac: &str) -> Probed {
    let options = ["--interface", "tb0", "--server", server, "--mac", mac, "--case", "version-4"];
    lab.probe(&options).remove(0)
}

fn server_mac(lab: &Lab) -> String {
    run_well(lab.on_server("cat").arg("/sys/class/net/tb0/address")).trim().to_owned()
}

#[track_caller]
fn frames_to_another_mac_are_not_answered(carrier: Carrier) {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    // What a bridge or a packet capture does to an interface.
    lab.server_ip("link set tb0 promisc on");
    let daemon = Daemon::start(&lab, &carrier.configuration(""));
    for server in SERVER {
        let ours = ask_at(&lab, server, &server_mac(&lab));
        assert!(ours.is_ok, "{}", ours.report);
        let (before, passed) = (daemon.replies(), daemon.verdicts("passed_other_mac"));
        let foreign = ask_at(&lab, server, FOREIGN_MAC);
        assert_eq!(foreign.reply, None, "{}", foreign.report);
        assert_eq!(daemon.verdicts("passed_other_mac"), passed + 1, "the frame came to the program");
        assert_eq!(daemon.replies(), before, "neither path has answered");
    }
}

#[test]
fn frames_to_another_mac_are_not_answered_in_driver_mode() {
    frames_to_another_mac_are_not_answered(Carrier::Driver);
}

#[test]
fn frames_to_another_mac_are_not_answered_in_skb_mode() {
    frames_to_another_mac_are_not_answered(Carrier::Skb);
}

#[test]
fn a_new_mac_of_the_interface_is_followed() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    let old_mac = server_mac(&lab);
    for server in SERVER {
        assert!(ask_at(&lab, server, &old_mac).is_ok);
    }
    assert_eq!(daemon.replies().socket, 0);
    lab.server_ip(&format!("link set tb0 address {NEW_MAC}"));
    for server in SERVER {
        // The sockets answer until the program knows.
        eventually(&format!("{server} answers over AF_XDP at its new MAC"), || {
            let before = daemon.replies().af_xdp;
            let answered = ask_at(&lab, server, NEW_MAC);
            assert!(answered.is_ok, "no gap: {}", answered.report);
            (daemon.replies().af_xdp > before).then_some(())
        });
        let stale = ask_at(&lab, server, &old_mac);
        assert_eq!(stale.reply, None, "{}", stale.report);
    }
    assert_eq!(daemon.queues_in_balance(), 1);
}
