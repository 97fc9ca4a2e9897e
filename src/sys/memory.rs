//! `memory`: to be written.
