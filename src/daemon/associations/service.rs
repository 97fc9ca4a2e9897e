//! Control's own sockets at port 123: one for each address family to send from, one for each group and broadcast address
//! that we listen at.
//!
//! Owns: opening and closing them as interfaces come and go. Does not own: the sockets of our unicast addresses, which are
//! the workers'; what arrives there for us is passed up by them.
//!
//! The one idea a newcomer lacks: a socket that is bound to a multicast group nobody uses sends from port 123 and from
//! whichever address of ours routing chooses, but receives nothing. So nothing is taken from the workers' sockets, which
//! hold port 123 of each address for themselves alone, and the times our packets leave come to us.

use crate::config::{BroadcastClient, Config};
use crate::datapath::interface::{Interface, View};
use crate::sys::socket::TalkSocket;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use tracing::{info, warn};

/// The first addresses of both multicast ranges are reserved: RFC 5771 section 4 and RFC 4291 section 2.7.1.
const NO_GROUP_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0));
const NO_GROUP_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 0));
/// The most addresses that are listened at. Those of all interfaces, for who listens to any broadcast.
const PLACES_MAX: usize = 256;

/// An address that is listened at; with an interface only where the address means nothing without.
pub(super) type Listening = (IpAddr, u32);

/// The sockets.
#[derive(Debug)]
pub(super) struct Service {
    place: Arc<super::Place>,
    port: u16,
    ipv4: Option<TalkSocket>,
    ipv6: Option<TalkSocket>,
    places: BTreeMap<Listening, Listener>,
    /// What all of them are tied to.
    device_index: Option<u32>,
    /// What failed, and how that reads, so that it is logged once.
    failed: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Listener {
    socket: TalkSocket,
    /// Interfaces on which the group is joined.
    joined: BTreeSet<u32>,
}

impl Service {
    pub(super) const fn new(place: Arc<super::Place>, port: u16) -> Self {
        let places = BTreeMap::new();
        Self { place, port, ipv4: None, ipv6: None, places, device_index: None, failed: BTreeMap::new() }
    }

    /// What sends to an address of this family.
    pub(super) fn sender(&mut self, to: SocketAddr) -> io::Result<&TalkSocket> {
        let (slot, group) = match to {
            SocketAddr::V4(_) => (&mut self.ipv4, NO_GROUP_V4),
            SocketAddr::V6(_) => (&mut self.ipv6, NO_GROUP_V6),
        };
        match slot {
            Some(socket) => Ok(socket),
            None => {
                let address = SocketAddr::new(group, self.port);
                let opened = self.place.inside(|| TalkSocket::bound(address, self.place.device()))??;
                Ok(slot.insert(opened))
            }
        }
    }

    /// Those that may have news of departures.
    pub(super) fn senders(&self) -> impl Iterator<Item = &TalkSocket> {
        self.ipv4.iter().chain(&self.ipv6)
    }

    /// Where is listened, and through which socket.
    pub(super) fn listeners(&self) -> impl Iterator<Item = (Listening, &TalkSocket)> {
        self.places.iter().map(|(place, listener)| (*place, &listener.socket))
    }

    /// The socket of one place.
    pub(super) fn listener(&self, place: Listening) -> Option<&TalkSocket> {
        self.places.get(&place).map(|listener| &listener.socket)
    }

    /// Is there an address that is not listened at, and should be?
    pub(super) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Why an address is not listened at, if it should be and is not, perhaps on one interface.
    pub(super) fn failure(&self, address: IpAddr) -> Option<String> {
        let address = address.to_string();
        self.failed.iter().find_map(|(what, error)| match what.strip_prefix(&address)? {
            "" => Some(error.clone()),
            place if place.starts_with(' ') => Some(format!("{error}{place}")),
            _ => None,
        })
    }

    /// Listens at exactly what the configuration wants and the interfaces of now allow.
    pub(super) fn sync(&mut self, config: &Config, view: &View) {
        let device_index = self.place.device_index(view);
        if std::mem::replace(&mut self.device_index, device_index) != device_index {
            (self.ipv4, self.ipv6) = (None, None);
            self.places.clear();
        }
        let wanted = wanted(config, &self.place.name, view);
        let mut failed = BTreeMap::new();
        self.places.retain(|place, _| wanted.contains_key(place));
        for (place, interfaces) in wanted {
            // Whoever binds it first has it for himself, and the workers answer there.
            if view.interfaces().flat_map(|one| view.addresses(one.ifindex)).any(|own| own.address == place.0)
            {
                let reason = "it is an address of this machine, and no broadcast address";
                failed.insert(place.0.to_string(), reason.to_owned());
                self.places.remove(&place);
                continue;
            }
            if let Err(error) = self.listen(place, &interfaces, &mut failed) {
                failed.insert(place.0.to_string(), error.to_string());
            }
        }
        for (what, error) in &failed {
            if self.failed.get(what) != Some(error) {
                warn!(instance = self.place.label(), at = what, error, "not listened at; it is tried again");
            }
        }
        self.failed = failed;
    }

