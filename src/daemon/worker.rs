//! A worker: one thread, one CPU, some AF_XDP queues, and one socket for every local address.
//!
//! Owns: waiting, fairness between queues and sockets, and what is done with both at the end. Does not own: which
//! queues and addresses there are; the control thread says so, by [`Command`] and through the socket group.
//!
//! The one idea a newcomer lacks: workers share nothing that one of them writes often. Each has its own counters,
//! client statistics, sockets and rings; only the rate limiter's table is everybody's, without locks.

mod messages;
mod queue;

pub use messages::{Command, Notice, Passed, ToControl, WorkerState};
pub use queue::Queue;

use super::counters::Path;
use super::exchange::{Answering, Exchange};
use super::report::WorkerReport;
use super::stamps::BatchClock;
use crate::control::InstanceId;
use crate::datapath::af_xdp::Link;
use crate::datapath::udp::{UdpCounts, UdpPort};
use crate::serve::{Arrival, Prepared, Refusal};
use crate::sys::clock;
use crate::sys::memory::prefetch;
use crate::sys::process::{self, PollEntry, Waker};
use crate::sys::scheduling;
use crate::sys::socket::{BATCH_MAX, Batch};
use crossbeam::channel::Receiver;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// Rounds on one queue before the others and the sockets have their turn.
const ROUNDS_PER_TURN: usize = 8;
/// How often a busy-polling worker looks at its sockets and its commands: every so many turns.
const BUSY_TURNS_PER_POLL: u32 = 64;
/// How a worker that sleeps shares its CPU, with the thread that receives for it above all. Its slice is so short that the
/// two alternate before a ring overflows: with the kernel's 3 ms, a receive ring of 1024 was full after one, and the other
/// 2 ms of an overload's packets were received to be dropped. Nice, since an answer is worth more than one more request
/// received. (One that spins must not have both: it would hardly let the other run.)
const NICE: i32 = -10;
const TIME_SLICE: Duration = Duration::from_micros(100);
/// How soon a worker looks again at packets that the kernel would not take.
const RETRY: Duration = Duration::from_millis(2);
/// How often a worker asks whether the interfaces of its queues are still there: nothing else tells.
const LINK_CHECK: Duration = Duration::from_secs(1);
/// How long all queues that are given up together may take to hand back their frames.
const DRAIN_TIME: Duration = Duration::from_millis(200);

/// A worker.
#[derive(Debug)]
pub struct Worker {
    index: usize,
    core: Option<usize>,
    /// Why its priority is not the configured one.
    priority_refused: Option<String>,
    answering: Answering,
    queues: Vec<Queue>,
    exchange: Exchange,
    /// One port for each instance, in the order of their numbers.
    sockets: Vec<UdpPort>,
    batch: Batch,
    /// For each datagram of the batch its reply, if it gets one.
    prepared: Vec<Option<Prepared>>,
    to_control: ToControl,
    next_link_check: Instant,
}

impl Worker {
    /// A worker with its sockets and no queue yet.
    #[must_use]
    pub fn new(
        index: usize,
        core: Option<usize>,
        answering: Answering,
        sockets: Vec<UdpPort>,
        to_control: ToControl,
    ) -> Self {
        Self {
            index,
            core,
            priority_refused: None,
            answering,
            queues: Vec::new(),
            exchange: Exchange::default(),
            sockets,
            batch: Batch::new(),
            prepared: Vec::with_capacity(BATCH_MAX),
            to_control,
            next_link_check: Instant::now() + LINK_CHECK,
        }
    }

    /// Takes the priority, or says why not and goes on without.
    fn set_priority(&mut self, priority: u8) {
        let Err(error) = scheduling::set_realtime_priority(priority) else { return };
        let reason = format!(
            "realtime-priority = {priority}: {error}; needs CAP_SYS_NICE, or a limit on real-time priorities \
             (LimitRTPRIO, RLIMIT_RTPRIO) of at least that"
        );
        // What one is refused all are: once is enough.
        if self.index == 0 {
            warn!(reason, "the workers run at ordinary priority");
        }
        self.priority_refused = Some(reason);
    }

