//! Binds intents to SQL; the declarations are in `sql/intent.sql`.

use std::cmp::Reverse;

use pgrx::JsonB;
use pgrx::prelude::*;

use super::dispatch::{self, Record, Status};
use crate::error::Error;
use crate::heap::{Access, Key, Latest, Table};
use crate::is_preloaded;
use crate::lease::grant::check_name;
use crate::lease::store::{self, Leases};
use crate::oplog::op;
use crate::varlena::SqlResult;

/// Columns of `coord.intent`, from 0.
mod column {
    pub const AGENT: usize = 0;
    pub const RUN: usize = 1;
    pub const EPOCH: usize = 4;
    pub const STATUS: usize = 6;
    pub const OPERATION: usize = 8;
    pub const COUNT: usize = 10;
}

/// Raises 22023 for what cannot be recorded. Returns whether there is an operation log to put it into.
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
    op::check_scope(scope)?;
    Status::parse(status)?;
    check_issued(agent, epoch)?;
    let is_node = Table::open(c"local_node", Access::Read)
        .first(&Latest::take())
        .is_some();
    Ok(is_node && is_preloaded())
}

/// 22023 for an epoch of the agent's lease that was never issued, here or as far as was heard.
fn check_issued(agent: &str, epoch: i64) -> Result<(), Error> {
    let lease = Leases::open(Access::Read).find(agent);
    let here = lease.map_or(0, |found| found.lease.epoch);
    let seen = Latest::take();
    let elsewhere = store::elsewhere(&seen, agent).highest_epoch();
    dispatch::check_issued(agent, epoch, here.max(elsewhere))
}

/// What is no record of a run counts for nothing, and may be in the log.
#[pg_extern(sql = false)]
fn intent_is_admissible(payload: &str) -> SqlResult<bool> {
    if let Some(record) = Record::parse(payload) {
        check_issued(&record.agent, record.epoch)?;
    }
    Ok(true)
}

#[pg_extern(sql = false)]
fn intent_rank(status: &str, epoch: i64, hlc: i64, op_id: &str) -> SqlResult<Vec<u8>> {
    let status = Status::parse(status)?;
    Ok(dispatch::rank(status, epoch, hlc.cast_unsigned(), op_id))
}

#[pg_extern(sql = false)]
fn intent_is_whole(payload: &str) -> bool {
    Record::parse(payload).is_some()
}

/// The record, in any scope, that a run has been committed. Of several every node names the same.
fn committed(seen: &Latest, agent: &str, run_id: &str) -> Option<String> {
    let keys = [
        Key::Text(column::AGENT as i16 + 1, agent),
        Key::Text(column::RUN as i16 + 1, run_id),
    ];
    let mut found: Option<(i64, Reverse<String>)> = None;
    let table = Table::open(c"intent", Access::Read);
    table.scan(seen, Some(c"intent_pkey"), &keys, |row| {
        let values = row.values::<{ column::COUNT }>();
        // SAFETY: the types are those of sql/intent.sql.
        let (status, record) = unsafe {
            let operation = values.get::<String>(column::OPERATION);
            (
                values.get::<&str>(column::STATUS),
                values.get(column::EPOCH).zip(operation),
            )
        };
        if status == Some("committed") {
            found = found
                .take()
                .max(record.map(|(epoch, name)| (epoch, Reverse(name))));
        }
        true
    });
    found.map(|(_, Reverse(operation))| operation)
}

#[pg_extern(sql = false)]
fn fence_check(agent: &str, run_id: &str, holder: &str, epoch: i64) -> JsonB {
    let lease = Leases::open(Access::Read).find(agent);
    let seen = Latest::take();
    let decision = dispatch::decide(
        committed(&seen, agent, run_id),
        lease.as_ref().map(|found| &found.lease),
        store::elsewhere(&seen, agent).latest(),
        holder,
        epoch,
        store::now(),
    );
    JsonB(decision.to_json(epoch))
}
