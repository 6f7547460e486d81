//! Rows of our own tables, read and written without SPI: a look at a lease is one index lookup, with
//! the latest snapshot at every isolation level and whoever asks.
//!
//! As referential integrity (src/backend/utils/adt/ri_triggers.c) this goes past the caller's rights,
//! and as catalogs are changed (src/backend/catalog/indexing.c): the tables have no triggers, or whoever
//! writes does what these do, and the values that are written keep their constraints.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_int};

use pgrx::itemptr::{item_pointer_get_block_number_no_check, item_pointer_set_all};
use pgrx::prelude::*;
use pgrx::{FromDatum, IntoDatum, pg_sys};

use crate::error;
use crate::varlena::raise;

unsafe extern "C-unwind" {
    // Exported by every PostgreSQL since 10 (src/backend/commands/sequence.c); not among pgrx's bindings.
    fn nextval_internal(relation: pg_sys::Oid, check_permissions: bool) -> i64;
}

thread_local! {
    /// Oids of relations of schema `coord` that were asked for: one access by name costs two look-ups in
    /// the system's caches, and a grant needs half a dozen.
    static OIDS: RefCell<Vec<(&'static CStr, pg_sys::Oid)>> = const { RefCell::new(Vec::new()) };
    /// How often rows were found at their roots.
    static USES: Cell<u32> = const { Cell::new(0) };
}

/// Called from `_PG_init`.
pub fn register_callbacks() {
    use pg_sys::SysCacheIdentifier::{NAMESPACENAME, RELNAMENSP};
    for cache in [NAMESPACENAME, RELNAMENSP] {
        // SAFETY: the callback stays loaded as long as the process.
        unsafe {
            pg_sys::CacheRegisterSyscacheCallback(
                cache.cast_signed(),
                Some(forget_oids),
                pg_sys::Datum::null(),
            );
        }
    }
}

/// Some relation or schema was created, renamed or dropped.
#[pg_guard]
unsafe extern "C-unwind" fn forget_oids(_argument: pg_sys::Datum, _cache: c_int, _hash: u32) {
    OIDS.with_borrow_mut(Vec::clear);
}

/// The oid of a relation of schema `coord`.
pub fn relation_oid(name: &'static CStr) -> pg_sys::Oid {
    // The same name at another place is asked for once more.
    let is_known = |(known, _): &&(&CStr, _)| std::ptr::eq(known.as_ptr(), name.as_ptr());
    let known = OIDS.with_borrow(|oids| oids.iter().find(is_known).copied());
    if let Some((_, oid)) = known {
        return oid;
    }
    // SAFETY: plain C strings; an unknown name gives the invalid oid.
    let oid = unsafe {
        let schema = pg_sys::get_namespace_oid(c"coord".as_ptr(), false);
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    };
    if oid != pg_sys::InvalidOid {
        OIDS.with_borrow_mut(|oids| oids.push((name, oid)));
    }
    oid
}

/// Whether there is a schema `coord` with a relation of this name.
pub fn is_there(name: &'static CStr) -> bool {
    // SAFETY: a plain C string; no schema of that name is the invalid oid.
    let schema = unsafe { pg_sys::get_namespace_oid(c"coord".as_ptr(), true) };
    schema != pg_sys::InvalidOid && relation_oid(name) != pg_sys::InvalidOid
}

/// Where a version of a row is, as a number of 48 bits: the page, then the offset on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(pub u64);

const BITS_OF_OFFSET: u32 = 16;

impl Position {
    fn of(tuple: pg_sys::ItemPointerData) -> Self {
        // SAFETY: takes two fields of the value apart.
        let block = unsafe { item_pointer_get_block_number_no_check(tuple) };
        Self(u64::from(block) << BITS_OF_OFFSET | u64::from(tuple.ip_posid))
    }

    fn tuple(self) -> pg_sys::ItemPointerData {
        let mut tuple = pg_sys::ItemPointerData::default();
        item_pointer_set_all(&mut tuple, (self.0 >> BITS_OF_OFFSET) as u32, self.0 as u16);
        tuple
    }
}

/// Where an index would lead to a row, and in which buffer that page was: the same for all versions that no index
/// tells apart (src/backend/access/heap/README.HOT). Only a guess: by now it may be that of another row.
#[derive(Clone, Copy, Debug)]
pub struct Root {
    pub position: Position,
    pub buffer: pg_sys::Buffer,
}

/// Which version of a row it is: what it says does not change any more, unless a column is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    file: pg_sys::Oid,
    position: Position,
    /// The transaction that wrote it, and by which of its commands.
    xmin: pg_sys::TransactionId,
    command: pg_sys::CommandId,
}

