//! Configuration files and flags, as a user meets them: what loads, what it comes to, and every message.

use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use timeball::auth::KeyId;
use timeball::config::{
    Access, Broadcast, BroadcastClient, Clients, ClockControl, Config, DEFAULT_SOCKET, Datapath,
    FirstStepPolicy, Instance, Interface, Keys, LogLevel, ManycastClient, ManycastServer, Metrics, Overrides,
    PassivePeersPolicy, Peer, Policy, Polling, Pool, Problem, RateLimit, Reference, ReferenceFlag,
    ReferenceId, Selection, Server, Source, Sources, TrustedKeys, Vlan, Workers, Worth, XdpMode,
    file_to_load, socket_to_ask,
};
use timeball::time::NtpDuration;

const EXAMPLE: &str = include_str!("../scripts/timeball.example.toml");

fn parse_with(text: &str, overrides: &Overrides) -> Result<Config, String> {
    Config::parse(Path::new("timeball.toml"), text, overrides).map_err(|problems| problems.to_string())
}

fn parse(text: &str) -> Result<Config, String> {
    parse_with(text, &Overrides::default())
}

fn flags(interfaces: &[&str]) -> Overrides {
    Overrides { interfaces: interfaces.iter().map(|&name| name.to_owned()).collect(), ..Overrides::default() }
}

fn names(config: &Config) -> Vec<&str> {
    config.interfaces.iter().map(|interface| interface.name.as_str()).collect()
}

#[test]
fn an_empty_file_is_the_default() {
    assert_eq!(parse(""), Ok(Config::default()));
    assert_eq!(Config::load(None, &Overrides::default()).expect("defaults are right"), Config::default());
}

/// What is copied from there must work; the key file has a chapter of its own.
#[test]
fn what_the_readme_shows_is_right() {
    let readme = include_str!("../README.md");
    let blocks: Vec<&str> =
        readme.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 5, "{} examples", blocks.len());
    for block in blocks {
        let keys = if block.contains("\nkey = ") { "[keys]\nfile = \"/k\"\n" } else { "" };
        parse(&format!("{block}{keys}")).unwrap_or_else(|told| panic!("{block}\n{told}"));
    }
}

#[test]
fn the_example_spells_out_the_defaults() {
    let expected = Config {
        reference: Some(Reference::new(Source::Local)),
        configured_instances: vec![Instance::default()],
        interfaces: vec![Interface::new("eth0")],
        sources: Sources {
            servers: vec![Server::new("ntp1.example.org")],
            pools: vec![Pool { members: 4, server: Server::new("pool.example.org") }],
            peers: vec![Peer { volley: true, server: Server::new("192.0.2.7") }],
            broadcasts: vec![Broadcast::new([192, 0, 2, 255].into())],
            broadcast_clients: vec![BroadcastClient::new(BroadcastClient::ANY)],
            manycast_clients: vec![ManycastClient::new([224, 0, 1, 1].into())],
            manycast_servers: vec![ManycastServer::new([224, 0, 1, 1].into())],
        },
        ..Config::default()
    };
    assert_eq!(parse(EXAMPLE), Ok(expected));
}

/// The printed configuration has every key, so a key that the example lacks shows here.
#[test]
fn the_example_has_every_key() {
    let printed = parse(EXAMPLE).expect("the example loads").to_toml().expect("it prints");
    let keys = |text: &str| -> Vec<String> {
        let assignments = text.lines().filter(|line| !line.starts_with('#'));
        let mut keys: Vec<_> =
            assignments.filter_map(|line| Some(line.split_once(" =")?.0.to_owned())).collect();
        keys.sort();
        keys
    };
    assert_eq!(keys(EXAMPLE), keys(&printed));
}

#[test]
fn every_key_is_read() {
    let prefixes = |text: &str| vec![text.parse().expect("a prefix")];
    let mut allow = prefixes("10.0.0.0/8");
    allow.extend(prefixes("2001:db8::/32"));
    let expected = Config {
        port: 1123,
        datapath: Datapath::AfXdp,
        workers: Workers::Count(2),
        cores: vec![1, 2],
        busy_poll: true,
        realtime_priority: None,
        socket: "/tmp/timeball.sock".into(),
        clock_control: false,
        kod: true,
        log: LogLevel::Debug,
        reference: Some(Reference {
            source: Source::Local,
            stratum: 1,
            reference_id: ReferenceId::Name(*b"GPS\0"),
        }),
        configured_instances: vec![
            Instance { netns: Some("/proc/1/ns/net".into()), ..Instance::default() },
            Instance { name: "blue".into(), vrf: Some("vrf-blue".into()), ..Instance::default() },
        ],
        interfaces: vec![
            Interface {
                name: "eth0".into(),
                instance: "default".into(),
                xdp_mode: XdpMode::Skb,
                zero_copy: false,
                nic_stamps: false,
                queues: vec![0, 3],
                vlans: vec![Vlan::Single(100), Vlan::Double { outer: 200, inner: 30 }],
                frames: 512,
                frame_size: 4096,
                hugepages: true,
                tx_timestamps: true,
            },
            Interface { instance: "blue".into(), ..Interface::new("eth1") },
        ],
        access: Access {
            default: Policy::Restrict,
            allow,
            deny: prefixes("10.1.0.0/16"),
            restrict: prefixes("10.2.0.0/16"),
            drop: prefixes("192.0.2.1/32"),
        },
        rate_limit: RateLimit {
            enabled: true,
            interval: NtpDuration::from_nanoseconds(1_500_000_000),
            burst: 1,
            leak: 0,
            ipv4_prefix: 24,
            ipv6_prefix: 56,
            clients: 1024,
        },
        clients: Clients { entries: 64 },
        metrics: Metrics { listen: Some("0.0.0.0:9124".parse().expect("an address")), allow_remote: true },
        keys: Keys {
            file: Some("/etc/timeball/timeball.keys".into()),
            allow_md5: true,
            trusted: TrustedKeys::Only(vec![key_id(1), key_id(4_294_967_295)]),
        },
        passive_peers: PassivePeersPolicy::Anyone,
        selection: Selection { min_sources: 2, max_distance: milliseconds(3000) },
        clock: ClockControl {
            step_threshold: None,
            panic_threshold: NtpDuration::from_seconds(86_400),
            first_step: FirstStepPolicy::AnySize,
            drift_file: Some("/var/lib/timeball/drift".into()),
        },
        sources: full_sources(),
    };
    assert_eq!(parse(include_str!("configs/full.toml")), Ok(expected));
}

