//! The clock as whoever disciplines it sees it: something to be stepped, made faster or slower, and spoken for.
//!
//! Owns: [`Clock`] and its implementations: the kernel's clock, and one that is left alone. Does not own: the decision,
//! nor reading the time.

use crate::sys::clock::{self, KernelLeap};
use crate::time::{NtpDuration, Ppm};
use std::fmt;
use std::io;

/// What is told to other programs about the clock (adjtimex(2)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// The leap second to come.
    pub leap: KernelLeap,
    /// A bound on the error, >= 0.
    pub maximum_error: NtpDuration,
    /// The error that is expected, >= 0.
    pub estimated_error: NtpDuration,
}

/// A clock that can be steered.
pub trait Clock: fmt::Debug {
    /// Steps it forward (positive) or back.
    ///
    /// # Errors
    /// It would not: then it is where it was.
    fn step(&mut self, by: NtpDuration) -> io::Result<()>;

    /// Makes it run so much faster (positive) than its oscillator, from now on.
    ///
    /// # Errors
    /// It would not: then it runs as before.
    fn set_frequency(&mut self, frequency: Ppm) -> io::Result<()>;

    /// Tells other programs how well it is kept; `None`: it is not.
    ///
    /// # Errors
    /// They cannot be told.
    fn declare(&mut self, kept: Option<Kept>) -> io::Result<()>;

    /// May it be steered at all?
    fn is_ours(&self) -> bool;
}

/// `CLOCK_REALTIME`.
#[derive(Debug)]
pub struct SystemClock(());

impl SystemClock {
    /// The clock, if this process may steer it; it runs as before.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_TIME.
    pub fn open() -> io::Result<Self> {
        let frequency = clock::kernel_clock_state()?.frequency;
        clock::set_clock_frequency(frequency)?;
        Ok(Self(()))
    }
}

impl Clock for SystemClock {
    fn step(&mut self, by: NtpDuration) -> io::Result<()> {
        clock::step_clock(by)
    }

    fn set_frequency(&mut self, frequency: Ppm) -> io::Result<()> {
        clock::set_clock_frequency(frequency)
    }

    fn declare(&mut self, kept: Option<Kept>) -> io::Result<()> {
        clock::declare_clock(kept.map(|kept| (kept.leap, kept.maximum_error, kept.estimated_error)))
    }

    fn is_ours(&self) -> bool {
        true
    }
}

/// A clock that somebody else keeps, or nobody (`--no-clock-control`): it is measured and never touched.
#[derive(Clone, Copy, Debug)]
pub struct UntouchedClock;

impl Clock for UntouchedClock {
    fn step(&mut self, _: NtpDuration) -> io::Result<()> {
        Ok(())
    }

    fn set_frequency(&mut self, _: Ppm) -> io::Result<()> {
        Ok(())
    }

    fn declare(&mut self, _: Option<Kept>) -> io::Result<()> {
        Ok(())
    }

    fn is_ours(&self) -> bool {
        false
    }
}
