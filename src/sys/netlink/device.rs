//! Questions to the kernel about one device: what XDP it can do, what it has sent, whether it has its link.
//!
//! Owns: the requests and where their answers have what. Does not own: the socket.
//!
//! The one idea a newcomer lacks: netlink only grows attributes, so an unknown one is passed over, and one that is missing
//! is an older kernel.

use super::{NetlinkSocket, attribute};
use netlink_packet_core::NlasIterator;
use std::io;

/// What the kernel's `netdev` family (Linux 6.3 and newer) says of a device. Bits as in linux/netdev.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceFeatures {
    /// `netdev-xdp-act` bits.
    pub xdp: u64,
    /// Segments that a zero-copy frame may have; 1 = single buffers only. `None`: not said.
    pub zero_copy_segments_max: Option<u32>,
    /// `netdev-xdp-rx-metadata` bits: which metadata kfuncs the driver has. `None`: kernel older than 6.8.
    pub rx_metadata: Option<u64>,
    /// `netdev-xsk-flags` bits: which AF_XDP transmit metadata the driver has. `None`: kernel older than 6.8.
    pub xsk: Option<u64>,
}

// linux/netdev.h
const NETDEV_FAMILY: &[u8] = b"netdev\0";
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_A_DEV_XDP_ZC_MAX_SEGS: u16 = 4;
const NETDEV_A_DEV_XDP_RX_METADATA_FEATURES: u16 = 5;
const NETDEV_A_DEV_XSK_FEATURES: u16 = 6;
/// Octets of a generic netlink header: command, version, two reserved.
const GENERIC_HEADER: usize = 4;

/// Asks the `netdev` family for a device of the calling thread's network namespace.
///
/// # Errors
/// `NotFound` when the kernel has no such family (older than 6.3), `ENODEV` for an unknown index, and what the socket
/// calls report.
pub fn device_features(ifindex: u32) -> io::Result<DeviceFeatures> {
    let socket = NetlinkSocket::open(libc::NETLINK_GENERIC, 0)?;
    let name = attribute(libc::CTRL_ATTR_FAMILY_NAME as u16, NETDEV_FAMILY);
    let mut family = None;
    ask_generic(&socket, libc::GENL_ID_CTRL as u16, libc::CTRL_CMD_GETFAMILY as u8, &name, |kind, value| {
        if kind == libc::CTRL_ATTR_FAMILY_ID as u16 {
            family = value.try_into().ok().map(u16::from_ne_bytes);
        }
    })?;
    let family = family.ok_or(io::ErrorKind::InvalidData)?;
    let index = attribute(NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes());
    let mut features = DeviceFeatures::default();
    ask_generic(&socket, family, NETDEV_CMD_DEV_GET, &index, |kind, value| {
        let long = || value.try_into().ok().map(u64::from_ne_bytes);
        match kind {
            NETDEV_A_DEV_XDP_FEATURES => features.xdp = long().unwrap_or(0),
            NETDEV_A_DEV_XDP_RX_METADATA_FEATURES => features.rx_metadata = long(),
            NETDEV_A_DEV_XSK_FEATURES => features.xsk = long(),
            NETDEV_A_DEV_XDP_ZC_MAX_SEGS => {
                features.zero_copy_segments_max = value.try_into().ok().map(u32::from_ne_bytes);
            }
            _ => {}
        }
    })?;
    Ok(features)
}

/// What an interface has sent since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transmitted {
    /// Packets.
    pub packets: u64,
    /// Packets that it dropped instead.
    pub dropped: u64,
}

// linux/rtnetlink.h, linux/if_link.h
const RTM_GETSTATS: u16 = 94;
const IFLA_STATS_LINK_64: u16 = 1;
/// Octets of struct if_stats_msg: family and padding, index, bit mask of the attributes wanted.
const STATS_HEADER: usize = 12;
/// Where in struct rtnl_link_stats64 they lie.
const TX_PACKETS: usize = 8;
const TX_DROPPED: usize = 56;

