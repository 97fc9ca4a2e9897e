//! The command line, as clap derives it.
//!
//! Owns: commands, flags, their help, and their translation to configuration [`Overrides`]. Does not own: what the
//! commands do, nor the ranges of configuration values (see `config`): a flag out of range is reported there, in
//! the words a file gets.
//!
//! The one idea a newcomer lacks: the doc comments below are the help texts that users read.

use crate::config::{Datapath, Overrides, ReferenceFlag};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// NTP's port (RFC 5905 section 7.1).
pub(super) const NTP_PORT: u16 = 123;

/// Samples of one query at most: at the pace of a polite client that is a minute or two.
const SAMPLES_MAX: i64 = 64;

/// Lines of `clients --top` at most: what all workers together can keep.
const TOP_MAX: i64 = 1 << 20;

/// An NTP server that XDP stamps and AF_XDP carries
#[derive(Clone, PartialEq, Debug, Parser)]
#[command(name = "timeball", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Unix socket of the running daemon, an absolute path
    ///
    /// `serve` listens on it; `status`, `sources` and `clients` ask there. Default: what the configuration says, else
    /// /run/timeball/timeball.sock.
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<String>,
}

const EXIT_CODES: &str = "Exit codes: 0 fine, 1 failed, 2 the input is wrong (flags or configuration).";

/// What to do.
#[derive(Clone, PartialEq, Debug, Subcommand)]
pub enum Command {
    /// Serve NTP until told to stop
    ///
    /// With neither --config nor --interface, /etc/timeball/timeball.toml is read if it is there. Without a source
    /// of time (--upstream, --local-stratum, --reference or the configuration's) clients are told that we are not
    /// synchronised.
    #[command(after_long_help = SERVE_EXAMPLES)]
    Serve(ServeArguments),
    /// Check a configuration and show what it comes to
    ///
    /// Prints the effective configuration as TOML that loads again, then what each interface can do and what would
    /// be chosen for it. Changes nothing. With neither --config nor --interface, /etc/timeball/timeball.toml is read
    /// if it is there.
    #[command(after_long_help = CHECK_EXAMPLES)]
    Check(CheckArguments),
    /// Ask one server for the time, once; sets nothing
    #[command(after_long_help = QUERY_EXAMPLES)]
    Query(QueryArguments),
    /// Show what the running daemon does: path, mode, queues, replies, refusals, drops
    Status(StatusArguments),
    /// Show the sources that the clock is set by, and why not by the others
    Sources(StatusArguments),
    /// Show the clients that ask the running daemon most
    Clients(ClientsArguments),
    /// Load a server with many clients' requests and measure how it answers
    ///
    /// A load test, not a weapon: only private, shared and link-local addresses may be targets or sources, unless
    /// --target-is-mine.
    #[cfg(feature = "load")]
    #[command(after_long_help = super::load::args::EXAMPLES)]
    Load(Box<super::load::args::LoadArguments>),
    /// Make one page of several load tests, side by side
    #[cfg(feature = "load")]
    #[command(after_long_help = super::load::args::REPORT_EXAMPLES)]
    Report(super::load::args::ReportArguments),
}

const SERVE_EXAMPLES: &str = "\
Examples:
  timeball serve --interface eth0 --local-stratum 10
      Serve this machine's own clock over AF_XDP on eth0.
  timeball serve --interface eth0 --upstream ntp1.example.org --upstream ntp2.example.org
      Set the clock by two servers, and serve it.
  timeball serve --interface eth0,eth1 --reference system --no-clock-control
      Serve the clock that chronyd keeps, on two interfaces.
  timeball serve --config timeball.toml --datapath socket
      As the file says, but through kernel sockets only.";

const CHECK_EXAMPLES: &str = "\
Examples:
  timeball check --config timeball.toml
  timeball check --interface eth0 --json";

const QUERY_EXAMPLES: &str = "\
Examples:
  timeball query ntp.example.org
  timeball query 192.0.2.1:1123 --samples 8
  timeball query '[2001:db8::1]:123' --json";

