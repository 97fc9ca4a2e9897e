//! What a peering refuses, and that nothing of it is kept.

use super::*;

/// RFC 5905 section 8, test 1: a copy, before and after the peering is proven. It changes nothing. Checklist 19.
#[test]
fn test_1_refuses_duplicates() {
    let (mut one, mut other) = (End::active(0), End::active(5));
    let first = one.send(0);
    assert_eq!(other.receive(10, first), Outcome::Refused(Failure::Invalid));
    let before = other.echo();
    assert_eq!(other.receive(11, first), Outcome::Refused(Failure::Duplicate));
    assert_eq!(other.echo(), before);
    let second = other.send(20);
    assert!(matches!(one.receive(30, second), Outcome::Measured(_)));
    let before = one.echo();
    assert_eq!(one.receive(31, second), Outcome::Refused(Failure::Duplicate));
    assert_eq!(one.echo(), before);
}

/// RFC 5905 section 8, test 2, but not its "the state variables are updated": CVE-2015-1799. Checklist 20.
#[test]
fn test_2_refuses_foreign_origins_and_they_do_not_disturb_a_peering() {
    let (one, mut other) = peering();
    let before = other.echo();
    for (origin, transmit) in [(at(12), at(70_000)), (at(64_000), at(70_001)), (at(1 << 40), at(-1))] {
        let forged = changed(Header::new(Leap::None, Version::V4, Mode::SymmetricActive), |header| {
            header.stratum = 1;
            header.set_origin_timestamp(origin);
            header.set_receive_timestamp(at(70_000));
            header.set_transmit_timestamp(transmit);
        });
        assert_eq!(other.receive(70_010, forged), Outcome::Refused(Failure::Bogus), "{origin:?}");
        assert_eq!(other.echo(), before);
    }
    let mut one = one;
    let next = other.send(80_000);
    assert!(matches!(one.receive(80_010, next), Outcome::Measured(_)), "the peering goes on");
}

/// RFC 5905 figure 22, test 3: zero origin, receive or transmit timestamps give no sample; and once the peering is
/// proven they change nothing (CVE-2015-8138 and its like). Checklist 21.
#[test]
fn test_3_refuses_zero_timestamps_and_they_do_not_disturb_a_peering() {
    let (mut one, mut other) = peering();
    let answer = other.send(70_000);
    let zero = NtpTimestamp::UNKNOWN;
    let before = one.echo();
    let faulty = [
        changed(answer, |header| header.set_origin_timestamp(zero)),
        changed(answer, |header| header.set_receive_timestamp(zero)),
        changed(answer, |header| header.set_transmit_timestamp(zero)),
    ];
    for header in faulty {
        assert_eq!(one.receive(70_010, header), Outcome::Refused(Failure::Invalid), "{header:?}");
        assert_eq!(one.echo(), before);
    }
    assert!(matches!(one.receive(70_010, answer), Outcome::Measured(_)));
}

/// RFC 5905 figure 22, tests 4 and 5: who is denied, or is not who he claims to be, changes nothing, not even before
/// anything is proven. A crypto-NAK is a wrong MAC (CVE-2016-1547). Checklist 23.
#[test]
fn tests_4_and_5_come_before_any_change_of_state() {
    let (key, stranger) = (KeyId::new(7).unwrap(), KeyId::new(8).unwrap());
    let table = [
        (None, Authentication::Invalid),
        (None, Authentication::CryptoNak),
        (Some(key), Authentication::None),
        (Some(key), Authentication::Invalid),
        (Some(key), Authentication::CryptoNak),
        (Some(key), Authentication::Valid(stranger)),
    ];
    for begun in [false, true] {
        for (key, authentication) in table {
            let (mut one, mut other) = if begun { peering() } else { (End::active(0), End::active(5)) };
            let packet = one.send(70_000);
            let before = other.symmetric.heard;
            let mut arrival = Arrival { authentication, ..other.arrival(70_010, packet) };
            let outcome =
                other.symmetric.receive(Timestamp::ZERO, &arrival, key, PRECISION, NtpDuration::ZERO);
            assert_eq!(outcome, Outcome::Refused(Failure::Authentication), "{authentication:?}");
            arrival.authentication = Authentication::Valid(KeyId::new(7).unwrap());
            arrival.access = Access::Denied;
            let outcome =
                other.symmetric.receive(Timestamp::ZERO, &arrival, key, PRECISION, NtpDuration::ZERO);
            assert_eq!(outcome, Outcome::Refused(Failure::AccessDenied));
            assert_eq!(other.symmetric.heard, before, "{key:?} {authentication:?}");
        }
    }
}

