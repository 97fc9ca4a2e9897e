//! Key files, chrony's and ntpd's (`ntp.keys`), read as one format.
//!
//! Owns: what a line may say, and what is said of one that is wrong. Does not own: the file, nor who may read it.
//!
//! The one idea a newcomer lacks: the two formats agree but for secrets of more than 20 characters without `ASCII:` or
//! `HEX:` in front, which are hex to ntpd and ASCII to chrony. They are read as ntpd reads them, unless other lines of
//! the file show that it is chrony's: then the line is refused, for a wrong guess would be a key that never matches.
//!
//! A problem tells line, key id and what is allowed, but never a secret, nor a word that could be one.

use super::algorithm::{Algorithm, Key, KeyError};
use super::table::{KEYS_MAX, KeyTable};
use super::{DuplicateKey, KeyId};
use std::collections::BTreeMap;
use std::fmt;
use thiserror::Error;
use zeroize::Zeroizing;

/// The largest key file: 256 octets for each key.
pub const KEY_FILE_OCTETS_MAX: u64 = KEYS_MAX as u64 * 256;
/// How many problems are printed.
pub const PROBLEMS_SHOWN_MAX: usize = 20;
/// ntpd takes longer secrets for hex digits.
const ASCII_LENGTH_MAX: usize = 20;
/// With these chrony marks a comment, ntpd with the first.
const COMMENT_MARKS: [char; 4] = ['#', '!', ';', '%'];
/// How much of a wrong type is repeated to the user.
const TYPE_SHOWN_MAX: usize = 20;

/// Which keys are taken.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct KeyRules {
    /// Are MD5 keys?
    pub allow_md5: bool,
}

/// One line that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyFileProblem {
    /// Counted from 1.
    pub line: usize,
    /// The key's id, if that could be read.
    pub key: Option<KeyId>,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What may be wrong with a line.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Fault {
    /// Bytes that are no text.
    #[error("not UTF-8: write such a secret as HEX:...")]
    NotText,
    /// Too few words, or too many.
    #[error("{0} words: must be a number, a type and a secret, or a number and an MD5 secret")]
    Words(usize),
    /// ntpd's list of addresses behind the secret.
    #[error(
        "something behind the secret: must be nothing or a comment (ntpd's lists of addresses are not supported)"
    )]
    Behind,
    /// The first word is no key id.
    #[error("the first word is no key id: must be 1 to 4294967295")]
    Id,
    /// Type and secret are the other way round.
    #[error("the type comes last: must be a number, a type and a secret")]
    Order,
    /// The second of two words is a type.
    #[error("type {0} and no secret: must be a number, a type and a secret")]
    NoSecret(Algorithm),
    /// The second word is no type.
    #[error("type {0:?}: must be {types}", types = type_names())]
    Type(String),
    /// An MD5 key, and those are not allowed.
    #[error("type MD5: must be {types}, unless allow-md5 = true in [keys]", types = type_names())]
    Md5,
    /// Hex digits that are none, or an odd number of them.
    #[error("a secret of {0} characters: must be an even number of hex digits behind HEX:")]
    Hex(usize),
    /// A long secret that is no hex.
    #[error(
        "a secret of {0} characters: must be an even number of hex digits above 20, or have ASCII: in front"
    )]
    LongAscii(usize),
    /// chrony and ntpd would read it differently.
    #[error("a secret of {0} characters: must have HEX: or ASCII: in front, in a file where others have")]
    Ambiguous(usize),
    /// A comment to ntpd, and part of the secret to chrony.
    #[error("a secret with # in it: must have ASCII: in front, or be HEX:...")]
    Hash,
    /// No secret that the type takes.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The same id again.
    #[error("must be there once, but is on line {0} already")]
    Repeated(usize),
    /// More keys than any server has.
    #[error("must not be there: a file may have {KEYS_MAX} keys")]
    TooMany,
}

fn type_names() -> String {
    let names: Vec<&str> =
        Algorithm::ALL.into_iter().filter(|one| *one != Algorithm::Md5).map(Algorithm::name).collect();
    match names.split_last() {
        Some((last, first)) => format!("{} or {last}", first.join(", ")),
        None => String::new(),
    }
}

impl fmt::Display for KeyFileProblem {
    /// `7: key 3: type "SHA3": must be ...`, to follow the file's name and a colon.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: ", self.line)?;
        if let Some(key) = self.key {
            write!(formatter, "key {key}: ")?;
        }
        self.fault.fmt(formatter)
    }
}

/// Everything that is wrong with a key file, in the order of its lines. Never empty.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub struct KeyFileProblems {
    /// The file, as the user named it.
    pub file: String,
    /// What is wrong.
    pub problems: Vec<KeyFileProblem>,
}

impl fmt::Display for KeyFileProblems {
    /// One line each, without a final newline, the first [`PROBLEMS_SHOWN_MAX`] of them.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().take(PROBLEMS_SHOWN_MAX).enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(formatter, "{separator}{}:{problem}", self.file)?;
        }
        match self.problems.len().saturating_sub(PROBLEMS_SHOWN_MAX) {
            0 => Ok(()),
            more => write!(formatter, "\nand {more} more"),
        }
    }
}

