//! The search by itself, and who answers. Whole hosts are in `tests/simulated_network`.

use super::*;
use crate::control::event::{Delivery, InstanceId, InterfaceIndex, SocketName, StampKind};
use crate::time::NtpDuration;
use crate::wire::ReferenceId;
use std::net::IpAddr;

const CLOCK: NtpTimestamp = NtpTimestamp::from_bits(0xee00_0000_0000_0000);
const OPTIONS: ManycastOptions = ManycastOptions {
    enough: 3,
    most: 5,
    hop_limit_max: 4,
    timeout: Log2Seconds(10),
    unsigned: Unsigned::Refused,
    interface: InterfaceIndex(0),
};

/// A search with a question each 64 s.
fn search() -> Search {
    Search::new(OPTIONS, Log2Seconds(6), Timestamp::ZERO)
}

/// The next turn: after how many seconds it comes, what is done, with which TTL.
fn turn(search: &mut Search, found: usize) -> (i64, Step, u8) {
    let now = search.next();
    let step = search.turn(now, found);
    ((search.next() - now).to_nanoseconds() / 1_000_000_000, step, search.hop_limit())
}

/// RFC 5905 sections 3.1 and 13.2: TTL 1, 2, ... to the maximum, silence for the timeout, all dissolved, and again.
/// Checklist 75.
#[test]
fn the_search_widens_rests_and_starts_over() {
    let mut search = search();
    for hop_limit in 1..=4 {
        assert_eq!(turn(&mut search, 2), (64, Step::Ask, hop_limit));
    }
    assert_eq!(turn(&mut search, 2), (1024, Step::Wait, 4), "silent for the timeout");
    assert_eq!(turn(&mut search, 2), (64, Step::StartOver, 1));
    assert_eq!(turn(&mut search, 0), (64, Step::Ask, 2));
}

/// RFC 5905 section 3.1: with enough servers one packet for each timeout, as far as it took to find them.
#[test]
fn enough_servers_are_kept_with_one_question_for_each_timeout() {
    let mut search = search();
    assert_eq!(turn(&mut search, 0), (64, Step::Ask, 1));
    assert_eq!(turn(&mut search, 1), (64, Step::Ask, 2));
    assert_eq!(turn(&mut search, 3), (1024, Step::Wait, 2));
    assert_eq!(turn(&mut search, 4), (1024, Step::Ask, 2));
    assert_eq!(turn(&mut search, 3), (1024, Step::Ask, 2));
    // One is lost: the search begins anew, without dissolving the others.
    let now = search.next() + NtpDuration::from_seconds(-500);
    search.on_loss(now, 3);
    assert_eq!(search.next(), now + NtpDuration::from_seconds(500), "still enough");
    search.on_loss(now, 2);
    assert_eq!(search.next(), now + NtpDuration::from_seconds(64));
    assert_eq!(turn(&mut search, 2), (64, Step::Ask, 1));
    assert_eq!(turn(&mut search, 2), (64, Step::Ask, 2));
}

fn arrival(header: Header, authentication: Authentication) -> Arrival {
    Arrival {
        socket: SocketName::Service(InstanceId(0)),
        instance: InstanceId(0),
        interface: InterfaceIndex(1),
        remote: "10.99.0.11:123".parse().unwrap(),
        local: IpAddr::from([224, 0, 1, 1]),
        delivery: Delivery::Multicast,
        receive_timestamp: CLOCK,
        stamp: StampKind::Kernel,
        access: Access::Allowed,
        authentication,
        header,
    }
}

fn reply(origin: NtpTimestamp) -> Header {
    let mut header = Header::new(Leap::None, Version::V4, Mode::Server);
    header.stratum = 1;
    header.set_origin_timestamp(origin);
    header.set_receive_timestamp(CLOCK);
    header.set_transmit_timestamp(CLOCK);
    header
}

/// RFC 5905 section 9.2 (MANY): the origin is that of the last question, and of no other, nor of one that was given up.
/// Checklist 77.
#[test]
fn an_answer_echoes_the_last_question() {
    let mut search = search();
    let mut chance = Chance::new([3; 32]);
    assert!(!search.is_answered_by(&reply(NtpTimestamp::UNKNOWN)), "nothing was asked");
    let first = search.question(2, &mut chance);
    assert_eq!((first.mode(), first.stratum), (Mode::Client, 2));
    assert!(search.is_answered_by(&reply(first.transmit_timestamp())));
    assert!(search.is_answered_by(&reply(first.transmit_timestamp())), "all of the group may answer");
    let second = search.question(2, &mut chance);
    assert!(!search.is_answered_by(&reply(first.transmit_timestamp())));
    assert!(search.is_answered_by(&reply(second.transmit_timestamp())));
    for _ in 0..5 {
        turn(&mut search, 0);
    }
    assert!(!search.is_answered_by(&reply(second.transmit_timestamp())), "the search rests");
}

