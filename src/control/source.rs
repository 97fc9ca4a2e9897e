//! What the configuration says of a source.
//!
//! Owns: the types. Does not own: reading a file, or the associations that come of it.

use super::event::{InstanceId, KeyId};
use super::select::SourceOptions;
use crate::time::Log2Seconds;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// A configured source. One of them may be several associations (`pool`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SourceId(pub u32);

/// Where a source is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// At this address and port.
    Address(SocketAddr),
    /// Wherever this name leads, at this port. Resolved when first needed, and again when the address is silent.
    Name(Arc<str>, u16),
}

/// In which mode a source is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceKind {
    /// One server, asked in mode 3.
    Server,
    /// As many servers as this, 1 to [`POOL_MEMBERS_MAX`], of those that a name leads to, each asked in mode 3.
    Pool(u8),
    /// One peer, in mode 1.
    Peer(Volley),
}

/// Before a peering begins, is the peer asked as a server first, once, in mode 3?
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Volley {
    /// Yes; if it does not answer, mode 1 follows at once.
    #[default]
    On,
    /// No, mode 1 from the start.
    Off,
}

/// The most members of one pool. RFC 8633 section 3.2 wants four sources at least; twice that is more than anyone
/// asks a pool for.
pub const POOL_MEMBERS_MAX: u8 = 16;

/// The shortest poll interval that a configuration may ask for: a second.
pub const POLL_MIN_LEAST: Log2Seconds = Log2Seconds(0);
/// MAXPOLL of RFC 5905 section 7.2: a day and a half.
pub const POLL_MAX_MOST: Log2Seconds = Log2Seconds(17);

/// How often a source is polled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PollOptions {
    /// The shortest interval. From [`POLL_MIN_LEAST`].
    pub poll_min: Log2Seconds,
    /// The longest interval; up to [`POLL_MAX_MOST`], not below `poll_min`.
    pub poll_max: Log2Seconds,
    /// Eight packets instead of one when a source that was unreachable is polled.
    pub iburst: Burst,
    /// Eight packets instead of one at each poll of a reachable source.
    pub burst: Burst,
}

/// Is a burst sent?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Burst {
    /// Yes.
    On,
    /// No.
    Off,
}

impl Default for PollOptions {
    /// 64 s to 1024 s, as chronyd and ntpd have it; no bursts.
    fn default() -> Self {
        Self { poll_min: Log2Seconds(6), poll_max: Log2Seconds(10), iburst: Burst::Off, burst: Burst::Off }
    }
}

impl PollOptions {
    /// The same within the range that the poll process works in.
    #[must_use]
    pub fn clamped(self) -> Self {
        let poll_min = self.poll_min.clamp(POLL_MIN_LEAST, POLL_MAX_MOST);
        Self { poll_min, poll_max: self.poll_max.clamp(poll_min, POLL_MAX_MOST), ..self }
    }
}

/// A source as configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceConfiguration {
    /// In which instance.
    pub instance: InstanceId,
    /// How it is used.
    pub kind: SourceKind,
    /// Where it is.
    pub place: Place,
    /// The key that both sides know.
    pub key: Option<KeyId>,
    /// How often it is polled.
    pub poll: PollOptions,
    /// What its time is worth.
    pub options: SourceOptions,
}

impl SourceConfiguration {
    /// A server at an address, with the defaults of everything.
    #[must_use]
    pub fn server(address: IpAddr) -> Self {
        Self {
            instance: InstanceId(0),
            kind: SourceKind::Server,
            place: Place::Address(SocketAddr::new(address, NTP_PORT)),
            key: None,
            poll: PollOptions::default(),
            options: SourceOptions::default(),
        }
    }

    /// A peer at an address, with the defaults of everything.
    #[must_use]
    pub fn peer(address: IpAddr) -> Self {
        Self { kind: SourceKind::Peer(Volley::default()), ..Self::server(address) }
    }
}

/// PORT of RFC 5905 section 7.2.
pub const NTP_PORT: u16 = 123;
