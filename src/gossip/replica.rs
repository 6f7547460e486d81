//! The node in this database, as the rules of an exchange see it.

use std::cell::RefCell;
use std::ffi::CStr;

use pgrx::pg_sys;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::background::own_xid;
use super::control;
use super::detector;
use super::protocol::{
    self, Absorbed, Batch, Claim, Feed, Heard, Holding, Position, Replica, Row, Start, Window,
};
use super::report::{self, Reader, Report, ReportBatch};
use super::snapshot::Snapshot;
use super::statistics;
use super::tally::Tally;
use crate::clock::vclock::{self, Vclock};
use crate::clock::{hlc, server};
use crate::crdt::constraint_state::ConstraintState;
use crate::error::{self, Error, Result};
use crate::node::detector::Heartbeats;
use crate::node::identity::{self, Hello};
use crate::node::incarnation::{self, Admission, Known, Life, Past, Resolution, Testimony};
use crate::node::sql::{self as node, LocalNode};
use crate::spi::{Rows, Session, Value};
use crate::stream::offer::Streams;
use crate::{guc, heap, is_preloaded};

thread_local! {
    static TALLY: RefCell<Tally> = RefCell::default();
}

/// When what this transaction has written counts as held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standpoint {
    /// The message leaves before this transaction ends, so nothing it wrote may be told.
    BeforeCommit,
    /// The message reaches the peer only if this transaction has committed.
    AfterCommit,
}

/// Rows for a peer, and the last of them, (xid, name), when there are more.
struct Changes {
    rows: Vec<Row>,
    cut_off: Option<(u64, String)>,
}

/// The same of reports; those that came from the peer itself are counted and left out.
struct ChangedReports {
    count: usize,
    rows: Vec<Report>,
    cut_off: Option<(u64, String)>,
}

/// This node, within one transaction.
pub struct Database<'s> {
    spi: &'s Session,
    standpoint: Standpoint,
    local: LocalNode,
    actor: String,
    space: String,
    /// What the peer says now, it did not say before this.
    spoken_since: i64,
}

impl<'s> Database<'s> {
    pub fn open(spi: &'s Session, standpoint: Standpoint) -> Result<Self> {
        Self::open_for_message(spi, standpoint, statistics::now())
    }

    /// For a message that the peer began to send at `spoken_since` or later.
    pub fn open_for_message(
        spi: &'s Session,
        standpoint: Standpoint,
        spoken_since: i64,
    ) -> Result<Self> {
        // SAFETY: a plain getter.
        if unsafe { pg_sys::RecoveryInProgress() } {
            return Err(error::in_recovery());
        }
        let local = spi.with_snapshot(node::local_node)?;
        Ok(Self {
            spi,
            standpoint,
            actor: identity::actor(&local.name, local.incarnation),
            space: node::place().space(local.incarnation),
            local,
            spoken_since,
        })
    }

    /// The snapshot now active, as it is told: with this transaction's own number in its place.
    fn told_snapshot(&self) -> Result<Snapshot> {
        let rows = self.spi.read(c"SELECT pg_current_snapshot()::text", &[]);
        let snapshot = Snapshot::parse(&required::<String>(&rows, 0, 0)?)?;
        Ok(match (own_xid(), self.standpoint) {
            (None, _) => snapshot,
            (Some(own), Standpoint::BeforeCommit) => snapshot.with_in_progress(own),
            (Some(own), Standpoint::AfterCommit) => snapshot.with_committed(own),
        })
    }

