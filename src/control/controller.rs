//! The controller: events in, actions out.
//!
//! Owns: the tables of sources and associations, the agenda, the system variables, and the order in which things
//! happen. Does not own: any algorithm; filter, selection, discipline and the modes are modules of their own.
//!
//! The one idea a newcomer lacks: a wake-up does one thing. Whatever else is due as well has its own wake-up, which
//! is asked for at once. So an event has few consequences, however many sources there are, and between two of them
//! the shell has looked at the sockets.

mod exchange;
mod lookup;
mod peers;
mod search;
mod sources;
mod system;
#[doc(hidden)]
pub mod testing;
mod trust;
mod unasked;

pub use peers::{KEYLESS_PASSIVE_MAX, PASSIVE_MAX, PassivePeers};
pub use sources::{SourceEntry, TurnedAway};
pub use system::System;

use super::action::Action;
use super::agenda::{Agenda, Due};
use super::association::Association;
use super::chance::Chance;
use super::discipline::{Discipline, DisciplineOptions};
use super::event::{AssociationId, Event, InstanceId, Moment, SendHandle, TrustedKeys};
use super::news::News;
use super::packet_checks::FailureCounts;
use super::source::SourceId;
use super::strangers::Budget;
use crate::time::{Log2Seconds, Monotonic, NtpDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// The most configured sources. A thousand is what large sites have; the tables are bounded by it.
pub const SOURCES_MAX: usize = 1024;
/// The most associations: every source once, and as many again for pools and what comes unasked.
pub const ASSOCIATIONS_MAX: usize = 2 * SOURCES_MAX;

/// Stands for the association where there is none; ids begin at 1.
const NOBODY: AssociationId = AssociationId(0);

/// What the configuration says of the whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControllerOptions {
    /// The precision of our clock.
    pub precision: Log2Seconds,
    /// CMIN of RFC 5905 section 11.1: how many sources must agree, 1 and up.
    pub minimum_sources: u32,
    /// MAXDIST of RFC 5905 section 7.2: sources further away are not selected.
    pub maximum_distance: NtpDuration,
    /// How the clock is steered.
    pub discipline: DisciplineOptions,
    /// Who may become a passive peer of ours.
    pub passive: PassivePeers,
}

impl Default for ControllerOptions {
    /// What RFC 5905 has, and a precision of about a microsecond.
    fn default() -> Self {
        Self {
            precision: Log2Seconds(-20),
            minimum_sources: 1,
            maximum_distance: NtpDuration::from_seconds(1),
            discipline: DisciplineOptions::default(),
            passive: PassivePeers::default(),
        }
    }
}

/// What became of the packets that came in.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// All of them.
    pub received: u64,
    /// Came to a socket that is not open, or from another than whom it is open to.
    pub strays: u64,
    /// Discarded by RFC 5905 figure 20.
    pub discarded: u64,
    /// Mode 1 packets of whoever may not become a passive peer of ours.
    pub peers_refused: u64,
    /// Of strangers who would have been answered, had there not been too many already.
    pub over_budget: u64,
    /// Failed tests 1 to 7, each.
    pub failures: FailureCounts,
}

/// The control core.
#[derive(Debug)]
pub struct Controller {
    options: ControllerOptions,
    chance: Chance,
    now: Moment,
    sources: BTreeMap<SourceId, SourceEntry>,
    associations: BTreeMap<AssociationId, Association>,
    /// The servers among them: one server has one voice.
    servers: BTreeMap<(InstanceId, SocketAddr), AssociationId>,
    /// The sources that have to do with packets of strangers.
    listeners: BTreeSet<SourceId>,
    trusted: TrustedKeys,
    /// The reference ids that mean us, in each instance.
    own_names: BTreeMap<InstanceId, BTreeSet<[u8; 4]>>,
    last_association: u32,
    last_send: u64,
    agenda: Agenda,
    /// The last word on when to be woken.
    wake_at: Option<Timestamp<Monotonic>>,
    system: System,
    discipline: Discipline,
    strangers: Budget,
    counters: Counters,
    actions: Vec<Action>,
}