const fn milliseconds(count: i64) -> NtpDuration {
    NtpDuration::from_nanoseconds(count * 1_000_000)
}

fn full_sources() -> Sources {
    let worth = Worth {
        prefer: true,
        trust: true,
        require: true,
        noselect: true,
        offset: milliseconds(-5),
        max_distance: Some(milliseconds(2000)),
        max_delay: Some(milliseconds(100)),
        max_jitter: Some(milliseconds(10)),
    };
    let server = Server {
        address: "fe80::1%eth0".into(),
        port: 1123,
        instance: "default".into(),
        key: Some(key_id(1)),
        version: 3,
        polling: Polling { min_poll: 0, max_poll: 17, iburst: true, burst: true },
        worth,
    };
    // One of the two bounds moves the other.
    let often = Polling { min_poll: 3, max_poll: 3, ..Polling::default() };
    let seldom = Polling { min_poll: 12, max_poll: 12, ..Polling::default() };
    let v6 = [0xff05, 0, 0, 0, 0, 0, 0, 0x101].into();
    Sources {
        pools: vec![Pool {
            members: 16,
            server: Server { polling: often, ..Server::new("pool.example.org") },
        }],
        peers: vec![Peer {
            volley: false,
            server: Server { version: 3, polling: seldom, ..Server::new("peer") },
        }],
        servers: vec![server, Server::new("192.0.2.1")],
        broadcasts: vec![Broadcast {
            port: 1123,
            key: Some(key_id(2)),
            interval: 3,
            ttl: 255,
            interface: Some("eth1".into()),
            ..Broadcast::new(v6)
        }],
        broadcast_clients: vec![BroadcastClient {
            key: Some(key_id(2)),
            allow_unsigned: true,
            delay: Some(milliseconds(2)),
            interface: Some("eth1".into()),
            worth: Worth { prefer: true, ..Worth::default() },
            ..BroadcastClient::new(v6)
        }],
        manycast_clients: vec![ManycastClient {
            key: Some(key_id(2)),
            allow_unsigned: true,
            enough: 2,
            most: 2,
            ttl: 3,
            timeout: 4,
            interface: Some("eth1".into()),
            polling: Polling { iburst: true, ..Polling::default() },
            worth: Worth::default(),
            instance: "default".into(),
            address: v6,
        }],
        manycast_servers: vec![ManycastServer {
            key: Some(key_id(2)),
            allow_unsigned: true,
            interface: Some("eth1".into()),
            instance: "default".into(),
            address: v6,
        }],
    }
}

#[test]
fn sources_are_refused_by_name_and_range() {
    let keys = "[keys]\nfile = \"/k\"\n";
    for (text, said) in [
        ("[[server]]\nport = 1", "1: server.address is missing, must be a name or an address"),
        ("[[server]]\naddress = \"1.2.3\"", "2: server.address = \"1.2.3\": must be a name or an address"),
        (
            "[[server]]\naddress = \"224.0.1.1\"",
            "2: server.address = \"224.0.1.1\": must be a name or an address of one host",
        ),
        (
            "[[peer]]\naddress = \"fe80::1\"",
            "2: peer.address = \"fe80::1\": must be a name or an address of one host",
        ),
        (
            "[[pool]]\naddress = \"2001:db8::1%eth0\"",
            "2: pool.address = \"2001:db8::1%eth0\": must be a name or an address of one host",
        ),
        (
            "[[server]]\naddress = \"a\"\nkey = 1",
            "3: server.key = 1: must be \"off\" where keys.file gives no keys",
        ),
        (
            "[[server]]\naddress = \"a\"\nkey = 0",
            "3: server.key = 0: must be \"off\", or the id of a key, 1 to 4294967295",
        ),
        (
            "[[server]]\naddress = \"a\"\nmin-poll = 8\nmax-poll = 7",
            "3: server.min-poll = 8: must be at most max-poll, which is 7",
        ),
        ("[[server]]\naddress = \"a\"\nversion = 5", "3: server.version = 5: must be 3 to 4"),
        ("[[peer]]\naddress = \"a\"\nversion = 2", "3: peer.version = 2: must be 3 to 4"),
        (
            "[[server]]\naddress = \"a\"\nminpoll = 8",
            "3: server.minpoll = 8: unknown key, did you mean server.min-poll?",
        ),
        (
            "[[server]]\naddress = \"a\"\noffset = \"2s\"",
            "3: server.offset = \"2s\": must be \"-1s\" to \"1s\"",
        ),
        (
            "[[server]]\naddress = \"a\"\nmax-delay = \"0s\"",
            "3: server.max-delay = \"0s\": must be \"off\", or \"1us\" to \"16s\"",
        ),
        ("[[pool]]\naddress = \"a\"\nmembers = 17", "3: pool.members = 17: must be 1 to 16"),
        ("[[peer]]\naddress = \"a\"\nport = 124", "3: peer.port = 124: must be 123"),
        (
            "[[broadcast]]\naddress = \"2001:db8::1\"",
            "2: broadcast.address = \"2001:db8::1\": must be a broadcast address",
        ),
        (
            "[[broadcast]]\naddress = \"0.0.0.0\"",
            "2: broadcast.address = \"0.0.0.0\": must be a broadcast address",
        ),
        ("[[broadcast]]\naddress = \"224.0.1.1\"\nttl = 0", "3: broadcast.ttl = 0: must be 1 to 255"),
        (
            "[[broadcast-client]]\naddress = \"::\"",
            "2: broadcast-client.address = \"::\": must be \"0.0.0.0\"",
        ),
        (
            "[[broadcast-client]]\naddress = \"0.0.0.0\"\ndelay = \"2s\"",
            "3: broadcast-client.delay = \"2s\": must be \"measure\", or \"0s\" to \"1s\"",
        ),
        (
            "[[manycast-client]]\naddress = \"10.0.0.1\"",
            "2: manycast-client.address = \"10.0.0.1\": must be a multicast group",
        ),
        (
            "[[manycast-client]]\naddress = \"224.0.1.1\"\nenough = 11",
            "3: manycast-client.enough = 11: must be at most most, which is 10",
        ),
        (
            "[[manycast-server]]\naddress = \"224.0.1.1\"\ninterface = \"a/b\"",
            "3: manycast-server.interface = \"a/b\": must be \"any\"",
        ),
        ("[selection]\nmin-sources = 0", "2: selection.min-sources = 0: must be 1 to 16"),
        (
            "[clock]\npanic-threshold = \"1ms\"",
            "2: clock.panic-threshold = \"1ms\": must be \"1s\" to \"24855day\"",
        ),
        (
            "[clock]\ndrift-file = \"drift\"",
            "2: clock.drift-file = \"drift\": must be \"off\", or an absolute path",
        ),
        (
            "passive-peers = \"yes\"",
            "1: passive-peers = \"yes\": must be \"refused\", \"authenticated\" or \"anyone\"",
        ),
    ] {
        let told = parse(text).expect_err(text);
        assert!(
            told.starts_with(&format!("timeball.toml:{said}")) && told.lines().count() == 1,
            "{text}:\n{told}"
        );
    }
    assert!(parse(&format!("{keys}[[server]]\naddress = \"a\"\nkey = 1")).is_ok());
}

