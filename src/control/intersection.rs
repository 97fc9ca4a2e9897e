//! The intersection algorithm: where the truth must lie if a majority is right.
//!
//! Owns: Marzullo's algorithm as RFC 5905 section 11.2.1 modifies it. Does not own: who takes part, and what
//! happens to a source outside.
//!
//! The one idea a newcomer lacks: the interval may be wider than what all true intervals have in common. It
//! must hold the *midpoint* of each of them, because the midpoints are what is averaged afterwards. So f
//! sources are allowed to be false, and found to be so, exactly when at most f midpoints lie outside.
//!
//! The RFC scans all endpoints once for each f. The depth c only has to be seen to rise: one scan from each
//! end notes where each depth was reached first, and then every f is a look into the notes. So n sources cost
//! one sort.

use crate::time::NtpDuration;
use std::cmp::Reverse;

/// A correctness interval: offset plus or minus root distance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interval {
    /// The lowest true offset possible. > 0: our clock is behind.
    pub low: NtpDuration,
    /// The highest true offset possible.
    pub high: NtpDuration,
}

impl Interval {
    /// Around an offset. `distance` is >= 0.
    #[must_use]
    pub fn around(offset: NtpDuration, distance: NtpDuration) -> Self {
        Self { low: offset - distance, high: offset + distance }
    }

    /// Is this offset possible?
    #[must_use]
    pub fn contains(&self, offset: NtpDuration) -> bool {
        (self.low..=self.high).contains(&offset)
    }

    /// Does it hold all of the other?
    #[must_use]
    pub fn encloses(&self, other: Self) -> bool {
        self.low <= other.low && other.high <= self.high
    }
}

/// What the sources can agree on at best.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreement {
    /// [l, u] of the RFC.
    pub interval: Interval,
    /// m - f: so many sources agree, at least.
    pub agreeing: usize,
}

/// In the order in which equal edges are met on the way up: an interval that ends where another begins
/// touches it, and a midpoint on the edge lies inside.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Low,
    Mid,
    High,
}

/// Where a depth was reached first, and how many midpoints were passed on the way.
#[derive(Clone, Copy)]
struct Reached {
    edge: NtpDuration,
    midpoints: usize,
}

/// The smallest number f of falsetickers that leaves an agreement of the others. The caller compares it with
/// a majority (f < m/2). `None` only without a source, or where every interval is empty.
///
/// Each source is its offset and its root distance, which is > 0.
///
/// Section 11.2.1 asks for d = f midpoints outside the interval; we take d <= f, as A.5.5.1 does: with d = f,
/// the three intervals [0, 10], [4, 14] and [8, 18], which all meet in [8, 10], would fail.
#[must_use]
pub fn intersect(sources: &[(NtpDuration, NtpDuration)]) -> Option<Agreement> {
    let mut edges = Vec::with_capacity(3 * sources.len());
    for &(offset, distance) in sources {
        let interval = Interval::around(offset, distance);
        edges.extend([(interval.low, Kind::Low), (offset, Kind::Mid), (interval.high, Kind::High)]);
    }
    edges.sort_unstable();
    let from_below = first_reached(edges.iter().copied(), Kind::Low);
    edges.sort_unstable_by_key(|&edge| Reverse(edge));
    let from_above = first_reached(edges.iter().copied(), Kind::High);
    // Depth c is note c - 1, so f = 0 is the last of as many notes as there are sources.
    (1..=from_below.len().min(from_above.len())).rev().find_map(|agreeing| {
        let (low, high) = (from_below[agreeing - 1], from_above[agreeing - 1]);
        let falsetickers = sources.len() - agreeing;
        let fits = low.midpoints + high.midpoints <= falsetickers && low.edge < high.edge;
        fits.then_some(Agreement { interval: Interval { low: low.edge, high: high.edge }, agreeing })
    })
}

