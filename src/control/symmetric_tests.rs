//! Two ends on paper: every packet and every clock reading is written down.

use super::super::kiss::Kiss;
use super::super::{Access, Authentication, Delivery, InstanceId, InterfaceIndex, SocketName, StampKind};
use super::*;
use crate::time::Ppm;
use crate::wire::{KissCode, ReferenceId};

const EPOCH: NtpTimestamp = NtpTimestamp::from_bits(0xee00_0000_0000_0000);
const PRECISION: Log2Seconds = Log2Seconds(-20);

fn milliseconds(count: i64) -> NtpDuration {
    NtpDuration::from_nanoseconds(count * 1_000_000)
}

fn at(count: i64) -> NtpTimestamp {
    EPOCH + milliseconds(count)
}

fn near(duration: NtpDuration, milliseconds: f64) -> bool {
    (duration.seconds() * 1e3 - milliseconds).abs() < 1e-3
}

fn snapshot() -> SystemSnapshot {
    SystemSnapshot {
        leap: Leap::None,
        stratum: 3,
        reference_id: ReferenceId([10, 99, 0, 7]),
        reference_instance: None,
        reference_id_elsewhere: ReferenceId::NOBODY,
        precision: PRECISION,
        root_delay: milliseconds(40),
        root_dispersion: milliseconds(10),
        dispersion_rate: Ppm::FREQUENCY_TOLERANCE,
        reference_timestamp: at(-64_000),
    }
}

/// One end, and how far its clock is ahead of the paper's.
struct End {
    symmetric: Symmetric,
    ahead: NtpDuration,
    slewed: NtpDuration,
    number: u64,
}

impl End {
    fn new(symmetric: Symmetric, ahead: i64) -> Self {
        Self { symmetric, ahead: milliseconds(ahead), slewed: NtpDuration::ZERO, number: 0 }
    }

    fn active(ahead: i64) -> Self {
        Self::new(Symmetric::active(Volley::Off, Version::V4), ahead)
    }

    /// A packet at this time, which leaves.
    fn send(&mut self, time: i64) -> Header {
        self.number += 1;
        let clock = at(time) + self.ahead;
        let ours = Ours { snapshot: snapshot(), clock, slewed: self.slewed, poll: Log2Seconds(6) };
        let mut header = self.symmetric.message(self.number, &ours);
        header.set_transmit_timestamp(clock);
        self.symmetric.on_sent(self.number, SendStamp { written: clock, departed: clock });
        header
    }

    fn arrival(&self, time: i64, header: Header) -> Arrival {
        Arrival {
            socket: SocketName::Service(InstanceId(0)),
            instance: InstanceId(0),
            interface: InterfaceIndex(1),
            remote: ([10, 99, 0, 2], 123).into(),
            local: [10, 99, 0, 1].into(),
            delivery: Delivery::Unicast,
            receive_timestamp: at(time) + self.ahead,
            stamp: StampKind::Kernel,
            access: Access::Allowed,
            authentication: Authentication::None,
            header,
        }
    }

    fn take(&mut self, arrival: &Arrival) -> Outcome {
        self.symmetric.receive(Timestamp::ZERO, arrival, None, PRECISION, self.slewed)
    }

    fn receive(&mut self, time: i64, header: Header) -> Outcome {
        let arrival = self.arrival(time, header);
        self.take(&arrival)
    }

    /// What the next packet would echo.
    fn echo(&self) -> Option<(NtpTimestamp, NtpTimestamp)> {
        self.symmetric.heard.map(|heard| (heard.transmit_timestamp, heard.received.time))
    }
}

/// Two ends that have heard each other twice; the second is 5 ms ahead. The last packet was the first end's, at 64 s.
fn peering() -> (End, End) {
    let (mut one, mut other) = (End::active(0), End::active(5));
    let first = one.send(0);
    assert_eq!(other.receive(10, first), Outcome::Refused(Failure::Invalid));
    let second = other.send(20);
    assert!(matches!(one.receive(30, second), Outcome::Measured(_)));
    let third = one.send(64_000);
    assert!(matches!(other.receive(64_010, third), Outcome::Measured(_)));
    (one, other)
}

fn changed(mut header: Header, change: impl FnOnce(&mut Header)) -> Header {
    change(&mut header);
    header
}

