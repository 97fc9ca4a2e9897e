//! One daemon in two networks that use the same addresses.

use crate::clock::ClockSetup;
use crate::following::{add_daemon, add_source};
use crate::network::{Datagram, HOP_LIMIT};
use crate::scenario::{CLIENT, CLIENT_ADDRESS, Scenario, server_address};
use crate::server::Server;
use crate::world::World;
use std::net::{IpAddr, SocketAddr};
use timeball::control::reference::reference_id_elsewhere;
use timeball::control::source::{SourceConfiguration, SourceKind, Volley};
use timeball::control::state::SourceState;
use timeball::control::{Event, InstanceId};
use timeball::snapshot::SystemSnapshot;
use timeball::time::{Log2Seconds, NtpDuration};
use timeball::wire::{Header, Leap, Mode, ReferenceId, Version};
use zerocopy::{FromBytes, IntoBytes};

const RED: InstanceId = InstanceId(0);
const BLUE: InstanceId = InstanceId(1);

/// A client with these servers, each of a network, an address and a lie.
fn world(servers: &[(InstanceId, IpAddr, f64)]) -> World {
    let lies = servers.iter().map(|(.., lie)| *lie).collect();
    let scenario = Scenario { servers: lies, poll: (4, 6), ..Scenario::default() };
    let mut world = scenario.hosts();
    for (index, &(instance, address, _)) in servers.iter().enumerate() {
        let host = &mut world.hosts[index + 1];
        host.instance = Some(instance);
        world.server(index + 1).address = address;
        let configuration = SourceConfiguration { instance, ..scenario.source(address) };
        let wishes = world.daemon(CLIENT).add(0, index as u32 + 1, configuration);
        world.grant(CLIENT, wishes);
    }
    world
}

/// The state of each source, in the order of the servers.
fn states(world: &mut World) -> Vec<SourceState> {
    world.daemon(CLIENT).controller.associations().map(|association| association.state).collect()
}

fn name_states(world: &mut World) -> Vec<&'static str> {
    states(world).iter().map(|state| state.name()).collect()
}

/// What the daemon tells whoever asks it from a network.
fn told(world: &mut World, instance: InstanceId) -> ReferenceId {
    let now = world.now;
    let request = Header::new(Leap::None, Version::V4, Mode::Client);
    let from = SocketAddr::new([10, 99, 0, 200].into(), 40_000);
    let to = SocketAddr::new(CLIENT_ADDRESS, 123);
    let payload = request.as_bytes().to_vec();
    let mut wishes =
        world.daemon(CLIENT).receive(now, &Datagram { instance, from, to, payload, hop_limit: HOP_LIMIT });
    let Some(crate::daemon::Wish::Send(reply)) = wishes.pop() else { panic!("it does not answer") };
    assert_eq!(reply.instance, instance);
    Header::read_from_prefix(&reply.payload).unwrap().0.reference_id
}

#[test]
fn one_address_in_two_instances_is_two_servers() {
    let address = server_address(1);
    let mut world = world(&[(RED, address, 0.0), (BLUE, address, 0.0)]);
    world.run(600.0);
    let states = states(&mut world);
    assert!(states.len() == 2 && states.iter().all(|state| state.is_used()), "{states:?}");
    for server in [1, 2] {
        let server: &Server = world.server(server);
        assert!(server.requests.len() > 5, "each is asked");
    }
    assert!(world.error(CLIENT).abs() < 1e-3);
}

/// Two that tell the truth outvote the one that lies, though it has the address of one of them.
#[test]
fn a_liar_does_not_harm_its_namesake() {
    let (namesake, other) = (server_address(1), server_address(2));
    let mut world = world(&[(RED, namesake, 5.0), (BLUE, namesake, 0.0), (BLUE, other, 0.0)]);
    world.run(900.0);
    let states = states(&mut world);
    assert!(matches!(states[0], SourceState::Falseticker { .. }), "{states:?}");
    assert!(states[1].is_used() && states[2].is_used(), "{states:?}");
    assert!(world.error(CLIENT).abs() < 1e-3);
}

/// The reference id of the blue server is the address of our system peer in red, which means somebody else in blue.
#[test]
fn whom_we_follow_in_one_instance_is_no_loop_in_another() {
    let (leader, other) = (server_address(1), server_address(2));
    let mut world = world(&[(RED, leader, 0.0), (BLUE, other, 0.0)]);
    let IpAddr::V4(id) = leader else { panic!("{leader}") };
    let server = world.server(2);
    (server.stratum, server.reference_id) = (2, ReferenceId(id.octets()));
    world.run(600.0);
    let names = name_states(&mut world);
    assert!(!names.contains(&"follows-system-peer"), "{names:?}");
    assert!(states(&mut world).iter().all(|state| state.is_used()), "{names:?}");
    // The same in one network is a loop.
    world.hosts[2].instance = Some(RED);
    let configuration = SourceConfiguration { instance: RED, ..Scenario::default().source(other) };
    let now = world.now;
    let wishes = world.daemon(CLIENT).add(now, 3, configuration);
    world.grant(CLIENT, wishes);
    world.run(600.0);
    assert!(name_states(&mut world).contains(&"follows-system-peer"), "{:?}", name_states(&mut world));
}

/// Those in the other network may have that address themselves.
#[test]
fn the_address_of_whom_we_follow_is_told_in_its_own_instance_only() {
    let address = server_address(1);
    for (network, other) in [(RED, BLUE), (BLUE, RED)] {
        let mut world = world(&[(network, address, 0.0)]);
        world.run(300.0);
        let IpAddr::V4(id) = address else { panic!("{address}") };
        assert_eq!(told(&mut world, network), ReferenceId(id.octets()));
        assert_eq!(told(&mut world, other), reference_id_elsewhere(address, CLIENT_ADDRESS));
    }
}

/// Two routers that are peers in both networks. In either, one that follows the other is recognised, whichever way it came
/// by the time; else they would lift each other up to stratum 16 and begin anew.
#[test]
fn peers_in_two_instances_make_no_loop() {
    // Whoever has the time has a good clock, or its two ways of telling would differ by how it drifts between them.
    let client = ClockSetup::PERFECT;
    let scenario = Scenario { servers: vec![], client, poll: (4, 6), ..Scenario::default() };
    let (mut world, address) = (scenario.hosts(), server_address(50));
    let other = add_daemon(&mut world, &scenario, address, &[]);
    for (number, instance) in [(1, RED), (2, BLUE)] {
        for (host, remote) in [(CLIENT, address), (other, CLIENT_ADDRESS)] {
            let kind = SourceKind::Peer(Volley::On);
            let configuration = SourceConfiguration { kind, instance, ..scenario.source(remote) };
            add_source(&mut world, host, number, configuration);
        }
    }
    let local = SystemSnapshot {
        leap: Leap::None,
        stratum: 4,
        root_dispersion: NtpDuration::ZERO,
        reference_timestamp: world.daemon(CLIENT).clock.read(0).to_ntp(),
        ..SystemSnapshot::unsynchronised(Log2Seconds(-20))
    };
    world.tell(CLIENT, Event::Reference(local));
    world.run(600.0);
    for _ in 0..600 {
        world.run(10.0);
        assert_eq!(world.daemon(CLIENT).snapshot.stratum, 4, "who has the time follows nobody");
        let states: Vec<_> = world.daemon(other).controller.associations().map(|one| one.state).collect();
        let after = world.now / 1_000_000_000;
        assert_eq!(world.daemon(other).snapshot.stratum, 5, "after {after} s: {states:?}");
    }
    let names = name_states(&mut world);
    assert_eq!(names, ["follows-us", "follows-us"]);
}
