//! Unit types for time, written once so that no function has to guess.
//!
//! Owns: points in time ([`NtpTimestamp`] on the wire, [`Timestamp`] of one clock in memory), differences
//! ([`NtpDuration`], [`NtpShort`]), frequency ([`Ppm`]) and the protocol's powers of two ([`Log2Seconds`]).
//! Does not own: any clock. Nothing here reads the time.
//!
//! The one idea a newcomer lacks: an NTP timestamp wraps every 136 years (next on 2036-02-07), so it has no
//! order. Two of them only have a *difference*, which is right as long as they are less than 68 years apart
//! (RFC 5905 section 6). Clocks of different scales are different types and do not subtract.

mod duration;
mod scale;
mod timestamp;

pub use duration::{Log2Seconds, NtpDuration, NtpShort, Ppm, WithUnit};
pub use scale::{Monotonic, Realtime, Scale, Tai, Timestamp};
pub use timestamp::NtpTimestamp;
