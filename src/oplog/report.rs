//! An operation, as nodes pass it on where no stream carries it.

use serde::{Deserialize, Serialize};

use super::op;
use crate::clock::{hlc, vclock};
use crate::error::{Result, malformed_binary};

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
        let is_named = op::is_name(&self.op_id);
        let is_actor = (1..=vclock::MAX_ACTOR_BYTES).contains(&self.origin.len());
        let is_tenant =
            (self.tenant_id.as_deref()).is_none_or(|id| uuid::Uuid::try_parse(id).is_ok());
        if is_named && is_actor && is_tenant && self.seq > 0 && self.xid > 0 {
            Ok(())
        } else {
            let detail =
                "An operation has a malformed name, origin, number, transaction or tenant.";
            Err(malformed_binary("gossip message", detail))
        }
    }
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
        let spoil: [fn(&mut Operation); 6] = [
            |op| op.origin.clear(),
            |op| op.seq = 0,
            |op| op.xid = -1,
            |op| op.hlc = "now".to_owned(),
            |op| op.op_id.push('0'),
            |op| op.tenant_id = Some("x".to_owned()),
        ];
        for change in spoil {
            let mut spoiled = operation();
            change(&mut spoiled);
            assert!(spoiled.check().is_err(), "{spoiled:?}");
        }
    }
}
