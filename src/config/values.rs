//! Values with a spelling of their own: reference ids, VLAN tags, the number of workers, interface names.
//!
//! Owns: how they are read, refused and printed. Does not own: which key takes them.
//!
//! The one idea a newcomer lacks: each reads back from what it prints, because `timeball check` prints a
//! configuration that loads again.

use super::raw::Value;
use crate::auth::{KeyId, TrustedKeys};
use ipnet::IpNet;
use serde::{Serialize, Serializer};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Valid VLAN ids: 0 is a mere priority tag and 4095 is reserved (IEEE 802.1Q).
const VLAN_IDS: RangeInclusive<u16> = 1..=4094;

/// Longest interface name: the kernel's `IFNAMSIZ` less its final zero.
const INTERFACE_NAME_MAX: usize = 15;

/// How many workers answer requests.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Workers {
    /// As many as there are queues and cores for.
    #[default]
    Auto,
    /// So many, 0 to 64; with 0 one thread does everything.
    Count(u8),
}

impl Serialize for Workers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Count(count) => serializer.serialize_u8(*count),
        }
    }
}

/// Who our clients are told our source is (RFC 5905 section 7.3, "Reference ID").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReferenceId {
    /// The IPv4 address of a source, or a made-up one.
    Address(Ipv4Addr),
    /// One to four printable ASCII characters, padded with zeros: for stratum 1 only.
    Name([u8; 4]),
}

impl ReferenceId {
    /// The kernel's own clock at stratum 1, as other servers call an undisciplined local clock.
    pub const LOCAL: Self = Self::Name(*b"LOCL");
    /// The kernel clock that another program keeps, at stratum 1.
    pub const KERNEL: Self = Self::Name(*b"KERN");
    /// Above stratum 1: an address no client has as its own, so that no client takes us for a loop back to itself.
    pub const NOBODY: Self = Self::Address(Ipv4Addr::new(127, 127, 1, 1));

    /// The four octets as they are sent.
    #[must_use]
    pub const fn octets(self) -> [u8; 4] {
        match self {
            Self::Address(address) => address.octets(),
            Self::Name(name) => name,
        }
    }

    /// A dotted quad, else a name. `None` if it is neither.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(Self::Address(address));
        }
        let is_name = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let mut name = [0; 4];
        name.get_mut(..text.len()).filter(|_| is_name)?.copy_from_slice(text.as_bytes());
        Some(Self::Name(name))
    }
}

impl fmt::Display for ReferenceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Name(name) => {
                let characters = name.iter().take_while(|&&byte| byte != 0);
                characters.map(|&byte| char::from(byte)).collect::<String>().fmt(formatter)
            }
        }
    }
}

impl Serialize for ReferenceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The tag or tags of a VLAN, ids 1 to 4094.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Vlan {
    /// One 802.1Q tag.
    Single(u16),
    /// QinQ: the service provider's outer tag, and the customer's inner one.
    Double {
        /// The tag nearer to the Ethernet header.
        outer: u16,
        /// The tag nearer to the payload.
        inner: u16,
    },
}

impl Vlan {
    /// Identifiers from the outside in, 0 where there is no second tag.
    #[must_use]
    pub const fn ids(self) -> [u16; 2] {
        match self {
            Self::Single(id) => [id, 0],
            Self::Double { outer, inner } => [outer, inner],
        }
    }

    /// `100`, or `200.30` for outer and inner.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.split_once('.') {
            None => vlan_id(text).map(Self::Single),
            Some((outer, inner)) => Some(Self::Double { outer: vlan_id(outer)?, inner: vlan_id(inner)? }),
        }
    }
}

fn vlan_id(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| is_number && VLAN_IDS.contains(id))
}

impl fmt::Display for Vlan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single(id) => write!(formatter, "{id}"),
            Self::Double { outer, inner } => write!(formatter, "{outer}.{inner}"),
        }
    }
}

