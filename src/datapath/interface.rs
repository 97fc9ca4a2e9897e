//! `interface`: to be written.
