//! `timeball load` and `timeball report`.
//!
//! Owns: the order in which things are checked, done and shown, and the files. Does not own: the load test (`load`).
//!
//! The one idea a newcomer lacks: everything that can be wrong is found before the first request leaves, files that
//! cannot be written included; an hour's measurement is not lost to a typing mistake.

pub(super) mod args;
mod progress;
mod show;

use super::{Failure, WRONG_INPUT};
use crate::load::engine::EngineError;
use crate::load::plan::Options;
use crate::load::record::{FORMAT, Run};
use crate::load::resolve::{self, NextHop};
use crate::load::run::{machine, rfc3339, run};
use crate::load::{choose, hdr_log, page};
use crate::sys::process::{self, Capability};
use args::{LoadArguments, Mode, ReportArguments};
use progress::Watch;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What every engine needs: to attach its XDP program, open AF_XDP sockets, load programs.
const NEEDED: [Capability; 3] = [Capability::NetAdmin, Capability::NetRaw, Capability::Bpf];

fn wrong_input(error: impl std::fmt::Display) -> Failure {
    Failure::new(WRONG_INPUT, error)
}

pub(super) fn load(arguments: &LoadArguments) -> Result<(), Failure> {
    if arguments.mode == Mode::Interleaved {
        return Err(wrong_input(
            "--mode interleaved: must be basic, as the server has no interleaved mode yet",
        ));
    }
    let options = arguments.options();
    options.check().map_err(wrong_input)?;
    let mut runs = arguments.compare.iter().map(|path| read_run(path)).collect::<Result<Vec<_>, _>>()?;
    let hdr = arguments.hdr.as_deref().map(|path| Output::new("--hdr", path)).transpose()?;
    let report = arguments.report.as_deref().map(|path| Output::new("--report", path)).transpose()?;
    let missing = process::missing_capabilities(&NEEDED).map_err(Failure::failed)?;
    if !missing.is_empty() {
        let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
        return Err(Failure::failed(format_args!("needs root, or {}", missing.join(", "))));
    }
    let next_hop = resolve::resolve(&options.interface, options.target.ip())
        .map_err(|error| if error.is_wrong_input() { wrong_input(error) } else { Failure::failed(error) })?;
    let started = SystemTime::now();
    let (run, error) = measure(arguments, &options, &next_hop, started)?;
    let warnings = show::warnings(&run);
    if let Some(hdr) = hdr {
        hdr.write(|file| hdr_log::write(file, &run, started))?;
    }
    let mut output = io::stdout();
    if arguments.json {
        writeln!(output, "{}", serde_json::to_string_pretty(&run).map_err(Failure::failed)?)?;
    } else {
        write!(output, "{}", show::text(&run))?;
    }
    output.flush()?;
    for warning in warnings {
        let _ = writeln!(io::stderr(), "timeball: warning: {warning}");
    }
    let hint = show::hint(&run);
    if let Some(report) = report {
        runs.push(run);
        report.write(|file| file.write_all(page::render(&runs).as_bytes()))?;
    }
    match error.map(|error| error.to_string()).or(hint) {
        Some(failure) => Err(Failure::failed(failure)),
        None => Ok(()),
    }
}

/// Does the run. Where the engine fails after some steps, these are returned with the error.
fn measure(
    arguments: &LoadArguments,
    options: &Options,
    next_hop: &NextHop,
    started: SystemTime,
) -> Result<(Run, Option<EngineError>), Failure> {
    let scene = options.scene(next_hop).map_err(wrong_input)?;
    let (engine, engine_reason) =
        choose::choose(arguments.engine.kind(), &options.interface, next_hop.ifindex);
    let _ = writeln!(io::stderr(), "timeball: engine {}: {engine_reason}", engine.name());
    let [random] = process::random_words().map_err(Failure::failed)?;
    let plans = options.steps(random as u32);
    // The engine's threads, if it has any, inherit the signals' mask.
    let mut watch = Watch::new(&plans).map_err(Failure::failed)?;
    let mut steps = Vec::new();
    let outcome = engine
        .open(&scene)
        .and_then(|mut engine| run(&mut *engine, &plans, &mut steps, &mut |step, now| watch.see(step, now)));
    watch.end();
    let error = outcome.err();
    if let (Some(error), true) = (&error, steps.is_empty()) {
        return Err(Failure::failed(format_args!("engine {}: {error}", engine.name())));
    }
    let record = Run {
        format: FORMAT,
        label: arguments.label.clone().unwrap_or_else(|| options.target.ip().to_string()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: rfc3339(started),
        target: options.target.to_string(),
        interface: options.interface.clone(),
        mode: "basic".to_owned(),
        clients: options.clients,
        sources: options.prefix(next_hop).to_string(),
        engine: engine.name().to_owned(),
        engine_reason,
        machine: machine(),
        steps,
    };
    Ok((record, error))
}

pub(super) fn report(arguments: &ReportArguments) -> Result<(), Failure> {
    let runs = arguments.runs.iter().map(|path| read_run(path)).collect::<Result<Vec<_>, _>>()?;
    let output = Output::new("--output", &arguments.output)?;
    output.write(|file| file.write_all(page::render(&runs).as_bytes()))
}

fn read_run(path: &Path) -> Result<Run, Failure> {
    let wrong = |error: &dyn std::fmt::Display| wrong_input(format_args!("{}: {error}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| wrong(&error))?;
    Run::from_json(&text).map_err(|error| wrong(&error))
}

/// A file that can be written, found out before there is anything to write. What is in it stays until then; if it was
/// not there and nothing gets written, it goes again.
struct Output {
    path: PathBuf,
    is_new: bool,
}

impl Output {
    fn new(flag: &str, path: &Path) -> Result<Self, Failure> {
        let is_new = !path.exists();
        OpenOptions::new().append(true).create(true).open(path).map_err(|error| {
            wrong_input(format_args!(
                "{flag} {}: must be a file that can be written: {error}",
                path.display()
            ))
        })?;
        Ok(Self { path: path.to_owned(), is_new })
    }

    fn write(mut self, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), Failure> {
        self.is_new = false;
        let all = || {
            let mut file = BufWriter::new(File::create(&self.path)?);
            write(&mut file)?;
            file.flush()
        };
        let path = self.path.display();
        all().map_err(|error: io::Error| Failure::failed(format_args!("{path}: {error}")))?;
        let _ = writeln!(io::stderr(), "timeball: wrote {path}");
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.is_new {
            let _ = fs::remove_file(&self.path);
        }
    }
}
