//! Brings a port up: the configuration and its price in memory, the sequence, and what can go wrong.
//!
//! Owns: [`PortConfig`], [`PortFacts`], [`PortError`] and the order of the calls. Does not own: which mode to try
//! after a failure (the ladder is the caller's), and the XDP program.
//!
//! The one idea a newcomer lacks: the order matters. The fill ring is full *before* bind, because some drivers look at
//! it only then (igb in zero-copy mode received nothing otherwise).

use super::{Port, Rings};
use crate::datapath::ring::{Consumer, Descriptor, Entry, FrameAddress, Producer, RingMisfit};
use crate::datapath::umem::{TX_METADATA_BYTES, Umem};
use crate::sys::memory::{self, HugepagePolicy, Mapping, Pages};
use crate::sys::netlink::device_features;
use crate::sys::xdp_socket::{CopyMode, Ring, RingOffsets, XdpSocket};
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Frames of one queue at most: 4 GiB of 4096-byte frames.
const FRAMES_MAX: u32 = 1 << 20;

/// The kernel's indices and flags before a ring's entries, each in a cache line of its own (net/xdp/xsk_queue.h).
const RING_HEADER_BYTES: usize = 320;

/// How often bind is tried while the queue is taken, and how long apart. The kernel frees a closed socket's queue from
/// a work queue, so a port opened right after another was dropped finds it taken for some milliseconds.
const BIND_TRIES: u32 = 50;
const BIND_PAUSE: Duration = Duration::from_millis(10);

/// `NETDEV_XSK_FLAGS_TX_TIMESTAMP` of linux/netdev.h.
const XSK_TX_TIMESTAMP: u64 = 1;

/// Entries of the four rings, each a power of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingSizes {
    /// Frames lent to the kernel to receive into.
    pub fill: u32,
    /// Packets received and not yet taken.
    pub receive: u32,
    /// Packets to be transmitted.
    pub transmit: u32,
    /// Packets transmitted and not yet reaped.
    pub completion: u32,
}

impl RingSizes {
    const fn each(self) -> [u32; 4] {
        [self.fill, self.receive, self.transmit, self.completion]
    }
}

/// Busy polling: the worker's own system calls drive the NIC, at the price of a core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusyPoll {
    /// How long one call may poll (`SO_BUSY_POLL`).
    pub duration: Duration,
    /// Packets per poll (`SO_BUSY_POLL_BUDGET`).
    pub budget: u32,
}

/// What to open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortConfig {
    /// The interface.
    pub ifindex: u32,
    /// Its queue, from 0.
    pub queue: u32,
    /// Frames of the umem: at least as many as all rings together hold, so that none starves another.
    pub frames: u32,
    /// Bytes of a frame, 2048 or 4096. The kernel takes 256 of them for itself, before the packet.
    pub frame_bytes: u32,
    /// Sizes of the rings.
    pub rings: RingSizes,
    /// Back the frames by hugepages?
    pub hugepages: HugepagePolicy,
    /// Let the kernel say when it must be woken (`XDP_USE_NEED_WAKEUP`), instead of waking it always.
    pub need_wakeup: bool,
    /// Busy polling; `None` = wait in poll(2).
    pub busy_poll: Option<BusyPoll>,
    /// Zero-copy or copy, strictly: no silent fall-back.
    pub mode: CopyMode,
    /// Register transmit metadata, so that stamps can be asked for, where the kernel has it (6.8).
    pub tx_metadata: bool,
}

impl PortConfig {
    /// The usual port: 4096 frames of 2048 bytes, rings of 1024, need-wakeup, copy mode, stamps.
    #[must_use]
    pub fn new(ifindex: u32, queue: u32) -> Self {
        Self {
            ifindex,
            queue,
            frames: 4096,
            frame_bytes: 2048,
            rings: RingSizes { fill: 1024, receive: 1024, transmit: 1024, completion: 1024 },
            hugepages: HugepagePolicy::Never,
            need_wakeup: true,
            busy_poll: None,
            mode: CopyMode::Copy,
            tx_metadata: true,
        }
    }

    /// Bytes of frames, which the kernel pins and counts against RLIMIT_MEMLOCK.
    #[must_use]
    pub fn umem_bytes(&self) -> usize {
        (self.frames as usize).saturating_mul(self.frame_bytes as usize)
    }

