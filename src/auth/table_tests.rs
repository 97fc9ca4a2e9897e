//! RFC 5905 section 7.3, RFC 7822, RFC 8573.

use super::*;
use crate::wire::{HEADER_LENGTH, Leap, Mode};
use proptest::prelude::*;
use zerocopy::IntoBytes;

fn id(number: u32) -> KeyId {
    KeyId::new(number).unwrap()
}

/// One key of each type; its id is its place among the algorithms, from 1.
fn table() -> KeyTable {
    let keys = Algorithm::ALL.into_iter().zip(1..);
    let key = |algorithm: Algorithm| {
        let secret: Vec<u8> = (0..32).collect();
        Key::new(algorithm, &secret[..algorithm.secret_length().unwrap_or(20)]).unwrap()
    };
    KeyTable::new(keys.map(|(algorithm, number)| (id(number), key(algorithm)))).unwrap()
}

fn packet(version: u8, extensions: &[u8]) -> Vec<u8> {
    let header = crate::wire::Header::new(Leap::None, Version::new(version).unwrap(), Mode::Client);
    [header.as_bytes(), extensions].concat()
}

/// Checklist 83.
#[test]
fn what_a_key_signs_it_verifies_in_every_version_with_the_lengths_of_chronyd() {
    let table = table();
    for version in 1..=4 {
        for (algorithm, number) in Algorithm::ALL.into_iter().zip(1..) {
            let mut bytes = packet(version, &[]);
            table.append(id(number), &mut bytes).unwrap();
            let whole = algorithm.digest_length();
            let expected = if version == 4 { whole.min(20) } else { whole };
            assert_eq!(bytes.len(), HEADER_LENGTH + 4 + expected, "{algorithm} in version {version}");
            assert_eq!(table.verify(&bytes), Authentication::Valid(id(number)), "{algorithm}");
            let length = table.mac_length(id(number), Version::new(version).unwrap());
            assert_eq!(length, Some(4 + expected));
        }
    }
}

/// Checklist 83.
#[test]
fn a_mac_covers_the_extension_fields_before_it() {
    let table = table();
    let field = [&[0x12, 0x34, 0, 16][..], &[0xaa; 12]].concat();
    let mut bytes = packet(4, &field);
    table.append(id(6), &mut bytes).unwrap();
    assert_eq!(table.verify(&bytes), Authentication::Valid(id(6)));
    bytes[HEADER_LENGTH + 10] ^= 1;
    assert_eq!(table.verify(&bytes), Authentication::Invalid);
}

/// Checklist 84.
#[test]
fn id_type_and_value_must_all_match() {
    let table = table();
    let secret: Vec<u8> = (0..32).collect();
    let keys = |number, algorithm, secret: &[u8]| {
        KeyTable::new([(id(number), Key::new(algorithm, secret).unwrap())]).unwrap()
    };
    for (name, other, fine) in [
        ("the same", keys(6, Algorithm::Aes128, &secret[..16]), true),
        ("another id", keys(7, Algorithm::Aes128, &secret[..16]), false),
        ("another type", keys(6, Algorithm::Md5, &secret[..16]), false),
        ("another value", keys(6, Algorithm::Aes128, &secret[1..17]), false),
        ("none", KeyTable::empty(), false),
    ] {
        let mut bytes = packet(4, &[]);
        table.append(id(6), &mut bytes).unwrap();
        let expected = if fine { Authentication::Valid(id(6)) } else { Authentication::Invalid };
        assert_eq!(other.verify(&bytes), expected, "{name}");
    }
}

/// Checklist 81.
#[test]
fn digests_of_other_lengths_are_refused() {
    let table = table();
    let mut whole = packet(3, &[]);
    table.append(id(3), &mut whole).unwrap();
    for digest_length in (0..=64).step_by(4) {
        let mut bytes = whole.clone();
        bytes.resize(HEADER_LENGTH + 4 + digest_length, 0);
        let expected = match digest_length {
            0 => Authentication::CryptoNak,
            20 | 32 => Authentication::Valid(id(3)),
            _ => Authentication::Invalid,
        };
        assert_eq!(table.verify(&bytes), expected, "{digest_length} octets of SHA-256");
    }
    // MD5 and CMAC have nothing to cut off, and their 16 octets are no more than that.
    for number in [1, 6, 7] {
        let mut bytes = packet(3, &[]);
        table.append(id(number), &mut bytes).unwrap();
        for digest_length in [4, 8, 12, 20] {
            let mut bytes = bytes.clone();
            bytes.resize(HEADER_LENGTH + 4 + digest_length, 0);
            assert_eq!(table.verify(&bytes), Authentication::Invalid, "key {number}, {digest_length} octets");
        }
    }
}

