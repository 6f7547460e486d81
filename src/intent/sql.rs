//! Binds intents to SQL; the declarations are in `sql/intent.sql`.

use pgrx::JsonB;
use pgrx::prelude::*;

use super::dispatch::{self, Status};
use crate::heap::{Access, Latest, Table};
use crate::lease::grant::check_name;
use crate::lease::store::{self, Leases};
use crate::varlena::SqlResult;

/// Columns of `coord.intent`, from 0.
mod column {
    pub const AGENT: usize = 0;
    pub const RUN: usize = 1;
    pub const STATUS: usize = 6;
    pub const OPERATION: usize = 8;
    pub const COUNT: usize = 9;
}

/// Raises 22023 for what cannot be recorded.
#[pg_extern(sql = false)]
fn intent_check(
    agent: &str,
    run_id: &str,
    holder: &str,
    epoch: i64,
    status: &str,
    scope: &str,
) -> SqlResult<bool> {
    check_name("an agent", agent)?;
    check_name("a run", run_id)?;
    check_name("a holder", holder)?;
    dispatch::check_scope(scope)?;
    Status::parse(status)?;
    let lease = Leases::open(Access::Read).find(agent);
    dispatch::check_issued(agent, epoch, lease.map_or(0, |found| found.lease.epoch))?;
    Ok(true)
}

/// The record, in any scope, that a run has been committed, by the latest snapshot.
fn committed(agent: &str, run_id: &str) -> Option<String> {
    let keys = [
        (column::AGENT as i16 + 1, agent),
        (column::RUN as i16 + 1, run_id),
    ];
    let mut found = None;
    let table = Table::open(c"intent", Access::Read);
    table.scan(&Latest::take(), Some(c"intent_pkey"), &keys, |row| {
        let values = row.values::<{ column::COUNT }>();
        // SAFETY: the types are those of sql/intent.sql.
        let (status, operation) = unsafe {
            (
                values.get::<&str>(column::STATUS),
                values.get::<String>(column::OPERATION),
            )
        };
        if status == Some("committed") {
            found = operation;
        }
        found.is_none()
    });
    found
}

#[pg_extern(sql = false)]
fn fence_check(agent: &str, run_id: &str, holder: &str, epoch: i64) -> JsonB {
    let lease = Leases::open(Access::Read).find(agent);
    let decision = dispatch::decide(
        committed(agent, run_id),
        lease.as_ref().map(|found| &found.lease),
        holder,
        epoch,
        store::now(),
    );
    JsonB(decision.to_json(epoch))
}
