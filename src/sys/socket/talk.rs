//! UDP sockets on which we speak first: to one server, to a peer, to everybody on a network.
//!
//! Owns: opening them, multicast groups, one datagram in or out at a time with all that the kernel tells of it, and the
//! time a datagram left. Does not own: what is said, and to whom.
//!
//! The one idea a newcomer lacks: the kernel puts a copy of each sent datagram into the socket's error queue, with the
//! time it was handed to the driver. The copy begins with the headers of the lower layers, however many they are, so
//! what was sent is recognised by its end.

use super::address::RawAddress;
use super::control_message::{Messages, Writer};
use super::stamp::receive_stamp;
use super::{bind_to_device, local_address, open, set_option, set_option_octets};
use crate::time::{Realtime, Timestamp};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The longest datagram that is read whole: more than any NTP packet without a stranger's extension fields.
const OCTETS_MAX: usize = 1024;
/// Room for a copy from the error queue: Ethernet, tags, IPv6 and UDP before what was sent.
const COPY_OCTETS: usize = OCTETS_MAX + 128;
/// `IP_MULTICAST_ALL` of linux/in.h, and its sister of linux/in6.h: not in the libc crate.
const IP_MULTICAST_ALL: libc::c_int = 49;
const IPV6_MULTICAST_ALL: libc::c_int = 29;
/// A value of `IPV6_ADDR_PREFERENCES` (RFC 5014), of linux/in6.h.
const IPV6_PREFER_SRC_PUBLIC: libc::c_int = 2;

/// A datagram that came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Incoming {
    octets: [u8; OCTETS_MAX],
    length: usize,
    /// Who sent it.
    pub source: SocketAddr,
    /// To which address, if the kernel said so.
    pub destination: Option<IpAddr>,
    /// Through which interface; 0: the kernel did not say.
    pub interface: u32,
    /// When the kernel received it.
    pub receive_timestamp: Option<Timestamp<Realtime>>,
}

impl Incoming {
    /// What was received.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.octets.get(..self.length).unwrap_or_default()
    }
}

/// How a datagram is to leave.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Outgoing {
    /// To whom; `None`: to whom the socket is connected.
    pub to: Option<SocketAddr>,
    /// From which address; `None`: the kernel chooses.
    pub from: Option<IpAddr>,
    /// Through which interface; 0: routing decides.
    pub interface: u32,
    /// TTL or hop limit; `None`: the system's.
    pub hop_limit: Option<u8>,
}

/// What the error queue had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Departure {
    octets: [u8; COPY_OCTETS],
    length: usize,
    /// When it left.
    pub timestamp: Timestamp<Realtime>,
}

impl Departure {
    /// Is this a copy of that datagram?
    #[must_use]
    pub fn is_of(&self, payload: &[u8]) -> bool {
        self.octets.get(..self.length).is_some_and(|copy| copy.ends_with(payload))
    }
}

/// A non-blocking UDP socket.
#[derive(Debug)]
pub struct TalkSocket {
    fd: OwnedFd,
    local: SocketAddr,
}

impl TalkSocket {
    /// With a random port of the kernel's choice (RFC 9109), and to this address only; if there is a `device`, an interface or
    /// VRF, through that only.
    ///
    /// # Errors
    /// What the kernel says: no route, out of descriptors.
    pub fn connected(remote: SocketAddr, device: Option<&str>) -> io::Result<Self> {
        let fd = prepare(remote.is_ipv4(), device)?;
        let name = RawAddress::from(remote);
        // SAFETY: `name` is a sockaddr of the length it states, and lives through the call.
        let result = unsafe { libc::connect(fd.as_raw_fd(), name.as_ptr(), name.length()) };
        Self::named(fd, result)
    }

