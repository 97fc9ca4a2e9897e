//! A record of events replays exactly.

use crate::daemon::replay;
use crate::faults::{Fault, Placement};
use crate::network::Way;
use crate::scenario::{CLIENT, Scenario};
use timeball::control::source::Burst;

fn eventful(seed: u64) -> (Scenario, crate::world::World) {
    let way = Way { loss: 0.2, duplication: 0.2, reordering: 0.2, ..Scenario::default().there };
    let servers = vec![0.0, 0.0, 0.3, 0.0, 0.0];
    let scenario =
        Scenario { seed, servers, there: way, iburst: Burst::On, poll: (4, 8), ..Scenario::default() };
    let mut world = scenario.world();
    world.run(3000.0);
    world.server(1).fault = Some((Fault::Kiss(*b"RATE"), Placement::Instead));
    world.server(2).fault = Some((Fault::Kiss(*b"DENY"), Placement::Instead));
    world.run(6000.0);
    (scenario, world)
}

#[test]
fn the_same_events_have_the_same_consequences() {
    let (scenario, mut world) = eventful(3);
    let daemon = world.daemon(CLIENT);
    assert!(daemon.record.len() > 1000 && daemon.spoken.len() > 1000, "{}", daemon.record.len());
    let again = replay(scenario.client_random(), scenario.options, &daemon.record);
    assert!(again == daemon.spoken, "the replay of {} events differs", daemon.record.len());
    let other = replay(
        Scenario { seed: 4, ..scenario.clone() }.client_random(),
        scenario.options,
        &daemon.record[..1],
    );
    assert_ne!(other, daemon.spoken[..other.len()], "another seed says something else");
}

#[test]
fn a_seed_repeats_a_run_and_another_does_not() {
    let ahead = |seed| {
        let (_, mut world) = eventful(seed);
        world.error(CLIENT)
    };
    assert_eq!(ahead(5), ahead(5));
    assert_ne!(ahead(5), ahead(6));
}
