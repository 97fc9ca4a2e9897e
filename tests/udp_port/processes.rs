//! What needs another process, another user, another network namespace, or a kernel that knows less.
//!
//! The `child_*` tests are the other processes' programs: this binary again, with one of them asked for by name.

use super::*;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use timeball::sys::process::{Capability, missing_capabilities};

#[test]
fn a_second_owner_of_the_port_is_detected() {
    let port_number = free_port("127.0.1.41");
    let (mut group, _ports) = UdpGroup::new(port_number, 2, UdpOptions::default());
    let mut sync = || {
        let mut report = group.sync_addresses(&[local("127.0.1.41"), local("127.0.1.42")]);
        // The second address is served whatever becomes of the first.
        assert!(report.failed.len() <= 1 && group.addresses().any(|address| address == local("127.0.1.42")));
        report.failed.pop()
    };
    let owner = StdSocket::bind(("127.0.1.41", port_number)).unwrap();
    assert!(matches!(sync(), Some((_, OpenError::AddressInUse(_)))));
    drop(owner);
    let other = Other::start("processes::child_holds_an_address", |command| {
        command.env("TIMEBALL_TEST_PORT", port_number.to_string());
    });
    assert!(matches!(sync(), Some((_, OpenError::AddressInUse(_)))));
    other.finish();
    eventually(|| sync().is_none());
}

#[test]
#[ignore = "run by a_second_owner_of_the_port_is_detected"]
fn child_holds_an_address() {
    let Ok(port_number) = std::env::var("TIMEBALL_TEST_PORT") else { return };
    // Two workers: the sockets of this process are a SO_REUSEPORT group.
    let (_group, _ports) = serve(port_number.parse().unwrap(), &["127.0.1.41"], 2);
    say("ready");
    wait_for_parent();
}

/// In a network namespace of its own, which ends with the process.
#[test]
fn a_link_local_address_is_served_on_its_interface() {
    if missing_root() {
        return println!("SKIP: making a network namespace needs root");
    }
    let script = "ip link set lo up && ip link add tb0 type veth peer name tb1 && \
        ip address add fe80::1/64 dev tb0 nodad && ip address add fe80::2/64 dev tb1 nodad && \
        ip link set tb0 up && ip link set tb1 up && exec \"$@\"";
    let mut other = Other::start_program(Path::new("unshare"), |command| {
        command.args(["--net", "sh", "-ec", script, "sh"]).arg(std::env::current_exe().unwrap());
        command
            .args(harness_arguments("processes::child_serves_link_local"))
            .env("TIMEBALL_TEST_PORT", "123");
    });
    assert_eq!(other.line(), "from fe80::2 of interface tb0, reply from fe80::1 of interface tb1");
    other.finish();
}

