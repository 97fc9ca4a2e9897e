//! The frames of one queue: the memory packets live in, and who has which frame.
//!
//! Owns: the umem's memory, the place of every frame and the moves between places, the bytes of frames in hand, and
//! the transmit metadata before a packet. Does not own: the rings the addresses travel through (`ring`).
//!
//! The one idea a newcomer lacks: **frames are conserved**. Each is in exactly one place, every move names where
//! it must come from, and a move that does not fit is refused. So an address the kernel never had from us (`foreign`)
//! is never used, a frame completed twice is never in two places, and a lost frame shows in [`Balance::in_hand`].
//! That is also what makes the slices below sound: only frames in hand have bytes, and the kernel has no frame in hand.
//!
//! ```text
//!           take_for_fill          receive             transmit
//!    Free ---------------> Fill ------------> InHand ------------> Transmit
//!     ^                                          | recycle            | complete
//!     '------------------------------------------'--------------------'
//!
//!    one frame:  | headroom (256 of the kernel's, and ours) | packet ...                  | end of the chunk
//!                          receive metadata, 24 bytes  [####]
//!                         transmit metadata, 16 bytes    [##]      written by `transmit`, over the receive metadata
//! ```
#![allow(unsafe_code)]

use super::ring::{Descriptor, FrameAddress};
use crate::sys::memory::{HugepagePolicy, Mapping};
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes before a received packet in which the XDP program leaves its metadata.
pub const RX_METADATA_BYTES: usize = 24;
/// `struct xsk_tx_metadata` as far as we use it: flags and the stamp, 64 bits each.
pub const TX_METADATA_BYTES: u32 = 16;

/// Which frame of its umem: 0 to frames - 1. Good as an index into a table of one entry per frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FrameNumber(u32);

impl FrameNumber {
    /// As a table index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A received packet's frame, in the owner's hand until given back by sending or recycling.
///
/// It cannot be copied, so it is given back once. One that is dropped instead stays in [`Balance::in_hand`].
#[must_use = "a frame that is not sent or recycled is lost to the queue"]
#[derive(Debug)]
pub struct Frame {
    number: FrameNumber,
    /// The packet's first byte, from the start of the frame.
    offset: u32,
    length: u32,
}

impl Frame {
    /// Which frame it is.
    #[must_use]
    pub const fn number(&self) -> FrameNumber {
        self.number
    }

    /// The packet's length in bytes, as received.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a received packet has at least an Ethernet header")]
    pub const fn len(&self) -> usize {
        self.length as usize
    }
}

/// Where a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Free,
    Fill,
    InHand,
    Transmit,
}

/// What we remember of one frame.
#[derive(Clone, Copy, Debug)]
struct Record {
    place: Place,
    /// Was a transmit stamp asked for?
    stamped: bool,
    /// Where its last packet began, from the start of the frame. Frames are at most 4096 bytes.
    offset: u16,
}

/// How many frames are where.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Balance {
    /// Frames of the umem.
    pub total: u32,
    /// In the free list.
    pub free: u32,
    /// With the kernel to receive into, or received and not yet taken.
    pub fill: u32,
    /// Received, and neither sent nor recycled yet.
    pub in_hand: u32,
    /// With the kernel to transmit, or transmitted and not yet reaped.
    pub transmit: u32,
}

impl Balance {
    /// Is every frame in exactly one place?
    #[must_use]
    pub fn is_balanced(&self) -> bool {
        u64::from(self.total)
            == [self.free, self.fill, self.in_hand, self.transmit].into_iter().map(u64::from).sum::<u64>()
    }
}

/// What a receive descriptor turned out to be.
#[derive(Debug)]
pub enum Received {
    /// A packet, now in hand.
    Packet(Frame),
    /// A frame of ours whose packet lies outside it: in the free list again.
    OutOfBounds,
    /// Not the address of a frame the kernel had from us to receive into: ignored.
    Foreign,
}

/// Why a frame was not turned into a transmit descriptor. It is in the free list, unless it is foreign.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotTransmittable {
    /// No bytes, or more than fit, or no room for the metadata before it. The kernel would drop the descriptor
    /// without a completion, and the frame with it.
    DoesNotFit,
    /// Not a frame in hand.
    Foreign,
}