/// What the column of a row is to be, by its number from 1.
#[derive(Clone, Copy, Debug)]
pub enum Key<'a> {
    Text(i16, &'a str),
    /// Of a type that is stored as such, as `hlc` is.
    Number(i16, i64),
}

impl Key<'_> {
    fn scan_key(&self) -> pg_sys::ScanKeyData {
        let (number, strategy, function, argument) = match *self {
            // Compared bytewise, as the columns' collation "C" has it.
            Self::Text(number, text) => (
                number,
                pg_sys::BTEqualStrategyNumber,
                pg_sys::F_TEXTEQ,
                text.into_datum().unwrap_or(pg_sys::Datum::null()),
            ),
            Self::Number(number, value) => (
                number,
                pg_sys::BTEqualStrategyNumber,
                pg_sys::F_INT8EQ,
                pg_sys::Datum::from(value),
            ),
        };
        let mut key = pg_sys::ScanKeyData::default();
        // SAFETY: the argument lies in the memory of the call, and the function is that of its type.
        unsafe {
            pg_sys::ScanKeyInit(
                &raw mut key,
                number,
                strategy as u16,
                function.into(),
                argument,
            );
        }
        key
    }
}

/// A column by its number from 1, from 0.
fn column(number: i16) -> usize {
    usize::from(number.unsigned_abs()) - 1
}

/// The next number of a sequence, whoever asks.
pub fn next_number(sequence: pg_sys::Oid) -> i64 {
    // SAFETY: the sequence exists as long as the extension does; raises an error itself otherwise.
    unsafe { pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| nextval_internal(sequence, false)) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

impl Access {
    fn lock(self) -> pg_sys::LOCKMODE {
        let level = match self {
            Self::Read => pg_sys::AccessShareLock,
            Self::Write => pg_sys::RowExclusiveLock,
        };
        level.cast_signed()
    }
}

/// What comes next in this transaction sees what it has written until now.
pub fn make_visible() {
    // SAFETY: a transaction is in progress.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// What has committed until now, and this transaction's own changes, at every isolation level.
pub struct Latest(pg_sys::Snapshot);

impl Latest {
    pub fn take() -> Self {
        // SAFETY: a transaction is in progress; released when dropped, or by the end of the transaction.
        Self(unsafe { pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot()) })
    }
}

impl Drop for Latest {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: registered by `take`, once.
            unsafe { pg_sys::UnregisterSnapshot(self.0) };
        }
    }
}

/// An open table. Its lock is kept until the transaction ends when it was opened for writing.
pub struct Table {
    relation: pg_sys::Relation,
    access: Access,
}

impl Table {
    pub fn open(name: &'static CStr, access: Access) -> Self {
        Self::open_by_oid(relation_oid(name), access)
    }

    pub fn open_by_oid(oid: pg_sys::Oid, access: Access) -> Self {
        // SAFETY: raises an error when the table is gone; closed when dropped.
        let relation = unsafe { pg_sys::table_open(oid, access.lock()) };
        Self { relation, access }
    }

    /// Opens a table unless somebody has it locked against that.
    pub fn open_at_once(name: &'static CStr, access: Access) -> Option<Self> {
        let oid = relation_oid(name);
        // SAFETY: as above; the lock is what the table is opened under.
        unsafe {
            pg_sys::ConditionalLockRelationOid(oid, access.lock()).then(|| Self {
                relation: pg_sys::table_open(oid, pg_sys::NoLock.cast_signed()),
                access,
            })
        }
    }

