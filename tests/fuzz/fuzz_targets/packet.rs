//! Any bytes as an NTP packet: no panic, and the parts make up the whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use timeball::wire::{HEADER_LENGTH, Packet};

fuzz_target!(|bytes: &[u8]| {
    let Ok(packet) = Packet::parse(bytes) else { return };
    let extensions: usize = packet.extensions().map(|field| field.value.len() + 4).sum();
    let mac = packet.mac.map_or(0, |mac| mac.digest.len() + 4);
    assert_eq!(HEADER_LENGTH + extensions + mac, bytes.len());
    assert!((1..=4).contains(&packet.version.number()));
    let _ = format!("{:?}", packet.header);
});
