//! The controller's configured sources: which addresses they have, and which associations come and go with them.

use super::super::action::Action;
use super::super::agenda::Due;
use super::super::association::{Association, Role, Traffic};
use super::super::broadcast_server::BroadcastServer;
use super::super::client::Client;
use super::super::event::{AssociationId, InstanceId, InterfaceIndex};
use super::super::filter::ClockFilter;
use super::super::kiss::Kiss;
use super::super::manycast::Search;
use super::super::news::{Farewell, News};
use super::super::poll::PollProcess;
use super::super::source::{
    Burst, POOL_MEMBERS_MAX, Place, PollOptions, SourceConfiguration, SourceId, SourceKind,
};
use super::super::state::SourceState;
use super::super::symmetric::Symmetric;
use super::system::FIRST_POLL_SPREAD;
use super::{ASSOCIATIONS_MAX, Controller, SOURCES_MAX};
use crate::time::{Log2Seconds, Monotonic, Timestamp};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// An association whose name may lead to a better address is given up for one after so many polls without use: the
/// length of the reach register.
const USELESS_POLLS: u8 = 8;
/// Between two lookups of one name, at first; twice as long after each that brought nothing better, ...
const LOOKUP_INTERVAL: Log2Seconds = Log2Seconds(6);
/// ... up to an hour.
const LOOKUP_INTERVAL_MAX: Log2Seconds = Log2Seconds(12);
/// The most addresses taken from one lookup: an answer of the DNS over UDP has room for some 28.
const ADDRESSES_MAX: usize = 32;
/// The most addresses of one source remembered as refusing us, or as tried.
const REMEMBERED_MAX: usize = 64;

/// The most broadcast servers heard at one place. A network has one or two; more than this is forgery.
pub(super) const BROADCASTERS_MAX: usize = 8;

/// A configured source and what became of it.
#[derive(Clone, Debug)]
pub struct SourceEntry {
    configuration: SourceConfiguration,
    members: Vec<AssociationId>,
    is_looking_up: bool,
    /// Lookups in a row that brought nothing better.
    vain_lookups: i8,
    /// Who said DENY or RSTR: not to be asked again (RFC 5905 section 7.4a).
    refusing: VecDeque<(SocketAddr, Kiss)>,
    /// Who was given up; taken again only when there is nobody else.
    pub(super) tried: VecDeque<SocketAddr>,
}

impl SourceEntry {
    fn new(configuration: SourceConfiguration) -> Self {
        Self {
            configuration,
            members: Vec::new(),
            is_looking_up: false,
            vain_lookups: 0,
            refusing: VecDeque::new(),
            tried: VecDeque::new(),
        }
    }

    /// As configured.
    #[must_use]
    pub const fn configuration(&self) -> &SourceConfiguration {
        &self.configuration
    }

    /// Its associations.
    #[must_use]
    pub fn members(&self) -> &[AssociationId] {
        &self.members
    }

    /// The servers that refuse us, the latest last, and how they said so.
    pub fn refusing(&self) -> impl Iterator<Item = (SocketAddr, Kiss)> {
        self.refusing.iter().copied()
    }

    /// Is its name being looked up?
    #[must_use]
    pub const fn is_looking_up(&self) -> bool {
        self.is_looking_up
    }

    /// How many associations it shall have.
    pub(super) fn wanted(&self) -> usize {
        match self.configuration.kind {
            SourceKind::Server | SourceKind::Peer(_) | SourceKind::Broadcast(_) => 1,
            SourceKind::BroadcastClient(_) => BROADCASTERS_MAX,
            SourceKind::ManycastClient(options) => options.most(),
            SourceKind::ManycastServer(_) => 0,
            SourceKind::Pool(members) => usize::from(members.clamp(1, POOL_MEMBERS_MAX)),
        }
    }

    pub(super) fn refuses(&self, remote: SocketAddr) -> bool {
        self.refusing.iter().any(|(address, _)| *address == remote)
    }
}

