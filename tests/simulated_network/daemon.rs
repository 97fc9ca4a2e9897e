//! A host that runs the controller: what the daemon's shell does, with simulated sockets and a simulated clock.

use crate::clock::Clock;
use crate::network::{Datagram, HOP_LIMIT, is_broadcast};
use crate::random::Random;
use crate::server::{KEY, sign, verdict};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use timeball::auth::KeyTable;
use timeball::control::source::{NTP_PORT, SourceConfiguration, SourceId};
use timeball::control::state::SourceState;
use timeball::control::{
    Access, Action, Arrival, Controller, ControllerOptions, Delivery, Event, ExchangeSocket, Frequency,
    InstanceId, InterfaceIndex, Moment, News, SendHandle, SendNumber, SendStamp, SocketName, StampKind,
    Trailer, Transmission, TransmitField,
};
use timeball::serve::testing::Setup;
use timeball::serve::{Arrival as Request, Responder};
use timeball::snapshot::SystemSnapshot;
use timeball::time::{Log2Seconds, Monotonic, NtpDuration, Timestamp};
use timeball::wire::{HEADER_LENGTH, Mode, Packet};
use zerocopy::IntoBytes;

/// What a daemon wants of the world.
#[derive(Debug)]
pub enum Wish {
    Send(Datagram),
    /// Wake me when my monotonic clock says this.
    Wake(Timestamp<Monotonic>),
    Resolve(SourceId, Arc<str>),
}

/// What the daemon did to its clock, and said, in order.
#[derive(Clone, PartialEq, Debug)]
pub enum Deed {
    Stepped(NtpDuration),
    SetFrequency(Frequency),
    Published(SystemSnapshot),
    Said(News),
}

/// The daemon.
#[derive(Debug)]
pub struct Daemon {
    pub address: IpAddr,
    pub clock: Clock,
    pub controller: Controller,
    pub snapshot: SystemSnapshot,
    pub deeds: Vec<(i64, Deed)>,
    /// Everything that went into the controller, if it is to be replayed.
    pub record: Vec<(Moment, Event<SendNumber>)>,
    /// Everything that came out, in words.
    pub spoken: Vec<String>,
    pub requests_sent: u64,
    /// The most transmissions and the most actions that one event had for its consequence.
    pub transmits_max: usize,
    pub actions_max: usize,
    /// The number of the key that its packets claim to be signed with, although they are signed with another.
    pub claims_key: Option<u32>,
    ports: BTreeMap<u16, (InstanceId, ExchangeSocket)>,
    ports_used: Vec<u16>,
    wake_at: Option<Timestamp<Monotonic>>,
    responder: Responder,
    random: Random,
}

