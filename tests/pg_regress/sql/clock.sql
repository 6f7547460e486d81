-- Clocks: vclock (vector clock, a partial order) and hlc (hybrid logical clock, a total order).
\getenv abs_srcdir PG_ABS_SRCDIR
\getenv abs_builddir PG_ABS_BUILDDIR
\set ECHO none
\set include :abs_srcdir '/include/fails.sql'
\i :include
\set ECHO all
SET search_path = public, coord;
SET TimeZone = 'UTC';
SET DateStyle = 'ISO';

--
-- vclock: the text form
--

-- Canonical: sorted bytewise, no spaces, no zero entries. Equal meaning is equal text.
SELECT c::vclock FROM unnest(ARRAY[
  '{}',
  ' { } ',
  '{"b":7,"a":3}',
  '{ "b" : 7 , "a" : 3 }',
  '{"a":3,"zero":0}',
  '{"zero":0}',
  '{"b":1,"a#2":1,"a":1,"B":1,"é":1,"":0}'
  ]) c WHERE c !~ '""';

-- Actors are any text of 1 to 255 bytes; what JSON escapes is escaped.
SELECT '{"quote\"":1,"back\\slash":2,"tab\t":3,"\u00e9":4,"a b":5}'::vclock;
SELECT length(format('{"%s":1}', repeat('x', 255))::vclock::text);

-- The largest counter.
SELECT '{"a":9223372036854775807}'::vclock;

-- Malformed text is 22P02, and the DETAIL names the part.
CALL pg_temp.fails($$ SELECT ''::vclock $$);
CALL pg_temp.fails($$ SELECT 'a'::vclock $$);
CALL pg_temp.fails($$ SELECT '{"a":1'::vclock $$);
CALL pg_temp.fails($$ SELECT '{"a":1} x'::vclock $$);
CALL pg_temp.fails($$ SELECT '{"a":01}'::vclock $$);
CALL pg_temp.fails($$ SELECT '[]'::vclock $$);
CALL pg_temp.fails($$ SELECT 'null'::vclock $$);
CALL pg_temp.fails($$ SELECT '1'::vclock $$);
CALL pg_temp.fails($$ SELECT '{"a":null}'::vclock $$);
CALL pg_temp.fails($$ SELECT '{"a":"1"}'::vclock $$);
CALL pg_temp.fails($$ SELECT '{"a":{}}'::vclock $$);
CALL pg_temp.fails($$ SELECT '{"a":-1}'::vclock $$);
CALL pg_temp.fails($$ SELECT '{"a":1.5}'::vclock $$);
CALL pg_temp.fails($$ SELECT '{"a":1.0}'::vclock $$);
CALL pg_temp.fails($$ SELECT '{"a":1e3}'::vclock $$);
CALL pg_temp.fails($$ SELECT '{"a":-9223372036854775809}'::vclock $$);
CALL pg_temp.fails($$ SELECT '{"":1}'::vclock $$);
CALL pg_temp.fails($$ SELECT '{"":0}'::vclock $$);
CALL pg_temp.fails($$ SELECT '{"a\u0000":1}'::vclock $$);
CALL pg_temp.fails(format('SELECT %L::vclock', format('{"%s":1}', repeat('x', 256))));
-- Duplicate keys are refused, also when one is zero or spelled differently.
CALL pg_temp.fails($$ SELECT '{"a":1,"a":1}'::vclock $$);
CALL pg_temp.fails($$ SELECT '{"a":0,"b":1,"\u0061":2}'::vclock $$);
-- Numbers out of range are 22003.
CALL pg_temp.fails($$ SELECT '{"a":9223372036854775808}'::vclock $$);
CALL pg_temp.fails($$ SELECT '{"a":18446744073709551615}'::vclock $$);

-- At most 65 535 entries.
SELECT count(*), min(actor), max(actor) FROM vclock_entries((
  SELECT jsonb_object_agg(n, 1)::text::vclock FROM generate_series(1, 65535) n));
CALL pg_temp.fails($$
  SELECT jsonb_object_agg(n, 1)::text::vclock FROM generate_series(1, 65536) n $$);
-- Zero entries do not count.
SELECT (jsonb_object_agg(n, n % 2)::text::vclock) @> '{"65535":1}' FROM generate_series(1, 65536) n;
-- Nor do merges and increments get beyond it.
CREATE TABLE full_clock AS
  SELECT jsonb_object_agg(n, 1)::text::vclock AS clock FROM generate_series(1, 65535) n;