/// RFC 5905 section 8: "the xmt state variable is set to zero immediately after a successful bogus check".
/// Checklist 22.
#[test]
fn a_packet_of_ours_is_answered_once() {
    let (mut one, mut other) = peering();
    let answer = other.send(70_000);
    assert!(matches!(one.receive(70_010, answer), Outcome::Measured(_)));
    let again = changed(answer, |header| header.set_transmit_timestamp(at(70_100)));
    assert_eq!(one.receive(70_110, again), Outcome::Refused(Failure::Bogus));
}

/// RFC 5905 figure 22, "can happen in symmetric modes if the poll intervals are uneven": the newest packet is what must
/// be echoed, and an older one is a replay.
#[test]
fn the_second_packet_of_a_faster_peer_is_echoed_but_not_an_older_one() {
    let (mut one, mut other) = peering();
    let (second, third) = (one.send(65_000), one.send(66_000));
    assert_eq!(other.receive(66_010, third), Outcome::Refused(Failure::Bogus), "no sample");
    assert_eq!(other.echo(), Some((third.transmit_timestamp(), at(66_010) + milliseconds(5))));
    assert_eq!(other.receive(66_020, second), Outcome::Refused(Failure::Bogus), "overtaken, or replayed");
    assert_eq!(other.echo().map(|echo| echo.0), Some(third.transmit_timestamp()));
    let answer = other.send(67_000);
    let Outcome::Measured(sample) = one.receive(67_010, answer) else { panic!("no sample") };
    assert!(near(sample.offset, 5.0) && near(sample.delay, 20.0), "{sample:?}");
}

/// Packets that overtake each other: an answer that comes after a newer one is none any more.
#[test]
fn an_overtaken_answer_is_refused() {
    let (mut one, mut other) = peering();
    let early = other.send(70_000);
    let asked = one.send(71_000);
    assert_eq!(other.receive(71_010, asked), Outcome::Refused(Failure::Bogus));
    let late = other.send(72_000);
    assert!(matches!(one.receive(72_010, late), Outcome::Measured(_)));
    let before = one.echo();
    assert_eq!(one.receive(72_020, early), Outcome::Refused(Failure::Bogus));
    assert_eq!(one.echo(), before);
}

/// While nothing is proven, a replayed packet does not displace a newer one that waits for its echo.
#[test]
fn before_anything_is_proven_the_newest_packet_waits_for_its_echo() {
    let (mut one, mut other) = (End::active(0), End::active(5));
    let (old, new) = (one.send(0), one.send(1000));
    let _ = other.receive(1010, new);
    let _ = other.receive(1020, old);
    assert_eq!(other.echo().map(|echo| echo.0), Some(new.transmit_timestamp()));
    let _echo = other.send(1030);
    let _ = other.receive(1040, old);
    assert_eq!(
        other.echo().map(|echo| echo.0),
        Some(old.transmit_timestamp()),
        "the echo was in vain so far"
    );
}

/// RFC 5905 section 7.4, RFC 8633 section 5.4: a kiss needs a valid origin timestamp, and nothing else of it is used.
/// Checklist 34, 35.
#[test]
fn a_kiss_is_believed_only_as_an_answer() {
    let (mut one, mut other) = peering();
    let origin = other.send(70_000).origin_timestamp();
    let before = one.echo();
    let kiss = |origin| {
        changed(Header::new(Leap::Unsynchronised, Version::V4, Mode::SymmetricPassive), |header| {
            header.reference_id = KissCode::Deny.reference_id();
            header.set_origin_timestamp(origin);
        })
    };
    for origin in [NtpTimestamp::UNKNOWN, at(1)] {
        assert!(matches!(one.receive(70_010, kiss(origin)), Outcome::Refused(_)));
    }
    assert_eq!(one.receive(70_010, kiss(origin)), Outcome::Kissed(Kiss::Deny));
    assert_eq!(one.echo(), before);
}

/// A packet that we have sent, but whose time of departure is not known, is nothing that can be answered.
#[test]
fn an_answer_to_a_packet_that_was_not_reported_sent_proves_nothing() {
    let mut one = End::active(0);
    let ours = Ours { snapshot: snapshot(), clock: at(0), slewed: NtpDuration::ZERO, poll: Log2Seconds(6) };
    let _ = one.symmetric.message(9, &ours);
    let answer = changed(Header::new(Leap::None, Version::V4, Mode::SymmetricPassive), |header| {
        header.set_origin_timestamp(at(0));
        header.set_receive_timestamp(at(5));
        header.set_transmit_timestamp(at(6));
    });
    assert_eq!(one.receive(10, answer), Outcome::Refused(Failure::Bogus));
    assert!(!one.symmetric.on_send_failed(9) && one.symmetric.sent.is_empty());
}
