//! Other projects' NTP daemons in the client's namespace of a lab, and what is asked of them and of ours.

use super::recorder::Recorder;
use super::{Daemon, Lab, TIMEBALL, peer, project, run, run_well};
use serde_json::Value;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The addresses of the other daemon's host.
pub const THEIRS: [&str; 2] = ["10.99.1.2", "fd99:1::2"];
/// Ours.
pub const OURS: [&str; 2] = ["10.99.1.1", "fd99:1::1"];

/// ntp.org's ntpd and ntpsec need up to 40 s before they serve, and as long to follow somebody.
const PATIENCE: Duration = Duration::from_secs(120);
/// One machine, one clock: what is measured beyond this is no jitter of a busy test machine any more.
const OFFSET_SECONDS_MAX: f64 = 0.05;

/// The secrets of [`keys`], which all daemons of these tests know: an AES-128 key and a SHA-1 key.
const AES_128: &str = "000102030405060708090a0b0c0d0e0f";
const SHA_1: &str = "a27872d3030a9025b8446c751b4551a7629af65c";

/// Which daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Chronyd,
    /// ntp.org's, 4.2.8.
    Ntpd,
    Ntpsec,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Chronyd => "chronyd",
            Self::Ntpd => "ntp-ntpd",
            Self::Ntpsec => "ntpsec-ntpd",
        }
    }

    /// The lines that make it serve its own clock.
    pub const fn local(self) -> &'static str {
        match self {
            Self::Chronyd => "local stratum 3",
            Self::Ntpd => "server 127.127.1.0 minpoll 3 maxpoll 3 prefer\nfudge 127.127.1.0 stratum 3",
            Self::Ntpsec => "refclock local stratum 3 minpoll 3 maxpoll 3 prefer",
        }
    }

    /// The stratum that it then serves.
    pub const fn local_stratum(self) -> u64 {
        match self {
            Self::Chronyd => 3,
            Self::Ntpd | Self::Ntpsec => 4,
        }
    }

    /// Its key file.
    pub fn keys(self) -> String {
        match self {
            Self::Chronyd => format!("1 AES128 HEX:{AES_128}\n2 SHA1 HEX:{SHA_1}\n"),
            Self::Ntpd => format!("1 AES128CMAC {AES_128}\n2 SHA1 {SHA_1}\n"),
            Self::Ntpsec => format!("1 AES-128 {AES_128}\n2 SHA1 {SHA_1}\n"),
        }
    }
}

/// A running daemon, killed on drop.
pub struct Peer {
    child: Child,
    folder: TempDir,
    /// What gives it a clock of its own.
    clock: Option<TempDir>,
    /// What it says is recorded, if that is wished.
    recorder: Option<Recorder>,
}

impl Peer {
    /// Starts it in the client's namespace; `None`, after a SKIP, if it is not there.
    pub fn start(lab: &Lab, kind: Kind, lines: &str) -> Option<Self> {
        let recorder = if kind == Kind::Ntpd { Recorder::start(lab) } else { None };
        let peer = Self::start_in(kind, lines, |program| lab.on_client(program));
        peer.map(|mut peer| {
            peer.recorder = recorder;
            peer
        })
    }

    /// The same with a wall clock that is so many seconds ahead of ours.
    pub fn start_ahead(lab: &Lab, kind: Kind, lines: &str, seconds: f64) -> Option<Self> {
        peer(kind.name())?;
        let folder = TempDir::new().unwrap();
        let shim = folder.path().join("own-clock.so");
        let source = project("tests/shim/own-clock.c");
        run_well(
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-pthread", "-o"]).arg(&shim).arg(source),
        );
        let clock = format!("TIMEBALL_TEST_CLOCK={seconds} 0 {}", folder.path().join("deeds").display());
        let recorder = if kind == Kind::Ntpd { Recorder::start(lab) } else { None };
        let peer = Self::start_in(kind, lines, |program| {
            // Only the daemon itself is given the clock, not what starts it.
            let mut command = lab.on_client("env");
            command.arg(format!("LD_PRELOAD={}", shim.display())).arg(&clock).arg(program);
            command
        });
        peer.map(|mut peer| {
            (peer.clock, peer.recorder) = (Some(folder), recorder);
            peer
        })
    }

    /// The same in the server's namespace, beside our daemon: it must have another port.
    pub fn start_beside(lab: &Lab, kind: Kind, lines: &str) -> Option<Self> {
        Self::start_in(kind, lines, |program| lab.on_server(program))
    }

