//! The XDP program of `timeball`, compiled from C, and the Rust twins of what it shares with user space.
//!
//! Owns: the object's bytes, the names in it (program, maps, globals), the layout of its keys and of the receive stamp,
//! and the list of verdicts. Does not own: loading it, attaching it, or filling its maps (`timeball::datapath::steering`).
//!
//! The one idea a newcomer lacks: `src/shared.h` is the C side of this file. Both assert the same sizes and offsets, and
//! the tests below compare the numbers and the verdicts with the header's text, so neither can move alone.

#[cfg(feature = "load")]
pub mod load;
#[cfg(feature = "load")]
pub mod load_redirect;

use std::mem::{offset_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The bytes with the alignment that ELF parsers want for the structs they read in place.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static ALIGNED_OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/steer.bpf.o")));

/// The compiled ELF object, aligned to 8 bytes.
pub static OBJECT: &[u8] = &ALIGNED_OBJECT.0;

/// The program's name in the object.
pub const PROGRAM: &str = "steer";
/// XSKMAP: receive queue index -> AF_XDP socket.
pub const MAP_SOCKETS: &str = "xsks";
/// HASH: [`LocalV4`] -> [`LocalMac`].
pub const MAP_LOCALS_V4: &str = "locals_v4";
/// HASH: [`LocalV6`] -> [`LocalMac`].
pub const MAP_LOCALS_V6: &str = "locals_v6";
/// LPM trie: IPv4 prefix -> `u32`, [`ACTION_SERVE`] or [`ACTION_DROP`].
pub const MAP_DENIED_V4: &str = "denied_v4";
/// LPM trie: IPv6 prefix -> `u32`, [`ACTION_SERVE`] or [`ACTION_DROP`].
pub const MAP_DENIED_V6: &str = "denied_v6";
/// PERCPU_ARRAY: [`Verdict`] -> `u64` packets.
pub const MAP_VERDICTS: &str = "verdicts";
/// ARRAY of one [`Shortcuts`]: the program's one global that changes. The name is the section's.
pub const MAP_SHORTCUTS: &str = ".bss";
/// Read-only global, `u16` in host order: the UDP port of the requests.
pub const GLOBAL_PORT: &str = "PORT";
/// Read-only global, `u32`: 1 in a device-bound build, which then asks the NIC for its receive stamp.
pub const GLOBAL_NIC_STAMPS: &str = "NIC_STAMPS";

/// The number of the helper call that stands in for [`NIC_STAMP_FUNCTION`] in the object.
pub const NIC_STAMP_PLACEHOLDER: i32 = 0x6e74_0001;
/// The kernel function that the loader of a device-bound build puts in the placeholder's place.
pub const NIC_STAMP_FUNCTION: &str = "bpf_xdp_metadata_rx_timestamp";

/// Entries of each map of local addresses: a full VLAN space with one address each.
pub const LOCAL_ADDRESSES_MAX: usize = 4096;
/// Entries of each deny trie: public block lists hold tens of thousands of prefixes.
pub const DENIED_PREFIXES_MAX: usize = 65536;
/// The longest redirected frame in bytes: Ethernet, two tags, 1500 bytes of IP. A umem chunk must hold it.
pub const FRAME_LENGTH_MAX: usize = 1522;
/// Deny trie: serve (lets a nested prefix through again).
pub const ACTION_SERVE: u32 = 0;
/// Deny trie: drop without a word.
pub const ACTION_DROP: u32 = 1;

/// Key of [`MAP_LOCALS_V4`]: `struct local_v4`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, IntoBytes, Immutable)]
pub struct LocalV4 {
    /// VLAN ID of the outer (or only) tag, 12 bits, host order; 0 = untagged.
    pub outer_vlan: u16,
    /// VLAN ID of the inner tag, 12 bits, host order; 0 = no second tag.
    pub inner_vlan: u16,
    /// The address as on the wire.
    pub address: [u8; 4],
}
const _: () = assert!(size_of::<LocalV4>() == 8 && offset_of!(LocalV4, address) == 4);

/// Key of [`MAP_LOCALS_V6`]: `struct local_v6`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, IntoBytes, Immutable)]
pub struct LocalV6 {
    /// VLAN ID of the outer (or only) tag, 12 bits, host order; 0 = untagged.
    pub outer_vlan: u16,
    /// VLAN ID of the inner tag, 12 bits, host order; 0 = no second tag.
    pub inner_vlan: u16,
    /// The address as on the wire.
    pub address: [u8; 16],
}
const _: () = assert!(size_of::<LocalV6>() == 20 && offset_of!(LocalV6, address) == 4);

/// Value of [`MAP_LOCALS_V4`] and [`MAP_LOCALS_V6`]: `struct local_mac`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, IntoBytes, Immutable)]
pub struct LocalMac {
    /// The MAC at which the address is reached, as on the wire: a frame to another one is not for us.
    pub mac: [u8; 6],
    /// Zero.
    pub padding: [u8; 2],
}
const _: () = assert!(size_of::<LocalMac>() == 8 && offset_of!(LocalMac, mac) == 0);

/// `struct shortcut_v4`: an IPv4 address that needs no look-up in [`MAP_LOCALS_V4`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, IntoBytes, Immutable)]
pub struct ShortcutV4 {
    /// 1, or 0: the rest is not looked at.
    pub on: u32,
    /// The address and its tags.
    pub local: LocalV4,
    /// The MAC at which it is reached.
    pub reached_at: LocalMac,
}
const _: () = assert!(size_of::<ShortcutV4>() == 20);

/// `struct shortcut_v6`: an IPv6 address that needs no look-up in [`MAP_LOCALS_V6`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, IntoBytes, Immutable)]
pub struct ShortcutV6 {
    /// 1, or 0: the rest is not looked at.
    pub on: u32,
    /// The address and its tags.
    pub local: LocalV6,
    /// The MAC at which it is reached.
    pub reached_at: LocalMac,
}
const _: () = assert!(size_of::<ShortcutV6>() == 32);

/// Value of [`MAP_SHORTCUTS`]: `struct shortcuts`. It says "yes" or nothing; shared.h says how it is written.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, IntoBytes, Immutable)]
pub struct Shortcuts {
    /// 1 if [`MAP_DENIED_V4`] drops any prefix; 0: it is not looked at.
    pub any_denied_v4: u32,
    /// 1 if [`MAP_DENIED_V6`] drops any prefix; 0: it is not looked at.
    pub any_denied_v6: u32,
    /// One of our IPv4 addresses: the lowest by tags and number when it was chosen, kept while it is ours.
    pub first_v4: ShortcutV4,
    /// The same of IPv6, link-local addresses only where there is no other.
    pub first_v6: ShortcutV6,
}
const _: () = assert!(size_of::<Shortcuts>() == 60 && offset_of!(Shortcuts, first_v4) == 8);
const _: () = assert!(offset_of!(Shortcuts, first_v6) == 28);

/// What the program writes right before a redirected packet: `struct rx_stamp`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
pub struct RxStamp {
    magic: u32,
    kind: u32,
    tai_nanoseconds: u64,
    nic_nanoseconds: u64,
}
const _: () = assert!(size_of::<RxStamp>() == 24 && offset_of!(RxStamp, kind) == 4);
const _: () =
    assert!(offset_of!(RxStamp, tai_nanoseconds) == 8 && offset_of!(RxStamp, nic_nanoseconds) == 16);

impl RxStamp {
    /// Bytes it takes, right before the packet.
    pub const LENGTH: usize = size_of::<Self>();
    /// Says that the bytes before a packet are a stamp: the AF_XDP descriptor does not.
    pub const MAGIC: u32 = 0x7462_6c31;
    const TAI: u32 = 1;
    const NIC: u32 = 2;

    /// The stamp in the bytes right before a packet, of which the last [`Self::LENGTH`] count.
    ///
    /// `None` if the magic is not there: no metadata was written (or `bytes` is too short). Bytes of an earlier packet
    /// may look like a stamp, so a receiver that recycles frames clears the magic once it has read it.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (_, stamp) = Self::read_from_suffix(bytes).ok()?;
        (stamp.magic == Self::MAGIC).then_some(stamp)
    }

    /// CLOCK_TAI when the XDP program ran, in nanoseconds since 1970. The kernel's TAI offset is part of it, whatever it is.
    #[must_use]
    pub fn tai_nanoseconds(&self) -> Option<u64> {
        (self.kind & Self::TAI != 0).then_some(self.tai_nanoseconds)
    }

    /// The NIC's own clock when the frame arrived, in nanoseconds since an epoch that only its PHC knows.
    #[must_use]
    pub fn nic_nanoseconds(&self) -> Option<u64> {
        (self.kind & Self::NIC != 0).then_some(self.nic_nanoseconds)
    }
}

