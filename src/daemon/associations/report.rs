//! What `timeball sources` says, and the synchronisation part of `timeball status`.

use super::Associations;
use super::configured::Configured;
use crate::control::InstanceId;
use crate::control::association::{Association, Role};
use crate::control::controller::{SourceEntry, TurnedAway};
use crate::control::packet_checks::Failure;
use crate::control::source::{Place, SourceConfiguration, SourceId, SourceKind};
use crate::daemon::counters::ServiceTimeReport;
use crate::sys::clock;
use crate::time::{Log2Seconds, NtpDuration};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// All sources.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct SourcesReport {
    /// The instances there are.
    #[serde(default)]
    pub instances: Vec<String>,
    /// The whole.
    pub synchronisation: SynchronisationReport,
    /// Each source: those that give time, with one row for each association, then those that take it from us.
    pub sources: Vec<SourceReport>,
}

/// How our clock is kept by them.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct SynchronisationReport {
    /// Is the clock steered, or only measured?
    pub steering: bool,
    /// The system peer, whom our clients are told that we follow, if `synchronised`.
    pub system_peer: Option<String>,
    /// Is what is served its time? Not if our clock is too far off by it.
    #[serde(default)]
    pub synchronised: bool,
    /// In which instance that is.
    #[serde(default)]
    pub system_peer_instance: Option<String>,
    /// The last combined offset, seconds; > 0: our clock was behind.
    pub offset_seconds: Option<f64>,
    /// Its jitter, seconds.
    pub jitter_seconds: Option<f64>,
    /// How much faster than by itself the clock is made to run, without what works off an offset.
    pub frequency_ppm: Option<f64>,
    /// What works off an offset, on top.
    pub slew_ppm: Option<f64>,
    /// How often we have stepped the clock.
    #[serde(default)]
    pub steps: u64,
    /// How often somebody else has.
    #[serde(default)]
    pub foreign_steps: u64,
    /// Associations that could give time.
    pub sources: usize,
    /// Those by which the clock is set.
    pub used: usize,
}

/// How the control core fares among those who speak to it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ControlReport {
    /// How late packets of ours leave: from when each was due until the kernel had it.
    pub lateness: ServiceTimeReport,
    /// What became of the packets that came, requests not included: `received` is all of them, `strays` came to a socket
    /// that was not theirs, `discarded` had no association, `peers_refused` wanted to be a peer, `over_budget` would have
    /// been answered, had there not been so many; `duplicate`, `bogus` and so on are those that failed one of the tests of
    /// RFC 5905 figure 22.
    pub packets: BTreeMap<String, u64>,
}

/// One source.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct SourceReport {
    /// As chrony shows it: `*` system peer, `+` combined, `-` right but not combined, `x` wrong, `~` too variable, `?`
    /// not usable; a space where no time is expected of it.
    pub sign: String,
    /// In which instance it is: the same address in another is another source.
    #[serde(default)]
    pub instance: String,
    /// `server`, `pool`, `peer`, `passive`, `broadcast-client`, `manycast`; of those who give us none: `broadcast`,
    /// `manycast-client` (the search itself) and `manycast-server`.
    pub mode: String,
    /// As the configuration has it; empty: it came unasked.
    pub name: String,
    /// Its address and port, once known.
    pub address: Option<String>,
    /// The key that both know.
    pub key: Option<u32>,
    /// Its stratum, 1 to 16.
    pub stratum: Option<u8>,
    /// Whom it follows.
    pub reference_id: Option<String>,
    /// How often it is asked or heard, as the base-2 logarithm of seconds.
    pub poll: Option<i8>,
    /// The reach register: the last eight polls, the latest in the lowest bit.
    pub reach: Option<u8>,
    /// Seconds since the last measurement.
    pub last_sample_seconds: Option<f64>,
    /// The offset as of now, seconds; > 0: our clock is behind.
    pub offset_seconds: Option<f64>,
    /// The offset as it was last measured.
    pub measured_offset_seconds: Option<f64>,
    /// The error that the offset may have, seconds: the root distance.
    pub error_bound_seconds: Option<f64>,
    /// The round trip of the chosen sample, seconds.
    pub delay_seconds: Option<f64>,
    /// The dispersion of the chosen sample as of now, seconds.
    #[serde(default)]
    pub dispersion_seconds: Option<f64>,
    /// The jitter of its samples, seconds.
    pub jitter_seconds: Option<f64>,
    /// Who took the last receive timestamp: `hardware`, `kernel` or `daemon`.
    pub stamp: Option<String>,
    /// How far it got in the selection, in one word.
    pub state: String,
    /// And in a sentence.
    pub reason: String,
    /// The last Kiss-o'-Death that it said and we believed.
    #[serde(default)]
    pub kiss: Option<String>,
    /// Packets sent to it.
    pub sent: u64,
    /// Packets that came from it.
    pub received: u64,
}

