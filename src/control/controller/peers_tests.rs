//! Who may become a peer, and for how long. Whole peerings are in `tests/simulated_network`.

use super::super::super::packet_checks::Failure;
use super::super::super::source::{SourceKind, Volley};
use super::super::super::{Access, Delivery, InstanceId, SocketName, Trailer};
use super::*;

const PEER: u8 = 9;

fn with(passive: PassivePeers) -> Shell {
    Shell::new(ControllerOptions { passive, ..ControllerOptions::default() })
}

/// Mode 1 packet of a peer that is not synchronised, as we are not.
fn hello(shell: &Shell, number: u8) -> Arrival {
    let mut header = Header::new(Leap::Unsynchronised, Version::V4, Mode::SymmetricActive);
    header.set_transmit_timestamp(shell.now.clock);
    shell.arrival(Shell::service(), SocketAddr::new(address(number), 123), header)
}

/// A packet that answers the last one of ours.
fn reply(shell: &Shell, mode: Mode) -> Arrival {
    let ours = shell.requests.back().unwrap().header;
    let mut header = Header::new(Leap::None, Version::V4, mode);
    header.stratum = 2;
    header.set_origin_timestamp(ours.transmit_timestamp());
    header.set_receive_timestamp(shell.now.clock);
    header.set_transmit_timestamp(shell.now.clock + NtpDuration::from_bits(9));
    Arrival { header, ..hello(shell, PEER) }
}

fn peers(shell: &Shell) -> usize {
    shell.controller.associations().filter(|association| association.role.is_passive()).count()
}

/// A passive association whose first packet has left.
fn guest() -> Shell {
    let mut shell = with(PassivePeers::Authenticated);
    shell.tell(Event::Packet(hello(&shell, PEER)));
    shell.wake_in_time();
    shell.report_send(true, NtpDuration::ZERO);
    let sent = shell.requests.back().unwrap().header.mode();
    assert_eq!((peers(&shell), sent), (1, Mode::SymmetricPassive));
    shell
}

fn key() -> KeyId {
    KeyId::new(1).unwrap()
}

/// RFC 5905 figure 20, NEWPS, and A.5.1; RFC 8633 section 5.6: only who is authenticated, or whom the operator allows.
/// Never a crypto-NAK (CVE-2015-7871), nor what came to a group, or from another port than symmetric modes have.
/// Checklist 6, 91.
#[test]
fn a_passive_association_must_be_allowed() {
    use Authentication::{CryptoNak, Invalid, None as Plain, Valid};
    let table = [
        (PassivePeers::Refused, Valid(key()), false),
        (PassivePeers::Refused, Plain, false),
        (PassivePeers::Authenticated, Valid(key()), true),
        (PassivePeers::Authenticated, Plain, false),
        (PassivePeers::Authenticated, Invalid, false),
        (PassivePeers::Authenticated, CryptoNak, false),
        (PassivePeers::Anyone, Valid(key()), true),
        (PassivePeers::Anyone, Plain, true),
        (PassivePeers::Anyone, Invalid, false),
        (PassivePeers::Anyone, CryptoNak, false),
    ];
    for (policy, authentication, is_admitted) in table {
        let mut shell = with(policy);
        let hello = Arrival { authentication, ..hello(&shell, PEER) };
        let refused = [
            Arrival { access: Access::Denied, ..hello },
            Arrival { delivery: Delivery::Broadcast, ..hello },
            Arrival { delivery: Delivery::Multicast, ..hello },
            Arrival { remote: SocketAddr::new(address(PEER), 124), ..hello },
            Arrival { header: Header::new(Leap::None, Version::V4, Mode::SymmetricActive), ..hello },
        ];
        for arrival in refused {
            shell.tell(Event::Packet(arrival));
            assert_eq!(peers(&shell), 0, "{arrival:?}");
        }
        shell.tell(Event::Packet(hello));
        assert_eq!(peers(&shell), usize::from(is_admitted), "{policy:?} {authentication:?}");
        assert_eq!(shell.controller.counters().peers_refused, 6 - u64::from(is_admitted));
        let is_told = policy != PassivePeers::Refused && authentication == Invalid;
        assert_eq!(
            shell.sends.len(),
            usize::from(is_told),
            "nothing but a crypto-NAK is sent to whom is refused"
        );
        if let Some(association) = shell.controller.associations().next() {
            let expected = if authentication == Plain { None } else { Some(key()) };
            assert_eq!(association.key, expected, "the key of the packet is that of the association");
        }
    }
}

