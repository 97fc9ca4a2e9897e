//! The controller's keys: which of them may bring us a source that nobody named.
//!
//! Owns: what a right MAC is worth, and who goes when a key is not trusted any more. Does not own: checking MACs.
//!
//! The one idea a newcomer lacks: a right MAC says who it is, not what he may do. A key that is kept for one server of
//! ours proves that server's answers; if it let its holder become our peer as well, or be heard in a broadcast, that
//! server could have as many voices as it has addresses. So a key is good where the configuration names it, and
//! everywhere else only if it is trusted (`authistrusted` of ntpd, its `trustedkey`).

use super::super::event::{Arrival, AssociationId, Authentication, InstanceId, KeyId, TrustedKeys};
use super::super::news::Farewell;
use super::super::source::SourceId;
use super::Controller;
use std::net::SocketAddr;

impl Controller {
    /// Other keys are trusted from now on. Whoever came by one that is not any more goes at once.
    pub(super) fn on_trusted_keys(&mut self, trusted: TrustedKeys) {
        self.trusted = trusted;
        let is_let_go = |association: &&super::Association| {
            association.key.is_some_and(|key| !self.is_good(key, self.named_by(association.source)))
        };
        let gone: Vec<AssociationId> =
            self.associations.values().filter(is_let_go).map(|association| association.id).collect();
        for id in &gone {
            self.demobilise(*id, Farewell::KeyNotTrusted);
        }
        if !gone.is_empty() {
            self.select();
        }
    }

    /// May this key bring a source, where the configuration names that one, or none?
    pub(super) fn is_good(&self, key: KeyId, named: Option<KeyId>) -> bool {
        named == Some(key) || self.trusted.trusts(key)
    }

    /// A packet that came unasked, as it counts where the configuration names this key, or none: a right MAC by a key
    /// that is not good there is as wrong as one by a key that we do not have.
    pub(super) fn judged(&self, arrival: &Arrival, named: Option<KeyId>) -> Arrival {
        match arrival.authentication {
            Authentication::Valid(key) if !self.is_good(key, named) => {
                Arrival { authentication: Authentication::Invalid, ..*arrival }
            }
            _ => *arrival,
        }
    }

    /// The key that the configuration names for whoever is at this address.
    pub(super) fn named_at(&self, instance: InstanceId, remote: SocketAddr) -> Option<KeyId> {
        let id = self.servers.get(&(instance, remote))?;
        self.named_by(self.associations.get(id)?.source)
    }

    /// The key that the configuration names for a source.
    pub(super) fn named_by(&self, source: Option<SourceId>) -> Option<KeyId> {
        self.sources.get(&source?)?.configuration().key
    }
}
