//! The requests that cost is measured with: the same for instructions, time, allocations and system calls.
//!
//! Owns: a responder with everything on (an access list of a thousand prefixes per family that nest, a rate limit,
//! kisses, statistics) and plain requests of many clients. Does not own: any measurement.

pub mod rounds;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rounds::Rounds;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use timeball::auth::Algorithm;
use timeball::datapath::af_xdp::BATCH;
use timeball::serve::access::Action;
use timeball::serve::testing::{Setup, client_request, keys};
use timeball::serve::{Arrival, Responder};
use timeball::snapshot::SystemSnapshot;
use timeball::time::{Log2Seconds, NtpDuration, NtpTimestamp, Ppm, Timestamp};
use timeball::wire::{Checksum, Frame, Leap, ReferenceId};

/// When requests arrive, as the wire has it.
pub const RECEIVED: NtpTimestamp = NtpTimestamp::from_bits(0xeb00_0000_8000_0000);
/// When replies leave, 20 us later.
pub const SENT: NtpTimestamp = NtpTimestamp::from_bits(0xeb00_0000_8001_4f8b);

/// The client's address family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

/// The address of client `number`, scattered over 16.0.0.0/4 or 2001::/16. Numbers below 2^28 have all different ones,
/// since the factor is odd.
pub const fn address(family: Family, number: u32) -> IpAddr {
    let scattered = number.wrapping_mul(0x9e37_79b1);
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(0x1000_0000 | scattered & 0x0fff_ffff)),
        Family::V6 => {
            IpAddr::V6(Ipv6Addr::from_bits(0x2001 << 112 | (scattered as u128 & 0x0fff_ffff) << 80 | 1))
        }
    }
}

/// A thousand prefixes for each family: networks that are denied, and in each of them a host that is not. They hold few
/// of the clients, but every client is looked for among all of them.
pub fn prefixes() -> Vec<(IpNet, Action)> {
    let mut rules = Vec::new();
    for number in 0..500 {
        match (address(Family::V4, number), address(Family::V6, number)) {
            (IpAddr::V4(v4), IpAddr::V6(v6)) => {
                rules.push((Ipv4Net::new_assert(v4, 24).trunc().into(), Action::Deny));
                rules.push((Ipv4Net::new_assert(v4, 32).into(), Action::Allow));
                rules.push((Ipv6Net::new_assert(v6, 48).trunc().into(), Action::Deny));
                rules.push((Ipv6Net::new_assert(v6, 64).trunc().into(), Action::Allow));
            }
            _ => unreachable!("each family has its own addresses"),
        }
    }
    rules
}

/// A responder with access list, rate limit, kisses and statistics.
pub fn responder() -> Responder {
    Setup { rules: prefixes(), limit_interval_seconds: Some(1), leak: 4, kod: true, keys: keys() }.responder()
}

/// A synchronised clock.
pub fn snapshot() -> SystemSnapshot {
    SystemSnapshot {
        leap: Leap::None,
        stratum: 2,
        reference_id: ReferenceId([10, 99, 0, 7]),
        reference_instance: None,
        reference_id_elsewhere: ReferenceId::NOBODY,
        precision: Log2Seconds(-23),
        root_delay: NtpDuration::from_nanoseconds(3_000_000),
        root_dispersion: NtpDuration::from_nanoseconds(1_000_000),
        dispersion_rate: Ppm::FREQUENCY_TOLERANCE,
        reference_timestamp: RECEIVED - NtpDuration::from_seconds(100),
    }
}

/// Client `client` asks; requests come a millisecond apart, so that 2000 clients in turn are well within the limit.
pub const fn arrival(family: Family, client: u32, request: u32) -> Arrival {
    Arrival {
        source: address(family, client),
        source_port: 40_000,
        receive_timestamp: RECEIVED,
        now: Timestamp::from_nanoseconds(1_000_000_000 + request as i64 * 1_000_000),
    }
}

/// Writes the header's checksum, word by word (RFC 1071).
fn sum_ipv4_header(header: &mut [u8]) {
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!sum as u16).to_be_bytes());
}

