//! The kernel engine: requests leave by `BPF_PROG_RUN` with live frames, replies are judged and counted by a program
//! on the interface.
//!
//! Owns: the run of a step. Does not own: pacing, judging and counting (`xdp-prog/src/load.bpf.c`), the program and its
//! maps (`program`), where it is attached (`attached`), the request (`request`).
//!
//! The one idea a newcomer lacks: nothing per packet happens in this process. It starts a system call of about a tenth of a
//! second, during which the kernel runs the sender on one preset frame after the other, reads the counters, and starts the
//! next. So it keeps one CPU busy at any rate: sending is a loop that asks the clock. Requests wait between two calls, but
//! for microseconds only, since the program that sends is attached too (`load.bpf.c` says why that matters).
//!
//! Weaker than a real sender in two ways. A frame that the next device refuses is gone and counts as lost, never as
//! `send_failures`: on veth that is the server's receive ring being full, and a server must not look better for it. And
//! where nothing on the other side takes redirected frames, all of them vanish; [`LiveFrames::suits`] asks for that before
//! a run, and a run that sees none of its requests leave ends with an error.

mod attached;
mod program;
mod settings;

use self::attached::Attached;
use self::program::Program;
use self::settings::{nanoseconds, settings};
use super::alone::Alone;
use super::engine::{Engine, EngineError, Measured, Plan, Progress, Scene, Wish};
use super::judge::Flaw;
use super::link::LinkWatch;
use super::request::Template;
use crate::sys::bpf::run_live_frames;
use crate::sys::clock;
use crate::sys::ethtool::Ethtool;
use crate::sys::netlink::{device_features, transmitted};
use std::io;
use std::ops::ControlFlow;
use std::thread::sleep;
use std::time::{Duration, Instant};
use timeball_xdp_prog::load::{Counter, FLAWS, Histogram, Settings};

/// How long one system call should run: progress is seen that often.
const CALL: Duration = Duration::from_millis(120);
/// Frames of the first call, before their speed is known, and of any later one.
const REPEAT_FIRST: u32 = 4096;
const REPEAT_MAX: u32 = 1 << 24;

/// Frames of a batch. What is redirected leaves at its end, and the CPU receives nothing during it: with nothing to send
/// that is 2 us. Batches of 8 cannot keep 200,000 requests a second; 256 are more than half of veth's receive ring.
const BATCH: u32 = 64;

/// When it has to be clear that requests leave at all, after the start; at the latest at the end.
const LEAVE_WITHIN: Duration = Duration::from_millis(500);
/// Frames that may be on their way, neither received nor dropped: veth's receive ring.
const RING: u64 = 256;

/// `NETDEV_XDP_ACT_NDO_XMIT` of linux/netdev.h: what is redirected to the device leaves.
const REDIRECT_TARGET: u64 = 1 << 2;

const VANISH: &str = "frames redirected to it vanish unless its peer has an XDP program in driver mode or GRO (there: ethtool -K INTERFACE gro on)";

/// The engine, with its judge attached to the interface. Dropping it detaches the judge.
#[derive(Debug)]
pub struct LiveFrames {
    scene: Scene,
    template: Template,
    attached: Attached,
    _alone: Alone,
}

impl LiveFrames {
    /// Is this engine the right choice for an interface of the calling thread's network namespace? It is for veth, where
    /// AF_XDP sends slower than what it has to load.
    ///
    /// # Errors
    /// Why not, in words for the user.
    pub fn suits(interface: &str, ifindex: u32) -> Result<(), String> {
        let driver = Ethtool::open()
            .and_then(|ethtool| ethtool.driver(interface))
            .map_err(|error| format!("{interface}: driver unknown: {error}"))?;
        if driver.name != "veth" {
            return Err(format!("{interface} is not veth but {}, which AF_XDP serves well", driver.name));
        }
        takes_frames(interface, ifindex)
    }

    /// Attaches the judge to the scene's interface, from a thread in its network namespace. From now on replies from the
    /// target's port are taken; all else passes to the kernel.
    ///
    /// # Errors
    /// No privilege, a kernel too old (before 5.18), another generator, an XDP program that is there already.
    pub fn open(scene: &Scene) -> Result<Self, EngineError> {
        let alone = Alone::at(scene)?;
        let template = Template::new(scene);
        let nothing = Plan { rate: None, duration: Duration::ZERO, timeout: Duration::ZERO, nonce: 0 };
        let program = Program::load(&settings(scene, &template, &nothing)?)?;
        let attached = Attached::new(&program, scene)?;
        Ok(Self { scene: scene.clone(), template, attached, _alone: alone })
    }

