//! One AF_XDP queue: takes packets in, answers them in place, hands transmit stamps back.
//!
//! Owns: [`Port`], its counters, and the order in which rings, frames and wake-ups meet. `open` brings a port up.
//! Does not own: the ring protocol (`ring`), the books about frames (`umem`), the XDP program that fills the queue
//! (`steering`), and what is answered.
//!
//! The one idea a newcomer lacks: a packet is never copied. The frame it came in is changed where it lies, goes out
//! through the transmit ring, comes back through completion with its stamp, and goes to the fill ring again.
//! A worker's round is therefore always the same, and every step is bounded:
//!
//! ```text
//! wait on fd() -> complete() -> receive() -> send() or recycle() each -> flush() -> refill()
//! ```
//!
//! With an XDP program that leaves metadata: it must not move the packet's start (`bpf_xdp_adjust_head`), or bytes of
//! an earlier packet may lie where its metadata should be.

mod open;
#[cfg(test)]
mod tests;

pub use open::{BusyPoll, PortConfig, PortError, PortFacts, RingSizes};

use super::ring::{Consumer, Descriptor, FrameAddress, Producer};
use super::umem::{Balance, NotTransmittable, Received, Umem};
pub use super::umem::{Frame, FrameNumber, RX_METADATA_BYTES, StampRequest};
use crate::sys::xdp_socket::XdpSocket;
pub use crate::sys::xdp_socket::{CopyMode, KernelStatistics};
use crate::time::{Tai, Timestamp};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Packets taken in one go. More only lets the first of them wait for the last.
pub const BATCH: usize = 64;

/// Transmit wake-ups per [`Port::flush`]. In copy mode on a link without carrier each drops one packet, so a batch
/// takes [`BATCH`] of them at worst; the rest is for packets left over from before.
const TX_WAKEUPS_MAX: u32 = 2 * BATCH as u32;

/// Transmit wake-ups without any progress after which [`Port::flush`] leaves the rest for later.
const TX_STALLS_MAX: u32 = 3;

/// The wake-ups of a port: the socket's, or a fake kernel's in tests and benchmarks.
pub trait Wake {
    /// Tells the kernel to look at the transmit ring.
    ///
    /// # Errors
    /// As [`XdpSocket::wake_transmit`].
    fn wake_transmit(&self) -> io::Result<()>;
    /// Tells the kernel to look at the fill ring.
    ///
    /// # Errors
    /// As [`XdpSocket::wake_receive`].
    fn wake_receive(&self) -> io::Result<()>;
}

impl Wake for XdpSocket {
    fn wake_transmit(&self) -> io::Result<()> {
        Self::wake_transmit(self)
    }

    fn wake_receive(&self) -> io::Result<()> {
        Self::wake_receive(self)
    }
}

/// What a wake-up showed of the interface.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// Nothing wrong, as far as this wake-up could see.
    Up,
    /// Set down. Packets in the transmit ring wait there; the port works again by itself when it comes up.
    Down,
    /// Removed: this port will never work again. Drop it, and open another when the interface is back.
    Gone,
}

/// When a packet left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransmitStamp {
    /// Copy mode: CLOCK_TAI when the kernel was done with the packet. On a real NIC an upper bound, late by the
    /// interrupt moderation.
    Tai(Timestamp<Tai>),
    /// Zero-copy: the NIC's own clock, in nanoseconds of its epoch.
    Nic {
        /// Nanoseconds of the NIC's clock.
        nanoseconds: u64,
    },
}

/// What a port counted itself. All only grow.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PortCounters {
    /// Packets received and handed out.
    pub rx_packets: u64,
    /// Fragments of packets larger than a frame, recycled.
    pub rx_fragments: u64,
    /// Receive descriptors whose packet lay outside its frame, recycled.
    pub rx_invalid: u64,
    /// Packets put into the transmit ring.
    pub tx_packets: u64,
    /// Packets that found the transmit ring full, recycled.
    pub tx_full: u64,
    /// Packets too long for their frame or empty, recycled.
    pub tx_invalid: u64,
    /// Packets the interface dropped (no carrier, or its queue full), as `EBUSY` told.
    pub tx_dropped: u64,
    /// Frames the kernel was done transmitting.
    pub tx_completed: u64,
    /// Times the kernel had used up the fill ring when we came to fill it.
    pub fill_empty: u64,
    /// System calls made to wake the kernel.
    pub wakeups: u64,
    /// Wake-ups that failed for a reason of their own (not: busy, no buffers, down).
    pub wakeup_errors: u64,
    /// Wake-ups that found the interface down or gone.
    pub link_down: u64,
    /// Addresses from the kernel that it did not have from us, and handles of another port's frames: never used.
    pub foreign: u64,
}

/// A port's own counters and the kernel's.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PortStatistics {
    /// Ours.
    pub port: PortCounters,
    /// The socket's, from `XDP_STATISTICS`.
    pub kernel: KernelStatistics,
}

