//! The broadcast server: what we tell everybody who listens (mode 5; RFC 5905 sections 3, 8 and 13.2).
//!
//! Owns: what is in the packet and how far it goes. Does not own: when it is sent (the poll process), and the transmit
//! timestamp, which the shell writes as late as it can.
//!
//! The one idea a newcomer lacks: a broadcast packet answers nobody, so its origin and receive timestamps are zero,
//! and only the transmit timestamp tells the time. Nobody who hears it can tell how long it was under way; that is
//! the listener's care (the broadcast client).

use super::source::{BroadcastOptions, POLL_MAX_MOST, POLL_MIN_LEAST};
use crate::snapshot::SystemSnapshot;
use crate::time::{Log2Seconds, NtpShort, NtpTimestamp};
use crate::wire::{Header, Mode, Version};

/// What a broadcast server association keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BroadcastServer {
    /// As configured.
    pub options: BroadcastOptions,
}

impl BroadcastServer {
    /// With the interval in the range of the poll process.
    #[must_use]
    pub fn new(options: BroadcastOptions) -> Self {
        let interval = options.interval.clamp(POLL_MIN_LEAST, POLL_MAX_MOST);
        Self { options: BroadcastOptions { interval, ..options } }
    }

    /// The packet for now; `None` while we are not synchronised (RFC 5905 A.5.7.1: "just do it, but only if we are
    /// synchronized").
    #[must_use]
    pub fn packet(&self, snapshot: &SystemSnapshot, now: NtpTimestamp) -> Option<Header> {
        snapshot.is_synchronised().then(|| {
            let mut header = Header::new(snapshot.leap, Version::V4, Mode::Broadcast);
            header.set_poll(self.options.interval);
            describe(&mut header, snapshot, now);
            header
        })
    }

    /// How often it is sent.
    #[must_use]
    pub const fn interval(&self) -> Log2Seconds {
        self.options.interval
    }
}

/// The system variables as every packet that tells our time carries them (RFC 5905 figure 31).
pub(super) fn describe(header: &mut Header, snapshot: &SystemSnapshot, now: NtpTimestamp) {
    header.stratum = snapshot.stratum;
    header.set_precision(snapshot.precision);
    header.set_root_delay(NtpShort::from_duration_rounded_up(snapshot.root_delay));
    header.set_root_dispersion(snapshot.root_dispersion_at(now));
    header.reference_id = snapshot.reference_id;
    header.set_reference_timestamp(snapshot.reference_timestamp);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{NtpDuration, Ppm};
    use crate::wire::{Leap, ReferenceId};

    const NOW: NtpTimestamp = NtpTimestamp::from_bits(0xee00_0000_0000_0000);

    fn synchronised() -> SystemSnapshot {
        SystemSnapshot {
            leap: Leap::None,
            stratum: 2,
            reference_id: ReferenceId([10, 99, 0, 9]),
            root_delay: NtpDuration::from_nanoseconds(2_000_000),
            root_dispersion: NtpDuration::from_nanoseconds(5_000_000),
            dispersion_rate: Ppm::FREQUENCY_TOLERANCE,
            reference_timestamp: NOW - NtpDuration::from_seconds(1000),
            ..SystemSnapshot::unsynchronised(Log2Seconds(-20))
        }
    }

    fn server() -> BroadcastServer {
        BroadcastServer::new(BroadcastOptions::default())
    }

    /// RFC 5905 section 8: mode 5, origin and receive timestamp zero; the transmit timestamp is the shell's to write.
    /// Checklist 68.
    #[test]
    fn a_broadcast_packet_answers_nobody_and_tells_all_we_know() {
        let header = server().packet(&synchronised(), NOW).unwrap();
        assert_eq!((header.mode(), header.leap(), header.stratum), (Mode::Broadcast, Leap::None, 2));
        assert_eq!(header.origin_timestamp(), NtpTimestamp::UNKNOWN);
        assert_eq!(header.receive_timestamp(), NtpTimestamp::UNKNOWN);
        assert_eq!(header.poll(), BroadcastOptions::default().interval);
        assert_eq!(header.reference_id, ReferenceId([10, 99, 0, 9]));
        let dispersion = header.root_dispersion().to_duration().seconds();
        assert!((0.020..0.0201).contains(&dispersion), "{dispersion} s: 5 ms, and 15 ppm of 1000 s");
    }

    /// RFC 5905 A.5.7.1: only while synchronised. Checklist 44.
    #[test]
    fn nothing_is_said_while_we_do_not_know_the_time() {
        assert_eq!(server().packet(&SystemSnapshot::unsynchronised(Log2Seconds(-20)), NOW), None);
    }
}
