//! The checked configuration of whom we ask and whom we tell.
//!
//! Owns: one type for each table of sources, their defaults, and how they print. Does not own: reading or checking
//! (`check_sources`), nor what an association does with it ([`crate::control`], whose defaults these are).
//!
//! The one idea a newcomer lacks: a table's name says in which mode its source is used, as the words `server`, `pool`,
//! `peer` do in every NTP daemon's configuration; its keys are the same in all tables where they mean the same.

use super::instance::DEFAULT;
use super::{duration, values};
use crate::auth::KeyId;
use crate::control::PassivePeers;
use crate::control::source::{self, BroadcastOptions, ManycastOptions, NTP_GROUP, NTP_PORT, PollOptions};
use crate::time::NtpDuration;
use crate::wire::Version;
use clap::ValueEnum;
use serde::Serialize;
use std::net::{IpAddr, Ipv4Addr};

/// How often a source is polled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Polling {
    /// The shortest interval, as the base-2 logarithm of seconds: 0 to 17.
    pub min_poll: i8,
    /// The longest: `min_poll` to 17.
    pub max_poll: i8,
    /// Eight packets instead of one while it is unreachable, and at first.
    pub iburst: bool,
    /// Eight packets instead of one at each poll.
    pub burst: bool,
}

impl Default for Polling {
    fn default() -> Self {
        let PollOptions { poll_min, poll_max, .. } = PollOptions::default();
        Self { min_poll: poll_min.0, max_poll: poll_max.0, iburst: false, burst: false }
    }
}

/// What a source's time is worth to us.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Worth {
    /// Of the sources that are right, only those with this are used.
    pub prefer: bool,
    /// Taken for true unless others with this contradict it.
    pub trust: bool,
    /// One source with this must be right, or the clock is left alone.
    pub require: bool,
    /// Only watched.
    pub noselect: bool,
    /// Added to each offset; > 0: our clock is further behind than measured. -1 s to 1 s.
    #[serde(serialize_with = "duration::serialize")]
    pub offset: NtpDuration,
    /// The largest root distance, instead of [`Selection::max_distance`]; 1 ms to 16 s.
    #[serde(serialize_with = "duration::serialize_or_off")]
    pub max_distance: Option<NtpDuration>,
    /// The longest delay; 1 us to 16 s. `None`: any.
    #[serde(serialize_with = "duration::serialize_or_off")]
    pub max_delay: Option<NtpDuration>,
    /// The largest jitter; 1 us to 16 s. `None`: any.
    #[serde(serialize_with = "duration::serialize_or_off")]
    pub max_jitter: Option<NtpDuration>,
}

/// `[[server]]`: one server that is asked (mode 3).
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Server {
    /// A name or an address, perhaps with a scope (`fe80::1%eth0`); not empty.
    pub address: String,
    /// Its UDP port, not 0.
    pub port: u16,
    /// In which instance it is.
    pub instance: String,
    /// The key that both sides know.
    #[serde(serialize_with = "values::key_or_off")]
    pub key: Option<KeyId>,
    /// The NTP version of the packets that we send to it: 3 or 4.
    pub version: u8,
    /// How often it is asked.
    #[serde(flatten)]
    pub polling: Polling,
    /// What its time is worth.
    #[serde(flatten)]
    pub worth: Worth,
}

impl Server {
    /// The server of this name or address with the default settings.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            port: NTP_PORT,
            instance: DEFAULT.to_owned(),
            key: None,
            version: Version::V4.number(),
            polling: Polling::default(),
            worth: Worth::default(),
        }
    }
}

/// `[[pool]]`: several servers behind one name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pool {
    /// How many of them are asked, 1 to 16.
    pub members: u8,
    /// How each of them is asked.
    #[serde(flatten)]
    pub server: Server,
}

impl Pool {
    /// Four servers: RFC 8633 section 3.2.
    pub const MEMBERS: u8 = 4;
}

/// `[[peer]]`: a peer that we send to first (mode 1, symmetric active).
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Peer {
    /// Is it asked as a server first, once?
    pub volley: bool,
    /// Where it is, and the rest. Its port is 123.
    #[serde(flatten)]
    pub server: Server,
}

