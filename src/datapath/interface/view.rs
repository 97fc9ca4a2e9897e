//! The interfaces and addresses of one network namespace, as far as we know them: plain data that events change.
//!
//! Owns: what an event does to the view, the difference of two views, and the questions the data path asks of it.
//! Does not own: where events come from (the parent module and `decode`).
//!
//! The one idea a newcomer lacks: an interface index is not an identity. An interface that leaves for another namespace
//! and comes back keeps its index but has lost its XDP program and its sockets, so each arrival is counted.

use super::TagStack;
use crate::datapath::udp::LocalAddress;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Interface {
    /// The kernel's number for it.
    pub ifindex: u32,
    /// Its name, which may change.
    pub name: String,
    /// Someone has switched it on.
    pub enabled: bool,
    /// It is switched on and its carrier is there.
    pub up: bool,
    /// Largest IP packet in octets; 0 when unknown.
    pub mtu: u32,
    /// Its Ethernet address.
    #[serde(serialize_with = "mac_text")]
    pub mac: Option<[u8; 6]>,
    /// What the kernel calls its kind: "veth", "vlan", ...; physical devices have none.
    pub kind: Option<String>,
    /// Index of the interface that it is enslaved to: a bridge, a bond, a VRF.
    pub master: Option<u32>,
    /// Receive queues it was made with (in use: ask ethtool).
    pub rx_queues: Option<u32>,
    /// Transmit queues it was made with.
    pub tx_queues: Option<u32>,
    /// For a VLAN interface: of which interface, and its tag.
    pub vlan: Option<VlanLink>,
    /// How many interfaces this view had met when it met this one.
    #[serde(skip)]
    pub(super) arrival: u64,
}

/// Serializes an Ethernet address the way people write it.
fn mac_text<S: serde::Serializer>(mac: &Option<[u8; 6]>, to: S) -> Result<S::Ok, S::Error> {
    match mac {
        Some([a, b, c, d, e, f]) => {
            to.collect_str(&format_args!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"))
        }
        None => to.serialize_none(),
    }
}

/// How a VLAN interface hangs on its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VlanLink {
    /// Index of the parent, which is in the same network namespace.
    pub parent: u32,
    /// VLAN identifier, 0 to 4095.
    pub id: u16,
    /// EtherType of the tag: 0x8100 (802.1Q) or 0x88a8 (802.1ad).
    pub protocol: u16,
}

/// One address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Address {
    /// Whose it is.
    pub ifindex: u32,
    /// The address on our side.
    pub address: IpAddr,
    /// The other side of a point-to-point address; without one, `address` again.
    pub peer: IpAddr,
    /// Length of the prefix in bits.
    pub prefix_length: u8,
    /// `RT_SCOPE_*`: 0 global, 253 link, 254 host.
    pub scope: u8,
    /// Duplicate address detection is still running.
    pub tentative: bool,
    /// Tentative, but may be used already (RFC 4429).
    pub optimistic: bool,
    /// Another host has it.
    pub dad_failed: bool,
    /// Still ours, but not for new conversations; a server answers on it.
    pub deprecated: bool,
}

/// The kernel tells two addresses apart by all of these.
type AddressKey = (u32, IpAddr, u8, IpAddr);

impl Address {
    /// A socket can be bound to it, and the kernel takes packets for it.
    pub fn is_usable(&self) -> bool {
        !self.dad_failed && (!self.tentative || self.optimistic)
    }

    fn key(&self) -> AddressKey {
        (self.ifindex, self.address, self.prefix_length, self.peer)
    }
}

/// An address for the XDP program's map: requests for it on these tags are ours, in frames to this MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SteeringAddress {
    /// VLAN identifiers from the outside in, 0 for none.
    pub tags: TagStack,
    /// Our address.
    pub address: IpAddr,
    /// The Ethernet address of the interface that has it. Frames to another one reach us too, in promiscuous mode.
    pub mac: [u8; 6],
}

