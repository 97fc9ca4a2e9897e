//! Frames as a network full of clients, mistakes and malice sends them: a whole request first, then perhaps broken.

use crate::mac;
use crate::random::Random;

/// Room for a packet in a frame of 2048 octets, of which the kernel keeps 256.
pub const FRAME_LENGTH_MAX: usize = 1792;

/// Writes one frame. `number` makes its client's address and its transmit timestamp its own.
pub fn frame(random: &mut Random, number: u64, out: &mut Vec<u8>) {
    out.clear();
    if random.one_in(64) {
        out.resize(1 + random.below(200), 0);
        return random.fill(out);
    }
    let ipv6 = random.one_in(3);
    for _ in 0..2 {
        let locally_administered = [2, 0, 0, 0, random.octet(), random.octet()];
        out.extend_from_slice(&locally_administered);
    }
    for _ in 0..random.pick(&[0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3]) {
        out.extend_from_slice(&random.pick(&[0x8100_u16, 0x88a8]).to_be_bytes());
        out.extend_from_slice(&[random.octet(), random.octet()]);
    }
    let ip = out.len() + 2;
    let payload = payload(random, number);
    if ipv6 {
        ipv6_header(random, number, payload.len(), out);
    } else {
        ipv4_header(random, number, payload.len(), out);
    }
    let udp = out.len();
    let source_port = if random.one_in(64) { 0 } else { random.next() as u16 | 1 };
    let destination_port: u16 = if random.one_in(64) { random.next() as u16 } else { 123 };
    out.extend_from_slice(&source_port.to_be_bytes());
    out.extend_from_slice(&destination_port.to_be_bytes());
    out.extend_from_slice(&(payload.len() as u16 + 8).to_be_bytes());
    // The checksum: unfinished, as veth leaves it.
    out.extend_from_slice(&[random.octet(), random.octet()]);
    out.extend_from_slice(&payload);
    if random.one_in(4) {
        // Padding behind the packet, as short frames have it.
        out.resize(out.len() + random.below(20), 0);
    }
    if !ipv6 {
        sum_header(ip, out);
    }
    if random.one_in(3) {
        for _ in 0..=random.below(3) {
            break_something(random, ip, udp, out);
        }
        // Most damage would go no further than the header's checksum.
        if !ipv6 && !random.one_in(4) {
            sum_header(ip, out);
        }
    }
    out.truncate(FRAME_LENGTH_MAX);
    if out.is_empty() {
        out.push(0);
    }
}

