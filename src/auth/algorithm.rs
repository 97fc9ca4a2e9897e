//! The key types, and a key made ready to sign.
//!
//! Owns: names, digest lengths, the arithmetic. Does not own: ids, packets.
//!
//! The one idea a newcomer lacks: what depends on the key alone is done once. A hash is kept as it is after the key
//! went in and copied for each packet; AES keeps its round keys, and CMAC borrows them.

use aes::cipher::KeyInit;
use aes::{Aes128Enc, Aes256Enc};
use cmac::digest::InnerInit;
use cmac::{Cmac, Mac as _};
use md5::Md5;
use sha1::Sha1;
use sha2::digest::Digest;
use sha2::{Sha256, Sha384, Sha512};
use std::fmt;
use thiserror::Error;

/// The longest digest, SHA-512's.
pub const DIGEST_LENGTH_MAX: usize = 64;
/// The longest digest in a version 4 packet: RFC 7822 section 7.5.1.3 allows MACs of 24 octets, so that they cannot be
/// taken for extension fields. Longer digests are cut off there, as chronyd and ntpd do.
pub const DIGEST_LENGTH_V4_MAX: usize = 20;
/// Longer secrets add nothing to any digest here.
pub const SECRET_OCTETS_MAX: usize = 256;
/// Shorter secrets can be searched through: 80 bits.
pub const SECRET_OCTETS_WEAK: usize = 10;

/// How a key signs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Algorithm {
    /// MD5(key || packet), deprecated by RFC 8573 section 2.
    Md5,
    /// SHA-1(key || packet).
    Sha1,
    /// SHA-256(key || packet).
    Sha256,
    /// SHA-384(key || packet).
    Sha384,
    /// SHA-512(key || packet).
    Sha512,
    /// AES-CMAC with a key of 128 bits (RFC 8573, RFC 4493).
    Aes128,
    /// AES-CMAC with a key of 256 bits, as chronyd has it.
    Aes256,
}

