//! The controller's dealings with peers: the packets of symmetric modes, and the passive ends that come and go.
//!
//! Owns: who may become a passive peer, for how long, and when a peer is answered earlier than its poll is due. Does not
//! own: the on-wire state ([`Symmetric`]).
//!
//! The one idea a newcomer lacks: a passive association is a guest. It came unasked, and may set our clock like any
//! source. So it must be authenticated unless the operator says otherwise (RFC 8633 section 5.6), there is room
//! for few, one for each key, and it is kept only while it is of use to *us*. A peer of a worse stratum is not: it is answered, once for
//! each packet and without an association, which is all that it wants of us.
//!
//! # One key, one guest
//! A key says who somebody is, an address does not: whoever has one key may have a thousand addresses, and with a guest
//! at each of them he would outvote every true source (CVE-2016-1549, CVE-2018-7170). ntpd leaves it to the operator to
//! bind keys to addresses, or to forbid guests. We take RFC 8633 section 5.6 at its word, "Each symmetric passive
//! association SHOULD be authenticated under a different cryptographic key": a key has one guest, in whichever instance,
//! since there is one clock. Who comes by it from elsewhere is answered like a worse peer. (So whoever replays a packet
//! from another address before the true peer is there keeps its place for some minutes, until its silence is noticed. That
//! costs us a source, not the time; a peer that matters is configured.)

use super::super::action::{Action, Trailer, Transmission, TransmitField};
use super::super::association::{Association, Role};
use super::super::event::{
    Access, Arrival, AssociationId, Authentication, Delivery, InstanceId, InterfaceIndex, KeyId, SendHandle,
    SocketName,
};
use super::super::news::Farewell;
use super::super::packet_checks::Failure;
use super::super::source::{NTP_PORT, Place, PollOptions, SourceConfiguration, SourceKind, Volley};
use super::super::strangers::network;
use super::super::symmetric::{Ours, Symmetric, answer_in, stratum_number};
use super::{Controller, NOBODY};
use crate::time::{Log2Seconds, NtpDuration};
use crate::wire::{Header, Mode};

/// The most passive associations. Peers are few and know each other; each of these may set our clock.
pub const PASSIVE_MAX: usize = 64;
/// Those of them without a key, where the operator allows that: more than there are in a network that needs none. Forged
/// ones must not take the room of those with a key.
pub const KEYLESS_PASSIVE_MAX: usize = 8;
/// MINPOLL of RFC 5905 section 7.2: a passive end sends no more often by itself, whatever its peer likes.
const PASSIVE_POLL_MIN: Log2Seconds = Log2Seconds(4);
/// A passive end answers at once, but not more often than this.
const ANSWER_PAUSE: NtpDuration = NtpDuration::from_seconds(1);

/// Who may become a passive peer of ours: a source that we did not choose.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum PassivePeers {
    /// Nobody.
    Refused,
    /// Who has a trusted key, one for each (RFC 8633 section 5.6).
    #[default]
    Authenticated,
    /// Anyone who is let in by the access list, [`KEYLESS_PASSIVE_MAX`] without a key. A forged packet is enough to be
    /// taken for a peer.
    Anyone,
}

impl Controller {
    /// The peering that a packet to port 123 belongs to: by instance, address and port (RFC 5905 section 9.2).
    pub(super) fn peer_of(&self, arrival: &Arrival) -> Option<AssociationId> {
        let id = *self.servers.get(&(arrival.instance, arrival.remote))?;
        let association = self.associations.get(&id)?;
        let is_peer = matches!(association.role, Role::Symmetric(_));
        (is_peer && arrival.delivery == Delivery::Unicast).then_some(id)
    }

    /// NEWPS of RFC 5905 figure 20: a mode 1 packet of somebody who is no peer of ours.
    pub(super) fn on_new_peer(&mut self, arrival: &Arrival) {
        let arrival = &self.judged(arrival, self.named_at(arrival.instance, arrival.remote));
        let key = match self.admit(arrival) {
            Ok(key) => key,
            Err(failure) => {
                self.counters.peers_refused += 1;
                if let Some(failure) = failure {
                    self.counters.failures.count(failure);
                }
                if failure == Some(Failure::Authentication)
                    && arrival.authentication == Authentication::Invalid
                {
                    self.refuse_mac(arrival);
                }
                return;
            }
        };
        let is_worse = stratum_number(arrival.header.leap(), arrival.header.stratum) > self.stratum();
        let is_source = self.servers.contains_key(&(arrival.instance, arrival.remote));
        let is_guest = !is_worse && !is_source && self.has_room_for_guest(arrival, key);
        if !is_guest || self.mobilise_passive(arrival, key).is_none() {
            self.answer_once(arrival, key);
        }
    }

