//! Manycast: finding servers by asking a group (mode 3), wider and wider (RFC 5905 sections 3.1 and 13.2).
//!
//! Owns: when a group is asked and how far the question goes; who answers one. Does not own: the associations with the
//! servers that answer, which are client associations like any other.
//!
//! The one idea a newcomer lacks: nothing is measured with the question, nor with the answers to it. An answer only
//! says "here I am"; it is believed because it echoes the random number of the question, and then its sender is asked
//! like any server. So the question may stay open for all of them, and for as long as the next is not asked.

use super::broadcast_client::signed;
use super::broadcast_server::describe;
use super::chance::Chance;
use super::client::NO_PRECISION;
use super::event::{Access, Arrival, Authentication, KeyId};
use super::packet_checks::{self, Failure, STRATUM_UNSYNCHRONISED};
use super::source::{ManycastOptions, Unsigned};
use crate::snapshot::SystemSnapshot;
use crate::time::{Log2Seconds, Monotonic, NtpTimestamp, Timestamp};
use crate::wire::{Header, Leap, Mode, Version};

/// Where the search stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Fewer servers than are enough; the question goes further each time.
    Searching,
    /// All were asked, in vain: nothing is sent until the timeout is over.
    Resting,
    /// Enough servers; one question for each timeout.
    Keeping,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Ask the group.
    Ask,
    /// Dissolve what was found, then ask the group.
    StartOver,
    /// Nothing.
    Wait,
}

/// The search of one manycast client association.
#[derive(Clone, Debug)]
pub struct Search {
    options: ManycastOptions,
    /// Between questions while searching.
    interval: Log2Seconds,
    phase: Phase,
    hop_limit: u8,
    next: Timestamp<Monotonic>,
    /// xmt: the random bits of the last question, until another is asked or the search rests.
    nonce: Option<NtpTimestamp>,
}

impl Search {
    /// A search that begins at `first`, with a question each `interval` at first.
    #[must_use]
    pub const fn new(options: ManycastOptions, interval: Log2Seconds, first: Timestamp<Monotonic>) -> Self {
        Self { options, interval, phase: Phase::Searching, hop_limit: 0, next: first, nonce: None }
    }

    /// As configured.
    #[must_use]
    pub const fn options(&self) -> &ManycastOptions {
        &self.options
    }

    /// When [`Self::turn`] is due.
    #[must_use]
    pub const fn next(&self) -> Timestamp<Monotonic> {
        self.next
    }

    /// The TTL of the last question; 0: none was asked yet.
    #[must_use]
    pub const fn hop_limit(&self) -> u8 {
        self.hop_limit
    }

    /// Where it stands, in words.
    #[must_use]
    pub fn reason(&self) -> String {
        let rest = self.options.timeout.to_duration().seconds();
        match (self.phase, self.hop_limit) {
            (Phase::Searching, 0) => "the search begins".to_owned(),
            (Phase::Searching, hops) => format!("servers are sought with TTL {hops}"),
            (Phase::Resting, hops) => {
                format!("too few servers answered up to TTL {hops}; the search rests for {rest:.0} s")
            }
            (Phase::Keeping, _) => format!("enough servers are known; the group is asked every {rest:.0} s"),
        }
    }

    /// The time of [`Self::next`] has come, and this many servers are known.
    pub fn turn(&mut self, now: Timestamp<Monotonic>, found: usize) -> Step {
        let timeout = now + self.options.timeout.to_duration();
        if found >= self.options.enough() {
            let step = if self.phase == Phase::Keeping { Step::Ask } else { Step::Wait };
            self.phase = Phase::Keeping;
            self.next = timeout;
            return step;
        }
        let step = match self.phase {
            Phase::Searching if self.hop_limit >= self.options.hop_limit_max.max(1) => {
                self.phase = Phase::Resting;
                self.nonce = None;
                self.next = timeout;
                return Step::Wait;
            }
            Phase::Searching => Step::Ask,
            Phase::Resting => {
                self.hop_limit = 0;
                Step::StartOver
            }
            // One was lost: the others are kept.
            Phase::Keeping => {
                self.hop_limit = 0;
                Step::Ask
            }
        };
        self.phase = Phase::Searching;
        self.hop_limit += 1;
        self.next = now + self.interval.to_duration();
        step
    }

    /// A server was lost, so that fewer than enough may be left: the search goes on soon.
    pub fn on_loss(&mut self, now: Timestamp<Monotonic>, found: usize) {
        if self.phase == Phase::Keeping && found < self.options.enough() {
            self.next = self.next.min(now + self.interval.to_duration());
        }
    }

    /// The question. It tells our stratum, since no server of a higher one is to answer.
    pub fn question(&mut self, stratum: u8, chance: &mut Chance) -> Header {
        let nonce = chance.nonce();
        self.nonce = Some(nonce);
        let mut header = Header::new(Leap::None, Version::V4, Mode::Client);
        header.stratum = stratum;
        header.set_poll(self.interval);
        header.set_precision(NO_PRECISION);
        header.set_transmit_timestamp(nonce);
        header
    }

    /// Does this answer the last question?
    #[must_use]
    pub fn is_answered_by(&self, header: &Header) -> bool {
        self.nonce == Some(header.origin_timestamp())
    }

    /// What else an answer must be (tests 3 to 7 of RFC 5905 figure 22).
    ///
    /// # Errors
    /// The first test that failed.
    pub fn check(&self, arrival: &Arrival, key: Option<KeyId>) -> Result<(), Failure> {
        if arrival.access == Access::Denied {
            return Err(Failure::AccessDenied);
        }
        let header = &arrival.header;
        if header.receive_timestamp().is_unknown() || header.transmit_timestamp().is_unknown() {
            return Err(Failure::Invalid);
        }
        if !signed(arrival.authentication, key, self.options.unsigned) {
            return Err(Failure::Authentication);
        }
        packet_checks::contents(header)
    }
}

/// RFC 5905 section 9.2 and A.5.1 (FXMIT): the answer to a question that was asked of a group we are in, and the key
/// it is signed with; the shell writes the transmit timestamp. `None`: we are not synchronised, our stratum is above
/// the client's, or it is not signed as it must be. Then nothing is sent, above all no crypto-NAK, with which a
/// whole group would answer one forged packet.
#[must_use]
pub fn answer(
    arrival: &Arrival,
    key: Option<KeyId>,
    unsigned: Unsigned,
    snapshot: &SystemSnapshot,
) -> Option<(Header, Option<KeyId>)> {
    let request = &arrival.header;
    let theirs = if request.stratum == 0 { STRATUM_UNSYNCHRONISED } else { request.stratum };
    let is_due = arrival.access == Access::Allowed
        && snapshot.is_synchronised()
        && snapshot.stratum <= theirs
        && !request.transmit_timestamp().is_unknown()
        && signed(arrival.authentication, key, unsigned);
    let version = Version::new(request.version_number())?;
    is_due.then(|| {
        let mut header = Header::new(snapshot.leap, version, Mode::Server);
        header.set_poll(request.poll());
        describe(&mut header, snapshot, arrival.receive_timestamp);
        header.set_origin_timestamp(request.transmit_timestamp());
        header.set_receive_timestamp(arrival.receive_timestamp);
        let key = match arrival.authentication {
            Authentication::Valid(key) => Some(key),
            _ => None,
        };
        (header, key)
    })
}

#[cfg(test)]
#[path = "manycast_tests.rs"]
mod tests;