    /// Closes a table that nothing was written to after all: its lock need not stay.
    pub fn close_unchanged(self) {
        // SAFETY: opened once, with this lock, and not closed again below.
        unsafe { pg_sys::table_close(self.relation, self.access.lock()) };
        std::mem::forget(self);
    }

    pub fn oid(&self) -> u32 {
        // SAFETY: the relation is open.
        unsafe { (*self.relation).rd_id }.to_u32()
    }

    pub fn blocks(&self) -> u32 {
        // SAFETY: the relation is open.
        unsafe {
            pg_sys::RelationGetNumberOfBlocksInFork(self.relation, pg_sys::ForkNumber::MAIN_FORKNUM)
        }
    }

    /// Whether nothing was ever written to it, or all of it was cleared away.
    pub fn is_empty(&self) -> bool {
        self.blocks() == 0
    }

    fn columns(&self) -> pg_sys::TupleDesc {
        // SAFETY: the relation is open.
        unsafe { (*self.relation).rd_att }
    }

    /// The first row whose columns are these; looked up by `index`, which begins with those columns.
    pub fn find(&self, seen: &Latest, index: &'static CStr, keys: &[Key]) -> Option<Row<'_>> {
        self.find_by(seen, relation_oid(index), keys)
    }

    /// The row with these columns of the primary key, which names itself in each partition.
    pub fn find_by_identity(&self, seen: &Latest, keys: &[Key]) -> Option<Row<'_>> {
        // SAFETY: the relation is open.
        let index = unsafe { pg_sys::RelationGetReplicaIndex(self.relation) };
        self.find_by(seen, index, keys)
    }

