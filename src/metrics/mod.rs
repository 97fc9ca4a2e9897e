//! Counters that cost a worker nothing: one writer each, any number of readers.
//!
//! Owns: the counter and the histogram made of counters. Does not own: names and exposition; those belong to whoever
//! counts.
//!
//! The one idea a newcomer lacks: with a single writer no atomic read-modify-write is needed. A relaxed load,
//! an addition and a relaxed store are the same machine code as for a plain integer, and a reader in another
//! thread still never sees half a number.

mod histogram;

pub use histogram::Histogram;

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that only grows, written by one thread and read by any.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. **One thread only** may write: two at once could lose counts.
    pub fn add(&self, count: u64) {
        let sum = self.0.load(Ordering::Relaxed).wrapping_add(count);
        self.0.store(sum, Ordering::Relaxed);
    }

    /// Adds one; the same rule.
    pub fn bump(&self) {
        self.add(1);
    }

    /// The count so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::Counter;

    #[test]
    fn another_thread_reads_what_was_counted() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..1000).for_each(|_| counter.bump()));
        });
        counter.add(5);
        assert_eq!(counter.get(), 1005);
    }
}
