//! Five sources, some of them false.

use crate::clock::{Clock, ClockSetup};
use crate::network::Datagram;
use crate::random::Random;
use crate::scenario::{CLIENT, CLIENT_ADDRESS, Scenario, server_address};
use crate::world::World;
use timeball::control::state::SourceState;
use timeball::wire::{Header, Leap, Mode, Version};
use zerocopy::{FromBytes, IntoBytes};

const SERVERS: usize = 5;

/// Five servers, server n wrong by the n-th of these, in seconds. The client's clock runs no faster than RFC 5905 takes
/// any clock to run (PHI, 15 ppm): an interval says no more than that.
fn world(lies: [f64; SERVERS], seed: u64) -> World {
    let client = ClockSetup { fast_ppm: 10.0, ..Scenario::default().client };
    Scenario { client, servers: lies.to_vec(), seed, ..Scenario::default() }.world()
}

/// Which servers are false, as bits: every choice of so many of five.
fn choices(count: u32) -> impl Iterator<Item = u32> {
    (0..1 << SERVERS as u32).filter(move |bits: &u32| bits.count_ones() == count)
}

fn is_false(bits: u32, server: usize) -> bool {
    bits >> (server - 1) & 1 == 1
}

/// Who is chosen lies by the n-th of these, n its number.
fn lies(bits: u32, by: [f64; SERVERS]) -> [f64; SERVERS] {
    std::array::from_fn(|index| if is_false(bits, index + 1) { by[index] } else { 0.0 })
}

/// No two of these agree, nor any with the truth, even at first: after four samples a source may be wrong by nearly a second
/// (RFC 5905 section 10).
const APART: [[f64; SERVERS]; 3] =
    [[1.0, 2.0, 3.0, 4.0, 5.0], [2.0, -2.0, 4.0, -4.0, 6.0], [-3600.0, 86_400.0, -7.5, 500.0, 1e6]];
/// Lies of less are believed a little at first, and found when there are more samples.
const NEAR: [f64; SERVERS] = [0.3, -0.4, 0.5, -0.6, 0.7];
/// By then, and what was believed is forgotten.
const SETTLED: f64 = 7200.0;

/// What the client tells somebody who asks it for the time.
fn served(world: &mut World) -> Header {
    world.tap = Some(Vec::new());
    let mut request = Header::new(Leap::None, Version::V4, Mode::Client);
    request.set_transmit_timestamp(timeball::time::NtpTimestamp::from_bits(77));
    let from = ([10, 98, 0, 1], 50_000).into();
    let payload = request.as_bytes().to_vec();
    world.inject(Datagram {
        instance: timeball::control::InstanceId(0),
        from,
        to: (CLIENT_ADDRESS, 123).into(),
        payload,
        hop_limit: 64,
    });
    world.run(0.01);
    let tap = world.tap.take().unwrap();
    let (_, reply) = tap.iter().find(|(_, it)| it.to == from).expect("an answer");
    Header::read_from_bytes(&reply.payload).unwrap()
}

/// The right ones are used, the others are said to be false, and why, and the time is right.
fn assert_found(world: &mut World, bits: u32) {
    let worst = world.worst(CLIENT, 1800);
    assert!(worst < 400e-6, "{bits:05b}: {:.0} us", worst * 1e6);
    let daemon = world.daemon(CLIENT);
    assert_eq!((daemon.snapshot.stratum, daemon.steps()), (2, 0), "{bits:05b}");
    for server in 1..=SERVERS {
        let state = daemon.state(server_address(server)).unwrap();
        if is_false(bits, server) {
            let SourceState::Falseticker { offset, low, high } = state else { panic!("{server}: {state}") };
            assert!(offset < low || offset > high, "{state}");
            // A true offset is within a millisecond of zero: the clock is right.
            assert!(low.seconds() < 1e-3 && high.seconds() > -1e-3, "{state}");
            assert!(state.to_string().contains("where the majority agrees"), "{state}");
            assert_eq!(state.sign(), 'x');
        } else {
            assert!(state.is_used() || matches!(state, SourceState::Outlier { .. }), "{server}: {state}");
        }
    }
    let selected =
        (1..=SERVERS).filter(|server| daemon.state(server_address(*server)) == Some(SourceState::Selected));
    assert_eq!(selected.count(), 1);
    let reply = served(world);
    assert_eq!((reply.leap(), reply.stratum), (Leap::None, 2));
}

