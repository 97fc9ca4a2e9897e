//! Which interfaces and addresses there are, kept up to date, and what an interface can do.
//!
//! Owns: the watch over rtnetlink ([`InterfaceWatch`]), the facts and forecast for `timeball check`
//! ([`InterfaceReport`]) and the guard against VLAN tags that the hardware strips ([`VlanPlan`]).
//! Does not own: attaching, binding and map updates, which follow from what is said here.
//!
//! The one idea a newcomer lacks: events and dumps come over one socket, so that a dump's lines and the events around it
//! are in order; but when the kernel had to drop an event the order has a hole, and only a whole new dump closes it.

mod decode;
mod facts;
mod report;
mod view;
mod vlan;
mod vrf;

pub use facts::{DeviceFacts, InterfaceError, InterfaceFacts, StampFacts, VlanChild};
pub use report::{InterfaceReport, Likely, Step, ladder_forecast};
pub use view::{Address, Changes, Event, Interface, Rename, SteeringAddress, View, VlanLink};
pub use vlan::{RestoreGuard, VlanError, VlanPlan};

pub use crate::wire::TagStack;

use crate::sys::netlink::{self, DATAGRAM_MAX, NetlinkSocket, Received};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Dumps begun before going back to the caller. Each takes about a millisecond, and is wasted when something is removed
/// meanwhile; while 500 addresses go one after the other, all are.
const DUMP_ATTEMPTS: u32 = 4;
/// Datagrams read by one [`InterfaceWatch::update`]; the next call goes on.
const DATAGRAMS_PER_UPDATE: u32 = 4096;

/// The interfaces and addresses of the network namespace that the opening thread was in.
#[derive(Debug)]
pub struct InterfaceWatch {
    source: Source,
    view: View,
}

#[derive(Debug)]
enum Source {
    Netlink(Listener),
    /// Netlink was refused, for this reason; the view is what getifaddrs(3) said once.
    Once(io::Error),
}

/// The netlink side: a socket and whether what it told us has a hole. While it has, something is waiting to be read.
#[derive(Debug)]
struct Listener {
    socket: NetlinkSocket,
    buffer: Vec<u8>,
    sequence: u32,
    lost: bool,
}

impl InterfaceWatch {
    /// Subscribes to changes, then reads everything. Where netlink is refused (LD_PRELOAD simulators, sandboxes) the
    /// view is made once by getifaddrs(3): [`limitation`](Self::limitation) says so.
    ///
    /// # Errors
    /// Neither netlink nor getifaddrs(3) works.
    pub fn open() -> io::Result<Self> {
        match Listener::open() {
            Ok((listener, view)) => Ok(Self { source: Source::Netlink(listener), view }),
            Err(reason) => {
                let view = view_from_getifaddrs()?;
                Ok(Self { source: Source::Once(reason), view })
            }
        }
    }

    /// Becomes readable (poll(2)) when [`update`](Self::update) has something to do; `None` when nothing will come.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::Netlink(listener) => Some(listener.socket.as_fd()),
            Source::Once(_) => None,
        }
    }

    /// Why the view will never change: netlink's refusal. `None`: it is live.
    pub fn limitation(&self) -> Option<&io::Error> {
        match &self.source {
            Source::Netlink(_) => None,
            Source::Once(reason) => Some(reason),
        }
    }

    /// What we know.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Takes in what has happened since the last call, without waiting for more. Messages that the kernel had to drop
    /// lead to a new dump (about a millisecond). When that comes out with holes because too much is going on, nothing
    /// changes yet, and the descriptor stays readable for another try.
    ///
    /// # Errors
    /// The socket failed. The view is the old one.
    pub fn update(&mut self) -> io::Result<Changes> {
        let Source::Netlink(listener) = &mut self.source else {
            return Ok(Changes::default());
        };
        let mut next = self.view.clone();
        for _ in 0..DATAGRAMS_PER_UPDATE {
            if listener.lost || !listener.take_waiting(|event| next.apply(event))? {
                break;
            }
        }
        let resynchronised = listener.lost;
        if resynchronised {
            next = listener.read_everything()?;
            if listener.lost {
                return Ok(Changes::default());
            }
            next.continue_from(&self.view);
        }
        let changes = Changes { resynchronised, ..Changes::between(&self.view, &next) };
        self.view = next;
        Ok(changes)
    }
}

/// What a datagram from the kernel does to a view: decoder and view in one, for the fuzz target outside the crate.
#[doc(hidden)]
pub fn apply_datagram(view: &mut View, bytes: &[u8]) {
    // A refused dump is of no interest there; what came before it is applied.
    let _ = decode::read_datagram(bytes, 0, |event| view.apply(event));
}

