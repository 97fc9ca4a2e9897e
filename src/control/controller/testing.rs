//! A shell that objects, for property tests and fuzz targets, here and outside the crate.
//!
//! Owns: the books about what the controller asks for, and the promises that hold whatever happens: one transmission
//! for one event at most, no table beyond its bound, no socket opened twice or left open, no dispersion that shrinks
//! without a sample. Does not own: what happens ([`Happening`]).
//!
//! The one idea a newcomer lacks: packets without meaning fail the first test, and nothing behind it is ever reached. So
//! most packets here answer a request that was really sent, and differ from a good answer in one or two places.

mod happening;
mod packets;

pub use happening::{Choices, Happening};
pub use packets::{Answer, Sender, Spoil};

use super::{
    ASSOCIATIONS_MAX, Action, Association, AssociationId, BTreeMap, BTreeSet, Controller, ControllerOptions,
    Due, Event, InstanceId, KEYLESS_PASSIVE_MAX, Moment, PASSIVE_MAX, SOURCES_MAX, SocketAddr,
};
use crate::control::action::{Frequency, Trailer, Transmission, TransmitField};
use crate::control::association::LastSample;
use crate::control::event::{Arrival, Authentication, Delivery, ExchangeSocket, SendStamp, SocketName};
use crate::control::strangers::SENDERS_MAX;
use crate::time::{Monotonic, NtpDuration, NtpTimestamp, Timestamp};
use crate::wire::{Header, Mode};
use std::collections::VecDeque;

/// When all histories begin.
pub const START: Moment = Moment {
    monotonic: Timestamp::from_nanoseconds(1_000_000_000_000),
    clock: NtpTimestamp::from_bits(0xee00_0000_0000_0000),
};

/// The requests that an answer may refer to, and the sends that are not reported yet. A shell that forgets to report
/// some is none of the controller's business.
const REMEMBERED: usize = 64;

/// A packet of the controller's that somebody may answer.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The socket that waits for the answer.
    pub from: SocketName,
    /// Who was asked.
    pub to: SocketAddr,
    /// What.
    pub header: Header,
    /// When.
    pub time: Timestamp<Monotonic>,
}

/// A packet that was sent, and of which the controller has not been told so.
#[derive(Debug)]
pub struct Unreported {
    /// What.
    pub transmission: Transmission,
    /// When.
    pub time: Timestamp<Monotonic>,
}

/// The shell.
#[derive(Debug)]
pub struct Shell {
    /// What is tried.
    pub controller: Controller,
    /// The clocks.
    pub now: Moment,
    /// The last word on when to wake it.
    pub wake_at: Option<Timestamp<Monotonic>>,
    /// What was sent and is not reported, the oldest first.
    pub sends: VecDeque<Unreported>,
    /// What was sent, the latest last.
    pub requests: VecDeque<Request>,
    /// The last question to a group.
    pub asked: Option<Header>,
    /// The sockets that are open.
    pub open: BTreeSet<ExchangeSocket>,
    /// How often the clock was stepped.
    pub steps: u64,
    /// How fast it was told to run.
    pub frequency: Frequency,
    /// The packet that came last, if it was the last event.
    heard: Option<Arrival>,
    /// The packets that left, of whatever kind.
    pub sent: u64,
}

/// What the dispersion of an association was, and its last sample. (Not only when that came: two may come at once.)
type Dispersions = BTreeMap<AssociationId, (NtpDuration, Option<LastSample>)>;

impl Shell {
    /// With a controller that has no sources.
    #[must_use]
    pub fn new(options: ControllerOptions) -> Self {
        Self {
            controller: Controller::new(options, [1; 32], START),
            now: START,
            wake_at: None,
            sends: VecDeque::new(),
            requests: VecDeque::new(),
            asked: None,
            open: BTreeSet::new(),
            steps: 0,
            frequency: Frequency::default(),
            heard: None,
            sent: 0,
        }
    }

    /// Time passes.
    pub fn pass(&mut self, duration: NtpDuration) {
        self.now.monotonic = self.now.monotonic + duration;
        self.now.clock = self.now.clock + duration;
    }

