//! The shell around the controller ([`crate::control`]): its sockets, its timer, its clock and its log.
//!
//! Owns: telling the controller what happened, and doing what it says. Does not own: any decision about time. It runs in
//! the control thread, which waits for its descriptors among others ([`Associations::add_poll_entries`]) and gives it its
//! turn ([`Associations::turn`]).
//!
//! The one idea a newcomer lacks: events wait in one queue, and everything goes through it in order. So a packet's
//! departure, put there first, is known before the answer to it, whichever descriptor woke us.

mod configured;
mod departures;
mod hearing;
mod keeper;
mod names;
mod report;
mod resolver;
mod roster;
mod sending;
mod service;
mod unasked;

pub use report::{ControlReport, SourceReport, SourcesReport, SynchronisationReport};
pub use unasked::PASSED_OCTETS_MAX;

pub(super) use keeper::wants_clock;

use crate::auth::{KeyTable, TrustedKeys};
use crate::clock::Change;
use crate::config::Config;
use crate::control::source::{SourceConfiguration, SourceId};
use crate::control::{
    Action, Controller, Event, ExchangeSocket, InstanceId, InterfaceIndex, Moment, News, StampKind,
};
use crate::datapath::interface::View;
use crate::metrics::Histogram;
use crate::serve::access::AccessList;
use crate::snapshot::{SnapshotCell, SystemSnapshot};
use crate::sys::clock;
use crate::sys::process::{self, PollEntry};
use crate::sys::socket::TalkSocket;
use crate::time::{Log2Seconds, Monotonic, Timestamp};
use configured::Configured;
use departures::Departures;
use keeper::Keeper;
use resolver::Resolver;
use service::{Listening, Service};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;
use tracing::{debug, error, info, warn};

use super::place::Place;
use super::stamps::BatchClock;

/// Datagrams taken from one socket before the others have their turn.
const DATAGRAMS_PER_TURN: usize = 16;
/// Wake-ups of the controller before the descriptors are looked at again.
const WAKE_UPS_PER_TURN: usize = 64;

/// To whom something is sent: a group may be spoken to on several interfaces. 0: routing chooses.
type Whom = (InstanceId, SocketAddr, InterfaceIndex);

/// An instance's sockets, and what is known of it.
#[derive(Debug)]
struct Network {
    place: Arc<Place>,
    service: Service,
    /// Of what was sent from port 123.
    departures: Departures,
    /// Addresses of ours: what comes from them was our own broadcast, and who follows one of them follows us.
    own: BTreeSet<IpAddr>,
}

/// The socket of one exchange.
#[derive(Debug)]
struct Exchange {
    instance: InstanceId,
    socket: TalkSocket,
    departures: Departures,
}

/// What a poll entry stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Polled {
    Resolver,
    Exchange(ExchangeSocket),
    Senders(InstanceId),
    Listener(InstanceId, Listening),
}

/// The shell.
#[derive(Debug)]
pub struct Associations {
    controller: Controller,
    events: VecDeque<Event>,
    /// When the controller wants to be woken.
    wake_at: Option<Timestamp<Monotonic>>,
    configured: BTreeMap<SourceId, Configured>,
    /// Their order in the configuration.
    order: Vec<SourceId>,
    /// The highest id that a source has had.
    last_source: u32,
    exchanges: BTreeMap<ExchangeSocket, Exchange>,
    /// In the order of the instances' numbers.
    networks: Vec<Network>,
    /// Started when the first name is to be looked up.
    resolver: Option<Resolver>,
    /// Names that could not be resolved, and why.
    unresolved: BTreeMap<SourceId, String>,
    /// To whom nothing can be sent, and why.
    unreachable: BTreeMap<Whom, String>,
    keeper: Keeper,
    keys: Arc<KeyTable>,
    access: Arc<AccessList>,
    port: u16,
    snapshot: Arc<SnapshotCell>,
    polled: Vec<Polled>,
    /// Packets handed to the kernel.
    sent: u64,
    /// Steps of the clock: ours, and those of others.
    steps: u64,
    foreign_steps: u64,
    /// From when a packet was due until the kernel had it.
    lateness: Histogram,
}

