//! What a worker counts, and what its clock makes of a receive stamp.

use crate::metrics::{Counter, Histogram};
use crate::serve::{Prepared, Refusal};
use crate::time::NtpTimestamp;
use crate::wire::KissCode;
use crossbeam::utils::CachePadded;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The two ways a request can reach a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// Past the kernel, through an AF_XDP ring.
    AfXdp,
    /// Through a kernel socket.
    Socket,
}

/// One worker's counters: written by the worker alone, read by whoever reports.
#[derive(Default, Debug)]
pub struct WorkerCounters {
    af_xdp: CachePadded<PathCounters>,
    socket: CachePadded<PathCounters>,
}

impl WorkerCounters {
    /// The counters of one path.
    #[must_use]
    pub fn path(&self, path: Path) -> &PathCounters {
        match path {
            Path::AfXdp => &self.af_xdp,
            Path::Socket => &self.socket,
        }
    }
}

/// Counters of one path.
#[derive(Default, Debug)]
pub struct PathCounters {
    /// Replies that tell the time, those that could not be sent included.
    pub replies: Counter,
    /// Those of them that have a MAC.
    signed: Counter,
    crypto_naks: Counter,
    kisses: [Counter; 3],
    refusals: [Counter; Refusal::ALL.len()],
    /// Requests whose receive stamp was missing or could not be true; the clock was read instead.
    pub unstamped: Counter,
    /// Replies that could not be sent: ring full, interface down, no route.
    pub unsent: Counter,
    service_time: Histogram,
}

/// Every code we send.
pub const KISS_CODES: [KissCode; 3] = [KissCode::Deny, KissCode::Restrict, KissCode::Rate];

impl PathCounters {
    /// Counts what became of one request.
    pub fn count(&self, outcome: &Result<Prepared, Refusal>) {
        match outcome {
            Ok(Prepared { kiss: Some((code, refusal)), .. }) => {
                self.kisses[*code as usize].bump();
                self.refusals[*refusal as usize].bump();
            }
            Ok(Prepared { crypto_nak: Some(refusal), .. }) => {
                self.crypto_naks.bump();
                self.refusals[*refusal as usize].bump();
            }
            Ok(prepared) => {
                self.replies.bump();
                if prepared.key().is_some() {
                    self.signed.bump();
                }
            }
            Err(refusal) => self.refusals[*refusal as usize].bump(),
        }
    }

    /// Counts how long a reply took, kisses included: from T2 to T3 as the client reads them.
    #[inline(always)]
    pub fn served(&self, prepared: &Prepared, transmit_timestamp: NtpTimestamp) {
        let elapsed = transmit_timestamp - prepared.receive_timestamp();
        self.service_time.record(elapsed.to_bits().cast_unsigned());
    }

    /// A copy with names, refusals and kisses that never happened left out.
    #[must_use]
    pub fn report(&self) -> PathReport {
        let named = |name: String, counter: &Counter| Some((name, counter.get())).filter(|pair| pair.1 > 0);
        PathReport {
            replies: self.replies.get(),
            signed_replies: self.signed.get(),
            crypto_naks: self.crypto_naks.get(),
            kisses: KISS_CODES
                .iter()
                .filter_map(|code| named(code.reference_id().to_string(), &self.kisses[*code as usize]))
                .collect(),
            refusals: Refusal::ALL
                .iter()
                .filter_map(|refusal| named(refusal.to_string(), &self.refusals[*refusal as usize]))
                .collect(),
            unstamped: self.unstamped.get(),
            unsent: self.unsent.get(),
            service_time: (&self.service_time).into(),
        }
    }
}

/// From units of 2^-32 s.
fn nanoseconds(units: u64) -> u64 {
    ((u128::from(units) * 1_000_000_000) >> 32) as u64
}

/// [`PathCounters`] at one moment.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct PathReport {
    /// Replies that tell the time, those that could not be sent included.
    pub replies: u64,
    /// Those of them that have a MAC.
    pub signed_replies: u64,
    /// Replies to requests that could not be authenticated, which say so.
    pub crypto_naks: u64,
    /// Kiss-o'-Death packets by code.
    pub kisses: BTreeMap<String, u64>,
    /// Requests that got no time, by reason; those told so by a kiss or a crypto-NAK are among them.
    pub refusals: BTreeMap<String, u64>,
    /// Requests without a usable receive stamp.
    pub unstamped: u64,
    /// Replies that could not be sent.
    pub unsent: u64,
    /// How long replies and kisses took.
    pub service_time: ServiceTimeReport,
}