impl Daemon {
    pub fn new(address: IpAddr, mut clock: Clock, options: ControllerOptions, mut random: Random) -> Self {
        let mut seed = [0; 32];
        for chunk in seed.chunks_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes());
        }
        let now = moment(&mut clock, 0);
        Self {
            address,
            clock,
            controller: Controller::new(options, seed, now),
            snapshot: SystemSnapshot::unsynchronised(Log2Seconds(-20)),
            deeds: Vec::new(),
            record: Vec::new(),
            spoken: Vec::new(),
            requests_sent: 0,
            transmits_max: 0,
            actions_max: 0,
            claims_key: None,
            ports: BTreeMap::new(),
            ports_used: Vec::new(),
            wake_at: None,
            responder: Setup::default().responder(),
            random,
        }
    }

    pub fn add(&mut self, now: i64, source: u32, configuration: SourceConfiguration) -> Vec<Wish> {
        self.handle(now, Event::AddSource { source: SourceId(source), configuration })
    }

    /// The time asked for has come, if it is still the last word.
    pub fn wake(&mut self, now: i64, asked: Timestamp<Monotonic>) -> Vec<Wish> {
        if self.wake_at != Some(asked) {
            return Vec::new();
        }
        if self.clock.monotonic(now) < asked {
            return vec![Wish::Wake(asked)];
        }
        self.handle(now, Event::WakeUp)
    }

    /// Hands an event in, and does what comes of it, and what comes of that.
    pub fn handle(&mut self, now: i64, event: Event) -> Vec<Wish> {
        let mut wishes = Vec::new();
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let moment = moment(&mut self.clock, now);
            self.record.push((moment, event.recorded()));
            let actions: Vec<Action> = self.controller.handle(moment, event).collect();
            let transmits = actions.iter().filter(|action| matches!(action, Action::Transmit(_))).count();
            self.transmits_max = self.transmits_max.max(transmits);
            self.actions_max = self.actions_max.max(actions.len());
            for action in actions {
                self.spoken.push(format!("{action:?}"));
                self.act(now, action, &mut wishes, &mut events);
            }
        }
        wishes
    }

    fn act(&mut self, now: i64, action: Action, wishes: &mut Vec<Wish>, events: &mut VecDeque<Event>) {
        match action {
            Action::OpenSocket { socket, instance, .. } => self.open(instance, socket),
            Action::CloseSocket(socket) => self.close(socket),
            Action::Transmit(transmission) => {
                let (datagram, sent) = self.transmit(now, transmission);
                wishes.push(Wish::Send(datagram));
                events.push_back(sent);
            }
            Action::WakeAt(time) => {
                self.wake_at = time;
                wishes.extend(time.map(Wish::Wake));
            }
            Action::Step(by) => {
                self.clock.step(now, by);
                self.deeds.push((now, Deed::Stepped(by)));
            }
            Action::SetFrequency(frequency) => {
                self.clock.set_frequency(now, frequency.total().ppm() * 1e-6);
                self.deeds.push((now, Deed::SetFrequency(frequency)));
            }
            Action::Publish(snapshot) => {
                self.snapshot = snapshot;
                self.deeds.push((now, Deed::Published(snapshot)));
            }
            Action::Resolve { source, name, .. } => wishes.push(Wish::Resolve(source, name)),
            Action::Report { news, .. } => self.deeds.push((now, Deed::Said(news))),
        }
    }

    fn open(&mut self, instance: InstanceId, socket: ExchangeSocket) {
        assert!(!self.ports.values().any(|(_, open)| *open == socket), "{socket:?} is open already");
        let port = loop {
            let port = 32_768 + (self.random.next() % 28_000) as u16;
            if !self.ports.contains_key(&port) {
                break port;
            }
        };
        self.ports.insert(port, (instance, socket));
        self.ports_used.push(port);
    }

    fn close(&mut self, socket: ExchangeSocket) {
        let before = self.ports.len();
        self.ports.retain(|_, (_, open)| *open != socket);
        assert_eq!(self.ports.len() + 1, before, "{socket:?} is not open");
    }

    /// The sockets open now.
    pub fn open_sockets(&self) -> usize {
        self.ports.len()
    }

    /// Every source port a request has left from.
    pub fn ports_used(&self) -> &[u16] {
        &self.ports_used
    }

    fn transmit(&mut self, now: i64, transmission: Transmission) -> (Datagram, Event) {
        let Transmission { handle, from, to, mut header, transmit_field, trailer, hop_limit, .. } =
            transmission;
        let departed = self.clock.read(now).to_ntp();
        if transmit_field == TransmitField::Clock {
            header.set_transmit_timestamp(departed);
        }
        let (instance, port) = match from {
            SocketName::Exchange(socket) => {
                let mut open = self.ports.iter();
                let open = open.find(|(_, (_, open))| *open == socket).expect("sent through a closed socket");
                (open.1.0, *open.0)
            }
            SocketName::Service(instance) => (instance, NTP_PORT),
        };
        self.requests_sent += 1;
        let mut payload = header.as_bytes().to_vec();
        match trailer {
            Trailer::None => {}
            Trailer::Mac(key) => payload = self.signed(payload, key.number()),
            Trailer::CryptoNak => payload.extend([0; 4]),
        }
        let stamp = SendStamp { written: header.transmit_timestamp(), departed };
        let hop_limit = hop_limit.unwrap_or(HOP_LIMIT);
        let from = SocketAddr::new(self.address, port);
        let datagram = Datagram { instance, from, to, payload, hop_limit };
        (datagram, Event::Sent { handle, stamp })
    }

    fn signed(&self, payload: Vec<u8>, key: u32) -> Vec<u8> {
        let mut signed = sign(payload, key);
        if let Some(other) = self.claims_key {
            signed[HEADER_LENGTH..HEADER_LENGTH + 4].copy_from_slice(&other.to_be_bytes());
        }
        signed
    }

    /// A datagram came: a request is answered, everything else is the controller's.
    pub fn receive(&mut self, now: i64, datagram: &Datagram) -> Vec<Wish> {
        let receive_timestamp = self.clock.read(now).to_ntp();
        let port = datagram.to.port();
        let socket = match self.ports.get(&port) {
            Some((instance, socket)) if *instance == datagram.instance => SocketName::Exchange(*socket),
            None if port == NTP_PORT => SocketName::Service(datagram.instance),
            _ => return Vec::new(),
        };
        // What cannot be read never gets as far as the controller.
        let Ok(packet) = Packet::parse(&datagram.payload) else { return Vec::new() };
        let delivery = match datagram.to.ip() {
            to if to.is_multicast() => Delivery::Multicast,
            to if is_broadcast(to) => Delivery::Broadcast,
            _ => Delivery::Unicast,
        };
        if packet.header.mode() == Mode::Client && port == NTP_PORT && delivery == Delivery::Unicast {
            return self.answer(now, datagram).map(Wish::Send).into_iter().collect();
        }
        let arrival = Arrival {
            socket,
            instance: datagram.instance,
            interface: InterfaceIndex(1),
            remote: datagram.from,
            local: datagram.to.ip(),
            delivery,
            receive_timestamp,
            stamp: StampKind::Kernel,
            access: Access::Allowed,
            authentication: verdict(&datagram.payload),
            header: *packet.header,
        };
        self.handle(now, Event::Packet(arrival))
    }

    fn answer(&mut self, now: i64, request: &Datagram) -> Option<Datagram> {
        let receive_timestamp = self.clock.read(now).to_ntp();
        let arrival = Request {
            source: request.from.ip(),
            source_port: request.from.port(),
            receive_timestamp,
            now: self.clock.monotonic(now),
        };
        let mut payload = request.payload.clone();
        self.responder.set_instance(request.instance);
        let prepared = self.responder.respond(&mut payload, &arrival, &self.snapshot).ok()?;
        payload.truncate(prepared.length());
        prepared.seal(
            receive_timestamp + NtpDuration::from_nanoseconds(20_000),
            &mut payload,
            &KeyTable::empty(),
        );
        let (instance, from, to) = (request.instance, request.to, request.from);
        Some(Datagram { instance, from, to, payload, hop_limit: HOP_LIMIT })
    }

    /// The state of the association with this host.
    pub fn state(&self, remote: IpAddr) -> Option<SourceState> {
        let mut associations = self.controller.associations();
        associations
            .find(|association| association.remote.ip() == remote)
            .map(|association| association.state)
    }

    /// What it said of importance, without the mobilisations and changes of state.
    pub fn steps(&self) -> usize {
        self.deeds.iter().filter(|(_, deed)| matches!(deed, Deed::Stepped(_))).count()
    }

    /// Has it touched its clock at all?
    pub fn has_touched_its_clock(&self) -> bool {
        let touches = |deed: &Deed| match deed {
            Deed::Stepped(_) => true,
            Deed::SetFrequency(frequency) => *frequency != Frequency::default(),
            _ => false,
        };
        self.deeds.iter().any(|(_, deed)| touches(deed))
    }

    /// Was there such news?
    pub fn said(&self, is_it: impl Fn(&News) -> bool) -> usize {
        self.deeds.iter().filter(|(_, deed)| matches!(deed, Deed::Said(news) if is_it(news))).count()
    }
}