fn remember<T>(memory: &mut VecDeque<T>, item: T) {
    if memory.len() == REMEMBERED_MAX {
        memory.pop_front();
    }
    memory.push_back(item);
}

/// Can a server have this address at all?
fn is_server_address(remote: SocketAddr) -> bool {
    let ip = remote.ip().to_canonical();
    remote.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST)
}

impl Controller {
    /// A new source, or another configuration of one.
    pub(super) fn add_source(&mut self, source: SourceId, configuration: SourceConfiguration) {
        self.remove_source(source);
        if self.sources.len() >= SOURCES_MAX {
            return self.report(None, News::TableFull);
        }
        let (kind, place) = (configuration.kind, configuration.place.clone());
        self.sources.insert(source, SourceEntry::new(configuration));
        self.review_poll_range();
        if kind.hears_strangers() {
            self.listeners.insert(source);
        }
        if kind.only_listens() {
            return;
        }
        match place {
            Place::Address(remote) => _ = self.mobilise(source, remote),
            Place::Name(..) if kind.addresses_many() => {}
            Place::Name(..) => self.look_up(source),
        }
    }

    pub(super) fn remove_source(&mut self, source: SourceId) {
        let Some(entry) = self.sources.get(&source) else { return };
        for member in entry.members.clone() {
            self.demobilise(member, Farewell::Removed);
        }
        self.sources.remove(&source);
        self.listeners.remove(&source);
        self.agenda.set(Due::Lookup(source), None);
        self.review_poll_range();
        self.select();
    }

    /// Asks for a source's addresses, unless that was asked already.
    pub(super) fn look_up(&mut self, source: SourceId) {
        let Some(entry) = self.sources.get_mut(&source) else { return };
        let Place::Name(name, _) = &entry.configuration.place else { return };
        if !entry.is_looking_up {
            entry.is_looking_up = true;
            let (name, instance) = (name.clone(), entry.configuration.instance);
            self.actions.push(Action::Resolve { source, instance, name });
        }
    }

    /// The addresses of a source's name, or none.
    pub(super) fn on_resolved(&mut self, source: SourceId, addresses: &[IpAddr]) {
        let Some(entry) = self.sources.get_mut(&source) else { return };
        let Place::Name(_, port) = entry.configuration.place else { return };
        if !entry.is_looking_up {
            return;
        }
        entry.is_looking_up = false;
        let remotes: Vec<SocketAddr> =
            addresses.iter().take(ADDRESSES_MAX).map(|&address| SocketAddr::new(address, port)).collect();
        if remotes.is_empty() {
            self.report(None, News::NotResolved);
        }
        self.fill(source, &remotes);
        self.plan_lookup(source);
    }

    /// Takes as many of these addresses as the source has need of: for members it lacks, then for those of no use.
    fn fill(&mut self, source: SourceId, remotes: &[SocketAddr]) {
        let mut fresh = self.fresh(source, remotes);
        if fresh.is_empty()
            && let Some(entry) = self.sources.get_mut(&source)
        {
            entry.tried.clear();
            fresh = self.fresh(source, remotes);
        }
        for remote in fresh {
            let Some(entry) = self.sources.get(&source) else { return };
            if entry.members.len() >= entry.wanted() {
                let Some(useless) = self.useless_member(source) else { return };
                self.demobilise(useless, Farewell::Replaced);
            }
            if self.mobilise(source, remote).is_none() {
                return;
            }
        }
    }

    /// Those of these addresses that are no member anywhere, do not refuse us, and were not given up lately.
    fn fresh(&self, source: SourceId, remotes: &[SocketAddr]) -> Vec<SocketAddr> {
        let Some(entry) = self.sources.get(&source) else { return Vec::new() };
        let instance = entry.configuration.instance;
        let is_fresh = |remote: &SocketAddr| {
            is_server_address(*remote)
                && !self.is_taken(instance, *remote)
                && !entry.refuses(*remote)
                && !entry.tried.contains(remote)
        };
        let mut fresh: Vec<SocketAddr> = Vec::new();
        for remote in remotes.iter().filter(|remote| is_fresh(remote)) {
            if !fresh.contains(remote) {
                fresh.push(*remote);
            }
        }
        fresh
    }

