//! The controller's system process: selection after every new estimate, the clock, and what is served.

use super::super::action::Action;
use super::super::agenda::Due;
use super::super::discipline::Verdict;
use super::super::event::{AssociationId, InstanceId};
use super::super::news::News;
use super::super::packet_checks::{DISPERSION_MAX, STRATUM_UNSYNCHRONISED};
use super::super::poll::SystemPoll;
use super::super::reference::{reference_id, reference_id_elsewhere, reference_ids};
use super::super::select::{self, Candidate, MIN_DISPERSION, Selection, select};
use super::super::source::PollOptions;
use super::super::state::{self, SourceState};
use super::{Controller, ControllerOptions, SourceEntry};
use crate::snapshot::SystemSnapshot;
use crate::time::{Monotonic, NtpDuration, NtpTimestamp, Ppm, Timestamp};
use crate::wire::{Leap, ReferenceId};
use std::net::{IpAddr, SocketAddr};

/// After a step, and at the start, associations are polled anew, spread over this time,
const FIRST_POLL_SPREAD: NtpDuration = NtpDuration::from_seconds(1);
/// or, if there are many, over so much for each, 8 ms: after its answer all of them are looked at, which takes the longer the
/// more there are, and they stay together for many polls.
const FIRST_POLL_SPACING: NtpDuration = NtpDuration::from_bits(1 << 25);

/// The system variables (RFC 5905 section 11.1).
#[derive(Clone, Debug)]
pub struct System {
    /// p: the system peer.
    pub peer: Option<AssociationId>,
    /// THETA: the combined offset of the last update (positive: we are behind).
    pub offset: NtpDuration,
    /// PSI: its jitter.
    pub jitter: NtpDuration,
    /// What is served.
    pub snapshot: SystemSnapshot,
    /// Is that the system peer's time? Not if it is beyond what may be served, or beyond the panic threshold.
    pub is_followed: bool,
    /// What is served while no source is selected.
    fallback: SystemSnapshot,
    /// The time constant.
    pub poll: SystemPoll,
    /// s.t: when the sample that the last update rests on was made. No older one is used, and none twice.
    updated: Option<Timestamp<Monotonic>>,
    /// What the samples in the filters take the clock's frequency to be.
    base_frequency: Ppm,
    /// Was the clock told its first frequency?
    has_begun: bool,
    /// Was the last offset beyond the panic threshold?
    is_panicking: bool,
}

impl System {
    pub(super) fn new(options: &ControllerOptions) -> Self {
        let PollOptions { poll_min, poll_max, .. } = PollOptions::default();
        Self {
            peer: None,
            offset: NtpDuration::ZERO,
            jitter: NtpDuration::ZERO,
            snapshot: SystemSnapshot::unsynchronised(options.precision),
            is_followed: false,
            fallback: SystemSnapshot::unsynchronised(options.precision),
            poll: SystemPoll::new(poll_min, poll_max),
            updated: None,
            base_frequency: options.discipline.frequency.unwrap_or(Ppm::ZERO),
            has_begun: false,
            is_panicking: false,
        }
    }
}

