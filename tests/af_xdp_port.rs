//! The AF_XDP port on the real kernel: a veth pair in a network namespace of its own, copy mode.
//!
//! Each test runs itself again inside a fresh namespace (`unshare --net`), which the kernel removes with the child, so
//! nothing is left behind even when it fails. In there `client` has an address and a UDP socket, `server` has an XDP
//! program that redirects everything into the port, and the port answers by swapping addresses in place. SKIP, said on
//! standard error, where that cannot be: not root, or no clang.

use aya::Ebpf;
use aya::maps::{MapData, XskMap};
use aya::programs::{Xdp, xdp::XdpMode};
use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime};
use timeball::datapath::af_xdp::{
    BATCH, BusyPoll, CopyMode, Frame, FrameNumber, Link, Port, PortConfig, PortError, RX_METADATA_BYTES,
    StampRequest, TransmitStamp,
};
use timeball::sys::memory::{HugepagePolicy, Pages};

/// Set in the child that runs inside the namespace.
const INSIDE: &str = "TIMEBALL_TEST_INSIDE";
const MAGIC: u64 = 0x7469_6d65_6261_6c6c;
const ETHERNET_IPV4_UDP_BYTES: usize = 14 + 20 + 8;
const PATIENCE: Duration = Duration::from_secs(10);

const REDIRECT_C: &str = r#"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct { __uint(type, BPF_MAP_TYPE_XSKMAP); __uint(max_entries, 4); __type(key, __u32); __type(value, __u32); } xsks SEC(".maps");
struct metadata { __u64 magic, stamp, queue; };

SEC("xdp") int redirect(struct xdp_md *ctx)
{
	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(struct metadata)) == 0) {
		struct metadata *metadata = (void *)(long)ctx->data_meta;
		if ((void *)(metadata + 1) <= (void *)(long)ctx->data) {
			metadata->magic = 0x74696d6562616c6c;
			metadata->stamp = bpf_ktime_get_tai_ns();
			metadata->queue = ctx->rx_queue_index;
		}
	}
	return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
}
char license[] SEC("license") = "GPL";
"#;