/// `[[broadcast]]`: whom we tell the time unasked (mode 5).
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Broadcast {
    /// A broadcast address or a multicast group.
    pub address: IpAddr,
    /// To which UDP port, not 0.
    pub port: u16,
    /// In which instance.
    pub instance: String,
    /// The key that it is signed with.
    #[serde(serialize_with = "values::key_or_off")]
    pub key: Option<KeyId>,
    /// How often, as the base-2 logarithm of seconds: 0 to 17.
    pub interval: i8,
    /// TTL or hop limit, 1 to 255.
    pub ttl: u8,
    /// Through which interface; `None`: routing decides.
    #[serde(serialize_with = "values::name_or_any")]
    pub interface: Option<String>,
}

impl Broadcast {
    /// To this address with the default settings.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        let BroadcastOptions { interval, hop_limit, .. } = BroadcastOptions::default();
        Self {
            address,
            port: NTP_PORT,
            instance: DEFAULT.to_owned(),
            key: None,
            interval: interval.0,
            ttl: hop_limit,
            interface: None,
        }
    }
}

/// `[[broadcast-client]]`: whom we listen to (mode 5).
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BroadcastClient {
    /// A multicast group or broadcast address that is listened at; 0.0.0.0: all broadcast addresses of this machine.
    pub address: IpAddr,
    /// In which instance.
    pub instance: String,
    /// The key that packets must be signed with; `None`: any that we have.
    #[serde(serialize_with = "values::key_or_off")]
    pub key: Option<KeyId>,
    /// Do packets without a signature count?
    pub allow_unsigned: bool,
    /// How long a round trip takes, up to 1 s, so that nothing is sent; `None`: it is measured.
    #[serde(serialize_with = "duration::serialize_or_measure")]
    pub delay: Option<NtpDuration>,
    /// On which interface; `None`: on all.
    #[serde(serialize_with = "values::name_or_any")]
    pub interface: Option<String>,
    /// What the time heard is worth.
    #[serde(flatten)]
    pub worth: Worth,
}

impl BroadcastClient {
    /// With the default settings.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self {
            address,
            instance: DEFAULT.to_owned(),
            key: None,
            allow_unsigned: false,
            delay: None,
            interface: None,
            worth: Worth::default(),
        }
    }

    /// All broadcast addresses of this machine.
    pub const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
}

/// `[[manycast-client]]`: servers that a multicast group is asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ManycastClient {
    /// The group.
    pub address: IpAddr,
    /// In which instance.
    pub instance: String,
    /// The key that answers must be signed with; `None`: any that we have.
    #[serde(serialize_with = "values::key_or_off")]
    pub key: Option<KeyId>,
    /// Do answers without a signature count?
    pub allow_unsigned: bool,
    /// So many servers end the search: 1 to 16.
    pub enough: u8,
    /// Never more than this: `enough` to 16.
    pub most: u8,
    /// How far the search goes at most, 1 to 255.
    pub ttl: u8,
    /// How long a search rests, as the base-2 logarithm of seconds: 4 to 17.
    pub timeout: i8,
    /// Through which interface; `None`: routing decides.
    #[serde(serialize_with = "values::name_or_any")]
    pub interface: Option<String>,
    /// How often the servers are asked.
    #[serde(flatten)]
    pub polling: Polling,
    /// What their time is worth.
    #[serde(flatten)]
    pub worth: Worth,
}

impl ManycastClient {
    /// With the default settings.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        let ManycastOptions { enough, most, hop_limit_max, timeout, .. } = ManycastOptions::default();
        Self {
            address,
            instance: DEFAULT.to_owned(),
            key: None,
            allow_unsigned: false,
            enough,
            most,
            ttl: hop_limit_max,
            timeout: timeout.0,
            interface: None,
            polling: Polling::default(),
            worth: Worth::default(),
        }
    }
}

