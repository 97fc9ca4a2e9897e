//! Who a client is to the tables: its prefix and a keyed hash of it, worked out once per request.
//!
//! Owns: the aggregation of addresses into clients, and the hash. Does not own: any table.
//!
//! The one idea a newcomer lacks: whoever can choose source addresses chooses where they land in a hash table,
//! unless the hash is keyed. Ours is two folded multiplications (as in wyhash and foldhash) under 256 random
//! bits. It keeps somebody who knows the source code, but not the keys, from preparing addresses that crowd
//! into one bucket. It is no cryptographic hash: one who could see its values might solve for the keys. Nobody
//! can: they leave neither the process nor their influence on anything but which client is forgotten first.

use crate::snapshot::InstanceId;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How many leading bits of an address make a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrefixLengths {
    /// Of an IPv4 address, v4-mapped ones included; above 32 is 32.
    pub ipv4: u8,
    /// Of an IPv6 address; above 128 is 128.
    pub ipv6: u8,
}

impl Default for PrefixLengths {
    /// /32, and /64: the least that an IPv6 site has, and all of it one host's to choose from.
    fn default() -> Self {
        Self { ipv4: 32, ipv6: 64 }
    }
}

/// A client's address without the bits beyond the prefix, IPv4 as v4-mapped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct ClientPrefix {
    pub(super) high: u64,
    pub(super) low: u64,
}

impl ClientPrefix {
    /// As a prefix, with the lengths it was made with.
    pub(super) fn network(self, lengths: PrefixLengths) -> IpNet {
        let (address, length) = if self.is_mapped() {
            (IpAddr::V4(Ipv4Addr::from_bits(self.low as u32)), lengths.ipv4.min(32))
        } else {
            let bits = u128::from(self.high) << 64 | u128::from(self.low);
            (IpAddr::V6(Ipv6Addr::from_bits(bits)), lengths.ipv6.min(128))
        };
        IpNet::new_assert(address, length)
    }

    const fn is_mapped(self) -> bool {
        self.high == 0 && self.low >> 32 == 0xffff
    }
}

/// One client, as the tables know it.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub(super) prefix: ClientPrefix,
    /// Keyed, all 64 bits good. Zero stands for nobody in the tables; that one client in 2^64 is not counted.
    pub(super) hash: u64,
    pub(super) instance: InstanceId,
}

/// The first fraction bits of pi: some zeros and some ones everywhere, so that small keys, as tests have them,
/// multiply no worse than random ones.
const DIGITS: [u64; 4] =
    [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89];

/// Turns addresses into clients. All workers that share a table need the same one.
#[derive(Clone, Debug)]
pub struct ClientKeying {
    ipv4_mask: u64,
    ipv6_mask: [u64; 2],
    keys: [u64; 4],
    instance: InstanceId,
}

impl ClientKeying {
    /// With these prefix lengths and keys. The keys must be random and secret, see the module's description.
    #[must_use]
    pub const fn new(lengths: PrefixLengths, keys: [u64; 4]) -> Self {
        let ipv6_mask = leading_ones(lengths.ipv6 as u32);
        // IPv4 sits in the last 32 bits; what is before them is the same for all.
        let ipv4_mask = leading_ones(96 + lengths.ipv4 as u32) as u64;
        let [first, second, third, fourth] = keys;
        let keys = [first ^ DIGITS[0], second ^ DIGITS[1], third ^ DIGITS[2], fourth ^ DIGITS[3]];
        Self {
            ipv4_mask,
            ipv6_mask: [(ipv6_mask >> 64) as u64, ipv6_mask as u64],
            keys,
            instance: InstanceId(0),
        }
    }

    /// The instance that addresses are of from now on: the same address in another one is another client.
    pub const fn set_instance(&mut self, instance: InstanceId) {
        self.instance = instance;
    }