impl Controller {
    /// A controller without sources. The seed must be secret where packets meet a network.
    #[must_use]
    pub fn new(options: ControllerOptions, seed: [u8; 32], now: Moment) -> Self {
        Self {
            options,
            chance: Chance::new(seed),
            now,
            sources: BTreeMap::new(),
            associations: BTreeMap::new(),
            servers: BTreeMap::new(),
            listeners: BTreeSet::new(),
            trusted: TrustedKeys::default(),
            own_names: BTreeMap::new(),
            last_association: 0,
            last_send: 0,
            agenda: Agenda::default(),
            wake_at: None,
            system: System::new(&options),
            discipline: Discipline::new(options.discipline),
            strangers: Budget::default(),
            counters: Counters::default(),
            actions: Vec::new(),
        }
    }

    /// Something happened; what is to be done about it, in this order.
    #[must_use = "what is to be done is lost otherwise"]
    pub fn handle(&mut self, now: Moment, event: Event) -> std::vec::Drain<'_, Action> {
        self.actions.clear();
        self.now = now;
        self.begin();
        let woken = event == Event::WakeUp;
        match event {
            Event::WakeUp => self.on_wake_up(),
            Event::Packet(arrival) => self.on_packet(&arrival),
            Event::Sent { handle, stamp } => self.on_sent(&handle, stamp),
            Event::SendFailed { handle } => self.on_send_failed(&handle),
            Event::Resolved { source, addresses } => self.on_resolved(source, &addresses),
            Event::AddSource { source, configuration } => self.add_source(source, configuration),
            Event::RemoveSource(source) => self.remove_source(source),
            Event::ClockStepped(offset) => self.on_foreign_step(offset),
            Event::ClockLeapt => self.on_leap_second(),
            Event::Reference(snapshot) => self.on_reference(snapshot),
            Event::TrustedKeys(keys) => self.on_trusted_keys(keys),
            Event::OwnAddresses { instance, addresses } => self.on_own_addresses(instance, &addresses),
        }
        let first = self.agenda.first();
        if woken || first != self.wake_at {
            self.wake_at = first;
            self.actions.push(Action::WakeAt(first));
        }
        self.actions.drain(..)
    }

    /// The associations, in the order of their ids.
    pub fn associations(&self) -> impl Iterator<Item = &Association> {
        self.associations.values()
    }

    /// The configured sources, in the order of their ids.
    pub fn sources(&self) -> impl Iterator<Item = (SourceId, &SourceEntry)> {
        self.sources.iter().map(|(id, entry)| (*id, entry))
    }

    /// The system variables.
    #[must_use]
    pub const fn system(&self) -> &System {
        &self.system
    }

    /// What became of the packets that came in.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How far an association's offset has changed by our slewing since it was measured, and its estimate of now:
    /// what reports show.
    #[must_use]
    pub fn offset_now(&self, association: &Association, now: Timestamp<Monotonic>) -> Option<NtpDuration> {
        let estimate = association.filter.estimate(now)?;
        Some(estimate.offset - self.discipline.slewed(now))
    }

    fn on_wake_up(&mut self) {
        match self.agenda.take(self.now.monotonic) {
            None => {}
            Some(Due::Slew) => self.end_slew(),
            Some(Due::Lookup(source)) => self.look_up(source),
            Some(Due::Association(id)) => self.on_due(id),
        }
    }

    fn report(&mut self, association: Option<AssociationId>, news: News) {
        let instance = association.and_then(|id| self.associations.get(&id)).map(|one| one.instance);
        self.report_in(instance, association, news);
    }

    fn report_in(&mut self, instance: Option<InstanceId>, association: Option<AssociationId>, news: News) {
        self.actions.push(Action::Report { instance, association, news });
    }

    /// A handle for the next send of an association.
    const fn send_handle(&mut self, association: AssociationId) -> SendHandle {
        self.last_send += 1;
        SendHandle { association, number: self.last_send }
    }

    /// Puts an association's next time into the agenda.
    fn plan(&mut self, id: AssociationId) {
        let time = self.associations.get(&id).map(exchange::due);
        self.agenda.set(Due::Association(id), time);
    }
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;
