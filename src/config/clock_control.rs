//! The checked configuration of which sources are believed and how the clock is kept: `[selection]` and `[clock]`.

use super::{duration, values};
use crate::control::ControllerOptions;
use crate::control::discipline::{PANIC_THRESHOLD, STEP_THRESHOLD};
use crate::time::NtpDuration;
use clap::ValueEnum;
use serde::Serialize;
use std::path::PathBuf;

/// `[selection]`: which sources are believed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Selection {
    /// So many must agree, 1 to 16.
    pub min_sources: u8,
    /// The largest root distance, 1 ms to 16 s.
    #[serde(serialize_with = "duration::serialize")]
    pub max_distance: NtpDuration,
}

impl Default for Selection {
    fn default() -> Self {
        Self { min_sources: 1, max_distance: ControllerOptions::default().maximum_distance }
    }
}

/// `[clock]`: how the clock is steered, unless `clock-control` is off.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClockControl {
    /// Larger offsets are stepped; 1 ms to 1 h. `None`: never, they are slewed however long that takes.
    #[serde(serialize_with = "duration::serialize_or_off")]
    pub step_threshold: Option<NtpDuration>,
    /// Nothing is done about larger ones; 1 s to 68 years.
    #[serde(serialize_with = "duration::serialize")]
    pub panic_threshold: NtpDuration,
    /// May the first offset be larger than that?
    pub first_step: FirstStepPolicy,
    /// Where the clock's frequency error is kept over restarts: absolute. `None`: nowhere.
    #[serde(serialize_with = "values::path_or_off")]
    pub drift_file: Option<PathBuf>,
}

impl Default for ClockControl {
    fn default() -> Self {
        Self {
            step_threshold: Some(STEP_THRESHOLD),
            panic_threshold: PANIC_THRESHOLD,
            first_step: FirstStepPolicy::default(),
            drift_file: None,
        }
    }
}

/// What may be done about the first offset.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum FirstStepPolicy {
    /// The panic threshold holds from the start
    #[default]
    Limited,
    /// Once, at the start, the clock is set however wrong it is
    AnySize,
}
