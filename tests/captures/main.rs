//! What ntp.org's ntpd 4.2.8 said in the rows of `tests/peers_*`, replayed without it: each packet is parsed, its MAC
//! verified, and handed to the controller with the sources that the row has, which must make the same of it.
//!
//! Two things of a packet cannot be as they were, since the controller's random numbers and the clock are others: the origin
//! timestamp is what *this* controller sent, if it was what that one had sent; and our clock is such that the packet took as
//! long as it did on that machine, some microseconds.
//!
//! `tests/common/recorder.rs` says how the packets are recorded anew.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;

use common::peers::Kind;
use common::recorder::fixtures;
use std::collections::VecDeque;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use timeball::auth::{Authentication, KeyId, KeyRules, KeyTable, parse_key_file};
use timeball::control::discipline::{DisciplineOptions, Steering};
use timeball::control::source::{
    BroadcastClientOptions, Calibration, ManycastOptions, NTP_PORT, Place, PollOptions, SourceConfiguration,
    SourceId, SourceKind, Unsigned, Volley,
};
use timeball::control::{
    Access, Action, Arrival, Controller, ControllerOptions, Delivery, Event, InstanceId, InterfaceIndex,
    Moment, PassivePeers, SendStamp, SocketName, StampKind, Transmission, TransmitField,
};
use timeball::snapshot::SystemSnapshot;
use timeball::time::{Log2Seconds, NtpDuration, NtpTimestamp, Timestamp};
use timeball::wire::{Header, Leap, Mode, Packet, ReferenceId};

/// What we took a packet to need on its way.
const WAY: NtpDuration = NtpDuration::from_nanoseconds(50_000);
/// More than lies between two broadcasts.
const BROADCAST_INTERVAL: NtpDuration = NtpDuration::from_seconds(9);
/// All on one machine, or as if: an offset beyond this is a mistake.
const OFFSET_SECONDS_MAX: f64 = 0.001;

/// What a row is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Row {
    /// We take ntpd's time, by a source of this kind.
    Follow(SourceKind),
    /// The same without a source: ntpd is a peer that came by itself.
    FollowGuest,
    /// ntpd takes ours, as a peer: of a source of ours, or by itself.
    Lead(Option<SourceKind>),
    /// ntpd asks the group, and we answer.
    Answer,
    /// ntpd asks our workers, which the controller has no part in.
    Serve,
}

const FOLLOWED: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 99, 1, 2)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd99, 1, 0, 0, 0, 0, 0, 2)),
];

fn peer(volley: Volley) -> SourceKind {
    SourceKind::Peer(volley)
}

fn listen(unsigned: Unsigned, calibration: Calibration) -> Row {
    let interface = InterfaceIndex(0);
    Row::Follow(SourceKind::BroadcastClient(BroadcastClientOptions { calibration, unsigned, interface }))
}

fn search(unsigned: Unsigned) -> Row {
    Row::Follow(SourceKind::ManycastClient(ManycastOptions {
        enough: 1,
        timeout: Log2Seconds(4),
        unsigned,
        ..ManycastOptions::default()
    }))
}

