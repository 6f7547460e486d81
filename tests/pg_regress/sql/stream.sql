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

-- What cannot be streamed.
CREATE TEMP TABLE temporary (id int PRIMARY KEY, origin text);
CREATE TABLE without_origin (id int PRIMARY KEY);
CREATE TABLE without_key (id int, origin text);
CREATE VIEW looks AS SELECT * FROM reading;
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
DROP TABLE without_origin, without_key;

-- Nobody but superusers makes streams; monitors look.
SET ROLE coord_agent;
SELECT stream_add('pg_class');
RESET ROLE;
SET ROLE coord_monitor;
SELECT count(*) FROM stream_status;
RESET ROLE;

\c :regression
DROP DATABASE regress_stream WITH (FORCE);
