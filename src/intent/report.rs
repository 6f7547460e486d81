//! That a run has been committed, as nodes tell each other.

use serde::{Deserialize, Serialize};

use crate::error::{Result, malformed_binary};
use crate::lease::grant::check_name;
use crate::node::identity;
use crate::oplog::op::{self, check_scope};

/// A run that one node has recorded as committed. It is said once and never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommittedRun {
    pub agent: String,
    pub run_id: String,
    pub scope: String,
    /// The node that recorded it.
    pub node: String,
    pub op_id: String,
    pub epoch: i64,
    pub holder: String,
}

impl CommittedRun {
    pub fn check(&self) -> Result<()> {
        check_name("an agent", &self.agent)?;
        check_name("a run", &self.run_id)?;
        check_name("a holder", &self.holder)?;
        check_scope(&self.scope)?;
        identity::check_name(&self.node)?;
        if self.epoch > 0 && op::is_name(&self.op_id) {
            Ok(())
        } else {
            let detail = "A committed run has a malformed op_id or epoch.";
            Err(malformed_binary("gossip message", detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> CommittedRun {
        CommittedRun {
            agent: "mailer".to_owned(),
            run_id: "run-1".to_owned(),
            scope: "personal".to_owned(),
            node: "a".to_owned(),
            op_id: format!("op-{}", "0123456789abcdef".repeat(2)),
            epoch: 1,
            holder: "a".to_owned(),
        }
    }

    #[test]
    fn what_this_node_would_not_record_is_refused() {
        assert!(run().check().is_ok());
        let spoil: [fn(&mut CommittedRun); 6] = [
            |run| run.agent.clear(),
            |run| run.scope = "shared:".to_owned(),
            |run| run.node = "A b".to_owned(),
            |run| run.epoch = 0,
            |run| run.op_id = run.op_id.to_uppercase(),
            |run| run.op_id.push('0'),
        ];
        for change in spoil {
            let mut spoiled = run();
            change(&mut spoiled);
            assert!(spoiled.check().is_err(), "{spoiled:?}");
        }
    }
}
