//! The controller's dealings with what nobody asked for: broadcast packets, sent and heard.

use super::super::action::{Action, Transmission, TransmitField};
use super::super::association::{PeerVariables, Role};
use super::super::broadcast_client::{BroadcastClient, Heard, Turn, unasked};
use super::super::event::{Arrival, AssociationId, Authentication, Delivery, SocketName};
use super::super::news::Farewell;
use super::super::packet_checks::{self, Failure};
use super::super::poll::{FilterInput, Fitness, PollProcess};
use super::super::sample::Sample;
use super::super::source::{BroadcastClientOptions, NTP_PORT, Place, PollOptions, SourceId, SourceKind};
use super::Controller;
use crate::time::NtpDuration;

impl Controller {
    /// A broadcast server's time has come.
    pub(super) fn broadcast(&mut self, id: AssociationId) {
        let (now, clock) = (self.now.monotonic, self.now.clock);
        let handle = self.send_handle(id);
        let system_poll = self.system.poll.interval();
        let Some(association) = self.associations.get_mut(&id) else { return };
        // For the next time only: nobody answers, and there is no filter to feed.
        _ = association.poll.on_poll(now, system_poll, Fitness::Unfit, &mut self.chance);
        let Role::BroadcastServer(server) = &association.role else { return };
        let snapshot = self.system.snapshot.seen_from(association.instance);
        let Some(header) = server.packet(&snapshot, clock) else { return };
        self.actions.push(Action::Transmit(Transmission {
            handle,
            from: SocketName::Service(association.instance),
            local: None,
            to: association.remote,
            interface: server.options.interface,
            hop_limit: Some(server.options.hop_limit.max(1)),
            header,
            transmit_field: TransmitField::Clock,
            trailer: association.key.into(),
        }));
    }

    /// A broadcast client's time has come: a question of its volley, the volley's end, or an interval of silence.
    pub(super) fn on_listener_turn(&mut self, id: AssociationId) {
        self.close_socket(id);
        let (now, system_poll) = (self.now.monotonic, self.system.poll.interval());
        let Some(association) = self.associations.get_mut(&id) else { return };
        let Role::BroadcastClient(listener) = &mut association.role else { return };
        match listener.turn(now) {
            Turn::Ask => self.ask(id),
            Turn::Listen => {}
            Turn::Missed => {
                let input = association.poll.on_poll(now, system_poll, Fitness::Unfit, &mut self.chance);
                let is_gone = !association.poll.reach().is_reachable();
                if input == FilterInput::Dummy {
                    association.filter.shift_dummy(now);
                }
                if is_gone {
                    self.demobilise(id, Farewell::Silent);
                }
                if is_gone || input == FilterInput::Dummy {
                    self.select();
                }
            }
        }
    }

    /// NEWBC of RFC 5905 figure 20: a broadcast packet from a server that belongs to no association.
    pub(super) fn meet_broadcaster(&mut self, arrival: &Arrival) {
        let Some((source, options)) = self.listening_source(arrival) else {
            self.counters.discarded += 1;
            return;
        };
        let Some(entry) = self.sources.get(&source) else { return };
        let is_welcome = arrival.remote.port() == NTP_PORT
            && entry.members().len() < entry.wanted()
            && !entry.refuses(arrival.remote);
        if !is_welcome {
            self.counters.discarded += 1;
            return;
        }
        let configured = entry.configuration().key;
        let arrival = &self.judged(arrival, configured);
        let verdict = unasked(arrival, configured, options.unsigned, None)
            .and_then(|()| packet_checks::contents(&arrival.header));
        if let Err(failure) = verdict {
            if let Some(entry) = self.sources.get_mut(&source) {
                entry.turned_away.failures.count(failure);
            }
            return self.counters.failures.count(failure);
        }
        let role = Role::BroadcastClient(BroadcastClient::new(&options, self.now.monotonic, arrival));
        let Some(id) = self.mobilise_as(source, arrival.remote, role) else { return };
        if let Some(association) = self.associations.get_mut(&id) {
            association.interface = arrival.interface;
            // RFC 5905 A.5.1: the key of the packet is the association's from now on.
            association.key = configured.or(match arrival.authentication {
                Authentication::Valid(key) => Some(key),
                _ => None,
            });
        }
        self.hear(id, arrival);
    }

