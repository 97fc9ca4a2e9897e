//! The client's side of client/server mode: a request (mode 3), and what its reply (mode 4) is worth.
//!
//! Owns: the on-wire state of a client association. Does not own: when to ask, and what becomes of a sample.
//!
//! The one idea a newcomer lacks: a request carries a random number where the time would be, and our clock is read
//! aside, when the packet leaves. The server only echoes the number, so it tells an answer from a forgery better
//! than the time could, and nothing about our clock is told. Each request has its own socket with a
//! random port (RFC 9109), which is closed when the answer came, or after a while.

use super::chance::Chance;
use super::event::{Arrival, ExchangeSocket, KeyId, SendStamp};
use super::kiss::Kiss;
use super::packet_checks::{self, Expected, Failure};
use super::sample::{Exchange, Sample};
use crate::time::{Log2Seconds, Monotonic, NtpDuration, NtpTimestamp, Timestamp};
use crate::wire::{Header, Leap, Mode, Version};

/// How long a socket waits for the answer: RFC 9109 section 4 allows about three seconds.
pub const EXCHANGE_TIMEOUT: NtpDuration = NtpDuration::from_seconds(3);
/// The precision of a request: 2^32 s, no information (what chronyd sends, too). Servers ignore it.
pub(super) const NO_PRECISION: Log2Seconds = Log2Seconds(32);

/// A request that is not answered yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Request {
    /// The number of the send.
    number: u64,
    /// The random bits that stand for T1.
    nonce: NtpTimestamp,
    /// T1, when it is known.
    departed: Option<NtpTimestamp>,
}

/// The on-wire state of a client association.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// xmt: zeroed by the first good answer, so that a second copy is refused.
    request: Option<Request>,
    /// org: T3 of the last good answer.
    last_transmit: Option<NtpTimestamp>,
    socket: Option<(ExchangeSocket, Timestamp<Monotonic>)>,
    exchanges: u32,
}

/// What a packet turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It failed one of tests 1 to 5; nothing has changed.
    Refused(Failure),
    /// It came before we knew when its request left; nothing has changed.
    Unstamped,
    /// A Kiss-o'-Death that must be believed. The exchange is over.
    Kissed(Kiss),
    /// A believable answer that tells no time: it failed test 6 or 7. The exchange is over.
    Timeless(Failure),
    /// A measurement. The exchange is over.
    Measured(Sample),
}

impl Client {
    /// When the open socket has waited long enough; `None`: none is open.
    #[must_use]
    pub fn closes_at(&self) -> Option<Timestamp<Monotonic>> {
        self.socket.map(|(_, time)| time)
    }

    /// The socket that is open, which is taken for closed from now on.
    pub fn close(&mut self) -> Option<ExchangeSocket> {
        self.socket.take().map(|(socket, _)| socket)
    }

    /// Is this the socket that is open?
    #[must_use]
    pub fn has_open(&self, socket: ExchangeSocket) -> bool {
        self.socket.is_some_and(|(open, _)| open == socket)
    }

    /// A new request, send number `number`, and the name of the socket to open for it. Whatever was asked before is
    /// given up.
    pub fn request(
        &mut self,
        now: Timestamp<Monotonic>,
        number: u64,
        version: Version,
        interval: Log2Seconds,
        socket: impl FnOnce(u32) -> ExchangeSocket,
        chance: &mut Chance,
    ) -> (Header, ExchangeSocket) {
        self.exchanges = self.exchanges.wrapping_add(1);
        let socket = socket(self.exchanges);
        self.socket = Some((socket, now + EXCHANGE_TIMEOUT));
        let nonce = chance.nonce();
        self.request = Some(Request { number, nonce, departed: None });
        // All that a server looks at. The rest would only tell whom it comes from.
        let mut header = Header::new(Leap::None, version, Mode::Client);
        header.set_poll(interval);
        header.set_precision(NO_PRECISION);
        header.set_transmit_timestamp(nonce);
        (header, socket)
    }

    /// The request of this number left.
    pub fn on_sent(&mut self, number: u64, stamp: SendStamp) {
        if let Some(request) = self.request.as_mut().filter(|request| request.number == number) {
            request.departed = Some(stamp.departed);
        }
    }

    /// The request of this number never left. Gives whether it was the current one.
    pub fn on_send_failed(&mut self, number: u64) -> bool {
        self.request.take_if(|request| request.number == number).is_some()
    }

    /// Our clock was stepped: what was measured half is worth nothing.
    pub fn forget(&mut self) {
        self.request = None;
    }

    /// Tests a packet that came through this association's socket.
    pub fn receive(
        &mut self,
        now: Timestamp<Monotonic>,
        arrival: &Arrival,
        key: Option<KeyId>,
        precision: Log2Seconds,
    ) -> Outcome {
        let origin = self.request.map(|request| request.nonce);
        let expected = Expected { origin, last_transmit: self.last_transmit, key };
        let header = &arrival.header;
        let verdict = packet_checks::on_wire(header, arrival.access, arrival.authentication, &expected);
        if let Err(failure) = verdict {
            return Outcome::Refused(failure);
        }
        if let Some(kiss) = Kiss::of(header) {
            self.request = None;
            return Outcome::Kissed(kiss);
        }
        let Some(origin_timestamp) = self.request.and_then(|request| request.departed) else {
            return Outcome::Unstamped;
        };
        self.request = None;
        self.last_transmit = Some(header.transmit_timestamp());
        if let Err(failure) = packet_checks::contents(header) {
            return Outcome::Timeless(failure);
        }
        Outcome::Measured(Sample::from_exchange(&Exchange {
            origin_timestamp,
            receive_timestamp: header.receive_timestamp(),
            transmit_timestamp: header.transmit_timestamp(),
            destination_timestamp: arrival.receive_timestamp,
            server_precision: header.precision(),
            precision,
            time: now,
        }))
    }
}