/// `timeball serve`
#[derive(Clone, PartialEq, Debug, Args)]
#[command(group = ArgGroup::new("source").args(["local_stratum", "reference"]))]
pub struct ServeArguments {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Serve these interfaces through AF_XDP, with the file's settings for them if it has any, and no others
    #[arg(long, value_name = "IF[,IF]", value_delimiter = ',')]
    pub interface: Vec<String>,

    /// Ask this server for the time; may be given several times. Without --no-clock-control the clock is set by them
    #[arg(long, value_name = "HOST[:PORT]")]
    pub upstream: Vec<Server>,

    /// Serve this machine's own clock, whether or not anything keeps it right, at this stratum (1 to 15)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub local_stratum: Option<i64>,

    /// Serve the kernel clock that another program keeps right (chronyd, ptp4l with phc2sys), at stratum 3 unless
    /// the file says otherwise
    #[arg(long, value_enum)]
    pub reference: Option<ReferenceChoice>,

    /// How requests reach the workers
    #[arg(long, value_enum)]
    pub datapath: Option<Datapath>,

    /// Never set or steer the clock
    #[arg(long)]
    pub no_clock_control: bool,

    /// UDP port to serve (1 to 65535)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub port: Option<i64>,

    /// Let Prometheus read here, at /metrics: an address of loopback, like 127.0.0.1:9124
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<String>,
}

/// What `--reference` may name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ReferenceChoice {
    /// The kernel clock
    System,
}

/// `timeball check`
#[derive(Clone, PartialEq, Debug, Args)]
pub struct CheckArguments {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Say what these interfaces can do and what would be chosen for them
    #[arg(long, value_name = "IF[,IF]", value_delimiter = ',')]
    pub interface: Vec<String>,

    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// `timeball query`
#[derive(Clone, PartialEq, Debug, Args)]
pub struct QueryArguments {
    /// Whom to ask: a name or an address; an IPv6 address with a port stands in brackets
    #[arg(value_name = "HOST[:PORT]")]
    pub server: Server,

    /// For programs
    #[arg(long)]
    pub json: bool,

    /// How often to ask (1 to 64); the answer with the shortest delay counts
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=SAMPLES_MAX))]
    pub samples: u8,
}

/// `timeball status`, `timeball sources`
#[derive(Clone, PartialEq, Debug, Args)]
pub struct StatusArguments {
    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// `timeball clients`
#[derive(Clone, PartialEq, Debug, Args)]
pub struct ClientsArguments {
    /// For programs
    #[arg(long)]
    pub json: bool,

    /// How many to show, the heaviest first (1 to 1048576)
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=TOP_MAX))]
    pub top: u32,
}

impl ServeArguments {
    /// As configuration; `socket` is the flag all commands share.
    #[must_use]
    pub fn overrides(&self, socket: Option<&str>) -> Overrides {
        let local = self.local_stratum.map(ReferenceFlag::LocalStratum);
        let system = self.reference.map(|ReferenceChoice::System| ReferenceFlag::System);
        let datapath = self.datapath.and_then(|datapath| datapath.to_possible_value());
        Overrides {
            interfaces: self.interface.clone(),
            reference: local.or(system),
            datapath: datapath.map(|value| value.get_name().to_owned()),
            no_clock_control: self.no_clock_control,
            port: self.port,
            socket: socket.map(str::to_owned),
            metrics: self.metrics.clone(),
            upstreams: self.upstream.iter().map(|server| (server.host.clone(), server.port)).collect(),
        }
    }
}

impl CheckArguments {
    /// As configuration; `socket` is the flag all commands share.
    #[must_use]
    pub fn overrides(&self, socket: Option<&str>) -> Overrides {
        let socket = socket.map(str::to_owned);
        Overrides { interfaces: self.interface.clone(), socket, ..Overrides::default() }
    }
}

