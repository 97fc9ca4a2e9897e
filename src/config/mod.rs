//! The configuration: a TOML file and command line flags in, one checked [`Config`] out.
//!
//! Owns: keys, ranges, defaults and the messages about them. Does not own: the machine. Whether an interface or a
//! CPU exists is found out by who uses it; the same text is right or wrong everywhere.
//!
//! The way: text -> `raw` (a tree that remembers lines) <- flags ([`Overrides`]) -> `check` -> [`Config`]. Every
//! [`Problem`] is one line that names file, line, key, value and what would be right, and all of them are reported
//! together. `scripts/timeball.example.toml` shows every key with its default.
//!
//! The one idea a newcomer lacks: files are optional. Flags alone make a configuration, and with neither `--config`
//! nor `--interface` the file at [`DEFAULT_PATH`] is used if there is one. Who names an interface by hand wants
//! just that, and not what a package once put there.

mod check;
mod check_sources;
mod clock_control;
mod duration;
mod instance;
mod model;
mod overrides;
mod problem;
mod raw;
mod section;
mod sources;
mod tables;
mod values;

pub use crate::auth::TrustedKeys;
pub use clock_control::{ClockControl, FirstStepPolicy, Selection};
pub use duration::parse as parse_duration;
pub use instance::{DEFAULT as DEFAULT_INSTANCE, INSTANCES_MAX, Instance};
pub use model::{
    Access, Clients, Config, Datapath, Interface, Keys, LogLevel, Metrics, Policy, RateLimit, Reference,
    Source, XdpMode,
};
pub use overrides::{Overrides, ReferenceFlag};
pub use problem::{Hint, PROBLEMS_SHOWN_MAX, Place, Problem, Problems, Setting};
pub use sources::{
    Broadcast, BroadcastClient, ManycastClient, ManycastServer, PassivePeersPolicy, Peer, Polling, Pool,
    Server, Sources, Worth,
};
pub use values::{ReferenceId, Vlan, Workers};

use raw::Raw;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::string::FromUtf8Error;

/// The file that is read if the command line names none.
pub const DEFAULT_PATH: &str = "/etc/timeball/timeball.toml";

/// Where the daemon listens for `timeball status` unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/timeball/timeball.sock";

/// Room for some half a million prefixes; what is larger was named by mistake.
pub const FILE_BYTES_MAX: u64 = 16 << 20;

impl Config {
    /// Reads and checks `file` with the flags laid over it; without a file, the flags alone.
    ///
    /// # Errors
    /// Everything that is wrong with either.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Self, Problems> {
        match file {
            Some(path) => Self::parse(path, &read(path)?, overrides),
            None => Self::from_raw(Raw::default(), overrides),
        }
    }

    /// As [`Config::load`], from text; `path` is for the messages.
    ///
    /// # Errors
    /// Everything that is wrong with either.
    pub fn parse(path: &Path, text: &str, overrides: &Overrides) -> Result<Self, Problems> {
        Self::from_raw(Raw::parse(path, text)?, overrides)
    }

    fn from_raw(mut raw: Raw, overrides: &Overrides) -> Result<Self, Problems> {
        overrides.apply(&mut raw);
        let mut config = check::check(raw)?;
        overrides.leave_out_interfaces(&mut config);
        Ok(config)
    }
}

/// The file that `serve` and `check` read: the one given, else `default` ([`DEFAULT_PATH`]) if it is there and the
/// command line names no interface, else none.
#[must_use]
pub fn file_to_load(given: Option<&Path>, overrides: &Overrides, default: &Path) -> Option<PathBuf> {
    let use_default = || overrides.interfaces.is_empty() && default.exists();
    given.or_else(|| use_default().then_some(default)).map(Path::to_owned)
}

/// The socket to ask a running daemon at: the flag's, else that of the file at `default` ([`DEFAULT_PATH`]) if it is
/// right, else [`DEFAULT_SOCKET`]. Whoever only asks need not be able to read that file.
#[must_use]
pub fn socket_to_ask(flag: Option<&str>, default: &Path) -> PathBuf {
    let from_file = || Config::load(Some(default), &Overrides::default()).map(|config| config.socket);
    match flag {
        Some(socket) => socket.into(),
        None => from_file().unwrap_or_else(|_| DEFAULT_SOCKET.into()),
    }
}

fn read(path: &Path) -> Result<String, Problem> {
    let unreadable = |cause| Problem::Unreadable { path: path.to_owned(), cause };
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Problem::TooLarge { path: path.to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| not_utf8(path, &error))
}

fn not_utf8(path: &Path, error: &FromUtf8Error) -> Problem {
    let (right, _) = error.as_bytes().split_at(error.utf8_error().valid_up_to());
    let line = 1 + right.iter().filter(|&&byte| byte == b'\n').count();
    let start = right.rsplit(|&byte| byte == b'\n').next().unwrap_or_default();
    Problem::Syntax {
        place: Place::Line { path: path.into(), line },
        text: problem::shown(&String::from_utf8_lossy(start)),
        message: "what follows is not UTF-8".to_owned(),
    }
}
