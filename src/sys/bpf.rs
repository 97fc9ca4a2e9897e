//! The `bpf(2)` commands that aya does not offer, or hides the cause of failure of.
//!
//! Owns: loading a device-bound program, asking what became of it, making, changing and breaking the link that attaches an
//! XDP program, and the kernel's test run, which can also send.
//! Does not own: maps and the plain program (aya), nor what the error codes mean to a user (`datapath::steering`).
//!
//! The one idea a newcomer lacks: every command takes a prefix of the kernel's `union bpf_attr`, and the kernel reads
//! missing bytes as zero. So each command has its own `repr(C)` struct here, only as long as we need it.
#![allow(unsafe_code)]

use aya_obj::generated::{
    BPF_F_TEST_XDP_LIVE_FRAMES, BPF_F_XDP_DEV_BOUND_ONLY, BPF_F_XDP_HAS_FRAGS, XDP_FLAGS_DRV_MODE,
    XDP_FLAGS_SKB_MODE, bpf_attach_type, bpf_cmd, bpf_insn, bpf_prog_type,
};
use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Room for the verifier's log: the last lines are what matters, and a refused program of this size fits.
const VERIFIER_LOG_LENGTH: usize = 1 << 20;

/// Where an attached XDP program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttachMode {
    /// In the driver, before the kernel allocates a packet: fast, and the only place for device-bound programs.
    Driver,
    /// In the kernel's generic path: slower, but works on every interface.
    Skb,
}

/// `BPF_PROG_LOAD`'s part of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface_index: u32,
    expected_attach_type: u32,
}
const _: () = assert!(size_of::<ProgramLoad>() == 72);

/// `BPF_OBJ_GET_INFO_BY_FD`'s part of `union bpf_attr`.
#[repr(C)]
struct InfoByFd {
    fd: u32,
    info_length: u32,
    info: u64,
}

/// The beginning of the kernel's `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    program_type: u32,
    id: u32,
    tag: [u8; 8],
    jited_length: u32,
    translated_length: u32,
}
const _: () = assert!(size_of::<ProgramInfo>() == 24);

/// `BPF_LINK_CREATE`'s part of `union bpf_attr`.
#[repr(C)]
struct LinkCreate {
    program: u32,
    interface_index: u32,
    attach_type: u32,
    flags: u32,
}

/// `BPF_LINK_UPDATE`'s part of `union bpf_attr`.
#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// `BPF_LINK_DETACH`'s part of `union bpf_attr`.
#[repr(C)]
struct LinkDetach {
    link: u32,
}

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

/// A program that the kernel refused: why, and what its verifier said (empty if it did not get that far).
#[derive(Debug)]
pub struct LoadRefused {
    /// The system call's error.
    pub error: io::Error,
    /// The verifier's log.
    pub log: String,
}

/// Loads an XDP program that is bound to one network interface, so that it may call the driver's metadata functions.
///
/// `name` is what `bpftool prog` shows, cut to 15 bytes. `interface_index` is looked up in the caller's network
/// namespace. The program handles frames that span buffers (`xdp.frags`).
///
/// # Errors
/// What the kernel said, with the verifier's log.
pub fn load_device_bound_xdp(
    name: &str,
    instructions: &[bpf_insn],
    license: &CStr,
    interface_index: u32,
) -> Result<OwnedFd, LoadRefused> {
    let mut load = ProgramLoad {
        program_type: bpf_prog_type::BPF_PROG_TYPE_XDP as u32,
        instruction_count: length(instructions),
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        flags: BPF_F_XDP_DEV_BOUND_ONLY | BPF_F_XDP_HAS_FRAGS,
        interface_index,
        expected_attach_type: bpf_attach_type::BPF_XDP as u32,
        ..ProgramLoad::default()
    };
    // The last byte stays zero: the kernel wants a terminated string.
    for (to, from) in load.name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: `load` points at `instructions` and `license`, both of which outlive the call and are only read.
    let result = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut load) };
    let error = match result {
        Ok(fd) => return Ok(owned(fd)),
        Err(error) => error,
    };

    // Once more for the log alone: asking for it the first time would make a log that is too long an error of its own.
    let mut log = vec![0u8; VERIFIER_LOG_LENGTH];
    load.log_level = 1;
    load.log_size = length(&log);
    load.log = log.as_mut_ptr() as u64;
    // SAFETY: as above, and `load` points at `log` with its true length, which outlives the call too.
    if let Ok(fd) = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut load) } {
        return Ok(owned(fd));
    }
    let written = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    Err(LoadRefused { error, log: String::from_utf8_lossy(&log[..written]).into_owned() })
}

