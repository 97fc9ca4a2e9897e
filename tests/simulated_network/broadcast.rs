//! Broadcast and multicast: servers that speak to everybody, and clients that listen.

use crate::clock::{Clock, ClockSetup};
use crate::daemon::{Daemon, key};
use crate::faults::{Fault, Placement};
use crate::network::{Datagram, Way};
use crate::random::Random;
use crate::scenario::{CLIENT, EPOCH, Scenario, server_address};
use crate::server::KEY;
use crate::world::{Host, Node, World};
use std::net::{IpAddr, SocketAddr};
use timeball::control::discipline::{DisciplineOptions, Steering};
use timeball::control::packet_checks::Failure;
use timeball::control::source::{
    BroadcastClientOptions, BroadcastOptions, Calibration, NTP_GROUP, SourceConfiguration, SourceKind,
    Unsigned,
};
use timeball::control::state::SourceState;
use timeball::control::{ControllerOptions, Farewell, News};
use timeball::time::{Log2Seconds, NtpDuration};

const BROADCAST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 99, 0, 255));
/// The server speaks every 16 s.
const POLL: i8 = 4;

fn way(delay: f64, jitter: f64) -> Way {
    Way { delay, jitter, ..Way::IDEAL }
}

/// A client that measures but does not steer, its clock 30 ms ahead; the server is 5 ms away.
fn watching() -> Scenario {
    let discipline = DisciplineOptions { steering: Steering::Off, ..DisciplineOptions::default() };
    Scenario {
        client: ClockSetup { ahead: 0.030, fast_ppm: 0.0, wander: 0.0 },
        there: way(5e-3, 10e-6),
        back: way(5e-3, 10e-6),
        options: ControllerOptions { discipline, ..ControllerOptions::default() },
        ..Scenario::default()
    }
}

const UNSIGNED: BroadcastClientOptions = BroadcastClientOptions {
    calibration: Calibration::Volley,
    unsigned: Unsigned::Allowed,
    interface: timeball::control::InterfaceIndex(0),
};

/// The scenario's hosts, the client listening at this place.
fn listening(scenario: &Scenario, place: IpAddr, options: BroadcastClientOptions) -> World {
    let mut world = scenario.hosts();
    world.groups.insert(place, vec![CLIENT]);
    let configuration = SourceConfiguration {
        kind: SourceKind::BroadcastClient(options),
        key: scenario.keyed.then(key),
        ..SourceConfiguration::server(place)
    };
    let wishes = world.daemon(CLIENT).add(0, 1, configuration);
    world.grant(CLIENT, wishes);
    world
}

/// So many seconds, in which server 1 broadcasts to this place.
fn speak(world: &mut World, place: IpAddr, seconds: usize) {
    for _ in 0..seconds >> POLL {
        let now = world.now;
        let datagram = world.server(1).broadcast(now, place, POLL);
        world.send(datagram);
        world.run(16.0);
    }
}

/// How far the client's clock is off by its own reckoning, and in truth: seconds, the difference.
fn reckoning_error(world: &mut World) -> f64 {
    let reckoned = world.daemon(CLIENT).controller.system().offset.seconds();
    (reckoned + world.error(CLIENT)).abs()
}

fn is_selected(world: &mut World) -> bool {
    world.daemon(CLIENT).state(server_address(1)) == Some(SourceState::Selected)
}

/// RFC 5905 sections 3 and 9.2 (NEWBC): a volley measures the delay, then the client listens only (section 13.2), and
/// knows an offset of 30 ms to 0.2 ms. Checklist 45, 69, 70.
#[test]
fn a_calibrated_client_knows_an_offset_of_30_ms_to_a_fifth_of_a_millisecond() {
    for place in [BROADCAST, NTP_GROUP, "ff05::101".parse().unwrap()] {
        let mut world = listening(&watching(), place, UNSIGNED);
        speak(&mut world, place, 160);
        assert_eq!(world.server(1).requests.len(), 8, "one volley");
        for _ in 0..50 {
            speak(&mut world, place, 16);
            assert!(is_selected(&mut world));
            let error = reckoning_error(&mut world);
            assert!(error < 0.2e-3, "{place}: {:.0} us", error * 1e6);
        }
        assert_eq!(world.server(1).requests.len(), 8, "{place}: it does not only listen");
        assert_eq!(world.daemon(CLIENT).open_sockets(), 0);
        assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2);
    }
}

