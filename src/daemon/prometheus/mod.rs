//! What the server does, for Prometheus: a page of text over HTTP, on loopback unless configured otherwise.
//!
//! Owns: the thread that listens, and how often it may ask. Does not own: the numbers. It asks the control thread for
//! them as `timeball status` does, through the control socket, and shares nothing else with it.
//!
//! The one idea a newcomer lacks: whoever reaches the port may ask as often as he likes, and the service must not feel
//! it. So a page is made five times a second at most (`PAGE_TIME`), whatever is asked; connections are few, short and
//! never waited for (see `conversation`); and all of it happens in this one thread.
//!
//! Why no libraries: `prometheus-client` writes OpenMetrics only, which `promtool check metrics` does not read, and
//! `tiny_http` starts threads without bound, waits for slow clients without end, and stops listening for good at the
//! first error of `accept`. What is needed of either is a page of code.

mod exposition;
mod http;
mod page;
mod sources;

pub use page::page;

use super::associations::SourcesReport;
use super::control_socket;
use super::conversation::{Conversations, Limits};
use super::report::StatusReport;
use crate::sys::process::{self, PollEntry, Waker};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing::debug;

/// A request without body ends with an empty line. Prometheus's has some 300 octets.
const LIMITS: Limits = Limits { question_length_max: 8192, end: b"\r\n\r\n" };
/// How long a page is good for. Nobody scrapes more often, and a test that does waits.
const PAGE_TIME: Duration = Duration::from_millis(200);
/// How soon to look again at a connection that had no room for its answer.
const WRITING: Duration = Duration::from_millis(5);
/// How soon to look whether a connection has had its time.
const EXPIRY: Duration = Duration::from_millis(500);
/// How long to wait when the machine is out of descriptors or memory.
const RETRY: Duration = Duration::from_millis(100);

/// The thread that answers scrapes; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Exporter {
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

/// Opens the port.
///
/// # Errors
/// What the kernel says, in use or not ours above all.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Exporter {
    /// Answers on `listener` what the daemon of so many workers at `control_socket` says.
    ///
    /// # Errors
    /// No more threads or descriptors.
    pub(super) fn start(listener: TcpListener, control_socket: &Path, workers: usize) -> io::Result<Self> {
        let waker = Arc::new(Waker::new()?);
        let theirs = Arc::clone(&waker);
        let mut desk = Desk { control_socket: control_socket.to_owned(), workers, page: None };
        let thread = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || run(&listener, &theirs, &mut desk))?;
        Ok(Self { waker, thread: Some(thread) })
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.waker.wake();
        // A panic has said its own line.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn run(listener: &TcpListener, waker: &Waker, desk: &mut Desk) {
    let mut conversations: Conversations<TcpStream> = Conversations::new(LIMITS);
    let mut entries = Vec::new();
    loop {
        entries.clear();
        let own = [waker.as_fd(), listener.as_fd()];
        let all = own.into_iter().chain(conversations.descriptors());
        entries.extend(all.map(|fd| PollEntry::readable(fd.as_raw_fd())));
        let wait = match (conversations.are_writing(), conversations.is_empty()) {
            (true, _) => Some(WRITING),
            (_, false) => Some(EXPIRY),
            _ => None,
        };
        let polled = process::poll(&mut entries, wait);
        if waker.clear() {
            return;
        }
        let accepted = conversations.accept(|| {
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(true).map(|()| stream)
        });
        if let Some(error) = polled.err().or(accepted) {
            debug!(%error, "metrics");
            std::thread::sleep(RETRY);
        }
        conversations.advance(|request| http::respond(request, || desk.page()));
    }
}

/// Makes pages, and keeps the last one.
struct Desk {
    control_socket: PathBuf,
    workers: usize,
    /// When it was made; `None` if there was nothing to make it of.
    page: Option<(Instant, Option<String>)>,
}

impl Desk {
    fn page(&mut self) -> Option<&str> {
        if self.page.as_ref().is_none_or(|(made, _)| made.elapsed() >= PAGE_TIME) {
            let text = self.ask().map(|(report, sources)| page(&report, &sources));
            self.page = Some((Instant::now(), text));
        }
        self.page.as_ref()?.1.as_deref()
    }

    /// `None` if the daemon does not answer, or not for all its workers: counters that lack one's share would look as
    /// if they had started again.
    fn ask(&self) -> Option<(StatusReport, SourcesReport)> {
        let ask = |question| control_socket::ask(&self.control_socket, question).ok();
        let report: StatusReport = serde_json::from_str(&ask("status")?).ok()?;
        let sources = serde_json::from_str(&ask("sources")?).ok()?;
        (report.workers.len() == self.workers).then_some((report, sources))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::control_socket::ControlSocket;

    /// What a daemon says that has no worker, nor anything else.
    const REPORT: &str = r#"{
        "version": "1", "pid": 1, "start_time_seconds": 0, "uptime_seconds": 0, "port": 123, "interfaces": [],
        "clock": {"source": "none", "synchronised": false, "leap": "none", "stratum": 16, "reference_id": "",
                  "precision": 0, "root_delay_seconds": 0, "root_dispersion_seconds": 0, "problem": null},
        "workers": [], "socket_addresses": [], "unsolicited": {},
        "memory": {"rate_limit_bytes": 0, "client_statistics_bytes": 0, "queues_bytes": 0},
        "tables": {"distinct_clients_estimate": 0, "client_entries_max": 0, "rate_limit_entries_max": 0,
                   "rate_limit_huge_page_bytes": 0}
    }"#;

    /// Asks for two pages while a daemon answers with [`REPORT`]. Is there one, and how often was the daemon asked?
    fn two_pages(workers: usize) -> (bool, u32) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let mut socket = ControlSocket::open(&path).unwrap();
        let mut desk = Desk { control_socket: path, workers, page: None };
        let asking = std::thread::spawn(move || {
            let first = desk.page().map(str::to_owned);
            // As if it had been made just now, however slow this machine is.
            desk.page.iter_mut().for_each(|(made, _)| *made = Instant::now());
            assert_eq!(desk.page().map(str::to_owned), first);
            first.is_some()
        });
        let mut asked = 0;
        while !asking.is_finished() {
            socket.serve(|question| {
                asked += u32::from(question == "status");
                let sources =
                    r#"{"synchronisation": {"steering": false, "sources": 0, "used": 0}, "sources": []}"#;
                let answer = if question == "status" { REPORT } else { sources };
                format!("{answer}\n").into_bytes()
            });
            std::thread::sleep(Duration::from_millis(1));
        }
        (asking.join().unwrap(), asked)
    }

    #[test]
    fn a_page_serves_many_scrapes() {
        assert_eq!(two_pages(0), (true, 1));
    }

    #[test]
    fn there_is_no_page_without_every_worker() {
        assert_eq!(two_pages(1), (false, 1));
    }

    #[test]
    fn there_is_no_page_without_a_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let mut desk = Desk { control_socket: folder.path().join("nobody"), workers: 1, page: None };
        assert!(desk.page().is_none());
    }
}
