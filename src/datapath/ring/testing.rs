//! A fake kernel: the other end of a port's four rings, over plain memory and without a socket.
//!
//! Owns: what the kernel does in copy mode as far as a port can see it: takes frames from the fill ring, delivers
//! packets with their metadata, transmits up to 32 a wake-up, stamps, completes, drops invalid descriptors without a
//! word. And what a broken kernel might do: any descriptor, any address. Does not own: any assertion.
//!
//! The one idea a newcomer lacks: it reaches the rings by its own few lines, not by [`super::Producer`] and
//! [`super::Consumer`], so that a mistake in those cannot cancel itself out.

use super::{Consumer, Descriptor, FrameAddress, Producer};
use crate::datapath::af_xdp::{Port, PortConfig, PortError, PortFacts, Rings, Wake};
use crate::datapath::umem::{TX_METADATA_BYTES, Umem};
use crate::sys::memory::{HugepagePolicy, Mapping};
use crate::sys::xdp_socket::RingOffsets;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where a fake ring's parts lie.
pub const OFFSETS: RingOffsets = RingOffsets { producer: 0, consumer: 64, flags: 128, entries: 192 };

/// What the real kernel leaves before a packet (`XDP_PACKET_HEADROOM`).
pub const HEADROOM_BYTES: u32 = 256;

/// What one copy-mode wake-up transmits.
const TX_BUDGET: u32 = 32;

/// Memory for one ring of `entries` slots of `words`, both indices at `start`.
#[must_use]
pub fn ring_memory(entries: u32, words: usize, start: u32) -> Arc<Mapping> {
    let bytes = OFFSETS.entries + entries as usize * words * 8;
    let (mapping, _) = Mapping::anonymous(bytes, HugepagePolicy::Never).expect("memory for a ring");
    let memory = Arc::new(mapping);
    index(&memory, OFFSETS.producer).store(start, Ordering::Relaxed);
    index(&memory, OFFSETS.consumer).store(start, Ordering::Relaxed);
    memory
}

/// The index or flags word at `offset`.
#[must_use]
pub fn index(memory: &Mapping, offset: usize) -> &AtomicU32 {
    assert!(offset + 4 <= memory.len() && offset.is_multiple_of(4), "an index in the ring");
    // SAFETY: inside the mapping, as just checked.
    let word = unsafe { memory.start().add(offset) };
    // SAFETY: aligned, alive as long as `memory` is borrowed, and only ever accessed as an atomic.
    unsafe { AtomicU32::from_ptr(word.as_ptr().cast()) }
}

/// The kernel's end of one ring.
struct End {
    memory: Arc<Mapping>,
    entries: u32,
    words: usize,
}

impl End {
    fn new(entries: u32, words: usize, start: u32) -> Self {
        Self { memory: ring_memory(entries, words, start), entries, words }
    }

    fn word(&self, position: u32, word: usize) -> &AtomicU64 {
        let offset = OFFSETS.entries + ((position % self.entries) as usize * self.words + word) * 8;
        // SAFETY: the position is taken modulo the ring's size, so this lies inside the mapping.
        let word = unsafe { self.memory.start().add(offset) };
        // SAFETY: aligned, alive with `self`, and only ever accessed as an atomic.
        unsafe { AtomicU64::from_ptr(word.as_ptr().cast()) }
    }

    fn level(&self) -> u32 {
        let produced = index(&self.memory, OFFSETS.producer).load(Ordering::SeqCst);
        produced.wrapping_sub(index(&self.memory, OFFSETS.consumer).load(Ordering::SeqCst))
    }

    fn peek(&self) -> Option<[u64; 2]> {
        let at = index(&self.memory, OFFSETS.consumer).load(Ordering::SeqCst);
        let read = |word| self.word(at, word).load(Ordering::SeqCst);
        (self.level() > 0).then(|| [read(0), if self.words > 1 { read(1) } else { 0 }])
    }

    fn consume(&self) {
        index(&self.memory, OFFSETS.consumer).fetch_add(1, Ordering::SeqCst);
    }

    fn produce(&self, entry: [u64; 2]) -> bool {
        if self.level() >= self.entries {
            return false;
        }
        let at = index(&self.memory, OFFSETS.producer).load(Ordering::SeqCst);
        for (word, value) in entry.into_iter().enumerate().take(self.words) {
            self.word(at, word).store(value, Ordering::SeqCst);
        }
        index(&self.memory, OFFSETS.producer).fetch_add(1, Ordering::SeqCst);
        true
    }
}

struct State {
    frames: Arc<Mapping>,
    frame_bytes: u64,
    frames_bytes: u64,
    tx_metadata_bytes: u64,
    fill: End,
    receive: End,
    transmit: End,
    completion: End,
    /// What the next wake-ups answer instead of working: an errno.
    failure: Option<i32>,
    /// Keep transmitted frames instead of completing them at once.
    holding: bool,
    held: Vec<u64>,
    transmitted: Vec<Vec<u8>>,
    clock: u64,
    invalid: u64,
}

