//! The reply, field by field, and every refusal.

use super::*;
use crate::serve::access::Action;
use crate::serve::testing::{Setup, client_request};
use crate::time::{NtpShort, Ppm};
use crate::wire::ReferenceId;
use proptest::prelude::*;

const RECEIVED: NtpTimestamp = NtpTimestamp::from_bits(0xeb00_0000_8000_0000);

fn snapshot() -> SystemSnapshot {
    SystemSnapshot {
        leap: Leap::Insert,
        stratum: 2,
        reference_id: ReferenceId([10, 99, 0, 7]),
        reference_instance: None,
        reference_id_elsewhere: ReferenceId::NOBODY,
        precision: Log2Seconds(-23),
        root_delay: NtpDuration::from_nanoseconds(3_000_000),
        root_dispersion: NtpDuration::from_nanoseconds(1_000_000),
        dispersion_rate: Ppm::FREQUENCY_TOLERANCE,
        reference_timestamp: RECEIVED - NtpDuration::from_seconds(100),
    }
}

fn arrival(source: &str) -> Arrival {
    Arrival {
        source: source.parse().unwrap(),
        source_port: 40_000,
        receive_timestamp: RECEIVED,
        now: Timestamp::from_nanoseconds(1_000_000_000),
    }
}

fn ask(responder: &mut Responder, payload: &mut [u8], source: &str) -> Result<Prepared, Refusal> {
    responder.respond(payload, &arrival(source), &snapshot())
}

fn header(payload: &[u8]) -> Header {
    *Packet::parse(&payload[..HEADER_LENGTH]).unwrap().header
}

/// Checklist 2, 8.
#[test]
fn every_field_of_a_reply_is_right_in_every_version() {
    let mut responder = Setup::default().responder();
    for version in 1..=4 {
        let mut payload = client_request(version, &[]);
        payload[2] = 9;
        let prepared = ask(&mut responder, &mut payload, "10.99.0.2").unwrap();
        assert_eq!((prepared.length(), prepared.kiss), (48, None));
        let left = RECEIVED + NtpDuration::from_nanoseconds(20_000);
        assert_eq!(prepared.seal(left, &mut payload, &KeyTable::empty()), left);
        let reply = header(&payload);
        assert_eq!(reply.leap(), Leap::Insert);
        assert_eq!(reply.version_number(), version);
        assert_eq!(reply.mode(), Mode::Server);
        assert_eq!(reply.stratum, 2);
        assert_eq!(reply.poll(), Log2Seconds(9), "the request's");
        assert_eq!(reply.precision(), Log2Seconds(-23));
        assert_eq!(reply.root_delay(), NtpShort::from_bits(197), "3 ms, rounded up");
        // 1 ms and 100 s at 15 ppm make 2.5 ms: 163.84 units of 2^-16 s.
        assert_eq!(reply.root_dispersion(), NtpShort::from_bits(164));
        assert_eq!(reply.reference_id, ReferenceId([10, 99, 0, 7]));
        assert_eq!(reply.reference_timestamp(), snapshot().reference_timestamp);
        assert_eq!(
            reply.origin_timestamp().to_bits(),
            0x1122_3344_5566_7788,
            "the request's transmit timestamp"
        );
        assert_eq!(reply.receive_timestamp(), RECEIVED);
        assert_eq!(reply.transmit_timestamp(), left);
    }
}

#[test]
fn transmit_is_always_later_than_receive() {
    let mut responder = Setup::default().responder();
    for late in [0, -1, -5_000_000_000] {
        let mut payload = client_request(4, &[]);
        let prepared = ask(&mut responder, &mut payload, "10.99.0.2").unwrap();
        let written =
            prepared.seal(RECEIVED + NtpDuration::from_nanoseconds(late), &mut payload, &KeyTable::empty());
        assert_eq!(written - RECEIVED, NtpDuration::from_bits(1));
        assert_eq!(header(&payload).transmit_timestamp(), written);
    }
}

/// Checklist 4.
#[test]
fn unsynchronised_is_said_as_leap_3_and_stratum_0() {
    let mut payload = client_request(4, &[]);
    let snapshot = SystemSnapshot::unsynchronised(Log2Seconds(-20));
    let prepared =
        Setup::default().responder().respond(&mut payload, &arrival("10.99.0.2"), &snapshot).unwrap();
    let _ = prepared.seal(RECEIVED, &mut payload, &KeyTable::empty());
    let reply = header(&payload);
    assert_eq!((reply.leap(), reply.stratum), (Leap::Unsynchronised, 0));
    assert_eq!(reply.reference_id, ReferenceId([0; 4]), "no kiss code, no address");
    assert!(!reply.receive_timestamp().is_unknown() && !reply.transmit_timestamp().is_unknown());
}

