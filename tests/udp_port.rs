//! The UDP-socket port and the kernel's clock state against a real kernel, on loopback.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

#[path = "udp_port/processes.rs"]
mod processes;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, ToSocketAddrs, UdpSocket as StdSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};
use timeball::datapath::udp::{LocalAddress, OpenError, UdpCounts, UdpGroup, UdpPort};
use timeball::sys::clock;
use timeball::sys::process::poll;
use timeball::sys::socket::{BATCH_MAX, Batch, DATAGRAM_MAX, UdpOptions};

const PATIENCE: Duration = Duration::from_secs(10);

fn local(text: &str) -> LocalAddress {
    LocalAddress::new(text.parse().unwrap(), 0)
}

/// A port that is free on this address now. Each test has addresses of its own, so it stays free.
fn free_port(address: &str) -> u16 {
    StdSocket::bind((address, 0)).unwrap().local_addr().unwrap().port()
}

/// A client that never waits for ever.
fn client(address: &str) -> StdSocket {
    let client = StdSocket::bind((address, 0)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

/// Tries until it holds. Other tests start processes, and between its fork and its exec each of those has a copy of
/// every socket here: one that we have just closed may be in use for a moment longer.
fn eventually(mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "it never came true");
        sleep(Duration::from_millis(10));
    }
}

/// Until what was sent has surely reached its sockets: a loaded kernel may leave loopback's traffic for later.
fn settle() {
    sleep(Duration::from_millis(50));
}

fn serve(port: u16, addresses: &[&str], workers: usize) -> (UdpGroup, Vec<UdpPort>) {
    let (mut group, mut ports) = UdpGroup::new(port, workers, UdpOptions::default());
    let wanted: Vec<_> = addresses.iter().map(|address| local(address)).collect();
    eventually(|| group.sync_addresses(&wanted).failed.is_empty());
    ports.iter_mut().for_each(|port| assert!(port.apply_changes()));
    (group, ports)
}

/// The indices of sockets that have something to read, waiting for it.
fn wait(port: &UdpPort) -> Vec<usize> {
    let mut entries: Vec<_> = port.poll_entries().collect();
    assert!(poll(&mut entries, Some(PATIENCE)).unwrap() > 0, "nothing came");
    entries.iter().enumerate().filter(|(_, entry)| entry.is_ready()).map(|(index, _)| index).collect()
}

/// One turn of a worker that sends everything back.
fn echo(port: &mut UdpPort, batch: &mut Batch) -> usize {
    let mut received = 0;
    for index in wait(port) {
        received += port.receive(index, batch);
        batch.datagrams().for_each(|datagram| {
            let length = datagram.payload().len();
            datagram.reply(length);
        });
        port.send(index, batch);
    }
    received
}

fn expect_reply(client: &StdSocket, from: SocketAddr, payload: &[u8]) {
    let mut buffer = [0; 4096];
    let (length, source) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((source, &buffer[..length]), (from, payload));
}

#[test]
fn kernel_stamps_lie_between_sending_and_receiving() {
    for address in ["127.0.1.1", "::1"] {
        let port_number = free_port(address);
        let (_group, mut ports) = serve(port_number, &[address], 1);
        let client = client(address);
        let mut batch = Batch::new();
        let start = Instant::now();
        // The kernel turns stamps on a little after it was asked to: the first datagrams may have none.
        loop {
            let before = clock::realtime();
            client.send_to(b"ping", (address, port_number)).unwrap();
            let index = wait(&ports[0])[0];
            assert_eq!(ports[0].receive(index, &mut batch), 1);
            let after = clock::realtime();
            let datagram = batch.datagrams().next().unwrap();
            assert_eq!(datagram.source(), client.local_addr().unwrap());
            assert_eq!(datagram.payload(), b"ping");
            if let Some(stamp) = datagram.receive_timestamp() {
                assert!(stamp.nanoseconds_since(before) >= 0, "{before:?} {stamp:?}");
                assert!(after.nanoseconds_since(stamp) > 0, "{stamp:?} {after:?}");
                break;
            }
            assert!(start.elapsed() < PATIENCE, "no stamp came");
        }
        let counts = ports[0].counts();
        assert_eq!(counts.received, counts.without_stamp + 1);
    }
}

/// Checklist 18.
#[test]
fn replies_come_from_the_address_that_was_asked() {
    let addresses = ["127.0.1.11", "127.0.1.12", "127.0.1.13", "::1"];
    let port_number = free_port("::1");
    let (_group, mut ports) = serve(port_number, &addresses, 1);
    let mut batch = Batch::new();
    for address in addresses {
        let asked = SocketAddr::new(address.parse().unwrap(), port_number);
        let client = client(if asked.is_ipv4() { "127.0.0.1" } else { "::1" });
        client.send_to(address.as_bytes(), asked).unwrap();
        let index = wait(&ports[0])[0];
        assert_eq!(ports[0].local_address(index), Some(asked));
        echo(&mut ports[0], &mut batch);
        expect_reply(&client, asked, address.as_bytes());
    }
    assert_eq!((ports[0].counts().received, ports[0].counts().sent), (4, 4));
}

