//! An independent reading of requests and replies, from the RFCs and with no line of the server's own parser: what must
//! be answered, and what an answer must look like.

/// A datagram that was found in a frame.
pub struct Datagram<'a> {
    /// Octets 12 to the IP header: tags and ethertype.
    pub link: &'a [u8],
    /// 4 or 16 octets each.
    pub source: &'a [u8],
    pub destination: &'a [u8],
    pub source_port: u16,
    pub destination_port: u16,
    /// The IP header.
    pub ip: &'a [u8],
    /// UDP header and payload.
    pub udp: &'a [u8],
    /// Where the datagram ends in the frame.
    pub end: usize,
}

impl<'a> Datagram<'a> {
    pub fn payload(&self) -> &'a [u8] {
        &self.udp[8..]
    }
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(*bytes.get(at)?) * 256 + usize::from(*bytes.get(at + 1)?))
}

/// The one UDP datagram of a frame: no options, no fragment, at most two tags, lengths that agree.
pub fn datagram(frame: &[u8]) -> Option<Datagram<'_>> {
    let mut at = 12;
    let mut tags = 0;
    while tags < 2 && matches!(number(frame, at)?, 0x8100 | 0x88a8) {
        at += 4;
        tags += 1;
    }
    let ethertype = number(frame, at)?;
    let link = &frame[12..at + 2];
    let ip_at = at + 2;
    let rest = &frame[ip_at..];
    let (header_length, total, source, destination) = match ethertype {
        0x0800 if rest.len() >= 20 => {
            let unfragmented = rest[6] & 0x3f == 0 && rest[7] == 0;
            if rest[0] != 0x45 || !unfragmented || rest[9] != 17 {
                return None;
            }
            (20, number(rest, 2)?, &rest[12..16], &rest[16..20])
        }
        0x86dd if rest.len() >= 40 => {
            if rest[0] >> 4 != 6 || rest[6] != 17 {
                return None;
            }
            (40, number(rest, 4)? + 40, &rest[8..24], &rest[24..40])
        }
        _ => return None,
    };
    let packet = rest.get(..total)?;
    let udp = packet.get(header_length..)?;
    let length = number(udp, 4)?;
    if length < 8 || length > udp.len() {
        return None;
    }
    let header = &rest[..header_length];
    let is_ipv4 = header[0] >> 4 == 4;
    if is_ipv4 && ones_complement_sum(&[header]) != 0xffff || !is_ipv4 && udp[6..8] == [0, 0] {
        return None;
    }
    Some(Datagram {
        link,
        source,
        destination,
        source_port: number(udp, 0)? as u16,
        destination_port: number(udp, 2)? as u16,
        ip: &rest[..header_length],
        udp: &udp[..length],
        end: ip_at + header_length + length,
    })
}

/// What a well-formed request is to the server, before access list and rate limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// To be answered with time.
    Plain,
    /// Ends with a MAC that is right by one of the harness's keys.
    Signed,
    /// Ends with any other MAC.
    Unproven,
    /// Ends with a crypto-NAK.
    CryptoNak,
}

/// A mode 3 request of version 1 to 4 from an address and port that can be answered, to port 123.
pub fn request<'a>(frame: &'a [u8]) -> Option<(Datagram<'a>, Form)> {
    let datagram = datagram(frame)?;
    let possible = match datagram.source {
        [first, _, _, _] => ![0, 127].contains(first) && *first < 224,
        // ::/80 holds unspecified, loopback and v4-mapped.
        address => address[0] != 0xff && address[..10] != [0; 10],
    };
    if !possible || datagram.source == datagram.destination {
        return None;
    }
    if datagram.source_port == 0 || datagram.destination_port != 123 {
        return None;
    }
    let payload = datagram.payload();
    let first = *payload.first()?;
    let version = first >> 3 & 7;
    if payload.len() < 48 || first & 7 != 3 || !(1..=4).contains(&version) {
        return None;
    }
    let mac_length = mac_length(version, &payload[48..])?;
    let (message, mac) = payload.split_at(payload.len() - mac_length);
    let form = match mac_length {
        0 => Form::Plain,
        4 => Form::CryptoNak,
        _ if crate::mac::is_right(mac, message) => Form::Signed,
        _ => Form::Unproven,
    };
    Some((datagram, form))
}

/// How long the MAC at the end of the packet is, 0 without one.
fn mac_length(version: u8, trailer: &[u8]) -> Option<usize> {
    match (version, trailer.len()) {
        (_, 0) => Some(0),
        (4, _) => {
            let mut rest = trailer;
            while rest.len() >= 28 {
                let length = number(rest, 2)?;
                if length % 4 != 0 || length < 16 {
                    return None;
                }
                rest = rest.get(length..)?;
            }
            [0, 4, 20, 24].contains(&rest.len()).then_some(rest.len())
        }
        (_, length) => (length % 4 == 0 && length <= 68).then_some(length),
    }
}

/// RFC 1071, pair by pair: the sum of what carries its own checksum is all ones.
pub fn ones_complement_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0));
            if sum > 0xffff {
                sum -= 0xffff;
            }
        }
    }
    sum as u16
}

/// Do the IP header's and the UDP checksum hold? UDP's must be there.
pub fn checksums_hold(datagram: &Datagram<'_>) -> bool {
    let header = datagram.ip.len() == 40 || ones_complement_sum(&[datagram.ip]) == 0xffff;
    let length = (datagram.udp.len() as u16).to_be_bytes();
    let pseudo = [datagram.source, datagram.destination, &[0, 17], &length, datagram.udp];
    header && datagram.udp[6..8] != [0, 0] && ones_complement_sum(&pseudo) == 0xffff
}
