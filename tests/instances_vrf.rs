//! VRF devices as instances: networks with the same addresses that share one network namespace, and beside them what belongs to
//! no VRF. Where the kernel has no such devices, `scripts/emulated-vrf` boots one that has.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::peers::{Kind, Peer, in_time};
use common::vpn::{CE_A, PE, Vpns, follows_in, rows};
use common::{Daemon, can_have_labs, peer, run, run_well, skip};
use serde_json::Value;
use std::process::Command;

/// A customer's router (CE), and the network that it is in at our router's.
struct Network {
    /// As an instance.
    name: &'static str,
    /// The CE among the hosts of [`Vpns`].
    customer: (&'static str, &'static str),
    /// What the CE's own clock is, so that they can be told apart.
    stratum: u64,
}

const RED: Network = Network { name: "red", customer: ("red", "b"), stratum: 3 };
const BLUE: Network = Network { name: "blue", customer: ("blue", "b"), stratum: 5 };
/// What belongs to no VRF.
const OWN: Network = Network { name: "own", customer: ("red", "a"), stratum: 7 };

const PE_V6: &str = "fd99:1::1";
const CE_V6: &str = "fd99:1::2";

impl Network {
    fn is_vrf(&self) -> bool {
        self.name != OWN.name
    }

    fn instance(&self) -> String {
        let place = if self.is_vrf() { format!("vrf = \"vrf-{}\"\n", self.name) } else { String::new() };
        format!("[[instance]]\nname = \"{}\"\n{place}", self.name)
    }

    /// A table of the router's configuration for this network.
    fn table(&self, kind: &str, lines: &str) -> String {
        format!("[[{kind}]]\ninstance = \"{}\"\n{lines}\n", self.name)
    }

    /// The interface towards the CE, through AF_XDP.
    fn interface(&self) -> String {
        self.table("interface", &format!("name = \"ce-{}\"", self.name))
    }
}

/// A router with a CE in each of the networks; all CEs have one address, and so has the router towards them.
struct Router<'n> {
    vpns: Vpns,
    networks: &'n [Network],
}

impl<'n> Router<'n> {
    /// `None`, after a SKIP, where there can be none.
    #[track_caller]
    fn new(networks: &'n [Network]) -> Option<Self> {
        if !can_have_labs() {
            return None;
        }
        let router = Self { vpns: Vpns::new(), networks };
        router.ip("link set lo up");
        for (network, table) in networks.iter().zip(10..) {
            if network.is_vrf() {
                let words = format!("link add vrf-{} type vrf table {table}", network.name);
                let mut ip = router.vpns.on(&router.vpns.home(), "ip");
                if !run(ip.args(words.split_whitespace())).status.success() {
                    skip("this kernel has no VRF devices: scripts/emulated-vrf has");
                    return None;
                }
                router.ip(&format!("link set vrf-{} up", network.name));
            }
            let (end, customer) = (format!("ce-{}", network.name), router.customer(network));
            let at_customer = |words: &str| {
                run_well(router.vpns.on(&customer, "ip").args(words.split_whitespace()));
            };
            at_customer("link del eth0");
            router.ip(&format!("link add {end} type veth peer name eth0 netns {customer}"));
            router.enslave(network);
            for address in [format!("{PE}/24"), format!("{PE_V6}/64 nodad")] {
                router.ip(&format!("addr add {address} dev {end}"));
            }
            router.ip(&format!("link set {end} up"));
            at_customer(&format!("addr add {CE_A}/24 dev eth0"));
            at_customer(&format!("addr add {CE_V6}/64 dev eth0 nodad"));
            at_customer("link set eth0 up");
        }
        Some(router)
    }

    #[track_caller]
    fn ip(&self, words: &str) -> String {
        run_well(self.vpns.on(&self.vpns.home(), "ip").args(words.split_whitespace()))
    }

    fn customer(&self, network: &Network) -> String {
        self.vpns.host(network.customer.0, network.customer.1)
    }

    fn enslave(&self, network: &Network) {
        if network.is_vrf() {
            self.ip(&format!("link set ce-{0} master vrf-{0}", network.name));
        }
    }

    /// The router's daemon; `keys` stand above the first table, `tables` are those of each network.
    #[track_caller]
    fn start(&self, flags: &[&str], keys: &str, tables: impl Fn(&Network) -> String) -> Daemon {
        let instances: String = self.networks.iter().map(Network::instance).collect();
        let tables: String = self.networks.iter().map(tables).collect();
        Daemon::start_in(&self.vpns.home(), flags, &format!("{keys}\n{instances}{tables}"))
    }

    /// A CE with a clock of its own.
    #[track_caller]
    fn start_clock(&self, network: &Network, configuration: &str) -> Daemon {
        self.start_ce(network, &["--local-stratum", &network.stratum.to_string()], configuration)
    }

    #[track_caller]
    fn start_ce(&self, network: &Network, flags: &[&str], configuration: &str) -> Daemon {
        let (vpn, host) = network.customer;
        self.vpns.start_ce(vpn, host, flags, configuration)
    }

