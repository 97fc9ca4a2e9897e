//! `clock`: to be written.
