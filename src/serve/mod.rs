//! The server: bytes in, a prepared reply or a named refusal out. Deterministic; reads no clock.
//!
//! Owns: what a client gets and why, who may ask ([`access`]), how often ([`limit`]), and who did ([`clients`]).
//! Does not own: sockets, rings, the clock, threads. Each is an argument or a caller.
//!
//! The one idea a newcomer lacks: the reply is written over the request, in the buffer the request came in. So
//! a reply can never be longer than its request, no extension field can be echoed by mistake, and nothing is
//! allocated or copied between buffers.

pub mod access;
pub mod clients;
mod distinct;
mod frame;
mod identity;
pub mod limit;
mod refusal;
mod respond;
mod signed;
#[doc(hidden)]
pub mod testing;

pub use frame::{PreparedFrame, RequestFrame};
pub use refusal::Refusal;
pub use respond::{Arrival, Policy, Prepared, Responder};
