//! Interfaces and addresses by getifaddrs(3), which works where netlink sockets are refused.
//!
//! Owns: the list, copied out of the C library's memory. Does not own: what is made of it.
//!
//! The one idea a newcomer lacks: an interface has a line for each of its addresses, and one more for its Ethernet address.

use super::check;
use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One line of getifaddrs(3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedAddress {
    /// The interface's name.
    pub name: String,
    /// Its index; 0 when unknown.
    pub ifindex: u32,
    /// Its `IFF_*` flags.
    pub flags: u32,
    /// An address of it and the length of its prefix; `None` on lines that tell of something else.
    pub address: Option<(IpAddr, u8)>,
    /// Its Ethernet address, on the line that tells of it.
    pub mac: Option<[u8; 6]>,
}

/// Every interface and address of this network namespace, by getifaddrs(3).
///
/// # Errors
/// Those of getifaddrs(3).
pub fn list_addresses() -> io::Result<Vec<ListedAddress>> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the pointer is ours to write; the list is freed below.
    check(unsafe { libc::getifaddrs(&raw mut list) })?;
    let mut addresses = Vec::new();
    let mut next = list;
    // SAFETY: getifaddrs made the list; each `next` is null or an entry of it, and it is not freed yet.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: ifa_name is a terminated string that lives as long as the list.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) };
        // SAFETY: the same string; if_nametoindex only reads it.
        let ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) };
        let address = ip_address(entry.ifa_addr);
        let mask_bits = match ip_address(entry.ifa_netmask) {
            Some(IpAddr::V4(mask)) => mask.to_bits().count_ones() as u8,
            Some(IpAddr::V6(mask)) => mask.to_bits().count_ones() as u8,
            None => 0,
        };
        addresses.push(ListedAddress {
            name: name.to_string_lossy().into_owned(),
            ifindex,
            flags: entry.ifa_flags,
            address: address.map(|address| (address, mask_bits)),
            mac: ethernet_address(entry.ifa_addr),
        });
    }
    // SAFETY: getifaddrs allocated it, and nothing borrowed from it is left.
    unsafe { libc::freeifaddrs(list) };
    Ok(addresses)
}

/// The IP address in a socket address of getifaddrs(3), if it holds one.
fn ip_address(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: null, or a socket address of the list, which lives; every one is at least a sockaddr long.
    let family = unsafe { address.as_ref() }?.sa_family;
    match libc::c_int::from(family) {
        libc::AF_INET => {
            // SAFETY: the family says that a sockaddr_in lies here.
            let v4 = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that a sockaddr_in6 lies here.
            let v6 = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

/// The Ethernet address in a socket address of getifaddrs(3), if it holds one.
fn ethernet_address(address: *const libc::sockaddr) -> Option<[u8; 6]> {
    // SAFETY: as in `ip_address`.
    let family = unsafe { address.as_ref() }?.sa_family;
    if libc::c_int::from(family) != libc::AF_PACKET {
        return None;
    }
    // SAFETY: the family says that a sockaddr_ll lies here.
    let link = unsafe { address.cast::<libc::sockaddr_ll>().read_unaligned() };
    if link.sll_halen == 6 { link.sll_addr.first_chunk().copied() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn getifaddrs_lists_the_loopback_address() {
        let addresses = list_addresses().unwrap();
        assert!(addresses.iter().any(|one| one.name == "lo" && one.ifindex > 0), "{addresses:?}");
    }
}