/// The controller has room for so many, and would leave the others out.
#[test]
fn there_may_be_1024_sources() {
    let server = |number: usize| format!("[[server]]\naddress = \"s{number}\"\n");
    let many: String = (0..1024).map(server).collect();
    assert_eq!(parse(&many).expect("the most there may be").sources.len(), 1024);
    assert_eq!(
        parse(&format!("{many}[[peer]]\naddress = \"p\"\n")).expect_err("one more"),
        "timeball.toml:2050: peer.address = \"p\": must be left out: there may be 1024 tables of sources at most"
    );
}

/// The second would be left out, whatever it says.
#[test]
fn a_source_is_configured_once() {
    let twice = |first: &str, second: &str| {
        let told = parse(&format!("{first}\n{second}\n")).err();
        told.map(|told| told.lines().map(str::to_owned).collect::<Vec<_>>())
    };
    let server = "[[server]]\naddress = \"192.0.2.1\"";
    assert_eq!(
        twice(server, "[[peer]]\naddress = \"::ffff:192.0.2.1\"").expect("two tables, one server"),
        [
            "timeball.toml:4: peer.address = \"::ffff:192.0.2.1\": must be given once, but is server.address at \
          timeball.toml:2 already"
        ]
    );
    assert_eq!(
        twice("[[broadcast]]", "[[broadcast]]\naddress = \"224.0.1.1\"").expect("NTP's group twice"),
        [
            "timeball.toml:3: broadcast.address = \"224.0.1.1\": must be given once, but is broadcast.address at \
          timeball.toml:1 already"
        ]
    );
    for (first, second) in [
        ("[[server]]\naddress = \"fe80::1%eth0\"", "[[pool]]\naddress = \"fe80::1%eth0\""),
        (
            "[[broadcast-client]]\naddress = \"0.0.0.0\"",
            "[[broadcast-client]]\naddress = \"0.0.0.0\"\ndelay = \"1ms\"",
        ),
        ("[[manycast-client]]", "[[manycast-client]]\nenough = 1"),
        ("[[manycast-server]]", "[[manycast-server]]\nallow-unsigned = true"),
    ] {
        assert_eq!(twice(first, second).map(|told| told.len()), Some(1), "{first} {second}");
    }
    // One name may lead to many; the others are two.
    for (first, second) in [
        ("[[server]]\naddress = \"a\"", "[[server]]\naddress = \"a\""),
        (server, "[[server]]\naddress = \"192.0.2.1\"\nport = 1123"),
        ("[[server]]\naddress = \"fe80::1%eth0\"", "[[server]]\naddress = \"fe80::1%eth1\""),
        ("[[broadcast]]", "[[broadcast]]\ninterface = \"eth0\""),
        ("[[manycast-client]]", "[[manycast-server]]"),
    ] {
        assert_eq!(twice(first, second), None, "{first} {second}");
    }
}

/// RFC 5905 section 3.1: 224.0.1.1 is NTP's.
#[test]
fn a_group_that_is_not_named_is_ntps_own() {
    let sources = parse("[[broadcast]]\n[[manycast-client]]\n[[manycast-server]]\n").expect("right").sources;
    let group: IpAddr = [224, 0, 1, 1].into();
    assert_eq!(sources.broadcasts[0].address, group);
    assert_eq!((sources.manycast_clients[0].address, sources.manycast_servers[0].address), (group, group));
    let told = parse("[[broadcast-client]]\n").expect_err("a broadcast or a group?");
    assert!(told.starts_with("timeball.toml:1: broadcast-client.address is missing"), "{told}");
}

#[test]
fn only_one_keeps_the_clock() {
    let server = "[[server]]\naddress = \"a\"\n";
    let system = "[reference]\nsource = \"system\"\n";
    let told = parse(&format!("{system}{server}")).expect_err("two keepers");
    assert!(
        told.starts_with("timeball.toml:1: reference.source = \"system\": must be \"local\", or absent"),
        "{told}"
    );
    assert!(parse(&format!("clock-control = false\n{system}{server}")).is_ok());
    assert!(parse(&format!("{system}[[broadcast]]\naddress = \"224.0.1.1\"")).is_ok(), "we only tell");
    let flag = Overrides { reference: Some(ReferenceFlag::System), ..Overrides::default() };
    let told = parse_with(server, &flag).expect_err("two keepers");
    assert!(told.starts_with("--reference system: must be"), "{told}");
}

#[test]
fn upstream_flags_add_servers_that_are_asked_at_once() {
    let overrides = Overrides {
        upstreams: vec![("ntp.example.org".into(), 123), ("2001:db8::1".into(), 1123)],
        ..Overrides::default()
    };
    let config = parse_with("[[server]]\naddress = \"192.0.2.1\"", &overrides).expect("right");
    let told: Vec<_> = config
        .sources
        .servers
        .iter()
        .map(|one| (one.address.as_str(), one.port, one.polling.iburst))
        .collect();
    assert_eq!(
        told,
        [("192.0.2.1", 123, false), ("ntp.example.org", 123, true), ("2001:db8::1", 1123, true)]
    );
}

