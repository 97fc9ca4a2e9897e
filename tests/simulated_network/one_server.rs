//! One client and one server, on wires good and bad.

use crate::clock::ClockSetup;
use crate::faults::{Fault, Placement};
use crate::network::Way;
use crate::scenario::{CLIENT, CLIENT_ADDRESS, EPOCH, Scenario, server_address};
use std::collections::BTreeSet;
use timeball::control::ControllerOptions;
use timeball::control::discipline::{DisciplineOptions, FirstStep, Steering};
use timeball::control::source::Burst;
use timeball::control::state::SourceState;
use timeball::snapshot::SystemSnapshot;
use timeball::time::{Log2Seconds, NtpDuration};
use timeball::wire::{Leap, ReferenceId, Version};

/// Lets it settle for an hour, then measures the worst error of another.
fn settled(scenario: &Scenario) -> f64 {
    let mut world = scenario.world();
    world.run(3600.0);
    let worst = world.worst(CLIENT, 3600);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2, "{scenario:?}");
    worst
}

#[test]
fn a_client_converges_on_its_server_with_every_seed() {
    for seed in 1..=20 {
        let worst = settled(&Scenario { seed, ..Scenario::default() });
        assert!(worst < 300e-6, "seed {seed}: {:.0} us in the second hour", worst * 1e6);
    }
}

#[test]
fn it_converges_from_each_side_and_at_any_frequency_error() {
    for (ahead, fast_ppm) in
        [(-0.1, 100.0), (0.1, -100.0), (-0.1, -300.0), (0.0, 0.0), (0.02, 450.0), (5.0, 50.0)]
    {
        let client = ClockSetup { ahead, fast_ppm, wander: 1e-9 };
        let worst = settled(&Scenario { client, ..Scenario::default() });
        assert!(worst < 300e-6, "{client:?}: {:.0} us in the second hour", worst * 1e6);
    }
}

#[test]
fn it_converges_on_wires_that_lose_duplicate_and_reorder() {
    let way = Way { loss: 0.1, duplication: 0.2, reordering: 0.1, ..Scenario::default().there };
    for seed in 1..=5 {
        let scenario = Scenario { seed, there: way, back: way, ..Scenario::default() };
        let mut world = scenario.world();
        world.run(7200.0);
        let worst = world.worst(CLIENT, 3600);
        assert!(worst < 500e-6, "seed {seed}: {:.0} us", worst * 1e6);
    }
}

/// The server is heard one way 10 ms later than the other: half of the difference cannot be seen.
#[test]
fn asymmetry_shifts_the_clock_by_half_and_no_more() {
    let back = Way { delay: 10e-3, ..Scenario::default().back };
    let mut world = Scenario { back, ..Scenario::default() }.world();
    world.run(3600.0);
    let error = world.error(CLIENT);
    assert!((error - -4.95e-3).abs() < 300e-6, "{:.0} us", error * 1e6);
}

/// RFC 5905 section 6: the timestamps' era ends on 2036-02-07. Checklist 27.
#[test]
fn the_era_change_passes_unnoticed() {
    let era_change = 2_085_978_496_000_000_000;
    let scenario = Scenario { epoch: era_change - 3_000 * 1_000_000_000, ..Scenario::default() };
    let mut world = scenario.world();
    world.run(2000.0);
    let worst = world.worst(CLIENT, 4000);
    assert!(worst < 300e-6, "{:.0} us", worst * 1e6);
    assert_eq!(world.daemon(CLIENT).steps(), 0);
}

/// RFC 5905 section 13.2: iburst reaches a selectable distance (section 10: four samples) within seconds.
/// Checklist 40.
#[test]
fn iburst_synchronises_within_seconds() {
    let mut world = Scenario { iburst: Burst::On, ..Scenario::default() }.world();
    world.run(10.0);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2);
    assert_eq!(world.daemon(CLIENT).state(server_address(1)), Some(SourceState::Selected));
}

/// RFC 5905 section 11.2.3: stratum plus one, the peer as reference (section 7.3), dispersion at least MINDISP.
/// Checklist 5, 58.
#[test]
fn what_is_served_is_inherited_from_the_server() {
    let mut world = Scenario::default().world();
    let before = world.daemon(CLIENT).snapshot;
    assert_eq!((before.leap, before.stratum), (Leap::Unsynchronised, 0));
    world.run(3600.0);
    let snapshot = world.daemon(CLIENT).snapshot;
    assert_eq!((snapshot.leap, snapshot.stratum), (Leap::None, 2));
    assert_eq!(snapshot.reference_id, ReferenceId([10, 99, 0, 11]));
    assert!((200e-6..1e-3).contains(&snapshot.root_delay.seconds()), "{}", snapshot.root_delay);
    assert!((4.999e-3..50e-3).contains(&snapshot.root_dispersion.seconds()), "{}", snapshot.root_dispersion);
}

