use super::*;

const START: Timestamp<Monotonic> = Timestamp::from_nanoseconds(5_000_000_000);
const SYSTEM: Log2Seconds = Log2Seconds(6);

fn seconds(seconds: i64) -> NtpDuration {
    NtpDuration::from_seconds(seconds)
}

struct Bench {
    process: PollProcess,
    chance: Chance,
    now: Timestamp<Monotonic>,
}

impl Bench {
    fn new(options: PollOptions) -> Self {
        Self { process: PollProcess::new(options, START), chance: Chance::new([3; 32]), now: START }
    }

    /// Lets the next poll come; gives how long that took, and what the filter gets.
    fn poll_with(&mut self, system: Log2Seconds, fitness: Fitness) -> (f64, FilterInput) {
        let waited = (self.process.next() - self.now).seconds();
        self.now = self.process.next();
        (waited, self.process.on_poll(self.now, system, fitness, &mut self.chance))
    }

    fn poll(&mut self) -> f64 {
        self.poll_with(SYSTEM, Fitness::Fit).0
    }

    fn answer(&mut self) {
        self.answer_with(self.process.interval());
    }

    fn answer_with(&mut self, poll: Log2Seconds) {
        self.process.on_valid(self.now, poll, SYSTEM, &mut self.chance);
    }

    fn rate(&mut self, poll: i8) {
        self.process.on_rate(self.now, Log2Seconds(poll), &mut self.chance);
    }
}

fn options(poll_min: i8, poll_max: i8) -> PollOptions {
    PollOptions { poll_min: Log2Seconds(poll_min), poll_max: Log2Seconds(poll_max), ..PollOptions::default() }
}

/// RFC 5905 sections 9.2 and 13: shifted left at each poll, bit 0 set by a valid packet, reachable while not zero.
/// Checklist 38.
#[test]
fn the_reach_register_remembers_eight_polls() {
    let mut bench = Bench::new(options(6, 10));
    for (answered, bits) in [(true, 0b1), (false, 0b10), (true, 0b101), (true, 0b1011)] {
        bench.poll();
        if answered {
            bench.answer();
        }
        assert_eq!(bench.process.reach().bits(), bits);
        assert!(bench.process.reach().is_reachable());
    }
    for missed in 1..=8 {
        bench.poll();
        assert_eq!(bench.process.reach().is_reachable(), missed < 8, "{missed} polls in vain");
    }
}

/// RFC 5905 section 10: three poll intervals without a valid packet give the filter a dummy sample. Checklist 39.
#[test]
fn three_polls_in_vain_give_the_filter_a_dummy() {
    let mut bench = Bench::new(options(6, 10));
    bench.poll();
    bench.answer();
    let inputs: Vec<_> = (0..5).map(|_| bench.poll_with(SYSTEM, Fitness::Fit).1).collect();
    use FilterInput::{Dummy, Nothing};
    // The first of these polls ends the interval that was answered; three more pass in vain.
    assert_eq!(inputs, [Nothing, Nothing, Nothing, Dummy, Dummy]);
}

/// RFC 5905 section 13.2: iburst is eight packets two seconds apart, when the source is unreachable at the start,
/// and again when it was lost. Checklist 40.
#[test]
fn iburst_sends_eight_packets_two_seconds_apart_to_an_unreachable_source() {
    let mut bench = Bench::new(PollOptions { iburst: Burst::On, ..options(6, 10) });
    let waits: Vec<f64> = (0..8).map(|_| bench.poll()).collect();
    assert_eq!(waits, [0.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]);
    bench.answer();
    assert!(bench.poll() >= 64.0);
    bench.answer();
    let vain: Vec<f64> = (0..8).map(|_| bench.poll()).collect();
    assert!(vain.iter().all(|&wait| wait >= 64.0), "reachable for eight polls: {vain:?}");
    let again: Vec<f64> = (0..8).map(|_| bench.poll()).collect();
    assert_eq!(again[..7], [2.0; 7], "the eighth poll in vain found it unreachable");
    assert!(again[7] >= 64.0 && bench.poll() >= 64.0);
}

/// RFC 5905 section 13.2: burst is eight packets at each poll, when reachable and fit. Checklist 40.
#[test]
fn burst_sends_eight_packets_to_a_reachable_and_fit_source_only() {
    let mut bench = Bench::new(PollOptions { burst: Burst::On, ..options(6, 10) });
    bench.poll();
    assert!(!bench.process.is_in_burst(), "unreachable");
    bench.answer();
    assert!(bench.poll_with(SYSTEM, Fitness::Unfit).0 >= 64.0);
    assert!(!bench.process.is_in_burst(), "unfit");
    bench.answer();
    assert!(bench.poll() >= 64.0);
    let waits: Vec<f64> = (0..7).map(|_| bench.poll()).collect();
    assert_eq!(waits, [2.0; 7]);
    assert!(bench.poll() >= 64.0);
}

