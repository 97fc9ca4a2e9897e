//! Engine 1: requests and replies through AF_XDP, from one thread that never sleeps.
//!
//! Owns: bringing the sockets up, and the loop that sends what is due and reads what has come. Does not own: the rings
//! (`xsk`), the XDP program (`redirect`), the counting (`tally`).
//!
//! The one idea a newcomer lacks: the loop looks at the clock, sends every request whose time has come, however late,
//! and charges each from the time it was due. So neither a slow server nor this thread's own pauses can hide: the first
//! shows in the round trip, the second in the send delay as well.
//!
//! Replies may arrive on any receive queue: the NIC chooses by a hash of addresses and ports. So there is a socket on
//! each queue, up to [`QUEUES_MAX`]; requests all leave through the first.

use super::alone::Alone;
use super::engine::{Engine, EngineError, Measured, OVERTIME, Plan, Progress, Scene, Wish};
use super::judge::judge;
use super::link::LinkWatch;
use super::redirect::Redirect;
use super::request::Template;
use super::tally::{OPEN_MAX, Tally};
use super::xsk::{BATCH, CopyMode, Next, Xsk, XskConfig};
use crate::sys::bpf::AttachMode;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Most queues that are listened to: each takes 16 MiB.
pub const QUEUES_MAX: u32 = 64;

/// Entries of each ring. At a million replies a second the receive ring holds 2 ms: a pause of this thread.
const ENTRIES: u32 = 2048;

/// How often the caller is told, and the link looked at.
const PROGRESS_INTERVAL: u64 = 200_000_000;

/// From the fastest way into user space to the one that every interface has.
const WAYS: [(AttachMode, CopyMode, &str); 3] = [
    (AttachMode::Driver, CopyMode::ZeroCopy, "driver + zero-copy"),
    (AttachMode::Driver, CopyMode::Copy, "driver + copy"),
    (AttachMode::Skb, CopyMode::Copy, "skb + copy"),
];

/// The engine, ready to run.
#[derive(Debug)]
pub struct AfXdp {
    // Dropped first: replies are to reach no closed socket.
    _redirect: Redirect,
    /// One per receive queue.
    queues: Vec<Xsk>,
    carrier: &'static str,
    scene: Scene,
    template: Template,
    _alone: Alone,
}

impl AfXdp {
    /// Attaches the XDP program to the scene's interface and opens a socket on each of its queues.
    ///
    /// # Errors
    /// Everything that was tried, and why it failed.
    pub fn open(scene: &Scene) -> Result<Self, EngineError> {
        let alone = Alone::at(scene)?;
        let mut failures = Vec::new();
        for (attach, mode, carrier) in WAYS {
            match open_way(scene, attach, mode) {
                Ok((redirect, queues)) => {
                    let (scene, template) = (scene.clone(), Template::new(scene));
                    return Ok(Self { _redirect: redirect, queues, carrier, scene, template, _alone: alone });
                }
                Err(error) => failures.push(format!("{carrier}: {error}")),
            }
        }
        Err(EngineError(format!("no AF_XDP on {}: {}", scene.interface, failures.join("; "))))
    }

    /// How the packets go: mode of the program and of the rings.
    #[must_use]
    pub const fn carrier(&self) -> &'static str {
        self.carrier
    }

    /// Whether a step can be done as planned.
    ///
    /// # Errors
    /// Why not, in words for the user.
    pub fn check(plan: &Plan) -> Result<(), EngineError> {
        open_at_once(plan).map(drop)
    }

    /// How many queues are listened to.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.queues.len()
    }
}

fn open_at_once(plan: &Plan) -> Result<u64, EngineError> {
    plan.open_at_once(f64::MAX, OPEN_MAX)
}

