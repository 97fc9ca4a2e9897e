//! The machine's clocks, and what the kernel says about how well its own is kept.
//!
//! Owns: reading `CLOCK_REALTIME`, `CLOCK_TAI` and `CLOCK_MONOTONIC`, measuring how finely they tell time,
//! `adjtimex` with no mode bit set, and `clock_adjtime` to steer `CLOCK_REALTIME`. Does not own: the decision to.
//!
//! The one idea a newcomer lacks: `adjtimex` with `modes = 0` needs no privilege and changes nothing. Its return
//! value and status bits are how one time daemon (chronyd with `rtcsync`, ntpd) tells every other program that
//! the clock is synchronised.

use crate::time::{Log2Seconds, Monotonic, NtpDuration, Ppm, Realtime, Scale, Tai, Timestamp};
use std::io;
use std::mem::MaybeUninit;

/// How many reads [`measure_precision`] makes at most: some 20 ms where a read takes 20 ns, which sees a clock
/// that ticks as rarely as a 100 Hz timer interrupt.
const PRECISION_READS_MAX: u32 = 1_000_000;

/// After how many ticks [`measure_precision`] is content.
const PRECISION_TICKS: u32 = 1_000;

/// What a clock that never moved while we looked is taken to tell: 2^-20 s, about a microsecond. Only a
/// simulator's clock stands still like that.
const PRECISION_OF_A_STANDING_CLOCK: Log2Seconds = Log2Seconds(-20);

/// How often [`tai_minus_realtime`] tries to read both clocks in one go.
const OFFSET_ATTEMPTS_MAX: u32 = 10;

/// How long that may take: far below the half second that rounding bears.
const OFFSET_WINDOW_NANOSECONDS: i64 = 100_000_000;

/// Now by `CLOCK_REALTIME`: UTC as the kernel keeps it.
#[must_use]
pub fn realtime() -> Timestamp<Realtime> {
    read(libc::CLOCK_REALTIME).expect("POSIX demands CLOCK_REALTIME, and the pointer is ours")
}

/// Now by `CLOCK_TAI`; `None` where it is refused (time simulators know only the older clocks).
///
/// It is UTC plus the kernel's TAI offset, so it equals [`realtime`] until somebody sets that offset.
#[must_use]
pub fn tai() -> Option<Timestamp<Tai>> {
    read(libc::CLOCK_TAI)
}

/// Now by `CLOCK_MONOTONIC`: time since boot, slewed with the clock but never stepped.
#[must_use]
pub fn monotonic() -> Timestamp<Monotonic> {
    read(libc::CLOCK_MONOTONIC).expect("Linux always has CLOCK_MONOTONIC, and the pointer is ours")
}

/// `CLOCK_TAI` minus `CLOCK_REALTIME` right now: whole seconds, 37 since 2017 if the kernel was told, otherwise 0.
/// `None` where `CLOCK_TAI` is refused (or where we never get to run for long enough to read two clocks).
///
/// Subtract it from a TAI stamp to get the realtime one. It changes at a leap second. It is read from the clocks
/// and not from `adjtimex`, since it is the clocks' stamps that it must translate.
#[must_use]
pub fn tai_minus_realtime() -> Option<NtpDuration> {
    for _ in 0..OFFSET_ATTEMPTS_MAX {
        let before = realtime();
        let tai = tai()?;
        // Descheduled or stepped between the reads, the nearest whole second could be the wrong one.
        if (0..OFFSET_WINDOW_NANOSECONDS).contains(&realtime().nanoseconds_since(before)) {
            let difference = tai.nanoseconds().saturating_sub(before.nanoseconds());
            let seconds = difference.saturating_add(500_000_000).div_euclid(1_000_000_000);
            return Some(NtpDuration::from_seconds(seconds));
        }
    }
    None
}

/// How finely `CLOCK_REALTIME` can be told, as RFC 5905 section 7.3 wants it: the time it takes to read the clock
/// or its tick, whichever is longer, rounded up to a power of two.
///
/// Both are one number: the smallest step between two readings that differ. Takes from 40 us to some 20 ms.
#[must_use]
pub fn measure_precision() -> Log2Seconds {
    smallest_step(|| realtime().nanoseconds()).map_or(PRECISION_OF_A_STANDING_CLOCK, |step| {
        Log2Seconds::at_least(NtpDuration::from_nanoseconds(step))
    })
}

/// The smallest step forward, in nanoseconds, of a clock that is read over and over; `None` if it stands still.
fn smallest_step(mut read_nanoseconds: impl FnMut() -> i64) -> Option<i64> {
    let mut smallest = None;
    let mut ticks = 0;
    let mut before = read_nanoseconds();
    for _ in 0..PRECISION_READS_MAX {
        let now = read_nanoseconds();
        // A step backwards is somebody setting the clock, not a tick.
        if now > before {
            let step = now.saturating_sub(before);
            smallest = Some(smallest.map_or(step, |least: i64| least.min(step)));
            ticks += 1;
            if ticks == PRECISION_TICKS {
                break;
            }
        }
        before = now;
    }
    smallest
}

