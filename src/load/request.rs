//! A request as a frame, made once and then only filled in.
//!
//! Owns: the template and its three variable fields: source address, source port, transmit timestamp. Does not own:
//! which client asks, and when.
//!
//! The one idea a newcomer lacks: the transmit timestamp of a request means nothing to a server, which only has to
//! send it back as the origin (RFC 5905 section 8; `draft-ietf-ntp-data-minimization` even wants it random). So it
//! carries the step's nonce and the request's number: the reply says itself which request it answers.

use super::clients::Clients;
use super::engine::Scene;
use crate::wire::Checksum;
use std::net::IpAddr;

const ETHERNET_LENGTH: usize = 14;
const IPV4_LENGTH: usize = 20;
const IPV6_LENGTH: usize = 40;
const UDP_LENGTH: usize = 8;
const NTP_LENGTH: usize = 48;
const PROTOCOL_UDP: u8 = 17;
const HOP_LIMIT: u8 = 64;
/// Leap 0, version 4, mode 3.
const FIRST_OCTET: u8 = 0x23;
/// Where the transmit timestamp lies in the NTP header.
const TRANSMIT: usize = 40;

/// The longest request frame.
pub const REQUEST_LENGTH_MAX: usize = ETHERNET_LENGTH + IPV6_LENGTH + UDP_LENGTH + NTP_LENGTH;

/// Request number `sequence` of the step with this nonce, as a transmit timestamp.
#[must_use]
pub const fn cookie(nonce: u32, sequence: u32) -> u64 {
    (nonce as u64) << 32 | sequence as u64
}

/// A request with nobody's source address (zeros), port 0 and transmit timestamp 0; its checksums are those sums
/// that are the same for every client.
#[derive(Clone, Debug)]
pub struct Template {
    bytes: Vec<u8>,
    clients: Clients,
    /// The IPv4 header without its source address; unused for IPv6.
    ip_sum: Checksum,
    /// Pseudo header and datagram without source address, source port and transmit timestamp.
    udp_sum: Checksum,
}

impl Template {
    /// The request of this scene.
    #[must_use]
    pub fn new(scene: &Scene) -> Self {
        let udp_length = (UDP_LENGTH + NTP_LENGTH) as u16;
        let mut bytes = Vec::with_capacity(REQUEST_LENGTH_MAX);
        bytes.extend(scene.target_mac);
        bytes.extend(scene.source_mac);
        let mut ip_sum = Checksum::new();
        let addresses = match scene.target {
            IpAddr::V4(target) => {
                bytes.extend(0x0800_u16.to_be_bytes());
                // Don't fragment; an atomic datagram needs no identification (RFC 6864 section 4.1).
                let mut header = [0; IPV4_LENGTH];
                header[0] = 0x45;
                header[2..4].copy_from_slice(&(udp_length + IPV4_LENGTH as u16).to_be_bytes());
                header[6] = 0x40;
                header[8] = HOP_LIMIT;
                header[9] = PROTOCOL_UDP;
                header[16..].copy_from_slice(&target.octets());
                ip_sum = ip_sum.add_bytes(&header);
                bytes.extend(header);
                Checksum::new().add_bytes(&target.octets())
            }
            IpAddr::V6(target) => {
                bytes.extend(0x86dd_u16.to_be_bytes());
                bytes.extend([0x60, 0, 0, 0]);
                bytes.extend(udp_length.to_be_bytes());
                bytes.extend([PROTOCOL_UDP, HOP_LIMIT]);
                bytes.extend([0; 16]);
                bytes.extend(target.octets());
                Checksum::new().add_bytes(&target.octets())
            }
        };
        let mut datagram = [0; UDP_LENGTH + NTP_LENGTH];
        datagram[2..4].copy_from_slice(&scene.port.to_be_bytes());
        datagram[4..6].copy_from_slice(&udp_length.to_be_bytes());
        datagram[UDP_LENGTH] = FIRST_OCTET;
        let udp_sum = addresses.add_word(u16::from(PROTOCOL_UDP)).add_word(udp_length).add_bytes(&datagram);
        bytes.extend(datagram);
        Self { bytes, clients: scene.clients, ip_sum, udp_sum }
    }