#[test]
fn batches_are_full_and_only_the_chosen_are_answered() {
    let port_number = free_port("127.0.1.21");
    let (_group, mut ports) = serve(port_number, &["127.0.1.21"], 1);
    let client = client("127.0.1.22");
    for number in 0..150_u8 {
        client.send_to(&[number, 0, 0], ("127.0.1.21", port_number)).unwrap();
    }
    settle();
    let mut batch = Batch::new();
    let mut sizes = Vec::new();
    for _ in 0..3 {
        sizes.push(ports[0].receive(0, &mut batch));
        batch.datagrams().for_each(|datagram| match datagram.payload()[0] % 3 {
            0 => datagram.reply(2),
            1 => datagram.reply(4), // longer than its request
            _ => {}
        });
        ports[0].send(0, &mut batch);
        assert_eq!(batch.replies(), 0);
    }
    assert_eq!(sizes, [BATCH_MAX, BATCH_MAX, 150 - 2 * BATCH_MAX]);
    assert_eq!(ports[0].receive(0, &mut batch), 0);
    assert_eq!(batch.datagrams().count(), 0);
    for number in (0..150).step_by(3) {
        expect_reply(&client, format!("127.0.1.21:{port_number}").parse().unwrap(), &[number, 0]);
    }
    assert_eq!(ports[0].counts().sent, 50);
}

#[test]
fn too_long_datagrams_are_counted_and_not_parsed() {
    let port_number = free_port("127.0.1.31");
    let (_group, mut ports) = serve(port_number, &["127.0.1.31"], 1);
    let client = client("127.0.1.31");
    let whole = [7; DATAGRAM_MAX + 1];
    for length in [10, DATAGRAM_MAX + 1, DATAGRAM_MAX, 0] {
        client.send_to(&whole[..length], ("127.0.1.31", port_number)).unwrap();
    }
    settle();
    let mut batch = Batch::new();
    assert_eq!(ports[0].receive(0, &mut batch), 3);
    let lengths: Vec<_> = batch.datagrams().map(|datagram| datagram.payload().len()).collect();
    assert_eq!(lengths, [10, DATAGRAM_MAX, 0]);
    assert_eq!((ports[0].counts().received, ports[0].counts().truncated), (3, 1));
}

#[test]
fn a_wildcard_owner_of_the_port_is_detected() {
    let owner = StdSocket::bind("0.0.0.0:0").unwrap();
    let (mut group, _ports) = UdpGroup::new(owner.local_addr().unwrap().port(), 1, UdpOptions::default());
    let report = group.sync_addresses(&[local("127.0.1.45")]);
    assert!(matches!(report.failed[..], [(_, OpenError::AddressInUse(_))]), "{report:?}");
}

#[test]
fn a_removed_address_is_given_up_and_the_others_are_served_on() {
    let port_number = free_port("127.0.1.51");
    let (mut group, mut ports) = serve(port_number, &["127.0.1.51", "127.0.1.52"], 2);
    assert_eq!(group.sync_addresses(&[local("127.0.1.52")]).removed, [local("127.0.1.51")]);
    assert!(StdSocket::bind(("127.0.1.51", port_number)).is_err(), "the workers have not looked yet");
    ports.iter_mut().for_each(|port| assert!(port.apply_changes()));
    eventually(|| StdSocket::bind(("127.0.1.51", port_number)).is_ok());
    let client = client("127.0.1.53");
    client.send_to(b"still there?", ("127.0.1.52", port_number)).unwrap();
    settle();
    let mut batch = Batch::new();
    let asked = ports.iter_mut().find(|port| {
        let mut entries: Vec<_> = port.poll_entries().collect();
        poll(&mut entries, Some(Duration::ZERO)).unwrap() == 1
    });
    assert_eq!(echo(asked.unwrap(), &mut batch), 1);
    expect_reply(&client, format!("127.0.1.52:{port_number}").parse().unwrap(), b"still there?");
}

#[test]
fn members_share_the_clients_and_a_flood_to_one_does_not_starve_the_other() {
    for address in ["127.0.1.61", "::1"] {
        let port_number = free_port(address);
        let (_group, mut ports) = serve(port_number, &[address], 2);
        let clients: Vec<_> = (0..64).map(|_| client(address)).collect();
        clients.iter().for_each(|client| assert!(client.send_to(b"hello", (address, port_number)).is_ok()));
        settle();
        let mut batch = Batch::new();
        let mut member_of = BTreeMap::new();
        for (member, port) in ports.iter_mut().enumerate() {
            assert!(port.receive(0, &mut batch) > 0, "member {member} got nothing");
            member_of.extend(batch.datagrams().map(|datagram| (datagram.source().port(), member)));
        }
        assert_eq!(member_of.len(), clients.len());
        let client_of = |member| {
            clients.iter().find(|client| member_of[&client.local_addr().unwrap().port()] == member).unwrap()
        };
        // Far more than a socket's buffer holds, to a member that does not read.
        for _ in 0..2_000 {
            client_of(0).send_to(&[0; 1_000], (address, port_number)).unwrap();
        }
        client_of(1).send_to(b"and me?", (address, port_number)).unwrap();
        assert_eq!(echo(&mut ports[1], &mut batch), 1);
        let from = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port_number);
        expect_reply(client_of(1), from, b"and me?");
    }
}

#[test]
fn a_client_that_has_gone_does_not_stop_the_loop() {
    let port_number = free_port("127.0.1.71");
    let (_group, mut ports) = serve(port_number, &["127.0.1.71"], 1);
    let mut batch = Batch::new();
    // Its reply is answered with ICMP port unreachable.
    client("127.0.1.72").send_to(b"gone", ("127.0.1.71", port_number)).unwrap();
    assert_eq!(echo(&mut ports[0], &mut batch), 1);
    let client = client("127.0.1.72");
    client.send_to(b"here", ("127.0.1.71", port_number)).unwrap();
    assert_eq!(echo(&mut ports[0], &mut batch), 1);
    expect_reply(&client, format!("127.0.1.71:{port_number}").parse().unwrap(), b"here");
}
