//! What becomes of the system variables, and which packets which association takes.

use super::super::super::source::{
    BroadcastClientOptions, BroadcastOptions, Calibration, ManycastOptions, NTP_GROUP, SourceKind, Unsigned,
};
use super::super::super::state::SourceState;
use super::super::super::{InterfaceIndex, Trailer, Transmission};
use super::*;
use crate::snapshot::SystemSnapshot;
use crate::time::{NtpShort, Ppm};

/// Polled each 16 s.
fn server(number: u8) -> SourceConfiguration {
    SourceConfiguration {
        poll: PollOptions::fixed(Log2Seconds(4)),
        ..SourceConfiguration::server(address(number))
    }
}

/// Some servers, each asked and answering so many times.
fn synchronised(servers: u8, wake_ups: usize, spoils: &[Spoil]) -> Shell {
    let mut shell = Shell::new(ControllerOptions::default());
    for number in 1..=servers {
        let configuration = server(number);
        shell.tell(Event::AddSource { source: SourceId(number.into()), configuration });
    }
    for _ in 0..wake_ups {
        answer_next(&mut shell, spoils);
    }
    assert!(shell.controller.system().snapshot.is_synchronised());
    shell
}

/// The next wake-up, and if something is asked then, the answer.
fn answer_next(shell: &mut Shell, spoils: &[Spoil]) {
    shell.wake_in_time();
    if !shell.sends.is_empty() {
        shell.report_send(true, NtpDuration::ZERO);
        shell.answer(&Answer { spoils: spoils.to_vec(), ..Answer::good() });
    }
}

/// RFC 5905 section 11.2.3: "each sample is used once": a selection without a new sample moves nothing. Checklist 57.
#[test]
fn a_sample_is_used_once() {
    let mut shell = synchronised(3, 40, &[]);
    let updated = |shell: &Shell| {
        let system = shell.controller.system();
        // The time of the last update is what the snapshot calls its reference timestamp.
        (system.snapshot.reference_timestamp, system.offset, shell.frequency, shell.steps)
    };
    for number in [2, 3] {
        shell.pass(NtpDuration::from_nanoseconds(1_000_000));
        let before = updated(&shell);
        shell.tell(Event::RemoveSource(SourceId(number)));
        assert_eq!(updated(&shell), before, "selected anew, and nothing new was measured");
    }
    assert!(shell.controller.system_peer().is_some());
    let before = updated(&shell).0;
    for _ in 0..4 {
        answer_next(&mut shell, &[]);
    }
    assert_ne!(updated(&shell).0, before, "a new one is used");
}

/// RFC 5905 figure 25, with section 7.3 for the reference id: leap, stratum + 1, root delay + delay, root dispersion +
/// max(epsilon + psi + |theta|, MINDISP), which grows at PHI. Checklist 58.
#[test]
fn the_system_variables_are_those_of_figure_25() {
    // Stratum 4, leap 1; half a second and a quarter.
    let leap = Spoil::Octet(0, 1 << 6 | 4 << 3 | 4);
    let spoils = [leap, Spoil::Stratum(4), Spoil::Root(1 << 15, 1 << 14)];
    let shell = synchronised(1, 40, &spoils);
    let snapshot = shell.controller.system().snapshot;
    assert_eq!((snapshot.leap, snapshot.stratum), (Leap::Insert, 5));
    assert_eq!(snapshot.reference_id.0, [10, 99, 0, 1]);
    let association = shell.controller.associations().next().unwrap();
    let estimate = association.filter.estimate(shell.now.monotonic).unwrap();
    let half = NtpShort::from_bits(1 << 15).to_duration();
    assert_eq!(snapshot.root_delay, half + estimate.delay);
    let quarter = NtpShort::from_bits(1 << 14).to_duration();
    let increment = snapshot.root_dispersion - quarter;
    let least = NtpDuration::from_nanoseconds(5_000_000);
    let now = estimate.dispersion + estimate.jitter;
    assert!(increment >= least && increment <= least.max(now), "{increment}: MINDISP, {now} by now");
    assert_eq!(snapshot.dispersion_rate, Ppm::FREQUENCY_TOLERANCE);
}

