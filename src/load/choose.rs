//! Which engine carries the packets, and why.
//!
//! Owns: the choice, and the sentence that explains it. Does not own: what the engines can do.
//!
//! The one idea a newcomer lacks: nothing else in the program names an engine.

use super::engine::{Engine, EngineError, Scene};
use crate::sys::ethtool::Ethtool;

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
            Self::AfXdp => Ok(Box::new(super::af_xdp::AfXdp::open(scene)?)),
            Self::LiveFrames => Ok(Box::new(super::live_frames::LiveFrames::open(scene)?)),
        }
    }
}

/// The engine for this interface, and why: a clause that can follow a colon. `wanted` is the user's choice, if any.
#[must_use]
pub fn choose(wanted: Option<Kind>, interface: &str) -> (Kind, String) {
    let driver = || Ethtool::open().and_then(|ethtool| ethtool.driver(interface)).ok();
    match wanted {
        Some(kind) => (kind, "asked for by --engine".to_owned()),
        None => for_driver(interface, driver().map(|driver| driver.name).as_deref()),
    }
}

fn for_driver(interface: &str, driver: Option<&str>) -> (Kind, String) {
    match driver {
        Some("veth") => (
            Kind::LiveFrames,
            format!("{interface} is a veth, where AF_XDP sends more slowly than servers answer"),
        ),
        Some(driver) => (Kind::AfXdp, format!("{interface} is no veth (driver {driver})")),
        None => (Kind::AfXdp, format!("{interface} does not name its driver")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_veth_gets_live_frames_and_the_user_has_the_last_word() {
        assert_eq!(for_driver("tb0", Some("veth")).0, Kind::LiveFrames);
        let (kind, reason) = for_driver("eth0", Some("ice"));
        assert_eq!((kind, reason.as_str()), (Kind::AfXdp, "eth0 is no veth (driver ice)"));
        assert_eq!(for_driver("x", None).0, Kind::AfXdp);
        assert_eq!(choose(Some(Kind::AfXdp), "tb0").1, "asked for by --engine");
    }
}
