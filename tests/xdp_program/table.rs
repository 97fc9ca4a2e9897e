//! Every branch of the program, one row each: what the frame is, its bytes, what becomes of it.

use crate::frames::{ETHERNET, Frame, TPID_AD, TPID_Q};
use crate::{
    CHILD_MAC, OUR_MAC, PLAIN, XDP_DROP, XDP_PASS, XDP_REDIRECT, af_xdp_socket, assert_stamped_now, count,
    counts, load, load_world, run, run_with_metadata, say, world,
};
use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use timeball::datapath::steering::{FRAME_LENGTH_MAX, Steering, SteeringAddress, SteeringConfig, Verdict};
use timeball::sys::bpf::{TestRunInput, test_run_xdp};

struct Row {
    what: String,
    frame: Vec<u8>,
    verdict: Verdict,
    /// Bytes of metadata before the frame already; 216 leave no room for ours in the headroom (256, less the kernel's own 40).
    metadata: usize,
    /// Is there a socket in the slot of the queue?
    socket: bool,
}

fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Redirected | Verdict::RedirectedWithoutMetadata => XDP_REDIRECT,
        Verdict::DroppedDenied => XDP_DROP,
        _ => XDP_PASS,
    }
}

#[derive(Default)]
struct Table(Vec<Row>);

impl Table {
    fn row(&mut self, what: &str, frame: Frame, verdict: Verdict) -> &mut Row {
        self.0.push(Row { what: what.into(), frame: frame.bytes, verdict, metadata: 0, socket: true });
        self.0.last_mut().unwrap()
    }
}

fn v4(tags: &[(u16, u16)]) -> Frame {
    Frame::request("10.99.0.2", "10.99.0.1", tags, 48)
}

fn v6(tags: &[(u16, u16)]) -> Frame {
    Frame::request("fd99::2", "fd99::1", tags, 48)
}

