//! What an interface dropped by itself, without what its AF_XDP sockets dropped and count too.
//!
//! Owns: that arithmetic. Does not own: the counters it is made from.
//!
//! The one idea a newcomer lacks: where the XDP program runs in the driver, it is the driver that hears of a packet which
//! a socket had no room for, and some count it as dropped by the interface: one packet, two counters. veth was seen to, in
//! driver mode and to the packet, and not to in skb mode.
//!
//! A counter must not fall, or it reads as one that began anew. So the interface has to be read before the sockets: then
//! the difference is never too large, at worst late.

use std::collections::BTreeMap;

/// Does this driver count, as dropped by the interface, what an XDP program in it redirected in vain?
#[must_use]
pub fn counts_failed_redirects(driver: &str) -> bool {
    driver == "veth"
}

/// The books of one interface.
#[derive(Debug, Default)]
pub struct NicDrops {
    /// Whose they are: another index is another interface, whose counters began anew.
    ifindex: Option<u32>,
    /// Of each queue: what its earlier sockets counted in all, and its present one.
    sockets: BTreeMap<u32, (u64, u64)>,
    shown: u64,
}

impl NicDrops {
    /// Takes in what the interface counts in all, read first, and what the sockets of its queues count, as far as that is
    /// in the former too. Returns the rest.
    pub fn update(
        &mut self,
        ifindex: Option<u32>,
        in_all: u64,
        of_sockets: impl Iterator<Item = (u32, u64)>,
    ) -> u64 {
        if self.ifindex != ifindex {
            *self = Self { ifindex, ..Self::default() };
        }
        for (queue, count) in of_sockets {
            let (before, present) = self.sockets.entry(queue).or_default();
            if count < *present {
                *before += *present;
            }
            *present = count;
        }
        let twice: u64 = self.sockets.values().map(|(before, present)| before + present).sum();
        self.shown = self.shown.max(in_all.saturating_sub(twice));
        self.shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sockets_count_too_is_left_out_and_nothing_falls() {
        let mut drops = NicDrops::default();
        let mut update = |ifindex, in_all, queues: &[(u32, u64)]| {
            drops.update(Some(ifindex), in_all, queues.iter().copied())
        };
        assert_eq!(update(2, 100, &[(0, 60), (1, 40)]), 0);
        assert_eq!(update(2, 107, &[(0, 60), (1, 40)]), 7);
        // The sockets were read later, and have counted more by then.
        assert_eq!(update(2, 110, &[(0, 65), (1, 45)]), 7);
        assert_eq!(update(2, 117, &[(0, 65), (1, 45)]), 7);
        assert_eq!(update(2, 118, &[(0, 65), (1, 45)]), 8);
        // A new socket begins at 0; a queue that is not reported has what it had.
        assert_eq!(update(2, 128, &[(0, 10)]), 8);
        assert_eq!(update(2, 129, &[(0, 10), (1, 45)]), 9);
        // Another interface of the name.
        assert_eq!(update(3, 5, &[(0, 2)]), 3);
    }

    #[test]
    fn without_sockets_it_is_all_of_it() {
        let mut drops = NicDrops::default();
        assert_eq!(drops.update(Some(2), 5, std::iter::empty()), 5);
        assert!(counts_failed_redirects("veth") && !counts_failed_redirects("ice"));
    }
}
