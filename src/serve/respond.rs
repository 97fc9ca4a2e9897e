//! The one function that answers: a request's bytes in, the reply's bytes in the same place, or a [`Refusal`].
//!
//! It reads no clock. When the request came is an argument; when the reply leaves is known last, so the caller
//! reads the clock after everything else and calls [`Prepared::seal`].

use super::Refusal;
use super::access::{AccessList, Action};
use super::clients::{Client, ClientKeying, ClientStatistics};
use super::limit::{Lottery, RateLimiter, Verdict};
use super::signed::sign;
use crate::auth::{KeyId, KeyTable};
use crate::snapshot::{InstanceId, SystemSnapshot};
use crate::time::{Log2Seconds, Monotonic, NtpDuration, NtpShort, NtpTimestamp, Timestamp};
use crate::wire::{HEADER_LENGTH, Header, KissCode, Leap, Mode, Packet, Version, transmit_timestamp_offset};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use zerocopy::IntoBytes;

/// What is known of a request besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Who asks.
    pub source: IpAddr,
    /// From which port.
    pub source_port: u16,
    /// T2: when it arrived.
    pub receive_timestamp: NtpTimestamp,
    /// About now, for the rate limit and the statistics; a batch may share one reading.
    pub now: Timestamp<Monotonic>,
}

/// Who asks, and what the rules say of that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) client: Client,
    action: Action,
    source_port: u16,
}

/// What the server does besides telling the time. Shared by all workers but for what each owns.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Who may ask.
    pub access: Arc<AccessList>,
    /// How often, if there is a limit.
    pub limiter: Option<Arc<RateLimiter>>,
    /// How often a client is told of a refusal; `None` sends no Kiss-o'-Death at all.
    pub kiss_limiter: Option<Arc<RateLimiter>>,
    /// How clients are told apart.
    pub keying: ClientKeying,
}

/// Answers requests. One per worker.
#[derive(Debug)]
pub struct Responder {
    policy: Policy,
    pub(super) statistics: Arc<ClientStatistics>,
    lottery: Lottery,
    keys: Arc<KeyTable>,
    instance: InstanceId,
}

/// A reply that lacks only its transmit timestamp. Its bytes are where the request's were.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// No longer than a UDP datagram.
    pub(super) length: u32,
    /// Whose MAC follows the header.
    pub(super) key: Option<KeyId>,
    receive_timestamp: NtpTimestamp,
    /// The Kiss-o'-Death this is, with the reason for it; `None` if it tells the time.
    pub kiss: Option<(KissCode, Refusal)>,
    /// Why it ends with a crypto-NAK; `None` if it does not. The time in it is right, but the client asked for proof.
    pub crypto_nak: Option<Refusal>,
}

impl Prepared {
    /// A reply that tells the time, without MAC.
    pub(super) const fn time(receive_timestamp: NtpTimestamp) -> Self {
        Self { length: HEADER_LENGTH as u32, key: None, receive_timestamp, kiss: None, crypto_nak: None }
    }

    /// The reply's length in octets, never more than the request's.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length as usize
    }

    /// T2, as the reply has it.
    #[must_use]
    pub const fn receive_timestamp(&self) -> NtpTimestamp {
        self.receive_timestamp
    }

    /// Does it tell the time, and no more than that?
    #[must_use]
    pub const fn is_time(&self) -> bool {
        self.kiss.is_none() && self.crypto_nak.is_none()
    }

    /// The key whose MAC it has, if any.
    #[must_use]
    pub const fn key(&self) -> Option<KeyId> {
        self.key
    }

    /// Writes T3, then the MAC over it if the request had one. Returns what was written for T3: `transmit_time`, or the
    /// smallest step after the receive timestamp where the clock gave nothing later, since equal stamps mean something
    /// else (RFC 9769 section 2) and a reply that leaves before its request came is no use to anyone.
    ///
    /// `payload` is the buffer the request was in; a shorter one is left alone. `keys` are those of the responder.
    pub fn seal(self, transmit_time: NtpTimestamp, payload: &mut [u8], keys: &KeyTable) -> NtpTimestamp {
        let transmit_timestamp = self.stamp(transmit_time, payload);
        if let (Some(key), Some(reply)) = (self.key, payload.get_mut(..self.length())) {
            sign(key, reply, keys);
        }
        transmit_timestamp
    }

    /// [`Self::seal`] without the MAC.
    #[inline(always)]
    pub(super) fn stamp(&self, transmit_time: NtpTimestamp, payload: &mut [u8]) -> NtpTimestamp {
        let at = transmit_timestamp_offset();
        let late_enough = transmit_time - self.receive_timestamp > NtpDuration::ZERO;
        let transmit_timestamp =
            if late_enough { transmit_time } else { self.receive_timestamp + NtpDuration::from_bits(1) };
        if let Some(field) = payload.get_mut(at..at + 8) {
            field.copy_from_slice(&transmit_timestamp.to_bits().to_be_bytes());
        }
        transmit_timestamp
    }
}

