//! The XDP program on one interface: loaded, attached, and its maps kept in step with what the daemon knows.
//!
//! Owns: the program, its link and its maps, and the words for what may go wrong with them. Does not own: the rule
//! (`xdp-prog/src/steer.bpf.c`), the sockets, or which attempt comes after a failed one (the ladder in `af_xdp`).
//!
//! The one idea a newcomer lacks: one object makes two programs. The plain one runs anywhere; the device-bound one may ask
//! the NIC for its receive stamp, but runs only on the device it was loaded for, in driver mode. aya loads the first and
//! makes the maps of both; it can neither parse a kernel function in an object nor bind a program to a device, so the
//! second is relocated with aya's parser, one call is patched, and `sys::bpf` loads it. We attach both ourselves, since
//! aya's `attach` falls back to netlink, which hides the cause of a failure and outlives a killed process.

mod error;
mod shortcuts;

use self::error::{attach_cause, os_error};
use self::shortcuts::{ShortcutMap, ShortcutWriter};
use super::interface::TagStack;
use crate::sys::bpf::{LoadRefused, create_xdp_link, detach_link, load_device_bound_xdp, translated_length};
use crate::sys::netlink::device_features;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, XskMap};
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfLoader};
use aya_obj::btf::{Btf, BtfKind};
use aya_obj::generated::{BPF_CALL, BPF_JA, BPF_JMP, BPF_PSEUDO_KFUNC_CALL, bpf_insn};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::{fmt, io};
use timeball_xdp_prog as object;
use timeball_xdp_prog::{DENIED_PREFIXES_MAX, LOCAL_ADDRESSES_MAX, LocalMac, LocalV4, LocalV6};
use zerocopy::transmute;

pub use self::error::SteeringError;
pub use super::interface::SteeringAddress;
pub use crate::sys::bpf::AttachMode;
pub use timeball_xdp_prog::{FRAME_LENGTH_MAX, RxStamp, Verdict};

/// Which of the two programs to load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    /// Stamps with CLOCK_TAI; runs on every interface, in either mode.
    Plain,
    /// Also asks the NIC for its stamp; runs only on the interface it was loaded for, in driver mode. Linux 6.3 or newer.
    DeviceBound,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::DeviceBound => "device-bound",
        })
    }
}

/// What to load, and for which interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SteeringConfig {
    /// UDP port of the requests, 123 for NTP.
    pub port: u16,
    /// Receive queues of the interface: the number of socket slots, at least 1.
    pub queues: u32,
    /// Index of the interface in the calling thread's network namespace.
    pub interface_index: u32,
    /// Which program.
    pub variant: Variant,
}

/// What the program does with requests from a prefix. The longest prefix that matches decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrefixAction {
    /// Redirect: lets a nested prefix through again. (What no prefix matches is redirected too.)
    Serve,
    /// Drop without a word.
    Drop,
}

/// The XDP program and its maps for one interface. Dropping it detaches the program, and so does any death of the process.
#[derive(Debug)]
pub struct Steering {
    config: SteeringConfig,
    program: OwnedFd,
    link: Option<OwnedFd>,
    maps: Maps,
    locals: BTreeMap<Local, [u8; 6]>,
    denied: BTreeMap<IpNet, PrefixAction>,
}

/// What the maps of local addresses are keyed by; the value is the MAC.
type Local = (TagStack, IpAddr);

