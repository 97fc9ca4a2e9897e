//! Memory mapped from the kernel: anonymous pages for frames, and the rings of an AF_XDP socket.
//!
//! Owns: [`Mapping`], unmapped on drop, and the fall-back from hugepages to normal pages; [`SharedWords`] of a BPF map; for
//! memory that others own, [`collapse`] onto huge pages and [`prefetch`].
//! Does not own: what the bytes mean. Nothing here hands out references: the kernel writes to this memory while we
//! run, so only the owners of a protocol (`datapath::ring`, `datapath::umem`) know which bytes are ours at a moment.
//!
//! The one idea a newcomer lacks: a mapping of a socket's ring keeps that socket alive in the kernel after its
//! descriptor is closed, so a queue is released only when descriptor *and* rings are gone.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

/// The hugepage size we ask for. Every x86-64 and most arm64 kernels have it.
const HUGEPAGE_BYTES: usize = 2 << 20;
/// `MAP_HUGE_2MB` of `linux/mman.h`: log2 of the size, shifted by `MAP_HUGE_SHIFT`.
const MAP_HUGE_2MB: libc::c_int = 21 << 26;

/// What backs a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pages {
    /// The machine's normal pages.
    Normal,
    /// 2 MiB hugepages: fewer TLB misses, and they must have been set aside (`vm.nr_hugepages`).
    Huge,
}

/// What to do about hugepages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HugepagePolicy {
    /// Normal pages only.
    Never,
    /// Hugepages, and normal pages where the kernel has none free.
    Prefer,
}

/// A mapped range of memory, shared with the kernel, unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
    pages: Pages,
}

// SAFETY: a mapping belongs to the process, not to a thread; the address stays valid until drop.
unsafe impl Send for Mapping {}
// SAFETY: `&Mapping` gives out an address and a length only; whoever dereferences it answers for races.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// At least `length` bytes of zeroed, page-aligned, private memory, rounded up to whole pages.
    ///
    /// With [`HugepagePolicy::Prefer`] the kernel's reason for refusing hugepages comes back beside the mapping.
    ///
    /// # Errors
    /// What mmap(2) says; `ENOMEM` when the address space or the cgroup is exhausted.
    pub fn anonymous(length: usize, policy: HugepagePolicy) -> io::Result<(Self, Option<io::Error>)> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let mut refused = None;
        if policy == HugepagePolicy::Prefer {
            let huge = flags | libc::MAP_HUGETLB | MAP_HUGE_2MB;
            match map(round_up(length, HUGEPAGE_BYTES)?, huge, -1, 0, Pages::Huge) {
                Ok(mapping) => return Ok((mapping, None)),
                Err(error) => refused = Some(error),
            }
        }
        let mapping = map(round_up(length, page_bytes())?, flags, -1, 0, Pages::Normal)?;
        Ok((mapping, refused))
    }

    /// `length` bytes of `fd` from `offset`, shared with the kernel and faulted in at once.
    ///
    /// # Errors
    /// What mmap(2) says; `EINVAL` when the object has nothing of that size at `offset`.
    pub fn of_fd(fd: BorrowedFd<'_>, offset: u64, length: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        map(round_up(length, page_bytes())?, flags, fd.as_raw_fd(), offset, Pages::Normal)
    }

    /// The first byte. Valid for reads and writes of [`Self::len`] bytes as long as the mapping lives.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes, whole pages, never 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "mmap refuses an empty mapping")]
    pub fn len(&self) -> usize {
        self.length
    }

    /// What backs it.
    #[must_use]
    pub fn pages(&self) -> Pages {
        self.pages
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range mmap gave us, unmapped once; whoever holds an address into it also holds the
        // mapping (by `Arc`), so nothing points here any more.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert_eq!(result, 0, "munmap refuses only ranges that are not mappings");
    }
}

/// 64-bit words that somebody else (the kernel, a BPF program) writes to while we read them.
#[derive(Debug)]
pub struct SharedWords(Mapping);

