//! What may be wrong with a packet, each fault by its name.

use crate::server::{KEY, sign};
use std::net::SocketAddr;
use timeball::time::{NtpDuration, NtpShort, NtpTimestamp};
use timeball::wire::{HEADER_LENGTH, Header, ReferenceId};
use zerocopy::IntoBytes;

/// What is wrong. Each packet carries a time that is wrong, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    WrongOrigin,
    ZeroOrigin,
    RepeatedOrigin,
    ZeroReceive,
    ZeroTransmit,
    /// Always the same transmit timestamp.
    FrozenTransmit,
    LeapUnsynchronised,
    StratumZero,
    Stratum(u8),
    HugeRootDispersion,
    HugeRootDelay,
    ReferenceInTheFuture,
    WrongPort,
    WrongAddress,
    Mode(u8),
    Version(u8),
    /// Cut off, or filled up with octets that are nothing.
    Length(usize),
    /// An extension field of this length in an area of that.
    MalformedExtension(u16, usize),
    BadMac,
    MissingMac,
    OtherKey,
    UnknownKey,
    CryptoNak,
    Replay,
    /// A kiss whose origin timestamp is wrong: from somebody who cannot see our requests.
    ForgedKiss([u8; 4]),
    ZeroOriginKiss([u8; 4]),
    RepeatedOriginKiss([u8; 4]),
    /// A kiss from somebody who sees our requests, without a MAC, whatever there should be.
    UnsignedKiss([u8; 4]),
    /// The same with a MAC that is wrong.
    BadMacKiss([u8; 4]),
    /// A kiss that is as it should be.
    Kiss([u8; 4]),
    Silence,
}

/// Where the faulty packet stands among the good ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// In place of the good reply.
    Instead,
    /// Before it, as from an attacker who is nearer.
    Before,
    /// After it.
    After,
}

/// By how much a faulty packet lies about the time, in seconds.
pub const FAULTY_LIE: f64 = 0.07;

/// The origin timestamp that a packet should have, and that of the one before.
#[derive(Clone, Copy, Debug)]
pub struct Origins {
    pub right: NtpTimestamp,
    pub last: NtpTimestamp,
}

/// The packet with the MAC of this key, or with none.
pub fn signed(header: &Header, key: Option<u32>) -> Vec<u8> {
    let bytes = header.as_bytes().to_vec();
    match key {
        Some(key) => sign(bytes, key),
        None => bytes,
    }
}

/// From where a packet with this fault comes.
pub fn sender(from: SocketAddr, fault: Fault) -> SocketAddr {
    match fault {
        Fault::WrongPort => SocketAddr::new(from.ip(), 124),
        Fault::WrongAddress => SocketAddr::new([10, 99, 9, 9].into(), from.port()),
        _ => from,
    }
}

fn kiss(header: &mut Header, code: [u8; 4]) {
    header.stratum = 0;
    header.reference_id = ReferenceId(code);
    header.as_mut_bytes()[0] |= 0xc0;
}

/// A good packet with this fault.
pub fn spoiled(mut packet: Header, fault: Fault, origins: Origins, key: Option<u32>) -> Vec<Vec<u8>> {
    let zero = NtpTimestamp::UNKNOWN;
    let wrong = origins.right + NtpDuration::from_bits(1);
    match fault {
        Fault::WrongOrigin => packet.set_origin_timestamp(wrong),
        Fault::ZeroOrigin => packet.set_origin_timestamp(zero),
        Fault::RepeatedOrigin => packet.set_origin_timestamp(origins.last),
        Fault::ZeroReceive => packet.set_receive_timestamp(zero),
        Fault::ZeroTransmit => packet.set_transmit_timestamp(zero),
        Fault::FrozenTransmit => {
            packet.set_transmit_timestamp(NtpTimestamp::from_bits(0xee00_0000_0000_0001))
        }
        Fault::LeapUnsynchronised => packet.as_mut_bytes()[0] |= 0xc0,
        Fault::StratumZero => packet.stratum = 0,
        Fault::Stratum(stratum) => packet.stratum = stratum,
        Fault::HugeRootDispersion => packet.set_root_dispersion(NtpShort::MAX),
        Fault::HugeRootDelay => packet.set_root_delay(NtpShort::MAX),
        Fault::ReferenceInTheFuture => {
            packet.set_reference_timestamp(packet.transmit_timestamp() + NtpDuration::from_seconds(5));
        }
        Fault::WrongPort | Fault::WrongAddress => {}
        Fault::Mode(mode) => packet.as_mut_bytes()[0] = packet.as_bytes()[0] & !7 | mode,
        Fault::Version(version) => packet.as_mut_bytes()[0] = packet.as_bytes()[0] & !0x38 | version << 3,
        Fault::Length(length) => {
            let mut bytes = signed(&packet, key);
            bytes.resize(length, 0x5a);
            return vec![bytes];
        }
        Fault::MalformedExtension(length, area) => {
            let mut bytes = packet.as_bytes().to_vec();
            bytes.extend_from_slice(&[1, 4]);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.resize(HEADER_LENGTH + area, 0);
            return vec![bytes];
        }
        Fault::BadMac => return vec![with_bad_mac(&packet)],
        Fault::MissingMac => return vec![signed(&packet, None)],
        Fault::OtherKey => return vec![signed(&packet, Some(KEY + 1))],
        Fault::UnknownKey => {
            let mut bytes = signed(&packet, Some(KEY));
            bytes[HEADER_LENGTH..HEADER_LENGTH + 4].copy_from_slice(&(KEY + 2).to_be_bytes());
            return vec![bytes];
        }
        Fault::CryptoNak => {
            let mut bytes = packet.as_bytes().to_vec();
            bytes.extend_from_slice(&[0; 4]);
            return vec![bytes];
        }
        Fault::ForgedKiss(code) => {
            packet.set_origin_timestamp(wrong);
            kiss(&mut packet, code);
        }
        Fault::ZeroOriginKiss(code) => {
            packet.set_origin_timestamp(zero);
            kiss(&mut packet, code);
        }
        Fault::RepeatedOriginKiss(code) => {
            packet.set_origin_timestamp(origins.last);
            kiss(&mut packet, code);
        }
        Fault::UnsignedKiss(code) => {
            kiss(&mut packet, code);
            return vec![signed(&packet, None)];
        }
        Fault::BadMacKiss(code) => {
            kiss(&mut packet, code);
            return vec![with_bad_mac(&packet)];
        }
        Fault::Kiss(code) => kiss(&mut packet, code),
        Fault::Replay | Fault::Silence => return Vec::new(),
    }
    vec![signed(&packet, key)]
}

fn with_bad_mac(packet: &Header) -> Vec<u8> {
    let mut bytes = signed(packet, Some(KEY));
    *bytes.last_mut().unwrap() ^= 1;
    bytes
}