/// RFC 5905 section 13.2: the lesser of hpoll and ppoll, not below MINPOLL nor above MAXPOLL. Checklist 41.
#[test]
fn the_interval_is_the_lesser_of_both_sides_within_the_bounds() {
    let table =
        [(6, 10, 8, 9, 8), (6, 10, 8, 7, 7), (6, 10, 4, 17, 6), (6, 10, 17, 17, 10), (4, 5, 4, -6, 4)];
    for (poll_min, poll_max, system, peer, expected) in table {
        let mut bench = Bench::new(options(poll_min, poll_max));
        bench.poll();
        bench.answer_with(Log2Seconds(peer));
        bench.poll_with(Log2Seconds(system), Fitness::Fit);
        assert_eq!(bench.process.interval(), Log2Seconds(expected), "system {system}, peer {peer}");
    }
    let wild = PollOptions { poll_min: Log2Seconds(-8), poll_max: Log2Seconds(99), ..options(0, 0) };
    let clamped = wild.clamped();
    assert_eq!((clamped.poll_min, clamped.poll_max), (POLL_MIN_LEAST, POLL_MAX_MOST));
    assert_eq!(options(9, 3).clamped().poll_max, Log2Seconds(9));
}

/// RFC 5905 section 13.2: a peer's shorter wish takes effect at once (A.5.7.2: a longer interval can be preempted
/// by a shorter one).
#[test]
fn a_shorter_wish_of_the_peer_preempts_the_interval() {
    let mut bench = Bench::new(options(4, 10));
    bench.poll();
    bench.answer_with(Log2Seconds(10));
    bench.poll_with(Log2Seconds(10), Fitness::Fit);
    assert!((bench.process.next() - bench.now).seconds() >= 1024.0);
    bench.answer_with(Log2Seconds(5));
    assert!((bench.process.next() - bench.now).seconds() < 34.0);
}

/// A server echoes what the request says (RFC 5905 figure 31): that must not hold the interval down.
#[test]
fn an_echo_does_not_hold_the_interval_down() {
    let mut bench = Bench::new(options(4, 10));
    for system in [4, 5, 6, 7, 7] {
        bench.poll_with(Log2Seconds(system), Fitness::Fit);
        let request = bench.process.host_interval();
        bench.answer_with(request);
    }
    assert_eq!(bench.process.interval(), Log2Seconds(7));
}

/// RFC 5905 section 13.2: after UNREACH polls in vain hpoll grows by one each poll up to MAXPOLL; the first reply
/// brings it back to the system's time constant. Checklist 42.
#[test]
fn an_unreachable_source_is_polled_less_and_less_often() {
    let mut bench = Bench::new(options(6, 9));
    bench.poll();
    bench.answer_with(SYSTEM);
    (0..7).for_each(|_| _ = bench.poll());
    for poll in 0..UNREACH {
        bench.poll();
        assert_eq!(bench.process.interval(), SYSTEM, "poll {poll} in vain");
    }
    let intervals: Vec<i8> = (0..5)
        .map(|_| {
            bench.poll();
            bench.process.interval().0
        })
        .collect();
    assert_eq!(intervals, [7, 8, 9, 9, 9]);
    bench.answer();
    assert_eq!(bench.process.interval(), SYSTEM);
    assert!((bench.process.next() - bench.now).seconds() < 67.0, "at once, not after the long interval");
}

/// RFC 5905 A.5.7.2, comment: the interval is randomised by a small factor. Checklist 43.
#[test]
fn intervals_are_lengthened_at_random_by_less_than_a_thirtysecond() {
    let mut bench = Bench::new(options(6, 10));
    bench.poll();
    let waits: Vec<f64> = (0..20).map(|_| bench.poll()).collect();
    assert!(waits.iter().all(|wait| (64.0..66.0).contains(wait)), "{waits:?}");
    assert!(waits.windows(2).all(|pair| pair[0] != pair[1]), "{waits:?}");
}

/// RFC 5905 section 7.4b: RATE lengthens the interval at once, and again at each. RFC 8633 section 5.4: bounded.
/// Checklist 32.
#[test]
fn rate_slows_down_at_once_and_again_within_bounds() {
    let mut bench = Bench::new(options(4, 6));
    bench.poll();
    bench.answer();
    let mut intervals = Vec::new();
    for _ in 0..12 {
        bench.poll_with(Log2Seconds(4), Fitness::Fit);
        bench.rate(4);
        intervals.push(bench.process.interval().0);
        let wait = (bench.process.next() - bench.now).seconds();
        assert!(wait >= 2_f64.powi(i32::from(bench.process.interval().0)), "{wait} s");
        bench.answer_with(Log2Seconds(4));
    }
    assert_eq!(intervals, [5, 6, 7, 8, 9, 10, 11, 12, 13, 13, 13, 13]);
}

