//! Daemons that follow each other, and must not.

use crate::clock::{Clock, ClockSetup};
use crate::daemon::Daemon;
use crate::network::Way;
use crate::random::Random;
use crate::scenario::{CLIENT, CLIENT_ADDRESS, Scenario, server_address};
use crate::world::{Host, Node, World};
use std::net::IpAddr;
use timeball::control::reference::reference_id;
use timeball::control::source::SourceConfiguration;
use timeball::control::state::SourceState;

/// Another daemon that uses these hosts as servers; gives its place.
pub fn add_daemon(world: &mut World, scenario: &Scenario, address: IpAddr, sources: &[IpAddr]) -> usize {
    let setup = ClockSetup { ahead: -0.05, fast_ppm: -20.0, wander: 1e-9 };
    let clock = Clock::new(setup, scenario.epoch, Random::new(99));
    let daemon = Daemon::new(address, clock, scenario.options, Random::new(77));
    let way = Way { delay: 100e-6, jitter: 50e-6, ..Way::IDEAL };
    world.hosts.push(Host {
        node: Node::Daemon(Box::new(daemon)),
        outbound: way,
        inbound: way,
        instance: None,
    });
    let place = world.hosts.len() - 1;
    for (index, source) in sources.iter().enumerate() {
        add_source(world, place, index as u32 + 1, scenario.source(*source));
    }
    place
}

/// Another source of a daemon.
pub fn add_source(world: &mut World, host: usize, number: u32, configuration: SourceConfiguration) {
    let now = world.now;
    let wishes = world.daemon(host).add(now, number, configuration);
    world.grant(host, wishes);
}

/// A chain: server, client, client of the client. Each is one stratum further down.
#[test]
fn a_daemon_serves_the_time_it_keeps() {
    let scenario = Scenario { poll: (4, 6), ..Scenario::default() };
    let mut world = scenario.world();
    let second = add_daemon(&mut world, &scenario, server_address(50), &[CLIENT_ADDRESS]);
    world.run(7200.0);
    assert_eq!(world.daemon(second).snapshot.stratum, 3);
    assert_eq!(world.daemon(second).snapshot.reference_id, reference_id(CLIENT_ADDRESS));
    let worst = world.worst(second, 1200);
    assert!(worst < 1e-3, "{:.0} us", worst * 1e6);
}

/// RFC 5905 A.5.5.3: two daemons that use each other, one of which has a real source. It must not follow the other,
/// also when its source falls silent: nobody then has any time.
#[test]
fn two_that_use_each_other_make_no_loop() {
    let scenario = Scenario { poll: (4, 4), ..Scenario::default() };
    let mut world = scenario.world();
    let other = add_daemon(&mut world, &scenario, server_address(50), &[CLIENT_ADDRESS]);
    add_source(&mut world, CLIENT, 9, scenario.source(server_address(50)));
    world.run(7200.0);
    assert_eq!(world.daemon(CLIENT).state(server_address(50)), Some(SourceState::FollowsUs));
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2);
    assert_eq!(world.daemon(other).snapshot.stratum, 3);
    assert!(world.worst(other, 600) < 1e-3);

    world.server(1).fault = Some((crate::faults::Fault::Silence, crate::faults::Placement::Instead));
    world.run(7200.0);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 0, "it follows its own follower");
    assert_eq!(world.daemon(other).snapshot.stratum, 0);
}

/// Two that have only each other never start.
#[test]
fn two_that_have_only_each_other_stay_unsynchronised() {
    let scenario = Scenario { servers: Vec::new(), poll: (4, 4), ..Scenario::default() };
    let mut world = scenario.world();
    let other = add_daemon(&mut world, &scenario, server_address(50), &[CLIENT_ADDRESS]);
    add_source(&mut world, CLIENT, 9, scenario.source(server_address(50)));
    world.run(7200.0);
    for host in [CLIENT, other] {
        assert_eq!(world.daemon(host).snapshot.stratum, 0);
        assert!(!world.daemon(host).has_touched_its_clock());
    }
    assert_eq!(world.daemon(CLIENT).state(server_address(50)), Some(SourceState::Unsynchronised));
}

/// A daemon that is its own source by mistake. Checklist 26.
#[test]
fn nobody_follows_himself() {
    let scenario = Scenario { poll: (4, 4), ..Scenario::default() };
    let mut world = scenario.world();
    add_source(&mut world, CLIENT, 9, scenario.source(CLIENT_ADDRESS));
    world.run(3600.0);
    assert_eq!(world.daemon(CLIENT).state(CLIENT_ADDRESS), Some(SourceState::FollowsUs));
    assert_eq!(world.daemon(CLIENT).state(server_address(1)), Some(SourceState::Selected));
    assert!(world.worst(CLIENT, 600) < 500e-6);
}

/// RFC 5905 A.5.5.3: a server that follows our system peer knows nothing that we do not.
#[test]
fn one_that_follows_our_system_peer_is_not_a_second_opinion() {
    let scenario = Scenario { servers: vec![0.0; 2], poll: (4, 6), ..Scenario::default() };
    let mut world = scenario.world();
    {
        let follower = world.server(2);
        follower.stratum = 2;
        follower.reference_id = reference_id(server_address(1));
    }
    world.run(3600.0);
    assert_eq!(world.daemon(CLIENT).state(server_address(1)), Some(SourceState::Selected));
    assert_eq!(world.daemon(CLIENT).state(server_address(2)), Some(SourceState::FollowsSystemPeer));
}
