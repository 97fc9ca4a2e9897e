//! Whom a load test may hit, and in whose name.
//!
//! Owns: the ranges of addresses, for targets and for the clients' addresses alike. Does not own: the flag that says
//! "this target is mine".
//!
//! The one idea a newcomer lacks: a load generator that invents source addresses is an attack in the wrong hands, and
//! a typing mistake puts it there. What can only be one's own network is allowed; everything else takes a flag; what
//! reaches many at once is never allowed.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Nobody reaches these from outside, so whoever does is inside: private (RFC 1918), shared (RFC 6598) and link-local
/// (RFC 3927).
const OWN_V4: [Ipv4Net; 5] =
    [v4(10, 0, 8), v4(172, 16, 12), v4(192, 168, 16), v4(100, 64, 10), v4(169, 254, 16)];

/// Unique local (RFC 4193) and link-local.
const OWN_V6: [Ipv6Net; 2] = [v6([0xfc00; 1], 7), v6([0xfe80; 1], 10)];

/// No packet on a wire has one of these (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3).
const LOOPBACK: [IpNet; 2] = [IpNet::V4(v4(127, 0, 8)), IpNet::V6(v6([0, 0, 0, 0, 0, 0, 0, 1], 128))];

/// Unspecified, multicast and broadcast.
const NOBODY_V4: [Ipv4Net; 3] = [v4(0, 0, 8), v4(224, 0, 4), Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32)];

const NOBODY_V6: [Ipv6Net; 2] = [v6([0; 8], 128), v6([0xff00; 1], 8)];

/// IPv4 addresses in IPv6 clothes (RFC 4291 section 2.5.5): no packet on a wire has one.
const MAPPED: Ipv6Net = v6([0, 0, 0, 0, 0, 0xffff], 96);

/// The first two octets, then zeros.
const fn v4(first: u8, second: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(first, second, 0, 0), length)
}

/// The given 16-bit groups, then zeros.
const fn v6<const N: usize>(groups: [u16; N], length: u8) -> Ipv6Net {
    let mut bits = 0;
    let mut index = 0;
    while index < N {
        bits |= (groups[index] as u128) << (112 - 16 * index);
        index += 1;
    }
    Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), length)
}

/// What a prefix (an address is one of full length) is to a load test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// All of it lies in ranges that are nobody else's.
    Own,
    /// Some of it may be somebody's on the Internet.
    Foreign,
    /// Some of it is loopback, which every machine has for itself.
    Loopback,
    /// Some of it is no single machine's address, for this reason.
    Nobody(&'static str),
}

impl Scope {
    /// The scope of this prefix.
    #[must_use]
    pub fn of(prefix: IpNet) -> Self {
        match prefix {
            IpNet::V4(prefix) if NOBODY_V4.iter().any(|nobody| overlap((*nobody).into(), prefix.into())) => {
                Self::Nobody("unspecified, multicast or broadcast")
            }
            IpNet::V6(prefix) if NOBODY_V6.iter().any(|nobody| overlap((*nobody).into(), prefix.into())) => {
                Self::Nobody("unspecified or multicast")
            }
            IpNet::V6(prefix) if overlap(MAPPED.into(), prefix.into()) => {
                Self::Nobody("IPv4-mapped (write the IPv4 address)")
            }
            prefix if LOOPBACK.iter().any(|loopback| overlap(*loopback, prefix)) => Self::Loopback,
            IpNet::V4(prefix) if OWN_V4.iter().any(|own| own.contains(&prefix)) => Self::Own,
            IpNet::V6(prefix) if OWN_V6.iter().any(|own| own.contains(&prefix)) => Self::Own,
            _ => Self::Foreign,
        }
    }
}

