//! Emitted bytes are judged by a second, independent reader (`etherparse`-like code would bring a dependency
//! for forty lines, so the reader is here).

use super::*;
use proptest::prelude::*;

/// Builds a frame from scratch, field by field.
pub(super) fn build(
    tags: &[u16],
    source: IpAddr,
    destination: IpAddr,
    ports: (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for (index, tag) in tags.iter().enumerate() {
        let last = index + 1 == tags.len();
        bytes.extend(if last { 0x8100_u16 } else { 0x88a8 }.to_be_bytes());
        bytes.extend(tag.to_be_bytes());
    }
    let udp_length = (payload.len() + 8) as u16;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend(0x0800_u16.to_be_bytes());
            bytes.extend([0x45, 0xb8]);
            bytes.extend((udp_length + 20).to_be_bytes());
            bytes.extend([0x12, 0x34, 0x40, 0, 57, 17, 0, 0]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            sum_ipv4_header(&mut bytes);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes.extend(0x86dd_u16.to_be_bytes());
            bytes.extend([0x6b, 0x81, 0x23, 0x45]);
            bytes.extend(udp_length.to_be_bytes());
            bytes.extend([17, 57]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
        }
        _ => unreachable!("one family a frame"),
    }
    bytes.extend(ports.0.to_be_bytes());
    bytes.extend(ports.1.to_be_bytes());
    bytes.extend(udp_length.to_be_bytes());
    bytes.extend([0xbe, 0xef]);
    bytes.extend(payload);
    bytes
}

/// Writes the checksum of the IPv4 header, the last thing in `bytes`.
fn sum_ipv4_header(bytes: &mut [u8]) {
    let at = bytes.len() - 20;
    let checksum = !sum(&[&bytes[at..]]);
    bytes[at + 10..at + 12].copy_from_slice(&checksum.to_be_bytes());
}

/// One's-complement sum over the words; 0xffff for data whose checksum field is right.
fn sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn check_reply(request: &[u8], reply: &[u8], tags: usize, v6: bool, payload_length: usize) {
    let ip = 14 + 4 * tags;
    assert_eq!(reply[0..6], request[6..12]);
    assert_eq!(reply[6..12], request[0..6]);
    assert_eq!(reply[12..ip], request[12..ip], "tags and ethertype stay");
    let (udp, source, destination) = if v6 {
        (ip + 40, ip + 8..ip + 24, ip + 24..ip + 40)
    } else {
        (ip + 20, ip + 12..ip + 16, ip + 16..ip + 20)
    };
    assert_eq!(reply[source.clone()], request[destination.clone()]);
    assert_eq!(reply[destination.clone()], request[source.clone()]);
    if !v6 {
        assert_eq!(sum(&[&reply[ip..udp]]), 0xffff, "IPv4 header checksum");
        assert_eq!(usize::from(u16::from_be_bytes([reply[ip + 2], reply[ip + 3]])), 28 + payload_length);
    } else {
        assert_eq!(usize::from(u16::from_be_bytes([reply[ip + 4], reply[ip + 5]])), 8 + payload_length);
    }
    assert_eq!(reply[udp..udp + 2], request[udp + 2..udp + 4]);
    assert_eq!(reply[udp + 2..udp + 4], request[udp..udp + 2]);
    assert_eq!(usize::from(u16::from_be_bytes([reply[udp + 4], reply[udp + 5]])), 8 + payload_length);
    let length = ((8 + payload_length) as u16).to_be_bytes();
    let pseudo = [&reply[source], &reply[destination], &length, &[0, 17]].concat();
    assert_eq!(sum(&[&pseudo, &reply[udp..]]), 0xffff, "UDP checksum");
    assert_ne!(reply[udp + 6..udp + 8], [0, 0], "a reply always has a checksum");
}

fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
        any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
    ]
}

