//! The UDP-socket port and the kernel's clock state against a real kernel, on loopback.
//!
//! Tests that need another process, another user or a kernel that knows less run this binary again: the
//! `child_*` tests are those processes' programs, ignored unless a parent asks for them by name.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, ToSocketAddrs, UdpSocket as StdSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use timeball::datapath::udp::{LocalAddress, OpenError, UdpCounts, UdpGroup, UdpPort};
use timeball::sys::clock;
use timeball::sys::process::poll;
use timeball::sys::socket::{BATCH_MAX, Batch, DATAGRAM_MAX, UdpOptions};

const PATIENCE: Duration = Duration::from_secs(10);

fn local(text: &str) -> LocalAddress {
    LocalAddress::new(text.parse().unwrap(), 0)
}

/// A port that is free on this address now. Each test has addresses of its own, so it stays free.
fn free_port(address: &str) -> u16 {
    StdSocket::bind((address, 0)).unwrap().local_addr().unwrap().port()
}

/// A client that never waits for ever.
fn client(address: &str) -> StdSocket {
    let client = StdSocket::bind((address, 0)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

fn serve(port: u16, addresses: &[&str], workers: usize) -> (UdpGroup, Vec<UdpPort>) {
    let (mut group, mut ports) = UdpGroup::new(port, workers, UdpOptions::default());
    let wanted: Vec<_> = addresses.iter().map(|address| local(address)).collect();
    let report = group.sync_addresses(&wanted);
    assert!(report.failed.is_empty(), "{report:?}");
    ports.iter_mut().for_each(|port| assert!(port.apply_changes()));
    (group, ports)
}

/// The indices of sockets that have something to read, waiting for it.
fn wait(port: &UdpPort) -> Vec<usize> {
    let mut entries: Vec<_> = port.poll_entries().collect();
    assert!(poll(&mut entries, Some(PATIENCE)).unwrap() > 0, "nothing came");
    entries.iter().enumerate().filter(|(_, entry)| entry.is_ready()).map(|(index, _)| index).collect()
}

/// One turn of a worker that sends everything back.
fn echo(port: &mut UdpPort, batch: &mut Batch) -> usize {
    let mut received = 0;
    for index in wait(port) {
        received += port.receive(index, batch);
        batch.datagrams().for_each(|datagram| {
            let length = datagram.payload().len();
            datagram.reply(length);
        });
        port.send(index, batch);
    }
    received
}

fn expect_reply(client: &StdSocket, from: SocketAddr, payload: &[u8]) {
    let mut buffer = [0; 4096];
    let (length, source) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((source, &buffer[..length]), (from, payload));
}

#[test]
fn kernel_stamps_lie_between_sending_and_receiving() {
    for address in ["127.0.1.1", "::1"] {
        let port_number = free_port(address);
        let (_group, mut ports) = serve(port_number, &[address], 1);
        let client = client(address);
        let mut batch = Batch::new();
        let start = Instant::now();
        // The kernel turns stamps on a little after it was asked to: the first datagrams may have none.
        loop {
            let before = clock::realtime();
            client.send_to(b"ping", (address, port_number)).unwrap();
            let index = wait(&ports[0])[0];
            assert_eq!(ports[0].receive(index, &mut batch), 1);
            let after = clock::realtime();
            let datagram = batch.datagrams().next().unwrap();
            assert_eq!(datagram.source(), client.local_addr().unwrap());
            assert_eq!(datagram.payload(), b"ping");
            if let Some(stamp) = datagram.receive_timestamp() {
                assert!(stamp.nanoseconds_since(before) >= 0, "{before:?} {stamp:?}");
                assert!(after.nanoseconds_since(stamp) > 0, "{stamp:?} {after:?}");
                break;
            }
            assert!(start.elapsed() < PATIENCE, "no stamp came");
        }
        let counts = ports[0].counts();
        assert_eq!(counts.received, counts.without_stamp + 1);
    }
}

#[test]
fn replies_come_from_the_address_that_was_asked() {
    let addresses = ["127.0.1.11", "127.0.1.12", "127.0.1.13", "::1"];
    let port_number = free_port("::1");
    let (_group, mut ports) = serve(port_number, &addresses, 1);
    let mut batch = Batch::new();
    for address in addresses {
        let asked = SocketAddr::new(address.parse().unwrap(), port_number);
        let client = client(if asked.is_ipv4() { "127.0.0.1" } else { "::1" });
        client.send_to(address.as_bytes(), asked).unwrap();
        let index = wait(&ports[0])[0];
        assert_eq!(ports[0].local_address(index), Some(asked));
        echo(&mut ports[0], &mut batch);
        expect_reply(&client, asked, address.as_bytes());
    }
    assert_eq!((ports[0].counts().received, ports[0].counts().sent), (4, 4));
}

#[test]
fn batches_are_full_and_only_the_chosen_are_answered() {
    let port_number = free_port("127.0.1.21");
    let (_group, mut ports) = serve(port_number, &["127.0.1.21"], 1);
    let client = client("127.0.1.22");
    for number in 0..150_u8 {
        client.send_to(&[number, 0, 0], ("127.0.1.21", port_number)).unwrap();
    }
    let mut batch = Batch::new();
    let mut sizes = Vec::new();
    for _ in 0..3 {
        sizes.push(ports[0].receive(0, &mut batch));
        batch.datagrams().for_each(|datagram| match datagram.payload()[0] % 3 {
            0 => datagram.reply(2),
            1 => datagram.reply(4), // longer than its request
            _ => {}
        });
        ports[0].send(0, &mut batch);
        assert_eq!(batch.replies(), 0);
    }
    assert_eq!(sizes, [BATCH_MAX, BATCH_MAX, 150 - 2 * BATCH_MAX]);
    assert_eq!(ports[0].receive(0, &mut batch), 0);
    assert_eq!(batch.datagrams().count(), 0);
    for number in (0..150).step_by(3) {
        expect_reply(&client, format!("127.0.1.21:{port_number}").parse().unwrap(), &[number, 0]);
    }
    assert_eq!(ports[0].counts().sent, 50);
}

#[test]
fn too_long_datagrams_are_counted_and_not_parsed() {
    let port_number = free_port("127.0.1.31");
    let (_group, mut ports) = serve(port_number, &["127.0.1.31"], 1);
    let client = client("127.0.1.31");
    let whole = [7; DATAGRAM_MAX + 1];
    for length in [10, DATAGRAM_MAX + 1, DATAGRAM_MAX, 0] {
        client.send_to(&whole[..length], ("127.0.1.31", port_number)).unwrap();
    }
    let mut batch = Batch::new();
    assert_eq!(ports[0].receive(0, &mut batch), 3);
    let lengths: Vec<_> = batch.datagrams().map(|datagram| datagram.payload().len()).collect();
    assert_eq!(lengths, [10, DATAGRAM_MAX, 0]);
    assert_eq!((ports[0].counts().received, ports[0].counts().truncated), (3, 1));
}

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
    let other = Other::start("child_holds_an_address", |command| {
        command.env("TIMEBALL_TEST_PORT", port_number.to_string());
    });
    assert!(matches!(sync(), Some((_, OpenError::AddressInUse(_)))));
    other.finish();
    assert!(sync().is_none());
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

#[test]
fn a_wildcard_owner_of_the_port_is_detected() {
    let owner = StdSocket::bind("0.0.0.0:0").unwrap();
    let (mut group, _ports) = UdpGroup::new(owner.local_addr().unwrap().port(), 1, UdpOptions::default());
    let report = group.sync_addresses(&[local("127.0.1.45")]);
    assert!(matches!(report.failed[..], [(_, OpenError::AddressInUse(_))]), "{report:?}");
}

#[test]
fn a_removed_address_is_given_up_and_the_others_are_served_on() {
    let port_number = free_port("127.0.1.51");
    let (mut group, mut ports) = serve(port_number, &["127.0.1.51", "127.0.1.52"], 2);
    assert_eq!(group.sync_addresses(&[local("127.0.1.52")]).removed, [local("127.0.1.51")]);
    assert!(StdSocket::bind(("127.0.1.51", port_number)).is_err(), "the workers have not looked yet");
    ports.iter_mut().for_each(|port| assert!(port.apply_changes()));
    let _next_owner = StdSocket::bind(("127.0.1.51", port_number)).unwrap();
    let client = client("127.0.1.53");
    client.send_to(b"still there?", ("127.0.1.52", port_number)).unwrap();
    let mut batch = Batch::new();
    let asked = ports.iter_mut().find(|port| {
        let mut entries: Vec<_> = port.poll_entries().collect();
        poll(&mut entries, Some(Duration::ZERO)).unwrap() == 1
    });
    assert_eq!(echo(asked.unwrap(), &mut batch), 1);
    expect_reply(&client, format!("127.0.1.52:{port_number}").parse().unwrap(), b"still there?");
}

#[test]
fn members_share_the_clients_and_a_flood_to_one_does_not_starve_the_other() {
    for address in ["127.0.1.61", "::1"] {
        let port_number = free_port(address);
        let (_group, mut ports) = serve(port_number, &[address], 2);
        let clients: Vec<_> = (0..64).map(|_| client(address)).collect();
        clients.iter().for_each(|client| assert!(client.send_to(b"hello", (address, port_number)).is_ok()));
        let mut batch = Batch::new();
        let mut member_of = BTreeMap::new();
        for (member, port) in ports.iter_mut().enumerate() {
            assert!(port.receive(0, &mut batch) > 0, "member {member} got nothing");
            member_of.extend(batch.datagrams().map(|datagram| (datagram.source().port(), member)));
        }
        assert_eq!(member_of.len(), clients.len());
        let client_of = |member| {
            clients.iter().find(|client| member_of[&client.local_addr().unwrap().port()] == member).unwrap()
        };
        // Far more than a socket's buffer holds, to a member that does not read.
        for _ in 0..2_000 {
            client_of(0).send_to(&[0; 1_000], (address, port_number)).unwrap();
        }
        client_of(1).send_to(b"and me?", (address, port_number)).unwrap();
        assert_eq!(echo(&mut ports[1], &mut batch), 1);
        let from = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port_number);
        expect_reply(client_of(1), from, b"and me?");
    }
}

#[test]
fn a_client_that_has_gone_does_not_stop_the_loop() {
    let port_number = free_port("127.0.1.71");
    let (_group, mut ports) = serve(port_number, &["127.0.1.71"], 1);
    let mut batch = Batch::new();
    // Its reply is answered with ICMP port unreachable.
    client("127.0.1.72").send_to(b"gone", ("127.0.1.71", port_number)).unwrap();
    assert_eq!(echo(&mut ports[0], &mut batch), 1);
    let client = client("127.0.1.72");
    client.send_to(b"here", ("127.0.1.71", port_number)).unwrap();
    assert_eq!(echo(&mut ports[0], &mut batch), 1);
    expect_reply(&client, format!("127.0.1.71:{port_number}").parse().unwrap(), b"here");
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
        command.args(harness_arguments("child_serves_link_local")).env("TIMEBALL_TEST_PORT", "123");
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
        command.args(harness_arguments("child_has_no_privilege")).env("TIMEBALL_TEST_PORT", "123");
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
    use timeball::sys::process::{Capability, missing_capabilities};
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
    let mut other = Other::start("child_tells_the_clock_state", |command| {
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
    let mut other = Other::start("child_echoes_once", |command| {
        command.env("LD_PRELOAD", shim).env("TIMEBALL_TEST_REFUSE", refuse);
        command.env("TIMEBALL_TEST_SEND_ERRORS", send_errors);
        command.env("TIMEBALL_TEST_ADDRESS", address).env("TIMEBALL_TEST_PORT", port_number.to_string());
    });
    let client = client(address);
    for number in 0..3 {
        client.send_to(&[number; 48], (address, port_number)).unwrap();
    }
    other.ask();
    let told = other.line();
    other.finish();
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
    std::thread::sleep(Duration::from_millis(200));
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
