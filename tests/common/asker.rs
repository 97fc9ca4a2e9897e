//! A client made of plain sockets, which asks from any address of the lab and shows the reply's fields.
//!
//! The one idea a newcomer lacks: a socket stays in the network namespace it was made in, so one short-lived thread
//! that enters the client's namespace is enough; the test uses its sockets from wherever it runs.
#![allow(unsafe_code, reason = "entering a namespace has no safe call in the standard library")]

use super::{Lab, run_well};
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long one answer may take. Within a machine it takes microseconds; a loaded one may be slow.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// The client's address that is there without more.
pub const CLIENT: &str = "10.99.1.2";

/// Runs `what` inside the client's network namespace.
pub fn as_client<T: Send>(lab: &Lab, what: impl FnOnce() -> T + Send) -> T {
    inside(&lab.client_namespace(), what)
}

/// Runs `what` inside the server's network namespace.
pub fn as_server<T: Send>(lab: &Lab, what: impl FnOnce() -> T + Send) -> T {
    inside(&lab.server_namespace(), what)
}

/// Runs `what` inside the network namespace that this file stands for.
pub fn inside<T: Send>(namespace: &Path, what: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(namespace).unwrap();
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            // SAFETY: setns takes no pointers, the descriptor is open, and it moves this thread only.
            let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "setns: {}", io::Error::last_os_error());
            what()
        });
        inside.join().unwrap()
    })
}

/// Lets the client ask from any of 10.99.0.0/16 and fd99::/16, and the server reach it there.
pub fn allow_any_source(lab: &Lab) {
    let client = |words: &str| run_well(lab.on_client("ip").args(words.split_whitespace()));
    // Addresses of a local route are ours as if they were configured.
    client("route add local 10.99.128.0/17 dev lo");
    client("-6 route add local fd99:8000::/17 dev lo");
    run_well(lab.on_client("sysctl").args(["-q", "net.ipv6.ip_nonlocal_bind=1"]));
    // Neighbour discovery works only a second or two after the link came up.
    let (mut on_server, mut on_client) = (lab.on_server("cat"), lab.on_client("cat"));
    let link_address = |command: &mut Command| run_well(command.arg("/sys/class/net/tb0/address"));
    client(&format!("-6 neigh replace fd99:1::1 lladdr {} dev tb0", link_address(&mut on_server).trim()));
    lab.server_ip(&format!(
        "-6 neigh replace fd99:1::2 lladdr {} dev tb0",
        link_address(&mut on_client).trim()
    ));
    lab.server_ip("route add 10.99.128.0/17 via 10.99.1.2");
    lab.server_ip("-6 route add fd99:8000::/17 via fd99:1::2");
}

/// A socket of the client, bound to an address and connected to the server's port 123.
#[derive(Debug)]
pub struct Asker {
    socket: UdpSocket,
}

/// The fields of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reply {
    /// Octets of UDP payload.
    pub length: usize,
    /// Leap indicator, 0 to 3.
    pub leap: u8,
    /// As on the wire: 0 is unsynchronised or a kiss.
    pub stratum: u8,
    /// Base-2 logarithm of seconds.
    pub poll: i8,
    /// 2^-16 s.
    pub root_dispersion: u32,
    /// Four octets, letters in a kiss.
    pub reference_id: [u8; 4],
}

impl Asker {
    /// From `source`, any free port, to `server` (with `%interface` after a link-local address).
    pub fn new(lab: &Lab, source: &str, server: &str) -> Self {
        as_client(lab, || Self::here(source, server))
    }

    /// The same in the namespace where the calling thread is.
    pub fn here(source: &str, server: &str) -> Self {
        let socket = UdpSocket::bind((source.parse::<IpAddr>().unwrap(), 0)).unwrap();
        let server: SocketAddr = (server, 123).to_socket_addrs().unwrap().next().unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(ANSWER_TIME)).unwrap();
        Self { socket }
    }

    /// `count` sockets from one address, each with a port of its own.
    pub fn several(lab: &Lab, count: usize, source: &str, server: &str) -> Vec<Self> {
        as_client(lab, || (0..count).map(|_| Self::here(source, server)).collect())
    }

    /// Sends a version 4 request. What the network did to earlier ones (an ICMP error) is not this one's fault.
    pub fn send(&self, cookie: u64) {
        self.send_request(&request(4, cookie));
    }

    /// Sends these octets.
    pub fn send_request(&self, request: &[u8]) {
        for _ in 0..3 {
            if self.socket.send(request).is_ok() {
                return;
            }
        }
    }

    /// Sends a request and waits for its reply.
    pub fn ask(&self) -> Option<Reply> {
        let cookie = std::process::id().into();
        self.ask_with(&request(4, cookie))
    }

    /// Sends these octets and waits for the reply.
    pub fn ask_with(&self, request: &[u8]) -> Option<Reply> {
        self.send_request(request);
        self.receive(ANSWER_TIME)
    }

    /// The next reply that comes within `patience`; it has to be one of mode 4.
    pub fn receive(&self, patience: Duration) -> Option<Reply> {
        let deadline = Instant::now() + patience;
        let mut buffer = [0; 2048];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
            match self.socket.recv(&mut buffer) {
                Ok(length) => return Some(Reply::of(&buffer[..length])),
                // Port unreachable: nobody listens, which is no answer either.
                Err(_) if left.is_zero() => return None,
                Err(_) => {}
            }
        }
    }

    /// All replies that have come already.
    pub fn receive_pending(&self) -> Vec<Reply> {
        self.socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 2048];
        let next = || self.socket.recv(&mut buffer).ok().map(|length| Reply::of(&buffer[..length]));
        let replies = std::iter::from_fn(next).collect();
        self.socket.set_nonblocking(false).unwrap();
        replies
    }

    /// All replies that come until none has for `silence`.
    pub fn receive_all(&self, silence: Duration) -> Vec<Reply> {
        std::iter::from_fn(|| self.receive(silence)).collect()
    }
}

impl Reply {
    fn of(payload: &[u8]) -> Self {
        assert!(payload.len() >= 48 && payload[0] & 7 == 4, "no reply: {payload:02x?}");
        Self {
            length: payload.len(),
            leap: payload[0] >> 6,
            stratum: payload[1],
            poll: payload[2] as i8,
            root_dispersion: u32::from_be_bytes(payload[8..12].try_into().unwrap()),
            reference_id: payload[12..16].try_into().unwrap(),
        }
    }

    /// The code of a Kiss-o'-Death, `None` for a reply that tells the time or that nobody knows it.
    pub fn kiss(&self) -> Option<&str> {
        let is_kiss = self.stratum == 0 && self.reference_id != [0; 4];
        is_kiss.then(|| std::str::from_utf8(&self.reference_id).unwrap())
    }
}

/// A request of 48 octets.
pub fn request(version: u8, cookie: u64) -> [u8; 48] {
    let mut request = [0; 48];
    request[0] = version << 3 | 3;
    request[40..].copy_from_slice(&(cookie | 1 << 63).to_be_bytes());
    request
}