/// Checklist 79.
#[test]
fn unknown_extension_fields_are_tolerated_and_not_echoed() {
    let field = [&[0x12, 0x34, 0, 28][..], &[0xaa; 24]].concat();
    let mut payload = client_request(4, &field);
    let prepared = ask(&mut Setup::default().responder(), &mut payload, "10.99.0.2").unwrap();
    assert_eq!(prepared.length(), 48, "nothing behind the header is sent");
}

/// Checklist 17.
#[test]
fn refusals_have_their_reason_and_leave_the_bytes_alone() {
    let request = client_request(4, &[]);
    let with = |at: usize, value: u8| {
        let mut bytes = request.clone();
        bytes[at] = value;
        bytes
    };
    let table = [
        ("empty", Vec::new(), Refusal::Malformed),
        ("47 octets", request[..47].to_vec(), Refusal::Malformed),
        ("version 0", with(0, 0x03), Refusal::Version),
        ("version 5", with(0, 0x2b), Refusal::Version),
        ("mode 0", with(0, 0x20), Refusal::Mode),
        ("mode 1", with(0, 0x21), Refusal::Mode),
        ("mode 2", with(0, 0x22), Refusal::Mode),
        ("mode 4, a reply", with(0, 0x24), Refusal::Mode),
        ("mode 5", with(0, 0x25), Refusal::Mode),
        ("mode 6", with(0, 0x26), Refusal::Mode),
        ("mode 7", with(0, 0x27), Refusal::Mode),
        ("a crypto-NAK", client_request(4, &[0; 4]), Refusal::Authentication),
        ("a trailer of 8", client_request(4, &[0; 8]), Refusal::Malformed),
        ("a broken field", client_request(4, &[0; 28]), Refusal::Malformed),
    ];
    let mut responder = Setup::default().responder();
    for (name, bytes, refusal) in table {
        let mut payload = bytes.clone();
        assert_eq!(ask(&mut responder, &mut payload, "10.99.0.2").unwrap_err(), refusal, "{name}");
        assert_eq!(payload, bytes, "{name}");
    }
    let mut payload = request;
    let from_port_0 = Arrival { source_port: 0, ..arrival("10.99.0.2") };
    let refused = responder.respond(&mut payload, &from_port_0, &snapshot()).unwrap_err();
    assert_eq!(refused, Refusal::Source);
}

fn rules() -> Setup {
    Setup {
        rules: vec![
            ("10.99.1.0/24".parse().unwrap(), Action::Deny),
            ("10.99.1.5/32".parse().unwrap(), Action::Allow),
            ("10.99.2.0/24".parse().unwrap(), Action::Restrict),
            ("10.99.3.0/24".parse().unwrap(), Action::Drop),
        ],
        ..Setup::default()
    }
}

#[test]
fn access_list_is_obeyed_in_silence_without_kod() {
    let mut responder = rules().responder();
    for (source, refusal) in [
        ("10.99.1.1", Some(Refusal::Denied)),
        ("::ffff:10.99.1.1", Some(Refusal::Denied)),
        ("10.99.1.5", None),
        ("10.99.2.1", Some(Refusal::Restricted)),
        ("10.99.3.1", Some(Refusal::Dropped)),
        ("10.99.4.1", None),
        ("fd99::1", None),
    ] {
        let outcome = ask(&mut responder, &mut client_request(4, &[]), source);
        assert_eq!(outcome.err(), refusal, "{source}");
    }
}

#[test]
fn kod_tells_why_but_not_to_the_dropped() {
    let mut responder = Setup { kod: true, ..rules() }.responder();
    for (source, code) in [("10.99.1.1", "DENY"), ("10.99.2.1", "RSTR")] {
        let mut payload = client_request(4, &[]);
        let prepared = ask(&mut responder, &mut payload, source).unwrap();
        let _ = prepared.seal(RECEIVED, &mut payload, &KeyTable::empty());
        let reply = header(&payload);
        assert_eq!(reply.reference_id.to_string(), code);
        assert_eq!((reply.leap(), reply.stratum, reply.mode()), (Leap::Unsynchronised, 0, Mode::Server));
        assert_eq!(reply.origin_timestamp().to_bits(), 0x1122_3344_5566_7788);
    }
    assert_eq!(ask(&mut responder, &mut client_request(4, &[]), "10.99.3.1").unwrap_err(), Refusal::Dropped);
}

