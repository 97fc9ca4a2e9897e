//! Names, and the servers they lead to.

use crate::faults::{Fault, Placement};
use crate::scenario::{CLIENT, Scenario, server_address};
use crate::world::World;
use std::net::IpAddr;
use std::sync::Arc;
use timeball::control::source::{Place, SourceConfiguration, SourceKind};
use timeball::control::state::SourceState;
use timeball::control::{Farewell, News};

const POOL: &str = "pool.example";

/// So many servers, of which the name leads to these.
fn world(servers: usize, named: &[usize], kind: SourceKind) -> World {
    let scenario = Scenario { servers: vec![0.0; servers], poll: (4, 6), ..Scenario::default() };
    let mut world = scenario.hosts();
    name(&mut world, named);
    let place = Place::Name(Arc::from(POOL), 123);
    let configuration = SourceConfiguration { kind, place, ..scenario.source(server_address(1)) };
    let wishes = world.daemon(CLIENT).add(0, 1, configuration);
    world.grant(CLIENT, wishes);
    world
}

fn name(world: &mut World, servers: &[usize]) {
    world.names.insert(POOL, servers.iter().map(|server| server_address(*server)).collect());
}

fn members(world: &mut World) -> Vec<IpAddr> {
    world.daemon(CLIENT).controller.associations().map(|association| association.remote.ip()).collect()
}

#[test]
fn a_pool_takes_as_many_members_as_it_wants() {
    let mut world = world(6, &[1, 2, 2, 3, 4, 5, 6], SourceKind::Pool(4));
    world.run(3600.0);
    assert_eq!(members(&mut world), [1, 2, 3, 4].map(server_address));
    assert!(world.worst(CLIENT, 600) < 500e-6);
}

#[test]
fn a_pool_replaces_members_that_are_silent_or_false() {
    let mut world = world(6, &[1, 2, 3, 4, 5, 6], SourceKind::Pool(4));
    world.run(1800.0);
    world.server(2).fault = Some((Fault::Silence, Placement::Instead));
    world.server(3).lie = 0.4;
    world.run(3600.0);
    let mut now = members(&mut world);
    now.sort_unstable();
    assert_eq!(now, [1, 4, 5, 6].map(server_address));
    assert!(world.worst(CLIENT, 600) < 500e-6);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2);
}

/// A network that is down is no reason to throw all members away: there is nobody better.
#[test]
fn a_pool_keeps_its_members_while_there_are_no_others() {
    let mut world = world(4, &[1, 2, 3, 4], SourceKind::Pool(4));
    world.run(1800.0);
    let before = members(&mut world);
    for server in 1..=4 {
        world.server(server).fault = Some((Fault::Silence, Placement::Instead));
    }
    name(&mut world, &[]);
    world.run(36_000.0);
    assert_eq!(members(&mut world), before);
    let unresolved = world.daemon(CLIENT).said(|news| *news == News::NotResolved);
    assert!((1..30).contains(&unresolved), "{unresolved} lookups in ten hours");
    for server in 1..=4 {
        world.server(server).fault = None;
    }
    world.run(3600.0);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2);
}

/// RFC 5905 section 7.4a: who denies is not asked again, though its name still leads to it.
#[test]
fn a_member_that_denies_is_replaced_and_never_asked_again() {
    let mut world = world(3, &[1, 2, 3], SourceKind::Pool(2));
    world.run(1800.0);
    world.server(1).fault = Some((Fault::Kiss(*b"DENY"), Placement::Instead));
    world.run(200.0);
    let asked = world.server(1).requests.len();
    name(&mut world, &[1]);
    world.run(36_000.0);
    assert_eq!(world.server(1).requests.len(), asked);
    assert_eq!(members(&mut world), [2, 3].map(server_address));
}

/// A server by name moves house.
#[test]
fn a_silent_server_is_looked_up_again() {
    let mut world = world(2, &[1], SourceKind::Server);
    world.run(3600.0);
    assert_eq!(members(&mut world), [server_address(1)]);
    name(&mut world, &[2]);
    world.run(3600.0);
    assert_eq!(members(&mut world), [server_address(1)], "it answers: no reason to look elsewhere");
    world.server(1).fault = Some((Fault::Silence, Placement::Instead));
    world.run(3600.0);
    assert_eq!(members(&mut world), [server_address(2)]);
    assert_eq!(world.daemon(CLIENT).state(server_address(2)), Some(SourceState::Selected));
}

/// Two addresses, the first of which is dead (IPv6 that leads nowhere, say): the other is found, and back again.
#[test]
fn all_addresses_of_a_name_are_tried_in_turn() {
    let mut world = world(2, &[1, 2], SourceKind::Server);
    world.server(1).fault = Some((Fault::Silence, Placement::Instead));
    world.run(3600.0);
    assert_eq!(world.daemon(CLIENT).state(server_address(2)), Some(SourceState::Selected));
    world.server(1).fault = None;
    world.server(2).fault = Some((Fault::Silence, Placement::Instead));
    world.run(3600.0);
    assert_eq!(world.daemon(CLIENT).state(server_address(1)), Some(SourceState::Selected));
}

#[test]
fn a_name_that_leads_nowhere_at_first_is_tried_again() {
    let mut world = world(1, &[], SourceKind::Server);
    world.run(600.0);
    assert!(members(&mut world).is_empty());
    name(&mut world, &[1]);
    world.run(3600.0);
    assert_eq!(world.daemon(CLIENT).state(server_address(1)), Some(SourceState::Selected));
}

/// One server under two names has one voice: that of its own table, whose options the operator gave to it alone, and the
/// pool looks for another.
#[test]
fn the_same_server_twice_counts_once() {
    let mut world = world(3, &[1, 2], SourceKind::Pool(2));
    world.run(100.0);
    for id in [5, 6] {
        let again = SourceConfiguration::server(server_address(1));
        let now = world.now;
        let wishes = world.daemon(CLIENT).add(now, id, again);
        world.grant(CLIENT, wishes);
        assert_eq!(members(&mut world), [2, 1].map(server_address));
    }
    let daemon = world.daemon(CLIENT);
    assert_eq!(daemon.said(|news| matches!(news, News::Demobilised { reason: Farewell::Configured, .. })), 1);
    assert_eq!(daemon.said(|news| matches!(news, News::AlreadySource { .. })), 1);
    name(&mut world, &[1, 2, 3]);
    world.run(3600.0);
    assert_eq!(members(&mut world), [2, 1, 3].map(server_address));
}
