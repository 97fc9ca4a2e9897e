//! Symmetric active and passive modes (1 and 2): two ends, each of them server and client of the other.
//!
//! Owns: the on-wire state of one peering: what we sent, what we heard last and shall echo, and the volley it opens
//! with. Does not own: when to send, and who may become a passive peer (the controller).
//!
//! The one idea a newcomer lacks: a packet of a peer does two things. As an answer it echoes a transmit timestamp of
//! ours, which makes a measurement of it, and proves that its sender has heard us. As a request it has a transmit
//! timestamp that we shall echo, or *our* next packet is no answer to it.
//!
//! # What may change what we echo
//! RFC 5905 section 8 says of duplicate and bogus packets that "the state variables are updated, then the packet is
//! discarded". So whoever replays an old packet, or forges one where there is no key, makes us echo the wrong
//! timestamp, our packets become bogus to the peer, and with one packet for each poll of ours the peering is dead
//! (CVE-2015-1799). But somewhere it has to begin, or to begin again, when a packet was lost or one end was
//! restarted. We part the two:
//! - We remember the last packets that we sent, not only the very last. A packet that echoes one of them is from
//!   somebody who heard us. If nobody has answered it before, that is an answer; it is measured, and noted.
//! - One that echoes the packet that was answered last comes of a peer that sends more often than we do. It gives no
//!   sample, but is noted if it is newer than the last one. An older one is a replay.
//! - Any other packet of the right sender, zero origin among them (the class of CVE-2015-8138), gives no sample and is
//!   noted only while nothing proven is known. If the peer was restarted and knows nothing, *our* next packet tells it
//!   what to echo, and its next one is an answer.
//!
//! What was proven is forgotten after eight polls without an answer.
//!
//! # Long exchanges
//! A client's exchange takes milliseconds, a peer's up to a poll interval. Meanwhile our own slews move the clock: our
//! times are kept with how far it was slewed by then, and used as if it had been slewed before. What our drift does in
//! the meantime is smaller the sooner an answer leaves, so we send early when a peer waits for one
//! ([`Symmetric::owes_answer`]), a passive end at once and an active one if half of its interval is over.

use super::client::{Client, Outcome};
use super::dispatch::AssociationMode;
use super::event::{Arrival, KeyId, SendStamp};
use super::packet_checks::{self, ExpectedOfPeer, Failure, Origin, STRATUM_UNSYNCHRONISED};
use super::sample::{Exchange, Sample};
use super::source::Volley;
use crate::snapshot::SystemSnapshot;
use crate::time::{Log2Seconds, Monotonic, NtpDuration, NtpShort, NtpTimestamp, Timestamp};
use crate::wire::{Header, Leap, Mode, Version};
use std::collections::VecDeque;

/// After so many polls without an answer nothing is proven any more, and a passive association is dissolved: the length
/// of the reach register (RFC 5905 section 13).
pub const VAIN_POLLS_MAX: u8 = 8;
/// How many packets of ours an answer may belong to: as many as may be in vain.
const SENT_MAX: usize = VAIN_POLLS_MAX as usize;

/// A time of our clock, and how far slews had moved the clock by then (positive: forward).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Reading {
    time: NtpTimestamp,
    slewed: NtpDuration,
}

impl Reading {
    /// What the clock would have said had it been slewed as far as now.
    fn slewed_to(self, now: NtpDuration) -> NtpTimestamp {
        self.time + (now - self.slewed)
    }
}

/// A packet of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Sent {
    number: u64,
    slewed: NtpDuration,
    /// When it left; `None`: not known yet.
    stamp: Option<SendStamp>,
}

/// The packet that we echo.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Heard {
    /// org: its transmit timestamp.
    transmit_timestamp: NtpTimestamp,
    /// rec: when it came.
    received: Reading,
    /// Its sender has heard us.
    is_proven: bool,
    /// We have echoed it.
    is_echoed: bool,
}

/// How far the volley is that an active association opens with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Opening {
    Due,
    Waiting,
    Over,
}

/// The on-wire state of a peering.
#[derive(Clone, Debug)]
pub struct Symmetric {
    mode: Mode,
    version: Version,
    volley: Volley,
    opening: Opening,
    client: Client,
    /// The last packets, the latest last.
    sent: VecDeque<Sent>,
    /// The number of the last of them that was answered; 0: none.
    answered: u64,
    heard: Option<Heard>,
    vain_polls: u8,
}

/// What a packet says about our clock.
#[derive(Clone, Copy, Debug)]
pub struct Ours {
    /// The system variables.
    pub snapshot: SystemSnapshot,
    /// What our clock says now.
    pub clock: NtpTimestamp,
    /// How far slews have moved it so far (positive: forward).
    pub slewed: NtpDuration,
    /// How often we like to send.
    pub poll: Log2Seconds,
}

