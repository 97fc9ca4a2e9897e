//! Long histories through the controller: events that may happen, answers to requests that were really sent, most of
//! them spoilt in a place or two, and the books kept by a shell that objects (`control::testing`).
//!
//! `TIMEBALL_HARNESS_EVENTS` sets how many events (a million; 5 million is the named run, `scripts/fuzz control-harness`),
//! `TIMEBALL_HARNESS_SEED` which.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test may")]

#[path = "common/random.rs"]
mod random;

use random::Random;
use timeball::control::packet_checks::{Failure, FailureCounts};
use timeball::control::source::{SourceConfiguration, SourceId};
use timeball::control::testing::{Choices, Happening, Shell};
use timeball::control::{Counters, Event};

/// A history ends after so many events, and another begins: a table that has filled up hides what only an empty one does.
const HISTORY: u64 = 500;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// What happened, so that a dull generator is noticed.
#[derive(Default, Debug)]
struct Seen {
    measured: u64,
    sent: u64,
    steps: u64,
    synchronised: u64,
    kinds: [u64; 5],
    failures: [u64; 7],
    counters: Counters,
}

impl Seen {
    fn after_event(&mut self, shell: &Shell) {
        self.synchronised += u64::from(shell.controller.system().snapshot.is_synchronised());
        for association in shell.controller.associations() {
            let number = association.role.mode() as usize;
            self.kinds[[0, 0, 1, 2, 2, 3, 4][number]] += 1;
            self.measured += u64::from(association.last_sample.is_some());
        }
    }

    fn after_history(&mut self, shell: &Shell) {
        let counters = shell.controller.counters();
        self.sent += shell.sent;
        self.steps += shell.steps;
        self.counters.received += counters.received;
        self.counters.strays += counters.strays;
        self.counters.discarded += counters.discarded;
        self.counters.peers_refused += counters.peers_refused;
        self.counters.over_budget += counters.over_budget;
        let of = |counts: &FailureCounts| Failure::ALL.map(|failure| counts.of(failure));
        for (sum, count) in self.failures.iter_mut().zip(of(&counters.failures)) {
            *sum += count;
        }
    }
}

fn run(seed: u64, events: u64) -> Seen {
    let (mut random, mut seen) = (Random::new(seed), Seen::default());
    for _ in 0..events.div_ceil(HISTORY) {
        let mut octets = [0; 64];
        random.fill(&mut octets);
        let mut shell = Shell::new(Choices(&octets).options());
        let configuration = SourceConfiguration::server([10, 99, 0, 1].into());
        shell.tell(Event::AddSource { source: SourceId(0), configuration });
        for _ in 0..HISTORY {
            random.fill(&mut octets);
            shell.happen(Happening::choose(&mut Choices(&octets)));
            seen.after_event(&shell);
        }
        seen.after_history(&shell);
    }
    seen
}

/// No sequence of events panics, grows a table, sends two packets for one wake-up,
/// or leaves a socket open; and every test of figure 22 had something to refuse.
#[test]
fn no_history_breaks_a_promise() {
    let events = from_environment("TIMEBALL_HARNESS_EVENTS", 1_000_000);
    let seed = from_environment("TIMEBALL_HARNESS_SEED", 0x7469_6d65_6261_6c6c);
    println!("{events} events, seed {seed:#x}");
    let seen = run(seed, events);
    println!("{seen:?}");
    let counters = &seen.counters;
    let reached = [seen.measured, seen.sent, seen.steps, seen.synchronised];
    let refused = [counters.strays, counters.discarded, counters.peers_refused];
    for count in reached.iter().chain(&refused).chain(&seen.failures).chain(&seen.kinds) {
        assert!(*count >= events / 20_000, "the generator is dull: {seen:?}");
    }
}

/// A seed repeats a run.
#[test]
fn a_seed_repeats_a_run() {
    let words = |seed| format!("{:?}", run(seed, 8 * HISTORY));
    assert_eq!(words(1), words(1));
    assert_ne!(words(1), words(2));
}
