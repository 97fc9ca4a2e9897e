//! What a worker counts, and what its clock makes of a receive stamp.

use crate::metrics::Counter;
use crate::serve::{Prepared, Refusal};
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
    kisses: [Counter; 3],
    refusals: [Counter; Refusal::ALL.len()],
    /// Requests whose receive stamp was missing or could not be true; the clock was read instead.
    pub unstamped: Counter,
    /// Replies that could not be sent: ring full, interface down, no route.
    pub unsent: Counter,
}

const KISS_CODES: [KissCode; 3] = [KissCode::Deny, KissCode::Restrict, KissCode::Rate];

impl PathCounters {
    /// Counts what became of one request.
    pub fn count(&self, outcome: &Result<Prepared, Refusal>) {
        match outcome {
            Ok(Prepared { kiss: None, .. }) => self.replies.bump(),
            Ok(Prepared { kiss: Some((code, refusal)), .. }) => {
                self.kisses[*code as usize].bump();
                self.refusals[*refusal as usize].bump();
            }
            Err(refusal) => self.refusals[*refusal as usize].bump(),
        }
    }

    /// A copy with names, refusals and kisses that never happened left out.
    #[must_use]
    pub fn report(&self) -> PathReport {
        let named = |name: String, counter: &Counter| Some((name, counter.get())).filter(|pair| pair.1 > 0);
        PathReport {
            replies: self.replies.get(),
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
        }
    }
}

/// [`PathCounters`] at one moment.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct PathReport {
    /// Replies that tell the time, those that could not be sent included.
    pub replies: u64,
    /// Kiss-o'-Death packets by code.
    pub kisses: BTreeMap<String, u64>,
    /// Requests that got no time, by reason; those told so by a kiss are among them.
    pub refusals: BTreeMap<String, u64>,
    /// Requests without a usable receive stamp.
    pub unstamped: u64,
    /// Replies that could not be sent.
    pub unsent: u64,
}

impl PathReport {
    /// Adds another worker's report to this one.
    pub fn add(&mut self, other: &Self) {
        self.replies += other.replies;
        self.unstamped += other.unstamped;
        self.unsent += other.unsent;
        for (mine, theirs) in [(&mut self.kisses, &other.kisses), (&mut self.refusals, &other.refusals)] {
            for (name, count) in theirs {
                *mine.entry(name.clone()).or_default() += count;
            }
        }
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
        assert_eq!(counters.path(Path::Socket).report(), PathReport::default());
    }
}