/// What three servers make us announce, of whom these announce a leap second.
fn announced(announcing: &[u8]) -> Leap {
    let mut shell = Shell::new(ControllerOptions::default());
    for number in 1..=3 {
        let configuration = server(number);
        shell.tell(Event::AddSource { source: SourceId(number.into()), configuration });
    }
    for _ in 0..60 {
        shell.wake_in_time();
        let Some(asked) = shell.sends.back().map(|send| send.transmission.to.ip()) else { continue };
        shell.report_send(true, NtpDuration::ZERO);
        let announces = announcing.iter().any(|number| address(*number) == asked);
        let spoils = if announces { vec![Spoil::Octet(0, 1 << 6 | 4 << 3 | 4)] } else { vec![] };
        shell.answer(&Answer { spoils, ..Answer::good() });
    }
    let used = shell.controller.associations().filter(|association| association.state.is_used()).count();
    assert_eq!(used, 3);
    shell.controller.system().snapshot.leap
}

/// RFC 5905 section 7.3: a leap second is announced if most of those announce it whom we follow, whoever is the system peer.
/// Checklist 66.
#[test]
fn one_of_three_announces_no_leap_second_for_us() {
    for (announcing, expected) in [
        (&[1][..], Leap::None),
        (&[2], Leap::None),
        (&[3], Leap::None),
        (&[1, 2], Leap::Insert),
        (&[2, 3], Leap::Insert),
        (&[1, 2, 3], Leap::Insert),
    ] {
        assert_eq!(announced(announcing), expected, "{announcing:?}");
    }
}

/// RFC 5905 A.5.5.3 knows the address that we ask from. A host has others, and whoever follows us at one of them follows us,
/// though we ask it from another, over another family, or not at all. Addresses come and go. Checklist 26.
#[test]
fn who_follows_any_address_of_ours_is_not_followed() {
    let (four, six) = (IpAddr::from([10, 99, 7, 7]), "fd99::1".parse().unwrap());
    let md5_of_six = [0x08, 0x27, 0xd2, 0x8b];
    let own = |shell: &mut Shell, instance, addresses: &[IpAddr]| {
        let (instance, addresses) = (InstanceId(instance), addresses.to_vec());
        shell.tell(Event::OwnAddresses { instance, addresses });
        shell.controller.associations().next().unwrap().state
    };
    for (address, told) in [(four, [10, 99, 7, 7]), (six, md5_of_six)] {
        let octets = (12..16).zip(told).map(|(place, octet)| Spoil::Octet(place, octet));
        let spoils: Vec<Spoil> = octets.chain([Spoil::Stratum(2)]).collect();
        let mut shell = synchronised(1, 40, &spoils);
        assert_eq!(own(&mut shell, 0, &[address, four, six]), SourceState::FollowsUs, "{address}");
        assert_eq!(shell.controller.system_peer(), None);
        answer_next(&mut shell, &spoils);
        assert!(!shell.controller.system().snapshot.is_synchronised());
        assert_eq!(own(&mut shell, 0, &["10.99.7.8".parse().unwrap()]), SourceState::Selected, "it is gone");
        // In another network it is another host's.
        assert_eq!(own(&mut shell, 1, &[address]), SourceState::Selected);
        // At stratum 1 it is a name, whatever it looks like.
        let mut first = synchronised(1, 40, &[&spoils[..], &[Spoil::Stratum(1)]].concat());
        assert_eq!(own(&mut first, 0, &[address]), SourceState::Selected);
    }
}

