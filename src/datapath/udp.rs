//! The UDP-socket port: serves loopback, what XDP passes up, and machines without AF_XDP.
//!
//! Owns: one set of per-address sockets per worker ([`UdpPort`]), and keeping those sets in step with the
//! machine's addresses ([`UdpGroup`], which stays with the thread that watches them). Does not own: what is
//! answered; broadcast and multicast, which belong to control alone, so no socket here is a wildcard one.
//!
//! The one idea a newcomer lacks: every worker has its own socket for every address, and the kernel spreads the
//! clients over them by hash (`SO_REUSEPORT`). That alone would let a second time server of the same user join
//! in silently and take a share of the clients. So the first socket of each address is bound exclusively, which
//! fails if anybody is there, and is opened to its group only afterwards: no probe, no window between probe and use.
//!
//! What is no client's request has a socket of its own at each address, where the kernel can tell the two apart
//! ([`UdpGroup::divert`]), so that peers, strangers and floods of either cost the workers nothing.

mod neighbours;

pub use neighbours::Neighbours;

use crate::sys::process::PollEntry;
use crate::sys::socket::{Batch, Received, Sharing, UdpOptions, UdpSocket};
use crossbeam::queue::ArrayQueue;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Weak};

/// A unicast address of this machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LocalAddress {
    address: IpAddr,
    scope: u32,
}

impl LocalAddress {
    /// The address and the index of the interface that has it, which matters for IPv6 link-local ones only:
    /// any other is the same address whichever interface has it.
    #[must_use]
    pub const fn new(address: IpAddr, interface_index: u32) -> Self {
        let scope = match address {
            IpAddr::V6(address) if address.is_unicast_link_local() => interface_index,
            _ => 0,
        };
        Self { address, scope }
    }

    /// The address itself.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// The address with a port, as bind(2) wants it.
    #[must_use]
    pub const fn with_port(self, port: u16) -> SocketAddr {
        match self.address {
            IpAddr::V4(_) => SocketAddr::new(self.address, port),
            IpAddr::V6(address) => SocketAddr::V6(SocketAddrV6::new(address, port, 0, self.scope)),
        }
    }
}

/// Why an address is not served.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum OpenError {
    #[error(
        "UDP port {} of {} is in use: another time server (chronyd, ntpd, timeball?) owns it; \
         chronyd gives it up with `port 0`", .0.port(), .0.ip()
    )]
    AddressInUse(SocketAddr),
    #[error("UDP port {} of {} needs CAP_NET_BIND_SERVICE or root", .0.port(), .0.ip())]
    NotPermitted(SocketAddr),
    #[error("{} is not, or not yet, an address of this machine", .0.ip())]
    NotLocal(SocketAddr),
    #[error("{} is no unicast address", .0.ip())]
    NotUnicast(SocketAddr),
    #[error("UDP port {} of {} cannot be opened: {error}", .local.port(), .local.ip())]
    Other { local: SocketAddr, error: io::Error },
}

impl OpenError {
    fn from_bind(local: SocketAddr, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::AddressInUse(local),
            io::ErrorKind::PermissionDenied => Self::NotPermitted(local),
            io::ErrorKind::AddrNotAvailable => Self::NotLocal(local),
            _ => Self::Other { local, error },
        }
    }
}

/// What [`UdpGroup::sync_addresses`] changed.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// Served from now on.
    pub added: Vec<LocalAddress>,
    /// Served no longer.
    pub removed: Vec<LocalAddress>,
    /// Wanted but not served; the next sync tries them again.
    pub failed: Vec<(LocalAddress, OpenError)>,
}

/// What the watching thread leaves for a worker: its sockets from now on. Only the latest is of interest.
type Mailbox = Arc<ArrayQueue<Vec<Arc<UdpSocket>>>>;

/// Opens and closes the sockets of all workers. Only this side needs the privilege to bind.
#[derive(Debug)]
pub struct UdpGroup {
    port: u16,
    options: UdpOptions,
    mailboxes: Vec<Mailbox>,
    /// For each address, one socket per worker, in the workers' order.
    open: BTreeMap<LocalAddress, Vec<Arc<UdpSocket>>>,
    /// Sockets that a worker may not have let go of yet. Should their address come back, it is served by them
    /// again: they still hold it, so it could not be bound anew.
    closing: BTreeMap<LocalAddress, Vec<Weak<UdpSocket>>>,
    /// For each address the socket behind those of the workers, if there are to be any.
    diverted: Option<BTreeMap<LocalAddress, UdpSocket>>,
    /// The other groups of this network namespace, if there may be any.
    neighbours: Option<Neighbours>,
}

