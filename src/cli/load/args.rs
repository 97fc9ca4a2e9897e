//! The flags of `timeball load` and `timeball report`.
//!
//! Owns: flags, help, and how rates and durations are written. Does not own: the rules between flags (`load::plan`).
//!
//! The one idea a newcomer lacks: clap names the flag and the value in front of what is said here, so the errors below
//! only say what the value must be.

use crate::cli::args::{NTP_PORT, Server};
use crate::config;
use crate::load::choose::Kind;
use crate::load::engine::Expect;
use crate::load::plan::{DURATIONS, Offer, Options, RATES, SWEEP_STEPS, TIMEOUTS};
use clap::{ArgGroup, Args, ValueEnum};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Steps of a sweep that does not say.
const SWEEP_STEPS_DEFAULT: u32 = 10;

/// Longest label, in characters: what fits beside a curve.
const LABEL_MAX: usize = 60;

pub(in crate::cli) const EXAMPLES: &str = "\
Examples:
  timeball load --target 10.99.1.1 --interface tb0
      1000 clients ask 10 000 times a second for 10 s.
  timeball load --target 10.99.1.1 --interface tb0 --rate 250k --clients 1M --sources 10.99.64.0/18
      A quarter of a million requests a second from 16 382 addresses.
  timeball load --target 10.99.1.1 --interface tb0 --sweep 10k:1M --report sweep.html
      Ten rates, each 1.7 times the one before, and a page with the curves.
  timeball load --target 10.99.1.1 --interface tb0 --saturate --json > run.json
      As much as the generator can send, for programs and for `timeball report`.

Latency counts from the time a request should have left, so that a stall is charged for all the
requests of its time (no coordinated omission). Every reply is checked; a request that is not
answered rightly within --timeout is lost or late. Ctrl-C ends the sending and waits for replies
that are on their way; once more, and it waits for nothing.

Privileges: root, or CAP_NET_ADMIN and CAP_BPF; for live-frames also CAP_PERFMON (and CAP_SYS_ADMIN
to be at its fastest), for af-xdp also CAP_NET_RAW and CAP_IPC_LOCK.";

pub(in crate::cli) const REPORT_EXAMPLES: &str = "\
Examples:
  timeball report before.json after.json --output compared.html";

/// `timeball load`
#[derive(Clone, PartialEq, Debug, Args)]
#[command(group = ArgGroup::new("offer").args(["rate", "sweep", "saturate"]))]
pub struct LoadArguments {
    /// The server to ask; an IPv6 address with a port stands in brackets
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = parse_target)]
    pub target: SocketAddr,

    /// The Ethernet interface to send from
    #[arg(long, value_name = "IF")]
    pub interface: String,

    /// Requests a second (1 to 100M): 1000, 250k, 1.2M
    #[arg(long, value_name = "N", value_parser = parse_rate, default_value = "10k", allow_negative_numbers = true)]
    pub rate: f64,

    /// Several rates, one after the other, each the same factor above the one before (2 to 100 steps; default 10)
    #[arg(long, value_name = "FROM:TO[:STEPS]", value_parser = parse_sweep, allow_negative_numbers = true)]
    pub sweep: Option<Offer>,

    /// As many requests as the generator can send
    #[arg(long)]
    pub saturate: bool,

    /// How many clients ask, each with an address and port of its own, in turn (1 to 4294M)
    #[arg(long, value_name = "N", value_parser = parse_count, default_value = "1000", allow_negative_numbers = true)]
    pub clients: u64,

    /// Where the clients' addresses come from; default: the interface's own address, with 64512 ports
    ///
    /// The replies must find their way back to this interface. timeball's AF_XDP path replies to the MAC address that
    /// asked; a server that uses the kernel's sockets needs a route to the prefix by way of this interface's address.
    #[arg(long, value_name = "PREFIX", value_parser = parse_prefix)]
    pub sources: Option<IpNet>,

    /// What the clients do with the replies
    #[arg(long, value_enum, default_value_t = Mode::Basic)]
    pub mode: Mode,

    /// How long requests are sent, in each step of a sweep (100ms to 1h): 10s, 500ms, 2min; a bare number is seconds
    #[arg(long, value_name = "S", value_parser = parse_step_duration, default_value = "10s", allow_negative_numbers = true)]
    pub duration: Duration,

    /// A reply that takes longer is late (1ms to 10s)
    #[arg(long, value_name = "T", value_parser = parse_timeout, default_value = "1s", allow_negative_numbers = true)]
    pub timeout: Duration,

    /// What reports call this run (1 to 60 characters); default: the target
    #[arg(long, value_name = "TEXT", value_parser = parse_label)]
    pub label: Option<String>,

    /// For programs: the whole record, histograms included
    #[arg(long)]
    pub json: bool,

    /// Write the histograms as an HdrHistogram log, which that project's viewers read
    #[arg(long, value_name = "FILE")]
    pub hdr: Option<PathBuf>,

    /// Write a page with the curves
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,

    /// Put this earlier run (--json) beside the new one in the report
    #[arg(long, value_name = "RUN.json", requires = "report")]
    pub compare: Vec<PathBuf>,

    /// What carries the packets; auto says what it chose and why
    #[arg(long, value_enum, default_value_t = EngineChoice::Auto)]
    pub engine: EngineChoice,

    /// The target is a bare reflector that returns each request as it is; measures the path without a server
    #[arg(long)]
    pub echo: bool,

    /// I answer for the target and the sources, although they are not private addresses
    #[arg(long)]
    pub target_is_mine: bool,
}

