//! One AF_XDP queue in a worker's hands.

use super::{RETRY, ROUNDS_PER_TURN};
use crate::daemon::exchange::{Answering, Exchange, TransmitErrors};
use crate::daemon::place::Place;
use crate::daemon::report::QueueReport;
use crate::datapath::af_xdp::{Link, Port};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tracing::{info, warn};

/// One AF_XDP queue in a worker's hands.
#[derive(Debug)]
pub struct Queue {
    pub(super) place: Arc<Place>,
    interface: Arc<str>,
    pub(super) ifindex: u32,
    number: u32,
    pub(super) port: Port,
    transmit_errors: Option<TransmitErrors>,
    pub(super) link: Link,
    /// The control thread has been told that the interface is gone.
    pub(super) gone_told: bool,
    /// The log says that busy polling polls nothing here.
    spinning_told: bool,
}

impl Queue {
    /// Queue `number` of an interface in an instance; `measure` asks for a transmit stamp with every reply.
    #[must_use]
    pub fn new(
        place: Arc<Place>,
        interface: Arc<str>,
        ifindex: u32,
        number: u32,
        port: Port,
        measure: bool,
    ) -> Self {
        let measure = measure && port.facts().tx_metadata;
        let frames = port.conservation().total as usize;
        let transmit_errors = measure.then(|| TransmitErrors::new(frames));
        Self {
            place,
            interface,
            ifindex,
            number,
            port,
            transmit_errors,
            link: Link::Up,
            gone_told: false,
            spinning_told: false,
        }
    }

    /// Rounds until the ring is empty or others must have their turn. More may wait if this says so.
    pub(super) fn serve(&mut self, exchange: &mut Exchange, answering: &mut Answering) -> bool {
        for _ in 0..ROUNDS_PER_TURN {
            if !self.turn(exchange, answering) {
                return false;
            }
        }
        true
    }

    /// One round. More may wait if this says so.
    pub(super) fn turn(&mut self, exchange: &mut Exchange, answering: &mut Answering) -> bool {
        answering.responder.set_instance(self.place.id);
        let round = exchange.round(&mut self.port, answering, self.transmit_errors.as_mut());
        self.note_link(round.link);
        // What came meanwhile costs a look to see, and a system call to wait for.
        round.received > 0 && self.port.has_received()
    }

    pub(super) fn note_link(&mut self, link: Link) {
        if link != self.link {
            info!(instance = self.place.label(), interface = %self.interface, queue = self.number, ?link, "link changed");
            self.link = link;
        }
    }

    /// Answers what has arrived and waits, until the deadline at most, until the kernel has given the sent frames back.
    pub(super) fn drain(&mut self, exchange: &mut Exchange, answering: &mut Answering, deadline: Instant) {
        loop {
            let more = self.serve(exchange, answering);
            let done = !more && self.port.conservation().transmit == 0;
            if done || self.link == Link::Gone || Instant::now() > deadline {
                break;
            }
            std::thread::sleep(RETRY);
        }
        let (balance, counters) = (self.port.audit(), self.port.counters());
        let (interface, queue) = (&*self.interface, self.number);
        if balance.is_balanced() && balance.in_hand == 0 && counters.foreign == 0 {
            info!(
                instance = self.place.label(),
                interface,
                queue,
                frames = balance.total,
                "queue closed, every frame accounted for"
            );
        } else {
            warn!(
                instance = self.place.label(),
                interface,
                queue,
                ?balance,
                foreign = counters.foreign,
                "queue closed with frames astray"
            );
        }
    }

    /// Says once that busy polling polls nothing. Some kernels learn with the first packet what to poll.
    pub(super) fn tell_of_spinning(&mut self) {
        if !self.spinning_told
            && self.port.counters().rx_packets > 0
            && let Some(reason) = self.not_driving()
        {
            info!(instance = self.place.label(), interface = %self.interface, queue = self.number, reason, "done without");
            self.spinning_told = true;
        }
    }

    /// What became of busy polling, if it did not come to what was asked for.
    fn not_driving(&self) -> Option<String> {
        let facts = self.port.facts();
        (facts.busy_poll && !facts.drives_nic).then(|| {
            "busy polling: the kernel knows of no NAPI that it could poll for this queue (in copy mode the driver must \
             have named it, and veth does not); the worker spins and yields its CPU to whoever receives"
                .to_owned()
        })
    }

    pub(super) fn report(&self, worker: usize) -> QueueReport {
        let (facts, counters) = (self.port.facts(), self.port.counters());
        let balance = self.port.conservation();
        let kernel = self.port.statistics().map(|statistics| statistics.kernel).unwrap_or_default();
        let named = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
            pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        QueueReport {
            interface: self.interface.to_string(),
            instance: self.place.name.to_string(),
            queue: self.number,
            worker,
            zero_copy: facts.zero_copy,
            tx_metadata: facts.tx_metadata,
            pages: format!("{:?}", facts.pages).to_lowercase(),
            refused: facts.refused.iter().cloned().chain(self.not_driving()).collect(),
            counters: named(&[
                ("rx_packets", counters.rx_packets),
                ("rx_fragments", counters.rx_fragments),
                ("rx_invalid", counters.rx_invalid),
                ("tx_packets", counters.tx_packets),
                ("tx_full", counters.tx_full),
                ("tx_dropped", counters.tx_dropped),
                ("tx_invalid", counters.tx_invalid),
                ("tx_completed", counters.tx_completed),
                ("fill_empty", counters.fill_empty),
                ("wakeups", counters.wakeups),
                ("wakeup_errors", counters.wakeup_errors),
                ("link_down", counters.link_down),
                ("foreign", counters.foreign),
            ]),
            kernel: named(&[
                ("rx_dropped", kernel.rx_dropped),
                ("rx_invalid_descriptors", kernel.rx_invalid_descriptors),
                ("rx_ring_full", kernel.rx_ring_full),
                ("fill_ring_empty", kernel.fill_ring_empty),
                ("tx_invalid_descriptors", kernel.tx_invalid_descriptors),
                ("tx_ring_empty", kernel.tx_ring_empty),
            ]),
            frames: named(&[
                ("total", balance.total.into()),
                ("free", balance.free.into()),
                ("fill", balance.fill.into()),
                ("in_hand", balance.in_hand.into()),
                ("transmit", balance.transmit.into()),
            ]),
            // Between two rounds no frame is in hand; one that is has been forgotten.
            frames_balanced: balance.is_balanced() && balance.in_hand == 0,
            transmit_error: self.transmit_errors.as_ref().and_then(TransmitErrors::report),
            memory_bytes: facts.memory_bytes,
        }
    }
}