/// Reads the text of a key file; `file` is its name for messages.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse_key_file(file: &str, text: &[u8], rules: KeyRules) -> Result<KeyTable, KeyFileProblems> {
    let is_chronys = lines(text).any(|(_, line)| is_chronys(line));
    let mut reader = Reader { rules, is_chronys, lines_of: BTreeMap::new(), keys: Vec::new() };
    let mut problems = Vec::new();
    for (line, bytes) in lines(text) {
        let mut key = None;
        if let Err(fault) = reader.read(line, bytes, &mut key) {
            problems.push(KeyFileProblem { line, key, fault });
        }
    }
    if !problems.is_empty() {
        return Err(KeyFileProblems { file: file.to_owned(), problems });
    }
    let Reader { keys, lines_of, .. } = reader;
    KeyTable::new(keys).map_err(|DuplicateKey(id)| {
        let line = lines_of.get(&id).copied().unwrap_or_default();
        let problem = KeyFileProblem { line, key: Some(id), fault: Fault::Repeated(line) };
        KeyFileProblems { file: file.to_owned(), problems: vec![problem] }
    })
}

/// Every line that is neither empty nor a comment, with its number.
fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let lines = text.split(|&octet| octet == b'\n').map(<[u8]>::trim_ascii).zip(1..);
    let is_comment = |line: &[u8]| COMMENT_MARKS.iter().any(|&mark| line.starts_with(&[mark as u8]));
    lines.filter(move |(line, _)| !line.is_empty() && !is_comment(line)).map(|(line, number)| (number, line))
}

/// Does this line show that the file was written for chrony?
fn is_chronys(line: &[u8]) -> bool {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.nth(2).is_none_or(|secret| secret.starts_with(b"ASCII:") || secret.starts_with(b"HEX:"))
}

struct Reader {
    rules: KeyRules,
    is_chronys: bool,
    lines_of: BTreeMap<KeyId, usize>,
    keys: Vec<(KeyId, Key)>,
}

impl Reader {
    /// Reads one line. `id` is set as soon as it is known, for the message.
    fn read(&mut self, line: usize, bytes: &[u8], id: &mut Option<KeyId>) -> Result<(), Fault> {
        let text = str::from_utf8(bytes).map_err(|_| Fault::NotText)?;
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let key_id = words.first().copied().and_then(key_id).ok_or(Fault::Id)?;
        *id = Some(key_id);
        let (algorithm, secret) = self.type_and_secret(&words)?;
        if algorithm == Algorithm::Md5 && !self.rules.allow_md5 {
            return Err(Fault::Md5);
        }
        let key = Key::new(algorithm, &secret)?;
        if let Some(first) = self.lines_of.insert(key_id, line) {
            self.lines_of.insert(key_id, first);
            return Err(Fault::Repeated(first));
        }
        if self.keys.len() == KEYS_MAX {
            return Err(Fault::TooMany);
        }
        self.keys.push((key_id, key));
        Ok(())
    }

    fn type_and_secret(&self, words: &[&str]) -> Result<(Algorithm, Zeroizing<Vec<u8>>), Fault> {
        match *words {
            // chrony's old form.
            [_, secret] => match Algorithm::from_name(secret) {
                Some(algorithm) => Err(Fault::NoSecret(algorithm)),
                None => Ok((Algorithm::Md5, prefixed(secret).unwrap_or_else(|| Ok(ascii(secret)))?)),
            },
            [_, _, secret, behind, ..] if secret.starts_with('#') || !behind.starts_with('#') => {
                Err(Fault::Behind)
            }
            [_, name, secret, ..] => {
                let algorithm = Algorithm::from_name(name).ok_or_else(|| wrong_type(name, secret))?;
                Ok((algorithm, prefixed(secret).unwrap_or_else(|| self.bare(secret))?))
            }
            _ => Err(Fault::Words(words.len())),
        }
    }

    /// A secret without anything in front.
    fn bare(&self, secret: &str) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let length = secret.chars().count();
        if secret.contains('#') {
            return Err(Fault::Hash);
        }
        if secret.len() <= ASCII_LENGTH_MAX {
            return Ok(ascii(secret));
        }
        if self.is_chronys {
            return Err(Fault::Ambiguous(length));
        }
        hex(secret).ok_or(Fault::LongAscii(length))
    }
}

fn key_id(word: &str) -> Option<KeyId> {
    let is_number = word.bytes().all(|octet| octet.is_ascii_digit());
    word.parse().ok().filter(|_| is_number).and_then(KeyId::new)
}

/// A secret that says how it is written.
fn prefixed(secret: &str) -> Option<Result<Zeroizing<Vec<u8>>, Fault>> {
    if let Some(text) = secret.strip_prefix("ASCII:") {
        return Some(Ok(ascii(text)));
    }
    let digits = secret.strip_prefix("HEX:")?;
    Some(hex(digits).ok_or(Fault::Hex(digits.chars().count())))
}

fn ascii(text: &str) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(text.as_bytes().to_vec())
}

fn hex(digits: &str) -> Option<Zeroizing<Vec<u8>>> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let digit = |octet: u8| char::from(octet).to_digit(16);
    let mut octets = Zeroizing::new(Vec::with_capacity(pairs.len()));
    for [high, low] in pairs {
        octets.push((digit(*high)? << 4 | digit(*low)?) as u8);
    }
    rest.is_empty().then_some(octets)
}

/// Repeats the word only where it cannot be the secret.
fn wrong_type(name: &str, secret: &str) -> Fault {
    if Algorithm::from_name(secret).is_some() {
        return Fault::Order;
    }
    Fault::Type(name.chars().take(TYPE_SHOWN_MAX).collect())
}

#[cfg(test)]
#[path = "key_file_tests.rs"]
mod tests;
