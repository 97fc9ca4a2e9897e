//! The `bpf(2)` commands that aya does not offer, or hides the cause of failure of.
//!
//! Owns: loading a device-bound program, asking what became of it, waiting for running ones; the links that attach
//! programs (`link`), and the kernel's test run, which can also send (`run`).
//! Does not own: maps and the plain program (aya), nor what the error codes mean to a user (`datapath::steering`).
//!
//! The one idea a newcomer lacks: every command takes a prefix of the kernel's `union bpf_attr`, and the kernel reads
//! missing bytes as zero. So each command has its own `repr(C)` struct here, only as long as we need it.
#![allow(unsafe_code)]

mod link;
mod run;

pub use self::link::{AttachMode, create_tcx_link, create_xdp_link, detach_link, update_link};
pub use self::run::{
    LIVE_BATCH_MAX, ReceiveQueue, TestRunInput, TestRunOutcome, run_live_frames, test_run_skb, test_run_xdp,
};

use aya_obj::generated::{
    BPF_F_XDP_DEV_BOUND_ONLY, BPF_F_XDP_HAS_FRAGS, bpf_attach_type, bpf_cmd, bpf_insn, bpf_prog_type,
};
use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Room for the verifier's log: the last lines are what matters, and a refused program of this size fits.
const VERIFIER_LOG_LENGTH: usize = 1 << 20;

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
