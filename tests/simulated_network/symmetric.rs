//! Peers: both ends active, one passive, and whoever would like to come between them.

use crate::faults::{Fault, Placement};
use crate::following::{add_daemon, add_source};
use crate::network::{Datagram, Way};
use crate::random::Random;
use crate::scenario::{CLIENT, CLIENT_ADDRESS, Scenario, server_address};
use crate::world::World;
use std::net::{IpAddr, SocketAddr};
use timeball::control::reference::reference_id;
use timeball::control::source::{SourceConfiguration, SourceKind, Volley};
use timeball::control::state::SourceState;
use timeball::control::{ControllerOptions, Farewell, News, PassivePeers};
use timeball::time::{Log2Seconds, NtpDuration, NtpTimestamp};
use timeball::wire::{Header, Leap, Mode, ReferenceId, Version};
use zerocopy::{FromBytes, IntoBytes};

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 99, 0, 60));

fn scenario() -> Scenario {
    Scenario { poll: (4, 6), ..Scenario::default() }
}

fn peer(scenario: &Scenario, address: IpAddr, volley: Volley) -> SourceConfiguration {
    SourceConfiguration { kind: SourceKind::Peer(volley), ..scenario.source(address) }
}

/// Who is configured as an active end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Active {
    /// The client of the servers.
    Client,
    /// The other daemon, which has no servers.
    Other,
    Both,
}

/// The scenario's client with its servers, and another daemon that has nobody but its peer, if that. Gives the place
/// of the other.
fn peers(scenario: &Scenario, active: Active, volley: Volley) -> (World, usize) {
    let mut world = scenario.world();
    let other = add_daemon(&mut world, scenario, PEER, &[]);
    if active != Active::Other {
        add_source(&mut world, CLIENT, 90, peer(scenario, PEER, volley));
    }
    if active != Active::Client {
        add_source(&mut world, other, 91, peer(scenario, CLIENT_ADDRESS, volley));
    }
    (world, other)
}

fn anyone() -> ControllerOptions {
    ControllerOptions { passive: PassivePeers::Anyone, ..ControllerOptions::default() }
}

/// The reach register of a host's association with an address.
fn reach(world: &mut World, host: usize, remote: IpAddr) -> Option<u8> {
    let mut associations = world.daemon(host).controller.associations();
    associations
        .find(|association| association.remote.ip() == remote)
        .map(|association| association.poll.reach().bits())
}

/// Does it answer? Whoever is answered early is not answered again before its next poll, and sometimes it is the first to
/// send then: where the two ends take turns, every second packet is answered.
fn is_heard(reach: Option<u8>) -> bool {
    reach.is_some_and(|reach| reach.count_ones() >= 3)
}

fn mode(datagram: &Datagram) -> Mode {
    Header::read_from_prefix(&datagram.payload).unwrap().0.mode()
}

/// Both ends configured, which is the normal case: whoever has no other source follows the one who has.
#[test]
fn two_active_ends_keep_the_same_time() {
    for volley in [Volley::On, Volley::Off] {
        for seed in 1..=5 {
            let scenario = Scenario { seed, ..scenario() };
            let (mut world, other) = peers(&scenario, Active::Both, volley);
            world.run(7200.0);
            assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2);
            assert_eq!(world.daemon(other).snapshot.stratum, 3, "{volley:?}, seed {seed}");
            assert_eq!(world.daemon(other).snapshot.reference_id, reference_id(CLIENT_ADDRESS));
            assert_eq!(world.daemon(CLIENT).state(PEER), Some(SourceState::FollowsUs));
            assert!(is_heard(reach(&mut world, other, CLIENT_ADDRESS)), "{volley:?}, seed {seed}");
            let worst = world.worst(other, 1800);
            assert!(worst < 1e-3, "{volley:?}, seed {seed}: {:.0} us", worst * 1e6);
        }
    }
}

/// One end configured, with a key: the other is mobilised by its first mode 1 packet, and follows it.
#[test]
fn a_passive_end_is_mobilised_and_follows_its_active_peer() {
    for seed in 1..=5 {
        let scenario = Scenario { seed, keyed: true, ..scenario() };
        let (mut world, other) = peers(&scenario, Active::Client, Volley::On);
        world.run(7200.0);
        let daemon = world.daemon(other);
        assert_eq!((daemon.snapshot.stratum, daemon.controller.associations().count()), (3, 1));
        assert_eq!(daemon.state(CLIENT_ADDRESS), Some(SourceState::Selected));
        assert!(daemon.ports_used().is_empty(), "a passive end asks nobody in mode 3");
        assert_eq!(world.daemon(CLIENT).state(PEER), Some(SourceState::FollowsUs));
        let worst = world.worst(other, 1800);
        assert!(worst < 1e-3, "seed {seed}: {:.0} us", worst * 1e6);
    }
}

