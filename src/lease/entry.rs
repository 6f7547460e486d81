//! The entry of a lease in shared memory: until when it is held. A renewal changes nothing else.
//!
//! What a grant is, the table says; when it expires, its entry. An entry has an epoch only while a committed grant of that
//! epoch is the last one and has not been ended: whoever grants or ends a lease sees to that before its locks are
//! released, and whoever makes an entry from the table keeps both out. So a writer, which keeps takeovers out, goes by
//! the entry alone. That holds from when memory is opened for a table until it is opened for another one.
//!
//! The expiry and the mark of a takeover lie in one word, and whoever changes them does
//! so by compare-and-swap: a takeover sets the mark while the lease is expired, and a renewal that comes
//! later finds the mark and is refused, one that came before is found by the takeover, which judges
//! again.
//!
//! The epoch lies beside the word. Whatever changes it also changes the version in the word, so an
//! unchanged word has an unchanged epoch, also where a new grant happens to expire when an older one
//! did: a renewal that has looked at the epoch does not move the expiry of another, and an epoch that
//! was read between two looks at one word belongs to it. [`Entry::replace`] has the order of the steps.
//!
//! Whoever has to be woken is woken by the caller.

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Every lease of every database is looked up in the same table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The oid of `coord.lease`: another one after DROP EXTENSION and CREATE EXTENSION.
    pub relation: u32,
    pub lease_id: i64,
    /// Hash of the resource: the numbers begin again when somebody sets their sequence back.
    pub resource: u64,
}

/// What the table knows of a grant that has not been ended, expired or not.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub epoch: i64,
    pub expires_at: i64,
    pub ttl: i64,
}

/// What became of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Urgent when a crash would leave the holder less time than it was told.
    Renewed {
        is_urgent: bool,
    },
    /// Another transaction is being granted the lease.
    Taken,
    Superseded,
}

/// Which expiries are to be written to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Those of which a crash would lose what was promised.
    Urgent,
    All,
}

/// The table knows all that the entry knows; the worker is about to tell it; it knows less; it also
/// promises less time after a crash.
const CLEAN: u8 = 0;
const WRITING: u8 = 1;
const DIRTY: u8 = 2;
const URGENT: u8 = 3;

impl Extent {
    fn level(self) -> u8 {
        match self {
            Self::Urgent => URGENT,
            Self::All => DIRTY,
        }
    }
}

/// An epoch that no row has: 0 is that of a resource before its first grant.
const OUTDATED: i64 = -1;

/// From the lowest bit: whether a takeover is under way, the version, the expiry.
///
/// The version begins again after 256 changes of epoch. To be taken for another, a word would have to
/// miss so many grants between two instructions of one renewal, and have the same microsecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word(u64);

impl Word {
    const TAKEN: u64 = 1;
    const ONE_VERSION: u64 = 2;
    const VERSION: u64 = 255 * Self::ONE_VERSION;
    const BITS_BELOW_EXPIRY: u32 = 9;
    /// In the year 2570.
    const LAST_EXPIRY: i64 = i64::MAX >> Self::BITS_BELOW_EXPIRY;

    fn expires_at(self) -> i64 {
        self.0.cast_signed() >> Self::BITS_BELOW_EXPIRY
    }

    fn with_expiry(self, expires_at: i64) -> Self {
        let expires_at = expires_at.clamp(-Self::LAST_EXPIRY, Self::LAST_EXPIRY);
        let below = self.0 & (Self::VERSION | Self::TAKEN);
        Self((expires_at << Self::BITS_BELOW_EXPIRY).cast_unsigned() | below)
    }

    fn with_next_version(self) -> Self {
        let version = self.0.wrapping_add(Self::ONE_VERSION) & Self::VERSION;
        Self(self.0 & !Self::VERSION | version)
    }

    fn is_taken(self) -> bool {
        self.0 & Self::TAKEN != 0
    }

    fn taken(self) -> Self {
        Self(self.0 | Self::TAKEN)
    }

    fn given_back(self) -> Self {
        Self(self.0 & !Self::TAKEN)
    }
}

/// All zero it is a free entry.
#[derive(Default)]
#[repr(C)]
pub struct Entry {
    /// 0 marks a free entry.
    database: AtomicU32,
    relation: AtomicU32,
    lease_id: AtomicI64,
    resource: AtomicU64,
    epoch: AtomicI64,
    word: AtomicU64,
    ttl: AtomicI64,
    /// Transactions and sessions that rely on the entry to stay.
    pins: AtomicU32,
    to_write: AtomicU8,
    /// Address of the latch of the head of the queue, in shared memory; 0 when nobody waits.
    waiter: AtomicUsize,
}

