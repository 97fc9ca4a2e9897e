//! The commands, as people and programs see them.
//!
//! Owns: flags, exit codes, tables and JSON. Does not own: what is done; each command calls the layer that does.
//!
//! The one idea a newcomer lacks: results go to standard output, everything else to standard error, so that
//! `--json` can be piped. Exit codes: 0 fine, 1 failed, 2 the user's input is wrong.

pub mod args;
mod check;
#[cfg(feature = "load")]
mod load;
mod log;
mod query;
mod show;
mod sources;
mod table;

use crate::config::{self, Config, DEFAULT_PATH, LogLevel, Overrides, Problems};
use crate::daemon;
use args::{Arguments, Command};
use clap::Parser;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use tracing::Level;

const FAILED: u8 = 1;
const WRONG_INPUT: u8 = 2;

/// Runs the command that the process was started with.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let socket = arguments.socket.as_deref();
    let result = match &arguments.command {
        Command::Serve(serve) => {
            let (file, overrides) = (serve.config.as_deref(), serve.overrides(socket));
            configuration(file, &overrides).and_then(|config| {
                start_log(config.log);
                let reread = || read(file, &overrides);
                daemon::serve(&config, &reread).map_err(|error| Failure::new(error.exit_code(), error))
            })
        }
        Command::Check(check) => configuration(check.config.as_deref(), &check.overrides(socket))
            .and_then(|config| check::check(&config, check)),
        Command::Query(query) => query::query(query),
        Command::Status(status) => show::status(&daemon_socket(socket), status.json),
        Command::Sources(sources) => show::sources(&daemon_socket(socket), sources.json),
        Command::Clients(clients) => show::clients(&daemon_socket(socket), clients.top, clients.json),
        #[cfg(feature = "load")]
        Command::Load(arguments) => load::load(arguments),
        #[cfg(feature = "load")]
        Command::Report(arguments) => load::report(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "timeball: error: {}", failure.text);
            ExitCode::from(failure.exit_code)
        }
    }
}

/// Why a command failed, ready to be shown.
#[derive(Debug)]
struct Failure {
    exit_code: u8,
    text: String,
}

impl Failure {
    fn new(exit_code: u8, text: impl Display) -> Self {
        Self { exit_code, text: text.to_string() }
    }

    /// The machine or the network would not.
    fn failed(text: impl Display) -> Self {
        Self::new(FAILED, text)
    }
}

impl From<io::Error> for Failure {
    /// Standard output could not be written.
    fn from(error: io::Error) -> Self {
        Self::failed(format_args!("output: {error}"))
    }
}

fn daemon_socket(flag: Option<&str>) -> std::path::PathBuf {
    config::socket_to_ask(flag, Path::new(DEFAULT_PATH))
}

fn configuration(file: Option<&Path>, overrides: &Overrides) -> Result<Config, Failure> {
    read(file, overrides).map_err(|problems| Failure::new(WRONG_INPUT, problems))
}

fn read(file: Option<&Path>, overrides: &Overrides) -> Result<Config, Problems> {
    let file = config::file_to_load(file, overrides, Path::new(DEFAULT_PATH));
    Config::load(file.as_deref(), overrides)
}

/// Log lines go to standard error, with a time of their own only where nobody (the journal) adds one.
fn start_log(level: LogLevel) {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
    };
    let to_terminal = io::IsTerminal::is_terminal(&io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(to_terminal)
        .with_writer(|| log::Log);
    if std::env::var_os("JOURNAL_STREAM").is_some() { builder.without_time().init() } else { builder.init() }
}
