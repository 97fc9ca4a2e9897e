//! Two VPNs, `red` and `blue`, that use the same addresses, and a provider's router (PE) that is in both.
//!
//! In each VPN: two customers' routers (CE), `a` at 10.99.1.2 and `b` at 10.99.2.2, both behind the PE, which has 10.99.1.1 and
//! 10.99.2.1 and forwards between them; and the PE's neighbour, `pe2`, at 10.99.3.2, towards which the PE has 10.99.3.1. The
//! PE is two network namespaces, one for each VPN, and so is its neighbour; their daemons start in a third, `home`, which has
//! no network at all.

use super::peers::in_time;
use super::{Daemon, TIMEBALL, run, run_well};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// The VPNs, and what they are called as instances.
pub const VPNS: [&str; 2] = ["red", "blue"];
/// The first customer's router.
pub const CE_A: &str = "10.99.1.2";
/// The PE, as that one sees it.
pub const PE: &str = "10.99.1.1";
/// The second customer's router.
pub const CE_B: &str = "10.99.2.2";
/// The PE, as its neighbour sees it.
pub const PE_TO_NEIGHBOUR: &str = "10.99.3.1";

/// What there is in each VPN besides the PE.
const HOSTS: [&str; 4] = ["a", "b", "pe", "pe2"];
/// Links in each VPN: host, its interface, its address; the other's.
const LINKS: [(&str, &str, &str, &str, &str, &str); 3] = [
    ("a", "eth0", "10.99.1.2", "pe", "cea", "10.99.1.1"),
    ("b", "eth0", "10.99.2.2", "pe", "ceb", "10.99.2.1"),
    ("pe2", "pe1", "10.99.3.2", "pe", "pe2", "10.99.3.1"),
];

/// The namespaces, removed on drop.
pub struct Vpns {
    name: String,
}

impl Vpns {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tbv-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let vpns = Self { name };
        ip(&format!("netns add {}", vpns.home()));
        for vpn in VPNS {
            for host in HOSTS {
                ip(&format!("netns add {}", vpns.host(vpn, host)));
                ip(&format!("-n {} link set lo up", vpns.host(vpn, host)));
            }
            for (left, left_end, left_address, right, right_end, right_address) in LINKS {
                let (left, right) = (vpns.host(vpn, left), vpns.host(vpn, right));
                ip(&format!(
                    "link add {left_end} netns {left} type veth peer name {right_end} netns {right}"
                ));
                for (host, end, address) in
                    [(left, left_end, left_address), (right, right_end, right_address)]
                {
                    ip(&format!("-n {host} addr add {address}/24 dev {end}"));
                    ip(&format!("-n {host} link set {end} up"));
                }
            }
            let forwarding = ["-q", "-w", "net.ipv4.ip_forward=1"];
            run_well(vpns.on(&vpns.host(vpn, "pe"), "sysctl").args(forwarding));
            for (host, gateway) in [("a", PE), ("b", "10.99.2.1")] {
                ip(&format!("-n {} route add default via {gateway}", vpns.host(vpn, host)));
            }
        }
        vpns
    }

    /// Where the daemons of PEs start.
    pub fn home(&self) -> String {
        format!("{}-home", self.name)
    }

    /// The file that stands for it.
    pub fn home_file(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}", self.home()))
    }

    /// The namespace of a host: `a`, `b`, `pe` or `pe2`.
    pub fn host(&self, vpn: &str, host: &str) -> String {
        format!("{}-{vpn}-{host}", self.name)
    }

    /// A command in a namespace.
    pub fn on(&self, namespace: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, program]);
        command
    }

    /// The lines of the two instances of a PE (`pe` or `pe2`).
    pub fn instances(&self, host: &str) -> String {
        let one = |vpn| format!("[[instance]]\nname = \"{vpn}\"\nnetns = \"{}\"\n", self.host(vpn, host));
        VPNS.map(one).concat()
    }

    /// The daemon of a PE.
    #[track_caller]
    pub fn start_pe(&self, host: &str, flags: &[&str], configuration: &str) -> Daemon {
        // What is above the first table comes before the instances.
        let (keys, tables) = match configuration.find('[') {
            Some(table) => configuration.split_at(table),
            None => (configuration, ""),
        };
        Daemon::start_in(&self.home(), flags, &format!("{keys}\n{}\n{tables}", self.instances(host)))
    }

    /// The daemon of a CE (`a` or `b`).
    #[track_caller]
    pub fn start_ce(&self, vpn: &str, host: &str, flags: &[&str], configuration: &str) -> Daemon {
        Daemon::start_in(&self.host(vpn, host), flags, &format!("datapath = \"socket\"\n{configuration}"))
    }

    /// What a server tells whoever asks from a host.
    pub fn query(&self, vpn: &str, host: &str, server: &str) -> Option<Value> {
        let mut command = self.on(&self.host(vpn, host), TIMEBALL);
        let output = run(command.args(["query", "--json", server]));
        serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
    }

    /// Does an XDP program sit on an interface of the PE?
    pub fn has_xdp_program(&self, vpn: &str, interface: &str) -> bool {
        let shown = ip(&format!("-n {} -j -d link show dev {interface}", self.host(vpn, "pe")));
        let shown: Value = serde_json::from_str(&shown).unwrap();
        shown[0].get("xdp").is_some()
    }

    /// The file that stands for a host's namespace.
    pub fn file(&self, vpn: &str, host: &str) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}", self.host(vpn, host)))
    }
}

impl Drop for Vpns {
    fn drop(&mut self) {
        let remove = |words: &str| run(Command::new("ip").args(words.split_whitespace()));
        for vpn in VPNS {
            // Deleting one end deletes the pair at once; a namespace alone would only go when its last process does.
            for (host, end, ..) in LINKS {
                remove(&format!("-n {} link del {end}", self.host(vpn, host)));
            }
            for host in HOSTS {
                remove(&format!("netns del {}", self.host(vpn, host)));
            }
        }
        remove(&format!("netns del {}", self.home()));
    }
}

#[track_caller]
fn ip(words: &str) -> String {
    run_well(Command::new("ip").args(words.split_whitespace()))
}

/// The rows of `timeball sources` for an address, by instance.
pub fn rows(daemon: &Daemon, remote: &str) -> Vec<(String, Value)> {
    let report = daemon.sources();
    let rows = report["sources"].as_array().unwrap().iter().filter(|row| row["address"] == remote);
    rows.map(|row| (row["instance"].as_str().unwrap().to_owned(), row.clone())).collect()
}

/// Waits until a daemon follows `remote` in this instance and mode, and serves its time at this stratum.
#[track_caller]
pub fn follows_in(daemon: &Daemon, instance: &str, mode: &str, remote: &str, stratum: u64) -> Value {
    in_time(&format!("{remote} in {instance} is followed as {mode}"), || {
        let all = rows(daemon, remote);
        let row =
            all.iter().find(|(name, row)| name == instance && row["mode"] == mode && row["sign"] == "*");
        let (_, row) = row.ok_or_else(|| daemon.sources().to_string())?;
        let clock = daemon.status()["clock"].clone();
        let is_served = clock["source"] == "sources" && clock["stratum"] == stratum + 1;
        if is_served && row["stratum"] == stratum { Ok(row.clone()) } else { Err(format!("{clock} {row}")) }
    })
}