impl Serialize for Vlan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An address with a port, or `off`. `None` if it is neither.
pub(super) fn parse_address_or_off(text: &str) -> Option<Option<SocketAddr>> {
    let address = |text: &str| text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    if text == "off" { Some(None) } else { address(text).map(Some) }
}

/// Prints what [`parse_address_or_off`] reads.
pub(super) fn address_or_off<S: Serializer>(
    address: &Option<SocketAddr>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match address {
        Some(address) => serializer.collect_str(address),
        None => serializer.serialize_str("off"),
    }
}

/// A number, or `off`.
pub(super) fn number_or_off<S: Serializer>(number: &Option<u8>, serializer: S) -> Result<S::Ok, S::Error> {
    match number {
        Some(number) => serializer.serialize_u8(*number),
        None => serializer.serialize_str("off"),
    }
}

/// The id of a key, or `off`.
pub(super) fn key_or_off<S: Serializer>(key: &Option<KeyId>, serializer: S) -> Result<S::Ok, S::Error> {
    match key {
        Some(key) => serializer.serialize_u32(key.number()),
        None => serializer.serialize_str("off"),
    }
}

/// A name, or `any`.
pub(super) fn name_or_any<S: Serializer>(name: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_deref().unwrap_or("any"))
}

/// A path, or `off`.
pub(super) fn path_or_off<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => path.serialize(serializer),
        None => serializer.serialize_str("off"),
    }
}

impl Serialize for TrustedKeys {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::Only(ids) => serializer.collect_seq(ids.iter().map(|id| id.number())),
        }
    }
}

/// The longest name of a host (RFC 1035 section 2.3.4).
const HOST_NAME_MAX: usize = 253;

/// A host's name, or its address: one host's, and with the interface (`fe80::1%eth0`) where it means nothing without, but
/// nowhere else, since packets from there would not carry it.
pub(super) fn host(value: &Value) -> Option<String> {
    let Value::Text(text) = value else { return None };
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    // All digits and dots is an address gone wrong.
    let is_name = (1..=HOST_NAME_MAX).contains(&text.len())
        && text.bytes().all(is_letter)
        && !text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        && !text.starts_with(['.', '-']);
    (is_name || host_address(text).is_some_and(is_ones)).then(|| text.clone())
}

/// An address as a source may have it, and its scope.
pub(super) fn host_address(text: &str) -> Option<(IpAddr, Option<&str>)> {
    let (address, scope) = match text.split_once('%') {
        Some((address, scope)) => (address, Some(scope)),
        None => (text, None),
    };
    Some((address.parse::<IpAddr>().ok()?.to_canonical(), scope))
}

/// Can one host have this address, and is it told which?
fn is_ones((address, scope): (IpAddr, Option<&str>)) -> bool {
    let is_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let is_host =
        !address.is_unspecified() && !address.is_multicast() && address != IpAddr::V4(Ipv4Addr::BROADCAST);
    is_host && is_local == scope.is_some() && scope.is_none_or(is_interface_name)
}

/// Could the kernel have an interface of this name? Its own rule (`dev_valid_name`), and ASCII only.
pub(super) fn is_interface_name(name: &str) -> bool {
    let fits = (1..=INTERFACE_NAME_MAX).contains(&name.len());
    fits && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:".contains(&byte))
}

