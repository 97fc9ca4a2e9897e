//! What may happen, chosen by octets: of a fuzzer, of a generator of random numbers, or of a test that names them.

use super::packets::{address, authentication};
use super::{Answer, Sender, Shell, Spoil};
use crate::control::controller::{ControllerOptions, PassivePeers};
use crate::control::discipline::{DisciplineOptions, FirstStep, Steering};
use crate::control::event::{Event, InstanceId, KeyId, TrustedKeys};
use crate::control::source::{
    BroadcastClientOptions, BroadcastOptions, Burst, Calibration, ManycastOptions, NTP_GROUP, NTP_PORT,
    Place, PollOptions, SourceConfiguration, SourceId, SourceKind, Unsigned, Volley,
};
use crate::time::{Log2Seconds, NtpDuration};
use crate::wire::{Header, Leap, Mode, Version};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use zerocopy::FromBytes;

/// Octets that make choices. When they are used up, all choices are zero.
#[derive(Clone, Copy, Debug)]
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    /// Nothing left?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One octet.
    pub fn octet(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// 0 to `count` - 1.
    pub fn below(&mut self, count: u8) -> u8 {
        self.octet() % count.max(1)
    }

    /// Four octets.
    pub fn word(&mut self) -> u32 {
        u32::from_le_bytes([(); 4].map(|()| self.octet()))
    }

    /// Eight octets.
    pub fn number(&mut self) -> i64 {
        i64::from_le_bytes([(); 8].map(|()| self.octet()))
    }

    /// Mostly of the size of a usual offset (up to a few milliseconds), sometimes of seconds, seldom anything at all.
    fn offset(&mut self) -> NtpDuration {
        let scale = self.octet();
        let (size, unit) = (i64::from(self.word().cast_signed()), self.octet());
        match scale {
            0..160 => NtpDuration::from_nanoseconds(size >> 10),
            160..250 => NtpDuration::from_nanoseconds(size * i64::from(unit & 3)),
            _ => NtpDuration::from_bits(size << 32),
        }
    }

    /// The options of a controller.
    pub fn options(&mut self) -> ControllerOptions {
        let octet = self.octet();
        let passive = match octet % 4 {
            0 => PassivePeers::Refused,
            1 => PassivePeers::Anyone,
            _ => PassivePeers::Authenticated,
        };
        ControllerOptions {
            passive,
            minimum_sources: u32::from(octet >> 2 & 1) + 1,
            discipline: DisciplineOptions {
                steering: if octet >> 3 & 3 == 3 { Steering::Off } else { Steering::On },
                first_step: if octet >> 5 & 1 == 1 { FirstStep::AnySize } else { FirstStep::Limited },
                ..DisciplineOptions::default()
            },
            ..ControllerOptions::default()
        }
    }
}

/// A step of a history.
#[derive(Clone, Debug)]
pub enum Happening {
    /// So much time passes, and a wake-up comes whether or not it was asked for.
    WakeUp(NtpDuration),
    /// The next wake-up that was asked for comes in time.
    WakeInTime,
    /// A request is answered.
    Answer(Answer),
    /// A request is reported sent and answered at once: what happens nearly always.
    Exchange(NtpDuration),
    /// So many wake-ups come in time, and what is asked then is answered like that: a quiet while, after which there may be
    /// something to lose.
    Quiet(u8, NtpDuration),
    /// A packet of any content comes to port 123 from this host, its MAC comes to that, and if the last is `Some`, it is
    /// to everybody.
    Packet([u8; 48], u8, u8, Option<bool>),
    /// The oldest send that is not reported yet is reported, so much late, or fails.
    Report(bool, NtpDuration),
    /// The addresses of a source's name come, whether or not they were asked for.
    Resolve(SourceId, Vec<IpAddr>),
    /// A source is configured.
    Add(SourceId, Box<SourceConfiguration>),
    /// A packet in mode 5 comes from this host to everybody, with this error and poll; what its MAC comes to.
    Broadcast(u8, NtpDuration, i8, u8),
    /// The last question to a group is answered from here; if none was asked, somebody asks our group.
    Found(u8, u8),
    /// A question to our group: from whom, its stratum, and what its MAC comes to.
    Question(u8, u8, u8),
    /// A source is no longer configured.
    Remove(SourceId),
    /// Somebody else steps the clock, and says so.
    Step(NtpDuration),
    /// Our host has these addresses.
    OwnAddresses(Vec<IpAddr>),
    /// Other keys are trusted.
    Trust(TrustedKeys),
}