    /// The same by a command of one's own.
    pub fn start_in(kind: Kind, lines: &str, within: impl Fn(&Path) -> Command) -> Option<Self> {
        let program = peer(kind.name())?;
        let folder = TempDir::new().unwrap();
        let (configuration, keys) = (folder.path().join("conf"), folder.path().join("keys"));
        let here = folder.path().display();
        let common = match kind {
            Kind::Chronyd => format!(
                "allow\ncmdport 0\nbindcmdaddress {here}/chronyd.sock\npidfile {here}/pid\nkeyfile {here}/keys\n"
            ),
            Kind::Ntpd | Kind::Ntpsec => format!("keys {here}/keys\ntrustedkey 1 2\n"),
        };
        fs::write(&configuration, format!("{common}{lines}\n")).unwrap();
        fs::write(&keys, kind.keys()).unwrap();
        fs::set_permissions(&keys, Permissions::from_mode(0o600)).unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let mut command = within(&program);
        match kind {
            Kind::Chronyd => command.args(["-x", "-d", "-u", "root", "-f"]),
            Kind::Ntpd | Kind::Ntpsec => command.args(["-n", "-c"]),
        };
        command.arg(&configuration).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Some(Self { child: command.spawn().unwrap(), folder, clock: None, recorder: None })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the other daemon's log:\n{}", self.log());
        }
    }
}

/// A key file of ours with the keys of [`Peer`], and the lines that name it.
pub struct Keys(TempDir);

impl Keys {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("timeball.keys");
        fs::write(&path, Kind::Chronyd.keys()).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        Self(folder)
    }

    pub fn lines(&self) -> String {
        format!("[keys]\nfile = \"{}\"\n", self.0.path().join("timeball.keys").display())
    }
}

/// A lab in which groups can be sent to: without a route the kernel knows no interface for them.
pub fn lab() -> Lab {
    let lab = Lab::new(&[]);
    for mut ip in [lab.on_server("ip"), lab.on_client("ip")] {
        run_well(ip.args(["route", "add", "224.0.0.0/4", "dev", "tb0"]));
    }
    lab
}

/// Our daemon on kernel sockets, which never touches the clock, with this configuration and flags.
#[track_caller]
pub fn timeball(lab: &Lab, flags: &[&str], configuration: &str) -> Daemon {
    Daemon::start_with(lab, &[], flags, configuration)
}

/// Tries for as long as it takes these daemons.
#[track_caller]
pub fn in_time<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(instead) => assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}: {instead}"),
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// What a server says of itself, as `timeball query` sees it from our namespace.
pub fn query(lab: &Lab, server: &str) -> Option<Value> {
    let output = run(lab.on_server(TIMEBALL).args(["query", "--json", server]));
    serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
}

/// Waits until our daemon follows `remote` (as `ADDRESS:PORT`), in this mode and with an offset of zero, and serves its time
/// at this stratum. Returns the source's row.
#[track_caller]
pub fn follows(daemon: &Daemon, mode: &str, remote: &str, stratum: u64) -> Value {
    in_time(&format!("we follow {remote} as {mode}"), || {
        let report = daemon.sources();
        let rows = report["sources"].as_array().unwrap();
        let row = rows.iter().find(|row| row["address"] == remote && row["mode"] == mode);
        let row = row.filter(|row| row["sign"] == "*").ok_or_else(|| report.to_string())?;
        let status = daemon.status();
        let clock = &status["clock"];
        let is_served =
            clock["source"] == "sources" && clock["stratum"] == stratum + 1 && row["stratum"] == stratum;
        if !is_served {
            return Err(format!("{clock} {row}"));
        }
        let offset = row["offset_seconds"].as_f64().unwrap();
        assert!(offset.abs() < OFFSET_SECONDS_MAX, "{row}");
        Ok(row.clone())
    })
}

/// Waits until the other daemon tells that it follows us, at this stratum of its own. `ours`: as reference ids have it.
#[track_caller]
pub fn is_followed(lab: &Lab, server: &str, ours: &str, stratum: u64) {
    in_time("the other daemon follows us", || {
        let told = query(lab, server).ok_or("it is not synchronised")?;
        match told["reference_id"] == ours && told["stratum"] == stratum {
            true => Ok(()),
            false => Err(told.to_string()),
        }
    });
}
