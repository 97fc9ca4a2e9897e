//! Packets on their way out: their timestamps, signatures and sockets, and what becomes of those that cannot leave.

use super::{Associations, Network, Whom};
use crate::control::{Event, InstanceId, SocketName, Trailer, Transmission, TransmitField};
use crate::sys::clock;
use crate::sys::socket::Outgoing;
use std::io;
use tracing::{info, warn};
use zerocopy::IntoBytes;

impl Associations {
    pub(super) fn transmit(&mut self, transmission: Transmission) {
        let Transmission {
            handle,
            from,
            local,
            to,
            interface,
            hop_limit,
            mut header,
            transmit_field,
            trailer,
        } = transmission;
        let read = clock::realtime();
        if transmit_field == TransmitField::Clock {
            header.set_transmit_timestamp(read.to_ntp());
        }
        let mut payload = header.as_bytes().to_vec();
        match trailer {
            Trailer::None => {}
            Trailer::CryptoNak => payload.extend_from_slice(&[0; 4]),
            Trailer::Mac(key) => {
                if let Err(error) = self.keys.append(key, &mut payload) {
                    let instance = self.instance_of(from);
                    self.note_reachability(
                        (instance, to, interface),
                        Some(&io::Error::other(error.to_string())),
                    );
                    return self.events.push_back(Event::SendFailed { handle });
                }
            }
        }
        let outgoing = Outgoing { to: Some(to), from: local, interface: interface.0, hop_limit };
        let instance = self.instance_of(from);
        let now = clock::monotonic();
        let written = header.transmit_timestamp();
        let (result, departures) = match from {
            SocketName::Exchange(name) => match self.exchanges.get_mut(&name) {
                Some(exchange) => {
                    let result = exchange.socket.send(&payload, &Outgoing { to: None, ..outgoing });
                    (result.map(|()| &exchange.socket), &mut exchange.departures)
                }
                // Why it could not be opened has been told.
                None => return self.events.push_back(Event::SendFailed { handle }),
            },
            SocketName::Service(InstanceId(number)) => match self.networks.get_mut(usize::from(number)) {
                Some(Network { service, departures, .. }) => {
                    let sender = service.sender(to);
                    let sent = sender.and_then(|sender| sender.send(&payload, &outgoing).map(|()| sender));
                    (sent, departures)
                }
                // Nobody but we tells the controller which there are.
                None => return self.events.push_back(Event::SendFailed { handle }),
            },
        };
        match result {
            Ok(socket) => {
                self.sent += 1;
                departures.add(handle, written, read, payload, now, &mut self.events);
                // Most drivers have it by now.
                departures.collect(socket, &mut self.events);
                self.note_reachability((instance, to, interface), None);
            }
            Err(error) => {
                self.note_reachability((instance, to, interface), Some(&error));
                self.events.push_back(Event::SendFailed { handle });
            }
        }
    }

    /// Logs when sending to somebody begins or ceases to fail.
    pub(super) fn note_reachability(&mut self, whom: Whom, error: Option<&io::Error>) {
        let (instance, to, _) = whom;
        match error {
            None => {
                if self.unreachable.remove(&whom).is_some() {
                    info!(instance = self.label(instance), %to, "can be sent to again");
                }
            }
            Some(error) => {
                let text = error.to_string();
                if self.unreachable.get(&whom) != Some(&text) {
                    warn!(instance = self.label(instance), %to, error = text, "cannot be sent to; it is tried again");
                    // Remotes come and go, so what is remembered of them is bounded.
                    if self.unreachable.len() >= crate::control::controller::ASSOCIATIONS_MAX {
                        self.unreachable.pop_first();
                    }
                    self.unreachable.insert(whom, text);
                }
            }
        }
    }

    /// In which instance a socket is.
    fn instance_of(&self, socket: SocketName) -> InstanceId {
        match socket {
            SocketName::Service(instance) => instance,
            SocketName::Exchange(name) => {
                self.exchanges.get(&name).map(|exchange| exchange.instance).unwrap_or_default()
            }
        }
    }

    pub(super) fn collect_departures(&mut self, instance: InstanceId) {
        let Some(network) = self.networks.get_mut(usize::from(instance.0)) else { return };
        for sender in network.service.senders() {
            network.departures.collect(sender, &mut self.events);
            // Nothing is received there but what ICMP says, which would keep the descriptor ready.
            let _ = sender.receive();
        }
    }
}
