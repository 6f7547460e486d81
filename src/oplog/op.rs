//! What an operation is: where it may belong, what it may be about, and its name.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::error::{Result, bad_argument, too_large};
use crate::lease::grant::check_name;

/// An entry of a btree index holds a third of a page.
const LONGEST_KEY: usize = 1_024;

/// A megabyte of text: an operation is read, named and sent whole, several times.
const LARGEST_PAYLOAD: i64 = 1 << 20;

const SURFACES: [&str; 8] = [
    "conversation",
    "knowledge",
    "skill",
    "trajectory",
    "run",
    "routing",
    "declagent",
    "intent",
];

/// What nodes append by themselves, for each other.
const OWN_SURFACES: [&str; 3] = ["retention", "checkpoint", "row"];

/// `personal`, or `shared:` and the name of an organisation.
pub fn check_scope(scope: &str) -> Result<()> {
    check_name("a scope", scope)?;
    let is_shared = scope
        .strip_prefix("shared:")
        .is_some_and(|organisation| !organisation.is_empty());
    if is_shared || scope == "personal" {
        return Ok(());
    }
    Err(bad_argument(
        "invalid scope",
        format!("The scope \"{scope}\" is neither personal nor shared:<org>."),
    ))
}

/// One of the surfaces, or `registry:` and the kind of what is registered.
fn check_surface(surface: &str) -> Result<()> {
    check_name("a surface", surface)?;
    let is_registry = surface
        .strip_prefix("registry:")
        .is_some_and(|kind| !kind.is_empty());
    if is_registry || SURFACES.contains(&surface) {
        return Ok(());
    }
    Err(bad_argument(
        "invalid surface",
        format!(
            "The surface \"{surface}\" is neither registry:<kind> nor one of {}.",
            SURFACES.join(", ")
        ),
    ))
}

/// Whether an agent can append an operation: 22023 also for what only nodes append.
pub fn check_appended(scope: &str, surface: &str, key: &str, size: i64) -> Result<()> {
    check_surface(surface)?;
    check(scope, surface, key, size)
}

/// Whether an operation can be in the log, here as on every other node. 22023 for what is unknown, 54000
/// for a key that no index takes, or a payload with a text of more than a megabyte.
pub fn check(scope: &str, surface: &str, key: &str, size: i64) -> Result<()> {
    check_scope(scope)?;
    if !OWN_SURFACES.contains(&surface) {
        check_surface(surface)?;
    }
    if size > LARGEST_PAYLOAD {
        return Err(too_large(
            "payload of an operation",
            format!("It has {size} bytes; the most is {LARGEST_PAYLOAD}."),
        ));
    }
    if key.len() <= LONGEST_KEY {
        return Ok(());
    }
    Err(too_large(
        "key of an operation",
        format!("It has {} bytes; the most is {LONGEST_KEY}.", key.len()),
    ))
}

/// Whether a text has the form of an operation's name.
pub fn is_name(text: &str) -> bool {
    text.strip_prefix("op-")
        .is_some_and(|digits| is_hexadecimal(digits, 32))
}

/// Whether a text is so many hexadecimal digits, as this extension writes them.
pub fn is_hexadecimal(text: &str, digits: usize) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == digits && text.bytes().all(is_digit)
}

/// An operation as its name is made of it.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    pub origin: &'a str,
    pub seq: i64,
    pub hlc: u64,
    pub scope: &'a str,
    pub surface: &'a str,
    /// The text that PostgreSQL gives a jsonb: keys in its order, one space after each colon and comma,
    /// numbers as written.
    pub payload: &'a str,
    /// Empty when it has none.
    pub tenant: &'a str,
}

const VERSION: u8 = 1;

impl Content<'_> {
    /// `op-` and the first 32 hexadecimal digits of SHA-256 over a version byte and every field behind its
    /// length; lengths and numbers are big-endian.
    pub fn name(&self) -> String {
        let mut hash = Sha256::new();
        hash.update([VERSION]);
        let (seq, hlc) = (self.seq.to_be_bytes(), self.hlc.to_be_bytes());
        let fields: [&[u8]; 7] = [
            self.origin.as_bytes(),
            &seq,
            &hlc,
            self.scope.as_bytes(),
            self.surface.as_bytes(),
            self.payload.as_bytes(),
            self.tenant.as_bytes(),
        ];
        for field in fields {
            hash.update((field.len() as u64).to_be_bytes());
            hash.update(field);
        }
        format!("op-{}", hexadecimal(&hash.finalize()[..16]))
    }
}

/// SHA-256 of a text.
pub fn hash(text: &str) -> String {
    hexadecimal(&Sha256::digest(text))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::SqlState;

    const CONTENT: Content = Content {
        origin: "a",
        seq: 1,
        hlc: 0x0001_0002,
        scope: "personal",
        surface: "skill",
        payload: "{}",
        tenant: "",
    };

    /// As computed with Python's hashlib and struct.
    #[test]
    fn the_name_is_known() {
        assert_eq!(CONTENT.name(), "op-fb6a826be7493366eeea48480570548f");
    }

    #[test]
    fn what_is_unknown_or_empty_is_refused() {
        for scope in ["personal", "shared:acme", "shared:a:b"] {
            assert_eq!(check(scope, "run", "", 2), Ok(()));
        }
        let longer = format!("shared:{}", "x".repeat(249));
        for scope in [
            &longer,
            "",
            "Personal",
            "shared",
            "shared:",
            "private",
            " personal",
        ] {
            let error = check(scope, "run", "", 2).unwrap_err();
            assert_eq!(error.state, SqlState::InvalidParameterValue, "{scope}");
        }
        for surface in SURFACES.into_iter().chain(["registry:tool"]) {
            assert_eq!(check("personal", surface, "", 2), Ok(()));
        }
        for surface in ["", "registry", "registry:", "Run", "runs", "conversation:x"] {
            let error = check("personal", surface, "", 2).unwrap_err();
            assert_eq!(error.state, SqlState::InvalidParameterValue, "{surface}");
        }
        for surface in OWN_SURFACES {
            assert_eq!(check("personal", surface, "", 2), Ok(()));
            let error = check_appended("personal", surface, "", 2).unwrap_err();
            assert_eq!(error.state, SqlState::InvalidParameterValue, "{surface}");
        }
    }

    #[test]
    fn a_key_fits_an_index() {
        let longest = "k".repeat(LONGEST_KEY);
        assert_eq!(check("personal", "run", &longest, 2), Ok(()));
        let error = check("personal", "run", &(longest + "k"), 2).unwrap_err();
        assert_eq!(error.state, SqlState::ProgramLimitExceeded);
    }

    #[test]
    fn a_payload_is_at_most_a_megabyte() {
        assert_eq!(check("personal", "run", "", LARGEST_PAYLOAD), Ok(()));
        let error = check("personal", "run", "", LARGEST_PAYLOAD + 1).unwrap_err();
        assert_eq!(error.state, SqlState::ProgramLimitExceeded);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// Moving a byte from one field to the next makes another name.
        #[test]
        fn names_tell_fields_apart(origin in "[a-z]{1,4}", scope in "[a-z]{0,4}", payload in "[a-z]{0,4}") {
            let content = Content { origin: &origin, scope: &scope, payload: &payload, ..CONTENT };
            let (head, tail) = origin.split_at(origin.len() - 1);
            let moved = format!("{tail}{scope}");
            let shifted = Content { origin: head, scope: &moved, ..content };
            prop_assert_ne!(content.name(), shifted.name());
            prop_assert_eq!(content.name().len(), 35);
        }
    }
}
