//! The AF_XDP port on the real kernel: a veth pair in a network namespace of its own, copy mode.
//!
//! Each test runs itself again inside a fresh namespace (`unshare --net`), which the kernel removes with the child, so
//! nothing is left behind even when it fails. In there `client` has an address and a UDP socket, `server` has an XDP
//! program that redirects everything into the port, and the port answers by swapping addresses in place. SKIP, said on
//! standard error, where that cannot be: not root, or no clang.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "all of it is test code")]

mod lab;

use aya::programs::xdp::XdpMode;
use lab::{MAGIC, Program, Server, in_namespace, in_namespace_behind, ip, tai_nanoseconds, wait_for_carrier};
use std::time::{Duration, Instant, SystemTime};
use timeball::datapath::af_xdp::{
    BATCH, BusyPoll, CopyMode, Link, Port, PortConfig, PortError, RX_METADATA_BYTES, StampRequest,
};
use timeball::sys::memory::{HugepagePolicy, Pages};

#[test]
fn answers_with_metadata_in_and_stamps_out() {
    in_namespace("answers_with_metadata_in_and_stamps_out", |lab| {
        let mut server = lab.serve(&lab.config());
        let facts = server.port.facts();
        assert!(!facts.zero_copy && facts.tx_metadata && facts.need_wakeup, "{facts:?}");
        assert_eq!(facts.memory_bytes, lab.config().memory_bytes());

        lab.ask(4);
        let mut asked = Vec::new();
        for (position, frame) in server.receive(4).into_iter().enumerate() {
            let metadata: [u8; RX_METADATA_BYTES] = *server.port.metadata(&frame).unwrap();
            let [magic, stamp, queue] =
                [0, 8, 16].map(|at| u64::from_ne_bytes(metadata[at..at + 8].try_into().unwrap()));
            assert_eq!((magic, queue), (MAGIC, 0));
            let request = if position % 2 == 0 { StampRequest::Transmit } else { StampRequest::None };
            asked.push((frame.number(), request, stamp.cast_signed()));
            assert!(server.reply(frame, request));
        }
        assert_eq!(server.port.flush(), Link::Up);
        let completed = server.drain(4);
        // TAI runs ahead of UTC by the kernel's offset, 0 to 37 s so far.
        let realtime = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as i64;
        for (number, request, received_at) in asked {
            let (_, stamp) = completed.iter().find(|(completed, _)| *completed == number).unwrap();
            if request == StampRequest::None {
                assert_eq!(*stamp, None);
                continue;
            }
            let sent_at = tai_nanoseconds(*stamp);
            assert!((received_at..received_at + 1_000_000_000).contains(&sent_at), "{received_at} {sent_at}");
            assert!((sent_at - realtime).abs() < 60_000_000_000, "{sent_at} is not TAI: {realtime}");
            println!("frame {number:?}: transmit stamp {} ns after the receive stamp", sent_at - received_at);
        }
        lab.expect_replies(4);
        assert_eq!(server.port.refill(), Link::Up);
        server.assert_conserved();
    });
}

#[test]
fn conserves_frames_over_100_000_packets() {
    in_namespace("conserves_frames_over_100_000_packets", |lab| {
        const COUNT: u64 = 100_000;
        let mut server = lab.serve(&lab.config());
        let (mut sent, mut stamped) = (0_u64, 0);
        let mut reply = [0; 100];
        let start = Instant::now();
        while sent < COUNT {
            let batch = sent..COUNT.min(sent + 50);
            for number in batch.clone() {
                lab.client.send(&number.to_ne_bytes()).unwrap();
            }
            let completed = server.answer(batch.clone().count());
            stamped += completed.into_iter().filter(|(_, stamp)| tai_nanoseconds(*stamp) > 0).count();
            for number in batch.clone() {
                assert_eq!(lab.client.recv(&mut reply).unwrap(), 8);
                assert_eq!(reply[..8], number.to_ne_bytes());
            }
            sent = batch.end;
        }
        let statistics = server.port.statistics().unwrap();
        println!("{COUNT} packets there and back in {:?}; {statistics:?}", start.elapsed());
        server.assert_conserved();
        assert_eq!((statistics.port.tx_completed, stamped as u64), (COUNT, COUNT));
        let kernel = statistics.kernel;
        let lost = [kernel.rx_dropped, kernel.rx_invalid_descriptors, kernel.tx_invalid_descriptors];
        assert_eq!(lost, [0; 3], "{statistics:?}");
    });
}

