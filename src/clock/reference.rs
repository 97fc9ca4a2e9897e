//! Where the served time comes from as long as this daemon steers no clock itself.
//!
//! The one idea a newcomer lacks: with `--reference system` the kernel is the messenger. chronyd (with
//! `rtcsync`), ptp4l's phc2sys or ntpd tell the kernel by `adjtimex` that its clock is synchronised and how wrong
//! it can be; the kernel says so to whoever asks, and withdraws it by itself when nobody renews it.

use crate::snapshot::SystemSnapshot;
use crate::sys::clock::{KernelClockState, KernelLeap};
use crate::time::{Log2Seconds, NtpDuration, Ppm, Realtime, Timestamp};
use crate::wire::{Leap, ReferenceId};
use std::fmt;

/// Which reference is configured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReferenceKind {
    /// The machine's own clock, right by definition (chrony's `local`).
    Local,
    /// The kernel's clock, as good as the kernel says.
    System,
    /// None: stratum 16.
    None,
}

/// A reference and how it presents itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reference {
    /// Which one.
    pub kind: ReferenceKind,
    /// The stratum served while it is good, 1 to 15.
    pub stratum: u8,
    /// The reference id served while it is good.
    pub reference_id: ReferenceId,
}

/// Why the served stratum is 16.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Nothing is configured.
    NoReference,
    /// The kernel says that its clock is not synchronised.
    KernelUnsynchronised,
    /// The kernel says so only by an error bound beyond MAXDISP (16 s).
    ErrorTooLarge(NtpDuration),
    /// The kernel could not be asked.
    KernelSilent(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoReference => formatter.write_str(
                "no time reference is configured, so stratum 16 is served; \
                 give --upstream HOST, --reference system or --local-stratum N",
            ),
            Self::KernelUnsynchronised => formatter.write_str(
                "the kernel says that its clock is not synchronised, so stratum 16 is served; \
                 likely cause: nothing keeps it, or chronyd does without `rtcsync` in its configuration",
            ),
            Self::ErrorTooLarge(error) => write!(
                formatter,
                "the kernel's clock may be wrong by {:.1} s, so stratum 16 is served",
                error.seconds()
            ),
            Self::KernelSilent(error) => {
                write!(formatter, "adjtimex failed ({error}), so stratum 16 is served")
            }
        }
    }
}

/// MAXDISP of RFC 5905 section 7.2: a clock this wrong is none.
const ERROR_MAX: NtpDuration = NtpDuration::from_seconds(16);

impl Reference {
    /// What to serve now, and why it is not time if it is not. `kernel` is the answer of adjtimex, or its error;
    /// only [`ReferenceKind::System`] looks at it.
    #[must_use]
    pub fn snapshot(
        &self,
        kernel: &Result<KernelClockState, String>,
        now: Timestamp<Realtime>,
        precision: Log2Seconds,
    ) -> (SystemSnapshot, Option<Trouble>) {
        let good = |leap, root_dispersion| SystemSnapshot {
            leap,
            stratum: self.stratum,
            reference_id: self.reference_id,
            reference_instance: None,
            reference_id_elsewhere: ReferenceId::NOBODY,
            precision,
            root_delay: NtpDuration::ZERO,
            root_dispersion,
            dispersion_rate: Ppm::FREQUENCY_TOLERANCE,
            reference_timestamp: now.to_ntp(),
        };
        match self.judge(kernel) {
            Ok((leap, dispersion)) => (good(leap, dispersion), None),
            Err(trouble) => (SystemSnapshot::unsynchronised(precision), Some(trouble)),
        }
    }

