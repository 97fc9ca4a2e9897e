//! The cluster algorithm: of the sources that may be right, drop those that agree least with the rest.
//!
//! Owns: RFC 5905 section 11.2.2. Does not own: who may be right, and what is made of the survivors.
//!
//! The one idea a newcomer lacks: the survivor with the largest selection jitter is always the one furthest
//! from the mean, because the sum of squared distances to all others is n * (theta - mean)^2 plus what is the
//! same for all. So it is the lowest or the highest offset, and after one sort each round looks at two of
//! them. The RFC's rounds over all pairs would take n^3 steps (its NMAX of 50 bounds that); these take n log
//! n, so no table needs to be cut.
//!
//! All sums are whole numbers: no rounding decides who stays, and the order of the sources does not matter.

use super::state::SourceId;
use crate::time::NtpDuration;
use std::collections::VecDeque;

/// NMIN (RFC 5905 section 11.1): the algorithm leaves so many alone.
pub const SURVIVORS_MIN: usize = 3;

/// Offsets further than this from the lowest one count as this far, about 24 days, so that the sums of a
/// million squares fit 128 bits. Sources that a majority agrees on lie within seconds.
const SPREAD_MAX: i128 = 1 << 53;

/// A truechimer on its way into the average: the RFC's (p, theta_p, psi_p, lambda_p).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Survivor {
    /// Who.
    pub id: SourceId,
    /// Where the caller keeps it; no meaning here.
    pub place: usize,
    /// theta, the operator's correction included. > 0: our clock is behind.
    pub offset: NtpDuration,
    /// psi, the source's own jitter, > 0.
    pub jitter: NtpDuration,
    /// The root distance, > 0.
    pub distance: NtpDuration,
    /// 1 to 15.
    pub stratum: u8,
    /// stratum * MAXDIST + root distance: less is better.
    pub merit: NtpDuration,
}

/// What the algorithm found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Clustering {
    /// Who stays, the best merit first.
    pub survivors: Vec<Survivor>,
    /// Who was dropped, in that order, each with the selection jitter it had then.
    pub outliers: Vec<(Survivor, NtpDuration)>,
    /// PSI_s: the largest selection jitter of the survivors, >= 0; 0 for one.
    pub selection_jitter: NtpDuration,
}

/// Drops the survivor with the largest selection jitter until none has more than the smallest peer jitter, or
/// [`SURVIVORS_MIN`] are left. Ties go against the worse merit, then the larger id.
#[must_use]
pub fn cluster(survivors: &[Survivor]) -> Clustering {
    let mut sorted = survivors.to_vec();
    sorted.sort_unstable_by_key(|survivor| (survivor.offset, survivor.merit, survivor.id));
    let sorted: Vec<(usize, Survivor)> = sorted.into_iter().enumerate().collect();
    let mut rounds = Rounds::new(&sorted);
    let mut outliers = Vec::new();
    while rounds.count > SURVIVORS_MIN && !rounds.agree() {
        let jitter = rounds.selection_jitter();
        outliers.extend(rounds.drop_furthest().map(|survivor| (survivor, jitter)));
    }
    let selection_jitter = rounds.selection_jitter();
    let mut survivors: Vec<Survivor> = rounds.groups.iter().copied().flatten().map(|entry| entry.1).collect();
    survivors.sort_unstable_by_key(|survivor| (survivor.merit, survivor.id));
    Clustering { survivors, outliers, selection_jitter }
}

/// Survivors by offset with their positions, and the sums over those still in.
struct Rounds<'a> {
    /// Equal offsets together, in each the worst merit last.
    groups: VecDeque<&'a [(usize, Survivor)]>,
    /// The lowest offset, from which all are counted.
    base: NtpDuration,
    count: usize,
    sum: i128,
    sum_of_squares: i128,
    /// Peer jitters and their positions, the largest first: the last one still in is the smallest.
    jitters: Vec<(NtpDuration, usize)>,
    dropped: Vec<bool>,
}

