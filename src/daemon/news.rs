//! Keeps what happens often from filling the log.

use std::time::{Duration, Instant};

/// How far apart two lines about the same thing are at least.
const PERIOD: Duration = Duration::from_secs(1);

/// One thing that may be logged now and then.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct News {
    last: Option<Instant>,
}

impl News {
    /// May it be logged now? Then not again for a while.
    pub(super) fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.last.is_none_or(|last| now.duration_since(last) >= PERIOD);
        if due {
            self.last = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_a_period() {
        let mut news = News::default();
        assert!(news.is_due());
        assert!(!news.is_due());
        news.last = news.last.map(|last| last - PERIOD);
        assert!(news.is_due());
    }
}
