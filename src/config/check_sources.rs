//! The keys of the tables that name sources, of `[selection]` and of `[clock]`, with their ranges.

use super::check::absolute_path_or_off;
use super::clock_control::{ClockControl, Selection};
use super::duration;
use super::instance::Known;
use super::problem::Setting;
use super::raw::Value;
use super::section::{Converted, Section, integer};
use super::sources::{
    Broadcast, BroadcastClient, GROUP, ManycastClient, ManycastServer, POLLS, Peer, Polling, Pool, Server,
    Sources, Worth,
};
use super::tables::Tables;
use super::values::{host, is_interface_name};
use crate::auth::KeyId;
use crate::control::source::POOL_MEMBERS_MAX;
use crate::time::NtpDuration;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

const MICROSECOND: NtpDuration = NtpDuration::from_nanoseconds(1_000);
const MILLISECOND: NtpDuration = NtpDuration::from_nanoseconds(1_000_000);
const SECOND: NtpDuration = NtpDuration::from_seconds(1);
/// MAXDISP of RFC 5905 section 7.2: what is further away is not known at all.
const DISTANCE_MAX: NtpDuration = NtpDuration::from_seconds(16);
const TTLS: RangeInclusive<i64> = 1..=255;
const PORTS: RangeInclusive<i64> = 1..=65_535;
/// Versions 1 and 2 know no mode, or not as later ones do, and nobody has had a server of them for decades.
const VERSIONS: RangeInclusive<i64> = 3..=4;

const ADDRESS: &str = r#"a name or an address of one host in quotes, like "ntp.example.org", "192.0.2.1" or "2001:db8::1"; a link-local one, and no other, with its interface: "fe80::1%eth0""#;
const GROUPS: &str = r#"a multicast group in quotes, like "224.0.1.1" or "ff05::101""#;
const BROADCASTS: &str =
    r#"a broadcast address or multicast group in quotes, like "192.0.2.255", "224.0.1.1" or "ff05::101""#;
const LISTENED: &str =
    r#""0.0.0.0" for every broadcast address of this machine, one of them, or a multicast group"#;

const INTERFACE_IN_VRF: &str =
    "the name of an interface: in a VRF routing would not find the way to a group or broadcast address";

/// What a source may refer to.
#[derive(Clone, Copy)]
struct Around<'a> {
    /// Is there a key file?
    has_keys: bool,
    instances: &'a Known,
}

pub(super) fn sources(top: &mut Section<'_>, has_keys: bool, instances: &Known) -> Sources {
    let around = Around { has_keys, instances };
    let read = Tables {
        servers: top.sections("server", |mut section| {
            let place = place(&section, None);
            let server = server(&mut section, around);
            section.finish();
            (place, server)
        }),
        pools: top.sections("pool", |section| (place(&section, None), pool(section, around))),
        peers: top.sections("peer", |section| (place(&section, None), peer(section, around))),
        broadcasts: top
            .sections("broadcast", |section| (place(&section, Some(GROUP)), broadcast(section, around))),
        broadcast_clients: top.sections("broadcast-client", |section| {
            (place(&section, None), broadcast_client(section, around))
        }),
        manycast_clients: top.sections("manycast-client", |section| {
            (place(&section, Some(GROUP)), manycast_client(section, around))
        }),
        manycast_servers: top.sections("manycast-server", |section| {
            (place(&section, Some(GROUP)), manycast_server(section, around))
        }),
    };
    read.report_surplus(top);
    read.report_repeats(top);
    read.into_sources()
}

/// Where a table's address is written, or the table itself where it is left to its default.
fn place(section: &Section<'_>, default: Option<IpAddr>) -> Option<Setting> {
    section.setting("address").or_else(|| section.absent("address", &default?.to_string()))
}

