//! Where log lines go: standard error, at nobody's expense.
//!
//! The one idea a newcomer lacks: the thread that logs is the one that watches the clock and the signals. A full disk
//! or a pipe that nobody reads may cost log lines, never the service; so a line that cannot be written now is lost.

use crate::sys::process::{PollEntry, poll};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// What a pipe that is ready takes without blocking (pipe(7), `PIPE_BUF`).
const READY_BYTES: usize = 4096;

/// Standard error, but it never blocks and never fails.
#[derive(Clone, Copy, Debug)]
pub(super) struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stderr = io::stderr();
        for part in bytes.chunks(READY_BYTES) {
            let mut entry = [PollEntry::writable(stderr.as_fd().as_raw_fd())];
            let ready = poll(&mut entry, Some(Duration::ZERO)).is_ok_and(|ready| ready > 0);
            if !ready || stderr.write_all(part).is_err() {
                break;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