/// Checklist 37.
#[test]
fn kisses_are_themselves_limited_per_client() {
    let mut responder = Setup { kod: true, ..rules() }.responder();
    let kisses = |responder: &mut Responder, source| {
        (0..100).filter(|_| ask(responder, &mut client_request(4, &[]), source).is_ok()).count()
    };
    let many = kisses(&mut responder, "10.99.1.1");
    assert!((1..=10).contains(&many), "{many} of 100");
    assert!(kisses(&mut responder, "10.99.1.2") >= 1, "another client is still told");
}

/// Checklist 37.
#[test]
fn the_rate_limit_answers_the_burst_and_then_one_in_four() {
    let mut responder = Setup { limit_interval_seconds: Some(8), ..Setup::default() }.responder();
    let mut answered = 0;
    let mut first_refusal = None;
    for index in 0..1016 {
        match ask(&mut responder, &mut client_request(4, &[]), "10.99.0.2") {
            Ok(_) => answered += 1,
            Err(refusal) => {
                assert_eq!(refusal, Refusal::RateLimited);
                first_refusal = first_refusal.or(Some(index));
            }
        }
    }
    assert!(first_refusal.unwrap() >= 16, "the burst is served");
    assert!((16 + 180..16 + 320).contains(&answered), "{answered} of 1016: 16 and about 250");
    let other = ask(&mut responder, &mut client_request(4, &[]), "10.99.0.3");
    assert!(other.is_ok(), "others are not touched: {other:?}");
}

#[test]
fn rate_kiss_asks_for_a_poll_that_the_limit_bears() {
    let setup = Setup { limit_interval_seconds: Some(100), leak: 0, kod: true, ..Setup::default() };
    let mut responder = setup.responder();
    let mut kiss = None;
    for _ in 0..40 {
        let mut payload = client_request(4, &[]);
        if let Ok(Prepared { kiss: Some((code, refusal)), .. }) =
            ask(&mut responder, &mut payload, "10.99.0.2")
        {
            assert_eq!((code, refusal), (KissCode::Rate, Refusal::RateLimited));
            kiss = Some(header(&payload));
        }
    }
    let kiss = kiss.expect("at least one RATE");
    assert_eq!(
        (kiss.poll(), kiss.reference_id.to_string().as_str()),
        (Log2Seconds(7), "RATE"),
        "128 s, not the 64 s asked with"
    );
}

proptest! {
    #[test]
    fn any_bytes_get_a_reply_no_longer_than_themselves_or_a_reason(
        mut payload in proptest::collection::vec(any::<u8>(), 0..200),
        shape in prop_oneof![Just(None), (1_u8..=4).prop_map(|version| Some(version << 3 | 3))],
        source in any::<[u8; 16]>(),
        stamp in any::<u64>(),
    ) {
        if let (Some(first), Some(octet)) = (shape, payload.first_mut()) {
            *octet = first;
        }
        let setup = Setup { kod: true, limit_interval_seconds: Some(1), ..rules() };
        let before = payload.clone();
        let arrival = Arrival { source: source.into(), ..arrival("10.99.0.2") };
        match setup.responder().respond(&mut payload, &arrival, &snapshot()) {
            Ok(prepared) => {
                prop_assert!(prepared.length() <= before.len());
                let written = prepared.seal(NtpTimestamp::from_bits(stamp), &mut payload, &KeyTable::empty());
                let reply = header(&payload);
                prop_assert_eq!(reply.transmit_timestamp(), written);
                prop_assert!(reply.transmit_timestamp() != reply.receive_timestamp());
                prop_assert_eq!(reply.mode(), Mode::Server);
                let end = prepared.length();
                prop_assert!(end == HEADER_LENGTH || prepared.crypto_nak.is_some() && payload[48..end] == [0; 4]);
                prop_assert_eq!(&before[end..], &payload[end..]);
            }
            Err(_) => prop_assert_eq!(before, payload),
        }
    }
}
