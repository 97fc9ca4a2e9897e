//! What must hold whatever happens. The behaviour of whole hosts is in `tests/simulated_network`.

use super::super::source::{
    BroadcastClientOptions, BroadcastOptions, Burst, Calibration, ManycastOptions, NTP_GROUP, Place,
    PollOptions, SourceConfiguration, SourceKind, Unsigned, Volley,
};
use super::super::{
    Access, Arrival, Authentication, Delivery, ExchangeSocket, InstanceId, InterfaceIndex, KeyId, SendStamp,
    SocketName, StampKind, Transmission,
};
use super::*;
use crate::time::{NtpShort, NtpTimestamp};
use crate::wire::{Header, Leap, Mode, ReferenceId, Version};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

const START: Moment = Moment {
    monotonic: Timestamp::from_nanoseconds(1_000_000_000_000),
    clock: NtpTimestamp::from_bits(0xee00_0000_0000_0000),
};

fn address(number: u8) -> IpAddr {
    [10, 99, 0, number].into()
}

/// A step of a random history.
#[derive(Clone, Debug)]
enum Happening {
    /// Time passes, up to an hour, and the wake-up comes whether or not it was asked for.
    WakeUp(u32),
    /// The next wake-up that was asked for comes in time.
    WakeInTime,
    /// The last request is answered, this truthfully.
    Answer {
        lie: i32,
        delay: u32,
        twist: Twist,
        root: u16,
    },
    /// A packet of any content comes to any socket.
    Packet {
        octets: [u8; 48],
        to_exchange: bool,
        remote: u8,
        verdict: u8,
    },
    /// The oldest send that is not reported yet is reported, or fails.
    Report {
        sent: bool,
        departed: i64,
    },
    Resolve {
        source: u8,
        addresses: Vec<u8>,
    },
    Add {
        source: u8,
        named: bool,
        /// A server, a peer with a volley or without, or a pool.
        pool: u8,
        keyed: bool,
        poll_min: i8,
        poll_max: i8,
        bursts: bool,
        unasked: u8,
    },
    /// A packet in mode 5 comes from this host to everybody.
    Broadcast {
        remote: u8,
        lie: i32,
        poll: i8,
        verdict: u8,
    },
    /// The last question to a group is answered from here; if none was asked, somebody asks our group.
    Found {
        remote: u8,
        verdict: u8,
    },
    Remove(u8),
    Step(i64),
}

/// How an answer is twisted.
#[derive(Clone, Copy, Debug)]
enum Twist {
    None,
    Kiss([u8; 4]),
    Unsynchronised,
    LoopedBack,
}

fn happening() -> impl Strategy<Value = Happening> {
    let twist = prop_oneof![
        6 => Just(Twist::None),
        1 => prop_oneof![Just(*b"DENY"), Just(*b"RATE"), Just(*b"RSTR"), Just(*b"XYZ\0")].prop_map(Twist::Kiss),
        1 => Just(Twist::Unsynchronised),
        1 => Just(Twist::LoopedBack),
    ];
    let lie = prop_oneof![4 => -2_000_000..2_000_000, 1 => any::<i32>()];
    prop_oneof![
        2 => (0_u32..3_600_000).prop_map(Happening::WakeUp),
        10 => Just(Happening::WakeInTime),
        8 => (lie, 0_u32..200_000_000, twist, any::<u16>())
            .prop_map(|(lie, delay, twist, root)| Happening::Answer { lie, delay, twist, root }),
        2 => (any::<[u8; 32]>(), any::<[u8; 16]>(), any::<bool>(), 0_u8..8, 0_u8..4).prop_map(
            |(one, other, to_exchange, remote, verdict)| {
                let mut octets = [0; 48];
                octets[..32].copy_from_slice(&one);
                octets[32..].copy_from_slice(&other);
                Happening::Packet { octets, to_exchange, remote, verdict }
            }
        ),
        9 => (prop::bool::weighted(0.9), any::<i64>())
            .prop_map(|(sent, departed)| Happening::Report { sent, departed }),
        2 => (0_u8..6, prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(source, addresses)| Happening::Resolve { source, addresses }),
        2 => (
            (0_u8..6, any::<bool>(), any::<u8>(), any::<bool>()),
            (any::<i8>(), any::<i8>(), any::<bool>(), 0_u8..10),
        )
            .prop_map(|((source, named, pool, keyed), (poll_min, poll_max, bursts, unasked))| Happening::Add {
                source, named, pool, keyed, poll_min, poll_max, bursts, unasked
            }),
        4 => (0_u8..12, prop_oneof![4 => -2000..2000_i32, 1 => any::<i32>()], any::<i8>(), 0_u8..8)
            .prop_map(|(remote, lie, poll, verdict)| Happening::Broadcast { remote, lie, poll, verdict }),
        4 => (0_u8..40, 0_u8..8).prop_map(|(remote, verdict)| Happening::Found { remote, verdict }),
        1 => (0_u8..6).prop_map(Happening::Remove),
        1 => any::<i64>().prop_map(Happening::Step),
    ]
}

