//! A thousand servers in one thread, and whoever wishes them and their client ill: packets written down to their IP headers,
//! since their senders' addresses are anybody's.
#![allow(unsafe_code, reason = "a raw socket has no safe call in the standard library")]

use super::common::random::Random;
use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use timeball::sys::process::{PollEntry, poll};
use timeball::sys::scheduling;
use timeball::sys::socket::TalkSocket;

/// Whom they all speak to.
const VICTIM: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 1);
/// The first server's address; the others follow. `allow_any_source` makes them the client's.
const FIRST: u32 = 0x0a63_8001;
/// So many servers, the first ones, never answer, so that the sockets that wait for them stay open.
pub const MUTE: u32 = 20;
/// Requests to mute servers that are remembered: they are asked every two seconds, so the last ones wait for an answer.
const WAITING_MAX: usize = MUTE as usize;
/// How often the hostile send.
const PACE: Duration = Duration::from_millis(1);
/// Of the hostile packets, one in so many goes to a socket that waits for an answer.
const TO_EXCHANGES: u64 = 4;

/// What the servers and the hostile know of each other.
#[derive(Debug, Default)]
pub struct Network {
    /// Of requests to mute servers: who was asked, from which port, with which transmit timestamp.
    waiting: Mutex<VecDeque<(Ipv4Addr, u16, [u8; 8])>>,
    /// Requests that came.
    pub requests: AtomicU64,
    /// Hostile packets that left, and those of them that go to a socket of an exchange.
    pub sent: AtomicU64,
    pub to_exchanges: AtomicU64,
    /// Are the hostile at work?
    pub is_hostile: AtomicBool,
    pub is_over: AtomicBool,
    /// Of clients: requests, and replies to them.
    pub asked: AtomicU64,
    pub answered: AtomicU64,
}

/// The address of a server.
pub fn server(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST + number)
}

fn number(server: Ipv4Addr) -> u32 {
    server.to_bits().wrapping_sub(FIRST)
}

/// A socket to which a packet's IP header is given.
fn raw_socket() -> UdpSocket {
    // SAFETY: takes three integers and touches no memory of ours.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW) };
    assert!(fd >= 0, "raw socket: {}", io::Error::last_os_error());
    // SAFETY: the kernel has just opened it for us, and nobody else closes it. (Only `send_to` is called, which is the same
    // system call for every kind of socket.)
    unsafe { UdpSocket::from_raw_fd(fd) }
}

/// An IPv4 packet with a UDP datagram. The kernel fills in the header's checksum and identification; without a UDP checksum.
fn datagram(source: SocketAddrV4, port: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet[2..4].copy_from_slice(&(20 + length).to_be_bytes());
    packet.extend(source.ip().octets());
    packet.extend(VICTIM.octets());
    packet.extend([source.port().to_be_bytes(), port.to_be_bytes(), length.to_be_bytes(), [0; 2]].concat());
    packet.extend(payload);
    packet
}

fn send(socket: &UdpSocket, packet: &[u8]) -> bool {
    socket.send_to(packet, SocketAddrV4::new(VICTIM, 0)).is_ok()
}

/// Now, as NTP has it.
fn now() -> [u8; 8] {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let fraction = (u64::from(since.subsec_nanos()) << 32) / 1_000_000_000;
    ((since.as_secs() + 2_208_988_800) << 32 | fraction).to_be_bytes()
}

/// What a good server of stratum 2 answers, in this mode.
fn answer(mode: u8, origin: [u8; 8], received: [u8; 8]) -> [u8; 48] {
    let mut header = [0; 48];
    header[..4].copy_from_slice(&[4 << 3 | mode, 2, 4, 0xe9]);
    header[4..12].copy_from_slice(&[0, 0, 1, 0, 0, 0, 1, 0]);
    header[12..16].copy_from_slice(&[192, 0, 2, 1]);
    header[16..24].copy_from_slice(&received);
    header[24..32].copy_from_slice(&origin);
    header[32..40].copy_from_slice(&received);
    header[40..].copy_from_slice(&now());
    header
}

impl Network {
    /// Answers what comes to the servers' addresses. Called inside the client's namespace.
    pub fn serve(&self) {
        let socket = TalkSocket::bound(SocketAddr::from(([0, 0, 0, 0], 123)), None).unwrap();
        let raw = raw_socket();
        while !self.is_over.load(Ordering::Relaxed) {
            let mut entries = [PollEntry::readable(socket.as_fd().as_raw_fd())];
            poll(&mut entries, Some(Duration::from_millis(100))).unwrap();
            while let Ok(Some(request)) = socket.receive() {
                let (Some(std::net::IpAddr::V4(asked)), SocketAddr::V4(client)) =
                    (request.destination, request.source)
                else {
                    continue;
                };
                let Some(transmit) = request.payload().get(40..48) else { continue };
                self.requests.fetch_add(1, Ordering::Relaxed);
                let transmit = transmit.try_into().unwrap();
                if number(asked) < MUTE {
                    let mut waiting = self.waiting.lock().unwrap();
                    waiting.truncate(WAITING_MAX - 1);
                    waiting.push_front((asked, client.port(), transmit));
                } else {
                    let packet =
                        datagram(SocketAddrV4::new(asked, 123), client.port(), &answer(4, transmit, now()));
                    send(&raw, &packet);
                }
            }
        }
    }

