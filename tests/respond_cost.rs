//! What answering costs besides time: no allocation, no system call, no clock read, few instructions, bounded memory.
//!
//! Owns: the proof for each. Does not own: the times (`benches/respond.rs`) and the instruction limit of the release
//! build (`scripts/instructions`).
//!
//! The one idea a newcomer lacks: a forbidden act must be fatal to prove its absence. So `respond` runs in a forked
//! process in which any system call kills (seccomp's strict mode), and so does reading the CPU's time stamp counter
//! (`PR_SET_TSC`), which is what a clock read is that needs no system call (the vDSO). For each there is a control that
//! dies of it. On other machines than x86-64 the second is missing; there `tests/layers.rs` stands for it: `serve` may
//! import neither `sys` nor a clock of std, so it has no way to `clock_gettime`.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test may")]

#[path = "../benches/workload/mod.rs"]
#[allow(dead_code, reason = "the benchmarks use the rest")]
mod workload;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;
use timeball::serve::access::{AccessList, Action};
use timeball::serve::clients::{ClientKeying, ClientStatistics, PrefixLengths};
use timeball::serve::limit::{Lottery, RateLimiter, RateParameters};
use timeball::serve::testing::{Setup, client_request, keys};
use timeball::serve::{Policy, Refusal, Responder};
use timeball::time::{NtpDuration, Timestamp};
use workload::{Family, Loop, RECEIVED, SENT, Subject, arrival, frame, prefixes, snapshot};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count_one() {
    // A thread that is ending has no count any more, and nobody who asks for it.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call is passed on as it came; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_one();
        // SAFETY: the caller's promise about the layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count_one();
        // SAFETY: the caller's promise that it came from here with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and deallocations of this thread during `work`.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

/// Requests that lead to every outcome there is, and room for what comes of them.
struct Scene {
    responder: Responder,
    frames: Vec<Vec<u8>>,
    buffer: Vec<u8>,
}

#[derive(Default, PartialEq, Eq, Debug)]
struct Outcomes {
    times: u32,
    signed: u32,
    kisses: [u32; 3],
    refusals: [u32; Refusal::ALL.len()],
}

impl Outcomes {
    fn are_all_there(&self) -> bool {
        self.times > 0
            && self.signed > 0
            && self.kisses.iter().all(|&count| count > 0)
            && self.refusals.iter().all(|&count| count > 0)
    }
}

impl Scene {
    fn new() -> Self {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let request = client_request(4, &[]);
        let with_first = |octet| [&[octet], &request[1..]].concat();
        let field = [&[0x12, 0x34, 0, 28][..], &[0xaa; 24]].concat();
        let mut frames: Vec<_> = ["10.99.0.2", "10.99.1.1", "10.99.2.1", "10.99.3.1", "127.0.0.1", "fd99::2"]
            .map(|source| frame(ip(source), &request))
            .into();
        for payload in [
            client_request(3, &[]),
            client_request(4, &field),
            client_request(4, &[1; 20]),
            client_request(4, &[0; 4]),
            client_request(4, &[&[0, 0, 0, 2][..], &[1; 20]].concat()),
            client_request(4, &[1; 8]),
            with_first(0x2b),
            with_first(0x24),
        ] {
            frames.push(frame(ip("10.99.0.3"), &payload));
        }
        for (key, _) in keys().types() {
            for (version, source) in [(4, "10.99.0.4"), (3, "fd99::4"), (4, "10.99.1.2")] {
                let mut request = client_request(version, &[]);
                keys().append(key, &mut request).unwrap();
                frames.push(frame(ip(source), &request));
            }
        }
        frames.push(vec![0xaa; 60]);
        let buffer = vec![0; 2048];
        Self { responder: Setup::strict().responder(), frames, buffer }
    }

    /// Each request forty times, so that limits are met.
    fn play(&mut self) -> Outcomes {
        let (snapshot, now) = (snapshot(), Timestamp::from_nanoseconds(1_000_000_000));
        let mut outcomes = Outcomes::default();
        for _ in 0..40 {
            for frame in &self.frames {
                let bytes = &mut self.buffer[..frame.len()];
                bytes.copy_from_slice(frame);
                match self.responder.respond_to_frame(bytes, 123, RECEIVED, now, &snapshot) {
                    Ok(reply) => {
                        let prepared = *reply.prepared();
                        match (prepared.kiss, prepared.crypto_nak) {
                            (Some((code, _)), _) => outcomes.kisses[code as usize] += 1,
                            (None, Some(refusal)) => outcomes.refusals[refusal as usize] += 1,
                            (None, None) => outcomes.times += 1,
                        }
                        outcomes.signed += u32::from(prepared.key().is_some());
                        let _ = reply.seal(SENT, bytes, self.responder.keys());
                    }
                    Err(refusal) => outcomes.refusals[refusal as usize] += 1,
                }
            }
        }
        outcomes
    }
}

#[test]
fn no_answer_refusal_or_kiss_allocates() {
    let mut scene = Scene::new();
    let mut outcomes = Outcomes::default();
    assert_eq!(allocations(|| outcomes = scene.play()), 0, "{outcomes:?}");
    assert!(outcomes.are_all_there(), "{outcomes:?}");
    assert!(allocations(|| drop(std::hint::black_box(Box::new(1)))) >= 2, "the count is broken");
}

/// Runs `work` in a forked process where system calls kill and, on x86-64, reading the clock does too. `true`: it lived
/// and said that all was well.
fn survives_alone(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child neither allocates nor takes a lock that another thread may have held: `work` is what is shown
    // not to, and everything else it does is system calls.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        forbid_clock_and_system_calls();
        let code = libc::c_long::from(!work());
        // `_exit` would be exit_group, which strict mode kills.
        // SAFETY: ends this thread, the only one of the child.
        unsafe { libc::syscall(libc::SYS_exit, code) };
    }
    let mut status = 0;
    // SAFETY: `status` is a place for an int; the child is ours and not yet waited for.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child);
    if libc::WIFSIGNALED(status) {
        assert!([libc::SIGKILL, libc::SIGSEGV].contains(&libc::WTERMSIG(status)), "{status:#x}");
    }
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

fn forbid_clock_and_system_calls() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: takes an integer, and touches no memory.
    unsafe {
        libc::prctl(libc::PR_SET_TSC, libc::PR_TSC_SIGSEGV);
    }
    // SAFETY: takes an integer, and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) };
}