    /// Bound to a multicast group or broadcast address. What is sent from here comes from an address of ours that routing
    /// (or the sender) chooses, and from this port; what is sent to the address is received, a group's only if it was
    /// joined *here*, and nothing else. So it stands beside the sockets that are bound to our addresses.
    /// `device`: as for [`Self::connected`].
    ///
    /// # Errors
    /// What the kernel says: the port is taken or privileged, the address is none of this machine's networks.
    pub fn bound(address: SocketAddr, device: Option<&str>) -> io::Result<Self> {
        let fd = prepare(address.is_ipv4(), device)?;
        // One that is tied to no device would keep those of all VRFs from binding the same address. To share it is harmless:
        // of what is sent to everybody each socket gets a copy.
        let _ = set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1);
        if address.is_ipv4() {
            set_option(&fd, libc::SOL_SOCKET, libc::SO_BROADCAST, 1)?;
            set_option(&fd, libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP, 0)?;
            // By default a socket hears every group that anybody on this machine has joined.
            set_option(&fd, libc::IPPROTO_IP, IP_MULTICAST_ALL, 0)?;
        } else {
            set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
            set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, 0)?;
            // Linux 4.20 and newer. Elsewhere the address it is bound to does most of it.
            let _ = set_option(&fd, libc::IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0);
            // Peers and listeners know us by our address, not by one that is another tomorrow (RFC 8981).
            let _ = set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_ADDR_PREFERENCES, IPV6_PREFER_SRC_PUBLIC);
        }
        let name = RawAddress::from(address);
        // SAFETY: `name` is a sockaddr of the length it states, and lives through the call.
        let result = unsafe { libc::bind(fd.as_raw_fd(), name.as_ptr(), name.length()) };
        Self::named(fd, result)
    }

    fn named(fd: OwnedFd, result: libc::c_int) -> io::Result<Self> {
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let local = local_address(&fd)?;
        Ok(Self { fd, local })
    }

    /// The address and port it has: of a connected socket those of the way to its remote.
    #[must_use]
    pub const fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Joins a group on an interface.
    ///
    /// # Errors
    /// What the kernel says: no such interface, no multicast on it, too many groups.
    pub fn join(&self, group: IpAddr, interface: u32) -> io::Result<()> {
        self.set_membership(group, interface, libc::IP_ADD_MEMBERSHIP, libc::IPV6_ADD_MEMBERSHIP)
    }

    /// Leaves it.
    ///
    /// # Errors
    /// What the kernel says: it was not joined, or the interface is gone, and with it the membership.
    pub fn leave(&self, group: IpAddr, interface: u32) -> io::Result<()> {
        self.set_membership(group, interface, libc::IP_DROP_MEMBERSHIP, libc::IPV6_DROP_MEMBERSHIP)
    }

    fn set_membership(
        &self,
        group: IpAddr,
        interface: u32,
        ipv4: libc::c_int,
        ipv6: libc::c_int,
    ) -> io::Result<()> {
        let index = interface.to_ne_bytes();
        match group {
            IpAddr::V4(group) => {
                // struct ip_mreqn: group, our address (by the interface), interface.
                let request = [group.octets(), Ipv4Addr::UNSPECIFIED.octets(), index].concat();
                set_option_octets(&self.fd, libc::IPPROTO_IP, ipv4, &request)
            }
            IpAddr::V6(group) => {
                // struct ipv6_mreq: group, interface.
                let request = [&group.octets()[..], &index].concat();
                set_option_octets(&self.fd, libc::IPPROTO_IPV6, ipv6, &request)
            }
        }
    }

    /// Sends a datagram; never waits.
    ///
    /// # Errors
    /// What the kernel says, also that it would have to wait.
    pub fn send(&self, payload: &[u8], outgoing: &Outgoing) -> io::Result<()> {
        let mut control = Writer::default();
        let is_ipv4 = self.local.is_ipv4();
        if outgoing.interface != 0 || outgoing.from.is_some() {
            let index = outgoing.interface.to_ne_bytes();
            if is_ipv4 {
                let from = match outgoing.from {
                    Some(IpAddr::V4(from)) => from,
                    _ => Ipv4Addr::UNSPECIFIED,
                };
                // struct in_pktinfo: interface, our address, (on receipt: the destination).
                let information = [index, from.octets(), [0; 4]].concat();
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &information);
            } else {
                let from = match outgoing.from {
                    Some(IpAddr::V6(from)) => from,
                    _ => Ipv6Addr::UNSPECIFIED,
                };
                // struct in6_pktinfo: our address, interface.
                let information = [&from.octets()[..], &index].concat();
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &information);
            }
        }
        if let Some(hop_limit) = outgoing.hop_limit {
            let hop_limit = libc::c_int::from(hop_limit).to_ne_bytes();
            match is_ipv4 {
                true => control.push(libc::IPPROTO_IP, libc::IP_TTL, &hop_limit),
                false => control.push(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, &hop_limit),
            }
        }
        let mut name = outgoing.to.map(RawAddress::from);
        let mut vector = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
        let header = libc::msghdr {
            msg_name: name.as_mut().map_or(std::ptr::null_mut(), |name| name.as_mut_ptr().cast()),
            msg_namelen: name.as_ref().map_or(0, RawAddress::length),
            msg_iov: &raw mut vector,
            msg_iovlen: 1,
            msg_control: control.as_mut_ptr(),
            msg_controllen: control.length(),
            msg_flags: 0,
        };
        // SAFETY: the header points to one vector, which points to the payload, one address and one control buffer, all
        // with their true sizes, unmoved in the call, which only reads them.
        let sent = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next datagram, if there is one; never waits. One that is too long, or has no IP source, is passed over.
    ///
    /// # Errors
    /// What the kernel says, such as an ICMP error, which is told once.
    pub fn receive(&self) -> io::Result<Option<Incoming>> {
        let mut octets = [0; OCTETS_MAX];
        while let Some(message) = self.take(&mut octets, 0)? {
            let source = message.name.decode();
            if let (Some(source), false) = (source, message.is_truncated) {
                let control = message.control();
                let (destination, interface) = arrival(control);
                return Ok(Some(Incoming {
                    octets,
                    length: message.length,
                    source,
                    destination,
                    interface,
                    receive_timestamp: receive_stamp(control),
                }));
            }
        }
        Ok(None)
    }

    /// The next of the datagrams that have left, if the kernel told of one; never waits. `None` also where it tells of
    /// none at all.
    #[must_use]
    pub fn departure(&self) -> Option<Departure> {
        let mut octets = [0; COPY_OCTETS];
        while let Ok(Some(message)) = self.take(&mut octets, libc::MSG_ERRQUEUE) {
            if let Some(timestamp) = receive_stamp(message.control()) {
                return Some(Departure { octets, length: message.length.min(COPY_OCTETS), timestamp });
            }
        }
        None
    }

    fn take(&self, octets: &mut [u8], flags: libc::c_int) -> io::Result<Option<Message>> {
        let mut message = Message::default();
        let mut vector = libc::iovec { iov_base: octets.as_mut_ptr().cast(), iov_len: octets.len() };
        let mut header = libc::msghdr {
            msg_name: message.name.as_mut_ptr().cast(),
            msg_namelen: RawAddress::CAPACITY,
            msg_iov: &raw mut vector,
            msg_iovlen: 1,
            msg_control: message.control.0.as_mut_ptr().cast(),
            msg_controllen: message.control.0.len(),
            msg_flags: 0,
        };
        // SAFETY: the header points to one vector, which points to `octets`, and to the room of `message`, all with their
        // true sizes; nobody moves or touches any of it during the call.
        let result = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut header, flags) };
        let Ok(length) = usize::try_from(result) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
        };
        message.length = length;
        message.is_truncated = header.msg_flags & libc::MSG_TRUNC != 0;
        message.control_length = header.msg_controllen;
        message.name.set_length(header.msg_namelen);
        Ok(Some(message))
    }
}