CALL pg_temp.fails($$ SELECT clock || '{"one more":1}' FROM full_clock $$);
CALL pg_temp.fails($$ SELECT vclock_increment(clock, 'one more') FROM full_clock $$);
SELECT vclock_get(vclock_increment(clock, '7'), '7') FROM full_clock;
SELECT clock || clock = clock, vclock_meet(clock, '{"1":9,"one more":1}') FROM full_clock;
DROP TABLE full_clock;

--
-- vclock: functions
--

SELECT vclock_increment('{}', 'a');
SELECT vclock_increment('{"b":7}', 'a'), vclock_increment('{"a":1,"c":1}', 'b'), vclock_increment('{"a":1}', 'z');
SELECT vclock_increment(vclock_increment('{"a":41}', 'a'), 'a');
SELECT vclock_increment('{"a":9223372036854775806}', 'a');
CALL pg_temp.fails($$ SELECT vclock_increment('{"a":9223372036854775807}', 'a') $$);
-- An argument that cannot be an actor is a bad argument (22023), not a malformed clock.
CALL pg_temp.fails($$ SELECT vclock_increment('{}', '') $$);
CALL pg_temp.fails($$ SELECT vclock_increment('{}', repeat('x', 256)) $$);
-- 255 bytes are not 255 characters.
CALL pg_temp.fails($$ SELECT vclock_increment('{}', repeat('é', 128)) $$);
SELECT octet_length(vclock_increment('{}', repeat('é', 127))::bytea);

SELECT vclock_get('{"a":3,"b":7}', 'b'), vclock_get('{"a":3,"b":7}', 'absent'), vclock_get('{}', 'a');

SELECT * FROM vclock_entries('{"b":7,"a":3,"Z":1}');
SELECT count(*) FROM vclock_entries('{}');

SELECT vclock_merge('{"a":3,"b":7}', '{"a":5,"c":1}'), '{"a":3,"b":7}'::vclock || '{"a":5,"c":1}',
       '{}'::vclock || '{}', '{"a":1}'::vclock || '{}';
-- An absent actor is zero, so it is absent from the meet.
SELECT vclock_meet('{"a":3,"b":7}', '{"a":5,"c":1}'), vclock_meet('{"a":3}', '{}');

-- Every relation of every pair of five clocks.
CREATE TABLE clocks (name text, clock vclock);
INSERT INTO clocks VALUES ('none', '{}'), ('a1', '{"a":1}'), ('a2', '{"a":2}'), ('b1', '{"b":1}'), ('a1b1', '{"a":1,"b":1}');
SELECT l.name AS l, r.name AS r, vclock_compare(l.clock, r.clock),
       l.clock = r.clock AS "=", l.clock <> r.clock AS "<>", l.clock @> r.clock AS "@>",
       l.clock <@ r.clock AS "<@", l.clock <||> r.clock AS "<||>"
  FROM clocks l CROSS JOIN clocks r
 ORDER BY l.name COLLATE "C", r.name COLLATE "C";
SELECT enum_range(NULL::causality);
SELECT pg_typeof(vclock_compare('{}', '{}'));

-- Laws of the lattice, on bytes.
SELECT bool_and((a.clock || b.clock)::bytea = (b.clock || a.clock)::bytea) AS commutative,
       bool_and(((a.clock || b.clock) || c.clock)::bytea = (a.clock || (b.clock || c.clock))::bytea) AS associative,
       bool_and((a.clock || a.clock)::bytea = a.clock::bytea) AS idempotent,
       bool_and((a.clock || b.clock) @> a.clock AND b.clock <@ (a.clock || b.clock)) AS upper_bound,
       bool_and(vclock_meet(a.clock, b.clock) <@ a.clock AND vclock_meet(a.clock, b.clock) <@ b.clock) AS lower_bound,
       bool_and(vclock_meet(a.clock, a.clock || b.clock) = a.clock) AS absorption
  FROM clocks a, clocks b, clocks c;

