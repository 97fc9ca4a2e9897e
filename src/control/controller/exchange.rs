//! The controller's dealings with one association: its polls, and the packets that come for it.

use super::super::action::{Action, Transmission, TransmitField};
use super::super::association::{Association, PeerVariables, Role};
use super::super::client::{Client, Outcome};
use super::super::dispatch::{AssociationMode, Dispatch, dispatch};
use super::super::event::{
    Arrival, AssociationId, ExchangeSocket, InterfaceIndex, SendHandle, SendStamp, SocketName,
};
use super::super::kiss::Kiss;
use super::super::news::{Farewell, News};
use super::super::packet_checks::Failure;
use super::super::poll::{FilterInput, Fitness};
use super::super::sample::Sample;
use super::super::state::SourceState;
use super::Controller;
use crate::time::{Monotonic, Timestamp};
use crate::wire::Mode;

/// When an association next needs attention.
pub(super) fn due(association: &Association) -> Timestamp<Monotonic> {
    let turn = turn(association);
    let closes_at = association.role.client().and_then(Client::closes_at);
    closes_at.map_or(turn, |time| time.min(turn))
}

/// When it is an association's turn to send, or to notice that it heard nothing.
fn turn(association: &Association) -> Timestamp<Monotonic> {
    match &association.role {
        Role::BroadcastClient(listener) => listener.next(),
        Role::ManycastClient(search) => search.next(),
        Role::Client(_) | Role::Symmetric(_) | Role::BroadcastServer(_) => association.poll.next(),
    }
}

impl Controller {
    /// An association's time has come: its poll, or before that the end of its patience with an open socket.
    pub(super) fn on_due(&mut self, id: AssociationId) {
        let now = self.now.monotonic;
        let Some(association) = self.associations.get_mut(&id) else { return };
        if turn(association) <= now {
            match &association.role {
                Role::Client(_) | Role::Symmetric(_) => self.poll(id),
                Role::BroadcastServer(_) => self.broadcast(id),
                Role::BroadcastClient(_) => self.on_listener_turn(id),
                Role::ManycastClient(_) => self.on_search_turn(id),
            }
        } else {
            self.close_socket(id);
            self.end_volley(id);
        }
        self.plan(id);
    }

    pub(super) fn close_socket(&mut self, id: AssociationId) {
        let Some(association) = self.associations.get_mut(&id) else { return };
        let open = association.role.client_mut().and_then(Client::close);
        self.actions.extend(open.map(Action::CloseSocket));
    }

    /// RFC 5905 section 13.2: sends a request, and tells the filter if the last ones were in vain.
    fn poll(&mut self, id: AssociationId) {
        self.close_socket(id);
        let (now, system_poll) = (self.now.monotonic, self.system.poll.interval());
        let Some(association) = self.associations.get_mut(&id) else { return };
        // accept() of A.5.5.3 lets through what gets further than `NotSelectable`.
        let is_fit = association.state >= SourceState::WaitingForMeasurements;
        let fitness = if is_fit { Fitness::Fit } else { Fitness::Unfit };
        let is_first_of_burst = !association.poll.is_in_burst();
        let input = association.poll.on_poll(now, system_poll, fitness, &mut self.chance);
        if input == FilterInput::Dummy {
            association.filter.shift_dummy(now);
        }
        let was_reachable = association.state != SourceState::Unreachable;
        let is_request = match &mut association.role {
            Role::Symmetric(symmetric) => symmetric.begins_with_volley(),
            _ => true,
        };
        if is_request {
            self.ask(id);
        } else {
            let handle = self.send_handle(id);
            self.send_to_peer(id, handle);
        }
        if input == FilterInput::Dummy && was_reachable {
            self.select();
        }
        if is_first_of_burst {
            self.review_usefulness(id);
        }
    }

