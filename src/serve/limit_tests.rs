//! The rate limit against a plain token bucket, under races, floods and strange clocks.

use super::*;
use crate::serve::clients::{ClientKeying, PrefixLengths};
use proptest::prelude::*;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicUsize;

const SECOND: NtpDuration = NtpDuration::from_seconds(1);

fn client(address: u32) -> Client {
    let keys = [1, 2, 3, 4];
    ClientKeying::new(PrefixLengths::default(), keys).identify(IpAddr::V4(address.into()))
}

fn lottery() -> Lottery {
    Lottery::new([1, 2])
}

fn seconds(seconds: f64) -> Timestamp<Monotonic> {
    Timestamp::from_nanoseconds((seconds * 1e9) as i64)
}

fn at_tick(tick: u64) -> Timestamp<Monotonic> {
    Timestamp::from_nanoseconds((tick << TICK_LOG2_NANOSECONDS).cast_signed())
}

fn ticks(count: u64) -> NtpDuration {
    at_tick(count) - Timestamp::ZERO
}

fn strict(interval: NtpDuration, burst: u16) -> RateParameters {
    RateParameters { interval, burst, leak: 0, clients: 64 }
}

#[test]
fn a_burst_then_one_per_interval() {
    let limiter = RateLimiter::new(RateParameters { leak: 0, ..RateParameters::default() });
    let (client, mut lottery) = (client(1), lottery());
    let mut granted_at = |time: f64, asked: u32| {
        (0..asked).filter(|_| limiter.check(&client, seconds(time), &mut lottery) == Verdict::Within).count()
    };
    assert_eq!(granted_at(100.0, 40), 16);
    assert_eq!(granted_at(100.9, 10), 0);
    assert_eq!(granted_at(101.0, 10), 1);
    assert_eq!(granted_at(104.5, 10), 3);
    assert_eq!(granted_at(105.0, 10), 1);
    assert_eq!(granted_at(200.0, 40), 16, "no more than a burst, however long the silence");
}

#[test]
fn parameters_are_rounded_to_the_clients_favour() {
    let table = [(0, 1), (1, 3), (1000, 3814), (86_400_000, 329_589_843), (1 << 40, 329_589_843)];
    for (milliseconds, expected) in table {
        let asked = NtpDuration::from_nanoseconds(milliseconds * 1_000_000);
        let limiter = RateLimiter::new(strict(asked, 16));
        assert_eq!(limiter.interval, expected, "{milliseconds} ms");
        assert_eq!(limiter.interval(), ticks(expected));
    }
    for (burst, expected) in [(0, 1), (1, 1), (1023, 1023), (u16::MAX, 1023)] {
        let limiter = RateLimiter::new(strict(NtpDuration::from_seconds(86_400), burst));
        let asked = (0..2000).map(|_| limiter.check(&client(1), seconds(1.0), &mut lottery()));
        assert_eq!(asked.filter(|verdict| *verdict == Verdict::Within).count(), expected);
        assert!(limiter.horizon < TIME_MASK / 3);
    }
}

#[test]
fn memory_is_eight_octets_a_client() {
    for (clients, octets) in [(0, 32), (4, 32), (5, 64), (1 << 20, 8 << 20), (1_000_000, 8 << 20)] {
        let limiter = RateLimiter::new(RateParameters { clients, ..RateParameters::default() });
        assert_eq!(limiter.memory_bytes() - size_of::<RateLimiter>(), octets);
    }
    assert_eq!(size_of::<Bucket>(), 32);
}

#[test]
fn the_leak_is_one_in_so_many() {
    for (leak, expected) in [(0, 0.0), (1, 1.0), (2, 0.5), (4, 0.25), (1000, 0.001)] {
        let limiter = RateLimiter::new(RateParameters { leak, ..strict(SECOND, 1) });
        let (client, mut lottery, tries) = (client(1), lottery(), 100_000);
        let verdicts: Vec<_> =
            (0..=tries).map(|_| limiter.check(&client, seconds(1.0), &mut lottery)).collect();
        assert_eq!(verdicts[0], Verdict::Within);
        let leaked = verdicts.iter().filter(|verdict| **verdict == Verdict::Leaked).count() as f64;
        let over = verdicts.iter().filter(|verdict| **verdict == Verdict::Over).count() as f64;
        assert_eq!(leaked + over, f64::from(tries));
        let deviation = (f64::from(tries) * expected * (1.0 - expected)).sqrt();
        assert!((leaked - f64::from(tries) * expected).abs() <= 5.0 * deviation, "{leaked} at 1 in {leak}");
    }
}

