//! One round of an AF_XDP queue: take a batch of requests, answer each where it lies, send them off together.
//!
//! Owns: the order of things within a round, and where the clock is read. Does not own: waiting, and the decision
//! which queue is next; that is the worker's.
//!
//! The one idea a newcomer lacks: the clock is read once, after every reply of the batch is otherwise complete.
//! What is left to do per reply then is eight octets and a checksum patch, so the transmit timestamps are as near
//! to the departure as software can put them.

use super::counters::{Path, PathCounters, WorkerCounters};
use super::report::TransmitErrorReport;
use super::stamps::BatchClock;
use crate::datapath::af_xdp::{BATCH, Frame, Link, Port, StampRequest, TransmitStamp, Wake};
use crate::datapath::steering::RxStamp;
use crate::serve::{PreparedFrame, RequestFrame, Responder};
use crate::snapshot::SnapshotCell;
use crate::sys::clock;
use crate::sys::memory::prefetch;
use crate::time::{Realtime, Timestamp};
use std::sync::Arc;

/// What a worker answers with.
#[derive(Debug)]
pub struct Answering {
    /// Judges and answers.
    pub responder: Responder,
    /// What to say of the clock.
    pub snapshot: Arc<SnapshotCell>,
    /// Where it is counted.
    pub counters: Arc<WorkerCounters>,
    /// UDP port of the requests.
    pub port: u16,
}

/// The buffers of a round, allocated once per worker.
#[derive(Debug)]
pub struct Exchange {
    frames: Vec<Frame>,
    requests: Vec<(Frame, RequestFrame)>,
    prepared: Vec<(Frame, PreparedFrame)>,
}

/// What a round came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Round {
    /// Packets taken from the ring, at most [`BATCH`].
    pub received: usize,
    /// What the wake-ups showed of the interface.
    pub link: Link,
}

impl Default for Exchange {
    fn default() -> Self {
        Self {
            frames: Vec::with_capacity(BATCH),
            requests: Vec::with_capacity(BATCH),
            prepared: Vec::with_capacity(BATCH),
        }
    }
}

impl Exchange {
    /// Answers what is in the receive ring, at most one batch, and gives the kernel its frames back.
    pub fn round<K: Wake>(
        &mut self,
        port: &mut Port<K>,
        answering: &mut Answering,
        transmit_errors: Option<&mut TransmitErrors>,
    ) -> Round {
        let mut transmit_errors = transmit_errors;
        let mut clock = None;
        port.complete(|frame, stamp| {
            if let Some(errors) = transmit_errors.as_deref_mut() {
                errors.departed(frame.index(), stamp, *clock.get_or_insert_with(BatchClock::read));
            }
        });
        let received = port.receive(&mut self.frames);
        if received > 0 {
            self.read(port, answering);
            self.prepare(port, answering);
            self.send(port, answering, transmit_errors);
        }
        let sent = port.flush();
        let filled = port.refill();
        Round { received, link: if sent == Link::Up { filled } else { sent } }
    }

    /// Reads all frames before any is answered, see [`Responder::read_frame`]; recycles those that ask nothing.
    fn read<K: Wake>(&mut self, port: &mut Port<K>, answering: &Answering) {
        for frame in self.frames.drain(..) {
            match answering.responder.read_frame(port.packet(&frame), answering.port, prefetch) {
                Ok(request) => self.requests.push((frame, request)),
                Err(refusal) => {
                    answering.counters.path(Path::AfXdp).count(&Err(refusal));
                    port.recycle(frame);
                }
            }
        }
    }

    /// Replies to all, but for their transmit timestamps; recycles what gets none.
    fn prepare<K: Wake>(&mut self, port: &mut Port<K>, answering: &mut Answering) {
        let clock = BatchClock::read();
        let now = clock::monotonic();
        let snapshot = answering.snapshot.read();
        let counters = answering.counters.path(Path::AfXdp);
        for (frame, request) in self.requests.drain(..) {
            let arrival = arrival(port, &frame, &clock, counters).to_ntp();
            let packet = port.packet_mut(&frame);
            match answering.responder.respond_to_request(&request, packet, arrival, now, &snapshot) {
                Ok(reply) => {
                    counters.count(&Ok(*reply.prepared()));
                    self.prepared.push((frame, reply));
                }
                Err(refusal) => {
                    counters.count(&Err(refusal));
                    port.recycle(frame);
                }
            }
        }
    }

