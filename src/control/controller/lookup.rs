//! The controller's names: what they lead to, and when it is worth while to ask again.
//!
//! Owns: which of a name's addresses become associations, and which associations are of no use. Does not own: asking
//! the DNS; the shell does.

use super::super::action::Action;
use super::super::agenda::Due;
use super::super::event::AssociationId;
use super::super::news::{Farewell, News};
use super::super::source::{Place, SourceId};
use super::super::state::SourceState;
use super::Controller;
use crate::time::Log2Seconds;
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

/// Can a server have this address at all? (Not a link-local one: a name does not tell on which interface.)
fn is_server_address(remote: SocketAddr) -> bool {
    let ip = remote.ip().to_canonical();
    let is_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let is_everybodys = ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    remote.port() != 0 && !ip.is_unspecified() && !is_everybodys && !is_local
}

impl Controller {
    /// Asks for a source's addresses, unless that was asked already.
    pub(super) fn look_up(&mut self, source: SourceId) {
        let Some(entry) = self.sources.get_mut(&source) else { return };
        let Place::Name(name, _) = entry.configuration().place.clone() else { return };
        if !entry.is_looking_up {
            entry.is_looking_up = true;
            let instance = entry.configuration().instance;
            self.actions.push(Action::Resolve { source, instance, name });
        }
    }

    /// The addresses of a source's name, or none.
    pub(super) fn on_resolved(&mut self, source: SourceId, addresses: &[IpAddr]) {
        let Some(entry) = self.sources.get_mut(&source) else { return };
        let Place::Name(_, port) = entry.configuration().place else { return };
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
            if entry.members().len() >= entry.wanted() {
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
        let is_fresh = |remote: &SocketAddr| {
            is_server_address(*remote)
                && !self.is_taken(entry.configuration(), *remote)
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
        let members = self.sources.get(&source)?.members();
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
        if entry.members().len() >= entry.wanted() && !wants_more {
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
        let is_silent = is_long && !association.poll.reach().is_reachable();
        let is_named = self
            .sources
            .get(&source)
            .is_some_and(|entry| matches!(entry.configuration().place, Place::Name(..)));
        if is_silent && self.is_searched(source) {
            self.demobilise(id, Farewell::Silent);
            return self.select();
        }
        if is_long && is_named && !self.agenda.has(Due::Lookup(source)) {
            self.agenda.set(Due::Lookup(source), Some(self.now.monotonic));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_lead_to_one_host_only() {
        for (text, is_one) in [
            ("192.0.2.1:123", true),
            ("[2001:db8::1]:123", true),
            ("192.0.2.1:0", false),
            ("0.0.0.0:123", false),
            ("[::]:123", false),
            ("224.0.1.1:123", false),
            ("255.255.255.255:123", false),
            ("[ff02::101]:123", false),
            ("[::ffff:224.0.1.1]:123", false),
            ("[fe80::1]:123", false),
        ] {
            assert_eq!(is_server_address(text.parse().unwrap()), is_one, "{text}");
        }
    }
}
