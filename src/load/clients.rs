//! Simulated clients: a number becomes an address and a port, and back.
//!
//! Owns: that mapping. Does not own: frames (`request`).
//!
//! The one idea a newcomer lacks: no table of clients exists, so ten million cost no more than one. The mapping is
//! plain arithmetic that the XDP program of the kernel engine does too. Neighbouring clients differ in address first:
//! a server that limits by address sees as many as there are. An IPv6 client has a /64 of its own where the prefix
//! has room for that, because servers judge IPv6 clients by their /64.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The first port of a client. Below are the ports of services, which some servers refuse.
pub const FIRST_PORT: u16 = 1024;

/// How many ports each address has.
pub const PORTS: u64 = 65536 - FIRST_PORT as u64;

/// Where an IPv6 address counts from: the 64-bit half that differs between clients.
const UPPER: u32 = 64;

impl DoNotFit {
    /// How many would fit.
    #[must_use]
    pub const fn room(&self) -> u64 {
        self.room
    }
}

/// Some clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clients {
    /// The first client's address.
    first: IpAddr,
    /// How many clients.
    count: u64,
    /// How many different addresses they have.
    addresses: u64,
    /// How far an IPv6 address is shifted: the addresses are `first + (index << shift)`.
    shift: u32,
}

/// Clients that do not fit into their prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{count} clients do not fit into {prefix}: it has room for {room}")]
pub struct DoNotFit {
    count: u64,
    prefix: IpNet,
    room: u64,
}

impl Clients {
    /// `count` clients in `prefix`. The first address of an IPv4 prefix, which stands for the subnet, and the last,
    /// its broadcast address, are nobody's.
    ///
    /// # Errors
    /// [`DoNotFit`], also for no clients at all.
    pub fn new(prefix: IpNet, count: u64) -> Result<Self, DoNotFit> {
        let bits = u32::from(prefix.max_prefix_len() - prefix.prefix_len());
        let (first, addresses, shift) = match prefix {
            // A single address is given as it is, and a pair has no broadcast address (RFC 3021).
            IpNet::V4(prefix) if bits <= 1 => (IpAddr::V4(prefix.addr()), 1, 0),
            IpNet::V4(prefix) => (next_v4(prefix.network()).into(), (1 << bits) - 2, 0),
            IpNet::V6(prefix) if bits == 0 => (IpAddr::V6(prefix.addr()), 1, 0),
            IpNet::V6(prefix) if bits > UPPER => {
                (next_v6(prefix.network()).into(), power(bits - UPPER), UPPER)
            }
            IpNet::V6(prefix) => (next_v6(prefix.network()).into(), power(bits) - 1, 0),
        };
        let room = addresses.saturating_mul(PORTS);
        if count == 0 || count > room {
            return Err(DoNotFit { count, prefix, room });
        }
        Ok(Self { first, count, addresses: addresses.min(count), shift })
    }

    /// How many.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// How many different addresses.
    #[must_use]
    pub const fn addresses(&self) -> u64 {
        self.addresses
    }

    /// The first address.
    #[must_use]
    pub const fn first(&self) -> IpAddr {
        self.first
    }

    /// The exponent of the step between IPv6 addresses: 0 or 64.
    #[must_use]
    pub const fn shift(&self) -> u32 {
        self.shift
    }

    /// Whether one of them has this address.
    #[must_use]
    pub fn contain(&self, address: IpAddr) -> bool {
        let distance = match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                u128::from(address.to_bits().wrapping_sub(first.to_bits()))
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => address.to_bits().wrapping_sub(first.to_bits()),
            _ => return false,
        };
        let step = distance >> self.shift;
        step << self.shift == distance && step < u128::from(self.addresses)
    }

    /// Client number `index` modulo the count: its address and port.
    #[must_use]
    pub fn get(&self, index: u64) -> (IpAddr, u16) {
        let index = index % self.count;
        let (step, port) = (index % self.addresses, index / self.addresses);
        let address = match self.first {
            // The prefix has room, so neither sum wraps.
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + step as u32).into(),
            IpAddr::V6(first) => {
                Ipv6Addr::from_bits(first.to_bits() + (u128::from(step) << self.shift)).into()
            }
        };
        (address, FIRST_PORT + port as u16)
    }
}

fn power(bits: u32) -> u64 {
    1_u64.checked_shl(bits).unwrap_or(u64::MAX)
}

fn next_v4(network: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(network.to_bits() + 1)
}

fn next_v6(network: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(network.to_bits() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn clients(prefix: &str, count: u64) -> Result<Clients, DoNotFit> {
        Clients::new(prefix.parse().unwrap(), count)
    }

    #[test]
    fn one_address_has_all_its_ports() {
        let all = clients("10.99.1.2/32", PORTS).unwrap();
        assert_eq!(all.addresses(), 1);
        assert_eq!(all.get(0), ("10.99.1.2".parse().unwrap(), 1024));
        assert_eq!(all.get(PORTS - 1), ("10.99.1.2".parse().unwrap(), 65535));
        assert_eq!(all.get(PORTS), all.get(0));
        let error = clients("10.99.1.2/32", PORTS + 1).unwrap_err();
        assert_eq!(error.to_string(), "64513 clients do not fit into 10.99.1.2/32: it has room for 64512");
        assert!(clients("10.99.1.2/32", 0).is_err());
    }

    #[test]
    fn every_client_is_another_and_inside_the_prefix() {
        for (prefix, count) in
            [("10.99.8.0/29", 20), ("fd99:8::/33", 5000), ("fd99:8::/125", 40), ("10.99.8.4/31", 9)]
        {
            let net: IpNet = prefix.parse().unwrap();
            let all = clients(prefix, count).unwrap();
            let seen: HashSet<_> = (0..count).map(|index| all.get(index)).collect();
            assert_eq!(seen.len() as u64, count, "{prefix}");
            for (address, _) in &seen {
                assert!(net.contains(address), "{address} in {prefix}");
                if let IpNet::V4(net) = net
                    && net.prefix_len() < 31
                {
                    assert!(*address != net.network() && *address != net.broadcast(), "{address}");
                }
            }
            let addresses: HashSet<_> = seen.iter().map(|client| client.0).collect();
            assert_eq!(addresses.len() as u64, all.addresses());
            for address in net.hosts().take(300).chain([net.network(), net.broadcast()]) {
                assert_eq!(all.contain(address), addresses.contains(&address), "{address}");
            }
        }
    }

    #[test]
    fn ten_million_ipv6_clients_have_a_64_each() {
        let all = clients("fd99:8000::/20", 10_000_000).unwrap();
        assert_eq!((all.addresses(), all.shift()), (10_000_000, 64));
        assert_eq!(all.get(1).0, "fd99:8000:0:1::1".parse::<IpAddr>().unwrap());
    }
}