/// Scans once; `opening` is the kind of edge by which an interval is entered in this direction.
fn first_reached(edges: impl Iterator<Item = (NtpDuration, Kind)>, opening: Kind) -> Vec<Reached> {
    let (mut depth, mut midpoints) = (0, 0);
    let mut reached = Vec::new();
    for (edge, kind) in edges {
        if kind == Kind::Mid {
            midpoints += 1;
        } else if kind == opening {
            depth += 1;
            if depth > reached.len() {
                reached.push(Reached { edge, midpoints });
            }
        } else {
            depth -= 1;
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn bits(bits: i64) -> NtpDuration {
        NtpDuration::from_bits(bits)
    }

    fn agreement(sources: &[(i64, i64)]) -> Option<(i64, i64, usize)> {
        let sources: Vec<_> =
            sources.iter().map(|&(offset, distance)| (bits(offset), bits(distance))).collect();
        let found = intersect(&sources)?;
        Some((found.interval.low.to_bits(), found.interval.high.to_bits(), found.agreeing))
    }

    /// Section 11.2.1, word for word and in O(n^2) for each f: an edge is where the depth is reached if so
    /// many intervals contain it.
    fn oracle(sources: &[(i64, i64)]) -> Option<(i64, i64, usize)> {
        let edges: Vec<(i64, i64, i64)> = sources
            .iter()
            .map(|&(offset, distance)| {
                (offset.saturating_sub(distance), offset, offset.saturating_add(distance))
            })
            .collect();
        let depth = |x: i64| edges.iter().filter(|(low, _, high)| *low <= x && x <= *high).count();
        for f in 0..sources.len() {
            let enough = |x: &i64| depth(*x) >= sources.len() - f;
            let Some(low) = edges.iter().map(|edge| edge.0).filter(enough).min() else { continue };
            let Some(high) = edges.iter().map(|edge| edge.2).filter(enough).max() else { continue };
            let below = edges.iter().filter(|edge| edge.1 < low).count();
            let above = edges.iter().filter(|edge| edge.1 > high).count();
            if below + above <= f && low < high {
                return Some((low, high, sources.len() - f));
            }
        }
        None
    }

    #[test]
    fn one_source_agrees_with_itself() {
        assert_eq!(agreement(&[(5, 3)]), Some((2, 8, 1)));
        assert_eq!(agreement(&[]), None);
    }

    /// [0, 10], [4, 14] and [8, 18] meet in [8, 10], which holds only the midpoint of the second; with f = 1,
    /// two of them meet from 4 to 14, which holds all three midpoints, 5, 9 and 13: d = 0 < f.
    #[test]
    fn fewer_midpoints_outside_than_allowed_is_success() {
        assert_eq!(agreement(&[(5, 5), (9, 5), (13, 5)]), Some((4, 14, 2)));
    }

    #[test]
    fn a_falseticker_is_left_outside() {
        assert_eq!(agreement(&[(0, 10), (2, 10), (1, 10), (100, 10)]), Some((-8, 10, 3)));
    }

    #[test]
    fn two_that_contradict_each_other_agree_one_by_one() {
        assert_eq!(agreement(&[(0, 10), (100, 10)]).map(|found| found.2), Some(1));
    }

    /// A wide interval that overlaps the others with its midpoint outside is the one falseticker allowed.
    #[test]
    fn an_interval_that_overlaps_with_its_midpoint_outside_is_false() {
        assert_eq!(agreement(&[(0, 10), (1, 10), (2, 10), (40, 35)]), Some((-8, 11, 3)));
    }

    #[test]
    fn touching_is_not_agreeing() {
        assert_eq!(agreement(&[(0, 10), (20, 10)]).map(|found| found.2), Some(1));
    }

    proptest! {
        #[test]
        fn agrees_with_the_oracle(sources in proptest::collection::vec((-50_i64..50, 1_i64..40), 0..14)) {
            prop_assert_eq!(agreement(&sources), oracle(&sources));
        }

        #[test]
        fn agrees_with_the_oracle_at_the_ends_of_the_range(
            sources in proptest::collection::vec((any::<i64>(), 1..=i64::MAX), 0..10)
        ) {
            prop_assert_eq!(agreement(&sources), oracle(&sources));
        }

        #[test]
        fn at_least_as_many_midpoints_lie_inside_as_agree(
            sources in proptest::collection::vec((-50_i64..50, 1_i64..40), 1..40)
        ) {
            let (low, high, agreeing) = agreement(&sources).expect("every interval has an inside");
            prop_assert!(sources.iter().filter(|source| (low..=high).contains(&source.0)).count() >= agreeing);
        }
    }
}
