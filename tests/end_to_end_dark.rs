//! Nothing goes dark, the less usual cases: a worker that sleeps while the ring runs over, other numbers of workers,
//! an interface that is not ready, an XDP program that was there first.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::asker::{Asker, CLIENT};
use common::{Carrier, Daemon, Lab, SERVER, can_have_labs, eventually, run, run_well, text};
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Half a second is what [`Asker::ask`] waits.
#[track_caller]
fn assert_answered_at_once(lab: &Lab) {
    for server in SERVER {
        let source = if server.contains(':') { "fd99:1::2" } else { CLIENT };
        assert!(Asker::new(lab, source, server).ask().is_some(), "{server} does not answer at once");
    }
}

#[test]
fn requests_that_overrun_the_ring_are_counted_and_later_ones_answered() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    // 512 frames make rings of 128 entries.
    let configuration = format!("{}frames = 512\n", Carrier::Driver.configuration(""));
    let daemon = Daemon::start(&lab, &configuration);
    let asker = Asker::new(&lab, CLIENT, SERVER[0]);
    assert!(asker.ask().is_some());
    daemon.pause();
    (0..2000).for_each(|cookie| asker.send(cookie));
    daemon.resume();
    // The ring held 128, the rest was lost while nobody was there to take it.
    eventually("what the ring held is answered", || (daemon.replies().af_xdp == 1 + 128).then_some(()));
    let dropped: u64 = ["rx_ring_full", "fill_ring_empty", "rx_dropped"]
        .iter()
        .map(|name| daemon.queue_sum("kernel", name))
        .sum();
    assert!(dropped > 0, "the kernel says what it dropped: {}", daemon.status());
    assert_answered_at_once(&lab);
    assert_eq!(daemon.queue_sum("counters", "rx_packets"), 1 + 128 + 2);
    assert_eq!(daemon.queues_in_balance(), 1);
    let (status, log) = daemon.terminate();
    assert!(status.success() && log.contains("every frame accounted for"), "{log}");
}

#[test]
fn requests_that_overrun_the_socket_are_counted_and_later_ones_answered() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &Carrier::Socket.configuration(""));
    let asker = Asker::new(&lab, CLIENT, SERVER[0]);
    assert!(asker.ask().is_some());
    // The receive buffer holds some 10,000.
    let flood = 20_000;
    daemon.pause();
    (0..flood).for_each(|cookie| asker.send(cookie));
    daemon.resume();
    // The client's own buffer is small, so the replies are counted at the server.
    let (mut replies, mut dropped) = (0, None);
    eventually("each request was answered or counted as dropped", || {
        replies = daemon.replies().socket;
        dropped = daemon.status()["workers"][0]["socket_counters"]["kernel_dropped"].as_u64();
        (replies + dropped? == flood + 1).then_some(())
    });
    assert!(replies > 1000 && dropped > Some(0), "the buffer was filled and ran over: {replies} {dropped:?}");
    asker.receive_pending();
    assert_answered_at_once(&lab);
    // The count outlives the socket that it was made at.
    lab.server_ip("address del 10.99.1.1/24 dev tb0");
    eventually("the socket is closed", || {
        let told = daemon.status();
        let open = told["socket_addresses"].to_string().contains(SERVER[0]);
        (!open).then(|| assert_eq!(told["workers"][0]["socket_counters"]["kernel_dropped"].as_u64(), dropped))
    });
}

#[track_caller]
fn one_thread_does_it_all(carrier: Carrier) {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &format!("workers = 0\n{}", carrier.configuration("")));
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().count();
    assert_eq!(threads, 1);
    for _ in 0..20 {
        assert_answered_at_once(&lab);
    }
    let replies = daemon.replies();
    let (used, unused) = match carrier {
        Carrier::Socket => (replies.socket, replies.af_xdp),
        _ => (replies.af_xdp, replies.socket),
    };
    assert_eq!((used, unused), (40, 0));
    // The interface goes and comes back under the one thread.
    if carrier != Carrier::Socket {
        lab.manage("unplug", &[]);
        std::thread::sleep(Duration::from_millis(300));
        lab.manage("plug", &[]);
        lab.answers_eventually(SERVER[0]);
    }
    let (status, log) = daemon.terminate();
    assert!(status.success(), "{log}");
    assert!(!lab.has_xdp_program());
}

#[test]
fn one_thread_does_it_all_over_af_xdp() {
    one_thread_does_it_all(Carrier::Driver);
}

#[test]
fn one_thread_does_it_all_over_sockets() {
    one_thread_does_it_all(Carrier::Socket);
}