proptest! {
    #[test]
    fn reply_is_right_to_an_independent_reader(
        (source, destination) in addresses(),
        ports in any::<(u16, u16)>(),
        tags in proptest::collection::vec(1_u16..4095, 0..=2),
        payload in proptest::collection::vec(any::<u8>(), 48..200),
        keep in any::<proptest::sample::Index>(),
        padding in 0_usize..20,
        stamp in any::<u64>(),
    ) {
        let mut bytes = build(&tags, source, destination, ports, &payload);
        bytes.extend(vec![0xaa; padding]);
        let frame = Frame::parse(&bytes).unwrap();
        prop_assert_eq!((frame.source, frame.destination), (source, destination));
        prop_assert_eq!((frame.source_port, frame.destination_port), ports);
        prop_assert_eq!(&bytes[frame.payload()], &payload[..]);
        let mut expected_tags = [0; 2];
        expected_tags[..tags.len()].copy_from_slice(&tags);
        prop_assert_eq!(frame.tags, expected_tags);

        let request = bytes.clone();
        let kept = 48 + keep.index(payload.len() - 47);
        let length = frame.turn_round(&mut bytes, kept);
        prop_assert!(length <= request.len());
        check_reply(&request, &bytes[..length], tags.len(), source.is_ipv6(), kept);

        let at = frame.payload().start + 40;
        let old = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        bytes[at..at + 8].copy_from_slice(&stamp.to_be_bytes());
        frame.datagram.payload_changed(&mut bytes, old, stamp);
        check_reply(&request, &bytes[..length], tags.len(), source.is_ipv6(), kept);
    }

    #[test]
    fn any_bytes_and_any_cut_are_read_without_panic(
        (source, destination) in addresses(),
        tags in proptest::collection::vec(any::<u16>(), 0..=3),
        noise in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<proptest::sample::Index>(),
        kept in 0_usize..3000,
    ) {
        let mut bytes = build(&tags, source, destination, (1, 123), &[0; 60]);
        for (at, value) in noise {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        if let Ok(frame) = Frame::parse(&bytes) {
            prop_assert!(frame.payload().end <= bytes.len());
            let before = bytes.len();
            prop_assert!(frame.turn_round(&mut bytes, kept) <= before);
        }
    }
}

#[test]
fn what_is_not_a_plain_datagram_has_a_name() {
    let v4 = || build(&[], [10, 99, 0, 2].into(), [10, 99, 0, 1].into(), (5, 123), &[0; 48]);
    let v6 = || build(&[], [1_u16; 8].into(), [2_u16; 8].into(), (5, 123), &[0; 48]);
    let with = |mut bytes: Vec<u8>, at: usize, value: u8| {
        bytes[at] = value;
        if at < 34 && bytes[13] == 0 {
            bytes[24..26].fill(0);
            sum_ipv4_header(&mut bytes[..34]);
        }
        Frame::parse(&bytes).unwrap_err()
    };
    let mut damaged = v4();
    damaged[24] ^= 1;
    assert_eq!(Frame::parse(&damaged).unwrap_err(), Malformed::HeaderChecksum);
    assert_eq!(with(v4(), 13, 6), Malformed::NotIp(0x0806));
    assert_eq!(with(v4(), 14, 0x65), Malformed::IpVersion(6));
    assert_eq!(with(v4(), 14, 0x46), Malformed::IpOptions(6));
    assert_eq!(with(v4(), 20, 0x20), Malformed::Fragment);
    assert_eq!(with(v4(), 21, 1), Malformed::Fragment);
    assert_eq!(with(v4(), 23, 6), Malformed::NotUdp(6));
    assert_eq!(with(v4(), 17, 77), Malformed::Length { part: "IPv4", length: 77, available: 76 });
    assert_eq!(with(v4(), 39, 57), Malformed::Length { part: "UDP", length: 57, available: 56 });
    assert_eq!(with(v4(), 39, 7), Malformed::Length { part: "UDP", length: 7, available: 56 });
    assert_eq!(with(v6(), 14, 0x45), Malformed::IpVersion(4));
    let mut unsummed = v6();
    unsummed[60..62].fill(0);
    assert_eq!(Frame::parse(&unsummed).unwrap_err(), Malformed::NoChecksum);
    assert_eq!(with(v6(), 20, 44), Malformed::Fragment);
    assert_eq!(with(v6(), 20, 0), Malformed::IpOptions(0));
    assert_eq!(with(v6(), 20, 58), Malformed::NotUdp(58));
    assert_eq!(with(v6(), 19, 57), Malformed::Length { part: "IPv6", length: 97, available: 96 });
}

#[test]
fn martians_are_no_possible_source() {
    for address in [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "224.0.1.1",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::101",
        "::ffff:10.0.0.1",
    ] {
        assert!(!is_possible_source(address.parse().unwrap()), "{address}");
    }
    for address in ["1.0.0.1", "10.99.0.2", "223.255.255.255", "fd99::2", "fe80::1", "2001:db8::1"] {
        assert!(is_possible_source(address.parse().unwrap()), "{address}");
    }
}
