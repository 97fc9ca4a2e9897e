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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options(target: &str, sources: Option<&str>) -> Options {
        Options {
            target: SocketAddr::new(target.parse().unwrap(), 123),
            interface: "tb0".into(),
            offer: Offer::Rate(10_000.0),
            clients: 1000,
            sources: sources.map(|sources| sources.parse().unwrap()),
            duration: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            expect: Expect::Ntp,
            is_mine: false,
        }
    }

    #[track_caller]
    fn refused(options: &Options, text: &str) {
        let error = options.check().expect_err(text).to_string();
        assert!(error.starts_with(text), "{error}");
    }

    #[test]
    fn foreign_targets_and_sources_take_the_flag_and_multicast_never_goes() {
        let foreign = options("192.0.2.1", None);
        refused(&foreign, "--target 192.0.2.1: must be within private");
        assert_eq!(Options { is_mine: true, ..foreign }.check(), Ok(()));
        let spoofed = options("10.99.1.1", Some("8.8.8.0/24"));
        refused(&spoofed, "--sources 8.8.8.0/24: must be within private");
        assert_eq!(Options { is_mine: true, ..spoofed }.check(), Ok(()));
        for never in ["224.0.1.1", "255.255.255.255", "::ffff:10.99.1.1", "::"] {
            refused(
                &Options { is_mine: true, ..options(never, None) },
                &format!("--target {never}: must be"),
            );
        }
        refused(&options("127.0.0.1", None), "--target 127.0.0.1: must be reached through an Ethernet");
    }

    #[test]
    fn sources_that_no_machine_answers_are_refused_whoever_vouches_for_them() {
        for (never, reason) in [
            ("127.0.0.0/8", "must not have loopback addresses in it"),
            ("127.0.0.1/32", "must not have loopback addresses in it"),
            ("126.0.0.0/7", "must not have loopback addresses in it"),
            (
                "224.0.0.0/4",
                "must be addresses of single machines; this is unspecified, multicast or broadcast",
            ),
            (
                "239.1.0.0/16",
                "must be addresses of single machines; this is unspecified, multicast or broadcast",
            ),
            (
                "0.0.0.0/8",
                "must be addresses of single machines; this is unspecified, multicast or broadcast",
            ),
            ("255.255.255.255/32", "must be addresses of single machines; this is unspecified, multicast or"),
            (
                "::ffff:10.99.8.0/118",
                "must be addresses of single machines; this is IPv4-mapped (write the IPv4",
            ),
            ("::1/128", "must not have loopback addresses in it"),
            ("::/128", "must be addresses of single machines; this is unspecified or multicast"),
            ("ff02::/16", "must be addresses of single machines; this is unspecified or multicast"),
            ("10.99.8.0/22", "must be of the same family as --target fd99:1::1"),
        ] {
            let options = Options { is_mine: true, ..options("fd99:1::1", Some(never)) };
            refused(&options, &format!("--sources {never}: {reason}"));
        }
    }

    #[test]
    fn the_broadcast_address_of_the_interfaces_network_is_no_client() {
        let next_hop = |source: &str| NextHop {
            ifindex: 2,
            source_mac: [2; 6],
            target_mac: [4; 6],
            source: source.parse().unwrap(),
        };
        let wide = options("10.99.200.1", Some("10.99.0.0/16"));
        assert_eq!(wide.check(), Ok(()));
        let error = wide.scene(&next_hop("10.99.1.2/24")).unwrap_err().to_string();
        assert!(
            error.starts_with("--sources 10.99.0.0/16: must not make 10.99.1.255, the broadcast"),
            "{error}"
        );
        // Behind the last client, and no broadcast address at all.
        assert!(wide.scene(&next_hop("10.99.7.2/24")).is_ok());
        assert!(wide.scene(&next_hop("10.99.1.2/31")).is_ok());
        let own = Options { sources: None, ..wide };
        assert_eq!(own.scene(&next_hop("10.99.1.2/24")).unwrap().clients.first().to_string(), "10.99.1.2");
    }

    #[test]
    fn clients_must_have_room_and_leave_the_target_alone() {
        assert_eq!(options("10.99.1.1", Some("10.99.8.0/22")).check(), Ok(()));
        refused(&options("10.99.1.1", Some("fd99:8::/64")), "--sources fd99:8::/64: must be of the same");
        refused(
            &options("10.99.1.1", Some("10.99.0.0/16")),
            "--sources 10.99.0.0/16: must not make 10.99.1.1",
        );
        // It is in the prefix, but behind the last client.
        assert_eq!(options("10.99.200.1", Some("10.99.0.0/16")).check(), Ok(()));
        let many = Options { clients: 70_000, ..options("10.99.1.1", None) };
        refused(&many, "--clients 70000: must be 1 to 64512 on the interface's own address");
        refused(
            &Options { sources: "10.99.8.1/32".parse().ok(), ..many },
            "--clients 70000: must be 1 to 64512",
        );
    }

    #[test]
    fn a_step_has_fewer_requests_than_there_are_numbers() {
        let long = |offer, seconds| Options {
            offer,
            duration: Duration::from_secs(seconds),
            ..options("10.99.1.1", None)
        };
        assert_eq!(long(Offer::Rate(1e6), 4294).check(), Ok(()));
        refused(
            &long(Offer::Rate(1e6), 4295),
            "--duration 4295 s: must be at most 4294 s at 1 000 000 requests/s",
        );
        refused(&long(Offer::Saturate, 108), "--duration 108 s: must be at most 107 s with --saturate");
        let sweep = Offer::Sweep { from: 1.0, to: 2e6, steps: 5 };
        refused(&long(sweep, 3000), "--duration 3000 s: must be at most 2147 s at 2 000 000");
    }

    #[test]
    fn a_sweep_goes_by_factors_and_each_step_has_its_nonce() {
        let sweep = Offer::Sweep { from: 1000.0, to: 100_000.0, steps: 5 };
        assert_eq!(sweep.rates(), [1000.0, 3162.0, 10_000.0, 31_623.0, 100_000.0].map(Some));
        let steps = Options { offer: sweep, ..options("10.99.1.1", None) }.steps(u32::MAX);
        let nonces: Vec<_> = steps.iter().map(|step| step.nonce).collect();
        assert_eq!(nonces, [u32::MAX, 0, 1, 2, 3]);
    }

    proptest! {
        #[test]
        fn sweeps_rise_from_end_to_end(from in 1.0..1e6_f64, factor in 1.1..100_f64, steps in 2..=100_u32) {
            let (from, to) = (from.round(), (from * factor).ceil() + 1.0);
            let rates: Vec<f64> = Offer::Sweep { from, to, steps }.rates().into_iter().flatten().collect();
            prop_assert_eq!((rates[0], rates[rates.len() - 1]), (from, to));
            prop_assert_eq!(rates.len(), steps as usize);
            prop_assert!(rates.is_sorted());
        }
    }
}
