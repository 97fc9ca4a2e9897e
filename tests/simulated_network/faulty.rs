//! A faulty server: each fault by name. None shifts the clock, none kills the association that should live.

use crate::scenario::{CLIENT, Scenario, server_address};
use crate::server::{Fault, Placement};
use timeball::control::packet_checks::Failure;
use timeball::control::state::SourceState;

/// Everything but the fault's own length is the same for all: a poll interval of 16 s.
fn scenario(keyed: bool) -> Scenario {
    Scenario { poll: (4, 6), keyed, ..Scenario::default() }
}

/// Which of tests 1 to 7 counts the fault, if it gets as far as the tests.
fn counted_as(fault: Fault) -> Option<Failure> {
    match fault {
        Fault::WrongOrigin | Fault::RepeatedOrigin | Fault::ForgedKiss(_) => Some(Failure::Bogus),
        Fault::ZeroOrigin | Fault::ZeroReceive | Fault::ZeroTransmit => Some(Failure::Invalid),
        Fault::LeapUnsynchronised | Fault::StratumZero | Fault::Stratum(_) => Some(Failure::Unsynchronised),
        Fault::HugeRootDispersion | Fault::HugeRootDelay | Fault::ReferenceInTheFuture => {
            Some(Failure::Header)
        }
        Fault::BadMac | Fault::MissingMac | Fault::OtherKey | Fault::CryptoNak => {
            Some(Failure::Authentication)
        }
        _ => None,
    }
}

/// From the start there is nothing but the fault, and a time that is wrong: the clock stays as it is. Then the
/// server mends itself: the association is still there.
fn is_harmless_from_the_start(fault: Fault, keyed: bool) {
    let mut world = scenario(keyed).world();
    world.server(1).fault = Some((fault, Placement::Instead));
    world.run(3600.0);
    let daemon = world.daemon(CLIENT);
    assert!(!daemon.has_touched_its_clock(), "{fault:?} touched the clock");
    assert_eq!(daemon.snapshot.stratum, 0, "{fault:?}");
    assert_eq!(daemon.controller.associations().count(), 1, "{fault:?} killed the association");
    let failures = daemon.controller.associations().next().unwrap().traffic.failures;
    for failure in Failure::ALL {
        assert_eq!(failures.of(failure) > 0, counted_as(fault) == Some(failure), "{fault:?}: {failures:?}");
    }
    let state = daemon.state(server_address(1)).unwrap();
    assert!(state < SourceState::NotSelectable, "{fault:?}: {state}");
    world.server(1).fault = None;
    world.run(3600.0);
    let worst = world.worst(CLIENT, 600);
    assert!(worst < 500e-6, "{fault:?}: {:.0} us after the server was mended", worst * 1e6);
    assert_eq!(world.daemon(CLIENT).state(server_address(1)), Some(SourceState::Selected));
}

/// The same packets from an attacker, before or after each good reply: time is kept all along.
fn is_harmless_from_outside(fault: Fault, keyed: bool) {
    for placement in [Placement::Before, Placement::After] {
        let mut world = scenario(keyed).world();
        world.run(1800.0);
        world.server(1).fault = Some((fault, placement));
        world.run(1800.0);
        let worst = world.worst(CLIENT, 3600);
        assert!(worst < 500e-6, "{fault:?} {placement:?}: {:.0} us", worst * 1e6);
        let daemon = world.daemon(CLIENT);
        assert_eq!(daemon.snapshot.stratum, 2, "{fault:?} {placement:?}");
        assert_eq!(daemon.state(server_address(1)), Some(SourceState::Selected), "{fault:?} {placement:?}");
        assert_eq!(daemon.steps(), 0);
    }
}

/// A fault that one who cannot see our requests could send just as well.
fn is_harmless(fault: Fault) {
    is_harmless_from_the_start(fault, false);
    is_harmless_from_outside(fault, false);
}

#[test]
fn a_wrong_origin_is_harmless() {
    is_harmless(Fault::WrongOrigin);
}