impl Controller {
    /// RFC 5905 section 11.2: looks at all sources, and if the system peer has a new sample, at the clock.
    pub(super) fn select(&mut self) {
        let now = self.now.monotonic;
        let candidates = self.candidates();
        let options = select::Options {
            minimum_sources: self.options.minimum_sources,
            maximum_distance: self.options.maximum_distance,
            system_peer: self.system.peer.map(|id| state::SourceId(id.0)),
        };
        let selection = select(&candidates, &options, now);
        self.set_states(&selection.states);
        let Some(found) = selection.system else { return self.lose_reference() };
        let peer = AssociationId(found.peer.0);
        self.follow(Some(peer));
        if self.system.updated.is_some_and(|updated| found.time <= updated) {
            return;
        }
        self.system.updated = Some(found.time);
        self.system.offset = found.offset;
        self.system.jitter = found.jitter;
        let measured = candidates.iter().find(|candidate| candidate.id == found.peer);
        let noise = measured.map_or(found.jitter, |candidate| noise(candidate, found.jitter));
        let age = mean_age(&candidates, &selection, now);
        let verdict = self.discipline.update(now, found.offset, noise, age);
        self.system.is_panicking &= verdict == Verdict::Panic;
        match verdict {
            Verdict::Ignored => {}
            Verdict::Panic => self.panic(found.offset),
            Verdict::Step(offset) => self.step(offset),
            Verdict::Used => {
                self.system.poll.on_update(found.offset, found.jitter);
                self.set_frequency();
                if let Some(candidate) = measured {
                    let leap = agreed_leap(&candidates, &selection);
                    self.inherit(peer, candidate, found.offset, leap);
                }
            }
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        let now = self.now.monotonic;
        let slewed = self.discipline.slewed(now);
        let peer = self.system.peer.and_then(|id| self.associations.get(&id));
        let followers = self.followers();
        let candidate = |association: &super::Association| {
            // The address of a server in another instance is another host's here.
            let other =
                peer.filter(|peer| peer.id != association.id && peer.instance == association.instance);
            let other = other.map(|peer| peer.remote.ip());
            let told = association.peer.as_ref().map(|peer| peer.reference_id);
            let name = told.filter(|told| {
                self.is_own_name(association.instance, *told)
                    || is_told_elsewhere(&followers, *told, association.instance)
            });
            association.candidate(now, slewed, other, name.as_slice())
        };
        self.associations
            .values()
            .filter(|association| association.role.gives_time())
            .map(candidate)
            .collect()
    }

    /// Our host has these addresses in an instance, and no others there.
    pub(super) fn on_own_addresses(&mut self, instance: InstanceId, addresses: &[IpAddr]) {
        self.own_names.insert(instance, reference_ids(addresses));
        self.select();
    }

    /// Would this be told in the instance by somebody who follows us there? An address at which we ask nobody is an address
    /// at which others may ask us.
    pub(super) fn is_own_name(&self, instance: InstanceId, told: ReferenceId) -> bool {
        self.own_names.get(&instance).is_some_and(|names| names.contains(&told.0))
    }

    /// What each of our sources would tell in other instances if it followed us in its own, sorted: there may be a thousand.
    /// None where there is one instance.
    fn followers(&self) -> Vec<([u8; 4], InstanceId)> {
        let mut associations = self.associations.values();
        let first = associations.next().map(|association| association.instance);
        if associations.all(|association| Some(association.instance) == first) {
            return Vec::new();
        }
        let id = |association: &super::Association| {
            let local = association.local?;
            Some((reference_id_elsewhere(local, association.remote.ip()).0, association.instance))
        };
        let mut followers: Vec<_> = self.associations.values().filter_map(id).collect();
        followers.sort_unstable();
        followers
    }

    /// Both are in the order of the ids, so that they need not be looked up: there may be a thousand, after each sample.
    fn set_states(&mut self, states: &[(state::SourceId, SourceState)]) {
        let mut associations = self.associations.iter_mut();
        for &(state::SourceId(number), state) in states {
            let Some((&id, association)) = associations.find(|(id, _)| id.0 == number) else { return };
            let changed = std::mem::discriminant(&association.state) != std::mem::discriminant(&state);
            let before = std::mem::replace(&mut association.state, state);
            if changed {
                let news = News::StateChanged { remote: association.remote, before, state };
                let instance = Some(association.instance);
                self.actions.push(Action::Report { instance, association: Some(id), news });
            }
        }
    }

    /// Another system peer, or none.
    fn follow(&mut self, peer: Option<AssociationId>) {
        if self.system.peer != peer {
            self.system.peer = peer;
            let remote = peer.and_then(|id| self.associations.get(&id)).map(|association| association.remote);
            self.report(peer, News::SystemPeer(remote));
        }
    }

    /// Nobody is selected: the clock is left alone, and the fallback is served, stratum 16 unless there is one. (The frequency stays as it is: it is
    /// the best guess. A slew that is under way works off an offset that was believed, and ends by itself.)
    fn lose_reference(&mut self) {
        self.system.is_panicking = false;
        self.system.is_followed = false;
        self.follow(None);
        self.publish(self.system.fallback);
    }

    /// Another fallback. It is served in place of the one before, but not where a source is, nor in a panic.
    pub(super) fn on_reference(&mut self, fallback: SystemSnapshot) {
        let is_served = self.system.snapshot == self.system.fallback && !self.system.is_panicking;
        self.system.fallback = fallback;
        if is_served {
            self.publish(fallback);
        }
    }

    /// RFC 5905 figure 25, with the reference id and the reference time as section 7.3 defines them: whom we follow,
    /// and when our clock was last compared. `leap` is what more than the system peer says. (The figure copies the peer's own, which would make us say that we
    /// follow whom it follows.)
    fn inherit(&mut self, id: AssociationId, candidate: &Candidate, offset: NtpDuration, leap: Leap) {
        let Some(association) = self.associations.get(&id) else { return };
        let Some(estimate) = candidate.estimate else { return };
        let size = offset.max(-offset);
        // PHI * (s.t - p.t) is in the estimate's dispersion, which is that of now.
        let increment = (estimate.dispersion + estimate.jitter + size).max(MIN_DISPERSION);
        let snapshot = SystemSnapshot {
            leap,
            stratum: candidate.stratum.saturating_add(1),
            reference_id: reference_id(association.remote.ip()),
            reference_instance: Some(association.instance),
            reference_id_elsewhere: association
                .local
                .map_or(ReferenceId::NOBODY, |local| reference_id_elsewhere(association.remote.ip(), local)),
            precision: self.options.precision,
            root_delay: candidate.root_delay.to_duration() + estimate.delay,
            root_dispersion: candidate.root_dispersion.to_duration() + increment,
            dispersion_rate: Ppm::FREQUENCY_TOLERANCE,
            reference_timestamp: known(self.now.clock),
        };
        let half_delay = NtpDuration::from_bits(snapshot.root_delay.to_bits() / 2);
        let is_time = snapshot.stratum < STRATUM_UNSYNCHRONISED
            && half_delay + snapshot.root_dispersion < DISPERSION_MAX;
        self.system.is_followed = is_time;
        self.publish(if is_time { snapshot } else { self.system.fallback });
    }

    fn publish(&mut self, snapshot: SystemSnapshot) {
        if self.system.snapshot != snapshot {
            self.system.snapshot = snapshot;
            self.actions.push(Action::Publish(snapshot));
        }
    }

    /// The discipline must know how fast the clock runs, so before anything else it is told to run as the drift file
    /// says, or as the oscillator does by itself.
    pub(super) fn begin(&mut self) {
        if !self.system.has_begun {
            self.system.has_begun = true;
            self.set_frequency();
        }
    }

    fn set_frequency(&mut self) {
        if !self.discipline.is_steering() {
            return;
        }
        let frequency = self.discipline.frequency();
        let change = Ppm::from_bits(frequency.base.to_bits() - self.system.base_frequency.to_bits());
        if change != Ppm::ZERO {
            self.system.base_frequency = frequency.base;
            for association in self.associations.values_mut() {
                association.filter.on_frequency_change(self.now.monotonic, change);
            }
        }
        self.actions.push(Action::SetFrequency(frequency));
        self.agenda.set(Due::Slew, self.discipline.next());
    }

    pub(super) fn end_slew(&mut self) {
        self.discipline.on_time(self.now.monotonic);
        self.set_frequency();
    }

    /// Beyond the panic threshold: the clock is not what the sources say, by far, so it is not served either.
    fn panic(&mut self, offset: NtpDuration) {
        if !self.system.is_panicking {
            self.system.is_panicking = true;
            self.report(None, News::Panic(offset));
        }
        self.system.is_followed = false;
        self.publish(SystemSnapshot::unsynchronised(self.options.precision));
    }

    /// RFC 5905 section 11.2.3: the clock is stepped, and all associations begin anew.
    fn step(&mut self, offset: NtpDuration) {
        self.actions.push(Action::Step(offset));
        self.now.clock = self.now.clock + offset;
        self.report(None, News::Stepped(offset));
        self.set_frequency();
        self.reset_all();
    }

    /// Somebody else stepped the clock: what was measured is void, and what we serve, too.
    pub(super) fn on_foreign_step(&mut self, by: NtpDuration) {
        self.discipline.on_foreign_step(by);
        self.reset_all();
    }

    /// Offsets are what they were, since the sources' clocks have leapt as well. But of an exchange that is under way some
    /// timestamps are of before and some of after, so that it would be half a second off: its answer is not taken.
    pub(super) fn on_leap_second(&mut self) {
        for association in self.associations.values_mut() {
            if let Some(client) = association.role.client_mut() {
                client.forget();
            }
        }
    }

    pub(super) fn first_poll_spread(&self) -> NtpDuration {
        let many = u32::try_from(self.sources.len()).unwrap_or(u32::MAX);
        FIRST_POLL_SPREAD.max(FIRST_POLL_SPACING.times(many))
    }

    fn reset_all(&mut self) {
        let now = self.now.monotonic;
        let ids: Vec<AssociationId> = self.associations.keys().copied().collect();
        let spread = self.first_poll_spread();
        for id in ids {
            let first = now + self.chance.below(spread);
            if let Some(association) = self.associations.get_mut(&id) {
                association.reset(first);
            }
            self.plan(id);
        }
        self.system.updated = None;
        self.system.poll.reset();
        self.lose_reference();
    }

    /// The time constant stays between the shortest and the longest interval that any source allows.
    pub(super) fn review_poll_range(&mut self) {
        let givers =
            || self.sources.values().map(SourceEntry::configuration).filter(|it| it.kind.gives_time());
        let options = || givers().map(|configuration| configuration.poll.clamped());
        let default = PollOptions::default();
        let poll_min = options().map(|poll| poll.poll_min).min().unwrap_or(default.poll_min);
        let poll_max = options().map(|poll| poll.poll_max).max().unwrap_or(default.poll_max);
        self.system.poll.set_range(poll_min, poll_max);
    }

    /// The system peer's instance and address.
    #[must_use]
    pub fn system_peer(&self) -> Option<(InstanceId, SocketAddr)> {
        let id = self.system.peer?;
        self.associations.get(&id).map(|association| (association.instance, association.remote))
    }
}

/// Is this what a source of ours in another instance would tell if it followed us there?
fn is_told_elsewhere(followers: &[([u8; 4], InstanceId)], told: ReferenceId, instance: InstanceId) -> bool {
    let first = followers.partition_point(|(id, _)| *id < told.0);
    let mut equal = followers.iter().skip(first).take_while(|(id, _)| *id == told.0);
    equal.any(|(_, other)| *other != instance)
}

/// The leap second that more than half of those announce by whom the clock is set. Figure 25 takes the system peer's word for
/// it; but a source whose time is right may be wrong about this, for months, and we would pass on a second that never comes.
fn agreed_leap(candidates: &[Candidate], selection: &Selection) -> Leap {
    // The states are in the order of the candidates.
    let used = || candidates.iter().zip(&selection.states).filter(|(_, (_, state))| state.is_used());
    let is_agreed =
        |leap: &Leap| 2 * used().filter(|(candidate, _)| candidate.leap == *leap).count() > used().count();
    [Leap::Insert, Leap::Delete].into_iter().find(is_agreed).unwrap_or(Leap::None)
}

/// How far off a measurement probably is. The system jitter says how far the samples of the last polls are apart; but
/// the chosen one, which has the shortest delay, cannot be off by more than half of that delay, however badly the
/// others fared, or however far our clock drifted between them.
fn noise(candidate: &Candidate, jitter: NtpDuration) -> NtpDuration {
    candidate.estimate.map_or(jitter, |estimate| jitter.min(estimate.delay.half()))
}

/// How long ago the survivors' samples were made, on average: what the combined offset's age is, too, since the weights
/// of sources that are combined differ little.
fn mean_age(candidates: &[Candidate], selection: &Selection, now: Timestamp<Monotonic>) -> NtpDuration {
    // The states are in the order of the candidates.
    let used = candidates.iter().zip(&selection.states).filter(|(_, (_, state))| state.is_used());
    let ages = used.filter_map(|(candidate, _)| candidate.estimate.map(|estimate| now - estimate.time));
    let (sum, count) =
        ages.fold((0_i128, 0), |(sum, count), age| (sum + i128::from(age.to_bits()), count + 1));
    NtpDuration::from_bits((sum / count.max(1)) as i64)
}

/// A time of our clock, which is never the wire's "unknown": once in 136 years it is 233 ps late.
fn known(time: NtpTimestamp) -> NtpTimestamp {
    NtpTimestamp::from_bits(time.to_bits().max(1))
}
