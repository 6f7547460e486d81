//! Taking values off the front of a byte slice. `None` means that the slice is too short.

#[inline]
pub fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    rest.split_off(..length)
}

#[inline]
pub fn take_array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (array, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*array)
}

#[inline]
pub fn take_u8(rest: &mut &[u8]) -> Option<u8> {
    take_array(rest).map(u8::from_le_bytes)
}

#[inline]
pub fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    take_array(rest).map(u64::from_le_bytes)
}

/// Unsigned LEB128 of at most 63 bits. A longer spelling of the same number is refused, since
/// equal meaning must be equal bytes.
pub fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let byte = take_u8(rest)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            let shortest = byte != 0 || shift == 0;
            return shortest.then_some(value);
        }
    }
    None
}

#[allow(clippy::cast_possible_truncation, reason = "seven bits at a time")]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(0x80 | (value & 0x7f) as u8);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn varint_has_one_spelling() {
        for bytes in [&[0x80, 0x00][..], &[0xff; 9], &[0x80; 12], &[0x80], &[]] {
            assert_eq!(take_varint(&mut &*bytes), None);
        }
    }

    proptest! {
        #[test]
        fn varint_round_trips(value in 0..1_u64 << 63, scale in 0..63_u32) {
            let value = value >> scale;
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(take_varint(&mut rest), Some(value));
            prop_assert!(rest.is_empty());
        }
    }
}
