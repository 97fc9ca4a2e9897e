//! netlink(7): the socket that tells of links and addresses, questions about one device (`device`), and getifaddrs(3) for
//! where netlink is refused (`listed`).
//!
//! Owns: sockets, bytes and errno. Does not own: what rtnetlink messages mean (`datapath::interface`).
//!
//! The one idea a newcomer lacks: the kernel drops multicast messages when our buffer is full and says so once, by
//! ENOBUFS. After that nothing we remember can be trusted, so losing a message is a value here ([`Received::Lost`])
//! that the reader has to handle, not an error it may retry.

mod device;
mod listed;

pub use device::{DeviceFeatures, LinkState, Transmitted, device_features, link_state, transmitted};
pub use listed::{ListedAddress, list_addresses};

use netlink_packet_core::{NLMSG_ERROR, NetlinkBuffer};
use std::io;
use std::mem::size_of;
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

/// One netlink attribute, padded to four octets.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + value.len());
    bytes.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The error in the payload of an NLMSG_ERROR, which holds a negative errno first.
pub fn error_of(payload: &[u8]) -> io::Error {
    match payload.first_chunk() {
        Some(code) => io::Error::from_raw_os_error(i32::from_ne_bytes(*code).saturating_neg()),
        None => io::ErrorKind::InvalidData.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
