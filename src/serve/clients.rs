//! `clients`: to be written.
