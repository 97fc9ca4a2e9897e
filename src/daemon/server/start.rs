//! Building the server: everything is made here, in an order in which nothing is left behind when a step fails.

use super::{NOTICES_MAX, Server};
use crate::config::Config;
use crate::daemon::associations::Associations;
use crate::daemon::control_socket::{ControlSocket, ControlSocketError};
use crate::daemon::counters::WorkerCounters;
use crate::daemon::crew::Crew;
use crate::daemon::error::{ServeError, system};
use crate::daemon::exchange::Answering;
use crate::daemon::instance::{Instance, Watched};
use crate::daemon::links::Common;
use crate::daemon::place::Place;
#[cfg(feature = "metrics")]
use crate::daemon::prometheus::{self, Exporter};
use crate::daemon::setup::{
    access_list, cores, dropped_prefixes, load_keys, policy, prefix_lengths, reference, worker_count,
};
use crate::daemon::worker::{ToControl, Worker};
use crate::datapath::udp::{Neighbours, UdpPort};
use crate::serve::Responder;
use crate::serve::clients::ClientStatistics;
use crate::serve::limit::Lottery;
use crate::snapshot::{SnapshotCell, SystemSnapshot};
use crate::sys::process::{self, Waker};
use crate::sys::socket::Batch;
use crate::sys::{clock, memory, scheduling};
use crossbeam::channel::bounded;
use std::collections::BTreeMap;
#[cfg(feature = "metrics")]
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;
#[cfg(feature = "metrics")]
use tracing::info;
use tracing::{debug, error, warn};

impl Server {
    pub(super) fn start(config: &Config) -> Result<Self, ServeError> {
        let control_socket = open_control_socket(config)?;
        #[cfg(feature = "metrics")]
        let metrics = listen_for_scrapes(config)?;
        let watched = Place::open_all(config)?.into_iter().map(|place| Watched::open(place, config));
        let watched = watched.collect::<Result<Vec<_>, _>>()?;
        let cores = cores(config)?;
        let workers = worker_count(config, &watched, cores.len());
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
            watched.iter().map(|watched| Arc::clone(&watched.place)).collect(),
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
        let common =
            Common { datapath: config.datapath, port: config.port, busy_poll: config.busy_poll, dropped };
        let mut ports: Vec<Vec<UdpPort>> = (0..workers.max(1)).map(|_| Vec::new()).collect();
        let neighbours = Neighbours::default();
        let instances = watched.into_iter().map(|watched| {
            let (instance, own) = Instance::new(watched, config, common.clone(), &neighbours, workers);
            ports.iter_mut().zip(own).for_each(|(of_worker, port)| of_worker.push(port));
            instance
        });
        let instances = instances.collect();
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
        let mut server = Self {
            config: config.clone(),
            started: Instant::now(),
            start_time: clock::realtime(),
            precision,
            reference,
            snapshot,
            trouble: None,
            instances,
            crew,
            statistics,
            limiters,
            limiters_huge_bytes,
            control_socket,
            #[cfg(feature = "metrics")]
            exporter: None,
            notices,
            noticed,
            unsolicited: BTreeMap::new(),
            batch: Batch::new(),
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