/// A stratum as a number that can be compared: 16 is unsynchronised (RFC 5905 section 7.3).
#[must_use]
pub const fn stratum_number(leap: Leap, stratum: u8) -> u8 {
    match leap {
        Leap::Unsynchronised => STRATUM_UNSYNCHRONISED,
        _ if stratum == 0 || stratum > STRATUM_UNSYNCHRONISED => STRATUM_UNSYNCHRONISED,
        _ => stratum,
    }
}

/// A packet without the timestamps that depend on the other side (RFC 5905 figure 30). The shell writes the transmit
/// timestamp.
fn message(mode: Mode, version: Version, ours: &Ours) -> Header {
    let snapshot = &ours.snapshot;
    let mut header = Header::new(snapshot.leap, version, mode);
    header.stratum = snapshot.stratum;
    header.set_poll(ours.poll);
    header.set_precision(snapshot.precision);
    header.set_root_delay(NtpShort::from_duration_rounded_up(snapshot.root_delay));
    header.set_root_dispersion(snapshot.root_dispersion_at(ours.clock));
    header.reference_id = snapshot.reference_id;
    header.set_reference_timestamp(snapshot.reference_timestamp);
    header
}

/// The packet of this mode that answers a mode 1 packet without an association.
#[must_use]
pub fn answer_in(mode: Mode, arrival: &Arrival, ours: &Ours) -> Header {
    let mut header = message(mode, version_of(&arrival.header), ours);
    header.set_origin_timestamp(arrival.header.transmit_timestamp());
    header.set_receive_timestamp(arrival.receive_timestamp);
    header
}

/// RFC 5905 A.5.1: a passive association speaks the version of the packet that mobilised it.
fn version_of(header: &Header) -> Version {
    Version::new(header.version_number()).unwrap_or(Version::V4)
}

impl Symmetric {
    fn new(mode: Mode, version: Version, volley: Volley) -> Self {
        Self {
            mode,
            version,
            volley,
            opening: if volley == Volley::On { Opening::Due } else { Opening::Over },
            client: Client::default(),
            sent: VecDeque::new(),
            answered: 0,
            heard: None,
            vain_polls: 0,
        }
    }

    /// The active end, as configured.
    #[must_use]
    pub fn active(volley: Volley, version: Version) -> Self {
        Self::new(Mode::SymmetricActive, version, volley)
    }

    /// The passive end that a mode 1 packet asks for. `slewed` is how far slews have moved our clock so far.
    #[must_use]
    pub fn passive(arrival: &Arrival, slewed: NtpDuration) -> Self {
        let mut passive = Self::new(Mode::SymmetricPassive, version_of(&arrival.header), Volley::Off);
        passive.note(arrival, slewed);
        passive
    }

    /// The row of RFC 5905 figure 20.
    #[must_use]
    pub const fn row(&self) -> AssociationMode {
        if self.is_passive() { AssociationMode::SymmetricPassive } else { AssociationMode::SymmetricActive }
    }

    /// Is this the passive end?
    #[must_use]
    pub const fn is_passive(&self) -> bool {
        matches!(self.mode, Mode::SymmetricPassive)
    }

    /// The client that sends the volley's request.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// The same, to be changed.
    pub const fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// At a poll: is the volley to be sent now, in place of a mode 1 packet?
    pub fn begins_with_volley(&mut self) -> bool {
        let is_due = self.opening == Opening::Due;
        self.opening = if is_due { Opening::Waiting } else { Opening::Over };
        is_due
    }

    /// The volley was answered, or was waited for long enough. Gives whether there was one.
    pub fn end_volley(&mut self) -> bool {
        let was_waiting = self.opening == Opening::Waiting;
        if was_waiting {
            self.opening = Opening::Over;
        }
        was_waiting
    }

