//! Where rows were found that are looked for again and again: agents come back to the same lease and the same
//! conversation. It is kept in shared memory, so one process finds them for all.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgAtomic, pg_shmem_init, pg_sys};

use crate::heap::{Key, Latest, Position, Root, Row, Table};
use crate::is_preloaded;
use crate::process::own_database;
use crate::varlena::hash_extended;

/// Half a megabyte.
const PLACES: usize = 32_768;

/// Places that one root can be in.
const WAYS: usize = 4;

/// A root, and which hash it is of; all zero for none. Whoever reads it while it is written may have the position
/// of one row and the buffer of another: it is a guess in any case.
#[derive(Default)]
struct Guess {
    /// The position, and above its 48 bits 16 of the hash.
    position: AtomicU64,
    buffer: AtomicI32,
}

struct Guesses([[Guess; WAYS]; PLACES / WAYS]);

// SAFETY: only atomics.
unsafe impl PGRXSharedMemory for Guesses {}

// SAFETY: the name is this extension's own.
static GUESSES: PgAtomic<Guesses> = unsafe { PgAtomic::new(c"pg_test roots") };

/// Called from `_PG_init` while the server preloads libraries.
pub fn register() {
    pg_shmem_init!(GUESSES = Guesses(std::array::from_fn(|_| Default::default())));
}

const BITS_OF_POSITION: u32 = 48;

/// Where the root of a row is remembered, by a hash of what it is called.
#[derive(Clone, Copy)]
struct Bucket {
    guesses: &'static [Guess; WAYS],
    hash: u64,
}

impl Bucket {
    fn of(table: &Table, keys: &[Key]) -> Option<Self> {
        let of_table = i64::from(own_database()) << 32 | i64::from(table.oid());
        let hash = keys.iter().fold(of_table, |seed, key| match key {
            Key::Text(_, text) => hash_extended(text.as_bytes(), seed),
            Key::Number(_, number) => hash_extended(&number.to_ne_bytes(), seed),
        });
        let hash = hash.cast_unsigned();
        is_preloaded().then(|| Self {
            guesses: &GUESSES.get().0[hash as usize % (PLACES / WAYS)],
            hash,
        })
    }

    fn tag(self) -> u64 {
        self.hash >> BITS_OF_POSITION
    }

    fn place(self) -> Option<&'static Guess> {
        let is_mine = |guess: &&Guess| {
            guess.position.load(Ordering::Relaxed) >> BITS_OF_POSITION == self.tag()
        };
        self.guesses.iter().find(is_mine)
    }

    fn root(self) -> Option<Root> {
        let guess = self.place()?;
        let buffer = guess.buffer.load(Ordering::Relaxed);
        let number = guess.position.load(Ordering::Relaxed) & ((1 << BITS_OF_POSITION) - 1);
        (buffer != 0).then_some(Root {
            position: Position(number),
            buffer,
        })
    }

    /// Where all places are taken, one of them is given up: which one depends on where the row lies.
    fn remember(self, root: Root) {
        let is_free = |guess: &&Guess| guess.buffer.load(Ordering::Relaxed) == 0;
        let guess = self.place().or_else(|| self.guesses.iter().find(is_free));
        let guess = guess.unwrap_or(&self.guesses[root.position.0 as usize % WAYS]);
        let tagged = self.tag() << BITS_OF_POSITION | root.position.0;
        guess.position.store(tagged, Ordering::Relaxed);
        guess.buffer.store(root.buffer, Ordering::Relaxed);
    }
}

/// A row with these columns: where one was found the last time, or as `look` finds it. Without columns, the one that a
/// table of one row has.
pub fn find<'a>(
    table: &'a Table,
    seen: &Latest,
    keys: &[Key],
    look: impl FnOnce() -> Option<Row<'a>>,
) -> Option<Row<'a>> {
    let bucket = Bucket::of(table, keys);
    let guessed = bucket.and_then(|bucket| table.at(seen, bucket.root()?));
    guessed.filter(|row| row.has(keys)).or_else(|| {
        let row = look()?;
        if let Some((bucket, root)) = bucket.zip(row.root()) {
            bucket.remember(root);
        }
        Some(row)
    })
}
