//! The keys, their ranges and their defaults: [`Raw`] to [`Config`].
//!
//! Owns: every rule about a value. Does not own: where values come from, nor how a problem is worded around its range.
//!
//! The one idea a newcomer lacks: each key is named here once and nowhere else; what is not read here is unknown.

use super::instance::{self, Known};
use super::model::{Access, Clients, Config, Interface, Keys, Metrics, RateLimit, Reference, Source};
use super::problem::{Place, Problem, Problems, Setting};
use super::raw::{Node, Raw, Value};
use super::section::{Converted, Report, Section, choices, integer};
use super::values::{ReferenceId, Vlan, Workers, is_interface_name, parse_address_or_off, prefix};
use super::{Datapath, check_sources, duration};
use crate::auth::{KeyId, TrustedKeys};
use crate::time::NtpDuration;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Longest path of a unix socket: `sun_path` less its final zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;
/// CPU numbers that an affinity mask can hold (`CPU_SETSIZE`).
const CPU_NUMBER_MAX: i64 = 1023;
/// Priorities of `SCHED_FIFO` on Linux: sched(7).
const REALTIME_PRIORITIES: RangeInclusive<i64> = 1..=99;
/// The kernel allows a device 4096 queues in each direction.
const QUEUE_NUMBER_MAX: i64 = 4095;

/// Checks everything, or says everything that is wrong.
pub(super) fn check(raw: Raw) -> Result<Config, Problems> {
    let mut report = Report::default();
    let mut top = Section::top(raw, &mut report);
    let default = Config::default();
    let datapath_given = top.setting("datapath");
    let priority_given = top.setting("realtime-priority");
    let reference_given = top.setting("reference");
    let instances = instance::instances(&mut top);
    let known = Known::of(&instances);
    let keys = keys(top.section("keys"));
    let has_keys = keys.file.is_some();
    let config = Config {
        port: top.integer("port", 1..=65_535).unwrap_or(default.port),
        datapath: top.choice("datapath").unwrap_or_default(),
        workers: top.value("workers", |value| workers(&value)).unwrap_or_default(),
        cores: top
            .set("cores", "a list of CPU numbers: [1, 2]", |value| integer(&value, &(0..=CPU_NUMBER_MAX))),
        busy_poll: top.boolean("busy-poll").unwrap_or(default.busy_poll),
        realtime_priority: top
            .value("realtime-priority", |value| realtime_priority(&value))
            .unwrap_or(default.realtime_priority),
        socket: top.value("socket", socket).unwrap_or(default.socket),
        clock_control: top.boolean("clock-control").unwrap_or(default.clock_control),
        kod: top.boolean("kod").unwrap_or(default.kod),
        log: top.choice("log").unwrap_or_default(),
        passive_peers: top.choice("passive-peers").unwrap_or_default(),
        reference: reference(top.section("reference")),
        interfaces: interfaces(&mut top, &known),
        configured_instances: instances,
        access: access(top.section("access")),
        rate_limit: rate_limit(top.section("rate-limit")),
        clients: clients(top.section("clients")),
        metrics: metrics(top.section("metrics")),
        keys,
        selection: check_sources::selection(top.section("selection")),
        clock: check_sources::clock(top.section("clock")),
        sources: check_sources::sources(&mut top, has_keys, &known),
    };
    check_keeper(&config, reference_given, top.report);
    if let (Datapath::AfXdp, true, Some(setting)) =
        (config.datapath, config.interfaces.is_empty(), datapath_given)
    {
        top.report.invalid(setting, "auto or socket where no interface is given");
    }
    if let (Some(_), Some(setting)) = (config.realtime_priority, priority_given)
        && let Some(reason) = reason_against_priority(&config)
    {
        top.report.invalid(setting, format!("\"off\" {reason}"));
    }
    top.finish();
    report.into_result(config)
}

