//! Reference ids: the 32 bits that tell others whom we follow, and us who follows us (RFC 5905 section 7.3).
//!
//! The one idea a newcomer lacks: an IPv4 address fits, an IPv6 address does not, so the first four octets of its MD5
//! digest stand for it. That is a name and no protection; two addresses may share one.

use super::select::Loop;
use crate::wire::ReferenceId;
use md5::{Digest, Md5};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The reference id of a host that follows the server at this address.
#[must_use]
pub fn reference_id(address: IpAddr) -> ReferenceId {
    match address.to_canonical() {
        IpAddr::V4(address) => ReferenceId(address.octets()),
        IpAddr::V6(address) => {
            let digest = Md5::digest(address.octets());
            let [a, b, c, d, ..] = digest.0;
            ReferenceId([a, b, c, d])
        }
    }
}

/// What a host that follows the server at `remote`, which knows it as `local`, tells those in other instances (network
/// namespaces or VRFs). There the server's address would mean another host. This is nobody's address, as far as four octets
/// allow, and yet the server, should it ask there, recognises that it is meant: it knows both addresses.
#[must_use]
pub fn reference_id_elsewhere(remote: IpAddr, local: IpAddr) -> ReferenceId {
    let octets = |address: IpAddr| match address.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let digest = Md5::digest([octets(remote), octets(local)].concat());
    let [a, b, c, d, ..] = digest.0;
    ReferenceId([a, b, c, d])
}

/// What those tell who follow a host that has these addresses, at whichever of them: a host that we ask over IPv4 may ask us
/// over IPv6. An address that other hosts have as well says nothing: a link-local one, or a loopback one, which chronyd and
/// ntpd tell while they follow nobody.
#[must_use]
pub fn reference_ids(addresses: &[IpAddr]) -> BTreeSet<[u8; 4]> {
    let is_ours_alone = |address: &IpAddr| match address {
        IpAddr::V4(address) => {
            !(address.is_loopback() || address.is_link_local() || address.is_unspecified())
        }
        IpAddr::V6(address) => {
            !(address.is_loopback() || address.is_unicast_link_local() || address.is_unspecified())
        }
    };
    let addresses = addresses.iter().map(IpAddr::to_canonical).filter(is_ours_alone);
    addresses.map(|address| reference_id(address).0).collect()
}

/// What a source says about whom it follows, and who we are to it.
#[derive(Clone, Copy, Debug)]
pub struct Followed {
    /// Its stratum; at stratum 1 the reference id is a name and no address.
    pub stratum: u8,
    /// Its reference id.
    pub reference_id: ReferenceId,
    /// Its address.
    pub remote: IpAddr,
    /// Our address, as it sees it; `None`: not known, if it broadcasts and was never asked.
    pub local: Option<IpAddr>,
}

/// RFC 5905 A.5.5.3: does the source follow us, or the system peer? Or is it ourselves? `system_peer` is the
/// address of our system peer, if that is another source; `names` is what else those may tell who follow us, at other
/// addresses of ours or in other instances.
#[must_use]
pub fn find_loop(source: &Followed, system_peer: Option<IpAddr>, names: &[ReferenceId]) -> Loop {
    if Some(source.remote) == source.local {
        return Loop::FollowsUs;
    }
    if source.stratum < 2 {
        return Loop::None;
    }
    if source.local.map(reference_id) == Some(source.reference_id) || names.contains(&source.reference_id) {
        return Loop::FollowsUs;
    }
    match system_peer {
        Some(peer) if reference_id(peer) == source.reference_id => Loop::FollowsSystemPeer,
        _ => Loop::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// RFC 5905 section 7.3: the IPv4 address, or the first four octets of the MD5 digest of the IPv6 address.
    /// Checklist 5.
    #[test]
    fn reference_ids_are_addresses_or_digests_of_them() {
        assert_eq!(reference_id(address("10.99.0.1")), ReferenceId([10, 99, 0, 1]));
        assert_eq!(reference_id(address("::ffff:10.99.0.1")), ReferenceId([10, 99, 0, 1]));
        // md5sum of the 16 octets.
        assert_eq!(reference_id(address("fd99::1")), ReferenceId(MD5_OF_FD99_1));
    }

    const MD5_OF_FD99_1: [u8; 4] = [0x08, 0x27, 0xd2, 0x8b];

    /// RFC 5905 A.5.5.3: the source's reference id is our address, or that of our system peer. Checklist 26.
    #[test]
    fn loops_are_found_by_the_reference_id() {
        let (us, them, peer) = (address("10.99.0.1"), address("10.99.0.2"), address("10.99.0.3"));
        let source = |stratum, id| Followed { stratum, reference_id: id, remote: them, local: Some(us) };
        let table = [
            (source(2, reference_id(us)), Loop::FollowsUs),
            (source(15, reference_id(us)), Loop::FollowsUs),
            (source(2, reference_id(peer)), Loop::FollowsSystemPeer),
            (source(2, reference_id(them)), Loop::None),
            (source(1, reference_id(us)), Loop::None),
            (source(1, reference_id(peer)), Loop::None),
        ];
        for (source, expected) in table {
            assert_eq!(find_loop(&source, Some(peer), &[]), expected, "{source:?}");
        }
        assert_eq!(find_loop(&source(2, reference_id(peer)), None, &[]), Loop::None, "no system peer");
        let broadcast = Followed { local: None, ..source(2, reference_id(us)) };
        assert_eq!(find_loop(&broadcast, None, &[]), Loop::None, "nothing is known of us");
        assert_eq!(find_loop(&broadcast, None, &[reference_id(us)]), Loop::FollowsUs);
        let ourselves = Followed { remote: us, ..source(1, ReferenceId(*b"GPS\0")) };
        assert_eq!(find_loop(&ourselves, None, &[]), Loop::FollowsUs);
        let (six, other) = (address("fd99::1"), address("fd99::2"));
        let source =
            Followed { stratum: 3, reference_id: reference_id(six), remote: other, local: Some(six) };
        assert_eq!(find_loop(&source, None, &[]), Loop::FollowsUs);
    }

    /// RFC 5905 section 7.3, for each address that is no other host's. Checklist 5.
    #[test]
    fn followers_tell_any_of_our_addresses_that_is_ours_alone() {
        let ids = |texts: &[&str]| {
            let addresses: Vec<IpAddr> = texts.iter().map(|text| address(text)).collect();
            reference_ids(&addresses).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(ids(&["10.99.0.1", "fd99::1", "::ffff:10.99.0.1"]), [MD5_OF_FD99_1, [10, 99, 0, 1]]);
        let others = [
            "127.0.0.1",
            "127.127.1.1",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.7.7",
            "fe80::1",
            "0.0.0.0",
            "::",
        ];
        assert_eq!(ids(&others), [[0; 4]; 0]);
    }

    #[test]
    fn who_follows_us_in_another_instance_is_recognised() {
        let (us, them, other) = (address("10.99.0.1"), address("10.99.0.2"), address("10.99.0.3"));
        let told = reference_id_elsewhere(us, them);
        let source = Followed { stratum: 3, reference_id: told, remote: other, local: Some(us) };
        assert_eq!(find_loop(&source, None, &[told]), Loop::FollowsUs);
        // They follow somebody else; or another who has our address, and knows them by another one.
        for id in [reference_id_elsewhere(other, them), reference_id_elsewhere(us, other)] {
            assert_eq!(find_loop(&Followed { reference_id: id, ..source }, None, &[told]), Loop::None);
        }
        assert_ne!(told, reference_id_elsewhere(them, us));
        assert_ne!(told, reference_id(us));
    }
}