/// The other end of a fake port. Clones are handles of the same kernel.
#[derive(Clone)]
pub struct FakeKernel(Arc<Mutex<State>>);

impl std::fmt::Debug for FakeKernel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("FakeKernel")
    }
}

impl FakeKernel {
    /// A port over a fake kernel, brought up as the real one is, with all ring indices at `start` (to test the wrap).
    ///
    /// # Errors
    /// The configuration's.
    pub fn port(config: &PortConfig, start: u32) -> Result<(Port<Self>, Self), PortError> {
        config.check()?;
        let (mut umem, _) = Umem::new(config.frames, config.frame_bytes, HugepagePolicy::Never)
            .map_err(|source| PortError::Memory { bytes: config.umem_bytes(), source })?;
        if config.tx_metadata {
            umem.set_tx_metadata();
        }
        let sizes = config.rings;
        let state = State {
            frames: Arc::clone(umem.memory()),
            frame_bytes: config.frame_bytes.into(),
            frames_bytes: umem.frames_bytes() as u64,
            tx_metadata_bytes: if config.tx_metadata { TX_METADATA_BYTES.into() } else { 0 },
            fill: End::new(sizes.fill, 1, start),
            receive: End::new(sizes.receive, 2, start),
            transmit: End::new(sizes.transmit, 2, start),
            completion: End::new(sizes.completion, 1, start),
            failure: None,
            holding: false,
            held: Vec::new(),
            transmitted: Vec::new(),
            clock: 1_000_000,
            invalid: 0,
        };
        let memory = |end: &End| Arc::clone(&end.memory);
        let rings = Rings {
            fill: Producer::new(memory(&state.fill), OFFSETS, sizes.fill)?,
            receive: Consumer::new(memory(&state.receive), OFFSETS, sizes.receive)?,
            transmit: Producer::new(memory(&state.transmit), OFFSETS, sizes.transmit)?,
            completion: Consumer::new(memory(&state.completion), OFFSETS, sizes.completion)?,
        };
        let facts = PortFacts {
            zero_copy: false,
            tx_metadata: config.tx_metadata,
            pages: umem.memory().pages(),
            need_wakeup: config.need_wakeup,
            busy_poll: false,
            drives_nic: false,
            tx_budget: TX_BUDGET,
            memory_bytes: umem.memory_bytes(),
            refused: Vec::new(),
        };
        let kernel = Self(Arc::new(Mutex::new(state)));
        kernel.set_awake(false);
        let mut port = Port::assemble(kernel.clone(), rings, umem, facts);
        assert_eq!(port.refill(), crate::datapath::af_xdp::Link::Up, "a fresh fake kernel has no failure");
        Ok((port, kernel))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A packet arrives, with `metadata` right before it. `false` if it was dropped: no frame, no room, too long.
    #[must_use]
    pub fn deliver(&self, metadata: &[u8], packet: &[u8]) -> bool {
        let state = self.state();
        let room = state.frame_bytes - u64::from(HEADROOM_BYTES);
        if packet.len() as u64 > room || metadata.len() > HEADROOM_BYTES as usize {
            return false;
        }
        if state.receive.level() >= state.receive.entries {
            return false;
        }
        let Some([address, _]) = state.fill.peek() else { return false };
        state.fill.consume();
        let packet_at = address / state.frame_bytes * state.frame_bytes + u64::from(HEADROOM_BYTES);
        if packet_at + room > state.frames_bytes {
            return false;
        }
        state.write(packet_at - metadata.len() as u64, metadata);
        state.write(packet_at, packet);
        state.receive.produce(descriptor_words(packet_at, packet.len() as u32, 0))
    }

    /// Posts any receive descriptor, as a broken kernel might. `false` if the ring is full.
    #[must_use]
    pub fn deliver_descriptor(&self, descriptor: Descriptor) -> bool {
        let Descriptor { address, length, options } = descriptor;
        self.state().receive.produce(descriptor_words(address.0, length, options))
    }

    /// Takes a frame from the fill ring without delivering anything: for [`Self::deliver_descriptor`].
    #[must_use]
    pub fn take_fill(&self) -> Option<FrameAddress> {
        let state = self.state();
        let [address, _] = state.fill.peek()?;
        state.fill.consume();
        Some(FrameAddress(address))
    }

    /// Posts any completion, as a broken kernel might. `false` if the ring is full.
    #[must_use]
    pub fn complete_address(&self, address: FrameAddress) -> bool {
        self.state().completion.produce([address.0, 0])
    }

    /// Overwrites the producer index of receive and completion, as a broken kernel might.
    pub fn break_indices(&self, value: u32) {
        let state = self.state();
        index(&state.receive.memory, OFFSETS.producer).store(value, Ordering::SeqCst);
        index(&state.completion.memory, OFFSETS.producer).store(value, Ordering::SeqCst);
    }

    /// What wake-ups answer from now on: an errno (`ENETDOWN`: the link is down), or `None` to work again.
    pub fn set_failure(&self, errno: Option<i32>) {
        self.state().failure = errno;
    }

    /// Does it transmit by itself? Asleep, as the real one always is in copy mode, it asks to be woken with its flag; awake,
    /// as a driver in zero-copy mode while it has work, it does not, and works when the test calls
    /// [`Wake::wake_transmit`] in its place.
    pub fn set_awake(&self, awake: bool) {
        let flags = if awake { 0 } else { libc::XDP_RING_NEED_WAKEUP };
        index(&self.state().transmit.memory, OFFSETS.flags).store(flags, Ordering::SeqCst);
    }

    /// Keeps transmitted frames, or lets go of them all and completes at once again.
    pub fn set_holding(&self, holding: bool) {
        let mut state = self.state();
        state.holding = holding;
        if !holding {
            let held = std::mem::take(&mut state.held);
            // What finds no room stays held.
            let kept = held.into_iter().filter(|&address| !state.completion.produce([address, 0])).collect();
            state.held = kept;
        }
    }

    /// The packets transmitted since the last call, in order.
    #[must_use]
    pub fn take_transmitted(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.state().transmitted)
    }

