//! Several instances in one daemon: a provider's router (PE) in two VPNs whose addresses are the same, and the customers'
//! routers (CE) behind it. Rows of the routers' manuals: who asks whom, as client of a server and as peers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::peers::{Kind, Peer, in_time};
use common::vpn::{CE_A, CE_B, PE, PE_TO_NEIGHBOUR, VPNS, Vpns, follows_in, rows};
use common::{Daemon, can_have_labs, eventually, peer, run, run_well};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

/// Both interfaces towards customers, through AF_XDP, in both instances.
const AF_XDP: &str = "datapath = \"af-xdp\"\nworkers = 1\n
[[interface]]\nname = \"cea\"\ninstance = \"red\"\n
[[interface]]\nname = \"ceb\"\ninstance = \"red\"\n
[[interface]]\nname = \"cea\"\ninstance = \"blue\"\n
[[interface]]\nname = \"ceb\"\ninstance = \"blue\"\n";

/// What the CEs' own clocks are in each VPN, so that they can be told apart.
const STRATA: [(&str, u64); 2] = [("red", 3), ("blue", 5)];

fn source(mode: &str, address: &str, more: &str) -> String {
    format!("[[{mode}]]\naddress = \"{address}\"\niburst = true\nmin-poll = 1\nmax-poll = 2\n{more}\n")
}

/// The same source in both instances.
fn in_both(mode: &str, address: &str) -> String {
    VPNS.map(|vpn| source(mode, address, &format!("instance = \"{vpn}\""))).concat()
}

fn local(stratum: u64) -> [String; 2] {
    ["--local-stratum".to_owned(), stratum.to_string()]
}

#[track_caller]
fn start_ce(vpns: &Vpns, vpn: &str, host: &str, stratum: Option<u64>, configuration: &str) -> Daemon {
    let flags = stratum.map(local);
    let flags: Vec<&str> = flags.iter().flatten().map(String::as_str).collect();
    vpns.start_ce(vpn, host, &flags, configuration)
}

/// Each CE `b` takes its time from the `a` of its own VPN, through a PE that serves both VPNs itself.
#[track_caller]
fn from_ce_to_ce(mode: &str, of_a: &str) {
    if !can_have_labs() {
        return;
    }
    let vpns = Vpns::new();
    let pe = vpns.start_pe("pe", &["--local-stratum", "9"], AF_XDP);
    let _a = STRATA.map(|(vpn, stratum)| start_ce(&vpns, vpn, "a", Some(stratum), of_a));
    let b = VPNS.map(|vpn| start_ce(&vpns, vpn, "b", None, &source(mode, CE_A, "")));
    for (b, (_, stratum)) in b.iter().zip(STRATA) {
        follows_in(b, "default", mode, &format!("{CE_A}:123"), stratum);
    }
    assert_eq!(pe.replies().af_xdp, 0, "what is not for the PE passes it by");
    assert_eq!(pe.status()["clock"]["stratum"], 9);
}

#[test]
fn ce_to_ce_as_client() {
    from_ce_to_ce("server", "");
}

#[test]
fn ce_to_ce_as_peer() {
    from_ce_to_ce("peer", &source("peer", CE_B, ""));
}

/// Both CEs `a` take their time from the PE, whose own clock it is.
#[track_caller]
fn from_ce_to_pe(mode: &str, of_pe: &str) {
    if !can_have_labs() {
        return;
    }
    let vpns = Vpns::new();
    let pe = vpns.start_pe("pe", &["--local-stratum", "4"], of_pe);
    let a = VPNS.map(|vpn| start_ce(&vpns, vpn, "a", None, &source(mode, PE, "")));
    for a in &a {
        follows_in(a, "default", mode, &format!("{PE}:123"), 4);
    }
    assert_eq!(pe.status()["clock"]["stratum"], 4, "who follows us is not followed");
}

#[test]
fn ce_to_pe_as_client() {
    from_ce_to_pe("server", AF_XDP);
}

#[test]
fn ce_to_pe_as_peer() {
    from_ce_to_pe("peer", &format!("passive-peers = \"anyone\"\n{AF_XDP}"));
}

