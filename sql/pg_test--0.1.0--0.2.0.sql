-- 0.1.0 to 0.2.0: who is alive; a move follows what it replaces; leases with fencing; the operation log.
\echo Use "ALTER EXTENSION pg_test UPDATE TO '0.2.0'" to load this file. \quit

CREATE FUNCTION peer_liveness(OUT peer text, OUT state text, OUT phi double precision, OUT reason text)
  RETURNS SETOF record
  LANGUAGE c VOLATILE STRICT ROWS 10 AS 'MODULE_PATHNAME', 'peer_liveness_wrapper';
COMMENT ON FUNCTION peer_liveness() IS 'what the failure detector thinks of the peers; empty while no worker judges them';

REVOKE ALL ON FUNCTION peer_liveness() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION peer_liveness() TO coord_monitor;

CREATE OR REPLACE VIEW node AS
  SELECT r.name, r.uuid, r.incarnation, r.first_seen,
         CASE WHEN n.name IS NOT NULL AND r.status = 'alive' THEN clock_timestamp()
              ELSE greatest(r.last_seen, s.last_contact) END AS last_seen,
         CASE WHEN r.status = 'alive' AND d.state <> 'unknown' THEN d.state ELSE r.status END AS status
    FROM coord.roster r
    LEFT JOIN coord.local_node n ON n.name = r.name
    LEFT JOIN coord.peer_statistics() s ON s.peer = r.name
    LEFT JOIN coord.peer_liveness() d ON d.peer = r.name;
COMMENT ON COLUMN node.status IS 'alive, suspect, dead or left; alive for a node that is no peer and has not left';

CREATE OR REPLACE VIEW peer_status AS
  SELECT p.name AS peer,
         CASE WHEN r.status = 'left' THEN 'left' ELSE coalesce(d.state, 'unknown') END AS state,
         s.last_contact,
         nullif(s.round_trip, 0) * interval '1 microsecond' AS round_trip,
         s.rounds, s.full_syncs, s.rows_in, s.rows_out, s.bytes_in, s.bytes_out,
         a.frontier,
         coalesce(clock_timestamp() - l.oldest, interval '0') AS lag,
         l.states AS lag_states,
         s.refused, s.failures, s.last_failure, s.last_error,
         d.phi,
         CASE WHEN d.peer IS NULL THEN 'not judged: no gossip worker runs here, or it has not looked yet' ELSE d.reason END AS reason,
         CASE WHEN s.last_failure >= coalesce(s.last_answer, '-infinity') THEN false
              WHEN s.last_answer IS NOT NULL THEN true END AS reachable
    FROM coord.peer p
    LEFT JOIN coord.roster r ON r.name = p.name
    LEFT JOIN coord.peer_statistics() s ON s.peer = p.name
    LEFT JOIN coord.peer_liveness() d ON d.peer = p.name
    LEFT JOIN coord.ack a ON a.node = p.name
    CROSS JOIN LATERAL (
      SELECT min(st.changed_at) AS oldest, count(*) AS states
        FROM coord.state st
       WHERE st.xid >= coalesce(coord.vclock_get(a.frontier, (SELECT n.actor FROM coord.local_node n)), 0)::text::xid8) l;
COMMENT ON COLUMN peer_status.state IS 'alive, suspect, dead, left, or unknown (not heard yet since the server started)';
COMMENT ON COLUMN peer_status.phi IS 'how unlikely it is that the peer is alive and so long silent: n stands for 1 in 10^n';
COMMENT ON COLUMN peer_status.reason IS 'why the state is what it is';
COMMENT ON COLUMN peer_status.reachable IS 'whether the last message of this node to the peer was answered; a peer can be alive, heard of through others, and not reachable';

CREATE OR REPLACE VIEW problem AS
  SELECT 1 AS rank, NULL::text AS peer, 'the database is not a node: call coord.node_init' AS reason
   WHERE NOT EXISTS (SELECT FROM coord.local_node)
  UNION ALL
  SELECT 2, NULL, 'no gossip worker runs: nothing that changes here is told by itself'
    FROM coord.local_node WHERE coord.gossip_worker() IS NULL
  UNION ALL
  SELECT 3, NULL, 'the incarnation is not known: what is counted meanwhile is told once a peer has confirmed it'
    FROM coord.local_node WHERE coord.life_is_provisional()
  UNION ALL
  SELECT 4, c.peer, format('contents differ from those of peer "%s" at the same frontier', c.peer)
    FROM coord.convergence c WHERE NOT c.digests_agree AND NOT coord.life_is_provisional()
  UNION ALL
  SELECT CASE s.state WHEN 'dead' THEN 5 ELSE 6 END, s.peer,
         format('peer "%s" is %s: %s', s.peer, s.state, concat_ws('; ', s.reason, CASE WHEN NOT s.reachable THEN s.last_error END))
    FROM coord.peer_status s WHERE s.state IN ('suspect', 'dead')
  UNION ALL
  SELECT 7, s.peer, format('peer "%s" is not reached from here: %s', s.peer, s.last_error)
    FROM coord.peer_status s WHERE s.state IN ('alive', 'unknown') AND NOT s.reachable
  UNION ALL
  SELECT 8, s.peer, format('peer "%s" lacks changes made %s ago', s.peer, date_trunc('second', s.lag))
    FROM coord.peer_status s WHERE s.lag > interval '1 min' AND s.state <> 'dead' AND s.reachable;

CREATE OR REPLACE FUNCTION health(OUT ok boolean, OUT reason text, OUT detail jsonb)
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    SELECT count(p.rank) = 0,
           string_agg(p.reason, '; ' ORDER BY p.rank, p.peer),
           jsonb_build_object(
             'node', n.name, 'incarnation', n.incarnation, 'worker', coord.gossip_worker(),
             'confirmed', NOT coord.life_is_provisional(),
             'states', (SELECT count(*) FROM coord.state),
             'waiting', (SELECT count(*) FROM coord.state_waiting),
             'problems', coalesce(jsonb_agg(p.reason ORDER BY p.rank, p.peer) FILTER (WHERE p.rank IS NOT NULL), '[]'),
             'peers', (SELECT coalesce(jsonb_object_agg(s.peer, jsonb_build_object(
                                'state', s.state, 'phi', s.phi, 'reason', s.reason, 'reachable', s.reachable,
                                'converged', c.converged, 'mismatches', c.mismatches,
                                'lag_seconds', extract(epoch FROM s.lag), 'last_error', s.last_error)), '{}')
                         FROM coord.peer_status s JOIN coord.convergence c ON c.peer = s.peer))
      FROM (SELECT) here
      LEFT JOIN coord.local_node n ON true
      LEFT JOIN coord.problem p ON true
     GROUP BY n.name, n.incarnation;
  END;

COMMENT ON COLUMN peer_cursor.log_position IS 'furthest place that the transaction log of the peer was flushed to when it gave a part';
COMMENT ON COLUMN ack.log_position IS 'furthest place that its transaction log was flushed to when it said so';
COMMENT ON FUNCTION add_peer(text, text) IS 'adds a peer and makes it a voter; conninfo with host, port, dbname, user, password, passfile, sslmode, sslrootcert, sslcert, sslkey';

CREATE FUNCTION state_stamp(state constraint_state) RETURNS hlc
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'state_stamp_wrapper';
COMMENT ON FUNCTION state_stamp(constraint_state) IS 'stamp for a move: above the clock, and above that of the position it replaces';

REVOKE ALL ON FUNCTION state_stamp(constraint_state) FROM PUBLIC;

-- The stamp is taken in the update itself, under the row lock, so that of two moves on one node
-- the later one wins.
CREATE OR REPLACE FUNCTION state_move(name text, x integer, y integer) RETURNS void
  LANGUAGE sql VOLATILE STRICT SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  BEGIN ATOMIC
    INSERT INTO coord.state AS s (name, value)
      VALUES ($1, coord.constraint_move(coord.constraint_state(), $2, $3, coord.hlc_now(), coord.node_actor()))
    ON CONFLICT ON CONSTRAINT state_pkey DO UPDATE
      SET value = coord.constraint_move(s.value, $2, $3, coord.state_stamp(s.value), coord.node_actor()),
          xid = greatest(s.xid, excluded.xid), local_xid = DEFAULT, learned_from = DEFAULT,
          is_provisional = s.is_provisional OR excluded.is_provisional, changed_at = DEFAULT;
  END;

-- Leases with fencing, as in lease.sql.

CREATE OR REPLACE FUNCTION life_begin(number bigint, why text) RETURNS void
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  LOCK TABLE coord.state, coord.lease, coord.op IN SHARE ROW EXCLUSIVE MODE;
  -- Above every number that the life before can have given out.
  PERFORM setval('coord.op_seq', greatest((number - 1) << 40, (SELECT last_value FROM coord.op_seq)));
  UPDATE coord.local_node
     SET incarnation = number, actor = name || '#' || number, life = DEFAULT, place = DEFAULT,
         started = DEFAULT, doubtful_since = NULL;
  UPDATE coord.state s
     SET value = CASE WHEN s.is_provisional
                      THEN coord.constraint_fold(s.value, coord.actor_provisional(n.name), n.actor)
                      ELSE s.value END,
         xid = pg_current_xact_id(), local_xid = DEFAULT, learned_from = DEFAULT,
         is_provisional = false, changed_at = DEFAULT
    FROM coord.local_node n;
  -- What others were heard to hold stays true, and is what they are told when they ask.
  UPDATE coord.peer_cursor
     SET resync = true, space = NULL, given = NULL, until = NULL, after_xid = NULL, after_name = NULL;
  UPDATE coord.report_cursor
     SET space = '', given = NULL, until = NULL, after_xid = NULL, after_name = NULL;
  UPDATE coord.roster r
     SET incarnation = n.incarnation, life = n.life, place = n.place, last_seen = clock_timestamp()
    FROM coord.local_node n
   WHERE r.name = n.name;
  INSERT INTO coord.incarnation_log (node, incarnation, life, place, event, reason)
  SELECT n.name, n.incarnation, n.life, n.place, 'begun', why FROM coord.local_node n;
END
$$;

CREATE TABLE lease (
  lease_id bigint NOT NULL GENERATED ALWAYS AS IDENTITY UNIQUE,
  epoch bigint NOT NULL CHECK (epoch > 0),
  acquired_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL,
  ttl interval NOT NULL,
  memory timestamptz NOT NULL,
  ended text COLLATE "C" CHECK (ended IN ('released', 'revoked')),
  ended_at timestamptz,
  request_id uuid,
  resource text COLLATE "C" PRIMARY KEY CHECK (octet_length(resource) BETWEEN 1 AND 255),
  holder text COLLATE "C" NOT NULL CHECK (octet_length(holder) BETWEEN 1 AND 255)
) WITH (fillfactor = 70);
COMMENT ON TABLE lease IS 'last grant of each resource; change it through coord.lease_*, look at it through coord.lease_status';
COMMENT ON COLUMN lease.lease_id IS 'names the expiry in shared memory';
COMMENT ON SEQUENCE lease_lease_id_seq IS 'numbers of leases';
COMMENT ON COLUMN lease.epoch IS 'fencing token: grows with every grant';
COMMENT ON COLUMN lease.expires_at IS 'as of the grant or the last write-back; shared memory knows better';
COMMENT ON COLUMN lease.ttl IS 'of the grant or the last write-back';
COMMENT ON COLUMN lease.memory IS 'since when the shared memory existed that the expiry was written from';
COMMENT ON COLUMN lease.ended IS 'released or revoked; NULL while the grant stands, expired or not';
COMMENT ON COLUMN lease.request_id IS 'request that the grant answered';

-- Whether the shared memory of the server's last run was written back before it ended.
CREATE TABLE lease_memory (
  memory timestamptz NOT NULL,
  predecessor_was_closed boolean NOT NULL,
  predecessor_stepped bigint NOT NULL,
  is_closed boolean NOT NULL DEFAULT false,
  stepped bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE lease_memory IS 'the shared memory that renewals were last kept in; one row';
COMMENT ON COLUMN lease_memory.memory IS 'since when it exists';
COMMENT ON COLUMN lease_memory.predecessor_was_closed IS 'the one before it was written back in full';
COMMENT ON COLUMN lease_memory.predecessor_stepped IS 'by how many microseconds the wall clock had been stepped while that one existed';
COMMENT ON COLUMN lease_memory.is_closed IS 'it has been written back in full';
COMMENT ON COLUMN lease_memory.stepped IS 'by how many microseconds the wall clock has been stepped while it existed, as of the close';
CREATE UNIQUE INDEX lease_memory_one ON lease_memory ((true));

CREATE TABLE lease_history (
  resource text COLLATE "C" NOT NULL,
  epoch bigint NOT NULL,
  event text COLLATE "C" NOT NULL CHECK (event IN ('granted', 'released', 'revoked')),
  holder text COLLATE "C" NOT NULL,
  recorded_at timestamptz NOT NULL,
  local_xid xid8 NOT NULL,
  expires_at timestamptz,
  reason text
);
-- Without an index: all grants would meet at its end.
COMMENT ON TABLE lease_history IS 'every grant, release and revocation; kept for coord.lease_history_retention';
COMMENT ON COLUMN lease_history.expires_at IS 'as granted; renewals are not recorded';
COMMENT ON COLUMN lease_history.reason IS 'of a revocation';

CREATE FUNCTION lease_keep() RETURNS trigger
  LANGUAGE c AS 'MODULE_PATHNAME', 'lease_keep_wrapper';
COMMENT ON FUNCTION lease_keep() IS 'raises 55000: no grant is removed or made another by hand; to empty the table is to begin anew';
CREATE TRIGGER lease_keep BEFORE DELETE OR UPDATE OF lease_id, epoch, ended, resource, holder ON lease
  FOR EACH ROW EXECUTE FUNCTION lease_keep();
CREATE TRIGGER lease_emptied BEFORE TRUNCATE ON lease
  FOR EACH STATEMENT EXECUTE FUNCTION lease_keep();
ALTER TABLE lease ENABLE ALWAYS TRIGGER lease_keep, ENABLE ALWAYS TRIGGER lease_emptied;
COMMENT ON TRIGGER lease_keep ON lease IS 'also for whoever may do everything';
COMMENT ON TRIGGER lease_emptied ON lease IS 'shared memory forgets, too';

SELECT pg_catalog.pg_extension_config_dump('lease', '');
SELECT pg_catalog.pg_extension_config_dump('lease_lease_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('lease_history', '');

-- What nodes say of their leases: this one of its own, written by the worker, and the others of theirs,
-- as heard. Only gossip writes here, in short transactions, so that no session holds it up.
CREATE SEQUENCE report_number;
COMMENT ON SEQUENCE report_number IS 'order of reports within a transaction';

CREATE TABLE lease_report (
  resource text COLLATE "C" NOT NULL,
  node text COLLATE "C" NOT NULL,
  holder text COLLATE "C" NOT NULL,
  epoch bigint NOT NULL CHECK (epoch > 0),
  has_ended boolean NOT NULL,
  expires_at timestamptz NOT NULL,
  heard_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  version bigint NOT NULL,
  learned_from text COLLATE "C",
  local_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
  number bigint NOT NULL DEFAULT nextval('report_number'),
  has_lapsed boolean NOT NULL DEFAULT false,
  PRIMARY KEY (resource, node)
);
COMMENT ON TABLE lease_report IS 'last grant of each resource on each node, as the node reported it';
COMMENT ON COLUMN lease_report.node IS 'the node that granted it';
COMMENT ON COLUMN lease_report.has_ended IS 'it was released or revoked';
COMMENT ON COLUMN lease_report.expires_at IS 'by the lease clock of this node';
COMMENT ON COLUMN lease_report.heard_at IS 'when this was heard here, or reported for a lease of this node';
COMMENT ON COLUMN lease_report.version IS 'grows with every report of the node about the resource';
COMMENT ON COLUMN lease_report.learned_from IS 'peer that passed it on; NULL for a lease of this node';
COMMENT ON COLUMN lease_report.has_lapsed IS 'the node has left or was removed: what it said until then holds up nobody, until it says so again';
CREATE INDEX lease_report_local_xid ON lease_report (local_xid, number);

-- Reports that nothing has changed write nothing.
CREATE FUNCTION lease_report_own(resources text[]) RETURNS bigint
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  WITH reported AS (
    INSERT INTO coord.lease_report AS r (resource, node, holder, epoch, has_ended, expires_at, version)
    SELECT l.resource, n.name, l.holder, l.epoch, l.ended IS NOT NULL, e.expires_at,
           (extract(epoch FROM coord.lease_now()) * 1000000)::bigint
      FROM coord.lease l
     CROSS JOIN coord.local_node n
     CROSS JOIN LATERAL coord.lease_expires_at(l.resource, l.lease_id, l.epoch, l.expires_at, l.ttl, l.memory) e(expires_at)
     WHERE l.resource = ANY (resources)
       AND NOT EXISTS (SELECT FROM coord.lease_report k
                        WHERE (k.resource, k.node) = (l.resource, n.name)
                          AND (k.holder, k.epoch, k.has_ended, k.expires_at) = (l.holder, l.epoch, l.ended IS NOT NULL, e.expires_at))
     ORDER BY l.resource
    ON CONFLICT ON CONSTRAINT lease_report_pkey DO UPDATE
       SET holder = excluded.holder, epoch = excluded.epoch, has_ended = excluded.has_ended,
           expires_at = excluded.expires_at, heard_at = DEFAULT, version = greatest(excluded.version, r.version + 1),
           learned_from = NULL, local_xid = DEFAULT, number = DEFAULT
    RETURNING 1)
  SELECT count(*) FROM reported
$$;
COMMENT ON FUNCTION lease_report_own(text[]) IS 'reports leases of this node to the mesh; returns how many reports are new';

CREATE TYPE lease_grant AS (resource text, holder text, epoch bigint, expires_at timestamptz);
COMMENT ON TYPE lease_grant IS 'a lease as its holder knows it';

CREATE FUNCTION lease_acquire(resource text, holder text, ttl interval, request_id uuid DEFAULT NULL,
                              max_wait interval DEFAULT '0', terminate_writers boolean DEFAULT false)
  RETURNS lease_grant
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'lease_acquire_wrapper';
COMMENT ON FUNCTION lease_acquire(text, text, interval, uuid, interval, boolean) IS 'grants a lease with a new epoch; 55P03 while another holder has it, 55000 while one has it on another node';

CREATE FUNCTION lease_try_acquire(resource text, holder text, ttl interval, request_id uuid DEFAULT NULL)
  RETURNS lease_grant
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'lease_try_acquire_wrapper';
COMMENT ON FUNCTION lease_try_acquire(text, text, interval, uuid) IS 'lease_acquire that returns NULL where the other says that the lease is held';

CREATE FUNCTION lease_renew(resource text, holder text, epoch bigint, ttl interval) RETURNS timestamptz
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'lease_renew_wrapper';
COMMENT ON FUNCTION lease_renew(text, text, bigint, interval) IS 'moves the expiry of a lease to ttl from now, at once and without waiting for the disk; 55000 when the lease is lost';

CREATE FUNCTION lease_renew_all(holder text, epochs jsonb, ttl interval)
  RETURNS TABLE (resource text, epoch bigint, expires_at timestamptz, refusal text)
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'lease_renew_all_wrapper';
COMMENT ON FUNCTION lease_renew_all(text, jsonb, interval) IS 'renews many leases, given as {"resource": epoch}; a lease that cannot be renewed has a refusal and no expiry';

CREATE FUNCTION lease_release(resource text, holder text, epoch bigint) RETURNS boolean
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'lease_release_wrapper';
COMMENT ON FUNCTION lease_release(text, text, bigint) IS 'gives a lease back; 55000 when it is lost';

CREATE FUNCTION lease_release_all(holder text) RETURNS bigint
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'lease_release_all_wrapper';
COMMENT ON FUNCTION lease_release_all(text) IS 'gives back every lease of a holder; returns how many';

CREATE FUNCTION lease_revoke(resource text, reason text) RETURNS boolean
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'lease_revoke_wrapper';
COMMENT ON FUNCTION lease_revoke(text, text) IS 'ends a grant of this node whoever has it, expired or not; false when it has ended already';

CREATE TYPE lease_holding AS (resource text, holder text, epoch bigint, expires_at timestamptz, node text, heard_at timestamptz);
COMMENT ON TYPE lease_holding IS 'a lease as anybody knows it: node and heard_at are NULL unless another node granted it';

CREATE FUNCTION lease_current(resource text) RETURNS lease_holding
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'lease_current_wrapper';
COMMENT ON FUNCTION lease_current(text) IS 'who holds a lease now, here or by hearsay elsewhere; NULL when it is free or expired';

CREATE FUNCTION lease_memory_is_open() RETURNS boolean
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'lease_memory_is_open_wrapper';
COMMENT ON FUNCTION lease_memory_is_open() IS 'whether renewals stay in shared memory; else they are written to the table and wait for the disk';

CREATE FUNCTION lease_now() RETURNS timestamptz
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'lease_now_wrapper';
COMMENT ON FUNCTION lease_now() IS 'the clock that leases expire by: wall clock at server start, and monotonic from there';

CREATE FUNCTION lease_expires_at(resource text, lease_id bigint, epoch bigint, expires_at timestamptz, ttl interval, memory timestamptz)
  RETURNS timestamptz
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'lease_expires_at_wrapper';
COMMENT ON FUNCTION lease_expires_at(text, bigint, bigint, timestamptz, interval, timestamptz) IS 'when a row of coord.lease expires by what shared memory knows';

CREATE FUNCTION lease_lock(resource text, OUT classid oid, OUT objid oid) RETURNS record
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'lease_lock_wrapper';
COMMENT ON FUNCTION lease_lock(text) IS 'where pg_locks has the locks of a lease';

-- objsubid: 1 the lease, 2 all leases of the database (a writer of more than 64), 3 the queue. A prepared
-- transaction is found by the lock of its number, which it holds beside the others.
CREATE VIEW lease_locker AS
  SELECT l.classid, l.objid, l.objsubid AS kind, l.pid, p.gid AS prepared, l.granted, l.mode, l.waitstart
    FROM pg_catalog.pg_locks l
    LEFT JOIN (pg_catalog.pg_prepared_xacts p
               JOIN pg_catalog.pg_locks x ON x.locktype = 'transactionid' AND x.transactionid = p.transaction
                                         AND x.pid IS NULL AND x.granted)
      ON l.pid IS NULL AND x.virtualtransaction = l.virtualtransaction
   WHERE l.locktype = 'userlock' AND l.objsubid <= 3
     AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database());
COMMENT ON VIEW lease_locker IS 'sessions and prepared transactions with a lock of a lease';
COMMENT ON COLUMN lease_locker.kind IS '1 lock of a lease, 2 lock of all leases, 3 place in the queue of acquirers';

CREATE VIEW lease_status AS
  WITH lockers AS MATERIALIZED (SELECT * FROM coord.lease_locker)
  SELECT l.resource,
         CASE WHEN l.ended IS NOT NULL THEN 'free'
              WHEN e.expires_at <= coord.lease_now() THEN 'expired'
              ELSE 'held' END AS state,
         l.holder, l.epoch, l.acquired_at, e.expires_at,
         CASE WHEN l.ended IS NULL THEN greatest(e.expires_at - coord.lease_now(), interval '0') END AS time_left,
         (SELECT count(DISTINCT k.pid) FROM lockers k
           WHERE k.classid = t.classid AND k.objid = t.objid AND NOT k.granted
             AND (k.kind = 3 OR k.kind = 1 AND k.mode = 'AccessExclusiveLock')) AS waiters,
         (SELECT count(DISTINCT (k.pid, k.prepared)) FROM lockers k
           WHERE k.granted AND (k.kind = 1 AND k.classid = t.classid AND k.objid = t.objid AND k.mode = 'RowShareLock'
                                OR k.kind = 2 AND k.mode = 'ShareLock')) AS writers,
         l.ended, l.ended_at
    FROM coord.lease l
   CROSS JOIN LATERAL (SELECT coord.lease_expires_at(l.resource, l.lease_id, l.epoch, l.expires_at, l.ttl, l.memory) AS expires_at) e
   CROSS JOIN LATERAL coord.lease_lock(l.resource) t;
COMMENT ON VIEW lease_status IS 'every lease there ever was: held, expired or free';
COMMENT ON COLUMN lease_status.holder IS 'of the last grant';
COMMENT ON COLUMN lease_status.expires_at IS 'by coord.lease_now(), renewals included';
COMMENT ON COLUMN lease_status.waiters IS 'sessions that wait to acquire it, beside the one at the head of the queue';
COMMENT ON COLUMN lease_status.writers IS 'transactions in flight that wrote under it or may have, prepared ones included';

CREATE FUNCTION lease_blocker(resource text) RETURNS TABLE (is_acquirer boolean, pid integer, prepared text)
  LANGUAGE sql VOLATILE STRICT SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  BEGIN ATOMIC
    SELECT DISTINCT k.kind = 3 OR k.mode = 'AccessExclusiveLock', k.pid, k.prepared
      FROM coord.lease_locker k, coord.lease_lock($1) t
     WHERE k.granted AND k.pid IS DISTINCT FROM pg_backend_pid() AND k.pid IS DISTINCT FROM coord.gossip_worker()
       AND (k.kind IN (1, 3) AND k.classid = t.classid AND k.objid = t.objid OR k.kind = 2 AND k.mode = 'ShareLock')
     ORDER BY 2, 3, 1;
  END;
COMMENT ON FUNCTION lease_blocker(text) IS 'sessions and prepared transactions that a takeover of the lease waits for, but for the worker, which writes back renewals in a moment';

-- What a session may not terminate, it is not asked to.
CREATE FUNCTION lease_writers_terminate(resource text) RETURNS bigint
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  BEGIN ATOMIC
    SELECT count(*)
      FROM coord.lease_blocker($1) b
      JOIN pg_stat_activity a ON a.pid = b.pid
     WHERE NOT b.is_acquirer AND a.usesysid IS NOT NULL
       AND (pg_has_role(a.usesysid, 'MEMBER') OR pg_has_role('pg_signal_backend', 'MEMBER')
                                                 AND NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.oid = a.usesysid))
       AND pg_terminate_backend(b.pid);
  END;
