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
        Self::new(Symmetric::active(Volley::Off), ahead)
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
/// each end computes the offset of the other.
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

/// RFC 5905 section 8, test 1: a copy, before and after the peering is proven. It changes nothing.
#[test]
fn test_1_refuses_duplicates() {
    let (mut one, mut other) = (End::active(0), End::active(5));
    let first = one.send(0);
    assert_eq!(other.receive(10, first), Outcome::Refused(Failure::Invalid));
    let before = other.echo();
    assert_eq!(other.receive(11, first), Outcome::Refused(Failure::Duplicate));
    assert_eq!(other.echo(), before);
    let second = other.send(20);
    assert!(matches!(one.receive(30, second), Outcome::Measured(_)));
    let before = one.echo();
    assert_eq!(one.receive(31, second), Outcome::Refused(Failure::Duplicate));
    assert_eq!(one.echo(), before);
}

/// RFC 5905 section 8, test 2, but not its "the state variables are updated": CVE-2015-1799.
#[test]
fn test_2_refuses_foreign_origins_and_they_do_not_disturb_a_peering() {
    let (one, mut other) = peering();
    let before = other.echo();
    for (origin, transmit) in [(at(12), at(70_000)), (at(64_000), at(70_001)), (at(1 << 40), at(-1))] {
        let forged = changed(Header::new(Leap::None, Version::V4, Mode::SymmetricActive), |header| {
            header.stratum = 1;
            header.set_origin_timestamp(origin);
            header.set_receive_timestamp(at(70_000));
            header.set_transmit_timestamp(transmit);
        });
        assert_eq!(other.receive(70_010, forged), Outcome::Refused(Failure::Bogus), "{origin:?}");
        assert_eq!(other.echo(), before);
    }
    let mut one = one;
    let next = other.send(80_000);
    assert!(matches!(one.receive(80_010, next), Outcome::Measured(_)), "the peering goes on");
}

/// RFC 5905 figure 22, test 3: zero origin, receive or transmit timestamps give no sample; and once the peering is
/// proven they change nothing (CVE-2015-8138 and its like).
#[test]
fn test_3_refuses_zero_timestamps_and_they_do_not_disturb_a_peering() {
    let (mut one, mut other) = peering();
    let answer = other.send(70_000);
    let zero = NtpTimestamp::UNKNOWN;
    let before = one.echo();
    let faulty = [
        changed(answer, |header| header.set_origin_timestamp(zero)),
        changed(answer, |header| header.set_receive_timestamp(zero)),
        changed(answer, |header| header.set_transmit_timestamp(zero)),
    ];
    for header in faulty {
        assert_eq!(one.receive(70_010, header), Outcome::Refused(Failure::Invalid), "{header:?}");
        assert_eq!(one.echo(), before);
    }
    assert!(matches!(one.receive(70_010, answer), Outcome::Measured(_)));
}

/// RFC 5905 figure 22, tests 4 and 5: who is denied, or is not who he claims to be, changes nothing, not even before
/// anything is proven. A crypto-NAK is a wrong MAC (CVE-2016-1547).
#[test]
fn tests_4_and_5_come_before_any_change_of_state() {
    let (key, stranger) = (KeyId::new(7).unwrap(), KeyId::new(8).unwrap());
    let table = [
        (None, Authentication::Invalid),
        (None, Authentication::CryptoNak),
        (Some(key), Authentication::None),
        (Some(key), Authentication::Invalid),
        (Some(key), Authentication::CryptoNak),
        (Some(key), Authentication::Valid(stranger)),
    ];
    for begun in [false, true] {
        for (key, authentication) in table {
            let (mut one, mut other) = if begun { peering() } else { (End::active(0), End::active(5)) };
            let packet = one.send(70_000);
            let before = other.symmetric.heard;
            let mut arrival = Arrival { authentication, ..other.arrival(70_010, packet) };
            let outcome =
                other.symmetric.receive(Timestamp::ZERO, &arrival, key, PRECISION, NtpDuration::ZERO);
            assert_eq!(outcome, Outcome::Refused(Failure::Authentication), "{authentication:?}");
            arrival.authentication = Authentication::Valid(KeyId::new(7).unwrap());
            arrival.access = Access::Denied;
            let outcome =
                other.symmetric.receive(Timestamp::ZERO, &arrival, key, PRECISION, NtpDuration::ZERO);
            assert_eq!(outcome, Outcome::Refused(Failure::AccessDenied));
            assert_eq!(other.symmetric.heard, before, "{key:?} {authentication:?}");
        }
    }
}

/// RFC 5905 section 8: "the xmt state variable is set to zero immediately after a successful bogus check".
#[test]
fn a_packet_of_ours_is_answered_once() {
    let (mut one, mut other) = peering();
    let answer = other.send(70_000);
    assert!(matches!(one.receive(70_010, answer), Outcome::Measured(_)));
    let again = changed(answer, |header| header.set_transmit_timestamp(at(70_100)));
    assert_eq!(one.receive(70_110, again), Outcome::Refused(Failure::Bogus));
}

