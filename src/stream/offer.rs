//! What two nodes tell each other of streams, with every message: which of them each wants of the other, and
//! where it is to be taken from. Each side makes and removes what is its own.

use serde::{Deserialize, Serialize};

use crate::error::{Result, malformed_binary};
use crate::oplog::op;

/// As PostgreSQL limits names.
const MAX_SLOT_BYTES: usize = 63;

/// A schema's name, a dot and a table's name.
const MAX_STREAM_BYTES: usize = 127;

const MAX_REASON_BYTES: usize = 1_024;

/// Tables that one node streams.
const MAX_STREAMS: usize = 1_000;

/// A stream that the speaker has for the listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    pub stream: String,
    /// Life of the listener that it was made for.
    pub life: String,
    /// Present once it is there.
    pub slot: Option<String>,
    /// What the slot does not bring is of transactions below this one, by the speaker's numbers.
    pub base: i64,
    /// Why it is not there yet.
    pub reason: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    pub wanted: Vec<String>,
    pub offers: Vec<Offer>,
}

impl Streams {
    /// Refuses what no row can be made of. A slot's name becomes part of a statement.
    pub fn check(&self) -> Result<()> {
        let is_whole = self.wanted.len() <= MAX_STREAMS
            && self.offers.len() <= MAX_STREAMS
            && self.wanted.iter().all(|name| is_stream(name))
            && self.offers.iter().all(Offer::is_whole);
        if is_whole {
            Ok(())
        } else {
            Err(malformed_binary(
                "gossip message",
                "What it says of streams is malformed.",
            ))
        }
    }
}

impl Offer {
    fn is_whole(&self) -> bool {
        is_stream(&self.stream)
            && uuid::Uuid::try_parse(&self.life).is_ok()
            && self.base >= 0
            && self.slot.as_deref().is_none_or(is_slot)
            && self
                .reason
                .as_deref()
                .is_none_or(|reason| is_text(reason, MAX_REASON_BYTES))
    }
}

fn is_text(text: &str, limit: usize) -> bool {
    !text.is_empty() && text.len() <= limit && !text.contains('\0')
}

fn is_stream(name: &str) -> bool {
    is_text(name, MAX_STREAM_BYTES)
}

/// A name that `coord.stream_slot_name` gives.
fn is_slot(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let (nodes, number) = name.rsplit_once('_').unwrap_or_default();
    nodes.starts_with("coord_")
        && name.len() <= MAX_SLOT_BYTES
        && nodes.bytes().all(is_letter)
        && op::is_hexadecimal(number, 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams() -> Streams {
        Streams {
            wanted: vec!["op".to_owned(), "public.event".to_owned()],
            offers: vec![Offer {
                stream: "op".to_owned(),
                life: "6f1c2a34-0000-4000-8000-000000000001".to_owned(),
                slot: Some("coord_a_b_0123abcd".to_owned()),
                base: 7,
                reason: None,
            }],
        }
    }

    #[test]
    fn what_no_row_can_be_made_of_is_refused() {
        assert!(streams().check().is_ok());
        let spoil: [fn(&mut Streams); 10] = [
            |streams| streams.wanted[0].clear(),
            |streams| streams.wanted[1] = "x".repeat(MAX_STREAM_BYTES + 1),
            |streams| streams.wanted = vec!["op".to_owned(); MAX_STREAMS + 1],
            |streams| streams.offers[0].stream = "a\0".to_owned(),
            |streams| streams.offers[0].base = -1,
            |streams| streams.offers[0].slot = Some("coord_a'b".to_owned()),
            |streams| streams.offers[0].slot = Some("other_slot".to_owned()),
            |streams| streams.offers[0].slot = Some("coord_a_b".to_owned()),
            |streams| streams.offers[0].life = "first".to_owned(),
            |streams| streams.offers[0].reason = Some("x".repeat(MAX_REASON_BYTES + 1)),
        ];
        for change in spoil {
            let mut spoiled = streams();
            change(&mut spoiled);
            assert!(spoiled.check().is_err(), "{spoiled:?}");
        }
    }
}