impl Responder {
    /// A responder with its own statistics and its own source of chance for the rate limit's leak, and no keys.
    #[must_use]
    pub fn new(policy: Policy, statistics: Arc<ClientStatistics>, lottery: Lottery) -> Self {
        Self { policy, statistics, lottery, keys: Arc::new(KeyTable::empty()), instance: InstanceId(0) }
    }

    /// The instance that what is read and answered from now on belongs to. To be called between batches.
    pub const fn set_instance(&mut self, instance: InstanceId) {
        self.instance = instance;
        self.policy.keying.set_instance(instance);
    }

    /// The keys that clients may use from now on. To be called between batches, so that what one key has verified no
    /// other signs.
    pub fn set_keys(&mut self, keys: Arc<KeyTable>) {
        self.keys = keys;
    }

    /// The keys that clients may use, for [`Prepared::seal`].
    #[must_use]
    pub fn keys(&self) -> &KeyTable {
        &self.keys
    }

    /// Turns the request in `payload` into its reply, in place. The transmit timestamp is left zero until
    /// [`Prepared::seal`].
    ///
    /// # Errors
    /// A [`Refusal`] leaves `payload` as it was. A refusal that the client is told of with a Kiss-o'-Death is
    /// no error but a [`Prepared`] whose `kiss` says so.
    pub fn respond(
        &mut self,
        payload: &mut [u8],
        arrival: &Arrival,
        snapshot: &SystemSnapshot,
    ) -> Result<Prepared, Refusal> {
        let asker = self.identify(arrival.source, arrival.source_port);
        self.respond_to(&asker, payload, arrival.receive_timestamp, arrival.now, snapshot)
    }

    #[inline]
    fn identify(&self, source: IpAddr, source_port: u16) -> Asker {
        let Policy { keying, access, .. } = &self.policy;
        Asker { client: keying.identify(source), action: access.lookup(source), source_port }
    }

    /// Who asks from this address. Names to `prefetch` a word of each cache line that answering it will take.
    #[inline]
    pub(super) fn recall(&self, source: IpAddr, source_port: u16, prefetch: impl Fn(&AtomicU64)) -> Asker {
        let asker = self.identify(source, source_port);
        self.prefetch_client(&asker.client, prefetch);
        asker
    }

    /// Names to `prefetch` a word of each cache line that [`Self::respond`] to this address will take.
    ///
    /// To be called for a whole batch before its first request is answered. With millions of clients their part of the
    /// tables is not in the cache, and the processor can wait for many lines at once, but answers one request after the
    /// other. Named, not read: a read would hold up everything behind it as soon as some hundred instructions wait for it.
    #[inline]
    pub fn prefetch(&self, source: IpAddr, prefetch: impl Fn(&AtomicU64)) {
        self.prefetch_client(&self.policy.keying.identify(source), prefetch);
    }

    #[inline]
    fn prefetch_client(&self, client: &Client, prefetch: impl Fn(&AtomicU64)) {
        if let Some(limiter) = &self.policy.limiter {
            prefetch(limiter.line(client));
        }
        self.statistics.lines(client).into_iter().for_each(prefetch);
    }

    /// As [`Self::respond`], where it is known already who asks.
    // The call and the copies of its result took 15 instructions of a request, and there are two callers.
    #[inline(always)]
    pub(super) fn respond_to(
        &mut self,
        asker: &Asker,
        payload: &mut [u8],
        receive_timestamp: NtpTimestamp,
        now: Timestamp<Monotonic>,
        snapshot: &SystemSnapshot,
    ) -> Result<Prepared, Refusal> {
        let packet = Packet::parse(payload)?;
        if packet.header.mode() != Mode::Client {
            return Err(Refusal::Mode);
        }
        if asker.source_port == 0 {
            return Err(Refusal::Source);
        }
        if packet.mac.is_some() {
            return self.respond_signed(asker, payload, receive_timestamp, now, snapshot);
        }
        let (version, request) = (packet.version, *packet.header);
        let refused = self.refusal(asker, now);
        self.statistics.record(&asker.client, version, payload.len(), refused.is_none(), now);
        let kiss = match refused {
            None => None,
            Some((refusal, code)) => self.tell(&asker.client, now, refusal, code)?,
        };
        let prepared = Prepared { kiss, ..Prepared::time(receive_timestamp) };
        self.write(&prepared, &request, version, payload, snapshot);
        Ok(prepared)
    }

