//! What is served follows what the kernel says of its clock (`--reference system`), and is nothing without a
//! reference. `tests/shim/adjtimex.c` speaks for the kernel.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::asker::{Asker, CLIENT, Reply};
use common::{Carrier, Daemon, Lab, SERVER, can_have_labs, eventually, peer, project, run, run_well, text};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A change has to be on the wire this soon after the kernel knows it.
const REACTION: Duration = Duration::from_secs(2);

/// `state maxerror_us tai status`, see the shim.
const SYNCHRONISED: &str = "0 1500 37 0x2001";
const UNSYNCHRONISED: &str = "5 16000000 0 0x40";

/// What the kernel is made to say.
struct Kernel {
    folder: TempDir,
    shim: PathBuf,
}

impl Kernel {
    fn saying(state: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let shim = folder.path().join("adjtimex.so");
        let source = project("tests/shim/adjtimex.c");
        run_well(Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(source));
        let kernel = Self { folder, shim };
        kernel.says(state);
        kernel
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn says(&self, state: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, state).unwrap();
        fs::rename(new, self.state()).unwrap();
    }

    /// A daemon that believes this kernel.
    fn daemon(&self, lab: &Lab, carrier: Carrier) -> Daemon {
        let preload = format!("LD_PRELOAD={}", self.shim.display());
        let state = format!("TIMEBALL_TEST_ADJTIMEX={}", self.state().display());
        let reference = ["--reference", "system"];
        Daemon::start_with(lab, &[&preload, &state], &reference, &carrier.configuration(""))
    }
}

/// Asks until the reply is `wanted`; fails if that takes longer than [`REACTION`].
#[track_caller]
fn soon(asker: &Asker, what: &str, wanted: impl Fn(&Reply) -> bool) -> Reply {
    let changed = Instant::now();
    loop {
        let reply = asker.ask();
        if let Some(reply) = reply.filter(&wanted) {
            return reply;
        }
        assert!(changed.elapsed() < REACTION, "{what} is not on the wire: {reply:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn lines_with(daemon: &Daemon, words: &str) -> usize {
    daemon.log().lines().filter(|line| line.contains(words)).count()
}

/// Synchronised, leap seconds, unsynchronised, back, unreadable, back: each seen on the wire, in the status and once
/// in the log.
#[track_caller]
fn the_served_clock_is_the_kernels(carrier: Carrier) {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let kernel = Kernel::saying(SYNCHRONISED);
    let daemon = kernel.daemon(&lab, carrier);
    let asker = Asker::new(&lab, CLIENT, SERVER[0]);

    let reply = asker.ask().expect("an answer");
    assert_eq!((reply.leap, reply.stratum, reply.kiss()), (0, 3, None));
    // 1500 us are 98.3 units of 2^-16 s, rounded up; the state is at most some seconds old, at 0.98 units a second.
    assert!((99..=103).contains(&reply.root_dispersion), "{reply:?}");
    assert_eq!(daemon.status()["clock"]["source"], "system");

    kernel.says("1 2000 37 0x11");
    let insert = soon(&asker, "leap insert", |reply| reply.leap == 1);
    assert_eq!(insert.stratum, 3);
    assert!((132..=136).contains(&insert.root_dispersion), "2000 us: {insert:?}");
    kernel.says("2 2000 37 0x21");
    soon(&asker, "leap delete", |reply| reply.leap == 2 && reply.stratum == 3);
    assert_eq!(daemon.status()["clock"]["leap"], "delete");

    kernel.says(UNSYNCHRONISED);
    let none = soon(&asker, "unsynchronised", |reply| reply.leap == 3);
    assert_eq!((none.stratum, none.kiss()), (0, None), "0 on the wire is 16, and no kiss");
    let clock = daemon.status()["clock"].clone();
    assert_eq!((clock["stratum"].as_u64(), clock["leap"].as_str()), (Some(16), Some("unsynchronised")));
    // Longer than the daemon needs to look at the kernel again.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(lines_with(&daemon, "rtcsync"), 1, "{}", daemon.log());

    kernel.says(SYNCHRONISED);
    soon(&asker, "synchronised again", |reply| reply.leap == 0 && reply.stratum == 3);
    assert_eq!(lines_with(&daemon, "the clock is synchronised"), 1, "{}", daemon.log());

    fs::remove_file(kernel.state()).unwrap();
    soon(&asker, "unreadable", |reply| (reply.leap, reply.stratum) == (3, 0));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(lines_with(&daemon, "adjtimex failed"), 1, "{}", daemon.log());
    kernel.says(SYNCHRONISED);
    soon(&asker, "readable again", |reply| (reply.leap, reply.stratum) == (0, 3));

    let replies = daemon.replies();
    let (used, unused) = match carrier {
        Carrier::Socket => (replies.socket, replies.af_xdp),
        _ => (replies.af_xdp, replies.socket),
    };
    assert!(used >= 7 && unused == 0, "{replies:?}");
}

#[test]
fn the_served_clock_is_the_kernels_over_af_xdp() {
    the_served_clock_is_the_kernels(Carrier::Driver);
}

#[test]
fn the_served_clock_is_the_kernels_over_sockets() {
    the_served_clock_is_the_kernels(Carrier::Socket);
}

#[test]
fn root_dispersion_grows_at_15_ppm_between_two_looks_at_the_kernel() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    // 1503 us are 98.50 units of 2^-16 s, and 15 ppm 0.98 units a second: about half a second after each of its
    // looks, one a second, what the daemon serves grows from 99 to 100.
    let kernel = Kernel::saying("0 1503 37 0x2001");
    let _daemon = kernel.daemon(&lab, Carrier::Driver);
    let asker = Asker::new(&lab, CLIENT, SERVER[0]);
    let began = Instant::now();
    let mut seen = BTreeSet::new();
    while began.elapsed() < Duration::from_millis(2500) {
        seen.extend(asker.ask().map(|reply| reply.root_dispersion));
        std::thread::sleep(Duration::from_millis(20));
    }
    // A look that came late lets it grow on.
    assert!(
        seen.contains(&99) && seen.contains(&100) && seen.iter().all(|units| (99..=102).contains(units)),
        "{seen:?}"
    );
}

#[test]
fn without_a_reference_stratum_16_is_served_and_said_once() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let daemon = Daemon::start_with(&lab, &[], &[], &Carrier::Driver.configuration(""));
    let reply = Asker::new(&lab, CLIENT, SERVER[0]).ask().expect("an answer all the same");
    assert_eq!((reply.leap, reply.stratum, reply.kiss()), (3, 0, None));
    assert_eq!(daemon.status()["clock"]["stratum"], 16);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(lines_with(&daemon, "no time reference is configured"), 1, "{}", daemon.log());
}

