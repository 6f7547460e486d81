-- constraint_state: active constraints (an add-wins set), satisfied and violated counts and a
-- position, merged as one lattice over one causal context.
\getenv abs_srcdir PG_ABS_SRCDIR
\getenv abs_builddir PG_ABS_BUILDDIR
\set ECHO none
\set include :abs_srcdir '/include/fails.sql'
\i :include
\set ECHO all
SET search_path = public, coord;

--
-- The set of active constraints
--

SELECT constraint_state();
-- Each change is one event of its actor; the context says how many have been seen.
SELECT constraint_add(constraint_add(constraint_state(), 'cost', 'a'), 'area', 'b');
-- Adding a present constraint again makes a new dot, so that a concurrent removal loses.
SELECT constraint_add(constraint_add(constraint_state(), 'cost', 'a'), 'cost', 'a');
SELECT constraint_add(constraint_add(constraint_state(), 'cost', 'a'), 'cost', 'b');
-- A removal is no event. It leaves nothing but the context.
SELECT constraint_remove(constraint_add(constraint_state(), 'cost', 'a'), 'cost');
SELECT constraint_remove(constraint_add(constraint_state(), 'cost', 'a'), 'absent');
SELECT constraint_remove(constraint_state(), 'absent') = constraint_state();
SELECT constraint_add(constraint_remove(constraint_add(constraint_state(), 'cost', 'a'), 'cost'), 'cost', 'a');

CREATE TABLE states (name text PRIMARY KEY, state constraint_state);
INSERT INTO states VALUES ('base', constraint_add(constraint_add(constraint_state(), 'x', 'a'), 'y', 'a'));
INSERT INTO states SELECT 'removed', constraint_remove(state, 'x') FROM states WHERE name = 'base';
INSERT INTO states SELECT 'renewed', constraint_add(state, 'x', 'b') FROM states WHERE name = 'base';
INSERT INTO states SELECT 'other', constraint_add(constraint_state(), 'z', 'c');
CREATE FUNCTION pg_temp.s(which text) RETURNS constraint_state LANGUAGE sql STABLE
  AS 'SELECT state FROM public.states WHERE name = which';

-- Sorted bytewise, whatever the collation.
SELECT constraint_ids('{"constraints":{"b":[["a",1]],"B":[["a",2]],"é":[["a",3]],"a":[["a",4]]},"context":{"a":4}}');
SELECT count(*) FROM constraint_ids(constraint_state());
SELECT constraint_contains(pg_temp.s('base'), 'x'), constraint_contains(pg_temp.s('removed'), 'x'),
       constraint_contains(constraint_state(), 'x'), constraint_contains(pg_temp.s('base'), '');
SELECT name, constraint_count(state), constraint_context(state) FROM states ORDER BY name;

-- Removed stays removed: the merge does not bring back what was observed and removed.
SELECT pg_temp.s('removed') || pg_temp.s('base');
-- Add wins: the concurrent addition was not observed by the removal. Only its dot is left.
SELECT pg_temp.s('removed') || pg_temp.s('renewed');
-- The same from the other side, and with everything at once.
SELECT pg_temp.s('renewed') || pg_temp.s('removed') = pg_temp.s('removed') || pg_temp.s('renewed') AS commutative;
SELECT constraint_merge(constraint_merge(pg_temp.s('base'), pg_temp.s('other')), pg_temp.s('removed'));

--
-- Counts
--

SELECT constraint_record_satisfied(constraint_record_satisfied(constraint_state(), 'a', 3), 'a', 4);
SELECT constraint_record_violations(constraint_record_satisfied(constraint_state(), 'a', 3), 'b', 1) AS counted \gset
SELECT :'counted';
SELECT constraint_satisfied(:'counted'), constraint_violations(:'counted'), satisfaction_rate(:'counted');
-- Nothing recorded: counts of 0, no rate.
SELECT constraint_satisfied(constraint_state()), constraint_violations(constraint_state()), satisfaction_rate(constraint_state()) IS NULL AS no_rate;
SELECT satisfaction_rate(constraint_record_violations(constraint_state(), 'a', 1)),
       satisfaction_rate(constraint_record_satisfied(constraint_state(), 'a', 1));