    /// The first row there is, of a table that has few.
    pub fn first(&self, seen: &Latest) -> Option<Row<'_>> {
        self.find_by(seen, pg_sys::InvalidOid, &[])
    }

    fn find_by(&self, seen: &Latest, index: pg_sys::Oid, keys: &[Key]) -> Option<Row<'_>> {
        let mut found = None;
        self.scan_by(seen, index, keys, |row| {
            found = Some(row);
            false
        });
        found
    }

    /// The versions of rows that are at these positions, as far as the snapshot sees them.
    pub fn versions(&self, seen: &Latest, positions: &[Position]) -> Vec<Row<'_>> {
        // The table is open, so it is not cut shorter meanwhile.
        let end = Position(u64::from(self.blocks()) << BITS_OF_OFFSET);
        let there = positions.iter().filter(|position| **position < end);
        there
            .filter_map(|position| {
                let mut tuple = pg_sys::HeapTupleData {
                    t_self: position.tuple(),
                    ..Default::default()
                };
                let mut buffer = pg_sys::Buffer::default();
                // SAFETY: the page is there; the row is copied before it is given back.
                unsafe {
                    let found = &raw mut tuple;
                    pg_sys::heap_fetch(self.relation, seen.0, found, &raw mut buffer, false).then(
                        || {
                            let tuple = pg_sys::heap_copytuple(found);
                            pg_sys::ReleaseBuffer(buffer);
                            Row { table: self, tuple }
                        },
                    )
                }
            })
            .collect()
    }

    /// The row that is at a root, if the snapshot sees one there: whichever row that is now. None also when the
    /// page is in another buffer, or in none. It is the price of one page, where an index takes several and has to
    /// be opened.
    pub fn at(&self, seen: &Latest, root: Root) -> Option<Row<'_>> {
        let Root { position, buffer } = root;
        let mut tuple = position.tuple();
        let mut found = pg_sys::HeapTupleData::default();
        // SAFETY: the buffer is one that a page was read into, and is pinned only if it has that of this table; the
        // row is copied before its page is given back.
        unsafe {
            let block = item_pointer_get_block_number_no_check(tuple);
            let fork = pg_sys::ForkNumber::MAIN_FORKNUM;
            if !pg_sys::ReadRecentBuffer(self.locator(), fork, block, buffer) {
                return None;
            }
            self.count_use(block);
            self.make_room(buffer);
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE.cast_signed());
            let is_there = pg_sys::heap_hot_search_buffer(
                &raw mut tuple,
                self.relation,
                buffer,
                seen.0,
                &raw mut found,
                std::ptr::null_mut(),
                true,
            );
            let row = is_there.then(|| Row {
                table: self,
                tuple: pg_sys::heap_copytuple(&raw mut found),
            });
            pg_sys::UnlockReleaseBuffer(buffer);
            row
        }
    }

    /// A page that is found by its buffer is not counted as used (src/backend/storage/buffer/bufmgr.c), and would be
    /// evicted however often that is: now and then it is read as any other.
    ///
    /// # Safety
    /// The block is there.
    unsafe fn count_use(&self, block: pg_sys::BlockNumber) {
        const EACH: u32 = 32;
        let uses = USES.replace(USES.get().wrapping_add(1));
        if uses.is_multiple_of(EACH) {
            // SAFETY: as promised by the caller.
            unsafe { pg_sys::ReleaseBuffer(pg_sys::ReadBuffer(self.relation, block)) };
        }
    }

    /// Clears away versions that nobody sees any more, as every look by an index does, but not for each of them: a
    /// table that keeps a part of its pages free would be looked through as soon as there is one. An eighth is room for
    /// some more of any row that is written this way.
    ///
    /// # Safety
    /// The buffer is pinned, and holds a page of this table.
    unsafe fn make_room(&self, buffer: pg_sys::Buffer) {
        // SAFETY: as promised by the caller; the sum may be off, as PostgreSQL takes it too.
        unsafe {
            let left = pg_sys::PageGetHeapFreeSpace(pg_sys::BufferGetPage(buffer));
            if left < pg_sys::BLCKSZ as usize / 8 {
                pg_sys::heap_page_prune_opt(self.relation, buffer);
            }
        }
    }

    #[cfg(feature = "pg15")]
    fn file(&self) -> pg_sys::Oid {
        self.locator().relNode
    }

    #[cfg(not(feature = "pg15"))]
    fn file(&self) -> pg_sys::Oid {
        self.locator().relNumber
    }

    #[cfg(feature = "pg15")]
    fn locator(&self) -> pg_sys::RelFileNode {
        // SAFETY: the relation is open.
        unsafe { (*self.relation).rd_node }
    }

    #[cfg(not(feature = "pg15"))]
    fn locator(&self) -> pg_sys::RelFileLocator {
        // SAFETY: the relation is open.
        unsafe { (*self.relation).rd_locator }
    }

    /// Every row whose columns are these, while `take` asks for more. Without an index the whole
    /// table is read.
    pub fn scan<'a>(
        &'a self,
        seen: &Latest,
        index: Option<&'static CStr>,
        keys: &[Key],
        take: impl FnMut(Row<'a>) -> bool,
    ) {
        let index = index.map_or(pg_sys::InvalidOid, relation_oid);
        self.scan_by(seen, index, keys, take);
    }

    fn scan_by<'a>(
        &'a self,
        seen: &Latest,
        index: pg_sys::Oid,
        keys: &[Key],
        mut take: impl FnMut(Row<'a>) -> bool,
    ) {
        let mut keys: Vec<pg_sys::ScanKeyData> = keys.iter().map(Key::scan_key).collect();
        // SAFETY: the keys and the snapshot live until the scan has ended; rows are copied out of it. An
        // error ends the transaction, which releases all of it.
        unsafe {
            let scan = pg_sys::systable_beginscan(
                self.relation,
                index,
                index != pg_sys::InvalidOid,
                seen.0,
                i32::try_from(keys.len()).unwrap_or(0),
                keys.as_mut_ptr(),
            );
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                let row = Row {
                    table: self,
                    tuple: pg_sys::heap_copytuple(tuple),
                };
                if !take(row) {
                    break;
                }
            }
            pg_sys::systable_endscan(scan);
        }
    }

    /// Adds a row; one value for each column. Returns where it is.
    pub fn insert(&self, values: &[Option<pg_sys::Datum>]) -> Position {
        let tuple = self.tuple(values);
        self.insert_tuple(tuple);
        self.make_visible();
        // SAFETY: a tuple that was written to the table.
        Position::of(unsafe { (*tuple).t_self })
    }

    fn insert_tuple(&self, tuple: pg_sys::HeapTuple) {
        let mut none = pg_sys::ResultRelInfo::default();
        // SAFETY: the tuple is of this table's form.
        unsafe {
            pg_sys::CatalogTupleInsertWithInfo(self.relation, tuple, &raw mut none);
            self.enter_in_indexes(tuple, Entered::InAll);
        }
    }

    /// Adds rows, one record of the transaction log for each page that they fill.
    pub fn insert_all<const N: usize>(&self, rows: &[[Option<pg_sys::Datum>; N]]) {
        let tuples: Vec<_> = rows.iter().map(|row| self.tuple(row)).collect();
        // SAFETY: tuples of this table's form.
        if tuples.len() > 1 && tuples.iter().all(|tuple| unsafe { is_inline(*tuple) }) {
            self.insert_inline(&tuples);
        } else {
            for tuple in tuples {
                self.insert_tuple(tuple);
            }
        }
        self.make_visible();
    }

    /// Of tuples that are stored as they are: the entries of indexes are made of where they have come to lie.
    fn insert_inline(&self, tuples: &[pg_sys::HeapTuple]) {
        // SAFETY: each slot holds a tuple of this table's form, and lives until it is dropped here; an error ends
        // the transaction, which releases all of it.
        unsafe {
            // A copy is not counted with each slot, as that of the relation would be.
            let columns = pg_sys::CreateTupleDescCopy(self.columns());
            let in_slot = |tuple: &pg_sys::HeapTuple| {
                let slot =
                    pg_sys::MakeSingleTupleTableSlot(columns, &raw const pg_sys::TTSOpsHeapTuple);
                // Freed with the slot: else it would be copied into it.
                pg_sys::ExecStoreHeapTuple(*tuple, slot, true)
            };
            let mut slots: Vec<_> = tuples.iter().map(in_slot).collect();
            let count = i32::try_from(slots.len()).unwrap_or(i32::MAX);
            let indexes = pg_sys::CatalogOpenIndexes(self.relation);
            pg_sys::CatalogTuplesMultiInsertWithInfo(
                self.relation,
                slots.as_mut_ptr(),
                count,
                indexes,
            );
            pg_sys::CatalogCloseIndexes(indexes);
            for slot in slots {
                pg_sys::ExecDropSingleTupleTableSlot(slot);
            }
        }
    }

    /// How many indexes it has.
    pub fn indexes(&self) -> i32 {
        // SAFETY: the relation is open; the list is a copy.
        unsafe {
            let list = pg_sys::RelationGetIndexList(self.relation);
            let count = list.as_ref().map_or(0, |list| list.length);
            pg_sys::list_free(list);
            count
        }
    }

    /// How many triggers it has.
    pub fn triggers(&self) -> i32 {
        // SAFETY: the relation is open.
        unsafe { (*self.relation).trigdesc.as_ref() }.map_or(0, |triggers| triggers.numtriggers)
    }

    /// Of a table that is partitioned by ranges of one number: the partition that a number belongs to, and the
    /// first number after it that does not.
    pub fn partition(&self, number: i64) -> (Self, i64) {
        // SAFETY: the relation is open; its bounds are numbers, one each, in their order, and what lies between two
        // of them has an index, of the default partition when that is negative (src/backend/partitioning/partbounds.c).
        let (oid, beyond) = unsafe {
            let partitions = &*pg_sys::RelationGetPartitionDesc(self.relation, true);
            let bounds = &*partitions.boundinfo;
            let count = usize::try_from(bounds.ndatums).unwrap_or(0);
            let bound = |place: usize| (*(*bounds.datums.add(place))).value() as i64;
            let place = (0..count)
                .position(|place| bound(place) > number)
                .unwrap_or(count);
            let beyond = if place < count {
                bound(place)
            } else {
                i64::MAX
            };
            let index = match *bounds.indexes.add(place) {
                none if none < 0 => bounds.default_index,
                index => index,
            };
            (
                *partitions.oids.add(usize::try_from(index).unwrap_or(0)),
                beyond,
            )
        };
        (Self::open_by_oid(oid, self.access), beyond)
    }

    /// Replaces a row. The caller keeps everybody else from changing it.
    pub fn replace(&self, row: &Row, values: &[Option<pg_sys::Datum>]) {
        let tuple = self.tuple(values);
        let mut none = pg_sys::ResultRelInfo::default();
        // SAFETY: as above, and the row is of this table.
        unsafe {
            let before = &raw mut (*row.tuple).t_self;
            pg_sys::CatalogTupleUpdateWithInfo(self.relation, before, tuple, &raw mut none);
            let flags = u32::from((*(*tuple).t_data).t_infomask2);
            if flags & pg_sys::HEAP_ONLY_TUPLE == 0 {
                self.enter_in_indexes(tuple, Entered::InAll);
            } else if self.is_summarized() {
                self.enter_in_indexes(tuple, Entered::InSummaries);
            }
        }
        self.make_visible();
    }

    /// Whether it has indexes, as BRIN ones, that have to hear also of what is found by the entry of an older version.
    #[cfg(not(feature = "pg15"))]
    fn is_summarized(&self) -> bool {
        use pg_sys::IndexAttrBitmapKind::INDEX_ATTR_BITMAP_SUMMARIZED;
        // SAFETY: the relation is open.
        unsafe {
            !pg_sys::RelationGetIndexAttrBitmap(self.relation, INDEX_ATTR_BITMAP_SUMMARIZED)
                .is_null()
        }
    }

    /// They keep an update from being found by the entry of the older version.
    #[cfg(feature = "pg15")]
    fn is_summarized(&self) -> bool {
        false
    }

    /// As catalogs do it (CatalogIndexInsert of src/backend/catalog/indexing.c), which open the indexes before they
    /// know whether one of them has to learn anything. Raises 0A000 where somebody has added an index that takes more.
    ///
    /// # Safety
    /// The tuple was written to this table.
    unsafe fn enter_in_indexes(&self, tuple: pg_sys::HeapTuple, entered: Entered) {
        let mut values = [pg_sys::Datum::null(); pg_sys::INDEX_MAX_KEYS as usize];
        let mut nulls = [false; pg_sys::INDEX_MAX_KEYS as usize];
        // SAFETY: as promised by the caller; slot and indexes are closed below, and by an error's end of the transaction.
        unsafe {
            if !(*(*self.relation).rd_rel).relhasindex {
                return;
            }
            let opened = pg_sys::CatalogOpenIndexes(self.relation);
            let slot = pg_sys::MakeSingleTupleTableSlot(
                self.columns(),
                &raw const pg_sys::TTSOpsHeapTuple,
            );
            pg_sys::ExecStoreHeapTuple(tuple, slot, false);
            for number in 0..usize::try_from((*opened).ri_NumIndices).unwrap_or(0) {
                let index = *(*opened).ri_IndexRelationDescs.add(number);
                let info = *(*opened).ri_IndexRelationInfo.add(number);
                if !entered.concerns(&*info) {
                    continue;
                }
                if takes_a_statement(&*info) {
                    raise(error::index_unsupported(
                        &name_of(self.relation),
                        &name_of(index),
                    ));
                }
                let (value, null) = (values.as_mut_ptr(), nulls.as_mut_ptr());
                pg_sys::FormIndexDatum(info, slot, std::ptr::null_mut(), value, null);
                let uniqueness = if (*(*index).rd_index).indisunique {
                    pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES
                } else {
                    pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO
                };
                let place = &raw mut (*tuple).t_self;
                pg_sys::index_insert(
                    index,
                    value,
                    null,
                    place,
                    self.relation,
                    uniqueness,
                    false,
                    info,
                );
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            pg_sys::CatalogCloseIndexes(opened);
        }
    }

    fn tuple(&self, values: &[Option<pg_sys::Datum>]) -> pg_sys::HeapTuple {
        let mut datums: Vec<pg_sys::Datum> = values
            .iter()
            .map(|value| value.unwrap_or(pg_sys::Datum::null()))
            .collect();
        let mut nulls: Vec<bool> = values.iter().map(Option::is_none).collect();
        // SAFETY: the number of columns is compared; the arrays are read only.
        unsafe {
            let columns = self.columns();
            assert!(
                usize::try_from((*columns).natts) == Ok(values.len()),
                "a table of coord has other columns than expected"
            );
            pg_sys::heap_form_tuple(columns, datums.as_mut_ptr(), nulls.as_mut_ptr())
        }
    }

    fn make_visible(&self) {
        debug_assert!(self.access == Access::Write);
        make_visible();
    }
}