impl Listener {
    fn open() -> io::Result<(Self, View)> {
        let socket = NetlinkSocket::open_route()?;
        let mut listener = Self { socket, buffer: vec![0; DATAGRAM_MAX], sequence: 0, lost: false };
        let mut view = listener.read_everything()?;
        view.continue_from(&View::default());
        Ok((listener, view))
    }

    /// Reads one waiting datagram; false when there is none. Sets `lost` when the kernel dropped some.
    fn take_waiting(&mut self, take: impl FnMut(Event)) -> io::Result<bool> {
        match self.socket.receive(&mut self.buffer)? {
            Received::Nothing => Ok(false),
            Received::Lost => {
                self.lost = true;
                Ok(true)
            }
            Received::Datagram(length) => {
                // No dump is awaited, and no request of ours has sequence number 0.
                let datagram = decode::read_datagram(&self.buffer[..length], 0, take)?;
                self.lost |= datagram.broken;
                Ok(true)
            }
        }
    }

    /// A view from scratch. If none without holes could be had, `lost` is set, and one more question to the kernel is
    /// left unanswered, so that the descriptor stays readable.
    fn read_everything(&mut self) -> io::Result<View> {
        let mut view = View::default();
        for _ in 0..DUMP_ATTEMPTS {
            self.lost = true;
            // What is waiting is older than the dump will be, and may lack its successor that was dropped.
            while self.socket.receive(&mut self.buffer)? != Received::Nothing {}
            view = View::default();
            let links_whole = self.dump(decode::RTM_GETLINK, &mut view)?;
            let addresses_whole = self.dump(decode::RTM_GETADDR, &mut view)?;
            if links_whole && addresses_whole {
                self.lost = false;
                return Ok(view);
            }
        }
        self.ask(decode::RTM_GETLINK)?;
        Ok(view)
    }

    /// Requests a dump.
    fn ask(&mut self, kind: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.socket.send(&decode::dump_request(kind, self.sequence))
    }

    /// Sends one dump request and reads to its end. False: something was lost or removed meanwhile, do it all again.
    /// (A dump runs without the kernel's big lock, so a removal can overtake the line that still lists the removed.)
    fn dump(&mut self, kind: u16, view: &mut View) -> io::Result<bool> {
        self.ask(kind)?;
        let mut whole = true;
        loop {
            let length = match self.socket.receive_answer(&mut self.buffer)? {
                Received::Datagram(length) => length,
                _ => {
                    whole = false;
                    continue;
                }
            };
            let datagram = decode::read_datagram(&self.buffer[..length], self.sequence, |event| {
                whole &= !matches!(event, Event::LinkGone(_) | Event::AddressGone(_));
                view.apply(event);
            })?;
            whole &= !datagram.broken;
            if datagram.done {
                return Ok(whole);
            }
        }
    }
}

/// What getifaddrs(3) can tell: names, indexes, flags and addresses; nothing of kinds, tags and address states.
fn view_from_getifaddrs() -> io::Result<View> {
    let mut view = View::default();
    for line in netlink::list_addresses()? {
        if line.ifindex == 0 {
            continue;
        }
        let mac = line.mac.or_else(|| view.interface(line.ifindex)?.mac);
        let enabled = line.flags & libc::IFF_UP as u32 != 0;
        view.apply(Event::Link(Interface {
            ifindex: line.ifindex,
            name: line.name,
            enabled,
            up: enabled && line.flags & libc::IFF_RUNNING as u32 != 0,
            mtu: 0,
            mac,
            kind: None,
            master: None,
            rx_queues: None,
            tx_queues: None,
            vlan: None,
            arrival: 0,
        }));
        if let Some((address, prefix_length)) = line.address {
            view.apply(Event::Address(Address {
                ifindex: line.ifindex,
                address,
                peer: address,
                prefix_length,
                scope: 0,
                tentative: false,
                optimistic: false,
                dad_failed: false,
                deprecated: false,
            }));
        }
    }
    Ok(view)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_netlink_the_names_and_addresses_are_still_there() {
        let live = InterfaceWatch::open().unwrap();
        assert!(live.limitation().is_none(), "{:?}", live.limitation());
        let once = view_from_getifaddrs().unwrap();
        let names = |view: &View| {
            view.interfaces().map(|one| (one.ifindex, one.name.clone(), one.mac)).collect::<Vec<_>>()
        };
        assert_eq!(names(&once), names(live.view()));
        assert_eq!(once.local_addresses(1), live.view().local_addresses(1));
    }
}
