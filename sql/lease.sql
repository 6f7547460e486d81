-- Leases with fencing.
--
-- Lock order: the queue of a resource, then the lock of every lease, then the lock of the lease, then
-- its expiry in shared memory. Locks are of class "userlock" in pg_locks; `src/lock.rs` says which.

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
