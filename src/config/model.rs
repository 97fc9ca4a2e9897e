//! The checked configuration: what the daemon works from.
//!
//! Owns: [`Config`] and its parts, their defaults, and how they print. Does not own: reading or checking.
//!
//! The one idea a newcomer lacks: there is no state in here that `check` would refuse; a field's documented range
//! holds, so nobody checks it again.

use super::clock_control::{ClockControl, Selection};
use super::instance::{DEFAULT, Instance};
use super::sources::{PassivePeersPolicy, Sources};
use super::values::{ReferenceId, Vlan, Workers};
use super::{DEFAULT_SOCKET, duration, values};
use crate::auth::TrustedKeys;
use crate::time::NtpDuration;
use clap::ValueEnum;
use ipnet::IpNet;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A checked configuration.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Config {
    /// UDP port to serve, 1 to 65535.
    pub port: u16,
    /// How requests reach the workers.
    pub datapath: Datapath,
    /// How many threads answer.
    pub workers: Workers,
    /// CPUs for the workers, each once. Empty: all but the first where there are several.
    pub cores: Vec<u16>,
    /// Do the workers spin on their queues instead of sleeping?
    pub busy_poll: bool,
    /// The workers' priority among real-time threads (`SCHED_FIFO`), 1 to 99. `None`: they are ordinary threads. Never
    /// together with `busy_poll` or no workers.
    #[serde(serialize_with = "values::number_or_off")]
    pub realtime_priority: Option<u8>,
    /// The unix socket that `timeball status` asks: absolute, at most 107 bytes.
    pub socket: PathBuf,
    /// May the daemon set or steer the clock?
    pub clock_control: bool,
    /// Are Kiss-o'-Death packets sent?
    pub kod: bool,
    /// What is logged.
    pub log: LogLevel,
    /// Who may become a passive peer of ours.
    pub passive_peers: PassivePeersPolicy,
    /// Where the time comes from while no source is selected. `None`: nowhere, we serve as unsynchronised (stratum
    /// 16).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
    /// The networks that are served, names unique. Empty: the one we were started in. See [`Config::instances`].
    #[serde(rename = "instance")]
    pub configured_instances: Vec<Instance>,
    /// Interfaces to serve through AF_XDP, names unique within their instance. None of them: kernel sockets on every interface.
    #[serde(rename = "interface")]
    pub interfaces: Vec<Interface>,
    /// Who is answered.
    pub access: Access,
    /// How often one client is answered.
    pub rate_limit: RateLimit,
    /// How much is remembered about clients.
    pub clients: Clients,
    /// Where Prometheus reads.
    pub metrics: Metrics,
    /// The symmetric keys.
    pub keys: Keys,
    /// Which sources are believed.
    pub selection: Selection,
    /// How the clock is steered.
    pub clock: ClockControl,
    /// Whom we ask, whom we tell.
    #[serde(flatten)]
    pub sources: Sources,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            port: 123,
            datapath: Datapath::default(),
            workers: Workers::default(),
            cores: Vec::new(),
            busy_poll: false,
            realtime_priority: None,
            socket: DEFAULT_SOCKET.into(),
            clock_control: true,
            kod: false,
            log: LogLevel::default(),
            passive_peers: PassivePeersPolicy::default(),
            reference: None,
            configured_instances: Vec::new(),
            interfaces: Vec::new(),
            access: Access::default(),
            rate_limit: RateLimit::default(),
            clients: Clients::default(),
            metrics: Metrics::default(),
            keys: Keys::default(),
            selection: Selection::default(),
            clock: ClockControl::default(),
            sources: Sources::default(),
        }
    }
}

impl Config {
    /// The networks that are served, at least one, in the order of their numbers.
    #[must_use]
    pub fn instances(&self) -> Vec<Instance> {
        match self.configured_instances.as_slice() {
            [] => vec![Instance::default()],
            several => several.to_vec(),
        }
    }

    /// The number of the instance of this name; every table has the name of one that there is.
    #[must_use]
    pub fn instance_number(&self, name: &str) -> u16 {
        let number = self.configured_instances.iter().position(|instance| instance.name == name);
        number.unwrap_or_default() as u16
    }

    /// As TOML that loads again, every key spelled out.
    ///
    /// # Errors
    /// Only where a field was set by hand to what TOML cannot say, such as a socket path that is no UTF-8.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

/// How requests reach the workers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Datapath {
    /// AF_XDP where it works, kernel sockets where it does not; says what it chose
    #[default]
    Auto,
    /// AF_XDP or nothing
    AfXdp,
    /// Kernel sockets only
    Socket,
}

/// What is logged.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// What stops or cripples the service
    Error,
    /// What an operator should look at
    Warn,
    /// Changes of state
    #[default]
    Info,
    /// What a developer wants to see
    Debug,
}

/// Where the time comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Reference {
    /// Whose clock.
    pub source: Source,
    /// What we tell clients our stratum is, 1 to 15.
    pub stratum: u8,
    /// What we tell clients our source is.
    pub reference_id: ReferenceId,
}

impl Reference {
    /// With the source's default stratum and reference id.
    #[must_use]
    pub const fn new(source: Source) -> Self {
        let stratum = source.default_stratum();
        Self { source, stratum, reference_id: source.default_reference_id(stratum) }
    }
}

/// Whose clock is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The machine's own clock, whether or not anything keeps it right
    Local,
    /// The kernel clock that another program keeps (chronyd, ptp4l with phc2sys)
    System,
}

