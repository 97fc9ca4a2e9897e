//! Threads, signals and wiring: the place where the parts become a running server.
//!
//! Owns: the control thread (this module's [`serve`]), the workers, and how they hear of each other.
//! Does not own: what is answered (`serve`), how bytes move (`datapath`), what is configured (`config`).
//!
//! The one idea a newcomer lacks: there is one thread that knows everything and serves nobody, and workers that
//! know only what they serve. What the first has to say reaches the others by value: the snapshot of the clock
//! through a seqlock, queues and questions through a mailbox, sockets through the group they belong to.

pub mod associations;
pub mod control_socket;
mod conversation;
pub mod counters;
mod crew;
mod drops;
mod error;
pub mod exchange;
mod instance;
pub mod keys;
mod links;
mod news;
mod pace;
mod place;
#[cfg(feature = "metrics")]
pub mod prometheus;
mod questions;
pub mod report;
mod server;
mod setup;
pub mod stamps;
mod worker;

pub use error::ServeError;
pub use place::Place;
pub use server::serve;
pub use setup::check_machine;
