//! What the world tells the controller.
//!
//! Owns: the types that go in. Does not own: reading clocks and sockets; the shell does and says what it read.
//!
//! The one idea a newcomer lacks: the events are all that the controller ever learns. Whoever records them
//! ([`Event::recorded`]) and feeds them to a controller with the same seed sees the same actions again.

pub use crate::auth::{Authentication, KeyId, TrustedKeys};
pub use crate::snapshot::InstanceId;

use super::source::{SourceConfiguration, SourceId};
use crate::snapshot::SystemSnapshot;
use crate::time::{Monotonic, NtpDuration, NtpTimestamp, Timestamp};
use crate::wire::Header;
use std::net::{IpAddr, SocketAddr};

/// "Now" in the two senses the controller needs, read together by the shell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// What intervals are measured with; never stepped.
    pub monotonic: Timestamp<Monotonic>,
    /// What the steered clock says, which is what the protocol talks about.
    pub clock: NtpTimestamp,
}

/// An interface's index in its instance, as the kernel counts them: 1 and up; 0: not known, or left to routing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct InterfaceIndex(pub u32);

/// An association, for as long as the controller lives: never given to another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AssociationId(pub(super) u32);

impl AssociationId {
    /// The number, for reports: 1 and up, in the order of mobilisation.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// A socket that one association opens for one exchange, with a random port (RFC 9109 section 4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ExchangeSocket {
    /// Whose it is.
    pub association: AssociationId,
    /// Which of its exchanges, counted up.
    pub exchange: u32,
}

/// A socket as the controller names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SocketName {
    /// The socket of one exchange.
    Exchange(ExchangeSocket),
    /// Port 123 of an instance: symmetric modes, broadcast, and what clients send us.
    Service(InstanceId),
}

/// Proof that something was sent, to be given back once with the time it left. It cannot be copied, so that no
/// send is reported twice.
#[derive(PartialEq, Eq, Debug)]
pub struct SendHandle {
    pub(super) association: AssociationId,
    pub(super) number: u64,
}

impl SendHandle {
    /// The number of the send, for logs and records.
    #[must_use]
    pub const fn number(&self) -> SendNumber {
        SendNumber(self.number)
    }
}

/// What stands for a [`SendHandle`] in a record of events.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SendNumber(pub u64);

/// When a packet left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendStamp {
    /// The transmit timestamp as it stood in the packet.
    pub written: NtpTimestamp,
    /// When it left, as well as the shell knows (hardware, kernel or its own clock), in our clock's time.
    pub departed: NtpTimestamp,
}

/// Who took a receive timestamp, from the best to the worst.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum StampKind {
    /// The network interface.
    Hardware,
    /// The kernel.
    Kernel,
    /// The daemon, after it was woken.
    Daemon,
}

/// To what kind of address a packet was sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Delivery {
    /// To one of our addresses.
    Unicast,
    /// To an IPv4 broadcast address.
    Broadcast,
    /// To a multicast group.
    Multicast,
}

/// What the access list says of a packet's sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Let in.
    Allowed,
    /// Test 4 of RFC 5905 figure 22 fails.
    Denied,
}

/// A packet whose form was found good ([`crate::wire::Packet::parse`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// At which socket.
    pub socket: SocketName,
    /// In which instance.
    pub instance: InstanceId,
    /// On which interface.
    pub interface: InterfaceIndex,
    /// From whom.
    pub remote: SocketAddr,
    /// To which address.
    pub local: IpAddr,
    /// What kind of address that is.
    pub delivery: Delivery,
    /// T4: when it arrived, in our clock's time.
    pub receive_timestamp: NtpTimestamp,
    /// Who says so.
    pub stamp: StampKind,
    /// May the sender talk to us at all?
    pub access: Access,
    /// Is it who it claims to be?
    pub authentication: Authentication,
    /// What it says.
    pub header: Header,
}

