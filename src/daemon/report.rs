//! What `timeball status` and `timeball clients` say: the daemon fills it in, the command line reads it, both as
//! the same types. The JSON of `--json` is exactly this.

use super::associations::{ControlReport, SynchronisationReport};
use super::counters::PathReport;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The whole state of a daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusReport {
    /// The daemon's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it began to serve, in seconds since 1970 by the clock of then.
    pub start_time_seconds: f64,
    /// Seconds since it began to serve.
    pub uptime_seconds: f64,
    /// UDP port served.
    pub port: u16,
    /// What it says of its clock.
    pub clock: ClockReport,
    /// How its clock is kept by sources.
    #[serde(default)]
    pub synchronisation: SynchronisationReport,
    /// Each instance: one at least.
    #[serde(default)]
    pub instances: Vec<InstanceReport>,
    /// How the core that keeps it fares.
    #[serde(default)]
    pub control: ControlReport,
    /// Each interface, or none if only kernel sockets are used.
    pub interfaces: Vec<InterfaceReport>,
    /// Each worker.
    pub workers: Vec<WorkerReport>,
    /// Addresses on which kernel sockets listen.
    pub socket_addresses: Vec<String>,
    /// Packets that no association asked for, by NTP mode.
    pub unsolicited: BTreeMap<String, u64>,
    /// Fixed memory, in bytes.
    pub memory: MemoryReport,
    /// What is remembered of clients.
    pub tables: TablesReport,
}

/// What replies say of the clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClockReport {
    /// `sources`, `local`, `system` or `none`.
    pub source: String,
    /// Is there a reference?
    pub synchronised: bool,
    /// `none`, `insert`, `delete` or `unsynchronised`.
    pub leap: String,
    /// 1 to 16.
    pub stratum: u8,
    /// As text.
    pub reference_id: String,
    /// Base-2 logarithm of seconds.
    pub precision: i8,
    /// Seconds.
    pub root_delay_seconds: f64,
    /// Seconds, now.
    pub root_dispersion_seconds: f64,
    /// Why stratum 16 is served.
    pub problem: Option<String>,
}

/// One instance: a network of its own.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InstanceReport {
    /// Its name.
    pub name: String,
    /// Where it is: `own`, or `netns` or `vrf` with a name.
    pub network: String,
    /// Addresses on which its kernel sockets listen.
    pub socket_addresses: Vec<String>,
}

/// One interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InterfaceReport {
    /// Its name.
    pub name: String,
    /// In which instance.
    #[serde(default)]
    pub instance: String,
    /// Its index, while it exists.
    pub index: Option<u32>,
    /// `af-xdp`, `socket` or `absent`.
    pub path: String,
    /// The rung of the ladder it stands on, in words.
    pub rung: String,
    /// Every rung that was tried, in order.
    pub attempts: Vec<AttemptReport>,
    /// Addresses steered to AF_XDP.
    pub steered_addresses: u64,
    /// Packets that the NIC or the kernel dropped on the way in, whatever was in them; `None` where they are not told.
    pub receive_dropped: Option<u64>,
    /// Of those, the ones that no AF_XDP socket of a queue counts as well, as far as the driver is known to do that.
    #[serde(default)]
    pub nic_dropped: Option<u64>,
    /// Packets by verdict of the XDP program.
    pub verdicts: BTreeMap<String, u64>,
    /// Each queue.
    pub queues: Vec<QueueReport>,
}

/// One rung that was tried.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AttemptReport {
    /// The rung, in words.
    pub rung: String,
    /// `chosen`, or why not.
    pub outcome: String,
}

