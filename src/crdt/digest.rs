//! Digests of full content: BLAKE3 over length-prefixed fields under a domain.

pub const DIGEST_BYTES: usize = 32;

pub type Digest = [u8; DIGEST_BYTES];

const ROW_DOMAIN: &[u8] = b"pg_test row 1";

/// The digest of one named value, a row of a set that is compared with a peer's.
pub fn row_digest(name: &str, value: &[u8]) -> Digest {
    fields(&[ROW_DOMAIN, name.as_bytes(), value])
}

/// Hashes fields so that no two lists of fields feed the same bytes: each goes behind its length.
pub fn fields(fields: &[&[u8]]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for field in fields {
        hasher.update(&(field.len() as u64).to_le_bytes());
        hasher.update(field);
    }
    hasher.finalize().into()
}

/// The digest of a set together with one more member: addition modulo 2^256 of little-endian
/// numbers. Order does not matter, and unlike with XOR equal members do not cancel.
pub fn add(left: &Digest, right: &Digest) -> Digest {
    let mut sum = [0; DIGEST_BYTES];
    let mut carry = 0;
    for (sum, (left, right)) in sum.iter_mut().zip(left.iter().zip(right)) {
        let digit = u16::from(*left) + u16::from(*right) + carry;
        let [low, high] = digit.to_le_bytes();
        *sum = low;
        carry = u16::from(high);
    }
    sum
}

/// The digest of a set without a member it has: what [`add`] undoes.
pub fn subtract(left: &Digest, right: &Digest) -> Digest {
    let mut difference = [0; DIGEST_BYTES];
    let mut borrow = false;
    for (difference, (left, right)) in difference.iter_mut().zip(left.iter().zip(right)) {
        (*difference, borrow) = left.borrowing_sub(*right, borrow);
    }
    difference
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ZERO: Digest = [0; DIGEST_BYTES];

    #[test]
    fn row_digest_is_known() {
        let hash =
            blake3::hash(b"\x0d\0\0\0\0\0\0\0pg_test row 1\x01\0\0\0\0\0\0\0a\x02\0\0\0\0\0\0\0bc");
        assert_eq!(row_digest("a", b"bc"), *hash.as_bytes());
        assert_ne!(row_digest("ab", b"c"), row_digest("a", b"bc"));
    }

    #[test]
    fn addition_carries_to_the_end() {
        let mut one = ZERO;
        one[0] = 1;
        assert_eq!(add(&[0xff; DIGEST_BYTES], &one), ZERO);
        assert_eq!(subtract(&ZERO, &one), [0xff; DIGEST_BYTES]);
    }

    proptest! {
        #[test]
        fn digests_form_an_abelian_group(a: Digest, b: Digest, c: Digest) {
            prop_assert_eq!(add(&a, &b), add(&b, &a));
            prop_assert_eq!(add(&add(&a, &b), &c), add(&a, &add(&b, &c)));
            prop_assert_eq!(add(&a, &ZERO), a);
            prop_assert_eq!(subtract(&add(&a, &b), &b), a);
        }
    }
}
