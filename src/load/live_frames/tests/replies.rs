//! Random replies, good and bad: the judge says of each what `crate::load::judge` says of it.

use super::*;
use crate::load::judge::{Judgement, judge};
use crate::wire::Checksum;

/// Random numbers, the same in every run: xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, chance: u64) -> bool {
        self.below(chance) == 0
    }
}

/// A reply to request `sequence`, right in most respects, and of any length.
fn reply(scene: &Scene, sequence: u32, random: &mut Random) -> Vec<u8> {
    let mut request = vec![0; crate::load::request::REQUEST_LENGTH_MAX];
    let length = Template::new(scene).write(&mut request, NONCE, sequence);
    request.truncate(length);
    let header = length - 48;
    if scene.expect == Expect::Ntp || random.one_in(10) {
        let payload = &mut request[header..];
        payload[0] = if random.one_in(8) { random.next() as u8 } else { 0x24 };
        payload[1] = if random.one_in(4) { random.below(18) as u8 } else { 2 };
        let code = [*b"RATE", *b"DENY", *b"rate", *b"RA\0\0", [10, 0, 0, 1]][random.below(5) as usize];
        payload[12..16].copy_from_slice(&code);
        payload.copy_within(40..48, 24);
        let received = random.next() >> random.below(64);
        let turnaround = random.next() >> random.below(64);
        let sent = if random.one_in(16) { 0 } else { received.wrapping_add(turnaround) };
        payload[32..40].copy_from_slice(&received.to_be_bytes());
        payload[40..48].copy_from_slice(&sent.to_be_bytes());
    }
    // Some are longer, some shorter than a header, some to another client or of another port.
    if random.one_in(4) {
        let payload = if random.one_in(2) { random.below(60) } else { random.below(1473) } as usize;
        request.resize(header + payload, random.next() as u8);
        let udp = header - 8;
        let udp_length = (payload + 8) as u16;
        request[udp + 4..udp + 6].copy_from_slice(&udp_length.to_be_bytes());
        if scene.target.is_ipv4() {
            request[16..18].copy_from_slice(&(udp_length + 20).to_be_bytes());
            request[24..26].fill(0);
            let sum = Checksum::new().add_bytes(&request[14..34]).finish();
            request[24..26].copy_from_slice(&sum.to_be_bytes());
        } else {
            request[18..20].copy_from_slice(&udp_length.to_be_bytes());
        }
    }
    let at = header - 8 + random.below(4) as usize;
    if random.one_in(16) {
        request[at] ^= 1 << random.below(8);
    }
    // Mends all checksums.
    let frame = Frame::parse(&request).unwrap();
    let payload = frame.payload().len();
    frame.turn_round(&mut request, payload);
    let checksum = header - 2..header;
    match random.below(8) {
        0 => request[checksum].fill(0),
        1 => {
            let addresses = if scene.target.is_ipv4() { 26..34 } else { 22..54 };
            let pseudo = Checksum::new().add_bytes(&request[addresses]).add_word(17);
            let pseudo = pseudo.add_word((payload + 8) as u16);
            request[checksum].copy_from_slice(&(!pseudo.finish()).to_be_bytes());
        }
        _ => {}
    }
    // A quarter has some bit wrong, anywhere, or is cut or padded.
    match random.below(16) {
        0 => {
            let at = random.below(request.len() as u64) as usize;
            request[at] ^= 1 << random.below(8);
        }
        1 => {
            let at = random.below(header as u64) as usize;
            request[at] = random.next() as u8;
        }
        2 => request.truncate((14 + random.below(request.len() as u64 - 13) as usize).min(request.len())),
        3 => request.resize(request.len() + random.below(20) as usize, 0xa5),
        _ => {}
    }
    request
}

/// What the judge leaves to the kernel although the reference would look at it: tagged frames and the other family.
fn is_left_alone(scene: &Scene, frame: &[u8]) -> bool {
    frame[12..14] != if scene.target.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] }
}

/// How many random replies, spread over the scenes.
const REPLIES: u32 = 80_000;

