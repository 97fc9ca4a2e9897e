//! The control thread: starts everything, watches the machine, the clock and the signals, answers questions, and
//! ends everything in the right order.

use super::associations::{Associations, wants_clock};
use super::control_socket::{ControlSocket, ControlSocketError};
use super::counters::WorkerCounters;
use super::crew::Crew;
use super::error::{ServeError, system};
use super::exchange::Answering;
use super::links::{Common, Links};
use super::news::News;
use super::pace::Pace;
#[cfg(feature = "metrics")]
use super::prometheus::{self, Exporter};
use super::questions;
use super::setup::{
    access_list, check_interfaces, cores, dropped_prefixes, load_keys, policy, prefix_lengths, reference,
    worker_count,
};
use super::worker::{Notice, Passed, ToControl, Worker};
use crate::clock::{Reference, ReferenceKind, Trouble};
use crate::config::{Config, Problems};
use crate::control::StampKind;
use crate::datapath::interface::InterfaceWatch;
use crate::datapath::udp::{LocalAddress, OpenError, UdpGroup};
use crate::serve::Responder;
use crate::serve::clients::ClientStatistics;
use crate::serve::limit::{Lottery, RateLimiter};
use crate::snapshot::{SnapshotCell, SystemSnapshot};
use crate::sys::process::{self, PollEntry, Waker};
use crate::sys::signal::{Signal, SignalFd};
use crate::sys::socket::UdpOptions;
use crate::sys::{clock, memory, scheduling};
use crate::time::{Log2Seconds, Realtime, Timestamp};
use crate::wire::Mode;
use crossbeam::channel::{Receiver, bounded};
use std::collections::BTreeMap;
#[cfg(feature = "metrics")]
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{debug, error, info, warn};

/// How often the clock's state is looked at and published, and what failed is tried again.
const TICK: Duration = Duration::from_secs(1);
/// How soon a question that could not be answered in one go is looked at again.
const WRITING: Duration = Duration::from_millis(5);
/// What workers may have to tell before the control thread listens.
const NOTICES_MAX: usize = 256;
/// Kernel memory for datagrams waiting at one socket: about 2,000 requests, 20 ms at 100,000 a second.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// [`ServeError`]; nothing is left behind.
///
/// `reread` reads the configuration again, as SIGHUP asks for.
pub fn serve(config: &Config, reread: &dyn Fn() -> Result<Config, Problems>) -> Result<(), ServeError> {
    let signals = SignalFd::block_and_open().map_err(system("signals"))?;
    let mut server = Server::start(config)?;
    let result = server.run(&signals, reread);
    server.stop();
    result
}

/// What the control thread knows.
pub(super) struct Server {
    pub(super) config: Config,
    pub(super) started: Instant,
    pub(super) start_time: Timestamp<Realtime>,
    precision: Log2Seconds,
    reference: Reference,
    snapshot: Arc<SnapshotCell>,
    pub(super) trouble: Option<Trouble>,
    watch: InterfaceWatch,
    pub(super) links: Links,
    pub(super) group: UdpGroup,
    /// Addresses whose sockets failed, and how the failure reads, so that it is logged once.
    failed_sockets: BTreeMap<String, String>,
    pub(super) crew: Crew,
    pub(super) statistics: Vec<Arc<ClientStatistics>>,
    pub(super) limiters: [Option<Arc<RateLimiter>>; 2],
    /// How much of their tables is on huge pages.
    pub(super) limiters_huge_bytes: usize,
    control_socket: Option<ControlSocket>,
    #[cfg(feature = "metrics")]
    exporter: Option<Exporter>,
    socket_news: News,
    notices: Receiver<Notice>,
    /// Readable when there may be notices.
    noticed: Arc<Waker>,
    pub(super) unsolicited: BTreeMap<Mode, u64>,
    pub(super) associations: Associations,
}

