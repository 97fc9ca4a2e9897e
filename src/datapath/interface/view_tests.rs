use super::*;

fn link(ifindex: u32, name: &str) -> Interface {
    Interface {
        ifindex,
        name: name.into(),
        enabled: true,
        up: true,
        mtu: 1500,
        mac: Some([2, 0, 0, 0, 0, ifindex as u8]),
        kind: None,
        rx_queues: Some(1),
        tx_queues: Some(1),
        vlan: None,
        master: None,
        arrival: 0,
    }
}

fn vlan(ifindex: u32, name: &str, parent: u32, id: u16) -> Interface {
    let vlan = Some(VlanLink { parent, id, protocol: 0x8100 });
    Interface { vlan, kind: Some("vlan".into()), ..link(ifindex, name) }
}

fn address(ifindex: u32, address: &str) -> Address {
    let address: IpAddr = address.parse().unwrap();
    Address {
        ifindex,
        address,
        peer: address,
        prefix_length: 24,
        scope: 0,
        tentative: false,
        optimistic: false,
        dad_failed: false,
        deprecated: false,
    }
}

/// eth0 (2) with VLAN 7 (3), inside which VLAN 8 (4), inside which VLAN 9 (5); each has the address 10.99.INDEX.1.
fn stacked() -> View {
    let mut view = View::default();
    for one in [link(2, "eth0"), vlan(3, "eth0.7", 2, 7), vlan(4, "eth0.7.8", 3, 8), vlan(5, "deep", 4, 9)] {
        view.apply(Event::Address(address(one.ifindex, &format!("10.99.{}.1", one.ifindex))));
        view.apply(Event::Link(one));
    }
    view
}

fn steering(view: &View, ifindex: u32, extra_tags: &[TagStack]) -> Vec<String> {
    let show = |one: &SteeringAddress| format!("{} {} {}", one.tags[0], one.tags[1], one.address);
    view.steering_addresses(ifindex, extra_tags).iter().map(show).collect()
}

#[test]
fn steers_to_the_interface_its_vlans_and_the_vlans_inside_them() {
    assert_eq!(steering(&stacked(), 2, &[]), ["0 0 10.99.2.1", "7 0 10.99.3.1", "7 8 10.99.4.1"]);
    // What hangs on eth0.7 is its own business alone.
    assert_eq!(steering(&stacked(), 3, &[]), ["0 0 10.99.3.1", "8 0 10.99.4.1", "8 9 10.99.5.1"]);
}

#[test]
fn extra_tags_carry_the_interface_s_own_addresses() {
    let mut view = View::default();
    view.apply(Event::Link(link(2, "eth0")));
    view.apply(Event::Address(address(2, "10.99.2.1")));
    view.apply(Event::Address(address(2, "fd99::1")));
    assert_eq!(
        steering(&view, 2, &[[30, 0], [30, 31]]),
        [
            "0 0 10.99.2.1",
            "0 0 fd99::1",
            "30 0 10.99.2.1",
            "30 0 fd99::1",
            "30 31 10.99.2.1",
            "30 31 fd99::1"
        ]
    );
}

#[test]
fn each_address_is_reached_at_the_mac_of_the_interface_that_has_it() {
    let mut view = stacked();
    let macs = |view: &View, extra_tags: &[TagStack]| -> Vec<_> {
        let last_byte = |one: SteeringAddress| (one.tags, one.mac[5]);
        view.steering_addresses(2, extra_tags).into_iter().map(last_byte).collect()
    };
    assert_eq!(macs(&view, &[[9, 0]]), [([0, 0], 2), ([7, 0], 3), ([7, 8], 4), ([9, 0], 2)]);
    // The same address on eth0 and on VLAN 7, which is configured too: the kernel gives tag 7 to the VLAN interface.
    view.apply(Event::Address(address(3, "10.99.2.1")));
    assert_eq!(
        macs(&view, &[[7, 0]]),
        [([0, 0], 2), ([7, 0], 3), ([7, 0], 3), ([7, 8], 4)],
        "10.99.2.1 and 10.99.3.1 on VLAN 7, each once"
    );
}

#[test]
fn a_new_mac_is_an_alteration_and_moves_the_steering() {
    let before = stacked();
    let mut after = before.clone();
    after.apply(Event::Link(Interface { mac: Some([2, 0, 0, 0, 0, 0x55]), ..link(2, "eth0") }));
    assert_eq!(Changes::between(&before, &after).altered, [2]);
    let (old, new) = (before.steering_addresses(2, &[]), after.steering_addresses(2, &[]));
    assert_ne!(old, new);
    assert_eq!(new[0], SteeringAddress { mac: [2, 0, 0, 0, 0, 0x55], ..old[0] });
    assert_eq!(new[1..], old[1..], "VLAN interfaces have kept theirs");
}

#[test]
fn without_a_mac_nothing_is_steered() {
    let mut view = stacked();
    view.apply(Event::Link(Interface { mac: None, ..link(2, "eth0") }));
    assert_eq!(steering(&view, 2, &[[30, 0]]), ["7 0 10.99.3.1", "7 8 10.99.4.1"]);
}

