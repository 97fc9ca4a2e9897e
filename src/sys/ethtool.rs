//! `ethtool`: to be written.