impl Server {
    fn start(config: &Config) -> Result<Self, ServeError> {
        let control_socket = open_control_socket(config)?;
        #[cfg(feature = "metrics")]
        let metrics = listen_for_scrapes(config)?;
        let watch = InterfaceWatch::open().map_err(system("listing interfaces"))?;
        if let Some(reason) = watch.limitation() {
            warn!(%reason, "netlink is refused: changes of interfaces and addresses will not be seen");
        }
        check_interfaces(config, watch.view())?;
        let cores = cores(config)?;
        let workers = worker_count(config, watch.view(), cores.len());
        if workers > cores.len() {
            warn!(workers, cpus = cores.len(), "more workers than CPUs: the last ones are not pinned");
        }
        // Every address takes a descriptor for each worker. What cannot be had is told when one is missing.
        let _ = process::raise_descriptor_limit();
        let precision = clock::measure_precision();
        let reference = reference(config);
        let snapshot = Arc::new(SnapshotCell::new(&SystemSnapshot::unsynchronised(precision)));

        let keys = load_keys(config)?;
        let access = Arc::new(access_list(config)?);
        let associations = Associations::new(
            config,
            precision,
            Arc::clone(&keys.all),
            Arc::clone(&access),
            Arc::clone(&snapshot),
        );
        let associations = associations.map_err(system("random seed"))?;
        let keys = keys.for_clients;
        let dropped = dropped_prefixes(&access, config.kod);
        let policy = policy(config, access)?;
        let limiters = [policy.limiter.clone(), policy.kiss_limiter.clone()];
        let limiters_huge_bytes =
            limiters.iter().flatten().map(|limiter| memory::collapse(limiter.table())).sum();
        let options = UdpOptions { device: None, receive_buffer: Some(RECEIVE_BUFFER) };
        let (group, ports) = UdpGroup::new(config.port, workers.max(1), options);
        let (to_control, notices) = bounded(NOTICES_MAX);
        let noticed = Arc::new(Waker::new().map_err(system("waker"))?);
        let to_control = ToControl::new(to_control, Arc::clone(&noticed));
        let mut statistics = Vec::new();
        let workers_ready = ports.into_iter().enumerate().map(|(index, sockets)| {
            let own =
                Arc::new(ClientStatistics::new(config.clients.entries as usize, prefix_lengths(config)));
            statistics.push(Arc::clone(&own));
            let seed = process::random_words().map_err(system("random seed"))?;
            let mut responder = Responder::new(policy.clone(), own, Lottery::new(seed));
            responder.set_keys(Arc::clone(&keys));
            let answering = Answering {
                responder,
                snapshot: Arc::clone(&snapshot),
                counters: Arc::new(WorkerCounters::default()),
                port: config.port,
            };
            // Inline, the thread is the control thread, and it is left where the kernel puts it.
            let core = if workers == 0 { None } else { cores.get(index).copied() };
            Ok(Worker::new(index, core, answering, sockets, to_control.clone()))
        });
        let mut workers_ready = workers_ready.collect::<Result<Vec<Worker>, ServeError>>()?;
        let crew = match (workers, workers_ready.pop()) {
            (0, Some(only)) => Crew::Inline(Box::new(only)),
            (_, last) => {
                workers_ready.extend(last);
                keep_off_the_workers(&cores, workers);
                Crew::start(workers_ready, config.busy_poll, config.realtime_priority)
                    .map_err(system("starting workers"))?
            }
        };
        let common =
            Common { datapath: config.datapath, port: config.port, busy_poll: config.busy_poll, dropped };
        let mut server = Self {
            config: config.clone(),
            started: Instant::now(),
            start_time: clock::realtime(),
            precision,
            reference,
            snapshot,
            trouble: None,
            watch,
            links: Links::new(&config.interfaces, common),
            group,
            failed_sockets: BTreeMap::new(),
            crew,
            statistics,
            limiters,
            limiters_huge_bytes,
            control_socket,
            #[cfg(feature = "metrics")]
            exporter: None,
            socket_news: News::default(),
            notices,
            noticed,
            unsolicited: BTreeMap::new(),
            associations,
        };
        server.begin().inspect_err(|_| server.stop())?;
        #[cfg(feature = "metrics")]
        if let Some(listener) = metrics {
            let started = Exporter::start(listener, &config.socket, server.crew.len());
            let exporter = started.map_err(system("starting metrics")).inspect_err(|_| server.stop())?;
            server.exporter = Some(exporter);
        }
        Ok(server)
    }

