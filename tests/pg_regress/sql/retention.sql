-- What of the operation log is kept: partitions, checkpoints, rules, and what is left out.
SELECT current_database() AS regression \gset
CREATE DATABASE regress_retention TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C';
\c regress_retention
CREATE EXTENSION pg_test;
SET search_path = public, coord;
\set SHOW_CONTEXT never

-- Before the database is a node there is nothing to fold.
SELECT checkpoint();
SELECT node_init('keeper');
SELECT checkpoint();
SELECT sync_status() -> 'base_checkpoint' AS base_checkpoint;

--
-- Partitions: made by the worker ahead of what is appended
--
CREATE FUNCTION appended(count integer) RETURNS integer LANGUAGE sql AS $$
  SELECT jsonb_array_length(coord.op_append_many((
    SELECT jsonb_agg(jsonb_build_object('scope', 'personal', 'surface', 'declagent', 'payload', jsonb_build_object('id', n % 10, 'n', n)) ORDER BY n)
      FROM generate_series(1, count) n))) $$;
-- Waits until a query gives 't'.
CREATE PROCEDURE wait_until(condition text) LANGUAGE plpgsql AS $$
DECLARE
  is_so boolean;
BEGIN
  FOR attempt IN 1..600 LOOP
    EXECUTE 'SELECT ' || condition INTO is_so;
    COMMIT;
    EXIT WHEN is_so;
    PERFORM pg_sleep(0.1);
  END LOOP;
  IF NOT is_so THEN
    RAISE EXCEPTION 'it did not come about that %', condition;
  END IF;
END $$;
-- A transaction anywhere on the server can be older than what has been appended.
\set stable 'CALL wait_until($$coord.vclock_get(coord.stable_frontier(), $_$keeper$_$) > (SELECT max(o.xid::text::bigint) FROM coord.op o)$$)'
SELECT appended(20);
CALL wait_until('NOT EXISTS (SELECT FROM coord.op_default)');
SELECT partition, from_seq, to_seq, dropped FROM op_partition ORDER BY from_seq;
SELECT count(*) AS moved, op_refold() AS differing FROM op_0;
-- One begins where the one before ends.
SET coord.op_partition_size = 100;
SELECT op_partition_add(1 << 20);
SELECT op_partition_add((1 << 20) + 350);
SELECT from_seq - (1 << 20) AS first, to_seq - (1 << 20) AS beyond FROM op_partition ORDER BY from_seq;
RESET coord.op_partition_size;
ALTER TABLE op DETACH PARTITION op_1048576;
SELECT op_partition_drop('op_1048576');
-- The log is append-only, in each partition.
DELETE FROM op;
DELETE FROM op_0;
UPDATE op_0 SET scope = 'personal';

--
-- Checkpoints
--
:stable;
SELECT c -> 'published' AS published, c ->> 'checkpoint_hash' = state_hash() AS is_the_state FROM checkpoint() c;
SELECT checkpoint() = checkpoint() AS idempotent;
SELECT origin, state_hash = state_hash() AS is_the_state, frontier <@ frontier() AS is_below FROM checkpoint;
SELECT sync_status() ->> 'base_checkpoint' = state_hash() AS is_base;
SELECT count(*) FROM op WHERE surface = 'checkpoint';
-- On top of one; what is not committed everywhere, here and now, is not in it.
SELECT op_append('personal', 'skill', '{"id": "s"}') IS NOT NULL AS appended;
:stable;
SELECT c ->> 'checkpoint_hash' = state_hash() AS is_the_state, count(*) OVER () FROM checkpoint() c;
SELECT count(*) FROM checkpoint;
-- Only nodes append these.
SELECT op_append('personal', 'checkpoint', '{}');
SELECT op_append('personal', 'retention', '{}');
SELECT op_append_many('[{"scope": "personal", "surface": "retention", "payload": {}}]');
-- One that says something else counts for nothing.
BEGIN;
SELECT op_append_own('personal', 'checkpoint', '{"frontier": {"a": 0}, "state_hash": "x"}'), op_append_own('personal', 'retention', '[]'),
       op_append_own('personal', 'retention', '{"trims": [{"surface": "skill", "key": "s", "hlc": "2026-01-01T00:00:00.000Z/0", "op_id": "x"}]}');
SELECT (SELECT count(*) FROM checkpoint) AS checkpoints, (SELECT count(*) FROM trimmed) AS trimmed, op_refold() AS differing;
ROLLBACK;