/// `timeball report`
#[derive(Clone, PartialEq, Debug, Args)]
pub struct ReportArguments {
    /// Runs, as `timeball load --json` printed them
    #[arg(value_name = "RUN.json", required = true)]
    pub runs: Vec<PathBuf>,

    /// The page to write
    #[arg(long, short, value_name = "FILE.html")]
    pub output: PathBuf,
}

/// What `--mode` may name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Mode {
    /// A request, its reply (RFC 5905 section 8)
    Basic,
    /// The next reply brings the exact transmit time of the last (RFC 9769); the server has none yet
    Interleaved,
}

/// What `--engine` may name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum EngineChoice {
    /// live-frames on a veth, af-xdp elsewhere
    Auto,
    /// From user space, through xsk-rs
    AfXdp,
    /// From inside the kernel, where AF_XDP has to copy
    LiveFrames,
}

impl EngineChoice {
    /// The engine, where one is named.
    #[must_use]
    pub const fn kind(self) -> Option<Kind> {
        match self {
            Self::Auto => None,
            Self::AfXdp => Some(Kind::AfXdp),
            Self::LiveFrames => Some(Kind::LiveFrames),
        }
    }
}

impl LoadArguments {
    /// The load test that these flags describe.
    #[must_use]
    pub fn options(&self) -> Options {
        let offer = if self.saturate { Offer::Saturate } else { Offer::Rate(self.rate) };
        Options {
            target: self.target,
            interface: self.interface.clone(),
            offer: self.sweep.unwrap_or(offer),
            clients: self.clients,
            sources: self.sources,
            duration: self.duration,
            timeout: self.timeout,
            expect: if self.echo { Expect::Echo } else { Expect::Ntp },
            is_mine: self.target_is_mine,
        }
    }
}

fn parse_target(text: &str) -> Result<SocketAddr, String> {
    let server: Server = text.parse().map_err(|error: crate::cli::args::ServerError| error.to_string())?;
    let address: IpAddr = server
        .host
        .parse()
        .map_err(|_| format!("must be an address, with a port other than {NTP_PORT} if need be"))?;
    Ok(SocketAddr::new(address, server.port))
}

fn parse_prefix(text: &str) -> Result<IpNet, String> {
    let prefix: Result<IpNet, _> = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let prefix = prefix.map_err(|_| "must be a prefix or an address: 10.99.64.0/18".to_owned())?;
    if prefix.trunc() == prefix { Ok(prefix) } else { Err(format!("must be a prefix: {}", prefix.trunc())) }
}

