//! Which configured source is which, when the configuration was edited or the interfaces are others.
//!
//! Owns: their ids. Does not own: what a source is, and what becomes of it.
//!
//! The one idea a newcomer lacks: an association lives as long as its source's id stays with the same configuration. So an id
//! must follow its source wherever that stands in the file, and nobody else may ever have it.

use super::configured::Configured;
use crate::control::source::SourceId;
use std::collections::{BTreeMap, VecDeque};

/// Gives each source that is wanted, in their order, the id of the one before that is the same, or else of one with the same
/// name and mode, or else a new one, after `last`. Also those of before that nobody wants any more.
pub(super) fn assign(
    before: &BTreeMap<SourceId, Configured>,
    wanted: Vec<Configured>,
    last: &mut u32,
) -> (Vec<(SourceId, Configured)>, Vec<SourceId>) {
    let mut left: BTreeMap<_, VecDeque<SourceId>> = BTreeMap::new();
    for (id, configured) in before {
        left.entry(configured.identity()).or_default().push_back(*id);
    }
    let mut ids = vec![None; wanted.len()];
    for is_exact in [true, false] {
        for (id, wanted) in ids.iter_mut().zip(&wanted).filter(|(id, _)| id.is_none()) {
            let Some(candidates) = left.get_mut(&wanted.identity()) else { continue };
            let fits = |id: &SourceId| !is_exact || before.get(id) == Some(wanted);
            let place = candidates.iter().position(fits);
            *id = place.and_then(|place| candidates.remove(place));
        }
    }
    let gone = left.into_values().flatten().collect();
    let mut new = || {
        *last += 1;
        SourceId(*last)
    };
    let named = ids.into_iter().zip(wanted).map(|(id, wanted)| (id.unwrap_or_else(&mut new), wanted));
    (named.collect(), gone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::InstanceId;
    use crate::control::source::SourceConfiguration;

    fn configured(name: &str, poll: i8) -> Configured {
        let mut configuration = SourceConfiguration::server([192, 0, 2, 1].into());
        configuration.poll.poll_min.0 = poll;
        Configured {
            name: name.to_owned(),
            instance: configuration.instance,
            mode: "server",
            configuration: Ok(configuration),
        }
    }

    /// Names and polls before and after; the ids after, and those that are gone.
    fn ids(before: &[(&str, i8)], after: &[(&str, i8)]) -> (Vec<u32>, Vec<u32>) {
        let sources = |of: &[(&str, i8)]| of.iter().map(|(name, poll)| configured(name, *poll)).collect();
        let mut last = 0;
        let (before, _) = assign(&BTreeMap::new(), sources(before), &mut last);
        let (after, gone) = assign(&before.into_iter().collect(), sources(after), &mut last);
        (after.iter().map(|(id, _)| id.0).collect(), gone.iter().map(|id| id.0).collect())
    }

    #[test]
    fn an_id_follows_its_source_and_is_given_to_nobody_else() {
        let before = [("a", 6), ("b", 6), ("c", 6)];
        assert_eq!(ids(&before, &before), (vec![1, 2, 3], vec![]));
        assert_eq!(ids(&before, &[("c", 6), ("d", 6), ("a", 6)]), (vec![3, 4, 1], vec![2]));
        assert_eq!(ids(&before, &[]), (vec![], vec![1, 2, 3]));
    }

    #[test]
    fn one_name_in_two_instances_is_two_sources() {
        let of = |instance| Configured { instance, ..configured("a", 6) };
        let (red, blue) = (of(InstanceId(0)), of(InstanceId(1)));
        let mut last = 0;
        let (before, _) = assign(&BTreeMap::new(), vec![red.clone(), blue.clone()], &mut last);
        let (after, gone) = assign(&before.into_iter().collect(), vec![blue], &mut last);
        assert_eq!((after[0].0, gone), (SourceId(2), vec![SourceId(1)]));
    }

    #[test]
    fn a_source_that_was_changed_is_the_one_of_its_name() {
        assert_eq!(ids(&[("a", 6), ("b", 6)], &[("b", 7), ("a", 6)]), (vec![2, 1], vec![]));
        // Of two with one name, the one that stays as it was is not disturbed by the other.
        assert_eq!(ids(&[("a", 6), ("a", 7)], &[("a", 8), ("a", 6)]), (vec![2, 1], vec![]));
    }
}
