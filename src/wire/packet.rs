//! An NTP packet split into header, extension fields and MAC (RFC 5905 section 7.3, RFC 7822 section 7.5).

use super::extension::{LAST_EXTENSION_LENGTH_MIN, split_field};
use super::{ExtensionFields, HEADER_LENGTH, Header, Malformed, Version};
use zerocopy::FromBytes;

/// The message authentication code behind a packet: a key identifier and a digest.
///
/// An empty digest is a crypto-NAK (RFC 5905 section 7.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mac<'a> {
    /// Which key.
    pub key_id: u32,
    /// The digest, 0 to 64 octets.
    pub digest: &'a [u8],
}

impl Mac<'_> {
    /// Octets it takes at the end of the packet; all before it is what it signs.
    #[must_use]
    pub const fn length(&self) -> usize {
        KEY_ID_LENGTH + self.digest.len()
    }

    /// Does it say that an earlier packet of ours could not be authenticated (RFC 5905 section 9.2)?
    #[must_use]
    pub const fn is_crypto_nak(&self) -> bool {
        self.digest.is_empty()
    }
}

/// An NTP packet whose form has been checked.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The header.
    pub header: &'a Header,
    /// The version, 1 to 4.
    pub version: Version,
    extensions: &'a [u8],
    /// The MAC, if there is one.
    pub mac: Option<Mac<'a>>,
}

/// Octets of a key identifier, which comes before the digest.
pub const KEY_ID_LENGTH: usize = 4;

/// The longest MAC: key identifier and a SHA-512 digest. Only before version 4, where there are no extension
/// fields to mistake it for (chronyd sends version 3 with such keys for this reason).
const LONG_MAC_LENGTH_MAX: usize = KEY_ID_LENGTH + 64;
/// Lengths a MAC may have in version 4: bare key identifier, 128-bit and 160-bit digests (RFC 7822 section
/// 7.5.1.3: at most 24 octets).
const SHORT_MAC_LENGTHS: [usize; 3] = [4, 20, 24];

impl<'a> Packet<'a> {
    /// Checks the form of a UDP payload: version, length, extension fields, MAC.
    ///
    /// # Errors
    /// [`Malformed`] names the first thing that is wrong. The mode is not looked at.
    #[inline]
    pub fn parse(payload: &'a [u8]) -> Result<Self, Malformed> {
        let Ok((header, trailer)) = Header::ref_from_prefix(payload) else {
            let available = payload.len();
            return Err(Malformed::Truncated { part: "NTP header", needed: HEADER_LENGTH, available });
        };
        let number = header.version_number();
        let version = Version::new(number).ok_or(Malformed::Version(number))?;
        let (extensions, mac) = match trailer.len() {
            0 => (trailer, None),
            _ if version < Version::V4 => (&trailer[..0], Some(long_mac(trailer)?)),
            _ => split_trailer(trailer)?,
        };
        Ok(Self { header, version, extensions, mac })
    }

    /// The extension fields, in order.
    #[must_use]
    pub const fn extensions(&self) -> ExtensionFields<'a> {
        ExtensionFields::new(self.extensions)
    }
}

/// Everything behind a header of version 1 to 3 is a MAC.
fn long_mac(trailer: &[u8]) -> Result<Mac<'_>, Malformed> {
    if trailer.len() > LONG_MAC_LENGTH_MAX || !trailer.len().is_multiple_of(4) {
        return Err(Malformed::Trailer(trailer.len()));
    }
    let (key_id, digest) = trailer.split_first_chunk().ok_or(Malformed::Trailer(trailer.len()))?;
    Ok(Mac { key_id: u32::from_be_bytes(*key_id), digest })
}