#[test]
#[ignore = "run by a_link_local_address_is_served_on_its_interface"]
fn child_serves_link_local() {
    if std::env::var_os("TIMEBALL_TEST_PORT").is_none() {
        return;
    }
    say("ready");
    // Resolving a name with a scope tells the interface's number.
    let [tb0, tb1] =
        ["fe80::1%tb0", "fe80::2%tb1"].map(|name| (name, 0).to_socket_addrs().unwrap().next().unwrap());
    let scope = |address: SocketAddr| match address {
        SocketAddr::V6(address) => address.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    let interface = |address| if scope(address) == scope(tb0) { "tb0" } else { "tb1" };
    let (mut group, mut ports) = UdpGroup::new(123, 1, UdpOptions::default());
    let report = group.sync_addresses(&[LocalAddress::new(tb0.ip(), scope(tb0))]);
    assert!(report.failed.is_empty() && ports[0].apply_changes(), "{report:?}");
    let client = StdSocket::bind(tb1).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
        .send_to(b"through the cable", SocketAddrV6::new("fe80::1".parse().unwrap(), 123, 0, scope(tb1)))
        .unwrap();
    let mut batch = Batch::new();
    assert_eq!(echo(&mut ports[0], &mut batch), 1);
    let source = batch.datagrams().next().unwrap().source();
    let (_, reply) = client.recv_from(&mut [0; 64]).unwrap();
    say(&format!(
        "from {} of interface {}, reply from {} of interface {}",
        source.ip(),
        interface(source),
        reply.ip(),
        interface(reply)
    ));
}

#[test]
fn an_unprivileged_user_is_told_what_is_missing() {
    let start = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if start.trim().parse::<u16>().unwrap() <= 123 {
        return println!("SKIP: here everybody may bind port 123");
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = directory.path().join("udp_port");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut other = Other::start_program(&program, |command| {
        command.args(harness_arguments("processes::child_has_no_privilege")).env("TIMEBALL_TEST_PORT", "123");
        let nobody = 65_534;
        // Without root we are unprivileged as it is.
        if missing_root() {
            command
        } else {
            command.current_dir("/").uid(nobody).gid(nobody)
        };
    });
    assert_eq!(other.line(), "UDP port 123 of 127.0.1.81 needs CAP_NET_BIND_SERVICE or root");
    other.finish();
}

#[test]
#[ignore = "run by an_unprivileged_user_is_told_what_is_missing"]
fn child_has_no_privilege() {
    if std::env::var_os("TIMEBALL_TEST_PORT").is_none() {
        return;
    }
    let (mut group, _ports) = UdpGroup::new(123, 1, UdpOptions::default());
    say("ready");
    say(&group.sync_addresses(&[local("127.0.1.81")]).failed[0].1.to_string());
    wait_for_parent();
}

fn missing_root() -> bool {
    !missing_capabilities(&[Capability::NetBindService]).unwrap().is_empty()
}

#[test]
fn the_clock_state_can_be_injected() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let set = |text: &str| {
        let new = directory.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &state).unwrap();
    };
    let shim = build_shim("adjtimex", directory.path());
    let mut other = Other::start("processes::child_tells_the_clock_state", |command| {
        command.env("LD_PRELOAD", shim).env("TIMEBALL_TEST_ADJTIMEX", &state);
    });
    for (injected, told) in [
        ("0 1500 37 0x2001", "synchronised true None +0.001500000 +37.000000000 0x2001"),
        ("5 16000000 0 0x40", "synchronised false None +16.000000000 +0.000000000 0x40"),
        ("1 2000 37 0x11", "synchronised true Insert +0.002000000 +37.000000000 0x11"),
        ("2 2000 37 0x21", "synchronised true Delete +0.002000000 +37.000000000 0x21"),
        ("3 2000 37 0x11", "synchronised true InProgress +0.002000000 +37.000000000 0x11"),
        ("nonsense", "Input/output error (os error 5)"),
    ] {
        set(injected);
        other.ask();
        assert_eq!(other.line(), told, "{injected}");
    }
    other.finish();
}

#[test]
#[ignore = "run by the_clock_state_can_be_injected"]
fn child_tells_the_clock_state() {
    if std::env::var_os("TIMEBALL_TEST_ADJTIMEX").is_none() {
        return;
    }
    say("ready");
    for _ in std::io::stdin().lines() {
        match clock::kernel_clock_state() {
            Ok(state) => say(&format!(
                "synchronised {} {:?} {} {} {:#x}",
                state.synchronised, state.leap, state.maximum_error, state.tai_offset, state.status
            )),
            Err(error) => say(&error.to_string()),
        }
    }
}

/// Has another process, under the shim, echo 3 datagrams that are waiting at once; returns its counts as told.
fn echo_under_refusals(address: &str, refuse: &str, send_errors: &str) -> (usize, String) {
    let directory = tempfile::tempdir().unwrap();
    let shim = build_shim("refusals", directory.path());
    let port_number = free_port(address);
    let mut other = Other::start("processes::child_echoes_once", |command| {
        command.env("LD_PRELOAD", shim).env("TIMEBALL_TEST_REFUSE", refuse);
        command.env("TIMEBALL_TEST_SEND_ERRORS", send_errors);
        command.env("TIMEBALL_TEST_ADDRESS", address).env("TIMEBALL_TEST_PORT", port_number.to_string());
    });
    let client = client(address);
    for number in 0..3 {
        client.send_to(&[number; 48], (address, port_number)).unwrap();
    }
    settle();
    other.ask();
    let told = other.line();
    other.finish();
    settle();
    client.set_nonblocking(true).unwrap();
    let mut buffer = [0; 4096];
    (std::iter::from_fn(|| client.recv(&mut buffer).ok()).filter(|length| *length == 48).count(), told)
}

