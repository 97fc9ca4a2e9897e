//! Which keys bring a source that nobody named.

use super::super::super::source::{
    BroadcastClientOptions, ManycastOptions, NTP_GROUP, SourceKind, Unsigned, Volley,
};
use super::super::super::{Farewell, News, Trailer, TrustedKeys};
use super::*;

/// Of whoever comes; the table has 1 and 2.
const STRANGER: u8 = 9;

fn key(number: u32) -> KeyId {
    KeyId::new(number).unwrap()
}

fn trusting(keys: &[u32]) -> Event {
    Event::TrustedKeys(TrustedKeys::Only(keys.iter().copied().map(key).collect()))
}

/// The ways in which a stranger becomes a source, or is answered by us as one of a group.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    Peer,
    Broadcaster,
    Found,
    Questioner,
}

impl Way {
    const ALL: [Self; 4] = [Self::Peer, Self::Broadcaster, Self::Found, Self::Questioner];

    /// What must be configured for it, with this key.
    fn source(self, key: Option<KeyId>) -> Option<SourceConfiguration> {
        let kind = match self {
            Self::Peer => return None,
            Self::Broadcaster => SourceKind::BroadcastClient(BroadcastClientOptions::default()),
            Self::Found => SourceKind::ManycastClient(ManycastOptions::default()),
            Self::Questioner => SourceKind::ManycastServer(Unsigned::Refused),
        };
        Some(SourceConfiguration { kind, key, ..SourceConfiguration::server(NTP_GROUP) })
    }

    /// A shell that is synchronised, and waits for strangers.
    fn shell(self, named: Option<KeyId>) -> Shell {
        let mut shell = Shell::new(ControllerOptions::default());
        let poll = PollOptions::fixed(Log2Seconds(4));
        let configuration = SourceConfiguration { poll, ..SourceConfiguration::server(address(1)) };
        shell.tell(Event::AddSource { source: SourceId(1), configuration });
        while !shell.controller.system().snapshot.is_synchronised() {
            shell.wake_in_time();
            if !shell.sends.is_empty() {
                shell.report_send(true, NtpDuration::ZERO);
                shell.answer(&Answer::good());
            }
        }
        if let Some(configuration) = self.source(named) {
            shell.tell(Event::AddSource { source: SourceId(2), configuration });
        }
        while self == Self::Found && shell.asked.is_none() {
            shell.wake_in_time();
        }
        shell.sends.clear();
        shell
    }

    /// The stranger comes, with a right MAC by this key.
    fn come(self, shell: &mut Shell, key: KeyId) {
        let mode = match self {
            Self::Peer => Mode::SymmetricActive,
            Self::Broadcaster => Mode::Broadcast,
            Self::Found => Mode::Server,
            Self::Questioner => Mode::Client,
        };
        let mut header = Header::new(Leap::None, Version::V4, mode);
        header.stratum = 2;
        header.set_poll(Log2Seconds(4));
        header.set_receive_timestamp(shell.now.clock);
        header.set_transmit_timestamp(shell.now.clock);
        if let (Self::Found, Some(question)) = (self, shell.asked) {
            header.set_origin_timestamp(question.transmit_timestamp());
        }
        let mut arrival = shell.arrival(Shell::service(), SocketAddr::new(address(STRANGER), 123), header);
        arrival.authentication = Authentication::Valid(key);
        if matches!(self, Self::Broadcaster | Self::Questioner) {
            arrival = Shell::to_everybody(arrival, true);
        }
        shell.tell(Event::Packet(arrival));
    }

    /// Has he got what he came for?
    fn is_in(self, shell: &Shell) -> bool {
        match self {
            Self::Questioner => {
                shell.sends.iter().any(|sent| sent.transmission.header.mode() == Mode::Server)
            }
            _ => is_there(shell),
        }
    }
}

fn is_there(shell: &Shell) -> bool {
    shell.controller.associations().any(|association| association.remote.ip() == address(STRANGER))
}