impl Associations {
    /// The shell with a controller that has no sources yet; [`Self::follow`] gives it those of the configuration.
    ///
    /// # Errors
    /// The kernel has no random numbers.
    pub fn new(
        config: &Config,
        places: Vec<Arc<Place>>,
        precision: Log2Seconds,
        keys: Arc<KeyTable>,
        access: Arc<AccessList>,
        snapshot: Arc<SnapshotCell>,
    ) -> io::Result<Self> {
        let (keeper, steering, frequency) = Keeper::new(config);
        let mut options = configured::controller_options(config, precision, steering, frequency);
        if keeper::somebody_else_keeps_it(config) {
            options.passive = crate::control::PassivePeers::Refused;
        }
        let mut seed = [0; 32];
        for (chunk, word) in seed.chunks_mut(8).zip(process::random_words::<4>()?) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(Self {
            controller: Controller::new(options, seed, moment()),
            events: VecDeque::from([Event::TrustedKeys(config.keys.trusted.clone())]),
            wake_at: None,
            configured: BTreeMap::new(),
            order: Vec::new(),
            last_source: 0,
            exchanges: BTreeMap::new(),
            networks: places.into_iter().map(|place| Network::new(place, config.port)).collect(),
            resolver: None,
            unresolved: BTreeMap::new(),
            unreachable: BTreeMap::new(),
            keeper,
            keys,
            access,
            port: config.port,
            snapshot,
            polled: Vec::new(),
            sent: 0,
            steps: 0,
            foreign_steps: 0,
            lateness: Histogram::default(),
        })
    }

