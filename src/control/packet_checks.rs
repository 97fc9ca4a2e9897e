//! RFC 5905 figure 22: the seven tests a packet must pass, numbered as there and counted by number.
//!
//! Owns: the tests and their counters. Does not own: the association's state; the caller shows it and changes it.
//!
//! The one idea a newcomer lacks: the numbers are names that every NTP manual shares, not an order. We look at the
//! cheapest and most telling first: who is it (4), is it a copy (1), does it answer us (3, 2), is it who it claims
//! to be (5), and only then at what it says of itself (6, 7). Nothing of a packet is used before tests 1 to 5 are
//! passed, and a packet that fails one of them changes no state: in client mode there is none that it should (RFC
//! 9769 section 2; the skeleton of RFC 5905 A.5.1 updates org and rec even for bogus packets, which is how
//! CVE-2015-8138 and its like came about).

use super::event::{Access, Authentication, KeyId};
use super::kiss::Kiss;
use crate::time::{NtpDuration, NtpTimestamp};
use crate::wire::{Header, Leap};
use thiserror::Error;

/// Which test of RFC 5905 figure 22 a packet failed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Error)]
#[repr(u8)]
pub enum Failure {
    /// Test 1: its transmit timestamp is that of the last packet: a copy, or a replay.
    #[error("duplicate")]
    Duplicate = 1,
    /// Test 2: its origin timestamp is not what we sent.
    #[error("bogus")]
    Bogus = 2,
    /// Test 3: its origin, receive or transmit timestamp is zero.
    #[error("invalid")]
    Invalid = 3,
    /// Test 4: the access list denies its sender.
    #[error("access-denied")]
    AccessDenied = 4,
    /// Test 5: the MAC is wrong, or missing where the association has a key. A crypto-NAK is a wrong MAC.
    #[error("authentication")]
    Authentication = 5,
    /// Test 6: leap 3, or a stratum of 0 or above 15.
    #[error("unsynchronised")]
    Unsynchronised = 6,
    /// Test 7: a root distance of 16 s or more, or a reference timestamp after the transmit timestamp.
    #[error("header")]
    Header = 7,
}

impl Failure {
    /// All of them, in the figure's order.
    pub const ALL: [Self; 7] = [
        Self::Duplicate,
        Self::Bogus,
        Self::Invalid,
        Self::AccessDenied,
        Self::Authentication,
        Self::Unsynchronised,
        Self::Header,
    ];

    /// The test's number in RFC 5905 figure 22, 1 to 7.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// How many packets failed each test.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FailureCounts([u64; 7]);

impl FailureCounts {
    /// Counts one more.
    pub const fn count(&mut self, failure: Failure) {
        let slot = &mut self.0[failure as usize - 1];
        *slot = slot.saturating_add(1);
    }

    /// How many failed this test.
    #[must_use]
    pub const fn of(&self, failure: Failure) -> u64 {
        self.0[failure as usize - 1]
    }

    /// The test that most failed, to follow another reason; empty if none did.
    #[must_use]
    pub fn reason(&self) -> String {
        let counted = Failure::ALL.map(|failure| (self.of(failure), failure));
        match counted.into_iter().max_by_key(|(count, _)| *count) {
            Some((count @ 1.., failure)) => {
                format!("; so far {count} packets failed test {} ({failure})", failure.number())
            }
            _ => String::new(),
        }
    }

    /// How many failed any.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, &count| sum.saturating_add(count))
    }
}

/// What the association expects of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expected {
    /// The transmit timestamp of the request that is not answered yet; `None`: none is.
    pub origin: Option<NtpTimestamp>,
    /// The transmit timestamp of the last packet we took from this source.
    pub last_transmit: Option<NtpTimestamp>,
    /// The association's key.
    pub key: Option<KeyId>,
}

/// Tests 1 to 5, for a packet in client/server mode.
///
/// A Kiss-o'-Death is excused from what rests on its receive and transmit timestamps, which are undefined
/// (RFC 5905 section 7.4), but not from the origin timestamp (RFC 8633 section 5.4).
///
/// # Errors
/// The first test that failed.
pub fn on_wire(
    header: &Header,
    access: Access,
    authentication: Authentication,
    expected: &Expected,
) -> Result<(), Failure> {
    if access == Access::Denied {
        return Err(Failure::AccessDenied);
    }
    let is_kiss = Kiss::of(header).is_some();
    let transmit = header.transmit_timestamp();
    // Section 8 compares with the org state variable, which holds the last transmit timestamp of the other side;
    // A.5.1 compares with our own (`p->xmt`), by mistake.
    if !is_kiss && !transmit.is_unknown() && expected.last_transmit == Some(transmit) {
        return Err(Failure::Duplicate);
    }
    let origin = header.origin_timestamp();
    if origin.is_unknown() || (!is_kiss && (transmit.is_unknown() || header.receive_timestamp().is_unknown()))
    {
        return Err(Failure::Invalid);
    }
    if expected.origin != Some(origin) {
        return Err(Failure::Bogus);
    }
    authentic(expected.key, authentication)
}

