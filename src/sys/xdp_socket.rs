//! The AF_XDP socket: one safe function per request of `linux/if_xdp.h`.
//!
//! Owns: the descriptor, the socket options and the wake-ups. Types and most constants are the `libc` crate's.
//! Does not own: the rings' protocol (`datapath::ring`), the frames (`datapath::umem`), the order of the calls and
//! what an error means there (`datapath::af_xdp`).
//!
//! The one idea a newcomer lacks: no packet passes through this descriptor. `sendto` and `recvfrom` are called with
//! no data at all; they only tell the kernel to look at the rings.

use super::memory::Mapping;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// `SO_BUSY_POLL` of `asm-generic/socket.h`, absent from libc: microseconds.
const SO_BUSY_POLL: libc::c_int = 46;
/// `SO_PREFER_BUSY_POLL` (kernel 5.11): keep interrupts off while somebody polls.
const SO_PREFER_BUSY_POLL: libc::c_int = 69;
/// `SO_BUSY_POLL_BUDGET` (kernel 5.11): packets per busy poll.
const SO_BUSY_POLL_BUDGET: libc::c_int = 70;
/// `SO_INCOMING_NAPI_ID` (kernel 4.12): which NAPI context busy polling polls.
const SO_INCOMING_NAPI_ID: libc::c_int = 56;
/// `XDP_MAX_TX_SKB_BUDGET` of `linux/if_xdp.h` (kernel 6.17), not in libc yet: descriptors one copy-mode `sendto`
/// moves, 32 without it.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// What the kernel's copy of a packet takes of the send buffer at most: a frame that fits 2048 bytes and its own structures.
const COPIED_BYTES_MAX: u32 = 4096;

/// Which of a socket's four rings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ring {
    /// Frames for the kernel to receive into.
    Fill,
    /// Frames the kernel has received into.
    Receive,
    /// Frames for the kernel to transmit.
    Transmit,
    /// Frames the kernel is done transmitting.
    Completion,
}

impl Ring {
    const fn size_option(self) -> libc::c_int {
        match self {
            Self::Fill => libc::XDP_UMEM_FILL_RING,
            Self::Receive => libc::XDP_RX_RING,
            Self::Transmit => libc::XDP_TX_RING,
            Self::Completion => libc::XDP_UMEM_COMPLETION_RING,
        }
    }

    const fn page_offset(self) -> u64 {
        match self {
            Self::Fill => libc::XDP_UMEM_PGOFF_FILL_RING,
            Self::Receive => libc::XDP_PGOFF_RX_RING.cast_unsigned(),
            Self::Transmit => libc::XDP_PGOFF_TX_RING.cast_unsigned(),
            Self::Completion => libc::XDP_UMEM_PGOFF_COMPLETION_RING,
        }
    }
}

/// Where the parts of one ring lie in its mapping, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingOffsets {
    /// The producer's index, a u32.
    pub producer: usize,
    /// The consumer's index, a u32.
    pub consumer: usize,
    /// The kernel's flags, a u32.
    pub flags: usize,
    /// The first entry.
    pub entries: usize,
}

/// How the socket is bound to its queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyMode {
    /// The NIC reads and writes our frames itself.
    ZeroCopy,
    /// The kernel copies each packet: works on every interface.
    Copy,
}

/// `XDP_STATISTICS`: what the kernel counted for this socket.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct KernelStatistics {
    /// Packets dropped for any reason but a full receive ring.
    pub rx_dropped: u64,
    /// Fill ring entries that named no frame.
    pub rx_invalid_descriptors: u64,
    /// Transmit descriptors that named no frame or did not fit one: dropped without a completion.
    pub tx_invalid_descriptors: u64,
    /// Packets dropped because our receive ring was full.
    pub rx_ring_full: u64,
    /// Times the kernel wanted a frame and the fill ring was empty.
    pub fill_ring_empty: u64,
    /// Times the kernel looked at the transmit ring and found it empty.
    pub tx_ring_empty: u64,
}

/// An AF_XDP socket, closed on drop.
#[derive(Debug)]
pub struct XdpSocket {
    fd: OwnedFd,
}

