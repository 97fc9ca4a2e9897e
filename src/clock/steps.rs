//! Notices when somebody steps the clock, and tells that from a leap second.
//!
//! Owns: the comparison. Does not own: reading the clocks; [`Clocks`] is an argument, so that any history can be injected.
//!
//! The one idea a newcomer lacks: `CLOCK_REALTIME` minus `CLOCK_MONOTONIC` changes only when the clock is stepped, by whoever,
//! or when the kernel inserts or deletes a leap second. A leap second is no step: it happens to UTC, and so to everybody's
//! clock. What tells them apart is `CLOCK_TAI`, which has no leap seconds: the kernel moves its distance from UTC in the same
//! moment, whereas a step moves both clocks together.

use crate::sys::clock;
use crate::time::NtpDuration;

/// The two clocks are read one after the other, once a second at least. Beyond this one of them was set.
const STEP_LEAST_NANOSECONDS: i64 = 1_000_000;
const SECOND_NANOSECONDS: i64 = 1_000_000_000;
/// Looks of which the quickest is believed: interrupted between two readings, one is off by half of that.
const LOOKS: usize = 5;

/// What was done to the clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Somebody stepped it (positive: forward).
    Step(NtpDuration),
    /// A leap second: inserted, the clock went back by one (negative), or deleted.
    Leap(NtpDuration),
}

/// The clocks that are compared.
pub trait Clocks {
    /// How long a look took, and `CLOCK_REALTIME` minus `CLOCK_MONOTONIC`, both in nanoseconds.
    fn look(&mut self) -> (i64, i64);

    /// `CLOCK_TAI` minus `CLOCK_REALTIME`, in whole seconds; `None` where there is no such clock.
    fn tai_minus_realtime(&mut self) -> Option<NtpDuration>;
}

/// This machine's.
#[derive(Clone, Copy, Debug)]
pub struct MachineClocks;

impl Clocks for MachineClocks {
    /// The difference between the reading in the middle and those around it.
    fn look(&mut self) -> (i64, i64) {
        let before = clock::monotonic();
        let realtime = clock::realtime();
        let took = clock::monotonic().nanoseconds_since(before);
        (took, realtime.nanoseconds().saturating_sub(before.nanoseconds()).saturating_sub(took / 2))
    }

    fn tai_minus_realtime(&mut self) -> Option<NtpDuration> {
        clock::tai_minus_realtime()
    }
}

/// Remembers how the clocks stood.
#[derive(Debug)]
pub struct StepWatch<C> {
    clocks: C,
    ahead: i64,
    tai: Option<NtpDuration>,
}

impl<C: Clocks> StepWatch<C> {
    /// From now on.
    pub fn new(clocks: C) -> Self {
        let mut watch = Self { clocks, ahead: 0, tai: None };
        watch.forgive();
        watch.look_at_tai();
        watch
    }

    /// What was done since the last time.
    pub fn change(&mut self) -> Option<Change> {
        // Asked for every packet, so one look must do; only one that shows a step may have been interrupted.
        let (_, mut now) = self.clocks.look();
        if now.saturating_sub(self.ahead).saturating_abs() >= STEP_LEAST_NANOSECONDS {
            now = self.exactly();
        }
        // Always from the last time, since a time simulator may slew the one and not the other.
        let by = now.saturating_sub(std::mem::replace(&mut self.ahead, now));
        if by.saturating_abs() < STEP_LEAST_NANOSECONDS {
            return None;
        }
        let tai_before = self.tai;
        self.look_at_tai();
        let leap = tai_before.zip(self.tai).map(|(before, now)| (now - before).to_nanoseconds());
        let is_leap = leap.is_some_and(|leap| {
            leap.saturating_abs() == SECOND_NANOSECONDS
                && by.saturating_add(leap).saturating_abs() < STEP_LEAST_NANOSECONDS
        });
        let by = NtpDuration::from_nanoseconds(by);
        Some(if is_leap { Change::Leap(by) } else { Change::Step(by) })
    }

    /// We have stepped it ourselves.
    pub fn forgive(&mut self) {
        self.ahead = self.exactly();
    }