fn key_id(number: u32) -> KeyId {
    KeyId::new(number).expect("not 0")
}

#[test]
fn keys_are_refused_by_name_and_range() {
    let wrong = |line: &str| parse(&format!("[keys]\n{line}")).expect_err("it is wrong");
    let file = r#""off", or an absolute path in quotes, like "/etc/timeball/timeball.keys""#;
    for value in [r#""timeball.keys""#, r#""""#, "1", "true"] {
        let said = wrong(&format!("file = {value}"));
        assert_eq!(said, format!("timeball.toml:2: keys.file = {value}: must be {file}"));
    }
    let ids = r#""all", or a list of key ids, each once, 1 to 4294967295: [1, 2]"#;
    for value in [r#""none""#, "1", "[0]", "[4294967296]", "[1, 1]", r#"["1"]"#] {
        let said = wrong(&format!("trusted = {value}\nfile = \"/k\""));
        assert_eq!(said, format!("timeball.toml:2: keys.trusted = {value}: must be {ids}"));
    }
    let said = wrong("trusted = [1]");
    assert_eq!(said, "timeball.toml:2: keys.trusted = [1]: must be \"all\" where keys.file gives no keys");
    assert_eq!(wrong("allow-md5 = 1"), "timeball.toml:2: keys.allow-md5 = 1: must be true or false");
    assert!(wrong("allow_md5 = true").contains("did you mean keys.allow-md5?"));
}

#[test]
fn all_errors_are_reported_in_the_order_of_the_file() {
    let text = include_str!("configs/many-errors.toml");
    let problems = Config::parse(Path::new("timeball.toml"), text, &Overrides::default());
    let problems = problems.expect_err("it is full of errors").0;
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let expected: Vec<&str> = include_str!("configs/many-errors.expected").lines().collect();
    assert_eq!(lines, expected);
}

#[test]
fn syntax_errors_name_their_lines() {
    let text = parse(include_str!("configs/syntax-errors.toml")).expect_err("it is no TOML");
    assert!(text.starts_with("timeball.toml:1: port = = 123: not TOML: "), "{text}");
    assert!(text.contains("\ntimeball.toml:3: log = \"info: not TOML: "), "{text}");
    assert!(text.contains("\ntimeball.toml:4: kod = false: not TOML: duplicate key"), "{text}");
}

#[test]
fn an_interface_table_with_single_brackets_is_explained() {
    let text = parse("[interface]\nname = \"eth0\"").expect_err("one interface is a list of one");
    assert_eq!(
        text,
        "timeball.toml:1: interface = {...}: must be a table for each, with double brackets: [[interface]]"
    );
}

#[test]
fn reference_defaults_follow_source_and_stratum() {
    let cases = [
        ("source = \"local\"", 10, ReferenceId::NOBODY),
        ("source = \"system\"", 3, ReferenceId::NOBODY),
        ("source = \"local\"\nstratum = 1", 1, ReferenceId::LOCAL),
        ("source = \"system\"\nstratum = 1", 1, ReferenceId::KERNEL),
        ("source = \"system\"\nstratum = 1\nreference-id = \"1.2.3.4\"", 1, {
            ReferenceId::Address([1, 2, 3, 4].into())
        }),
    ];
    for (keys, stratum, reference_id) in cases {
        let reference = parse(&format!("[reference]\n{keys}")).expect(keys).reference.expect(keys);
        assert_eq!((reference.stratum, reference.reference_id), (stratum, reference_id), "{keys}");
    }
    assert_eq!(parse("[reference]").expect("an empty table is none").reference, None);
    let text = parse("[reference]\nsource = \"local\"\nreference-id = \"GPS\"").expect_err("stratum is 10");
    assert!(
        text.starts_with("timeball.toml:3: reference.reference-id = \"GPS\": must be a dotted quad"),
        "{text}"
    );
}

#[test]
fn a_rate_limit_table_turns_the_limit_on_unless_it_says_no() {
    assert!(!parse("").expect("right").rate_limit.enabled);
    assert!(parse("[rate-limit]").expect("right").rate_limit.enabled);
    assert!(!parse("[rate-limit]\nenabled = false").expect("right").rate_limit.enabled);
    let limit = parse("[rate-limit]\nclients = 1000000").expect("right").rate_limit;
    assert_eq!((limit.clients, limit.slots()), (1_000_000, 1 << 20));
}

#[test]
fn ranges_hold_at_both_ends() {
    let cases = [
        ("", "port", 1, 65_535),
        ("", "workers", 0, 64),
        ("", "realtime-priority", 1, 99),
        ("[rate-limit]\n", "burst", 1, 1023),
        ("[rate-limit]\n", "leak", 0, 1024),
        ("[rate-limit]\n", "ipv4-prefix", 8, 32),
        ("[rate-limit]\n", "ipv6-prefix", 16, 128),
        ("[rate-limit]\n", "clients", 1024, 268_435_456),
        ("[reference]\nsource = \"local\"\n", "stratum", 1, 15),
        ("[[interface]]\nname = \"a\"\n", "frames", 512, 65_536),
        ("[clients]\n", "entries", 64, 1_048_576),
    ];
    for (before, key, lowest, highest) in cases {
        for (value, is_right) in [(lowest - 1, false), (lowest, true), (highest, true), (highest + 1, false)]
        {
            let result = parse(&format!("{before}{key} = {value}"));
            assert_eq!(result.is_ok(), is_right, "{key} = {value}: {result:?}");
        }
    }
    for (interval, is_right) in [("999us", false), ("1ms", true), ("1day", true), ("86401s", false)] {
        let result = parse(&format!("[rate-limit]\ninterval = \"{interval}\""));
        assert_eq!(result.is_ok(), is_right, "{interval}: {result:?}");
    }
}

