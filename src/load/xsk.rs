//! One AF_XDP queue through xsk-rs, made safe: the load generator's rings, and those of the benchmark's reflector.
//!
//! Owns: the umem, which frame is where, wake-ups. Does not own: the XDP program and its map of sockets, nor what the
//! packets say.
//!
//! The one idea a newcomer lacks: xsk-rs is unsafe to use because a frame's descriptor may be copied, and then be given
//! to the kernel and written to at once. Here no descriptor leaves this file. Callers are lent the bytes of one packet
//! at a time, as a slice, for the length of a closure; what they return says where the frame goes next.
//!
//! The order of a round is that of the server's own port (`datapath::af_xdp`), with which this shares no code:
//!
//! ```text
//! complete() -> receive() or send() -> flush() -> refill()
//! ```
#![allow(unsafe_code)]

pub use crate::sys::xdp_socket::CopyMode;
use crate::sys::xdp_socket::{KernelStatistics, XdpSocket};
use std::error::Error;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::thread;
use std::time::Duration;
use xsk_rs::config::{
    BindFlags, FrameSize, LibxdpFlags, QueueSize, SocketConfig, SocketConfigBuilder, UmemConfig,
};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

/// Packets taken from a ring in one go.
pub const BATCH: usize = 64;

/// Bytes of a frame: the smallest that xsk-rs takes. The kernel keeps 256 of them free before each packet.
const FRAME_BYTES: u32 = 2048;

/// Transmit wake-ups per [`Xsk::flush`], and how many of them in a row may move nothing: those of the server's port.
const WAKEUPS_MAX: u32 = 128;
const STALLS_MAX: u32 = 3;

/// How often a queue that is taken is tried, and how long apart: the kernel frees a closed socket's queue some
/// milliseconds later.
const BIND_TRIES: u32 = 50;
const BIND_PAUSE: Duration = Duration::from_millis(10);

/// What to open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct XskConfig {
    /// The interface's name.
    pub interface: String,
    /// Its queue, from 0.
    pub queue: u32,
    /// Entries of each of the four rings, a power of two. There are four times as many frames, so that no ring starves
    /// another.
    pub entries: u32,
    /// Zero-copy or copy, strictly.
    pub mode: CopyMode,
}

/// Why a queue could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct XskError {
    /// What was tried.
    step: &'static str,
    /// The kernel's word, where it was the kernel.
    pub source: io::Error,
}

/// Where a received frame goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Out again, as long as it came.
    SendBack,
    /// To the free frames: it has been read.
    Recycle,
}

/// What a queue counted. All only grow.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct XskCounters {
    /// Packets received.
    pub received: u64,
    /// Packets put into the transmit ring.
    pub sent: u64,
    /// Packets that found no room in it: not sent.
    pub unsent: u64,
    /// Frames the kernel was done transmitting.
    pub completed: u64,
    /// Descriptors from the kernel that do not lie in a frame: never used.
    pub foreign: u64,
    /// System calls made to wake the kernel.
    pub wakeups: u64,
}

/// One queue.
#[derive(Debug)]
pub struct Xsk {
    /// The same socket a second time, for what xsk-rs does not ask of it: busy polling, budget, mode.
    control: XdpSocket,
    fill: FillQueue,
    receive: RxQueue,
    transmit: TxQueue,
    completion: CompQueue,
    umem: Umem,
    entries: u32,
    /// Frames that are neither in a ring nor with the kernel.
    free: Vec<FrameDesc>,
    /// Frames to be put into the transmit ring by the next flush. It has room for them.
    outgoing: Vec<FrameDesc>,
    batch: Box<[FrameDesc; BATCH]>,
    drives_nic: bool,
    counters: XskCounters,
}