struct Maps {
    sockets: XskMap<MapData>,
    locals_v4: HashMap<MapData, [u8; size_of::<LocalV4>()], [u8; size_of::<LocalMac>()]>,
    locals_v6: HashMap<MapData, [u8; size_of::<LocalV6>()], [u8; size_of::<LocalMac>()]>,
    denied_v4: LpmTrie<MapData, [u8; 4], u32>,
    denied_v6: LpmTrie<MapData, [u8; 16], u32>,
    shortcuts: ShortcutWriter,
    verdicts: PerCpuArray<MapData, u64>,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Steering {
    /// Creates the maps and loads the program, which then waits to be attached.
    ///
    /// # Errors
    /// No privilege, a kernel too old for the variant, or (device-bound) an interface that is not there.
    pub fn load(config: &SteeringConfig) -> Result<Self, SteeringError> {
        let nic_stamps = u32::from(config.variant == Variant::DeviceBound);
        // The object has no CO-RE relocations: without the kernel's BTF, loading takes 25 MB and 20 ms less.
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .override_global(object::GLOBAL_PORT, &config.port, true)
            .override_global(object::GLOBAL_NIC_STAMPS, &nic_stamps, true)
            .map_max_entries(object::MAP_SOCKETS, config.queues)
            .load(object::OBJECT)
            .map_err(SteeringError::from_maps)?;
        let program = match config.variant {
            Variant::Plain => load_plain(&mut ebpf)?,
            Variant::DeviceBound => load_device_bound(&ebpf, config.interface_index)?,
        };
        Ok(Self {
            config: *config,
            program,
            link: None,
            maps: Maps {
                sockets: take(&mut ebpf, object::MAP_SOCKETS)?,
                locals_v4: take(&mut ebpf, object::MAP_LOCALS_V4)?,
                locals_v6: take(&mut ebpf, object::MAP_LOCALS_V6)?,
                denied_v4: take(&mut ebpf, object::MAP_DENIED_V4)?,
                denied_v6: take(&mut ebpf, object::MAP_DENIED_V6)?,
                shortcuts: ShortcutWriter::new(take::<ShortcutMap>(&mut ebpf, object::MAP_SHORTCUTS)?),
                verdicts: take(&mut ebpf, object::MAP_VERDICTS)?,
            },
            locals: BTreeMap::new(),
            denied: BTreeMap::new(),
        })
    }

    /// Attaches the program to its interface, from a thread in the interface's network namespace. If it is attached
    /// already, in whichever mode, it is detached first.
    ///
    /// # Errors
    /// [`SteeringError::Attach`]; the program is then not attached at all.
    pub fn attach(&mut self, mode: AttachMode) -> Result<(), SteeringError> {
        self.detach();
        let interface_index = self.config.interface_index;
        let link = create_xdp_link(&self.program, interface_index, mode).map_err(|error| {
            let cause = attach_cause(&error, mode, self.config.variant);
            SteeringError::Attach { interface_index, mode, variant: self.config.variant, error, cause }
        })?;
        self.link = Some(link);
        Ok(())
    }

    /// Detaches the program; the kernel has taken it off the interface when this returns. Maps and counters stay.
    pub fn detach(&mut self) {
        if let Some(link) = self.link.take()
            && let Err(error) = detach_link(&link)
        {
            // Closing the link, which happens next, detaches too; only perhaps a moment later.
            tracing::debug!(interface = self.config.interface_index, %error, "XDP link not detached by request");
        }
    }

    /// Redirects the requests of receive queue `queue` to an AF_XDP socket, which must be bound to that queue by now: the
    /// kernel takes an unbound one too, and drops what it is sent. The slot empties itself when the socket is closed.
    ///
    /// # Errors
    /// No such queue, or not an AF_XDP socket.
    pub fn set_socket(&mut self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), SteeringError> {
        let result = self.maps.sockets.set(queue, socket.as_raw_fd(), 0);
        result.map_err(|error| SteeringError::map(object::MAP_SOCKETS, error))
    }

    /// Passes the requests of receive queue `queue` to the kernel again. An empty slot is no error.
    ///
    /// # Errors
    /// No such queue.
    pub fn clear_socket(&mut self, queue: u32) -> Result<(), SteeringError> {
        absent_is_fine(self.maps.sockets.unset(queue))
            .map_err(|error| SteeringError::map(object::MAP_SOCKETS, error))
    }

    /// Makes `wanted` the addresses whose requests are redirected, in frames to the MAC that comes with each. Only what
    /// changed is written, and a new MAC takes the old one's place in one step, so requests to an address that stays are
    /// never missed. Of two entries that differ in their MAC alone the last one counts.
    ///
    /// One address of each family is also given a shortcut, which may take some tens of milliseconds when that address changes.
    ///
    /// Of each family the first [`LOCAL_ADDRESSES_MAX`], by tags and then by address, are redirected. What is beyond them
    /// is left to the sockets, and what is not wanted any more leaves the map in any case.
    ///
    /// # Errors
    /// [`SteeringError::TooMany`] after all that was done: `count - limit` addresses of that family (of IPv4, if both have
    /// too many) are left to the sockets. [`SteeringError::Map`] half-way, and the next call completes it.
    pub fn replace_locals(&mut self, wanted: &[SteeringAddress]) -> Result<(), SteeringError> {
        let mut fitting: BTreeMap<Local, _> =
            wanted.iter().map(|one| ((one.tags, one.address), one.mac)).collect();
        let (mut v4, mut v6) = (0, 0);
        fitting.retain(|(_, address), _| {
            let count = if address.is_ipv4() { &mut v4 } else { &mut v6 };
            *count += 1;
            *count <= LOCAL_ADDRESSES_MAX
        });

        self.maps.shortcuts.keep(&fitting)?;
        // What goes leaves first: old and new together may not fit.
        let gone: Vec<_> = self.locals.keys().filter(|local| !fitting.contains_key(local)).copied().collect();
        for local in gone {
            self.maps.remove_local(local)?;
            self.locals.remove(&local);
        }
        for (&local, &mac) in &fitting {
            if self.locals.get(&local) != Some(&mac) {
                self.maps.set_local(local, mac)?;
                self.locals.insert(local, mac);
            }
        }
        self.maps.shortcuts.fill(&fitting)?;
        check_room("IPv4 addresses", v4, LOCAL_ADDRESSES_MAX)?;
        check_room("IPv6 addresses", v6, LOCAL_ADDRESSES_MAX)
    }

    /// Makes `wanted` the prefixes with an action of their own; of two equal prefixes the last one counts. Host bits are
    /// ignored. Prefixes match source addresses as they are on the wire: `::ffff:0:0/96` is not IPv4 here.
    ///
    /// # Errors
    /// [`SteeringError::TooMany`] before anything is changed; [`SteeringError::Map`] half-way, and the next call completes it.
    pub fn replace_denied(&mut self, wanted: &[(IpNet, PrefixAction)]) -> Result<(), SteeringError> {
        let wanted: BTreeMap<IpNet, PrefixAction> =
            wanted.iter().map(|(prefix, action)| (prefix.trunc(), *action)).collect();
        let v4 = wanted.keys().filter(|prefix| prefix.addr().is_ipv4()).count();
        check_room("IPv4 prefixes", v4, DENIED_PREFIXES_MAX)?;
        check_room("IPv6 prefixes", wanted.len() - v4, DENIED_PREFIXES_MAX)?;

        let drops = |v4| {
            let is_one = |(prefix, action): (&IpNet, &PrefixAction)| {
                *action == PrefixAction::Drop && prefix.addr().is_ipv4() == v4
            };
            wanted.iter().any(is_one)
        };
        let any_denied = [drops(true), drops(false)];
        // Off before the last prefix leaves, on after the first one came: while it is off, none counts.
        self.maps.shortcuts.set_any_denied(self.maps.shortcuts.still_denied(any_denied))?;
        let gone: Vec<_> =
            self.denied.keys().filter(|prefix| !wanted.contains_key(prefix)).copied().collect();
        for prefix in gone {
            self.maps.remove_prefix(prefix)?;
            self.denied.remove(&prefix);
        }
        for (prefix, action) in wanted {
            if self.denied.get(&prefix) != Some(&action) {
                self.maps.set_prefix(prefix, action)?;
                self.denied.insert(prefix, action);
            }
        }
        self.maps.shortcuts.set_any_denied(any_denied)
    }

    /// Packets per verdict since the program was loaded, summed over CPUs, in the order of [`Verdict::ALL`].
    ///
    /// # Errors
    /// [`SteeringError::Map`]: the kernel refused to read its own counters.
    pub fn verdicts(&self) -> Result<Vec<(Verdict, u64)>, SteeringError> {
        let total = |verdict: Verdict| match self.maps.verdicts.get(&(verdict as u32), 0) {
            Ok(per_cpu) => Ok((verdict, per_cpu.iter().sum())),
            Err(error) => Err(SteeringError::map(object::MAP_VERDICTS, error)),
        };
        Verdict::ALL.into_iter().map(total).collect()
    }

    /// The loaded program, for the kernel's test run.
    #[must_use]
    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        self.detach();
    }
}

