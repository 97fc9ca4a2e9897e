//! What several modules' tests need: a scene, and a small run.

use super::clients::Clients;
use super::engine::{Expect, Scene};
use super::record::{FORMAT, Latencies, Machine, Run, Step, empty_histogram};

fn latencies(values: &[u64]) -> Latencies {
    let mut histogram = empty_histogram();
    for value in values {
        histogram.record(*value).unwrap();
    }
    Latencies::of(&histogram)
}

/// Two steps of two seconds: 1000 requests a second, then as many as went.
pub(crate) fn run() -> Run {
    let step = Step {
        intended_per_second: Some(1000.0),
        duration_seconds: 2.0,
        offered: 2000,
        offered_per_second: 1000.0,
        send_failures: 0,
        answered: 1990,
        answered_per_second: 995.0,
        kisses: [("RATE".to_owned(), 4)].into(),
        late: 1,
        in_flight: 0,
        lost: 5,
        duplicates: 0,
        invalid: [("origin".to_owned(), 2)].into(),
        unfinished_checksums: 1990,
        round_trip: latencies(&[5_000, 6_000, 6_000, 7_000, 2_000_000]),
        turnaround: latencies(&[700, 800, 900]),
        send_delay: latencies(&[100, 200]),
    };
    let saturated = Step { intended_per_second: None, send_delay: Latencies::default(), ..step.clone() };
    Run {
        format: FORMAT,
        label: "test".into(),
        version: "0.1.0".into(),
        started: "2026-01-01T00:00:00Z".into(),
        target: "10.99.1.1:123".into(),
        interface: "tb0".into(),
        mode: "basic".into(),
        clients: 1000,
        sources: "10.99.8.0/22".into(),
        engine: "live-frames".into(),
        engine_reason: "a test".into(),
        machine: Machine { processor: "none".into(), cpus: 2, kernel: "6.18".into() },
        interrupted: false,
        failure: None,
        steps: vec![step, saturated],
    }
}

/// `count` clients of the prefix `sources` ask `target`'s port 123.
pub(crate) fn scene(target: &str, sources: &str, count: u64) -> Scene {
    Scene {
        interface: "tb0".into(),
        ifindex: 2,
        source_mac: [2, 0, 0, 0, 0, 1],
        target_mac: [2, 0, 0, 0, 0, 2],
        target: target.parse().unwrap(),
        port: 123,
        clients: Clients::new(sources.parse().unwrap(), count).unwrap(),
        expect: Expect::Ntp,
    }
}
