//! Packets that were sent and whose time of departure is not known yet.
//!
//! The one idea a newcomer lacks: the controller must hear of a departure before it hears of the answer. The kernel tells
//! in its own time: usually at once, later where the packet had to wait for its neighbour's address, perhaps never. So our
//! own reading of the clock, taken just before the packet was handed over, stands in for it as soon as something else came
//! to that socket, or a while has passed.

use crate::control::{Event, SendHandle, SendStamp};
use crate::sys::socket::{Departure, TalkSocket};
use crate::time::{Monotonic, NtpDuration, NtpTimestamp, Realtime, Timestamp};
use std::collections::VecDeque;

/// How long the kernel is waited for: as long as an answer is.
const PATIENCE: NtpDuration = NtpDuration::from_seconds(3);
/// How much later than our reading a departure may be to be believed.
const LATE_MAX_NANOSECONDS: i64 = 3_000_000_000;
/// How many packets may wait at one socket; beyond, the oldest is reported with our own reading.
const WAITING_MAX: usize = 64;

/// A packet under way.
#[derive(Debug)]
struct Sent {
    handle: SendHandle,
    written: NtpTimestamp,
    /// Our reading of the clock, just before.
    read: Timestamp<Realtime>,
    payload: Vec<u8>,
    deadline: Timestamp<Monotonic>,
}

impl Sent {
    fn event(self, departed: Timestamp<Realtime>) -> Event {
        let stamp = SendStamp { written: self.written, departed: departed.to_ntp() };
        Event::Sent { handle: self.handle, stamp }
    }
}

/// Those of one socket, or of those that share their place.
#[derive(Debug, Default)]
pub(super) struct Departures {
    waiting: VecDeque<Sent>,
}

impl Departures {
    /// A packet was handed to the kernel.
    pub(super) fn add(
        &mut self,
        handle: SendHandle,
        written: NtpTimestamp,
        read: Timestamp<Realtime>,
        payload: Vec<u8>,
        now: Timestamp<Monotonic>,
        events: &mut VecDeque<Event>,
    ) {
        if self.waiting.len() == WAITING_MAX
            && let Some(oldest) = self.waiting.pop_front()
        {
            let read = oldest.read;
            events.push_back(oldest.event(read));
        }
        self.waiting.push_back(Sent { handle, written, read, payload, deadline: now + PATIENCE });
    }

    /// Takes what the kernel has to tell.
    pub(super) fn collect(&mut self, socket: &TalkSocket, events: &mut VecDeque<Event>) {
        // The queue is bounded by the socket's receive buffer.
        while let Some(departure) = socket.departure() {
            self.take(&departure, events);
        }
    }

    fn take(&mut self, departure: &Departure, events: &mut VecDeque<Event>) {
        let Some(index) = self.waiting.iter().position(|sent| departure.is_of(&sent.payload)) else { return };
        let Some(sent) = self.waiting.remove(index) else { return };
        let late = departure.timestamp.nanoseconds_since(sent.read);
        let is_likely = (0..=LATE_MAX_NANOSECONDS).contains(&late);
        let departed = if is_likely { departure.timestamp } else { sent.read };
        events.push_back(sent.event(departed));
    }

    /// Reports all that still wait, with our own readings.
    pub(super) fn give_up(&mut self, events: &mut VecDeque<Event>) {
        events.extend(self.waiting.drain(..).map(|sent| {
            let read = sent.read;
            sent.event(read)
        }));
    }

    /// The same for those that have waited for long enough.
    pub(super) fn give_up_due(&mut self, now: Timestamp<Monotonic>, events: &mut VecDeque<Event>) {
        while self.waiting.front().is_some_and(|sent| sent.deadline <= now) {
            if let Some(sent) = self.waiting.pop_front() {
                let read = sent.read;
                events.push_back(sent.event(read));
            }
        }
    }

    /// When the first of them will have.
    pub(super) fn next(&self) -> Option<Timestamp<Monotonic>> {
        self.waiting.front().map(|sent| sent.deadline)
    }
}
