//! Requests with a MAC: what they get, byte by byte. RFC checklist lines 23, 30, 37, 78 to 85.

use super::*;
use crate::auth::{Algorithm, Authentication, KeyId, MacError};
use crate::serve::access::Action;
use crate::serve::testing::{Setup, client_request, keys};
use crate::serve::{Arrival, PreparedFrame, RequestFrame};
use crate::time::Log2Seconds;
use crate::wire::{Checksum, Frame, KissCode, Mode};
use proptest::prelude::*;
use std::sync::Arc;

const RECEIVED: NtpTimestamp = NtpTimestamp::from_bits(0xeb00_0000_8000_0000);
const SENT: NtpTimestamp = NtpTimestamp::from_bits(0xeb00_0000_8001_0000);

fn id(number: u32) -> KeyId {
    KeyId::new(number).unwrap()
}

fn keyed() -> Setup {
    Setup { keys: keys(), ..Setup::default() }
}

fn snapshot() -> SystemSnapshot {
    SystemSnapshot::unsynchronised(Log2Seconds(-20))
}

/// A request signed with key `number` of [`keys`].
fn signed(version: u8, fields: &[u8], number: u32) -> Vec<u8> {
    let mut request = client_request(version, fields);
    keys().append(id(number), &mut request).unwrap();
    request
}

fn ask(responder: &mut Responder, payload: &mut [u8], source: &str) -> Result<Prepared, Refusal> {
    let arrival = Arrival {
        source: source.parse().unwrap(),
        source_port: 40_000,
        receive_timestamp: RECEIVED,
        now: Timestamp::from_nanoseconds(1_000_000_000),
    };
    responder.respond(payload, &arrival, &snapshot())
}

/// The reply's octets, sealed.
fn reply(responder: &mut Responder, request: &[u8], source: &str) -> Result<(Prepared, Vec<u8>), Refusal> {
    let mut payload = request.to_vec();
    let prepared = ask(responder, &mut payload, source)?;
    assert_eq!(prepared.seal(SENT, &mut payload, responder.keys()), SENT);
    payload.truncate(prepared.length());
    Ok((prepared, payload))
}

#[test]
fn a_signed_request_gets_a_reply_signed_with_the_same_key_and_as_long_a_digest() {
    let mut responder = keyed().responder();
    let field = [&[0x12, 0x34, 0, 16][..], &[0xaa; 12]].concat();
    for version in 1..=4 {
        for number in 1..=Algorithm::ALL.len() as u32 {
            for fields in [&[][..], &field].into_iter().take(if version == 4 { 2 } else { 1 }) {
                let request = signed(version, fields, number);
                let (prepared, bytes) = reply(&mut responder, &request, "10.99.0.2").unwrap();
                assert_eq!((prepared.is_time(), prepared.key()), (true, Some(id(number))));
                assert_eq!(keys().verify(&bytes), Authentication::Valid(id(number)));
                assert_eq!(bytes.len() + fields.len(), request.len(), "no extension field is sent back");
                let read = Packet::parse(&bytes).unwrap();
                assert_eq!(read.header.transmit_timestamp(), SENT, "the MAC is over the last word");
                assert_eq!((read.version.number(), read.header.mode()), (version, Mode::Server));
            }
        }
    }
}

#[test]
fn an_unsigned_request_is_answered_as_ever_where_there_are_keys() {
    let (prepared, bytes) = reply(&mut keyed().responder(), &client_request(4, &[]), "10.99.0.2").unwrap();
    assert_eq!((prepared.length(), prepared.key(), prepared.crypto_nak), (48, None, None));
    assert_eq!(keys().verify(&bytes), Authentication::None);
}

