//! Any frame to the responder with access list, limiter and kisses on: no panic, no reply longer than its
//! request, and every reply reads as mode 4 with its own stamps.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use timeball::serve::Responder;
use timeball::serve::testing::Setup;
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

fuzz_target!(|input: (Vec<(Option<[u8; 4]>, Vec<u8>)>, u64, u64)| {
    RESPONDER.with_borrow_mut(|responder| respond(responder, input));
});

fn respond(responder: &mut Responder, input: (Vec<(Option<[u8; 4]>, Vec<u8>)>, u64, u64)) {
    let (requests, received, sent) = input;
    let snapshot = SystemSnapshot::unsynchronised(Log2Seconds(-20));
    let (received, sent) = (NtpTimestamp::from_bits(received), NtpTimestamp::from_bits(sent));
    for (source, bytes) in requests {
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
        let written = prepared.seal(sent, &mut bytes);
        let frame = Frame::parse(&bytes[..length]).expect("a reply is a whole datagram");
        let reply = Packet::parse(&bytes[frame.payload()]).expect("a reply is a whole packet");
        assert_eq!(reply.header.mode(), Mode::Server);
        assert_eq!(reply.header.transmit_timestamp(), written);
        assert_ne!(written, received);
    }
}