/// A shell that keeps the books about what the controller asks for, and objects to what must not be.
struct Shell {
    controller: Controller,
    now: Moment,
    wake_at: Option<Timestamp<Monotonic>>,
    sends: Vec<Transmission>,
    last: Option<(SocketName, SocketAddr, Header)>,
    asked: Option<Header>,
    open: BTreeSet<ExchangeSocket>,
}

impl Shell {
    fn new() -> Self {
        let controller = Controller::new(ControllerOptions::default(), [1; 32], START);
        Self {
            controller,
            now: START,
            wake_at: None,
            sends: Vec::new(),
            last: None,
            asked: None,
            open: BTreeSet::new(),
        }
    }

    fn pass(&mut self, duration: NtpDuration) {
        self.now.monotonic = self.now.monotonic + duration;
        self.now.clock = self.now.clock + duration;
    }

    fn tell(&mut self, event: Event) {
        let before = self.dispersions();
        let actions: Vec<Action> = self.controller.handle(self.now, event).collect();
        let transmits = actions.iter().filter(|action| matches!(action, Action::Transmit(_))).count();
        assert!(transmits <= 1, "{transmits} transmissions for one event");
        for action in actions {
            self.do_it(action);
        }
        self.check_tables();
        self.check_dispersions(&before);
    }

    fn do_it(&mut self, action: Action) {
        match action {
            Action::OpenSocket { socket, .. } => assert!(self.open.insert(socket), "{socket:?} opened twice"),
            Action::CloseSocket(socket) => assert!(self.open.remove(&socket), "{socket:?} was not open"),
            Action::Transmit(mut transmission) => {
                match (transmission.from, transmission.header.mode()) {
                    (SocketName::Exchange(socket), _) => {
                        assert!(self.open.contains(&socket));
                        self.last = Some((transmission.from, transmission.to, transmission.header));
                    }
                    (SocketName::Service(_), Mode::SymmetricActive | Mode::SymmetricPassive) => {
                        transmission.header.set_transmit_timestamp(self.now.clock);
                        self.last = Some((transmission.from, transmission.to, transmission.header));
                    }
                    (SocketName::Service(_), _) => self.check_unasked(&transmission),
                }
                self.sends.push(transmission);
            }
            Action::WakeAt(time) => self.wake_at = time,
            Action::Step(offset) => self.now.clock = self.now.clock + offset,
            Action::SetFrequency(frequency) => {
                assert!(frequency.base.ppm().abs() <= 500.1 && frequency.total().ppm().abs() <= 500.1);
            }
            Action::Publish(snapshot) => {
                assert!(snapshot.stratum < 16);
                assert_eq!(snapshot.is_synchronised(), snapshot.stratum != 0);
                assert!(
                    snapshot.root_dispersion >= NtpDuration::ZERO && snapshot.root_delay >= NtpDuration::ZERO
                );
            }
            Action::Resolve { .. } => {}
            Action::Report { news, .. } => assert!(!news.to_string().is_empty()),
        }
    }

