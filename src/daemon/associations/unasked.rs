//! What comes to port 123 and is no client's request: passed up by the workers, or heard at a group or broadcast address.

use super::service::Listening;
use super::{Associations, BatchClock, DATAGRAMS_PER_TURN, Network, StampKind};
use crate::control::{Access, Arrival, Delivery, Event, InstanceId, InterfaceIndex, SocketName};
use crate::daemon::worker::Passed;
use crate::serve::access::Action;
use crate::sys::socket::Incoming;
use crate::time::{Realtime, Timestamp};
use crate::wire::Packet;
use std::net::{IpAddr, SocketAddr};

/// The longest packet that is passed up: header, longest MAC, and some extension fields.
pub const PASSED_OCTETS_MAX: usize = 256;

impl Associations {
    /// A packet that came to an address of ours. `false`: nobody waited for it.
    pub(in crate::daemon) fn take(&mut self, passed: &Passed) -> bool {
        let interface = match passed.destination {
            SocketAddr::V6(destination) => InterfaceIndex(destination.scope_id()),
            SocketAddr::V4(_) => InterfaceIndex(0),
        };
        let stamp = if passed.is_stamped { StampKind::Kernel } else { StampKind::Daemon };
        let (local, delivery) = (passed.destination.ip(), Delivery::Unicast);
        let (instance, stamped) = (passed.instance, (passed.receive_timestamp, stamp));
        self.arrive(passed.payload(), instance, passed.source, local, delivery, interface, stamped)
    }

    #[expect(clippy::too_many_arguments, reason = "they are the fields of an arrival")]
    fn arrive(
        &mut self,
        payload: &[u8],
        instance: InstanceId,
        remote: SocketAddr,
        local: IpAddr,
        delivery: Delivery,
        interface: InterfaceIndex,
        (receive_timestamp, stamp): (Timestamp<Realtime>, StampKind),
    ) -> bool {
        let Ok(packet) = Packet::parse(payload) else { return false };
        // What left before this came is told first. Strangers come by the thousand, so the kernel is not asked for nothing.
        if let Some(Network { service, departures, .. }) = self.networks.get_mut(usize::from(instance.0))
            && departures.next().is_some()
        {
            for sender in service.senders() {
                departures.collect(sender, &mut self.events);
            }
            departures.give_up(&mut self.events);
        }
        self.run();
        let before = self.unwanted();
        self.events.push_back(Event::Packet(Arrival {
            socket: SocketName::Service(instance),
            instance,
            interface,
            remote,
            local,
            delivery,
            receive_timestamp: receive_timestamp.to_ntp(),
            stamp,
            access: self.access_of(instance, remote),
            authentication: self.keys.verify(payload),
            header: *packet.header,
        }));
        self.run();
        self.unwanted() == before
    }

    fn unwanted(&self) -> u64 {
        let counters = self.controller.counters();
        counters.discarded + counters.strays + counters.peers_refused
    }

    /// The access list is for those who come unasked; whom the configuration names has been let in by it.
    fn access_of(&self, instance: InstanceId, remote: SocketAddr) -> Access {
        let is_configured = || {
            let mut associations = self.controller.associations();
            associations.any(|association| {
                association.source.is_some()
                    && (association.instance, association.remote) == (instance, remote)
            })
        };
        match self.access.lookup(remote.ip()) {
            Action::Allow => Access::Allowed,
            _ if is_configured() => Access::Allowed,
            _ => Access::Denied,
        }
    }

    /// What came to a group or broadcast address.
    pub(super) fn listen(&mut self, instance: InstanceId, place: Listening) {
        for _ in 0..DATAGRAMS_PER_TURN {
            let Some(network) = self.networks.get(usize::from(instance.0)) else { return };
            let Some(socket) = network.service.listener(place) else { return };
            let Ok(Some(incoming)) = socket.receive() else { return };
            let local = incoming.destination.unwrap_or(place.0);
            // A broadcast comes back to whoever sent it.
            let is_own = incoming.source.port() == self.port && network.own.contains(&incoming.source.ip());
            if is_own || !(local.is_multicast() || local == place.0) {
                continue;
            }
            let delivery = if local.is_multicast() { Delivery::Multicast } else { Delivery::Broadcast };
            let interface = InterfaceIndex(incoming.interface);
            let _ = self.arrive(
                incoming.payload(),
                instance,
                incoming.source,
                local,
                delivery,
                interface,
                stamped(&incoming),
            );
        }
    }
}

/// When it came, and who says so.
fn stamped(incoming: &Incoming) -> (Timestamp<Realtime>, StampKind) {
    let clock = BatchClock::read();
    match incoming.receive_timestamp.and_then(|stamp| clock.plausible(stamp)) {
        Some(stamp) => (stamp, StampKind::Kernel),
        None => (clock.realtime, StampKind::Daemon),
    }
}