/// The four rings of a port.
#[derive(Debug)]
pub(in crate::datapath) struct Rings {
    pub(in crate::datapath) fill: Producer<FrameAddress>,
    pub(in crate::datapath) receive: Consumer<Descriptor>,
    pub(in crate::datapath) transmit: Producer<Descriptor>,
    pub(in crate::datapath) completion: Consumer<FrameAddress>,
}

/// One queue's socket, rings and frames.
#[derive(Debug)]
pub struct Port<K = XdpSocket> {
    // First, so that it is closed before the rings are unmapped and the frames freed.
    kernel: K,
    rings: Rings,
    umem: Umem,
    facts: PortFacts,
    counters: PortCounters,
    /// The last receive descriptor said that its packet goes on in the next one.
    packet_continues: bool,
}

impl<K: Wake> Port<K> {
    pub(in crate::datapath) fn assemble(kernel: K, rings: Rings, umem: Umem, facts: PortFacts) -> Self {
        Self { kernel, rings, umem, facts, counters: PortCounters::default(), packet_continues: false }
    }

    /// How the port was brought up.
    #[must_use]
    pub fn facts(&self) -> &PortFacts {
        &self.facts
    }

    /// What the port counted so far.
    #[must_use]
    pub fn counters(&self) -> &PortCounters {
        &self.counters
    }

    /// How many frames are where. Balanced at any time; `in_hand` is 0 between two rounds.
    #[must_use]
    pub fn conservation(&self) -> Balance {
        self.umem.balance()
    }

    /// The same, counted again frame by frame. Slow; for tests and the last line at exit.
    #[must_use]
    pub fn audit(&self) -> Balance {
        self.umem.audit()
    }

    /// Takes received packets in hand, appending to `frames` up to its capacity and at most [`BATCH`]: it never
    /// allocates. Give each back with [`Self::send`] or [`Self::recycle`]. How many were taken.
    pub fn receive(&mut self, frames: &mut Vec<Frame>) -> usize {
        let before = frames.len();
        for _ in 0..(frames.capacity() - before).min(BATCH) {
            let Some(descriptor) = self.rings.receive.pop() else { break };
            let continues = descriptor.options & libc::XDP_PKT_CONTD != 0;
            let fragment = continues || self.packet_continues;
            self.packet_continues = continues;
            match self.umem.receive(descriptor) {
                Received::Packet(frame) if fragment => {
                    self.counters.rx_fragments += 1;
                    self.umem.recycle(frame);
                }
                Received::Packet(frame) => frames.push(frame),
                Received::OutOfBounds => self.counters.rx_invalid += 1,
                Received::Foreign => self.counters.foreign += 1,
            }
        }
        self.rings.receive.release();
        let taken = frames.len() - before;
        self.counters.rx_packets += taken as u64;
        taken
    }

    /// The received packet.
    #[must_use]
    pub fn packet(&self, frame: &Frame) -> &[u8] {
        self.umem.packet(frame)
    }

    /// The received packet, to be changed in place.
    #[must_use]
    pub fn packet_mut(&mut self, frame: &Frame) -> &mut [u8] {
        self.umem.packet_mut(frame)
    }

    /// The received packet and all the room behind it, for a reply longer than its request.
    #[must_use]
    pub fn buffer_mut(&mut self, frame: &Frame) -> &mut [u8] {
        self.umem.buffer_mut(frame)
    }

    /// What the XDP program left right before the packet; zeros if nothing.
    #[must_use]
    pub fn metadata(&self, frame: &Frame) -> Option<&[u8; RX_METADATA_BYTES]> {
        self.umem.metadata(frame)
    }

    /// Sends the frame's first `length` bytes at the next [`Self::flush`]. `false`, and counted, if it could not be:
    /// the frame is recycled then.
    pub fn send(&mut self, frame: Frame, length: usize, stamp: StampRequest) -> bool {
        match self.umem.transmit(frame, length, stamp) {
            Ok(descriptor) if self.rings.transmit.push(descriptor) => {
                self.counters.tx_packets += 1;
                return true;
            }
            Ok(descriptor) => {
                self.counters.tx_full += 1;
                // The kernel never saw it, so it is as if completed at once.
                self.umem.complete(descriptor.address);
            }
            Err(NotTransmittable::DoesNotFit) => self.counters.tx_invalid += 1,
            Err(NotTransmittable::Foreign) => self.counters.foreign += 1,
        }
        false
    }

    /// Gives a frame back unsent.
    pub fn recycle(&mut self, frame: Frame) {
        if !self.umem.recycle(frame) {
            self.counters.foreign += 1;
        }
    }

