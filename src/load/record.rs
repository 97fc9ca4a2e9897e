//! What a run measured, as `--json` prints it and the report page reads it again.
//!
//! Owns: the types and their meaning. Does not own: how they are filled (the engines) or shown (`cli`, the page).
//!
//! The one idea a newcomer lacks: percentiles can be neither averaged nor merged, so each record carries its whole
//! histograms, in the HdrHistogram V2 format that other tools read too; the percentiles beside them are for people.

use super::encoded;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest latency a histogram holds, in nanoseconds: 60 s.
pub const LATENCY_MAX_NANOSECONDS: u64 = 60_000_000_000;

/// Significant decimal digits of every histogram: a value is off by less than 0.1 %.
pub const SIGNIFICANT_DIGITS: u8 = 3;

/// A generator that offers less than this share of what it should is itself the limit.
const OFFERED_SHARE_MIN: f64 = 0.99;

/// The generator's own lateness may be this share of the round trip it is part of.
const SEND_DELAY_SHARE_MAX: f64 = 0.1;

/// The version of this format. A reader refuses another.
pub const FORMAT: u32 = 1;

/// An empty histogram of latencies, in nanoseconds from 1 to [`LATENCY_MAX_NANOSECONDS`].
#[must_use]
#[expect(clippy::missing_panics_doc, reason = "the bounds are constants")]
pub fn empty_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NANOSECONDS, SIGNIFICANT_DIGITS)
        .expect("the bounds are in order and the digits within 0 to 5")
}

/// One run against one server: one or more steps.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Run {
    /// [`FORMAT`].
    pub format: u32,
    /// What the report calls this run: `--label`, or the target's address.
    pub label: String,
    /// The load generator's version.
    pub version: String,
    /// When it began, RFC 3339, UTC.
    pub started: String,
    /// Who was asked, with the port.
    pub target: String,
    /// On which interface.
    pub interface: String,
    /// `basic`; later also `interleaved`.
    pub mode: String,
    /// How many clients asked.
    pub clients: u64,
    /// Their addresses, as a prefix.
    pub sources: String,
    /// The engine that carried the packets.
    pub engine: String,
    /// Why that one.
    pub engine_reason: String,
    /// The machine the generator ran on.
    pub machine: Machine,
    /// A signal ended the run before its time: its last step is shorter than planned, and further ones are missing.
    #[serde(default)]
    pub interrupted: bool,
    /// Why the run ended before its time, where the engine could not go on.
    #[serde(default)]
    pub failure: Option<String>,
    /// What was offered and what came of it, in the order it was done.
    pub steps: Vec<Step>,
}

/// The generator's machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// How many CPUs are online.
    pub cpus: usize,
    /// The kernel's release.
    pub kernel: String,
}

/// One offered rate and what came of it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Requests a second that were intended; none when saturating.
    pub intended_per_second: Option<f64>,
    /// From the first request's intended time to the last one's departure, in seconds.
    pub duration_seconds: f64,
    /// Requests sent.
    pub offered: u64,
    /// Requests a second that were sent.
    pub offered_per_second: f64,
    /// Requests that were due but could not leave, in the step or half a second after it. Not in `offered`.
    pub send_failures: u64,
    /// Requests whose reply came in time and was right in every respect.
    pub answered: u64,
    /// Replies a second.
    pub answered_per_second: f64,
    /// Requests refused by a kiss-o'-death packet, by its code.
    pub kisses: BTreeMap<String, u64>,
    /// Requests whose right reply came after the timeout.
    pub late: u64,
    /// Requests that were open, their replies not overdue, when the step ended before its time: neither answered nor lost.
    #[serde(default)]
    pub in_flight: u64,
    /// Requests without a right reply: `offered` less the four above.
    pub lost: u64,
    /// Replies to what had its reply already.
    pub duplicates: u64,
    /// Replies that were wrong, by what was wrong with them.
    pub invalid: BTreeMap<String, u64>,
    /// Right replies, late ones included, whose UDP checksum was left for hardware to finish, as on veth between local
    /// sockets.
    pub unfinished_checksums: u64,
    /// From the intended time of a request to the arrival of its reply; answered requests only.
    pub round_trip: Latencies,
    /// From the server's receive timestamp to its transmit timestamp, as the server says; late replies included.
    pub turnaround: Latencies,
    /// From a request's intended time to its departure: the generator's own lateness, contained in `round_trip`.
    pub send_delay: Latencies,
}

/// Why a text is no record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is another version's.
    #[error("format {0}: must be {FORMAT}, made by another version of timeball")]
    Format(u32),
    /// A histogram in it is none of ours. There may be none at all, but not another.
    #[error("step {step}, {kind}: must be a histogram of 1 ns to 60 s with three digits")]
    Histogram {
        /// Which step, from 1.
        step: usize,
        /// Which of its histograms.
        kind: &'static str,
    },
    /// It is something else.
    #[error("not the record of a run (timeball load --json): {0}")]
    Other(#[from] serde_json::Error),
}

impl Run {
    /// Reads what `--json` printed.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn from_json(text: &str) -> Result<Self, RecordError> {
        // Another version's record may lack or have anything but this.
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let Versioned { format } = serde_json::from_str(text)?;
        if format != FORMAT {
            return Err(RecordError::Format(format));
        }
        let run: Self = serde_json::from_str(text)?;
        for (index, step) in run.steps.iter().enumerate() {
            for (kind, latencies) in step.kinds() {
                if !latencies.histogram.is_empty() && latencies.histogram().is_none() {
                    return Err(RecordError::Histogram { step: index + 1, kind });
                }
            }
        }
        Ok(run)
    }
}

