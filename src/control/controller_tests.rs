//! What must hold whatever happens. The behaviour of whole hosts is in `tests/simulated_network`, long histories are in
//! `tests/control_harness`.

use super::super::source::{BroadcastClientOptions, PollOptions, SourceConfiguration, SourceKind, Unsigned};
use super::super::{Arrival, Authentication, Delivery, KeyId, SendStamp};
use super::testing::{Answer, Choices, Happening, START, Sender, Shell, Spoil};
use super::*;
use crate::time::NtpTimestamp;
use crate::wire::{Header, Leap, Mode, Version};
use proptest::prelude::*;
use std::net::IpAddr;

fn address(number: u8) -> IpAddr {
    [10, 99, 0, number].into()
}

/// The sources that a history begins with: a server, a peer and whatever the history adds.
fn with_a_server(options: ControllerOptions) -> Shell {
    let mut shell = Shell::new(options);
    let configuration = SourceConfiguration::server(address(1));
    shell.tell(Event::AddSource { source: SourceId(0), configuration });
    shell
}

/// Some steps of a history, or their octets, each by itself, so that a failure shrinks to the few that matter.
fn history(steps: usize) -> impl Strategy<Value = Vec<Happening>> {
    let step = prop::collection::vec(any::<u8>(), 64);
    prop::collection::vec(step.prop_map(|octets| Happening::choose(&mut Choices(&octets))), 1..steps)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Whatever happens: one transmission for one event at most, no panic, no table that grows beyond its bound, no
    /// socket opened twice or left open by an association that is gone, no dispersion that shrinks without a sample.
    #[test]
    fn whatever_happens_the_controller_keeps_its_promises(options in any::<u8>(), history in history(200)) {
        let mut shell = with_a_server(Choices(&[options]).options());
        for happening in history {
            shell.happen(happening);
        }
    }

    /// RFC 5905 section 8: whoever has neither seen our requests nor a key of ours can do nothing to a server, a keyed
    /// server and a peer of ours, in any number of packets.
    #[test]
    fn whoever_sees_nothing_moves_nothing(history in history(200)) {
        moves_nothing(Sender::OffPath, &[(1, None), (2, KeyId::new(1)), (3, KeyId::new(1))], history);
    }

    /// RFC 5905 figure 22, test 5: nor can whoever sees everything but has no key, where there is one.
    #[test]
    fn whoever_has_no_key_moves_nothing_that_has_one(history in history(200)) {
        moves_nothing(Sender::Keyless, &[(2, KeyId::new(1)), (3, KeyId::new(1))], history);
    }
}

/// Can this attacker, between true answers, move the clock or end an association? Number 3 is a peer, the others are
/// servers.
fn moves_nothing(sender: Sender, sources: &[(u8, Option<KeyId>)], history: Vec<Happening>) {
    let mut shell = Shell::new(ControllerOptions::default());
    for &(number, key) in sources {
        let server = SourceConfiguration::server(address(number));
        let peer = SourceConfiguration::peer(address(number));
        let configuration = SourceConfiguration { key, ..if number == 3 { peer } else { server } };
        shell.tell(Event::AddSource { source: SourceId(number.into()), configuration });
    }
    for happening in history {
        shell.happen(attackers(sender, happening));
        // The true answers were under way for a microsecond, so the clock is right to half of that.
        let offset = shell.controller.system().offset;
        assert!(shell.steps == 0 && offset.magnitude() < NtpDuration::from_nanoseconds(1000), "{offset}");
        let remotes: Vec<IpAddr> = shell.controller.associations().map(|it| it.remote.ip()).collect();
        assert!(remotes.into_iter().eq(sources.iter().map(|source| address(source.0))));
    }
}

/// What a happening comes to when it is true or this attacker's.
fn attackers(sender: Sender, happening: Happening) -> Happening {
    match happening {
        Happening::Answer(answer) => Happening::Answer(Answer { sender, ..answer }),
        Happening::Exchange(_) => Happening::Exchange(NtpDuration::ZERO),
        Happening::Quiet(wake_ups, _) => Happening::Quiet(wake_ups, NtpDuration::ZERO),
        Happening::Report(..) => Happening::Report(true, NtpDuration::ZERO),
        // Without a key nobody gets further than no MAC, a wrong one, or a crypto-NAK.
        Happening::Packet(octets, remote, verdict, everybody) => {
            Happening::Packet(octets, remote, verdict % 3, everybody)
        }
        Happening::Broadcast(remote, lie, poll, verdict) => {
            Happening::Broadcast(remote, lie, poll, verdict % 3)
        }
        Happening::Found(remote, verdict) => Happening::Found(remote, verdict % 3),
        Happening::Question(remote, stratum, verdict) => Happening::Question(remote, stratum, verdict % 3),
        Happening::Add(..) | Happening::Remove(_) | Happening::Step(_) => Happening::WakeInTime,
        Happening::WakeUp(_)
        | Happening::WakeInTime
        | Happening::Resolve(..)
        | Happening::OwnAddresses(_)
        | Happening::Trust(_) => happening,
    }
}