#[test]
fn a_prefix_may_repeat_in_its_list_but_not_in_another() {
    let net = "\"192.0.2.0/24\"";
    assert!(parse(&format!("[access]\ndeny = [{net}, {net}]")).is_ok());
    let text = parse(&format!("[access]\nallow = [{net}]\ndeny = [{net}]")).expect_err("allow or deny?");
    assert_eq!(
        text,
        "timeball.toml:3: access.deny = \"192.0.2.0/24\": must be given once, but is access.allow at \
         timeball.toml:2 already"
    );
}

#[test]
fn af_xdp_needs_an_interface() {
    let text = parse("datapath = \"af-xdp\"").expect_err("no interface");
    assert_eq!(
        text,
        "timeball.toml:1: datapath = \"af-xdp\": must be auto or socket where no interface is given"
    );
    assert!(parse("datapath = \"af-xdp\"\ninterface = []").is_err());
    assert!(parse_with("datapath = \"af-xdp\"", &flags(&["eth0"])).is_ok());
}

#[test]
fn a_real_time_priority_is_for_workers_that_sleep() {
    assert_eq!(parse("realtime-priority = 50").expect("right").realtime_priority, Some(50));
    assert_eq!(parse("realtime-priority = \"off\"").expect("right").realtime_priority, None);
    assert!(parse("realtime-priority = \"off\"\nbusy-poll = true\nworkers = 0").is_ok());
    for (wrong, message) in [
        ("realtime-priority = 0", "1: realtime-priority = 0: must be \"off\" or 1 to 99"),
        ("realtime-priority = \"high\"", "1: realtime-priority = \"high\": must be \"off\" or 1 to 99"),
        (
            "busy-poll = true\nrealtime-priority = 1",
            "2: realtime-priority = 1: must be \"off\" with busy-poll = true: who spins at such a priority leaves its CPU \
             to nobody, the kernel's own work included",
        ),
        (
            "realtime-priority = 99\nworkers = 0",
            "1: realtime-priority = 99: must be \"off\" with workers = 0: there is no worker, and all else is to be \
             ordinary",
        ),
    ] {
        assert_eq!(parse(wrong).expect_err(wrong), format!("timeball.toml:{message}"));
    }
}

#[test]
fn flags_alone_make_a_configuration() {
    let overrides = Overrides {
        reference: Some(ReferenceFlag::LocalStratum(10)),
        datapath: Some("socket".into()),
        no_clock_control: true,
        port: Some(1123),
        socket: Some("/tmp/s".into()),
        ..flags(&["eth0", "eth1"])
    };
    let expected = Config {
        reference: Some(Reference::new(Source::Local)),
        datapath: Datapath::Socket,
        clock_control: false,
        port: 1123,
        socket: "/tmp/s".into(),
        interfaces: vec![Interface::new("eth0"), Interface::new("eth1")],
        ..Config::default()
    };
    assert_eq!(Config::load(None, &overrides).expect("the flags are right"), expected);
}

#[test]
fn errors_name_the_flag_and_flags_hide_the_file() {
    let overrides = Overrides {
        reference: Some(ReferenceFlag::LocalStratum(0)),
        port: Some(65_536),
        socket: Some("s".into()),
        ..flags(&["eth0/1"])
    };
    let text = parse_with("port = 0\nkod = 1", &overrides).expect_err("nothing in it is right");
    let expected = "\
        --interface eth0/1: must be an interface name of 1 to 15 characters without / : or spaces\n\
        --local-stratum 0: must be 1 to 15\n\
        --port 65536: must be 1 to 65535\n\
        --socket s: must be an absolute path of at most 107 bytes\n\
        timeball.toml:2: kod = 1: must be true or false";
    assert_eq!(text, expected);
}

#[test]
fn interface_flags_choose_among_the_file_s_and_add_new_ones() {
    let file = "[[interface]]\nname = \"eth0\"\nframes = 512\n[[interface]]\nname = \"eth1\"";
    let config = parse_with(file, &flags(&["eth2", "eth0", "eth0"])).expect("right");
    assert_eq!(names(&config), ["eth0", "eth2"]);
    assert_eq!(config.interfaces[0].frames, 512);
    let wrong = format!("{file}\nframes = 1");
    assert!(parse_with(&wrong, &flags(&["eth0"])).is_err(), "what is left out is checked all the same");
}

#[test]
fn reference_flags_keep_the_file_s_settings_for_the_same_source_only() {
    let file = "[reference]\nsource = \"system\"\nstratum = 2\nreference-id = \"192.0.2.1\"";
    let with = |reference| {
        let overrides = Overrides { reference: Some(reference), ..Overrides::default() };
        parse_with(file, &overrides).expect("right").reference.expect("there is one")
    };
    assert_eq!(with(ReferenceFlag::System).stratum, 2);
    assert_eq!(with(ReferenceFlag::LocalStratum(10)), Reference::new(Source::Local));
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let load = |path: &Path| {
        let problems = Config::load(Some(path), &Overrides::default()).expect_err("it is no file of ours");
        assert_eq!(problems.0.len(), 1, "{problems}");
        assert!(problems.to_string().starts_with(&path.display().to_string()), "{problems}");
        problems.0.into_iter().next().expect("there is one")
    };
    assert!(matches!(load(&directory.path().join("absent")), Problem::Unreadable { .. }));
    assert!(matches!(load(directory.path()), Problem::Unreadable { .. }));
    assert!(matches!(load(Path::new("/dev/zero")), Problem::TooLarge { .. }));
    let latin1 = directory.path().join("latin1.toml");
    std::fs::write(&latin1, b"kod = true\n# caf\xe9").expect("it can be written");
    let expected = format!("{}:2: # caf: not TOML: what follows is not UTF-8", latin1.display());
    assert_eq!(load(&latin1).to_string(), expected);
}

#[test]
fn the_default_file_is_used_without_interface_flag_and_if_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let default = directory.path().join("timeball.toml");
    let none = Overrides::default();
    let given = Path::new("given.toml");
    assert_eq!(file_to_load(None, &none, &default), None);
    assert_eq!(socket_to_ask(None, &default), Path::new(DEFAULT_SOCKET));
    std::fs::write(&default, "socket = \"/tmp/other\"").expect("it can be written");
    assert_eq!(file_to_load(None, &none, &default), Some(default.clone()));
    assert_eq!(file_to_load(None, &flags(&["eth0"]), &default), None);
    assert_eq!(file_to_load(Some(given), &flags(&["eth0"]), &default), Some(given.to_owned()));
    assert_eq!(socket_to_ask(None, &default), Path::new("/tmp/other"));
    assert_eq!(socket_to_ask(Some("/flag"), &default), Path::new("/flag"));
}