impl Algorithm {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 7] =
        [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512, Self::Aes128, Self::Aes256];

    /// From any name that chrony's or ntpd's key files have for it, in upper or lower case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_uppercase().as_str() {
            "MD5" | "M" => Self::Md5,
            "SHA1" | "SHA-1" => Self::Sha1,
            "SHA256" | "SHA-256" => Self::Sha256,
            "SHA384" | "SHA-384" => Self::Sha384,
            "SHA512" | "SHA-512" => Self::Sha512,
            "AES128" | "AES-128" | "AES" | "AES128CMAC" | "AES-128-CMAC" => Self::Aes128,
            "AES256" | "AES-256" | "AES256CMAC" | "AES-256-CMAC" => Self::Aes256,
            _ => return None,
        })
    }

    /// The name that key files of chrony have.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "MD5",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
            Self::Sha384 => "SHA384",
            Self::Sha512 => "SHA512",
            Self::Aes128 => "AES128",
            Self::Aes256 => "AES256",
        }
    }

    /// Octets of the whole digest.
    #[must_use]
    pub const fn digest_length(self) -> usize {
        match self {
            Self::Md5 | Self::Aes128 | Self::Aes256 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => DIGEST_LENGTH_MAX,
        }
    }

    /// The only length a secret may have, in octets, where there is one (RFC 8573 section 3).
    #[must_use]
    pub const fn secret_length(self) -> Option<usize> {
        match self {
            Self::Aes128 => Some(16),
            Self::Aes256 => Some(32),
            _ => None,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Why a secret is no key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum KeyError {
    /// A cipher's key of another length than the cipher's.
    #[error("a secret of {octets} octets: must be of {needed} for {algorithm}")]
    Length {
        /// Of what type.
        algorithm: Algorithm,
        /// How many octets it has.
        octets: usize,
        /// How many it must have.
        needed: usize,
    },
    /// Empty, or longer than any use.
    #[error("a secret of {0} octets: must be of 1 to {SECRET_OCTETS_MAX}")]
    Size(usize),
}

/// A key without its id. What it holds is as secret as the secret.
#[derive(Clone)]
pub struct Key {
    schedule: Schedule,
    secret_octets: usize,
}

/// What of a digest does not depend on the packet.
#[derive(Clone)]
enum Schedule {
    Md5(Md5),
    Sha1(Sha1),
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
    /// Boxed, for round keys are much longer than a hash.
    Aes128(Box<Aes128Enc>),
    Aes256(Box<Aes256Enc>),
}

impl Key {
    /// Makes a secret ready to sign with.
    ///
    /// # Errors
    /// The secret's length is none that the algorithm takes.
    pub fn new(algorithm: Algorithm, secret: &[u8]) -> Result<Self, KeyError> {
        let octets = secret.len();
        if octets == 0 || octets > SECRET_OCTETS_MAX {
            return Err(KeyError::Size(octets));
        }
        let length_error = |needed| move |_| KeyError::Length { algorithm, octets, needed };
        let schedule = match algorithm {
            Algorithm::Md5 => Schedule::Md5(Md5::new_with_prefix(secret)),
            Algorithm::Sha1 => Schedule::Sha1(Sha1::new_with_prefix(secret)),
            Algorithm::Sha256 => Schedule::Sha256(Sha256::new_with_prefix(secret)),
            Algorithm::Sha384 => Schedule::Sha384(Sha384::new_with_prefix(secret)),
            Algorithm::Sha512 => Schedule::Sha512(Sha512::new_with_prefix(secret)),
            Algorithm::Aes128 => {
                Schedule::Aes128(Box::new(Aes128Enc::new_from_slice(secret).map_err(length_error(16))?))
            }
            Algorithm::Aes256 => {
                Schedule::Aes256(Box::new(Aes256Enc::new_from_slice(secret).map_err(length_error(32))?))
            }
        };
        Ok(Self { schedule, secret_octets: octets })
    }

    /// Its type.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        match self.schedule {
            Schedule::Md5(_) => Algorithm::Md5,
            Schedule::Sha1(_) => Algorithm::Sha1,
            Schedule::Sha256(_) => Algorithm::Sha256,
            Schedule::Sha384(_) => Algorithm::Sha384,
            Schedule::Sha512(_) => Algorithm::Sha512,
            Schedule::Aes128(_) => Algorithm::Aes128,
            Schedule::Aes256(_) => Algorithm::Aes256,
        }
    }

    /// Can the secret be found by trying? Below 80 bits.
    #[must_use]
    pub const fn is_weak(&self) -> bool {
        self.secret_octets < SECRET_OCTETS_WEAK
    }

    /// The whole digest of `message`, in the first [`Algorithm::digest_length`] octets.
    pub(super) fn digest(&self, message: &[u8]) -> [u8; DIGEST_LENGTH_MAX] {
        let mut digest = [0; DIGEST_LENGTH_MAX];
        match &self.schedule {
            Schedule::Md5(hash) => finish_hash(hash, message, &mut digest),
            Schedule::Sha1(hash) => finish_hash(hash, message, &mut digest),
            Schedule::Sha256(hash) => finish_hash(hash, message, &mut digest),
            Schedule::Sha384(hash) => finish_hash(hash, message, &mut digest),
            Schedule::Sha512(hash) => finish_hash(hash, message, &mut digest),
            Schedule::Aes128(cipher) => {
                let mac = Cmac::<&Aes128Enc>::inner_init(&**cipher).chain_update(message).finalize();
                digest[..16].copy_from_slice(&mac.into_bytes());
            }
            Schedule::Aes256(cipher) => {
                let mac = Cmac::<&Aes256Enc>::inner_init(&**cipher).chain_update(message).finalize();
                digest[..16].copy_from_slice(&mac.into_bytes());
            }
        }
        digest
    }
}

fn finish_hash<H: Digest + Clone>(keyed: &H, message: &[u8], digest: &mut [u8; DIGEST_LENGTH_MAX]) {
    let result = keyed.clone().chain_update(message).finalize();
    digest[..result.len()].copy_from_slice(&result);
}

