//! The loops that `scripts/instructions` runs under callgrind: `instructions SUBJECT FAMILY CLIENTS REQUESTS [idle]`.
//!
//! No benchmark in itself: there are no hardware counters everywhere, and callgrind counts the same on every machine.

#![allow(clippy::print_stdout, clippy::panic, reason = "a benchmark may")]

mod workload;

use workload::{Family, Loop, Subject};

fn main() {
    // cargo adds flags of its own.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let [subject, family, clients, requests, idle @ ..] = words.as_slice() else {
        println!("instructions are counted by scripts/instructions");
        return;
    };
    let number = |text: &String| text.parse().unwrap_or_else(|_| panic!("{text} is no number"));
    let run = Loop {
        subject: match subject.as_str() {
            "respond" => Subject::Respond,
            "frame" => Subject::Frame,
            other => panic!("{other}: respond or frame"),
        },
        family: match family.as_str() {
            "v4" => Family::V4,
            "v6" => Family::V6,
            other => panic!("{other}: v4 or v6"),
        },
        clients: number(clients),
        requests: number(requests),
        idle: !idle.is_empty(),
    };
    let answered = run.run();
    assert_eq!(answered, if run.idle { 0 } else { run.requests }, "what is counted are answers");
}