    /// For one who came by this key, if nobody else did; for one without, if nobody came from his host, which of an IPv6
    /// network may have all addresses.
    fn has_room_for_guest(&self, arrival: &Arrival, key: Option<KeyId>) -> bool {
        let guests = || self.associations.values().filter(|association| association.role.is_passive());
        let alike = || guests().filter(|guest| guest.key == key);
        let is_same_host = |guest: &Association| {
            (guest.instance, network(guest.remote.ip())) == (arrival.instance, network(arrival.remote.ip()))
        };
        let has_room = match key {
            Some(_) => alike().next().is_none(),
            None => alike().count() < KEYLESS_PASSIVE_MAX && !alike().any(is_same_host),
        };
        has_room && guests().count() < PASSIVE_MAX
    }

    /// May the sender become a peer, and with which key? An error without a failure: whatever it sends.
    fn admit(&self, arrival: &Arrival) -> Result<Option<KeyId>, Option<Failure>> {
        if arrival.access == Access::Denied {
            return Err(Some(Failure::AccessDenied));
        }
        if arrival.delivery != Delivery::Unicast || arrival.remote.port() != NTP_PORT {
            return Err(None);
        }
        let key = match (self.options.passive, arrival.authentication) {
            (PassivePeers::Refused, _) => return Err(None),
            (_, Authentication::Valid(key)) => Some(key),
            (PassivePeers::Anyone, Authentication::None) => None,
            // A crypto-NAK is a wrong MAC: it mobilises nothing (CVE-2015-7871).
            _ => return Err(Some(Failure::Authentication)),
        };
        if arrival.header.transmit_timestamp().is_unknown() {
            return Err(Some(Failure::Invalid));
        }
        Ok(key)
    }

    fn mobilise_passive(&mut self, arrival: &Arrival, key: Option<KeyId>) -> Option<AssociationId> {
        let now = self.now.monotonic;
        let configuration = SourceConfiguration {
            instance: arrival.instance,
            kind: SourceKind::Peer(Volley::Off),
            place: Place::Address(arrival.remote),
            key,
            poll: PollOptions { poll_min: PASSIVE_POLL_MIN, ..PollOptions::default() },
            ..SourceConfiguration::server(arrival.remote.ip())
        };
        let role = Role::Symmetric(Symmetric::passive(arrival, self.discipline.slewed(now)));
        // The first answer is due at once.
        let id = self.insert(None, &configuration, arrival.remote, role, now)?;
        let association = self.associations.get_mut(&id)?;
        association.local = Some(arrival.local);
        association.traffic.received += 1;
        Some(id)
    }

    /// RFC 5905 A.5.1, NEWPS: "If authentication fails, send a crypto-NAK packet", in mode 1 as there. Only to a MAC that
    /// is wrong or of an unknown key: a missing one is no failure to be mended by new keys, and a crypto-NAK that
    /// answered a crypto-NAK would be answered itself for ever. Nothing in it proves anything, so it is sent to whom it
    /// may harm least, a port 123, and not often.
    fn refuse_mac(&mut self, arrival: &Arrival) {
        if arrival.header.transmit_timestamp().is_unknown() || !self.may_answer_stranger(arrival) {
            return;
        }
        let handle = self.send_handle(NOBODY);
        let header =
            answer_in(Mode::SymmetricActive, arrival, &self.ours(arrival.instance, arrival.header.poll()));
        self.send_to_stranger(arrival, handle, header, Trailer::CryptoNak);
    }

    fn send_to_stranger(&mut self, arrival: &Arrival, handle: SendHandle, header: Header, trailer: Trailer) {
        self.actions.push(Action::Transmit(Transmission {
            handle,
            from: SocketName::Service(arrival.instance),
            local: Some(arrival.local),
            to: arrival.remote,
            interface: InterfaceIndex(0),
            hop_limit: None,
            header,
            transmit_field: TransmitField::Clock,
            trailer,
        }));
    }

    /// Whoever it is that the packet claims to come from: is it his turn, or anybody's?
    pub(super) fn may_answer_stranger(&mut self, arrival: &Arrival) -> bool {
        let is_due = self.strangers.spend(arrival.instance, arrival.remote.ip(), self.now.monotonic);
        self.counters.over_budget += u64::from(!is_due);
        is_due
    }