impl Associations {
    /// All there is to say.
    #[must_use]
    pub fn report(&self) -> SourcesReport {
        let mut sources: Vec<SourceReport> = Vec::new();
        // There may be a thousand: each is looked at once.
        let mut members: BTreeMap<Option<SourceId>, Vec<&Association>> = BTreeMap::new();
        for association in self.controller.associations() {
            members.entry(association.source).or_default().push(association);
        }
        let entries: BTreeMap<SourceId, &SourceEntry> = self.controller.sources().collect();
        for (id, configured) in self.order.iter().filter_map(|id| self.configured.get_key_value(id)) {
            let associations = members.remove(&Some(*id)).unwrap_or_default();
            self.add_source(*id, configured, entries.get(id).copied(), &associations, &mut sources);
        }
        let guests = members.remove(&None).unwrap_or_default();
        sources.extend(guests.into_iter().map(|guest| self.row("", mode_of(guest, "passive"), guest)));
        // Stable: within both the order of the configuration stays.
        sources.sort_by_key(|row| row.sign == " ");
        let instances = self.networks.iter().map(|network| network.place.name.to_string()).collect();
        SourcesReport { instances, synchronisation: self.synchronisation(), sources }
    }

    /// How the control core fares.
    #[must_use]
    pub fn control(&self) -> ControlReport {
        let counters = self.controller.counters();
        let counts = [
            ("received", counters.received),
            ("strays", counters.strays),
            ("discarded", counters.discarded),
            ("peers_refused", counters.peers_refused),
            ("over_budget", counters.over_budget),
        ];
        let counts = counts.into_iter().map(|(name, count)| (name.to_owned(), count));
        let failures = Failure::ALL.map(|test| (test.to_string(), counters.failures.of(test)));
        ControlReport { lateness: (&self.lateness).into(), packets: counts.chain(failures).collect() }
    }

    /// Is a source selected?
    #[must_use]
    pub fn is_following(&self) -> bool {
        self.controller.system().peer.is_some()
    }

    /// Is what is served the time of a source?
    #[must_use]
    pub fn is_synchronised(&self) -> bool {
        self.controller.system().is_followed
    }

    /// The whole in short.
    #[must_use]
    pub fn synchronisation(&self) -> SynchronisationReport {
        let system = self.controller.system();
        let givers = || self.controller.associations().filter(|association| association.role.gives_time());
        let frequency = self.keeper.frequency();
        let steering = self.keeper.is_steering();
        let system_peer = self.controller.system_peer();
        SynchronisationReport {
            steering,
            system_peer: system_peer.map(|(_, remote)| remote.to_string()),
            synchronised: self.is_synchronised(),
            system_peer_instance: system_peer.map(|(instance, _)| self.name_of(instance)),
            offset_seconds: system.peer.map(|_| system.offset.seconds()),
            jitter_seconds: system.peer.map(|_| system.jitter.seconds()),
            frequency_ppm: steering.then(|| frequency.base.ppm()),
            slew_ppm: steering.then(|| frequency.slew.ppm()),
            steps: self.steps,
            foreign_steps: self.foreign_steps,
            sources: givers().count(),
            used: givers().filter(|association| association.state.is_used()).count(),
        }
    }

    fn name_of(&self, instance: InstanceId) -> String {
        let network = self.networks.get(usize::from(instance.0));
        network.map_or_else(String::new, |network| network.place.name.to_string())
    }

    fn add_source(
        &self,
        id: SourceId,
        configured: &Configured,
        entry: Option<&SourceEntry>,
        associations: &[&Association],
        rows: &mut Vec<SourceReport>,
    ) {
        let Configured { name, instance, mode, configuration } = configured;
        let is_synchronised = self.controller.system().snapshot.is_synchronised();
        if !associations.is_empty() {
            let row = |association: &&Association| self.row(name, mode_of(association, mode), association);
            return rows.extend(associations.iter().map(row));
        }
        let (state, reason) = match (configuration, entry) {
            (Err(reason), _) => ("absent", reason.clone()),
            (Ok(_), None) => ("absent", "there is no room for another source".to_owned()),
            (Ok(configuration), Some(entry)) => match (configuration.kind, self.deafness(configuration)) {
                (_, Some(reason)) => ("deaf", format!("not listened at: {reason}")),
                (SourceKind::ManycastServer(_), None) => ("serving", answers(is_synchronised)),
                (SourceKind::BroadcastClient(_), None) => ("listening", heard(entry.turned_away())),
                _ => self.why_nobody(id, entry),
            },
        };
        rows.push(SourceReport {
            sign: if configured.gives_time() { "?" } else { " " }.to_owned(),
            instance: self.name_of(*instance),
            mode: (*mode).to_owned(),
            name: name.clone(),
            state: state.to_owned(),
            reason,
            ..SourceReport::default()
        });
    }