/// RFC 5905 section 9.2 and A.5.1, NEWPS: a MAC that is wrong is answered by a crypto-NAK in mode 1, that of an unknown key,
/// too. Nothing else is: no crypto-NAK, no missing MAC, no other mode, nothing that was sent to a group (checklist 30, 78).
#[test]
fn a_wrong_mac_in_mode_1_is_answered_by_a_crypto_nak_and_nothing_else_is() {
    use Authentication::{CryptoNak, Invalid, None as Plain};
    let modes = (0..8).map(Mode::from_low_bits);
    let ways = [Delivery::Unicast, Delivery::Broadcast, Delivery::Multicast];
    for mode in modes {
        for (authentication, delivery) in
            [Plain, Invalid, CryptoNak].into_iter().flat_map(|it| ways.map(|way| (it, way)))
        {
            let mut shell = with(PassivePeers::Authenticated);
            let mut arrival = Arrival { authentication, delivery, ..hello(&shell, PEER) };
            arrival.header = Header::new(Leap::None, Version::new(3).unwrap(), mode);
            arrival.header.set_transmit_timestamp(shell.now.clock);
            shell.tell(Event::Packet(arrival));
            let is_answered =
                (mode, authentication, delivery) == (Mode::SymmetricActive, Invalid, Delivery::Unicast);
            assert_eq!(
                shell.sends.len(),
                usize::from(is_answered),
                "{mode:?} {authentication:?} {delivery:?}"
            );
            let Some(answer) = shell.sends.pop_back().map(|sent| sent.transmission) else { continue };
            assert_eq!((answer.trailer, answer.to), (Trailer::CryptoNak, arrival.remote));
            assert_eq!((answer.header.mode(), answer.header.version_number()), (Mode::SymmetricActive, 3));
            assert_eq!(answer.header.origin_timestamp(), arrival.header.transmit_timestamp());
            assert_eq!(answer.header.receive_timestamp(), arrival.receive_timestamp);
            assert_eq!(peers(&shell), 0);
        }
    }
}

/// A known peer is not told (A.5.1, PROC: "bad auth" is dropped): a forged packet would make us speak in its name.
#[test]
fn a_wrong_mac_for_a_peering_is_dropped() {
    let mut shell = guest();
    let forged = Arrival { authentication: Authentication::Invalid, ..reply(&shell, Mode::SymmetricActive) };
    shell.tell(Event::Packet(forged));
    assert_eq!((peers(&shell), shell.sends.len()), (1, 0));
    assert_eq!(shell.controller.counters().failures.of(Failure::Authentication), 1);
}

/// Crypto-NAKs, and answers to worse peers, are bounded for each address and in all.
#[test]
fn strangers_are_answered_so_often_and_no_more() {
    for authentication in [Authentication::Invalid, Authentication::Valid(key())] {
        let mut shell = with(PassivePeers::Authenticated);
        // Whoever asks has no room as a peer: it is a source already.
        shell.tell(Event::AddSource {
            source: SourceId(1),
            configuration: SourceConfiguration::server(address(PEER)),
        });
        for _ in 0..1000 {
            shell.tell(Event::Packet(Arrival { authentication, ..hello(&shell, PEER) }));
            shell.pass(NtpDuration::from_nanoseconds(10_000_000));
        }
        assert_eq!(shell.sent, 4 + 9, "{authentication:?}: 4 at once, and one each second of ten");
        assert_eq!(shell.controller.counters().over_budget, 1000 - 13);
    }
}

/// RFC 5905 figure 20: mode 2 without an association is discarded. Checklist 7.
#[test]
fn a_mode_2_packet_mobilises_nothing() {
    let mut shell = with(PassivePeers::Anyone);
    let mut arrival = hello(&shell, PEER);
    arrival.header = Header::new(Leap::None, Version::V4, Mode::SymmetricPassive);
    arrival.header.set_transmit_timestamp(shell.now.clock);
    shell.tell(Event::Packet(arrival));
    assert_eq!((peers(&shell), shell.controller.counters().discarded), (0, 1));
}

/// From this address, with the key of this number; 0: with none.
fn hello_by(shell: &Shell, remote: IpAddr, key: u32) -> Arrival {
    let authentication = KeyId::new(key).map_or(Authentication::None, Authentication::Valid);
    Arrival { remote: SocketAddr::new(remote, 123), authentication, ..hello(shell, 0) }
}

