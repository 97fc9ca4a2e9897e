//! RFC 5905 section 11.2 as a whole, one rule at a time.

use super::*;

fn at(seconds: i64) -> Timestamp<Monotonic> {
    Timestamp::from_nanoseconds(seconds * 1_000_000_000)
}

const fn milliseconds(count: i64) -> NtpDuration {
    NtpDuration::from_nanoseconds(count * 1_000_000)
}

/// A good stratum 2 source, sampled at 100 s: root distance 20 ms (half of 10 + 10 ms, 4 + 5 ms, 1 ms).
fn source(id: u32, offset_milliseconds: i64) -> Candidate {
    let short = |count| NtpShort::from_duration_rounded_up(milliseconds(count));
    Candidate {
        id: SourceId(id),
        estimate: Some(Estimate {
            offset: milliseconds(offset_milliseconds),
            delay: milliseconds(10),
            dispersion: milliseconds(5),
            jitter: milliseconds(1),
            time: at(100),
            is_new: true,
            samples: 8,
            as_of: at(100),
        }),
        stratum: 2,
        leap: Leap::None,
        root_delay: short(10),
        root_dispersion: short(4),
        reach: 0o377,
        follows: Loop::None,
        poll: Log2Seconds(6),
        options: SourceOptions::default(),
        speaks: true,
    }
}

/// The same source, changed.
fn with(mut candidate: Candidate, change: impl FnOnce(&mut Candidate)) -> Candidate {
    change(&mut candidate);
    candidate
}

fn estimate(candidate: &mut Candidate) -> &mut Estimate {
    candidate.estimate.as_mut().expect("source() has one")
}

fn run(candidates: &[Candidate]) -> Selection {
    select(candidates, &Options::default(), at(100))
}

/// Names of the states, in the order given.
fn names(selection: &Selection) -> Vec<&'static str> {
    selection.states.iter().map(|(_, state)| state.name()).collect()
}

fn signs(selection: &Selection) -> String {
    selection.states.iter().map(|(_, state)| state.sign()).collect()
}

/// Why this source does not get on, alone.
fn verdict(change: impl FnOnce(&mut Candidate)) -> SourceState {
    run(&[with(source(1, 0), change)]).states[0].1
}

fn near(duration: NtpDuration, seconds: f64) -> bool {
    (duration.seconds() - seconds).abs() < 1e-4
}

/// A.5.5.2: max(MINDISP, 10 + 10) / 2 + 4 + 5 + 1 = 20 ms.
#[test]
fn root_distance_by_hand() {
    let distance = source(1, 0).root_distance(at(100)).unwrap();
    assert!(near(distance, 0.020), "{distance}");
    let close = with(source(1, 0), |it| {
        it.root_delay = NtpShort::default();
        estimate(it).delay = NtpDuration::from_nanoseconds(50_000);
    });
    let distance = close.root_distance(at(100)).unwrap();
    assert!(near(distance, 0.0125), "MINDISP / 2 + 4 + 5 + 1 ms, not {distance}");
}

#[test]
fn root_distance_by_then_has_grown_at_phi() {
    let candidate = source(1, 0);
    let growth = candidate.root_distance(at(10_100)).unwrap() - candidate.root_distance(at(100)).unwrap();
    assert!((0.15..0.150_01).contains(&growth.seconds()), "{growth}");
}

#[test]
fn one_good_source_is_selected() {
    let selection = run(&[source(7, 3)]);
    assert_eq!(names(&selection), ["selected"]);
    assert_eq!(selection.survivors, [SourceId(7)]);
    let system = selection.system.unwrap();
    assert_eq!((system.peer, system.offset, system.time), (SourceId(7), milliseconds(3), at(100)));
    assert_eq!(system.jitter, milliseconds(1));
}

#[test]
fn no_source_is_no_error() {
    let selection = run(&[]);
    assert_eq!((selection.states.len(), selection.system, selection.interval), (0, None, None));
}

