//! Threads, signals and wiring: the place where the parts become a running server.
pub mod control_socket;
pub mod counters;
pub mod exchange;
pub mod report;
pub mod stamps;