    /// The frame without its variable fields; IPv4 header checksum and UDP checksum are zero.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The sums of all that does not vary, for whoever fills the frame in elsewhere: (IPv4 header, UDP), folded to 16
    /// bits and not complemented.
    #[must_use]
    pub const fn sums(&self) -> (u16, u16) {
        (!self.ip_sum.finish(), !self.udp_sum.finish())
    }

    /// Writes request number `sequence` of the step with this nonce, and returns its length: that of
    /// [`Self::bytes`], or 0 where `frame` is shorter. The client is the one of that number.
    pub fn write(&self, frame: &mut [u8], nonce: u32, sequence: u32) -> usize {
        let Some(frame) = frame.get_mut(..self.bytes.len()) else { return 0 };
        frame.copy_from_slice(&self.bytes);
        let (source, port) = self.clients.get(u64::from(sequence));
        let transmit = cookie(nonce, sequence).to_be_bytes();
        let udp_sum = self.udp_sum.add_word(port).add_bytes(&transmit);
        let (udp_sum, udp) = match source {
            IpAddr::V4(source) => {
                let at = ETHERNET_LENGTH + 12;
                frame[at..at + 4].copy_from_slice(&source.octets());
                let checksum = self.ip_sum.add_bytes(&source.octets()).finish();
                frame[at - 2..at].copy_from_slice(&checksum.to_be_bytes());
                (udp_sum.add_bytes(&source.octets()), ETHERNET_LENGTH + IPV4_LENGTH)
            }
            IpAddr::V6(source) => {
                let at = ETHERNET_LENGTH + 8;
                frame[at..at + 16].copy_from_slice(&source.octets());
                (udp_sum.add_bytes(&source.octets()), ETHERNET_LENGTH + IPV6_LENGTH)
            }
        };
        frame[udp..udp + 2].copy_from_slice(&port.to_be_bytes());
        frame[udp + 6..udp + 8].copy_from_slice(&udp_sum.finish_udp().to_be_bytes());
        let at = udp + UDP_LENGTH + TRANSMIT;
        frame[at..at + 8].copy_from_slice(&transmit);
        frame.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::testing;
    use crate::wire::Frame;
    use proptest::prelude::*;

    proptest! {
        /// Read back by the server's parser, which verifies the IPv4 header, and summed as a whole.
        #[test]
        fn every_request_is_whole_and_its_clients_own(nonce: u32, sequence: u32, v6: bool) {
            let (target, sources) = if v6 { ("fd99:1::1", "fd99:2::/50") } else { ("10.99.1.1", "10.99.8.0/22") };
            let scene = testing::scene(target, sources, 70_000);
            let template = Template::new(&scene);
            let mut bytes = [0xaa; REQUEST_LENGTH_MAX];
            let length = template.write(&mut bytes, nonce, sequence);
            let bytes = &bytes[..length];
            let frame = Frame::parse(bytes).unwrap();
            prop_assert_eq!((frame.source, frame.source_port), scene.clients.get(sequence.into()));
            prop_assert_eq!((frame.destination, frame.destination_port), (scene.target, 123));
            let payload = &bytes[frame.payload()];
            prop_assert_eq!(payload.len(), 48);
            prop_assert_eq!(payload[0], 0x23);
            prop_assert_eq!(&payload[1..40], &[0; 39]);
            prop_assert_eq!(&payload[40..], cookie(nonce, sequence).to_be_bytes());
            let (addresses, udp) = if v6 { (22, 54) } else { (26, 34) };
            let sum = Checksum::new().add_bytes(&bytes[addresses..]).add_word(17).add_word((length - udp) as u16);
            prop_assert_eq!(sum.finish(), 0);
        }
    }
}
