//! Fuzzed frames and hostile ring descriptors through a worker's whole round: ring, frame, request, reply, ring.
//!
//! Owns: the drive and the books. The frames are made in `generate`, and judged by `reader`, which shares no line with
//! the server's own parser. `TIMEBALL_HARNESS_FRAMES` sets how many frames (a million; 10 million is the named run,
//! `scripts/fuzz harness`), `TIMEBALL_HARNESS_SEED` what they are.
//!
//! The one idea a newcomer lacks: replies leave in the order of their requests, so each must be the answer to a later
//! request than the one before it, and every request that is passed over on the way must be one that may go unanswered.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test may")]

mod generate;
mod mac;
#[path = "../common/random.rs"]
mod random;
mod reader;
mod replies;

use random::Random;
use replies::{Expected, Replies};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use timeball::daemon::counters::{Path, WorkerCounters};
use timeball::daemon::exchange::{Answering, Exchange, TransmitErrors};
use timeball::datapath::af_xdp::{BATCH, Port, PortConfig, RingSizes};
use timeball::datapath::ring::testing::FakeKernel;
use timeball::datapath::ring::{Descriptor, FrameAddress};
use timeball::datapath::steering::RxStamp;
use timeball::serve::testing::Setup;
use timeball::snapshot::{SnapshotCell, SystemSnapshot};
use timeball::sys::clock;
use timeball::time::{Log2Seconds, NtpDuration, NtpTimestamp, Ppm};
use timeball::wire::{Leap, ReferenceId};

