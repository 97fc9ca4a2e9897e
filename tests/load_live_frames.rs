//! The kernel engine of the load generator in a lab, against this project's own server.
//!
//! What its programs do by themselves, frame by frame, is in `src/load/live_frames/tests.rs`.

#![cfg(feature = "load")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod common;

use common::{Carrier, Daemon, Lab, SERVER, can_have_labs, run_well};
use serde_json::Value;
use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;
use timeball::load::clients::Clients;
use timeball::load::engine::{Engine, Expect, Measured, Plan, Progress, Scene};
use timeball::load::live_frames::LiveFrames;

/// Runs `work` in a thread that has moved to the client's network namespace.
fn on_client<T: Send>(lab: &Lab, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(lab.client_namespace()).unwrap();
    let moved = move || {
        #[allow(unsafe_code)]
        // SAFETY: the descriptor is an open namespace; setns moves this thread only.
        let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "setns: {}", std::io::Error::last_os_error());
        work()
    };
    std::thread::scope(|scope| scope.spawn(moved).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn mac(text: &str) -> [u8; 6] {
    let octets: Vec<u8> =
        text.trim().split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect();
    octets.try_into().unwrap()
}

/// A thousand clients in the server's address family.
fn scene(lab: &Lab, target: &str) -> Scene {
    let shown: Value =
        serde_json::from_str(&run_well(lab.on_client("ip").args(["-j", "link", "show", "dev", "tb0"])))
            .unwrap();
    let sources = if target.contains('.') { "10.99.8.0/22" } else { "fd99:2::/48" };
    Scene {
        interface: "tb0".into(),
        ifindex: shown[0]["ifindex"].as_u64().unwrap() as u32,
        source_mac: mac(shown[0]["address"].as_str().unwrap()),
        target_mac: mac(&run_well(lab.on_server("cat").arg("/sys/class/net/tb0/address"))),
        target: target.parse().unwrap(),
        port: 123,
        clients: Clients::new(sources.parse().unwrap(), 1000).unwrap(),
        expect: Expect::Ntp,
    }
}

fn plan(rate: f64, duration: Duration) -> Plan {
    Plan { rate: Some(rate), duration, timeout: Duration::from_millis(500), nonce: 0x1234_5678 }
}

/// A server on one core of two, with everybody else, stalls; its ring then holds 256 requests. That is what may be lost.
fn lost(measured: &Measured) -> u64 {
    measured.offered - measured.answered - measured.late
}

#[test]
fn twenty_thousand_a_second_are_all_answered() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let _daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    for (target, nonce) in [(SERVER[0], 1), (SERVER[1], 2)] {
        let scene = scene(&lab, target);
        let plan = Plan { nonce, ..plan(20_000.0, Duration::from_secs(1)) };
        let mut seen: Vec<Progress> = Vec::new();
        let (first, second) = on_client(&lab, || {
            LiveFrames::suits("tb0", scene.ifindex).unwrap();
            let mut engine = LiveFrames::open(&scene).unwrap();
            let mut note = |progress| {
                seen.push(progress);
                true
            };
            // The second step begins with new tables.
            let first = engine.run(&plan, &mut note).unwrap();
            (first, engine.run(&Plan { nonce: nonce + 10, ..plan }, &mut |_| true).unwrap())
        });
        for measured in [first, second] {
            assert_eq!(measured.offered, 20_000);
            assert!(lost(&measured) <= 512, "{} lost", lost(&measured));
            assert_eq!((measured.flaws, measured.duplicates, measured.kisses.len()), ([0; 7], 0, 0));
            let seconds = measured.duration.as_secs_f64();
            // A stall at the very end may delay the last requests.
            assert!((0.99..1.11).contains(&seconds), "{seconds} s");
            assert_eq!(measured.round_trip.len(), measured.answered);
            assert_eq!(measured.turnaround.len(), measured.answered + measured.late);
            assert_eq!(measured.send_delay.len(), measured.offered);
            assert!(measured.round_trip.min() > 1000, "{} ns", measured.round_trip.min());
            assert!(
                measured.turnaround.min() > 100 && measured.turnaround.max() < 1_000_000_000,
                "{} ns",
                measured.turnaround.max()
            );
            // The server's part is contained in what the client sees.
            assert!(measured.turnaround.min() < measured.round_trip.min());
        }
        assert!(seen.len() >= 5, "progress was seen {} times", seen.len());
        assert!(
            seen.windows(2)
                .all(|pair| pair[0].offered <= pair[1].offered && pair[0].elapsed <= pair[1].elapsed)
        );
    }
    let shown = run_well(lab.on_client("ip").args(["-d", "link", "show", "dev", "tb0"]));
    assert!(!shown.contains("prog/xdp"), "the judge is gone with the engine: {shown}");
}

#[test]
fn others_are_still_served_while_it_runs_and_it_stops_when_told() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let _daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    let scene = scene(&lab, SERVER[0]);
    on_client(&lab, || {
        let mut engine = LiveFrames::open(&scene).unwrap();
        let mut calls = 0;
        let measured = engine
            .run(&plan(1000.0, Duration::from_secs(60)), &mut |_| {
                calls += 1;
                if calls == 2 {
                    run_well(Command::new("ping").args(["-c", "1", "-W", "2", SERVER[0]]));
                    UdpSocket::bind("10.99.1.2:0").unwrap().send_to(b"x", (SERVER[0], 9)).unwrap();
                }
                calls < 4
            })
            .unwrap();
        assert_eq!(calls, 4);
        assert!((1..10_000).contains(&measured.offered), "{}", measured.offered);
    });
}

#[test]
fn requests_that_vanish_are_noticed() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let scene = scene(&lab, SERVER[0]);
    on_client(&lab, || {
        let hint = LiveFrames::suits("tb0", scene.ifindex).unwrap_err();
        assert!(hint.contains("gro on"), "{hint}");
        let mut engine = LiveFrames::open(&scene).unwrap();
        let error =
            engine.run(&plan(1000.0, Duration::from_millis(200)), &mut |_| true).unwrap_err().to_string();
        assert!(error.contains("of 200 requests only") && error.contains("gro on"), "{error}");
        assert!(LiveFrames::suits("lo", 1).unwrap_err().contains("not veth"));
    });
}
