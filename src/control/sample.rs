//! One measurement of one source: what four timestamps say about our clock.
//!
//! Owns: the arithmetic of RFC 5905 section 8. Does not own: whether the packet deserves to be believed; the
//! packet tests come before.
//!
//! The one idea a newcomer lacks: the offset is *the time of the server's clock at the moment its packet
//! reached us*, less ours: T3 + delay/2 - T4. That is algebraically the RFC's half of (T2-T1) + (T3-T4), but
//! needs one difference of unlike clocks instead of two, so that it does not break where one of the two wraps
//! and the other does not. And it is the broadcast client's formula, too.

use crate::time::{Log2Seconds, Monotonic, NtpDuration, NtpTimestamp, Ppm, Timestamp};

/// MAXDISP (RFC 5905 section 7.2): an error that means "knows nothing", 16 s.
pub const MAX_DISPERSION: NtpDuration = NtpDuration::from_seconds(16);

/// One tuple of the clock filter (RFC 5905 section 10).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// theta: the server's clock less ours. > 0: our clock is behind.
    pub offset: NtpDuration,
    /// delta: round-trip time on the wire, at least the precision of our clock.
    pub delay: NtpDuration,
    /// epsilon at `time`: the reading errors of both clocks and our drift during the exchange, > 0.
    pub dispersion: NtpDuration,
    /// When the packet arrived.
    pub time: Timestamp<Monotonic>,
}

/// The timestamps of a request and its reply, and how well the two clocks can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exchange {
    /// T1, our clock when the request left.
    pub origin_timestamp: NtpTimestamp,
    /// T2, the server's clock when the request arrived.
    pub receive_timestamp: NtpTimestamp,
    /// T3, the server's clock when the reply left.
    pub transmit_timestamp: NtpTimestamp,
    /// T4, our clock when the reply arrived.
    pub destination_timestamp: NtpTimestamp,
    /// The precision the server announces.
    pub server_precision: Log2Seconds,
    /// The precision of our clock.
    pub precision: Log2Seconds,
    /// T4 on the scale that is never stepped.
    pub time: Timestamp<Monotonic>,
}

/// A packet that came unasked, and the delay that was measured or configured for its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Broadcast {
    /// T3, the server's clock when the packet left.
    pub transmit_timestamp: NtpTimestamp,
    /// T4, our clock when it arrived.
    pub destination_timestamp: NtpTimestamp,
    /// Round trip, twice the way from the server to us. Negative counts as 0.
    pub delay: NtpDuration,
    /// The precision the server announces.
    pub server_precision: Log2Seconds,
    /// The precision of our clock.
    pub precision: Log2Seconds,
    /// T4 on the scale that is never stepped.
    pub time: Timestamp<Monotonic>,
}

impl Sample {
    /// From a request and its reply (RFC 5905 section 8; the skeleton's A.5.1.1 errs, it has T4-T3 for
    /// T3-T4).
    ///
    /// Right across an era change and for a server up to 68 years away from our clock. The delay is
    /// floored at our precision; the offset is computed from what was measured.
    #[must_use]
    pub fn from_exchange(exchange: &Exchange) -> Self {
        let away = exchange.destination_timestamp - exchange.origin_timestamp;
        let at_server = exchange.transmit_timestamp - exchange.receive_timestamp;
        let delay = away - at_server;
        let drift = (away * Ppm::FREQUENCY_TOLERANCE).max(NtpDuration::ZERO);
        Self {
            offset: (exchange.transmit_timestamp + delay.half()) - exchange.destination_timestamp,
            delay: delay.max(exchange.precision.to_duration()),
            dispersion: exchange.server_precision.to_duration() + exchange.precision.to_duration() + drift,
            time: exchange.time,
        }
    }

    /// From a broadcast packet: offset T3 + delay/2 - T4 (RFC 5905 sections 3 and 9.2).
    #[must_use]
    pub fn from_broadcast(broadcast: &Broadcast) -> Self {
        let delay = broadcast.delay.max(NtpDuration::ZERO);
        Self {
            offset: (broadcast.transmit_timestamp + delay.half()) - broadcast.destination_timestamp,
            delay: delay.max(broadcast.precision.to_duration()),
            // Nobody saw when it left by our clock: our drift on its way counts like that of a round trip.
            dispersion: broadcast.server_precision.to_duration()
                + broadcast.precision.to_duration()
                + delay * Ppm::FREQUENCY_TOLERANCE,
            time: broadcast.time,
        }
    }

