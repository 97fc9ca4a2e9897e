//! Sender and judge by themselves, through BPF test-run: frames and judgements, each compared with the Rust they repeat.
//! They need the right to load BPF programs, and say SKIP without. `tests/load_live_frames.rs` has them in a network.

use super::program::{Program, lowest_of_bucket};
use super::settings::SLOT_BITS;
use super::*;
use crate::load::engine::Expect;
use crate::load::record::{LATENCY_MAX_NANOSECONDS, empty_histogram};
use crate::load::request::cookie;
use crate::load::testing;
use crate::sys::bpf::{TestRunInput, test_run_skb, test_run_xdp};
use crate::wire::Frame;
use proptest::prelude::*;
use std::io::Write;
use std::os::fd::BorrowedFd;
use timeball_xdp_prog::load::{COUNTERS, LATENCY_MAX, Progress as Sender};

mod replies;

const NONCE: u32 = 0xdead_beef;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;
const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;

fn scene(prefix: &str, count: u64) -> Scene {
    let target = if prefix.contains('.') { "10.99.1.1" } else { "fd99:1::1" };
    Scene { interface: "lo".into(), ifindex: 1, ..testing::scene(target, prefix, count) }
}

/// All that can be asked for at once is due at once.
fn plan() -> Plan {
    Plan { rate: None, duration: Duration::from_secs(3600), timeout: Duration::from_secs(3), nonce: NONCE }
}

