//! Names of nodes, and what tells one life of a node from another.

use serde::{Deserialize, Serialize};

use crate::error::{Result, bad_argument};

/// Leaves room for the prefix of the foreign server (`peer::server_name`) in PostgreSQL's 63.
pub const MAX_NAME_BYTES: usize = 56;

/// Checks a node's name: 1 to 56 bytes, no white space, no control character, and no `#`, which
/// separates name and incarnation in an actor.
pub fn check_name(name: &str) -> Result<()> {
    let refuse = |detail: String| Err(bad_argument("invalid node name", detail));
    if name.is_empty() {
        return refuse("The name must not be empty.".into());
    }
    if name.len() > MAX_NAME_BYTES {
        return refuse(format!(
            "The name has {} bytes; the limit is {MAX_NAME_BYTES}.",
            name.len()
        ));
    }
    match name
        .chars()
        .find(|c| c.is_whitespace() || c.is_control() || *c == '#')
    {
        Some(found) => refuse(format!("The name contains {found:?}.")),
        None => Ok(()),
    }
}

/// The actor of one life of a node: the name itself in the first, `name#n` in later ones.
pub fn actor(name: &str, incarnation: u64) -> String {
    if incarnation <= 1 {
        name.to_owned()
    } else {
        format!("{name}#{incarnation}")
    }
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub name: String,
    pub uuid: [u8; 16],
    pub incarnation: u64,
    /// Tells two lives of the same number apart.
    pub life: [u8; 16],
    /// Where the speaker is, which need not be where its life began.
    pub place: String,
    /// Whether it knows that this life is its own.
    pub is_confirmed: bool,
}

impl Hello {
    pub fn actor(&self) -> String {
        actor(&self.name, self.incarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "node-550e8400-e29b-41d4-a716-446655440000", "région.1"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        assert_eq!(check_name(&"x".repeat(MAX_NAME_BYTES)), Ok(()));
        for bad in [
            "",
            "a b",
            "a#2",
            "a\n",
            "\u{7f}",
            &"x".repeat(MAX_NAME_BYTES + 1),
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_first_life_is_the_bare_name() {
        assert_eq!(actor("a", 1), "a");
        assert_eq!(actor("a", 2), "a#2");
    }
}
