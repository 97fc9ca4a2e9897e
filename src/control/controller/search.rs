//! The controller's dealings with manycast: questions to a group, asked and answered.

use super::super::action::{Action, Transmission, TransmitField};
use super::super::association::{Association, Role};
use super::super::client::Client;
use super::super::event::{Arrival, AssociationId, Authentication, Delivery, SocketName};
use super::super::filter::SAMPLES_NEEDED;
use super::super::manycast::{Step, answer};
use super::super::news::Farewell;
use super::super::source::{NTP_PORT, SourceId, SourceKind};
use super::super::state::SourceState;
use super::unasked::is_heard_at;
use super::{Controller, NOBODY};
use crate::time::NtpDuration;
use std::cmp::Reverse;

impl Controller {
    /// A search's time has come.
    pub(super) fn on_search_turn(&mut self, id: AssociationId) {
        let now = self.now.monotonic;
        let Some(association) = self.associations.get(&id) else { return };
        let Some(source) = association.source else { return };
        self.drop_worst(source);
        let found = self.found(source).count();
        let Some(association) = self.associations.get_mut(&id) else { return };
        let Role::ManycastClient(search) = &mut association.role else { return };
        match search.turn(now, found) {
            Step::Wait => {}
            Step::Ask => self.ask_group(id),
            Step::StartOver => {
                self.let_all_go(source);
                self.ask_group(id);
            }
        }
    }

    fn ask_group(&mut self, id: AssociationId) {
        let handle = self.send_handle(id);
        let stratum = self.system.snapshot.stratum;
        let Some(association) = self.associations.get_mut(&id) else { return };
        let Role::ManycastClient(search) = &mut association.role else { return };
        let header = search.question(stratum, &mut self.chance);
        self.actions.push(Action::Transmit(Transmission {
            handle,
            // Not from a socket of its own: that would be connected to the group, and hear nobody.
            from: SocketName::Service(association.instance),
            local: None,
            to: association.remote,
            interface: search.options().interface,
            hop_limit: Some(search.hop_limit()),
            header,
            transmit_field: TransmitField::Keep,
            trailer: association.key.into(),
        }));
    }

    /// The servers that a search has found.
    fn found(&self, source: SourceId) -> impl Iterator<Item = &Association> {
        let members = self.sources.get(&source).map_or(&[][..], |entry| entry.members());
        let members = members.iter().filter_map(|id| self.associations.get(id));
        members.filter(|association| matches!(association.role, Role::Client(_)))
    }

    /// Are this source's servers those that a search found?
    pub(super) fn is_searched(&self, source: SourceId) -> bool {
        let kind = self.sources.get(&source).map(|entry| entry.configuration().kind);
        matches!(kind, Some(SourceKind::ManycastClient(_)))
    }

    /// RFC 5905 section 3.1: "clear all associations, and then repeats the search cycle".
    fn let_all_go(&mut self, source: SourceId) {
        let found: Vec<AssociationId> = self.found(source).map(|association| association.id).collect();
        for id in found {
            self.demobilise(id, Farewell::SearchedAnew);
        }
        if let Some(entry) = self.sources.get_mut(&source) {
            entry.tried.clear();
        }
        self.select();
    }

    /// A source has lost a server: a search that had enough may have to go on.
    pub(super) fn on_member_lost(&mut self, source: SourceId) {
        if !self.is_searched(source) {
            return;
        }
        let (now, found) = (self.now.monotonic, self.found(source).count());
        let members = self.sources.get(&source).map_or(&[][..], |entry| entry.members());
        let is_search = |association: &&Association| matches!(association.role, Role::ManycastClient(_));
        let mut associations = members.iter().filter_map(|id| self.associations.get(id));
        let Some(id) = associations.find(is_search).map(|association| association.id) else { return };
        if let Some(association) = self.associations.get_mut(&id)
            && let Role::ManycastClient(search) = &mut association.role
        {
            search.on_loss(now, found);
            self.plan(id);
        }
    }

    /// RFC 5905 section 3.1: of more servers than are enough only the best remain. One goes at a time, and none that the
    /// clock is steered by, nor one that is not measured yet.
    fn drop_worst(&mut self, source: SourceId) {
        let Some(entry) = self.sources.get(&source) else { return };
        let SourceKind::ManycastClient(options) = entry.configuration().kind else { return };
        if self.found(source).count() > options.enough()
            && let Some(worst) = self.worst(source)
        {
            self.demobilise(worst, Farewell::Replaced);
            self.select();
        }
    }