/// How long something took. Of a worker: from the receive timestamp to the transmit timestamp, as clients read them.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceTimeReport {
    /// How many.
    pub count: u64,
    /// All of them together.
    pub sum_nanoseconds: u64,
    /// Half took no longer, as near as the buckets tell.
    pub p50_nanoseconds: u64,
    /// 99 in 100 took no longer, likewise.
    pub p99_nanoseconds: u64,
    /// How many in each bucket of [`Histogram::bounds`], the last one without bound. Empty: nobody asked.
    pub buckets: Vec<u64>,
}

impl From<&Histogram> for ServiceTimeReport {
    fn from(histogram: &Histogram) -> Self {
        Self::new(histogram.counts().collect(), nanoseconds(histogram.sum_units()))
    }
}

impl ServiceTimeReport {
    fn new(buckets: Vec<u64>, sum_nanoseconds: u64) -> Self {
        Self {
            count: buckets.iter().sum(),
            sum_nanoseconds,
            p50_nanoseconds: quantile(&buckets, 0.5),
            p99_nanoseconds: quantile(&buckets, 0.99),
            buckets,
        }
    }

    fn add(&mut self, other: &Self) {
        let mut buckets = std::mem::take(&mut self.buckets);
        buckets.resize(buckets.len().max(other.buckets.len()), 0);
        for (mine, theirs) in buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        *self = Self::new(buckets, self.sum_nanoseconds.wrapping_add(other.sum_nanoseconds));
    }
}

/// In nanoseconds, on a straight line through the bucket it falls into, as PromQL's `histogram_quantile` draws it; at
/// most the highest bound. 0 if nothing was counted.
fn quantile(buckets: &[u64], quantile: f64) -> u64 {
    let rank = quantile * buckets.iter().sum::<u64>() as f64;
    let (mut below, mut lower) = (0.0, 0.0);
    for (&count, bound) in buckets.iter().zip(Histogram::bounds()) {
        let (count, upper) = (count as f64, nanoseconds(bound) as f64);
        if count > 0.0 && below + count >= rank {
            return (lower + (upper - lower) * (rank - below) / count).round() as u64;
        }
        (below, lower) = (below + count, upper);
    }
    if below < rank { lower as u64 } else { 0 }
}

impl PathReport {
    /// Adds another worker's report to this one.
    pub fn add(&mut self, other: &Self) {
        self.replies += other.replies;
        self.signed_replies += other.signed_replies;
        self.crypto_naks += other.crypto_naks;
        self.unstamped += other.unstamped;
        self.unsent += other.unsent;
        self.service_time.add(&other.service_time);
        for (mine, theirs) in [(&mut self.kisses, &other.kisses), (&mut self.refusals, &other.refusals)] {
            for (name, count) in theirs {
                *mine.entry(name.clone()).or_default() += count;
            }
        }
    }

    /// Requests judged: each was answered with time or refused.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.replies + self.refused()
    }

    /// Requests that got no time.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refusals.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_only_what_happened_and_adds_up() {
        let counters = WorkerCounters::default();
        let path = counters.path(Path::AfXdp);
        path.count(&Err(Refusal::Mode));
        path.count(&Err(Refusal::Mode));
        path.count(&Err(Refusal::RateLimited));
        let mut report = path.report();
        assert_eq!(report.refusals, BTreeMap::from([("mode".to_owned(), 2), ("rate-limited".to_owned(), 1)]));
        report.add(&path.report());
        assert_eq!(report.refused(), 6);
        assert_eq!(report.requests(), 6);
        let other = counters.path(Path::Socket).report();
        assert_eq!((other.requests(), other.service_time.count), (0, 0));
    }

    #[test]
    fn service_times_are_summed_up_in_quantiles() {
        let path = PathCounters::default();
        // 60 of 2^-16 s, 15.26 us, and 40 of 2^-10 s, 977 us; each is its bucket's upper bound.
        (0..60).for_each(|_| path.service_time.record(1 << 16));
        (0..40).for_each(|_| path.service_time.record(1 << 22));
        let mut report = path.report().service_time;
        assert_eq!((report.count, report.sum_nanoseconds), (100, 39_978_027));
        // 50 of 60 on the way from 11,444 to 15,258 ns; 39 of 40 from 732,421 to 976,562 ns.
        assert_eq!((report.p50_nanoseconds, report.p99_nanoseconds), (14_622, 970_458));
        report.add(&report.clone());
        assert_eq!((report.count, report.p50_nanoseconds, report.p99_nanoseconds), (200, 14_622, 970_458));
        path.service_time.record(1 << 40);
        assert_eq!(quantile(&path.report().service_time.buckets, 1.0), 125_000_000, "the highest bound");
        assert_eq!(ServiceTimeReport::default().p50_nanoseconds, quantile(&[0; 42], 0.5));
    }
}
