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
     WHERE op.surface NOT IN ('conversation', 'routing', 'intent');
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

CREATE FUNCTION record_rank(surface text, hlc hlc, op_id text) RETURNS bytea
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'record_rank_wrapper';
COMMENT ON FUNCTION record_rank(text, hlc, text) IS 'of several operations of one key the lowest stays: the last of declagent and registry, the first of all else';

-- Folding.

CREATE FUNCTION op_fold(ops op[]) RETURNS void
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  surfaces text[] := ARRAY(SELECT DISTINCT o.surface FROM unnest(ops) o);
BEGIN
  IF 'conversation' = ANY (surfaces) THEN
    INSERT INTO coord.turn SELECT t.* FROM unnest(ops) o CROSS JOIN LATERAL coord.turn_of(o) t ON CONFLICT DO NOTHING;
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
  IF NOT surfaces <@ '{conversation,routing,intent}' THEN
    -- In the order of keys: whoever folds several takes row locks in that order.
    INSERT INTO coord.record AS r
    SELECT DISTINCT ON (f.scope, f.surface, f.key) f.*
      FROM unnest(ops) o CROSS JOIN LATERAL coord.record_of(o) f
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
  ELSIF coord.stream_origin() IS NOT NULL AND NEW.surface NOT IN ('conversation', 'routing') THEN
    PERFORM coord.op_fold_applied(NEW::coord.op);
  ELSE
    PERFORM coord.op_fold(ARRAY[NEW::coord.op]);
  END IF;
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION op_fold() IS 'folds an operation that has come into the log';
CREATE TRIGGER op_fold AFTER INSERT ON op
  FOR EACH ROW WHEN (coord.op_is_single()) EXECUTE FUNCTION op_fold();
ALTER TABLE op ENABLE ALWAYS TRIGGER op_fold;
COMMENT ON TRIGGER op_fold ON op IS 'also for rows that replication applies';

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

CREATE VIEW turn_by_log AS
  SELECT t.* FROM coord.op o CROSS JOIN LATERAL coord.turn_of(o) t;
COMMENT ON VIEW turn_by_log IS 'coord.turn, folded anew';

CREATE VIEW observation_by_log AS
  SELECT b.* FROM coord.op o CROSS JOIN LATERAL coord.observation_of(o) b;
COMMENT ON VIEW observation_by_log IS 'coord.observation, folded anew';

CREATE VIEW record_by_log AS
  SELECT DISTINCT ON (f.scope, f.surface, f.key) f.*
    FROM coord.op o CROSS JOIN LATERAL coord.record_of(o) f
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
  RETURN differing + part;
END
$$;
COMMENT ON FUNCTION op_refold() IS 'folds the whole log again, and puts right what differs; returns how many rows that were';

REVOKE ALL ON FUNCTION turn_time(text), turn_of(op), observation_of(op), record_of(op), intent_of(op), record_rank(text, hlc, text),
  op_fold(op[]), op_fold_applied(op), op_fold(), fold_retry(), fold_row_digest(text, text), fold_digest(), state_hash(), fold_digest_compact(bigint),
  op_refold() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION state_hash() TO coord_agent, coord_monitor;
GRANT SELECT ON turn, conversation, observation, record, fold_digest TO coord_agent, coord_monitor;
GRANT SELECT ON fold_waiting TO coord_monitor;
