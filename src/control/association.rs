//! What is kept about one association, whatever its mode.
//!
//! Owns: the peer variables of RFC 5905 section 9.1 and what a report shows. Does not own: what its mode does on the
//! wire ([`Role`]), and when anything happens (the controller's agenda).

use super::broadcast_client::BroadcastClient;
use super::broadcast_server::BroadcastServer;
use super::client::Client;
use super::dispatch::AssociationMode;
use super::event::{AssociationId, InstanceId, InterfaceIndex, KeyId, StampKind};
use super::filter::ClockFilter;
use super::kiss::Kiss;
use super::manycast::Search;
use super::packet_checks::FailureCounts;
use super::poll::PollProcess;
use super::reference::{Followed, find_loop};
use super::sample::Sample;
use super::select::{Candidate, Loop, SourceOptions};
use super::source::SourceId;
use super::state::{self, SourceState};
use super::symmetric::Symmetric;
use crate::time::{Log2Seconds, Monotonic, NtpDuration, NtpShort, NtpTimestamp, Timestamp};
use crate::wire::{Header, Leap, ReferenceId, Version};
use std::net::{IpAddr, SocketAddr};

/// What an association is on the wire, with the state that takes. The symmetric modes are one more variant.
#[derive(Clone, Debug)]
pub enum Role {
    /// Asks one server in mode 3.
    Client(Client),
    /// Is one end of a peering, in mode 1 or 2.
    Symmetric(Symmetric),
    /// Tells everybody in mode 5.
    BroadcastServer(BroadcastServer),
    /// Hears one server in mode 5.
    BroadcastClient(BroadcastClient),
    /// Asks a group for servers in mode 3.
    ManycastClient(Search),
}

impl Role {
    /// The row of RFC 5905 figure 20.
    #[must_use]
    pub const fn mode(&self) -> AssociationMode {
        match self {
            Self::Client(_) | Self::ManycastClient(_) => AssociationMode::Client,
            Self::Symmetric(symmetric) => symmetric.row(),
            Self::BroadcastServer(_) => AssociationMode::Broadcast,
            // Section 9.2: a client while the delay is measured, then mode 6.
            Self::BroadcastClient(listener) if listener.is_asking() => AssociationMode::Client,
            Self::BroadcastClient(_) => AssociationMode::BroadcastClient,
        }
    }

    /// What exchanges mode 3 and 4 packets for it: all of a client association, the volley of a peering or a broadcast client.
    #[must_use]
    pub const fn client(&self) -> Option<&Client> {
        match self {
            Self::Client(client) => Some(client),
            Self::Symmetric(symmetric) => Some(symmetric.client()),
            Self::BroadcastClient(listener) => Some(&listener.client),
            Self::BroadcastServer(_) | Self::ManycastClient(_) => None,
        }
    }

    /// The same, to be changed.
    pub const fn client_mut(&mut self) -> Option<&mut Client> {
        match self {
            Self::Client(client) => Some(client),
            Self::Symmetric(symmetric) => Some(symmetric.client_mut()),
            Self::BroadcastClient(listener) => Some(&mut listener.client),
            Self::BroadcastServer(_) | Self::ManycastClient(_) => None,
        }
    }

    /// Through which interface (0: routing decides) it speaks to a group or broadcast address; `None`: it has to do with
    /// one host.
    #[must_use]
    pub const fn group_interface(&self) -> Option<InterfaceIndex> {
        match self {
            Self::BroadcastServer(server) => Some(server.options.interface),
            Self::ManycastClient(search) => Some(search.options().interface),
            Self::Client(_) | Self::Symmetric(_) | Self::BroadcastClient(_) => None,
        }
    }

    /// Is it a passive end of a peering?
    #[must_use]
    pub const fn is_passive(&self) -> bool {
        matches!(self, Self::Symmetric(symmetric) if symmetric.is_passive())
    }

    /// Has selection anything to do with it?
    #[must_use]
    pub const fn gives_time(&self) -> bool {
        matches!(self, Self::Client(_) | Self::Symmetric(_) | Self::BroadcastClient(_))
    }
}

/// What the other side last said of itself (RFC 5905 figure 17), with the time of figure 18.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerVariables {
    /// Leap indicator.
    pub leap: Leap,
    /// Stratum as sent: 0 is unsynchronised.
    pub stratum: u8,
    /// Root delay.
    pub root_delay: NtpShort,
    /// Root dispersion.
    pub root_dispersion: NtpShort,
    /// Whom it follows.
    pub reference_id: ReferenceId,
    /// When its clock was last set.
    pub reference_timestamp: NtpTimestamp,
    /// When it said so.
    pub time: Timestamp<Monotonic>,
}

impl PeerVariables {
    /// From a packet, as RFC 5905 figure 21 copies it.
    #[must_use]
    pub fn of(header: &Header, time: Timestamp<Monotonic>) -> Self {
        Self {
            leap: header.leap(),
            stratum: header.stratum,
            root_delay: header.root_delay(),
            root_dispersion: header.root_dispersion(),
            reference_id: header.reference_id,
            reference_timestamp: header.reference_timestamp(),
            time,
        }
    }
}

/// The last measurement, for reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastSample {
    /// The measurement as it was made.
    pub sample: Sample,
    /// Who took its receive timestamp.
    pub stamp: StampKind,
}

