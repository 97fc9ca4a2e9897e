//! The kernel's test run of a program: on one frame, or on many that are real.
//!
//! Owns: the call and its contexts. Does not own: what a program's verdict means.
//!
//! The one idea a newcomer lacks: with live frames it is no test at all but a sender, with nothing per packet in user space.
#![allow(unsafe_code)]

use super::{bpf, length, raw};
use aya_obj::generated::{BPF_F_TEST_XDP_LIVE_FRAMES, bpf_cmd};
use std::io;
use std::mem::size_of;
use std::os::fd::AsFd;
use std::time::Duration;

/// `BPF_PROG_TEST_RUN`'s part of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    verdict: u32,
    data_in_length: u32,
    data_out_length: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration_nanoseconds: u32,
    context_in_length: u32,
    context_out_length: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}
const _: () = assert!(size_of::<TestRun>() == 80);

/// The kernel's `struct xdp_md`: offsets into the test run's data instead of pointers.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct XdpContext {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_interface: u32,
    receive_queue: u32,
    egress_interface: u32,
}
const _: () = assert!(size_of::<XdpContext>() == 24);

/// The receive queue that a test run pretends the frame came from. The interface needs XDP attached to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReceiveQueue {
    /// Index of the interface in the caller's network namespace.
    pub interface_index: u32,
    /// Queue number.
    pub queue: u32,
}

/// What a test run works on.
#[derive(Clone, Copy, Debug)]
pub struct TestRunInput<'a> {
    /// Metadata that is there already, in the bytes right before the frame; usually empty. A multiple of 4 bytes, up to 252.
    pub metadata: &'a [u8],
    /// The frame, at least an Ethernet header.
    pub frame: &'a [u8],
    /// Where it came from; `None` is queue 0 of the loopback interface.
    pub queue: Option<ReceiveQueue>,
    /// How often to run, at least 1. The runs follow each other on the same buffer, so metadata grows from run to run.
    pub repeat: u32,
}

/// What a test run did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TestRunOutcome {
    /// The program's return value: XDP_PASS and so on.
    pub verdict: u32,
    /// The metadata that the program put before the frame; empty if none.
    pub metadata: Vec<u8>,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
    /// Mean time of one run.
    pub duration: Duration,
}

/// Runs an XDP program without a network, as the kernel's `BPF_PROG_TEST_RUN` does.
///
/// Maps are the program's own: counters count, redirects look their socket up (nothing is sent to it).
///
/// # Errors
/// EINVAL for a frame shorter than an Ethernet header, and for a device-bound program.
pub fn test_run_xdp(program: impl AsFd, input: &TestRunInput<'_>) -> io::Result<TestRunOutcome> {
    let data_in = [input.metadata, input.frame].concat();
    let context_in = XdpContext {
        data: length(input.metadata),
        data_end: length(&data_in),
        ingress_interface: input.queue.map_or(0, |queue| queue.interface_index),
        receive_queue: input.queue.map_or(0, |queue| queue.queue),
        ..XdpContext::default()
    };
    let mut context_out = XdpContext::default();
    // What programs may add: up to 255 bytes of metadata before the frame; ours adds nothing behind it.
    let mut data_out = vec![0u8; data_in.len() + 256];
    let mut run = TestRun {
        program: raw(&program),
        data_in_length: length(&data_in),
        data_out_length: length(&data_out),
        data_in: data_in.as_ptr() as u64,
        data_out: data_out.as_mut_ptr() as u64,
        repeat: input.repeat,
        context_in_length: size_of::<XdpContext>() as u32,
        context_out_length: size_of::<XdpContext>() as u32,
        context_in: (&raw const context_in) as u64,
        context_out: (&raw mut context_out) as u64,
        ..TestRun::default()
    };
    // SAFETY: `run` points at `data_in`, `data_out` and the two contexts with their true lengths; all outlive the call, and
    // only `data_out` and `context_out`, borrowed mutably above, are written to.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut run) }?;
    data_out.truncate(run.data_out_length as usize);
    // The data comes back with its metadata first; the context says where the frame begins.
    let metadata_length = (context_out.data as usize).min(data_out.len());
    let frame = data_out.split_off(metadata_length);
    Ok(TestRunOutcome {
        verdict: run.verdict,
        metadata: data_out,
        frame,
        duration: Duration::from_nanos(run.duration_nanoseconds.into()),
    })
}

/// Runs a traffic control program on a packet, as if an interface had received it. Returns the program's return value.
///
/// # Errors
/// EINVAL for a frame shorter than an Ethernet header.
pub fn test_run_skb(program: impl AsFd, frame: &[u8]) -> io::Result<u32> {
    let mut run = TestRun {
        program: raw(&program),
        data_in_length: length(frame),
        data_in: frame.as_ptr() as u64,
        repeat: 1,
        ..TestRun::default()
    };
    // SAFETY: `run` points at `frame` with its true length, which outlives the call and is only read.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut run) }?;
    Ok(run.verdict)
}

/// Most frames of one batch of [`run_live_frames`] (`TEST_XDP_MAX_BATCH`).
pub const LIVE_BATCH_MAX: u32 = 256;

/// Runs an XDP program on `repeat` frames that are real: what it redirects leaves, what it passes the kernel receives, as
/// from the loopback interface. Linux 5.18 or newer.
///
/// Each frame begins as a copy of `frame`, but frames that the program dropped, or that came back from where they were
/// sent, return as they were left. Redirected frames leave at the end of each batch of `batch` frames, up to
/// [`LIVE_BATCH_MAX`], during which the CPU does nothing else. A CPU is kept busy until `repeat` frames are through.
///
/// # Errors
/// EINTR when a signal came: some frames are through. Otherwise what the kernel said.
pub fn run_live_frames(program: impl AsFd, frame: &[u8], repeat: u32, batch: u32) -> io::Result<()> {
    let mut run = TestRun {
        program: raw(&program),
        data_in_length: length(frame),
        data_in: frame.as_ptr() as u64,
        repeat,
        flags: BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size: batch,
        ..TestRun::default()
    };
    // SAFETY: `run` points at `frame` with its true length, which outlives the call and is only read.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut run) }.map(drop)
}