#[test]
fn no_answer_refusal_or_kiss_makes_a_system_call_or_reads_a_clock() {
    let mut scene = Scene::new();
    assert!(survives_alone(|| true), "seccomp's strict mode works here");
    assert!(survives_alone(|| scene.play().are_all_there()));
    // SAFETY: has no arguments and cannot fail.
    assert!(!survives_alone(|| unsafe { libc::syscall(libc::SYS_getppid) } != 0), "a system call must kill");
    if cfg!(target_arch = "x86_64") {
        let started = Instant::now();
        assert!(!survives_alone(|| started.elapsed().as_nanos() > 0), "a clock read must kill");
    } else {
        println!("SKIP clock reads: only x86-64 can forbid them; tests/layers.rs keeps clocks out of serve");
    }
}

/// Runs one test of this binary in a process of its own, with `variable` set, under `wrapper`. Its two outputs.
fn alone(wrapper: &[&str], test: &str, variable: (&str, &str)) -> String {
    let program = std::env::current_exe().unwrap();
    let mut words = wrapper.iter().map(std::ffi::OsString::from).collect::<Vec<_>>();
    words.push(program.into());
    let output = Command::new(&words[0])
        .args(&words[1..])
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(variable.0, variable.1)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{test}: {text}");
    text
}

const DISTINCT_CLIENTS: &str = "TIMEBALL_DISTINCT_CLIENTS";
const ALONE: &str = "TIMEBALL_ALONE";

/// The most resident memory of this process so far, in KiB.
fn peak_resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

/// 10 million clients unless `TIMEBALL_DISTINCT_CLIENTS` says otherwise.
#[test]
fn millions_of_distinct_clients_stay_in_the_stated_memory() {
    if std::env::var_os(ALONE).is_some() {
        let clients = std::env::var(DISTINCT_CLIENTS).map_or(10_000_000, |text| text.parse().unwrap());
        return many_clients(clients);
    }
    let output = alone(&[], "millions_of_distinct_clients_stay_in_the_stated_memory", (ALONE, "1"));
    // libtest has written the test's name before it.
    let (_, report) = output.split_once("clients: ").unwrap_or_else(|| panic!("{output}"));
    println!("clients: {}", report.lines().next().unwrap());
}

