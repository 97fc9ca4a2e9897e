//! The XDP program's shortcuts: what spares requests to one address of each family the look-ups in its maps.
//!
//! Owns: which address of each family has a shortcut, and the order in which the program's global is written. Does not own:
//! the maps, which hold everything that is in here too.
//!
//! The one idea a newcomer lacks: a shortcut is a cache that says "yes" or nothing, so a request to one of our addresses
//! is never missed, whatever it holds: the map is asked next. What must not happen is a "yes" to an address that never
//! was ours, and the kernel writes a global byte by byte while the program reads it. So the flag of an address goes off;
//! then no run that saw it on is left, for which the kernel is asked to wait ([`wait_for_running_programs`]); then the
//! address is written; then no run that saw it half written is left; then the flag goes on. That holds on machines that
//! reorder reads, too. A flag is one byte that changes between 0 and 1, which nobody can see half of.
//!
//! The two waits take some tens of milliseconds of the control thread, when the first address of a family changes. Where the
//! kernel does not offer it (`nohz_full`, a sandbox), addresses have no shortcut, and everything else is as it is.

use super::{Local, SteeringError};
use crate::sys::bpf::wait_for_running_programs;
use aya::maps::{Array, MapData};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use timeball_xdp_prog as object;
use timeball_xdp_prog::{LocalMac, LocalV4, LocalV6, ShortcutV4, ShortcutV6, Shortcuts};
use zerocopy::transmute;

/// The map behind the global, as aya hands it out.
pub(super) type ShortcutMap = Array<MapData, [u8; size_of::<Shortcuts>()]>;

/// The global and what was written to it.
pub(super) struct ShortcutWriter {
    map: ShortcutMap,
    written: Shortcuts,
    /// Runs may be under way that saw an address on which is off by now.
    seen_on: bool,
    /// Can the kernel be asked to wait? Assumed until it cannot.
    can_wait: bool,
}

impl ShortcutWriter {
    /// Of a program that was just loaded, whose global is zero.
    pub(super) fn new(map: ShortcutMap) -> Self {
        Self { map, written: Shortcuts::default(), seen_on: false, can_wait: true }
    }

    /// Does any prefix of IPv4 drop, and any of IPv6? `false` only while none in the maps does: the program does not look.
    pub(super) fn set_any_denied(&mut self, [v4, v6]: [bool; 2]) -> Result<(), SteeringError> {
        let next = Shortcuts { any_denied_v4: v4.into(), any_denied_v6: v6.into(), ..self.written };
        self.write(next)
    }

    /// Those of `wanted` that [`Self::set_any_denied`] has on.
    pub(super) fn still_denied(&self, [v4, v6]: [bool; 2]) -> [bool; 2] {
        [v4 && self.written.any_denied_v4 != 0, v6 && self.written.any_denied_v6 != 0]
    }

    /// Switches off what is not among `wanted`, with its MAC. To be called before that leaves the maps.
    pub(super) fn keep(&mut self, wanted: &BTreeMap<Local, [u8; 6]>) -> Result<(), SteeringError> {
        let mut next = self.written;
        let stays = |local: Local, reached_at: LocalMac| wanted.get(&local) == Some(&reached_at.mac);
        let ShortcutV4 { local, reached_at, .. } = next.first_v4;
        if !stays(([local.outer_vlan, local.inner_vlan], local.address.into()), reached_at) {
            next.first_v4.on = 0;
        }
        let ShortcutV6 { local, reached_at, .. } = next.first_v6;
        if !stays(([local.outer_vlan, local.inner_vlan], local.address.into()), reached_at) {
            next.first_v6.on = 0;
        }
        let addresses_go = (next.first_v4.on, next.first_v6.on) != self.addresses_on();
        self.write(next)?;
        self.seen_on |= addresses_go;
        Ok(())
    }

