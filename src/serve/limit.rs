//! How often a client may ask: a rate limit per client in fixed memory, shared by all workers without locks.
//!
//! Owns: the table and the verdict. Does not own: what a refused client is told, nor the clock.
//!
//! The one idea a newcomer lacks: a token bucket needs no token count. The generic cell rate algorithm (GCRA,
//! ITU-T I.371) keeps one number per client, the *theoretical arrival time*: when the client's next request
//! were due if it had asked at the permitted rate all along. A request up to `burst - 1` intervals early is
//! within the limit and moves that time one interval on; one earlier than that is over it and moves nothing.
//! With the time in 40 bits and 24 bits of the client's hash, a client is one atomic word.
//!
//! What may go wrong goes wrong in the client's favour. A client whose word was overwritten by another's starts
//! anew with a full burst; so a flood from millions of spoofed addresses costs no memory, and loosens the limit
//! for the others instead of locking them out. A word is updated by compare-and-swap, so no update is lost;
//! when two workers put one new client into two words at once, it gets two bursts, once. In the other
//! direction, two clients that share both bucket and tag share a limit: a client has at most three others in
//! its bucket, so that is one chance in five million, with the keys of this run only, and the leak remains.

use super::clients::Client;
use super::identity::folded_multiply;
use crate::time::{Monotonic, NtpDuration, Timestamp};
use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a bucket, which lie in one cache line. More would remember clients a little longer when the table is
/// full, and cost a new client ten instructions each.
const WAYS: usize = 4;
/// Low bits of a word, which hold the tag.
const TAG_BITS: u32 = 24;
/// A tick is 2^18 ns, 262 us: a shift, no division, gets from nanoseconds to ticks.
const TICK_LOG2_NANOSECONDS: u32 = 18;
/// High bits of a word: the theoretical arrival time in ticks, which wraps after 9.1 years of uptime.
const TIME_MASK: u64 = (1 << 40) - 1;
/// The most buckets: with more, the bucket's number would reach into the hash bits that make the tag.
const BUCKETS_MAX: usize = 1 << 40;
/// How much earlier than others a worker's reading of the clock may be, in ticks: a minute. Readings are a batch
/// old at most, so a time farther in the future than this beyond the limit was never written, it has wrapped.
const CLOCK_SLACK: u64 = 60_000_000_000 >> TICK_LOG2_NANOSECONDS;
/// The longest interval: a day.
const INTERVAL_MAX: i64 = 86_400_000_000_000 >> TICK_LOG2_NANOSECONDS;
/// The greatest burst, so that the horizon is at most a third of the time in which the clock wraps.
const BURST_MAX: u16 = 1023;

/// What the rate limit is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RateParameters {
    /// Time between a client's requests in the long run, 1 ms to a day. Rounded down to a whole number of
    /// 262 us, so that the limit is never stricter than asked for.
    pub interval: NtpDuration,
    /// How many requests a client that was silent may send at once, 1 to 1023.
    pub burst: u16,
    /// One in so many requests over the limit is answered all the same, 0: none. Without it, somebody asking in
    /// a victim's name without end would cut the victim off.
    pub leak: u16,
    /// How many clients are remembered, rounded up to a power of two of at least 4; each takes 8 octets.
    pub clients: usize,
}

impl Default for RateParameters {
    /// One a second, bursts of 16, a leak of 1 in 4, a million clients in 8 MiB.
    fn default() -> Self {
        Self { interval: NtpDuration::from_seconds(1), burst: 16, leak: 4, clients: 1 << 20 }
    }
}

/// What the rate limit says of a request.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Within the limit.
    Within,
    /// Over the limit, and to be answered all the same, by lot.
    Leaked,
    /// Over the limit.
    Over,
}

#[repr(align(32))]
#[derive(Default, Debug)]
struct Bucket([AtomicU64; WAYS]);

impl Bucket {
    fn find(&self, tag: u64) -> Option<&AtomicU64> {
        self.0.iter().find(|word| word.load(Ordering::Relaxed) & tag_mask() == tag)
    }

    /// The word with the oldest time: empty words first, heavy abusers last. (For a while after the time wrapped,
    /// "oldest" is by its bits: a poorer choice, not a wrong one.)
    fn oldest(&self) -> &AtomicU64 {
        let (mut oldest, mut least) = (&self.0[0], u64::MAX);
        for word in &self.0 {
            let bits = word.load(Ordering::Relaxed);
            if bits < least {
                (oldest, least) = (word, bits);
            }
        }
        oldest
    }
}

/// The rate limit of all clients.
#[derive(Debug)]
pub struct RateLimiter {
    buckets: Box<[Bucket]>,
    /// In ticks, like the next two.
    interval: u64,
    /// How early a request may be: `burst - 1` intervals.
    tolerance: u64,
    /// A theoretical arrival time more than this ahead of now is no such time.
    horizon: u64,
    leak: u16,
}

