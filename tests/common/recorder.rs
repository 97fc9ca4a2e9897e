//! Records the NTP packets of a test with ntp.org's ntpd, so that what it said is still there where it cannot be had:
//! `tests/captures` replays it.
//!
//! `TIMEBALL_RECORD=1 cargo test --test peers_symmetric` (and the other `peers_*`) writes the last packets of each row to
//! `tests/fixtures/ntpd-4.2.8/CRATE.ROW.txt`, in place of those that are there. Needs root and the daemon (`scripts/peers`).
#![allow(unsafe_code, reason = "a packet socket has no safe call in the standard library")]

use super::asker::as_server;
use super::{Lab, project};
use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// So many packets of a row are kept: some exchanges. The last ones, since ntpd takes a while until it is synchronised.
const PACKETS_MAX: usize = 16;
const NTP_PORT: u16 = 123;
/// Version 4, mode 3, and neither poll interval nor precision.
const QUERY: [u8; 4] = [0x23, 0, 0, 0];

/// Where the packets of all rows are.
pub fn fixtures() -> PathBuf {
    project("tests/fixtures/ntpd-4.2.8")
}

/// A recording that goes on until this is dropped.
#[derive(Debug)]
pub struct Recorder {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<VecDeque<String>>>,
    path: PathBuf,
}

impl Recorder {
    /// Records on the server's side of the lab, if that is wished.
    pub fn start(lab: &Lab) -> Option<Self> {
        std::env::var_os("TIMEBALL_RECORD")?;
        let row = std::thread::current().name()?.to_owned();
        let path = fixtures().join(format!("{}.{row}.txt", env!("CARGO_CRATE_NAME")));
        let is_over = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&is_over);
        let socket = as_server(lab, || packet_socket().unwrap());
        let thread = std::thread::spawn(move || record(socket, &theirs));
        Some(Self { is_over, thread: Some(thread), path })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let Some(Ok(packets)) = self.thread.take().map(JoinHandle::join) else { return };
        // Of a row that failed there is nothing to keep.
        if std::thread::panicking() {
            return;
        }
        fs::create_dir_all(fixtures()).unwrap();
        let text: String = packets.into_iter().collect();
        fs::write(&self.path, text).unwrap();
    }
}

/// Hears every packet of the namespace it is opened in, from the IP header on.
fn packet_socket() -> io::Result<File> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: takes three integers and touches no memory of ours.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM, protocol.into()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us, and nobody else closes it.
    let socket = unsafe { File::from_raw_fd(fd) };
    let patience = libc::timeval { tv_sec: 0, tv_usec: 100_000 };
    // SAFETY: the pointer is to a live timeval of the size that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

fn record(mut socket: File, is_over: &AtomicBool) -> VecDeque<String> {
    let (mut packets, mut queries) = (VecDeque::new(), BTreeSet::new());
    let mut octets = [0; 2048];
    while !is_over.load(Ordering::Relaxed) {
        let Ok(length) = socket.read(&mut octets) else { continue };
        let Some((source, destination, payload)) = datagram(&octets[..length]) else { continue };
        if ![source.port(), destination.port()].contains(&NTP_PORT) {
            continue;
        }
        // `timeball query`, by which a test learns whether ntpd follows us, says less than an association does.
        if payload.starts_with(&QUERY) {
            queries.insert(source.port());
        }
        if [source, destination].iter().any(|end| queries.contains(&end.port())) {
            continue;
        }
        let mut line = format!("{source} > {destination} ");
        for octet in payload {
            let _ = write!(line, "{octet:02x}");
        }
        line.push('\n');
        if packets.len() == PACKETS_MAX {
            packets.pop_front();
        }
        packets.push_back(line);
    }
    packets
}

/// Whence, whither and what of a UDP datagram over IPv4 or IPv6 without extension headers.
fn datagram(packet: &[u8]) -> Option<(SocketAddr, SocketAddr, &[u8])> {
    let (source, destination, rest): (IpAddr, IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 if *packet.get(9)? == 17 => {
            let address = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?).into());
            (address(12)?, address(16)?, packet.get(usize::from(packet[0] & 15) * 4..)?)
        }
        6 if *packet.get(6)? == 17 => {
            let address = |at: usize| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?).into());
            (address(8)?, address(24)?, packet.get(40..)?)
        }
        _ => return None,
    };
    let word = |at: usize| Some(u16::from_be_bytes(*rest.get(at..)?.first_chunk()?));
    let length = usize::from(word(4)?);
    Some((SocketAddr::new(source, word(0)?), SocketAddr::new(destination, word(2)?), rest.get(8..length)?))
}
