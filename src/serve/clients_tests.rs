//! The heaviest clients against exact counts, and reading while the worker writes.

use super::*;
use proptest::prelude::*;
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;

const LENGTHS: PrefixLengths = PrefixLengths { ipv4: 32, ipv6: 64 };

fn keying() -> ClientKeying {
    ClientKeying::new(LENGTHS, [1, 2, 3, 4])
}

fn address(number: u32) -> IpAddr {
    IpAddr::V4(number.into())
}

fn ask(statistics: &ClientStatistics, address: IpAddr, answered: bool, second: i64) {
    let now = Timestamp::from_nanoseconds(second * 1_000_000_000);
    statistics.record(&keying().identify(address), Version::V4, 48, answered, now);
}

#[test]
fn totals_go_by_version_and_length() {
    let statistics = ClientStatistics::new(64, LENGTHS);
    let client = keying().identify(address(1));
    let version = |number| Version::new(number).unwrap();
    let table = [
        (1, 48, "48"),
        (2, 49, "49-72"),
        (3, 72, "49-72"),
        (4, 73, "73-199"),
        (4, 199, "73-199"),
        (4, 200, "200+"),
    ];
    for (number, length, label) in table {
        assert_eq!(LengthClass::of(length).label(), label);
        let before = statistics.total(version(number), LengthClass::of(length));
        statistics.record(&client, version(number), length, true, Timestamp::ZERO);
        assert_eq!(statistics.total(version(number), LengthClass::of(length)), before + 1);
    }
    let cells =
        (1..=4).flat_map(|number| LengthClass::ALL.map(|class| statistics.total(version(number), class)));
    assert_eq!(cells.sum::<u64>(), table.len() as u64, "each request is counted once");
}

#[test]
fn a_record_says_what_the_client_did() {
    let statistics = ClientStatistics::new(64, LENGTHS);
    for (text, answered, second) in [
        ("10.99.0.1", true, 5),
        ("::ffff:10.99.0.1", false, 6),
        ("fd99::1", true, 7),
        ("fd99::2", true, 8),
        ("fd99::3", true, 9),
    ] {
        ask(&statistics, text.parse().unwrap(), answered, second);
    }
    let record = |prefix: &str, requests, refused, second: i64| ClientRecord {
        instance: InstanceId(0),
        prefix: prefix.parse().unwrap(),
        requests,
        overcount: 0,
        refused,
        last_seen: Timestamp::from_nanoseconds(second * 1_000_000_000),
    };
    let expected = [record("fd99::/64", 3, 0, 9), record("10.99.0.1/32", 2, 1, 6)];
    assert_eq!(statistics.snapshot_top(10), expected);
    assert_eq!(statistics.snapshot_top(1), expected[..1]);
    assert_eq!(statistics.distinct().estimate(), 2);
    let merged = merge(vec![expected.to_vec(), vec![record("10.99.0.1/32", 4, 2, 4)]]);
    assert_eq!(merged, [record("10.99.0.1/32", 6, 3, 6), record("fd99::/64", 3, 0, 9)]);
}

#[test]
fn ten_million_clients_take_no_more_memory_and_do_not_hide_the_heavy_ones() {
    let statistics = ClientStatistics::new(4096, LENGTHS);
    let memory = statistics.memory_bytes();
    assert_eq!((memory - size_of::<ClientStatistics>(), size_of::<Bucket>()), (4096 * 64, 4 * 64));
    let keying = keying();
    for number in 0..10_000_000_u32 {
        let light = keying.identify(address(1_000_000 + number));
        statistics.record(&light, Version::V4, 48, true, Timestamp::ZERO);
        // Each of ten heavy ones sends a thousandth of it all; a bucket's quarter is a 4096th or so.
        if number % 100 == 0 {
            let heavy = keying.identify(address(number / 100 % 10));
            statistics.record(&heavy, Version::V4, 48, false, Timestamp::ZERO);
        }
    }
    assert_eq!(statistics.memory_bytes(), memory);
    let top: Vec<_> = statistics.snapshot_top(10);
    for record in &top {
        let IpNet::V4(net) = record.prefix else { panic!("{}", record.prefix) };
        assert!(net.addr().to_bits() < 10, "{net} is not a heavy one");
        assert!((record.requests - record.overcount..=record.requests).contains(&10_000), "{record:?}");
    }
    assert_eq!(top.len(), 10);
}

#[test]
fn a_reader_never_sees_half_an_entry() {
    // One bucket and many clients: entries change hands at every request.
    let lengths = PrefixLengths { ipv6: 128, ..LENGTHS };
    let statistics = ClientStatistics::new(WAYS, lengths);
    let keying = ClientKeying::new(lengths, [1, 2, 3, 4]);
    // High and low half are the same number, so that a torn prefix shows.
    let twice = |number: u128| IpAddr::V6((number << 64 | number).into());
    let clients: Vec<Client> = (1..=1000).map(|number| keying.identify(twice(number))).collect();
    let done = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let (statistics, done) = (&statistics, &done);
        let reader = scope.spawn(move || {
            let mut seen = 0_usize;
            while !done.load(Ordering::Relaxed) {
                for record in (0..WAYS).filter_map(|way| statistics.buckets[0].read(way, lengths)) {
                    let IpNet::V6(net) = record.prefix else { panic!("{}", record.prefix) };
                    let bits = net.addr().to_bits();
                    assert_eq!((bits >> 64) as u64, bits as u64, "{net} is half one client, half another");
                    seen += 1;
                }
            }
            seen
        });
        for round in 0..20_000_000_usize {
            statistics.record(&clients[round % 1000], Version::V4, 48, true, Timestamp::ZERO);
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    assert!(seen > 1000, "only {seen} entries read");
}

proptest! {
    /// The promise of Space-Saving, bucket by bucket.
    #[test]
    fn whoever_sends_more_than_a_quarter_of_a_bucket_is_listed(
        requests in prop::collection::vec(prop_oneof![0..8_u32, 0..200_u32], 1..2000),
        buckets_log2 in 0..4_u32,
    ) {
        let statistics = ClientStatistics::new(WAYS << buckets_log2, LENGTHS);
        let bucket_of = |number: u32| keying().identify(address(number)).hash & ((1 << buckets_log2) - 1);
        let (mut exact, mut in_bucket) = (HashMap::<u32, u64>::new(), HashMap::<u64, u64>::new());
        for number in requests {
            ask(&statistics, address(number), true, 1);
            *exact.entry(number).or_default() += 1;
            *in_bucket.entry(bucket_of(number)).or_default() += 1;
        }
        let listed = statistics.snapshot_top(usize::MAX);
        prop_assert!(listed.is_sorted_by(|a, b| a.requests >= b.requests));
        for (number, count) in exact {
            let quarter = in_bucket[&bucket_of(number)] / WAYS as u64;
            match listed.iter().find(|record| record.prefix.addr() == address(number)) {
                Some(record) => {
                    prop_assert!(record.overcount <= quarter, "{record:?}");
                    prop_assert!((record.requests - record.overcount..=record.requests).contains(&count));
                }
                None => prop_assert!(count <= quarter, "{} sent {} and is not listed", number, count),
            }
        }
    }
}
