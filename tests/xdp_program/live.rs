//! The program on a veth pair: both variants, both modes, both queues, and nothing left behind.
//!
//! Each test works in a network namespace of its own thread, which nobody names or mounts, so the kernel removes it, and
//! the veth pair in it, when the thread ends, however it ends.

use crate::frames::{Frame, TPID_Q};
use crate::{
    CHILD_MAC, OUR_MAC, PLAIN, XDP_PASS, XDP_REDIRECT, af_xdp_socket, count, counts, load, run, say,
};
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use timeball::datapath::steering::{
    AttachMode, Steering, SteeringAddress, SteeringConfig, SteeringError, Variant, Verdict,
};
use timeball::sys::bpf::{ReceiveQueue, TestRunInput, test_run_xdp, translated_length};

/// Runs `test` in a thread with a network namespace of its own, or says SKIP.
fn in_new_namespace(test: impl FnOnce() + Send + 'static) {
    let work = move || {
        #[allow(unsafe_code)]
        // SAFETY: takes no pointers, and changes nothing but this thread's own network namespace.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        if result != 0 {
            say(&format!("SKIP: no network namespace of our own: {}", std::io::Error::last_os_error()));
            return;
        }
        test();
    };
    if let Err(panic) = thread::spawn(work).join() {
        std::panic::resume_unwind(panic);
    }
}

/// `ip ARGUMENTS` in the calling thread's namespace; its output. `None`, having said so, where there is no `ip`.
fn ip(arguments: &str) -> Option<String> {
    let output = match Command::new("ip").args(arguments.split_whitespace()).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            say("SKIP: no `ip` command (Debian package iproute2)");
            return None;
        }
        output => output.unwrap(),
    };
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// A veth pair with two queues, 10.99.0.1 and `OUR_MAC` on our end; the other end is `peer`. The index of ours.
fn veth() -> Option<u32> {
    ip(
        "link add server address 02:00:00:00:00:01 numrxqueues 2 numtxqueues 2 type veth peer name client numrxqueues 2 numtxqueues 2",
    )?;
    ip("addr add 10.99.0.1/24 dev server")?;
    ip("link set server up")?;
    ip("link set client up")?;
    Some(index_of("server"))
}

fn index_of(interface: &str) -> u32 {
    let link = ip(&format!("-json link show dev {interface}")).unwrap();
    let link: serde_json::Value = serde_json::from_str(&link).unwrap();
    u32::try_from(link[0]["ifindex"].as_u64().unwrap()).unwrap()
}

/// 1 = driver mode, 2 = skb mode (the kernel's XDP_ATTACHED_*), 0 = no program.
fn attached_mode() -> u64 {
    let links: serde_json::Value =
        serde_json::from_str(&ip("-details -json link show dev server").unwrap()).unwrap();
    links[0]["xdp"]["mode"].as_u64().unwrap_or(0)
}

fn load_on(interface_index: u32, variant: Variant) -> Option<Steering> {
    let mut steering = load(&SteeringConfig { interface_index, variant, ..PLAIN })?;
    let address = "10.99.0.1".parse().unwrap();
    steering.replace_locals(&[SteeringAddress { tags: [0, 0], address, mac: OUR_MAC }]).unwrap();
    Some(steering)
}

#[test]
fn plain_program_attaches_in_both_modes_and_leaves_nothing_behind() {
    in_new_namespace(|| {
        let Some(index) = veth() else { return };
        let Some(mut steering) = load_on(index, Variant::Plain) else { return };
        assert_eq!(attached_mode(), 0);
        steering.attach(AttachMode::Driver).unwrap();
        assert_eq!(attached_mode(), 1);
        steering.attach(AttachMode::Skb).unwrap();
        assert_eq!(attached_mode(), 2);
        steering.detach();
        assert_eq!(attached_mode(), 0);
        steering.attach(AttachMode::Driver).unwrap();
        drop(steering);
        assert_eq!(attached_mode(), 0);
    });
}

#[test]
fn device_bound_program_attaches_in_driver_mode_only_and_leaves_nothing_behind() {
    in_new_namespace(|| {
        let Some(index) = veth() else { return };
        let Some(mut steering) = load_on(index, Variant::DeviceBound) else { return };
        let error = steering.attach(AttachMode::Skb).unwrap_err().to_string();
        assert!(error.contains("driver mode only"), "{error}");
        assert_eq!(attached_mode(), 0);
        steering.attach(AttachMode::Driver).unwrap();
        assert_eq!(attached_mode(), 1);
        drop(steering);
        assert_eq!(attached_mode(), 0);
    });
}

