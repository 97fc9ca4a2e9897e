//! What is made of the kernel's answers, and of what it does not know.

use super::*;
use netlink::attribute;
use proptest::prelude::*;
use std::net::Ipv6Addr;

#[test]
fn a_route_may_have_a_gateway_of_either_family() {
    let mut answer = vec![0; HEADER];
    answer[ROUTE_TYPE] = RTN_UNICAST;
    assert_eq!(read_route(&answer), Some(Route { kind: RTN_UNICAST, gateway: None, source: None }));
    answer.extend(attribute(RTA_PREFSRC, &[10, 99, 1, 2]));
    let same = [&answer[..], &attribute(RTA_GATEWAY, &[10, 99, 1, 254])].concat();
    let source = "10.99.1.2".parse().ok();
    let gateway = "10.99.1.254".parse().ok();
    assert_eq!(read_route(&same), Some(Route { kind: RTN_UNICAST, gateway, source }));
    let v6: Ipv6Addr = "fd99::1".parse().unwrap();
    let via = [&[libc::AF_INET6 as u8, 0], &v6.octets()[..]].concat();
    let other = [&answer[..], &attribute(RTA_VIA, &via)].concat();
    assert_eq!(read_route(&other).unwrap().gateway, Some(v6.into()));
}

#[test]
fn a_neighbour_counts_once_it_answered() {
    let neighbour = |state: u16, mac: &[u8]| {
        let mut answer = vec![0; HEADER];
        answer[8..10].copy_from_slice(&state.to_ne_bytes());
        answer.extend(attribute(NDA_DST, &[10, 99, 1, 1]));
        answer.extend(attribute(NDA_LLADDR, mac));
        read_neighbour(&answer)
    };
    let mac = [2, 0, 0, 0, 0, 9];
    for (state, is_valid) in [(0x01, false), (0x02, true), (0x04, true), (0x20, false), (0x80, true)] {
        assert_eq!(neighbour(state, &mac), is_valid.then_some(mac), "{state:#x}");
    }
    assert_eq!(neighbour(0x02, &[1, 2, 3, 4]), None);
}

#[test]
fn loopback_and_unknown_interfaces_are_the_users_error() {
    let target = "10.99.1.1".parse().unwrap();
    let loopback = resolve("lo", target, &mut || false).unwrap_err();
    assert_eq!(loopback.to_string(), "--interface lo: must be an Ethernet interface");
    let unknown = resolve("nosuch0", target, &mut || false).unwrap_err();
    assert!(unknown.to_string().starts_with("--interface nosuch0: must be one of"), "{unknown}");
    assert!(loopback.is_wrong_input() && unknown.is_wrong_input());
}

#[test]
fn the_source_is_the_kernels_choice_or_fits_the_target() {
    let line = |name: &str, address: &str| ListedAddress {
        name: name.into(),
        ifindex: 2,
        flags: 0,
        address: Some((address.parse().unwrap(), if address.contains('.') { 24 } else { 64 })),
        mac: None,
    };
    let listed =
        ["10.99.1.2", "10.99.1.3", "fe80::2", "fd99:1::2"].map(|address| line("tb0", address)).to_vec();
    let from = |target: &str, preferred: &str| {
        let preferred = preferred.parse().ok();
        source("tb0", target.parse().unwrap(), preferred, &listed).map(|source| source.to_string())
    };
    assert_eq!(from("10.99.1.1", "10.99.1.3").unwrap(), "10.99.1.3/24");
    // An address of another interface would not get its replies here.
    assert_eq!(from("10.99.1.1", "10.98.0.1").unwrap(), "10.99.1.2/24");
    assert_eq!(from("fd99:1::1", "").unwrap(), "fd99:1::2/64");
    assert_eq!(from("fe80::1", "").unwrap(), "fe80::2/64");
    assert_eq!(source("tb1", "10.99.1.1".parse().unwrap(), None, &listed), None);
}

proptest! {
    #[test]
    fn answers_never_panic(answer: Vec<u8>) {
        let _ = (read_route(&answer), read_neighbour(&answer));
    }
}