/// Checklist 30.
#[test]
fn a_crypto_nak_is_neither_valid_nor_invalid() {
    for (trailer, expected) in [
        (&[][..], Authentication::None),
        (&[0; 4], Authentication::CryptoNak),
        (&[0, 0, 0, 1], Authentication::CryptoNak),
        (&[0; 20], Authentication::Invalid),
        (&[0; 5], Authentication::Invalid),
    ] {
        assert_eq!(table().verify(&packet(4, trailer)), expected, "{trailer:?}");
    }
    assert_eq!(table().verify(&[0; 47]), Authentication::Invalid);
}

#[test]
fn unknown_keys_have_their_own_reason_and_sign_nothing() {
    let table = table();
    let mut bytes = packet(4, &[]);
    assert_eq!(table.append(id(99), &mut bytes), Err(UnknownKey(id(99))));
    assert_eq!(bytes.len(), HEADER_LENGTH);
    bytes.extend_from_slice(&[0, 0, 0, 99]);
    bytes.extend_from_slice(&[1; 16]);
    let reason = |bytes: &[u8]| table.check(bytes, &Packet::parse(bytes).unwrap().mac.unwrap());
    assert_eq!(reason(&bytes), Err(MacError::UnknownKey(99)));
    bytes[HEADER_LENGTH + 3] = 0;
    assert_eq!(reason(&bytes), Err(MacError::UnknownKey(0)));
    bytes[HEADER_LENGTH + 3] = 1;
    assert_eq!(reason(&bytes), Err(MacError::Mismatch));
}

#[test]
fn a_table_may_be_restricted_and_holds_an_id_once() {
    let restricted = table().restricted_to(&[id(7), id(2), id(50)]);
    let types: Vec<_> = restricted.types().map(|(id, algorithm)| (id.number(), algorithm)).collect();
    assert_eq!(types, [(2, Algorithm::Sha1), (7, Algorithm::Aes256)]);
    let key = Key::new(Algorithm::Sha1, b"secret").unwrap();
    let twice = KeyTable::new([(id(5), key.clone()), (id(1), key.clone()), (id(5), key)]);
    assert_eq!(twice.unwrap_err(), DuplicateKey(id(5)));
    let shown = format!("{restricted:?}");
    assert_eq!(shown, "{2: Key(SHA1, 20 octets), 7: Key(AES256, 32 octets)}");
}

/// H(key || packet) can be extended by who does not know the key. What has to follow the packet then can be no
/// extension field, whatever the key's length.
#[test]
fn an_extended_hash_is_malformed() {
    for (block, length_octets) in [(64, 8), (128, 16)] {
        for secret in 1..=300_usize {
            let bits = ((secret + HEADER_LENGTH) as u128 * 8).to_be_bytes();
            let zeros = (2 * block - (secret + HEADER_LENGTH + 1 + length_octets) % block) % block;
            let padding = [&[0x80][..], &vec![0; zeros], &bits[16 - length_octets..]].concat();
            assert_eq!((secret + HEADER_LENGTH + padding.len()) % block, 0);
            for more in [0, 28, 64] {
                let forged = [packet(4, &padding), vec![0; more], vec![1; 24]].concat();
                assert!(Packet::parse(&forged).is_err(), "secret of {secret}, {more} more");
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bit_flipped_makes_a_packet_invalid(
        version in 1_u8..=4,
        number in 1_u32..=7,
        fields in 0_usize..3,
        bit in any::<proptest::sample::Index>(),
        noise in any::<[u8; 47]>(),
    ) {
        let table = table();
        let fields = if version == 4 { fields } else { 0 };
        let field = [&[0x12, 0x34, 0, 16][..], &[0xaa; 12]].concat();
        let mut bytes = packet(version, &field.repeat(fields));
        bytes[1..48].copy_from_slice(&noise);
        table.append(id(number), &mut bytes).unwrap();
        prop_assert_eq!(table.verify(&bytes), Authentication::Valid(id(number)));
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(table.verify(&bytes), Authentication::Invalid);
    }

    #[test]
    fn any_bytes_have_an_outcome(bytes in proptest::collection::vec(any::<u8>(), 0..150)) {
        prop_assert!(!matches!(table().verify(&bytes), Authentication::Valid(_)));
    }
}