/// A kernel that keeps the old address of a program that moved would read freed memory when the interface leaves.
#[test]
fn the_verifier_does_not_move_the_device_bound_program_and_its_interface_may_leave_first() {
    in_new_namespace(|| {
        let Some(index) = veth() else { return };
        let Some(mut steering) = load_on(index, Variant::DeviceBound) else { return };
        let Some(plain) = load_on(index, Variant::Plain) else { return };
        // The padding is gone: what is left is about as long as the plain variant.
        let translated = translated_length(steering.program()).unwrap();
        let unpadded = translated_length(plain.program()).unwrap();
        assert!(translated.abs_diff(unpadded) < 1024, "{translated} and {unpadded} bytes");
        steering.attach(AttachMode::Driver).unwrap();
        ip("link del server");
        drop(steering);
    });
}

/// The kernel loads it all the same (its function then answers "not supported" to every packet), so that it would look
/// like the better choice.
#[test]
fn a_driver_without_receive_stamps_gets_no_device_bound_program() {
    in_new_namespace(|| {
        if !Path::new("/dev/net/tun").exists() {
            say("SKIP: no /dev/net/tun, so no tap interface");
            return;
        }
        // A tap interface has XDP, but no receive stamps.
        let Some(_) = ip("tuntap add server mode tap") else { return };
        let index = index_of("server");
        let Some(_) = load_on(index, Variant::Plain) else { return };
        let config = SteeringConfig { interface_index: index, variant: Variant::DeviceBound, ..PLAIN };
        let error = Steering::load(&config).unwrap_err();
        assert!(matches!(error, SteeringError::NoDriverStamps), "{error}");
    });
}

#[test]
fn jumbo_frames_do_not_keep_the_program_out_of_the_driver() {
    in_new_namespace(|| {
        let Some(index) = veth() else { return };
        ip("link set client mtu 9000");
        ip("link set server mtu 9000");
        let Some(mut steering) = load_on(index, Variant::Plain) else { return };
        steering.attach(AttachMode::Driver).unwrap();
        assert_eq!(attached_mode(), 1);
    });
}

#[test]
fn errors_name_the_likely_cause() {
    in_new_namespace(|| {
        let Some(index) = veth() else { return };
        let Some(mut first) = load_on(index, Variant::Plain) else { return };
        let Some(mut second) = load_on(index, Variant::Plain) else { return };
        first.attach(AttachMode::Driver).unwrap();
        for mode in [AttachMode::Driver, AttachMode::Skb] {
            let error = second.attach(mode).unwrap_err().to_string();
            assert!(error.contains("already has an XDP program"), "{error}");
        }
        let Some(mut nowhere) = load_on(9999, Variant::Plain) else { return };
        let error = nowhere.attach(AttachMode::Driver).unwrap_err().to_string();
        assert!(error.contains("no such interface"), "{error}");
        let config = SteeringConfig { interface_index: 9999, variant: Variant::DeviceBound, ..PLAIN };
        let error = Steering::load(&config).unwrap_err();
        assert!(matches!(error, SteeringError::Load { .. }), "{error}");
        assert!(error.to_string().contains("the interface is not there"), "{error}");
        let error = Steering::load(&SteeringConfig { queues: 0, ..PLAIN }).unwrap_err().to_string();
        assert!(error.contains("number of queues is 0"), "{error}");
        let error = second.set_socket(2, nowhere.program()).unwrap_err().to_string();
        assert!(error.contains("index is 2"), "{error}");
        let error = second.set_socket(0, nowhere.program()).unwrap_err();
        assert!(matches!(error, SteeringError::Map { map: "xsks", .. }), "{error}");
    });
}

