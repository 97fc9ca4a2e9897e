//! Any events to the controller, answers to requests that it really sent among them: it keeps its promises, which
//! the shell of `control::testing` looks after (one transmission for one event, bounded tables, sockets closed,
//! dispersions that only grow without a sample).
#![no_main]

use libfuzzer_sys::fuzz_target;
use timeball::control::Event;
use timeball::control::source::{SourceConfiguration, SourceId};
use timeball::control::testing::{Choices, Happening, Shell};

fuzz_target!(|octets: &[u8]| {
    let mut choices = Choices(octets);
    let mut shell = Shell::new(choices.options());
    let configuration = SourceConfiguration::server([10, 99, 0, 1].into());
    shell.tell(Event::AddSource { source: SourceId(0), configuration });
    while !choices.is_empty() {
        shell.happen(Happening::choose(&mut choices));
    }
});