/// A number with k, M or G behind it, as people write rates, rounded to a thousandth (1.001 times 1e6 is a bit off).
fn parse_number(text: &str) -> Option<f64> {
    let (number, factor) = match text.char_indices().last()? {
        (end, 'k' | 'K') => (&text[..end], 1e3),
        (end, 'M') => (&text[..end], 1e6),
        (end, 'G') => (&text[..end], 1e9),
        _ => (text, 1.0),
    };
    // Rust reads "inf" and "1e9" too, which nobody means here.
    let is_decimal = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    number.parse::<f64>().ok().filter(|_| is_decimal).map(|number| (number * factor * 1e3).round() / 1e3)
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let must_be = "must be 1 to 100M requests a second: 1000, 250k, 1.2M";
    parse_number(text).filter(|rate| RATES.contains(rate)).ok_or_else(|| must_be.to_owned())
}

fn parse_sweep(text: &str) -> Result<Offer, String> {
    let must_be =
        || "must be FROM:TO[:STEPS], two rates of 1 to 100M, the lower first, 2 to 100 steps: 10k:1M:20";
    let sweep = || {
        let mut parts = text.split(':');
        let from = parse_rate(parts.next()?).ok()?;
        let to = parse_rate(parts.next()?).ok()?;
        let steps = parts.next().map_or(Some(SWEEP_STEPS_DEFAULT), |steps| steps.parse().ok())?;
        let is_fine = from < to && SWEEP_STEPS.contains(&steps) && parts.next().is_none();
        is_fine.then_some(Offer::Sweep { from, to, steps })
    };
    sweep().ok_or_else(|| must_be().to_owned())
}

fn parse_count(text: &str) -> Result<u64, String> {
    let is_fine = |count: &f64| count.fract() == 0.0 && (1.0..=f64::from(u32::MAX)).contains(count);
    let count = parse_number(text).filter(is_fine);
    count.map(|count| count as u64).ok_or_else(|| "must be 1 to 4294967295: 1000, 64k, 10M".to_owned())
}

/// With a unit, or seconds.
fn parse_duration(text: &str) -> Option<Duration> {
    let parsed = config::parse_duration(text).or_else(|| config::parse_duration(&format!("{text}s")))?;
    u64::try_from(parsed.to_nanoseconds()).ok().map(Duration::from_nanos)
}

fn parse_step_duration(text: &str) -> Result<Duration, String> {
    let must_be = "must be 100ms to 1h: 10s, 500ms, 2min, or a number of seconds";
    parse_duration(text).filter(|duration| DURATIONS.contains(duration)).ok_or_else(|| must_be.to_owned())
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let must_be = "must be 1ms to 10s: 500ms, 1s, or a number of seconds";
    parse_duration(text).filter(|timeout| TIMEOUTS.contains(timeout)).ok_or_else(|| must_be.to_owned())
}

