//! The control thread: starts everything, watches the machine, the clock and the signals, answers questions, and
//! ends everything in the right order.

mod start;

use super::associations::Associations;
use super::control_socket::ControlSocket;
use super::crew::Crew;
use super::error::{ServeError, system};
use super::instance::Instance;
#[cfg(feature = "metrics")]
use super::prometheus::Exporter;
use super::questions;
use super::setup::load_keys;
use super::worker::{Notice, Passed};
use crate::clock::{Reference, ReferenceKind, Trouble};
use crate::config::Config;
use crate::serve::clients::ClientStatistics;
use crate::serve::limit::RateLimiter;
use crate::snapshot::{SnapshotCell, SystemSnapshot};
use crate::sys::clock;
use crate::sys::process::{self, PollEntry, Waker};
use crate::sys::signal::{Signal, SignalFd};
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
pub fn serve(config: &Config) -> Result<(), ServeError> {
    let signals = SignalFd::block_and_open().map_err(system("signals"))?;
    let mut server = Server::start(config)?;
    let result = server.run(&signals);
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

    fn run(&mut self, signals: &SignalFd) -> Result<(), ServeError> {
        let mut entries = Vec::new();
        let mut next_tick = Instant::now() + TICK;
        let mut wait = Duration::ZERO;
        loop {
            entries.clear();
            entries.push(PollEntry::readable(signals.as_fd().as_raw_fd()));
            self.crew.add_poll_entries(&mut entries);
            let crew_end = entries.len();
            entries.extend(self.instances.iter().filter_map(Instance::fd).map(PollEntry::readable));
            let associations_start = entries.len();
            self.associations.add_poll_entries(&mut entries);
            let associations_end = entries.len();
            entries.push(PollEntry::readable(self.noticed.as_fd().as_raw_fd()));
            if let Some(socket) = &self.control_socket {
                entries.extend(socket.descriptors().map(|fd| PollEntry::readable(fd.as_raw_fd())));
            }
            process::poll(&mut entries, Some(wait)).map_err(system("poll"))?;

            if self.has_ended(signals)? {
                return Ok(());
            }
            let crew_entries = entries.get(1..crew_end).unwrap_or_default();
            let crew_wait = self.crew.serve(crew_entries);
            let watched = entries.get(crew_end..associations_start).unwrap_or_default();
            let interfaces_changed = watched.iter().any(PollEntry::is_ready);
            // Inline, they came just now.
            self.noticed.clear();
            self.take_notices();
            let own_entries = entries.get(associations_start..associations_end).unwrap_or_default();
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
            self.answer_questions();
            wait = next_tick.saturating_duration_since(Instant::now());
            let others = [crew_wait, associations_wait, self.has_notices().then_some(Duration::ZERO)];
            wait = others.into_iter().flatten().fold(wait, Duration::min);
            if self.control_socket.as_ref().is_some_and(ControlSocket::is_writing) {
                wait = wait.min(WRITING);
            }
        }
    }

    fn has_ended(&mut self, signals: &SignalFd) -> Result<bool, ServeError> {
        match signals.next().map_err(system("signals"))? {
            Some(signal @ (Signal::Terminate | Signal::Interrupt)) => {
                info!(?signal, "draining");
                Ok(true)
            }
            Some(Signal::HangUp) => {
                self.reload_keys();
                Ok(false)
            }
            None => Ok(false),
        }
    }

    /// Reads the key file again. If it cannot be used, the keys of before stay: half of the clients locked out would be no
    /// better than all of them.
    fn reload_keys(&mut self) {
        warn!("SIGHUP: only the keys are read again; restart to read the configuration");
        match load_keys(&self.config) {
            Ok(keys) => {
                self.crew.set_keys(&keys.for_clients);
                self.associations.set_keys(keys.all);
            }
            Err(error) => error!(%error, "the keys stay as they are"),
        }
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
                Notice::Packet(passed) => self.pass(&passed),
                Notice::QueueGone { instance, ifindex } => {
                    if let Some(instance) = self.instances.get_mut(usize::from(instance.0)) {
                        instance.links.lost(ifindex);
                    }
                }
            }
        }
    }

    fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    /// RFC 5905 figure 20 says what becomes of a packet of another mode than 3; one that is of no use is counted.
    fn pass(&mut self, passed: &Passed) {
        let Passed { source, destination, mode, .. } = *passed;
        if !self.associations.take(passed) {
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