    /// Now and then, after [`Self::change`]: somebody may have told the kernel how far TAI is ahead.
    pub fn look_at_tai(&mut self) {
        self.tai = self.clocks.tai_minus_realtime();
    }

    fn exactly(&mut self) -> i64 {
        let looks = (0..LOOKS).map(|_| self.clocks.look());
        looks.min_by_key(|(took, _)| *took).map_or(0, |(_, ahead)| ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine's clocks: seconds that UTC and TAI are ahead of the monotonic clock, and how long each look takes.
    #[derive(Debug)]
    struct Simulated {
        utc: f64,
        tai: Option<f64>,
        took: f64,
    }

    fn nanoseconds(seconds: f64) -> i64 {
        (seconds * 1e9).round() as i64
    }

    impl Clocks for Simulated {
        fn look(&mut self) -> (i64, i64) {
            (nanoseconds(self.took), nanoseconds(self.utc))
        }

        fn tai_minus_realtime(&mut self) -> Option<NtpDuration> {
            self.tai.map(|tai| NtpDuration::from_seconds((tai - self.utc).round() as i64))
        }
    }

    impl Simulated {
        /// As timekeeping(9) does it at the end of the day: both at once.
        fn insert_leap_second(&mut self) {
            self.utc -= 1.0;
        }

        fn step(&mut self, by: f64) {
            self.utc += by;
            self.tai = self.tai.map(|tai| tai + by);
        }
    }

    const START: f64 = 1.8e6;

    fn watch() -> StepWatch<Simulated> {
        StepWatch::new(Simulated { utc: START, tai: Some(START + 37.0), took: 1e-7 })
    }

    fn seconds(change: Option<Change>) -> Option<(bool, f64)> {
        change.map(|change| match change {
            Change::Leap(by) => (true, by.seconds()),
            Change::Step(by) => (false, by.seconds()),
        })
    }

    #[test]
    fn an_inserted_leap_second_is_no_step_and_told_once() {
        let mut watch = watch();
        assert_eq!(watch.change(), None);
        watch.clocks.insert_leap_second();
        assert_eq!(seconds(watch.change()), Some((true, -1.0)));
        assert_eq!(watch.change(), None);
    }

    #[test]
    fn a_deleted_one_neither() {
        let mut watch = watch();
        watch.clocks.utc += 1.0;
        assert_eq!(seconds(watch.change()), Some((true, 1.0)));
    }

    /// Also one of exactly a second, in the second of a leap, or with the offset of TAI set in the same go.
    #[test]
    fn a_step_is_a_step_whatever_its_size() {
        for by in [-1.0, 1.0, 0.25, -3600.0] {
            let mut watch = watch();
            watch.clocks.step(by);
            assert_eq!(seconds(watch.change()), Some((false, by)));
            assert_eq!(watch.change(), None);
        }
        let mut stepped_too = watch();
        stepped_too.clocks.insert_leap_second();
        stepped_too.clocks.step(0.5);
        assert_eq!(seconds(stepped_too.change()), Some((false, -0.5)));
    }

    /// Somebody who sets the clock tells the kernel of 37 leap seconds later, and then comes the 38th.
    #[test]
    fn tai_may_be_set_long_after_the_start() {
        let mut watch = watch();
        watch.clocks.tai = Some(START);
        watch.look_at_tai();
        watch.clocks.tai = Some(START + 37.0);
        assert_eq!(watch.change(), None, "nothing has happened to UTC");
        watch.look_at_tai();
        watch.clocks.insert_leap_second();
        assert_eq!(seconds(watch.change()), Some((true, -1.0)));
    }

    #[test]
    fn without_tai_every_change_is_a_step() {
        let mut watch = StepWatch::new(Simulated { utc: 5.0, tai: None, took: 1e-7 });
        watch.clocks.insert_leap_second();
        assert_eq!(seconds(watch.change()), Some((false, -1.0)));
    }

    #[test]
    fn our_own_steps_and_small_changes_are_not_told() {
        let mut watch = watch();
        watch.clocks.step(0.7);
        watch.forgive();
        assert_eq!(watch.change(), None);
        watch.clocks.utc += 0.0009;
        assert_eq!(watch.change(), None);
    }
}