/// RFC 5905 figure 22, tests 3 to 7, for answers.
#[test]
fn a_bad_answer_is_refused_by_its_number() {
    let key = KeyId::new(7).unwrap();
    let check = |change: fn(&mut Arrival)| {
        let mut arrival = arrival(reply(CLOCK), Authentication::Valid(KeyId::new(7).unwrap()));
        change(&mut arrival);
        search().check(&arrival, Some(key))
    };
    assert_eq!(check(|_| ()), Ok(()));
    assert_eq!(check(|arrival| arrival.access = Access::Denied), Err(Failure::AccessDenied));
    assert_eq!(
        check(|arrival| arrival.header.set_transmit_timestamp(NtpTimestamp::UNKNOWN)),
        Err(Failure::Invalid)
    );
    let nak = check(|arrival| arrival.authentication = Authentication::CryptoNak);
    assert_eq!(nak, Err(Failure::Authentication));
    let plain = check(|arrival| arrival.authentication = Authentication::None);
    assert_eq!(plain, Err(Failure::Authentication));
    assert_eq!(check(|arrival| arrival.header.stratum = 0), Err(Failure::Unsynchronised));
    assert_eq!(check(|arrival| arrival.header.stratum = 16), Err(Failure::Unsynchronised));
}

fn snapshot(stratum: u8) -> SystemSnapshot {
    SystemSnapshot {
        leap: Leap::None,
        stratum,
        reference_id: ReferenceId([10, 99, 0, 9]),
        reference_timestamp: CLOCK,
        ..SystemSnapshot::unsynchronised(Log2Seconds(-20))
    }
}

fn request(stratum: u8) -> Header {
    let mut header = Header::new(Leap::None, Version::new(3).unwrap(), Mode::Client);
    header.stratum = stratum;
    header.set_poll(Log2Seconds(6));
    header.set_transmit_timestamp(NtpTimestamp::from_bits(77));
    header
}

/// RFC 5905 A.5.1 (FXMIT): only synchronised, and of a stratum not above the client's; 0 on the wire is 16.
/// Checklist 76.
#[test]
fn a_question_is_answered_only_by_a_suitable_stratum() {
    let answers = |ours: u8, theirs: u8| {
        let arrival = arrival(request(theirs), Authentication::None);
        answer(&arrival, None, Unsigned::Allowed, &snapshot(ours)).is_some()
    };
    let table = [(1, 0, true), (15, 0, true), (2, 3, true), (3, 3, true), (4, 3, false), (2, 16, true)];
    for (ours, theirs, expected) in table {
        assert_eq!(answers(ours, theirs), expected, "ours {ours}, theirs {theirs}");
    }
    let unsynchronised = SystemSnapshot::unsynchronised(Log2Seconds(-20));
    let arrival = arrival(request(0), Authentication::None);
    assert_eq!(answer(&arrival, None, Unsigned::Allowed, &unsynchronised), None);
}

/// RFC 5905 section 9.2: signed as asked; to what is not signed as it must be there is no answer, no crypto-NAK either.
/// Checklist 76, 78.
#[test]
fn a_question_is_answered_in_kind_or_not_at_all() {
    use Authentication::{CryptoNak, Invalid, None as Plain, Valid};
    let (key, other) = (KeyId::new(7).unwrap(), KeyId::new(8).unwrap());
    let table = [
        (Plain, None, Unsigned::Allowed, Some(None)),
        (Plain, None, Unsigned::Refused, None),
        (Valid(key), None, Unsigned::Refused, Some(Some(key))),
        (Valid(key), Some(key), Unsigned::Refused, Some(Some(key))),
        (Valid(other), Some(key), Unsigned::Refused, None),
        (Invalid, None, Unsigned::Allowed, None),
        (CryptoNak, None, Unsigned::Allowed, None),
    ];
    for (authentication, key, unsigned, expected) in table {
        let found = answer(&arrival(request(0), authentication), key, unsigned, &snapshot(2));
        assert_eq!(found.map(|(_, key)| key), expected, "{authentication:?} {key:?} {unsigned:?}");
    }
    let (header, _) = answer(&arrival(request(0), Plain), None, Unsigned::Allowed, &snapshot(2)).unwrap();
    assert_eq!((header.mode(), header.version_number(), header.stratum), (Mode::Server, 3, 2));
    assert_eq!(header.origin_timestamp(), NtpTimestamp::from_bits(77));
    assert_eq!(header.receive_timestamp(), CLOCK);
    assert_eq!(header.poll(), Log2Seconds(6));
}
