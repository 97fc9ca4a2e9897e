//! Who asks, as `timeball clients` tells it, and the memory that any number of clients may take.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::asker::{Asker, allow_any_source, as_client, request};
use common::{Carrier, Daemon, Lab, SERVER, can_have_labs};
use std::fs;
use std::net::{Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

fn serving_lab(configuration: &str) -> Option<(Lab, Daemon)> {
    if !can_have_labs() {
        return None;
    }
    let lab = Lab::new(&[]);
    allow_any_source(&lab);
    let daemon = Daemon::start(&lab, &format!("{}{configuration}", Carrier::Driver.configuration("")));
    Some((lab, daemon))
}

#[test]
fn few_clients_are_counted_exactly() {
    let Some((lab, daemon)) =
        serving_lab("\n[access]\ndeny = [\"10.99.140.0/24\"]\n[clients]\nentries = 64\n")
    else {
        return;
    };
    // (address, requests, version, octets)
    let with_mac_sized_field = 48 + 28;
    let clients = [
        ("10.99.130.1", 30_u64, 4, 48),
        ("10.99.130.2", 20, 3, 48),
        ("fd99:8000:1:2::3", 10, 4, with_mac_sized_field),
    ];
    for (source, count, version, length) in clients {
        let server = if source.contains(':') { SERVER[1] } else { SERVER[0] };
        let asker = Asker::new(&lab, source, server);
        for cookie in 0..count {
            let mut bytes = request(version, cookie).to_vec();
            if length > 48 {
                // One unknown extension field.
                bytes.extend([0x22, 0x22, 0, 28]);
                bytes.resize(length, 0);
            }
            assert!(asker.ask_with(&bytes).is_some(), "{source}");
        }
    }
    std::thread::sleep(Duration::from_millis(100));
    let told = daemon.clients();
    let of = |place: usize, name: &str| told["heaviest"][place][name].clone();
    for (place, (source, count)) in
        [("10.99.130.1", 30), ("10.99.130.2", 20), ("fd99:8000:1:2::/64", 10)].into_iter().enumerate()
    {
        assert_eq!(of(place, "client"), source, "{told}");
        assert_eq!(of(place, "requests"), count, "{told}");
        assert_eq!((of(place, "error"), of(place, "refused")), (0.into(), 0.into()), "{told}");
        assert!(of(place, "idle_seconds").as_f64().is_some_and(|idle| (0.0..20.0).contains(&idle)), "{told}");
    }
    assert_eq!(told["heaviest"].as_array().map(Vec::len), Some(3));
    assert_eq!(told["by_version"], serde_json::json!({ "3": 20, "4": 40 }));
    assert_eq!(told["by_length"], serde_json::json!({ "48": 50, "73-199": 10 }));
    assert_eq!(told["distinct_estimate"], 3);
}

/// Requests from the /64 prefixes `first` to `first + count`, one each. Each prefix is a client of its own.
fn ask_from_prefixes(first: u32, count: u32) {
    let server: Ipv6Addr = SERVER[1].parse().unwrap();
    for number in first..first + count {
        let source = Ipv6Addr::new(0xfd99, 0x8000, (number >> 16) as u16, number as u16, 0, 0, 0, 1);
        let socket = UdpSocket::bind((source, 0)).unwrap();
        // Lost ones are seen in the counts; a full queue on the way is no failure of the server.
        let _ = socket.send_to(&request(4, number.into()), (server, 123));
    }
}

#[test]
fn the_heaviest_client_stands_out_of_a_crowd_that_is_estimated() {
    let Some((lab, daemon)) = serving_lab("\n[clients]\nentries = 64\n") else { return };
    let heavy = Asker::new(&lab, "10.99.130.1", SERVER[0]);
    let crowd = 2000;
    as_client(&lab, || {
        for part in 0..20 {
            ask_from_prefixes(part * crowd / 20, crowd / 20);
            (0..100).for_each(|_| assert!(heavy.ask().is_some()));
        }
    });
    assert_eq!(daemon.replies().af_xdp, 2000 + u64::from(crowd), "none of them was lost");
    let told = daemon.clients();
    let first = &told["heaviest"][0];
    assert_eq!(first["client"], "10.99.130.1", "{told}");
    // Never too low, and too high by no more than it says.
    let (requests, error) = (first["requests"].as_u64().unwrap(), first["error"].as_u64().unwrap());
    assert!(requests >= 2000 && requests - error <= 2000, "{first}");
    // The sketch has a standard error of 1.6 % (4096 registers) and new random keys in every run: four of them.
    let distinct = told["distinct_estimate"].as_f64().unwrap();
    assert!((distinct / f64::from(crowd + 1) - 1.0).abs() < 0.065, "{distinct} of {}", crowd + 1);
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn hundreds_of_thousands_of_clients_take_no_more_memory_than_stated() {
    // Small tables, so that the warm-up has touched all of them.
    let tables = "\n[rate-limit]\nclients = 16384\n[clients]\nentries = 1024\n";
    let Some((lab, daemon)) = serving_lab(tables) else { return };
    let stated = |daemon: &Daemon| {
        let memory = daemon.status()["memory"].clone();
        memory.as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum::<u64>()
    };
    let stated_at_first = stated(&daemon);
    as_client(&lab, || ask_from_prefixes(0, 50_000));
    let (warm, began) = (resident(daemon.pid()), Instant::now());
    as_client(&lab, || {
        std::thread::scope(|scope| {
            for thread in 0..2_u32 {
                // A thread is born in its parent's namespace.
                scope.spawn(move || ask_from_prefixes(50_000 + thread * 150_000, 150_000));
            }
        });
    });
    let grown = resident(daemon.pid()).saturating_sub(warm);
    let distinct = daemon.clients()["distinct_estimate"].as_u64().unwrap();
    assert!(distinct > 250_000, "the flood arrived: {distinct} in {:?}", began.elapsed());
    assert!(grown < 4 << 20, "{grown} bytes more");
    assert_eq!(stated(&daemon), stated_at_first, "what is stated never changes");
    // Beyond what is stated: program text, the allocator, thread stacks.
    let beyond = resident(daemon.pid()).saturating_sub(stated_at_first);
    assert!(beyond < 24 << 20, "{beyond} bytes that nothing accounts for");
    assert_eq!(daemon.queues_in_balance(), 1);
}
