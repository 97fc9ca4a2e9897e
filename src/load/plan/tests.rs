//! Which options are refused, in which words, and what steps the others become.

use super::*;
use proptest::prelude::*;

fn options(target: &str, sources: Option<&str>) -> Options {
    Options {
        target: SocketAddr::new(target.parse().unwrap(), 123),
        interface: "tb0".into(),
        offer: Offer::Rate(10_000.0),
        clients: 1000,
        sources: sources.map(|sources| sources.parse().unwrap()),
        duration: Duration::from_secs(10),
        timeout: Duration::from_secs(1),
        expect: Expect::Ntp,
        is_mine: false,
    }
}

#[track_caller]
fn refused(options: &Options, text: &str) {
    let error = options.check().expect_err(text).to_string();
    assert!(error.starts_with(text), "{error}");
}

#[test]
fn foreign_targets_and_sources_take_the_flag_and_multicast_never_goes() {
    let foreign = options("192.0.2.1", None);
    refused(&foreign, "--target 192.0.2.1: must be within private");
    assert_eq!(Options { is_mine: true, ..foreign }.check(), Ok(()));
    let spoofed = options("10.99.1.1", Some("8.8.8.0/24"));
    refused(&spoofed, "--sources 8.8.8.0/24: must be within private");
    assert_eq!(Options { is_mine: true, ..spoofed }.check(), Ok(()));
    for never in ["224.0.1.1", "255.255.255.255", "::ffff:10.99.1.1", "::"] {
        refused(&Options { is_mine: true, ..options(never, None) }, &format!("--target {never}: must be"));
    }
    refused(&options("127.0.0.1", None), "--target 127.0.0.1: must be reached through an Ethernet");
}

#[test]
fn sources_that_no_machine_answers_are_refused_whoever_vouches_for_them() {
    for (never, reason) in [
        ("127.0.0.0/8", "must not have loopback addresses in it"),
        ("127.0.0.1/32", "must not have loopback addresses in it"),
        ("126.0.0.0/7", "must not have loopback addresses in it"),
        ("224.0.0.0/4", "must be addresses of single machines; this is unspecified, multicast or broadcast"),
        ("239.1.0.0/16", "must be addresses of single machines; this is unspecified, multicast or broadcast"),
        ("0.0.0.0/8", "must be addresses of single machines; this is unspecified, multicast or broadcast"),
        ("255.255.255.255/32", "must be addresses of single machines; this is unspecified, multicast or"),
        ("::ffff:10.99.8.0/118", "must be addresses of single machines; this is IPv4-mapped (write the IPv4"),
        ("::1/128", "must not have loopback addresses in it"),
        ("::/128", "must be addresses of single machines; this is unspecified or multicast"),
        ("ff02::/16", "must be addresses of single machines; this is unspecified or multicast"),
        ("10.99.8.0/22", "must be of the same family as --target fd99:1::1"),
    ] {
        let options = Options { is_mine: true, ..options("fd99:1::1", Some(never)) };
        refused(&options, &format!("--sources {never}: {reason}"));
    }
}

#[test]
fn the_broadcast_address_of_the_interfaces_network_is_no_client() {
    let next_hop = |source: &str| NextHop {
        ifindex: 2,
        source_mac: [2; 6],
        target_mac: [4; 6],
        source: source.parse().unwrap(),
    };
    let wide = options("10.99.200.1", Some("10.99.0.0/16"));
    assert_eq!(wide.check(), Ok(()));
    let error = wide.scene(&next_hop("10.99.1.2/24")).unwrap_err().to_string();
    assert!(error.starts_with("--sources 10.99.0.0/16: must not make 10.99.1.255, the broadcast"), "{error}");
    // Behind the last client, and no broadcast address at all.
    assert!(wide.scene(&next_hop("10.99.7.2/24")).is_ok());
    assert!(wide.scene(&next_hop("10.99.1.2/31")).is_ok());
    let own = Options { sources: None, ..wide };
    assert_eq!(own.scene(&next_hop("10.99.1.2/24")).unwrap().clients.first().to_string(), "10.99.1.2");
}

#[test]
fn clients_must_have_room_and_leave_the_target_alone() {
    assert_eq!(options("10.99.1.1", Some("10.99.8.0/22")).check(), Ok(()));
    refused(&options("10.99.1.1", Some("fd99:8::/64")), "--sources fd99:8::/64: must be of the same");
    refused(&options("10.99.1.1", Some("10.99.0.0/16")), "--sources 10.99.0.0/16: must not make 10.99.1.1");
    // It is in the prefix, but behind the last client.
    assert_eq!(options("10.99.200.1", Some("10.99.0.0/16")).check(), Ok(()));
    let many = Options { clients: 70_000, ..options("10.99.1.1", None) };
    refused(&many, "--clients 70000: must be 1 to 64512 on the interface's own address");
    refused(&Options { sources: "10.99.8.1/32".parse().ok(), ..many }, "--clients 70000: must be 1 to 64512");
}

#[test]
fn a_step_has_fewer_requests_than_there_are_numbers() {
    let long = |offer, seconds| Options {
        offer,
        duration: Duration::from_secs(seconds),
        ..options("10.99.1.1", None)
    };
    assert_eq!(long(Offer::Rate(1e6), 4294).check(), Ok(()));
    refused(
        &long(Offer::Rate(1e6), 4295),
        "--duration 4295 s: must be at most 4294 s at 1 000 000 requests/s",
    );
    refused(&long(Offer::Saturate, 108), "--duration 108 s: must be at most 107 s with --saturate");
    let sweep = Offer::Sweep { from: 1.0, to: 2e6, steps: 5 };
    refused(&long(sweep, 3000), "--duration 3000 s: must be at most 2147 s at 2 000 000");
}

#[test]
fn a_sweep_goes_by_factors_and_each_step_has_its_nonce() {
    let sweep = Offer::Sweep { from: 1000.0, to: 100_000.0, steps: 5 };
    assert_eq!(sweep.rates(), [1000.0, 3162.0, 10_000.0, 31_623.0, 100_000.0].map(Some));
    let steps = Options { offer: sweep, ..options("10.99.1.1", None) }.steps(u32::MAX);
    let nonces: Vec<_> = steps.iter().map(|step| step.nonce).collect();
    assert_eq!(nonces, [u32::MAX, 0, 1, 2, 3]);
}

proptest! {
    #[test]
    fn sweeps_rise_from_end_to_end(from in 1.0..1e6_f64, factor in 1.1..100_f64, steps in 2..=100_u32) {
        let (from, to) = (from.round(), (from * factor).ceil() + 1.0);
        let rates: Vec<f64> = Offer::Sweep { from, to, steps }.rates().into_iter().flatten().collect();
        prop_assert_eq!((rates[0], rates[rates.len() - 1]), (from, to));
        prop_assert_eq!(rates.len(), steps as usize);
        prop_assert!(rates.is_sorted());
    }
}
