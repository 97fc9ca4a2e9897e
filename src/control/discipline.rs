//! A first discipline: how the selected offset becomes the clock's frequency and, rarely, a step.
//!
//! Owns: the estimate of our clock's offset and frequency error, and the choice between slew, step and refusal.
//! Does not own: the clock (the controller turns the verdicts into actions), nor which offset to believe.
//!
//! The one idea a newcomer lacks: this is no feedback loop with gains to be tuned for stability. It knows exactly
//! what it has done to the clock, so it can tell what the oscillator does by itself: a Kalman filter with two states
//! (offset, frequency error) watches the clock as if nobody touched it. The frequency is set to what it finds,
//! and the offset is worked off by running faster or slower for a while. What we do never enters what we
//! measure, so nothing can oscillate. (RFC 5905 section 12 has a PLL/FLL hybrid instead. It needs 15 minutes to
//! measure the frequency before it begins, and its gains are a compromise between noise and speed; the filter takes as
//! much of each measurement as the measurement is worth.)
//!
//! From RFC 5905 section 11.3 are the step threshold, the stepout (a large offset must persist before it is believed)
//! and the panic threshold.

use super::action::Frequency;
use crate::time::{Monotonic, NtpDuration, Ppm, Timestamp};

/// STEPT of RFC 5905: 125 ms in the text, 128 ms in the skeleton and in every implementation.
pub const STEP_THRESHOLD: NtpDuration = NtpDuration::from_bits(549_755_814);
/// WATCH of RFC 5905 figure 27: so long must a large offset persist before the clock is stepped.
pub const STEPOUT: NtpDuration = NtpDuration::from_seconds(900);
/// PANICT of RFC 5905 figure 27: beyond this nothing is done.
pub const PANIC_THRESHOLD: NtpDuration = NtpDuration::from_seconds(1000);
/// MAXFREQ of RFC 5905 A.5.5.6, and what Linux' adjtimex takes without changing the tick: 500 ppm.
const FREQUENCY_MAX_PPM: f64 = 500.0;

/// An offset is worked off in so many seconds, or longer where the frequency limit demands it. Short against a poll
/// interval, so that it is done before the next measurement; long enough that 1 ms means 62 ppm only.
const SLEW_SECONDS: f64 = 16.0;
/// Below this there is nothing to slew: a nanosecond is what the kernel resolves.
const SLEW_LEAST_SECONDS: f64 = 1e-9;
/// How far the frequency of an unknown oscillator may be off (one standard deviation): 200 ppm; cheap crystals
/// are specified for 100.
const FREQUENCY_PRIOR: f64 = 200e-6;
/// The same where a drift file tells the frequency: a day's temperature.
const FREQUENCY_KNOWN: f64 = 1e-6;
/// The random walk of the frequency, per square root of a second. 1e-9 is a good crystal at constant temperature,
/// 1e-7 a bad one in a draught; in between, nearer to the good one.
const WANDER: f64 = 3e-9;
/// A measurement further away than this many standard deviations is a surprise ...
const SURPRISE: f64 = 4.0;
/// ... and so many surprises in a row say that the model is wrong, not the measurements,
const SURPRISES_BELIEVED: u32 = 3;
/// so the filter's confidence is divided by this.
const DOUBT: f64 = 16.0;

/// May the first offset be beyond the panic threshold?
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum FirstStep {
    /// Once, at the start, any offset may be stepped (ntpd's -g).
    AnySize,
    /// The panic threshold holds from the start.
    #[default]
    Limited,
}

/// Does anybody but us steer the clock?
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Steering {
    /// We do.
    #[default]
    On,
    /// Measure and serve, but leave the clock alone (`--no-clock-control`).
    Off,
}

/// What the configuration says of the discipline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DisciplineOptions {
    /// Do we steer?
    pub steering: Steering,
    /// Offsets above are stepped; `None`: never, they are slewed however long that takes.
    pub step_threshold: Option<NtpDuration>,
    /// Offsets above are refused.
    pub panic_threshold: NtpDuration,
    /// May the first one be larger?
    pub first_step: FirstStep,
    /// The frequency as the drift file has it (positive: faster).
    pub frequency: Option<Ppm>,
}

impl Default for DisciplineOptions {
    fn default() -> Self {
        Self {
            steering: Steering::On,
            step_threshold: Some(STEP_THRESHOLD),
            panic_threshold: PANIC_THRESHOLD,
            first_step: FirstStep::Limited,
            frequency: None,
        }
    }
}

/// What becomes of an offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is used; the frequency may have changed.
    Used,
    /// Too large to be believed at once. Nothing is done, yet.
    Ignored,
    /// The clock must be stepped by this (positive: forward). The discipline takes it as done.
    Step(NtpDuration),
    /// Beyond the panic threshold; nothing is done.
    Panic,
}

