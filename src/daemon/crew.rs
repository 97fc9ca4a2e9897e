//! The workers as the control thread sees them: threads with a mailbox each, or one worker in its own thread.

use super::report::{QueueReport, WorkerReport};
use super::worker::{Command, Queue, Worker, WorkerState};
use crate::auth::KeyTable;
use crate::control::InstanceId;
use crate::sys::process::{PollEntry, Waker};
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tracing::warn;

/// How long a report may take. A worker answers between two batches, some microseconds apart.
const REPORT_TIME: Duration = Duration::from_millis(500);

/// All workers.
#[derive(Debug)]
pub enum Crew {
    /// `workers = 0`: the control thread serves too.
    Inline(Box<Worker>),
    /// One thread each.
    Threads(Vec<Hand>),
}

/// One worker's thread.
#[derive(Debug)]
pub struct Hand {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Crew {
    /// Starts a thread for each worker.
    ///
    /// # Errors
    /// No more threads or descriptors.
    pub fn start(workers: Vec<Worker>, busy_poll: bool, realtime_priority: Option<u8>) -> io::Result<Self> {
        let start = |worker: Worker| {
            let (commands, receiver) = unbounded();
            let waker = Arc::new(Waker::new()?);
            let theirs = Arc::clone(&waker);
            let thread = std::thread::Builder::new()
                .name("worker".to_owned())
                .spawn(move || worker.run(&receiver, &theirs, busy_poll, realtime_priority))?;
            Ok(Hand { commands, waker, thread: Some(thread) })
        };
        workers.into_iter().map(start).collect::<io::Result<_>>().map(Self::Threads)
    }

    /// Does the control thread serve?
    #[must_use]
    pub const fn is_inline(&self) -> bool {
        matches!(self, Self::Inline(_))
    }

    /// How many serve.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::Inline(_) => 1,
            Self::Threads(hands) => hands.len(),
        }
    }

    /// Gives a queue to a worker.
    pub fn add_queue(&mut self, worker: usize, queue: Queue) {
        self.tell(worker, Command::AddQueue(Box::new(queue)));
    }

    /// Takes an interface's queues from all workers.
    pub fn remove_queues(&mut self, instance: InstanceId, ifindex: u32) {
        for worker in 0..self.len() {
            self.tell(worker, Command::RemoveQueues { instance, ifindex });
        }
    }

    /// Gives all workers the keys that clients may use from now on. Each takes them between two batches.
    pub fn set_keys(&mut self, keys: &Arc<KeyTable>) {
        for worker in 0..self.len() {
            self.tell(worker, Command::SetKeys(Arc::clone(keys)));
        }
    }

    /// Tells the workers to look at what the socket group has opened or closed.
    pub fn sockets_changed(&mut self) {
        match self {
            Self::Inline(worker) => worker.apply_socket_changes(),
            Self::Threads(hands) => hands.iter().for_each(|hand| hand.waker.wake()),
        }
    }

    fn tell(&mut self, worker: usize, command: Command) {
        match self {
            Self::Inline(inline) => inline.execute(command),
            Self::Threads(hands) => {
                if let Some(hand) = hands.get(worker) {
                    // A worker that is gone has said why when it went.
                    let _ = hand.commands.send(command);
                    hand.waker.wake();
                }
            }
        }
    }

    /// How all of them are. A worker that does not answer in time is left out, and said.
    #[must_use]
    pub fn report(&mut self) -> (Vec<WorkerReport>, Vec<QueueReport>) {
        let (sender, receiver) = bounded(self.len());
        for worker in 0..self.len() {
            self.tell(worker, Command::Report(sender.clone()));
        }
        drop(sender);
        let mut states = collect(&receiver, self.len());
        if states.len() < self.len() {
            warn!(answered = states.len(), workers = self.len(), "a worker does not answer");
        }
        states.sort_by_key(|state| state.worker.worker);
        let mut workers = Vec::new();
        let mut queues = Vec::new();
        for state in states {
            workers.push(state.worker);
            queues.extend(state.queues);
        }
        queues
            .sort_by(|a, b| (&a.instance, &a.interface, a.queue).cmp(&(&b.instance, &b.interface, b.queue)));
        (workers, queues)
    }

    /// What to poll for an inline worker.
    pub fn add_poll_entries(&self, entries: &mut Vec<PollEntry>) {
        if let Self::Inline(worker) = self {
            worker.add_poll_entries(entries);
        }
    }

    /// Serves inline; see [`Worker::serve`].
    pub fn serve(&mut self, entries: &[PollEntry]) -> Option<Duration> {
        match self {
            Self::Inline(worker) => worker.serve(entries),
            Self::Threads(_) => None,
        }
    }

    /// Has a worker ended that should not have?
    #[must_use]
    pub fn has_lost_one(&self) -> bool {
        match self {
            Self::Inline(_) => false,
            Self::Threads(hands) => {
                hands.iter().any(|hand| hand.thread.as_ref().is_none_or(JoinHandle::is_finished))
            }
        }
    }

    /// Answers what has arrived and ends.
    pub fn stop(&mut self) {
        match self {
            Self::Inline(worker) => worker.drain(),
            Self::Threads(hands) => {
                for hand in hands.iter() {
                    let _ = hand.commands.send(Command::Stop);
                    hand.waker.wake();
                }
                for thread in hands.iter_mut().filter_map(|hand| hand.thread.take()) {
                    if thread.join().is_err() {
                        warn!("a worker ended by a panic");
                    }
                }
            }
        }
    }
}

fn collect(receiver: &Receiver<WorkerState>, count: usize) -> Vec<WorkerState> {
    (0..count).map_while(|_| receiver.recv_timeout(REPORT_TIME).ok()).collect()
}
