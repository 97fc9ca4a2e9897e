//! What comes back to the sockets of our own questions.

use super::{Associations, BatchClock, DATAGRAMS_PER_TURN};
use crate::control::{
    Access, Arrival, Delivery, Event, ExchangeSocket, InterfaceIndex, SocketName, StampKind,
};
use crate::wire::Packet;
use tracing::debug;

impl Associations {
    /// What came to the socket of an exchange.
    pub(super) fn hear(&mut self, name: ExchangeSocket) {
        let Some(exchange) = self.exchanges.get_mut(&name) else { return };
        exchange.departures.collect(&exchange.socket, &mut self.events);
        for _ in 0..DATAGRAMS_PER_TURN {
            // The last packet may have closed it.
            let Some(exchange) = self.exchanges.get_mut(&name) else { return };
            let incoming = match exchange.socket.receive() {
                Ok(Some(incoming)) => incoming,
                Ok(None) => break,
                // An ICMP error, which is told once: nobody listens there, and the poll will be in vain.
                Err(error) => {
                    debug!(%error, "from a source");
                    break;
                }
            };
            exchange.departures.give_up(&mut self.events);
            let instance = exchange.instance;
            let clock = BatchClock::read();
            let stamp = incoming.receive_timestamp.and_then(|stamp| clock.plausible(stamp));
            let local = incoming.destination.unwrap_or_else(|| exchange.socket.local_address().ip());
            let Ok(packet) = Packet::parse(incoming.payload()) else { continue };
            self.events.push_back(Event::Packet(Arrival {
                socket: SocketName::Exchange(name),
                instance,
                interface: InterfaceIndex(incoming.interface),
                remote: incoming.source,
                local,
                delivery: Delivery::Unicast,
                receive_timestamp: stamp.unwrap_or(clock.realtime).to_ntp(),
                stamp: if stamp.is_some() { StampKind::Kernel } else { StampKind::Daemon },
                // We chose whom to ask.
                access: Access::Allowed,
                authentication: self.keys.verify(incoming.payload()),
                header: *packet.header,
            }));
            self.run();
        }
    }
}
