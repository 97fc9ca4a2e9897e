//! What the control thread and a worker say to each other.
//!
//! The one idea a newcomer lacks: neither waits for the other. A worker that finds the channel full has more important
//! things to do, and what it had to say is lost.

use super::Queue;
use crate::auth::KeyTable;
use crate::control::InstanceId;
use crate::daemon::associations::PASSED_OCTETS_MAX;
use crate::daemon::report::{QueueReport, WorkerReport};
use crate::daemon::stamps::BatchClock;
use crate::sys::process::Waker;
use crate::sys::socket::Datagram;
use crate::time::{Realtime, Timestamp};
use crate::wire::Mode;
use crossbeam::channel::Sender;
use std::net::SocketAddr;
use std::sync::Arc;

/// What the control thread asks of a worker.
#[derive(Debug)]
pub enum Command {
    /// Serve this queue too.
    AddQueue(Box<Queue>),
    /// Give the queues of this interface up.
    RemoveQueues {
        /// The interface's instance.
        instance: InstanceId,
        /// The interface.
        ifindex: u32,
    },
    /// Take these keys from the next batch on.
    SetKeys(Arc<KeyTable>),
    /// Say how things are.
    Report(Sender<WorkerState>),
    /// Answer what has arrived, give everything back, and end.
    Stop,
}

/// A worker's answer to [`Command::Report`].
#[derive(Debug)]
pub struct WorkerState {
    /// The worker itself.
    pub worker: WorkerReport,
    /// Its queues.
    pub queues: Vec<QueueReport>,
}

/// What a worker has to tell the control thread.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "a box would be an allocation for each packet that comes")]
pub enum Notice {
    /// A packet of another mode than 3.
    Packet(Passed),
    /// The sockets of this interface's queues are bound to nothing any more.
    QueueGone {
        /// The interface's instance.
        instance: InstanceId,
        /// The interface.
        ifindex: u32,
    },
}

/// The way to the control thread, which is woken.
#[derive(Clone, Debug)]
pub struct ToControl {
    notices: Sender<Notice>,
    waker: Arc<Waker>,
}

impl ToControl {
    /// Into this channel; the control thread polls the waker.
    #[must_use]
    pub const fn new(notices: Sender<Notice>, waker: Arc<Waker>) -> Self {
        Self { notices, waker }
    }

    /// Never waits. `false`: the control thread is behind, and it is lost.
    pub(super) fn send(&self, notice: Notice) -> bool {
        let is_sent = self.notices.try_send(notice).is_ok();
        // Behind another notice this one is found with it: who takes one goes on until there is none.
        if is_sent && self.notices.len() <= 1 {
            self.waker.wake();
        }
        is_sent
    }
}

/// A packet of another mode than 3.
#[derive(Clone, Copy, Debug)]
pub struct Passed {
    /// In which instance it came.
    pub instance: InstanceId,
    /// Who sent it.
    pub source: SocketAddr,
    /// To which of our addresses.
    pub destination: SocketAddr,
    /// Its mode.
    pub mode: Mode,
    /// When it came.
    pub receive_timestamp: Timestamp<Realtime>,
    /// Did the kernel say so?
    pub is_stamped: bool,
    octets: [u8; PASSED_OCTETS_MAX],
    length: usize,
}

impl Passed {
    /// A datagram that came to this address of ours.
    pub(in crate::daemon) fn new(
        instance: InstanceId,
        destination: SocketAddr,
        datagram: &mut Datagram,
        clock: &BatchClock,
    ) -> Self {
        let stamp = datagram.receive_timestamp().and_then(|stamp| clock.plausible(stamp));
        let source = datagram.source();
        let payload = &*datagram.payload();
        let mut octets = [0; PASSED_OCTETS_MAX];
        let length = octets.get_mut(..payload.len()).map_or(0, |octets| {
            octets.copy_from_slice(payload);
            payload.len()
        });
        Self {
            instance,
            source,
            destination,
            mode: payload.first().map_or(Mode::Reserved, |octet| Mode::from_low_bits(*octet)),
            receive_timestamp: stamp.unwrap_or(clock.realtime),
            is_stamped: stamp.is_some(),
            octets,
            length,
        }
    }

    /// The packet, or nothing where it was too long to be passed whole.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.octets.get(..self.length).unwrap_or_default()
    }
}