impl AsFd for TalkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What the kernel wrote beside the datagram.
struct Message {
    name: RawAddress,
    control: Control,
    control_length: usize,
    length: usize,
    is_truncated: bool,
}

/// The kernel reads and writes the header of a control message as words.
#[repr(C, align(8))]
struct Control([u8; 512]);

impl Default for Message {
    fn default() -> Self {
        Self {
            name: RawAddress::EMPTY,
            control: Control([0; 512]),
            control_length: 0,
            length: 0,
            is_truncated: false,
        }
    }
}

impl Message {
    fn control(&self) -> &[u8] {
        self.control.0.get(..self.control_length).unwrap_or_default()
    }
}

/// To which address a datagram was sent, and through which interface it came.
fn arrival(control: &[u8]) -> (Option<IpAddr>, u32) {
    for (level, kind, data) in Messages::new(control) {
        if level == libc::IPPROTO_IP && kind == libc::IP_PKTINFO {
            let index = data.first_chunk().map_or(0, |index| u32::from_ne_bytes(*index));
            let octets = data.get(8..).and_then(|rest| rest.first_chunk::<4>());
            return (octets.map(|octets| IpAddr::from(*octets)), index);
        }
        if level == libc::IPPROTO_IPV6 && kind == libc::IPV6_PKTINFO {
            let octets = data.first_chunk::<16>();
            let index = data.get(16..).and_then(|rest| rest.first_chunk());
            return (
                octets.map(|octets| IpAddr::from(*octets)),
                index.map_or(0, |index| u32::from_ne_bytes(*index)),
            );
        }
    }
    (None, 0)
}

