//! Why a packet gets no time from us.

use crate::auth::MacError;
use crate::wire::Malformed;
use thiserror::Error;

/// The reason a packet was not answered with time. The label is also the metric's and the report's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Refusal {
    /// Too short, or its extension fields or MAC cannot be read.
    #[error("malformed")]
    Malformed,
    /// NTP version 0 or above 4.
    #[error("version")]
    Version,
    /// Not a request: any mode but 3.
    #[error("mode")]
    Mode,
    /// Its MAC is wrong, or no MAC but a crypto-NAK.
    #[error("authentication")]
    Authentication,
    /// Its MAC is by a key that we do not have, or that clients may not use.
    #[error("unknown-key")]
    UnknownKey,
    /// The access list denies the client.
    #[error("denied")]
    Denied,
    /// The access list restricts the client by local policy.
    #[error("restricted")]
    Restricted,
    /// The access list drops the client without a word.
    #[error("dropped")]
    Dropped,
    /// The client asks more often than the rate limit allows.
    #[error("rate-limited")]
    RateLimited,
    /// The source address or port cannot be answered: martian, our own, or port 0.
    #[error("source")]
    Source,
    /// The frame is no datagram to one of our sockets, although the XDP program sent it here.
    #[error("frame")]
    Frame,
}

impl Refusal {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 11] = [
        Self::Malformed,
        Self::Version,
        Self::Mode,
        Self::Authentication,
        Self::UnknownKey,
        Self::Denied,
        Self::Restricted,
        Self::Dropped,
        Self::RateLimited,
        Self::Source,
        Self::Frame,
    ];
}

impl From<MacError> for Refusal {
    fn from(error: MacError) -> Self {
        match error {
            MacError::UnknownKey(_) => Self::UnknownKey,
            MacError::Mismatch => Self::Authentication,
        }
    }
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Version(_) => Self::Version,
            _ => Self::Malformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Refusal;

    #[test]
    fn the_list_is_in_declaration_order() {
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, index);
        }
    }
}