/// Which indexes a version is entered in.
#[derive(Clone, Copy)]
enum Entered {
    InAll,
    InSummaries,
}

impl Entered {
    /// An index that is just being built does not take entries yet.
    fn concerns(self, index: &pg_sys::IndexInfo) -> bool {
        index.ii_ReadyForInserts
            && match self {
                Self::InAll => true,
                Self::InSummaries => summarizes(index),
            }
    }
}

#[cfg(not(feature = "pg15"))]
fn summarizes(index: &pg_sys::IndexInfo) -> bool {
    index.ii_Summarizing
}

#[cfg(feature = "pg15")]
fn summarizes(_index: &pg_sys::IndexInfo) -> bool {
    false
}

fn takes_a_statement(index: &pg_sys::IndexInfo) -> bool {
    !index.ii_Expressions.is_null()
        || !index.ii_Predicate.is_null()
        || !index.ii_ExclusionOps.is_null()
}

/// What a relation is called, without its schema.
///
/// # Safety
/// The relation is open.
pub unsafe fn name_of(relation: pg_sys::Relation) -> String {
    // SAFETY: as promised by the caller.
    let name = unsafe { CStr::from_ptr((*(*relation).rd_rel).relname.data.as_ptr()) };
    name.to_string_lossy().into_owned()
}

