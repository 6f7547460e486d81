-- The operation log: append on any node; every node folds the same operations into the same rows.

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
