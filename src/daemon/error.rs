//! Why the server does not serve, or no longer.

use super::control_socket::ControlSocketError;
use super::keys::KeysError;
use crate::auth::KeyId;
use crate::datapath::udp::OpenError;
use crate::serve::access::AccessError;
use std::io;
use std::net::SocketAddr;
use thiserror::Error;

/// Why the server does not, or no longer, serve.
#[derive(Debug, Error)]
pub enum ServeError {
    /// An interface that is configured does not exist.
    #[error("interface {name} does not exist; there are: {existing}")]
    NoSuchInterface {
        /// What was asked for.
        name: String,
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
    #[error("source {address}: key {key} is not in the key file")]
    NoSuchKey {
        /// The key.
        key: KeyId,
        /// The source.
        address: String,
    },
    /// Another daemon is there.
    #[error(transparent)]
    ControlSocket(#[from] ControlSocketError),
    /// A socket is needed and cannot be had.
    #[error(transparent)]
    Socket(#[from] OpenError),
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