impl<'a> Rounds<'a> {
    fn new(sorted: &'a [(usize, Survivor)]) -> Self {
        let mut jitters: Vec<_> =
            sorted.iter().map(|(position, survivor)| (survivor.jitter, *position)).collect();
        jitters.sort_unstable_by(|one, other| other.cmp(one));
        let mut rounds = Self {
            groups: sorted.chunk_by(|one, next| one.1.offset == next.1.offset).collect(),
            base: sorted.first().map_or(NtpDuration::ZERO, |entry| entry.1.offset),
            count: sorted.len(),
            sum: 0,
            sum_of_squares: 0,
            jitters,
            dropped: vec![false; sorted.len()],
        };
        for (_, survivor) in sorted {
            let away = rounds.away(survivor);
            rounds.sum += away;
            rounds.sum_of_squares += away * away;
        }
        rounds
    }

    /// How far above the lowest offset, in 2^-32 s.
    fn away(&self, survivor: &Survivor) -> i128 {
        let away = i128::from(survivor.offset.to_bits()) - i128::from(self.base.to_bits());
        away.min(SPREAD_MAX)
    }

    /// n - 1 times the square of this survivor's selection jitter.
    fn spread(&self, survivor: &Survivor) -> i128 {
        let away = self.away(survivor);
        self.count as i128 * away * away - 2 * away * self.sum + self.sum_of_squares
    }