COMMENT ON FUNCTION lease_writers_terminate(text) IS 'terminates the sessions in flight with writes under the lease';

-- Fencing

CREATE FUNCTION fence(resource text, epoch bigint) RETURNS void
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'fence_wrapper';
COMMENT ON FUNCTION fence(text, bigint) IS 'passes only while the epoch is current and not expired, else 23514; until the transaction ends nobody else can be granted the lease';

CREATE FUNCTION fence_set(resource text, epoch bigint) RETURNS void
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'fence_set_wrapper';
COMMENT ON FUNCTION fence_set(text, bigint) IS 'the token that this transaction writes to protected tables with; checked at once, as by coord.fence';

CREATE FUNCTION fence_guard() RETURNS trigger
  LANGUAGE c AS 'MODULE_PATHNAME', 'fence_guard_wrapper';
COMMENT ON FUNCTION fence_guard() IS 'checks a write to a protected table; placed by coord.protect_table';

-- The triggers are all there is: what a table is protected by is read back from their arguments, so
-- it is dumped, restored, cloned to partitions and dropped with the table.
CREATE FUNCTION fence_guard_arguments(arguments bytea, OUT resource text, OUT resource_column text, OUT epoch_column text)
  RETURNS record
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fence_guard_arguments_wrapper';
COMMENT ON FUNCTION fence_guard_arguments(bytea) IS 'arguments of a trigger of coord.fence_guard, as pg_trigger.tgargs has them';

CREATE FUNCTION fence_refusals(target oid) RETURNS bigint
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'fence_refusals_wrapper';
COMMENT ON FUNCTION fence_refusals(oid) IS 'writes to a protected table refused since the server started; NULL when not preloaded';

CREATE VIEW protected_table AS
  SELECT c.oid::regclass AS target, a.resource, a.resource_column::name, a.epoch_column::name,
         bool_and(t.tgenabled = 'A') AND count(*) FILTER (WHERE t.tgname = 'coord_fence_truncate') = 1 AS is_complete,
         coord.fence_refusals(c.oid) AS refusals
    FROM pg_catalog.pg_trigger t
    JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
   CROSS JOIN LATERAL coord.fence_guard_arguments(t.tgargs) a
   WHERE t.tgfoid = 'coord.fence_guard()'::regprocedure
   GROUP BY c.oid, a.resource, a.resource_column, a.epoch_column;
COMMENT ON VIEW protected_table IS 'tables whose writes are checked against a lease, partitions and children included';
COMMENT ON COLUMN protected_table.is_complete IS 'all its triggers are there and always fire; a partition attached later has no check of TRUNCATE until its parent is protected again';
COMMENT ON COLUMN protected_table.refusals IS 'writes refused since the server started; NULL when not preloaded';

CREATE FUNCTION table_family(target regclass) RETURNS TABLE (oid oid, depth integer)
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  BEGIN ATOMIC
    WITH RECURSIVE family (oid, depth) AS (
      SELECT target::oid, 0
      UNION
      SELECT i.inhrelid, f.depth + 1 FROM pg_inherits i JOIN family f ON i.inhparent = f.oid)
    SELECT f.oid, max(f.depth) FROM family f GROUP BY f.oid;
  END;
COMMENT ON FUNCTION table_family(regclass) IS 'a table with its partitions and children, and how far below they are';

CREATE FUNCTION protect_column_check(target regclass, column_name name, types regtype[]) RETURNS void
  LANGUAGE plpgsql STABLE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  column_type regtype;
BEGIN
  IF column_name IS NULL THEN
    RETURN;
  END IF;
  SELECT a.atttypid INTO column_type FROM pg_attribute a
   WHERE a.attrelid = target AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped;
  IF NOT FOUND THEN
    RAISE EXCEPTION USING errcode = '42703', message = format('column "%s" of table %s does not exist', column_name, target);
  ELSIF column_type <> ALL (types) THEN
    RAISE EXCEPTION USING errcode = '42804', message = format('column "%s" of table %s is of type %s', column_name, target, column_type),
      detail = format('Its type must be %s.', array_to_string(types, ' or '));
  END IF;
END
$$;
COMMENT ON FUNCTION protect_column_check(regclass, name, regtype[]) IS 'refuses a column that cannot name a resource or an epoch';

CREATE FUNCTION unprotect_table(target regclass) RETURNS void
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  guard record;
BEGIN
  FOR guard IN
    SELECT t.tgname, t.tgrelid::regclass AS name
      FROM coord.table_family(target) f JOIN pg_trigger t ON t.tgrelid = f.oid
     WHERE t.tgfoid = 'coord.fence_guard()'::regprocedure AND t.tgparentid = 0
     ORDER BY f.depth, t.tgname
  LOOP
    EXECUTE format('DROP TRIGGER %I ON %s', guard.tgname, guard.name);
  END LOOP;
END
$$;
COMMENT ON FUNCTION unprotect_table(regclass) IS 'writes to a table, its partitions and children are checked no more';

CREATE FUNCTION protect_table(target regclass, resource text DEFAULT NULL, resource_column name DEFAULT NULL, epoch_column name DEFAULT NULL)
  RETURNS void
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  part record;
  arguments text := format('%L, %L, %L', coalesce(resource, ''), coalesce(resource_column, ''), coalesce(epoch_column, ''));
  -- What a row says counts as it is stored, after every trigger that can change it.
  timing text := CASE WHEN resource IS NULL OR epoch_column IS NOT NULL THEN 'AFTER' ELSE 'BEFORE' END;
  -- Rows that bring their tokens are checked one by one; only DELETE has none to bring.
  operations text := CASE WHEN epoch_column IS NULL THEN 'INSERT OR UPDATE OR DELETE' ELSE 'DELETE' END;
BEGIN
  IF target IS NULL OR num_nonnulls(resource, resource_column) <> 1 THEN
    RAISE EXCEPTION USING errcode = '22023', message = 'a protected table needs a resource or a column that names it',
      detail = 'Exactly one of resource and resource_column is to be given.';
  END IF;
  IF octet_length(resource) NOT BETWEEN 1 AND 255 THEN
    RAISE EXCEPTION USING errcode = '22023', message = 'invalid name of a resource',
      detail = 'A name has 1 to 255 bytes.';
  END IF;
  PERFORM coord.protect_column_check(target, resource_column, ARRAY['text', 'varchar']::regtype[]);
  PERFORM coord.protect_column_check(target, epoch_column, ARRAY['bigint']::regtype[]);
  PERFORM coord.unprotect_table(target);
  -- Partitions inherit triggers for rows, children do not; nobody inherits triggers for statements.
  FOR part IN
    SELECT c.oid::regclass AS name, c.relkind, c.relispartition AND c.oid <> target AS is_partition
      FROM coord.table_family(target) f JOIN pg_class c ON c.oid = f.oid
     ORDER BY f.depth, c.oid
  LOOP
    IF part.relkind NOT IN ('r', 'p') THEN
      RAISE EXCEPTION USING errcode = '42809', message = format('"%s" cannot be protected', part.name),
        detail = 'Only tables and partitioned tables hold rows that a lease can protect.';
    END IF;
    EXECUTE format('CREATE TRIGGER coord_fence_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION coord.fence_guard(%s)', part.name, arguments);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER coord_fence_truncate', part.name);
    IF resource IS NOT NULL THEN
      EXECUTE format('CREATE TRIGGER coord_fence_statement BEFORE %s ON %s FOR EACH STATEMENT EXECUTE FUNCTION coord.fence_guard(%s)', operations, part.name, arguments);
      EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER coord_fence_statement', part.name);
    END IF;
    IF NOT part.is_partition THEN
      EXECUTE format('CREATE TRIGGER coord_fence %s INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION coord.fence_guard(%s)', timing, part.name, arguments);
      EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER coord_fence', part.name);
    END IF;
  END LOOP;
END
$$;
COMMENT ON FUNCTION protect_table(regclass, text, name, name) IS 'every write to a table is checked against a lease: of one resource, or of the one that a column of the row names';

REVOKE ALL ON FUNCTION
  lease_acquire(text, text, interval, uuid, interval, boolean), lease_try_acquire(text, text, interval, uuid),
  lease_renew(text, text, bigint, interval), lease_renew_all(text, jsonb, interval),
  lease_release(text, text, bigint), lease_release_all(text), lease_revoke(text, text),
  lease_current(text), lease_now(), lease_memory_is_open(), lease_expires_at(text, bigint, bigint, timestamptz, interval, timestamptz),
  lease_lock(text), lease_blocker(text), lease_writers_terminate(text), lease_report_own(text[]),
  lease_keep(), fence(text, bigint), fence_set(text, bigint), fence_guard(), fence_guard_arguments(bytea), fence_refusals(oid),
  table_family(regclass), protect_column_check(regclass, name, regtype[]),
  protect_table(regclass, text, name, name), unprotect_table(regclass) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
  lease_acquire(text, text, interval, uuid, interval, boolean), lease_try_acquire(text, text, interval, uuid),
  lease_renew(text, text, bigint, interval), lease_renew_all(text, jsonb, interval),
  lease_release(text, text, bigint), lease_release_all(text),
  lease_current(text), lease_blocker(text), lease_writers_terminate(text), fence(text, bigint), fence_set(text, bigint), fence_guard(),
  table_family(regclass), protect_column_check(regclass, name, regtype[]),
  protect_table(regclass, text, name, name), unprotect_table(regclass) TO coord_agent;
GRANT EXECUTE ON FUNCTION lease_current(text), lease_now(), lease_memory_is_open(), lease_lock(text),
  lease_expires_at(text, bigint, bigint, timestamptz, interval, timestamptz),
  fence_guard_arguments(bytea), fence_refusals(oid) TO coord_monitor;
GRANT SELECT ON lease, lease_history, lease_report, lease_locker, lease_status, protected_table TO coord_monitor;

CREATE TABLE intent (
  agent text COLLATE "C" NOT NULL,
  run_id text COLLATE "C" NOT NULL,
  scope text COLLATE "C" NOT NULL,
  attempt integer NOT NULL DEFAULT 1 CHECK (attempt > 0),
  epoch bigint NOT NULL CHECK (epoch > 0),
  holder text COLLATE "C" NOT NULL,
  status text COLLATE "C" NOT NULL CHECK (status IN ('pending', 'failed', 'committed')),
  recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  op_id text COLLATE "C" NOT NULL,
  hlc hlc,
  PRIMARY KEY (agent, run_id, scope)
);
COMMENT ON TABLE intent IS 'what every run has come to; recorded by coord.intent_record';
COMMENT ON COLUMN intent.attempt IS 'how often the run was begun: again after it failed, and under a later epoch';
COMMENT ON COLUMN intent.epoch IS 'of the agent''s lease, under which this was recorded';
CREATE INDEX intent_unlogged ON intent (agent) WHERE hlc IS NULL;
COMMENT ON COLUMN intent.op_id IS 'names the record: the operation it comes from';
COMMENT ON COLUMN intent.hlc IS 'stamp of that operation; NULL for what was recorded while the database was no node, or without preloading';

-- What comes from the log is folded from it again.
SELECT pg_catalog.pg_extension_config_dump('intent', 'WHERE hlc IS NULL');

CREATE FUNCTION intent_check(agent text, run_id text, holder text, epoch bigint, status text, scope text) RETURNS boolean
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'intent_check_wrapper';
COMMENT ON FUNCTION intent_check(text, text, text, bigint, text, text) IS 'whether records go to the operation log; raises 22023 for what cannot be recorded';

CREATE FUNCTION intent_rank(status text, epoch bigint, hlc hlc, op_id text) RETURNS bytea
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'intent_rank_wrapper';
COMMENT ON FUNCTION intent_rank(text, bigint, hlc, text) IS 'of several records of a run the lowest stays: the first that says committed, else the last by epoch and stamp';

CREATE FUNCTION intent_is_whole(payload text) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'intent_is_whole_wrapper';
COMMENT ON FUNCTION intent_is_whole(text) IS 'whether the payload of an operation is the record of a run';

CREATE FUNCTION intent_is_admissible(payload text) RETURNS boolean
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'intent_is_admissible_wrapper';
COMMENT ON FUNCTION intent_is_admissible(text) IS 'true, or 22023 for the record of a run that intent_record would refuse';

-- A version byte, then every field with its length before it: what differs in any field differs here.
CREATE FUNCTION intent_op_id(VARIADIC fields text[]) RETURNS text
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN 'op-' || left(encode(sha256(
    (SELECT '\x01'::bytea || string_agg(int4send(octet_length(f.field)) || convert_to(f.field, 'UTF8'), ''::bytea ORDER BY f.place)
       FROM unnest(fields) WITH ORDINALITY f(field, place))), 'hex'), 32);
COMMENT ON FUNCTION intent_op_id(text[]) IS 'name of a record that is not in the operation log: 32 hexadecimal digits of SHA-256 over its fields';

CREATE FUNCTION intent_stamp(at timestamptz) RETURNS hlc
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN coord.hlc(at, (extract(microseconds FROM at AT TIME ZONE 'UTC')::bigint % 1000)::integer);
COMMENT ON FUNCTION intent_stamp(timestamptz) IS 'stamp of a record that is not in the operation log';

-- A newer record takes the place of an older one, whichever comes first. One that is not in the log gives way
-- to the operation that puts it there.
CREATE FUNCTION intent_put(record intent) RETURNS void
  LANGUAGE sql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  INSERT INTO coord.intent AS i SELECT (record).*
  ON CONFLICT ON CONSTRAINT intent_pkey DO UPDATE
     SET attempt = excluded.attempt, epoch = excluded.epoch, holder = excluded.holder, status = excluded.status,
         recorded_at = excluded.recorded_at, op_id = excluded.op_id, hlc = excluded.hlc
   WHERE (i.hlc IS NULL AND (excluded.attempt, excluded.epoch, excluded.holder, excluded.status) = (i.attempt, i.epoch, i.holder, i.status))
      OR coord.intent_rank(excluded.status, excluded.epoch, coalesce(excluded.hlc, coord.intent_stamp(excluded.recorded_at)), excluded.op_id)
         < coord.intent_rank(i.status, i.epoch, coalesce(i.hlc, coord.intent_stamp(i.recorded_at)), i.op_id)
$$;
COMMENT ON FUNCTION intent_put(intent) IS 'keeps a record of a run if it is the one to be kept';

CREATE FUNCTION intent_payload(record intent) RETURNS jsonb
  LANGUAGE sql STABLE
  RETURN jsonb_build_object('agent', record.agent, 'run_id', record.run_id, 'holder', record.holder, 'epoch', record.epoch,
                            'status', record.status, 'attempt', record.attempt);
COMMENT ON FUNCTION intent_payload(intent) IS 'payload of the operation that a record is';

-- What is said under a later epoch counts for more than anything said under an earlier one. That a run
-- is committed counts whoever says it, and for ever: it has happened.
CREATE FUNCTION intent_refusal(known intent, epoch bigint, status text) RETURNS jsonb
  LANGUAGE sql STABLE
  RETURN CASE WHEN status = 'committed' THEN NULL
              WHEN known.status = 'committed' THEN jsonb_build_object('recorded', false, 'reason', 'run already committed (terminal guard)')
              WHEN known.epoch > epoch THEN jsonb_build_object('recorded', false, 'reason', format('superseded by epoch %s', known.epoch)) END;
COMMENT ON FUNCTION intent_refusal(intent, bigint, text) IS 'why a record counts for nothing beside the one that is known; NULL when it counts';

CREATE FUNCTION intent_record(agent text, run_id text, holder text, epoch bigint, status text, scope text DEFAULT 'personal')
  RETURNS jsonb
  LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  is_logged boolean := coord.intent_check($1, $2, $3, $4, $5, $6);
  known coord.intent;
  given coord.intent;
  refusal jsonb;
BEGIN
  SELECT i.* INTO known FROM coord.intent i WHERE (i.agent, i.run_id, i.scope) = ($1, $2, $6) FOR UPDATE;
  refusal := coord.intent_refusal(known, $4, $5);
  IF refusal IS NOT NULL THEN
    RETURN refusal;
  ELSIF known.status = 'committed' OR known.status = $5 AND known.epoch = $4 THEN
    RETURN jsonb_build_object('recorded', true, 'op_id', known.op_id);
  END IF;
  given := ROW($1, $2, $6, 1, $4, $3, $5, clock_timestamp(), '', NULL);
  IF known.agent IS NOT NULL THEN
    given.attempt := known.attempt + ($5 = 'pending' AND (known.status = 'failed' OR $4 > known.epoch))::integer;
  END IF;
  IF is_logged THEN
    given.op_id := coord.op_append($6, 'intent', coord.intent_payload(given)) ->> 'op_id';
  ELSE
    given.op_id := coord.intent_op_id($6, $1, $2, given.attempt::text, $4::text, $3, $5);
    PERFORM coord.intent_put(given);
  END IF;
  -- Another session may have begun the same run at the same moment.
  SELECT i.* INTO STRICT known FROM coord.intent i WHERE (i.agent, i.run_id, i.scope) = ($1, $2, $6);
  RETURN coalesce(coord.intent_refusal(known, $4, $5), jsonb_build_object('recorded', true, 'op_id',
    CASE WHEN known.status = 'committed' THEN known.op_id ELSE given.op_id END));
END
$$;
COMMENT ON FUNCTION intent_record(text, text, text, bigint, text, text) IS 'records what a run has come to: pending, failed or committed';

CREATE FUNCTION intent_log() RETURNS bigint
  LANGUAGE sql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  SELECT count(coord.op_append(i.scope, 'intent', coord.intent_payload(i))) FROM coord.intent i WHERE i.hlc IS NULL
$$;
COMMENT ON FUNCTION intent_log() IS 'puts records into the operation log that were made before there was one; returns how many there were';

CREATE FUNCTION fence_check(agent text, run_id text, holder text, epoch bigint) RETURNS jsonb
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'fence_check_wrapper';
COMMENT ON FUNCTION fence_check(text, text, text, bigint) IS 'whether a holder may dispatch a run of an agent, and if not why';

REVOKE ALL ON FUNCTION intent_check(text, text, text, bigint, text, text),
  intent_record(text, text, text, bigint, text, text), fence_check(text, text, text, bigint),
  intent_op_id(text[]), intent_rank(text, bigint, hlc, text), intent_is_whole(text), intent_is_admissible(text),
  intent_put(intent), intent_refusal(intent, bigint, text), intent_payload(intent), intent_stamp(timestamptz), intent_log() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION intent_record(text, text, text, bigint, text, text), fence_check(text, text, text, bigint)
  TO coord_agent;
GRANT SELECT ON intent TO coord_monitor;

-- The operation log, as in oplog.sql, fold.sql and conversation.sql; streams, as in stream.sql; reports, as in report.sql; retention, as in retention.sql.

ALTER TABLE ack ADD COLUMN op_frontier vclock NOT NULL DEFAULT '{}';
COMMENT ON COLUMN ack.op_frontier IS 'it holds every operation below';
COMMENT ON COLUMN ack.frontier IS 'it holds every change of a state below';

CREATE FUNCTION hlc_milliseconds(stamp hlc) RETURNS bigint
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_milliseconds_wrapper';
COMMENT ON FUNCTION hlc_milliseconds(hlc) IS 'time of a stamp, in milliseconds since 1970';

CREATE SEQUENCE op_seq;
COMMENT ON SEQUENCE op_seq IS 'numbers of the operations appended on this node';