-- Recording none is no event.
SELECT constraint_record_satisfied(constraint_state(), 'a', 0), constraint_record_violations(constraint_state(), 'a', 0);
-- Two actors count beside each other; one actor's count is never added to itself.
SELECT constraint_satisfied(constraint_record_satisfied(constraint_state(), 'a', 100) || constraint_record_satisfied(constraint_state(), 'b', 100)) AS two_nodes,
       constraint_satisfied(constraint_record_satisfied(constraint_state(), 'a', 100) || constraint_record_satisfied(constraint_state(), 'a', 100)) AS one_node;
-- Sums exceed bigint.
SELECT constraint_record_satisfied(constraint_record_satisfied(constraint_state(), 'a', 9223372036854775807), 'b', 9223372036854775807) AS full \gset
SELECT constraint_satisfied(:'full'), pg_typeof(constraint_satisfied(:'full')), satisfaction_rate(constraint_record_violations(:'full', 'c', 9223372036854775807));
CALL pg_temp.fails(format('SELECT constraint_record_satisfied(%L, ''a'', 1)', :'full'));
CALL pg_temp.fails($$ SELECT constraint_record_violations('{"context":{"a":1},"violated":{"a":2}}', 'a', 9223372036854775806) $$);
CALL pg_temp.fails($$ SELECT constraint_record_satisfied(constraint_state(), 'a', -1) $$);
CALL pg_temp.fails($$ SELECT constraint_record_violations(constraint_state(), 'a', -9223372036854775808) $$);
-- An actor has 2^63 - 1 events.
CALL pg_temp.fails($$ SELECT constraint_add('{"context":{"a":9223372036854775807}}', 'x', 'a') $$);
CALL pg_temp.fails($$ SELECT constraint_record_satisfied('{"context":{"a":9223372036854775807}}', 'a', 1) $$);
CALL pg_temp.fails($$ SELECT constraint_move('{"context":{"a":9223372036854775807}}', 0, 0, '2026-11-21T07:00:00.000Z/0', 'a') $$);

--
-- Position
--

SELECT constraint_position(constraint_state()) IS NULL AS unset;
SELECT constraint_move(constraint_state(), 3, -4, '2026-11-21T07:00:00.123Z/5', 'a') AS moved \gset
SELECT :'moved';
SELECT constraint_position(:'moved'), pg_typeof(constraint_position(:'moved'));
-- The later stamp wins, then the actor; an earlier write changes nothing, and is no event.
SELECT constraint_move(:'moved', 1, 1, '2026-11-21T07:00:00.123Z/6', 'b');
SELECT constraint_move(:'moved', 1, 1, '2026-11-21T07:00:00.123Z/5', 'b');
SELECT constraint_move(:'moved', 1, 1, '2026-11-21T07:00:00.123Z/5', 'A') = :'moved' AS unchanged;
SELECT constraint_move(:'moved', 1, 1, '2026-11-21T07:00:00.122Z/9', 'b') = :'moved' AS unchanged;
SELECT constraint_position(constraint_move(constraint_state(), -2147483648, 2147483647, '1970-01-01T00:00:00.000Z/0', 'a'));
SELECT constraint_position(:'moved' || constraint_move(constraint_state(), 9, 9, '2026-11-21T07:00:00.124Z/0', 'c'));

--
-- Arguments
--

