//! UDP sockets bound to one local address each, with the kernel's receive stamps.
//!
//! Owns: opening, options, and moving batches of datagrams ([`Batch`]) in and out. Does not own: which addresses
//! are served and what is answered.
//!
//! The one idea a newcomer lacks: a socket that is bound to a unicast address *is* the answer to "which address
//! was asked" and "from which address do we reply", so no `IP_PKTINFO` is needed, and no broadcast or multicast
//! ever arrives here. For link-local addresses the scope is part of the binding too.
//!
//! What a kernel, a sandbox or a time simulator refuses is done without where that is possible: stamps by
//! `SO_TIMESTAMPING`, else `SO_TIMESTAMPNS`, else none; batches by `recvmmsg`, else one datagram at a time.

mod address;
mod batch;
mod choice;
mod control_message;
mod stamp;
mod talk;

pub use batch::{BATCH_MAX, Batch, DATAGRAM_MAX, Datagram, Received};
pub use talk::{Departure, Incoming, Outgoing, TalkSocket};

use super::process::owned;
use address::RawAddress;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;

/// Who else may bind the same address and port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// Nobody, and binding fails if somebody has done so already, even in a `SO_REUSEPORT` group.
    Exclusive,
    /// Other sockets of the same user that are members of the same `SO_REUSEPORT` group.
    Group,
}

/// Which receive stamps the kernel puts on a socket's datagrams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StampSource {
    /// `SO_TIMESTAMPING`, the software stamp: taken as the driver hands the packet to the network stack.
    Timestamping,
    /// `SO_TIMESTAMPNS`: the same instant, an older option.
    TimestampNs,
    /// None: read the clock on receipt, later by the time it took to get here.
    None,
}

/// What all sockets of one server have in common.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct UdpOptions {
    /// Receive and send through this interface (or VRF) only.
    pub device: Option<String>,
    /// Octets of kernel memory for datagrams that wait to be read; `None`: the system's default. What the system
    /// does not grant is done without.
    pub receive_buffer: Option<usize>,
}

/// What `SO_MEMINFO` tells, the drops being the last of them (`SK_MEMINFO_VARS` of linux/sock_diag.h).
const MEMORY_FIGURES: usize = libc::SK_MEMINFO_DROPS as usize + 1;

/// A non-blocking UDP socket bound to one unicast address.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    local: SocketAddr,
    stamps: StampSource,
    /// Set once `recvmmsg` or `sendmmsg` has been refused.
    one_at_a_time: AtomicBool,
}

impl UdpSocket {
    /// Opens a socket and binds it to `local`, with receive stamps if there are any.
    ///
    /// # Errors
    /// What the kernel says of the socket, the device or the address: `AddrInUse`, `AddrNotAvailable`,
    /// `PermissionDenied` for a port below 1024, among others.
    pub fn bind(local: SocketAddr, sharing: Sharing, options: &UdpOptions) -> io::Result<Self> {
        let fd = open(if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 })?;
        if local.is_ipv6() {
            set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
        }
        if let Some(device) = &options.device {
            bind_to_device(&fd, device)?;
        }
        if sharing == Sharing::Group {
            set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        }
        if let Some(octets) = options.receive_buffer {
            grow_receive_buffer(&fd, octets);
        }
        let name = RawAddress::from(local);
        // SAFETY: `name` is a sockaddr of the length it states, and lives through the call.
        let result = unsafe { libc::bind(fd.as_raw_fd(), name.as_ptr(), name.length()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let local = local_address(&fd)?;
        let stamps = enable_stamps(&fd);
        Ok(Self { fd, local, stamps, one_at_a_time: AtomicBool::new(false) })
    }

    /// Lets sockets bound from now on with [`Sharing::Group`] join this one, which was bound [`Sharing::Exclusive`].
    ///
    /// # Errors
    /// What the kernel says; it has known this option since 3.9.
    pub fn share(&self) -> io::Result<()> {
        set_option(&self.fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)
    }

    /// The address and port that this socket is bound to, with the scope of a link-local one.
    #[must_use]
    pub const fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// How many datagrams the kernel has dropped at this socket, above all because the receive buffer was full; 0
    /// where it does not tell (Linux before 4.12).
    #[must_use]
    pub fn dropped(&self) -> u32 {
        let mut memory = [0_u32; MEMORY_FIGURES];
        let mut length = size_of_val(&memory) as libc::socklen_t;
        let (level, option) = (libc::SOL_SOCKET, libc::SO_MEMINFO);
        // SAFETY: the pointer is to `length` octets that live through the call, which alone writes to them.
        let result = unsafe {
            libc::getsockopt(self.fd.as_raw_fd(), level, option, memory.as_mut_ptr().cast(), &raw mut length)
        };
        if result == 0 { memory[libc::SK_MEMINFO_DROPS as usize] } else { 0 }
    }

    /// Which receive stamps the kernel agreed to.
    #[must_use]
    pub const fn stamps(&self) -> StampSource {
        self.stamps
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A non-blocking datagram socket that is closed on exec.
fn open(family: libc::c_int) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes three integers and touches no memory of ours.
    let result = owned(unsafe { libc::socket(family, libc::SOCK_DGRAM | flags, 0) });
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        opened => return opened,
    }
    // Time simulators know the plain type only.
    // SAFETY: as above.
    let fd = owned(unsafe { libc::socket(family, libc::SOCK_DGRAM, 0) })?;
    set_descriptor_flag(&fd, libc::F_SETFD, libc::FD_CLOEXEC)?;
    // A new socket has no other status flag that this could clear.
    set_descriptor_flag(&fd, libc::F_SETFL, libc::O_NONBLOCK)?;
    Ok(fd)
}

fn set_descriptor_flag(fd: &OwnedFd, command: libc::c_int, flag: libc::c_int) -> io::Result<()> {
    // SAFETY: both commands that are used here take an integer.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), command, flag) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_option(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    set_option_octets(fd, level, option, &value.to_ne_bytes())
}

fn set_option_octets(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &[u8]) -> io::Result<()> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: the pointer is to `length` readable octets that live through the call.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, value.as_ptr().cast(), length) };
    if result != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives and sends through this interface (or VRF) only.