/// RFC 8633 section 5.6: without a key nobody becomes a passive peer, unless the operator allows it. Checklist 91.
#[test]
fn an_unauthenticated_passive_end_is_refused_unless_allowed() {
    let (mut world, other) = peers(&scenario(), Active::Client, Volley::Off);
    world.run(3600.0);
    let daemon = world.daemon(other);
    assert_eq!((daemon.snapshot.stratum, daemon.controller.associations().count()), (0, 0));
    assert_eq!(daemon.requests_sent, 0, "nor is it answered");
    assert!(daemon.controller.counters().peers_refused > 50);
    assert_eq!(world.daemon(CLIENT).state(PEER), Some(SourceState::Unreachable));

    let (mut world, other) =
        peers(&Scenario { options: anyone(), ..scenario() }, Active::Client, Volley::Off);
    world.run(3600.0);
    assert_eq!(world.daemon(other).snapshot.stratum, 3);
}

/// An active peer whose stratum is worse than ours gets the time from us in mode 2 packets; no association of it can set
/// our clock.
#[test]
fn a_worse_active_peer_gets_its_time_from_the_passive_end() {
    let scenario = Scenario { keyed: true, ..scenario() };
    let (mut world, other) = peers(&scenario, Active::Other, Volley::Off);
    world.run(1800.0);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2);
    world.tap = Some(Vec::new());
    world.run(5400.0);
    assert_eq!(world.daemon(other).snapshot.stratum, 3);
    assert_eq!(world.daemon(other).state(CLIENT_ADDRESS), Some(SourceState::Selected));
    assert_eq!(world.daemon(CLIENT).state(PEER), None, "no association");
    let worst = world.worst(other, 1800);
    assert!(worst < 1e-3, "{:.0} us", worst * 1e6);
    let tap = world.tap.take().unwrap();
    let of = |from: IpAddr, to: IpAddr, wanted: Mode| {
        tap.iter().filter(|(_, it)| it.from.ip() == from && it.to.ip() == to && mode(it) == wanted).count()
    };
    let asked = of(PEER, CLIENT_ADDRESS, Mode::SymmetricActive);
    assert!(asked > 50);
    assert_eq!(of(CLIENT_ADDRESS, PEER, Mode::SymmetricPassive), asked, "one reply for each packet");
}

/// RFC 5905 section 3: a passive association "persists until error or timeout".
#[test]
fn silence_dissolves_a_passive_end_and_the_next_packet_mobilises_it_again() {
    let scenario = Scenario { keyed: true, ..scenario() };
    let (mut world, other) = peers(&scenario, Active::Client, Volley::Off);
    world.run(3600.0);
    assert_eq!(world.daemon(other).snapshot.stratum, 3);
    let way = world.hosts[other].inbound;
    world.hosts[other].inbound = Way { loss: 1.0, ..way };
    world.run(1200.0);
    assert_eq!(world.daemon(other).controller.associations().count(), 0);
    assert_eq!(world.daemon(other).snapshot.stratum, 0);
    let remote = SocketAddr::new(CLIENT_ADDRESS, 123);
    let farewell = News::Demobilised { remote, reason: Farewell::Silent };
    assert_eq!(world.daemon(other).said(|news| *news == farewell), 1);
    let sent = world.daemon(other).requests_sent;
    world.run(7200.0);
    assert_eq!(world.daemon(other).requests_sent, sent, "it sends nothing more");
    world.hosts[other].inbound = way;
    world.run(7200.0);
    assert_eq!(world.daemon(other).snapshot.stratum, 3);
    assert!(world.worst(other, 600) < 1e-3);
}

/// CVE-2015-1799: every packet that was ever sent is sent again, at random, five in each poll interval and more.
#[test]
fn replayed_packets_do_not_disturb_a_peering() {
    for active in [Active::Both, Active::Client] {
        let scenario = Scenario { keyed: true, ..scenario() };
        let (mut world, other) = peers(&scenario, active, Volley::Off);
        world.tap = Some(Vec::new());
        world.run(7200.0);
        let mut random = Random::new(5);
        for _ in 0..3600 {
            world.run(1.0);
            let tap = world.tap.as_ref().unwrap();
            let between: Vec<&Datagram> = tap
                .iter()
                .map(|(_, datagram)| datagram)
                .filter(|it| [it.from.ip(), it.to.ip()].contains(&PEER))
                .collect();
            let mut any = || between[random.next() as usize % between.len()].clone();
            for old in [any(), any()] {
                world.inject(old);
            }
            assert_undisturbed(&mut world, other);
        }
        let failures = world.daemon(other).controller.counters().failures;
        assert!(failures.total() > 1000, "they did come: {failures:?}");
    }
}

