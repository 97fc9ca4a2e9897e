//! `ring`: to be written.
