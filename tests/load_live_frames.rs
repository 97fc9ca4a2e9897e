//! The kernel engine of the load generator in a lab, against this project's own server.
//!
//! What its programs do by themselves, frame by frame, is in `src/load/live_frames/tests.rs`.

#![cfg(feature = "load")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod common;

use aya::Ebpf;
use aya::programs::{SchedClassifier, TcAttachType};
use common::{Carrier, Daemon, Lab, SERVER, can_have_labs, run_well};
use serde_json::Value;
use std::fs::File;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;
use timeball::load::af_xdp::AfXdp;
use timeball::load::clients::Clients;
use timeball::load::engine::{Engine, Expect, Measured, Plan, Progress, Scene, Wish};
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

/// How often a step is tried until nothing is lost. While this machine does something else for a few milliseconds, more
/// falls due than veth's receive ring holds, and that is lost rightly.
const ATTEMPTS: u32 = 10;

/// A twentieth of a percent: for a machine that is never idle.
const LOST_MAX: u64 = 10;

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
        let steps = on_client(&lab, || {
            LiveFrames::suits("tb0", scene.ifindex).unwrap();
            let mut engine = LiveFrames::open(&scene).unwrap();
            let mut steps = Vec::new();
            // Every step begins with new tables.
            while steps.len() < ATTEMPTS as usize && steps.last().is_none_or(|step| lost(step) > LOST_MAX) {
                let nonce = nonce + 10 * steps.len() as u32;
                seen.clear();
                let mut note = |progress| {
                    seen.push(progress);
                    Wish::GoOn
                };
                steps.push(engine.run(&Plan { nonce, ..plan }, &mut note).unwrap());
            }
            steps
        });
        assert!(
            lost(steps.last().unwrap()) <= LOST_MAX,
            "lost: {:?}",
            steps.iter().map(lost).collect::<Vec<_>>()
        );
        for measured in steps {
            assert_eq!(measured.offered, 20_000);
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
    // The judge, which takes whatever comes from the server's port, is gone with the engine.
    let shown = run_well(lab.on_client("ip").args(["-d", "link", "show", "dev", "tb0"]));
    assert!(!shown.contains("prog/xdp"), "{shown}");
    run_well(lab.on_client(env!("CARGO_BIN_EXE_timeball")).args(["query", SERVER[0]]));
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
                    // Nobody listens there, and the server's kernel says so.
                    let address = (SERVER[0].parse::<std::net::IpAddr>().unwrap(), 9).into();
                    let refused = TcpStream::connect_timeout(&address, Duration::from_secs(2)).unwrap_err();
                    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
                    UdpSocket::bind("10.99.1.2:0").unwrap().send_to(b"x", (SERVER[0], 9)).unwrap();
                }
                if calls < 4 { Wish::GoOn } else { Wish::EndNow }
            })
            .unwrap();
        assert_eq!(calls, 4);
        assert!((1..10_000).contains(&measured.offered), "{}", measured.offered);
        assert_eq!(measured.answered + measured.in_flight, measured.offered, "what is open is not lost");
    });
}

/// The step would wait five seconds for the link.
#[test]
fn a_step_can_be_ended_while_it_waits_for_the_link() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let _daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    let scene = scene(&lab, SERVER[0]);
    on_client(&lab, || {
        let mut live_frames = LiveFrames::open(&scene).unwrap();
        lab.break_link(common::Break::TheirsDown);
        let end = |engine: &mut dyn Engine| {
            let (start, mut calls) = (std::time::Instant::now(), 0);
            let measured = engine.run(&plan(1000.0, Duration::from_secs(60)), &mut |now| {
                assert_eq!(now, Progress::default());
                calls += 1;
                if calls < 10 { Wish::GoOn } else { Wish::Finish }
            });
            assert_eq!(measured.unwrap(), Measured::default());
            assert!(
                calls == 10 && start.elapsed() < Duration::from_secs(2),
                "{calls}: {:?}",
                start.elapsed()
            );
        };
        end(&mut live_frames);
        drop(live_frames);
        end(&mut AfXdp::open(&scene).unwrap());
    });
}

#[test]
fn what_is_open_when_it_ends_at_once_is_in_flight() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    let scene = scene(&lab, SERVER[0]);
    for end in [Wish::EndNow, Wish::Finish] {
        let measured = on_client(&lab, || {
            let mut engine = LiveFrames::open(&scene).unwrap();
            let mut is_stopped = false;
            let measured = engine.run(&plan(1000.0, Duration::from_secs(60)), &mut |now| {
                if !is_stopped && now.elapsed > Duration::from_millis(300) {
                    daemon.pause();
                    is_stopped = true;
                }
                if now.elapsed > Duration::from_millis(1500) { end } else { Wish::GoOn }
            });
            daemon.resume();
            measured.unwrap()
        });
        let unknown = if end == Wish::EndNow { 500 } else { 0 };
        assert!(measured.in_flight.abs_diff(unknown) <= 20, "{end:?}: {} in flight", measured.in_flight);
        assert!((200..600).contains(&measured.answered), "{end:?}: {} answered", measured.answered);
    }
}

