//! A faulty peer, or somebody on the way to it who has its key: each fault by name. None shifts the clock, none ends the
//! peering.

use crate::faults::Fault;
use crate::following::{add_daemon, add_source};
use crate::scenario::{CLIENT, CLIENT_ADDRESS, Scenario};
use crate::server::KEY;
use std::net::IpAddr;
use timeball::control::source::{SourceConfiguration, SourceKind, Volley};

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 99, 0, 60));

/// Two active ends, of which one has a server and all of whose packets have the fault, from the start and 70 ms off. The
/// other leaves its clock alone, and they are peers when the fault is mended. Then the same again: the clock is not
/// shifted by a peering that once was good.
fn is_harmless(fault: Fault, keyed: bool) {
    let scenario = Scenario { poll: (4, 6), keyed, ..Scenario::default() };
    let mut world = scenario.world();
    let other = add_daemon(&mut world, &scenario, PEER, &[]);
    let kind = SourceKind::Peer(Volley::Off);
    for (host, number, address) in [(CLIENT, 90, PEER), (other, 91, CLIENT_ADDRESS)] {
        add_source(&mut world, host, number, SourceConfiguration { kind, ..scenario.source(address) });
    }
    let tampering = Some((CLIENT_ADDRESS, PEER, fault, keyed.then_some(KEY)));
    world.tampering = tampering;
    world.run(3600.0);
    let daemon = world.daemon(other);
    assert!(!daemon.has_touched_its_clock(), "{fault:?} touched the clock");
    assert_eq!((daemon.snapshot.stratum, daemon.controller.associations().count()), (0, 1), "{fault:?}");
    world.tampering = None;
    world.run(7200.0);
    let worst = world.worst(other, 600);
    assert!(worst < 1e-3, "{fault:?}: {:.0} us after it was mended", worst * 1e6);
    let steps = world.daemon(other).steps();
    world.tampering = tampering;
    let worst = world.worst(other, 1800);
    assert!(worst < 5e-3, "{fault:?}: {:.0} us", worst * 1e6);
    assert_eq!(
        (world.daemon(other).steps(), world.daemon(other).controller.associations().count()),
        (steps, 1)
    );
    world.tampering = None;
    world.run(3600.0);
    assert_eq!(world.daemon(other).snapshot.stratum, 3, "{fault:?}");
}

#[test]
fn a_wrong_zero_or_repeated_origin_of_a_peer_is_harmless() {
    for fault in [Fault::WrongOrigin, Fault::ZeroOrigin, Fault::RepeatedOrigin] {
        is_harmless(fault, false);
    }
}

#[test]
fn zero_and_frozen_timestamps_of_a_peer_are_harmless() {
    for fault in [Fault::ZeroReceive, Fault::ZeroTransmit] {
        is_harmless(fault, false);
    }
}

/// RFC 5905 figure 22, tests 6 and 7.
#[test]
fn a_peer_without_time_is_harmless() {
    for stratum in [16, 17, 255] {
        is_harmless(Fault::Stratum(stratum), false);
    }
    for fault in [
        Fault::LeapUnsynchronised,
        Fault::StratumZero,
        Fault::HugeRootDispersion,
        Fault::HugeRootDelay,
        Fault::ReferenceInTheFuture,
    ] {
        is_harmless(fault, false);
    }
}

/// RFC 5905 figure 20, the active row, and section 9.1: a peering is with an address and port 123. Checklist 11, 16.
#[test]
fn packets_of_other_modes_and_from_elsewhere_are_harmless_to_a_peering() {
    for mode in [0, 3, 4, 5, 6, 7] {
        is_harmless(Fault::Mode(mode), false);
    }
    is_harmless(Fault::WrongPort, false);
    is_harmless(Fault::WrongAddress, false);
}

#[test]
fn a_peers_packet_that_cannot_be_read_is_harmless() {
    for version in [0, 5, 6, 7] {
        is_harmless(Fault::Version(version), false);
    }
    for length in [0, 47, 49] {
        is_harmless(Fault::Length(length), false);
    }
    for (length, area) in [(7, 32), (0, 32), (16, 16), (0xfffc, 32)] {
        is_harmless(Fault::MalformedExtension(length, area), false);
    }
}

/// RFC 5905 figure 22, test 5; CVE-2016-1547 for the crypto-NAK.
#[test]
fn a_bad_or_missing_mac_of_a_peer_is_harmless() {
    for fault in [Fault::BadMac, Fault::MissingMac, Fault::OtherKey, Fault::UnknownKey, Fault::CryptoNak] {
        is_harmless(fault, true);
    }
    is_harmless(Fault::BadMac, false);
    is_harmless(Fault::CryptoNak, false);
}

/// RFC 8633 section 5.4: kisses must answer a packet of ours, and be signed where there is a key; of those that do, codes
/// that mean nothing do nothing.
#[test]
fn kisses_of_a_peer_that_are_forged_or_mean_nothing_are_harmless() {
    for code in [*b"DENY", *b"RSTR", *b"RATE", *b"XYZ\0", *b"INIT"] {
        is_harmless(Fault::ForgedKiss(code), false);
        is_harmless(Fault::ZeroOriginKiss(code), false);
        is_harmless(Fault::UnsignedKiss(code), true);
        is_harmless(Fault::BadMacKiss(code), true);
    }
    for code in [*b"XYZ\0", *b"INIT"] {
        is_harmless(Fault::Kiss(code), true);
    }
}