    /// The stratum that the router tells each CE.
    fn strata(&self, server: &str) -> Vec<(&'static str, Option<u64>)> {
        let told = |network: &Network| {
            let (vpn, host) = network.customer;
            let told = self.vpns.query(vpn, host, server).and_then(|told| told["stratum"].as_u64());
            (network.name, told)
        };
        self.networks.iter().map(told).collect()
    }

    /// The router's link-local address towards a CE, as the CE writes it.
    fn link_local(&self, network: &Network) -> String {
        let list = |ip: &mut Command, words: &str| -> Value {
            serde_json::from_str(&run_well(ip.arg("-j").args(words.split_whitespace()))).unwrap()
        };
        let words = format!("-6 addr show dev ce-{} scope link", network.name);
        let ours = list(&mut self.vpns.on(&self.vpns.home(), "ip"), &words);
        let theirs = list(&mut self.vpns.on(&self.customer(network), "ip"), "link show dev eth0");
        // Addresses that are not wanted are listed empty.
        let listed = ours[0]["addr_info"].as_array().unwrap();
        let address = listed.iter().find_map(|one| one["local"].as_str());
        format!("[{}%{}]:123", address.unwrap(), theirs[0]["ifindex"])
    }

    /// Waits until the router tells all of them this one.
    #[track_caller]
    fn tells_all(&self, server: &str, stratum: u64) {
        in_time(&format!("{server} tells stratum {stratum} everywhere"), || {
            let strata = self.strata(server);
            let is_told = strata.iter().all(|(_, told)| *told == Some(stratum));
            if is_told { Ok(()) } else { Err(format!("{strata:?}")) }
        });
    }
}

fn source(address: &str) -> String {
    format!("address = \"{address}\"\niburst = true\nmin-poll = 1\nmax-poll = 2")
}

/// The router takes its time from the best of the CEs, and serves it to all of them.
#[track_caller]
fn is_client_and_server(networks: &[Network], datapath: &str) {
    let Some(router) = Router::new(networks) else { return };
    let clocks: Vec<Daemon> = networks.iter().map(|network| router.start_clock(network, "")).collect();
    let is_af_xdp = datapath == "af-xdp";
    let daemon = router.start(&[], &format!("datapath = \"{datapath}\""), |network| {
        let interface = if is_af_xdp { network.interface() } else { String::new() };
        interface + &network.table("server", &source(CE_A))
    });
    let remote = format!("{CE_A}:123");
    for (network, clock) in networks.iter().zip(clocks) {
        follows_in(&daemon, network.name, "server", &remote, network.stratum);
        router.tells_all(PE, network.stratum + 1);
        router.tells_all(PE_V6, network.stratum + 1);
        let address = router.link_local(network);
        let (vpn, host) = network.customer;
        in_time("its link-local address is served", || {
            router.vpns.query(vpn, host, &address).ok_or_else(|| address.clone())
        });
        drop(clock);
    }
    let log = daemon.log();
    assert!(!log.contains("not served by a socket"), "{log}");
    let replies = daemon.replies();
    let ours = if is_af_xdp { replies.af_xdp } else { replies.socket };
    assert!(ours >= 2 * (networks.len() as u64).pow(2), "by {datapath}: {replies:?}");
}

#[test]
fn vrfs_with_the_same_addresses_are_two_networks() {
    is_client_and_server(&[RED, BLUE], "socket");
}

#[test]
fn vrfs_with_the_same_addresses_are_two_networks_through_af_xdp() {
    is_client_and_server(&[RED, BLUE], "af-xdp");
}

#[test]
fn what_belongs_to_no_vrf_is_a_third_network() {
    is_client_and_server(&[RED, BLUE, OWN], "socket");
}

#[test]
fn what_belongs_to_no_vrf_is_a_third_network_through_af_xdp() {
    is_client_and_server(&[RED, BLUE, OWN], "af-xdp");
}

#[test]
fn what_belongs_to_no_vrf_is_a_third_network_without_workers() {
    let Some(router) = Router::new(&[OWN, RED]) else { return };
    let _daemon =
        router.start(&["--local-stratum", "4"], "datapath = \"socket\"\nworkers = 0", |_| String::new());
    router.tells_all(PE, 4);
    router.tells_all(PE_V6, 4);
}

/// One CE leads, and the others follow, all as peers of the router.
#[track_caller]
fn peers_in_each(networks: &[Network]) {
    let Some(router) = Router::new(networks) else { return };
    let of_ce = format!("[[peer]]\n{}", source(PE));
    let (leader, others) = networks.split_first().unwrap();
    let _leader = router.start_clock(leader, &of_ce);
    let others: Vec<Daemon> = others.iter().map(|network| router.start_ce(network, &[], &of_ce)).collect();
    let daemon = router.start(&[], "datapath = \"socket\"", |network| network.table("peer", &source(CE_A)));
    follows_in(&daemon, leader.name, "peer", &format!("{CE_A}:123"), leader.stratum);
    for other in &others {
        follows_in(other, "default", "peer", &format!("{PE}:123"), leader.stratum + 1);
    }
}