CREATE TABLE op (
  origin text COLLATE "C" NOT NULL,
  seq bigint NOT NULL CHECK (seq > 0),
  xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
  local_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
  hlc hlc NOT NULL,
  op_id text COLLATE "C" NOT NULL,
  scope text COLLATE "C" NOT NULL,
  surface text COLLATE "C" NOT NULL,
  payload jsonb NOT NULL,
  recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  tenant_id uuid,
  PRIMARY KEY (origin, seq)
) PARTITION BY RANGE (seq);
COMMENT ON TABLE op IS 'operations appended anywhere in the mesh; append with coord.op_append';
COMMENT ON COLUMN op.origin IS 'the actor that appended it';
COMMENT ON COLUMN op.seq IS 'its number there; numbers of transactions that were rolled back are missing';
COMMENT ON COLUMN op.xid IS 'its transaction there';
COMMENT ON COLUMN op.local_xid IS 'the transaction that brought it here';
COMMENT ON COLUMN op.op_id IS 'SHA-256 of what it says, by coord.op_id';
COMMENT ON COLUMN op.recorded_at IS 'time of the origin''s clock; orders nothing';
CREATE TABLE op_default PARTITION OF op DEFAULT;
COMMENT ON TABLE op_default IS 'operations that no other partition is for';
CREATE INDEX op_op_id ON op (op_id);
CREATE INDEX op_local_xid ON op (local_xid, seq);

SELECT pg_catalog.pg_extension_config_dump('op_seq', '');
-- Partitions come and go. A dump has the log in one piece, and what is restored goes to where it belongs there.
CREATE TABLE op_dumped (LIKE op INCLUDING DEFAULTS);
COMMENT ON TABLE op_dumped IS 'the operation log, as a dump has it; always empty';
SELECT pg_catalog.pg_extension_config_dump('op_dumped', 'WHERE false UNION ALL SELECT o.* FROM coord.op o');

CREATE FUNCTION op_restore() RETURNS trigger
  LANGUAGE plpgsql
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  INSERT INTO coord.op VALUES (NEW.*);
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION op_restore() IS 'puts an operation of a dump into the log';
CREATE TRIGGER op_restore BEFORE INSERT ON op_dumped FOR EACH ROW EXECUTE FUNCTION op_restore();
ALTER TABLE op_dumped ENABLE ALWAYS TRIGGER op_restore;
COMMENT ON TRIGGER op_restore ON op_dumped IS 'nothing stays there';

CREATE TABLE conflict (
  origin text COLLATE "C" NOT NULL,
  seq bigint NOT NULL,
  op_id text COLLATE "C" NOT NULL,
  reason text NOT NULL CHECK (reason IN ('fork', 'malformed', 'clock', 'quarantined', 'refused')),
  detail text,
  op jsonb NOT NULL,
  detected_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (origin, seq, op_id)
);
COMMENT ON TABLE conflict IS 'operations that arrived and were not admitted into the log, and rows that a table refused';
COMMENT ON COLUMN conflict.reason IS 'fork: another operation has this number; malformed; clock: stamped too far ahead; quarantined: the origin is; refused: by the table that the row is for';

-- What is to be admitted later is looked for by every exchange and every second.
CREATE INDEX conflict_held ON conflict (origin, ((op ->> 'xid')::bigint)) WHERE reason IN ('clock', 'quarantined');
CREATE INDEX conflict_clock ON conflict (origin) WHERE reason = 'clock';