#[test]
fn generic_mode_answers_too() {
    in_namespace("generic_mode_answers_too", |lab| {
        let program = Program::attach(XdpMode::Skb);
        let mut server = Server::new(Port::open(&lab.config()).unwrap(), program);
        lab.ask(50);
        for frame in server.receive(50) {
            assert_eq!(server.port.metadata(&frame).unwrap()[..8], MAGIC.to_ne_bytes());
            assert!(server.reply(frame, StampRequest::Transmit));
        }
        for (_, stamp) in server.drain(50) {
            tai_nanoseconds(stamp);
        }
        lab.expect_replies(50);
        server.assert_conserved();
    });
}

#[test]
fn one_flush_sends_more_than_the_kernel_moves_at_once() {
    in_namespace("one_flush_sends_more_than_the_kernel_moves_at_once", |lab| {
        let mut server = lab.serve(&lab.config());
        lab.ask(BATCH);
        for frame in server.receive(BATCH) {
            assert!(server.reply(frame, StampRequest::Transmit));
        }
        assert_eq!(server.port.flush(), Link::Up);
        lab.expect_replies(BATCH);
        let expected = (BATCH as u64).div_ceil(server.port.facts().tx_budget.into());
        assert_eq!(server.port.counters().wakeups, expected, "{:?}", server.port.facts());
    });
}

#[test]
fn link_down_and_up_during_traffic_recovers() {
    in_namespace("link_down_and_up_during_traffic_recovers", |lab| {
        let mut server = lab.serve(&lab.config());
        for round in 0..5 {
            lab.ask(1);
            server.answer(1);
            lab.expect_replies(1);

            // Received while up, answered while down.
            lab.ask(10);
            let frames = server.receive(10);
            ip("link set server down");
            for frame in frames {
                assert!(server.reply(frame, StampRequest::Transmit));
            }
            let wakeups = server.port.counters().wakeups;
            assert_eq!((server.port.flush(), server.port.link()), (Link::Down, Link::Down), "round {round}");
            assert_eq!(server.port.counters().wakeups, wakeups + 1, "a link that is down is not spun on");
            assert_eq!(server.port.conservation().transmit, 10);
            ip("link set server up");
            server.drain(10);
            wait_for_carrier();

            // The peer down instead: no carrier. The packet is dropped, the frame is not.
            lab.ask(1);
            let frames = server.receive(1);
            ip("link set client down");
            for frame in frames {
                assert!(server.reply(frame, StampRequest::None));
            }
            server.drain(1);
            assert_eq!(server.port.counters().tx_dropped, round + 1);
            assert_eq!(server.port.refill(), Link::Up);
            server.assert_conserved();
            ip("link set client up");
            wait_for_carrier();
            lab.know_the_server();
            lab.forget_replies();
        }
        lab.ask(1);
        server.answer(1);
        lab.expect_replies(1);
        server.assert_conserved();
    });
}

#[test]
fn a_removed_interface_is_gone() {
    in_namespace("a_removed_interface_is_gone", |lab| {
        let mut server = lab.serve(&lab.config());
        lab.ask(1);
        let frames = server.receive(1);
        ip("link del server");
        for frame in frames {
            assert!(server.reply(frame, StampRequest::None));
        }
        assert_eq!((server.port.flush(), server.port.link()), (Link::Gone, Link::Gone));
        assert!(server.port.conservation().is_balanced());
    });
}