impl UdpGroup {
    /// The group for UDP port `port` (not zero) and its `workers` ports, one per worker. No address is served yet.
    #[must_use]
    pub fn new(port: u16, workers: usize, options: UdpOptions) -> (Self, Vec<UdpPort>) {
        let mailboxes: Vec<Mailbox> = (0..workers).map(|_| Arc::new(ArrayQueue::new(1))).collect();
        let ports = mailboxes.iter().map(|mailbox| UdpPort::new(Arc::clone(mailbox))).collect();
        let (open, closing) = (BTreeMap::new(), BTreeMap::new());
        (Self { port, options, mailboxes, open, closing, diverted: None, neighbours: None }, ports)
    }

    /// Keeps what is not of mode 3 away from the workers: it comes to [`Self::diverted`].
    #[must_use]
    pub fn divert(self) -> Self {
        Self { diverted: Some(BTreeMap::new()), ..self }
    }

    /// Lets each of these groups, whose options tie them to different devices or to none, serve an address of its own that
    /// is another's as well.
    #[must_use]
    pub fn among(self, neighbours: Neighbours) -> Self {
        Self { neighbours: Some(neighbours), ..self }
    }

    /// The sockets that get what is not of mode 3, one for each address where the kernel can tell; elsewhere it comes to the
    /// workers.
    pub fn diverted(&self) -> impl Iterator<Item = &UdpSocket> {
        self.diverted.iter().flat_map(BTreeMap::values)
    }

    /// Serves exactly `wanted` from now on. An address that fails is reported and does not keep the others
    /// from being served. Workers see the change at their next [`UdpPort::apply_changes`]; wake them.
    pub fn sync_addresses(&mut self, wanted: &[LocalAddress]) -> SyncReport {
        let wanted: BTreeSet<_> = wanted.iter().copied().collect();
        let mut report = SyncReport::default();
        report.removed.extend(self.open.keys().filter(|address| !wanted.contains(address)));
        for address in &report.removed {
            self.close(*address);
        }
        for address in wanted {
            if self.open.contains_key(&address) {
                continue;
            }
            match self.open_members(address) {
                Ok(members) => {
                    self.open.insert(address, members);
                    self.neighbours.iter().for_each(|neighbours| neighbours.add(address));
                    self.open_diverted(address);
                    report.added.push(address);
                }
                Err(error) => report.failed.push((address, error)),
            }
        }
        if !(report.added.is_empty() && report.removed.is_empty()) {
            self.publish();
        }
        self.closing.retain(|_, members| members.iter().any(|member| member.strong_count() > 0));
        report
    }

    /// Gives up all sockets: the device that they are tied to is gone, if not another one of its name by now, and nothing will
    /// come to them. The next sync opens new ones, which are tied to what has the name then.
    pub fn renew(&mut self) {
        let open: Vec<_> = self.open.keys().copied().collect();
        open.into_iter().for_each(|address| self.close(address));
        // Who comes back to such an address is not served by what workers have not let go of.
        self.closing.clear();
        self.publish();
    }

    /// The addresses that are served.
    pub fn addresses(&self) -> impl Iterator<Item = LocalAddress> {
        self.open.keys().copied()
    }

    fn close(&mut self, address: LocalAddress) {
        // Before any of the workers': it was the group's last, so the others keep their places.
        if let Some(diverted) = &mut self.diverted {
            diverted.remove(&address);
        }
        if let Some(members) = self.open.remove(&address) {
            self.closing.insert(address, members.iter().map(Arc::downgrade).collect());
            self.neighbours.iter().for_each(|neighbours| neighbours.remove(address));
        }
    }

