//! From the XDP program's receive stamp to the time a reply carries.

use crate::sys::clock;
use crate::time::{Realtime, Tai, Timestamp};

/// Readings of the clocks for one batch of frames.
#[derive(Clone, Copy, Debug)]
pub struct BatchClock {
    /// `CLOCK_REALTIME`, now.
    pub realtime: Timestamp<Realtime>,
    /// `CLOCK_TAI` minus `CLOCK_REALTIME`, in nanoseconds: whole seconds. Read anew for every batch, since
    /// whoever keeps the clock may set it at any time.
    /// `None` if they cannot be compared: then no stamp of this batch is trusted.
    tai_ahead: Option<i64>,
}

/// How old a request may be when it is answered. A frame may wait in a ring while the process is stopped; one
/// that seems older than this was stamped by a clock that has been set since.
const AGE_MAX: i64 = 4_000_000_000;
const SECOND: i64 = 1_000_000_000;
/// How far apart the readings of the two clocks may be to be compared.
const APART_MAX: i64 = 100_000_000;

impl BatchClock {
    /// Reads the clocks.
    #[must_use]
    pub fn read() -> Self {
        let tai = clock::tai();
        Self::at(clock::realtime(), tai)
    }

    fn at(realtime: Timestamp<Realtime>, tai: Option<Timestamp<Tai>>) -> Self {
        // The difference is whole seconds by definition, and the readings are some tens of nanoseconds apart unless
        // the thread was stopped in between.
        let tai_ahead = tai.and_then(|tai| {
            let ahead = tai.nanoseconds().checked_sub(realtime.nanoseconds())?;
            let whole = (ahead + SECOND / 2).div_euclid(SECOND) * SECOND;
            ((ahead - whole).abs() <= APART_MAX).then_some(whole)
        });
        Self { realtime, tai_ahead }
    }

    /// The arrival in UTC, if the stamp can be true: not in the future, and no older than four seconds.
    #[must_use]
    pub fn arrival(&self, stamp: Timestamp<Tai>) -> Option<Timestamp<Realtime>> {
        let arrival = Timestamp::from_nanoseconds(stamp.nanoseconds().checked_sub(self.tai_ahead?)?);
        self.plausible(arrival)
    }

    /// The same check for a stamp that is in UTC already.
    #[must_use]
    pub fn plausible(&self, arrival: Timestamp<Realtime>) -> Option<Timestamp<Realtime>> {
        let age = self.realtime.nanoseconds_since(arrival);
        (0..=AGE_MAX).contains(&age).then_some(arrival)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_123_456_789;

    fn batch(tai_offset: i64) -> BatchClock {
        let tai = Timestamp::from_nanoseconds(NOW + tai_offset * SECOND - 40);
        BatchClock::at(Timestamp::from_nanoseconds(NOW), Some(tai))
    }

    #[test]
    fn tai_offset_is_taken_off_exactly() {
        for offset in [0, 37, -1] {
            let stamp = Timestamp::from_nanoseconds(NOW + offset * SECOND - 2_500);
            assert_eq!(batch(offset).arrival(stamp), Some(Timestamp::from_nanoseconds(NOW - 2_500)));
        }
    }

    #[test]
    fn a_pause_between_the_readings_shifts_no_stamp() {
        let paused = BatchClock::at(
            Timestamp::from_nanoseconds(NOW + 700_000_000),
            Some(Timestamp::from_nanoseconds(NOW + 37 * SECOND)),
        );
        assert_eq!(paused.arrival(Timestamp::from_nanoseconds(NOW + 37 * SECOND - 400_000_000)), None);
    }

    #[test]
    fn stamps_that_cannot_be_true_are_refused() {
        let batch = batch(37);
        let stamp = |age: i64| Timestamp::from_nanoseconds(NOW + 37 * SECOND - age);
        assert!(batch.arrival(stamp(AGE_MAX)).is_some());
        assert_eq!(batch.arrival(stamp(AGE_MAX + 1)), None, "too old");
        assert_eq!(batch.arrival(stamp(-1)), None, "in the future");
        // The TAI offset was set from 0 to 37 between the stamp and now.
        assert_eq!(batch.arrival(Timestamp::from_nanoseconds(NOW - 1000)), None);
        assert_eq!(batch.arrival(Timestamp::from_nanoseconds(i64::MIN)), None);
    }
}
