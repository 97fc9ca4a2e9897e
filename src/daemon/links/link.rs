//! One interface, kept as the configuration wants it.

use super::Common;
use crate::config::{Datapath, Interface as Settings, XdpMode};
use crate::daemon::crew::Crew;
use crate::daemon::drops::{NicDrops, counts_failed_redirects};
use crate::daemon::news::News;
use crate::daemon::place::Place;
use crate::daemon::report::{AttemptReport, InterfaceReport, QueueReport};
use crate::daemon::worker::Queue;
use crate::datapath::af_xdp::{BusyPoll, CopyMode, PortConfig, RingSizes};
use crate::datapath::interface::{
    Interface, InterfaceFacts, RestoreGuard, SteeringAddress, TagStack, View, VlanPlan,
};
use crate::datapath::ladder::{self, Allowed};
use crate::datapath::steering::{Steering, SteeringConfig, SteeringError, Variant};
use crate::sys::memory::HugepagePolicy;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// How long one busy-polling system call may spin, and for how many packets: the kernel's own example values.
const BUSY_POLL: BusyPoll = BusyPoll { duration: Duration::from_micros(20), budget: 64 };

#[derive(Debug)]
pub(super) struct Link {
    place: Arc<Place>,
    settings: Settings,
    pub(super) name: Arc<str>,
    pub(super) tags: Vec<TagStack>,
    pub(super) attempts: Vec<AttemptReport>,
    pub(super) state: State,
    nic_drops: NicDrops,
}

#[derive(Debug)]
pub(super) enum State {
    Absent,
    /// `down`: it was when AF_XDP was tried, which may be why that failed.
    Sockets {
        ifindex: u32,
        down: bool,
    },
    AfXdp(Box<Steered>),
}

#[derive(Debug)]
pub(super) struct Steered {
    pub(super) ifindex: u32,
    rung: String,
    // Fields are dropped in this order: the program is detached before tag stripping is switched on again.
    pub(super) steering: Steering,
    _guard: RestoreGuard,
    addresses: Vec<SteeringAddress>,
    /// Why steering does not follow the addresses, so that it is logged once.
    behind: Option<String>,
    /// Its queues' sockets are bound to nothing any more.
    pub(super) lost: bool,
    news: News,
    /// Does the interface count as dropped what its queues' sockets drop?
    counts_twice: bool,
    /// The VLAN children when tag stripping was decided upon.
    children: usize,
}

impl Link {
    /// Not served yet.
    pub(super) fn new(settings: &Settings, place: Arc<Place>) -> Self {
        Self {
            place,
            name: settings.name.as_str().into(),
            tags: settings.vlans.iter().map(|vlan| vlan.ids()).collect(),
            settings: settings.clone(),
            attempts: Vec::new(),
            state: State::Absent,
            nic_drops: NicDrops::default(),
        }
    }

    /// Is this the interface, or a VLAN child of it?
    pub(super) fn owns(&self, interface: &Interface, view: &View) -> bool {
        *interface.name == *self.name
            || view.interface_named(&self.name).is_some_and(|parent| {
                view.vlan_children(parent.ifindex).iter().any(|(_, child)| child.ifindex == interface.ifindex)
            })
    }

    const fn ifindex(&self) -> Option<u32> {
        match &self.state {
            State::Absent => None,
            State::Sockets { ifindex, .. } => Some(*ifindex),
            State::AfXdp(steered) => Some(steered.ifindex),
        }
    }

    /// Gives the interface up, to be opened anew if it is there: because it is another one now, got its first VLAN
    /// child, or is up for the first time.
    pub(super) fn leave_if_changed(&mut self, interface: Option<&Interface>, view: &View, crew: &mut Crew) {
        let Some(ifindex) = self.ifindex() else { return };
        let same = interface.is_some_and(|interface| interface.ifindex == ifindex);
        let (vlans_came, lost) = match &self.state {
            State::AfXdp(steered) => {
                (steered.children == 0 && !view.vlan_children(ifindex).is_empty(), steered.lost)
            }
            _ => (false, false),
        };
        let came_up = matches!(self.state, State::Sockets { down: true, .. })
            && interface.is_some_and(|interface| interface.up);
        if same && !vlans_came && !came_up && !lost {
            return;
        }
        if !same || lost {
            warn!(
                instance = self.place.label(), interface = %self.name,
                index = ifindex,
                "interface is gone: requests to its addresses are not answered until one of that name is there"
            );
        }
        if matches!(self.state, State::AfXdp(_)) {
            // The program first: then no frame comes any more.
            self.state = State::Absent;
            crew.remove_queues(self.place.id, ifindex);
        }
        self.state = State::Absent;
    }

