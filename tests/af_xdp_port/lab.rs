//! The veth pair, its XDP program, the client and the answering server of these tests.

use aya::Ebpf;
use aya::maps::{MapData, XskMap};
use aya::programs::{Xdp, xdp::XdpMode};
use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use timeball::datapath::af_xdp::{
    BATCH, Frame, FrameNumber, Link, Port, PortConfig, StampRequest, TransmitStamp,
};

/// Set in the child that runs inside the namespace.
const INSIDE: &str = "TIMEBALL_TEST_INSIDE";
pub(crate) const MAGIC: u64 = 0x7469_6d65_6261_6c6c;
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
char _license[] SEC("license") = "GPL";
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

pub(crate) fn ip(arguments: &str) -> String {
    run("ip", &arguments.split_whitespace().collect::<Vec<_>>())
}

/// Waits until both ends carry packets: the kernel starts their queues some time after the link is up, and drops
/// what is sent before.
pub(crate) fn wait_for_carrier() {
    let start = Instant::now();
    for end in ["server", "client"] {
        while !ip(&format!("link show {end}")).contains("state UP") {
            assert!(start.elapsed() < PATIENCE, "{end} does not come up");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
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
pub(crate) fn in_namespace_behind(test: &str, wrapper: &[&str], body: impl FnOnce(Lab)) {
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

pub(crate) fn in_namespace(test: &str, body: impl FnOnce(Lab)) {
    in_namespace_behind(test, &[], body);
}

/// The veth pair and a client's socket.
pub(crate) struct Lab {
    pub(crate) ifindex: u32,
    pub(crate) client: UdpSocket,
}

impl Lab {
    pub(crate) fn new() -> Self {
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
    pub(crate) fn know_the_server(&self) {
        ip("neigh replace 10.99.0.2 lladdr 02:00:00:00:00:02 dev client");
    }

    pub(crate) fn config(&self) -> PortConfig {
        PortConfig::new(self.ifindex, 0)
    }

    pub(crate) fn serve(&self, config: &PortConfig) -> Server {
        let program = Program::attach(XdpMode::Driver);
        Server::new(Port::open(config).unwrap(), program)
    }

    pub(crate) fn ask(&self, count: usize) {
        for _ in 0..count {
            self.client.send(b"ping").unwrap();
        }
    }

    pub(crate) fn expect_replies(&self, count: usize) {
        let mut reply = [0; 100];
        for _ in 0..count {
            let length = self.client.recv(&mut reply).unwrap();
            assert_eq!(&reply[..length], b"ping");
        }
    }

    pub(crate) fn forget_replies(&self) {
        self.client.set_nonblocking(true).unwrap();
        while self.client.recv(&mut [0; 100]).is_ok() {}
        self.client.set_nonblocking(false).unwrap();
    }
}

/// The redirecting XDP program, attached to `server` as long as it lives.
pub(crate) struct Program {
    _ebpf: Ebpf,
    pub(crate) sockets: XskMap<MapData>,
}

impl Program {
    pub(crate) fn attach(mode: XdpMode) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (source, object) = (directory.path().join("redirect.c"), directory.path().join("redirect.o"));
        std::fs::write(&source, REDIRECT_C).unwrap();
        let include = format!("-I/usr/include/{}-linux-gnu", env::consts::ARCH);
        let (source, object) = (source.to_str().unwrap(), object.to_str().unwrap());
        run("clang", &["-O2", "-g", "-target", "bpf", &include, "-c", source, "-o", object]);
        let mut ebpf = Ebpf::load(&std::fs::read(object).unwrap()).unwrap();
        let program: &mut Xdp = ebpf.program_mut("redirect").unwrap().try_into().unwrap();
        program.load().unwrap();
        program.attach("server", mode).unwrap();
        let sockets = XskMap::try_from(ebpf.take_map("xsks").unwrap()).unwrap();
        Self { _ebpf: ebpf, sockets }
    }
}

/// A port that answers.
pub(crate) struct Server {
    pub(crate) port: Port,
    pub(crate) program: Program,
    pub(crate) frames: Vec<Frame>,
}

pub(crate) type Completed = Vec<(FrameNumber, Option<TransmitStamp>)>;

impl Server {
    pub(crate) fn new(port: Port, mut program: Program) -> Self {
        program.sockets.set(0, port.as_fd(), 0).unwrap();
        Self { port, program, frames: Vec::with_capacity(BATCH) }
    }

    /// Waits for exactly `count` packets.
    pub(crate) fn receive(&mut self, count: usize) -> Vec<Frame> {
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
    pub(crate) fn reply(&mut self, frame: Frame, stamp: StampRequest) -> bool {
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
    pub(crate) fn answer(&mut self, count: usize) -> Completed {
        let (mut completed, mut answered) = (Vec::new(), 0);
        let start = Instant::now();
        while answered < count || completed.len() < count {
            assert!(start.elapsed() < PATIENCE, "{answered} answered, {} completed", completed.len());
            answered += self.round(&mut completed).0;
        }
        completed
    }

    /// Flushes until `count` packets have left, taking nothing in.
    pub(crate) fn drain(&mut self, count: usize) -> Completed {
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
    pub(crate) fn assert_conserved(&self) {
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

pub(crate) fn tai_nanoseconds(stamp: Option<TransmitStamp>) -> i64 {
    match stamp {
        Some(TransmitStamp::Tai(stamp)) => stamp.nanoseconds(),
        other => panic!("copy mode stamps with CLOCK_TAI, not {other:?}"),
    }
}