/// The programs of a scene; `None`, having said so, where loading is not allowed.
fn load(scene: &Scene, plan: &Plan) -> Option<Program> {
    match Program::load(&settings(scene, &Template::new(scene), plan).unwrap()) {
        Ok(programs) => Some(programs),
        Err(error) if error.0.contains("Operation not permitted") => {
            let test = std::thread::current().name().unwrap_or("test").to_owned();
            std::io::stderr().write_all(format!("\nSKIP {test}: {error}\n").as_bytes()).unwrap();
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// One run: the verdict, and the frame as it is then.
fn run(program: BorrowedFd<'_>, frame: &[u8]) -> (u32, Vec<u8>) {
    let input = TestRunInput { metadata: &[], frame, queue: None, repeat: 1 };
    let outcome = test_run_xdp(program, &input).unwrap();
    (outcome.verdict, outcome.frame)
}

/// Where the judge hears a frame. Both have the same to say.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Hook {
    Xdp,
    TrafficControl,
}

/// Whether the judge took the frame.
fn hear(programs: &Program, hook: Hook, frame: &[u8]) -> bool {
    match hook {
        Hook::Xdp => {
            let (verdict, left) = run(programs.hear(), frame);
            assert_eq!(left, frame, "the judge changed the frame");
            assert!([XDP_DROP, XDP_PASS].contains(&verdict), "{verdict}");
            verdict == XDP_DROP
        }
        Hook::TrafficControl => {
            let verdict = test_run_skb(programs.hear_skb(), frame).unwrap().cast_signed();
            assert!([TC_ACT_SHOT, TC_ACT_UNSPEC].contains(&verdict), "{verdict}");
            verdict == TC_ACT_SHOT
        }
    }
}

#[test]
fn requests_are_those_of_the_template() {
    for (prefix, count) in [
        ("10.99.8.0/22", 1),
        ("10.99.8.0/22", 1000),
        ("10.99.1.2/32", 64512),
        ("10.99.0.0/16", 500_000),
        ("10.99.8.4/31", 9),
        ("fd99:2::/48", 1000),
        ("fd99:2::1/128", 500),
        ("fd99:2::ffff:0/112", 100_000),
        ("fd99:8000::/20", 10_000_000),
    ] {
        let scene = scene(prefix, count);
        let template = Template::new(&scene);
        let Some(mut programs) = load(&scene, &plan()) else { return };
        // What a server may have made of the last frame.
        let garbage = vec![0xa5; template.bytes().len()];
        // Around where the clients begin again, where the addresses do, and where the table does.
        let addresses = scene.clients.addresses();
        let starts =
            [0, addresses - 1, count - 1, 2 * count - 1, 7 * count + addresses, 1 << 16, (1 << 32) - 4];
        for start in starts {
            let progress = Sender { sent: start, ..programs.progress().unwrap() };
            programs.set_progress(progress);
            for sequence in (start..start + 3).map(|sequence| sequence as u32) {
                let (verdict, sent) = run(programs.ask(), &garbage);
                let mut expected = [0; crate::load::request::REQUEST_LENGTH_MAX];
                let length = template.write(&mut expected, NONCE, sequence);
                assert_eq!(sent, expected[..length], "{prefix}, {count} clients, request {sequence}");
                assert_eq!(verdict, XDP_REDIRECT);
            }
        }
    }
}

/// A right reply to request `sequence`.
fn right(scene: &Scene, sequence: u32) -> Vec<u8> {
    let mut bytes = vec![0; crate::load::request::REQUEST_LENGTH_MAX];
    let length = Template::new(scene).write(&mut bytes, NONCE, sequence);
    bytes.truncate(length);
    let payload = &mut bytes[length - 48..];
    payload[..2].copy_from_slice(&[0x24, 1]);
    payload.copy_within(40..48, 24);
    payload[32..40].copy_from_slice(&cookie(5, 0).to_be_bytes());
    payload[40..48].copy_from_slice(&cookie(5, 0).to_be_bytes());
    Frame::parse(&bytes).unwrap().turn_round(&mut bytes, 48);
    bytes
}

#[test]
fn a_reply_is_late_after_the_timeout_and_wrong_before_its_request() {
    for (prefix, hook) in [("10.99.8.0/22", Hook::TrafficControl), ("fd99:2::/48", Hook::Xdp)] {
        let scene = scene(prefix, 1000);
        let plan = Plan { timeout: Duration::from_millis(50), ..plan() };
        let Some(programs) = load(&scene, &plan) else { return };
        let hear = |sequence| {
            let before = programs.counts().unwrap();
            assert!(hear(&programs, hook, &right(&scene, sequence)));
            let after = programs.counts().unwrap();
            (0..COUNTERS).filter(|&at| before[at] != after[at]).collect::<Vec<_>>()
        };
        assert_eq!(hear(0), [Flaw::Origin as usize], "nothing was asked yet");
        for _ in 0..3 {
            run(programs.ask(), Template::new(&scene).bytes());
        }
        assert_eq!(hear(0), [Counter::Answered as usize]);
        assert_eq!(hear(3), [Flaw::Origin as usize], "not asked yet");
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(hear(1), [Counter::Late as usize]);
        assert_eq!(hear(1), [Counter::Duplicate as usize]);
        let round_trip = programs.histogram(Histogram::RoundTrip).unwrap();
        assert!(
            round_trip.len() == 1 && round_trip.min() > 0 && round_trip.max() < 50_000_000,
            "{round_trip:?}"
        );
        assert_eq!(programs.histogram(Histogram::Turnaround).unwrap().len(), 2);
        assert_eq!(programs.histogram(Histogram::SendDelay).unwrap().len(), 3);
    }
}

/// The table has 16 million entries, and whoever presses Ctrl-C twice waits for this.
#[test]
fn open_requests_of_a_whole_table_are_counted_at_once() {
    let scene = scene("10.99.8.0/22", 1000);
    let Some(mut programs) = load(&scene, &plan()) else { return };
    let table = 1 << SLOT_BITS.end();
    // As if 16 million had their replies, and then a thousand more were sent.
    programs.set_progress(Sender { sent: table - 500, ..Sender::default() });
    let (mut numbers, mut middle) = (Vec::new(), 0);
    for request in 0..1000 {
        if request == 600 {
            let sender = programs.progress().unwrap();
            middle = clock::monotonic().nanoseconds() as u64 - sender.start;
        }
        numbers.push(programs.progress().unwrap().sent as u32);
        run(programs.ask(), Template::new(&scene).bytes());
    }
    for number in numbers.iter().step_by(10) {
        run(programs.hear(), &right(&scene, *number));
    }
    let since = Instant::now();
    assert_eq!(programs.open_since(0, u64::MAX).unwrap(), 900);
    let took = since.elapsed();
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert_eq!(programs.open_since(middle, u64::MAX).unwrap(), 360);
    assert_eq!(programs.open_since(0, 50).unwrap(), 45);
}

#[test]
fn the_pace_does_not_drift() {
    let scene = scene("10.99.8.0/22", 1);
    for rate in [1.0, 3.0, 20_000.0, 333_333.3, 1_234_567.891] {
        let plan = Plan { rate: Some(rate), duration: Duration::from_secs(2000), ..plan() };
        let Some(mut programs) = load(&scene, &plan) else { return };
        // So long ago that a thousand requests are overdue.
        let start = clock::monotonic().nanoseconds() as u64 - (999.5 / rate * 1e9) as u64;
        programs.set_progress(Sender { start, due: start, ..Sender::default() });
        let frame = Template::new(&scene);
        for _ in 0..1000 {
            run(programs.ask(), frame.bytes());
        }
        let progress = programs.progress().unwrap();
        assert_eq!(progress.sent, 1000, "at {rate}/s");
        let exact = (1000.0 * 1e9 / rate) as u64;
        assert!((progress.due - start).abs_diff(exact) <= 1, "at {rate}/s: {} {exact}", progress.due - start);
        if rate < 10.0 {
            assert_eq!(
                run(programs.ask(), frame.bytes()).0,
                XDP_DROP,
                "request 1000 is not due yet at {rate}/s"
            );
        }
    }
}

#[test]
fn plans_that_do_not_fit_are_refused() {
    let scene = scene("10.99.8.0/22", 1);
    let template = Template::new(&scene);
    let refused = |plan: Plan| settings(&scene, &template, &plan).unwrap_err().0;
    let slow = Plan { rate: Some(1e6), timeout: Duration::from_secs(60), ..plan() };
    assert!(refused(slow).contains("timeout"));
    assert!(refused(Plan { duration: Duration::from_secs(300_000), ..plan() }).contains("78 hours"));
    let long = Plan { rate: Some(1e6), duration: Duration::from_secs(5000), ..plan() };
    assert!(refused(long).contains("5 000 000 000 requests in one step: 4 294 967 296 are"));
    // A step has at least one request.
    let short = Plan { rate: Some(1.0), duration: Duration::from_millis(100), ..plan() };
    assert_eq!(settings(&scene, &template, &short).unwrap().requests_max, 1);
    let small = settings(&scene, &template, &Plan { rate: Some(10.0), ..plan() }).unwrap();
    let large = settings(&scene, &template, &plan()).unwrap();
    assert_eq!((small.slot_bits, large.slot_bits), (16, 24));
    let paced = Plan { rate: Some(1e6), timeout: Duration::from_secs(1), ..plan() };
    assert_eq!(settings(&scene, &template, &paced).unwrap().slot_bits, 20);
}

#[test]
fn flaws_are_counted_under_their_own_numbers() {
    assert_eq!((Flaw::COUNT, LATENCY_MAX), (FLAWS, LATENCY_MAX_NANOSECONDS));
    let header = include_str!("../../../xdp-prog/src/load.h");
    let names: Vec<String> = header
        .lines()
        .filter_map(|line| line.trim().strip_prefix("JUDGED_")?.strip_suffix(','))
        .map(str::to_lowercase)
        .collect();
    assert_eq!(names[..FLAWS], Flaw::ALL.map(Flaw::name));
}

/// `record` of load.bpf.c.
fn bucket(nanoseconds: u64) -> u64 {
    let shift = u64::from((64 - (nanoseconds >> 11).leading_zeros()).min(25));
    (shift << 10) + (nanoseconds >> shift)
}

proptest! {
    #[test]
    fn a_buckets_lowest_value_is_in_the_same_bucket_of_hdrhistogram(bits in 0_u32..36, value: u64) {
        let value = (value >> (63 - bits)).min(LATENCY_MAX);
        let lowest = lowest_of_bucket(bucket(value));
        prop_assert!(lowest <= value);
        prop_assert_eq!(empty_histogram().lowest_equivalent(lowest), empty_histogram().lowest_equivalent(value));
        prop_assert_eq!(bucket(lowest), bucket(value));
    }
}
