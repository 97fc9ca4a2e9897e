//! Any bytes as an Ethernet frame: no panic, and what is turned round still reads as its own reply.
#![no_main]

use libfuzzer_sys::fuzz_target;
use timeball::wire::Frame;

fuzz_target!(|input: (Vec<u8>, u16, u64)| {
    let (mut bytes, kept, stamp) = input;
    let Ok(frame) = Frame::parse(&bytes) else { return };
    let received = bytes.len();
    assert!(frame.payload().end <= received);
    let length = frame.turn_round(&mut bytes, usize::from(kept));
    assert!(length <= received);
    frame.payload_changed(&mut bytes, 0, stamp);
    let reply = Frame::parse(&bytes[..length]).expect("a reply is a whole datagram");
    assert_eq!((reply.source, reply.destination), (frame.destination, frame.source));
    assert_eq!((reply.source_port, reply.destination_port), (frame.destination_port, frame.source_port));
    assert_eq!(reply.tags, frame.tags);
});
