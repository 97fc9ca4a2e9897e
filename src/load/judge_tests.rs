use super::*;
use crate::load::request::{REQUEST_LENGTH_MAX, Template};
use crate::load::testing;
use crate::time::NtpTimestamp;
use crate::wire::{Leap, ReferenceId, Version};
use zerocopy::IntoBytes;

const NONCE: u32 = 0xdead_beef;

fn scenes() -> [Scene; 2] {
    [("10.99.1.1", "10.99.8.0/22"), ("fd99:1::1", "fd99:2::/50")]
        .map(|(target, sources)| testing::scene(target, sources, 1000))
}

/// The reply to request 77, its header changed by `change`.
fn reply(scene: &Scene, change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut bytes = vec![0; REQUEST_LENGTH_MAX];
    let length = Template::new(scene).write(&mut bytes, NONCE, 77);
    bytes.truncate(length);
    let frame = Frame::parse(&bytes).unwrap();
    let mut header = Header::new(Leap::None, Version::V4, Mode::Server);
    header.stratum = 2;
    header.reference_id = ReferenceId([10, 99, 0, 1]);
    header.set_origin_timestamp(NtpTimestamp::from_bits(cookie(NONCE, 77)));
    header.set_receive_timestamp(NtpTimestamp::from_bits(5 << 32));
    // A 65,536th of a second later: 15,258.789 ns.
    header.set_transmit_timestamp(NtpTimestamp::from_bits((5 << 32) + (1 << 16)));
    change(&mut header);
    bytes[frame.payload()].copy_from_slice(header.as_bytes());
    assert_eq!(frame.turn_round(&mut bytes, 48), length);
    bytes
}

/// Where the UDP header lies.
fn udp(scene: &Scene) -> usize {
    if scene.target.is_ipv4() { 34 } else { 54 }
}

/// Mends the UDP checksum after the payload was changed.
fn mend(bytes: &mut [u8]) {
    let frame = Frame::parse(bytes).unwrap();
    let length = frame.payload().len();
    // Turned round twice, it is what it was.
    frame.turn_round(bytes, length);
    let frame = Frame::parse(bytes).unwrap();
    frame.turn_round(bytes, length);
}

#[test]
fn a_right_reply_is_right() {
    for scene in scenes() {
        let right = Judgement::Right { sequence: 77, turnaround: Some(15_258), unfinished: false };
        assert_eq!(judge(&scene, NONCE, &reply(&scene, |_| {})), right);
        let backwards = reply(&scene, |header| header.set_transmit_timestamp(header.receive_timestamp()));
        let at_once = Judgement::Right { sequence: 77, turnaround: Some(0), unfinished: false };
        assert_eq!(judge(&scene, NONCE, &backwards), at_once);
    }
}

#[test]
fn the_request_itself_is_a_right_echo_and_no_reply() {
    for mut scene in scenes() {
        let mut bytes = vec![0; REQUEST_LENGTH_MAX];
        let length = Template::new(&scene).write(&mut bytes, NONCE, 77);
        bytes.truncate(length);
        Frame::parse(&bytes).unwrap().turn_round(&mut bytes, 48);
        assert_eq!(judge(&scene, NONCE, &bytes), Judgement::Wrong(Flaw::Mode));
        scene.expect = Expect::Echo;
        let right = Judgement::Right { sequence: 77, turnaround: None, unfinished: false };
        assert_eq!(judge(&scene, NONCE, &bytes), right);
        assert_eq!(judge(&scene, NONCE + 1, &bytes), Judgement::Wrong(Flaw::Origin));
    }
}