    pub(super) fn open(
        &mut self,
        interface: &Interface,
        (view, ours): (&View, &View),
        common: &Common,
        crew: &mut Crew,
        next_worker: &mut usize,
    ) {
        self.attempts.clear();
        self.state = State::Sockets { ifindex: interface.ifindex, down: !interface.up };
        if common.datapath == Datapath::Socket {
            self.note("AF_XDP", "not wanted: datapath = \"socket\"");
        } else if interface.kind.as_deref() == Some("loopback") || interface.name == "lo" {
            self.note("AF_XDP", "the loopback interface is served by sockets");
        } else if let Err(reason) = self.climb(interface, (view, ours), common, crew, next_worker) {
            self.note("AF_XDP", &reason);
        }
        let rung = match &self.state {
            State::AfXdp(steered) => steered.rung.as_str(),
            _ => "kernel socket",
        };
        for attempt in &self.attempts {
            info!(instance = self.place.label(), interface = %self.name, rung = attempt.rung, outcome = attempt.outcome, "tried");
        }
        let fell = matches!(self.state, State::Sockets { .. })
            && common.datapath != Datapath::Socket
            && interface.name != "lo";
        if fell {
            warn!(instance = self.place.label(), interface = %self.name, rung, "interface served, but not through AF_XDP: see the attempts");
        } else {
            info!(instance = self.place.label(), interface = %self.name, rung, "interface served");
        }
    }

    fn note(&mut self, rung: &str, outcome: &str) {
        self.attempts.push(AttemptReport { rung: rung.to_owned(), outcome: outcome.to_owned() });
    }

    /// Climbs the ladder. The error says why there was nothing to climb.
    fn climb(
        &mut self,
        interface: &Interface,
        (view, ours): (&View, &View),
        common: &Common,
        crew: &mut Crew,
        next_worker: &mut usize,
    ) -> Result<(), String> {
        let facts = InterfaceFacts::gather_from(view, &self.name).map_err(|error| error.to_string())?;
        let plan = VlanPlan::decide(&facts, &self.tags);
        let plan = if self.place.may_have_vlans_elsewhere() { plan.with_vlans() } else { plan };
        let guard = plan.apply(interface.ifindex).map_err(|error| error.to_string())?;
        if let Some(note) = guard.note() {
            info!(instance = self.place.label(), interface = %self.name, note, "VLAN tags");
        }
        let queues = self.queues(&facts)?;
        let highest = queues.iter().max().copied().unwrap_or_default();
        let steering = SteeringConfig {
            port: common.port,
            queues: facts.receive_queues().unwrap_or(1).max(highest + 1),
            interface_index: interface.ifindex,
            variant: Variant::Plain,
        };
        let port = self.port_config(interface.ifindex, common.busy_poll);
        let (opened, attempts) = ladder::climb(self.allowed(), steering, &port, &queues);
        let in_driver = attempts.last().is_some_and(|chosen| chosen.rung.is_in_driver());
        let driver = facts.driver.as_ref().map_or("", |driver| driver.name.as_str());
        for attempt in attempts {
            let outcome = attempt.error.map_or_else(|| "chosen".to_owned(), |error| error.to_string());
            self.note(&attempt.rung.to_string(), &outcome);
        }
        let Some(mut opened) = opened else { return Ok(()) };
        let mut steered = Steered {
            ifindex: interface.ifindex,
            rung: self.attempts.last().map(|attempt| attempt.rung.clone()).unwrap_or_default(),
            children: facts.vlan_children.len(),
            addresses: Vec::new(),
            behind: None,
            lost: false,
            news: News::default(),
            counts_twice: in_driver && counts_failed_redirects(driver),
            _guard: guard,
            steering: {
                // The workers refuse these clients too; the program only does so sooner.
                if let Err(error) = opened.steering.replace_denied(&common.dropped) {
                    warn!(instance = self.place.label(), interface = %self.name, %error, "the XDP program does not drop what is denied");
                }
                opened.steering
            },
        };
        steered.follow(&self.name, &self.tags, ours);
        let refused = opened.ports.first().map(|(_, port)| port.facts().refused.clone()).unwrap_or_default();
        for reason in &refused {
            info!(instance = self.place.label(), interface = %self.name, reason, "done without");
        }
        // Last of all, since from here on requests wait for a worker: until then the sockets answer.
        for (number, port) in &opened.ports {
            steered.steering.set_socket(*number, port.as_fd()).map_err(|error| error.to_string())?;
        }
        for (number, port) in opened.ports {
            let measure = self.settings.tx_timestamps;
            let queue = Queue::new(
                Arc::clone(&self.place),
                Arc::clone(&self.name),
                interface.ifindex,
                number,
                port,
                measure,
            );
            crew.add_queue(*next_worker % crew.len(), queue);
            *next_worker += 1;
        }
        self.state = State::AfXdp(Box::new(steered));
        Ok(())
    }