/// Without the volley half of the round trip is lost: this is what the calibration is worth. Checklist 71.
#[test]
fn a_configured_delay_is_used_and_nothing_is_sent() {
    for (delay, expected) in [(10e-3, 0.0), (0.0, 5e-3)] {
        let delay = NtpDuration::from_seconds_f64(delay);
        let options = BroadcastClientOptions { calibration: Calibration::Delay(delay), ..UNSIGNED };
        let mut world = listening(&watching(), BROADCAST, options);
        speak(&mut world, BROADCAST, 800);
        assert!(is_selected(&mut world));
        let error = reckoning_error(&mut world);
        assert!((error - expected).abs() < 0.2e-3, "{:.0} us", error * 1e6);
        assert_eq!((world.server(1).requests.len(), world.daemon(CLIENT).requests_sent), (0, 0));
    }
}

#[test]
fn a_broadcast_client_keeps_its_clock_right() {
    let jitter = way(5e-3, 50e-6);
    let scenario = Scenario { there: jitter, back: jitter, ..Scenario::default() };
    let mut world = listening(&scenario, BROADCAST, UNSIGNED);
    speak(&mut world, BROADCAST, 3600);
    let mut worst = 0_f64;
    for _ in 0..100 {
        speak(&mut world, BROADCAST, 16);
        worst = worst.max(world.error(CLIENT).abs());
    }
    assert!(worst < 0.5e-3, "{:.0} us", worst * 1e6);
}

/// The path is 10 ms longer from one moment on: that is not the clock's fault, and the volley tells.
#[test]
fn another_path_is_measured_anew() {
    let mut world = listening(&watching(), BROADCAST, UNSIGNED);
    speak(&mut world, BROADCAST, 800);
    let asked = world.server(1).requests.len();
    let longer = way(15e-3, 10e-6);
    (world.hosts[1].outbound, world.hosts[1].inbound) = (longer, longer);
    let mut worst = 0_f64;
    for _ in 0..40 {
        speak(&mut world, BROADCAST, 16);
        worst = worst.max(reckoning_error(&mut world));
    }
    assert!(worst < 0.2e-3, "{:.0} us", worst * 1e6);
    assert_eq!(world.server(1).requests.len(), asked + 8, "one volley more");
    assert!(is_selected(&mut world));
}

/// RFC 5905 section 8: what was broadcast before is refused, signed or not. Checklist 74.
#[test]
fn replays_are_refused() {
    let scenario = Scenario { keyed: true, ..watching() };
    let signed = BroadcastClientOptions { unsigned: Unsigned::Refused, ..UNSIGNED };
    let mut world = listening(&scenario, BROADCAST, signed);
    let mut old = Vec::new();
    for _ in 0..20 {
        let now = world.now;
        old.push(world.server(1).broadcast(now, BROADCAST, POLL));
        speak(&mut world, BROADCAST, 16);
    }
    for replay in old.iter().cycle().take(100).cloned() {
        world.send(replay);
        world.run(1.0);
    }
    speak(&mut world, BROADCAST, 160);
    let error = reckoning_error(&mut world);
    assert!(error < 0.2e-3, "{:.0} us", error * 1e6);
    let daemon = world.daemon(CLIENT);
    assert!(daemon.controller.counters().failures.of(Failure::Duplicate) >= 100);
    assert_eq!(daemon.said(|news| matches!(news, News::Mobilised { .. })), 1);
    assert!(is_selected(&mut world));

    // Nor do they deceive one that has just begun: its volley says what time it is.
    let mut world = listening(&scenario, BROADCAST, signed);
    world.run(1000.0);
    for replay in old {
        world.send(replay);
        world.run(16.0);
    }
    assert!(reckoning_error(&mut world) < 0.2e-3);
}

/// RFC 5905 A.5.1 (NEWBC), RFC 8633 section 5.5. Checklist 72.
#[test]
fn unsigned_packets_are_refused_unless_allowed() {
    let options = BroadcastClientOptions { unsigned: Unsigned::Refused, ..UNSIGNED };
    let mut world = listening(&watching(), BROADCAST, options);
    speak(&mut world, BROADCAST, 320);
    let daemon = world.daemon(CLIENT);
    assert_eq!(daemon.controller.associations().count(), 0);
    assert_eq!(daemon.controller.counters().failures.of(Failure::Authentication), 20);
    assert_eq!(daemon.requests_sent, 0);

    // Signed by a key that we know, they are heard, and from then on only those with that key.
    world.server(1).key = Some(KEY);
    speak(&mut world, BROADCAST, 320);
    assert!(is_selected(&mut world));
    let association_key =
        world.daemon(CLIENT).controller.associations().next().and_then(|association| association.key);
    assert_eq!(association_key, Some(key()));
    for other in [None, Some(KEY + 1)] {
        world.server(1).key = other;
        world.server(1).lie = 0.05;
        speak(&mut world, BROADCAST, 64);
        let error = reckoning_error(&mut world);
        assert!(error < 0.2e-3, "{other:?}: {:.0} us", error * 1e6);
    }
}

