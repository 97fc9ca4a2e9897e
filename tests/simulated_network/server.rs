//! Servers that need no controller: right, wrong, or faulty in a way that has a name.

use crate::clock::Clock;
use crate::faults::{FAULTY_LIE, Fault, Origins, Placement, sender, signed, spoiled};
use crate::network::{Datagram, HOP_LIMIT};
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use timeball::auth::{Algorithm, Authentication, Key, KeyId, KeyTable};
use timeball::control::InstanceId;
use timeball::time::{Log2Seconds, NtpDuration, NtpTimestamp};
use timeball::wire::{Header, Leap, Mode, ReferenceId, Version};
use zerocopy::FromBytes;

/// The key that clients and servers of the simulation share.
pub const KEY: u32 = 7;

/// The keys that everybody knows: the one that is used, and another.
static KEYS: LazyLock<KeyTable> = LazyLock::new(|| {
    let key = |number: u32| {
        let secret = [number as u8; 16];
        (KeyId::new(number).unwrap(), Key::new(Algorithm::Aes128, &secret).unwrap())
    };
    KeyTable::new([key(KEY), key(KEY + 1)]).unwrap()
});

/// The packet with a MAC by this key.
pub fn sign(mut packet: Vec<u8>, key: u32) -> Vec<u8> {
    KEYS.append(KeyId::new(key).unwrap(), &mut packet).unwrap();
    packet
}

/// What the shell says of a packet's MAC.
pub fn verdict(packet: &[u8]) -> Authentication {
    KEYS.verify(packet)
}

/// A server.
#[derive(Clone, Debug)]
pub struct Server {
    pub address: IpAddr,
    pub clock: Clock,
    /// Seconds that its time is wrong by; positive: ahead.
    pub lie: f64,
    pub stratum: u8,
    pub reference_id: ReferenceId,
    /// The fault, if it has one now.
    pub fault: Option<(Fault, Placement)>,
    /// The key it signs with, if any.
    pub key: Option<u32>,
    pub requests: Vec<i64>,
    last_origin: NtpTimestamp,
    first_reply: Option<Vec<u8>>,
}

impl Server {
    pub fn new(address: IpAddr, clock: Clock) -> Self {
        Self {
            address,
            clock,
            lie: 0.0,
            stratum: 1,
            reference_id: ReferenceId(*b"GPS\0"),
            fault: None,
            key: None,
            requests: Vec::new(),
            last_origin: NtpTimestamp::from_bits(0x1234_5678),
            first_reply: None,
        }
    }

    pub fn receive(&mut self, now: i64, datagram: &Datagram) -> Vec<Datagram> {
        let Ok((request, _)) = Header::read_from_prefix(&datagram.payload) else { return Vec::new() };
        if request.mode() != Mode::Client || datagram.to.port() != 123 {
            return Vec::new();
        }
        self.requests.push(now);
        // From its own address, also if a group was asked.
        let from = SocketAddr::new(self.address, datagram.to.port());
        let (instance, to) = (datagram.instance, datagram.from);
        let answer = |payload| Datagram { instance, from, to, payload, hop_limit: HOP_LIMIT };
        let good = self.signed(self.reply(now, &request, self.lie));
        let Some((fault, placement)) = self.fault else {
            self.first_reply.get_or_insert_with(|| good.clone());
            self.last_origin = request.transmit_timestamp();
            return vec![answer(good)];
        };
        let origins = Origins { right: request.transmit_timestamp(), last: self.last_origin };
        let lying = self.reply(now, &request, FAULTY_LIE);
        let bad = match fault {
            Fault::Replay => self.first_reply.iter().cloned().collect(),
            _ => spoiled(lying, fault, origins, self.key),
        };
        self.first_reply.get_or_insert_with(|| good.clone());
        self.last_origin = request.transmit_timestamp();
        let mut bad: Vec<Datagram> = bad.into_iter().map(answer).collect();
        for datagram in &mut bad {
            datagram.from = sender(datagram.from, fault);
        }
        match placement {
            Placement::Instead => bad,
            Placement::Before => bad.into_iter().chain([answer(good)]).collect(),
            Placement::After => [answer(good)].into_iter().chain(bad).collect(),
        }
    }

    /// What it tells everybody now, every 2^`poll` seconds. RFC 5905 section 8: origin and receive timestamp zero.
    pub fn broadcast(&self, now: i64, to: IpAddr, poll: i8) -> Datagram {
        let mut clock = self.clock.clone();
        let time = clock.read(now).to_ntp() + NtpDuration::from_nanoseconds((self.lie * 1e9) as i64);
        let mut header = Header::new(Leap::None, Version::V4, Mode::Broadcast);
        header.stratum = self.stratum;
        header.set_poll(Log2Seconds(poll));
        header.set_precision(Log2Seconds(-24));
        header.reference_id = self.reference_id;
        header.set_reference_timestamp(time - NtpDuration::from_seconds(16));
        header.set_transmit_timestamp(time);
        let from = SocketAddr::new(self.address, 123);
        let to = SocketAddr::new(to, 123);
        Datagram { instance: InstanceId(0), from, to, payload: self.signed(header), hop_limit: 1 }
    }

    fn signed(&self, header: Header) -> Vec<u8> {
        signed(&header, self.key)
    }

    fn reply(&self, now: i64, request: &Header, lie: f64) -> Header {
        let mut clock = self.clock.clone();
        let time = clock.read(now).to_ntp() + NtpDuration::from_nanoseconds((lie * 1e9) as i64);
        let version = Version::new(request.version_number()).unwrap_or(Version::V4);
        let mut reply = Header::new(Leap::None, version, Mode::Server);
        reply.stratum = self.stratum;
        reply.set_poll(request.poll());
        reply.set_precision(Log2Seconds(-24));
        reply.reference_id = self.reference_id;
        reply.set_reference_timestamp(time - NtpDuration::from_seconds(16));
        reply.set_origin_timestamp(request.transmit_timestamp());
        reply.set_receive_timestamp(time);
        reply.set_transmit_timestamp(time + NtpDuration::from_nanoseconds(10_000));
        reply
    }
}
