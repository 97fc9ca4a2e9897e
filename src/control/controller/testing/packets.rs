//! Packets that might be answers: a good one, and what may be wrong with it.

use super::{Choices, Request, Shell};
use crate::control::event::{
    Access, Arrival, Authentication, Delivery, Event, ExchangeSocket, InstanceId, InterfaceIndex, KeyId,
    SocketName, StampKind,
};
use crate::control::source::NTP_GROUP;
use crate::time::{Log2Seconds, NtpDuration, NtpShort, NtpTimestamp};
use crate::wire::{Header, Leap, Mode, ReferenceId, Version};
use std::net::{IpAddr, SocketAddr};
use zerocopy::IntoBytes;

/// Who sends the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// Somebody who saw the request, and has the key.
    OnPath,
    /// Somebody who saw the request, but has no key.
    Keyless,
    /// Somebody who saw nothing, and has no key.
    OffPath,
}

/// What is wrong with an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spoil {
    /// The origin timestamp: one unit off, zero, or that of another request.
    Origin(u8),
    /// Receive or transmit timestamp zero, or the transmit timestamp never changes.
    Timestamps(u8),
    /// Leap indicator 3.
    Leap,
    /// The stratum.
    Stratum(u8),
    /// A Kiss-o'-Death with this code.
    Kiss([u8; 4]),
    /// Root delay and dispersion.
    Root(u32, u32),
    /// The reference timestamp is after the transmit timestamp.
    Reference,
    /// It follows us, or whom we follow.
    Loop(u8),
    /// The mode.
    Mode(u8),
    /// The version.
    Version(u8),
    /// The poll interval.
    Poll(i8),
    /// The precision.
    Precision(i8),
    /// What its MAC comes to.
    Mac(u8),
    /// The access list denies it.
    Access,
    /// From another port.
    Port(u16),
    /// From another address.
    Address(u8),
    /// Through another socket.
    Socket(u8),
    /// In another instance.
    Instance,
    /// To the group, or to the broadcast address.
    Everybody(bool),
    /// On another interface.
    Interface(u8),
    /// Any octet at all.
    Octet(u8, u8),
}

const CODES: [[u8; 4]; 8] =
    [*b"DENY", *b"RSTR", *b"RATE", *b"XYZ\0", *b"INIT", *b"STEP", *b"NTSN", [0xff, 0, 0, 1]];

impl Spoil {
    /// By chance.
    pub fn choose(choices: &mut Choices<'_>) -> Self {
        match choices.below(21) {
            0 => Self::Origin(choices.octet()),
            1 => Self::Timestamps(choices.octet()),
            2 => Self::Leap,
            3 => Self::Stratum(choices.octet()),
            4 => Self::Kiss(CODES[usize::from(choices.below(8))]),
            5 => Self::Root(choices.word(), choices.word()),
            6 => Self::Reference,
            7 => Self::Loop(choices.octet()),
            8 => Self::Mode(choices.below(8)),
            9 => Self::Version(choices.below(8)),
            10 => Self::Poll(choices.octet().cast_signed()),
            11 => Self::Precision(choices.octet().cast_signed()),
            12 => Self::Mac(choices.octet()),
            13 => Self::Access,
            14 => Self::Port(choices.word() as u16),
            15 => Self::Address(choices.octet()),
            16 => Self::Socket(choices.octet()),
            17 => Self::Instance,
            18 => Self::Everybody(choices.octet() < 128),
            19 => Self::Interface(choices.octet()),
            _ => Self::Octet(choices.octet(), choices.octet()),
        }
    }
}

/// An answer to one of the last requests.
#[derive(Clone, Debug)]
pub struct Answer {
    /// To which: 0 is the latest.
    pub back: u8,
    /// How far its sender's clock is ahead of ours.
    pub lie: NtpDuration,
    /// How long it is under way.
    pub delay: NtpDuration,
    /// By whom it is sent.
    pub sender: Sender,
    /// What is wrong with it.
    pub spoils: Vec<Spoil>,
}

impl Answer {
    /// A good one to the latest request, a microsecond later.
    #[must_use]
    pub const fn good() -> Self {
        Self {
            back: 0,
            lie: NtpDuration::ZERO,
            delay: NtpDuration::from_nanoseconds(1000),
            sender: Sender::OnPath,
            spoils: Vec::new(),
        }
    }
}

/// The key of those who have one.
pub(super) fn key() -> KeyId {
    KeyId::new(1).expect("not zero")
}

/// An address of the network.
pub(super) fn address(number: u8) -> IpAddr {
    [10, 99, 0, number].into()
}

/// The address that packets come to.
const OURS: u8 = 200;

impl Shell {
    /// A packet that came to one of our addresses.
    #[must_use]
    pub fn arrival(&self, socket: SocketName, remote: SocketAddr, header: Header) -> Arrival {
        Arrival {
            socket,
            instance: InstanceId(0),
            interface: InterfaceIndex(1),
            remote,
            local: address(OURS),
            delivery: Delivery::Unicast,
            receive_timestamp: self.now.clock,
            stamp: StampKind::Kernel,
            access: Access::Allowed,
            authentication: Authentication::Valid(key()),
            header,
        }
    }

    /// The same packet, sent to everybody.
    #[must_use]
    pub fn to_everybody(arrival: Arrival, is_multicast: bool) -> Arrival {
        let (delivery, local) =
            if is_multicast { (Delivery::Multicast, NTP_GROUP) } else { (Delivery::Broadcast, address(255)) };
        Arrival { delivery, local, ..arrival }
    }

