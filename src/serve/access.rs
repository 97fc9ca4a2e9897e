//! `access`: to be written.