-- NULL in, NULL out.
SELECT vclock_increment(NULL, 'a') IS NULL AND vclock_increment('{}', NULL) IS NULL
       AND vclock_get(NULL, 'a') IS NULL AND vclock_merge('{}', NULL) IS NULL
       AND vclock_meet(NULL, '{}') IS NULL AND vclock_compare(NULL, '{}') IS NULL
       AND (NULL::vclock || '{}') IS NULL AND (NULL::vclock = '{}') IS NULL AS all_null;
SELECT count(*) FROM vclock_entries(NULL);

-- A partial order has no < and cannot be sorted.
CALL pg_temp.fails($$ SELECT '{}'::vclock < '{}'::vclock $$);
CALL pg_temp.fails($$ SELECT clock FROM clocks ORDER BY clock $$);
CALL pg_temp.fails($$ CREATE INDEX ON clocks (clock) $$);
SELECT oprname FROM pg_operator
 WHERE 'vclock'::regtype IN (oprleft, oprright) ORDER BY oprname COLLATE "C";

--
-- vclock: casts and the binary form
--

SELECT '{"b":7,"a":3}'::vclock::jsonb, '{"b": 7, "a": 3, "c": 0}'::jsonb::vclock;
SELECT jsonb_typeof('{}'::vclock::jsonb);
CALL pg_temp.fails($$ SELECT '{"a": 1.0}'::jsonb::vclock $$);
CALL pg_temp.fails($$ SELECT '[1]'::jsonb::vclock $$);
-- [version 1][flags 0][reserved 0 0][count] ([length][actor][counter])…, little-endian
SELECT '{}'::vclock::bytea, '{"b":258,"ab":1}'::vclock::bytea;
SELECT '\x0100000002000000026162010000000000000001620201000000000000'::bytea::vclock;
-- Malformed bytes are 22P03.
CALL pg_temp.fails($$ SELECT ''::bytea::vclock $$);
CALL pg_temp.fails($$ SELECT '\x01000000'::bytea::vclock $$);
CALL pg_temp.fails($$ SELECT '\x0200000000000000'::bytea::vclock $$);
CALL pg_temp.fails($$ SELECT '\x0101000000000000'::bytea::vclock $$);
CALL pg_temp.fails($$ SELECT '\x0100010000000000'::bytea::vclock $$);
CALL pg_temp.fails($$ SELECT '\x0100000001000000'::bytea::vclock $$);
CALL pg_temp.fails($$ SELECT '\x01000000ffffffff'::bytea::vclock $$);
CALL pg_temp.fails($$ SELECT '\x0100000001000000016101'::bytea::vclock $$);
CALL pg_temp.fails($$ SELECT '\x010000000000000000'::bytea::vclock $$);
-- zero, 2^63, an empty actor, an actor that is not UTF-8, NUL in an actor, wrong order, one actor twice
CALL pg_temp.fails($$ SELECT '\x010000000100000001610000000000000000'::bytea::vclock $$);
CALL pg_temp.fails($$ SELECT '\x010000000100000001610000000000000080'::bytea::vclock $$);
CALL pg_temp.fails($$ SELECT '\x0100000001000000000100000000000000'::bytea::vclock $$);
CALL pg_temp.fails($$ SELECT '\x010000000100000001ff0100000000000000'::bytea::vclock $$);
CALL pg_temp.fails($$ SELECT '\x010000000100000001000100000000000000'::bytea::vclock $$);
CALL pg_temp.fails($$ SELECT '\x01000000020000000162010000000000000001610100000000000000'::bytea::vclock $$);
CALL pg_temp.fails($$ SELECT '\x01000000020000000161010000000000000001610100000000000000'::bytea::vclock $$);

-- send and recv, as COPY and logical replication use them.
\set file :abs_builddir '/results/vclock.bin'
CREATE TABLE copied (LIKE clocks);
COPY clocks TO :'file' (FORMAT binary);
COPY copied FROM :'file' (FORMAT binary);
SELECT count(*) FROM clocks JOIN copied USING (name, clock);
DROP TABLE copied;
-- What recv is sent is checked as strictly as the cast.
CREATE TABLE received (clock vclock);
SELECT format('COPY received FROM %L (FORMAT binary)', :'file') AS copy_in \gset
COPY (VALUES ('\x010000000100000001610000000000000000'::bytea)) TO :'file' (FORMAT binary);
CALL pg_temp.fails(:'copy_in');
COPY (VALUES (''::bytea)) TO :'file' (FORMAT binary);
CALL pg_temp.fails(:'copy_in');
DROP TABLE received;