/// Nobody else may keep the clock that we set by our sources.
fn check_keeper(config: &Config, given: Option<Setting>, report: &mut Report) {
    let is_kept = config.reference.as_ref().is_some_and(|reference| reference.source == Source::System);
    if let (true, true, true, Some(table)) =
        (is_kept, config.clock_control, config.sources.give_time(), given)
    {
        let value = if matches!(table.place, Place::Flag(_)) { "system" } else { "\"system\"" };
        let setting = Setting { key: "reference.source".to_owned(), value: value.to_owned(), ..table };
        let allowed = "\"local\", or absent, where we set the clock by sources of our own (clock-control = false: we \
                       do not)";
        report.invalid(setting, allowed);
    }
}

fn workers(value: &Value) -> Converted<Workers> {
    match value {
        Value::Text(text) if text == "auto" => Ok(Workers::Auto),
        _ => integer(value, &(0..=64)).map(Workers::Count).map_err(|range| format!("\"auto\" or {range}")),
    }
}

fn realtime_priority(value: &Value) -> Converted<Option<u8>> {
    match value {
        Value::Text(text) if text == "off" => Ok(None),
        _ => integer(value, &REALTIME_PRIORITIES).map(Some).map_err(|range| format!("\"off\" or {range}")),
    }
}

/// Why no thread may have a real-time priority under this configuration.
const fn reason_against_priority(config: &Config) -> Option<&'static str> {
    if config.busy_poll {
        Some(
            "with busy-poll = true: who spins at such a priority leaves its CPU to nobody, the kernel's own work included",
        )
    } else if matches!(config.workers, Workers::Count(0)) {
        Some("with workers = 0: there is no worker, and all else is to be ordinary")
    } else {
        None
    }
}

fn socket(value: Value) -> Converted<PathBuf> {
    match value {
        Value::Text(text)
            if Path::new(&text).is_absolute() && text.len() <= SOCKET_PATH_MAX && !text.contains('\0') =>
        {
            Ok(text.into())
        }
        _ => Err(format!("an absolute path of at most {SOCKET_PATH_MAX} bytes")),
    }
}

fn reference(mut section: Section<'_>) -> Option<Reference> {
    let source_is_missing = !section.has("source") && !section.is_empty();
    let source: Option<Source> = section.choice("source");
    let stratum = section.integer("stratum", 1..=15);
    let stratum = stratum.or(source.map(Source::default_stratum)).unwrap_or(Source::System.default_stratum());
    let reference_id = section.value("reference-id", |value| reference_id(&value, stratum));
    if let (true, Some(place)) = (source_is_missing, section.place.clone()) {
        let key = "reference.source".to_owned();
        section.report.add(Problem::Missing { place, key, allowed: choices::<Source>() });
    }
    section.finish();
    let source = source?;
    let reference_id = reference_id.unwrap_or(source.default_reference_id(stratum));
    Some(Reference { source, stratum, reference_id })
}

fn reference_id(value: &Value, stratum: u8) -> Converted<ReferenceId> {
    let parsed = match value {
        Value::Text(text) => ReferenceId::parse(text),
        _ => None,
    };
    match parsed {
        Some(ReferenceId::Name(_)) if stratum != 1 => None,
        other => other,
    }
    .ok_or_else(|| match stratum {
        1 => "1 to 4 printable ASCII characters or a dotted quad, in quotes".to_owned(),
        _ => format!("a dotted quad in quotes at stratum {stratum} (a name at stratum 1 only)"),
    })
}

fn interfaces(top: &mut Section<'_>, known: &Known) -> Vec<Interface> {
    let read = top.sections("interface", |section| interface(section, known));
    let named = read
        .iter()
        .filter_map(|(interface, setting)| Some(((&interface.instance, &interface.name), setting.as_ref()?)));
    top.report_repeats(named);
    read.into_iter().map(|(interface, _)| interface).collect()
}

