//! Manycast: servers are found by asking a group, wider and wider.

use crate::broadcast::add_daemon;
use crate::clock::ClockSetup;
use crate::daemon::key;
use crate::faults::{Fault, Placement};
use crate::network::{Datagram, Way};
use crate::scenario::{CLIENT, Scenario, server_address};
use crate::world::World;
use std::net::IpAddr;
use timeball::control::packet_checks::Failure;
use timeball::control::source::{ManycastOptions, NTP_GROUP, SourceConfiguration, SourceKind, Unsigned};
use timeball::control::state::SourceState;
use timeball::control::{Farewell, InterfaceIndex, News};
use timeball::time::{Log2Seconds, NtpTimestamp};
use timeball::wire::{Header, Leap, Mode, Version};
use zerocopy::IntoBytes;

/// A question each 16 s, three servers are enough, and the timeout is 256 s.
const OPTIONS: ManycastOptions = ManycastOptions {
    enough: 3,
    most: 5,
    hop_limit_max: 4,
    timeout: Log2Seconds(8),
    unsigned: Unsigned::Allowed,
    interface: InterfaceIndex(0),
};

fn scenario(servers: usize) -> Scenario {
    Scenario { servers: vec![0.0; servers], poll: (4, 6), ..Scenario::default() }
}

/// So many servers in the group, behind so many routers each.
fn searching(scenario: &Scenario, group: IpAddr, routers: &[u8], options: ManycastOptions) -> World {
    let mut world = scenario.hosts();
    world.groups.insert(group, (1..=scenario.servers.len()).collect());
    world.routers = routers.iter().enumerate().map(|(index, routers)| (index + 1, *routers)).collect();
    let configuration =
        SourceConfiguration { kind: SourceKind::ManycastClient(options), ..scenario.source(group) };
    let wishes = world.daemon(CLIENT).add(0, 1, configuration);
    world.grant(CLIENT, wishes);
    world
}

/// The servers found, by number.
fn found(world: &mut World) -> Vec<usize> {
    let daemon = world.daemon(CLIENT);
    let known: Vec<IpAddr> =
        daemon.controller.associations().map(|association| association.remote.ip()).collect();
    (1..100).filter(|server| known.contains(&server_address(*server))).collect()
}

/// The TTLs of the questions so far.
fn questions(world: &mut World) -> Vec<u8> {
    let said = world.daemon(CLIENT).spoken.iter();
    said.filter_map(|words| words.split("hop_limit: Some(").nth(1))
        .map(|words| words.split(')').next().unwrap().parse().unwrap())
        .collect()
}

/// RFC 5905 sections 3.1 and 13.2: TTL 1, 2, ... until enough are found, then one question for each timeout.
/// Checklist 75.
#[test]
fn the_search_goes_no_further_than_it_must() {
    for group in [NTP_GROUP, "ff05::101".parse().unwrap()] {
        let mut world = searching(&scenario(6), group, &[0, 0, 1, 1, 2, 3], OPTIONS);
        world.run(10.0);
        assert_eq!(found(&mut world), [1, 2]);
        world.run(16.0);
        assert_eq!(found(&mut world), [1, 2, 3, 4]);
        world.run(3600.0);
        let found = found(&mut world);
        assert!(found.len() >= 3 && found.iter().all(|server| *server <= 4), "{found:?}");
        assert!(world.server(5).requests.is_empty() && world.server(6).requests.is_empty());
        let asked = questions(&mut world);
        assert_eq!(asked[..3], [1, 2, 2]);
        assert!((14..=16).contains(&asked.len()), "2, and one each 256 s: {asked:?}");
        assert!(world.worst(CLIENT, 600) < 500e-6);
        assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2);
        assert_eq!(world.daemon(CLIENT).transmits_max, 1);
    }
}

/// RFC 5905 section 3.1: the maximum without enough servers: silence for the timeout, all dissolved, and again.
/// Checklist 75.
#[test]
fn a_search_in_vain_rests_and_starts_over() {
    let mut world = searching(&scenario(2), NTP_GROUP, &[0, 1], OPTIONS);
    world.run(60.0);
    assert_eq!((questions(&mut world), found(&mut world)), (vec![1, 2, 3, 4], vec![1, 2]));
    world.run(250.0);
    assert_eq!(questions(&mut world).len(), 4, "silence");
    let anew = |news: &News| matches!(news, News::Demobilised { reason: Farewell::SearchedAnew, .. });
    assert_eq!(world.daemon(CLIENT).said(anew), 0);
    world.run(30.0);
    assert_eq!(world.daemon(CLIENT).said(anew), 2);
    assert_eq!(questions(&mut world)[4..], [1, 2]);
    world.run(3600.0);
    assert!(world.daemon(CLIENT).said(anew) > 10);
    assert!(world.error(CLIENT).abs() < 2e-3, "two servers are better than none all the same");
}

