//! The load generator's AF_XDP engine against the daemon, over a veth pair.
#![cfg(feature = "load")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod common;

use common::asker::as_client;
use common::{Carrier, Daemon, Lab, can_have_labs, run_well};
use std::process::Command;
use std::time::{Duration, Instant};
use timeball::load::af_xdp::AfXdp;
use timeball::load::clients::Clients;
use timeball::load::engine::{Engine, Expect, Measured, Plan, Progress, Scene, Wish};
use timeball::load::judge::Flaw;

const FAMILIES: [(&str, &str); 2] = [("10.99.1.1", "10.99.8.0/24"), ("fd99:1::1", "fd99:8::/48")];

/// 300 clients on the client's side of the lab.
fn scene(lab: &Lab, target: &str, sources: &str, port: u16) -> Scene {
    let words = |mut command: Command, file: &str| {
        run_well(command.arg(format!("/sys/class/net/tb0/{file}"))).trim().to_owned()
    };
    let mac = |text: String| -> [u8; 6] {
        let octets: Vec<u8> = text.split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect();
        octets.try_into().unwrap()
    };
    Scene {
        interface: "tb0".into(),
        ifindex: words(lab.on_client("cat"), "ifindex").parse().unwrap(),
        source_mac: mac(words(lab.on_client("cat"), "address")),
        target_mac: mac(words(lab.on_server("cat"), "address")),
        target: target.parse().unwrap(),
        port,
        clients: Clients::new(sources.parse().unwrap(), 300).unwrap(),
        expect: Expect::Ntp,
    }
}

fn plan(rate: f64, duration: Duration, nonce: u32) -> Plan {
    Plan { rate: Some(rate), duration, timeout: Duration::from_secs(1), nonce }
}

fn run(engine: &mut AfXdp, plan: &Plan, mut progress: impl FnMut(Progress) -> Wish) -> Measured {
    engine.run(plan, &mut progress).unwrap()
}

/// Is this 5000 requests a second for a second, each answered?
fn check(measured: &Measured, context: &str) {
    assert!((4950..=5050).contains(&measured.offered), "{context}: {} offered", measured.offered);
    let seconds = measured.duration.as_secs_f64();
    assert!((0.99..1.01).contains(&seconds), "{context}: {seconds} s");
    let outcome = (measured.answered, measured.late, measured.duplicates, measured.flaws);
    let expected = (measured.offered, 0, 0, [0; Flaw::COUNT]);
    assert_eq!(outcome, expected, "{context}: {measured:?}");
    assert_eq!(measured.round_trip.len(), measured.answered, "{context}");
    assert_eq!(measured.turnaround.len(), measured.answered, "{context}");
    assert_eq!(measured.send_delay.len(), measured.offered, "{context}");
    assert!(measured.round_trip.min() >= measured.turnaround.min(), "{context}: faster than the server says");
}

#[test]
fn every_request_is_answered_and_counted_once() {
    if !can_have_labs() {
        return;
    }
    for carrier in [Carrier::Driver, Carrier::Socket] {
        let lab = Lab::new(&["--queues", "2"]);
        common::asker::allow_any_source(&lab);
        // The kernel's sockets reply by a route, and so have to know the way.
        lab.server_ip("route add 10.99.8.0/24 via 10.99.1.2");
        lab.server_ip("-6 route add fd99:8::/48 via fd99:1::2");
        let _daemon = Daemon::start(&lab, &carrier.configuration(""));
        for (target, sources) in FAMILIES {
            let scene = scene(&lab, target, sources, 123);
            // Two steps send more requests than there are frames: a frame that is lost would be missed.
            let steps = as_client(&lab, || {
                let mut engine = AfXdp::open(&scene).unwrap();
                assert_eq!(engine.queues(), 2, "{target}: a socket on each queue");
                [1, 2].map(|nonce| {
                    let mut calls = 0;
                    let plan = plan(5000.0, Duration::from_secs(1), nonce);
                    let measured = run(&mut engine, &plan, |_| {
                        calls += 1;
                        Wish::GoOn
                    });
                    assert!(calls >= 3, "{target}: {calls} reports of progress in a second");
                    measured
                })
            });
            for measured in steps {
                check(&measured, &format!("{carrier:?} {target}"));
            }
        }
        let left = run_well(lab.on_client("ip").args(["-d", "link", "show", "tb0"]));
        assert!(!left.contains("xdp"), "the engine's program is gone: {left}");
    }
}

