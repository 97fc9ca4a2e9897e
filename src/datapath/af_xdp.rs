//! `af_xdp`: to be written.
