//! An Ethernet frame that carries one UDP datagram, read in place and turned round in place.

use super::Malformed;
use super::checksum::{Checksum, updated_checksum};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

/// VLAN identifiers of a frame from the outside in; 0 where there is no tag.
pub type TagStack = [u16; 2];

/// TTL or hop limit of a reply: what the kernel's sockets send, so that both paths look alike.
pub const REPLY_HOP_LIMIT: u8 = 64;

const ETHERNET_LENGTH: usize = 14;
const TAG_LENGTH: usize = 4;
const IPV4_LENGTH: usize = 20;
const IPV6_LENGTH: usize = 40;
const UDP_LENGTH: usize = 8;
const PROTOCOL_UDP: u8 = 17;
const IPV4_DONT_FRAGMENT: u16 = 0x4000;
/// Without the reserved bit, which the kernel ignores too.
const IPV4_MORE_FRAGMENTS_OR_OFFSET: u16 = 0x3fff;

/// Where the parts of a frame lie, and who sent it to whom. Made by [`Frame::parse`] from the bytes that the
/// methods are then given again.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// The IP header's offset; the tags end there.
    ip: usize,
    /// The UDP header's offset.
    udp: usize,
    /// Octets of UDP payload.
    payload_length: usize,
    /// VLAN tags in the frame.
    pub tags: TagStack,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

impl Frame {
    /// Reads Ethernet, up to two VLAN tags, IPv4 or IPv6 without options, and UDP. The UDP checksum is not looked
    /// at: on veth it is unfinished, on a NIC the hardware has seen it. What follows the IP packet in the
    /// frame is padding and ignored.
    ///
    /// # Errors
    /// [`Malformed`], for what is not a whole UDP datagram as for what contradicts itself.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let truncated = |part, needed| Malformed::Truncated { part, needed, available: bytes.len() };
        let mut tags = [0; 2];
        let mut at = ETHERNET_LENGTH;
        let mut ethertype = word(bytes, 12).ok_or(truncated("Ethernet header", ETHERNET_LENGTH))?;
        for tag in &mut tags {
            if !matches!(ethertype, 0x8100 | 0x88a8) {
                break;
            }
            *tag = word(bytes, at).ok_or(truncated("VLAN tag", at + TAG_LENGTH))? & 0xfff;
            ethertype = word(bytes, at + 2).ok_or(truncated("VLAN tag", at + TAG_LENGTH))?;
            at += TAG_LENGTH;
        }
        let (udp, end, source, destination) = match ethertype {
            0x0800 => parse_ipv4(bytes, at)?,
            0x86dd => parse_ipv6(bytes, at)?,
            other => return Err(Malformed::NotIp(other)),
        };
        let header: [u8; UDP_LENGTH] = array(bytes, udp).ok_or(truncated("UDP header", udp + UDP_LENGTH))?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let available = end.saturating_sub(udp);
        if length < UDP_LENGTH || length > available {
            return Err(Malformed::Length { part: "UDP", length, available });
        }
        // A receiver must discard these (RFC 8200 section 8.1). One that is there cannot be trusted, see above, but
        // an unfinished one is never zero: it is the sum of the addresses.
        if source.is_ipv6() && header[6..8] == [0, 0] {
            return Err(Malformed::NoChecksum);
        }
        Ok(Self {
            ip: at,
            udp,
            payload_length: length - UDP_LENGTH,
            tags,
            source,
            destination,
            source_port: u16::from_be_bytes([header[0], header[1]]),
            destination_port: u16::from_be_bytes([header[2], header[3]]),
        })
    }

    /// Where the UDP payload lies in the frame.
    #[must_use]
    pub const fn payload(&self) -> Range<usize> {
        let start = self.udp + UDP_LENGTH;
        start..start + self.payload_length
    }

    /// Makes the frame the answer to itself: addresses and ports change places, the payload is what its first
    /// `payload_length` octets now hold (no more than were received), lengths and checksums are written.
    /// Tags stay: a reply leaves on the VLAN its request came from. Returns the frame's new length.
    ///
    /// `bytes` is what the frame was parsed from; a shorter slice is left alone and 0 returned.
    pub fn turn_round(&self, bytes: &mut [u8], payload_length: usize) -> usize {
        let payload_length = payload_length.min(self.payload_length);
        let end = self.udp + UDP_LENGTH + payload_length;
        let Some(bytes) = bytes.get_mut(..end) else { return 0 };
        let (destination_mac, rest) = bytes.split_at_mut(6);
        destination_mac.swap_with_slice(&mut rest[..6]);
        // Lengths fit: they are no longer than what came in 16-bit fields.
        let udp_length = (UDP_LENGTH + payload_length) as u16;
        let addresses = match self.source {
            IpAddr::V4(_) => turn_ipv4(&mut bytes[self.ip..self.udp], udp_length),
            IpAddr::V6(_) => turn_ipv6(&mut bytes[self.ip..self.udp], udp_length),
        };
        let udp = &mut bytes[self.udp..];
        udp[0..2].copy_from_slice(&self.destination_port.to_be_bytes());
        udp[2..4].copy_from_slice(&self.source_port.to_be_bytes());
        udp[4..6].copy_from_slice(&udp_length.to_be_bytes());
        udp[6..8].fill(0);
        let checksum =
            addresses.add_word(u16::from(PROTOCOL_UDP)).add_word(udp_length).add_bytes(udp).finish_udp();
        udp[6..8].copy_from_slice(&checksum.to_be_bytes());
        end
    }

    /// Mends the UDP checksum after eight octets of the payload, at an even offset in it, have changed.
    pub fn payload_changed(&self, bytes: &mut [u8], old: u64, new: u64) {
        if let Some(field) = bytes.get_mut(self.udp + 6..self.udp + 8) {
            let checksum = u16::from_be_bytes([field[0], field[1]]);
            field.copy_from_slice(&updated_checksum(checksum, old, new).to_be_bytes());
        }
    }
}

