//! The `timeball` command.

fn main() {}
