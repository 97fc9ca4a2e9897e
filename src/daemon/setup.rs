//! From the configuration to what the threads work with, as far as the machine has it.
//!
//! Owns: what is checked of the machine before anything is started, and how much of each there is. Does not own: starting
//! ([`super::server`]).

use super::error::{ServeError, system};
use super::instance::Watched;
use super::keys;
use super::place::Place;
use crate::auth::KeyTable;
use crate::clock::{Reference, ReferenceKind};
use crate::config::{self, Config, Interface, Policy as AccessPolicy, Workers};
use crate::datapath::interface::{InterfaceFacts, View};
use crate::datapath::steering::PrefixAction;
use crate::serve::Policy;
use crate::serve::access::{AccessError, AccessList, Action};
use crate::serve::clients::{ClientKeying, PrefixLengths};
use crate::serve::limit::{RateLimiter, RateParameters};
use crate::sys::process;
use crate::time::NtpDuration;
use crate::wire::ReferenceId;
use std::sync::Arc;
use tracing::{info, warn};

/// How often one client is told of a refusal: as NTP's shortest usual poll interval.
const KISS_INTERVAL: NtpDuration = NtpDuration::from_seconds(16);
/// How many kisses a client may have at once.
const KISS_BURST: u16 = 2;
/// How many ids of a key file are told to who named another.
const KEYS_SHOWN_MAX: usize = 20;

/// Does the machine have what the configuration names: interfaces, their queues, CPUs?
///
/// # Errors
/// What it does not have, or that it could not be asked.
pub fn check_machine(config: &Config) -> Result<(), ServeError> {
    for place in Place::open_all(config)? {
        Watched::open(place, config)?;
    }
    access_list(config)?;
    read_keys(config)?;
    cores(config).map(drop)
}

/// Those of one instance, asked from within.
pub(super) fn check_interfaces(config: &Config, place: &Place, view: &View) -> Result<(), ServeError> {
    let own = config.interfaces.iter().filter(|one| *one.instance == *place.name);
    for Interface { name, queues, .. } in own {
        let Ok(facts) = InterfaceFacts::gather_from(view, name) else {
            let existing: Vec<&str> = view.interfaces().map(|interface| interface.name.as_str()).collect();
            return Err(ServeError::NoSuchInterface {
                name: name.clone(),
                suffix: place.suffix(),
                existing: existing.join(", "),
            });
        };
        let there = facts.receive_queues().unwrap_or(u32::MAX);
        if let Some(&queue) = queues.iter().find(|&&queue| u32::from(queue) >= there) {
            return Err(ServeError::NoSuchQueue { name: name.clone(), queue, there });
        }
    }
    Ok(())
}

/// The CPUs for workers: those configured, else all but the first where there are several, since the first is
/// where the system's own work tends to be.
pub(super) fn cores(config: &Config) -> Result<Vec<usize>, ServeError> {
    let there: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    let wanted: Vec<usize> = config.cores.iter().map(|&core| core.into()).collect();
    if let Some(&cpu) = wanted.iter().find(|core| !there.contains(core)) {
        let existing: Vec<String> = there.iter().map(ToString::to_string).collect();
        return Err(ServeError::NoSuchCpu { cpu, existing: existing.join(", ") });
    }
    Ok(match wanted.as_slice() {
        [] if there.len() > 1 => there[1..].to_vec(),
        [] => there,
        _ => wanted,
    })
}

/// How many workers: as configured, else one for each queue, but no more than there are CPUs for.
pub(super) fn worker_count(config: &Config, instances: &[Watched], cores: usize) -> usize {
    let queues = config.interfaces.iter().map(|settings| {
        let instance = instances.get(usize::from(config.instance_number(&settings.instance)));
        let there = instance
            .and_then(|instance| instance.view().interface_named(&settings.name)?.rx_queues)
            .unwrap_or(1);
        if settings.queues.is_empty() { there as usize } else { settings.queues.len() }
    });
    match config.workers {
        Workers::Auto => queues.sum::<usize>().clamp(1, cores.max(1)),
        Workers::Count(count) => count.into(),
    }
}

