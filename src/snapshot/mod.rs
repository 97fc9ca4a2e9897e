//! What the server says of its clock: [`SystemSnapshot`], and the seqlock through which the control thread
//! publishes it and every worker reads it.
//!
//! Owns: the value and its cell. Does not own: how the value comes about.
//!
//! The one idea a newcomer lacks: a reader never blocks the writer nor the other readers. It copies the words
//! and looks at the sequence number before and after; if the writer was there meanwhile, it copies again. The
//! words are atomics, so that this needs no `unsafe`.

mod cell;

pub use cell::SnapshotCell;

use crate::time::{Log2Seconds, NtpDuration, NtpShort, NtpTimestamp, Ppm};
use crate::wire::{Leap, ReferenceId};

/// Which instance (network namespace or VRF) something belongs to. The same address in two instances is two hosts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct InstanceId(pub u16);

/// The state of our clock as a reply tells it (RFC 5905 section 11.2.3, the system variables).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SystemSnapshot {
    /// Leap indicator.
    pub leap: Leap,
    /// Stratum: 1 to 15, or 0 for unsynchronised (as on the wire).
    pub stratum: u8,
    /// What we are synchronised to.
    pub reference_id: ReferenceId,
    /// In which instance that stands for an address; `None`: it stands for none, and means the same everywhere.
    pub reference_instance: Option<InstanceId>,
    /// What those in other instances are told instead.
    pub reference_id_elsewhere: ReferenceId,
    /// Precision of our clock.
    pub precision: Log2Seconds,
    /// Delay to the primary source, >= 0.
    pub root_delay: NtpDuration,
    /// Dispersion to the primary source at `reference_timestamp`, >= 0.
    pub root_dispersion: NtpDuration,
    /// How fast the dispersion grows from then on.
    pub dispersion_rate: Ppm,
    /// When the clock was last compared with its reference.
    pub reference_timestamp: NtpTimestamp,
}

impl SystemSnapshot {
    /// A clock that nobody keeps: leap 3, stratum 16 (0 on the wire), no reference, and a dispersion of 16 s
    /// (MAXDISP of RFC 5905 section 7.2), so that even a client that looks at nothing else turns away.
    #[must_use]
    pub const fn unsynchronised(precision: Log2Seconds) -> Self {
        Self {
            leap: Leap::Unsynchronised,
            stratum: 0,
            reference_id: ReferenceId([0; 4]),
            reference_instance: None,
            reference_id_elsewhere: ReferenceId::NOBODY,
            precision,
            root_delay: NtpDuration::ZERO,
            root_dispersion: NtpDuration::from_seconds(16),
            dispersion_rate: Ppm::ZERO,
            reference_timestamp: NtpTimestamp::UNKNOWN,
        }
    }

    /// What those in an instance are told that we are synchronised to. An address of another instance means another host
    /// to them, perhaps themselves, and they would turn away from us as from a loop: they are told one that is nobody's.
    #[must_use]
    #[inline]
    pub fn reference_id_in(&self, instance: InstanceId) -> ReferenceId {
        match self.reference_instance {
            Some(other) if other != instance => self.reference_id_elsewhere,
            _ => self.reference_id,
        }
    }

    /// As those in an instance are to see it.
    #[must_use]
    pub fn seen_from(&self, instance: InstanceId) -> Self {
        Self { reference_id: self.reference_id_in(instance), ..*self }
    }

    /// Is there a reference?
    #[must_use]
    pub const fn is_synchronised(&self) -> bool {
        !matches!(self.leap, Leap::Unsynchronised)
    }

    /// The root dispersion at a later time, rounded up onto the wire.
    #[must_use]
    pub fn root_dispersion_at(&self, time: NtpTimestamp) -> NtpShort {
        let age = time - self.reference_timestamp;
        let growth = match NtpShort::from_duration_rounded_up(age) {
            // 18 hours, which is half of the longest poll interval.
            NtpShort::MAX => growth_of_days(age, self.dispersion_rate),
            age => age.growth(self.dispersion_rate),
        };
        NtpShort::from_duration_rounded_up(self.root_dispersion + growth)
    }
}

/// Of an age that is beyond [`NtpShort`]. Apart, since it is rare and every reply would pay for it.
#[cold]
#[inline(never)]
fn growth_of_days(age: NtpDuration, rate: Ppm) -> NtpDuration {
    age * rate
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_another_instance_is_told_to_nobody() {
        let (red, blue) = (InstanceId(0), InstanceId(1));
        let reference_id = ReferenceId([10, 99, 0, 1]);
        let of = |reference_instance| SystemSnapshot {
            reference_id,
            reference_instance,
            ..SystemSnapshot::unsynchronised(Log2Seconds(-20))
        };
        let told = |instance| [red, blue].map(|to| of(instance).seen_from(to).reference_id);
        assert_eq!(told(Some(red)), [reference_id, ReferenceId::NOBODY]);
        assert_eq!(told(Some(blue)), [ReferenceId::NOBODY, reference_id]);
        assert_eq!(told(None), [reference_id, reference_id], "a name, or made up");
    }

    #[test]
    fn dispersion_grows_from_the_reference_time_on() {
        let reference = NtpTimestamp::from_bits(7 << 32);
        let snapshot = SystemSnapshot {
            root_dispersion: NtpDuration::from_nanoseconds(1_000_000),
            dispersion_rate: Ppm::FREQUENCY_TOLERANCE,
            reference_timestamp: reference,
            ..SystemSnapshot::unsynchronised(Log2Seconds(-20))
        };
        let at = |seconds| {
            snapshot
                .root_dispersion_at(reference + NtpDuration::from_seconds(seconds))
                .to_duration()
                .seconds()
        };
        assert!((0.001..0.001_02).contains(&at(0)), "{}", at(0));
        assert!((0.016..0.016_02).contains(&at(1000)), "{}", at(1000));
        assert_eq!(at(-5), at(0), "a clock that was stepped back does not shrink its error");
        // 28 and 56 hours: a server that is polled every 36 hours may be silent for so long.
        assert!((1.501..1.501_1).contains(&at(100_000)), "{}", at(100_000));
        assert!((3.001..3.001_1).contains(&at(200_000)), "{}", at(200_000));
    }
}
