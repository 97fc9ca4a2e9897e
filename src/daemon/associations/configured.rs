//! From the configuration's sources to the controller's.
//!
//! The one idea a newcomer lacks: interfaces have names in the configuration and numbers in packets. A number may change
//! while the daemon runs, and then the source is another one.

use crate::config::{self, Config, FirstStepPolicy, Polling, Worth};
use crate::control::discipline::{DisciplineOptions, FirstStep, Steering};
use crate::control::select::SourceOptions;
use crate::control::source::{
    BroadcastClientOptions, BroadcastOptions, Burst, Calibration, ManycastOptions, NTP_PORT, Place,
    PollOptions, SourceConfiguration, SourceKind, Unsigned, Volley,
};
use crate::control::{ControllerOptions, InstanceId, InterfaceIndex, KeyId};
use crate::datapath::interface::View;
use crate::time::{Log2Seconds, Ppm};
use crate::wire::Version;
use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// A configured source, as far as the machine has what it names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Configured {
    /// As the user wrote it: a name, an address, a group.
    pub name: String,
    /// In which instance.
    pub instance: InstanceId,
    /// What is said of it in reports.
    pub mode: &'static str,
    /// For the controller. The error says what the machine lacks.
    pub configuration: Result<SourceConfiguration, String>,
}

impl Configured {
    /// Is time expected of it?
    pub fn gives_time(&self) -> bool {
        !matches!(self.mode, "broadcast" | "manycast-server")
    }

    /// What makes it the same source, however it is used now.
    pub fn identity(&self) -> (&'static str, InstanceId, String) {
        (self.mode, self.instance, self.name.clone())
    }
}

/// What the whole controller is told. `frequency`: what the clock is known to need.
pub(super) fn controller_options(
    config: &Config,
    precision: Log2Seconds,
    steering: Steering,
    frequency: Option<Ppm>,
) -> ControllerOptions {
    ControllerOptions {
        precision,
        minimum_sources: config.selection.min_sources.into(),
        maximum_distance: config.selection.max_distance,
        discipline: DisciplineOptions {
            steering,
            step_threshold: config.clock.step_threshold,
            panic_threshold: config.clock.panic_threshold,
            first_step: match config.clock.first_step {
                FirstStepPolicy::Limited => FirstStep::Limited,
                FirstStepPolicy::AnySize => FirstStep::AnySize,
            },
            frequency,
        },
        passive: config.passive_peers.into(),
    }
}

