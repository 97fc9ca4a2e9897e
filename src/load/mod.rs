//! The load generator: many simulated NTP clients, every reply checked, latencies in histograms.
//!
//! Owns: the plan of a run, the requests, the judgement of replies, the engines that carry them, and the record of what
//! was measured, as JSON, HdrHistogram log and page. Does not own: flags and tables (`cli`).
//!
//! The one idea a newcomer lacks: load is *open-loop*. Each request has an intended time that no reply can move, and
//! latency counts from there. A server that stalls for a second is charged for every request of that second, not just
//! for the one a waiting client would have had in flight (the mistake called coordinated omission).

pub mod af_xdp;
mod alone;
pub mod choose;
pub mod clients;
pub(crate) mod digits;
pub mod encoded;
pub mod engine;
pub mod hdr_log;
pub mod judge;
pub mod link;
pub mod live_frames;
pub mod page;
pub mod plan;
pub mod record;
pub mod redirect;
pub mod request;
pub mod resolve;
pub mod run;
pub mod scope;
pub mod tally;
#[cfg(test)]
pub(crate) mod testing;
pub mod xsk;