type Network = (usize, usize, IpAddr, IpAddr);

/// (offset of UDP, end of the IP packet, source, destination)
fn parse_ipv4(bytes: &[u8], at: usize) -> Result<Network, Malformed> {
    let available = bytes.len();
    let header: [u8; IPV4_LENGTH] = array(bytes, at).ok_or(Malformed::Truncated {
        part: "IPv4 header",
        needed: at + IPV4_LENGTH,
        available,
    })?;
    if header[0] >> 4 != 4 {
        return Err(Malformed::IpVersion(header[0] >> 4));
    }
    if header[0] != 0x45 {
        return Err(Malformed::IpOptions(header[0] & 0xf));
    }
    if u16::from_be_bytes([header[6], header[7]]) & IPV4_MORE_FRAGMENTS_OR_OFFSET != 0 {
        return Err(Malformed::Fragment);
    }
    if header[9] != PROTOCOL_UDP {
        return Err(Malformed::NotUdp(header[9]));
    }
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if at + length > available {
        return Err(Malformed::Length { part: "IPv4", length, available: available - at });
    }
    if Checksum::new().add_bytes(&header).finish() != 0 {
        return Err(Malformed::HeaderChecksum);
    }
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    Ok((at + IPV4_LENGTH, at + length, address(12).into(), address(16).into()))
}

fn parse_ipv6(bytes: &[u8], at: usize) -> Result<Network, Malformed> {
    let available = bytes.len();
    let header: &[u8; IPV6_LENGTH] = bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .ok_or(Malformed::Truncated { part: "IPv6 header", needed: at + IPV6_LENGTH, available })?;
    if header[0] >> 4 != 6 {
        return Err(Malformed::IpVersion(header[0] >> 4));
    }
    match header[6] {
        PROTOCOL_UDP => {}
        extension @ (0 | 43 | 50 | 51 | 60 | 135 | 139 | 140) => return Err(Malformed::IpOptions(extension)),
        44 => return Err(Malformed::Fragment),
        other => return Err(Malformed::NotUdp(other)),
    }
    let length = usize::from(u16::from_be_bytes([header[4], header[5]])) + IPV6_LENGTH;
    if at + length > available {
        return Err(Malformed::Length { part: "IPv6", length, available: available - at });
    }
    let address = |at: usize| -> Option<Ipv6Addr> { array::<16>(header, at).map(Ipv6Addr::from) };
    match (address(8), address(24)) {
        (Some(source), Some(destination)) => {
            Ok((at + IPV6_LENGTH, at + length, source.into(), destination.into()))
        }
        _ => Err(Malformed::IpVersion(6)),
    }
}

/// Returns the sum of the addresses for the pseudo header.
fn turn_ipv4(header: &mut [u8], udp_length: u16) -> Checksum {
    let (source, destination) = header[12..20].split_at_mut(4);
    source.swap_with_slice(destination);
    header[1] = 0;
    header[2..4].copy_from_slice(&(udp_length + IPV4_LENGTH as u16).to_be_bytes());
    // An atomic datagram needs no identification (RFC 6864 section 4.1).
    header[4..6].fill(0);
    header[6..8].copy_from_slice(&IPV4_DONT_FRAGMENT.to_be_bytes());
    header[8] = REPLY_HOP_LIMIT;
    header[10..12].fill(0);
    let checksum = Checksum::new().add_bytes(header).finish();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    Checksum::new().add_bytes(&header[12..20])
}

fn turn_ipv6(header: &mut [u8], udp_length: u16) -> Checksum {
    let (source, destination) = header[8..40].split_at_mut(16);
    source.swap_with_slice(destination);
    // Traffic class and flow label are the asker's, not ours.
    header[0..4].copy_from_slice(&[0x60, 0, 0, 0]);
    header[4..6].copy_from_slice(&udp_length.to_be_bytes());
    header[7] = REPLY_HOP_LIMIT;
    Checksum::new().add_bytes(&header[8..40])
}

/// Can a frame from the network honestly come from this address? The kernel refuses the others ("martians")
/// before a socket sees them; past the kernel, this is our duty.
#[must_use]
pub fn is_possible_source(address: IpAddr) -> bool {
    match address {
        // 0/8 (this network), 127/8, 224/4 (multicast) and 240/4 with the broadcast address.
        IpAddr::V4(address) => !matches!(address.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(address) => {
            let mapped_or_below = address.octets()[..10] == [0; 10];
            !(mapped_or_below || address.is_multicast())
        }
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