    fn worst(&self, source: SourceId) -> Option<AssociationId> {
        let (now, slewed) = (self.now.monotonic, self.discipline.slewed(self.now.monotonic));
        let is_measured = |association: &&Association| {
            let samples = association.filter.estimate(now).map_or(0, |estimate| estimate.samples);
            samples >= SAMPLES_NEEDED || association.useless_polls >= SAMPLES_NEEDED
        };
        // Those that are wrong or cannot be used before those that are merely less good, and then by distance.
        let merit = |association: &&Association| {
            let is_right = association.state >= SourceState::WaitingForSources { agreeing: 0, minimum: 0 };
            let distance = association.candidate(now, slewed, None, &[]).root_distance(now);
            (is_right, Reverse(distance.unwrap_or(NtpDuration::MAX)), Reverse(association.id))
        };
        let unused = self.found(source).filter(|association| !association.state.is_used());
        unused.filter(is_measured).min_by_key(merit).map(|association| association.id)
    }

    /// MANY of RFC 5905 figure 20: perhaps the answer to a question of ours.
    pub(super) fn meet_server(&mut self, arrival: &Arrival) {
        let Some((source, search_id)) = self.answered_search(arrival) else {
            self.counters.discarded += 1;
            return;
        };
        let Some(entry) = self.sources.get(&source) else { return };
        let configured = entry.configuration().key;
        let arrival = &self.judged(arrival, configured);
        let Some(association) = self.associations.get_mut(&search_id) else { return };
        association.traffic.received += 1;
        let Role::ManycastClient(search) = &association.role else { return };
        let options = *search.options();
        if let Err(failure) = search.check(arrival, configured) {
            return self.count(search_id, failure);
        }
        let remote = arrival.remote;
        // One that we know already has only said that it is still there.
        if self.servers.contains_key(&(arrival.instance, remote)) {
            return;
        }
        let found = self.found(source).count();
        let was_tried = entry.tried.contains(&remote) && found >= options.enough();
        if remote.port() != NTP_PORT || entry.refuses(remote) || was_tried {
            self.counters.discarded += 1;
            return;
        }
        if found >= options.most() {
            self.drop_worst(source);
            if self.found(source).count() >= options.most() {
                self.counters.discarded += 1;
                return;
            }
        }
        let Some(id) = self.mobilise_as(source, remote, Role::Client(Client::default())) else { return };
        if let Some(association) = self.associations.get_mut(&id) {
            association.key = configured.or(match arrival.authentication {
                Authentication::Valid(key) => Some(key),
                _ => None,
            });
        }
    }

    /// The search that a packet answers.
    fn answered_search(&self, arrival: &Arrival) -> Option<(SourceId, AssociationId)> {
        if arrival.delivery != Delivery::Unicast {
            return None;
        }
        self.listeners.iter().find_map(|source| {
            let members = self.sources.get(source)?.members().iter();
            let id = members.copied().find(|id| {
                self.associations.get(id).is_some_and(|association| match &association.role {
                    Role::ManycastClient(search) => {
                        association.instance == arrival.instance && search.is_answered_by(&arrival.header)
                    }
                    _ => false,
                })
            })?;
            Some((*source, id))
        })
    }

    /// FXMIT of RFC 5905 figure 20 for a question that was asked of a group: the workers pass those up.
    pub(super) fn answer_group(&mut self, arrival: &Arrival) {
        let found = self.listeners.iter().find_map(|source| {
            let configuration = self.sources.get(source)?.configuration();
            let SourceKind::ManycastServer(unsigned) = configuration.kind else { return None };
            let is_its =
                configuration.instance == arrival.instance && is_heard_at(&configuration.place, arrival);
            is_its.then_some((configuration.key, unsigned))
        });
        let snapshot = self.system.snapshot.seen_from(arrival.instance);
        let reply =
            found.and_then(|(key, unsigned)| answer(&self.judged(arrival, key), key, unsigned, &snapshot));
        let Some((header, key)) = reply else {
            self.counters.discarded += 1;
            return;
        };
        if !self.may_answer_stranger(arrival) {
            return;
        }
        let handle = self.send_handle(NOBODY);
        self.actions.push(Action::Transmit(Transmission {
            handle,
            from: SocketName::Service(arrival.instance),
            // From a unicast address, never from the group's: that which the kernel has for the way back.
            local: None,
            to: arrival.remote,
            interface: arrival.interface,
            hop_limit: None,
            header,
            transmit_field: TransmitField::Clock,
            trailer: key.into(),
        }));
    }
}
