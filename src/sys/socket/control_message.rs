//! Control messages of sendmsg(2) and recvmsg(2), octet by octet: `cmsghdr` is length with header, level, type, data, and
//! padding to a word.

const WORD: usize = size_of::<usize>();
/// Length, level and type.
const HEADER: usize = size_of::<libc::cmsghdr>();
/// Room for what is sent at once: packet information of IPv6 and a hop limit.
const ROOM: usize = 128;

/// Reads what the kernel wrote, whatever it is, without a panic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(super) const fn new(control: &'a [u8]) -> Self {
        Self { rest: control }
    }
}

impl<'a> Iterator for Messages<'a> {
    /// Level, type, data.
    type Item = (libc::c_int, libc::c_int, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from_ne_bytes(*self.rest.first_chunk()?);
        let level = i32::from_ne_bytes(*self.rest.get(WORD..)?.first_chunk()?);
        let kind = i32::from_ne_bytes(*self.rest.get(WORD + 4..)?.first_chunk()?);
        let data = self.rest.get(HEADER..length)?;
        // `get` has shown that the length is at least a header and inside the buffer.
        self.rest = self.rest.get(length.next_multiple_of(WORD)..).unwrap_or_default();
        Some((level, kind, data))
    }
}

/// Writes what is to be sent.
#[derive(Debug)]
#[repr(C, align(8))]
pub(super) struct Writer {
    octets: [u8; ROOM],
    length: usize,
}

impl Default for Writer {
    fn default() -> Self {
        Self { octets: [0; ROOM], length: 0 }
    }
}

impl Writer {
    /// Adds a message; one for which there is no room is left out.
    pub(super) fn push(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        let length = HEADER + data.len();
        let Some(room) = self.octets.get_mut(self.length..self.length + length.next_multiple_of(WORD)) else {
            return;
        };
        room[..WORD].copy_from_slice(&length.to_ne_bytes());
        room[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
        room[WORD + 4..WORD + 8].copy_from_slice(&kind.to_ne_bytes());
        room[HEADER..length].copy_from_slice(data);
        self.length += length.next_multiple_of(WORD);
    }

    /// Null where there is nothing.
    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        if self.length == 0 { std::ptr::null_mut() } else { self.octets.as_mut_ptr().cast() }
    }

    pub(super) const fn length(&self) -> usize {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut writer = Writer::default();
        writer.push(0, 8, &[1; 12]);
        writer.push(41, 50, &[2; 20]);
        writer.push(0, 2, &[3; 90]);
        let read: Vec<_> = Messages::new(&writer.octets[..writer.length]).collect();
        assert_eq!(read, [(0, 8, &[1; 12][..]), (41, 50, &[2; 20][..])], "there is no room for the third");
    }

    proptest! {
        #[test]
        fn any_octets_end_without_a_panic(control in proptest::collection::vec(any::<u8>(), 0..200), length in 0_usize..300) {
            let mut control = control;
            let end = control.len().min(WORD);
            control[..end].copy_from_slice(&length.to_ne_bytes()[..end]);
            prop_assert!(Messages::new(&control).count() <= control.len());
        }
    }
}
