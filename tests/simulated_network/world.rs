//! The world: true time, hosts, and what is under way between them.

use crate::daemon::{Daemon, Wish};
use crate::faults::{FAULTY_LIE, Fault, Origins, sender, spoiled};
use crate::network::{Datagram, Way, is_broadcast};
use crate::random::Random;
use crate::server::Server;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::IpAddr;
use std::sync::Arc;
use timeball::control::source::SourceId;
use timeball::control::{Event, InstanceId};
use timeball::time::{Monotonic, NtpDuration, NtpTimestamp, Timestamp};
use timeball::wire::Header;
use zerocopy::FromBytes;

/// What runs on a host.
#[derive(Debug)]
pub enum Node {
    Daemon(Box<Daemon>),
    Server(Server),
}

/// A host and its wire.
#[derive(Debug)]
pub struct Host {
    pub node: Node,
    /// From the host into the network, and back.
    pub outbound: Way,
    pub inbound: Way,
    /// Which network it is in; `None`: in all of them, under one address.
    pub instance: Option<InstanceId>,
}

impl Host {
    fn address(&self) -> IpAddr {
        match &self.node {
            Node::Daemon(daemon) => daemon.address,
            Node::Server(server) => server.address,
        }
    }
}

#[derive(Debug)]
enum Item {
    Deliver(usize, Datagram),
    Wake(usize, Timestamp<Monotonic>),
    Resolved(usize, SourceId, Arc<str>),
}

/// The world.
#[derive(Debug)]
pub struct World {
    /// True time in nanoseconds since the run began.
    pub now: i64,
    pub hosts: Vec<Host>,
    /// What names lead to.
    pub names: BTreeMap<&'static str, Vec<IpAddr>>,
    pub random: Random,
    /// Everything that was ever sent and when, if somebody listens.
    pub tap: Option<Vec<(i64, Datagram)>>,
    /// Who has joined which multicast group.
    pub groups: BTreeMap<IpAddr, Vec<usize>>,
    /// Whose packets are spoiled on their way to whom, how, and their key. The time in them is wrong, too.
    pub tampering: Option<(IpAddr, IpAddr, Fault, Option<u32>)>,
    /// The origin timestamp of the last packet that was spoiled.
    last_origin: NtpTimestamp,
    /// The routers between a host and the network where all meet, if there are any.
    pub routers: BTreeMap<usize, u8>,
    due: BinaryHeap<Reverse<(i64, u64)>>,
    items: BTreeMap<u64, Item>,
    number: u64,
}

/// How long a name lookup takes, in nanoseconds.
const LOOKUP: i64 = 30_000_000;

impl World {
    pub const fn new(random: Random) -> Self {
        Self {
            now: 0,
            hosts: Vec::new(),
            names: BTreeMap::new(),
            random,
            tap: None,
            groups: BTreeMap::new(),
            tampering: None,
            last_origin: NtpTimestamp::from_bits(0x1234_5678),
            routers: BTreeMap::new(),
            due: BinaryHeap::new(),
            items: BTreeMap::new(),
            number: 0,
        }
    }

    fn schedule(&mut self, time: i64, item: Item) {
        self.number += 1;
        self.due.push(Reverse((time.max(self.now), self.number)));
        self.items.insert(self.number, item);
    }

    /// Does what a daemon wished.
    pub fn grant(&mut self, host: usize, wishes: Vec<Wish>) {
        for wish in wishes {
            match wish {
                Wish::Send(datagram) => self.send(datagram),
                Wish::Wake(asked) => {
                    let now = self.now;
                    let left = asked.nanoseconds_since(self.daemon(host).clock.monotonic(now)).max(0);
                    self.schedule(now + left + 1, Item::Wake(host, asked));
                }
                Wish::Resolve(source, name) => {
                    self.schedule(self.now + LOOKUP, Item::Resolved(host, source, name));
                }
            }
        }
    }

    /// Lets a datagram travel to whoever is meant.
    pub fn send(&mut self, datagram: Datagram) {
        if let Some(tap) = &mut self.tap {
            tap.push((self.now, datagram.clone()));
        }
        match self.tampering {
            Some((from, to, fault, key)) if (datagram.from.ip(), datagram.to.ip()) == (from, to) => {
                for datagram in self.tampered(&datagram, fault, key) {
                    self.inject(datagram);
                }
            }
            _ => self.inject(datagram),
        }
    }

