//! How frames get from an interface to the target: the interface's facts, our address on it, the next hop's MAC.
//!
//! Owns: the questions to the kernel's routes and neighbours. Does not own: the frames.
//!
//! The one idea a newcomer lacks: requests leave beside the kernel's network stack, but the kernel knows the way. It is
//! asked once, and where it does not know the neighbour's MAC yet, it is told to find out (`NTF_USE`), which sends
//! nothing but its own ARP request or neighbour solicitation.

use crate::sys::netlink::{self, ListedAddress, NetlinkSocket};
use ipnet::IpNet;
use netlink_packet_core::NlasIterator;
use std::fmt::Write;
use std::io;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

// linux/rtnetlink.h and linux/neighbour.h, which the libc crate has only in part.
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_VIA: u16 = 18;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NTF_USE: u8 = 1;
/// Reachable, stale, delay, probe, no ARP, permanent: states in which the MAC is good to use.
const NUD_VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;
/// Octets of struct rtmsg and struct ndmsg.
const HEADER: usize = 12;
/// Where struct rtmsg has its type, and struct ndmsg its state.
const ROUTE_TYPE: usize = 7;
const NEIGHBOUR_STATE: usize = 8;

/// How long a neighbour may take to say its MAC: the kernel asks three times, a second apart.
const NEIGHBOUR_WITHIN: Duration = Duration::from_millis(2500);
/// The kernel gathers news of links for up to a second before it says that one came up.
const LINK_WITHIN: Duration = Duration::from_millis(1500);
const POLL: Duration = Duration::from_millis(10);

/// The way to the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// The interface's index.
    pub ifindex: u32,
    /// The interface's MAC address.
    pub source_mac: [u8; 6],
    /// The MAC address of the target, or of the gateway to it.
    pub target_mac: [u8; 6],
    /// The interface's address that the kernel would ask from, with its network.
    pub source: IpNet,
}

/// What is said where whoever waits for it wants no run any more.
pub const INTERRUPTED: &str = "interrupted before the first request";

/// Why there is no way.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// There is no such interface.
    #[error("--interface {name}: must be one of {known}")]
    NoInterface {
        /// The name.
        name: String,
        /// Those that would do.
        known: String,
    },
    /// It is the loopback interface or has no Ethernet address.
    #[error("--interface {0}: must be an Ethernet interface")]
    NotEthernet(String),
    /// It is down.
    #[error("{0} has no link: it or its other end is down")]
    Down(String),
    /// It has no address of the target's family.
    #[error(
        "--interface {interface}: must have an address to ask {target} from (give it one: ip address add)"
    )]
    NoAddress {
        /// The interface.
        interface: String,
        /// The target.
        target: IpAddr,
    },
    /// The target is this machine (or this network namespace).
    #[error(
        "--target {0}: must not be an address of this machine, whose frames would leave by the interface and not \
         come back: load a server in another network namespace or on another machine"
    )]
    Ourselves(IpAddr),
    /// The kernel calls it broadcast, multicast or unreachable.
    #[error("--target {0}: must be one machine's address that routes lead to (route type {1})")]
    NotUnicast(IpAddr, u8),
    /// No route.
    #[error("no route to {target} over {interface}: {cause}")]
    NoRoute {
        /// The target.
        target: IpAddr,
        /// The interface.
        interface: String,
        /// The kernel's words.
        cause: io::Error,
    },
    /// The next hop does not say its MAC.
    #[error(
        "{next_hop} does not answer on {interface}: neither ARP nor neighbour discovery found its MAC address"
    )]
    NoNeighbour {
        /// The target or its gateway.
        next_hop: IpAddr,
        /// The interface.
        interface: String,
    },
    /// The kernel would not start looking for the neighbour.
    #[error("looking for {next_hop} on {interface}: {cause}; needs root or CAP_NET_ADMIN")]
    NotPermitted {
        /// The target or its gateway.
        next_hop: IpAddr,
        /// The interface.
        interface: String,
        /// The kernel's words.
        cause: io::Error,
    },
    /// It was not waited for.
    #[error("{INTERRUPTED}")]
    Interrupted,
    /// The kernel did not answer as it should.
    #[error("asking the kernel for the way to the target: {0}")]
    System(#[from] io::Error),
}

