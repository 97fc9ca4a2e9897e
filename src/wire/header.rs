//! The 48 octets every NTP packet starts with (RFC 5905 section 7.3, figure 8).

use crate::time::{Log2Seconds, NtpShort, NtpTimestamp};
use std::fmt;
use std::mem::{offset_of, size_of};
use zerocopy::byteorder::network_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of the NTP header in octets.
pub const HEADER_LENGTH: usize = 48;

/// The NTP header as it lies in the packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct Header {
    leap_version_mode: u8,
    /// Stratum as sent: 0 is "unsynchronised" or a Kiss-o'-Death, 1 a primary server, up to 15.
    pub stratum: u8,
    poll: i8,
    precision: i8,
    root_delay: U32,
    root_dispersion: U32,
    /// Reference id as sent.
    pub reference_id: ReferenceId,
    reference_timestamp: U64,
    origin_timestamp: U64,
    receive_timestamp: U64,
    transmit_timestamp: U64,
}

const _: () = assert!(size_of::<Header>() == HEADER_LENGTH);

/// Where in the packet the transmit timestamp lies.
#[must_use]
pub const fn transmit_timestamp_offset() -> usize {
    offset_of!(Header, transmit_timestamp)
}

/// The leap indicator.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(u8)]
pub enum Leap {
    /// No leap second this month.
    None = 0,
    /// The last minute of the month has 61 seconds.
    Insert = 1,
    /// The last minute of the month has 59 seconds.
    Delete = 2,
    /// The clock is not synchronised ("alarm").
    #[default]
    Unsynchronised = 3,
}

/// The association mode of a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Mode {
    /// 0, reserved.
    Reserved = 0,
    /// 1.
    SymmetricActive = 1,
    /// 2.
    SymmetricPassive = 2,
    /// 3, a request.
    Client = 3,
    /// 4, a reply.
    Server = 4,
    /// 5.
    Broadcast = 5,
    /// 6, mode 6 control messages.
    Control = 6,
    /// 7, private use.
    Private = 7,
}

impl Mode {
    /// From the low three bits of `bits`.
    #[must_use]
    pub const fn from_low_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::Reserved,
            1 => Self::SymmetricActive,
            2 => Self::SymmetricPassive,
            3 => Self::Client,
            4 => Self::Server,
            5 => Self::Broadcast,
            6 => Self::Control,
            _ => Self::Private,
        }
    }
}

/// A protocol version that we speak: 1 to 4.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version(u8);

impl Version {
    /// Version 4, what we send when it is ours to choose.
    pub const V4: Self = Self(4);
    /// Version 3 (RFC 1305), what some old servers answer only. Its packets look the same without extension fields.
    pub const V3: Self = Self(3);

    /// The version, if it is one of 1 to 4.
    #[must_use]
    pub const fn new(version: u8) -> Option<Self> {
        if version >= 1 && version <= 4 { Some(Self(version)) } else { None }
    }

    /// The number, 1 to 4.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// The 32-bit reference id: four ASCII characters at stratum 0 and 1, an address or its hash above.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(transparent)]
pub struct ReferenceId(pub [u8; 4]);

impl ReferenceId {
    /// An address that no host has as its own, for where none may be told: so nobody takes us for a loop back to himself.
    pub const NOBODY: Self = Self([127, 127, 1, 1]);
}

impl fmt::Display for ReferenceId {
    /// As ASCII where it is printable text padded with zeros, as a dotted quad elsewhere.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.as_slice();
        let end = text.iter().rposition(|&octet| octet != 0).map_or(0, |last| last + 1);
        if end > 0 && text[..end].iter().all(u8::is_ascii_graphic) {
            text[..end].iter().try_for_each(|&octet| write!(formatter, "{}", char::from(octet)))
        } else {
            let [a, b, c, d] = self.0;
            write!(formatter, "{a}.{b}.{c}.{d}")
        }
    }
}

impl fmt::Debug for ReferenceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ReferenceId({self})")
    }
}

/// A Kiss-o'-Death code we send (RFC 5905 section 7.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KissCode {
    /// Access denied by the server: stop.
    Deny,
    /// Access denied by local policy: stop.
    Restrict,
    /// Too fast: slow down.
    Rate,
}

impl KissCode {
    /// The four characters that travel in the reference id.
    #[must_use]
    pub const fn reference_id(self) -> ReferenceId {
        ReferenceId(match self {
            Self::Deny => *b"DENY",
            Self::Restrict => *b"RSTR",
            Self::Rate => *b"RATE",
        })
    }
}

impl Header {
    /// A header with leap, version and mode set and all else zero.
    #[must_use]
    pub fn new(leap: Leap, version: Version, mode: Mode) -> Self {
        let leap_version_mode = (leap as u8) << 6 | version.0 << 3 | mode as u8;
        Self { leap_version_mode, ..Self::default() }
    }

    /// The leap indicator.
    #[must_use]
    pub const fn leap(&self) -> Leap {
        match self.leap_version_mode >> 6 {
            0 => Leap::None,
            1 => Leap::Insert,
            2 => Leap::Delete,
            _ => Leap::Unsynchronised,
        }
    }

    /// The version as sent, 0 to 7.
    #[must_use]
    pub const fn version_number(&self) -> u8 {
        self.leap_version_mode >> 3 & 7
    }

