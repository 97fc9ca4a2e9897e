//! The controller's dealings with one association: its polls, and the packets that come for it.

use super::super::action::{Action, Transmission, TransmitField};
use super::super::association::{Association, PeerVariables, Role};
use super::super::client::Outcome;
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

/// When an association next needs attention.
pub(super) fn due(association: &Association) -> Timestamp<Monotonic> {
    let poll = association.poll.next();
    association.role.client().closes_at().map_or(poll, |time| time.min(poll))
}

impl Controller {
    /// An association's time has come: its poll, or before that the end of its patience with an open socket.
    pub(super) fn on_due(&mut self, id: AssociationId) {
        let now = self.now.monotonic;
        let Some(association) = self.associations.get_mut(&id) else { return };
        if association.poll.next() <= now {
            self.poll(id);
        } else {
            self.close_socket(id);
            self.end_volley(id);
        }
        self.plan(id);
    }

    fn close_socket(&mut self, id: AssociationId) {
        let Some(association) = self.associations.get_mut(&id) else { return };
        let open = association.role.client_mut().close();
        self.actions.extend(open.map(Action::CloseSocket));
    }

    /// RFC 5905 section 13.2: sends a request, and tells the filter if the last ones were in vain.
    fn poll(&mut self, id: AssociationId) {
        self.close_socket(id);
        let handle = self.send_handle(id);
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
            Role::Client(_) => true,
            Role::Symmetric(symmetric) => symmetric.begins_with_volley(),
        };
        if is_request {
            self.send_request(id, handle);
        } else {
            self.send_to_peer(id, handle);
        }
        if input == FilterInput::Dummy && was_reachable {
            self.select();
        }
        if is_first_of_burst {
            self.review_usefulness(id);
        }
    }

    /// A mode 3 packet, from a socket of its own.
    fn send_request(&mut self, id: AssociationId, handle: SendHandle) {
        let now = self.now.monotonic;
        let Some(association) = self.associations.get_mut(&id) else { return };
        let (header, socket) = association.role.client_mut().request(
            now,
            handle.number,
            association.poll.host_interval(),
            |exchange| ExchangeSocket { association: id, exchange },
            &mut self.chance,
        );
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
            key,
        }));
    }

    pub(super) fn on_sent(&mut self, handle: &SendHandle, stamp: SendStamp) {
        let Some(association) = self.associations.get_mut(&handle.association) else { return };
        association.traffic.sent += 1;
        match &mut association.role {
            Role::Client(client) => client.on_sent(handle.number, stamp),
            Role::Symmetric(symmetric) => symmetric.on_sent(handle.number, stamp),
        }
    }

    pub(super) fn on_send_failed(&mut self, handle: &SendHandle) {
        let Some(association) = self.associations.get_mut(&handle.association) else { return };
        association.traffic.send_failed += 1;
        let was_current = match &mut association.role {
            Role::Client(client) => client.on_send_failed(handle.number),
            Role::Symmetric(symmetric) => symmetric.on_send_failed(handle.number),
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
            SocketName::Service(_) => self.peer_of(arrival),
        };
        let mode = match arrival.socket {
            // The volley of a peering is a client's exchange.
            SocketName::Exchange(_) => Some(AssociationMode::Client),
            SocketName::Service(_) => {
                id.and_then(|id| self.associations.get(&id)).map(|association| association.role.mode())
            }
        };
        match (dispatch(mode, arrival.header.mode()), id) {
            (Dispatch::Process, Some(id)) => self.process(id, arrival),
            (Dispatch::NewPassive, None) => self.on_new_peer(arrival),
            (Dispatch::Error, Some(id)) => self.on_two_passive_ends(id, arrival),
            // The workers answer requests; the modes that mobilise associations are not built into this core yet.
            _ => self.counters.discarded += 1,
        }
    }

    /// The association whose open socket this is and whose server this comes from.
    fn owner(&self, socket: ExchangeSocket, arrival: &Arrival) -> Option<AssociationId> {
        let association = self.associations.get(&socket.association)?;
        let is_open = association.role.client().has_open(socket);
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
            (role, _) => role.client_mut().receive(now, arrival, key, precision),
        };
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
        association.poll.on_valid(now, arrival.header.poll(), system_poll, &mut self.chance);
        association.take(sample, &arrival.header, arrival.stamp, slewed);
        self.select();
    }
}
