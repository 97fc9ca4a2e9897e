//! The broadcast client: it hears a server that speaks to everybody (mode 5), and asks it only how far away it is.
//!
//! Owns: the volley that measures the delay, the tests of a packet that nobody asked for, when the path has changed,
//! and when silence is too long. Does not own: which servers may be heard at all (the controller's listening
//! sources), and what becomes of a sample.
//!
//! The one idea a newcomer lacks: a packet that came unasked says when it left but not how long it was under way. So
//! at first the server is asked eight times in mode 3, like any server (RFC 5905 section 3), and half of the shortest
//! round trip is taken for the way of all that it says later. From then on nothing is sent, until what is heard
//! jumps: either the server's time did, or ours, or the way is another. To tell, one asks again.
//!
//! # Replays
//! Transmit timestamps only go up (section 8, test 1: here "older" is refused like "equal"), and the answers of the
//! volley, which nobody can replay, say where they are now. So whoever plays back what was broadcast yesterday is
//! refused even after we were restarted. With a configured delay there is no volley, hence no such certainty.

use super::client::{Client, EXCHANGE_TIMEOUT, Outcome};
use super::event::{Access, Arrival, Authentication, InterfaceIndex, KeyId};
use super::packet_checks::{self, Failure};
use super::poll::{BURST_COUNT, BURST_INTERVAL};
use super::sample::{Broadcast, Sample};
use super::source::{BroadcastClientOptions, Calibration, POLL_MAX_MOST, Unsigned};
use crate::time::{Log2Seconds, Monotonic, NtpDuration, NtpTimestamp, Ppm, Timestamp};

/// So many answers make a volley of [`BURST_COUNT`] good: three round trips, of which the shortest counts.
const VOLLEY_ANSWERS: u8 = 3;
/// Between the ends and beginnings of volleys at least, twice as long after each that failed, ...
const VOLLEY_PAUSE: Log2Seconds = Log2Seconds(6);
/// ... up to an hour. What a forger of unsigned packets can make us ask of their alleged sender stays that little.
const VOLLEY_PAUSE_MAX: Log2Seconds = Log2Seconds(12);
/// Offsets that differ by more than so many jitters are not noise: PGATE of RFC 5905 section 11.3.
const SHIFT_GATE: u32 = 4;
/// Nor is less than this ever a change of the path, 0.1 ms: what an idle switched network varies by.
const SHIFT_MIN: NtpDuration = NtpDuration::from_nanoseconds(100_000);
/// One packet that is off was held up somewhere; the second in a row is news.
const SHIFTS: u8 = 2;
/// The shortest interval that a server's announcement is believed in: ntpd's and chronyd's shortest.
const INTERVAL_MIN: Log2Seconds = Log2Seconds(3);

/// What a packet came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// It failed one of tests 1 to 5; nothing has changed.
    Refused(Failure),
    /// It tells no time: it failed test 6 or 7.
    Timeless(Failure),
    /// It is good, but how long it was under way is not known, or not any more.
    Uncalibrated,
    /// A measurement.
    Measured(Sample),
}

/// The questions that measure the delay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Volley {
    asked: u8,
    answers: u8,
    delay: NtpDuration,
    next: Timestamp<Monotonic>,
}

/// What comes next for a listener whose time has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// A question of the volley.
    Ask,
    /// The volley is over.
    Listen,
    /// An interval has passed in silence.
    Missed,
}

/// The on-wire state of a broadcast client association.
#[derive(Clone, Debug)]
pub struct BroadcastClient {
    /// What the volley is asked with.
    pub(super) client: Client,
    calibration: Calibration,
    /// The round trip, once it is known.
    delay: Option<NtpDuration>,
    volley: Option<Volley>,
    volley_from: Timestamp<Monotonic>,
    vain_volleys: i8,
    last_transmit: Option<NtpTimestamp>,
    /// The transmit timestamp of the last packet that was held back.
    last_held: Option<NtpTimestamp>,
    /// The last offset that was used, as if our clock had not been slewed, and when.
    last_offset: Option<(NtpDuration, Timestamp<Monotonic>)>,
    shifts: u8,
    interface: InterfaceIndex,
    interval: Log2Seconds,
    silent_at: Timestamp<Monotonic>,
}