/// Two prefixes overlap exactly if one contains the other.
fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn scope(text: &str) -> Scope {
        let prefix = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        Scope::of(prefix.unwrap())
    }

    #[test]
    fn own_ranges_end_where_their_rfcs_say() {
        let own = [
            "10.0.0.0",
            "10.255.255.255",
            "172.16.0.0",
            "172.31.255.255",
            "192.168.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "169.254.1.1",
            "fc00::",
            "fdff:ffff::1",
            "fe80::1",
            "febf::1",
            "10.0.0.0/8",
            "fd99::/20",
        ];
        for text in own {
            assert_eq!(scope(text), Scope::Own, "{text}");
        }
        let foreign = [
            "9.255.255.255",
            "11.0.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "8.8.8.8",
            "::2",
            "fbff::1",
            "fe00::1",
            "fec0::1",
            "2001:db8::1",
            "::10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "10.0.0.0/7",
            "240.0.0.1",
        ];
        for text in foreign {
            assert_eq!(scope(text), Scope::Foreign, "{text}");
        }
        let nobody = [
            "0.0.0.0",
            "0.1.2.3",
            "224.0.1.1",
            "239.255.255.255",
            "255.255.255.255",
            "::",
            "ff02::101",
            "::ffff:10.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:0:0/100",
            "0.0.0.0/0",
            "::/0",
            "::/64",
            "fc00::/6",
            "192.0.0.0/2",
        ];
        for text in nobody {
            assert!(matches!(scope(text), Scope::Nobody(_)), "{text}");
        }
        for text in ["127.0.0.1", "127.255.255.255", "127.0.0.0/8", "127.1.0.0/16", "126.0.0.0/7", "::1"] {
            assert_eq!(scope(text), Scope::Loopback, "{text}");
        }
    }

    proptest! {
        /// The standard library's predicates, written by other people, are the oracle.
        #[test]
        fn agrees_with_the_standard_library(bits: u32, low: u128, prefix in 0..5_usize) {
            let address = Ipv4Addr::from_bits(bits);
            let own = address.is_private() || address.is_link_local()
                || (bits >> 22 == 0x6440_0000 >> 22);
            prop_assert_eq!(Scope::of(IpAddr::V4(address).into()) == Scope::Own, own);
            let nobody = address.octets()[0] == 0 || address.is_multicast() || address.is_broadcast();
            prop_assert_eq!(matches!(Scope::of(IpAddr::V4(address).into()), Scope::Nobody(_)), nobody);
            prop_assert_eq!(Scope::of(IpAddr::V4(address).into()) == Scope::Loopback, address.is_loopback());

            let top = [0xfc_u128 << 120, 0xfe80 << 112, 0xff << 120, 0xffff << 32, 0x2 << 124][prefix];
            let low = if prefix == 3 { low >> 96 } else { low >> 16 };
            let address = Ipv6Addr::from_bits(top | low);
            let own = address.is_unique_local() || address.is_unicast_link_local();
            prop_assert_eq!(Scope::of(IpAddr::V6(address).into()) == Scope::Own, own);
            let nobody = address.is_multicast() || address.to_ipv4_mapped().is_some();
            prop_assert_eq!(matches!(Scope::of(IpAddr::V6(address).into()), Scope::Nobody(_)), nobody);
        }

        /// A prefix is never milder than an address in it.
        #[test]
        fn a_prefix_is_as_bad_as_its_worst_address(bits: u32, length in 0..=32_u8, host: u32) {
            let prefix = Ipv4Net::new(Ipv4Addr::from_bits(bits), length).unwrap().trunc();
            let inside = Ipv4Addr::from_bits(prefix.network().to_bits() | host & prefix.hostmask().to_bits());
            let (whole, one) = (Scope::of(prefix.into()), Scope::of(IpAddr::V4(inside).into()));
            let rank = |scope| match scope {
                Scope::Own => 0,
                Scope::Foreign => 1,
                Scope::Loopback => 2,
                Scope::Nobody(_) => 3,
            };
            prop_assert!(rank(whole) >= rank(one), "{prefix} {inside}");
        }
    }
}