/// A server of default settings where a value is wrong: that is reported, and nothing comes of the rest.
fn server(section: &mut Section<'_>, around: Around<'_>) -> Server {
    let default = Server::new("");
    Server {
        address: required(section, "address", ADDRESS, host).unwrap_or_default(),
        port: section.integer("port", PORTS).unwrap_or(default.port),
        instance: around.instances.read(section),
        key: key(section, around.has_keys),
        version: section.integer("version", VERSIONS).unwrap_or(default.version),
        polling: polling(section),
        worth: worth(section),
    }
}

fn pool(mut section: Section<'_>, around: Around<'_>) -> Pool {
    let members = section.integer("members", 1..=POOL_MEMBERS_MAX.into());
    let pool = Pool { members: members.unwrap_or(Pool::MEMBERS), server: server(&mut section, around) };
    section.finish();
    pool
}

fn peer(mut section: Section<'_>, around: Around<'_>) -> Peer {
    let volley = section.boolean("volley").unwrap_or(true);
    let port_given = section.setting("port");
    let peer = Peer { volley, server: server(&mut section, around) };
    if let Some(setting) = port_given.filter(|_| peer.server.port != Server::new("").port) {
        section.report.invalid(setting, "123: peers speak from port 123 to port 123 (RFC 5905 section 9.2)");
    }
    section.finish();
    peer
}

fn broadcast(mut section: Section<'_>, around: Around<'_>) -> Broadcast {
    let place = section.value("address", |value| {
        let place = address(&value).filter(|place| !place.is_unspecified());
        place.filter(|place| is_for_many(*place) || place.is_ipv4()).ok_or_else(|| BROADCASTS.to_owned())
    });
    let default = Broadcast::new(place.unwrap_or(GROUP));
    let instance = around.instances.read(&mut section);
    let broadcast = Broadcast {
        port: section.integer("port", PORTS).unwrap_or(default.port),
        key: key(&mut section, around.has_keys),
        interval: section.integer("interval", POLLS).unwrap_or(default.interval),
        ttl: section.integer("ttl", TTLS).unwrap_or(default.ttl),
        interface: interface_towards_many(&mut section, around.instances.is_vrf(&instance)),
        instance,
        address: default.address,
    };
    section.finish();
    broadcast
}

fn broadcast_client(mut section: Section<'_>, around: Around<'_>) -> BroadcastClient {
    // Which addresses are broadcast addresses the machine knows; an IPv6 one is a group or nothing.
    let address = required(&mut section, "address", LISTENED, |value| {
        address(value).filter(|address| address.is_ipv4() || address.is_multicast())
    });
    let heard = BroadcastClient {
        address: address.unwrap_or(BroadcastClient::ANY),
        instance: around.instances.read(&mut section),
        key: key(&mut section, around.has_keys),
        allow_unsigned: section.boolean("allow-unsigned").unwrap_or_default(),
        delay: section.value("delay", delay).flatten(),
        interface: interface(&mut section),
        worth: worth(&mut section),
    };
    section.finish();
    heard
}

fn manycast_client(mut section: Section<'_>, around: Around<'_>) -> ManycastClient {
    let default = ManycastClient::new(group(&mut section));
    let enough_given = section.setting("enough");
    let instance = around.instances.read(&mut section);
    let client = ManycastClient {
        address: default.address,
        key: key(&mut section, around.has_keys),
        allow_unsigned: section.boolean("allow-unsigned").unwrap_or_default(),
        enough: section.integer("enough", 1..=POOL_MEMBERS_MAX.into()).unwrap_or(default.enough),
        most: section.integer("most", 1..=POOL_MEMBERS_MAX.into()).unwrap_or(default.most),
        ttl: section.integer("ttl", TTLS).unwrap_or(default.ttl),
        timeout: section.integer("timeout", 4..=*POLLS.end()).unwrap_or(default.timeout),
        interface: interface_towards_many(&mut section, around.instances.is_vrf(&instance)),
        instance,
        polling: polling(&mut section),
        worth: worth(&mut section),
    };
    at_most(&mut section, enough_given, client.enough.into(), client.most.into(), "most");
    section.finish();
    client
}