fn any_reference() -> impl Strategy<Value = Reference> {
    let source = prop_oneof![Just(Source::Local), Just(Source::System)];
    let address = any::<[u8; 4]>().prop_map(|octets| ReferenceId::Address(octets.into()));
    let name = "[!-~]{1,4}".prop_map(|text| {
        let mut name = [0; 4];
        name[..text.len()].copy_from_slice(text.as_bytes());
        ReferenceId::Name(name)
    });
    let stratum_and_id =
        prop_oneof![(Just(1), name), (1_u8..=15, address)].prop_map(|(stratum, id)| (stratum, id));
    (source, stratum_and_id).prop_map(|(source, (stratum, reference_id))| Reference {
        source,
        stratum,
        reference_id,
    })
}

fn any_interface() -> impl Strategy<Value = Interface> {
    let mode = prop_oneof![Just(XdpMode::Auto), Just(XdpMode::Driver), Just(XdpMode::Skb)];
    let id = 1_u16..=4094;
    let vlan = prop_oneof![
        id.clone().prop_map(Vlan::Single),
        (id.clone(), id).prop_map(|(outer, inner)| Vlan::Double { outer, inner })
    ];
    let queues = prop::collection::btree_set(0_u16..=4095, 0..4);
    let vlans = prop::collection::btree_set(vlan, 0..4);
    (mode, any::<[bool; 4]>(), queues, vlans, 9_u32..=16, 11_u32..=12).prop_map(
        |(xdp_mode, [zero_copy, nic_stamps, hugepages, tx_timestamps], queues, vlans, frames, frame_size)| {
            Interface {
                name: String::new(),
                instance: "default".into(),
                xdp_mode,
                zero_copy,
                nic_stamps,
                queues: queues.into_iter().collect(),
                vlans: vlans.into_iter().collect(),
                frames: 1 << frames,
                frame_size: 1 << frame_size,
                hugepages,
                tx_timestamps,
            }
        },
    )
}

fn any_access() -> impl Strategy<Value = Access> {
    let default =
        prop_oneof![Just(Policy::Allow), Just(Policy::Deny), Just(Policy::Restrict), Just(Policy::Drop)];
    // The first octets keep the lists apart.
    let net = |octet: u8| {
        let v4 = (any::<[u8; 3]>(), 8_u8..=32).prop_map(move |([b, c, d], length)| {
            ipnet::IpNet::new([octet, b, c, d].into(), length).expect("a length of IPv4").trunc()
        });
        let v6 = (any::<u64>(), 16_u8..=128).prop_map(move |(low, length)| {
            let bits = (0x2000_u128 + u128::from(octet)) << 112 | u128::from(low);
            ipnet::IpNet::new(std::net::Ipv6Addr::from(bits).into(), length)
                .expect("a length of IPv6")
                .trunc()
        });
        prop::collection::vec(prop_oneof![v4, v6], 0..4)
    };
    (default, net(10), net(11), net(12), net(13)).prop_map(|(default, allow, deny, restrict, drop)| Access {
        default,
        allow,
        deny,
        restrict,
        drop,
    })
}

fn any_rate_limit() -> impl Strategy<Value = RateLimit> {
    let nanoseconds =
        prop_oneof![1_000_000_i64..=86_400_000_000_000, (1_i64..=86_400).prop_map(|s| s * 1_000_000_000)];
    (any::<bool>(), nanoseconds, 1_u16..=1023, 0_u16..=1024, 8_u8..=32, 16_u8..=128, 1024_u32..=1 << 28)
        .prop_map(|(enabled, nanoseconds, burst, leak, ipv4_prefix, ipv6_prefix, clients)| RateLimit {
            enabled,
            interval: NtpDuration::from_nanoseconds(nanoseconds),
            burst,
            leak,
            ipv4_prefix,
            ipv6_prefix,
            clients,
        })
}

fn any_metrics() -> impl Strategy<Value = Metrics> {
    let address = prop_oneof![Just("127.0.0.1"), Just("::1"), Just("192.0.2.1"), Just("2001:db8::1")];
    let address = address.prop_map(|text| text.parse::<IpAddr>().expect("an address"));
    prop::option::of((address, 1_u16..)).prop_map(|listen| {
        let listen = listen.map(SocketAddr::from);
        Metrics { listen, allow_remote: listen.is_some_and(|listen| !listen.ip().is_loopback()) }
    })
}

fn any_config() -> impl Strategy<Value = Config> {
    let workers = prop_oneof![Just(Workers::Auto), (0_u8..=64).prop_map(Workers::Count)];
    let datapath = prop_oneof![Just(Datapath::Auto), Just(Datapath::Socket)];
    let log =
        prop_oneof![Just(LogLevel::Error), Just(LogLevel::Warn), Just(LogLevel::Info), Just(LogLevel::Debug)];
    let priority = prop::option::of(1_u8..=99);
    let scalars = (1_u16..=65_535, datapath, workers, any::<[bool; 3]>(), priority, log, "/\\PC{0,20}");
    let cores = prop::collection::btree_set(0_u16..=1023, 0..4);
    let interfaces = prop::collection::vec(any_interface(), 0..3);
    let tables = (
        prop::option::of(any_reference()),
        interfaces,
        any_access(),
        any_rate_limit(),
        (6_u32..=20).prop_map(|log2| Clients { entries: 1 << log2 }),
        any_metrics(),
        any_keys(),
        prop::option::of(Just(full_sources())),
        any_instances(),
    );
    (scalars, cores, tables).prop_map(|(scalars, cores, tables)| {
        let (port, datapath, workers, [busy_poll, clock_control, kod], priority, log, socket) = scalars;
        let realtime_priority = priority.filter(|_| !busy_poll && workers != Workers::Count(0));
        let (reference, mut interfaces, access, rate_limit, clients, metrics, keys, sources, instances) =
            tables;
        let has_keys = keys.file.is_some();
        for (number, interface) in interfaces.iter_mut().enumerate() {
            interface.name = format!("eth{number}");
        }
        Config {
            port,
            datapath,
            workers,
            cores: cores.into_iter().collect(),
            busy_poll,
            realtime_priority,
            socket: socket.into(),
            clock_control,
            kod,
            log,
            reference,
            configured_instances: instances,
            interfaces,
            access,
            rate_limit,
            clients,
            metrics,
            keys,
            passive_peers: PassivePeersPolicy::Refused,
            // The other properties of sources have a test of their own, with and without keys.
            selection: Selection { min_sources: 3, ..Selection::default() },
            clock: ClockControl::default(),
            sources: sources.filter(|_| has_keys && !clock_control).unwrap_or_default(),
        }
    })
}