/// What holds for both address families; `to_us` makes a plain 48-byte request with the given tags.
fn common_rows(table: &mut Table, to_us: fn(&[(u16, u16)]) -> Frame) {
    use Verdict::*;
    let plain = || to_us(&[]);
    let places = plain().places();
    table.row("request", plain(), Redirected);
    table.row("request in a frame with a trailer", plain().resized(plain().length() + 4), Redirected);
    table.row("request, no socket", plain(), PassedNoSocket).socket = false;
    table.row("request, 216 bytes of metadata already", plain(), RedirectedWithoutMetadata).metadata = 216;

    table.row("802.1Q tag", to_us(&[(TPID_Q, 7)]), Redirected);
    table.row("802.1Q tag with priority and DEI bits", to_us(&[(TPID_Q, 0xf007)]), Redirected);
    table.row("802.1ad tag alone", to_us(&[(TPID_AD, 7)]), Redirected);
    table.row("priority tag, VLAN 0, counts as none", to_us(&[(TPID_Q, 0xe000)]), Redirected);
    table.row("QinQ", to_us(&[(TPID_AD, 7), (TPID_Q, 8)]), Redirected);
    table.row("two 802.1Q tags", to_us(&[(TPID_Q, 7), (TPID_Q, 8)]), Redirected);
    table.row("another VLAN", to_us(&[(TPID_Q, 9)]), PassedNotOurAddress);
    table.row("QinQ, another inner VLAN", to_us(&[(TPID_AD, 7), (TPID_Q, 9)]), PassedNotOurAddress);
    table.row("QinQ, tags swapped", to_us(&[(TPID_AD, 8), (TPID_Q, 7)]), PassedNotOurAddress);
    table.row("three tags", to_us(&[(TPID_AD, 7), (TPID_Q, 8), (TPID_Q, 9)]), PassedTagsTooDeep);
    table.row("tag cut off", to_us(&[(TPID_Q, 7)]).resized(ETHERNET + 2), PassedInconsistent);
    table.row(
        "inner tag cut off",
        to_us(&[(TPID_AD, 7), (TPID_Q, 8)]).resized(ETHERNET + 6),
        PassedInconsistent,
    );

    table.row("broadcast MAC", plain().with_link(0, &[0xff; 6]), PassedMulticastMac);
    table.row("multicast MAC", plain().with_link(0, &[0x01, 0, 0x5e, 0, 1, 1]), PassedMulticastMac);
    for byte in 0..6 {
        let mut mac = OUR_MAC;
        mac[byte] ^= 2; // not 1, which would make it a multicast MAC
        let frame = plain().with_link(0, &mac);
        table.row(&format!("another box's MAC, which differs in byte {byte}"), frame, PassedOtherMac);
    }
    let to_child = || to_us(&[(TPID_Q, 6)]).with_link(0, &CHILD_MAC);
    table.row("VLAN interface with a MAC of its own", to_child(), Redirected);
    table.row("its VLAN, but its parent's MAC", to_us(&[(TPID_Q, 6)]), PassedOtherMac);
    table.row("its MAC, but no VLAN", plain().with_link(0, &CHILD_MAC), PassedOtherMac);
    table.row("its MAC, but another VLAN", to_us(&[(TPID_Q, 7)]).with_link(0, &CHILD_MAC), PassedOtherMac);

    table.row("ARP", plain().with_link(12, &[0x08, 0x06]), PassedNotIp);
    table.row("ARP in a VLAN", to_us(&[(TPID_Q, 7)]).with_link(16, &[0x08, 0x06]), PassedNotIp);
    table.row("old QinQ type 0x9100", plain().with_link(12, &[0x91, 0x00]), PassedNotIp);
    table.row("IP header cut off", plain().resized(ETHERNET + places.udp - 1), PassedInconsistent);
    table.row("IP version 5", plain().with(0, &[0x55]), PassedInconsistent);
    table.row("TCP", plain().with(places.protocol, &[6]), PassedNotUdp);

    table.row("port 124", plain().add(places.udp + 2, 1), PassedOtherPort);
    table.row("port 123 with its bytes swapped", plain().with(places.udp + 2, &[123, 0]), PassedOtherPort);
    table.row("from port 123 to 40000", plain().with(places.udp, &[0, 123, 0x9c, 0x40]), PassedOtherPort);
    table.row(
        "UDP header cut off, as IP says",
        plain().add_to_lengths(-49).resized(plain().length() - 49),
        PassedInconsistent,
    );
    table.row("UDP header cut off", plain().resized(ETHERNET + places.ntp - 1), PassedInconsistent);
    table.row("last byte missing", plain().resized(plain().length() - 1), PassedInconsistent);
    table.row("IP length one more than the frame", plain().add(places.length, 1), PassedInconsistent);
    table.row("IP length one less than UDP's", plain().add(places.length, -1), PassedInconsistent);
    table.row("UDP length one more than IP's", plain().add(places.udp + 4, 1), PassedInconsistent);
    table.row("UDP length one less than IP's", plain().add(places.udp + 4, -1), PassedInconsistent);
    table.row("both lengths beyond the frame", plain().add_to_lengths(1), PassedInconsistent);
    table.row("UDP length 0", plain().with(places.udp + 4, &[0, 0]), PassedInconsistent);
    table.row("47 bytes of NTP", plain().add_to_lengths(-1), PassedTooShort);
    table.row("no NTP at all", plain().add_to_lengths(-48), PassedTooShort);
    table.row("49 bytes", plain().add_to_lengths(1).resized(plain().length() + 1), Redirected);

    let room = i16::try_from(FRAME_LENGTH_MAX - plain().length()).unwrap();
    let longest = || plain().add_to_lengths(room).resized(FRAME_LENGTH_MAX);
    table.row("longest frame", longest(), Redirected);
    table.row("one byte longer", longest().add_to_lengths(1).resized(FRAME_LENGTH_MAX + 1), PassedTooLong);
    table.row("a short request in a long frame of two buffers", plain().resized(6000), PassedTooLong);

    for version in 0..8u8 {
        let known = (1..=4).contains(&version);
        let verdict = if known { Redirected } else { PassedOtherVersion };
        let frame = plain().with_first_ntp_byte(version << 3 | 3);
        table.row(&format!("version {version}"), frame, verdict);
    }
    for mode in (0..8u8).filter(|&mode| mode != 3) {
        let frame = plain().with_first_ntp_byte(0xc0 | 4 << 3 | mode);
        table.row(&format!("mode {mode}"), frame, PassedOtherMode);
    }
    table.row("leap indicator 3", plain().with_first_ntp_byte(0xe3), Redirected);
}

