//! The client side: whom we ask, what we believe, and what becomes of the clock. Deterministic; reads no clock.
//!
//! Owns: associations of every mode, the tests a packet must pass, when to ask, and (as they are built) the choice
//! among sources and the steering of the clock. Does not own: sockets, timers, name resolution, keys, the clock. The
//! shell has them; it tells what happened ([`Event`]) and does what it is told ([`Action`]).
//!
//! The one idea a newcomer lacks: everything goes through one door. `Event` in, `Action`s out, and nothing else is
//! read, not even the time: it comes with the event. So a record of the events of a night replays that night, and
//! the simulated network of the tests runs hours of many hosts in milliseconds, with the very code that runs in the
//! daemon.
//!
//! The words are RFC 5905's. *Source* is what the configuration names, *association* is the state kept with one
//! address of it; a `pool` is one source with several associations.

pub mod action;
pub mod chance;
pub mod cluster;
pub mod combine;
pub mod dispatch;
pub mod event;
pub mod filter;
pub mod intersection;
pub mod kiss;
pub mod news;
pub mod packet_checks;
pub mod poll;
pub mod sample;
pub mod select;
pub mod source;
pub mod state;

pub use action::{Action, Frequency, Transmission, TransmitField};
pub use event::{
    Access, Arrival, AssociationId, Authentication, Delivery, Event, ExchangeSocket, InstanceId,
    InterfaceIndex, KeyId, Moment, SendHandle, SendNumber, SendStamp, SocketName, StampKind,
};
pub use kiss::Kiss;
pub use news::{Farewell, News};
