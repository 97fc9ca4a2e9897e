//! Signals as a readable descriptor.
//!
//! Owns: which signals there are to us, and the descriptor. Does not own: what a signal means.
//!
//! The one idea a newcomer lacks: a signal that is blocked in every thread interrupts nobody; it waits in the
//! kernel until the signalfd is read. So it must be blocked before the first thread starts (threads inherit the
//! mask), and the poll loop sees it as one more readable descriptor.

use super::process::owned;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A signal that the daemon listens to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// `SIGTERM`.
    Terminate,
    /// `SIGINT`, Ctrl-C.
    Interrupt,
    /// `SIGHUP`.
    HangUp,
}

impl Signal {
    const ALL: [Self; 3] = [Self::Terminate, Self::Interrupt, Self::HangUp];

    const fn number(self) -> libc::c_int {
        match self {
            Self::Terminate => libc::SIGTERM,
            Self::Interrupt => libc::SIGINT,
            Self::HangUp => libc::SIGHUP,
        }
    }
}

/// `SIGTERM`, `SIGINT` and `SIGHUP` as a readable descriptor.
pub struct SignalFd {
    descriptor: OwnedFd,
    /// What was blocked before.
    previous: libc::sigset_t,
}

impl fmt::Debug for SignalFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignalFd").field("descriptor", &self.descriptor).finish_non_exhaustive()
    }
}

impl SignalFd {
    /// Blocks the three signals in the calling thread and in those that it starts from now on, and opens the
    /// descriptor they are read from. Call it in `main` before any thread is started; they stay blocked until
    /// [`Self::unblock`].
    ///
    /// # Errors
    /// Whatever the kernel says; out of descriptors is the only cause that is not a sandbox.
    pub fn block_and_open() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set that it is given a valid pointer to.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialised on the line above.
        let mut set = unsafe { set.assume_init() };
        for signal in Signal::ALL {
            // SAFETY: the set is live and initialised; the number is a valid signal.
            unsafe { libc::sigaddset(&raw mut set, signal.number()) };
        }
        let mut previous = set;
        // SAFETY: both sets are live. Blocking signals breaks no invariant of Rust's.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut previous) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: the set is live; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        owned(fd).map(|descriptor| Self { descriptor, previous })
    }

    /// Lets the signals act on the calling thread, which must be the one that blocked them, as they did before. Those that
    /// came and were not read are forgotten.
    ///
    /// # Errors
    /// What reading or pthread_sigmask(3) says; they stay blocked.
    pub fn unblock(self) -> io::Result<()> {
        while self.next()?.is_some() {}
        // SAFETY: the set is live and one that the kernel gave; a null old set is allowed.
        match unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.previous, std::ptr::null_mut())
        } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// The next signal that came, if any; never waits. A signal that comes twice before it is read counts once.
    ///
    /// # Errors
    /// What `read` says, except that it would have to wait.
    pub fn next(&self) -> io::Result<Option<Signal>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the pointer is to `size` writable octets.
        let length = unsafe { libc::read(self.descriptor.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if length < 0 {
            return none_if_it_would_block(io::Error::last_os_error());
        }
        // SAFETY: a structure of integers that began as zeros; the kernel writes whole ones.
        let info = unsafe { info.assume_init() };
        Ok(Signal::ALL.into_iter().find(|signal| i64::from(info.ssi_signo) == i64::from(signal.number())))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn none_if_it_would_block<T>(error: io::Error) -> io::Result<Option<T>> {
    if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{PollEntry, poll};
    use std::ptr;
    use std::time::Duration;

    #[test]
    fn a_blocked_signal_is_read_from_the_descriptor() {
        // The mask is this thread's only, so the signal is sent to this thread only.
        let signals = SignalFd::block_and_open().unwrap();
        assert_eq!(signals.next().unwrap(), None);
        // SAFETY: pthread_self is this live thread, where the signal is blocked.
        let this_thread = unsafe { libc::pthread_self() };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::pthread_kill(this_thread, libc::SIGHUP) }, 0);
        let mut entries = [PollEntry::readable(signals.as_fd().as_raw_fd())];
        assert_eq!(poll(&mut entries, Some(Duration::from_secs(5))).unwrap(), 1);
        assert_eq!(signals.next().unwrap(), Some(Signal::HangUp));
        assert_eq!(signals.next().unwrap(), None);
    }

    #[test]
    fn the_mask_is_as_it_was_afterwards_and_what_came_is_forgotten() {
        let is_blocked = || {
            let mut set = MaybeUninit::<libc::sigset_t>::uninit();
            // SAFETY: a null new set is allowed, and the old one is written.
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), set.as_mut_ptr()) };
            // SAFETY: written on the line above.
            let set = unsafe { set.assume_init() };
            // SAFETY: the set is live and initialised.
            Signal::ALL.map(|signal| unsafe { libc::sigismember(&raw const set, signal.number()) } == 1)
        };
        // A thread of its own, whose mask is nobody else's.
        std::thread::spawn(move || {
            let outer = SignalFd::block_and_open().unwrap();
            let inner = SignalFd::block_and_open().unwrap();
            inner.unblock().unwrap();
            assert_eq!(is_blocked(), [true; 3], "they were blocked before");
            // SAFETY: pthread_self is this live thread.
            let this_thread = unsafe { libc::pthread_self() };
            // SAFETY: as above. It would end this process if it were not forgotten.
            assert_eq!(unsafe { libc::pthread_kill(this_thread, libc::SIGINT) }, 0);
            outer.unblock().unwrap();
            assert_eq!(is_blocked(), [false; 3]);
        })
        .join()
        .unwrap();
    }
}