/// Something that happened. `Handle` is [`SendHandle`], or [`SendNumber`] in a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<Handle = SendHandle> {
    /// The time of the last [`super::Action::WakeAt`] has come.
    WakeUp,
    /// A packet came.
    Packet(Arrival),
    /// A packet we sent has left. To be reported before any packet that came in after it, or the answer to it
    /// yields no measurement.
    Sent {
        /// Which.
        handle: Handle,
        /// When.
        stamp: SendStamp,
    },
    /// A packet could not be sent: no route, no socket, no key.
    SendFailed {
        /// Which.
        handle: Handle,
    },
    /// A name was looked up.
    Resolved {
        /// For which source.
        source: SourceId,
        /// What it means; empty: nothing, or the lookup failed.
        addresses: Vec<IpAddr>,
    },
    /// The configuration has a new source.
    AddSource {
        /// Its identifier, not in use.
        source: SourceId,
        /// All about it.
        configuration: SourceConfiguration,
    },
    /// The configuration has one source less.
    RemoveSource(SourceId),
    /// Somebody else stepped the clock, by so much (positive: forward).
    ClockStepped(NtpDuration),
    /// A leap second was inserted into UTC, and so into our clock and everybody's, or deleted.
    ClockLeapt,
    /// What is served while no source is selected: the machine's own clock by decree (chrony's `local`), what another
    /// keeper of the clock says of it, or that there is none, which is so until this is said.
    Reference(SystemSnapshot),
    /// The keys by which anybody may become a source of ours who has one; all of them until this is said. What the
    /// configuration names for a source is good there all the same.
    TrustedKeys(TrustedKeys),
    /// The addresses of our host in an instance, in place of those said before: whoever follows one of them follows us.
    OwnAddresses {
        /// Where.
        instance: InstanceId,
        /// All of them.
        addresses: Vec<IpAddr>,
    },
}

impl Event {
    /// The event as a record can keep it.
    #[must_use]
    pub fn recorded(&self) -> Event<SendNumber> {
        match self {
            Self::WakeUp => Event::WakeUp,
            Self::Packet(arrival) => Event::Packet(*arrival),
            Self::Sent { handle, stamp } => Event::Sent { handle: handle.number(), stamp: *stamp },
            Self::SendFailed { handle } => Event::SendFailed { handle: handle.number() },
            Self::Resolved { source, addresses } => {
                Event::Resolved { source: *source, addresses: addresses.clone() }
            }
            Self::AddSource { source, configuration } => {
                Event::AddSource { source: *source, configuration: configuration.clone() }
            }
            Self::RemoveSource(source) => Event::RemoveSource(*source),
            Self::ClockStepped(offset) => Event::ClockStepped(*offset),
            Self::ClockLeapt => Event::ClockLeapt,
            Self::Reference(snapshot) => Event::Reference(*snapshot),
            Self::TrustedKeys(keys) => Event::TrustedKeys(keys.clone()),
            Self::OwnAddresses { instance, addresses } => {
                Event::OwnAddresses { instance: *instance, addresses: addresses.clone() }
            }
        }
    }
}

impl Event<SendNumber> {
    /// The event for a controller that replays the record. `claim` gives the handle of a send of the replay; `None`
    /// if it never made that send, which shows that the record belongs to another seed or version.
    pub fn replayed(&self, claim: impl FnOnce(SendNumber) -> Option<SendHandle>) -> Option<Event> {
        Some(match self {
            Self::WakeUp => Event::WakeUp,
            Self::Packet(arrival) => Event::Packet(*arrival),
            Self::Sent { handle, stamp } => Event::Sent { handle: claim(*handle)?, stamp: *stamp },
            Self::SendFailed { handle } => Event::SendFailed { handle: claim(*handle)? },
            Self::Resolved { source, addresses } => {
                Event::Resolved { source: *source, addresses: addresses.clone() }
            }
            Self::AddSource { source, configuration } => {
                Event::AddSource { source: *source, configuration: configuration.clone() }
            }
            Self::RemoveSource(source) => Event::RemoveSource(*source),
            Self::ClockStepped(offset) => Event::ClockStepped(*offset),
            Self::ClockLeapt => Event::ClockLeapt,
            Self::Reference(snapshot) => Event::Reference(*snapshot),
            Self::TrustedKeys(keys) => Event::TrustedKeys(keys.clone()),
            Self::OwnAddresses { instance, addresses } => {
                Event::OwnAddresses { instance: *instance, addresses: addresses.clone() }
            }
        })
    }
}