impl Xsk {
    /// Opens the queue in exactly the mode asked for, and loads no XDP program: the caller has one attached already.
    ///
    /// xsk-rs hands the fill ring out only after the socket is bound; drivers that look at it in bind alone (igb in
    /// zero-copy mode) receive nothing then.
    ///
    /// # Errors
    /// [`XskError`].
    pub fn open(config: &XskConfig) -> Result<Self, XskError> {
        let frames = config.entries.checked_mul(4).and_then(NonZeroU32::new);
        let frames = frames.ok_or_else(|| invalid("no entries, or too many"))?;
        let size = QueueSize::new(config.entries).map_err(invalid)?;
        let umem_config = UmemConfig::builder()
            .frame_size(FrameSize::new(FRAME_BYTES).map_err(invalid)?)
            .fill_queue_size(size)
            .comp_queue_size(size)
            .build()
            .map_err(invalid)?;
        let (umem, free) = Umem::new(umem_config, frames, false)
            .map_err(|error| XskError { step: "registering the frames", source: io_error(&error) })?;
        let mode = match config.mode {
            CopyMode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
            CopyMode::Copy => BindFlags::XDP_COPY,
        };
        let socket_config = SocketConfigBuilder::new()
            .rx_queue_size(size)
            .tx_queue_size(size)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(mode | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        let (transmit, receive, fill, completion) = bind(&umem, config, socket_config)?;
        let fd = transmit.fd().as_raw_fd();
        // SAFETY: `transmit` keeps the socket open, and outlives this borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let control = fd.try_clone_to_owned().map_err(|source| XskError { step: "dup", source })?;
        let control = XdpSocket::from(control);
        // One wake-up moves as many packets as the ring holds, where the kernel knows how (6.17); else 32, and
        // `flush` goes on.
        let _ = control.set_tx_budget(config.entries);
        // The ring is to bound what is on its way in copy mode, not the kernel's default for 200 packets.
        let _ = control.set_send_buffer(config.entries);
        let mut xsk = Self {
            control,
            fill,
            receive,
            transmit,
            completion,
            umem,
            entries: config.entries,
            free,
            outgoing: Vec::with_capacity(config.entries as usize),
            batch: Box::new([FrameDesc::default(); BATCH]),
            drives_nic: false,
            counters: XskCounters::default(),
        };
        xsk.refill();
        Ok(xsk)
    }

    /// From now on the system calls of [`Self::refill`] poll the NIC, for so long and so many packets.
    ///
    /// # Errors
    /// As [`XdpSocket::set_busy_poll`].
    pub fn set_busy_poll(&mut self, microseconds: u32, budget: u32) -> io::Result<()> {
        self.control.set_busy_poll(microseconds, budget)?;
        self.note_driving();
        Ok(())
    }

    /// Does busy polling, once set, have something to poll? As of the last [`Self::note_driving`].
    #[must_use]
    pub fn drives_nic(&self) -> bool {
        self.drives_nic
    }

    /// Asks the kernel; its answer may change with the first packet.
    pub fn note_driving(&mut self) {
        self.drives_nic = self.control.polled_napi().is_ok_and(|napi| napi != 0);
    }

    /// What was counted so far.
    #[must_use]
    pub const fn counters(&self) -> XskCounters {
        self.counters
    }

    /// The kernel's counts.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn statistics(&self) -> io::Result<KernelStatistics> {
        self.control.statistics()
    }

    /// Takes back the frames the kernel is done transmitting. How many.
    pub fn complete(&mut self) -> usize {
        let mut completed = 0;
        loop {
            // SAFETY: consuming hands frames to us, whose bytes nobody else touches from here on.
            let taken = unsafe { self.completion.consume(&mut *self.batch) };
            // Bounded by the ring: nothing is sent meanwhile.
            if taken == 0 {
                break;
            }
            completed += taken;
            for index in 0..taken {
                self.keep(self.batch[index]);
            }
        }
        self.counters.completed += completed as u64;
        completed
    }

    /// Shows each received packet to `handle`, one batch at most, and does with its frame what that says. How many there
    /// were; [`BATCH`] means that more may wait.
    pub fn receive(&mut self, mut handle: impl FnMut(&mut [u8]) -> Next) -> usize {
        let mut received = 0;
        // libxdp looks at the kernel's index only once it has used up what it knew of, so one call may give too few.
        while received < BATCH {
            // SAFETY: consuming hands frames to us, whose bytes nobody else touches from here on.
            let taken = unsafe { self.receive.consume(&mut self.batch[received..]) };
            if taken == 0 {
                break;
            }
            received += taken;
        }
        for index in 0..received {
            let mut frame = self.batch[index];
            if !self.lies_in_a_frame(&frame) {
                self.counters.foreign += 1;
                continue;
            }
            frame.set_options(0);
            // SAFETY: the descriptor lies in a frame of this umem (checked), which the kernel has just given to us and
            // which is in no ring and in no list of ours; the borrow ends before it gets there.
            let mut packet = unsafe { self.umem.data_mut(&mut frame) };
            match handle(packet.contents_mut()) {
                Next::SendBack if self.has_room() => self.outgoing.push(frame),
                Next::SendBack => {
                    self.counters.unsent += 1;
                    self.free.push(frame);
                }
                Next::Recycle => self.free.push(frame),
            }
        }
        self.counters.received += received as u64;
        received
    }

    /// Sends a new packet at the next [`Self::flush`]: `write` gets the room for it (more than an Ethernet frame of
    /// 1500 bytes) and returns its length. `false` for a length of 0; also, without calling `write`, if there is no room or
    /// no free frame.
    pub fn send(&mut self, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        if !self.has_room() {
            return false;
        }
        let Some(mut frame) = self.free.pop() else { return false };
        // SAFETY: a free frame of this umem is in no ring, and was taken off the list of free ones.
        let mut packet = unsafe { self.umem.data_mut(&mut frame) };
        packet.cursor().set_pos(usize::MAX);
        let length = write(packet.contents_mut());
        packet.cursor().set_pos(length);
        if length == 0 {
            // The kernel would refuse it and never give its frame back.
            self.free.push(frame);
            return false;
        }
        self.outgoing.push(frame);
        true
    }

