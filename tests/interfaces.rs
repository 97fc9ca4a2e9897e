//! The interface watch, facts and VLAN guard against the real kernel.
//!
//! Each test runs in a thread with a network namespace of its own, which the kernel removes with the thread, veth pairs
//! and all. (This kernel has no VLAN devices: VLAN interfaces are tested from messages, beside the decoder.)
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use timeball::datapath::interface::{
    Changes, InterfaceError, InterfaceFacts, InterfaceReport, InterfaceWatch, Likely, VlanError, VlanPlan,
};
use timeball::sys::ethtool::{Ethtool, STRIP_8021AD, STRIP_8021Q};

/// Patience with the kernel; what is awaited takes milliseconds, and two seconds for duplicate address detection.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a test in a thread with a fresh network namespace.
fn in_namespace(test: fn()) {
    let thread = std::thread::spawn(move || {
        // SAFETY: unshare takes no pointers, and moves this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "unshare: {error}");
            let line = format!("SKIP: no network namespace without root: {error}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            return;
        }
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in this thread's namespace.
fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Feeds commands to one `ip -batch`.
fn ip_batch(lines: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn veth_pair() {
    ip(
        "link add tbl0 mtu 1500 numrxqueues 4 numtxqueues 3 type veth peer name tbl1 numrxqueues 4 numtxqueues 3",
    );
    ip("link set tbl0 up");
    ip("link set tbl1 up");
}

/// `ip -batch` lines that add 500 addresses to tbl0, the first of which is the primary one: removing it removes all.
fn five_hundred_addresses() -> String {
    (0..500).map(|n| format!("address add 10.99.{}.{}/16 dev tbl0\n", n / 250, 1 + n % 250)).collect()
}

fn is_readable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, and the count says one.
    let ready = unsafe { libc::poll(&raw mut poll, 1, timeout.as_millis() as libc::c_int) };
    ready > 0
}

/// Waits on the descriptor and updates until `seen` is content with an update.
fn await_change(
    watch: &mut InterfaceWatch,
    what: &str,
    mut seen: impl FnMut(&InterfaceWatch, &Changes) -> bool,
) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(is_readable(watch.fd().unwrap(), left), "not seen: {what}; {:?}", watch.view());
        let changes = watch.update().unwrap();
        if seen(watch, &changes) {
            return;
        }
    }
}

fn index_of(watch: &InterfaceWatch, name: &str) -> u32 {
    watch.view().interface_named(name).unwrap_or_else(|| panic!("no {name}")).ifindex
}

fn locals(watch: &InterfaceWatch, ifindex: u32) -> Vec<String> {
    watch.view().local_addresses(ifindex).iter().map(|one| one.with_port(123).to_string()).collect()
}

#[test]
fn the_first_view_is_whole_and_live() {
    in_namespace(|| {
        veth_pair();
        ip("address add 10.99.0.1/24 dev tbl0");
        let watch = InterfaceWatch::open().unwrap();
        assert!(watch.limitation().is_none());
        let link = watch.view().interface_named("tbl0").unwrap();
        assert_eq!((link.kind.as_deref(), link.mtu, link.up, link.vlan), (Some("veth"), 1500, true, None));
        assert_eq!((link.rx_queues, link.tx_queues), (Some(4), Some(3)));
        assert!(link.mac.is_some(), "{link:?}");
        assert!(locals(&watch, link.ifindex).contains(&"10.99.0.1:123".to_owned()));
    });
}

#[test]
fn an_address_added_or_removed_is_seen() {
    in_namespace(|| {
        veth_pair();
        let mut watch = InterfaceWatch::open().unwrap();
        let index = index_of(&watch, "tbl0");
        let is_ours = |address: std::net::IpAddr| address.to_string() == "10.99.0.1";
        ip("address add 10.99.0.1/24 dev tbl0");
        await_change(&mut watch, "10.99.0.1", |_, changes| {
            changes.addresses_added.iter().any(|one| one.ifindex == index && is_ours(one.address))
        });
        assert!(locals(&watch, index).contains(&"10.99.0.1:123".to_owned()));
        ip("address del 10.99.0.1/24 dev tbl0");
        await_change(&mut watch, "removal of 10.99.0.1", |_, changes| {
            changes.addresses_removed.iter().any(|one| one.ifindex == index && is_ours(one.address))
        });
        assert!(watch.view().steering_addresses(index, &[]).iter().all(|one| !is_ours(one.address)));
    });
}

#[test]
fn a_tentative_address_is_used_only_when_detection_has_ended() {
    in_namespace(|| {
        veth_pair();
        let mut watch = InterfaceWatch::open().unwrap();
        let index = index_of(&watch, "tbl0");
        ip("address add fd99::1/64 dev tbl0");
        let mut was_tentative = false;
        await_change(&mut watch, "fd99::1", |watch, changes| {
            let fd99 = watch.view().addresses(index).find(|one| one.address.to_string() == "fd99::1");
            was_tentative |= fd99.is_some_and(|one| !one.is_usable());
            changes.addresses_added.iter().any(|one| one.address.to_string() == "fd99::1")
        });
        assert!(was_tentative, "the kernel announces it before detection ends");
        assert!(locals(&watch, index).contains(&"[fd99::1]:123".to_owned()));
    });
}

#[test]
fn a_link_going_down_and_up_is_seen() {
    in_namespace(|| {
        veth_pair();
        let mut watch = InterfaceWatch::open().unwrap();
        let (here, there) = (index_of(&watch, "tbl0"), index_of(&watch, "tbl1"));
        ip("link set tbl1 down");
        let mut down = Vec::new();
        await_change(&mut watch, "both ends down", |_, changes| {
            down.extend_from_slice(&changes.went_down);
            down.contains(&here) && down.contains(&there)
        });
        let link = watch.view().interface(here).unwrap();
        assert!(link.enabled && !link.up, "no carrier without the peer: {link:?}");
        ip("link set tbl1 up");
        await_change(&mut watch, "up again", |_, changes| changes.came_up.contains(&here));
    });
}

#[test]
fn an_interface_removed_and_back_is_another_one() {
    in_namespace(|| {
        veth_pair();
        ip("address add 10.99.0.1/24 dev tbl0");
        let mut watch = InterfaceWatch::open().unwrap();
        let before = index_of(&watch, "tbl0");
        ip("link del tbl0");
        veth_pair();
        ip("address add 10.99.0.2/24 dev tbl0");
        let (mut removed, mut appeared) = (false, false);
        await_change(&mut watch, "removed and back", |watch, changes| {
            removed |= changes.removed.iter().any(|one| one.ifindex == before);
            appeared |= changes.appeared.iter().any(|one| one.name == "tbl0");
            removed
                && appeared
                && locals(watch, index_of(watch, "tbl0")).contains(&"10.99.0.2:123".to_owned())
        });
        assert_ne!(before, index_of(&watch, "tbl0"));
        assert_eq!(watch.view().addresses(before).count(), 0);
    });
}

/// The id of this thread, by which `ip link set ... netns` finds its namespace.
fn thread_id() -> libc::pid_t {
    // SAFETY: gettid takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

#[test]
fn an_interface_that_leaves_for_another_namespace_and_returns_is_another_one() {
    in_namespace(|| {
        veth_pair();
        ip("address add 10.99.0.1/24 dev tbl0");
        let mut watch = InterfaceWatch::open().unwrap();
        let index = index_of(&watch, "tbl0");
        let home = thread_id();
        let (come_home, called) = std::sync::mpsc::channel::<()>();
        let (announce, announced) = std::sync::mpsc::channel();
        let guest = std::thread::spawn(move || {
            // SAFETY: unshare takes no pointers, and moves this thread only.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
            announce.send(thread_id()).unwrap();
            called.recv().unwrap();
            ip(&format!("link set tbl0 netns {home}"));
        });
        ip(&format!("link set tbl0 netns {}", announced.recv().unwrap()));
        await_change(&mut watch, "departure", |_, changes| {
            changes.removed.iter().any(|one| one.ifindex == index)
        });
        assert_eq!(watch.view().addresses(index).count(), 0);
        come_home.send(()).unwrap();
        guest.join().unwrap();
        await_change(&mut watch, "return", |_, changes| {
            changes.appeared.iter().any(|one| one.name == "tbl0")
        });
    });
}

#[test]
fn five_hundred_addresses_at_once_all_arrive() {
    in_namespace(|| {
        veth_pair();
        let mut watch = InterfaceWatch::open().unwrap();
        let index = index_of(&watch, "tbl0");
        ip_batch(&five_hundred_addresses());
        let v4 = |watch: &InterfaceWatch| {
            watch.view().steering_addresses(index, &[]).iter().filter(|one| one.address.is_ipv4()).count()
        };
        await_change(&mut watch, "500 addresses", |watch, _| v4(watch) == 500);
        ip("address del 10.99.0.1/16 dev tbl0");
        await_change(&mut watch, "no addresses", |watch, _| v4(watch) == 0);
    });
}

#[test]
fn an_overrun_leads_to_a_fresh_view() {
    in_namespace(|| {
        veth_pair();
        let mut watch = InterfaceWatch::open().unwrap();
        let index = index_of(&watch, "tbl0");
        // A buffer that holds a few messages only, in place of the large one.
        let small: libc::c_int = 1;
        let socket = watch.fd().unwrap().as_raw_fd();
        // SAFETY: the value is a c_int and its length is given.
        let result = unsafe {
            libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, (&raw const small).cast(), 4)
        };
        assert_eq!(result, 0);
        ip_batch(&five_hundred_addresses());
        ip("address del 10.99.0.1/16 dev tbl0");
        ip("address add 10.99.9.9/16 dev tbl0");
        await_change(&mut watch, "a new dump", |_, changes| changes.resynchronised);
        let v4: Vec<_> = locals(&watch, index).into_iter().filter(|one| one.starts_with("10.")).collect();
        assert_eq!(v4, ["10.99.9.9:123"]);
        assert!(watch.view().interface(index).is_some_and(|link| link.up));
    });
}

#[test]
fn a_view_opened_amid_changes_ends_right() {
    in_namespace(|| {
        veth_pair();
        ip_batch(&five_hundred_addresses());
        let removals: String = (0..499)
            .map(|n| format!("address del 10.99.{}.{}/16 dev tbl1\n", n / 250, 1 + n % 250))
            .collect();
        // Otherwise the removal of the first, primary address removes all.
        std::fs::write("/proc/sys/net/ipv4/conf/tbl1/promote_secondaries", "1").unwrap();
        ip_batch(&five_hundred_addresses().replace("tbl0", "tbl1"));
        let changing = std::thread::spawn({
            let network_namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
            move || {
                // SAFETY: the descriptor is an open namespace; setns moves this thread only.
                let moved = unsafe { libc::setns(network_namespace.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(moved, 0);
                ip_batch(&removals);
            }
        });
        let mut watches = Vec::new();
        while !changing.is_finished() {
            watches.push(InterfaceWatch::open().unwrap());
        }
        changing.join().unwrap();
        assert!(watches.len() > 1, "the changes were too quick to test anything");
        for mut watch in watches {
            assert!(watch.limitation().is_none(), "{:?}", watch.limitation());
            while is_readable(watch.fd().unwrap(), Duration::ZERO) {
                let _ = watch.update().unwrap();
            }
            let v4 = |name| {
                let index = index_of(&watch, name);
                watch.view().addresses(index).filter(|one| one.address.is_ipv4()).count()
            };
            assert_eq!((v4("tbl0"), v4("tbl1")), (500, 1));
        }
    });
}

fn stripping_is_on(name: &str) -> [bool; 2] {
    let ethtool = Ethtool::open().unwrap();
    [STRIP_8021Q, STRIP_8021AD].map(|feature| ethtool.feature(name, feature).unwrap().unwrap().active)
}

#[test]
fn tag_stripping_is_off_under_the_guard_and_restored_even_after_a_rename() {
    in_namespace(|| {
        veth_pair();
        let facts = InterfaceFacts::gather("tbl0").unwrap();
        assert_eq!(stripping_is_on("tbl0"), [true, true]);
        let plan = VlanPlan::decide(&facts, &[[7, 0]]);
        assert!(matches!(plan, VlanPlan::TurnOff { required: true, .. }), "{plan:?}");
        let guard = plan.apply(facts.interface.ifindex).unwrap();
        assert_eq!(guard.switched_off(), [STRIP_8021Q, STRIP_8021AD]);
        assert_eq!(stripping_is_on("tbl0"), [false, false]);
        let facts_now = InterfaceFacts::gather("tbl0").unwrap();
        assert_eq!(VlanPlan::decide(&facts_now, &[[7, 0]]), VlanPlan::InBand);
        ip("link set tbl0 down");
        ip("link set tbl0 name other");
        drop(guard);
        assert_eq!(stripping_is_on("other"), [true, true]);
    });
}

#[test]
fn what_the_administrator_switched_off_stays_off() {
    in_namespace(|| {
        veth_pair();
        Ethtool::open().unwrap().set_feature("tbl0", STRIP_8021Q, false).unwrap();
        let facts = InterfaceFacts::gather("tbl0").unwrap();
        let guard = VlanPlan::decide(&facts, &[]).apply(facts.interface.ifindex).unwrap();
        assert_eq!(guard.switched_off(), [STRIP_8021AD]);
        drop(guard);
        assert_eq!(stripping_is_on("tbl0"), [false, true]);
    });
}

#[test]
fn a_switch_that_cannot_move_is_fatal_only_where_there_are_vlans() {
    in_namespace(|| {
        let fixed = |required| VlanPlan::TurnOff { features: vec!["loopback"], required };
        assert!(matches!(fixed(true).apply(1), Err(VlanError::Stuck { feature: "loopback", .. })));
        let guard = fixed(false).apply(1).unwrap();
        assert!(guard.note().is_some() && guard.switched_off().is_empty());
    });
}

#[test]
fn the_facts_of_a_veth_are_those_of_a_veth() {
    in_namespace(|| {
        veth_pair();
        ip("address add 10.99.0.1/24 dev tbl0");
        let report = InterfaceReport::of("tbl0", &[]).unwrap();
        let facts = &report.facts;
        assert_eq!(facts.driver.as_ref().unwrap().name, "veth");
        assert_eq!(facts.receive_queues(), Some(4));
        assert!(facts.addresses.iter().any(|one| one.address.to_string() == "10.99.0.1"));
        assert_eq!(facts.stamps.as_ref().unwrap().phc_index, None);
        let device = facts.device.as_ref().unwrap();
        // It adds ndo-xmit only while its own end has an XDP program or GRO.
        for word in ["basic", "redirect"] {
            assert!(device.xdp.iter().any(|one| one == word), "{word} is not in {:?}", device.xdp);
        }
        assert!(device.rx_metadata.as_ref().unwrap().contains(&"timestamp".to_owned()), "{device:?}");
        let likely: Vec<_> = report.ladder.iter().map(|step| step.likely == Likely::Yes).collect();
        assert_eq!(likely, [false, false, true, true, true], "{report}");
        println!("{report}\n{}", serde_json::to_string(&report).unwrap());
    });
}

#[test]
fn an_unknown_name_is_answered_with_the_names_there_are() {
    in_namespace(|| {
        veth_pair();
        let error = InterfaceFacts::gather("tbl9").unwrap_err();
        assert!(matches!(error, InterfaceError::Unknown { .. }));
        let text = error.to_string();
        assert!(text.contains("\"tbl9\"") && text.contains("tbl0") && text.contains("lo"), "{text}");
    });
}
