//! How far a source got on its way to steering the clock, and why no further.
//!
//! Owns: the one list of reasons. Selection walks a source up this ladder and leaves it where it failed; the
//! log line and the report say the same thing, because it is the same value. Does not own: the rules
//! ([`select`]).
//!
//! The one idea a newcomer lacks: the order of the variants *is* the order of the tests. A source that
//! fails several is shown the first, which is the one to mend first.
//!
//! [`select`]: super::select

use crate::time::NtpDuration;
use std::fmt;

/// Which source. Unique among the candidates of one selection; also breaks ties, the smaller one first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SourceId(pub u32);

/// The state of one source. Later in the list = further; at the same stage the numbers decide, which has no
/// meaning.
///
/// Lengths of time are as measured, offsets > 0 where our clock is behind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SourceState {
    /// The last eight polls brought no valid packet.
    Unreachable,
    /// It answers that its own clock is not synchronised: leap indicator 3.
    Unsynchronised,
    /// Its stratum is not one of a server's, 1 to 15.
    BadStratum {
        /// As it says.
        stratum: u8,
    },
    /// It takes its time from us.
    FollowsUs,
    /// It takes its time from our system peer, so it knows nothing that we do not.
    FollowsSystemPeer,
    /// It answers, but has not given enough samples yet.
    Measuring {
        /// Samples in the clock filter, 0 to 3.
        samples: u8,
    },
    /// Its possible error is too large.
    TooDistant {
        /// The root distance.
        distance: NtpDuration,
        /// The most allowed, PHI * poll included.
        limit: NtpDuration,
    },
    /// Its packets are under way for longer than the operator allows.
    DelayTooLong {
        /// The delay.
        delay: NtpDuration,
        /// The most allowed.
        limit: NtpDuration,
    },
    /// Its offsets vary more than the operator allows.
    TooVariable {
        /// The jitter.
        jitter: NtpDuration,
        /// The most allowed.
        limit: NtpDuration,
    },
    /// It is good enough, but only to be watched: option `noselect`.
    NotSelectable,
    /// Nothing was selected before, and another source needs just one sample more to be compared with.
    WaitingForMeasurements,
    /// The sources contradict each other.
    NoMajority {
        /// So many of them agree at most,
        agreeing: u32,
        /// out of so many that had a say.
        sources: u32,
    },
    /// The majority agrees that it is wrong.
    Falseticker {
        /// What it says.
        offset: NtpDuration,
        /// The truth is above this,
        low: NtpDuration,
        /// and below that.
        high: NtpDuration,
    },
    /// It may be right, but it could be wrong by more than the sources with the option `trust` allow.
    Untrusted {
        /// Its root distance.
        distance: NtpDuration,
    },
    /// It is right, but fewer sources are than the operator demands.
    WaitingForSources {
        /// Sources that agree.
        agreeing: u32,
        /// The least allowed.
        minimum: u32,
    },
    /// It is right, but no source with the option `require` is.
    WaitingForRequired,
    /// It is right, but another one with the option `prefer` is, too.
    NotPreferred,
    /// It is right, but further from the others than they are from each other.
    Outlier {
        /// RMS of its distances to the others.
        jitter: NtpDuration,
    },
    /// Its offset is part of the average.
    Combined,
    /// The system peer: part of the average, and what we tell our clients about their time's way is its.
    Selected,
}

impl SourceState {
    /// Is nothing wrong with it? Which of those that are good is used changes with every sample.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        matches!(self, Self::NotPreferred | Self::Outlier { .. } | Self::Combined | Self::Selected)
    }

    /// The name of the stage, for logs, `--json` and metrics. Without numbers: log when it changes.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Unsynchronised => "unsynchronised",
            Self::BadStratum { .. } => "bad-stratum",
            Self::FollowsUs => "follows-us",
            Self::FollowsSystemPeer => "follows-system-peer",
            Self::Measuring { .. } => "measuring",
            Self::TooDistant { .. } => "too-distant",
            Self::DelayTooLong { .. } => "delay-too-long",
            Self::TooVariable { .. } => "too-variable",
            Self::NotSelectable => "not-selectable",
            Self::WaitingForMeasurements => "waiting-for-measurements",
            Self::NoMajority { .. } => "no-majority",
            Self::Falseticker { .. } => "falseticker",
            Self::Untrusted { .. } => "untrusted",
            Self::WaitingForSources { .. } => "waiting-for-sources",
            Self::WaitingForRequired => "waiting-for-required",
            Self::NotPreferred => "not-preferred",
            Self::Outlier { .. } => "outlier",
            Self::Combined => "combined",
            Self::Selected => "selected",
        }
    }

    /// The sign a user of chrony knows: `*` selected, `+` combined, `-` good but not combined, `x`
    /// falseticker, `~` too variable, `?` unusable.
    #[must_use]
    pub const fn sign(&self) -> char {
        match self {
            Self::Selected => '*',
            Self::Combined => '+',
            Self::WaitingForSources { .. }
            | Self::WaitingForRequired
            | Self::NotPreferred
            | Self::Outlier { .. } => '-',
            Self::NoMajority { .. } | Self::Falseticker { .. } => 'x',
            Self::TooVariable { .. } => '~',
            _ => '?',
        }
    }

    /// Does its offset steer the clock?
    #[must_use]
    pub const fn is_used(&self) -> bool {
        matches!(self, Self::Combined | Self::Selected)
    }
}