    fn judge(&self, kernel: &Result<KernelClockState, String>) -> Result<(Leap, NtpDuration), Trouble> {
        match self.kind {
            ReferenceKind::None => Err(Trouble::NoReference),
            ReferenceKind::Local => Ok((Leap::None, NtpDuration::ZERO)),
            ReferenceKind::System => match kernel {
                Err(error) => Err(Trouble::KernelSilent(error.clone())),
                Ok(state) if !state.synchronised => Err(Trouble::KernelUnsynchronised),
                Ok(state) if state.maximum_error >= ERROR_MAX => {
                    Err(Trouble::ErrorTooLarge(state.maximum_error))
                }
                Ok(state) => Ok((announced(state.leap), state.maximum_error)),
            },
        }
    }
}

/// The leap second to announce. Once it is being inserted, it is announced no more.
const fn announced(leap: KernelLeap) -> Leap {
    match leap {
        KernelLeap::Insert => Leap::Insert,
        KernelLeap::Delete => Leap::Delete,
        KernelLeap::None | KernelLeap::InProgress => Leap::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp<Realtime> = Timestamp::from_nanoseconds(1_800_000_000_000_000_000);
    const PRECISION: Log2Seconds = Log2Seconds(-24);

    fn reference(kind: ReferenceKind) -> Reference {
        Reference { kind, stratum: 3, reference_id: ReferenceId([127, 127, 1, 1]) }
    }

    fn kernel() -> KernelClockState {
        KernelClockState {
            synchronised: true,
            leap: KernelLeap::None,
            maximum_error: NtpDuration::from_nanoseconds(1_500_000),
            ..KernelClockState::default()
        }
    }

    #[test]
    fn a_synchronised_kernel_is_served_with_its_error() {
        let (snapshot, trouble) = reference(ReferenceKind::System).snapshot(&Ok(kernel()), NOW, PRECISION);
        assert_eq!(trouble, None);
        assert_eq!((snapshot.leap, snapshot.stratum), (Leap::None, 3));
        assert_eq!(snapshot.root_dispersion, NtpDuration::from_nanoseconds(1_500_000));
        assert_eq!(snapshot.reference_timestamp, NOW.to_ntp());
    }

    #[test]
    fn announced_leap_seconds_are_passed_on() {
        for (leap, expected) in [
            (KernelLeap::None, Leap::None),
            (KernelLeap::Insert, Leap::Insert),
            (KernelLeap::Delete, Leap::Delete),
            (KernelLeap::InProgress, Leap::None),
        ] {
            let state = KernelClockState { leap, ..kernel() };
            let (snapshot, _) = reference(ReferenceKind::System).snapshot(&Ok(state), NOW, PRECISION);
            assert_eq!(snapshot.leap, expected);
        }
    }

    #[test]
    fn every_trouble_serves_stratum_16_and_names_its_cause() {
        let unsynchronised = KernelClockState { synchronised: false, ..kernel() };
        let wrong = KernelClockState { maximum_error: NtpDuration::from_seconds(16), ..kernel() };
        let cases = [
            (ReferenceKind::None, Ok(kernel()), "--reference system"),
            (ReferenceKind::System, Ok(unsynchronised), "chronyd does without `rtcsync`"),
            (ReferenceKind::System, Ok(wrong), "wrong by 16.0 s"),
            (ReferenceKind::System, Err("EPERM".to_owned()), "adjtimex failed (EPERM)"),
        ];
        for (kind, kernel, words) in cases {
            let (snapshot, trouble) = reference(kind).snapshot(&kernel, NOW, PRECISION);
            assert_eq!((snapshot.leap, snapshot.stratum), (Leap::Unsynchronised, 0));
            let line = trouble.unwrap().to_string();
            assert!(line.contains(words) && line.contains("stratum 16"), "{line}");
        }
    }

    #[test]
    fn a_local_reference_does_not_ask_the_kernel() {
        let (snapshot, trouble) =
            reference(ReferenceKind::Local).snapshot(&Err("refused".to_owned()), NOW, PRECISION);
        assert_eq!((snapshot.leap, snapshot.stratum, trouble), (Leap::None, 3, None));
    }
}
