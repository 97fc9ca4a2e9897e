//! The control thread: starts everything, watches the machine, the clock and the signals, answers questions, and
//! ends everything in the right order.

mod start;

use super::associations::{Associations, wants_clock};
use super::control_socket::ControlSocket;
use super::crew::Crew;
use super::error::{ServeError, system};
use super::instance::Instance;
use super::pace::Pace;
#[cfg(feature = "metrics")]
use super::prometheus::Exporter;
use super::questions;
use super::setup::load_keys;
use super::stamps::BatchClock;
use super::worker::{Notice, Passed};
use crate::clock::{Reference, ReferenceKind, Trouble};
use crate::config::{Config, Problems};
use crate::control::InstanceId;
use crate::serve::clients::ClientStatistics;
use crate::serve::limit::RateLimiter;
use crate::snapshot::{SnapshotCell, SystemSnapshot};
use crate::sys::clock;
use crate::sys::process::{self, PollEntry, Waker};
use crate::sys::signal::{Signal, SignalFd};
use crate::sys::socket::Batch;
use crate::time::{Log2Seconds, Realtime, Timestamp};
use crate::wire::Mode;
use crossbeam::channel::Receiver;
use std::collections::BTreeMap;
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
    /// In the order of their numbers, at least one.
    pub(super) instances: Vec<Instance>,
    pub(super) crew: Crew,
    pub(super) statistics: Vec<Arc<ClientStatistics>>,
    pub(super) limiters: [Option<Arc<RateLimiter>>; 2],
    /// How much of their tables is on huge pages.
    pub(super) limiters_huge_bytes: usize,
    control_socket: Option<ControlSocket>,
    #[cfg(feature = "metrics")]
    exporter: Option<Exporter>,
    notices: Receiver<Notice>,
    /// Readable when there may be notices.
    noticed: Arc<Waker>,
    pub(super) unsolicited: BTreeMap<Mode, u64>,
    /// For what comes past the workers.
    batch: Batch,
    pub(super) associations: Associations,
}

impl Server {
    /// The first look at the clock and the interfaces; what fails now is fatal.
    fn begin(&mut self) -> Result<(), ServeError> {
        self.publish_clock();
        for instance in &mut self.instances {
            instance.begin(&mut self.crew)?;
        }
        self.follow_with_associations();
        let addresses: usize = self.instances.iter().map(Instance::addresses).sum();
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
            entries.extend(self.instances.iter().filter_map(Instance::fd).map(PollEntry::readable));
            let associations_start = entries.len();
            self.associations.add_poll_entries(&mut entries);
            let diverted_start = entries.len();
            self.add_diverted_entries(&mut entries);
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
            let watched = entries.get(crew_end..associations_start).unwrap_or_default();
            let interfaces_changed = watched.iter().any(PollEntry::is_ready);
            if entries.get(noticed).is_some_and(PollEntry::is_ready) {
                self.noticed.clear();
            }
            // Inline, they came just now.
            self.take_notices();
            self.take_diverted(entries.get(diverted_start..noticed).unwrap_or_default());
            let own_entries = entries.get(associations_start..diverted_start).unwrap_or_default();
            let associations_wait = self.associations.turn(own_entries);
            let tick = Instant::now() >= next_tick;
            if tick {
                next_tick = Instant::now() + TICK;
                self.publish_clock();
                self.associations.tick();
                if self.associations.is_deaf() {
                    let views: Vec<_> = self.instances.iter().map(Instance::view).collect();
                    self.associations.listen_again(&self.config, &views);
                }
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
            // Sources name them, and all that runs knows them by their numbers.
            if config.instances() != self.config.instances() {
                return Err("the instances are others now, which takes a restart".to_owned());
            }
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
        self.associations.set_keys(keys.all, &self.config.keys.trusted);
        self.follow_with_associations();
        info!(sources = self.config.sources.len(), "SIGHUP: sources and keys read again");
    }

    /// Programs off first, so that the kernel's sockets see what still comes; then the workers finish.
    fn stop(&mut self) {
        self.instances.iter_mut().for_each(|instance| instance.links.detach());
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
                None if snapshot.is_synchronised() => info!(
                    stratum = snapshot.stratum,
                    reference_id = %snapshot.reference_id,
                    "the clock is synchronised"
                ),
                // There are sources now, which have not said anything yet.
                None => {}
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
        let mut has_changed = false;
        for instance in &mut self.instances {
            has_changed |= instance.follow(&mut self.crew);
        }
        if has_changed {
            self.follow_with_associations();
        }
    }

    fn follow_with_associations(&mut self) {
        let views: Vec<_> = self.instances.iter().map(Instance::view).collect();
        self.associations.follow(&self.config, &views);
    }

    /// What the workers have to tell, so much at a turn.
    pub(super) fn take_notices(&mut self) {
        for _ in 0..NOTICES_MAX {
            let Ok(notice) = self.notices.try_recv() else { return };
            match notice {
                Notice::Packet(passed) => pass(&mut self.associations, &mut self.unsolicited, &passed),
                Notice::QueueGone { instance, ifindex } => {
                    if let Some(instance) = self.instances.get_mut(usize::from(instance.0)) {
                        instance.links.lost(ifindex);
                    }
                }
            }
        }
    }

    fn add_diverted_entries(&self, entries: &mut Vec<PollEntry>) {
        let sockets = self.instances.iter().flat_map(Instance::diverted);
        entries.extend(sockets.map(|socket| PollEntry::readable(socket.as_fd().as_raw_fd())));
    }

    /// A batch from each of these sockets that has one, `entries` being those that were added for them.
    fn take_diverted(&mut self, entries: &[PollEntry]) {
        let Self { instances, associations, unsolicited, batch, .. } = self;
        let mut entries = entries.iter();
        for (number, instance) in instances.iter().enumerate() {
            for (socket, entry) in instance.diverted().zip(entries.by_ref()) {
                // An error is one that ICMP brought, of somebody who was answered and listens no more.
                if !entry.is_ready() || socket.receive(batch).is_err() {
                    continue;
                }
                let clock = BatchClock::read();
                for datagram in batch.datagrams() {
                    let id = InstanceId(number as u16);
                    let passed = Passed::new(id, socket.local_address(), datagram, &clock);
                    pass(associations, unsolicited, &passed);
                }
            }
        }
    }

    fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    fn answer_questions(&mut self) {
        let Some(mut socket) = self.control_socket.take() else { return };
        socket.serve(|question| questions::answer(self, question));
        self.control_socket = Some(socket);
    }
}

/// RFC 5905 figure 20 says what becomes of a packet of another mode than 3; one that is of no use is counted.
fn pass(associations: &mut Associations, unsolicited: &mut BTreeMap<Mode, u64>, passed: &Passed) {
    let Passed { source, destination, mode, .. } = *passed;
    if !associations.take(passed) {
        debug!(%source, %destination, ?mode, "packet without association");
        *unsolicited.entry(mode).or_default() += 1;
    }
}
