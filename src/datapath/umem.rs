//! `umem`: to be written.