#[test]
fn peers_are_told_apart_by_their_vrf() {
    peers_in_each(&[RED, BLUE]);
}

#[test]
fn peers_are_told_apart_from_those_of_no_vrf() {
    peers_in_each(&[OWN, RED, BLUE]);
}

/// The router hears one CE's broadcasts, and broadcasts itself to the others.
#[track_caller]
fn broadcasts_stay_in_their_network(address: &str) {
    let networks = [RED, BLUE, OWN];
    let Some(router) = Router::new(&networks) else { return };
    // Without a route a group is known to no interface.
    for host in networks.iter().map(|network| router.customer(network)) {
        run_well(router.vpns.on(&host, "ip").args(["route", "add", "224.0.0.0/4", "dev", "eth0"]));
    }
    let tells = format!("address = \"{address}\"\ninterval = 3");
    let hears = format!("address = \"{address}\"\nallow-unsigned = true");
    let of_listener = format!("[[broadcast-client]]\n{hears}");
    let _red = router.start_clock(&RED, &format!("[[broadcast]]\n{tells}"));
    let others = [BLUE, OWN].map(|network| router.start_ce(&network, &[], &of_listener));
    let daemon = router.start(&[], "datapath = \"socket\"", |network| match network.name {
        "red" => network.table("broadcast-client", &hears),
        _ => {
            let tells = format!("{tells}\ninterface = \"ce-{}\"", network.name);
            network.table("broadcast", &tells) + &network.table("broadcast-client", &hears)
        }
    });
    follows_in(&daemon, "red", "broadcast-client", &format!("{CE_A}:123"), RED.stratum);
    for other in &others {
        follows_in(other, "default", "broadcast-client", &format!("{PE}:123"), RED.stratum + 1);
    }
}

#[test]
fn broadcasts_stay_in_their_vrf() {
    broadcasts_stay_in_their_network("10.99.1.255");
}

#[test]
fn a_group_is_another_one_in_each_vrf() {
    broadcasts_stay_in_their_network("224.0.1.1");
}

/// A VRF that was removed and is made anew is another device of the same name.
#[test]
fn a_vrf_that_comes_back_is_served_again() {
    let networks = [RED, BLUE];
    let Some(router) = Router::new(&networks) else { return };
    let red = router.start_clock(&RED, &format!("[[peer]]\n{}", source(PE)));
    let daemon = router.start(&[], "datapath = \"socket\"", |network| network.table("peer", &source(CE_A)));
    let received = || {
        let of = |daemon: &Daemon, remote: &str| {
            let rows = rows(daemon, remote);
            rows.iter().find_map(|(name, row)| row["received"].as_u64().filter(|_| *name != "blue")).unwrap()
        };
        [of(&daemon, &format!("{CE_A}:123")), of(&red, &format!("{PE}:123"))]
    };
    let is_served = || {
        let before = received();
        in_time("both peers hear each other", || {
            let now = received();
            let have_grown = now.iter().zip(before).all(|(now, before)| *now >= before + 3);
            if have_grown { Ok(()) } else { Err(format!("{before:?} {now:?}")) }
        });
        follows_in(&daemon, "red", "peer", &format!("{CE_A}:123"), 3);
        router.tells_all(PE, 4);
        router.tells_all(PE_V6, 4);
    };
    is_served();
    for is_seen_gone in [true, false] {
        router.ip("link del vrf-red");
        if is_seen_gone {
            in_time("red is not served any more", || match router.strata(PE)[0].1 {
                None => Ok(()),
                some => Err(format!("{some:?}")),
            });
        }
        router.ip("link add vrf-red type vrf table 20");
        router.ip("link set vrf-red up");
        router.enslave(&RED);
        router.ip(&format!("addr replace {PE_V6}/64 dev ce-red nodad"));
        is_served();
    }
}

#[test]
fn chronyd_follows_in_each_vrf_and_is_followed() {
    if peer("chronyd").is_none() {
        return;
    }
    let networks = [RED, BLUE, OWN];
    let Some(router) = Router::new(&networks) else { return };
    let start = |network: &Network, lines: &str| {
        let host = router.customer(network);
        Peer::start_in(Kind::Chronyd, lines, |program| router.vpns.on(&host, program.to_str().unwrap()))
            .unwrap()
    };
    let _red = start(&RED, "local stratum 3");
    let daemon = router.start(&[], "datapath = \"socket\"", |network| network.table("server", &source(CE_A)));
    follows_in(&daemon, "red", "server", &format!("{CE_A}:123"), 3);
    let others = [BLUE, OWN];
    let line = format!("server {PE} iburst minpoll 1 maxpoll 1\nmaxdistance 16");
    let _others = others.each_ref().map(|network| start(network, &line));
    for network in &others {
        in_time("chronyd follows the router", || {
            let (vpn, _) = network.customer;
            let told = router.vpns.query(vpn, network.customer.1, CE_A).ok_or("it is not synchronised")?;
            if told["stratum"] == 5 { Ok(()) } else { Err(told.to_string()) }
        });
    }
}
