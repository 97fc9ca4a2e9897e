//! The loops that `scripts/instructions` runs under callgrind: `instructions SUBJECT FAMILY CLIENTS REQUESTS`.
//!
//! No benchmark in itself: there are no hardware counters everywhere, and callgrind counts the same on every machine.

#![allow(clippy::print_stdout, clippy::panic, reason = "a benchmark may")]

mod workload;

use timeball::auth::Algorithm;
use workload::{Family, Loop, Subject};

fn main() {
    // cargo adds flags of its own.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let [subject, family, clients, requests] = words.as_slice() else {
        println!("instructions are counted by scripts/instructions");
        return;
    };
    let number = |text: &String| text.parse().unwrap_or_else(|_| panic!("{text} is no number"));
    let run = Loop {
        subject: match subject.as_str() {
            "parse" => Subject::Parse,
            "respond" => Subject::Respond,
            "turn-round" => Subject::TurnRound,
            "seal" => Subject::Seal,
            "checksum" => Subject::Checksum,
            "frame" => Subject::Frame,
            "round" => Subject::Round,
            "reflect" => Subject::Reflect,
            "signed-aes128" => Subject::Signed(Algorithm::Aes128),
            "signed-sha1" => Subject::Signed(Algorithm::Sha1),
            "signed-sha256" => Subject::Signed(Algorithm::Sha256),
            other => panic!("{other}: no part of an answer"),
        },
        family: match family.as_str() {
            "v4" => Family::V4,
            "v6" => Family::V6,
            other => panic!("{other}: v4 or v6"),
        },
        clients: number(clients),
        requests: number(requests),
    };
    assert_eq!(run.run(), run.requests, "what is counted are answers");
}
