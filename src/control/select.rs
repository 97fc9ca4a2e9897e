//! Selection: which sources are right, and what they say together.
//!
//! Owns: the tests a source must pass (RFC 5905 section 11.2, accept() of A.5.5.3), the operator's options,
//! and the order of the algorithms. Does not own: the algorithms ([`intersect`], [`cluster()`], [`combine`])
//! and what is done with the result.
//!
//! The one idea a newcomer lacks: every source carries its [`SourceState`]; each stage takes the sources that
//! fail it out of the field and writes down why. What is left at the end steers the clock, what was written
//! is the report.
//!
//! # The operator's options
//! They mean what they mean to chrony:
//! - `noselect`: measured and shown, but has no say and no part.
//! - `trust`: taken for true. If a source with it is usable, only such sources have a vote on where the truth
//!   lies; it is a falseticker only if a majority of *them* says so. The others may take part where their
//!   whole interval, offset plus or minus root distance, lies inside the one the trusted agree on, so that
//!   they cannot move the clock beyond it.
//! - `require`: if any source has it, at least one that has must agree with the majority, or the clock is
//!   left alone. (Together with `noselect` on the only one, it never is.)
//! - `prefer`: of the sources that are right, those with it alone go on to clustering and combining, if there
//!   are any.
//! - `offset`: added to what was measured, against a known asymmetry of the way.
//!
//! # Before the first selection
//! One thing is chrony's and not the RFC's: as long as there is no system peer, a source that becomes usable
//! waits for the others that are just one sample behind. Otherwise the first to answer four times is a
//! majority of one, and if it is the false one, the clock is set by it until the others come a moment later.

use super::cluster::{Survivor, cluster};
use super::combine::combine;
use super::filter::{Estimate, SAMPLES_NEEDED};
use super::intersection::{Interval, intersect};
use super::state::{SourceId, SourceState};
use crate::time::{Log2Seconds, Monotonic, NtpDuration, NtpShort, Ppm, Timestamp};
use crate::wire::Leap;

/// MINDISP (RFC 5905 figure 6; the comment in A.5.5.4 says 10 ms): no round trip to the root counts as less.
pub const MIN_DISPERSION: NtpDuration = NtpDuration::from_nanoseconds(5_000_000);
/// MAXSTRAT (RFC 5905 section 7.2): from here on, unsynchronised.
const STRATUM_UNSYNCHRONISED: u8 = 16;
/// MAXPOLL (RFC 5905 figure 6), 36 h. Bounds what PHI * poll adds to the distance allowed.
const POLL_MAX: Log2Seconds = Log2Seconds(17);
/// How many times the best survivor's root distance the old system peer's may be, for it to stay.
///
/// A.5.5.1 keeps it as long as the strata are equal, however far it has drifted away. Between two samples of
/// a source its distance grows by PHI * poll, 15 ms at 1024 s, and falls again: twice is more than that does
/// to the distances of real servers, and less than the ones worth a hop differ by.
const HOP_DISTANCES: u32 = 2;

/// Does the source's reference id close a loop (RFC 5905 A.5.5.3)? Decided where addresses are known.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Loop {
    /// No.
    #[default]
    None,
    /// Its reference id is one of our addresses.
    FollowsUs,
    /// Its reference id is our system peer's.
    FollowsSystemPeer,
}

/// What the operator says about one source.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SourceOptions {
    /// Of the sources that are right, only those with this are used.
    pub prefer: bool,
    /// Taken for true unless others with this contradict it.
    pub trust: bool,
    /// One source with this must be right.
    pub require: bool,
    /// Only watched.
    pub noselect: bool,
    /// Added to each offset. > 0: our clock is further behind than measured. (chrony's `offset` has the same
    /// sign: if requests take 100 us longer than replies, it is -50 us.)
    pub offset: NtpDuration,
    /// Root distance allowed, instead of [`Options::maximum_distance`].
    pub maximum_distance: Option<NtpDuration>,
    /// Delay of the chosen sample allowed. `None`: any.
    pub maximum_delay: Option<NtpDuration>,
    /// Jitter allowed. `None`: any.
    pub maximum_jitter: Option<NtpDuration>,
}