/// `[[manycast-server]]`: a group in which we answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ManycastServer {
    /// The group.
    pub address: IpAddr,
    /// In which instance.
    pub instance: String,
    /// The key that questions must be signed with; `None`: any that we have.
    #[serde(serialize_with = "values::key_or_off")]
    pub key: Option<KeyId>,
    /// Are questions without a signature answered?
    pub allow_unsigned: bool,
    /// On which interface; `None`: on all.
    #[serde(serialize_with = "values::name_or_any")]
    pub interface: Option<String>,
}

impl ManycastServer {
    /// With the default settings.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self { address, instance: DEFAULT.to_owned(), key: None, allow_unsigned: false, interface: None }
    }
}

/// NTP's own group (224.0.1.1), where no other is named.
pub const GROUP: IpAddr = NTP_GROUP;

/// Who may become a passive peer of ours.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PassivePeersPolicy {
    /// Nobody
    Refused,
    /// Whoever has a trusted key, one for each
    #[default]
    Authenticated,
    /// Anyone whom the access list lets in, few without a key
    Anyone,
}

impl From<PassivePeersPolicy> for PassivePeers {
    fn from(policy: PassivePeersPolicy) -> Self {
        match policy {
            PassivePeersPolicy::Refused => Self::Refused,
            PassivePeersPolicy::Authenticated => Self::Authenticated,
            PassivePeersPolicy::Anyone => Self::Anyone,
        }
    }
}

/// All sources and servers of ours that are associations.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sources {
    /// Servers.
    #[serde(rename = "server")]
    pub servers: Vec<Server>,
    /// Pools of servers.
    #[serde(rename = "pool")]
    pub pools: Vec<Pool>,
    /// Peers.
    #[serde(rename = "peer")]
    pub peers: Vec<Peer>,
    /// Whom we broadcast to.
    #[serde(rename = "broadcast")]
    pub broadcasts: Vec<Broadcast>,
    /// Where we listen to broadcasts.
    #[serde(rename = "broadcast-client")]
    pub broadcast_clients: Vec<BroadcastClient>,
    /// Groups that we ask for servers.
    #[serde(rename = "manycast-client")]
    pub manycast_clients: Vec<ManycastClient>,
    /// Groups in which we answer.
    #[serde(rename = "manycast-server")]
    pub manycast_servers: Vec<ManycastServer>,
}

impl Sources {
    /// Does any of them give us time?
    #[must_use]
    pub const fn give_time(&self) -> bool {
        !(self.servers.is_empty()
            && self.pools.is_empty()
            && self.peers.is_empty()
            && self.broadcast_clients.is_empty()
            && self.manycast_clients.is_empty())
    }

    /// How many tables there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.servers.len()
            + self.pools.len()
            + self.peers.len()
            + self.broadcasts.len()
            + self.broadcast_clients.len()
            + self.manycast_clients.len()
            + self.manycast_servers.len()
    }

    /// No table at all?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The keys they name, each with its table's name and address.
    pub fn keys(&self) -> impl Iterator<Item = (&'static str, String, KeyId)> {
        let server = |table, server: &Server| (table, server.address.clone(), server.key);
        let many = |table, address: IpAddr, key| (table, address.to_string(), key);
        let servers = self.servers.iter().map(move |one| server("server", one));
        let pools = self.pools.iter().map(move |one| server("pool", &one.server));
        let peers = self.peers.iter().map(move |one| server("peer", &one.server));
        let broadcasts = self.broadcasts.iter().map(move |one| many("broadcast", one.address, one.key));
        let heard = self.broadcast_clients.iter();
        let heard = heard.map(move |one| many("broadcast-client", one.address, one.key));
        let sought = self.manycast_clients.iter();
        let sought = sought.map(move |one| many("manycast-client", one.address, one.key));
        let answered = self.manycast_servers.iter();
        let answered = answered.map(move |one| many("manycast-server", one.address, one.key));
        let asked = servers.chain(pools).chain(peers);
        let all = asked.chain(broadcasts).chain(heard).chain(sought).chain(answered);
        all.filter_map(|(table, address, key)| Some((table, address, key?)))
    }
}

/// The range of poll intervals.
pub(super) const POLLS: std::ops::RangeInclusive<i64> =
    source::POLL_MIN_LEAST.0 as i64..=source::POLL_MAX_MOST.0 as i64;
