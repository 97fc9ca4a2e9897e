//! Wires and datagrams.

use crate::random::Random;
use std::net::{IpAddr, SocketAddr};
use timeball::control::InstanceId;

/// A UDP datagram under way.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// In which network: addresses mean something within one only.
    pub instance: InstanceId,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub payload: Vec<u8>,
    /// TTL: with 1 it passes no router.
    pub hop_limit: u8,
}

/// What hosts send with unless told otherwise.
pub const HOP_LIMIT: u8 = 64;

/// Is this an address of everybody on one network?
pub fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.octets()[3] == 255)
}

/// One direction of a host's wire.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Seconds at least.
    pub delay: f64,
    /// Mean of what queues add, seconds, exponentially distributed.
    pub jitter: f64,
    /// Probability that a datagram is lost.
    pub loss: f64,
    /// Probability that it comes twice, the second after a while of up to 2 s.
    pub duplication: f64,
    /// Probability that it is held up for up to 1 s, so that others overtake it.
    pub reordering: f64,
}

impl Way {
    /// Takes no time and loses nothing.
    pub const IDEAL: Self = Self { delay: 0.0, jitter: 0.0, loss: 0.0, duplication: 0.0, reordering: 0.0 };

    /// When copies of a datagram come out, in seconds from now: none, one or two.
    pub fn carry(&self, random: &mut Random) -> Vec<f64> {
        if random.happens(self.loss) {
            return Vec::new();
        }
        let held_up = if random.happens(self.reordering) { random.unit() } else { 0.0 };
        let first = self.delay + random.exponential(self.jitter) + held_up;
        if random.happens(self.duplication) { vec![first, first + 2.0 * random.unit()] } else { vec![first] }
    }
}