fn skip(test: &str, reason: &str) {
    // Not eprintln: libtest captures that.
    let _ = io::stderr().write_all(format!("SKIP {test}: {reason}\n").as_bytes());
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ip(arguments: &str) -> String {
    run("ip", &arguments.split_whitespace().collect::<Vec<_>>())
}

fn works(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

/// Runs `test` of this binary again behind `wrapper`, a command that ends by running its arguments.
fn run_behind(wrapper: &[&str], test: &str) -> Output {
    let this = env::current_exe().unwrap();
    let mut arguments: Vec<&OsStr> = wrapper[1..].iter().map(OsStr::new).collect();
    arguments.extend([this.as_os_str(), "--exact".as_ref(), test.as_ref(), "--nocapture".as_ref()]);
    Command::new(wrapper[0]).args(arguments).env(INSIDE, "1").output().unwrap()
}

/// Runs `body` inside a namespace of its own; `wrapper` restricts that child further.
fn in_namespace_behind(test: &str, wrapper: &[&str], body: impl FnOnce(Lab)) {
    if env::var_os(INSIDE).is_some() {
        return body(Lab::new());
    }
    if !works("unshare", &["--net", "true"]) {
        return skip(test, "not root, so no network namespace can be made");
    }
    if !works("clang", &["--version"]) {
        return skip(test, "no clang to compile the test's XDP program");
    }
    let output = run_behind(&[&["unshare", "--net"], wrapper].concat(), test);
    let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "inside the namespace:\n{words}");
    assert!(words.contains("1 passed"), "{test} is not the name of this test:\n{words}");
    println!("{words}");
}

fn in_namespace(test: &str, body: impl FnOnce(Lab)) {
    in_namespace_behind(test, &[], body);
}

/// The veth pair and a client's socket.
struct Lab {
    ifindex: u32,
    client: UdpSocket,
}

impl Lab {
    fn new() -> Self {
        ip("link add client address 02:00:00:00:00:01 type veth peer name server address 02:00:00:00:00:02");
        for end in ["client", "server"] {
            ip(&format!("link set {end} addrgenmode none"));
            ip(&format!("link set {end} up"));
        }
        ip("addr add 10.99.0.1/24 dev client");
        let shown = ip("-o link show server");
        let client = UdpSocket::bind("10.99.0.1:5000").unwrap();
        client.connect("10.99.0.2:123").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let lab = Self { ifindex: shown.split(':').next().unwrap().parse().unwrap(), client };
        lab.know_the_server();
        lab
    }

    /// A static neighbour entry: the server's side answers no ARP. Setting `client` down loses it.
    fn know_the_server(&self) {
        ip("neigh replace 10.99.0.2 lladdr 02:00:00:00:00:02 dev client");
    }

    fn config(&self) -> PortConfig {
        PortConfig::new(self.ifindex, 0)
    }

    fn serve(&self, config: &PortConfig) -> Server {
        let program = Program::attach();
        Server::new(Port::open(config).unwrap(), program)
    }

    fn ask(&self, count: usize) {
        for _ in 0..count {
            self.client.send(b"ping").unwrap();
        }
    }

    fn expect_replies(&self, count: usize) {
        let mut reply = [0; 100];
        for _ in 0..count {
            let length = self.client.recv(&mut reply).unwrap();
            assert_eq!(&reply[..length], b"ping");
        }
    }

    fn forget_replies(&self) {
        self.client.set_nonblocking(true).unwrap();
        while self.client.recv(&mut [0; 100]).is_ok() {}
        self.client.set_nonblocking(false).unwrap();
    }
}

/// The redirecting XDP program, attached to `server` as long as it lives.
struct Program {
    _ebpf: Ebpf,
    sockets: XskMap<MapData>,
}

impl Program {
    fn attach() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (source, object) = (directory.path().join("redirect.c"), directory.path().join("redirect.o"));
        std::fs::write(&source, REDIRECT_C).unwrap();
        let include = format!("-I/usr/include/{}-linux-gnu", env::consts::ARCH);
        let (source, object) = (source.to_str().unwrap(), object.to_str().unwrap());
        run("clang", &["-O2", "-g", "-target", "bpf", &include, "-c", source, "-o", object]);
        let mut ebpf = Ebpf::load(&std::fs::read(object).unwrap()).unwrap();
        let program: &mut Xdp = ebpf.program_mut("redirect").unwrap().try_into().unwrap();
        program.load().unwrap();
        program.attach("server", XdpMode::Driver).unwrap();
        let sockets = XskMap::try_from(ebpf.take_map("xsks").unwrap()).unwrap();
        Self { _ebpf: ebpf, sockets }
    }
}

/// A port that answers.
struct Server {
    port: Port,
    program: Program,
    frames: Vec<Frame>,
}

type Completed = Vec<(FrameNumber, Option<TransmitStamp>)>;

impl Server {
    fn new(port: Port, mut program: Program) -> Self {
        program.sockets.set(0, port.as_fd(), 0).unwrap();
        Self { port, program, frames: Vec::with_capacity(BATCH) }
    }

    /// Waits for exactly `count` packets.
    fn receive(&mut self, count: usize) -> Vec<Frame> {
        let mut frames = Vec::with_capacity(BATCH);
        let start = Instant::now();
        while frames.len() < count {
            self.port.receive(&mut frames);
            assert!(start.elapsed() < PATIENCE, "{} received", frames.len());
        }
        assert_eq!(frames.len(), count);
        frames
    }

    /// Sends a packet back where it came from.
    fn reply(&mut self, frame: Frame, stamp: StampRequest) -> bool {
        swap_addresses(self.port.packet_mut(&frame));
        let length = frame.len();
        self.port.send(frame, length, stamp)
    }

    /// One round of a worker: complete, receive, answer all, flush, refill. How many were answered, and the link.
    fn round(&mut self, completed: &mut Completed) -> (usize, Link) {
        self.port.complete(|frame, stamp| completed.push((frame, stamp)));
        let mut frames = std::mem::take(&mut self.frames);
        self.port.receive(&mut frames);
        let mut answered = 0;
        for frame in frames.drain(..) {
            if frame.len() >= ETHERNET_IPV4_UDP_BYTES && self.port.packet(&frame)[12..14] == [8, 0] {
                answered += usize::from(self.reply(frame, StampRequest::Transmit));
            } else {
                self.port.recycle(frame);
            }
        }
        self.frames = frames;
        let link = self.port.flush();
        assert_eq!(self.port.refill(), Link::Up);
        (answered, link)
    }

