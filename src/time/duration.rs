//! Differences of time, frequency, and the exponents the protocol sends.

use std::fmt;
use std::ops::{Add, Mul, Neg, Sub};

const NANOSECONDS_PER_SECOND: i128 = 1_000_000_000;
/// 2^32 / 10^6.
const PER_PPM: f64 = 4_294_967_296.0 / 1e6;

/// A signed difference of two points in time: a count of 2^-32 s, range about +-68 years, resolution 233 ps.
///
/// Sign: later minus earlier. Where it is an *offset*, positive means that our clock is behind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct NtpDuration(i64);

impl NtpDuration {
    /// No time at all.
    pub const ZERO: Self = Self(0);
    /// The longest positive difference, a little over 68 years.
    pub const MAX: Self = Self(i64::MAX);

    /// From a count of 2^-32 s.
    #[must_use]
    pub const fn from_bits(bits: i64) -> Self {
        Self(bits)
    }

    /// The count of 2^-32 s.
    #[must_use]
    pub const fn to_bits(self) -> i64 {
        self.0
    }

    /// From nanoseconds, rounded to the nearest 2^-32 s, saturating at +-68 years.
    #[must_use]
    pub const fn from_nanoseconds(nanoseconds: i64) -> Self {
        let scaled = (nanoseconds as i128) << 32;
        let half = NANOSECONDS_PER_SECOND / 2;
        Self::saturated((scaled + half).div_euclid(NANOSECONDS_PER_SECOND))
    }

    /// In nanoseconds, rounded to the nearest one, saturating at the range of the result (292 years: never).
    #[must_use]
    pub const fn to_nanoseconds(self) -> i64 {
        let scaled = self.0 as i128 * NANOSECONDS_PER_SECOND;
        ((scaled + (1 << 31)) >> 32) as i64
    }

    /// From whole seconds, saturating at +-68 years.
    #[must_use]
    pub const fn from_seconds(seconds: i64) -> Self {
        Self::saturated((seconds as i128) << 32)
    }

    /// In seconds: divides by exactly 2^32. Not for arithmetic on time, for reports and statistics.
    #[must_use]
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 4_294_967_296.0
    }

    /// From seconds, rounded to the nearest 2^-32 s, saturating at +-68 years; what is not a number becomes zero.
    /// The way back from a statistic; the resolution is that of an `f64`, 1 us at 136 years and better below.
    #[must_use]
    pub fn from_seconds_f64(seconds: f64) -> Self {
        // `as` saturates and maps NaN to 0.
        Self((seconds * 4_294_967_296.0).round() as i64)
    }

    /// Half of it, rounded towards zero.
    #[must_use]
    pub const fn half(self) -> Self {
        Self(self.0 / 2)
    }

    /// So many times as long, saturating at +-68 years.
    #[must_use]
    pub const fn times(self, count: u32) -> Self {
        Self(self.0.saturating_mul(count as i64))
    }

    /// Its size without its sign, saturating.
    #[must_use]
    pub const fn magnitude(self) -> Self {
        Self(self.0.saturating_abs())
    }

    /// For people: three digits and a unit, see [`WithUnit`].
    #[must_use]
    pub const fn with_unit(self) -> WithUnit {
        WithUnit(self)
    }

    const fn saturated(bits: i128) -> Self {
        if bits > i64::MAX as i128 {
            Self(i64::MAX)
        } else if bits < i64::MIN as i128 {
            Self(i64::MIN)
        } else {
            Self(bits as i64)
        }
    }
}

impl Add for NtpDuration {
    type Output = Self;
    /// Saturates: an error estimate must not wrap to a small one.
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for NtpDuration {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Neg for NtpDuration {
    type Output = Self;
    fn neg(self) -> Self {
        Self(self.0.saturating_neg())
    }
}

impl Mul<Ppm> for NtpDuration {
    type Output = Self;
    /// How far a clock running off by this frequency drifts in this time, rounded away from zero.
    fn mul(self, frequency: Ppm) -> Self {
        let product = i128::from(self.0) * i128::from(frequency.0);
        let (quotient, rest) = (product >> 32, product & 0xffff_ffff);
        let away_from_zero = i128::from(rest != 0 && quotient >= 0);
        Self::saturated(quotient + away_from_zero)
    }
}

impl fmt::Display for NtpDuration {
    /// Seconds with a sign and nine decimals: `+0.000012345`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:+.9}", self.seconds())
    }
}

/// A difference as people read it: three significant digits and the unit that fits, `1.94 s`, `-12.3 us`; whole
/// seconds from 1000 s on. With `{:+}` a positive one has its sign, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WithUnit(NtpDuration);

impl fmt::Display for WithUnit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.seconds();
        let size = seconds.abs();
        // Below half a nanosecond there is nothing to say: 0 ns.
        let (unit, name) = match size {
            _ if size >= 0.999_5 => (1.0, "s"),
            _ if size >= 0.999_5e-3 => (1e3, "ms"),
            _ if size >= 0.999_5e-6 => (1e6, "us"),
            _ => (1e9, "ns"),
        };
        let value = seconds * unit;
        let decimals = match value.abs() {
            scaled if name == "ns" || scaled >= 99.95 => 0,
            scaled if scaled >= 9.995 => 1,
            _ => 2,
        };
        // No "-0 ns".
        let value = if name == "ns" && value.abs() < 0.5 { 0.0 } else { value };
        if formatter.sign_plus() {
            write!(formatter, "{value:+.decimals$} {name}")
        } else {
            write!(formatter, "{value:.decimals$} {name}")
        }
    }
}