/// What selection needs to know of one source.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Unique in one selection.
    pub id: SourceId,
    /// What its clock filter says; grown to the time of the selection here if it is older.
    pub estimate: Option<Estimate>,
    /// Of its last valid packet; 0 and 16 are unsynchronised.
    pub stratum: u8,
    /// Of its last valid packet.
    pub leap: Leap,
    /// DELTA of its last valid packet.
    pub root_delay: NtpShort,
    /// EPSILON of its last valid packet.
    pub root_dispersion: NtpShort,
    /// The reach register: 0 is unreachable.
    pub reach: u8,
    /// Does it follow us?
    pub follows: Loop,
    /// How often it is asked.
    pub poll: Log2Seconds,
    /// The operator's wishes.
    pub options: SourceOptions,
    /// Did it say anything believable for as long as the reach register remembers, were it only that it has no time?
    pub speaks: bool,
}

/// What holds for all sources.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// CMIN (RFC 5905 section 11.1), also called minsane: so many sources must agree. 0 is the same as 1.
    pub minimum_sources: u32,
    /// MAXDIST (RFC 5905 section 7.2): the largest root distance, PHI * poll not included. Also what a
    /// stratum is worth.
    pub maximum_distance: NtpDuration,
    /// The last selection's system peer, which stays if it is about as good. `None` if nothing was selected.
    pub system_peer: Option<SourceId>,
}

impl Default for Options {
    /// The RFC's: one source is enough, 1 s.
    fn default() -> Self {
        Self { minimum_sources: 1, maximum_distance: NtpDuration::from_seconds(1), system_peer: None }
    }
}

/// What the sources say together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Selection {
    /// Every candidate's state, in the order they were given.
    pub states: Vec<(SourceId, SourceState)>,
    /// Who steers the clock, the best merit first. Empty if nobody does.
    pub survivors: Vec<SourceId>,
    /// Where the majority says that the true offset lies, if there is a majority.
    pub interval: Option<Interval>,
    /// What to tell the clock; `None`: leave it alone.
    pub system: Option<System>,
}

/// The system variables that selection determines (RFC 5905 section 11.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct System {
    /// p: whose stratum, leap indicator and root delay become ours.
    pub peer: SourceId,
    /// THETA. > 0: our clock is behind.
    pub offset: NtpDuration,
    /// PSI, >= 0.
    pub jitter: NtpDuration,
    /// p.t, when the system peer's chosen sample came. Not later than the last update used = not to be used
    /// again (RFC 5905 section 11.2.3).
    pub time: Timestamp<Monotonic>,
}

impl Candidate {
    /// LAMBDA, the root distance at `now` (RFC 5905 A.5.5.2): how far the true offset can be from the
    /// measured one, at least half of [`MIN_DISPERSION`]. `None` without a sample.
    #[must_use]
    pub fn root_distance(&self, now: Timestamp<Monotonic>) -> Option<NtpDuration> {
        let estimate = self.estimate?;
        let round_trip = self.root_delay.to_duration() + estimate.delay;
        Some(
            round_trip.max(MIN_DISPERSION).half()
                + self.root_dispersion.to_duration()
                + estimate.dispersion_at(now).max(NtpDuration::ZERO)
                + estimate.jitter.max(NtpDuration::ZERO),
        )
    }

