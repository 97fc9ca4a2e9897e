//! Any text as a configuration file: a configuration or clear errors, no panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use timeball::config::{Config, Overrides};

fuzz_target!(|text: &str| {
    if let Err(problems) = Config::parse(Path::new("fuzz.toml"), text, &Overrides::default()) {
        assert!(!problems.to_string().is_empty());
    }
});