/// The 32-bit NTP short format: unsigned seconds with 16 fraction bits, 0 to 65536 s, resolution 15 us.
/// Root delay and root dispersion travel in it (RFC 5905 section 6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct NtpShort(u32);

impl NtpShort {
    /// The largest value, just below 65536 s.
    pub const MAX: Self = Self(u32::MAX);

    /// From the wire's bits.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The wire's bits.
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// From a difference, rounded **up**, so that an error bound never shrinks on its way onto the wire.
    /// Negative becomes zero; too large becomes [`NtpShort::MAX`].
    #[must_use]
    pub const fn from_duration_rounded_up(duration: NtpDuration) -> Self {
        if duration.0 <= 0 {
            return Self(0);
        }
        let bits = (duration.0 as u64).div_ceil(1 << 16);
        if bits > u32::MAX as u64 { Self::MAX } else { Self(bits as u32) }
    }

    /// How far a clock running off by this frequency drifts in this time, in 64 bits and never below the exact
    /// value: for the reply to every request. A negative frequency counts as none, one above 31250 ppm (2^27 of its units) as that.
    #[must_use]
    pub const fn growth(self, frequency: Ppm) -> NtpDuration {
        // Units of 2^-16 s times units of 2^-32, below 2^63 as long as the frequency is below 2^31 of its units.
        let rate = if frequency.0 < 0 { 0 } else { frequency.0.cast_unsigned() };
        let rate = if rate < 1 << 27 { rate } else { 1 << 27 };
        NtpDuration(((self.0 as u64 * rate).div_ceil(1 << 16)).cast_signed())
    }

    /// As a difference; exact.
    #[must_use]
    pub const fn to_duration(self) -> NtpDuration {
        NtpDuration((self.0 as i64) << 16)
    }
}

/// A frequency error as a fraction, kept as a count of 2^-32 (0.00023 ppm).
///
/// Sign: positive means that the clock should run faster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Ppm(i64);

impl Ppm {
    /// PHI of RFC 5905 section 7.3: how fast an undisciplined clock is assumed to drift, 15 ppm (rounded up).
    pub const FREQUENCY_TOLERANCE: Self = Self(64425);
    /// No frequency error.
    pub const ZERO: Self = Self(0);

    /// From parts per million, rounded to the nearest 2^-32.
    #[must_use]
    pub fn from_ppm(ppm: f64) -> Self {
        Self((ppm * PER_PPM).round() as i64)
    }

    /// In parts per million.
    #[must_use]
    pub fn ppm(self) -> f64 {
        self.0 as f64 / PER_PPM
    }

    /// From a count of 2^-32.
    #[must_use]
    pub const fn from_bits(bits: i64) -> Self {
        Self(bits)
    }

    /// The count of 2^-32.
    #[must_use]
    pub const fn to_bits(self) -> i64 {
        self.0
    }
}

/// An interval or a precision as the base-2 logarithm of seconds: 6 is 64 s, -20 is about 1 us.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Log2Seconds(pub i8);

impl Log2Seconds {
    /// As a difference of time, from 2^-32 s (anything below rounds up to it) to 2^30 s (saturating).
    #[must_use]
    pub const fn to_duration(self) -> NtpDuration {
        let exponent = self.0 as i32 + 32;
        if exponent <= 0 {
            NtpDuration(1)
        } else if exponent >= 63 {
            NtpDuration::MAX
        } else {
            NtpDuration(1 << exponent)
        }
    }

