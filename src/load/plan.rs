//! What the user wants, checked: the scene and the steps that an engine can be given.
//!
//! Owns: the ranges of a load test's options and the rules between them. Does not own: how options are written (`cli`),
//! facts of the network (`resolve`).
//!
//! The one idea a newcomer lacks: a request is known by 32 bits of its transmit timestamp, so a step has fewer than
//! 2^32 requests; whoever wants more makes another step, which has another nonce.

use super::clients::{Clients, PORTS};
use super::digits::grouped;
use super::engine::{Expect, Plan, Scene};
use super::resolve::NextHop;
use super::scope::Scope;
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Requests a second. The upper end is line rate of a 100 Gbit/s link.
pub const RATES: RangeInclusive<f64> = 1.0..=100e6;

/// Steps of a sweep.
pub const SWEEP_STEPS: RangeInclusive<u32> = 2..=100;

/// How long one step may take.
pub const DURATIONS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// How late a reply may be. The upper end is well below what the histograms hold (60 s).
pub const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(10);

/// Requests a second that no engine exceeds when it sends all it can.
const SATURATED_RATE_MAX: f64 = 40e6;

/// Requests that a step stays below.
const REQUESTS_END: f64 = (1_u64 << 32) as f64;

/// How much is asked.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Offer {
    /// So many requests a second.
    Rate(f64),
    /// Rates from one to the other, each the same factor above the one before.
    Sweep {
        /// The first rate.
        from: f64,
        /// The last rate.
        to: f64,
        /// How many rates.
        steps: u32,
    },
    /// As many as the engine can send.
    Saturate,
}

impl Offer {
    /// The rate of every step.
    #[must_use]
    pub fn rates(self) -> Vec<Option<f64>> {
        match self {
            Self::Rate(rate) => vec![Some(rate)],
            Self::Saturate => vec![None],
            Self::Sweep { from, to, steps } => {
                let last = steps.saturating_sub(1).max(1);
                let rate = |step| from * (to / from).powf(f64::from(step) / f64::from(last));
                // The ends as they were asked for, without the rounding of powers and roots.
                (0..steps).map(|step| Some(if step == last { to } else { rate(step).round() })).collect()
            }
        }
    }
}

/// A load test as the user wants it. Each value is within its own range.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Who is asked.
    pub target: SocketAddr,
    /// The interface that sends.
    pub interface: String,
    /// How much is asked.
    pub offer: Offer,
    /// How many clients ask.
    pub clients: u64,
    /// Where their addresses come from; none: from the interface.
    pub sources: Option<IpNet>,
    /// How long each step takes.
    pub duration: Duration,
    /// How late a reply may be.
    pub timeout: Duration,
    /// What a right reply is.
    pub expect: Expect,
    /// The user vouches for target and sources.
    pub is_mine: bool,
}

/// Options that contradict each other, or that we will not do. Each names the flags and what would do.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum PlanError {
    /// An address that is no single machine's.
    #[error("{flag} {value}: must be addresses of single machines; this is {reason}")]
    Nobody {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
        /// What it is.
        reason: &'static str,
    },
    /// An address that may be somebody else's.
    #[error(
        "{flag} {value}: must be within private (10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, fc00::/7), shared \
         (100.64.0.0/10) or link-local addresses, unless --target-is-mine says that you answer for all the addresses \
         involved"
    )]
    Foreign {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
    },
    /// A loopback address.
    #[error(
        "--target {0}: must be reached through an Ethernet interface; loopback is not: load a server in another \
         network namespace, over a veth pair, or on another machine"
    )]
    Loopback(IpAddr),
    /// Loopback addresses for the clients.
    #[error(
        "--sources {0}: must not have loopback addresses in it (127.0.0.0/8, ::1), as every machine drops what comes \
         from one over a network; private (10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, fc00::/7), shared \
         (100.64.0.0/10) and link-local addresses will do"
    )]
    LoopbackSources(IpNet),
    /// Sources of the other address family.
    #[error("--sources {sources}: must be of the same family as --target {target}")]
    Family {
        /// The sources.
        sources: IpNet,
        /// The target.
        target: IpAddr,
    },
    /// A client with the server's address.
    #[error("--sources {sources}: must not make {target}, the target, a client of itself")]
    TargetIsClient {
        /// The sources.
        sources: IpNet,
        /// The target.
        target: IpAddr,
    },
    /// A client with the address that means everybody.
    #[error(
        "--sources {sources}: must not make {broadcast}, the broadcast address of the interface's network, a client, \
         as machines of that network drop what comes from it"
    )]
    BroadcastIsClient {
        /// The sources.
        sources: IpNet,
        /// The address.
        broadcast: IpAddr,
    },
    /// More clients than there are addresses and ports.
    #[error("--clients {clients}: must be 1 to {room} on {place}")]
    Clients {
        /// How many are wanted.
        clients: u64,
        /// How many there is room for.
        room: u64,
        /// Where.
        place: String,
    },
    /// More requests than a step can have.
    #[error(
        "--duration {seconds} s: must be at most {max:.0} s {rate}, as a step has fewer than 2^32 requests"
    )]
    TooMany {
        /// The wanted duration.
        seconds: f64,
        /// The longest one.
        max: f64,
        /// At what rate.
        rate: String,
    },
}