impl Source {
    /// Local: 10, so that any real server beats us. System: 3, what a client of a stratum 2 server has, because
    /// `adjtimex` tells whether the clock is synchronised and how well, but not at which stratum.
    #[must_use]
    pub const fn default_stratum(self) -> u8 {
        match self {
            Self::Local => 10,
            Self::System => 3,
        }
    }

    /// At stratum 1 a name, above it [`ReferenceId::NOBODY`].
    #[must_use]
    pub const fn default_reference_id(self, stratum: u8) -> ReferenceId {
        match (stratum, self) {
            (1, Self::Local) => ReferenceId::LOCAL,
            (1, Self::System) => ReferenceId::KERNEL,
            _ => ReferenceId::NOBODY,
        }
    }
}

/// One interface to serve through AF_XDP.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Interface {
    /// The kernel's name for it, 1 to 15 bytes.
    pub name: String,
    /// In which instance it is.
    pub instance: String,
    /// Where the XDP program runs.
    pub xdp_mode: XdpMode,
    /// Is zero-copy tried?
    pub zero_copy: bool,
    /// Are receive stamps by the NIC tried (the device-bound XDP program)?
    pub nic_stamps: bool,
    /// Receive queues to serve, each once, 0 to 4095. Empty: all of them.
    pub queues: Vec<u16>,
    /// Tags on which the interface's own addresses are served although the kernel has no VLAN interface, each once.
    pub vlans: Vec<Vlan>,
    /// Frames of each queue's umem: a power of two, 512 to 65536.
    pub frames: u32,
    /// Bytes of one frame: 2048 or 4096.
    pub frame_size: u32,
    /// Is the umem put on huge pages?
    pub hugepages: bool,
    /// Is a transmit stamp asked for with every reply, to measure the transmit error?
    pub tx_timestamps: bool,
}

impl Interface {
    /// The interface of this name with the default settings.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            instance: DEFAULT.to_owned(),
            xdp_mode: XdpMode::default(),
            zero_copy: true,
            nic_stamps: true,
            queues: Vec::new(),
            vlans: Vec::new(),
            frames: 4096,
            frame_size: 2048,
            hugepages: false,
            tx_timestamps: false,
        }
    }
}

/// Where the XDP program runs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// In the driver where it can, else in the kernel's generic hook
    #[default]
    Auto,
    /// In the driver or nowhere
    Driver,
    /// In the kernel's generic hook, on socket buffers
    Skb,
}

/// Who is answered: the longest prefix that holds a client's address decides.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Access {
    /// For addresses in none of the lists.
    pub default: Policy,
    /// Answered.
    pub allow: Vec<IpNet>,
    /// Refused, with a Kiss-o'-Death `DENY` where those are on.
    pub deny: Vec<IpNet>,
    /// Refused, with a Kiss-o'-Death `RSTR` where those are on.
    pub restrict: Vec<IpNet>,
    /// Dropped in silence, in the XDP program already.
    pub drop: Vec<IpNet>,
}

/// What is done with a request.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Answer it
    #[default]
    Allow,
    /// Refuse it (`DENY`)
    Deny,
    /// Refuse it (`RSTR`)
    Restrict,
    /// Drop it in silence
    Drop,
}

/// How often one client is answered: a token bucket for each client prefix.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RateLimit {
    /// Is there a limit at all?
    pub enabled: bool,
    /// Time between the requests of one client in the long run, 1 ms to 1 day.
    #[serde(serialize_with = "duration::serialize")]
    pub interval: NtpDuration,
    /// How many requests a client that was silent may send at once, 1 to 1023.
    pub burst: u16,
    /// One in so many requests over the limit is answered all the same, so that nobody can lock a victim out by
    /// asking in its name; 0 to 1024, 0: none is.
    pub leak: u16,
    /// Length of the IPv4 prefix that counts as one client, 8 to 32.
    pub ipv4_prefix: u8,
    /// Length of the IPv6 prefix that counts as one client, 16 to 128.
    pub ipv6_prefix: u8,
    /// Clients remembered as asked for, 1024 to 2^28; see [`RateLimit::slots`].
    pub clients: u32,
}

impl RateLimit {
    /// Slots of the table, 8 bytes each: [`RateLimit::clients`] rounded up to a power of two.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.clients.next_power_of_two()
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            enabled: false,
            interval: NtpDuration::from_seconds(1),
            burst: 16,
            leak: 4,
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            clients: 1_000_000,
        }
    }
}

/// How much is remembered about clients.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Clients {
    /// The heaviest clients kept, for each worker: a power of two, 64 to 2^20.
    pub entries: u32,
}

impl Default for Clients {
    fn default() -> Self {
        Self { entries: 4096 }
    }
}

/// Where Prometheus reads.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Metrics {
    /// TCP address, on loopback unless `allow_remote`, port not 0. `None`: nowhere.
    #[serde(serialize_with = "values::address_or_off")]
    pub listen: Option<SocketAddr>,
    /// May it be an address that others can reach? Whoever can reads all, without a password.
    pub allow_remote: bool,
}

/// The symmetric keys.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Keys {
    /// The key file, in chrony's or ntpd's format: absolute. `None`: no keys.
    #[serde(serialize_with = "values::path_or_off")]
    pub file: Option<PathBuf>,
    /// Are MD5 keys taken?
    pub allow_md5: bool,
    /// Those of its keys that clients may use, and whoever would be a source of ours unasked.
    pub trusted: TrustedKeys,
}
