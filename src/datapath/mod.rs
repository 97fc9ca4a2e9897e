//! Moves buffers between the network and the workers; knows no NTP.
//!
//! Owns: the AF_XDP port (umem, rings, the ladder of attempts, the XDP program's maps) and the UDP-socket port.
//! Does not own: what is answered. It never imports `control` or `serve`.

pub mod af_xdp;
pub mod interface;
pub mod ladder;
pub mod ring;
pub mod steering;
pub mod udp;
pub mod umem;