/// Each row by its file, the key that everything in it is signed with, and the group or broadcast address.
fn rows() -> Vec<(&'static str, Row, u32, Option<&'static str>)> {
    use Unsigned::{Allowed, Refused};
    let (volley, measured) = (Volley::On, Calibration::Volley);
    let told = Calibration::Delay(NtpDuration::from_nanoseconds(100_000));
    vec![
        ("peers_sources.we_follow_ntpd", Row::Follow(SourceKind::Server), 0, None),
        ("peers_sources.we_follow_ntpd_in_version_3", Row::Follow(SourceKind::Server), 0, None),
        ("peers_sources.we_follow_ntpd_with_an_aes_key", Row::Follow(SourceKind::Server), 1, None),
        ("peers_symmetric.active_and_active_with_ntpd_leading", Row::Follow(peer(volley)), 0, None),
        (
            "peers_symmetric.active_and_active_with_ntpd_leading_with_a_key",
            Row::Follow(peer(volley)),
            1,
            None,
        ),
        ("peers_symmetric.active_and_active_with_ntpd_following", Row::Lead(Some(peer(volley))), 0, None),
        ("peers_symmetric.active_with_ntpd_passive_and_leading", Row::Follow(peer(Volley::Off)), 0, None),
        (
            "peers_symmetric.active_with_ntpd_passive_and_leading_with_a_key",
            Row::Follow(peer(Volley::Off)),
            2,
            None,
        ),
        (
            "peers_symmetric.active_with_ntpd_passive_and_following",
            Row::Lead(Some(peer(Volley::Off))),
            0,
            None,
        ),
        ("peers_symmetric.passive_with_ntpd_leading", Row::FollowGuest, 0, None),
        ("peers_symmetric.passive_with_ntpd_following_with_a_key", Row::Lead(None), 2, None),
        ("peers_broadcast.we_hear_ntpd_broadcast", listen(Allowed, measured), 0, Some("10.99.1.255")),
        (
            "peers_broadcast.we_hear_ntpd_broadcast_and_send_nothing",
            listen(Allowed, told),
            0,
            Some("0.0.0.0"),
        ),
        ("peers_broadcast.we_hear_ntpd_broadcast_with_a_key", listen(Refused, measured), 2, Some("0.0.0.0")),
        ("peers_broadcast.we_hear_ntpd_multicast", listen(Allowed, measured), 0, Some("224.0.1.1")),
        (
            "peers_broadcast.we_hear_ntpd_multicast_with_a_key",
            listen(Refused, measured),
            1,
            Some("224.0.1.1"),
        ),
        ("peers_broadcast.we_hear_ntpd_multicast_over_ipv6", listen(Allowed, measured), 0, Some("ff05::101")),
        (
            "peers_broadcast.we_hear_ntpd_multicast_over_ipv6_with_a_key",
            listen(Refused, measured),
            2,
            Some("ff05::101"),
        ),
        ("peers_broadcast.ntpd_hears_our_broadcast", Row::Serve, 0, None),
        ("peers_broadcast.ntpd_hears_our_broadcast_with_a_key", Row::Serve, 2, None),
        ("peers_broadcast.ntpd_hears_our_multicast", Row::Serve, 0, None),
        ("peers_broadcast.ntpd_hears_our_multicast_with_a_key", Row::Serve, 1, None),
        ("peers_broadcast.ntpd_hears_our_multicast_over_ipv6", Row::Serve, 0, None),
        ("peers_broadcast.ntpd_hears_our_multicast_over_ipv6_with_a_key", Row::Serve, 2, None),
        ("peers_manycast.we_find_ntpd", search(Allowed), 0, Some("224.0.1.1")),
        ("peers_manycast.we_find_ntpd_with_a_key", search(Refused), 2, Some("224.0.1.1")),
        ("peers_manycast.we_find_ntpd_over_ipv6", search(Allowed), 0, Some("ff05::101")),
        ("peers_manycast.ntpd_finds_us", Row::Answer, 0, Some("224.0.1.1")),
        ("peers_manycast.ntpd_finds_us_with_a_key", Row::Answer, 1, Some("224.0.1.1")),
        ("peers_manycast.ntpd_finds_us_over_ipv6", Row::Answer, 0, Some("ff05::101")),
    ]
}

/// One packet of a record.
#[derive(Clone, Debug)]
struct Recorded {
    from: SocketAddr,
    to: SocketAddr,
    payload: Vec<u8>,
}