#[test]
fn a_link_that_goes_away_ends_the_step_and_is_named() {
    if !can_have_labs() {
        return;
    }
    for (way, says) in common::BREAKS {
        let lab = Lab::new(&[]);
        let _daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
        let scene = scene(&lab, SERVER[0]);
        let start = std::time::Instant::now();
        let measured = on_client(&lab, || {
            let mut engine = LiveFrames::open(&scene).unwrap();
            let mut is_whole = true;
            let plan = plan(1000.0, Duration::from_secs(60));
            let measured = engine.run(&plan, &mut |now| {
                if is_whole && now.elapsed > Duration::from_secs(1) {
                    is_whole = false;
                    lab.break_link(way);
                }
                Wish::GoOn
            });
            measured.unwrap()
        });
        let broken =
            measured.broken.clone().unwrap_or_else(|| panic!("{way:?} was not noticed: {measured:?}"));
        assert!(broken.starts_with("tb0 ") && broken.contains(says), "{way:?}: {broken}");
        assert!(broken.contains(" s after the step began"), "{way:?}: {broken}");
        assert!(start.elapsed() < Duration::from_secs(20), "{way:?}: {:?}", start.elapsed());
        assert!(measured.answered > 900, "{way:?}: {measured:?}");
        assert!(
            lost(&measured) - measured.in_flight <= LOST_MAX,
            "{way:?}: the server lost nothing: {measured:?}"
        );
    }
}

#[test]
fn a_socket_server_is_reached_once_its_interface_has_gro() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let _daemon = Daemon::start(&lab, &Carrier::Socket.configuration(""));
    // The server's kernel has to find the way back to the clients.
    let scene = scene(&lab, SERVER[0]);
    lab.server_ip("route add 10.99.8.0/22 via 10.99.1.2");
    let gro = |state| run_well(lab.on_server("ethtool").args(["-K", "tb0", "gro", state]));
    on_client(&lab, || {
        let hint = LiveFrames::suits("tb0", scene.ifindex).unwrap_err();
        assert!(hint.contains("gro on"), "{hint}");
        let mut engine = LiveFrames::open(&scene).unwrap();
        let plan = plan(2000.0, Duration::from_millis(500));
        let error = engine.run(&plan, &mut |_| Wish::GoOn).unwrap_err().to_string();
        assert_eq!(error, hint);

        gro("on");
        LiveFrames::suits("tb0", scene.ifindex).unwrap();
        let measured = engine.run(&plan, &mut |_| Wish::GoOn).unwrap();
        assert_eq!((measured.offered, measured.flaws), (1000, [0; 7]));
        assert!(measured.answered > 500, "{} of 1000 answered", measured.answered);
        assert_eq!(measured.unfinished_checksums, measured.answered + measured.late);

        // It goes away in the middle.
        let mut is_on = true;
        let error = engine.run(
            &Plan { rate: Some(20_000.0), duration: Duration::from_secs(5), ..plan },
            &mut |now| {
                if is_on && !now.elapsed.is_zero() {
                    gro("off");
                    is_on = false;
                }
                Wish::GoOn
            },
        );
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("of ") && error.contains("gro on"), "{error}");
        assert!(LiveFrames::suits("lo", 1).is_err());
    });
}

/// Whoever comes second would take the replies of the first, and both would blame the server.
#[test]
fn a_second_generator_on_an_interface_is_refused() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let _daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    let scene = scene(&lab, SERVER[0]);
    on_client(&lab, || {
        let first = LiveFrames::open(&scene).unwrap();
        for error in [LiveFrames::open(&scene).unwrap_err(), AfXdp::open(&scene).unwrap_err()] {
            let error = error.to_string();
            assert!(error.starts_with("another timeball load is at work on tb0"), "{error}");
        }
        drop(first);
        let _first = AfXdp::open(&scene).unwrap();
        LiveFrames::open(&scene).unwrap_err();
    });
}

/// A program at the traffic control hook that says OK keeps a packet from those behind it.
#[test]
fn programs_of_others_hide_no_reply() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let _daemon = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    let scene = scene(&lab, SERVER[0]);
    let (_folder, object) = common::compiled_verdict("classifier", 0);
    let mut others = Ebpf::load_file(object).unwrap();
    on_client(&lab, || {
        let accept: &mut SchedClassifier = others.program_mut("verdict").unwrap().try_into().unwrap();
        accept.load().unwrap();
        accept.attach("tb0", TcAttachType::Ingress).unwrap();
        let mut engine = LiveFrames::open(&scene).unwrap();
        assert_eq!(engine.way(), "replies are judged at the traffic control hook");
        let measured = engine.run(&plan(1000.0, Duration::from_millis(500)), &mut |_| Wish::GoOn).unwrap();
        assert!(measured.answered > 400, "{} of {} answered", measured.answered, measured.offered);
    });
}

/// A server whose replies lie in pages of its own, behind headers of the kernel's.
const ZERO_COPY_SERVER: &str = r#"
import socket, struct
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.setsockopt(socket.SOL_SOCKET, 60, 1)  # SO_ZEROCOPY
# It ends by itself if nobody ends it.
server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 20, 0))
server.bind(("10.99.1.1", 123))
while True:
    request, client = server.recvfrom(2000)
    reply = struct.pack("!BBBb12x8x8sQQ", 0x24, 2, 0, -24, request[40:48], 1 << 63, (1 << 63) + 4096)
    server.sendto(reply, 0x4000000, client)  # MSG_ZEROCOPY
    try:
        server.recvmsg(0, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
    except BlockingIOError:
        pass
"#;

#[test]
fn replies_in_several_pieces_are_judged() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let scene = scene(&lab, SERVER[0]);
    lab.server_ip("route add 10.99.8.0/22 via 10.99.1.2");
    run_well(lab.on_server("ethtool").args(["-K", "tb0", "gro", "on"]));
    let mut server = lab.on_server("python3").args(["-c", ZERO_COPY_SERVER]).spawn().unwrap();
    let measured = on_client(&lab, || {
        let mut engine = LiveFrames::open(&scene).unwrap();
        common::eventually("replies", || {
            let plan = plan(500.0, Duration::from_millis(400));
            let measured = engine.run(&plan, &mut |_| Wish::GoOn).unwrap();
            (measured.answered > 150).then_some(measured)
        })
    });
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!((measured.flaws, measured.duplicates), ([0; 7], 0));
}
