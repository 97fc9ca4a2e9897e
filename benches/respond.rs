//! Times of the answering path's parts: `cargo bench --bench respond` (a minute; with `-- --quick`, seconds).

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark may")]

#[allow(dead_code, reason = "the instruction count uses the rest")]
mod workload;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use timeball::daemon::stamps::BatchClock;
use timeball::datapath::af_xdp::BATCH;
use timeball::datapath::ring::testing::{OFFSETS, ring_memory};
use timeball::datapath::ring::{Consumer, Descriptor, FrameAddress, Producer};
use timeball::serve::access::{AccessList, Action};
use timeball::serve::clients::{ClientKeying, PrefixLengths};
use timeball::serve::limit::{Lottery, RateLimiter, RateParameters};
use timeball::serve::testing::client_request;
use timeball::sys::clock;
use timeball::time::Timestamp;
use timeball::wire::{Checksum, Frame, Packet, updated_checksum};
use workload::rounds::Rounds;
use workload::{
    Family, Loop, RECEIVED, SENT, Subject, address, arrival, frame, prefixes, responder, snapshot,
};

/// Clients that take turns.
const CLIENTS: u32 = 100_000;
const FAMILIES: [(&str, Family); 2] = [("v4", Family::V4), ("v6", Family::V6)];

/// Numbers of requests, and the clients that send them.
fn numbers() -> impl FnMut() -> (u32, u32) {
    let mut request = 0_u32;
    move || {
        request = request.wrapping_add(1);
        (1000 + request % CLIENTS, request)
    }
}

fn wire(criterion: &mut Criterion) {
    let plain = client_request(4, &[]);
    let field = [&[0x12, 0x34, 0, 28][..], &[0xaa; 24]].concat();
    let extended = client_request(4, &field);
    criterion
        .bench_function("Packet::parse/48", |bench| bench.iter(|| Packet::parse(black_box(&plain)).is_ok()));
    criterion.bench_function("Packet::parse/76", |bench| {
        bench.iter(|| Packet::parse(black_box(&extended)).is_ok())
    });
    for (name, family) in FAMILIES {
        let bytes = frame(address(family, 1), &plain);
        criterion.bench_function(&format!("Frame::parse/{name}"), |bench| {
            bench.iter(|| Frame::parse(black_box(&bytes)).is_ok());
        });
        criterion.bench_function(&format!("Frame::turn_round/{name}"), |bench| {
            let (parsed, mut bytes) = (Frame::parse(&bytes).unwrap(), bytes.clone());
            bench.iter(|| parsed.turn_round(black_box(&mut bytes), 48));
        });
    }
    criterion.bench_function("checksum/56", |bench| {
        let bytes = [0x5a; 56];
        bench.iter(|| Checksum::new().add_bytes(black_box(&bytes)).finish_udp());
    });
    criterion.bench_function("checksum/update", |bench| {
        bench.iter(|| updated_checksum(black_box(0x1234), 0, black_box(0xeb00_0000_8000_0000)));
    });
}

/// What a clock costs that is read for every reply instead of once for a batch.
fn clocks(criterion: &mut Criterion) {
    criterion.bench_function("clock::realtime", |bench| bench.iter(clock::realtime));
    criterion.bench_function("BatchClock::read", |bench| bench.iter(BatchClock::read));
}