/// Tests 1 to 5 of RFC 5905 figure 22 for a packet that nobody asked for. Its origin and receive timestamps mean
/// nothing.
///
/// # Errors
/// The first test that failed.
pub fn unasked(
    arrival: &Arrival,
    key: Option<KeyId>,
    unsigned: Unsigned,
    last: Option<NtpTimestamp>,
) -> Result<(), Failure> {
    if arrival.access == Access::Denied {
        return Err(Failure::AccessDenied);
    }
    let transmit = arrival.header.transmit_timestamp();
    if transmit.is_unknown() {
        return Err(Failure::Invalid);
    }
    if last.is_some_and(|last| transmit - last <= NtpDuration::ZERO) {
        return Err(Failure::Duplicate);
    }
    signed(arrival.authentication, key, unsigned).then_some(()).ok_or(Failure::Authentication)
}

/// Is a packet that came unasked signed as it must be? With a key, only that one will do; without, any key we know
/// (RFC 5905 A.5.1, NEWBC; RFC 8633 section 5.5), or none where that is allowed.
#[must_use]
pub fn signed(authentication: Authentication, key: Option<KeyId>, unsigned: Unsigned) -> bool {
    match (authentication, key) {
        (Authentication::Valid(theirs), Some(ours)) => theirs == ours,
        (Authentication::Valid(_), None) => true,
        (Authentication::None, None) => unsigned == Unsigned::Allowed,
        (Authentication::None | Authentication::Invalid | Authentication::CryptoNak, _) => false,
    }
}

/// How often a server says it speaks.
#[must_use]
pub fn announced_interval(poll: Log2Seconds) -> Log2Seconds {
    poll.clamp(INTERVAL_MIN, POLL_MAX_MOST)
}

impl BroadcastClient {
    /// For a server of which the first packet just came.
    #[must_use]
    pub fn new(options: &BroadcastClientOptions, now: Timestamp<Monotonic>, arrival: &Arrival) -> Self {
        let interval = announced_interval(arrival.header.poll());
        Self {
            client: Client::default(),
            calibration: options.calibration,
            delay: match options.calibration {
                Calibration::Delay(delay) => Some(delay),
                Calibration::Volley => None,
            },
            volley: None,
            volley_from: now,
            vain_volleys: 0,
            last_transmit: None,
            last_held: None,
            last_offset: None,
            shifts: 0,
            interface: arrival.interface,
            interval,
            silent_at: patience(now, interval),
        }
    }

    /// Is the delay being measured? Then the association is a client (mode 3), otherwise it only listens (mode 6).
    #[must_use]
    pub const fn is_asking(&self) -> bool {
        self.volley.is_some()
    }

    /// The round trip that is reckoned with.
    #[must_use]
    pub const fn delay(&self) -> Option<NtpDuration> {
        self.delay
    }

    /// How often the server says it speaks.
    #[must_use]
    pub const fn interval(&self) -> Log2Seconds {
        self.interval
    }

    /// When [`Self::turn`] is due.
    #[must_use]
    pub fn next(&self) -> Timestamp<Monotonic> {
        self.volley.map_or(self.silent_at, |volley| volley.next)
    }

    /// The time of [`Self::next`] has come.
    pub fn turn(&mut self, now: Timestamp<Monotonic>) -> Turn {
        let Some(volley) = &mut self.volley else {
            self.silent_at = now + self.interval.to_duration();
            return Turn::Missed;
        };
        if volley.asked < BURST_COUNT {
            volley.asked += 1;
            let wait = if volley.asked == BURST_COUNT { EXCHANGE_TIMEOUT } else { BURST_INTERVAL };
            volley.next = now + wait;
            return Turn::Ask;
        }
        self.end_volley(now);
        Turn::Listen
    }

    fn end_volley(&mut self, now: Timestamp<Monotonic>) {
        let Some(volley) = self.volley.take() else { return };
        if volley.answers >= VOLLEY_ANSWERS {
            self.delay = Some(volley.delay);
            self.vain_volleys = 0;
        } else {
            // The delay that was known, if any, is not trusted either: there was a reason to ask.
            self.delay = None;
            self.vain_volleys = self.vain_volleys.saturating_add(1).min(VOLLEY_PAUSE_MAX.0);
        }
        let pause = Log2Seconds(VOLLEY_PAUSE.0 + self.vain_volleys).min(VOLLEY_PAUSE_MAX);
        self.volley_from = now + pause.to_duration();
        self.last_offset = None;
        self.shifts = 0;
        self.silent_at = patience(now, self.interval);
    }