impl Maps {
    /// Adds an address, or puts another MAC in the place of its present one.
    fn set_local(&mut self, (tags, address): Local, mac: [u8; 6]) -> Result<(), SteeringError> {
        let mac: [u8; size_of::<LocalMac>()] = transmute!(LocalMac { mac, padding: [0; 2] });
        match address {
            IpAddr::V4(address) => self
                .locals_v4
                .insert(local_v4(tags, address.octets()), mac, 0)
                .map_err(|error| SteeringError::map(object::MAP_LOCALS_V4, error)),
            IpAddr::V6(address) => self
                .locals_v6
                .insert(local_v6(tags, address.octets()), mac, 0)
                .map_err(|error| SteeringError::map(object::MAP_LOCALS_V6, error)),
        }
    }

    fn remove_local(&mut self, (tags, address): Local) -> Result<(), SteeringError> {
        match address {
            IpAddr::V4(address) => absent_is_fine(self.locals_v4.remove(&local_v4(tags, address.octets())))
                .map_err(|error| SteeringError::map(object::MAP_LOCALS_V4, error)),
            IpAddr::V6(address) => absent_is_fine(self.locals_v6.remove(&local_v6(tags, address.octets())))
                .map_err(|error| SteeringError::map(object::MAP_LOCALS_V6, error)),
        }
    }

