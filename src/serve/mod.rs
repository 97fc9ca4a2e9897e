//! The server: bytes in, a prepared reply or a named refusal out. Deterministic; reads no clock.

pub mod access;
pub mod clients;
mod distinct;
mod identity;
pub mod limit;
