//! Who asks: client statistics in fixed memory, one per worker, readable at any time.
//!
//! Owns: totals by version and length, the heaviest clients, the number of different ones; and what a client
//! is ([`ClientKeying`]). Does not own: why a request was refused, and any report's looks.
//!
//! The one idea a newcomer lacks: the heaviest of unboundedly many clients can be found in a fixed table
//! (Space-Saving, Metwally et al. 2005). A client that is not in the table takes the place of the one with the
//! fewest requests *and its count*, noted as a possible overcount. So a count is never too low, never too high
//! by more than its overcount, and who asks more often than the smallest count is in the table for certain.
//! Here it is done within buckets of four, which a client's hash chooses: of the requests that fall into a
//! bucket, whoever sends more than a quarter is listed, and no overcount is more than a quarter of them.
//!
//! **Reading while the worker writes.** One thread writes, so plain loads and stores of relaxed atomics count
//! correctly. The hash of an entry's client is also its seal: the writer clears it, changes the entry, and sets
//! it anew; a reader that does not find the same hash before and after passes the entry over. Were one client
//! evicted and entered again between the two looks, the reader would mix its older and its newer counts: both
//! are its own, and the next look is right. Counts of an entry that stays are read one by one, so that one may
//! be a few requests ahead of another.

use super::distinct::DistinctCounter;
pub use super::distinct::DistinctSketch;
use super::identity::ClientPrefix;
pub use super::identity::{Client, ClientKeying, PrefixLengths};
use crate::metrics::Counter;
use crate::snapshot::InstanceId;
use crate::time::{Monotonic, Timestamp};
use crate::wire::Version;
use ipnet::IpNet;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering, fence};

/// Entries of a bucket, of which the hashes and the request counts lie in one cache line.
const WAYS: usize = 4;
/// The versions served are 1 to 4.
const VERSIONS: usize = 4;

/// How long a request is, in octets of UDP payload. All that length alone can tell of what it carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LengthClass {
    /// 48: the header and nothing else.
    Header,
    /// 49 to 72: room for a MAC (MD5 makes it 68, SHA-1 72), too short for an extension field alone (76).
    Short,
    /// 73 to 199: extension fields, with or without a MAC.
    Medium,
    /// 200 and more: what requests with NTS have, whose cookie alone takes about 100.
    Long,
}

impl LengthClass {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 4] = [Self::Header, Self::Short, Self::Medium, Self::Long];

    /// The class of a request of this many octets.
    #[must_use]
    pub const fn of(length: usize) -> Self {
        match length {
            ..=48 => Self::Header,
            49..=72 => Self::Short,
            73..=199 => Self::Medium,
            200.. => Self::Long,
        }
    }

    /// The range of lengths, as the label of metrics and reports.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Header => "48",
            Self::Short => "49-72",
            Self::Medium => "73-199",
            Self::Long => "200+",
        }
    }
}

/// What one worker knows of its clients. Written by that worker only.
#[derive(Debug)]
pub struct ClientStatistics {
    totals: [[Counter; LengthClass::ALL.len()]; VERSIONS],
    distinct: DistinctCounter,
    lengths: PrefixLengths,
    buckets: Box<[Bucket]>,
}

#[repr(align(64))]
#[derive(Default, Debug)]
struct Bucket {
    /// Zero: no entry, or one that is being replaced.
    hashes: [AtomicU64; WAYS],
    requests: [AtomicU64; WAYS],
    details: [Details; WAYS],
}

#[derive(Default, Debug)]
struct Details {
    prefix_high: AtomicU64,
    prefix_low: AtomicU64,
    instance: AtomicU64,
    overcount: AtomicU64,
    refused: AtomicU64,
    /// Nanoseconds of the monotonic clock.
    last_seen: AtomicI64,
}

/// One of the heaviest clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientRecord {
    /// In which instance.
    pub instance: InstanceId,
    /// Which addresses count as this client.
    pub prefix: IpNet,
    /// Its requests, too high by `overcount` at most, never too low.
    pub requests: u64,
    /// How many of them may be those of clients forgotten before it was listed.
    pub overcount: u64,
    /// How many requests were refused since it was listed.
    pub refused: u64,
    /// When it last asked.
    pub last_seen: Timestamp<Monotonic>,
}

impl ClientStatistics {
    /// Statistics with room for so many clients, rounded up to a power of two of at least 4, that are told
    /// apart by these prefix lengths (those of the [`ClientKeying`]). Allocates all it will ever use: 64 octets
    /// a client, and a little over a kibibyte.
    #[must_use]
    pub fn new(entries: usize, lengths: PrefixLengths) -> Self {
        let buckets = entries.div_ceil(WAYS).max(1).next_power_of_two();
        Self {
            totals: Default::default(),
            distinct: DistinctCounter::new(),
            lengths,
            buckets: (0..buckets).map(|_| Bucket::default()).collect(),
        }
    }

    /// The memory of all of it, in octets. It never changes.
    #[must_use]
    pub const fn memory_bytes(&self) -> usize {
        size_of::<Self>() + size_of_val::<[Bucket]>(&self.buckets)
    }

    /// Counts a request of `length` octets. **One thread only.**
    // The call alone took 20 instructions of a request, and there is one caller.
    #[inline(always)]
    pub fn record(
        &self,
        client: &Client,
        version: Version,
        length: usize,
        answered: bool,
        now: Timestamp<Monotonic>,
    ) {
        self.totals[usize::from(version.number() - 1) % VERSIONS][LengthClass::of(length) as usize].bump();
        self.distinct.record(client.hash);
        self.bucket(client).count(client, answered, now);
    }