/// RFC 5905 section 9.2: "the normal NTP header data shown in Figure 8, but with a MAC consisting of four octets of
/// zeros"; appendix A.5.1: for an unknown key too, which can verify nothing, and by servers without any key.
/// Checklist 30.
#[test]
fn what_cannot_be_verified_gets_a_crypto_nak() {
    let mut wrong = signed(4, &[], 6);
    *wrong.last_mut().unwrap() ^= 1;
    let mut unknown = signed(4, &[], 6);
    unknown[51] = 99;
    let mut type_mismatch = signed(4, &[], 6);
    type_mismatch[51] = 7;
    let ms_sntp = client_request(3, &[&[1, 0, 0, 0][..], &[0; 16]].concat());
    for (name, setup, request, refusal) in [
        ("a wrong digest", keyed(), wrong, Refusal::Authentication),
        ("another key's digest", keyed(), type_mismatch, Refusal::Authentication),
        ("an unknown key", keyed(), unknown, Refusal::UnknownKey),
        ("key 0", keyed(), client_request(4, &[0; 20]), Refusal::UnknownKey),
        ("no keys here", Setup::default(), signed(4, &[], 6), Refusal::UnknownKey),
        ("what Windows sends to its domain", keyed(), ms_sntp, Refusal::UnknownKey),
        (
            "a short digest in version 3",
            keyed(),
            client_request(3, &[0, 0, 0, 6, 1, 1, 1, 1]),
            Refusal::Authentication,
        ),
    ] {
        let (prepared, bytes) = reply(&mut setup.responder(), &request, "10.99.0.2").unwrap();
        assert_eq!(
            (prepared.crypto_nak, prepared.key(), prepared.kiss),
            (Some(refusal), None, None),
            "{name}"
        );
        assert_eq!((bytes.len(), &bytes[48..]), (52, &[0; 4][..]), "{name}");
        assert_eq!(keys().verify(&bytes), Authentication::CryptoNak, "{name}");
        let header = *Packet::parse(&bytes).unwrap().header;
        assert_eq!(header.origin_timestamp().to_bits(), 0x1122_3344_5566_7788, "{name}");
        assert_eq!((header.receive_timestamp(), header.transmit_timestamp()), (RECEIVED, SENT), "{name}");
    }
}

/// Checklist 30.
#[test]
fn a_crypto_nak_is_never_answered() {
    for trailer in [[0; 4], [0, 0, 0, 6]] {
        for version in 1..=4 {
            let request = client_request(version, &trailer);
            let mut payload = request.clone();
            let outcome = ask(&mut keyed().responder(), &mut payload, "10.99.0.2");
            assert_eq!(outcome, Err(Refusal::Authentication));
            assert_eq!(payload, request);
        }
    }
}

#[test]
fn the_access_list_and_the_rate_limit_come_first() {
    let rules = vec![
        ("10.99.1.0/24".parse().unwrap(), Action::Deny),
        ("10.99.3.0/24".parse().unwrap(), Action::Drop),
    ];
    let silent = Setup { rules: rules.clone(), ..keyed() };
    let mut wrong = signed(4, &[], 6);
    wrong[60] ^= 1;
    for request in [&signed(4, &[], 6), &wrong] {
        let mut responder = silent.clone().responder();
        assert_eq!(reply(&mut responder, request, "10.99.1.1").unwrap_err(), Refusal::Denied);
        assert_eq!(reply(&mut responder, request, "10.99.3.1").unwrap_err(), Refusal::Dropped);
    }
    // Who can sign gets a kiss that it can believe; who cannot gets none.
    let mut responder = Setup { rules, kod: true, ..keyed() }.responder();
    assert_eq!(reply(&mut responder, &wrong, "10.99.1.1").unwrap_err(), Refusal::Denied);
    let (prepared, bytes) = reply(&mut responder, &signed(4, &[], 6), "10.99.1.1").unwrap();
    assert_eq!(prepared.kiss, Some((KissCode::Deny, Refusal::Denied)));
    assert_eq!(keys().verify(&bytes), Authentication::Valid(id(6)));
    let limited = Setup { limit_interval_seconds: Some(8), leak: 0, ..keyed() };
    let mut responder = limited.responder();
    let outcomes: Vec<_> = (0..40).map(|_| reply(&mut responder, &wrong, "10.99.0.2")).collect();
    let naks = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert!((16..20).contains(&naks), "{naks} of 40");
    assert_eq!(outcomes.last().unwrap().as_ref().unwrap_err(), &Refusal::RateLimited);
}

#[test]
fn new_keys_replace_the_old_ones_at_once() {
    let mut responder = keyed().responder();
    let request = signed(4, &[], 6);
    assert!(reply(&mut responder, &request, "10.99.0.2").unwrap().0.is_time());
    responder.set_keys(Arc::new(keys().restricted_to(&[id(2)])));
    let nak = reply(&mut responder, &request, "10.99.0.2").unwrap().0;
    assert_eq!(nak.crypto_nak, Some(Refusal::UnknownKey));
    let (prepared, bytes) = reply(&mut responder, &signed(4, &[], 2), "10.99.0.2").unwrap();
    assert!(prepared.is_time() && keys().verify(&bytes) == Authentication::Valid(id(2)));
}