#[test]
fn every_flaw_is_named() {
    type Change = fn(&mut Header);
    let changes: [(Flaw, Change); 9] = [
        (Flaw::Mode, |header| *header = Header::new(Leap::None, Version::V4, Mode::SymmetricPassive)),
        (Flaw::Mode, |header| *header = Header::new(Leap::None, Version::new(3).unwrap(), Mode::Server)),
        (Flaw::Origin, |header| header.set_origin_timestamp(NtpTimestamp::from_bits(cookie(NONCE + 1, 77)))),
        (Flaw::Stratum, |header| header.stratum = 16),
        (Flaw::Stratum, |header| (header.stratum, header.reference_id) = (0, ReferenceId([0; 4]))),
        (Flaw::Stratum, |header| {
            let mut other = Header::new(Leap::Unsynchronised, Version::V4, Mode::Server);
            other.stratum = 2;
            other.set_origin_timestamp(header.origin_timestamp());
            *header = other;
        }),
        (Flaw::Order, |header| header.set_receive_timestamp(NtpTimestamp::from_bits(6 << 32))),
        (Flaw::Order, |header| header.set_receive_timestamp(NtpTimestamp::from_bits(0))),
        (Flaw::Order, |header| header.set_transmit_timestamp(NtpTimestamp::from_bits(0))),
    ];
    for scene in scenes() {
        for (index, (flaw, change)) in changes.into_iter().enumerate() {
            assert_eq!(
                judge(&scene, NONCE, &reply(&scene, change)),
                Judgement::Wrong(flaw),
                "change {index}"
            );
        }
        // Another client's request number: right origin, wrong address.
        let other =
            |header: &mut Header| header.set_origin_timestamp(NtpTimestamp::from_bits(cookie(NONCE, 78)));
        assert_eq!(judge(&scene, NONCE, &reply(&scene, other)), Judgement::Wrong(Flaw::Destination));
    }
}

#[test]
fn a_kiss_is_told_from_an_unsynchronised_server() {
    for scene in scenes() {
        let kiss = reply(&scene, |header| (header.stratum, header.reference_id) = (0, ReferenceId(*b"RATE")));
        assert_eq!(judge(&scene, NONCE, &kiss), Judgement::Kiss { sequence: 77, code: *b"RATE" });
    }
}

#[test]
fn checksums_are_right_unfinished_absent_or_wrong() {
    for scene in scenes() {
        let mut bytes = reply(&scene, |_| {});
        let at = udp(&scene) + 6;
        let right = [bytes[at], bytes[at + 1]];
        bytes[at] ^= 1;
        assert_eq!(judge(&scene, NONCE, &bytes), Judgement::Wrong(Flaw::Checksum));

        let addresses = if scene.target.is_ipv4() { 26..34 } else { 22..54 };
        let pseudo = Checksum::new().add_bytes(&bytes[addresses]).add_word(17).add_word(56);
        bytes[at..at + 2].copy_from_slice(&(!pseudo.finish()).to_be_bytes());
        let unfinished = Judgement::Right { sequence: 77, turnaround: Some(15_258), unfinished: true };
        assert_eq!(judge(&scene, NONCE, &bytes), unfinished);

        bytes[at..at + 2].fill(0);
        let absent = judge(&scene, NONCE, &bytes);
        if scene.target.is_ipv4() {
            assert!(matches!(absent, Judgement::Right { unfinished: false, .. }), "{absent:?}");
            bytes[at..at + 2].copy_from_slice(&right);
            bytes[24] ^= 1;
            assert_eq!(judge(&scene, NONCE, &bytes), Judgement::Wrong(Flaw::Checksum), "IPv4 header");
        } else {
            assert_eq!(absent, Judgement::NotOurs, "the parser refuses it");
        }
    }
}

#[test]
fn what_others_send_is_not_ours() {
    for scene in scenes() {
        let mut bytes = reply(&scene, |_| {});
        bytes[udp(&scene)] ^= 1;
        mend(&mut bytes);
        assert_eq!(judge(&scene, NONCE, &bytes), Judgement::NotOurs, "another port");
        assert_eq!(judge(&scene, NONCE, &[0; 60]), Judgement::NotOurs);
        assert_eq!(judge(&scene, NONCE, &[]), Judgement::NotOurs);
        let short = Template::new(&scene).bytes().len() - 8;
        let mut bytes = reply(&scene, |_| {});
        let frame = Frame::parse(&bytes).unwrap();
        // Twice round with a shorter payload: a right frame of 40 octets of NTP.
        frame.turn_round(&mut bytes, 40);
        bytes.truncate(short);
        Frame::parse(&bytes).unwrap().turn_round(&mut bytes, 40);
        assert_eq!(judge(&scene, NONCE, &bytes), Judgement::Wrong(Flaw::Length));
    }
}