/// What became of a packet: the index of its counter in [`MAP_VERDICTS`], `enum verdict`.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// To its queue's socket, with a stamp before it.
    Redirected,
    /// To its queue's socket, but the driver has no room for metadata.
    RedirectedWithoutMetadata,
    /// A request to us from a silently denied prefix.
    DroppedDenied,
    /// The destination MAC is broadcast or multicast.
    PassedMulticastMac,
    /// More than two VLAN tags.
    PassedTagsTooDeep,
    /// Neither IPv4 nor IPv6: ARP and the like.
    PassedNotIp,
    /// Another protocol over IP.
    PassedNotUdp,
    /// A fragment, the first one included.
    PassedFragment,
    /// IPv4 options or IPv6 extension headers.
    PassedOptions,
    /// UDP to another port.
    PassedOtherPort,
    /// Less than an NTP header.
    PassedTooShort,
    /// A frame longer than [`FRAME_LENGTH_MAX`].
    PassedTooLong,
    /// Headers cut off, lengths that contradict each other or the frame, or an IP version that contradicts the Ethernet type.
    PassedInconsistent,
    /// An NTP mode other than 3.
    PassedOtherMode,
    /// An NTP version other than 1 to 4.
    PassedOtherVersion,
    /// A request to an address (or on a VLAN) that is not ours: forwarded traffic.
    PassedNotOurAddress,
    /// A request to our address, but in a frame to another box's MAC: we see it because the interface is promiscuous, or
    /// because a switch floods it.
    PassedOtherMac,
    /// A request that would be redirected, but no socket serves its queue.
    PassedNoSocket,
}

