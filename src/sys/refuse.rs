//! A kernel that refuses a system call, for tests of what happens then.
//!
//! Owns: the filter. Does not own: what is tested.
//!
//! The one idea a newcomer lacks: a seccomp filter belongs to the thread that installs it, and to those that this starts
//! afterwards; the tests beside it see the kernel as it is.

use std::io;

/// From now on this system call fails in the calling thread, with this error, whatever its arguments. There is no way back,
/// so this is for a thread of one's own.
pub(crate) fn refuse(number: libc::c_long, error: libc::c_int) {
    let number = u32::try_from(number).expect("system calls have small numbers");
    let code = |code: u32| u16::try_from(code).expect("codes of instructions have 16 bits");
    let step = |instruction, k| libc::sock_filter { code: code(instruction), jt: 0, jf: 0, k };
    let give = libc::BPF_RET | libc::BPF_K;
    let mut filter = [
        // The number is the first word of struct seccomp_data.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter { jf: 1, ..step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number) },
        step(give, libc::SECCOMP_RET_ERRNO | error.cast_unsigned()),
        step(give, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: numbers only. Without it the filter takes CAP_SYS_ADMIN.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    // SAFETY: the program and its instructions live through the call, which copies them.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}