impl ResolveError {
    /// Whether other flags would help.
    #[must_use]
    pub const fn is_wrong_input(&self) -> bool {
        matches!(
            self,
            Self::NoInterface { .. }
                | Self::NotEthernet(_)
                | Self::NoAddress { .. }
                | Self::Ourselves(_)
                | Self::NotUnicast(..)
        )
    }
}

/// Finds the way from this interface, of the calling thread's network namespace, to `target`. That may take seconds, in
/// which `is_over` is asked again and again whether to go on.
///
/// # Errors
/// [`ResolveError`].
pub fn resolve(
    interface: &str,
    target: IpAddr,
    is_over: &mut dyn FnMut() -> bool,
) -> Result<NextHop, ResolveError> {
    let (listed, (ifindex, source_mac)) = wait_for_link(interface, is_over)?;
    let socket = NetlinkSocket::open_route_requests()?;
    let route = ask_route(&socket, ifindex, target).map_err(|cause| ResolveError::NoRoute {
        target,
        interface: interface.to_owned(),
        cause,
    })?;
    match route.kind {
        RTN_UNICAST => {}
        RTN_LOCAL => return Err(ResolveError::Ourselves(target)),
        other => return Err(ResolveError::NotUnicast(target, other)),
    }
    let source = source(interface, target, route.source, &listed)
        .ok_or_else(|| ResolveError::NoAddress { interface: interface.to_owned(), target })?;
    let next_hop = route.gateway.unwrap_or(target);
    let target_mac = find_neighbour(&socket, ifindex, interface, next_hop, is_over)?;
    Ok(NextHop { ifindex, source_mac, target_mac, source })
}

/// Addresses and facts, once the link is up.
#[expect(clippy::type_complexity, reason = "two values for one caller")]
fn wait_for_link(
    interface: &str,
    is_over: &mut dyn FnMut() -> bool,
) -> Result<(Vec<ListedAddress>, (u32, [u8; 6])), ResolveError> {
    let deadline = Instant::now() + LINK_WITHIN;
    loop {
        let listed = netlink::list_addresses()?;
        match ethernet(interface, &listed) {
            Err(ResolveError::Down(_)) if Instant::now() < deadline => pause(is_over)?,
            result => return result.map(|facts| (listed, facts)),
        }
    }
}

/// The index and MAC address of an Ethernet interface that is up.
fn ethernet(interface: &str, listed: &[ListedAddress]) -> Result<(u32, [u8; 6]), ResolveError> {
    let is_loopback = |line: &ListedAddress| line.flags & libc::IFF_LOOPBACK as u32 != 0;
    let Some(line) = listed.iter().find(|line| line.name == interface) else {
        let mut known = String::new();
        for line in listed.iter().filter(|line| line.mac.is_some() && !is_loopback(line)) {
            let separator = if known.is_empty() { "" } else { ", " };
            let _ = write!(known, "{separator}{}", line.name);
        }
        if known.is_empty() {
            known.push_str("those of this network namespace, which has none");
        }
        return Err(ResolveError::NoInterface { name: interface.to_owned(), known });
    };
    let mac = listed.iter().find_map(|line| if line.name == interface { line.mac } else { None });
    let Some(mac) = mac.filter(|_| !is_loopback(line)) else {
        return Err(ResolveError::NotEthernet(interface.to_owned()));
    };
    let up = (libc::IFF_UP | libc::IFF_RUNNING) as u32;
    if line.flags & up != up {
        return Err(ResolveError::Down(interface.to_owned()));
    }
    Ok((line.ifindex, mac))
}

