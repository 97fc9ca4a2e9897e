//! The four single-producer single-consumer rings an AF_XDP socket shares with the kernel.
//!
//! Owns: the protocol of one ring: who may write which slot when, and the memory ordering. Knows no socket and no
//! frame: it runs over any [`Mapping`], so the tests run it over plain memory with a fake kernel at the other end.
//! Does not own: what an entry means (`umem` checks every address that comes out of here).
//!
//! The one idea a newcomer lacks: the indices are free-running `u32`s, masked only to find a slot. Produced minus
//! consumed is the fill level, also across the wrap at 2^32. An index is published with a *release* store and read
//! with an *acquire* load, which pairs with the kernel's `smp_store_release` and `smp_load_acquire`
//! (net/xdp/xsk_queue.h): entries are written before, and read after, the index that covers them.
//!
//! What the kernel writes here is input from outside: a wild index makes a ring look full or empty, never more than
//! its size, and no slot outside the ring is ever touched.
#![allow(unsafe_code)]

#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;

use crate::sys::memory::Mapping;
use crate::sys::xdp_socket::RingOffsets;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A byte offset into the umem, as the rings carry it. What came from the kernel may point anywhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct FrameAddress(pub u64);

/// `struct xdp_desc`: a packet in the umem.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Descriptor {
    /// The packet's first byte.
    pub address: FrameAddress,
    /// Its length in bytes.
    pub length: u32,
    /// `XDP_PKT_CONTD` and `XDP_TX_METADATA`.
    pub options: u32,
}

/// What a ring carries, as 64-bit words: one for an address, two for a descriptor.
///
/// Words, so that a slot is accessed atomically (a plain move on 64-bit machines) and a racing peer can give us
/// nonsense but not undefined behaviour.
pub trait Entry: Copy {
    /// Words per slot.
    const WORDS: usize;
    /// Writes the entry into its slot of [`Self::WORDS`] words.
    fn store(self, slot: &[AtomicU64]);
    /// Reads the entry from its slot of [`Self::WORDS`] words.
    fn load(slot: &[AtomicU64]) -> Self;
}

impl Entry for FrameAddress {
    const WORDS: usize = 1;

    fn store(self, slot: &[AtomicU64]) {
        slot[0].store(self.0, Ordering::Relaxed);
    }

    fn load(slot: &[AtomicU64]) -> Self {
        Self(slot[0].load(Ordering::Relaxed))
    }
}

impl Entry for Descriptor {
    const WORDS: usize = 2;

    fn store(self, slot: &[AtomicU64]) {
        let mut second = [0; 8];
        second[..4].copy_from_slice(&self.length.to_ne_bytes());
        second[4..].copy_from_slice(&self.options.to_ne_bytes());
        slot[0].store(self.address.0, Ordering::Relaxed);
        slot[1].store(u64::from_ne_bytes(second), Ordering::Relaxed);
    }

    fn load(slot: &[AtomicU64]) -> Self {
        let [a, b, c, d, e, f, g, h] = slot[1].load(Ordering::Relaxed).to_ne_bytes();
        Self {
            address: FrameAddress(slot[0].load(Ordering::Relaxed)),
            length: u32::from_ne_bytes([a, b, c, d]),
            options: u32::from_ne_bytes([e, f, g, h]),
        }
    }
}

/// A ring that does not fit its memory: misaligned, out of bounds, or not a power of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a ring of {entries} entries at {offsets:?} does not fit into {mapped} mapped bytes")]
pub struct RingMisfit {
    /// Entries asked for.
    pub entries: u32,
    /// Where its parts should lie.
    pub offsets: RingOffsets,
    /// Bytes there are.
    pub mapped: usize,
}

/// The shared memory of one ring.
#[derive(Debug)]
struct Shared<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    slots: NonNull<AtomicU64>,
    entries: u32,
    memory: Arc<Mapping>,
    carries: PhantomData<T>,
}

// SAFETY: the pointers go into `memory`, which the struct keeps alive and which is itself Send; everything behind
// them is atomic.
unsafe impl<T> Send for Shared<T> {}