fn manycast_server(mut section: Section<'_>, around: Around<'_>) -> ManycastServer {
    let server = ManycastServer {
        address: group(&mut section),
        instance: around.instances.read(&mut section),
        key: key(&mut section, around.has_keys),
        allow_unsigned: section.boolean("allow-unsigned").unwrap_or_default(),
        interface: interface(&mut section),
    };
    section.finish();
    server
}

pub(super) fn selection(mut section: Section<'_>) -> Selection {
    let default = Selection::default();
    let selection = Selection {
        min_sources: section.integer("min-sources", 1..=16).unwrap_or(default.min_sources),
        max_distance: section
            .value("max-distance", |value| length(&value, MILLISECOND..=DISTANCE_MAX))
            .unwrap_or(default.max_distance),
    };
    section.finish();
    selection
}

pub(super) fn clock(mut section: Section<'_>) -> ClockControl {
    let default = ClockControl::default();
    let clock = ClockControl {
        step_threshold: section
            .value("step-threshold", |value| {
                length_or_off(&value, MILLISECOND..=NtpDuration::from_seconds(3600))
            })
            .unwrap_or(default.step_threshold),
        panic_threshold: section
            .value("panic-threshold", |value| length(&value, SECOND..=NtpDuration::MAX))
            .unwrap_or(default.panic_threshold),
        first_step: section.choice("first-step").unwrap_or_default(),
        drift_file: section
            .value("drift-file", |value| absolute_path_or_off(value, "/var/lib/timeball/drift"))
            .flatten(),
    };
    section.finish();
    clock
}

fn polling(section: &mut Section<'_>) -> Polling {
    let default = Polling::default();
    let min_given = section.setting("min-poll");
    let max_given = section.setting("max-poll");
    let min_poll = section.integer("min-poll", POLLS);
    let max_poll = section.integer("max-poll", POLLS);
    // Who gives one of them moves the other along, unless that is given, too.
    let polling = Polling {
        min_poll: min_poll.unwrap_or_else(|| default.min_poll.min(max_poll.unwrap_or(default.max_poll))),
        max_poll: max_poll.unwrap_or_else(|| default.max_poll.max(min_poll.unwrap_or(default.min_poll))),
        iburst: section.boolean("iburst").unwrap_or_default(),
        burst: section.boolean("burst").unwrap_or_default(),
    };
    if max_given.is_some() {
        at_most(section, min_given, polling.min_poll.into(), polling.max_poll.into(), "max-poll");
    }
    polling
}

fn worth(section: &mut Section<'_>) -> Worth {
    let limit = MICROSECOND..=DISTANCE_MAX;
    Worth {
        prefer: section.boolean("prefer").unwrap_or_default(),
        trust: section.boolean("trust").unwrap_or_default(),
        require: section.boolean("require").unwrap_or_default(),
        noselect: section.boolean("noselect").unwrap_or_default(),
        offset: section.value("offset", |value| offset(&value)).unwrap_or_default(),
        max_distance: section
            .value("max-distance", |value| length_or_off(&value, MILLISECOND..=DISTANCE_MAX))
            .flatten(),
        max_delay: section.value("max-delay", |value| length_or_off(&value, limit.clone())).flatten(),
        max_jitter: section.value("max-jitter", |value| length_or_off(&value, limit)).flatten(),
    }
}

fn at_most(section: &mut Section<'_>, given: Option<Setting>, value: i64, most: i64, other: &str) {
    if let Some(setting) = given.filter(|_| value > most) {
        section.report.invalid(setting, format!("at most {other}, which is {most}"));
    }
}

/// A key that its table must have.
fn required<T>(
    section: &mut Section<'_>,
    key: &'static str,
    allowed: &str,
    convert: impl FnOnce(&Value) -> Option<T>,
) -> Option<T> {
    if !section.has(key) {
        section.report_missing(key, allowed);
    }
    section.value(key, |value| convert(&value).ok_or_else(|| allowed.to_owned()))
}