/// What the kernel may tell us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An interface is there, or changed.
    Link(Interface),
    /// An interface is gone.
    LinkGone(u32),
    /// An address is there, or changed.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
}

/// Every interface and address that we know of.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub(super) interfaces: BTreeMap<u32, Interface>,
    pub(super) addresses: BTreeMap<AddressKey, Address>,
    arrivals: u64,
}

impl View {
    /// Takes in one event. Events may repeat what is known.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Link(mut link) => {
                link.arrival = match self.interfaces.get(&link.ifindex) {
                    Some(known) => known.arrival,
                    None => {
                        self.arrivals += 1;
                        self.arrivals
                    }
                };
                self.interfaces.insert(link.ifindex, link);
            }
            Event::LinkGone(ifindex) => {
                self.interfaces.remove(&ifindex);
                self.addresses.retain(|_, address| address.ifindex != ifindex);
            }
            Event::Address(address) => {
                self.addresses.insert(address.key(), address);
            }
            Event::AddressGone(address) => {
                self.addresses.remove(&address.key());
            }
        }
    }

    /// Takes the arrival numbers of a view that this one, read afresh, replaces.
    pub(super) fn continue_from(&mut self, old: &View) {
        self.arrivals = old.arrivals;
        for (ifindex, link) in &mut self.interfaces {
            link.arrival = match old.interfaces.get(ifindex) {
                Some(known) if known.mac == link.mac && known.kind == link.kind => known.arrival,
                _ => {
                    self.arrivals += 1;
                    self.arrivals
                }
            };
        }
    }

    /// The interface with this index.
    pub fn interface(&self, ifindex: u32) -> Option<&Interface> {
        self.interfaces.get(&ifindex)
    }

    /// The interface with this name.
    pub fn interface_named(&self, name: &str) -> Option<&Interface> {
        self.interfaces.values().find(|link| link.name == name)
    }

    /// Every interface, by index.
    pub fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.values()
    }

    /// Every address of an interface, usable or not.
    pub fn addresses(&self, ifindex: u32) -> impl Iterator<Item = &Address> {
        let first = (ifindex, IpAddr::from([0; 4]), 0, IpAddr::from([0; 4]));
        self.addresses
            .range(first..)
            .map(|(_, address)| address)
            .take_while(move |one| one.ifindex == ifindex)
    }

    /// The addresses of an interface that sockets can be bound to, each once.
    pub fn local_addresses(&self, ifindex: u32) -> Vec<LocalAddress> {
        let mut locals: Vec<_> = self
            .addresses(ifindex)
            .filter(|address| address.is_usable())
            .map(|one| LocalAddress::new(one.address, ifindex))
            .collect();
        locals.dedup();
        locals
    }

    /// The VLAN interfaces on top of an interface, and those on top of them, with the tags of their frames.
    /// A third tag does not fit a [`TagStack`]: the kernel's path serves such interfaces.
    pub fn vlan_children(&self, ifindex: u32) -> Vec<(TagStack, &Interface)> {
        let children_of = |parent: u32| {
            let link_to_parent = move |link: &VlanLink| link.parent == parent;
            self.interfaces.values().filter_map(move |one| Some((one.vlan.filter(link_to_parent)?.id, one)))
        };
        let mut all = Vec::new();
        for (outer, child) in children_of(ifindex) {
            all.push(([outer, 0], child));
            all.extend(children_of(child.ifindex).map(|(inner, grandchild)| ([outer, inner], grandchild)));
        }
        all
    }

    /// What the XDP program on an interface may take, sorted, each once: its own addresses without a tag and with each
    /// of `extra_tags` (trunks that have no VLAN interfaces here), and the addresses of its VLAN interfaces with theirs.
    ///
    /// An address of another interface (an anycast address on `lo`, say) is not in the list, though the kernel would
    /// take packets for it here: they go up to the sockets. So do all packets of an interface without a MAC of six bytes.
    pub fn steering_addresses(&self, ifindex: u32, extra_tags: &[TagStack]) -> Vec<SteeringAddress> {
        let mut stacks = vec![([0, 0], ifindex)];
        stacks.extend(extra_tags.iter().map(|&tags| (tags, ifindex)));
        for (tags, child) in self.vlan_children(ifindex) {
            // The kernel drops what reaches a VLAN interface that is switched off, or whose own parent is.
            let parent_enabled = child
                .vlan
                .and_then(|link| self.interface(link.parent))
                .is_some_and(|parent| parent.ifindex == ifindex || parent.enabled);
            if child.enabled && parent_enabled {
                stacks.push((tags, child.ifindex));
            }
        }
        // A VLAN interface comes after the extra tags and overrules them: the kernel gives it the frames with its tags.
        let mut macs = BTreeMap::new();
        for (tags, owner) in stacks {
            let Some(mac) = self.interface(owner).and_then(|link| link.mac) else { continue };
            let usable = self.addresses(owner).filter(|address| address.is_usable());
            macs.extend(usable.map(|one| ((tags, one.address), mac)));
        }
        macs.into_iter().map(|((tags, address), mac)| SteeringAddress { tags, address, mac }).collect()
    }
}
/// A new name of a known interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rename {
    /// Which interface.
    pub ifindex: u32,
    /// Its name until now.
    pub from: String,
    /// Its name from now on.
    pub to: String,
}

