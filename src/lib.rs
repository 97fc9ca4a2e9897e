#![doc = include_str!("../README.md")]

pub mod auth;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
#[cfg(feature = "load")]
pub mod load;
pub mod metrics;
pub mod serve;
pub mod snapshot;
pub mod sys;
pub mod time;
pub mod wire;