    fn begin_volley(&mut self, now: Timestamp<Monotonic>) {
        if now >= self.volley_from && self.volley.is_none() && self.calibration == Calibration::Volley {
            self.volley = Some(Volley { asked: 0, answers: 0, delay: NtpDuration::MAX, next: now });
        }
    }

    /// A question of the volley was answered.
    pub fn on_answer(&mut self, now: Timestamp<Monotonic>, arrival: &Arrival, outcome: &Outcome) {
        let Some(volley) = &mut self.volley else { return };
        match outcome {
            Outcome::Measured(sample) => {
                volley.answers = volley.answers.saturating_add(1);
                volley.delay = volley.delay.min(sample.delay);
                self.last_transmit = Some(arrival.header.transmit_timestamp());
            }
            // Whatever the code: it does not like to be asked.
            Outcome::Kissed(_) => self.end_volley(now),
            Outcome::Refused(_) | Outcome::Unstamped | Outcome::Timeless(_) => {}
        }
    }

    /// Our clock was stepped: what was compared with it is void. The delay is not.
    pub fn forget(&mut self, now: Timestamp<Monotonic>) {
        self.client.forget();
        self.last_offset = None;
        self.shifts = 0;
        if let Some(volley) = &mut self.volley {
            *volley = Volley { asked: 0, answers: 0, delay: NtpDuration::MAX, next: now };
        }
    }

    /// Tests a broadcast packet. `slewed` is how far slewing has moved our clock so far, `jitter` that of the last
    /// samples. What is due next ([`Self::next`]) may change.
    pub fn receive(
        &mut self,
        now: Timestamp<Monotonic>,
        arrival: &Arrival,
        key: Option<KeyId>,
        precision: Log2Seconds,
        slewed: NtpDuration,
        jitter: NtpDuration,
    ) -> Heard {
        let header = &arrival.header;
        let transmit = header.transmit_timestamp();
        // An association without a key exists only where unsigned packets are allowed.
        if let Err(failure) = unasked(arrival, key, Unsigned::Allowed, self.last_transmit) {
            return Heard::Refused(failure);
        }
        if self.last_held == Some(transmit) {
            return Heard::Refused(Failure::Duplicate);
        }
        if let Err(failure) = packet_checks::contents(header) {
            return Heard::Timeless(failure);
        }
        self.interval = announced_interval(header.poll());
        self.silent_at = patience(now, self.interval);
        let Some(delay) = self.delay else {
            self.last_transmit = Some(transmit);
            self.begin_volley(now);
            return Heard::Uncalibrated;
        };
        let sample = Sample::from_broadcast(&Broadcast {
            transmit_timestamp: transmit,
            destination_timestamp: arrival.receive_timestamp,
            delay,
            server_precision: header.precision(),
            precision,
            time: now,
        });
        if self.is_off(sample.offset + slewed, now, jitter, arrival.interface) {
            self.shifts = self.shifts.saturating_add(1);
            if self.shifts >= SHIFTS {
                self.begin_volley(now);
            }
            // Without a volley nobody can tell whose fault it is; the second packet is believed.
            if self.calibration == Calibration::Volley || self.shifts < SHIFTS {
                self.last_held = Some(transmit);
                return Heard::Uncalibrated;
            }
        }
        self.shifts = 0;
        self.interface = arrival.interface;
        self.last_transmit = Some(transmit);
        self.last_offset = Some((sample.offset + slewed, now));
        Heard::Measured(sample)
    }

    /// Does it look as if the packet took another way than those before?
    fn is_off(
        &self,
        offset: NtpDuration,
        now: Timestamp<Monotonic>,
        jitter: NtpDuration,
        interface: InterfaceIndex,
    ) -> bool {
        let Some((last, time)) = self.last_offset else { return false };
        let drift = (now - time) * Ppm::FREQUENCY_TOLERANCE;
        let gate = jitter.times(SHIFT_GATE).max(SHIFT_MIN) + drift;
        interface != self.interface || (offset - last).magnitude() > gate
    }
}

/// How long a packet may be late before an interval counts as silent: half of it.
fn patience(now: Timestamp<Monotonic>, interval: Log2Seconds) -> Timestamp<Monotonic> {
    now + interval.to_duration() + interval.to_duration().half()
}

#[cfg(test)]
#[path = "broadcast_client_tests.rs"]
mod tests;