    /// One socket per worker, those that are still there from earlier included.
    fn open_members(&mut self, address: LocalAddress) -> Result<Vec<Arc<UdpSocket>>, OpenError> {
        let local = address.with_port(self.port);
        if is_not_unicast(local.ip()) {
            return Err(OpenError::NotUnicast(local));
        }
        let left = self.closing.get(&address).map_or(&[][..], Vec::as_slice);
        let mut members: Vec<_> = left.iter().map(Weak::upgrade).collect();
        members.resize(self.mailboxes.len(), None);
        let mut is_ours = members.iter().any(Option::is_some);
        let open = members.into_iter().map(|member| {
            let member = match member {
                Some(member) => member,
                None => Arc::new(self.open_member(address, is_ours)?),
            };
            is_ours = true;
            Ok(member)
        });
        open.collect::<io::Result<_>>().map_err(|error| OpenError::from_bind(local, error))
    }

    /// The first socket makes sure that nobody else has the address; the others join it. Where a neighbour is in the way that
    /// cannot be made sure of: a stranger in the same place would have to be of the same user, and in a group of its own.
    fn open_member(&self, address: LocalAddress, is_ours: bool) -> io::Result<UdpSocket> {
        let bind = |sharing| UdpSocket::bind(address.with_port(self.port), sharing, &self.options);
        if is_ours {
            return bind(Sharing::Group);
        }
        let has_neighbour = || self.neighbours.as_ref().is_some_and(|neighbours| neighbours.hold(address));
        let first = match bind(Sharing::Exclusive) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && has_neighbour() => {
                return bind(Sharing::Group);
            }
            bound => bound?,
        };
        if self.mailboxes.len() > 1 || self.diverted.is_some() || self.neighbours.is_some() {
            first.share()?;
        }
        Ok(first)
    }

    /// Behind all the workers', some of which may be left from earlier in whatever order. A kernel that refuses leaves the
    /// address's packets to the workers.
    fn open_diverted(&mut self, address: LocalAddress) {
        let Some(diverted) = &mut self.diverted else { return };
        let local = address.with_port(self.port);
        let opened = UdpSocket::bind(local, Sharing::Group, &self.options);
        let opened = opened.and_then(|socket| {
            socket.keep_for_clients(self.mailboxes.len() as u32)?;
            Ok(socket)
        });
        if let Ok(socket) = opened {
            diverted.insert(address, socket);
        }
    }

    fn publish(&self) {
        for (worker, mailbox) in self.mailboxes.iter().enumerate() {
            let sockets = self.open.values().filter_map(|members| members.get(worker)).map(Arc::clone);
            mailbox.force_push(sockets.collect());
        }
    }
}

/// Broadcast and multicast belong to control; the unspecified address would take what others are to get.
const fn is_not_unicast(address: IpAddr) -> bool {
    address.is_unspecified()
        || address.is_multicast()
        || matches!(address, IpAddr::V4(address) if address.is_broadcast())
}

/// What a worker's port has done since its start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct UdpCounts {
    /// Whole datagrams received.
    pub received: u64,
    /// Of those, how many came without the kernel's receive stamp.
    pub without_stamp: u64,
    /// Datagrams too long to be considered; dropped.
    pub truncated: u64,
    /// Errors told on receipt, mostly ICMP's.
    pub receive_errors: u64,
    /// Replies sent.
    pub sent: u64,
    /// Replies not sent: the socket's send buffer was full. Waiting would only make them late.
    pub send_would_block: u64,
    /// Replies not sent: no route to the client.
    pub send_unreachable: u64,
    /// Replies not sent: refused by a packet filter.
    pub send_not_permitted: u64,
    /// Replies not sent for any other reason.
    pub send_other_errors: u64,
}

impl UdpCounts {
    fn count_received(&mut self, received: Received) {
        self.received += received.whole as u64;
        self.without_stamp += received.without_stamp as u64;
        self.truncated += received.truncated as u64;
    }

    /// Adds those of another port.
    pub const fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.without_stamp += other.without_stamp;
        self.truncated += other.truncated;
        self.receive_errors += other.receive_errors;
        self.sent += other.sent;
        self.send_would_block += other.send_would_block;
        self.send_unreachable += other.send_unreachable;
        self.send_not_permitted += other.send_not_permitted;
        self.send_other_errors += other.send_other_errors;
    }

    /// Replies not sent, whatever the reason.
    #[must_use]
    pub const fn unsent(&self) -> u64 {
        self.send_would_block + self.send_unreachable + self.send_not_permitted + self.send_other_errors
    }

    fn count_send_error(&mut self, error: &io::Error, replies: usize) {
        let count = match error.kind() {
            io::ErrorKind::WouldBlock => &mut self.send_would_block,
            io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkDown => &mut self.send_unreachable,
            io::ErrorKind::PermissionDenied => &mut self.send_not_permitted,
            _ => &mut self.send_other_errors,
        };
        *count += replies as u64;
    }
}

