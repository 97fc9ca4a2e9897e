//! What a process asks of the kernel about itself: wake-ups as readable descriptors, waiting for several of them, limits,
//! capabilities, a thread's name.
//!
//! Owns: one safe function for each. Does not own: signals, scheduling.
//!
//! The one idea a newcomer lacks: everything that can wake a thread is a descriptor that it polls, so it waits in one
//! place, and nothing interrupts it elsewhere.

use super::clock;
use crate::time::NtpDuration;
use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Wakes a thread that polls it: an eventfd.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// A waker that has not been used yet.
    ///
    /// # Errors
    /// What `eventfd` says: out of descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes two integers and touches no memory of ours.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        owned(fd).map(Self)
    }

    /// Makes the descriptor readable. Any thread may; several wake-ups may be seen as one.
    pub fn wake(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the pointer is to the eight octets that eventfd wants.
        // It fails only when the count is at its maximum, and then the descriptor is readable already.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Makes the descriptor unreadable again; says whether somebody had woken it. Clear first, then look at what
    /// the wake-up was about: the other way round loses one that comes in between.
    pub fn clear(&self) -> bool {
        let mut count = [0_u8; 8];
        // SAFETY: the pointer is to the eight octets that eventfd fills.
        let length = unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        length == 8
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One descriptor that [`poll`] waits for, and what was found.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct PollEntry(libc::pollfd);

impl PollEntry {
    /// Waits for something to read. The descriptor is a number only: closed meanwhile, it polls as ready, with
    /// an error.
    #[must_use]
    pub const fn readable(fd: RawFd) -> Self {
        Self(libc::pollfd { fd, events: libc::POLLIN, revents: 0 })
    }

    /// Waits for room to write.
    #[must_use]
    pub const fn writable(fd: RawFd) -> Self {
        Self(libc::pollfd { fd, events: libc::POLLOUT, revents: 0 })
    }

    /// Which descriptor this is about.
    #[must_use]
    pub const fn fd(&self) -> RawFd {
        self.0.fd
    }

    /// After [`poll`]: is there something to do here? An error condition counts: the next call will tell it.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.0.revents != 0
    }
}

impl fmt::Debug for PollEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "fd {} events {:#x} found {:#x}", self.0.fd, self.0.events, self.0.revents)
    }
}

/// Waits until an entry is ready or the time is up (`None`: for ever); returns how many are ready.
///
/// The timeout is rounded up to milliseconds, so that a caller with a deadline does not spin through the last
/// one. A handled signal does not end the wait.
///
/// # Errors
/// What poll(2) says: more entries than the limit on descriptors, or no memory.
pub fn poll(entries: &mut [PollEntry], timeout: Option<Duration>) -> io::Result<usize> {
    let deadline = timeout.map(|timeout| {
        let nanoseconds = i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX);
        clock::monotonic() + NtpDuration::from_nanoseconds(nanoseconds)
    });
    let mut wait = timeout.map_or(-1, |timeout| milliseconds_rounded_up(timeout.as_nanos()));
    loop {
        let count = entries.len() as libc::nfds_t;
        // SAFETY: PollEntry is a transparent pollfd and the slice has `count` of them, which only this call uses.
        let ready = unsafe { libc::poll(entries.as_mut_ptr().cast(), count, wait) };
        if ready >= 0 {
            return Ok(ready.cast_unsigned() as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        if let Some(deadline) = deadline {
            let left = deadline.nanoseconds_since(clock::monotonic()).max(0);
            wait = milliseconds_rounded_up(u128::from(left.cast_unsigned()));
        }
    }
}

fn milliseconds_rounded_up(nanoseconds: u128) -> libc::c_int {
    libc::c_int::try_from(nanoseconds.div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
}

/// Raises the soft limit on descriptors to the hard one.
///
/// # Errors
/// What getrlimit(2) or setrlimit(2) says; the limit is then as it was.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the pointer is to a live rlimit.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Random words from the kernel, for keys and seeds.
///
/// # Errors
/// What getrandom(2) says; it fails on no kernel that can run this program, only in a sandbox.
pub fn random_words<const N: usize>() -> io::Result<[u64; N]> {
    let mut words = [0_u64; N];
    let length = size_of_val(&words);
    // SAFETY: the pointer is to `length` writable octets, and any bytes make valid words.
    let got = unsafe { libc::getrandom(words.as_mut_ptr().cast(), length, 0) };
    // Up to 256 octets come whole or not at all.
    if usize::try_from(got) == Ok(length) { Ok(words) } else { Err(io::Error::last_os_error()) }
}

/// A part of root's power that the data path needs, with its number from capabilities(7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Capability {
    /// Bind ports below 1024.
    NetBindService = 10,
    /// Attach XDP programs, change interface settings.
    NetAdmin = 12,
    /// Open AF_XDP sockets.
    NetRaw = 13,
    /// Lock more memory than `RLIMIT_MEMLOCK`.
    IpcLock = 14,
    /// Load BPF programs that the kernel would otherwise refuse for what they might tell of its memory.
    Perfmon = 38,
    /// Load BPF programs and make maps.
    Bpf = 39,
}

impl fmt::Display for Capability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NetBindService => "CAP_NET_BIND_SERVICE",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::IpcLock => "CAP_IPC_LOCK",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        })
    }
}