/// Checklist 26 and 59, accept() of A.5.5.3, each test alone, in the order of the ladder.
#[test]
fn each_test_of_fitness_has_its_state() {
    assert_eq!(verdict(|it| it.reach = 0), SourceState::Unreachable);
    let mute = |speaks| {
        verdict(move |it| (it.reach, it.leap, it.stratum, it.speaks) = (0, Leap::Unsynchronised, 0, speaks))
    };
    assert_eq!(mute(false), SourceState::Unreachable);
    assert_eq!(mute(true), SourceState::Unsynchronised, "it says so itself");
    assert_eq!(verdict(|it| it.leap = Leap::Unsynchronised), SourceState::Unsynchronised);
    assert_eq!(verdict(|it| it.stratum = 16), SourceState::BadStratum { stratum: 16 });
    assert_eq!(verdict(|it| it.stratum = 0), SourceState::BadStratum { stratum: 0 });
    assert_eq!(verdict(|it| it.stratum = 15), SourceState::Selected);
    assert_eq!(verdict(|it| it.follows = Loop::FollowsUs), SourceState::FollowsUs);
    assert_eq!(verdict(|it| it.follows = Loop::FollowsSystemPeer), SourceState::FollowsSystemPeer);
    assert_eq!(verdict(|it| it.estimate = None), SourceState::Measuring { samples: 0 });
    let measuring = verdict(|it| {
        estimate(it).samples = 3;
        estimate(it).dispersion = milliseconds(1940);
    });
    assert_eq!(measuring, SourceState::Measuring { samples: 3 });
    assert_eq!(verdict(|it| it.options.noselect = true), SourceState::NotSelectable);
}

#[test]
fn the_first_test_that_fails_is_the_one_shown() {
    let hopeless = verdict(|it| {
        it.options.noselect = true;
        it.stratum = 16;
        it.leap = Leap::Unsynchronised;
    });
    assert_eq!(hopeless, SourceState::Unsynchronised);
}

/// A.5.5.3: MAXDIST + PHI * 2^poll. At poll 10 that is 1 s + 15.4 ms.
#[test]
fn distance_may_exceed_maxdist_by_the_drift_of_one_poll() {
    let root_distance = |dispersion, poll| {
        verdict(move |it| {
            estimate(it).dispersion = milliseconds(dispersion);
            it.poll = Log2Seconds(poll);
        })
    };
    // Without the dispersion it is 15 ms.
    assert_eq!(root_distance(995, 10), SourceState::Selected);
    let SourceState::TooDistant { distance, limit } = root_distance(995, 6) else {
        panic!("1.01 s is too far")
    };
    assert!(near(distance, 1.010) && near(limit, 1.000_96), "{distance} {limit}");
    assert_eq!(root_distance(1005, 10).name(), "too-distant");
    assert_eq!(root_distance(5000, 127).name(), "too-distant", "a poll beyond 17 allows no more than 17");
}

/// Checklist 59.
#[test]
fn a_silent_server_leaves_by_distance() {
    let silent = [source(1, 0)];
    assert!(select(&silent, &Options::default(), at(60_000)).system.is_some());
    let gone = select(&silent, &Options::default(), at(70_000));
    assert_eq!(names(&gone), ["too-distant"]);
}

/// Checklist 52.
#[test]
fn falsetickers_are_found_up_to_half_and_named() {
    let one = run(&[source(1, 0), source(2, 1), source(3, -1), source(4, 2), source(5, 500)]);
    assert_eq!(signs(&one).matches('x').count(), 1);
    let SourceState::Falseticker { offset, low, high } = one.states[4].1 else { panic!("{:?}", one.states) };
    assert_eq!(offset, milliseconds(500));
    assert_eq!(one.interval, Some(Interval { low, high }));
    let two = run(&[source(1, 0), source(2, 1), source(3, -1), source(4, -700), source(5, 500)]);
    assert_eq!(names(&two)[3..], ["falseticker", "falseticker"]);
    assert!(two.system.is_some());
}

/// Checklist 53: f must be less than m / 2.
#[test]
fn no_majority_leaves_the_clock_alone() {
    for (field, agreeing) in [
        (vec![source(1, 0), source(2, 500)], 1),
        (vec![source(1, 0), source(2, 1), source(3, 500), source(4, 501)], 2),
        (vec![source(1, 0), source(2, 1), source(3, 500), source(4, -500), source(5, 900)], 2),
    ] {
        let selection = run(&field);
        assert_eq!((selection.system, selection.interval), (None, None));
        assert_eq!(selection.survivors, []);
        let sources = field.len() as u32;
        assert!(
            selection.states.iter().all(|state| state.1 == SourceState::NoMajority { agreeing, sources })
        );
    }
}