#[test]
fn lotteries_with_different_seeds_differ() {
    let draw = |seed| {
        let mut lottery = Lottery::new(seed);
        (0..64).map(|_| lottery.one_in(2)).collect::<Vec<_>>()
    };
    assert_eq!(draw([1, 2]), draw([1, 2]));
    assert_ne!(draw([1, 2]), draw([2, 2]));
    assert_ne!(draw([1, 2]), draw([1, 3]));
}

#[test]
fn a_clock_that_goes_backwards_locks_nobody_out() {
    let (client, mut lottery) = (client(1), lottery());
    for (back, granted) in [(0.5, 0), (20.0, 0), (4000.0, 16), (99_999.0, 16)] {
        let limiter = RateLimiter::new(strict(SECOND, 16));
        for _ in 0..20 {
            let _ = limiter.check(&client, seconds(100_000.0), &mut lottery);
        }
        let now = seconds(100_000.0 - back);
        let within = (0..20).filter(|_| limiter.check(&client, now, &mut lottery) == Verdict::Within).count();
        assert_eq!(within, granted, "{back} s back");
    }
}

#[test]
fn the_limit_holds_across_the_wrap_of_its_clock() {
    let limiter = RateLimiter::new(strict(SECOND, 16));
    let (client, mut lottery, wrap, second) = (client(1), lottery(), TIME_MASK + 1, limiter.interval);
    let table =
        [(wrap - 2, 16), (wrap - 1, 0), (wrap, 0), (wrap - 2 + second, 1), (wrap - 2 + 5 * second, 4)];
    for (tick, granted) in table {
        let now = at_tick(tick);
        let within = (0..20).filter(|_| limiter.check(&client, now, &mut lottery) == Verdict::Within).count();
        assert_eq!(within, granted, "{} ticks after the wrap", tick.cast_signed() - wrap.cast_signed());
    }
}

/// Ten million spoofed addresses in ten seconds, ten times what the table holds.
#[test]
fn a_flood_of_addresses_locks_nobody_out_and_hides_no_abuser() {
    let limiter = RateLimiter::new(RateParameters { leak: 0, ..RateParameters::default() });
    let (honest, abuser, mut lottery) = (client(1), client(2), lottery());
    let memory = limiter.memory_bytes();
    let mut abuser_within = 0;
    for spoofed in 0..10_000_000_u32 {
        let now = Timestamp::from_nanoseconds(1_000_000_000 + i64::from(spoofed) * 1000);
        assert_eq!(limiter.check(&client(1000 + spoofed), now, &mut lottery), Verdict::Within);
        if spoofed % 1_000_000 == 0 {
            assert_eq!(limiter.check(&honest, now, &mut lottery), Verdict::Within);
        }
        if spoofed % 10_000 == 0 {
            abuser_within += u32::from(limiter.check(&abuser, now, &mut lottery) == Verdict::Within);
        }
    }
    assert_eq!(limiter.memory_bytes(), memory);
    assert!((25..=27).contains(&abuser_within), "burst and one a second, not {abuser_within} of 1000");
}

