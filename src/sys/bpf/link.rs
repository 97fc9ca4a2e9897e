//! Links: what attaches a program to an interface, for as long as somebody holds it.
//!
//! Owns: making, changing and breaking them. Does not own: what attaching means for the interface.
//!
//! The one idea a newcomer lacks: the kernel closes the link of a process that dies, however it dies, and with it goes the
//! program.
#![allow(unsafe_code)]

use super::{bpf, owned, raw};
use aya_obj::generated::{BPF_F_BEFORE, XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE, bpf_attach_type, bpf_cmd};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Where an attached XDP program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttachMode {
    /// In the driver, before the kernel allocates a packet: fast, and the only place for device-bound programs.
    Driver,
    /// In the kernel's generic path: slower, but works on every interface.
    Skb,
}

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

/// Attaches an XDP program to an interface of the caller's network namespace, for as long as the returned link is open.
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

/// Attaches a traffic control program to what an interface of the caller's network namespace receives, before those that
/// are there, for as long as the returned link is open. Linux 6.6 or newer.
///
/// # Errors
/// What the kernel said: EINVAL where it is too old.
pub fn create_tcx_link(program: impl AsFd, interface_index: u32) -> io::Result<OwnedFd> {
    let mut create = LinkCreate {
        program: raw(&program),
        interface_index,
        attach_type: bpf_attach_type::BPF_TCX_INGRESS as u32,
        // Of none in particular: of all.
        flags: BPF_F_BEFORE,
    };
    // SAFETY: `create` holds no addresses.
    let fd = unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut create) }?;
    Ok(owned(fd))
}

/// Puts another program of the same kind in the place of the link's, between two packets.
///
/// # Errors
/// What the kernel said: ENOLINK once the interface is gone.
pub fn update_link(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
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
pub fn detach_link(link: impl AsFd) -> io::Result<()> {
    let mut detach = LinkDetach { link: raw(&link) };
    // SAFETY: `detach` holds no addresses.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut detach) }.map(drop)
}
