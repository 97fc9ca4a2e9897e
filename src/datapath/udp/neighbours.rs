//! Groups that share a network namespace without sharing a network: one for each VRF, and one for what belongs to none.
//!
//! The one idea a newcomer lacks: sockets that are tied to different VRFs may hold one address and port each, and each gets
//! what comes in its own VRF. So may a socket that is tied to nothing, and gets the rest; but bind(2) takes that one to be
//! in everybody's way, whoever comes first, unless both are open to a `SO_REUSEPORT` group. (They are no such group then:
//! that is of sockets of one device only.)

use super::LocalAddress;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many of the groups hold each address.
#[derive(Clone, Default, Debug)]
pub struct Neighbours(Arc<Mutex<BTreeMap<LocalAddress, usize>>>);

impl Neighbours {
    pub(super) fn add(&self, address: LocalAddress) {
        *self.held().entry(address).or_default() += 1;
    }

    pub(super) fn remove(&self, address: LocalAddress) {
        let mut held = self.held();
        let left = held.get(&address).map_or(0, |holders| holders.saturating_sub(1));
        match left {
            0 => _ = held.remove(&address),
            left => _ = held.insert(address, left),
        }
    }

    /// Does any of them hold it?
    pub(super) fn hold(&self, address: LocalAddress) -> bool {
        self.held().contains_key(&address)
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<LocalAddress, usize>> {
        // A count is right or not begun, whatever became of who counted.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{OpenError, UdpGroup};
    use super::*;
    use crate::sys::socket::UdpOptions;

    const PORT: u16 = 11_125;

    fn group(device: Option<&str>, workers: usize) -> UdpGroup {
        let options = UdpOptions { device: device.map(str::to_owned), receive_buffer: None };
        UdpGroup::new(PORT, workers, options).0
    }

    /// The loopback interface is as good as a VRF: bind(2) makes no difference.
    #[test]
    fn neighbours_may_have_the_same_address_and_strangers_may_not() {
        let address = |last: u8| LocalAddress::new([127, 0, 4, last].into(), 0);
        let serves = |group: &mut UdpGroup, last: u8| match &group.sync_addresses(&[address(last)]).failed[..]
        {
            [] => true,
            [(_, OpenError::AddressInUse(_))] => false,
            other => unreachable!("{other:?}"),
        };
        for (last, workers, first, second) in [
            (1, 1, None, Some("lo")),
            (3, 2, None, Some("lo")),
            (5, 1, Some("lo"), None),
            (7, 2, Some("lo"), None),
        ] {
            let neighbours = Neighbours::default();
            let among = |device| group(device, workers).divert().among(neighbours.clone());
            let (mut ours, mut beside, mut stranger) = (among(first), among(second), group(second, workers));
            assert!(serves(&mut ours, last));
            assert!(!serves(&mut stranger, last), "nobody has said that we may both be there");
            assert!(serves(&mut beside, last), "{second:?} beside {first:?}");
            // What was given up is nobody's any more.
            assert!(serves(&mut ours, last + 1) && serves(&mut beside, last + 1));
            assert!(!neighbours.hold(address(last)) && neighbours.hold(address(last + 1)));
            assert!(serves(&mut stranger, last));
            assert!(!serves(&mut ours, last), "and a stranger is noticed as ever");
        }
    }

    #[test]
    fn what_is_renewed_is_served_by_other_sockets() {
        let (mut group, mut ports) = UdpGroup::new(PORT + 1, 1, UdpOptions::default());
        let address = LocalAddress::new([127, 0, 4, 1].into(), 0);
        assert!(group.sync_addresses(&[address]).failed.is_empty());
        assert!(ports[0].apply_changes() && ports[0].local_address(0).is_some());
        group.renew();
        assert_eq!(group.addresses().count(), 0);
        assert!(ports[0].apply_changes() && ports[0].local_address(0).is_none());
        let report = group.sync_addresses(&[address]);
        assert_eq!((report.added, report.failed.len()), (vec![address], 0));
    }
}
