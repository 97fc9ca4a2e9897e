//! The broadcast client by itself. Whole hosts are in `tests/simulated_network`.

use super::*;
use crate::control::event::{Delivery, InstanceId, SocketName, StampKind};
use crate::wire::{Header, Leap, Mode, ReferenceId, Version};
use std::net::IpAddr;

const PRECISION: Log2Seconds = Log2Seconds(-20);
const CLOCK: NtpTimestamp = NtpTimestamp::from_bits(0xee00_0000_0000_0000);
/// The round trip, and half of it.
const DELAY: NtpDuration = NtpDuration::from_nanoseconds(10_000_000);

const fn seconds(seconds: i64) -> NtpDuration {
    NtpDuration::from_seconds(seconds)
}

const fn microseconds(count: i64) -> NtpDuration {
    NtpDuration::from_nanoseconds(count * 1000)
}

fn at(second: i64) -> Timestamp<Monotonic> {
    Timestamp::ZERO + seconds(1000 + second)
}

/// A broadcast packet that left at this second by a server whose clock agrees with ours, and took half of `delay`.
fn packet(second: i64, delay: NtpDuration) -> Arrival {
    let mut header = Header::new(Leap::None, Version::V4, Mode::Broadcast);
    header.stratum = 1;
    header.set_poll(Log2Seconds(4));
    header.set_precision(Log2Seconds(-24));
    header.reference_id = ReferenceId(*b"GPS\0");
    header.set_transmit_timestamp(CLOCK + seconds(second));
    Arrival {
        socket: SocketName::Service(InstanceId(0)),
        instance: InstanceId(0),
        interface: InterfaceIndex(1),
        remote: "10.99.0.11:123".parse().unwrap(),
        local: IpAddr::from([10, 99, 0, 255]),
        delivery: Delivery::Broadcast,
        receive_timestamp: CLOCK + seconds(second) + delay.half(),
        stamp: StampKind::Kernel,
        access: Access::Allowed,
        authentication: Authentication::None,
        header,
    }
}

fn client(calibration: Calibration) -> BroadcastClient {
    let options = BroadcastClientOptions { calibration, ..BroadcastClientOptions::default() };
    BroadcastClient::new(&options, at(0), &packet(0, DELAY))
}

fn hear(client: &mut BroadcastClient, second: i64, arrival: &Arrival) -> Heard {
    client.receive(at(second), arrival, None, PRECISION, NtpDuration::ZERO, microseconds(10))
}

fn measured(delay: NtpDuration, second: i64) -> Outcome {
    Outcome::Measured(Sample {
        offset: NtpDuration::ZERO,
        delay,
        dispersion: microseconds(10),
        time: at(second),
    })
}

/// Lets a volley run from this second on; this many of its questions are answered. Gives how many were asked.
fn volley(client: &mut BroadcastClient, second: i64, answers: i64) -> i64 {
    let mut asked = 0;
    let mut now = at(second);
    while client.is_asking() {
        assert!(client.next() >= now);
        now = client.next();
        if client.turn(now) == Turn::Ask {
            asked += 1;
            if asked <= answers {
                let answer = packet(second, DELAY);
                client.on_answer(now, &answer, &measured(DELAY + microseconds(10 * asked), second));
            }
        }
    }
    asked
}

/// RFC 5905 section 9.2, NEWBC: at first a volley, which gives the delay; section 3: then it only listens.
/// Checklist 69.
#[test]
fn the_first_packet_starts_a_volley_of_which_the_shortest_delay_counts() {
    let mut client = client(Calibration::Volley);
    assert_eq!(hear(&mut client, 0, &packet(0, DELAY)), Heard::Uncalibrated);
    assert!(client.is_asking());
    assert_eq!(client.next(), at(0), "at once");
    assert_eq!(volley(&mut client, 0, 8), 8);
    assert_eq!(client.delay(), Some(DELAY + microseconds(10)));
    let Heard::Measured(sample) = hear(&mut client, 32, &packet(32, DELAY)) else { panic!("not measured") };
    assert!((sample.offset.seconds() - 5e-6).abs() < 1e-8, "{}", sample.offset);
    assert!(!client.is_asking());
}

/// RFC 5905 section 3: offset is transmit less receive timestamp plus half of the delay; A.5.1.1, BDELAY.
/// Checklist 71.
#[test]
fn a_configured_delay_needs_no_volley() {
    let mut client = client(Calibration::Delay(DELAY));
    let mut arrival = packet(0, DELAY);
    arrival.receive_timestamp = arrival.receive_timestamp - seconds(3);
    let Heard::Measured(sample) = hear(&mut client, 0, &arrival) else { panic!("not measured") };
    assert!((sample.offset.seconds() - 3.0).abs() < 1e-8, "we are 3 s behind: {}", sample.offset);
    assert!(!client.is_asking());
}