--
-- vclock: hashing
--

INSERT INTO clocks VALUES ('again', '{"b":1,"a":1}'), ('zero', '{"b":0,"a":2}'), ('unknown', NULL);
SELECT clock, count(*) FROM clocks GROUP BY clock ORDER BY clock::text COLLATE "C";
SELECT count(*) FROM (SELECT DISTINCT clock FROM clocks) d;
SET enable_nestloop = off;
EXPLAIN (COSTS OFF) SELECT count(*) FROM clocks l JOIN clocks r ON l.clock = r.clock;
SELECT count(*) FROM clocks l JOIN clocks r ON l.clock = r.clock;
RESET enable_nestloop;
SELECT clock::text FROM (SELECT clock FROM clocks INTERSECT SELECT '{"a":2}') i;
SELECT clock::text FROM (SELECT clock FROM clocks EXCEPT SELECT clock FROM clocks WHERE name <> 'none') e;
-- A hash index.
CREATE INDEX clocks_clock ON clocks USING hash (clock);
SET enable_seqscan = off;
EXPLAIN (COSTS OFF) SELECT name FROM clocks WHERE clock = '{"a":2}';
SELECT name FROM clocks WHERE clock = '{"a":2}' ORDER BY name;
RESET enable_seqscan;
-- Hash partitions: a row is found again in the partition that it was put into.
CREATE TABLE parted (clock vclock, n int) PARTITION BY HASH (clock);
CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO parted SELECT format('{"a":%s}', n)::vclock, n FROM generate_series(0, 99) n;
SELECT count(DISTINCT tableoid), count(*) FROM parted;
SELECT n FROM parted WHERE clock = '{"a":42}';
DROP TABLE parted;

--
-- vclock: aggregates
--

SELECT vclock_merge_agg(clock), vclock_meet_agg(clock) FROM clocks WHERE name IN ('a2', 'a1b1');
-- NULLs are passed over; over no rows, or only NULLs, the result is NULL.
SELECT vclock_merge_agg(clock) FROM clocks;
SELECT vclock_merge_agg(clock) IS NULL AS merged, vclock_meet_agg(clock) IS NULL AS met FROM clocks WHERE false;
SELECT vclock_merge_agg(clock) IS NULL AS merged FROM clocks WHERE name = 'unknown';
SELECT name, vclock_merge_agg(clock) OVER (ORDER BY name COLLATE "C") FROM clocks WHERE name < 'b' COLLATE "C";
DROP TABLE clocks;

-- Parallel and serial aggregation agree.
CREATE TABLE many AS
  SELECT format('{"a%s":%s,"b":%s,"all":%s}', n % 4, n, (n * 7919) % 5003, 100000 - n)::vclock AS clock
    FROM generate_series(1, 5000) n;
ALTER TABLE many SET (parallel_workers = 2);
ANALYZE many;
SET max_parallel_workers_per_gather = 0;
SELECT vclock_merge_agg(clock), vclock_meet_agg(clock) FROM many;
SET max_parallel_workers_per_gather = 2;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
EXPLAIN (COSTS OFF) SELECT vclock_merge_agg(clock), vclock_meet_agg(clock) FROM many;
SELECT vclock_merge_agg(clock), vclock_meet_agg(clock) FROM many;
RESET max_parallel_workers_per_gather;
RESET parallel_setup_cost;
RESET parallel_tuple_cost;
RESET min_parallel_table_scan_size;
DROP TABLE many;

--
-- vclock: as it lies on disk
--

-- Behind a boolean a short value starts at an odd address.
CREATE TABLE odd (flag boolean, clock vclock, flag2 boolean, clock2 vclock);
INSERT INTO odd VALUES (true, '{"a":1,"b":2}', false, '{"a":2,"ab":1}'), (NULL, '{"abc":9}', true, '{}');
SELECT clock || clock2, vclock_meet(clock, clock2), clock <||> clock2, vclock_get(clock, 'b'), clock::bytea = clock::text::vclock::bytea FROM odd;
SELECT vclock_merge_agg(clock), vclock_merge_agg(clock2) FROM odd;
DROP TABLE odd;