impl Verdict {
    /// Every verdict, in the order of their counters.
    pub const ALL: [Self; 18] = [
        Self::Redirected,
        Self::RedirectedWithoutMetadata,
        Self::DroppedDenied,
        Self::PassedMulticastMac,
        Self::PassedTagsTooDeep,
        Self::PassedNotIp,
        Self::PassedNotUdp,
        Self::PassedFragment,
        Self::PassedOptions,
        Self::PassedOtherPort,
        Self::PassedTooShort,
        Self::PassedTooLong,
        Self::PassedInconsistent,
        Self::PassedOtherMode,
        Self::PassedOtherVersion,
        Self::PassedNotOurAddress,
        Self::PassedOtherMac,
        Self::PassedNoSocket,
    ];

    /// The name in C without its prefix, in lower case: the label in metrics and in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redirected => "redirected",
            Self::RedirectedWithoutMetadata => "redirected_without_metadata",
            Self::DroppedDenied => "dropped_denied",
            Self::PassedMulticastMac => "passed_multicast_mac",
            Self::PassedTagsTooDeep => "passed_tags_too_deep",
            Self::PassedNotIp => "passed_not_ip",
            Self::PassedNotUdp => "passed_not_udp",
            Self::PassedFragment => "passed_fragment",
            Self::PassedOptions => "passed_options",
            Self::PassedOtherPort => "passed_other_port",
            Self::PassedTooShort => "passed_too_short",
            Self::PassedTooLong => "passed_too_long",
            Self::PassedInconsistent => "passed_inconsistent",
            Self::PassedOtherMode => "passed_other_mode",
            Self::PassedOtherVersion => "passed_other_version",
            Self::PassedNotOurAddress => "passed_not_our_address",
            Self::PassedOtherMac => "passed_other_mac",
            Self::PassedNoSocket => "passed_no_socket",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = include_str!("shared.h");
    const PROGRAM_TEXT: &str = include_str!("steer.bpf.c");