    /// Rounds until `count` packets were answered and all of them completed.
    fn answer(&mut self, count: usize) -> Completed {
        let (mut completed, mut answered) = (Vec::new(), 0);
        let start = Instant::now();
        while answered < count || completed.len() < count {
            assert!(start.elapsed() < PATIENCE, "{answered} answered, {} completed", completed.len());
            answered += self.round(&mut completed).0;
        }
        completed
    }

    /// Flushes until `count` packets have left, taking nothing in.
    fn drain(&mut self, count: usize) -> Completed {
        let mut completed = Vec::new();
        let start = Instant::now();
        while completed.len() < count {
            assert!(start.elapsed() < PATIENCE, "{} completed: {:?}", completed.len(), self.port.counters());
            assert_eq!(self.port.flush(), Link::Up);
            self.port.complete(|frame, stamp| completed.push((frame, stamp)));
        }
        completed
    }

    #[track_caller]
    fn assert_conserved(&self) {
        let balance = self.port.conservation();
        assert!(balance.is_balanced(), "{balance:?}");
        assert_eq!(balance, self.port.audit());
        assert_eq!((balance.in_hand, balance.transmit), (0, 0), "{balance:?}");
        assert_eq!(self.port.counters().foreign, 0);
    }
}

/// Ethernet, IPv4 and UDP addresses swapped, and the unfinished UDP checksum of a local peer removed.
fn swap_addresses(packet: &mut [u8]) {
    let (to, from) = packet[..12].split_at_mut(6);
    to.swap_with_slice(from);
    let (from, to) = packet[26..34].split_at_mut(4);
    from.swap_with_slice(to);
    let (from, to) = packet[34..38].split_at_mut(2);
    from.swap_with_slice(to);
    packet[40..42].fill(0);
}

fn tai_nanoseconds(stamp: Option<TransmitStamp>) -> i64 {
    match stamp {
        Some(TransmitStamp::Tai(stamp)) => stamp.nanoseconds(),
        other => panic!("copy mode stamps with CLOCK_TAI, not {other:?}"),
    }
}

#[test]
fn answers_with_metadata_in_and_stamps_out() {
    in_namespace("answers_with_metadata_in_and_stamps_out", |lab| {
        let mut server = lab.serve(&lab.config());
        let facts = server.port.facts();
        assert!(!facts.zero_copy && facts.tx_metadata && facts.need_wakeup, "{facts:?}");
        assert_eq!(facts.memory_bytes, lab.config().memory_bytes());

        lab.ask(4);
        let mut asked = Vec::new();
        for (position, frame) in server.receive(4).into_iter().enumerate() {
            let metadata: [u8; RX_METADATA_BYTES] = *server.port.metadata(&frame).unwrap();
            let [magic, stamp, queue] =
                [0, 8, 16].map(|at| u64::from_ne_bytes(metadata[at..at + 8].try_into().unwrap()));
            assert_eq!((magic, queue), (MAGIC, 0));
            let request = if position % 2 == 0 { StampRequest::Transmit } else { StampRequest::None };
            asked.push((frame.number(), request, stamp.cast_signed()));
            assert!(server.reply(frame, request));
        }
        assert_eq!(server.port.flush(), Link::Up);
        let completed = server.drain(4);
        // TAI runs ahead of UTC by the kernel's offset, 0 to 37 s so far.
        let realtime = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as i64;
        for (number, request, received_at) in asked {
            let (_, stamp) = completed.iter().find(|(completed, _)| *completed == number).unwrap();
            if request == StampRequest::None {
                assert_eq!(*stamp, None);
                continue;
            }
            let sent_at = tai_nanoseconds(*stamp);
            assert!((received_at..received_at + 1_000_000_000).contains(&sent_at), "{received_at} {sent_at}");
            assert!((sent_at - realtime).abs() < 60_000_000_000, "{sent_at} is not TAI: {realtime}");
            println!("frame {number:?}: transmit stamp {} ns after the receive stamp", sent_at - received_at);
        }
        lab.expect_replies(4);
        assert_eq!(server.port.refill(), Link::Up);
        server.assert_conserved();
    });
}