CALL pg_temp.fails($$ SELECT constraint_add(constraint_state(), '', 'a') $$);
CALL pg_temp.fails($$ SELECT constraint_add(constraint_state(), repeat('x', 65536), 'a') $$);
SELECT octet_length((constraint_ids(constraint_add(constraint_state(), repeat('x', 65535), repeat('a', 255)))));
CALL pg_temp.fails($$ SELECT constraint_add(constraint_state(), 'x', '') $$);
CALL pg_temp.fails($$ SELECT constraint_add(constraint_state(), 'x', repeat('a', 256)) $$);
CALL pg_temp.fails($$ SELECT constraint_record_satisfied(constraint_state(), '', 1) $$);
CALL pg_temp.fails($$ SELECT constraint_record_violations(constraint_state(), '', 0) $$);
CALL pg_temp.fails($$ SELECT constraint_move(constraint_state(), 0, 0, '2026-11-21T07:00:00.000Z/0', '') $$);
SELECT constraint_add(NULL, 'x', 'a') IS NULL AND constraint_add(constraint_state(), NULL, 'a') IS NULL
       AND constraint_remove(NULL, 'x') IS NULL AND constraint_record_satisfied(constraint_state(), 'a', NULL) IS NULL
       AND constraint_record_violations(NULL, 'a', 1) IS NULL AND constraint_move(constraint_state(), 0, 0, NULL, 'a') IS NULL
       AND constraint_contains(constraint_state(), NULL) IS NULL AND constraint_count(NULL) IS NULL
       AND constraint_satisfied(NULL) IS NULL AND constraint_violations(NULL) IS NULL AND satisfaction_rate(NULL) IS NULL
       AND constraint_position(NULL) IS NULL AND constraint_context(NULL) IS NULL AND state_digest(NULL) IS NULL
       AND constraint_delta(NULL, '{}') IS NULL AND constraint_merge(constraint_state(), NULL) IS NULL AS all_null;
SELECT count(*) FROM constraint_ids(NULL);

--
-- The lattice
--

INSERT INTO states VALUES ('empty', constraint_state()),
  ('counted', constraint_record_violations(constraint_record_satisfied(constraint_state(), 'd', 3), 'e', 1)),
  ('moved', constraint_move(constraint_state(), 3, -4, '2026-11-21T07:00:00.123Z/5', 'f'));
INSERT INTO states SELECT 'all', constraint_merge_agg(state) FROM states;
SELECT state FROM states WHERE name = 'all';
SELECT bool_and((a.state || b.state)::bytea = (b.state || a.state)::bytea) AS commutative,
       bool_and(((a.state || b.state) || c.state)::bytea = (a.state || (b.state || c.state))::bytea) AS associative,
       bool_and((a.state || a.state)::bytea = a.state::bytea) AS idempotent,
       bool_and((a.state || b.state) @> a.state AND b.state <@ (a.state || b.state)) AS upper_bound,
       bool_and((a.state @> b.state) = (a.state || b.state = a.state)) AS covers_is_the_order,
       bool_and((a.state = b.state) = (state_digest(a.state) = state_digest(b.state))) AS digest
  FROM states a, states b, states c;
-- Which state has seen all that another has?
SELECT a.name AS "has seen", string_agg(b.name, ', ' ORDER BY b.name)
  FROM states a JOIN states b ON a.state @> b.state GROUP BY a.name ORDER BY a.name;
SELECT pg_temp.s('base') @> pg_temp.s('removed') AS "@>", pg_temp.s('base') <@ pg_temp.s('removed') AS "<@",
       pg_temp.s('base') <> pg_temp.s('removed') AS "<>";
CALL pg_temp.fails($$ SELECT state FROM states ORDER BY state $$);
SELECT constraint_merge_agg(state) IS NULL AS none FROM states WHERE false;
SELECT constraint_merge_agg(s) FROM (VALUES (NULL::constraint_state), ('{"context":{"a":1}}'), (NULL)) v(s);

--
-- Deltas: old || constraint_delta(new, since) = old || new, for every old whose context covers since
--

SELECT bool_and(o.state || constraint_delta(n.state, s.since) = o.state || n.state) AS law, count(*) AS cases
  FROM states o
 CROSS JOIN states n
 CROSS JOIN (SELECT constraint_context(state) AS since FROM states
             UNION SELECT '{"a":1}' UNION SELECT '{"a":1,"c":1}') s
 WHERE constraint_context(o.state) @> s.since;
-- It carries what is new: here one addition and one removal, and not y.
SELECT constraint_delta(constraint_remove(constraint_add(pg_temp.s('base'), 'new', 'b'), 'x'), constraint_context(pg_temp.s('base')));
-- It claims to have seen no event that it does not carry: y is a hole in its context.
SELECT constraint_delta(constraint_add(pg_temp.s('base'), 'new', 'a'), '{"a":2}');
SELECT constraint_context(constraint_delta(constraint_add(pg_temp.s('base'), 'new', 'a'), '{"a":2}'));
-- Nothing new, nothing held below: an empty delta. Since nothing: the whole.
SELECT constraint_delta(pg_temp.s('base'), constraint_context(pg_temp.s('base')));
SELECT constraint_delta(pg_temp.s('all'), '{}') = pg_temp.s('all') AS whole;
-- Small where the change is small.
SELECT constraint_merge_agg(constraint_add(constraint_state(), 'constraint ' || n, 'actor ' || n)) AS state INTO big FROM generate_series(1, 500) n;
SELECT octet_length(constraint_delta(constraint_add(state, 'new', 'b'), constraint_context(state))::bytea) * 50 < octet_length(state::bytea) AS small FROM big;
DROP TABLE big;

