//! What can be wrong with a configuration, said in one line each.
//!
//! Owns: [`Problem`], the [`Place`] it was found at, and [`Problems`], all that one reading found. Does not own:
//! the rules (see `check`), nor the exit code.
//!
//! The one idea a newcomer lacks: a value comes from a file's line or from a command line flag, and the user must
//! hear about the one they typed. So every value carries its [`Place`] until it is checked.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// How many problems are printed: a list of ten thousand wrong prefixes has one cause.
pub const PROBLEMS_SHOWN_MAX: usize = 20;

/// How much of a wrong value is repeated to the user, in characters.
const VALUE_SHOWN_MAX: usize = 60;

/// Where a value was written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// A command line flag, with its dashes: `--port`.
    Flag(&'static str),
    /// A line of a file.
    Line {
        /// The file, as the user named it.
        path: Arc<Path>,
        /// Counted from 1.
        line: usize,
    },
}

impl fmt::Display for Place {
    /// `timeball.toml:7` or `--port`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => formatter.write_str(flag),
            Self::Line { path, line } => write!(formatter, "{}:{line}", path.display()),
        }
    }
}

/// One value as the user wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    /// Where.
    pub place: Place,
    /// The key with its table: `rate-limit.burst`.
    pub key: String,
    /// The value in the user's spelling: one line, shortened, control characters escaped.
    pub value: String,
}

impl fmt::Display for Setting {
    /// `timeball.toml:7: rate-limit.burst = 0`, or `--port 0` where the flag names the key already.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Flag(flag) => write!(formatter, "{flag} {}", self.value),
            place => write!(formatter, "{place}: {} = {}", self.key, self.value),
        }
    }
}

/// One thing that is wrong with a configuration. Its `Display` is one line that stands alone.
#[derive(Debug, Error)]
pub enum Problem {
    /// The file could not be read.
    #[error("{}: cannot read the configuration: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The file is larger than any configuration is, perhaps not one at all.
    #[error("{}: larger than a configuration may be, {} MiB", path.display(), super::FILE_BYTES_MAX >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The text is no TOML, which is UTF-8.
    #[error("{place}: {text}: not TOML: {message}")]
    Syntax {
        /// Where the parser stopped.
        place: Place,
        /// That line of the file, shortened.
        text: String,
        /// The parser's words.
        message: String,
    },
    /// A key that we do not have.
    #[error("{setting}: unknown key, {hint}")]
    UnknownKey {
        /// The key and its value.
        setting: Setting,
        /// What the user may have meant.
        hint: Hint,
    },
    /// A value of the wrong type or outside its range.
    #[error("{setting}: must be {allowed}")]
    Invalid {
        /// The key and its value.
        setting: Setting,
        /// The allowed range, to follow "must be".
        allowed: String,
    },
    /// A key that must be there and is not.
    #[error("{place}: {key} is missing, must be {allowed}")]
    Missing {
        /// The table that lacks it.
        place: Place,
        /// The key with its table.
        key: String,
        /// The allowed range, to follow "must be".
        allowed: String,
    },
    /// A value given twice where it may be once.
    #[error("{setting}: must be given once, but is {first_key} at {first} already")]
    Repeated {
        /// The second one.
        setting: Setting,
        /// Where the first one is.
        first: Place,
        /// The key of the first one.
        first_key: String,
    },
}

impl Problem {
    /// Where, unless it is about the whole file.
    #[must_use]
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Unreadable { .. } | Self::TooLarge { .. } => None,
            Self::Syntax { place, .. } | Self::Missing { place, .. } => Some(place),
            Self::UnknownKey { setting, .. }
            | Self::Invalid { setting, .. }
            | Self::Repeated { setting, .. } => Some(&setting.place),
        }
    }
}

/// What to write instead of an unknown key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hint {
    /// This key looks like it.
    Nearest(String),
    /// Nothing looks like it: all the keys its table has.
    AnyOf(Vec<String>),
}

impl fmt::Display for Hint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nearest(key) => write!(formatter, "did you mean {key}?"),
            Self::AnyOf(keys) => write!(formatter, "must be one of {}", keys.join(", ")),
        }
    }
}

/// Everything one reading found wrong, flags first, then in the order of the file. Never empty.
#[derive(Debug, Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    /// One line each, without a final newline, the first [`PROBLEMS_SHOWN_MAX`] of them.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().take(PROBLEMS_SHOWN_MAX).enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(formatter, "{separator}{problem}")?;
        }
        match self.0.len().saturating_sub(PROBLEMS_SHOWN_MAX) {
            0 => Ok(()),
            more => write!(formatter, "\nand {more} more"),
        }
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// The user's text as it may stand in a message: one line, no control characters (they could drive a terminal),
/// not long.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (count, character) in text.trim().chars().enumerate() {
        if count == VALUE_SHOWN_MAX {
            shown.push_str("...");
            break;
        }
        match character {
            '\n' | '\t' => shown.push(' '),
            control if control.is_control() => shown.extend(control.escape_default()),
            plain => shown.push(plain),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_values_on_one_short_line_without_control_characters() {
        assert_eq!(shown(" [1,\n\t2] "), "[1,  2]");
        assert_eq!(shown("\"\u{1b}[2J\""), "\"\\u{1b}[2J\"");
        assert_eq!(shown(&"x".repeat(61)), format!("{}...", "x".repeat(60)));
    }

    #[test]
    fn prints_the_first_problems_and_counts_the_rest() {
        let setting = Setting { place: Place::Flag("--port"), key: "port".into(), value: "0".into() };
        let invalid = || Problem::Invalid { setting: setting.clone(), allowed: "1 to 65535".into() };
        let problems = Problems((0..PROBLEMS_SHOWN_MAX + 3).map(|_| invalid()).collect());
        let text = problems.to_string();
        assert_eq!(text.lines().count(), PROBLEMS_SHOWN_MAX + 1);
        assert!(text.starts_with("--port 0: must be 1 to 65535\n"), "{text}");
        assert!(text.ends_with("\nand 3 more"), "{text}");
    }
}
