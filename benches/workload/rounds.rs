//! A worker's whole round over the rings of a fake kernel that costs nothing while it is measured.
//!
//! Owns: the port, its packets coming and going, and the bare reflector to compare with. Does not own: any measurement.

use super::{Loop, Subject, address, frame, prefixes, snapshot};
use std::sync::Arc;
use timeball::daemon::counters::{Path, WorkerCounters};
use timeball::daemon::exchange::{Answering, Exchange};
use timeball::datapath::af_xdp::{BATCH, Frame, Port, PortConfig, StampRequest, Wake};
use timeball::datapath::ring::testing::FakeKernel;
use timeball::datapath::steering::RxStamp;
use timeball::serve::access::{AccessList, Action};
use timeball::serve::clients::{ClientKeying, ClientStatistics, PrefixLengths};
use timeball::serve::limit::{Lottery, RateLimiter, RateParameters};
use timeball::serve::testing::client_request;
use timeball::serve::{Policy, Responder};
use timeball::snapshot::SnapshotCell;
use timeball::sys::{clock, memory};

/// A queue, whoever asks it, and who answers.
pub struct Rounds {
    kernel: FakeKernel,
    port: Port<FakeKernel>,
    exchange: Exchange,
    answering: Answering,
    in_hand: Vec<Frame>,
    of: Loop,
    request: Vec<u8>,
    number: u32,
}

impl Rounds {
    /// A batch of requests after the other from the loop's clients in turn.
    pub fn new(of: Loop) -> Self {
        let (port, kernel) = FakeKernel::port(&PortConfig::new(1, 0), 0).expect("a usual port");
        kernel.set_awake(true);
        let answering = Answering {
            responder: unrefusing_responder(of.clients as usize),
            snapshot: Arc::new(SnapshotCell::new(&snapshot())),
            counters: Arc::new(WorkerCounters::default()),
            port: 123,
        };
        Self {
            kernel,
            port,
            exchange: Exchange::default(),
            answering,
            in_hand: Vec::with_capacity(BATCH),
            of,
            request: client_request(4, &[]),
            number: 0,
        }
    }

    /// A full batch arrives, stamped as the XDP program does.
    pub fn deliver(&mut self) {
        let mut stamp = [0; RxStamp::LENGTH];
        stamp[..4].copy_from_slice(&RxStamp::MAGIC.to_ne_bytes());
        stamp[4] = 1;
        let now = clock::tai().map_or(0, |tai| tai.nanoseconds());
        stamp[8..16].copy_from_slice(&now.to_ne_bytes());
        for _ in 0..BATCH {
            let source = address(self.of.family, self.of.client(self.number));
            assert!(self.kernel.deliver(&stamp, &frame(source, &self.request)), "a lost frame");
            self.number = self.number.wrapping_add(1);
        }
    }

    /// What a worker does with it.
    pub fn round(&mut self) {
        if self.of.subject == Subject::Round {
            self.exchange.round(&mut self.port, &mut self.answering, None);
        } else {
            self.reflect();
        }
    }

    fn reflect(&mut self) {
        self.port.complete(|_, _| ());
        self.port.receive(&mut self.in_hand);
        for frame in self.in_hand.drain(..) {
            let bytes = self.port.packet_mut(&frame);
            let length = bytes.len();
            swap_ends(bytes);
            self.port.send(frame, length, StampRequest::None);
        }
        let _ = self.port.flush();
        let _ = self.port.refill();
    }

    /// The replies leave. How many of the batch there were.
    pub fn leave(&mut self) -> u32 {
        while self.kernel.wake_transmit().is_err() {}
        let before = self.answering.counters.path(Path::AfXdp);
        assert!(before.report().refusals.is_empty() && before.unstamped.get() == 0, "not the plain case");
        self.kernel.take_transmitted().len() as u32
    }
}

/// Everything on, but whoever asks too often is answered all the same: time here is the machine's, and clients are few.
/// The limiter remembers half as many clients again as there are.
fn unrefusing_responder(clients: usize) -> Responder {
    let lengths = PrefixLengths::default();
    let limiter =
        RateLimiter::new(RateParameters { leak: 1, clients: clients * 3 / 2, ..RateParameters::default() });
    // As the daemon does.
    memory::collapse(limiter.table());
    let policy = Policy {
        access: Arc::new(AccessList::new(Action::Allow, prefixes()).expect("rules that agree")),
        limiter: Some(Arc::new(limiter)),
        kiss_limiter: None,
        keying: ClientKeying::new(lengths, [1, 2, 3, 4]),
    };
    Responder::new(policy, Arc::new(ClientStatistics::new(1 << 16, lengths)), Lottery::new([1, 2]))
}

/// Sender and receiver change places, in all three headers; no sum changes.
fn swap_ends(bytes: &mut [u8]) {
    let (address, length) = if bytes[12] == 8 { (26, 4) } else { (22, 16) };
    let ends = address + 2 * length;
    for (at, length) in [(0, 6), (address, length), (ends, 2)] {
        let (first, second) = bytes[at..at + 2 * length].split_at_mut(length);
        first.swap_with_slice(second);
    }
}
