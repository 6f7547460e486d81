//! Which of several operations of one key a record is made of.

/// Whether the last writer of a surface wins, or the first.
fn is_last(surface: &str) -> bool {
    surface == "declagent" || surface.starts_with("registry:")
}

/// Ranks compare bytewise, and the lowest stays: the first operation by stamp and name, or the last. Names
/// are of one length.
pub fn rank(surface: &str, hlc: u64, op_id: &str) -> Vec<u8> {
    let mut rank = [&hlc.to_be_bytes(), op_id.as_bytes()].concat();
    if is_last(surface) {
        for byte in &mut rank {
            *byte = !*byte;
        }
    }
    rank
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn the_first_stays_or_the_last(a in (0..4_u64, 0..4_u8), b in (0..4_u64, 0..4_u8)) {
            let name = |number: u8| format!("op-{number:032x}");
            let of = |surface, (hlc, number)| rank(surface, hlc, &name(number));
            for surface in ["knowledge", "skill", "trajectory", "run"] {
                prop_assert_eq!(of(surface, a).cmp(&of(surface, b)), a.cmp(&b));
            }
            for surface in ["declagent", "registry:tool"] {
                prop_assert_eq!(of(surface, a).cmp(&of(surface, b)), b.cmp(&a));
            }
        }
    }
}