#[test]
fn two_queues_are_two_workers_work() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&["--queues", "2"]);
    let daemon = Daemon::start(&lab, &format!("workers = 2\n{}", Carrier::Driver.configuration("")));
    let askers = Asker::several(&lab, 64, CLIENT, SERVER[0]);
    assert!(askers.iter().all(|asker| asker.ask().is_some()));
    assert_eq!(daemon.replies().af_xdp, 64);
    let status = daemon.status();
    let replies = |worker: &serde_json::Value| worker["af_xdp"]["replies"].as_u64().unwrap();
    let by_worker: Vec<u64> = status["workers"].as_array().unwrap().iter().map(replies).collect();
    // Each port falls on either queue with even chances: that one of them gets fewer than 8 has chance 1e-10.
    assert!(by_worker.len() == 2 && by_worker.iter().all(|&replies| replies >= 8), "{by_worker:?}");
    let queues = status["interfaces"][0]["queues"].as_array().unwrap().clone();
    let workers: Vec<_> = queues.iter().map(|queue| queue["worker"].as_u64().unwrap()).collect();
    assert_eq!(workers.len(), 2);
    assert_ne!(workers[0], workers[1], "each has one");
    assert_eq!(daemon.queues_in_balance(), 2);
}

#[test]
fn busy_polling_answers_tells_and_ends() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &format!("busy-poll = true\n{}", Carrier::Driver.configuration("")));
    for _ in 0..20 {
        assert_answered_at_once(&lab);
    }
    assert_eq!((daemon.replies().af_xdp, daemon.queues_in_balance()), (40, 1));
    // Idle spinning must not lose what comes after it, nor the question for the status.
    std::thread::sleep(Duration::from_secs(1));
    assert_answered_at_once(&lab);
    assert_eq!(daemon.replies().af_xdp, 42);
    let began = Instant::now();
    let (status, log) = daemon.terminate();
    assert!(status.success(), "{log}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?} to end", began.elapsed());
}

#[test]
fn kill_9_under_traffic_and_a_restart_at_once() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let configuration = Carrier::Driver.configuration("");
    let daemon = Daemon::start(&lab, &configuration);
    let asker = Asker::new(&lab, CLIENT, SERVER[0]);
    assert!(asker.ask().is_some());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (traffic, stop) = (&asker, &done);
        scope.spawn(move || {
            let mut cookie = 0;
            while !stop.load(Ordering::Relaxed) {
                traffic.send(cookie);
                cookie += 1;
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        std::thread::sleep(Duration::from_millis(200));
        daemon.kill_9();
        let began = Instant::now();
        // A failure must not leave the thread running, which the scope would wait for.
        let next = std::panic::catch_unwind(|| Daemon::start(&lab, &configuration));
        let answered = next.as_ref().is_ok_and(|_| Asker::new(&lab, CLIENT, SERVER[0]).ask().is_some());
        done.store(true, Ordering::Relaxed);
        let next = next.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(answered, "{:?} after the kill", began.elapsed());
        assert!(next.replies().af_xdp > 0, "over AF_XDP again");
    });
    assert!(!lab.has_xdp_program());
}

#[test]
fn an_interface_that_is_down_at_the_start_is_served_when_it_comes_up() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    lab.server_ip("link set tb0 down");
    let daemon = Daemon::start(&lab, "datapath = \"auto\"\n\n[[interface]]\nname = \"tb0\"\n");
    lab.server_ip("link set tb0 up");
    lab.server_ip("address replace fd99:1::1/64 dev tb0 nodad");
    for server in SERVER {
        eventually(&format!("{server} answers over AF_XDP"), || {
            let before = daemon.replies().af_xdp;
            (lab.answers(server) && daemon.replies().af_xdp > before).then_some(())
        });
    }
}

#[test]
fn sockets_alone_attach_no_program() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &Carrier::Socket.configuration(""));
    for _ in 0..5 {
        assert_answered_at_once(&lab);
        assert!(!lab.has_xdp_program());
    }
    let status = daemon.status();
    assert_eq!(status["interfaces"][0]["path"], "socket");
    assert_eq!(status["memory"]["queues_bytes"], 0);
}

/// Somebody else's program, which lets everything pass.
fn attach_foreign_program(lab: &Lab) {
    let (_folder, object) = common::compiled_verdict("xdp", 2);
    lab.server_ip(&format!("link set dev tb0 xdp obj {} sec xdp", object.display()));
    assert!(lab.has_xdp_program());
}

#[test]
fn anothers_xdp_program_is_left_alone_and_sockets_serve() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    attach_foreign_program(&lab);
    let program = || {
        let shown: serde_json::Value =
            serde_json::from_str(&lab.server_ip("-j -d link show dev tb0")).unwrap();
        shown[0]["xdp"]["prog"]["id"].as_u64().unwrap()
    };
    let before = program();
    let daemon = Daemon::start(&lab, "datapath = \"auto\"\n\n[[interface]]\nname = \"tb0\"\n");
    assert_answered_at_once(&lab);
    let replies = daemon.replies();
    assert_eq!((replies.af_xdp, replies.socket), (0, 2));
    let status = daemon.status();
    let attempts = status["interfaces"][0]["attempts"].to_string();
    assert!(attempts.contains("already has an XDP program"), "it says why: {attempts}");
    assert!(daemon.log().contains("already has an XDP program"), "{}", daemon.log());
    drop(daemon);
    assert_eq!(program(), before, "theirs is still there");

    // Told to use AF_XDP or nothing, it ends.
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("timeball.toml"), Carrier::Driver.configuration("")).unwrap();
    let mut command = lab.on_server("timeout");
    command.args([
        "10",
        env!("CARGO_BIN_EXE_timeball"),
        "serve",
        "--local-stratum",
        "10",
        "--no-clock-control",
    ]);
    command.arg("--config").arg(folder.path().join("timeball.toml"));
    let output = run(command.arg("--socket").arg(folder.path().join("socket")));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).lines().last().unwrap().contains("already has an XDP program"),
        "{}",
        text(&output)
    );
    assert_eq!(program(), before);
}