    /// Where replies are judged, in words for the user.
    #[must_use]
    pub fn way(&self) -> &str {
        self.attached.way()
    }

    /// Whether a step can be done as planned.
    ///
    /// # Errors
    /// Why not, in words for the user.
    pub fn check(scene: &Scene, plan: &Plan) -> Result<(), EngineError> {
        settings(scene, &Template::new(scene), plan).map(drop)
    }

    /// Runs the sender until the step is over, or `progress` wishes that it ends, or the link is gone.
    fn send(
        &self,
        step: &mut Step<'_>,
        progress: &mut dyn FnMut(Progress) -> Wish,
    ) -> Result<End, EngineError> {
        let (mut repeat, mut leaves) = (REPEAT_FIRST, false);
        loop {
            let before = clock::monotonic();
            match run_live_frames(step.program.fd(), self.template.bytes(), repeat, BATCH) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    if let Err(what) = step.link.check(step.progress()?.elapsed) {
                        return Ok(End::Broken(what));
                    }
                    return Err(EngineError(format!(
                        "cannot send by BPF_PROG_RUN with live frames: {error}"
                    )));
                }
                // A signal is for others to act upon, through `progress`.
                _ => {}
            }
            let took = clock::monotonic().nanoseconds_since(before).max(1) as u64;
            // Idle frames are ten times faster than sent ones; at most doubling keeps a change of pace from making a call
            // endless.
            let fitting = u128::from(repeat) * CALL.as_nanos() / u128::from(took);
            repeat = u32::try_from(fitting).unwrap_or(u32::MAX).min(repeat * 2).clamp(BATCH, REPEAT_MAX);

            let now = match step.tell(progress)? {
                ControlFlow::Continue(now) => now,
                ControlFlow::Break(end) => return Ok(end),
            };
            if !leaves && now.elapsed > LEAVE_WITHIN {
                step.check_that_requests_leave(&self.scene)?;
                leaves = true;
            }
            if now.offered >= step.settings.requests_max
                || now.elapsed.as_nanos() > u128::from(step.settings.sent_within)
            {
                if !leaves {
                    // The last of them may be on their way yet.
                    sleep(Duration::from_millis(10));
                    step.check_that_requests_leave(&self.scene)?;
                }
                return Ok(End::Done);
            }
        }
    }
}

impl Engine for LiveFrames {
    fn run(
        &mut self,
        plan: &Plan,
        progress: &mut dyn FnMut(Progress) -> Wish,
    ) -> Result<Measured, EngineError> {
        let settings = settings(&self.scene, &self.template, plan)?;
        let Some(link) = LinkWatch::begin(&self.scene, progress)? else { return Ok(Measured::default()) };
        // New maps are empty, so every step has a program of its own; the old one goes with the link's update.
        let program = Program::load(&settings)?;
        self.attached.replace(&program)?;
        takes_frames(&self.scene.interface, self.scene.ifindex).map_err(EngineError)?;
        let left_before = packets_left(self.scene.ifindex);
        let mut step =
            Step { settings: &settings, program: &program, left_before, link, linked_at: Duration::ZERO };
        let sent = self.send(&mut step, progress)?;
        let are_all_due = sent == End::Done;
        let end =
            if matches!(sent, End::Done | End::Stopped) { step.wait(plan.timeout, progress)? } else { sent };
        step.measured(are_all_due, end)
    }
}

/// Why sending, or waiting, is over.
#[derive(PartialEq, Eq, Debug)]
enum End {
    /// All was sent, or waited for.
    Done,
    /// No more is to be sent.
    Stopped,
    /// Nothing is to be waited for either.
    Now,
    /// The link is gone, and how.
    Broken(String),
}

/// A step that runs.
struct Step<'a> {
    settings: &'a Settings,
    program: &'a Program,
    /// What the interface had sent or dropped before; none if it does not say.
    left_before: Option<u64>,
    link: LinkWatch,
    /// When the link was last seen to be there, after the start.
    linked_at: Duration,
}

