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
