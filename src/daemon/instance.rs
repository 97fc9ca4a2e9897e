//! One instance as the control thread sees it: its interfaces, what serves them, and its sockets.
//!
//! Owns: that all of them follow the machine. Does not own: the associations, which are one control core's for all
//! instances.

use super::crew::Crew;
use super::error::{ServeError, system};
use super::links::{Common, Links};
use super::news::News;
use super::place::Place;
use super::report::InstanceReport;
use super::setup;
use crate::config::Config;
use crate::datapath::interface::{InterfaceWatch, View};
use crate::datapath::udp::{LocalAddress, Neighbours, OpenError, SyncReport, UdpGroup, UdpPort};
use crate::sys::socket::{UdpOptions, UdpSocket};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use tracing::{info, warn};

/// Kernel memory for datagrams waiting at one socket: about 2,000 requests, 20 ms at 100,000 a second.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What an instance has before there is anybody to serve it.
#[derive(Debug)]
pub(super) struct Watched {
    pub place: Arc<Place>,
    watch: InterfaceWatch,
}

impl Watched {
    /// Lists its interfaces; it must have what the configuration names.
    pub fn open(place: Arc<Place>, config: &Config) -> Result<Self, ServeError> {
        let listing = system("listing interfaces");
        let watch = match place.inside(InterfaceWatch::open) {
            Ok(opened) => opened.map_err(listing)?,
            Err(error) => return Err(listing(error)),
        };
        if let Some(reason) = watch.limitation() {
            warn!(
                instance = place.label(),
                %reason,
                "netlink is refused: changes of interfaces and addresses will not be seen"
            );
        }
        place.check(watch.view())?;
        let watched = Self { place, watch };
        let view = watched.view();
        let checked = watched.place.inside(|| setup::check_interfaces(config, &watched.place, &view));
        checked.map_err(system("network namespace"))??;
        drop(view);
        Ok(watched)
    }

    /// Its interfaces and addresses.
    pub fn view(&self) -> Cow<'_, View> {
        self.place.part_of(self.watch.view())
    }
}

/// An instance in service.
#[derive(Debug)]
pub(super) struct Instance {
    watched: Watched,
    pub links: Links,
    group: UdpGroup,
    /// What the group's sockets are tied to.
    device_index: Option<u32>,
    /// Addresses whose sockets failed, and how the failure reads, so that it is logged once.
    failed_sockets: BTreeMap<String, String>,
    socket_news: News,
    /// Why its network cannot be entered any more, so that it is logged once.
    shut: Option<String>,
    /// The log says that its network namespace has lost its name.
    nameless_told: bool,
}

impl Instance {
    /// With the ports of its sockets, one for each worker. `neighbours`: those of the network namespace we were started in.
    pub fn new(
        watched: Watched,
        config: &Config,
        common: Common,
        neighbours: &Neighbours,
        workers: usize,
    ) -> (Self, Vec<UdpPort>) {
        let device = watched.place.device().map(str::to_owned);
        let options = UdpOptions { device, receive_buffer: Some(RECEIVE_BUFFER) };
        let (group, ports) = UdpGroup::new(config.port, workers.max(1), options);
        // Inline it is the same thread that answers both.
        let group = if workers == 0 { group } else { group.divert() };
        let group = if watched.place.is_one_of_ours() { group.among(neighbours.clone()) } else { group };
        let own = config.interfaces.iter().filter(|one| *one.instance == *watched.place.name);
        let links = Links::new(own, Arc::clone(&watched.place), common);
        let instance = Self {
            watched,
            links,
            group,
            device_index: None,
            failed_sockets: BTreeMap::new(),
            socket_news: News::default(),
            shut: None,
            nameless_told: false,
        };
        (instance, ports)
    }

    pub const fn place(&self) -> &Arc<Place> {
        &self.watched.place
    }

