//! What there is at one moment: the server, its sessions, and what their clients believe.
//!
//! Every time is the number of ticks from now, and what is past is at 0; a tick lowers them all. So
//! the clock has no end, and two moments that differ only in the hour are one state.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::lease::grant::{Ended, Lease, Request, Run, Stored};
use crate::lease::savepoint::Level;

pub type Ticks = u8;

/// The number of a client, from 0.
pub type Who = u8;

/// The moment that every time is counted from.
pub const NOW: i64 = 0;

/// Number of the first subtransaction, which is the transaction itself.
pub const TRANSACTION: Level = 1;
pub const SAVEPOINT: Level = 2;

/// Epochs of the first life of the node lie below.
const SECOND_LIFE: i64 = 1 << 40;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// A row of `coord.lease`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    pub holder: Who,
    pub epoch: i64,
    pub expires_in: Ticks,
    pub ttl: Ticks,
    /// Whether its expiry was written from the memory there is now.
    pub is_of_this_memory: bool,
    pub ended: Option<Ended>,
}

impl Row {
    pub fn stored(self, run: Run) -> Stored {
        Stored {
            expires_at: self.expires_in.into(),
            ttl: self.ttl.into(),
            memory: if self.is_of_this_memory {
                run.memory
            } else {
                i64::MIN
            },
        }
    }

    pub fn lease(self, expires_at: i64) -> Lease {
        Lease {
            holder: name(self.holder).to_owned(),
            epoch: self.epoch,
            expires_at,
            request: request(self.holder).id,
            ended: self.ended,
        }
    }
}

pub fn name(client: Who) -> &'static str {
    NAMES[usize::from(client)]
}

/// A client asks under the same identifier again, as one does that has lost the answer.
pub fn request(client: Who) -> Request<'static> {
    Request {
        holder: name(client),
        id: Some([client; 16]),
    }
}

/// An entry of shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// 0 when it counts for no grant.
    pub epoch: i64,
    pub expires_in: Ticks,
    pub ttl: Ticks,
    pub is_taken: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    Granted,
    Ended,
}

/// Where a statement is that takes several steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Step {
    #[default]
    Ready,
    /// Acquires: the lease could be had at this epoch, and its lock is waited for.
    Waiting {
        epoch: i64,
    },
    /// Acquires: the lock is held.
    Locked {
        epoch: i64,
    },
    /// Acquires: judged again, `age` ticks ago.
    Judged {
        epoch: i64,
        age: Ticks,
    },
    /// Writes to a protected table: the lock is held, if the design has one.
    Looking,
    /// Has written by the table, and is about to make an entry of what it found there.
    Making,
    /// A takeover goes on after another one of the same transaction was given back.
    HoldingOn,
    /// The commit is on disk and seen by others; memory and locks are as before it.
    Committed,
    Prepared,
}

/// A transaction, with what it did in the order it did it. Whatever has a level belongs to the
/// transaction or to its savepoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Transaction {
    pub has_savepoint: bool,
    pub step: Step,
    pub writer_lock: Option<Level>,
    pub change_lock: Option<Level>,
    pub takeover_lock: Option<Level>,
    /// Has had the lock of a writer, for the design that believes to have it still.
    pub was_locked: bool,
    /// Its own versions of the row, and the effects that come with them.
    pub changes: Vec<(Level, (Change, Row))>,
    /// Epochs that it wrote to protected tables under.
    pub written: Vec<(Level, i64)>,
    /// What it saw when it began, or when it looked, for the designs that go by that later.
    pub snapshot: Option<Row>,
}

impl Transaction {
    pub fn level(&self) -> Level {
        if self.has_savepoint {
            SAVEPOINT
        } else {
            TRANSACTION
        }
    }

    pub fn has_granted(&self) -> bool {
        let mut changes = self.changes.iter();
        changes.any(|(_, (change, _))| *change == Change::Granted)
    }