#[test]
fn a_vlan_interface_that_is_off_hides_itself_and_what_is_inside() {
    let mut view = stacked();
    view.apply(Event::Link(Interface { enabled: false, up: false, ..vlan(3, "eth0.7", 2, 7) }));
    assert_eq!(steering(&view, 2, &[]), ["0 0 10.99.2.1"]);
}

#[test]
fn an_address_that_is_not_ours_yet_or_not_any_more_is_not_used() {
    let mut view = View::default();
    view.apply(Event::Link(link(2, "eth0")));
    view.apply(Event::Address(Address { tentative: true, ..address(2, "fd99::1") }));
    view.apply(Event::Address(Address { tentative: true, optimistic: true, ..address(2, "fd99::2") }));
    view.apply(Event::Address(Address { tentative: true, dad_failed: true, ..address(2, "fd99::3") }));
    view.apply(Event::Address(Address { deprecated: true, ..address(2, "fd99::4") }));
    assert_eq!(steering(&view, 2, &[]), ["0 0 fd99::2", "0 0 fd99::4"]);
    let before = view.clone();
    view.apply(Event::Address(address(2, "fd99::1")));
    let changes = Changes::between(&before, &view);
    assert_eq!(changes.addresses_added, [address(2, "fd99::1")], "duplicate address detection has ended");
}

#[test]
fn one_address_with_two_prefixes_is_bound_once_and_survives_the_loss_of_one() {
    let mut view = View::default();
    let narrow = address(2, "10.99.0.1");
    let wide = Address { prefix_length: 16, ..narrow.clone() };
    view.apply(Event::Address(narrow.clone()));
    view.apply(Event::Address(wide));
    assert_eq!(view.local_addresses(2).len(), 1);
    view.apply(Event::AddressGone(narrow));
    assert_eq!(view.local_addresses(2), [LocalAddress::new([10, 99, 0, 1].into(), 0)]);
}

#[test]
fn a_link_local_address_is_bound_with_its_interface() {
    let mut view = View::default();
    view.apply(Event::Address(address(9, "fe80::1")));
    view.apply(Event::Address(address(8, "fe80::2")));
    let locals = view.local_addresses(9);
    assert_eq!(locals.len(), 1);
    assert_eq!(locals[0].with_port(123).to_string(), "[fe80::1%9]:123");
}

#[test]
fn a_vanished_interface_takes_its_addresses_along() {
    let before = stacked();
    let mut after = before.clone();
    after.apply(Event::LinkGone(3));
    let changes = Changes::between(&before, &after);
    assert_eq!(changes.removed, [before.interface(3).unwrap().clone()]);
    assert_eq!(changes.addresses_removed, [address(3, "10.99.3.1")]);
    assert_eq!(steering(&after, 2, &[]), ["0 0 10.99.2.1"]);
}

#[test]
fn gone_and_back_with_the_same_index_is_told_apart_from_never_gone() {
    let before = stacked();
    let mut after = before.clone();
    after.apply(Event::LinkGone(2));
    after.apply(Event::Link(link(2, "eth0")));
    after.apply(Event::Address(address(2, "10.99.2.1")));
    let changes = Changes::between(&before, &after);
    assert_eq!((changes.removed.len(), changes.appeared.len()), (1, 1));
    let mut repeated = before.clone();
    repeated.apply(Event::Link(link(2, "eth0")));
    assert!(Changes::between(&before, &repeated).is_empty());
}

#[test]
fn recreated_with_the_same_name_is_a_removal_and_an_arrival() {
    let before = stacked();
    let mut after = before.clone();
    after.apply(Event::LinkGone(2));
    after.apply(Event::Link(link(17, "eth0")));
    let changes = Changes::between(&before, &after);
    assert_eq!(changes.removed[0].ifindex, 2);
    assert_eq!(changes.appeared[0].ifindex, 17);
    assert_eq!(after.interface_named("eth0").unwrap().ifindex, 17);
}

#[test]
fn names_what_changed_about_an_interface() {
    let before = stacked();
    let mut after = before.clone();
    after.apply(Event::Link(Interface { up: false, ..link(2, "wan") }));
    let changes = Changes::between(&before, &after);
    assert_eq!(changes.went_down, [2]);
    assert_eq!(changes.renamed, [Rename { ifindex: 2, from: "eth0".into(), to: "wan".into() }]);
    assert!(changes.altered.is_empty(), "{:?}", changes.altered);
    let mut larger = after.clone();
    larger.apply(Event::Link(Interface { mtu: 9000, ..link(2, "wan") }));
    let changes = Changes::between(&after, &larger);
    assert_eq!((changes.came_up, changes.altered), (vec![2], vec![2]));
}

#[test]
fn a_fresh_view_knows_the_old_interfaces_again_but_not_a_successor() {
    let old = stacked();
    let mut fresh = stacked();
    fresh.apply(Event::Link(Interface { mac: Some([2; 6]), ..link(2, "eth0") }));
    fresh.continue_from(&old);
    let changes = Changes::between(&old, &fresh);
    assert_eq!(changes.appeared.len(), 1);
    assert_eq!(changes.removed[0].name, "eth0");
    let mut later = fresh.clone();
    later.apply(Event::Link(link(40, "new")));
    let newest = later.interfaces().map(|one| one.arrival).max();
    assert_eq!(later.interface(40).map(|one| one.arrival), newest, "arrival numbers go on");
}