    /// The queues to serve.
    fn queues(&self, facts: &InterfaceFacts) -> Result<Vec<u32>, String> {
        let there = facts.receive_queues().unwrap_or(1);
        let wanted: Vec<u32> = self.settings.queues.iter().map(|&queue| queue.into()).collect();
        match wanted.iter().find(|&&queue| queue >= there) {
            Some(queue) => Err(format!("queue {queue} is configured, but there are only {there}")),
            None if wanted.is_empty() => Ok((0..there).collect()),
            None => Ok(wanted),
        }
    }

    const fn allowed(&self) -> Allowed {
        Allowed {
            driver: !matches!(self.settings.xdp_mode, XdpMode::Skb),
            skb: !matches!(self.settings.xdp_mode, XdpMode::Driver),
            zero_copy: self.settings.zero_copy,
            device_bound: self.settings.nic_stamps,
        }
    }

    const fn port_config(&self, ifindex: u32, busy_poll: bool) -> PortConfig {
        let frames = self.settings.frames;
        // Each ring gets a quarter, so that the frames are enough for all four at once.
        let entries = frames / 4;
        PortConfig {
            ifindex,
            queue: 0,
            frames,
            frame_bytes: self.settings.frame_size,
            rings: RingSizes { fill: entries, receive: entries, transmit: entries, completion: entries },
            hugepages: if self.settings.hugepages { HugepagePolicy::Prefer } else { HugepagePolicy::Never },
            need_wakeup: true,
            busy_poll: if busy_poll { Some(BUSY_POLL) } else { None },
            mode: CopyMode::Copy,
            tx_metadata: true,
        }
    }

    pub(super) fn report(&mut self, dropped: Option<u64>, queues: &[QueueReport]) -> InterfaceReport {
        let own = queues
            .iter()
            .filter(|queue| *queue.interface == *self.name && *queue.instance == *self.place.name);
        let counts_twice = matches!(&self.state, State::AfXdp(steered) if steered.counts_twice);
        let of_sockets = own.clone().filter(|_| counts_twice).map(|queue| {
            let count = |name| queue.kernel.get(name).copied().unwrap_or(0);
            (queue.queue, count("rx_ring_full") + count("rx_dropped"))
        });
        let ifindex = self.ifindex();
        let nic_dropped = dropped.map(|in_all| self.nic_drops.update(ifindex, in_all, of_sockets));
        let (path, rung, addresses, verdicts) = match &self.state {
            State::Absent => ("absent", "none: the interface does not exist".to_owned(), 0, BTreeMap::new()),
            State::Sockets { .. } => ("socket", "kernel socket".to_owned(), 0, BTreeMap::new()),
            State::AfXdp(steered) => {
                ("af-xdp", steered.rung.clone(), steered.addresses.len() as u64, steered.verdicts())
            }
        };
        InterfaceReport {
            name: self.name.to_string(),
            instance: self.place.name.to_string(),
            index: self.ifindex(),
            path: path.to_owned(),
            rung,
            attempts: self.attempts.clone(),
            steered_addresses: addresses,
            receive_dropped: dropped,
            nic_dropped,
            verdicts,
            queues: own.cloned().collect(),
        }
    }
}

impl Steered {
    /// Steers requests to the addresses that the interface has now.
    pub(super) fn follow(&mut self, name: &str, tags: &[TagStack], view: &View) {
        let wanted = view.steering_addresses(self.ifindex, tags);
        if wanted == self.addresses {
            return;
        }
        match self.steering.replace_locals(&wanted) {
            Ok(()) => {
                if self.news.is_due() {
                    info!(interface = name, addresses = wanted.len(), "steering follows the addresses");
                }
                self.addresses = wanted;
                self.behind = None;
            }
            // The others are served by the sockets, and the next change tries again.
            Err(error) => {
                let text = error.to_string();
                if self.behind.as_ref() != Some(&text) {
                    warn!(interface = name, error = text, "steering does not follow the addresses");
                }
                self.behind = Some(text);
                if matches!(error, SteeringError::TooMany { .. }) {
                    // As many as fit are steered; trying again changes nothing before the addresses do.
                    self.addresses = wanted;
                }
            }
        }
    }

    fn verdicts(&self) -> BTreeMap<String, u64> {
        let counts = self.steering.verdicts().unwrap_or_default();
        counts
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(verdict, count)| (verdict.name().to_owned(), count))
            .collect()
    }
}

/// What the NIC had no room for and what the kernel threw away, as `/proc/net/dev` adds them up: unlike `/sys`, it is
/// always that of our network namespace.
pub(super) fn receive_dropped(interface: &str) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").ok()?;
    let is_ours = |line: &&str| line.trim_start().split(':').next() == Some(interface);
    let (_, counts) = table.lines().find(is_ours)?.split_once(':')?;
    // Receive: bytes packets errs drop.
    counts.split_whitespace().nth(3)?.parse().ok()
}