/// How many packets an association has seen.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Traffic {
    /// Sent.
    pub sent: u64,
    /// Not sent, although wanted.
    pub send_failed: u64,
    /// Received.
    pub received: u64,
    /// Received before the time its request left was known.
    pub unstamped: u64,
    /// Failed tests 1 to 7, each.
    pub failures: FailureCounts,
}

/// An association.
#[derive(Clone, Debug)]
pub struct Association {
    /// Which.
    pub id: AssociationId,
    /// The configured source it belongs to; `None`: it came unasked.
    pub source: Option<SourceId>,
    /// In which instance.
    pub instance: InstanceId,
    /// Through which interface; 0: routing decides.
    pub interface: InterfaceIndex,
    /// With whom.
    pub remote: SocketAddr,
    /// Our own address in it, once a packet has told.
    pub local: Option<IpAddr>,
    /// The key both sides know.
    pub key: Option<KeyId>,
    /// Of our requests. (A peering has its own.)
    pub version: Version,
    /// What the operator thinks of it.
    pub options: SourceOptions,
    /// Its mode.
    pub role: Role,
    /// When it is polled.
    pub poll: PollProcess,
    /// Its last eight samples, as the clock would have measured them without our slews.
    pub filter: ClockFilter,
    /// What the other side says of itself; `None` before the first believable packet.
    pub peer: Option<PeerVariables>,
    /// The last measurement.
    pub last_sample: Option<LastSample>,
    /// The last Kiss-o'-Death that was believed. Unless it was RATE, whose effect lasts, a measurement makes up for it.
    pub kiss: Option<Kiss>,
    /// How far it got in the last selection.
    pub state: SourceState,
    /// Counters.
    pub traffic: Traffic,
    /// Polls in a row that began while it was of no use.
    pub useless_polls: u8,
}

impl Association {
    /// The candidate for selection, as of now. `slewed` is how far slewing has moved our clock so far;
    /// `system_peer` the address of the system peer, if that is another association, `names` what those tell who follow us
    /// at other addresses of ours than this association knows.
    #[must_use]
    pub fn candidate(
        &self,
        now: Timestamp<Monotonic>,
        slewed: NtpDuration,
        system_peer: Option<IpAddr>,
        names: &[ReferenceId],
    ) -> Candidate {
        let mut estimate = self.filter.estimate(now);
        if let Some(estimate) = &mut estimate {
            estimate.offset = estimate.offset - slewed;
        }
        let peer = self.peer.as_ref();
        Candidate {
            id: self.selection_id(),
            estimate,
            stratum: peer.map_or(0, |peer| peer.stratum),
            leap: peer.map_or(Leap::Unsynchronised, |peer| peer.leap),
            root_delay: peer.map_or_else(NtpShort::default, |peer| peer.root_delay),
            root_dispersion: peer.map_or_else(NtpShort::default, |peer| peer.root_dispersion),
            reach: self.poll.reach().bits(),
            follows: self.follows(system_peer, names),
            poll: self.poll.interval(),
            options: self.options,
            speaks: peer.is_some_and(|peer| now - peer.time <= self.poll.memory()),
        }
    }

    /// How far it gets and why no further, in words, with what may have led to that.
    #[must_use]
    pub fn reason(&self) -> String {
        let mut reason = self.state.to_string();
        if self.state == SourceState::Unreachable {
            reason += &self.traffic.failures.reason();
        }
        match self.kiss {
            None => {}
            Some(Kiss::Rate) => reason += "; it wants to be asked less often (RATE)",
            Some(kiss) => reason += &format!("; it said {kiss}"),
        }
        reason
    }

    /// How selection names it.
    #[must_use]
    pub const fn selection_id(&self) -> state::SourceId {
        state::SourceId(self.id.0)
    }

    /// A sample came: `slewed` as above, `header` what came with it.
    pub fn take(&mut self, sample: Sample, header: &Header, stamp: StampKind, slewed: NtpDuration) {
        self.peer = Some(PeerVariables::of(header, sample.time));
        self.last_sample = Some(LastSample { sample, stamp });
        self.filter.insert(Sample { offset: sample.offset + slewed, ..sample });
    }

    /// Our clock was stepped, or its precision is another: all measurements are void (RFC 5905 section 11.2.3).
    pub fn reset(&mut self, first_poll: Timestamp<Monotonic>) {
        self.filter.clear();
        self.last_sample = None;
        self.poll.restart(first_poll);
        match &mut self.role {
            Role::Client(client) => client.forget(),
            Role::Symmetric(symmetric) => symmetric.forget(),
            Role::BroadcastClient(listener) => listener.forget(first_poll),
            Role::BroadcastServer(_) | Role::ManycastClient(_) => {}
        }
    }

    fn follows(&self, system_peer: Option<IpAddr>, names: &[ReferenceId]) -> Loop {
        let Some(peer) = &self.peer else { return Loop::None };
        let followed = Followed {
            stratum: peer.stratum,
            reference_id: peer.reference_id,
            remote: self.remote.ip(),
            local: self.local,
        };
        find_loop(&followed, system_peer, names)
    }

    /// Its poll interval.
    #[must_use]
    pub fn interval(&self) -> Log2Seconds {
        self.poll.interval()
    }
}
