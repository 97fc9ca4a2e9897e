//! Who is answered, how often, and what the others are told: on both paths, seen by a raw client.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::asker::{Asker, Reply, allow_any_source};
use common::{Carrier, Daemon, Lab, SERVER, can_have_labs};
use std::time::{Duration, Instant};

/// One address for each action; all of 10.99.128.0/17 is the client's.
const ALLOWED: &str = "10.99.130.1";
const DENIED: &str = "10.99.140.1";
/// Inside the denied prefix, allowed again.
const NESTED: &str = "10.99.140.77";
const RESTRICTED: &str = "10.99.150.1";
const DROPPED: &str = "10.99.160.1";
const DENIED_IPV6: &str = "fd99:8000:1::1";
const NESTED_IPV6: &str = "fd99:8000:1:7::1";
const ACCESS: &str = "
[access]
deny = [\"10.99.140.0/24\", \"fd99:8000:1::/48\"]
allow = [\"10.99.140.64/26\", \"fd99:8000:1:7::/64\"]
restrict = [\"10.99.150.0/24\"]
drop = [\"10.99.160.0/24\"]
";

fn lab_with_any_source(options: &[&str]) -> Option<Lab> {
    if !can_have_labs() {
        return None;
    }
    let lab = Lab::new(options);
    allow_any_source(&lab);
    Some(lab)
}

fn path(carrier: Carrier) -> &'static str {
    if carrier == Carrier::Socket { "socket" } else { "af_xdp" }
}

fn ask_from(lab: &Lab, source: &str) -> Option<Reply> {
    let server = if source.contains(':') { SERVER[1] } else { SERVER[0] };
    Asker::new(lab, source, server).ask()
}

#[track_caller]
fn assert_served(lab: &Lab, source: &str) {
    let reply = ask_from(lab, source).unwrap_or_else(|| panic!("{source} is to be answered"));
    assert_eq!((reply.stratum, reply.kiss()), (10, None), "{source}");
}

#[track_caller]
fn refusal_is_silence_without_kod(carrier: Carrier) {
    let Some(lab) = lab_with_any_source(&[]) else { return };
    let daemon = Daemon::start(&lab, &format!("{}{ACCESS}", carrier.configuration("")));
    for source in [ALLOWED, NESTED, NESTED_IPV6] {
        assert_served(&lab, source);
    }
    for source in [DENIED, RESTRICTED, DROPPED, DENIED_IPV6] {
        assert_eq!(ask_from(&lab, source), None, "{source}");
    }
    let refused = |reason| daemon.refusals(path(carrier), reason);
    let refusals = [refused("denied"), refused("restricted"), refused("dropped")];
    if carrier == Carrier::Socket {
        assert_eq!(refusals, [2, 1, 1], "the responder refuses");
    } else {
        assert_eq!(daemon.verdicts("dropped_denied"), 4, "the XDP program drops them already");
        assert_eq!(refusals, [0, 0, 0], "so the workers never see them");
    }
}

#[test]
fn refusal_is_silence_without_kod_over_af_xdp() {
    refusal_is_silence_without_kod(Carrier::Driver);
}

#[test]
fn refusal_is_silence_without_kod_over_sockets() {
    refusal_is_silence_without_kod(Carrier::Socket);
}

#[track_caller]
fn kisses_say_why(carrier: Carrier) {
    let Some(lab) = lab_with_any_source(&[]) else { return };
    let daemon = Daemon::start(&lab, &format!("kod = true\n{}{ACCESS}", carrier.configuration("")));
    for (source, code) in [(DENIED, "DENY"), (DENIED_IPV6, "DENY"), (RESTRICTED, "RSTR")] {
        let reply = ask_from(&lab, source).unwrap_or_else(|| panic!("{source} is to be told"));
        assert_eq!((reply.kiss(), reply.leap, reply.length), (Some(code), 3, 48), "{source}");
    }
    assert_eq!(ask_from(&lab, DROPPED), None, "dropped means silence, kod or not");
    for source in [ALLOWED, NESTED, NESTED_IPV6] {
        assert_served(&lab, source);
    }
    assert_eq!(daemon.refusals(path(carrier), "denied"), 2);
    // Kisses are limited themselves: asking on and on in a victim's name makes no noise at the victim.
    let denied = Asker::new(&lab, "10.99.140.2", SERVER[0]);
    (0..40).for_each(|cookie| denied.send(cookie));
    let kisses = denied.receive_all(Duration::from_millis(500));
    assert!((1..=3).contains(&kisses.len()), "{} kisses for 40 requests", kisses.len());
    // What the XDP program may drop in silence is what never gets a kiss.
    assert_eq!(daemon.verdicts("dropped_denied"), u64::from(carrier != Carrier::Socket));
}

#[test]
fn kisses_say_why_over_af_xdp() {
    kisses_say_why(Carrier::Driver);
}

#[test]
fn kisses_say_why_over_sockets() {
    kisses_say_why(Carrier::Socket);
}

fn rate_limit(carrier: Carrier, first_lines: &str, leak: u32) -> String {
    let interval = if leak == 0 { "1s" } else { "1h" };
    format!(
        "{first_lines}{}\n[rate-limit]\ninterval = \"{interval}\"\nburst = 16\nleak = {leak}\n",
        carrier.configuration("")
    )
}

/// Requests that `askers` send in turn, and all replies, with how many seconds the requests took.
fn burst(askers: &[Asker], count: u64) -> (Vec<Reply>, u64) {
    let began = Instant::now();
    let mut replies = Vec::new();
    for cookie in 0..count {
        let asker = &askers[cookie as usize % askers.len()];
        asker.send(cookie);
        // Its receive buffer holds some 250.
        replies.extend(asker.receive_pending());
        // No faster than a ring of 256 entries between two processes of a busy machine can be emptied.
        std::thread::sleep(Duration::from_micros(200));
    }
    // The last reply may come later than the last request left.
    std::thread::sleep(Duration::from_millis(300));
    let seconds = began.elapsed().as_secs() + 1;
    replies.extend(askers.iter().flat_map(Asker::receive_pending));
    (replies, seconds)
}

#[track_caller]
fn the_burst_is_answered_then_rate_is_told_once(carrier: Carrier) {
    let Some(lab) = lab_with_any_source(&[]) else { return };
    let daemon = Daemon::start(&lab, &rate_limit(carrier, "kod = true\n", 0));
    let asker = Asker::new(&lab, ALLOWED, SERVER[0]);
    let (replies, seconds) = burst(std::slice::from_ref(&asker), 100);
    let told: Vec<_> = replies.iter().filter(|reply| reply.kiss() == Some("RATE")).collect();
    let answered = replies.len() - told.len();
    assert!((16..=16 + seconds as usize).contains(&answered), "{answered} in {seconds} s");
    assert!((1..=3).contains(&told.len()), "{} kisses", told.len());
    assert!(told.iter().all(|reply| reply.length == 48 && reply.leap == 3), "{told:?}");
    assert_eq!(daemon.refusals(path(carrier), "rate-limited"), 100 - answered as u64);
    assert_served(&lab, "10.99.130.2");
}

#[test]
fn the_burst_is_answered_then_rate_is_told_once_over_af_xdp() {
    the_burst_is_answered_then_rate_is_told_once(Carrier::Driver);
}

#[test]
fn the_burst_is_answered_then_rate_is_told_once_over_sockets() {
    the_burst_is_answered_then_rate_is_told_once(Carrier::Socket);
}

#[test]
fn one_budget_is_shared_by_all_workers() {
    let Some(lab) = lab_with_any_source(&["--queues", "2"]) else { return };
    let daemon = Daemon::start(&lab, &rate_limit(Carrier::Driver, "workers = 2\n", 0));
    let askers = Asker::several(&lab, 64, ALLOWED, SERVER[0]);
    let (replies, seconds) = burst(&askers, 256);
    assert!((16..=16 + seconds as usize).contains(&replies.len()), "{} in {seconds} s", replies.len());
    std::thread::sleep(Duration::from_millis(100));
    let status = daemon.status();
    let workers = status["workers"].as_array().unwrap();
    let saw = |worker: &serde_json::Value| {
        let path = &worker["af_xdp"];
        path["replies"].as_u64().unwrap() + path["refusals"]["rate-limited"].as_u64().unwrap_or(0)
    };
    let seen: Vec<u64> = workers.iter().map(saw).collect();
    assert!(seen.len() == 2 && seen.iter().all(|&seen| seen > 16), "both saw more than a budget: {seen:?}");
    assert_eq!(seen.iter().sum::<u64>(), 256);
}

#[track_caller]
fn one_in_four_leaks_through(carrier: Carrier) {
    let Some(lab) = lab_with_any_source(&[]) else { return };
    let daemon = Daemon::start(&lab, &rate_limit(carrier, "", 4));
    let asker = Asker::new(&lab, ALLOWED, SERVER[0]);
    let (replies, _) = burst(std::slice::from_ref(&asker), 1616);
    // Binomial, n = 1600, p = 1/4: mean 400, standard deviation 17.3; five of them are 87.
    let leaked = replies.len() - 16;
    assert!((313..=487).contains(&leaked), "{leaked} of 1600");
    assert_eq!(daemon.refusals(path(carrier), "rate-limited"), 1600 - leaked as u64);
}

#[test]
fn one_in_four_leaks_through_over_af_xdp() {
    one_in_four_leaks_through(Carrier::Driver);
}

#[test]
fn one_in_four_leaks_through_over_sockets() {
    one_in_four_leaks_through(Carrier::Socket);
}
