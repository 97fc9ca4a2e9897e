//! What `timeball check --interface` shows: the facts, the VLAN plan, and which data path is likely to work.
//!
//! Owns: the forecast and its rendering. Does not own: the attempt. Only attaching tells for sure; the daemon tries the
//! rungs from the top whatever is said here.

use super::TagStack;
use super::facts::{InterfaceError, InterfaceFacts};
use super::view::Address;
use super::vlan::VlanPlan;
use serde::Serialize;
use std::fmt;

/// Largest MTU whose frames fit one 4096-octet page beside what drivers keep there (256 of headroom, 320 of
/// skb_shared_info, the Ethernet header and two tags): drivers that cannot do several buffers (`rx-sg`) refuse XDP
/// beyond about this.
const SINGLE_BUFFER_MTU_MAX: u32 = 4096 - 256 - 320 - 14 - 8;
/// Largest MTU whose frames fit a 2048-octet umem chunk with 256 of headroom.
const CHUNK_MTU_MAX: u32 = 2048 - 256 - 14 - 8;

/// Will a rung of the ladder work?
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "likely", content = "reason", rename_all = "kebab-case")]
pub enum Likely {
    /// Everything we know speaks for it.
    Yes,
    /// It will not, and why.
    No(String),
    /// We cannot know before trying, and why.
    Unknown(String),
}

/// One rung of the ladder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What the rung is called.
    pub rung: &'static str,
    /// Whether it will work.
    #[serde(flatten)]
    pub likely: Likely,
}

/// The ladder of data paths from best to surest, each with its prospects.
pub fn ladder_forecast(facts: &InterfaceFacts, plan: &VlanPlan) -> Vec<Step> {
    let driver = driver_mode(facts);
    let zero_copy = zero_copy(facts, &driver);
    let bound = device_bound(facts, &zero_copy);
    let mut ladder = vec![
        Step { rung: "device-bound + zero-copy", likely: bound },
        Step { rung: "driver + zero-copy", likely: zero_copy },
        Step { rung: "driver + copy", likely: driver },
        Step { rung: "skb + copy", likely: Likely::Yes },
    ];
    if facts.interface.mac.is_none() {
        refuse(&mut ladder, "not an Ethernet device");
    }
    if let VlanPlan::Refuse { reason } = plan {
        refuse(&mut ladder, reason);
    }
    ladder.push(Step { rung: "kernel socket", likely: Likely::Yes });
    ladder
}

fn refuse(ladder: &mut [Step], reason: &str) {
    for step in ladder {
        step.likely = Likely::No(reason.to_owned());
    }
}

/// XDP in the driver, redirecting to AF_XDP sockets.
fn driver_mode(facts: &InterfaceFacts) -> Likely {
    let xdp = match &facts.device {
        Ok(device) => &device.xdp,
        Err(reason) => return Likely::Unknown(reason.clone()),
    };
    let has = |word: &str| xdp.iter().any(|one| one == word);
    if !has("basic") {
        return Likely::No("the driver has no XDP".into());
    }
    if !has("redirect") {
        return Likely::No("the driver's XDP cannot redirect".into());
    }
    let mtu = facts.interface.mtu;
    if mtu > SINGLE_BUFFER_MTU_MAX && !has("rx-sg") {
        return Likely::No(format!(
            "MTU {mtu} is above {SINGLE_BUFFER_MTU_MAX}, too large for a driver without rx-sg"
        ));
    }
    Likely::Yes
}

fn zero_copy(facts: &InterfaceFacts, driver: &Likely) -> Likely {
    let device = match (driver, &facts.device) {
        (Likely::Yes, Ok(device)) => device,
        _ => return driver.clone(),
    };
    if !device.xdp.iter().any(|word| word == "xsk-zerocopy") {
        return Likely::No("the driver has no zero-copy".into());
    }
    let mtu = facts.interface.mtu;
    if mtu > CHUNK_MTU_MAX {
        return Likely::Unknown(format!(
            "frames of MTU {mtu} do not fit 2048-octet chunks, some drivers refuse that"
        ));
    }
    Likely::Yes
}

fn device_bound(facts: &InterfaceFacts, zero_copy: &Likely) -> Likely {
    let device = match (zero_copy, &facts.device) {
        (Likely::No(_), _) | (_, Err(_)) => return zero_copy.clone(),
        (_, Ok(device)) => device,
    };
    match &device.rx_metadata {
        Some(words) if words.iter().any(|word| word == "timestamp") => zero_copy.clone(),
        Some(_) => Likely::No("the driver gives XDP no receive timestamps".into()),
        None => Likely::Unknown("kernel older than 6.8 does not say which metadata there is".into()),
    }
}

