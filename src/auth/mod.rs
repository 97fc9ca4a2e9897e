//! Symmetric keys: what signs a packet and what proves that it was signed (RFC 5905 section 7.3, RFC 8573).
//!
//! Owns: the key types ([`Algorithm`]), the [`KeyTable`] that checks and signs, and the text of key files
//! ([`parse_key_file`]). Does not own: where the file is and who may read it, what becomes of a packet that fails.
//!
//! The one idea a newcomer lacks: a key is its id, its type and its value, and all three must match (RFC 8573
//! section 3). A packet names the id only. So nothing in it chooses the algorithm; the table does.
//!
//! The hash types are not HMAC but H(key || packet), as NTP has always done. Whoever sees such a MAC could extend the
//! packet behind it, were it not that what has to follow then is the hash's padding, 80 00 00 00 ..., which is no
//! extension field (its length is 0), so the packet is malformed, and that version 3 has nothing but a MAC there.

mod algorithm;
mod key_file;
mod table;

pub use algorithm::{Algorithm, Key, KeyError};
pub use key_file::{
    Fault, KEY_FILE_OCTETS_MAX, KeyFileProblem, KeyFileProblems, KeyRules, PROBLEMS_SHOWN_MAX, parse_key_file,
};
pub use table::{Authentication, DuplicateKey, KEYS_MAX, KeyTable, MacError, UnknownKey};

use std::fmt;
use std::num::NonZeroU32;

/// Which key: 1 to 2^32 - 1. 0 is what a crypto-NAK has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyId(NonZeroU32);

impl KeyId {
    /// The id of this number, unless that is 0.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number, as packets carry it.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0.get()
    }
}

/// The keys that anybody may use who has them: clients, and whoever would be a source of ours without being named for one.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum TrustedKeys {
    /// Each that there is.
    #[default]
    All,
    /// These, each once.
    Only(Vec<KeyId>),
}

impl TrustedKeys {
    /// Is this one of them?
    #[must_use]
    pub fn trusts(&self, key: KeyId) -> bool {
        match self {
            Self::All => true,
            Self::Only(keys) => keys.contains(&key),
        }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