    /// Where [`Self::record`] will read and write: a word of each cache line.
    pub(super) fn lines(&self, client: &Client) -> [&AtomicU64; 4] {
        let Bucket { hashes, details, .. } = self.bucket(client);
        [&hashes[0], &details[0].prefix_high, &details[2].prefix_high, &details[3].refused]
    }

    fn bucket(&self, client: &Client) -> &Bucket {
        &self.buckets[client.hash as usize & (self.buckets.len() - 1)]
    }

    /// Requests of this version and length so far.
    #[must_use]
    pub fn total(&self, version: Version, class: LengthClass) -> u64 {
        self.totals[usize::from(version.number() - 1) % VERSIONS][class as usize].get()
    }

    /// Which clients there were, for an estimate of their number.
    #[must_use]
    pub fn distinct(&self) -> DistinctSketch {
        self.distinct.sketch()
    }

    /// The `count` heaviest clients, heaviest first. Reads the whole table: not for the data path.
    #[must_use]
    pub fn snapshot_top(&self, count: usize) -> Vec<ClientRecord> {
        let ways = self.buckets.iter().flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)));
        let mut records: Vec<_> = ways.filter_map(|(bucket, way)| bucket.read(way, self.lengths)).collect();
        sort_heaviest_first(&mut records);
        records.truncate(count);
        records
    }
}

impl Bucket {
    fn count(&self, client: &Client, answered: bool, now: Timestamp<Monotonic>) {
        let way = self.find(client.hash).unwrap_or_else(|| self.replace_lightest(client));
        add(&self.requests[way], 1);
        let details = &self.details[way];
        add(&details.refused, u64::from(!answered));
        details.last_seen.store(now.nanoseconds(), Ordering::Relaxed);
    }

    fn find(&self, hash: u64) -> Option<usize> {
        self.hashes.iter().position(|other| other.load(Ordering::Relaxed) == hash)
    }

    /// Gives the client the place and the count of the one with the fewest requests. Empty places have none.
    fn replace_lightest(&self, client: &Client) -> usize {
        let (mut way, mut fewest) = (0, u64::MAX);
        for (other, requests) in self.requests.iter().enumerate() {
            let requests = requests.load(Ordering::Relaxed);
            if requests < fewest {
                (way, fewest) = (other, requests);
            }
        }
        self.hashes[way].store(0, Ordering::Relaxed);
        // Whoever reads one of the stores below finds the hash cleared when it looks again.
        fence(Ordering::Release);
        let details = &self.details[way];
        details.prefix_high.store(client.prefix.high, Ordering::Relaxed);
        details.prefix_low.store(client.prefix.low, Ordering::Relaxed);
        details.instance.store(client.instance.0.into(), Ordering::Relaxed);
        details.overcount.store(fewest, Ordering::Relaxed);
        details.refused.store(0, Ordering::Relaxed);
        // And whoever reads the new hash reads the new entry.
        self.hashes[way].store(client.hash, Ordering::Release);
        way
    }

    /// The entry, unless there is none or it changes hands just now.
    fn read(&self, way: usize, lengths: PrefixLengths) -> Option<ClientRecord> {
        let hash = self.hashes[way].load(Ordering::Acquire);
        let details = &self.details[way];
        let prefix = ClientPrefix {
            high: details.prefix_high.load(Ordering::Relaxed),
            low: details.prefix_low.load(Ordering::Relaxed),
        };
        let instance = details.instance.load(Ordering::Relaxed);
        let overcount = details.overcount.load(Ordering::Relaxed);
        let refused = details.refused.load(Ordering::Relaxed);
        let last_seen = details.last_seen.load(Ordering::Relaxed);
        let requests = self.requests[way].load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let unchanged = self.hashes[way].load(Ordering::Relaxed) == hash;
        (unchanged && hash != 0).then(|| ClientRecord {
            instance: InstanceId(instance as u16),
            prefix: prefix.network(lengths),
            requests,
            overcount,
            refused,
            last_seen: Timestamp::from_nanoseconds(last_seen),
        })
    }
}

/// Adds without a read-modify-write: there is one writer.
fn add(count: &AtomicU64, more: u64) {
    count.store(count.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

/// Sums over workers what each knows of a client, heaviest first.
///
/// To be given whole tables: where one worker's list lacks a client, its requests there are not in the sum.
#[must_use]
pub fn merge(workers: Vec<Vec<ClientRecord>>) -> Vec<ClientRecord> {
    let mut sums: HashMap<(InstanceId, IpNet), ClientRecord> = HashMap::new();
    for record in workers.into_iter().flatten() {
        sums.entry((record.instance, record.prefix))
            .and_modify(|sum| {
                sum.requests += record.requests;
                sum.overcount += record.overcount;
                sum.refused += record.refused;
                if record.last_seen.nanoseconds_since(sum.last_seen) > 0 {
                    sum.last_seen = record.last_seen;
                }
            })
            .or_insert(record);
    }
    let mut records: Vec<_> = sums.into_values().collect();
    sort_heaviest_first(&mut records);
    records
}

/// By count, equal ones by prefix and instance, so that two looks at the same table show the same list.
fn sort_heaviest_first(records: &mut [ClientRecord]) {
    let who = |record: &ClientRecord| (record.prefix, record.instance);
    records.sort_unstable_by(|a, b| b.requests.cmp(&a.requests).then(who(a).cmp(&who(b))));
}

#[cfg(test)]
#[path = "clients_tests.rs"]
mod tests;