    /// What this node holds as of the active snapshot.
    fn holding(&self, snapshot: &Snapshot) -> Result<Holding> {
        let rows = self.spi.read(
            c"SELECT (SELECT s.xid::text::bigint FROM coord.state s
                       WHERE s.xid IS NOT NULL ORDER BY s.xid DESC LIMIT 1),
                     (SELECT coord.vclock_merge_agg(c.frontier)::bytea FROM coord.peer_cursor c),
                     (SELECT coord.vclock_merge_agg(c.ceiling)::bytea FROM coord.peer_cursor c)",
            &[],
        );
        let own_ceiling = rows
            .get::<i64>(0, 0)
            .map_or(0, |last| last.cast_unsigned() + 1);
        let own_frontier = own_ceiling.min(snapshot.xmin);
        Ok(Holding {
            space: self.space.clone(),
            frontier: self.with_own(rows.get(0, 1), own_frontier)?,
            ceiling: self.with_own(rows.get(0, 2), own_ceiling)?,
            own_ceiling,
        })
    }

    fn with_own(&self, learned: Option<Vec<u8>>, own: u64) -> Result<Vec<u8>> {
        let learned = learned.unwrap_or_else(vclock::empty);
        let own = vclock::from_entries([(self.actor.as_str(), own)])?;
        vclock::merge(Vclock::parse(&learned)?, Vclock::parse(&own)?)
    }

    /// Where a reader is that has been given what `until` sees, or a part of it.
    fn next_position(
        &self,
        start: &Position,
        until: Snapshot,
        cut_off: Option<(u64, String)>,
    ) -> Position {
        Position {
            space: self.space.clone(),
            given: match cut_off {
                None => Some(until.clone()),
                Some(_) => start.given.clone(),
            },
            window: cut_off.map(|(after_xid, after_name)| Window {
                until,
                after_xid,
                after_name,
            }),
        }
    }

    fn batch(
        &self,
        peer: &str,
        start: Start,
        snapshot: &Snapshot,
        holding: &Holding,
    ) -> Result<Batch> {
        let window = start.position.window.as_ref();
        let until = window.map_or(snapshot, |window| &window.until).clone();
        let is_current = window.is_none();
        let Changes { rows, cut_off } = self.changes(peer, &start, &until)?;
        let is_exhausted = cut_off.is_none();
        let next = self.next_position(&start.position, until, cut_off);
        Ok(Batch {
            start: start.position,
            covered_below: start.covered_below,
            rows,
            next,
            ceiling: holding.ceiling.clone(),
            frontier: (is_exhausted && is_current).then(|| holding.frontier.clone()),
        })
    }

    /// Rows changed since `start` as far as `until` sees them, and where they were cut off when
    /// there are more.
    fn changes(&self, peer: &str, start: &Start, until: &Snapshot) -> Result<Changes> {
        let given = start.position.given.as_ref();
        let window = start.position.window.as_ref();
        let limit = i64::from(guc::GOSSIP_BATCH.get());
        let found = self.spi.read(
            CHANGES,
            &[
                Value::Ints(&in_progress_at(given)),
                Value::Int(given.map_or(0, |given| given.xmax.cast_signed())),
                Value::Int(window.map_or(0, |window| window.after_xid.cast_signed())),
                Value::Text(Some(window.map_or("", |window| &window.after_name))),
                Value::Text(Some(&until.to_string())),
                Value::Int(limit),
            ],
        );
        let mut size = 0;
        let mut rows = Vec::new();
        let mut last = None;
        for index in 0..found.len() {
            let value: Vec<u8> = required(&found, index, 2)?;
            size += value.len();
            if size > size_limit() && last.is_some() {
                return Ok(Changes {
                    rows,
                    cut_off: last,
                });
            }
            let name: String = required(&found, index, 1)?;
            last = Some((
                required::<i64>(&found, index, 0)?.cast_unsigned(),
                name.clone(),
            ));
            let learned_from: Option<String> = found.get(index, 3);
            if start.is_full() || learned_from.as_deref() != Some(peer) {
                rows.push(Row { name, value });
            }
        }
        let is_cut_off = found.len() as i64 == limit;
        Ok(Changes {
            rows,
            cut_off: last.filter(|_| is_cut_off),
        })
    }

    /// Reports changed since `start` as far as `until` sees them, and where they were cut off when there are more;
    /// without operations that the reader holds, or has by streams. From the beginning nothing else is left out,
    /// not even what came from the reader itself.
    fn changed_reports(
        &self,
        peer: &str,
        start: &Position,
        until: &Snapshot,
        reader: &Reader,
    ) -> Result<ChangedReports> {
        let given = start.given.as_ref();
        let window = start.window.as_ref();
        let limit = i64::from(guc::GOSSIP_BATCH.get());
        let streamed: Vec<&str> = reader.streamed.iter().map(String::as_str).collect();
        let found = self.spi.read(
            REPORTS,
            &[
                Value::Ints(&in_progress_at(given)),
                Value::Int(given.map_or(0, |given| given.xmax.cast_signed())),
                Value::Int(window.map_or(0, |window| window.after_xid.cast_signed())),
                Value::Text(Some(window.map_or("0 ", |window| &window.after_name))),
                Value::Text(Some(&until.to_string())),
                Value::Int(limit),
                Value::Text(Some(if start.is_full() { "" } else { peer })),
                Value::Bytes(Some(&reader.frontier)),
                Value::Int(size_limit() as i64),
                Value::Texts(&streamed),
            ],
        );
        let total = match found.len() {
            0 => 0,
            _ => required::<i64>(&found, 0, 3)?,
        };
        let mut size = 0;
        let mut rows = Vec::with_capacity(found.len());
        let mut last = None;
        for index in 0..found.len() {
            let report: Option<String> = found.get(index, 2);
            size += report.as_ref().map_or(0, String::len);
            if size > size_limit() && last.is_some() {
                return Ok(ChangedReports {
                    count: index,
                    rows,
                    cut_off: last,
                });
            }
            last = Some((
                required::<i64>(&found, index, 0)?.cast_unsigned(),
                required(&found, index, 1)?,
            ));
            if let Some(report) = report {
                rows.push(from_json(&report)?);
            }
        }
        let is_cut_off = total == limit || total > found.len() as i64;
        Ok(ChangedReports {
            count: found.len(),
            rows,
            cut_off: last.filter(|_| is_cut_off),
        })
    }

    /// How far this node has been given the reports of a peer. Others are kept from moving that place until the
    /// transaction ends. What is streamed is looked at afterwards: whoever ends a stream voids the place.
    fn lock_reports_position(&self, peer: &str) -> Result<Position> {
        self.spi.write(
            c"INSERT INTO coord.report_cursor (node, space) VALUES ($1, '') ON CONFLICT DO NOTHING",
            &[Value::Text(Some(peer))],
        );
        self.read_reports_position(
            peer,
            c"SELECT space, given::text, until::text, after_xid, after_name
                FROM coord.report_cursor WHERE node = $1 FOR UPDATE",
        )
    }

    /// The same, of which others may move on at any time.
    fn reports_position(&self, peer: &str) -> Result<Position> {
        self.read_reports_position(
            peer,
            c"SELECT space, given::text, until::text, after_xid, after_name
                FROM coord.report_cursor WHERE node = $1",
        )
    }

    fn read_reports_position(&self, peer: &str, query: &'static CStr) -> Result<Position> {
        let rows = self.spi.write(query, &[Value::Text(Some(peer))]);
        if rows.is_empty() {
            Ok(report::nowhere())
        } else {
            stored_position(&rows)
        }
    }

    /// Origins whose operations a stream brings.
    fn streamed(&self) -> Vec<String> {
        let rows = self.spi.write(
            c"SELECT s.actor FROM coord.stream_source s
               WHERE s.stream = 'op' AND s.state = 'streaming' ORDER BY s.actor",
            &[],
        );
        (0..rows.len()).filter_map(|row| rows.get(row, 0)).collect()
    }

    /// The operations that this node holds completely as of the active snapshot.
    fn op_frontier(&self, snapshot: &Snapshot) -> Result<Vec<u8>> {
        let rows = self.spi.read(
            c"SELECT coord.op_frontier_of($1, $2)::bytea",
            &[
                Value::Text(Some(&self.actor)),
                Value::Int(snapshot.xmin.cast_signed()),
            ],
        );
        required(&rows, 0, 0)
    }

    /// Splits off rows whose stamp is too far ahead of this server, and observes the others.
    fn admissible<'b>(&self, peer: &str, rows: &'b [Row]) -> Result<Vec<&'b Row>> {
        let mut admissible = Vec::with_capacity(rows.len());
        let mut latest = None;
        for row in rows {
            let stamp = ConstraintState::parse(&row.value)?
                .position()
                .map(|position| position.at);
            match stamp.map_or(Ok(()), server::check_drift) {
                Ok(()) => {
                    latest = latest.max(stamp);
                    admissible.push(row);
                }
                Err(refusal) => statistics::refused(peer, &row.name, &refusal),
            }
        }
        if let Some(stamp) = latest.filter(|stamp| hlc::milliseconds(*stamp) > 0)
            && is_preloaded()
        {
            server::observe(stamp)?;
        }
        Ok(admissible)
    }

    fn learn(&self, peer: &str, rows: &[&Row]) -> Result<u64> {
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        let values: Vec<&[u8]> = rows.iter().map(|row| row.value.as_slice()).collect();
        let outcome = self.spi.write(
            c"SELECT changed FROM coord.state_learn($1, $2, $3)",
            &[
                Value::Text(Some(peer)),
                Value::Texts(&names),
                Value::ByteStrings(&values),
            ],
        );
        Ok(required::<i64>(&outcome, 0, 0)?.cast_unsigned())
    }

    fn known(&self, name: &str) -> Result<Option<Known>> {
        let rows = self.spi.write(
            c"SELECT uuid::text, incarnation, life::text, status = 'left' FROM coord.roster WHERE name = $1",
            &[Value::Text(Some(name))],
        );
        if rows.is_empty() {
            return Ok(None);
        }
        let life: Option<String> = rows.get(0, 2);
        Ok(Some(Known {
            uuid: node::uuid_bytes(&required::<String>(&rows, 0, 0)?)?,
            incarnation: required::<i64>(&rows, 0, 1)?.cast_unsigned(),
            life: life.as_deref().map(node::uuid_bytes).transpose()?,
            has_left: required(&rows, 0, 3)?,
        }))
    }

    /// Notes who asks for a life that goes on elsewhere.
    fn note_copy(&mut self, hello: &Hello) -> Result<()> {
        if let Some(lived) = self.testimony(&hello.name)?
            && lived.goes_on_elsewhere(&hello.place)
        {
            self.log_life(hello, "refused", "the life goes on elsewhere");
        }
        Ok(())
    }

    /// Remembers a node that is new here, or a new life of a known one.
    fn meet(&self, hello: &Hello, is_known: bool) {
        self.spi.write(
            c"INSERT INTO coord.roster AS r (name, uuid, incarnation, life, place)
              VALUES ($1, $2::uuid, $3, $4::uuid, $5)
              ON CONFLICT (name) DO UPDATE
                 SET incarnation = excluded.incarnation, life = excluded.life,
                     place = excluded.place, last_seen = excluded.last_seen
               WHERE r.incarnation < excluded.incarnation OR r.life IS NULL",
            &[
                Value::Text(Some(&hello.name)),
                Value::Text(Some(&uuid::Uuid::from_bytes(hello.uuid).to_string())),
                Value::Int(hello.incarnation.cast_signed()),
                Value::Text(Some(&uuid::Uuid::from_bytes(hello.life).to_string())),
                Value::Text(Some(&hello.place)),
            ],
        );
        self.forget_log_position(&hello.name);
        let reason = if is_known { "a new life" } else { "a new node" };
        self.log_life(hello, "met", reason);
    }

    /// Each life has a log of its own, and within one it only grows: a message that comes late must
    /// not hide how far its sender was.
    fn forget_log_position(&self, node: &str) {
        let node_value = [Value::Text(Some(node))];
        for forgetting in [
            c"UPDATE coord.ack SET log_position = '0/0' WHERE node = $1",
            c"UPDATE coord.peer_cursor SET log_position = '0/0' WHERE node = $1",
        ] {
            self.spi.write(forgetting, &node_value);
        }
        if Self::keeps_reports() {
            self.spi.write(
                c"UPDATE coord.report_cursor SET log_position = '0/0' WHERE node = $1",
                &node_value,
            );
        }
        statistics::forget_log_position(node);
    }

    /// Once per life, place and event: a node that is refused comes again every second.
    fn log_life(&self, hello: &Hello, event: &str, reason: &str) {
        let logged = self.spi.write(
            c"INSERT INTO coord.incarnation_log (node, incarnation, life, place, event, reason)
              VALUES ($1, $2, $3::uuid, $4, $5, $6) ON CONFLICT DO NOTHING RETURNING 1",
            &[
                Value::Text(Some(&hello.name)),
                Value::Int(hello.incarnation.cast_signed()),
                Value::Text(Some(&uuid::Uuid::from_bytes(hello.life).to_string())),
                Value::Text(Some(&hello.place)),
                Value::Text(Some(event)),
                Value::Text(Some(reason)),
            ],
        );
        if !logged.is_empty() {
            pgrx::log!(
                "pg_test: {event} node \"{}\" in life {} at {}: {reason}",
                hello.name,
                hello.incarnation,
                hello.place
            );
        }
    }

    /// Whether this node knows its life. When it does not, it remembers where its log ended when that
    /// began: a second start must not take what was written since for a part of the past.
    pub fn looks_at_life(&self) -> bool {
        if !self.local.is_confirmed {
            self.spi.write(
                c"UPDATE coord.local_node SET doubtful_since = '0/0'::pg_lsn + $1::numeric
                   WHERE doubtful_since IS NULL",
                &[Value::Int(control::started_at().cast_signed())],
            );
        }
        self.local.is_confirmed
    }

    /// Where the transaction log of a peer stood when it gave reports.
    fn reports_log_position(&self, peer: &str) -> u64 {
        if !Self::keeps_reports() {
            return 0;
        }
        let rows = self.spi.write(
            c"SELECT coalesce(max(log_position) - '0/0'::pg_lsn, 0)::bigint
                FROM coord.report_cursor WHERE node = $1",
            &[Value::Text(Some(peer))],
        );
        rows.get::<i64>(0, 0).map_or(0, i64::cast_unsigned)
    }

    /// Whether the extension is of a version that has streams.
    fn keeps_streams() -> bool {
        heap::is_there(c"stream_offer")
    }

    /// Whether the extension is of a version that has reports.
    fn keeps_reports() -> bool {
        heap::is_there(c"report_cursor")
    }

    /// Finds out which life this is by what the peers know, and lets it go on or begin.
    pub fn resolve_life(&mut self, testimonies: &[Testimony]) -> Result<Resolution> {
        let epoch_range = self.epoch_range()?;
        let holding = self.whole_holding()?;
        let hello = self.local.hello()?;
        let resolution = incarnation::resolve(
            &Life {
                past: Past {
                    incarnation: hello.incarnation,
                    life: hello.life,
                    own_ceiling: holding.own_ceiling,
                    log_position: self.doubtful_since()?,
                },
                place: self.local.place.clone(),
                found: hello.place,
                epoch_range,
            },
            testimonies,
        );
        match &resolution {
            Resolution::Confirm => drop(self.spi.write(c"SELECT coord.life_confirm()", &[])),
            Resolution::Begin {
                incarnation,
                reason,
            } => drop(self.spi.write(
                c"SELECT coord.life_begin($1, $2)",
                &[
                    Value::Int(incarnation.cast_signed()),
                    Value::Text(Some(reason)),
                ],
            )),
            Resolution::Wait { .. } => {}
        }
        Ok(resolution)
    }

    fn doubtful_since(&self) -> Result<u64> {
        let rows = self.spi.write(
            c"SELECT (doubtful_since - '0/0'::pg_lsn)::bigint FROM coord.local_node",
            &[],
        );
        let stored: Option<i64> = rows.get(0, 0);
        let stored = stored.map_or(u64::MAX, i64::cast_unsigned);
        Ok(stored.min(control::started_at()))
    }

    fn whole_holding(&self) -> Result<Holding> {
        self.spi
            .with_snapshot(|_| self.holding(&self.told_snapshot()?))
    }

    fn advance(&self, peer: &str, batch: &Batch) -> Result<bool> {
        let (stored, resync) = self.position(peer)?;
        if resync && !batch.start.is_beginning() {
            return Ok(false);
        }
        protocol::continues(
            batch,
            stored.as_ref(),
            &self.whole_holding()?.frontier,
            &self.actor,
        )
    }

    fn position(&self, peer: &str) -> Result<(Option<Position>, bool)> {
        let rows = self.spi.write(
            c"SELECT space, given::text, until::text, after_xid, after_name, resync
                FROM coord.peer_cursor WHERE node = $1",
            &[Value::Text(Some(peer))],
        );
        if rows.is_empty() {
            return Ok((None, false));
        }
        let resync = rows.get(0, 5).unwrap_or(false);
        if rows.get::<String>(0, 0).is_none() {
            return Ok((None, resync));
        }
        let position = stored_position(&rows)?;
        Ok((Some(position), resync))
    }

    /// Stores what a batch says about the peer's changes. `moved` carries the new position.
    fn store_cursor(&self, peer: &str, batch: &Batch, moved: bool, log_position: u64) {
        let next = moved.then_some(&batch.next);
        let given = next
            .and_then(|next| next.given.as_ref())
            .map(Snapshot::to_string);
        let window = next.and_then(|next| next.window.as_ref());
        let until = window.map(|window| window.until.to_string());
        let frontier = batch.frontier.as_deref().filter(|_| moved);
        self.spi.write(
            STORE_CURSOR,
            &[
                Value::Text(Some(peer)),
                Value::Bool(moved),
                Value::Text(next.map(|next| next.space.as_str())),
                Value::Text(given.as_deref()),
                Value::Text(until.as_deref()),
                Value::Int(window.map_or(0, |window| window.after_xid.cast_signed())),
                Value::Text(window.map(|window| window.after_name.as_str())),
                Value::Bytes(frontier),
                Value::Bytes(Some(&batch.ceiling)),
                Value::Int(log_position.cast_signed()),
            ],
        );
    }

    /// Once nothing waits for a local transaction, what the peer gave is held; with no peer named,
    /// what all gave. The caller has locked the cursors, so whoever made a row wait and raised
    /// `pending` with it has committed both, and this statement sees both.
    fn complete(&self, peer: Option<&str>) -> bool {
        let raised = self.spi.write(
            c"UPDATE coord.peer_cursor
                 SET frontier = frontier OPERATOR(coord.||) pending
               WHERE node = coalesce($1, node)
                 AND NOT frontier OPERATOR(coord.@>) pending
                 AND NOT EXISTS (SELECT FROM coord.state_waiting)",
            &[Value::Text(peer)],
        );
        !raised.is_empty()
    }

    /// Merges learned rows whose local transaction has ended meanwhile.
    pub fn retry_waiting(&self) -> Result<()> {
        let rows = self
            .spi
            .write(c"SELECT EXISTS (SELECT FROM coord.state_waiting)", &[]);
        if required::<bool>(&rows, 0, 0)? {
            self.learn("", &[])?;
            self.spi.write(
                c"SELECT FROM coord.peer_cursor ORDER BY node FOR UPDATE",
                &[],
            );
            self.complete(None);
        }
        Ok(())
    }
}