/// RFC 5905 section 11.2.3: a step resets all associations, and the client begins as at the start.
#[test]
fn a_large_offset_is_stepped_once_and_measured_anew() {
    let client = ClockSetup { ahead: -30.0, ..Scenario::default().client };
    let mut world = Scenario { client, iburst: Burst::On, ..Scenario::default() }.world();
    world.run(7.5);
    assert_eq!(world.daemon(CLIENT).steps(), 1);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 0, "just stepped, nothing measured since");
    world.run(3600.0);
    let worst = world.worst(CLIENT, 600);
    assert!(worst < 300e-6, "{:.0} us", worst * 1e6);
    assert_eq!(world.daemon(CLIENT).steps(), 1);
}

/// RFC 5905 section 11.2.3: beyond PANICT nothing is done and no time is served; at the start it may be allowed.
#[test]
fn beyond_the_panic_threshold_the_clock_is_left_alone_unless_allowed() {
    let client = ClockSetup { ahead: -86_400.0 * 365.0, ..Scenario::default().client };
    let scenario = Scenario { client, ..Scenario::default() };
    let mut world = scenario.world();
    world.run(3600.0);
    assert!(!world.daemon(CLIENT).has_touched_its_clock());
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 0);

    let discipline = DisciplineOptions { first_step: FirstStep::AnySize, ..DisciplineOptions::default() };
    let options = ControllerOptions { discipline, ..ControllerOptions::default() };
    let mut world = Scenario { options, ..scenario }.world();
    world.run(5400.0);
    assert_eq!(world.daemon(CLIENT).steps(), 1);
    assert!(world.error(CLIENT).abs() < 300e-6);
}

#[test]
fn without_clock_control_it_measures_and_serves_but_touches_nothing() {
    let discipline = DisciplineOptions { steering: Steering::Off, ..DisciplineOptions::default() };
    let options = ControllerOptions { discipline, ..ControllerOptions::default() };
    let client = ClockSetup { ahead: 2e-3, fast_ppm: 0.0, wander: 0.0 };
    let mut world = Scenario { options, client, ..Scenario::default() }.world();
    world.run(3600.0);
    let daemon = world.daemon(CLIENT);
    assert!(!daemon.has_touched_its_clock());
    assert_eq!(daemon.snapshot.stratum, 2);
    assert!(
        daemon.snapshot.root_dispersion.seconds() > 2e-3,
        "its own offset is part of what it may be wrong by"
    );
    assert!((daemon.controller.system().offset.seconds() + 2e-3).abs() < 300e-6);
}

/// RFC 5905 section 10: a silent server becomes unfit; its leap and stratum are kept, the distance grows.
#[test]
fn a_silent_server_loses_its_client_and_finds_it_again() {
    let mut world = Scenario { poll: (6, 6), ..Scenario::default() }.world();
    world.run(3600.0);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2);
    world.server(1).fault = Some((Fault::Silence, Placement::Instead));
    let mut waited = 0;
    while world.daemon(CLIENT).snapshot.stratum != 0 {
        world.run(1.0);
        waited += 1;
        assert!(waited < 1000, "still synchronised");
    }
    assert!(waited > 190, "not before three polls were in vain, but after {waited} s");
    world.run(600.0);
    assert_eq!(world.daemon(CLIENT).state(server_address(1)), Some(SourceState::Unreachable));
    let association = world.daemon(CLIENT).controller.associations().next().unwrap();
    assert_eq!(association.peer.map(|peer| peer.stratum), Some(1), "as it last said");
    world.server(1).fault = None;
    world.run(1200.0);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2);
    assert!(world.error(CLIENT).abs() < 1e-3);
}

/// RFC 5905 section 13.2: an unreachable server is polled less and less often.
#[test]
fn a_server_that_never_answers_is_asked_less_and_less_often() {
    let mut world = Scenario { poll: (4, 10), ..Scenario::default() }.world();
    world.server(1).fault = Some((Fault::Silence, Placement::Instead));
    world.run(40_000.0);
    let gaps: Vec<i64> =
        world.server(1).requests.windows(2).map(|pair| (pair[1] - pair[0]) / 1_000_000_000).collect();
    assert!(gaps[..20].iter().all(|gap| (16..=17).contains(gap)), "{gaps:?}");
    assert!(gaps.last().is_some_and(|gap| (1024..=1057).contains(gap)), "{gaps:?}");
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 0);
    assert!(!world.daemon(CLIENT).has_touched_its_clock());
}

/// RFC 5905 section 11.3: the poll interval grows while the offset is small against the jitter.
#[test]
fn the_poll_interval_grows_when_all_is_calm() {
    let mut world = Scenario { poll: (4, 8), ..Scenario::default() }.world();
    world.run(36_000.0);
    let requests = world.server(1).requests.clone();
    let last_gap = (requests[requests.len() - 1] - requests[requests.len() - 2]) / 1_000_000_000;
    assert!((256..=264).contains(&last_gap), "{last_gap} s");
}