    /// Sends a request from a socket of its own.
    pub(super) fn ask(&mut self, id: AssociationId) {
        let handle = self.send_handle(id);
        let now = self.now.monotonic;
        let Some(association) = self.associations.get_mut(&id) else { return };
        let (interval, version) = (association.poll.host_interval(), association.version);
        let Some(client) = association.role.client_mut() else { return };
        let name = |exchange| ExchangeSocket { association: id, exchange };
        let (header, socket) = client.request(now, handle.number, version, interval, name, &mut self.chance);
        let (instance, remote, key) = (association.instance, association.remote, association.key);
        self.actions.push(Action::OpenSocket { socket, instance, remote });
        self.actions.push(Action::Transmit(Transmission {
            handle,
            from: SocketName::Exchange(socket),
            local: None,
            to: remote,
            interface: InterfaceIndex(0),
            hop_limit: None,
            header,
            transmit_field: TransmitField::Keep,
            trailer: key.into(),
        }));
    }

    pub(super) fn on_sent(&mut self, handle: &SendHandle, stamp: SendStamp) {
        let Some(association) = self.associations.get_mut(&handle.association) else { return };
        association.traffic.sent += 1;
        match &mut association.role {
            Role::Symmetric(symmetric) => symmetric.on_sent(handle.number, stamp),
            role => {
                if let Some(client) = role.client_mut() {
                    client.on_sent(handle.number, stamp);
                }
            }
        }
    }

    pub(super) fn on_send_failed(&mut self, handle: &SendHandle) {
        let Some(association) = self.associations.get_mut(&handle.association) else { return };
        association.traffic.send_failed += 1;
        let was_current = match &mut association.role {
            Role::Symmetric(symmetric) => symmetric.on_send_failed(handle.number),
            role => role.client_mut().is_some_and(|client| client.on_send_failed(handle.number)),
        };
        if was_current {
            self.close_socket(handle.association);
            self.end_volley(handle.association);
            self.plan(handle.association);
        }
    }

    /// Finds whose packet it is, and lets RFC 5905 figure 20 say what becomes of it.
    pub(super) fn on_packet(&mut self, arrival: &Arrival) {
        self.counters.received += 1;
        let id = match arrival.socket {
            SocketName::Exchange(socket) => match self.owner(socket, arrival) {
                Some(id) => Some(id),
                None => {
                    self.counters.strays += 1;
                    return;
                }
            },
            // Client associations live on their own sockets (RFC 9109): whatever comes to port 123, even from a
            // server of ours, is not an answer to us.
            SocketName::Service(_) => self.peer_of(arrival).or_else(|| self.resident(arrival)),
        };
        let mode = match arrival.socket {
            // The volley of a peering is a client's exchange.
            SocketName::Exchange(_) => Some(AssociationMode::Client),
            SocketName::Service(_) => {
                id.and_then(|id| self.associations.get(&id)).map(|association| association.role.mode())
            }
        };
        match (dispatch(mode, arrival.header.mode()), id) {
            (Dispatch::Process, Some(id)) if arrival.header.mode() == Mode::Broadcast => {
                self.hear(id, arrival)
            }
            (Dispatch::Process, Some(id)) => self.process(id, arrival),
            (Dispatch::NewPassive, None) => self.on_new_peer(arrival),
            (Dispatch::Error, Some(id)) => self.on_two_passive_ends(id, arrival),
            (Dispatch::NewBroadcastClient, _) => self.meet_broadcaster(arrival),
            (Dispatch::Manycast, _) => self.meet_server(arrival),
            // The workers answer requests, except those to a group.
            (Dispatch::FastTransmit, _) => self.answer_group(arrival),
            (Dispatch::Discard, Some(_)) if arrival.header.mode() == Mode::Broadcast => {
                self.overhear(arrival)
            }
            _ => self.counters.discarded += 1,
        }
    }

    /// The association that a packet at port 123 belongs to. Client associations live on their own sockets (RFC 9109),
    /// so an answer there, even from a server of ours, belongs to none.
    fn resident(&self, arrival: &Arrival) -> Option<AssociationId> {
        match arrival.header.mode() {
            Mode::Broadcast => self.servers.get(&(arrival.instance, arrival.remote)).copied(),
            _ => None,
        }
    }