    /// The next packet, send number `number`.
    pub fn message(&mut self, number: u64, ours: &Ours) -> Header {
        let mut header = message(self.mode, self.version, ours);
        self.vain_polls = self.vain_polls.saturating_add(1);
        if let Some(heard) = &mut self.heard {
            heard.is_echoed = true;
            heard.is_proven &= self.vain_polls <= VAIN_POLLS_MAX;
            header.set_origin_timestamp(heard.transmit_timestamp);
            header.set_receive_timestamp(heard.received.slewed_to(ours.slewed));
        }
        if self.sent.len() == SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent { number, slewed: ours.slewed, stamp: None });
        header
    }

    /// The packet of this number left.
    pub fn on_sent(&mut self, number: u64, stamp: SendStamp) {
        self.client.on_sent(number, stamp);
        if let Some(sent) = self.sent.iter_mut().find(|sent| sent.number == number) {
            sent.stamp = Some(stamp);
        }
    }

    /// The packet of this number never left. Gives whether it was the volley's.
    pub fn on_send_failed(&mut self, number: u64) -> bool {
        self.sent.retain(|sent| sent.number != number);
        self.client.on_send_failed(number)
    }

    /// Our clock was stepped: our timestamps are void, and the peering begins anew.
    pub fn forget(&mut self) {
        self.client.forget();
        self.sent.clear();
        self.heard = None;
        if self.volley == Volley::On {
            self.opening = Opening::Due;
        }
    }

    /// Has the peer sent something that we have not echoed yet?
    #[must_use]
    pub fn owes_answer(&self) -> bool {
        self.heard.is_some_and(|heard| !heard.is_echoed)
    }

    /// Have the last eight polls been in vain?
    #[must_use]
    pub const fn is_silent(&self) -> bool {
        self.vain_polls > VAIN_POLLS_MAX
    }

    /// Does the packet pass tests 1 to 5? Changes nothing.
    ///
    /// # Errors
    /// The first test that failed.
    pub fn check(&self, arrival: &Arrival, key: Option<KeyId>) -> Result<(), Failure> {
        self.check_sender(arrival, key)?;
        packet_checks::origin_symmetric(&arrival.header, self.origin(&arrival.header))
    }

    fn check_sender(&self, arrival: &Arrival, key: Option<KeyId>) -> Result<(), Failure> {
        let last_transmit = self.heard.map(|heard| heard.transmit_timestamp);
        packet_checks::on_wire_symmetric(
            &arrival.header,
            arrival.access,
            arrival.authentication,
            &ExpectedOfPeer { last_transmit, key },
        )
    }

    /// Tests a mode 1 or 2 packet of the peer. [`Outcome::Refused`] may have changed what we echo, as the head of this
    /// file says. `slewed` is how far slews have moved our clock so far.
    pub fn receive(
        &mut self,
        now: Timestamp<Monotonic>,
        arrival: &Arrival,
        key: Option<KeyId>,
        precision: Log2Seconds,
        slewed: NtpDuration,
    ) -> Outcome {
        let header = &arrival.header;
        if let Err(failure) = self.check_sender(arrival, key) {
            return Outcome::Refused(failure);
        }
        let origin = self.origin(header);
        if let Err(failure) = packet_checks::origin_symmetric(header, origin) {
            if packet_checks::peer_kiss(header).is_none() {
                self.note_unanswering(arrival, origin, slewed);
            }
            return Outcome::Refused(failure);
        }
        let answered = self.find(header.origin_timestamp()).and_then(|sent| Some((sent, sent.stamp?)));
        let Some((sent, stamp)) = answered else { return Outcome::Unstamped };
        self.answered = sent.number;
        self.vain_polls = 0;
        if let Some(kiss) = packet_checks::peer_kiss(header) {
            return Outcome::Kissed(kiss);
        }
        self.note(arrival, slewed);
        self.heard = self.heard.map(|heard| Heard { is_proven: true, ..heard });
        if let Err(failure) = packet_checks::contents(header) {
            return Outcome::Timeless(failure);
        }
        let departed = Reading { time: stamp.departed, slewed: sent.slewed };
        Outcome::Measured(Sample::from_exchange(&Exchange {
            origin_timestamp: departed.slewed_to(slewed),
            receive_timestamp: header.receive_timestamp(),
            transmit_timestamp: header.transmit_timestamp(),
            destination_timestamp: arrival.receive_timestamp,
            server_precision: header.precision(),
            precision,
            time: now,
        }))
    }

    /// The packet of ours with this transmit timestamp.
    fn find(&self, transmit_timestamp: NtpTimestamp) -> Option<Sent> {
        let is_it = |sent: &&Sent| sent.stamp.is_some_and(|stamp| stamp.written == transmit_timestamp);
        self.sent.iter().rev().find(is_it).copied()
    }

    fn origin(&self, header: &Header) -> Origin {
        let origin = header.origin_timestamp();
        if origin.is_unknown() {
            return Origin::Zero;
        }
        match self.find(origin) {
            Some(sent) if sent.number > self.answered => Origin::Answer,
            Some(sent) if sent.number == self.answered => Origin::Repeated,
            _ => Origin::Foreign,
        }
    }

    /// A packet of the right sender that answers nothing: is it to be echoed?
    fn note_unanswering(&mut self, arrival: &Arrival, origin: Origin, slewed: NtpDuration) {
        let is_noted = match self.heard {
            None => true,
            Some(heard) => {
                // Modular, so that it is right across an era.
                let is_newer =
                    arrival.header.transmit_timestamp() - heard.transmit_timestamp > NtpDuration::ZERO;
                if heard.is_proven {
                    is_newer && origin == Origin::Repeated
                } else {
                    // What was echoed in vain must not stand in the way of a peer whose clock was set back.
                    is_newer || heard.is_echoed
                }
            }
        };
        if is_noted {
            self.note(arrival, slewed);
        }
    }

    fn note(&mut self, arrival: &Arrival, slewed: NtpDuration) {
        self.heard = Some(Heard {
            transmit_timestamp: arrival.header.transmit_timestamp(),
            received: Reading { time: arrival.receive_timestamp, slewed },
            is_proven: self.heard.is_some_and(|heard| heard.is_proven),
            is_echoed: false,
        });
    }
}

#[cfg(test)]
#[path = "symmetric_tests.rs"]
mod tests;