impl Happening {
    /// By chance.
    pub fn choose(choices: &mut Choices<'_>) -> Self {
        let source = |choices: &mut Choices<'_>| SourceId(choices.below(6).into());
        match choices.octet() {
            0..8 => {
                Self::WakeUp(NtpDuration::from_nanoseconds(i64::from(choices.word() % 3_600_000) * 1_000_000))
            }
            8..56 => Self::WakeInTime,
            56..84 => Self::Exchange(choices.offset()),
            84..90 => Self::Quiet(choices.below(48), choices.offset()),
            90..130 => Self::Answer(answer(choices)),
            130..142 => Self::Packet(
                [(); 48].map(|()| choices.octet()),
                choices.below(12),
                choices.octet(),
                match choices.below(4) {
                    0 => Some(true),
                    1 => Some(false),
                    _ => None,
                },
            ),
            142..170 => {
                let late = if choices.below(16) == 0 { choices.number() } else { 0 };
                Self::Report(choices.below(10) != 0, NtpDuration::from_bits(late))
            }
            170..180 => {
                let source = source(choices);
                Self::Resolve(source, (0..choices.below(40)).map(|_| address(choices.octet())).collect())
            }
            180..196 => {
                let source = source(choices);
                Self::Add(source, Box::new(configuration(source, choices)))
            }
            196..214 => Self::Broadcast(
                choices.below(12),
                choices.offset(),
                choices.octet().cast_signed(),
                choices.octet(),
            ),
            214..232 => Self::Found(choices.below(40), choices.octet()),
            232..244 => Self::Question(choices.octet(), choices.below(18), choices.octet()),
            244..250 => Self::Remove(source(choices)),
            250..253 => Self::Step(choices.offset()),
            253 => Self::OwnAddresses((0..choices.below(3)).map(|_| address(choices.below(12))).collect()),
            _ => Self::Trust(trusted(choices)),
        }
    }
}

/// Mostly all of those that [`authentication`] knows.
fn trusted(choices: &mut Choices<'_>) -> TrustedKeys {
    match choices.below(6) {
        number @ 0..3 => TrustedKeys::Only(KeyId::new(number.into()).into_iter().collect()),
        _ => TrustedKeys::All,
    }
}

fn answer(choices: &mut Choices<'_>) -> Answer {
    let (count, sender) = (choices.below(3), choices.below(4));
    Answer {
        back: choices.below(16),
        lie: choices.offset(),
        delay: NtpDuration::from_nanoseconds(i64::from(choices.word() % 200_000_000)),
        sender: [Sender::OffPath, Sender::Keyless, Sender::OnPath, Sender::OnPath][usize::from(sender)],
        spoils: (0..count).map(|_| Spoil::choose(choices)).collect(),
    }
}

/// A source of any kind.
fn configuration(source: SourceId, choices: &mut Choices<'_>) -> SourceConfiguration {
    let here = address(source.0 as u8 + 1);
    let is_keyed = choices.below(2) == 0;
    let unsigned = if is_keyed { Unsigned::Refused } else { Unsigned::Allowed };
    let (kind, place) = kind(choices, unsigned, here);
    let burst = |choices: &mut Choices<'_>| if choices.below(3) == 0 { Burst::On } else { Burst::Off };
    let poll = PollOptions {
        poll_min: Log2Seconds(choices.below(12).cast_signed() - 2),
        poll_max: Log2Seconds(choices.octet().cast_signed()),
        iburst: burst(choices),
        burst: burst(choices),
    };
    let place = match choices.below(4) {
        0 => Place::Name(Arc::from("name"), NTP_PORT),
        _ => Place::Address(SocketAddr::new(place, NTP_PORT)),
    };
    let mut configuration = SourceConfiguration {
        kind,
        place,
        poll,
        key: if is_keyed { KeyId::new(1) } else { None },
        ..SourceConfiguration::server(here)
    };
    let wishes = choices.octet();
    configuration.options.prefer = wishes & 0x11 == 0x11;
    configuration.options.trust = wishes & 0x22 == 0x22;
    configuration.options.require = wishes & 0x44 == 0x44;
    configuration.options.noselect = wishes & 0x88 == 0x88;
    configuration
}