/// Which lease it is of, and how long it stays. What is changed here is changed by one process at a time,
/// which nobody else looks up entries beside; the pins are not.
impl Entry {
    pub fn is_of_database(&self, database: u32) -> bool {
        self.database.load(Ordering::Acquire) == database
    }

    pub fn is_of(&self, database: u32, key: Key) -> bool {
        self.is_of_database(database)
            && self.relation.load(Ordering::Acquire) == key.relation
            && self.lease_id.load(Ordering::Acquire) == key.lease_id
            && self.resource.load(Ordering::Acquire) == key.resource
    }

    /// Whether nobody misses it: the table knows all it knows, and nobody has pinned it.
    pub fn can_be_replaced(&self) -> bool {
        self.is_of_database(0)
            || ((self.to_write.load(Ordering::Acquire) == CLEAN || self.is_outdated())
                && self.pins.load(Ordering::Acquire) == 0
                && !self.word().is_taken())
    }

    /// Which of those that can be replaced stays longest.
    pub fn worth(&self) -> i64 {
        if self.is_of_database(0) {
            i64::MIN
        } else if self.is_outdated() {
            -Word::LAST_EXPIRY
        } else {
            self.word().expires_at()
        }
    }

    /// From here on it is the entry of this lease, without knowing anything of it.
    pub fn assign(&self, database: u32, key: Key) {
        self.relation.store(key.relation, Ordering::Release);
        self.lease_id.store(key.lease_id, Ordering::Release);
        self.resource.store(key.resource, Ordering::Release);
        self.epoch.store(OUTDATED, Ordering::Release);
        self.word.store(0, Ordering::Release);
        self.to_write.store(CLEAN, Ordering::Release);
        self.pins.store(0, Ordering::Release);
        self.waiter.store(0, Ordering::Release);
        self.database.store(database, Ordering::Release);
    }

    /// What it knows counts no more, and it is free unless somebody has pinned it.
    pub fn outdate(&self) {
        self.epoch.store(OUTDATED, Ordering::Release);
        self.to_write.store(CLEAN, Ordering::Release);
        if self.can_be_replaced() {
            self.database.store(0, Ordering::Release);
        }
    }

    /// What the table knows, in place of what the entry knew of another epoch.
    pub fn set(&self, known: Known) {
        self.replace(known.epoch, known.expires_at, known.ttl);
    }

    pub fn pin(&self) {
        self.pins.fetch_add(1, Ordering::AcqRel);
    }

    pub fn unpin(&self) {
        self.pins.fetch_sub(1, Ordering::AcqRel);
    }

    /// Who is to be woken when the lease changes; whoever was before is not any more.
    pub fn watch(&self, latch: usize) {
        self.waiter.store(latch, Ordering::Release);
    }