    /// Why a source that listens cannot.
    fn deafness(&self, configuration: &SourceConfiguration) -> Option<String> {
        let network = self.networks.get(usize::from(configuration.instance.0))?;
        match (&configuration.place, configuration.kind.only_listens()) {
            (Place::Address(place), true) => network.service.failure(place.ip()),
            _ => None,
        }
    }

    /// Why a source that should have an association has none.
    fn why_nobody(&self, id: SourceId, entry: &SourceEntry) -> (&'static str, String) {
        if let Some(reason) = self.unresolved.get(&id) {
            ("unresolved", format!("the name cannot be resolved: {reason}"))
        } else if entry.is_looking_up() {
            ("resolving", "the name is being looked up".to_owned())
        } else if let Some((remote, kiss)) = entry.refusing().last() {
            ("refused", format!("{} refuses to serve us ({kiss})", remote.ip()))
        } else {
            ("absent", "its address belongs to another source, or there is no room".to_owned())
        }
    }

    fn row(&self, name: &str, mode: &str, association: &Association) -> SourceReport {
        let now = clock::monotonic();
        let estimate = association.filter.estimate(now);
        let candidate = association.candidate(now, NtpDuration::ZERO, None, &[]);
        let peer = association.peer.as_ref();
        let last = association.last_sample.as_ref();
        let gives_time = association.role.gives_time();
        let is_synchronised = self.controller.system().snapshot.is_synchronised();
        let (sign, state, mut reason) = match &association.role {
            Role::BroadcastServer(_) => {
                (' ', "serving", broadcasts(association.traffic.sent, is_synchronised))
            }
            Role::ManycastClient(search) => {
                (' ', "searching", search.reason() + &association.traffic.failures.reason())
            }
            _ => (association.state.sign(), association.state.name(), association.reason()),
        };
        let interface = association.role.group_interface().unwrap_or_default();
        if let Some(error) = self.unreachable.get(&(association.instance, association.remote, interface)) {
            reason += &format!("; cannot be sent to: {error}");
        }
        SourceReport {
            sign: sign.to_string(),
            instance: self.name_of(association.instance),
            mode: mode.to_owned(),
            name: name.to_owned(),
            address: Some(association.remote.to_string()),
            key: association.key.map(|key| key.number()),
            stratum: peer.map(|peer| if peer.stratum == 0 { 16 } else { peer.stratum }),
            reference_id: peer.map(|peer| peer.reference_id.to_string()),
            poll: Some(interval(association).0),
            reach: gives_time.then(|| association.poll.reach().bits()),
            last_sample_seconds: last.map(|last| (now - last.sample.time).seconds()),
            offset_seconds: self.controller.offset_now(association, now).map(NtpDuration::seconds),
            measured_offset_seconds: last.map(|last| last.sample.offset.seconds()),
            error_bound_seconds: candidate.root_distance(now).map(NtpDuration::seconds),
            delay_seconds: estimate.map(|estimate| estimate.delay.seconds()),
            dispersion_seconds: estimate.map(|estimate| estimate.dispersion_at(now).seconds()),
            jitter_seconds: estimate.map(|estimate| estimate.jitter.seconds()),
            stamp: last.map(|last| format!("{:?}", last.stamp).to_lowercase()),
            state: state.to_owned(),
            reason,
            kiss: association.kiss.map(|kiss| kiss.to_string()),
            sent: association.traffic.sent,
            received: association.traffic.received,
        }
    }
}

fn broadcasts(sent: u64, is_synchronised: bool) -> String {
    match is_synchronised {
        true => format!("{sent} packets sent"),
        false => format!("nothing is sent while our clock is not synchronised; {sent} packets so far"),
    }
}

fn answers(is_synchronised: bool) -> String {
    match is_synchronised {
        true => "questions to the group are answered".to_owned(),
        false => "questions to the group are not answered while our clock is not synchronised".to_owned(),
    }
}

/// Why nobody is an association who was perhaps heard.
fn heard(turned_away: &TurnedAway) -> String {
    let TurnedAway { failures, known } = turned_away;
    match (failures.total(), known) {
        (0, 0) => "nothing heard yet".to_owned(),
        (0, known) => format!("heard only from servers that are sources already, {known} packets"),
        _ => format!("nothing of use heard yet{}", failures.reason()),
    }
}

fn interval(association: &Association) -> Log2Seconds {
    match &association.role {
        Role::BroadcastServer(server) => server.interval(),
        _ => association.interval(),
    }
}

/// What an association is called in reports; that of a search is not what the servers are that it found.
fn mode_of<'a>(association: &Association, configured: &'a str) -> &'a str {
    match (&association.role, configured) {
        (Role::Client(_), "manycast-client") => "manycast",
        (_, configured) => configured,
    }
}
