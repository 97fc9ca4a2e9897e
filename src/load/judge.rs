//! Is this frame a right reply, and to which request?
//!
//! Owns: every rule a reply has to keep. Does not own: what was asked and answered before (the engines know which
//! requests are open), nor what late means.
//!
//! The one idea a newcomer lacks: the same rules exist a second time, in C, in the XDP program of the kernel engine.
//! This is the reference; a test compares the two on random replies.

use super::engine::{Expect, Scene};
use super::request::cookie;
use crate::wire::{Checksum, Frame, Header, Malformed, Mode};
use std::net::IpAddr;
use zerocopy::FromBytes;

const PROTOCOL_UDP: u8 = 17;
const UDP_LENGTH: usize = 8;

/// What is wrong with a reply: the first of these that holds. The names are also those in the record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Flaw {
    /// A checksum, IPv4's or UDP's.
    Checksum = 0,
    /// Fewer than 48 octets of NTP.
    Length = 1,
    /// Another mode than 4, or another version than 4, the request's.
    Mode = 2,
    /// The origin timestamp is none that we sent in this step.
    Origin = 3,
    /// Sent to another client than the one that asked.
    Destination = 4,
    /// Leap 3, or a stratum of 0 without a kiss code, or above 15: not synchronised.
    Stratum = 5,
    /// T2 or T3 is zero, or T3 is before T2.
    Order = 6,
}

impl Flaw {
    /// How many there are.
    pub const COUNT: usize = 7;

    /// All, in order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Checksum,
        Self::Length,
        Self::Mode,
        Self::Origin,
        Self::Destination,
        Self::Stratum,
        Self::Order,
    ];

    /// Its name in the record and on screen.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Checksum => "checksum",
            Self::Length => "length",
            Self::Mode => "mode",
            Self::Origin => "origin",
            Self::Destination => "destination",
            Self::Stratum => "stratum",
            Self::Order => "order",
        }
    }
}

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// Not a datagram from the target's port, or addressed to no port of a client: none of our business.
    NotOurs,
    /// A right reply to request `sequence`.
    Right {
        /// Which request.
        sequence: u32,
        /// T3 - T2 in nanoseconds; none for an echo.
        turnaround: Option<u64>,
        /// The UDP checksum was left for hardware to finish.
        unfinished: bool,
    },
    /// A kiss-o'-death for request `sequence`.
    Kiss {
        /// Which request.
        sequence: u32,
        /// Its code.
        code: [u8; 4],
    },
    /// A wrong reply.
    Wrong(Flaw),
}

/// Judges a received frame.
#[must_use]
pub fn judge(scene: &Scene, nonce: u32, bytes: &[u8]) -> Judgement {
    let frame = match Frame::parse(bytes) {
        Ok(frame) => frame,
        Err(Malformed::HeaderChecksum) => return Judgement::Wrong(Flaw::Checksum),
        Err(_) => return Judgement::NotOurs,
    };
    if frame.source != scene.target || frame.source_port != scene.port {
        return Judgement::NotOurs;
    }
    let wrong = Judgement::Wrong;
    let Some(unfinished) = verify(&frame, bytes) else { return wrong(Flaw::Checksum) };
    let payload = bytes.get(frame.payload()).unwrap_or_default();
    let Ok((header, _)) = Header::ref_from_prefix(payload) else { return wrong(Flaw::Length) };
    let (mode, carries) = match scene.expect {
        Expect::Ntp => (Mode::Server, header.origin_timestamp()),
        Expect::Echo => (Mode::Client, header.transmit_timestamp()),
    };
    if header.mode() != mode || header.version_number() != 4 {
        return wrong(Flaw::Mode);
    }
    let carried = carries.to_bits();
    let sequence = carried as u32;
    if carried != cookie(nonce, sequence) {
        return wrong(Flaw::Origin);
    }
    if (frame.destination, frame.destination_port) != scene.clients.get(sequence.into()) {
        return wrong(Flaw::Destination);
    }
    if scene.expect == Expect::Echo {
        return Judgement::Right { sequence, turnaround: None, unfinished };
    }
    let code = header.reference_id.0;
    // A kiss code is four ASCII characters (RFC 5905 section 7.4); ours are upper case letters.
    if header.stratum == 0 && code.iter().all(u8::is_ascii_uppercase) {
        return Judgement::Kiss { sequence, code };
    }
    if payload[0] >> 6 == 3 || !(1..=15).contains(&header.stratum) {
        return wrong(Flaw::Stratum);
    }
    let (received, sent) = (header.receive_timestamp().to_bits(), header.transmit_timestamp().to_bits());
    let turnaround = sent.wrapping_sub(received);
    if received == 0 || sent == 0 || turnaround > i64::MAX as u64 {
        return wrong(Flaw::Order);
    }
    // Fits: half an era is 2^31 seconds, less than 2^61 nanoseconds.
    let turnaround = ((u128::from(turnaround) * 1_000_000_000) >> 32) as u64;
    Judgement::Right { sequence, turnaround: Some(turnaround), unfinished }
}

/// Is the UDP checksum right (`Some(false)`), or unfinished (`Some(true)`), or wrong?
///
/// Between local sockets, over veth, nobody finishes it: the field holds the sum of the pseudo header, for hardware to
/// go on from. None at all (zero) is right over IPv4 (RFC 768).
fn verify(frame: &Frame, bytes: &[u8]) -> Option<bool> {
    let payload = frame.payload();
    let datagram = bytes.get(payload.start - UDP_LENGTH..payload.end)?;
    let field = u16::from_be_bytes([datagram[6], datagram[7]]);
    if field == 0 {
        return frame.source.is_ipv4().then_some(false);
    }
    let addresses = match (frame.source, frame.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Checksum::new().add_bytes(&source.octets()).add_bytes(&destination.octets())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Checksum::new().add_bytes(&source.octets()).add_bytes(&destination.octets())
        }
        _ => return None,
    };
    let pseudo = addresses.add_word(u16::from(PROTOCOL_UDP)).add_word(datagram.len() as u16);
    if pseudo.add_bytes(datagram).finish() == 0 {
        Some(false)
    } else {
        (field == !pseudo.finish()).then_some(true)
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