--
-- Rules
--
INSERT INTO retention_rule (surface, keep_last) VALUES ('routing', 1);
INSERT INTO retention_rule (surface, keep_last) VALUES ('intent', 1);
INSERT INTO retention_rule (surface) VALUES ('run');
INSERT INTO retention_rule (surface, keep_for) VALUES ('conversation', '1 day');
INSERT INTO retention_rule (surface, keep_last) VALUES ('trajectory', 1);
INSERT INTO retention_rule (surface, keep_last) VALUES ('run', 0);
SELECT count(record_turn('personal', 'talk', 'user', 'turn ' || n)) FROM generate_series(1, 7) n;
SELECT count(record_turn('shared:acme', 'talk', 'user', 'elsewhere ' || n)) FROM generate_series(1, 2) n;
SELECT count(op_append('personal', 'run', jsonb_build_object('id', 'run ' || n))) FROM generate_series(1, 5) n;
SELECT count(op_append('personal', 'trajectory', jsonb_build_object('id', 'path ' || n))) FROM generate_series(1, 3) n;
INSERT INTO retention_rule (surface, keep_last, keep_for) VALUES ('conversation', 3, NULL), ('run', 2, NULL), ('trajectory', NULL, '1 day');
:stable;
SELECT c -> 'published' AS published FROM checkpoint() c;
SELECT scope, content FROM turn ORDER BY scope, hlc, op_id;
SELECT surface, key FROM record WHERE surface IN ('run', 'trajectory') ORDER BY hlc;
SELECT scope, surface, key FROM trimmed ORDER BY scope, surface, key;
-- What a run was is not forgotten: it does not come again.
SELECT op_append('personal', 'run', '{"id": "run 1", "text": "again"}') IS NOT NULL AS appended;
SELECT count(*) FROM record WHERE key = 'run 1';
-- The next checkpoint is of what is left.
:stable;
SELECT c ->> 'checkpoint_hash' = state_hash() AS is_the_state FROM checkpoint() c;
SELECT op_refold();
SELECT checkpoint() = checkpoint() AS idempotent;
-- By age, as of the latest operation.
UPDATE retention_rule SET keep_last = NULL, keep_for = '1 day' WHERE surface = 'run';
INSERT INTO op (origin, seq, hlc, op_id, scope, surface, payload)
SELECT 'keeper', n.seq, n.stamp, op_id('keeper', n.seq, n.stamp, 'personal', n.surface, '{"id": "old"}', ''), 'personal', n.surface, '{"id": "old"}'
  FROM (SELECT nextval('op_seq') AS seq, hlc(now() - interval '2 days', 0) AS stamp, surface FROM unnest('{run,trajectory}'::text[]) surface OFFSET 0) n;
SELECT surface, key FROM record WHERE surface IN ('run', 'trajectory') ORDER BY hlc;
:stable;
SELECT c -> 'published' AS published FROM checkpoint() c;
SELECT surface, key FROM record WHERE surface IN ('run', 'trajectory') ORDER BY hlc;
SELECT op_refold();
DELETE FROM retention_rule;
-- The worker sees to what transactions had put in that were open at the time.
CALL wait_until('NOT EXISTS (SELECT FROM coord.trimmed WHERE NOT is_settled)');

--
-- Leaving out
--
:stable;
SELECT checkpoint() -> 'published' AS published;
SELECT state_hash() AS hash, count(*) AS before FROM op \gset
-- Nothing is old enough, and then everything is.
CALL op_compact();
SELECT :before - count(*) AS dropped FROM op;
SET coord.op_retention = 0;
CALL op_compact();
SELECT :before - count(*) AS dropped, count(*) FILTER (WHERE surface = 'conversation') AS turns, count(*) FILTER (WHERE surface = 'declagent') AS declagents,
       state_hash() = :'hash' AS is_the_same, op_refold() AS differing
  FROM op;
SELECT partition, dropped FROM op_partition WHERE dropped > 0;
CALL op_compact();
SELECT partition, dropped FROM op_partition WHERE dropped > 0;
:stable;
SELECT checkpoint() ->> 'checkpoint_hash' = :'hash' AS is_the_same;
-- What comes again is known.
SELECT count(*) AS before FROM op \gset
INSERT INTO op (origin, seq, xid, hlc, op_id, scope, surface, payload)
SELECT 'keeper', 3, '3', h, op_id('keeper', 3, h, 'personal', 'declagent', '{"id": 3}', ''), 'personal', 'declagent', '{"id": 3}'
  FROM hlc('2026-01-01 00:00+00'::timestamptz, 0) h;
SELECT count(*) - :before AS come_again FROM op;
-- The log goes on, also in that partition.
SELECT appended(20);
:stable;
SELECT checkpoint() ->> 'checkpoint_hash' = state_hash() AS is_the_state;
CALL op_compact();
SELECT op_refold() AS differing, dropped FROM op_partition WHERE dropped > 0;
-- While one is being put in its place, and what had come meanwhile.
SELECT appended(30);
:stable;
SELECT checkpoint() -> 'published' AS published, op_compaction_begin(0) > 10 AS begun;
SELECT appended(3), state_hash() IS NOT NULL AS goes_on;
SELECT op_compaction_end(0);
SELECT op_refold() AS differing, (SELECT count(*) FROM op) = (SELECT count(*) FROM op_0) AS is_all_there;
-- Not by what a transaction saw when it began.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT checkpoint();
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT op_compaction_begin(0);
ROLLBACK;
BEGIN;
CALL op_compact();
ROLLBACK;
-- Also one that was begun goes with the extension.
SELECT appended(40);
:stable;
SELECT checkpoint() -> 'published' AS published, op_compaction_begin(0) > 10 AS begun;
DROP EXTENSION pg_test;
SELECT count(*) FROM pg_class WHERE relnamespace = 'coord'::regnamespace;

\c :regression
DROP DATABASE regress_retention;