/// Everything `timeball check --interface` says of one interface. Displays as tables.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct InterfaceReport {
    /// What it is and can do.
    #[serde(flatten)]
    pub facts: InterfaceFacts,
    /// What will be done about VLAN tags.
    pub vlan_plan: VlanPlan,
    /// What will be tried, from the top.
    pub ladder: Vec<Step>,
}

impl InterfaceReport {
    /// Gathers, decides and forecasts for the interface called `name` in the calling thread's network namespace.
    ///
    /// # Errors
    /// There is none of that name, or the interfaces cannot be listed.
    pub fn of(name: &str, extra_tags: &[TagStack]) -> Result<Self, InterfaceError> {
        Ok(Self::from_facts(InterfaceFacts::gather(name)?, extra_tags))
    }

    /// Decides and forecasts from facts.
    pub fn from_facts(facts: InterfaceFacts, extra_tags: &[TagStack]) -> Self {
        let vlan_plan = VlanPlan::decide(&facts, extra_tags);
        let ladder = ladder_forecast(&facts, &vlan_plan);
        Self { facts, vlan_plan, ladder }
    }
}

impl fmt::Display for InterfaceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = &self.facts;
        let link = &facts.interface;
        let state = match (link.enabled, link.up) {
            (_, true) => "up",
            (true, false) => "enabled, no carrier",
            (false, false) => "down",
        };
        let mtu = if link.mtu == 0 { "unknown".into() } else { link.mtu.to_string() };
        let mut line = |what: &str, text: &str| writeln!(f, "{what:<16} {text}");
        line("interface", &format!("{} (index {}), {state}, MTU {mtu}", link.name, link.ifindex))?;
        line(
            "driver",
            &or_reason(&facts.driver, |one| {
                let place = if one.bus.is_empty() { String::new() } else { format!(" at {}", one.bus) };
                format!("{} {}{place}", one.name, one.version)
            }),
        )?;
        line("receive queues", &facts.receive_queues().map_or("unknown".into(), |count| count.to_string()))?;
        line("addresses", &addresses(&facts.addresses))?;
        for child in &facts.vlan_children {
            line(
                "VLAN interface",
                &format!("{} on {}: {}", child.name, tags(child.tags), addresses(&child.addresses)),
            )?;
        }
        line("VLAN tags", &plan(&self.vlan_plan))?;
        if facts.driver.as_ref().is_ok_and(|driver| driver.name == "veth") {
            line("", "veth: tags are in the frame only if the peer's tx-vlan-offload is off")?;
        }
        line("XDP", &or_reason(&facts.device, |one| list(&one.xdp)))?;
        let metadata = |words: &Option<Vec<String>>| {
            words.as_ref().map_or("unknown: kernel older than 6.8".into(), |words| list(words))
        };
        line("RX metadata", &or_reason(&facts.device, |one| metadata(&one.rx_metadata)))?;
        line("TX metadata", &or_reason(&facts.device, |one| metadata(&one.tx_metadata)))?;
        line(
            "NIC clock",
            &or_reason(&facts.stamps, |one| {
                one.phc_index.map_or("none".into(), |index| format!("/dev/ptp{index}"))
            }),
        )?;
        line("stamps", &or_reason(&facts.stamps, |one| list(&one.sources)))?;
        line("hardware filter", &or_reason(&facts.stamps, |one| list(&one.rx_filters)))?;
        writeln!(f)?;
        for step in &self.ladder {
            let prospect = match &step.likely {
                Likely::Yes => "yes".to_owned(),
                Likely::No(reason) => format!("no: {reason}"),
                Likely::Unknown(reason) => format!("unknown: {reason}"),
            };
            writeln!(f, "{:<26} {prospect}", step.rung)?;
        }
        Ok(())
    }
}

fn or_reason<T>(answer: &Result<T, String>, show: impl Fn(&T) -> String) -> String {
    match answer {
        Ok(value) => show(value),
        Err(reason) => format!("unknown: {reason}"),
    }
}

fn list(words: &[String]) -> String {
    if words.is_empty() { "none".into() } else { words.join(" ") }
}

fn tags([outer, inner]: TagStack) -> String {
    if inner == 0 { format!("tag {outer}") } else { format!("tags {outer}, {inner}") }
}

fn addresses(addresses: &[Address]) -> String {
    let one = |address: &Address| {
        let state = if address.is_usable() { "" } else { " (not usable)" };
        format!("{}/{}{state}", address.address, address.prefix_length)
    };
    if addresses.is_empty() {
        "none".into()
    } else {
        addresses.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

fn plan(plan: &VlanPlan) -> String {
    match plan {
        VlanPlan::InBand => "stay in the frame".into(),
        VlanPlan::TurnOff { features, .. } => {
            format!("stripped by {}, will be switched off", features.join(", "))
        }
        VlanPlan::Accept { reason } => {
            format!("not seen ({reason}); no VLAN is configured here, so that is accepted")
        }
        VlanPlan::Refuse { reason } => format!("not seen ({reason}); will not redirect"),
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