pub(super) fn reference(config: &Config) -> Reference {
    let Some(reference) = &config.reference else {
        let reference_id = ReferenceId::default();
        return Reference { kind: ReferenceKind::None, stratum: 16, reference_id };
    };
    Reference {
        kind: match reference.source {
            config::Source::Local => ReferenceKind::Local,
            config::Source::System => ReferenceKind::System,
        },
        stratum: reference.stratum,
        reference_id: ReferenceId(reference.reference_id.octets()),
    }
}

const fn action(policy: AccessPolicy) -> Action {
    match policy {
        AccessPolicy::Allow => Action::Allow,
        AccessPolicy::Deny => Action::Deny,
        AccessPolicy::Restrict => Action::Restrict,
        AccessPolicy::Drop => Action::Drop,
    }
}

pub(super) fn access_list(config: &Config) -> Result<AccessList, AccessError> {
    let access = &config.access;
    let lists = [
        (&access.allow, Action::Allow),
        (&access.deny, Action::Deny),
        (&access.restrict, Action::Restrict),
        (&access.drop, Action::Drop),
    ];
    let rules =
        lists.into_iter().flat_map(|(prefixes, action)| prefixes.iter().map(move |prefix| (*prefix, action)));
    AccessList::new(action(access.default), rules)
}

/// The keys.
pub(super) struct LoadedKeys {
    /// For ourselves.
    pub all: Arc<KeyTable>,
    pub for_clients: Arc<KeyTable>,
}

pub(super) fn load_keys(config: &Config) -> Result<LoadedKeys, ServeError> {
    let all = read_keys(config)?;
    if let Some(file) = &config.keys.file {
        let file = file.display();
        let weak: Vec<String> =
            all.iter().filter(|(_, key)| key.is_weak()).map(|(id, _)| id.to_string()).collect();
        if !weak.is_empty() {
            warn!(%file, keys = weak.join(", "), "secrets below 80 bits can be found by trying");
        }
        info!(%file, keys = all.len(), "keys read");
    }
    let for_clients = Arc::new(keys::for_clients(&config.keys, &all));
    Ok(LoadedKeys { all: Arc::new(all), for_clients })
}

/// The key file's, with those that sources name among them.
fn read_keys(config: &Config) -> Result<KeyTable, ServeError> {
    let all = keys::load(&config.keys)?;
    match config.sources.keys().find(|(.., key)| all.get(*key).is_none()) {
        Some((table, address, key)) => Err(ServeError::NoSuchKey {
            key,
            table,
            address,
            file: config.keys.file.clone().unwrap_or_default(),
            there: ids_of(&all),
        }),
        None => Ok(all),
    }
}

/// The first of a table's ids, for who named another.
fn ids_of(keys: &KeyTable) -> String {
    let mut shown: Vec<String> = keys.iter().take(KEYS_SHOWN_MAX).map(|(id, _)| id.to_string()).collect();
    match keys.len().saturating_sub(KEYS_SHOWN_MAX) {
        0 if shown.is_empty() => return "none".to_owned(),
        0 => {}
        more => shown.push(format!("{more} more")),
    }
    shown.join(", ")
}

pub(super) fn dropped_prefixes(access: &AccessList, kod: bool) -> Vec<(ipnet::IpNet, PrefixAction)> {
    let prefixes = access.silently_dropped_prefixes(kod).into_iter();
    prefixes
        .map(|(prefix, drop)| (prefix, if drop { PrefixAction::Drop } else { PrefixAction::Serve }))
        .collect()
}

/// What counts as one client.
pub(super) const fn prefix_lengths(config: &Config) -> PrefixLengths {
    PrefixLengths { ipv4: config.rate_limit.ipv4_prefix, ipv6: config.rate_limit.ipv6_prefix }
}

/// What the workers judge by, with fresh random keys.
pub(super) fn policy(config: &Config, access: Arc<AccessList>) -> Result<Policy, ServeError> {
    let limit = &config.rate_limit;
    let limiter = |interval, burst, leak| {
        let clients = limit.slots() as usize;
        Arc::new(RateLimiter::new(RateParameters { interval, burst, leak, clients }))
    };
    let keys = process::random_words().map_err(system("random keys"))?;
    Ok(Policy {
        access,
        limiter: limit.enabled.then(|| limiter(limit.interval, limit.burst, limit.leak)),
        kiss_limiter: config.kod.then(|| limiter(KISS_INTERVAL, KISS_BURST, 0)),
        keying: ClientKeying::new(prefix_lengths(config), keys),
    })
}