/// One worker's sockets, one per local address.
///
/// A turn of the worker's loop: [`apply_changes`](Self::apply_changes), poll
/// [`poll_entries`](Self::poll_entries), and for each index that is ready **one** [`receive`](Self::receive),
/// answers, [`send`](Self::send). One batch per socket and turn, so that a flood to one address leaves the others
/// their share. An index is good until the next `apply_changes`.
#[derive(Debug)]
pub struct UdpPort {
    mailbox: Mailbox,
    sockets: Vec<Arc<UdpSocket>>,
    counts: UdpCounts,
    /// What the kernel dropped at sockets that are closed by now.
    dropped_before: u64,
}

impl UdpPort {
    fn new(mailbox: Mailbox) -> Self {
        Self { mailbox, sockets: Vec::new(), counts: UdpCounts::default(), dropped_before: 0 }
    }

    /// Takes over the sockets of the latest [`UdpGroup::sync_addresses`]; says whether there was one.
    pub fn apply_changes(&mut self) -> bool {
        let Some(latest) = self.mailbox.pop() else { return false };
        let kept: BTreeSet<_> = latest.iter().map(Arc::as_ptr).collect();
        self.dropped_before += dropped(self.sockets.iter().filter(|old| !kept.contains(&Arc::as_ptr(old))));
        self.sockets = latest;
        true
    }

    /// One entry per socket, in the order of their indices.
    pub fn poll_entries(&self) -> impl Iterator<Item = PollEntry> {
        self.sockets.iter().map(|socket| PollEntry::readable(socket.as_fd().as_raw_fd()))
    }

    /// The address that datagrams of this socket were sent to, and from which their replies leave.
    #[must_use]
    pub fn local_address(&self, index: usize) -> Option<SocketAddr> {
        self.sockets.get(index).map(|socket| socket.local_address())
    }

    /// Fills `batch` with what has come to one socket; returns how many datagrams it holds. Never waits. An error
    /// is counted, and leaves the batch empty: the next turn goes on.
    pub fn receive(&mut self, index: usize, batch: &mut Batch) -> usize {
        let Some(socket) = self.sockets.get(index) else { return 0 };
        match socket.receive(batch) {
            Ok(received) => {
                self.counts.count_received(received);
                received.whole
            }
            Err(_) => {
                self.counts.receive_errors += 1;
                0
            }
        }
    }

    /// Sends the replies in `batch` from the socket that their requests came to. Never waits: what cannot leave
    /// now is dropped and counted.
    pub fn send(&mut self, index: usize, batch: &mut Batch) {
        let Some(socket) = self.sockets.get(index) else { return batch.drop_replies() };
        let mut waiting = batch.replies();
        while waiting > 0 {
            let result = socket.send(batch);
            let left = batch.replies();
            match result {
                Ok(sent) => self.counts.sent += sent as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.counts.count_send_error(&error, waiting);
                    return batch.drop_replies();
                }
                Err(error) => self.counts.count_send_error(&error, waiting - left),
            }
            waiting = left;
        }
    }

    /// What was done so far.
    #[must_use]
    pub const fn counts(&self) -> UdpCounts {
        self.counts
    }

    /// How many datagrams the kernel dropped before we could read them, above all because a socket's buffer was
    /// full. A system call for each socket: not for every batch.
    #[must_use]
    pub fn dropped_by_kernel(&self) -> u64 {
        self.dropped_before + dropped(self.sockets.iter())
    }
}