/// The CVE-2015-8138 class: a zero origin.
#[test]
fn a_zero_origin_is_harmless() {
    is_harmless(Fault::ZeroOrigin);
}

#[test]
fn the_origin_of_the_request_before_is_harmless() {
    is_harmless(Fault::RepeatedOrigin);
}

#[test]
fn a_zero_receive_or_transmit_timestamp_is_harmless() {
    is_harmless_from_the_start(Fault::ZeroReceive, false);
    is_harmless_from_the_start(Fault::ZeroTransmit, false);
}

#[test]
fn leap_3_is_harmless() {
    is_harmless_from_the_start(Fault::LeapUnsynchronised, false);
}

#[test]
fn stratum_0_and_strata_from_16_up_are_harmless() {
    is_harmless_from_the_start(Fault::StratumZero, false);
    for stratum in [16, 17, 255] {
        is_harmless_from_the_start(Fault::Stratum(stratum), false);
    }
}

#[test]
fn a_huge_root_dispersion_or_delay_is_harmless() {
    is_harmless_from_the_start(Fault::HugeRootDispersion, false);
    is_harmless_from_the_start(Fault::HugeRootDelay, false);
}

#[test]
fn a_reference_time_in_the_future_is_harmless() {
    is_harmless_from_the_start(Fault::ReferenceInTheFuture, false);
}

#[test]
fn a_reply_from_another_port_or_address_is_harmless() {
    is_harmless(Fault::WrongPort);
    is_harmless(Fault::WrongAddress);
}

/// RFC 5905 figure 20, the client's row: everything but mode 4.
#[test]
fn a_reply_in_any_other_mode_is_harmless() {
    for mode in [0, 1, 2, 3, 5, 6, 7] {
        is_harmless(Fault::Mode(mode));
    }
}

#[test]
fn versions_that_do_not_exist_are_harmless() {
    for version in [0, 5, 6, 7] {
        is_harmless(Fault::Version(version));
    }
}

#[test]
fn a_short_packet_is_harmless() {
    is_harmless(Fault::Short);
}

#[test]
fn a_malformed_extension_field_is_harmless() {
    is_harmless(Fault::MalformedExtension);
}

/// RFC 5905 figure 22, test 5. To an association with a key, and to one without.
#[test]
fn a_wrong_mac_is_harmless() {
    is_harmless_from_the_start(Fault::BadMac, true);
    is_harmless_from_outside(Fault::BadMac, true);
    is_harmless_from_the_start(Fault::BadMac, false);
}

/// RFC 5905 A.5.1: an association with a key ignores packets without one, and such of another key.
#[test]
fn a_missing_mac_or_that_of_another_key_is_harmless_to_a_keyed_association() {
    for fault in [Fault::MissingMac, Fault::OtherKey] {
        is_harmless_from_the_start(fault, true);
        is_harmless_from_outside(fault, true);
    }
}

/// The CVE-2015-7871 and CVE-2016-1547 classes: a crypto-NAK neither mobilises nor demobilises.
#[test]
fn a_crypto_nak_is_harmless() {
    for keyed in [true, false] {
        is_harmless_from_the_start(Fault::CryptoNak, keyed);
        is_harmless_from_outside(Fault::CryptoNak, keyed);
    }
}

#[test]
fn a_keyed_association_converges_when_nothing_is_wrong() {
    let mut world = scenario(true).world();
    world.run(3600.0);
    assert!(world.worst(CLIENT, 600) < 500e-6);
}

/// The first reply again and again.
#[test]
fn replays_are_harmless() {
    is_harmless_from_outside(Fault::Replay, false);
    is_harmless_from_outside(Fault::Replay, true);
}

/// RFC 8633 section 5.4: a kiss without our origin timestamp is nobody's.
#[test]
fn forged_kisses_are_harmless() {
    for code in [*b"DENY", *b"RSTR", *b"RATE", *b"XYZ\0"] {
        is_harmless(Fault::ForgedKiss(code));
    }
}
