-- Streams, as far as one server shows them; tests/mesh/190_stream.pl has the rest.
SELECT current_database() AS regression \gset
CREATE DATABASE regress_stream TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C';
\c regress_stream
CREATE EXTENSION pg_test;
SET search_path = public, coord;
\set SHOW_CONTEXT never
SELECT node_init('here');
SELECT name, target, publication FROM stream;
SELECT stream_is_enabled(), stream_wanted('nobody'), stream_offered('nobody');

-- A table of one's own.
CREATE TABLE reading (sensor text, at int, origin text, value float, PRIMARY KEY (sensor, at));
SELECT stream_add('reading');
SELECT stream_add('reading');
SELECT name, target, publication FROM stream ORDER BY name;
SELECT tgname, tgenabled, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'reading'::regclass;
INSERT INTO reading (sensor, at, value) VALUES ('door', 1, 20.5);
INSERT INTO reading (sensor, at, value, origin) VALUES ('door', 2, 20.5, 'said');
SELECT sensor, at, origin = node_actor() AS is_own, value FROM reading ORDER BY at;
-- Whoever may write there needs no rights on what its triggers ask.
CREATE ROLE regress_writer;
GRANT INSERT, SELECT ON reading TO regress_writer;
SET ROLE regress_writer;
INSERT INTO reading (sensor, at, value) VALUES ('lamp', 3, 1);
RESET ROLE;
DROP OWNED BY regress_writer;
DROP ROLE regress_writer;
-- What can be streamed is not in the log as well.
SELECT count(*) FROM op;

-- As replication applies rows: what has come before is passed over, and so is what is no heartbeat for here.
SELECT pg_replication_origin_create('test') > 0 AS created;
SELECT pg_replication_origin_session_setup('test');
SELECT stream_origin() IS NOT NULL AS applies, stream_slot();
INSERT INTO reading VALUES ('door', 1, 'b', 0), ('window', 1, 'b', 1);
INSERT INTO heartbeat VALUES ('op', 'b', 7);
SELECT sensor, at, origin IN ('b', 'said') AS is_foreign, value FROM reading ORDER BY sensor, at;
SELECT count(*) FROM heartbeat;
SELECT pg_replication_origin_session_reset();
SELECT pg_replication_origin_drop('test');
SELECT stream_origin();

-- Rows that come as operations: from elsewhere, once, and past what a table refuses. What it has more, it fills in.
ALTER TABLE reading ADD COLUMN unit text DEFAULT 'C', ADD CHECK (value < 100);
CREATE FUNCTION said(origin text, seq bigint, stream text, said text) RETURNS void LANGUAGE sql AS $$
  INSERT INTO op (origin, seq, xid, hlc, op_id, scope, surface, payload)
  SELECT origin, seq, '9', h, op_id(origin, seq, h, 'personal', 'row', p::text, ''), 'personal', 'row', p
    FROM (SELECT hlc_now() AS h, jsonb_build_object('stream', stream, 'row', said::jsonb) AS p) c $$;
