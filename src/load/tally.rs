//! The books of a step: which requests are open, and what came of the others.
//!
//! Owns: the table of requests and the counts. Does not own: packets, the clock, or the rules for replies (`judge`).
//!
//! The one idea a newcomer lacks: the table is a ring of as many requests as can be open at once, so memory is bounded
//! however long a run is. A request that was overwritten was sent long before the timeout: its reply is late.

use super::engine::Measured;
use super::judge::{Flaw, Judgement};

/// Fewest requests that are remembered.
const SLOTS_MIN: u64 = 1 << 12;
/// Most requests that are remembered: 32 MiB, two seconds of a million a second.
pub const OPEN_MAX: u64 = 1 << 21;

/// Kiss codes that are told apart: RFC 5905 has 14. A server that makes up more cannot make us grow.
const KISS_CODES_MAX: usize = 32;
/// What the codes beyond count as.
const OTHER_KISS: [u8; 4] = *b"????";

/// The round trip of a request that was overwritten: longer than any timeout.
const FORGOTTEN: u64 = u64::MAX;

/// A request.
#[derive(Clone, Copy, Default, Debug)]
struct Slot {
    /// Its intended time, nanoseconds since the step began.
    intended: u64,
    sequence: u32,
    /// It has its first reply.
    closed: bool,
}

/// The books. All times are nanoseconds since the step began.
#[derive(Debug)]
pub struct Tally {
    slots: Vec<Slot>,
    timeout: u64,
    measured: Measured,
}

impl Tally {
    /// For a step in which up to `open` requests are open at once, [`OPEN_MAX`] at most: replies to those that a step with
    /// more overwrites count as late.
    #[must_use]
    pub fn new(open: u64, timeout: u64) -> Self {
        let slots = open.clamp(SLOTS_MIN, OPEN_MAX).next_power_of_two();
        Self { slots: vec![Slot::default(); slots as usize], timeout, measured: Measured::default() }
    }

    /// Request `sequence`, due at `intended`, left at `departed`. Sequences rise by one.
    pub fn sent(&mut self, sequence: u32, intended: u64, departed: u64) {
        *self.slot(sequence) = Slot { intended, sequence, closed: false };
        self.measured.offered += 1;
        self.measured.send_delay.saturating_record(departed.saturating_sub(intended));
    }

    /// `count` requests could not be sent.
    pub fn failed(&mut self, count: u64) {
        self.measured.send_failures += count;
    }

    /// A frame that arrived at `now`.
    pub fn judged(&mut self, judgement: Judgement, now: u64) {
        match judgement {
            Judgement::NotOurs => {}
            Judgement::Wrong(flaw) => self.wrong(flaw),
            Judgement::Kiss { sequence, code } => match self.close(sequence, now) {
                Some(FORGOTTEN) => self.measured.late += 1,
                Some(_) => self.kiss(code),
                None => {}
            },
            Judgement::Right { sequence, turnaround, unfinished } => {
                let Some(round_trip) = self.close(sequence, now) else { return };
                self.measured.unfinished_checksums += u64::from(unfinished);
                if let Some(turnaround) = turnaround {
                    self.measured.turnaround.saturating_record(turnaround);
                }
                if round_trip > self.timeout {
                    self.measured.late += 1;
                } else {
                    self.measured.answered += 1;
                    self.measured.round_trip.saturating_record(round_trip);
                }
            }
        }
    }

    /// Requests sent so far.
    #[must_use]
    pub const fn offered(&self) -> u64 {
        self.measured.offered
    }

    /// Right replies so far.
    #[must_use]
    pub const fn answered(&self) -> u64 {
        self.measured.answered
    }

    /// What came of it all, where those requests that were due at `open_from` or later and have no reply are in flight
    /// yet; none where all have had their time.
    #[must_use]
    pub fn finish(self, open_from: Option<u64>) -> Measured {
        let used = usize::try_from(self.measured.offered).unwrap_or(usize::MAX).min(self.slots.len());
        let is_open = |slot: &&Slot| open_from.is_some_and(|from| !slot.closed && slot.intended >= from);
        let in_flight = self.slots[..used].iter().filter(is_open).count() as u64;
        Measured { in_flight, ..self.measured }
    }

    fn slot(&mut self, sequence: u32) -> &mut Slot {
        // A power of two, and not zero: the index is in bounds.
        let index = sequence as usize & (self.slots.len() - 1);
        &mut self.slots[index]
    }

    /// The round trip of a request that was open, and is not any more, or [`FORGOTTEN`]; `None`, and counted, for a request
    /// that has its reply or was never sent.
    fn close(&mut self, sequence: u32, now: u64) -> Option<u64> {
        // Sequences count from 0, so any from here on has not been sent: somebody guessed.
        if u64::from(sequence) >= self.measured.offered {
            self.wrong(Flaw::Origin);
            return None;
        }
        let slot = self.slot(sequence);
        if slot.sequence != sequence {
            return Some(FORGOTTEN);
        }
        if slot.closed {
            self.measured.duplicates += 1;
            return None;
        }
        slot.closed = true;
        Some(now.saturating_sub(slot.intended))
    }