-- Compressed and out of line.
CREATE TABLE large (how text, clock vclock);
INSERT INTO large SELECT 'compressed', jsonb_object_agg('actor ' || n, 1)::text::vclock FROM generate_series(1, 300) n;
ALTER TABLE large ALTER clock SET STORAGE external;
INSERT INTO large SELECT 'external', jsonb_object_agg('actor ' || n, 1)::text::vclock FROM generate_series(1, 300) n;
ALTER TABLE large ALTER clock SET STORAGE extended;
INSERT INTO large SELECT 'both', jsonb_object_agg('actor ' || n, 1)::text::vclock FROM generate_series(1, 20000) n;
SELECT how, pg_column_size(clock) < octet_length(clock::bytea) AS compressed,
       octet_length(clock::bytea), (SELECT count(*) FROM vclock_entries(clock)) FROM large ORDER BY how;
SELECT how, vclock_get(clock, 'actor 300'), vclock_get(vclock_increment(clock, 'actor 300'), 'actor 300'),
       clock || clock = clock AS merged, clock @> '{"actor 1":1}' AS covers, clock::bytea::vclock = clock AS cast,
       clock::jsonb::vclock = clock AS jsonb
  FROM large ORDER BY how;
SELECT count(*), count(DISTINCT how) FROM large l JOIN large r USING (clock, how);
SELECT (SELECT count(*) FROM vclock_entries(m)) FROM (SELECT vclock_merge_agg(clock) AS m FROM large) x;
-- A merge that changes nothing hands the stored value on, and what is stored again is whole.
CREATE TABLE large2 AS SELECT how, vclock_merge(clock, '{}') AS clock FROM large;
SELECT bool_and(l.clock = m.clock) FROM large l JOIN large2 m USING (how);
DROP TABLE large, large2;

--
-- hlc: the text form
--

SELECT s::hlc FROM unnest(ARRAY[
  '2026-11-21T07:00:00.123Z/5',
  '1970-01-01T00:00:00.000Z/0',
  '2026-11-21T07:00:00Z/65535',
  ' 2026-11-21T07:00:00.100Z/0007 ']) s;
SELECT hlc_send('1970-01-01T00:00:00.001Z/2');
CALL pg_temp.fails($$ SELECT ''::hlc $$);
CALL pg_temp.fails($$ SELECT '2026-11-21T07:00:00.123Z'::hlc $$);
CALL pg_temp.fails($$ SELECT '2026-11-21T07:00:00.123/5'::hlc $$);
CALL pg_temp.fails($$ SELECT '2026-11-21T07:00:00.123Z/'::hlc $$);
CALL pg_temp.fails($$ SELECT '2026-11-21T07:00:00.123Z/-1'::hlc $$);
CALL pg_temp.fails($$ SELECT '2026-11-21T07:00:00.123Z/1.5'::hlc $$);
CALL pg_temp.fails($$ SELECT '2026-11-21T07:00:00.123+01/5'::hlc $$);
CALL pg_temp.fails($$ SELECT '2026-02-30T07:00:00.123Z/5'::hlc $$);
CALL pg_temp.fails($$ SELECT '2026-11-21T25:00:00.123Z/5'::hlc $$);
CALL pg_temp.fails($$ SELECT '2026-11-21T07:00:00.1Z/5'::hlc $$);
CALL pg_temp.fails($$ SELECT '2026-11-21T07:00:00.1234Z/5'::hlc $$);
CALL pg_temp.fails($$ SELECT 'now'::hlc $$);
CALL pg_temp.fails($$ SELECT '2026-11-21T07:00:00.123Z/65536'::hlc $$);
CALL pg_temp.fails($$ SELECT '2026-11-21T07:00:00.123Z/99999999999999999999'::hlc $$);
CALL pg_temp.fails($$ SELECT '1969-12-31T23:59:59.999Z/0'::hlc $$);

--
-- hlc: parts
--

SELECT hlc('2026-11-21 08:00:00.123+01', 5);
SELECT hlc_time('2026-11-21T07:00:00.123Z/5'), hlc_counter('2026-11-21T07:00:00.123Z/5');
SELECT pg_typeof(hlc_time('2026-11-21T07:00:00.123Z/5')), pg_typeof(hlc_counter('2026-11-21T07:00:00.123Z/5'));
-- Cut, not rounded, to milliseconds.
SELECT hlc('2026-11-21 07:00:00.123999+00', 0);
SELECT bool_and(hlc(hlc_time(s), hlc_counter(s)) = s) AS round_trip
  FROM (SELECT hlc('2026-11-21 07:00:00+00'::timestamptz + n * interval '1.001 s', n % 65536) AS s
          FROM generate_series(0, 70000, 7) n) x;