/// RFC 5905 figure 22, "can happen in symmetric modes if the poll intervals are uneven": the newest packet is what must
/// be echoed, and an older one is a replay.
#[test]
fn the_second_packet_of_a_faster_peer_is_echoed_but_not_an_older_one() {
    let (mut one, mut other) = peering();
    let (second, third) = (one.send(65_000), one.send(66_000));
    assert_eq!(other.receive(66_010, third), Outcome::Refused(Failure::Bogus), "no sample");
    assert_eq!(other.echo(), Some((third.transmit_timestamp(), at(66_010) + milliseconds(5))));
    assert_eq!(other.receive(66_020, second), Outcome::Refused(Failure::Bogus), "overtaken, or replayed");
    assert_eq!(other.echo().map(|echo| echo.0), Some(third.transmit_timestamp()));
    let answer = other.send(67_000);
    let Outcome::Measured(sample) = one.receive(67_010, answer) else { panic!("no sample") };
    assert!(near(sample.offset, 5.0) && near(sample.delay, 20.0), "{sample:?}");
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

/// Packets that overtake each other: an answer that comes after a newer one is none any more.
#[test]
fn an_overtaken_answer_is_refused() {
    let (mut one, mut other) = peering();
    let early = other.send(70_000);
    let asked = one.send(71_000);
    assert_eq!(other.receive(71_010, asked), Outcome::Refused(Failure::Bogus));
    let late = other.send(72_000);
    assert!(matches!(one.receive(72_010, late), Outcome::Measured(_)));
    let before = one.echo();
    assert_eq!(one.receive(72_020, early), Outcome::Refused(Failure::Bogus));
    assert_eq!(one.echo(), before);
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

/// While nothing is proven, a replayed packet does not displace a newer one that waits for its echo.
#[test]
fn before_anything_is_proven_the_newest_packet_waits_for_its_echo() {
    let (mut one, mut other) = (End::active(0), End::active(5));
    let (old, new) = (one.send(0), one.send(1000));
    let _ = other.receive(1010, new);
    let _ = other.receive(1020, old);
    assert_eq!(other.echo().map(|echo| echo.0), Some(new.transmit_timestamp()));
    let _echo = other.send(1030);
    let _ = other.receive(1040, old);
    assert_eq!(
        other.echo().map(|echo| echo.0),
        Some(old.transmit_timestamp()),
        "the echo was in vain so far"
    );
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

/// RFC 5905 section 7.4, RFC 8633 section 5.4: a kiss needs a valid origin timestamp, and nothing else of it is used.
#[test]
fn a_kiss_is_believed_only_as_an_answer() {
    let (mut one, mut other) = peering();
    let origin = other.send(70_000).origin_timestamp();
    let before = one.echo();
    let kiss = |origin| {
        changed(Header::new(Leap::Unsynchronised, Version::V4, Mode::SymmetricPassive), |header| {
            header.reference_id = KissCode::Deny.reference_id();
            header.set_origin_timestamp(origin);
        })
    };
    for origin in [NtpTimestamp::UNKNOWN, at(1)] {
        assert!(matches!(one.receive(70_010, kiss(origin)), Outcome::Refused(_)));
    }
    assert_eq!(one.receive(70_010, kiss(origin)), Outcome::Kissed(Kiss::Deny));
    assert_eq!(one.echo(), before);
}

/// A packet that we have sent, but whose time of departure is not known, is nothing that can be answered.
#[test]
fn an_answer_to_a_packet_that_was_not_reported_sent_proves_nothing() {
    let mut one = End::active(0);
    let ours = Ours { snapshot: snapshot(), clock: at(0), slewed: NtpDuration::ZERO, poll: Log2Seconds(6) };
    let _ = one.symmetric.message(9, &ours);
    let answer = changed(Header::new(Leap::None, Version::V4, Mode::SymmetricPassive), |header| {
        header.set_origin_timestamp(at(0));
        header.set_receive_timestamp(at(5));
        header.set_transmit_timestamp(at(6));
    });
    assert_eq!(one.receive(10, answer), Outcome::Refused(Failure::Bogus));
    assert!(!one.symmetric.on_send_failed(9) && one.symmetric.sent.is_empty());
}

/// RFC 5905 section 11.2.3: a step voids all timestamps of ours; the peering begins anew, with its volley.
#[test]
fn a_step_of_our_clock_begins_the_peering_anew() {
    let (mut one, mut other) = peering();
    let answer = other.send(70_000);
    one.symmetric.forget();
    assert_eq!(one.receive(70_010, answer), Outcome::Refused(Failure::Bogus), "T1 is void");
    let mut fresh = Symmetric::active(Volley::On);
    assert!(fresh.begins_with_volley() && fresh.end_volley());
    assert!(!fresh.begins_with_volley());
    fresh.forget();
    assert!(fresh.begins_with_volley());
}

/// One exchange in mode 3 and 4, whatever comes of it.
#[test]
fn the_volley_is_sent_once_and_only_where_it_is_wanted() {
    let mut active = Symmetric::active(Volley::On);
    assert!(active.begins_with_volley());
    assert!(!active.begins_with_volley(), "the next poll comes before its end: mode 1");
    assert!(!active.end_volley());
    assert!(!Symmetric::active(Volley::Off).begins_with_volley());
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
    let once = passive_answer(&arrival, &ours);
    assert_eq!((once.version_number(), once.mode()), (3, Mode::SymmetricPassive));
    assert_eq!((once.origin_timestamp(), once.receive_timestamp()), (at(0), at(10)));
    assert_eq!(once.stratum, 3);
}

/// RFC 5905 sections 7.3 and 11.1: 0 on the wire is 16 inside, and so is leap 3 of any stratum.
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
