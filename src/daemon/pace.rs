//! How often the control thread looks around.
//!
//! Owns: the pauses between its turns. Does not own: what it does in one.
//!
//! The one idea a newcomer lacks: a turn costs some system calls however little there is to do, and a wake-up costs more than
//! a packet. So somebody who sends us ten thousand useless packets a second is not to cause as many turns: what comes within
//! two milliseconds is looked at together, once it has come so thick for a while. Nothing suffers: the kernel says when a
//! packet came, and polls may be as late as that. An ordinary exchange, which comes alone, is looked at at once.

use std::time::{Duration, Instant};

/// Between two turns, in the long run.
const INTERVAL: Duration = Duration::from_millis(2);
/// So many turns at once, after a rest: the answers of all sources that are asked in the same moment, for most of us.
const BURST: u32 = 64;

/// The generic cell rate algorithm, as in the server's limiter, with turns for packets.
#[derive(Debug)]
pub(super) struct Pace {
    /// When the next turn were due if all had come in the long run's interval.
    due: Instant,
}

impl Pace {
    pub(super) const fn new(now: Instant) -> Self {
        Self { due: now }
    }

    /// A turn has ended. How long to rest before the next one, if at all.
    pub(super) fn after_turn(&mut self, now: Instant) -> Option<Duration> {
        self.due = self.due.max(now) + INTERVAL;
        let rest = self.due.saturating_duration_since(now).checked_sub(INTERVAL * BURST)?;
        (!rest.is_zero()).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns at these intervals, for a second. How many there were, and the longest rest.
    fn turns(interval: Duration) -> (u32, Duration) {
        let begin = Instant::now();
        let (mut pace, mut now) = (Pace::new(begin), begin);
        let (mut turns, mut longest) = (0, Duration::ZERO);
        while now < begin + Duration::from_secs(1) {
            now += interval;
            turns += 1;
            let rest = pace.after_turn(now).unwrap_or_default();
            longest = longest.max(rest);
            now += rest;
        }
        (turns, longest)
    }

    #[test]
    fn what_comes_now_and_then_is_looked_at_at_once() {
        assert_eq!(turns(Duration::from_millis(2)), (500, Duration::ZERO));
        assert_eq!(turns(Duration::from_millis(50)), (20, Duration::ZERO));
    }

    #[test]
    fn a_flood_is_looked_at_every_two_milliseconds() {
        let (turns, longest) = turns(Duration::from_micros(100));
        assert!((500 + BURST - 2..=500 + BURST + 2).contains(&turns), "{turns}");
        assert!(longest <= INTERVAL, "{longest:?}");
    }

    #[test]
    fn a_burst_after_a_rest_is_not_held_up() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        let later = begin + Duration::from_secs(9);
        assert!((0..BURST).all(|_| pace.after_turn(later).is_none()));
        assert_eq!(pace.after_turn(later), Some(INTERVAL));
    }
}