impl Step {
    /// Its three kinds of latency, with their names.
    #[must_use]
    pub const fn kinds(&self) -> [(&'static str, &Latencies); 3] {
        [("round-trip", &self.round_trip), ("turnaround", &self.turnaround), ("send-delay", &self.send_delay)]
    }

    /// `lost` and `late`, as a share of what was offered and is not in flight: 0 to 1, unless a record that nobody vouches
    /// for says otherwise. Without an offer: 0.
    #[must_use]
    pub fn loss(&self) -> f64 {
        let settled = self.offered.saturating_sub(self.in_flight);
        // The sum of two numbers from anywhere may not fit 64 bits.
        if settled == 0 { 0.0 } else { (self.lost as f64 + self.late as f64) / settled as f64 }
    }

    /// The share of the intended requests that was offered, if it is so small that the generator, not the server, set the
    /// numbers. `None` when saturating.
    #[must_use]
    pub fn offered_too_little(&self) -> Option<f64> {
        let share = self.offered_per_second / self.intended_per_second?;
        (share < OFFERED_SHARE_MIN).then_some(share)
    }

    /// The send delay of 99 % as a share of the round trip of 99 %, if it is so large that the generator's own lateness is
    /// much of what was measured.
    #[must_use]
    pub fn sent_too_late(&self) -> Option<f64> {
        let share = self.send_delay.p99 as f64 / self.round_trip.p99 as f64;
        (self.round_trip.p99 > 0 && share > SEND_DELAY_SHARE_MAX).then_some(share)
    }
}

/// A histogram, and what people ask of it. Nanoseconds; 0 where nothing was counted.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Latencies {
    /// How many values.
    pub count: u64,
    /// The smallest.
    pub min: u64,
    /// The mean.
    pub mean: f64,
    /// Half are at most this.
    pub p50: u64,
    /// 90 % are at most this.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p99_9: u64,
    /// 99.99 %.
    pub p99_99: u64,
    /// The largest.
    pub max: u64,
    /// All of it: HdrHistogram V2, deflated, base64.
    pub histogram: String,
}

impl Latencies {
    /// The record of a histogram of nanoseconds.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| if histogram.is_empty() { 0 } else { histogram.value_at_quantile(quantile) };
        let whole = |value| if histogram.is_empty() { 0 } else { value };
        Self {
            count: histogram.len(),
            min: whole(histogram.min()),
            mean: histogram.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: whole(histogram.max()),
            histogram: encoded::encode(histogram),
        }
    }

    /// The histogram itself; `None` if the text is not one, or not one of ours.
    #[must_use]
    pub fn histogram(&self) -> Option<Histogram<u64>> {
        encoded::decode(&self.histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_survives_its_record() {
        let mut histogram = empty_histogram();
        for value in [1, 1000, 1001, 250_000, 59_000_000_000] {
            histogram.record(value).unwrap();
        }
        let record = Latencies::of(&histogram);
        assert_eq!((record.count, record.min), (5, 1));
        assert!(record.max.abs_diff(59_000_000_000) < 59_000_000, "{}", record.max);
        assert_eq!(record.histogram().unwrap(), histogram);
    }

    #[test]
    fn a_run_survives_its_json_and_other_formats_are_refused() {
        let run = crate::load::testing::run();
        let text = serde_json::to_string_pretty(&run).unwrap();
        assert_eq!(Run::from_json(&text).unwrap(), run);
        let error = Run::from_json(r#"{"format": 2, "whatever": []}"#).unwrap_err().to_string();
        assert_eq!(error, "format 2: must be 1, made by another version of timeball");
        for other in ["", "{}", "[1]", r#"{"format": 1}"#] {
            let error = Run::from_json(other).unwrap_err().to_string();
            assert!(error.starts_with("not the record of a run"), "{error}");
        }
    }

    #[test]
    fn a_record_from_before_the_early_ends_is_read_and_a_foreign_histogram_is_not() {
        let run = crate::load::testing::run();
        let mut value = serde_json::to_value(&run).unwrap();
        value.as_object_mut().unwrap().remove("interrupted");
        value.as_object_mut().unwrap().remove("failure");
        value["steps"][0].as_object_mut().unwrap().remove("in_flight");
        assert_eq!(Run::from_json(&value.to_string()).unwrap(), run);
        value["steps"][1]["turnaround"]["histogram"] = "aGVsbG8=".into();
        let error = Run::from_json(&value.to_string()).unwrap_err().to_string();
        assert_eq!(error, "step 2, turnaround: must be a histogram of 1 ns to 60 s with three digits");
    }

    #[test]
    fn loss_survives_numbers_from_anywhere() {
        let mut step = crate::load::testing::run().steps.remove(0);
        assert_eq!(step.loss(), 6.0 / 2000.0);
        (step.lost, step.late) = (u64::MAX, u64::MAX);
        assert!(step.loss() > 1.0);
        step.offered = 0;
        assert_eq!(step.loss(), 0.0);
    }

    #[test]
    fn an_empty_histogram_is_all_zeros() {
        let record = Latencies::of(&empty_histogram());
        assert_eq!((record.count, record.min, record.p99_99, record.max), (0, 0, 0, 0));
        assert_eq!(Latencies { histogram: "no histogram".into(), ..record }.histogram(), None);
    }
}