const FRAMES_DEFAULT: u64 = 1_000_000;
const SEED_DEFAULT: u64 = 0x7469_6d65_6261_6c6c;
/// No request fits into so few octets: what lies there from earlier packets does not matter.
const TOO_SHORT: usize = 41;
const CONTINUES: u32 = libc::XDP_PKT_CONTD;
const NTP_TO_UNIX_SECONDS: u64 = 2_208_988_800;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// A point in time of the Unix era as the wire has it.
fn wire_time(nanoseconds: u64) -> u64 {
    let (seconds, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    ((seconds + NTP_TO_UNIX_SECONDS) << 32) + (rest << 32) / 1_000_000_000
}

fn unix_nanoseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// The clock's states that replies must tell.
fn snapshots() -> [SystemSnapshot; 3] {
    let synchronised = SystemSnapshot {
        leap: Leap::Insert,
        stratum: 2,
        reference_id: ReferenceId([10, 99, 0, 7]),
        reference_instance: None,
        reference_id_elsewhere: ReferenceId::NOBODY,
        precision: Log2Seconds(-23),
        root_delay: NtpDuration::from_nanoseconds(3_000_000),
        root_dispersion: NtpDuration::from_nanoseconds(1_000_000),
        dispersion_rate: Ppm::FREQUENCY_TOLERANCE,
        reference_timestamp: NtpTimestamp::from_bits(wire_time(unix_nanoseconds() - 100_000_000_000)),
    };
    let primary =
        SystemSnapshot { leap: Leap::None, stratum: 1, reference_id: ReferenceId(*b"GPS\0"), ..synchronised };
    [synchronised, primary, SystemSnapshot::unsynchronised(Log2Seconds(-20))]
}

/// What the port must have counted, and nothing else.
#[derive(Default, PartialEq, Eq, Debug)]
struct Books {
    packets: u64,
    fragments: u64,
    invalid: u64,
    foreign: u64,
}

struct Harness {
    random: Random,
    port: Port<FakeKernel>,
    kernel: FakeKernel,
    umem_bytes: u64,
    frame_bytes: u32,
    books: Books,
    replies: Replies,
    /// CLOCK_TAI minus UTC, whole seconds in nanoseconds.
    tai_ahead: i64,
}

impl Harness {
    fn new(seed: u64, replies: Replies) -> Self {
        let rings = RingSizes { fill: 128, receive: 128, transmit: 128, completion: 128 };
        let config = PortConfig { frames: 512, rings, ..PortConfig::new(1, 0) };
        // The indices wrap early in the run.
        let (port, kernel) = FakeKernel::port(&config, u32::MAX - 5000).unwrap();
        let tai = clock::tai().map_or(0, |tai| tai.nanoseconds() - unix_nanoseconds() as i64);
        Self {
            random: Random::new(seed),
            port,
            kernel,
            umem_bytes: config.umem_bytes() as u64,
            frame_bytes: config.frame_bytes,
            books: Books::default(),
            replies,
            tai_ahead: (tai + 500_000_000).div_euclid(1_000_000_000) * 1_000_000_000,
        }
    }

    /// A frame arrives, with a true stamp, a wild one or none.
    fn deliver(&mut self, number: u64, now: u64) {
        let request = self.replies.next_request();
        generate::frame(&mut self.random, number, &mut request.frame);
        let mut stamp = [0; RxStamp::LENGTH];
        let mut metadata = &stamp[..0];
        request.arrived = None;
        match self.random.below(8) {
            0 => {}
            1 => {
                self.random.fill(&mut stamp);
                if self.random.one_in(2) {
                    stamp[..4].copy_from_slice(&RxStamp::MAGIC.to_ne_bytes());
                }
                metadata = &stamp;
            }
            _ => {
                let arrived = now - self.random.next() % 100_000_000;
                stamp[..4].copy_from_slice(&RxStamp::MAGIC.to_ne_bytes());
                stamp[4] = 1;
                let tai = arrived.wrapping_add_signed(self.tai_ahead);
                stamp[8..16].copy_from_slice(&tai.to_ne_bytes());
                request.arrived = Some(wire_time(arrived));
                metadata = &stamp;
            }
        }
        assert!(self.kernel.deliver(metadata, &request.frame), "the kernel had no frame");
        self.replies.expect_one();
        self.books.packets += 1;
    }

    fn post(&mut self, address: u64, length: u32, options: u32) {
        let descriptor = Descriptor { address: FrameAddress(address), length, options };
        assert!(self.kernel.deliver_descriptor(descriptor), "the receive ring is full");
    }

    /// An address that lies in no frame.
    fn nowhere(&mut self) -> u64 {
        let address = self.umem_bytes.saturating_add(self.random.next() >> self.random.below(60));
        if self.random.one_in(4) { u64::MAX - self.random.next() % 4096 } else { address }
    }

    /// A packet too short to be a request, anywhere in a frame.
    fn post_short(&mut self, options: u32) -> u64 {
        let address = self.kernel.take_fill().unwrap().0;
        let offset = self.random.below(self.frame_bytes as usize);
        let room = (self.frame_bytes as usize - offset).min(TOO_SHORT);
        let length = self.random.below(room + 1) as u32;
        self.post(address + offset as u64, length, options);
        address + offset as u64
    }

    /// What only a broken kernel would post. How many receive descriptors it were.
    fn deliver_hostile(&mut self) -> usize {
        match self.random.below(6) {
            0 => {
                let (address, length, options) =
                    (self.nowhere(), self.random.next() as u32, self.random.next() as u32 & !CONTINUES);
                self.post(address, length, options);
                self.books.foreign += 1;
                1
            }
            1 => {
                let offset = self.random.below(self.frame_bytes as usize) as u32;
                let excess = (self.random.next() as u32 >> self.random.below(32)).max(1);
                let length = (self.frame_bytes - offset).saturating_add(excess);
                let address = self.kernel.take_fill().unwrap().0;
                self.post(address + u64::from(offset), length, 0);
                self.books.invalid += 1;
                1
            }
            2 => {
                let options = self.random.next() as u32 & !CONTINUES;
                self.post_short(options);
                self.books.packets += 1;
                1
            }
            3 => {
                // The same frame twice.
                let address = self.post_short(0);
                self.post(address, 20, 0);
                self.books.packets += 1;
                self.books.foreign += 1;
                2
            }
            4 => {
                let pieces = 1 + self.random.below(3);
                for _ in 0..pieces {
                    self.post_short(CONTINUES);
                }
                self.post_short(0);
                self.books.fragments += pieces as u64 + 1;
                pieces + 1
            }
            _ => {
                let nowhere = self.nowhere();
                assert!(self.kernel.complete_address(FrameAddress(nowhere)));
                // A frame that is to be received into, not transmitted.
                let address = self.post_short(0);
                assert!(self.kernel.complete_address(FrameAddress(address)));
                self.books.packets += 1;
                self.books.foreign += 2;
                1
            }
        }
    }

    fn assert_conserved(&self, round: u64) {
        let balance = self.port.conservation();
        assert!(balance.is_balanced() && balance.in_hand == 0, "round {round}: {balance:?}");
        if round.is_multiple_of(16) {
            assert_eq!(balance, self.port.audit(), "round {round}");
        }
    }
}

/// Sends `frames` frames to a responder and checks every reply.
fn run(name: &str, setup: Setup, expected: Expected, frames: u64) {
    let seed = from_environment("TIMEBALL_HARNESS_SEED", SEED_DEFAULT);
    println!("{name}: TIMEBALL_HARNESS_SEED={seed} TIMEBALL_HARNESS_FRAMES={frames}");
    let started = Instant::now();
    let snapshots = snapshots();
    let mut harness = Harness::new(seed, Replies::new(expected));
    let cell = Arc::new(SnapshotCell::new(&snapshots[0]));
    let counters = Arc::new(WorkerCounters::default());
    let mut answering = Answering {
        responder: setup.responder(),
        snapshot: Arc::clone(&cell),
        counters: Arc::clone(&counters),
        port: 123,
    };
    let mut exchange = Exchange::default();
    let mut errors = TransmitErrors::new(512);
    let (mut sent, mut round) = (0, 0);
    while sent < frames {
        let now = unix_nanoseconds();
        let snapshot = &snapshots[harness.random.below(64) / 31];
        cell.publish(snapshot);
        let mut descriptors = 0;
        let batch = 1 + harness.random.below(BATCH - 4);
        while descriptors < batch && sent < frames {
            if harness.random.one_in(48) {
                descriptors += harness.deliver_hostile();
            } else {
                harness.deliver(sent, now);
                descriptors += 1;
                sent += 1;
            }
        }
        assert!(descriptors <= BATCH, "{descriptors}");
        let holding = harness.random.one_in(64);
        let down = harness.random.one_in(64);
        harness.kernel.set_holding(holding);
        harness.kernel.set_failure(down.then_some(libc::ENETDOWN));
        let measured = harness.random.one_in(4).then_some(&mut errors);
        let _ = exchange.round(&mut harness.port, &mut answering, measured);
        harness.assert_conserved(round);
        if down {
            // What waits in the ring leaves when the link is back, in its order.
            harness.kernel.set_failure(None);
            let _ = harness.port.flush();
        }
        harness.kernel.set_holding(false);
        for reply in harness.kernel.take_transmitted() {
            harness.replies.check(&reply, snapshot, now);
        }
        harness.replies.end_round();
        round += 1;
    }
    // The last completions, and every frame is back.
    for _ in 0..2 {
        let _ = exchange.round(&mut harness.port, &mut answering, None);
    }
    let balance = harness.port.audit();
    assert_eq!((balance.transmit, balance.in_hand, balance.free + balance.fill), (0, 0, 512), "{balance:?}");
    assert_eq!(harness.kernel.invalid(), 0, "transmit descriptors that the kernel dropped");
    let port = *harness.port.counters();
    let counted = Books {
        packets: port.rx_packets,
        fragments: port.rx_fragments,
        invalid: port.rx_invalid,
        foreign: port.foreign,
    };
    assert_eq!(counted, harness.books);
    let report = counters.path(Path::AfXdp).report();
    let tally = &harness.replies.tally;
    assert_eq!((port.tx_full, port.tx_invalid, report.unsent), (0, 0, 0));
    assert_eq!((report.replies, report.kisses.values().sum::<u64>()), (tally.times, tally.kisses));
    assert_eq!((report.signed_replies, report.crypto_naks), (tally.signed, tally.crypto_naks));
    assert_eq!(report.replies + report.refused(), port.rx_packets);
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{name}: {frames} frames in {seconds:.1} s: {tally:?}, {:?}, refusals {:?}",
        harness.books, report.refusals
    );
    // A harness that hardly ever gets an answer would prove little.
    assert!(tally.certain > frames / 10 && tally.times >= tally.certain, "{tally:?}");
    assert!(tally.stamped > frames / 16, "{tally:?}");
    assert!(tally.crypto_naks > frames / 100, "{tally:?}");
    assert!(tally.signed > frames / 100 || expected == Expected::Everything, "{tally:?}");
}

fn frames() -> u64 {
    from_environment("TIMEBALL_HARNESS_FRAMES", FRAMES_DEFAULT)
}

#[test]
fn every_frame_comes_back_and_every_answer_is_right_without_limits() {
    run("default", Setup::default(), Expected::Everything, frames() / 2);
}

#[test]
fn every_frame_comes_back_and_every_answer_is_right_with_access_list_limiter_and_kisses() {
    run("strict", Setup::strict(), Expected::Strict, frames() / 2);
}
