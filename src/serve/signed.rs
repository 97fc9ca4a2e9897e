//! Requests with a MAC, and the MAC of their replies.
//!
//! Owns: what is proof to us, and what becomes of a request that has none. Does not own: keys and digests (`auth`), nor
//! what is the same for every request (`respond`).
//!
//! A request with a MAC is checked after everything that costs less, and answered in one of three ways: with a MAC by
//! the same key, as long as the request's; if the MAC is wrong or its key unknown, with a crypto-NAK, since "if
//! authentication fails, the server returns a special message called a crypto-NAK" (RFC 5905 section 9.2; ntpd does,
//! chronyd is silent); if it is a crypto-NAK itself, with silence (RFC 5905 appendix A.5.1 answers `A_ERROR` only), so
//! that two servers cannot go on telling each other. A crypto-NAK is shorter than any MAC, so no reply is longer than its
//! request, and it is under the rate limit like every reply. Requests to a multicast address, which get none, do not
//! come here: sockets and the XDP program leave them to the control core.
//!
//! All of it is kept out of the way of requests without MAC, which are nearly all there are.

use super::Refusal;
use super::respond::{Asker, Prepared, Responder};
use crate::auth::{KeyId, KeyTable};
use crate::snapshot::SystemSnapshot;
use crate::time::{Monotonic, NtpTimestamp, Timestamp};
use crate::wire::{HEADER_LENGTH, KEY_ID_LENGTH, Mac, Malformed, Packet, Version};

impl Responder {
    /// [`Self::respond_to`], for a mode 3 request with a MAC.
    #[cold]
    #[inline(never)]
    pub(super) fn respond_signed(
        &mut self,
        asker: &Asker,
        payload: &mut [u8],
        receive_timestamp: NtpTimestamp,
        now: Timestamp<Monotonic>,
        snapshot: &SystemSnapshot,
    ) -> Result<Prepared, Refusal> {
        let packet = Packet::parse(payload)?;
        let mac = packet.mac.ok_or(Malformed::Trailer(0))?;
        let (version, request, digest_length) = (packet.version, *packet.header, mac.digest.len());
        let mut prepared = Prepared::time(receive_timestamp);
        self.prove(asker, now, version, &mac, payload, &mut prepared)?;
        prepared.make_room(digest_length, payload);
        self.write(&prepared, &request, version, payload, snapshot);
        Ok(prepared)
    }

    /// Notes in `prepared` what the request gets. Counted in the statistics either way. A kiss has a MAC too, since a
    /// client with a key ignores others; who cannot sign is not kissed.
    fn prove(
        &mut self,
        asker: &Asker,
        now: Timestamp<Monotonic>,
        version: Version,
        mac: &Mac<'_>,
        payload: &[u8],
        prepared: &mut Prepared,
    ) -> Result<(), Refusal> {
        let client = &asker.client;
        if let Some((refusal, code)) = self.refusal(asker, now) {
            self.statistics.record(client, version, payload.len(), false, now);
            prepared.kiss = self.tell(client, now, refusal, code)?;
            prepared.key = Some(self.keys().check(payload, mac).map_err(|_| refusal)?);
            return Ok(());
        }
        let checked = self.keys().check(payload, mac);
        self.statistics.record(client, version, payload.len(), checked.is_ok(), now);
        match checked {
            Ok(key) => prepared.key = Some(key),
            Err(_) if mac.is_crypto_nak() => return Err(Refusal::Authentication),
            Err(error) => prepared.crypto_nak = Some(error.into()),
        }
        Ok(())
    }
}

impl Prepared {
    /// Makes room behind the header for a MAC as long as the request's, zero but for the key's id; without key for a
    /// crypto-NAK.
    fn make_room(&mut self, digest_length: usize, payload: &mut [u8]) {
        let digest_length = if self.key.is_some() { digest_length } else { 0 };
        let end = DIGEST_START + digest_length;
        let Some(trailer) = payload.get_mut(HEADER_LENGTH..end) else { return };
        trailer.fill(0);
        if let (Some(key), Some(id)) = (self.key, trailer.first_chunk_mut()) {
            *id = key.number().to_be_bytes();
        }
        // It fits: the request was no shorter.
        self.length = end as u32;
    }
}

/// Where in a reply the digest lies, zero until it is signed.
pub(super) const DIGEST_START: usize = HEADER_LENGTH + KEY_ID_LENGTH;

/// Writes the digest over the finished header of `reply`, which is no longer than its MAC goes. If the key is gone the
/// digest stays zero: a wrong one, and of use to nobody.
#[cold]
#[inline(never)]
pub(super) fn sign(key: KeyId, reply: &mut [u8], keys: &KeyTable) {
    let Some((signed, mac)) = reply.split_at_mut_checked(HEADER_LENGTH) else { return };
    if let Some(digest) = mac.get_mut(KEY_ID_LENGTH..) {
        keys.sign(key, signed, digest);
    }
}

#[cfg(test)]
#[path = "signed_tests.rs"]
mod tests;