/// Bytes of the values of one message.
fn size_limit() -> usize {
    guc::GOSSIP_BATCH_SIZE.get().unsigned_abs() as usize * 1024
}

/// Transactions that a reader has not been given although later ones were.
fn in_progress_at(given: Option<&Snapshot>) -> Vec<i64> {
    let listed = given.map_or(&[][..], |given| &given.in_progress);
    listed.iter().map(|xid| xid.cast_signed()).collect()
}

/// The position in the one row of a cursor: space, given, until, and the last row given.
fn stored_position(rows: &Rows) -> Result<Position> {
    let snapshot = |column| {
        rows.get::<String>(0, column)
            .map(|text| Snapshot::parse(&text))
            .transpose()
    };
    let window = match (snapshot(2)?, rows.get::<i64>(0, 3), rows.get(0, 4)) {
        (Some(until), Some(after_xid), Some(after_name)) => Some(Window {
            until,
            after_xid: after_xid.cast_unsigned(),
            after_name,
        }),
        _ => None,
    };
    Ok(Position {
        space: required(rows, 0, 0)?,
        given: snapshot(1)?,
        window,
    })
}

/// What a table gives as JSON.
fn from_json<T: DeserializeOwned>(json: &str) -> Result<T> {
    serde_json::from_str(json)
        .map_err(|failure| error::data_corrupted(format!("a report cannot be read: {failure}")))
}