    /// Gives each family that has no shortcut one, for the first of `wanted`, which are in the maps by now.
    pub(super) fn fill(&mut self, wanted: &BTreeMap<Local, [u8; 6]>) -> Result<(), SteeringError> {
        if !self.can_wait {
            return Ok(());
        }
        let off = self.written;
        let mut on = off;
        if off.first_v4.on == 0
            && let Some((local, reached_at)) = first_v4(wanted)
        {
            on.first_v4 = ShortcutV4 { on: 1, local, reached_at };
        }
        if off.first_v6.on == 0
            && let Some((local, reached_at)) = first_v6(wanted)
        {
            on.first_v6 = ShortcutV6 { on: 1, local, reached_at };
        }
        let mut changed = on;
        (changed.first_v4.on, changed.first_v6.on) = self.addresses_on();
        // An address that came back finds itself written.
        if changed != off {
            if self.seen_on && !self.wait() {
                return Ok(());
            }
            self.seen_on = false;
            self.write(changed)?;
            if !self.wait() {
                return Ok(());
            }
        }
        self.write(on)
    }

    const fn addresses_on(&self) -> (u32, u32) {
        (self.written.first_v4.on, self.written.first_v6.on)
    }

    /// Waits for the runs that are under way. If that cannot be, what is off stays off.
    fn wait(&mut self) -> bool {
        if self.can_wait
            && let Err(error) = wait_for_running_programs()
        {
            tracing::debug!(%error, "addresses have no shortcut in the XDP program");
            self.can_wait = false;
        }
        self.can_wait
    }

    fn write(&mut self, next: Shortcuts) -> Result<(), SteeringError> {
        if next == self.written {
            return Ok(());
        }
        let bytes: [u8; size_of::<Shortcuts>()] = transmute!(next);
        self.map.set(0, bytes, 0).map_err(|error| SteeringError::map(object::MAP_SHORTCUTS, error))?;
        self.written = next;
        Ok(())
    }
}

/// The first IPv4 address in the order of tags and addresses.
fn first_v4(wanted: &BTreeMap<Local, [u8; 6]>) -> Option<(LocalV4, LocalMac)> {
    wanted.iter().find_map(|(&([outer_vlan, inner_vlan], address), &mac)| match address {
        IpAddr::V4(address) => {
            let local = LocalV4 { outer_vlan, inner_vlan, address: address.octets() };
            Some((local, LocalMac { mac, padding: [0; 2] }))
        }
        IpAddr::V6(_) => None,
    })
}

