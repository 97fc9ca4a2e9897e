//! A faulty server: each fault by name. None shifts the clock, none kills the association that should live.

use crate::faults::{FAULTY_LIE, Fault, Placement};
use crate::network::Way;
use crate::scenario::{CLIENT, Scenario, server_address};
use timeball::control::packet_checks::Failure;
use timeball::control::state::SourceState;

/// Everything but the fault's own length is the same for all: a poll interval of 16 s.
fn scenario(keyed: bool) -> Scenario {
    Scenario { poll: (4, 6), keyed, ..Scenario::default() }
}

/// Which of tests 1 to 7 counts the fault, if it gets as far as the tests.
fn counted_as(fault: Fault) -> Option<Failure> {
    match fault {
        Fault::WrongOrigin | Fault::RepeatedOrigin | Fault::ForgedKiss(_) | Fault::RepeatedOriginKiss(_) => {
            Some(Failure::Bogus)
        }
        Fault::ZeroOrigin | Fault::ZeroReceive | Fault::ZeroTransmit | Fault::ZeroOriginKiss(_) => {
            Some(Failure::Invalid)
        }
        Fault::FrozenTransmit => Some(Failure::Duplicate),
        Fault::LeapUnsynchronised | Fault::StratumZero | Fault::Stratum(_) => Some(Failure::Unsynchronised),
        Fault::HugeRootDispersion | Fault::HugeRootDelay | Fault::ReferenceInTheFuture => {
            Some(Failure::Header)
        }
        Fault::BadMac
        | Fault::MissingMac
        | Fault::OtherKey
        | Fault::UnknownKey
        | Fault::CryptoNak
        | Fault::UnsignedKiss(_)
        | Fault::BadMacKiss(_) => Some(Failure::Authentication),
        // These never get as far: they cannot be read, belong to no association, or never come.
        Fault::WrongPort
        | Fault::WrongAddress
        | Fault::Mode(_)
        | Fault::Version(_)
        | Fault::Length(_)
        | Fault::MalformedExtension(..)
        | Fault::Silence => None,
        Fault::Replay | Fault::Kiss(_) => panic!("not one of those that is counted as one thing"),
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

/// Packets with the right origin timestamp, from an attacker who sees our requests and is nearer than the server. He can
/// keep us from measuring, and no more: neither is the clock shifted nor the association ended, and when he goes, all
/// is well. Those that come after the good reply do not even keep us from anything.
fn is_harmless_on_the_way(fault: Fault, keyed: bool) {
    let mut world = scenario(keyed).world();
    world.run(1800.0);
    world.server(1).fault = Some((fault, Placement::After));
    world.run(1800.0);
    assert!(world.worst(CLIENT, 600) < 500e-6, "{fault:?} after the good ones");
    world.server(1).fault = Some((fault, Placement::Before));
    let worst = world.worst(CLIENT, 1800);
    assert!(worst < 5e-3, "{fault:?}: {:.0} us, where {FAULTY_LIE} s were told", worst * 1e6);
    assert_eq!(world.daemon(CLIENT).controller.associations().count(), 1, "{fault:?}");
    assert_eq!(world.daemon(CLIENT).steps(), 0);
    world.server(1).fault = None;
    world.run(1800.0);
    assert!(world.worst(CLIENT, 600) < 500e-6, "{fault:?} is over");
    assert_eq!(world.daemon(CLIENT).state(server_address(1)), Some(SourceState::Selected), "{fault:?}");
}

/// A fault that one who cannot see our requests could send just as well.
fn is_harmless(fault: Fault) {
    is_harmless_from_the_start(fault, false);
    is_harmless_from_outside(fault, false);
}

/// Checklist 20.
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
    for fault in [Fault::ZeroReceive, Fault::ZeroTransmit] {
        is_harmless_from_the_start(fault, false);
        is_harmless_on_the_way(fault, false);
    }
}

/// RFC 5905 section 8, test 1: the first one is a good packet by every test, and far away; the copies are none.
#[test]
fn a_transmit_timestamp_that_never_changes_is_harmless() {
    let mut world = scenario(false).world();
    world.run(1800.0);
    world.server(1).fault = Some((Fault::FrozenTransmit, Placement::Instead));
    world.run(1800.0);
    let daemon = world.daemon(CLIENT);
    let failures = daemon.controller.associations().next().unwrap().traffic.failures;
    assert_eq!(counted_as(Fault::FrozenTransmit), Some(Failure::Duplicate));
    assert!(failures.of(Failure::Duplicate) > 20 && daemon.steps() == 0, "{failures:?}");
    world.server(1).fault = None;
    world.run(1800.0);
    assert!(world.worst(CLIENT, 600) < 500e-6);
}

#[test]
fn leap_3_is_harmless() {
    is_harmless_from_the_start(Fault::LeapUnsynchronised, false);
    is_harmless_on_the_way(Fault::LeapUnsynchronised, false);
}

#[test]
fn stratum_0_and_strata_from_16_up_are_harmless() {
    is_harmless_from_the_start(Fault::StratumZero, false);
    is_harmless_on_the_way(Fault::StratumZero, false);
    for stratum in [16, 17, 255] {
        is_harmless_from_the_start(Fault::Stratum(stratum), false);
        is_harmless_on_the_way(Fault::Stratum(stratum), false);
    }
}

#[test]
fn a_huge_root_dispersion_or_delay_is_harmless() {
    for fault in [Fault::HugeRootDispersion, Fault::HugeRootDelay] {
        is_harmless_from_the_start(fault, false);
        is_harmless_on_the_way(fault, false);
    }
}

#[test]
fn a_reference_time_in_the_future_is_harmless() {
    is_harmless_from_the_start(Fault::ReferenceInTheFuture, false);
    is_harmless_on_the_way(Fault::ReferenceInTheFuture, false);
}

/// Checklist 16.
#[test]
fn a_reply_from_another_port_or_address_is_harmless() {
    is_harmless(Fault::WrongPort);
    is_harmless(Fault::WrongAddress);
}

/// RFC 5905 figure 20, the client's row: everything but mode 4. Checklist 13.
#[test]
fn a_reply_in_any_other_mode_is_harmless() {
    for mode in [0, 1, 2, 3, 5, 6, 7] {
        is_harmless(Fault::Mode(mode));
    }
}

/// Checklist 2.
#[test]
fn versions_that_do_not_exist_are_harmless() {
    for version in [0, 5, 6, 7] {
        is_harmless(Fault::Version(version));
    }
}

/// Too short, or of a length that no packet has. (52 octets would be a crypto-NAK's.) Checklist 3.
#[test]
fn a_packet_of_another_length_is_harmless() {
    for length in [0, 1, 4, 12, 20, 40, 44, 47, 49, 50, 51, 53, 56, 60] {
        is_harmless(Fault::Length(length));
    }
    for length in [47, 49, 52, 60, 67, 69] {
        is_harmless_from_outside(Fault::Length(length), true);
    }
}

/// RFC 7822 section 3: a length that is no multiple of four, below 16, below 28 in the last field of a packet without a
/// MAC, or beyond the packet. Checklist 80.
#[test]
fn a_malformed_extension_field_is_harmless() {
    for (length, area) in
        [(0, 32), (3, 32), (4, 32), (7, 32), (12, 32), (15, 32), (16, 16), (24, 32), (30, 32)]
    {
        is_harmless(Fault::MalformedExtension(length, area));
    }
    for length in [36, 400, 0x8000, 0xfffc, 0xffff] {
        is_harmless(Fault::MalformedExtension(length, 32));
    }
}

/// RFC 5905 figure 22, test 5. To an association with a key, and to one without.
#[test]
fn a_wrong_mac_is_harmless() {
    is_harmless_from_the_start(Fault::BadMac, true);
    is_harmless_from_outside(Fault::BadMac, true);
    is_harmless_from_the_start(Fault::BadMac, false);
    is_harmless_on_the_way(Fault::BadMac, false);
}

/// RFC 5905 A.5.1: an association with a key ignores packets without one, and such of another key. Checklist 23.
#[test]
fn a_missing_mac_or_that_of_another_key_is_harmless_to_a_keyed_association() {
    for fault in [Fault::MissingMac, Fault::OtherKey, Fault::UnknownKey] {
        is_harmless_from_the_start(fault, true);
        is_harmless_from_outside(fault, true);
    }
}

/// The CVE-2015-7871 and CVE-2016-1547 classes: a crypto-NAK neither mobilises nor demobilises. Checklist 30.
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

/// The first reply again and again. Checklist 22.
#[test]
fn replays_are_harmless() {
    is_harmless_from_outside(Fault::Replay, false);
    is_harmless_from_outside(Fault::Replay, true);
}

/// Codes that mean something, such as mean nothing to us, and one that is no code.
const CODES: [[u8; 4]; 12] = [
    *b"DENY",
    *b"RSTR",
    *b"RATE",
    *b"XYZ\0",
    *b"X\0\0\0",
    *b"INIT",
    *b"STEP",
    *b"AUTH",
    *b"CRYP",
    *b"NKEY",
    *b"NTSN",
    [0xff; 4],
];

/// RFC 8633 section 5.4: a kiss without our origin timestamp is nobody's. Checklist 35.
#[test]
fn forged_kisses_are_harmless() {
    for code in CODES {
        is_harmless(Fault::ForgedKiss(code));
        is_harmless(Fault::ZeroOriginKiss(code));
        is_harmless(Fault::RepeatedOriginKiss(code));
    }
}

/// RFC 5905 figure 22, test 5: nor is one without a good MAC believed where there is a key, whoever saw our request.
#[test]
fn kisses_without_a_good_mac_are_harmless_to_a_keyed_association() {
    for code in CODES {
        for fault in [Fault::UnsignedKiss(code), Fault::BadMacKiss(code)] {
            is_harmless_from_the_start(fault, true);
            is_harmless_from_outside(fault, true);
        }
    }
}

/// A kiss that comes after the answer comes too late; and one whose code means nothing only costs the answer.
#[test]
fn late_kisses_and_those_that_mean_nothing_are_harmless() {
    for code in CODES {
        // On a way where nothing overtakes anything.
        let back = Way { jitter: 0.0, ..scenario(false).back };
        let mut world = Scenario { back, ..scenario(false) }.world();
        world.run(1800.0);
        world.server(1).fault = Some((Fault::Kiss(code), Placement::After));
        world.run(1800.0);
        assert!(world.worst(CLIENT, 600) < 500e-6, "{code:?}");
        assert_eq!(world.daemon(CLIENT).state(server_address(1)), Some(SourceState::Selected), "{code:?}");
    }
    for code in &CODES[3..] {
        is_harmless_on_the_way(Fault::Kiss(*code), false);
    }
}