    /// Unless somebody else watches by now.
    pub fn unwatch(&self, latch: usize) {
        let _ = self
            .waiter
            .compare_exchange(latch, 0, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Address of the latch to wake; 0 for nobody's.
    pub fn waiter(&self) -> usize {
        self.waiter.load(Ordering::Acquire)
    }
}

/// The expiry, and who may move it.
impl Entry {
    fn word(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    /// False when somebody else has changed the word meanwhile.
    fn swap(&self, before: Word, after: Word) -> bool {
        self.word
            .compare_exchange(before.0, after.0, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn is_outdated(&self) -> bool {
        self.epoch.load(Ordering::Acquire) == OUTDATED
    }

    /// A word and the epoch it is of.
    fn read(&self) -> (Word, i64) {
        loop {
            let before = self.word();
            let epoch = self.epoch.load(Ordering::Acquire);
            if self.word() == before {
                return (before, epoch);
            }
        }
    }

    /// Another epoch. At no moment it is there with the expiry of the one before, nor that one with its
    /// expiry: the word changes while the entry is of no epoch, and is marked until all is there.
    fn replace(&self, epoch: i64, expires_at: i64, ttl: i64) {
        let after = self.word().with_next_version().with_expiry(expires_at);
        self.epoch.store(OUTDATED, Ordering::Release);
        self.word.store(after.taken().0, Ordering::Release);
        self.ttl.store(ttl, Ordering::Release);
        self.epoch.store(epoch, Ordering::Release);
        self.to_write.store(CLEAN, Ordering::Release);
        self.word.store(after.given_back().0, Ordering::Release);
    }

    /// Whether the entry is of this epoch, or is about to be of another.
    pub fn is_current(&self, epoch: i64) -> bool {
        self.epoch.load(Ordering::Acquire) == epoch || self.word().is_taken()
    }

    /// The expiry, when the entry is of this epoch, whoever claims it.
    pub fn expiry_at(&self, epoch: i64) -> Option<i64> {
        let (word, found) = self.read();
        (found == epoch && found != OUTDATED).then(|| word.expires_at())
    }

    /// What it knows of its lease; None of one that is being taken over.
    pub fn held(&self) -> Option<Held> {
        let (word, epoch) = self.read();
        (epoch != OUTDATED && !word.is_taken()).then(|| Held {
            lease_id: self.lease_id.load(Ordering::Acquire),
            expires_at: word.expires_at(),
            ttl: self.ttl.load(Ordering::Acquire),
        })
    }

    /// The word that a renewal of this epoch may replace.
    fn look(&self, epoch: i64) -> Result<Word, Renewal> {
        let word = self.word();
        if word.is_taken() {
            return Err(Renewal::Taken);
        }
        if self.epoch.load(Ordering::Acquire) != epoch {
            return Err(Renewal::Superseded);
        }
        Ok(word)
    }

    /// Moves the expiry of the grant of this epoch, unless it is being taken over.
    pub fn renew(&self, epoch: i64, expires_at: i64, ttl: i64) -> Renewal {
        loop {
            let before = match self.look(epoch) {
                Ok(before) => before,
                Err(refused) => return refused,
            };
            if self.swap(before, before.with_expiry(expires_at)) {
                break;
            }
        }
        // After a crash the lease counts as held for the ttl in the table: a longer one is urgent.
        let is_urgent = self.ttl.fetch_max(ttl, Ordering::AcqRel) < ttl;
        let level = if is_urgent { URGENT } else { DIRTY };
        self.to_write.fetch_max(level, Ordering::AcqRel);
        Renewal::Renewed { is_urgent }
    }

    /// Marks the lease as being taken over, if it has expired by `now` or has ended; else says until
    /// when it is held. Renewals are refused from here on.
    pub fn take(&self, now: i64, has_ended: bool) -> Result<(), i64> {
        loop {
            let before = self.word();
            if !has_ended && now < before.expires_at() {
                return Err(before.expires_at());
            }
            if self.swap(before, before.taken()) {
                return Ok(());
            }
        }
    }

    /// The takeover has committed: allocates nothing and cannot fail.
    pub fn grant(&self, epoch: i64, expires_at: i64, ttl: i64) {
        self.replace(epoch, expires_at, ttl);
    }

    /// The takeover was rolled back.
    pub fn give_back(&self) {
        self.word.fetch_and(!Word::TAKEN, Ordering::AcqRel);
    }

    /// The grant of this epoch has ended before its time: whoever still goes by this entry is sent to the
    /// table, a renewal that has looked there before the end included.
    pub fn end(&self, epoch: i64) {
        let ended =
            self.epoch
                .compare_exchange(epoch, OUTDATED, Ordering::AcqRel, Ordering::Acquire);
        if ended.is_err() {
            return;
        }
        // A renewal between its look at the epoch and its swap fails.
        loop {
            let before = self.word();
            if self.swap(before, before.with_next_version()) {
                return;
            }
        }
    }
}

/// What an entry knows of a lease.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub lease_id: i64,
    pub expires_at: i64,
    pub ttl: i64,
}

/// An expiry that the table does not know yet.
pub struct Unwritten<'a> {
    pub lease_id: i64,
    pub resource: u64,
    pub epoch: i64,
    pub expires_at: i64,
    pub ttl: i64,
    level: u8,
    entry: &'a Entry,
}

impl Unwritten<'_> {
    /// The table knows it now; what was renewed meanwhile is written the next time.
    pub fn is_written(&self) {
        let _ = self.entry.to_write.compare_exchange(
            WRITING,
            CLEAN,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }

    /// It could not be written after all. Says whether it is urgent.
    pub fn put_back(&self) -> bool {
        self.entry.to_write.fetch_max(self.level, Ordering::AcqRel);
        self.level == URGENT
    }
}

/// What the table is still to be told.
impl Entry {
    /// What the table does not know. Until the caller says what has become of it the entry stays, unless
    /// the grant comes to its end. Leaves out what is being taken over: the row is about to be another.
    pub fn take_unwritten(&self, extent: Extent) -> Option<Unwritten<'_>> {
        if self.is_outdated() || self.word().is_taken() {
            return None;
        }
        // Before the values are read: a renewal after this is written the next time.
        let writing = |level| (level >= extent.level()).then_some(WRITING);
        let level = self
            .to_write
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, writing)
            .ok()?;
        let (word, epoch) = self.read();
        let unwritten = Unwritten {
            lease_id: self.lease_id.load(Ordering::Acquire),
            resource: self.resource.load(Ordering::Acquire),
            epoch,
            expires_at: word.expires_at(),
            ttl: self.ttl.load(Ordering::Acquire),
            level,
            entry: self,
        };
        if word.is_taken() || epoch == OUTDATED {
            unwritten.put_back();
            return None;
        }
        Some(unwritten)
    }

    /// What was being written when the worker was ended is to be written again.
    pub fn put_back_interrupted(&self) {
        let _ = self
            .to_write
            .compare_exchange(WRITING, DIRTY, Ordering::AcqRel, Ordering::Acquire);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;
    use proptest::prelude::*;

    const DATABASE: u32 = 5;
    const KEY: Key = Key {
        relation: 7,
        lease_id: 9,
        resource: 11,
    };
    const RENEWED: Renewal = Renewal::Renewed { is_urgent: false };

    /// Of the grant of an epoch, which the table knows.
    fn granted(epoch: i64, expires_at: i64, ttl: i64) -> Entry {
        let entry = Entry::default();
        entry.assign(DATABASE, KEY);
        entry.grant(epoch, expires_at, ttl);
        entry
    }

    type Values = (i64, i64, i64);

    fn values(unwritten: &Unwritten) -> Values {
        (unwritten.epoch, unwritten.expires_at, unwritten.ttl)
    }

    #[test]
    fn a_word_keeps_its_parts_apart() {
        let mut word = Word(0);
        for expires_at in [-Word::LAST_EXPIRY, -1, 0, 1, Word::LAST_EXPIRY] {
            word = word.taken().with_expiry(expires_at);
            assert_eq!((word.expires_at(), word.is_taken()), (expires_at, true));
            word = word.given_back();
            assert_eq!((word.expires_at(), word.is_taken()), (expires_at, false));
            let versions = (0..256).scan(word, |word, _| {
                *word = word.with_next_version();
                Some(*word)
            });
            let others = versions.filter(|other| *other != word);
            assert_eq!(others.count(), 255);
            assert_eq!(word.with_next_version().expires_at(), expires_at);
            assert_ne!(word.with_next_version().with_expiry(expires_at), word);
        }
        // What no lease can have counts as the furthest.
        let furthest = word.with_expiry(i64::MAX).expires_at();
        assert_eq!(furthest, Word::LAST_EXPIRY);
        let furthest = word.with_expiry(i64::MIN).expires_at();
        assert_eq!(furthest, -Word::LAST_EXPIRY);
    }

    #[test]
    fn an_entry_is_of_one_lease() {
        let entry = Entry::default();
        assert!(entry.can_be_replaced());
        entry.assign(DATABASE, KEY);
        assert!(entry.is_of(DATABASE, KEY));
        assert!(!entry.is_of(DATABASE + 1, KEY));
        let other = Key { relation: 8, ..KEY };
        assert!(!entry.is_of(DATABASE, other));
        let other = Key { lease_id: 8, ..KEY };
        assert!(!entry.is_of(DATABASE, other));
        let other = Key { resource: 8, ..KEY };
        assert!(!entry.is_of(DATABASE, other));
        assert!(!entry.is_current(0));
        assert_eq!(entry.expiry_at(0), None);
    }

    #[test]
    fn the_moment_of_expiry_can_be_taken() {
        let entry = granted(1, 100, 10);
        assert_eq!(entry.take(99, false), Err(100));
        assert_eq!(entry.renew(1, 200, 10), RENEWED);
        assert_eq!(entry.take(100, false), Err(200));
        assert_eq!(entry.take(200, false), Ok(()));
        assert_eq!(entry.renew(1, 300, 10), Renewal::Taken);
        assert!(entry.is_current(2));
        entry.give_back();
        assert!(!entry.is_current(2));
        assert_eq!(entry.renew(1, 300, 10), RENEWED);
        assert_eq!(entry.expiry_at(1), Some(300));
    }

    #[test]
    fn what_has_ended_is_taken_before_its_time() {
        let entry = granted(1, 100, 10);
        entry.end(2);
        assert_eq!(entry.expiry_at(1), Some(100));
        entry.end(1);
        assert_eq!(entry.expiry_at(1), None);
        assert_eq!(entry.expiry_at(OUTDATED), None);
        assert_eq!(entry.renew(1, 200, 10), Renewal::Superseded);
        assert_eq!(entry.take(50, true), Ok(()));
        entry.grant(2, 150, 10);
        assert_eq!(entry.renew(1, 200, 10), Renewal::Superseded);
        assert_eq!(entry.expiry_at(2), Some(150));
    }

    /// The expiry of a new grant is one that the lease had before, to the microsecond.
    #[test]
    fn a_renewal_does_not_take_another_grant_for_its_own() {
        let end: fn(&Entry) = |entry| entry.end(1);
        let shorten: fn(&Entry) = |entry| assert_eq!(entry.renew(1, 40, 10), RENEWED);
        for (what, has_ended) in [(end, true), (shorten, false)] {
            let entry = granted(1, 100, 10);
            let seen = entry.look(1).unwrap();
            what(&entry);
            assert_eq!(entry.take(50, has_ended), Ok(()));
            entry.grant(2, 100, 10);
            assert!(!entry.swap(seen, seen.with_expiry(200)));
            assert_eq!(entry.expiry_at(2), Some(100));
        }
    }

    #[test]
    fn a_renewal_that_saw_the_entry_before_the_end_fails() {
        let entry = granted(1, 100, 10);
        let seen = entry.look(1).unwrap();
        entry.end(1);
        assert!(!entry.swap(seen, seen.with_expiry(200)));
    }

    #[test]
    fn a_takeover_given_back_hinders_no_renewal() {
        let entry = granted(1, 100, 10);
        let seen = entry.look(1).unwrap();
        assert_eq!(entry.take(100, false), Ok(()));
        assert!(!entry.swap(seen, seen.with_expiry(200)));
        entry.give_back();
        assert!(entry.swap(seen, seen.with_expiry(200)));
    }

    #[test]
    fn a_longer_ttl_is_urgent_once() {
        let entry = granted(1, 100, 10);
        assert_eq!(entry.renew(1, 110, 10), RENEWED);
        assert!(entry.take_unwritten(Extent::Urgent).is_none());
        let longer = Renewal::Renewed { is_urgent: true };
        assert_eq!(entry.renew(1, 120, 11), longer);
        assert_eq!(entry.renew(1, 119, 9), RENEWED);
        let unwritten = entry.take_unwritten(Extent::Urgent).unwrap();
        assert_eq!(unwritten.lease_id, KEY.lease_id);
        assert_eq!(values(&unwritten), (1, 119, 11));
        assert!(unwritten.put_back());
        assert!(entry.take_unwritten(Extent::Urgent).is_some());
    }

    #[test]
    fn what_is_renewed_while_it_is_written_is_written_again() {
        let entry = granted(1, 100, 10);
        assert!(entry.take_unwritten(Extent::All).is_none());
        entry.renew(1, 110, 10);
        let unwritten = entry.take_unwritten(Extent::All).unwrap();
        assert!(entry.take_unwritten(Extent::All).is_none());
        entry.renew(1, 120, 10);
        unwritten.is_written();
        let unwritten = entry.take_unwritten(Extent::All).unwrap();
        assert_eq!(values(&unwritten), (1, 120, 10));
        unwritten.is_written();
        assert!(entry.take_unwritten(Extent::All).is_none());
    }

    #[test]
    fn what_was_not_written_is_not_lost() {
        let entry = granted(1, 100, 10);
        entry.renew(1, 110, 10);
        assert!(!entry.take_unwritten(Extent::All).unwrap().put_back());
        assert!(entry.take_unwritten(Extent::All).is_some());
        // The worker has ended over it.
        entry.put_back_interrupted();
        assert!(entry.take_unwritten(Extent::All).is_some());
    }

    #[test]
    fn nothing_is_written_of_what_is_about_to_change() {
        let entry = granted(1, 100, 10);
        entry.renew(1, 110, 10);
        assert_eq!(entry.take(110, false), Ok(()));
        assert!(entry.take_unwritten(Extent::All).is_none());
        entry.give_back();
        assert!(entry.take_unwritten(Extent::All).is_some());
        entry.renew(1, 120, 10);
        entry.end(1);
        assert!(entry.take_unwritten(Extent::All).is_none());
    }

    #[test]
    fn only_what_nobody_misses_is_replaced() {
        let entry = granted(1, 100, 10);
        assert!(entry.can_be_replaced());
        entry.pin();
        assert!(!entry.can_be_replaced());
        entry.unpin();
        assert_eq!(entry.take(100, false), Ok(()));
        assert!(!entry.can_be_replaced());
        entry.give_back();
        entry.renew(1, 110, 10);
        assert!(!entry.can_be_replaced());
        let unwritten = entry.take_unwritten(Extent::All).unwrap();
        assert!(!entry.can_be_replaced());
        unwritten.put_back();
        // The table knows more than an entry of a grant that has ended.
        entry.end(1);
        assert!(entry.can_be_replaced());
    }

    #[test]
    fn what_expires_first_is_missed_the_least() {
        let free = Entry::default();
        let outdated = granted(1, 300, 10);
        outdated.end(1);
        let entries = [&granted(1, 200, 10), &free, &granted(1, 100, 10), &outdated];
        let mut worths = entries.map(Entry::worth);
        worths.sort_unstable();
        let expected = [free.worth(), outdated.worth(), 100, 200];
        assert_eq!(worths, expected);
    }

    #[test]
    fn an_outdated_entry_is_free_when_nobody_has_pinned_it() {
        let entry = granted(1, 100, 10);
        entry.renew(1, 110, 10);
        entry.pin();
        entry.outdate();
        assert!(entry.is_of(DATABASE, KEY));
        assert_eq!(entry.expiry_at(1), None);
        entry.unpin();
        entry.outdate();
        assert!(!entry.is_of(DATABASE, KEY));
    }

    #[test]
    fn who_watches_last_is_woken() {
        let entry = granted(1, 100, 10);
        entry.watch(1);
        entry.watch(2);
        entry.unwatch(1);
        assert_eq!(entry.waiter(), 2);
        entry.unwatch(2);
        assert_eq!(entry.waiter(), 0);
    }

    /// What an entry is to one who uses it alone.
    #[derive(Default)]
    struct Reference {
        epoch: Option<i64>,
        expires_at: i64,
        ttl: i64,
        is_taken: bool,
        /// Renewed since the table was last told, and to more than it promises.
        is_unwritten: bool,
        is_urgent: bool,
        writing: Option<Writing>,
    }

    /// What the worker is about to tell the table.
    #[derive(Clone, Copy)]
    struct Writing {
        is_urgent: bool,
        is_of_last_grant: bool,
    }

    impl Reference {
        fn renew(&mut self, epoch: i64, expires_at: i64, ttl: i64) -> Renewal {
            if self.is_taken {
                return Renewal::Taken;
            }
            if self.epoch != Some(epoch) {
                return Renewal::Superseded;
            }
            let is_urgent = self.ttl < ttl;
            self.expires_at = expires_at;
            self.ttl = self.ttl.max(ttl);
            self.is_unwritten = true;
            self.is_urgent |= is_urgent;
            Renewal::Renewed { is_urgent }
        }

        fn take(&mut self, now: i64, has_ended: bool) -> Result<(), i64> {
            if !has_ended && now < self.expires_at {
                return Err(self.expires_at);
            }
            self.is_taken = true;
            Ok(())
        }

        fn grant(&mut self, epoch: i64, expires_at: i64, ttl: i64) {
            *self = Self {
                epoch: Some(epoch),
                expires_at,
                ttl,
                writing: self.writing.map(|writing| Writing {
                    is_of_last_grant: false,
                    ..writing
                }),
                ..Self::default()
            };
        }

        fn end(&mut self, epoch: i64) {
            self.epoch = self.epoch.filter(|own| *own != epoch);
        }

        fn take_unwritten(&mut self, extent: Extent) -> Option<Values> {
            let is_due = self.is_unwritten && (self.is_urgent || extent == Extent::All);
            let epoch = self.epoch.filter(|_| is_due && !self.is_taken)?;
            self.writing = Some(Writing {
                is_urgent: self.is_urgent,
                is_of_last_grant: true,
            });
            (self.is_unwritten, self.is_urgent) = (false, false);
            Some((epoch, self.expires_at, self.ttl))
        }

        fn put_back(&mut self) -> Option<bool> {
            let writing = self.writing.take()?;
            self.is_unwritten = true;
            self.is_urgent |= writing.is_urgent;
            Some(writing.is_urgent)
        }

        fn can_be_replaced(&self) -> bool {
            let is_writing = self.writing.is_some_and(|writing| writing.is_of_last_grant);
            !self.is_taken && (self.epoch.is_none() || !self.is_unwritten && !is_writing)
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Renew(i64, i64, i64),
        Take(i64, bool),
        Grant(i64, i64, i64),
        GiveBack,
        End(i64),
        TakeUnwritten(Extent),
        Written,
        PutBack,
    }

    fn steps() -> impl Strategy<Value = Step> {
        let (epochs, times, ttls) = (0..3_i64, 0..6_i64, 1..4_i64);
        let grant = (epochs.clone(), times.clone(), ttls);
        let extent = prop_oneof![Just(Extent::Urgent), Just(Extent::All)];
        prop_oneof![
            4 => grant.clone().prop_map(|(epoch, at, ttl)| Step::Renew(epoch, at, ttl)),
            2 => (times, any::<bool>()).prop_map(|(now, has_ended)| Step::Take(now, has_ended)),
            1 => grant.prop_map(|(epoch, at, ttl)| Step::Grant(epoch, at, ttl)),
            1 => Just(Step::GiveBack),
            1 => epochs.prop_map(Step::End),
            2 => extent.prop_map(Step::TakeUnwritten),
            1 => Just(Step::Written),
            1 => Just(Step::PutBack),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// One step after the other an entry does what its reference does.
        #[test]
        fn an_entry_keeps_to_its_rules(steps in prop::collection::vec(steps(), 1..40)) {
            let entry = granted(0, 0, 0);
            let mut writing = None;
            let mut reference = Reference { epoch: Some(0), ..Reference::default() };
            for step in steps {
                match step {
                    Step::Renew(epoch, expires_at, ttl) => {
                        prop_assert_eq!(entry.renew(epoch, expires_at, ttl), reference.renew(epoch, expires_at, ttl));
                    }
                    Step::Take(now, has_ended) => {
                        prop_assert_eq!(entry.take(now, has_ended), reference.take(now, has_ended));
                    }
                    Step::Grant(epoch, expires_at, ttl) => {
                        entry.grant(epoch, expires_at, ttl);
                        reference.grant(epoch, expires_at, ttl);
                    }
                    Step::GiveBack => {
                        entry.give_back();
                        reference.is_taken = false;
                    }
                    Step::End(epoch) => {
                        entry.end(epoch);
                        reference.end(epoch);
                    }
                    // One worker says of one batch what has become of it, before it takes another.
                    Step::TakeUnwritten(extent) if writing.is_none() => {
                        writing = entry.take_unwritten(extent);
                        prop_assert_eq!(writing.as_ref().map(values), reference.take_unwritten(extent));
                    }
                    Step::TakeUnwritten(_) => {}
                    Step::Written => {
                        if let Some(written) = writing.take() {
                            written.is_written();
                        }
                        reference.writing = None;
                    }
                    Step::PutBack => {
                        prop_assert_eq!(writing.take().map(|left| left.put_back()), reference.put_back());
                    }
                }
                for epoch in 0..3 {
                    let is_own = reference.epoch == Some(epoch);
                    prop_assert_eq!(entry.expiry_at(epoch), is_own.then_some(reference.expires_at));
                    prop_assert_eq!(entry.is_current(epoch), is_own || reference.is_taken);
                }
                prop_assert_eq!(entry.can_be_replaced(), reference.can_be_replaced());
            }
        }
    }

    /// Expiries of an epoch lie between this many times the epoch and the next.
    const RANGE: i64 = 1_000_000;

    fn is_of(epoch: i64, expires_at: i64) -> bool {
        expires_at.div_euclid(RANGE) == epoch
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Row {
        epoch: i64,
        expires_at: i64,
        ttl: i64,
    }

    /// A lease on a server that is busy with it: its entry, and its row under the lock of the lease.
    struct Server {
        entry: Entry,
        row: Mutex<Row>,
        /// The last epochs whose grant and whose end are complete.
        granted: AtomicI64,
        ended: AtomicI64,
        /// Odd while the entry is certainly taken.
        takeovers: AtomicU64,
        /// The last expiry that each epoch was renewed to, and the one that it was taken over at.
        renewed: Mutex<BTreeMap<i64, i64>>,
        taken: Mutex<BTreeMap<i64, i64>>,
        is_over: AtomicBool,
    }

    /// Ends the test for everybody when one is done, or has failed.
    struct Over<'a>(&'a AtomicBool);

    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }

    /// For some instructions: whoever yields the processor waits for all that do not.
    fn let_others_work() {
        (0..50).for_each(|_| std::hint::spin_loop());
    }

    impl Server {
        fn new() -> Self {
            let row = Row {
                epoch: 0,
                expires_at: 0,
                ttl: 1,
            };
            Self {
                entry: granted(row.epoch, row.expires_at, row.ttl),
                row: Mutex::new(row),
                granted: AtomicI64::new(0),
                ended: AtomicI64::new(-1),
                takeovers: AtomicU64::new(0),
                renewed: Mutex::default(),
                taken: Mutex::default(),
                is_over: AtomicBool::new(false),
            }
        }

        /// Does the work, while the others do theirs until it is over.
        fn at_once(&self, work: impl FnOnce(&Self), others: &[fn(&Self)]) {
            thread::scope(|scope| {
                for other in others {
                    scope.spawn(|| {
                        let _over = Over(&self.is_over);
                        other(self);
                    });
                }
                let _over = Over(&self.is_over);
                work(self);
            });
        }

        fn is_over(&self) -> bool {
            self.is_over.load(Ordering::Acquire)
        }

        /// Takes the lease over again and again, by turns at its end and at its expiry.
        fn take_over(&self, epochs: i64) {
            let mut taken = self.taken.lock().unwrap();
            for epoch in (1..=epochs).take_while(|_| !self.is_over()) {
                let mut row = self.row.lock().unwrap();
                let has_ended = epoch % 2 == 0;
                let now = epoch * RANGE;
                if epoch % 3 == 0 {
                    self.while_taken(now, false, || ());
                    self.entry.give_back();
                    let_others_work();
                }
                if has_ended {
                    self.entry.end(epoch - 1);
                    self.ended.store(epoch - 1, Ordering::Release);
                }
                let before = self.while_taken(now, has_ended, || {
                    *row = Row {
                        epoch,
                        expires_at: now,
                        ttl: 1,
                    };
                });
                taken.insert(epoch - 1, before.expires_at());
                self.entry.grant(epoch, now, row.ttl);
                self.granted.store(epoch, Ordering::Release);
                drop(row);
                let_others_work();
            }
        }

        /// No renewal moves the expiry between the takeover and its end.
        fn while_taken(&self, now: i64, has_ended: bool, work: impl FnOnce()) -> Word {
            assert_eq!(self.entry.take(now, has_ended), Ok(()));
            let before = self.entry.word();
            assert!(before.is_taken());
            self.takeovers.fetch_add(1, Ordering::AcqRel);
            let_others_work();
            work();
            self.takeovers.fetch_add(1, Ordering::AcqRel);
            assert_eq!(self.entry.word(), before);
            before
        }

        /// Renews under the epoch there is, and under the one before.
        fn renew(&self) {
            let mut renewed = BTreeMap::new();
            for count in (1..).take_while(|_| !self.is_over()) {
                let granted = self.granted.load(Ordering::Acquire);
                let ended = self.ended.load(Ordering::Acquire);
                let takeover = self.takeovers.load(Ordering::Acquire);
                let epoch = granted - i64::from(count % 3 == 0);
                let expires_at = epoch * RANGE + count % RANGE;
                let renewal = self.entry.renew(epoch, expires_at, 1 + count % 5);
                let was_taken =
                    takeover % 2 == 1 && self.takeovers.load(Ordering::Acquire) == takeover;
                if matches!(renewal, Renewal::Renewed { .. }) {
                    assert!(!was_taken, "a takeover of epoch {epoch} was under way");
                    assert!(epoch > ended, "epoch {epoch} had ended, as {ended} had");
                    assert!(epoch >= granted, "after {granted} renewed {epoch}");
                    renewed.insert(epoch, expires_at);
                }
            }
            self.renewed.lock().unwrap().append(&mut renewed);
        }

        /// An expiry is always of its epoch.
        fn look(&self) {
            while !self.is_over() {
                let granted = self.granted.load(Ordering::Acquire);
                for epoch in granted..granted + 2 {
                    let found = self.entry.expiry_at(epoch);
                    assert!(
                        found.is_none_or(|expires_at| is_of(epoch, expires_at)),
                        "{epoch}: {found:?}"
                    );
                }
            }
        }

        fn write_back(&self) {
            while !self.is_over() {
                if let Some(unwritten) = self.entry.take_unwritten(Extent::All) {
                    self.write(&unwritten);
                }
            }
        }

        fn write(&self, unwritten: &Unwritten) {
            let Ok(mut row) = self.row.try_lock() else {
                unwritten.put_back();
                return;
            };
            let (epoch, expires_at, ttl) = values(unwritten);
            assert!(
                row.epoch != epoch || is_of(epoch, expires_at),
                "{epoch}: {expires_at}"
            );
            if row.epoch == epoch {
                row.expires_at = expires_at;
                row.ttl = row.ttl.max(ttl);
            }
            drop(row);
            unwritten.is_written();
        }
    }

    #[test]
    fn an_expiry_is_never_that_of_another_epoch() {
        Server::new().at_once(|server| server.take_over(50_000), &[Server::look]);
    }

    #[test]
    fn renewals_and_takeovers_exclude_each_other() {
        let server = Server::new();
        server.at_once(|server| server.take_over(20_000), &[Server::renew]);
        let taken = server.taken.lock().unwrap();
        let renewed = server.renewed.lock().unwrap();
        for (epoch, expires_at) in taken.iter() {
            let last = renewed.get(epoch).unwrap_or(expires_at);
            assert_eq!(
                last, expires_at,
                "a takeover of epoch {epoch} saw another expiry"
            );
        }
    }

    #[test]
    fn everything_at_once() {
        let others = [
            Server::renew,
            Server::renew,
            Server::look,
            Server::write_back,
        ];
        Server::new().at_once(|server| server.take_over(1_000), &others);
    }

    /// Where the table knows all that the entry knows, it knows the last renewal.
    #[test]
    fn no_renewal_is_lost_on_its_way_to_the_table() {
        let renew = |server: &Server| {
            for expires_at in 1..10_000 {
                assert!(matches!(
                    server.entry.renew(0, expires_at, 1 + expires_at % 7),
                    Renewal::Renewed { .. }
                ));
                let_others_work();
                if server.entry.can_be_replaced() {
                    assert_eq!(server.row.lock().unwrap().expires_at, expires_at);
                }
            }
        };
        Server::new().at_once(renew, &[Server::write_back]);
    }
}
