//! Network namespaces: opening one, and doing something inside.
//!
//! Owns: the descriptor of a namespace, a new one, and the way in and out for the calling thread. Does not own: what is made inside.
//!
//! The one idea a newcomer lacks: a socket belongs to the network namespace that its maker's thread was in, for ever. So a
//! thread goes in, makes what it wants, and comes out; nobody has to live there. But a thread that is started inside stays
//! inside.

use super::process::owned;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where ip-netns(8) keeps its names.
const NAMED: &str = "/run/netns";

/// A network namespace that is not the one we were started in.
#[derive(Debug)]
pub struct Namespace {
    there: OwnedFd,
    home: OwnedFd,
}

impl Namespace {
    /// The file that stands for a namespace: of a name that `ip netns` knows, or the path itself if it is one.
    #[must_use]
    pub fn path_of(name: &str) -> PathBuf {
        // An absolute path replaces what it is joined to.
        Path::new(NAMED).join(name)
    }

    /// The names that `ip netns` knows, sorted; none where that cannot be told.
    #[must_use]
    pub fn names() -> Vec<String> {
        let entries = std::fs::read_dir(NAMED).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Opens a namespace by name or path, and shows that this thread may enter it.
    ///
    /// # Errors
    /// What open(2) says: `NotFound`. What setns(2) says: `InvalidInput`, it is no network namespace; `PermissionDenied`,
    /// entering needs CAP_SYS_ADMIN.
    pub fn open(name: &str) -> io::Result<Self> {
        let namespace = Self { there: open_read_only(&Self::path_of(name))?, home: current()? };
        namespace.inside(|| ())?;
        Ok(namespace)
    }

    /// What tells two namespaces apart.
    ///
    /// # Errors
    /// What fstat(2) says.
    pub fn identity(&self) -> io::Result<NamespaceId> {
        identity_of(&self.there)
    }

    /// That of the namespace that the calling thread is in.
    ///
    /// # Errors
    /// What open(2) and fstat(2) say.
    pub fn own_identity() -> io::Result<NamespaceId> {
        identity_of(&current()?)
    }

    /// Does the name, or path, that this was opened by still stand for it?
    #[must_use]
    pub fn is_still(&self, name: &str) -> bool {
        let named = std::fs::metadata(Self::path_of(name));
        let named = named.map(|metadata| NamespaceId(metadata.dev(), metadata.ino()));
        named.is_ok_and(|named| self.identity().is_ok_and(|own| own == named))
    }

    /// Does something inside, on this thread, which is back afterwards, also after a panic.
    ///
    /// # Errors
    /// The thread may not go in (any more); nothing was done.
    pub fn inside<T>(&self, what: impl FnOnce() -> T) -> io::Result<T> {
        enter(&self.there)?;
        let _way_back = WayBack(&self.home);
        Ok(what())
    }

    /// Moves this thread there for good.
    ///
    /// # Errors
    /// What setns(2) says.
    pub fn stay(&self) -> io::Result<()> {
        enter(&self.there)
    }
}

/// Moves the calling thread, and no other, into a new network namespace, which lasts as long as the thread or what is
/// returned. It has nothing but a loopback interface that is down.
///
/// # Errors
/// What unshare(2) says: EPERM without CAP_SYS_ADMIN.
pub fn enter_new() -> io::Result<OwnedFd> {
    // SAFETY: takes an integer and touches no memory of ours; of the process's threads it moves the calling one only.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    current()
}

/// The number of a namespace: device and inode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NamespaceId(u64, u64);

fn identity_of(namespace: &OwnedFd) -> io::Result<NamespaceId> {
    let metadata = File::from(namespace.try_clone()?).metadata()?;
    Ok(NamespaceId(metadata.dev(), metadata.ino()))
}

struct WayBack<'a>(&'a OwnedFd);

impl Drop for WayBack<'_> {
    fn drop(&mut self) {
        // It left this namespace a moment ago, and whoever may leave may return. A thread that did not would open the next
        // socket in a stranger's network: better to end.
        if let Err(error) = enter(self.0) {
            tracing::error!(%error, "cannot return from a network namespace");
            std::process::abort();
        }
    }
}

/// The namespace of the calling thread.
fn current() -> io::Result<OwnedFd> {
    File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
}

/// Without following what is no plain file: nothing blocks here, such as opening a pipe would.
fn open_read_only(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the string ends with a zero and lives through the call, which only reads it.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK) };
    owned(fd)
}

fn enter(namespace: &OwnedFd) -> io::Result<()> {
    // SAFETY: takes two integers and touches no memory of ours; it moves the calling thread only.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_ip_netns_and_paths_are_paths() {
        assert_eq!(Namespace::path_of("red"), Path::new("/run/netns/red"));
        assert_eq!(Namespace::path_of("/proc/1/ns/net"), Path::new("/proc/1/ns/net"));
    }

    #[test]
    fn what_is_no_namespace_is_refused() {
        let absent = Namespace::open("/no/such/namespace").unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
        let file = Namespace::open("/proc/self/status").unwrap_err();
        assert!(matches!(file.raw_os_error(), Some(libc::EINVAL | libc::EPERM)), "{file}");
        // Our own takes the same right as any other.
        match Namespace::open("/proc/self/ns/net") {
            Ok(own) => {
                assert_eq!(own.inside(|| 7).unwrap(), 7);
                assert_eq!(own.identity().unwrap(), Namespace::own_identity().unwrap());
                assert!(own.is_still("/proc/self/ns/net") && !own.is_still("/proc/self/status"));
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM)),
        }
    }

    #[test]
    fn a_thread_is_back_even_after_a_panic() {
        let Ok(own) = Namespace::open("/proc/self/ns/net") else { return };
        let namespace = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let before = namespace();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            own.inside(|| std::panic::panic_any("inside")).unwrap();
        }));
        assert!(result.is_err());
        assert_eq!(namespace(), before);
    }
}
