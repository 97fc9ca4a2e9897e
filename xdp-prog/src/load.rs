//! The programs of the load generator, compiled from C, and the Rust twins of what they share with user space.
//!
//! Owns: the object's bytes, the names in it, and the layout of its settings, progress, counters and histograms. Does not
//! own: loading and running it (`timeball::load::live_frames`).
//!
//! The one idea a newcomer lacks: `src/load.h` is the C side of this file. Both assert the same sizes, and the tests
//! below compare the numbers and the counters with the header's text.

use crate::Aligned;
use std::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes};

static ALIGNED_OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/load.bpf.o")));

/// The compiled ELF object, aligned to 8 bytes.
pub static OBJECT: &[u8] = &ALIGNED_OBJECT.0;

/// The program: attached, it judges replies; in `BPF_PROG_RUN`, it sends requests.
pub const PROGRAM: &str = "load";
/// The judge for the traffic control hook.
pub const PROGRAM_HEAR_SKB: &str = "hear_skb";
/// The part that sends requests, for tests.
pub const PROGRAM_ASK: &str = "ask";
/// The part that judges replies, for tests.
pub const PROGRAM_HEAR: &str = "hear";
/// Read-only global: [`Settings`].
pub const GLOBAL_SETTINGS: &str = "SETTINGS";
/// ARRAY of one: [`Progress`].
pub const MAP_PROGRESS: &str = "progress_of_sender";
/// ARRAY: request number modulo size -> [`INTENDED_BITS`] of time and, above them, the number divided by the size.
pub const MAP_OUTSTANDING: &str = "outstanding";
/// PERCPU_ARRAY: [`VALUES_PER_HISTOGRAM`] values per histogram, of [`BUCKETS_PER_VALUE`] `u64` each.
pub const MAP_LATENCIES: &str = "latencies";
/// PERCPU_ARRAY of one: `u64` per flaw, then per [`Counter`].
pub const MAP_COUNTS: &str = "counts";
/// HASH: kiss code -> `u64` packets.
pub const MAP_KISSES: &str = "kisses";

/// Values below 2 to this power have a bucket each; above, each power of two has half as many buckets.
pub const BUCKET_BITS: u32 = 11;
/// What is longer, in nanoseconds, is counted as this.
pub const LATENCY_MAX: u64 = 60_000_000_000;
/// Buckets in one value of [`MAP_LATENCIES`].
pub const BUCKETS_PER_VALUE: usize = 4096;
/// Values of [`MAP_LATENCIES`] that are one histogram.
pub const VALUES_PER_HISTOGRAM: u32 = 7;
/// Low bits of an entry of [`MAP_OUTSTANDING`]: nanoseconds from the start to the request's intended time, plus 1; 0 once
/// it has its reply.
pub const INTENDED_BITS: u32 = 48;
/// Kiss codes that are told apart.
pub const KISS_CODES_MAX: u64 = 64;

/// Room for the template: the longest request in whole 64-bit words.
pub const TEMPLATE_LENGTH: usize = 112;

/// The histograms in [`MAP_LATENCIES`], in order.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Histogram {
    /// From a request's intended time to the arrival of its reply.
    RoundTrip = 0,
    /// T3 - T2.
    Turnaround = 1,
    /// From a request's intended time to its departure.
    SendDelay = 2,
}

/// `struct load_settings`. Host order, except where it says wire.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, IntoBytes, Immutable)]
pub struct Settings {
    /// The first client's IPv6 address, upper half; 0 for IPv4.
    pub first_upper: u64,
    /// Its lower half, or the IPv4 address.
    pub first_lower: u64,
    /// How many clients, at least 1.
    pub clients: u64,
    /// How many different addresses they have, at least 1.
    pub addresses: u64,
    /// Whole nanoseconds between requests.
    pub interval: u64,
    /// 2^-64 ns more.
    pub interval_fraction: u64,
    /// None are sent beyond so many.
    pub requests_max: u64,
    /// Nor later than so many nanoseconds after the first.
    pub sent_within: u64,
    /// Nanoseconds after which a reply is late.
    pub timeout: u64,
    /// The target's address, wire; IPv4 in the first four.
    pub target: [u8; 16],
    /// Upper half of the transmit timestamps.
    pub nonce: u32,
    /// Where requests leave.
    pub ifindex: u32,
    /// [`MAP_OUTSTANDING`] has 2 to this power entries.
    pub slot_bits: u32,
    /// The target's port.
    pub port: u16,
    /// The sum of the template's IPv4 header, folded, not complemented.
    pub ip_sum: u16,
    /// And that of its datagram with the pseudo header.
    pub udp_sum: u16,
    /// 1 for IPv6.
    pub is_v6: u8,
    /// 1 if IPv6 clients differ in the upper half of their addresses.
    pub differ_in_upper: u8,
    /// 1 if every request is due at once.
    pub saturate: u8,
    /// 1 if the reply is the request itself.
    pub is_echo: u8,
    /// Zero.
    pub padding: [u8; 2],
    /// The frame without its varying fields, wire, padded with zeros.
    pub template: [u8; TEMPLATE_LENGTH],
}
const _: () = assert!(size_of::<Settings>() == 224);