/// The PE takes its time from the better of two CEs that have one address, and from the other when that is gone.
#[track_caller]
fn from_pe_to_ce(mode: &str, of_ce: &str) {
    if !can_have_labs() {
        return;
    }
    let (vpns, remote) = (Vpns::new(), format!("{CE_A}:123"));
    let [red, _blue] = STRATA.map(|(vpn, stratum)| start_ce(&vpns, vpn, "a", Some(stratum), of_ce));
    let pe = vpns.start_pe("pe", &[], &format!("{AF_XDP}{}", in_both(mode, CE_A)));
    follows_in(&pe, "red", mode, &remote, 3);
    let both = in_time("both are measured", || {
        let both = rows(&pe, &remote);
        let is_measured = both.iter().all(|(_, row)| row["reach"] != 0 && !row["offset_seconds"].is_null());
        if both.len() == 2 && is_measured { Ok(both) } else { Err(format!("{both:?}")) }
    });
    let strata: Vec<_> = both.iter().map(|(name, row)| (name.as_str(), row["stratum"].as_u64())).collect();
    assert_eq!(strata, [("red", Some(3)), ("blue", Some(5))], "one address, two sources");
    let shown = pe.sources_text();
    assert!(shown.contains(&format!("synchronised to {remote} in red")), "{shown}");
    // In red the address means whom we follow. In blue it would mean somebody else, who would take us for a loop.
    assert_eq!(vpns.query("red", "b", "10.99.2.1").unwrap()["reference_id"], CE_A);
    assert_ne!(vpns.query("blue", "b", "10.99.2.1").unwrap()["reference_id"], CE_A);
    drop(red);
    follows_in(&pe, "blue", mode, &remote, 5);
    assert_eq!(vpns.query("blue", "b", "10.99.2.1").unwrap()["reference_id"], CE_A);
    assert_ne!(vpns.query("red", "b", "10.99.2.1").unwrap()["reference_id"], CE_A);
}

#[test]
fn pe_to_ce_as_client() {
    from_pe_to_ce("server", "");
}

#[test]
fn pe_to_ce_as_peer() {
    from_pe_to_ce("peer", "passive-peers = \"anyone\"");
}

/// The PE's neighbour, in both VPNs as well, takes its time from the PE in either.
#[track_caller]
fn from_pe_to_pe(mode: &str, of_pe: &str) {
    if !can_have_labs() {
        return;
    }
    let (vpns, remote) = (Vpns::new(), format!("{PE_TO_NEIGHBOUR}:123"));
    let towards = AF_XDP.replace("ceb", "pe2");
    let pe = vpns.start_pe("pe", &["--local-stratum", "4"], &format!("{towards}{of_pe}"));
    let neighbour =
        vpns.start_pe("pe2", &[], &format!("datapath = \"socket\"\n{}", in_both(mode, PE_TO_NEIGHBOUR)));
    in_time("the neighbour follows the PE in both VPNs", || {
        let both = rows(&neighbour, &remote);
        let is_used = |(_, row): &(String, _)| {
            let row: &serde_json::Value = row;
            row["mode"] == mode && row["stratum"] == 4 && (row["sign"] == "*" || row["sign"] == "+")
        };
        let is_served = neighbour.status()["clock"]["stratum"] == 5;
        if both.len() == 2 && both.iter().all(is_used) && is_served {
            Ok(())
        } else {
            Err(format!("{both:?}"))
        }
    });
    assert_eq!(pe.status()["clock"]["stratum"], 4, "who follows us is not followed");
}

#[test]
fn pe_to_pe_as_client() {
    from_pe_to_pe("server", "");
}

#[test]
fn pe_to_pe_as_peer() {
    from_pe_to_pe("peer", &in_both("peer", "10.99.3.2"));
}