    fn set_prefix(&mut self, prefix: IpNet, action: PrefixAction) -> Result<(), SteeringError> {
        let action = match action {
            PrefixAction::Serve => object::ACTION_SERVE,
            PrefixAction::Drop => object::ACTION_DROP,
        };
        let length = u32::from(prefix.prefix_len());
        match prefix.addr() {
            IpAddr::V4(address) => self
                .denied_v4
                .insert(&Key::new(length, address.octets()), action, 0)
                .map_err(|error| SteeringError::map(object::MAP_DENIED_V4, error)),
            IpAddr::V6(address) => self
                .denied_v6
                .insert(&Key::new(length, address.octets()), action, 0)
                .map_err(|error| SteeringError::map(object::MAP_DENIED_V6, error)),
        }
    }

    fn remove_prefix(&mut self, prefix: IpNet) -> Result<(), SteeringError> {
        let length = u32::from(prefix.prefix_len());
        match prefix.addr() {
            IpAddr::V4(address) => absent_is_fine(self.denied_v4.remove(&Key::new(length, address.octets())))
                .map_err(|error| SteeringError::map(object::MAP_DENIED_V4, error)),
            IpAddr::V6(address) => absent_is_fine(self.denied_v6.remove(&Key::new(length, address.octets())))
                .map_err(|error| SteeringError::map(object::MAP_DENIED_V6, error)),
        }
    }
}

fn local_v4([outer_vlan, inner_vlan]: TagStack, address: [u8; 4]) -> [u8; size_of::<LocalV4>()] {
    transmute!(LocalV4 { outer_vlan, inner_vlan, address })
}

fn local_v6([outer_vlan, inner_vlan]: TagStack, address: [u8; 16]) -> [u8; size_of::<LocalV6>()] {
    transmute!(LocalV6 { outer_vlan, inner_vlan, address })
}

/// The map of that name, out of the loaded object and as its Rust type.
fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, SteeringError> {
    let map = ebpf.take_map(name).ok_or(SteeringError::Object(format!("no map {name}")))?;
    T::try_from(map).map_err(|error| SteeringError::Object(format!("map {name}: {error}")))
}

fn load_plain(ebpf: &mut Ebpf) -> Result<OwnedFd, SteeringError> {
    let missing = || SteeringError::Object(format!("no program {}", object::PROGRAM));
    let program = ebpf.program_mut(object::PROGRAM).ok_or_else(missing)?;
    let program: &mut Xdp = program.try_into().map_err(SteeringError::object)?;
    program.load().map_err(|error| match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            SteeringError::refused(Variant::Plain, io_error, &verifier_log.to_string())
        }
        other => SteeringError::object(other),
    })?;
    let fd = program.fd().map_err(SteeringError::object)?.as_fd().try_clone_to_owned();
    fd.map_err(|error| SteeringError::refused(Variant::Plain, error, ""))
}

/// `NETDEV_XDP_RX_METADATA_TIMESTAMP` of linux/netdev.h.
const RX_METADATA_TIMESTAMP: u64 = 1;