/// Program and sockets in exactly this way.
fn open_way(scene: &Scene, attach: AttachMode, mode: CopyMode) -> Result<(Redirect, Vec<Xsk>), EngineError> {
    // Attached before the sockets are bound: drivers give a queue to zero-copy only under a program.
    let mut redirect = Redirect::attach(scene, QUEUES_MAX, attach)?;
    let mut queues = Vec::new();
    for queue in 0..QUEUES_MAX {
        let config = XskConfig { interface: scene.interface.clone(), queue, entries: ENTRIES, mode };
        let xsk = match Xsk::open(&config) {
            Ok(xsk) => xsk,
            // The first queue is always there; the one after the last is not.
            Err(error) if queue > 0 && error.source.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => {
                let hint = match error.source.raw_os_error() {
                    Some(libc::EBUSY) => "; another program has an AF_XDP socket on it",
                    Some(libc::EPERM) => "; be root, or have CAP_NET_RAW",
                    Some(libc::ENOBUFS) => {
                        "; 16 MiB a queue are more than the locked-memory limit (ulimit -l): be root, or have CAP_IPC_LOCK"
                    }
                    Some(libc::EOPNOTSUPP) => "; its driver has no zero-copy",
                    _ => "",
                };
                return Err(EngineError(format!("queue {queue} of {}: {error}{hint}", scene.interface)));
            }
        };
        redirect.set_socket(queue, xsk.as_fd())?;
        queues.push(xsk);
    }
    Ok((redirect, queues))
}

/// When requests are due. Times are nanoseconds since the step began.
#[derive(Clone, Copy, Debug)]
enum Schedule {
    /// So many requests a second, so many in all.
    Rate(f64, u64),
    /// Always, until then.
    Saturate(u64),
}

impl Schedule {
    fn new(plan: &Plan) -> Self {
        match plan.rate.zip(plan.requests()) {
            Some((rate, total)) => Self::Rate(rate, total),
            None => Self::Saturate(nanoseconds(plan.duration)),
        }
    }

    /// When request `number` is due, seen from `now`; none if there is no such request.
    fn due(self, number: u64, now: u64) -> Option<u64> {
        match self {
            Self::Rate(rate, total) => (number < total).then(|| (number as f64 / rate * 1e9) as u64),
            Self::Saturate(end) => (now < end).then_some(now),
        }
    }
}

impl Engine for AfXdp {
    fn run(
        &mut self,
        plan: &Plan,
        progress: &mut dyn FnMut(Progress) -> Wish,
    ) -> Result<Measured, EngineError> {
        let open = open_at_once(plan)?;
        let Some(mut link) = LinkWatch::begin(&self.scene, progress)? else { return Ok(Measured::default()) };
        // What is left of an earlier step would be judged by this one's nonce.
        for xsk in &mut self.queues {
            while xsk.receive(|_| Next::Recycle) > 0 {
                xsk.refill();
            }
        }
        let mut step = Step {
            start: Instant::now(),
            schedule: Schedule::new(plan),
            end: nanoseconds(plan.duration + OVERTIME),
            nonce: plan.nonce,
            tally: Tally::new(open, nanoseconds(plan.timeout)),
            last_departed: 0,
            sending: true,
        };
        let timeout = nanoseconds(plan.timeout);
        let (mut next_look, mut give_up) = (PROGRESS_INTERVAL, u64::MAX);
        // When the link was last seen to be there: what was due a timeout before that, or later, may be open yet.
        let mut linked_at = 0_u64;
        let (broken, open_from) = loop {
            let turned = step.turn(&self.template, &self.scene, &mut self.queues);
            let now = step.now();
            let is_over = now >= give_up;
            if turned.is_err() || now >= next_look || is_over {
                next_look = now + PROGRESS_INTERVAL;
                let elapsed = Duration::from_nanos(now);
                let may_send = turned.map_err(|error| {
                    format!(
                        "{} does not send: {error}, {elapsed:.1?} after the step began",
                        self.scene.interface
                    )
                });
                if let Err(what) = link.check(elapsed).and(may_send) {
                    break (Some(what), Some(linked_at.saturating_sub(timeout)));
                }
                linked_at = now;
                if is_over {
                    break (None, None);
                }
                match progress(step.progress(now)) {
                    Wish::GoOn => {}
                    Wish::Finish => step.sending = false,
                    Wish::EndNow => break (None, Some(now.saturating_sub(timeout))),
                }
            }
            if !step.sending && give_up == u64::MAX {
                give_up = now.saturating_add(timeout);
            }
        };
        let duration = Duration::from_nanos(step.last_departed);
        Ok(Measured { duration, broken, ..step.tally.finish(open_from) })
    }
}