/// Compare-and-swap loses nothing, so the budget is kept to the request, however often two workers meet.
#[test]
fn two_threads_share_one_budget() {
    const CLIENTS: u32 = 500;
    let limiter = RateLimiter::new(RateParameters { clients: 1 << 16, ..strict(SECOND, BURST_MAX) });
    // Known beforehand: two workers that enter a new client at once may give it two words, as stated.
    for number in 0..CLIENTS {
        assert_eq!(limiter.check(&client(number), seconds(1.0), &mut lottery()), Verdict::Within);
    }
    let ready = AtomicUsize::new(0);
    let granted: usize = std::thread::scope(|scope| {
        let workers = [1, 2].map(|seed| {
            let (limiter, ready) = (&limiter, &ready);
            scope.spawn(move || {
                let mut lottery = Lottery::new([seed, seed]);
                ready.fetch_add(1, Ordering::Relaxed);
                while ready.load(Ordering::Relaxed) < 2 {
                    std::hint::spin_loop();
                }
                let asked =
                    (0..CLIENTS).flat_map(|number| std::iter::repeat_n(client(number), BURST_MAX.into()));
                asked
                    .filter(|client| limiter.check(client, seconds(1.0), &mut lottery) == Verdict::Within)
                    .count()
            })
        });
        workers.map(|worker| worker.join().unwrap()).into_iter().sum()
    });
    assert_eq!(granted, CLIENTS as usize * usize::from(BURST_MAX - 1));
}

/// A token bucket as one would first write it: `level` ticks' worth of tokens.
struct TokenBucket {
    level: u64,
    filled_at: u64,
}

impl TokenBucket {
    fn take(&mut self, interval: u64, burst: u64, now: u64) -> bool {
        self.level = (self.level + now - self.filled_at).min(burst * interval);
        self.filled_at = now;
        let within = self.level >= interval;
        if within {
            self.level -= interval;
        }
        within
    }
}

proptest! {
    #[test]
    fn agrees_with_token_buckets(
        interval in 1_u64..5000,
        burst in 1_u16..20,
        requests in prop::collection::vec((0_u64..3000, 0_u32..4), 1..300),
    ) {
        let limiter = RateLimiter::new(strict(ticks(interval), burst));
        let mut buckets: HashMap<u32, TokenBucket> = HashMap::new();
        let (mut lottery, mut now) = (lottery(), 1 << 20);
        for (gap, address) in requests {
            now += gap;
            let full = TokenBucket { level: u64::from(burst) * interval, filled_at: now };
            let expected = buckets.entry(address).or_insert(full).take(interval, burst.into(), now);
            let verdict = limiter.check(&client(address), at_tick(now), &mut lottery);
            prop_assert_eq!(verdict == Verdict::Within, expected, "at tick {}", now);
        }
    }

    #[test]
    fn a_client_at_or_below_the_rate_is_never_refused(
        interval in 1_000_000_i64..2_000_000_000,
        burst in 1_u16..4,
        start in 0_i64..1_000_000_000_000_000_000,
        waits in prop::collection::vec(prop_oneof![Just(0_i64), 0_i64..10_000_000_000], 1..200),
    ) {
        let limiter = RateLimiter::new(strict(NtpDuration::from_nanoseconds(interval), burst));
        let (mut lottery, mut now) = (lottery(), start);
        for wait in waits {
            let verdict = limiter.check(&client(1), Timestamp::from_nanoseconds(now), &mut lottery);
            prop_assert_eq!(verdict, Verdict::Within, "at {} ns", now);
            now += interval + wait;
        }
    }

    #[test]
    fn no_window_has_more_than_a_burst_and_its_share(
        interval in 1_u64..400,
        burst in 1_u16..20,
        gaps in prop::collection::vec(0_i64..50_000_000, 1..300),
    ) {
        let limiter = RateLimiter::new(strict(ticks(interval), burst));
        let (mut lottery, mut now, mut within) = (lottery(), 1_000_000_000, Vec::new());
        for gap in gaps {
            now += gap;
            if limiter.check(&client(1), Timestamp::from_nanoseconds(now), &mut lottery) == Verdict::Within {
                within.push(now);
            }
        }
        let interval_seconds = limiter.interval().seconds();
        for (index, from) in within.iter().enumerate() {
            for (count, to) in within[index..].iter().enumerate() {
                // A tick, because times are rounded to it.
                let window = (to - from) as f64 / 1e9 + ticks(1).seconds();
                let most = f64::from(burst) + window / interval_seconds;
                prop_assert!((count + 1) as f64 <= most, "{} in {window} s", count + 1);
            }
        }
    }
}
