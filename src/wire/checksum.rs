//! The Internet checksum (RFC 1071), whole and incremental (RFC 1624).

/// A running one's-complement sum of 16-bit words.
///
/// It is kept in the machine's byte order and 64 bits wide, a carry out of the top coming in at the bottom: the sum of
/// swapped words is the swapped sum (RFC 1071 section 2 B), so eight octets are two instructions and only the result is
/// put in order.
#[derive(Clone, Copy, Default, Debug)]
pub struct Checksum(u64);

impl Checksum {
    /// An empty sum.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds octets that start at an even offset of what is summed; an odd last octet is padded with zero.
    #[must_use]
    #[inline]
    pub fn add_bytes(mut self, bytes: &[u8]) -> Self {
        let (eights, rest) = bytes.as_chunks::<8>();
        for eight in eights {
            self = self.add_in_memory_order(u64::from_ne_bytes(*eight));
        }
        if rest.is_empty() {
            return self;
        }
        let (quads, rest) = rest.as_chunks::<4>();
        for quad in quads {
            self = self.add_in_memory_order(u64::from(u32::from_ne_bytes(*quad)));
        }
        let (pairs, rest) = rest.as_chunks::<2>();
        for pair in pairs {
            self = self.add_in_memory_order(u64::from(u16::from_ne_bytes(*pair)));
        }
        if let [last] = rest {
            self = self.add_in_memory_order(u64::from(u16::from_ne_bytes([*last, 0])));
        }
        self
    }

    /// Adds one 16-bit word in host order.
    #[must_use]
    pub const fn add_word(self, word: u16) -> Self {
        self.add_in_memory_order(word.to_be() as u64)
    }

    /// Adds what another sum has.
    #[must_use]
    pub const fn add(self, other: Self) -> Self {
        self.add_in_memory_order(other.0)
    }

    /// Up to four words as they lie in memory.
    const fn add_in_memory_order(self, words: u64) -> Self {
        let (sum, carry) = self.0.overflowing_add(words);
        // After a carry the sum is below 2^64 - 1.
        Self(sum + carry as u64)
    }

    /// The folded complement: what a header carries. 0 is possible; UDP sends 0xffff instead
    /// ([`Checksum::finish_udp`]).
    #[must_use]
    pub const fn finish(self) -> u16 {
        let (half, carry) = (self.0 as u32).overflowing_add((self.0 >> 32) as u32);
        let half = half + carry as u32;
        let (word, carry) = (half as u16).overflowing_add((half >> 16) as u16);
        u16::from_be(!(word + carry as u16))
    }

    /// As [`Checksum::finish`], with zero sent as 0xffff, since zero means "none" in UDP (RFC 768).
    #[must_use]
    pub const fn finish_udp(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// The checksum after eight octets (at an even offset) have changed from `old` to `new`: RFC 1624
/// equation 3, for UDP (zero becomes 0xffff).
///
/// It lets a reply be summed while its transmit timestamp is still unknown: what is left to do after the clock
/// was read is a handful of additions.
#[must_use]
pub const fn updated_checksum(checksum: u16, old: u64, new: u64) -> u16 {
    let others = Checksum::new().add_word(!checksum).add_in_memory_order((!old).to_be());
    others.add_in_memory_order(new.to_be()).finish_udp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 4.1, word by word and with no cleverness.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn rfc_1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Checksum::new().add_bytes(&bytes).finish(), !0xddf2);
    }

    proptest! {
        #[test]
        fn whole_sum_agrees_with_the_naive_one(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(Checksum::new().add_bytes(&bytes).finish(), naive(&bytes));
        }

        #[test]
        fn incremental_sum_agrees_with_the_whole_one(
            mut bytes in proptest::collection::vec(any::<u8>(), 16..200),
            at in any::<proptest::sample::Index>(),
            new in any::<u64>(),
        ) {
            let at = at.index((bytes.len() - 8) / 2 + 1) * 2;
            let before = Checksum::new().add_bytes(&bytes).finish_udp();
            let old = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
            bytes[at..at + 8].copy_from_slice(&new.to_be_bytes());
            let after = Checksum::new().add_bytes(&bytes).finish_udp();
            // One's complement has two zeros; both are 0xffff for UDP unless every octet is zero.
            if bytes.iter().any(|&octet| octet != 0) {
                prop_assert_eq!(updated_checksum(before, old, new), after);
            }
        }
    }
}