--
-- Digests
--

SELECT state_digest(constraint_state());
SELECT octet_length(state_digest(:'counted')), pg_typeof(state_digest(:'counted'));
-- Equal states, whatever way they came about; unequal ones with the same totals and keys.
SELECT state_digest(constraint_remove(constraint_add(constraint_add(constraint_state(), 'y', 'a'), 'x', 'a'), 'y'))
     = state_digest('{"context":{"a":2},"constraints":{"x":[["a",2]]}}') AS equal;
SELECT state_digest('{"context":{"a":2},"constraints":{"x":[["a",1]]}}')
     = state_digest('{"context":{"a":2},"constraints":{"x":[["a",2]]}}') AS equal;
SELECT state_digest(constraint_record_satisfied(constraint_record_satisfied(constraint_state(), 'a', 1), 'b', 2))
     = state_digest(constraint_record_satisfied(constraint_record_satisfied(constraint_state(), 'a', 2), 'b', 1)) AS equal;
-- Digests of rows add up modulo 2^256; name and value cannot change places.
SELECT state_row_digest('ab', '{}') = state_row_digest('a', '{}') AS equal, octet_length(state_row_digest('a', '{}'));
SELECT digest_sum(d) = digest_add(digest_add(state_row_digest('a', '{}'), state_row_digest('b', '{}')), state_row_digest('a', '{}')) AS summed
  FROM (VALUES (state_row_digest('a', '{}')), (state_row_digest('a', '{}')), (state_row_digest('b', '{}'))) v(d);
SELECT digest_add(decode(repeat('ff', 32), 'hex'), decode('01' || repeat('00', 31), 'hex'));
SELECT digest_sum(d) IS NULL AS none FROM (SELECT ''::bytea) v(d) WHERE false;
CALL pg_temp.fails($$ SELECT digest_add('\x00', '\x00') $$);

--
-- Removed constraints leave nothing behind
--

DO $$
DECLARE
  churned coord.constraint_state := coord.constraint_add(coord.constraint_state(), 'kept', 'a');
BEGIN
  FOR n IN 1..10000 LOOP
    churned := coord.constraint_add(churned, 'constraint ' || n, CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END);
    churned := coord.constraint_remove(churned, 'constraint ' || n);
  END LOOP;
  INSERT INTO public.states VALUES ('churned', churned),
    ('fresh', coord.constraint_remove(coord.constraint_add(coord.constraint_add(coord.constraint_state(), 'kept', 'a'), 'x', 'b'), 'x'));
END
$$;
SELECT name, state, octet_length(state::bytea) FROM states WHERE name IN ('churned', 'fresh') ORDER BY name;
SELECT pg_column_size(pg_temp.s('churned')) = pg_column_size(pg_temp.s('fresh')) AS same_size;

--
-- The text form
--

-- Canonical: sorted keys, no spaces, no empty parts, no zeros; members may come in any order.
SELECT $$ { "satisfied" : {"b":0, "a":1, "z":0}, "violated": {}, "missing": {"a":[[2, 2]]},
  "position": {"y":-1,"x":1,"at":"2026-11-21T07:00:00Z/05","actor":"p"},
  "context": {"b":2, "a":4}, "constraints": {"x": [["b",2],["a",1]]} } $$::constraint_state;