    /// Passes every test that needs no other source (accept() of A.5.5.3), or says which it fails.
    fn fit(
        &self,
        place: usize,
        options: &Options,
        now: Timestamp<Monotonic>,
    ) -> Result<Survivor, SourceState> {
        // Who says that he has no time leaves the register as it is (A.5.1.1), but is not far away.
        if self.reach == 0 && !self.speaks {
            return Err(SourceState::Unreachable);
        }
        if self.leap == Leap::Unsynchronised {
            return Err(SourceState::Unsynchronised);
        }
        if self.stratum == 0 || self.stratum >= STRATUM_UNSYNCHRONISED {
            return Err(SourceState::BadStratum { stratum: self.stratum });
        }
        if self.reach == 0 {
            return Err(SourceState::Unreachable);
        }
        match self.follows {
            Loop::None => {}
            Loop::FollowsUs => return Err(SourceState::FollowsUs),
            Loop::FollowsSystemPeer => return Err(SourceState::FollowsSystemPeer),
        }
        let (Some(estimate), Some(distance)) = (self.estimate, self.root_distance(now)) else {
            return Err(SourceState::Measuring { samples: 0 });
        };
        let limit = self.distance_limit(options);
        if distance > limit {
            return Err(if estimate.samples < SAMPLES_NEEDED {
                SourceState::Measuring { samples: estimate.samples }
            } else {
                SourceState::TooDistant { distance, limit }
            });
        }
        if let Some(limit) = self.options.maximum_delay.filter(|&limit| estimate.delay > limit) {
            return Err(SourceState::DelayTooLong { delay: estimate.delay, limit });
        }
        if let Some(limit) = self.options.maximum_jitter.filter(|&limit| estimate.jitter > limit) {
            return Err(SourceState::TooVariable { jitter: estimate.jitter, limit });
        }
        if self.options.noselect {
            return Err(SourceState::NotSelectable);
        }
        Ok(Survivor {
            id: self.id,
            place,
            offset: estimate.offset + self.options.offset,
            jitter: estimate.jitter,
            distance,
            stratum: self.stratum,
            merit: options.maximum_distance.times(u32::from(self.stratum)) + distance,
        })
    }

    /// MAXDIST + PHI * poll (A.5.5.3; section 10: a silent server leaves by distance, not by a timeout).
    fn distance_limit(&self, options: &Options) -> NtpDuration {
        let maximum = self.options.maximum_distance.unwrap_or(options.maximum_distance);
        maximum + self.poll.min(POLL_MAX).to_duration() * Ppm::FREQUENCY_TOLERANCE
    }
}

/// Selects (RFC 5905 section 11.2). The order of the candidates does not matter; ties go to the smaller id.
///
/// Costs a few sorts, n log n steps, and memory in proportion to n.
#[must_use]
pub fn select(candidates: &[Candidate], options: &Options, now: Timestamp<Monotonic>) -> Selection {
    let mut field = Field::enter(candidates, options, now);
    let interval = field.judge();
    let system = interval.and_then(|_| field.steer());
    Selection {
        states: candidates.iter().map(|candidate| candidate.id).zip(field.states).collect(),
        survivors: field.standing.iter().map(|survivor| survivor.id).collect(),
        interval,
        system,
    }
}

/// The sources still in, and what is known of each one.
struct Field<'a> {
    candidates: &'a [Candidate],
    options: &'a Options,
    /// By place among the candidates. Whoever is still standing is `Combined` for now.
    states: Vec<SourceState>,
    standing: Vec<Survivor>,
}

impl<'a> Field<'a> {
    fn enter(candidates: &'a [Candidate], options: &'a Options, now: Timestamp<Monotonic>) -> Self {
        let mut field = Self {
            candidates,
            options,
            states: Vec::with_capacity(candidates.len()),
            standing: Vec::with_capacity(candidates.len()),
        };
        for (place, candidate) in candidates.iter().enumerate() {
            let fit = candidate.fit(place, options, now);
            field.states.push(fit.err().unwrap_or(SourceState::Combined));
            field.standing.extend(fit);
        }
        field
    }

    /// Selection proper (section 11.2.1): leaves the truechimers standing, if they are the majority.
    fn judge(&mut self) -> Option<Interval> {
        if self.waits_for_measurements() {
            return self.dismiss_all(SourceState::WaitingForMeasurements);
        }
        let is_trusting = self.any_standing(|options| options.trust);
        let votes: Vec<_> = self
            .standing
            .iter()
            .filter(|survivor| !is_trusting || self.wishes(survivor).trust)
            .map(|survivor| (survivor.offset, survivor.distance))
            .collect();
        let agreement = intersect(&votes)?;
        let falsetickers = votes.len() - agreement.agreeing;
        if 2 * falsetickers >= votes.len() {
            let (agreeing, sources) = (counted(agreement.agreeing), counted(votes.len()));
            return self.dismiss_all(SourceState::NoMajority { agreeing, sources });
        }
        let interval = agreement.interval;
        self.keep(|survivor, wishes| {
            let claim = Interval::around(survivor.offset, survivor.distance);
            if !interval.contains(survivor.offset) {
                Err(SourceState::Falseticker {
                    offset: survivor.offset,
                    low: interval.low,
                    high: interval.high,
                })
            } else if is_trusting && !wishes.trust && !interval.encloses(claim) {
                Err(SourceState::Untrusted { distance: survivor.distance })
            } else {
                Ok(())
            }
        });
        Some(interval)
    }

