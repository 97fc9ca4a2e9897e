//! When to ask (RFC 5905 section 13): the reach register, the poll process of an association, and the time
//! constant that the whole system polls with.
//!
//! Owns: intervals, bursts, back-off, what RATE does to them. Does not own: sending, and what is in the packets.
//!
//! The one idea a newcomer lacks: three things bound one interval. The system's time constant says how often the
//! discipline needs a measurement, the other side's `poll` how often it likes to be asked, and the configuration how
//! far either may go. Each RATE raises the floor for good; nothing lowers it but a new association.

use super::chance::Chance;
use super::source::{Burst, POLL_MAX_MOST, POLL_MIN_LEAST, PollOptions};
use crate::time::{Log2Seconds, Monotonic, NtpDuration, Timestamp};

/// UNREACH of RFC 5905 figure 29: after so many polls in vain the interval grows. (A.5.7 has 12; the figure counts.)
pub const UNREACH: u8 = 24;
/// BCOUNT of RFC 5905 figure 29: packets in a burst.
pub const BURST_COUNT: u8 = 8;
/// Between the packets of a burst (RFC 5905 section 13.2).
pub const BURST_INTERVAL: NtpDuration = NtpDuration::from_seconds(2);
/// An interval is lengthened at random by less than this part of it, so that hosts that were started together do
/// not ask together for ever. Lengthened only, so that no server's rate limit is touched.
const RANDOM_PART: i64 = 32;
/// How far RATE packets may drive the interval where the configuration's own maximum is not greater: 2^13 s is 2.3
/// hours (RFC 8633 section 5.4 warns of a forged RATE packet with a poll of 17).
pub const RATE_POLL_MAX: Log2Seconds = Log2Seconds(13);

/// The reach register: the answers of the last eight polls, the latest in bit 0.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Reach(u8);

impl Reach {
    /// The eight bits, as every NTP report shows them (in octal).
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Did any of the last eight polls bring a valid packet?
    #[must_use]
    pub const fn is_reachable(self) -> bool {
        self.0 != 0
    }

    /// Did the last three polls bring nothing?
    #[must_use]
    pub const fn is_fading(self) -> bool {
        self.0 & 7 == 0
    }

    /// A poll begins.
    const fn shift(&mut self) {
        self.0 <<= 1;
    }

    /// A valid packet came.
    const fn mark(&mut self) {
        self.0 |= 1;
    }
}

/// May a burst be sent to a reachable source?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fitness {
    /// It is a valid source of synchronisation.
    Fit,
    /// It is not.
    Unfit,
}

/// What a due poll asks for, besides a packet to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FilterInput {
    /// Three polls passed without an answer: shift a dummy sample into the clock filter.
    Dummy,
    /// Nothing.
    Nothing,
}

/// The poll process of one association.
#[derive(Clone, Debug)]
pub struct PollProcess {
    options: PollOptions,
    reach: Reach,
    /// hpoll.
    host_poll: Log2Seconds,
    /// ppoll, of the last valid packet.
    peer_poll: Log2Seconds,
    unreach: u8,
    /// Packets of the burst that are still to be sent.
    burst_left: u8,
    last: Timestamp<Monotonic>,
    next: Timestamp<Monotonic>,
}

impl PollProcess {
    /// A poll process whose first poll is due at `first`.
    #[must_use]
    pub fn new(options: PollOptions, first: Timestamp<Monotonic>) -> Self {
        let options = options.clamped();
        Self {
            options,
            reach: Reach::default(),
            host_poll: options.poll_min,
            peer_poll: POLL_MAX_MOST,
            unreach: 0,
            burst_left: 0,
            last: first,
            next: first,
        }
    }

    /// When the next packet is due.
    #[must_use]
    pub const fn next(&self) -> Timestamp<Monotonic> {
        self.next
    }

    /// The reach register.
    #[must_use]
    pub const fn reach(&self) -> Reach {
        self.reach
    }

