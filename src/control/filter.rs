//! The clock filter: of the last eight samples of one source, which to believe and how far.
//!
//! Owns: the shift register and the peer variables theta, delta, epsilon, psi, t (RFC 5905 section 10). Does
//! not own: the reach register (the poll process asks for [`ClockFilter::shift_dummy`]) and any comparison
//! between sources.
//!
//! The one idea a newcomer lacks: queues only ever add delay, and mostly on one way. So the sample with the
//! *shortest delay* is the most accurate of the eight, even if it is not the latest; the others tell how much
//! the source varies, and how many are missing tells how little we know.
//!
//! Where we leave the text of section 10, and why:
//! - "If the first tuple epoch t_0 is not later than the last valid sample epoch tp, the routine exits
//!   without affecting the current peer variables." We keep offset, delay and t, but dispersion and jitter,
//!   which describe the whole register, follow every sample: otherwise a source whose first sample has the
//!   shortest delay would stay at 8 s of dispersion for eight polls, against observations (b) and (c) of the
//!   same section (and against A.5.2). A dummy tuple is no sample: it can only raise the dispersion.
//! - The formula of psi has 1/(n-1) outside the root, the text calls it "the RMS average". We take the RMS,
//!   as section 11.2.2 does for the selection jitter it is compared with.
//! - The sum counts the dispersion of the chosen sample half. It may be the oldest of the eight, so the bound
//!   is at least what that sample has grown to by itself.
//! - The popcorn suppressor (A.5.2 only) needs the poll interval to let the second sample in a row pass.
//!   Holding back at most one sample in a row does the same without it. It compares with the jitter *before*
//!   the spike: with the jitter that contains the spike, three times which no spike of a full register can
//!   exceed, it would never act.

use super::sample::{MAX_DISPERSION, Sample};
use crate::time::{Log2Seconds, Monotonic, NtpDuration, Ppm, Timestamp};

/// NSTAGE (RFC 5905 section 10).
pub const STAGES: usize = 8;
/// SGATE (RFC 5905 A.5.2): how many times the jitter a new offset may be away without being taken for a
/// spike.
const SPIKE_GATE: u32 = 3;
/// From so many samples on the dispersion falls below MAXDIST (section 10, observation (c)), and the jitter
/// means something.
pub const SAMPLES_NEEDED: u8 = 4;

/// What the filter says of its source at one moment: the peer variables of RFC 5905 section 10.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Estimate {
    /// theta of the chosen sample. > 0: our clock is behind.
    pub offset: NtpDuration,
    /// delta of the chosen sample, > 0.
    pub delay: NtpDuration,
    /// epsilon at `as_of`, growing at PHI from there on; > 0, at most [`MAX_DISPERSION`].
    pub dispersion: NtpDuration,
    /// psi: RMS of the other samples' offsets about the chosen one's, at least our precision.
    pub jitter: NtpDuration,
    /// t: when the chosen sample came.
    pub time: Timestamp<Monotonic>,
    /// Did the last insertion choose a sample later than any used before? (A sample is used once only.)
    pub is_new: bool,
    /// Real samples in the register, 1 to 8.
    pub samples: u8,
    /// The moment this is said of.
    pub as_of: Timestamp<Monotonic>,
}

impl Estimate {
    /// epsilon at a later moment: grown at PHI, at most [`MAX_DISPERSION`].
    #[must_use]
    pub fn dispersion_at(&self, now: Timestamp<Monotonic>) -> NtpDuration {
        grown(self.dispersion, self.as_of, now)
    }
}

/// The register of one source and what was last made of it.
#[derive(Clone, Debug)]
pub struct ClockFilter {
    precision: NtpDuration,
    /// Newest first. `None` is the dummy tuple (0, MAXDISP, MAXDISP, 0).
    stages: [Option<Sample>; STAGES],
    used: Option<Used>,
}

/// The peer variables as the last shift left them.
#[derive(Clone, Copy, Debug)]
struct Used {
    sample: Sample,
    jitter: NtpDuration,
    /// At `shifted_at`.
    dispersion: NtpDuration,
    shifted_at: Timestamp<Monotonic>,
    is_new: bool,
    /// Was the last insertion's best sample held back as a spike?
    held_spike: bool,
}

impl ClockFilter {
    /// An empty register. `precision` is our clock's, the floor of every jitter.
    #[must_use]
    pub const fn new(precision: Log2Seconds) -> Self {
        Self { precision: precision.to_duration(), stages: [None; STAGES], used: None }
    }

    /// Shifts a sample in and chooses again.
    pub fn insert(&mut self, sample: Sample) {
        self.shift(Some(sample));
        let sorted = self.by_delay();
        // The sample just shifted in is one of them: there is a best one.
        let best = sorted[0].unwrap_or(sample);
        let now = self.used.map_or(sample.time, |used| used.shifted_at.max(sample.time));
        let is_later = self.used.is_none_or(|used| best.time > used.sample.time);
        let is_spike = is_later && self.is_spike(best);
        let (chosen, jitter) = match self.used {
            // What a spike says is heard only if the next sample lets it stand.
            Some(used) if is_spike => (used.sample, used.jitter),
            Some(used) if !is_later => (used.sample, self.jitter_about(used.sample.offset)),
            _ => (best, self.jitter_about(best.offset)),
        };
        self.used = Some(Used {
            sample: chosen,
            jitter,
            dispersion: register_dispersion(&sorted, now).max(chosen.dispersion_at(now)),
            shifted_at: now,
            is_new: is_later && !is_spike,
            held_spike: is_spike,
        });
    }