impl XdpSocket {
    /// A socket bound to nothing.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW, `EAFNOSUPPORT` on a kernel without AF_XDP.
    pub fn new() -> io::Result<Self> {
        // SAFETY: socket(2) takes three numbers.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// Registers `memory`'s first `length` bytes as this socket's umem (`XDP_UMEM_REG`), with `tx_metadata_length`
    /// bytes of transmit metadata before each transmitted packet, 0 for none.
    ///
    /// The kernel pins the pages and writes to them whenever a ring has given it a frame. That is why a [`Mapping`]
    /// hands out no references: whoever makes one answers for it. Unmapping early is harmless, the pages stay pinned.
    ///
    /// # Errors
    /// `ENOBUFS` when the locked-memory limit is too small, `EINVAL` for sizes, or for metadata on a kernel before 6.8.
    pub fn register_umem(
        &self,
        memory: &Mapping,
        length: usize,
        chunk_bytes: u32,
        headroom_bytes: u32,
        tx_metadata_length: u32,
    ) -> io::Result<()> {
        if length > memory.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let metadata_flag = if tx_metadata_length > 0 { libc::XDP_UMEM_TX_METADATA_LEN } else { 0 };
        let request = libc::xdp_umem_reg {
            addr: memory.start().as_ptr() as u64,
            len: length as u64,
            chunk_size: chunk_bytes,
            headroom: headroom_bytes,
            flags: metadata_flag,
            tx_metadata_len: tx_metadata_length,
        };
        self.set(libc::SOL_XDP, libc::XDP_UMEM_REG, &request)
    }

    /// Creates one ring of `entries`, a power of two.
    ///
    /// # Errors
    /// `EINVAL` if it is not a power of two or the ring exists, `ENOMEM`.
    pub fn create_ring(&self, ring: Ring, entries: u32) -> io::Result<()> {
        self.set(libc::SOL_XDP, ring.size_option(), &entries)
    }

    /// Maps a ring made by [`Self::create_ring`]: `entries` of `entry_bytes` each behind its indices.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn map_ring(
        &self,
        ring: Ring,
        entries: u32,
        entry_bytes: usize,
    ) -> io::Result<(Mapping, RingOffsets)> {
        let offsets = self.ring_offsets(ring)?;
        let length = offsets.entries.saturating_add((entries as usize).saturating_mul(entry_bytes));
        let mapping = Mapping::of_fd(self.fd.as_fd(), ring.page_offset(), length)?;
        Ok((mapping, offsets))
    }

    /// `XDP_MMAP_OFFSETS`. The kernel that has no flags word (before 5.4) is refused with `EOPNOTSUPP`.
    fn ring_offsets(&self, ring: Ring) -> io::Result<RingOffsets> {
        const NONE: libc::xdp_ring_offset =
            libc::xdp_ring_offset { producer: 0, consumer: 0, desc: 0, flags: 0 };
        let mut all = libc::xdp_mmap_offsets { rx: NONE, tx: NONE, fr: NONE, cr: NONE };
        if self.get(libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, &mut all)?
            < mem::size_of::<libc::xdp_mmap_offsets>()
        {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let raw = match ring {
            Ring::Fill => all.fr,
            Ring::Receive => all.rx,
            Ring::Transmit => all.tx,
            Ring::Completion => all.cr,
        };
        let offset = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        Ok(RingOffsets {
            producer: offset(raw.producer),
            consumer: offset(raw.consumer),
            flags: offset(raw.flags),
            entries: offset(raw.desc),
        })
    }

    /// Binds to one queue of one interface.
    ///
    /// # Errors
    /// `EOPNOTSUPP` no zero-copy, `EBUSY` queue taken, `ENODEV` no such interface, `EINVAL` no such queue.
    pub fn bind(&self, ifindex: u32, queue: u32, mode: CopyMode, need_wakeup: bool) -> io::Result<()> {
        let mode_flag = match mode {
            CopyMode::ZeroCopy => libc::XDP_ZEROCOPY,
            CopyMode::Copy => libc::XDP_COPY,
        };
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: mode_flag | if need_wakeup { libc::XDP_USE_NEED_WAKEUP } else { 0 },
            sxdp_ifindex: ifindex,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        let length = mem::size_of_val(&address) as libc::socklen_t;
        // SAFETY: `address` is a whole sockaddr_xdp and `length` is its size.
        let result = unsafe { libc::bind(self.raw(), (&raw const address).cast(), length) };
        done(result)
    }

    /// Did the kernel bind in zero-copy mode (`XDP_OPTIONS`)?
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn is_zero_copy(&self) -> io::Result<bool> {
        let mut options = libc::xdp_options { flags: 0 };
        self.get(libc::SOL_XDP, libc::XDP_OPTIONS, &mut options)?;
        Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }

    /// `XDP_STATISTICS`. Kernels before 5.9 know the first three only; the others stay 0.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn statistics(&self) -> io::Result<KernelStatistics> {
        let mut raw = libc::xdp_statistics {
            rx_dropped: 0,
            rx_invalid_descs: 0,
            tx_invalid_descs: 0,
            rx_ring_full: 0,
            rx_fill_ring_empty_descs: 0,
            tx_ring_empty_descs: 0,
        };
        self.get(libc::SOL_XDP, libc::XDP_STATISTICS, &mut raw)?;
        Ok(KernelStatistics {
            rx_dropped: raw.rx_dropped,
            rx_invalid_descriptors: raw.rx_invalid_descs,
            tx_invalid_descriptors: raw.tx_invalid_descs,
            rx_ring_full: raw.rx_ring_full,
            fill_ring_empty: raw.rx_fill_ring_empty_descs,
            tx_ring_empty: raw.tx_ring_empty_descs,
        })
    }

