//! The combine algorithm: one offset and one jitter out of the survivors'.
//!
//! Owns: RFC 5905 section 11.2.3 up to the combined offset. Does not own: what becomes of the clock and of
//! the system variables.
//!
//! The one idea a newcomer lacks: each survivor weighs by the reciprocal of its root distance, its possible
//! error. A nearby server counts for more, but no survivor is left out: the errors of independent sources
//! cancel.

use super::cluster::Survivor;
use crate::time::NtpDuration;

/// The best and final statistics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Combined {
    /// THETA. > 0: our clock is behind.
    pub offset: NtpDuration,
    /// PSI: the expected error of it, >= 0.
    pub jitter: NtpDuration,
}

/// Combines the survivors, `None` without one. `selection_jitter` is PSI_s, what the cluster algorithm was
/// left with.
///
/// PSI_p is the survivors' jitters averaged with the same weights, as the first paragraph of section 11.2.3
/// has it ("where each server statistic is weighted"), and PSI the root of PSI_s^2 + PSI_p^2. (The skeleton's
/// A.5.5.5 computes a third quantity, the weighted RMS of the offsets about the first survivor's.)
#[must_use]
pub fn combine(survivors: &[Survivor], selection_jitter: NtpDuration) -> Option<Combined> {
    let first = survivors.first()?;
    let (mut weights, mut offsets, mut jitters) = (0.0, 0.0, 0.0);
    let (mut lowest, mut highest) = (first.offset, first.offset);
    for survivor in survivors {
        let weight = 1.0 / survivor.distance.max(NtpDuration::from_bits(1)).seconds();
        weights += weight;
        // Counted from the first one: a large offset that all share costs no digits.
        offsets += weight * (survivor.offset - first.offset).seconds();
        jitters += weight * survivor.jitter.seconds();
        lowest = lowest.min(survivor.offset);
        highest = highest.max(survivor.offset);
    }
    let offset = first.offset + NtpDuration::from_seconds_f64(offsets / weights);
    let jitter = selection_jitter.seconds().hypot(jitters / weights);
    // An average lies among what it averages; rounding does not make an exception.
    Some(Combined { offset: offset.clamp(lowest, highest), jitter: NtpDuration::from_seconds_f64(jitter) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::state::SourceId;
    use proptest::prelude::*;

    fn survivor(offset: NtpDuration, jitter: NtpDuration, distance: NtpDuration) -> Survivor {
        Survivor { id: SourceId(0), place: 0, offset, jitter, distance, stratum: 1, merit: distance }
    }

    fn milliseconds(offset: i64, jitter: i64, distance: i64) -> Survivor {
        let [offset, jitter, distance] =
            [offset, jitter, distance].map(|count| NtpDuration::from_nanoseconds(count * 1_000_000));
        survivor(offset, jitter, distance)
    }

    fn near(duration: NtpDuration, seconds: f64) -> bool {
        (duration.seconds() - seconds).abs() < 1e-9
    }

    /// Checklist 56. Weights 100 and 25: (100 * 1 + 25 * 6) / 125 = 2 ms; PSI_p = (100 * 3 + 25 * 8) / 125 =
    /// 4 ms; PSI = sqrt(3^2 + 4^2) = 5 ms.
    #[test]
    fn weights_are_the_reciprocal_root_distances() {
        let both = [milliseconds(1, 3, 10), milliseconds(6, 8, 40)];
        let combined = combine(&both, NtpDuration::from_nanoseconds(3_000_000)).unwrap();
        assert!(near(combined.offset, 0.002), "{}", combined.offset);
        assert!(near(combined.jitter, 0.005), "{}", combined.jitter);
    }

    #[test]
    fn one_survivor_is_its_own_average() {
        let one = milliseconds(-7, 2, 10);
        let combined = combine(&[one], NtpDuration::ZERO).unwrap();
        assert_eq!((combined.offset, combined.jitter), (one.offset, one.jitter));
        assert_eq!(combine(&[], NtpDuration::ZERO), None);
    }

    #[test]
    fn a_large_common_offset_costs_no_digits() {
        let year = NtpDuration::from_seconds(31_557_600);
        let near = |bits| {
            survivor(
                year + NtpDuration::from_bits(bits),
                NtpDuration::from_bits(9),
                NtpDuration::from_bits(100),
            )
        };
        assert_eq!(
            combine(&[near(0), near(2)], NtpDuration::ZERO).unwrap().offset,
            year + NtpDuration::from_bits(1)
        );
    }

    proptest! {
        #[test]
        fn lies_among_the_survivors_whatever_the_numbers(
            values in proptest::collection::vec(any::<[i64; 3]>(), 1..20), selection_jitter in any::<i64>()
        ) {
            let survivors: Vec<_> = values
                .iter()
                .map(|value| value.map(NtpDuration::from_bits))
                .map(|[offset, jitter, distance]| survivor(offset, jitter, distance))
                .collect();
            let combined = combine(&survivors, NtpDuration::from_bits(selection_jitter)).unwrap();
            let offsets = || survivors.iter().map(|survivor| survivor.offset);
            prop_assert!(offsets().min().unwrap() <= combined.offset && combined.offset <= offsets().max().unwrap());
            prop_assert!(combined.jitter >= NtpDuration::ZERO);
        }
    }
}
