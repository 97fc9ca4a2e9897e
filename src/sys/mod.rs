//! Every system call of the time path, one safe function each, all through `libc`.
//!
//! Owns: clocks, timestamping sockets, the AF_XDP and BPF ABIs, netlink and ethtool requests, memory maps.
//! Does not own: any decision. A function here says what the kernel said, as [`std::io::Error`].
//!
//! The one idea a newcomer lacks: LD_PRELOAD time simulators replace libc's symbols, so nothing in the time path
//! may bypass them with raw system calls of its own (`syscall(2)` only where libc has no wrapper: bpf).
#![allow(unsafe_code)]

pub mod bpf;
pub mod clock;
pub mod ethtool;
pub mod memory;
pub mod namespace;
pub mod netlink;
pub mod process;
#[cfg(test)]
pub(crate) mod refuse;
pub mod scheduling;
pub mod signal;
pub mod socket;
pub mod xdp_socket;