/// `CAP_SYS_ADMIN`, which had CAP_PERFMON and CAP_BPF in it before Linux 5.8, and still stands for both.
const SYS_ADMIN: u8 = 21;

/// Those of `needed` that this process does not have in effect.
///
/// # Errors
/// When /proc is not there, or says nothing about capabilities.
pub fn missing_capabilities(needed: &[Capability]) -> io::Result<Vec<Capability>> {
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|error| io::Error::new(error.kind(), format!("/proc/self/status: {error}")))?;
    let effective = effective_capabilities(&status)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/status names no CapEff"))?;
    Ok(missing(effective, needed))
}

fn missing(effective: u64, needed: &[Capability]) -> Vec<Capability> {
    let has = |bit: u8| effective >> bit & 1 == 1;
    let stands_in =
        |capability| matches!(capability, Capability::Bpf | Capability::Perfmon) && has(SYS_ADMIN);
    let is_missing = |capability: &Capability| !has(*capability as u8) && !stands_in(*capability);
    needed.iter().copied().filter(is_missing).collect()
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

/// Names the calling thread for `top` and its like; the kernel keeps 15 octets. Best effort: a name with a NUL
/// or a refusal changes nothing.
pub fn set_thread_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // SAFETY: PR_SET_NAME reads a NUL-terminated string, which `name` is and which lives through the call.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
}

/// Takes over a descriptor that a system call has just returned, or the error that it left.
pub(super) fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for the caller, who hands it over; nobody else closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn poll_tells_the_woken_from_the_sleeping_and_ends_in_time() {
        let (woken, asleep) = (Waker::new().unwrap(), Waker::new().unwrap());
        woken.wake();
        woken.wake();
        let mut entries = [&asleep, &woken].map(|waker| PollEntry::readable(waker.as_fd().as_raw_fd()));
        assert_eq!(poll(&mut entries, None).unwrap(), 1);
        assert!(!entries[0].is_ready() && entries[1].is_ready());
        assert!(woken.clear());
        assert!(!woken.clear());
        let start = Instant::now();
        assert_eq!(poll(&mut entries, Some(Duration::from_micros(10_500))).unwrap(), 0);
        assert!(start.elapsed() >= Duration::from_micros(10_500));
    }

    #[test]
    fn capabilities_are_read_from_the_status_file() {
        let status = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t0000000000003400\nCapBnd:\t00\n";
        assert_eq!(effective_capabilities(status), Some(1 << 10 | 1 << 12 | 1 << 13));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
        assert!(missing_capabilities(&[]).unwrap().is_empty());
        let needed = [Capability::NetAdmin, Capability::Perfmon, Capability::Bpf];
        assert_eq!(missing(1 << 12, &needed), needed[1..]);
        assert_eq!(missing(1 << 12 | 1 << 39, &needed), [Capability::Perfmon]);
        assert_eq!(missing(1 << 21, &needed), [Capability::NetAdmin]);
    }

    #[test]
    fn a_thread_carries_its_name() {
        std::thread::spawn(|| {
            set_thread_name("worker-with-a-long-name");
            let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
            assert_eq!(name.trim_end(), "worker-with-a-l");
        })
        .join()
        .unwrap();
    }
}