    /// Shifts the dummy tuple (0, MAXDISP, MAXDISP, 0) in: section 10 has the poll process ask for it after
    /// three polls without an answer. (The skeleton, A.5.7.1, passes a delay of 0, which would sort it
    /// first.)
    pub fn shift_dummy(&mut self, now: Timestamp<Monotonic>) {
        self.shift(None);
        let register = register_dispersion(&self.by_delay(), now);
        if let Some(used) = &mut self.used {
            let kept = grown(used.dispersion, used.shifted_at, now);
            used.dispersion = register.max(kept);
            used.shifted_at = used.shifted_at.max(now);
            used.is_new = false;
            used.held_spike = false;
        }
    }

    /// The peer variables at `now`, if any sample is left in the register.
    #[must_use]
    pub fn estimate(&self, now: Timestamp<Monotonic>) -> Option<Estimate> {
        let samples = self.samples();
        let used = self.used.filter(|_| samples > 0)?;
        Some(Estimate {
            offset: used.sample.offset,
            delay: used.sample.delay,
            dispersion: grown(used.dispersion, used.shifted_at, now),
            jitter: used.jitter,
            time: used.sample.time,
            is_new: used.is_new,
            samples,
            as_of: now,
        })
    }

    /// Forgets everything, as after a step of our clock or when the source is another one.
    pub fn clear(&mut self) {
        self.stages = [None; STAGES];
        self.used = None;
    }

    /// Our clock's frequency was changed at `now` by this (positive: faster): from now on the samples say what they
    /// would have said if it had always run so. Otherwise every change of the frequency would look like
    /// jitter until the last older sample is gone, and the best sample would mislead if it is an old one.
    pub fn on_frequency_change(&mut self, now: Timestamp<Monotonic>, change: Ppm) {
        let retold = |sample: Sample| {
            // The clock reads now what it reads; before, it would have read less by this.
            let less = (now - sample.time) * change;
            Sample { offset: sample.offset + less, ..sample }
        };
        self.stages = self.stages.map(|stage| stage.map(retold));
        if let Some(mut used) = self.used.take() {
            used.sample = retold(used.sample);
            used.jitter = self.jitter_about(used.sample.offset);
            self.used = Some(used);
        }
    }

    fn shift(&mut self, sample: Option<Sample>) {
        self.stages.rotate_right(1);
        self.stages[0] = sample;
    }

    fn samples(&self) -> u8 {
        self.stages.iter().flatten().fold(0, |count, _| count + 1)
    }

    /// By delay, of equal ones the newest first, the dummies last. (A dummy's delay is MAXDISP; a real sample
    /// with a longer one is still worth more than none.)
    fn by_delay(&self) -> [Option<Sample>; STAGES] {
        let mut sorted = self.stages;
        sorted.sort_by_key(|stage| stage.map_or((true, NtpDuration::ZERO), |sample| (false, sample.delay)));
        sorted
    }

    /// A.5.2: is this offset further from the last one used than [`SPIKE_GATE`] times the jitter so far?
    fn is_spike(&self, best: Sample) -> bool {
        self.used.is_some_and(|used| {
            !used.held_spike
                && self.samples() > SAMPLES_NEEDED
                && (best.offset - used.sample.offset).magnitude() > used.jitter.times(SPIKE_GATE)
        })
    }

    /// psi: the RMS of the offsets about that of the chosen sample, over the n-1 others.
    fn jitter_about(&self, offset: NtpDuration) -> NtpDuration {
        let square = |sample: &Sample| (sample.offset - offset).seconds().powi(2);
        // The chosen sample adds nothing to the sum. In order of delay, so that the rounding is always the
        // same.
        let sum: f64 = self.by_delay().iter().flatten().map(square).sum();
        let others = f64::from(self.samples().saturating_sub(1).max(1));
        NtpDuration::from_seconds_f64((sum / others).sqrt()).max(self.precision)
    }
}

/// The sum of epsilon_i / 2^(i+1) over all eight stages, rounded up: a little less than 16 s when all are
/// dummies.
fn register_dispersion(sorted: &[Option<Sample>; STAGES], now: Timestamp<Monotonic>) -> NtpDuration {
    // Below 2^36 each (16 s), so below 2^44 in all.
    let sum = sorted.iter().enumerate().fold(0_i64, |sum, (index, stage)| {
        let dispersion = stage.map_or(MAX_DISPERSION, |sample| sample.dispersion_at(now));
        sum + (dispersion.to_bits() << (STAGES - 1 - index))
    });
    NtpDuration::from_bits((sum + (1 << STAGES) - 1) >> STAGES)
}

fn grown(dispersion: NtpDuration, from: Timestamp<Monotonic>, now: Timestamp<Monotonic>) -> NtpDuration {
    let growth = ((now - from) * Ppm::FREQUENCY_TOLERANCE).max(NtpDuration::ZERO);
    (dispersion + growth).min(MAX_DISPERSION)
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
