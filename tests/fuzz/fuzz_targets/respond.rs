//! Any frame to the responder with access list, limiter, kisses and keys on: no panic, no reply longer than its
//! request, every reply reads as mode 4 with its own stamps, and has a valid MAC if and only if its request had one by
//! the same key, a crypto-NAK if that was wrong. Some requests are signed, since no fuzzer guesses a MAC.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use timeball::auth::{Authentication, KeyId};
use timeball::serve::Responder;
use timeball::serve::testing::{Setup, keys};
use timeball::snapshot::SystemSnapshot;
use timeball::time::{Log2Seconds, NtpTimestamp, Timestamp};
use timeball::wire::{Frame, Mode, Packet};

thread_local! {
    // One for all inputs: its tables take longer to make than a thousand requests. What is asserted holds in any state.
    static RESPONDER: RefCell<Responder> = RefCell::new(Setup::strict().responder());
}

/// A whole frame around a UDP payload, as finding one by chance would take a while.
fn frame(source: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let length = payload.len().min(1400) as u16;
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    frame.extend_from_slice(&(length + 28).to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend_from_slice(&source);
    frame.extend_from_slice(&[10, 99, 0, 1]);
    let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    frame.extend_from_slice(&[0x9c, 0x40, 0, 123]);
    frame.extend_from_slice(&(length + 8).to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(&payload[..usize::from(length)]);
    frame
}

/// Requests, each with the source to wrap it for and the key to sign it with; receive and transmit time.
type Input = (Vec<(Option<[u8; 4]>, Option<u8>, Vec<u8>)>, u64, u64);

fuzz_target!(|input: Input| {
    RESPONDER.with_borrow_mut(|responder| respond(responder, input));
});

fn respond(responder: &mut Responder, input: Input) {
    let keys = keys();
    let (requests, received, sent) = input;
    let snapshot = SystemSnapshot::unsynchronised(Log2Seconds(-20));
    let (received, sent) = (NtpTimestamp::from_bits(received), NtpTimestamp::from_bits(sent));
    for (source, key, mut bytes) in requests {
        if let Some(key) = key.and_then(|number| KeyId::new(u32::from(number) % 8)) {
            bytes.truncate(1000);
            let _ = keys.append(key, &mut bytes);
        }
        let mut bytes = match source {
            Some(source) => frame(source, &bytes),
            None => bytes,
        };
        let before = bytes.clone();
        let outcome = responder.respond_to_frame(&mut bytes, 123, received, Timestamp::ZERO, &snapshot);
        let Ok(prepared) = outcome else {
            assert_eq!(before, bytes, "a refusal leaves the bytes alone");
            continue;
        };
        let length = prepared.length();
        assert!(length <= before.len());
        let written = prepared.seal(sent, &mut bytes, &keys);
        let frame = Frame::parse(&bytes[..length]).expect("a reply is a whole datagram");
        let reply = Packet::parse(&bytes[frame.payload()]).expect("a reply is a whole packet");
        let asked = Frame::parse(&before).expect("what was answered was a whole datagram");
        let (asked, told) = (keys.verify(&before[asked.payload()]), keys.verify(&bytes[frame.payload()]));
        let expected = match asked {
            Authentication::Invalid => Authentication::CryptoNak,
            other => other,
        };
        assert_eq!(told, expected);
        assert_ne!(asked, Authentication::CryptoNak, "never answered");
        assert_eq!(reply.header.mode(), Mode::Server);
        assert_eq!(reply.header.transmit_timestamp(), written);
        assert_ne!(written, received);
    }
}