/// RFC 5905 section 11.2.1 (checklist 52): a majority of truechimers is found, whoever and however wrong the others are,
/// and the report says what is wrong with them.
#[test]
fn one_or_two_false_of_five_are_found_and_named() {
    for bits in choices(1).chain(choices(2)) {
        for (by, seed) in APART.into_iter().chain([NEAR]).zip(u64::from(bits)..) {
            let mut world = world(lies(bits, by), seed);
            world.run(SETTLED);
            assert_found(&mut world, bits);
        }
    }
}

/// Two that are false together are still a minority.
#[test]
fn two_that_agree_on_a_lie_are_found_too() {
    for bits in choices(2) {
        for lie in [-0.3, 0.2, 30.0] {
            let mut world = world(lies(bits, [lie; SERVERS]), bits.into());
            world.run(SETTLED);
            assert_found(&mut world, bits);
        }
    }
}

/// Two that were right, and whose clocks run away, each in its direction.
#[test]
fn two_that_drift_away_are_found_and_named() {
    let mut world = world([0.0; SERVERS], 1);
    for (server, fast_ppm) in [(2, 40.0), (5, -40.0)] {
        let setup = ClockSetup { fast_ppm, ..ClockSetup::PERFECT };
        world.server(server).clock = Clock::new(setup, Scenario::default().epoch, Random::new(1));
    }
    world.run(3600.0);
    assert_found(&mut world, 0b10010);
}

/// RFC 5905 section 11.2 (checklist 53): without a majority the clock is left alone and stratum 16, which is 0 on the wire
/// (section 7.3), is served with leap 3.
#[test]
fn three_or_four_false_of_five_leave_the_clock_alone() {
    for bits in choices(3).chain(choices(4)) {
        for (by, seed) in APART.into_iter().zip(u64::from(bits)..) {
            let mut world = world(lies(bits, by), seed);
            world.run(3600.0);
            let daemon = world.daemon(CLIENT);
            assert!(!daemon.has_touched_its_clock(), "{bits:05b} {by:?}");
            let agreeing = SERVERS as u32 - bits.count_ones();
            for server in 1..=SERVERS {
                let state = daemon.state(server_address(server)).unwrap();
                assert_eq!(state, SourceState::NoMajority { agreeing, sources: 5 }, "server {server}");
                assert_eq!(state.to_string(), format!("no majority: at most {agreeing} of 5 sources agree"));
            }
            assert_eq!(daemon.controller.system_peer(), None);
            let reply = served(&mut world);
            assert_eq!((reply.leap(), reply.stratum), (Leap::Unsynchronised, 0), "{bits:05b}");
        }
    }
}

/// A clock that was right, and then three of five servers go mad: it keeps its time, and says that it has none.
#[test]
fn a_majority_that_is_lost_takes_the_stratum_with_it() {
    let mut world = world([0.0; SERVERS], 1);
    world.run(3600.0);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2);
    for server in 1..=3 {
        world.server(server).lie = server as f64;
    }
    world.run(3600.0);
    let reply = served(&mut world);
    assert_eq!((reply.leap(), reply.stratum), (Leap::Unsynchronised, 0));
    assert_eq!(world.daemon(CLIENT).steps(), 0);
    let worst = world.worst(CLIENT, 600);
    assert!(worst < 10e-3, "{:.0} us: free-running at the last frequency", worst * 1e6);
}