    fn wrong(&mut self, flaw: Flaw) {
        self.measured.flaws[flaw as usize] += 1;
    }

    fn kiss(&mut self, code: [u8; 4]) {
        let kisses = &mut self.measured.kisses;
        let known = kisses.iter().position(|kiss| kiss.0 == code);
        let code = if known.is_none() && kisses.len() >= KISS_CODES_MAX { OTHER_KISS } else { code };
        match kisses.iter_mut().find(|kiss| kiss.0 == code) {
            Some(kiss) => kiss.1 += 1,
            None => kisses.push((code, 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: u64 = 1_000_000;

    fn right(sequence: u32) -> Judgement {
        Judgement::Right { sequence, turnaround: Some(500), unfinished: false }
    }

    fn tally(requests: u32) -> Tally {
        let mut tally = Tally::new(0, TIMEOUT);
        for sequence in 0..requests {
            tally.sent(sequence, u64::from(sequence) * 1000, u64::from(sequence) * 1000 + 7);
        }
        tally
    }

    #[test]
    fn latency_counts_from_the_intended_time() {
        let mut tally = tally(2);
        tally.judged(right(1), 1250);
        tally.judged(right(0), 3000);
        let measured = tally.finish(None);
        assert_eq!((measured.offered, measured.answered), (2, 2));
        assert_eq!((measured.round_trip.min(), measured.round_trip.len()), (250, 2));
        assert_eq!((measured.turnaround.max(), measured.turnaround.len()), (500, 2));
        assert_eq!(
            (measured.send_delay.min(), measured.send_delay.max(), measured.send_delay.len()),
            (7, 7, 2)
        );
    }

    #[test]
    fn second_replies_are_duplicates_and_do_not_count_again() {
        let mut tally = tally(1);
        tally.judged(right(0), 10);
        tally.judged(right(0), 11);
        tally.judged(Judgement::Kiss { sequence: 0, code: *b"RATE" }, 12);
        let measured = tally.finish(None);
        assert_eq!((measured.answered, measured.duplicates), (1, 2));
        assert!(measured.kisses.is_empty());
    }

    #[test]
    fn replies_after_the_timeout_are_late() {
        let mut tally = tally(2);
        tally.judged(right(0), TIMEOUT);
        tally.judged(right(1), 1000 + TIMEOUT + 1);
        let measured = tally.finish(None);
        assert_eq!((measured.answered, measured.late, measured.round_trip.len()), (1, 1, 1));
        assert_eq!(measured.turnaround.len(), 2, "a late reply tells the turnaround too");
    }

    #[test]
    fn what_is_open_and_young_is_in_flight_where_the_step_was_ended() {
        for (open_from, in_flight) in [(None, 0), (Some(0), 8), (Some(5_000), 4), (Some(10_000), 0)] {
            let mut tally = tally(10);
            tally.judged(right(0), 10);
            tally.judged(right(9), 9100);
            assert_eq!(tally.finish(open_from).in_flight, in_flight, "from {open_from:?}");
        }
        // Each of the table's places is used, and some twice.
        assert_eq!(tally(SLOTS_MIN as u32 + 5).finish(Some(0)).in_flight, SLOTS_MIN);
    }

    #[test]
    fn replies_to_forgotten_requests_are_late_and_to_unsent_ones_wrong() {
        let mut tally = tally(SLOTS_MIN as u32 + 1);
        tally.judged(right(0), 10);
        tally.judged(right(SLOTS_MIN as u32 + 1), 11);
        tally.judged(Judgement::Kiss { sequence: 0, code: *b"RATE" }, 12);
        let measured = tally.finish(None);
        assert_eq!((measured.late, measured.answered, measured.kisses.len()), (2, 0, 0));
        assert_eq!(measured.flaws[Flaw::Origin as usize], 1);
    }

    #[test]
    fn kisses_are_counted_by_code_within_bounds() {
        let mut tally = tally(100);
        for sequence in 0..100_u32 {
            let code = [b'A' + (sequence % 26) as u8, b'A' + (sequence / 26) as u8, b'X', b'X'];
            tally.judged(Judgement::Kiss { sequence, code }, 10);
        }
        let measured = tally.finish(None);
        assert_eq!(measured.kisses.len(), KISS_CODES_MAX + 1);
        assert_eq!(measured.kisses.iter().map(|kiss| kiss.1).sum::<u64>(), 100);
        assert_eq!(measured.kisses.last(), Some(&(OTHER_KISS, 100 - KISS_CODES_MAX as u64)));
    }
}
