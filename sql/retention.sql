-- What of the operation log is kept. The log is made of partitions. A checkpoint says what the operations below a
-- stable frontier fold into; once there is one, those that fold into nothing and are old enough are left out of
-- their partition, which is copied without them and put in its place.

-- Partitions.

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
