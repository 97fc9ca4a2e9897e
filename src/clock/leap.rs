//! On which day the kernel is told of a leap second.
//!
//! The one idea a newcomer lacks: NTP announces one for the end of the *month* (RFC 5905 section 7.3), and many servers do so
//! weeks before; the kernel inserts it at the end of the *day* on which it is told. So it is told on the last day of a month
//! only. That also spares us a second one when a server goes on announcing it the day after.

use crate::sys::clock::KernelLeap;
use crate::time::{Realtime, Timestamp};
use crate::wire::Leap;

const SECONDS_OF_DAY: i64 = 86_400;

/// What the kernel is to be told now of what is announced.
#[must_use]
pub fn leap_of_today(announced: Leap, now: Timestamp<Realtime>) -> KernelLeap {
    match announced {
        Leap::Insert if is_last_of_month(now) => KernelLeap::Insert,
        Leap::Delete if is_last_of_month(now) => KernelLeap::Delete,
        Leap::Insert | Leap::Delete | Leap::None | Leap::Unsynchronised => KernelLeap::None,
    }
}

/// Is it the last day of a month, in UTC?
fn is_last_of_month(now: Timestamp<Realtime>) -> bool {
    let day = now.nanoseconds().div_euclid(1_000_000_000).div_euclid(SECONDS_OF_DAY);
    day_of_month(day + 1) == 1
}

/// Of a day counted from 1970-01-01, in the Gregorian calendar: its years are counted from March on here, so that the day that
/// some have more comes last, and months of 31 and 30 days follow each other in fives of 153 days.
const fn day_of_month(day: i64) -> i64 {
    // From 0000-03-01, in cycles of 400 years.
    let day_of_cycle = (day + 719_468).rem_euclid(146_097);
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month = (5 * day_of_year + 2) / 153;
    day_of_year - (153 * month + 2) / 5 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first second of a day, from `date -u +%s`.
    fn told(announced: Leap, first_second: i64, into_day: i64) -> KernelLeap {
        leap_of_today(announced, Timestamp::from_nanoseconds((first_second + into_day) * 1_000_000_000))
    }

    /// Checklist 66.
    #[test]
    fn the_kernel_is_told_on_the_last_day_of_a_month_only() {
        let last_days = [
            1_483_142_400, // 2016-12-31, the last leap second so far
            1_435_622_400, // 2015-06-30
            1_709_164_800, // 2024-02-29
            1_677_542_400, // 2023-02-28
            951_782_400,   // 2000-02-29
            4_107_456_000, // 2100-02-28
            -86_400,       // 1969-12-31
        ];
        for first_second in last_days {
            for into_day in [0, 43_200, 86_399] {
                let told = |announced| told(announced, first_second, into_day);
                assert_eq!(told(Leap::Insert), KernelLeap::Insert, "{first_second} {into_day}");
                assert_eq!(told(Leap::Delete), KernelLeap::Delete, "{first_second} {into_day}");
                assert_eq!(told(Leap::None), KernelLeap::None);
                assert_eq!(told(Leap::Unsynchronised), KernelLeap::None);
            }
            // The day before, and the day after.
            for into_day in [-1, -86_400, 86_400, 2 * 86_400 - 1] {
                assert_eq!(
                    told(Leap::Insert, first_second, into_day),
                    KernelLeap::None,
                    "{first_second} {into_day}"
                );
            }
        }
        let february_28 = 1_709_078_400; // 2024-02-28
        assert_eq!(told(Leap::Insert, february_28, 0), KernelLeap::None);
    }

    #[test]
    fn a_year_has_twelve_last_days() {
        let first = 1_704_067_200; // 2024-01-01
        let is_last = |day: &i64| told(Leap::Insert, first, day * SECONDS_OF_DAY) == KernelLeap::Insert;
        let days: Vec<i64> = (0..366).filter(is_last).collect();
        assert_eq!(days, [30, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365]);
    }
}