    /// Makes the system calls of this socket poll the NIC for up to `microseconds`, `budget` packets a time, and asks
    /// the kernel to keep interrupts off meanwhile.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_ADMIN, `ENOPROTOOPT` on a kernel before 5.11.
    pub fn set_busy_poll(&self, microseconds: u32, budget: u32) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, &1_u32)?;
        self.set(libc::SOL_SOCKET, SO_BUSY_POLL, &microseconds)?;
        self.set(libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, &budget)
    }

    /// The number of the NAPI context that busy polling polls; 0 if there is none, and then the kernel polls nothing.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn polled_napi(&self) -> io::Result<u32> {
        let mut napi = 0;
        self.get(libc::SOL_SOCKET, SO_INCOMING_NAPI_ID, &mut napi)?;
        Ok(napi)
    }

    /// How many descriptors one copy-mode `sendto` moves: 32 to the transmit ring's size.
    ///
    /// # Errors
    /// `ENOPROTOOPT` on a kernel before 6.17, `EACCES` out of range.
    pub fn set_tx_budget(&self, descriptors: u32) -> io::Result<()> {
        self.set(libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &descriptors)
    }

    /// Lets so many packets be on their way in copy mode: the transmit ring is to bound them, not the kernel's default of
    /// 208 KiB, some 270 packets (`SO_SNDBUFFORCE`; or `SO_SNDBUF`, which is cut to net.core.wmem_max).
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_send_buffer(&self, packets: u32) -> io::Result<()> {
        // The kernel doubles what it is given.
        let half = packets.saturating_mul(COPIED_BYTES_MAX / 2).min(libc::c_int::MAX.cast_unsigned());
        self.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &half)
            .or_else(|_| self.set(libc::SOL_SOCKET, libc::SO_SNDBUF, &half))
    }

    /// Tells the kernel to look at the transmit ring; never blocks.
    ///
    /// # Errors
    /// `EAGAIN` there is more to do, `EBUSY` one packet was dropped, `ENOBUFS`, `ENETDOWN` the interface is down,
    /// `ENXIO` it is gone.
    pub fn wake_transmit(&self) -> io::Result<()> {
        // SAFETY: no data and no address are passed, so no pointer is read.
        let sent = unsafe { libc::sendto(self.raw(), ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Tells the kernel to look at the fill ring, and polls the NIC where busy polling is on; never blocks.
    ///
    /// # Errors
    /// `ENETDOWN` the interface is down, `ENXIO` it is gone.
    pub fn wake_receive(&self) -> io::Result<()> {
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: no buffer and no address are passed, so no pointer is written.
        let received = unsafe {
            libc::recvfrom(self.raw(), ptr::null_mut(), 0, flags, ptr::null_mut(), ptr::null_mut())
        };
        if received < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn set<T: Plain>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        let length = mem::size_of::<T>() as libc::socklen_t;
        // SAFETY: `value` points to `length` readable bytes.
        let result =
            unsafe { libc::setsockopt(self.raw(), level, option, (&raw const *value).cast(), length) };
        done(result)
    }

    /// Reads an option into `value`; how many bytes the kernel wrote.
    fn get<T: Plain>(&self, level: libc::c_int, option: libc::c_int, value: &mut T) -> io::Result<usize> {
        let mut length = mem::size_of::<T>() as libc::socklen_t;
        let into = (&raw mut *value).cast();
        // SAFETY: `value` points to `length` writable bytes, and the kernel writes no more than `length`; T is plain
        // integers, so any bytes are a value of it.
        let result = unsafe { libc::getsockopt(self.raw(), level, option, into, &raw mut length) };
        done(result).map(|()| length as usize)
    }
}

impl From<OwnedFd> for XdpSocket {
    /// An AF_XDP socket that somebody else made; of another descriptor every request fails.
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl AsFd for XdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for XdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.raw()
    }
}

/// Option values of plain integers, without padding: what get and set may pass as bytes.
trait Plain {}
impl Plain for u32 {}
impl Plain for libc::xdp_umem_reg {}
impl Plain for libc::xdp_mmap_offsets {}
impl Plain for libc::xdp_options {}
impl Plain for libc::xdp_statistics {}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_abi_has_the_sizes_of_if_xdp_h() {
        assert_eq!(mem::size_of::<libc::xdp_umem_reg>(), 32);
        assert_eq!(mem::size_of::<libc::xdp_desc>(), 16);
        assert_eq!(mem::size_of::<libc::xdp_mmap_offsets>(), 128);
        assert_eq!(mem::size_of::<libc::xdp_statistics>(), 48);
        assert_eq!(mem::size_of::<libc::sockaddr_xdp>(), 16);
    }
}