/// A broadcast server that was never asked has not told us which address it knows us by.
#[test]
fn a_broadcast_server_that_follows_us_is_not_followed() {
    let kind = SourceKind::BroadcastClient(BroadcastClientOptions {
        calibration: Calibration::Delay(NtpDuration::ZERO),
        ..BroadcastClientOptions::default()
    });
    let mut shell = Shell::new(ControllerOptions::default());
    let configuration = SourceConfiguration { kind, ..SourceConfiguration::server(NTP_GROUP) };
    shell.tell(Event::AddSource { source: SourceId(1), configuration });
    shell.tell(Event::OwnAddresses { instance: InstanceId(0), addresses: vec![address(200)] });
    for (followed, is_followed) in [(201, true), (200, false)] {
        for _ in 0..8 {
            shell.pass(NtpDuration::from_seconds(16));
            let mut header = Header::new(Leap::None, Version::V4, Mode::Broadcast);
            (header.stratum, header.reference_id.0) = (2, [10, 99, 0, followed]);
            header.set_poll(Log2Seconds(4));
            header.set_precision(Log2Seconds(-20));
            header.set_transmit_timestamp(shell.now.clock);
            let arrival = shell.arrival(Shell::service(), SocketAddr::new(address(7), 123), header);
            shell.tell(Event::Packet(Shell::to_everybody(arrival, true)));
        }
        assert_eq!(shell.controller.system_peer().is_some(), is_followed, "it follows 10.99.0.{followed}");
    }
}

/// RFC 5905 section 10: while a server is silent what we serve stays, and its dispersion grows at PHI. A.5.5.3: it is
/// unreachable after eight polls; then nobody is followed and stratum 16 is served. (The skeleton leaves leap and stratum
/// as they were; we say at once that we have nobody, like a server that lost its majority.) Checklist 59.
#[test]
fn a_silent_server_is_followed_until_it_is_unreachable() {
    let mut shell = synchronised(1, 40, &[]);
    let before = shell.controller.system().snapshot;
    let begun = shell.now;
    while shell.controller.associations().next().unwrap().state != SourceState::Unreachable {
        let now: SystemSnapshot = shell.controller.system().snapshot;
        assert_eq!((now.stratum, now.leap), (before.stratum, before.leap));
        let later = begun.clock + NtpDuration::from_seconds(10_000);
        let grown = now.root_dispersion_at(later).to_duration() - before.root_dispersion;
        assert!(grown.seconds() > 0.149, "{grown} in 10 000 s at 15 ppm");
        shell.wake_in_time();
    }
    let waited = (shell.now.monotonic - begun.monotonic).seconds();
    assert!((7.0 * 16.0..10.0 * 16.5).contains(&waited), "{waited} s: eight polls");
    assert!(!shell.controller.system().snapshot.is_synchronised());
    assert_eq!(shell.controller.system_peer(), None);
}

/// RFC 5905 section 7.4: the receive and transmit timestamps of a kiss are never used: neither as time, nor as what a later
/// packet must not repeat. Checklist 34.
#[test]
fn the_timestamps_of_a_kiss_are_not_used() {
    let mut shell = synchronised(1, 40, &[]);
    let association = |shell: &Shell| shell.controller.associations().next().unwrap().clone();
    let (offset, last) = (shell.controller.system().offset, association(&shell).last_sample);
    while shell.sends.is_empty() {
        shell.wake_in_time();
    }
    shell.report_send(true, NtpDuration::ZERO);
    // Hours off, with a transmit timestamp that the next good answer will have, too.
    let spoils = vec![Spoil::Kiss(*b"RATE"), Spoil::Timestamps(255)];
    shell.answer(&Answer { lie: NtpDuration::from_seconds(7200), spoils, ..Answer::good() });
    assert_eq!(association(&shell).last_sample, last);
    assert_eq!((shell.controller.system().offset, shell.steps), (offset, 0));
    while shell.sends.is_empty() {
        shell.wake_in_time();
    }
    shell.report_send(true, NtpDuration::ZERO);
    shell.answer(&Answer { spoils: vec![Spoil::Timestamps(255)], ..Answer::good() });
    let failures = association(&shell).traffic.failures;
    assert_eq!(failures.of(super::super::super::packet_checks::Failure::Duplicate), 0, "{failures:?}");
}

