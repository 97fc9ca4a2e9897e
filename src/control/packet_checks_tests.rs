//! Each test of figure 22 by its number, at its edges.

use super::*;
use crate::time::NtpShort;
use crate::wire::{KissCode, Mode, ReferenceId, Version};

const SENT: NtpTimestamp = NtpTimestamp::from_bits(0xdead_beef_0123_4567);
const TIME: NtpTimestamp = NtpTimestamp::from_bits(0xee00_0000_8000_0000);

fn seconds(seconds: i64) -> NtpDuration {
    NtpDuration::from_seconds(seconds)
}

fn reply() -> Header {
    let mut header = Header::new(Leap::None, Version::V4, Mode::Server);
    header.stratum = 1;
    header.reference_id = ReferenceId(*b"GPS\0");
    header.set_reference_timestamp(TIME - seconds(10));
    header.set_origin_timestamp(SENT);
    header.set_receive_timestamp(TIME - NtpDuration::from_nanoseconds(2000));
    header.set_transmit_timestamp(TIME);
    header
}

fn changed(change: impl FnOnce(&mut Header)) -> Header {
    let mut header = reply();
    change(&mut header);
    header
}

fn kiss(change: impl FnOnce(&mut Header)) -> Header {
    let mut header = Header::new(Leap::Unsynchronised, Version::V4, Mode::Server);
    header.reference_id = KissCode::Deny.reference_id();
    header.set_origin_timestamp(SENT);
    change(&mut header);
    header
}

const EXPECTED: Expected = Expected { origin: Some(SENT), last_transmit: None, key: None };

fn plain(header: &Header, expected: &Expected) -> Result<(), Failure> {
    on_wire(header, Access::Allowed, Authentication::None, expected)
}

#[test]
fn a_good_reply_passes_all() {
    assert_eq!(plain(&reply(), &EXPECTED), Ok(()));
    assert_eq!(contents(&reply()), Ok(()));
}

/// RFC 5905 section 8, test 1: the packet's transmit timestamp is the last packet's. Checklist 19.
#[test]
fn test_1_refuses_a_duplicate() {
    let seen = Expected { last_transmit: Some(TIME), ..EXPECTED };
    assert_eq!(plain(&reply(), &seen), Err(Failure::Duplicate));
    let ours = Expected { last_transmit: Some(SENT), ..EXPECTED };
    assert_eq!(plain(&reply(), &ours), Ok(()), "our own transmit timestamp does not count");
}

/// RFC 5905 section 8, test 2: the origin timestamp is not our last transmit timestamp; also after one reply
/// was accepted and nothing is outstanding. Checklist 20, 22.
#[test]
fn test_2_refuses_a_bogus_origin() {
    let header = changed(|header| header.set_origin_timestamp(SENT + NtpDuration::from_bits(1)));
    assert_eq!(plain(&header, &EXPECTED), Err(Failure::Bogus));
    let answered = Expected { origin: None, ..EXPECTED };
    assert_eq!(plain(&reply(), &answered), Err(Failure::Bogus));
}

/// RFC 5905 section 8 and figure 22, test 3: zero origin, receive or transmit timestamp. Checklist 21.
#[test]
fn test_3_refuses_each_zero_timestamp() {
    let zero = NtpTimestamp::UNKNOWN;
    let headers = [
        changed(|header| header.set_origin_timestamp(zero)),
        changed(|header| header.set_receive_timestamp(zero)),
        changed(|header| header.set_transmit_timestamp(zero)),
    ];
    for header in headers {
        assert_eq!(plain(&header, &EXPECTED), Err(Failure::Invalid), "{header:?}");
    }
    let nothing_sent = Expected { origin: None, ..EXPECTED };
    let header = changed(|header| header.set_origin_timestamp(zero));
    assert_eq!(plain(&header, &nothing_sent), Err(Failure::Invalid), "zero answers no request at all");
}

/// RFC 5905 figure 22, test 4: the access list denies the sender. Checklist 23.
#[test]
fn test_4_refuses_whom_the_access_list_denies() {
    let verdict = on_wire(&reply(), Access::Denied, Authentication::None, &EXPECTED);
    assert_eq!(verdict, Err(Failure::AccessDenied));
}

/// RFC 5905 figure 22 and A.5.1, test 5: wrong MAC; and a packet without one where the association has a key.
/// Checklist 23.
#[test]
fn test_5_refuses_what_is_not_authentic() {
    use Authentication::{CryptoNak, Invalid, None as Plain, Valid};
    let (key, other) = (KeyId::new(7).unwrap(), KeyId::new(8).unwrap());
    let refused = Err(Failure::Authentication);
    let table = [
        (None, Plain, Ok(())),
        (None, Valid(key), Ok(())),
        (None, Invalid, refused),
        (None, CryptoNak, refused),
        (Some(key), Valid(key), Ok(())),
        (Some(key), Valid(other), refused),
        (Some(key), Plain, refused),
        (Some(key), Invalid, refused),
        (Some(key), CryptoNak, refused),
    ];
    for (key, authentication, verdict) in table {
        let expected = Expected { key, ..EXPECTED };
        let found = on_wire(&reply(), Access::Allowed, authentication, &expected);
        assert_eq!(found, verdict, "{key:?} {authentication:?}");
    }
}