/// RFC 5905 figure 20: without a broadcast client a mode 5 packet mobilises nothing, nor does one from a server that we
/// ask anyway, or that came elsewhere. Checklist 10.
#[test]
fn who_does_not_listen_hears_nothing() {
    let mut world = watching().world();
    world.groups.insert(NTP_GROUP, vec![CLIENT]);
    speak(&mut world, BROADCAST, 160);
    assert_eq!(world.daemon(CLIENT).controller.counters().discarded, 10);
    let configuration = SourceConfiguration {
        kind: SourceKind::BroadcastClient(UNSIGNED),
        ..SourceConfiguration::server(BROADCAST)
    };
    let now = world.now;
    let wishes = world.daemon(CLIENT).add(now, 9, configuration);
    world.grant(CLIENT, wishes);
    speak(&mut world, BROADCAST, 160);
    assert_eq!(world.daemon(CLIENT).controller.counters().discarded, 20, "a server has one voice");

    let mut world = listening(&watching(), BROADCAST, UNSIGNED);
    world.groups.insert(NTP_GROUP, vec![CLIENT]);
    speak(&mut world, NTP_GROUP, 160);
    assert_eq!(world.daemon(CLIENT).controller.counters().discarded, 10);
    let client = crate::scenario::CLIENT_ADDRESS;
    speak(&mut world, client, 160);
    assert_eq!(
        world.daemon(CLIENT).controller.counters().discarded,
        20,
        "what comes to us alone is no broadcast"
    );
    // RFC 5905 section 8: a broadcast server speaks from port 123.
    let now = world.now;
    let mut datagram = world.server(1).broadcast(now, BROADCAST, POLL);
    datagram.from.set_port(124);
    world.send(datagram);
    world.run(16.0);
    let daemon = world.daemon(CLIENT);
    assert_eq!(daemon.controller.counters().discarded, 21);
    assert_eq!(daemon.controller.associations().count(), 0);
}

/// RFC 5905 section 3: who falls silent is forgotten, and welcome again. Checklist 73.
#[test]
fn silence_dissolves_the_association() {
    let mut world = listening(&watching(), BROADCAST, UNSIGNED);
    speak(&mut world, BROADCAST, 320);
    assert!(is_selected(&mut world));
    world.run(100.0);
    assert_eq!(world.daemon(CLIENT).controller.associations().count(), 1, "not at once");
    world.run(100.0);
    let daemon = world.daemon(CLIENT);
    assert_eq!(daemon.controller.associations().count(), 0);
    let silent = |news: &News| matches!(news, News::Demobilised { reason: Farewell::Silent, .. });
    assert_eq!((daemon.said(silent), daemon.snapshot.stratum), (1, 0));
    speak(&mut world, BROADCAST, 320);
    assert!(is_selected(&mut world));
    assert_eq!(world.server(1).requests.len(), 16, "measured anew");
}

/// A volley that is lost in part, packets that are lost, doubled and late: the time is still right.
#[test]
fn loss_duplication_and_reordering_do_no_harm() {
    for seed in 1..=5 {
        let bad = Way { loss: 0.2, duplication: 0.2, reordering: 0.02, ..way(5e-3, 10e-6) };
        let mut world =
            listening(&Scenario { seed, there: bad, back: bad, ..watching() }, BROADCAST, UNSIGNED);
        speak(&mut world, BROADCAST, 1600);
        let mut worst = 0_f64;
        for _ in 0..100 {
            speak(&mut world, BROADCAST, 16);
            worst = worst.max(reckoning_error(&mut world));
        }
        assert!(worst < 0.2e-3, "seed {seed}: {:.0} us", worst * 1e6);
        let daemon = world.daemon(CLIENT);
        assert_eq!(daemon.said(|news| matches!(news, News::Mobilised { .. })), 1, "seed {seed}");
    }
}

/// A server that does not answer cannot be calibrated, is not believed, and is asked less and less often; one that says
/// DENY is not asked again.
#[test]
fn a_server_that_does_not_answer_the_volley_is_not_believed() {
    let mut world = listening(&watching(), BROADCAST, UNSIGNED);
    world.server(1).fault = Some((Fault::Silence, Placement::Instead));
    speak(&mut world, BROADCAST, 36_000);
    let asked = world.server(1).requests.len();
    assert!((60..=120).contains(&asked), "{asked} requests in ten hours");
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 0);
    assert_eq!(world.daemon(CLIENT).state(server_address(1)), Some(SourceState::Measuring { samples: 0 }));
    world.server(1).fault = Some((Fault::Kiss(*b"DENY"), Placement::Instead));
    speak(&mut world, BROADCAST, 7200);
    assert_eq!(world.daemon(CLIENT).controller.associations().count(), 0);
    let asked = world.server(1).requests.len();
    world.server(1).fault = None;
    speak(&mut world, BROADCAST, 7200);
    assert_eq!(world.server(1).requests.len(), asked, "it does not want to be asked");
}