-- 48 bits of milliseconds, 16 bits of counter.
SELECT hlc('1970-01-01 00:00:00+00', 0), hlc('10889-08-02 05:31:50.655+00', 65535);
SELECT hlc('10889-08-02 05:31:50.655+00', 65535)::text::hlc = hlc('10889-08-02 05:31:50.655+00', 65535) AS same;
CALL pg_temp.fails($$ SELECT hlc('10889-08-02 05:31:50.656+00', 0) $$);
CALL pg_temp.fails($$ SELECT hlc('1969-12-31 23:59:59.999999+00', 0) $$);
CALL pg_temp.fails($$ SELECT hlc('infinity', 0) $$);
CALL pg_temp.fails($$ SELECT hlc('-infinity', 0) $$);
CALL pg_temp.fails($$ SELECT hlc('2026-11-21 07:00:00+00', -1) $$);
CALL pg_temp.fails($$ SELECT hlc('2026-11-21 07:00:00+00', 65536) $$);
SELECT hlc(NULL, 0) IS NULL AND hlc(now(), NULL) IS NULL AND hlc_time(NULL) IS NULL
       AND hlc_counter(NULL) IS NULL AND hlc_observe(NULL) IS NULL AS all_null;

--
-- hlc: order and hashing
--

CREATE TABLE stamps (stamp hlc);
INSERT INTO stamps VALUES ('2026-11-21T07:00:00.123Z/5'), ('2026-11-21T07:00:00.123Z/65535'),
  ('2026-11-21T07:00:00.124Z/0'), ('1970-01-01T00:00:00.000Z/0'), (NULL),
  (hlc('10889-08-02 05:31:50.655+00', 65535)), -- unsigned: as a signed number this would come first
  ('2026-11-21T07:00:00.123Z/10');
SELECT * FROM stamps ORDER BY stamp;
SELECT * FROM stamps ORDER BY stamp DESC NULLS LAST LIMIT 2;
SELECT min(stamp), max(stamp) FROM stamps;
SELECT min(stamp) IS NULL AND max(stamp) IS NULL AS none FROM stamps WHERE false;
SELECT l.stamp < r.stamp AS "<", l.stamp <= r.stamp AS "<=", l.stamp = r.stamp AS "=", l.stamp <> r.stamp AS "<>",
       l.stamp >= r.stamp AS ">=", l.stamp > r.stamp AS ">", hlc_cmp(l.stamp, r.stamp) AS cmp, count(*)
  FROM stamps l, stamps r WHERE l.stamp IS NOT NULL AND r.stamp IS NOT NULL
 GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY cmp;
CREATE UNIQUE INDEX stamps_stamp ON stamps (stamp);
SET enable_seqscan = off;
SET enable_bitmapscan = off;
EXPLAIN (COSTS OFF) SELECT * FROM stamps WHERE stamp > '2026-11-21T07:00:00.123Z/5' AND stamp <= '2026-11-21T07:00:00.124Z/0' ORDER BY stamp;
SELECT * FROM stamps WHERE stamp > '2026-11-21T07:00:00.123Z/5' AND stamp <= '2026-11-21T07:00:00.124Z/0' ORDER BY stamp;
-- max is an index look-up.
CREATE FUNCTION pg_temp.plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS
  $$ BEGIN RETURN QUERY EXECUTE 'EXPLAIN (COSTS OFF) ' || query; END $$;
