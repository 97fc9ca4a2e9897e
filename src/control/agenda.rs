//! What is due when.
//!
//! Owns: one time for each thing that waits for one. Does not own: what happens then.

use super::event::AssociationId;
use super::source::SourceId;
use crate::time::{Monotonic, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// What waits for its time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Due {
    /// The clock's slew ends.
    Slew,
    /// A source's name is to be looked up.
    Lookup(SourceId),
    /// An association is to be polled, or its socket closed.
    Association(AssociationId),
}

/// The agenda. At most one entry for each [`Due`], so it is as bounded as they are.
#[derive(Clone, Debug, Default)]
pub struct Agenda {
    by_time: BTreeSet<(Timestamp<Monotonic>, Due)>,
    times: BTreeMap<Due, Timestamp<Monotonic>>,
}

impl Agenda {
    /// Sets or moves the time of something; `None`: it waits no more.
    pub fn set(&mut self, due: Due, time: Option<Timestamp<Monotonic>>) {
        let before = match time {
            Some(time) => self.times.insert(due, time),
            None => self.times.remove(&due),
        };
        if let Some(before) = before {
            self.by_time.remove(&(before, due));
        }
        if let Some(time) = time {
            self.by_time.insert((time, due));
        }
    }

    /// Does this wait for a time?
    #[must_use]
    pub fn has(&self, due: Due) -> bool {
        self.times.contains_key(&due)
    }

    /// The earliest time.
    #[must_use]
    pub fn first(&self) -> Option<Timestamp<Monotonic>> {
        self.by_time.first().map(|(time, _)| *time)
    }

    /// Takes the earliest entry out, if its time has come.
    pub fn take(&mut self, now: Timestamp<Monotonic>) -> Option<Due> {
        let &(time, due) = self.by_time.first()?;
        if time > now {
            return None;
        }
        self.set(due, None);
        Some(due)
    }

    /// How many things wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Nothing waits?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: i64) -> Timestamp<Monotonic> {
        Timestamp::from_nanoseconds(seconds * 1_000_000_000)
    }

    #[test]
    fn the_earliest_comes_first_and_only_once() {
        let mut agenda = Agenda::default();
        let (one, other) = (Due::Association(AssociationId(1)), Due::Lookup(SourceId(1)));
        agenda.set(one, Some(at(5)));
        agenda.set(other, Some(at(3)));
        agenda.set(Due::Slew, Some(at(4)));
        agenda.set(one, Some(at(2)));
        agenda.set(Due::Slew, None);
        assert_eq!((agenda.len(), agenda.first()), (2, Some(at(2))));
        assert_eq!(agenda.take(at(1)), None);
        assert_eq!(agenda.take(at(9)), Some(one));
        assert_eq!(agenda.take(at(9)), Some(other));
        assert_eq!(agenda.take(at(9)), None);
        assert!(agenda.is_empty() && !agenda.has(one));
    }
}
