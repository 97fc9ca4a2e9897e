//! SIGHUP: an edited configuration takes effect without a restart, as far as sources and keys go.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::peers::{Kind, Peer, THEIRS, follows};
use common::{Daemon, Lab, can_have_labs, eventually};
use serde_json::Value;

const CARRIER: &str = "datapath = \"socket\"\n";

/// A server that is asked every second, or every two.
fn server(address: &str, poll: u8) -> String {
    format!("[[server]]\naddress = \"{address}\"\nmin-poll = {poll}\nmax-poll = {poll}\n")
}

/// The sources by name, in the order in which they are shown, with the packets sent to each.
fn shown(daemon: &Daemon) -> Vec<(String, u64)> {
    let report = daemon.sources();
    let rows = report["sources"].as_array().unwrap().iter();
    rows.map(|row| (row["name"].as_str().unwrap().to_owned(), row["sent"].as_u64().unwrap())).collect()
}

fn names(shown: &[(String, u64)]) -> Vec<&str> {
    shown.iter().map(|(name, _)| name.as_str()).collect()
}

/// Nobody answers at these addresses; what is sent to them tells since when each association has been there.
#[test]
fn sources_come_go_and_change_and_the_others_are_not_disturbed() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let [a, b, c, d] = ["10.99.1.11", "10.99.1.12", "10.99.1.13", "10.99.1.14"];
    let all = [CARRIER, &server(a, 0), &server(b, 0), &server(c, 0)].concat();
    let daemon = Daemon::start_with(&lab, &[], &[], &all);
    let before = eventually("five questions to each", || {
        Some(shown(&daemon)).filter(|shown| shown.iter().all(|(_, sent)| *sent >= 5))
    });
    assert_eq!(names(&before), [a, b, c]);

    // In another order, b gone, c asked less often, d new.
    let edited = [CARRIER, &server(d, 0), &server(c, 1), &server(a, 0)].concat();
    daemon.reconfigure(&edited);
    let after =
        eventually("the edited sources", || Some(shown(&daemon)).filter(|shown| names(shown) == [d, c, a]));
    assert!(after[2].1 >= before[0].1, "a goes on: {before:?}, {after:?}");
    assert!(after[0].1 < 3 && after[1].1 < 3, "c and d begin: {after:?}");
    let log = daemon.log();
    assert!(log.contains("no longer configured source=\"10.99.1.12\""), "{log}");
    assert!(!log.contains("restart for the rest"), "{log}");
    eventually("c is asked every two seconds", || {
        let report = daemon.sources();
        (report["sources"][1]["poll"] == 1 && report["sources"][1]["sent"].as_u64() > Some(1)).then_some(())
    });

    // What is wrong changes nothing, and is said by line.
    let sent = shown(&daemon);
    daemon.reconfigure(&format!("{edited}[[server]]\naddress = \"{b}\"\nversion = 9\n"));
    eventually("the mistake is logged", || {
        let log = daemon.log();
        (log.contains("server.version = 9: must be 3 to 4") && log.contains("the keys stay as they are"))
            .then_some(())
    });
    let still = shown(&daemon);
    assert_eq!(names(&still), [d, c, a]);
    assert!(still.iter().zip(&sent).all(|(now, before)| now.1 >= before.1), "{sent:?}, {still:?}");
    // So does a key that nobody has.
    daemon.reconfigure(&format!("{edited}[[server]]\naddress = \"{b}\"\nkey = 5\n"));
    eventually("it is logged", || daemon.log().contains("server.key = 5").then_some(()));
    assert_eq!(names(&shown(&daemon)), [d, c, a]);

    // The rest of the configuration is not taken, and that is said.
    daemon.reconfigure(&format!("kod = true\n{CARRIER}{}", server(a, 0)));
    let last = eventually("one is left", || Some(shown(&daemon)).filter(|shown| shown.len() == 1));
    assert!(last[0].0 == a && last[0].1 >= sent[2].1, "{last:?}");
    assert!(daemon.log().contains("restart for the rest"), "{}", daemon.log());
}

/// That there is somebody to ask does not make the clock right yet.
#[test]
fn a_first_source_is_not_logged_as_a_synchronised_clock() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start_with(&lab, &[], &[], CARRIER);
    assert!(daemon.log().contains("no time reference is configured"), "{}", daemon.log());
    daemon.reconfigure(&[CARRIER, &server("10.99.1.11", 0)].concat());
    eventually("it is asked for some seconds", || {
        shown(&daemon).first().is_some_and(|(_, sent)| *sent >= 3).then_some(())
    });
    assert!(!daemon.log().contains("the clock is synchronised"), "{}", daemon.log());
    daemon.reconfigure(CARRIER);
    eventually("it is said again", || {
        (daemon.log().matches("no time reference is configured").count() == 2).then_some(())
    });
}

/// The source that is followed is followed all the time, whoever comes or goes beside it; gone, it is not.
#[test]
fn the_selected_source_stays_selected_until_it_is_removed() {
    if !can_have_labs() {
        return;
    }
    let lab = common::peers::lab();
    let Some(_server) = Peer::start(&lab, Kind::Chronyd, Kind::Chronyd.local()) else { return };
    let ours =
        format!("[[server]]\naddress = \"{}\"\niburst = true\nmin-poll = 1\nmax-poll = 1\n", THEIRS[0]);
    let daemon = Daemon::start_with(&lab, &[], &[], &format!("{CARRIER}{ours}"));
    let before = follows(&daemon, "server", "10.99.1.2:123", 3);
    daemon.reconfigure(&format!(
        "{CARRIER}{}{ours}[[broadcast-client]]\naddress = \"224.0.1.1\"\n",
        server("10.99.1.12", 0)
    ));
    let rows = eventually("two more", || {
        let report = daemon.sources();
        let rows = report["sources"].as_array().unwrap().clone();
        (rows.len() == 3).then_some(rows)
    });
    let row: &Value = rows.iter().find(|row| row["address"] == "10.99.1.2:123").unwrap();
    assert_eq!(row["sign"], "*", "{row}");
    assert!(row["reach"].as_u64() >= before["reach"].as_u64(), "{row}");
    assert_eq!(daemon.status()["clock"]["stratum"], 4);
    daemon.reconfigure(&format!("{CARRIER}{}", server("10.99.1.12", 0)));
    eventually("nobody is followed", || (daemon.status()["clock"]["stratum"] == 16).then_some(()));
    assert_eq!(daemon.sources()["sources"].as_array().unwrap().len(), 1);
}
