//! Random and mutated frames: the program and the oracle agree on every one.

use crate::frames::{Frame, TPID_AD, TPID_Q};
use crate::oracle::{Expectation, World};
use crate::{
    CHILD_MAC, OUR_MAC, XDP_DROP, XDP_PASS, XDP_REDIRECT, af_xdp_socket, load_world, put, run, world,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::Cell;
use std::net::IpAddr;
use std::os::fd::AsFd;

/// Enough that every pair of neighbouring values of the fields below comes up; about a second.
const CASES: u32 = 100_000;

fn tag() -> impl Strategy<Value = (u16, u16)> {
    (prop::sample::select(vec![TPID_Q, TPID_AD]), prop::sample::select(vec![0, 6, 7, 8, 0xf007, 0x1000, 9]))
}

fn valid_request() -> impl Strategy<Value = Vec<u8>> {
    let addresses = prop::sample::select(vec![
        ("10.99.0.2", "10.99.0.1"),
        ("10.99.0.2", "10.99.0.9"),
        ("10.99.66.1", "10.99.0.5"),
        ("10.99.66.1", "10.99.0.1"),
        ("10.99.66.7", "10.99.0.1"),
        ("fd99::2", "fd99::1"),
        ("fd99::2", "fd99::9"),
        ("fd99::2", "fd99::5"),
        ("fd99:66::1", "fd99::1"),
        ("fd99:66::7", "fd99::1"),
    ]);
    let length = prop_oneof![6 => Just(48usize), 1 => 1..1600usize];
    let mac = prop_oneof![6 => Just(OUR_MAC), 1 => Just(CHILD_MAC), 1 => any::<[u8; 6]>()];
    (addresses, prop::collection::vec(tag(), 0..4), length, mac).prop_map(
        |((source, destination), tags, length, mac)| {
            Frame::request(source, destination, &tags, length).with_link(0, &mac).bytes
        },
    )
}

#[derive(Clone, Debug)]
enum Mutation {
    /// Another byte somewhere in the headers.
    Set(usize, u8),
    /// One bit somewhere in the headers.
    Flip(usize, u32),
    /// Up or down by one: lengths, ports, addresses.
    Step(usize, bool),
    /// A frame cut or padded to this many bytes more or less.
    Resize(isize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let place = 0..90usize;
    prop_oneof![
        (place.clone(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (place.clone(), 0..8u32).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        (place, any::<bool>()).prop_map(|(at, up)| Mutation::Step(at, up)),
        (-60..60isize).prop_map(Mutation::Resize),
    ]
}

fn mutate(mut frame: Vec<u8>, mutations: Vec<Mutation>) -> Vec<u8> {
    for mutation in mutations {
        let length = frame.len();
        match mutation {
            Mutation::Set(at, byte) => frame[at % length] = byte,
            Mutation::Flip(at, bit) => frame[at % length] ^= 1 << bit,
            Mutation::Step(at, true) => frame[at % length] = frame[at % length].wrapping_add(1),
            Mutation::Step(at, false) => frame[at % length] = frame[at % length].wrapping_sub(1),
            Mutation::Resize(by) => frame.resize(length.saturating_add_signed(by).max(14), 0),
        }
    }
    frame
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 14..300),
        9 => (valid_request(), prop::collection::vec(mutation(), 0..4)).prop_map(|(frame, mutations)| mutate(frame, mutations)),
    ]
}

/// What the maps hold one after the other, so that the program's shortcuts come, change and go.
fn worlds() -> [World; 5] {
    let none_denied = World { denied: vec![], ..world() };
    let mut one_family_denied = world();
    one_family_denied.denied.retain(|(prefix, _)| prefix.addr().is_ipv4());
    let is_untagged_first = |address: &IpAddr| ["10.99.0.1", "fd99::1"].contains(&&*address.to_string());
    let mut others_first = world();
    others_first.locals.retain(|(tags, address, _)| *tags != [0, 0] || !is_untagged_first(address));
    [world(), none_denied, one_family_denied, others_first, world()]
}

#[test]
fn agrees_with_the_oracle_on_random_and_mutated_frames() {
    let Some(mut steering) = load_world() else { return };
    let Some(socket) = af_xdp_socket() else { return };
    steering.set_socket(0, socket.as_fd()).unwrap();
    let (redirected, dropped, passed) = (Cell::new(0u32), Cell::new(0u32), Cell::new(0u32));

    let worlds = worlds();
    // A failure prints the smallest frame that shows it, which is better than a seed; no file is left behind.
    let cases = CASES / worlds.len() as u32;
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    for (index, world) in worlds.iter().enumerate() {
        put(&mut steering, world);
        let result = TestRunner::new(config.clone()).run(&any_frame(), |frame| {
            let (expected, seen) = match world.expects(&frame) {
                Expectation::Redirect => (XDP_REDIRECT, &redirected),
                Expectation::Drop => (XDP_DROP, &dropped),
                Expectation::Pass => (XDP_PASS, &passed),
            };
            seen.set(seen.get() + 1);
            prop_assert_eq!(run(&steering, &frame).verdict, expected, "{:02x?}", frame);
            Ok(())
        });
        if let Err(failure) = result {
            panic!("world {index}: {failure}");
        }
    }
    // The property says something only if each answer is asked for often.
    for seen in [redirected, dropped, passed] {
        assert!(seen.get() > CASES / 50, "{seen:?} of {CASES}");
    }
}