#[test]
fn conserves_frames_over_100_000_packets() {
    in_namespace("conserves_frames_over_100_000_packets", |lab| {
        const COUNT: u64 = 100_000;
        let mut server = lab.serve(&lab.config());
        let (mut sent, mut stamped) = (0_u64, 0);
        let mut reply = [0; 100];
        let start = Instant::now();
        while sent < COUNT {
            let batch = sent..COUNT.min(sent + 50);
            for number in batch.clone() {
                lab.client.send(&number.to_ne_bytes()).unwrap();
            }
            let completed = server.answer(batch.clone().count());
            stamped += completed.into_iter().map(|(_, stamp)| tai_nanoseconds(stamp)).count();
            for number in batch.clone() {
                assert_eq!(lab.client.recv(&mut reply).unwrap(), 8);
                assert_eq!(reply[..8], number.to_ne_bytes());
            }
            sent = batch.end;
        }
        let statistics = server.port.statistics().unwrap();
        println!("{COUNT} packets there and back in {:?}; {statistics:?}", start.elapsed());
        server.assert_conserved();
        assert_eq!((statistics.port.tx_completed, stamped as u64), (COUNT, COUNT));
        let kernel = statistics.kernel;
        let lost = [kernel.rx_dropped, kernel.rx_invalid_descriptors, kernel.tx_invalid_descriptors];
        assert_eq!(lost, [0; 3], "{statistics:?}");
    });
}

#[test]
fn one_flush_sends_more_than_the_kernel_moves_at_once() {
    in_namespace("one_flush_sends_more_than_the_kernel_moves_at_once", |lab| {
        let mut server = lab.serve(&lab.config());
        lab.ask(BATCH);
        for frame in server.receive(BATCH) {
            assert!(server.reply(frame, StampRequest::Transmit));
        }
        assert_eq!(server.port.flush(), Link::Up);
        lab.expect_replies(BATCH);
        let expected = (BATCH as u64).div_ceil(server.port.facts().tx_budget.into());
        assert_eq!(server.port.counters().wakeups, expected, "{:?}", server.port.facts());
    });
}

#[test]
fn link_down_and_up_during_traffic_recovers() {
    in_namespace("link_down_and_up_during_traffic_recovers", |lab| {
        let mut server = lab.serve(&lab.config());
        for round in 0..5 {
            lab.ask(1);
            server.answer(1);
            lab.expect_replies(1);

            // Received while up, answered while down.
            lab.ask(10);
            let frames = server.receive(10);
            ip("link set server down");
            for frame in frames {
                assert!(server.reply(frame, StampRequest::Transmit));
            }
            let wakeups = server.port.counters().wakeups;
            assert_eq!((server.port.flush(), server.port.link()), (Link::Down, Link::Down), "round {round}");
            assert_eq!(server.port.counters().wakeups, wakeups + 1, "a link that is down is not spun on");
            assert_eq!(server.port.conservation().transmit, 10);
            ip("link set server up");
            server.drain(10);

            // The peer down instead: no carrier. The packet is dropped, the frame is not.
            lab.ask(1);
            let frames = server.receive(1);
            ip("link set client down");
            for frame in frames {
                assert!(server.reply(frame, StampRequest::None));
            }
            server.drain(1);
            assert_eq!(server.port.counters().tx_dropped, round + 1);
            assert_eq!(server.port.refill(), Link::Up);
            server.assert_conserved();
            ip("link set client up");
            lab.know_the_server();
            lab.forget_replies();
        }
        lab.ask(1);
        server.answer(1);
        lab.expect_replies(1);
        server.assert_conserved();
    });
}

#[test]
fn a_removed_interface_is_gone() {
    in_namespace("a_removed_interface_is_gone", |lab| {
        let mut server = lab.serve(&lab.config());
        lab.ask(1);
        let frames = server.receive(1);
        ip("link del server");
        for frame in frames {
            assert!(server.reply(frame, StampRequest::None));
        }
        assert_eq!((server.port.flush(), server.port.link()), (Link::Gone, Link::Gone));
        assert!(server.port.conservation().is_balanced());
    });
}

