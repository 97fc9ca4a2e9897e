//! What the daemon says when it cannot do as told: one clear line, and an exit code that says whose fault it was
//! (2 the user's input, 1 all else); or the socket path, and it says so.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{Carrier, Daemon, Lab, SERVER, can_have_labs, eventually, run, run_well, text};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// Runs `timeball` in the server's namespace for at most 20 seconds, as one that starts to serve would not end.
fn attempt(lab: &Lab, wrapper: &[&str], arguments: &[&str]) -> Output {
    let mut command = lab.on_server("timeout");
    command.arg("20").args(wrapper).arg(env!("CARGO_BIN_EXE_timeball")).args(arguments);
    run(&mut command)
}

/// The exit code is `code` and the last line on standard error names all of `names`.
#[track_caller]
fn says(output: &Output, code: i32, names: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{}", text(output));
    assert!(!stderr.contains("panicked"), "{stderr}");
    let last = stderr.lines().last().expect("a line that says why");
    for name in names {
        assert!(last.contains(name), "the line does not name {name:?}: {last}");
    }
    let errors = stderr.lines().filter(|line| line.to_lowercase().contains("error")).count();
    assert!(errors <= 1, "more than one line of complaint:\n{stderr}");
}

/// A folder with a configuration and room for the status socket.
struct Files {
    folder: TempDir,
}

impl Files {
    fn with(configuration: &str) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("timeball.toml"), configuration).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Arguments that make `serve` read the configuration and keep out of /run.
    fn serve(&self) -> Vec<String> {
        let words = ["serve", "--local-stratum", "10", "--no-clock-control", "--config"];
        let mut arguments: Vec<String> = words.map(str::to_owned).to_vec();
        arguments.extend([self.path("timeball.toml"), "--socket".to_owned(), self.path("socket")]);
        arguments
    }
}

fn attempt_to_serve(lab: &Lab, wrapper: &[&str], configuration: &str) -> (Output, Files) {
    let files = Files::with(configuration);
    let arguments = files.serve();
    let output = attempt(lab, wrapper, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    (output, files)
}

#[test]
fn an_unknown_interface_is_the_users_error() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let files = Files::with("");
    let socket = files.path("socket");
    for command in ["serve", "check"] {
        let mut arguments = vec![command, "--interface", "nosuch0"];
        if command == "serve" {
            arguments.extend(["--local-stratum", "10", "--no-clock-control", "--socket", &socket]);
        }
        says(&attempt(&lab, &[], &arguments), 2, &["nosuch0"]);
    }
}

/// Each wrong configuration, and what the message must name besides the file.
const WRONG: [(&str, &[&str]); 7] = [
    ("datapath = \"warp\"\n", &["datapath", "warp", "af-xdp"]),
    ("datapaht = \"socket\"\n", &["datapaht"]),
    ("[[interface]]\nname = \"tb0\"\nxdp-mode = \"fast\"\n", &["xdp-mode", "fast", "driver"]),
    ("[[interface]]\nname = \"tb0\"\nvlans = [\"5000\"]\n", &["vlans", "5000"]),
    ("[[interface]]\nname = \"an-interface-name-that-is-too-long\"\n", &["name", "too-long"]),
    ("[reference]\nsource = \"local\"\nstratum = 16\n", &["reference.stratum", "16", "15"]),
    ("datapath = \n", &[":1"]), // no TOML: the line is named
];

#[test]
fn a_wrong_configuration_is_the_users_error_and_names_key_and_value() {
    for (configuration, names) in WRONG {
        let files = Files::with(configuration);
        let path = files.path("timeball.toml");
        let mut names = names.to_vec();
        names.push(&path);
        for command in ["check", "serve"] {
            let output = run(Command::new(env!("CARGO_BIN_EXE_timeball")).args([command, "--config", &path]));
            says(&output, 2, &names);
        }
    }
}

#[test]
fn a_key_that_the_key_file_lacks_is_named_with_those_that_it_has() {
    let files = Files::with("");
    let (path, keys) = (files.path("timeball.toml"), files.path("keys"));
    fs::write(&keys, "1 SHA1 secret\n3 SHA256 secret\n").unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
    let peer = "[[server]]\naddress = \"192.0.2.1\"\nkey = 3\n[[peer]]\naddress = \"192.0.2.7\"\nkey = 7\n";
    fs::write(&path, format!("[keys]\nfile = \"{keys}\"\n{peer}")).unwrap();
    let output = run(Command::new(env!("CARGO_BIN_EXE_timeball")).args(["check", "--config", &path]));
    says(&output, 2, &["peer.key = 7, for 192.0.2.7", &keys, "which has 1, 3"]);
}

