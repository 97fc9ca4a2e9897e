//! The `timeball` command; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    timeball::cli::run()
}