/// What `chronyd -Q` prints after at most `seconds`.
fn chronyd(lab: &Lab, program: &Path, seconds: &str) -> String {
    let folder = TempDir::new().unwrap();
    let configuration = folder.path().join("chrony.conf");
    fs::write(&configuration, format!("server {} iburst maxsamples 1\ncmdport 0\n", SERVER[0])).unwrap();
    let output =
        run(lab.on_client(program).args(["-Q", "-t", seconds, "-u", "root", "-f"]).arg(configuration));
    text(&output)
}

#[test]
fn chronyd_refuses_us_unsynchronised_and_takes_us_synchronised() {
    if !can_have_labs() {
        return;
    }
    let Some(program) = peer("chronyd") else { return };
    let lab = Lab::new(&[]);
    let kernel = Kernel::saying(UNSYNCHRONISED);
    let daemon = kernel.daemon(&lab, Carrier::Driver);
    let told = chronyd(&lab, &program, "3");
    assert!(told.contains("Timeout reached") && !told.contains("System clock wrong by"), "{told}");
    assert!(daemon.replies().af_xdp >= 1, "it was answered, and did not like the answer");
    kernel.says(SYNCHRONISED);
    eventually("the daemon sees it", || (daemon.status()["clock"]["stratum"] == 3).then_some(()));
    let told = chronyd(&lab, &program, "5");
    assert!(told.contains("System clock wrong by"), "{told}");
}

