//! The steering rule once more, written from its description and not from the C program.

use std::net::IpAddr;

/// What a frame deserves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Expectation {
    Redirect,
    Drop,
    Pass,
}

/// What the tests put into the program's maps.
pub(crate) struct World {
    /// Tags, address, and the MAC at which it is reached.
    pub(crate) locals: Vec<([u16; 2], IpAddr, [u8; 6])>,
    /// Prefix and whether it is dropped.
    pub(crate) denied: Vec<(ipnet::IpNet, bool)>,
}

impl World {
    pub(crate) fn expects(&self, frame: &[u8]) -> Expectation {
        let Some((vlans, source, destination)) = request(frame) else { return Expectation::Pass };
        let is_here = |&(tags, address, mac): &([u16; 2], IpAddr, [u8; 6])| {
            tags == vlans && address == destination && frame.starts_with(&mac)
        };
        if !self.locals.iter().any(is_here) {
            return Expectation::Pass;
        }
        let longest = self.denied.iter().filter(|(prefix, _)| prefix.contains(&source));
        match longest.max_by_key(|(prefix, _)| prefix.prefix_len()) {
            Some((_, true)) => Expectation::Drop,
            _ => Expectation::Redirect,
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(*bytes.get(at)?) << 8 | usize::from(*bytes.get(at + 1)?))
}

/// Tags, source and destination of a frame that is a well-formed request, to whomever.
fn request(frame: &[u8]) -> Option<([u16; 2], IpAddr, IpAddr)> {
    if frame.len() < 14 || frame.len() > 14 + 8 + 1500 || frame[0] % 2 == 1 {
        return None;
    }
    let mut vlans = Vec::new();
    let mut at = 12;
    while [0x8100, 0x88a8].contains(&number(frame, at)?) {
        vlans.push((number(frame, at + 2)? % 4096) as u16);
        at += 4;
    }
    if vlans.len() > 2 {
        return None;
    }
    vlans.resize(2, 0);
    let ip = &frame[at + 2..];
    let (source, destination, datagram) = match number(frame, at)? {
        0x0800 => {
            let (header, rest) = ip.split_at_checked(20)?;
            let fragment = number(header, 6)?;
            let total = number(header, 2)?;
            if header[0] != 0x45 || header[9] != 17 || fragment & 0x3fff != 0 {
                return None;
            }
            let source: [u8; 4] = header[12..16].try_into().ok()?;
            let destination: [u8; 4] = header[16..20].try_into().ok()?;
            (IpAddr::from(source), IpAddr::from(destination), rest.get(..total.checked_sub(20)?)?)
        }
        0x86dd => {
            let (header, rest) = ip.split_at_checked(40)?;
            if header[0] >> 4 != 6 || header[6] != 17 {
                return None;
            }
            let source: [u8; 16] = header[8..24].try_into().ok()?;
            let destination: [u8; 16] = header[24..40].try_into().ok()?;
            (IpAddr::from(source), IpAddr::from(destination), rest.get(..number(header, 4)?)?)
        }
        _ => return None,
    };
    let fits = number(datagram, 2)? == 123 && number(datagram, 4)? == datagram.len() && datagram.len() >= 56;
    let first = *datagram.get(8)?;
    let is_request = first & 0b111 == 3 && (1..=4).contains(&(first >> 3 & 0b111));
    (fits && is_request).then_some(([vlans[0], vlans[1]], source, destination))
}
