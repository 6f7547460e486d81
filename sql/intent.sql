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
  PRIMARY KEY (agent, run_id, scope)
);
COMMENT ON TABLE intent IS 'what every run has come to; recorded by coord.intent_record';
COMMENT ON COLUMN intent.attempt IS 'how often the run was begun: again after it failed, and under a later epoch';
COMMENT ON COLUMN intent.epoch IS 'of the agent''s lease, under which this was recorded';
COMMENT ON COLUMN intent.op_id IS 'names the record';

SELECT pg_catalog.pg_extension_config_dump('intent', '');

-- Runs that any node of the mesh has committed. One of this node is written with its intent, one of
-- another, or of an earlier life of this one, by gossip.
CREATE TABLE intent_report (
  agent text COLLATE "C" NOT NULL,
  run_id text COLLATE "C" NOT NULL,
  scope text COLLATE "C" NOT NULL,
  node text COLLATE "C" NOT NULL,
  op_id text COLLATE "C" NOT NULL,
  epoch bigint NOT NULL CHECK (epoch > 0),
  holder text COLLATE "C" NOT NULL,
  heard_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  learned_from text COLLATE "C",
  local_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
  number bigint NOT NULL DEFAULT nextval('report_number'),
  PRIMARY KEY (agent, run_id, scope, node)
);
COMMENT ON TABLE intent_report IS 'runs committed anywhere in the mesh, as far as heard here';
COMMENT ON COLUMN intent_report.node IS 'the node that recorded it';
COMMENT ON COLUMN intent_report.heard_at IS 'when this was heard here, or recorded for a run of this node';
COMMENT ON COLUMN intent_report.learned_from IS 'peer that passed it on; NULL for a run of this node';
CREATE INDEX intent_report_local_xid ON intent_report (local_xid, number);

CREATE FUNCTION intent_check(agent text, run_id text, holder text, epoch bigint, status text, scope text) RETURNS text
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'intent_check_wrapper';
COMMENT ON FUNCTION intent_check(text, text, text, bigint, text, text) IS 'raises 22023 for what cannot be recorded; the op_id of the run if any node has committed it';

-- A version byte, then every field with its length before it: what differs in any field differs here.
CREATE FUNCTION intent_op_id(VARIADIC fields text[]) RETURNS text
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN 'op-' || left(encode(sha256(
    (SELECT '\x01'::bytea || string_agg(int4send(octet_length(f.field)) || convert_to(f.field, 'UTF8'), ''::bytea ORDER BY f.place)
       FROM unnest(fields) WITH ORDINALITY f(field, place))), 'hex'), 32);
COMMENT ON FUNCTION intent_op_id(text[]) IS 'name of a record: 32 hexadecimal digits of SHA-256 over its fields';

CREATE FUNCTION intent_rank(status text) RETURNS integer
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN array_position(ARRAY['pending', 'failed', 'committed'], status);
COMMENT ON FUNCTION intent_rank(text) IS 'pending < failed < committed';

-- What is said under a later epoch counts for more than anything said under an earlier one. That a run
-- is committed counts whoever says it, and for ever: it has happened.
CREATE FUNCTION intent_record(agent text, run_id text, holder text, epoch bigint, status text, scope text DEFAULT 'personal')
  RETURNS jsonb
  LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  recorded coord.intent;
  committed text;
BEGIN
  committed := coord.intent_check($1, $2, $3, $4, $5, $6);
  IF committed IS NOT NULL THEN
    IF $5 = 'committed' THEN
      RETURN jsonb_build_object('recorded', true, 'op_id', committed);
    END IF;
    RETURN jsonb_build_object('recorded', false, 'reason', 'run already committed (terminal guard)');
  END IF;
  INSERT INTO coord.intent AS i (agent, run_id, scope, epoch, holder, status, op_id)
  VALUES ($1, $2, $6, $4, $3, $5, coord.intent_op_id($6, $1, $2, '1', $4::text, $3, $5))
  ON CONFLICT ON CONSTRAINT intent_pkey DO UPDATE
     SET (attempt, op_id) =
           (SELECT n.attempt, coord.intent_op_id(i.scope, i.agent, i.run_id, n.attempt::text, excluded.epoch::text, excluded.holder, excluded.status)
              FROM (SELECT i.attempt + (excluded.status = 'pending' AND (i.status = 'failed' OR excluded.epoch > i.epoch))::integer AS attempt) n),
         epoch = excluded.epoch, holder = excluded.holder, status = excluded.status, recorded_at = excluded.recorded_at
   WHERE i.status <> 'committed'
     AND (excluded.status = 'committed' OR excluded.epoch > i.epoch
          OR excluded.epoch = i.epoch AND (coord.intent_rank(excluded.status) > coord.intent_rank(i.status)
                                           OR i.status = 'failed' AND excluded.status = 'pending'))
  RETURNING i.* INTO recorded;
  IF NOT FOUND THEN
    SELECT i.* INTO STRICT recorded FROM coord.intent i WHERE (i.agent, i.run_id, i.scope) = ($1, $2, $6);
    IF recorded.status = 'committed' AND $5 <> 'committed' THEN
      RETURN jsonb_build_object('recorded', false, 'reason', 'run already committed (terminal guard)');
    ELSIF recorded.status <> 'committed' AND recorded.epoch > $4 THEN
      RETURN jsonb_build_object('recorded', false, 'reason', format('superseded by epoch %s', recorded.epoch));
    END IF;
  END IF;
  IF recorded.status = 'committed' THEN
    INSERT INTO coord.intent_report (agent, run_id, scope, node, op_id, epoch, holder)
    SELECT $1, $2, $6, n.name, recorded.op_id, recorded.epoch, recorded.holder FROM coord.local_node n
    ON CONFLICT DO NOTHING;
  END IF;
  RETURN jsonb_build_object('recorded', true, 'op_id', recorded.op_id);
END
$$;
COMMENT ON FUNCTION intent_record(text, text, text, bigint, text, text) IS 'records what a run has come to: pending, failed or committed';

CREATE FUNCTION fence_check(agent text, run_id text, holder text, epoch bigint) RETURNS jsonb
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'fence_check_wrapper';
COMMENT ON FUNCTION fence_check(text, text, text, bigint) IS 'whether a holder may dispatch a run of an agent, and if not why';

REVOKE ALL ON FUNCTION intent_check(text, text, text, bigint, text, text),
  intent_record(text, text, text, bigint, text, text), fence_check(text, text, text, bigint),
  intent_op_id(text[]), intent_rank(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION intent_record(text, text, text, bigint, text, text), fence_check(text, text, text, bigint)
  TO coord_agent;
GRANT SELECT ON intent, intent_report TO coord_monitor;
