//! A batch of datagrams: received with one system call, answered in place, sent with another.
//!
//! The one idea a newcomer lacks: the reply is written over its request. The address it came from is kept in the
//! kernel's own layout and handed back as the address to send to, scope and all, so answering needs no copy and
//! no allocation.

use super::UdpSocket;
use super::address::RawAddress;
use super::stamp::receive_stamp;
use crate::time::{Realtime, Timestamp};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

/// How many datagrams are moved at once. Beyond this the system call's share of the cost is lost in the rest,
/// and the first of a batch waits for the last to be answered.
pub const BATCH_MAX: usize = 64;

/// The longest datagram that is considered, in octets: more than an Ethernet frame holds. What is longer is
/// counted as truncated and never parsed.
pub const DATAGRAM_MAX: usize = 2048;

/// Room for control messages: a `SCM_TIMESTAMPING` message takes 64 octets, and nothing else was asked for.
const CONTROL_OCTETS: usize = 128;

/// One datagram of a [`Batch`].
#[derive(Debug)]
#[repr(align(64))]
pub struct Datagram {
    payload: [u8; DATAGRAM_MAX],
    control: Control,
    peer: RawAddress,
    source: Option<SocketAddr>,
    receive_timestamp: Option<Timestamp<Realtime>>,
    length: usize,
    reply_length: Option<usize>,
}

/// The kernel reads the header of a control message as words.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_OCTETS]);

impl Datagram {
    const EMPTY: Self = Self {
        payload: [0; DATAGRAM_MAX],
        control: Control([0; CONTROL_OCTETS]),
        peer: RawAddress::EMPTY,
        source: None,
        receive_timestamp: None,
        length: 0,
        reply_length: None,
    };

    /// What was received, and where the reply is written.
    pub fn payload(&mut self) -> &mut [u8] {
        &mut self.payload[..self.length]
    }

    /// Who sent it; the scope is set for a link-local address.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        self.source.expect("a batch hands out only datagrams whose source was decoded")
    }

    /// When the kernel received it, if it said so. The stamp was taken before this process was woken.
    #[must_use]
    pub const fn receive_timestamp(&self) -> Option<Timestamp<Realtime>> {
        self.receive_timestamp
    }

    /// The first `length` octets of the payload are the reply, to be sent by [`UdpSocket::send`]. One that is
    /// longer than the request is not sent at all: no caller may turn us into an amplifier.
    pub const fn reply(&mut self, length: usize) {
        self.reply_length = if length <= self.length { Some(length) } else { None };
    }

    /// What the kernel wrote here, given the message header's answer. Only a whole datagram has a source.
    /// `scope`: that of the socket's own address, if it has one.
    fn accept(&mut self, length: usize, header: &Answer, scope: Option<u32>) {
        self.peer.set_length(header.name_length);
        if let Some(scope) = scope {
            // In a VRF the kernel names the VRF's device, through which no link-local address can be sent to.
            self.peer.correct_scope(scope);
        }
        let truncated = header.flags & libc::MSG_TRUNC != 0 || length > DATAGRAM_MAX;
        self.source = if truncated { None } else { self.peer.decode() };
        self.length = length.min(DATAGRAM_MAX);
        let control = &self.control.0[..header.control_length.min(CONTROL_OCTETS)];
        self.receive_timestamp = receive_stamp(control);
    }

    /// The header of a message that is received into this datagram. Its pointers are good for one system call,
    /// as long as `vector` and this datagram stay where they are.
    fn receive_header(&mut self, vector: &mut libc::iovec) -> libc::msghdr {
        *vector = libc::iovec { iov_base: self.payload.as_mut_ptr().cast(), iov_len: DATAGRAM_MAX };
        libc::msghdr {
            msg_name: self.peer.as_mut_ptr().cast(),
            msg_namelen: RawAddress::CAPACITY,
            msg_iov: vector,
            msg_iovlen: 1,
            msg_control: self.control.0.as_mut_ptr().cast(),
            msg_controllen: CONTROL_OCTETS,
            msg_flags: 0,
        }
    }

    /// The header of the reply's message; the same rule.
    fn send_header(&mut self, length: usize, vector: &mut libc::iovec) -> libc::msghdr {
        *vector = libc::iovec { iov_base: self.payload.as_mut_ptr().cast(), iov_len: length };
        libc::msghdr {
            msg_name: self.peer.as_mut_ptr().cast(),
            msg_namelen: self.peer.length(),
            msg_iov: vector,
            msg_iovlen: 1,
            ..EMPTY_HEADER
        }
    }
}