    /// Bytes the queue takes in this process: frames, rings in whole pages, and the books (8 bytes a frame).
    ///
    /// Hugepages round the frames up to 2 MiB. The kernel keeps its own books besides, a few hundred bytes a frame.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let ring = |entries: u32, words: usize| {
            memory::whole_pages(RING_HEADER_BYTES.saturating_add(entries as usize * words * 8))
        };
        memory::whole_pages(self.umem_bytes())
            + ring(self.rings.fill, FrameAddress::WORDS)
            + ring(self.rings.receive, Descriptor::WORDS)
            + ring(self.rings.transmit, Descriptor::WORDS)
            + ring(self.rings.completion, FrameAddress::WORDS)
            + self.frames as usize * Umem::BOOKS_BYTES_PER_FRAME
    }

    pub(in crate::datapath) fn check(&self) -> Result<(), PortError> {
        let sum: u64 = self.rings.each().into_iter().map(u64::from).sum();
        if !matches!(self.frame_bytes, 2048 | 4096) {
            return Err(PortError::Config("frames are 2048 or 4096 bytes"));
        }
        if !self.rings.each().into_iter().all(u32::is_power_of_two) {
            return Err(PortError::Config("ring sizes are powers of two"));
        }
        if self.frames > FRAMES_MAX || u64::from(self.frames) < sum {
            return Err(PortError::Config(
                "there are as many frames as the four rings hold, and at most 1048576",
            ));
        }
        Ok(())
    }
}

/// How a port was brought up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortFacts {
    /// The kernel's word: zero-copy, so that transmit stamps are the NIC's clock. Otherwise CLOCK_TAI.
    pub zero_copy: bool,
    /// Transmit stamps can be asked for: metadata is registered, and in zero-copy mode the driver has stamps.
    pub tx_metadata: bool,
    /// What backs the frames.
    pub pages: Pages,
    /// The kernel says when it must be woken.
    pub need_wakeup: bool,
    /// Busy polling was asked for.
    pub busy_poll: bool,
    /// And the worker's system calls make the NIC deliver: the kernel knows which NAPI serves this queue. Older kernels learn
    /// that with the first packet, newer ones from the driver at bind: [`Port::note_driving`] asks again.
    pub drives_nic: bool,
    /// Packets one copy-mode wake-up moves.
    pub tx_budget: u32,
    /// Bytes taken in this process, as [`PortConfig::memory_bytes`] foretold.
    pub memory_bytes: usize,
    /// What was asked for and refused without harm: what, and the kernel's word.
    pub refused: Vec<String>,
}

/// Why a port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The configuration makes no sense.
    #[error("AF_XDP port misconfigured: {0}")]
    Config(&'static str),
    /// `EAFNOSUPPORT`.
    #[error("this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS)")]
    NotSupported,
    /// `EPERM` at socket(2).
    #[error("not permitted to open an AF_XDP socket: it needs root or CAP_NET_RAW")]
    NotPermitted,
    /// `ENOBUFS` or `EPERM` at `XDP_UMEM_REG`.
    #[error(
        "locked-memory limit too small: the queue needs {needed} bytes and RLIMIT_MEMLOCK is {limit} for all of \
         this user's queues together; raise it (systemd: LimitMEMLOCK=) or keep CAP_IPC_LOCK"
    )]
    LockedMemory {
        /// Bytes of this queue's frames.
        needed: usize,
        /// The present soft limit in bytes.
        limit: u64,
    },
    /// No memory for the frames.
    #[error("no memory for {bytes} bytes of frames: {source}")]
    Memory {
        /// Bytes of this queue's frames.
        bytes: usize,
        /// The kernel's word.
        source: io::Error,
    },
    /// `EOPNOTSUPP` at bind in zero-copy mode.
    #[error("interface {ifindex} cannot do AF_XDP zero-copy: its driver has none, or not with this program")]
    NoZeroCopy {
        /// The interface.
        ifindex: u32,
    },
    /// `EBUSY` at bind.
    #[error(
        "queue {queue} of interface {ifindex} is already bound to another AF_XDP socket (another process?)"
    )]
    QueueTaken {
        /// The interface.
        ifindex: u32,
        /// The queue.
        queue: u32,
    },
    /// `EINVAL` at bind: all else we pass is checked before.
    #[error("interface {ifindex} has no queue {queue}, or its driver refuses this frame or MTU size")]
    NoSuchQueue {
        /// The interface.
        ifindex: u32,
        /// The queue.
        queue: u32,
    },
    /// `ENODEV` at bind.
    #[error("there is no interface {ifindex} in this network namespace")]
    NoSuchInterface {
        /// The interface.
        ifindex: u32,
    },
    /// A ring the kernel mapped is not as its offsets say.
    #[error("the kernel's ring is not as it says: {0}")]
    Ring(#[from] RingMisfit),
    /// Anything else.
    #[error("AF_XDP set-up failed at {step}: {source}")]
    System {
        /// What was tried.
        step: &'static str,
        /// The kernel's word.
        source: io::Error,
    },
}