/// A step that runs. Times are nanoseconds since it began.
#[derive(Debug)]
struct Step {
    start: Instant,
    schedule: Schedule,
    /// When the last request leaves at the latest.
    end: u64,
    nonce: u32,
    tally: Tally,
    last_departed: u64,
    sending: bool,
}

impl Step {
    fn now(&self) -> u64 {
        nanoseconds(self.start.elapsed())
    }

    fn progress(&self, now: u64) -> Progress {
        Progress {
            elapsed: Duration::from_nanos(now),
            offered: self.tally.offered(),
            answered: self.tally.answered(),
        }
    }

    /// Sends what is due, a batch at most, and reads what has come, a batch per queue at most.
    fn turn(&mut self, template: &Template, scene: &Scene, queues: &mut [Xsk]) -> io::Result<()> {
        if let Some(first) = queues.first_mut() {
            first.complete();
            if self.sending {
                self.send(template, first)?;
            } else if first.waiting() > 0 {
                first.flush()?;
            }
        }
        for xsk in queues {
            let mut arrival = None;
            xsk.receive(|bytes| {
                // Read when the batch is in hand, so that no packet is younger than its time.
                let now = *arrival.get_or_insert_with(|| nanoseconds(self.start.elapsed()));
                self.tally.judged(judge(scene, self.nonce, bytes), now);
                Next::Recycle
            });
            xsk.refill();
        }
        Ok(())
    }

    fn send(&mut self, template: &Template, xsk: &mut Xsk) -> io::Result<()> {
        let now = self.now();
        let first = self.tally.offered();
        let mut intended = [0; BATCH];
        let mut count = 0;
        for slot in &mut intended {
            let number = first + count as u64;
            let Some(due) = self.schedule.due(number, now) else {
                self.sending = false;
                break;
            };
            // A full ring is emptied by the next turns; these requests leave late, and are charged for it.
            if due > now || !xsk.send(|frame| template.write(frame, self.nonce, number as u32)) {
                break;
            }
            *slot = due;
            count += 1;
        }
        if count > 0 || xsk.waiting() > 0 {
            xsk.flush()?;
        }
        if count > 0 {
            let departed = self.now();
            for (number, due) in (first..).zip(intended).take(count) {
                self.tally.sent(number as u32, due, departed);
            }
            self.last_departed = departed;
        }
        if now >= self.end {
            self.sending = false;
            if let Schedule::Rate(_, total) = self.schedule {
                self.tally.failed(total.saturating_sub(self.tally.offered()));
            }
        }
        Ok(())
    }
}

/// As a number; 584 years are enough.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rate: Option<f64>, milliseconds: u64) -> Plan {
        let (duration, timeout) = (Duration::from_millis(milliseconds), Duration::from_secs(1));
        Plan { rate, duration, timeout, nonce: 1 }
    }

    #[test]
    fn requests_are_due_at_equal_distances() {
        let schedule = Schedule::new(&plan(Some(30.0), 100));
        let due: Vec<_> = (0..5).map(|number| schedule.due(number, 0)).collect();
        assert_eq!(due, [Some(0), Some(33_333_333), Some(66_666_666), None, None]);
        // No error adds up: after an hour of a million a second, a whole second is still one.
        let schedule = Schedule::new(&plan(Some(1e6), 3_600_000));
        assert_eq!(schedule.due(3_599_000_000, 0), Some(3_599_000_000_000));
        assert_eq!(schedule.due(3_600_000_000, 0), None);
    }

    #[test]
    fn saturation_is_always_due_until_the_end() {
        let schedule = Schedule::new(&plan(None, 100));
        assert_eq!(schedule.due(7, 99_999_999), Some(99_999_999));
        assert_eq!(schedule.due(7, 100_000_000), None);
    }
}