/// Asks for the counters of an interface of the calling thread's network namespace.
///
/// # Errors
/// `ENODEV` for an unknown index, and what the socket calls report.
pub fn transmitted(ifindex: u32) -> io::Result<Transmitted> {
    let socket = NetlinkSocket::open_route_requests()?;
    let mask = 1_u32 << (IFLA_STATS_LINK_64 - 1);
    let payload = [[0; 4], ifindex.to_ne_bytes(), mask.to_ne_bytes()].concat();
    let mut transmitted = None;
    ask(&socket, RTM_GETSTATS, &payload, STATS_HEADER, |kind, value| {
        let counter = |at: usize| value.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
        if kind == IFLA_STATS_LINK_64
            && let (Some(packets), Some(dropped)) = (counter(TX_PACKETS), counter(TX_DROPPED))
        {
            transmitted = Some(Transmitted { packets, dropped });
        }
    })?;
    transmitted.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether a link works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// It was set up (`IFF_UP`) and has a carrier: on a veth, its peer is up too.
    pub is_up: bool,
    /// How often it lost its carrier since it was made; setting it down counts.
    pub losses: u32,
}

// linux/rtnetlink.h, linux/if_link.h
const RTM_GETLINK: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_CARRIER: u16 = 33;
const IFLA_CARRIER_DOWN_COUNT: u16 = 48;
/// Counters take the driver's time, and are not asked for.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
/// Octets of struct ifinfomsg, and where it has the flags.
const LINK_HEADER: usize = 16;
const LINK_FLAGS: usize = 8;

/// Asks on `socket`, which hears of nothing else, for a link of its network namespace. The carrier is told as it is: the
/// flag `IFF_RUNNING` follows it up to a second later.
///
/// # Errors
/// `ENODEV` for an unknown index, and what the socket calls report.
pub fn link_state(socket: &NetlinkSocket, ifindex: u32) -> io::Result<LinkState> {
    let mut request = vec![0; LINK_HEADER];
    request[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    request.extend(attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes()));
    let answer = socket.ask(RTM_GETLINK, 0, &request)?;
    let flags = answer.get(LINK_FLAGS..LINK_FLAGS + 4).and_then(|flags| flags.try_into().ok());
    let flags = u32::from_ne_bytes(flags.ok_or(io::ErrorKind::InvalidData)?);
    let (mut has_carrier, mut losses) = (false, 0);
    for attribute in NlasIterator::new(answer.get(LINK_HEADER..).unwrap_or_default()) {
        let attribute = attribute.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        match attribute.kind() {
            IFLA_CARRIER => has_carrier = attribute.value() == [1],
            IFLA_CARRIER_DOWN_COUNT => {
                losses = attribute.value().try_into().map_or(0, u32::from_ne_bytes);
            }
            _ => {}
        }
    }
    Ok(LinkState { is_up: flags & libc::IFF_UP as u32 != 0 && has_carrier, losses })
}

/// Sends one generic netlink request and shows each attribute of its one answer to `see`.
fn ask_generic(
    socket: &NetlinkSocket,
    family: u16,
    command: u8,
    attributes: &[u8],
    see: impl FnMut(u16, &[u8]),
) -> io::Result<()> {
    ask(socket, family, &[&[command, 1, 0, 0], attributes].concat(), GENERIC_HEADER, see)
}

/// Sends one request and shows each attribute of its one answer, which come behind `header` octets, to `see`.
fn ask(
    socket: &NetlinkSocket,
    kind: u16,
    payload: &[u8],
    header: usize,
    mut see: impl FnMut(u16, &[u8]),
) -> io::Result<()> {
    let answer = socket.ask(kind, 0, payload)?;
    let attributes = answer.get(header..).ok_or(io::ErrorKind::InvalidData)?;
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        see(attribute.kind(), attribute.value());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::list_addresses;

    #[test]
    fn an_unknown_device_is_an_error() {
        let error = device_features(u32::MAX >> 1).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)), "{error}");
        let socket = NetlinkSocket::open_route_requests().unwrap();
        assert_eq!(link_state(&socket, u32::MAX >> 1).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert_eq!(transmitted(u32::MAX >> 1).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn loopback_has_a_link_if_it_is_up() {
        let socket = NetlinkSocket::open_route_requests().unwrap();
        let state = link_state(&socket, 1).unwrap();
        let listed = list_addresses().unwrap();
        let flags = listed.iter().find(|line| line.ifindex == 1).unwrap().flags;
        assert_eq!(state, LinkState { is_up: flags & libc::IFF_UP as u32 != 0, losses: 0 });
    }

    #[test]
    fn what_loopback_sends_is_counted() {
        let before = transmitted(1).unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        assert!(transmitted(1).unwrap().packets > before.packets);
    }
}