/// A server to ask: `ntp.example.org`, `192.0.2.1:1123`, `2001:db8::1`, `[2001:db8::1]:123`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    /// A name or an address, without brackets; a scope (`fe80::1%eth0`) is kept.
    pub host: String,
    /// UDP port, not 0.
    pub port: u16,
}

/// Why a text names no server.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ServerError {
    /// There is nothing before the port.
    #[error("no host before the port")]
    NoHost,
    /// The port is no number of its range.
    #[error("port {0:?}: must be 1 to 65535")]
    Port(String),
    /// Brackets without an IPv6 address in them, or something between bracket and port.
    #[error("brackets must hold an IPv6 address: [2001:db8::1]:123")]
    Brackets,
    /// Several colons, but no IPv6 address.
    #[error("neither HOST, HOST:PORT, an IPv6 address nor [IPv6]:PORT")]
    Colons,
    /// Characters that neither names nor addresses have.
    #[error("{0:?} cannot be in a host name")]
    Character(char),
}

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Self, ServerError> {
        if let Some(bracketed) = text.strip_prefix('[') {
            let (host, rest) = bracketed.split_once(']').ok_or(ServerError::Brackets)?;
            if !is_ipv6(host) {
                return Err(ServerError::Brackets);
            }
            let port = match rest.strip_prefix(':') {
                Some(port) => parse_port(port)?,
                None if rest.is_empty() => NTP_PORT,
                None => return Err(ServerError::Brackets),
            };
            return Ok(Self { host: host.to_owned(), port });
        }
        if is_ipv6(text) {
            return Ok(Self { host: text.to_owned(), port: NTP_PORT });
        }
        let (host, port) = match text.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err(ServerError::Colons),
            Some((host, port)) => (host, parse_port(port)?),
            None => (text, NTP_PORT),
        };
        if host.is_empty() {
            return Err(ServerError::NoHost);
        }
        let is_odd = |character: &char| !character.is_ascii_alphanumeric() && !"-._".contains(*character);
        match host.chars().find(is_odd) {
            Some(odd) => Err(ServerError::Character(odd)),
            None => Ok(Self { host: host.to_owned(), port }),
        }
    }
}

/// An IPv6 address, perhaps with a scope.
fn is_ipv6(text: &str) -> bool {
    let (address, scope) = text.split_once('%').unwrap_or((text, "scope"));
    let is_name = |scope: &str| {
        scope.chars().all(|character| character.is_ascii_graphic() && !"[]%/".contains(character))
    };
    address.parse::<Ipv6Addr>().is_ok() && !scope.is_empty() && is_name(scope)
}

fn parse_port(text: &str) -> Result<u16, ServerError> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|&port| is_number && port != 0);
    port.ok_or_else(|| ServerError::Port(text.to_owned()))
}