impl fmt::Debug for Key {
    /// Everything but the key.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Key({}, {} octets)", self.algorithm(), self.secret_octets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    fn digest(algorithm: Algorithm, secret: &[u8], message: &[u8]) -> String {
        let digest = Key::new(algorithm, secret).unwrap().digest(message);
        let (used, rest) = digest.split_at(algorithm.digest_length());
        assert!(rest.iter().all(|&octet| octet == 0));
        used.iter().map(|octet| format!("{octet:02x}")).collect()
    }

    /// RFC 4493 section 4 (which RFC 8573 section 5 points to), and NIST SP 800-38B appendix D.3 for 256 bits.
    #[test]
    fn rfc_8573_and_nist_vectors_of_aes_cmac() {
        let message = hex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51\
             30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710");
        let key_128 = hex("2b7e151628aed2a6abf7158809cf4f3c");
        let key_256 = hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
        for (key, algorithm, length, expected) in [
            (&key_128, Algorithm::Aes128, 0, "bb1d6929e95937287fa37d129b756746"),
            (&key_128, Algorithm::Aes128, 16, "070a16b46b4d4144f79bdd9dd04a287c"),
            (&key_128, Algorithm::Aes128, 40, "dfa66747de9ae63030ca32611497c827"),
            (&key_128, Algorithm::Aes128, 64, "51f0bebf7e3b9d92fc49741779363cfe"),
            (&key_256, Algorithm::Aes256, 0, "028962f61b7bf89efc6b551f4667d983"),
            (&key_256, Algorithm::Aes256, 16, "28a7023f452e8f82bd4bf28d8c37c35c"),
            (&key_256, Algorithm::Aes256, 40, "aaf3d8f1de5640c232f5b169b9c911e6"),
            (&key_256, Algorithm::Aes256, 64, "e1992190549f6ed5696a2c056c315410"),
        ] {
            assert_eq!(digest(algorithm, key, &message[..length]), expected, "{algorithm} {length}");
        }
    }

    /// `printf 'secretmessage' | md5sum` and its like.
    #[test]
    fn hash_types_hash_the_key_and_then_the_packet() {
        for (algorithm, expected) in [
            (Algorithm::Md5, "27ddff0f0dafc65149db660d29edb31d"),
            (Algorithm::Sha1, "5d3106e3420495f6dfdb7cfbd8ff0c744127309b"),
            (Algorithm::Sha256, "33dd93031495b1e73b345ef5b7f494146d6c361908b4f2ad9cf7bbd35cffaa26"),
            (
                Algorithm::Sha384,
                "f6c69efb1e354e72ce541e269ae424dd9d034708b20286a3ae18f7564d1597a8831d442ebcb2db91f114e84c259ccef3",
            ),
            (
                Algorithm::Sha512,
                "53b0e2961ca7475ea1998b6290d924b4cb448ff456abc45edd6565f6514388ffbae7a3e6a45243de2ee1d0d3fe047291c7fe57c31fc983dacd087d60c5958624",
            ),
        ] {
            assert_eq!(digest(algorithm, b"secret", b"message"), expected, "{algorithm}");
        }
    }

    #[test]
    fn every_algorithm_has_a_name_that_reads_back() {
        for (index, algorithm) in Algorithm::ALL.into_iter().enumerate() {
            assert_eq!(algorithm as usize, index);
            assert_eq!(Algorithm::from_name(&algorithm.name().to_lowercase()), Some(algorithm));
        }
        for name in ["", "MD", "SHA", "SHA2", "AES192", "MD5 ", "SHA3-256"] {
            assert_eq!(Algorithm::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn lengths_of_secrets() {
        for (algorithm, octets, fine) in [
            (Algorithm::Md5, 0, false),
            (Algorithm::Md5, 1, true),
            (Algorithm::Sha512, 256, true),
            (Algorithm::Sha512, 257, false),
            (Algorithm::Aes128, 15, false),
            (Algorithm::Aes128, 16, true),
            (Algorithm::Aes128, 17, false),
            (Algorithm::Aes256, 16, false),
            (Algorithm::Aes256, 32, true),
        ] {
            let made = Key::new(algorithm, &vec![7; octets]);
            assert_eq!(made.is_ok(), fine, "{algorithm} {octets}: {made:?}");
        }
        let short = Key::new(Algorithm::Aes128, &[0; 15]).unwrap_err().to_string();
        assert_eq!(short, "a secret of 15 octets: must be of 16 for AES128");
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = Key::new(Algorithm::Sha1, b"Hunter2Hunter2").unwrap();
        assert_eq!(format!("{key:?}"), "Key(SHA1, 14 octets)");
        assert!(!key.is_weak() && Key::new(Algorithm::Sha1, b"Hunter2").unwrap().is_weak());
    }
}