    /// The good answer to a request, as of now.
    #[must_use]
    pub fn good_answer(&self, request: &Request, lie: NtpDuration) -> Arrival {
        let mode = match request.header.mode() {
            Mode::SymmetricActive => Mode::SymmetricPassive,
            Mode::SymmetricPassive => Mode::SymmetricActive,
            _ => Mode::Server,
        };
        let mut header = Header::new(Leap::None, Version::V4, mode);
        let time = self.now.clock + lie;
        header.stratum = 1;
        header.set_poll(request.header.poll());
        header.set_precision(Log2Seconds(-20));
        header.reference_id = ReferenceId(*b"GPS\0");
        header.set_origin_timestamp(request.header.transmit_timestamp());
        // It was heard at once, and answered now.
        header.set_receive_timestamp(time - (self.now.monotonic - request.time));
        header.set_transmit_timestamp(time);
        self.arrival(request.from, request.to, header)
    }

    /// Somebody answers.
    pub fn answer(&mut self, answer: &Answer) {
        let Some(place) = self.requests.len().checked_sub(1 + usize::from(answer.back)) else { return };
        let request = self.requests[place];
        self.pass(answer.delay);
        let mut arrival = self.good_answer(&request, answer.lie);
        for spoil in &answer.spoils {
            arrival = self.spoiled(arrival, *spoil);
        }
        if answer.sender != Sender::OnPath && matches!(arrival.authentication, Authentication::Valid(_)) {
            arrival.authentication = Authentication::None;
        }
        if answer.sender == Sender::OffPath {
            arrival = self.guessed(arrival, &request);
        }
        self.tell(Event::Packet(arrival));
    }

    /// What becomes of a packet if its sender has not seen the request.
    fn guessed(&self, mut arrival: Arrival, request: &Request) -> Arrival {
        let is_seen = self
            .requests
            .iter()
            .map(|request| request.header)
            .chain(self.asked)
            .any(|header| header.transmit_timestamp() == arrival.header.origin_timestamp());
        if is_seen {
            let guess = request.header.transmit_timestamp() + NtpDuration::from_bits(0x1234_5678);
            arrival.header.set_origin_timestamp(guess);
        }
        arrival
    }

    fn spoiled(&self, mut arrival: Arrival, spoil: Spoil) -> Arrival {
        let header = &mut arrival.header;
        let other = |back: u8| {
            let place = usize::from(back) % self.requests.len().max(1);
            self.requests.get(place).map_or(NtpTimestamp::UNKNOWN, |it| it.header.transmit_timestamp())
        };
        match spoil {
            Spoil::Origin(0) => {
                header.set_origin_timestamp(header.origin_timestamp() + NtpDuration::from_bits(1));
            }
            Spoil::Origin(1..=20) => header.set_origin_timestamp(NtpTimestamp::UNKNOWN),
            Spoil::Origin(back) => header.set_origin_timestamp(other(back)),
            Spoil::Timestamps(0..100) => header.set_receive_timestamp(NtpTimestamp::UNKNOWN),
            Spoil::Timestamps(100..200) => header.set_transmit_timestamp(NtpTimestamp::UNKNOWN),
            Spoil::Timestamps(_) => header.set_transmit_timestamp(super::START.clock),
            Spoil::Leap => header.as_mut_bytes()[0] |= 0xc0,
            Spoil::Stratum(stratum) => header.stratum = stratum,
            Spoil::Kiss(code) => {
                header.as_mut_bytes()[0] |= 0xc0;
                (header.stratum, header.reference_id) = (0, ReferenceId(code));
            }
            Spoil::Root(delay, dispersion) => {
                header.set_root_delay(NtpShort::from_bits(delay));
                header.set_root_dispersion(NtpShort::from_bits(dispersion));
            }
            Spoil::Reference => {
                let late = header.transmit_timestamp() + NtpDuration::from_seconds(1);
                header.set_reference_timestamp(late);
            }
            Spoil::Loop(number) => {
                let followed = if number < 128 { OURS } else { number % 8 };
                (header.stratum, header.reference_id) = (2, ReferenceId([10, 99, 0, followed]));
            }
            Spoil::Mode(mode) => header.as_mut_bytes()[0] = header.as_bytes()[0] & !7 | mode & 7,
            Spoil::Version(version) => {
                header.as_mut_bytes()[0] = header.as_bytes()[0] & !0x38 | (version & 7) << 3;
            }
            Spoil::Poll(poll) => header.set_poll(Log2Seconds(poll)),
            Spoil::Precision(precision) => header.set_precision(Log2Seconds(precision)),
            Spoil::Mac(verdict) => arrival.authentication = authentication(verdict),
            Spoil::Access => arrival.access = Access::Denied,
            Spoil::Port(port) => arrival.remote.set_port(port),
            Spoil::Address(number) => arrival.remote.set_ip(address(number)),
            Spoil::Socket(0..128) => arrival.socket = Self::service(),
            Spoil::Socket(number) => {
                let association = self.controller.associations().next().map(|association| association.id);
                if let Some(association) = association {
                    arrival.socket =
                        SocketName::Exchange(ExchangeSocket { association, exchange: number.into() });
                }
            }
            Spoil::Instance => arrival.instance = InstanceId(1),
            Spoil::Everybody(is_multicast) => arrival = Self::to_everybody(arrival, is_multicast),
            Spoil::Interface(number) => arrival.interface = InterfaceIndex(number.into()),
            Spoil::Octet(place, value) => {
                let octets = header.as_mut_bytes();
                let length = octets.len();
                octets[usize::from(place) % length] = value;
            }
        }
        arrival
    }
}

/// What a MAC may come to.
pub(super) fn authentication(verdict: u8) -> Authentication {
    match verdict % 8 {
        0 => Authentication::None,
        1 => Authentication::Invalid,
        2 => Authentication::CryptoNak,
        3 => KeyId::new(2).map_or(Authentication::None, Authentication::Valid),
        _ => Authentication::Valid(key()),
    }
}