/// The memory of one queue's frames and the books about them.
#[derive(Debug)]
pub struct Umem {
    memory: Arc<Mapping>,
    frame_bytes: u32,
    /// Bytes of transmit metadata the kernel expects before *every* transmitted packet, asked for or not; 0 or
    /// [`TX_METADATA_BYTES`].
    tx_metadata_bytes: u32,
    records: Vec<Record>,
    /// Free frames, last in first out: the warmest in the cache is used next.
    free: Vec<FrameNumber>,
    fill: u32,
    in_hand: u32,
    transmit: u32,
}

impl Umem {
    /// What the books take per frame besides its bytes.
    pub const BOOKS_BYTES_PER_FRAME: usize = size_of::<Record>() + size_of::<FrameNumber>();

    /// `frames` frames of `frame_bytes` (2048 or 4096), all free, and the kernel's reason if hugepages were refused.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn new(
        frames: u32,
        frame_bytes: u32,
        policy: HugepagePolicy,
    ) -> io::Result<(Self, Option<io::Error>)> {
        debug_assert!(matches!(frame_bytes, 2048 | 4096), "the port checks its configuration");
        let length =
            (frames as usize).checked_mul(frame_bytes as usize).ok_or(io::ErrorKind::InvalidInput)?;
        let (memory, refused) = Mapping::anonymous(length, policy)?;
        let umem = Self {
            memory: Arc::new(memory),
            frame_bytes,
            tx_metadata_bytes: 0,
            records: vec![Record { place: Place::Free, stamped: false, offset: 0 }; frames as usize],
            free: (0..frames).rev().map(FrameNumber).collect(),
            fill: 0,
            in_hand: 0,
            transmit: 0,
        };
        Ok((umem, refused))
    }

    /// The memory, to register it with the kernel.
    #[must_use]
    pub fn memory(&self) -> &Arc<Mapping> {
        &self.memory
    }

    /// Bytes of all frames.
    #[must_use]
    pub fn frames_bytes(&self) -> usize {
        self.records.len() * self.frame_bytes as usize
    }

    /// Bytes this umem takes: its mapping and its books.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.memory.len() + self.records.len() * Self::BOOKS_BYTES_PER_FRAME
    }

    /// Says that the kernel registered transmit metadata: stamps can be asked for from now on.
    pub fn set_tx_metadata(&mut self) {
        self.tx_metadata_bytes = TX_METADATA_BYTES;
    }

    /// How many frames are where. The sums come from counters kept apart from the free list.
    #[must_use]
    pub fn balance(&self) -> Balance {
        Balance {
            total: self.records.len() as u32,
            free: self.free.len() as u32,
            fill: self.fill,
            in_hand: self.in_hand,
            transmit: self.transmit,
        }
    }

    /// The balance counted again frame by frame. Slow; for tests and the last line at exit.
    #[must_use]
    pub fn audit(&self) -> Balance {
        let count = |place| self.records.iter().filter(|record| record.place == place).count() as u32;
        Balance {
            total: self.records.len() as u32,
            free: count(Place::Free),
            fill: count(Place::Fill),
            in_hand: count(Place::InHand),
            transmit: count(Place::Transmit),
        }
    }

    /// Moves one free frame to the kernel: its address is for the fill ring.
    ///
    /// What lay before its last packet is wiped: an XDP program that leaves no metadata this time must not seem to
    /// have left that of the last packet, or what a transmit stamp wrote over it.
    pub fn take_for_fill(&mut self) -> Option<FrameAddress> {
        let number = self.free.pop()?;
        let offset = usize::from(self.records[number.index()].offset);
        if let Some(start) = offset.checked_sub(RX_METADATA_BYTES) {
            // The frame is free, so its bytes are ours. Three moves, since the length is known: a call of memset with
            // a length of any size was a tenth of a reflector's time for a packet.
            if let Some(metadata) = self.bytes_mut(number, start..offset).first_chunk_mut() {
                *metadata = [0; RX_METADATA_BYTES];
            }
        }
        self.records[number.index()].place = Place::Fill;
        self.fill += 1;
        Some(FrameAddress(u64::from(number.0) * u64::from(self.frame_bytes)))
    }

    /// Takes what came out of the receive ring in hand, if the kernel had it from us.
    pub fn receive(&mut self, descriptor: Descriptor) -> Received {
        let Some((number, offset)) = self.locate(descriptor.address) else { return Received::Foreign };
        let record = &mut self.records[number.index()];
        if record.place != Place::Fill {
            return Received::Foreign;
        }
        self.fill -= 1;
        record.offset = offset;
        let offset = u32::from(offset);
        if descriptor.length > self.frame_bytes - offset {
            self.put_free(number);
            return Received::OutOfBounds;
        }
        record.place = Place::InHand;
        self.in_hand += 1;
        Received::Packet(Frame { number, offset, length: descriptor.length })
    }

    /// Gives a frame back unsent; `false` if it was not in hand here.
    pub fn recycle(&mut self, frame: Frame) -> bool {
        if !self.is_in_hand(&frame) {
            return false;
        }
        self.in_hand -= 1;
        self.put_free(frame.number);
        true
    }

    /// Moves a frame in hand to the kernel: the descriptor, for the transmit ring, sends the first `length` bytes from
    /// where the received packet began. A stamp is asked for where the kernel registered metadata.
    ///
    /// # Errors
    /// [`NotTransmittable`].
    pub fn transmit(
        &mut self,
        frame: Frame,
        length: usize,
        stamp: StampRequest,
    ) -> Result<Descriptor, NotTransmittable> {
        if !self.is_in_hand(&frame) {
            return Err(NotTransmittable::Foreign);
        }
        let metadata = self.tx_metadata_bytes;
        let room = (self.frame_bytes - frame.offset) as usize;
        if length == 0 || length > room || frame.offset < metadata {
            self.recycle(frame);
            return Err(NotTransmittable::DoesNotFit);
        }
        let Frame { number, offset, .. } = frame;
        let stamped = stamp == StampRequest::Transmit && metadata > 0;
        if stamped {
            let mut request = [0; TX_METADATA_BYTES as usize];
            request[..8].copy_from_slice(&u64::from(libc::XDP_TXMD_FLAGS_TIMESTAMP).to_ne_bytes());
            self.bytes_mut(number, (offset - metadata) as usize..offset as usize).copy_from_slice(&request);
        }
        let record = &mut self.records[number.index()];
        record.place = Place::Transmit;
        record.stamped = stamped;
        self.in_hand -= 1;
        self.transmit += 1;
        Ok(Descriptor {
            address: FrameAddress(u64::from(number.0) * u64::from(self.frame_bytes) + u64::from(offset)),
            length: length as u32,
            options: if stamped { libc::XDP_TX_METADATA } else { 0 },
        })
    }

    /// Takes what came out of the completion ring back into the free list: which frame it was, and the stamp in
    /// nanoseconds if one was asked for and written. `None` if the kernel had no such frame to transmit.
    ///
    /// The frame is found by its chunk, not by the exact address: Linux 6.18 completes odd addresses one too low.
    pub fn complete(&mut self, address: FrameAddress) -> Option<(FrameNumber, Option<u64>)> {
        let (number, _) = self.locate(address)?;
        let Record { place: Place::Transmit, stamped, offset } = self.records[number.index()] else {
            return None;
        };
        self.transmit -= 1;
        self.put_free(number);
        let stamp = if stamped { self.read_stamp(number, usize::from(offset)) } else { 0 };
        // We wrote 0 there: a driver that does not stamp leaves it.
        Some((number, (stamp != 0).then_some(stamp)))
    }

    /// The received packet.
    #[must_use]
    pub fn packet(&self, frame: &Frame) -> &[u8] {
        let start = frame.offset as usize;
        self.bytes_in_hand(frame, start..start + frame.len())
    }

    /// The received packet, to be changed in place.
    #[must_use]
    pub fn packet_mut(&mut self, frame: &Frame) -> &mut [u8] {
        let start = frame.offset as usize;
        self.bytes_in_hand_mut(frame, start..start + frame.len())
    }

    /// The received packet and all the room behind it, for a reply longer than its request.
    #[must_use]
    pub fn buffer_mut(&mut self, frame: &Frame) -> &mut [u8] {
        self.bytes_in_hand_mut(frame, frame.offset as usize..self.frame_bytes as usize)
    }

    /// The bytes right before the packet, where the XDP program leaves its metadata; zeros where it left none, and
    /// `None` if the packet begins too early to have any before it. To be read before the frame is sent.
    #[must_use]
    pub fn metadata(&self, frame: &Frame) -> Option<&[u8; RX_METADATA_BYTES]> {
        let end = frame.offset as usize;
        self.bytes_in_hand(frame, end.checked_sub(RX_METADATA_BYTES)?..end).try_into().ok()
    }

    fn put_free(&mut self, number: FrameNumber) {
        self.records[number.index()].place = Place::Free;
        self.free.push(number);
    }

    /// The frame an address lies in, and how far into it.
    fn locate(&self, address: FrameAddress) -> Option<(FrameNumber, u16)> {
        // Frame sizes are powers of two.
        let number = u32::try_from(address.0 >> self.frame_bytes.trailing_zeros()).ok()?;
        let offset = u16::try_from(address.0 & u64::from(self.frame_bytes - 1)).ok()?;
        ((number as usize) < self.records.len()).then_some((FrameNumber(number), offset))
    }

    /// Is it a frame of this umem, in hand? A handle of another umem must not reach into this one.
    fn is_in_hand(&self, frame: &Frame) -> bool {
        self.records.get(frame.number.index()).is_some_and(|record| {
            record.place == Place::InHand
                && u32::from(record.offset) == frame.offset
                && frame.length <= self.frame_bytes - frame.offset
        })
    }

    fn read_stamp(&mut self, number: FrameNumber, offset: usize) -> u64 {
        let bytes = self.bytes_mut(number, offset.saturating_sub(8)..offset);
        bytes.try_into().map_or(0, |bytes: &mut [u8; 8]| u64::from_ne_bytes(*bytes))
    }

    fn bytes_in_hand(&self, frame: &Frame, range: Range<usize>) -> &[u8] {
        if !self.is_in_hand(frame) {
            return &[];
        }
        let (start, length) = self.span(frame.number, range);
        // SAFETY: `span` lies inside the mapping, which is initialised (zeroed by the kernel) and lives as long as
        // `self`; the frame is in hand, so the kernel neither writes nor reads it, and we hold `&self`.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), length) }
    }

    fn bytes_in_hand_mut(&mut self, frame: &Frame, range: Range<usize>) -> &mut [u8] {
        if !self.is_in_hand(frame) {
            return &mut [];
        }
        self.bytes_mut(frame.number, range)
    }

    /// Bytes of a frame that is not with the kernel, which the caller has checked.
    fn bytes_mut(&mut self, number: FrameNumber, range: Range<usize>) -> &mut [u8] {
        let (start, length) = self.span(number, range);
        // SAFETY: `span` lies inside the mapping, which is initialised and lives as long as `self`; the frame is free
        // or in hand, so the kernel has no business in it, and `&mut self` keeps every other slice of ours away.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), length) }
    }

    /// Where a range of a frame begins in memory, cut to the frame.
    fn span(&self, number: FrameNumber, range: Range<usize>) -> (NonNull<u8>, usize) {
        let frame_bytes = self.frame_bytes as usize;
        let end = range.end.min(frame_bytes);
        let start = range.start.min(end);
        let offset = number.index().min(self.records.len() - 1) * frame_bytes + start;
        // SAFETY: `offset` is at most `frames * frame_bytes`, the length the mapping was made with.
        (unsafe { self.memory.start().add(offset) }, end - start)
    }
}

/// Should the kernel say when the packet left?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StampRequest {
    /// Yes: the completion carries the transmit time.
    Transmit,
    /// No.
    None,
}