    /// Is the furthest one in the last group rather than in the first?
    fn furthest_is_last(&self) -> bool {
        let rank = |group: Option<&&'a [(usize, Survivor)]>| {
            let worst = group.and_then(|group| group.last()).map(|entry| entry.1)?;
            let from_mean = self.count as i128 * self.away(&worst) - self.sum;
            Some((from_mean.abs(), worst.merit, worst.id))
        };
        rank(self.groups.back()) > rank(self.groups.front())
    }

    fn furthest(&self) -> Option<&Survivor> {
        let group = if self.furthest_is_last() { self.groups.back() } else { self.groups.front() };
        group.and_then(|group| group.last()).map(|entry| &entry.1)
    }

    fn furthest_spread(&self) -> i128 {
        self.furthest().map_or(0, |survivor| self.spread(survivor))
    }

    /// psi_max < psi_min: dropping more would improve nothing.
    fn agree(&mut self) -> bool {
        while self.jitters.last().is_some_and(|&(_, position)| self.dropped[position]) {
            self.jitters.pop();
        }
        let smallest =
            self.jitters.last().map_or(0, |entry| i128::from(entry.0.to_bits())).clamp(0, SPREAD_MAX);
        self.furthest_spread() < (self.count as i128 - 1) * smallest * smallest
    }

    /// psi_max, 0 for a single one.
    fn selection_jitter(&self) -> NtpDuration {
        let others = self.count.saturating_sub(1).max(1) as f64;
        let bits = (self.furthest_spread() as f64 / others).sqrt();
        NtpDuration::from_bits(bits.round() as i64)
    }

    fn drop_furthest(&mut self) -> Option<Survivor> {
        let is_last = self.furthest_is_last();
        let group = if is_last { self.groups.pop_back() } else { self.groups.pop_front() }?;
        let (&(position, survivor), rest) = group.split_last()?;
        match rest {
            [] => {}
            _ if is_last => self.groups.push_back(rest),
            _ => self.groups.push_front(rest),
        }
        let away = self.away(&survivor);
        self.count -= 1;
        self.sum -= away;
        self.sum_of_squares -= away * away;
        self.dropped[position] = true;
        Some(survivor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Offset, jitter and merit in units of 2^-32 s.
    fn survivors(values: &[(i64, i64, i64)]) -> Vec<Survivor> {
        let survivor = |(place, &(offset, jitter, merit)): (usize, &(i64, i64, i64))| Survivor {
            id: SourceId(place as u32),
            place,
            offset: NtpDuration::from_bits(offset),
            jitter: NtpDuration::from_bits(jitter),
            distance: NtpDuration::from_bits(merit),
            stratum: 1,
            merit: NtpDuration::from_bits(merit),
        };
        values.iter().enumerate().map(survivor).collect()
    }

    fn ids<'a>(survivors: impl IntoIterator<Item = &'a Survivor>) -> Vec<u32> {
        survivors.into_iter().map(|survivor| survivor.id.0).collect()
    }

    /// Section 11.2.2 as written: every pair in every round.
    fn oracle(survivors: &[Survivor]) -> Clustering {
        let mut left = survivors.to_vec();
        left.sort_by_key(|survivor| (survivor.merit, survivor.id));
        let mut outliers = Vec::new();
        loop {
            let square =
                |one: &Survivor, other: &Survivor| (i128::from((one.offset - other.offset).to_bits())).pow(2);
            let spread = |one: &Survivor| left.iter().map(|other| square(one, other)).sum::<i128>();
            let n = left.len();
            let Some(worst) =
                (0..n).max_by_key(|&index| (spread(&left[index]), left[index].merit, left[index].id))
            else {
                return Clustering { survivors: left, outliers, selection_jitter: NtpDuration::ZERO };
            };
            let others = (n as i128 - 1).max(1);
            let psi =
                NtpDuration::from_bits((spread(&left[worst]) as f64 / others as f64).sqrt().round() as i64);
            let psi_min = left.iter().map(|survivor| i128::from(survivor.jitter.to_bits())).min().unwrap();
            if n <= 3 || spread(&left[worst]) < others * psi_min * psi_min {
                return Clustering { survivors: left, outliers, selection_jitter: psi };
            }
            outliers.push((left.remove(worst), psi));
        }
    }

    /// Checklist 55. Offsets 0, 1, 2, 3, 100: the last one is sqrt((100^2 + 99^2 + 98^2 + 97^2) / 4) = 98.5
    /// from the others. Of 0 to 3 then the ends tie at sqrt((1 + 4 + 9) / 3), and the worse merit goes.
    #[test]
    fn the_largest_selection_jitter_goes_until_three_are_left() {
        let five = survivors(&[(0, 1, 50), (1, 1, 40), (2, 1, 30), (3, 1, 20), (100, 1, 10)]);
        let found = cluster(&five);
        assert_eq!(ids(found.outliers.iter().map(|outlier| &outlier.0)), [4, 0]);
        assert_eq!(found.outliers[0].1.to_bits(), 99, "98.5 rounded");
        assert_eq!(ids(&found.survivors), [3, 2, 1], "the best merit first");
        // sqrt((1 + 4) / 2) = 1.58
        assert_eq!(found.selection_jitter.to_bits(), 2);
    }

    #[test]
    fn agreement_within_the_smallest_peer_jitter_stops_it() {
        let jitters =
            |jitter| survivors(&[(0, jitter, 50), (1, 90, 40), (2, 90, 30), (3, 90, 20), (4, 90, 10)]);
        // psi_max is sqrt((1 + 4 + 9 + 16) / 4) = 2.74.
        assert_eq!(cluster(&jitters(3)).outliers, []);
        assert_eq!(cluster(&jitters(2)).outliers.len(), 1, "without the first one, the smallest is 90");
    }

    #[test]
    fn few_are_left_alone() {
        for count in 0..=3 {
            let far = survivors(&[(0, 1, 3), (1_000_000, 1, 2), (-1_000_000, 1, 1)][..count]);
            let found = cluster(&far);
            assert_eq!((found.survivors.len(), found.outliers.len()), (count, 0));
            assert_eq!(found.selection_jitter == NtpDuration::ZERO, count < 2);
        }
    }

    proptest! {
        #[test]
        fn agrees_with_all_pairs_in_all_rounds(
            values in proptest::collection::vec((-20_i64..20, 1_i64..12, 1_i64..6), 0..16)
        ) {
            prop_assert_eq!(cluster(&survivors(&values)), oracle(&survivors(&values)));
        }

        #[test]
        fn any_numbers_give_an_answer(
            values in proptest::collection::vec((any::<i64>(), any::<i64>(), any::<i64>()), 0..40)
        ) {
            let found = cluster(&survivors(&values));
            prop_assert_eq!(found.survivors.len() + found.outliers.len(), values.len());
            prop_assert!(found.survivors.len() >= values.len().min(3));
            prop_assert!(found.selection_jitter >= NtpDuration::ZERO);
        }
    }
}
