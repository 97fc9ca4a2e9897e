//! `netlink`: to be written.
