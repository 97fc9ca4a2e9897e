//! `udp`: to be written.