fn parse_label(text: &str) -> Result<String, String> {
    let is_fine = (1..=LABEL_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    let must_be = || format!("must be 1 to {LABEL_MAX} characters, none of them a control character");
    is_fine.then(|| text.to_owned()).ok_or_else(must_be)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Arguments, Command};
    use clap::Parser;
    use proptest::prelude::*;

    const LOAD: &str = "timeball load --target 10.99.1.1 --interface tb0";

    fn parse(flags: &str) -> Result<Options, clap::Error> {
        let line = format!("{LOAD} {flags}");
        match Arguments::try_parse_from(line.split_whitespace())?.command {
            Command::Load(load) => Ok(load.options()),
            other => panic!("not load: {other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_those_that_help_promises() {
        let options = parse("").unwrap();
        assert_eq!(options.target, "10.99.1.1:123".parse().unwrap());
        assert_eq!((options.offer, options.clients), (Offer::Rate(10_000.0), 1000));
        assert_eq!((options.duration.as_secs(), options.timeout.as_secs()), (10, 1));
        assert_eq!((options.sources, options.expect, options.is_mine), (None, Expect::Ntp, false));
    }

    #[test]
    fn rates_counts_and_durations_are_read_as_people_write_them() {
        let rate = |text| parse(&format!("--rate {text}")).unwrap().offer;
        assert_eq!(rate("1000"), Offer::Rate(1e3));
        assert_eq!(rate("250k"), Offer::Rate(250e3));
        assert_eq!(rate("1.2M"), Offer::Rate(1.2e6));
        assert_eq!(parse("--clients 10M").unwrap().clients, 10_000_000);
        let duration = |text| parse(&format!("--duration {text}")).unwrap().duration.as_millis();
        assert_eq!(
            [duration("10"), duration("0.5"), duration("500ms"), duration("2min")],
            [10_000, 500, 500, 120_000]
        );
        let sweep = |text| parse(&format!("--sweep {text}")).unwrap().offer;
        assert_eq!(sweep("10k:1M"), Offer::Sweep { from: 1e4, to: 1e6, steps: 10 });
        assert_eq!(sweep("1:2:3"), Offer::Sweep { from: 1.0, to: 2.0, steps: 3 });
        assert_eq!(parse("--saturate").unwrap().offer, Offer::Saturate);
        assert_eq!(parse("--sources fd99::1").unwrap().sources, "fd99::1/128".parse().ok());
        let target = |text| parse_target(text).map(|target| target.to_string());
        assert_eq!(target("[fd99:1::1]:1123").unwrap(), "[fd99:1::1]:1123");
    }

    #[test]
    fn what_is_out_of_range_names_flag_value_and_range() {
        let cases = [
            ("--rate", "0", "1 to 100M"),
            ("--rate", "-5", "1 to 100M"),
            ("--rate", "101M", "1 to 100M"),
            ("--rate", "1e4", "1 to 100M"),
            ("--rate", "inf", "1 to 100M"),
            ("--rate", "k", "1 to 100M"),
            ("--sweep", "10k", "FROM:TO"),
            ("--sweep", "10k:1k", "the lower first"),
            ("--sweep", "1k:10k:1", "2 to 100 steps"),
            ("--sweep", "1k:10k:101", "2 to 100 steps"),
            ("--sweep", "1k:10k:5:6", "FROM:TO"),
            ("--clients", "0", "1 to 4294967295"),
            ("--clients", "1.5", "1 to 4294967295"),
            ("--clients", "5G", "1 to 4294967295"),
            ("--duration", "99ms", "100ms to 1h"),
            ("--duration", "2h", "100ms to 1h"),
            ("--duration", "-1", "100ms to 1h"),
            ("--timeout", "11", "1ms to 10s"),
            ("--timeout", "0", "1ms to 10s"),
            ("--sources", "10.99.1.1/24", "10.99.1.0/24"),
            ("--sources", "x", "a prefix or an address"),
            ("--engine", "dpdk", "live-frames"),
        ];
        for (flag, value, range) in cases {
            let error = parse(&format!("{flag} {value}")).expect_err(value);
            let text = error.to_string();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!([flag, value, range].iter().all(|part| text.contains(part)), "{text}");
        }
        for label in [String::new(), "x".repeat(61), "a\u{1b}b".into()] {
            assert!(parse_label(&label).is_err(), "{label:?}");
        }
        for target in ["ntp.example.org", "fe80::1%tb0", "10.99.1.1:0", "10.99.1"] {
            assert!(parse_target(target).is_err(), "{target}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for flags in [
            "--rate 1k --saturate",
            "--sweep 1k:2k --saturate",
            "--sweep 1k:2k --rate 1k",
            "--compare a.json",
        ] {
            assert_eq!(parse(flags).expect_err(flags).exit_code(), 2, "{flags}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_the_readers_panic(text in "\\PC{0,20}|[0-9.:kMG]{0,20}|[0-9]{1,3}(ms|s|min|é)") {
            let _ = (parse_rate(&text), parse_sweep(&text), parse_count(&text), parse_target(&text));
            let _ = (parse_step_duration(&text), parse_timeout(&text), parse_prefix(&text), parse_label(&text));
        }
    }
}