    /// Its interfaces and addresses.
    pub fn view(&self) -> Cow<'_, View> {
        self.watched.view()
    }

    /// Readable when something may have changed.
    pub fn fd(&self) -> Option<RawFd> {
        self.watched.watch.fd().map(|fd| fd.as_raw_fd())
    }

    /// The sockets that get what is no client's request.
    pub fn diverted(&self) -> impl Iterator<Item = &UdpSocket> {
        self.group.diverted()
    }

    /// The first look at the interfaces; what fails now is fatal.
    pub fn begin(&mut self, crew: &mut Crew) -> Result<(), ServeError> {
        let failed = self.sync_sockets(crew);
        if !failed.iter().any(|(_, error)| is_fatal(error)) {
            self.note_failed_sockets(&failed);
        }
        if let Some((_, error)) = failed.into_iter().find(|(_, error)| is_fatal(error)) {
            return Err(ServeError::Socket { error, suffix: self.place().suffix() });
        }
        self.reconcile(crew);
        match self.links.missing_af_xdp() {
            Some(reason) => Err(ServeError::NoAfXdp(format!("{reason}{}", self.place().suffix()))),
            None => Ok(()),
        }
    }

    /// Follows the machine. `false`: nothing has changed.
    pub fn follow(&mut self, crew: &mut Crew) -> bool {
        if !self.place().has_its_name() && !std::mem::replace(&mut self.nameless_told, true) {
            warn!(
                instance = self.place().label(),
                network = self.place().network(),
                "its network namespace was deleted, or another one has its name: the old one is served until restart"
            );
        }
        match self.watched.watch.update() {
            // Nothing new, but what failed before may work by now.
            Ok(changes)
                if changes.is_empty()
                    && self.failed_sockets.is_empty()
                    && self.shut.is_none()
                    && !self.links.have_lost_one() =>
            {
                return false;
            }
            Ok(_) => {}
            Err(error) => {
                warn!(instance = self.place().label(), %error, "interfaces cannot be listed; trying again");
            }
        }
        let failed = self.sync_sockets(crew);
        self.note_failed_sockets(&failed);
        self.reconcile(crew);
        true
    }

    fn reconcile(&mut self, crew: &mut Crew) {
        let Self { watched, links, .. } = self;
        let result = watched.place.inside(|| links.reconcile(watched.watch.view(), &watched.view(), crew));
        self.note_shut(result.err());
    }

    /// Opens and closes sockets as addresses come and go. Returns those that could not be opened; the next call
    /// tries them again.
    fn sync_sockets(&mut self, crew: &mut Crew) -> Vec<(LocalAddress, OpenError)> {
        let device_index = self.place().device_index(&self.view());
        if std::mem::replace(&mut self.device_index, device_index) != device_index {
            self.group.renew();
            crew.sockets_changed();
        }
        let wanted = self.links.socket_addresses(&self.watched.view());
        let Self { watched, group, .. } = self;
        let report = match watched.place.inside(|| group.sync_addresses(&wanted)) {
            Ok(report) => report,
            Err(error) => {
                self.note_shut(Some(error));
                SyncReport::default()
            }
        };
        if !(report.added.is_empty() && report.removed.is_empty()) {
            crew.sockets_changed();
            if self.socket_news.is_due() {
                info!(
                    instance = self.place().label(),
                    added = report.added.len(),
                    removed = report.removed.len(),
                    "sockets follow the addresses"
                );
            }
        }
        report.failed
    }

    /// Logs each failure once.
    fn note_failed_sockets(&mut self, failed: &[(LocalAddress, OpenError)]) {
        let mut texts = BTreeMap::new();
        for (local, error) in failed {
            let (address, text) = (local.address().to_string(), error.to_string());
            if self.failed_sockets.get(&address) != Some(&text) && !is_expected(error) {
                warn!(instance = self.place().label(), %error, "address not served by a socket");
            }
            texts.insert(address, text);
        }
        self.failed_sockets = texts;
    }

    fn note_shut(&mut self, error: Option<std::io::Error>) {
        let text = error.map(|error| error.to_string());
        if let Some(error) = text.as_ref().filter(|text| self.shut.as_ref() != Some(text)) {
            warn!(
                instance = self.place().label(),
                error, "its network cannot be entered: changes are not followed; it is tried again"
            );
        }
        self.shut = text;
    }

    /// What each interface has dropped, for [`Links::report`]: to be read before the queues are.
    pub fn receive_dropped(&self) -> Vec<Option<u64>> {
        self.place().inside(|| self.links.receive_dropped()).unwrap_or_default()
    }

    /// How many addresses its sockets serve.
    pub fn addresses(&self) -> usize {
        self.group.addresses().count()
    }

    pub fn report(&self) -> InstanceReport {
        InstanceReport {
            name: self.place().name.to_string(),
            network: self.place().network(),
            socket_addresses: self.group.addresses().map(|local| local.address().to_string()).collect(),
        }
    }
}

/// Does this keep the server from starting? One address that fails otherwise leaves the others to be served.
const fn is_fatal(error: &OpenError) -> bool {
    matches!(error, OpenError::AddressInUse(_) | OpenError::NotPermitted(_))
}

/// An address that is not there yet is the usual case while IPv6 looks for duplicates.
const fn is_expected(error: &OpenError) -> bool {
    matches!(error, OpenError::NotLocal(_))
}