fn address(value: &Value) -> Option<IpAddr> {
    match value {
        Value::Text(text) => text.parse().ok(),
        _ => None,
    }
}

fn is_for_many(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
}

fn group(section: &mut Section<'_>) -> IpAddr {
    let group = section.value("address", |value| {
        address(&value).filter(IpAddr::is_multicast).ok_or_else(|| GROUPS.to_owned())
    });
    group.unwrap_or(GROUP)
}

fn key(section: &mut Section<'_>, has_keys: bool) -> Option<KeyId> {
    let given = section.setting("key");
    let convert = |value: Value| match &value {
        Value::Text(text) if text == "off" => Ok(None),
        _ => integer(&value, &(1..=u32::MAX.into()))
            .map(KeyId::new)
            .map_err(|range| format!(r#""off", or the id of a key, {range}"#)),
    };
    let key = section.value("key", convert).flatten()?;
    if let (false, Some(setting)) = (has_keys, given) {
        section.report.invalid(setting, r#""off" where keys.file gives no keys"#);
    }
    Some(key)
}

/// On which interface is listened; `None`: on all.
fn interface(section: &mut Section<'_>) -> Option<String> {
    interface_or_any(section).flatten()
}

/// Through which interface is sent to many; `None`: routing decides. A VRF has to name one: the kernel looks for a group's way
/// among the routes of no VRF, and for a broadcast address there first, and so would send to another network.
fn interface_towards_many(section: &mut Section<'_>, is_in_vrf: bool) -> Option<String> {
    let given = section.setting("interface");
    let read = interface_or_any(section);
    if is_in_vrf {
        match (given, &read) {
            (None, _) => section.report_missing("interface", INTERFACE_IN_VRF),
            (Some(setting), Some(None)) => section.report.invalid(setting, INTERFACE_IN_VRF),
            _ => {}
        }
    }
    read.flatten()
}

fn interface_or_any(section: &mut Section<'_>) -> Option<Option<String>> {
    let convert = |value| match value {
        Value::Text(text) if text == "any" => Ok(None),
        Value::Text(text) if is_interface_name(&text) => Ok(Some(text)),
        _ => Err(r#""any", or an interface name of 1 to 15 characters without / : or spaces"#.to_owned()),
    };
    section.value("interface", convert)
}

fn delay(value: Value) -> Converted<Option<NtpDuration>> {
    match &value {
        Value::Text(text) if text == "measure" => Ok(None),
        _ => length(&value, NtpDuration::ZERO..=SECOND)
            .map(Some)
            .map_err(|range| format!(r#""measure", or {range}"#)),
    }
}

fn offset(value: &Value) -> Converted<NtpDuration> {
    let parsed = match value {
        Value::Text(text) => duration::parse_signed(text),
        _ => None,
    };
    parsed
        .filter(|offset| offset.magnitude() <= SECOND)
        .ok_or_else(|| r#""-1s" to "1s", in quotes, with a unit: ns, us, ms, s"#.to_owned())
}

fn length(value: &Value, range: RangeInclusive<NtpDuration>) -> Converted<NtpDuration> {
    let parsed = match value {
        Value::Text(text) => duration::parse(text),
        _ => None,
    };
    parsed.filter(|length| range.contains(length)).ok_or_else(|| {
        let end =
            if *range.end() == NtpDuration::MAX { "24855day".into() } else { duration::text(*range.end()) };
        let start = duration::text(*range.start());
        format!(r#""{start}" to "{end}", in quotes, with a unit: ns, us, ms, s, min, h, day"#)
    })
}

fn length_or_off(value: &Value, range: RangeInclusive<NtpDuration>) -> Converted<Option<NtpDuration>> {
    match value {
        Value::Text(text) if text == "off" => Ok(None),
        _ => length(value, range).map(Some).map_err(|range| format!(r#""off", or {range}"#)),
    }
}
