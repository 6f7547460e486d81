//! Every setting, with the reason for its default.

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, pg_sys};

/// One second: the repair timer. Changes themselves are pushed at commit, so this bounds only how
/// long a lost push or a restarted peer goes unnoticed, and what an idle mesh costs.
pub static GOSSIP_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(1_000);

/// Three: with fan-out 3 an epidemic reaches n nodes in about log3(n) rounds; a higher fan-out
/// mostly sends duplicates (Demers et al. 1987).
pub static GOSSIP_FANOUT: GucSetting<i32> = GucSetting::<i32>::new(3);

/// Rows in one message: large enough that a round trip is a small part of the cost of applying
/// it, small enough that its row locks are held for milliseconds.
pub static GOSSIP_BATCH: GucSetting<i32> = GucSetting::<i32>::new(1_000);

/// Kilobytes of values in one message, for the same reasons.
pub static GOSSIP_BATCH_SIZE: GucSetting<i32> = GucSetting::<i32>::new(1_024);

/// Five seconds: longer than any pause a healthy server takes for one exchange, shorter than a
/// person's patience.
pub static PEER_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5_000);

/// Five minutes: far more than synchronised clocks ever differ, far less than what a wrong time
/// zone or year would add.
pub static MAX_CLOCK_DRIFT: GucSetting<i32> = GucSetting::<i32>::new(300_000);

/// Eight: a peer that is alive is suspected once in a hundred million beats, if its beats come as
/// they did before (Hayashibara et al. 2004, and the default of Akka and Cassandra).
pub static PHI_THRESHOLD: GucSetting<f64> = GucSetting::<f64>::new(8.0);

/// 64 times 1024: a live lease for each agent of a large fleet, in four megabytes.
pub static LEASE_ENTRIES: GucSetting<i32> = GucSetting::<i32>::new(65_536);

/// A week: long enough to look into what happened on a Friday.
pub static LEASE_HISTORY_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(10_080);

/// On: a server with `wal_level = logical` was set up to stream.
pub static STREAMING: GucSetting<bool> = GucSetting::<bool>::new(true);

/// One second: bounds how far what is called complete lags behind what is delivered, and costs a row of
/// some bytes for each stream.
pub static HEARTBEAT_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(1_000);

/// A month: what an agent did is looked into while it is remembered.
pub static OP_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(30 * 24 * 60);

/// 2 to the 20th: some hundred megabytes, which are copied in seconds; a log of a hundred million operations has a
/// hundred partitions.
pub static OP_PARTITION_SIZE: GucSetting<i32> = GucSetting::<i32>::new(1 << 20);

/// Milliseconds by which this session takes the lease clock to be ahead; for tests.
pub static CLOCK_OFFSET: GucSetting<i32> = GucSetting::<i32>::new(0);

/// Settings of shared memory, which PostgreSQL lets nobody define later.
pub fn register_preloaded() {
    GucRegistry::define_int_guc(
        c"coord.lease_entries",
        c"Number of leases whose expiry is kept in shared memory.",
        c"Renewals of a lease that finds no place there are written to its table, and writes under it look there.",
        &LEASE_ENTRIES,
        64,
        16_777_216,
        GucContext::Postmaster,
        GucFlags::default(),
    );
}

pub fn register() {
    GucRegistry::define_int_guc(
        c"coord.lease_history_retention",
        c"How long grants and their ends are kept in coord.lease_history.",
        c"-1 keeps them for ever.",
        &LEASE_HISTORY_RETENTION,
        -1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    GucRegistry::define_int_guc(
        c"coord.op_retention",
        c"How long operations stay in the log that the folded state does not need.",
        c"-1 keeps them for ever.",
        &OP_RETENTION,
        -1,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_MIN,
    );
    GucRegistry::define_int_guc(
        c"coord.op_partition_size",
        c"How many numbers of the operations of a node one partition of the log is for.",
        c"Partitions that are there keep their size.",
        &OP_PARTITION_SIZE,
        100,
        1 << 30,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"coord.clock_offset",
        c"Moves the clock that leases expire by, in this session.",
        c"For tests, which move time instead of sleeping.",
        &CLOCK_OFFSET,
        i32::MIN,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_MS | GucFlags::NO_SHOW_ALL,
    );
    GucRegistry::define_int_guc(
        c"coord.gossip_interval",
        c"Time between two gossip rounds.",
        c"A commit that changes a state is pushed at once; the rounds repair what a push missed.",
        &GOSSIP_INTERVAL,
        10,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"coord.gossip_fanout",
        c"Number of peers contacted in one gossip round.",
        c"Peers are chosen at random among those known.",
        &GOSSIP_FANOUT,
        1,
        1_000,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"coord.gossip_batch",
        c"Largest number of rows in one gossip message.",
        c"What exceeds it follows in further messages of the same exchange.",
        &GOSSIP_BATCH,
        1,
        100_000,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"coord.gossip_batch_size",
        c"Largest size of the values in one gossip message.",
        c"A single row larger than this is sent alone.",
        &GOSSIP_BATCH_SIZE,
        1,
        65_536,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"coord.peer_timeout",
        c"Longest wait for a peer's answer, connecting included.",
        c"A peer that takes longer is counted as failed and tried again in a later round.",
        &PEER_TIMEOUT,
        10,
        60_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"coord.max_clock_drift",
        c"How far ahead of this server a remote clock may be.",
        c"A stamp further ahead is refused, so that one wrong clock cannot drag the mesh along.",
        &MAX_CLOCK_DRIFT,
        0,
        86_400_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_float_guc(
        c"coord.phi_threshold",
        c"Phi at which a silent peer is suspected; at a quarter more it is dead.",
        c"A peer that is alive reaches n once in 10^n beats, if its beats come as they did before.",
        &PHI_THRESHOLD,
        1.0,
        60.0,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"coord.streaming",
        c"Whether operations travel by logical replication where a peer has wal_level = logical.",
        c"Where they do not, they travel by gossip.",
        &STREAMING,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"coord.heartbeat_interval",
        c"Time between two heartbeats of a stream.",
        c"They tell its readers how far what they hold is complete.",
        &HEARTBEAT_INTERVAL,
        10,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    // SAFETY: called from `_PG_init`; the prefix is copied. A misspelt setting is then refused.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"coord".as_ptr()) };
}
