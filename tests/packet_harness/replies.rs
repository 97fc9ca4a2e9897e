//! The requests of a round and what became of them.

use crate::mac;
use crate::reader::{self, Form};
use std::collections::VecDeque;
use timeball::snapshot::SystemSnapshot;

/// A frame that was delivered.
#[derive(Default)]
pub struct Request {
    pub frame: Vec<u8>,
    /// By its stamp, on the wire's scale; `None`: without a stamp that can be believed.
    pub arrived: Option<u64>,
    answer: Answer,
    form: Option<Form>,
}

/// What may come of a request.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Answer {
    #[default]
    None,
    /// The time and nothing else.
    Time,
    /// Time, a RATE kiss, or silence: the client has used up its burst.
    Limited,
    /// This kiss; certain for the first of a client.
    Kiss { code: [u8; 4], certain: bool },
}

/// Which responder is at the other end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// One without any limit.
    Everything,
    /// `Setup::strict`.
    Strict,
}

/// What was seen.
#[derive(Default, Debug)]
pub struct Tally {
    pub times: u64,
    pub kisses: u64,
    /// Time replies with a MAC.
    pub signed: u64,
    pub crypto_naks: u64,
    /// Requests that had to be answered with time.
    pub certain: u64,
    /// Time replies whose receive timestamp was the stamp's.
    pub stamped: u64,
}

/// Requests of a client that are certainly within a burst of 16, and kisses within one of 2.
const BURST: u8 = 16;
const KISS_BURST: u8 = 2;
/// Clients are counted in a fixed table; two that share a place only make less certain.
const COUNTS: usize = 1 << 24;

pub struct Replies {
    expected: Expected,
    waiting: VecDeque<Request>,
    spare: Vec<Request>,
    counts: Vec<u8>,
    pub tally: Tally,
}

fn stamp(payload: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(payload[at..at + 8].try_into().unwrap())
}

fn word(payload: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(payload[at..at + 4].try_into().unwrap())
}

impl Replies {
    pub fn new(expected: Expected) -> Self {
        let counts = if expected == Expected::Strict { COUNTS } else { 1 };
        Self {
            expected,
            waiting: VecDeque::new(),
            spare: Vec::new(),
            counts: vec![0; counts],
            tally: Tally::default(),
        }
    }

    /// A request to fill in, for [`Self::expect_one`].
    pub fn next_request(&mut self) -> &mut Request {
        self.waiting.push_back(self.spare.pop().unwrap_or_default());
        self.waiting.back_mut().unwrap()
    }

    /// The last request is on its way: what should come of it?
    pub fn expect_one(&mut self) {
        let mut request = self.waiting.pop_back().unwrap();
        request.form = reader::request(&request.frame).map(|(_, form)| self.seen(form));
        request.answer = self.answer_to(&request.frame);
        let proven = request.form != Some(Form::Unproven);
        self.tally.certain += u64::from(request.answer == Answer::Time && proven);
        self.waiting.push_back(request);
    }

    fn answer_to(&mut self, frame: &[u8]) -> Answer {
        let Some((datagram, form)) = reader::request(frame) else { return Answer::None };
        let form = self.seen(form);
        let kiss = match (self.expected, datagram.source) {
            (Expected::Everything, _) => None,
            (_, [10, 99, 1, 5]) => None,
            (_, [10, 99, 1, _]) => Some(*b"DENY"),
            (_, [10, 99, 2, _]) => Some(*b"RSTR"),
            (_, [10, 99, 3, _]) => return Answer::None,
            _ => None,
        };
        let before = self.count(datagram.source);
        if form == Form::CryptoNak || form == Form::Unproven && kiss.is_some() {
            return Answer::None;
        }
        match kiss {
            Some(code) => Answer::Kiss { code, certain: before < KISS_BURST },
            None if before < BURST => Answer::Time,
            None => Answer::Limited,
        }
    }

    /// What a form is to a responder that may have no keys.
    fn seen(&self, form: Form) -> Form {
        if form == Form::Signed && self.expected == Expected::Everything { Form::Unproven } else { form }
    }

    /// How many requests of this client came before; 0 where nobody counts.
    fn count(&mut self, source: &[u8]) -> u8 {
        if self.expected == Expected::Everything {
            return 0;
        }
        let mut hash = source.len() as u64;
        for octet in &source[..source.len().min(8)] {
            hash = (hash ^ u64::from(*octet)).wrapping_mul(0x100_0000_01b3_9e37);
        }
        let slot = &mut self.counts[(hash >> 40) as usize % COUNTS];
        let before = *slot;
        *slot = slot.saturating_add(1);
        before
    }

    /// A reply has left: finds its request, and checks every octet that has a meaning.
    pub fn check(&mut self, reply: &[u8], snapshot: &SystemSnapshot, round_began: u64) {
        let request = loop {
            let Some(request) = self.waiting.pop_front() else {
                panic!("a reply to nothing that was asked: {reply:02x?}");
            };
            if is_reply_to(reply, &request.frame) {
                break request;
            }
            self.go_unanswered(request);
        };
        let kissed = check_reply(reply, &request, snapshot, round_began);
        match (request.answer, kissed) {
            (Answer::Time | Answer::Limited, None) => match request.form {
                Some(Form::Unproven) => self.tally.crypto_naks += 1,
                form => {
                    self.tally.times += 1;
                    self.tally.signed += u64::from(form == Some(Form::Signed));
                }
            },
            (Answer::Limited, Some(code)) if code == *b"RATE" && request.form != Some(Form::Unproven) => {
                self.tally.kisses += 1;
            }
            (Answer::Kiss { code, .. }, Some(sent)) if code == sent => self.tally.kisses += 1,
            (answer, _) => panic!("{kissed:?} for {answer:?}: {reply:02x?} to {:02x?}", request.frame),
        }
        let time = kissed.is_none() && request.form != Some(Form::Unproven);
        self.tally.stamped += u64::from(time && request.arrived.is_some());
        self.spare.push(request);
    }

