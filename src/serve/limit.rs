//! `limit`: to be written.
