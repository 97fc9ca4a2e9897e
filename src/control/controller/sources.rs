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
use super::super::packet_checks::FailureCounts;
use super::super::poll::PollProcess;
use super::super::source::{
    Burst, POOL_MEMBERS_MAX, Place, PollOptions, SourceConfiguration, SourceId, SourceKind,
};
use super::super::state::SourceState;
use super::super::symmetric::Symmetric;
use super::{ASSOCIATIONS_MAX, Controller, SOURCES_MAX};
use crate::time::{Log2Seconds, Monotonic, Timestamp};
use std::collections::VecDeque;
use std::net::SocketAddr;

/// The most addresses of one source remembered as refusing us, or as tried.
const REMEMBERED_MAX: usize = 64;

/// The most broadcast servers heard at one place. A network has one or two; more than this is forgery.
pub(super) const BROADCASTERS_MAX: usize = 8;

/// A configured source and what became of it.
#[derive(Clone, Debug)]
pub struct SourceEntry {
    configuration: SourceConfiguration,
    members: Vec<AssociationId>,
    pub(super) is_looking_up: bool,
    /// Lookups in a row that brought nothing better.
    pub(super) vain_lookups: i8,
    /// Who said DENY or RSTR: not to be asked again (RFC 5905 section 7.4a).
    refusing: VecDeque<(SocketAddr, Kiss)>,
    /// Who was given up; taken again only when there is nobody else.
    pub(super) tried: VecDeque<SocketAddr>,
    /// Where strangers are listened to: why those who were heard are no associations.
    pub(super) turned_away: TurnedAway,
}

/// Packets of strangers that a listening source has heard and could do nothing with.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TurnedAway {
    /// Failed a test of RFC 5905 figure 22.
    pub failures: FailureCounts,
    /// Came from a server that is a source already, and is asked itself.
    pub known: u64,
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
            turned_away: TurnedAway::default(),
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

    /// Whom it has heard in vain.
    #[must_use]
    pub const fn turned_away(&self) -> &TurnedAway {
        &self.turned_away
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

    pub(super) fn mobilise(&mut self, source: SourceId, remote: SocketAddr) -> Option<AssociationId> {
        let configuration = &self.sources.get(&source)?.configuration;
        let role = match configuration.kind {
            SourceKind::Peer(volley) => Role::Symmetric(Symmetric::active(volley, configuration.version)),
            SourceKind::Broadcast(options) => Role::BroadcastServer(BroadcastServer::new(options)),
            SourceKind::ManycastClient(options) => {
                let interval = configuration.poll.clamped().poll_min;
                let first = self.now.monotonic + self.chance.below(self.first_poll_spread());
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
        let is_taken = match role.group_interface() {
            None => self.is_taken(&configuration, remote),
            Some(_) => self.is_repeated(configuration.instance, remote, &role),
        };
        if is_taken {
            self.report_in(Some(configuration.instance), None, News::AlreadySource { remote });
            return None;
        }
        if let Some(&guest) = self.servers.get(&(configuration.instance, remote)) {
            self.demobilise(guest, Farewell::Configured);
            self.select();
        }
        let first_poll = self.now.monotonic + self.chance.below(self.first_poll_spread());
        let Some(id) = self.insert(Some(source), &configuration, remote, role, first_poll) else {
            self.report(None, News::TableFull);
            return None;
        };
        let entry = self.sources.get_mut(&source)?;
        entry.members.push(id);
        Some(id)
    }

    /// Does the address belong to a source that does not make room for this one?
    pub(super) fn is_taken(&self, newcomer: &SourceConfiguration, remote: SocketAddr) -> bool {
        let held = self.servers.get(&(newcomer.instance, remote)).and_then(|id| self.associations.get(id));
        held.is_some_and(|association| !self.makes_room(association, newcomer))
    }

    /// Who came unasked (a passive peer, a broadcast server that was heard, a server that a search found) makes room for
    /// one that is configured, and whom a name led to for one whose address is. Nobody else would ever ask it as the
    /// operator wishes.
    fn makes_room(&self, association: &Association, newcomer: &SourceConfiguration) -> bool {
        let is_found =
            |kind: SourceKind| matches!(kind, SourceKind::BroadcastClient(_) | SourceKind::ManycastClient(_));
        let is_by_address = |source: &SourceConfiguration| matches!(source.place, Place::Address(_));
        let holder = association.source.and_then(|source| self.sources.get(&source));
        !is_found(newcomer.kind)
            && holder.map(SourceEntry::configuration).is_none_or(|holder| {
                is_found(holder.kind) || is_by_address(newcomer) && !is_by_address(holder)
            })
    }

    /// Is the same said to the same group already, or asked, through the same interface?
    fn is_repeated(&self, instance: InstanceId, group: SocketAddr, role: &Role) -> bool {
        self.associations.values().any(|association| {
            (association.instance, association.remote) == (instance, group)
                && association.role.mode() == role.mode()
                && association.role.group_interface() == role.group_interface()
        })
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
        if association.role.group_interface().is_none() {
            self.servers.insert((association.instance, remote), id);
        }
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
        if association.role.group_interface().is_none() {
            self.servers.remove(&(association.instance, association.remote));
        }
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
                // A pool looks for another one.
                Farewell::Configured if matches!(entry.configuration.place, Place::Name(..)) => {
                    self.agenda.set(Due::Lookup(source), Some(self.now.monotonic));
                }
                Farewell::Removed
                | Farewell::Silent
                | Farewell::WorseStratum
                | Farewell::BothPassive
                | Farewell::Configured
                | Farewell::SearchedAnew
                | Farewell::KeyNotTrusted => {}
            }
        }
        self.report_in(Some(association.instance), Some(id), News::Demobilised { remote, reason });
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
        version: configuration.version,
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