fn v4_rows(table: &mut Table) {
    use Verdict::*;
    let from = |source| Frame::request(source, "10.99.0.1", &[], 48);
    common_rows(table, v4);
    table.row("more fragments", v4(&[]).with(6, &[0x20, 0]), PassedFragment);
    table.row("last fragment", v4(&[]).with(6, &[0, 1]), PassedFragment);
    table.row("fragment offset of 4096 units", v4(&[]).with(6, &[0x10, 0]), PassedFragment);
    table.row("do not fragment", v4(&[]).with(6, &[0x40, 0]), Redirected);
    table.row("IPv4 options", v4(&[]).with(0, &[0x46]), PassedOptions);
    table.row("IPv4 header of 16 bytes", v4(&[]).with(0, &[0x44]), PassedInconsistent);
    table.row("IPv4 total length 19", v4(&[]).with(2, &[0, 19]), PassedInconsistent);
    table.row("IPv4 total length 0", v4(&[]).with(2, &[0, 0]), PassedInconsistent);
    table.row("IPv4 total length 19, port 124", v4(&[]).with(2, &[0, 19]).add(22, 1), PassedInconsistent);
    table.row(
        "somebody else's address",
        Frame::request("10.99.0.2", "10.99.0.9", &[], 48),
        PassedNotOurAddress,
    );
    let second = |source| Frame::request(source, "10.99.0.5", &[], 48);
    table.row("another of our addresses", second("10.99.0.2"), Redirected);
    table.row(
        "another of our addresses, other MAC",
        second("10.99.0.2").with_link(0, &CHILD_MAC),
        PassedOtherMac,
    );
    table.row("another of our addresses, denied", second("10.99.66.1"), DroppedDenied);
    table.row("denied", from("10.99.66.1"), DroppedDenied);
    table.row("denied, but its own prefix is served", from("10.99.66.7"), Redirected);
    table.row("right below the denied prefix", from("10.99.65.255"), Redirected);
    table.row("right above the denied prefix", from("10.99.67.0"), Redirected);
    table.row("denied, mode 4", from("10.99.66.1").with_first_ntp_byte(0x24), PassedOtherMode);
    table.row("denied, not to us", Frame::request("10.99.66.1", "10.99.0.9", &[], 48), PassedNotOurAddress);
    table.row("denied, no socket", from("10.99.66.1"), DroppedDenied).socket = false;
    let not_to_us = from("10.99.66.1").with_link(0, &CHILD_MAC);
    table.row("denied, to another box's MAC", not_to_us, PassedOtherMac);
}

fn v6_rows(table: &mut Table) {
    use Verdict::*;
    let from = |source| Frame::request(source, "fd99::1", &[], 48);
    common_rows(table, v6);
    table.row("traffic class and flow label", v6(&[]).with(0, &[0x6b, 0xff, 0xff, 0xff]), Redirected);
    for header in [0, 43, 51, 60, 135] {
        table.row(&format!("extension header {header}"), v6(&[]).with(6, &[header]), PassedOptions);
    }
    table.row("IPv6 fragment", v6(&[]).with(6, &[44]), PassedFragment);
    table.row("ICMPv6", v6(&[]).with(6, &[58]), PassedNotUdp);
    table.row("IPv6 payload length 0", v6(&[]).with(4, &[0, 0]), PassedInconsistent);
    table.row("somebody else's address", Frame::request("fd99::2", "fd99::9", &[], 48), PassedNotOurAddress);
    let second = |source| Frame::request(source, "fd99::5", &[], 48);
    table.row("another of our addresses", second("fd99::2"), Redirected);
    table.row(
        "another of our addresses, other MAC",
        second("fd99::2").with_link(0, &CHILD_MAC),
        PassedOtherMac,
    );
    table.row("another of our addresses, denied", second("fd99:66::1"), DroppedDenied);
    // Right in all but one byte of what the shortcut compares.
    for byte in 0..16 {
        let mut octets = "fd99::1".parse::<Ipv6Addr>().unwrap().octets();
        octets[byte] ^= 0x10;
        let frame = v6(&[]).with(24, &octets);
        table.row(&format!("an address that differs in byte {byte}"), frame, PassedNotOurAddress);
    }
    table.row("denied", from("fd99:66::1"), DroppedDenied);
    table.row("denied, but its own prefix is served", from("fd99:66::7"), Redirected);
    table.row("right above the denied prefix", from("fd99:67::"), Redirected);
    let not_to_us = from("fd99:66::1").with_link(0, &CHILD_MAC);
    table.row("denied, to another box's MAC", not_to_us, PassedOtherMac);
    table.row("denied, version 5", from("fd99:66::1").with_first_ntp_byte(0x2b), PassedOtherVersion);
    table.row("denied, not to us", Frame::request("fd99:66::1", "fd99::9", &[], 48), PassedNotOurAddress);
}