/// One AF_XDP queue.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct QueueReport {
    /// The interface's name.
    pub interface: String,
    /// In which instance.
    #[serde(default)]
    pub instance: String,
    /// The queue's number.
    pub queue: u32,
    /// The worker that serves it.
    pub worker: usize,
    /// Does the NIC read and write our frames itself?
    pub zero_copy: bool,
    /// Are transmit stamps possible?
    pub tx_metadata: bool,
    /// `normal` or `huge`.
    pub pages: String,
    /// What was asked for and refused without harm.
    pub refused: Vec<String>,
    /// Our own counts.
    pub counters: BTreeMap<String, u64>,
    /// The kernel's `XDP_STATISTICS`.
    pub kernel: BTreeMap<String, u64>,
    /// How many frames are where.
    pub frames: BTreeMap<String, u64>,
    /// Is every frame accounted for?
    pub frames_balanced: bool,
    /// How late replies left, if transmit stamps are asked for.
    pub transmit_error: Option<TransmitErrorReport>,
    /// Bytes this queue takes.
    pub memory_bytes: usize,
}

/// Departure by the stamp minus the transmit timestamp in the reply.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct TransmitErrorReport {
    /// How many replies were stamped.
    pub samples: u64,
    /// Mean, in nanoseconds; > 0: the reply left later than it says.
    pub mean_nanoseconds: i64,
    /// The largest.
    pub max_nanoseconds: i64,
}

/// One worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Its number.
    pub worker: usize,
    /// The CPU it is pinned to.
    pub core: Option<usize>,
    /// How the kernel schedules its thread now: `SCHED_OTHER`, `SCHED_FIFO` and so on. `None`: the kernel does not say.
    pub policy: Option<String>,
    /// Its priority among real-time threads; `None`: it is none.
    pub realtime_priority: Option<u8>,
    /// Its nice value; `None`: its policy does not go by it.
    pub nice: Option<i32>,
    /// How long it runs at a time when others want its CPU; `None`: its policy has no such slice, or the kernel (before
    /// 6.12) does not say.
    pub time_slice_nanoseconds: Option<u64>,
    /// Why it does not have the priority that is configured.
    pub priority_refused: Option<String>,
    /// What came through AF_XDP.
    pub af_xdp: PathReport,
    /// What came through kernel sockets.
    pub socket: PathReport,
    /// Counts of its sockets.
    pub socket_counters: BTreeMap<String, u64>,
}

/// Memory taken at start and never more.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct MemoryReport {
    /// The rate limiter's table.
    pub rate_limit_bytes: usize,
    /// All workers' client statistics.
    pub client_statistics_bytes: usize,
    /// All queues' frames and rings.
    pub queues_bytes: usize,
}

/// What is remembered of clients, and how much can be.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct TablesReport {
    /// About how many different clients have asked.
    pub distinct_clients_estimate: u64,
    /// The heaviest clients that all workers together can list.
    pub client_entries_max: u64,
    /// Clients that the rate limit can tell apart; 0 without one.
    pub rate_limit_entries_max: u64,
    /// Bytes of the rate limit's table that are on huge pages.
    pub rate_limit_huge_page_bytes: usize,
}

/// Who asks.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct ClientsReport {
    /// About how many different clients asked.
    pub distinct_estimate: u64,
    /// Requests by NTP version.
    pub by_version: BTreeMap<String, u64>,
    /// Requests by length in octets.
    pub by_length: BTreeMap<String, u64>,
    /// The instances there are.
    #[serde(default)]
    pub instances: Vec<String>,
    /// The heaviest clients, heaviest first.
    pub heaviest: Vec<ClientReport>,
}

/// One client (or prefix of clients, as the rate limit counts them).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ClientReport {
    /// Address, with the prefix length where it stands for several.
    pub client: String,
    /// In which instance: the same address in another is another client.
    #[serde(default)]
    pub instance: String,
    /// Requests, at most this many.
    pub requests: u64,
    /// By how much `requests` may be too high.
    pub error: u64,
    /// Those that got no time.
    pub refused: u64,
    /// Seconds since the last one.
    pub idle_seconds: f64,
}

impl StatusReport {
    /// Both paths summed over the workers.
    #[must_use]
    pub fn totals(&self) -> (PathReport, PathReport) {
        let mut totals = (PathReport::default(), PathReport::default());
        for worker in &self.workers {
            totals.0.add(&worker.af_xdp);
            totals.1.add(&worker.socket);
        }
        totals
    }
}