CREATE TABLE quarantine (
  origin text COLLATE "C" PRIMARY KEY,
  reason text NOT NULL,
  since timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE quarantine IS 'origins of which nothing more is admitted, until coord.quarantine_release';

SELECT pg_catalog.pg_extension_config_dump('conflict', '');
SELECT pg_catalog.pg_extension_config_dump('quarantine', '');

-- What an operation says, and what it is called by.

CREATE FUNCTION op_id(origin text, seq bigint, hlc hlc, scope text, surface text, payload text, tenant_id text) RETURNS text
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'op_id_wrapper';
COMMENT ON FUNCTION op_id(text, bigint, hlc, text, text, text, text) IS 'name of an operation: 32 hexadecimal digits of SHA-256 over its fields';

CREATE FUNCTION op_id(op op) RETURNS text
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN coord.op_id(op.origin, op.seq, op.hlc, op.scope, op.surface, op.payload::text, coalesce(op.tenant_id::text, ''));
COMMENT ON FUNCTION op_id(op) IS 'name that an operation should have, by what it says';

CREATE FUNCTION op_hash(payload text) RETURNS text
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'op_hash_wrapper';
COMMENT ON FUNCTION op_hash(text) IS 'SHA-256 of a text, in hexadecimal';

CREATE FUNCTION op_key(surface text, payload jsonb) RETURNS text
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN CASE surface WHEN 'conversation' THEN coalesce(payload ->> 'conversation_id', '')
                      WHEN 'routing' THEN ''
                      WHEN 'row' THEN coalesce(payload ->> 'stream', '')
                      ELSE coalesce(payload ->> 'id', coord.op_hash(payload::text)) END;
COMMENT ON FUNCTION op_key(text, jsonb) IS 'what an operation is about: its conversation or stream, or the id of its payload, or a hash of that';

CREATE FUNCTION op_check(scope text, surface text, key text, size integer) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'op_check_wrapper';
COMMENT ON FUNCTION op_check(text, text, text, integer) IS 'true, or an error for what cannot be appended';

CREATE FUNCTION op_required(part text) RETURNS jsonb
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'op_required_wrapper';
COMMENT ON FUNCTION op_required(text) IS 'raises 22023: an operation lacks this part';

CREATE FUNCTION op_parse(ops jsonb, OUT scope text, OUT surface text, OUT key text, OUT payload jsonb, OUT tenant_id uuid, OUT content text)
  RETURNS SETOF record
  LANGUAGE sql VOLATILE STRICT
  BEGIN ATOMIC
    SELECT g.*
      FROM (SELECT p.scope, p.surface, coord.op_key(p.surface, p.payload) AS key, p.payload, p.tenant_id, p.payload::text AS content
              FROM (SELECT coalesce(e.op ->> 'scope', coord.op_required('scope') #>> '{}') AS scope,
                           coalesce(e.op ->> 'surface', coord.op_required('surface') #>> '{}') AS surface,
                           coalesce(e.op -> 'payload', coord.op_required('payload')) AS payload,
                           (e.op ->> 'tenant_id')::uuid AS tenant_id
                      FROM jsonb_array_elements(ops) AS e(op)) p
            OFFSET 0) g
     WHERE coord.op_check(g.scope, g.surface, g.key, octet_length(g.content))
       AND (g.surface <> 'intent' OR coord.intent_is_admissible(g.content));
  END;
COMMENT ON FUNCTION op_parse(jsonb) IS 'operations of an array, checked, in its order';

CREATE FUNCTION op_receipt(op op) RETURNS jsonb
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN jsonb_build_object('op_id', op.op_id, 'seq', op.seq, 'hlc', jsonb_build_object(
    'wall_ms', coord.hlc_milliseconds(op.hlc), 'counter', coord.hlc_counter(op.hlc), 'device_id', op.origin));
COMMENT ON FUNCTION op_receipt(op) IS 'what whoever appended an operation is told';

-- Appending.

CREATE FUNCTION op_append(scope text, surface text, payload jsonb) RETURNS jsonb
  LANGUAGE c VOLATILE SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  AS 'MODULE_PATHNAME', 'op_append_wrapper';
COMMENT ON FUNCTION op_append(text, text, jsonb) IS 'appends an operation; returns its op_id, seq and hlc';

CREATE FUNCTION op_append_many(ops jsonb) RETURNS jsonb
  LANGUAGE c VOLATILE SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  AS 'MODULE_PATHNAME', 'op_append_many_wrapper';
COMMENT ON FUNCTION op_append_many(jsonb) IS 'appends an array of {scope, surface, payload, tenant_id}; returns an array of what op_append returns';

CREATE FUNCTION op_append_own(scope text, surface text, payload jsonb) RETURNS void
  LANGUAGE c VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  AS 'MODULE_PATHNAME', 'op_append_own_wrapper';
COMMENT ON FUNCTION op_append_own(text, text, jsonb) IS 'appends what this node says to the others by itself';

-- Arriving. What cannot be admitted is kept beside the log and stops nobody.

CREATE FUNCTION op_is_from_elsewhere() RETURNS boolean
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'op_is_from_elsewhere_wrapper';
COMMENT ON FUNCTION op_is_from_elsewhere() IS 'whether operations are being put into the log by others than op_append';

CREATE FUNCTION op_is_single() RETURNS boolean
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'op_is_single_wrapper';
COMMENT ON FUNCTION op_is_single() IS 'whether operations are being folded one by one';

CREATE FUNCTION op_origin_lock(origin text) RETURNS void
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'op_origin_lock_wrapper';
COMMENT ON FUNCTION op_origin_lock(text) IS 'keeps others from bringing operations of an origin until the transaction ends';

CREATE FUNCTION op_refuse(op op, reason text, detail text, kept text DEFAULT NULL) RETURNS void
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    INSERT INTO coord.conflict (origin, seq, op_id, reason, detail, op)
    VALUES (op.origin, op.seq, op.op_id, reason, detail, to_jsonb(op))
    ON CONFLICT DO NOTHING;
    INSERT INTO coord.quarantine (origin, reason)
    SELECT op.origin, format('operation %s is both %s and %s', op.seq, kept, op.op_id) WHERE kept IS NOT NULL
    ON CONFLICT DO NOTHING;
  END;
COMMENT ON FUNCTION op_refuse(op, text, text, text) IS 'keeps an operation beside the log; when the log has another one under its number, no more of its origin is admitted';

CREATE FUNCTION op_admit() RETURNS trigger
  LANGUAGE c AS 'MODULE_PATHNAME', 'op_admit_wrapper';
COMMENT ON FUNCTION op_admit() IS 'lets an operation from elsewhere into the log once, and only whole';
CREATE TRIGGER op_admit BEFORE INSERT ON op
  FOR EACH ROW WHEN (coord.op_is_from_elsewhere()) EXECUTE FUNCTION op_admit();
ALTER TABLE op ENABLE ALWAYS TRIGGER op_admit;
COMMENT ON TRIGGER op_admit ON op IS 'also for rows that replication applies';

CREATE FUNCTION op_keep() RETURNS trigger
  LANGUAGE c AS 'MODULE_PATHNAME', 'op_keep_wrapper';
COMMENT ON FUNCTION op_keep() IS 'raises 55000: operations do not change';
CREATE TRIGGER op_keep BEFORE UPDATE OR DELETE ON op
  FOR EACH ROW EXECUTE FUNCTION op_keep();
ALTER TABLE op ENABLE ALWAYS TRIGGER op_keep;
COMMENT ON TRIGGER op_keep ON op IS 'the log is append-only';

-- A payload may be the null of JSON, which is not that of SQL.
CREATE FUNCTION op_of(kept jsonb) RETURNS SETOF op
  LANGUAGE sql STABLE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  SELECT o.origin, o.seq, o.xid, o.local_xid, o.hlc, o.op_id, o.scope, o.surface, kept -> 'payload', o.recorded_at, o.tenant_id
    FROM jsonb_populate_record(NULL::coord.op, kept) o
$$;
COMMENT ON FUNCTION op_of(jsonb) IS 'an operation as coord.conflict keeps it';

CREATE FUNCTION conflict_retry() RETURNS bigint
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  admitted bigint;
BEGIN
  WITH due AS (
    DELETE FROM coord.conflict c
     WHERE c.reason = 'clock'
       AND coord.hlc_time((c.op ->> 'hlc')::coord.hlc) <= clock_timestamp() + current_setting('coord.max_clock_drift')::interval
    RETURNING c.op
  )
  INSERT INTO coord.op SELECT t.* FROM due d CROSS JOIN LATERAL coord.op_of(d.op) t ORDER BY t.seq;
  GET DIAGNOSTICS admitted = ROW_COUNT;
  RETURN admitted;
END
$$;
COMMENT ON FUNCTION conflict_retry() IS 'admits operations whose stamp is not too far ahead any more; returns how many';

CREATE FUNCTION quarantine_release(origin text) RETURNS bigint
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  released bigint;
BEGIN
  DELETE FROM coord.quarantine q WHERE q.origin = $1;
  WITH held AS (
    DELETE FROM coord.conflict c WHERE c.origin = $1 AND c.reason IN ('quarantined', 'clock')
    RETURNING c.op
  )
  INSERT INTO coord.op SELECT t.* FROM held h CROSS JOIN LATERAL coord.op_of(h.op) t ORDER BY t.seq;
  GET DIAGNOSTICS released = ROW_COUNT;
  RETURN released;
END
$$;
COMMENT ON FUNCTION quarantine_release(text) IS 'admits operations of an origin again, first those that were held back; returns how many of these are in the log now';

REVOKE ALL ON FUNCTION op_required(text), op_parse(jsonb), op_append_own(text, text, jsonb), op_append(text, text, jsonb), op_append_many(jsonb),
  op_is_from_elsewhere(), op_is_single(), op_origin_lock(text), op_refuse(op, text, text, text),
  op_admit(), op_keep(), op_restore(), op_of(jsonb), conflict_retry(), quarantine_release(text),
  op_check(text, text, text, integer),
  op_hash(text), op_receipt(op), op_key(text, jsonb), op_id(op),
  op_id(text, bigint, hlc, text, text, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION op_append(text, text, jsonb), op_append_many(jsonb), op_id(op), op_key(text, jsonb),
  op_id(text, bigint, hlc, text, text, text, text) TO coord_agent;
GRANT SELECT ON op TO coord_agent;
GRANT SELECT ON op, conflict, quarantine TO coord_monitor;

CREATE TABLE turn (
  scope text COLLATE "C" NOT NULL,
  conversation_id text COLLATE "C" NOT NULL,
  hlc hlc NOT NULL,
  op_id text COLLATE "C" NOT NULL,
  origin text COLLATE "C" NOT NULL,
  role text COLLATE "C",
  content text,
  tool_calls jsonb,
  tool_use_id text COLLATE "C",
  at timestamptz NOT NULL,
  PRIMARY KEY (conversation_id, hlc, op_id)
);
COMMENT ON TABLE turn IS 'every operation of surface conversation, as a turn';
COMMENT ON COLUMN turn.at IS 'time that the turn says, else that of its stamp; orders nothing';

CREATE TABLE conversation (
  scope text COLLATE "C" NOT NULL,
  conversation_id text COLLATE "C" NOT NULL
);
COMMENT ON TABLE conversation IS 'conversations by scope; one is here twice when two transactions began it at once';
CREATE INDEX conversation_scope ON conversation (scope, conversation_id);

CREATE TABLE observation (
  scope text COLLATE "C" NOT NULL,
  hlc hlc NOT NULL,
  op_id text COLLATE "C" NOT NULL,
  origin text COLLATE "C" NOT NULL,
  payload jsonb NOT NULL,
  PRIMARY KEY (scope, hlc, op_id)
);
COMMENT ON TABLE observation IS 'every operation of surface routing';

CREATE TABLE record (
  scope text COLLATE "C" NOT NULL,
  surface text COLLATE "C" NOT NULL,
  key text COLLATE "C" NOT NULL,
  payload jsonb NOT NULL,
  hlc hlc NOT NULL,
  op_id text COLLATE "C" NOT NULL,
  origin text COLLATE "C" NOT NULL,
  PRIMARY KEY (scope, surface, key)
);
COMMENT ON TABLE record IS 'knowledge, skill, trajectory, run: the first operation of each key; declagent and registry: the last one';

CREATE TABLE trimmed (
  scope text COLLATE "C" NOT NULL,
  surface text COLLATE "C" NOT NULL,
  key text COLLATE "C" NOT NULL,
  hlc hlc NOT NULL,
  op_id text COLLATE "C" NOT NULL,
  trimmed_by text COLLATE "C" NOT NULL,
  settles_after xid8,
  is_settled boolean NOT NULL DEFAULT false,
  PRIMARY KEY (scope, surface, key)
);
COMMENT ON TABLE trimmed IS 'what is not in the fold: turns of a conversation before one, and runs and trajectories';
COMMENT ON COLUMN trimmed.hlc IS 'stamp of the first turn that stays, or of the record that went';
COMMENT ON COLUMN trimmed.op_id IS 'operation of that turn or record';
COMMENT ON COLUMN trimmed.trimmed_by IS 'operation that says so';
COMMENT ON COLUMN trimmed.settles_after IS 'transactions up to this one may not have seen this row, and have put in what it trims';
COMMENT ON COLUMN trimmed.is_settled IS 'all of those have ended, and it was trimmed after that';
CREATE INDEX trimmed_by ON trimmed (trimmed_by);
CREATE INDEX trimmed_unsettled ON trimmed (key) WHERE NOT is_settled;

CREATE TABLE checkpoint (
  origin text COLLATE "C" PRIMARY KEY,
  frontier vclock NOT NULL,
  state_hash text COLLATE "C" NOT NULL,
  hlc hlc NOT NULL,
  op_id text COLLATE "C" NOT NULL
);
COMMENT ON TABLE checkpoint IS 'the last checkpoint of each node: what the folded state was at a stable frontier';
COMMENT ON COLUMN checkpoint.state_hash IS 'digest of the state that the operations below the frontier fold into';

CREATE TABLE op_base (
  frontier vclock NOT NULL,
  state_hash text COLLATE "C" NOT NULL,
  since timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE op_base IS 'the checkpoint that the log of this node stands on: what lies below and is not here is needed for nothing; never dumped';
CREATE UNIQUE INDEX op_base_only ON op_base ((true));

-- What one operation says.

CREATE FUNCTION turn_time(at text) RETURNS timestamptz
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'turn_time_wrapper';
COMMENT ON FUNCTION turn_time(text) IS 'time by RFC 3339; NULL for any other text';

CREATE FUNCTION turn_of(op op) RETURNS SETOF turn
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  BEGIN ATOMIC
    SELECT op.scope, coord.op_key(op.surface, op.payload), op.hlc, op.op_id, op.origin,
           CASE r.role WHEN 'tool_result' THEN 'tool' ELSE r.role END,
           coalesce(op.payload ->> 'content', op.payload ->> 'text'),
           nullif(op.payload -> 'tool_calls', 'null'),
           op.payload ->> 'tool_use_id',
           coalesce(coord.turn_time(op.payload ->> 'at'), coord.hlc_time(op.hlc))
      FROM (SELECT coalesce(op.payload ->> 'role', op.payload ->> 'speaker') AS role) r
     WHERE op.surface = 'conversation';
  END;
COMMENT ON FUNCTION turn_of(op) IS 'the turn that an operation is; also one that says speaker and text';

CREATE FUNCTION observation_of(op op) RETURNS SETOF observation
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  BEGIN ATOMIC
    SELECT op.scope, op.hlc, op.op_id, op.origin, op.payload WHERE op.surface = 'routing';
  END;
COMMENT ON FUNCTION observation_of(op) IS 'the observation that an operation is';

CREATE FUNCTION record_of(op op) RETURNS SETOF coord.record
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  BEGIN ATOMIC
    SELECT op.scope, op.surface, coord.op_key(op.surface, op.payload), op.payload, op.hlc, op.op_id, op.origin
     WHERE op.surface NOT IN ('conversation', 'routing', 'intent', 'retention', 'checkpoint', 'row');
  END;
COMMENT ON FUNCTION record_of(op) IS 'what an operation says of a record';

CREATE FUNCTION intent_of(op op) RETURNS SETOF intent
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  BEGIN ATOMIC
    SELECT op.payload ->> 'agent', op.payload ->> 'run_id', op.scope, (op.payload ->> 'attempt')::integer,
           (op.payload ->> 'epoch')::bigint, op.payload ->> 'holder', op.payload ->> 'status', op.recorded_at, op.op_id, op.hlc
     WHERE op.surface = 'intent' AND coord.intent_is_whole(op.payload::text);
  END;
COMMENT ON FUNCTION intent_of(op) IS 'the record of a run that an operation is';

CREATE FUNCTION trims_are_whole(payload text) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'trims_are_whole_wrapper';
COMMENT ON FUNCTION trims_are_whole(text) IS 'whether a payload says what is trimmed';

CREATE FUNCTION checkpoint_is_whole(payload text) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'checkpoint_is_whole_wrapper';
COMMENT ON FUNCTION checkpoint_is_whole(text) IS 'whether a payload says what the state was at a frontier';

CREATE FUNCTION trimmed_of(op op) RETURNS SETOF trimmed
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  BEGIN ATOMIC
    SELECT op.scope, t.surface, t.key, t.hlc, t.op_id, op.op_id, NULL::xid8, false
      FROM jsonb_to_recordset(CASE WHEN op.surface = 'retention' AND coord.trims_are_whole(op.payload::text)
                                   THEN op.payload -> 'trims' ELSE '[]' END)
        AS t(surface text, key text, hlc hlc, op_id text);
  END;
COMMENT ON FUNCTION trimmed_of(op) IS 'what an operation says is trimmed';

CREATE FUNCTION checkpoint_of(op op) RETURNS SETOF checkpoint
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  BEGIN ATOMIC
    SELECT op.origin, (op.payload -> 'frontier')::vclock, op.payload ->> 'state_hash', op.hlc, op.op_id
     WHERE op.surface = 'checkpoint' AND coord.checkpoint_is_whole(op.payload::text);
  END;
COMMENT ON FUNCTION checkpoint_of(op) IS 'the checkpoint that an operation is';

CREATE FUNCTION record_rank(surface text, hlc hlc, op_id text) RETURNS bytea
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'record_rank_wrapper';
COMMENT ON FUNCTION record_rank(text, hlc, text) IS 'of several operations of one key the lowest stays: the last of declagent and registry, the first of all else';

-- Trimming. Whatever is put in by who has seen a row of coord.trimmed is put in accordingly; what a transaction has
-- put in that had not is trimmed once it has ended.

CREATE FUNCTION trim_apply(trimmings text[]) RETURNS void
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  DELETE FROM coord.turn t USING coord.trimmed m
   WHERE m.trimmed_by = ANY (trimmings) AND m.surface = 'conversation'
     AND (t.conversation_id, t.scope) = (m.key, m.scope) AND (t.hlc, t.op_id) < (m.hlc, m.op_id);
  DELETE FROM coord.record r USING coord.trimmed m
   WHERE m.trimmed_by = ANY (trimmings) AND (r.scope, r.surface, r.key) = (m.scope, m.surface, m.key);
$$;
COMMENT ON FUNCTION trim_apply(text[]) IS 'takes out of the fold what these operations trim';

CREATE FUNCTION trim_settle() RETURNS bigint
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  horizon xid8 := pg_snapshot_xmin(pg_current_snapshot());
  settled bigint;
BEGIN
  IF NOT EXISTS (SELECT FROM coord.trimmed m WHERE NOT m.is_settled) THEN
    RETURN 0;
  END IF;
  -- A transaction that has written nothing yet can have a snapshot, and write by that.
  SELECT least(horizon, min(pg_current_xact_id()::text::bigint - age(s.backend_xmin))::text::xid8) INTO horizon
    FROM pg_stat_activity s
   WHERE s.datname = current_database() AND s.backend_xmin IS NOT NULL AND s.pid <> pg_backend_pid();
  -- With a later snapshot than that of the horizon.
  PERFORM coord.trim_apply(ARRAY(SELECT DISTINCT m.trimmed_by FROM coord.trimmed m WHERE m.settles_after < horizon AND NOT m.is_settled));
  UPDATE coord.trimmed m SET is_settled = true WHERE NOT m.is_settled AND m.settles_after < horizon;
  GET DIAGNOSTICS settled = ROW_COUNT;
  UPDATE coord.trimmed m SET settles_after = pg_current_xact_id() WHERE NOT m.is_settled AND m.settles_after IS NULL;
  RETURN settled;
END
$$;
COMMENT ON FUNCTION trim_settle() IS 'trims what transactions have put in that were open at the time; returns how many trimmings are done with';

CREATE FUNCTION trim_fold(ops op[]) RETURNS void
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  INSERT INTO coord.trimmed AS k
  SELECT DISTINCT ON (m.scope, m.surface, m.key) m.*
    FROM unnest(ops) o CROSS JOIN LATERAL coord.trimmed_of(o) m
   ORDER BY m.scope, m.surface, m.key, m.hlc DESC, m.op_id DESC, m.trimmed_by DESC
  ON CONFLICT ON CONSTRAINT trimmed_pkey DO UPDATE
     SET hlc = excluded.hlc, op_id = excluded.op_id, trimmed_by = excluded.trimmed_by, settles_after = NULL, is_settled = false
   WHERE (excluded.hlc, excluded.op_id, excluded.trimmed_by) > (k.hlc, k.op_id, k.trimmed_by);
  PERFORM coord.trim_apply(ARRAY(SELECT o.op_id FROM unnest(ops) o));
END
$$;
COMMENT ON FUNCTION trim_fold(op[]) IS 'trims what operations say; of a conversation the most';

-- Folding.

CREATE FUNCTION op_fold(ops op[]) RETURNS void
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  surfaces text[] := ARRAY(SELECT DISTINCT o.surface FROM unnest(ops) o);
BEGIN
  IF 'conversation' = ANY (surfaces) THEN
    INSERT INTO coord.turn
    SELECT t.*
      FROM unnest(ops) o CROSS JOIN LATERAL coord.turn_of(o) t
     WHERE NOT EXISTS (SELECT FROM coord.trimmed m
                        WHERE (m.scope, m.surface, m.key) = (t.scope, 'conversation', t.conversation_id)
                          AND (t.hlc, t.op_id) < (m.hlc, m.op_id))
    ON CONFLICT DO NOTHING;
    INSERT INTO coord.conversation (scope, conversation_id)
    SELECT k.scope, k.key
      FROM (SELECT DISTINCT o.scope, coord.op_key(o.surface, o.payload) AS key
              FROM unnest(ops) o WHERE o.surface = 'conversation') k
     WHERE NOT EXISTS (SELECT FROM coord.conversation c WHERE (c.scope, c.conversation_id) = (k.scope, k.key));
  END IF;
  IF 'routing' = ANY (surfaces) THEN
    INSERT INTO coord.observation SELECT b.* FROM unnest(ops) o CROSS JOIN LATERAL coord.observation_of(o) b ON CONFLICT DO NOTHING;
  END IF;
  IF 'intent' = ANY (surfaces) THEN
    PERFORM coord.intent_put(i)
       FROM unnest(ops) o CROSS JOIN LATERAL coord.intent_of(o) i
      ORDER BY i.agent, i.run_id, i.scope;
  END IF;
  IF 'retention' = ANY (surfaces) THEN
    PERFORM coord.trim_fold(ops);
  END IF;
  IF 'checkpoint' = ANY (surfaces) THEN
    INSERT INTO coord.checkpoint AS k
    SELECT DISTINCT ON (c.origin) c.*
      FROM unnest(ops) o CROSS JOIN LATERAL coord.checkpoint_of(o) c
     ORDER BY c.origin, c.hlc DESC, c.op_id DESC
    ON CONFLICT ON CONSTRAINT checkpoint_pkey DO UPDATE
       SET frontier = excluded.frontier, state_hash = excluded.state_hash, hlc = excluded.hlc, op_id = excluded.op_id
     WHERE (excluded.hlc, excluded.op_id) > (k.hlc, k.op_id);
  END IF;
  IF 'row' = ANY (surfaces) THEN
    PERFORM coord.stream_fold(ops);
  END IF;
  IF NOT surfaces <@ '{conversation,routing,intent,retention,checkpoint,row}' THEN
    -- In the order of keys: whoever folds several takes row locks in that order.
    INSERT INTO coord.record AS r
    SELECT DISTINCT ON (f.scope, f.surface, f.key) f.*
      FROM unnest(ops) o CROSS JOIN LATERAL coord.record_of(o) f
     WHERE NOT EXISTS (SELECT FROM coord.trimmed m WHERE (m.scope, m.surface, m.key) = (f.scope, f.surface, f.key))
     ORDER BY f.scope, f.surface, f.key, coord.record_rank(f.surface, f.hlc, f.op_id)
    ON CONFLICT ON CONSTRAINT record_pkey DO UPDATE
       SET payload = excluded.payload, hlc = excluded.hlc, op_id = excluded.op_id, origin = excluded.origin
     WHERE coord.record_rank(excluded.surface, excluded.hlc, excluded.op_id) < coord.record_rank(r.surface, r.hlc, r.op_id);
  END IF;
END
$$;
COMMENT ON FUNCTION op_fold(op[]) IS 'brings the folded state to what it is with these operations';

CREATE TABLE fold_waiting (
  origin text COLLATE "C" NOT NULL,
  seq bigint NOT NULL,
  since timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (origin, seq)
);
COMMENT ON TABLE fold_waiting IS 'operations in the log whose record a local transaction holds; folded when it ends';

-- Replication applies in the order of commits: what waited there would hold up all that comes behind it. Where one
-- record has been waited for in vain already, the transaction that holds it is a long one.
CREATE FUNCTION op_fold_applied(op op) RETURNS void
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  patience text := current_setting('lock_timeout');
BEGIN
  PERFORM set_config('lock_timeout', CASE WHEN EXISTS (SELECT FROM coord.fold_waiting) THEN '1ms' ELSE '100ms' END, true);
  BEGIN
    PERFORM coord.op_fold(ARRAY[op]);
  EXCEPTION WHEN lock_not_available THEN
    INSERT INTO coord.fold_waiting (origin, seq) VALUES (op.origin, op.seq);
  END;
  PERFORM set_config('lock_timeout', patience, true);
END
$$;
COMMENT ON FUNCTION op_fold_applied(op) IS 'folds an operation that replication applies, or leaves it to be folded later';

CREATE FUNCTION op_fold() RETURNS trigger
  LANGUAGE plpgsql
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  IF EXISTS (SELECT FROM coord.fold_waiting w WHERE (w.origin, w.seq) = (NEW.origin, NEW.seq)) THEN
    RETURN NULL;
  ELSIF coord.stream_origin() IS NOT NULL AND NEW.surface <> 'routing' THEN
    PERFORM coord.op_fold_applied(NEW::coord.op);
  ELSE
    PERFORM coord.op_fold(ARRAY[NEW::coord.op]);
  END IF;
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION op_fold() IS 'folds an operation that has come into the log';
CREATE TRIGGER op_fold AFTER INSERT ON op
  FOR EACH ROW WHEN (NEW.surface <> 'conversation' AND coord.op_is_single()) EXECUTE FUNCTION op_fold();
ALTER TABLE op ENABLE ALWAYS TRIGGER op_fold;
COMMENT ON TRIGGER op_fold ON op IS 'also for rows that replication applies';

CREATE FUNCTION op_fold_turn() RETURNS trigger
  LANGUAGE c AS 'MODULE_PATHNAME', 'op_fold_turn_wrapper';
COMMENT ON FUNCTION op_fold_turn() IS 'folds a turn that has come into the log';
CREATE TRIGGER op_fold_turn AFTER INSERT ON op
  FOR EACH ROW WHEN (NEW.surface = 'conversation' AND coord.op_is_single()) EXECUTE FUNCTION op_fold_turn();
ALTER TABLE op ENABLE ALWAYS TRIGGER op_fold_turn;
COMMENT ON TRIGGER op_fold_turn ON op IS 'also for rows that replication applies';

CREATE FUNCTION fold_retry() RETURNS bigint
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  patience text := current_setting('lock_timeout');
  waiting record;
  held text;
  folded bigint := 0;
BEGIN
  PERFORM set_config('lock_timeout', '1ms', true);
  FOR waiting IN
    SELECT o AS op, w.origin, w.seq, concat_ws(' ', o.scope, o.surface, coord.op_key(o.surface, o.payload)) AS key
      FROM coord.fold_waiting w JOIN coord.op o ON (o.origin, o.seq) = (w.origin, w.seq)
     ORDER BY o.scope, o.surface, coord.op_key(o.surface, o.payload) COLLATE "C"
  LOOP
    CONTINUE WHEN waiting.key = held;
    BEGIN
      PERFORM coord.op_fold(ARRAY[waiting.op::coord.op]);
      DELETE FROM coord.fold_waiting w WHERE (w.origin, w.seq) = (waiting.origin, waiting.seq);
      folded := folded + 1;
    EXCEPTION WHEN lock_not_available THEN
      held := waiting.key;
    END;
  END LOOP;
  PERFORM set_config('lock_timeout', patience, true);
  RETURN folded;
END
$$;
COMMENT ON FUNCTION fold_retry() IS 'folds what waited for a local transaction that has ended; returns how many operations that were';

-- The digest of the folded state, kept in parts that nobody waits for.

CREATE TABLE fold_digest (
  sum bytea NOT NULL
);
COMMENT ON TABLE fold_digest IS 'changes of the digest of the folded state; it is their sum modulo 2^256';

CREATE FUNCTION fold_row_digest("table" text, op_id text) RETURNS bytea
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fold_row_digest_wrapper';
COMMENT ON FUNCTION fold_row_digest(text, text) IS 'digest of a row of the fold';

CREATE FUNCTION fold_digest() RETURNS trigger
  LANGUAGE c AS 'MODULE_PATHNAME', 'fold_digest_wrapper';
COMMENT ON FUNCTION fold_digest() IS 'adds what a statement has changed to coord.fold_digest';

DO $$
DECLARE
  folded text;
BEGIN
  FOREACH folded IN ARRAY ARRAY['turn', 'observation', 'record', 'intent'] LOOP
    EXECUTE format('CREATE TRIGGER fold_digest_begin BEFORE INSERT OR UPDATE OR DELETE ON coord.%I '
                   'FOR EACH STATEMENT EXECUTE FUNCTION coord.fold_digest()', folded);
    EXECUTE format('CREATE TRIGGER fold_digest_row AFTER INSERT OR UPDATE OR DELETE ON coord.%I '
                   'FOR EACH ROW EXECUTE FUNCTION coord.fold_digest()', folded);
    EXECUTE format('CREATE TRIGGER fold_digest_end AFTER INSERT OR UPDATE OR DELETE ON coord.%I '
                   'FOR EACH STATEMENT EXECUTE FUNCTION coord.fold_digest()', folded);
    EXECUTE format('ALTER TABLE coord.%I ENABLE ALWAYS TRIGGER fold_digest_begin, '
                   'ENABLE ALWAYS TRIGGER fold_digest_row, ENABLE ALWAYS TRIGGER fold_digest_end', folded);
    EXECUTE format('COMMENT ON TRIGGER fold_digest_begin ON coord.%I IS ''begins the sum''', folded);
    EXECUTE format('COMMENT ON TRIGGER fold_digest_row ON coord.%I IS ''adds a row''', folded);
    EXECUTE format('COMMENT ON TRIGGER fold_digest_end ON coord.%I IS ''keeps the sum''', folded);
  END LOOP;
END
$$;

CREATE FUNCTION state_hash() RETURNS text
  LANGUAGE sql STABLE
  SET search_path = pg_catalog, coord, pg_temp
  RETURN encode(coalesce((SELECT coord.digest_sum(d.sum) FROM coord.fold_digest d), decode(repeat('00', 32), 'hex')), 'hex');
COMMENT ON FUNCTION state_hash() IS 'digest of the folded state: equal on nodes that hold the same operations';

CREATE FUNCTION fold_digest_compact(at_least bigint DEFAULT 2) RETURNS bigint
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  WITH parts AS (
    DELETE FROM coord.fold_digest
     WHERE (SELECT count(*) FROM (SELECT FROM coord.fold_digest LIMIT at_least) p) = at_least
    RETURNING sum
  ), compacted AS (
    INSERT INTO coord.fold_digest SELECT coord.digest_sum(p.sum) FROM parts p HAVING count(*) > 0
  )
  SELECT count(*) FROM parts
$$;
COMMENT ON FUNCTION fold_digest_compact(bigint) IS 'replaces so many parts of the digest, or more, by their sum; returns how many there were';

-- What the log says that the fold should be.

CREATE VIEW trimmed_by_log AS
  SELECT DISTINCT ON (m.scope, m.surface, m.key) m.*
    FROM coord.op o CROSS JOIN LATERAL coord.trimmed_of(o) m
   ORDER BY m.scope, m.surface, m.key, m.hlc DESC, m.op_id DESC, m.trimmed_by DESC;
COMMENT ON VIEW trimmed_by_log IS 'coord.trimmed, folded anew';

-- pg_upgrade cannot restore a view that compares rows with operators of the extension.
CREATE VIEW turn_by_log AS
  SELECT t.*
    FROM coord.op o CROSS JOIN LATERAL coord.turn_of(o) t
    LEFT JOIN coord.trimmed m ON (m.scope, m.surface, m.key) = (t.scope, 'conversation', t.conversation_id)
   WHERE m.hlc IS NULL OR t.hlc > m.hlc OR t.hlc = m.hlc AND t.op_id >= m.op_id;
COMMENT ON VIEW turn_by_log IS 'coord.turn, folded anew';

CREATE VIEW observation_by_log AS
  SELECT b.* FROM coord.op o CROSS JOIN LATERAL coord.observation_of(o) b;
COMMENT ON VIEW observation_by_log IS 'coord.observation, folded anew';

CREATE VIEW record_by_log AS
  SELECT DISTINCT ON (f.scope, f.surface, f.key) f.*
    FROM coord.op o CROSS JOIN LATERAL coord.record_of(o) f
   WHERE NOT EXISTS (SELECT FROM coord.trimmed m WHERE (m.scope, m.surface, m.key) = (f.scope, f.surface, f.key))
   ORDER BY f.scope, f.surface, f.key, coord.record_rank(f.surface, f.hlc, f.op_id);
COMMENT ON VIEW record_by_log IS 'coord.record, folded anew';

CREATE VIEW intent_by_log AS
  SELECT DISTINCT ON (i.agent, i.run_id, i.scope) i.*
    FROM coord.op o CROSS JOIN LATERAL coord.intent_of(o) i
   ORDER BY i.agent, i.run_id, i.scope, coord.intent_rank(i.status, i.epoch, i.hlc, i.op_id);
COMMENT ON VIEW intent_by_log IS 'coord.intent, folded anew';

-- Each statement compares with one snapshot, in which the log and the fold agree: whoever appends changes both
-- in one transaction. A row that another transaction has changed since is left alone.
CREATE FUNCTION op_refold() RETURNS bigint
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  differing bigint := 0;
  part bigint;
BEGIN
  WITH wrong AS MATERIALIZED (
    SELECT scope, surface, key, m.trimmed_by AS found, l AS due
      FROM coord.trimmed m FULL JOIN coord.trimmed_by_log l USING (scope, surface, key)
     WHERE (m.hlc, m.op_id, m.trimmed_by) IS DISTINCT FROM (l.hlc, l.op_id, l.trimmed_by)
  ), removed AS (
    DELETE FROM coord.trimmed m USING wrong w
     WHERE (m.scope, m.surface, m.key, m.trimmed_by) = (w.scope, w.surface, w.key, w.found)
    RETURNING 1
  ), put AS (
    INSERT INTO coord.trimmed SELECT (w.due).* FROM wrong w, (SELECT count(*) FROM removed) r WHERE (w.due).op_id IS NOT NULL
    ON CONFLICT DO NOTHING
  )
  SELECT count(*) INTO part FROM wrong;
  differing := differing + part;

  WITH wrong AS MATERIALIZED (
    SELECT conversation_id, hlc, op_id, l AS due
      FROM coord.turn t FULL JOIN coord.turn_by_log l USING (conversation_id, hlc, op_id)
     WHERE ROW(t.*) IS DISTINCT FROM ROW(l.*)
  ), removed AS (
    DELETE FROM coord.turn t USING wrong w WHERE (t.conversation_id, t.hlc, t.op_id) = (w.conversation_id, w.hlc, w.op_id)
    RETURNING 1
  ), put AS (
    INSERT INTO coord.turn SELECT (w.due).* FROM wrong w, (SELECT count(*) FROM removed) r WHERE (w.due).op_id IS NOT NULL
    ON CONFLICT DO NOTHING
  )
  SELECT count(*) INTO part FROM wrong;
  differing := differing + part;
  INSERT INTO coord.conversation (scope, conversation_id)
  SELECT DISTINCT t.scope, t.conversation_id FROM coord.turn t
   WHERE NOT EXISTS (SELECT FROM coord.conversation c WHERE (c.scope, c.conversation_id) = (t.scope, t.conversation_id));

  WITH wrong AS MATERIALIZED (
    SELECT scope, hlc, op_id, l AS due
      FROM coord.observation b FULL JOIN coord.observation_by_log l USING (scope, hlc, op_id)
     WHERE ROW(b.*) IS DISTINCT FROM ROW(l.*)
  ), removed AS (
    DELETE FROM coord.observation b USING wrong w WHERE (b.scope, b.hlc, b.op_id) = (w.scope, w.hlc, w.op_id)
    RETURNING 1
  ), put AS (
    INSERT INTO coord.observation SELECT (w.due).* FROM wrong w, (SELECT count(*) FROM removed) r WHERE (w.due).op_id IS NOT NULL
    ON CONFLICT DO NOTHING
  )
  SELECT count(*) INTO part FROM wrong;
  differing := differing + part;

  WITH wrong AS MATERIALIZED (
    SELECT scope, surface, key, c.op_id AS found, l AS due
      FROM coord.record c FULL JOIN coord.record_by_log l USING (scope, surface, key)
     WHERE ROW(c.*) IS DISTINCT FROM ROW(l.*)
  ), removed AS (
    DELETE FROM coord.record c USING wrong w
     WHERE (c.scope, c.surface, c.key, c.op_id) = (w.scope, w.surface, w.key, w.found)
    RETURNING 1
  ), put AS (
    INSERT INTO coord.record AS c SELECT (w.due).* FROM wrong w, (SELECT count(*) FROM removed) r WHERE (w.due).op_id IS NOT NULL
    ON CONFLICT ON CONSTRAINT record_pkey DO UPDATE
       SET payload = excluded.payload, hlc = excluded.hlc, op_id = excluded.op_id, origin = excluded.origin
     WHERE coord.record_rank(excluded.surface, excluded.hlc, excluded.op_id) < coord.record_rank(c.surface, c.hlc, c.op_id)
  )
  SELECT count(*) INTO part FROM wrong;
  differing := differing + part;

  WITH wrong AS MATERIALIZED (
    SELECT agent, run_id, scope, i.op_id AS found, l AS due
      FROM (SELECT * FROM coord.intent n WHERE n.hlc IS NOT NULL) i
      FULL JOIN coord.intent_by_log l USING (agent, run_id, scope)
     WHERE ROW(i.*) IS DISTINCT FROM ROW(l.*)
  ), removed AS (
    DELETE FROM coord.intent i USING wrong w
     WHERE (i.agent, i.run_id, i.scope, i.op_id) = (w.agent, w.run_id, w.scope, w.found)
    RETURNING 1
  ), put AS (
    INSERT INTO coord.intent SELECT (w.due).* FROM wrong w, (SELECT count(*) FROM removed) r WHERE (w.due).op_id IS NOT NULL
    ON CONFLICT DO NOTHING
  )
  SELECT count(*) INTO part FROM wrong;
  differing := differing + part;

  RETURN differing + (SELECT sum(coord.stream_refold(s.name)) FROM coord.stream s);
END
$$;
COMMENT ON FUNCTION op_refold() IS 'folds the whole log again, and puts right what differs; returns how many rows that were';

REVOKE ALL ON FUNCTION turn_time(text), turn_of(op), observation_of(op), record_of(op), intent_of(op), record_rank(text, hlc, text),
  trims_are_whole(text), checkpoint_is_whole(text), trimmed_of(op), checkpoint_of(op), trim_apply(text[]), trim_settle(), trim_fold(op[]),
  op_fold(op[]), op_fold_applied(op), op_fold(), op_fold_turn(), fold_retry(), fold_row_digest(text, text), fold_digest(), state_hash(), fold_digest_compact(bigint),
  op_refold() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION state_hash() TO coord_agent, coord_monitor;
GRANT SELECT ON turn, conversation, observation, record, fold_digest TO coord_agent, coord_monitor;
GRANT SELECT ON fold_waiting, trimmed, checkpoint, op_base TO coord_monitor;

CREATE FUNCTION turn_role(role text) RETURNS text
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'turn_role_wrapper';
COMMENT ON FUNCTION turn_role(text) IS 'the role as it is kept; 22023 for one that no turn has';

CREATE FUNCTION turn_check(conversation_id text, tool_calls text) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'turn_check_wrapper';
COMMENT ON FUNCTION turn_check(text, text) IS 'true, or an error for what no turn says';

CREATE FUNCTION turn_payload(conversation_id text, role text, content text, tool_calls jsonb, tool_use_id text, at timestamptz)
  RETURNS jsonb
  LANGUAGE sql STABLE PARALLEL SAFE
  SET search_path = pg_catalog, coord, pg_temp
  RETURN CASE WHEN coord.turn_check(coalesce(conversation_id, ''), coalesce(tool_calls, '[]')::text) THEN
    jsonb_build_object('conversation_id', conversation_id, 'role', coord.turn_role(coalesce(role, '')), 'content', coalesce(content, ''),
                       'at', to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
    || CASE WHEN tool_calls <> '[]' THEN jsonb_build_object('tool_calls', tool_calls) ELSE '{}' END
    || CASE WHEN tool_use_id IS NOT NULL THEN jsonb_build_object('tool_use_id', tool_use_id) ELSE '{}' END END;
COMMENT ON FUNCTION turn_payload(text, text, text, jsonb, text, timestamptz) IS 'payload of the operation that a turn is';

CREATE FUNCTION record_turn(scope text, conversation_id text, role text, content text, tool_calls jsonb DEFAULT NULL,
                            tool_use_id text DEFAULT NULL, at timestamptz DEFAULT now()) RETURNS jsonb
  LANGUAGE sql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
  RETURN coord.op_append(scope, 'conversation', coord.turn_payload(conversation_id, role, content, tool_calls, tool_use_id, at));
COMMENT ON FUNCTION record_turn(text, text, text, text, jsonb, text, timestamptz) IS 'appends a turn to a conversation; returns what op_append does';

CREATE FUNCTION transcript_position(after jsonb) RETURNS hlc
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN CASE jsonb_typeof(after -> 'hlc')
           WHEN 'object' THEN coord.hlc(to_timestamp((after #>> '{hlc,wall_ms}')::bigint / 1000.0), (after #>> '{hlc,counter}')::integer)
           ELSE (after ->> 'hlc')::coord.hlc END;
COMMENT ON FUNCTION transcript_position(jsonb) IS 'stamp of a row that was seen, as a column or as op_append returns it';

-- Bodies that order stamps are texts: pg_upgrade restores functions before the operator class that they need.

-- Without a search path of its own it becomes a part of the query that calls it.
CREATE FUNCTION transcript(conversation_id text, after jsonb DEFAULT NULL, max integer DEFAULT NULL) RETURNS SETOF turn
  LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT t.* FROM coord.turn t,
           (SELECT coalesce(coord.transcript_position(after), coord.hlc('1970-01-01 00:00+00'::timestamptz, 0)) AS hlc,
                   coalesce(after OPERATOR(pg_catalog.->>) 'op_id', '') AS op_id) a
     WHERE t.conversation_id OPERATOR(pg_catalog.=) transcript.conversation_id
       AND t.hlc OPERATOR(coord.>=) a.hlc AND (t.hlc OPERATOR(coord.>) a.hlc OR t.op_id OPERATOR(pg_catalog.>) a.op_id)
     ORDER BY t.hlc, t.op_id
     LIMIT max
$$;
COMMENT ON FUNCTION transcript(text, jsonb, integer) IS 'turns of a conversation in order, from the one after the row {"hlc": …, "op_id": …} on';

CREATE FUNCTION turns_resume(turns text) RETURNS text
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'turns_resume_wrapper';
COMMENT ON FUNCTION turns_resume(text) IS 'a JSON array of turns as one of messages that a model can be given';

CREATE FUNCTION resume(conversation_id text) RETURNS jsonb
  LANGUAGE sql STABLE PARALLEL SAFE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
    SELECT coord.turns_resume(coalesce(json_agg(json_build_object(
             'role', t.role, 'content', t.content, 'tool_calls', t.tool_calls, 'tool_use_id', t.tool_use_id)
             ORDER BY t.hlc, t.op_id), '[]')::text)::jsonb
      FROM coord.turn t
     WHERE t.conversation_id = resume.conversation_id
$$;
COMMENT ON FUNCTION resume(text) IS 'a conversation as a model can be given it: roles alternate, every call has its result';

CREATE FUNCTION conversations(scope text) RETURNS TABLE (conversation_id text, first_at timestamptz, last_at timestamptz)
  LANGUAGE sql STABLE PARALLEL SAFE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
    SELECT c.conversation_id, f.at, l.at
      FROM (SELECT DISTINCT k.conversation_id FROM coord.conversation k WHERE k.scope = conversations.scope) c
     CROSS JOIN LATERAL (SELECT t.at FROM coord.turn t
                          WHERE t.conversation_id = c.conversation_id AND t.scope = conversations.scope
                          ORDER BY t.hlc, t.op_id LIMIT 1) f
     CROSS JOIN LATERAL (SELECT t.hlc, t.at FROM coord.turn t
                          WHERE t.conversation_id = c.conversation_id AND t.scope = conversations.scope
                          ORDER BY t.hlc DESC, t.op_id DESC LIMIT 1) l
     ORDER BY l.hlc DESC, c.conversation_id
$$;
COMMENT ON FUNCTION conversations(text) IS 'conversations of a scope, the latest first';

REVOKE ALL ON FUNCTION turn_role(text), turn_check(text, text), turn_payload(text, text, text, jsonb, text, timestamptz),
  record_turn(text, text, text, text, jsonb, text, timestamptz), transcript_position(jsonb),
  transcript(text, jsonb, integer), turns_resume(text), resume(text), conversations(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION turn_role(text), turn_check(text, text), turn_payload(text, text, text, jsonb, text, timestamptz),
  record_turn(text, text, text, text, jsonb, text, timestamptz), transcript_position(jsonb),
  transcript(text, jsonb, integer), turns_resume(text), resume(text), conversations(text) TO coord_agent;

CREATE TABLE stream (
  name text COLLATE "C" PRIMARY KEY,
  target regclass NOT NULL UNIQUE,
  publication text COLLATE "C" NOT NULL
    GENERATED ALWAYS AS ('coord_stream_' || CASE WHEN octet_length(name) > 50 THEN md5(name) ELSE name END) STORED
);
COMMENT ON TABLE stream IS 'tables whose rows are streamed to the peers; add one with coord.stream_add';
COMMENT ON COLUMN stream.publication IS 'its name on every node';
INSERT INTO stream (name, target) VALUES ('op', 'op');
SELECT pg_catalog.pg_extension_config_dump('stream', $$WHERE name <> 'op'$$);

CREATE TABLE stream_offer (
  node text COLLATE "C" NOT NULL,
  stream text COLLATE "C" NOT NULL,
  life uuid NOT NULL,
  own_life uuid NOT NULL,
  slot text COLLATE "C" NOT NULL UNIQUE,
  settled_after xid8,
  base bigint,
  state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'ready', 'streaming')),
  reason text,
  since timestamptz NOT NULL DEFAULT clock_timestamp(),
  slots_lost bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (node, stream)
);
COMMENT ON TABLE stream_offer IS 'streams that peers take from this node; never dumped';
COMMENT ON COLUMN stream_offer.life IS 'life of the peer that asked';
COMMENT ON COLUMN stream_offer.own_life IS 'life of this node that the slot belongs to';
COMMENT ON COLUMN stream_offer.settled_after IS 'what is not streamed is of transactions up to this one; NULL until the slot is there';
COMMENT ON COLUMN stream_offer.base IS 'what is not streamed lies below; NULL until all those have ended';
COMMENT ON COLUMN stream_offer.slots_lost IS 'how often its slot was lost and made anew';

CREATE TABLE stream_source (
  node text COLLATE "C" NOT NULL,
  stream text COLLATE "C" NOT NULL,
  own_life uuid NOT NULL,
  actor text COLLATE "C" NOT NULL,
  slot text COLLATE "C",
  base bigint,
  offered text COLLATE "C",
  is_covered boolean NOT NULL DEFAULT false,
  horizon bigint,
  heard_at timestamptz,
  pace interval,
  failure text,
  state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'connecting', 'copying', 'catching up', 'streaming', 'stalled')),
  reason text,
  since timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (node, stream)
);
COMMENT ON TABLE stream_source IS 'streams that this node takes from peers; never dumped';
COMMENT ON COLUMN stream_source.actor IS 'life of the peer whose rows they are';
COMMENT ON COLUMN stream_source.slot IS 'where to take it from: the slot there, and the subscription here, have this name';
COMMENT ON COLUMN stream_source.offered IS 'why there is no slot yet, as the peer says';
COMMENT ON COLUMN stream_source.is_covered IS 'everything below base is here';
COMMENT ON COLUMN stream_source.horizon IS 'every row of a transaction below has come, or is below base';
COMMENT ON COLUMN stream_source.heard_at IS 'when the last heartbeat came through the stream';
COMMENT ON COLUMN stream_source.pace IS 'time between two of them, as the peer has it';
COMMENT ON COLUMN stream_source.failure IS 'why no subscription could be made';

CREATE TABLE heartbeat (
  stream text COLLATE "C" NOT NULL,
  origin text COLLATE "C" NOT NULL,
  horizon bigint NOT NULL,
  pace interval NOT NULL
);
COMMENT ON TABLE heartbeat IS 'written to be streamed: which rows of an origin a reader has, once it has come this far';

-- Which rows a session writes for replication.

CREATE FUNCTION stream_origin() RETURNS integer
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'stream_origin_wrapper';
COMMENT ON FUNCTION stream_origin() IS 'replication origin of the rows that this session applies; NULL when it applies none';

CREATE FUNCTION stream_gate() RETURNS uuid
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'stream_gate_wrapper';
COMMENT ON FUNCTION stream_gate() IS 'the life of this node; lets nothing be applied before this node knows its life: a copy of its database would take rows that are not for it';

CREATE FUNCTION stream_actor() RETURNS text
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'stream_actor_wrapper';
COMMENT ON FUNCTION stream_actor() IS 'the life of this node, once it is known, whoever asks';

CREATE FUNCTION stream_slot() RETURNS text
  LANGUAGE sql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
  RETURN (SELECT s.subname FROM pg_subscription s JOIN pg_replication_origin o ON o.roname = 'pg_' || s.oid
           WHERE o.roident = coord.stream_origin());
COMMENT ON FUNCTION stream_slot() IS 'the subscription whose rows this session applies';

CREATE FUNCTION heartbeat_hear() RETURNS trigger
  LANGUAGE plpgsql
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  life uuid := coord.stream_gate();
BEGIN
  -- What an earlier life was given through this stream, a restored node may lack.
  UPDATE coord.stream_source s
     SET horizon = greatest(s.horizon, NEW.horizon), heard_at = clock_timestamp(), pace = NEW.pace
   WHERE (s.stream, s.actor, s.slot, s.own_life) = (NEW.stream, NEW.origin, coord.stream_slot(), life);
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION heartbeat_hear() IS 'notes how far a stream has come';
CREATE TRIGGER heartbeat_hear BEFORE INSERT ON heartbeat
  FOR EACH ROW WHEN (coord.stream_origin() IS NOT NULL) EXECUTE FUNCTION heartbeat_hear();
ALTER TABLE heartbeat ENABLE ALWAYS TRIGGER heartbeat_hear;
COMMENT ON TRIGGER heartbeat_hear ON heartbeat IS 'those of other nodes are not kept';

-- What nodes say to each other of streams.

CREATE FUNCTION stream_is_enabled() RETURNS boolean
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN current_setting('coord.streaming')::boolean;
COMMENT ON FUNCTION stream_is_enabled() IS 'coord.streaming';

CREATE FUNCTION stream_wanted(peer text) RETURNS text[]
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  RETURN ARRAY(SELECT s.name FROM coord.stream s
                WHERE coord.stream_is_enabled() AND EXISTS (SELECT FROM coord.peer p WHERE p.name = peer) ORDER BY s.name);
COMMENT ON FUNCTION stream_wanted(text) IS 'streams that this node wants of a peer';

CREATE FUNCTION stream_offered(peer text) RETURNS jsonb
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  RETURN (SELECT coalesce(jsonb_agg(jsonb_build_object(
            'stream', o.stream, 'life', o.life, 'slot', CASE WHEN o.base IS NOT NULL THEN o.slot END, 'base', coalesce(o.base, 0), 'reason', o.reason)
            ORDER BY o.stream), '[]')
            FROM coord.stream_offer o WHERE o.node = peer);
COMMENT ON FUNCTION stream_offered(text) IS 'streams that a peer can take from this node';

CREATE FUNCTION stream_slot_name(origin text, reader text) RETURNS text
  LANGUAGE sql VOLATILE STRICT
  RETURN format('coord_%s_%s_%s', left(regexp_replace(lower(origin), '[^a-z0-9_]', '_', 'g'), 16),
                left(regexp_replace(lower(reader), '[^a-z0-9_]', '_', 'g'), 16), left(md5(gen_random_uuid()::text), 8));
COMMENT ON FUNCTION stream_slot_name(text, text) IS 'a name for a slot that no other has had';

-- Rows of a peer's operations that gossip has left to a stream which is no more are to come by gossip: its
-- cursors begin anew, and pass over what is held.
CREATE FUNCTION stream_source_end(ended stream_source) RETURNS void
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  IF ended.stream <> 'op' THEN
    RETURN;
  END IF;
  IF ended.is_covered AND ended.horizon IS NOT NULL THEN
    INSERT INTO coord.report_cursor AS c (node, space, frontier)
    VALUES (ended.node, '', jsonb_build_object(ended.actor, ended.horizon)::coord.vclock)
    ON CONFLICT (node) DO UPDATE SET frontier = c.frontier OPERATOR(coord.||) excluded.frontier;
  END IF;
  IF ended.state = 'streaming' THEN
    PERFORM FROM coord.report_cursor c ORDER BY c.node FOR UPDATE;
    UPDATE coord.report_cursor SET space = '', given = NULL, until = NULL, after_xid = NULL, after_name = NULL;
  END IF;
END
$$;
COMMENT ON FUNCTION stream_source_end(stream_source) IS 'leaves to gossip what a stream will not bring';

CREATE FUNCTION stream_hear(peer text, peer_life uuid, peer_actor text, wanted text[], offers jsonb) RETURNS void
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  ended coord.stream_source;
BEGIN
  DELETE FROM coord.stream_offer o WHERE o.node = peer AND NOT o.stream = ANY (wanted);
  INSERT INTO coord.stream_offer AS o (node, stream, life, own_life, slot)
  SELECT peer, s.name, peer_life, n.life, coord.stream_slot_name(n.name, peer)
    FROM coord.stream s, coord.local_node n
   WHERE s.name = ANY (wanted) AND s.name = ANY (coord.stream_wanted(peer))
     AND NOT EXISTS (SELECT FROM coord.stream_offer k
                      WHERE (k.node, k.stream, k.life, k.own_life) = (peer, s.name, peer_life, n.life))
  ON CONFLICT (node, stream) DO UPDATE
     SET life = excluded.life, own_life = excluded.own_life, slot = excluded.slot, settled_after = NULL, base = NULL, state = 'waiting',
         reason = NULL, since = excluded.since
   WHERE (o.life, o.own_life) <> (excluded.life, excluded.own_life);

  -- What was offered to an earlier life is not for this one, which may lack what that one was given.
  IF EXISTS (SELECT FROM jsonb_to_recordset(offers) AS o(life uuid), coord.local_node n WHERE o.life <> n.life) THEN
    RETURN;
  END IF;
  -- A slot of another name is another stream: what the one before has not brought, this one may not bring either.
  FOR ended IN
    DELETE FROM coord.stream_source s
     WHERE s.node = peer
       AND NOT EXISTS (SELECT FROM jsonb_to_recordset(offers) AS o(stream text, slot text)
                        WHERE o.stream = s.stream AND o.slot IS NOT DISTINCT FROM s.slot AND s.actor = peer_actor)
    RETURNING s.*
  LOOP
    PERFORM coord.stream_source_end(ended);
  END LOOP;
  INSERT INTO coord.stream_source AS k (node, stream, own_life, actor, slot, base, offered)
  SELECT peer, s.name, n.life, peer_actor, o.slot, o.base, o.reason
    FROM jsonb_to_recordset(offers) AS o(stream text, slot text, base bigint, reason text)
    JOIN coord.stream s ON s.name = o.stream
    CROSS JOIN coord.local_node n
   WHERE s.name = ANY (coord.stream_wanted(peer))
     AND NOT EXISTS (SELECT FROM coord.stream_source k
                      WHERE (k.node, k.stream) = (peer, s.name) AND (k.base, k.offered) IS NOT DISTINCT FROM (o.base, o.reason))
  ON CONFLICT (node, stream) DO UPDATE SET base = excluded.base, offered = excluded.offered;
END
$$;
COMMENT ON FUNCTION stream_hear(text, uuid, text, text[], jsonb) IS 'a peer has said which streams it wants, and which it has';

-- What should exist against what does. Every statement finds nothing to do when all is as it should be.

CREATE VIEW stream_slot_missing AS
  SELECT o.slot
    FROM coord.stream_offer o
    JOIN coord.stream s ON s.name = o.stream
    JOIN pg_catalog.pg_publication p ON p.pubname = s.publication
   WHERE o.settled_after IS NULL;
COMMENT ON VIEW stream_slot_missing IS 'slots that are to be made, or have just been';

CREATE FUNCTION stream_tend_offers() RETURNS boolean
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  is_logical boolean := current_setting('wal_level') = 'logical';
  each record;
BEGIN
  DELETE FROM coord.stream s WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = s.target);
  DELETE FROM coord.stream_offer o
   WHERE NOT o.stream = ANY (coord.stream_wanted(o.node))
      OR NOT EXISTS (SELECT FROM coord.local_node n WHERE n.life = o.own_life);
  -- A slot that is lost, or gone, has left out rows: another one begins, under another name.
  UPDATE coord.stream_offer o
     SET slot = coord.stream_slot_name(coord.node_name(), o.node), settled_after = NULL, base = NULL, state = 'waiting',
         reason = 'the slot was lost', since = clock_timestamp(), slots_lost = o.slots_lost + 1
   WHERE o.settled_after IS NOT NULL
     AND NOT EXISTS (SELECT FROM pg_replication_slots r WHERE r.slot_name = o.slot AND r.wal_status IS DISTINCT FROM 'lost');
  -- What has been committed can still be unseen, and was not streamed when that was before the slot began.
  UPDATE coord.stream_offer o
     SET base = coalesce((SELECT p.local_xid::text::bigint + 1 FROM coord.op p ORDER BY p.local_xid DESC LIMIT 1), 0), reason = NULL
   WHERE o.base IS NULL AND o.settled_after < pg_snapshot_xmin(pg_current_snapshot());
  UPDATE coord.stream_offer o
     SET state = f.state, reason = f.reason, since = CASE WHEN o.state = f.state THEN o.since ELSE clock_timestamp() END
    FROM (SELECT k.node, k.stream,
                 CASE WHEN k.base IS NULL THEN 'waiting' WHEN r.active THEN 'streaming' ELSE 'ready' END AS state,
                 CASE WHEN k.base IS NOT NULL THEN NULL
                      WHEN NOT is_logical THEN 'wal_level is ' || current_setting('wal_level')
                      WHEN k.settled_after IS NOT NULL THEN 'waiting for transaction ' || pg_snapshot_xmin(pg_current_snapshot())
                      ELSE coalesce((SELECT 'waiting for transaction ' || l.transactionid
                                       FROM pg_locks l
                                      WHERE l.pid = r.active_pid AND NOT l.granted AND l.locktype = 'transactionid'), k.reason) END AS reason
            FROM coord.stream_offer k LEFT JOIN pg_replication_slots r ON r.slot_name = k.slot) f
   WHERE (o.node, o.stream) = (f.node, f.stream) AND (o.state, o.reason) IS DISTINCT FROM (f.state, f.reason);

  -- A publication that a dump has brought back has lost the tables of the extension. One that is younger than a
  -- slot cannot be read through that.
  FOR each IN
    SELECT p.pubname
      FROM pg_publication p
     WHERE p.pubname LIKE 'coord\_stream\_%'
       AND NOT EXISTS (SELECT FROM coord.stream s JOIN coord.stream_offer o ON o.stream = s.name
                        WHERE s.publication = p.pubname
                          AND (SELECT count(*) FROM pg_publication_rel r
                                WHERE r.prpubid = p.oid AND r.prrelid IN (s.target, 'coord.heartbeat'::regclass)) = 2)
  LOOP
    EXECUTE format('DROP PUBLICATION %I', each.pubname);
  END LOOP;
  FOR each IN
    SELECT s.publication, s.target, s.name
      FROM coord.stream s
     WHERE is_logical AND EXISTS (SELECT FROM coord.stream_offer o WHERE o.stream = s.name)
       AND NOT EXISTS (SELECT FROM pg_publication p WHERE p.pubname = s.publication)
  LOOP
    UPDATE coord.stream_offer o
       SET slot = coord.stream_slot_name(coord.node_name(), o.node), settled_after = NULL, base = NULL, state = 'waiting'
     WHERE o.stream = each.name AND o.settled_after IS NOT NULL;
    BEGIN
      -- What is each node's own stays at home. An earlier life of this node is this node too.
      EXECUTE format('CREATE PUBLICATION %I FOR TABLE %s %s WHERE (split_part(origin, ''#'', 1) = %L), '
                     'TABLE coord.heartbeat WHERE (stream = %L) WITH (publish = ''insert'', publish_via_partition_root = true)',
                     each.publication, each.target,
                     CASE each.name WHEN 'op' THEN '(origin, seq, xid, hlc, op_id, scope, surface, payload, recorded_at, tenant_id)' END,
                     coord.node_name(), each.name);
    EXCEPTION WHEN OTHERS THEN
      -- A table that is locked, or has become another one, holds up no other stream.
      UPDATE coord.stream_offer o SET reason = SQLERRM WHERE o.stream = each.name;
    END;
  END LOOP;
  RETURN is_logical AND EXISTS (SELECT FROM coord.stream_slot_missing);
END
$$;
COMMENT ON FUNCTION stream_tend_offers() IS 'keeps offers and publications as they should be; returns whether slots are missing';

CREATE FUNCTION stream_tend_slots() RETURNS bigint
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  orphan record;
  removed bigint := 0;
BEGIN
  FOR orphan IN
    SELECT r.slot_name, r.active_pid
      FROM pg_replication_slots r
     WHERE r.database = current_database() AND r.plugin = 'pgoutput' AND NOT r.temporary AND r.slot_name ~ '^coord_.+_[0-9a-f]{8}$'
       AND NOT EXISTS (SELECT FROM coord.stream_offer o WHERE o.slot = r.slot_name)
  LOOP
    -- A reader comes back soon, and would keep the slot.
    PERFORM pg_terminate_backend(orphan.active_pid, 1000) WHERE orphan.active_pid IS NOT NULL;
    PERFORM pg_drop_replication_slot(orphan.slot_name);
    removed := removed + 1;
  END LOOP;
  RETURN removed;
END
$$;
COMMENT ON FUNCTION stream_tend_slots() IS 'removes slots that no peer is to read; returns how many';

CREATE VIEW stream_subscription AS
  SELECT b.oid, b.subname::text COLLATE "C" AS name, b.subenabled AS is_enabled
    FROM pg_catalog.pg_subscription b
   WHERE b.subdbid = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database());
COMMENT ON VIEW stream_subscription IS 'subscriptions of this database, whoever made them';

CREATE VIEW stream_orphan AS
  SELECT b.name AS subscription
    FROM coord.stream_subscription b
   WHERE b.name ~ '^coord_.+_[0-9a-f]{8}$' AND NOT EXISTS (SELECT FROM coord.stream_source s WHERE s.slot = b.name);
COMMENT ON VIEW stream_orphan IS 'subscriptions that are to be removed';

CREATE VIEW stream_missing AS
  SELECT s.slot FROM coord.stream_source s
   WHERE s.slot IS NOT NULL AND NOT EXISTS (SELECT FROM coord.stream_subscription b WHERE b.name = s.slot);
COMMENT ON VIEW stream_missing IS 'subscriptions that are to be made, by their slots';

CREATE FUNCTION stream_tend_sources() RETURNS boolean
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  frontier coord.vclock := coord.frontier();
  ended coord.stream_source;
  judged record;
BEGIN
  FOR ended IN
    DELETE FROM coord.stream_source s
     WHERE NOT s.stream = ANY (coord.stream_wanted(s.node))
        OR NOT EXISTS (SELECT FROM coord.local_node n WHERE n.life = s.own_life)
    RETURNING s.*
  LOOP
    PERFORM coord.stream_source_end(ended);
  END LOOP;
  UPDATE coord.stream_source s SET is_covered = true
   WHERE NOT s.is_covered AND s.slot IS NOT NULL
     AND (s.stream <> 'op' OR coord.vclock_get(frontier, s.actor) >= s.base);
  FOR judged IN
    SELECT j.source, j.state, r.reason
      FROM (SELECT s AS source, b.is_enabled,
                   CASE WHEN s.slot IS NULL THEN 'waiting'
                        WHEN b.oid IS NULL OR s.heard_at IS NULL THEN 'connecting'
                        WHEN s.heard_at < clock_timestamp() - greatest(10 * s.pace, interval '10 s') THEN 'stalled'
                        WHEN NOT s.is_covered THEN 'catching up'
                        WHEN EXISTS (SELECT FROM pg_subscription_rel r WHERE r.srsubid = b.oid AND r.srsubstate <> 'r') THEN 'copying'
                        ELSE 'streaming' END AS state
              FROM coord.stream_source s LEFT JOIN coord.stream_subscription b ON b.name = s.slot) j
      CROSS JOIN LATERAL
           (SELECT CASE WHEN j.state = 'waiting' THEN coalesce((j.source).offered, 'the peer makes a slot')
                        WHEN j.is_enabled IS NULL THEN (j.source).failure
                        WHEN NOT j.is_enabled THEN 'the subscription is disabled'
                        WHEN j.state = 'connecting' THEN 'no heartbeat has come'
                        WHEN j.state = 'stalled' THEN 'no heartbeat comes'
                        WHEN j.state = 'catching up' THEN 'gossip brings what is older than the slot' END AS reason) r
     WHERE ((j.source).state, (j.source).reason) IS DISTINCT FROM (j.state, r.reason)
  LOOP
    UPDATE coord.stream_source s
       SET state = judged.state, reason = judged.reason,
           since = CASE WHEN (judged.source).state = judged.state THEN s.since ELSE clock_timestamp() END
     WHERE (s.node, s.stream) = ((judged.source).node, (judged.source).stream) AND s.slot IS NOT DISTINCT FROM (judged.source).slot;
    IF judged.state <> 'streaming' THEN
      PERFORM coord.stream_source_end(judged.source);
    END IF;
  END LOOP;
  RETURN EXISTS (SELECT FROM coord.stream_missing) OR EXISTS (SELECT FROM coord.stream_orphan);
END
$$;
COMMENT ON FUNCTION stream_tend_sources() IS 'judges the streams that this node takes; returns whether subscriptions are missing, or left over';

-- What waits for other transactions and for the network: a process of its own does it.

CREATE FUNCTION stream_slot_create(slot text) RETURNS void
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  SELECT pg_create_logical_replication_slot(slot, 'pgoutput')
   WHERE NOT EXISTS (SELECT FROM pg_replication_slots r WHERE r.slot_name = slot)
$$;
COMMENT ON FUNCTION stream_slot_create(text) IS 'makes a slot; waits for every transaction that writes';

-- Whatever began before the slot did has a lower number than this transaction.
CREATE FUNCTION stream_slot_made(slot text) RETURNS void
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  UPDATE coord.stream_offer o SET settled_after = pg_current_xact_id()
   WHERE o.slot = $1
     AND EXISTS (SELECT FROM pg_replication_slots r WHERE r.slot_name = $1 AND r.confirmed_flush_lsn IS NOT NULL)
$$;
COMMENT ON FUNCTION stream_slot_made(text) IS 'notes that a slot is there';

CREATE FUNCTION stream_conninfo(peer text) RETURNS text
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  RETURN (SELECT string_agg(format('%s=''%s''', o.option_name, replace(replace(o.option_value, '\', '\\'), '''', '\''')), ' ')
            FROM coord.peer p
            JOIN pg_foreign_server s ON s.srvname = p.server
            LEFT JOIN pg_user_mapping m ON m.umserver = s.oid AND m.umuser = s.srvowner
            CROSS JOIN LATERAL pg_options_to_table(s.srvoptions || m.umoptions) o
           WHERE p.name = peer);
COMMENT ON FUNCTION stream_conninfo(text) IS 'how libpq reaches a peer; with the password, if one is given there';

CREATE FUNCTION stream_subscribe(slot text) RETURNS void
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  source coord.stream_source;
BEGIN
  SELECT s.* INTO STRICT source FROM coord.stream_source s WHERE s.slot = $1;
  -- Operations that are older than the slot come by gossip; rows of other tables are copied.
  EXECUTE format('CREATE SUBSCRIPTION %I CONNECTION %L PUBLICATION %I WITH (create_slot = false, slot_name = %L, copy_data = %s, '
                 'synchronous_commit = ''on'', streaming = off%s)',
                 slot, coord.stream_conninfo(source.node) || format(' application_name=%s', slot),
                 (SELECT t.publication FROM coord.stream t WHERE t.name = source.stream), slot, (source.stream <> 'op')::text,
                 CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN ', origin = none' END);
  UPDATE coord.stream_source s SET failure = NULL WHERE s.slot = $1;
END
$$;
COMMENT ON FUNCTION stream_subscribe(text) IS 'begins to take a stream; connects to the peer';

CREATE FUNCTION stream_unsubscribe(subscription text) RETURNS void
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  EXECUTE format('ALTER SUBSCRIPTION %I DISABLE', subscription);
  EXECUTE format('ALTER SUBSCRIPTION %I SET (slot_name = NONE)', subscription);
  EXECUTE format('DROP SUBSCRIPTION %I', subscription);
END
$$;
COMMENT ON FUNCTION stream_unsubscribe(text) IS 'ends taking a stream; its slot is the peer''s affair';

-- For administrators.

CREATE VIEW stream_status AS
  SELECT s.node AS peer, s.stream, 'in' AS direction,
         CASE WHEN q.origin IS NOT NULL THEN 'quarantined' ELSE s.state END AS state,
         CASE WHEN q.origin IS NOT NULL THEN q.reason ELSE s.reason END AS reason,
         coalesce(q.since, s.since) AS since, s.slot, s.horizon, NULL::bigint AS backlog, NULL::bigint AS slots_lost
    FROM coord.stream_source s
    LEFT JOIN coord.quarantine q ON q.origin = s.actor AND s.stream = 'op'
  UNION ALL
  SELECT o.node, o.stream, 'out', o.state, o.reason, o.since, o.slot, o.base,
         pg_wal_lsn_diff(pg_current_wal_insert_lsn(), coalesce(r.confirmed_flush_lsn, r.restart_lsn))::bigint, o.slots_lost
    FROM coord.stream_offer o
    LEFT JOIN pg_catalog.pg_replication_slots r ON r.slot_name = o.slot;
COMMENT ON VIEW stream_status IS 'streams from peers (in) and to them (out)';
COMMENT ON COLUMN stream_status.state IS 'in: waiting, connecting, copying, catching up, streaming, stalled, quarantined; out: waiting, ready, streaming';
COMMENT ON COLUMN stream_status.reason IS 'why it does not stream';
COMMENT ON COLUMN stream_status.slot IS 'name of the slot and of the subscription';
COMMENT ON COLUMN stream_status.horizon IS 'in: rows of all transactions of the peer below have come; out: where the slot began';
COMMENT ON COLUMN stream_status.backlog IS 'bytes of the transaction log that the peer has yet to take';
COMMENT ON COLUMN stream_status.slots_lost IS 'how often the slot was lost and made anew';

CREATE FUNCTION stream_key(target regclass) RETURNS SETOF name
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  SELECT a.attname
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
   WHERE i.indrelid = target AND i.indisprimary
   ORDER BY a.attnum
$$;
COMMENT ON FUNCTION stream_key(regclass) IS 'columns of the primary key of a table';

CREATE FUNCTION stream_admit() RETURNS trigger
  LANGUAGE plpgsql
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  is_here boolean;
BEGIN
  IF coord.stream_origin() IS NULL THEN
    NEW.origin := coalesce(NEW.origin, coord.stream_actor());
    RETURN NEW;
  END IF;
  PERFORM coord.stream_gate();
  EXECUTE format('SELECT true FROM %s t WHERE %s', TG_RELID::regclass, TG_ARGV[0]) INTO is_here USING NEW;
  IF is_here THEN
    RETURN NULL;
  END IF;
  RETURN NEW;
END
$$;
COMMENT ON FUNCTION stream_admit() IS 'names the origin of a row, and passes over one that has come before';

-- Rows that no stream can carry travel in the operation log, by gossip, and stay there.

CREATE FUNCTION stream_is_possible() RETURNS boolean
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN current_setting('coord.streaming')::boolean AND current_setting('wal_level') = 'logical';
COMMENT ON FUNCTION stream_is_possible() IS 'whether streams can carry what is written here';

CREATE FUNCTION stream_say(stream text, said jsonb) RETURNS void
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  SELECT coord.op_append_own('personal', 'row', jsonb_build_object('stream', stream, 'row', said))
$$;
COMMENT ON FUNCTION stream_say(text, jsonb) IS 'appends a row of a stream to the operation log';

-- Casts, defaults, checks and triggers of a table run with the rights of whoever puts rows in, or reads them.
CREATE FUNCTION stream_owner_check(target oid) RETURNS void
  LANGUAGE plpgsql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE c.oid = target AND r.rolsuper) THEN
    RAISE insufficient_privilege USING MESSAGE = format('table %s is streamed and belongs to a role that is no superuser', target::regclass);
  END IF;
END
$$;
COMMENT ON FUNCTION stream_owner_check(oid) IS 'raises 42501 where somebody could run what he likes with the rights of the extension';

-- A value as text reads back as the same one, whatever the session likes.
CREATE FUNCTION stream_log() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  SET extra_float_digits = 3
  SET intervalstyle = iso_8601
  SET datestyle = iso
AS $$
BEGIN
  PERFORM coord.stream_owner_check(TG_RELID);
  IF coord.stream_origin() IS NULL AND NEW.origin = coord.stream_actor() THEN
    PERFORM coord.stream_say(TG_ARGV[0], to_jsonb(NEW));
  END IF;
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION stream_log() IS 'appends an own row to the operation log';

-- As replication applies rows: neither foreign keys nor ordinary triggers are asked. What the table here has more is
-- filled in by it.
CREATE FUNCTION stream_put(target regclass, said jsonb) RETURNS bigint
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  SET session_replication_role = replica
  SET datestyle = iso
AS $$
DECLARE
  missing text := (SELECT string_agg(format('"%s"', k.name), ', ')
                     FROM jsonb_object_keys(said) AS k(name)
                    WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE (a.attrelid, a.attname) = (target, k.name) AND NOT a.attisdropped));
  given text := (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
                   FROM pg_attribute a
                  WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND said ? a.attname);
  added bigint;
BEGIN
  PERFORM coord.stream_owner_check(target);
  IF missing IS NOT NULL THEN
    RAISE undefined_column USING MESSAGE = format('table %s has no column %s', target, missing);
  END IF;
  EXECUTE format('INSERT INTO %1$s (%2$s) OVERRIDING SYSTEM VALUE SELECT %2$s FROM jsonb_populate_record(NULL::%1$s, $1) ON CONFLICT (%3$s) DO NOTHING',
                 target, given, array_to_string(ARRAY(SELECT quote_ident(k) FROM coord.stream_key(target) k), ', ')) USING said;
  GET DIAGNOSTICS added = ROW_COUNT;
  RETURN added;
END
$$;
COMMENT ON FUNCTION stream_put(regclass, jsonb) IS 'puts a row from elsewhere into a streamed table; returns how many that are new there';

-- What cannot be put in stops nobody.
CREATE FUNCTION stream_fold(ops op[]) RETURNS bigint
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  said record;
  folded bigint := 0;
BEGIN
  FOR said IN
    SELECT o AS op, o.origin, o.seq, s.target, o.payload -> 'row' AS "row"
      FROM unnest(ops) o JOIN coord.stream s ON s.name = o.payload ->> 'stream'
     WHERE o.surface = 'row' AND s.name <> 'op' AND o.origin IS DISTINCT FROM (SELECT n.actor FROM coord.local_node n)
       AND EXISTS (SELECT FROM coord.stream_key(s.target))
     ORDER BY o.hlc, o.op_id
  LOOP
    BEGIN
      IF split_part(said."row" ->> 'origin', '#', 1) IS DISTINCT FROM split_part(said.origin, '#', 1) THEN
        RAISE check_violation USING MESSAGE = 'a row of another origin';
      END IF;
      folded := folded + coord.stream_put(said.target, said."row");
      DELETE FROM coord.conflict c WHERE (c.origin, c.seq, c.reason) = (said.origin, said.seq, 'refused');
    EXCEPTION
      WHEN lock_not_available OR transaction_rollback OR insufficient_resources OR operator_intervention THEN
        RAISE;
      WHEN OTHERS THEN
        PERFORM coord.op_refuse(said.op::coord.op, 'refused', SQLERRM);
    END;
  END LOOP;
  RETURN folded;
END
$$;
COMMENT ON FUNCTION stream_fold(op[]) IS 'puts rows that came as operations into the tables that are streamed here; returns how many were new there';

CREATE FUNCTION stream_refold(stream text, since xid8 DEFAULT '0') RETURNS bigint
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  said coord.op;
  folded bigint := 0;
BEGIN
  FOR said IN SELECT o.* FROM coord.op o WHERE o.local_xid >= since AND o.surface = 'row' AND o.payload ->> 'stream' = stream LOOP
    folded := folded + coord.stream_fold(ARRAY[said]);
  END LOOP;
  RETURN folded;
END
$$;
COMMENT ON FUNCTION stream_refold(text, xid8) IS 'puts in what the log has of a streamed table, since a transaction, and the table lacks; returns how many rows that were';

CREATE FUNCTION stream_refuse(target text, reason text) RETURNS void
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'stream_refuse_wrapper';
COMMENT ON FUNCTION stream_refuse(text, text) IS 'raises 22023: a table cannot be streamed';

CREATE FUNCTION stream_obstacle(target regclass) RETURNS text
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  RETURN (SELECT CASE WHEN c.relkind NOT IN ('r', 'p') OR c.relpersistence <> 'p' THEN 'It is not a permanent table.'
                      WHEN c.relnamespace = 'coord'::regnamespace THEN 'It belongs to the extension.'
                      WHEN NOT EXISTS (SELECT FROM pg_attribute a
                                        WHERE a.attrelid = c.oid AND a.attname = 'origin' AND a.atttypid = 'text'::regtype AND NOT a.attisdropped)
                        THEN 'It has no column "origin" of type text.'
                      WHEN NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) THEN 'It has no primary key.'
                      WHEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate)
                        THEN 'Its primary key is deferrable.'
                      WHEN NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.oid = c.relowner) THEN 'It belongs to a role that is no superuser.' END
            FROM pg_class c WHERE c.oid = target);
COMMENT ON FUNCTION stream_obstacle(regclass) IS 'why a table cannot be streamed; NULL when it can';

CREATE FUNCTION stream_add(target regclass) RETURNS text
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  SET extra_float_digits = 3
  SET intervalstyle = iso_8601
  SET datestyle = iso
AS $$
DECLARE
  obstacle text := coord.stream_obstacle(target);
  added text;
  begun xid8;
BEGIN
  PERFORM coord.read_committed_required('coord.stream_add');
  IF obstacle IS NOT NULL THEN
    PERFORM coord.stream_refuse(target::text, obstacle);
  END IF;
  DELETE FROM coord.stream s WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = s.target);
  INSERT INTO coord.stream (name, target)
  SELECT n.nspname || '.' || c.relname, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1
  ON CONFLICT ON CONSTRAINT stream_target_key DO NOTHING
  RETURNING name INTO added;
  IF added IS NULL THEN
    RETURN (SELECT s.name FROM coord.stream s WHERE s.target = $1);
  END IF;
  EXECUTE format('CREATE TRIGGER coord_stream_admit BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION coord.stream_admit(%L)', target,
    (SELECT string_agg(format('t.%1$I = ($1).%1$I', k), ' AND ') FROM coord.stream_key(target) k));
  EXECUTE format('CREATE TRIGGER coord_stream_log AFTER INSERT ON %s FOR EACH ROW WHEN (NOT coord.stream_is_possible()) EXECUTE FUNCTION coord.stream_log(%L)',
    target, added);
  EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER coord_stream_admit, ENABLE ALWAYS TRIGGER coord_stream_log', target);
  IF NOT coord.stream_is_possible() THEN
    EXECUTE format('SELECT coord.stream_say($1, to_jsonb(t)) FROM %s %s t WHERE split_part(t.origin, ''#'', 1) = split_part($2, ''#'', 1)',
                   CASE WHEN (SELECT c.relkind FROM pg_class c WHERE c.oid = target) = 'r' THEN 'ONLY' END, target)
      USING added, coord.stream_actor();
  END IF;
  -- Whoever brings rows does not see this stream before this transaction has ended: what came meanwhile is put in
  -- while nobody can bring more.
  begun := pg_snapshot_xmin(pg_current_snapshot());
  PERFORM coord.stream_refold(added);
  LOCK TABLE coord.op IN SHARE ROW EXCLUSIVE MODE;
  PERFORM coord.stream_refold(added, begun);
  RETURN added;
END
$$;
COMMENT ON FUNCTION stream_add(regclass) IS 'streams an insert-only table with a primary key and a column "origin" to the peers that stream it too; returns the name of the stream';

CREATE FUNCTION stream_remove(target regclass) RETURNS boolean
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  DELETE FROM coord.stream s WHERE s.target = $1 AND s.name <> 'op';
  IF FOUND THEN
    EXECUTE format('DROP TRIGGER coord_stream_admit ON %s', target);
    EXECUTE format('DROP TRIGGER coord_stream_log ON %s', target);
    RETURN true;
  END IF;
  RETURN false;
END
$$;
COMMENT ON FUNCTION stream_remove(regclass) IS 'ends streaming a table, in both directions; returns whether it was streamed';

-- A trigger on a table of the user's own runs as whoever writes there.
REVOKE ALL ON FUNCTION stream_slot(), heartbeat_hear(), stream_is_enabled(),
  stream_wanted(text), stream_offered(text), stream_slot_name(text, text), stream_source_end(stream_source),
  stream_hear(text, uuid, text, text[], jsonb), stream_tend_offers(), stream_tend_slots(), stream_tend_sources(),
  stream_slot_create(text), stream_slot_made(text), stream_conninfo(text), stream_subscribe(text), stream_unsubscribe(text),
  stream_key(regclass), stream_admit(), stream_say(text, jsonb), stream_owner_check(oid), stream_log(), stream_put(regclass, jsonb), stream_fold(op[]), stream_refold(text, xid8),
  stream_refuse(text, text), stream_obstacle(regclass), stream_add(regclass), stream_remove(regclass) FROM PUBLIC;
GRANT SELECT ON heartbeat TO coord_peer;
GRANT SELECT ON stream, stream_offer, stream_source, stream_status TO coord_monitor;

CREATE TABLE report_cursor (
  node text COLLATE "C" PRIMARY KEY,
  space text COLLATE "C" NOT NULL,
  given pg_snapshot,
  until pg_snapshot,
  after_xid bigint,
  after_name text COLLATE "C",
  log_position pg_lsn NOT NULL DEFAULT '0/0',
  has_left boolean NOT NULL DEFAULT false,
  frontier vclock NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE report_cursor IS 'how far this node has been given the reports of each peer';
COMMENT ON COLUMN report_cursor.space IS 'transaction-number space of the snapshots';
COMMENT ON COLUMN report_cursor.given IS 'everything this snapshot of the peer sees has been given';
COMMENT ON COLUMN report_cursor.until IS 'a larger snapshot that is being given in parts';
COMMENT ON COLUMN report_cursor.log_position IS 'furthest place that the transaction log of the peer was flushed to when it gave reports';
COMMENT ON COLUMN report_cursor.frontier IS 'operations held completely through this peer';
COMMENT ON COLUMN report_cursor.has_left IS 'the peer has left or was removed: the worker is to take its leases for expired, and then to begin anew with it';

-- A time left is kept within what a lease can have, whatever clocks have done since it was granted.
CREATE FUNCTION report_body(report lease_report) RETURNS jsonb
  LANGUAGE sql STABLE
  RETURN jsonb_build_object('lease', jsonb_build_object(
    'resource', report.resource, 'node', report.node, 'holder', report.holder, 'epoch', report.epoch,
    'has_ended', report.has_ended, 'version', report.version,
    'time_left', (extract(epoch FROM greatest(least(report.expires_at - coord.lease_now(), interval '10 years'), interval '0'))
                  * 1000000)::bigint));
COMMENT ON FUNCTION report_body(lease_report) IS 'a report as it travels; nodes do not compare their clocks';

CREATE FUNCTION report_body(report op) RETURNS jsonb
  LANGUAGE sql STABLE
  RETURN jsonb_build_object('op', jsonb_build_object(
    'origin', report.origin, 'seq', report.seq, 'xid', report.xid::text::bigint, 'hlc', report.hlc, 'op_id', report.op_id,
    'scope', report.scope, 'surface', report.surface, 'payload', report.payload::text,
    'recorded_at', (extract(epoch FROM report.recorded_at) * 1000000)::bigint, 'tenant_id', report.tenant_id));
COMMENT ON FUNCTION report_body(op) IS 'an operation as it travels by gossip';

CREATE FUNCTION report_version(report lease_report, sender text) RETURNS bigint
  LANGUAGE sql STABLE
  RETURN CASE WHEN report.has_lapsed AND (report.node = sender OR EXISTS (SELECT FROM coord.member m WHERE m.node = report.node)) THEN -1
              ELSE report.version END;
COMMENT ON FUNCTION report_version(lease_report, text) IS 'what a report has to lie above to be news: of a node that is a member again, or says so itself, it can be the same one';

CREATE FUNCTION op_insert(ops jsonb[]) RETURNS bigint
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  WITH admitted AS (
    INSERT INTO coord.op (origin, seq, xid, hlc, op_id, scope, surface, payload, recorded_at, tenant_id)
    SELECT o.origin, o.seq, o.xid::text::xid8, o.hlc, o.op_id, o.scope, o.surface, o.payload::jsonb,
           'epoch'::timestamptz + o.recorded_at * interval '1 microsecond', o.tenant_id
      FROM unnest(ops) AS e(op)
     CROSS JOIN LATERAL jsonb_to_record(e.op)
       AS o(origin text, seq bigint, xid bigint, hlc coord.hlc, op_id text, scope text, surface text, payload text,
            recorded_at bigint, tenant_id uuid)
     ORDER BY o.scope COLLATE "C", o.surface COLLATE "C", coord.op_key(o.surface, o.payload::jsonb) COLLATE "C"
    RETURNING 1)
  SELECT count(*) FROM admitted
$$;
COMMENT ON FUNCTION op_insert(jsonb[]) IS 'puts operations into the log, in the order of what they fold into; returns how many were new';

-- A record may be in the hands of a transaction that stays open. The wait for it is cut short; and then one by
-- one, so that no operation waits for another's: one whose record is held is in the log, and folded later.
CREATE FUNCTION op_learn(ops jsonb[]) RETURNS bigint
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  patience text := current_setting('lock_timeout');
  held text[] := '{}';
  subject text;
  admitted bigint := 0;
BEGIN
  IF cardinality(ops) = 0 THEN
    RETURN 0;
  END IF;
  -- In one order, and with patience: whoever else brings these is done in a moment.
  PERFORM coord.op_origin_lock(o.origin)
     FROM (SELECT DISTINCT e.op ->> 'origin' COLLATE "C" AS origin FROM unnest(ops) AS e(op) ORDER BY 1) o;
  BEGIN
    PERFORM set_config('lock_timeout', '100ms', true);
    admitted := coord.op_insert(ops);
  EXCEPTION WHEN lock_not_available THEN
    PERFORM set_config('lock_timeout', '1ms', true);
    FOR place IN 1..cardinality(ops) LOOP
      subject := concat_ws(' ', ops[place] ->> 'scope', ops[place] ->> 'surface',
                           coord.op_key(ops[place] ->> 'surface', (ops[place] ->> 'payload')::jsonb));
      BEGIN
        IF subject = ANY (held) THEN
          RAISE lock_not_available;
        END IF;
        admitted := admitted + coord.op_insert(ops[place:place]);
      EXCEPTION WHEN lock_not_available THEN
        held := held || subject;
        INSERT INTO coord.fold_waiting (origin, seq)
        SELECT n.origin, n.seq
          FROM (SELECT ops[place] ->> 'origin' AS origin, (ops[place] ->> 'seq')::bigint AS seq) n
         WHERE NOT EXISTS (SELECT FROM coord.op o WHERE (o.origin, o.seq) = (n.origin, n.seq))
        ON CONFLICT DO NOTHING;
        admitted := admitted + coord.op_insert(ops[place:place]);
      END;
    END LOOP;
  END;
  PERFORM set_config('lock_timeout', patience, true);
  RETURN admitted;
END
$$;
COMMENT ON FUNCTION op_learn(jsonb[]) IS 'puts operations that a peer gave into the log and waits for nobody; returns how many were new';

-- Rows are taken in the order of their keys: two peers may give the same ones at once; and what is no news
-- is not touched. Of its own leases a node believes nobody: what an earlier life has granted lies below the
-- epochs of this one. What a node said that has left or was removed goes on being passed on, for instance to a peer
-- that begins a new life and by it: it is no news, or lapses as it comes.
CREATE FUNCTION report_learn(sender text, reports jsonb) RETURNS bigint
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  INSERT INTO coord.lease_report AS r (resource, node, holder, epoch, has_ended, expires_at, version, learned_from, has_lapsed)
  SELECT l.resource, l.node, l.holder, l.epoch, l.has_ended,
         coord.lease_now() + CASE WHEN h.has_left THEN 0 ELSE l.time_left END * interval '1 microsecond', l.version, sender, h.has_left
    FROM jsonb_array_elements(reports) AS e(report)
   CROSS JOIN LATERAL jsonb_to_record(e.report -> 'lease')
     AS l(resource text, node text, holder text, epoch bigint, has_ended boolean, version bigint, time_left bigint)
   CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM coord.roster n WHERE n.name = l.node AND n.status = 'left') AS has_left) h
   WHERE e.report ? 'lease'
     AND NOT EXISTS (SELECT FROM coord.local_node n WHERE n.name = l.node)
     AND NOT EXISTS (SELECT FROM coord.lease_report k
                      WHERE (k.resource, k.node) = (l.resource, l.node)
                        AND (k.epoch, k.has_ended, coord.report_version(k, sender)) >= (l.epoch, l.has_ended, l.version))
   ORDER BY l.resource COLLATE "C", l.node COLLATE "C"
  ON CONFLICT ON CONSTRAINT lease_report_pkey DO UPDATE
     SET holder = excluded.holder, epoch = excluded.epoch, has_ended = excluded.has_ended,
         expires_at = excluded.expires_at, heard_at = DEFAULT, version = excluded.version,
         learned_from = excluded.learned_from, local_xid = DEFAULT, number = DEFAULT, has_lapsed = excluded.has_lapsed
   WHERE (excluded.epoch, excluded.has_ended, excluded.version) > (r.epoch, r.has_ended, coord.report_version(r, sender));

  SELECT coord.op_learn(ARRAY(SELECT e.report -> 'op' FROM jsonb_array_elements(reports) AS e(report) WHERE e.report ? 'op'))
$$;
COMMENT ON FUNCTION report_learn(text, jsonb) IS 'keeps the reports that are newer than what is known, and operations; returns how many of these were new';

CREATE FUNCTION gossip_wake_appended() RETURNS trigger
  LANGUAGE c AS 'MODULE_PATHNAME', 'gossip_wake_appended_wrapper';
COMMENT ON FUNCTION gossip_wake_appended() IS 'wakes the worker when the transaction commits, for peers that no stream brings its operations to';
CREATE TRIGGER gossip_wake AFTER INSERT ON op
  FOR EACH STATEMENT WHEN (NOT coord.op_is_from_elsewhere()) EXECUTE FUNCTION gossip_wake_appended();
COMMENT ON TRIGGER gossip_wake ON op IS 'operations are pushed to the peers at commit';

-- What a peer held that has left, or was removed here, keeps nobody waiting. Its epochs still count, and what
-- it reports later counts again. The worker does it: exchanges must not wait for a session that removes a
-- peer in a transaction of its own.
CREATE FUNCTION report_lapse_ask() RETURNS trigger
  LANGUAGE plpgsql
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  INSERT INTO coord.report_cursor AS c (node, space, has_left) VALUES (OLD.node, '', true)
  ON CONFLICT (node) DO UPDATE SET has_left = true;
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION report_lapse_ask() IS 'asks the worker to take the leases of a node for expired that is no member any more';
CREATE TRIGGER report_lapse AFTER DELETE ON member
  FOR EACH ROW EXECUTE FUNCTION report_lapse_ask();
COMMENT ON TRIGGER report_lapse ON member IS 'leases of a node that has left count as expired';

CREATE FUNCTION report_lapse() RETURNS bigint
  LANGUAGE sql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  WITH gone AS (
    UPDATE coord.report_cursor c
       SET has_left = false, space = '', given = NULL, until = NULL, after_xid = NULL, after_name = NULL, log_position = '0/0'
     WHERE c.has_left
    RETURNING c.node
  ), live AS (
    SELECT r.resource, r.node
      FROM coord.lease_report r JOIN gone g ON g.node = r.node
     WHERE r.learned_from IS NOT NULL AND r.expires_at > coord.lease_now()
     ORDER BY r.resource, r.node
       FOR UPDATE OF r
  ), lapsed AS (
    UPDATE coord.lease_report r SET expires_at = coord.lease_now(), has_lapsed = true
      FROM live l WHERE (r.resource, r.node) = (l.resource, l.node)
    RETURNING 1)
  SELECT count(*) FROM lapsed
$$;
COMMENT ON FUNCTION report_lapse() IS 'takes the leases of peers that have left for expired; returns how many there were';

-- Epochs of a life lie in a range of their own, unless higher ones were heard of.
CREATE FUNCTION report_epoch_range() RETURNS bigint
  LANGUAGE sql STABLE
  SET search_path = pg_catalog, coord, pg_temp
  RETURN greatest((SELECT max(l.epoch) FROM coord.lease l), (SELECT max(r.epoch) FROM coord.lease_report r), 0) >> 40;
COMMENT ON FUNCTION report_epoch_range() IS 'the highest range of epochs in which any lease was granted, here or as far as was heard';

-- What is kept beside the log, to be admitted later, is not held: nobody can be given it from here.
CREATE FUNCTION op_frontier_capped(frontier vclock) RETURNS vclock
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  RETURN CASE WHEN EXISTS (SELECT FROM coord.conflict c WHERE c.reason IN ('clock', 'quarantined')) THEN
    (SELECT coalesce(jsonb_object_agg(e.actor, least(e.counter, r.first)), '{}')::coord.vclock
       FROM coord.vclock_entries(frontier) e
       LEFT JOIN (SELECT c.origin, min((c.op ->> 'xid')::bigint) AS first
                    FROM coord.conflict c WHERE c.reason IN ('clock', 'quarantined') GROUP BY c.origin) r ON r.origin = e.actor)
    ELSE frontier END;
COMMENT ON FUNCTION op_frontier_capped(vclock) IS 'of each origin only what lies below the first operation that is not admitted yet';

-- Which operations are held completely: for each origin a number of a transaction there, below which all have
-- ended. One's own number stands still while the log does, so that a quiet mesh has nothing to say. What the
-- base of the log covers was held once, and stays so whatever is left out, also in a later life.
CREATE FUNCTION op_frontier_of(actor text, horizon bigint) RETURNS vclock
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  RETURN coord.op_frontier_capped(
    coalesce((SELECT coord.vclock_merge_agg(h.frontier)
                FROM (SELECT c.frontier FROM coord.report_cursor c
                      UNION ALL
                      SELECT jsonb_build_object(s.actor, s.horizon)::coord.vclock
                        FROM coord.stream_source s WHERE s.stream = 'op' AND s.is_covered AND s.horizon > 0
                      UNION ALL
                      SELECT b.frontier FROM coord.op_base b) h), '{}')
    OPERATOR(coord.||) jsonb_build_object(actor, coalesce(
      (SELECT least(o.local_xid::text::bigint + 1, horizon) FROM coord.op o ORDER BY o.local_xid DESC LIMIT 1), 0))::coord.vclock);
COMMENT ON FUNCTION op_frontier_of(text, bigint) IS 'operations that this node holds completely, at a snapshot with this horizon';

CREATE FUNCTION frontier() RETURNS vclock
  LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  RETURN coalesce((SELECT coord.op_frontier_of(n.actor, pg_snapshot_xmin(pg_current_snapshot())::text::bigint)
                     FROM coord.local_node n), coord.node_required()::coord.vclock);
COMMENT ON FUNCTION frontier() IS 'per origin, the horizon below which this node holds every operation';

-- The DELETE is not published. As for gossip, the number stands still while the log does.
CREATE FUNCTION heartbeat_send() RETURNS bigint
  LANGUAGE sql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  DELETE FROM coord.heartbeat;
  WITH sent AS (
    INSERT INTO coord.heartbeat (stream, origin, horizon, pace)
    SELECT o.stream, n.actor, coord.vclock_get(coord.frontier(), n.actor), current_setting('coord.heartbeat_interval')::interval
      FROM coord.local_node n, (SELECT DISTINCT stream FROM coord.stream_offer WHERE base IS NOT NULL) o
    RETURNING 1)
  SELECT count(*) FROM sent
$$;
COMMENT ON FUNCTION heartbeat_send() IS 'tells whoever reads a stream how far it is complete; returns how many streams are read';

CREATE FUNCTION op_acknowledge(peer text, held vclock) RETURNS void
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  UPDATE coord.ack a SET op_frontier = held, acknowledged_at = clock_timestamp()
   WHERE a.node = peer AND a.op_frontier OPERATOR(coord.<>) held
$$;
COMMENT ON FUNCTION op_acknowledge(text, vclock) IS 'a peer has said which operations it holds';

CREATE FUNCTION stable_frontier() RETURNS vclock
  LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  RETURN (SELECT coord.vclock_meet_agg(h.frontier)
            FROM (SELECT coord.frontier() AS frontier
                  UNION ALL
                  SELECT coalesce(a.op_frontier, '{}')
                    FROM coord.member m LEFT JOIN coord.ack a ON a.node = m.node
                   WHERE m.role = 'voter' AND m.node <> coord.node_name()) h);
COMMENT ON FUNCTION stable_frontier() IS 'what this node and every voter hold, as far as they have said';

REVOKE ALL ON FUNCTION report_version(lease_report, text), report_body(lease_report), report_body(op), op_insert(jsonb[]), op_learn(jsonb[]), report_learn(text, jsonb),
  gossip_wake_appended(), report_lapse_ask(), report_lapse(), report_epoch_range(), op_frontier_capped(vclock), op_frontier_of(text, bigint), frontier(), heartbeat_send(),
  op_acknowledge(text, vclock), stable_frontier() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION frontier(), stable_frontier() TO coord_agent, coord_monitor;
GRANT SELECT ON report_cursor TO coord_monitor;

CREATE VIEW op_range AS
  SELECT c.oid AS partition, c.relname::text AS name, b.bound[1]::bigint AS from_seq, b.bound[2]::bigint AS to_seq
    FROM pg_catalog.pg_inherits i
    JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
   CROSS JOIN LATERAL regexp_match(pg_catalog.pg_get_expr(c.relpartbound, c.oid), $$FROM \('(\d+)'\) TO \('(\d+)'\)$$) AS b(bound)
   WHERE i.inhparent = 'coord.op'::pg_catalog.regclass AND b.bound IS NOT NULL;
COMMENT ON VIEW op_range IS 'partitions of the log but the default one, and the numbers that they are for';

CREATE TABLE op_compaction (
  from_seq bigint PRIMARY KEY,
  looked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  replacement text COLLATE "C",
  copied pg_snapshot,
  copied_by xid8,
  dropped bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE op_compaction IS 'partitions of the log that were looked at for what can go; never dumped';
COMMENT ON COLUMN op_compaction.replacement IS 'table with what stays of the partition, to be put in its place';
COMMENT ON COLUMN op_compaction.copied IS 'what this snapshot sees was copied, or left out';
COMMENT ON COLUMN op_compaction.copied_by IS 'transaction that copied it';
COMMENT ON COLUMN op_compaction.dropped IS 'operations left out so far';

-- What is copied and what is judged is looked at several times, with a snapshot of each moment.
CREATE FUNCTION read_committed_required(what text) RETURNS void
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'read_committed_required_wrapper';
COMMENT ON FUNCTION read_committed_required(text) IS 'raises 25001 at a stricter isolation level';

-- Waiting would keep others waiting behind it.
CREATE FUNCTION op_partition_patience() RETURNS text
  LANGUAGE sql VOLATILE
  RETURN set_config('lock_timeout', '50ms', true);
COMMENT ON FUNCTION op_partition_patience() IS 'how long a change of the partitions waits for a lock';

CREATE FUNCTION op_partition_create(name text, from_seq bigint, to_seq bigint) RETURNS void
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  EXECUTE format('CREATE TABLE coord.%I (LIKE coord.op INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES, '
                 'CONSTRAINT op_partition_range CHECK (seq >= %s AND seq < %s))', name, from_seq, to_seq);
  EXECUTE format('COMMENT ON TABLE coord.%I IS %L', name, format('operations with numbers from %s to %s', from_seq, to_seq - 1));
  -- What belongs to the extension goes with it, and a dump leaves it to coord.op_dumped.
  EXECUTE format('ALTER EXTENSION pg_test ADD TABLE coord.%I', name);
END
$$;
COMMENT ON FUNCTION op_partition_create(text, bigint, bigint) IS 'makes a table that can become a partition without being read';

CREATE FUNCTION op_partition_attach(name text, from_seq bigint, to_seq bigint) RETURNS void
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  EXECUTE format('ALTER TABLE coord.op ATTACH PARTITION coord.%I FOR VALUES FROM (%s) TO (%s)', name, from_seq, to_seq);
END
$$;
COMMENT ON FUNCTION op_partition_attach(text, bigint, bigint) IS 'makes a table a partition';

CREATE FUNCTION op_partition_drop(name text) RETURNS void
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  EXECUTE format('ALTER EXTENSION pg_test DROP TABLE coord.%I', name);
  EXECUTE format('DROP TABLE coord.%I', name);
END
$$;
COMMENT ON FUNCTION op_partition_drop(text) IS 'removes a table that is no partition any more, or not yet';

CREATE FUNCTION op_partition_add(seq bigint) RETURNS text
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  size bigint := current_setting('coord.op_partition_size')::bigint;
  first bigint := greatest(seq / size * size, (SELECT max(r.to_seq) FROM coord.op_range r WHERE r.to_seq <= seq));
  beyond bigint := least(seq / size * size + size, (SELECT min(r.from_seq) FROM coord.op_range r WHERE r.from_seq > seq));
  added text := 'op_' || first;
BEGIN
  PERFORM coord.read_committed_required('coord.op_partition_add');
  PERFORM coord.op_partition_patience();
  -- An INSERT that has chosen the default partition would fail when that is for this number no more.
  LOCK TABLE ONLY coord.op IN SHARE ROW EXCLUSIVE MODE;
  PERFORM coord.op_partition_create(added, first, beyond);
  -- The log is append-only, but this moves what is in it.
  ALTER TABLE coord.op_default DISABLE TRIGGER op_keep;
  EXECUTE format('WITH moved AS (DELETE FROM coord.op_default o WHERE o.seq >= %s AND o.seq < %s RETURNING o.*) '
                 'INSERT INTO coord.%I SELECT * FROM moved', first, beyond, added);
  ALTER TABLE coord.op_default ENABLE ALWAYS TRIGGER op_keep;
  PERFORM coord.op_partition_attach(added, first, beyond);
  INSERT INTO coord.op_compaction AS c (from_seq) VALUES (first)
  ON CONFLICT ON CONSTRAINT op_compaction_pkey DO UPDATE SET looked_at = DEFAULT;
  RETURN added;
END
$$;
COMMENT ON FUNCTION op_partition_add(bigint) IS 'makes the partition that a number belongs to, with what the default one has of it; returns its name';

-- What comes before its partition is there goes to the default one. So the next one is made when one is half full.
-- No life has numbers as high as those that are passed over.
CREATE FUNCTION op_partition_wanted() RETURNS bigint
  LANGUAGE sql STABLE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  SELECT coalesce(
    (SELECT d.seq FROM coord.op_default d WHERE d.seq < 1::bigint << 62 LIMIT 1),
    (SELECT r.to_seq
       FROM coord.op_range r
      WHERE NOT EXISTS (SELECT FROM coord.op_range n WHERE n.from_seq = r.to_seq)
        AND EXISTS (SELECT FROM coord.vclock_entries(coord.frontier()) e
                     WHERE EXISTS (SELECT FROM coord.op o
                                    WHERE o.origin = e.actor AND o.seq >= (r.from_seq + r.to_seq) / 2 AND o.seq < r.to_seq))
      LIMIT 1))
$$;
COMMENT ON FUNCTION op_partition_wanted() IS 'a number whose partition is to be made; NULL when none is missing';

-- What has come there while something was in the way, or was restored, is not the worker's to move.
CREATE FUNCTION op_partition_is_large() RETURNS boolean
  LANGUAGE sql STABLE
  SET search_path = pg_catalog, coord, pg_temp
  RETURN (SELECT count(*) > 10000 FROM (SELECT FROM coord.op_default LIMIT 10001) d);
COMMENT ON FUNCTION op_partition_is_large() IS 'whether moving what the default partition has takes its time';

CREATE FUNCTION op_partition_tend() RETURNS boolean
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  wanted bigint := coord.op_partition_wanted();
  patience text := current_setting('lock_timeout');
BEGIN
  IF wanted IS NOT NULL THEN
    PERFORM coord.op_partition_add(wanted);
    PERFORM set_config('lock_timeout', patience, true);
  END IF;
  RETURN true;
EXCEPTION WHEN lock_not_available THEN
  RETURN false;
END
$$;
COMMENT ON FUNCTION op_partition_tend() IS 'makes a partition if one is missing; returns false when a transaction is in the way';

-- Checkpoints.

CREATE FUNCTION op_base_move(frontier vclock, state_hash text) RETURNS void
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  DELETE FROM coord.op_base;
  INSERT INTO coord.op_base (frontier, state_hash) VALUES (frontier, state_hash)
$$;
COMMENT ON FUNCTION op_base_move(vclock, text) IS 'makes a checkpoint the one that the log stands on';

-- Checkpoints of others were stable when they were made, and what lies below them may have come from who keeps no
-- more of it than that.
CREATE FUNCTION checkpoint_frontier() RETURNS vclock
  LANGUAGE sql STABLE
  SET search_path = pg_catalog, coord, pg_temp
  RETURN (SELECT coord.vclock_merge_agg(f.frontier)
            FROM (SELECT coord.stable_frontier() AS frontier
                  UNION ALL
                  SELECT b.frontier FROM coord.op_base b
                  UNION ALL
                  SELECT c.frontier FROM coord.checkpoint c) f
          HAVING coord.vclock_merge_agg(f.frontier) OPERATOR(coord.<@) coord.frontier());
COMMENT ON FUNCTION checkpoint_frontier() IS 'where a checkpoint can be made; NULL when this node lacks something below';

CREATE FUNCTION state_hash_at(frontier vclock) RETURNS text
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  WITH below AS NOT MATERIALIZED (
    SELECT o.* FROM coord.op o JOIN coord.vclock_entries(frontier) e ON e.actor = o.origin AND o.xid < e.counter::text::xid8
  ), trim AS MATERIALIZED (
    SELECT DISTINCT ON (m.scope, m.surface, m.key) m.*
      FROM below o CROSS JOIN LATERAL coord.trimmed_of(o::coord.op) m
     WHERE o.surface = 'retention'
     ORDER BY m.scope, m.surface, m.key, m.hlc DESC, m.op_id DESC
  ), folded AS (
    SELECT 'turn' AS "table", o.op_id
      FROM below o
      LEFT JOIN trim m ON (m.scope, m.surface, m.key) = (o.scope, 'conversation', coord.op_key(o.surface, o.payload))
     WHERE o.surface = 'conversation' AND (m.hlc IS NULL OR (o.hlc, o.op_id) >= (m.hlc, m.op_id))
    UNION ALL
    SELECT 'observation', o.op_id FROM below o WHERE o.surface = 'routing'
    UNION ALL
    SELECT 'record', r.op_id
      FROM (SELECT DISTINCT ON (f.scope, f.surface, f.key) f.scope, f.surface, f.key, f.op_id
              FROM below o CROSS JOIN LATERAL coord.record_of(o::coord.op) f
             ORDER BY f.scope, f.surface, f.key, coord.record_rank(f.surface, f.hlc, f.op_id)) r
     WHERE NOT EXISTS (SELECT FROM trim m WHERE (m.scope, m.surface, m.key) = (r.scope, r.surface, r.key))
    UNION ALL
    SELECT 'intent', i.op_id
      FROM (SELECT DISTINCT ON (n.agent, n.run_id, n.scope) n.op_id
              FROM below o CROSS JOIN LATERAL coord.intent_of(o::coord.op) n
             WHERE o.surface = 'intent'
             ORDER BY n.agent, n.run_id, n.scope, coord.intent_rank(n.status, n.epoch, n.hlc, n.op_id)) i
  )
  SELECT encode(coalesce(coord.digest_sum(coord.fold_row_digest(f."table", f.op_id)), decode(repeat('00', 32), 'hex')), 'hex')
    FROM folded f
$$;
COMMENT ON FUNCTION state_hash_at(vclock) IS 'digest of what the operations below a frontier fold into; reads the log';

-- Trimming by rules.

CREATE TABLE retention_rule (
  surface text COLLATE "C" PRIMARY KEY CHECK (surface IN ('conversation', 'run', 'trajectory')),
  keep_last bigint CHECK (keep_last > 0),
  keep_for interval CHECK (keep_for > '0'),
  CONSTRAINT retention_rule_is_possible CHECK (
    CASE surface WHEN 'conversation' THEN keep_for IS NULL WHEN 'trajectory' THEN keep_last IS NULL ELSE true END
    AND num_nonnulls(keep_last, keep_for) > 0)
);
COMMENT ON TABLE retention_rule IS 'what a checkpoint made on this node trims, on all nodes';
COMMENT ON COLUMN retention_rule.keep_last IS 'so many turns of each conversation, or runs of each scope, stay';
COMMENT ON COLUMN retention_rule.keep_for IS 'runs and trajectories stay for so long; counted back from the latest operation of the checkpoint';
SELECT pg_catalog.pg_extension_config_dump('retention_rule', '');

-- Asked of one operation after the other: a plan is kept.
CREATE FUNCTION op_is_below(frontier vclock, op_id text) RETURNS boolean
  LANGUAGE plpgsql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  RETURN EXISTS (SELECT FROM coord.op o WHERE o.op_id = $2 AND o.xid < coord.vclock_get($1, o.origin)::text::xid8);
END
$$;
COMMENT ON FUNCTION op_is_below(vclock, text) IS 'whether an operation of this name lies below a frontier';

-- Of a conversation, the oldest turn that stays, where an older one is there.
CREATE FUNCTION trim_of_conversations(frontier vclock, keep_last bigint) RETURNS SETOF trimmed
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  SELECT c.scope, 'conversation', c.conversation_id, f.hlc, f.op_id, '', NULL::xid8, false
    FROM (SELECT DISTINCT k.scope, k.conversation_id FROM coord.conversation k) c
   CROSS JOIN LATERAL (SELECT t.hlc, t.op_id
                         FROM coord.turn t
                        WHERE (t.conversation_id, t.scope) = (c.conversation_id, c.scope) AND coord.op_is_below(frontier, t.op_id)
                        ORDER BY t.hlc DESC, t.op_id DESC OFFSET keep_last - 1 LIMIT 1) f
   WHERE EXISTS (SELECT FROM coord.turn t
                  WHERE (t.conversation_id, t.scope) = (c.conversation_id, c.scope) AND (t.hlc, t.op_id) < (f.hlc, f.op_id))
$$;
COMMENT ON FUNCTION trim_of_conversations(vclock, bigint) IS 'what of conversations is to be trimmed, of what lies below a frontier';

CREATE FUNCTION trim_of_records(frontier vclock, surface text, keep_last bigint, keep_for interval) RETURNS SETOF trimmed
  LANGUAGE sql STABLE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  WITH latest AS MATERIALIZED (
    SELECT coord.hlc_time(max(o.hlc)) AS at
      FROM coord.op o JOIN coord.vclock_entries(frontier) e ON e.actor = o.origin AND o.xid < e.counter::text::xid8
     WHERE keep_for IS NOT NULL
  )
  SELECT r.scope, r.surface, r.key, r.hlc, r.op_id, '', NULL::xid8, false
    FROM (SELECT k.*, row_number() OVER (PARTITION BY k.scope ORDER BY k.hlc DESC, k.op_id DESC) AS place
            FROM coord.record k
           WHERE k.surface = $2 AND coord.op_is_below(frontier, k.op_id)) r, latest l
   WHERE r.place > keep_last OR coord.hlc_time(r.hlc) < l.at - keep_for
$$;
COMMENT ON FUNCTION trim_of_records(vclock, text, bigint, interval) IS 'what of runs or trajectories is to be trimmed, of what lies below a frontier';

-- A hundred keys fit into an operation, also when each of their bytes is escaped.
CREATE FUNCTION trim_append(frontier vclock) RETURNS void
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  SELECT coord.op_append_own(p.scope, 'retention', jsonb_build_object('trims', p.trims))
    FROM (SELECT d.scope, jsonb_agg(jsonb_build_object('surface', d.surface, 'key', d.key, 'hlc', d.hlc, 'op_id', d.op_id)) AS trims
            FROM (SELECT m.*, row_number() OVER (PARTITION BY m.scope ORDER BY m.surface, m.key) / 100 AS part
                    FROM (SELECT t.* FROM coord.retention_rule r CROSS JOIN LATERAL coord.trim_of_conversations(frontier, r.keep_last) t
                           WHERE r.surface = 'conversation'
                          UNION ALL
                          SELECT t.* FROM coord.retention_rule r
                           CROSS JOIN LATERAL coord.trim_of_records(frontier, r.surface, r.keep_last, r.keep_for) t
                           WHERE r.surface <> 'conversation') m) d
           GROUP BY d.scope, d.part
           ORDER BY d.scope, d.part) p
$$;
COMMENT ON FUNCTION trim_append(vclock) IS 'appends what the rules trim of what lies below a frontier';

CREATE FUNCTION checkpoint() RETURNS jsonb
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  reached coord.vclock;
  told coord.vclock;
  hash text;
BEGIN
  PERFORM coord.read_committed_required('coord.checkpoint'), coord.stream_actor();
  LOCK TABLE coord.op_base IN SHARE ROW EXCLUSIVE MODE;
  reached := coord.checkpoint_frontier();
  IF reached IS NULL OR reached = '{}' THEN
    RETURN '{"published": false}';
  END IF;
  hash := coord.state_hash_at(reached);
  -- Whoever is given what is left above a base must hear of it: so the base is always a checkpoint that was told. One
  -- of the same hash that covers all others will do.
  SELECT c.frontier INTO told
    FROM coord.checkpoint c
   WHERE c.state_hash = hash AND NOT EXISTS (SELECT FROM coord.checkpoint k WHERE NOT k.frontier OPERATOR(coord.<@) c.frontier);
  IF told IS NULL THEN
    told := reached;
    PERFORM coord.op_append_own('personal', 'checkpoint', jsonb_build_object('frontier', reached::jsonb, 'state_hash', hash));
  END IF;
  PERFORM coord.op_base_move(told, hash);
  PERFORM coord.trim_append(reached);
  RETURN jsonb_build_object('published', true, 'checkpoint_hash', hash);
END
$$;
COMMENT ON FUNCTION checkpoint() IS 'folds what every voter holds, tells the others its hash, and trims by coord.retention_rule';

CREATE FUNCTION checkpoint_mismatch(origin text, expected text, found text) RETURNS jsonb
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'checkpoint_mismatch_wrapper';
COMMENT ON FUNCTION checkpoint_mismatch(text, text, text) IS 'raises XX001: what this node holds folds into something else';

CREATE FUNCTION checkpoint_take() RETURNS jsonb
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  best coord.checkpoint;
  found text;
BEGIN
  PERFORM coord.read_committed_required('coord.rebase'), coord.stream_actor();
  LOCK TABLE coord.op_base IN SHARE ROW EXCLUSIVE MODE;
  SELECT c.* INTO best
    FROM coord.checkpoint c
   WHERE c.frontier OPERATOR(coord.<@) coord.frontier()
     AND NOT EXISTS (SELECT FROM coord.checkpoint k WHERE NOT k.frontier OPERATOR(coord.<@) c.frontier)
     AND NOT EXISTS (SELECT FROM coord.op_base b WHERE NOT b.frontier OPERATOR(coord.<@) c.frontier OR b.frontier = c.frontier)
   ORDER BY c.hlc DESC, c.op_id DESC
   LIMIT 1;
  IF best.op_id IS NULL THEN
    RETURN jsonb_build_object('rebased', false, 'base_checkpoint', (SELECT b.state_hash FROM coord.op_base b));
  END IF;
  found := coord.state_hash_at(best.frontier);
  IF found <> best.state_hash THEN
    RETURN coord.checkpoint_mismatch(best.origin, best.state_hash, found);
  END IF;
  PERFORM coord.op_base_move(best.frontier, best.state_hash);
  RETURN jsonb_build_object('rebased', true, 'base_checkpoint', best.state_hash);
END
$$;
COMMENT ON FUNCTION checkpoint_take() IS 'makes the latest checkpoint of a peer that this node holds everything of the one that its log stands on';

CREATE FUNCTION rebase() RETURNS jsonb
  LANGUAGE c VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
  AS 'MODULE_PATHNAME', 'rebase_wrapper';
COMMENT ON FUNCTION rebase() IS 'takes what this node lacks from its peers now, and then their latest checkpoint: rebased, base_checkpoint';

-- Leaving out.

-- Whatever is not known to be needless stays. What keeps an operation out of the fold must itself lie below the
-- base: only then it keeps it out of every state that a checkpoint will yet be made of.
CREATE FUNCTION op_is_needless(op op, base vclock) RETURNS boolean
  LANGUAGE plpgsql STABLE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  subject text;
  kept_by text;
BEGIN
  IF op.surface IN ('routing', 'row') OR op.xid >= coord.vclock_get(base, op.origin)::text::xid8
     OR EXISTS (SELECT FROM coord.fold_waiting w WHERE (w.origin, w.seq) = (op.origin, op.seq)) THEN
    RETURN false;
  ELSIF op.surface = 'retention' THEN
    RETURN NOT EXISTS (SELECT FROM coord.trimmed_of(op) t JOIN coord.trimmed m ON (m.scope, m.surface, m.key) = (t.scope, t.surface, t.key)
                        WHERE m.trimmed_by = op.op_id OR NOT coord.op_is_below(base, m.trimmed_by));
  ELSIF op.surface = 'checkpoint' THEN
    SELECT c.op_id INTO kept_by FROM coord.checkpoint c WHERE c.origin = op.origin;
  ELSIF op.surface = 'intent' THEN
    SELECT i.op_id INTO kept_by
      FROM coord.intent_of(op) n JOIN coord.intent i ON (i.agent, i.run_id, i.scope) = (n.agent, n.run_id, n.scope);
  ELSE
    subject := coord.op_key(op.surface, op.payload);
    SELECT m.trimmed_by INTO kept_by
      FROM coord.trimmed m
     WHERE (m.scope, m.surface, m.key) = (op.scope, op.surface, subject)
       AND (op.surface <> 'conversation' OR (op.hlc, op.op_id) < (m.hlc, m.op_id));
    IF kept_by IS NULL AND op.surface <> 'conversation' THEN
      SELECT r.op_id INTO kept_by FROM coord.record r WHERE (r.scope, r.surface, r.key) = (op.scope, op.surface, subject);
    END IF;
  END IF;
  RETURN coalesce(kept_by <> op.op_id AND coord.op_is_below(base, kept_by), false);
END
$$;
COMMENT ON FUNCTION op_is_needless(op, vclock) IS 'whether the fold of what lies below a base, and whatever comes, is the same without an operation';

CREATE FUNCTION op_retention_limit() RETURNS timestamptz
  LANGUAGE sql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
  RETURN CASE WHEN current_setting('coord.op_retention') = '-1' THEN '-infinity'
              ELSE clock_timestamp() - current_setting('coord.op_retention')::interval END;
COMMENT ON FUNCTION op_retention_limit() IS 'what was recorded before need not stay';

CREATE FUNCTION op_compaction_begin(from_seq bigint) RETURNS bigint
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  range coord.op_range;
  base coord.vclock;
  oldest timestamptz := coord.op_retention_limit();
  replacement text := format('op_%s_without', from_seq);
  total bigint;
  needless bigint;
BEGIN
  PERFORM coord.read_committed_required('coord.op_compact');
  SELECT r.* INTO STRICT range FROM coord.op_range r WHERE r.from_seq = $1;
  SELECT b.frontier INTO base FROM coord.op_base b;
  EXECUTE format('SELECT count(*), count(*) FILTER (WHERE o.recorded_at < $1 AND coord.op_is_needless(o::coord.op, $2)) FROM coord.%I o', range.name)
     INTO total, needless USING oldest, coalesce(base, '{}');
  UPDATE coord.op_compaction c SET looked_at = DEFAULT WHERE c.from_seq = $1 AND c.replacement IS NULL;
  -- Where little can go, copying the rest is not worth it.
  IF NOT FOUND OR needless = 0 OR needless * 4 < total THEN
    RETURN 0;
  END IF;
  PERFORM coord.op_partition_create(replacement, range.from_seq, range.to_seq);
  EXECUTE format('WITH kept AS (INSERT INTO coord.%I SELECT o.* FROM coord.%I o '
                 'WHERE NOT (o.recorded_at < $1 AND coord.op_is_needless(o::coord.op, $2)) RETURNING 1) '
                 'UPDATE coord.op_compaction c SET replacement = $3, copied = pg_current_snapshot(), copied_by = pg_current_xact_id(), '
                 'dropped = c.dropped + (SELECT count(*) FROM coord.%I) - (SELECT count(*) FROM kept) WHERE c.from_seq = $4',
                 replacement, range.name, range.name)
    USING oldest, base, replacement, from_seq;
  RETURN needless;
END
$$;
COMMENT ON FUNCTION op_compaction_begin(bigint) IS 'copies what stays of a partition, unless most does; returns how many operations can go';

CREATE FUNCTION op_compaction_end(from_seq bigint) RETURNS void
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  range coord.op_range;
  compaction coord.op_compaction;
  is_empty boolean;
BEGIN
  PERFORM coord.read_committed_required('coord.op_compact'), coord.op_partition_patience();
  -- Whoever appends has the log locked until the transaction ends; then no partition changes any more.
  LOCK TABLE ONLY coord.op IN ACCESS EXCLUSIVE MODE;
  SELECT r.* INTO STRICT range FROM coord.op_range r WHERE r.from_seq = $1;
  SELECT c.* INTO STRICT compaction FROM coord.op_compaction c WHERE c.from_seq = $1 AND c.replacement IS NOT NULL;
  -- Whoever has an older snapshot, as a dump that has just begun, would find neither a row nor its copy.
  IF EXISTS (SELECT FROM pg_stat_activity a
              WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
                AND (age(a.backend_xmin) >= age(compaction.copied_by::xid)
                     OR a.backend_xmin IS NOT NULL AND a.xact_start < clock_timestamp() - interval '1 s')) THEN
    RAISE lock_not_available USING MESSAGE = 'a transaction may yet read what is to be left out of the log';
  END IF;
  -- A snapshot does not list its own transaction, whose rows were copied too.
  EXECUTE format('INSERT INTO coord.%I SELECT o.* FROM coord.%I o '
                 'WHERE o.local_xid >= pg_snapshot_xmin($1) AND NOT pg_visible_in_snapshot(o.local_xid, $1) ON CONFLICT DO NOTHING',
                 compaction.replacement, range.name) USING compaction.copied;
  EXECUTE format('ALTER TABLE coord.op DETACH PARTITION coord.%I', range.name);
  PERFORM coord.op_partition_drop(range.name);
  EXECUTE format('SELECT NOT EXISTS (SELECT FROM coord.%I)', compaction.replacement) INTO is_empty;
  IF is_empty THEN
    PERFORM coord.op_partition_drop(compaction.replacement);
  ELSE
    EXECUTE format('ALTER TABLE coord.%I RENAME TO %I', compaction.replacement, range.name);
    PERFORM coord.op_partition_attach(range.name, range.from_seq, range.to_seq);
  END IF;
  UPDATE coord.op_compaction c SET replacement = NULL, copied = NULL, copied_by = NULL WHERE c.from_seq = $1;
END
$$;
COMMENT ON FUNCTION op_compaction_end(bigint) IS 'puts what stays of a partition in its place';

CREATE VIEW op_compaction_due AS
  SELECT r.from_seq
    FROM coord.op_range r
    JOIN coord.op_compaction c USING (from_seq)
   WHERE c.replacement IS NULL AND c.looked_at < least(coord.op_retention_limit(), clock_timestamp() - interval '1 min');
COMMENT ON VIEW op_compaction_due IS 'partitions that are to be looked at for what can go';

-- Rules trim by the hour.
CREATE FUNCTION checkpoint_is_due() RETURNS boolean
  LANGUAGE sql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
  RETURN EXISTS (SELECT FROM coord.op_compaction_due)
      OR (EXISTS (SELECT FROM coord.retention_rule)
          AND NOT EXISTS (SELECT FROM coord.op_base b
                           WHERE b.since > clock_timestamp() - interval '1 h' OR b.frontier = coord.checkpoint_frontier()));
COMMENT ON FUNCTION checkpoint_is_due() IS 'whether a checkpoint is to be made for what it lets go';

CREATE FUNCTION retention_is_due() RETURNS boolean
  LANGUAGE sql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
  RETURN EXISTS (SELECT FROM coord.op_compaction c WHERE c.replacement IS NOT NULL) OR coord.op_partition_is_large() OR coord.checkpoint_is_due();
COMMENT ON FUNCTION retention_is_due() IS 'whether there is something to be left out of the log';

-- A procedure, so that each partition is locked for its own time only; and those have no search path of their own.
CREATE PROCEDURE op_compact()
  LANGUAGE plpgsql
AS $$
DECLARE
  part bigint;
  patience timestamptz;
BEGIN
  FOR part IN SELECT r.from_seq FROM coord.op_range r ORDER BY r.from_seq LOOP
    PERFORM coord.op_compaction_begin(part);
    COMMIT;
    -- What is in the way is mostly the short transaction of another session, or of a peer; or the worker, which then
    -- has done it.
    patience := pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) '10 s'::pg_catalog.interval;
    WHILE EXISTS (SELECT FROM coord.op_compaction c WHERE c.from_seq OPERATOR(pg_catalog.=) part AND c.replacement IS NOT NULL) LOOP
      BEGIN
        PERFORM coord.op_compaction_end(part);
      EXCEPTION WHEN lock_not_available OR no_data_found THEN
        IF pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>) patience THEN
          RAISE;
        END IF;
        PERFORM pg_catalog.pg_sleep(0.1);
      END;
      COMMIT;
    END LOOP;
  END LOOP;
END
$$;
COMMENT ON PROCEDURE op_compact() IS 'leaves out of every partition what can go, now';

-- For administrators.

CREATE VIEW op_partition AS
  SELECT r.name AS partition, r.from_seq, r.to_seq, greatest(k.reltuples, 0)::bigint AS operations,
         pg_catalog.pg_total_relation_size(r.partition) AS bytes, c.looked_at, coalesce(c.dropped, 0) AS dropped
    FROM coord.op_range r
    JOIN pg_catalog.pg_class k ON k.oid = r.partition
    LEFT JOIN coord.op_compaction c USING (from_seq);
COMMENT ON VIEW op_partition IS 'partitions of the operation log';
COMMENT ON COLUMN op_partition.operations IS 'as PostgreSQL estimates';
COMMENT ON COLUMN op_partition.dropped IS 'operations left out so far';

REVOKE ALL ON FUNCTION op_partition_patience(), op_partition_create(text, bigint, bigint), op_partition_attach(text, bigint, bigint),
  op_partition_drop(text), op_partition_add(bigint), op_partition_wanted(), op_partition_is_large(), op_partition_tend(), op_base_move(vclock, text), checkpoint_frontier(),
  state_hash_at(vclock), op_is_below(vclock, text), trim_of_conversations(vclock, bigint),
  trim_of_records(vclock, text, bigint, interval), trim_append(vclock), checkpoint(), checkpoint_mismatch(text, text, text),
  checkpoint_take(), rebase(), op_is_needless(op, vclock), op_retention_limit(), op_compaction_begin(bigint),
  op_compaction_end(bigint), checkpoint_is_due(), retention_is_due(), read_committed_required(text) FROM PUBLIC;
REVOKE ALL ON PROCEDURE op_compact() FROM PUBLIC;
GRANT SELECT ON op_partition, op_compaction, retention_rule TO coord_monitor;

CREATE FUNCTION sync_status() RETURNS jsonb
  LANGUAGE sql STABLE
  SET search_path = pg_catalog, coord, pg_temp
  RETURN jsonb_build_object(
    'device_id', coord.node_actor(),
    'state_hash', coord.state_hash(),
    'journal_frontier', coord.frontier()::jsonb,
    'stable_frontier', coord.stable_frontier()::jsonb,
    'base_checkpoint', (SELECT b.state_hash FROM coord.op_base b),
    'roster', (SELECT jsonb_agg(jsonb_build_object('node', n.name, 'incarnation', n.incarnation, 'status', n.status) ORDER BY n.name)
                 FROM coord.node n));
COMMENT ON FUNCTION sync_status() IS 'who this node is, what it holds, what all hold, and who all are';

CREATE FUNCTION sync_pump(peer text) RETURNS jsonb
  LANGUAGE c VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  AS 'MODULE_PATHNAME', 'sync_pump_wrapper';
COMMENT ON FUNCTION sync_pump(text) IS 'one exchange of operations with a peer now: pushed, push_deduped, folded, acked, state_hash';

REVOKE ALL ON FUNCTION sync_status(), sync_pump(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sync_status() TO coord_monitor;

CREATE OR REPLACE VIEW metrics AS
  SELECT 'coord_healthy' AS name, '{}'::jsonb AS labels, h.ok::int::double precision AS value FROM coord.health() h
  UNION ALL SELECT 'coord_incarnation', '{}', n.incarnation FROM coord.local_node n
  UNION ALL SELECT 'coord_states', '{}', count(*) FROM coord.state
  UNION ALL SELECT 'coord_states_waiting', '{}', count(*) FROM coord.state_waiting
  UNION ALL SELECT 'coord_clock_refused_total', '{}', coord.hlc_refused()
   WHERE current_setting('shared_preload_libraries') ~ '\mpg_test\M'
  UNION ALL SELECT 'coord_lease_memory_open', '{}', coord.lease_memory_is_open()::int
  UNION ALL SELECT 'coord_lease_writers', '{}', count(DISTINCT (k.pid, k.prepared)) FROM coord.lease_locker k
   WHERE k.granted AND (k.kind = 1 AND k.mode = 'RowShareLock' OR k.kind = 2 AND k.mode = 'ShareLock')
  UNION ALL SELECT 'coord_lease_waiters', '{}', count(DISTINCT k.pid) FROM coord.lease_locker k WHERE NOT k.granted
  UNION ALL SELECT 'coord_lease_reports', '{}', count(*) FROM coord.lease_report r WHERE r.learned_from IS NOT NULL
  UNION ALL SELECT 'coord_fence_refused_total', jsonb_build_object('table', t.target), t.refusals
    FROM coord.protected_table t WHERE t.refusals IS NOT NULL
  UNION ALL
  SELECT m.name, jsonb_build_object('peer', s.peer) || m.labels, m.value
    FROM coord.peer_status s
    JOIN coord.convergence c ON c.peer = s.peer
    CROSS JOIN LATERAL (VALUES
      ('coord_peer_alive', '{}'::jsonb, (s.state = 'alive')::int::double precision),
      ('coord_peer_phi', '{}', s.phi),
      ('coord_peer_reachable', '{}', coalesce(s.reachable, false)::int),
      ('coord_peer_converged', '{}', c.converged::int),
      ('coord_peer_mismatches_total', '{}', c.mismatches),
      ('coord_peer_rounds_total', '{}', s.rounds),
      ('coord_peer_failures_total', '{}', s.failures),
      ('coord_peer_full_syncs_total', '{}', s.full_syncs),
      ('coord_peer_refused_total', '{}', s.refused),
      ('coord_peer_rows_total', '{"direction": "in"}', s.rows_in),
      ('coord_peer_rows_total', '{"direction": "out"}', s.rows_out),
      ('coord_peer_bytes_total', '{"direction": "in"}', s.bytes_in),
      ('coord_peer_bytes_total', '{"direction": "out"}', s.bytes_out),
      ('coord_peer_lag_seconds', '{}', extract(epoch FROM s.lag)),
      ('coord_peer_round_trip_seconds', '{}', extract(epoch FROM s.round_trip))) m(name, labels, value)
   WHERE m.value IS NOT NULL;
COMMENT ON VIEW metrics IS 'everything that can be counted, for scraping; names ending in _total only grow while the server runs';
COMMENT ON COLUMN metrics.labels IS 'peer, direction and table, where they apply';