/// Also where its name was given, if it was.
fn interface(mut section: Section<'_>, known: &Known) -> (Interface, Option<Setting>) {
    let name_given = section.setting("name");
    let allowed = "an interface name of 1 to 15 characters without / : or spaces";
    if let (None, Some(place)) = (&name_given, section.place.clone()) {
        let key = "interface.name".to_owned();
        section.report.add(Problem::Missing { place, key, allowed: allowed.to_owned() });
    }
    let name = section.value("name", |value| match value {
        Value::Text(text) if is_interface_name(&text) => Ok(text),
        _ => Err(allowed.to_owned()),
    });
    let name_given = name_given.filter(|_| name.is_some());
    let default = Interface::new(name.unwrap_or_default());
    let interface = Interface {
        instance: known.read(&mut section),
        xdp_mode: section.choice("xdp-mode").unwrap_or_default(),
        zero_copy: section.boolean("zero-copy").unwrap_or(default.zero_copy),
        nic_stamps: section.boolean("nic-stamps").unwrap_or(default.nic_stamps),
        queues: section.set("queues", "a list of queue numbers: [0, 1]", |value| {
            integer(&value, &(0..=QUEUE_NUMBER_MAX))
        }),
        vlans: section.set("vlans", r#"a list of VLAN tags: ["100", "200.30"]"#, vlan),
        frames: section.power_of_two("frames", 512..=65_536).unwrap_or(default.frames),
        frame_size: section.value("frame-size", |value| frame_size(&value)).unwrap_or(default.frame_size),
        hugepages: section.boolean("hugepages").unwrap_or(default.hugepages),
        tx_timestamps: section.boolean("tx-timestamps").unwrap_or(default.tx_timestamps),
        name: default.name,
    };
    section.finish();
    (interface, name_given)
}

fn vlan(value: Value) -> Converted<Vlan> {
    let parsed = match value {
        Value::Text(text) => Vlan::parse(&text),
        _ => None,
    };
    parsed.ok_or_else(|| r#"a tag in quotes, "1" to "4094", or two, "outer.inner""#.to_owned())
}

fn frame_size(value: &Value) -> Converted<u32> {
    match value {
        Value::Integer(2048) => Ok(2048),
        Value::Integer(4096) => Ok(4096),
        _ => Err("2048 or 4096".to_owned()),
    }
}

fn access(mut section: Section<'_>) -> Access {
    let default = section.choice("default").unwrap_or_default();
    let lists = ["allow", "deny", "restrict", "drop"].map(|key| {
        section.list(key, r#"a list of prefixes: ["10.0.0.0/8"]"#, |value| match value {
            Value::Text(text) => prefix(&text),
            _ => prefix(""),
        })
    });
    // Twice in one list says the same thing twice; in two lists it contradicts itself.
    let once_per_list = lists.iter().map(|list| list.iter().map(|(prefix, setting)| (*prefix, setting)));
    let once_per_list: Vec<BTreeMap<IpNet, &Setting>> = once_per_list.map(Iterator::collect).collect();
    section.report_repeats(once_per_list.into_iter().flatten());
    section.finish();
    let [allow, deny, restrict, drop] =
        lists.map(|list| list.into_iter().map(|(prefix, _)| prefix).collect());
    Access { default, allow, deny, restrict, drop }
}

fn rate_limit(mut section: Section<'_>) -> RateLimit {
    let default = RateLimit::default();
    // Who writes the table wants the limit.
    let table_given = section.place.is_some();
    let rate_limit = RateLimit {
        enabled: section.boolean("enabled").unwrap_or(table_given),
        interval: section.value("interval", interval).unwrap_or(default.interval),
        burst: section.integer("burst", 1..=1023).unwrap_or(default.burst),
        leak: section.integer("leak", 0..=1024).unwrap_or(default.leak),
        ipv4_prefix: section.integer("ipv4-prefix", 8..=32).unwrap_or(default.ipv4_prefix),
        ipv6_prefix: section.integer("ipv6-prefix", 16..=128).unwrap_or(default.ipv6_prefix),
        clients: section.integer("clients", 1024..=1 << 28).unwrap_or(default.clients),
    };
    section.finish();
    rate_limit
}

fn interval(value: Value) -> Converted<NtpDuration> {
    let range = NtpDuration::from_nanoseconds(1_000_000)..=NtpDuration::from_seconds(86_400);
    let parsed = match value {
        Value::Text(text) => duration::parse(&text),
        _ => None,
    };
    parsed
        .filter(|interval| range.contains(interval))
        .ok_or_else(|| r#""1ms" to "1day", in quotes, with a unit: ns, us, ms, s, min, h, day"#.to_owned())
}

fn clients(mut section: Section<'_>) -> Clients {
    let default = Clients::default();
    let clients =
        Clients { entries: section.power_of_two("entries", 64..=1 << 20).unwrap_or(default.entries) };
    section.finish();
    clients
}

fn metrics(mut section: Section<'_>) -> Metrics {
    let allow_remote = section.boolean("allow-remote").unwrap_or_default();
    let listen = section.value("listen", |value| metrics_address(&value, allow_remote)).flatten();
    section.finish();
    Metrics { listen, allow_remote }
}

fn metrics_address(value: &Value, allow_remote: bool) -> Converted<Option<SocketAddr>> {
    let parsed = match value {
        Value::Text(text) => parse_address_or_off(text),
        _ => None,
    };
    let is_local = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
    match parsed {
        None => {
            Err(r#""off", or address and port in quotes, like "127.0.0.1:9124" or "[::1]:9124""#.to_owned())
        }
        Some(Some(_)) if !cfg!(feature = "metrics") => {
            Err("\"off\": this timeball was built without the feature `metrics`".to_owned())
        }
        Some(Some(address)) if !allow_remote && !is_local(&address) => {
            let here = SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), address.port());
            Err(format!("on loopback, like \"{here}\", unless metrics.allow-remote = true"))
        }
        Some(address) => Ok(address),
    }
}

fn keys(mut section: Section<'_>) -> Keys {
    let file =
        section.value("file", |value| absolute_path_or_off(value, "/etc/timeball/timeball.keys")).flatten();
    let allow_md5 = section.boolean("allow-md5").unwrap_or_default();
    let trusted_given = section.setting("trusted");
    let trusted = section.value("trusted", trusted_keys).unwrap_or_default();
    if let (None, TrustedKeys::Only(_), Some(setting)) = (&file, &trusted, trusted_given) {
        section.report.invalid(setting, r#""all" where keys.file gives no keys"#);
    }
    section.finish();
    Keys { file, allow_md5, trusted }
}

pub(super) fn absolute_path_or_off(value: Value, example: &str) -> Converted<Option<PathBuf>> {
    match value {
        Value::Text(text) if text == "off" => Ok(None),
        Value::Text(text) if Path::new(&text).is_absolute() && !text.contains('\0') => Ok(Some(text.into())),
        _ => Err(format!(r#""off", or an absolute path in quotes, like "{example}""#)),
    }
}

fn trusted_keys(value: Value) -> Converted<TrustedKeys> {
    let id = |node: &Node| integer(&node.value, &(1..=u32::MAX.into())).ok().and_then(KeyId::new);
    let ids: Option<Vec<KeyId>> = match &value {
        Value::Text(text) if text == "all" => return Ok(TrustedKeys::All),
        Value::Array(items) => items.iter().map(id).collect(),
        _ => None,
    };
    let each_once = |ids: &Vec<KeyId>| ids.iter().collect::<BTreeSet<_>>().len() == ids.len();
    ids.filter(each_once)
        .map(TrustedKeys::Only)
        .ok_or_else(|| format!(r#""all", or a list of key ids, each once, 1 to {}: [1, 2]"#, u32::MAX))
}
