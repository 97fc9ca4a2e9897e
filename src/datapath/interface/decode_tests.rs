use super::*;
use netlink_packet_core::NetlinkHeader;
use netlink_packet_route::address::{AddressHeader, AddressHeaderFlags};
use netlink_packet_route::link::VlanProtocol;
use proptest::prelude::*;

fn encoded(kind: u16, flags: u16, sequence: u32, message: &impl Emitable) -> Vec<u8> {
    let mut bytes = netlink::message(kind, flags, sequence, &emitted(message));
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn link_message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
    message.attributes = attributes;
    message
}

fn vlan_message() -> LinkMessage {
    let data = vec![InfoVlan::Id(7), InfoVlan::Protocol(VlanProtocol::Ieee8021Ad)];
    link_message(
        3,
        vec![
            LinkAttribute::IfName("eth0.7".into()),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Link(2),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::NumRxQueues(4),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(data)),
            ]),
        ],
    )
}

fn events(bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    let _ = read_datagram(bytes, 1, |event| events.push(event));
    events
}

fn one_link(message: &LinkMessage) -> Interface {
    match events(&encoded(RTM_NEWLINK, 0, 0, message)).pop() {
        Some(Event::Link(link)) => link,
        other => panic!("not a link: {other:?}"),
    }
}

#[test]
fn reads_a_vlan_interface() {
    let link = one_link(&vlan_message());
    assert_eq!(link.vlan, Some(VlanLink { parent: 2, id: 7, protocol: 0x88a8 }));
    assert_eq!((link.name.as_str(), link.mtu, link.up, link.rx_queues), ("eth0.7", 1500, true, Some(4)));
    assert_eq!((link.mac, link.kind.as_deref()), (Some([2, 0, 0, 0, 0, 1]), Some("vlan")));
}

#[test]
fn a_parent_in_another_namespace_is_no_parent_here() {
    let mut message = vlan_message();
    message.attributes.push(LinkAttribute::LinkNetNsId(0));
    assert_eq!(one_link(&message).vlan, None);
}

#[test]
fn the_other_end_of_a_veth_pair_is_not_a_parent() {
    let mut message = vlan_message();
    message.attributes.retain(|one| !matches!(one, LinkAttribute::LinkInfo(_)));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]));
    let link = one_link(&message);
    assert_eq!((link.vlan, link.kind.as_deref()), (None, Some("veth")));
}

#[test]
fn leaving_a_bridge_is_not_leaving_the_machine() {
    let mut message = vlan_message();
    message.header.interface_family = AddressFamily::Bridge;
    assert_eq!(events(&encoded(RTM_DELLINK, 0, 0, &message)), []);
    assert_eq!(events(&encoded(RTM_NEWLINK, 0, 0, &message)), []);
    message.header.interface_family = AddressFamily::Unspec;
    assert_eq!(events(&encoded(RTM_DELLINK, 0, 0, &message)), [Event::LinkGone(3)]);
}

#[test]
fn a_wireless_event_does_not_wipe_what_is_known() {
    let message = link_message(3, vec![LinkAttribute::IfName("wlan0".into())]);
    assert_eq!(events(&encoded(RTM_NEWLINK, 0, 0, &message)), []);
}

#[test]
fn attributes_that_do_not_matter_may_be_nonsense() {
    let mut bytes = emitted(&vlan_message());
    // IFLA_LINKMODE is one octet; make it none, which the crate's own parser takes for an error.
    bytes.extend_from_slice(&[4, 0, 17, 0]);
    assert!(LinkMessage::parse(&bytes).is_err());
    assert!(matches!(decode(RTM_NEWLINK, &bytes), Some(Event::Link(_))));
}

fn address_message(attributes: Vec<AddressAttribute>) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header = AddressHeader {
        family: AddressFamily::Inet6,
        prefix_len: 64,
        flags: AddressHeaderFlags::Permanent,
        scope: 253.into(),
        index: 2,
    };
    message.attributes = attributes;
    message
}