/// How many bytes of instructions the verifier made of a loaded program.
///
/// # Errors
/// What the kernel said.
pub fn translated_length(program: impl AsFd) -> io::Result<usize> {
    let mut info = ProgramInfo::default();
    let mut query = InfoByFd {
        fd: raw(&program),
        info_length: size_of::<ProgramInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: `query` points at `info` with its true length, which outlives the call and is plain integers.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut query) }?;
    Ok(info.translated_length as usize)
}

/// Attaches an XDP program to an interface of the caller's network namespace, for as long as the returned link is open.
///
/// The kernel closes the link of a process that dies, however it dies, and with it goes the program.
///
/// # Errors
/// What the kernel said: EBUSY or EEXIST where a program is attached already, EOPNOTSUPP where the driver has no XDP,
/// ERANGE or EINVAL where it cannot with this MTU, and so on by driver.
pub fn create_xdp_link(program: impl AsFd, interface_index: u32, mode: AttachMode) -> io::Result<OwnedFd> {
    let mut create = LinkCreate {
        program: raw(&program),
        interface_index,
        attach_type: bpf_attach_type::BPF_XDP as u32,
        flags: match mode {
            AttachMode::Driver => XDP_FLAGS_DRV_MODE,
            AttachMode::Skb => XDP_FLAGS_SKB_MODE,
        },
    };
    // SAFETY: `create` holds no addresses.
    let fd = unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut create) }?;
    Ok(owned(fd))
}

/// Puts another XDP program in the place of the link's, between two frames.
///
/// # Errors
/// What the kernel said: ENOLINK once the interface is gone.
pub fn update_xdp_link(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let mut update = LinkUpdate { link: raw(&link), program: raw(&program), flags: 0, old_program: 0 };
    // SAFETY: `update` holds no addresses.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut update) }.map(drop)
}

/// Takes the program of a link off its interface, before this returns.
///
/// Closing the link does the same, but only once nobody else holds it, and any child process does between fork and exec.
///
/// # Errors
/// What the kernel said.
pub fn detach_xdp_link(link: impl AsFd) -> io::Result<()> {
    let mut detach = LinkDetach { link: raw(&link) };
    // SAFETY: `detach` holds no addresses.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut detach) }.map(drop)
}

/// `MEMBARRIER_CMD_GLOBAL` of linux/membarrier.h.
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// Returns when every run of a BPF program that was under way at the call has ended: what this thread changed before is seen
/// by all later runs, and nobody still works on what it read before that. Takes 10 to 30 ms.
///
/// membarrier(2) promises less, but that it waits for one RCU grace period is how it keeps its promise since Linux 4.3, and
/// programs run in RCU read sections. (With a single CPU the kernel has nothing to wait for: a packet's program runs to its
/// end before any thread goes on.)
///
/// # Errors
/// EINVAL with `nohz_full`, ENOSYS or EPERM where the system call is not there or not allowed.
pub fn wait_for_running_programs() -> io::Result<()> {
    // SAFETY: takes three integers and touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

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

/// One `bpf(2)` call. libc has no wrapper for it.
///
/// # Safety
/// `attributes` is the command's prefix of `union bpf_attr`, and every address in it is valid for its length.
unsafe fn bpf<T>(command: bpf_cmd, attributes: &mut T) -> io::Result<i32> {
    let attributes: *mut T = attributes;
    // SAFETY: `attributes` is valid for reads and writes of its size, which is passed along; the rest is the caller's word.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, attributes, size_of::<T>()) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes ownership of the descriptor that a command returned.
fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The descriptor's number as the kernel's structs have it: never negative while the owner lives.
fn raw(fd: &impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().cast_unsigned()
}

/// A slice's length as the kernel's structs have it. All slices here are programs, frames and logs, far below 4 GB.
fn length<T>(slice: &[T]) -> u32 {
    u32::try_from(slice.len()).unwrap_or(u32::MAX)
}