/// The first IPv6 address that is not link-local, or the first of those: servers are asked at the others.
fn first_v6(wanted: &BTreeMap<Local, [u8; 6]>) -> Option<(LocalV6, LocalMac)> {
    let of_family = wanted.iter().filter_map(|(&(tags, address), &mac)| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some((tags, address, mac)),
    });
    let first = of_family.min_by_key(|(_, address, _)| address.is_unicast_link_local());
    first.map(|([outer_vlan, inner_vlan], address, mac): ([u16; 2], Ipv6Addr, [u8; 6])| {
        let local = LocalV6 { outer_vlan, inner_vlan, address: address.octets() };
        (local, LocalMac { mac, padding: [0; 2] })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::steering::{
        PrefixAction, Steering, SteeringAddress, SteeringConfig, Variant, Verdict,
    };
    use crate::sys::bpf::{TestRunInput, test_run_xdp};
    use crate::sys::refuse::refuse;
    use std::mem::offset_of;
    use std::thread;

    const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    /// `None`, having said so, where loading is not allowed.
    fn load() -> Option<Steering> {
        let config = SteeringConfig { port: 123, queues: 1, interface_index: 0, variant: Variant::Plain };
        match Steering::load(&config) {
            Ok(steering) => Some(steering),
            Err(SteeringError::CreateMaps { error, .. }) if error.raw_os_error() == Some(libc::EPERM) => {
                eprintln!("SKIP: cannot load BPF programs: {error}");
                None
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn set(steering: &mut Steering, addresses: &[&str]) {
        let local = |address: &&str| SteeringAddress {
            tags: [0, 0],
            address: address.parse().unwrap(),
            mac: OUR_MAC,
        };
        steering.replace_locals(&addresses.iter().map(local).collect::<Vec<_>>()).unwrap();
    }

    /// The global, as the program sees it: what is on for IPv4 and IPv6, and what is dropped.
    fn global(steering: &Steering) -> ([u32; 2], [u32; 2]) {
        let bytes = steering.maps.shortcuts.map.get(&0, 0).unwrap();
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let v4_on = offset_of!(Shortcuts, first_v4) + offset_of!(ShortcutV4, on);
        let v6_on = offset_of!(Shortcuts, first_v6) + offset_of!(ShortcutV6, on);
        let denied = [offset_of!(Shortcuts, any_denied_v4), offset_of!(Shortcuts, any_denied_v6)];
        ([v4_on, v6_on].map(word), denied.map(word))
    }

    /// Is a request to this IPv4 address taken as one of ours?
    fn takes(steering: &Steering, address: &str) -> bool {
        let ours = |steering: &Steering| {
            let verdicts = steering.verdicts().unwrap();
            verdicts.into_iter().find(|verdict| verdict.0 == Verdict::PassedNoSocket).unwrap().1
        };
        let IpAddr::V4(address) = address.parse().unwrap() else { panic!("{address} is not IPv4") };
        let ip = [0x45, 0, 0, 76, 0, 0, 0, 0, 64, 17, 0, 0, 10, 99, 66, 7];
        let udp = [0x30, 0x39, 0, 123, 0, 56, 0, 0];
        let mut ntp = [0; 48];
        ntp[0] = 0x23;
        let ethernet = [&OUR_MAC[..], &[2, 0, 0, 0, 0, 9], &[8, 0]].concat();
        let frame = [&ethernet[..], &ip, &address.octets(), &udp, &ntp].concat();
        let before = ours(steering);
        let input = TestRunInput { metadata: &[], frame: &frame, queue: None, repeat: 1 };
        test_run_xdp(steering.program(), &input).unwrap();
        ours(steering) > before
    }

    const FIRST: [&str; 2] = ["10.99.0.1", "fd99::1"];
    const OTHER: [&str; 2] = ["10.99.0.2", "fd99::2"];

    #[test]
    fn where_the_kernel_does_not_wait_no_address_has_a_shortcut_however_often_they_are_set() {
        thread::spawn(|| {
            let Some(mut steering) = load() else { return };
            refuse(libc::SYS_membarrier, libc::EINVAL);
            for wanted in [FIRST, FIRST, OTHER, OTHER, FIRST] {
                set(&mut steering, &wanted);
                assert_eq!(global(&steering), ([0, 0], [0, 0]), "{wanted:?}");
                let taken = [FIRST, OTHER].map(|[v4, _]| takes(&steering, v4));
                assert_eq!(taken, [wanted == FIRST, wanted == OTHER], "{wanted:?}");
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_shortcut_goes_for_good_once_the_kernel_does_not_wait_any_more() {
        thread::spawn(|| {
            let Some(mut steering) = load() else { return };
            set(&mut steering, &FIRST);
            assert_eq!(global(&steering), ([1, 1], [0, 0]));
            refuse(libc::SYS_membarrier, libc::ENOSYS);
            set(&mut steering, &FIRST);
            assert_eq!(global(&steering), ([1, 1], [0, 0]), "nothing changed");
            for wanted in [OTHER, OTHER, FIRST] {
                set(&mut steering, &wanted);
                assert_eq!(global(&steering), ([0, 0], [0, 0]), "{wanted:?}");
                assert!(takes(&steering, wanted[0]) && !takes(&steering, "10.99.0.3"), "{wanted:?}");
            }
            // A flag of one byte needs no waiting.
            steering.replace_denied(&[("10.99.66.0/24".parse().unwrap(), PrefixAction::Drop)]).unwrap();
            assert_eq!(global(&steering), ([0, 0], [1, 0]));
            assert!(!takes(&steering, FIRST[0]));
        })
        .join()
        .unwrap();
    }
}
