//! The operator's options, one at a time.

use super::*;

#[test]
fn the_operators_limits() {
    let delay = verdict(|it| it.options.maximum_delay = Some(milliseconds(9)));
    assert_eq!(delay, SourceState::DelayTooLong { delay: milliseconds(10), limit: milliseconds(9) });
    let jitter = verdict(|it| it.options.maximum_jitter = Some(NtpDuration::from_nanoseconds(900_000)));
    assert_eq!(jitter.name(), "too-variable");
    assert_eq!(verdict(|it| it.options.maximum_distance = Some(milliseconds(19))).name(), "too-distant");
    let allowed = verdict(|it| {
        it.options.maximum_delay = Some(milliseconds(10));
        it.options.maximum_jitter = Some(milliseconds(1));
        it.options.maximum_distance = Some(milliseconds(21));
    });
    assert_eq!(allowed, SourceState::Selected);
    let far = |it: &mut Candidate| estimate(it).dispersion = milliseconds(1500);
    assert_eq!(verdict(far).name(), "too-distant");
    let wide = verdict(|it| {
        far(it);
        it.options.maximum_distance = Some(NtpDuration::from_seconds(3));
    });
    assert_eq!(wide, SourceState::Selected);
}

#[test]
fn the_offset_correction_is_added() {
    let corrected = with(source(1, 3), |it| it.options.offset = milliseconds(-1));
    assert_eq!(run(&[corrected]).system.unwrap().offset, milliseconds(2));
}

/// Checklist 54.
#[test]
fn minimum_sources_are_respected() {
    let options = Options { minimum_sources: 3, ..Options::default() };
    let field = [source(1, 0), source(2, 1), source(3, 500), source(4, 2)];
    assert!(select(&field, &options, at(100)).system.is_some());
    let too_few = select(&field[..3], &options, at(100));
    assert_eq!(names(&too_few), ["waiting-for-sources", "waiting-for-sources", "falseticker"]);
    assert_eq!(too_few.states[0].1, SourceState::WaitingForSources { agreeing: 2, minimum: 3 });
    assert_eq!(too_few.system, None);
}

#[test]
fn prefer_leaves_only_the_preferred_truechimers() {
    let prefer = |id, offset| with(source(id, offset), |it| it.options.prefer = true);
    let selection = run(&[source(1, 0), prefer(2, 5), source(3, 1)]);
    assert_eq!(names(&selection), ["not-preferred", "selected", "not-preferred"]);
    assert_eq!(selection.system.unwrap().offset, milliseconds(5));
    let both = run(&[prefer(1, 0), prefer(2, 4), source(3, 1)]);
    assert_eq!(signs(&both), "*+-");
    let false_one = run(&[source(1, 0), prefer(2, 500), source(3, 1)]);
    assert_eq!(signs(&false_one), "*x+", "a preferred falseticker is still false");
}

#[test]
fn trust_alone_votes() {
    let trust = |id, offset| with(source(id, offset), |it| it.options.trust = true);
    // Outvoted three to one, but the one is trusted.
    let selection = run(&[source(1, 500), source(2, 501), source(3, 502), trust(4, 0)]);
    assert_eq!(signs(&selection), "xxx*");
    // Inside the trusted interval only with all of the own: -20 to 20 ms holds 1 +- 12 ms, not 1 +- 20 ms.
    let tight = with(source(1, 1), |it| estimate(it).dispersion = NtpDuration::from_bits(1));
    let tight = with(tight, |it| it.root_delay = NtpShort::default());
    let selection = run(&[tight, source(2, 1), trust(3, 0)]);
    assert_eq!(names(&selection), ["selected", "untrusted", "combined"]);
    // Only another trusted source makes a trusted one false, and it takes a majority.
    assert_eq!(names(&run(&[trust(1, 0), trust(2, 500), source(3, 0)])), ["no-majority"; 3]);
    let outvoted = run(&[trust(1, 0), trust(2, 1), trust(3, 500), source(4, 500), source(5, 500)]);
    assert_eq!(signs(&outvoted), "*+xxx");
}

#[test]
fn an_unusable_trusted_source_leaves_the_vote_to_the_others() {
    let gone = with(source(3, 0), |it| {
        it.options.trust = true;
        it.reach = 0;
    });
    assert_eq!(signs(&run(&[source(1, 0), source(2, 1), gone])), "*+?");
}

#[test]
fn require_holds_the_clock_until_a_required_source_agrees() {
    let require = |id, offset| with(source(id, offset), |it| it.options.require = true);
    assert_eq!(signs(&run(&[source(1, 0), source(2, 1), require(3, 1)])), "*++");
    let wrong = run(&[source(1, 0), source(2, 1), require(3, 500)]);
    assert_eq!(names(&wrong), ["waiting-for-required", "waiting-for-required", "falseticker"]);
    assert_eq!(wrong.system, None);
    let gone = with(require(3, 0), |it| it.reach = 0);
    assert_eq!(names(&run(&[source(1, 0), gone])), ["waiting-for-required", "unreachable"]);
    assert_eq!(signs(&run(&[source(1, 0), gone, require(4, 0)])), "*?+", "one of them is enough");
}

#[test]
fn a_watched_source_has_no_say() {
    let watched = |id, offset| with(source(id, offset), |it| it.options.noselect = true);
    let selection = run(&[source(1, 0), watched(2, 500), watched(3, 501)]);
    assert_eq!(names(&selection), ["selected", "not-selectable", "not-selectable"]);
}
