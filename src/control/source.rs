//! What the configuration says of a source.
//!
//! Owns: the types. Does not own: reading a file, or the associations that come of it.

use super::event::{InstanceId, InterfaceIndex, KeyId};
use super::select::SourceOptions;
use crate::time::{Log2Seconds, NtpDuration};
use crate::wire::Version;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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
    /// None of ours: we are one to everybody at the place, a broadcast address or multicast group, in mode 5.
    Broadcast(BroadcastOptions),
    /// Every server that is heard in mode 5 at the place: a multicast group, a broadcast address, or 0.0.0.0 for any
    /// broadcast address. The shell joins the group.
    BroadcastClient(BroadcastClientOptions),
    /// The servers that answer when the group at the place is asked in mode 3; each is then asked like any server.
    ManycastClient(ManycastOptions),
    /// None: we answer those who ask the group at the place, which the shell joins. Questions without a MAC only where
    /// that is allowed.
    ManycastServer(Unsigned),
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

impl SourceKind {
    /// Does it give us time? (A server of ours does not.)
    #[must_use]
    pub const fn gives_time(&self) -> bool {
        !matches!(self, Self::Broadcast(_) | Self::ManycastServer(_))
    }

    /// Does it only wait for others to begin?
    #[must_use]
    pub const fn only_listens(&self) -> bool {
        matches!(self, Self::BroadcastClient(_) | Self::ManycastServer(_))
    }

    /// Do we speak to everybody at its place? Then the place is an address; a name leads nowhere.
    #[must_use]
    pub const fn addresses_many(&self) -> bool {
        matches!(self, Self::Broadcast(_) | Self::ManycastClient(_))
    }

    /// Has it to do with packets at port 123 that belong to no association?
    #[must_use]
    pub const fn hears_strangers(&self) -> bool {
        matches!(self, Self::BroadcastClient(_) | Self::ManycastClient(_) | Self::ManycastServer(_))
    }
}

/// May a packet that came unasked do without a MAC?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsigned {
    /// No: whoever can send to us could set our clock (RFC 8633 section 5.5).
    Refused,
    /// Yes; the operator trusts the network.
    Allowed,
}

/// How we broadcast.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BroadcastOptions {
    /// How often.
    pub interval: Log2Seconds,
    /// The TTL or hop limit, 1 and up; with 1 it passes no router.
    pub hop_limit: u8,
    /// Through which interface; 0: routing decides.
    pub interface: InterfaceIndex,
}

impl Default for BroadcastOptions {
    /// Every 64 s as ntpd does, no further than the first router.
    fn default() -> Self {
        Self { interval: Log2Seconds(6), hop_limit: 1, interface: InterfaceIndex(0) }
    }
}

/// How it is known how long a broadcast packet is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Calibration {
    /// The server is asked in mode 3 at first, and again when the path seems to have changed.
    Volley,
    /// The configuration says how long a round trip takes; nothing is ever sent (BDELAY of RFC 5905 A.5.1.1).
    Delay(NtpDuration),
}

/// How we listen to broadcast servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BroadcastClientOptions {
    /// How the delay is known.
    pub calibration: Calibration,
    /// Whether unsigned packets count.
    pub unsigned: Unsigned,
    /// On which interface; 0: on all.
    pub interface: InterfaceIndex,
}

impl Default for BroadcastClientOptions {
    /// A volley, signed packets only, all interfaces.
    fn default() -> Self {
        Self { calibration: Calibration::Volley, unsigned: Unsigned::Refused, interface: InterfaceIndex(0) }
    }
}

/// How we search for servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ManycastOptions {
    /// MINCLOCK of RFC 5905 A.1.1: so many servers end the search. 1 and up.
    pub enough: u8,
    /// MAXCLOCK: never more than this; from `enough` up to [`POOL_MEMBERS_MAX`].
    pub most: u8,
    /// TTLMAX: how far the search goes. 1 and up.
    pub hop_limit_max: u8,
    /// BEACON: how long the search rests when it was in vain, and between two questions when it was not.
    pub timeout: Log2Seconds,
    /// Whether unsigned answers count.
    pub unsigned: Unsigned,
    /// Through which interface; 0: routing decides.
    pub interface: InterfaceIndex,
}

impl Default for ManycastOptions {
    /// As in RFC 5905 A.1.1; but the timeout is a little more than an hour, as ntpd has it, and not nine (BEACON 15):
    /// somebody who has no server should not wait for one that long.
    fn default() -> Self {
        Self {
            enough: 3,
            most: 10,
            hop_limit_max: 8,
            timeout: Log2Seconds(12),
            unsigned: Unsigned::Refused,
            interface: InterfaceIndex(0),
        }
    }
}

impl ManycastOptions {
    /// The number of servers that ends the search, 1 to [`POOL_MEMBERS_MAX`].
    #[must_use]
    pub fn enough(&self) -> usize {
        usize::from(self.enough.clamp(1, POOL_MEMBERS_MAX))
    }

    /// The most servers, not below [`Self::enough`].
    #[must_use]
    pub fn most(&self) -> usize {
        usize::from(self.most.min(POOL_MEMBERS_MAX)).max(self.enough())
    }
}

/// 224.0.1.1, the multicast group of NTP (RFC 5905 section 3.1).
pub const NTP_GROUP: IpAddr = IpAddr::V4(Ipv4Addr::new(224, 0, 1, 1));

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

    /// Always this often.
    #[must_use]
    pub const fn fixed(interval: Log2Seconds) -> Self {
        Self { poll_min: interval, poll_max: interval, iburst: Burst::Off, burst: Burst::Off }
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
    /// Of the packets that we send to it.
    pub version: Version,
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
            version: Version::V4,
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