/// chronyd in blue has the address of whom the PE follows in red, and must not take the PE for a loop.
#[test]
fn chronyd_follows_a_pe_that_follows_chronyd_of_another_vpn() {
    if !can_have_labs() || peer("chronyd").is_none() {
        return;
    }
    let vpns = Vpns::new();
    let start = |vpn: &str, lines: &str| {
        let host = vpns.host(vpn, "a");
        Peer::start_in(Kind::Chronyd, lines, |program| vpns.on(&host, program.to_str().unwrap())).unwrap()
    };
    let _red = start("red", "local stratum 3");
    let server = source("server", CE_A, "instance = \"red\"");
    let pe = vpns.start_pe("pe", &[], &format!("{AF_XDP}{server}"));
    follows_in(&pe, "red", "server", &format!("{CE_A}:123"), 3);
    let _blue = start("blue", &format!("server {PE} iburst minpoll 1 maxpoll 1\nmaxdistance 16"));
    in_time("chronyd follows the PE", || {
        let told = vpns.query("blue", "pe", CE_A).ok_or("it is not synchronised")?;
        if told["stratum"] == 5 && told["reference_id"] == PE { Ok(()) } else { Err(told.to_string()) }
    });
}

/// Requests of one address in both VPNs are answered there, by whichever path, and counted apart.
#[track_caller]
fn both_are_answered(configuration: &str, path: &str) {
    if !can_have_labs() {
        return;
    }
    let vpns = Vpns::new();
    let pe = vpns.start_pe("pe", &["--local-stratum", "4"], configuration);
    for vpn in VPNS {
        assert_eq!(vpns.query(vpn, "a", PE).unwrap()["stratum"], 4, "in {vpn}");
    }
    let replies = pe.replies();
    let (ours, others) = match path {
        "af-xdp" => (replies.af_xdp, replies.socket),
        _ => (replies.socket, replies.af_xdp),
    };
    assert!(ours >= 2 && others == 0, "{replies:?}");
    let clients = pe.clients();
    let asked = clients["heaviest"].as_array().unwrap().iter().filter(|client| client["client"] == CE_A);
    let mut asked: Vec<&str> = asked.map(|client| client["instance"].as_str().unwrap()).collect();
    asked.sort_unstable();
    assert_eq!(asked, ["blue", "red"], "{clients}");
    // Nobody stands where the daemon does.
    assert!(run(vpns.on(&vpns.home(), "ss").args(["-Hlun"])).stdout.is_empty());
}

#[test]
fn both_are_answered_through_af_xdp() {
    both_are_answered(AF_XDP, "af-xdp");
}

#[test]
fn both_are_answered_through_af_xdp_without_workers() {
    both_are_answered(&AF_XDP.replace("workers = 1", "workers = 0"), "af-xdp");
}

#[test]
fn both_are_answered_through_sockets() {
    both_are_answered("datapath = \"socket\"\nworkers = 2", "socket");
}

#[test]
fn both_are_answered_through_sockets_without_workers() {
    both_are_answered("datapath = \"socket\"\nworkers = 0", "socket");
}

/// One client that asks too often is limited in its own VPN only.
#[test]
fn the_same_address_in_two_instances_has_two_limits() {
    if !can_have_labs() {
        return;
    }
    let vpns = Vpns::new();
    let limit = "[rate-limit]\ninterval = \"1h\"\nburst = 1\nleak = 0\n";
    let pe = vpns.start_pe("pe", &["--local-stratum", "4"], &format!("{AF_XDP}{limit}"));
    let ask = |vpn| vpns.query(vpn, "a", PE).is_some();
    assert_eq!(["red", "red", "blue", "blue"].map(ask), [true, false, true, false]);
    assert!(pe.refusals("af_xdp", "rate-limited") >= 2);
}

/// Interfaces and addresses that come and go in one instance are followed there.
#[test]
fn an_instance_follows_its_own_interfaces() {
    if !can_have_labs() {
        return;
    }
    let vpns = Vpns::new();
    let pe = vpns.start_pe("pe", &["--local-stratum", "4"], AF_XDP);
    let on_pe = |words: &str| {
        run_well(vpns.on(&vpns.host("red", "pe"), "ip").args(words.split_whitespace()));
    };
    on_pe("addr add 10.99.1.7/24 dev cea");
    eventually("the new address answers in red", || vpns.query("red", "a", "10.99.1.7").map(drop));
    assert!(vpns.query("blue", "a", "10.99.1.7").is_none());
    // Gone and made anew, with another index: in red only.
    on_pe("link del cea");
    eventually("the interface is gone", || {
        let status = pe.status();
        let paths = status["interfaces"].as_array().unwrap().iter();
        let path = |one: &serde_json::Value| {
            (one["name"] == "cea" && one["instance"] == "red")
                .then(|| one["path"].as_str().unwrap().to_owned())
        };
        paths.filter_map(path).any(|path| path == "absent").then_some(())
    });
    assert!(vpns.query("blue", "a", PE).is_some(), "blue is served as before");
    assert!(vpns.has_xdp_program("blue", "cea"));
    let (pe_end, ce_end) = (vpns.host("red", "pe"), vpns.host("red", "a"));
    on_pe(&format!("link add cea type veth peer name eth0 netns {ce_end}"));
    for (host, end, address) in [(&pe_end, "cea", PE), (&ce_end, "eth0", CE_A)] {
        run_well(vpns.on(host, "ip").args(["addr", "add", &format!("{address}/24"), "dev", end]));
        run_well(vpns.on(host, "ip").args(["link", "set", end, "up"]));
    }
    eventually("red is served again", || vpns.query("red", "a", PE).map(drop));
    eventually("and through AF_XDP", || vpns.has_xdp_program("red", "cea").then_some(()));
}