/// What the kernel writes into a message header.
struct Answer {
    name_length: libc::socklen_t,
    control_length: usize,
    flags: libc::c_int,
}

impl From<&libc::msghdr> for Answer {
    fn from(header: &libc::msghdr) -> Self {
        Self {
            name_length: header.msg_namelen,
            control_length: header.msg_controllen,
            flags: header.msg_flags,
        }
    }
}

const EMPTY_HEADER: libc::msghdr = libc::msghdr {
    msg_name: std::ptr::null_mut(),
    msg_namelen: 0,
    msg_iov: std::ptr::null_mut(),
    msg_iovlen: 0,
    msg_control: std::ptr::null_mut(),
    msg_controllen: 0,
    msg_flags: 0,
};
const EMPTY_MESSAGE: libc::mmsghdr = libc::mmsghdr { msg_hdr: EMPTY_HEADER, msg_len: 0 };
const EMPTY_VECTOR: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// What one [`UdpSocket::receive`] brought.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Received {
    /// Whole datagrams, those that [`Batch::datagrams`] hands out.
    pub whole: usize,
    /// Datagrams longer than [`DATAGRAM_MAX`] (or without an IP source); dropped.
    pub truncated: usize,
    /// Whole datagrams without the kernel's receive stamp.
    pub without_stamp: usize,
}

/// Room for [`BATCH_MAX`] datagrams, about 146 KiB: one per worker, used for all its sockets in turn.
#[derive(Debug)]
pub struct Batch {
    datagrams: Box<[Datagram]>,
    filled: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self { datagrams: (0..BATCH_MAX).map(|_| Datagram::EMPTY).collect(), filled: 0 }
    }

    /// What was received last, whole datagrams only.
    pub fn datagrams(&mut self) -> impl Iterator<Item = &mut Datagram> {
        self.datagrams[..self.filled].iter_mut().filter(|datagram| datagram.source.is_some())
    }

    /// How many replies wait to be sent.
    #[must_use]
    pub fn replies(&self) -> usize {
        self.datagrams[..self.filled].iter().filter(|datagram| datagram.reply_length.is_some()).count()
    }

    /// Gives up all replies that wait.
    pub fn drop_replies(&mut self) {
        self.drop_first_replies(usize::MAX);
    }

    fn drop_first_replies(&mut self, count: usize) {
        let waiting =
            self.datagrams[..self.filled].iter_mut().filter(|datagram| datagram.reply_length.is_some());
        for datagram in waiting.take(count) {
            datagram.reply_length = None;
        }
    }

    fn received(&self) -> Received {
        let mut received = Received::default();
        for datagram in &self.datagrams[..self.filled] {
            received.truncated += usize::from(datagram.source.is_none());
            received.whole += usize::from(datagram.source.is_some());
            received.without_stamp +=
                usize::from(datagram.source.is_some() && datagram.receive_timestamp.is_none());
        }
        received
    }
}

