//! The seqlock.

use super::{InstanceId, SystemSnapshot};
use crate::time::{Log2Seconds, NtpDuration, NtpTimestamp, Ppm};
use crate::wire::{Leap, ReferenceId};
use crossbeam::utils::CachePadded;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// The snapshot as words.
const WORDS: usize = 6;

/// One writer publishes a [`SystemSnapshot`], any number of readers copy it; nobody waits for a lock.
#[derive(Debug)]
pub struct SnapshotCell {
    /// Even: stable. Odd: the writer is at work.
    sequence: CachePadded<AtomicU64>,
    words: CachePadded<[AtomicU64; WORDS]>,
}

impl SnapshotCell {
    /// A cell that holds `snapshot`.
    #[must_use]
    pub fn new(snapshot: &SystemSnapshot) -> Self {
        let words = to_words(snapshot).map(AtomicU64::new);
        Self { sequence: CachePadded::new(AtomicU64::new(0)), words: CachePadded::new(words) }
    }

    /// Publishes a new value. **One thread only** may call this: two writers at once could leave a mixture
    /// (no memory unsafety, but a wrong reply).
    pub fn publish(&self, snapshot: &SystemSnapshot) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        // The odd number must be seen before any new word.
        fence(Ordering::Release);
        for (word, value) in self.words.iter().zip(to_words(snapshot)) {
            word.store(value, Ordering::Relaxed);
        }
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// Copies the value out.
    #[must_use]
    pub fn read(&self) -> SystemSnapshot {
        loop {
            let before = self.sequence.load(Ordering::Acquire);
            let words = std::array::from_fn(|index| self.words[index].load(Ordering::Relaxed));
            // The words must be read before the second look at the number.
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before {
                return from_words(words);
            }
            std::hint::spin_loop();
        }
    }
}

fn to_words(snapshot: &SystemSnapshot) -> [u64; WORDS] {
    let [a, b, c, d] = snapshot.reference_id.0;
    let small = [snapshot.leap as u8, snapshot.stratum, snapshot.precision.0.cast_unsigned(), 0, a, b, c, d];
    [
        u64::from_be_bytes(small),
        snapshot.root_delay.to_bits().cast_unsigned(),
        snapshot.root_dispersion.to_bits().cast_unsigned(),
        snapshot.dispersion_rate.to_bits().cast_unsigned(),
        snapshot.reference_timestamp.to_bits(),
        // The upper half is 0 for none.
        snapshot.reference_instance.map_or(0, |InstanceId(number)| u64::from(number) + 1) << 32
            | u64::from(u32::from_be_bytes(snapshot.reference_id_elsewhere.0)),
    ]
}

fn from_words(words: [u64; WORDS]) -> SystemSnapshot {
    let [leap, stratum, precision, _, a, b, c, d] = words[0].to_be_bytes();
    SystemSnapshot {
        leap: match leap {
            0 => Leap::None,
            1 => Leap::Insert,
            2 => Leap::Delete,
            _ => Leap::Unsynchronised,
        },
        stratum,
        reference_id: ReferenceId([a, b, c, d]),
        reference_instance: (words[5] >> 32).checked_sub(1).map(|number| InstanceId(number as u16)),
        reference_id_elsewhere: ReferenceId((words[5] as u32).to_be_bytes()),
        precision: Log2Seconds(precision.cast_signed()),
        root_delay: NtpDuration::from_bits(words[1].cast_signed()),
        root_dispersion: NtpDuration::from_bits(words[2].cast_signed()),
        dispersion_rate: Ppm::from_bits(words[3].cast_signed()),
        reference_timestamp: NtpTimestamp::from_bits(words[4]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field tells `number`, so that a mixture of two shows.
    fn numbered(number: u64) -> SystemSnapshot {
        SystemSnapshot {
            leap: Leap::None,
            stratum: (number % 15) as u8 + 1,
            reference_id: ReferenceId((number as u32).to_be_bytes()),
            reference_instance: number.is_multiple_of(3).then_some(InstanceId(number as u16)),
            reference_id_elsewhere: ReferenceId((number as u32).to_le_bytes()),
            precision: Log2Seconds(-20),
            root_delay: NtpDuration::from_bits(number as i64),
            root_dispersion: NtpDuration::from_bits(number as i64),
            dispersion_rate: Ppm::from_bits(number as i64),
            reference_timestamp: NtpTimestamp::from_bits(number),
        }
    }

    #[test]
    fn what_is_published_is_what_is_read() {
        let cell = SnapshotCell::new(&SystemSnapshot::unsynchronised(Log2Seconds(-23)));
        assert_eq!(cell.read(), SystemSnapshot::unsynchronised(Log2Seconds(-23)));
        cell.publish(&numbered(77));
        assert_eq!(cell.read(), numbered(77));
    }

    #[test]
    fn readers_never_see_a_mixture() {
        let cell = SnapshotCell::new(&numbered(1));
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let mut distinct = 0;
                        let mut last = 0;
                        while last < 200_000 {
                            let snapshot = cell.read();
                            let number = snapshot.reference_timestamp.to_bits();
                            assert_eq!(snapshot, numbered(number));
                            assert!(number >= last, "went back from {last} to {number}");
                            distinct += u32::from(number != last);
                            last = number;
                        }
                        distinct
                    })
                })
                .collect();
            for number in 1..=200_000 {
                cell.publish(&numbered(number));
            }
            for reader in readers {
                assert!(reader.join().unwrap() >= 1);
            }
        });
    }
}