#[test]
fn a_dropped_port_frees_everything_at_once() {
    fn mapped_rings() -> usize {
        std::fs::read_to_string("/proc/self/maps").unwrap().matches("socket:[").count()
    }
    fn open_files() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }
    in_namespace("a_dropped_port_frees_everything_at_once", |lab| {
        let mut program = Program::attach();
        let before = (mapped_rings(), open_files());
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let start = Instant::now();
            let port = Port::open(&lab.config()).unwrap();
            slowest = slowest.max(start.elapsed());
            assert_eq!(mapped_rings(), before.0 + 4);
            let mut server = Server::new(port, program);
            lab.ask(1);
            server.answer(1);
            lab.expect_replies(1);
            program = server.program;
            drop(server.port);
            assert_eq!((mapped_rings(), open_files()), before);
        }
        println!("slowest of 20 opens right after a drop: {slowest:?}");
    });
}

#[test]
fn refusals_name_their_cause() {
    in_namespace("refusals_name_their_cause", |lab| {
        let config = lab.config();
        let error = Port::open(&PortConfig { mode: CopyMode::ZeroCopy, ..config.clone() }).unwrap_err();
        assert!(matches!(error, PortError::NoZeroCopy { .. }), "{error:?}");
        println!("{error}");
        let error = Port::open(&PortConfig { queue: 7, ..config.clone() }).unwrap_err();
        assert!(matches!(error, PortError::NoSuchQueue { queue: 7, .. }), "{error:?}");
        println!("{error}");
        let error = Port::open(&PortConfig { ifindex: 9999, ..config.clone() }).unwrap_err();
        assert!(matches!(error, PortError::NoSuchInterface { ifindex: 9999 }), "{error:?}");
        println!("{error}");
        let held = Port::open(&config).unwrap();
        let error = Port::open(&config).unwrap_err();
        assert!(matches!(error, PortError::QueueTaken { queue: 0, .. }), "{error:?}");
        println!("{error}");
        drop(held);
        assert!(Port::open(&config).is_ok());
    });
}

#[test]
fn every_option_still_answers() {
    in_namespace("every_option_still_answers", |lab| {
        let usual = lab.config();
        let busy_poll = Some(BusyPoll { duration: Duration::from_micros(20), budget: 64 });
        let configs = [
            PortConfig { tx_metadata: false, ..usual.clone() },
            PortConfig { need_wakeup: false, ..usual.clone() },
            PortConfig { busy_poll, ..usual.clone() },
            PortConfig { frame_bytes: 4096, ..usual.clone() },
            PortConfig { hugepages: HugepagePolicy::Prefer, ..usual },
        ];
        let mut program = Program::attach();
        for config in configs {
            let port = Port::open(&config).unwrap();
            let facts = port.facts().clone();
            println!("{facts:?}");
            assert_eq!(facts.tx_metadata, config.tx_metadata);
            assert_eq!(facts.busy_poll, config.busy_poll.is_some());
            if config.hugepages == HugepagePolicy::Prefer {
                let told = facts.refused.iter().any(|refused| refused.starts_with("hugepages: "));
                assert_eq!(told, facts.pages == Pages::Normal, "{facts:?}");
            }
            let mut server = Server::new(port, program);
            lab.ask(50);
            for (_, stamp) in server.answer(50) {
                assert_eq!(stamp.is_some(), config.tx_metadata);
            }
            lab.expect_replies(50);
            server.assert_conserved();
            program = server.program;
        }
    });
}

#[test]
fn too_little_locked_memory_is_said() {
    let wrapper = ["setpriv", "--bounding-set", "-ipc_lock", "prlimit", "--memlock=65536:65536"];
    in_namespace_behind("too_little_locked_memory_is_said", &wrapper, |lab| {
        let error = Port::open(&lab.config()).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, PortError::LockedMemory { limit: 65536, .. }), "{error:?}");
        assert!(text.contains("8388608 bytes") && text.contains("65536"), "{text}");
        println!("{text}");
    });
}

#[test]
fn no_privilege_is_said() {
    let wrapper = ["setpriv", "--bounding-set", "-net_raw"];
    in_namespace_behind("no_privilege_is_said", &wrapper, |lab| {
        let error = Port::open(&lab.config()).unwrap_err();
        assert!(matches!(error, PortError::NotPermitted), "{error:?}");
        println!("{error}");
    });
}
