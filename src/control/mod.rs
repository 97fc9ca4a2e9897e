//! The client side: judges what the sources say. Deterministic; reads no clock.
//!
//! Owns: a [`sample`] from one exchange and the clock [`filter`] of one source (RFC 5905 sections 8 and 10).
//! Does not own: packets, the clock, files, threads.
//!
//! The one idea a newcomer lacks: an error bound that is too small is a lie that can outvote the truth. So
//! every bound here is rounded up, and grows with time.

pub mod filter;
pub mod sample;
