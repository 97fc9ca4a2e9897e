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
mod keeper;
mod report;
mod resolver;
mod roster;
mod sending;
mod service;
mod unasked;

pub use report::{ControlReport, SourceReport, SourcesReport, SynchronisationReport};
pub use unasked::PASSED_OCTETS_MAX;

pub(super) use keeper::wants_clock;

use crate::auth::KeyTable;
use crate::clock::Change;
use crate::config::Config;
use crate::control::source::{SourceConfiguration, SourceId};
use crate::control::{
    Access, Action, Arrival, Controller, Delivery, Event, ExchangeSocket, InstanceId, InterfaceIndex, Moment,
    News, SocketName, StampKind,
};
use crate::datapath::interface::View;
use crate::metrics::Histogram;
use crate::serve::access::AccessList;
use crate::snapshot::{SnapshotCell, SystemSnapshot};
use crate::sys::clock;
use crate::sys::process::{self, PollEntry};
use crate::sys::socket::TalkSocket;
use crate::time::{Log2Seconds, Monotonic, Timestamp};
use crate::wire::Packet;
use configured::Configured;
use departures::Departures;
use keeper::Keeper;
use resolver::Resolver;
use service::{Listening, Service};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;
use tracing::{debug, error, info, warn};

use super::stamps::BatchClock;

/// Datagrams taken from one socket before the others have their turn.
const DATAGRAMS_PER_TURN: usize = 16;
/// Wake-ups of the controller before the descriptors are looked at again.
const WAKE_UPS_PER_TURN: usize = 64;

/// The socket of one exchange.
#[derive(Debug)]
struct Exchange {
    socket: TalkSocket,
    departures: Departures,
}

