//! The receive stamp among a datagram's control messages.
//!
//! The layout is `cmsghdr` of cmsg(3): length with header, level, type, data, and padding to a word. It is read
//! from plain octets, so nothing the kernel (or a simulator in its place) writes there can make this panic.

use crate::sys::clock::from_timespec;
use crate::time::{Realtime, Timestamp};

const WORD: usize = size_of::<usize>();

/// Length, level and type.
const HEADER: usize = size_of::<libc::cmsghdr>();

const NANOSECONDS_PER_SECOND: i64 = 1_000_000_000;

/// The software receive stamp in `control`, by `SO_TIMESTAMPING` or `SO_TIMESTAMPNS`: both begin with it.
pub(super) fn receive_stamp(mut control: &[u8]) -> Option<Timestamp<Realtime>> {
    while let Some((header, _)) = control.split_at_checked(HEADER) {
        let length = usize::from_ne_bytes(*header.first_chunk()?);
        let level = i32::from_ne_bytes(*header.get(WORD..)?.first_chunk()?);
        let kind = i32::from_ne_bytes(*header.get(WORD + 4..)?.first_chunk()?);
        let data = control.get(HEADER..length)?;
        if level == libc::SOL_SOCKET && (kind == libc::SCM_TIMESTAMPING || kind == libc::SCM_TIMESTAMPNS) {
            return software_stamp(data);
        }
        // `get` has shown that the length is at least a header and inside the buffer.
        control = control.get(length.next_multiple_of(WORD)..)?;
    }
    None
}

/// The first timespec of `scm_timestamping` is the software stamp; zero if there is none.
fn software_stamp(data: &[u8]) -> Option<Timestamp<Realtime>> {
    let seconds = i64::from_ne_bytes(*data.first_chunk()?);
    let nanoseconds = i64::from_ne_bytes(*data.get(8..)?.first_chunk()?);
    let is_stamp = (seconds, nanoseconds) != (0, 0) && (0..NANOSECONDS_PER_SECOND).contains(&nanoseconds);
    is_stamp.then(|| from_timespec(seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut octets = (HEADER + data.len()).to_ne_bytes().to_vec();
        octets.extend(level.to_ne_bytes());
        octets.extend(kind.to_ne_bytes());
        octets.extend(data);
        octets.resize(octets.len().next_multiple_of(WORD), 0);
        octets
    }

    fn timespecs(pairs: &[(i64, i64)]) -> Vec<u8> {
        pairs
            .iter()
            .flat_map(|(seconds, rest)| [seconds.to_ne_bytes(), rest.to_ne_bytes()].concat())
            .collect()
    }

    #[test]
    fn the_software_stamp_is_found_behind_other_messages() {
        let stamps = timespecs(&[(1_700_000_000, 5), (0, 0), (9, 9)]);
        let mut control = message(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &[1, 2, 3, 4]);
        control.extend(message(libc::SOL_SOCKET, libc::SCM_TIMESTAMPING, &stamps));
        assert_eq!(receive_stamp(&control).unwrap().nanoseconds(), 1_700_000_000_000_000_005);
        let older = message(libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS, &timespecs(&[(3, 4)]));
        assert_eq!(receive_stamp(&older).unwrap().nanoseconds(), 3_000_000_004);
    }

    #[test]
    fn zero_stamps_absurd_stamps_and_cut_messages_are_none() {
        let hardware_only = timespecs(&[(0, 0), (0, 0), (9, 9)]);
        assert_eq!(receive_stamp(&message(libc::SOL_SOCKET, libc::SCM_TIMESTAMPING, &hardware_only)), None);
        let absurd = timespecs(&[(1, NANOSECONDS_PER_SECOND)]);
        assert_eq!(receive_stamp(&message(libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS, &absurd)), None);
        let whole = message(libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS, &timespecs(&[(3, 4)]));
        for length in 0..whole.len() {
            assert_eq!(receive_stamp(&whole[..length]), None);
        }
        assert_eq!(receive_stamp(&message(libc::SOL_IP, libc::SCM_TIMESTAMPNS, &timespecs(&[(3, 4)]))), None);
    }

    proptest! {
        #[test]
        fn any_octets_end_without_a_panic(control in proptest::collection::vec(any::<u8>(), 0..128), length in 0_usize..200) {
            let mut control = control;
            let _ = receive_stamp(&control);
            // A believable first length reaches further than random octets do.
            let length = length.to_ne_bytes();
            let end = control.len().min(length.len());
            control[..end].copy_from_slice(&length[..end]);
            let _ = receive_stamp(&control);
        }
    }
}