    /// The first look at the clock and the interfaces; what fails now is fatal.
    fn begin(&mut self) -> Result<(), ServeError> {
        self.publish_clock();
        let failed = self.sync_sockets();
        if !failed.iter().any(|(_, error)| is_fatal(error)) {
            self.note_failed_sockets(&failed);
        }
        if let Some((_, error)) = failed.into_iter().find(|(_, error)| is_fatal(error)) {
            return Err(error.into());
        }
        self.links.reconcile(self.watch.view(), &mut self.crew);
        self.associations.follow(&self.config, self.watch.view());
        if let Some(reason) = self.links.missing_af_xdp() {
            return Err(ServeError::NoAfXdp(reason));
        }
        let addresses = self.group.addresses().count();
        info!(port = self.config.port, workers = self.crew.len(), addresses, "serving");
        Ok(())
    }

    fn run(
        &mut self,
        signals: &SignalFd,
        reread: &dyn Fn() -> Result<Config, Problems>,
    ) -> Result<(), ServeError> {
        let mut entries = Vec::new();
        let mut next_tick = Instant::now() + TICK;
        let mut wait = Duration::ZERO;
        let mut pace = Pace::new(Instant::now());
        loop {
            entries.clear();
            entries.push(PollEntry::readable(signals.as_fd().as_raw_fd()));
            self.crew.add_poll_entries(&mut entries);
            let crew_end = entries.len();
            let watched = self.watch.fd().map(|fd| fd.as_raw_fd());
            entries.extend(watched.map(PollEntry::readable));
            let associations_start = entries.len();
            self.associations.add_poll_entries(&mut entries);
            let noticed = entries.len();
            entries.push(PollEntry::readable(self.noticed.as_fd().as_raw_fd()));
            if let Some(socket) = &self.control_socket {
                entries.extend(socket.descriptors().map(|fd| PollEntry::readable(fd.as_raw_fd())));
            }
            process::poll(&mut entries, Some(wait)).map_err(system("poll"))?;

            if entries.first().is_some_and(PollEntry::is_ready) && self.has_ended(signals, reread)? {
                return Ok(());
            }
            let crew_entries = entries.get(1..crew_end).unwrap_or_default();
            let crew_wait = self.crew.serve(crew_entries);
            let interfaces_changed =
                watched.is_some() && entries.get(crew_end).is_some_and(PollEntry::is_ready);
            if entries.get(noticed).is_some_and(PollEntry::is_ready) {
                self.noticed.clear();
            }
            // Inline, they came just now.
            self.take_notices();
            let own_entries = entries.get(associations_start..noticed).unwrap_or_default();
            let associations_wait = self.associations.turn(own_entries);
            let tick = Instant::now() >= next_tick;
            if tick {
                next_tick = Instant::now() + TICK;
                self.publish_clock();
                self.associations.tick();
                if self.crew.has_lost_one() {
                    return Err(ServeError::WorkerLost);
                }
            }
            if interfaces_changed || tick {
                self.follow_interfaces();
            }
            let is_asked = entries.iter().skip(noticed + 1).any(PollEntry::is_ready);
            if is_asked || tick || self.is_writing() {
                self.answer_questions();
            }
            wait = next_tick.saturating_duration_since(Instant::now());
            let others = [crew_wait, associations_wait, self.has_notices().then_some(Duration::ZERO)];
            wait = others.into_iter().flatten().fold(wait, Duration::min);
            if self.is_writing() {
                wait = wait.min(WRITING);
            }
            // Inline, clients wait for their answers.
            if let Some(rest) = pace.after_turn(Instant::now()).filter(|_| !self.crew.is_inline()) {
                std::thread::sleep(rest);
                wait = wait.saturating_sub(rest);
            }
        }
    }

