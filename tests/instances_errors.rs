//! Instances whose network cannot be had: each is said with file, line, key and value, and nothing is started.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::vpn::Vpns;
use common::{can_have_labs, run, run_well, text};
use std::fs;
use std::process::Command;
use tempfile::TempDir;

/// `timeball check` and `serve` on a configuration, each of which has to fail with this code and text.
#[track_caller]
fn is_refused(vpns: &Vpns, wrapper: &[&str], configuration: &str, code: i32, expected: &str) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("timeball.toml");
    fs::write(&file, configuration).unwrap();
    for command in ["check", "serve"] {
        let mut timeball = vpns.on(&vpns.home(), "env");
        timeball.args(wrapper).arg(env!("CARGO_BIN_EXE_timeball")).arg(command).arg("--config").arg(&file);
        timeball.arg("--socket").arg(folder.path().join("socket"));
        let output = run(&mut timeball);
        assert_eq!(output.status.code(), Some(code), "{command}: {}", text(&output));
        let shown = text(&output).replace(&format!("{}/", folder.path().display()), "");
        assert!(shown.contains(expected), "{command}: {expected}\n{shown}");
    }
}

#[test]
fn what_is_no_network_is_refused_with_its_place() {
    if !can_have_labs() {
        return;
    }
    let vpns = Vpns::new();
    let instance = |name: &str, key: &str, value: &str| {
        format!("[[instance]]\nname = \"{name}\"\n{key} = \"{value}\"\n")
    };
    let gone = vpns.host("red", "b");
    is_refused(
        &vpns,
        &[],
        &instance("red", "netns", "no-such"),
        2,
        "timeball.toml:3: instance.netns = \"no-such\": must be a network namespace that exists; `ip netns` lists: ",
    );
    run_well(Command::new("ip").args(["netns", "del", &gone]));
    is_refused(&vpns, &[], &instance("red", "netns", &gone), 2, "must be a network namespace that exists");
    is_refused(
        &vpns,
        &[],
        &instance("red", "netns", "/proc/self/status"),
        2,
        "timeball.toml:3: instance.netns = \"/proc/self/status\": must be a network namespace, and this file is none",
    );
    let pe = vpns.host("red", "pe");
    let file = vpns.file("red", "pe").display().to_string();
    is_refused(
        &vpns,
        &[],
        &[instance("red", "netns", &pe), instance("blue", "netns", &file)].concat(),
        2,
        "instances red and blue are in the same network namespace",
    );
    is_refused(
        &vpns,
        &[],
        &format!("{}[[interface]]\nname = \"eth0\"\ninstance = \"red\"\n{}", vpns.instances("pe"), ""),
        2,
        "interface eth0 does not exist in instance red; there are: ",
    );
    is_refused(
        &vpns,
        &[],
        &instance("red", "vrf", "no-such"),
        2,
        "timeball.toml:3: instance.vrf = \"no-such\": must be a VRF device that exists; there are: none",
    );
    let without = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", "--"];
    is_refused(&vpns, &without, &instance("red", "netns", &pe), 1, "timeball.toml:3: instance.netns = ");
    is_refused(
        &vpns,
        &without,
        &instance("red", "netns", &pe),
        1,
        "entering a network namespace needs CAP_SYS_ADMIN or root",
    );
}
