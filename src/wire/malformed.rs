//! Why bytes are not what they should be.

use thiserror::Error;

/// Why bytes could not be read as what was asked for. Each carries the number that was wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Malformed {
    /// The bytes end before the named part does.
    #[error("{part} needs {needed} octets, {available} are there")]
    Truncated {
        /// Which part.
        part: &'static str,
        /// How many octets it needs.
        needed: usize,
        /// How many there are.
        available: usize,
    },
    /// Neither IPv4 nor IPv6 below at most two VLAN tags.
    #[error("ethertype {0:#06x} is not IP")]
    NotIp(u16),
    /// The version field of the IP header contradicts the ethertype.
    #[error("IP version {0} contradicts the ethertype")]
    IpVersion(u8),
    /// IPv4 options or an IPv6 extension header: nothing we answer has them.
    #[error("IP options or extension headers (first: {0})")]
    IpOptions(u8),
    /// A fragment of a datagram.
    #[error("a fragment")]
    Fragment,
    /// Another transport protocol.
    #[error("IP protocol {0} is not UDP")]
    NotUdp(u8),
    /// The lengths of IP and UDP contradict each other or the frame.
    #[error("{part} length {length} does not fit into {available} octets")]
    Length {
        /// Whose length field.
        part: &'static str,
        /// What it says.
        length: usize,
        /// What there is room for.
        available: usize,
    },
    /// The IPv4 header's checksum does not hold.
    #[error("IPv4 header checksum")]
    HeaderChecksum,
    /// IPv6 without a UDP checksum (RFC 8200 section 8.1).
    #[error("UDP over IPv6 without checksum")]
    NoChecksum,
    /// NTP version 0 or above 4.
    #[error("NTP version {0}")]
    Version(u8),
    /// An extension field whose length is below 16, no multiple of 4, or longer than what is left.
    #[error("extension field of {length} octets with {available} left")]
    ExtensionLength {
        /// What its length field says.
        length: usize,
        /// How many octets are left.
        available: usize,
    },
    /// What follows the header and the extension fields can be neither a field nor a MAC.
    #[error("{0} octets after the header are neither extension field nor MAC")]
    Trailer(usize),
}