/// The peer comes: does he become a guest? If not, he is answered at once, by his key.
#[track_caller]
fn is_taken_in(shell: &mut Shell, hello: Arrival) -> bool {
    let (before, sent) = (peers(shell), shell.sent);
    shell.tell(Event::Packet(hello));
    let is_taken_in = peers(shell) > before;
    assert_eq!(shell.sent - sent, u64::from(!is_taken_in));
    if !is_taken_in {
        let answer = &shell.sends.back().unwrap().transmission;
        let expected = match hello.authentication {
            Authentication::Valid(key) => Trailer::Mac(key),
            _ => Trailer::None,
        };
        assert_eq!((answer.header.mode(), answer.trailer), (Mode::SymmetricPassive, expected));
        assert_eq!(answer.to, hello.remote);
    }
    is_taken_in
}

/// The table of passive associations is bounded; who finds no room is answered all the same.
#[test]
fn there_is_room_for_so_many_passive_peers() {
    let mut shell = with(PassivePeers::Authenticated);
    for number in 0..PASSIVE_MAX as u8 + 10 {
        let has_room = usize::from(number) < PASSIVE_MAX;
        let hello = hello_by(&shell, address(number), 1 + u32::from(number));
        assert_eq!(is_taken_in(&mut shell, hello), has_room, "{number}");
    }
    assert_eq!(peers(&shell), PASSIVE_MAX);
}

/// CVE-2016-1549, CVE-2018-7170: whoever has a key may have many addresses, and would outvote all true sources from them.
/// RFC 8633 section 5.6: "Each symmetric passive association SHOULD be authenticated under a different cryptographic key".
#[test]
fn one_key_has_one_guest_however_many_addresses_its_holder_has() {
    for policy in [PassivePeers::Authenticated, PassivePeers::Anyone] {
        let mut shell = with(policy);
        for number in 1..=40 {
            // Over IPv6 as well, and from other instances: there is one clock.
            for remote in [address(number), [0xfd99, 0, 0, number.into(), 0, 0, 0, 1].into()] {
                for instance in [0, 1] {
                    let hello = Arrival { instance: InstanceId(instance), ..hello_by(&shell, remote, 1) };
                    let is_first = (remote, instance) == (address(1), 0);
                    assert_eq!(is_taken_in(&mut shell, hello), is_first, "{remote} in {instance}");
                    shell.pass(NtpDuration::from_seconds(1));
                }
            }
        }
        // Another key is another peer.
        let other = hello_by(&shell, address(50), 2);
        assert!(is_taken_in(&mut shell, other));
        assert_eq!(peers(&shell), 2);
    }
}

/// When its guest has gone, the key has room for the next.
#[test]
fn a_key_is_free_again_when_its_guest_has_gone() {
    let mut shell = guest();
    let other = hello_by(&shell, address(PEER + 1), 1);
    assert!(!is_taken_in(&mut shell, other));
    while peers(&shell) == 1 {
        shell.wake_in_time();
    }
    for (number, has_room) in [(PEER + 1, true), (PEER, false)] {
        let hello = hello_by(&shell, address(number), 1);
        assert_eq!(is_taken_in(&mut shell, hello), has_room, "{number}");
    }
}

/// Without a key, where that is allowed, an address is all that there is to tell guests by, and an IPv6 host has many. They
/// are few, and leave room for those who have a key.
#[test]
fn guests_without_a_key_are_few_and_one_for_each_host() {
    let mut shell = with(PassivePeers::Anyone);
    let host = |network: u16, number: u16| IpAddr::from([0xfd99, 0, 0, network, 0, 0, 0, number]);
    for number in 1..100 {
        let hello = hello_by(&shell, host(1, number), 0);
        assert_eq!(is_taken_in(&mut shell, hello), number == 1, "{number}");
        shell.pass(NtpDuration::from_seconds(1));
    }
    // The same address in another instance is another host.
    let elsewhere = Arrival { instance: InstanceId(1), ..hello_by(&shell, host(1, 1), 0) };
    assert!(is_taken_in(&mut shell, elsewhere));
    for number in 0..100 {
        let hello = hello_by(&shell, address(number), 0);
        let has_room = usize::from(number) < KEYLESS_PASSIVE_MAX - 2;
        assert_eq!(is_taken_in(&mut shell, hello), has_room, "{number}");
        shell.pass(NtpDuration::from_seconds(1));
    }
    assert_eq!(peers(&shell), KEYLESS_PASSIVE_MAX);
    let hello = hello_by(&shell, address(200), 1);
    assert!(is_taken_in(&mut shell, hello));
}

