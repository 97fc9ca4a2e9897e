//! How the workers are scheduled: favoured, at a real-time priority, and without the right to one.

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
            assert_eq!((&worker["policy"], &worker["nice"]), (&"SCHED_FIFO".into(), &().into()));
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
    let line =
        text.lines().find(|line| line.starts_with("priority nice ")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains(", not as configured: realtime-priority = 7"), "{line}");
}

/// The kernel's `struct sched_attr`, first version.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Of an ordinary thread its time slice, in nanoseconds; 0 before Linux 6.12.
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// What the kernel says of each thread of the daemon, with its number and name.
fn attributes(daemon: &Daemon) -> Vec<(u32, String, Attributes)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let mut threads: Vec<_> = tasks
        .map(|task| {
            let path = task.unwrap().path();
            let thread: u32 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            let mut attributes = Attributes::default();
            let size = size_of::<Attributes>();
            #[allow(unsafe_code)]
            // SAFETY: the kernel writes no more than `size` octets of integers there.
            let result =
                unsafe { libc::syscall(libc::SYS_sched_getattr, thread, &raw mut attributes, size, 0) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            (thread, fs::read_to_string(path.join("comm")).unwrap().trim_end().to_owned(), attributes)
        })
        .collect();
    threads.sort_by(|one, other| one.1.cmp(&other.1));
    threads
}

/// The words that start a program with this nice value, whatever that of the tests is; none, having said SKIP, without the
/// right to it.
fn with_nice(value: i32) -> Option<[String; 3]> {
    let now: i32 = common::run_well(&mut Command::new("nice")).trim().parse().unwrap();
    let words = ["nice".to_owned(), "-n".to_owned(), (value - now).to_string()];
    let told = common::run(Command::new(&words[0]).args(&words[1..]).arg("nice"));
    if String::from_utf8_lossy(&told.stdout).trim() == value.to_string() {
        return Some(words);
    }
    common::skip("no right to a lower nice value");
    None
}

#[test]
fn workers_are_favoured_unless_the_service_has_a_nice_value_of_its_own() {
    if !can_have_labs() {
        return;
    }
    for (own, worker_has) in [(0, -10), (4, 4)] {
        let Some(wrapper) = with_nice(own) else { return };
        let lab = Lab::new(&[]);
        let configuration = format!("workers = 1\n{}", Carrier::Driver.configuration(""));
        let daemon = Daemon::start_under(&lab, &wrapper.each_ref().map(String::as_str), &configuration);
        assert!(lab.answers(SERVER[0]));
        let threads = attributes(&daemon);
        for (_, name, attributes) in &threads {
            let expected = if name == "worker-0" { worker_has } else { own };
            assert_eq!((attributes.policy, attributes.nice), (ORDINARY, expected), "{name}: {threads:?}");
        }
        let (thread, _, worker) = threads.iter().find(|thread| thread.1 == "worker-0").unwrap();
        if worker.runtime == 0 {
            common::skip("this kernel does not tell a thread's time slice");
        } else {
            assert_eq!(worker.runtime, 100_000, "{worker:?}");
            assert!(
                threads.iter().all(|other| other.1 == "worker-0" || other.2.runtime > 100_000),
                "{threads:?}"
            );
        }
        let told = |nice: i32| {
            let report = &daemon.status()["workers"][0];
            assert_eq!(
                (&report["policy"], &report["nice"]),
                (&"SCHED_OTHER".into(), &nice.into()),
                "{report}"
            );
            assert!(report["realtime_priority"].is_null(), "{report}");
            if worker.runtime > 0 {
                assert_eq!(report["time_slice_nanoseconds"], 100_000, "{report}");
            }
            let text = daemon.status_text();
            assert!(text.contains(&format!("\npriority nice {nice}")), "{text}");
        };
        told(worker_has);
        // What is told is what the kernel does now, whoever wanted it.
        common::run_well(Command::new("renice").args(["-n", "7", "-p", &thread.to_string()]));
        let renewed = attributes(&daemon).into_iter().find(|other| other.0 == *thread).unwrap().2;
        told(renewed.nice);
        assert_ne!(renewed.nice, worker_has);
    }
}