impl SharedWords {
    /// The first `count` words of `fd`.
    ///
    /// # Errors
    /// As [`Mapping::of_fd`].
    pub fn of_fd(fd: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        let length = count.checked_mul(size_of::<u64>()).ok_or(io::ErrorKind::InvalidInput)?;
        Mapping::of_fd(fd, 0, length).map(Self)
    }

    /// Word number `index` as it is now; none beyond the last page.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<u64> {
        if index >= self.0.len() / size_of::<u64>() {
            return None;
        }
        // SAFETY: word `index` lies within the mapping, as was just checked.
        let word = unsafe { self.0.start().cast::<u64>().add(index) };
        // SAFETY: the mapping begins at a page, so the word is aligned; it lives as long as `self`. Nobody else in this
        // process has its address, so all access to it is atomic.
        let word = unsafe { AtomicU64::from_ptr(word.as_ptr()) };
        Some(word.load(Ordering::Relaxed))
    }
}

/// `MADV_COLLAPSE` of `linux/mman.h` (Linux 6.1), which libc may lack.
const MADV_COLLAPSE: libc::c_int = 25;

/// Moves what `memory` fills of huge pages onto huge pages, now, contents and address kept; returns how many bytes of it
/// are on huge pages then, at least. Unlike those of a [`Mapping`] they need not be set aside: the kernel makes them of free
/// memory (transparent huge pages), and where it has none, or cannot, the pages stay as they are.
///
/// Large tables that are read here and there want this: one entry of the processor's page table cache covers 2 MiB
/// instead of 4 KiB. The kernel copies what is there: 1 s for 256 MiB and 3 s for 2 GiB were seen.
pub fn collapse<T>(memory: &[T]) -> usize {
    let start = memory.as_ptr() as usize;
    let first = start.next_multiple_of(HUGEPAGE_BYTES);
    let length = (start + size_of_val(memory)).saturating_sub(first) / HUGEPAGE_BYTES * HUGEPAGE_BYTES;
    if length == 0 {
        return 0;
    }
    let advise = |start: usize, length, advice| {
        // SAFETY: the range lies within `memory`, which lives; neither piece of advice changes contents or addresses, and who
        // reads or writes meanwhile waits in a page fault.
        unsafe { libc::madvise(start as *mut libc::c_void, length, advice) == 0 }
    };
    // For kernels before 6.1, where a thread of the kernel's does it in the course of time. Nothing hangs on it.
    let _ = advise(first, length, libc::MADV_HUGEPAGE);
    if advise(first, length, MADV_COLLAPSE) {
        return length;
    }
    // Not all of it; each call takes milliseconds, so only as far as the kernel comes.
    let pages = (first..first + length).step_by(HUGEPAGE_BYTES);
    pages.take_while(|&page| advise(page, HUGEPAGE_BYTES, MADV_COLLAPSE)).count() * HUGEPAGE_BYTES
}

/// Starts reading the cache line that `at` lies in, and does not wait for it. Does nothing where there is no such
/// instruction we know.
#[inline(always)]
pub fn prefetch<T>(at: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: reads nothing as far as the program can see, and any address would do; every x86-64 has it (SSE).
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ptr::from_ref(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Bytes of one normal page.
#[must_use]
pub fn page_bytes() -> usize {
    // SAFETY: sysconf reads a constant of the process; it takes no pointer.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096)
}

/// What an anonymous mapping of `length` bytes takes: whole normal pages.
#[must_use]
pub fn whole_pages(length: usize) -> usize {
    length.next_multiple_of(page_bytes())
}

/// The soft limit on locked memory in bytes (`RLIMIT_MEMLOCK`); `None` = unlimited.
///
/// # Errors
/// What getrlimit(2) says.
pub fn locked_memory_limit() -> io::Result<Option<u64>> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a writable rlimit for the time of the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur))
}

