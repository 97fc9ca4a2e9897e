//! Any text as a configuration file: a configuration or clear errors, no panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(problems) = timeball::config::parse(text, "fuzz.toml") {
        assert!(!problems.to_string().is_empty());
    }
});