#[test]
fn redirects_to_the_socket_of_the_queue_the_request_came_in_on() {
    in_new_namespace(|| {
        let Some(index) = veth() else { return };
        let Some(mut steering) = load_on(index, Variant::Plain) else { return };
        let Some(socket) = af_xdp_socket() else { return };
        steering.attach(AttachMode::Driver).unwrap();
        let request = Frame::request("10.99.0.2", "10.99.0.1", &[], 48);
        let run = |steering: &Steering, queue| {
            let queue = Some(ReceiveQueue { interface_index: index, queue });
            let input = TestRunInput { metadata: &[], frame: &request.bytes, queue, repeat: 1 };
            test_run_xdp(steering.program(), &input).unwrap().verdict
        };
        steering.set_socket(1, socket.as_fd()).unwrap();
        assert_eq!([run(&steering, 0), run(&steering, 1)], [XDP_PASS, XDP_REDIRECT]);
        steering.set_socket(0, socket.as_fd()).unwrap();
        steering.clear_socket(1).unwrap();
        steering.clear_socket(1).unwrap();
        assert_eq!([run(&steering, 0), run(&steering, 1)], [XDP_REDIRECT, XDP_PASS]);
        drop(socket);
        // A child that another test is starting may hold the socket for a moment longer.
        let emptied = (0..500).any(|_| {
            thread::sleep(Duration::from_millis(10));
            run(&steering, 0) == XDP_PASS
        });
        assert!(emptied, "a closed socket empties its slot");
    });
}

/// A device-bound program cannot be test-run, so this is the only test that executes the call of the kernel function.
#[test]
fn device_bound_program_passes_a_real_request_to_the_kernels_socket_when_no_slot_is_filled() {
    in_new_namespace(|| {
        let Some(index) = veth() else { return };
        let Some(mut steering) = load_on(index, Variant::DeviceBound) else { return };
        steering.attach(AttachMode::Driver).unwrap();
        let server = UdpSocket::bind("10.99.0.1:123").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();

        // The client end moves to a second thread's namespace; a namespace goes by the number of a thread in it.
        let (to_us, from_client) = mpsc::channel();
        let (to_client, from_us) = mpsc::channel::<()>();
        let client = thread::spawn(move || {
            in_new_namespace(move || {
                let task = std::fs::read_link("/proc/thread-self").unwrap();
                to_us.send(task.file_name().unwrap().to_str().unwrap().to_owned()).unwrap();
                from_us.recv().unwrap();
                ip("addr add 10.99.0.2/24 dev client");
                ip("link set client up");
                let socket = UdpSocket::bind("10.99.0.2:0").unwrap();
                let mut request = [0; 48];
                request[0] = 0x23;
                socket.send_to(&request, "10.99.0.1:123").unwrap();
                request[0] = 0x24;
                socket.send_to(&request, "10.99.0.1:123").unwrap();
                // Leaving would take the veth pair along.
                let _ = from_us.recv();
            });
        });
        let task = from_client.recv().unwrap();
        ip(&format!("link set client netns {task}"));
        to_client.send(()).unwrap();

        let mut buffer = [0; 64];
        for first in [0x23, 0x24] {
            assert_eq!(server.recv(&mut buffer).unwrap(), 48);
            assert_eq!(buffer[0], first);
        }
        assert_eq!(count(&steering, Verdict::PassedNoSocket), 1);
        assert_eq!(count(&steering, Verdict::PassedOtherMode), 1);
        drop(to_client);
        client.join().unwrap();
    });
}

/// The verdict on one frame, as the counters tell it.
fn verdict_of(steering: &Steering, frame: &Frame) -> Verdict {
    let before = counts(steering);
    run(steering, &frame.bytes);
    let after = counts(steering);
    Verdict::ALL.into_iter().find(|&verdict| before[verdict as usize] != after[verdict as usize]).unwrap()
}

