//! A log that cannot be written costs no reply, no answer to `timeball status`, and no clean end.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{Lab, SERVER, can_have_labs, eventually, run_well};
use std::fs::{File, OpenOptions};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Ends what it holds, also when the test fails.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serves_and_ends_with(log: File, rounds: u32) {
    let lab = Lab::new(&[]);
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("socket");
    let mut command = lab.on_server(env!("CARGO_BIN_EXE_timeball"));
    command.args(["serve", "--interface", "tb0", "--local-stratum", "10", "--no-clock-control", "--socket"]);
    let mut daemon = Started(command.arg(&socket).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    for _ in 0..rounds {
        lab.server_ip("addr add 10.99.1.8/24 dev tb0");
        lab.server_ip("addr del 10.99.1.8/24 dev tb0");
    }
    for server in SERVER {
        eventually("an answer", || lab.answers(server).then_some(()));
    }
    run_well(Command::new(env!("CARGO_BIN_EXE_timeball")).arg("status").arg("--socket").arg(&socket));
    run_well(Command::new("kill").arg(daemon.0.id().to_string()));
    let status = eventually("the end", || daemon.0.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

#[test]
fn a_full_disk_under_the_log_costs_nothing_else() {
    if can_have_labs() {
        serves_and_ends_with(OpenOptions::new().write(true).open("/dev/full").unwrap(), 3);
    }
}

#[test]
fn a_log_that_nobody_reads_costs_nothing_else() {
    if can_have_labs() {
        let folder = TempDir::new().unwrap();
        let fifo = folder.path().join("log");
        run_well(Command::new("mkfifo").arg(&fifo));
        // Open for both, so that opening waits for nobody; nobody reads. Filled, so that the first line finds no room.
        let log = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        let mut filler = Command::new("timeout");
        filler.args(["1", "dd", "if=/dev/zero", "bs=4096", "count=64"]).stdout(log.try_clone().unwrap());
        filler.stderr(Stdio::null()).status().unwrap();
        serves_and_ends_with(log, 3);
    }
}