SELECT trim(plan, ' ->') FROM pg_temp.plan('SELECT max(stamp) FROM stamps') AS plan WHERE plan ~ 'Scan|Sort|Aggregate';
SELECT min(stamp), max(stamp) FROM stamps;
RESET enable_seqscan;
RESET enable_bitmapscan;
CALL pg_temp.fails($$ INSERT INTO stamps VALUES ('2026-11-21T07:00:00.124Z/0') $$);
SELECT count(*) FROM stamps l JOIN stamps r USING (stamp);
SET enable_mergejoin = off;
SET enable_nestloop = off;
SELECT count(*) FROM stamps l JOIN stamps r USING (stamp);
RESET enable_mergejoin;
RESET enable_nestloop;
\set file :abs_builddir '/results/hlc.bin'
CREATE TABLE copied (LIKE stamps);
COPY stamps TO :'file' (FORMAT binary);
COPY copied FROM :'file' (FORMAT binary);
SELECT count(*), max(stamp) FROM copied JOIN stamps USING (stamp);
SELECT format('COPY copied FROM %L (FORMAT binary)', :'file') AS copy_in \gset
COPY (VALUES ('\x00'::bytea)) TO :'file' (FORMAT binary);
CALL pg_temp.fails(:'copy_in');
DROP TABLE copied;
DROP TABLE stamps;
CREATE TABLE parted (stamp hlc) PARTITION BY RANGE (stamp);
CREATE TABLE parted_2025 PARTITION OF parted FOR VALUES FROM ('2025-01-01T00:00:00.000Z/0') TO ('2026-01-01T00:00:00.000Z/0');
CREATE TABLE parted_2026 PARTITION OF parted FOR VALUES FROM ('2026-01-01T00:00:00.000Z/0') TO ('2027-01-01T00:00:00.000Z/0');
INSERT INTO parted VALUES ('2025-12-31T23:59:59.999Z/65535'), ('2026-01-01T00:00:00.000Z/0');
SELECT tableoid::regclass, stamp FROM parted ORDER BY stamp;
DROP TABLE parted;

--
-- hlc: the server's clock
--

-- Strictly increasing, over calls in one statement and over statements.
CREATE TABLE drawn (n bigint GENERATED ALWAYS AS IDENTITY, stamp hlc);
INSERT INTO drawn (stamp) SELECT hlc_now() FROM generate_series(1, 10000);
INSERT INTO drawn (stamp) VALUES (hlc_now()), (hlc_now());
INSERT INTO drawn (stamp) SELECT hlc_now();
SELECT count(*) AS out_of_order
  FROM (SELECT stamp <= lag(stamp) OVER (ORDER BY n) AS is_behind FROM drawn) x WHERE is_behind;
-- Rolled back or not: a stamp is never given twice.
BEGIN;
SELECT hlc_now() AS before \gset
ROLLBACK;
SELECT hlc_now() > :'before' AS later;
-- Near the wall clock of the server.
SELECT abs(extract(epoch FROM hlc_time(hlc_now()) - clock_timestamp())) < 60 AS near;

-- A stamp from a peer a minute ahead moves the clock.
SELECT hlc(clock_timestamp() + interval '1 min', 7) AS ahead \gset
SELECT hlc_observe(:'ahead') > :'ahead'::hlc AS after_observed;
SELECT hlc_now() > :'ahead'::hlc AS later;
-- One behind does not.
SELECT hlc_observe('1970-01-01T00:00:00.000Z/0') > :'ahead'::hlc AS later;
-- One more than coord.max_clock_drift ahead is refused, counted and not applied.
SHOW coord.max_clock_drift;
SELECT hlc_refused() AS refused \gset
\set VERBOSITY sqlstate
SELECT hlc_observe(hlc(clock_timestamp() + interval '301 s', 0));
SELECT hlc_observe(hlc('10889-08-02 05:31:50.655+00', 65535));
\set VERBOSITY default
SELECT hlc_refused() - :refused AS refused;
SELECT hlc_time(hlc_now()) < clock_timestamp() + interval '2 min' AS not_applied;
DO $$
BEGIN
  PERFORM coord.hlc_observe(coord.hlc('10889-08-02 05:31:50.655+00', 65535));
EXCEPTION WHEN invalid_parameter_value THEN
  DECLARE
    detail text;
  BEGIN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
    RAISE INFO '%: %', SQLERRM, regexp_replace(detail, 'is \d+ ms', 'is N ms');
  END;
END
$$;

-- Types and parts are for everybody; the server's clock is not.
SET ROLE pg_read_all_data;
SELECT '{"a":1}'::coord.vclock OPERATOR(coord.||) '{"b":1}', coord.hlc_counter('2026-11-21T07:00:00.123Z/5');
CALL pg_temp.fails($$ SELECT coord.hlc_now() $$);
CALL pg_temp.fails($$ SELECT coord.hlc_observe('1970-01-01T00:00:00.000Z/0') $$);
CALL pg_temp.fails($$ SELECT coord.hlc_refused() $$);
RESET ROLE;
DROP TABLE drawn;