/// The exit code, standard output and standard error of `timeball query`.
fn query(lab: &Lab, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = run(lab.on_client(env!("CARGO_BIN_EXE_timeball")).arg("query").args(arguments));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn query_fails(lab: &Lab, names: &[&str]) {
    let (code, output, error) = query(lab, &[SERVER[0]]);
    assert_eq!((code, &*output, error.lines().count()), (Some(1), "", 1), "{error}");
    for name in names {
        assert!(error.contains(name), "the line does not name {name:?}: {error}");
    }
}

#[test]
fn query_says_in_one_line_why_it_has_no_answer() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    query_fails(&lab, &[SERVER[0]]);
    let kernel = Kernel::saying(UNSYNCHRONISED);
    let unsynchronised = kernel.daemon(&lab, Carrier::Driver);
    query_fails(&lab, &[SERVER[0], "not synchronised"]);
    drop(unsynchronised);
    let silent = format!("{}\n[access]\ndrop = [\"10.99.1.2\"]\n", Carrier::Driver.configuration(""));
    let silent = Daemon::start(&lab, &silent);
    query_fails(&lab, &[SERVER[0], "did not answer within 3 s"]);
    drop(silent);
    let denying =
        format!("kod = true\n{}\n[access]\ndeny = [\"10.99.1.2\"]\n", Carrier::Driver.configuration(""));
    let _daemon = Daemon::start(&lab, &denying);
    query_fails(&lab, &[SERVER[0], "DENY"]);
}

/// Asks `server` by `timeball query --json` and checks what has to hold of any server on this machine.
#[track_caller]
fn query_well(lab: &Lab, stratum: u64) -> serde_json::Value {
    let (code, output, error) = query(lab, &[SERVER[0], "--json"]);
    assert_eq!((code, &*error), (Some(0), ""), "{output}");
    let told: serde_json::Value = serde_json::from_str(&output).unwrap();
    let seconds = |name: &str| told[name].as_f64().unwrap_or_else(|| panic!("no {name}: {told}"));
    // One machine, one clock. A busy one may be slow, but not half a round trip wrong.
    assert!(seconds("offset_seconds").abs() <= seconds("delay_seconds") / 2.0 + 1e-6, "{told}");
    assert!((0.0..0.05).contains(&seconds("delay_seconds")), "{told}");
    assert!((0.0..0.05).contains(&seconds("turnaround_seconds")), "{told}");
    assert_eq!((told["stratum"].as_u64(), told["leap"].as_str()), (Some(stratum), Some("none")), "{told}");
    assert_eq!(
        (told["version"].as_u64(), told["server"].as_str()),
        (Some(4), Some("10.99.1.1:123")),
        "{told}"
    );
    let (code, table, _) = query(lab, &[SERVER[0]]);
    assert!(code == Some(0) && table.contains("10.99.1.1:123") && table.contains("stratum"), "{table}");
    told
}

#[test]
fn query_reads_our_fields() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let kernel = Kernel::saying(SYNCHRONISED);
    let _daemon = kernel.daemon(&lab, Carrier::Driver);
    let told = query_well(&lab, 3);
    let dispersion = told["root_dispersion_seconds"].as_f64().unwrap();
    assert!((0.0015..0.0016).contains(&dispersion), "{told}");
    assert_eq!(told["root_delay_seconds"], 0.0);
    assert!((0.0..3.0).contains(&told["reference_age_seconds"].as_f64().unwrap()), "{told}");
}

#[test]
fn query_reads_chronyds_fields() {
    if !can_have_labs() {
        return;
    }
    let Some(program) = peer("chronyd") else { return };
    let lab = Lab::new(&[]);
    let folder = TempDir::new().unwrap();
    let configuration = folder.path().join("chrony.conf");
    let pid_file = folder.path().join("pid");
    let lines = format!("local stratum 7\nallow\ncmdport 0\npidfile {}\n", pid_file.display());
    fs::write(&configuration, lines).unwrap();
    let mut server = lab.on_server(program);
    server.args(["-x", "-n", "-u", "root", "-f"]).arg(&configuration);
    let mut server = server.stdout(std::process::Stdio::null()).spawn().unwrap();
    let answered = std::panic::catch_unwind(|| {
        eventually("chronyd serves", || (query(&lab, &[SERVER[0]]).0 == Some(0)).then_some(()));
        query_well(&lab, 7);
    });
    server.kill().unwrap();
    server.wait().unwrap();
    if let Err(panic) = answered {
        std::panic::resume_unwind(panic);
    }
}