    /// Transmit descriptors dropped as invalid, and so frames lost for good: never more than 0 with a right port.
    #[must_use]
    pub fn invalid(&self) -> u64 {
        self.state().invalid
    }

    /// The last stamp written.
    #[must_use]
    pub fn clock(&self) -> u64 {
        self.state().clock
    }
}

impl Wake for FakeKernel {
    fn wake_transmit(&self) -> io::Result<()> {
        let mut state = self.state();
        if let Some(errno) = state.failure {
            return Err(io::Error::from_raw_os_error(errno));
        }
        for _ in 0..TX_BUDGET {
            let Some([address, rest]) = state.transmit.peek() else { return Ok(()) };
            let room = state.completion.entries - state.completion.level();
            if state.held.len() as u32 >= room {
                break;
            }
            state.transmit.consume();
            state.transmit_one(address, rest);
        }
        if state.transmit.level() > 0 { Err(io::Error::from_raw_os_error(libc::EAGAIN)) } else { Ok(()) }
    }

    fn wake_receive(&self) -> io::Result<()> {
        self.state().failure.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }
}

impl State {
    /// As `xp_aligned_validate_desc` and `__xsk_generic_xmit` do.
    fn transmit_one(&mut self, address: u64, rest: u64) {
        let [a, b, c, d, e, f, g, h] = rest.to_ne_bytes();
        let length = u64::from(u32::from_ne_bytes([a, b, c, d]));
        let options = u32::from_ne_bytes([e, f, g, h]);
        let start = address.checked_sub(self.tx_metadata_bytes).filter(|_| length > 0);
        let fits = start.is_some_and(|start| {
            start % self.frame_bytes + self.tx_metadata_bytes + length <= self.frame_bytes
                && start < self.frames_bytes
        });
        let wants_metadata = options & libc::XDP_TX_METADATA != 0;
        if !fits || (wants_metadata && self.tx_metadata_bytes == 0) || options & !libc::XDP_TX_METADATA != 0 {
            self.invalid += 1;
            return;
        }
        let packet = self.read(address, length as usize);
        self.transmitted.push(packet);
        if wants_metadata && self.read(address - self.tx_metadata_bytes, 8) == 1_u64.to_ne_bytes() {
            self.clock += 1;
            self.write(address - 8, &self.clock.to_ne_bytes());
        }
        if self.holding {
            self.held.push(address);
        } else {
            self.completion.produce([address, 0]);
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at + bytes.len() as u64 <= self.frames_bytes, "a fake kernel writes frames only");
        // SAFETY: inside the mapping, as just checked.
        let to = unsafe { self.frames.start().add(at as usize) };
        // SAFETY: the frame came out of the fill or transmit ring, so the port holds no reference into it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    }

    fn read(&self, at: u64, length: usize) -> Vec<u8> {
        assert!(at + length as u64 <= self.frames_bytes, "a fake kernel reads frames only");
        // SAFETY: inside the mapping, as just checked.
        let from = unsafe { self.frames.start().add(at as usize) };
        // SAFETY: the frame came out of the transmit ring, so the port holds no reference into it.
        unsafe { std::slice::from_raw_parts(from.as_ptr(), length) }.to_vec()
    }
}

fn descriptor_words(address: u64, length: u32, options: u32) -> [u64; 2] {
    let [a, b, c, d] = length.to_ne_bytes();
    let [e, f, g, h] = options.to_ne_bytes();
    [address, u64::from_ne_bytes([a, b, c, d, e, f, g, h])]
}