#[test]
fn silence_is_loss_and_what_is_not_ours_reaches_the_kernel() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let _daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    let scene = scene(&lab, "10.99.1.1", "10.99.1.2/32", 124);
    let (measured, took) = as_client(&lab, || {
        let mut engine = AfXdp::open(&scene).unwrap();
        // Same server, same client, but another port: an ordinary client's replies go past the program.
        assert!(lab.answers("10.99.1.1"), "a socket of this machine gets its replies");
        let start = Instant::now();
        let measured = run(&mut engine, &plan(1000.0, Duration::from_millis(300), 7), |_| Wish::GoOn);
        (measured, start.elapsed())
    });
    assert_eq!((measured.offered, measured.answered, measured.flaws), (300, 0, [0; Flaw::COUNT]));
    assert!(measured.round_trip.is_empty());
    assert!((1.29..2.0).contains(&took.as_secs_f64()), "a timeout after the last request: {took:?}");
}

#[test]
fn stops_when_told() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let _daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    let scene = scene(&lab, "10.99.1.1", "10.99.1.2/32", 123);
    let measured = as_client(&lab, || {
        let mut engine = AfXdp::open(&scene).unwrap();
        run(&mut engine, &plan(1000.0, Duration::from_secs(60), 9), |now| {
            if now.elapsed.is_zero() { Wish::GoOn } else { Wish::Finish }
        })
    });
    assert!((100..1000).contains(&measured.offered), "{} sent in a fifth of a second", measured.offered);
    assert_eq!((measured.answered, measured.send_failures), (measured.offered, 0));
    assert_eq!((measured.in_flight, measured.broken), (0, None));
}

#[test]
fn what_is_open_when_it_ends_at_once_is_in_flight() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let scene = scene(&lab, "10.99.1.1", "10.99.1.2/32", 123);
    let measured = as_client(&lab, || {
        let mut engine = AfXdp::open(&scene).unwrap();
        run(&mut engine, &plan(1000.0, Duration::from_secs(60), 9), |now| {
            if now.elapsed > Duration::from_millis(1500) { Wish::EndNow } else { Wish::GoOn }
        })
    });
    // Nobody answers; the requests of the last second could have been answered yet.
    let old = measured.offered - measured.in_flight;
    assert!(measured.offered > 1500 && measured.in_flight.abs_diff(1000) <= 20, "{measured:?}");
    assert!((500..1000).contains(&old), "{old}");
}

/// Both ends, both ways: each test has a lab of its own, so that one that hangs does not spoil the others.
#[test]
fn a_link_that_goes_away_ends_the_step_and_is_named() {
    if !can_have_labs() {
        return;
    }
    for (way, says) in common::BREAKS {
        let lab = Lab::new(&[]);
        let _daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
        let scene = scene(&lab, "10.99.1.1", "10.99.1.2/32", 123);
        let start = Instant::now();
        let measured = as_client(&lab, || {
            let mut engine = AfXdp::open(&scene).unwrap();
            let mut is_whole = true;
            run(&mut engine, &plan(1000.0, Duration::from_secs(60), 9), |now| {
                if is_whole && now.elapsed > Duration::from_secs(1) {
                    is_whole = false;
                    lab.break_link(way);
                }
                Wish::GoOn
            })
        });
        let broken =
            measured.broken.clone().unwrap_or_else(|| panic!("{way:?} was not noticed: {measured:?}"));
        assert!(broken.starts_with("tb0 ") && broken.contains(says), "{way:?}: {broken}");
        assert!(broken.contains(" s after the step began"), "{way:?}: {broken}");
        assert!(start.elapsed() < Duration::from_secs(20), "{way:?}: {:?}", start.elapsed());
        assert!(measured.answered > 900, "{way:?}: {measured:?}");
        assert_eq!(
            measured.offered - measured.answered - measured.in_flight,
            0,
            "{way:?}: the server lost nothing"
        );
    }
}

#[test]
fn says_why_it_cannot_start() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let scene = scene(&lab, "10.99.1.1", "10.99.1.2/32", 123);
    as_client(&lab, || {
        let (_folder, object) = common::compiled_verdict("xdp", 2);
        let object = object.display().to_string();
        run_well(
            std::process::Command::new("ip")
                .args(["link", "set", "dev", "tb0", "xdp", "obj", &object, "sec", "xdp"]),
        );
        let error = AfXdp::open(&scene).unwrap_err().to_string();
        assert!(error.contains("tb0") && error.contains("another XDP program is attached"), "{error}");
    });
}
