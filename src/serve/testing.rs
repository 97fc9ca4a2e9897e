//! Responders for tests, fuzz targets and benchmarks, here and outside the crate.

use super::access::{AccessList, Action};
use super::clients::{ClientKeying, ClientStatistics, PrefixLengths};
use super::limit::{Lottery, RateLimiter, RateParameters};
use super::{Policy, Responder};
use crate::auth::{Algorithm, Key, KeyId, KeyTable};
use crate::time::NtpDuration;
use ipnet::IpNet;
use std::sync::Arc;

/// What a responder is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The access list; what no rule holds is allowed.
    pub rules: Vec<(IpNet, Action)>,
    /// The rate limit's interval; `None`: no limit.
    pub limit_interval_seconds: Option<i64>,
    /// One in so many over the limit is answered.
    pub leak: u16,
    /// Are kisses sent?
    pub kod: bool,
    /// The keys that clients may use.
    pub keys: KeyTable,
}

impl Default for Setup {
    fn default() -> Self {
        Self { rules: Vec::new(), limit_interval_seconds: None, leak: 4, kod: false, keys: KeyTable::empty() }
    }
}

impl Setup {
    /// Access list, limiter and kisses all on, and a key of each type.
    #[must_use]
    pub fn strict() -> Self {
        let rule = |octets: [u8; 4], length, action| (IpNet::new_assert(octets.into(), length), action);
        let rules = vec![
            rule([10, 99, 1, 0], 24, Action::Deny),
            rule([10, 99, 1, 5], 32, Action::Allow),
            rule([10, 99, 2, 0], 24, Action::Restrict),
            rule([10, 99, 3, 0], 24, Action::Drop),
        ];
        Self { rules, limit_interval_seconds: Some(1), leak: 4, kod: true, keys: keys() }
    }

    /// The responder, with fixed keys and seeds.
    #[must_use]
    pub fn responder(self) -> Responder {
        let limiter = |seconds, burst, leak| {
            let interval = NtpDuration::from_seconds(seconds);
            Arc::new(RateLimiter::new(RateParameters { interval, burst, leak, clients: 1 << 16 }))
        };
        let lengths = PrefixLengths::default();
        let policy = Policy {
            access: Arc::new(AccessList::new(Action::Allow, self.rules).expect("rules that agree")),
            limiter: self.limit_interval_seconds.map(|seconds| limiter(seconds, 16, self.leak)),
            kiss_limiter: self.kod.then(|| limiter(16, 2, 0)),
            keying: ClientKeying::new(lengths, [1, 2, 3, 4]),
        };
        let statistics = Arc::new(ClientStatistics::new(4096, lengths));
        let mut responder = Responder::new(policy, statistics, Lottery::new([1, 2]));
        responder.set_keys(Arc::new(self.keys));
        responder
    }
}

/// One key of each type: its id is 1 more than its place in [`Algorithm::ALL`], its secret as many octets of that number
/// as the type takes, or 20.
#[must_use]
pub fn keys() -> KeyTable {
    let key = |(algorithm, number): (Algorithm, u8)| {
        let secret = vec![number; algorithm.secret_length().unwrap_or(20)];
        Some((KeyId::new(number.into())?, Key::new(algorithm, &secret).ok()?))
    };
    KeyTable::new(Algorithm::ALL.into_iter().zip(1..).filter_map(key)).unwrap_or_default()
}

/// A request of this version with a transmit timestamp of `0x1122_3344_5566_7788`, and what follows it.
#[must_use]
pub fn client_request(version: u8, trailer: &[u8]) -> Vec<u8> {
    let mut payload = vec![0; 48];
    payload[0] = version << 3 | 3;
    payload[2] = 6;
    payload[40..].copy_from_slice(&0x1122_3344_5566_7788_u64.to_be_bytes());
    payload.extend_from_slice(trailer);
    payload
}