    /// The mode.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        Mode::from_low_bits(self.leap_version_mode)
    }

    /// The poll interval.
    #[must_use]
    pub const fn poll(&self) -> Log2Seconds {
        Log2Seconds(self.poll)
    }

    /// The precision of the sender's clock.
    #[must_use]
    pub const fn precision(&self) -> Log2Seconds {
        Log2Seconds(self.precision)
    }

    /// Total round-trip delay to the reference clock.
    #[must_use]
    pub fn root_delay(&self) -> NtpShort {
        NtpShort::from_bits(self.root_delay.get())
    }

    /// Total dispersion to the reference clock.
    #[must_use]
    pub fn root_dispersion(&self) -> NtpShort {
        NtpShort::from_bits(self.root_dispersion.get())
    }

    /// When the sender's clock was last set or corrected.
    #[must_use]
    pub fn reference_timestamp(&self) -> NtpTimestamp {
        NtpTimestamp::from_bits(self.reference_timestamp.get())
    }

    /// T1: in a reply, the request's transmit timestamp.
    #[must_use]
    pub fn origin_timestamp(&self) -> NtpTimestamp {
        NtpTimestamp::from_bits(self.origin_timestamp.get())
    }

    /// T2: when the request arrived.
    #[must_use]
    pub fn receive_timestamp(&self) -> NtpTimestamp {
        NtpTimestamp::from_bits(self.receive_timestamp.get())
    }

    /// T3: when this packet left.
    #[must_use]
    pub fn transmit_timestamp(&self) -> NtpTimestamp {
        NtpTimestamp::from_bits(self.transmit_timestamp.get())
    }

    /// Sets the poll interval.
    pub const fn set_poll(&mut self, poll: Log2Seconds) {
        self.poll = poll.0;
    }

    /// Sets the precision.
    pub const fn set_precision(&mut self, precision: Log2Seconds) {
        self.precision = precision.0;
    }

    /// Sets the root delay.
    pub fn set_root_delay(&mut self, delay: NtpShort) {
        self.root_delay = U32::new(delay.to_bits());
    }

    /// Sets the root dispersion.
    pub fn set_root_dispersion(&mut self, dispersion: NtpShort) {
        self.root_dispersion = U32::new(dispersion.to_bits());
    }

    /// Sets the reference timestamp.
    pub fn set_reference_timestamp(&mut self, timestamp: NtpTimestamp) {
        self.reference_timestamp = U64::new(timestamp.to_bits());
    }

    /// Sets the origin timestamp (T1).
    pub fn set_origin_timestamp(&mut self, timestamp: NtpTimestamp) {
        self.origin_timestamp = U64::new(timestamp.to_bits());
    }

    /// Sets the receive timestamp (T2).
    pub fn set_receive_timestamp(&mut self, timestamp: NtpTimestamp) {
        self.receive_timestamp = U64::new(timestamp.to_bits());
    }

    /// Sets the transmit timestamp (T3).
    pub fn set_transmit_timestamp(&mut self, timestamp: NtpTimestamp) {
        self.transmit_timestamp = U64::new(timestamp.to_bits());
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Header")
            .field("leap", &self.leap())
            .field("version", &self.version_number())
            .field("mode", &self.mode())
            .field("stratum", &self.stratum)
            .field("poll", &self.poll)
            .field("precision", &self.precision)
            .field("root_delay", &self.root_delay())
            .field("root_dispersion", &self.root_dispersion())
            .field("reference_id", &self.reference_id)
            .field("reference", &self.reference_timestamp())
            .field("origin", &self.origin_timestamp())
            .field("receive", &self.receive_timestamp())
            .field("transmit", &self.transmit_timestamp())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checklist 1.
    #[test]
    fn fields_lie_where_figure_8_puts_them() {
        let mut header = Header::new(Leap::Delete, Version::V4, Mode::Server);
        header.stratum = 2;
        header.set_poll(Log2Seconds(6));
        header.set_precision(Log2Seconds(-20));
        header.set_root_delay(NtpShort::from_bits(0x0102_0304));
        header.set_root_dispersion(NtpShort::from_bits(0x0506_0708));
        header.reference_id = ReferenceId(*b"GPS\0");
        header.set_reference_timestamp(NtpTimestamp::from_bits(0x1011_1213_1415_1617));
        header.set_origin_timestamp(NtpTimestamp::from_bits(0x2021_2223_2425_2627));
        header.set_receive_timestamp(NtpTimestamp::from_bits(0x3031_3233_3435_3637));
        header.set_transmit_timestamp(NtpTimestamp::from_bits(0x4041_4243_4445_4647));
        let expected = "a40206ec010203040506070847505300101112131415161720212223242526273031323334353637\
                        4041424344454647";
        let bytes: String = header.as_bytes().iter().map(|octet| format!("{octet:02x}")).collect();
        assert_eq!(bytes, expected);
        assert_eq!(transmit_timestamp_offset(), 40);
    }

    /// Checklist 5.
    #[test]
    fn reference_id_reads_as_text_or_address() {
        assert_eq!(ReferenceId(*b"GPS\0").to_string(), "GPS");
        assert_eq!(ReferenceId([127, 127, 1, 1]).to_string(), "127.127.1.1");
        assert_eq!(ReferenceId::default().to_string(), "0.0.0.0");
    }
}
