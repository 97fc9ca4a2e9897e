//! The load generator's program that redirects replies into AF_XDP sockets: `load_redirect.bpf.c`.

use super::Aligned;

static ALIGNED_OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/load_redirect.bpf.o")));

/// The compiled ELF object, aligned to 8 bytes.
pub static OBJECT: &[u8] = &ALIGNED_OBJECT.0;

/// The program's name in the object.
pub const PROGRAM: &str = "load_redirect";
/// XSKMAP: receive queue index -> AF_XDP socket.
pub const MAP_SOCKETS: &str = "load_xsks";
/// Read-only global, `[u8; 16]`: the server's address as on the wire, IPv4 in the first four.
pub const GLOBAL_TARGET: &str = "TARGET";
/// Read-only global, `u8`: 4 or 6.
pub const GLOBAL_TARGET_VERSION: &str = "TARGET_VERSION";
/// Read-only global, `u16` in host order: the server's port.
pub const GLOBAL_TARGET_PORT: &str = "TARGET_PORT";
