//! A scenario: one client, some servers, and the few values that differ from the default.

use crate::clock::{Clock, ClockSetup};
use crate::daemon::{Daemon, key};
use crate::network::Way;
use crate::random::Random;
use crate::server::{KEY, Server};
use crate::world::{Host, Node, World};
use std::net::{IpAddr, Ipv4Addr};
use timeball::control::ControllerOptions;
use timeball::control::source::{Burst, PollOptions, SourceConfiguration};
use timeball::time::Log2Seconds;
use timeball::wire::Version;

/// The client's place among the hosts.
pub const CLIENT: usize = 0;
/// 2026-11-27 00:00:00 UTC.
pub const EPOCH: i64 = 1_795_737_600_000_000_000;

/// The values. A test names those that differ.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    /// The client's clock.
    pub client: ClockSetup,
    /// Nanoseconds since 1970 when the run begins.
    pub epoch: i64,
    /// The way from the client to each server, and back.
    pub there: Way,
    pub back: Way,
    /// The seconds that each server lies by; their number is the number of servers.
    pub servers: Vec<f64>,
    pub poll: (i8, i8),
    pub iburst: Burst,
    pub burst: Burst,
    /// Is everything signed?
    pub keyed: bool,
    /// Of the client's questions.
    pub version: Version,
    pub options: ControllerOptions,
}

impl Default for Scenario {
    /// A client 0.1 s ahead and 100 ppm fast, one perfect server, 100 us each way and jitter of mean 100 us.
    fn default() -> Self {
        let way = Way { delay: 100e-6, jitter: 100e-6, ..Way::IDEAL };
        Self {
            seed: 1,
            client: ClockSetup { ahead: 0.1, fast_ppm: 100.0, wander: 1e-9 },
            epoch: EPOCH,
            there: way,
            back: way,
            servers: vec![0.0],
            poll: (6, 10),
            iburst: Burst::Off,
            burst: Burst::Off,
            keyed: false,
            version: Version::V4,
            options: ControllerOptions::default(),
        }
    }
}

/// The address of server 1, 2, ...
pub fn server_address(server: usize) -> IpAddr {
    Ipv4Addr::new(10, 99, 0, 10 + server as u8).into()
}

/// The client's address.
pub const CLIENT_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1));

impl Scenario {
    /// How the client uses a server.
    pub fn source(&self, address: IpAddr) -> SourceConfiguration {
        SourceConfiguration {
            key: self.keyed.then(key),
            version: self.version,
            poll: PollOptions {
                poll_min: Log2Seconds(self.poll.0),
                poll_max: Log2Seconds(self.poll.1),
                iburst: self.iburst,
                burst: self.burst,
            },
            ..SourceConfiguration::server(address)
        }
    }

    /// The client's own chance, by which a record of it can be replayed.
    pub const fn client_random(&self) -> Random {
        Random::new(self.seed.wrapping_mul(3))
    }

    /// The hosts, without any source configured.
    pub fn hosts(&self) -> World {
        let mut world = World::new(Random::new(self.seed));
        let mut random = world.random.clone();
        let clock = Clock::new(self.client, self.epoch, Random::new(random.next()));
        let client = Daemon::new(CLIENT_ADDRESS, clock, self.options, self.client_random());
        let ideal = Way::IDEAL;
        world.hosts.push(Host {
            node: Node::Daemon(Box::new(client)),
            outbound: ideal,
            inbound: ideal,
            instance: None,
        });
        for (index, lie) in self.servers.iter().enumerate() {
            let clock = Clock::new(ClockSetup::PERFECT, self.epoch, Random::new(random.next()));
            let mut server = Server::new(server_address(index + 1), clock);
            server.lie = *lie;
            server.key = self.keyed.then_some(KEY);
            world.hosts.push(Host {
                node: Node::Server(server),
                outbound: self.back,
                inbound: self.there,
                instance: None,
            });
        }
        world
    }

    /// The hosts, every server configured as a source of the client.
    pub fn world(&self) -> World {
        let mut world = self.hosts();
        for server in 1..=self.servers.len() {
            let configuration = self.source(server_address(server));
            let wishes = world.daemon(CLIENT).add(0, server as u32, configuration);
            world.grant(CLIENT, wishes);
        }
        world
    }
}