    /// Does an answer wait for room?
    fn is_writing(&self) -> bool {
        self.control_socket.as_ref().is_some_and(ControlSocket::is_writing)
    }

    fn has_ended(
        &mut self,
        signals: &SignalFd,
        reread: &dyn Fn() -> Result<Config, Problems>,
    ) -> Result<bool, ServeError> {
        match signals.next().map_err(system("signals"))? {
            Some(signal @ (Signal::Terminate | Signal::Interrupt)) => {
                info!(?signal, "draining");
                Ok(true)
            }
            Some(Signal::HangUp) => {
                self.reload(reread());
                Ok(false)
            }
            None => Ok(false),
        }
    }

    /// Takes sources and keys from a configuration that was read again, and the key file. If anything is wrong with either,
    /// all stays as it was: half of the clients or sources locked out would be no better than all of them.
    fn reload(&mut self, reread: Result<Config, Problems>) {
        let loaded = reread.map_err(|problems| problems.to_string());
        let loaded = loaded.and_then(|config| {
            let keys = load_keys(&config).map_err(|error| error.to_string())?;
            Ok((config, keys))
        });
        let (config, keys) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => return error!(error, "SIGHUP: the sources and the keys stay as they are"),
        };
        let steered = wants_clock(&self.config);
        self.config.sources = config.sources.clone();
        self.config.keys = config.keys.clone();
        if self.config != config {
            warn!("SIGHUP: only sources and keys are taken from the configuration; restart for the rest");
        }
        if wants_clock(&self.config) && !steered {
            warn!("there was no source at the start: restart to let the clock be steered");
        }
        self.crew.set_keys(&keys.for_clients);
        self.associations.set_keys(keys.all);
        self.associations.follow(&self.config, self.watch.view());
        info!(sources = self.config.sources.len(), "SIGHUP: sources and keys read again");
    }

    /// Programs off first, so that the kernel's sockets see what still comes; then the workers finish.
    fn stop(&mut self) {
        self.links.detach();
        self.crew.stop();
        self.take_notices();
        self.associations.stop();
        // Whoever still waits for an answer, the metrics above all, learns that there is none.
        self.control_socket = None;
        #[cfg(feature = "metrics")]
        {
            self.exporter = None;
        }
    }

    /// Looks at the clock and tells the workers.
    fn publish_clock(&mut self) {
        let kernel = clock::kernel_clock_state().map_err(|error| error.to_string());
        let (snapshot, trouble) = self.reference.snapshot(&kernel, clock::realtime(), self.precision);
        self.associations.set_reference(snapshot);
        // Whether there is a source is told as it changes.
        let has_sources = self.config.sources.give_time();
        let trouble = trouble.filter(|trouble| !(has_sources && *trouble == Trouble::NoReference));
        // A value that only drifts is no news.
        let kind = |trouble: &Option<Trouble>| trouble.as_ref().map(std::mem::discriminant);
        if kind(&trouble) != kind(&self.trouble) {
            match &trouble {
                Some(trouble) => warn!("{trouble}"),
                None => info!(
                    stratum = snapshot.stratum,
                    reference_id = %snapshot.reference_id,
                    "the clock is synchronised"
                ),
            }
        }
        self.trouble = trouble;
    }

    pub(super) fn current_snapshot(&self) -> SystemSnapshot {
        self.snapshot.read()
    }

    pub(super) const fn reference_kind(&self) -> ReferenceKind {
        self.reference.kind
    }

    fn follow_interfaces(&mut self) {
        match self.watch.update() {
            // Nothing new, but what failed before may work by now.
            Ok(changes)
                if changes.is_empty() && self.failed_sockets.is_empty() && !self.links.have_lost_one() =>
            {
                return;
            }
            Ok(_) => {}
            Err(error) => warn!(%error, "interfaces cannot be listed; trying again"),
        }
        let failed = self.sync_sockets();
        self.note_failed_sockets(&failed);
        self.links.reconcile(self.watch.view(), &mut self.crew);
        self.associations.follow(&self.config, self.watch.view());
    }

    /// Opens and closes sockets as addresses come and go. Returns those that could not be opened; the next call
    /// tries them again.
    fn sync_sockets(&mut self) -> Vec<(LocalAddress, OpenError)> {
        let wanted = self.links.socket_addresses(self.watch.view());
        let report = self.group.sync_addresses(&wanted);
        if !(report.added.is_empty() && report.removed.is_empty()) {
            self.crew.sockets_changed();
            if self.socket_news.is_due() {
                info!(
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
                warn!(%error, "address not served by a socket");
            }
            texts.insert(address, text);
        }
        self.failed_sockets = texts;
    }

    /// What the workers have to tell, so much at a turn.
    pub(super) fn take_notices(&mut self) {
        for _ in 0..NOTICES_MAX {
            let Ok(notice) = self.notices.try_recv() else { return };
            match notice {
                Notice::Packet(passed) => self.pass(&passed),
                Notice::QueueGone { ifindex } => self.links.lost(ifindex),
            }
        }
    }

    fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    /// RFC 5905 figure 20 says what becomes of a packet of another mode than 3; one that is of no use is counted.
    fn pass(&mut self, passed: &Passed) {
        let Passed { source, destination, mode, receive_timestamp, is_stamped, .. } = *passed;
        let stamp = if is_stamped { StampKind::Kernel } else { StampKind::Daemon };
        if !self.associations.take(passed.payload(), source, destination, receive_timestamp, stamp) {
            debug!(%source, %destination, ?mode, "packet without association");
            *self.unsolicited.entry(mode).or_default() += 1;
        }
    }

    fn answer_questions(&mut self) {
        let Some(mut socket) = self.control_socket.take() else { return };
        socket.serve(|question| questions::answer(self, question));
        self.control_socket = Some(socket);
    }
}