fn dropped<'a>(sockets: impl Iterator<Item = &'a Arc<UdpSocket>>) -> u64 {
    sockets.map(|socket| u64::from(socket.dropped())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(text: &str, interface_index: u32) -> LocalAddress {
        LocalAddress::new(text.parse().unwrap(), interface_index)
    }

    #[test]
    fn only_link_local_addresses_differ_by_interface() {
        assert_eq!(local("192.0.2.1", 3), local("192.0.2.1", 4));
        assert_eq!(local("2001:db8::1", 3), local("2001:db8::1", 4));
        assert_ne!(local("fe80::1", 3), local("fe80::1", 4));
        assert_eq!(local("fe80::1", 4).with_port(123).to_string(), "[fe80::1%4]:123");
    }

    #[test]
    fn what_is_not_unicast_or_not_ours_is_reported_and_the_rest_is_served() {
        let (mut group, mut ports) = UdpGroup::new(11_123, 1, UdpOptions::default());
        let wanted = ["0.0.0.0", "::", "224.0.1.1", "ff02::101", "255.255.255.255", "192.0.2.1", "127.0.4.1"];
        let report = group.sync_addresses(&wanted.map(|text| local(text, 0)));
        assert_eq!(report.added, [local("127.0.4.1", 0)]);
        let not_unicast = report.failed.iter().filter(|(_, error)| matches!(error, OpenError::NotUnicast(_)));
        assert_eq!(not_unicast.count(), 5);
        let not_local = report.failed.iter().find(|(_, error)| matches!(error, OpenError::NotLocal(_)));
        assert_eq!(not_local.unwrap().0, local("192.0.2.1", 0));
        assert!(ports[0].apply_changes());
        assert!(!ports[0].apply_changes());
        assert_eq!(ports[0].local_address(0).unwrap().to_string(), "127.0.4.1:11123");
        assert_eq!(ports[0].local_address(1), None);
    }

    #[test]
    fn an_address_that_flaps_is_served_again_before_its_old_sockets_are_gone() {
        for (workers, is_diverting) in [(1, false), (3, false), (1, true), (3, true)] {
            let (mut group, mut ports) = UdpGroup::new(11_124, workers, UdpOptions::default());
            if is_diverting {
                group = group.divert();
            }
            let address = local("127.0.4.2", 0);
            group.sync_addresses(&[address]);
            let fd_of = |port: &UdpPort| port.poll_entries().next().unwrap().fd();
            ports.iter_mut().for_each(|port| assert!(port.apply_changes()));
            let before = fd_of(&ports[0]);
            assert_eq!(group.sync_addresses(&[]).removed, [address]);
            // The last worker lets go, the first has not looked yet (with one worker it is the same).
            if workers > 1 {
                ports[workers - 1].apply_changes();
                assert_eq!(ports[workers - 1].poll_entries().count(), 0);
            }
            let report = group.sync_addresses(&[address]);
            assert_eq!((report.added.as_slice(), report.failed.len()), (&[address][..], 0));
            ports.iter_mut().for_each(|port| assert!(port.apply_changes()));
            assert_eq!(fd_of(&ports[0]), before);
            assert!(ports.iter().all(|port| port.poll_entries().count() == 1));
            assert_eq!(group.diverted().count(), usize::from(is_diverting));
            told_apart(&group, &mut ports);
        }
    }

    /// Whoever is asked for what.
    fn told_apart(group: &UdpGroup, ports: &mut [UdpPort]) {
        let Some(diverted) = group.diverted().next() else { return };
        let client = std::net::UdpSocket::bind("127.0.4.3:0").unwrap();
        for first in 0x20..0x28 {
            client.send_to(&[first], diverted.local_address()).unwrap();
        }
        let mut batch = Batch::new();
        assert_eq!(diverted.receive(&mut batch).unwrap().whole, 7);
        assert!(batch.datagrams().all(|datagram| datagram.payload()[0] != 0x23));
        assert_eq!(ports.iter_mut().map(|port| port.receive(0, &mut batch)).sum::<usize>(), 1);
    }

    #[test]
    fn errors_say_what_to_do() {
        let at = "192.0.2.1:123".parse().unwrap();
        let text = |errno| OpenError::from_bind(at, io::Error::from_raw_os_error(errno)).to_string();
        assert_eq!(
            text(libc::EADDRINUSE),
            "UDP port 123 of 192.0.2.1 is in use: another time server (chronyd, ntpd, timeball?) owns it; \
             chronyd gives it up with `port 0`"
        );
        assert_eq!(text(libc::EACCES), "UDP port 123 of 192.0.2.1 needs CAP_NET_BIND_SERVICE or root");
        assert_eq!(
            text(libc::ENOMEM).split_once(": ").unwrap().0,
            "UDP port 123 of 192.0.2.1 cannot be opened"
        );
    }
}
