//! The XDP program on the kernel that runs the tests: every branch through BPF test-run, an independent oracle on mutated
//! frames, and the program attached to a veth pair.
//!
//! Needs CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW (`live` also CAP_SYS_ADMIN); says SKIP and why without them.
//!
//! Not reachable here: a frame shorter than an Ethernet header (the kernel refuses to test-run it), and a request in several
//! buffers (test-run splits only frames that are too long for us anyway).

// clippy spares #[test] functions only, not their helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod frames;
mod live;
mod oracle;
mod property;
mod shortcuts;
mod table;

use oracle::World;
use std::io::{Write, stderr};
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};
use timeball::datapath::steering::{
    PrefixAction, RxStamp, Steering, SteeringAddress, SteeringConfig, SteeringError, Variant, Verdict,
};
use timeball::sys::bpf::{TestRunInput, TestRunOutcome, test_run_xdp};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// Writes past libtest's capture, so that a skip is seen without `--nocapture`.
fn say(line: &str) {
    stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

const PLAIN: SteeringConfig =
    SteeringConfig { port: 123, queues: 2, interface_index: 0, variant: Variant::Plain };

/// `None`, having said so, where the tests lack the privilege. Any other failure is a failure.
fn load(config: &SteeringConfig) -> Option<Steering> {
    match Steering::load(config) {
        Ok(steering) => Some(steering),
        Err(SteeringError::CreateMaps { error, cause }) if error.raw_os_error() == Some(libc::EPERM) => {
            say(&format!("SKIP: cannot load BPF programs: {error}{cause}"));
            None
        }
        Err(other) => panic!("{other}"),
    }
}

/// The MAC of the interface, to which `Frame::request` goes, and that of the VLAN interface with tag 6.
const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CHILD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 6];

fn world() -> World {
    let mut locals = Vec::new();
    for address in ["10.99.0.1", "fd99::1"] {
        for (vlans, mac) in [([0, 0], OUR_MAC), ([6, 0], CHILD_MAC), ([7, 0], OUR_MAC), ([7, 8], OUR_MAC)] {
            locals.push((vlans, address.parse().unwrap(), mac));
        }
    }
    // Those above come first, and have the program's shortcut without a tag; these have none.
    for address in ["10.99.0.5", "fd99::5"] {
        locals.push(([0, 0], address.parse().unwrap(), OUR_MAC));
    }
    let denied = [
        ("10.99.66.0/24", true),
        ("10.99.66.7/32", false),
        ("fd99:66::/32", true),
        ("fd99:66::7/128", false),
    ];
    World { locals, denied: denied.map(|(prefix, drop)| (prefix.parse().unwrap(), drop)).to_vec() }
}

/// Loads the plain program and puts `world()` into its maps.
fn load_world() -> Option<Steering> {
    let mut steering = load(&PLAIN)?;
    put(&mut steering, &world());
    Some(steering)
}

/// Makes this what is in its maps.
fn put(steering: &mut Steering, world: &World) {
    let locals: Vec<_> =
        world.locals.iter().map(|&(tags, address, mac)| SteeringAddress { tags, address, mac }).collect();
    steering.replace_locals(&locals).unwrap();
    let action = |drop| if drop { PrefixAction::Drop } else { PrefixAction::Serve };
    let denied: Vec<_> = world.denied.iter().map(|&(prefix, drop)| (prefix, action(drop))).collect();
    steering.replace_denied(&denied).unwrap();
}

/// An AF_XDP socket that is bound to nothing: enough for a slot of the XSKMAP.
fn af_xdp_socket() -> Option<OwnedFd> {
    use std::os::fd::FromRawFd;
    #[allow(unsafe_code)]
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        say(&format!("SKIP: no AF_XDP socket: {}", std::io::Error::last_os_error()));
        return None;
    }
    #[allow(unsafe_code)]
    // SAFETY: the kernel has just made this descriptor, and nobody else knows its number.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn run(steering: &Steering, frame: &[u8]) -> TestRunOutcome {
    run_with_metadata(steering, frame, &[])
}

fn run_with_metadata(steering: &Steering, frame: &[u8], metadata: &[u8]) -> TestRunOutcome {
    test_run_xdp(steering.program(), &TestRunInput { metadata, frame, queue: None, repeat: 1 }).unwrap()
}

fn counts(steering: &Steering) -> Vec<u64> {
    steering.verdicts().unwrap().into_iter().map(|(_, count)| count).collect()
}

fn count(steering: &Steering, verdict: Verdict) -> u64 {
    counts(steering)[verdict as usize]
}

/// The metadata is one stamp, of CLOCK_TAI, taken just now.
fn assert_stamped_now(metadata: &[u8], what: &str) {
    assert_eq!(metadata.len(), RxStamp::LENGTH, "{what}");
    let stamp = RxStamp::read(metadata).unwrap_or_else(|| panic!("{what}: no magic in {metadata:x?}"));
    assert_eq!(stamp.nic_nanoseconds(), None, "{what}: test-run has no NIC");
    let tai = Duration::from_nanos(stamp.tai_nanoseconds().unwrap());
    let utc = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    // The kernel's TAI offset is 0 until somebody sets it, and 37 s (at the time of writing) after that.
    let ahead = tai.as_secs_f64() - utc.as_secs_f64();
    assert!((-5.0..60.0).contains(&ahead), "{what}: stamp {ahead} s ahead of UTC");
}