/// RFC 5905 section 8: mode 5 from port 123 to port 123 of the address that is configured, as far as that TTL. Checklist 68.
#[test]
fn a_broadcast_goes_from_port_123_to_port_123_with_its_ttl() {
    for (place, hop_limit) in
        [(address(255), 1), (IpAddr::from([255; 4]), 1), (NTP_GROUP, 5), ("ff05::101".parse().unwrap(), 7)]
    {
        let mut shell = synchronised(1, 40, &[]);
        let options = BroadcastOptions { interval: Log2Seconds(4), hop_limit, interface: InterfaceIndex(3) };
        let configuration = SourceConfiguration {
            kind: SourceKind::Broadcast(options),
            key: KeyId::new(9),
            ..SourceConfiguration::server(place)
        };
        shell.tell(Event::AddSource { source: SourceId(9), configuration });
        for _ in 0..9 {
            shell.wake_in_time();
            if shell.sends.back().is_some_and(|sent| sent.transmission.header.mode() == Mode::Broadcast) {
                break;
            }
        }
        let sent = shell.sends.pop_back().unwrap().transmission;
        assert_eq!((sent.from, sent.to), (Shell::service(), SocketAddr::new(place, 123)));
        assert_eq!((sent.hop_limit, sent.interface), (Some(hop_limit), InterfaceIndex(3)));
        assert_eq!(sent.trailer, Trailer::Mac(KeyId::new(9).unwrap()));
        assert!(sent.header.origin_timestamp().is_unknown() && sent.header.receive_timestamp().is_unknown());
        assert!(!sent.header.transmit_timestamp().is_unknown());
    }
}

/// RFC 5905 figure 20, rows 5 and 6: a broadcast server association takes nothing, a broadcast client association mode 5
/// only; modes 0, 6 and 7 are nobody's. Checklist 14, 15, 17.
#[test]
fn broadcast_associations_take_mode_5_or_nothing() {
    let delay = Calibration::Delay(NtpDuration::ZERO);
    let listener = BroadcastClientOptions {
        calibration: delay,
        unsigned: Unsigned::Refused,
        interface: InterfaceIndex(0),
    };
    for (kind, place, takes_broadcasts) in [
        (SourceKind::Broadcast(BroadcastOptions::default()), address(255), false),
        (SourceKind::BroadcastClient(listener), address(255), true),
    ] {
        for number in 0..8 {
            let mode = Mode::from_low_bits(number);
            let mut shell = Shell::new(ControllerOptions {
                passive: PassivePeers::Refused,
                ..ControllerOptions::default()
            });
            let configuration = SourceConfiguration { kind, ..SourceConfiguration::server(place) };
            shell.tell(Event::AddSource { source: SourceId(1), configuration });
            let from = SocketAddr::new(if takes_broadcasts { address(7) } else { place }, 123);
            let packet = |shell: &Shell, mode| {
                let mut header = Header::new(Leap::None, Version::V4, mode);
                header.stratum = 1;
                header.set_transmit_timestamp(shell.now.clock);
                Shell::to_everybody(shell.arrival(Shell::service(), from, header), false)
            };
            if takes_broadcasts {
                let first = packet(&shell, Mode::Broadcast);
                shell.tell(Event::Packet(first));
            }
            assert_eq!(shell.controller.associations().count(), 1);
            let received = |shell: &Shell| shell.controller.associations().next().unwrap().traffic.received;
            let before = received(&shell);
            shell.pass(NtpDuration::from_seconds(16));
            let next = packet(&shell, mode);
            shell.tell(Event::Packet(next));
            let is_taken = takes_broadcasts && mode == Mode::Broadcast;
            assert_eq!(received(&shell) - before, u64::from(is_taken), "{kind:?} {mode:?}");
            assert_eq!((shell.controller.associations().count(), shell.sent), (1, 0), "{kind:?} {mode:?}");
        }
    }
}

