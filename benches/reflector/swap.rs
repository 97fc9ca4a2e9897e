//! What both kinds of rings do with a packet.

/// Where things lie: the IP addresses, their length, and the UDP header.
const V4: (usize, usize, usize) = (26, 4, 34);
const V6: (usize, usize, usize) = (22, 16, 54);

/// Exchanges MAC addresses, IP addresses and UDP ports. Sums commute, so every checksum stays as right (or as
/// unfinished) as it was. `false`, and the packet is as it was, if it is not plain UDP without tags.
///
/// The XDP program redirects whole requests only, so nothing else is looked at.
pub fn swap(packet: &mut [u8]) -> bool {
    let (at, length, udp) = match packet.get(12..14) {
        Some([0x08, 0x00]) => V4,
        Some([0x86, 0xdd]) => V6,
        _ => return false,
    };
    if packet.len() < udp + 8 {
        return false;
    }
    exchange(&mut packet[..12]);
    exchange(&mut packet[at..at + 2 * length]);
    exchange(&mut packet[udp..udp + 4]);
    true
}

/// The first half for the second.
fn exchange(bytes: &mut [u8]) {
    let (first, second) = bytes.split_at_mut(bytes.len() / 2);
    first.swap_with_slice(second);
}
