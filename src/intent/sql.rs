//! Binds intents to SQL; the declarations are in `sql/intent.sql`.

use std::cmp::Reverse;

use pgrx::JsonB;
use pgrx::prelude::*;

use super::dispatch::{self, Status};
use crate::heap::{Access, Key, Latest, Table};
use crate::lease::grant::check_name;
use crate::lease::store::{self, Leases};
use crate::oplog::op;
use crate::varlena::SqlResult;

/// Columns of `coord.intent`, from 0.
mod column {
    pub const AGENT: usize = 0;
    pub const RUN: usize = 1;
    pub const STATUS: usize = 6;
    pub const OPERATION: usize = 8;
    pub const COUNT: usize = 9;
}

/// Columns of `coord.intent_report`, from 0.
mod report_column {
    pub const AGENT: usize = 0;
    pub const RUN: usize = 1;
    pub const SCOPE: usize = 2;
    pub const OPERATION: usize = 4;
    pub const EPOCH: usize = 5;
    pub const COUNT: usize = 11;
}

/// Raises 22023 for what cannot be recorded. Returns the record that the run has been committed, if any node
/// has said so.
#[pg_extern(sql = false)]
fn intent_check(
    agent: &str,
    run_id: &str,
    holder: &str,
    epoch: i64,
    status: &str,
    scope: &str,
) -> SqlResult<Option<String>> {
    check_name("an agent", agent)?;
    check_name("a run", run_id)?;
    check_name("a holder", holder)?;
    op::check_scope(scope)?;
    Status::parse(status)?;
    let lease = Leases::open(Access::Read).find(agent);
    let here = lease.map_or(0, |found| found.lease.epoch);
    let seen = Latest::take();
    let elsewhere = store::elsewhere(&seen, agent).highest_epoch();
    dispatch::check_issued(agent, epoch, here.max(elsewhere))?;
    Ok(reported(
        &seen,
        &[
            Key::Text(report_column::AGENT as i16 + 1, agent),
            Key::Text(report_column::RUN as i16 + 1, run_id),
            Key::Text(report_column::SCOPE as i16 + 1, scope),
        ],
    ))
}

/// The record, in any scope, that a run has been committed.
fn committed(seen: &Latest, agent: &str, run_id: &str) -> Option<String> {
    let keys = [
        Key::Text(report_column::AGENT as i16 + 1, agent),
        Key::Text(report_column::RUN as i16 + 1, run_id),
    ];
    reported(seen, &keys).or_else(|| committed_here(seen, agent, run_id))
}

/// The same as far as any node has reported it. Of several records every node names the same.
fn reported(seen: &Latest, keys: &[Key]) -> Option<String> {
    let mut found: Option<(i64, Reverse<String>)> = None;
    let table = Table::open(c"intent_report", Access::Read);
    table.scan(seen, Some(c"intent_report_pkey"), keys, |row| {
        let values = row.values::<{ report_column::COUNT }>();
        // SAFETY: the types are those of sql/intent.sql.
        let record = unsafe {
            let operation = values.get::<String>(report_column::OPERATION);
            values.get(report_column::EPOCH).zip(operation)
        };
        found = found
            .take()
            .max(record.map(|(epoch, name)| (epoch, Reverse(name))));
        true
    });
    found.map(|(_, Reverse(operation))| operation)
}

/// The same where the database is no node, which reports nothing.
fn committed_here(seen: &Latest, agent: &str, run_id: &str) -> Option<String> {
    let keys = [
        Key::Text(column::AGENT as i16 + 1, agent),
        Key::Text(column::RUN as i16 + 1, run_id),
    ];
    let mut found = None;
    let table = Table::open(c"intent", Access::Read);
    table.scan(seen, Some(c"intent_pkey"), &keys, |row| {
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