/// Who listens on one interface to one group hears a server there only, known or not: on another network anybody may have
/// its address.
#[test]
fn a_known_broadcaster_is_heard_only_where_its_source_listens() {
    let options = BroadcastClientOptions {
        calibration: Calibration::Delay(NtpDuration::ZERO),
        unsigned: Unsigned::Allowed,
        interface: InterfaceIndex(3),
    };
    let kind = SourceKind::BroadcastClient(options);
    let configuration = SourceConfiguration { kind, ..SourceConfiguration::server(NTP_GROUP) };
    let mut shell = Shell::new(ControllerOptions::default());
    shell.tell(Event::AddSource { source: SourceId(1), configuration });
    let mut received = 0;
    for (interface, is_multicast, is_heard) in
        [(3, true, true), (4, true, false), (3, false, false), (4, false, false), (3, true, true)]
    {
        shell.pass(NtpDuration::from_seconds(16));
        let mut header = Header::new(Leap::None, Version::V4, Mode::Broadcast);
        header.stratum = 1;
        header.set_poll(Log2Seconds(4));
        header.set_transmit_timestamp(shell.now.clock);
        let arrival = shell.arrival(Shell::service(), SocketAddr::new(address(7), 123), header);
        let arrival = Arrival { interface: InterfaceIndex(interface), ..arrival };
        let before = shell.controller.counters().discarded;
        shell.tell(Event::Packet(Shell::to_everybody(arrival, is_multicast)));
        received += u64::from(is_heard);
        let association = shell.controller.associations().next().unwrap();
        assert_eq!(association.traffic.received, received, "interface {interface}, {is_multicast}");
        assert_eq!(shell.controller.counters().discarded - before, u64::from(!is_heard));
    }
}

/// A group is no server: one may speak to it on several networks, and ask it, too. Only the same twice is once too often.
#[test]
fn a_group_may_be_spoken_to_on_each_interface_and_asked_as_well() {
    let mut shell = synchronised(1, 40, &[]);
    let broadcast = |interface| {
        let interface = InterfaceIndex(interface);
        SourceKind::Broadcast(BroadcastOptions { interval: Log2Seconds(4), hop_limit: 1, interface })
    };
    let search = SourceKind::ManycastClient(ManycastOptions::default());
    let add = |shell: &mut Shell, number, kind| {
        let configuration = SourceConfiguration { kind, ..SourceConfiguration::server(NTP_GROUP) };
        shell.tell(Event::AddSource { source: SourceId(number), configuration });
        shell.controller.associations().count() - 1
    };
    assert_eq!(add(&mut shell, 11, broadcast(3)), 1);
    assert_eq!(add(&mut shell, 12, broadcast(4)), 2);
    assert_eq!(add(&mut shell, 13, search), 3);
    assert_eq!(add(&mut shell, 14, broadcast(4)), 3, "the same twice");
    assert_eq!(add(&mut shell, 15, search), 3, "the same twice");
    shell.tell(Event::RemoveSource(SourceId(12)));
    assert_eq!(add(&mut shell, 14, broadcast(4)), 3);
    let mut spoken = std::collections::BTreeSet::new();
    for _ in 0..40 {
        shell.sends.clear();
        shell.wake_in_time();
        for sent in &shell.sends {
            let Transmission { to, interface, header, .. } = &sent.transmission;
            if to.ip() == NTP_GROUP {
                spoken.insert((interface.0, header.mode() as u8));
            }
        }
    }
    let all = [(0, Mode::Client as u8), (3, Mode::Broadcast as u8), (4, Mode::Broadcast as u8)];
    assert_eq!(spoken, all.into());
}