    /// Follows the machine's interfaces: what is listened at, and which sources there can be. `views`: those of each
    /// instance, in the order of their numbers.
    pub fn follow(&mut self, config: &Config, views: &[Cow<'_, View>]) {
        for (network, view) in self.networks.iter_mut().zip(views) {
            let addresses = view.interfaces().flat_map(|one| view.addresses(one.ifindex));
            let own: BTreeSet<IpAddr> = addresses.map(|one| one.address).collect();
            if network.own != own {
                let addresses = own.iter().copied().collect();
                self.events.push_back(Event::OwnAddresses { instance: network.place.id, addresses });
                network.own = own;
            }
            network.service.sync(config, view);
        }
        self.follow_sources(configured::sources(config, views));
        self.run();
    }

    /// Is there an address that is not listened at, and should be?
    pub fn is_deaf(&self) -> bool {
        self.networks.iter().any(|network| network.service.has_failed())
    }

    /// Listens where that failed before: another program may have gone.
    pub fn listen_again(&mut self, config: &Config, views: &[Cow<'_, View>]) {
        for (network, view) in self.networks.iter_mut().zip(views) {
            network.service.sync(config, view);
        }
    }

    /// From now on these, and no others. Whoever stays as he was keeps all that is known of him.
    fn follow_sources(&mut self, wanted: Vec<Configured>) {
        let (wanted, gone) = roster::assign(&self.configured, wanted, &mut self.last_source);
        for source in gone {
            if let Some(Configured { name, instance, mode, .. }) = self.configured.remove(&source) {
                info!(instance = self.label(instance), source = name, mode, "no longer configured");
            }
            self.unresolved.remove(&source);
            self.events.push_back(Event::RemoveSource(source));
        }
        self.order = wanted.iter().map(|(source, _)| *source).collect();
        let mut new = Vec::new();
        for (source, wanted) in wanted {
            let before = self.configured.insert(source, wanted.clone()).map(|before| before.configuration);
            if before.as_ref() == Some(&wanted.configuration) {
                continue;
            }
            // All leave before any comes: two may have changed their places.
            if matches!(before, Some(Ok(SourceConfiguration { .. }))) {
                self.events.push_back(Event::RemoveSource(source));
            }
            match wanted.configuration {
                Ok(configuration) => new.push(Event::AddSource { source, configuration }),
                Err(reason) => {
                    let instance = self.label(wanted.instance);
                    warn!(instance, source = wanted.name, mode = wanted.mode, reason, "left out for now");
                }
            }
        }
        self.events.extend(new);
    }

    /// What is served while no source is selected.
    pub fn set_reference(&mut self, snapshot: SystemSnapshot) {
        self.events.push_back(Event::Reference(snapshot));
        self.run();
    }

    /// Other keys, from now on, and which of them may bring a source that nobody named.
    pub fn set_keys(&mut self, keys: Arc<KeyTable>, trusted: &TrustedKeys) {
        self.keys = keys;
        self.events.push_back(Event::TrustedKeys(trusted.clone()));
        self.run();
    }

    /// Once a second: what other programs are told of the clock, the drift file.
    pub fn tick(&mut self) {
        // Before the keeper looks how many there have been: a leap second.
        self.run();
        let followed = self.controller.system().is_followed.then(|| self.snapshot.read());
        self.keeper.tick(followed.as_ref(), self.controller.system().jitter);
    }

    /// Leaves the clock running at the frequency that it needs.
    pub fn stop(&mut self) {
        self.keeper.stop();
    }

    /// What to poll.
    pub fn add_poll_entries(&mut self, entries: &mut Vec<PollEntry>) {
        let polled = &mut self.polled;
        polled.clear();
        let mut add = |what, fd| {
            polled.push(what);
            entries.push(PollEntry::readable(fd));
        };
        if let Some(resolver) = &self.resolver {
            add(Polled::Resolver, resolver.as_fd().as_raw_fd());
        }
        for (name, exchange) in &self.exchanges {
            add(Polled::Exchange(*name), exchange.socket.as_fd().as_raw_fd());
        }
        for Network { place, service, .. } in &self.networks {
            for sender in service.senders() {
                add(Polled::Senders(place.id), sender.as_fd().as_raw_fd());
            }
            for (listening, socket) in service.listeners() {
                add(Polled::Listener(place.id, listening), socket.as_fd().as_raw_fd());
            }
        }
    }

    /// Does what is to be done, `entries` being those that [`Self::add_poll_entries`] added. Returns how long to wait
    /// before the next turn at most; `None` for as long as nothing comes.
    pub fn turn(&mut self, entries: &[PollEntry]) -> Option<Duration> {
        let ready = self.polled.iter().zip(entries).filter(|(_, entry)| entry.is_ready());
        let ready: Vec<Polled> = ready.map(|(polled, _)| *polled).collect();
        for polled in ready {
            match polled {
                Polled::Resolver => self.take_answers(),
                Polled::Exchange(name) => self.hear(name),
                Polled::Senders(instance) => self.collect_departures(instance),
                Polled::Listener(instance, place) => self.listen(instance, place),
            }
            // However many have something to tell, what is due is not kept waiting by more than one.
            self.do_what_is_due();
        }
        let now = clock::monotonic();
        for network in &mut self.networks {
            network.departures.give_up_due(now, &mut self.events);
        }
        for exchange in self.exchanges.values_mut() {
            exchange.departures.give_up_due(now, &mut self.events);
        }
        self.run();
        self.do_what_is_due();
        self.wait()
    }

    /// Wakes the controller as long as it is time, so often at a go.
    fn do_what_is_due(&mut self) {
        for _ in 0..WAKE_UPS_PER_TURN {
            let Some(due) = self.wake_at.filter(|due| *due <= clock::monotonic()) else { return };
            let sent = self.sent;
            self.events.push_back(Event::WakeUp);
            self.run();
            if self.sent != sent {
                self.lateness.record((clock::monotonic() - due).to_bits().cast_unsigned());
            }
        }
    }

    fn wait(&self) -> Option<Duration> {
        let departures = self.exchanges.values().map(|exchange| &exchange.departures);
        let of_networks = self.networks.iter().map(|network| &network.departures);
        let departures = departures.chain(of_networks).filter_map(Departures::next);
        let next = departures.chain(self.wake_at).min()?;
        let left = next.nanoseconds_since(clock::monotonic()).max(0);
        Some(Duration::from_nanos(left.cast_unsigned()))
    }

    /// Hands in all events that wait, and does what comes of them.
    fn run(&mut self) {
        match self.keeper.change() {
            None => {}
            Some(Change::Step(by)) => {
                warn!(by = %by, "somebody else stepped the clock");
                self.foreign_steps += 1;
                self.events.push_front(Event::ClockStepped(by));
            }
            Some(Change::Leap(by)) => {
                info!(by = %by, "leap second");
                self.events.push_front(Event::ClockLeapt);
            }
        }
        while let Some(event) = self.events.pop_front() {
            let actions: Vec<Action> = self.controller.handle(moment(), event).collect();
            for action in actions {
                self.act(action);
            }
        }
    }

    /// An instance's name, where there are several.
    fn label(&self, instance: InstanceId) -> Option<&str> {
        label(&self.networks, instance)
    }

    fn connect(&self, instance: InstanceId, remote: SocketAddr) -> io::Result<TalkSocket> {
        // The controller knows of no instance but those that the configuration and we have told it.
        let network = self.networks.get(usize::from(instance.0)).ok_or(io::ErrorKind::NotFound)?;
        let place = &network.place;
        place.inside(|| TalkSocket::connected(remote, place.device()))?
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::OpenSocket { socket, instance, remote } => match self.connect(instance, remote) {
                Ok(opened) => {
                    let exchange = Exchange { instance, socket: opened, departures: Departures::default() };
                    self.exchanges.insert(socket, exchange);
                }
                // The transmission that follows fails for want of it.
                Err(error) => self.note_reachability((instance, remote, InterfaceIndex(0)), Some(&error)),
            },
            Action::CloseSocket(socket) => {
                if let Some(mut exchange) = self.exchanges.remove(&socket) {
                    exchange.departures.collect(&exchange.socket, &mut self.events);
                    exchange.departures.give_up(&mut self.events);
                }
            }
            Action::Transmit(transmission) => self.transmit(transmission),
            Action::WakeAt(time) => self.wake_at = time,
            Action::Step(by) => {
                if self.keeper.step(by) {
                    self.steps += u64::from(self.keeper.is_steering());
                } else {
                    self.events.push_back(Event::ClockStepped(-by));
                }
            }
            Action::SetFrequency(frequency) => self.keeper.set_frequency(frequency),
            Action::Publish(snapshot) => self.snapshot.publish(&snapshot),
            Action::Resolve { source, name, .. } => self.resolve(source, &name),
            Action::Report { instance, news, .. } => {
                log(instance.and_then(|instance| self.label(instance)), &news);
            }
        }
    }
}

fn label(networks: &[Network], instance: InstanceId) -> Option<&str> {
    networks.get(usize::from(instance.0))?.place.label()
}

impl Network {
    fn new(place: Arc<Place>, port: u16) -> Self {
        let service = Service::new(Arc::clone(&place), port);
        Self { place, service, departures: Departures::default(), own: BTreeSet::new() }
    }
}

fn moment() -> Moment {
    Moment { monotonic: clock::monotonic(), clock: clock::realtime().to_ntp() }
}

/// One line for each change.
fn log(instance: Option<&str>, news: &News) {
    match news {
        // Said by name, and once, where the answer came in.
        News::NotResolved => {}
        News::Panic(_) => error!(instance, "{news}"),
        News::TableFull | News::AlreadySource { .. } | News::SystemPeer(None) | News::Stepped(_) => {
            warn!(instance, "{news}")
        }
        // Good sources take turns at being the best by nanoseconds, some of them at every sample.
        News::StateChanged { before, state, .. } if before.is_good() && state.is_good() => {
            debug!(instance, "{news}");
        }
        _ => info!(instance, "{news}"),
    }
}
