//! A simulated network: hosts with clocks of their own, wires that lose, delay, duplicate and reorder, and the very
//! controller that runs in the daemon. Hours pass in milliseconds, and a seed repeats a run.
//!
//! A scenario is the few values that differ from [`scenario::Scenario::default`].

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod clock;
mod daemon;
mod faults;
mod network;
#[path = "../common/random.rs"]
mod random;
mod scenario;
mod server;
mod world;

mod broadcast;
mod falsetickers;
mod faulty;
mod faulty_peer;
mod following;
mod instances;
mod kisses;
mod manycast;
mod one_server;
mod pools;
mod replay;
mod symmetric;
mod wrong_keys;
