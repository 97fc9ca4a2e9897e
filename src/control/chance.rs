//! Chance with a seed, so that a log of events replays exactly.
//!
//! The one idea a newcomer lacks: the transmit timestamp of our requests is 64 bits of this generator and not the
//! time. A server echoes it, and that echo is all that tells its reply from a forged one, so nobody who has seen
//! some of the numbers may work out the next; therefore ChaCha and not a faster generator, whose state can be
//! read off its output. (It also tells servers nothing of our clock.)

use crate::time::{NtpDuration, NtpTimestamp};
use chacha20::ChaCha12Rng;
use chacha20::rand_core::{Rng, SeedableRng};

/// The controller's source of random numbers.
#[derive(Debug)]
pub struct Chance(ChaCha12Rng);

impl Chance {
    /// From a seed, which must be secret and random where packets meet a network.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self(ChaCha12Rng::from_seed(seed))
    }

    /// A timestamp of random bits, never the wire's "unknown".
    pub fn nonce(&mut self) -> NtpTimestamp {
        NtpTimestamp::from_bits(self.0.next_u64().max(1))
    }

    /// Evenly from zero up to, but not including, `limit`; zero if `limit` is not positive.
    pub fn below(&mut self, limit: NtpDuration) -> NtpDuration {
        let bits = u128::from(self.0.next_u64()) * u128::from(limit.to_bits().max(0).unsigned_abs());
        NtpDuration::from_bits((bits >> 64) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_another_gives_others() {
        let three = |seed| {
            let mut chance = Chance::new([seed; 32]);
            [chance.nonce(), chance.nonce(), chance.nonce()]
        };
        assert_eq!(three(1), three(1));
        assert_ne!(three(1), three(2));
        assert_ne!(three(1)[0], three(1)[1]);
    }

    #[test]
    fn random_durations_fill_their_range_and_stay_in_it() {
        let mut chance = Chance::new([7; 32]);
        let limit = NtpDuration::from_seconds(2);
        let drawn: Vec<f64> = (0..1000).map(|_| chance.below(limit).seconds()).collect();
        assert!(drawn.iter().all(|seconds| (0.0..2.0).contains(seconds)));
        let mean = drawn.iter().sum::<f64>() / 1000.0;
        assert!((0.9..1.1).contains(&mean), "mean {mean} s of 0 to 2 s");
        assert_eq!(chance.below(NtpDuration::ZERO), NtpDuration::ZERO);
        assert_eq!(chance.below(NtpDuration::from_seconds(-1)), NtpDuration::ZERO);
    }
}