    /// From the truechimers to the system variables (sections 11.2.2 and 11.2.3).
    fn steer(&mut self) -> Option<System> {
        let agreeing = counted(self.standing.len());
        if agreeing < self.options.minimum_sources {
            let minimum = self.options.minimum_sources;
            return self.dismiss_all(SourceState::WaitingForSources { agreeing, minimum });
        }
        let is_required = self.candidates.iter().any(|candidate| candidate.options.require);
        if is_required && !self.any_standing(|options| options.require) {
            return self.dismiss_all(SourceState::WaitingForRequired);
        }
        if self.any_standing(|options| options.prefer) {
            self.keep(|_, wishes| if wishes.prefer { Ok(()) } else { Err(SourceState::NotPreferred) });
        }
        let clustering = cluster(&self.standing);
        for (survivor, jitter) in clustering.outliers {
            self.states[survivor.place] = SourceState::Outlier { jitter };
        }
        self.standing = clustering.survivors;
        let combined = combine(&self.standing, clustering.selection_jitter)?;
        let peer = self.system_peer()?;
        self.states[peer.place] = SourceState::Selected;
        let time = self.candidates[peer.place].estimate?.time;
        Some(System { peer: peer.id, offset: combined.offset, jitter: combined.jitter, time })
    }

    /// The best survivor, or the old system peer if it survived and is about as good ([`HOP_DISTANCES`]).
    fn system_peer(&self) -> Option<Survivor> {
        let best = *self.standing.first()?;
        let stays = |old: &&Survivor| {
            Some(old.id) == self.options.system_peer
                && old.stratum == best.stratum
                && old.distance <= best.distance.times(HOP_DISTANCES)
        };
        Some(self.standing.iter().find(stays).copied().unwrap_or(best))
    }

    /// Nothing selected so far, and a source that is just one sample behind: see the head of this file.
    fn waits_for_measurements(&self) -> bool {
        let samples = |survivor: &Survivor| self.candidates[survivor.place].estimate.map(|it| it.samples);
        let Some(most) = self.standing.iter().filter_map(samples).max() else { return false };
        let is_next = |(candidate, state): (&Candidate, &SourceState)| match state {
            SourceState::Measuring { samples } => !candidate.options.noselect && samples + 1 >= most,
            _ => false,
        };
        self.options.system_peer.is_none() && self.candidates.iter().zip(&self.states).any(is_next)
    }

    fn wishes(&self, survivor: &Survivor) -> &'a SourceOptions {
        &self.candidates[survivor.place].options
    }

    fn any_standing(&self, wish: impl Fn(&SourceOptions) -> bool) -> bool {
        self.standing.iter().any(|survivor| wish(self.wishes(survivor)))
    }

    /// Takes those out that fail.
    fn keep(&mut self, test: impl Fn(&Survivor, &SourceOptions) -> Result<(), SourceState>) {
        let Self { candidates, states, standing, .. } = self;
        standing.retain(|survivor| match test(survivor, &candidates[survivor.place].options) {
            Ok(()) => true,
            Err(state) => {
                states[survivor.place] = state;
                false
            }
        });
    }

    /// Takes all out for one reason; the nothing that is left is the caller's result.
    fn dismiss_all<T>(&mut self, state: SourceState) -> Option<T> {
        for survivor in self.standing.drain(..) {
            self.states[survivor.place] = state;
        }
        None
    }
}

fn counted(sources: usize) -> u32 {
    u32::try_from(sources).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