/// RFC 5905 A.5.1.1, test 6: leap 3, stratum 0 (16 inside) and above 15. Checklist 24.
#[test]
fn test_6_refuses_an_unsynchronised_server() {
    let unsynchronised = changed(|header| {
        *header = Header::new(Leap::Unsynchronised, Version::V4, Mode::Server);
        header.stratum = 2;
    });
    assert_eq!(contents(&unsynchronised), Err(Failure::Unsynchronised));
    for stratum in [0, 16, 17, 255] {
        let found = contents(&changed(|header| header.stratum = stratum));
        assert_eq!(found, Err(Failure::Unsynchronised), "stratum {stratum}");
    }
    for stratum in [1, 2, 15] {
        assert_eq!(contents(&changed(|header| header.stratum = stratum)), Ok(()), "stratum {stratum}");
    }
}

/// RFC 5905 A.5.1.1, test 7: half the root delay and the root dispersion make 16 s. Checklist 25.
#[test]
fn test_7_refuses_a_root_distance_of_16_s() {
    let short = |seconds: u32, fraction: u32| NtpShort::from_bits(seconds << 16 | fraction);
    let table = [
        (short(0, 0), short(15, 0xffff), Ok(())),
        (short(0, 0), short(16, 0), Err(Failure::Header)),
        (short(31, 0xffff), short(0, 0), Ok(())),
        (short(32, 0), short(0, 0), Err(Failure::Header)),
        (short(16, 0), short(8, 0), Err(Failure::Header)),
        (NtpShort::MAX, NtpShort::MAX, Err(Failure::Header)),
    ];
    for (delay, dispersion, verdict) in table {
        let packet = changed(|header| {
            header.set_root_delay(delay);
            header.set_root_dispersion(dispersion);
        });
        assert_eq!(contents(&packet), verdict, "{delay:?} {dispersion:?}");
    }
}

/// RFC 5905 A.5.1.1, test 7: the reference timestamp is after the transmit timestamp; zero is "unknown", and
/// the comparison holds across the era change of 2036. Checklist 25.
#[test]
fn test_7_refuses_a_reference_timestamp_after_the_transmit_timestamp() {
    let at = |reference, transmit| {
        contents(&changed(|header| {
            header.set_reference_timestamp(reference);
            header.set_transmit_timestamp(transmit);
        }))
    };
    assert_eq!(at(TIME, TIME), Ok(()));
    assert_eq!(at(TIME + NtpDuration::from_bits(1), TIME), Err(Failure::Header));
    assert_eq!(at(NtpTimestamp::UNKNOWN, TIME), Ok(()));
    let (last_era, new_era) = (NtpTimestamp::from_bits(u64::MAX - 5), NtpTimestamp::from_bits(1 << 33));
    assert_eq!(at(last_era, new_era), Ok(()));
    assert_eq!(at(new_era, last_era), Err(Failure::Header));
}

/// RFC 5905 section 7.4: the receive and transmit timestamps of a Kiss-o'-Death are undefined. RFC 8633
/// section 5.4: its origin timestamp must be right. And it must be authentic like any packet. Checklist 34, 35.
#[test]
fn a_kiss_needs_only_its_origin_and_its_mac() {
    assert_eq!(plain(&kiss(|_| ()), &EXPECTED), Ok(()));
    let copy = Expected { last_transmit: Some(TIME), ..EXPECTED };
    assert_eq!(plain(&kiss(|header| header.set_transmit_timestamp(TIME)), &copy), Ok(()));
    let zero = kiss(|header| header.set_origin_timestamp(NtpTimestamp::UNKNOWN));
    assert_eq!(plain(&zero, &EXPECTED), Err(Failure::Invalid));
    let forged = kiss(|header| header.set_origin_timestamp(TIME));
    assert_eq!(plain(&forged, &EXPECTED), Err(Failure::Bogus));
    let keyed = Expected { key: KeyId::new(7), ..EXPECTED };
    assert_eq!(plain(&kiss(|_| ()), &keyed), Err(Failure::Authentication));
}

/// RFC 5905 figure 22: the numbers. Checklist 90.
#[test]
fn failures_are_counted_by_the_number_of_the_figure() {
    let mut counts = FailureCounts::default();
    for (index, failure) in Failure::ALL.into_iter().enumerate() {
        assert_eq!(usize::from(failure.number()), index + 1);
        (0..=index).for_each(|_| counts.count(failure));
    }
    let each: Vec<u64> = Failure::ALL.into_iter().map(|failure| counts.of(failure)).collect();
    assert_eq!(each, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(counts.total(), 28);
}
