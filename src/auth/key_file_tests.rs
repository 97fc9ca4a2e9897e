//! Both formats, and what is said of what is in neither.

use super::*;
use proptest::prelude::*;

const ALL: KeyRules = KeyRules { allow_md5: true };

/// What a key of this type and secret signs with.
fn digest(algorithm: Algorithm, secret: &[u8]) -> [u8; 64] {
    Key::new(algorithm, secret).unwrap().digest(b"message")
}

#[track_caller]
fn holds(table: &KeyTable, id: u32, algorithm: Algorithm, secret: &[u8]) {
    let key = table.get(KeyId::new(id).unwrap()).unwrap_or_else(|| panic!("no key {id}"));
    assert_eq!(key.algorithm(), algorithm, "key {id}");
    assert_eq!(key.digest(b"message"), digest(algorithm, secret), "key {id}");
}

/// Checklist 85.
#[test]
fn chronys_files_load() {
    let text = "\
# comment
! comment
; comment
% comment

1 MD5 ASCII:sec#ret
 2\tSHA1 HEX:00ff7F
3 AES128 HEX:000102030405060708090a0b0c0d0e0f
5 AES256 HEX:000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f
6 SHA256 short\r
7 SHA384 ASCII:HEX:
4294967295 SHA512 ASCII:a-very-long-secret-that-is-not-hex
10 typeless-with-more-than-20-characters
11 HEX:31
";
    let table = parse_key_file("keys", text.as_bytes(), ALL).unwrap();
    assert_eq!(table.len(), 9);
    let sixteen: Vec<u8> = (0..16).collect();
    holds(&table, 1, Algorithm::Md5, b"sec#ret");
    holds(&table, 2, Algorithm::Sha1, &[0, 0xff, 0x7f]);
    holds(&table, 3, Algorithm::Aes128, &sixteen);
    holds(&table, 5, Algorithm::Aes256, &[&sixteen[..], &sixteen[..]].concat());
    holds(&table, 6, Algorithm::Sha256, b"short");
    holds(&table, 7, Algorithm::Sha384, b"HEX:");
    holds(&table, u32::MAX, Algorithm::Sha512, b"a-very-long-secret-that-is-not-hex");
    holds(&table, 10, Algorithm::Md5, b"typeless-with-more-than-20-characters");
    holds(&table, 11, Algorithm::Md5, b"1");
}

#[test]
fn ntp_keys_files_load() {
    let text = "\
# ntpkey_MD5key_host
 1 MD5 L\";Nw<.I<f4U0)247\"i  # MD5 key
 2 SHA1 a27872d3030a9025b8446c751b4551a7629af65c  # SHA1 key
3 AES128CMAC 000102030405060708090a0b0c0d0e0f
4 aes-128 0123456789abcdef
5 M 12345678901234567890
6 sha-256 123456789012345678901234
";
    let table = parse_key_file("ntp.keys", text.as_bytes(), ALL).unwrap();
    assert_eq!(table.len(), 6);
    holds(&table, 1, Algorithm::Md5, b"L\";Nw<.I<f4U0)247\"i");
    let sha1 = hex("a27872d3030a9025b8446c751b4551a7629af65c").unwrap();
    holds(&table, 2, Algorithm::Sha1, &sha1);
    holds(&table, 3, Algorithm::Aes128, &(0..16).collect::<Vec<u8>>());
    holds(&table, 4, Algorithm::Aes128, b"0123456789abcdef");
    holds(&table, 5, Algorithm::Md5, b"12345678901234567890");
    holds(&table, 6, Algorithm::Sha256, &hex("123456789012345678901234").unwrap());
}