fn to_json<T: Serialize>(reports: &[T]) -> Result<String> {
    serde_json::to_string(reports)
        .map_err(|failure| error::data_corrupted(format!("a report cannot be stored: {failure}")))
}

/// Rows of `$1` (in progress at the start) and from `$2` on, after the row (`$3`, `$4`), as far as
/// snapshot `$5` sees them. Two index ranges, each limited by itself, so that a full giving of many
/// rows costs each batch only its own rows.
const CHANGES: &CStr = c"
    SELECT c.local_xid::text::bigint, c.name, c.value::bytea, c.learned_from
      FROM ((SELECT s.local_xid, s.name, s.value, s.learned_from
               FROM coord.state s
              WHERE s.local_xid = ANY (ARRAY(SELECT x::text::xid8 FROM unnest($1) x))
                AND (s.local_xid, s.name) > ($3::text::xid8, $4 COLLATE \"C\")
                AND pg_visible_in_snapshot(s.local_xid, $5::pg_snapshot)
              ORDER BY s.local_xid, s.name LIMIT $6)
            UNION ALL
            (SELECT s.local_xid, s.name, s.value, s.learned_from
               FROM coord.state s
              WHERE s.local_xid >= $2::text::xid8
                AND (s.local_xid, s.name) > ($3::text::xid8, $4 COLLATE \"C\")
                AND pg_visible_in_snapshot(s.local_xid, $5::pg_snapshot)
              ORDER BY s.local_xid, s.name LIMIT $6)) c
     ORDER BY c.local_xid, c.name LIMIT $6";

const STORE_CURSOR: &CStr = c"
    INSERT INTO coord.peer_cursor AS c
           (node, space, given, until, after_xid, after_name, pending, ceiling, log_position)
    VALUES ($1, $3, $4::pg_snapshot, $5::pg_snapshot, CASE WHEN $7 IS NOT NULL THEN $6 END, $7,
            coalesce($8::coord.vclock, '{}'), $9::coord.vclock, '0/0'::pg_lsn + $10::numeric)
    ON CONFLICT (node) DO UPDATE
       SET space = CASE WHEN $2 THEN excluded.space ELSE c.space END,
           given = CASE WHEN $2 THEN excluded.given ELSE c.given END,
           until = CASE WHEN $2 THEN excluded.until ELSE c.until END,
           after_xid = CASE WHEN $2 THEN excluded.after_xid ELSE c.after_xid END,
           after_name = CASE WHEN $2 THEN excluded.after_name ELSE c.after_name END,
           resync = c.resync AND NOT $2,
           pending = c.pending OPERATOR(coord.||) excluded.pending,
           ceiling = c.ceiling OPERATOR(coord.||) excluded.ceiling,
           log_position = greatest(c.log_position, excluded.log_position)
     WHERE $2 OR NOT c.ceiling OPERATOR(coord.@>) excluded.ceiling";

/// The same of reports of leases, without those that came from reader `$7`, and of operations, without those
/// that frontier `$8` covers or that are of an origin in `$10`. Within a transaction operations are told apart by number and origin, reports by
/// a number that no two have; `$4` has both, with a blank between. Nothing is made of rows behind the first
/// `$9` bytes; the last column says how many there would have been.
const REPORTS: &CStr = c"
    SELECT w.local_xid::text::bigint, w.number || ' ' || w.origin,
           CASE WHEN NOT w.is_given THEN NULL
                WHEN w.origin = '' THEN coord.report_body(w.lease)
                ELSE coord.report_body(w.op) END::text,
           least(w.total, $6)
      FROM (SELECT c.*, count(*) OVER () AS total,
                   sum(c.size) OVER (ORDER BY c.local_xid, c.number, c.origin) - c.size AS before
              FROM ((SELECT l.local_xid, l.number, '' COLLATE \"C\" AS origin, l.learned_from IS DISTINCT FROM $7 AS is_given,
                            0 AS size, l AS lease, NULL::coord.op AS op
                       FROM coord.lease_report l
                      WHERE l.local_xid = ANY (ARRAY(SELECT x::text::xid8 FROM unnest($1) x))
                        AND (l.local_xid, l.number) > ($3::text::xid8, split_part($4, ' ', 1)::bigint)
                        AND pg_visible_in_snapshot(l.local_xid, $5::pg_snapshot)
                      ORDER BY l.local_xid, l.number LIMIT $6)
                    UNION ALL
                    (SELECT l.local_xid, l.number, '', l.learned_from IS DISTINCT FROM $7, 0, l, NULL
                       FROM coord.lease_report l
                      WHERE l.local_xid >= $2::text::xid8
                        AND (l.local_xid, l.number) > ($3::text::xid8, split_part($4, ' ', 1)::bigint)
                        AND pg_visible_in_snapshot(l.local_xid, $5::pg_snapshot)
                      ORDER BY l.local_xid, l.number LIMIT $6)
                    UNION ALL
                    (SELECT o.local_xid, o.seq, o.origin, o.xid::text::bigint >= coord.vclock_get($8::coord.vclock, o.origin) AND NOT o.origin = ANY ($10),
                            pg_column_size(o.payload), NULL, o
                       FROM coord.op o
                      WHERE o.local_xid = ANY (ARRAY(SELECT x::text::xid8 FROM unnest($1) x))
                        AND (o.local_xid, o.seq, o.origin) > ($3::text::xid8, split_part($4, ' ', 1)::bigint, split_part($4, ' ', 2))
                        AND pg_visible_in_snapshot(o.local_xid, $5::pg_snapshot)
                      ORDER BY o.local_xid, o.seq, o.origin LIMIT $6)
                    UNION ALL
                    (SELECT o.local_xid, o.seq, o.origin, o.xid::text::bigint >= coord.vclock_get($8::coord.vclock, o.origin) AND NOT o.origin = ANY ($10),
                            pg_column_size(o.payload), NULL, o
                       FROM coord.op o
                      WHERE o.local_xid >= $2::text::xid8
                        AND (o.local_xid, o.seq, o.origin) > ($3::text::xid8, split_part($4, ' ', 1)::bigint, split_part($4, ' ', 2))
                        AND pg_visible_in_snapshot(o.local_xid, $5::pg_snapshot)
                      ORDER BY o.local_xid, o.seq, o.origin LIMIT $6)) c
             ORDER BY c.local_xid, c.number, c.origin LIMIT $6) w
     WHERE w.before < $9
     ORDER BY w.local_xid, w.number, w.origin";

const STORE_REPORT_CURSOR: &CStr = c"
    INSERT INTO coord.report_cursor AS c (node, space, given, until, after_xid, after_name, log_position, frontier)
    VALUES ($1, $2, $3::pg_snapshot, $4::pg_snapshot, $5, $6, '0/0'::pg_lsn + $7::numeric, coalesce($8::coord.vclock, '{}'))
    ON CONFLICT (node) DO UPDATE
       SET space = excluded.space, given = excluded.given, until = excluded.until,
           after_xid = excluded.after_xid, after_name = excluded.after_name,
           log_position = greatest(c.log_position, excluded.log_position),
           frontier = c.frontier OPERATOR(coord.||) excluded.frontier";

fn required<T: pgrx::FromDatum + pgrx::IntoDatum>(
    rows: &Rows,
    row: usize,
    column: i32,
) -> Result<T> {
    rows.get(row, column)
        .ok_or_else(|| error::data_corrupted(format!("column {column} of a gossip query is null")))
}

impl Replica for Database<'_> {
    fn hello(&mut self) -> Result<Hello> {
        self.local.hello()
    }

    fn admit(&mut self, hello: &Hello) -> Result<Admission> {
        if hello.name == self.local.name {
            let found = uuid::Uuid::from_bytes(hello.uuid).to_string();
            return Err(if found == self.local.uuid {
                error::peer_is_self(&hello.name)
            } else {
                error::node_name_taken(&hello.name, &self.local.uuid, &found)
            });
        }
        let known = self.known(&hello.name)?;
        let admission = incarnation::admit(hello, known.as_ref())?;
        match admission {
            Admission::Welcome { is_news } => {
                if is_news {
                    self.meet(hello, known.is_some());
                }
                statistics::met(&hello.name);
            }
            Admission::Superseded => self.log_life(hello, "refused", "a later life is known"),
            Admission::Asking => self.note_copy(hello)?,
        }
        Ok(admission)
    }

    fn testimony(&mut self, name: &str) -> Result<Option<Testimony>> {
        let rows = self.spi.write(
            c"SELECT r.incarnation, r.life::text, coalesce(r.place, ''),
                     (greatest(k.log_position, c.log_position, '0/0') - '0/0'::pg_lsn)::bigint
                FROM coord.roster r
                LEFT JOIN coord.ack k ON k.node = r.name
                LEFT JOIN coord.peer_cursor c ON c.node = r.name
               WHERE r.name = $1 AND r.life IS NOT NULL",
            &[Value::Text(Some(name))],
        );
        if rows.is_empty() {
            return Ok(None);
        }
        let incarnation = required::<i64>(&rows, 0, 0)?.cast_unsigned();
        let actor = identity::actor(name, incarnation);
        let holding = self.whole_holding()?;
        let known = |learned: &[u8]| Ok::<_, Error>(Vclock::parse(learned)?.get(actor.as_bytes()));
        Ok(Some(Testimony {
            incarnation,
            life: node::uuid_bytes(&required::<String>(&rows, 0, 1)?)?,
            place: required(&rows, 0, 2)?,
            epoch_range: 0,
            silent_milliseconds: statistics::silent_milliseconds(name),
            ceiling: known(&holding.frontier)?.max(known(&holding.ceiling)?),
            log_position: required::<i64>(&rows, 0, 3)?
                .cast_unsigned()
                .max(self.reports_log_position(name))
                .max(statistics::log_position(name)),
        }))
    }

    fn doubt(&mut self, reason: &str) -> Result<()> {
        pgrx::log!("pg_test: this node asks again which life it is in: {reason}");
        self.spi.write(c"SELECT coord.life_doubt()", &[]);
        Ok(())
    }

    fn position(&mut self, peer: &str) -> Result<(Option<Position>, bool)> {
        Database::position(self, peer)
    }

    fn absorb(&mut self, peer: &str, batch: &Batch, log_position: u64) -> Result<Absorbed> {
        let rows = self.admissible(peer, &batch.rows)?;
        let is_whole = rows.len() == batch.rows.len();
        let changed = self.learn(peer, &rows)?;
        let moved = is_whole && self.advance(peer, batch)?;
        self.store_cursor(peer, batch, moved, log_position);
        let completed = self.complete(Some(peer));
        statistics::received(peer, rows.len() as u64, moved && batch.start.is_beginning());
        Ok(Absorbed {
            received: rows.len() as u64,
            changed,
            learned: changed > 0 || completed,
        })
    }

    fn acknowledge(&mut self, peer: &str, claim: &Claim, log_position: u64) -> Result<()> {
        // Looked up first: the INSERT would lock the row, and so write, even to leave it alone.
        let known = self.spi.write(
            c"SELECT FROM coord.ack a
               WHERE a.node = $1 AND a.frontier::bytea = $2 AND a.ceiling::bytea = $3 AND a.digest = $4",
            &[
                Value::Text(Some(peer)),
                Value::Bytes(Some(&claim.frontier)),
                Value::Bytes(Some(&claim.ceiling)),
                Value::Bytes(Some(&claim.digest)),
            ],
        );
        if !known.is_empty() {
            return Ok(());
        }
        self.spi.write(
            c"INSERT INTO coord.ack AS a (node, frontier, ceiling, digest, log_position)
              VALUES ($1, $2::coord.vclock, $3::coord.vclock, $4, '0/0'::pg_lsn + $5::numeric)
              ON CONFLICT (node) DO UPDATE
                 SET frontier = excluded.frontier, ceiling = excluded.ceiling,
                     digest = excluded.digest,
                     log_position = greatest(a.log_position, excluded.log_position),
                     acknowledged_at = excluded.acknowledged_at",
            &[
                Value::Text(Some(peer)),
                Value::Bytes(Some(&claim.frontier)),
                Value::Bytes(Some(&claim.ceiling)),
                Value::Bytes(Some(&claim.digest)),
                Value::Int(log_position.cast_signed()),
            ],
        );
        Ok(())
    }

    fn feed(&mut self, peer: &str, reader: Option<&Heard>) -> Result<Feed> {
        let mut feed = self.spi.with_snapshot(|spi| {
            let snapshot = self.told_snapshot()?;
            let holding = self.holding(&snapshot)?;
            let digest = TALLY.with_borrow_mut(|tally| tally.refresh(spi, own_xid()))?;
            let start = match reader {
                Some(reader) if self.local.is_confirmed => reader.plan(&holding)?,
                _ => None,
            };
            let batch = match (start, reader) {
                (Some(start), Some(reader)) => {
                    let batch = self.batch(peer, start, &snapshot, &holding)?;
                    reader.is_news(&batch)?.then_some(batch)
                }
                _ => None,
            };
            Ok::<_, Error>(Feed {
                position: Position {
                    space: self.space.clone(),
                    given: Some(snapshot),
                    window: None,
                },
                claim: Claim {
                    frontier: holding.frontier.clone(),
                    ceiling: holding.ceiling.clone(),
                    digest,
                },
                holding,
                is_durable: self.local.is_confirmed
                    && (self.standpoint == Standpoint::AfterCommit || own_xid().is_none()),
                batch,
                log_position: 0,
            })
        })?;
        if let Some(batch) = &feed.batch {
            statistics::sent(peer, batch.rows.len() as u64);
        }
        feed.log_position = flush_what_is_visible();
        Ok(feed)
    }

    fn mistrust(&mut self, peer: &str) -> Result<()> {
        let marked = self.spi.write(
            c"UPDATE coord.peer_cursor
                 SET resync = true, space = NULL, given = NULL, until = NULL, after_xid = NULL,
                     after_name = NULL, mismatches = mismatches + 1,
                     mismatched_at = clock_timestamp()
               WHERE node = $1 AND NOT resync
                 AND NOT EXISTS (SELECT FROM coord.state_waiting)
                 AND (mismatched_at IS NULL
                      OR mismatched_at < clock_timestamp() - interval '10 s')",
            &[Value::Text(Some(peer))],
        );
        if !marked.is_empty() {
            pgrx::warning!(
                "contents of this node and peer \"{peer}\" differ at the same frontier, asking for everything"
            );
        }
        Ok(())
    }

    fn overtake(&mut self, peer: &str) {
        statistics::overtake(peer);
    }

    fn takes(&mut self, peer: &str, log_position: u64) -> bool {
        statistics::takes(peer, self.spoken_since, log_position)
    }

    fn heartbeats(&mut self) -> Result<Heartbeats> {
        detector::heartbeats(&self.local.name)
    }

    fn hear(&mut self, peer: &str, heartbeats: &Heartbeats) -> Result<()> {
        detector::hear(&self.local.name, peer, heartbeats)
    }

    fn reports_reader(&mut self, peer: &str) -> Result<Option<Reader>> {
        if !Self::keeps_reports() {
            return Ok(None);
        }
        let position = self.reports_position(peer)?;
        let frontier = self
            .spi
            .with_snapshot(|_| self.op_frontier(&self.told_snapshot()?))?;
        Ok(Some(Reader {
            position,
            frontier,
            streamed: self.streamed(),
        }))
    }

    fn report(&mut self, peer: &str, reader: &Reader) -> Result<Option<ReportBatch>> {
        let start = report::start(&reader.position, &self.space);
        let now = self.spi.with_snapshot(|_| self.told_snapshot())?;
        if let Some(reason) = report::reaches_beyond(&start, now.xmax) {
            self.doubt(&reason)?;
            return Ok(None);
        }
        self.spi.with_snapshot(|_| {
            let now = self.told_snapshot()?;
            let until = match &start.window {
                Some(window) => window.until.clone(),
                None => now.clone(),
            };
            let found = self.changed_reports(peer, &start, &until, reader)?;
            let is_all = found.cut_off.is_none() && start.window.is_none();
            let frontier = is_all
                .then(|| report::given_of(&self.op_frontier(&now)?, &reader.streamed))
                .transpose()?;
            let batch = ReportBatch {
                rows: found.rows,
                next: self.next_position(&start, until, found.cut_off),
                start,
                frontier,
                left_out: reader.streamed.clone(),
            };
            let is_news = batch.is_worth_telling(found.count, &reader.frontier)?;
            Ok(Some(batch).filter(|_| is_news))
        })
    }

    fn learn_reports(&mut self, peer: &str, batch: &ReportBatch, log_position: u64) -> Result<u64> {
        if !Self::keeps_reports() {
            return Ok(0);
        }
        let stored = self.lock_reports_position(peer)?;
        let learned = self.spi.write(
            c"SELECT coord.report_learn($1, $2::jsonb)",
            &[
                Value::Text(Some(peer)),
                Value::Text(Some(&to_json(&batch.rows)?)),
            ],
        );
        let admitted = required::<i64>(&learned, 0, 0)?.cast_unsigned();
        let streamed = self.streamed();
        if !batch.continues(&stored, &streamed) {
            return Ok(admitted);
        }
        let frontier = batch.frontier.as_deref();
        let frontier = frontier
            .map(|frontier| report::given_of(frontier, &streamed))
            .transpose()?;
        let snapshot = |snapshot: Option<&Snapshot>| snapshot.map(Snapshot::to_string);
        let window = batch.next.window.as_ref();
        self.spi.write(
            STORE_REPORT_CURSOR,
            &[
                Value::Text(Some(peer)),
                Value::Text(Some(&batch.next.space)),
                Value::Text(snapshot(batch.next.given.as_ref()).as_deref()),
                Value::Text(snapshot(window.map(|window| &window.until)).as_deref()),
                Value::Int(window.map_or(0, |window| window.after_xid.cast_signed())),
                Value::Text(window.map(|window| window.after_name.as_str())),
                Value::Int(log_position.cast_signed()),
                Value::Bytes(frontier.as_deref()),
            ],
        );
        Ok(admitted)
    }

    fn acknowledge_operations(&mut self, peer: &str, frontier: &[u8]) -> Result<()> {
        if Self::keeps_reports() {
            self.spi.write(
                c"SELECT coord.op_acknowledge($1, $2::coord.vclock)",
                &[Value::Text(Some(peer)), Value::Bytes(Some(frontier))],
            );
        }
        Ok(())
    }

    fn streams(&mut self, peer: &str) -> Result<Streams> {
        if !Self::keeps_streams() {
            return Ok(Streams::default());
        }
        let rows = self.spi.write(
            c"SELECT coord.stream_wanted($1), coord.stream_offered($1)::text",
            &[Value::Text(Some(peer))],
        );
        Ok(Streams {
            wanted: required(&rows, 0, 0)?,
            offers: from_json(&required::<String>(&rows, 0, 1)?)?,
        })
    }

    fn hear_streams(&mut self, peer: &Hello, streams: &Streams) -> Result<()> {
        if !Self::keeps_streams() {
            return Ok(());
        }
        let wanted: Vec<&str> = streams.wanted.iter().map(String::as_str).collect();
        self.spi.write(
            c"SELECT coord.stream_hear($1, $2::uuid, $3, $4, $5::jsonb)",
            &[
                Value::Text(Some(&peer.name)),
                Value::Text(Some(&uuid::Uuid::from_bytes(peer.life).to_string())),
                Value::Text(Some(&peer.actor())),
                Value::Texts(&wanted),
                Value::Text(Some(&to_json(&streams.offers)?)),
            ],
        );
        Ok(())
    }

    fn epoch_range(&mut self) -> Result<u64> {
        if !Self::keeps_reports() {
            return Ok(0);
        }
        let rows = self.spi.write(c"SELECT coord.report_epoch_range()", &[]);
        Ok(required::<i64>(&rows, 0, 0)?.cast_unsigned())
    }

    fn part(&mut self, peer: &str) -> Result<()> {
        self.spi.write(
            c"UPDATE coord.roster SET status = 'left', last_seen = clock_timestamp() WHERE name = $1",
            &[Value::Text(Some(peer))],
        );
        self.spi.write(
            c"WITH gone AS (DELETE FROM coord.member WHERE node = $1 RETURNING node)
              SELECT coord.config_epoch_raise() FROM gone",
            &[Value::Text(Some(peer))],
        );
        Ok(())
    }
}

/// A snapshot may see commits whose records have not reached the disk, for instance with
/// `synchronous_commit` off. Nothing of them is told before they have. Returns up to where.
fn flush_what_is_visible() -> u64 {
    const BLOCK: u64 = pg_sys::XLOG_BLCKSZ as u64;
    // The position may lie just behind the header of a page that holds no record yet, and a flush
    // up to there would be refused as one beyond the end of the log.
    const LARGEST_PAGE_HEADER: u64 = 40;
    // SAFETY: plain functions of the transaction log; the server is not in recovery, because a
    // node does not gossip on a standby.
    unsafe {
        let mut end = pg_sys::GetXLogInsertRecPtr();
        if end % BLOCK <= LARGEST_PAGE_HEADER {
            end -= end % BLOCK;
        }
        pg_sys::XLogFlush(end);
        end
    }
}