impl UdpSocket {
    /// Receives what is there, [`BATCH_MAX`] datagrams at most; never waits. Whatever the batch held is gone.
    ///
    /// # Errors
    /// What the kernel says, except that it would have to wait. An error queued by ICMP is told once and
    /// cleared by being told; the socket goes on.
    pub fn receive(&self, batch: &mut Batch) -> io::Result<Received> {
        batch.filled = 0;
        let result = if self.one_at_a_time.load(Ordering::Relaxed) {
            self.receive_singly(batch)
        } else {
            self.receive_together(batch)
        };
        match result {
            Err(error) if self.must_do_singly(&error) => self.receive(batch),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::default()),
            Err(error) => Err(error),
            Ok(()) => Ok(batch.received()),
        }
    }

    /// Sends replies of the batch, all of them or as many as the kernel takes at once; returns how many were sent.
    /// Those are no longer waiting. Each call settles at least one reply.
    ///
    /// # Errors
    /// What the kernel says of the first waiting reply, which is dropped.
    pub fn send(&self, batch: &mut Batch) -> io::Result<usize> {
        let result = if self.one_at_a_time.load(Ordering::Relaxed) {
            self.send_singly(batch)
        } else {
            self.send_together(batch)
        };
        match result {
            Err(error) if self.must_do_singly(&error) => self.send(batch),
            Err(error) => {
                batch.drop_first_replies(1);
                Err(error)
            }
            Ok(sent) => {
                batch.drop_first_replies(sent);
                Ok(sent)
            }
        }
    }

    /// Has the call for many datagrams just been refused for the first time?
    fn must_do_singly(&self, error: &io::Error) -> bool {
        error.raw_os_error() == Some(libc::ENOSYS) && !self.one_at_a_time.swap(true, Ordering::Relaxed)
    }

    /// The interface of its link-local address, if it has one.
    const fn scope(&self) -> Option<u32> {
        match self.local {
            SocketAddr::V6(address) if address.scope_id() != 0 => Some(address.scope_id()),
            _ => None,
        }
    }

    fn receive_together(&self, batch: &mut Batch) -> io::Result<()> {
        let mut messages = [EMPTY_MESSAGE; BATCH_MAX];
        let mut vectors = [EMPTY_VECTOR; BATCH_MAX];
        for ((datagram, message), vector) in batch.datagrams.iter_mut().zip(&mut messages).zip(&mut vectors) {
            message.msg_hdr = datagram.receive_header(vector);
        }
        let (fd, first, count) = (self.fd.as_raw_fd(), messages.as_mut_ptr(), BATCH_MAX as libc::c_uint);
        // SAFETY: `count` headers, each pointing to one vector and to the payload, name and control room of one
        // datagram with their true sizes; nobody moves or touches any of it during the call. No timeout.
        let result = unsafe { libc::recvmmsg(fd, first, count, 0, std::ptr::null_mut()) };
        let received = checked(result)?;
        batch.filled = received.min(BATCH_MAX);
        for (datagram, message) in batch.datagrams.iter_mut().zip(&messages).take(batch.filled) {
            datagram.accept(message.msg_len as usize, &Answer::from(&message.msg_hdr), self.scope());
            datagram.reply_length = None;
        }
        Ok(())
    }

    fn receive_singly(&self, batch: &mut Batch) -> io::Result<()> {
        for (index, datagram) in batch.datagrams.iter_mut().enumerate() {
            let mut vector = EMPTY_VECTOR;
            let mut header = datagram.receive_header(&mut vector);
            // SAFETY: the header points to one vector and to the room of one datagram with their true sizes;
            // nobody moves or touches any of it during the call.
            let result = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut header, 0) };
            match checked(result) {
                Ok(length) => datagram.accept(length, &Answer::from(&header), self.scope()),
                // What came before is worth more than the reason why no more came.
                Err(error) => return if index == 0 { Err(error) } else { Ok(()) },
            }
            datagram.reply_length = None;
            batch.filled = index + 1;
        }
        Ok(())
    }

    fn send_together(&self, batch: &mut Batch) -> io::Result<usize> {
        let mut messages = [EMPTY_MESSAGE; BATCH_MAX];
        let mut vectors = [EMPTY_VECTOR; BATCH_MAX];
        let mut count = 0;
        for datagram in &mut batch.datagrams[..batch.filled] {
            if let Some(length) = datagram.reply_length {
                messages[count].msg_hdr = datagram.send_header(length, &mut vectors[count]);
                count += 1;
            }
        }
        if count == 0 {
            return Ok(0);
        }
        let first = messages.as_mut_ptr();
        // SAFETY: the first `count` headers point to one vector and one address each, with their true sizes;
        // nobody moves or touches any of it during the call.
        let result = unsafe { libc::sendmmsg(self.fd.as_raw_fd(), first, count as libc::c_uint, 0) };
        checked(result)
    }

    fn send_singly(&self, batch: &mut Batch) -> io::Result<usize> {
        let filled = &mut batch.datagrams[..batch.filled];
        let waiting =
            filled.iter_mut().find_map(|datagram| datagram.reply_length.map(|length| (datagram, length)));
        let Some((datagram, length)) = waiting else { return Ok(0) };
        let mut vector = EMPTY_VECTOR;
        let header = datagram.send_header(length, &mut vector);
        // SAFETY: the header points to one vector and one address with their true sizes, unmoved in the call.
        let result = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const header, 0) };
        checked(result).map(|_| 1)
    }
}

/// What a system call returned, or the error that it left if that was negative.
fn checked(result: impl TryInto<usize>) -> io::Result<usize> {
    result.try_into().map_err(|_| io::Error::last_os_error())
}
