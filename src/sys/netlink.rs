//! netlink(7): the socket that tells of links and addresses, what the `netdev` family knows of a device, what a link has
//! sent, and getifaddrs(3) for where netlink is refused.
//!
//! Owns: sockets, bytes and errno. Does not own: what rtnetlink messages mean (`datapath::interface`).
//!
//! The one idea a newcomer lacks: the kernel drops multicast messages when our buffer is full and says so once, by
//! ENOBUFS. After that nothing we remember can be trusted, so losing a message is a value here ([`Received::Lost`])
//! that the reader has to handle, not an error it may retry.

use netlink_packet_core::{NLMSG_ERROR, NetlinkBuffer, NlasIterator};
use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Octets of kernel memory for queued messages: 500 addresses added at once are about 400 kB of it.
const RECEIVE_BUFFER: libc::c_int = 4 << 20;
/// Room for one datagram. The kernel packs dumps into at most 32 KiB; single events are far smaller.
pub const DATAGRAM_MAX: usize = 64 << 10;
/// The kernel answers within the call that asks; a second is for a machine on its knees.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// What a read from a [`NetlinkSocket`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Nothing is waiting.
    Nothing,
    /// A datagram of so many octets: one or more netlink messages.
    Datagram(usize),
    /// The kernel dropped messages, or one did not fit: what was learnt so far may be out of date.
    Lost,
}

/// A non-blocking netlink socket. It belongs to the network namespace of the thread that opened it, for ever.
#[derive(Debug)]
pub struct NetlinkSocket {
    socket: OwnedFd,
}

impl NetlinkSocket {
    /// A NETLINK_ROUTE socket that hears of links and of IPv4 and IPv6 addresses.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2).
    pub fn open_route() -> io::Result<Self> {
        Self::open(
            libc::NETLINK_ROUTE,
            libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR,
        )
    }

    /// A NETLINK_ROUTE socket that hears nothing but answers.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2).
    pub fn open_route_requests() -> io::Result<Self> {
        Self::open(libc::NETLINK_ROUTE, 0)
    }

    fn open(protocol: libc::c_int, groups: libc::c_int) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: socket(2) takes no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) })?;
        // SAFETY: the kernel has just given us this descriptor and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut address = kernel_address();
        address.nl_groups = groups as u32;
        // SAFETY: the address is a whole sockaddr_nl and its length is given.
        check(unsafe { libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_nl>() as u32) })?;
        // Beyond net.core.rmem_max only with CAP_NET_ADMIN; a smaller buffer means more dumps, not wrong views.
        if set_receive_buffer(&socket, libc::SO_RCVBUFFORCE).is_err() {
            set_receive_buffer(&socket, libc::SO_RCVBUF)?;
        }
        Ok(Self { socket })
    }

    /// Sends one request to the kernel.
    ///
    /// # Errors
    /// Those of sendto(2).
    pub fn send(&self, request: &[u8]) -> io::Result<()> {
        let address = kernel_address();
        // SAFETY: both pointers come with the lengths of what they point to.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                request.as_ptr().cast(),
                request.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_nl>() as u32,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Reads one datagram that the kernel sent, without waiting. What other processes send is thrown away.
    ///
    /// # Errors
    /// Those of recvfrom(2), except EAGAIN, EINTR and ENOBUFS, which are handled.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            let mut sender = kernel_address();
            let mut sender_length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
            // SAFETY: both pointers come with the lengths of what they point to. MSG_TRUNC makes the result the
            // datagram's real length; no more than the buffer's is written.
            let length = unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_TRUNC,
                    (&raw mut sender).cast(),
                    &raw mut sender_length,
                )
            };
            let Ok(length) = usize::try_from(length) else {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(Received::Nothing),
                    Some(libc::ENOBUFS) => return Ok(Received::Lost),
                    Some(libc::EINTR) => continue,
                    _ => return Err(error),
                }
            };
            if sender.nl_pid == 0 {
                return Ok(if length > buffer.len() { Received::Lost } else { Received::Datagram(length) });
            }
        }
    }

    /// As [`receive`](Self::receive), but waits for an answer as long as [`ANSWER_WITHIN`].
    ///
    /// # Errors
    /// Also `TimedOut`.
    pub fn receive_answer(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = ANSWER_WITHIN.as_millis() as libc::c_int;
        loop {
            // SAFETY: one pollfd, and the count says one.
            match check(unsafe { libc::poll(&raw mut poll, 1, milliseconds) }) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => break,
            }
        }
        match self.receive(buffer)? {
            Received::Nothing => Err(io::Error::new(io::ErrorKind::TimedOut, "netlink did not answer")),
            received => Ok(received),
        }
    }
}

impl NetlinkSocket {
    /// Sends one request, on a socket that hears of nothing else, and returns the payload of its one answer: empty for
    /// a mere acknowledgement.
    ///
    /// # Errors
    /// The kernel's refusal, and what the socket calls report.
    pub fn ask(&self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<Vec<u8>> {
        self.send(&message(kind, libc::NLM_F_REQUEST as u16 | flags, 1, payload))?;
        let mut buffer = vec![0; DATAGRAM_MAX];
        let Received::Datagram(length) = self.receive_answer(&mut buffer)? else {
            return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        };
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let answer = NetlinkBuffer::new_checked(&buffer[..length]).map_err(invalid)?;
        match answer.message_type() {
            NLMSG_ERROR if answer.payload().starts_with(&[0; 4]) => Ok(Vec::new()),
            NLMSG_ERROR => Err(error_of(answer.payload())),
            _ => Ok(answer.payload().to_vec()),
        }
    }
}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn kernel_address() -> libc::sockaddr_nl {
    // SAFETY: sockaddr_nl is plain integers, for which zero is a value (and means "the kernel").
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address
}

fn set_receive_buffer(socket: &OwnedFd, option: libc::c_int) -> io::Result<()> {
    let value = RECEIVE_BUFFER;
    // SAFETY: the value is a c_int and its length is given.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as u32,
        )
    })?;
    Ok(())
}

/// One netlink message: header and payload. Port 0 lets the kernel fill in ours.
pub fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + payload.len());
    bytes.extend_from_slice(&(16 + payload.len() as u32).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

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

/// One netlink attribute, padded to four octets.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + value.len());
    bytes.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
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

/// The error in the payload of an NLMSG_ERROR, which holds a negative errno first.
pub fn error_of(payload: &[u8]) -> io::Error {
    match payload.first_chunk() {
        Some(code) => io::Error::from_raw_os_error(i32::from_ne_bytes(*code).saturating_neg()),
        None => io::ErrorKind::InvalidData.into(),
    }
}

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

    #[test]
    fn reads_the_error_of_a_refusal() {
        assert_eq!(error_of(&(-libc::EPERM).to_ne_bytes()).raw_os_error(), Some(libc::EPERM));
        assert_eq!(error_of(&[1, 2]).kind(), io::ErrorKind::InvalidData);
        assert_eq!(error_of(&i32::MIN.to_ne_bytes()).raw_os_error(), Some(i32::MAX));
    }

    #[test]
    fn pads_attributes_but_does_not_count_the_padding() {
        assert_eq!(attribute(2, b"netdev\0"), [&[11, 0, 2, 0][..], b"netdev\0\0"].concat());
    }

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