/// A server that answers, and says each time that it does not know the time, is not unreachable: that would send its
/// operator to look for a broken network. (No sample comes of it, so the reach register stays 0, as in A.5.1.1.)
#[test]
fn a_server_that_says_it_has_no_time_is_not_called_unreachable() {
    let state = |shell: &Shell| shell.controller.associations().next().unwrap().state;
    for (spoil, expected) in [
        (Spoil::Leap, SourceState::Unsynchronised),
        (Spoil::Stratum(16), SourceState::BadStratum { stratum: 16 }),
    ] {
        let mut shell = Shell::new(ControllerOptions::default());
        shell.tell(Event::AddSource { source: SourceId(1), configuration: server(1) });
        assert_eq!(state(&shell), SourceState::Unreachable);
        for _ in 0..40 {
            answer_next(&mut shell, &[spoil]);
        }
        assert_eq!(state(&shell), expected);
        assert!(!shell.controller.associations().next().unwrap().poll.reach().is_reachable());
        for _ in 0..30 {
            shell.sends.clear();
            shell.wake_in_time();
        }
        assert_eq!(state(&shell), SourceState::Unreachable, "now it says nothing");
    }
}

/// Beyond the panic threshold nothing is served; when the sources that said so are gone, the fallback is, and follows what
/// is said of it.
#[test]
fn a_panic_ends_with_the_sources_that_caused_it() {
    let mut shell = Shell::new(ControllerOptions::default());
    shell.tell(Event::AddSource { source: SourceId(1), configuration: server(1) });
    for _ in 0..40 {
        shell.wake_in_time();
        if !shell.sends.is_empty() {
            shell.report_send(true, NtpDuration::ZERO);
            shell.answer(&Answer { lie: NtpDuration::from_seconds(2000), ..Answer::good() });
        }
    }
    let ours = |stratum| SystemSnapshot {
        leap: Leap::None,
        stratum,
        root_dispersion: NtpDuration::ZERO,
        reference_timestamp: START.clock,
        ..SystemSnapshot::unsynchronised(Log2Seconds(-20))
    };
    shell.tell(Event::Reference(ours(10)));
    assert_eq!(shell.controller.associations().next().unwrap().state, SourceState::Selected);
    assert!(!shell.controller.system().snapshot.is_synchronised(), "in a panic");
    shell.tell(Event::RemoveSource(SourceId(1)));
    assert_eq!(shell.controller.system().snapshot, ours(10));
    shell.tell(Event::Reference(ours(11)));
    assert_eq!(shell.controller.system().snapshot, ours(11));
}

/// What `timeball sources` says of a source: RATE as long as it is in force, other kisses until there is time again, and why
/// answers were of no use. Checklist 32, 33.
#[test]
fn the_reason_tells_of_kisses_and_failed_tests() {
    let reason = |shell: &Shell| shell.controller.associations().next().unwrap().reason();
    let mut shell = synchronised(1, 40, &[]);
    assert_eq!(reason(&shell), "system peer");
    for (code, said, later) in [
        (*b"STEP", "its own clock is not synchronised; it said STEP", "system peer"),
        (
            *b"RATE",
            "system peer; it wants to be asked less often (RATE)",
            "system peer; it wants to be asked less often (RATE)",
        ),
    ] {
        for (spoils, expected) in [(vec![Spoil::Kiss(code)], said), (Vec::new(), later)] {
            while shell.sends.is_empty() {
                shell.wake_in_time();
            }
            shell.report_send(true, NtpDuration::ZERO);
            shell.answer(&Answer { spoils, ..Answer::good() });
            assert_eq!(reason(&shell), expected);
        }
    }
    let mut shell = Shell::new(ControllerOptions::default());
    shell.tell(Event::AddSource { source: SourceId(1), configuration: server(1) });
    let good_but_for_its_mac = Answer { spoils: vec![Spoil::Mac(1)], ..Answer::good() };
    for _ in 0..3 {
        while shell.sends.is_empty() {
            shell.wake_in_time();
        }
        shell.report_send(true, NtpDuration::ZERO);
        shell.answer(&good_but_for_its_mac);
    }
    let expected = "no valid answer to the last 8 polls; so far 3 packets failed test 5 (authentication)";
    assert_eq!(reason(&shell), expected);
}
