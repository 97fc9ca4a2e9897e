//! Where the kernel engine's program is attached.
//!
//! Owns: the links, and the choice of the hook. Does not own: the program.
//!
//! The one idea a newcomer lacks: a veth's peer sends packets, not frames, and each that an XDP program is to see has to be
//! copied first. So on veth the judge sits behind, at the traffic control hook, where packets are seen as they are. But
//! the sender has to be attached as XDP program all the same (`xdp-prog/src/load.bpf.c` says why): to the loopback
//! interface of a network namespace that nobody uses.

use super::program::Program;
use crate::load::engine::{EngineError, Scene};
use crate::sys::bpf::{AttachMode, create_tcx_link, create_xdp_link, detach_link, update_link};
use crate::sys::ethtool::Ethtool;
use crate::sys::namespace;
use std::io;
use std::os::fd::OwnedFd;
use std::thread;

/// `lo` of a new namespace.
const LOOPBACK_IFINDEX: u32 = 1;

/// The program where it judges. Dropping it detaches it.
#[derive(Debug)]
pub(super) struct Attached {
    interface: String,
    /// The judge.
    judge: OwnedFd,
    sender: Sender,
    /// In words for the user: where the judge is, and why not at the better place.
    way: String,
}

/// Where the sender is attached.
#[derive(Debug)]
enum Sender {
    /// It is the judge's program too.
    There,
    /// The link, and the namespace, which lives as long as somebody holds it.
    Elsewhere(OwnedFd, #[expect(dead_code, reason = "held, not used")] OwnedFd),
}

impl Attached {
    /// Attaches the program to the scene's interface, from a thread in its network namespace: on veth at the traffic
    /// control hook if the kernel (6.6 or newer) and the process's rights permit, else as XDP program in the driver or
    /// else in the generic path. From now on replies from the target's port are taken; all else passes to the kernel.
    ///
    /// # Errors
    /// No privilege, a kernel too old (before 5.18), an XDP program that is there already.
    pub(super) fn new(program: &Program, scene: &Scene) -> Result<Self, EngineError> {
        let interface = scene.interface.clone();
        let mut way = "replies are judged by an XDP program".to_owned();
        if is_veth(&interface) {
            match behind(program, scene) {
                Ok((judge, sender)) => {
                    let way = "replies are judged at the traffic control hook".to_owned();
                    return Ok(Self { interface, judge, sender, way });
                }
                Err(error) => {
                    way += &format!(
                        ", which costs more than at the traffic control hook (CAP_SYS_ADMIN and Linux 6.6): {error}"
                    );
                }
            }
        }
        let judge = create_xdp_link(program.fd(), scene.ifindex, AttachMode::Driver)
            .or_else(|_| create_xdp_link(program.fd(), scene.ifindex, AttachMode::Skb))
            .map_err(|error| {
                let cause = match error.raw_os_error() {
                    Some(libc::EBUSY | libc::EEXIST) => ": it has another XDP program",
                    _ => "",
                };
                EngineError(format!("cannot attach to {interface}: {error}{cause}"))
            })?;
        Ok(Self { interface, judge, sender: Sender::There, way })
    }

    /// Where the judge is, for the user.
    pub(super) fn way(&self) -> &str {
        &self.way
    }

    /// Puts a program in the place of the one that is attached.
    ///
    /// # Errors
    /// The interface is gone.
    pub(super) fn replace(&self, program: &Program) -> Result<(), EngineError> {
        let updated = match &self.sender {
            Sender::There => update_link(&self.judge, program.fd()),
            Sender::Elsewhere(link, _) => {
                update_link(link, program.fd()).and_then(|()| update_link(&self.judge, program.hear_skb()))
            }
        };
        updated.map_err(|error| EngineError(format!("{}: link of the program lost: {error}", self.interface)))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Err(error) = detach_link(&self.judge) {
            // Closing the link, which happens next, detaches too; only perhaps a moment later.
            tracing::debug!(interface = self.interface, %error, "link not detached by request");
        }
    }
}

fn is_veth(interface: &str) -> bool {
    Ethtool::open().and_then(|ethtool| ethtool.driver(interface)).is_ok_and(|driver| driver.name == "veth")
}

/// The judge at the interface's traffic control hook, the first there, since others may keep what they see from those
/// behind; and the sender where nothing arrives.
fn behind(program: &Program, scene: &Scene) -> io::Result<(OwnedFd, Sender)> {
    let sender = thread::scope(|scope| {
        let elsewhere = scope.spawn(|| -> io::Result<Sender> {
            let namespace = namespace::enter_new()?;
            let link = create_xdp_link(program.fd(), LOOPBACK_IFINDEX, AttachMode::Skb)?;
            Ok(Sender::Elsewhere(link, namespace))
        });
        elsewhere.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    Ok((create_tcx_link(program.hear_skb(), scene.ifindex)?, sender))
}