SELECT said('b', 1, 'public.reading', '{"sensor": "attic", "at": 1, "value": 1.5, "origin": "b"}');
SELECT said('b', 2, 'public.reading', '{"sensor": "attic", "at": 1, "value": 2.5, "origin": "b"}');
SELECT said('b', 3, 'public.reading', '{"sensor": "attic", "at": 3, "value": 100, "origin": "b"}');
SELECT said('b', 4, 'public.reading', '{"sensor": "attic", "at": 4, "value": 4, "origin": "b", "depth": 1}');
SELECT said('b', 5, 'public.elsewhere', '{"id": 1, "origin": "b"}');
SELECT said('b', 6, 'op', '{"seq": 1}');
SELECT said('b', 7, 'public.reading', '{"sensor": "attic", "at": 7, "value": 7, "origin": "b"}');
SELECT said('b', 8, 'public.reading', '{"sensor": "attic", "at": 8, "value": 8, "origin": "c"}');
SELECT * FROM reading WHERE sensor = 'attic' ORDER BY at;
SELECT seq, reason, detail FROM conflict ORDER BY seq;
SELECT op_refold();
ALTER TABLE reading DROP CONSTRAINT reading_value_check;
SELECT op_refold();
SELECT seq, reason FROM conflict ORDER BY seq;
-- A table that is streamed from now on has what was said of it before.
CREATE TABLE elsewhere (id int, origin text, PRIMARY KEY (id) INCLUDE (origin));
SELECT stream_add('elsewhere');
SELECT * FROM elsewhere;
SELECT stream_remove('elsewhere');
DROP TABLE elsewhere;
-- What this node says it has.
SELECT stream_say('public.reading', '{"sensor": "own", "at": 1, "origin": "here"}');
SELECT count(*) FROM reading WHERE sensor = 'own';
SELECT stream_say('public.reading', jsonb_build_object('sensor', repeat('x', 1048576)));
DROP FUNCTION said;

-- What cannot be streamed.
CREATE TEMP TABLE temporary (id int PRIMARY KEY, origin text);
CREATE TABLE without_origin (id int PRIMARY KEY);
CREATE TABLE without_key (id int, origin text);
CREATE VIEW looks AS SELECT * FROM reading;
CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE, origin text);
CREATE TABLE foreign_owner (id int PRIMARY KEY, origin text);
CREATE ROLE regress_owner;
ALTER TABLE foreign_owner OWNER TO regress_owner;
SELECT stream_add('deferred');
SELECT stream_add('foreign_owner');
SELECT stream_put('foreign_owner', '{"id": 1}');
SELECT stream_add('temporary');
SELECT stream_add('without_origin');
SELECT stream_add('without_key');
SELECT stream_add('looks');
SELECT stream_add('op');
SELECT stream_add('missing');

-- A long name.
CREATE SCHEMA a_schema_with_a_name_that_is_rather_long;
CREATE TABLE a_schema_with_a_name_that_is_rather_long.a_table_with_one_too (id int PRIMARY KEY, origin text);
SELECT stream_add('a_schema_with_a_name_that_is_rather_long.a_table_with_one_too');
SELECT name, publication, length(publication) < 64 AS fits FROM stream WHERE length(name) > 50;
SELECT stream_slot_name('Ä node with a long name', 'B-2') ~ '^coord___node_with_a_lo_b_2_[0-9a-f]{8}$' AS is_a_slot;

-- A partitioned one.
CREATE TABLE event (id int, origin text, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM (0) TO (10);
SELECT stream_add('event');
INSERT INTO event (id, at) VALUES (1, 1);
SELECT id, origin = node_actor() AS is_own FROM event;

-- What two nodes tell each other. Nobody is offered a stream who is no peer.
SELECT stream_hear('b', gen_random_uuid(), 'b', '{op,public.reading}', '[{"stream": "op", "slot": "coord_b_a_01234567", "base": 1, "reason": null}]');
SELECT * FROM stream_status;

-- An end of it.
SELECT stream_remove('reading');
SELECT stream_remove('reading');
SELECT stream_remove('op');
SELECT stream_remove('event');
DROP TABLE reading CASCADE;
DROP TABLE event;
DROP SCHEMA a_schema_with_a_name_that_is_rather_long CASCADE;
SELECT stream_tend_offers(), stream_tend_slots(), stream_tend_sources();
SELECT name FROM stream;
DROP TABLE without_origin, without_key, deferred, foreign_owner;
DROP ROLE regress_owner;

-- Nobody but superusers makes streams; monitors look.
SET ROLE coord_agent;
SELECT stream_add('pg_class');
RESET ROLE;
SET ROLE coord_monitor;
SELECT count(*) FROM stream_status;
RESET ROLE;

\c :regression
DROP DATABASE regress_stream WITH (FORCE);