    fn useless_member(&self, source: SourceId) -> Option<AssociationId> {
        let members = &self.sources.get(&source)?.members;
        let worst = members.iter().filter_map(|id| self.associations.get(id));
        worst
            .filter(|association| association.useless_polls >= USELESS_POLLS)
            .max_by_key(|association| (association.useless_polls, association.id))
            .map(|association| association.id)
    }

    /// Looks a name up again later, if its source still wants for something.
    fn plan_lookup(&mut self, source: SourceId) {
        let wants_more = self.useless_member(source).is_some();
        let now = self.now.monotonic;
        let Some(entry) = self.sources.get_mut(&source) else { return };
        if entry.members.len() >= entry.wanted() && !wants_more {
            entry.vain_lookups = 0;
            return;
        }
        let interval = Log2Seconds(LOOKUP_INTERVAL.0 + entry.vain_lookups).min(LOOKUP_INTERVAL_MAX);
        entry.vain_lookups = entry.vain_lookups.saturating_add(1).min(LOOKUP_INTERVAL_MAX.0);
        self.agenda.set(Due::Lookup(source), Some(now + interval.to_duration()));
    }

    /// At each poll: has the association been of no use for long, and does its name perhaps lead elsewhere?
    pub(super) fn review_usefulness(&mut self, id: AssociationId) {
        let Some(association) = self.associations.get_mut(&id) else { return };
        let is_useless = match association.state {
            SourceState::Falseticker { .. } => true,
            // As long as nobody knows who is right, nobody is wrong; and noselect is not its fault.
            SourceState::NotSelectable => false,
            state => state < SourceState::WaitingForMeasurements,
        };
        association.useless_polls = if is_useless { association.useless_polls.saturating_add(1) } else { 0 };
        let Some(source) = association.source else { return };
        let is_long = association.useless_polls >= USELESS_POLLS;
        let is_silent = is_long && association.state == SourceState::Unreachable;
        let is_named = self
            .sources
            .get(&source)
            .is_some_and(|entry| matches!(entry.configuration.place, Place::Name(..)));
        if is_silent && self.is_searched(source) {
            self.demobilise(id, Farewell::Silent);
            return self.select();
        }
        if is_long && is_named && !self.agenda.has(Due::Lookup(source)) {
            self.agenda.set(Due::Lookup(source), Some(self.now.monotonic));
        }
    }

    fn mobilise(&mut self, source: SourceId, remote: SocketAddr) -> Option<AssociationId> {
        let configuration = &self.sources.get(&source)?.configuration;
        let role = match configuration.kind {
            SourceKind::Peer(volley) => Role::Symmetric(Symmetric::active(volley)),
            SourceKind::Broadcast(options) => Role::BroadcastServer(BroadcastServer::new(options)),
            SourceKind::ManycastClient(options) => {
                let interval = configuration.poll.clamped().poll_min;
                let first = self.now.monotonic + self.chance.below(FIRST_POLL_SPREAD);
                Role::ManycastClient(Search::new(options, interval, first))
            }
            _ => Role::Client(Client::default()),
        };
        self.mobilise_as(source, remote, role)
    }

    pub(super) fn mobilise_as(
        &mut self,
        source: SourceId,
        remote: SocketAddr,
        role: Role,
    ) -> Option<AssociationId> {
        let configuration = self.sources.get(&source)?.configuration.clone();
        if self.is_taken(configuration.instance, remote) {
            self.report(None, News::AlreadySource { remote });
            return None;
        }
        if let Some(&guest) = self.servers.get(&(configuration.instance, remote)) {
            self.demobilise(guest, Farewell::Configured);
            self.select();
        }
        let first_poll = self.now.monotonic + self.chance.below(FIRST_POLL_SPREAD);
        let Some(id) = self.insert(Some(source), &configuration, remote, role, first_poll) else {
            self.report(None, News::TableFull);
            return None;
        };
        let entry = self.sources.get_mut(&source)?;
        entry.members.push(id);
        Some(id)
    }