fn read<S: Scale>(clock: libc::clockid_t) -> Option<Timestamp<S>> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a live timespec that this call alone writes to.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    (result == 0).then(|| from_timespec(time.tv_sec, time.tv_nsec))
}

/// A stamp from the kernel's pair of seconds and nanoseconds, saturating at the range of [`Timestamp`].
pub(super) const fn from_timespec<S: Scale>(seconds: i64, nanoseconds: i64) -> Timestamp<S> {
    Timestamp::from_nanoseconds(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
}

/// What the kernel has been told about the leap second at the end of this UTC day.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum KernelLeap {
    /// None is due (`TIME_OK`, or `TIME_WAIT`: one has just happened).
    #[default]
    None,
    /// The day's last minute will have 61 seconds (`TIME_INS`).
    Insert,
    /// The day's last minute will have 59 seconds (`TIME_DEL`).
    Delete,
    /// The inserted second is passing right now; `CLOCK_REALTIME` repeats it (`TIME_OOP`).
    InProgress,
}

/// What the kernel knows about its own clock, from `adjtimex` (see adjtimex(2)). By default: not synchronised.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct KernelClockState {
    /// Does somebody keep the clock? False with `STA_UNSYNC` set or state `TIME_ERROR`.
    pub synchronised: bool,
    /// The leap second to announce; [`KernelLeap::None`] while the kernel returns `TIME_ERROR`.
    pub leap: KernelLeap,
    /// A bound on the clock's error that grows by 500 ppm until it is set anew; the kernel's `maxerror`,
    /// which stops at 16 s and then sets `STA_UNSYNC`.
    pub maximum_error: NtpDuration,
    /// What the clock's keeper expects its error to be; `esterror`.
    pub estimated_error: NtpDuration,
    /// TAI minus UTC as the kernel was told, in whole seconds; 0 until then.
    pub tai_offset: NtpDuration,
    /// How much faster (positive) or slower (negative) than its oscillator the clock is made to run.
    pub frequency: Ppm,
    /// The `STA_*` bits, for messages.
    pub status: i32,
}

/// Asks the kernel about its clock, changing nothing.
///
/// # Errors
/// Whatever `adjtimex` says; on Linux reading is allowed to everybody, so this is a sandbox's refusal.
pub fn kernel_clock_state() -> io::Result<KernelClockState> {
    let mut timex = MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: the pointer is to a whole timex, zeroed, so `modes` is 0 and the kernel only writes its answer.
    let state = unsafe { libc::adjtimex(timex.as_mut_ptr()) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: timex consists of integers only, for which the zeros that it began with are valid.
    let timex = unsafe { timex.assume_init() };
    Ok(interpret(state, &timex))
}

/// Makes the clock run so much faster (positive) than its oscillator. The kernel takes 500 ppm either way; what is beyond
/// comes out as that.
///
/// # Errors
/// EPERM without CAP_SYS_TIME.
pub fn set_clock_frequency(frequency: Ppm) -> io::Result<()> {
    adjust(|timex| {
        timex.modes = libc::ADJ_FREQUENCY;
        timex.freq = scaled(frequency);
    })
}

/// Steps the clock forward (positive) or back.
///
/// # Errors
/// EPERM without CAP_SYS_TIME; EINVAL if the time would be none.
pub fn step_clock(by: NtpDuration) -> io::Result<()> {
    let nanoseconds = by.to_nanoseconds();
    adjust(|timex| {
        timex.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
        timex.time.tv_sec = nanoseconds.div_euclid(1_000_000_000);
        // Nanoseconds, as ADJ_NANO says.
        timex.time.tv_usec = nanoseconds.rem_euclid(1_000_000_000);
    })
}

/// Tells the kernel, and through it every program, how well its clock is kept: the leap second at the end of this UTC day,
/// and a bound on the error and the error that is expected, both not negative. `None`: nobody keeps it. The kernel's own
/// PLL is switched off, since whoever calls this steers by [`set_clock_frequency`].
///
/// # Errors
/// EPERM without CAP_SYS_TIME.
pub fn declare_clock(kept: Option<(KernelLeap, NtpDuration, NtpDuration)>) -> io::Result<()> {
    adjust(|timex| {
        timex.modes = libc::ADJ_STATUS;
        let Some((leap, maximum_error, estimated_error)) = kept else {
            timex.status = libc::STA_UNSYNC;
            return;
        };
        timex.modes |= libc::ADJ_MAXERROR | libc::ADJ_ESTERROR;
        timex.status = match leap {
            KernelLeap::Insert => libc::STA_INS,
            KernelLeap::Delete => libc::STA_DEL,
            KernelLeap::None | KernelLeap::InProgress => 0,
        };
        timex.maxerror = microseconds_rounded_up(maximum_error);
        timex.esterror = microseconds_rounded_up(estimated_error);
    })
}

fn adjust(fill: impl FnOnce(&mut libc::timex)) -> io::Result<()> {
    // SAFETY: timex consists of integers only, for which zero is valid.
    let mut timex: libc::timex = unsafe { MaybeUninit::zeroed().assume_init() };
    fill(&mut timex);
    // SAFETY: the pointer is to a whole timex, which this call alone uses.
    let state = unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, &raw mut timex) };
    if state < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The kernel's scale: parts per million times 2^16, at most 500 of them.
