//! Socket addresses in the kernel's layout.
//!
//! `sockaddr_in` and `sockaddr_in6` are taken apart octet by octet, so that no pointer is ever cast to a
//! structure that a shorter answer did not fill.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Room for the longer of the two.
const OCTETS: usize = size_of::<libc::sockaddr_in6>();

const IPV4_OCTETS: usize = size_of::<libc::sockaddr_in>();

/// A `sockaddr_in` or `sockaddr_in6` as the kernel reads and writes it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4))]
pub(super) struct RawAddress {
    octets: [u8; OCTETS],
    length: libc::socklen_t,
}

impl RawAddress {
    /// To be filled by the kernel.
    pub(super) const EMPTY: Self = Self { octets: [0; OCTETS], length: 0 };

    /// How many octets the kernel may write.
    pub(super) const CAPACITY: libc::socklen_t = OCTETS as libc::socklen_t;

    pub(super) const fn as_ptr(&self) -> *const libc::sockaddr {
        self.octets.as_ptr().cast()
    }

    /// For the kernel to write [`Self::CAPACITY`] octets at most.
    pub(super) const fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        self.octets.as_mut_ptr().cast()
    }

    /// How many octets are an address.
    pub(super) const fn length(&self) -> libc::socklen_t {
        self.length
    }

    /// After the kernel has written: how long it says the address is.
    pub(super) fn set_length(&mut self, length: libc::socklen_t) {
        self.length = length.min(Self::CAPACITY);
    }

    /// If it is an address with a scope, it is this one from now on.
    pub(super) fn correct_scope(&mut self, scope: u32) {
        if let Some(SocketAddr::V6(address)) = self.decode()
            && address.scope_id() != 0
        {
            *self =
                SocketAddr::from(SocketAddrV6::new(*address.ip(), address.port(), address.flowinfo(), scope))
                    .into();
        }
    }

    /// The address, if it is an IP address and whole.
    pub(super) fn decode(&self) -> Option<SocketAddr> {
        let octets = self.octets.get(..self.length as usize)?;
        let family = libc::c_int::from(u16::from_ne_bytes(*octets.first_chunk()?));
        let port = u16::from_be_bytes(*octets.get(2..)?.first_chunk()?);
        if family == libc::AF_INET {
            let address: [u8; 4] = *octets.get(4..)?.first_chunk()?;
            Some(SocketAddrV4::new(Ipv4Addr::from(address), port).into())
        } else if family == libc::AF_INET6 {
            let flow_information = u32::from_be_bytes(*octets.get(4..)?.first_chunk()?);
            let address: [u8; 16] = *octets.get(8..)?.first_chunk()?;
            let scope = u32::from_ne_bytes(*octets.get(24..)?.first_chunk()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(address), port, flow_information, scope).into())
        } else {
            None
        }
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> Self {
        let mut octets = [0; OCTETS];
        let (family, length) = match address {
            SocketAddr::V4(address) => {
                octets[4..8].copy_from_slice(&address.ip().octets());
                (libc::AF_INET, IPV4_OCTETS)
            }
            SocketAddr::V6(address) => {
                octets[4..8].copy_from_slice(&address.flowinfo().to_be_bytes());
                octets[8..24].copy_from_slice(&address.ip().octets());
                octets[24..28].copy_from_slice(&address.scope_id().to_ne_bytes());
                (libc::AF_INET6, OCTETS)
            }
        };
        octets[..2].copy_from_slice(&(family as libc::sa_family_t).to_ne_bytes());
        octets[2..4].copy_from_slice(&address.port().to_be_bytes());
        Self { octets, length: length as libc::socklen_t }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_with_a_scope_gets_another_one() {
        for (text, expected) in [
            ("[fe80::1%5]:123", "[fe80::1%7]:123"),
            ("[2001:db8::9]:40000", "[2001:db8::9]:40000"),
            ("192.0.2.7:123", "192.0.2.7:123"),
        ] {
            let mut raw = RawAddress::from(text.parse::<SocketAddr>().unwrap());
            raw.correct_scope(7);
            assert_eq!(raw.decode().unwrap().to_string(), expected);
        }
        let mut nothing = RawAddress::EMPTY;
        nothing.correct_scope(7);
        assert_eq!(nothing.decode(), None);
    }

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["192.0.2.7:123", "[fe80::1%5]:123", "[2001:db8::9]:40000"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddress::from(address).decode(), Some(address));
        }
    }

    #[test]
    fn a_shortened_or_foreign_address_is_none() {
        let mut raw = RawAddress::from("[fe80::1%5]:123".parse::<SocketAddr>().unwrap());
        raw.set_length(27);
        assert_eq!(raw.decode(), None);
        raw.set_length(0);
        assert_eq!(raw.decode(), None);
        raw.set_length(1000);
        raw.octets[..2].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
        assert_eq!(raw.decode(), None);
    }
}
