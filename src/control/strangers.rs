//! How much we send to strangers: to whoever is no association of ours, and may not be who the packet says.
//!
//! Owns: a budget for each sender and one for all. Does not own: what is sent.
//!
//! The one idea a newcomer lacks: nobody proves his address to us. Whoever asks a multicast group in a victim's name has
//! every server of the group answer the victim, and no server sees the others' answers. So each of them must send so
//! little that all of them together do no harm: a packet a second to one address, and not many more to all. (Answers
//! are never longer than what they answer; the group is the amplifier, not the packet.)

use super::event::InstanceId;
use crate::time::{Monotonic, NtpDuration, Timestamp};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Between two packets to one sender, in the long run. Whoever searches asks once a minute, and a peer polls every 16 s
/// or less often; NTP knows no interval below a second.
pub const SENDER_INTERVAL: NtpDuration = NtpDuration::from_seconds(1);
/// So many packets to one sender at once, if it was silent before: the questions of a search that begins.
pub const SENDER_BURST: u32 = 4;
/// Between two packets to any, in the long run: 16 ms, 64 a second or 6 kB/s. That answers a search each minute of some
/// thousand clients.
pub const ALL_INTERVAL: NtpDuration = NtpDuration::from_bits(1 << 26);
/// So many packets at once.
pub const ALL_BURST: u32 = 64;
/// Senders remembered. They are forgotten after `SENDER_BURST` intervals of silence, in which all of them together have
/// no more than 320 packets; so this is never reached, and the table is bounded all the same.
pub const SENDERS_MAX: usize = 512;

/// A host, or an IPv6 network that may be all one host's.
type Sender = (InstanceId, IpAddr);

/// What was sent to strangers lately. (The generic cell rate algorithm, as in the server's limiter: for each the time
/// at which the next packet were due if they had come at the rate allowed.)
#[derive(Clone, Debug, Default)]
pub struct Budget {
    due: BTreeMap<Sender, Timestamp<Monotonic>>,
    all_due: Option<Timestamp<Monotonic>>,
}

impl Budget {
    /// May a packet be sent to this address now? If so, it counts as sent.
    pub fn spend(&mut self, instance: InstanceId, address: IpAddr, now: Timestamp<Monotonic>) -> bool {
        let sender = (instance, network(address));
        let Some(due) = next(self.due.get(&sender).copied(), now, SENDER_INTERVAL, SENDER_BURST) else {
            return false;
        };
        let Some(all_due) = next(self.all_due, now, ALL_INTERVAL, ALL_BURST) else { return false };
        if self.due.len() >= SENDERS_MAX {
            self.due.retain(|_, due| *due > now);
        }
        if self.due.len() >= SENDERS_MAX {
            return false;
        }
        self.due.insert(sender, due);
        self.all_due = Some(all_due);
        true
    }

    /// How many senders are remembered.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.due.len()
    }
}

/// When the packet after this one is due; `None`: this one comes too early.
fn next(
    due: Option<Timestamp<Monotonic>>,
    now: Timestamp<Monotonic>,
    interval: NtpDuration,
    burst: u32,
) -> Option<Timestamp<Monotonic>> {
    let due = due.map_or(now, |due| due.max(now));
    (due - now <= interval.times(burst - 1)).then(|| due + interval)
}

/// The address, of IPv6 the /64: all of one host's to choose from.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: i64) -> Timestamp<Monotonic> {
        Timestamp::from_nanoseconds(milliseconds * 1_000_000)
    }

    fn spent(budget: &mut Budget, address: IpAddr, times: impl Iterator<Item = i64>) -> usize {
        times.filter(|time| budget.spend(InstanceId(0), address, at(*time))).count()
    }

    #[test]
    fn one_sender_gets_one_packet_a_second_and_four_at_once() {
        let mut budget = Budget::default();
        let victim = IpAddr::from([10, 99, 0, 1]);
        assert_eq!(spent(&mut budget, victim, 0..10), 4);
        assert_eq!(spent(&mut budget, victim, (10..100_000).step_by(10)), 99);
        assert_eq!(spent(&mut budget, victim, 200_000..200_010), 4, "after silence");
        assert_eq!(
            spent(&mut budget, [10, 99, 0, 2].into(), 200_010..200_020),
            4,
            "another one's is another"
        );
        assert!(budget.spend(InstanceId(1), victim, at(200_020)), "and so is that of another instance");
    }

    #[test]
    fn an_ipv6_network_counts_as_one_and_a_mapped_address_as_its_own() {
        let mut budget = Budget::default();
        let host = |number: u16| IpAddr::from([0xfd99, 0, 0, 0, 1, 2, 3, number]);
        let sent = (0..100).filter(|number| budget.spend(InstanceId(0), host(*number), at(0))).count();
        assert_eq!(sent, 4);
        assert!(budget.spend(InstanceId(0), [0xfd99, 0, 0, 1, 1, 2, 3, 4].into(), at(0)));
        assert_eq!(spent(&mut budget, "::ffff:10.99.0.1".parse().unwrap(), 0..10), 4);
        assert_eq!(spent(&mut budget, [10, 99, 0, 1].into(), 10..20), 0);
    }

    /// A million forged senders: 64 packets at once, 64 a second after that, and a table that stays small.
    #[test]
    fn all_together_are_bounded_and_so_is_the_table() {
        let mut budget = Budget::default();
        let (mut sent, mut most) = (0, 0);
        for number in 0..1_000_000_u32 {
            let time = at(i64::from(number / 100));
            sent += u32::from(budget.spend(InstanceId(0), IpAddr::from(number.to_be_bytes()), time));
            most = most.max(budget.remembered());
        }
        assert!((64 + 639..=64 + 641).contains(&sent), "{sent} in ten seconds");
        assert!(most <= SENDERS_MAX, "{most}");
        let sent = spent(&mut budget, [10, 99, 0, 1].into(), 12_000..12_001);
        assert_eq!(sent, 1, "and nobody is locked out afterwards");
    }
}