fn any_instances() -> impl Strategy<Value = Vec<Instance>> {
    let netns = prop::option::of(prop_oneof!["[a-z0-9 .]{2,8}x", "/\\PC{0,20}"]);
    let several = (netns, prop::option::of("[a-z]{1,8}")).prop_map(|(netns, vrf)| {
        let named = |name: &str| Instance { name: name.to_owned(), ..Instance::default() };
        let vrf = Instance { vrf: vrf.map(|name| format!("vrf-{name}")), ..named("red_1.x-") };
        let netns = Instance { netns, ..Instance::default() };
        // Two of the same place are refused.
        if vrf.vrf.is_none() && netns.netns.is_none() { vec![netns] } else { vec![netns, vrf] }
    });
    prop::option::of(several).prop_map(Option::unwrap_or_default)
}

fn any_keys() -> impl Strategy<Value = Keys> {
    let ids = prop::collection::btree_set(1_u32.., 0..4)
        .prop_map(|ids| TrustedKeys::Only(ids.into_iter().map(key_id).collect()));
    let trusted = prop_oneof![Just(TrustedKeys::All), ids];
    let keys = (prop::option::of("/\\PC{0,20}"), any::<bool>(), trusted);
    keys.prop_map(|(file, allow_md5, trusted)| Keys {
        trusted: if file.is_some() { trusted } else { TrustedKeys::All },
        file: file.map(Into::into),
        allow_md5,
    })
}

/// The example with a few of its bytes or lines changed, or any text at all.
fn any_text() -> impl Strategy<Value = String> {
    let line = any::<prop::sample::Index>();
    let replacement = prop_oneof![
        "[a-z-]{1,8} = \\PC{0,12}",
        "\\[{1,2}[a-z.-]{0,8}\\]{0,2}",
        Just(format!("{}1", "[".repeat(300))),
        Just(format!("a{} = 1", ".a".repeat(300))),
        Just("port = 0xffffffffffffffffffff".to_owned()),
        Just("port = 1e400".to_owned()),
        Just("cores = [[[1]], {a = 1}, 1979-05-27]".to_owned()),
        "\\PC{0,20}",
    ];
    let mutated = prop::collection::vec((line, replacement, any::<char>()), 1..6).prop_map(|changes| {
        let mut lines: Vec<String> = EXAMPLE.lines().map(str::to_owned).collect();
        for (index, replacement, character) in changes {
            let target = index.index(lines.len());
            if character.is_ascii() {
                lines[target] = replacement;
            } else {
                let boundary =
                    lines[target].char_indices().map(|(at, _)| at).nth(index.index(9)).unwrap_or(0);
                lines[target].insert(boundary, character);
            }
        }
        lines.join("\n")
    });
    prop_oneof![mutated, "(?s).{0,200}", "[\\[\\]{}=\"'\n\r.,#a-z0-9 ]{0,200}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_configuration_prints_as_toml_that_loads_again(config in any_config()) {
        let text = config.to_toml().expect("it prints");
        prop_assert_eq!(parse(&text), Ok(config), "{}", text);
    }

    #[test]
    fn no_text_panics_the_loader_and_every_problem_is_one_line(text in any_text()) {
        let overrides = Overrides { reference: Some(ReferenceFlag::LocalStratum(5)), ..flags(&["eth0", "eth9"]) };
        for overrides in [&Overrides::default(), &overrides] {
            if let Err(problems) = Config::parse(Path::new("timeball.toml"), &text, overrides) {
                prop_assert!(!problems.0.is_empty());
                for problem in &problems.0 {
                    let line = problem.to_string();
                    prop_assert!(!line.chars().any(char::is_control), "{:?}", line);
                    prop_assert!(problem.place().is_some(), "{}", line);
                }
            }
        }
    }
}

#[test]
fn metrics_are_for_this_machine_unless_allowed() {
    let listen = |address: &str, more: &str| {
        parse(&format!("[metrics]\nlisten = {address}\n{more}")).map(|config| config.metrics.listen)
    };
    for address in ["127.0.0.1:9124", "127.8.8.8:1", "[::1]:65535", "[::ffff:127.0.0.1]:9124"] {
        assert_eq!(listen(&format!("{address:?}"), ""), Ok(Some(address.parse().expect("an address"))));
    }
    assert_eq!(listen("\"off\"", ""), Ok(None));
    for address in ["0.0.0.0:9124", "[::]:9124", "192.0.2.1:9124", "[::ffff:192.0.2.1]:9124"] {
        let said = listen(&format!("{address:?}"), "").expect_err(address);
        let expected = "must be on loopback, like \"127.0.0.1:9124\", unless metrics.allow-remote = true";
        assert_eq!(said, format!("timeball.toml:2: metrics.listen = {address:?}: {expected}"));
        assert!(listen(&format!("{address:?}"), "allow-remote = true").is_ok(), "{address}");
    }
    for wrong in
        ["\"\"", "\"127.0.0.1\"", "\"127.0.0.1:0\"", "\"localhost:9124\"", "\":9124\"", "9124", "true"]
    {
        let said = listen(wrong, "").expect_err(wrong);
        let expected = "must be \"off\", or address and port in quotes, like";
        assert!(
            said.starts_with(&format!("timeball.toml:2: metrics.listen = {wrong}: {expected}")),
            "{said}"
        );
    }
}

