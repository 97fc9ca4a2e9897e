//! MACs from the RFCs and with no line of the server's own: the keys of `Setup::strict`, whose secrets are their numbers.

use aes::{Aes128, Aes256};
use cmac::{Cmac, KeyInit, Mac};
use sha2::digest::Digest;

/// The digest of `message` by key `number`, whole. `None`: there is no such key.
pub fn digest(number: u32, message: &[u8]) -> Option<Vec<u8>> {
    let twenty = [number as u8; 20];
    let hashed = [&twenty, message].concat();
    Some(match number {
        1 => md5::Md5::digest(&hashed).to_vec(),
        2 => sha1::Sha1::digest(&hashed).to_vec(),
        3 => sha2::Sha256::digest(&hashed).to_vec(),
        4 => sha2::Sha384::digest(&hashed).to_vec(),
        5 => sha2::Sha512::digest(&hashed).to_vec(),
        6 => {
            let mac = Cmac::<Aes128>::new(&[6; 16].into());
            mac.chain_update(message).finalize().into_bytes().to_vec()
        }
        7 => {
            let mac = Cmac::<Aes256>::new(&[7; 32].into());
            mac.chain_update(message).finalize().into_bytes().to_vec()
        }
        _ => return None,
    })
}

/// Is `mac` (key id and digest) right for `message`? A digest above 20 octets may be cut off there.
pub fn is_right(mac: &[u8], message: &[u8]) -> bool {
    let (id, given) = mac.split_at(4);
    let Some(digest) = digest(u32::from_be_bytes(id.try_into().unwrap()), message) else { return false };
    given == digest || digest.len() > 20 && given == &digest[..20]
}
