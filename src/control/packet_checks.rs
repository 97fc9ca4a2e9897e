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
mod tests {
    use super::*;
    use crate::time::NtpShort;
    use crate::wire::{KissCode, Mode, ReferenceId, Version};

    const SENT: NtpTimestamp = NtpTimestamp::from_bits(0xdead_beef_0123_4567);
    const TIME: NtpTimestamp = NtpTimestamp::from_bits(0xee00_0000_8000_0000);

    fn seconds(seconds: i64) -> NtpDuration {
        NtpDuration::from_seconds(seconds)
    }

    fn reply() -> Header {
        let mut header = Header::new(Leap::None, Version::V4, Mode::Server);
        header.stratum = 1;
        header.reference_id = ReferenceId(*b"GPS\0");
        header.set_reference_timestamp(TIME - seconds(10));
        header.set_origin_timestamp(SENT);
        header.set_receive_timestamp(TIME - NtpDuration::from_nanoseconds(2000));
        header.set_transmit_timestamp(TIME);
        header
    }

    fn changed(change: impl FnOnce(&mut Header)) -> Header {
        let mut header = reply();
        change(&mut header);
        header
    }

    fn kiss(change: impl FnOnce(&mut Header)) -> Header {
        let mut header = Header::new(Leap::Unsynchronised, Version::V4, Mode::Server);
        header.reference_id = KissCode::Deny.reference_id();
        header.set_origin_timestamp(SENT);
        change(&mut header);
        header
    }

    const EXPECTED: Expected = Expected { origin: Some(SENT), last_transmit: None, key: None };

    fn plain(header: &Header, expected: &Expected) -> Result<(), Failure> {
        on_wire(header, Access::Allowed, Authentication::None, expected)
    }

    #[test]
    fn a_good_reply_passes_all() {
        assert_eq!(plain(&reply(), &EXPECTED), Ok(()));
        assert_eq!(contents(&reply()), Ok(()));
    }

    /// RFC 5905 section 8, test 1: the packet's transmit timestamp is the last packet's.
    #[test]
    fn test_1_refuses_a_duplicate() {
        let seen = Expected { last_transmit: Some(TIME), ..EXPECTED };
        assert_eq!(plain(&reply(), &seen), Err(Failure::Duplicate));
        let ours = Expected { last_transmit: Some(SENT), ..EXPECTED };
        assert_eq!(plain(&reply(), &ours), Ok(()), "our own transmit timestamp does not count");
    }

    /// RFC 5905 section 8, test 2: the origin timestamp is not our last transmit timestamp; also after one reply
    /// was accepted and nothing is outstanding.
    #[test]
    fn test_2_refuses_a_bogus_origin() {
        let header = changed(|header| header.set_origin_timestamp(SENT + NtpDuration::from_bits(1)));
        assert_eq!(plain(&header, &EXPECTED), Err(Failure::Bogus));
        let answered = Expected { origin: None, ..EXPECTED };
        assert_eq!(plain(&reply(), &answered), Err(Failure::Bogus));
    }

    /// RFC 5905 section 8 and figure 22, test 3: zero origin, receive or transmit timestamp.
    #[test]
    fn test_3_refuses_each_zero_timestamp() {
        let zero = NtpTimestamp::UNKNOWN;
        let headers = [
            changed(|header| header.set_origin_timestamp(zero)),
            changed(|header| header.set_receive_timestamp(zero)),
            changed(|header| header.set_transmit_timestamp(zero)),
        ];
        for header in headers {
            assert_eq!(plain(&header, &EXPECTED), Err(Failure::Invalid), "{header:?}");
        }
        let nothing_sent = Expected { origin: None, ..EXPECTED };
        let header = changed(|header| header.set_origin_timestamp(zero));
        assert_eq!(plain(&header, &nothing_sent), Err(Failure::Invalid), "zero answers no request at all");
    }

    /// RFC 5905 figure 22, test 4: the access list denies the sender.
    #[test]
    fn test_4_refuses_whom_the_access_list_denies() {
        let verdict = on_wire(&reply(), Access::Denied, Authentication::None, &EXPECTED);
        assert_eq!(verdict, Err(Failure::AccessDenied));
    }

    /// RFC 5905 figure 22 and A.5.1, test 5: wrong MAC; and a packet without one where the association has a key.
    #[test]
    fn test_5_refuses_what_is_not_authentic() {
        use Authentication::{CryptoNak, Invalid, None as Plain, Valid};
        let (key, other) = (KeyId::new(7).unwrap(), KeyId::new(8).unwrap());
        let refused = Err(Failure::Authentication);
        let table = [
            (None, Plain, Ok(())),
            (None, Valid(key), Ok(())),
            (None, Invalid, refused),
            (None, CryptoNak, refused),
            (Some(key), Valid(key), Ok(())),
            (Some(key), Valid(other), refused),
            (Some(key), Plain, refused),
            (Some(key), Invalid, refused),
            (Some(key), CryptoNak, refused),
        ];
        for (key, authentication, verdict) in table {
            let expected = Expected { key, ..EXPECTED };
            let found = on_wire(&reply(), Access::Allowed, authentication, &expected);
            assert_eq!(found, verdict, "{key:?} {authentication:?}");
        }
    }

