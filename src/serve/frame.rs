//! Answering a whole Ethernet frame in place: what an AF_XDP worker does with each frame.
//!
//! The XDP program has steered the frame here, but a program can be replaced and rings carry what the network
//! sent, so every length is checked again; the kernel's checks that a socket would have had (martian sources)
//! are made here.

use super::Refusal;
use super::respond::{Arrival, Prepared, Responder};
use crate::snapshot::SystemSnapshot;
use crate::time::{Monotonic, NtpTimestamp, Timestamp};
use crate::wire::{Datagram, Frame, is_possible_source};

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

    /// Writes the transmit timestamp and mends the checksum; `bytes` is the frame's buffer. Returns the stamp
    /// that was written.
    pub fn seal(self, transmit_time: NtpTimestamp, bytes: &mut [u8]) -> NtpTimestamp {
        let Some(payload) = bytes.get_mut(self.datagram.payload()) else { return NtpTimestamp::UNKNOWN };
        let transmit_timestamp = self.prepared.seal(transmit_time, payload);
        self.datagram.payload_changed(bytes, 0, transmit_timestamp.to_bits());
        transmit_timestamp
    }
}

impl Responder {
    /// Turns the frame in `bytes` into its reply, in place, if it is a request to UDP port `port`.
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
        let frame = Frame::parse(bytes).map_err(|_| Refusal::Frame)?;
        if frame.destination_port != port {
            return Err(Refusal::Frame);
        }
        if !is_possible_source(frame.source) || frame.source == frame.destination {
            return Err(Refusal::Source);
        }
        let arrival =
            Arrival { source: frame.source, source_port: frame.source_port, receive_timestamp, now };
        let payload = bytes.get_mut(frame.payload()).ok_or(Refusal::Frame)?;
        let prepared = self.respond(payload, &arrival, snapshot)?;
        let length = frame.turn_round(bytes, prepared.length());
        Ok(PreparedFrame { datagram: frame.datagram, prepared, length: length as u32 })
    }
}