/// Splits the trailer of a version 4 packet. Each field is at least 16 octets long, so the walk is bounded by
/// the length of a datagram.
fn split_trailer(trailer: &[u8]) -> Result<(&[u8], Option<Mac<'_>>), Malformed> {
    let mut rest = trailer;
    while rest.len() >= LAST_EXTENSION_LENGTH_MIN {
        rest = split_field(rest)?.1;
    }
    let (extensions, mac) = trailer.split_at(trailer.len() - rest.len());
    match mac.len() {
        0 => Ok((extensions, None)),
        length if SHORT_MAC_LENGTHS.contains(&length) => Ok((extensions, Some(long_mac(mac)?))),
        length => Err(Malformed::Trailer(length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(version: u8, trailer: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LENGTH];
        bytes[0] = version << 3 | 3;
        bytes.extend_from_slice(trailer);
        bytes
    }

    fn field(field_type: u16, length: u16) -> Vec<u8> {
        let mut bytes = vec![0; usize::from(length)];
        bytes[..2].copy_from_slice(&field_type.to_be_bytes());
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    /// (extension fields, MAC length), or the error.
    type Shape = Result<(usize, Option<usize>), Malformed>;

    fn shape(bytes: &[u8]) -> Shape {
        let packet = Packet::parse(bytes)?;
        Ok((packet.extensions().count(), packet.mac.map(|mac| mac.digest.len() + 4)))
    }

    /// Checklist 3.
    #[test]
    fn every_length_below_the_header_is_truncated() {
        let whole = packet(4, &[]);
        for length in 0..HEADER_LENGTH {
            let expected = Malformed::Truncated { part: "NTP header", needed: 48, available: length };
            assert_eq!(Packet::parse(&whole[..length]).unwrap_err(), expected);
        }
    }

    /// Checklist 2.
    #[test]
    fn versions_0_and_5_to_7_are_refused() {
        for version in [0, 5, 6, 7] {
            assert_eq!(shape(&packet(version, &[])), Err(Malformed::Version(version)));
        }
        for version in 1..=4 {
            assert_eq!(shape(&packet(version, &[])), Ok((0, None)));
        }
    }

    /// Checklist 3, 80, 81.
    #[test]
    fn trailer_table_of_version_4() {
        let table: [(&str, Vec<u8>, Shape); 16] = [
            ("crypto-NAK", vec![0; 4], Ok((0, Some(4)))),
            ("128-bit digest", vec![1; 20], Ok((0, Some(20)))),
            ("160-bit digest", vec![1; 24], Ok((0, Some(24)))),
            ("12 octets", vec![1; 12], Err(Malformed::Trailer(12))),
            ("one octet", vec![1; 1], Err(Malformed::Trailer(1))),
            ("27 octets", vec![1; 27], Err(Malformed::Trailer(27))),
            ("one field of 28", field(0x104, 28), Ok((1, None))),
            ("field and MAC", [field(0x104, 16), vec![1; 20]].concat(), Ok((1, Some(20)))),
            ("two fields", [field(0x104, 16), field(0x204, 28)].concat(), Ok((2, None))),
            ("two fields and MAC", [field(1, 16), field(2, 32), vec![1; 24]].concat(), Ok((2, Some(24)))),
            ("length 0", vec![0; 32], Err(ef(0, 32))),
            ("length 12", [field(1, 12), vec![0; 20]].concat(), Err(ef(12, 32))),
            ("length 18", [field(1, 18), vec![0; 18]].concat(), Err(ef(18, 36))),
            ("length beyond the end", [vec![0, 1, 0, 64], vec![0; 28]].concat(), Err(ef(64, 32))),
            ("length 65535", [vec![0, 1, 255, 255], vec![0; 28]].concat(), Err(ef(65535, 32))),
            ("garbage behind a field", [field(1, 28), vec![0; 8]].concat(), Err(Malformed::Trailer(8))),
        ];
        for (name, trailer, expected) in table {
            assert_eq!(shape(&packet(4, &trailer)), expected, "{name}");
        }
    }

    fn ef(length: usize, available: usize) -> Malformed {
        Malformed::ExtensionLength { length, available }
    }

    /// Checklist 3.
    #[test]
    fn before_version_4_everything_behind_the_header_is_a_mac() {
        for (length, accepted) in
            [(4, true), (12, true), (20, true), (36, true), (68, true), (72, false), (3, false)]
        {
            let expected = if accepted { Ok((0, Some(length))) } else { Err(Malformed::Trailer(length)) };
            assert_eq!(shape(&packet(3, &vec![0; length])), expected);
        }
    }
}
