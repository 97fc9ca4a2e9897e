//! The 64-bit timestamp of the wire.

use super::NtpDuration;
use std::ops::{Add, Sub};

/// A point in time as the wire has it: seconds since 1900-01-01 modulo 2^32, and 32 fraction bits (233 ps).
///
/// It wraps, so it has no order: subtract two of them to compare, right within +-68 years.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct NtpTimestamp(u64);

impl NtpTimestamp {
    /// All bits zero: "unknown" on the wire, not a point in time.
    pub const UNKNOWN: Self = Self(0);

    /// From the wire's bits in host order.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The wire's bits in host order.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// Is it the wire's "unknown"?
    #[must_use]
    pub const fn is_unknown(self) -> bool {
        self.0 == 0
    }
}

impl Sub for NtpTimestamp {
    type Output = NtpDuration;
    /// `self - earlier`, modulo 2^64: right within +-68 years, across the era change of 2036 too.
    fn sub(self, earlier: Self) -> NtpDuration {
        NtpDuration::from_bits(self.0.wrapping_sub(earlier.0).cast_signed())
    }
}

impl Add<NtpDuration> for NtpTimestamp {
    type Output = Self;
    fn add(self, duration: NtpDuration) -> Self {
        Self(self.0.wrapping_add_signed(duration.to_bits()))
    }
}

impl Sub<NtpDuration> for NtpTimestamp {
    type Output = Self;
    fn sub(self, duration: NtpDuration) -> Self {
        Self(self.0.wrapping_sub(duration.to_bits().cast_unsigned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_cross_the_era_change() {
        let before = NtpTimestamp::from_bits(u64::MAX - (1 << 32) + 1);
        let after = before + NtpDuration::from_seconds(2);
        assert!(after.to_bits() < before.to_bits());
        assert_eq!(after - before, NtpDuration::from_seconds(2));
        assert_eq!(before - after, NtpDuration::from_seconds(-2));
        assert_eq!(after - NtpDuration::from_seconds(2), before);
    }
}
