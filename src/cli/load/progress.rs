//! The line that moves while a load test runs, and the signals that end it.
//!
//! Owns: one line on a terminal; nothing at all elsewhere. Does not own: results.
//!
//! The first signal stops the sending, and what was sent is waited for; the second one ends the waiting too. Before the
//! first request one is enough to end everything, and after the run a signal does what it does to any program.
//!
//! The one idea a newcomer lacks: what is not answered yet is not lost yet. The line counts as lost what was offered
//! longer ago than the timeout, so it remembers what had been offered when.

use super::super::table::grouped;
use super::show;
use crate::load::engine::{Plan, Progress, Wish};
use crate::sys::signal::SignalFd;
use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// How often the line changes: often enough to look alive, rarely enough to be read.
const REFRESH: Duration = Duration::from_millis(250);

/// SIGINT, SIGTERM and SIGHUP, which end nothing by themselves while this is there.
pub(super) struct Signals {
    descriptor: SignalFd,
    came: u32,
}

impl Signals {
    /// From now on they are counted. To be called before there is anything that has to be put back.
    pub(super) fn hold() -> io::Result<Self> {
        Ok(Self { descriptor: SignalFd::block_and_open()?, came: 0 })
    }

    /// How many came so far.
    pub(super) fn came(&mut self) -> u32 {
        while let Ok(Some(_)) = self.descriptor.next() {
            self.came = self.came.saturating_add(1);
        }
        self.came
    }

    /// Lets them end the process again: whatever is written now may block, and there is nothing left to put back.
    fn release(self) {
        // If not, all else goes on.
        let _ = self.descriptor.unblock();
    }
}

/// Follows a run.
pub(super) struct Watch<'a> {
    plans: &'a [Plan],
    signals: Signals,
    /// How many signals were heeded.
    heeded: u32,
    is_terminal: bool,
    line: Line,
}

impl<'a> Watch<'a> {
    /// Of the signals, the first ends the sending and the second the run.
    pub(super) fn new(plans: &'a [Plan], signals: Signals) -> Self {
        let is_terminal = io::stderr().is_terminal();
        Self { plans, signals, heeded: 0, is_terminal, line: Line::default() }
    }

    /// Takes in how far the step is; says what is wished of it.
    pub(super) fn see(&mut self, step: usize, progress: Progress) -> Wish {
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
        let came = self.signals.came();
        // Where nothing was sent there is nothing to wait for either.
        if self.heeded == 0 && came > 0 && progress.offered > 0 {
            self.clear();
            let timeout = self.plans.get(step).map_or(Duration::ZERO, |plan| plan.timeout);
            let _ = writeln!(
                io::stderr(),
                "timeball: interrupted: sends no more, and waits up to {timeout:?} for replies (again: not even that)"
            );
        }
        self.heeded = came;
        match came {
            0 => Wish::GoOn,
            1 => Wish::Finish,
            _ => Wish::EndNow,
        }
    }

    /// Takes the line away, and lets signals end the process again.
    pub(super) fn end(self) {
        self.clear();
        self.signals.release();
    }

    fn clear(&self) {
        if self.is_terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// How many requests a rate on the line is made of, and how far back it may look for them.
const RATE_REQUESTS: f64 = 20.0;
const RATE_WITHIN: Duration = Duration::from_secs(20);

/// What the line has to remember.
#[derive(Default)]
struct Line {
    step: usize,
    shown: Duration,
    /// How far the step was when, from the timeout ago until now.
    seen: VecDeque<Progress>,
    /// The same for as long as rates are made of.
    recent: VecDeque<Progress>,
    /// Of what was offered, the part that is older than the timeout.
    due: u64,
}

impl Line {
    /// The new text, when it is time for one.
    fn update(&mut self, step: usize, plan: &Plan, now: Progress) -> Option<String> {
        if step != self.step {
            *self = Self { step, ..Self::default() };
        }
        self.seen.push_back(now);
        while let Some(before) = self.seen.front()
            && before.elapsed + plan.timeout <= now.elapsed
        {
            self.due = before.offered;
            self.seen.pop_front();
        }
        if now.elapsed.saturating_sub(self.shown) < REFRESH {
            return None;
        }
        let since = self.since(plan, now);
        let seconds = now.elapsed.saturating_sub(since.elapsed).as_secs_f64();
        let per_second =
            |now: u64, before: u64| show::per_second(now.saturating_sub(before) as f64 / seconds);
        let text = format!(
            "{:.1} s of {:.1} s, offered {}/s, answered {}/s, lost {}",
            now.elapsed.as_secs_f64(),
            plan.duration.as_secs_f64(),
            per_second(now.offered, since.offered),
            per_second(now.answered, since.answered),
            grouped(self.due.saturating_sub(now.answered))
        );
        self.shown = now.elapsed;
        self.recent.push_back(now);
        Some(text)
    }

    /// From when on rates are counted: the last time the line changed, or longer ago where that is too few requests.
    fn since(&mut self, plan: &Plan, now: Progress) -> Progress {
        let window = plan.rate.map_or(REFRESH, |rate| Duration::from_secs_f64(RATE_REQUESTS / rate));
        let window = window.clamp(REFRESH, RATE_WITHIN);
        // The newest one that is old enough; before the first, the step's begin.
        while let Some(next) = self.recent.get(1)
            && next.elapsed + window <= now.elapsed
        {
            self.recent.pop_front();
        }
        let oldest = self.recent.front().copied().unwrap_or_default();
        if oldest.elapsed + window <= now.elapsed { oldest } else { Progress::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rate: f64) -> Plan {
        let (duration, timeout) = (Duration::from_secs(5), Duration::from_secs(1));
        Plan { rate: Some(rate), duration, timeout, nonce: 0 }
    }

    #[test]
    fn the_line_counts_as_lost_what_is_older_than_the_timeout() {
        let plan = plan(1000.0);
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
        assert_eq!((line.due, line.shown, line.recent.len()), (0, Duration::ZERO, 0));
    }

    #[test]
    fn a_low_rate_is_not_shown_as_none() {
        let plan = plan(1.0);
        let mut line = Line::default();
        let mut texts = Vec::new();
        for tick in 1..=240 {
            let elapsed = Duration::from_millis(125 * tick);
            let progress = Progress { elapsed, offered: 1 + elapsed.as_secs(), answered: elapsed.as_secs() };
            texts.extend(line.update(0, &plan, progress));
        }
        assert_eq!(texts.len(), 120);
        for text in &texts[20..] {
            let rate = text.split_once("offered ").unwrap().1.split_once("/s").unwrap().0;
            assert!((0.8..1.3).contains(&rate.parse::<f64>().unwrap()), "{text}");
        }
        assert!(line.recent.len() < 90, "{}", line.recent.len());
    }
}
