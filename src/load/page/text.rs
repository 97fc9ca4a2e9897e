//! Numbers and foreign text as the page writes them.
//!
//! Owns: units, rounding, escaping. Does not own: where they stand.
//!
//! The one idea a newcomer lacks: a report is read back from a file anyone may have written, so every text is cut and
//! escaped, and a number that is none (NaN, infinite, negative) becomes a dash.

use crate::load::digits::grouped;

/// What stands where there is no number.
pub const NOTHING: &str = "\u{2013}";

/// Longest text taken from a run, in characters.
const TEXT_MAX: usize = 200;

/// Longest name in a legend or over a small chart, in characters; the tables have all of it.
const NAME_MAX: usize = 60;

/// The start of a name, for where there is little room. Not escaped.
pub fn short(name: &str) -> String {
    match name.char_indices().nth(NAME_MAX) {
        Some((end, _)) => format!("{}\u{2026}", &name[..end]),
        None => name.to_owned(),
    }
}

/// `text` for HTML, inside an element or a quoted attribute: cut, control characters blanked, markup escaped.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len().min(TEXT_MAX));
    for (index, character) in text.chars().enumerate() {
        match character {
            _ if index == TEXT_MAX => {
                escaped.push('\u{2026}');
                break;
            }
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            character if character.is_control() => escaped.push(' '),
            character => escaped.push(character),
        }
    }
    escaped
}

/// A value of zero or more to three significant digits, the integer part whole.
fn three_digits(value: f64) -> String {
    let decimals = match value {
        value if value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// `value` with the largest of `units` (each a factor and its name, largest first) that leaves at least 1.
fn with_unit(value: f64, units: &[(f64, &str)]) -> String {
    let fits = units.iter().find(|(factor, _)| value >= factor * 0.9995).or(units.last());
    fits.map_or_else(
        || three_digits(value),
        |(factor, unit)| format!("{}{unit}", three_digits(value / factor)),
    )
}

/// A latency of so many nanoseconds: `21.4 µs`. A dash for 0, which means that nothing was counted.
pub fn latency(nanoseconds: f64) -> String {
    if !nanoseconds.is_finite() || nanoseconds <= 0.0 {
        return NOTHING.into();
    }
    with_unit(nanoseconds, &[(1e9, "\u{a0}s"), (1e6, "\u{a0}ms"), (1e3, "\u{a0}\u{b5}s"), (1.0, "\u{a0}ns")])
}

/// A rate, short: `1.25 M/s`.
pub fn rate(per_second: f64) -> String {
    if !per_second.is_finite() || per_second < 0.0 {
        return NOTHING.into();
    }
    with_unit(per_second, &[(1e9, "\u{a0}G/s"), (1e6, "\u{a0}M/s"), (1e3, "\u{a0}k/s"), (1.0, "\u{a0}/s")])
}

/// A share, 0 to 1, in per cent, to be escaped. What is not zero never reads as zero.
pub fn percent(share: f64) -> String {
    match share * 100.0 {
        percent if !percent.is_finite() || percent < 0.0 => NOTHING.into(),
        0.0 => "0\u{a0}%".into(),
        percent if percent < 0.01 => "<0.01\u{a0}%".into(),
        percent => format!("{}\u{a0}%", three_digits(percent)),
    }
}

/// What happened in a second: as [`count`], and with its digits where it is little.
pub fn per_second(value: f64) -> String {
    if (0.0..99.95).contains(&value) { three_digits(value) } else { count(value) }
}

/// A whole number with its digits in groups of three: `1,250,000`.
pub fn count(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        return NOTHING.into();
    }
    grouped(value.round() as u64, ',')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_follow_the_size() {
        for (nanoseconds, text) in [
            (1.0, "1 ns"),
            (999.9, "1 µs"),
            (21_400.0, "21.4 µs"),
            (1e6, "1 ms"),
            (123_456_789.0, "123 ms"),
            (6e10, "60 s"),
        ] {
            assert_eq!(latency(nanoseconds).replace('\u{a0}', " "), text);
        }
        assert_eq!(rate(1_250_000.0), "1.25\u{a0}M/s");
        assert_eq!(rate(0.0), "0\u{a0}/s");
        assert_eq!(count(1_250_000.4), "1,250,000");
        assert_eq!(count(999.0), "999");
        assert_eq!(count(-0.0), "0");
    }

    #[test]
    fn no_number_is_a_dash() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0] {
            for text in [latency(value), rate(value), percent(value), count(value)] {
                assert_eq!(text, NOTHING);
            }
        }
        assert_eq!(latency(0.0), NOTHING);
    }

    #[test]
    fn a_small_loss_is_not_none() {
        assert_eq!(percent(0.0), "0\u{a0}%");
        assert_eq!(percent(1e-9), "<0.01\u{a0}%");
        assert_eq!(percent(0.0123), "1.23\u{a0}%");
    }

    #[test]
    fn text_is_cut_and_escaped() {
        assert_eq!(escape("<a b=\"c\" d='e'>&\n"), "&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt;&amp; ");
        assert_eq!(short(&"\u{e9}".repeat(100)), "\u{e9}".repeat(NAME_MAX) + "\u{2026}");
        assert_eq!(escape(&"x".repeat(10_000)).chars().count(), TEXT_MAX + 1);
    }
}