fn failed(step: &'static str) -> impl FnOnce(io::Error) -> PortError {
    move |source| PortError::System { step, source }
}

impl Port<XdpSocket> {
    /// Opens one queue in exactly the mode asked for. Its fill ring is full when it is bound.
    ///
    /// Waits up to half a second for a queue whose last owner just went.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn open(config: &PortConfig) -> Result<Self, PortError> {
        config.check()?;
        let mut refused = Vec::new();
        let socket = XdpSocket::new().map_err(socket_error)?;
        let (mut umem, no_hugepages) = Umem::new(config.frames, config.frame_bytes, config.hugepages)
            .map_err(|source| PortError::Memory { bytes: config.umem_bytes(), source })?;
        refused.extend(no_hugepages.map(|error| format!("hugepages: {error}")));

        let tx_metadata = register(&socket, &umem, config, &mut refused)?;
        if tx_metadata {
            umem.set_tx_metadata();
        }
        let rings = map_rings(&socket, config.rings)?;
        let tx_budget = match socket.set_tx_budget(config.rings.transmit) {
            Ok(()) => config.rings.transmit,
            Err(error) => {
                refused.push(format!("XDP_MAX_TX_SKB_BUDGET: {error}"));
                32
            }
        };

        if let Err(error) = socket.set_send_buffer(config.rings.transmit) {
            refused.push(format!("SO_SNDBUF: {error}"));
        }

        let facts = PortFacts {
            zero_copy: false,
            tx_metadata,
            pages: umem.memory().pages(),
            need_wakeup: config.need_wakeup,
            busy_poll: false,
            drives_nic: false,
            tx_budget,
            memory_bytes: rings.mapped_bytes() + umem.memory_bytes(),
            refused,
        };
        let mut port = Self::assemble(socket, rings, umem, facts);
        port.fill_before_bind();
        bind(&port.kernel, config)?;
        port.facts.zero_copy = port.kernel.is_zero_copy().map_err(failed("XDP_OPTIONS"))?;
        port.note_driver_without_stamps(config.ifindex);
        if let Some(BusyPoll { duration, budget }) = config.busy_poll {
            let microseconds = u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
            port.kernel.set_busy_poll(microseconds, budget).map_err(failed("SO_BUSY_POLL"))?;
            port.facts.busy_poll = true;
            port.note_driving();
        }
        Ok(port)
    }

    /// In zero-copy mode the driver stamps, if it can: most cannot, and take the request without a word. In copy mode the
    /// kernel stamps.
    fn note_driver_without_stamps(&mut self, ifindex: u32) {
        let features = device_features(ifindex).ok().and_then(|features| features.xsk);
        let lacking = features.is_some_and(|bits| bits & XSK_TX_TIMESTAMP == 0);
        if self.facts.zero_copy && self.facts.tx_metadata && lacking {
            self.facts.tx_metadata = false;
            self.facts.refused.push("transmit stamps: the driver has none in zero-copy mode".to_owned());
        }
    }

    /// Looks whether busy polling has something to poll.
    pub fn note_driving(&mut self) {
        self.facts.drives_nic = self.facts.busy_poll && self.kernel.polled_napi().is_ok_and(|napi| napi != 0);
    }

    /// Fills the fill ring without a wake-up: there is nobody to wake yet.
    fn fill_before_bind(&mut self) {
        for _ in 0..self.rings.fill.entries() {
            let Some(address) = self.umem.take_for_fill() else { break };
            let pushed = self.rings.fill.push(address);
            debug_assert!(pushed, "a fresh ring is empty");
        }
        self.rings.fill.submit();
    }
}