#[test]
fn a_missing_configuration_is_the_users_error() {
    let files = Files::with("");
    let path = files.path("absent.toml");
    let output = run(Command::new(env!("CARGO_BIN_EXE_timeball")).args(["check", "--config", &path]));
    says(&output, 2, &[&path]);
}

#[test]
fn a_right_configuration_is_checked_without_an_interface() {
    let files = Files::with("datapath = \"socket\"\n\n[reference]\nsource = \"local\"\nstratum = 3\n");
    let path = files.path("timeball.toml");
    let output = run(Command::new(env!("CARGO_BIN_EXE_timeball")).args(["check", "--config", &path]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("socket"), "the effective configuration is shown:\n{}", text(&output));
}

#[test]
fn without_privilege_it_says_so() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let wrapper = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--"];
    let (output, _files) = attempt_to_serve(&lab, &wrapper, &Carrier::Driver.configuration(""));
    says(&output, 1, &["CAP_"]);
}

/// Takes UDP port 123 for itself until dropped, as another time daemon would.
struct PortTaken(Child);

impl PortTaken {
    fn new(lab: &Lab) -> Self {
        let code = "\
import socket, time
taken = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
taken.bind(('::', 123))
time.sleep(60)";
        let child = lab.on_server("python3").args(["-c", code]).stdin(Stdio::null()).spawn().unwrap();
        let taken = Self(child);
        eventually("port 123 is taken", || port_is_bound(lab).then_some(()));
        taken
    }
}

impl Drop for PortTaken {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn port_is_bound(lab: &Lab) -> bool {
    !run_well(lab.on_server("ss").args(["-Hlun", "sport", "=", "123"])).is_empty()
}

#[test]
fn a_port_in_use_is_named() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let _taken = PortTaken::new(&lab);
    let (output, _files) = attempt_to_serve(&lab, &[], &Carrier::Driver.configuration(""));
    says(&output, 1, &["123", "in use"]);
    assert!(!lab.has_xdp_program(), "nothing is left behind by a start that failed");
}

#[test]
fn a_second_daemon_on_the_interface_is_refused_and_the_first_goes_on() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let first = Daemon::start(&lab, &Carrier::Driver.configuration(""));
    let (output, _files) = attempt_to_serve(&lab, &[], &Carrier::Driver.configuration(""));
    says(&output, 1, &["in use"]);
    let before = first.replies().af_xdp;
    assert!(lab.answers(SERVER[0]));
    assert!(first.replies().af_xdp > before, "the first daemon still answers through AF_XDP");
}

#[test]
fn too_little_memory_to_lock_means_sockets_and_is_said() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let wrapper = [
        "setpriv",
        "--bounding-set",
        "-ipc_lock,-sys_resource",
        "--inh-caps",
        "-ipc_lock,-sys_resource",
        "--",
        "sh",
        "-c",
        "ulimit -l 64; exec \"$@\"",
        "sh",
    ];
    let daemon =
        Daemon::start_under(&lab, &wrapper, "datapath = \"auto\"\n\n[[interface]]\nname = \"tb0\"\n");
    for server in SERVER {
        let before = daemon.replies();
        assert!(lab.answers(server));
        let after = daemon.replies();
        assert!(after.socket > before.socket && after.af_xdp == before.af_xdp, "{before:?} {after:?}");
    }
    let log = daemon.log().to_lowercase();
    assert!(log.contains("memlock"), "the log says why: {log}");
    assert!(!lab.has_xdp_program(), "no program without rings behind it");
}

#[test]
fn asking_no_daemon_says_which_socket() {
    let files = Files::with("");
    let socket = files.path("absent");
    for command in ["status", "clients"] {
        let output = run(Command::new(env!("CARGO_BIN_EXE_timeball")).args([command, "--socket", &socket]));
        says(&output, 1, &[&socket]);
    }
}

#[test]
fn unknown_flags_are_the_users_error() {
    let output = run(Command::new(env!("CARGO_BIN_EXE_timeball")).args(["serve", "--no-such-flag"]));
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}