/// No key: forged packets with zero origins, with random ones, and with the peer's address; the time in them is wrong by
/// minutes, and what they want echoed is not what the peer has sent (CVE-2015-8138 and its like).
#[test]
fn forged_packets_do_not_disturb_a_peering() {
    for origin_is_zero in [true, false] {
        let (mut world, other) = peers(&scenario(), Active::Both, Volley::Off);
        world.run(7200.0);
        let mut random = Random::new(6);
        for second in 0..3600 {
            world.run(1.0);
            let now = world.now;
            let time = world.daemon(CLIENT).clock.read(now).to_ntp() + NtpDuration::from_seconds(300);
            for (from, to) in [(PEER, CLIENT_ADDRESS), (CLIENT_ADDRESS, PEER)] {
                let mode = if second % 2 == 0 { Mode::SymmetricActive } else { Mode::SymmetricPassive };
                let mut header = Header::new(Leap::None, Version::V4, mode);
                header.stratum = 1;
                header.reference_id = ReferenceId(*b"EVIL");
                header.set_poll(Log2Seconds(4));
                header.set_precision(Log2Seconds(-20));
                if !origin_is_zero {
                    header.set_origin_timestamp(NtpTimestamp::from_bits(random.next()));
                }
                header.set_receive_timestamp(time);
                header.set_transmit_timestamp(time);
                let ends = |ip| SocketAddr::new(ip, 123);
                let payload = header.as_bytes().to_vec();
                world.inject(Datagram {
                    instance: timeball::control::InstanceId(0),
                    from: ends(from),
                    to: ends(to),
                    payload,
                    hop_limit: 64,
                });
            }
            assert_undisturbed(&mut world, other);
        }
        for host in [CLIENT, other] {
            assert!(world.daemon(host).controller.counters().failures.total() > 3000);
        }
    }
}

/// Both ends hear each other, and the one that has nobody else keeps its time.
fn assert_undisturbed(world: &mut World, other: usize) {
    let (there, here) = (reach(world, CLIENT, PEER), reach(world, other, CLIENT_ADDRESS));
    assert!(is_heard(there) && is_heard(here), "{there:?} {here:?} after {} s", world.now / 1_000_000_000);
    assert_eq!(world.daemon(other).snapshot.stratum, 3);
    let error = world.error(other).abs();
    assert!(error < 1e-3, "{:.0} us after {} s", error * 1e6, world.now / 1_000_000_000);
}

/// Loss, duplication and reordering cost samples, and nothing else.
#[test]
fn a_peering_survives_bad_wires() {
    for active in [Active::Both, Active::Client] {
        for seed in 1..=5 {
            let scenario = Scenario { seed, keyed: true, ..scenario() };
            let (mut world, other) = peers(&scenario, active, Volley::On);
            let bad = Way { loss: 0.1, duplication: 0.2, reordering: 0.2, ..world.hosts[other].inbound };
            world.hosts[other].inbound = bad;
            world.hosts[other].outbound = bad;
            world.run(7200.0);
            assert_eq!(world.daemon(other).snapshot.stratum, 3, "{active:?}, seed {seed}");
            let steps = world.daemon(other).steps();
            let worst = world.worst(other, 3600);
            assert!(worst < 2e-3, "{active:?}, seed {seed}: {:.0} us", worst * 1e6);
            assert_eq!(world.daemon(other).steps(), steps, "{active:?}, seed {seed}");
            assert!(is_heard(reach(&mut world, CLIENT, PEER)));
        }
    }
}