/// How far the sender is: `struct load_progress`. All zeros before it began.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable)]
pub struct Progress {
    /// CLOCK_MONOTONIC of the first request, nanoseconds.
    pub start: u64,
    /// The next request's intended time.
    pub due: u64,
    /// 2^-64 ns more.
    pub due_fraction: u64,
    /// Requests so far, and so the next one's number.
    pub sent: u64,
    /// When the last one was sent.
    pub last: u64,
}
const _: () = assert!(size_of::<Progress>() == 40);

/// Flaws that a reply may have: the first counters. Their names and order are those of `timeball::load::judge::Flaw`.
pub const FLAWS: usize = 7;

/// What else is counted: the index in [`MAP_COUNTS`], `enum judged`.
#[repr(usize)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counter {
    /// Right replies in time.
    Answered = FLAWS,
    /// Right replies after the timeout.
    Late,
    /// Replies to what had its reply already.
    Duplicate,
    /// Kiss-o'-death packets.
    Kiss,
    /// Nothing of ours. Not counted.
    NotOurs,
    /// Right replies whose checksum was unfinished; they are counted as answered or late too.
    Unfinished,
    /// Kiss-o'-death packets with one code more than [`KISS_CODES_MAX`]; they are counted as such too.
    KissUnnamed,
}

/// How many counters there are.
pub const COUNTERS: usize = Counter::KissUnnamed as usize + 1;

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = include_str!("load.h");

    fn defined(name: &str) -> u64 {
        let line = HEADER.lines().find(|line| line.starts_with(&format!("#define {name} "))).unwrap();
        line.split_whitespace().nth(2).unwrap().parse().unwrap()
    }

    #[test]
    fn numbers_equal_those_of_the_header() {
        assert_eq!(defined("BUCKET_BITS"), u64::from(BUCKET_BITS));
        assert_eq!(defined("LATENCY_MAX"), LATENCY_MAX);
        assert_eq!(defined("BUCKETS_PER_VALUE"), BUCKETS_PER_VALUE as u64);
        assert_eq!(defined("VALUES_PER_HISTOGRAM"), u64::from(VALUES_PER_HISTOGRAM));
        assert_eq!(defined("HISTOGRAM_ROUND_TRIP"), Histogram::RoundTrip as u64);
        assert_eq!(defined("HISTOGRAM_TURNAROUND"), Histogram::Turnaround as u64);
        assert_eq!(defined("HISTOGRAM_SEND_DELAY"), Histogram::SendDelay as u64);
        assert_eq!(defined("INTENDED_BITS"), u64::from(INTENDED_BITS));
        assert_eq!(defined("KISS_CODES_MAX"), KISS_CODES_MAX);
    }

    #[test]
    fn counters_have_the_order_of_the_header() {
        let names: Vec<&str> = HEADER
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with("JUDGED_") || line.starts_with("COUNTED_"))
            .map(|line| line.split_once(',').unwrap().0)
            .collect();
        assert_eq!(names.len(), COUNTERS);
        for (counter, name) in [
            (Counter::Answered, "JUDGED_ANSWERED"),
            (Counter::Late, "JUDGED_LATE"),
            (Counter::Duplicate, "JUDGED_DUPLICATE"),
            (Counter::Kiss, "JUDGED_KISS"),
            (Counter::NotOurs, "JUDGED_NOT_OURS"),
            (Counter::Unfinished, "COUNTED_UNFINISHED"),
            (Counter::KissUnnamed, "COUNTED_KISS_UNNAMED"),
        ] {
            assert_eq!(names[counter as usize], name);
        }
    }
}