#[test]
fn the_tables_have_their_bounds() {
    let mut shell = Shell::new(ControllerOptions::default());
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
    let mut shell = with_a_server(ControllerOptions::default());
    shell.wake_in_time();
    shell.answer(&Answer::good());
    let traffic = |shell: &Shell| shell.controller.associations().next().unwrap().traffic;
    assert_eq!((traffic(&shell).unstamped, traffic(&shell).sent), (1, 0));
    shell.report_send(true, NtpDuration::ZERO);
    shell.answer(&Answer::good());
    assert_eq!(shell.controller.associations().next().unwrap().poll.reach().bits(), 1);
    shell.answer(&Answer::good());
    assert_eq!(traffic(&shell).received, 2, "the socket is closed after the exchange");
    assert_eq!(shell.controller.counters().strays, 1);
}

/// RFC 5905 figure 20, no association: modes 1 to 5 at port 123 mobilise nothing here, nor does anything else.
#[test]
fn packets_out_of_nowhere_mobilise_nothing() {
    let mut shell = Shell::new(ControllerOptions::default());
    for first in 0..=255 {
        let mut octets = [0x5a; 48];
        octets[0] = first;
        // Without a key: who has one may become a passive peer.
        shell.happen(Happening::Packet(octets, 9, first % 3, None));
    }
    let counters = *shell.controller.counters();
    assert_eq!((counters.received, counters.discarded, counters.peers_refused), (256, 224, 32));
    assert_eq!(shell.controller.associations().count(), 0);
    assert_eq!(shell.wake_at, None);
}

/// The generator of histories does reach what lies behind the tests: without that, nothing is said by its silence.
#[test]
fn a_good_answer_is_measured_and_each_spoil_changes_it() {
    let mut shell = with_a_server(ControllerOptions::default());
    for spoil in [Spoil::Origin(0), Spoil::Origin(1), Spoil::Timestamps(0), Spoil::Leap, Spoil::Access] {
        shell.wake_in_time();
        shell.report_send(true, NtpDuration::ZERO);
        shell.answer(&Answer { spoils: vec![spoil], ..Answer::good() });
        let association = shell.controller.associations().next().unwrap();
        assert_eq!(association.poll.reach().bits(), 0, "{spoil:?}");
        while shell.sends.is_empty() {
            shell.wake_in_time();
        }
    }
}

/// Whoever is configured is asked as configured, though a broadcast of his was heard before. He would be left out for ever
/// otherwise; and whoever forges the broadcast would keep him out.
#[test]
fn a_server_that_was_only_heard_makes_room_for_its_own_table() {
    let mut shell = Shell::new(ControllerOptions::default());
    let options = BroadcastClientOptions { unsigned: Unsigned::Allowed, ..Default::default() };
    let listener = SourceConfiguration {
        kind: SourceKind::BroadcastClient(options),
        ..SourceConfiguration::server([224, 0, 1, 1].into())
    };
    let server = SourceConfiguration::server(address(7));
    shell.tell(Event::AddSource { source: SourceId(1), configuration: listener });
    let heard = |shell: &mut Shell| {
        let mut header = Header::new(Leap::None, Version::V4, Mode::Broadcast);
        header.stratum = 2;
        header.set_transmit_timestamp(shell.now.clock);
        let arrival = Arrival {
            local: [224, 0, 1, 1].into(),
            delivery: Delivery::Multicast,
            ..shell.arrival(Shell::service(), SocketAddr::new(address(7), 123), header)
        };
        shell.tell(Event::Packet(arrival));
    };
    let sources = |shell: &Shell| {
        let associations = shell.controller.associations();
        associations.map(|association| association.source).collect::<Vec<_>>()
    };
    heard(&mut shell);
    assert_eq!(sources(&shell), [Some(SourceId(1))]);
    shell.tell(Event::AddSource { source: SourceId(2), configuration: server });
    assert_eq!(sources(&shell), [Some(SourceId(2))]);
    heard(&mut shell);
    assert_eq!(sources(&shell), [Some(SourceId(2))], "and is not driven out again");
}

#[path = "controller/peers_tests.rs"]
mod peers;
#[path = "controller/system_tests.rs"]
mod system;
#[path = "controller/trust_tests.rs"]
mod trust;
