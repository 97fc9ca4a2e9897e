//! `bpf`: to be written.