    /// Figure 20 discards what a server broadcasts that we ask anyway.
    pub(super) fn overhear(&mut self, arrival: &Arrival) {
        self.counters.discarded += 1;
        let source = self.listening_source(arrival).map(|(source, _)| source);
        if let Some(entry) = source.and_then(|source| self.sources.get_mut(&source)) {
            entry.turned_away.known += 1;
        }
    }

    /// The source that wants to hear what comes this way.
    fn listening_source(&self, arrival: &Arrival) -> Option<(SourceId, BroadcastClientOptions)> {
        let heard_by = |source: &SourceId| Some((*source, self.listens(*source, arrival)?));
        self.listeners.iter().find_map(heard_by)
    }

    /// Does this source want to hear what comes this way?
    fn listens(&self, source: SourceId, arrival: &Arrival) -> Option<BroadcastClientOptions> {
        let configuration = self.sources.get(&source)?.configuration();
        let SourceKind::BroadcastClient(options) = configuration.kind else { return None };
        let is_its = configuration.instance == arrival.instance
            && (options.interface.0 == 0 || options.interface == arrival.interface)
            && is_heard_at(&configuration.place, arrival);
        is_its.then_some(options)
    }

    /// A broadcast packet for a broadcast client association.
    pub(super) fn hear(&mut self, id: AssociationId, arrival: &Arrival) {
        let (now, precision) = (self.now.monotonic, self.options.precision);
        let slewed = self.discipline.slewed(now);
        // What was sent to us alone was not broadcast; and where its source does not listen, anybody may have its address.
        let source = self.associations.get(&id).and_then(|association| association.source);
        if source.and_then(|source| self.listens(source, arrival)).is_none() {
            self.counters.discarded += 1;
            return;
        }
        let Some(association) = self.associations.get_mut(&id) else { return };
        association.traffic.received += 1;
        let jitter = association.filter.estimate(now).map_or(NtpDuration::ZERO, |estimate| estimate.jitter);
        let key = association.key;
        let Role::BroadcastClient(listener) = &mut association.role else { return };
        let heard = listener.receive(now, arrival, key, precision, slewed, jitter);
        match heard {
            Heard::Refused(failure) => self.count(id, failure),
            Heard::Timeless(failure) => {
                self.count(id, failure);
                self.remember_unsynchronised(id, arrival, failure);
            }
            Heard::Uncalibrated => self.on_heard(id, arrival, None),
            Heard::Measured(sample) => self.on_heard(id, arrival, Some(sample)),
        }
        self.plan(id);
    }

    /// A.5.1.1 copies the variables before test 6, so that the source is not selected on the strength of older words.
    fn remember_unsynchronised(&mut self, id: AssociationId, arrival: &Arrival, failure: Failure) {
        let now = self.now.monotonic;
        let Some(association) = self.associations.get_mut(&id) else { return };
        if failure == Failure::Unsynchronised {
            association.peer = Some(PeerVariables::of(&arrival.header, now));
            self.select();
        }
    }

    /// A good broadcast packet: it counts as heard, and if the delay is known, as a measurement.
    fn on_heard(&mut self, id: AssociationId, arrival: &Arrival, sample: Option<Sample>) {
        let (now, system_poll) = (self.now.monotonic, self.system.poll.interval());
        let slewed = self.discipline.slewed(now);
        let Some(association) = self.associations.get_mut(&id) else { return };
        let Role::BroadcastClient(listener) = &association.role else { return };
        if association.poll.interval() != listener.interval() {
            association.poll = PollProcess::new(PollOptions::fixed(listener.interval()), now);
        }
        // The register shifts with every packet; the dummy is for those that did not come.
        _ = association.poll.on_poll(now, system_poll, Fitness::Unfit, &mut self.chance);
        association.poll.on_valid(now, arrival.header.poll(), system_poll, &mut self.chance);
        match sample {
            Some(sample) => association.take(sample, &arrival.header, arrival.stamp, slewed),
            None => association.peer = Some(PeerVariables::of(&arrival.header, now)),
        }
        self.select();
    }
}

/// Does a source at this place hear a packet that came so?
pub(super) fn is_heard_at(place: &Place, arrival: &Arrival) -> bool {
    let Place::Address(place) = place else { return false };
    let ip = place.ip();
    match arrival.delivery {
        Delivery::Unicast => false,
        Delivery::Multicast => ip == arrival.local,
        Delivery::Broadcast => ip == arrival.local || (ip.is_ipv4() && ip.is_unspecified()),
    }
}