    /// epsilon at a later time: grown at PHI, at most [`MAX_DISPERSION`] (RFC 5905 section 10).
    #[must_use]
    pub fn dispersion_at(&self, now: Timestamp<Monotonic>) -> NtpDuration {
        let growth = ((now - self.time) * Ppm::FREQUENCY_TOLERANCE).max(NtpDuration::ZERO);
        (self.dispersion.max(NtpDuration::ZERO) + growth).min(MAX_DISPERSION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PRECISION: Log2Seconds = Log2Seconds(-20);

    /// T1 to T4 as seconds of our clock, the server's clock `offset` ahead of it.
    fn exchange(start: NtpTimestamp, offset: NtpDuration, out: i64, at_server: i64, back: i64) -> Exchange {
        let milliseconds = |count| NtpDuration::from_nanoseconds(count * 1_000_000);
        let receive_timestamp = start + milliseconds(out) + offset;
        let destination_timestamp = start + milliseconds(out + at_server + back);
        Exchange {
            origin_timestamp: start,
            receive_timestamp,
            transmit_timestamp: receive_timestamp + milliseconds(at_server),
            destination_timestamp,
            server_precision: Log2Seconds(-18),
            precision: PRECISION,
            time: Timestamp::ZERO,
        }
    }

    fn near(duration: NtpDuration, seconds: f64) -> bool {
        (duration.seconds() - seconds).abs() < 2e-9
    }

    /// Checklist 27, 29.
    #[test]
    fn offset_and_delay_as_section_8_computes_them() {
        let start = NtpTimestamp::from_bits(0xe000_0000_0000_0000);
        // 10 ms out, 5 ms at the server, 30 ms back: the way back is 20 ms longer, so the offset errs by -10
        // ms.
        let sample = Sample::from_exchange(&exchange(start, NtpDuration::from_seconds(2), 10, 5, 30));
        assert!(near(sample.offset, 1.990), "{}", sample.offset);
        assert!(near(sample.delay, 0.040), "{}", sample.delay);
        // Section 9.2: r.rho + s.rho + PHI * (T4 - T1).
        let expected = 2.0_f64.powi(-18) + 2.0_f64.powi(-20) + 15e-6 * 0.045;
        assert!((sample.dispersion.seconds() - expected).abs() < 1e-9, "{}", sample.dispersion);
        assert!(sample.dispersion.seconds() >= expected);
    }

    #[test]
    fn our_clock_behind_is_positive() {
        let start = NtpTimestamp::from_bits(5 << 32);
        assert!(near(
            Sample::from_exchange(&exchange(start, NtpDuration::from_seconds(3), 1, 0, 1)).offset,
            3.0
        ));
        assert!(near(
            Sample::from_exchange(&exchange(start, NtpDuration::from_seconds(-3), 1, 0, 1)).offset,
            -3.0
        ));
    }

    /// Checklist 27.
    #[test]
    fn crosses_the_era_change_of_2036_within_one_exchange() {
        let start = NtpTimestamp::from_bits(u64::MAX - (1 << 24));
        let sample = Sample::from_exchange(&exchange(start, NtpDuration::from_nanoseconds(250_000), 5, 1, 5));
        assert!(near(sample.offset, 0.000_25), "{}", sample.offset);
        assert!(near(sample.delay, 0.010), "{}", sample.delay);
    }

    /// Checklist 27.
    #[test]
    fn a_clock_68_years_off_is_measured_where_only_one_difference_wraps() {
        // T2 - T1 is just below 2^63, T4 - T3 lies beyond it.
        let offset = NtpDuration::from_bits(i64::MAX - (1 << 22));
        let sample = Sample::from_exchange(&exchange(
            NtpTimestamp::from_bits(1 << 62),
            NtpDuration::ZERO - offset,
            5,
            0,
            5,
        ));
        assert!((sample.offset + offset).magnitude() < NtpDuration::from_bits(64), "{}", sample.offset);
        let ahead = Sample::from_exchange(&exchange(NtpTimestamp::from_bits(1 << 62), offset, 5, 0, 5));
        assert!((ahead.offset - offset).magnitude() < NtpDuration::from_bits(64), "{}", ahead.offset);
    }

    /// Checklist 28.
    #[test]
    fn delay_is_floored_at_our_precision() {
        let start = NtpTimestamp::from_bits(5 << 32);
        let mut faulty = exchange(start, NtpDuration::ZERO, 1, 0, 1);
        faulty.transmit_timestamp = faulty.transmit_timestamp + NtpDuration::from_seconds(9);
        assert_eq!(Sample::from_exchange(&faulty).delay, PRECISION.to_duration());
    }

    /// Checklist 70.
    #[test]
    fn broadcast_offset_takes_half_the_known_delay() {
        let arrived = NtpTimestamp::from_bits(9 << 32);
        let broadcast = Broadcast {
            transmit_timestamp: arrived - NtpDuration::from_nanoseconds(15_000_000),
            destination_timestamp: arrived,
            delay: NtpDuration::from_nanoseconds(30_000_000),
            server_precision: PRECISION,
            precision: PRECISION,
            time: Timestamp::ZERO,
        };
        let sample = Sample::from_broadcast(&broadcast);
        assert!(sample.offset.magnitude() <= NtpDuration::from_bits(2), "{}", sample.offset);
        assert!(near(sample.delay, 0.030));
        let uncalibrated = Sample::from_broadcast(&Broadcast { delay: NtpDuration::ZERO, ..broadcast });
        assert!(
            near(uncalibrated.offset, -0.015),
            "sent 15 ms before it came, and no delay known to explain it"
        );
        assert_eq!(uncalibrated.delay, PRECISION.to_duration());
    }

    /// Checklist 29.
    #[test]
    fn dispersion_grows_at_phi_up_to_maxdisp_and_never_shrinks() {
        let sample =
            Sample::from_exchange(&exchange(NtpTimestamp::from_bits(5 << 32), NtpDuration::ZERO, 1, 0, 1));
        let at = |seconds: i64| sample.dispersion_at(Timestamp::from_nanoseconds(seconds * 1_000_000_000));
        assert_eq!(at(0), sample.dispersion);
        assert_eq!(at(-5), sample.dispersion);
        assert!((at(1000) - sample.dispersion).seconds() >= 0.015);
        assert!((at(1000) - sample.dispersion).seconds() < 0.015_001);
        assert_eq!(at(10_000_000), MAX_DISPERSION);
    }

    proptest! {
        /// Section 8: half of (T2-T1) + (T3-T4), for clocks far enough from the wrap that the plain sum
        /// holds.
        #[test]
        fn agrees_with_the_formula_of_section_8(
            start in any::<u64>(), offset in -(1_i64 << 61)..1 << 61,
            out in 0_i64..10_000, at_server in 0_i64..10_000, back in 0_i64..10_000,
        ) {
            let exchange = exchange(NtpTimestamp::from_bits(start), NtpDuration::from_bits(offset), out, at_server, back);
            let there = exchange.receive_timestamp - exchange.origin_timestamp;
            let here = exchange.transmit_timestamp - exchange.destination_timestamp;
            let formula = (i128::from(there.to_bits()) + i128::from(here.to_bits())) / 2;
            let sample = Sample::from_exchange(&exchange);
            prop_assert!((i128::from(sample.offset.to_bits()) - formula).abs() <= 1);
        }

        #[test]
        fn any_timestamps_give_a_sample_with_sane_signs(
            stamps in any::<[u64; 4]>(), server in any::<i8>(), known in any::<i64>(),
        ) {
            let [origin, receive, transmit, destination] = stamps.map(NtpTimestamp::from_bits);
            let server_precision = Log2Seconds(server);
            let sample = Sample::from_exchange(&Exchange {
                origin_timestamp: origin, receive_timestamp: receive, transmit_timestamp: transmit,
                destination_timestamp: destination, server_precision, precision: PRECISION, time: Timestamp::ZERO,
            });
            prop_assert!(sample.delay >= PRECISION.to_duration());
            prop_assert!(sample.dispersion > NtpDuration::ZERO);
            let sample = Sample::from_broadcast(&Broadcast {
                transmit_timestamp: transmit, destination_timestamp: destination,
                delay: NtpDuration::from_bits(known), server_precision, precision: PRECISION, time: Timestamp::ZERO,
            });
            prop_assert!(sample.delay >= PRECISION.to_duration());
            prop_assert!(sample.dispersion > NtpDuration::ZERO);
        }
    }
}