SELECT bool_and(state::text::constraint_state::bytea = state::bytea) AS round_trip FROM states;
-- Malformed text is 22P02, and the DETAIL names the part.
CALL pg_temp.fails($$ SELECT ''::constraint_state $$);
CALL pg_temp.fails($$ SELECT '[]'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"x":1}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"context":{"a":1,"a":2}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"context":{"a":-1}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"context":{"a":1.5}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"context":[]}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"context":{"":1}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"satisfied":{"a":1}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"constraints":{"x":[["a",1]]}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"constraints":{"x":[]},"context":{"a":1}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"constraints":{"x":[["a"]]},"context":{"a":1}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"constraints":{"x":[[1,1]]},"context":{"a":1}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"constraints":{"x":[["a",0]]},"context":{"a":1}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"constraints":{"x":[["a",2]]},"context":{"a":1}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"constraints":{"x":[["a",1],["a",1]]},"context":{"a":1}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"constraints":{"x":[["a",1]],"y":[["a",1]]},"context":{"a":1}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"constraints":{"":[["a",1]]},"context":{"a":1}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"context":{"a":2},"missing":{"a":[[2,2]]}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"position":{"actor":"a","x":1,"y":1}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"position":{"actor":"a","at":"now","x":1,"y":1}}'::constraint_state $$);
-- Numbers out of range are 22003.
CALL pg_temp.fails($$ SELECT '{"context":{"a":9223372036854775808}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"position":{"actor":"a","at":"2026-11-21T07:00:00.000Z/0","x":2147483648,"y":1}}'::constraint_state $$);
CALL pg_temp.fails($$ SELECT '{"position":{"actor":"a","at":"2026-11-21T07:00:00.000Z/65536","x":0,"y":1}}'::constraint_state $$);

--
-- Casts and the binary form
--

SELECT :'counted'::constraint_state::jsonb, '{"violated": {"b": 1}, "context": {"b": 1, "a": 1}, "satisfied": {"a": 3}}'::jsonb::constraint_state = :'counted' AS same;
CALL pg_temp.fails($$ SELECT '{"context": {"a": 1.0}}'::jsonb::constraint_state $$);
SELECT constraint_state()::bytea;
SELECT constraint_add(constraint_state(), 'x', 'a')::bytea;
SELECT bool_and(state::bytea::constraint_state = state) AS round_trip FROM states;
-- Malformed bytes are 22P03.
CALL pg_temp.fails($$ SELECT ''::bytea::constraint_state $$);
CALL pg_temp.fails($$ SELECT '\x02000000000000000000000000000000'::bytea::constraint_state $$);
CALL pg_temp.fails($$ SELECT '\x01020000000000000000000000000000'::bytea::constraint_state $$);
CALL pg_temp.fails($$ SELECT '\x01000001000000000000000000000000'::bytea::constraint_state $$);
CALL pg_temp.fails($$ SELECT '\x0100000000000000000000000000000000'::bytea::constraint_state $$);
CALL pg_temp.fails($$ SELECT '\x01000000010000000000000000000000'::bytea::constraint_state $$);
CALL pg_temp.fails($$ SELECT '\x01000000ffffffff0000000000000000'::bytea::constraint_state $$);
CALL pg_temp.fails($$ SELECT '\x01000000000000000100000000000000'::bytea::constraint_state $$);
CALL pg_temp.fails($$ SELECT '\x01000000000000000000000001000000'::bytea::constraint_state $$);
-- Every prefix of a value, and a value with a byte more, is refused.
DO $$
DECLARE
  whole bytea := coord.constraint_move('{"constraints":{"x":[["a",3]]},"context":{"a":3},"missing":{"a":[[1,1]]}}', 1, 2, '2026-11-21T07:00:00.000Z/0', 'b')::bytea;
  refused int := 0;
BEGIN
  FOR length IN 0..octet_length(whole) - 1 LOOP
    BEGIN
      PERFORM substr(whole, 1, length)::coord.constraint_state;
    EXCEPTION WHEN invalid_binary_representation THEN
      refused := refused + 1;
    END;
  END LOOP;
  BEGIN
    PERFORM (whole || '\x00')::coord.constraint_state;
  EXCEPTION WHEN invalid_binary_representation THEN
    refused := refused + 1;
  END;
  RAISE INFO '% of % refused', refused, octet_length(whole) + 1;
