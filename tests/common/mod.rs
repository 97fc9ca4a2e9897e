//! What the end-to-end tests share: a lab of two network namespaces, a daemon that runs in it, other projects' NTP
//! programs, and the one place that knows the shape of `timeball status --json`.
//!
//! Everything a test makes is removed when its value is dropped, also when the test fails. What cannot run on this
//! machine says `SKIP test: reason` on standard error, where `scripts/test` counts it.
#![allow(dead_code, unreachable_pub, reason = "each test crate uses a part of this module")]

pub mod asker;
pub mod peers;
pub mod random;
pub mod recorder;
pub mod vpn;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// The server's and the client's addresses in every lab (`scripts/lab`).
pub const SERVER: [&str; 2] = ["10.99.1.1", "fd99:1::1"];

pub const TIMEBALL: &str = env!("CARGO_BIN_EXE_timeball");

/// How long the daemon may take to serve, to come back after a fault, or to end: generous, as test machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Says that the running test does not, and why. The text goes past libtest's capture, so that it is always seen.
pub fn skip(reason: &str) {
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    let _ = std::io::stderr().write_all(format!("\nSKIP {test}: {reason}\n").as_bytes());
}

/// Whether this process may make network namespaces (root may not in many containers); says SKIP if not.
#[must_use]
pub fn can_have_labs() -> bool {
    let can = Command::new("unshare").args(["--net", "true"]).stderr(Stdio::null()).status();
    let can = can.is_ok_and(|status| status.success());
    if !can {
        skip("needs root, and the right to make network namespaces");
    }
    can
}

/// The path of a file of the project.
pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs a command to its end and returns what it printed.
pub fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a command that has to succeed and returns its standard output.
#[track_caller]
pub fn run_well(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Both output streams as text.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Tries until `attempt` gives a value, for as long as [`PATIENCE`].
#[track_caller]
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A file beside `target/peers/available` lists what `scripts/peers` could get: returns the wrapper of `name`, else SKIP.
#[must_use]
pub fn peer(name: &str) -> Option<PathBuf> {
    let available = fs::read_to_string(project("target/peers/available")).unwrap_or_default();
    let found = available.lines().filter_map(|line| line.split_once('\t')).find(|(peer, _)| *peer == name);
    if found.is_none() {
        skip(&format!("{name} is not there (scripts/peers fetches it)"));
    }
    found.map(|(_, program)| PathBuf::from(program))
}

/// Compiles a BPF program of one function that returns `verdict` whatever it is given. The object goes with the folder.
#[must_use]
pub fn compiled_verdict(section: &str, verdict: i32) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let (source, object) = (folder.path().join("verdict.c"), folder.path().join("verdict.o"));
    let code = format!(
        "__attribute__((section(\"{section}\"), used)) int verdict(void *context) {{ return {verdict}; }}\n"
    );
    fs::write(&source, code).unwrap();
    run_well(Command::new("clang").args(["-O2", "-target", "bpf", "-c"]).arg(&source).arg("-o").arg(&object));
    (folder, object)
}

/// A way for a lab's link to go away, seen from the client.
#[derive(Clone, Copy, Debug)]
pub enum Break {
    /// The client's end is set down.
    OursDown,
    /// The server's end is.
    TheirsDown,
    /// The server's end is, and comes back at once.
    Flap,
    /// The pair is removed.
    Unplug,
}

/// Each way, and a word of what is said of it.
pub const BREAKS: [(Break, &str); 4] = [
    (Break::OursDown, "has no link"),
    (Break::TheirsDown, "has no link"),
    (Break::Flap, "lost its link for a while"),
    (Break::Unplug, "is gone"),
];

/// Two network namespaces joined by a veth pair, removed on drop.
pub struct Lab {
    name: String,
}

impl Lab {
    /// Makes a lab under a name of its own; `options` are those of `scripts/lab up`.
    pub fn new(options: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let lab = Self { name };
        lab.manage("up", options);
        lab
    }

    /// Runs a command of `scripts/lab` on this lab.
    #[track_caller]
    pub fn manage(&self, command: &str, options: &[&str]) {
        run_well(
            Command::new(project("scripts/lab")).arg(command).args(["--name", &self.name]).args(options),
        );
    }

    /// A command that will run in the server's namespace.
    pub fn on_server(&self, program: impl AsRef<Path>) -> Command {
        self.within('s', program.as_ref())
    }

