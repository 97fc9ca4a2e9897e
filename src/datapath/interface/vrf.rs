//! A VRF's part of a view.
//!
//! The one idea a newcomer lacks: a VRF is a device, and the interfaces enslaved to it, with their addresses, are its network.
//! What belongs to no VRF is a network of its own: a socket that is tied to no device is of that one.

use super::view::{Interface, View};
use std::borrow::Cow;

/// What the kernel calls the kind of such a device.
const KIND: &str = "vrf";

impl View {
    /// The VRF devices there are.
    pub fn vrfs(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces().filter(|one| one.kind.as_deref() == Some(KIND))
    }

    /// The interfaces and addresses of the VRF of this name, none if there is no such device; or those that belong to none.
    #[must_use]
    pub fn of_vrf(&self, name: Option<&str>) -> Cow<'_, Self> {
        let devices: Vec<u32> = self.vrfs().map(|device| device.ifindex).collect();
        if name.is_none() && devices.is_empty() {
            return Cow::Borrowed(self);
        }
        let wanted = match name {
            None => Some(None),
            Some(name) => self.vrfs().find(|device| device.name == name).map(|device| Some(device.ifindex)),
        };
        let vrf_of = |one: &Interface| match one.master.filter(|master| devices.contains(master)) {
            Some(master) => Some(master),
            None => devices.contains(&one.ifindex).then_some(one.ifindex),
        };
        let mut ours = self.clone();
        ours.interfaces.retain(|_, one| wanted == Some(vrf_of(one)));
        let (interfaces, addresses) = (&ours.interfaces, &mut ours.addresses);
        addresses.retain(|_, address| interfaces.contains_key(&address.ifindex));
        Cow::Owned(ours)
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::{Address, Event};
    use super::*;

    fn view(with_vrfs: bool) -> View {
        let mut view = View::default();
        let vrf = with_vrfs.then_some(KIND);
        // Number, name, kind, master: two VRFs, a bridge, and who belongs to them.
        let table = [
            (1, "lo", None, None),
            (2, "eth0", None, None),
            (3, "red", vrf, None),
            (4, "blue", vrf, None),
            (5, "eth1", None, with_vrfs.then_some(3)),
            (6, "eth2", None, with_vrfs.then_some(4)),
            (7, "br0", Some("bridge"), None),
            (8, "eth3", None, Some(7)),
        ];
        for (ifindex, name, kind, master) in table {
            view.apply(Event::Link(Interface {
                ifindex,
                name: name.to_owned(),
                enabled: true,
                up: true,
                mtu: 1500,
                mac: None,
                kind: kind.map(str::to_owned),
                master,
                rx_queues: None,
                tx_queues: None,
                vlan: None,
                arrival: 0,
            }));
            let address = "10.99.0.1".parse().unwrap();
            view.apply(Event::Address(Address {
                ifindex,
                address,
                peer: address,
                prefix_length: 24,
                scope: 0,
                tentative: false,
                optimistic: false,
                dad_failed: false,
                deprecated: false,
            }));
        }
        view
    }

    fn names(view: &View) -> Vec<&str> {
        let ours = view.interfaces().filter(|one| view.local_addresses(one.ifindex).len() == 1);
        ours.map(|one| one.name.as_str()).collect()
    }

    #[test]
    fn each_vrf_has_its_own_interfaces_and_the_rest_has_the_others() {
        let all = view(true);
        assert_eq!(names(&all.of_vrf(Some("red"))), ["red", "eth1"]);
        assert_eq!(names(&all.of_vrf(Some("blue"))), ["blue", "eth2"]);
        assert_eq!(names(&all.of_vrf(None)), ["lo", "eth0", "br0", "eth3"]);
        assert!(names(&all.of_vrf(Some("br0"))).is_empty(), "a bridge is no VRF");
        assert!(names(&all.of_vrf(Some("green"))).is_empty());
    }

    #[test]
    fn without_vrfs_all_is_one_network() {
        let all = view(false);
        assert!(matches!(all.of_vrf(None), Cow::Borrowed(_)));
        assert!(names(&all.of_vrf(Some("red"))).is_empty(), "an interface of that name is no VRF");
    }
}