#[test]
fn tag_stripping_is_off_while_serving_and_back_afterwards() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let stripping = || {
        let features = run_well(lab.on_server("ethtool").args(["-k", "tb0"]));
        let line = features.lines().find(|line| line.starts_with("rx-vlan-offload:")).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(stripping(), "on");
    let daemon = Daemon::start(&lab, &Carrier::Driver.configuration("100"));
    assert_eq!(stripping(), "off");
    drop(daemon);
    assert_eq!(stripping(), "on");
}

#[test]
fn a_link_local_address_is_served_over_af_xdp() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    // The kernel looks for duplicates of these for a second or two.
    let link_local = |shown: String| -> Option<String> {
        let words: Vec<_> = shown.split_whitespace().map(str::to_owned).collect();
        let at = words.iter().position(|word| word == "inet6")?;
        (!shown.contains("tentative")).then(|| words[at + 1].split('/').next().unwrap().to_owned())
    };
    let show = "-6 address show dev tb0 scope link";
    let server = eventually("the server's address", || link_local(lab.server_ip(show)));
    eventually("the client's address", || {
        link_local(run_well(lab.on_client("ip").args(show.split_whitespace())))
    });
    let asker = Asker::new(&lab, "::", &format!("{server}%tb0"));
    eventually("an answer over AF_XDP", || {
        let before = daemon.replies().af_xdp;
        (asker.ask().is_some() && daemon.replies().af_xdp > before).then_some(())
    });
}

#[test]
fn requests_to_an_address_that_was_removed_are_the_kernels() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    lab.server_ip("address add 10.99.1.50/24 dev tb0");
    let daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    let asker = Asker::new(&lab, CLIENT, "10.99.1.50");
    assert!(asker.ask().is_some());
    lab.server_ip("address del 10.99.1.50/24 dev tb0");
    // The client still knows the link address, so its requests still reach the program.
    eventually("the program lets them pass", || {
        let before = (daemon.verdicts("passed_not_our_address"), daemon.replies());
        let reply = asker.ask();
        let passed = daemon.verdicts("passed_not_our_address") > before.0;
        (reply.is_none() && passed && daemon.replies() == before.1).then_some(())
    });
    assert_answered_at_once(&lab);
}

#[test]
fn transmit_stamps_measure_how_late_replies_leave() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &format!("{}tx-timestamps = true\n", Carrier::Driver.configuration("")));
    for _ in 0..50 {
        assert_answered_at_once(&lab);
    }
    std::thread::sleep(Duration::from_millis(100));
    let status = daemon.status();
    let queue = &status["interfaces"][0]["queues"][0];
    assert_eq!(queue["tx_metadata"], true, "veth stamps what leaves: {queue}");
    let error = &queue["transmit_error"];
    // A frame's stamp is read when its completion is, which the last batch may still wait for.
    assert!(error["samples"].as_u64().is_some_and(|samples| (90..=100).contains(&samples)), "{queue}");
    let mean = error["mean_nanoseconds"].as_i64().unwrap();
    assert!((1..5_000_000).contains(&mean), "{error}");
    assert!(error["max_nanoseconds"].as_i64().unwrap() >= mean, "{error}");
}

/// A network namespace to put an interface into for a moment.
struct Elsewhere(String);

impl Elsewhere {
    fn new() -> Self {
        let elsewhere = Self(format!("tb-t{}-x", std::process::id()));
        run_well(Command::new("ip").args(["netns", "add", &elsewhere.0]));
        elsewhere
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        run(Command::new("ip").args(["netns", "del", &self.0]));
    }
}

#[test]
fn an_interface_that_left_and_came_back_unseen_is_served_again() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    let index = || daemon.status()["interfaces"][0]["index"].clone();
    let before = index();
    let elsewhere = Elsewhere::new();
    let server = run_well(lab.on_server("ip").args(["netns", "identify"])).trim().to_owned();
    // While the daemon sleeps: it sees an interface of the same name and index, whose sockets are bound to nothing.
    daemon.pause();
    lab.server_ip(&format!("link set tb0 netns {}", elsewhere.0));
    run_well(Command::new("ip").args(["-n", &elsewhere.0, "link", "set", "tb0", "netns", &server]));
    lab.server_ip("link set tb0 up");
    lab.server_ip("addr add 10.99.1.1/24 dev tb0");
    lab.server_ip("addr add fd99:1::1/64 dev tb0 nodad");
    daemon.resume();
    for server in SERVER {
        let replies = daemon.replies().af_xdp;
        eventually("answers over AF_XDP again", || {
            (lab.answers(server) && daemon.replies().af_xdp > replies).then_some(())
        });
    }
    assert_eq!(index(), before, "the index was the same, or this shows nothing");
    daemon.queues_in_balance();
}