/// Whether a tuple is stored as it is, and not compressed or cut into pieces.
///
/// # Safety
/// It is a tuple.
unsafe fn is_inline(tuple: pg_sys::HeapTuple) -> bool {
    // A quarter of a page (TOAST_TUPLE_THRESHOLD).
    const LONGEST: u32 = pg_sys::BLCKSZ / 4 - 64;
    // SAFETY: as promised by the caller.
    unsafe {
        let flags = u32::from((*(*tuple).t_data).t_infomask);
        (*tuple).t_len <= LONGEST && flags & pg_sys::HEAP_HASEXTERNAL == 0
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let kept = match self.access {
            Access::Read => self.access.lock(),
            Access::Write => pg_sys::NoLock.cast_signed(),
        };
        if !std::thread::panicking() {
            // SAFETY: opened once. After an error the transaction's end closes it.
            unsafe { pg_sys::table_close(self.relation, kept) };
        }
    }
}

/// A row of an open table, copied out of it.
pub struct Row<'a> {
    table: &'a Table,
    tuple: pg_sys::HeapTuple,
}

impl Row<'_> {
    pub fn table_oid(&self) -> u32 {
        self.table.oid()
    }

    pub fn version(&self) -> Version {
        // SAFETY: a tuple that was read from the table, which says who wrote it.
        unsafe {
            let header = (*(*self.tuple).t_data).t_choice.t_heap;
            Version {
                file: self.table.file(),
                position: Position::of((*self.tuple).t_self),
                xmin: header.t_xmin,
                command: header.t_field3.t_cid,
            }
        }
    }

    /// Whether this transaction has written it.
    pub fn is_own(&self) -> bool {
        // SAFETY: a plain question to the transaction in progress.
        unsafe { pg_sys::TransactionIdIsCurrentTransactionId(self.version().xmin) }
    }

    /// Where the row can be found again. None when it has been replaced and cleared away since.
    pub fn root(&self) -> Option<Root> {
        // No tuple and its line pointer take less.
        const MOST_TUPLES: usize = pg_sys::BLCKSZ as usize / 28;
        let mut roots = [pg_sys::InvalidOffsetNumber; MOST_TUPLES];
        // SAFETY: the row was read from that page, which is given back below; there is one root for each place on that.
        unsafe {
            let tuple = (*self.tuple).t_self;
            let block = item_pointer_get_block_number_no_check(tuple);
            let buffer = pg_sys::ReadBuffer(self.table.relation, block);
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE.cast_signed());
            pg_sys::heap_get_root_tuples(pg_sys::BufferGetPage(buffer), roots.as_mut_ptr());
            pg_sys::UnlockReleaseBuffer(buffer);
            let root = roots[usize::from(tuple.ip_posid) - 1];
            (root != pg_sys::InvalidOffsetNumber).then(|| Root {
                position: Position::of(pg_sys::ItemPointerData {
                    ip_posid: root,
                    ..tuple
                }),
                buffer,
            })
        }
    }

    /// Whether its columns are these.
    pub fn has(&self, keys: &[Key]) -> bool {
        // SAFETY: whoever made the key knows of which type the column is.
        keys.iter().all(|key| unsafe {
            match *key {
                Key::Text(number, text) => self.get::<&str>(column(number)) == Some(text),
                Key::Number(number, value) => self.get::<i64>(column(number)) == Some(value),
            }
        })
    }

    /// One column, from 0.
    ///
    /// # Safety
    /// The column is of type `T`.
    pub unsafe fn get<T: FromDatum>(&self, column: usize) -> Option<T> {
        let mut is_null = false;
        let number = i32::try_from(column + 1).unwrap_or(0);
        // SAFETY: the row is of the table; a number that no column has is refused as null.
        unsafe {
            let columns = self.table.columns();
            let datum = pg_sys::SPI_getbinval(self.tuple, columns, number, &raw mut is_null);
            T::from_datum(datum, is_null)
        }
    }

    /// One column by its name, for a table whose columns have come at different times.
    ///
    /// # Safety
    /// The column is of type `T`.
    pub unsafe fn get_named<T: FromDatum>(&self, name: &CStr) -> Option<T> {
        let mut is_null = false;
        // SAFETY: the row is of the table; an unknown name gives a number that is refused as null.
        unsafe {
            let columns = self.table.columns();
            let number = pg_sys::SPI_fnumber(columns, name.as_ptr());
            let datum = pg_sys::SPI_getbinval(self.tuple, columns, number, &raw mut is_null);
            T::from_datum(datum, is_null)
        }
    }

    /// The values of all columns.
    pub fn values<const N: usize>(&self) -> Values<N> {
        // SAFETY: the row is of the table.
        unsafe { Values::of(self.tuple, self.table.columns()) }
    }
}

