-- What the operation log folds into. Every row is a function of one operation, which its op_id names, and
-- which of several operations it is does not depend on the order in which they came.

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
