//! Clocks as the server sees them.
//!
//! Owns, for now: what the served time is worth when somebody else keeps the machine's clock ([`Reference`]).
//! Does not own: reading any clock; the kernel's answer is an argument, so that every state can be injected.

mod reference;

pub use reference::{Reference, ReferenceKind, Trouble};
