//! The histograms of a run as an HdrHistogram log.
//!
//! Owns: which histograms it holds and their tags. Does not own: the format (the hdrhistogram crate).
//!
//! The one idea a newcomer lacks: a log is lines of (tag, start, length, max, histogram), and viewers draw the lines of
//! one tag as one series; so each kind of latency has a tag of its own in each step, such as `10000/s:round-trip`.

use super::record::{Run, Step};
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

/// Values are nanoseconds; viewers expect the readable maximum beside each histogram in milliseconds.
const NANOSECONDS_PER_MILLISECOND: f64 = 1e6;

/// Writes the log of a run that started then. A step is taken to begin where the one before ended.
///
/// # Errors
/// Those of `output`.
pub fn write(output: &mut impl Write, run: &Run, started: SystemTime) -> io::Result<()> {
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("[Histogram log format version 1.3]")
        .add_comment(&format!("timeball {} load: {} asks {}", run.version, run.engine, run.target))
        .add_comment("Latencies in nanoseconds; Interval_Max in milliseconds")
        .add_comment(if run.interrupted || run.failure.is_some() { "Ended early" } else { "Complete" })
        .with_start_time(started)
        .with_max_value_divisor(NANOSECONDS_PER_MILLISECOND)
        .begin_log_with(output, &mut serializer)?;
    let mut start = Duration::ZERO;
    for (number, step) in run.steps.iter().enumerate() {
        let duration = Duration::from_secs_f64(step.duration_seconds.max(0.0));
        for (kind, latencies) in step.kinds() {
            let Some(histogram) = latencies.histogram().filter(|histogram| !histogram.is_empty()) else {
                continue;
            };
            let tag = tag(number, step, kind);
            log.write_histogram(&histogram, start, duration, Tag::new(&tag)).map_err(io::Error::other)?;
        }
        start += duration;
    }
    Ok(())
}

/// Two steps of one rate must not become one series, so all but the first have their number.
fn tag(number: usize, step: &Step, kind: &str) -> String {
    let rate = step.intended_per_second.map_or("saturate".to_owned(), |rate| format!("{rate}/s"));
    if number == 0 { format!("{rate}:{kind}") } else { format!("{}:{rate}:{kind}", number + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::record::Latencies;
    use crate::load::testing;
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    #[test]
    fn the_log_reads_back() {
        let run = testing::run();
        let mut bytes = Vec::new();
        write(&mut bytes, &run, SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)).unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(text.starts_with("#[Histogram log format version 1.3]\n"), "{text}");
        assert!(text.contains("#[StartTime: 1700000000.000 "), "{text}");
        let mut read = Vec::new();
        for entry in IntervalLogIterator::new(&bytes) {
            if let LogEntry::Interval(interval) = entry.unwrap() {
                let raw = BASE64_STANDARD.decode(interval.encoded_histogram()).unwrap();
                let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut raw.as_slice()).unwrap();
                let tag = interval.tag().unwrap().as_str().to_owned();
                read.push((tag, interval.start_timestamp().as_secs(), histogram));
            }
        }
        let expected = |step: usize, start: u64, tag: &str, latencies: &Latencies| {
            assert_eq!(run.steps[step].duration_seconds, 2.0);
            (tag.to_owned(), start, latencies.histogram().unwrap())
        };
        let (one, two) = (&run.steps[0], &run.steps[1]);
        assert_eq!(
            read,
            [
                expected(0, 0, "1000/s:round-trip", &one.round_trip),
                expected(0, 0, "1000/s:turnaround", &one.turnaround),
                expected(0, 0, "1000/s:send-delay", &one.send_delay),
                expected(1, 2, "2:saturate:round-trip", &two.round_trip),
                expected(1, 2, "2:saturate:turnaround", &two.turnaround),
            ]
        );
    }
}
