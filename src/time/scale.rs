//! Points in time as the machine's clocks tell them.

use super::{NtpDuration, NtpTimestamp};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Add, Sub};

/// Marks what a [`Timestamp`] counts from and how it runs.
pub trait Scale: Copy + fmt::Debug {
    /// The scale's name in messages.
    const NAME: &'static str;
}

/// UTC as the kernel keeps it: `CLOCK_REALTIME`, nanoseconds since 1970-01-01, repeats at a leap second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Realtime {}

/// `CLOCK_TAI`: UTC plus the kernel's TAI offset, which is 0 until somebody sets it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Tai {}

/// `CLOCK_MONOTONIC`: nanoseconds since boot, never stepped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Monotonic {}

impl Scale for Realtime {
    const NAME: &'static str = "realtime";
}
impl Scale for Tai {
    const NAME: &'static str = "TAI";
}
impl Scale for Monotonic {
    const NAME: &'static str = "monotonic";
}

/// A point in time on one scale: nanoseconds since that scale's zero, +-292 years.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp<S: Scale> {
    nanoseconds: i64,
    scale: PhantomData<S>,
}

impl<S: Scale> Timestamp<S> {
    /// The scale's zero.
    pub const ZERO: Self = Self::from_nanoseconds(0);

    /// From nanoseconds since the scale's zero.
    #[must_use]
    pub const fn from_nanoseconds(nanoseconds: i64) -> Self {
        Self { nanoseconds, scale: PhantomData }
    }

    /// Nanoseconds since the scale's zero.
    #[must_use]
    pub const fn nanoseconds(self) -> i64 {
        self.nanoseconds
    }

    /// Nanoseconds from `earlier` to here; negative if it is not earlier. Saturating.
    #[must_use]
    pub const fn nanoseconds_since(self, earlier: Self) -> i64 {
        self.nanoseconds.saturating_sub(earlier.nanoseconds)
    }
}

impl<S: Scale> fmt::Debug for Timestamp<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ns {}", self.nanoseconds, S::NAME)
    }
}

impl<S: Scale> Sub for Timestamp<S> {
    type Output = NtpDuration;
    fn sub(self, earlier: Self) -> NtpDuration {
        NtpDuration::from_nanoseconds(self.nanoseconds_since(earlier))
    }
}

impl<S: Scale> Add<NtpDuration> for Timestamp<S> {
    type Output = Self;
    fn add(self, duration: NtpDuration) -> Self {
        Self::from_nanoseconds(self.nanoseconds.saturating_add(duration.to_nanoseconds()))
    }
}

impl Timestamp<Realtime> {
    /// Seconds from 1900-01-01 (NTP's prime epoch) to 1970-01-01 (RFC 5905 figure 4).
    const NTP_TO_UNIX_SECONDS: i64 = 2_208_988_800;

    /// As the wire has it, in whatever era it falls. Rounds down, so that the order of two stamps is kept.
    #[must_use]
    pub const fn to_ntp(self) -> NtpTimestamp {
        let seconds = self.nanoseconds.div_euclid(1_000_000_000) + Self::NTP_TO_UNIX_SECONDS;
        let nanoseconds = self.nanoseconds.rem_euclid(1_000_000_000) as u64;
        let fraction = (nanoseconds << 32) / 1_000_000_000;
        NtpTimestamp::from_bits((seconds as u64) << 32 | fraction)
    }

    /// The point in time that `wire` means, in the era that puts it nearest to `pivot` (within +-68 years).
    #[must_use]
    pub fn from_ntp(wire: NtpTimestamp, pivot: Self) -> Self {
        pivot + (wire - pivot.to_ntp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unix_zero_is_the_rfc_epoch_offset() {
        assert_eq!(Timestamp::<Realtime>::ZERO.to_ntp().to_bits() >> 32, 2_208_988_800);
        let half = Timestamp::<Realtime>::from_nanoseconds(500_000_000).to_ntp();
        assert_eq!(half.to_bits() & 0xffff_ffff, 1 << 31);
    }

    proptest! {
        #[test]
        fn wire_and_back_within_a_nanosecond(nanoseconds in 0_i64..8_000_000_000_000_000_000, away in -1_000_000_000_000_000_000_i64..1_000_000_000_000_000_000) {
            let there = Timestamp::<Realtime>::from_nanoseconds(nanoseconds);
            let pivot = Timestamp::from_nanoseconds(nanoseconds + away);
            let back = Timestamp::from_ntp(there.to_ntp(), pivot);
            prop_assert!(there.nanoseconds_since(back).abs() <= 1, "{there:?} came back as {back:?}");
        }
    }
}
