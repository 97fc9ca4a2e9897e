//! A bare AF_XDP reflector: each request goes back as it came, with addresses and ports exchanged. It is what the
//! server would be without NTP, so the distance between the two is what NTP costs.
//!
//! `reflector --rings own|xsk-rs --interface IF [--mode drv|skb] [--busy-poll] [--core N]`, from the namespace of the
//! interface. Says `ready` when it serves; SIGTERM or SIGINT ends it, which takes its program off the interface, and
//! it says what it counted as a line of JSON. `scripts/bench` runs it.
//!
//! The one idea a newcomer lacks: both kinds of rings do the same work in the same loop, the daemon's: the same XDP
//! program, number of frames, sizes of rings, batch, wake-ups. What differs is whose ring code moves the packets.

#![allow(missing_docs, reason = "a benchmark may")]

mod own;
mod swap;
mod through_xsk_rs;

use clap::{Parser, ValueEnum};
use own::Own;
use std::error::Error;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::ExitCode;
use std::time::Duration;
use through_xsk_rs::ThroughXskRs;
use timeball::datapath::interface::InterfaceWatch;
use timeball::datapath::steering::{AttachMode, Steering, SteeringConfig, Variant};
use timeball::sys::process::{self, PollEntry};
use timeball::sys::scheduling;
use timeball::sys::signal::SignalFd;
use timeball::sys::xdp_socket::CopyMode;

// The daemon's (`daemon::worker`, `daemon::links`).
const ROUNDS_PER_TURN: usize = 8;
const BUSY_TURNS_PER_POLL: u32 = 64;
const RETRY: Duration = Duration::from_millis(2);
const LINK_CHECK: Duration = Duration::from_secs(1);
const NICE: i32 = -10;
const TIME_SLICE: Duration = Duration::from_micros(100);
const BUSY_POLL: Duration = Duration::from_micros(20);
const BUSY_POLL_BUDGET: u32 = 64;
const NTP_PORT: u16 = 123;

/// Entries of each ring; there are four times as many frames.
const ENTRIES: u32 = 1024;

#[derive(Parser)]
struct Arguments {
    /// Whose rings.
    #[arg(long)]
    rings: Kind,
    /// The interface.
    #[arg(long)]
    interface: String,
    /// Where its XDP program runs.
    #[arg(long, default_value = "drv")]
    mode: Mode,
    /// Spin instead of waiting.
    #[arg(long)]
    busy_poll: bool,
    /// The CPU to run on.
    #[arg(long)]
    core: Option<usize>,
    /// Added by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Own,
    XskRs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Drv,
    Skb,
}

/// One queue's rings.
trait Rings: AsFd {
    /// Reflects at most one batch, and gives the kernel its frames back. How many were taken.
    fn round(&mut self) -> io::Result<usize>;
    /// Do more wait? Asks no kernel.
    fn has_received(&mut self) -> bool;
    /// Are there packets that the kernel would not take yet?
    fn has_unsent(&mut self) -> bool;
    /// Do the system calls of [`Self::round`] make the NIC deliver, when spinning?
    fn drives_nic(&mut self) -> bool;
    /// What was counted.
    fn counts(&self) -> serde_json::Value;
}

type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    if std::env::args().skip(1).all(|word| word == "--bench") {
        let _ = writeln!(io::stdout(), "the reflector is started by scripts/bench");
        return ExitCode::SUCCESS;
    }
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "reflector: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let signals = SignalFd::block_and_open()?;
    if let Some(core) = arguments.core
        && !core_affinity::set_for_current(core_affinity::CoreId { id: core })
    {
        return Err(format!("cannot be pinned to CPU {core}").into());
    }
    if !arguments.busy_poll {
        scheduling::favour_thread(NICE, TIME_SLICE)?;
    }
    // Kept until the end: dropping it takes the program off.
    let (_steering, mut rings, carrier) = open(arguments)?;
    writeln!(io::stdout(), "ready")?;
    reflect(&mut *rings, &signals, arguments.busy_poll)?;
    let mut line = rings.counts();
    line["carrier"] = carrier.into();
    writeln!(io::stdout(), "{line}")?;
    Ok(())
}

/// Program and rings of queue 0: zero-copy if the driver has it, like the daemon.
fn open(arguments: &Arguments) -> Result<(Steering, Box<dyn Rings>, String), Failure> {
    let watch = InterfaceWatch::open()?;
    let view = watch.view();
    let missing = || format!("there is no interface {}", arguments.interface);
    let interface = view.interface_named(&arguments.interface).ok_or_else(missing)?;
    let (attach, word) = match arguments.mode {
        Mode::Drv => (AttachMode::Driver, "driver"),
        Mode::Skb => (AttachMode::Skb, "skb"),
    };
    let mut refused = String::new();
    for (copy, copy_word) in [(CopyMode::ZeroCopy, "zero-copy"), (CopyMode::Copy, "copy")] {
        if attach == AttachMode::Skb && copy == CopyMode::ZeroCopy {
            continue;
        }
        let mut steering = Steering::load(&SteeringConfig {
            port: NTP_PORT,
            queues: interface.rx_queues.unwrap_or(1),
            interface_index: interface.ifindex,
            variant: Variant::Plain,
        })?;
        // Before the sockets are bound, as the daemon does it.
        steering.attach(attach)?;
        match open_rings(arguments, interface.ifindex, copy) {
            Ok(rings) => {
                steering.set_socket(0, rings.as_fd())?;
                steering.replace_locals(&view.steering_addresses(interface.ifindex, &[]))?;
                return Ok((steering, rings, format!("{word} + {copy_word}")));
            }
            Err(error) => refused = format!("{refused}{word} + {copy_word}: {error}\n"),
        }
    }
    Err(refused.into())
}

fn open_rings(arguments: &Arguments, ifindex: u32, mode: CopyMode) -> Result<Box<dyn Rings>, Failure> {
    Ok(match arguments.rings {
        Kind::Own => Box::new(Own::open(ifindex, mode, arguments.busy_poll)?),
        Kind::XskRs => Box::new(ThroughXskRs::open(&arguments.interface, mode, arguments.busy_poll)?),
    })
}

/// The loop of the daemon's worker, with one queue and no socket.
fn reflect(rings: &mut dyn Rings, signals: &SignalFd, busy_poll: bool) -> Result<(), Failure> {
    let mut wait = None;
    loop {
        let mut entries = [signals.as_fd(), rings.as_fd()].map(|fd| PollEntry::readable(fd.as_raw_fd()));
        process::poll(&mut entries, wait)?;
        if entries[0].is_ready() && signals.next()?.is_some() {
            return Ok(());
        }
        wait = Some(LINK_CHECK);
        if entries[1].is_ready() || rings.has_unsent() {
            wait = turn(rings)?;
        }
        if busy_poll {
            let drives_nic = rings.drives_nic();
            for _ in 0..BUSY_TURNS_PER_POLL {
                if (rings.round()? == 0 || !rings.has_received()) && !drives_nic {
                    std::thread::yield_now();
                }
            }
            wait = Some(Duration::ZERO);
        }
    }
}

/// Rounds until the ring is empty or a signal must have its turn. How long to wait then.
fn turn(rings: &mut dyn Rings) -> io::Result<Option<Duration>> {
    for _ in 0..ROUNDS_PER_TURN {
        if rings.round()? == 0 || !rings.has_received() {
            return Ok(Some(if rings.has_unsent() { RETRY } else { LINK_CHECK }));
        }
    }
    Ok(Some(Duration::ZERO))
}