#[test]
#[ignore = "run by those that call echo_under_refusals"]
fn child_echoes_once() {
    let Ok(address) = std::env::var("TIMEBALL_TEST_ADDRESS") else { return };
    let port_number = std::env::var("TIMEBALL_TEST_PORT").unwrap().parse().unwrap();
    let (_group, mut ports) = serve(port_number, &[&address], 1);
    // Until the kernel has turned stamps on, which it does a little later.
    sleep(Duration::from_millis(200));
    say("ready");
    std::io::stdin().lines().next().unwrap().unwrap();
    assert_eq!(echo(&mut ports[0], &mut Batch::new()), 3);
    let UdpCounts { received, without_stamp, sent, .. } = ports[0].counts();
    let counts = ports[0].counts();
    let errors = [
        counts.send_would_block,
        counts.send_unreachable,
        counts.send_not_permitted,
        counts.send_other_errors,
    ];
    let tai = clock::tai_minus_realtime().is_some();
    say(&format!("received {received} unstamped {without_stamp} sent {sent} errors {errors:?} tai {tai}"));
    wait_for_parent();
}

#[test]
fn what_a_kernel_refuses_is_done_without() {
    for (refuse, told) in [
        ("", "received 3 unstamped 0 sent 3 errors [0, 0, 0, 0] tai true"),
        ("timestamping", "received 3 unstamped 0 sent 3 errors [0, 0, 0, 0] tai true"),
        (
            "socket-flags timestamping timestampns mmsg tai",
            "received 3 unstamped 3 sent 3 errors [0, 0, 0, 0] tai false",
        ),
    ] {
        assert_eq!(echo_under_refusals("127.0.1.91", refuse, ""), (3, told.to_owned()), "{refuse}");
    }
}

#[test]
fn send_errors_cost_their_reply_and_no_other() {
    // EPERM, then ENETUNREACH, then the third reply leaves.
    let (replies, told) = echo_under_refusals("127.0.1.92", "", "1 101");
    assert_eq!((replies, &*told), (1, "received 3 unstamped 0 sent 1 errors [0, 1, 1, 0] tai true"));
    // EINVAL, then EAGAIN: the buffer is full, so the rest would not go either.
    let (replies, told) = echo_under_refusals("127.0.1.92", "", "22 11");
    assert_eq!((replies, &*told), (0, "received 3 unstamped 0 sent 0 errors [2, 0, 0, 1] tai true"));
}

fn build_shim(name: &str, directory: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim").join(name).with_extension("c");
    let library = directory.join(name).with_extension("so");
    let mut built = Command::new("cc");
    built.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]);
    let status =
        built.arg(&library).arg(source).status().expect("a C compiler is needed, as for the XDP program");
    assert!(status.success());
    library
}

const fn harness_arguments(test: &str) -> [&str; 4] {
    ["--exact", test, "--ignored", "--nocapture"]
}

/// Another process that runs one of the `child_*` tests, and is killed should the test fail.
struct Other {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Other {
    fn start(test: &str, set_up: impl FnOnce(&mut Command)) -> Self {
        Self::start_program(&std::env::current_exe().unwrap(), |command| {
            command.args(harness_arguments(test));
            set_up(command);
        })
    }

    /// Returns when the child has said that it is ready.
    fn start_program(program: &Path, set_up: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        set_up(&mut command);
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut other = Self { child, input, output };
        assert_eq!(other.line(), "ready");
        other
    }

    /// The next line that the child says by `say`; the test harness's own lines are passed over.
    fn line(&mut self) -> String {
        loop {
            let line = self.output.next().expect("the child ended early").unwrap();
            if let Some(said) = line.strip_prefix("child: ") {
                return said.to_owned();
            }
        }
    }

    fn ask(&mut self) {
        self.input.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    fn finish(mut self) {
        self.input = None;
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(line: &str) {
    println!("\nchild: {line}");
}

/// Returns when the parent closes our input, by intent or by dying.
fn wait_for_parent() {
    std::io::stdin().lines().for_each(drop);
}
