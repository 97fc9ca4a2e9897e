//! Kiss-o'-Death packets (RFC 5905 section 7.4, RFC 8633 section 5.4).

use crate::faults::{Fault, Placement};
use crate::scenario::{CLIENT, Scenario, server_address};
use timeball::control::source::Burst;
use timeball::control::state::SourceState;
use timeball::control::{Farewell, Kiss, News};

/// RFC 5905 section 7.4a: DENY and RSTR demobilise, and nothing is sent any more. The others go on. Checklist 31.
#[test]
fn deny_and_rstr_stop_the_client_for_good() {
    for (code, kiss) in [(*b"DENY", Kiss::Deny), (*b"RSTR", Kiss::Restrict)] {
        let mut world = Scenario { servers: vec![0.0; 2], poll: (4, 6), ..Scenario::default() }.world();
        world.run(3600.0);
        world.server(1).fault = Some((Fault::Kiss(code), Placement::Instead));
        world.run(200.0);
        let asked = world.server(1).requests.len();
        world.run(20_000.0);
        assert_eq!(world.server(1).requests.len(), asked, "asked again after {kiss}");
        let daemon = world.daemon(CLIENT);
        assert_eq!(daemon.state(server_address(1)), None);
        assert_eq!(daemon.state(server_address(2)), Some(SourceState::Selected));
        assert_eq!(daemon.snapshot.stratum, 2);
        let farewell =
            News::Demobilised { remote: (server_address(1), 123).into(), reason: Farewell::Kissed(kiss) };
        assert_eq!(daemon.said(|news| *news == farewell), 1);
        let refusing: Vec<_> =
            daemon.controller.sources().flat_map(|(_, entry)| entry.refusing().collect::<Vec<_>>()).collect();
        assert_eq!(refusing, [((server_address(1), 123).into(), kiss)], "the report can show it");
    }
}

/// The only server says DENY: nothing is left, and that is said.
#[test]
fn the_last_server_that_denies_takes_the_stratum_with_it() {
    let mut world = Scenario { poll: (4, 6), ..Scenario::default() }.world();
    world.run(3600.0);
    world.server(1).fault = Some((Fault::Kiss(*b"DENY"), Placement::Instead));
    world.run(100.0);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 0);
    assert_eq!(world.daemon(CLIENT).controller.associations().count(), 0);
    assert_eq!(world.daemon(CLIENT).open_sockets(), 0);
}

/// RFC 5905 section 7.4b: slower at once, slower at each RATE, but bounded (RFC 8633 section 5.4), and the
/// association lives. Checklist 32, 36.
#[test]
fn rate_slows_the_client_down_and_no_more() {
    let mut world = Scenario { poll: (4, 6), burst: Burst::On, ..Scenario::default() }.world();
    world.run(3600.0);
    world.server(1).fault = Some((Fault::Kiss(*b"RATE"), Placement::Instead));
    let before = world.server(1).requests.len();
    world.run(60_000.0);
    let requests = world.server(1).requests[before..].to_vec();
    let gaps: Vec<i64> = requests.windows(2).map(|pair| (pair[1] - pair[0]) / 1_000_000_000).collect();
    assert!(gaps[0] >= 32, "{gaps:?}");
    assert!(gaps.windows(2).all(|pair| pair[1] >= pair[0] * 3 / 2 || pair[0] >= 8192), "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap <= 8192 + 256), "{gaps:?}");
    world.server(1).fault = None;
    world.run(60_000.0);
    assert_eq!(world.daemon(CLIENT).state(server_address(1)), Some(SourceState::Selected));
    let kisses = world.daemon(CLIENT).said(|news| matches!(news, News::Kissed { kiss: Kiss::Rate, .. }));
    assert_eq!(kisses, requests.len());
}

/// RFC 5905 section 7.4c and d: other codes, X... among them, have no effect but that there is no time in them.
/// Checklist 33.
#[test]
fn other_kisses_are_inspected_and_discarded() {
    for code in [*b"XYZ\0", *b"INIT", *b"STEP", *b"CRYP", *b"MCST", *b"NTSN"] {
        let mut world = Scenario { poll: (4, 6), ..Scenario::default() }.world();
        world.run(3600.0);
        world.server(1).fault = Some((Fault::Kiss(code), Placement::Instead));
        world.run(3600.0);
        let daemon = world.daemon(CLIENT);
        assert_eq!(daemon.state(server_address(1)), Some(SourceState::Unsynchronised), "it gives no time");
        assert_eq!(daemon.said(|news| matches!(news, News::Kissed { .. })), 1, "said once");
        world.server(1).fault = None;
        world.run(1800.0);
        let worst = world.worst(CLIENT, 600);
        assert!(worst < 500e-6, "{:.0} us", worst * 1e6);
        assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2);
    }
}