/// RFC 5905 section 8, test 1: what is not later than the last packet is refused, whatever it says. Checklist 74.
#[test]
fn copies_and_older_packets_are_refused() {
    let mut client = client(Calibration::Delay(DELAY));
    assert!(matches!(hear(&mut client, 16, &packet(16, DELAY)), Heard::Measured(_)));
    for (now, sent) in [(17, 16), (18, 15), (32, 0)] {
        assert_eq!(hear(&mut client, now, &packet(sent, DELAY)), Heard::Refused(Failure::Duplicate));
    }
    assert!(matches!(hear(&mut client, 32, &packet(32, DELAY)), Heard::Measured(_)));
}

/// Yesterday's packets, played back to a client that has just started: the volley tells them from today's.
#[test]
fn what_is_older_than_the_volley_is_refused() {
    let mut client = client(Calibration::Volley);
    assert_eq!(hear(&mut client, 0, &packet(-86_400, DELAY)), Heard::Uncalibrated);
    volley(&mut client, 0, 8);
    let yesterday = packet(-86_400 + 64, DELAY);
    assert_eq!(hear(&mut client, 64, &yesterday), Heard::Refused(Failure::Duplicate));
    assert!(matches!(hear(&mut client, 65, &packet(65, DELAY)), Heard::Measured(_)));
}

/// RFC 5905 figure 22, tests 3 to 7, as far as they apply to a packet that nobody asked for.
#[test]
fn each_test_refuses_what_it_should() {
    let changed = |change: fn(&mut Arrival)| {
        let mut arrival = packet(16, DELAY);
        change(&mut arrival);
        hear(&mut client(Calibration::Delay(DELAY)), 16, &arrival)
    };
    assert!(matches!(changed(|_| ()), Heard::Measured(_)));
    let zero = changed(|arrival| arrival.header.set_transmit_timestamp(NtpTimestamp::UNKNOWN));
    assert_eq!(zero, Heard::Refused(Failure::Invalid));
    assert_eq!(changed(|arrival| arrival.access = Access::Denied), Heard::Refused(Failure::AccessDenied));
    for authentication in [Authentication::Invalid, Authentication::CryptoNak] {
        let mut arrival = packet(16, DELAY);
        arrival.authentication = authentication;
        let heard = hear(&mut client(Calibration::Delay(DELAY)), 16, &arrival);
        assert_eq!(heard, Heard::Refused(Failure::Authentication), "{authentication:?}");
    }
    assert_eq!(changed(|arrival| arrival.header.stratum = 16), Heard::Timeless(Failure::Unsynchronised));
    let late = changed(|arrival| {
        let transmit = arrival.header.transmit_timestamp();
        arrival.header.set_reference_timestamp(transmit + NtpDuration::from_seconds(1));
    });
    assert_eq!(late, Heard::Timeless(Failure::Header));
}

/// RFC 5905 A.5.1, NEWBC, and RFC 8633 section 5.5: a key, unless the operator says that none is needed.
/// Checklist 72.
#[test]
fn unsigned_packets_count_only_where_that_is_allowed() {
    use Authentication::{CryptoNak, Invalid, None as Plain, Valid};
    let (key, other) = (KeyId::new(7).unwrap(), KeyId::new(8).unwrap());
    let table = [
        (Plain, None, Unsigned::Refused, false),
        (Plain, None, Unsigned::Allowed, true),
        (Plain, Some(key), Unsigned::Allowed, false),
        (Valid(key), None, Unsigned::Refused, true),
        (Valid(key), Some(key), Unsigned::Refused, true),
        (Valid(other), Some(key), Unsigned::Allowed, false),
        (Invalid, None, Unsigned::Allowed, false),
        (CryptoNak, None, Unsigned::Allowed, false),
        (CryptoNak, Some(key), Unsigned::Refused, false),
    ];
    for (authentication, key, unsigned, expected) in table {
        let found = signed(authentication, key, unsigned);
        assert_eq!(found, expected, "{authentication:?} {key:?} {unsigned:?}");
    }
}