/// Reads an address or a prefix; a lone address is a prefix of full length. `Err` is what it must be instead.
pub(super) fn prefix(text: &str) -> Result<IpNet, String> {
    let parsed = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let Ok(prefix) = parsed else {
        return Err(r#"an address or prefix in quotes, like "10.0.0.0/8" or "2001:db8::/32""#.to_owned());
    };
    if prefix.trunc() != prefix {
        return Err(format!(
            "{:?}, no bits set behind the prefix, or the host alone: \"{}\"",
            prefix.trunc().to_string(),
            prefix.addr()
        ));
    }
    let mapped = match prefix {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => {
            v6.addr().to_ipv4_mapped().map(|v4| (v4, v6.prefix_len() - 96))
        }
        _ => None,
    };
    match mapped {
        Some((v4, length)) => Err(format!("\"{v4}/{length}\": IPv4-mapped addresses follow the IPv4 rule")),
        None => Ok(prefix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reference_ids_are_quads_or_names() {
        assert_eq!(ReferenceId::parse("GPS").map(ReferenceId::octets), Some(*b"GPS\0"));
        assert_eq!(ReferenceId::parse("127.127.1.1"), Some(ReferenceId::NOBODY));
        for text in ["", "GALIL", "A B", "é", "1.2.3", "1.2.3.4.5"] {
            assert!(!matches!(ReferenceId::parse(text), Some(ReferenceId::Address(_))), "{text}");
        }
        for text in ["", "GALIL", "A B", "é\u{7f}", "1.2.3"] {
            assert_eq!(ReferenceId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn vlan_ids_are_1_to_4094() {
        assert_eq!(Vlan::parse("4094"), Some(Vlan::Single(4094)));
        assert_eq!(Vlan::parse("200.30"), Some(Vlan::Double { outer: 200, inner: 30 }));
        for text in ["", "0", "4095", "+1", "1.", ".1", "1.2.3", "1.0", " 1", "99999999"] {
            assert_eq!(Vlan::parse(text), None, "{text}");
        }
    }

    #[test]
    fn interface_names_are_the_kernels() {
        for name in ["eth0", "enp1s0f0.100", "a", "abcdefghijklmno"] {
            assert!(is_interface_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a:1", "a b", "abcdefghijklmnop", "é"] {
            assert!(!is_interface_name(name), "{name}");
        }
    }

    #[test]
    fn prefixes_with_host_bits_are_refused_with_the_right_one() {
        assert_eq!(prefix("10.0.0.1").map(|net| net.to_string()), Ok("10.0.0.1/32".to_owned()));
        assert_eq!(prefix("fd99::1").map(|net| net.to_string()), Ok("fd99::1/128".to_owned()));
        let refused = |text| prefix(text).expect_err("it must be refused");
        assert!(refused("10.1.2.3/8").starts_with("\"10.0.0.0/8\""));
        assert!(refused("fd99::1/64").starts_with("\"fd99::/64\""));
        assert!(refused("::ffff:10.0.0.0/104").starts_with("\"10.0.0.0/8\""));
        assert!(refused("10.0.0.0/33").starts_with("an address"));
    }

    #[test]
    fn hosts_are_names_and_addresses() {
        let host = |text: &str| host(&Value::Text(text.to_owned()));
        for text in ["ntp.example.org", "a", "192.0.2.1", "2001:db8::1", "fe80::1%eth0", "0.pool.example.org"]
        {
            assert_eq!(host(text).as_deref(), Some(text));
        }
        let long = "a".repeat(254);
        for text in
            ["", "a b", "1.2.3", "1.2.3.4:123", "[::1]", "192.0.2.1%eth0", "fe80::1%", ".a", "-a", &long]
        {
            assert_eq!(host(text), None, "{text}");
        }
        // Nobody's or everybody's; without the interface that it takes, or with one that it does not have.
        for text in ["0.0.0.0", "::", "224.0.1.1", "ff05::101", "255.255.255.255", "::ffff:224.0.1.1"] {
            assert_eq!(host(text), None, "{text}");
        }
        for text in ["fe80::1", "2001:db8::1%eth0", "::ffff:192.0.2.1%eth0"] {
            assert_eq!(host(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn spellings_never_panic(text in "\\PC{0,20}|[0-9a-f:./]{0,20}") {
            let _ = (ReferenceId::parse(&text), Vlan::parse(&text), prefix(&text), is_interface_name(&text));
        }
    }
}