    /// The interval between polls: the lesser of hpoll and ppoll, within the bounds that hold now.
    #[must_use]
    pub fn interval(&self) -> Log2Seconds {
        self.host_poll.min(self.peer_poll).clamp(self.options.poll_min, self.options.poll_max)
    }

    /// How far back the reach register remembers.
    #[must_use]
    pub fn memory(&self) -> NtpDuration {
        self.interval().to_duration().times(u8::BITS)
    }

    /// hpoll: how often we would ask if the other side had no wish of its own. This is what requests say. (If they
    /// said the interval, the server's echo of it would be the lesser of the two for ever.)
    #[must_use]
    pub fn host_interval(&self) -> Log2Seconds {
        self.host_poll.clamp(self.options.poll_min, self.options.poll_max)
    }

    /// Is a burst going on?
    #[must_use]
    pub const fn is_in_burst(&self) -> bool {
        self.burst_left > 0
    }

    /// A packet is about to be sent: books it, and chooses when the next one is. `system_poll` is the system's time
    /// constant.
    pub fn on_poll(
        &mut self,
        now: Timestamp<Monotonic>,
        system_poll: Log2Seconds,
        fitness: Fitness,
        chance: &mut Chance,
    ) -> FilterInput {
        self.last = now;
        if self.burst_left > 0 {
            self.burst_left -= 1;
            self.schedule(now, chance);
            return FilterInput::Nothing;
        }
        let fading = self.reach.is_fading();
        self.reach.shift();
        if self.reach.is_reachable() {
            self.unreach = 0;
            self.host_poll = system_poll;
            if self.options.burst == Burst::On && fitness == Fitness::Fit {
                self.burst_left = BURST_COUNT - 1;
            }
        } else {
            self.poll_in_vain();
        }
        self.schedule(now, chance);
        if fading { FilterInput::Dummy } else { FilterInput::Nothing }
    }

    /// Polls a source that does not answer: a burst the first time, then patience, then less often.
    fn poll_in_vain(&mut self) {
        // What it once wished must not keep the interval short now that it is gone.
        self.peer_poll = POLL_MAX_MOST;
        if self.unreach == 0 && self.options.iburst == Burst::On {
            self.burst_left = BURST_COUNT - 1;
        }
        if self.unreach < UNREACH {
            self.unreach += 1;
        } else {
            self.host_poll = Log2Seconds(self.interval().0 + 1).min(self.options.poll_max);
        }
    }

    /// A valid packet came (it passed all tests), with this `poll` field.
    pub fn on_valid(
        &mut self,
        now: Timestamp<Monotonic>,
        peer_poll: Log2Seconds,
        system_poll: Log2Seconds,
        chance: &mut Chance,
    ) {
        let before = self.interval();
        self.reach.mark();
        self.peer_poll = peer_poll;
        if self.unreach > 0 {
            self.unreach = 0;
            self.host_poll = system_poll;
        }
        // "A longer interval can be preempted by a shorter one" (A.5.7.2); a burst keeps its own time.
        if self.burst_left == 0 && self.interval() < before {
            self.schedule(now, chance);
        }
    }

    /// A believable RATE packet came, with this `poll` field: slower at once, and for good.
    pub fn on_rate(&mut self, now: Timestamp<Monotonic>, wished: Log2Seconds, chance: &mut Chance) {
        let limit = RATE_POLL_MAX.max(self.options.poll_max);
        let slower = Log2Seconds(self.interval().0 + 1);
        self.options.poll_min = slower.max(wished.min(RATE_POLL_MAX)).min(limit);
        self.options.poll_max = self.options.poll_max.max(self.options.poll_min);
        self.options.burst = Burst::Off;
        self.options.iburst = Burst::Off;
        self.burst_left = 0;
        self.last = now;
        self.schedule(now, chance);
    }

