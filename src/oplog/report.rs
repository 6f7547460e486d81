//! An operation, as nodes pass it on where no stream carries it.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::op;
use crate::clock::hlc;
use crate::error::{Result, malformed_binary};
use crate::node::identity;

/// With its hyphens, as PostgreSQL writes it.
const UUID_BYTES: usize = 36;

/// The year 10000, in microseconds since 1970.
const LATEST_TIME: u64 = 253_402_300_800_000_000;

/// A row of `coord.op`, but for what is each node's own. What it says is checked where it enters the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    pub origin: String,
    pub seq: i64,
    /// The number of its transaction at its origin.
    pub xid: i64,
    pub hlc: String,
    pub op_id: String,
    pub scope: String,
    pub surface: String,
    /// The text of a jsonb.
    pub payload: String,
    /// Microseconds since 1970.
    pub recorded_at: i64,
    pub tenant_id: Option<String>,
}

impl Operation {
    /// Refuses what no row can be made of.
    pub fn check(&self) -> Result<()> {
        hlc::parse(&self.hlc)?;
        let texts = [&self.scope, &self.surface, &self.payload];
        let is_text = texts.iter().all(|text| !text.contains('\0'));
        let is_json = serde_json::from_str::<&RawValue>(&self.payload).is_ok();
        let is_tenant = (self.tenant_id.as_deref())
            .is_none_or(|id| id.len() == UUID_BYTES && uuid::Uuid::try_parse(id).is_ok());
        let is_time = self.recorded_at.unsigned_abs() <= LATEST_TIME;
        let is_whole = is_text && is_json && is_tenant && is_time && op::is_name(&self.op_id);
        if is_whole && is_actor(&self.origin) && self.seq > 0 && self.xid > 0 {
            Ok(())
        } else {
            let detail = "An operation has a malformed part.";
            Err(malformed_binary("gossip message", detail))
        }
    }
}

/// The name of a node, and from its second life on the number of that.
pub fn is_actor(origin: &str) -> bool {
    let (name, life) = origin.split_once('#').unwrap_or((origin, "2"));
    let is_number = |life: &str| life.parse::<u64>().is_ok_and(|number| number > 1);
    identity::check_name(name).is_ok() && is_number(life)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation() -> Operation {
        Operation {
            origin: "a#2".to_owned(),
            seq: 1,
            xid: 7,
            hlc: "2026-11-21T07:00:00.123Z/5".to_owned(),
            op_id: format!("op-{}", "0123456789abcdef".repeat(2)),
            scope: "personal".to_owned(),
            surface: "skill".to_owned(),
            payload: "{}".to_owned(),
            recorded_at: 0,
            tenant_id: None,
        }
    }

    #[test]
    fn what_no_row_can_be_made_of_is_refused() {
        assert!(operation().check().is_ok());
        let spoil: [fn(&mut Operation); 11] = [
            |op| op.origin.clear(),
            |op| op.seq = 0,
            |op| op.xid = -1,
            |op| op.hlc = "now".to_owned(),
            |op| op.op_id.push('0'),
            |op| op.tenant_id = Some("x".to_owned()),
            |op| op.tenant_id = Some("urn:uuid:6f1c2a34-0000-4000-8000-000000000001".to_owned()),
            |op| op.origin = "a#1".to_owned(),
            |op| op.origin = "a b".to_owned(),
            |op| op.payload = "{".to_owned(),
            |op| op.recorded_at = i64::MAX,
        ];
        for change in spoil {
            let mut spoiled = operation();
            change(&mut spoiled);
            assert!(spoiled.check().is_err(), "{spoiled:?}");
        }
    }
}