/// Checklist 55: merit is stratum * MAXDIST + root distance.
#[test]
fn stratum_comes_before_distance_and_distance_before_id() {
    let low = with(source(9, 0), |it| {
        it.stratum = 1;
        estimate(it).dispersion = milliseconds(600);
    });
    let near = with(source(5, 0), |it| estimate(it).dispersion = milliseconds(1));
    let selection = run(&[source(4, 0), source(3, 0), near, low]);
    let ids = [9, 5, 3, 4].map(SourceId);
    assert_eq!(selection.survivors, ids);
    assert_eq!(signs(&selection), "+++*");
}

#[test]
fn outliers_of_the_truechimers_are_not_combined() {
    let selection = run(&[source(1, 0), source(2, 1), source(3, 0), source(4, 1), source(5, 9)]);
    assert_eq!(names(&selection)[4], "outlier");
    assert!(matches!(selection.states[4].1, SourceState::Outlier { jitter } if near(jitter, 0.008_5)));
}

/// Checklist 56, equal weights: the mean of -2, 0 and 2 ms; PSI_s = sqrt((2^2 + 4^2) / 2), PSI_p = 1 ms.
#[test]
fn the_survivors_are_combined() {
    let system = run(&[source(1, -2), source(2, 0), source(3, 2)]).system.unwrap();
    assert!(near(system.offset, 0.0), "{}", system.offset);
    assert!(near(system.jitter, 11.0_f64.sqrt() / 1e3), "{}", system.jitter);
}

/// A.5.5.1 "don't do a clock hop", within [`HOP_DISTANCES`].
#[test]
fn the_system_peer_stays_while_it_is_about_as_good() {
    let options = Options { system_peer: Some(SourceId(2)), ..Options::default() };
    let peer = |old: Candidate| select(&[source(1, 0), old], &options, at(100)).system.unwrap().peer.0;
    let further = |dispersion| with(source(2, 0), |it| estimate(it).dispersion = milliseconds(dispersion));
    assert_eq!(
        run(&[source(1, 0), further(20)]).system.unwrap().peer.0,
        1,
        "the best, if there is no old one"
    );
    assert_eq!(peer(further(20)), 2, "35 ms against 20 ms");
    assert_eq!(peer(further(30)), 1, "45 ms against 20 ms");
    assert_eq!(peer(with(source(2, 0), |it| it.stratum = 3)), 1, "another stratum");
    assert_eq!(peer(with(source(2, 0), |it| it.reach = 0)), 1, "gone");
}

/// Five sources start together, the false one answers first: without the wait it would be a majority of one.
#[test]
fn the_first_selection_waits_for_those_one_sample_behind() {
    let samples = |id, offset, samples| {
        with(source(id, offset), |it| {
            estimate(it).samples = samples;
            estimate(it).dispersion = if samples < 4 { milliseconds(1900) } else { milliseconds(900) };
        })
    };
    let first = run(&[samples(1, 5000, 4), samples(2, 0, 3), samples(3, 0, 3)]);
    assert_eq!(names(&first), ["waiting-for-measurements", "measuring", "measuring"]);
    assert_eq!(first.system, None);
    let then = run(&[samples(1, 5000, 4), samples(2, 0, 4), samples(3, 0, 4)]);
    assert_eq!(signs(&then), "x*+");
    let stuck = run(&[samples(1, 5, 5), samples(2, 0, 3)]);
    assert_eq!(names(&stuck), ["selected", "measuring"], "it waits for one sample, not for ever");
    let running = Options { system_peer: Some(SourceId(1)), ..Options::default() };
    let later = select(&[samples(1, 5, 4), samples(2, 0, 3)], &running, at(100));
    assert_eq!(names(&later), ["selected", "measuring"], "only before the first selection");
}

#[test]
fn a_thousand_sources_half_of_them_false_are_judged() {
    let field: Vec<Candidate> = (0..1000)
        .map(|id| source(id, if id % 2 == 0 && id > 0 { 500 + i64::from(id) } else { i64::from(id % 7) }))
        .collect();
    let selection = run(&field);
    let count = |name| names(&selection).iter().filter(|it| **it == name).count();
    assert_eq!((count("falseticker"), count("selected")), (499, 1));
    assert_eq!(count("outlier") + count("combined"), 500);
}

#[path = "select_chance_tests.rs"]
mod chance;
#[path = "select_options_tests.rs"]
mod options;