END
$$;
-- send and recv, as COPY and logical replication use them.
\set file :abs_builddir '/results/constraint_state.bin'
CREATE TABLE copied (LIKE states);
COPY states TO :'file' (FORMAT binary);
COPY copied FROM :'file' (FORMAT binary);
SELECT count(*) = (SELECT count(*) FROM states) AS all_copied FROM states JOIN copied USING (name, state);
TRUNCATE copied;
SELECT format('COPY copied (state) FROM %L (FORMAT binary)', :'file') AS copy_in \gset
COPY (VALUES ('\x02000000000000000000000000000000'::bytea)) TO :'file' (FORMAT binary);
CALL pg_temp.fails(:'copy_in');
DROP TABLE copied;

--
-- Hashing, and values as they lie on disk
--

INSERT INTO states SELECT name || ' again', state::text::constraint_state FROM states WHERE name IN ('base', 'moved');
SELECT min(name), max(name), count(*) FROM states GROUP BY state HAVING count(*) > 1 ORDER BY 1;
SELECT count(DISTINCT state::text), count(*) FROM (SELECT DISTINCT state FROM states) d;
SET enable_nestloop = off;
SELECT count(*) FROM states l JOIN states r ON l.state = r.state;
RESET enable_nestloop;
CREATE TABLE parted (state constraint_state) PARTITION BY HASH (state);
CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO parted SELECT constraint_record_satisfied(constraint_state(), 'a', n) FROM generate_series(1, 100) n;
SELECT count(DISTINCT tableoid), count(*) FROM parted;
SELECT state FROM parted WHERE state = '{"context":{"a":1},"satisfied":{"a":42}}';
DROP TABLE parted;

-- Behind a boolean a short value starts at an odd address.
CREATE TABLE odd (flag boolean, state constraint_state);
INSERT INTO odd SELECT true, state FROM states WHERE name IN ('base', 'moved', 'counted');
SELECT constraint_merge_agg(state) = (SELECT constraint_merge_agg(state) FROM states WHERE name IN ('base', 'moved', 'counted')) AS merged FROM odd;
DROP TABLE odd;

-- Compressed and out of line.
CREATE TABLE large (how text, state constraint_state);
ALTER TABLE large ALTER state SET STORAGE external;
INSERT INTO large SELECT 'external', constraint_merge_agg(constraint_add(constraint_state(), 'constraint ' || n, 'actor ' || n)) FROM generate_series(1, 200) n;
ALTER TABLE large ALTER state SET STORAGE extended;
INSERT INTO large SELECT 'compressed', state FROM large;
-- An unchanged value is stored as it came, so it is made anew.
UPDATE large SET state = state::text::constraint_state WHERE how = 'compressed';
SELECT how, pg_column_size(state) < octet_length(state::bytea) AS compressed, octet_length(state::bytea), constraint_count(state) FROM large ORDER BY how;
SELECT how, constraint_contains(state, 'constraint 200'), constraint_contains(constraint_remove(state, 'constraint 200'), 'constraint 200') AS removed,
       state || state = state AS merged, state @> constraint_add(constraint_state(), 'constraint 1', 'actor 1') AS covers, state::bytea::constraint_state = state AS cast,
       constraint_delta(state, '{}') = state AS delta
  FROM large ORDER BY how;
SELECT count(DISTINCT state_digest(state)) AS digests, count(*) FROM large;
DROP TABLE large;

-- Parallel and serial aggregation agree.
CREATE TABLE many AS
  SELECT constraint_record_satisfied(constraint_add(constraint_state(), 'constraint ' || n % 50, 'actor ' || n % 5), 'actor ' || n % 5, n) AS state
    FROM generate_series(1, 2000) n;
ALTER TABLE many SET (parallel_workers = 2);
ANALYZE many;
SET max_parallel_workers_per_gather = 0;
SELECT constraint_merge_agg(state)::text AS serial FROM many \gset
SET max_parallel_workers_per_gather = 2;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
EXPLAIN (COSTS OFF) SELECT constraint_merge_agg(state)::text FROM many;
SELECT constraint_merge_agg(state)::text = :'serial' AS same FROM many;
RESET max_parallel_workers_per_gather;
RESET parallel_setup_cost;
RESET parallel_tuple_cost;
RESET min_parallel_table_scan_size;
DROP TABLE many;
DROP TABLE states;

-- The type and its functions are for everybody.
SET ROLE pg_read_all_data;
SELECT coord.constraint_ids(coord.constraint_add(coord.constraint_state(), 'x', 'a'));
RESET ROLE;
