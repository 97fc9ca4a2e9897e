//! Kiss-o'-Death packets as a client meets them (RFC 5905 section 7.4).
//!
//! Owns: reading the code. Does not own: whether to believe it; only a packet with a valid origin timestamp, and a
//! valid MAC where the association has a key, is asked for its code (RFC 8633 section 5.4).

use crate::wire::{Header, KissCode, Leap, ReferenceId};
use std::fmt;

/// What a stratum 0 packet wants from us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kiss {
    /// DENY: stop.
    Deny,
    /// RSTR: stop.
    Restrict,
    /// RATE: slow down.
    Rate,
    /// Another code, an experimental X... one among them. Inspected, shown, without effect (RFC 5905 section 7.4,
    /// rules c and d).
    Other(ReferenceId),
}

impl Kiss {
    /// The code of a packet, if it is a Kiss-o'-Death: leap 3, stratum 0 and four ASCII characters, padded with
    /// zeros, in the reference id. A server that is merely unsynchronised sends zeros there. (RFC 5905 section 7.4
    /// asks for stratum 0 only; chronyd and ntpd send leap 3 with it and insist on it, and so do we.)
    ///
    /// ntpd fills the reference id of an unsynchronised server with `INIT` and the like: those read as
    /// [`Kiss::Other`], which has no effect either.
    #[must_use]
    pub fn of(header: &Header) -> Option<Self> {
        if header.stratum != 0 || header.leap() != Leap::Unsynchronised {
            return None;
        }
        let id = header.reference_id;
        let end = id.0.iter().rposition(|&octet| octet != 0)?;
        if !id.0[..=end].iter().all(u8::is_ascii_graphic) {
            return None;
        }
        let known = [
            (KissCode::Deny, Self::Deny),
            (KissCode::Restrict, Self::Restrict),
            (KissCode::Rate, Self::Rate),
        ];
        let meant = known.into_iter().find(|(code, _)| code.reference_id() == id);
        Some(meant.map_or(Self::Other(id), |(_, kiss)| kiss))
    }
}

impl fmt::Display for Kiss {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = match self {
            Self::Deny => KissCode::Deny.reference_id(),
            Self::Restrict => KissCode::Restrict.reference_id(),
            Self::Rate => KissCode::Rate.reference_id(),
            Self::Other(id) => *id,
        };
        id.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Mode, Version};

    fn packet(leap: Leap, stratum: u8, reference_id: [u8; 4]) -> Header {
        let mut header = Header::new(leap, Version::V4, Mode::Server);
        header.stratum = stratum;
        header.reference_id = ReferenceId(reference_id);
        header
    }

    #[test]
    fn codes_are_told_from_the_reference_ids_of_other_packets() {
        let stopped = Leap::Unsynchronised;
        let table = [
            (stopped, 0, *b"DENY", Some(Kiss::Deny)),
            (stopped, 0, *b"RSTR", Some(Kiss::Restrict)),
            (stopped, 0, *b"RATE", Some(Kiss::Rate)),
            (stopped, 0, *b"XYZ\0", Some(Kiss::Other(ReferenceId(*b"XYZ\0")))),
            (stopped, 0, *b"INIT", Some(Kiss::Other(ReferenceId(*b"INIT")))),
            (stopped, 0, [0; 4], None),
            (stopped, 0, [10, 99, 0, 1], None),
            (stopped, 0, *b"\0ATE", None),
            (stopped, 1, *b"RATE", None),
            (Leap::None, 0, *b"DENY", None),
        ];
        for (leap, stratum, reference_id, expected) in table {
            assert_eq!(Kiss::of(&packet(leap, stratum, reference_id)), expected, "{reference_id:?}");
        }
        assert_eq!(Kiss::Deny.to_string(), "DENY");
        assert_eq!(Kiss::Other(ReferenceId(*b"XYZ\0")).to_string(), "XYZ");
    }
}
