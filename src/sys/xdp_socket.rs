//! `xdp_socket`: to be written.