#[test]
fn replies_are_judged_as_the_reference_judges_them() {
    let mut random = Random(0x7469_6d65_6261_6c6c);
    let mut seen = [0; COUNTERS];
    for (prefix, expect, hook) in [
        ("10.99.8.0/22", Expect::Ntp, Hook::Xdp),
        ("fd99:2::/48", Expect::Ntp, Hook::Xdp),
        ("10.99.8.0/22", Expect::Echo, Hook::Xdp),
        ("fd99:2::/116", Expect::Echo, Hook::Xdp),
        ("10.99.8.0/22", Expect::Ntp, Hook::TrafficControl),
        ("fd99:2::/48", Expect::Ntp, Hook::TrafficControl),
        ("10.99.8.0/22", Expect::Echo, Hook::TrafficControl),
        ("fd99:2::/116", Expect::Echo, Hook::TrafficControl),
    ] {
        let scene = Scene { expect, ..scene(prefix, 1500) };
        let Some(mut programs) = load(&scene, &plan()) else { return };
        let template = Template::new(&scene);
        let (mut turnarounds, mut kisses, mut frames) = (empty_histogram(), 0, 0);
        // More than the table's worth, so that its slots are used again.
        programs.set_progress(Sender { sent: 65_000, ..Sender::default() });
        for sequence in 65_000..65_000 + REPLIES / 8 {
            assert_eq!(run(programs.ask(), template.bytes()).0, XDP_REDIRECT);
            let bytes = reply(&scene, sequence, &mut random);
            let reference =
                if is_left_alone(&scene, &bytes) { Judgement::NotOurs } else { judge(&scene, NONCE, &bytes) };
            // The kernel's test run makes no packet of what ends within its IP header.
            let header = if bytes[12..14] == [0x08, 0x00] { 34 } else { 54 };
            if hook == Hook::TrafficControl && bytes.len() < header {
                continue;
            }
            let mut expected = programs.counts().unwrap();
            match reference {
                Judgement::NotOurs => {}
                Judgement::Wrong(flaw) => expected[flaw as usize] += 1,
                // A right answer with a number that nobody asked with: a bit of the origin was wrong, and the client's
                // address fits all the same.
                Judgement::Right { sequence: other, .. } | Judgement::Kiss { sequence: other, .. }
                    if other != sequence =>
                {
                    continue;
                }
                Judgement::Kiss { .. } => {
                    expected[Counter::Kiss as usize] += 1;
                    kisses += 1;
                }
                Judgement::Right { turnaround, unfinished, .. } => {
                    expected[Counter::Answered as usize] += 1;
                    expected[Counter::Unfinished as usize] += u64::from(unfinished);
                    if let Some(turnaround) = turnaround {
                        turnarounds.record(turnaround.min(LATENCY_MAX)).unwrap();
                    }
                }
            }
            assert_eq!(
                (hear(&programs, hook, &bytes), programs.counts().unwrap()),
                (reference != Judgement::NotOurs, expected),
                "{hook:?}, request {sequence}, {reference:?}: {bytes:02x?}"
            );
            frames += 1;
            // The same reply once more answers nothing.
            let index = match reference {
                Judgement::Right { .. } | Judgement::Kiss { .. } => Counter::Duplicate as usize,
                _ => continue,
            };
            expected[index] += 1;
            hear(&programs, hook, &bytes);
            assert_eq!(programs.counts().unwrap(), expected, "again, request {sequence}");
        }
        assert!(frames > REPLIES / 8 - 500, "{frames}");
        let counts = programs.counts().unwrap();
        let answered = counts[Counter::Answered as usize];
        assert_eq!(programs.histogram(Histogram::RoundTrip).unwrap().len(), answered);
        assert!(buckets(&programs.histogram(Histogram::Turnaround).unwrap()) == buckets(&turnarounds));
        assert_eq!(programs.kisses().unwrap().iter().map(|kiss| kiss.1).sum::<u64>(), kisses);
        for (seen, count) in seen.iter_mut().zip(counts) {
            *seen += count;
        }
    }
    for (counter, count) in seen.into_iter().enumerate() {
        let never = [Counter::Late, Counter::NotOurs, Counter::KissUnnamed].map(|counter| counter as usize);
        assert!(never.contains(&counter) == (count == 0), "counter {counter}: {count}");
    }
}

/// What a histogram counts, without the smallest and the largest value, which it remembers more exactly.
fn buckets(histogram: &hdrhistogram::Histogram<u64>) -> Vec<(u64, u64)> {
    histogram.iter_recorded().map(|value| (value.value_iterated_to(), value.count_at_value())).collect()
}