impl<T: Entry> Shared<T> {
    fn new(memory: Arc<Mapping>, offsets: RingOffsets, entries: u32) -> Result<Self, RingMisfit> {
        let misfit = RingMisfit { entries, offsets, mapped: memory.len() };
        let slot_words = (entries as usize).checked_mul(T::WORDS).ok_or(misfit)?;
        if !entries.is_power_of_two() {
            return Err(misfit);
        }
        Ok(Self {
            producer: part(&memory, offsets.producer, 1).ok_or(misfit)?,
            consumer: part(&memory, offsets.consumer, 1).ok_or(misfit)?,
            flags: part(&memory, offsets.flags, 1).ok_or(misfit)?,
            slots: part(&memory, offsets.entries, slot_words).ok_or(misfit)?,
            entries,
            memory,
            carries: PhantomData,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: `part` checked bounds and alignment, `memory` is alive, and only atomics ever point here.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.flags.as_ref() }
    }

    fn slot(&self, index: u32) -> &[AtomicU64] {
        let first = (index & (self.entries - 1)) as usize * T::WORDS;
        // SAFETY: `first` is below `entries * WORDS`, which `part` checked to lie inside the mapping.
        let slot = unsafe { self.slots.add(first) };
        // SAFETY: WORDS aligned words from there are inside too, and only atomics ever point here.
        unsafe { std::slice::from_raw_parts(slot.as_ptr(), T::WORDS) }
    }
}

/// `count` values of an atomic type at `offset` bytes into `memory`, if they fit and are aligned.
fn part<A>(memory: &Mapping, offset: usize, count: usize) -> Option<NonNull<A>> {
    let end = count.checked_mul(size_of::<A>())?.checked_add(offset)?;
    if end > memory.len() || !offset.is_multiple_of(align_of::<A>()) {
        return None;
    }
    // SAFETY: `offset` lies inside the mapping, which is one allocation.
    Some(unsafe { memory.start().add(offset) }.cast())
}

/// Our end of a ring we fill: fill and transmit.
#[derive(Debug)]
pub struct Producer<T> {
    ring: Shared<T>,
    /// Next slot to write; ahead of the published index until [`Self::submit`].
    next: u32,
    /// The published index. Only we write it, so that what is not news need not dirty the peer's cache line.
    published: u32,
    /// The consumer's index when last looked at: at least this far it has read.
    consumed: u32,
}

impl<T: Entry> Producer<T> {
    /// The producing end of the ring at `offsets`, going on from the indices found there.
    ///
    /// # Errors
    /// [`RingMisfit`].
    pub fn new(memory: Arc<Mapping>, offsets: RingOffsets, entries: u32) -> Result<Self, RingMisfit> {
        let ring = Shared::new(memory, offsets, entries)?;
        let next = ring.producer().load(Ordering::Relaxed);
        let consumed = ring.consumer().load(Ordering::Acquire);
        Ok(Self { ring, next, published: next, consumed })
    }

    /// Slots free now, looking at the consumer's index again.
    pub fn free(&mut self) -> u32 {
        self.consumed = self.ring.consumer().load(Ordering::Acquire);
        self.cached_free()
    }

    fn cached_free(&self) -> u32 {
        // A consumer ahead of us is a broken peer: its "used" is huge, and the ring is simply full.
        self.ring.entries.saturating_sub(self.next.wrapping_sub(self.consumed))
    }

    /// Writes one entry, not yet visible to the consumer; `false` if the ring is full.
    #[must_use]
    pub fn push(&mut self, entry: T) -> bool {
        if self.cached_free() == 0 && self.free() == 0 {
            return false;
        }
        entry.store(self.ring.slot(self.next));
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Makes everything pushed visible to the consumer.
    pub fn submit(&mut self) {
        if self.published != self.next {
            self.ring.producer().store(self.next, Ordering::Release);
            self.published = self.next;
        }
    }

    /// Entries pushed that the consumer has not taken yet, looking at its index again; at most the ring's size.
    pub fn pending(&mut self) -> u32 {
        self.entries() - self.free()
    }

    /// Is there anything that the consumer has not taken yet, as far as we know without touching its cache line
    /// more than a look.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        self.ring.consumer().load(Ordering::Relaxed) != self.next
    }

    /// Does the consumer ask to be woken (`XDP_RING_NEED_WAKEUP`)?
    #[must_use]
    pub fn needs_wakeup(&self) -> bool {
        self.ring.flags().load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    /// The ring's size.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.ring.entries
    }

    /// Bytes mapped for the ring.
    #[must_use]
    pub fn mapped_bytes(&self) -> usize {
        self.ring.memory.len()
    }
}

/// Our end of a ring the kernel fills: receive and completion.
#[derive(Debug)]
pub struct Consumer<T> {
    ring: Shared<T>,
    /// Next slot to read; ahead of the published index until [`Self::release`].
    next: u32,
    /// The published index, as for [`Producer`].
    published: u32,
    /// The producer's index when last looked at: up to here there are entries.
    produced: u32,
}

impl<T: Entry> Consumer<T> {
    /// The consuming end of the ring at `offsets`, going on from the indices found there.
    ///
    /// # Errors
    /// [`RingMisfit`].
    pub fn new(memory: Arc<Mapping>, offsets: RingOffsets, entries: u32) -> Result<Self, RingMisfit> {
        let ring = Shared::new(memory, offsets, entries)?;
        let next = ring.consumer().load(Ordering::Relaxed);
        Ok(Self { ring, next, published: next, produced: next })
    }

    /// Entries there to be popped, looking at the producer's index again; at most the ring's size.
    pub fn available(&mut self) -> u32 {
        self.produced = self.ring.producer().load(Ordering::Acquire);
        let available = self.produced.wrapping_sub(self.next);
        if available > self.ring.entries {
            // A producer behind us or more than a ring ahead is a broken peer: believe nothing.
            self.produced = self.next;
            return 0;
        }
        available
    }

    /// Reads one entry; its slot is not given back before [`Self::release`].
    pub fn pop(&mut self) -> Option<T> {
        if self.produced == self.next && self.available() == 0 {
            return None;
        }
        let entry = T::load(self.ring.slot(self.next));
        self.next = self.next.wrapping_add(1);
        Some(entry)
    }

    /// Gives the slots of everything popped back to the producer.
    pub fn release(&mut self) {
        if self.published != self.next {
            self.ring.consumer().store(self.next, Ordering::Release);
            self.published = self.next;
        }
    }

    /// The ring's size.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.ring.entries
    }

    /// Bytes mapped for the ring.
    #[must_use]
    pub fn mapped_bytes(&self) -> usize {
        self.ring.memory.len()
    }
}