    /// Writes the header of a reply over that of its request.
    #[inline(always)]
    pub(super) fn write(
        &self,
        prepared: &Prepared,
        request: &Header,
        version: Version,
        payload: &mut [u8],
        snapshot: &SystemSnapshot,
    ) {
        let receive_timestamp = prepared.receive_timestamp;
        let reply = match prepared.kiss {
            None => time_reply(request, version, receive_timestamp, snapshot, self.instance),
            Some((code, _)) => kiss_reply(request, version, receive_timestamp, code, self.least_poll()),
        };
        payload[..HEADER_LENGTH].copy_from_slice(reply.as_bytes());
    }

    /// Why the client gets no time, and the kiss that says so, whatever it can prove.
    #[inline(always)]
    pub(super) fn refusal(
        &mut self,
        asker: &Asker,
        now: Timestamp<Monotonic>,
    ) -> Option<(Refusal, Option<KissCode>)> {
        match asker.action {
            Action::Deny => Some((Refusal::Denied, Some(KissCode::Deny))),
            Action::Restrict => Some((Refusal::Restricted, Some(KissCode::Restrict))),
            Action::Drop => Some((Refusal::Dropped, None)),
            Action::Allow => match &self.policy.limiter {
                Some(limiter) if limiter.check(&asker.client, now, &mut self.lottery) == Verdict::Over => {
                    Some((Refusal::RateLimited, Some(KissCode::Rate)))
                }
                _ => None,
            },
        }
    }

    /// Is the client told of its refusal, and may it be told now?
    #[cold]
    pub(super) fn tell(
        &mut self,
        client: &Client,
        now: Timestamp<Monotonic>,
        refusal: Refusal,
        code: Option<KissCode>,
    ) -> Result<Option<(KissCode, Refusal)>, Refusal> {
        let (Some(code), Some(kiss_limiter)) = (code, &self.policy.kiss_limiter) else { return Err(refusal) };
        match kiss_limiter.check(client, now, &mut self.lottery) {
            Verdict::Over => Err(refusal),
            Verdict::Within | Verdict::Leaked => Ok(Some((code, refusal))),
        }
    }

    /// The shortest poll interval that the rate limit bears in the long run.
    fn least_poll(&self) -> Log2Seconds {
        let interval = self.policy.limiter.as_ref().map_or(NtpDuration::ZERO, |limiter| limiter.interval());
        Log2Seconds::at_least(interval).max(Log2Seconds(0))
    }
}

/// RFC 5905 section 9.2 and figure 31: the server's own variables, the request's version, poll and transmit
/// timestamp.
fn time_reply(
    request: &Header,
    version: Version,
    receive_timestamp: NtpTimestamp,
    snapshot: &SystemSnapshot,
    instance: InstanceId,
) -> Header {
    let mut reply = Header::new(snapshot.leap, version, Mode::Server);
    reply.stratum = snapshot.stratum;
    reply.set_poll(request.poll());
    reply.set_precision(snapshot.precision);
    reply.set_root_delay(NtpShort::from_duration_rounded_up(snapshot.root_delay));
    reply.set_root_dispersion(snapshot.root_dispersion_at(receive_timestamp));
    reply.reference_id = snapshot.reference_id_in(instance);
    reply.set_reference_timestamp(snapshot.reference_timestamp);
    reply.set_origin_timestamp(request.transmit_timestamp());
    reply.set_receive_timestamp(receive_timestamp);
    reply
}

/// RFC 5905 section 7.4: leap 3, stratum 0, the code in the reference id. The client checks the origin
/// timestamp and uses none of the others.
fn kiss_reply(
    request: &Header,
    version: Version,
    receive_timestamp: NtpTimestamp,
    code: KissCode,
    least_poll: Log2Seconds,
) -> Header {
    let mut reply = Header::new(Leap::Unsynchronised, version, Mode::Server);
    reply.reference_id = code.reference_id();
    reply.set_poll(if code == KissCode::Rate { request.poll().max(least_poll) } else { request.poll() });
    reply.set_origin_timestamp(request.transmit_timestamp());
    reply.set_receive_timestamp(receive_timestamp);
    reply
}

#[cfg(test)]
#[path = "respond_tests.rs"]
mod tests;