#[test]
fn the_metrics_flag_leaves_the_rest_of_the_table() {
    let overrides = Overrides { metrics: Some("192.0.2.1:80".to_owned()), ..Overrides::default() };
    let config = parse_with("[metrics]\nlisten = \"off\"\nallow-remote = true", &overrides);
    assert_eq!(
        config.map(|config| config.metrics.listen),
        Ok(Some("192.0.2.1:80".parse().expect("an address")))
    );
    let said = parse_with("", &overrides).expect_err("it is not loopback");
    assert!(said.starts_with("--metrics 192.0.2.1:80: must be on loopback, like \"127.0.0.1:80\""), "{said}");
    assert!(parse_with("metrics = 1", &overrides).is_err());
}

#[test]
fn tables_belong_to_instances() {
    let text = r#"
        [[instance]]
        name = "red"
        netns = "customer-red"
        [[instance]]
        name = "blue"
        vrf = "vrf-blue"
        [[interface]]
        name = "eth0"
        instance = "red"
        [[interface]]
        name = "eth0"
        instance = "blue"
        [[server]]
        address = "10.99.0.1"
        instance = "red"
        [[server]]
        address = "10.99.0.1"
        instance = "blue"
    "#;
    let config = parse(text).expect("the same names and addresses in two instances");
    let instances = config.instances();
    let places: Vec<_> =
        instances.iter().map(|one| (one.name.as_str(), one.netns.as_deref(), one.vrf.as_deref())).collect();
    assert_eq!(places, [("red", Some("customer-red"), None), ("blue", None, Some("vrf-blue"))]);
    assert_eq!(names(&config), ["eth0", "eth0"]);
    let numbers = config.sources.servers.iter().map(|server| config.instance_number(&server.instance));
    assert_eq!(numbers.collect::<Vec<_>>(), [0, 1]);
    let printed = config.to_toml().expect("it prints");
    assert_eq!(parse(&printed), Ok(config), "{printed}");
    assert_eq!(Config::default().instances(), [Instance::default()]);
}

#[test]
fn instances_are_refused_by_name_and_range() {
    let red = "[[instance]]\nname = \"red\"\nnetns = \"a\"\n";
    let table = [
        (
            "[[instance]]\nnetns = \"a\"\n".to_owned(),
            "timeball.toml:1: instance.name is missing, must be a name of 1 to 32 letters, digits, - _ or . in \
             quotes, like \"red\"",
        ),
        (
            "[[instance]]\nname = \"a b\"\n".to_owned(),
            "timeball.toml:2: instance.name = \"a b\": must be a name of 1 to 32 letters, digits, - _ or . in \
             quotes, like \"red\"",
        ),
        (
            "[[instance]]\nname = \"red\"\nnetns = \"a/b\"\n".to_owned(),
            "timeball.toml:3: instance.netns = \"a/b\": must be \"own\", where the daemon was started, or a name \
             that `ip netns` lists, or an absolute path, in quotes",
        ),
        (
            "[[instance]]\nname = \"red\"\nvrf = \"a b\"\n".to_owned(),
            "timeball.toml:3: instance.vrf = \"a b\": must be \"none\", or the name of a VRF device, 1 to 15 \
             characters without / : or spaces",
        ),
        (
            format!("{red}vrf = \"b\"\n"),
            "timeball.toml:4: instance.vrf = \"b\": must be \"none\" where netns is given: an instance is one or \
             the other",
        ),
        (
            format!("{red}[[instance]]\nname = \"red\"\nnetns = \"b\"\n"),
            "timeball.toml:5: instance.name = \"red\": must be given once, but is instance.name at timeball.toml:2 \
             already",
        ),
        (
            format!("{red}[[instance]]\nname = \"blue\"\nnetns = \"a\"\n"),
            "timeball.toml:6: instance.netns = \"a\": must be given once, but is instance.netns at timeball.toml:3 \
             already",
        ),
        (
            "[[instance]]\nname = \"red\"\n[[instance]]\nname = \"blue\"\n".to_owned(),
            "timeball.toml:4: instance.name = \"blue\": must be an instance with netns or vrf: \"red\" is where the \
             daemon was started already",
        ),
        (
            format!("{red}[[server]]\naddress = \"10.99.0.1\"\ninstance = \"blue\"\n"),
            "timeball.toml:6: server.instance = \"blue\": must be the name of an [[instance]]: \"red\"",
        ),
        (
            format!("{red}[[peer]]\naddress = \"10.99.0.1\"\n"),
            "timeball.toml:4: peer.instance is missing, must be the name of an [[instance]]: \"red\"",
        ),
        (
            "[[server]]\naddress = \"10.99.0.1\"\ninstance = \"red\"\n".to_owned(),
            "timeball.toml:3: server.instance = \"red\": must be the name of an [[instance]]: \"default\"",
        ),
        (
            "[[instance]]\nname = \"red\"\nvrf = \"a\"\n[[broadcast]]\ninstance = \"red\"\n".to_owned(),
            "timeball.toml:4: broadcast.interface is missing, must be the name of an interface: in a VRF \
             routing would not find the way to a group or broadcast address",
        ),
        (
            "[[instance]]\nname = \"red\"\nvrf = \"a\"\n[[manycast-client]]\ninstance = \"red\"\nallow-unsigned = \
             true\ninterface = \"any\"\n"
                .to_owned(),
            "timeball.toml:7: manycast-client.interface = \"any\": must be the name of an interface: in a VRF \
             routing would not find the way to a group or broadcast address",
        ),
        (
            format!(
                "{red}[[interface]]\nname = \"eth0\"\ninstance = \"red\"\n[[interface]]\nname = \"eth0\"\n\
                 instance = \"red\"\n"
            ),
            "timeball.toml:8: interface.name = \"eth0\": must be given once, but is interface.name at \
             timeball.toml:5 already",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(parse(&text), Err(expected.to_owned()), "{text}");
    }
    let error = parse_with(red, &flags(&["eth1"])).expect_err("the flag cannot say where");
    assert_eq!(
        error,
        "--interface: interface.instance is missing, must be the name of an [[instance]]: \"red\""
    );
}
