//! `socket`: to be written.