    /// The association whose open socket this is and whose server this comes from.
    fn owner(&self, socket: ExchangeSocket, arrival: &Arrival) -> Option<AssociationId> {
        let association = self.associations.get(&socket.association)?;
        let is_open = association.role.client().is_some_and(|client| client.has_open(socket));
        let is_its = association.remote == arrival.remote && association.instance == arrival.instance;
        (is_open && is_its).then_some(association.id)
    }

    fn process(&mut self, id: AssociationId, arrival: &Arrival) {
        let (now, precision) = (self.now.monotonic, self.options.precision);
        let slewed = self.discipline.slewed(now);
        let Some(association) = self.associations.get_mut(&id) else { return };
        association.traffic.received += 1;
        let key = association.key;
        let outcome = match (&mut association.role, arrival.socket) {
            (Role::Symmetric(symmetric), SocketName::Service(_)) => {
                symmetric.receive(now, arrival, key, precision, slewed)
            }
            (role, _) => {
                let Some(client) = role.client_mut() else { return };
                client.receive(now, arrival, key, precision)
            }
        };
        if let Role::BroadcastClient(listener) = &mut association.role {
            listener.on_answer(now, arrival, &outcome);
        }
        match outcome {
            Outcome::Refused(failure) => self.count(id, failure),
            Outcome::Unstamped => association.traffic.unstamped += 1,
            Outcome::Kissed(kiss) => self.on_kiss(id, arrival, kiss),
            Outcome::Timeless(failure) => self.on_timeless(id, arrival, failure),
            Outcome::Measured(sample) => self.on_sample(id, arrival, sample),
        }
        self.hasten_peer(id, arrival.socket);
        self.plan(id);
    }

    pub(super) fn count(&mut self, id: AssociationId, failure: Failure) {
        self.counters.failures.count(failure);
        if let Some(association) = self.associations.get_mut(&id) {
            association.traffic.failures.count(failure);
        }
    }

    /// RFC 5905 section 7.4; the packet has passed tests 1 to 5.
    fn on_kiss(&mut self, id: AssociationId, arrival: &Arrival, kiss: Kiss) {
        self.close_socket(id);
        let now = self.now.monotonic;
        let Some(association) = self.associations.get_mut(&id) else { return };
        let before = association.kiss.replace(kiss);
        let remote = association.remote;
        match kiss {
            Kiss::Deny | Kiss::Restrict => {
                self.demobilise(id, Farewell::Kissed(kiss));
                self.select();
            }
            Kiss::Rate => {
                association.poll.on_rate(now, arrival.header.poll(), &mut self.chance);
                let interval = association.poll.interval();
                self.report(Some(id), News::Kissed { remote, kiss, interval });
            }
            // No significance as a kiss; as a packet, it says that its sender is not synchronised.
            Kiss::Other(_) => {
                let interval = association.poll.interval();
                if before != Some(kiss) {
                    self.report(Some(id), News::Kissed { remote, kiss, interval });
                }
                self.on_timeless(id, arrival, Failure::Unsynchronised);
            }
        }
    }

    /// A believable packet that tells no time. What it says of its sender is kept if that is the reason (A.5.1.1
    /// copies the variables before test 6), so that the source is not selected on the strength of older words.
    fn on_timeless(&mut self, id: AssociationId, arrival: &Arrival, failure: Failure) {
        self.close_socket(id);
        self.count(id, failure);
        let now = self.now.monotonic;
        let Some(association) = self.associations.get_mut(&id) else { return };
        association.local = Some(arrival.local);
        if failure == Failure::Unsynchronised {
            association.peer = Some(PeerVariables::of(&arrival.header, now));
            self.select();
        }
    }

    fn on_sample(&mut self, id: AssociationId, arrival: &Arrival, sample: Sample) {
        self.close_socket(id);
        let (now, system_poll) = (self.now.monotonic, self.system.poll.interval());
        let slewed = self.discipline.slewed(now);
        let Some(association) = self.associations.get_mut(&id) else { return };
        association.local = Some(arrival.local);
        association.kiss = association.kiss.filter(|kiss| *kiss == Kiss::Rate);
        association.poll.on_valid(now, arrival.header.poll(), system_poll, &mut self.chance);
        association.take(sample, &arrival.header, arrival.stamp, slewed);
        self.select();
    }
}
