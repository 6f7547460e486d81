//! The digest of all states, kept per session and brought up to date at the cost of what changed.
//!
//! The sum over all rows is kept in parts (buckets of names). A refresh sums up anew the buckets
//! with rows that changed since the last one, and a few others in turn: what changed behind the
//! back of the bookkeeping, for instance on a damaged disk, is found that way too.

use pgrx::pg_sys;

use super::snapshot::Snapshot;
use crate::crdt::digest;
use crate::error::{self, Result};
use crate::spi::{Session, Value};

/// `coord.state.bucket` is the hash of the name modulo this.
const BUCKETS: usize = 1024;

/// Rows summed up again per refresh without having changed. All of them where there are few.
const SCRUBBED_ROWS: u64 = 256;

type Digest = [u8; digest::DIGEST_BYTES];

#[derive(Clone, Copy, Default)]
struct Bucket {
    sum: Digest,
    rows: u64,
}

pub struct Tally {
    buckets: Box<[Bucket; BUCKETS]>,
    /// Changes this snapshot sees are summed up. None at first.
    summed: Option<Snapshot>,
    /// Buckets that had rows of this session's own transaction, which may have rolled back since.
    unsettled: Vec<i64>,
    next_scrubbed: usize,
    /// DROP and CREATE EXTENSION make another table of the same name.
    table: pg_sys::Oid,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            buckets: Box::new([Bucket::default(); BUCKETS]),
            summed: None,
            unsettled: Vec::new(),
            next_scrubbed: 0,
            table: pg_sys::InvalidOid,
        }
    }
}

impl Tally {
    /// The digest of every state that the active snapshot sees. `own` is the number of the
    /// transaction this runs in, when it has one.
    pub fn refresh(&mut self, spi: &Session, own: Option<u64>) -> Result<Digest> {
        let rows = spi.read(
            c"SELECT pg_current_snapshot()::text, 'coord.state'::regclass::oid",
            &[],
        );
        let missing = || error::data_corrupted("the digest query returned a null");
        let mut snapshot = Snapshot::parse(&rows.get::<String>(0, 0).ok_or_else(missing)?)?;
        let table = rows.get(0, 1).ok_or_else(missing)?;
        if self.table != table {
            *self = Self {
                table,
                ..Self::default()
            };
        }
        if let Some(own) = own {
            snapshot = snapshot.with_in_progress(own);
        }
        let mut stale = std::mem::take(&mut self.unsettled);
        match &self.summed {
            None => stale.extend(0..BUCKETS as i64),
            Some(summed) => {
                stale.extend(changed_since(spi, summed));
                self.scrub(&mut stale);
            }
        }
        if own.is_some() {
            self.unsettled = changed_since(spi, &snapshot);
        }
        self.sum_up(spi, &mut stale)?;
        self.summed = Some(snapshot);
        Ok(self
            .buckets
            .iter()
            .fold(Digest::default(), |total, bucket| {
                digest::add(&total, &bucket.sum)
            }))
    }

    fn scrub(&mut self, stale: &mut Vec<i64>) {
        let mut rows = 0;
        for _ in 0..BUCKETS {
            stale.push(self.next_scrubbed as i64);
            rows += self.buckets[self.next_scrubbed].rows;
            self.next_scrubbed = (self.next_scrubbed + 1) % BUCKETS;
            if rows >= SCRUBBED_ROWS {
                return;
            }
        }
    }

    fn sum_up(&mut self, spi: &Session, stale: &mut Vec<i64>) -> Result<()> {
        stale.sort_unstable();
        stale.dedup();
        let rows = spi.read(
            c"SELECT bucket::bigint, coord.digest_sum(digest), count(*)
                FROM coord.state WHERE bucket = ANY ($1::smallint[]) GROUP BY bucket",
            &[Value::Ints(stale)],
        );
        for bucket in stale.iter() {
            self.buckets[*bucket as usize] = Bucket::default();
        }
        let malformed = || error::data_corrupted("a stored digest is malformed");
        for row in 0..rows.len() {
            let bucket = rows.get::<i64>(row, 0).ok_or_else(malformed)? as usize;
            let sum: Vec<u8> = rows.get(row, 1).ok_or_else(malformed)?;
            let count: i64 = rows.get(row, 2).ok_or_else(malformed)?;
            *self.buckets.get_mut(bucket).ok_or_else(malformed)? = Bucket {
                sum: sum.try_into().map_err(|_| malformed())?,
                rows: count.cast_unsigned(),
            };
        }
        Ok(())
    }
}

/// Buckets with rows that the active snapshot sees and the given one does not.
fn changed_since(spi: &Session, snapshot: &Snapshot) -> Vec<i64> {
    let in_progress: Vec<i64> = snapshot
        .in_progress
        .iter()
        .map(|xid| xid.cast_signed())
        .collect();
    let rows = spi.read(
        c"SELECT s.bucket::bigint FROM coord.state s
           WHERE s.local_xid = ANY (ARRAY(SELECT x::text::xid8 FROM unnest($1) x))
          UNION
          SELECT s.bucket::bigint FROM coord.state s WHERE s.local_xid >= $2::text::xid8",
        &[
            Value::Ints(&in_progress),
            Value::Int(snapshot.xmax.cast_signed()),
        ],
    );
    (0..rows.len()).filter_map(|row| rows.get(row, 0)).collect()
}
