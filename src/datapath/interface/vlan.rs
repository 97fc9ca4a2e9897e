//! The guard against VLAN tags that the XDP program cannot see.
//!
//! Owns: whether tag stripping must be off, switching it off, and switching it on again. Does not own: whether anything
//! is redirected; it says only whether that is safe.
//!
//! The one idea a newcomer lacks: by default a NIC takes the VLAN tag out of the frame and hands it over beside the frame,
//! where XDP does not see it. A request on VLAN 7 then looks untagged, and its answer would leave untagged, on another
//! network. What we do about it, by what the interface has (DESIGN: a reply never leaves on another VLAN):
//!
//! | stripping | VLAN interfaces or configured tags | none of them |
//! |---|---|---|
//! | off, or unknown to the driver | redirect | redirect |
//! | on, can be switched | switch off, or do not redirect | switch off, or accept |
//! | on for good, or cannot be read | do not redirect | accept |
//!
//! "Switch off" also where no VLAN is configured: a frame of a foreign VLAN addressed to us, which the kernel would drop,
//! then shows its tag and is passed up. "Accept" means that such a frame, should a switch send one, is answered untagged.
//!
//! Restoring happens when the guard is dropped. A process that is killed leaves stripping off, which costs the kernel a
//! little work per tagged frame and breaks nothing; the next start takes "off" for the administrator's wish.

use super::TagStack;
use super::facts::InterfaceFacts;
use crate::sys::ethtool::{Ethtool, STRIP_8021AD, STRIP_8021Q};
use serde::Serialize;
use std::io;

/// What to do about tag stripping on an interface, now. Decide again when a VLAN interface comes or the interface is
/// recreated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "plan", rename_all = "kebab-case")]
pub enum VlanPlan {
    /// Tags stay in the frame: nothing to do.
    InBand,
    /// Switch these off (ethtool's kernel names) while we redirect.
    TurnOff {
        /// What to switch.
        features: Vec<&'static str>,
        /// There are VLANs here: if it cannot be done, do not redirect.
        required: bool,
    },
    /// Stripping stays on, but no VLAN is configured here: redirect.
    Accept {
        /// Why it stays on.
        reason: String,
    },
    /// VLANs are configured here and their tags are invisible: do not redirect.
    Refuse {
        /// Why.
        reason: String,
    },
}

/// Redirecting would be unsafe on this interface: let the kernel's sockets serve it.
#[derive(Debug, thiserror::Error)]
pub enum VlanError {
    /// The plan was [`VlanPlan::Refuse`].
    #[error("VLAN tags cannot be seen by XDP: {0}")]
    Refused(String),
    /// Switching failed, and there are VLANs here.
    #[error("VLAN tag stripping ({feature}) cannot be switched off: {error}")]
    Stuck {
        /// What was to be switched.
        feature: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

impl VlanPlan {
    /// Decides for an interface and the tag stacks configured for it.
    pub fn decide(facts: &InterfaceFacts, extra_tags: &[TagStack]) -> Self {
        let required = !facts.vlan_children.is_empty() || !extra_tags.is_empty();
        let reason = match &facts.stripping {
            Ok(stripping) => {
                let active = stripping.iter().filter(|(_, state)| state.active);
                if active.clone().next().is_none() {
                    return Self::InBand;
                }
                if active.clone().all(|(_, state)| state.changeable) {
                    return Self::TurnOff { features: active.map(|(name, _)| *name).collect(), required };
                }
                "the device always strips them".to_owned()
            }
            Err(reason) => format!("their stripping is unknown: {reason}"),
        };
        if required { Self::Refuse { reason } } else { Self::Accept { reason } }
    }

    /// The same where VLANs may be on top of the interface that are not seen from here, in another network namespace.
    #[must_use]
    pub fn with_vlans(self) -> Self {
        match self {
            Self::TurnOff { features, .. } => Self::TurnOff { features, required: true },
            Self::Accept { reason } => Self::Refuse { reason },
            other => other,
        }
    }

    /// Does what was decided, to the interface with this index in the calling thread's network namespace. Some NICs
    /// drop their link for some seconds when stripping is switched. Keep the guard as long as frames are redirected.
    ///
    /// # Errors
    /// Do not redirect on this interface. What was switched is back as it was.
    pub fn apply(&self, ifindex: u32) -> Result<RestoreGuard, VlanError> {
        match self {
            Self::InBand => Ok(RestoreGuard::default()),
            Self::Accept { reason } => Ok(RestoreGuard::noting(reason.clone())),
            Self::Refuse { reason } => Err(VlanError::Refused(reason.clone())),
            Self::TurnOff { features, required } => turn_off(ifindex, features).or_else(|error| {
                if *required { Err(error) } else { Ok(RestoreGuard::noting(error.to_string())) }
            }),
        }
    }
}

fn turn_off(ifindex: u32, features: &[&'static str]) -> Result<RestoreGuard, VlanError> {
    let stuck = |error| VlanError::Stuck { feature: features.first().copied().unwrap_or(STRIP_8021Q), error };
    let ethtool = Ethtool::open().map_err(stuck)?;
    let name = ethtool.name_of(ifindex).map_err(stuck)?;
    let mut restore = Restore { ethtool, ifindex, features: Vec::new() };
    for &feature in features {
        // Drivers may tie the two kinds together, so the second may be off by now; switching it again does no harm.
        match restore.ethtool.set_feature(&name, feature, false) {
            Ok(()) => restore.features.push(feature),
            Err(error) => return Err(VlanError::Stuck { feature, error }),
        }
    }
    Ok(RestoreGuard { restore: Some(restore), note: None })
}

/// Holds tag stripping off; dropping it puts it back as it was.
#[derive(Debug, Default)]
#[must_use = "dropping the guard switches tag stripping on again"]
pub struct RestoreGuard {
    restore: Option<Restore>,
    note: Option<String>,
}

impl RestoreGuard {
    fn noting(note: String) -> Self {
        Self { restore: None, note: Some(note) }
    }

    /// What is switched off as long as this lives, for the log.
    pub fn switched_off(&self) -> &[&'static str] {
        self.restore.as_ref().map_or(&[], |restore| &restore.features)
    }

    /// Why stripped tags stay invisible, for the log; `None` when they are in the frame.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }
}

/// The socket keeps to the interface's namespace and the index to the interface, whatever its name is by then.
#[derive(Debug)]
struct Restore {
    ethtool: Ethtool,
    ifindex: u32,
    features: Vec<&'static str>,
}

impl Drop for Restore {
    fn drop(&mut self) {
        // The interface is gone, and its switches with it.
        let Ok(name) = self.ethtool.name_of(self.ifindex) else { return };
        for feature in &self.features {
            if let Err(error) = self.ethtool.set_feature(&name, feature, true) {
                tracing::warn!(interface = name, feature, %error, "cannot switch VLAN tag stripping back on");
            }
        }
    }
}

/// The offloads that take tags out of frames.
pub(super) const STRIPPING: [&str; 2] = [STRIP_8021Q, STRIP_8021AD];