/// RFC 5905 figure 15: the first packet echoes nothing and gives no sample (figure 22, test 3), the second one does both;
/// each end computes the offset of the other. Checklist 21.
#[test]
fn the_first_packets_go_as_in_figure_15() {
    let (mut one, mut other) = (End::active(0), End::active(5));
    let first = one.send(0);
    assert!(first.origin_timestamp().is_unknown() && first.receive_timestamp().is_unknown());
    assert_eq!(other.receive(10, first), Outcome::Refused(Failure::Invalid));
    assert!(other.symmetric.owes_answer());
    let second = other.send(20);
    assert!(!other.symmetric.owes_answer());
    assert_eq!(second.origin_timestamp(), first.transmit_timestamp());
    assert_eq!(second.receive_timestamp(), at(10) + milliseconds(5));
    let Outcome::Measured(sample) = one.receive(30, second) else { panic!("no sample") };
    assert!(near(sample.offset, 5.0) && near(sample.delay, 20.0), "{sample:?}");
    let third = one.send(64_000);
    assert_eq!(third.origin_timestamp(), second.transmit_timestamp());
    let Outcome::Measured(sample) = other.receive(64_010, third) else { panic!("no sample") };
    assert!(near(sample.offset, -5.0) && near(sample.delay, 20.0), "{sample:?}");
}

/// RFC 5905 figure 30, and section 7.3 for the units: what a packet says is the system's.
#[test]
fn packets_carry_the_system_variables() {
    let header = End::active(0).send(0);
    assert_eq!(
        (header.leap(), header.version_number(), header.mode()),
        (Leap::None, 4, Mode::SymmetricActive)
    );
    assert_eq!((header.stratum, header.poll(), header.precision()), (3, Log2Seconds(6), PRECISION));
    assert!((header.root_delay().to_duration().seconds() - 0.040).abs() < 16e-6);
    let dispersion = header.root_dispersion().to_duration().seconds();
    assert!((dispersion - (0.010 + 64.0 * 15e-6)).abs() < 32e-6, "{dispersion}");
    assert_eq!(header.reference_id, ReferenceId([10, 99, 0, 7]));
    assert_eq!(header.reference_timestamp(), at(-64_000));
}

/// A lost packet costs its sample, and neither end falls out of step: each accepts answers to earlier packets.
#[test]
fn lost_packets_do_not_part_the_ends() {
    let (mut one, mut other) = peering();
    let _lost = other.send(70_000);
    let _lost = one.send(128_000);
    let late = other.send(140_000);
    let Outcome::Measured(sample) = one.receive(140_010, late) else { panic!("no sample") };
    assert!(near(sample.offset, 5.0) && near(sample.delay, 20.0), "T1 is that of the packet that arrived");
    let next = one.send(192_000);
    assert!(matches!(other.receive(192_010, next), Outcome::Measured(_)));
}

/// A peer that was restarted knows nothing and sends zero origins, which we do not believe; our next packet is what
/// brings both together again.
#[test]
fn a_restarted_peer_is_found_again_by_our_next_packet() {
    let (mut one, _) = peering();
    let mut other = End::active(-300);
    let hello = other.send(100_000);
    assert_eq!(one.receive(100_010, hello), Outcome::Refused(Failure::Invalid));
    let ours = one.send(128_000);
    assert_ne!(ours.origin_timestamp(), hello.transmit_timestamp());
    assert_eq!(other.receive(128_010, ours), Outcome::Refused(Failure::Bogus));
    let answer = other.send(128_020);
    assert!(matches!(one.receive(128_030, answer), Outcome::Measured(_)), "although its clock was set back");
    let ours = one.send(192_000);
    assert!(matches!(other.receive(192_010, ours), Outcome::Measured(_)));
}

/// After eight polls in vain nothing is proven, and a zero origin begins the peering anew (figure 15).
#[test]
fn after_eight_polls_in_vain_a_zero_origin_is_echoed_again() {
    let (mut one, _) = peering();
    let hello = |time| {
        changed(Header::new(Leap::None, Version::V4, Mode::SymmetricActive), |header| {
            header.set_transmit_timestamp(at(time));
        })
    };
    for poll in 2..=9 {
        assert!(!one.symmetric.is_silent());
        let before = one.echo();
        assert_eq!(one.receive(poll * 64_000, hello(poll)), Outcome::Refused(Failure::Invalid));
        assert_eq!(one.echo(), before);
        let _lost = one.send(poll * 64_000 + 10);
    }
    assert!(one.symmetric.is_silent());
    assert_eq!(one.receive(700_000, hello(1)), Outcome::Refused(Failure::Invalid));
    assert_eq!(one.echo(), Some((at(1), at(700_000))));
}

/// The clock is slewed while an exchange is under way: T1, and the receive timestamp that we echo, are given as if it
/// had been slewed before.
#[test]
fn slews_during_an_exchange_do_not_spoil_it() {
    let (mut one, mut other) = peering();
    let by = milliseconds(3);
    let slew = |end: &mut End| {
        end.ahead = end.ahead + by;
        end.slewed = end.slewed + by;
    };
    let next = one.send(128_000);
    assert_eq!(other.receive(128_010, next), Outcome::Refused(Failure::Bogus));
    slew(&mut other);
    let answer = other.send(160_000);
    assert_eq!(answer.receive_timestamp(), at(128_010) + milliseconds(8));
    slew(&mut one);
    let Outcome::Measured(sample) = one.receive(160_010, answer) else { panic!("no sample") };
    assert!(near(sample.offset, 5.0) && near(sample.delay, 20.0), "{sample:?}");
}