#[test]
fn replacing_prefixes_and_addresses_takes_the_old_ones_out() {
    use timeball::datapath::steering::PrefixAction::{Drop, Serve};
    let Some(mut steering) = load(&PLAIN) else { return };
    let passed = |steering: &Steering, source: &str, destination: &str| {
        verdict_of(steering, &Frame::request(source, destination, &[], 48))
    };
    let local =
        |address: &str| SteeringAddress { tags: [0, 0], address: address.parse().unwrap(), mac: OUR_MAC };
    let prefix = |prefix: &str| prefix.parse::<ipnet::IpNet>().unwrap();

    for (us, other, client, wide, narrow) in [
        ("10.99.0.1", "10.99.0.3", "10.99.66.7", "10.99.66.99/24", "10.99.66.7/32"),
        ("fd99::1", "fd99::3", "fd99:66::7", "fd99:66::99/32", "fd99:66::7/128"),
    ] {
        steering.replace_locals(&[local(us), local(us)]).unwrap();
        assert_eq!(passed(&steering, client, us), Verdict::PassedNoSocket);
        steering.replace_denied(&[(prefix(wide), Drop)]).unwrap();
        assert_eq!(passed(&steering, client, us), Verdict::DroppedDenied);
        steering.replace_denied(&[(prefix(wide), Drop), (prefix(narrow), Serve)]).unwrap();
        assert_eq!(passed(&steering, client, us), Verdict::PassedNoSocket);
        steering.replace_denied(&[(prefix(wide), Serve), (prefix(narrow), Drop)]).unwrap();
        assert_eq!(passed(&steering, client, us), Verdict::DroppedDenied);
        steering.replace_denied(&[]).unwrap();
        assert_eq!(passed(&steering, client, us), Verdict::PassedNoSocket);
        steering.replace_locals(&[SteeringAddress { mac: CHILD_MAC, ..local(us) }]).unwrap();
        assert_eq!(passed(&steering, client, us), Verdict::PassedOtherMac);
        steering.replace_locals(&[local(us)]).unwrap();
        assert_eq!(passed(&steering, client, us), Verdict::PassedNoSocket);
        steering.replace_locals(&[local(other)]).unwrap();
        assert_eq!(passed(&steering, client, us), Verdict::PassedNotOurAddress);
        assert_eq!(passed(&steering, client, other), Verdict::PassedNoSocket);
    }
}

/// What becomes of a request to that address at `mac`.
fn verdict_for(steering: &Steering, local: SteeringAddress, mac: [u8; 6]) -> Verdict {
    let tag = [(TPID_Q, local.tags[0])];
    let source = if local.address.is_ipv4() { "10.99.66.7" } else { "fd99:66::7" };
    let frame = Frame::request(source, &local.address.to_string(), &tag, 48).with_link(0, &mac);
    verdict_of(steering, &frame)
}

/// Addresses `from` to `to` of a family, in the order in which they are taken while there is room.
fn many(from: u16, to: u16, mac: [u8; 6], address: fn(u16) -> IpAddr) -> Vec<SteeringAddress> {
    (from..to).map(|n| SteeringAddress { tags: [n / 4096, 0], address: address(n), mac }).collect()
}

#[test]
fn as_many_addresses_as_promised_fit_and_of_more_the_first_ones() {
    let Some(mut steering) = load(&PLAIN) else { return };
    let limit = u16::try_from(timeball_xdp_prog::LOCAL_ADDRESSES_MAX).unwrap();
    type Address = fn(u16) -> IpAddr;
    let families: [(&str, Address); 2] = [
        ("IPv4", |n| IpAddr::from([10, 99, (n >> 8) as u8, n as u8])),
        ("IPv6", |n| IpAddr::from([0xfd99, 0, 0, 0, 0, 0, 0, n])),
    ];
    for (family, address) in families {
        let full = many(limit, 2 * limit, OUR_MAC, address);
        steering.replace_locals(&full).unwrap();
        assert_eq!(verdict_for(&steering, full[0], OUR_MAC), Verdict::PassedNoSocket);
        // A full map still takes another MAC for each address.
        let moved = many(limit, 2 * limit, CHILD_MAC, address);
        steering.replace_locals(&moved).unwrap();
        for local in [moved[0], moved[usize::from(limit) - 1]] {
            assert_eq!(verdict_for(&steering, local, CHILD_MAC), Verdict::PassedNoSocket);
            assert_eq!(verdict_for(&steering, local, OUR_MAC), Verdict::PassedOtherMac);
        }

        // All but one of the old addresses go, in whichever order the new ones come.
        let mut too_many = many(0, limit + 1, CHILD_MAC, address);
        too_many.reverse();
        let error = steering.replace_locals(&too_many).unwrap_err();
        let expected = format!("4097 {family} addresses are more than the 4096 that the XDP program holds");
        assert_eq!(error.to_string(), expected);
        for local in &too_many[1..] {
            assert_eq!(verdict_for(&steering, *local, CHILD_MAC), Verdict::PassedNoSocket, "{local:?}");
        }
        for local in &moved {
            assert_eq!(verdict_for(&steering, *local, CHILD_MAC), Verdict::PassedNotOurAddress, "{local:?}");
        }
        // An address that goes makes room for the one that was left out, which is now too.
        steering.replace_locals(&too_many[..usize::from(limit)]).unwrap();
        assert_eq!(verdict_for(&steering, too_many[0], CHILD_MAC), Verdict::PassedNoSocket);
    }
}