    /// Serves until [`Command::Stop`]. Spins if `busy_poll`, else sleeps while there is nothing to do.
    pub fn run(
        mut self,
        commands: &Receiver<Command>,
        waker: &Waker,
        busy_poll: bool,
        realtime_priority: Option<u8>,
    ) {
        process::set_thread_name(&format!("worker-{}", self.index));
        if let Some(core) = self.core
            && !core_affinity::set_for_current(core_affinity::CoreId { id: core })
        {
            warn!(worker = self.index, core, "cannot be pinned to its CPU");
        }
        if !busy_poll && let Err(error) = scheduling::favour_thread(NICE, TIME_SLICE) {
            debug!(worker = self.index, %error, "scheduled like any other thread");
        }
        if let Some(priority) = realtime_priority {
            self.set_priority(priority);
        }
        let mut entries = Vec::new();
        let mut wait = None;
        loop {
            entries.clear();
            entries.push(PollEntry::readable(waker.as_fd().as_raw_fd()));
            self.add_poll_entries(&mut entries);
            if let Err(error) = process::poll(&mut entries, wait) {
                warn!(worker = self.index, %error, "poll failed");
                std::thread::sleep(RETRY);
            }
            if entries.first().is_some_and(PollEntry::is_ready) {
                waker.clear();
                self.apply_socket_changes();
                for command in commands.try_iter() {
                    if matches!(command, Command::Stop) {
                        self.drain();
                        return;
                    }
                    self.execute(command);
                }
                // What the entries stand for may have changed.
                wait = Some(Duration::ZERO);
                continue;
            }
            wait = self.serve(entries.get(1..).unwrap_or_default());
            if !self.queues.is_empty() {
                wait = wait.or(Some(LINK_CHECK));
            }
            if busy_poll && !self.queues.is_empty() {
                self.spin();
                wait = Some(Duration::ZERO);
            }
        }
    }

    /// What to poll for this worker: first its queues, then its sockets.
    pub fn add_poll_entries(&self, entries: &mut Vec<PollEntry>) {
        let queues = self.queues.iter().map(|queue| PollEntry::readable(queue.port.as_fd().as_raw_fd()));
        entries.extend(queues);
        entries.extend(self.sockets.iter().flat_map(UdpPort::poll_entries));
    }

    /// Serves what is ready, `entries` being those that [`Self::add_poll_entries`] added. Returns how long to wait
    /// before the next turn at most: not at all if more waits, `None` for as long as nothing comes.
    pub fn serve(&mut self, entries: &[PollEntry]) -> Option<Duration> {
        let (queues, sockets) = entries.split_at(self.queues.len().min(entries.len()));
        let mut wait = None;
        for (queue, entry) in self.queues.iter_mut().zip(queues) {
            if !entry.is_ready() && !queue.port.has_unsent() {
                continue;
            }
            let more = queue.serve(&mut self.exchange, &mut self.answering);
            if more {
                wait = Some(Duration::ZERO);
            } else if queue.port.has_unsent() && queue.link == Link::Up {
                wait = wait.or(Some(RETRY));
            }
        }
        let mut entries = sockets.iter();
        for instance in 0..self.sockets.len() {
            let count = self.sockets.get(instance).map_or(0, |port| port.poll_entries().count());
            for (index, entry) in entries.by_ref().take(count).enumerate() {
                if entry.is_ready() {
                    self.serve_socket(instance, index);
                }
            }
        }
        self.check_links();
        wait
    }

    /// An interface that went and came back at once looks the same to whoever lists interfaces, but its queues'
    /// sockets are bound to nothing: only asking them tells.
    fn check_links(&mut self) {
        let now = Instant::now();
        if now < self.next_link_check {
            return;
        }
        self.next_link_check = now + LINK_CHECK;
        for queue in self.queues.iter_mut().filter(|queue| !queue.gone_told) {
            queue.port.note_driving();
            queue.tell_of_spinning();
            let link = queue.port.link();
            queue.note_link(link);
            if link == Link::Gone {
                // A full channel: told at the next check.
                queue.gone_told = self
                    .to_control
                    .send(Notice::QueueGone { instance: queue.place.id, ifindex: queue.ifindex });
            }
        }
    }

    /// Looks at the queues without waiting for anybody to say that there is something.
    fn spin(&mut self) {
        for _ in 0..BUSY_TURNS_PER_POLL {
            let mut others_receive = false;
            for queue in &mut self.queues {
                let more = queue.turn(&mut self.exchange, &mut self.answering);
                others_receive |= !more && !queue.port.facts().drives_nic;
            }
            if others_receive {
                // It may be this CPU that they need for it.
                std::thread::yield_now();
            }
        }
    }

