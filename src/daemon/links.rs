//! The interfaces that are served, kept as the configuration wants them while the machine changes under them.
//!
//! Owns: which interface stands on which rung, its XDP program and that program's maps. Does not own: the queues'
//! ports, which are with the workers, nor the sockets, which serve every address in any case.
//!
//! The one idea a newcomer lacks: everything is one function of the present view, [`Links::reconcile`]. An
//! interface that appears, one that comes back with another index, an address that comes or goes: the same call
//! sees a difference and removes it.

mod link;

use super::crew::Crew;
use super::place::Place;
use super::report::{InterfaceReport, QueueReport};
use crate::config::{Datapath, Interface as Settings};
use crate::datapath::interface::View;
use crate::datapath::steering::PrefixAction;
use crate::datapath::udp::LocalAddress;
use ipnet::IpNet;
use link::{Link, State, receive_dropped};
use std::sync::Arc;

/// What holds for every interface.
#[derive(Clone, Debug)]
pub struct Common {
    /// Which paths are allowed.
    pub datapath: Datapath,
    /// UDP port of the requests.
    pub port: u16,
    /// Do the workers spin?
    pub busy_poll: bool,
    /// Prefixes that the XDP program drops or lets through again.
    pub dropped: Vec<(IpNet, PrefixAction)>,
}

/// All configured interfaces of one instance.
#[derive(Debug)]
pub struct Links {
    common: Common,
    links: Vec<Link>,
    /// For spreading queues over the workers.
    next_worker: usize,
}

impl Links {
    /// The interfaces of a configuration; none is served yet.
    #[must_use]
    pub fn new<'s>(
        interfaces: impl Iterator<Item = &'s Settings>,
        place: Arc<Place>,
        common: Common,
    ) -> Self {
        let links = interfaces.map(|settings| Link::new(settings, Arc::clone(&place))).collect();
        // Instances with one queue each do not all go to the first worker.
        let next_worker = place.id.0.into();
        Self { common, links, next_worker }
    }

    /// Makes what is served follow the view, of which `ours` is the instance's part: addresses are served that are in it,
    /// VLAN tags are of concern in any case. To be called inside the instance.
    pub fn reconcile(&mut self, view: &View, ours: &View, crew: &mut Crew) {
        for link in &mut self.links {
            let interface = ours.interface_named(&link.name);
            link.leave_if_changed(interface, view, crew);
            if let (Some(interface), State::Absent) = (interface, &link.state) {
                link.open(interface, (view, ours), &self.common, crew, &mut self.next_worker);
            }
            if let State::AfXdp(steered) = &mut link.state {
                steered.follow(&link.name, &link.tags, ours);
            }
        }
    }

    /// Which addresses the kernel's sockets serve: those of the configured interfaces and of their VLAN children,
    /// and the loopback ones; all of them if no interface is configured.
    #[must_use]
    pub fn socket_addresses(&self, view: &View) -> Vec<LocalAddress> {
        let mut wanted = Vec::new();
        for interface in view.interfaces() {
            let ours = self.links.is_empty()
                || interface.name == "lo"
                || self.links.iter().any(|link| link.owns(interface, view));
            if ours {
                wanted.extend(view.local_addresses(interface.ifindex));
            }
        }
        wanted
    }

    /// The reason why an interface that must be served through AF_XDP is not, if there is one.
    #[must_use]
    pub fn missing_af_xdp(&self) -> Option<String> {
        if self.common.datapath != Datapath::AfXdp {
            return None;
        }
        let link = self.links.iter().find(|link| !matches!(link.state, State::AfXdp(_)))?;
        let reasons: Vec<String> =
            link.attempts.iter().map(|attempt| format!("{}: {}", attempt.rung, attempt.outcome)).collect();
        Some(format!("{} cannot be served through AF_XDP: {}", link.name, reasons.join("; ")))
    }

    /// The queues of this interface are bound to nothing: it went and came back unseen.
    pub fn lost(&mut self, ifindex: u32) {
        for link in &mut self.links {
            if let State::AfXdp(steered) = &mut link.state
                && steered.ifindex == ifindex
            {
                steered.lost = true;
            }
        }
    }

    /// Is there an interface to be opened anew for that?
    #[must_use]
    pub fn have_lost_one(&self) -> bool {
        self.links.iter().any(|link| matches!(&link.state, State::AfXdp(steered) if steered.lost))
    }

    /// Takes the XDP programs off, so that the kernel's sockets see every further packet.
    pub fn detach(&mut self) {
        for link in &mut self.links {
            if let State::AfXdp(steered) = &mut link.state {
                steered.steering.detach();
            }
        }
    }

    /// How each interface is.
    #[must_use]
    pub fn report(&mut self, dropped: &[Option<u64>], queues: &[QueueReport]) -> Vec<InterfaceReport> {
        let dropped = dropped.iter().copied().chain(std::iter::repeat(None));
        self.links.iter_mut().zip(dropped).map(|(link, dropped)| link.report(dropped, queues)).collect()
    }

    /// What each interface has dropped, for [`Self::report`]: to be read before the queues are (see `drops`).
    #[must_use]
    pub fn receive_dropped(&self) -> Vec<Option<u64>> {
        self.links.iter().map(|link| receive_dropped(&link.name)).collect()
    }
}