    /// The client that this address belongs to.
    #[must_use]
    pub fn identify(&self, address: IpAddr) -> Client {
        let bits = match address {
            IpAddr::V4(address) => 0xffff_0000_0000 | u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let address = ClientPrefix { high: (bits >> 64) as u64, low: bits as u64 };
        let prefix = if address.is_mapped() {
            ClientPrefix { high: 0, low: address.low & self.ipv4_mask }
        } else {
            ClientPrefix { high: address.high & self.ipv6_mask[0], low: address.low & self.ipv6_mask[1] }
        };
        let [first, second, third, fourth] = self.keys;
        let once = folded_multiply(prefix.high ^ first, prefix.low ^ second);
        let hash = folded_multiply(once ^ third ^ u64::from(self.instance.0), fourth);
        Client { prefix, hash, instance: self.instance }
    }
}

const fn leading_ones(length: u32) -> u128 {
    if length >= 128 { u128::MAX } else { !(u128::MAX >> length) }
}

/// The two halves of the 128-bit product, added without carry: the high half brings to the low bits what a plain
/// product leaves in the high ones.
pub(super) const fn folded_multiply(left: u64, right: u64) -> u64 {
    let product = left as u128 * right as u128;
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keying(ipv4: u8, ipv6: u8) -> ClientKeying {
        ClientKeying::new(PrefixLengths { ipv4, ipv6 }, [1, 2, 3, 4])
    }

    #[test]
    fn addresses_of_one_prefix_are_one_client() {
        let table = [
            (32, 64, "10.1.2.3", "::ffff:10.1.2.3", "10.1.2.3/32"),
            (24, 64, "10.1.2.3", "10.1.2.200", "10.1.2.0/24"),
            (0, 64, "10.1.2.3", "200.1.1.1", "0.0.0.0/0"),
            (32, 64, "2001:db8::1", "2001:db8::ffff:0:0:1", "2001:db8::/64"),
            (32, 128, "2001:db8::1", "2001:db8::1", "2001:db8::1/128"),
            (32, 56, "2001:db8:0:1::", "2001:db8:0:ff::", "2001:db8::/56"),
            (99, 200, "10.1.2.3", "10.1.2.3", "10.1.2.3/32"),
        ];
        for (ipv4, ipv6, one, other, network) in table {
            let keying = keying(ipv4, ipv6);
            let [one, other] = [one, other].map(|address| keying.identify(address.parse().unwrap()));
            assert_eq!((one.prefix, one.hash), (other.prefix, other.hash), "{network}");
            let lengths = PrefixLengths { ipv4, ipv6 };
            assert_eq!(one.prefix.network(lengths).to_string(), network);
        }
    }

    #[test]
    fn one_address_in_two_instances_is_two_clients() {
        let address = "10.1.2.3".parse().unwrap();
        let mut keying = keying(32, 64);
        let red = keying.identify(address);
        keying.set_instance(InstanceId(1));
        let blue = keying.identify(address);
        assert_eq!(red.prefix, blue.prefix);
        assert_ne!((red.hash, red.instance), (blue.hash, blue.instance));
        assert_ne!(red.hash, blue.hash);
    }

    /// A million neighbours spread over 2^16 buckets as chance would have it: a chi-squared of 65535 with a
    /// deviation of 362. Other keys spread them otherwise.
    #[test]
    fn neighbouring_addresses_spread_evenly() {
        let addresses: [fn(u32) -> IpAddr; 2] =
            [|number| IpAddr::V4(number.into()), |number| IpAddr::V6((u128::from(number) << 64).into())];
        for (address, shift) in
            addresses.into_iter().flat_map(|address| [(address, 0), (address, 48), (address, 24)])
        {
            let mut buckets = vec![0_u32; 1 << 16];
            for number in 0..1_000_000 {
                let client = keying(32, 64).identify(address(number));
                buckets[(client.hash >> shift) as usize & 0xffff] += 1;
            }
            let mean = 1e6 / 65536.0;
            let chi: f64 = buckets.iter().map(|&count| (f64::from(count) - mean).powi(2) / mean).sum();
            assert!((chi - 65535.0).abs() < 6.0 * 362.0, "chi squared {chi} of the bits from {shift}");
        }
        let other = ClientKeying::new(PrefixLengths::default(), [1, 2, 3, 5]);
        let address = "10.1.2.3".parse().unwrap();
        assert_ne!(other.identify(address).hash, keying(32, 64).identify(address).hash);
    }
}