/// The values of a row; they lie in the memory of the call.
pub struct Values<const N: usize> {
    datums: [pg_sys::Datum; N],
    nulls: [bool; N],
}

impl<const N: usize> Values<N> {
    /// # Safety
    /// The tuple has these columns.
    pub unsafe fn of(tuple: pg_sys::HeapTuple, columns: pg_sys::TupleDesc) -> Self {
        let mut datums = [pg_sys::Datum::null(); N];
        let mut nulls = [true; N];
        // SAFETY: as promised by the caller; the arrays have as many places as there are columns.
        unsafe {
            assert!(
                usize::try_from((*columns).natts) == Ok(N),
                "a table of coord has other columns than expected"
            );
            pg_sys::heap_deform_tuple(tuple, columns, datums.as_mut_ptr(), nulls.as_mut_ptr());
        }
        Self { datums, nulls }
    }

    /// A column, from 0.
    ///
    /// # Safety
    /// The column is of type `T`.
    pub unsafe fn get<T: FromDatum>(&self, column: usize) -> Option<T> {
        // SAFETY: as promised by the caller.
        unsafe { T::from_datum(self.datums[column], self.nulls[column]) }
    }

    /// A column as it is, to be written again.
    pub fn datum(&self, column: usize) -> Option<pg_sys::Datum> {
        (!self.nulls[column]).then_some(self.datums[column])
    }
}