#[test]
fn every_problem_names_line_and_key_and_what_is_allowed_but_no_secret() {
    let types = "must be SHA1, SHA256, SHA384, SHA512, AES128 or AES256";
    let table = [
        ("Hunter2", "the first word is no key id: must be 1 to 4294967295"),
        ("0 SHA1 Hunter2", "the first word is no key id: must be 1 to 4294967295"),
        ("4294967296 SHA1 Hunter2", "the first word is no key id: must be 1 to 4294967295"),
        ("+1 SHA1 Hunter2", "the first word is no key id: must be 1 to 4294967295"),
        ("9", "key 9: 1 words: must be a number, a type and a secret, or a number and an MD5 secret"),
        ("9 sha1", "key 9: type SHA1 and no secret: must be a number, a type and a secret"),
        ("9 Hunter2", "key 9: type MD5: TYPES, unless allow-md5 = true in [keys]"),
        ("9 M Hunter2", "key 9: type MD5: TYPES, unless allow-md5 = true in [keys]"),
        ("9 SHA3-256 Hunter2", "key 9: type \"SHA3-256\": TYPES"),
        ("9 Hunter2 SHA1", "key 9: the type comes last: must be a number, a type and a secret"),
        ("9 AES128 Hunter2", "key 9: a secret of 7 octets: must be of 16 for AES128"),
        ("9 AES256 HEX:00ff", "key 9: a secret of 2 octets: must be of 32 for AES256"),
        (
            "9 SHA1 HEX:123",
            "key 9: a secret of 3 characters: must be an even number of hex digits behind HEX:",
        ),
        (
            "9 SHA1 HEX:xx",
            "key 9: a secret of 2 characters: must be an even number of hex digits behind HEX:",
        ),
        ("9 SHA1 HEX:", "key 9: a secret of 0 octets: must be of 1 to 256"),
        (
            "9 SHA1 Hunter2Hunter2Hunter2",
            "key 9: a secret of 21 characters: must be an even number of hex digits above 20, or have ASCII: in front",
        ),
        ("9 SHA1 Hunter#2", "key 9: a secret with # in it: must have ASCII: in front, or be HEX:..."),
        (
            "9 SHA1 Hunter2 10.0.0.1",
            "key 9: something behind the secret: must be nothing or a comment \
             (ntpd's lists of addresses are not supported)",
        ),
        (
            "9 SHA1 # Hunter2",
            "key 9: something behind the secret: must be nothing or a comment \
             (ntpd's lists of addresses are not supported)",
        ),
        ("1 SHA1 Hunter2", "key 1: must be there once, but is on line 2 already"),
    ];
    for (line, expected) in table {
        let text = format!("# a comment\n1 SHA1 first\n\n{line}\n");
        let problems = parse_key_file("/etc/keys", text.as_bytes(), KeyRules::default()).unwrap_err();
        let expected = format!("/etc/keys:4: {}", expected.replace("TYPES", types));
        assert_eq!(problems.to_string(), expected, "{line}");
        assert!(!problems.to_string().contains("Hunter"), "{problems}");
    }
    let bytes = [b"1 SHA1 \xff".as_slice(), b"\n2 SHA1 x\n"].concat();
    let problems = parse_key_file("k", &bytes, KeyRules::default()).unwrap_err();
    assert_eq!(problems.to_string(), "k:1: not UTF-8: write such a secret as HEX:...");
}

#[test]
fn what_chrony_and_ntpd_read_differently_is_refused() {
    let bare = "1 SHA1 a27872d3030a9025b8446c751b4551a7629af65c\n";
    assert!(parse_key_file("k", bare.as_bytes(), ALL).is_ok());
    for chronys in ["2 MD5 ASCII:x\n", "2 SHA1 HEX:00\n", "2 typeless\n"] {
        let problems = parse_key_file("k", [bare, chronys].concat().as_bytes(), ALL).unwrap_err();
        assert_eq!(
            problems.to_string(),
            "k:1: key 1: a secret of 40 characters: must have HEX: or ASCII: in front, in a file where others have"
        );
    }
}

#[test]
fn the_number_of_keys_and_of_problems_shown_is_bounded() {
    let text: String = (1..=KEYS_MAX + 2).map(|id| format!("{id} SHA1 secret\n")).collect();
    let problems = parse_key_file("k", text.as_bytes(), ALL).unwrap_err();
    assert_eq!(problems.problems.len(), 2);
    assert!(
        problems.to_string().starts_with("k:65536: key 65536: must not be there: a file may have 65535 keys")
    );
    let wrong = "x\n".repeat(PROBLEMS_SHOWN_MAX + 3);
    let text = parse_key_file("k", wrong.as_bytes(), ALL).unwrap_err().to_string();
    assert_eq!(text.lines().count(), PROBLEMS_SHOWN_MAX + 1);
    assert!(text.ends_with("\nand 3 more"));
}

proptest! {
    #[test]
    fn any_bytes_are_keys_or_problems(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_key_file("k", &text, ALL);
    }

    #[test]
    fn any_secret_survives_in_hex(secret in proptest::collection::vec(any::<u8>(), 1..256)) {
        let digits: String = secret.iter().map(|octet| format!("{octet:02x}")).collect();
        let table = parse_key_file("k", format!("1 SHA1 HEX:{digits}").as_bytes(), ALL).unwrap();
        holds(&table, 1, Algorithm::Sha1, &secret);
    }
}
