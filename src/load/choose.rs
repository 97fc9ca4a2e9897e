//! Which engine carries the packets, and why.
//!
//! Owns: the choice, and the sentence that explains it. Does not own: what the engines can do.
//!
//! The one idea a newcomer lacks: nothing else in the program names an engine.

use super::af_xdp::AfXdp;
use super::engine::{Engine, EngineError, Plan, Scene};
use super::live_frames::LiveFrames;
use crate::sys::process::Capability;

/// An engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// From user space, through xsk-rs.
    AfXdp,
    /// From inside the kernel: BPF_PROG_RUN with live frames.
    LiveFrames,
}

impl Kind {
    /// Its name for flags and records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AfXdp => "af-xdp",
            Self::LiveFrames => "live-frames",
        }
    }

    /// What it needs besides the right to load and attach an XDP program: a privilege that its check can name.
    #[must_use]
    pub const fn needs(self) -> &'static [Capability] {
        match self {
            Self::AfXdp => &[Capability::NetRaw],
            // Its program keeps pointers where the verifier lets nobody else keep them.
            Self::LiveFrames => &[Capability::Perfmon],
        }
    }

    /// Whether all these steps can be done as planned, found out before the first of them.
    ///
    /// # Errors
    /// What of the user's wishes is beyond this engine.
    pub fn check(self, scene: &Scene, plans: &[Plan]) -> Result<(), EngineError> {
        plans.iter().try_for_each(|plan| match self {
            Self::AfXdp => AfXdp::check(plan),
            Self::LiveFrames => LiveFrames::check(scene, plan),
        })
    }

    /// Makes it ready to send, and says which of its ways it found open: a clause for the user.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn open(self, scene: &Scene) -> Result<(Box<dyn Engine>, String), EngineError> {
        Ok(match self {
            Self::AfXdp => {
                let engine = AfXdp::open(scene)?;
                let way = format!("program and rings are {}", engine.carrier());
                (Box::new(engine), way)
            }
            Self::LiveFrames => {
                let engine = LiveFrames::open(scene)?;
                let way = engine.way().to_owned();
                (Box::new(engine), way)
            }
        })
    }
}

/// The engine for this interface, and why: a clause that can follow a colon. `wanted` is the user's choice, if any.
#[must_use]
pub fn choose(wanted: Option<Kind>, interface: &str, ifindex: u32) -> (Kind, String) {
    if let Some(kind) = wanted {
        return (kind, "asked for by --engine".to_owned());
    }
    match LiveFrames::suits(interface, ifindex) {
        Ok(()) => (
            Kind::LiveFrames,
            format!("{interface} is a veth, where AF_XDP sends more slowly than servers answer"),
        ),
        Err(reason) => (Kind::AfXdp, reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_step_is_checked_with_the_limits_of_its_engine() {
        let scene = crate::load::testing::scene("10.99.1.1", "10.99.8.0/22", 1000);
        let plan = |rate| Plan {
            rate: Some(rate),
            duration: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            nonce: 1,
        };
        for (kind, most) in [(Kind::AfXdp, (1 << 21) as f64), (Kind::LiveFrames, (1 << 24) as f64)] {
            let (fits, more) = (plan(most / 10.0), plan(most / 10.0 + 1.0));
            assert!(kind.check(&scene, &[plan(1.0), fits]).is_ok(), "{kind:?}");
            let error = kind.check(&scene, &[fits, more]).unwrap_err().to_string();
            let limit = if kind == Kind::AfXdp {
                "209 716 requests/s, as the engine remembers 2 097 152 open requests"
            } else {
                "1 677 723 requests/s, as the engine remembers 16 777 216 open requests"
            };
            assert_eq!(error, format!("--timeout 10s: must be at most 9 999 ms at {limit}"));
        }
    }

    #[test]
    fn what_is_no_veth_gets_af_xdp_and_the_user_has_the_last_word() {
        let (kind, reason) = choose(None, "lo", 1);
        assert_eq!(kind, Kind::AfXdp);
        assert!(reason.starts_with("lo"), "{reason}");
        for kind in [Kind::AfXdp, Kind::LiveFrames] {
            assert_eq!(choose(Some(kind), "lo", 1), (kind, "asked for by --engine".to_owned()));
        }
    }
}
