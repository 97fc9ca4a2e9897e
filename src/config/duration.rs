//! Durations with units, as people write them: `"128ms"`, `"1.5s"`, `"2min"`.
//!
//! Owns: the units and both directions. Does not own: the range of any key.
//!
//! The one idea a newcomer lacks: nothing here is floating point. A duration is read to the nanosecond or refused,
//! so that what `timeball check` prints is what was meant and reads back as the same value.

use crate::time::NtpDuration;
use serde::Serializer;

/// Units and their nanoseconds, longest first, so that printing takes the longest that divides.
const UNITS: [(&str, i64); 7] = [
    ("day", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("min", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Reads a duration that is not negative: a decimal number, a unit, at most one space between. `None` for anything
/// else, for fractions of a nanosecond, and beyond 68 years (what [`NtpDuration`] holds).
#[must_use]
pub fn parse(text: &str) -> Option<NtpDuration> {
    let unit_start = text.find(|character: char| character.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at_checked(unit_start)?;
    let (_, unit_nanoseconds) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
    let number = number.strip_suffix(' ').unwrap_or(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let fraction_digits = u32::try_from(fraction.len()).ok()?;
    let scaled_unit = digits(fraction)?.checked_mul(unit_nanoseconds)?;
    let denominator = 10_i64.checked_pow(fraction_digits)?;
    if scaled_unit % denominator != 0 {
        return None;
    }
    let nanoseconds = digits(whole)?.checked_mul(unit_nanoseconds)?.checked_add(scaled_unit / denominator)?;
    let longest = NtpDuration::MAX.to_nanoseconds();
    (nanoseconds <= longest).then_some(NtpDuration::from_nanoseconds(nanoseconds))
}

/// The same with a `-` before it where it is negative.
pub(super) fn parse_signed(text: &str) -> Option<NtpDuration> {
    match text.strip_prefix('-') {
        Some(magnitude) => parse(magnitude).map(|length| -length),
        None => parse(text),
    }
}

/// Digits only: no sign, no space, not empty.
fn digits(text: &str) -> Option<i64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// With the longest unit that needs no fraction; rounded to the nanosecond.
pub(super) fn text(duration: NtpDuration) -> String {
    let nanoseconds = duration.to_nanoseconds();
    let divides = |unit: i64| nanoseconds != 0 && nanoseconds % unit == 0;
    let (name, unit) = UNITS.into_iter().find(|&(_, unit)| divides(unit)).unwrap_or(("s", 1));
    format!("{}{name}", nanoseconds / unit)
}

/// For `#[serde(serialize_with)]`.
pub(super) fn serialize<S: Serializer>(duration: &NtpDuration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&text(*duration))
}

/// The same, and `off` for none.
pub(super) fn serialize_or_off<S: Serializer>(
    duration: &Option<NtpDuration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serialize_or("off", *duration, serializer)
}

/// The same, and `measure` for none.
pub(super) fn serialize_or_measure<S: Serializer>(
    duration: &Option<NtpDuration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serialize_or("measure", *duration, serializer)
}

fn serialize_or<S: Serializer>(
    none: &str,
    duration: Option<NtpDuration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => serialize(&duration, serializer),
        None => serializer.serialize_str(none),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_units_and_exact_fractions() {
        let cases = [("128ms", 128_000_000), ("1.5s", 1_500_000_000), ("2 min", 120_000_000_000), ("0s", 0)];
        for (text, nanoseconds) in cases {
            assert_eq!(parse(text), Some(NtpDuration::from_nanoseconds(nanoseconds)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_exact_duration() {
        let texts =
            ["", "1", "s", ".5s", "1.s", "-1s", "+1s", "1 000s", "1  s", "1S", "1sec", "0.5ns", "1.5.5s"];
        let far = ["69000days", "99999999999999999999s", "30000day", "é1s", "1é"];
        for text in texts.into_iter().chain(far) {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn signed_ones_print_what_reads_back(nanoseconds in -2_000_000_000_000_000_000_i64..2_000_000_000_000_000_000) {
            let duration = NtpDuration::from_nanoseconds(nanoseconds);
            prop_assert_eq!(parse_signed(&text(duration)), Some(duration));
        }

        #[test]
        fn prints_what_reads_back(nanoseconds in 0_i64..2_000_000_000_000_000_000) {
            let duration = NtpDuration::from_nanoseconds(nanoseconds);
            prop_assert_eq!(parse(&text(duration)), Some(duration));
        }

        #[test]
        fn never_panics(text in "\\PC{0,30}|[0-9]{0,25}[.]?[0-9]{0,25} ?[a-z]{0,3}") {
            let _ = parse(&text);
        }
    }
}