    /// A command that will run in the client's namespace, without the right to set the clock.
    pub fn on_client(&self, program: impl AsRef<Path>) -> Command {
        let mut command = self.within('c', Path::new("setpriv"));
        command.args(["--bounding-set", "-sys_time", "--inh-caps", "-sys_time", "--"]);
        command.arg(program.as_ref());
        command
    }

    fn within(&self, side: char, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("tb-{}-{side}", self.name)]).arg(program);
        command
    }

    /// The file that stands for the client's network namespace.
    pub fn client_namespace(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/tb-{}-c", self.name))
    }

    /// The file that stands for the server's.
    pub fn server_namespace(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/tb-{}-s", self.name))
    }

    /// Runs `ip ARGUMENTS` on the server, which has to succeed.
    #[track_caller]
    pub fn server_ip(&self, arguments: &str) -> String {
        run_well(self.on_server("ip").args(arguments.split_whitespace()))
    }

    /// Takes the link away.
    #[track_caller]
    pub fn break_link(&self, way: Break) {
        let set = |mut ip: Command, state| {
            run_well(ip.args(["link", "set", "tb0", state]));
        };
        match way {
            Break::OursDown => set(self.on_client("ip"), "down"),
            Break::TheirsDown => set(self.on_server("ip"), "down"),
            Break::Flap => {
                set(self.on_server("ip"), "down");
                set(self.on_server("ip"), "up");
            }
            Break::Unplug => self.manage("unplug", &[]),
        }
    }

    /// Whether an XDP program sits on the server's interface.
    pub fn has_xdp_program(&self) -> bool {
        let shown: Value = serde_json::from_str(&self.server_ip("-j -d link show dev tb0")).unwrap();
        shown[0].get("xdp").is_some()
    }

    /// Sends the cases of `scripts/packet-probe.py` that `options` choose, from the client.
    pub fn probe(&self, options: &[&str]) -> Vec<Probed> {
        probe(&mut self.on_client(project("scripts/packet-probe.py")), options)
    }

    /// The same from the server's own namespace, over its loopback.
    pub fn probe_from_server(&self, options: &[&str]) -> Vec<Probed> {
        probe(&mut self.on_server(project("scripts/packet-probe.py")), options)
    }

    /// Whether an ordinary version 4 request of the client gets a right answer from `server`.
    pub fn answers(&self, server: &str) -> bool {
        self.probe(&["--udp", "--server", server, "--case", "version-4"])[0].is_ok
    }

    /// Waits until `server` answers the client, and returns how many requests stayed without answer meanwhile.
    #[track_caller]
    pub fn answers_eventually(&self, server: &str) -> u32 {
        let mut lost = 0;
        eventually(&format!("{server} answers"), || {
            let answered = self.answers(server);
            lost += u32::from(!answered);
            answered.then_some(lost)
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.manage("down", &[]);
    }
}

/// One case of `scripts/packet-probe.py`.
#[derive(Debug)]
pub struct Probed {
    /// The case's name.
    pub case: String,
    /// Whether it was answered as expected, and rightly.
    pub is_ok: bool,
    /// The UDP payload of the reply.
    pub reply: Option<Vec<u8>>,
    /// All that the script reported, for messages.
    pub report: Value,
}

#[track_caller]
fn probe(command: &mut Command, options: &[&str]) -> Vec<Probed> {
    let output = run(command.args(options).arg("--json"));
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("packet-probe.py {options:?}: {error}\n{}", text(&output)));
    let cases = report.as_array().unwrap().iter().map(|case| Probed {
        case: case["case"].as_str().unwrap().to_owned(),
        is_ok: case["ok"].as_bool().unwrap(),
        reply: case["reply"].as_str().map(from_hex),
        report: case.clone(),
    });
    cases.collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Fails with the list of cases that were not answered as they should be.
#[track_caller]
pub fn all_ok(cases: &[Probed]) {
    assert!(cases.len() > 1, "the probe has its cases");
    let wrong: Vec<_> = cases.iter().filter(|case| !case.is_ok).map(|case| case.report.to_string()).collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// How the daemon is to carry packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// AF_XDP, program in the driver.
    Driver,
    /// AF_XDP, program in the kernel's generic hook.
    Skb,
    /// Kernel sockets.
    Socket,
}

impl Carrier {
    /// The configuration that forces this carrier, with the VLANs to serve (`""` for none).
    pub fn configuration(self, vlan: &str) -> String {
        let (datapath, mode) = match self {
            Self::Driver => ("af-xdp", "driver"),
            Self::Skb => ("af-xdp", "skb"),
            Self::Socket => ("socket", "auto"),
        };
        let vlans = if vlan.is_empty() { String::new() } else { format!("vlans = [\"{vlan}\"]\n") };
        format!("datapath = \"{datapath}\"\n\n[[interface]]\nname = \"tb0\"\nxdp-mode = \"{mode}\"\n{vlans}")
    }
}

/// Replies by path, summed over the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replies {
    /// Sent through AF_XDP rings.
    pub af_xdp: u64,
    /// Sent through kernel sockets.
    pub socket: u64,
}