    fn listen(
        &mut self,
        place: Listening,
        interfaces: &BTreeSet<u32>,
        failed: &mut BTreeMap<String, String>,
    ) -> io::Result<()> {
        let (address, scope) = place;
        let listener = match self.places.entry(place) {
            std::collections::btree_map::Entry::Occupied(there) => there.into_mut(),
            std::collections::btree_map::Entry::Vacant(room) => {
                let local = match address {
                    IpAddr::V4(_) => SocketAddr::new(address, self.port),
                    IpAddr::V6(address) => SocketAddrV6::new(address, self.port, 0, scope).into(),
                };
                let socket = self.place.inside(|| TalkSocket::bound(local, self.place.device()))??;
                info!(instance = self.place.label(), %address, "listening");
                room.insert(Listener { socket, joined: BTreeSet::new() })
            }
        };
        if !address.is_multicast() {
            return Ok(());
        }
        let Listener { socket, joined } = listener;
        joined.retain(|interface| {
            let stays = interfaces.contains(interface);
            if !stays {
                // With the interface the membership is gone, too.
                let _ = socket.leave(address, *interface);
            }
            stays
        });
        for interface in interfaces {
            if !joined.contains(interface) {
                match socket.join(address, *interface) {
                    Ok(()) => _ = joined.insert(*interface),
                    Err(error) => {
                        _ = failed.insert(format!("{address} on interface {interface}"), error.to_string());
                    }
                }
            }
        }
        Ok(())
    }
}

/// Addresses to listen at, and for groups the interfaces.
fn wanted(config: &Config, instance: &str, view: &View) -> BTreeMap<Listening, BTreeSet<u32>> {
    let clients = config.sources.broadcast_clients.iter().filter(|one| one.instance == instance);
    let clients = clients.map(|one| (one.address, one.interface.as_deref()));
    let servers = config.sources.manycast_servers.iter().filter(|one| one.instance == instance);
    let servers = servers.map(|one| (one.address, one.interface.as_deref()));
    let mut wanted: BTreeMap<Listening, BTreeSet<u32>> = BTreeMap::new();
    for (address, name) in clients.chain(servers) {
        let is_meant = |interface: &&Interface| match name {
            Some(name) => interface.name == name,
            None => interface.name != "lo",
        };
        for interface in view.interfaces().filter(is_meant) {
            let index = interface.ifindex;
            if address == BroadcastClient::ANY {
                let found = view.addresses(index).filter(|one| one.is_usable());
                let found = found.filter_map(|one| broadcast_address(one.address, one.prefix_length));
                wanted.extend(found.map(|address| ((address, 0), BTreeSet::new())));
                wanted.entry((IpAddr::V4(Ipv4Addr::BROADCAST), 0)).or_default();
            } else if address.is_multicast() {
                let scope = if needs_scope(address) { index } else { 0 };
                let has_family = view
                    .addresses(index)
                    .any(|one| one.is_usable() && one.address.is_ipv4() == address.is_ipv4());
                if has_family {
                    wanted.entry((address, scope)).or_default().insert(index);
                }
            } else {
                wanted.entry((address, 0)).or_default();
            }
        }
    }
    while wanted.len() > PLACES_MAX {
        wanted.pop_last();
    }
    wanted
}

fn needs_scope(group: IpAddr) -> bool {
    // Interface-local and link-local groups: RFC 4291 section 2.7.
    matches!(group, IpAddr::V6(group) if matches!(group.octets()[1] & 0x0f, 1 | 2))
}

/// The last address of a network that has one for everybody.
fn broadcast_address(address: IpAddr, prefix_length: u8) -> Option<IpAddr> {
    let IpAddr::V4(address) = address else { return None };
    let host_bits = u32::MAX.checked_shr(prefix_length.into()).unwrap_or(0);
    (prefix_length < 31).then(|| IpAddr::from((address.to_bits() | host_bits).to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_networks_last_address_is_everybodys() {
        let of = |address: &str, length| {
            broadcast_address(address.parse().unwrap(), length).map(|address| address.to_string())
        };
        assert_eq!(of("10.99.1.1", 24).as_deref(), Some("10.99.1.255"));
        assert_eq!(of("10.99.1.1", 30).as_deref(), Some("10.99.1.3"));
        assert_eq!(of("10.99.1.1", 0).as_deref(), Some("255.255.255.255"));
        assert_eq!((of("10.99.1.1", 31), of("10.99.1.1", 32), of("fd99::1", 64)), (None, None, None));
    }
}
