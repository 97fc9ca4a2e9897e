//! One generator at a time on an interface.
//!
//! Owns: the claim to an interface. Does not own: the programs that are attached to it.
//!
//! The one idea a newcomer lacks: a reply does not say which generator asked, so whichever judge stands first takes those of
//! the other, who blames the server. The kernel lets only one XDP program in, but any number at the traffic control hook.

use super::engine::{EngineError, Scene};
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The claim; it ends when this is dropped, or its process does, however that happens.
#[derive(Debug)]
pub(super) struct Alone {
    /// Its name is one of the network namespace's, as the interface is. Nothing is ever sent to it.
    _socket: UnixDatagram,
}

impl Alone {
    /// Claims the scene's interface, of the calling thread's network namespace.
    ///
    /// # Errors
    /// Another generator is there.
    pub(super) fn at(scene: &Scene) -> Result<Self, EngineError> {
        let name = format!("timeball-load-{}", scene.ifindex);
        let bound = SocketAddr::from_abstract_name(name).and_then(|name| UnixDatagram::bind_addr(&name));
        bound.map(|socket| Self { _socket: socket }).map_err(|error| refused(scene, &error))
    }
}

fn refused(scene: &Scene, error: &io::Error) -> EngineError {
    let interface = &scene.interface;
    EngineError(match error.kind() {
        ErrorKind::AddrInUse => {
            format!(
                "another timeball load is at work on {interface}, and either would take the other's replies"
            )
        }
        _ => format!("cannot claim {interface}: {error}"),
    })
}
