//! Histograms as text: HdrHistogram V2, deflated, base64.
//!
//! Owns: what an encoded histogram must look like before the library may read it. Does not own: the format (the
//! hdrhistogram crate), what the numbers mean (`record`).
//!
//! The one idea a newcomer lacks: the library believes the lengths and the range that the text itself names, and takes up
//! to gigabytes for them. A record may come from anywhere, so the text is unpacked here, as far as one of our own
//! histograms can be long, and refused unless it has exactly their range.

use super::record::{LATENCY_MAX_NANOSECONDS, SIGNIFICANT_DIGITS, empty_histogram};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::read::ZlibDecoder;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use std::io::Read;

/// The first four octets of a deflated histogram, and of a plain one.
const DEFLATED: [u8; 4] = 0x1c84_9314_u32.to_be_bytes();
const PLAIN: [u8; 4] = 0x1c84_9313_u32.to_be_bytes();

/// Octets in front of the counts: the cookie, lengths and range.
const HEADER: usize = 40;

/// Most octets of a count, or of a number of empty buckets (LEB128 of 64 bits in 9 octets).
const COUNT_MAX: usize = 9;

/// The text for a histogram of latencies.
#[must_use]
pub fn encode(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    // Writing to a vector cannot fail, and our bounds are far from the format's.
    let _ = V2DeflateSerializer::new().serialize(histogram, &mut bytes);
    BASE64_STANDARD.encode(bytes)
}

/// The histogram of a text; `None` if it is not one of ours, with the range of [`empty_histogram`].
#[must_use]
pub fn decode(text: &str) -> Option<Histogram<u64>> {
    let bytes = BASE64_STANDARD.decode(text).ok()?;
    let (cookie, rest) = bytes.split_first_chunk()?;
    // Then the length of what follows, which is all there is.
    let (_, deflated) = rest.split_first_chunk::<4>()?;
    let longest = HEADER + empty_histogram().distinct_values() * COUNT_MAX;
    let mut plain = Vec::new();
    ZlibDecoder::new(deflated).take(longest as u64 + 1).read_to_end(&mut plain).ok()?;
    let is_ours = *cookie == DEFLATED && plain.len() <= longest && has_our_range(&plain);
    is_ours.then(|| Deserializer::new().deserialize(&mut plain.as_slice()).ok())?
}

/// Does an unpacked histogram begin as ours do, and is it as long as it says?
fn has_our_range(plain: &[u8]) -> bool {
    let Some((header, counts)) = plain.split_first_chunk::<HEADER>() else { return false };
    let mut ours = [0; HEADER];
    ours[..4].copy_from_slice(&PLAIN);
    ours[4..8].copy_from_slice(&(counts.len() as u32).to_be_bytes());
    // Four octets of an offset that is always 0.
    ours[12..16].copy_from_slice(&u32::from(SIGNIFICANT_DIGITS).to_be_bytes());
    ours[16..24].copy_from_slice(&1_u64.to_be_bytes());
    ours[24..32].copy_from_slice(&LATENCY_MAX_NANOSECONDS.to_be_bytes());
    ours[32..].copy_from_slice(&1_f64.to_be_bytes());
    // The most negative number is no count of anything, and the library negates it, which overflows.
    *header == ours && !counts.windows(COUNT_MAX).any(|octets| octets == [0xff; COUNT_MAX])
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::ZlibEncoder;
    use proptest::prelude::*;
    use std::io::Write;

    /// The text of an unpacked histogram, whatever it holds.
    fn packed(plain: &[u8]) -> String {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        let deflated = encoder.finish().unwrap();
        BASE64_STANDARD.encode([&DEFLATED[..], &(deflated.len() as u32).to_be_bytes(), &deflated].concat())
    }

    /// A header, changed by `change`, and counts.
    fn plain(change: impl FnOnce(&mut [u8]), counts: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[..4].copy_from_slice(&PLAIN);
        bytes[4..8].copy_from_slice(&(counts.len() as u32).to_be_bytes());
        bytes[15] = SIGNIFICANT_DIGITS;
        bytes[23] = 1;
        bytes[24..32].copy_from_slice(&LATENCY_MAX_NANOSECONDS.to_be_bytes());
        bytes[32..].copy_from_slice(&1_f64.to_be_bytes());
        change(&mut bytes);
        bytes.extend(counts);
        bytes
    }

    #[test]
    fn what_we_write_reads_back() {
        let mut histogram = empty_histogram();
        assert_eq!(decode(&encode(&histogram)).unwrap(), histogram);
        for (value, count) in [(0, 1), (1, 1 << 40), (1000, 3), (LATENCY_MAX_NANOSECONDS, 7)] {
            histogram.record_n(value, count).unwrap();
        }
        assert_eq!(decode(&encode(&histogram)).unwrap(), histogram);
        // One request of 1 ns, by hand: the bucket of 0 is skipped (-1), that of 1 has one (1).
        assert_eq!(decode(&packed(&plain(|_| (), &[1, 2]))).unwrap().len(), 1);
    }

    #[test]
    fn lengths_and_ranges_that_are_not_ours_are_refused_before_the_library_believes_them() {
        type Change = fn(&mut [u8]);
        let hostile: [(&str, Change); 7] = [
            ("counts of 4 GiB", |header| header[4..8].fill(0xff)),
            ("an offset", |header| header[11] = 1),
            ("5 digits", |header| header[15] = 5),
            ("a range from 2", |header| header[23] = 2),
            ("a range to 2^64 - 1", |header| header[24..32].fill(0xff)),
            ("another ratio", |header| header[33] = 0),
            ("another cookie", |header| header[3] = 0),
        ];
        for (what, change) in hostile {
            assert_eq!(decode(&packed(&plain(change, &[1, 2]))), None, "{what}");
        }
        // A bomb: a few kilobytes of text for 64 MiB of counts that are all zero.
        assert_eq!(decode(&packed(&plain(|_| (), &vec![0; 64 << 20]))), None);
        // Counts behind the last bucket, and the most negative number of empty ones.
        assert_eq!(decode(&packed(&plain(|_| (), &[0xff, 0xff, 0xff, 0xff, 0x0f, 2]))), None);
        assert_eq!(decode(&packed(&plain(|_| (), &[0xff; 9]))), None);
        // Cut in the middle of a number.
        assert_eq!(decode(&packed(&plain(|_| (), &[0x80]))), None);
        for text in ["", "no histogram", "AAAA", "HISTFAAAAAA="] {
            assert_eq!(decode(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_the_reader_panic(
            counts in proptest::collection::vec(any::<u8>(), 0..200),
            at in 0..HEADER,
            octet: u8,
            flip: bool,
        ) {
            let bytes = plain(|header| if flip { header[at] = octet }, &counts);
            if let Some(histogram) = decode(&packed(&bytes)) {
                // What is read can be used.
                prop_assert!(histogram.max() <= 1 << 36 && histogram.value_at_quantile(0.99) <= 1 << 36);
                prop_assert!(histogram.iter_recorded().count() <= counts.len());
            }
        }

        #[test]
        fn no_text_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), cookie: bool) {
            let head = if cookie { &DEFLATED[..] } else { &[] };
            let _ = decode(&BASE64_STANDARD.encode([head, &bytes].concat()));
        }
    }
}
