//! What a process asks of the kernel about itself: signals and wake-ups as readable descriptors, waiting for
//! several of them, limits, capabilities, a thread's name.
//!
//! Owns: one safe function for each. Does not own: what a signal means.
//!
//! The one idea a newcomer lacks: a signal that is blocked in every thread interrupts nobody; it waits in the
//! kernel until the signalfd is read. So it must be blocked before the first thread starts (threads inherit the
//! mask), and the poll loop sees it as one more readable descriptor.

use super::clock;
use crate::time::NtpDuration;
use std::ffi::CString;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

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
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks the three signals in the calling thread and in those that it starts from now on, and opens the
    /// descriptor they are read from. Call it in `main` before any thread is started; they stay blocked.
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
        // SAFETY: the set is live; a null old set is allowed. Blocking signals breaks no invariant of Rust's.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: the set is live; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        owned(fd).map(Self)
    }

    /// The next signal that came, if any; never waits. A signal that comes twice before it is read counts once.
    ///
    /// # Errors
    /// What `read` says, except that it would have to wait.
    pub fn next(&self) -> io::Result<Option<Signal>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the pointer is to `size` writable octets.
        let length = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
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
        self.0.as_fd()
    }
}

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
    let effective = effective_capabilities(&std::fs::read_to_string("/proc/self/status")?)
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

/// The kernel's `struct sched_attr` of `linux/sched/types.h`, in its first version.
#[repr(C)]
struct SchedulingAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}
const _: () = assert!(size_of::<SchedulingAttributes>() == 48);

/// Asks the kernel to run the calling thread soon and often when others want the CPU too: for no longer than `slice` at a
/// time (0.1 ms to 100 ms; Linux before 6.12 takes no notice), and with this nice value where it may have it and has none of
/// its own. Otherwise its share of the CPU stays as it is. A thread whose policy knows no shares (real-time, idle) is left
/// alone.
///
/// # Errors
/// What sched_setattr(2) says.
pub fn favour_thread(nice: i32, slice: Duration) -> io::Result<()> {
    // SAFETY: a number; 0 is the calling thread.
    let policy = unsafe { libc::sched_getscheduler(0) } & !libc::SCHED_RESET_ON_FORK;
    if !matches!(policy, libc::SCHED_OTHER | libc::SCHED_BATCH) {
        return Ok(());
    }
    // SAFETY: getpriority takes two numbers; 0 is the calling thread. It cannot fail for it, so -1 is a priority.
    let present = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attributes = |nice| SchedulingAttributes {
        size: size_of::<SchedulingAttributes>() as u32,
        policy: policy.cast_unsigned(),
        flags: 0,
        nice,
        priority: 0,
        runtime: u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX),
        deadline: 0,
        period: 0,
    };
    if present == 0 && set_scheduling(&attributes(nice)).is_ok() {
        return Ok(());
    }
    set_scheduling(&attributes(present))
}

fn set_scheduling(attributes: &SchedulingAttributes) -> io::Result<()> {
    let attributes: *const SchedulingAttributes = attributes;
    // SAFETY: the attributes say their own size, live through the call and are only read; 0 is the calling thread.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, attributes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the calling thread a real-time one (`SCHED_FIFO`): it runs before all ordinary threads, until it waits. Threads and
/// processes that it starts are ordinary. `priority` is 1 to 99, see sched(7).
///
/// # Errors
/// EPERM without CAP_SYS_NICE where `RLIMIT_RTPRIO` is less; EINVAL for another priority.
pub fn set_realtime_priority(priority: u8) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority.into() };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: pthread_self is this live thread.
    let this_thread = unsafe { libc::pthread_self() };
    // SAFETY: the parameters live through the call, which reads them; being scheduled otherwise breaks nothing of Rust's.
    match unsafe { libc::pthread_setschedparam(this_thread, policy, &raw const parameters) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
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

fn none_if_it_would_block<T>(error: io::Error) -> io::Result<Option<T>> {
    if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

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

    /// (Real-time priority, policy) of the calling thread: fields 40 and 41 of proc_pid_stat(5).
    fn scheduling() -> (u32, u32) {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // The third field follows the name, which is in parentheses.
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        (fields[37].parse().unwrap(), fields[38].parse().unwrap())
    }

    #[test]
    fn a_real_time_thread_starts_ordinary_ones() {
        std::thread::spawn(|| {
            assert_eq!(scheduling(), (0, libc::SCHED_OTHER.cast_unsigned()));
            let refused = set_realtime_priority(100).unwrap_err();
            assert!([libc::EINVAL, libc::EPERM].map(Some).contains(&refused.raw_os_error()), "{refused}");
            match set_realtime_priority(1) {
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
                    eprintln!("SKIP: no right to a real-time priority");
                }
                Ok(()) => {
                    assert_eq!(scheduling(), (1, libc::SCHED_FIFO.cast_unsigned()));
                    let child = std::thread::spawn(scheduling).join().unwrap();
                    assert_eq!(child, (0, libc::SCHED_OTHER.cast_unsigned()));
                }
            }
        })
        .join()
        .unwrap();
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

    /// (nice value, policy, slice in nanoseconds if this kernel shows it) of the calling thread.
    fn share() -> (i32, i32, Option<String>) {
        // SAFETY: two numbers.
        let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        // SAFETY: a number.
        let policy = unsafe { libc::sched_getscheduler(0) };
        let schedule = std::fs::read_to_string("/proc/thread-self/sched").unwrap_or_default();
        let slice = schedule.lines().find(|line| line.starts_with("se.slice"));
        (nice, policy, slice.and_then(|line| Some(line.rsplit_once(':')?.1.trim().to_owned())))
    }

    #[test]
    fn a_favoured_thread_keeps_its_policy_and_a_nice_value_of_its_own() {
        let favoured = |own: i32| {
            std::thread::spawn(move || {
                // SAFETY: three numbers.
                assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, own) }, 0);
                favour_thread(-3, Duration::from_micros(100)).unwrap();
                share()
            })
            .join()
            .unwrap()
        };
        let (nice, policy, slice) = favoured(3);
        assert_eq!((nice, policy), (3, libc::SCHED_OTHER));
        match slice {
            Some(slice) => assert_eq!(slice, "100000"),
            None => eprintln!("SKIP: this kernel does not show a thread's slice"),
        }
        // Without the right to it the value stays.
        assert!([0, -3].contains(&favoured(0).0));
    }

    #[test]
    fn a_real_time_thread_is_not_favoured() {
        std::thread::spawn(|| {
            if set_realtime_priority(1).is_err() {
                eprintln!("SKIP: no right to a real-time priority");
                return;
            }
            favour_thread(-3, Duration::from_micros(100)).unwrap();
            assert_eq!(scheduling(), (1, libc::SCHED_FIFO.cast_unsigned()));
        })
        .join()
        .unwrap();
    }
}
