//! The ladder of attempts: from the best way into user space that an interface may have down to the last.
//!
//! Owns: the rungs, their order, and how one is tried as a whole (program, attachment, every queue's port).
//! Does not own: what comes below the last rung; that is the kernel's sockets, which need nothing from here.
//!
//! The one idea a newcomer lacks: drivers promise much, and only trying tells. So each rung is tried in full, and
//! what refused it is kept in words, because "why is it slow" is the operator's first question.

use super::af_xdp::{CopyMode, Port, PortConfig, PortError};
use super::steering::{AttachMode, Steering, SteeringConfig, SteeringError, Variant};
use std::fmt;
use thiserror::Error;

/// One way of serving an interface through AF_XDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rung {
    variant: Variant,
    attach: AttachMode,
    copy: CopyMode,
}

/// Best first. The device-bound program is tried with zero-copy only: a driver that lends its stamps but not its
/// rings exists, but its stamps alone do not repay a second program.
const RUNGS: [Rung; 4] = [
    Rung { variant: Variant::DeviceBound, attach: AttachMode::Driver, copy: CopyMode::ZeroCopy },
    Rung { variant: Variant::Plain, attach: AttachMode::Driver, copy: CopyMode::ZeroCopy },
    Rung { variant: Variant::Plain, attach: AttachMode::Driver, copy: CopyMode::Copy },
    Rung { variant: Variant::Plain, attach: AttachMode::Skb, copy: CopyMode::Copy },
];

impl Rung {
    /// Does the XDP program run in the driver?
    #[must_use]
    pub fn is_in_driver(&self) -> bool {
        self.attach == AttachMode::Driver
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match (self.variant, self.attach, self.copy) {
            (Variant::DeviceBound, ..) => "device-bound + zero-copy",
            (_, AttachMode::Driver, CopyMode::ZeroCopy) => "driver + zero-copy",
            (_, AttachMode::Driver, CopyMode::Copy) => "driver + copy",
            (_, AttachMode::Skb, _) => "skb + copy",
        })
    }
}

/// What an operator allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowed {
    /// In the driver.
    pub driver: bool,
    /// In the generic path of the kernel.
    pub skb: bool,
    /// The NIC reading and writing our memory.
    pub zero_copy: bool,
    /// The program that asks the NIC for its stamps.
    pub device_bound: bool,
}

impl Allowed {
    /// The rungs that are left, best first.
    pub fn rungs(self) -> impl Iterator<Item = Rung> {
        RUNGS.into_iter().filter(move |rung| {
            (match rung.attach {
                AttachMode::Driver => self.driver,
                AttachMode::Skb => self.skb,
            }) && (self.zero_copy || rung.copy == CopyMode::Copy)
                && (self.device_bound || rung.variant == Variant::Plain)
        })
    }
}

/// Why a rung did not hold.
#[derive(Debug, Error)]
pub enum RungError {
    /// The XDP program.
    #[error(transparent)]
    Steering(#[from] SteeringError),
    /// A queue's port.
    #[error(transparent)]
    Port(#[from] PortError),
}

/// What came of one attempt.
#[derive(Debug)]
pub struct Attempt {
    /// Which rung.
    pub rung: Rung,
    /// Why it did not hold; `None` if it did.
    pub error: Option<RungError>,
}

/// An interface served through AF_XDP: its program is attached, but its sockets are in no slot yet.
#[derive(Debug)]
pub struct Opened {
    /// The program and its maps.
    pub steering: Steering,
    /// A port for each queue that was asked for, in that order.
    pub ports: Vec<(u32, Port)>,
}

/// Climbs down until a rung holds. Every attempt is reported, the last one without error if it held.
///
/// `steering.variant` and `port.queue` and `port.mode` are overwritten by each rung's own.
pub fn climb(
    allowed: Allowed,
    steering: SteeringConfig,
    port: &PortConfig,
    queues: &[u32],
) -> (Option<Opened>, Vec<Attempt>) {
    let mut attempts = Vec::new();
    for rung in allowed.rungs() {
        match try_rung(rung, steering, port, queues) {
            Ok(opened) => {
                attempts.push(Attempt { rung, error: None });
                return (Some(opened), attempts);
            }
            Err(error) => attempts.push(Attempt { rung, error: Some(error) }),
        }
    }
    (None, attempts)
}

fn try_rung(
    rung: Rung,
    steering: SteeringConfig,
    port: &PortConfig,
    queues: &[u32],
) -> Result<Opened, RungError> {
    let mut steering = Steering::load(&SteeringConfig { variant: rung.variant, ..steering })?;
    // Attached before the sockets are bound: drivers give a queue to zero-copy only under a program.
    steering.attach(rung.attach)?;
    let ports = queues
        .iter()
        .map(|&queue| {
            let config = PortConfig { queue, mode: rung.copy, ..port.clone() };
            Ok((queue, Port::open(&config)?))
        })
        .collect::<Result<_, PortError>>()?;
    Ok(Opened { steering, ports })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(allowed: Allowed) -> Vec<String> {
        allowed.rungs().map(|rung| rung.to_string()).collect()
    }

    #[test]
    fn the_best_rung_comes_first_and_choices_take_rungs_away() {
        let all = Allowed { driver: true, skb: true, zero_copy: true, device_bound: true };
        let words = ["device-bound + zero-copy", "driver + zero-copy", "driver + copy", "skb + copy"];
        assert_eq!(names(all), words);
        assert_eq!(names(Allowed { device_bound: false, ..all }), words[1..]);
        assert_eq!(names(Allowed { zero_copy: false, ..all }), words[2..]);
        assert_eq!(names(Allowed { driver: false, ..all }), words[3..]);
        assert_eq!(names(Allowed { skb: false, zero_copy: false, ..all }), ["driver + copy"]);
    }
}