/// A right MAC is not enough: the key must be trusted, or named for the very source. Else it is as if it were wrong: a
/// peer is told so by a crypto-NAK, as its sender would be were it a client; the others are told nothing.
#[test]
fn a_key_that_is_not_trusted_brings_nobody_unless_it_is_named_there() {
    for way in Way::ALL {
        for (trusted, named, is_good) in [
            (&[2][..], None, true),
            (&[1, 2], None, true),
            (&[1], None, false),
            (&[], None, false),
            (&[1], Some(key(2)), true),
            (&[2], Some(key(2)), true),
            // By another key than the one that is named, it is nobody's, trusted or not.
            (&[2], Some(key(1)), false),
        ] {
            if way == Way::Peer && named.is_some() {
                continue;
            }
            let mut shell = way.shell(named);
            shell.tell(trusting(trusted));
            way.come(&mut shell, key(2));
            assert_eq!(way.is_in(&shell), is_good, "{way:?} {trusted:?} {named:?}");
            if is_good {
                continue;
            }
            assert_eq!(shell.controller.counters().failures.total(), u64::from(way != Way::Questioner));
            let told: Vec<Trailer> = shell.sends.iter().map(|sent| sent.transmission.trailer).collect();
            let expected = if way == Way::Peer { vec![Trailer::CryptoNak] } else { vec![] };
            assert_eq!(told, expected, "{way:?} {trusted:?} {named:?}");
        }
    }
}

/// A server of ours, and a peer, keep the key that the configuration gives them, and nobody else may use it.
#[test]
fn what_is_named_for_one_is_good_for_him_alone() {
    for kind in [SourceKind::Server, SourceKind::Peer(Volley::Off)] {
        let mut shell = Way::Peer.shell(None);
        shell.tell(trusting(&[1]));
        let configuration =
            SourceConfiguration { kind, key: Some(key(2)), ..SourceConfiguration::server(address(STRANGER)) };
        shell.tell(Event::AddSource { source: SourceId(3), configuration: configuration.clone() });
        Way::Peer.come(&mut shell, key(2));
        assert!(is_there(&shell));
        let is_told = shell.sends.iter().any(|sent| sent.transmission.trailer == Trailer::CryptoNak);
        assert_eq!((is_told, shell.controller.counters().peers_refused), (false, 0), "{kind:?}");
        // The same from elsewhere.
        shell.tell(Event::RemoveSource(SourceId(3)));
        let elsewhere = SourceConfiguration {
            place: crate::control::source::Place::Address(SocketAddr::new(address(8), 123)),
            ..configuration
        };
        shell.tell(Event::AddSource { source: SourceId(3), configuration: elsewhere });
        Way::Peer.come(&mut shell, key(2));
        assert!(!is_there(&shell));
        assert_eq!(shell.controller.counters().peers_refused, 1, "{kind:?}");
    }
}

/// SIGHUP may take a key out of `keys.trusted`: who came by it goes, who is named stays.
#[test]
fn who_came_by_a_key_goes_when_it_is_not_trusted_any_more() {
    for (way, named, stays) in [
        (Way::Peer, None, false),
        (Way::Broadcaster, None, false),
        (Way::Found, None, false),
        (Way::Broadcaster, Some(key(2)), true),
        (Way::Found, Some(key(2)), true),
    ] {
        let mut shell = way.shell(named);
        way.come(&mut shell, key(2));
        assert!(is_there(&shell), "{way:?}");
        shell.tell(trusting(&[2]));
        assert!(is_there(&shell), "{way:?}");
        shell.tell(trusting(&[1]));
        assert_eq!(is_there(&shell), stays, "{way:?} {named:?}");
        assert!(shell.controller.system().snapshot.is_synchronised(), "the others are not disturbed");
    }
}

/// It is said why.
#[test]
fn the_log_says_that_the_key_is_not_trusted() {
    let remote = SocketAddr::new(address(STRANGER), 123);
    let news = News::Demobilised { remote, reason: Farewell::KeyNotTrusted };
    assert_eq!(news.to_string(), "10.99.0.9:123 came by a key that is not trusted any more; it is let go");
}
