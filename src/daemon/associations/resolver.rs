//! Looking up names, on a thread of its own: the C library's resolver takes as long as it likes.
//!
//! The one idea a newcomer lacks: nobody waits for this thread, not even at the end. A lookup under way when the daemon
//! stops is left alone, and the process takes the thread with it.

use crate::control::source::SourceId;
use crate::sys::process::{self, Waker};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// Names that may wait. The controller asks for each source's once at a time, and a name that finds no room is tried
/// again later like one that cannot be resolved.
const WAITING_MAX: usize = 64;

/// What came of a lookup.
#[derive(Debug)]
pub(super) struct Answer {
    pub source: SourceId,
    /// Or why there are none.
    pub addresses: Result<Vec<IpAddr>, String>,
}

/// The thread, as the control thread sees it.
#[derive(Debug)]
pub(super) struct Resolver {
    names: Sender<(SourceId, Arc<str>)>,
    answers: Receiver<Answer>,
    waker: Arc<Waker>,
}

impl Resolver {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let (names, to_look_up) = bounded::<(SourceId, Arc<str>)>(WAITING_MAX);
        // Its thread waits while there is no room: then nobody is interested for the time being.
        let (found, answers) = bounded(WAITING_MAX);
        let waker = Arc::new(Waker::new()?);
        let theirs = Arc::clone(&waker);
        std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
            process::set_thread_name("resolver");
            for (source, name) in to_look_up {
                if found.send(Answer { source, addresses: look_up(&name) }).is_err() {
                    return;
                }
                theirs.wake();
            }
        })?;
        Ok(Self { names, answers, waker })
    }

    /// Looks a name up; `false`: too many wait already.
    pub(super) fn ask(&self, source: SourceId, name: Arc<str>) -> bool {
        self.names.try_send((source, name)).is_ok()
    }

    /// What has come of the lookups so far.
    pub(super) fn answers(&self) -> Vec<Answer> {
        self.waker.clear();
        self.answers.try_iter().take(WAITING_MAX).collect()
    }
}

impl AsFd for Resolver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}

fn look_up(name: &str) -> Result<Vec<IpAddr>, String> {
    let found = (name, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found.map(|address| address.ip()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() { Err("it has no address".to_owned()) } else { Ok(addresses) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{PollEntry, poll};
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    #[test]
    fn names_are_looked_up_beside() {
        let resolver = Resolver::start().unwrap();
        assert!(resolver.ask(SourceId(7), "localhost".into()));
        let mut entries = [PollEntry::readable(resolver.as_fd().as_raw_fd())];
        assert_eq!(poll(&mut entries, Some(Duration::from_secs(10))).unwrap(), 1);
        let answers = resolver.answers();
        assert_eq!((answers.len(), answers[0].source), (1, SourceId(7)));
        // A minimal system has no /etc/hosts, and so no localhost.
        if ("localhost", 123).to_socket_addrs().is_err() {
            assert!(answers[0].addresses.is_err());
            return;
        }
        let addresses = answers[0].addresses.as_ref().unwrap();
        assert!(addresses.iter().all(IpAddr::is_loopback) && !addresses.is_empty(), "{addresses:?}");
    }
}