    /// What may leave from port 123: questions to a group, and, while we know the time, broadcasts and answers.
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
            Mode::Server => assert!(is_synchronised && !to.ip().is_multicast()),
            mode => panic!("mode {mode:?} from port 123"),
        }
    }

    fn check_tables(&self) {
        let controller = &self.controller;
        let associations = controller.associations.len();
        assert!(controller.sources.len() <= SOURCES_MAX && associations <= ASSOCIATIONS_MAX);
        assert_eq!(controller.servers.len(), associations);
        assert!(controller.agenda.len() <= associations + controller.sources.len() + 1);
        assert!(self.open.len() <= associations);
        let members: usize = controller.sources.values().map(|entry| entry.members().len()).sum();
        let guests = controller.associations().filter(|association| association.role.is_passive()).count();
        assert!(guests <= PASSIVE_MAX);
        assert_eq!(members + guests, associations);
        assert_eq!(self.wake_at, controller.agenda.first());
        for association in controller.associations() {
            assert!(controller.agenda.has(Due::Association(association.id)), "{:?} sleeps", association.id);
        }
    }

    /// Dispersion, when it was looked at, and the time of the last sample, of each association.
    fn dispersions(&self) -> BTreeMap<AssociationId, (NtpDuration, Option<Timestamp<Monotonic>>)> {
        let now = self.now.monotonic;
        let look = |association: &Association| {
            let dispersion = association.filter.estimate(now)?.dispersion;
            Some((association.id, (dispersion, association.last_sample.map(|last| last.sample.time))))
        };
        self.controller.associations().filter_map(look).collect()
    }

    /// RFC 5905 section 10: without a sample the dispersion only grows.
    fn check_dispersions(
        &self,
        before: &BTreeMap<AssociationId, (NtpDuration, Option<Timestamp<Monotonic>>)>,
    ) {
        for (id, (dispersion, sample)) in self.dispersions() {
            if let Some((earlier, earlier_sample)) = before.get(&id)
                && sample == *earlier_sample
            {
                assert!(dispersion >= *earlier, "{id:?}: {dispersion} after {earlier}");
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::WakeUp(milliseconds) => {
                self.pass(NtpDuration::from_nanoseconds(i64::from(milliseconds) * 1_000_000));
                self.tell(Event::WakeUp);
            }
            Happening::WakeInTime => {
                if let Some(time) = self.wake_at {
                    let wait = time - self.now.monotonic;
                    self.pass(wait.max(NtpDuration::ZERO));
                    self.tell(Event::WakeUp);
                }
            }
            Happening::Answer { lie, delay, twist, root } => self.answer(lie, delay, twist, root),
            Happening::Packet { octets, to_exchange, remote, verdict } => {
                self.packet(octets, to_exchange, remote, verdict);
            }
            Happening::Report { sent, departed } => self.report_send(sent, departed),
            Happening::Resolve { source, addresses } => {
                let addresses = addresses.into_iter().map(address).collect();
                self.tell(Event::Resolved { source: SourceId(source.into()), addresses });
            }
            Happening::Add { source, named, pool, keyed, poll_min, poll_max, bursts, unasked } => {
                let burst = if bursts { Burst::On } else { Burst::Off };
                let server = match pool {
                    0..64 => SourceKind::Server,
                    64..96 => SourceKind::Peer(Volley::On),
                    96..128 => SourceKind::Peer(Volley::Off),
                    members => SourceKind::Pool(members),
                };
                let (kind, place) = kind(unasked, poll_min, keyed).unwrap_or((server, address(source + 1)));
                let place = SocketAddr::new(place, 123);
                let configuration = SourceConfiguration {
                    kind,
                    place: if named { Place::Name(Arc::from("name"), 123) } else { Place::Address(place) },
                    key: if keyed { KeyId::new(1) } else { None },
                    poll: PollOptions {
                        poll_min: Log2Seconds(poll_min),
                        poll_max: Log2Seconds(poll_max),
                        iburst: burst,
                        burst,
                    },
                    ..SourceConfiguration::server(address(source + 1))
                };
                self.tell(Event::AddSource { source: SourceId(source.into()), configuration });
            }
            Happening::Broadcast { remote, lie, poll, verdict } => {
                let mut header = Header::new(Leap::None, Version::V4, Mode::Broadcast);
                header.stratum = 1;
                header.set_poll(Log2Seconds(poll));
                let lie = NtpDuration::from_nanoseconds(i64::from(lie) * 1000);
                header.set_transmit_timestamp(self.now.clock + lie);
                let (socket, remote) =
                    (SocketName::Service(InstanceId(0)), SocketAddr::new(address(remote), 123));
                let arrival = self.to_everybody(self.arrival(socket, remote, header));
                self.tell(Event::Packet(judged(arrival, verdict)));
            }
            Happening::Found { remote, verdict } => self.found(remote, verdict),
            Happening::Remove(source) => self.tell(Event::RemoveSource(SourceId(source.into()))),
            Happening::Step(bits) => self.tell(Event::ClockStepped(NtpDuration::from_bits(bits))),
        }
    }

    fn report_send(&mut self, sent: bool, departed: i64) {
        if self.sends.is_empty() {
            return;
        }
        let Transmission { handle, header, .. } = self.sends.remove(0);
        let departed = if departed % 16 == 0 { NtpDuration::from_bits(departed) } else { NtpDuration::ZERO };
        let stamp = SendStamp { written: header.transmit_timestamp(), departed: self.now.clock + departed };
        self.tell(if sent { Event::Sent { handle, stamp } } else { Event::SendFailed { handle } });
    }

    fn arrival(&self, socket: SocketName, remote: SocketAddr, header: Header) -> Arrival {
        Arrival {
            socket,
            instance: InstanceId(0),
            interface: InterfaceIndex(1),
            remote,
            local: address(200),
            delivery: Delivery::Unicast,
            receive_timestamp: self.now.clock,
            stamp: StampKind::Kernel,
            access: Access::Allowed,
            authentication: Authentication::Valid(KeyId::new(1).unwrap()),
            header,
        }
    }

    fn answer(&mut self, lie: i32, delay: u32, twist: Twist, root: u16) {
        let Some((socket, remote, request)) = self.last else { return };
        self.pass(NtpDuration::from_nanoseconds(delay.into()));
        let leap = if matches!(twist, Twist::Kiss(_)) { Leap::Unsynchronised } else { Leap::None };
        let mode = match request.mode() {
            Mode::SymmetricActive if lie % 2 == 0 => Mode::SymmetricPassive,
            Mode::SymmetricActive | Mode::SymmetricPassive => Mode::SymmetricActive,
            _ => Mode::Server,
        };
        let mut header = Header::new(leap, Version::V4, mode);
        let time = self.now.clock + NtpDuration::from_nanoseconds(i64::from(lie) * 1000);
        header.stratum = 1;
        header.set_poll(request.poll());
        header.set_precision(Log2Seconds(-20));
        header.set_root_dispersion(NtpShort::from_bits(root.into()));
        header.reference_id = ReferenceId(*b"GPS\0");
        header.set_origin_timestamp(request.transmit_timestamp());
        header.set_receive_timestamp(time);
        header.set_transmit_timestamp(time);
        match twist {
            Twist::None => {}
            Twist::Kiss(code) => (header.stratum, header.reference_id) = (0, ReferenceId(code)),
            Twist::Unsynchronised => header.stratum = 16,
            Twist::LoopedBack => (header.stratum, header.reference_id) = (2, ReferenceId([10, 99, 0, 200])),
        }
        self.tell(Event::Packet(self.arrival(socket, remote, header)));
    }

    fn packet(&mut self, octets: [u8; 48], to_exchange: bool, remote: u8, verdict: u8) {
        let header: Header = zerocopy::transmute!(octets);
        let (socket, remote) = match self.last {
            Some((socket, remote, _)) if to_exchange => (socket, remote),
            _ => (SocketName::Service(InstanceId(0)), SocketAddr::new(address(remote), 123)),
        };
        let mut arrival = self.arrival(socket, remote, header);
        if !to_exchange && octets[1].is_multiple_of(2) {
            arrival = self.to_everybody(arrival);
        }
        self.tell(Event::Packet(judged(arrival, verdict)));
    }

    fn found(&mut self, remote: u8, verdict: u8) {
        let (socket, remote) = (SocketName::Service(InstanceId(0)), SocketAddr::new(address(remote), 123));
        let arrival = match self.asked {
            Some(question) => {
                let mut header = Header::new(Leap::None, Version::V4, Mode::Server);
                header.stratum = 1;
                header.set_origin_timestamp(question.transmit_timestamp());
                header.set_receive_timestamp(self.now.clock);
                header.set_transmit_timestamp(self.now.clock);
                self.arrival(socket, remote, header)
            }
            None => {
                let mut header = Header::new(Leap::None, Version::V4, Mode::Client);
                header.set_transmit_timestamp(self.now.clock);
                self.to_everybody(self.arrival(socket, remote, header))
            }
        };
        self.tell(Event::Packet(judged(arrival, verdict)));
    }

    /// The same packet, sent to the group in turn with the broadcast address.
    fn to_everybody(&self, arrival: Arrival) -> Arrival {
        let is_multicast = self.now.monotonic.nanoseconds() % 2 == 0;
        let (delivery, local) =
            if is_multicast { (Delivery::Multicast, NTP_GROUP) } else { (Delivery::Broadcast, address(255)) };
        Arrival { delivery, local, ..arrival }
    }
}