#[test]
fn a_dropped_port_frees_everything_at_once() {
    fn mapped_rings() -> usize {
        std::fs::read_to_string("/proc/self/maps").unwrap().matches("socket:[").count()
    }
    fn open_files() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }
    in_namespace("a_dropped_port_frees_everything_at_once", |lab| {
        let mut program = Program::attach(XdpMode::Driver);
        let before = (mapped_rings(), open_files());
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let start = Instant::now();
            let port = Port::open(&lab.config()).unwrap();
            slowest = slowest.max(start.elapsed());
            assert_eq!(mapped_rings(), before.0 + 4);
            let mut server = Server::new(port, program);
            lab.ask(1);
            server.answer(1);
            lab.expect_replies(1);
            program = server.program;
            drop(server.port);
            assert_eq!((mapped_rings(), open_files()), before);
        }
        println!("slowest of 20 opens right after a drop: {slowest:?}");
    });
}

#[test]
fn refusals_name_their_cause() {
    in_namespace("refusals_name_their_cause", |lab| {
        let config = lab.config();
        let error = Port::open(&PortConfig { mode: CopyMode::ZeroCopy, ..config.clone() }).unwrap_err();
        assert!(matches!(error, PortError::NoZeroCopy { .. }), "{error:?}");
        println!("{error}");
        let error = Port::open(&PortConfig { queue: 7, ..config.clone() }).unwrap_err();
        assert!(matches!(error, PortError::NoSuchQueue { queue: 7, .. }), "{error:?}");
        println!("{error}");
        let error = Port::open(&PortConfig { ifindex: 9999, ..config.clone() }).unwrap_err();
        assert!(matches!(error, PortError::NoSuchInterface { ifindex: 9999 }), "{error:?}");
        println!("{error}");
        let held = Port::open(&config).unwrap();
        let error = Port::open(&config).unwrap_err();
        assert!(matches!(error, PortError::QueueTaken { queue: 0, .. }), "{error:?}");
        println!("{error}");
        drop(held);
        assert!(Port::open(&config).is_ok());
    });
}

#[test]
fn every_option_still_answers() {
    in_namespace("every_option_still_answers", |lab| {
        let usual = lab.config();
        let busy_poll = Some(BusyPoll { duration: Duration::from_micros(20), budget: 64 });
        let configs = [
            PortConfig { tx_metadata: false, ..usual.clone() },
            PortConfig { need_wakeup: false, ..usual.clone() },
            PortConfig { busy_poll, ..usual.clone() },
            PortConfig { frame_bytes: 4096, ..usual.clone() },
            PortConfig { hugepages: HugepagePolicy::Prefer, ..usual },
        ];
        let mut program = Program::attach(XdpMode::Driver);
        for config in configs {
            let port = Port::open(&config).unwrap();
            let facts = port.facts().clone();
            println!("{facts:?}");
            assert_eq!(facts.tx_metadata, config.tx_metadata);
            assert_eq!(facts.busy_poll, config.busy_poll.is_some());
            if config.hugepages == HugepagePolicy::Prefer {
                let told = facts.refused.iter().any(|refused| refused.starts_with("hugepages: "));
                assert_eq!(told, facts.pages == Pages::Normal, "{facts:?}");
            }
            let mut server = Server::new(port, program);
            lab.ask(50);
            for (_, stamp) in server.answer(50) {
                assert_eq!(stamp.is_some(), config.tx_metadata);
            }
            lab.expect_replies(50);
            server.assert_conserved();
            program = server.program;
        }
    });
}

#[test]
fn too_little_locked_memory_is_said() {
    let wrapper = ["setpriv", "--bounding-set", "-ipc_lock", "prlimit", "--memlock=65536:65536"];
    in_namespace_behind("too_little_locked_memory_is_said", &wrapper, |lab| {
        let error = Port::open(&lab.config()).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, PortError::LockedMemory { limit: 65536, .. }), "{error:?}");
        assert!(text.contains("8388608 bytes") && text.contains("65536"), "{text}");
        println!("{text}");
    });
}

#[test]
fn no_privilege_is_said() {
    let wrapper = ["setpriv", "--bounding-set", "-net_raw"];
    in_namespace_behind("no_privilege_is_said", &wrapper, |lab| {
        let error = Port::open(&lab.config()).unwrap_err();
        assert!(matches!(error, PortError::NotPermitted), "{error:?}");
        println!("{error}");
    });
}