/// A caller that seals with other keys than those that answered breaks no promise but one: the reply proves nothing.
#[test]
fn a_key_that_is_gone_when_the_reply_is_sealed_leaves_no_valid_mac() {
    let mut payload = signed(4, &[], 6);
    let prepared = ask(&mut keyed().responder(), &mut payload, "10.99.0.2").unwrap();
    let _ = prepared.seal(SENT, &mut payload, &KeyTable::empty());
    let mac = Packet::parse(&payload).unwrap().mac.unwrap();
    assert_eq!(mac.digest, [0; 16]);
    assert_eq!(keys().check(&payload, &mac), Err(MacError::Mismatch));
}

/// Ethernet, IPv4 or IPv6 and UDP around `payload`.
fn frame(ipv6: bool, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len() as u16).to_be_bytes();
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if ipv6 {
        frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, length[0], length[1], 17, 64]);
        frame.extend_from_slice(&[0xfd, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        frame.extend_from_slice(&[0xfd, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    } else {
        let total = (28 + payload.len() as u16).to_be_bytes();
        frame.extend_from_slice(&[8, 0, 0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 17, 0, 0]);
        frame.extend_from_slice(&[10, 99, 0, 2, 10, 99, 0, 1]);
        let sum = Checksum::new().add_bytes(&frame[14..34]).finish().to_be_bytes();
        frame[24..26].copy_from_slice(&sum);
    }
    frame.extend_from_slice(&[0x9c, 0x40, 0, 123, length[0], length[1], 1, 1]);
    frame.extend_from_slice(payload);
    frame
}

/// Does the UDP checksum of a frame with IPv4 or IPv6 hold, summed in one go?
fn checksum_holds(bytes: &[u8], ipv6: bool) -> bool {
    let (addresses, udp) = if ipv6 { (22..54, 54) } else { (26..34, 34) };
    let length = (bytes.len() - udp) as u16;
    let pseudo = Checksum::new().add_bytes(&bytes[addresses]).add_word(17).add_word(length);
    pseudo.add_bytes(&bytes[udp..]).finish() == 0
}

fn answer_frame(responder: &mut Responder, bytes: &mut [u8]) -> Result<PreparedFrame, Refusal> {
    let now = Timestamp::from_nanoseconds(1_000_000_000);
    let request: RequestFrame = responder.read_frame(bytes, 123, |_| ())?;
    responder.respond_to_request(&request, bytes, RECEIVED, now, &snapshot())
}

proptest! {
    #[test]
    fn a_frame_that_ends_with_a_mac_is_answered_with_checksums_that_hold(
        version in 1_u8..=4,
        number in 1_u32..=7,
        ipv6 in any::<bool>(),
        fields in 0_usize..3,
        sent in any::<u64>(),
        broken in any::<bool>(),
    ) {
        let field = [&[0x12, 0x34, 0, 16][..], &[0xaa; 12]].concat();
        let mut request = signed(version, &field.repeat(if version == 4 { fields } else { 0 }), number);
        if broken {
            *request.last_mut().unwrap() ^= 0x40;
        }
        let mut responder = keyed().responder();
        let mut bytes = frame(ipv6, &request);
        let asked = bytes.len();
        let prepared = answer_frame(&mut responder, &mut bytes).unwrap();
        prop_assert!(prepared.length() <= asked);
        let written = prepared.seal(NtpTimestamp::from_bits(sent), &mut bytes, responder.keys());
        bytes.truncate(prepared.length());
        prop_assert!(checksum_holds(&bytes, ipv6));
        let payload = &bytes[Frame::parse(&bytes).unwrap().payload()];
        let expected = if broken { Authentication::CryptoNak } else { Authentication::Valid(id(number)) };
        prop_assert_eq!(keys().verify(payload), expected);
        prop_assert_eq!(Packet::parse(payload).unwrap().header.transmit_timestamp(), written);
    }

    /// Whoever changes a request on its way gets no signed reply to it, nor makes one that is longer.
    #[test]
    fn any_bit_flipped_in_a_request_means_no_signed_reply(
        version in 1_u8..=4,
        number in 1_u32..=7,
        bit in any::<proptest::sample::Index>(),
    ) {
        let mut request = signed(version, &[], number);
        let bit = bit.index(request.len() * 8);
        request[bit / 8] ^= 1 << (bit % 8);
        if let Ok((prepared, bytes)) = reply(&mut keyed().responder(), &request, "10.99.0.2") {
            prop_assert!(prepared.key().is_none());
            prop_assert!(bytes.len() <= request.len());
            prop_assert!(!matches!(keys().verify(&bytes), Authentication::Valid(_)));
        }
    }
}
