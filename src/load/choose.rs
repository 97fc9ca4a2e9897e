//! Which engine carries the packets, and why.
//!
//! Owns: the choice, and the sentence that explains it. Does not own: what the engines can do.
//!
//! The one idea a newcomer lacks: nothing else in the program names an engine.

use super::af_xdp::AfXdp;
use super::engine::{Engine, EngineError, Scene};
use super::live_frames::LiveFrames;

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

    /// Makes it ready to send.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn open(self, scene: &Scene) -> Result<Box<dyn Engine>, EngineError> {
        match self {
            Self::AfXdp => Ok(Box::new(AfXdp::open(scene)?)),
            Self::LiveFrames => Ok(Box::new(LiveFrames::open(scene)?)),
        }
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