    fn tampered(&mut self, datagram: &Datagram, fault: Fault, key: Option<u32>) -> Vec<Datagram> {
        let Ok((mut header, _)) = Header::read_from_prefix(&datagram.payload) else { return Vec::new() };
        let lie = NtpDuration::from_seconds_f64(FAULTY_LIE);
        header.set_receive_timestamp(header.receive_timestamp() + lie);
        header.set_transmit_timestamp(header.transmit_timestamp() + lie);
        let origins = Origins { right: header.origin_timestamp(), last: self.last_origin };
        self.last_origin = header.origin_timestamp();
        let from = sender(datagram.from, fault);
        let bad = spoiled(header, fault, origins, key);
        bad.into_iter().map(|payload| Datagram { from, payload, ..datagram.clone() }).collect()
    }

    /// The same for somebody whom no tap sees.
    pub fn inject(&mut self, datagram: Datagram) {
        let from = self.place(datagram.instance, datagram.from.ip());
        let outbound = from.map_or(Way::IDEAL, |host| self.hosts[host].outbound);
        for host in self.receivers(from, &datagram) {
            let inbound = self.hosts[host].inbound;
            for out in outbound.carry(&mut self.random) {
                for into in inbound.carry(&mut self.random) {
                    let travel = ((out + into) * 1e9) as i64;
                    self.schedule(self.now + travel, Item::Deliver(host, datagram.clone()));
                }
            }
        }
    }

    /// The host with this address in a network.
    pub fn place(&self, instance: InstanceId, address: IpAddr) -> Option<usize> {
        let is_there = |host: &Host| host.instance.is_none_or(|own| own == instance);
        self.hosts.iter().position(|host| host.address() == address && is_there(host))
    }

    /// One host, everybody on the same network, or the members of a group that are near enough.
    fn receivers(&self, from: Option<usize>, datagram: &Datagram) -> Vec<usize> {
        let to = datagram.to.ip();
        let routers = |host: &usize| self.routers.get(host).copied().unwrap_or(0);
        let between = |host: &usize| from.map_or(0, |from| routers(&from)) + routers(host);
        if to.is_multicast() {
            let members = self.groups.get(&to).into_iter().flatten().copied();
            return members
                .filter(|host| Some(*host) != from && between(host) < datagram.hop_limit)
                .collect();
        }
        if is_broadcast(to) {
            return (0..self.hosts.len()).filter(|host| Some(*host) != from && between(host) == 0).collect();
        }
        self.place(datagram.instance, to).into_iter().collect()
    }

    pub fn daemon(&mut self, host: usize) -> &mut Daemon {
        match &mut self.hosts[host].node {
            Node::Daemon(daemon) => daemon,
            Node::Server(_) => panic!("host {host} is a server"),
        }
    }

    pub fn server(&mut self, host: usize) -> &mut Server {
        match &mut self.hosts[host].node {
            Node::Server(server) => server,
            Node::Daemon(_) => panic!("host {host} is a daemon"),
        }
    }

    /// Seconds that a host's clock is wrong by.
    pub fn error(&mut self, host: usize) -> f64 {
        let now = self.now;
        self.daemon(host).clock.ahead(now)
    }

    /// Hands an event to a daemon.
    pub fn tell(&mut self, host: usize, event: Event) {
        let now = self.now;
        let wishes = self.daemon(host).handle(now, event);
        self.grant(host, wishes);
    }

    /// Lets so many seconds pass.
    pub fn run(&mut self, seconds: f64) {
        let until = self.now + (seconds * 1e9) as i64;
        while let Some(&Reverse((time, number))) = self.due.peek() {
            if time > until {
                break;
            }
            self.due.pop();
            self.now = time;
            if let Some(item) = self.items.remove(&number) {
                self.happen(item);
            }
        }
        self.now = until;
    }

    /// Lets so many seconds pass; gives the largest error of a host's clock at any full second of them.
    pub fn worst(&mut self, host: usize, seconds: usize) -> f64 {
        let mut worst = 0_f64;
        for _ in 0..seconds {
            self.run(1.0);
            worst = worst.max(self.error(host).abs());
        }
        worst
    }

    fn happen(&mut self, item: Item) {
        let now = self.now;
        match item {
            Item::Wake(host, asked) => {
                let wishes = self.daemon(host).wake(now, asked);
                self.grant(host, wishes);
            }
            Item::Resolved(host, source, name) => {
                let addresses = self.names.get(&*name).cloned().unwrap_or_default();
                self.tell(host, Event::Resolved { source, addresses });
            }
            Item::Deliver(host, datagram) => self.deliver(host, &datagram),
        }
    }

    fn deliver(&mut self, host: usize, datagram: &Datagram) {
        let now = self.now;
        match &mut self.hosts[host].node {
            Node::Daemon(daemon) => {
                let wishes = daemon.receive(now, datagram);
                self.grant(host, wishes);
            }
            Node::Server(server) => {
                for answer in server.receive(now, datagram) {
                    self.send(answer);
                }
            }
        }
    }
}