fn answer(criterion: &mut Criterion) {
    let snapshot = snapshot();
    let request = client_request(4, &[]);
    for (name, family) in FAMILIES {
        criterion.bench_function(&format!("respond/{name}"), |bench| {
            let (mut responder, mut next) = (responder(), numbers());
            let mut payload = request.clone();
            bench.iter(|| {
                let (client, number) = next();
                payload.copy_from_slice(&request);
                responder
                    .respond(black_box(&mut payload), &arrival(family, client, number), &snapshot)
                    .is_ok()
            });
        });
        criterion.bench_function(&format!("PreparedFrame::seal/{name}"), |bench| {
            let (mut responder, mut bytes) = (responder(), frame(address(family, 1000), &request));
            let now = Timestamp::from_nanoseconds(1_000_000_000);
            let reply = responder.respond_to_frame(&mut bytes, 123, RECEIVED, now, &snapshot).unwrap();
            bench.iter(|| black_box(reply).seal(SENT, black_box(&mut bytes), responder.keys()));
        });
        criterion.bench_function(&format!("respond_to_frame and seal/{name}"), |bench| {
            let mut responder = responder();
            let frames: Vec<_> =
                (0..4096).map(|client| frame(address(family, 1000 + client), &request)).collect();
            let (mut buffer, mut number) = (frames[0].clone(), 0);
            bench.iter(|| {
                number += 1;
                buffer.copy_from_slice(&frames[number % frames.len()]);
                let now = Timestamp::from_nanoseconds(number as i64 * 1_000_000);
                let bytes = black_box(buffer.as_mut_slice());
                let reply = responder.respond_to_frame(bytes, 123, RECEIVED, now, &snapshot);
                reply.map(|reply| reply.seal(SENT, bytes, responder.keys())).is_ok()
            });
        });
    }
}

fn tables(criterion: &mut Criterion) {
    let access = AccessList::new(Action::Allow, prefixes()).unwrap();
    for (name, family) in FAMILIES {
        criterion.bench_function(&format!("access lookup/{name}"), |bench| {
            let mut next = numbers();
            bench.iter(|| access.lookup(address(family, next().0)));
        });
    }
    criterion.bench_function("limiter check", |bench| {
        let limiter = RateLimiter::new(RateParameters::default());
        let keying = ClientKeying::new(PrefixLengths::default(), [1, 2, 3, 4]);
        let (mut lottery, mut next) = (Lottery::new([1, 2]), numbers());
        bench.iter(|| {
            let (client, number) = next();
            let client = keying.identify(address(Family::V4, client));
            limiter.check(&client, Timestamp::from_nanoseconds(i64::from(number) * 1_000_000), &mut lottery)
        });
    });
}

/// A batch of 64 descriptors into a ring and out of it.
fn ring(criterion: &mut Criterion) {
    let memory = ring_memory(128, 2, 0);
    let mut producer = Producer::new(Arc::clone(&memory), OFFSETS, 128).unwrap();
    let mut consumer = Consumer::<Descriptor>::new(memory, OFFSETS, 128).unwrap();
    criterion.bench_function("ring/64 in and out", |bench| {
        bench.iter(|| {
            for number in 0..64 {
                let _ =
                    producer.push(Descriptor { address: FrameAddress(number << 11), length: 90, options: 0 });
            }
            producer.submit();
            let mut sum = 0;
            while let Some(descriptor) = consumer.pop() {
                sum += descriptor.address.0;
            }
            consumer.release();
            sum
        });
    });
}

/// Batches per family and number of clients, the bare reflector's first. Only the round itself is timed: the fake kernel
/// brings and takes the packets meanwhile.
fn rounds(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("round of 64");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, subject, family, clients) in [
        ("reflector/v4", Subject::Reflect, Family::V4, 1),
        ("reflector/v6", Subject::Reflect, Family::V6, 1),
        ("worker/v4/one client", Subject::Round, Family::V4, 1),
        ("worker/v6/one client", Subject::Round, Family::V6, 1),
        ("worker/v6/10 million clients", Subject::Round, Family::V6, 10_000_000),
    ] {
        let mut rounds = Rounds::new(Loop { subject, family, clients, requests: 0 });
        group.bench_function(name, |bench| {
            bench.iter_custom(|count| {
                let mut total = Duration::ZERO;
                for _ in 0..count {
                    rounds.deliver();
                    let start = Instant::now();
                    rounds.round();
                    total += start.elapsed();
                    rounds.leave();
                }
                total
            });
        });
    }
}

criterion_group!(benches, wire, clocks, answer, tables, ring, rounds);
criterion_main!(benches);