    /// All replies of the round are there.
    pub fn end_round(&mut self) {
        while let Some(request) = self.waiting.pop_front() {
            self.go_unanswered(request);
        }
    }

    fn go_unanswered(&mut self, request: Request) {
        let must = matches!(request.answer, Answer::Time | Answer::Kiss { certain: true, .. });
        assert!(!must, "no answer, not {:?}, to {:02x?}", request.answer, request.frame);
        self.spare.push(request);
    }
}

/// Is it from whom and where the request went to, back to whom and where it came from, and with its transmit timestamp?
fn is_reply_to(reply: &[u8], request: &[u8]) -> bool {
    let (Some(from), Some(to)) = (reader::datagram(reply), reader::datagram(request)) else { return false };
    reply[..6] == request[6..12]
        && reply[6..12] == request[..6]
        && from.link == to.link
        && (from.source, from.destination) == (to.destination, to.source)
        && (from.source_port, from.destination_port) == (to.destination_port, to.source_port)
        && to.payload().len() >= 48
        && from.payload().len() >= 48
        && from.payload()[24..32] == to.payload()[40..48]
}

/// Behind the header: nothing, a MAC as long as the request's, or a crypto-NAK.
fn check_trailer(payload: &[u8], asked: &[u8], form: Option<Form>, context: impl Fn() -> String) {
    let (header, trailer) = payload.split_at(48);
    match form {
        Some(Form::Signed) => {
            let mac = &asked[asked.len() - trailer.len()..];
            assert_eq!(trailer[..4], mac[..4], "not the request's key: {}", context());
            assert!(mac::is_right(trailer, header), "not signed: {}", context());
        }
        Some(Form::Unproven) => assert_eq!(trailer, [0; 4], "no crypto-NAK: {}", context()),
        _ => assert!(trailer.is_empty(), "{}", context()),
    }
}

/// Everything about a reply besides whether it had to come. Returns its kiss code.
fn check_reply(
    reply: &[u8],
    request: &Request,
    snapshot: &SystemSnapshot,
    round_began: u64,
) -> Option<[u8; 4]> {
    let context = || format!("{reply:02x?} to {:02x?}", request.frame);
    assert!(reply.len() <= request.frame.len(), "longer than its request: {}", context());
    let datagram = reader::datagram(reply).unwrap();
    assert_eq!(datagram.end, reply.len(), "nothing behind the datagram: {}", context());
    assert!(reader::checksums_hold(&datagram), "checksum: {}", context());
    let asked = reader::datagram(&request.frame).unwrap();
    let (payload, asked) = (datagram.payload(), asked.payload());
    check_trailer(payload, asked, request.form, context);
    assert_eq!(payload[0] & 0x3f, asked[0] & 0x38 | 4, "the request's version, mode 4: {}", context());
    let (received, sent) = (stamp(payload, 32), stamp(payload, 40));
    assert_ne!(received, sent, "{}", context());
    let age = |at: u64| at.wrapping_sub(crate::wire_time(round_began)).cast_signed() as f64 / 4_294_967_296.0;
    // Ten seconds are for a machine that was busy elsewhere.
    assert!((-5.0..10.0).contains(&age(received)) && (0.0..10.0).contains(&age(sent)), "{}", context());
    if let Some(arrived) = request.arrived
        && age(sent) < 3.0
    {
        // Within a nanosecond, which is what the server keeps time in.
        assert!(received.wrapping_sub(arrived).cast_signed().abs() <= 5, "not as stamped: {}", context());
    }
    if payload[0] >> 6 == 3 && payload[1] == 0 && payload[12].is_ascii_uppercase() {
        let poll = if payload[12..16] == *b"RATE" {
            asked[2].cast_signed().max(0).cast_unsigned()
        } else {
            asked[2]
        };
        assert_eq!(payload[2], poll, "{}", context());
        return Some(payload[12..16].try_into().unwrap());
    }
    assert_eq!(payload[0] >> 6, snapshot.leap as u8, "leap: {}", context());
    assert_eq!(payload[1..3], [snapshot.stratum, asked[2]], "stratum and poll: {}", context());
    assert_eq!(payload[3].cast_signed(), snapshot.precision.0, "precision: {}", context());
    assert_eq!(payload[12..16], snapshot.reference_id.0, "reference id: {}", context());
    assert_eq!(stamp(payload, 16), snapshot.reference_timestamp.to_bits(), "reference: {}", context());
    let units = |seconds: f64| seconds * 65536.0;
    let delay = f64::from(word(payload, 4)) - units(snapshot.root_delay.seconds());
    assert!((0.0..=1.0).contains(&delay), "root delay off by {delay}: {}", context());
    let since = received.wrapping_sub(snapshot.reference_timestamp.to_bits()).cast_signed().max(0) as f64
        / 4_294_967_296.0;
    let rate = if snapshot.is_synchronised() { 15e-6 } else { 0.0 };
    let dispersion = f64::from(word(payload, 8)) - units(snapshot.root_dispersion.seconds() + since * rate);
    assert!((-0.01..=1.01).contains(&dispersion), "root dispersion off by {dispersion}: {}", context());
    None
}
