//! `timeball check`: the effective configuration, and what the interfaces would make of it.

use super::args::CheckArguments;
use super::{Failure, WRONG_INPUT};
use crate::config::Config;
use crate::datapath::interface::InterfaceReport;
use serde::Serialize;
use std::io::{self, Write};

#[derive(Serialize)]
struct Checked<'a> {
    configuration: &'a Config,
    interfaces: &'a [InterfaceReport],
}

pub(super) fn check(config: &Config, arguments: &CheckArguments) -> Result<(), Failure> {
    let interfaces = config
        .interfaces
        .iter()
        .map(|settings| {
            let tags: Vec<_> = settings.vlans.iter().map(|vlan| vlan.ids()).collect();
            InterfaceReport::of(&settings.name, &tags)
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Failure::new(WRONG_INPUT, error))?;
    let mut output = io::stdout();
    if arguments.json {
        let checked = Checked { configuration: config, interfaces: &interfaces };
        let text = serde_json::to_string_pretty(&checked).map_err(Failure::failed)?;
        writeln!(output, "{text}")?;
        return Ok(());
    }
    write!(output, "# The effective configuration\n{}", config.to_toml().map_err(Failure::failed)?)?;
    for interface in &interfaces {
        write!(output, "\n{interface}")?;
    }
    Ok(())
}
