//! Why the server does not serve, or no longer.

use super::control_socket::ControlSocketError;
use super::keys::KeysError;
use crate::auth::KeyId;
use crate::datapath::udp::OpenError;
use crate::serve::access::AccessError;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use thiserror::Error;

/// Why the server does not, or no longer, serve.
#[derive(Debug, Error)]
pub enum ServeError {
    /// An interface that is configured does not exist.
    #[error("interface {name} does not exist{suffix}; there are: {existing}")]
    NoSuchInterface {
        /// What was asked for.
        name: String,
        /// In which instance, where there are several.
        suffix: String,
        /// What there is.
        existing: String,
    },
    /// A network namespace that is configured does not exist.
    #[error("{written}: must be a network namespace that exists; `ip netns` lists: {existing}")]
    NoSuchNamespace {
        /// Where it is configured, and how.
        written: String,
        /// What there is.
        existing: String,
    },
    /// What is configured as one is none.
    #[error("{written}: must be a network namespace, and this file is none")]
    NotANamespace {
        /// Where it is configured, and how.
        written: String,
    },
    /// It may not be entered.
    #[error("{written}: entering a network namespace needs CAP_SYS_ADMIN or root")]
    NamespaceForbidden {
        /// Where it is configured, and how.
        written: String,
    },
    /// It cannot be entered.
    #[error("{written}: the network namespace cannot be entered: {error}")]
    Namespace {
        /// Where it is configured, and how.
        written: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// Two instances have one network.
    #[error(
        "instances {other} and {instance} are in the same network namespace: one would answer for the other"
    )]
    SamePlace {
        /// The second.
        instance: String,
        /// The first.
        other: String,
    },
    /// A VRF that is configured does not exist.
    #[error("{written}: must be a VRF device that exists; there are: {existing}")]
    NoSuchVrf {
        /// Where it is configured, and how.
        written: String,
        /// What there is.
        existing: String,
    },
    /// A CPU that is configured does not exist.
    #[error("cores: CPU {cpu} does not exist or may not be used; there are: {existing}")]
    NoSuchCpu {
        /// What was asked for.
        cpu: usize,
        /// What there is.
        existing: String,
    },
    /// A queue that is configured does not exist.
    #[error("interface {name}: queue {queue} is configured, but there are only {there}")]
    NoSuchQueue {
        /// The interface.
        name: String,
        /// What was asked for.
        queue: u16,
        /// How many there are, from 0.
        there: u32,
    },
    /// The access list contradicts itself.
    #[error("access: {0}")]
    Access(#[from] AccessError),
    /// The keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// A source's key is not in the key file.
    #[error("{table}.key = {key}, for {address}: must be the id of a key in {}, which has {there}", file.display())]
    NoSuchKey {
        /// The key.
        key: KeyId,
        /// The source's table.
        table: &'static str,
        /// The source.
        address: String,
        /// The key file.
        file: PathBuf,
        /// What is in it.
        there: String,
    },
    /// Another daemon is there.
    #[error(transparent)]
    ControlSocket(#[from] ControlSocketError),
    /// A socket is needed and cannot be had.
    #[error("{error}{suffix}")]
    Socket {
        /// Why.
        error: OpenError,
        /// In which instance, where there are several.
        suffix: String,
    },
    /// `datapath = "af-xdp"`, and it cannot be.
    #[error("{0}")]
    NoAfXdp(String),
    /// The system would not.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// The port for metrics cannot be had.
    #[error("metrics on {address}: {error}")]
    Metrics {
        /// What is configured.
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// A worker is gone.
    #[error("a worker ended; see the lines above")]
    WorkerLost,
}

impl ServeError {
    /// 2 where the user's input is wrong, 1 where the machine would not.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NoSuchInterface { .. }
            | Self::NoSuchQueue { .. }
            | Self::NoSuchCpu { .. }
            | Self::NoSuchNamespace { .. }
            | Self::NotANamespace { .. }
            | Self::SamePlace { .. }
            | Self::NoSuchVrf { .. }
            | Self::Keys(_)
            | Self::NoSuchKey { .. }
            | Self::Access(_) => 2,
            _ => 1,
        }
    }
}

pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |error| ServeError::System { what, error }
}