/// The address to ask from: the kernel's choice if the interface has it, else one of the interface's that a reply from
/// `target` could be sent to.
fn source(
    interface: &str,
    target: IpAddr,
    preferred: Option<IpAddr>,
    listed: &[ListedAddress],
) -> Option<IpNet> {
    let own = |line: &ListedAddress| {
        let (address, length) = line.address.filter(|_| line.name == interface)?;
        IpNet::new(address, length).ok()
    };
    let own = || listed.iter().filter_map(own);
    let fits = |address: &IpNet| {
        let address = address.addr();
        address.is_ipv4() == target.is_ipv4() && is_link_local_v6(address) == is_link_local_v6(target)
    };
    own().find(|address| Some(address.addr()) == preferred).or_else(|| own().find(fits))
}

fn is_link_local_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

#[derive(Debug, PartialEq, Eq)]
struct Route {
    kind: u8,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
}

fn ask_route(socket: &NetlinkSocket, ifindex: u32, target: IpAddr) -> io::Result<Route> {
    let octets = octets(target);
    let mut request = vec![0; HEADER];
    request[0] = family(target);
    request[1] = octets.len() as u8 * 8;
    request.extend(netlink::attribute(RTA_DST, &octets));
    request.extend(netlink::attribute(RTA_OIF, &ifindex.to_ne_bytes()));
    let answer = socket.ask(RTM_GETROUTE, 0, &request)?;
    read_route(&answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn read_route(answer: &[u8]) -> Option<Route> {
    let mut route = Route { kind: *answer.get(ROUTE_TYPE)?, gateway: None, source: None };
    for attribute in NlasIterator::new(answer.get(HEADER..)?) {
        let attribute = attribute.ok()?;
        match attribute.kind() {
            RTA_GATEWAY => route.gateway = Some(address(attribute.value())?),
            // A gateway of the other family: two octets of family, then its address.
            RTA_VIA => route.gateway = Some(address(attribute.value().get(2..)?)?),
            RTA_PREFSRC => route.source = Some(address(attribute.value())?),
            _ => {}
        }
    }
    Some(route)
}

fn find_neighbour(
    socket: &NetlinkSocket,
    ifindex: u32,
    interface: &str,
    next_hop: IpAddr,
    is_over: &mut dyn FnMut() -> bool,
) -> Result<[u8; 6], ResolveError> {
    let mut request = vec![0; HEADER];
    request[0] = family(next_hop);
    request[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    request.extend(netlink::attribute(NDA_DST, &octets(next_hop)));
    let mut search = request.clone();
    search[10] = NTF_USE;
    let deadline = Instant::now() + NEIGHBOUR_WITHIN;
    let mut is_searching = false;
    loop {
        match socket.ask(RTM_GETNEIGH, 0, &request) {
            Ok(answer) => {
                if let Some(mac) = read_neighbour(&answer) {
                    return Ok(mac);
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        if !is_searching {
            let flags = (libc::NLM_F_CREATE | libc::NLM_F_ACK) as u16;
            socket.ask(RTM_NEWNEIGH, flags, &search).map_err(|cause| ResolveError::NotPermitted {
                next_hop,
                interface: interface.to_owned(),
                cause,
            })?;
            is_searching = true;
        }
        if Instant::now() > deadline {
            return Err(ResolveError::NoNeighbour { next_hop, interface: interface.to_owned() });
        }
        pause(is_over)?;
    }
}

fn pause(is_over: &mut dyn FnMut() -> bool) -> Result<(), ResolveError> {
    if is_over() {
        return Err(ResolveError::Interrupted);
    }
    sleep(POLL);
    Ok(())
}

/// The MAC address in an RTM_NEWNEIGH message, if it is good to use.
fn read_neighbour(answer: &[u8]) -> Option<[u8; 6]> {
    let state = answer.get(NEIGHBOUR_STATE..NEIGHBOUR_STATE + 2)?;
    if u16::from_ne_bytes(state.try_into().ok()?) & NUD_VALID == 0 {
        return None;
    }
    NlasIterator::new(answer.get(HEADER..)?)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == NDA_LLADDR)
        .and_then(|attribute| attribute.value().try_into().ok())
}

const fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from).ok();
    v4.or_else(|| <[u8; 16]>::try_from(octets).map(IpAddr::from).ok())
}

#[cfg(test)]
mod tests;