/// An Ethernet frame with this UDP payload, from `source` to port 123. Its UDP checksum is left to whom it may
/// concern, but is there.
pub fn frame(source: IpAddr, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let udp_length = (8 + payload.len()) as u16;
    match source {
        IpAddr::V4(source) => {
            frame.extend_from_slice(&[0x08, 0x00, 0x45, 0]);
            frame.extend_from_slice(&(20 + udp_length).to_be_bytes());
            frame.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
            frame.extend_from_slice(&source.octets());
            frame.extend_from_slice(&[10, 99, 0, 1]);
        }
        IpAddr::V6(source) => {
            frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend_from_slice(&udp_length.to_be_bytes());
            frame.extend_from_slice(&[17, 64]);
            frame.extend_from_slice(&source.octets());
            frame.extend_from_slice(&[0xfd, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        }
    }
    if source.is_ipv4() {
        sum_ipv4_header(&mut frame[14..34]);
    }
    for word in [40_000, 123, udp_length, 0xbeef] {
        frame.extend_from_slice(&word.to_be_bytes());
    }
    frame.extend_from_slice(payload);
    frame
}

/// What is done with each request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// `Frame::parse`.
    Parse,
    /// `respond`.
    Respond,
    /// `Frame::turn_round`.
    TurnRound,
    /// `PreparedFrame::seal`.
    Seal,
    /// The sum of a UDP header and its payload.
    Checksum,
    /// `respond_to_frame`, and `seal`.
    Frame,
    /// The same for requests signed with a key of this type.
    Signed(Algorithm),
    /// A worker's round over a fake kernel's rings, in full batches.
    Round,
    /// A round that swaps addresses and ports and does nothing else: what any server over this port costs.
    Reflect,
}

/// A loop to be counted.
#[derive(Clone, Copy, Debug)]
pub struct Loop {
    pub subject: Subject,
    pub family: Family,
    /// The requests come from so many clients in turn.
    pub clients: u32,
    pub requests: u32,
}

/// Calls `work`. callgrind is told by this function's name what to count.
#[inline(never)]
pub fn measured<R>(work: impl FnOnce() -> R) -> R {
    work()
}

impl Loop {
    /// Runs it. How many were done as they should: all, unless something is wrong with the workload.
    pub fn run(self) -> u32 {
        match self.subject {
            Subject::Respond => self.respond(),
            Subject::Round | Subject::Reflect => self.rounds(),
            _ => self.frames(),
        }
    }

    /// The clients of the access list come first; they are not asked.
    const fn client(self, number: u32) -> u32 {
        1000 + number % self.clients
    }

    fn request(self) -> Vec<u8> {
        let mut request = client_request(4, &[]);
        if let Subject::Signed(algorithm) = self.subject {
            let keys = keys();
            let key = keys.types().find(|key| key.1 == algorithm).expect("a key of each type").0;
            keys.append(key, &mut request).expect("a key of the table");
        }
        request
    }

    fn respond(self) -> u32 {
        let (mut responder, snapshot) = (responder(), snapshot());
        let mut payload: [u8; 48] = client_request(4, &[]).try_into().expect("a header and no more");
        let template = payload;
        let mut answered = 0;
        for number in 0..self.requests {
            payload = black_box(template);
            let arrival = black_box(arrival(self.family, self.client(number), number));
            let bytes = black_box(&mut payload);
            let outcome = black_box(measured(|| responder.respond(bytes, &arrival, &snapshot)));
            answered += u32::from(outcome.is_ok_and(|reply| reply.kiss.is_none()));
        }
        answered
    }

    fn frames(self) -> u32 {
        let (mut responder, snapshot, request) = (responder(), snapshot(), self.request());
        let keys = &keys();
        let frames: Vec<_> = (0..self.clients.min(4096))
            .map(|number| frame(address(self.family, self.client(number)), &request))
            .collect();
        let mut buffer = frames[0].clone();
        let mut done = 0;
        for number in 0..self.requests {
            buffer.copy_from_slice(&frames[number as usize % frames.len()]);
            let bytes = black_box(buffer.as_mut_slice());
            let now = Timestamp::from_nanoseconds(1_000_000_000 + i64::from(number) * 1_000_000);
            let respond = |responder: &mut Responder, bytes: &mut [u8]| {
                responder.respond_to_frame(bytes, 123, RECEIVED, now, &snapshot)
            };
            let fine = match self.subject {
                Subject::Parse => black_box(measured(|| Frame::parse(bytes))).is_ok(),
                Subject::TurnRound => {
                    let parsed = Frame::parse(bytes).expect("a plain datagram");
                    measured(|| parsed.turn_round(bytes, 48)) == bytes.len()
                }
                Subject::Checksum => {
                    measured(|| Checksum::new().add_bytes(&bytes[bytes.len() - 56..]).finish_udp()) != 0
                }
                Subject::Seal => respond(&mut responder, bytes)
                    .is_ok_and(|reply| measured(|| reply.seal(SENT, bytes, keys)) == SENT),
                _ => measured(|| {
                    respond(&mut responder, bytes).is_ok_and(|reply| {
                        reply.prepared().is_time() && reply.seal(SENT, bytes, keys) == SENT
                    })
                }),
            };
            done += u32::from(fine);
        }
        done
    }

    fn rounds(self) -> u32 {
        let mut rounds = Rounds::new(self);
        (0..self.requests.div_ceil(BATCH as u32))
            .map(|_| {
                rounds.deliver();
                measured(|| rounds.round());
                rounds.leave()
            })
            .sum()
    }
}