/// How a source is used, and where it is.
fn kind(choices: &mut Choices<'_>, unsigned: Unsigned, here: IpAddr) -> (SourceKind, IpAddr) {
    let any = IpAddr::from([0, 0, 0, 0]);
    let listener = BroadcastClientOptions { unsigned, ..BroadcastClientOptions::default() };
    match choices.below(16) {
        0 => {
            let options = BroadcastOptions {
                interval: Log2Seconds(choices.octet().cast_signed()),
                hop_limit: choices.octet(),
                ..BroadcastOptions::default()
            };
            (SourceKind::Broadcast(options), address(255))
        }
        1 => (SourceKind::BroadcastClient(listener), any),
        2 => (SourceKind::BroadcastClient(listener), NTP_GROUP),
        3 => {
            let calibration = Calibration::Delay(choices.offset());
            (SourceKind::BroadcastClient(BroadcastClientOptions { calibration, ..listener }), any)
        }
        4 => {
            let options = ManycastOptions {
                enough: choices.octet(),
                most: choices.octet(),
                hop_limit_max: choices.below(4),
                unsigned,
                ..ManycastOptions::default()
            };
            (SourceKind::ManycastClient(options), NTP_GROUP)
        }
        5 => (SourceKind::ManycastServer(unsigned), NTP_GROUP),
        6 => (SourceKind::Peer(Volley::On), here),
        7 => (SourceKind::Peer(Volley::Off), here),
        8 | 9 => (SourceKind::Pool(choices.octet()), here),
        _ => (SourceKind::Server, here),
    }
}

impl Shell {
    /// It happens.
    pub fn happen(&mut self, happening: Happening) {
        let from = |number| SocketAddr::new(address(number), NTP_PORT);
        match happening {
            Happening::WakeUp(duration) => {
                self.pass(duration);
                self.tell(Event::WakeUp);
            }
            Happening::WakeInTime => self.wake_in_time(),
            Happening::Answer(answer) => self.answer(&answer),
            Happening::Exchange(lie) => self.exchange(lie),
            Happening::Quiet(wake_ups, lie) => {
                for _ in 0..wake_ups {
                    self.wake_in_time();
                    self.exchange(lie);
                }
            }
            Happening::Packet(octets, remote, verdict, everybody) => {
                let Ok(header) = Header::read_from_bytes(&octets) else { return };
                let mut arrival = self.arrival(Self::service(), from(remote), header);
                arrival.authentication = authentication(verdict);
                if let Some(is_multicast) = everybody {
                    arrival = Self::to_everybody(arrival, is_multicast);
                }
                self.tell(Event::Packet(arrival));
            }
            Happening::Report(is_sent, late) => self.report_send(is_sent, late),
            Happening::Resolve(source, addresses) => self.tell(Event::Resolved { source, addresses }),
            Happening::Add(source, configuration) => {
                self.tell(Event::AddSource { source, configuration: *configuration });
            }
            Happening::Broadcast(remote, lie, poll, verdict) => {
                let mut header = Header::new(Leap::None, Version::V4, Mode::Broadcast);
                header.stratum = 1;
                header.set_poll(Log2Seconds(poll));
                header.set_transmit_timestamp(self.now.clock + lie);
                self.ask_everybody(from(remote), header, verdict);
                // Half of them are doubled on their way.
                if poll < 0 {
                    self.ask_everybody(from(remote), header, verdict);
                }
            }
            Happening::Found(remote, verdict) => self.found(from(remote), verdict),
            Happening::Question(remote, stratum, verdict) => {
                let mut header = Header::new(Leap::None, Version::V4, Mode::Client);
                header.stratum = stratum;
                header.set_transmit_timestamp(self.now.clock);
                self.ask_everybody(from(remote), header, verdict);
            }
            Happening::Remove(source) => self.tell(Event::RemoveSource(source)),
            Happening::OwnAddresses(addresses) => {
                self.tell(Event::OwnAddresses { instance: InstanceId(0), addresses });
            }
            Happening::Trust(keys) => self.tell(Event::TrustedKeys(keys)),
            Happening::Step(by) => {
                self.now.clock = self.now.clock + by;
                self.tell(Event::ClockStepped(by));
            }
        }
    }

    fn exchange(&mut self, lie: NtpDuration) {
        while !self.sends.is_empty() {
            self.report_send(true, NtpDuration::ZERO);
        }
        self.answer(&Answer { lie, ..Answer::good() });
    }

    fn ask_everybody(&mut self, from: SocketAddr, header: Header, verdict: u8) {
        let mut arrival = self.arrival(Self::service(), from, header);
        arrival.authentication = authentication(verdict);
        let is_multicast = verdict < 160;
        self.tell(Event::Packet(Self::to_everybody(arrival, is_multicast)));
    }

    fn found(&mut self, from: SocketAddr, verdict: u8) {
        let Some(question) = self.asked else { return };
        let mut header = Header::new(Leap::None, Version::V4, Mode::Server);
        header.stratum = 1;
        header.set_origin_timestamp(question.transmit_timestamp());
        header.set_receive_timestamp(self.now.clock);
        header.set_transmit_timestamp(self.now.clock);
        let mut arrival = self.arrival(Self::service(), from, header);
        arrival.authentication = authentication(verdict);
        self.tell(Event::Packet(arrival));
    }
}