    /// The number that the header gives to `name`.
    fn defined(name: &str) -> u64 {
        let line = HEADER.lines().find(|line| line.starts_with(&format!("#define {name} "))).unwrap();
        let number = line.split_whitespace().nth(2).unwrap();
        match number.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
            None => number.parse().unwrap(),
        }
    }

    #[test]
    fn numbers_equal_those_of_the_header() {
        assert_eq!(defined("LOCAL_ADDRESSES_MAX"), LOCAL_ADDRESSES_MAX as u64);
        assert_eq!(defined("DENIED_PREFIXES_MAX"), DENIED_PREFIXES_MAX as u64);
        assert_eq!(defined("FRAME_LENGTH_MAX"), FRAME_LENGTH_MAX as u64);
        assert_eq!(defined("ACTION_SERVE"), u64::from(ACTION_SERVE));
        assert_eq!(defined("ACTION_DROP"), u64::from(ACTION_DROP));
        assert_eq!(defined("RX_STAMP_MAGIC"), u64::from(RxStamp::MAGIC));
        assert_eq!(defined("RX_STAMP_TAI"), u64::from(RxStamp::TAI));
        assert_eq!(defined("RX_STAMP_NIC"), u64::from(RxStamp::NIC));
        assert!(PROGRAM_TEXT.contains(&format!("{NIC_STAMP_PLACEHOLDER:#x}")));
    }

    #[test]
    fn verdicts_have_the_names_and_order_of_the_header() {
        let header: Vec<String> = HEADER
            .lines()
            .filter_map(|line| line.trim().strip_prefix("VERDICT_")?.strip_suffix(','))
            .map(str::to_lowercase)
            .collect();
        assert_eq!(header, Verdict::ALL.map(Verdict::name));
        for (index, verdict) in Verdict::ALL.into_iter().enumerate() {
            assert_eq!(verdict as usize, index);
        }
    }

    #[test]
    fn the_object_is_an_aligned_elf_file() {
        assert!(OBJECT.starts_with(b"\x7fELF"));
        assert_eq!(OBJECT.as_ptr() as usize % 8, 0);
    }

    #[test]
    fn reads_a_stamp_from_the_bytes_right_before_the_packet() {
        let stamp = RxStamp { magic: RxStamp::MAGIC, kind: 1, tai_nanoseconds: 7, nic_nanoseconds: 9 };
        let headroom = [&[0xff; 8], stamp.as_bytes()].concat();
        let read = RxStamp::read(&headroom).unwrap();
        assert_eq!((read.tai_nanoseconds(), read.nic_nanoseconds()), (Some(7), None));
        let both = RxStamp { kind: 3, ..stamp };
        assert_eq!(RxStamp::read(both.as_bytes()).unwrap().nic_nanoseconds(), Some(9));
    }

    #[test]
    fn reads_no_stamp_where_the_magic_is_not() {
        let stamp = RxStamp { magic: RxStamp::MAGIC + 1, kind: 3, tai_nanoseconds: 7, nic_nanoseconds: 9 };
        assert_eq!(RxStamp::read(stamp.as_bytes()), None);
        assert_eq!(RxStamp::read(&[0; RxStamp::LENGTH]), None);
        assert_eq!(RxStamp::read(&stamp.as_bytes()[1..]), None);
        assert_eq!(RxStamp::read(&[]), None);
    }
}
