//! The client side: judges what the sources say and decides what the clock is told. Deterministic; reads no
//! clock.
//!
//! Owns: a [`sample`] from one exchange, the clock [`filter`] of one source, and over all sources [`select`],
//! which runs the intersection, the [`cluster`] and the [`combine`] algorithm (RFC 5905 sections 10 and 11.2)
//! and gives every source its [`state`]. Does not own: packets, the clock, files, threads.
//!
//! The one idea a newcomer lacks: nobody here knows the true time. Every source claims an interval, its
//! offset plus or minus its root distance, and the true offset is taken to lie where the intervals of a
//! majority meet. A source outside is a falseticker however good its numbers look; a source inside only
//! competes about weight. So an error bound that is too small is a lie that can outvote the truth: every
//! bound here is rounded up, and grows with time.

pub mod cluster;
pub mod combine;
pub mod filter;
pub mod intersection;
pub mod sample;
pub mod select;
pub mod state;
