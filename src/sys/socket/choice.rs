//! Which socket of a `SO_REUSEPORT` group gets a datagram: clients' requests are spread over the first sockets, and
//! everything else goes to one behind them.
//!
//! Owns: the classic BPF program that the kernel runs for each datagram. Does not own: that the group's sockets were bound
//! in this order, which is what it counts them by.

use super::UdpSocket;
use std::io;
use std::os::fd::AsRawFd;

/// An NTP packet's mode: the low three bits of its first octet.
const MODE_MASK: u32 = 7;
const MODE_CLIENT: u32 = 3;
/// Knuth's multiplicative hash: the golden ratio in 32 bits.
const GOLDEN: u32 = 0x9e37_79b1;

/// Offsets within the IP header, for one of the two protocols.
struct Offsets {
    /// The last 32 bits of the source address.
    source: u32,
    /// The UDP source port, where the header has its usual length. If not, other octets of the packet are as good.
    source_port: u32,
}

const IPV4: Offsets = Offsets { source: 12, source_port: 20 };
const IPV6: Offsets = Offsets { source: 20, source_port: 40 };

impl UdpSocket {
    /// From now on the group's first `clients` sockets, in the order of their binding, share the clients' requests (mode 3),
    /// as the hash of who asks will have it; the next one gets all the rest. What is empty goes to the first. This
    /// socket must be a member of the group already.
    ///
    /// # Errors
    /// What the kernel says, which has known this since 4.6: a sandbox or time simulator may not.
    pub fn keep_for_clients(&self, clients: u32) -> io::Result<()> {
        let mut program = program(if self.local.is_ipv4() { &IPV4 } else { &IPV6 }, clients.max(1));
        let described =
            libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_mut_ptr() };
        let length = size_of_val(&described) as libc::socklen_t;
        let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF);
        let value = (&raw const described).cast();
        // SAFETY: `described` and the program that it points to live through the call, which only reads them.
        let result = unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, option, value, length) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// The kernel shows it the UDP payload, with the IP header at `SKF_NET_OFF`. A load from beyond the packet returns 0.
fn program(offsets: &Offsets, clients: u32) -> Vec<libc::sock_filter> {
    let instruction = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let at_ip_header = |offset: u32| libc::SKF_NET_OFF.cast_unsigned().wrapping_add(offset);
    vec![
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0),
        instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, MODE_MASK),
        libc::sock_filter { jt: 1, ..instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, MODE_CLIENT) },
        instruction(libc::BPF_RET | libc::BPF_K, clients),
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at_ip_header(offsets.source)),
        instruction(libc::BPF_MISC | libc::BPF_TAX, 0),
        instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, at_ip_header(offsets.source_port)),
        instruction(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0),
        instruction(libc::BPF_ALU | libc::BPF_MUL | libc::BPF_K, GOLDEN),
        instruction(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 16),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, clients),
        instruction(libc::BPF_RET | libc::BPF_A, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, Sharing, UdpOptions};
    use super::*;
    use std::net::SocketAddr;

    /// The datagrams that wait at a socket, by their first octet.
    fn waiting(socket: &UdpSocket) -> Vec<Option<u8>> {
        let mut batch = Batch::new();
        let mut all = Vec::new();
        while socket.receive(&mut batch).unwrap().whole > 0 {
            all.extend(batch.datagrams().map(|datagram| datagram.payload().first().copied()));
        }
        all
    }

    fn group(address: &str, members: u32) -> Vec<UdpSocket> {
        let options = UdpOptions::default();
        let mut local: SocketAddr = address.parse().unwrap();
        let bound = (0..members).map(|number| {
            let sharing = if number == 0 { Sharing::Exclusive } else { Sharing::Group };
            let socket = UdpSocket::bind(local, sharing, &options).unwrap();
            local = socket.local_address();
            socket.share().unwrap();
            socket
        });
        bound.collect()
    }

    #[test]
    fn clients_are_spread_and_everything_else_is_for_the_last_socket() {
        for address in ["127.0.3.5:0", "[::1]:0"] {
            for clients in [1_u32, 3] {
                let group = group(address, clients + 1);
                let (last, workers) = group.split_last().unwrap();
                last.keep_for_clients(clients).unwrap();
                let to = last.local_address();
                let mut requests = vec![0; workers.len()];
                for _ in 0..64 {
                    // A port of its own each.
                    let from = if to.is_ipv4() { "127.0.3.6:0" } else { "[::1]:0" };
                    let client = std::net::UdpSocket::bind(from).unwrap();
                    // Versions 1 and 4, and every mode.
                    for first in (0x08..0x10).chain(0x20..0x28) {
                        client.send_to(&[first, 1, 2], to).unwrap();
                    }
                    client.send_to(&[], to).unwrap();
                    let others = waiting(last);
                    assert_eq!(others.len(), 14);
                    assert!(others.iter().all(|first| first.unwrap() & 7 != 3));
                    for (number, worker) in workers.iter().enumerate() {
                        let all = waiting(worker);
                        let asking = all.iter().flatten().count();
                        assert!(all.iter().flatten().all(|first| first & 7 == 3));
                        assert_eq!(all.len() - asking, usize::from(number == 0));
                        requests[number] += asking;
                    }
                }
                assert_eq!(requests.iter().sum::<usize>(), 2 * 64);
                assert!(requests.iter().all(|share| *share > 32 / workers.len()), "{address} {requests:?}");
            }
        }
    }

    #[test]
    fn one_that_is_in_no_group_cannot_choose() {
        let alone =
            UdpSocket::bind("127.0.3.7:0".parse().unwrap(), Sharing::Exclusive, &UdpOptions::default());
        assert!(alone.unwrap().keep_for_clients(1).is_err());
    }
}