/// One falls silent: it is let go, and the search goes on until there are enough again.
#[test]
fn a_lost_server_is_replaced() {
    let scenario = Scenario { poll: (4, 4), ..scenario(4) };
    let mut world = searching(&scenario, NTP_GROUP, &[0, 0, 0, 3], OPTIONS);
    world.run(600.0);
    assert_eq!(found(&mut world), [1, 2, 3]);
    world.server(2).fault = Some((Fault::Silence, Placement::Instead));
    world.run(900.0);
    assert_eq!(found(&mut world), [1, 3, 4]);
    let silent = |news: &News| matches!(news, News::Demobilised { reason: Farewell::Silent, .. });
    assert_eq!(world.daemon(CLIENT).said(silent), 1);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2);
}

/// RFC 5905 section 3.1: the best remain. A falseticker goes first, and does not come back while there are others.
/// Checklist 77.
#[test]
fn the_worst_is_dropped() {
    let mut scenario = scenario(5);
    scenario.servers[1] = 0.4;
    let mut world = searching(&scenario, NTP_GROUP, &[0; 5], OPTIONS);
    world.run(120.0);
    assert_eq!(found(&mut world), [1, 2, 3, 4, 5]);
    world.run(3600.0);
    let found = found(&mut world);
    assert!(found.len() >= 3 && !found.contains(&2), "{found:?}");
    let replaced = |news: &News| matches!(news, News::Demobilised { reason: Farewell::Replaced, .. });
    assert!((1..=2).contains(&world.daemon(CLIENT).said(replaced)));
    let mobilised = world.daemon(CLIENT).said(|news| matches!(news, News::Mobilised { .. }));
    assert_eq!(mobilised, 6, "the group and five servers, once each");
    assert!(world.worst(CLIENT, 600) < 500e-6);
}

/// However many answer, no more are taken than the operator wants.
#[test]
fn a_crowd_is_bounded() {
    let mut world = searching(&scenario(30), NTP_GROUP, &[], OPTIONS);
    for _ in 0..360 {
        world.run(10.0);
        let found = found(&mut world).len();
        assert!((3..=5).contains(&found), "{found}");
    }
}

#[test]
fn loss_duplication_and_reordering_do_no_harm() {
    for seed in 1..=5 {
        let bad = Way { loss: 0.2, duplication: 0.2, reordering: 0.1, ..Scenario::default().there };
        let scenario = Scenario { seed, there: bad, back: bad, ..scenario(6) };
        let mut world = searching(&scenario, NTP_GROUP, &[0, 0, 1, 1, 2, 3], OPTIONS);
        world.run(7200.0);
        assert!(found(&mut world).len() >= 3, "seed {seed}");
        let worst = world.worst(CLIENT, 600);
        assert!(worst < 1e-3, "seed {seed}: {:.0} us", worst * 1e6);
    }
}

/// RFC 5905 section 9.2, MANY: an answer must echo the question, and be signed unless that is not asked for.
/// Checklist 9.
#[test]
fn who_does_not_echo_or_sign_is_not_found() {
    for fault in [Fault::WrongOrigin, Fault::ZeroOrigin, Fault::RepeatedOrigin] {
        let mut world = searching(&scenario(1), NTP_GROUP, &[], OPTIONS);
        world.server(1).fault = Some((fault, Placement::Instead));
        world.run(600.0);
        assert!(found(&mut world).is_empty(), "{fault:?}");
        assert!(world.daemon(CLIENT).controller.counters().discarded > 4, "{fault:?}");
    }
    let signed = ManycastOptions { unsigned: Unsigned::Refused, ..OPTIONS };
    let mut world = searching(&scenario(3), NTP_GROUP, &[], signed);
    world.run(60.0);
    assert!(found(&mut world).is_empty());
    let failures = world.daemon(CLIENT).controller.counters().failures;
    assert_eq!(failures.of(Failure::Authentication), 12, "four questions, three answers each");

    let keyed = Scenario { keyed: true, ..scenario(3) };
    let mut world = searching(&keyed, NTP_GROUP, &[], signed);
    world.run(3600.0);
    assert_eq!(found(&mut world), [1, 2, 3]);
    let daemon = world.daemon(CLIENT);
    assert!(daemon.controller.associations().all(|association| association.key == Some(key())));
    assert_eq!(daemon.snapshot.stratum, 2);
}