impl fmt::Display for Server {
    /// Always with the port, and so that it reads back.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(formatter, "[{}]:{}", self.host, self.port),
            false => write!(formatter, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use proptest::prelude::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    fn serve(line: &str) -> Overrides {
        let arguments = parse(line).expect("the line is right");
        match arguments.command {
            Command::Serve(serve) => serve.overrides(arguments.socket.as_deref()),
            other => panic!("not serve: {other:?}"),
        }
    }

    #[test]
    fn clap_finds_no_contradiction() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn help_fits_and_has_examples() {
        let mut names = vec!["serve", "check", "query"];
        if cfg!(feature = "load") {
            names.extend(["load", "report"]);
        }
        for name in names {
            let mut command = Arguments::command();
            let subcommand = command.find_subcommand_mut(name).expect("it is there");
            let help = subcommand.render_long_help().to_string();
            assert!(help.contains("Examples:\n  timeball"), "{help}");
            assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        }
    }

    #[test]
    fn serve_flags_become_overrides() {
        let overrides = serve(
            "timeball serve --interface a,b --interface c --local-stratum 10 --datapath af-xdp \
             --no-clock-control --port 1123 --socket /tmp/s \
             --metrics 127.0.0.1:9124 --upstream ntp.example.org --upstream [2001:db8::1]:1123",
        );
        let expected = Overrides {
            interfaces: vec!["a".into(), "b".into(), "c".into()],
            reference: Some(ReferenceFlag::LocalStratum(10)),
            datapath: Some("af-xdp".into()),
            no_clock_control: true,
            port: Some(1123),
            socket: Some("/tmp/s".into()),
            metrics: Some("127.0.0.1:9124".into()),
            upstreams: vec![("ntp.example.org".into(), 123), ("2001:db8::1".into(), 1123)],
        };
        assert_eq!(overrides, expected);
        assert_eq!(serve("timeball serve"), Overrides::default());
        assert_eq!(serve("timeball serve --reference system").reference, Some(ReferenceFlag::System));
    }

    #[test]
    fn socket_is_understood_before_and_after_every_command() {
        for command in ["serve", "check", "query h", "status", "sources", "clients"] {
            for line in [format!("timeball --socket /s {command}"), format!("timeball {command} --socket /s")]
            {
                assert_eq!(parse(&line).expect("the line is right").socket.as_deref(), Some("/s"), "{line}");
            }
        }
    }

    #[test]
    fn usage_errors_exit_with_2() {
        let lines = [
            "timeball",
            "timeball sevre",
            "timeball serve --local-stratum 3 --reference system",
            "timeball serve --local-stratum x",
            "timeball serve --datapath dpdk",
            "timeball query",
            "timeball query h:0",
            "timeball query h --samples 0",
            "timeball query h --samples 65",
            "timeball clients --top 0",
        ];
        for line in lines {
            assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn out_of_range_flags_are_left_to_the_configuration_check() {
        assert_eq!(serve("timeball serve --port -1").port, Some(-1));
        let problems = crate::config::Config::load(None, &serve("timeball serve --local-stratum 16"));
        let text = problems.expect_err("16 is out of range").to_string();
        assert_eq!(text, "--local-stratum 16: must be 1 to 15");
    }

    #[test]
    fn servers_are_read_with_and_without_port() {
        let cases = [
            ("ntp.example.org", "ntp.example.org", 123),
            ("ntp.example.org:1123", "ntp.example.org", 1123),
            ("192.0.2.1", "192.0.2.1", 123),
            ("192.0.2.1:65535", "192.0.2.1", 65535),
            ("2001:db8::1", "2001:db8::1", 123),
            ("[2001:db8::1]", "2001:db8::1", 123),
            ("[2001:db8::1]:1123", "2001:db8::1", 1123),
            ("fe80::1%eth0", "fe80::1%eth0", 123),
            ("[fe80::1%eth0]:1123", "fe80::1%eth0", 1123),
        ];
        for (text, host, port) in cases {
            assert_eq!(text.parse(), Ok(Server { host: host.into(), port }), "{text}");
        }
    }

    #[test]
    fn wrong_servers_say_what_is_wrong() {
        let port = |text: &str| ServerError::Port(text.to_owned());
        let cases = [
            ("", ServerError::NoHost),
            (":123", ServerError::NoHost),
            ("h:", port("")),
            ("h:0", port("0")),
            ("h:+1", port("+1")),
            ("h:65536", port("65536")),
            ("[::1", ServerError::Brackets),
            ("[h]:1", ServerError::Brackets),
            ("[::1]1", ServerError::Brackets),
            ("[fe80::1%]", ServerError::Brackets),
            ("1:2:3", ServerError::Colons),
            ("a/b", ServerError::Character('/')),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Server>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_server_that_reads_back_or_an_error(text in "\\PC{0,30}|[0-9a-z:.%\\[\\]]{0,30}") {
            if let Ok(server) = text.parse::<Server>() {
                prop_assert_eq!(server.to_string().parse(), Ok(server));
            }
        }
    }
}