impl RateLimiter {
    /// A limiter that has seen nobody. Allocates all it will ever use. A parameter out of its range is taken for
    /// the nearest one in it.
    #[must_use]
    pub fn new(parameters: RateParameters) -> Self {
        let interval = parameters.interval.to_nanoseconds() >> TICK_LOG2_NANOSECONDS;
        let interval = interval.clamp(1, INTERVAL_MAX).cast_unsigned();
        let tolerance = interval * u64::from(parameters.burst.clamp(1, BURST_MAX) - 1);
        let buckets = parameters.clients.div_ceil(WAYS).clamp(1, BUCKETS_MAX).next_power_of_two();
        Self {
            buckets: (0..buckets).map(|_| Bucket::default()).collect(),
            interval,
            tolerance,
            horizon: tolerance + interval + CLOCK_SLACK,
            leak: parameters.leak,
        }
    }

    /// The memory of the table, in octets. It never changes.
    #[must_use]
    pub const fn memory_bytes(&self) -> usize {
        size_of::<Self>() + size_of_val::<[Bucket]>(&self.buckets)
    }

    /// Time between a client's requests in the long run, as rounded.
    #[must_use]
    pub const fn interval(&self) -> NtpDuration {
        NtpDuration::from_nanoseconds((self.interval << TICK_LOG2_NANOSECONDS).cast_signed())
    }

    /// Judges a request that came at `now`, and remembers it if it is within the limit.
    ///
    /// `now` may come from several workers a little out of order, and may wrap: both are harmless.
    // Inlined, since the call took instructions that a request has not to spare.
    #[inline(always)]
    pub fn check(&self, client: &Client, now: Timestamp<Monotonic>, lottery: &mut Lottery) -> Verdict {
        let now = now.nanoseconds().cast_unsigned() >> TICK_LOG2_NANOSECONDS;
        let tag = client.hash >> (u64::BITS - TAG_BITS);
        let bucket = self.bucket(client);
        let word = bucket.find(tag).unwrap_or_else(|| bucket.oldest());
        let charged = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let ahead = self.ahead(word, tag, now);
            let next = now.wrapping_add(ahead).wrapping_add(self.interval);
            (ahead <= self.tolerance).then_some(next << TAG_BITS | tag)
        });
        match charged {
            Ok(_) => Verdict::Within,
            Err(_) if lottery.one_in(self.leak) => Verdict::Leaked,
            Err(_) => Verdict::Over,
        }
    }

    /// Where [`Self::check`] will read: a word of the one cache line.
    pub(super) fn line(&self, client: &Client) -> &AtomicU64 {
        &self.bucket(client).0[0]
    }

    /// The memory of the table, for whoever knows which pages it had better be on.
    #[must_use]
    pub fn table(&self) -> &[impl Sized] {
        &self.buckets
    }

    fn bucket(&self, client: &Client) -> &Bucket {
        &self.buckets[client.hash as usize & (self.buckets.len() - 1)]
    }

    /// How many ticks before its theoretical arrival time the client asks; 0 if it is past or the word is not
    /// this client's.
    const fn ahead(&self, word: u64, tag: u64, now: u64) -> u64 {
        let ahead = (word >> TAG_BITS).wrapping_sub(now) & TIME_MASK;
        if word & tag_mask() == tag && ahead <= self.horizon { ahead } else { 0 }
    }
}

const fn tag_mask() -> u64 {
    (1 << TAG_BITS) - 1
}

/// Chance, for the leak. One per worker, each with a seed of its own.
///
/// Senders see some of its outcomes, so a linear generator (xorshift and its kin) would not do: a few hundred
/// observed bits give away its state, and with that which requests will be answered, to time spoofed ones such
/// that the victim's always lose. This is a counter under two keyed folded multiplications: no way to predict
/// it is known, and less depends on it than a cipher would have to promise.
#[derive(Debug)]
pub struct Lottery {
    counter: u64,
    key: u64,
}

impl Lottery {
    /// With a random and secret seed.
    #[must_use]
    pub const fn new(seed: [u64; 2]) -> Self {
        Self { counter: seed[0], key: seed[1] }
    }

    /// True with a probability of 1 in `count`; never if that is 0.
    fn one_in(&mut self, count: u16) -> bool {
        // Odd, so that the counter takes all its values: 2^64 divided by the golden ratio.
        self.counter = self.counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let once = folded_multiply(self.counter, self.counter ^ self.key);
        let chance = folded_multiply(once ^ self.key, 0xd6e8_feb8_6659_fd93);
        // The product is below 2^64 for one in `count` of the chances, and for none if `count` is 0.
        count != 0 && (u128::from(chance) * u128::from(count)) >> 64 == 0
    }
}

#[cfg(test)]
#[path = "limit_tests.rs"]
mod tests;
