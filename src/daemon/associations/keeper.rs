//! The clock in our hands: what the controller wants done to it, what others did to it, what is remembered and told of it.

use crate::clock::{
    Change, Clock, DriftFile, Kept, MachineClocks, StepWatch, SystemClock, UntouchedClock, leap_of_today,
};
use crate::config::{Config, PassivePeersPolicy, Source};
use crate::control::Frequency;
use crate::control::discipline::Steering;
use crate::snapshot::SystemSnapshot;
use crate::sys::clock;
use crate::time::{NtpDuration, Ppm};
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// How often the drift file is written.
const DRIFT_PERIOD: Duration = Duration::from_secs(3600);
/// What it has to differ by, and what it is written to.
const DRIFT_LEAST_PPM: f64 = 1e-3;

/// The keeper.
#[derive(Debug)]
pub(super) struct Keeper {
    clock: Box<dyn Clock>,
    frequency: Frequency,
    drift: Option<DriftFile>,
    /// What the drift file says.
    drift_written: Option<Ppm>,
    next_drift: Instant,
    watch: StepWatch<MachineClocks>,
    /// Whether other programs have been told that it is kept.
    is_declared: bool,
    /// What went wrong last, so that it is logged once.
    trouble: Option<String>,
}

/// Does another program keep this clock, as the configuration has it?
pub(super) fn somebody_else_keeps_it(config: &Config) -> bool {
    let is_kept = config.reference.as_ref().is_some_and(|reference| reference.source == Source::System);
    is_kept && config.clock_control
}

/// Shall we steer it?
pub(in crate::daemon) fn wants_clock(config: &Config) -> bool {
    config.clock_control && may_have_sources(config) && !somebody_else_keeps_it(config)
}

/// Is there anybody by whom the clock could be set?
fn may_have_sources(config: &Config) -> bool {
    let guests = match config.passive_peers {
        PassivePeersPolicy::Refused => false,
        PassivePeersPolicy::Authenticated => config.keys.file.is_some(),
        PassivePeersPolicy::Anyone => true,
    };
    config.sources.give_time() || guests
}

impl Keeper {
    /// With the frequency that the clock is known to need.
    pub(super) fn new(config: &Config) -> (Self, Steering, Option<Ppm>) {
        let mut clock: Box<dyn Clock> = Box::new(UntouchedClock);
        if wants_clock(config) {
            match SystemClock::open() {
                Ok(opened) => clock = Box::new(opened),
                Err(error) => warn!(
                    %error,
                    "the clock cannot be set (that needs CAP_SYS_TIME): it is measured and served, but not kept; \
                     --no-clock-control says that this is meant"
                ),
            }
        }
        let steering = if clock.is_ours() { Steering::On } else { Steering::Off };
        let drift = config.clock.drift_file.clone().filter(|_| clock.is_ours()).map(DriftFile::new);
        let kept = drift.as_ref().and_then(read_drift);
        // What another daemon has set it to before us is as good as a drift file.
        let running = clock::kernel_clock_state().map(|state| state.frequency).ok();
        let frequency = kept.or(running.filter(|running| *running != Ppm::ZERO && clock.is_ours()));
        let keeper = Self {
            clock,
            frequency: Frequency { base: frequency.unwrap_or(Ppm::ZERO), slew: Ppm::ZERO },
            drift,
            drift_written: kept,
            next_drift: Instant::now() + DRIFT_PERIOD,
            watch: StepWatch::new(MachineClocks),
            is_declared: false,
            trouble: None,
        };
        (keeper, steering, frequency)
    }

    /// Is the clock ours to steer?
    pub(super) fn is_steering(&self) -> bool {
        self.clock.is_ours()
    }

    /// What it is set to.
    pub(super) const fn frequency(&self) -> Frequency {
        self.frequency
    }

    /// Steps it. `false`: it would not.
    pub(super) fn step(&mut self, by: NtpDuration) -> bool {
        let result = self.clock.step(by);
        self.watch.forgive();
        let text = result.err().map(|error| format!("the clock cannot be stepped: {error}"));
        let is_done = text.is_none();
        self.note(text);
        is_done
    }

    pub(super) fn set_frequency(&mut self, frequency: Frequency) {
        self.frequency = frequency;
        let result = self.clock.set_frequency(frequency.total());
        self.note(result.err().map(|error| format!("the clock's frequency cannot be set: {error}")));
    }

    /// What others have done to it since the last time: somebody stepped it, or a leap second came.
    pub(super) fn change(&mut self) -> Option<Change> {
        self.watch.change()
    }

    /// Once a second. `served`: what is served, while a source is selected.
    pub(super) fn tick(&mut self, served: Option<&SystemSnapshot>, jitter: NtpDuration) {
        self.watch.look_at_tai();
        if !self.is_steering() {
            return;
        }
        let kept = served.filter(|served| served.is_synchronised()).map(|served| {
            let now = clock::realtime();
            let dispersion = served.root_dispersion_at(now.to_ntp()).to_duration();
            Kept {
                leap: leap_of_today(served.leap, now),
                maximum_error: served.root_delay.half() + dispersion,
                estimated_error: jitter,
            }
        });
        if kept.is_some() || self.is_declared {
            self.is_declared = kept.is_some();
            if let Err(error) = self.clock.declare(kept) {
                self.note(Some(format!("other programs cannot be told of the clock: {error}")));
            }
        }
        if Instant::now() >= self.next_drift {
            self.next_drift = Instant::now() + DRIFT_PERIOD;
            self.write_drift();
        }
    }

    /// Without the slew, which nobody would end.
    pub(super) fn stop(&mut self) {
        if !self.is_steering() {
            return;
        }
        self.set_frequency(Frequency { slew: Ppm::ZERO, ..self.frequency });
        self.write_drift();
    }

    fn write_drift(&mut self) {
        let Some(drift) = &self.drift else { return };
        let base = self.frequency.base;
        let is_news =
            self.drift_written.is_none_or(|written| (written.ppm() - base.ppm()).abs() > DRIFT_LEAST_PPM);
        if !is_news {
            return;
        }
        match drift.write(base) {
            Ok(()) => self.drift_written = Some(base),
            Err(error) => warn!(file = %drift.path().display(), %error, "the drift file cannot be written"),
        }
    }

    fn note(&mut self, trouble: Option<String>) {
        if let Some(text) = trouble.as_ref().filter(|text| self.trouble.as_ref() != Some(text)) {
            error!("{text}");
        }
        self.trouble = trouble;
    }
}

fn read_drift(file: &DriftFile) -> Option<Ppm> {
    let shown = file.path().display();
    match file.read() {
        Ok(Some(frequency)) => {
            info!(file = %shown, ppm = frequency.ppm(), "drift file read");
            Some(frequency)
        }
        Ok(None) => {
            // Found out an hour later otherwise, when it is first written.
            if file.path().parent().is_some_and(|folder| !folder.is_dir()) {
                warn!(file = %shown, "the folder of the drift file does not exist");
            }
            None
        }
        Err(error) => {
            warn!(file = %shown, %error, "the drift file is of no use");
            None
        }
    }
}
