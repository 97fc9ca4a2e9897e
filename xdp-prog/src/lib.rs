//! XDP program.