fn round_up(length: usize, unit: usize) -> io::Result<usize> {
    length.checked_next_multiple_of(unit).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn map(
    length: usize,
    flags: libc::c_int,
    fd: RawFd,
    offset: libc::off_t,
    pages: Pages,
) -> io::Result<Mapping> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: no address is asked for, so the kernel chooses a free range and no existing memory is replaced.
    let start = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, fd, offset) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok(Mapping { start, length, pages })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn anonymous_memory_is_whole_zeroed_pages() {
        let (mapping, refused) = Mapping::anonymous(page_bytes() + 1, HugepagePolicy::Never).unwrap();
        assert_eq!((mapping.len(), mapping.pages()), (2 * page_bytes(), Pages::Normal));
        assert!(refused.is_none());
        assert_eq!(mapping.start().as_ptr() as usize % page_bytes(), 0);
        // SAFETY: the last byte of a mapping of `len` bytes.
        let last = unsafe { mapping.start().add(mapping.len() - 1) };
        // SAFETY: inside the fresh mapping, which nobody else knows.
        assert_eq!(unsafe { last.read() }, 0);
    }

    #[test]
    fn hugepages_or_the_reason_why_not() {
        let (mapping, refused) = Mapping::anonymous(1, HugepagePolicy::Prefer).unwrap();
        match mapping.pages() {
            Pages::Huge => assert_eq!((mapping.len(), refused.is_none()), (HUGEPAGE_BYTES, true)),
            Pages::Normal => assert_eq!((mapping.len(), refused.is_some()), (page_bytes(), true)),
        }
    }

    #[test]
    fn a_table_on_huge_pages_keeps_its_contents_and_says_how_much_of_it_is() {
        let table: Vec<u64> = (0..(5 * HUGEPAGE_BYTES / 8) as u64).collect();
        let collapsed = collapse(&table);
        assert!(table.iter().enumerate().all(|(index, word)| *word == index as u64));
        // At least four whole ones lie in it, if the kernel has any at all to give.
        assert!([0, 4 * HUGEPAGE_BYTES, 5 * HUGEPAGE_BYTES].contains(&collapsed), "{collapsed}");
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let huge: usize = maps
            .lines()
            .filter_map(|line| {
                line.strip_prefix("AnonHugePages:")?.trim().strip_suffix(" kB")?.parse::<usize>().ok()
            })
            .sum();
        assert!(huge * 1024 >= collapsed, "the kernel knows of {huge} kB, not of {collapsed} bytes");
        assert_eq!(collapse(&table[..HUGEPAGE_BYTES / 8 - 1]), 0, "less than a huge page");
        assert_eq!(collapse::<u64>(&[]), 0);
        prefetch(&table[7]);
    }

    #[test]
    fn an_impossible_length_is_an_error() {
        let error = Mapping::anonymous(usize::MAX - 1, HugepagePolicy::Prefer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let file = tempfile::tempfile().unwrap();
        assert!(Mapping::of_fd(file.as_fd(), 1, 1).is_err(), "an offset within a page cannot be mapped");
    }

    #[test]
    fn a_file_is_mapped_at_its_offset() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"second page", page_bytes() as u64).unwrap();
        let mapping = Mapping::of_fd(file.as_fd(), page_bytes() as u64, 11).unwrap();
        // SAFETY: the first byte of a mapping of one page.
        assert_eq!(unsafe { mapping.start().read() }, b's');
    }

    #[test]
    fn shared_words_show_what_others_write_and_end_where_the_mapping_does() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1_u64, 2, 3].map(u64::to_ne_bytes).concat(), 0).unwrap();
        let words = SharedWords::of_fd(file.as_fd(), 3).unwrap();
        assert_eq!([0, 2, 3].map(|index| words.get(index)), [Some(1), Some(3), Some(0)]);
        file.write_all_at(&7_u64.to_ne_bytes(), 16).unwrap();
        assert_eq!(words.get(2), Some(7));
        assert_eq!([page_bytes() / 8, usize::MAX].map(|index| words.get(index)), [None, None]);
        assert_eq!(
            SharedWords::of_fd(file.as_fd(), usize::MAX).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
