//! Five sources, some of them false.

use crate::scenario::{CLIENT, Scenario, server_address};
use crate::world::World;
use timeball::control::state::SourceState;

/// Five servers, the first `false_ones` of them wrong by 1 s, 2 s, ... (two of them never agree).
fn world(false_ones: usize, seed: u64) -> World {
    let servers = (0..5).map(|index| if index < false_ones { (index + 1) as f64 } else { 0.0 }).collect();
    Scenario { servers, seed, ..Scenario::default() }.world()
}

/// RFC 5905 section 11.2.1: a majority of truechimers is found, and the report says what is wrong with the others.
#[test]
fn one_or_two_false_of_five_are_found_and_named() {
    for false_ones in [1, 2] {
        for seed in 1..=5 {
            let mut world = world(false_ones, seed);
            world.run(3600.0);
            let worst = world.worst(CLIENT, 1800);
            assert!(worst < 400e-6, "{false_ones} false, seed {seed}: {:.0} us", worst * 1e6);
            let daemon = world.daemon(CLIENT);
            assert_eq!((daemon.snapshot.stratum, daemon.steps()), (2, 0));
            for server in 1..=5 {
                let state = daemon.state(server_address(server)).unwrap();
                let is_false = server <= false_ones;
                let is_named = matches!(state, SourceState::Falseticker { .. });
                assert_eq!(is_named, is_false, "server {server}: {state}");
                assert!(is_false || state >= SourceState::Outlier { jitter: Default::default() }, "{state}");
                assert_eq!(state.to_string().contains("where the majority agrees"), is_false, "{state}");
            }
            let selected =
                (1..=5).filter(|server| daemon.state(server_address(*server)) == Some(SourceState::Selected));
            assert_eq!(selected.count(), 1);
        }
    }
}

/// RFC 5905 section 11.2: without a majority the clock is left alone, and stratum 16 (0 on the wire) is served.
#[test]
fn three_or_four_false_of_five_leave_the_clock_alone() {
    for false_ones in [3, 4] {
        for seed in 1..=5 {
            let mut world = world(false_ones, seed);
            world.run(7200.0);
            let daemon = world.daemon(CLIENT);
            assert!(!daemon.has_touched_its_clock(), "{false_ones} false, seed {seed}");
            assert_eq!(daemon.snapshot.stratum, 0);
            for server in 1..=5 {
                let state = daemon.state(server_address(server)).unwrap();
                assert!(matches!(state, SourceState::NoMajority { .. }), "server {server}: {state}");
            }
        }
    }
}

/// A clock that was right, and then three of five servers go mad: it keeps its time, and says that it has none.
#[test]
fn a_majority_that_is_lost_takes_the_stratum_with_it() {
    let mut world = world(0, 1);
    world.run(3600.0);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2);
    for server in 1..=3 {
        world.server(server).lie = server as f64;
    }
    world.run(3600.0);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 0);
    assert_eq!(world.daemon(CLIENT).steps(), 0);
    let worst = world.worst(CLIENT, 600);
    assert!(worst < 10e-3, "{:.0} us: free-running at the last frequency", worst * 1e6);
}