    /// Shows the kernel what is to be sent and wakes it until it has taken everything, within bounds. What is left goes
    /// with the next call.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.outgoing.is_empty() {
            // SAFETY: each is a frame of this umem, in no ring and in no other list of ours, and forgotten just below.
            let sent = unsafe { self.transmit.produce(&self.outgoing) };
            self.counters.sent += sent as u64;
            self.outgoing.drain(..sent);
        }
        let mut stalls = 0;
        let mut waiting = self.waiting();
        for _ in 0..WAKEUPS_MAX {
            if waiting == 0 || stalls == STALLS_MAX || !self.transmit.needs_wakeup() {
                break;
            }
            self.counters.wakeups += 1;
            self.transmit.wakeup()?;
            let left = self.waiting();
            stalls = if left < waiting { 0 } else { stalls + 1 };
            waiting = left;
        }
        Ok(())
    }

    /// Gives free frames to the kernel to receive into, and wakes it where it asks for that or busy polling works.
    pub fn refill(&mut self) {
        let room = self.fill.nb_free_exact() as usize;
        let start = self.free.len().saturating_sub(room);
        // SAFETY: free frames of this umem are in no ring, and those that went there are forgotten on the next line.
        let filled = unsafe { self.fill.produce(&self.free[start..]) };
        self.free.drain(start..start + filled);
        if self.drives_nic || self.fill.needs_wakeup() {
            self.counters.wakeups += 1;
            // An interface that is down or gone shows in `flush` and in what does not come.
            let _ = self.control.wake_receive();
        }
    }

    /// Do packets wait in the receive ring? One look, no system call.
    pub fn has_received(&mut self) -> bool {
        self.receive.nb_avail_exact() > 0
    }

    /// Packets that the kernel has not taken from the transmit ring yet.
    #[must_use]
    pub fn waiting(&mut self) -> u32 {
        self.entries.saturating_sub(self.transmit.nb_free_exact())
    }

    /// Is there room in the transmit ring for one more than is on its way there?
    fn has_room(&mut self) -> bool {
        let wanted = self.outgoing.len() as u32 + 1;
        self.transmit.nb_free(wanted) >= wanted
    }

    /// Puts a frame that the kernel gave back among the free ones.
    fn keep(&mut self, frame: FrameDesc) {
        if self.lies_in_a_frame(&frame) {
            self.free.push(frame);
        } else {
            self.counters.foreign += 1;
        }
    }

    /// Does this descriptor lie in one frame of the umem? The kernel's always do.
    fn lies_in_a_frame(&self, frame: &FrameDesc) -> bool {
        let size = FRAME_BYTES as usize;
        frame.addr() < self.entries as usize * 4 * size
            && frame.addr() % size + frame.lengths().data() <= size
    }
}

impl AsFd for Xsk {
    /// Readable when packets are there. It is also what goes into the XSKMAP.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}

type Queues = (TxQueue, RxQueue, FillQueue, CompQueue);

fn bind(umem: &Umem, config: &XskConfig, socket_config: SocketConfig) -> Result<Queues, XskError> {
    let failed = |source| XskError { step: "binding to the queue", source };
    let name = config.interface.parse().map_err(|error| failed(io_error(&error)))?;
    let mut tries = 1;
    loop {
        // SAFETY: no other socket has been made of this umem, so no frame and no ring is shared with one.
        match unsafe { Socket::new(socket_config, umem, &name, config.queue) } {
            Ok((transmit, receive, Some((fill, completion)))) => {
                return Ok((transmit, receive, fill, completion));
            }
            Ok((_, _, None)) => return Err(failed(io::Error::other("no fill ring"))),
            Err(error) => {
                let source = io_error(&error);
                if source.raw_os_error() != Some(libc::EBUSY) || tries == BIND_TRIES {
                    return Err(failed(source));
                }
            }
        }
        tries += 1;
        thread::sleep(BIND_PAUSE);
    }
}

fn invalid(error: impl Into<Box<dyn Error + Send + Sync>>) -> XskError {
    XskError { step: "configuration", source: io::Error::new(io::ErrorKind::InvalidInput, error) }
}

/// The kernel's error inside an error of xsk-rs; its words if there is none.
fn io_error(error: &(dyn Error + 'static)) -> io::Error {
    let code = error.source().and_then(|source| source.downcast_ref::<io::Error>()?.raw_os_error());
    code.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}
