//! The client side: whom we ask, what we believe, and what becomes of the clock. Deterministic; reads no clock.
//!
//! Owns: associations of every mode, the tests a packet must pass, when to ask, the choice among sources and the
//! steering of the clock. Does not own: sockets, timers, name resolution, keys, the clock. The shell has them; it
//! tells what happened ([`Event`]) and does what it is told ([`Action`]).
//!
//! The one idea a newcomer lacks: everything goes through one door, [`Controller::handle`]. `Event` in, `Action`s out,
//! and nothing else is read, not even the time: it comes with the event. So a record of the events of a night
//! replays that night, and the simulated network of the tests runs hours of many hosts in milliseconds, with the
//! very code that runs in the daemon.
//!
//! # The way of a packet
//! The shell reads it, takes its receive timestamp, checks its form and its MAC, and hands it in as an [`Arrival`].
//! [`dispatch`] says what its mode means to the association it came for, [`packet_checks`] whether it is believed,
//! the association's mode ([`client`], [`symmetric`], [`broadcast_client`]) makes a [`sample`] of it, the clock [`filter`]
//! chooses among the last
//! eight, [`select`] among the sources (with [`intersection`], [`cluster`] and [`combine`]), giving each its
//! [`state`], and the [`discipline`] decides what the clock is told.
//!
//! The words are RFC 5905's. *Source* is what the configuration names, *association* is the state kept with one
//! address of it; a `pool` is one source with several associations. Nobody here knows the true time: every source
//! claims an interval, its offset plus or minus its root distance, and the true offset is taken to lie where the
//! intervals of a majority meet. So every error bound here is rounded up, and grows with time.
//!
//! # In whose time
//! Offsets are our clock's error as of now. While a sample waits in its filter, our own slews move the clock under
//! it, so filters keep offsets as if the clock had not been slewed, and what has been slewed since is subtracted
//! when they are used. Steps void all samples (RFC 5905 section 11.2.3).

pub mod action;
pub mod agenda;
pub mod association;
pub mod broadcast_client;
pub mod broadcast_server;
pub mod chance;
pub mod client;
pub mod cluster;
pub mod combine;
pub mod controller;
pub mod discipline;
pub mod dispatch;
pub mod event;
pub mod filter;
pub mod intersection;
pub mod kiss;
pub mod manycast;
pub mod news;
pub mod packet_checks;
pub mod poll;
pub mod reference;
pub mod sample;
pub mod select;
pub mod source;
pub mod state;
pub mod strangers;
pub mod symmetric;

pub use action::{Action, Frequency, Trailer, Transmission, TransmitField};
#[doc(hidden)]
pub use controller::testing;
pub use controller::{Controller, ControllerOptions, Counters, PassivePeers};
pub use event::{
    Access, Arrival, AssociationId, Authentication, Delivery, Event, ExchangeSocket, InstanceId,
    InterfaceIndex, KeyId, Moment, SendHandle, SendNumber, SendStamp, SocketName, StampKind, TrustedKeys,
};
pub use kiss::Kiss;
pub use news::{Farewell, News};
