//! What may go wrong with the XDP program, in the words of the person who has to fix it.
//!
//! Owns: [`SteeringError`] and the likely cause behind each error code. Does not own: what is tried next.
//!
//! The one idea a newcomer lacks: bpf(2) answers with very few error codes, and each means something else per command. The
//! cause is therefore guessed here, where the command is known, and said to be likely, not certain.

use super::{AttachMode, Variant};
use aya::EbpfError;
use aya::maps::MapError;
use std::error::Error;
use std::{fmt, io};
use timeball_xdp_prog as object;

/// Why the XDP program cannot do its work, in one line that names the likely cause.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// The built-in object is not what this file expects: a bug.
    #[error("the built-in XDP object is broken: {0}")]
    Object(String),
    /// The kernel does not make the maps.
    #[error("cannot create the maps of the XDP program: {error}{cause}")]
    CreateMaps {
        /// What the kernel said.
        error: io::Error,
        /// The likely cause, ready to be appended.
        cause: &'static str,
    },
    /// The kernel has no function that asks a NIC for its receive stamp.
    #[error("no NIC receive stamps: the kernel's BTF has no {name} ({0}); Linux 6.3 or newer built with CONFIG_DEBUG_INFO_BTF has it", name = object::NIC_STAMP_FUNCTION)]
    NoNicStamps(String),
    /// The driver has none.
    #[error("no NIC receive stamps: the driver gives XDP none")]
    NoDriverStamps,
    /// The verifier moved the device-bound program, and the kernel's own list of them does not know: an interface that
    /// leaves would have it read freed memory.
    #[error(
        "the device-bound XDP program outgrew its memory in the kernel: {loaded} bytes of instructions became {translated}, which this kernel may not survive when the interface leaves"
    )]
    Moved {
        /// Bytes of instructions that were loaded.
        loaded: usize,
        /// Bytes that the verifier made of them.
        translated: usize,
    },
    /// The kernel refused the program.
    #[error("the kernel refused the {variant} XDP program: {error}{cause}{verifier}")]
    Load {
        /// Which program.
        variant: Variant,
        /// What the kernel said.
        error: io::Error,
        /// The likely cause, ready to be appended.
        cause: &'static str,
        /// The last lines of the verifier's log on one line, ready to be appended; empty if it said nothing.
        verifier: String,
    },
    /// The program cannot be attached in this mode.
    #[error(
        "cannot attach the {variant} XDP program to interface {interface_index} in {mode:?} mode: {error}{cause}"
    )]
    Attach {
        /// Index of the interface.
        interface_index: u32,
        /// The mode that was tried.
        mode: AttachMode,
        /// Which program.
        variant: Variant,
        /// What the kernel said.
        error: io::Error,
        /// The likely cause, ready to be appended.
        cause: &'static str,
    },
    /// A map does not take a change, or does not give its value.
    #[error("XDP map {map}: {error}")]
    Map {
        /// The map's name.
        map: &'static str,
        /// What went wrong.
        error: String,
    },
    /// More entries than a map holds. Prefixes: nothing was changed. Addresses: as many as fit are redirected, and the
    /// sockets serve the other `count - limit`.
    #[error("{count} {what} are more than the {limit} that the XDP program holds")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many fit.
        limit: usize,
    },
}

const NO_PRIVILEGE: &str =
    "; needs CAP_BPF and CAP_NET_ADMIN (be root, or give the service those capabilities)";

impl SteeringError {
    pub(super) fn object(error: impl fmt::Display) -> Self {
        Self::Object(error.to_string())
    }

    pub(super) fn map(map: &'static str, error: MapError) -> Self {
        // aya's own text for a failed system call leaves the cause to `source()`.
        let text = os_error(&error).map_or_else(|| error.to_string(), io::Error::to_string);
        Self::Map { map, error: text }
    }

    pub(super) fn from_maps(error: EbpfError) -> Self {
        let Some(code) = os_error(&error).and_then(io::Error::raw_os_error) else {
            return Self::object(error);
        };
        let cause = match code {
            libc::EPERM => NO_PRIVILEGE,
            libc::EINVAL => {
                "; the kernel is too old (Linux 6.1 or newer is needed) or the number of queues is 0"
            }
            libc::ENOMEM => "; the kernel, or this service's memory cgroup, has no room for them",
            libc::ENOSYS => "; this kernel has no BPF",
            _ => "",
        };
        Self::CreateMaps { error: io::Error::from_raw_os_error(code), cause }
    }

    pub(super) fn refused(variant: Variant, error: io::Error, log: &str) -> Self {
        let cause = if log.contains("#208") {
            // The verifier names a helper it does not know by its number: bpf_ktime_get_tai_ns.
            "; the kernel is older than 6.1 and has no bpf_ktime_get_tai_ns"
        } else {
            match (error.raw_os_error(), variant) {
                (Some(libc::EPERM), _) => NO_PRIVILEGE,
                (Some(libc::EINVAL), Variant::DeviceBound) => {
                    "; the interface is not there, its driver has no receive stamps for XDP, or the kernel is older than 6.3"
                }
                (Some(libc::EOPNOTSUPP), Variant::DeviceBound) => {
                    "; the driver has no receive stamps for XDP"
                }
                _ => "",
            }
        };
        let verifier = match verifier_complaint(log) {
            complaint if complaint.is_empty() => complaint,
            complaint => format!("; the verifier said: {complaint}"),
        };
        Self::Load { variant, error, cause, verifier }
    }
}

/// The end of the verifier's log, where its complaint is, on one line.
fn verifier_complaint(log: &str) -> String {
    const STATISTICS: [&str; 3] = ["verification time", "stack depth", "processed"];
    const LINES: usize = 3;
    let says_something =
        |line: &&str| !line.trim().is_empty() && !STATISTICS.iter().any(|word| line.starts_with(word));
    let mut last: Vec<&str> = log.lines().rev().filter(says_something).take(LINES).collect();
    last.reverse();
    last.join(" | ")
}

pub(super) fn attach_cause(error: &io::Error, mode: AttachMode, variant: Variant) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => NO_PRIVILEGE,
        Some(libc::EBUSY | libc::EEXIST) => "; the interface already has an XDP program (`ip link` shows it)",
        Some(libc::ENODEV) => "; no such interface here (interfaces belong to a network namespace)",
        Some(libc::EOPNOTSUPP) => "; the driver has no XDP in this mode",
        Some(libc::ENOSPC) => "; the driver has too few queues for XDP",
        Some(libc::EINVAL) if variant == Variant::DeviceBound && mode == AttachMode::Skb => {
            "; a device-bound program runs in driver mode only"
        }
        Some(libc::EINVAL) if variant == Variant::DeviceBound => {
            "; no such interface here, or it is not the one that the program was loaded for, or its driver cannot run XDP with this MTU or these offloads"
        }
        Some(libc::EINVAL) => {
            "; no such interface here, or its driver cannot run XDP with this MTU or these offloads (try without LRO)"
        }
        Some(libc::ERANGE) => "; the driver cannot run XDP with this MTU",
        _ => "",
    }
}

/// The system call's error at the bottom of one of aya's.
pub(super) fn os_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut error = Some(error);
    while let Some(this) = error {
        if let Some(found) = this.downcast_ref() {
            return Some(found);
        }
        error = this.source();
    }
    None
}
