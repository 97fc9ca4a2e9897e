//! Rtnetlink bytes to [`Event`]s, and the two requests that list everything.
//!
//! Owns: which messages and attributes matter. Does not own: their layout (the netlink-packet crates).
//!
//! The one idea a newcomer lacks: the same message type speaks for several families. An RTM_DELLINK of family AF_BRIDGE
//! says that a port left a bridge, not that the interface is gone; only AF_UNSPEC ones are about the interface.

use super::view::{Address, Event, Interface, VlanLink};
use crate::sys::netlink;
use netlink_packet_core::{
    Emitable, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN,
    NetlinkBuffer, NlasIterator, Parseable, ParseableParametrized,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkHeader, LinkInfo, LinkMessage,
};
use std::io;

// linux/rtnetlink.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
pub(super) const RTM_GETADDR: u16 = 22;
/// Octets of struct ifinfomsg, before the attributes.
const LINK_HEADER: usize = 16;
// linux/if_link.h: the attributes we read. The others are not even parsed: a new kernel may change what the crate
// expects of them, and their error would hide the interface.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_LINK_NETNSID: u16 = 37;

/// The request that lists every interface ([`RTM_GETLINK`]) or every address ([`RTM_GETADDR`]).
pub(super) fn dump_request(kind: u16, sequence: u32) -> Vec<u8> {
    let payload = if kind == RTM_GETLINK {
        emitted(&LinkMessage::default())
    } else {
        emitted(&AddressMessage::default())
    };
    netlink::message(kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, &payload)
}

fn emitted(message: &impl Emitable) -> Vec<u8> {
    let mut payload = vec![0; message.buffer_len()];
    message.emit(&mut payload);
    payload
}

/// What one datagram held, besides events.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Datagram {
    /// The end of the dump with the awaited sequence number.
    pub(super) done: bool,
    /// The kernel says that a dump is inconsistent or that messages were lost.
    pub(super) broken: bool,
}

/// Reads every message of a datagram and hands each event to `take`. What makes no sense is left out.
///
/// # Errors
/// The kernel refused the dump with sequence number `awaited`.
pub(super) fn read_datagram(bytes: &[u8], awaited: u32, mut take: impl FnMut(Event)) -> io::Result<Datagram> {
    let mut datagram = Datagram::default();
    let mut rest = bytes;
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        datagram.broken |= message.flags() & NLM_F_DUMP_INTR != 0;
        match message.message_type() {
            NLMSG_DONE => datagram.done |= message.sequence_number() == awaited,
            NLMSG_ERROR if message.sequence_number() == awaited => {
                return Err(netlink::error_of(message.payload()));
            }
            NLMSG_OVERRUN => datagram.broken = true,
            kind => {
                if let Some(event) = decode(kind, message.payload()) {
                    take(event);
                }
            }
        }
        let length = (message.length() as usize).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(datagram)
}

/// The event in the payload of one message, if it is one.
fn decode(kind: u16, payload: &[u8]) -> Option<Event> {
    match kind {
        RTM_NEWLINK => decode_link(payload).map(Event::Link),
        RTM_DELLINK => {
            let header = LinkHeader::parse(payload).ok()?;
            (header.interface_family == AddressFamily::Unspec).then_some(Event::LinkGone(header.index))
        }
        RTM_NEWADDR => decode_address(payload).map(Event::Address),
        RTM_DELADDR => decode_address(payload).map(Event::AddressGone),
        _ => None,
    }
}

fn decode_link(payload: &[u8]) -> Option<Interface> {
    let header = LinkHeader::parse(payload).ok()?;
    if header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let (mut name, mut mtu, mut mac, mut kind) = (None, None, None, None);
    let (mut rx_queues, mut tx_queues) = (None, None);
    let (mut parent, mut parent_elsewhere, mut tag, mut master) = (None, false, None, None);
    for nla in NlasIterator::new(payload.get(LINK_HEADER..)?) {
        let nla = nla.ok()?;
        let wanted = [
            IFLA_ADDRESS,
            IFLA_IFNAME,
            IFLA_MTU,
            IFLA_LINK,
            IFLA_MASTER,
            IFLA_LINKINFO,
            IFLA_NUM_TX_QUEUES,
            IFLA_NUM_RX_QUEUES,
            IFLA_LINK_NETNSID,
        ];
        if !wanted.contains(&nla.kind()) {
            continue;
        }
        match LinkAttribute::parse_with_param(&nla, AddressFamily::Unspec) {
            Ok(LinkAttribute::IfName(value)) => name = Some(value),
            Ok(LinkAttribute::Mtu(value)) => mtu = Some(value),
            Ok(LinkAttribute::Address(value)) => mac = <[u8; 6]>::try_from(value).ok(),
            Ok(LinkAttribute::Link(value)) => parent = Some(value),
            Ok(LinkAttribute::Controller(value)) => master = Some(value),
            Ok(LinkAttribute::LinkNetNsId(_)) => parent_elsewhere = true,
            Ok(LinkAttribute::NumRxQueues(value)) => rx_queues = Some(value),
            Ok(LinkAttribute::NumTxQueues(value)) => tx_queues = Some(value),
            Ok(LinkAttribute::LinkInfo(infos)) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Other(value)) => kind = Some(value),
                        LinkInfo::Kind(value) => kind = Some(value.to_string()),
                        LinkInfo::Data(InfoData::Vlan(data)) => tag = vlan_tag(&data),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let enabled = header.flags.contains(LinkFlags::Up);
    Some(Interface {
        ifindex: header.index,
        name: name?,
        enabled,
        up: enabled && header.flags.contains(LinkFlags::LowerUp),
        // A wireless event is an RTM_NEWLINK with a name and nothing else: no MTU, nothing for us.
        mtu: mtu?,
        mac,
        kind,
        master,
        rx_queues,
        tx_queues,
        vlan: match (parent, tag) {
            (Some(parent), Some((id, protocol))) if !parent_elsewhere => {
                Some(VlanLink { parent, id, protocol })
            }
            _ => None,
        },
        arrival: 0,
    })
}

/// Identifier and EtherType of a VLAN interface.
fn vlan_tag(data: &[InfoVlan]) -> Option<(u16, u16)> {
    let mut id = None;
    let mut protocol = 0x8100;
    for one in data {
        match one {
            InfoVlan::Id(value) => id = Some(value & 0xfff),
            InfoVlan::Protocol(value) => protocol = u16::from(*value),
            _ => {}
        }
    }
    Some((id?, protocol))
}

fn decode_address(payload: &[u8]) -> Option<Address> {
    let message = AddressMessage::parse(payload).ok()?;
    // The header has room for eight flags only; the attribute, where there is one, repeats and extends them.
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let (mut local, mut address) = (None, None);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(value) => local = Some(value),
            AddressAttribute::Address(value) => address = Some(value),
            AddressAttribute::Flags(value) => flags = value,
            _ => {}
        }
    }
    // IPv6 leaves IFA_LOCAL out where there is no peer (rtnetlink(7)).
    let local = local.or(address)?;
    Some(Address {
        ifindex: message.header.index,
        address: local,
        peer: address.unwrap_or(local),
        prefix_length: message.header.prefix_len,
        scope: message.header.scope.into(),
        tentative: flags.contains(AddressFlags::Tentative),
        optimistic: flags.contains(AddressFlags::Optimistic),
        dad_failed: flags.contains(AddressFlags::Dadfailed),
        deprecated: flags.contains(AddressFlags::Deprecated),
    })
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
