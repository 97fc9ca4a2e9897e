//! An Ethernet frame that carries one UDP datagram, read in place and turned round in place.

use super::Malformed;
use super::checksum::{Checksum, updated_checksum};
use std::mem;
use std::net::IpAddr;
use std::ops::Range;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

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
/// What is the same in every reply's IPv4 header: version and length, flags, hop limit and protocol.
const IPV4_REPLY_SUM: u16 =
    0x4500 + IPV4_DONT_FRAGMENT + ((REPLY_HOP_LIMIT as u16) << 8) + PROTOCOL_UDP as u16;
/// Without the reserved bit, which the kernel ignores too.
const IPV4_MORE_FRAGMENTS_OR_OFFSET: u16 = 0x3fff;

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct Ipv4Header {
    fixed: [u8; 12],
    source: [u8; 4],
    destination: [u8; 4],
}
const _: () = assert!(size_of::<Ipv4Header>() == IPV4_LENGTH);

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct Ipv6Header {
    fixed: [u8; 8],
    source: [u8; 16],
    destination: [u8; 16],
}
const _: () = assert!(size_of::<Ipv6Header>() == IPV6_LENGTH);

/// Where the parts of a frame lie: all that it takes to answer it.
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    /// The IP header's offset; the tags end there.
    ip: u8,
    /// The UDP header's offset, at most 14 + 2 * 4 + 40.
    udp: u8,
    /// Octets of UDP payload.
    payload_length: u16,
}

impl Datagram {
    /// Where the UDP payload lies in the frame.
    #[must_use]
    pub const fn payload(self) -> Range<usize> {
        let start = self.udp as usize + UDP_LENGTH;
        start..start + self.payload_length as usize
    }

    /// Makes the frame the answer to itself: addresses and ports change places, the payload is what its first
    /// `payload_length` octets now hold (no more than were received), lengths and checksums are written.
    /// Tags stay: a reply leaves on the VLAN its request came from. Returns the frame's new length.
    ///
    /// `bytes` is what the frame was parsed from; a shorter slice is left alone and 0 returned.
    #[inline]
    pub fn turn_round(self, bytes: &mut [u8], payload_length: usize) -> usize {
        let payload_length = payload_length.min(self.payload_length.into());
        let end = usize::from(self.udp) + UDP_LENGTH + payload_length;
        self.turn(bytes, end).map_or(0, |()| end)
    }

    /// `None`, before anything is changed, if there are fewer than `end` octets.
    #[inline]
    fn turn(self, bytes: &mut [u8], end: usize) -> Option<()> {
        let (ethernet, network) = bytes.get_mut(..end)?.split_at_mut_checked(self.ip.into())?;
        let (network, transport) = network.split_at_mut_checked(usize::from(self.udp - self.ip))?;
        let (udp, payload) = transport.split_first_chunk_mut::<UDP_LENGTH>()?;
        let (destination_mac, rest) = ethernet.split_first_chunk_mut::<6>()?;
        let source_mac = rest.first_chunk_mut()?;
        // The length fits: it is no longer than what came in a 16-bit field.
        let udp_length = (UDP_LENGTH + payload.len()) as u16;
        let addresses = match network.len() {
            IPV4_LENGTH => turn_ipv4(Ipv4Header::mut_from_bytes(network).ok()?, udp_length),
            _ => turn_ipv6(Ipv6Header::mut_from_bytes(network).ok()?, udp_length),
        };
        mem::swap(destination_mac, source_mac);
        let [a, b, c, d, ..] = *udp;
        // Summed from here and not from where it is about to be written: a read right behind narrower writes has to
        // wait for them.
        let ports = Checksum::new().add_word(word(a, b)).add_word(word(c, d));
        let [e, f] = udp_length.to_be_bytes();
        let sum =
            addresses.add(ports).add_word(u16::from(PROTOCOL_UDP)).add_word(udp_length).add_word(udp_length);
        let [g, h] = sum.add_bytes(payload).finish_udp().to_be_bytes();
        *udp = [c, d, a, b, e, f, g, h];
        Some(())
    }

    /// Mends the UDP checksum after eight octets of the payload, at an even offset in it, have changed.
    #[inline]
    pub fn payload_changed(self, bytes: &mut [u8], old: u64, new: u64) {
        let field = usize::from(self.udp) + 6;
        if let Some(field) = bytes.get_mut(field..).and_then(<[u8]>::first_chunk_mut) {
            *field = updated_checksum(u16::from_be_bytes(*field), old, new).to_be_bytes();
        }
    }

