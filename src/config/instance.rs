//! The checked configuration of instances: several networks that one daemon serves, and that may use the same addresses.
//!
//! The one idea a newcomer lacks: each table that has to do with the network says to which instance it belongs, and where it
//! says nothing, that is [`DEFAULT`]. Without any `[[instance]]` there is just that one, where the daemon was started.

use super::problem::Setting;
use super::raw::Value;
use super::section::{Converted, Section};
use super::values::is_interface_name;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The instance of whatever names none.
pub const DEFAULT: &str = "default";

/// How many there may be: each has sockets for each of its addresses and each worker.
pub const INSTANCES_MAX: usize = 256;

/// The longest name.
const NAME_MAX: usize = 32;

const NAME: &str = "a name of 1 to 32 letters, digits, - _ or . in quotes, like \"red\"";
const NETNS: &str =
    "\"own\", where the daemon was started, or a name that `ip netns` lists, or an absolute path, in quotes";
const VRF: &str = "\"none\", or the name of a VRF device, 1 to 15 characters without / : or spaces";

/// `[[instance]]`: one network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Instance {
    /// What it is called here.
    pub name: String,
    /// Its network namespace: a name that `ip netns` lists, or an absolute path. `None`: the one we were started in.
    #[serde(serialize_with = "own_or_name")]
    pub netns: Option<String>,
    /// Its VRF device in our own network namespace. `None`: what belongs to no VRF.
    #[serde(serialize_with = "none_or_name")]
    pub vrf: Option<String>,
    /// Where the file says so.
    #[serde(skip)]
    pub written: Written,
}

/// Where `netns` or `vrf` stands, for who finds that there is no such thing. No part of what a configuration says: two that
/// say the same are equal.
#[derive(Clone, Default, Debug)]
pub struct Written(Option<Setting>);

impl Written {
    /// As the configuration's own messages begin: file, line, key and value.
    #[must_use]
    pub fn shown(&self) -> String {
        self.0.as_ref().map_or_else(|| "instance".to_owned(), ToString::to_string)
    }
}

impl PartialEq for Written {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Written {}

impl Default for Instance {
    fn default() -> Self {
        Self { name: DEFAULT.to_owned(), netns: None, vrf: None, written: Written::default() }
    }
}

fn own_or_name<S: serde::Serializer>(name: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(name.as_deref().unwrap_or("own"))
}

fn none_or_name<S: serde::Serializer>(name: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(name.as_deref().unwrap_or("none"))
}

/// All of `[[instance]]`. No two have one name, or one place.
pub(super) fn instances(top: &mut Section<'_>) -> Vec<Instance> {
    let read = top.sections("instance", instance);
    let names = read.iter().filter_map(|one| Some((&one.instance.name, one.name.as_ref()?)));
    top.report_repeats(names);
    let namespaces = read.iter().filter_map(|one| Some((one.instance.netns.as_ref()?, one.netns.as_ref()?)));
    top.report_repeats(namespaces);
    let devices = read.iter().filter_map(|one| Some((one.instance.vrf.as_ref()?, one.vrf.as_ref()?)));
    top.report_repeats(devices);
    let mut here = read.iter().filter(|one| one.instance.netns.is_none() && one.instance.vrf.is_none());
    if let (Some(first), Some(setting)) = (here.next(), here.next().and_then(|second| second.name.clone())) {
        let name = &first.instance.name;
        let allowed =
            format!("an instance with netns or vrf: {name:?} is where the daemon was started already");
        top.report.invalid(setting, allowed);
    }
    if let Some(setting) = read.get(INSTANCES_MAX).and_then(|one| one.name.clone()) {
        top.report.invalid(setting, format!("one of at most {INSTANCES_MAX} instances"));
    }
    read.into_iter().map(|one| one.instance).collect()
}

/// An instance, and where what must not be given twice was given.
struct Read {
    instance: Instance,
    name: Option<Setting>,
    netns: Option<Setting>,
    vrf: Option<Setting>,
}

fn instance(mut section: Section<'_>) -> Read {
    let given = ["name", "netns", "vrf"].map(|key| section.setting(key));
    if given[0].is_none() {
        section.report_missing("name", NAME);
    }
    let name = section.value("name", |value| match value {
        Value::Text(text) if is_instance_name(&text) => Ok(text),
        _ => Err(NAME.to_owned()),
    });
    let netns = section.value("netns", netns).flatten();
    let vrf = section.value("vrf", vrf).flatten();
    let [name_given, netns_given, vrf_given] = given;
    if let (Some(_), Some(_), Some(setting)) = (&netns, &vrf, vrf_given.clone()) {
        section.report.invalid(setting, "\"none\" where netns is given: an instance is one or the other");
    }
    section.finish();
    Read {
        name: name_given.filter(|_| name.is_some()),
        instance: Instance {
            name: name.unwrap_or_default(),
            written: Written(netns_given.clone().filter(|_| netns.is_some()).or(vrf_given.clone())),
            netns,
            vrf,
        },
        netns: netns_given,
        vrf: vrf_given,
    }
}

fn is_instance_name(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(is_letter)
}

/// `None`: our own.
fn netns(value: Value) -> Converted<Option<String>> {
    match value {
        Value::Text(text) if text == "own" => Ok(None),
        Value::Text(text) if is_namespace(&text) => Ok(Some(text)),
        _ => Err(NETNS.to_owned()),
    }
}

fn is_namespace(text: &str) -> bool {
    let is_name = !text.is_empty() && !text.contains('/') && text != "." && text != "..";
    !text.contains('\0') && text.len() <= 255 && (is_name || Path::new(text).is_absolute())
}

fn vrf(value: Value) -> Converted<Option<String>> {
    match value {
        Value::Text(text) if text == "none" => Ok(None),
        Value::Text(text) if is_interface_name(&text) => Ok(Some(text)),
        _ => Err(VRF.to_owned()),
    }
}

/// The names that a table may give, and whether each is a VRF's.
#[derive(Clone, Debug)]
pub(super) struct Known(BTreeMap<String, bool>);

impl Known {
    pub(super) fn of(instances: &[Instance]) -> Self {
        match instances {
            [] => Self([(DEFAULT.to_owned(), false)].into()),
            _ => Self(instances.iter().map(|one| (one.name.clone(), one.vrf.is_some())).collect()),
        }
    }

    /// Is the instance of this name a VRF?
    pub(super) fn is_vrf(&self, name: &str) -> bool {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// The key `instance` of a table.
    pub(super) fn read(&self, section: &mut Section<'_>) -> String {
        let is_given = section.has("instance");
        let named = section.value("instance", |value| match value {
            Value::Text(text) if self.0.contains_key(&text) => Ok(text),
            _ => Err(self.allowed()),
        });
        if !is_given && !self.0.contains_key(DEFAULT) {
            section.report_missing("instance", &self.allowed());
        }
        named.unwrap_or_else(|| DEFAULT.to_owned())
    }

    fn allowed(&self) -> String {
        let names: Vec<String> = self.0.keys().map(|name| format!("{name:?}")).collect();
        format!("the name of an [[instance]]: {}", names.join(", "))
    }
}