/// One packet that comes late is held back and forgotten; the second in a row has the delay measured again.
#[test]
fn a_change_of_the_path_starts_another_volley() {
    let mut client = client(Calibration::Volley);
    hear(&mut client, 0, &packet(0, DELAY));
    volley(&mut client, 0, 8);
    assert!(matches!(hear(&mut client, 96, &packet(96, DELAY)), Heard::Measured(_)));
    let longer = DELAY + microseconds(2000);
    assert_eq!(hear(&mut client, 112, &packet(112, longer)), Heard::Uncalibrated);
    assert_eq!(hear(&mut client, 113, &packet(112, longer)), Heard::Refused(Failure::Duplicate));
    assert!(!client.is_asking());
    assert!(
        matches!(hear(&mut client, 128, &packet(128, DELAY)), Heard::Measured(_)),
        "a spike is no change"
    );
    for second in [144, 160] {
        assert_eq!(hear(&mut client, second, &packet(second, longer)), Heard::Uncalibrated);
    }
    assert!(client.is_asking());
    volley(&mut client, 160, 8);
    assert!(matches!(hear(&mut client, 192, &packet(192, longer)), Heard::Measured(_)));
}

#[test]
fn another_interface_is_another_path() {
    let mut client = client(Calibration::Volley);
    hear(&mut client, 0, &packet(0, DELAY));
    volley(&mut client, 0, 8);
    assert!(matches!(hear(&mut client, 96, &packet(96, DELAY)), Heard::Measured(_)));
    for second in [112, 128] {
        let mut arrival = packet(second, DELAY);
        arrival.interface = InterfaceIndex(2);
        assert_eq!(hear(&mut client, second, &arrival), Heard::Uncalibrated);
    }
    assert!(client.is_asking());
}

/// With a configured delay nobody can tell whether the path or the clock is another: what stays is believed.
#[test]
fn with_a_configured_delay_a_lasting_shift_is_believed() {
    let mut client = client(Calibration::Delay(DELAY));
    let longer = DELAY + microseconds(2000);
    assert!(matches!(hear(&mut client, 16, &packet(16, DELAY)), Heard::Measured(_)));
    assert_eq!(hear(&mut client, 32, &packet(32, longer)), Heard::Uncalibrated);
    assert!(matches!(hear(&mut client, 48, &packet(48, longer)), Heard::Measured(_)));
    assert!(!client.is_asking());
}

/// A server that does not answer is asked again, but less and less often; a forger gains nothing by it.
#[test]
fn volleys_that_are_not_answered_become_rare() {
    let mut client = client(Calibration::Volley);
    let mut volleys = Vec::new();
    for second in 0..36_000 {
        if second % 2 == 0 {
            hear(&mut client, second, &packet(second, DELAY));
            if client.is_asking() {
                assert_eq!(volley(&mut client, second, 2), 8, "two answers are too few");
                volleys.push(second);
            }
        }
    }
    assert!((8..=14).contains(&volleys.len()), "{volleys:?}");
    assert!(volleys[1] - volleys[0] >= 128, "{volleys:?}");
    assert_eq!(client.delay(), None);
}

/// RFC 5905 section 7.4: whoever says RATE is not asked any further.
#[test]
fn a_kiss_ends_the_volley() {
    let mut client = client(Calibration::Volley);
    hear(&mut client, 0, &packet(0, DELAY));
    assert_eq!(client.turn(at(0)), Turn::Ask);
    client.on_answer(at(0), &packet(0, DELAY), &Outcome::Kissed(crate::control::Kiss::Rate));
    assert!(!client.is_asking());
    assert_eq!(hear(&mut client, 16, &packet(16, DELAY)), Heard::Uncalibrated);
    assert!(!client.is_asking(), "not that soon");
}

/// A step of our clock voids the comparison, not the delay.
#[test]
fn a_step_does_not_look_like_another_path() {
    let mut client = client(Calibration::Volley);
    hear(&mut client, 0, &packet(0, DELAY));
    volley(&mut client, 0, 8);
    assert!(matches!(hear(&mut client, 96, &packet(96, DELAY)), Heard::Measured(_)));
    client.forget(at(100));
    let mut stepped = packet(112, DELAY);
    stepped.receive_timestamp = stepped.receive_timestamp + seconds(5);
    assert!(matches!(hear(&mut client, 112, &stepped), Heard::Measured(_)));
}

#[test]
fn silence_is_noticed_an_interval_and_a_half_after_the_last_packet() {
    let mut client = client(Calibration::Delay(DELAY));
    hear(&mut client, 0, &packet(0, DELAY));
    assert_eq!(client.interval(), Log2Seconds(4));
    assert_eq!(client.next(), at(24));
    assert_eq!(client.turn(at(24)), Turn::Missed);
    assert_eq!(client.next(), at(40), "and then at each interval");
    assert_eq!(announced_interval(Log2Seconds(-6)), Log2Seconds(3));
    assert_eq!(announced_interval(Log2Seconds(127)), Log2Seconds(17));
}
