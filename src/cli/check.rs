//! `timeball check`: the effective configuration, and what the interfaces would make of it.

use super::args::CheckArguments;
use super::{Failure, WRONG_INPUT};
use crate::config::{Config, Datapath, Interface, XdpMode};
use crate::daemon::{self, Place};
use crate::datapath::interface::{InterfaceReport, Likely, Step};
use serde::Serialize;
use std::io::{self, Write};

#[derive(Serialize)]
struct Checked<'a> {
    configuration: &'a Config,
    interfaces: &'a [Forecast],
    keys: &'a [KeyShown],
}

/// What may be shown of a key.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct KeyShown {
    id: u32,
    #[serde(rename = "type")]
    algorithm: &'static str,
    for_clients: bool,
}

fn keys(config: &Config) -> Result<Vec<KeyShown>, Failure> {
    let all = daemon::keys::load(&config.keys).map_err(|error| Failure::new(WRONG_INPUT, error))?;
    let for_clients = daemon::keys::for_clients(&config.keys, &all);
    let shown = all.types().map(|(id, algorithm)| KeyShown {
        id: id.number(),
        algorithm: algorithm.name(),
        for_clients: for_clients.get(id).is_some(),
    });
    Ok(shown.collect())
}

/// One interface and what would be chosen for it under the configuration.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Forecast {
    instance: String,
    #[serde(flatten)]
    report: InterfaceReport,
    would_be_chosen: String,
}

pub(super) fn check(config: &Config, arguments: &CheckArguments) -> Result<(), Failure> {
    daemon::check_machine(config).map_err(|error| Failure::new(error.exit_code(), error))?;
    let places = Place::open_all(config).map_err(|error| Failure::new(error.exit_code(), error))?;
    let interfaces = config
        .interfaces
        .iter()
        .map(|settings| {
            let tags: Vec<_> = settings.vlans.iter().map(|vlan| vlan.ids()).collect();
            let of = || InterfaceReport::of(&settings.name, &tags);
            let place = places.get(usize::from(config.instance_number(&settings.instance)));
            let report = place.map_or_else(|| Ok(of()), |place| place.inside(of))??;
            let would_be_chosen = match settings.name.as_str() {
                "lo" => "kernel socket: the loopback interface is served by sockets".to_owned(),
                _ => choice(config.datapath, settings, &report.ladder),
            };
            Ok(Forecast { instance: settings.instance.clone(), report, would_be_chosen })
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error: crate::datapath::interface::InterfaceError| Failure::new(WRONG_INPUT, error))?;
    let keys = keys(config)?;
    let mut output = io::stdout();
    if arguments.json {
        let checked = Checked { configuration: config, interfaces: &interfaces, keys: &keys };
        let text = serde_json::to_string_pretty(&checked).map_err(Failure::failed)?;
        writeln!(output, "{text}")?;
        return Ok(());
    }
    write!(output, "# The effective configuration\n{}", config.to_toml().map_err(Failure::failed)?)?;
    if !keys.is_empty() {
        writeln!(output, "\n# Keys: id, type")?;
    }
    for KeyShown { id, algorithm, for_clients } in &keys {
        let note = if *for_clients { "" } else { ", not for clients" };
        writeln!(output, "# {id} {algorithm}{note}")?;
    }
    for Forecast { instance, report, would_be_chosen } in &interfaces {
        if places.len() > 1 {
            write!(output, "\nin instance {instance}:")?;
        }
        writeln!(output, "\n{report}")?;
        writeln!(output, "would be chosen            {would_be_chosen}")?;
    }
    Ok(())
}

/// The first rung that the configuration allows and the facts do not rule out. It is a forecast: drivers promise
/// much, a program of somebody else's may be attached, and only trying tells.
fn choice(datapath: Datapath, settings: &Interface, ladder: &[Step]) -> String {
    let allowed = |step: &&Step| {
        let (zero_copy, skb) = (step.rung.contains("zero-copy"), step.rung.starts_with("skb"));
        let is_socket = step.rung.contains("socket");
        match datapath {
            Datapath::Socket => is_socket,
            Datapath::AfXdp if is_socket => false,
            _ => {
                is_socket
                    || (settings.zero_copy || !zero_copy)
                        && (settings.nic_stamps || !step.rung.starts_with("device-bound"))
                        && (settings.xdp_mode != XdpMode::Skb || skb)
                        && (settings.xdp_mode != XdpMode::Driver || !skb)
            }
        }
    };
    let possible = |step: &&Step| !matches!(step.likely, Likely::No(_));
    match ladder.iter().filter(allowed).find(possible) {
        Some(Step { rung, likely: Likely::Unknown(reason) }) => format!("{rung}, if it works: {reason}"),
        Some(step) => step.rung.to_owned(),
        None => "nothing: no path that the configuration allows would work".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ladder() -> Vec<Step> {
        let no = || Likely::No("no".to_owned());
        [
            ("device-bound + zero-copy", no()),
            ("driver + zero-copy", Likely::Yes),
            ("driver + copy", Likely::Yes),
            ("skb + copy", Likely::Yes),
            ("kernel socket", Likely::Yes),
        ]
        .map(|(rung, likely)| Step { rung, likely })
        .to_vec()
    }

    #[test]
    fn the_choice_is_the_best_rung_that_the_configuration_allows() {
        let settings = Interface::new("eth0");
        let chosen = |datapath, settings: &Interface| choice(datapath, settings, &ladder());
        assert_eq!(chosen(Datapath::Auto, &settings), "driver + zero-copy");
        assert_eq!(chosen(Datapath::Socket, &settings), "kernel socket");
        let copy = Interface { zero_copy: false, ..settings.clone() };
        assert_eq!(chosen(Datapath::Auto, &copy), "driver + copy");
        let skb = Interface { xdp_mode: XdpMode::Skb, ..settings.clone() };
        assert_eq!(chosen(Datapath::AfXdp, &skb), "skb + copy");
        let dead: Vec<Step> = ladder().into_iter().take(1).collect();
        assert!(choice(Datapath::AfXdp, &settings, &dead).starts_with("nothing"));
    }
}
