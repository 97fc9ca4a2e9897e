//! Any frame to the responder with access list, limiter and kisses on: no panic, no reply longer than its
//! request, and every reply reads as mode 4 with its own stamps.
#![no_main]

use libfuzzer_sys::fuzz_target;
use timeball::serve::testing::Setup;
use timeball::snapshot::SystemSnapshot;
use timeball::time::{Log2Seconds, NtpTimestamp, Timestamp};
use timeball::wire::{Frame, Mode, Packet};

fuzz_target!(|input: (Vec<Vec<u8>>, u64, u64)| {
    let (frames, received, sent) = input;
    let mut responder = Setup::strict().responder();
    let snapshot = SystemSnapshot::unsynchronised(Log2Seconds(-20));
    let (received, sent) = (NtpTimestamp::from_bits(received), NtpTimestamp::from_bits(sent));
    for mut bytes in frames {
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
});
