//! Binds streams to SQL; the declarations are in `sql/stream.sql`.

use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::error;
use crate::heap::Latest;
use crate::is_preloaded;
use crate::node::sql::{confirmed_actor, confirmed_life};
use crate::process;
use crate::varlena::SqlResult;

/// The first exchange after a start takes less. Then the apply worker is started anew, every five seconds.
const PATIENCE: Duration = Duration::from_secs(4);

const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The replication origin of the rows that this session applies.
#[pg_extern(sql = false)]
fn stream_origin() -> Option<i32> {
    // SAFETY: a plain variable of this process.
    let origin = unsafe { pg_sys::replorigin_session_origin };
    (origin != 0).then(|| i32::from(origin))
}

/// Waits until this node knows its life, when rows come by replication, and returns which it is, as of this
/// moment. A copy of the database has the subscriptions of the original: what it applied, the original would lack.
pub fn pass_gate() -> error::Result<Option<pgrx::Uuid>> {
    if stream_origin().is_none() {
        return Ok(None);
    }
    let begun = Instant::now();
    loop {
        if let Ok(life) = confirmed_life(&Latest::take()) {
            return Ok(life.map(|life| life.uuid));
        }
        if begun.elapsed() > PATIENCE {
            return Err(error::life_unknown(is_preloaded()));
        }
        process::pause(LOOK_AGAIN);
    }
}

#[pg_extern(sql = false)]
fn stream_gate() -> SqlResult<Option<pgrx::Uuid>> {
    Ok(pass_gate()?)
}

/// What this node's rows are told as.
#[pg_extern(sql = false)]
fn stream_actor() -> SqlResult<String> {
    Ok(confirmed_actor()?)
}

#[pg_extern(sql = false)]
fn stream_refuse(target: &str, reason: &str) -> SqlResult<()> {
    Err(error::table_not_streamable(target, reason).into())
}
