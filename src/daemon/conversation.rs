//! Connections on which one question is asked and one answer given: the control socket's and the metrics page's.
//!
//! Owns: how many there may be, for how long, and how long a question. Does not own: listening, and what is said.
//!
//! The one idea a newcomer lacks: nobody waits for a client. Each is read and written as far as that goes at once, so
//! that one who sends nothing, or reads nothing, costs a slot for two seconds and no more.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// How long a connection may last. An answer is written in one go; only a stuck reader needs longer.
pub(super) const CONVERSATION_TIME: Duration = Duration::from_secs(2);
/// Connections at once; a further one takes the place of the oldest.
const CONVERSATIONS_MAX: usize = 16;

/// What a question may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The longest, in octets.
    pub question_length_max: usize,
    /// What ends it.
    pub end: &'static [u8],
}

/// All connections of one listener.
#[derive(Debug)]
pub(super) struct Conversations<S> {
    limits: Limits,
    open: Vec<Conversation<S>>,
}

#[derive(Debug)]
struct Conversation<S> {
    stream: S,
    question: Vec<u8>,
    answer: Vec<u8>,
    written: usize,
    since: Instant,
}

impl<S: Read + Write + AsFd> Conversations<S> {
    pub const fn new(limits: Limits) -> Self {
        Self { limits, open: Vec::new() }
    }

    /// Takes what `next` gives, which must not block, until it fails; so many at a turn, so that a flood of them does
    /// not keep this thread. The error, unless it is that there are no more.
    pub fn accept(&mut self, mut next: impl FnMut() -> io::Result<S>) -> Option<io::Error> {
        for _ in 0..CONVERSATIONS_MAX {
            match next() {
                Ok(stream) => {
                    if self.open.len() == CONVERSATIONS_MAX {
                        // The oldest has had its time: an answer takes one turn.
                        self.open.remove(0);
                    }
                    self.open.push(Conversation::new(stream));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) => return Some(error),
            }
        }
        None
    }

    /// Reads questions and writes what `answer` makes of them, as far as that goes without waiting.
    pub fn advance(&mut self, mut answer: impl FnMut(&str) -> Vec<u8>) {
        self.open.retain_mut(|conversation| conversation.advance(self.limits, &mut answer));
    }

    #[cfg(feature = "metrics")]
    pub const fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// What to poll for reading: those that have not asked yet. See [`Self::are_writing`] for the others.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let asking = self.open.iter().filter(|conversation| conversation.answer.is_empty());
        asking.map(|conversation| conversation.stream.as_fd())
    }

    /// Does one wait for room to write? Then come back soon.
    pub fn are_writing(&self) -> bool {
        self.open.iter().any(|conversation| conversation.written < conversation.answer.len())
    }
}

impl<S: Read + Write> Conversation<S> {
    fn new(stream: S) -> Self {
        Self { stream, question: Vec::new(), answer: Vec::new(), written: 0, since: Instant::now() }
    }

    /// Does what can be done without waiting. Is the connection to be kept?
    fn advance(&mut self, limits: Limits, answer: &mut impl FnMut(&str) -> Vec<u8>) -> bool {
        if self.since.elapsed() > CONVERSATION_TIME {
            return false;
        }
        if self.answer.is_empty() && !self.read_question(limits, answer) {
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

    fn read_question(&mut self, limits: Limits, answer: &mut impl FnMut(&str) -> Vec<u8>) -> bool {
        let mut buffer = [0; 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => self.question.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return false,
        }
        let is_end = |octets: &[u8]| octets == limits.end;
        if let Some(length) = self.question.windows(limits.end.len()).position(is_end) {
            self.answer = answer(String::from_utf8_lossy(&self.question[..length]).trim());
            // A long answer took its time to be made; the reader has all of his.
            self.since = Instant::now();
        }
        self.question.len() <= limits.question_length_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    const LIMITS: Limits = Limits { question_length_max: 256, end: b"\r\n\r\n" };

    fn pair(conversations: &mut Conversations<UnixStream>) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut ours = Some(ours);
        assert!(conversations.accept(|| ours.take().ok_or(ErrorKind::WouldBlock.into())).is_none());
        theirs
    }

    #[test]
    fn a_question_may_come_in_pieces() {
        let mut conversations = Conversations::new(LIMITS);
        let mut client = pair(&mut conversations);
        for piece in ["one\r\ntwo\r", "\n\r", "\n"] {
            client.write_all(piece.as_bytes()).unwrap();
            conversations.advance(|question| question.to_uppercase().into_bytes());
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "ONE\r\nTWO");
        assert!(conversations.open.is_empty());
    }

    #[test]
    fn endless_questions_and_silent_clients_are_dropped() {
        let mut conversations = Conversations::new(LIMITS);
        let mut chatty = pair(&mut conversations);
        chatty.write_all(&[b'x'; 1000]).unwrap();
        let _silent = pair(&mut conversations);
        for _ in 0..5 {
            conversations.advance(|_| b"never".to_vec());
        }
        assert_eq!(conversations.open.len(), 1, "the chatty one is gone");
        conversations.open[0].since -= CONVERSATION_TIME * 2;
        conversations.advance(|_| b"never".to_vec());
        assert!(conversations.open.is_empty());
    }

    #[test]
    fn a_client_that_does_not_read_holds_nobody_up() {
        let mut conversations = Conversations::new(LIMITS);
        let mut stuck = pair(&mut conversations);
        stuck.write_all(b"a\r\n\r\n").unwrap();
        conversations.advance(|_| vec![b'x'; 10 << 20]);
        assert!(conversations.are_writing());
        assert_eq!(conversations.descriptors().count(), 0, "nothing is read from it, whatever it sends");
        let mut quick = pair(&mut conversations);
        quick.write_all(b"b\r\n\r\n").unwrap();
        conversations.advance(|_| b"told".to_vec());
        let mut answer = String::new();
        quick.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "told");
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut conversations = Conversations::new(LIMITS);
        let mut clients: Vec<_> = (0..=CONVERSATIONS_MAX).map(|_| pair(&mut conversations)).collect();
        assert_eq!(conversations.open.len(), CONVERSATIONS_MAX);
        assert_eq!(clients[0].read(&mut [0]).unwrap(), 0, "the oldest is closed");
        clients.last_mut().unwrap().write_all(b"q\r\n\r\n").unwrap();
        conversations.advance(|_| b"a".to_vec());
        assert_eq!(conversations.open.len(), CONVERSATIONS_MAX - 1, "and the newest answered");
    }
}
