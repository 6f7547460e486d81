-- The operation log and what it folds into.
SELECT current_database() AS regression \gset
CREATE DATABASE regress_oplog TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C';
\c regress_oplog
CREATE EXTENSION pg_test;
SET search_path = public, coord;
\set SHOW_CONTEXT never

-- Nothing is appended before the database is a node, and nothing has been yet.
SELECT op_append('personal', 'skill', '{"id": "x"}');
SELECT state_hash();
SELECT node_init('log');

--
-- Appending
--
SELECT r ->> 'op_id' ~ '^op-[0-9a-f]{32}$' AS op_id, r -> 'seq' AS seq, r #> '{hlc,device_id}' AS device_id,
       jsonb_typeof(r #> '{hlc,wall_ms}') AS wall_ms, jsonb_typeof(r #> '{hlc,counter}') AS counter,
       ARRAY(SELECT jsonb_object_keys(r)) AS keys
  FROM op_append('personal', 'knowledge', '{"id": "k1", "text": "first"}') r;
SELECT origin, seq, xid = local_xid AS appended_here, scope, surface, payload, tenant_id, op_id = op_id(op) AS named_rightly,
       abs(extract(epoch FROM hlc_time(hlc) - recorded_at)) < 60 AS stamped_now
  FROM op;

-- Where an operation may belong, and what it may be about.
SELECT op_append('', 'skill', '{}');
SELECT op_append('private', 'skill', '{}');
SELECT op_append('shared:', 'skill', '{}');
SELECT op_append('personal', 'skills', '{}');
SELECT op_append('personal', 'registry:', '{}');
SELECT op_append(NULL, 'skill', '{}');
SELECT op_append('personal', NULL, '{}');
SELECT op_append('personal', 'skill', NULL);
SELECT op_append('personal', 'skill', jsonb_build_object('id', repeat('k', 1025)));
SELECT op_append('personal', 'routing', to_jsonb(repeat('x', 1 << 20)));
SELECT count(r) FROM unnest(ARRAY['conversation', 'knowledge', 'skill', 'trajectory', 'run', 'routing', 'declagent', 'intent', 'registry:tool']) surface,
  op_append('shared:acme', surface, '{"id": "x", "conversation_id": "c"}') r;

-- Many at once: in the order of the array, and all or nothing.
SELECT jsonb_array_length(op_append_many('[]'));
SELECT bool_and((r -> 'seq')::bigint - first = place - 1) AS numbered_in_order, count(*)
  FROM (SELECT e.r, e.place, min((e.r -> 'seq')::bigint) OVER () AS first
          FROM jsonb_array_elements(op_append_many((
                 SELECT jsonb_agg(jsonb_build_object('scope', 'personal', 'surface', 'run', 'payload', jsonb_build_object('id', 100 - n)))
                   FROM generate_series(1, 20) n))) WITH ORDINALITY e(r, place)) q;
SELECT payload ->> 'id' AS id FROM op WHERE surface = 'run' AND scope = 'personal' ORDER BY hlc LIMIT 3;
SELECT op_append_many('[{"scope": "personal", "surface": "skill", "payload": {}, "tenant_id": "6f1c2a34-0000-4000-8000-000000000001"}]') IS NOT NULL AS appended;
SELECT tenant_id, op_id = op_id(op) AS named_rightly FROM op WHERE tenant_id IS NOT NULL;
SELECT op_append_many(NULL);
SELECT op_append_many('{}');
SELECT op_append_many('[1]');
SELECT op_append_many('[{"scope": "personal", "payload": {}}]');
SELECT op_append_many('[{"scope": "personal", "surface": "skill"}]');
SELECT op_append_many('[{"scope": "personal", "surface": "skill", "payload": {}, "tenant_id": "x"}]');
SELECT count(*) AS before FROM op \gset
SELECT op_append_many('[{"scope": "personal", "surface": "skill", "payload": {}}, {"scope": "nobody", "surface": "skill", "payload": {}}]');
SELECT count(*) - :before AS appended FROM op;

-- What was told to other nodes stays.
UPDATE op SET payload = '{}';
DELETE FROM op;

--
-- The fold
--

-- The first writer of knowledge, skill, trajectory and run wins; the last one of declagent and registry.
SELECT count(op_append('personal', surface, jsonb_build_object('id', 'same', 'n', n)))
  FROM unnest(ARRAY['knowledge', 'skill', 'trajectory', 'run', 'declagent', 'registry:tool']) surface, generate_series(1, 3) n;
SELECT surface, payload -> 'n' AS n FROM record WHERE key = 'same' ORDER BY surface;
SELECT jsonb_array_length(op_append_many((
  SELECT jsonb_agg(jsonb_build_object('scope', 'personal', 'surface', surface, 'payload', jsonb_build_object('id', 'batch', 'n', n)) ORDER BY n)
    FROM unnest(ARRAY['knowledge', 'skill', 'trajectory', 'run', 'declagent', 'registry:tool']) surface, generate_series(1, 3) n)));
SELECT surface, payload -> 'n' AS n FROM record WHERE key = 'batch' ORDER BY surface;
-- Without an id the payload is its own key.
SELECT count(op_append('personal', 'skill', '{"name": "weld"}')) FROM generate_series(1, 2);
SELECT count(*), min(key) = encode(sha256('{"name": "weld"}'), 'hex') AS key_is_hash FROM record WHERE payload = '{"name": "weld"}';
SELECT op_append('personal', 'skill', '"a text"') IS NOT NULL AS appended;
-- Routing keeps everything.
SELECT count(op_append('personal', 'routing', '{"model": "m"}')) FROM generate_series(1, 2);
SELECT scope, payload, count(*) FROM observation GROUP BY scope, payload ORDER BY scope COLLATE "C";

-- A rollback leaves a hole in the numbers and nothing else.
SELECT state_hash() AS hash \gset
BEGIN;
SELECT op_append('personal', 'skill', '{"id": "undone"}') IS NOT NULL AS appended;
SELECT state_hash() = :'hash' AS unchanged;
SAVEPOINT s;
SELECT op_append('personal', 'skill', '{"id": "undone, too"}') IS NOT NULL AS appended;
ROLLBACK TO s;
SELECT count(*) FROM record WHERE starts_with(key, 'undone');
ROLLBACK;
SELECT state_hash() = :'hash' AS unchanged, count(*) FROM record WHERE starts_with(key, 'undone');
-- The digest is kept in parts.
SELECT fold_digest_compact() > 1 AS compacted;
SELECT state_hash() = :'hash' AS unchanged, count(*) FROM fold_digest;
SELECT fold_digest_compact();

-- It is that of the rows.
CREATE FUNCTION hash_of_rows() RETURNS text LANGUAGE sql AS $$
  SELECT encode(digest_sum(d.digest), 'hex')
    FROM (SELECT fold_row_digest('record', op_id) AS digest FROM record
          UNION ALL SELECT fold_row_digest('turn', op_id) FROM turn
          UNION ALL SELECT fold_row_digest('observation', op_id) FROM observation) d $$;
SELECT state_hash() = hash_of_rows() AS agrees;

-- Folded again it is the same; what was damaged is put right.
SELECT op_refold();
UPDATE record SET payload = '{"id": "forged"}' WHERE key = 'k1';
DELETE FROM observation WHERE scope = 'personal';
INSERT INTO turn (scope, conversation_id, hlc, op_id, origin, role, at) VALUES ('personal', 'c', hlc_now(), 'op-x', 'log', 'user', now());
SELECT state_hash() = :'hash' AS unchanged;
SELECT op_refold();
SELECT state_hash() = :'hash' AS unchanged;
SELECT op_refold();
SELECT payload FROM record WHERE key = 'k1';

--
-- Arriving from elsewhere
--

-- An operation as another node has it.
CREATE FUNCTION told(origin text, seq bigint, hlc hlc, surface text, payload jsonb, scope text DEFAULT 'personal') RETURNS op
  LANGUAGE sql AS $$
  SELECT ROW(origin, seq, '7'::xid8, '7'::xid8, hlc, coord.op_id(origin, seq, hlc, scope, surface, payload::text, ''),
             scope, surface, payload, now(), NULL)::op $$;
INSERT INTO op SELECT (told('b', 1, '2026-11-01T00:00:00.000Z/0', 'knowledge', '{"id": "k1", "text": "earlier"}')).*;
SELECT origin, payload FROM record WHERE key = 'k1';
SELECT xid, local_xid <> '7' AS arrived_now FROM op WHERE origin = 'b';
-- Again: nothing happens. It is known by its number, and by all that it says.
SELECT state_hash() AS hash \gset
INSERT INTO op SELECT (told('b', 1, '2026-11-01T00:00:00.000Z/0', 'knowledge', '{"id": "k1", "text": "earlier"}')).*;
SELECT count(*) FROM op WHERE origin = 'b';
-- This clock is above every stamp that it has seen.
SELECT hlc(clock_timestamp() + interval '1 minute', 9) AS soon \gset
INSERT INTO op SELECT (told('b', 2, :'soon', 'skill', '{"id": "soon"}')).*;
SELECT (r #> '{hlc,wall_ms}')::bigint >= hlc_milliseconds(o.hlc) AS after_it
  FROM op_append('personal', 'skill', '{"id": "then"}') r, op o WHERE (o.origin, o.seq) = ('b', 2);
-- A stamp of the year 2200, and what no node can have appended, stay outside.
INSERT INTO op SELECT (told('c', 1, '2200-01-01T00:00:00.000Z/0', 'skill', '{"id": "2200"}')).*;
INSERT INTO op SELECT (told('c', 2, '2026-11-01T00:00:00.000Z/0', 'skills', '{}')).*;
INSERT INTO op SELECT (told('c', 3, '2026-11-01T00:00:00.000Z/0', 'skill', '{}', 'shared:')).*;
INSERT INTO op SELECT o.origin, o.seq, o.xid, o.local_xid, o.hlc, o.op_id, o.scope, o.surface, '{"forged": true}', o.recorded_at, o.tenant_id
  FROM told('c', 4, '2026-11-01T00:00:00.000Z/0', 'skill', '{}') o;
SELECT origin, seq, reason, regexp_replace(detail, '[0-9]+ ms ahead', 'far ahead') AS detail FROM conflict ORDER BY origin, seq;
SELECT count(*) FROM op WHERE origin = 'c';
INSERT INTO op SELECT (told('c', 5, '2026-11-01T00:00:00.000Z/0', 'skill', '{"id": "c"}')).*;
SELECT count(*) FROM op WHERE origin = 'c';
-- Two operations of one number: the origin has forked. Nothing more of it is taken, but all of others.
INSERT INTO op SELECT (told('b', 1, '2026-11-01T00:00:00.000Z/0', 'knowledge', '{"id": "k1", "text": "other"}')).*;
INSERT INTO op SELECT (told('b', 3, '2026-11-01T00:00:00.000Z/1', 'skill', '{"id": "later"}')).*;
INSERT INTO op SELECT (told('c', 6, '2026-11-01T00:00:00.000Z/1', 'skill', '{"id": "other"}')).*;
SELECT origin, seq, reason, detail FROM conflict WHERE origin = 'b' ORDER BY seq;
SELECT origin, reason FROM quarantine;
SELECT origin, seq FROM op WHERE origin <> 'log' ORDER BY origin, seq;
-- What is kept beside the log is not held: of its origin nothing from there on is called complete.
UPDATE report_cursor SET frontier = '{"b": 100, "c": 100, "d": 100}';
INSERT INTO report_cursor (node, space, frontier) VALUES ('b', '', '{"b": 100, "c": 100, "d": 100}') ON CONFLICT DO NOTHING;
SELECT e.* FROM vclock_entries(frontier()) e WHERE e.actor <> 'log';
DELETE FROM report_cursor;
-- An administrator lets it in again.
SELECT quarantine_release('b');
SELECT origin, seq FROM op WHERE origin = 'b' ORDER BY seq;
SELECT origin, seq, reason FROM conflict WHERE origin = 'b' ORDER BY seq;
SELECT op_refold();
SELECT state_hash() = hash_of_rows() AS agrees;

-- A stamp that is not too far ahead any more is admitted by itself; also the null of JSON is a payload.
INSERT INTO conflict (origin, seq, op_id, reason, op)
  SELECT o.origin, o.seq, o.op_id, 'clock', to_jsonb(o) FROM told('d', 1, '2026-11-01T00:00:00.000Z/0', 'skill', 'null') o;
SELECT conflict_retry();
SELECT origin, payload FROM op WHERE origin = 'd';
SELECT origin, reason FROM conflict WHERE reason = 'clock';
-- Not by whoever asks as if it was a trigger.
SELECT fold_digest();
SELECT op_admit();
-- The roles can call what is granted to them.
SET ROLE coord_agent;
SELECT coord.frontier() IS NOT NULL AND coord.stable_frontier() IS NOT NULL AND coord.state_hash() IS NOT NULL AS answered;
SET ROLE coord_monitor;
SELECT coord.sync_status() IS NOT NULL AS answered;
RESET ROLE;

-- Whatever the order in which operations arrive, they come to the same: all orders of a small history, with
-- one of them twice.
CREATE TABLE history AS
  SELECT n, told('h', n, hlc('2026-11-01 00:00+00', (n % 4)::int), surface, jsonb_build_object('id', 'one', 'n', n, 'conversation_id', 'small'), 'shared:small') AS op
    FROM unnest(ARRAY['skill', 'skill', 'registry:tool', 'registry:tool', 'conversation']) WITH ORDINALITY s(surface, n);
CREATE FUNCTION orders(items int[]) RETURNS SETOF int[] LANGUAGE sql AS $$
  WITH RECURSIVE o(done, left_over) AS (
    SELECT '{}'::int[], items
    UNION ALL
    SELECT o.done || i, array_remove(o.left_over, i) FROM o, unnest(o.left_over) i)
  SELECT done FROM o WHERE left_over = '{}' $$;
CREATE FUNCTION outcome(numbers int[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  result text;
BEGIN
  BEGIN
    FOR place IN 1..cardinality(numbers) LOOP
      INSERT INTO op SELECT (h.op).* FROM history h WHERE h.n = numbers[place];
      INSERT INTO op SELECT (h.op).* FROM history h WHERE h.n = numbers[1];
    END LOOP;
    SELECT concat_ws(' ', state_hash(), (SELECT jsonb_agg(r ORDER BY r.surface) FROM coord.record r WHERE r.scope = 'shared:small'),
                     (SELECT count(*) FROM turn t WHERE t.scope = 'shared:small'), op_refold()) INTO result;
    RAISE EXCEPTION 'undo' USING ERRCODE = 'ZZ001';
  EXCEPTION WHEN SQLSTATE 'ZZ001' THEN NULL;
  END;
  RETURN result;
END $$;
SELECT count(*) AS orders, count(DISTINCT outcome(o)) AS outcomes FROM orders('{1,2,3,4,5}') o;

-- Random orders of a large one.
SELECT setseed(0.4);
TRUNCATE history;
INSERT INTO history
  SELECT n, told('h', n, hlc('2026-11-01 00:00+00', (random() * 50)::int),
                 (ARRAY['skill', 'run', 'declagent', 'registry:tool', 'routing', 'conversation'])[1 + (random() * 5)::int],
                 jsonb_build_object('id', (random() * 20)::int, 'n', n, 'conversation_id', (random() * 3)::int), 'shared:large')
    FROM generate_series(1, 300) n;
SELECT count(DISTINCT outcome(o.numbers)) AS outcomes, count(*) AS orders
  FROM (SELECT array_agg(h.n::int ORDER BY random()) AS numbers FROM history h, generate_series(1, 8) s GROUP BY s) o;

--
-- What is held
--
SELECT key, jsonb_typeof(value) AS type FROM jsonb_each(sync_status()) ORDER BY key COLLATE "C";
SELECT s ->> 'device_id' AS device_id, (s ->> 'state_hash') = state_hash() AS state_hash, s -> 'roster' AS roster,
       (s ->> 'journal_frontier')::vclock = frontier() AS frontier
  FROM sync_status() s;
-- Alone, all that is held is stable; what is still open, neither.
SELECT frontier() = stable_frontier() AS stable, vclock_get(frontier(), 'log') > max(xid::text::bigint) AS complete FROM op WHERE origin = 'log';
BEGIN;
SELECT op_append('personal', 'skill', '{"id": "open"}') IS NOT NULL AS appended;
SELECT vclock_get(frontier(), 'log') <= pg_current_xact_id()::text::bigint AS below;
ROLLBACK;

\c :regression
DROP DATABASE regress_oplog WITH (FORCE);