/// Offset and frequency error of the clock, as estimated, with the covariance of the two.
#[derive(Clone, Copy, Debug)]
struct State {
    /// Seconds; positive: we are behind.
    offset: f64,
    /// As a fraction; positive: our oscillator is slow, and must be made faster by so much.
    frequency: f64,
    offset_variance: f64,
    covariance: f64,
    frequency_variance: f64,
}

/// The discipline.
#[derive(Clone, Debug)]
pub struct Discipline {
    options: DisciplineOptions,
    state: State,
    /// Up to when `state` is worked out, and since when `command` holds; `None` before the first offset.
    at: Option<Timestamp<Monotonic>>,
    command: Frequency,
    slew_ends: Option<Timestamp<Monotonic>>,
    /// What slewing has added to the clock up to `at`, seconds.
    slewed: f64,
    outlier_since: Option<Timestamp<Monotonic>>,
    surprises: u32,
    has_synchronised: bool,
}

impl Discipline {
    /// A discipline that has seen nothing.
    #[must_use]
    pub fn new(options: DisciplineOptions) -> Self {
        let base = options.frequency.unwrap_or(Ppm::ZERO);
        let deviation = if options.frequency.is_some() { FREQUENCY_KNOWN } else { FREQUENCY_PRIOR };
        let state = State {
            offset: 0.0,
            frequency: fraction(base),
            offset_variance: 0.0,
            covariance: 0.0,
            frequency_variance: deviation * deviation,
        };
        Self {
            options,
            state,
            at: None,
            command: Frequency { base, slew: Ppm::ZERO },
            slew_ends: None,
            slewed: 0.0,
            outlier_since: None,
            surprises: 0,
            has_synchronised: false,
        }
    }

    /// What the clock's frequency shall be now.
    #[must_use]
    pub const fn frequency(&self) -> Frequency {
        self.command
    }

    /// Do we steer?
    #[must_use]
    pub fn is_steering(&self) -> bool {
        self.options.steering == Steering::On
    }

    /// When the frequency must change again, because the offset is worked off then.
    #[must_use]
    pub const fn next(&self) -> Option<Timestamp<Monotonic>> {
        self.slew_ends
    }

    /// How far slewing has moved the clock since the start (positive: forward). An offset measured earlier has
    /// become smaller by how much this has grown meanwhile.
    #[must_use]
    pub fn slewed(&self, now: Timestamp<Monotonic>) -> NtpDuration {
        let since = self.at.map_or(0.0, |at| (now - at).seconds());
        NtpDuration::from_bits(((self.slewed + fraction(self.command.slew) * since) * 4_294_967_296.0) as i64)
    }

    /// The time of [`Self::next`] has come: the slew ends.
    pub fn on_time(&mut self, now: Timestamp<Monotonic>) {
        if self.slew_ends.is_some_and(|end| end <= now) {
            self.advance(now);
            self.command.slew = Ppm::ZERO;
            self.slew_ends = None;
        }
    }

    /// Somebody else stepped the clock (positive: forward).
    pub fn on_foreign_step(&mut self, by: NtpDuration) {
        self.state.offset -= by.seconds();
    }

    /// Takes the combined offset (positive: we are behind) with its jitter, `age` after it was measured. It is the
    /// offset of now as far as our commands are concerned; what the oscillator did meanwhile is not in it.
    pub fn update(
        &mut self,
        now: Timestamp<Monotonic>,
        offset: NtpDuration,
        jitter: NtpDuration,
        age: NtpDuration,
    ) -> Verdict {
        if !self.is_steering() {
            return Verdict::Used;
        }
        let size = offset.max(-offset);
        let any_size = !self.has_synchronised && self.options.first_step == FirstStep::AnySize;
        if size > self.options.panic_threshold && !any_size {
            return Verdict::Panic;
        }
        let age = age.seconds().max(0.0);
        let is_large = self.options.step_threshold.is_some_and(|threshold| size > threshold);
        if is_large && !(self.has_synchronised && self.expects(now, offset.seconds(), jitter.seconds(), age))
        {
            return self.on_outlier(now, offset);
        }
        self.outlier_since = None;
        self.has_synchronised = true;
        self.measure(now, offset.seconds(), jitter.seconds(), age);
        self.steer(now);
        Verdict::Used
    }

    /// RFC 5905 figure 28: a first offset is stepped at once (NSET, FSET), a later one only when outliers have come
    /// for the stepout time (SPIK).
    fn on_outlier(&mut self, now: Timestamp<Monotonic>, offset: NtpDuration) -> Verdict {
        if self.has_synchronised {
            let since = *self.outlier_since.get_or_insert(now);
            if now - since < STEPOUT {
                return Verdict::Ignored;
            }
        }
        self.advance(now);
        self.state.offset = 0.0;
        // What the step leaves is measured anew; what is known of the frequency stays.
        self.state.covariance = 0.0;
        self.state.offset_variance = offset.seconds().powi(2);
        self.command.slew = Ppm::ZERO;
        self.slew_ends = None;
        self.outlier_since = None;
        self.has_synchronised = true;
        Verdict::Step(offset)
    }

