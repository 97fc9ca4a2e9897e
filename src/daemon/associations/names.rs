//! The names of sources: asked for when the controller wants to know, told when the resolver has found out.

use super::resolver::{Answer, Resolver};
use super::{Associations, label};
use crate::control::Event;
use crate::control::source::SourceId;
use std::sync::Arc;
use tracing::{debug, error, info, warn};

impl Associations {
    pub(super) fn resolve(&mut self, source: SourceId, name: &Arc<str>) {
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

    pub(super) fn take_answers(&mut self) {
        let answers = self.resolver.as_ref().map(Resolver::answers).unwrap_or_default();
        for Answer { source, addresses } in answers {
            let configured = self.configured.get(&source);
            let name = configured.map_or("", |configured| configured.name.as_str());
            let instance = configured.and_then(|configured| label(&self.networks, configured.instance));
            match &addresses {
                Ok(found) => {
                    debug!(instance, name, ?found, "resolved");
                    if self.unresolved.remove(&source).is_some() {
                        info!(instance, name, "can be resolved again");
                    }
                }
                Err(reason) => {
                    if self.unresolved.insert(source, reason.clone()).as_ref() != Some(reason) {
                        warn!(instance, name, reason, "cannot be resolved; it is tried again");
                    }
                }
            }
            self.events.push_back(Event::Resolved { source, addresses: addresses.unwrap_or_default() });
        }
        self.run();
    }
}
