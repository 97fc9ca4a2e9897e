//! The line that moves while a load test runs, and the signals that end it.
//!
//! Owns: one line on a terminal; nothing at all elsewhere. Does not own: results.
//!
//! The one idea a newcomer lacks: what is not answered yet is not lost yet. The line counts as lost what was offered
//! longer ago than the timeout, so it remembers what had been offered when.

use super::super::table::grouped;
use crate::load::engine::{Plan, Progress};
use crate::sys::process::SignalFd;
use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// How often the line changes: often enough to look alive, rarely enough to be read.
const REFRESH: Duration = Duration::from_millis(250);

/// Follows a run.
pub(super) struct Watch<'a> {
    plans: &'a [Plan],
    signals: SignalFd,
    is_terminal: bool,
    line: Line,
}

impl<'a> Watch<'a> {
    /// Blocks SIGINT, SIGTERM and SIGHUP, which from now on end the step that is running.
    pub(super) fn new(plans: &'a [Plan]) -> io::Result<Self> {
        let signals = SignalFd::block_and_open()?;
        Ok(Self { plans, signals, is_terminal: io::stderr().is_terminal(), line: Line::default() })
    }

    /// Takes in how far the step is; false when the run has to end.
    pub(super) fn see(&mut self, step: usize, progress: Progress) -> bool {
        if self.is_terminal
            && let Some(plan) = self.plans.get(step)
            && let Some(text) = self.line.update(step, plan, progress)
        {
            let place = if self.plans.len() > 1 {
                format!("step {} of {}: ", step + 1, self.plans.len())
            } else {
                String::new()
            };
            // Back to the first column, and clear what a longer line left.
            let _ = write!(io::stderr(), "\r{place}{text}\x1b[K");
        }
        !matches!(self.signals.next(), Ok(Some(_)))
    }

    /// Takes the line away.
    pub(super) fn end(self) {
        if self.is_terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// What the line has to remember.
#[derive(Default)]
struct Line {
    step: usize,
    shown: Progress,
    /// What had been offered when, from the timeout ago until now.
    offered: VecDeque<(Duration, u64)>,
    /// Of what was offered, the part that is older than the timeout.
    due: u64,
}

impl Line {
    /// The new text, when it is time for one.
    fn update(&mut self, step: usize, plan: &Plan, now: Progress) -> Option<String> {
        if step != self.step {
            *self = Self { step, ..Self::default() };
        }
        self.offered.push_back((now.elapsed, now.offered));
        while let Some((at, offered)) = self.offered.front()
            && *at + plan.timeout <= now.elapsed
        {
            self.due = *offered;
            self.offered.pop_front();
        }
        let since = now.elapsed.saturating_sub(self.shown.elapsed);
        if since < REFRESH {
            return None;
        }
        let per_second = |now: u64, before: u64| {
            grouped((now.saturating_sub(before) as f64 / since.as_secs_f64()).round() as u64)
        };
        let text = format!(
            "{:.1} s of {:.1} s, offered {}/s, answered {}/s, lost {}",
            now.elapsed.as_secs_f64(),
            plan.duration.as_secs_f64(),
            per_second(now.offered, self.shown.offered),
            per_second(now.answered, self.shown.answered),
            grouped(self.due.saturating_sub(now.answered))
        );
        self.shown = now;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_counts_as_lost_what_is_older_than_the_timeout() {
        let plan = Plan {
            rate: Some(1000.0),
            duration: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            nonce: 0,
        };
        let mut line = Line::default();
        let mut at = |milliseconds, offered, answered| {
            let elapsed = Duration::from_millis(milliseconds);
            line.update(0, &plan, Progress { elapsed, offered, answered })
        };
        assert_eq!(at(100, 100, 50), None);
        let text = |seconds, rates, lost| format!("{seconds} s of 5.0 s, offered {rates}, lost {lost}");
        assert_eq!(at(500, 500, 250).unwrap(), text("0.5", "1 000/s, answered 500/s", 0));
        assert_eq!(at(1500, 1500, 400).unwrap(), text("1.5", "1 000/s, answered 150/s", 100));
        // The next step begins anew.
        assert!(line.update(1, &plan, Progress::default()).is_none());
        assert_eq!((line.due, line.shown), (0, Progress::default()));
    }
}
