//! A host's clock: an oscillator that is wrong and wanders, and what its host does about that.

use crate::random::Random;
use timeball::time::{Monotonic, NtpDuration, Realtime, Timestamp};

/// How a host's clock starts and runs.
#[derive(Clone, Copy, Debug)]
pub struct ClockSetup {
    /// Seconds; positive: it starts ahead of the truth.
    pub ahead: f64,
    /// Parts per million; positive: its oscillator runs fast.
    pub fast_ppm: f64,
    /// Random walk of that, as a fraction per square root of a second.
    pub wander: f64,
}

impl ClockSetup {
    /// A clock that is right and stays so.
    pub const PERFECT: Self = Self { ahead: 0.0, fast_ppm: 0.0, wander: 0.0 };
}

/// The wander is applied in steps of this many seconds.
const WANDER_STEP: f64 = 8.0;

/// The clock.
#[derive(Clone, Debug)]
pub struct Clock {
    /// True time, in nanoseconds since the run began, up to which it is worked out.
    at: i64,
    /// What the truth was when the run began, in nanoseconds since 1970.
    epoch: i64,
    /// Steps, in nanoseconds.
    stepped: i64,
    /// How far it has run ahead by running at all, in nanoseconds.
    run: f64,
    /// The oscillator's error, positive: fast.
    error: f64,
    wander: f64,
    /// What its host set, positive: faster.
    command: f64,
    random: Random,
}

impl Clock {
    pub fn new(setup: ClockSetup, epoch: i64, random: Random) -> Self {
        Self {
            at: 0,
            epoch,
            stepped: (setup.ahead * 1e9) as i64,
            run: 0.0,
            error: setup.fast_ppm * 1e-6,
            wander: setup.wander,
            command: 0.0,
            random,
        }
    }

    /// Lets it run until this true time.
    fn advance(&mut self, now: i64) {
        let mut left = ((now - self.at) as f64 / 1e9).max(0.0);
        self.at = self.at.max(now);
        while left > 0.0 {
            let part = if self.wander > 0.0 { left.min(WANDER_STEP) } else { left };
            self.run += ((1.0 + self.error) * (1.0 + self.command) - 1.0) * part * 1e9;
            self.error += self.wander * part.sqrt() * self.random.normal();
            left -= part;
        }
    }

    /// What it says.
    pub fn read(&mut self, now: i64) -> Timestamp<Realtime> {
        self.advance(now);
        Timestamp::from_nanoseconds(self.epoch + self.at + self.stepped + self.run.round() as i64)
    }

    /// The same without steps, and from a boot some time ago.
    pub fn monotonic(&mut self, now: i64) -> Timestamp<Monotonic> {
        self.advance(now);
        Timestamp::from_nanoseconds(self.at + self.run.round() as i64 + 1_000_000_000_000)
    }

    /// Seconds; positive: ahead of the truth.
    pub fn ahead(&mut self, now: i64) -> f64 {
        self.advance(now);
        self.stepped as f64 / 1e9 + self.run / 1e9
    }

    pub fn step(&mut self, now: i64, by: NtpDuration) {
        self.advance(now);
        self.stepped += by.to_nanoseconds();
    }

    pub fn set_frequency(&mut self, now: i64, fraction: f64) {
        self.advance(now);
        self.command = fraction;
    }
}