impl fmt::Display for SourceState {
    /// The reason in words, with its numbers.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => formatter.write_str("no valid answer to the last 8 polls"),
            Self::Unsynchronised => formatter.write_str("its own clock is not synchronised"),
            Self::BadStratum { stratum } => write!(formatter, "its stratum is {stratum}, not 1 to 15"),
            Self::FollowsUs => formatter.write_str("it takes its time from us"),
            Self::FollowsSystemPeer => formatter.write_str("it takes its time from our system peer"),
            Self::Measuring { samples } => {
                write!(formatter, "{samples} of {} samples needed", super::filter::SAMPLES_NEEDED)
            }
            Self::TooDistant { distance, limit } => over(formatter, "root distance", *distance, *limit),
            Self::DelayTooLong { delay, limit } => over(formatter, "delay", *delay, *limit),
            Self::TooVariable { jitter, limit } => over(formatter, "jitter", *jitter, *limit),
            Self::NotSelectable => formatter.write_str("only watched (noselect)"),
            Self::WaitingForMeasurements => {
                formatter.write_str("waits for one more sample of another source")
            }
            Self::NoMajority { agreeing, sources } => {
                write!(formatter, "no majority: at most {agreeing} of {sources} sources agree")
            }
            Self::Falseticker { offset, low, high } => write!(
                formatter,
                "offset {:+} is outside {:+} to {:+}, where the majority agrees",
                offset.with_unit(),
                low.with_unit(),
                high.with_unit()
            ),
            Self::Untrusted { distance } => write!(
                formatter,
                "offset +- root distance {} reaches beyond the trusted sources",
                distance.with_unit()
            ),
            Self::WaitingForSources { agreeing, minimum } => {
                write!(formatter, "{agreeing} sources agree, at least {minimum} must")
            }
            Self::WaitingForRequired => formatter.write_str("no required source agrees"),
            Self::NotPreferred => formatter.write_str("another source is preferred"),
            Self::Outlier { jitter } => {
                write!(formatter, "agrees least with the others (RMS {})", jitter.with_unit())
            }
            Self::Combined => formatter.write_str("combined with the system peer"),
            Self::Selected => formatter.write_str("system peer"),
        }
    }
}

fn over(
    formatter: &mut fmt::Formatter<'_>,
    what: &str,
    value: NtpDuration,
    limit: NtpDuration,
) -> fmt::Result {
    write!(formatter, "{what} {} is over the limit of {}", value.with_unit(), limit.with_unit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn milliseconds(count: i64) -> NtpDuration {
        NtpDuration::from_nanoseconds(count * 1_000_000)
    }

    /// One of each, in the order of the tests; the whole table at a glance.
    const LADDER: [(SourceState, char, &str, &str); 20] = [
        (SourceState::Unreachable, '?', "unreachable", "no valid answer to the last 8 polls"),
        (SourceState::Unsynchronised, '?', "unsynchronised", "its own clock is not synchronised"),
        (SourceState::BadStratum { stratum: 16 }, '?', "bad-stratum", "its stratum is 16, not 1 to 15"),
        (SourceState::FollowsUs, '?', "follows-us", "it takes its time from us"),
        (
            SourceState::FollowsSystemPeer,
            '?',
            "follows-system-peer",
            "it takes its time from our system peer",
        ),
        (SourceState::Measuring { samples: 3 }, '?', "measuring", "3 of 4 samples needed"),
        (
            SourceState::TooDistant { distance: milliseconds(1940), limit: milliseconds(1001) },
            '?',
            "too-distant",
            "root distance 1.94 s is over the limit of 1.00 s",
        ),
        (
            SourceState::DelayTooLong { delay: milliseconds(400), limit: milliseconds(250) },
            '?',
            "delay-too-long",
            "delay 400 ms is over the limit of 250 ms",
        ),
        (
            SourceState::TooVariable { jitter: milliseconds(30), limit: milliseconds(5) },
            '~',
            "too-variable",
            "jitter 30.0 ms is over the limit of 5.00 ms",
        ),
        (SourceState::NotSelectable, '?', "not-selectable", "only watched (noselect)"),
        (
            SourceState::WaitingForMeasurements,
            '?',
            "waiting-for-measurements",
            "waits for one more sample of another source",
        ),
        (
            SourceState::NoMajority { agreeing: 2, sources: 5 },
            'x',
            "no-majority",
            "no majority: at most 2 of 5 sources agree",
        ),
        (
            SourceState::Falseticker {
                offset: milliseconds(500),
                low: milliseconds(-1),
                high: milliseconds(2),
            },
            'x',
            "falseticker",
            "offset +500 ms is outside -1.00 ms to +2.00 ms, where the majority agrees",
        ),
        (
            SourceState::Untrusted { distance: milliseconds(80) },
            '?',
            "untrusted",
            "offset +- root distance 80.0 ms reaches beyond the trusted sources",
        ),
        (
            SourceState::WaitingForSources { agreeing: 1, minimum: 3 },
            '-',
            "waiting-for-sources",
            "1 sources agree, at least 3 must",
        ),
        (SourceState::WaitingForRequired, '-', "waiting-for-required", "no required source agrees"),
        (SourceState::NotPreferred, '-', "not-preferred", "another source is preferred"),
        (
            SourceState::Outlier { jitter: milliseconds(7) },
            '-',
            "outlier",
            "agrees least with the others (RMS 7.00 ms)",
        ),
        (SourceState::Combined, '+', "combined", "combined with the system peer"),
        (SourceState::Selected, '*', "selected", "system peer"),
    ];

    #[test]
    fn every_state_has_its_name_sign_and_reason() {
        for (state, sign, name, reason) in LADDER {
            assert_eq!((state.sign(), state.name()), (sign, name));
            assert_eq!(state.to_string(), reason);
            assert_eq!(state.is_used(), "*+".contains(sign));
        }
    }

    #[test]
    fn further_is_greater() {
        assert!(LADDER.is_sorted_by(|one, next| one.0 < next.0));
    }
}
