//! Does the interface still have its link?
//!
//! Owns: the question, and the words for the answer. Does not own: what a step does about it.
//!
//! The one idea a newcomer lacks: without a link, requests vanish in silence (the kernel engine hears nothing at all of
//! them), and a server that never saw them would be blamed. The kernel counts how often a link was lost, so one that went
//! and came back between two looks is found out too.

use super::engine::{EngineError, Progress, Scene, Wish};
use crate::sys::netlink::{NetlinkSocket, link_state};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a step waits for the link before it begins: attaching an XDP program makes some NICs drop it for 3 s.
const LINK_WITHIN: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// An interface that had its link when a step began.
#[derive(Debug)]
pub struct LinkWatch {
    socket: NetlinkSocket,
    interface: String,
    ifindex: u32,
    losses: u32,
}

impl LinkWatch {
    /// Waits until the scene's interface, of the calling thread's network namespace, has its link; `None` if `progress`
    /// wishes for an end first.
    ///
    /// # Errors
    /// It has none for [`LINK_WITHIN`], or is gone.
    pub fn begin(
        scene: &Scene,
        progress: &mut dyn FnMut(Progress) -> Wish,
    ) -> Result<Option<Self>, EngineError> {
        let (interface, ifindex) = (scene.interface.clone(), scene.ifindex);
        let socket = NetlinkSocket::open_route_requests()
            .map_err(|error| EngineError(format!("cannot ask for the state of {interface}: {error}")))?;
        let mut watch = Self { socket, interface, ifindex, losses: 0 };
        let deadline = Instant::now() + LINK_WITHIN;
        loop {
            if progress(Progress::default()) != Wish::GoOn {
                return Ok(None);
            }
            match watch.look() {
                Ok(()) => return Ok(Some(watch)),
                Err(what) if what == What::Gone || Instant::now() >= deadline => {
                    return Err(EngineError(watch.in_words(what)));
                }
                // Losses until now are not the step's.
                Err(_) => sleep(POLL),
            }
        }
    }

    /// Looks whether all is well; if not, says what happened, `elapsed` after the step began.
    ///
    /// # Errors
    /// What happened, in words for the user.
    pub fn check(&mut self, elapsed: Duration) -> Result<(), String> {
        self.look().map_err(|what| {
            format!("{}, {:.1} s after the step began", self.in_words(what), elapsed.as_secs_f64())
        })
    }

    fn look(&mut self) -> Result<(), What> {
        match link_state(&self.socket, self.ifindex) {
            Ok(state) => {
                let before = std::mem::replace(&mut self.losses, state.losses);
                match state.is_up {
                    false => Err(What::Lost),
                    true if before != state.losses => Err(What::Flapped),
                    true => Ok(()),
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Err(What::Gone),
            // A kernel too busy to answer says nothing of the link.
            Err(error) => {
                tracing::debug!(interface = self.interface, %error, "state of the link unknown");
                Ok(())
            }
        }
    }

    fn in_words(&self, what: What) -> String {
        let interface = &self.interface;
        match what {
            What::Gone => format!("{interface} is gone: it or its other end was removed, or moved elsewhere"),
            What::Lost => format!("{interface} has no link: it or its other end is down"),
            What::Flapped => format!("{interface} lost its link for a while: it or its other end was down"),
        }
    }
}

/// What is wrong with a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Gone,
    Lost,
    Flapped,
}
