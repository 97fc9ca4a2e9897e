//! Extension fields (RFC 7822): type, length, value, one after the other.

use super::Malformed;

/// The shortest extension field, in octets (RFC 7822 section 7.5).
pub(super) const EXTENSION_LENGTH_MIN: usize = 16;
/// The shortest last extension field when no MAC follows (RFC 7822 section 7.5.1.4). Anything shorter than
/// this is a MAC, which is how the two are told apart.
pub(super) const LAST_EXTENSION_LENGTH_MIN: usize = 28;

/// One extension field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtensionField<'a> {
    /// Its type, as registered with IANA.
    pub field_type: u16,
    /// Its value, padding included (the length field cannot tell them apart).
    pub value: &'a [u8],
}

/// Walks extension fields that [`super::Packet::parse`] has checked.
#[derive(Clone, Copy, Debug)]
pub struct ExtensionFields<'a> {
    rest: &'a [u8],
}

impl<'a> ExtensionFields<'a> {
    pub(super) const fn new(checked: &'a [u8]) -> Self {
        Self { rest: checked }
    }
}

impl<'a> Iterator for ExtensionFields<'a> {
    type Item = ExtensionField<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (field, rest) = split_field(self.rest).ok()?;
        self.rest = rest;
        Some(field)
    }
}

/// Splits the first field off.
pub(super) fn split_field(bytes: &[u8]) -> Result<(ExtensionField<'_>, &[u8]), Malformed> {
    let Some((&[type_high, type_low, length_high, length_low], _)) = bytes.split_first_chunk() else {
        return Err(Malformed::Trailer(bytes.len()));
    };
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    let error = Malformed::ExtensionLength { length, available: bytes.len() };
    if length < EXTENSION_LENGTH_MIN || !length.is_multiple_of(4) {
        return Err(error);
    }
    let (field, rest) = bytes.split_at_checked(length).ok_or(error)?;
    let field_type = u16::from_be_bytes([type_high, type_low]);
    Ok((ExtensionField { field_type, value: &field[4..] }, rest))
}