/// What a poll entry stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Polled {
    Resolver,
    Exchange(ExchangeSocket),
    Senders,
    Listener(Listening),
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
    service: Service,
    /// Of what was sent from port 123.
    departures: Departures,
    /// Started when the first name is to be looked up.
    resolver: Option<Resolver>,
    /// Names that could not be resolved, and why.
    unresolved: BTreeMap<SourceId, String>,
    /// To whom nothing can be sent, and why.
    unreachable: BTreeMap<SocketAddr, String>,
    keeper: Keeper,
    keys: Arc<KeyTable>,
    access: Arc<AccessList>,
    /// Addresses of ours: what comes from them was our own broadcast.
    own: BTreeSet<IpAddr>,
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
            events: VecDeque::new(),
            wake_at: None,
            configured: BTreeMap::new(),
            order: Vec::new(),
            last_source: 0,
            exchanges: BTreeMap::new(),
            service: Service::new(config.port),
            departures: Departures::default(),
            resolver: None,
            unresolved: BTreeMap::new(),
            unreachable: BTreeMap::new(),
            keeper,
            keys,
            access,
            own: BTreeSet::new(),
            port: config.port,
            snapshot,
            polled: Vec::new(),
            sent: 0,
            steps: 0,
            foreign_steps: 0,
            lateness: Histogram::default(),
        })
    }

    /// Follows the machine's interfaces: what is listened at, and which sources there can be.
    pub fn follow(&mut self, config: &Config, view: &View) {
        self.own =
            view.interfaces().flat_map(|one| view.addresses(one.ifindex)).map(|one| one.address).collect();
        self.service.sync(config, view);
        self.follow_sources(configured::sources(config, view));
        self.run();
    }

    /// From now on these, and no others. Whoever stays as he was keeps all that is known of him.
    fn follow_sources(&mut self, wanted: Vec<Configured>) {
        let (wanted, gone) = roster::assign(&self.configured, wanted, &mut self.last_source);
        for source in gone {
            if let Some(Configured { name, mode, .. }) = self.configured.remove(&source) {
                info!(source = name, mode, "no longer configured");
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
                    warn!(source = wanted.name, mode = wanted.mode, reason, "left out for now");
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

    /// Other keys, from now on.
    pub fn set_keys(&mut self, keys: Arc<KeyTable>) {
        self.keys = keys;
    }

    /// Once a second: what other programs are told of the clock, the drift file.
    pub fn tick(&mut self) {
        // Before the keeper looks how many there have been: a leap second.
        self.run();
        let frequency = self.controller.system().peer.is_some().then(|| self.snapshot.read());
        self.keeper.tick(frequency.as_ref(), self.controller.system().jitter);
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
        for sender in self.service.senders() {
            add(Polled::Senders, sender.as_fd().as_raw_fd());
        }
        for (place, socket) in self.service.listeners() {
            add(Polled::Listener(place), socket.as_fd().as_raw_fd());
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
                Polled::Senders => self.collect_departures(),
                Polled::Listener(place) => self.listen(place),
            }
            // However many have something to tell, what is due is not kept waiting by more than one.
            self.do_what_is_due();
        }
        let now = clock::monotonic();
        self.departures.give_up_due(now, &mut self.events);
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
        let departures = departures.chain([&self.departures]).filter_map(Departures::next);
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

    fn act(&mut self, action: Action) {
        match action {
            Action::OpenSocket { socket, remote, .. } => match TalkSocket::connected(remote) {
                Ok(opened) => {
                    let exchange = Exchange { socket: opened, departures: Departures::default() };
                    self.exchanges.insert(socket, exchange);
                }
                // The transmission that follows fails for want of it.
                Err(error) => self.note_reachability(remote, Some(&error)),
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
            Action::Report { news, .. } => log(&news),
        }
    }

    /// What came to the socket of an exchange.
    fn hear(&mut self, name: ExchangeSocket) {
        let Some(exchange) = self.exchanges.get_mut(&name) else { return };
        exchange.departures.collect(&exchange.socket, &mut self.events);
        for _ in 0..DATAGRAMS_PER_TURN {
            // The last packet may have closed it.
            let Some(exchange) = self.exchanges.get_mut(&name) else { return };
            let incoming = match exchange.socket.receive() {
                Ok(Some(incoming)) => incoming,
                Ok(None) => break,
                // An ICMP error, which is told once: nobody listens there, and the poll will be in vain.
                Err(error) => {
                    debug!(%error, "from a source");
                    break;
                }
            };
            exchange.departures.give_up(&mut self.events);
            let clock = BatchClock::read();
            let stamp = incoming.receive_timestamp.and_then(|stamp| clock.plausible(stamp));
            let local = incoming.destination.unwrap_or_else(|| exchange.socket.local_address().ip());
            let Ok(packet) = Packet::parse(incoming.payload()) else { continue };
            self.events.push_back(Event::Packet(Arrival {
                socket: SocketName::Exchange(name),
                instance: InstanceId(0),
                interface: InterfaceIndex(incoming.interface),
                remote: incoming.source,
                local,
                delivery: Delivery::Unicast,
                receive_timestamp: stamp.unwrap_or(clock.realtime).to_ntp(),
                stamp: if stamp.is_some() { StampKind::Kernel } else { StampKind::Daemon },
                // We chose whom to ask.
                access: Access::Allowed,
                authentication: self.keys.verify(incoming.payload()),
                header: *packet.header,
            }));
            self.run();
        }
    }

    fn resolve(&mut self, source: SourceId, name: &Arc<str>) {
        if self.resolver.is_none() {
            match Resolver::start() {
                Ok(resolver) => self.resolver = Some(resolver),
                Err(error) => error!(%error, "no thread to look names up"),
            }
        }
        let is_asked = self.resolver.as_ref().is_some_and(|resolver| resolver.ask(source, Arc::clone(name)));
        if !is_asked {
            self.events.push_back(Event::Resolved { source, addresses: Vec::new() });
        }
    }

    fn take_answers(&mut self) {
        let answers = self.resolver.as_ref().map(Resolver::answers).unwrap_or_default();
        for resolver::Answer { source, addresses } in answers {
            let name = self.configured.get(&source).map_or("", |configured| configured.name.as_str());
            match &addresses {
                Ok(found) => {
                    debug!(name, ?found, "resolved");
                    if self.unresolved.remove(&source).is_some() {
                        info!(name, "can be resolved again");
                    }
                }
                Err(reason) => {
                    if self.unresolved.insert(source, reason.clone()).as_ref() != Some(reason) {
                        warn!(name, reason, "cannot be resolved; it is tried again");
                    }
                }
            }
            self.events.push_back(Event::Resolved { source, addresses: addresses.unwrap_or_default() });
        }
        self.run();
    }
}

fn moment() -> Moment {
    Moment { monotonic: clock::monotonic(), clock: clock::realtime().to_ntp() }
}

/// One line for each change.
fn log(news: &News) {
    match news {
        // Said by name, and once, where the answer came in.
        News::NotResolved => {}
        News::Panic(_) => error!("{news}"),
        News::TableFull | News::AlreadySource { .. } | News::SystemPeer(None) | News::Stepped(_) => {
            warn!("{news}")
        }
        _ => info!("{news}"),
    }
}