/// Test 5: the MAC is right, or there is none where none is asked for. A crypto-NAK is never right.
fn authentic(key: Option<KeyId>, authentication: Authentication) -> Result<(), Failure> {
    let is_authentic = match (key, authentication) {
        (Some(ours), Authentication::Valid(theirs)) => ours == theirs,
        (Some(_), _) => false,
        (None, Authentication::None | Authentication::Valid(_)) => true,
        (None, Authentication::Invalid | Authentication::CryptoNak) => false,
    };
    if is_authentic { Ok(()) } else { Err(Failure::Authentication) }
}

/// What the origin timestamp of a peer's packet is to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The transmit timestamp of a packet of ours that nobody has answered before.
    Answer,
    /// That of the one that was answered last.
    Repeated,
    /// Zero: the peer has not heard us, or somebody says so.
    Zero,
    /// Something else.
    Foreign,
}

/// What a peering expects of a packet, its origin timestamp apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExpectedOfPeer {
    /// org: the transmit timestamp of the packet that we echo, or shall.
    pub last_transmit: Option<NtpTimestamp>,
    /// The association's key.
    pub key: Option<KeyId>,
}

/// A Kiss-o'-Death that means something in symmetric modes. ntpd writes `INIT` and the like into the reference id of
/// every packet until it is synchronised: those are packets like any other.
#[must_use]
pub fn peer_kiss(header: &Header) -> Option<Kiss> {
    Kiss::of(header).filter(|kiss| !matches!(kiss, Kiss::Other(_)))
}

/// Tests 4, 1 and 5 in symmetric modes, and of test 3 what rests on the transmit timestamp. Who fails one of these
/// changes no state: the packet is a copy, or not from the peer. Afterwards comes [`origin_symmetric`].
///
/// # Errors
/// The first test that failed.
pub fn on_wire_symmetric(
    header: &Header,
    access: Access,
    authentication: Authentication,
    expected: &ExpectedOfPeer,
) -> Result<(), Failure> {
    if access == Access::Denied {
        return Err(Failure::AccessDenied);
    }
    let transmit = header.transmit_timestamp();
    if peer_kiss(header).is_none() {
        if transmit.is_unknown() {
            return Err(Failure::Invalid);
        }
        if expected.last_transmit == Some(transmit) {
            return Err(Failure::Duplicate);
        }
    }
    authentic(expected.key, authentication)
}

/// Tests 3 and 2 in symmetric modes: does the packet answer one of ours? Zero origin and receive timestamps are no
/// offence, since that is how a peering begins (RFC 5905 figure 15), but they give no sample (figure 22).
///
/// # Errors
/// Invalid or bogus: no sample, but perhaps a packet to be echoed.
pub fn origin_symmetric(header: &Header, origin: Origin) -> Result<(), Failure> {
    match origin {
        Origin::Zero => Err(Failure::Invalid),
        Origin::Answer if peer_kiss(header).is_none() && header.receive_timestamp().is_unknown() => {
            Err(Failure::Invalid)
        }
        Origin::Answer => Ok(()),
        Origin::Repeated | Origin::Foreign => Err(Failure::Bogus),
    }
}

/// MAXDISP of RFC 5905 section 7.2: a clock that may be this wrong is none.
pub const DISPERSION_MAX: NtpDuration = NtpDuration::from_seconds(16);
/// MAXSTRAT of RFC 5905 section 7.2: the stratum number of an unsynchronised clock.
pub const STRATUM_UNSYNCHRONISED: u8 = 16;

/// Tests 6 and 7: what the packet says of its sender's clock.
///
/// # Errors
/// The first test that failed.
pub fn contents(header: &Header) -> Result<(), Failure> {
    let synchronised = 1..STRATUM_UNSYNCHRONISED;
    if header.leap() == Leap::Unsynchronised || !synchronised.contains(&header.stratum) {
        return Err(Failure::Unsynchronised);
    }
    let half_delay = NtpDuration::from_bits(header.root_delay().to_duration().to_bits() / 2);
    if half_delay + header.root_dispersion().to_duration() >= DISPERSION_MAX {
        return Err(Failure::Header);
    }
    // The difference is modular, so that it is right across an era. Zero means "unknown", not 1900 nor 2036: a
    // server whose clock is right by definition may never have set it.
    let reference = header.reference_timestamp();
    if !reference.is_unknown() && reference - header.transmit_timestamp() > NtpDuration::ZERO {
        return Err(Failure::Header);
    }
    Ok(())
}

#[cfg(test)]
#[path = "packet_checks_tests.rs"]
mod tests;