    /// Kalman's prediction: what the clock did by itself and by our command.
    fn advance(&mut self, now: Timestamp<Monotonic>) {
        let elapsed = self.at.map_or(0.0, |at| (now - at).seconds()).max(0.0);
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
        let wander = WANDER * WANDER;
        self.slewed += fraction(self.command.slew) * elapsed;
        let state = &mut self.state;
        state.offset += (state.frequency - fraction(self.command.total())) * elapsed;
        state.offset_variance += elapsed * (2.0 * state.covariance + elapsed * state.frequency_variance)
            + wander * elapsed.powi(3) / 3.0;
        state.covariance += elapsed * state.frequency_variance + wander * elapsed.powi(2) / 2.0;
        state.frequency_variance += wander * elapsed;
    }

    /// What a measurement of this age should say, and its variance without the measurement's own noise. It says what
    /// the offset was then, in terms of the frequency that the clock is set to: offset - age * (frequency - set
    /// frequency).
    fn prediction(&self, age: f64) -> (f64, f64) {
        let state = &self.state;
        let drift = state.frequency - fraction(self.command.base);
        let variance =
            state.offset_variance - 2.0 * age * state.covariance + age * age * state.frequency_variance;
        (state.offset - age * drift, variance)
    }

    /// Is a measurement where the model expects it? Then even a large offset is no spike: while the frequency is not
    /// known well, the clock may well drift beyond the step threshold between two measurements.
    fn expects(&mut self, now: Timestamp<Monotonic>, measured: f64, jitter: f64, age: f64) -> bool {
        self.advance(now);
        let (expected, variance) = self.prediction(age);
        (measured - expected).powi(2) <= SURPRISE * SURPRISE * (variance + jitter * jitter)
    }

    /// Kalman's update.
    fn measure(&mut self, now: Timestamp<Monotonic>, measured: f64, jitter: f64, age: f64) {
        let is_first = self.at.is_none();
        self.advance(now);
        let noise = jitter * jitter;
        if is_first {
            self.state.offset = measured + age * (self.state.frequency - fraction(self.command.base));
            self.state.offset_variance = noise + age * age * self.state.frequency_variance;
            self.state.covariance = age * self.state.frequency_variance;
            return;
        }
        self.doubt(measured, noise, age);
        let (expected, variance) = self.prediction(age);
        let (innovation, variance) = (measured - expected, variance + noise);
        if variance <= 0.0 {
            return;
        }
        // P H' for H = [1, -age].
        let state = &mut self.state;
        let offset_part = state.offset_variance - age * state.covariance;
        let frequency_part = state.covariance - age * state.frequency_variance;
        let (offset_gain, frequency_gain) = (offset_part / variance, frequency_part / variance);
        let limit = FREQUENCY_MAX_PPM * 1e-6;
        state.offset += offset_gain * innovation;
        state.frequency = (state.frequency + frequency_gain * innovation).clamp(-limit, limit);
        state.offset_variance = (state.offset_variance - offset_gain * offset_part).max(0.0);
        state.covariance -= offset_gain * frequency_part;
        state.frequency_variance = (state.frequency_variance - frequency_gain * frequency_part).max(0.0);
    }

    /// Are the measurements persistently not where the filter expects them? Then it trusts itself less.
    fn doubt(&mut self, measured: f64, noise: f64, age: f64) {
        let (expected, variance) = self.prediction(age);
        if (measured - expected).powi(2) <= SURPRISE * SURPRISE * (variance + noise) {
            self.surprises = 0;
            return;
        }
        self.surprises += 1;
        if self.surprises >= SURPRISES_BELIEVED {
            self.surprises = 0;
            self.state.offset_variance *= DOUBT;
            self.state.covariance *= DOUBT;
            self.state.frequency_variance *= DOUBT;
        }
    }

    /// Sets the frequency to the estimate, and the slew to what works the offset off.
    fn steer(&mut self, now: Timestamp<Monotonic>) {
        let base_ppm = (self.state.frequency * 1e6).clamp(-FREQUENCY_MAX_PPM, FREQUENCY_MAX_PPM);
        let wanted = self.state.offset / SLEW_SECONDS * 1e6;
        let slew_ppm = wanted.clamp(-FREQUENCY_MAX_PPM - base_ppm, FREQUENCY_MAX_PPM - base_ppm);
        let seconds = self.state.offset / (slew_ppm * 1e-6);
        let is_worth_it = self.state.offset.abs() >= SLEW_LEAST_SECONDS && slew_ppm != 0.0;
        self.command.base = Ppm::from_ppm(base_ppm);
        self.command.slew = if is_worth_it { Ppm::from_ppm(slew_ppm) } else { Ppm::ZERO };
        self.slew_ends = is_worth_it.then(|| now + NtpDuration::from_nanoseconds((seconds * 1e9) as i64));
    }
}

fn fraction(frequency: Ppm) -> f64 {
    frequency.ppm() * 1e-6
}

#[cfg(test)]
#[path = "discipline_tests.rs"]
mod tests;
