//! What the controller wants done.
//!
//! Owns: the types that come out. Does not own: doing it. The shell carries actions out in their order.

use super::event::{
    AssociationId, ExchangeSocket, InstanceId, InterfaceIndex, KeyId, SendHandle, SocketName,
};
use super::news::News;
use super::source::SourceId;
use crate::snapshot::SystemSnapshot;
use crate::time::{Monotonic, NtpDuration, Ppm, Timestamp};
use crate::wire::Header;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Who fills in the transmit timestamp of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransmitField {
    /// It is there: the random number that a request carries instead of the time.
    Keep,
    /// The shell, from the clock, as late as it can.
    Clock,
}

/// What stands behind the header of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trailer {
    /// Nothing.
    None,
    /// The MAC by this key, written after the transmit timestamp.
    Mac(KeyId),
    /// A crypto-NAK, four octets of zeros: "your MAC is wrong, or I do not know your key" (RFC 5905 section 9.2). It proves
    /// nothing.
    CryptoNak,
}

impl From<Option<KeyId>> for Trailer {
    /// What an association with this key, or none, puts there.
    fn from(key: Option<KeyId>) -> Self {
        key.map_or(Self::None, Self::Mac)
    }
}

/// A packet to send.
#[derive(PartialEq, Eq, Debug)]
pub struct Transmission {
    /// To be given back with the time it left, or with the news that it could not.
    pub handle: SendHandle,
    /// Through which socket.
    pub from: SocketName,
    /// From which of our addresses; `None`: the kernel chooses.
    pub local: Option<IpAddr>,
    /// To whom.
    pub to: SocketAddr,
    /// Through which interface; 0: routing decides.
    pub interface: InterfaceIndex,
    /// With which TTL or hop limit; `None`: the system's.
    pub hop_limit: Option<u8>,
    /// What to say.
    pub header: Header,
    /// Who writes its transmit timestamp.
    pub transmit_field: TransmitField,
    /// What stands behind it.
    pub trailer: Trailer,
}

/// How fast the clock shall run.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Frequency {
    /// What the oscillator's error demands; positive: faster. Worth a drift file.
    pub base: Ppm,
    /// What works off an error of the clock's time, on top, until further notice; positive: faster.
    pub slew: Ppm,
}

impl Frequency {
    /// Both together, which is what the clock is set to.
    #[must_use]
    pub const fn total(self) -> Ppm {
        Ppm::from_bits(self.base.to_bits().saturating_add(self.slew.to_bits()))
    }
}

/// Something to do.
#[must_use]
#[derive(PartialEq, Eq, Debug)]
pub enum Action {
    /// Open a socket for one exchange with `remote`: bound to a random port, and connected, so that nobody else's
    /// packets come through it. If that fails, the transmission that follows fails.
    OpenSocket {
        /// Its name.
        socket: ExchangeSocket,
        /// In which instance.
        instance: InstanceId,
        /// With whom.
        remote: SocketAddr,
    },
    /// Close it; the exchange is over.
    CloseSocket(ExchangeSocket),
    /// Send a packet.
    Transmit(Transmission),
    /// Send [`super::Event::WakeUp`] at this time, or never; the last word counts.
    WakeAt(Option<Timestamp<Monotonic>>),
    /// Step the clock by this much; positive: forward.
    Step(NtpDuration),
    /// Let the clock run so fast from now on.
    SetFrequency(Frequency),
    /// Tell the workers what to serve.
    Publish(SystemSnapshot),
    /// Look a name up, and say [`super::Event::Resolved`], whatever comes of it.
    Resolve {
        /// For which source.
        source: SourceId,
        /// In which instance.
        instance: InstanceId,
        /// The name.
        name: Arc<str>,
    },
    /// Something worth a line in the log. Comes only when something changed.
    Report {
        /// In which instance; `None`: it is about the whole.
        instance: Option<InstanceId>,
        /// Which association it is about; `None`: the system.
        association: Option<AssociationId>,
        /// What happened.
        news: News,
    },
}