    /// The smallest power of two that is not below the given positive duration.
    #[must_use]
    pub const fn at_least(duration: NtpDuration) -> Self {
        if duration.0 <= 1 {
            return Self(-32);
        }
        let exponent = 64 - (duration.0 as u64 - 1).leading_zeros() as i32;
        Self((exponent - 32) as i8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dispersion_grows_at_15_ppm_rounded_up() {
        let day = NtpDuration::from_seconds(86_400);
        let grown = day * Ppm::FREQUENCY_TOLERANCE;
        assert!(grown.seconds() >= 86_400.0 * 15e-6);
        assert!(grown.seconds() < 86_400.0 * 15.001e-6);
    }

    #[test]
    fn growth_of_a_short_interval_is_drift_rounded_up() {
        for seconds in [0, 1, 64, 1000, 65_535] {
            let interval = NtpDuration::from_seconds(seconds);
            let exact = interval * Ppm::FREQUENCY_TOLERANCE;
            let growth = NtpShort::from_duration_rounded_up(interval).growth(Ppm::FREQUENCY_TOLERANCE);
            assert!((0..=1).contains(&(growth - exact).to_bits()), "{seconds} s: {growth} and {exact}");
        }
        assert_eq!(NtpShort::MAX.growth(Ppm::from_bits(-5)), NtpDuration::ZERO);
        assert!(NtpShort::MAX.growth(Ppm::from_bits(i64::MAX)).seconds() > 2000.0);
    }

    #[test]
    fn seconds_come_back_from_statistics() {
        for seconds in [0.0, 1.5, -0.25, 1e-9, -3e6] {
            assert!((NtpDuration::from_seconds_f64(seconds).seconds() - seconds).abs() < 2e-10);
        }
        assert_eq!(NtpDuration::from_seconds_f64(f64::NAN), NtpDuration::ZERO);
        assert_eq!(NtpDuration::from_seconds_f64(f64::INFINITY), NtpDuration::MAX);
        assert_eq!(NtpDuration::from_seconds_f64(-1e300).to_bits(), i64::MIN);
    }

    #[test]
    fn halves_and_multiples_saturate_and_keep_the_sign() {
        assert_eq!(NtpDuration::from_bits(-7).half().to_bits(), -3);
        assert_eq!(NtpDuration::from_bits(7).half().to_bits(), 3);
        assert_eq!(NtpDuration::from_seconds(-2).times(3), NtpDuration::from_seconds(-6));
        assert_eq!(NtpDuration::MAX.times(2), NtpDuration::MAX);
        assert_eq!(NtpDuration::from_bits(i64::MIN).magnitude(), NtpDuration::MAX);
    }

    #[test]
    fn people_read_three_digits_and_a_unit() {
        let cases = [
            (1_940_000_000, "1.94 s"),
            (-12_345, "-12.3 us"),
            (999_600_000, "1.00 s"),
            (250_000_000, "250 ms"),
            (9_999, "10.0 us"),
            (99_960, "100 us"),
            (30, "30 ns"),
            (0, "0 ns"),
            (1_234_500_000_000, "1234 s"),
        ];
        for (nanoseconds, text) in cases {
            assert_eq!(NtpDuration::from_nanoseconds(nanoseconds).with_unit().to_string(), text);
        }
        assert_eq!(format!("{:+}", NtpDuration::from_nanoseconds(5_000_000).with_unit()), "+5.00 ms");
        assert_eq!(NtpDuration::from_bits(-1).with_unit().to_string(), "0 ns");
    }

    #[test]
    fn short_format_rounds_up_and_saturates() {
        assert_eq!(NtpShort::from_duration_rounded_up(NtpDuration::from_bits(1)).to_bits(), 1);
        assert_eq!(NtpShort::from_duration_rounded_up(NtpDuration::from_bits(-1)).to_bits(), 0);
        assert_eq!(NtpShort::from_duration_rounded_up(NtpDuration::from_bits(1 << 16)).to_bits(), 1);
        assert_eq!(NtpShort::from_duration_rounded_up(NtpDuration::MAX), NtpShort::MAX);
    }

    #[test]
    fn log2_seconds_round_trips_powers_of_two() {
        for exponent in -32..=30 {
            let log2 = Log2Seconds(exponent);
            assert_eq!(Log2Seconds::at_least(log2.to_duration()), log2);
        }
        assert_eq!(Log2Seconds::at_least(NtpDuration::from_nanoseconds(30)).0, -24);
    }

    proptest! {
        #[test]
        fn nanoseconds_survive_the_round_trip(nanoseconds in -2_000_000_000_000_000_000_i64..2_000_000_000_000_000_000) {
            let there = NtpDuration::from_nanoseconds(nanoseconds);
            prop_assert_eq!(there.to_nanoseconds(), nanoseconds);
        }

        #[test]
        fn drift_is_never_smaller_than_exact(bits in any::<i64>(), ppm in 0_i64..2_000_000) {
            let exact = i128::from(bits) * i128::from(ppm);
            let drift = NtpDuration::from_bits(bits) * Ppm::from_bits(ppm);
            prop_assert!((i128::from(drift.to_bits()) << 32).abs() >= exact.abs());
        }
    }
}
