//! All keys by their ids: checks the MAC of a packet, and signs one.
//!
//! Owns: what a packet's MAC comes to. Does not own: which keys there are, nor who may use which.
//!
//! The one idea a newcomer lacks: the table never changes. New keys are a new table; whoever holds the old one goes on
//! with it until it looks for the new one, so nobody ever sees half of a change.

use super::algorithm::{DIGEST_LENGTH_MAX, DIGEST_LENGTH_V4_MAX, Key};
use super::{Algorithm, KeyId};
use crate::wire::{KEY_ID_LENGTH, Mac, Packet, Version};
use ctutils::CtEq;
use std::fmt;
use thiserror::Error;

/// Keys of a table: as many as ntpd's key numbers (`NTP_MAXKEY`), some 70 MB if all are AES.
pub const KEYS_MAX: usize = 65_535;

/// What the MAC of a packet comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Authentication {
    /// There is none.
    None,
    /// It is right, and by this key.
    Valid(KeyId),
    /// It is wrong, its key is unknown, or the packet cannot be read.
    Invalid,
    /// The sender could not authenticate an earlier packet of ours, or says so: this proves nothing and must change
    /// nothing (CVE-2015-7871, CVE-2016-1547).
    CryptoNak,
}

/// Why a MAC proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum MacError {
    /// There is no such key.
    #[error("unknown key {0}")]
    UnknownKey(u32),
    /// The digest is not what the key makes of the packet.
    #[error("wrong digest")]
    Mismatch,
}

/// A key that is to sign is not in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("there is no key {0}")]
pub struct UnknownKey(pub KeyId);

/// Two keys of one id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("key {0} is there twice")]
pub struct DuplicateKey(pub KeyId);

/// Keys by id.
#[derive(Clone, Default)]
pub struct KeyTable {
    /// In ascending order.
    ids: Vec<KeyId>,
    /// Each at the place of its id.
    keys: Vec<Key>,
}

impl KeyTable {
    /// No keys.
    #[must_use]
    pub const fn empty() -> Self {
        Self { ids: Vec::new(), keys: Vec::new() }
    }

    /// These keys.
    ///
    /// # Errors
    /// Two have the same id.
    pub fn new(keys: impl IntoIterator<Item = (KeyId, Key)>) -> Result<Self, DuplicateKey> {
        let mut keys: Vec<_> = keys.into_iter().collect();
        keys.sort_by_key(|(id, _)| *id);
        if let Some(pair) = keys.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(DuplicateKey(pair[0].0));
        }
        let (ids, keys) = keys.into_iter().unzip();
        Ok(Self { ids, keys })
    }

    /// Only those of these keys that `ids` names.
    #[must_use]
    pub fn restricted_to(&self, ids: &[KeyId]) -> Self {
        let kept = self.ids.iter().zip(&self.keys).filter(|(id, _)| ids.contains(id));
        let (ids, keys) = kept.map(|(id, key)| (*id, key.clone())).unzip();
        Self { ids, keys }
    }

    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ids.len()
    }

    /// None at all?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The keys in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (KeyId, &Key)> {
        self.ids.iter().copied().zip(&self.keys)
    }

    /// The key of this id.
    #[must_use]
    pub fn get(&self, id: KeyId) -> Option<&Key> {
        self.ids.binary_search(&id).ok().and_then(|index| self.keys.get(index))
    }

    /// Checks the MAC at the end of a whole NTP packet.
    #[must_use]
    pub fn verify(&self, packet: &[u8]) -> Authentication {
        let Ok(Packet { mac, .. }) = Packet::parse(packet) else { return Authentication::Invalid };
        match mac {
            None => Authentication::None,
            Some(mac) if mac.is_crypto_nak() => Authentication::CryptoNak,
            Some(mac) => self.check(packet, &mac).map_or(Authentication::Invalid, Authentication::Valid),
        }
    }

    /// Checks `mac`, which `packet` ends with. Takes as long for a digest that is nearly right as for any other.
    ///
    /// A digest longer than 20 octets may be cut off there whatever the version is: chronyd does so in version 4, ntpd
    /// always. 160 bits are beyond guessing.
    ///
    /// # Errors
    /// It does not prove that `packet` comes from whoever has a key of ours.
    pub fn check(&self, packet: &[u8], mac: &Mac<'_>) -> Result<KeyId, MacError> {
        let unknown = MacError::UnknownKey(mac.key_id);
        let id = KeyId::new(mac.key_id).ok_or(unknown)?;
        let key = self.get(id).ok_or(unknown)?;
        let whole = key.algorithm().digest_length();
        let length = mac.digest.len();
        if length != whole && (length != DIGEST_LENGTH_V4_MAX || whole < length) {
            return Err(MacError::Mismatch);
        }
        let signed = packet.len().checked_sub(mac.length()).and_then(|end| packet.get(..end));
        let digest = key.digest(signed.ok_or(MacError::Mismatch)?);
        if digest[..length].ct_eq(mac.digest).to_bool() { Ok(id) } else { Err(MacError::Mismatch) }
    }

    /// Writes the digest of `signed` by this key into `digest`, as much as there is room for. Says if there is such a
    /// key; without it nothing is written.
    pub fn sign(&self, id: KeyId, signed: &[u8], digest: &mut [u8]) -> bool {
        let Some(key) = self.get(id) else { return false };
        let length = key.algorithm().digest_length().min(digest.len());
        digest[..length].copy_from_slice(&key.digest(signed)[..length]);
        true
    }

    /// Octets of the MAC that [`Self::append`] adds: key id and digest. `None`: no such key.
    #[must_use]
    pub fn mac_length(&self, id: KeyId, version: Version) -> Option<usize> {
        let length_max = if version < Version::V4 { DIGEST_LENGTH_MAX } else { DIGEST_LENGTH_V4_MAX };
        let key = self.get(id)?;
        Some(KEY_ID_LENGTH + key.algorithm().digest_length().min(length_max))
    }

    /// Signs a packet: header, and extension fields where there are any. In version 4 a digest is cut off at 20 octets.
    ///
    /// # Errors
    /// There is no such key; the packet is as it was.
    pub fn append(&self, id: KeyId, packet: &mut Vec<u8>) -> Result<(), UnknownKey> {
        let version = packet.first().and_then(|octet| Version::new(octet >> 3 & 7)).unwrap_or(Version::V4);
        let length = self.mac_length(id, version).ok_or(UnknownKey(id))?;
        let signed_length = packet.len();
        packet.extend_from_slice(&id.number().to_be_bytes());
        packet.resize(signed_length + length, 0);
        let (signed, mac) = packet.split_at_mut(signed_length);
        self.sign(id, signed, &mut mac[KEY_ID_LENGTH..]);
        Ok(())
    }

    /// Types by id, for reports: what may be shown of keys.
    pub fn types(&self) -> impl Iterator<Item = (KeyId, Algorithm)> {
        self.iter().map(|(id, key)| (id, key.algorithm()))
    }
}

impl fmt::Debug for KeyTable {
    /// Ids and types.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.iter().map(|(id, key)| (id.number(), key))).finish()
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