fn read(file: &str) -> Vec<Recorded> {
    let path = fixtures().join(format!("{file}.txt"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [from, ">", to, hex] = words[..] else { panic!("{file}: {line}") };
        let octet = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let payload = (0..hex.len()).step_by(2).map(octet).collect();
        Recorded { from: from.parse().unwrap(), to: to.parse().unwrap(), payload }
    };
    text.lines().map(line).collect()
}

/// The keys of those tests.
fn keys() -> KeyTable {
    parse_key_file("keys", Kind::Chronyd.keys().as_bytes(), KeyRules { allow_md5: false }).unwrap()
}

/// The controller, and what it sent and waits to be told of.
struct Shell {
    controller: Controller,
    now: Moment,
    wake_at: Option<Timestamp<timeball::time::Monotonic>>,
    sent: VecDeque<Transmission>,
    /// Of the packets that left, the last one to ntpd: through which socket, and its transmit timestamp.
    answerable: Option<(SocketName, NtpTimestamp)>,
    /// What was sent so far, by mode.
    modes: Vec<Mode>,
}

impl Shell {
    fn new(passive: PassivePeers) -> Self {
        let discipline = DisciplineOptions { steering: Steering::Off, ..DisciplineOptions::default() };
        let options = ControllerOptions { passive, discipline, ..ControllerOptions::default() };
        let now = Moment {
            monotonic: Timestamp::from_nanoseconds(1_000_000_000_000),
            clock: NtpTimestamp::from_bits(0xee00_0000_0000_0000),
        };
        let controller = Controller::new(options, [7; 32], now);
        Self { controller, now, wake_at: None, sent: VecDeque::new(), answerable: None, modes: Vec::new() }
    }

    fn tell(&mut self, event: Event) {
        let actions: Vec<Action> = self.controller.handle(self.now, event).collect();
        for action in actions {
            match action {
                Action::Transmit(transmission) => {
                    self.modes.push(transmission.header.mode());
                    self.sent.push_back(transmission);
                }
                Action::WakeAt(time) => self.wake_at = time,
                _ => {}
            }
        }
    }

    /// Lets time pass until the controller has something to do, and lets it.
    fn wake(&mut self) {
        let time = self.wake_at.expect("the controller waits for something");
        self.now.clock = self.now.clock + (time - self.now.monotonic).max(NtpDuration::ZERO);
        self.now.monotonic = time.max(self.now.monotonic);
        self.tell(Event::WakeUp);
    }

    /// Lets so much time pass, and the controller do what it has to do meanwhile.
    fn pass(&mut self, duration: NtpDuration) {
        let end = self.now.monotonic + duration;
        while self.wake_at.is_some_and(|time| time <= end) {
            self.wake();
        }
        self.now.clock = self.now.clock + (end - self.now.monotonic);
        self.now.monotonic = end;
    }

    /// Says when all that was sent has left.
    fn depart(&mut self, departed: NtpTimestamp, to: IpAddr) {
        while let Some(transmission) = self.sent.pop_front() {
            let written = match transmission.transmit_field {
                TransmitField::Keep => transmission.header.transmit_timestamp(),
                TransmitField::Clock => departed,
            };
            if transmission.to.ip() == to || transmission.to.ip().is_multicast() {
                self.answerable = Some((transmission.from, written));
            }
            self.tell(Event::Sent { handle: transmission.handle, stamp: SendStamp { written, departed } });
        }
    }

    /// Waits until we have asked this host in the way it answers: from a port of the exchange, or from port 123. Where, and
    /// with which transmit timestamp.
    fn ask(
        &mut self,
        host: IpAddr,
        exchange: bool,
        departed: NtpTimestamp,
    ) -> Option<(SocketName, NtpTimestamp)> {
        self.answerable = None;
        for _ in 0..200 {
            self.depart(departed, host);
            let asked =
                self.answerable.take_if(|(name, _)| matches!(name, SocketName::Exchange(_)) == exchange);
            if asked.is_some() {
                return asked;
            }
            self.wake();
        }
        panic!("{host} was never asked, exchange {exchange}");
    }
}

fn replay(file: &str, row: Row, key: u32, place: Option<&str>) {
    let (packets, keys) = (read(file), keys());
    let key = KeyId::new(key);
    let passive = if key.is_some() { PassivePeers::Authenticated } else { PassivePeers::Anyone };
    let mut shell = Shell::new(passive);
    let theirs: Vec<&Recorded> =
        packets.iter().filter(|packet| FOLLOWED.contains(&packet.from.ip())).collect();
    assert!(theirs.len() > 1, "{file}: {} packets of ntpd", theirs.len());
    let host = theirs[0].from;
    let source = match row {
        Row::Follow(kind) | Row::Lead(Some(kind)) => Some(kind),
        Row::Answer => Some(SourceKind::ManycastServer(if key.is_some() {
            Unsigned::Refused
        } else {
            Unsigned::Allowed
        })),
        _ => None,
    };
    if let Some(kind) = source {
        let address = place.map_or(host, |place| SocketAddr::new(place.parse().unwrap(), NTP_PORT));
        let configuration = SourceConfiguration {
            kind,
            place: Place::Address(address),
            key,
            poll: PollOptions::fixed(Log2Seconds(3)),
            ..SourceConfiguration::server(host.ip())
        };
        shell.tell(Event::AddSource { source: SourceId(1), configuration });
    }
    if matches!(row, Row::Lead(_) | Row::Answer) {
        shell.tell(Event::Reference(SystemSnapshot {
            leap: Leap::None,
            stratum: 5,
            reference_id: ReferenceId(*b"LOCL"),
            ..SystemSnapshot::unsynchronised(Log2Seconds(-20))
        }));
    }
    let mut seen = Vec::new();
    for packet in theirs {
        seen.push(hand_over(file, &mut shell, &keys, row, key, packet));
    }
    judge(file, &shell, row, &seen, host);
}

/// Parses, verifies and delivers a packet; returns its mode.
fn hand_over(
    file: &str,
    shell: &mut Shell,
    keys: &KeyTable,
    row: Row,
    key: Option<KeyId>,
    packet: &Recorded,
) -> Mode {
    let parsed = Packet::parse(&packet.payload).unwrap_or_else(|error| panic!("{file}: {error}: {packet:?}"));
    let mut header: Header = *parsed.header;
    let mode = header.mode();
    let exchange = packet.to.port() != NTP_PORT;
    // The volley of a peering, which says only that ntpd has no time yet.
    if exchange && matches!(row, Row::Lead(_)) {
        return mode;
    }
    let authentication = keys.verify(&packet.payload);
    assert_eq!(authentication, key.map_or(Authentication::None, Authentication::Valid), "{file}: {packet:?}");
    // One octet that is changed, and it is nobody's.
    if key.is_some() {
        let mut forged = packet.payload.clone();
        forged[1] ^= 1;
        assert_eq!(keys.verify(&forged), Authentication::Invalid, "{file}");
    }
    if row == Row::Serve {
        return mode;
    }
    let host = packet.from.ip();
    let is_known = shell.controller.associations().any(|association| association.remote.ip() == host);
    let socket = match mode {
        // The record may begin in the middle, with answers to what this controller has no reason yet to ask.
        Mode::Server if exchange && !is_known => return mode,
        Mode::Server => shell.ask(host, exchange, header.receive_timestamp() - WAY),
        Mode::SymmetricActive | Mode::SymmetricPassive if is_known => {
            shell.ask(host, false, header.receive_timestamp() - WAY)
        }
        Mode::Broadcast => {
            shell.pass(BROADCAST_INTERVAL);
            None
        }
        _ => None,
    };
    // What they echo, they echo of ours; a peer that is new has heard nothing yet.
    let socket = match socket {
        Some((socket, written)) => {
            header.set_origin_timestamp(written);
            socket
        }
        None => {
            header.set_origin_timestamp(NtpTimestamp::UNKNOWN);
            SocketName::Service(InstanceId(0))
        }
    };
    shell.now.clock = header.transmit_timestamp() + WAY;
    let delivery = match packet.to.ip() {
        to if to.is_multicast() => Delivery::Multicast,
        IpAddr::V4(to) if to.octets()[3] == 255 => Delivery::Broadcast,
        _ => Delivery::Unicast,
    };
    shell.tell(Event::Packet(Arrival {
        socket,
        instance: InstanceId(0),
        interface: InterfaceIndex(1),
        remote: packet.from,
        local: packet.to.ip(),
        delivery,
        receive_timestamp: shell.now.clock,
        stamp: StampKind::Kernel,
        access: Access::Allowed,
        authentication,
        header,
    }));
    mode
}

fn judge(file: &str, shell: &Shell, row: Row, seen: &[Mode], host: SocketAddr) {
    let association = shell.controller.associations().find(|association| association.remote == host);
    let failures = shell.controller.counters().failures;
    match row {
        Row::Follow(_) | Row::FollowGuest => {
            let association = association.unwrap_or_else(|| panic!("{file}: no association: {failures:?}"));
            let sample =
                association.last_sample.unwrap_or_else(|| panic!("{file}: nothing measured: {failures:?}"));
            let offset = sample.sample.offset.seconds();
            assert!(offset.abs() < OFFSET_SECONDS_MAX, "{file}: {offset} s");
            let peer = association.peer.unwrap();
            assert!((1..16).contains(&peer.stratum), "{file}: {peer:?}");
        }
        Row::Lead(_) => {
            // A peer without a source that has no better time than we is answered, and no more.
            let received = association.map_or(0, |association| association.traffic.received);
            assert!(received > 0 || row == Row::Lead(None), "{file}: {failures:?}");
            let ours =
                if matches!(row, Row::Lead(None)) { Mode::SymmetricPassive } else { Mode::SymmetricActive };
            assert!(shell.modes.contains(&ours), "{file}: we sent {:?}", shell.modes);
            assert_eq!(
                shell.controller.system().snapshot.stratum,
                5,
                "{file}: who follows us is not followed"
            );
        }
        Row::Answer => {
            assert!(shell.modes.contains(&Mode::Server), "{file}: {:?}, {failures:?}", shell.modes);
            assert!(association.is_none(), "{file}");
        }
        Row::Serve => assert!(seen.contains(&Mode::Client), "{file}: {seen:?}"),
    }
}

#[test]
fn what_ntpd_said_is_understood_as_it_was() {
    for (file, row, key, place) in rows() {
        replay(file, row, key, place);
    }
}

/// A file that no row reads would look as if it were tested.
#[test]
fn every_record_has_its_row() {
    let rows = rows();
    for entry in fs::read_dir(fixtures()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(rows.iter().any(|row| format!("{}.txt", row.0) == name), "{name}");
    }
}