    /// Reads the clock, seals every reply and puts it into the transmit ring.
    fn send<K: Wake>(
        &mut self,
        port: &mut Port<K>,
        answering: &Answering,
        mut transmit_errors: Option<&mut TransmitErrors>,
    ) {
        let (counters, keys) = (answering.counters.path(Path::AfXdp), answering.responder.keys());
        let stamp = if transmit_errors.is_some() { StampRequest::Transmit } else { StampRequest::None };
        let transmit_time = clock::realtime();
        let transmit_timestamp = transmit_time.to_ntp();
        for (frame, reply) in self.prepared.drain(..) {
            let sealed = reply.seal(transmit_timestamp, port.packet_mut(&frame), keys);
            counters.served(reply.prepared(), sealed);
            if let Some(errors) = transmit_errors.as_deref_mut() {
                errors.leaves(frame.number().index(), transmit_time);
            }
            if !port.send(frame, reply.length(), stamp) {
                counters.unsent.bump();
            }
        }
    }
}

/// When the frame's request arrived: by the XDP program's stamp if it can be true, else now.
fn arrival<K: Wake>(
    port: &Port<K>,
    frame: &Frame,
    clock: &BatchClock,
    counters: &PathCounters,
) -> Timestamp<Realtime> {
    port.metadata(frame)
        .and_then(|bytes| RxStamp::read(bytes))
        .and_then(|stamp| stamp.tai_nanoseconds())
        .and_then(|nanoseconds| clock.arrival(Timestamp::from_nanoseconds(i64::try_from(nanoseconds).ok()?)))
        .unwrap_or_else(|| {
            counters.unstamped.bump();
            clock.realtime
        })
}

/// How late replies leave: the departure by the completion's stamp minus the transmit timestamp in the reply.
///
/// In copy mode on a real NIC the departure is an upper bound (the kernel stamps when it cleans up); in zero-copy
/// mode it is on the NIC's clock, which cannot be compared yet and is not counted.
#[derive(Debug)]
pub struct TransmitErrors {
    /// The transmit timestamp of the reply that each frame carries.
    transmit_times: Vec<Timestamp<Realtime>>,
    samples: u64,
    sum_nanoseconds: i128,
    max_nanoseconds: i64,
}

impl TransmitErrors {
    /// For a port of so many frames.
    #[must_use]
    pub fn new(frames: usize) -> Self {
        let transmit_times = vec![Timestamp::ZERO; frames];
        Self { transmit_times, samples: 0, sum_nanoseconds: 0, max_nanoseconds: i64::MIN }
    }

    fn leaves(&mut self, frame: usize, transmit_time: Timestamp<Realtime>) {
        if let Some(slot) = self.transmit_times.get_mut(frame) {
            *slot = transmit_time;
        }
    }

    fn departed(&mut self, frame: usize, stamp: Option<TransmitStamp>, clock: BatchClock) {
        let (Some(TransmitStamp::Tai(tai)), Some(&transmit_time)) = (stamp, self.transmit_times.get(frame))
        else {
            return;
        };
        let Some(departure) = clock.arrival(tai) else { return };
        let error = departure.nanoseconds_since(transmit_time);
        self.samples += 1;
        self.sum_nanoseconds += i128::from(error);
        self.max_nanoseconds = self.max_nanoseconds.max(error);
    }

    /// What was seen so far, if anything.
    #[must_use]
    pub fn report(&self) -> Option<TransmitErrorReport> {
        let mean = self.sum_nanoseconds.checked_div(i128::from(self.samples))?;
        Some(TransmitErrorReport {
            samples: self.samples,
            mean_nanoseconds: mean as i64,
            max_nanoseconds: self.max_nanoseconds,
        })
    }
}