#[test]
fn our_side_of_a_point_to_point_address_is_the_local_one() {
    let (ours, theirs) = ("10.99.0.1".parse().unwrap(), "10.99.0.2".parse().unwrap());
    let message = address_message(vec![AddressAttribute::Address(theirs), AddressAttribute::Local(ours)]);
    let Some(Event::Address(address)) = decode(RTM_NEWADDR, &emitted(&message)) else { panic!() };
    assert_eq!((address.address, address.peer), (ours, theirs));
    assert_eq!((address.ifindex, address.prefix_length, address.scope), (2, 64, 253));
}

#[test]
fn reads_the_state_of_an_ipv6_address() {
    let flags = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::StablePrivacy;
    let address = "fd99::1".parse().unwrap();
    let message = address_message(vec![AddressAttribute::Address(address), AddressAttribute::Flags(flags)]);
    let Some(Event::AddressGone(one)) = decode(RTM_DELADDR, &emitted(&message)) else { panic!() };
    assert_eq!((one.address, one.peer), (address, address));
    assert!(one.tentative && one.dad_failed && !one.deprecated && !one.optimistic && !one.is_usable());
}

#[test]
fn only_the_awaited_dump_ends_or_fails_the_dump() {
    let done = |sequence| netlink::message(NLMSG_DONE, 0, sequence, &[0; 4]);
    let refused = |sequence| netlink::message(NLMSG_ERROR, 0, sequence, &(-libc::EPERM).to_ne_bytes());
    let read = |bytes: &[u8]| read_datagram(bytes, 5, |_| {});
    assert!(!read(&done(4)).unwrap().done);
    assert!(read(&[done(4), done(5)].concat()).unwrap().done, "messages share a datagram");
    assert!(read(&refused(4)).is_ok());
    assert_eq!(read(&refused(5)).unwrap_err().raw_os_error(), Some(libc::EPERM));
}

#[test]
fn an_interrupted_dump_is_broken() {
    let bytes = encoded(RTM_NEWLINK, NLM_F_DUMP_INTR, 1, &vlan_message());
    assert!(read_datagram(&bytes, 1, |_| {}).unwrap().broken);
    assert!(!read_datagram(&encoded(RTM_NEWLINK, 0, 1, &vlan_message()), 1, |_| {}).unwrap().broken);
}

#[test]
fn a_dump_request_asks_for_everything() {
    for kind in [RTM_GETLINK, RTM_GETADDR] {
        let bytes = dump_request(kind, 9);
        let message = NetlinkBuffer::new_checked(&bytes[..]).unwrap();
        let header = NetlinkHeader::parse(&NetlinkBuffer::new(&bytes)).unwrap();
        assert_eq!((header.message_type, header.sequence_number), (kind, 9));
        assert_eq!(message.flags(), NLM_F_REQUEST | NLM_F_DUMP);
        assert!(message.payload().iter().all(|&octet| octet == 0), "family and index 0 mean all");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(
        mut bytes in prop_oneof![
            Just(encoded(RTM_NEWLINK, 0, 1, &vlan_message())),
            Just(encoded(RTM_NEWADDR, 0, 1, &address_message(vec![
                AddressAttribute::Address("fd99::1".parse().unwrap()),
                AddressAttribute::Flags(AddressFlags::Tentative),
            ]))),
            proptest::collection::vec(any::<u8>(), 0..200),
        ],
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..8),
        cut in any::<usize>(),
    ) {
        for (at, value) in changes {
            let length = bytes.len().max(1);
            if let Some(octet) = bytes.get_mut(at % length) { *octet = value; }
        }
        bytes.truncate(cut % (2 * bytes.len() + 1));
        let mut seen = 0;
        let _ = read_datagram(&bytes, 1, |_| seen += 1);
        prop_assert!(seen <= bytes.len() / 16, "{seen} events in {} octets", bytes.len());
    }
}