/// A socket that tells all it can. What is refused is done without.
fn prepare(is_ipv4: bool, device: Option<&str>) -> io::Result<OwnedFd> {
    let fd = open(if is_ipv4 { libc::AF_INET } else { libc::AF_INET6 })?;
    if let Some(device) = device {
        bind_to_device(&fd, device)?;
    }
    let _ = match is_ipv4 {
        true => set_option(&fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
        false => set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1),
    };
    let stamps = libc::SOF_TIMESTAMPING_RX_SOFTWARE
        | libc::SOF_TIMESTAMPING_TX_SOFTWARE
        | libc::SOF_TIMESTAMPING_SOFTWARE;
    if set_option(&fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, stamps.cast_signed()).is_err() {
        let _ = set_option(&fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1);
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;
    use crate::sys::process::{PollEntry, poll};
    use std::time::Duration;

    fn wait(socket: &TalkSocket) {
        let mut entries = [PollEntry::readable(socket.as_fd().as_raw_fd())];
        assert_eq!(poll(&mut entries, Some(Duration::from_secs(5))).unwrap(), 1);
    }

    #[test]
    fn what_leaves_is_stamped_and_what_comes_says_whence_and_when() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = std::net::UdpSocket::bind(address).unwrap();
            let client = TalkSocket::connected(server.local_addr().unwrap(), None).unwrap();
            assert_ne!(client.local_address().port(), 0);
            let before = clock::realtime();
            client.send(b"question", &Outgoing::default()).unwrap();
            let departure = client.departure().expect("the loopback interface stamps at once");
            assert!(departure.is_of(b"question") && !departure.is_of(b"answer"));
            assert!((0..1_000_000_000).contains(&departure.timestamp.nanoseconds_since(before)));
            assert_eq!(client.departure(), None);
            let mut buffer = [0; 16];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], from), (&b"question"[..], client.local_address()));
            server.send_to(b"answer", from).unwrap();
            wait(&client);
            let answer = client.receive().unwrap().expect("it is there");
            assert_eq!((answer.payload(), answer.source), (&b"answer"[..], server.local_addr().unwrap()));
            assert_eq!(answer.destination, Some(from.ip()));
            assert_eq!(answer.interface, 1, "lo");
            assert_eq!(client.receive().unwrap(), None);
            // The kernel begins to stamp some time after the first socket that asks for it.
            let stamp = (0..100).find_map(|_| {
                server.send_to(b"again", from).unwrap();
                wait(&client);
                std::thread::sleep(Duration::from_millis(1));
                client.receive().unwrap().expect("it is there").receive_timestamp
            });
            let stamp = stamp.expect("a stamp");
            assert!((0..1_000_000_000).contains(&stamp.nanoseconds_since(departure.timestamp)));
        }
    }

    #[test]
    fn what_is_too_long_is_passed_over_and_a_closed_port_is_an_error_once() {
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = TalkSocket::connected(server.local_addr().unwrap(), None).unwrap();
        server.send_to(&[7; OCTETS_MAX + 1], client.local_address()).unwrap();
        server.send_to(b"short", client.local_address()).unwrap();
        wait(&client);
        assert_eq!(client.receive().unwrap().unwrap().payload(), b"short");
        drop(server);
        client.send(b"question", &Outgoing::default()).unwrap();
        wait(&client);
        let _ = client.departure();
        assert_eq!(client.receive().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(client.receive().unwrap(), None);
    }
}