fn bind_to_device(fd: &OwnedFd, device: &str) -> io::Result<()> {
    set_option_octets(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device.as_bytes())
}

/// Beyond the system's limit where we are privileged, up to it otherwise. A smaller buffer loses more in a burst,
/// which is no reason not to serve.
fn grow_receive_buffer(fd: &OwnedFd, octets: usize) {
    let octets = libc::c_int::try_from(octets).unwrap_or(libc::c_int::MAX);
    if set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, octets).is_err() {
        let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, octets);
    }
}

fn enable_stamps(fd: &OwnedFd) -> StampSource {
    let software = (libc::SOF_TIMESTAMPING_RX_SOFTWARE | libc::SOF_TIMESTAMPING_SOFTWARE).cast_signed();
    if set_option(fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, software).is_ok() {
        StampSource::Timestamping
    } else if set_option(fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1).is_ok() {
        StampSource::TimestampNs
    } else {
        StampSource::None
    }
}

fn local_address(fd: &OwnedFd) -> io::Result<SocketAddr> {
    let mut name = RawAddress::EMPTY;
    let mut length = RawAddress::CAPACITY;
    // SAFETY: `name` has room for `length` octets; both live through the call, which alone writes to them.
    let result = unsafe { libc::getsockname(fd.as_raw_fd(), name.as_mut_ptr(), &raw mut length) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    name.set_length(length);
    name.decode().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an IP socket"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(address: &str, sharing: Sharing) -> io::Result<UdpSocket> {
        UdpSocket::bind(address.parse().unwrap(), sharing, &UdpOptions::default())
    }

    #[test]
    fn a_bound_socket_can_be_opened_to_a_group_afterwards() {
        let first = bind("127.0.3.1:0", Sharing::Exclusive).unwrap();
        assert_eq!(first.stamps(), StampSource::Timestamping);
        let taken = first.local_address().to_string();
        assert_eq!(bind(&taken, Sharing::Group).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        first.share().unwrap();
        let second = bind(&taken, Sharing::Group).unwrap();
        assert_eq!(second.local_address(), first.local_address());
        assert_eq!(bind(&taken, Sharing::Exclusive).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_socket_can_be_tied_to_a_device() {
        let local = "127.0.3.2:0".parse().unwrap();
        let on = |device: &str| {
            let options = UdpOptions { device: Some(device.to_owned()), receive_buffer: Some(1 << 20) };
            UdpSocket::bind(local, Sharing::Exclusive, &options)
        };
        assert!(on("lo").is_ok());
        let to = "127.0.3.2:123".parse().unwrap();
        assert!(TalkSocket::connected(to, Some("lo")).is_ok());
        let absent = TalkSocket::connected(to, Some("no-such-device")).unwrap_err();
        assert_eq!(absent.raw_os_error(), Some(libc::ENODEV));
        assert_eq!(on("no-such-device").unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