/// RFC 8633 section 5.4: the poll field of a RATE packet is not accepted blindly. Checklist 36.
#[test]
fn a_rate_packet_cannot_silence_us() {
    for (wished, expected) in [(17, 13), (127, 13), (9, 9), (-128, 5)] {
        let mut bench = Bench::new(options(4, 10));
        bench.poll();
        bench.rate(wished);
        assert_eq!(bench.process.interval(), Log2Seconds(expected), "wished {wished}");
    }
    let mut longest = Bench::new(options(17, 17));
    longest.poll();
    longest.rate(17);
    assert_eq!(longest.process.interval(), Log2Seconds(17));
}

#[test]
fn rate_ends_bursts_for_good() {
    let both = PollOptions { iburst: Burst::On, burst: Burst::On, ..options(6, 10) };
    let mut bench = Bench::new(both);
    bench.poll();
    assert!(bench.process.is_in_burst());
    bench.rate(6);
    assert!(!bench.process.is_in_burst());
    assert!((bench.process.next() - bench.now).seconds() >= 128.0);
    bench.process.restart(bench.now);
    bench.poll();
    assert!(!bench.process.is_in_burst());
    assert_eq!(bench.process.interval(), Log2Seconds(7), "the floor stays, too");
}

/// RFC 5905 section 11.3: offsets within four jitters count up by tc, others count down by twice that; beyond
/// thirty the interval changes by one. Checklist 46.
#[test]
fn the_time_constant_follows_offset_and_jitter_with_hysteresis() {
    let jitter = NtpDuration::from_nanoseconds(1_000_000);
    let (calm, wild) = (NtpDuration::from_bits(jitter.to_bits() * 4), seconds(1));
    let mut system = SystemPoll::new(Log2Seconds(6), Log2Seconds(8));
    let after = |system: &mut SystemPoll, offset, updates: usize| {
        (0..updates).for_each(|_| system.on_update(offset, jitter));
        system.interval().0
    };
    assert_eq!(after(&mut system, calm, 5), 6, "5 * 6 is not above 30");
    assert_eq!(after(&mut system, -calm, 1), 7, "the sign does not matter");
    assert_eq!(after(&mut system, calm, 5), 8, "5 * 7 is");
    assert_eq!(after(&mut system, calm, 100), 8, "not above the maximum");
    assert_eq!(after(&mut system, wild, 3), 8, "from +30 down to -18");
    assert_eq!(after(&mut system, -wild, 1), 7, "to -34");
    assert_eq!(after(&mut system, wild, 100), 6, "not below the minimum");
}

#[test]
fn the_time_constant_moves_from_an_interval_of_one_second() {
    let mut system = SystemPoll::new(Log2Seconds(-3), Log2Seconds(6));
    assert_eq!(system.interval(), POLL_MIN_LEAST);
    (0..31).for_each(|_| system.on_update(NtpDuration::ZERO, seconds(1)));
    assert_eq!(system.interval(), Log2Seconds(1));
    system.set_range(Log2Seconds(4), Log2Seconds(6));
    assert_eq!(system.interval(), Log2Seconds(4));
    (0..100).for_each(|_| system.on_update(NtpDuration::ZERO, seconds(1)));
    assert_eq!(system.interval(), Log2Seconds(6));
    system.reset();
    assert_eq!(system.interval(), Log2Seconds(4));
    // Before the first update it waits for nothing: a source that may be asked every 8 s is.
    let mut system = SystemPoll::new(Log2Seconds(6), Log2Seconds(10));
    system.set_range(Log2Seconds(3), Log2Seconds(10));
    assert_eq!(system.interval(), Log2Seconds(3));
    // Later it does not begin again because another source comes.
    (0..40).for_each(|_| system.on_update(NtpDuration::ZERO, seconds(1)));
    let interval = system.interval();
    system.set_range(Log2Seconds(0), Log2Seconds(10));
    assert!(interval > Log2Seconds(3) && system.interval() == interval);
}

/// RFC 5905 section 13.2 leaves the time of a packet to us: earlier than planned, but never sooner after the last one
/// than asked for, and what is planned after it counts from it.
#[test]
fn a_hastened_packet_keeps_its_distance_from_the_last_one() {
    let mut bench = Bench::new(options(6, 10));
    bench.poll();
    let planned = bench.process.next();
    bench.process.hasten(bench.now + seconds(31), seconds(32));
    assert_eq!(bench.process.next(), planned);
    bench.process.hasten(bench.now + seconds(32), seconds(32));
    assert_eq!(bench.process.next(), bench.now + seconds(32));
    bench.poll();
    assert!((64.0..66.0).contains(&(bench.process.next() - bench.now).seconds()));
    bench.process.hasten(bench.now + seconds(90), seconds(0));
    assert!((bench.process.next() - bench.now).seconds() < 66.0, "never later");
}