/// Writes the checksum of the IPv4 header at `ip`, if all of it is there.
fn sum_header(ip: usize, out: &mut [u8]) {
    let Some(header) = out.get_mut(ip..ip + 20) else { return };
    header[10..12].fill(0);
    let sum = !super::reader::ones_complement_sum(&[header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// A header of any version and mode, mostly a request, and what may follow it.
fn payload(random: &mut Random, number: u64) -> Vec<u8> {
    let mut payload = vec![0; 48];
    let version = random.pick(&[4, 4, 4, 4, 4, 4, 3, 3, 3, 2, 2, 1, 1, 0, 5, 7]);
    let mode = if random.one_in(8) { random.octet() & 7 } else { 3 };
    payload[0] = random.octet() & 0xc0 | version << 3 | mode;
    random.fill(&mut payload[1..40]);
    payload[40..].copy_from_slice(&(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).to_be_bytes());
    match random.below(8) {
        // Extension fields, whole or with a length that is none.
        0 | 1 => {
            for _ in 0..=random.below(4) {
                extension_field(random, &mut payload);
            }
            if random.one_in(4) {
                trailer(random, &mut payload);
            }
        }
        2 if random.one_in(2) => trailer(random, &mut payload),
        2 => sign(random, &mut payload),
        3 if random.one_in(8) => payload.truncate(random.below(48)),
        3 if random.one_in(8) => payload.resize(48 + random.below(1600), random.octet()),
        _ => {}
    }
    payload
}

fn extension_field(random: &mut Random, payload: &mut Vec<u8>) {
    let length = random.pick(&[16, 20, 28, 28, 32, 64, 128, 400]);
    let claimed = if random.one_in(8) { random.next() as u16 } else { length };
    payload.extend_from_slice(&(random.next() as u16).to_be_bytes());
    payload.extend_from_slice(&claimed.to_be_bytes());
    let start = payload.len();
    payload.resize(start + usize::from(length) - 4, 0);
    random.fill(&mut payload[start..]);
}

/// A MAC that is right as far as the version goes.
fn sign(random: &mut Random, payload: &mut Vec<u8>) {
    let number = 1 + random.below(7) as u32;
    let Some(mut digest) = mac::digest(number, payload) else { return };
    if payload[0] >> 3 & 7 == 4 {
        digest.truncate(20);
    }
    payload.extend_from_slice(&number.to_be_bytes());
    payload.extend_from_slice(&digest);
}

/// A MAC of every length there is, and of lengths that none has.
fn trailer(random: &mut Random, payload: &mut Vec<u8>) {
    let length = random.pick(&[4, 20, 24, 24, 36, 52, 68, 8, 12, 27, 72, 1]);
    let start = payload.len();
    payload.resize(start + length, 0);
    random.fill(&mut payload[start..]);
}

fn ipv4_header(random: &mut Random, number: u64, payload_length: usize, out: &mut Vec<u8>) {
    let total = (28 + payload_length) as u16;
    out.extend_from_slice(&[0x08, 0x00, 0x45, random.octet()]);
    out.extend_from_slice(&total.to_be_bytes());
    let fragment = if random.one_in(32) { random.next() as u16 } else { random.pick(&[0x4000, 0]) };
    out.extend_from_slice(&[random.octet(), random.octet()]);
    out.extend_from_slice(&fragment.to_be_bytes());
    let protocol = if random.one_in(64) { random.octet() } else { 17 };
    out.extend_from_slice(&[random.octet(), protocol, random.octet(), random.octet()]);
    let low = (number as u32).to_be_bytes();
    let source = match random.below(8) {
        // Those of the access list: denied, restricted, dropped, and the exception from the first.
        0 => [10, 99, random.pick(&[1, 2, 3]), random.octet()],
        1 => [10, 99, 1, 5],
        // Heavy ones.
        2 | 3 => [10, 98, 0, random.octet() & 7],
        4 if random.one_in(8) => [random.octet(), random.octet(), random.octet(), random.octet()],
        // Each its own.
        _ => [20 + low[0], low[1], low[2], low[3]],
    };
    let destination = if random.one_in(64) { source } else { [10, 99, 0, 1] };
    out.extend_from_slice(&source);
    out.extend_from_slice(&destination);
}

fn ipv6_header(random: &mut Random, number: u64, payload_length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0x86, 0xdd, 0x60 | random.octet() & 0xf, random.octet(), random.octet(), 0]);
    out.extend_from_slice(&((8 + payload_length) as u16).to_be_bytes());
    let next = if random.one_in(32) { random.pick(&[0, 43, 44, 50, 51, 58, 60, 6]) } else { 17 };
    out.extend_from_slice(&[next, random.octet()]);
    let mut source = [0; 16];
    random.fill(&mut source);
    match random.below(16) {
        // v4-mapped, unspecified and loopback, multicast: nobody's honest address.
        0 => source[..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]),
        1 => source = u128::from(number & 1).to_be_bytes(),
        2 => source[0] = 0xff,
        3..6 => source[..8].copy_from_slice(&[0xfd, 0x99, 0, 0, 0, 0, 0, number as u8 & 7]),
        _ => source[..8].copy_from_slice(&(0x2001 << 48 | number & 0xffff_ffff_ffff).to_be_bytes()),
    }
    out.extend_from_slice(&source);
    if random.one_in(64) {
        out.extend_from_slice(&source);
    } else {
        out.extend_from_slice(&[0xfd, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
}

/// One mutation. `ip` and `udp` are where those headers were before any other mutation.
fn break_something(random: &mut Random, ip: usize, udp: usize, out: &mut Vec<u8>) {
    if out.is_empty() {
        return;
    }
    let length_at = if out.get(ip).is_some_and(|octet| octet >> 4 == 6) { ip + 4 } else { ip + 2 };
    match random.below(8) {
        0 => {
            let at = random.below(out.len());
            out[at] ^= 1 << random.below(8);
        }
        1 => {
            // Near the headers, where it matters.
            let at = random.below(out.len().min(udp + 12));
            let any = random.octet();
            out[at] = random.pick(&[0, 1, 0x7f, 0x80, 0xff, any]);
        }
        2 => out.truncate(random.below(out.len() + 1)),
        3 => nudge(random, length_at, out),
        4 => nudge(random, udp + 4, out),
        5 => {
            let ihl = 0x40 | random.octet() & 0xf;
            set(out, ip, ihl);
        }
        6 => {
            let at = random.below(out.len());
            out.insert(at, random.octet());
        }
        _ => {
            let at = random.below(out.len());
            let end = (at + random.below(64)).min(out.len());
            random.fill(&mut out[at..end]);
        }
    }
}

/// Makes a 16-bit length a little wrong, or wholly.
fn nudge(random: &mut Random, at: usize, out: &mut [u8]) {
    let Some(field) = out.get_mut(at..at + 2) else { return };
    let length = u16::from_be_bytes([field[0], field[1]]);
    let wrong = match random.below(4) {
        0 => random.next() as u16,
        1 => random.pick(&[0, 7, 8, 27, 28, 0xffff]),
        _ => length.wrapping_add(random.below(17) as u16).wrapping_sub(8),
    };
    field.copy_from_slice(&wrong.to_be_bytes());
}

fn set(out: &mut [u8], at: usize, value: u8) {
    if let Some(octet) = out.get_mut(at) {
        *octet = value;
    }
}
