//! Workers at a real-time priority, and without the right to one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{Carrier, Daemon, Lab, SERVER, can_have_labs};
use std::fs;
use std::process::Command;

/// `SCHED_OTHER` and `SCHED_FIFO` of sched(7).
const ORDINARY: u32 = 0;
const FIFO: u32 = 1;

/// Name, real-time priority and policy of each thread: fields 2, 40 and 41 of proc_pid_stat(5).
fn threads(daemon: &Daemon) -> Vec<(String, u32, u32)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let mut threads: Vec<_> = tasks
        .map(|task| {
            let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            let (start, rest) = stat.rsplit_once(") ").unwrap();
            let fields: Vec<&str> = rest.split(' ').collect();
            let name = start.split_once('(').unwrap().1.to_owned();
            (name, fields[37].parse().unwrap(), fields[38].parse().unwrap())
        })
        .collect();
    threads.sort();
    threads
}

fn configuration(carrier: Carrier) -> String {
    format!("realtime-priority = 7\nworkers = 1\n{}", carrier.configuration(""))
}

/// May this process give real-time priorities? Says SKIP if not.
fn may_be_real_time() -> bool {
    let may =
        Command::new("chrt").args(["--fifo", "7", "true"]).status().is_ok_and(|status| status.success());
    if !may {
        common::skip("no right to a real-time priority, or no chrt (Debian package util-linux)");
    }
    may
}

#[test]
fn workers_have_the_priority_and_no_other_thread_does() {
    if !can_have_labs() || !may_be_real_time() {
        return;
    }
    for carrier in [Carrier::Driver, Carrier::Socket] {
        let lab = Lab::new(&[]);
        let daemon = Daemon::start(&lab, &configuration(carrier));
        for server in SERVER {
            assert!(lab.answers(server), "{carrier:?}");
        }
        let threads = threads(&daemon);
        let of = |policy| threads.iter().filter(move |thread| thread.2 == policy);
        let fifo: Vec<_> = of(FIFO).map(|(name, priority, _)| (name.as_str(), *priority)).collect();
        assert_eq!(fifo, [("worker-0", 7)], "{threads:?}");
        assert_eq!(of(ORDINARY).count(), threads.len() - 1, "{threads:?}");
        assert!(threads.len() > 1, "the control thread is not among them: {threads:?}");
        for worker in daemon.status()["workers"].as_array().unwrap() {
            assert_eq!((&worker["realtime_priority"], &worker["priority_refused"]), (&7.into(), &().into()));
        }
        let text = daemon.status_text();
        assert!(text.contains("priority real-time (SCHED_FIFO), 7"), "{text}");
        assert!(!daemon.log().contains("WARN"), "{}", daemon.log());
    }
}

#[test]
fn without_the_right_to_it_the_daemon_warns_once_and_serves() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let wrapper =
        ["prlimit", "--rtprio=0", "setpriv", "--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice", "--"];
    let daemon = Daemon::start_under(&lab, &wrapper, &configuration(Carrier::Driver));
    for server in SERVER {
        assert!(lab.answers(server));
    }
    assert!(daemon.replies().af_xdp > 0);
    assert!(threads(&daemon).iter().all(|(_, priority, policy)| (*priority, *policy) == (0, ORDINARY)));
    let log = daemon.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
    let [warning] = warnings.as_slice() else { panic!("one warning:\n{log}") };
    for word in ["ordinary priority", "realtime-priority = 7", "CAP_SYS_NICE", "LimitRTPRIO"] {
        assert!(warning.contains(word), "{word}: {warning}");
    }
    for worker in daemon.status()["workers"].as_array().unwrap() {
        assert!(worker["realtime_priority"].is_null(), "{worker}");
        let reason = worker["priority_refused"].as_str().unwrap();
        assert!(reason.contains("CAP_SYS_NICE"), "{reason}");
    }
    let text = daemon.status_text();
    assert!(text.contains("priority ordinary, not as configured: realtime-priority = 7"), "{text}");
}
