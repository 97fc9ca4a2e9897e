//! The unix socket that `timeball status` and its like ask: one line in, one JSON document out.
//!
//! Everything is non-blocking and bounded (see `conversation`), since the thread that answers also watches the clock.

use super::conversation::{CONVERSATION_TIME, Conversations, Limits};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A question is a line.
const LIMITS: Limits = Limits { question_length_max: 256, end: b"\n" };

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
    conversations: Conversations<UnixStream>,
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
        Ok(Self { listener, path: path.to_owned(), conversations: Conversations::new(LIMITS) })
    }

    /// What to poll for reading.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd()).chain(self.conversations.descriptors())
    }

    /// Does a connection wait for room to write? Then come back soon.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.conversations.are_writing()
    }

    /// Takes new connections, reads questions, and writes what `answer` makes of them.
    pub fn serve(&mut self, answer: impl FnMut(&str) -> Vec<u8>) {
        self.conversations.accept(|| {
            let (stream, _) = self.listener.accept()?;
            stream.set_nonblocking(true).map(|()| stream)
        });
        self.conversations.advance(answer);
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Asks the daemon at `path` one question and returns its answer.
///
/// # Errors
/// What the kernel said, or that the daemon said nothing.
pub fn ask(path: &Path, question: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(CONVERSATION_TIME))?;
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
    use std::time::Duration;

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
}