impl Step<'_> {
    fn progress(&self) -> Result<Progress, EngineError> {
        let sender = self.program.progress()?;
        let since_start = clock::monotonic().nanoseconds() as u64 - sender.start;
        Ok(Progress {
            elapsed: Duration::from_nanos(if sender.start == 0 { 0 } else { since_start }),
            offered: sender.sent,
            answered: self.program.counts()?[Counter::Answered as usize],
        })
    }

    /// Looks at the link, and tells `progress` how far the step is.
    fn tell(
        &mut self,
        progress: &mut dyn FnMut(Progress) -> Wish,
    ) -> Result<ControlFlow<End, Progress>, EngineError> {
        let now = self.progress()?;
        if let Err(what) = self.link.check(now.elapsed) {
            return Ok(ControlFlow::Break(End::Broken(what)));
        }
        self.linked_at = now.elapsed;
        Ok(match progress(now) {
            Wish::GoOn => ControlFlow::Continue(now),
            Wish::Finish => ControlFlow::Break(End::Stopped),
            Wish::EndNow => ControlFlow::Break(End::Now),
        })
    }

    /// Waits for the replies to what was sent last.
    fn wait(
        &mut self,
        timeout: Duration,
        progress: &mut dyn FnMut(Progress) -> Wish,
    ) -> Result<End, EngineError> {
        let since = Instant::now();
        while since.elapsed() < timeout {
            sleep(CALL.min(timeout.saturating_sub(since.elapsed())));
            match self.tell(progress)? {
                ControlFlow::Continue(_) | ControlFlow::Break(End::Stopped) => {}
                ControlFlow::Break(end) => return Ok(end),
            }
        }
        Ok(End::Done)
    }

    /// Requests that are open and were due a timeout before `known_at` or later.
    fn in_flight(&self, known_at: Duration) -> Result<u64, EngineError> {
        let now = self.progress()?;
        let from = nanoseconds(known_at).saturating_sub(self.settings.timeout);
        let elapsed = nanoseconds(now.elapsed).max(1);
        // Twice what the mean pace made due since: no engine is so far from its pace.
        let share = elapsed.saturating_sub(from) as f64 / elapsed as f64;
        self.program.open_since(from, (2.0 * share * now.offered as f64).ceil() as u64)
    }

    /// A redirect that fails is seen by nobody: neither the program nor the caller of `BPF_PROG_RUN` hears of it. But the
    /// interface counts what left and (veth) what its peer had no room for.
    fn check_that_requests_leave(&self, scene: &Scene) -> Result<(), EngineError> {
        let (Some(before), Some(now)) = (self.left_before, packets_left(scene.ifindex)) else {
            return Ok(());
        };
        let (sent, left) = (self.program.progress()?.sent, now.saturating_sub(before));
        if sent == 0 || left > 0 && sent <= 2 * (left + RING) {
            return Ok(());
        }
        let interface = &scene.interface;
        Err(EngineError(format!("of {sent} requests only {left} left {interface}: {VANISH}")))
    }

    /// What was counted of a step that ended so.
    fn measured(&self, are_all_due: bool, end: End) -> Result<Measured, EngineError> {
        let in_flight = match end {
            End::Done | End::Stopped => 0,
            End::Now => self.in_flight(self.progress()?.elapsed)?,
            End::Broken(_) => self.in_flight(self.linked_at)?,
        };
        let (sender, counts) = (self.program.progress()?, self.program.counts()?);
        let mut kisses = self.program.kisses()?;
        let unnamed = counts[Counter::KissUnnamed as usize];
        if unnamed > 0 {
            kisses.push((*b"????", unnamed));
        }
        let mut flaws = [0; Flaw::COUNT];
        flaws.copy_from_slice(&counts[..FLAWS]);
        let due =
            if are_all_due && self.settings.saturate == 0 { self.settings.requests_max } else { sender.sent };
        Ok(Measured {
            duration: Duration::from_nanos(sender.last.saturating_sub(sender.start)),
            offered: sender.sent,
            send_failures: due.saturating_sub(sender.sent),
            answered: counts[Counter::Answered as usize],
            in_flight,
            broken: if let End::Broken(what) = end { Some(what) } else { None },
            late: counts[Counter::Late as usize],
            kisses,
            duplicates: counts[Counter::Duplicate as usize],
            flaws,
            unfinished_checksums: counts[Counter::Unfinished as usize],
            round_trip: self.program.histogram(Histogram::RoundTrip)?,
            turnaround: self.program.histogram(Histogram::Turnaround)?,
            send_delay: self.program.histogram(Histogram::SendDelay)?,
        })
    }
}

/// Packets that left the interface or that it dropped. None if it does not say.
fn packets_left(ifindex: u32) -> Option<u64> {
    transmitted(ifindex).ok().map(|counters| counters.packets + counters.dropped)
}

/// Does what is redirected to the interface leave it? A kernel that does not say (before 6.3) is believed to.
fn takes_frames(interface: &str, ifindex: u32) -> Result<(), String> {
    match device_features(ifindex) {
        Ok(features) if features.xdp & REDIRECT_TARGET == 0 => Err(format!("{interface}: {VANISH}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