/// What differs between two views. One that came and went between them is in neither list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Changes {
    /// Interfaces that were not there, or not this one: same index, but gone and back in between.
    pub appeared: Vec<Interface>,
    /// Interfaces that are gone. One that is gone and back is in both lists.
    pub removed: Vec<Interface>,
    /// Interfaces that carry packets again.
    pub came_up: Vec<u32>,
    /// Interfaces that no longer carry packets.
    pub went_down: Vec<u32>,
    /// Interfaces with a new name.
    pub renamed: Vec<Rename>,
    /// Interfaces of which something else changed: MTU, hardware address, tag, switched on.
    pub altered: Vec<u32>,
    /// Addresses that have become usable: added, or past duplicate address detection.
    pub addresses_added: Vec<Address>,
    /// Addresses that can no longer be used.
    pub addresses_removed: Vec<Address>,
    /// The kernel dropped messages and everything was read again. What came, went and came back meanwhile is not in
    /// the lists: look after attachments.
    pub resynchronised: bool,
}

impl Changes {
    /// What happened between two views of the same namespace.
    pub fn between(old: &View, new: &View) -> Self {
        let mut changes = Self::default();
        for link in new.interfaces() {
            match old.interface(link.ifindex).filter(|known| known.arrival == link.arrival) {
                Some(known) => changes.compare(known, link),
                None => changes.appeared.push(link.clone()),
            }
        }
        for link in old.interfaces() {
            if new.interface(link.ifindex).is_none_or(|now| now.arrival != link.arrival) {
                changes.removed.push(link.clone());
            }
        }
        changes.addresses_added = usable_only_in(new, old);
        changes.addresses_removed = usable_only_in(old, new);
        changes
    }

    fn compare(&mut self, known: &Interface, link: &Interface) {
        match (known.up, link.up) {
            (false, true) => self.came_up.push(link.ifindex),
            (true, false) => self.went_down.push(link.ifindex),
            _ => {}
        }
        if known.name != link.name {
            self.renamed.push(Rename {
                ifindex: link.ifindex,
                from: known.name.clone(),
                to: link.name.clone(),
            });
        }
        if (Interface { up: link.up, name: link.name.clone(), ..known.clone() }) != *link {
            self.altered.push(link.ifindex);
        }
    }

    /// Nothing happened that anyone could act upon.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn usable_only_in(one: &View, other: &View) -> Vec<Address> {
    let usable_there = |key| other.addresses.get(key).is_some_and(Address::is_usable);
    let missing = one.addresses.iter().filter(|(key, address)| address.is_usable() && !usable_there(key));
    missing.map(|(_, address)| address.clone()).collect()
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
