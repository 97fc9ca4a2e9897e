//! Fields of candidates by chance, and what must hold for every one.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Anything a candidate can be, mostly reasonable, so that all stages are reached.
fn candidate() -> impl Strategy<Value = Candidate> {
    let length = |usual: std::ops::Range<i64>| prop_oneof![8 => usual.prop_map(NtpDuration::from_nanoseconds), 1 => any::<i64>().prop_map(NtpDuration::from_bits)];
    let estimate = (
        length(-30_000_000..30_000_000),
        length(1..50_000_000),
        length(1..30_000_000),
        length(1..5_000_000),
        prop_oneof![6 => 4_u8..9, 1 => 1_u8..4],
        prop_oneof![6 => 90_i64..100, 1 => any::<i64>()],
    );
    let wishes = (
        proptest::array::uniform4(proptest::bool::weighted(0.15)),
        prop_oneof![6 => Just(NtpDuration::ZERO), 1 => any::<i64>().prop_map(NtpDuration::from_bits)],
        proptest::option::weighted(0.1, any::<i64>().prop_map(NtpDuration::from_bits)),
    );
    let rest = (
        prop_oneof![9 => 1_u8..4, 1 => any::<u8>()],
        prop_oneof![9 => 0_u32..4000, 1 => any::<u32>()],
        prop_oneof![9 => 0_u32..2000, 1 => any::<u32>()],
        prop_oneof![9 => 1_u8..=255, 1 => Just(0_u8)],
        prop_oneof![9 => 4_i8..11, 1 => any::<i8>()],
    );
    (estimate, wishes, rest).prop_map(|(estimate, wishes, rest)| Candidate {
        id: SourceId(0),
        estimate: Some(Estimate {
            offset: estimate.0,
            delay: estimate.1,
            dispersion: estimate.2,
            jitter: estimate.3,
            samples: estimate.4,
            time: Timestamp::from_nanoseconds(estimate.5.saturating_mul(1_000_000_000)),
            as_of: Timestamp::from_nanoseconds(estimate.5.saturating_mul(1_000_000_000)),
            is_new: true,
        }),
        stratum: rest.0,
        leap: Leap::None,
        root_delay: NtpShort::from_bits(rest.1),
        root_dispersion: NtpShort::from_bits(rest.2),
        reach: rest.3,
        follows: Loop::None,
        poll: Log2Seconds(rest.4),
        options: SourceOptions {
            prefer: wishes.0[0],
            trust: wishes.0[1],
            require: wishes.0[2] && wishes.0[0],
            noselect: wishes.0[3],
            offset: wishes.1,
            maximum_distance: wishes.2,
            maximum_delay: None,
            maximum_jitter: None,
        },
        speaks: rest.3 != 0,
    })
}

fn field() -> impl Strategy<Value = Vec<Candidate>> {
    proptest::collection::vec(candidate(), 0..20).prop_map(|mut field| {
        field.iter_mut().zip(0..).for_each(|(candidate, id)| candidate.id = SourceId(id));
        field
    })
}

proptest! {
    #[test]
    fn survivors_are_truechimers_and_the_combined_offset_lies_in_the_intersection(field in field(), peer in 0_u32..20) {
        let options = Options { system_peer: Some(SourceId(peer)), ..Options::default() };
        let selection = select(&field, &options, at(100));
        prop_assert_eq!(selection.states.len(), field.len());
        prop_assert_eq!(selection.system.is_some(), !selection.survivors.is_empty());
        if let Some(system) = selection.system {
            let interval = selection.interval.expect("no system variables without a majority");
            prop_assert!(interval.contains(system.offset));
            prop_assert!(system.jitter >= NtpDuration::ZERO);
            for id in &selection.survivors {
                let candidate = &field[id.0 as usize];
                let offset = candidate.estimate.unwrap().offset + candidate.options.offset;
                prop_assert!(interval.contains(offset));
            }
        }
        for (id, state) in &selection.states {
            prop_assert_eq!(state.is_used(), selection.survivors.contains(id));
            prop_assert_eq!(
                matches!(state, SourceState::Selected),
                selection.system.is_some_and(|system| system.peer == *id)
            );
        }
    }

    /// More than half of those with a vote have their offset in the interval, and no two disjoint
    /// majorities exist: any other answer would need one of them.
    #[test]
    fn the_interval_holds_a_majority_of_the_votes(field in field()) {
        let selection = run(&field);
        if let Some(interval) = selection.interval {
            let survivors: Vec<Survivor> = field.iter().enumerate()
                .filter_map(|(place, candidate)| candidate.fit(place, &Options::default(), at(100)).ok()).collect();
            let is_trusting = survivors.iter().any(|survivor| field[survivor.place].options.trust);
            let votes: Vec<_> =
                survivors.iter().filter(|survivor| !is_trusting || field[survivor.place].options.trust).collect();
            let inside = votes.iter().filter(|survivor| interval.contains(survivor.offset)).count();
            prop_assert!(2 * inside > votes.len(), "{inside} of {}", votes.len());
        }
    }

    #[test]
    fn the_order_of_the_candidates_does_not_matter(
        (field, shuffled) in field().prop_flat_map(|field| (Just(field.clone()), Just(field).prop_shuffle()))
    ) {
        let (one, other) = (run(&field), run(&shuffled));
        let by_id = |selection: &Selection| selection.states.iter().copied().collect::<BTreeMap<_, _>>();
        prop_assert_eq!(by_id(&one), by_id(&other));
        prop_assert_eq!((one.survivors, one.interval, one.system), (other.survivors, other.interval, other.system));
    }
}