    /// "The association will always persist until at least one NTP message has been sent in reply" (RFC 1305 section
    /// 3.3): that of a worse peer would end with its first reply, so we send the reply and have no association.
    fn answer_once(&mut self, arrival: &Arrival, key: Option<KeyId>) {
        if !self.may_answer_stranger(arrival) {
            return;
        }
        let handle = self.send_handle(NOBODY);
        let header =
            answer_in(Mode::SymmetricPassive, arrival, &self.ours(arrival.instance, arrival.header.poll()));
        self.send_to_stranger(arrival, handle, header, key.into());
    }

    /// A peer's poll is due: sends it a packet. For a passive end, that may have been the last one.
    pub(super) fn send_to_peer(&mut self, id: AssociationId, handle: SendHandle) {
        let Some(association) = self.associations.get(&id) else { return };
        let ours = self.ours(association.instance, association.poll.host_interval());
        let Some(association) = self.associations.get_mut(&id) else { return };
        let Role::Symmetric(symmetric) = &mut association.role else { return };
        let header = symmetric.message(handle.number, &ours);
        // A configured peer's address is the operator's, ours is left to routing; a guest gets its answers from where
        // it sent its packets to.
        let local = association.local.filter(|_| symmetric.is_passive());
        self.actions.push(Action::Transmit(Transmission {
            handle,
            from: SocketName::Service(association.instance),
            local,
            to: association.remote,
            interface: InterfaceIndex(0),
            hop_limit: None,
            header,
            transmit_field: TransmitField::Clock,
            trailer: association.key.into(),
        }));
        self.review_passive(id);
    }

    /// A passive association is kept while its peer is reachable and its stratum is at most ours, and until a
    /// reply was sent in any case, which is why this comes after one.
    fn review_passive(&mut self, id: AssociationId) {
        let ours = self.stratum();
        let Some(association) = self.associations.get(&id) else { return };
        let Role::Symmetric(symmetric) = &association.role else { return };
        if !symmetric.is_passive() {
            return;
        }
        let theirs = association.peer.map(|peer| stratum_number(peer.leap, peer.stratum));
        let reason = if symmetric.is_silent() {
            Farewell::Silent
        } else if theirs.is_some_and(|theirs| theirs > ours) {
            Farewell::WorseStratum
        } else {
            return;
        };
        self.demobilise(id, reason);
        self.select();
    }

    /// ERR of RFC 5905 figure 20: both ends passive, neither of whom would begin. The figure dissolves the association
    /// whoever sent the packet. We do it only if the packet passes tests 1 to 5, because anybody could end any
    /// passive peering with one forged packet otherwise.
    pub(super) fn on_two_passive_ends(&mut self, id: AssociationId, arrival: &Arrival) {
        let Some(association) = self.associations.get_mut(&id) else { return };
        association.traffic.received += 1;
        let Role::Symmetric(symmetric) = &association.role else { return };
        match symmetric.check(arrival, association.key) {
            Err(failure) => self.count(id, failure),
            Ok(()) => {
                self.demobilise(id, Farewell::BothPassive);
                self.select();
            }
        }
    }

    /// After a packet of a peer: the volley is over, or the peer waits for an answer.
    pub(super) fn hasten_peer(&mut self, id: AssociationId, socket: SocketName) {
        if matches!(socket, SocketName::Exchange(_)) {
            return self.end_volley(id);
        }
        let now = self.now.monotonic;
        let Some(association) = self.associations.get_mut(&id) else { return };
        let Role::Symmetric(symmetric) = &association.role else { return };
        if symmetric.owes_answer() {
            let half = association.poll.interval().to_duration().half();
            association.poll.hasten(now, if symmetric.is_passive() { ANSWER_PAUSE } else { half });
        }
    }

    /// If the volley's socket is closed, its exchange is over: the peering proper begins at once.
    pub(super) fn end_volley(&mut self, id: AssociationId) {
        let now = self.now.monotonic;
        let Some(association) = self.associations.get_mut(&id) else { return };
        let Role::Symmetric(symmetric) = &mut association.role else { return };
        if symmetric.client().closes_at().is_none() && symmetric.end_volley() {
            association.poll.hasten(now, NtpDuration::ZERO);
        }
    }

    /// As those in an instance are told it.
    fn ours(&self, instance: InstanceId, poll: Log2Seconds) -> Ours {
        let slewed = self.discipline.slewed(self.now.monotonic);
        Ours { snapshot: self.system.snapshot.seen_from(instance), clock: self.now.clock, slewed, poll }
    }

    fn stratum(&self) -> u8 {
        stratum_number(self.system.snapshot.leap, self.system.snapshot.stratum)
    }
}