/// A flood of questions in a victim's name, and one in everybody's: the group must not be an amplifier. Nor is it closed to
/// whoever asks honestly a second later.
#[test]
fn a_flood_of_questions_is_answered_by_a_trickle() {
    let scenario = scenario(1);
    let mut world = scenario.world();
    world.groups.insert(NTP_GROUP, vec![CLIENT]);
    let configuration = SourceConfiguration {
        kind: SourceKind::ManycastServer(Unsigned::Allowed),
        ..SourceConfiguration::server(NTP_GROUP)
    };
    let wishes = world.daemon(CLIENT).add(0, 9, configuration);
    world.grant(CLIENT, wishes);
    world.run(1800.0);
    let question = |from: IpAddr| {
        let mut header = Header::new(Leap::None, Version::V4, Mode::Client);
        header.set_transmit_timestamp(NtpTimestamp::from_bits(77));
        let payload = header.as_bytes().to_vec();
        Datagram {
            instance: timeball::control::InstanceId(0),
            from: (from, 123).into(),
            to: (NTP_GROUP, 123).into(),
            payload,
            hop_limit: 9,
        }
    };
    for (many, limit) in [(false, 4 + 9), (true, 64 + 639)] {
        world.run(60.0);
        world.tap = Some(Vec::new());
        for number in 0..10_000_u32 {
            let [_, _, high, low] = if many { number.to_be_bytes() } else { [0; 4] };
            world.inject(question([10, 98, high, low].into()));
            world.run(0.001);
        }
        let sent = world.tap.take().unwrap();
        let answers = sent.iter().filter(|(_, it)| it.to.ip().to_string().starts_with("10.98."));
        let lengths: Vec<usize> = answers.map(|(_, it)| it.payload.len()).collect();
        assert!((limit - 1..=limit + 1).contains(&lengths.len()), "{} answers", lengths.len());
        assert!(lengths.iter().all(|length| *length == 48), "as long as the question");
    }
    world.run(1.0);
    world.tap = Some(Vec::new());
    world.inject(question([10, 97, 0, 1].into()));
    world.run(1.0);
    assert!(world.tap.take().unwrap().iter().any(|(_, it)| it.to.ip() == IpAddr::from([10, 97, 0, 1])));
}

/// RFC 5905 A.5.1, FXMIT: a server of ours in the group answers only while it is synchronised, from its own address, and
/// nobody of a better stratum. Checklist 76.
#[test]
fn our_server_answers_the_group_while_it_is_synchronised() {
    let one = ManycastOptions { enough: 1, ..OPTIONS };
    let mut world = searching(&scenario(1), NTP_GROUP, &[], one);
    let near = Scenario::default().there;
    let address = IpAddr::from([10, 99, 0, 50]);
    let server = add_daemon(&mut world, address, ClockSetup::PERFECT, (near, near));
    world.groups.insert(NTP_GROUP, vec![server]);
    let configuration = SourceConfiguration {
        kind: SourceKind::ManycastServer(Unsigned::Allowed),
        ..SourceConfiguration::server(NTP_GROUP)
    };
    let wishes = world.daemon(server).add(0, 9, configuration);
    world.grant(server, wishes);
    world.run(600.0);
    assert_eq!(world.daemon(server).requests_sent, 0, "unsynchronised: silent");
    assert_eq!(world.daemon(CLIENT).state(address), None);

    let upstream = Scenario::default().source(server_address(1));
    let now = world.now;
    let wishes = world.daemon(server).add(now, 1, upstream);
    world.grant(server, wishes);
    world.run(3600.0);
    let daemon = world.daemon(CLIENT);
    assert_eq!(daemon.state(address), Some(SourceState::Selected));
    assert_eq!(daemon.snapshot.stratum, 3);
    assert!(world.error(CLIENT).abs() < 1e-3);
}