/// RFC 1305 section 3.3: at least one reply, also where the association would not persist because the peer's stratum
/// is greater than ours. Ours is 16 here, so what is greater is shown with one of ours that is synchronised.
#[test]
fn a_peer_of_a_worse_stratum_is_answered_without_an_association() {
    let mut shell = with(PassivePeers::Authenticated);
    let configuration = SourceConfiguration {
        poll: PollOptions::fixed(Log2Seconds(4)),
        ..SourceConfiguration::server(address(1))
    };
    shell.tell(Event::AddSource { source: SourceId(0), configuration });
    while shell.controller.system().snapshot.stratum != 2 {
        shell.wake_in_time();
        if !shell.sends.is_empty() {
            shell.report_send(true, NtpDuration::ZERO);
            shell.answer(&Answer::good());
        }
    }
    for (stratum, is_kept) in [(0, false), (3, false), (2, true)] {
        let mut arrival = hello(&shell, PEER);
        arrival.header = Header::new(Leap::None, Version::V4, Mode::SymmetricActive);
        arrival.header.stratum = stratum;
        arrival.header.set_transmit_timestamp(shell.now.clock);
        shell.sends.clear();
        shell.tell(Event::Packet(arrival));
        assert_eq!(peers(&shell), usize::from(is_kept), "stratum {stratum}");
        if !is_kept {
            let answer = shell.sends.pop_back().unwrap().transmission;
            assert_eq!((answer.header.mode(), answer.header.stratum), (Mode::SymmetricPassive, 2));
            assert_eq!(answer.header.origin_timestamp(), arrival.header.transmit_timestamp());
            assert_eq!(answer.header.receive_timestamp(), arrival.receive_timestamp);
            assert_eq!((answer.trailer, answer.local), (Trailer::Mac(key()), Some(arrival.local)));
            let stamp = SendStamp { written: shell.now.clock, departed: shell.now.clock };
            shell.tell(Event::Sent { handle: answer.handle, stamp });
        }
    }
}

/// The same when a peer becomes worse than we are: one more reply, then it is dissolved.
#[test]
fn a_passive_association_ends_when_its_peer_becomes_worse() {
    let mut shell = guest();
    let mut reply = reply(&shell, Mode::SymmetricActive);
    shell.tell(Event::Packet(reply));
    assert_eq!(peers(&shell), 1, "its stratum is 2, ours 16");
    shell.controller.system.snapshot.stratum = 1;
    shell.controller.system.snapshot.leap = Leap::None;
    shell.pass(NtpDuration::from_seconds(2));
    reply.header.set_transmit_timestamp(shell.now.clock);
    shell.sends.clear();
    shell.tell(Event::Packet(reply));
    assert_eq!((peers(&shell), shell.sends.len()), (1, 0));
    shell.wake_in_time();
    assert_eq!((peers(&shell), shell.sends.len()), (0, 1), "answered, and then dissolved");
}

/// RFC 5905 figure 20, ERR: two passive ends. One that proves that it has heard us ends the association; a forged packet
/// or a crypto-NAK does not (CVE-2016-1547). Checklist 12.
#[test]
fn two_passive_ends_are_dissolved_but_not_by_a_forger() {
    let mut shell = guest();
    let reply = reply(&shell, Mode::SymmetricPassive);
    let forged = |change: &dyn Fn(&mut Arrival)| {
        let mut arrival = reply;
        change(&mut arrival);
        arrival
    };
    let attempts = [
        forged(&|arrival| arrival.authentication = Authentication::CryptoNak),
        forged(&|arrival| arrival.authentication = Authentication::None),
        forged(&|arrival| arrival.authentication = Authentication::Invalid),
        forged(&|arrival| arrival.authentication = Authentication::Valid(KeyId::new(2).unwrap())),
        forged(&|arrival| arrival.header.set_origin_timestamp(NtpTimestamp::UNKNOWN)),
        forged(&|arrival| arrival.header.set_origin_timestamp(NtpTimestamp::from_bits(5))),
    ];
    for arrival in attempts {
        shell.tell(Event::Packet(arrival));
        assert_eq!(peers(&shell), 1, "{arrival:?}");
    }
    shell.tell(Event::Packet(reply));
    assert_eq!(peers(&shell), 0);
    assert_eq!(shell.controller.counters().failures.total(), 6);
}