    /// Hands an event in, does what comes of it, and looks whether it may.
    ///
    /// # Panics
    /// A promise is broken.
    pub fn tell(&mut self, event: Event) {
        let before = self.dispersions();
        self.heard = match &event {
            Event::Packet(arrival) => Some(*arrival),
            _ => None,
        };
        let actions: Vec<Action> = self.controller.handle(self.now, event).collect();
        let transmits = actions.iter().filter(|action| matches!(action, Action::Transmit(_))).count();
        assert!(transmits <= 1, "{transmits} transmissions for one event");
        for action in actions {
            self.act(action);
        }
        self.check_tables();
        self.check_dispersions(&before);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::OpenSocket { socket, .. } => assert!(self.open.insert(socket), "{socket:?} opened twice"),
            Action::CloseSocket(socket) => assert!(self.open.remove(&socket), "{socket:?} was not open"),
            Action::Transmit(transmission) => self.transmit(transmission),
            Action::WakeAt(time) => self.wake_at = time,
            Action::Step(offset) => {
                self.steps += 1;
                self.now.clock = self.now.clock + offset;
            }
            Action::SetFrequency(frequency) => {
                assert!(frequency.base.ppm().abs() <= 500.1 && frequency.total().ppm().abs() <= 500.1);
                self.frequency = frequency;
            }
            Action::Publish(snapshot) => {
                assert!(snapshot.stratum < 16);
                assert_eq!(snapshot.is_synchronised(), snapshot.stratum != 0);
                let signs = [snapshot.root_dispersion, snapshot.root_delay];
                assert!(signs.iter().all(|value| *value >= NtpDuration::ZERO), "{snapshot:?}");
            }
            Action::Resolve { .. } => {}
            Action::Report { news, .. } => assert!(!news.to_string().is_empty()),
        }
    }

    fn transmit(&mut self, mut transmission: Transmission) {
        self.sent += 1;
        if transmission.transmit_field == TransmitField::Clock {
            transmission.header.set_transmit_timestamp(self.now.clock);
        }
        let Transmission { from, to, header, .. } = transmission;
        let time = self.now.monotonic;
        if transmission.trailer == Trailer::CryptoNak {
            self.check_crypto_nak(&transmission);
        }
        match (from, header.mode()) {
            (SocketName::Exchange(socket), mode) => {
                assert!(self.open.contains(&socket) && mode == Mode::Client);
                remember(&mut self.requests, Request { from, to, header, time });
            }
            (SocketName::Service(_), Mode::SymmetricActive | Mode::SymmetricPassive) => {
                remember(&mut self.requests, Request { from, to, header, time });
            }
            (SocketName::Service(_), _) => self.check_unasked(&transmission),
        }
        remember(&mut self.sends, Unreported { transmission, time });
    }

    /// RFC 5905 A.5.1, NEWPS: in mode 1, to a wrong MAC in mode 1, or a right one by a key that is not trusted.
    fn check_crypto_nak(&self, transmission: &Transmission) {
        let asked = self.heard.expect("a crypto-NAK answers a packet");
        let is_wrong = match asked.authentication {
            Authentication::Invalid => true,
            Authentication::Valid(key) => !self.controller.trusted.trusts(key),
            Authentication::None | Authentication::CryptoNak => false,
        };
        assert!(is_wrong && asked.delivery == Delivery::Unicast);
        let modes = [asked.header.mode(), transmission.header.mode()];
        assert_eq!((modes, asked.remote), ([Mode::SymmetricActive; 2], transmission.to));
    }

    /// What else may leave from port 123: questions to a group, and, while we know the time, broadcasts and answers.
    fn check_unasked(&mut self, transmission: &Transmission) {
        let Transmission { header, hop_limit, to, .. } = transmission;
        let is_synchronised = self.controller.system.snapshot.is_synchronised();
        match header.mode() {
            Mode::Broadcast => {
                assert!(is_synchronised && hop_limit.is_some_and(|limit| limit > 0));
                assert!(header.origin_timestamp().is_unknown() && header.receive_timestamp().is_unknown());
            }
            Mode::Client => {
                assert!(hop_limit.is_some_and(|limit| limit > 0) && to.ip().is_multicast());
                self.asked = Some(*header);
            }
            mode => {
                assert!(mode == Mode::Server && is_synchronised && !to.ip().is_multicast(), "{mode:?}");
            }
        }
    }

    fn check_tables(&self) {
        let controller = &self.controller;
        let associations = controller.associations.len();
        assert!(controller.sources.len() <= SOURCES_MAX && associations <= ASSOCIATIONS_MAX);
        let hosts =
            controller.associations().filter(|association| association.role.group_interface().is_none());
        assert_eq!(controller.servers.len(), hosts.count());
        assert!(controller.listeners.len() <= controller.sources.len());
        assert!(controller.agenda.len() <= associations + controller.sources.len() + 1);
        assert!(self.open.len() <= associations);
        assert!(controller.strangers.remembered() <= SENDERS_MAX);
        let members: usize = controller.sources.values().map(|entry| entry.members().len()).sum();
        let guests = || controller.associations().filter(|association| association.role.is_passive());
        let keys: Vec<_> = guests().filter_map(|guest| guest.key).collect();
        let guests = guests().count();
        assert!(guests <= PASSIVE_MAX && guests - keys.len() <= KEYLESS_PASSIVE_MAX);
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len(), "a key has two guests: {keys:?}");
        assert_eq!(members + guests, associations);
        assert_eq!(self.wake_at, controller.agenda.first());
        for (_, entry) in controller.sources() {
            assert!(entry.members().len() <= entry.wanted() + 1, "the search itself is one of its members");
            assert!(entry.refusing().count() <= 64 && entry.tried.len() <= 64);
        }
        for association in controller.associations() {
            assert!(controller.agenda.has(Due::Association(association.id)), "{:?} sleeps", association.id);
            let told = association.peer.as_ref().filter(|peer| peer.stratum > 1);
            let is_loop =
                told.is_some_and(|peer| controller.is_own_name(association.instance, peer.reference_id));
            assert!(!(is_loop && association.state.is_used()), "{:?} follows us", association.id);
            let named = controller.named_by(association.source);
            let is_good = association.key.is_none_or(|key| controller.is_good(key, named));
            assert!(is_good, "{:?} came by {:?}", association.id, association.key);
        }
    }

    fn dispersions(&self) -> Dispersions {
        let now = self.now.monotonic;
        let look = |association: &Association| {
            let dispersion = association.filter.estimate(now)?.dispersion;
            Some((association.id, (dispersion, association.last_sample)))
        };
        self.controller.associations().filter_map(look).collect()
    }

    /// RFC 5905 section 10: without a sample the dispersion only grows.
    fn check_dispersions(&self, before: &Dispersions) {
        for (id, (dispersion, sample)) in self.dispersions() {
            if let Some((earlier, earlier_sample)) = before.get(&id)
                && sample == *earlier_sample
            {
                assert!(dispersion >= *earlier, "{id:?}: {dispersion} after {earlier}");
            }
        }
    }

    /// The oldest send that is not reported yet has left, so much later than it was handed out, or could not leave.
    pub fn report_send(&mut self, is_sent: bool, late: NtpDuration) {
        let Some(Unreported { transmission, time }) = self.sends.pop_front() else { return };
        let Transmission { handle, header, .. } = transmission;
        let departed = self.now.clock - (self.now.monotonic - time) + late;
        let stamp = SendStamp { written: header.transmit_timestamp(), departed };
        self.tell(if is_sent { Event::Sent { handle, stamp } } else { Event::SendFailed { handle } });
    }

    /// The wake-up that was asked for comes in time.
    pub fn wake_in_time(&mut self) {
        if let Some(time) = self.wake_at {
            let wait = time - self.now.monotonic;
            self.pass(wait.max(NtpDuration::ZERO));
            self.tell(Event::WakeUp);
        }
    }

    /// The socket of port 123.
    #[must_use]
    pub const fn service() -> SocketName {
        SocketName::Service(InstanceId(0))
    }
}

fn remember<T>(memory: &mut VecDeque<T>, item: T) {
    if memory.len() == REMEMBERED {
        memory.pop_front();
    }
    memory.push_back(item);
}
