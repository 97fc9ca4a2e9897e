//! Frames to show the program: one valid request of every shape, and places in it to spoil.

use std::net::IpAddr;

pub(crate) const TPID_Q: u16 = 0x8100;
pub(crate) const TPID_AD: u16 = 0x88a8;
pub(crate) const ETHERNET: usize = 14;

/// Where things are from the start of the IP header.
#[derive(Clone, Copy)]
pub(crate) struct Places {
    /// The field with the IP length: total (IPv4) or payload (IPv6).
    pub(crate) length: usize,
    pub(crate) protocol: usize,
    pub(crate) udp: usize,
    pub(crate) ntp: usize,
}

pub(crate) const V4: Places = Places { length: 2, protocol: 9, udp: 20, ntp: 28 };
pub(crate) const V6: Places = Places { length: 4, protocol: 6, udp: 40, ntp: 48 };

/// A frame and where its IP header starts, with edits that read like the table they are used in.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ip: usize,
    v6: bool,
}

impl Frame {
    /// A version 4, mode 3 request of `length` bytes of NTP from port 40000 to port 123.
    pub(crate) fn request(source: &str, destination: &str, tags: &[(u16, u16)], length: usize) -> Self {
        let source: IpAddr = source.parse().unwrap();
        let destination: IpAddr = destination.parse().unwrap();
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for (tpid, tci) in tags {
            bytes.extend(tpid.to_be_bytes());
            bytes.extend(tci.to_be_bytes());
        }
        let udp_length = u16::try_from(8 + length).unwrap();
        let ip = bytes.len() + 2;
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.extend([0x08, 0x00, 0x45, 0]);
                bytes.extend((20 + udp_length).to_be_bytes());
                bytes.extend([0, 0, 0, 0, 64, 17, 0, 0]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                bytes.extend(udp_length.to_be_bytes());
                bytes.extend([17, 64]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
            }
            _ => panic!("one address family per frame"),
        }
        bytes.extend(40000u16.to_be_bytes());
        bytes.extend(123u16.to_be_bytes());
        bytes.extend(udp_length.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.push(4 << 3 | 3);
        bytes.resize(bytes.len() + length - 1, 0xa5);
        Self { bytes, ip, v6: source.is_ipv6() }
    }

    pub(crate) fn places(&self) -> Places {
        if self.v6 { V6 } else { V4 }
    }

    /// Overwrites bytes from `offset` of the IP header.
    pub(crate) fn with(mut self, offset: usize, bytes: &[u8]) -> Self {
        let start = self.ip + offset;
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Overwrites bytes from `offset` of the frame.
    pub(crate) fn with_link(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Adds to the 16-bit number at `offset` of the IP header.
    pub(crate) fn add(self, offset: usize, amount: i16) -> Self {
        let start = self.ip + offset;
        let number = u16::from_be_bytes([self.bytes[start], self.bytes[start + 1]]);
        self.with(offset, &number.wrapping_add_signed(amount).to_be_bytes())
    }

    /// Adds to what IP and UDP both say about their length.
    pub(crate) fn add_to_lengths(self, amount: i16) -> Self {
        let Places { length, udp, .. } = self.places();
        self.add(length, amount).add(udp + 4, amount)
    }

    pub(crate) fn with_first_ntp_byte(self, byte: u8) -> Self {
        let ntp = self.places().ntp;
        self.with(ntp, &[byte])
    }

    /// Cuts the frame, or pads it with zeros.
    pub(crate) fn resized(mut self, length: usize) -> Self {
        self.bytes.resize(length, 0);
        self
    }

    pub(crate) fn length(&self) -> usize {
        self.bytes.len()
    }
}