impl Rings {
    fn mapped_bytes(&self) -> usize {
        self.fill.mapped_bytes()
            + self.receive.mapped_bytes()
            + self.transmit.mapped_bytes()
            + self.completion.mapped_bytes()
    }
}

fn socket_error(source: io::Error) -> PortError {
    match source.raw_os_error() {
        Some(libc::EAFNOSUPPORT) => PortError::NotSupported,
        Some(libc::EPERM | libc::EACCES) => PortError::NotPermitted,
        _ => PortError::System { step: "socket", source },
    }
}

/// Registers the umem, with transmit metadata if asked for and known to the kernel. Are stamps possible?
fn register(
    socket: &XdpSocket,
    umem: &Umem,
    config: &PortConfig,
    refused: &mut Vec<String>,
) -> Result<bool, PortError> {
    // The kernel leaves 256 bytes before each packet, enough for both kinds of metadata: no headroom of our own.
    const HEADROOM_BYTES: u32 = 0;
    let attempt = |tx_metadata_bytes| {
        let bytes = umem.frames_bytes();
        socket.register_umem(umem.memory(), bytes, config.frame_bytes, HEADROOM_BYTES, tx_metadata_bytes)
    };
    if config.tx_metadata {
        match attempt(TX_METADATA_BYTES) {
            Ok(()) => return Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                refused.push(format!("transmit metadata: {error}"));
            }
            Err(error) => return Err(umem_error(error, config)),
        }
    }
    attempt(0).map(|()| false).map_err(|error| umem_error(error, config))
}

fn umem_error(source: io::Error, config: &PortConfig) -> PortError {
    let bytes = config.umem_bytes();
    match (source.raw_os_error(), memory::locked_memory_limit()) {
        (Some(libc::ENOBUFS | libc::EPERM), Ok(Some(limit))) => {
            PortError::LockedMemory { needed: bytes, limit }
        }
        (Some(libc::ENOMEM), _) => PortError::Memory { bytes, source },
        _ => PortError::System { step: "XDP_UMEM_REG", source },
    }
}

fn map_rings(socket: &XdpSocket, sizes: RingSizes) -> Result<Rings, PortError> {
    let (memory, offsets) = map_ring::<FrameAddress>(socket, Ring::Fill, sizes.fill)?;
    let fill = Producer::new(memory, offsets, sizes.fill)?;
    let (memory, offsets) = map_ring::<FrameAddress>(socket, Ring::Completion, sizes.completion)?;
    let completion = Consumer::new(memory, offsets, sizes.completion)?;
    let (memory, offsets) = map_ring::<Descriptor>(socket, Ring::Receive, sizes.receive)?;
    let receive = Consumer::new(memory, offsets, sizes.receive)?;
    let (memory, offsets) = map_ring::<Descriptor>(socket, Ring::Transmit, sizes.transmit)?;
    let transmit = Producer::new(memory, offsets, sizes.transmit)?;
    Ok(Rings { fill, receive, transmit, completion })
}

fn map_ring<T: Entry>(
    socket: &XdpSocket,
    ring: Ring,
    entries: u32,
) -> Result<(Arc<Mapping>, RingOffsets), PortError> {
    socket.create_ring(ring, entries).map_err(failed("creating a ring"))?;
    let (memory, offsets) =
        socket.map_ring(ring, entries, T::WORDS * size_of::<u64>()).map_err(failed("mapping a ring"))?;
    Ok((Arc::new(memory), offsets))
}

fn bind(socket: &XdpSocket, config: &PortConfig) -> Result<(), PortError> {
    let PortConfig { ifindex, queue, mode, need_wakeup, .. } = *config;
    let mut result = socket.bind(ifindex, queue, mode, need_wakeup);
    for _ in 1..BIND_TRIES {
        if !matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EBUSY)) {
            break;
        }
        thread::sleep(BIND_PAUSE);
        result = socket.bind(ifindex, queue, mode, need_wakeup);
    }
    result.map_err(|source| match (source.raw_os_error(), mode) {
        (Some(libc::EOPNOTSUPP), CopyMode::ZeroCopy) => PortError::NoZeroCopy { ifindex },
        (Some(libc::EBUSY), _) => PortError::QueueTaken { ifindex, queue },
        (Some(libc::EINVAL), _) => PortError::NoSuchQueue { ifindex, queue },
        (Some(libc::ENODEV), _) => PortError::NoSuchInterface { ifindex },
        _ => PortError::System { step: "bind", source },
    })
}