    /// Is the address a source's? A passive peer, which came unasked, makes room for one that is configured.
    fn is_taken(&self, instance: InstanceId, remote: SocketAddr) -> bool {
        let held = self.servers.get(&(instance, remote)).and_then(|id| self.associations.get(id));
        held.is_some_and(|association| !association.role.is_passive())
    }

    /// A new association with an address that has none; `None`: there is no room.
    pub(super) fn insert(
        &mut self,
        source: Option<SourceId>,
        configuration: &SourceConfiguration,
        remote: SocketAddr,
        role: Role,
        first_poll: Timestamp<Monotonic>,
    ) -> Option<AssociationId> {
        let number = self.last_association.checked_add(1)?;
        if self.associations.len() >= ASSOCIATIONS_MAX {
            return None;
        }
        self.last_association = number;
        let id = AssociationId(number);
        let precision = self.options.precision;
        let association = new_association(id, source, remote, configuration, role, first_poll, precision);
        self.servers.insert((association.instance, remote), id);
        self.associations.insert(id, association);
        self.report(Some(id), News::Mobilised { remote });
        self.plan(id);
        Some(id)
    }

    /// Dissolves an association. Selection is the caller's to run.
    pub(super) fn demobilise(&mut self, id: AssociationId, reason: Farewell) {
        let Some(mut association) = self.associations.remove(&id) else { return };
        let open = association.role.client_mut().and_then(Client::close);
        self.actions.extend(open.map(Action::CloseSocket));
        self.servers.remove(&(association.instance, association.remote));
        self.agenda.set(Due::Association(id), None);
        let remote = association.remote;
        if let Some(source) = association.source
            && let Some(entry) = self.sources.get_mut(&source)
        {
            entry.members.retain(|member| *member != id);
            match reason {
                Farewell::Kissed(kiss) => {
                    remember(&mut entry.refusing, (remote, kiss));
                    if matches!(entry.configuration.place, Place::Name(..)) {
                        self.agenda.set(Due::Lookup(source), Some(self.now.monotonic));
                    }
                }
                Farewell::Replaced => remember(&mut entry.tried, remote),
                Farewell::Removed
                | Farewell::Silent
                | Farewell::WorseStratum
                | Farewell::BothPassive
                | Farewell::Configured
                | Farewell::SearchedAnew => {}
            }
        }
        self.report(Some(id), News::Demobilised { remote, reason });
        if let Some(source) = association.source {
            self.on_member_lost(source);
        }
    }
}

fn new_association(
    id: AssociationId,
    source: Option<SourceId>,
    remote: SocketAddr,
    configuration: &SourceConfiguration,
    role: Role,
    first_poll: Timestamp<Monotonic>,
    precision: Log2Seconds,
) -> Association {
    Association {
        id,
        source,
        instance: configuration.instance,
        interface: InterfaceIndex(0),
        remote,
        local: None,
        key: configuration.key,
        options: configuration.options,
        poll: PollProcess::new(poll_options(configuration, &role), first_poll),
        role,
        filter: ClockFilter::new(precision),
        peer: None,
        last_sample: None,
        kiss: None,
        state: SourceState::Unreachable,
        traffic: Traffic::default(),
        useless_polls: 0,
    }
}

/// RFC 5905 section 13.2 knows bursts of clients only; two peers that burst at each other would never rest.
fn poll_options(configuration: &SourceConfiguration, role: &Role) -> PollOptions {
    match role {
        Role::Client(_) | Role::ManycastClient(_) => configuration.poll,
        Role::BroadcastServer(server) => PollOptions::fixed(server.interval()),
        Role::BroadcastClient(listener) => PollOptions::fixed(listener.interval()),
        Role::Symmetric(_) => PollOptions { iburst: Burst::Off, burst: Burst::Off, ..configuration.poll },
    }
}