impl Options {
    /// Everything that can be judged without looking at the network.
    ///
    /// # Errors
    /// The first [`PlanError`].
    pub fn check(&self) -> Result<(), PlanError> {
        let target = self.target.ip();
        self.check_scope("--target", target.into(), target.to_string(), PlanError::Loopback(target))?;
        if let Some(sources) = self.sources {
            let loopback = PlanError::LoopbackSources(sources);
            self.check_scope("--sources", sources, sources.to_string(), loopback)?;
            if sources.addr().is_ipv4() != target.is_ipv4() {
                return Err(PlanError::Family { sources, target });
            }
            self.clients_in(sources)?;
        } else if self.clients > PORTS {
            let place = "the interface's own address; --sources PREFIX makes room for more".to_owned();
            return Err(PlanError::Clients { clients: self.clients, room: PORTS, place });
        }
        for rate in self.offer.rates() {
            let max = REQUESTS_END / rate.unwrap_or(SATURATED_RATE_MAX);
            let seconds = self.duration.as_secs_f64();
            if seconds >= max {
                let rate = rate.map_or("with --saturate".to_owned(), |rate| {
                    format!("at {} requests/s", grouped(rate.round() as u64, ' '))
                });
                return Err(PlanError::TooMany { seconds, max: max.floor(), rate });
            }
        }
        Ok(())
    }

    fn check_scope(
        &self,
        flag: &'static str,
        prefix: IpNet,
        value: String,
        loopback: PlanError,
    ) -> Result<(), PlanError> {
        match Scope::of(prefix) {
            Scope::Loopback => Err(loopback),
            Scope::Nobody(reason) => Err(PlanError::Nobody { flag, value, reason }),
            Scope::Foreign if !self.is_mine => Err(PlanError::Foreign { flag, value }),
            Scope::Own | Scope::Foreign => Ok(()),
        }
    }

    fn clients_in(&self, sources: IpNet) -> Result<Clients, PlanError> {
        let clients = Clients::new(sources, self.clients).map_err(|error| PlanError::Clients {
            clients: self.clients,
            room: error.room(),
            place: sources.to_string(),
        })?;
        let target = self.target.ip();
        if clients.contain(target) {
            return Err(PlanError::TargetIsClient { sources, target });
        }
        Ok(clients)
    }

    /// Where the clients' addresses come from, now that the way to the target is known.
    #[must_use]
    pub fn prefix(&self, next_hop: &NextHop) -> IpNet {
        self.sources.unwrap_or_else(|| next_hop.source.addr().into())
    }

    /// The scene of all steps.
    ///
    /// # Errors
    /// [`PlanError`] as from [`Self::check`].
    pub fn scene(&self, next_hop: &NextHop) -> Result<Scene, PlanError> {
        let sources = self.prefix(next_hop);
        let clients = self.clients_in(sources)?;
        // A pair of addresses has no broadcast address (RFC 3021), nor has a single one.
        if let IpNet::V4(network) = next_hop.source
            && network.prefix_len() < 31
            && clients.contain(network.broadcast().into())
        {
            return Err(PlanError::BroadcastIsClient { sources, broadcast: network.broadcast().into() });
        }
        Ok(Scene {
            interface: self.interface.clone(),
            ifindex: next_hop.ifindex,
            source_mac: next_hop.source_mac,
            target_mac: next_hop.target_mac,
            target: self.target.ip(),
            port: self.target.port(),
            clients,
            expect: self.expect,
        })
    }

    /// The steps. `random` makes their nonces differ from those of other runs.
    #[must_use]
    pub fn steps(&self, random: u32) -> Vec<Plan> {
        let nonces = (0..).map(|step| random.wrapping_add(step));
        let steps = self.offer.rates().into_iter().zip(nonces);
        steps
            .map(|(rate, nonce)| Plan { rate, duration: self.duration, timeout: self.timeout, nonce })
            .collect()
    }
}

#[cfg(test)]
mod tests;
