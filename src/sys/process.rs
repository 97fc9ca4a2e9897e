//! `process`: to be written.