/// Loads the program that asks the NIC for its stamp, on the maps that `ebpf` holds.
fn load_device_bound(ebpf: &Ebpf, interface_index: u32) -> Result<OwnedFd, SteeringError> {
    // The kernel binds a program to any driver with XDP, stamps or not (igb, virtio_net, tun): the function would
    // refuse every single packet. Where the kernel does not say (before 6.8), trying is all there is.
    let metadata = device_features(interface_index).ok().and_then(|features| features.rx_metadata);
    if metadata.is_some_and(|bits| bits & RX_METADATA_TIMESTAMP == 0) {
        return Err(SteeringError::NoDriverStamps);
    }
    let function = Btf::from_sys_fs()
        .and_then(|btf| btf.id_by_type_name_kind(object::NIC_STAMP_FUNCTION, BtfKind::Func))
        .map_err(|error| SteeringError::NoNicStamps(error.to_string()))?;
    let mut parsed = aya_obj::Object::parse(object::OBJECT).map_err(SteeringError::object)?;
    let definitions = std::mem::take(&mut parsed.maps);
    let mut maps = Vec::with_capacity(definitions.len());
    for (name, definition) in &definitions {
        let map = ebpf.map(name).ok_or_else(|| SteeringError::Object(format!("no map {name}")))?;
        maps.push((name.as_str(), map_data(map)?.fd().as_fd().as_raw_fd(), definition));
    }
    let text_sections = parsed.functions.keys().map(|(section, _)| *section).collect();
    parsed.relocate_maps(maps.into_iter(), &text_sections).map_err(SteeringError::object)?;
    parsed.relocate_calls(&text_sections).map_err(SteeringError::object)?;
    let mut instructions = parsed
        .programs
        .get(object::PROGRAM)
        .and_then(|program| parsed.functions.get(&program.function_key()))
        .map(|function| function.instructions.clone())
        .ok_or_else(|| SteeringError::Object(format!("no program {}", object::PROGRAM)))?;
    call_kernel_function(&mut instructions, function);
    leave_room(&mut instructions);
    let program = load_device_bound_xdp(object::PROGRAM, &instructions, &parsed.license, interface_index)
        .map_err(|LoadRefused { error, log }| SteeringError::refused(Variant::DeviceBound, error, &log))?;
    let translated = translated_length(&program)
        .map_err(|error| SteeringError::refused(Variant::DeviceBound, error, ""))?;
    if !stayed_in_place(instructions.len(), translated) {
        return Err(SteeringError::Moved { loaded: size_of_val(&*instructions), translated });
    }
    Ok(program)
}

/// What the kernel's allocations for programs are multiples of, in bytes. It may be more, never less.
const PAGE: usize = 4096;
/// More than the kernel's `struct bpf_prog` takes before the instructions (72 to 96 bytes in 6.3 to 6.18).
const PROGRAM_HEADER_MAX: usize = 128;

/// Puts as many idle instructions before the program as make it a page longer.
///
/// The verifier replaces some instructions by several, and moves a program that outgrows its pages by that. Up to Linux 6.18
/// at least, the interface's list of the programs bound to it keeps the old address, and an interface that leaves before its
/// program does has the kernel read freed memory: it was seen to die of that, its network lock held. The verifier takes the
/// idle instructions out first and leaves their room.
fn leave_room(instructions: &mut Vec<bpf_insn>) {
    // A jump to the next instruction.
    let idle = bpf_insn {
        code: (BPF_JMP | BPF_JA) as u8,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(0, 0),
        off: 0,
        imm: 0,
    };
    instructions.splice(..0, [idle; PAGE / size_of::<bpf_insn>()]);
}

/// Did the verifier leave a program of so many instructions where it was, now that it has so many bytes of them?
const fn stayed_in_place(loaded: usize, translated: usize) -> bool {
    (PROGRAM_HEADER_MAX + translated).div_ceil(PAGE) <= (loaded * size_of::<bpf_insn>()).div_ceil(PAGE)
}

/// Turns the calls of the placeholder helper into calls of the kernel function with that BTF type ID.
fn call_kernel_function(instructions: &mut [bpf_insn], function: u32) {
    for instruction in instructions {
        let is_call = u32::from(instruction.code) == BPF_JMP | BPF_CALL;
        if is_call && instruction.src_reg() == 0 && instruction.imm == object::NIC_STAMP_PLACEHOLDER {
            instruction.set_src_reg(BPF_PSEUDO_KFUNC_CALL as u8);
            instruction.off = 0;
            instruction.imm = function.cast_signed();
        }
    }
}

fn map_data(map: &Map) -> Result<&MapData, SteeringError> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::XskMap(data) => Ok(data),
        other => Err(SteeringError::Object(format!("unexpected map {other:?}"))),
    }
}

fn check_room(what: &'static str, count: usize, limit: usize) -> Result<(), SteeringError> {
    if count > limit { Err(SteeringError::TooMany { what, count, limit }) } else { Ok(()) }
}

/// Deleting what is not there is not a failure.
fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(error) if os_error(&error).and_then(io::Error::raw_os_error) == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_a_page_to_grow_by() {
        let mut instructions = Vec::new();
        leave_room(&mut instructions);
        assert_eq!(size_of_val(&*instructions), PAGE);
        // What was seen: 3,504 bytes that became 4,112.
        assert!(!stayed_in_place(3504 / 8, 4112));
        assert!(stayed_in_place((3504 + PAGE) / 8, 4112));
        assert!(stayed_in_place(3504 / 8, PAGE - PROGRAM_HEADER_MAX));
        assert!(!stayed_in_place(3504 / 8, PAGE - PROGRAM_HEADER_MAX + 1));
    }
}