    /// Mends the UDP checksum after octets of the payload that were zero have been filled. `range` starts at an even
    /// offset in the payload.
    #[cold]
    pub fn payload_filled(self, bytes: &mut [u8], range: Range<usize>) {
        let payload = usize::from(self.udp) + UDP_LENGTH;
        let Some((headers, payload)) = bytes.split_at_mut_checked(payload) else { return };
        let (Some(field), Some(filled)) = (
            headers.get_mut(usize::from(self.udp) + 6..).and_then(<[u8]>::first_chunk_mut),
            payload.get(range),
        ) else {
            return;
        };
        let sum = Checksum::new().add_word(!u16::from_be_bytes(*field)).add_bytes(filled);
        *field = sum.finish_udp().to_be_bytes();
    }
}

/// Where the parts of a frame lie, and who sent it to whom. Made by [`Frame::parse`] from the bytes that the
/// methods are then given again.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Where the parts lie.
    pub datagram: Datagram,
    /// VLAN tags in the frame.
    pub tags: TagStack,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
}

/// The header at `at`.
fn part<T: FromBytes + KnownLayout + Immutable + Unaligned>(bytes: &[u8], at: usize) -> Option<&T> {
    bytes.get(at..).and_then(|rest| T::ref_from_prefix(rest).ok()).map(|(header, _)| header)
}

const fn word(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high, low])
}

impl Frame {
    /// Reads Ethernet, up to two VLAN tags, IPv4 or IPv6 without options, and UDP. The UDP checksum is not looked
    /// at: on veth it is unfinished, on a NIC the hardware has seen it. What follows the IP packet in the
    /// frame is padding and ignored.
    ///
    /// # Errors
    /// [`Malformed`], for what is not a whole UDP datagram as for what contradicts itself.
    // Inlined, the errors that a caller throws away are never built: a third of the instructions.
    #[inline(always)]
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let truncated = |part, needed| Malformed::Truncated { part, needed, available: bytes.len() };
        let ethernet: &[u8; ETHERNET_LENGTH] =
            part(bytes, 0).ok_or(truncated("Ethernet header", ETHERNET_LENGTH))?;
        let (mut tags, mut at) = ([0; 2], ETHERNET_LENGTH);
        let mut ethertype = word(ethernet[12], ethernet[13]);
        for tag in &mut tags {
            if !matches!(ethertype, 0x8100 | 0x88a8) {
                break;
            }
            let next: &[u8; TAG_LENGTH] = part(bytes, at).ok_or(truncated("VLAN tag", at + TAG_LENGTH))?;
            *tag = word(next[0], next[1]) & 0xfff;
            ethertype = word(next[2], next[3]);
            at += TAG_LENGTH;
        }
        match ethertype {
            0x0800 => {
                let (header, end) = read_ipv4(bytes, at)?;
                let udp = read_udp(bytes, at, at + IPV4_LENGTH, end)?;
                Ok(udp.within(tags, header.source.into(), header.destination.into()))
            }
            0x86dd => {
                let (header, end) = read_ipv6(bytes, at)?;
                let udp = read_udp(bytes, at, at + IPV6_LENGTH, end)?;
                // A receiver must discard these (RFC 8200 section 8.1). One that is there cannot be trusted, see above,
                // but an unfinished one is never zero: it is the sum of the addresses.
                if udp.checksum == [0, 0] {
                    return Err(Malformed::NoChecksum);
                }
                Ok(udp.within(tags, header.source.into(), header.destination.into()))
            }
            other => Err(Malformed::NotIp(other)),
        }
    }

    /// Where the UDP payload lies in the frame.
    #[must_use]
    pub const fn payload(&self) -> Range<usize> {
        self.datagram.payload()
    }

    /// [`Datagram::turn_round`].
    pub fn turn_round(&self, bytes: &mut [u8], payload_length: usize) -> usize {
        self.datagram.turn_round(bytes, payload_length)
    }
}

/// The header, and where the IP packet ends.
#[inline(always)]
fn read_ipv4(bytes: &[u8], at: usize) -> Result<(&Ipv4Header, usize), Malformed> {
    let available = bytes.len();
    let truncated = Malformed::Truncated { part: "IPv4 header", needed: at + IPV4_LENGTH, available };
    let header: &Ipv4Header = part(bytes, at).ok_or(truncated)?;
    let fixed = &header.fixed;
    if fixed[0] >> 4 != 4 {
        return Err(Malformed::IpVersion(fixed[0] >> 4));
    }
    if fixed[0] != 0x45 {
        return Err(Malformed::IpOptions(fixed[0] & 0xf));
    }
    if word(fixed[6], fixed[7]) & IPV4_MORE_FRAGMENTS_OR_OFFSET != 0 {
        return Err(Malformed::Fragment);
    }
    if fixed[9] != PROTOCOL_UDP {
        return Err(Malformed::NotUdp(fixed[9]));
    }
    let length = usize::from(word(fixed[2], fixed[3]));
    if at + length > available {
        return Err(Malformed::Length { part: "IPv4", length, available: available - at });
    }
    if Checksum::new().add_bytes(header.as_bytes()).finish() != 0 {
        return Err(Malformed::HeaderChecksum);
    }
    Ok((header, at + length))
}