    /// A packet is worth sending earlier than planned: now, if the last one was at least `pause` ago.
    pub fn hasten(&mut self, now: Timestamp<Monotonic>, pause: NtpDuration) {
        if now - self.last >= pause {
            self.next = self.next.min(now);
        }
    }

    /// The interval has been measured with a clock that was stepped, or the source is another one: begin anew, with
    /// the floor that RATE packets have set.
    pub fn restart(&mut self, first: Timestamp<Monotonic>) {
        *self = Self::new(self.options, first);
    }

    fn schedule(&mut self, now: Timestamp<Monotonic>, chance: &mut Chance) {
        if self.burst_left > 0 {
            self.next = now + BURST_INTERVAL;
            return;
        }
        let interval = self.interval().to_duration();
        let random = chance.below(NtpDuration::from_bits(interval.to_bits() / RANDOM_PART));
        // The time may have passed already; then "make it one second in the future" (A.5.7.2).
        self.next = (self.last + interval + random).max(now + NtpDuration::from_seconds(1));
    }
}

/// The system's time constant, with its hysteresis (RFC 5905 section 11.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SystemPoll {
    interval: Log2Seconds,
    counter: i32,
    poll_min: Log2Seconds,
    poll_max: Log2Seconds,
}

/// LIMIT of RFC 5905 figure 27.
const HYSTERESIS_LIMIT: i32 = 30;
/// PGATE of RFC 5905 figure 27: offsets above so many jitters ask for shorter intervals.
const HYSTERESIS_GATE: i64 = 4;

impl SystemPoll {
    /// A time constant that starts at its minimum.
    #[must_use]
    pub fn new(poll_min: Log2Seconds, poll_max: Log2Seconds) -> Self {
        let poll_min = poll_min.clamp(POLL_MIN_LEAST, POLL_MAX_MOST);
        let poll_max = poll_max.clamp(poll_min, POLL_MAX_MOST);
        Self { interval: poll_min, counter: 0, poll_min, poll_max }
    }

    /// The interval that the system wants to be measured with.
    #[must_use]
    pub const fn interval(&self) -> Log2Seconds {
        self.interval
    }

    /// The sources allow another range. What is at the old minimum, as it is at the start, is at the new one.
    pub fn set_range(&mut self, poll_min: Log2Seconds, poll_max: Log2Seconds) {
        let Self { interval, counter, poll_min: minimum, .. } = *self;
        *self = Self::new(poll_min, poll_max);
        if interval > minimum {
            self.interval = interval.clamp(self.poll_min, self.poll_max);
        }
        self.counter = counter;
    }

    /// An update of the clock, by this offset, where the measurements jitter so much.
    pub fn on_update(&mut self, offset: NtpDuration, jitter: NtpDuration) {
        let gate = NtpDuration::from_bits(jitter.to_bits().saturating_mul(HYSTERESIS_GATE));
        // At an interval of 1 s (0) the counter would stand still for ever.
        let weight = i32::from(self.interval.0).max(1);
        if offset > gate || -offset > gate {
            self.counter -= 2 * weight;
            if self.counter < -HYSTERESIS_LIMIT {
                self.step(-1);
            }
        } else {
            self.counter += weight;
            if self.counter > HYSTERESIS_LIMIT {
                self.step(1);
            }
        }
    }

    /// After a step everything is measured anew, and often.
    pub const fn reset(&mut self) {
        self.interval = self.poll_min;
        self.counter = 0;
    }

    fn step(&mut self, by: i8) {
        let next = Log2Seconds(self.interval.0 + by);
        if (self.poll_min..=self.poll_max).contains(&next) {
            self.interval = next;
            self.counter = 0;
        } else {
            self.counter = self.counter.clamp(-HYSTERESIS_LIMIT, HYSTERESIS_LIMIT);
        }
    }
}

#[cfg(test)]
#[path = "poll_tests.rs"]
mod tests;