    /// Shows the kernel what was sent, and wakes it until it has taken everything.
    ///
    /// In copy mode one wake-up moves 32 packets (or [`PortFacts::tx_budget`]), so it goes on until the ring is empty,
    /// bounded by `TX_WAKEUPS_MAX` and `TX_STALLS_MAX`. What is left goes with the next call, so call it also when
    /// nothing new was sent. Packets of the time a link was down leave late; their clients have given up by then.
    pub fn flush(&mut self) -> Link {
        self.rings.transmit.submit();
        let mut stalls = 0;
        for _ in 0..TX_WAKEUPS_MAX {
            let before = self.rings.transmit.pending();
            let asleep = !self.facts.need_wakeup || self.rings.transmit.needs_wakeup();
            if before == 0 || !asleep {
                break;
            }
            self.counters.wakeups += 1;
            let dropped = match self.kernel.wake_transmit() {
                Ok(()) => false,
                Err(error) => match self.judge(&error) {
                    Wakeup::Later => false,
                    Wakeup::Dropped => {
                        self.counters.tx_dropped += 1;
                        true
                    }
                    Wakeup::Failed(link) => return link,
                },
            };
            if self.facts.zero_copy {
                // The driver transmits by itself from here on.
                break;
            }
            // After a drop the kernel has moved on, but does not publish its index before the next call.
            stalls = if dropped || self.rings.transmit.pending() < before { 0 } else { stalls + 1 };
            if stalls == TX_STALLS_MAX {
                break;
            }
        }
        Link::Up
    }

    /// Takes back the frames the kernel is done transmitting: `done` is told which, and when it left if a stamp was
    /// asked for and the driver wrote one. How many there were.
    pub fn complete(&mut self, mut done: impl FnMut(FrameNumber, Option<TransmitStamp>)) -> usize {
        let zero_copy = self.facts.zero_copy;
        let mut completed = 0;
        for _ in 0..self.rings.completion.entries() {
            let Some(address) = self.rings.completion.pop() else { break };
            let Some((frame, stamp)) = self.umem.complete(address) else {
                self.counters.foreign += 1;
                continue;
            };
            completed += 1;
            done(frame, stamp.map(|nanoseconds| transmit_stamp(nanoseconds, zero_copy)));
        }
        self.rings.completion.release();
        self.counters.tx_completed += completed as u64;
        completed
    }

    /// Gives free frames to the kernel to receive into, and wakes it where it asks for that or busy polling works.
    pub fn refill(&mut self) -> Link {
        let room = self.rings.fill.free();
        if room == self.rings.fill.entries() {
            self.counters.fill_empty += 1;
        }
        for _ in 0..room {
            let Some(address) = self.umem.take_for_fill() else { break };
            let pushed = self.rings.fill.push(address);
            debug_assert!(pushed, "there was room for it");
        }
        self.rings.fill.submit();
        if !self.facts.drives_nic && !self.rings.fill.needs_wakeup() {
            return Link::Up;
        }
        self.counters.wakeups += 1;
        match self.kernel.wake_receive() {
            Ok(()) => Link::Up,
            Err(error) => match self.judge(&error) {
                Wakeup::Later | Wakeup::Dropped => Link::Up,
                Wakeup::Failed(link) => link,
            },
        }
    }

    /// Do packets wait in the receive ring? One look, no system call.
    pub fn has_received(&mut self) -> bool {
        self.rings.receive.available() > 0
    }

    /// Has [`Self::flush`] left packets that the kernel would not take yet?
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        self.rings.transmit.has_pending()
    }

    /// Asks the kernel whether the interface is still there: a blocked poll(2) does not tell.
    pub fn link(&mut self) -> Link {
        match self.kernel.wake_receive() {
            Ok(()) => Link::Up,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENETDOWN) => Link::Down,
                Some(libc::ENXIO) => Link::Gone,
                _ => Link::Up,
            },
        }
    }

    /// What a failed wake-up means, counted.
    fn judge(&mut self, error: &io::Error) -> Wakeup {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR) => Wakeup::Later,
            Some(libc::EBUSY) => Wakeup::Dropped,
            Some(libc::ENETDOWN) => {
                self.counters.link_down += 1;
                Wakeup::Failed(Link::Down)
            }
            Some(libc::ENXIO) => {
                self.counters.link_down += 1;
                Wakeup::Failed(Link::Gone)
            }
            _ => {
                self.counters.wakeup_errors += 1;
                Wakeup::Later
            }
        }
    }
}

impl Port<XdpSocket> {
    /// The port's own counters and the kernel's.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn statistics(&self) -> io::Result<PortStatistics> {
        Ok(PortStatistics { port: self.counters, kernel: self.kernel.statistics()? })
    }
}

impl AsFd for Port<XdpSocket> {
    /// The descriptor: readable when packets are there. It is also what goes into the XSKMAP.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kernel.as_fd()
    }
}

/// What a failed wake-up means.
enum Wakeup {
    /// Nothing lost; wake again.
    Later,
    /// One packet dropped by the interface and completed.
    Dropped,
    /// No use to go on.
    Failed(Link),
}

fn transmit_stamp(nanoseconds: u64, zero_copy: bool) -> TransmitStamp {
    if zero_copy {
        TransmitStamp::Nic { nanoseconds }
    } else {
        TransmitStamp::Tai(Timestamp::from_nanoseconds(nanoseconds.cast_signed()))
    }
}