    /// So many requests a second, one by one. Before everybody else on its CPU, so that they come no thicker when others have
    /// much to do: clients elsewhere would not know of it either. (`timeball load` on a veth never sleeps, and would be what
    /// the others wait for.) Called inside the client's namespace.
    pub fn ask(&self, rate: u64) {
        scheduling::set_realtime_priority(10).unwrap();
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        socket.connect((VICTIM, 123)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut request = [0; 48];
        request[0] = 4 << 3 | 3;
        let (begin, mut sent, mut reply) = (Instant::now(), 0_u64, [0; 64]);
        while !self.is_over.load(Ordering::Relaxed) {
            let due = Duration::from_secs_f64(sent as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
            request[40..].copy_from_slice(&now());
            // Refused as long as nobody serves.
            self.asked.fetch_add(socket.send(&request).is_ok().into(), Ordering::Relaxed);
            sent += 1;
            while socket.recv(&mut reply).is_ok_and(|length| length == 48) {
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Sends so many hostile packets a second while [`Self::is_hostile`]. Called inside the client's namespace.
    pub fn assail(&self, rate: u64, servers: u32) {
        let raw = raw_socket();
        let mut random = Random::new(4);
        let mut hostile = Hostile { random: Random::new(11), servers };
        while !self.is_over.load(Ordering::Relaxed) {
            let (begin, mut sent) = (Instant::now(), 0);
            while self.is_hostile.load(Ordering::Relaxed) {
                std::thread::sleep(PACE);
                let due = (begin.elapsed().as_secs_f64() * rate as f64) as u64;
                for count in sent..due {
                    let target = (count % TO_EXCHANGES == 0).then(|| self.waiting(&mut random)).flatten();
                    let packet = match target {
                        Some((server, port, nonce)) => hostile.at_exchange(server, port, nonce),
                        None => hostile.at_port_123(count),
                    };
                    if !send(&raw, &packet) {
                        continue;
                    }
                    self.sent.fetch_add(1, Ordering::Relaxed);
                    if target.is_some() {
                        self.to_exchanges.fetch_add(1, Ordering::Relaxed);
                    }
                }
                sent = due;
            }
            std::thread::sleep(PACE);
        }
    }

    /// One of the last requests to mute servers, some of which still wait.
    fn waiting(&self, random: &mut Random) -> Option<(Ipv4Addr, u16, [u8; 8])> {
        let waiting = self.waiting.lock().unwrap();
        (!waiting.is_empty()).then(|| waiting[random.below(waiting.len())])
    }
}

struct Hostile {
    random: Random,
    servers: u32,
}

impl Hostile {
    /// Of each kind in turn: what no server of ours would send to port 123.
    fn at_port_123(&mut self, count: u64) -> Vec<u8> {
        let known = SocketAddrV4::new(server(self.random.below(self.servers as usize) as u32), 123);
        // Of 10.99.192.0/18: nobody that is asked.
        let stranger = Ipv4Addr::from_bits(0x0a63_c000 | self.random.below(1 << 14) as u32);
        let stranger = SocketAddrV4::new(stranger, 123);
        let nonce = self.random.next().to_be_bytes();
        let whole = |mode| answer(mode, nonce, now()).to_vec();
        let (source, payload) = match count % 12 {
            0 => (stranger, whole(1)),
            1 => (stranger, self.with_mac(whole(1))),
            2 => (known, whole(1)),
            3 => (stranger, whole(2)),
            4 => (known, whole(2)),
            5 => (stranger, whole(5)),
            6 => (known, whole(4)),
            7 => (stranger, whole(6)),
            8 => (stranger, whole(7)),
            9 => (stranger, [whole(4), vec![0; 4]].concat()),
            10 => (known, self.with_mac(whole(4))),
            // A peer's, cut short.
            _ => (stranger, whole(1)[..20].to_vec()),
        };
        datagram(source, 123, &payload)
    }

    /// A key that the daemon has, and not what it would have made with it.
    fn with_mac(&mut self, mut packet: Vec<u8>) -> Vec<u8> {
        packet.extend([0, 0, 0, 1]);
        packet.extend(self.random.next().to_be_bytes());
        packet.extend(self.random.next().to_be_bytes());
        packet
    }

    /// In a server's name and to the right port, but not the answer: the request's transmit timestamp is known to the server
    /// alone (`nonce`), and so all but the last two have a guess in its place.
    fn at_exchange(&mut self, server: Ipv4Addr, port: u16, nonce: [u8; 8]) -> Vec<u8> {
        let guess = self.random.next().to_be_bytes();
        let payload = match self.random.below(8) {
            0 => answer(4, guess, now()).to_vec(),
            1 => answer(4, [0; 8], now()).to_vec(),
            2 => self.with_mac(answer(4, guess, now()).to_vec()),
            3 => [answer(4, guess, now()).to_vec(), vec![0; 4]].concat(),
            4 => answer(4, guess, now())[..40].to_vec(),
            // A kiss: deny, from whoever guesses.
            5 => {
                let mut kiss = answer(4, guess, now());
                kiss[1] = 0;
                kiss[12..16].copy_from_slice(b"DENY");
                kiss.to_vec()
            }
            6 => answer(1, nonce, now()).to_vec(),
            _ => answer(5, nonce, now()).to_vec(),
        };
        datagram(SocketAddrV4::new(server, 123), port, &payload)
    }
}
