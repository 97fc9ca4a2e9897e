//! `steering`: to be written.