/// The header, and where the IP packet ends.
#[inline(always)]
fn read_ipv6(bytes: &[u8], at: usize) -> Result<(&Ipv6Header, usize), Malformed> {
    let available = bytes.len();
    let truncated = Malformed::Truncated { part: "IPv6 header", needed: at + IPV6_LENGTH, available };
    let header: &Ipv6Header = part(bytes, at).ok_or(truncated)?;
    let fixed = &header.fixed;
    if fixed[0] >> 4 != 6 {
        return Err(Malformed::IpVersion(fixed[0] >> 4));
    }
    match fixed[6] {
        PROTOCOL_UDP => {}
        extension @ (0 | 43 | 50 | 51 | 60 | 135 | 139 | 140) => return Err(Malformed::IpOptions(extension)),
        44 => return Err(Malformed::Fragment),
        other => return Err(Malformed::NotUdp(other)),
    }
    let length = usize::from(word(fixed[4], fixed[5])) + IPV6_LENGTH;
    if at + length > available {
        return Err(Malformed::Length { part: "IPv6", length, available: available - at });
    }
    Ok((header, at + length))
}

/// The UDP header at `at` in an IP packet from `ip` to `end`.
#[inline(always)]
fn read_udp(bytes: &[u8], ip: usize, at: usize, end: usize) -> Result<Udp, Malformed> {
    let truncated =
        Malformed::Truncated { part: "UDP header", needed: at + UDP_LENGTH, available: bytes.len() };
    let &[a, b, c, d, e, f, g, h] = part(bytes, at).ok_or(truncated)?;
    let (length, available) = (usize::from(word(e, f)), end.saturating_sub(at));
    if length < UDP_LENGTH || length > available {
        return Err(Malformed::Length { part: "UDP", length, available });
    }
    // They fit: see the fields, and the length came in 16 bits.
    let datagram = Datagram { ip: ip as u8, udp: at as u8, payload_length: (length - UDP_LENGTH) as u16 };
    Ok(Udp { datagram, source_port: word(a, b), destination_port: word(c, d), checksum: [g, h] })
}

/// A UDP header, read.
struct Udp {
    datagram: Datagram,
    source_port: u16,
    destination_port: u16,
    checksum: [u8; 2],
}

impl Udp {
    /// In its frame.
    #[inline(always)]
    fn within(self, tags: TagStack, source: IpAddr, destination: IpAddr) -> Frame {
        let Self { datagram, source_port, destination_port, .. } = self;
        Frame { datagram, tags, source_port, destination_port, source, destination }
    }
}

/// Returns the sum of the addresses for the pseudo header.
fn turn_ipv4(header: &mut Ipv4Header, udp_length: u16) -> Checksum {
    let addresses = Checksum::new().add_bytes(&header.source).add_bytes(&header.destination);
    mem::swap(&mut header.source, &mut header.destination);
    let length = udp_length + IPV4_LENGTH as u16;
    let checksum = addresses.add_word(IPV4_REPLY_SUM).add_word(length).finish();
    let [length, fragment, checksum] = [length, IPV4_DONT_FRAGMENT, checksum].map(u16::to_be_bytes);
    let fixed = &mut header.fixed;
    // No type of service, and no identification: an atomic datagram needs none (RFC 6864 section 4.1).
    *fixed = [0x45, 0, 0, 0, 0, 0, 0, 0, REPLY_HOP_LIMIT, PROTOCOL_UDP, 0, 0];
    fixed[2..4].copy_from_slice(&length);
    fixed[6..8].copy_from_slice(&fragment);
    fixed[10..12].copy_from_slice(&checksum);
    addresses
}

fn turn_ipv6(header: &mut Ipv6Header, udp_length: u16) -> Checksum {
    let addresses = Checksum::new().add_bytes(&header.source).add_bytes(&header.destination);
    mem::swap(&mut header.source, &mut header.destination);
    let [high, low] = udp_length.to_be_bytes();
    // Traffic class and flow label are the asker's, not ours.
    header.fixed = [0x60, 0, 0, 0, high, low, PROTOCOL_UDP, REPLY_HOP_LIMIT];
    addresses
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
