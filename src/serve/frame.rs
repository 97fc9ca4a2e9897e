//! Answering a whole Ethernet frame in place: what an AF_XDP worker does with each frame.
//!
//! The XDP program has steered the frame here, but a program can be replaced and rings carry what the network
//! sent, so every length is checked again; the kernel's checks that a socket would have had (martian sources)
//! are made here.

use super::Refusal;
use super::respond::{Asker, Prepared, Responder};
use super::signed::{DIGEST_START, sign};
use crate::auth::KeyTable;
use crate::snapshot::SystemSnapshot;
use crate::time::{Monotonic, NtpTimestamp, Timestamp};
use crate::wire::{Datagram, Frame, is_possible_source};
use std::sync::atomic::AtomicU64;

/// A frame that holds its reply but for the transmit timestamp.
#[must_use]
#[derive(Clone, Copy, Debug)]
pub struct PreparedFrame {
    datagram: Datagram,
    /// Of the frame, which is no longer than a UDP datagram and its headers.
    length: u32,
    prepared: Prepared,
}

impl PreparedFrame {
    /// The frame's length in octets, never more than that of the request's frame.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length as usize
    }

    /// The reply inside.
    pub const fn prepared(&self) -> &Prepared {
        &self.prepared
    }

    /// Writes the transmit timestamp and the MAC, and mends the checksum; `bytes` is the frame's buffer, `keys` are those
    /// of the responder. Returns the stamp that was written.
    // By reference: a copy for the rare one that is signed would cost all the others a fifth of their instructions.
    pub fn seal(&self, transmit_time: NtpTimestamp, bytes: &mut [u8], keys: &KeyTable) -> NtpTimestamp {
        if self.prepared.key().is_some() {
            return self.seal_signed(transmit_time, bytes, keys);
        }
        self.stamp(transmit_time, bytes)
    }

    #[inline(always)]
    fn stamp(&self, transmit_time: NtpTimestamp, bytes: &mut [u8]) -> NtpTimestamp {
        let Some(payload) = bytes.get_mut(self.datagram.payload()) else { return NtpTimestamp::UNKNOWN };
        let transmit_timestamp = self.prepared.stamp(transmit_time, payload);
        self.datagram.payload_changed(bytes, 0, transmit_timestamp.to_bits());
        transmit_timestamp
    }

    #[cold]
    #[inline(never)]
    fn seal_signed(&self, transmit_time: NtpTimestamp, bytes: &mut [u8], keys: &KeyTable) -> NtpTimestamp {
        let transmit_timestamp = self.stamp(transmit_time, bytes);
        let reply = bytes.get_mut(self.datagram.payload().start..self.length());
        if let (Some(key), Some(reply)) = (self.prepared.key(), reply) {
            let end = reply.len();
            sign(key, reply, keys);
            self.datagram.payload_filled(bytes, DIGEST_START..end);
        }
        transmit_timestamp
    }
}

/// A frame that may ask for the time, and who sent it.
#[derive(Clone, Copy, Debug)]
pub struct RequestFrame {
    datagram: Datagram,
    asker: Asker,
}

impl Responder {
    /// Reads the headers of the frame in `bytes`, if it goes to UDP port `port`. Changes nothing, and counts nothing.
    ///
    /// To be called for a whole batch before the first [`Self::respond_to_request`], as it names to `prefetch` what that
    /// will read of the tables: see [`Self::prefetch`].
    ///
    /// # Errors
    /// A [`Refusal`], if there is nothing to answer.
    #[inline]
    pub fn read_frame(
        &self,
        bytes: &[u8],
        port: u16,
        prefetch: impl Fn(&AtomicU64),
    ) -> Result<RequestFrame, Refusal> {
        let frame = Frame::parse(bytes).map_err(|_| Refusal::Frame)?;
        if frame.destination_port != port {
            return Err(Refusal::Frame);
        }
        if !is_possible_source(frame.source) || frame.source == frame.destination {
            return Err(Refusal::Source);
        }
        let asker = self.recall(frame.source, frame.source_port, prefetch);
        Ok(RequestFrame { datagram: frame.datagram, asker })
    }

    /// Turns the frame in `bytes`, which `request` was read from, into its reply, in place.
    ///
    /// # Errors
    /// A [`Refusal`] leaves `bytes` as they were.
    #[inline]
    pub fn respond_to_request(
        &mut self,
        request: &RequestFrame,
        bytes: &mut [u8],
        receive_timestamp: NtpTimestamp,
        now: Timestamp<Monotonic>,
        snapshot: &SystemSnapshot,
    ) -> Result<PreparedFrame, Refusal> {
        let RequestFrame { datagram, asker } = request;
        let payload = bytes.get_mut(datagram.payload()).ok_or(Refusal::Frame)?;
        let prepared = self.respond_to(asker, payload, receive_timestamp, now, snapshot)?;
        let length = datagram.turn_round(bytes, prepared.length()) as u32;
        Ok(PreparedFrame { datagram: *datagram, length, prepared })
    }

    /// Both for one frame alone.
    ///
    /// # Errors
    /// A [`Refusal`] leaves `bytes` as they were.
    pub fn respond_to_frame(
        &mut self,
        bytes: &mut [u8],
        port: u16,
        receive_timestamp: NtpTimestamp,
        now: Timestamp<Monotonic>,
        snapshot: &SystemSnapshot,
    ) -> Result<PreparedFrame, Refusal> {
        // What is read next need not be fetched ahead.
        let request = self.read_frame(bytes, port, |_| ())?;
        self.respond_to_request(&request, bytes, receive_timestamp, now, snapshot)
    }
}