/// A controller of the same seed, fed with the same events, must say the same.
pub fn replay(
    address_random: Random,
    options: ControllerOptions,
    record: &[(Moment, Event<SendNumber>)],
) -> Vec<String> {
    let mut random = address_random;
    let mut seed = [0; 32];
    for chunk in seed.chunks_mut(8) {
        chunk.copy_from_slice(&random.next().to_le_bytes());
    }
    let mut controller = Controller::new(options, seed, record[0].0);
    let mut handles: BTreeMap<SendNumber, SendHandle> = BTreeMap::new();
    let mut spoken = Vec::new();
    for (moment, event) in record {
        let event =
            event.replayed(|number| handles.remove(&number)).expect("a send that the replay never made");
        for action in controller.handle(*moment, event) {
            spoken.push(format!("{action:?}"));
            if let Action::Transmit(transmission) = action {
                handles.insert(transmission.handle.number(), transmission.handle);
            }
        }
    }
    spoken
}

fn moment(clock: &mut Clock, now: i64) -> Moment {
    Moment { monotonic: clock.monotonic(now), clock: clock.read(now).to_ntp() }
}

/// The key that keyed associations of the simulation use.
pub fn key() -> timeball::control::KeyId {
    timeball::control::KeyId::new(KEY).unwrap()
}
