//! What every engine does: one step of load, and what it measured.
//!
//! Owns: the words the engines and their caller share. Does not own: any way to send a packet.
//!
//! The one idea a newcomer lacks: the engines share the requests, the rules for judging replies and this vocabulary,
//! and nothing else. One sends through xsk-rs from user space, the other inside the kernel; that they agree is a test.

use super::clients::Clients;
use super::digits::grouped;
use super::judge::Flaw;
use super::record::empty_histogram;
use hdrhistogram::Histogram;
use std::net::IpAddr;
use std::time::Duration;

/// Who asks whom, and from where: all that stays the same during a run.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The interface that sends.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Its MAC address.
    pub source_mac: [u8; 6],
    /// The next hop's.
    pub target_mac: [u8; 6],
    /// Who is asked.
    pub target: IpAddr,
    /// On which UDP port.
    pub port: u16,
    /// Who asks.
    pub clients: Clients,
    /// What a right reply is.
    pub expect: Expect,
}

/// What a right reply is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// A server's: mode 4, with our transmit timestamp as its origin, synchronised, T2 <= T3.
    Ntp,
    /// The request itself, as a bare reflector returns it. It has no turnaround.
    Echo,
}

/// One step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Plan {
    /// Requests a second; none: as many as the engine can send.
    pub rate: Option<f64>,
    /// For how long requests are sent.
    pub duration: Duration,
    /// A reply that takes longer counts as late. So long is waited for replies after the last request.
    pub timeout: Duration,
    /// Tells this step's requests from those of other steps and runs: the upper half of their transmit timestamps.
    pub nonce: u32,
}

/// How long after a step's end requests that were due before may still leave. Those that have not left by then are send
/// failures: the engine, or the interface, is slower than the rate.
pub const OVERTIME: Duration = Duration::from_millis(500);

impl Plan {
    /// How many requests are due, at least one; `None` when saturating.
    #[must_use]
    pub fn requests(&self) -> Option<u64> {
        self.rate.map(|rate| ((rate * self.duration.as_secs_f64()).round() as u64).max(1))
    }

    /// How many requests can be open at once, none of them late yet: what an engine that remembers `max` has to
    /// remember. When saturating, as if at `saturated` requests a second, and no more than `max`.
    ///
    /// # Errors
    /// More than `max`. Replies in time would pass for late ones.
    pub fn open_at_once(&self, saturated: f64, max: u64) -> Result<u64, EngineError> {
        let open = (self.rate.unwrap_or(saturated) * self.timeout.as_secs_f64()).ceil() as u64;
        match self.rate {
            Some(rate) if open > max => Err(EngineError(format!(
                "--timeout {:?}: must be at most {} ms at {} requests/s, as the engine remembers {} open requests",
                self.timeout,
                grouped((max as f64 / rate * 1e3) as u64, ' '),
                grouped(rate.round() as u64, ' '),
                grouped(max, ' ')
            ))),
            _ => Ok(open.min(max)),
        }
    }
}

/// What is known while a step runs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Progress {
    /// Since the step began.
    pub elapsed: Duration,
    /// Requests sent.
    pub offered: u64,
    /// Right replies.
    pub answered: u64,
}

/// What whoever watches a step wants of it. The engine asks anew each time it tells its progress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// Nothing in particular.
    GoOn,
    /// Send no more, but wait for the replies that are on their way, as at the step's own end.
    Finish,
    /// Send no more and wait for nothing.
    EndNow,
}

/// What a step measured.
#[derive(Clone, PartialEq, Debug)]
pub struct Measured {
    /// From the first request's intended time to the last one's departure: a sender that cannot keep up must not claim the
    /// rate that was intended.
    pub duration: Duration,
    /// Requests sent.
    pub offered: u64,
    /// Requests that were due but had not left by [`OVERTIME`]; not in `offered`. 0 when saturating, or stopped early.
    pub send_failures: u64,
    /// Right replies in time.
    pub answered: u64,
    /// Requests, of `offered`, that were open, and not yet due to be answered, when the step ended before its time: nobody
    /// knows what would have become of them. 0 after a step that waited for its replies.
    pub in_flight: u64,
    /// Why the engine could not go on, where it could not: the interface went away, and when. The rest is what was
    /// measured until then.
    pub broken: Option<String>,
    /// Right replies after the timeout.
    pub late: u64,
    /// Kiss-o'-death packets by code.
    pub kisses: Vec<([u8; 4], u64)>,
    /// Replies to what had its reply already.
    pub duplicates: u64,
    /// Wrong replies, indexed by [`Flaw`].
    pub flaws: [u64; Flaw::COUNT],
    /// Right replies, late ones included, whose UDP checksum was left for hardware to finish.
    pub unfinished_checksums: u64,
    /// Intended time of the request to arrival of its reply, nanoseconds; `answered` of them.
    pub round_trip: Histogram<u64>,
    /// T3 - T2 of right replies, nanoseconds; late ones included, as leaving out the slow ones would flatter the server.
    pub turnaround: Histogram<u64>,
    /// Intended time to departure, nanoseconds; `offered` of them.
    pub send_delay: Histogram<u64>,
}

impl Default for Measured {
    fn default() -> Self {
        Self {
            duration: Duration::ZERO,
            offered: 0,
            send_failures: 0,
            answered: 0,
            in_flight: 0,
            broken: None,
            late: 0,
            kisses: Vec::new(),
            duplicates: 0,
            flaws: [0; Flaw::COUNT],
            unfinished_checksums: 0,
            round_trip: empty_histogram(),
            turnaround: empty_histogram(),
            send_delay: empty_histogram(),
        }
    }
}

/// Why an engine could not start or go on, in words for the user.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct EngineError(pub String);

/// A way to send requests and to receive replies.
pub trait Engine {
    /// Does one step. Calls `progress` before the first request, and then several times a second, and does as that wishes. An
    /// interface that goes away meanwhile ends the step with what was measured ([`Measured::broken`]).
    ///
    /// # Errors
    /// [`EngineError`]: nothing was measured that says anything.
    fn run(
        &mut self,
        plan: &Plan,
        progress: &mut dyn FnMut(Progress) -> Wish,
    ) -> Result<Measured, EngineError>;
}