/// Many forged servers fill the table, no more.
#[test]
fn forged_servers_are_bounded() {
    let mut world = listening(&watching(), BROADCAST, UNSIGNED);
    for forged in 0..100_u8 {
        let now = world.now;
        let mut datagram: Datagram = world.server(1).broadcast(now, BROADCAST, POLL);
        datagram.from = SocketAddr::new([10, 99, 7, forged].into(), 123);
        world.send(datagram);
        world.run(0.1);
    }
    assert_eq!(world.daemon(CLIENT).controller.associations().count(), 8);
    world.run(400.0);
    assert_eq!(world.daemon(CLIENT).controller.associations().count(), 0);
    speak(&mut world, BROADCAST, 320);
    assert!(is_selected(&mut world));
}

/// Adds a daemon; gives its place.
pub fn add_daemon(world: &mut World, address: IpAddr, setup: ClockSetup, ways: (Way, Way)) -> usize {
    let clock = Clock::new(setup, EPOCH, Random::new(77));
    let daemon = Daemon::new(address, clock, ControllerOptions::default(), Random::new(78));
    let (outbound, inbound) = ways;
    world.hosts.push(Host { node: Node::Daemon(Box::new(daemon)), outbound, inbound, instance: None });
    world.hosts.len() - 1
}

/// Host `from` broadcasts to this place.
fn begin_broadcasting(world: &mut World, from: usize, place: IpAddr, hop_limit: u8) {
    let options = BroadcastOptions { interval: Log2Seconds(POLL), hop_limit, ..BroadcastOptions::default() };
    let configuration =
        SourceConfiguration { kind: SourceKind::Broadcast(options), ..SourceConfiguration::server(place) };
    let now = world.now;
    let wishes = world.daemon(from).add(now, 50, configuration);
    world.grant(from, wishes);
}

/// RFC 5905 A.5.7.1: a broadcast server that is not synchronised says nothing; one that is has clients. Checklist 44.
#[test]
fn a_server_speaks_only_while_it_is_synchronised() {
    let mut world = listening(&watching(), NTP_GROUP, UNSIGNED);
    let near = way(1e-3, 10e-6);
    let speaker = add_daemon(&mut world, [10, 99, 0, 50].into(), ClockSetup::PERFECT, (near, near));
    begin_broadcasting(&mut world, speaker, NTP_GROUP, 1);
    world.run(600.0);
    assert_eq!(world.daemon(speaker).requests_sent, 0, "unsynchronised");
    let upstream = Scenario { poll: (6, 6), ..watching() }.source(server_address(1));
    let now = world.now;
    let wishes = world.daemon(speaker).add(now, 1, upstream);
    world.grant(speaker, wishes);
    world.run(3600.0);
    let daemon = world.daemon(CLIENT);
    assert_eq!(daemon.state([10, 99, 0, 50].into()), Some(SourceState::Selected));
    assert_eq!(daemon.snapshot.stratum, 3, "one more than the broadcast server's");
    let error = reckoning_error(&mut world);
    assert!(error < 0.5e-3, "{:.0} us", error * 1e6);
    // Its upstream goes: after a while it knows no time, and falls silent.
    world.server(1).fault = Some((Fault::Silence, Placement::Instead));
    world.run(7200.0);
    assert_eq!(world.daemon(speaker).snapshot.stratum, 0);
    assert_eq!(world.daemon(CLIENT).controller.associations().count(), 0);
    assert_eq!(world.daemon(speaker).controller.system_peer(), None);
}

/// RFC 5905 section 3.1 and 8: the TTL says how far multicast goes; a broadcast passes no router. Checklist 68.
#[test]
fn the_ttl_limits_how_far_it_is_heard() {
    for (place, hop_limit, is_heard) in
        [(NTP_GROUP, 1, false), (NTP_GROUP, 2, false), (NTP_GROUP, 3, true), (BROADCAST, 9, false)]
    {
        let mut world = listening(&watching(), place, UNSIGNED);
        let near = way(1e-3, 10e-6);
        let speaker = add_daemon(&mut world, [10, 99, 0, 50].into(), ClockSetup::PERFECT, (near, near));
        world.routers = [(CLIENT, 1), (speaker, 1)].into();
        let upstream = watching().source(server_address(1));
        let wishes = world.daemon(speaker).add(0, 1, upstream);
        world.grant(speaker, wishes);
        begin_broadcasting(&mut world, speaker, place, hop_limit);
        world.run(1200.0);
        let heard = world.daemon(CLIENT).state([10, 99, 0, 50].into());
        assert_eq!(heard.is_some(), is_heard, "{place} with TTL {hop_limit}: {heard:?}");
    }
}