/// RFC 5905 A.5.1.1: a peer that is not synchronised gives no sample (test 6), yet the peering lives.
#[test]
fn an_unsynchronised_peer_is_echoed_but_not_measured() {
    let (mut one, mut other) = peering();
    let mut answer = Header::new(Leap::Unsynchronised, Version::V4, Mode::SymmetricActive);
    let model = other.send(70_000);
    // As ntpd has it before it is synchronised: not a kiss.
    answer.reference_id = ReferenceId(*b"INIT");
    answer.set_origin_timestamp(model.origin_timestamp());
    answer.set_receive_timestamp(model.receive_timestamp());
    answer.set_transmit_timestamp(model.transmit_timestamp());
    assert_eq!(one.receive(70_010, answer), Outcome::Timeless(Failure::Unsynchronised));
    assert_eq!(one.send(128_000).origin_timestamp(), model.transmit_timestamp());
}

/// RFC 5905 section 11.2.3: a step voids all timestamps of ours; the peering begins anew, with its volley.
#[test]
fn a_step_of_our_clock_begins_the_peering_anew() {
    let (mut one, mut other) = peering();
    let answer = other.send(70_000);
    one.symmetric.forget();
    assert_eq!(one.receive(70_010, answer), Outcome::Refused(Failure::Bogus), "T1 is void");
    let mut fresh = Symmetric::active(Volley::On, Version::V4);
    assert!(fresh.begins_with_volley() && fresh.end_volley());
    assert!(!fresh.begins_with_volley());
    fresh.forget();
    assert!(fresh.begins_with_volley());
}

/// One exchange in mode 3 and 4, whatever comes of it.
#[test]
fn the_volley_is_sent_once_and_only_where_it_is_wanted() {
    let mut active = Symmetric::active(Volley::On, Version::V4);
    assert!(active.begins_with_volley());
    assert!(!active.begins_with_volley(), "the next poll comes before its end: mode 1");
    assert!(!active.end_volley());
    assert!(!Symmetric::active(Volley::Off, Version::V4).begins_with_volley());
}

/// RFC 5905 A.5.1, NEWPS: "mobilized in the same version as in the packet"; and it echoes that packet.
#[test]
fn the_passive_end_speaks_the_version_it_was_asked_in() {
    let one = End::active(0);
    let mut header = Header::new(Leap::None, Version::new(3).unwrap(), Mode::SymmetricActive);
    header.set_transmit_timestamp(at(0));
    let arrival = one.arrival(10, header);
    let mut passive = End::new(Symmetric::passive(&arrival, NtpDuration::ZERO), 0);
    assert!(passive.symmetric.owes_answer());
    let answer = passive.send(20);
    assert_eq!((answer.version_number(), answer.mode()), (3, Mode::SymmetricPassive));
    assert_eq!(answer.origin_timestamp(), at(0));
    assert_eq!(answer.receive_timestamp(), at(10));
    let ours = Ours { snapshot: snapshot(), clock: at(20), slewed: NtpDuration::ZERO, poll: Log2Seconds(6) };
    let once = answer_in(Mode::SymmetricPassive, &arrival, &ours);
    assert_eq!((once.version_number(), once.mode()), (3, Mode::SymmetricPassive));
    assert_eq!((once.origin_timestamp(), once.receive_timestamp()), (at(0), at(10)));
    assert_eq!(once.stratum, 3);
}

/// RFC 5905 sections 7.3 and 11.1: 0 on the wire is 16 inside, and so is leap 3 of any stratum. Checklist 4.
#[test]
fn strata_compare_as_numbers() {
    let table = [
        (Leap::None, 1, 1),
        (Leap::Insert, 15, 15),
        (Leap::None, 16, 16),
        (Leap::None, 0, 16),
        (Leap::None, 255, 16),
        (Leap::Unsynchronised, 2, 16),
    ];
    for (leap, stratum, expected) in table {
        assert_eq!(stratum_number(leap, stratum), expected, "{leap:?} {stratum}");
    }
}

/// The memory of what we sent is bounded, and reaches as far back as a peering is taken for proven.
#[test]
fn the_last_eight_packets_can_be_answered() {
    let (mut one, mut other) = peering();
    let answers = other.send(64_020);
    for poll in 2..12 {
        let _ = one.send(poll * 64_000);
        assert!(one.symmetric.sent.len() <= SENT_MAX);
    }
    assert_eq!(one.receive(768_000, answers), Outcome::Refused(Failure::Bogus), "ten packets ago");
}

#[path = "symmetric_refusals_tests.rs"]
mod refusals;