/// All of them, in the order of the configuration, which is that of their ids.
/// `views`: each instance's interfaces, in the order of their numbers.
pub(super) fn sources(config: &Config, views: &[Cow<'_, View>]) -> Vec<Configured> {
    let sources = &config.sources;
    let mut all = Vec::new();
    let within = |name: &str| Within::new(config, views, name);
    for server in &sources.servers {
        all.push(asked(server, SourceKind::Server, "server", within(&server.instance)));
    }
    for pool in &sources.pools {
        all.push(asked(&pool.server, SourceKind::Pool(pool.members), "pool", within(&pool.server.instance)));
    }
    for peer in &sources.peers {
        let volley = if peer.volley { Volley::On } else { Volley::Off };
        all.push(asked(&peer.server, SourceKind::Peer(volley), "peer", within(&peer.server.instance)));
    }
    for one in &sources.broadcasts {
        let index = within(&one.instance).interface(one.interface.as_deref());
        let kind = index.map(|interface| {
            let interval = Log2Seconds(one.interval);
            SourceKind::Broadcast(BroadcastOptions { interval, hop_limit: one.ttl, interface })
        });
        let poll = PollOptions::fixed(Log2Seconds(one.interval));
        all.push(many(
            within(&one.instance).id,
            one.address,
            one.port,
            "broadcast",
            one.key,
            kind,
            poll,
            SourceOptions::default(),
        ));
    }
    for one in &sources.broadcast_clients {
        let kind = within(&one.instance).interface(one.interface.as_deref()).map(|interface| {
            let calibration = one.delay.map_or(Calibration::Volley, Calibration::Delay);
            let unsigned = unsigned(one.allow_unsigned);
            SourceKind::BroadcastClient(BroadcastClientOptions { calibration, unsigned, interface })
        });
        let (poll, options) = (PollOptions::default(), options(&one.worth));
        all.push(many(
            within(&one.instance).id,
            one.address,
            NTP_PORT,
            "broadcast-client",
            one.key,
            kind,
            poll,
            options,
        ));
    }
    for one in &sources.manycast_clients {
        let kind = within(&one.instance).interface(one.interface.as_deref()).map(|interface| {
            SourceKind::ManycastClient(ManycastOptions {
                enough: one.enough,
                most: one.most,
                hop_limit_max: one.ttl,
                timeout: Log2Seconds(one.timeout),
                unsigned: unsigned(one.allow_unsigned),
                interface,
            })
        });
        let (poll, options) = (polling(&one.polling), options(&one.worth));
        all.push(many(
            within(&one.instance).id,
            one.address,
            NTP_PORT,
            "manycast-client",
            one.key,
            kind,
            poll,
            options,
        ));
    }
    for one in &sources.manycast_servers {
        let kind = within(&one.instance)
            .interface(one.interface.as_deref())
            .map(|_| SourceKind::ManycastServer(unsigned(one.allow_unsigned)));
        let poll = PollOptions::default();
        all.push(many(
            within(&one.instance).id,
            one.address,
            NTP_PORT,
            "manycast-server",
            one.key,
            kind,
            poll,
            SourceOptions::default(),
        ));
    }
    all
}

fn asked(server: &config::Server, kind: SourceKind, mode: &'static str, within: Within<'_>) -> Configured {
    let configuration = within.place(&server.address, server.port).map(|place| SourceConfiguration {
        instance: within.id,
        kind,
        place,
        key: server.key,
        version: Version::new(server.version).unwrap_or(Version::V4),
        poll: polling(&server.polling),
        options: options(&server.worth),
    });
    Configured { name: server.address.clone(), instance: within.id, mode, configuration }
}

#[expect(clippy::too_many_arguments, reason = "they are the parts of a source")]
fn many(
    instance: InstanceId,
    address: IpAddr,
    port: u16,
    mode: &'static str,
    key: Option<KeyId>,
    kind: Result<SourceKind, String>,
    poll: PollOptions,
    options: SourceOptions,
) -> Configured {
    let place = Place::Address(SocketAddr::new(address, port));
    let version = Version::V4;
    let configuration =
        kind.map(|kind| SourceConfiguration { instance, kind, place, key, version, poll, options });
    Configured { name: address.to_string(), instance, mode, configuration }
}

/// An instance, and what there is in it.
#[derive(Clone, Copy)]
struct Within<'v> {
    id: InstanceId,
    /// `None`: nothing is known of it.
    view: Option<&'v View>,
}

impl<'v> Within<'v> {
    fn new(config: &Config, views: &'v [Cow<'_, View>], name: &str) -> Self {
        let number = config.instance_number(name);
        Self { id: InstanceId(number), view: views.get(usize::from(number)).map(|view| &**view) }
    }

    fn place(self, host: &str, port: u16) -> Result<Place, String> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(Place::Address(SocketAddr::new(address.to_canonical(), port)));
        }
        let scoped = host
            .split_once('%')
            .and_then(|(address, scope)| Some((address.parse::<Ipv6Addr>().ok()?, scope)));
        match scoped {
            Some((address, scope)) => {
                let InterfaceIndex(scope) = self.interface(Some(scope))?;
                Ok(Place::Address(SocketAddrV6::new(address, port, 0, scope).into()))
            }
            None => Ok(Place::Name(host.into(), port)),
        }
    }

    fn interface(self, name: Option<&str>) -> Result<InterfaceIndex, String> {
        let Some(name) = name else { return Ok(InterfaceIndex(0)) };
        let found = self.view.and_then(|view| view.interface_named(name));
        found
            .map(|interface| InterfaceIndex(interface.ifindex))
            .ok_or_else(|| format!("interface {name} does not exist"))
    }
}

const fn unsigned(allowed: bool) -> Unsigned {
    if allowed { Unsigned::Allowed } else { Unsigned::Refused }
}

const fn burst(on: bool) -> Burst {
    if on { Burst::On } else { Burst::Off }
}

const fn polling(polling: &Polling) -> PollOptions {
    PollOptions {
        poll_min: Log2Seconds(polling.min_poll),
        poll_max: Log2Seconds(polling.max_poll),
        iburst: burst(polling.iburst),
        burst: burst(polling.burst),
    }
}

const fn options(worth: &Worth) -> SourceOptions {
    SourceOptions {
        prefer: worth.prefer,
        trust: worth.trust,
        require: worth.require,
        noselect: worth.noselect,
        offset: worth.offset,
        maximum_distance: worth.max_distance,
        maximum_delay: worth.max_delay,
        maximum_jitter: worth.max_jitter,
    }
}
