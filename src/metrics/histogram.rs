//! A histogram of durations at the price of two counters: one writer, fixed buckets, no division.
//!
//! Owns: the buckets and their bounds. Does not own: what is measured.
//!
//! The one idea a newcomer lacks: durations come as NTP has them, in units of 2^-32 s, so a power of two of units is a
//! power of two of seconds. The position of the highest bit and the bit below it are the bucket: two to each octave,
//! bounds 2^-23, 1.5 * 2^-23, 2^-22 ... s.

use super::Counter;

/// Bounds below the open end: the lowest and two for each octave up to 2^-3 s.
const BOUNDS: usize = 41;
/// The half octave that ends with the lowest bound, 2^9 units: the upper half of the octave that starts at 2^8.
const LOWEST: u32 = 2 * 8 + 1;
/// The same as the first bits of an `f64`, whose exponent is biased.
const LOWEST_POSITION: usize = 2 * (f64::MAX_EXP as usize - 1) + LOWEST as usize;

/// How often durations of about so many seconds were seen: from 2^-23 s (119 ns) to 2^-3 s (125 ms), and longer ones.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; BOUNDS + 1],
    sum: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Counter::default()), sum: Counter::default() }
    }
}

impl Histogram {
    /// Counts a duration of so many units of 2^-32 s. **One thread only.**
    // Some twenty instructions, and a call would add half as many.
    #[inline(always)]
    pub fn record(&self, units: u64) {
        if let Some(bucket) = self.buckets.get(bucket_of(units)) {
            bucket.bump();
        }
        self.sum.add(units);
    }

    /// Each bucket's own count, shortest first, the last one without upper bound.
    pub fn counts(&self) -> impl Iterator<Item = u64> {
        self.buckets.iter().map(Counter::get)
    }

    /// All durations together, in units of 2^-32 s. It starts again from 0 after 2^32 s: with a million durations of
    /// 50 us a second, that is after two and a half years.
    #[must_use]
    pub fn sum_units(&self) -> u64 {
        self.sum.get()
    }

    /// The upper bounds of all buckets but the last, in units of 2^-32 s. A bucket holds what is above the bound
    /// before it and not above its own.
    pub fn bounds() -> impl Iterator<Item = u64> {
        (LOWEST..).take(BOUNDS).map(|position| u64::from(3 + position % 2) << (position / 2 - 1))
    }
}

#[inline(always)]
fn bucket_of(units: u64) -> usize {
    // The bound itself belongs below it.
    let below = units.saturating_sub(1).cast_signed();
    // A floating-point number begins with the position of its highest bit, and then comes the bit below: one
    // instruction finds both. Below 2^53 units, 24 days, the number is exact; above, negative ones included, the
    // bucket is the last anyway.
    let position = ((below as f64).to_bits() >> (f64::MANTISSA_DIGITS - 2)) as usize;
    position.saturating_sub(LOWEST_POSITION).min(BOUNDS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bounds_are_two_to_the_octave_from_119_nanoseconds_to_125_milliseconds() {
        let bounds: Vec<u64> = Histogram::bounds().collect();
        assert_eq!(bounds[..4], [1 << 9, 3 << 8, 1 << 10, 3 << 9]);
        assert_eq!(bounds.len(), BOUNDS);
        assert_eq!(bounds.last(), Some(&(1 << 29)));
    }

    #[test]
    fn counts_what_was_recorded() {
        let histogram = Histogram::default();
        for units in [0, 1, 512, 513, 1 << 29, (1 << 29) + 1, 1 << 63] {
            histogram.record(units);
        }
        let counts: Vec<u64> = histogram.counts().collect();
        assert_eq!((counts[0], counts[1], counts[40], counts[41]), (3, 1, 1, 2));
        assert_eq!(counts.iter().sum::<u64>(), 7);
        assert_eq!(histogram.sum_units(), 1 + 512 + 513 + (2 << 29) + 1 + (1 << 63));
    }

    proptest! {
        /// By the bits as by comparing with every bound.
        #[test]
        fn every_duration_is_in_its_bucket(shift in 0_u32..64, bits: u64) {
            let units = bits >> shift;
            let expected = Histogram::bounds().position(|bound| units <= bound).unwrap_or(BOUNDS);
            prop_assert_eq!(bucket_of(units), expected);
        }
    }

    #[test]
    fn bounds_themselves_belong_below() {
        for (index, bound) in Histogram::bounds().enumerate() {
            assert_eq!((bucket_of(bound), bucket_of(bound + 1)), (index, index + 1));
        }
    }
}