    /// One batch from one socket of one instance.
    fn serve_socket(&mut self, instance: usize, index: usize) {
        let Some(sockets) = self.sockets.get_mut(instance) else { return };
        let Some(destination) = sockets.local_address(index) else { return };
        if sockets.receive(index, &mut self.batch) == 0 {
            return;
        }
        let id = InstanceId(instance as u16);
        self.answering.responder.set_instance(id);
        let clock = BatchClock::read();
        let now = clock::monotonic();
        let snapshot = self.answering.snapshot.read();
        let counters = self.answering.counters.path(Path::Socket);
        for datagram in self.batch.datagrams() {
            self.answering.responder.prefetch(datagram.source().ip(), prefetch);
        }
        for datagram in self.batch.datagrams() {
            let source = datagram.source();
            let stamp = datagram.receive_timestamp().and_then(|stamp| clock.plausible(stamp));
            if stamp.is_none() {
                counters.unstamped.bump();
            }
            let arrival = Arrival {
                source: source.ip(),
                source_port: source.port(),
                receive_timestamp: stamp.unwrap_or(clock.realtime).to_ntp(),
                now,
            };
            let payload = datagram.payload();
            let outcome = self.answering.responder.respond(payload, &arrival, &snapshot);
            counters.count(&outcome);
            if outcome == Err(Refusal::Mode) {
                // Full: control is behind, and a packet nobody asked for is what can best be lost.
                let passed = Passed::new(id, destination, datagram, &clock);
                self.to_control.send(Notice::Packet(passed));
            }
            self.prepared.push(outcome.ok());
        }
        let transmit_timestamp = clock::realtime().to_ntp();
        for (datagram, prepared) in self.batch.datagrams().zip(self.prepared.drain(..)) {
            if let Some(prepared) = prepared {
                let sealed =
                    prepared.seal(transmit_timestamp, datagram.payload(), self.answering.responder.keys());
                counters.served(&prepared, sealed);
                datagram.reply(prepared.length());
            }
        }
        let before = sockets.counts();
        sockets.send(index, &mut self.batch);
        let after = sockets.counts();
        counters.unsent.add(after.unsent() - before.unsent());
    }

    /// Takes over the sockets that the group has opened or closed.
    pub fn apply_socket_changes(&mut self) {
        for port in &mut self.sockets {
            port.apply_changes();
        }
    }

    /// Does what the control thread asks; [`Command::Stop`] is the caller's.
    pub fn execute(&mut self, command: Command) {
        match command {
            Command::AddQueue(queue) => self.queues.push(*queue),
            Command::RemoveQueues { instance, ifindex } => {
                let is_its = |queue: &Queue| queue.ifindex == ifindex && queue.place.id == instance;
                let (gone, kept) = std::mem::take(&mut self.queues).into_iter().partition(is_its);
                self.queues = kept;
                let gone: Vec<Queue> = gone;
                let deadline = Instant::now() + DRAIN_TIME;
                for mut queue in gone {
                    queue.drain(&mut self.exchange, &mut self.answering, deadline);
                }
            }
            Command::SetKeys(keys) => self.answering.responder.set_keys(keys),
            Command::Report(to) => {
                // Nobody waits any more: then nobody wants it.
                let _ = to.try_send(self.report());
            }
            Command::Stop => {}
        }
    }

    /// Answers what has arrived and gives every frame back.
    pub fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN_TIME;
        for queue in &mut self.queues {
            queue.drain(&mut self.exchange, &mut self.answering, deadline);
        }
        self.queues.clear();
        for instance in 0..self.sockets.len() {
            let count = self.sockets.get(instance).map_or(0, |port| port.poll_entries().count());
            for index in 0..count {
                self.serve_socket(instance, index);
            }
        }
    }

    /// How things are.
    #[must_use]
    pub fn report(&self) -> WorkerState {
        let counters = &self.answering.counters;
        let mut udp = UdpCounts::default();
        self.sockets.iter().for_each(|port| udp.add(&port.counts()));
        let dropped = self.sockets.iter().map(UdpPort::dropped_by_kernel).sum();
        // Of the thread that serves, which is this one, as it is now: others may have changed it.
        let scheduling = scheduling::of_this_thread().ok();
        let time_slice = scheduling.and_then(|scheduling| scheduling.time_slice);
        let socket_counters = [
            ("received", udp.received),
            ("sent", udp.sent),
            ("truncated", udp.truncated),
            ("receive_errors", udp.receive_errors),
            ("kernel_dropped", dropped),
            ("send_would_block", udp.send_would_block),
            ("send_unreachable", udp.send_unreachable),
            ("send_not_permitted", udp.send_not_permitted),
            ("send_other_errors", udp.send_other_errors),
        ];
        WorkerState {
            worker: WorkerReport {
                worker: self.index,
                core: self.core,
                policy: scheduling.map(|scheduling| scheduling.policy.to_owned()),
                realtime_priority: scheduling.and_then(|scheduling| scheduling.realtime_priority),
                nice: scheduling.and_then(|scheduling| scheduling.nice),
                time_slice_nanoseconds: time_slice.and_then(|slice| u64::try_from(slice.as_nanos()).ok()),
                priority_refused: self.priority_refused.clone(),
                af_xdp: counters.path(Path::AfXdp).report(),
                socket: counters.path(Path::Socket).report(),
                socket_counters: socket_counters.map(|(name, count)| (name.to_owned(), count)).into(),
            },
            queues: self.queues.iter().map(|queue| queue.report(self.index)).collect(),
        }
    }
}