#[test]
fn every_branch_gives_its_verdict_its_counter_and_its_metadata() {
    let Some(mut steering) = load_world() else { return };
    let Some(socket) = af_xdp_socket() else { return };
    let mut table = Table::default();
    v4_rows(&mut table);
    let count_v4 = table.0.len();
    v6_rows(&mut table);

    let mut seen = BTreeSet::new();
    for (index, row) in table.0.iter().enumerate() {
        let what = format!("{}: {}", if index < count_v4 { "IPv4" } else { "IPv6" }, row.what);
        if row.socket {
            steering.set_socket(0, socket.as_fd()).unwrap();
        } else {
            steering.clear_socket(0).unwrap();
        }
        check_row(&steering, row, &what);
        seen.insert(row.verdict.name());
    }
    for verdict in Verdict::ALL {
        assert!(seen.contains(verdict.name()), "no row shows {}", verdict.name());
    }
}

fn check_row(steering: &Steering, row: &Row, what: &str) {
    let before = counts(steering);
    let metadata = vec![0x11; row.metadata];
    let outcome = run_with_metadata(steering, &row.frame, &metadata);
    let after = counts(steering);

    let moved: Vec<_> = Verdict::ALL
        .into_iter()
        .filter(|&verdict| before[verdict as usize] != after[verdict as usize])
        .map(|verdict| (verdict, after[verdict as usize] - before[verdict as usize]))
        .collect();
    assert_eq!(moved, [(row.verdict, 1)], "{what}");
    assert_eq!(outcome.verdict, action(row.verdict), "{what}");
    assert!(outcome.frame == row.frame, "{what}: the program changed the frame");
    match row.verdict {
        // Without a socket the stamp stays on the passed packet, where nobody looks at it.
        Verdict::Redirected | Verdict::PassedNoSocket => assert_stamped_now(&outcome.metadata, what),
        _ => assert_eq!(outcome.metadata, metadata, "{what}"),
    }
}

#[test]
fn the_port_is_the_configured_one() {
    let Some(mut steering) = load(&SteeringConfig { port: 4123, ..PLAIN }) else { return };
    let (tags, address, mac) = world().locals[0];
    steering.replace_locals(&[SteeringAddress { tags, address, mac }]).unwrap();
    run(&steering, &v4(&[]).bytes);
    assert_eq!(count(&steering, Verdict::PassedOtherPort), 1);
    run(&steering, &v4(&[]).with(22, &4123u16.to_be_bytes()).bytes);
    assert_eq!(count(&steering, Verdict::PassedNoSocket), 1);
}

/// Information, not a test of speed: nothing here knows what else the machine does.
#[test]
fn says_what_a_packet_costs() {
    let Some(mut steering) = load_world() else { return };
    let Some(socket) = af_xdp_socket() else { return };
    steering.set_socket(0, socket.as_fd()).unwrap();
    let tcp = v4(&[]).with(9, &[6]);
    let kinds = [
        ("IPv4 request redirected", v4(&[]), XDP_REDIRECT),
        ("IPv4 request to another address redirected", v4(&[]).with(16, &[10, 99, 0, 5]), XDP_REDIRECT),
        ("IPv6 request redirected", v6(&[]), XDP_REDIRECT),
        ("IPv6 QinQ request redirected", v6(&[(TPID_AD, 7), (TPID_Q, 8)]), XDP_REDIRECT),
        ("TCP passed", tcp, XDP_PASS),
    ];
    for denied in ["some prefixes denied", "none denied"] {
        for (what, frame, expected) in &kinds {
            // Runs share one buffer and each adds 24 bytes of metadata, for which there is room nine times: what is
            // measured is a redirect whose metadata is refused, which saves four stores. Short series would measure cold
            // caches instead.
            let input = TestRunInput { metadata: &[], frame: &frame.bytes, queue: None, repeat: 1_000_000 };
            let outcome = test_run_xdp(steering.program(), &input).unwrap();
            assert_eq!(outcome.verdict, *expected);
            say(&format!("INFO: XDP program, {what}, {denied}: {:?} a packet", outcome.duration));
        }
        steering.replace_denied(&[]).unwrap();
    }
}