/// The daemon keeps a namespace alive that it serves, and says that it is not the one of that name any more.
#[test]
fn a_namespace_without_its_name_is_told() {
    if !can_have_labs() {
        return;
    }
    let vpns = Vpns::new();
    let pe = vpns.start_pe("pe", &["--local-stratum", "4"], AF_XDP);
    let name = vpns.host("red", "pe");
    run_well(Command::new("ip").args(["netns", "del", &name]));
    eventually("it is told", || pe.log().contains("its network namespace was deleted").then_some(()));
    run_well(Command::new("ip").args(["netns", "add", &name]));
    assert!(vpns.query("red", "a", PE).is_some(), "the old one is still served");
    assert!(vpns.query("blue", "a", PE).is_some());
    assert_eq!(pe.log().matches("its network namespace was deleted").count(), 1);
}

#[test]
fn no_program_is_left_in_any_namespace() {
    if !can_have_labs() {
        return;
    }
    let vpns = Vpns::new();
    let interfaces = || VPNS.iter().flat_map(|vpn| ["cea", "ceb"].map(|interface| (*vpn, interface)));
    let programs = || interfaces().filter(|(vpn, interface)| vpns.has_xdp_program(vpn, interface)).count();
    for kill in [false, true] {
        let pe = vpns.start_pe("pe", &["--local-stratum", "4"], AF_XDP);
        assert_eq!(programs(), 4);
        if kill {
            pe.kill_9();
        } else {
            let (status, log) = pe.terminate();
            assert!(status.success(), "{log}");
            assert_eq!(log.matches("every frame accounted for").count(), 4, "{log}");
        }
        // The kernel takes down what a killed process had in its own time.
        eventually("no program is left", || (programs() == 0).then_some(()));
    }
}

/// Everything that names an interface, an address or a client says in which instance.
#[test]
fn instances_are_told_apart_in_all_reports() {
    if !can_have_labs() {
        return;
    }
    let vpns = Vpns::new();
    let metrics = "[metrics]\nlisten = \"127.0.0.1:9124\"\n";
    run_well(vpns.on(&vpns.home(), "ip").args(["link", "set", "lo", "up"]));
    let pe = vpns.start_pe("pe", &["--local-stratum", "4"], &format!("{AF_XDP}{metrics}"));
    assert!(vpns.query("blue", "a", PE).is_some());
    let status = pe.status();
    let instances: Vec<_> = status["instances"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(instances, ["red", "blue"]);
    assert!(status["instances"][0]["network"].as_str().unwrap().starts_with("netns tbv-"), "{status}");
    let shown = pe.status_text();
    for expected in ["cea in red: ", "cea in blue: ", "instance red (netns "] {
        assert!(shown.contains(expected), "{expected}\n{shown}");
    }
    // Metrics are where the daemon was started.
    let page = common::asker::inside(&vpns.home_file(), || {
        let mut stream = TcpStream::connect("127.0.0.1:9124").unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    });
    for vpn in VPNS {
        let expected =
            format!("timeball_interface_steered_addresses{{ntp_instance=\"{vpn}\",interface=\"cea\"}} ");
        assert!(page.contains(&expected), "{expected}\n{page}");
    }
    let log = pe.log();
    assert!(log.contains("instance=\"red\"") || log.contains("instance=red"), "{log}");
}
