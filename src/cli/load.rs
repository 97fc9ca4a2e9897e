//! `timeball load` and `timeball report`.
//!
//! Owns: the order in which things are checked, done and shown, and the files. Does not own: the load test (`load`).
//!
//! The one idea a newcomer lacks: everything that can be wrong is found before the first request leaves, files that
//! cannot be written included; an hour's measurement is not lost to a typing mistake.

pub(super) mod args;
mod files;
mod progress;
mod show;
mod warnings;

use super::{Failure, WRONG_INPUT};
use crate::load::plan::Options;
use crate::load::record::{FORMAT, Run};
use crate::load::resolve::{self, INTERRUPTED, NextHop};
use crate::load::run::{Ending, machine, rfc3339, run};
use crate::load::{choose, hdr_log, page};
use crate::sys::process::{self, Capability};
use args::{LoadArguments, Mode, ReportArguments};
use files::{Files, Output};
use progress::{Signals, Watch};
use std::io::{self, Write};
use std::time::SystemTime;

/// What every engine needs: to load its XDP program and to attach it.
const NEEDED: [Capability; 2] = [Capability::NetAdmin, Capability::Bpf];

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
    let mut files = Files::default();
    let compared =
        arguments.compare.iter().map(|path| files.read_run(path)).collect::<Result<Vec<_>, _>>()?;
    files.standard_output()?;
    // From here on there are files to take away again.
    let mut signals = Signals::hold().map_err(Failure::failed)?;
    let hdr = arguments.hdr.as_deref().map(|path| files.output("--hdr", path)).transpose()?;
    let report = arguments.report.as_deref().map(|path| files.output("--report", path)).transpose()?;
    require(&NEEDED)?;
    let next_hop = resolve::resolve(&options.interface, options.target.ip(), &mut || signals.came() > 0)
        .map_err(|error| if error.is_wrong_input() { wrong_input(error) } else { Failure::failed(error) })?;
    let started = SystemTime::now();
    let run = measure(arguments, &options, &next_hop, started, signals)?;
    for warning in warnings::warnings(&run) {
        let _ = writeln!(io::stderr(), "timeball: warning: {warning}");
    }
    let failure = run.failure.clone().or_else(|| show::hint(&run));
    let mut failures = write(arguments.json, &run, started, hdr, report, compared);
    failures.extend(failure);
    match failures.as_slice() {
        [] => Ok(()),
        failures => Err(Failure::failed(failures.join("; "))),
    }
}

/// Fails if this process lacks one of these.
fn require(needed: &[Capability]) -> Result<(), Failure> {
    let missing = process::missing_capabilities(needed).map_err(Failure::failed)?;
    if missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
    Err(Failure::failed(format_args!("needs root, or {}", missing.join(", "))))
}

/// Writes everything that was asked for, whatever becomes of the rest. What could not be written, and why. Standard output
/// comes last, as it may be a pipe that nobody reads.
fn write(
    json: bool,
    run: &Run,
    started: SystemTime,
    hdr: Option<Output>,
    report: Option<Output>,
    compared: Vec<Run>,
) -> Vec<String> {
    let to_standard_output = || {
        let mut output = io::stdout();
        if json {
            writeln!(output, "{}", serde_json::to_string_pretty(run)?)?;
        } else {
            write!(output, "{}", show::text(run))?;
        }
        output.flush()
    };
    let mut failures = Vec::new();
    if let Some(hdr) = hdr {
        failures.extend(hdr.write(|file| hdr_log::write(file, run, started)).err());
    }
    if let Some(report) = report {
        let mut runs = compared;
        runs.push(run.clone());
        failures.extend(report.write(|file| file.write_all(page::render(&runs).as_bytes())).err());
    }
    failures.extend(to_standard_output().err().map(|error| format!("standard output: {error}")));
    failures
}

/// Does the run. Where the engine fails after some steps, these are returned with the failure.
fn measure(
    arguments: &LoadArguments,
    options: &Options,
    next_hop: &NextHop,
    started: SystemTime,
    signals: Signals,
) -> Result<Run, Failure> {
    let scene = options.scene(next_hop).map_err(wrong_input)?;
    let (engine, mut engine_reason) =
        choose::choose(arguments.engine.kind(), &options.interface, next_hop.ifindex);
    let _ = writeln!(io::stderr(), "timeball: engine {}: {engine_reason}", engine.name());
    require(engine.needs())?;
    let [random] = process::random_words().map_err(Failure::failed)?;
    let plans = options.steps(random as u32);
    engine.check(&scene, &plans).map_err(wrong_input)?;
    // The engine's threads, if it has any, inherit the signals' mask.
    let mut watch = Watch::new(&plans, signals);
    let mut steps = Vec::new();
    let ending = match engine.open(&scene) {
        Ok((mut opened, way)) => {
            let _ = writeln!(io::stderr(), "timeball: engine {}: {way}", engine.name());
            engine_reason.push_str("; ");
            engine_reason.push_str(&way);
            run(&mut *opened, &plans, &mut steps, &mut |step, now| watch.see(step, now))
        }
        Err(error) => Ending { interrupted: false, failure: Some(error) },
    };
    watch.end();
    if steps.is_empty() {
        return Err(match &ending.failure {
            Some(error) => Failure::failed(format_args!("engine {}: {error}", engine.name())),
            None => Failure::failed(INTERRUPTED),
        });
    }
    Ok(Run {
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
        interrupted: ending.interrupted,
        failure: ending.failure.map(|error| error.0),
        steps,
    })
}

pub(super) fn report(arguments: &ReportArguments) -> Result<(), Failure> {
    let mut files = Files::default();
    let runs = arguments.runs.iter().map(|path| files.read_run(path)).collect::<Result<Vec<_>, _>>()?;
    let output = files.output("--output", &arguments.output)?;
    output.write(|file| file.write_all(page::render(&runs).as_bytes())).map_err(Failure::failed)
}