/// RFC 9109 section 4: a random source port for each exchange, closed after it. Checklist 94, 95.
#[test]
fn each_exchange_has_its_own_random_port_which_is_closed_after_it() {
    let mut world = Scenario { poll: (4, 4), ..Scenario::default() }.world();
    world.run(1600.0);
    let daemon = world.daemon(CLIENT);
    assert_eq!(daemon.open_sockets(), 0, "between two polls");
    let ports = daemon.ports_used();
    let distinct: BTreeSet<u16> = ports.iter().copied().collect();
    assert!(ports.len() > 90 && distinct.len() > ports.len() - 5, "{} of {}", distinct.len(), ports.len());
    assert!(!distinct.contains(&123));
    world.server(1).fault = Some((Fault::Silence, Placement::Instead));
    let mut longest = 0;
    let mut open = 0;
    for _ in 0..200 {
        world.run(0.5);
        open = if world.daemon(CLIENT).open_sockets() == 0 { 0 } else { open + 1 };
        longest = longest.max(open);
    }
    assert!((5..=7).contains(&longest), "open for {longest} half seconds without an answer");
}

/// Where `version = 3` says so, and the answers are of that version, too.
#[test]
fn a_source_is_spoken_to_in_the_version_that_is_configured() {
    for (version, number) in [(Version::V3, 3), (Version::V4, 4)] {
        let scenario = Scenario { version, poll: (4, 4), ..Scenario::default() };
        let mut world = scenario.world();
        world.tap = Some(Vec::new());
        world.run(300.0);
        let sent = world.tap.take().unwrap();
        assert!(sent.len() > 10);
        for (_, datagram) in sent {
            assert_eq!(datagram.payload[0] >> 3 & 7, number, "{datagram:?}");
        }
        assert_eq!(world.daemon(CLIENT).state(server_address(1)), Some(SourceState::Selected));
    }
}

/// The server's clock repeats the second as ours does, whatever is under way at that moment.
#[test]
fn a_leap_second_moves_nothing() {
    for late in [0.0, 0.02, 0.05, 7.0] {
        let way = Way { delay: 0.05, ..Way::IDEAL };
        let mut world = Scenario { poll: (4, 4), there: way, back: way, ..Scenario::default() }.world();
        world.run(3600.0);
        while world.daemon(CLIENT).open_sockets() == 0 {
            world.run(0.005);
        }
        world.run(late);
        let (now, by) = (world.now, NtpDuration::from_seconds(-1));
        world.daemon(CLIENT).clock.step(now, by);
        world.server(1).clock.step(now, by);
        world.tell(CLIENT, timeball::control::Event::ClockLeapt);
        assert_eq!(world.daemon(CLIENT).state(server_address(1)), Some(SourceState::Selected));
        assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2, "what is served is as good as before");
        for _ in 0..60 {
            world.run(10.0);
            let error = world.error(CLIENT) + 1.0;
            assert!(error.abs() < 500e-6, "{late} s after a question: {error}");
            assert_eq!(world.daemon(CLIENT).state(server_address(1)), Some(SourceState::Selected));
        }
    }
}

#[test]
fn a_step_by_somebody_else_is_measured_away() {
    let mut world = Scenario { poll: (4, 6), ..Scenario::default() }.world();
    world.run(3600.0);
    let now = world.now;
    let by = NtpDuration::from_nanoseconds(60_000_000);
    world.daemon(CLIENT).clock.step(now, by);
    world.tell(CLIENT, timeball::control::Event::ClockStepped(by));
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 0, "what was served is void");
    world.run(1200.0);
    assert!(world.error(CLIENT).abs() < 500e-6, "{}", world.error(CLIENT));
    assert_eq!(world.daemon(CLIENT).state(server_address(1)), Some(SourceState::Selected));
}

/// chrony's `local`: while no source is selected, what the shell gives is served, and nothing else when one is.
#[test]
fn the_fallback_is_served_until_a_source_is_selected_and_after() {
    let mut world = Scenario { poll: (4, 6), ..Scenario::default() }.world();
    let local = |stratum| SystemSnapshot {
        leap: Leap::None,
        stratum,
        ..SystemSnapshot::unsynchronised(Log2Seconds(-20))
    };
    world.tell(CLIENT, timeball::control::Event::Reference(local(10)));
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 10);
    world.tell(CLIENT, timeball::control::Event::Reference(local(11)));
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 11);
    world.run(600.0);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2);
    world.tell(CLIENT, timeball::control::Event::Reference(local(12)));
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 2, "a source is better than any fallback");
    world.server(1).fault = Some((Fault::Silence, Placement::Instead));
    world.run(3600.0);
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 12);
    world.tell(CLIENT, timeball::control::Event::Reference(SystemSnapshot::unsynchronised(Log2Seconds(-20))));
    assert_eq!(world.daemon(CLIENT).snapshot.stratum, 0);
}

/// One wake-up, one transmission at most, and a handful of actions.
#[test]
fn a_wake_up_has_few_consequences() {
    let scenario = Scenario { servers: vec![0.0; 40], iburst: Burst::On, ..Scenario::default() };
    let mut world = scenario.world();
    world.run(3600.0);
    let daemon = world.daemon(CLIENT);
    assert_eq!(daemon.transmits_max, 1);
    assert_eq!(daemon.address, CLIENT_ADDRESS);
    assert!(daemon.actions_max <= 60, "{}", daemon.actions_max);
    assert_eq!(scenario.epoch, EPOCH);
}