    /// What this transaction itself has made of the lease.
    pub fn own_row(&self) -> Option<Row> {
        self.changes.last().map(|(_, (_, row))| *row)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Client {
    /// The epoch it was last granted; it goes on with it whatever happens.
    pub token: i64,
    /// How long it believes to hold the lease, by what it was last told.
    pub told: Ticks,
    /// Somebody else has been granted the same epoch.
    pub is_impersonated: bool,
    /// A renewal that has seen the row and not yet reached memory: until when it would be.
    pub renewal: Option<Ticks>,
    pub transaction: Option<Transaction>,
}

/// A promise that was broken, at a commit or, of an end, by a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broken {
    StaleWrite,
    EpochNotAbove,
    WriteOfAnother,
    WriteAfterEnd,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State<const CLIENTS: usize> {
    pub clients: [Client; CLIENTS],
    /// As committed.
    pub row: Option<Row>,
    pub entry: Option<Entry>,
    /// How long the memory exists; no more is counted than any ttl is long.
    pub memory_age: Ticks,
    pub predecessor_was_closed: bool,
    pub incarnation: i64,
    /// Yesterday's row.
    pub backup: Option<Option<Row>>,
    /// The highest epoch that was ever committed, in this history or in one that a restore cut off.
    pub highest: i64,
    pub broken: Option<Broken>,
}

impl<const CLIENTS: usize> State<CLIENTS> {
    pub fn new() -> Self {
        Self {
            clients: std::array::from_fn(|_| Client::default()),
            row: None,
            entry: None,
            memory_age: 0,
            predecessor_was_closed: true,
            incarnation: 1,
            backup: None,
            highest: 0,
            broken: None,
        }
    }

    fn rows(&mut self) -> impl Iterator<Item = &mut Row> {
        let transactions = self
            .clients
            .iter_mut()
            .filter_map(|client| client.transaction.as_mut());
        let theirs = transactions.flat_map(|transaction| {
            let changed = transaction.changes.iter_mut().map(|(_, (_, row))| row);
            changed.chain(&mut transaction.snapshot)
        });
        let backup = self.backup.iter_mut().flatten();
        self.row.iter_mut().chain(backup).chain(theirs)
    }

    /// Epochs that the next one is counted from or compared with.
    fn epochs_of_grants(&mut self) -> impl Iterator<Item = &mut i64> {
        let Self {
            clients,
            row,
            entry,
            backup,
            highest,
            ..
        } = self;
        let transactions = clients
            .iter_mut()
            .filter_map(|client| client.transaction.as_mut());
        let theirs = transactions.flat_map(|transaction| {
            let step = match &mut transaction.step {
                Step::Waiting { epoch } | Step::Locked { epoch } | Step::Judged { epoch, .. } => {
                    Some(epoch)
                }
                _ => None,
            };
            let changed = transaction.changes.iter_mut().map(|(_, (_, row))| row);
            let rows = changed.chain(&mut transaction.snapshot);
            rows.map(|row| &mut row.epoch).chain(step)
        });
        let rows = row.iter_mut().chain(backup.iter_mut().flatten());
        let entry = entry.iter_mut().map(|entry| &mut entry.epoch);
        theirs
            .chain(rows.map(|row| &mut row.epoch))
            .chain(entry)
            .chain([highest])
    }

    /// Epochs that clients go on with.
    fn epochs_of_claims(&mut self) -> impl Iterator<Item = &mut i64> {
        self.clients.iter_mut().flat_map(|client| {
            let written = client
                .transaction
                .iter_mut()
                .flat_map(|transaction| transaction.written.iter_mut());
            written.map(|(_, epoch)| epoch).chain([&mut client.token])
        })
    }

    /// A tick of the clock, of which no more than `longest` count.
    pub fn pass_time(&mut self, longest: Ticks) {
        let pass = |ticks: &mut Ticks| *ticks = ticks.saturating_sub(1);
        self.memory_age = (self.memory_age + 1).min(longest);
        self.entry
            .iter_mut()
            .for_each(|entry| pass(&mut entry.expires_in));
        self.rows().for_each(|row| pass(&mut row.expires_in));
        for client in &mut self.clients {
            pass(&mut client.told);
            client.renewal.iter_mut().for_each(pass);
            if let Some(Step::Judged { age, .. }) = client
                .transaction
                .as_mut()
                .map(|transaction| &mut transaction.step)
            {
                *age = (*age + 1).min(longest);
            }
        }
    }

    /// The one of all states that differ from this one only in who is who, in how high the epochs are,
    /// and in what counts no more.
    ///
    /// Rules only compare epochs with each other and with the floor of a life, and a grant takes the
    /// next after the highest of its life: closing the gaps between them changes nothing that happens
    /// later, nor does it matter which of the epochs between two grants that are still known a stale
    /// claim has. And clients are all alike.
    pub fn canonical(mut self, longest: Ticks, sorts: bool) -> Self {
        self.forget_age(longest);
        self.close_gaps();
        if sorts {
            self.sort_clients();
        }
        self
    }

    /// The age of the memory, and the end of the one before, count for rows of an earlier one alone.
    fn forget_age(&mut self, longest: Ticks) {
        let backup = self.backup.take();
        let are_of_this_memory = self.rows().all(|row| row.is_of_this_memory);
        self.predecessor_was_closed |= are_of_this_memory;
        self.backup = backup;
        if self.predecessor_was_closed {
            self.memory_age = longest;
        }
    }

    fn close_gaps(&mut self) {
        let mut epochs = [(0, false); 48];
        let mut count = 0;
        let mut note = |epoch: i64, is_of_grant: bool| {
            let noted = &epochs[..count];
            if epoch != 0 && noted.iter().all(|(noted, _)| *noted != epoch) {
                epochs[count] = (epoch, is_of_grant);
                count += 1;
            }
        };
        self.epochs_of_grants().for_each(|epoch| note(*epoch, true));
        self.epochs_of_claims()
            .for_each(|epoch| note(*epoch, false));
        let epochs = &mut epochs[..count];
        epochs.sort_unstable();
        let mut numbers = [0; 48];
        let (mut last, mut was_of_grant) = (0, true);
        for (number, (epoch, is_of_grant)) in numbers.iter_mut().zip(epochs.iter()) {
            if *epoch > SECOND_LIFE && last < SECOND_LIFE {
                (last, was_of_grant) = (SECOND_LIFE, true);
            }
            if *is_of_grant || was_of_grant {
                last += 1;
            }
            (*number, was_of_grant) = (last, *is_of_grant);
        }
        let renumber = |epoch: &mut i64| {
            if let Ok(place) = epochs.binary_search_by_key(epoch, |(epoch, _)| *epoch) {
                *epoch = numbers[place];
            }
        };
        self.epochs_of_grants().for_each(renumber);
        self.epochs_of_claims().for_each(renumber);
    }

    fn sort_clients(&mut self) {
        let is_of =
            |row: Option<Row>, who: usize| row.is_some_and(|row| usize::from(row.holder) == who);
        let mut order: [(u64, usize); CLIENTS] = std::array::from_fn(|who| {
            let client = &self.clients[who];
            let mut hasher = DefaultHasher::new();
            is_of(self.row, who).hash(&mut hasher);
            is_of(self.backup.flatten(), who).hash(&mut hasher);
            (
                client.token,
                client.told,
                client.is_impersonated,
                client.renewal,
            )
                .hash(&mut hasher);
            // Without the holders in its rows, which are numbers of clients.
            if let Some(transaction) = &client.transaction {
                let Transaction {
                    step,
                    writer_lock,
                    change_lock,
                    takeover_lock,
                    has_savepoint,
                    ..
                } = transaction;
                (step, writer_lock, change_lock, takeover_lock, has_savepoint).hash(&mut hasher);
                transaction.written.hash(&mut hasher);
                for (level, (change, row)) in &transaction.changes {
                    (level, change, row.epoch, row.expires_in, row.ended).hash(&mut hasher);
                }
            }
            (hasher.finish(), who)
        });
        order.sort_unstable();
        if order
            .iter()
            .enumerate()
            .all(|(place, (_, who))| place == *who)
        {
            return;
        }
        let mut names = [0; CLIENTS];
        for (place, (_, who)) in order.iter().enumerate() {
            names[*who] = place as Who;
        }
        self.rows()
            .for_each(|row| row.holder = names[usize::from(row.holder)]);
        self.clients =
            std::array::from_fn(|place| std::mem::take(&mut self.clients[order[place].1]));
    }
}
