//! What operations say that nodes append for each other: which turns and records are trimmed, and what the
//! folded state was at a frontier. One that says anything else counts for nothing.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::clock::{hlc, vclock};
use crate::json;
use crate::oplog::op;
use crate::oplog::report::is_actor;

/// Surfaces of which anything is trimmed.
const TRIMMED: [&str; 3] = ["conversation", "run", "trajectory"];

/// Of a conversation: the first turn that stays. Of a run or a trajectory: the record that goes, for ever.
#[derive(Debug, Deserialize)]
struct Trim {
    surface: String,
    key: String,
    hlc: String,
    op_id: String,
}

#[derive(Debug, Deserialize)]
struct Trims {
    trims: Vec<Trim>,
}

#[derive(Debug, Deserialize)]
struct Checkpoint {
    frontier: BTreeMap<String, u64>,
    state_hash: String,
}

/// Whether the payload of an operation of surface `retention` can be folded.
pub fn are_trims_whole(payload: &str) -> bool {
    let is_whole = |trim: &Trim| {
        TRIMMED.contains(&trim.surface.as_str())
            && op::check("personal", &trim.surface, &trim.key, 0).is_ok()
            && !trim.key.contains('\0')
            && hlc::parse(&trim.hlc).is_ok()
            && op::is_name(&trim.op_id)
    };
    json::parse_object::<Trims>(payload).is_some_and(|said| said.trims.iter().all(is_whole))
}

/// Whether the payload of an operation of surface `checkpoint` can be folded.
pub fn is_checkpoint_whole(payload: &str) -> bool {
    json::parse_object::<Checkpoint>(payload).is_some_and(|said| {
        let entries = said.frontier.iter().map(|(actor, at)| (&**actor, *at));
        op::is_hexadecimal(&said.state_hash, 64)
            && said.frontier.keys().all(|actor| is_actor(actor))
            && said.frontier.values().all(|at| *at > 0)
            && vclock::from_entries(entries).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_anything_else_counts_for_nothing() {
        let trims = r#"{"trims": [{"surface": "run", "key": "k", "hlc": "2026-11-21T07:00:00.123Z/5", "op_id": "op-0123456789abcdef0123456789abcdef"}]}"#;
        assert!(are_trims_whole(trims));
        assert!(are_trims_whole(r#"{"trims": []}"#));
        for (part, spoiled) in [
            ("\"run\"", "\"skill\""),
            ("\"k\"", "\"\\u0000\""),
            ("\"k\"", "1"),
            ("2026", "20x6"),
            ("op-0", "op-"),
            ("\"trims\"", "\"trim\""),
            ("{\"trims\": ", "["),
        ] {
            assert!(!are_trims_whole(&trims.replace(part, spoiled)), "{spoiled}");
        }

        let hash = "0123456789abcdef".repeat(4);
        let checkpoint = format!(r#"{{"frontier": {{"a": 7, "b#2": 1}}, "state_hash": "{hash}"}}"#);
        assert!(is_checkpoint_whole(&checkpoint));
        for (part, spoiled) in [
            (": 7", ": 0"),
            (": 7", ": -7"),
            (": 7", ": 9223372036854775808"),
            ("b#2", "b#1"),
            ("0123", "012"),
            ("frontier", "frontiers"),
            ("7,", "7, \"a b\": 7,"),
        ] {
            let spoiled = checkpoint.replace(part, spoiled);
            assert!(!is_checkpoint_whole(&spoiled), "{spoiled}");
        }
    }
}