impl Replies {
    /// Reads the counters of `timeball status --json`.
    #[track_caller]
    fn of_status(status: &Value) -> Self {
        let sum = |path: &str| -> u64 {
            let workers = status["workers"].as_array().expect("status has workers");
            workers.iter().map(|worker| worker[path]["replies"].as_u64().unwrap_or(0)).sum()
        };
        Self { af_xdp: sum("af_xdp"), socket: sum("socket") }
    }
}

/// A running `timeball serve`, stopped on drop, when it has to end well.
pub struct Daemon {
    child: Child,
    folder: TempDir,
}

impl Daemon {
    /// Starts the daemon on the configuration and waits until it serves.
    #[track_caller]
    pub fn start(lab: &Lab, configuration: &str) -> Self {
        Self::start_under(lab, &[], configuration)
    }

    /// The same under another command, such as `setpriv ... --`.
    #[track_caller]
    pub fn start_under(lab: &Lab, wrapper: &[&str], configuration: &str) -> Self {
        Self::start_with(lab, wrapper, &["--local-stratum", "10"], configuration)
    }

    /// The same with flags of its own that say where the time comes from. The wrapper's first words may be
    /// `NAME=VALUE` for the daemon's environment.
    #[track_caller]
    pub fn start_with(lab: &Lab, wrapper: &[&str], reference: &[&str], configuration: &str) -> Self {
        Self::start_by(lab, wrapper, &[&["--no-clock-control"], reference].concat(), configuration)
    }

    /// The same with the right to steer its clock, but not the machine's: what it is preloaded with must give it one of
    /// its own.
    #[track_caller]
    pub fn start_steering(lab: &Lab, environment: &[&str], flags: &[&str], configuration: &str) -> Self {
        let without = ["setpriv", "--bounding-set", "-sys_time", "--inh-caps", "-sys_time", "--"];
        Self::start_by(lab, &[environment, &without].concat(), flags, configuration)
    }

    #[track_caller]
    fn start_by(lab: &Lab, wrapper: &[&str], flags: &[&str], configuration: &str) -> Self {
        Self::start_as(lab.on_server("env"), wrapper, flags, configuration)
    }