fn judged(arrival: Arrival, verdict: u8) -> Arrival {
    let authentication = match verdict {
        0 => Authentication::None,
        1 => Authentication::Invalid,
        2 => Authentication::CryptoNak,
        _ => arrival.authentication,
    };
    Arrival { authentication, ..arrival }
}

/// The modes in which somebody speaks unasked, and where.
fn kind(unasked: u8, number: i8, keyed: bool) -> Option<(SourceKind, IpAddr)> {
    let unsigned = if keyed { Unsigned::Refused } else { Unsigned::Allowed };
    let listener = BroadcastClientOptions { unsigned, ..BroadcastClientOptions::default() };
    let delay = Calibration::Delay(NtpDuration::from_nanoseconds(i64::from(number) * 1_000_000));
    let any = IpAddr::from([0, 0, 0, 0]);
    match unasked {
        0 => {
            let options = BroadcastOptions {
                interval: Log2Seconds(number),
                hop_limit: number.unsigned_abs(),
                ..BroadcastOptions::default()
            };
            Some((SourceKind::Broadcast(options), address(255)))
        }
        1 => Some((SourceKind::BroadcastClient(listener), any)),
        2 => Some((SourceKind::BroadcastClient(listener), NTP_GROUP)),
        3 => Some((
            SourceKind::BroadcastClient(BroadcastClientOptions { calibration: delay, ..listener }),
            any,
        )),
        4 | 5 => {
            let most = number.unsigned_abs();
            let options = ManycastOptions { most, hop_limit_max: 3, unsigned, ..ManycastOptions::default() };
            Some((SourceKind::ManycastClient(options), NTP_GROUP))
        }
        6 => Some((SourceKind::ManycastServer(unsigned), NTP_GROUP)),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Whatever happens: one transmission for one event at most, no panic, no table that grows beyond its bound, no
    /// socket opened twice or left open by an association that is gone, no dispersion that shrinks without a sample.
    #[test]
    fn whatever_happens_the_controller_keeps_its_promises(history in prop::collection::vec(happening(), 1..200)) {
        let mut shell = Shell::new();
        shell.happen(Happening::Add {
            source: 0, named: false, pool: 0, keyed: false, poll_min: 4, poll_max: 10, bursts: true, unasked: 9,
        });
        for happening in history {
            shell.happen(happening);
        }
    }
}

#[test]
fn the_tables_have_their_bounds() {
    let mut shell = Shell::new();
    for number in 0..SOURCES_MAX as u32 + 10 {
        let [_, _, high, low] = number.to_be_bytes();
        let configuration = SourceConfiguration::server([10, 99, high, low].into());
        let news: Vec<Action> = shell
            .controller
            .handle(START, Event::AddSource { source: SourceId(number), configuration })
            .filter(|action| matches!(action, Action::Report { news: News::TableFull, .. }))
            .collect();
        assert_eq!(news.len(), usize::from(number as usize >= SOURCES_MAX));
    }
    assert_eq!(shell.controller.associations.len(), SOURCES_MAX);
}

/// A server whose requests are answered before the shell reported when they left: nothing is measured with them.
#[test]
fn an_answer_to_an_unreported_send_measures_nothing() {
    let mut shell = Shell::new();
    let configuration = SourceConfiguration::server(address(1));
    shell.tell(Event::AddSource { source: SourceId(1), configuration });
    shell.happen(Happening::WakeInTime);
    shell.answer(0, 1000, Twist::None, 0);
    let traffic = |shell: &Shell| shell.controller.associations().next().unwrap().traffic;
    assert_eq!((traffic(&shell).unstamped, traffic(&shell).sent), (1, 0));
    shell.report_send(true, 1);
    shell.answer(0, 1000, Twist::None, 0);
    assert_eq!(shell.controller.associations().next().unwrap().poll.reach().bits(), 1);
    shell.answer(0, 1000, Twist::None, 0);
    assert_eq!(traffic(&shell).received, 2, "the socket is closed after the exchange");
    assert_eq!(shell.controller.counters().strays, 1);
}

/// RFC 5905 figure 20, no association: modes 1 to 5 at port 123 mobilise nothing here, nor does anything else.
#[test]
fn packets_out_of_nowhere_mobilise_nothing() {
    let mut shell = Shell::new();
    for first in 0..=255 {
        let mut octets = [0x5a; 48];
        octets[0] = first;
        // Without a key: who has one may become a passive peer.
        shell.packet(octets, false, 9, first % 3);
    }
    let counters = *shell.controller.counters();
    assert_eq!((counters.received, counters.discarded, counters.peers_refused), (256, 224, 32));
    assert_eq!(shell.controller.associations().count(), 0);
    assert_eq!(shell.wake_at, None);
}

#[path = "controller/peers_tests.rs"]
mod peers;