    /// RFC 5905 A.5.1.1, test 6: leap 3, stratum 0 (16 inside) and above 15.
    #[test]
    fn test_6_refuses_an_unsynchronised_server() {
        let unsynchronised = changed(|header| {
            *header = Header::new(Leap::Unsynchronised, Version::V4, Mode::Server);
            header.stratum = 2;
        });
        assert_eq!(contents(&unsynchronised), Err(Failure::Unsynchronised));
        for stratum in [0, 16, 17, 255] {
            let found = contents(&changed(|header| header.stratum = stratum));
            assert_eq!(found, Err(Failure::Unsynchronised), "stratum {stratum}");
        }
        for stratum in [1, 2, 15] {
            assert_eq!(contents(&changed(|header| header.stratum = stratum)), Ok(()), "stratum {stratum}");
        }
    }

    /// RFC 5905 A.5.1.1, test 7: half the root delay and the root dispersion make 16 s.
    #[test]
    fn test_7_refuses_a_root_distance_of_16_s() {
        let short = |seconds: u32, fraction: u32| NtpShort::from_bits(seconds << 16 | fraction);
        let table = [
            (short(0, 0), short(15, 0xffff), Ok(())),
            (short(0, 0), short(16, 0), Err(Failure::Header)),
            (short(31, 0xffff), short(0, 0), Ok(())),
            (short(32, 0), short(0, 0), Err(Failure::Header)),
            (short(16, 0), short(8, 0), Err(Failure::Header)),
            (NtpShort::MAX, NtpShort::MAX, Err(Failure::Header)),
        ];
        for (delay, dispersion, verdict) in table {
            let packet = changed(|header| {
                header.set_root_delay(delay);
                header.set_root_dispersion(dispersion);
            });
            assert_eq!(contents(&packet), verdict, "{delay:?} {dispersion:?}");
        }
    }

    /// RFC 5905 A.5.1.1, test 7: the reference timestamp is after the transmit timestamp; zero is "unknown", and
    /// the comparison holds across the era change of 2036.
    #[test]
    fn test_7_refuses_a_reference_timestamp_after_the_transmit_timestamp() {
        let at = |reference, transmit| {
            contents(&changed(|header| {
                header.set_reference_timestamp(reference);
                header.set_transmit_timestamp(transmit);
            }))
        };
        assert_eq!(at(TIME, TIME), Ok(()));
        assert_eq!(at(TIME + NtpDuration::from_bits(1), TIME), Err(Failure::Header));
        assert_eq!(at(NtpTimestamp::UNKNOWN, TIME), Ok(()));
        let (last_era, new_era) = (NtpTimestamp::from_bits(u64::MAX - 5), NtpTimestamp::from_bits(1 << 33));
        assert_eq!(at(last_era, new_era), Ok(()));
        assert_eq!(at(new_era, last_era), Err(Failure::Header));
    }

    /// RFC 5905 section 7.4: the receive and transmit timestamps of a Kiss-o'-Death are undefined. RFC 8633
    /// section 5.4: its origin timestamp must be right. And it must be authentic like any packet.
    #[test]
    fn a_kiss_needs_only_its_origin_and_its_mac() {
        assert_eq!(plain(&kiss(|_| ()), &EXPECTED), Ok(()));
        let copy = Expected { last_transmit: Some(TIME), ..EXPECTED };
        assert_eq!(plain(&kiss(|header| header.set_transmit_timestamp(TIME)), &copy), Ok(()));
        let zero = kiss(|header| header.set_origin_timestamp(NtpTimestamp::UNKNOWN));
        assert_eq!(plain(&zero, &EXPECTED), Err(Failure::Invalid));
        let forged = kiss(|header| header.set_origin_timestamp(TIME));
        assert_eq!(plain(&forged, &EXPECTED), Err(Failure::Bogus));
        let keyed = Expected { key: KeyId::new(7), ..EXPECTED };
        assert_eq!(plain(&kiss(|_| ()), &keyed), Err(Failure::Authentication));
    }

    /// RFC 5905 figure 22: the numbers.
    #[test]
    fn failures_are_counted_by_the_number_of_the_figure() {
        let mut counts = FailureCounts::default();
        for (index, failure) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(failure.number()), index + 1);
            (0..=index).for_each(|_| counts.count(failure));
        }
        let each: Vec<u64> = Failure::ALL.into_iter().map(|failure| counts.of(failure)).collect();
        assert_eq!(each, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(counts.total(), 28);
    }
}