    /// The same in a network namespace that `ip netns` knows by this name.
    #[track_caller]
    pub fn start_in(namespace: &str, reference: &[&str], configuration: &str) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, "env"]);
        Self::start_as(command, &[], &[&["--no-clock-control"], reference].concat(), configuration)
    }

    /// Where it is asked.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// `command` is an `env` somewhere.
    #[track_caller]
    fn start_as(mut command: Command, wrapper: &[&str], flags: &[&str], configuration: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        fs::write(folder.path().join("timeball.toml"), configuration).unwrap();
        command.args(wrapper).arg(TIMEBALL).arg("serve").args(flags);
        command.arg("--config").arg(folder.path().join("timeball.toml"));
        command.arg("--socket").arg(folder.path().join("socket"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut daemon = Self { child: command.spawn().unwrap(), folder };
        eventually("the daemon serves", || {
            assert!(daemon.child.try_wait().unwrap().is_none(), "the daemon ended at once");
            daemon.try_status().map(drop)
        });
        daemon
    }

    fn try_status(&self) -> Option<Value> {
        let socket = self.folder.path().join("socket");
        let output = run(Command::new(TIMEBALL).args(["status", "--json", "--socket"]).arg(socket));
        serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
    }

    /// What `timeball status --json` says.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.try_status().expect("the daemon tells its status")
    }

    /// What `timeball status` says to people.
    #[track_caller]
    pub fn status_text(&self) -> String {
        let socket = self.folder.path().join("socket");
        run_well(Command::new(TIMEBALL).args(["status", "--socket"]).arg(socket))
    }

    /// What `timeball sources --json` says.
    #[track_caller]
    pub fn sources(&self) -> Value {
        let socket = self.folder.path().join("socket");
        let told = run_well(Command::new(TIMEBALL).args(["sources", "--json", "--socket"]).arg(socket));
        serde_json::from_str(&told).unwrap()
    }

    /// What `timeball sources` says to people.
    #[track_caller]
    pub fn sources_text(&self) -> String {
        let socket = self.folder.path().join("socket");
        run_well(Command::new(TIMEBALL).args(["sources", "--socket"]).arg(socket))
    }

    /// What `timeball clients --json` says.
    #[track_caller]
    pub fn clients(&self) -> Value {
        let socket = self.folder.path().join("socket");
        let told = run_well(Command::new(TIMEBALL).args(["clients", "--json", "--socket"]).arg(socket));
        serde_json::from_str(&told).unwrap()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops all its threads and returns when they are: the signal alone only asks for it.
    #[track_caller]
    pub fn pause(&self) {
        self.signal("STOP");
        let is_stopped = |task: std::io::Result<fs::DirEntry>| {
            let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            // The state follows the name, which is in parentheses.
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        eventually("all threads are stopped", || {
            let mut tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
            tasks.all(is_stopped).then_some(())
        });
    }

    /// Lets it go on after [`Self::pause`].
    #[track_caller]
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Writes another configuration and lets the daemon read it.
    #[track_caller]
    pub fn reconfigure(&self, configuration: &str) {
        fs::write(self.folder.path().join("timeball.toml"), configuration).unwrap();
        self.signal("HUP");
    }

    #[track_caller]
    fn signal(&self, name: &str) {
        run_well(Command::new("sh").args(["-c", &format!("kill -{name} {}", self.pid())]));
    }

    /// The sum of a counter over all queues; `group` is `counters` (ours) or `kernel` (its `XDP_STATISTICS`).
    #[track_caller]
    pub fn queue_sum(&self, group: &str, name: &str) -> u64 {
        let status = self.status();
        let interfaces = status["interfaces"].as_array().expect("status has interfaces");
        let queues = interfaces.iter().flat_map(|one| one["queues"].as_array().expect("queues"));
        queues.map(|queue| queue[group][name].as_u64().unwrap_or_else(|| panic!("no {name}: {queue}"))).sum()
    }

    /// How often the XDP program came to this verdict.
    #[track_caller]
    pub fn verdicts(&self, name: &str) -> u64 {
        let status = self.status();
        let interfaces = status["interfaces"].as_array().expect("status has interfaces");
        interfaces.iter().map(|one| one["verdicts"][name].as_u64().unwrap_or(0)).sum()
    }

    /// How often requests were refused for this reason, over all workers, on one path (`af_xdp` or `socket`).
    #[track_caller]
    pub fn refusals(&self, path: &str, reason: &str) -> u64 {
        std::thread::sleep(Duration::from_millis(100));
        let status = self.status();
        let workers = status["workers"].as_array().expect("status has workers");
        workers.iter().map(|worker| worker[path]["refusals"][reason].as_u64().unwrap_or(0)).sum()
    }

    /// How many replies went out so far, by path. Counters are published a little after the replies they count.
    #[track_caller]
    pub fn replies(&self) -> Replies {
        std::thread::sleep(Duration::from_millis(100));
        Replies::of_status(&self.status())
    }

    /// Fails unless every frame of every queue is accounted for; returns how many queues there are.
    #[track_caller]
    pub fn queues_in_balance(&self) -> usize {
        let status = self.status();
        let interfaces = status["interfaces"].as_array().expect("status has interfaces");
        let queues: Vec<_> =
            interfaces.iter().flat_map(|one| one["queues"].as_array().expect("queues")).collect();
        for queue in &queues {
            assert_eq!(queue["frames_balanced"], true, "frames were lost: {queue}");
        }
        queues.len()
    }

    /// What the daemon wrote so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Kills the daemon as the kernel's out-of-memory killer would.
    pub fn kill_9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM, waits for the end, and returns the exit status with the log.
    #[track_caller]
    pub fn terminate(mut self) -> (ExitStatus, String) {
        let status = self.stop().expect("the daemon ends on SIGTERM");
        (status, self.log())
    }

    fn stop(&mut self) -> Option<ExitStatus> {
        run(Command::new("sh").args(["-c", &format!("kill -TERM {}", self.child.id())]));
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        None
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A test that ended the daemon itself has judged that; `try_wait` remembers it.
        let ended = self.child.try_wait().unwrap();
        let status = ended.or_else(|| self.stop());
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        } else if ended.is_none() {
            assert!(status.is_some_and(|status| status.success()), "{status:?} on SIGTERM:\n{}", self.log());
        }
    }
}
