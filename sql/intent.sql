-- Intents: an effect that must happen once, under the lease of the agent that does it.

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
