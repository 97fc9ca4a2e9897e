//! Bytes to types and back: Ethernet, VLAN, IP and UDP around NTP's header, extension fields and MAC.
//!
//! Owns: the layout of every byte that leaves or enters. Does not own: any judgement about what a packet
//! deserves; that is `serve` and `control`.
//!
//! The one idea a newcomer lacks: length is checked once, when a view is made. After that nothing here can
//! panic, and "this is not ours" ([`Malformed::NotUdp`] and its like) is a value like any other.
//! Unknown extension fields are passed over, never judged (RFC 7822 section 3).

mod checksum;
mod extension;
mod frame;
mod header;
mod malformed;
mod packet;

pub use checksum::{Checksum, updated_checksum};
pub use extension::{ExtensionField, ExtensionFields};
pub use frame::{Datagram, Frame, REPLY_HOP_LIMIT, TagStack, is_possible_source};
pub use header::{
    HEADER_LENGTH, Header, KissCode, Leap, Mode, ReferenceId, Version, transmit_timestamp_offset,
};
pub use malformed::Malformed;
pub use packet::{KEY_ID_LENGTH, Mac, Packet};
