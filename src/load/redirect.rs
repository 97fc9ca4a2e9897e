//! The XDP program that brings the replies of a load test to its AF_XDP sockets.
//!
//! Owns: loading and attaching it, and its map of sockets. Does not own: the rule
//! (`xdp-prog/src/load_redirect.bpf.c`), the sockets.
//!
//! The one idea a newcomer lacks: it is attached by a BPF link that we hold, so it goes when we do, however that
//! happens. While it is there, nobody else on this machine gets anything from the server's port on this interface.

use super::engine::{EngineError, Scene};
use crate::sys::bpf::{AttachMode, create_xdp_link, detach_link};
use aya::maps::{MapData, XskMap};
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use timeball_xdp_prog::load_redirect as object;

/// The attached program.
pub struct Redirect {
    link: OwnedFd,
    sockets: XskMap<MapData>,
}

impl fmt::Debug for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redirect").field("link", &self.link).finish_non_exhaustive()
    }
}

impl Redirect {
    /// Loads the program for this server and up to `queues` queues, and attaches it to the scene's interface.
    ///
    /// # Errors
    /// What was refused, and what to do about it.
    pub fn attach(scene: &Scene, queues: u32, mode: AttachMode) -> Result<Self, EngineError> {
        let mut ebpf = load(scene, queues)?;
        let program: &mut Xdp = ebpf
            .program_mut(object::PROGRAM)
            .ok_or_else(|| broken("no program"))?
            .try_into()
            .map_err(broken)?;
        program.load().map_err(|error| refused("load its XDP program", &error))?;
        let link = create_xdp_link(program.fd().map_err(broken)?, scene.ifindex, mode).map_err(|error| {
            let hint = match error.raw_os_error() {
                Some(libc::EBUSY | libc::EEXIST) => {
                    "; another XDP program is attached: is a server of this machine using the interface?"
                }
                Some(libc::EOPNOTSUPP) => "; its driver has no XDP",
                _ => "",
            };
            EngineError(format!("cannot attach to {} in {mode:?} mode: {error}{hint}", scene.interface))
        })?;
        let sockets = ebpf.take_map(object::MAP_SOCKETS).ok_or_else(|| broken("no map"))?;
        Ok(Self { link, sockets: XskMap::try_from(sockets).map_err(broken)? })
    }

    /// Redirects what arrives on this queue to that socket, which is bound to it.
    ///
    /// # Errors
    /// The map refused.
    pub fn set_socket(&mut self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), EngineError> {
        self.sockets
            .set(queue, socket.as_raw_fd(), 0)
            .map_err(|error| EngineError(format!("cannot redirect queue {queue} to its socket: {error}")))
    }
}

impl Drop for Redirect {
    fn drop(&mut self) {
        // The link is closed next, which detaches too; only perhaps a moment later.
        let _ = detach_link(&self.link);
    }
}

/// The object with its globals set and its map made; the program is not loaded yet.
fn load(scene: &Scene, queues: u32) -> Result<Ebpf, EngineError> {
    let mut target = [0; 16];
    let version: u8 = match scene.target {
        IpAddr::V4(address) => {
            target[..4].copy_from_slice(&address.octets());
            4
        }
        IpAddr::V6(address) => {
            target = address.octets();
            6
        }
    };
    EbpfLoader::new()
        .btf(None)
        .override_global(object::GLOBAL_TARGET, &target, true)
        .override_global(object::GLOBAL_TARGET_VERSION, &version, true)
        .override_global(object::GLOBAL_TARGET_PORT, &scene.port, true)
        .map_max_entries(object::MAP_SOCKETS, queues)
        .load(object::OBJECT)
        .map_err(|error| refused("make its map of sockets", &error))
}

fn broken(error: impl fmt::Display) -> EngineError {
    EngineError(format!("the built-in XDP object is broken: {error}"))
}

/// aya's errors leave the cause to `source()`.
fn refused(what: &str, error: &(dyn std::error::Error + 'static)) -> EngineError {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let code = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    let hint = if code == Some(libc::EPERM) { "; be root, or have CAP_BPF and CAP_NET_ADMIN" } else { "" };
    EngineError(format!("the load generator cannot {what}: {cause}{hint}"))
}