/// A thousand answers at once take the control thread longer than a request may wait. So it stays, with the threads that it
/// starts, on the CPUs that are no worker's, if there are any. (The workers are pinned to theirs.)
fn keep_off_the_workers(cores: &[usize], workers: usize) {
    if let Some(theirs) = cores.get(..workers)
        && let Err(error) = scheduling::keep_off(theirs)
    {
        debug!(%error, "the control thread may run on the workers' CPUs");
    }
}

/// Another daemon on the socket is an error; no socket at all is a nuisance only.
fn open_control_socket(config: &Config) -> Result<Option<ControlSocket>, ServeError> {
    match ControlSocket::open(&config.socket) {
        Ok(socket) => Ok(Some(socket)),
        Err(error @ ControlSocketError::AlreadyRunning(_)) => Err(error.into()),
        Err(error) => {
            error!(%error, "`timeball status` will not work");
            Ok(None)
        }
    }
}

/// Before anything else is touched: who configures it wants to see it, and a port in use is soonest mended now.
#[cfg(feature = "metrics")]
fn listen_for_scrapes(config: &Config) -> Result<Option<TcpListener>, ServeError> {
    let Some(address) = config.metrics.listen else { return Ok(None) };
    let listener = prometheus::listen(address).map_err(|error| ServeError::Metrics { address, error })?;
    info!(%address, "metrics");
    Ok(Some(listener))
}

/// Does this keep the server from starting? One address that fails otherwise leaves the others to be served.
const fn is_fatal(error: &OpenError) -> bool {
    matches!(error, OpenError::AddressInUse(_) | OpenError::NotPermitted(_))
}

/// An address that is not there yet is the usual case while IPv6 looks for duplicates.
const fn is_expected(error: &OpenError) -> bool {
    matches!(error, OpenError::NotLocal(_))
}
