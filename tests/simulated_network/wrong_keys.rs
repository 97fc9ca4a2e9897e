//! Peers whose keys do not agree.

use crate::following::{add_daemon, add_source};
use crate::network::Datagram;
use crate::scenario::{CLIENT, CLIENT_ADDRESS, Scenario, server_address};
use crate::server::KEY;
use std::net::IpAddr;
use timeball::control::source::{SourceConfiguration, SourceKind, Volley};

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 99, 0, 60));

/// RFC 5905 section 9.2 and A.5.1 (NEWPS): a peer whose MAC is wrong, or by a key that nobody knows, gets a crypto-NAK for
/// each packet. That ends nothing (CVE-2016-1547) and is answered by nobody; when the key is right, they are peers.
/// Checklist 30.
#[test]
fn a_wrong_key_is_answered_by_crypto_naks_that_do_no_harm() {
    for wrong in [KEY + 1, KEY + 2] {
        let scenario = Scenario { poll: (4, 6), keyed: true, ..Scenario::default() };
        let mut world = scenario.hosts();
        let other = add_daemon(&mut world, &scenario, PEER, &[]);
        let kind = SourceKind::Peer(Volley::Off);
        let source = scenario.source(server_address(1));
        let peer = SourceConfiguration { kind, ..scenario.source(PEER) };
        add_source(&mut world, CLIENT, 90, peer);
        world.daemon(CLIENT).claims_key = Some(wrong);
        world.tap = Some(Vec::new());
        world.run(3600.0);
        let tap = world.tap.take().unwrap();
        let sent = |from: IpAddr, to: IpAddr| -> Vec<&Datagram> {
            let all = tap.iter().map(|(_, datagram)| datagram);
            all.filter(|it| it.from.ip() == from && it.to.ip() == to).collect()
        };
        let (asked, naks) = (sent(CLIENT_ADDRESS, PEER), sent(PEER, CLIENT_ADDRESS));
        assert!(asked.len() > 50, "{}", asked.len());
        assert_eq!(naks.len(), asked.len(), "one for each packet, and none for one");
        assert!(naks.iter().all(|it| it.payload.len() == 52 && it.payload[48..] == [0; 4]));
        assert_eq!(world.daemon(other).controller.associations().count(), 0);
        assert!(world.daemon(CLIENT).state(PEER).is_some(), "the association lives");

        world.daemon(CLIENT).claims_key = None;
        add_source(&mut world, CLIENT, 1, source);
        world.run(7200.0);
        assert_eq!(world.daemon(other).snapshot.stratum, 3);
    }
}