/// Both ends have servers of their own: the one with the larger stratum number follows the other. When the better server
/// is gone, it is the other way round, and never a loop.
#[test]
fn the_end_with_the_larger_stratum_follows_the_other() {
    let scenario = Scenario { servers: vec![0.0; 2], ..scenario() };
    let mut world = scenario.hosts();
    let other = add_daemon(&mut world, &scenario, PEER, &[server_address(2)]);
    world.server(2).stratum = 5;
    world.server(2).reference_id = ReferenceId([192, 0, 2, 1]);
    add_source(&mut world, CLIENT, 1, scenario.source(server_address(1)));
    world.run(1800.0);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2);
    assert_eq!(world.daemon(other).snapshot.stratum, 6);
    add_source(&mut world, CLIENT, 90, peer(&scenario, PEER, Volley::On));
    add_source(&mut world, other, 91, peer(&scenario, CLIENT_ADDRESS, Volley::On));
    world.run(7200.0);
    let reference = |world: &mut World, host| {
        let snapshot = world.daemon(host).snapshot;
        (snapshot.stratum, snapshot.reference_id)
    };
    assert_eq!(reference(&mut world, CLIENT), (2, reference_id(server_address(1))));
    assert_eq!(reference(&mut world, other), (3, reference_id(CLIENT_ADDRESS)));
    world.server(1).fault = Some((Fault::Silence, Placement::Instead));
    world.run(14_400.0);
    assert_eq!(reference(&mut world, CLIENT), (7, reference_id(PEER)));
    assert_eq!(reference(&mut world, other), (6, reference_id(server_address(2))));
    assert!(world.worst(CLIENT, 600) < 1e-3);
}

/// Two peers without any other source have no time, and do not make any up between them.
#[test]
fn two_peers_alone_stay_unsynchronised() {
    let scenario = Scenario { servers: Vec::new(), ..scenario() };
    let (mut world, other) = peers(&scenario, Active::Both, Volley::On);
    world.run(7200.0);
    for host in [CLIENT, other] {
        assert_eq!(world.daemon(host).snapshot.stratum, 0);
        assert!(!world.daemon(host).has_touched_its_clock());
    }
}

/// An end whose clock is stepped, or that is restarted, forgets all timestamps; the peering begins anew.
#[test]
fn a_step_of_either_end_is_survived() {
    for active in [Active::Both, Active::Client] {
        let scenario = Scenario { keyed: true, ..scenario() };
        let (mut world, other) = peers(&scenario, active, Volley::Off);
        world.run(3600.0);
        for by in [-60_000_000, 60_000_000] {
            let now = world.now;
            let by = NtpDuration::from_nanoseconds(by);
            world.daemon(other).clock.step(now, by);
            world.tell(other, timeball::control::Event::ClockStepped(by));
            world.run(1800.0);
            assert_eq!(world.daemon(other).snapshot.stratum, 3, "{active:?} {by}");
            assert!(world.worst(other, 600) < 1e-3, "{active:?} {by}");
        }
    }
}

/// The volley: one exchange in mode 3 and 4 before the peering, and mode 1 right after it. Who does not answer it (the
/// simulation's daemons do not sign mode 4) is sent mode 1 after three seconds.
#[test]
fn a_peering_opens_with_one_volley() {
    for keyed in [false, true] {
        let scenario = Scenario { keyed, ..scenario() };
        let (mut world, other) = peers(&scenario, Active::Both, Volley::On);
        world.tap = Some(Vec::new());
        // Until the first step of a clock, with which all begins anew.
        world.run(100.0);
        let tap = world.tap.take().unwrap();
        for (from, to) in [(CLIENT_ADDRESS, PEER), (PEER, CLIENT_ADDRESS)] {
            let sent: Vec<(f64, Mode)> = tap
                .iter()
                .filter(|(_, it)| it.from.ip() == from && it.to.ip() == to && mode(it) != Mode::Server)
                .map(|(time, it)| (*time as f64 / 1e9, mode(it)))
                .collect();
            assert_eq!(sent[0].1, Mode::Client);
            assert!(sent[1..].iter().all(|(_, mode)| *mode == Mode::SymmetricActive), "{sent:?}");
            let waited = sent[1].0 - sent[0].0;
            assert!(if keyed { (2.9..3.1).contains(&waited) } else { waited < 0.1 }, "{waited}");
        }
        assert!(world.daemon(other).open_sockets() == 0);
    }
}

/// One packet at most for each poll interval and end: nobody answers answers.
#[test]
fn two_ends_do_not_chatter() {
    for active in [Active::Both, Active::Client] {
        let scenario = Scenario { keyed: true, poll: (6, 6), ..scenario() };
        let (mut world, _) = peers(&scenario, active, Volley::Off);
        world.run(3600.0);
        world.tap = Some(Vec::new());
        world.run(6400.0);
        let tap = world.tap.take().unwrap();
        for from in [CLIENT_ADDRESS, PEER] {
            let times: Vec<i64> = tap
                .iter()
                .filter(|(_, it)| {
                    it.from.ip() == from && mode(it) != Mode::Client && mode(it) != Mode::Server
                })
                .map(|(time, _)| *time)
                .collect();
            let shortest = times.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap();
            assert!((90..=140).contains(&times.len()), "{active:?} {from}: {}", times.len());
            assert!(shortest >= 1_000_000_000, "{active:?} {from}: {shortest} ns");
        }
    }
}