/// RFC 5905 figure 20: of modes 1 to 5, a passive association takes 1, an active one 1 and 2; the rest is discarded.
/// Checklist 12.
#[test]
fn other_modes_do_nothing_to_a_peering() {
    let mut shell = guest();
    for mode in [Mode::Server, Mode::Broadcast] {
        shell.tell(Event::Packet(reply(&shell, mode)));
    }
    assert_eq!(shell.controller.counters().discarded, 2);
    let association = shell.controller.associations().next().unwrap();
    assert_eq!((association.poll.reach().bits(), association.peer), (0, None));
}

/// Silence: nine packets without an answer, at the intervals of the poll process, then nothing more.
#[test]
fn silence_dissolves_a_passive_association() {
    let mut shell = guest();
    let begun = shell.now.monotonic;
    let mut sent = 1;
    while let Some(time) = shell.wake_at {
        shell.pass(time - shell.now.monotonic);
        shell.tell(Event::WakeUp);
        sent += shell.sends.len();
        shell.sends.clear();
        assert!(sent < 20);
    }
    assert_eq!((peers(&shell), sent), (0, 9));
    let seconds = (shell.now.monotonic - begun).seconds();
    assert!((128.0..700.0).contains(&seconds), "{seconds}");
}

/// A guest that is configured becomes a source; and one address is one association.
#[test]
fn a_configured_peer_takes_the_place_of_a_passive_association() {
    let mut shell = guest();
    let configuration = SourceConfiguration::peer(address(PEER));
    shell.tell(Event::AddSource { source: SourceId(1), configuration });
    assert_eq!((peers(&shell), shell.controller.associations().count()), (0, 1));
    shell.tell(Event::Packet(hello(&shell, PEER)));
    assert_eq!((peers(&shell), shell.controller.associations().count()), (0, 1));
    shell.tell(Event::RemoveSource(SourceId(1)));
    shell.tell(Event::Packet(hello(&shell, PEER)));
    assert_eq!(peers(&shell), 1);
}

/// A server of ours that is our peer, too, has one voice: it is answered, not followed twice.
#[test]
fn a_server_that_peers_with_us_is_answered_without_an_association() {
    let mut shell = with(PassivePeers::Authenticated);
    let configuration = SourceConfiguration::server(address(PEER));
    shell.tell(Event::AddSource { source: SourceId(1), configuration });
    shell.tell(Event::Packet(hello(&shell, PEER)));
    assert_eq!((peers(&shell), shell.sends.len()), (0, 1));
    assert_eq!(shell.sends[0].transmission.header.mode(), Mode::SymmetricPassive);
}

/// The volley: a mode 3 packet from a socket of its own; unanswered, mode 1 from port 123 as soon as that is closed.
#[test]
fn after_an_unanswered_volley_comes_mode_1() {
    for volley in [Volley::On, Volley::Off] {
        let mut shell = with(PassivePeers::Refused);
        let kind = SourceKind::Peer(volley);
        let configuration = SourceConfiguration { kind, ..SourceConfiguration::server(address(PEER)) };
        shell.tell(Event::AddSource { source: SourceId(1), configuration });
        shell.wake_in_time();
        let begun = shell.now.monotonic;
        if volley == Volley::On {
            let request = shell.sends.pop_back().unwrap().transmission;
            assert_eq!(request.header.mode(), Mode::Client);
            assert_eq!(shell.open.len(), 1);
            shell.wake_in_time();
            assert_eq!((shell.open.len(), shell.sends.len()), (0, 0));
            shell.wake_in_time();
            let waited = (shell.now.monotonic - begun).seconds();
            assert!((2.9..3.1).contains(&waited), "{waited}");
        }
        let packet = shell.sends.pop_back().unwrap().transmission;
        assert_eq!(
            (packet.header.mode(), packet.from),
            (Mode::SymmetricActive, SocketName::Service(InstanceId(0)))
        );
        assert!(packet.transmit_field == crate::control::TransmitField::Clock && packet.to.port() == 123);
    }
}

/// Answered, mode 1 follows at once, and the answer is a sample.
#[test]
fn after_an_answered_volley_comes_mode_1_too() {
    let mut shell = Shell::new(ControllerOptions::default());
    let configuration = SourceConfiguration::peer(address(PEER));
    shell.tell(Event::AddSource { source: SourceId(1), configuration });
    shell.wake_in_time();
    shell.report_send(true, NtpDuration::ZERO);
    shell.answer(&Answer::good());
    assert_eq!(shell.controller.associations().next().unwrap().poll.reach().bits(), 1);
    let answered = shell.now.monotonic;
    shell.wake_in_time();
    assert_eq!(shell.now.monotonic, answered);
    assert_eq!(shell.sends.pop_back().unwrap().transmission.header.mode(), Mode::SymmetricActive);
}