fn many_clients(clients: u32) {
    let lengths = PrefixLengths::default();
    let limiter = |interval, burst, leak| {
        let interval = NtpDuration::from_seconds(interval);
        Arc::new(RateLimiter::new(RateParameters { interval, burst, leak, clients: 1_000_000 }))
    };
    let before = peak_resident_kib();
    let limiters = [limiter(1, 16, 4), limiter(16, 2, 0)];
    let statistics = Arc::new(ClientStatistics::new(1 << 16, lengths));
    let access = AccessList::new(Action::Allow, prefixes()).unwrap();
    let policy = Policy {
        access: Arc::new(access),
        limiter: Some(Arc::clone(&limiters[0])),
        kiss_limiter: Some(Arc::clone(&limiters[1])),
        keying: ClientKeying::new(lengths, [1, 2, 3, 4]),
    };
    let stated =
        limiters.iter().map(|limiter| limiter.memory_bytes()).sum::<usize>() + statistics.memory_bytes();
    let mut responder = Responder::new(policy, Arc::clone(&statistics), Lottery::new([1, 2]));
    let (snapshot, request) = (snapshot(), client_request(4, &[]));
    let mut payload = request.clone();
    let mut ask = |number: u32| {
        payload.copy_from_slice(&request);
        let family = if number.is_multiple_of(2) { Family::V4 } else { Family::V6 };
        let arrival = arrival(family, 1000 + number / 2, number);
        responder.respond(&mut payload, &arrival, &snapshot).is_ok()
    };
    // Whatever is touched for the first time.
    assert!((0..1000).any(&mut ask));
    let (started, set_up) = (Instant::now(), peak_resident_kib());
    let mut answered = 0_u32;
    assert_eq!(allocations(|| answered = (0..clients).map(|number| u32::from(ask(number))).sum()), 0);
    let (seconds, grown) = (started.elapsed().as_secs_f64(), peak_resident_kib() - set_up);
    let estimate = statistics.distinct().estimate();
    println!(
        "clients: {clients} distinct in {seconds:.1} s, {answered} answered, estimated {estimate}; \
         tables {stated} bytes stated (limit {} and kisses {} bytes for a million clients, statistics {} for {}), \
         {} KiB resident from them, {grown} KiB more after all clients",
        limiters[0].memory_bytes(),
        limiters[1].memory_bytes(),
        statistics.memory_bytes(),
        1 << 16,
        set_up - before,
    );
    assert!(f64::from(answered) > 0.999 * f64::from(clients), "{answered}: the limit hits strangers");
    assert!((estimate as f64 / f64::from(clients) - 1.0).abs() < 0.13, "{estimate} of {clients}");
    assert!(grown <= 256, "{grown} KiB more");
    assert!(
        (set_up - before) * 1024 <= stated as u64 + (2 << 20),
        "{} KiB, stated {stated}",
        set_up - before
    );
}

const INSTRUCTIONS: &str = "TIMEBALL_INSTRUCTIONS";
const COUNTED: u32 = 20_000;
/// For this test's own build, which optimises little: it has 920. The release build's limit is in `scripts/instructions`.
const INSTRUCTIONS_MAX: f64 = 1100.0;

#[test]
fn respond_takes_few_instructions() {
    if let Ok(which) = std::env::var(INSTRUCTIONS) {
        let family = if which.contains("v6") { Family::V6 } else { Family::V4 };
        let counted = Loop { subject: Subject::Respond, family, clients: COUNTED, requests: COUNTED };
        assert_eq!(counted.run(), COUNTED);
        return;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("SKIP instructions: valgrind is missing");
        return;
    }
    for family in ["v4", "v6"] {
        let wrapper = [
            "valgrind",
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            "--collect-atstart=no",
            "--toggle-collect=*workload*measured*",
        ];
        let output = alone(&wrapper, "respond_takes_few_instructions", (INSTRUCTIONS, family));
        let collected = output.split("Collected : ").nth(1).unwrap_or_else(|| panic!("{output}"));
        let collected = collected.split_ascii_whitespace().next().unwrap().parse::<f64>().unwrap();
        let each = collected / f64::from(COUNTED);
        println!("instructions: {each:.0} for a request over {family}");
        assert!((50.0..INSTRUCTIONS_MAX).contains(&each), "{each} instructions over {family}");
    }
}
