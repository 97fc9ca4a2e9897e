//! How the kernel shares CPUs out: priorities, nice values and time slices of threads.
//!
//! Owns: one safe function for each. Does not own: which thread wants what.
//!
//! The one idea a newcomer lacks: all of it belongs to a thread, not to a process, and threads inherit it when they are
//! started, unless that was switched off.

use std::io;
use std::time::Duration;

/// The kernel's `struct sched_attr` of `linux/sched/types.h`, in its first version.
#[repr(C)]
#[derive(Default)]
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

/// How the kernel schedules a thread; see sched(7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scheduling {
    /// The policy's name: `SCHED_OTHER`, `SCHED_FIFO` and so on.
    pub policy: &'static str,
    /// 1 to 99, of a real-time policy.
    pub realtime_priority: Option<u8>,
    /// -20 to 19, of a policy that shares the CPU out by it.
    pub nice: Option<i32>,
    /// How long it runs at a time when others want the CPU, of the same policies. `None` also before Linux 6.12.
    pub time_slice: Option<Duration>,
}

/// How the kernel schedules the calling thread, whoever decided that.
///
/// # Errors
/// What sched_getattr(2) says; there is no cause but a sandbox.
pub fn of_this_thread() -> io::Result<Scheduling> {
    let mut attributes = SchedulingAttributes::default();
    let (into, size) = (&raw mut attributes, size_of::<SchedulingAttributes>());
    // SAFETY: the kernel writes no more than `size` octets of integers to the attributes; 0 is the calling thread.
    if unsafe { libc::syscall(libc::SYS_sched_getattr, 0, into, size, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let policy = match attributes.policy.cast_signed() {
        libc::SCHED_OTHER => "SCHED_OTHER",
        libc::SCHED_BATCH => "SCHED_BATCH",
        libc::SCHED_IDLE => "SCHED_IDLE",
        libc::SCHED_FIFO => "SCHED_FIFO",
        libc::SCHED_RR => "SCHED_RR",
        libc::SCHED_DEADLINE => "SCHED_DEADLINE",
        _ => "unknown",
    };
    let shares = matches!(policy, "SCHED_OTHER" | "SCHED_BATCH");
    let is_realtime = matches!(policy, "SCHED_FIFO" | "SCHED_RR");
    let time_slice = Some(attributes.runtime).filter(|runtime| shares && *runtime > 0);
    Ok(Scheduling {
        policy,
        realtime_priority: u8::try_from(attributes.priority).ok().filter(|_| is_realtime),
        nice: shares.then_some(attributes.nice),
        time_slice: time_slice.map(Duration::from_nanos),
    })
}

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

/// Keeps the calling thread, and those that it starts from now on, off these CPUs. Whether it may run elsewhere at all: if
/// not, it stays where it is.
///
/// # Errors
/// What the kernel says, for more than 1024 CPUs too.
pub fn keep_off(cpus: &[usize]) -> io::Result<bool> {
    // SAFETY: a cpu_set_t consists of integers, for which zero is valid.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes no more than the size that it is given; 0 is the calling thread.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut allowed) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for cpu in cpus.iter().filter(|cpu| **cpu < libc::CPU_SETSIZE as usize) {
        // SAFETY: the set is live, and the number within it.
        unsafe { libc::CPU_CLR(*cpu, &mut allowed) };
    }
    // SAFETY: only reads the set, which is live.
    if unsafe { libc::CPU_COUNT(&allowed) } == 0 {
        return Ok(false);
    }
    // SAFETY: the kernel reads as much as it is told of the set, which is live.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const allowed) } {
        0 => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_kept_off_cpus_as_long_as_there_are_others() {
        std::thread::spawn(|| {
            let here = || core_affinity::get_core_ids().unwrap();
            let before: Vec<usize> = here().iter().map(|core| core.id).collect();
            let (last, others) = before.split_last().unwrap();
            assert_eq!(keep_off(&[*last, 100_000]).unwrap(), !others.is_empty());
            if !others.is_empty() {
                assert_eq!(here().iter().map(|core| core.id).collect::<Vec<_>>(), others);
            }
            let left = here().len();
            assert!(!keep_off(&before).unwrap());
            assert_eq!(here().len(), left);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn what_is_said_of_a_thread_is_what_it_was_given() {
        std::thread::spawn(|| {
            let given = |policy, nice| {
                let attributes = SchedulingAttributes {
                    size: size_of::<SchedulingAttributes>() as u32,
                    policy,
                    nice,
                    ..SchedulingAttributes::default()
                };
                set_scheduling(&attributes).unwrap();
                of_this_thread().unwrap()
            };
            let ordinary = given(libc::SCHED_OTHER.cast_unsigned(), 19);
            assert_eq!((ordinary.policy, ordinary.nice), ("SCHED_OTHER", Some(19)));
            let batch = given(libc::SCHED_BATCH.cast_unsigned(), 19);
            assert_eq!((batch.policy, batch.nice, batch.realtime_priority), ("SCHED_BATCH", Some(19), None));
            let idle = given(libc::SCHED_IDLE.cast_unsigned(), 19);
            assert_eq!((idle.policy, idle.nice, idle.time_slice), ("SCHED_IDLE", None, None));
        })
        .join()
        .unwrap();
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
                    let fifo = of_this_thread().unwrap();
                    assert_eq!(
                        (fifo.policy, fifo.realtime_priority, fifo.nice),
                        ("SCHED_FIFO", Some(1), None)
                    );
                    let child = std::thread::spawn(scheduling).join().unwrap();
                    assert_eq!(child, (0, libc::SCHED_OTHER.cast_unsigned()));
                }
            }
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
