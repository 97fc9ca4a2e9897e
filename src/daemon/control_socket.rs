//! The unix socket that `timeball status` and its like ask: one line in, one JSON document out.
//!
//! Everything is non-blocking and bounded, since the thread that answers also watches the clock: a client that
//! sends nothing or reads nothing is dropped after two seconds.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long a connection may last. A report is written in one go; only a stuck reader needs longer.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(2);
/// Connections at once; a further one takes the place of the oldest.
const CONNECTIONS_MAX: usize = 16;
/// The longest question.
const QUESTION_LENGTH_MAX: usize = 256;

/// Why the control socket could not be had.
#[derive(Debug, Error)]
pub enum ControlSocketError {
    /// Another daemon answers there.
    #[error("another timeball already answers on {}", .0.display())]
    AlreadyRunning(PathBuf),
    /// The path cannot be made.
    #[error("control socket {}: {error}", .path.display())]
    Path {
        /// Where it should be.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

/// The listening end. Removes its path when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    connections: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    question: Vec<u8>,
    answer: Vec<u8>,
    written: usize,
    since: Instant,
}

impl ControlSocket {
    /// Listens at `path`, for root and the directory's group. A path that a killed daemon left behind is taken
    /// over; one on which a daemon answers is not.
    ///
    /// # Errors
    /// [`ControlSocketError`].
    pub fn open(path: &Path) -> Result<Self, ControlSocketError> {
        let failed = |error| ControlSocketError::Path { path: path.to_owned(), error };
        if UnixStream::connect(path).is_ok() {
            return Err(ControlSocketError::AlreadyRunning(path.to_owned()));
        }
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()) => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Ok(_) => return Err(failed(io::Error::new(ErrorKind::AlreadyExists, "is there and no socket"))),
            Err(_) => {}
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o660)).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), connections: Vec::new() })
    }

    /// What to poll for reading; the connections that still owe bytes are served at every turn.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd())
            .chain(self.connections.iter().map(|connection| connection.stream.as_fd()))
    }

    /// Does a connection wait for room to write? Then come back soon.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.connections.iter().any(|connection| connection.written < connection.answer.len())
    }

    /// Takes new connections, reads questions, and writes what `answer` makes of them.
    pub fn serve(&mut self, mut answer: impl FnMut(&str) -> Vec<u8>) {
        // So many at a turn, so that a flood of them does not keep this thread.
        for _ in 0..CONNECTIONS_MAX {
            let Ok((stream, _)) = self.listener.accept() else { break };
            if stream.set_nonblocking(true).is_ok() {
                if self.connections.len() == CONNECTIONS_MAX {
                    // The oldest has had its time: an answer takes one turn.
                    self.connections.remove(0);
                }
                self.connections.push(Connection::new(stream));
            }
        }
        self.connections.retain_mut(|connection| connection.advance(&mut answer));
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Connection {
    fn new(stream: UnixStream) -> Self {
        Self { stream, question: Vec::new(), answer: Vec::new(), written: 0, since: Instant::now() }
    }

    /// Does what can be done without waiting. Is the connection to be kept?
    fn advance(&mut self, answer: &mut impl FnMut(&str) -> Vec<u8>) -> bool {
        if self.since.elapsed() > CONNECTION_LIFETIME {
            return false;
        }
        if self.answer.is_empty() && !self.read_question(answer) {
            return false;
        }
        while self.written < self.answer.len() {
            match self.stream.write(&self.answer[self.written..]) {
                Ok(0) => return false,
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        // All said: closing tells the client that this was the whole.
        self.answer.is_empty()
    }

    fn read_question(&mut self, answer: &mut impl FnMut(&str) -> Vec<u8>) -> bool {
        let mut buffer = [0; QUESTION_LENGTH_MAX];
        match self.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => self.question.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return false,
        }
        if let Some(end) = self.question.iter().position(|&octet| octet == b'\n') {
            self.answer = answer(String::from_utf8_lossy(&self.question[..end]).trim());
            // A long report took its time to be made; the reader has all of his.
            self.since = Instant::now();
        }
        self.question.len() <= QUESTION_LENGTH_MAX
    }
}

/// Asks the daemon at `path` one question and returns its answer.
///
/// # Errors
/// What the kernel said, or that the daemon said nothing.
pub fn ask(path: &Path, question: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(CONNECTION_LIFETIME))?;
    writeln!(stream, "{question}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => io::Error::new(ErrorKind::TimedOut, "it did not answer within 2 s"),
        _ => error,
    })?;
    // The line's end is the answer's.
    if !answer.ends_with('\n') {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "its answer was cut off"));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve_until_done(
        socket: &mut ControlSocket,
        client: std::thread::JoinHandle<io::Result<String>>,
    ) -> String {
        while !client.is_finished() {
            socket.serve(|question| format!("you said {question}\n").into_bytes());
            std::thread::sleep(Duration::from_millis(1));
        }
        client.join().unwrap().unwrap()
    }

    #[test]
    fn answers_and_cleans_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/timeball.sock");
        let mut socket = ControlSocket::open(&path).unwrap();
        let asked = path.clone();
        let client = std::thread::spawn(move || ask(&asked, "status"));
        assert_eq!(serve_until_done(&mut socket, client), "you said status\n");
        assert!(matches!(ControlSocket::open(&path), Err(ControlSocketError::AlreadyRunning(_))));
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn takes_over_what_a_killed_daemon_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("timeball.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(ControlSocket::open(&path).unwrap());
        std::fs::write(&path, "precious").unwrap();
        assert!(ControlSocket::open(&path).is_err(), "a file is not a stale socket");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn endless_questions_and_silent_clients_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("timeball.sock");
        let mut socket = ControlSocket::open(&path).unwrap();
        let mut chatty = UnixStream::connect(&path).unwrap();
        chatty.write_all(&[b'x'; 1000]).unwrap();
        let _silent = UnixStream::connect(&path).unwrap();
        for _ in 0..5 {
            socket.serve(|_| b"never".to_vec());
        }
        assert_eq!(socket.connections.len(), 1, "the chatty one is gone");
        socket.connections[0].since -= CONNECTION_LIFETIME * 2;
        socket.serve(|_| b"never".to_vec());
        assert!(socket.connections.is_empty());
    }
}