fn scaled(frequency: Ppm) -> libc::c_long {
    (frequency.ppm().clamp(-500.0, 500.0) * 65_536.0).round() as libc::c_long
}

const fn microseconds_rounded_up(duration: NtpDuration) -> libc::c_long {
    let nanoseconds = duration.to_nanoseconds();
    if nanoseconds <= 0 { 0 } else { (nanoseconds.saturating_add(999) / 1000) as libc::c_long }
}

fn interpret(state: libc::c_int, timex: &libc::timex) -> KernelClockState {
    let leap = match state {
        libc::TIME_INS => KernelLeap::Insert,
        libc::TIME_DEL => KernelLeap::Delete,
        libc::TIME_OOP => KernelLeap::InProgress,
        _ => KernelLeap::None,
    };
    KernelClockState {
        synchronised: timex.status & libc::STA_UNSYNC == 0 && state != libc::TIME_ERROR,
        leap,
        maximum_error: from_microseconds(timex.maxerror),
        estimated_error: from_microseconds(timex.esterror),
        tai_offset: NtpDuration::from_seconds(i64::from(timex.tai)),
        // The kernel scales parts per million by 2^16.
        frequency: Ppm::from_ppm(timex.freq as f64 / 65_536.0),
        status: timex.status,
    }
}

const fn from_microseconds(microseconds: i64) -> NtpDuration {
    NtpDuration::from_nanoseconds(microseconds.saturating_mul(1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_run_and_differ_by_whole_seconds() {
        let before = monotonic();
        assert!(monotonic().nanoseconds_since(before) >= 0);
        // 2026-01-01: the machine that runs this is later than the one that wrote it.
        assert!(realtime().nanoseconds() > 1_767_225_600_000_000_000);
        let difference = tai_minus_realtime().expect("this kernel has CLOCK_TAI");
        assert_eq!(difference, kernel_clock_state().unwrap().tai_offset);
    }

    #[test]
    fn precision_is_the_tick_of_a_coarse_clock_and_the_reading_time_of_a_fine_one() {
        let mut reads = 0;
        let coarse = smallest_step(|| {
            reads += 1;
            reads / 100 * 4_000_000
        });
        assert_eq!(coarse, Some(4_000_000));
        let mut now = 0;
        let fine = smallest_step(|| {
            now += if now % 3 == 0 { 32 } else { 31 };
            now
        });
        assert_eq!(fine, Some(31));
        assert_eq!(smallest_step(|| 7), None);
    }

    #[test]
    fn precision_of_this_machine_is_believable() {
        let precision = measure_precision();
        assert!((-32..=-6).contains(&precision.0), "{precision:?}");
    }

    #[test]
    fn frequencies_and_errors_are_in_the_kernels_units() {
        // Ppm counts 2^-32, which is 15 of the kernel's units.
        assert!((scaled(Ppm::from_ppm(1.0)) - 65_536).abs() <= 8);
        assert!((scaled(Ppm::from_ppm(-12.5)) + 819_200).abs() <= 8);
        assert_eq!(scaled(Ppm::from_ppm(9e9)), 500 << 16);
        assert_eq!(microseconds_rounded_up(NtpDuration::from_nanoseconds(1_001)), 2);
        assert_eq!(microseconds_rounded_up(NtpDuration::from_seconds(-1)), 0);
    }

    #[test]
    fn unsync_or_time_error_is_not_synchronised() {
        // SAFETY: timex consists of integers only, for which zero is valid.
        let mut timex: libc::timex = unsafe { MaybeUninit::zeroed().assume_init() };
        assert!(interpret(libc::TIME_OK, &timex).synchronised);
        assert!(!interpret(libc::TIME_ERROR, &timex).synchronised);
        timex.status = libc::STA_UNSYNC | libc::STA_PLL;
        assert!(!interpret(libc::TIME_OK, &timex).synchronised);
    }

    #[test]
    fn kernel_units_and_leap_states_are_translated() {
        // SAFETY: timex consists of integers only, for which zero is valid.
        let mut timex: libc::timex = unsafe { MaybeUninit::zeroed().assume_init() };
        timex.freq = -(12 << 16);
        timex.maxerror = 16_000_000;
        timex.esterror = 250;
        timex.tai = 37;
        let state = interpret(libc::TIME_INS, &timex);
        assert_eq!(state.leap, KernelLeap::Insert);
        assert_eq!(state.maximum_error, NtpDuration::from_seconds(16));
        assert_eq!(state.estimated_error, NtpDuration::from_nanoseconds(250_000));
        assert_eq!(state.tai_offset, NtpDuration::from_seconds(37));
        assert!((state.frequency.ppm() + 12.0).abs() < 1e-3);
        assert_eq!(interpret(libc::TIME_DEL, &timex).leap, KernelLeap::Delete);
        assert_eq!(interpret(libc::TIME_OOP, &timex).leap, KernelLeap::InProgress);
        assert_eq!(interpret(libc::TIME_WAIT, &timex).leap, KernelLeap::None);
    }
}
