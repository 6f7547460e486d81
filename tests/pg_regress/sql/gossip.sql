-- Gossip: the exchange as peers call it, what is learned by it, and the views.
\getenv abs_srcdir PG_ABS_SRCDIR
\set ECHO none
\set include :abs_srcdir '/include/fails.sql'
\i :include
\set ECHO all
SET search_path = public, coord;
SELECT node_init('regress');

--
-- The views, with the columns and types that others build on
--

SELECT attrelid::regclass AS view, string_agg(attname || ' ' || format_type(atttypid, atttypmod), E',\n' ORDER BY attnum) AS columns
  FROM pg_attribute WHERE attrelid IN ('node'::regclass, 'member'::regclass, 'peer_status'::regclass, 'convergence'::regclass) AND attnum > 0
 GROUP BY 1 ORDER BY attrelid::regclass::text COLLATE "C";

--
-- A round with a peer that is not there
--

CALL pg_temp.fails($$ SELECT * FROM gossip_round('nobody') $$);
SELECT * FROM gossip_round(NULL);
SELECT add_peer('b', 'host=127.0.0.1 port=1 sslmode=disable');
SELECT clock_timestamp() AS start \gset
CALL pg_temp.fails($$ SELECT * FROM gossip_round('b') $$);
SELECT clock_timestamp() - :'start' < interval '4 s' AS at_once;
-- The views show it.
SELECT peer, state <> 'alive' AS state, reachable, last_contact, round_trip, rounds, full_syncs, rows_in, rows_out, bytes_in, bytes_out, frontier, lag, lag_states,
       refused, failures > 0 AS failures, last_failure <= clock_timestamp() AS failed, last_error
  FROM peer_status;
SELECT * FROM convergence;
SELECT node_summary() ~ '^regress: 0 states, 1 peers \(0 converged\), 0 rounds, digest 0{16}$' AS summary;
-- What the peer has not acknowledged is its lag.
SELECT state_record_satisfied('mine', 1), state_record_satisfied('mine too', 1);
SELECT lag > interval '0' AS lag, lag_states FROM peer_status;
DELETE FROM state;
SELECT remove_peer('b');
SELECT (SELECT count(*) FROM peer_status) AS peers, (SELECT count(*) FROM convergence) AS convergence;

--
-- What this node holds
--

-- Nothing yet: empty clocks, and a digest of zero.
SELECT frontier::vclock, ceiling::vclock, encode(digest, 'hex') AS digest FROM gossip_claim();
SELECT state_record_satisfied('mine', 1);
SELECT frontier = ceiling AS exact, vclock_get(frontier::vclock, 'regress') = xid::text::bigint + 1 AS next,
       c.digest = s.digest AS digest
  FROM gossip_claim() c, state s;
-- In a transaction that has written, the frontier stays below it and the ceiling is above it.
BEGIN;
SELECT state_record_satisfied('mine too', 1);
SELECT vclock_get(frontier::vclock, 'regress') = pg_current_xact_id()::text::bigint AS frontier,
       vclock_get(ceiling::vclock, 'regress') = pg_current_xact_id()::text::bigint + 1 AS ceiling FROM gossip_claim();
ROLLBACK;
SELECT c.digest = s.digest AS digest FROM gossip_claim() c, state s;
DELETE FROM state;

--
-- gossip_exchange: messages
--
-- A message is a version byte and a postcard (varint lengths and numbers, 0 or 1 before what may
-- be absent):
--   hello (name, uuid, incarnation), claim?, position?, resync, leaving, batch?

CREATE FUNCTION pg_temp.varint(n bigint) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  out bytea := '';
BEGIN
  WHILE n >= 128 LOOP
    out := out || set_byte('\x00', 0, (128 + n % 128)::int);
    n := n / 128;
  END LOOP;
  RETURN out || set_byte('\x00', 0, n::int);
END
$$;
CREATE FUNCTION pg_temp.item(item bytea) RETURNS bytea LANGUAGE sql RETURN pg_temp.varint(octet_length(item)) || item;
CREATE FUNCTION pg_temp.item(item text) RETURNS bytea LANGUAGE sql RETURN pg_temp.item(convert_to(item, 'UTF8'));
CREATE FUNCTION pg_temp.message(
    name text, uuid uuid DEFAULT '00000000-0000-0000-0000-00000000000b', incarnation bigint DEFAULT 1,
    claim bytea DEFAULT '\x00', "position" bytea DEFAULT '\x00', leaving boolean DEFAULT false, batch bytea DEFAULT '\x00',
    life text DEFAULT repeat('0b', 16), place text DEFAULT '1/1/1/1', confirmed boolean DEFAULT true, testimony bytea DEFAULT '\x00')
  RETURNS bytea LANGUAGE sql RETURN
    '\x01' || pg_temp.item(name) || decode(replace(uuid::text, '-', ''), 'hex') || pg_temp.varint(incarnation)
    || decode(life, 'hex') || pg_temp.item(place) || CASE WHEN confirmed THEN '\x01' ELSE '\x00' END::bytea
    || claim || "position" || '\x00' || CASE WHEN leaving THEN '\x01' ELSE '\x00' END::bytea || batch
    || '\x00' || testimony;
-- A batch from the beginning, of one row, that leads to snapshot 10:10:
CREATE FUNCTION pg_temp.batch(state text, value bytea, frontier vclock) RETURNS bytea LANGUAGE sql RETURN
    '\x01' || pg_temp.item('space') || '\x0000' || '\x00'
    || '\x01' || pg_temp.item(state) || pg_temp.item(value)
    || pg_temp.item('space') || '\x010a0a00' || '\x00'
    || pg_temp.item(frontier::bytea) || '\x01' || pg_temp.item(frontier::bytea);

SELECT gossip_exchange(NULL) IS NULL AS nothing;
\set VERBOSITY default
SELECT gossip_exchange('');
\echo :SQLSTATE
SELECT gossip_exchange('\x03');
\echo :SQLSTATE
SELECT gossip_exchange('\x02');
\echo :SQLSTATE
SELECT gossip_exchange(set_byte(pg_temp.message('b'), 0, 2));
\echo :SQLSTATE
SELECT gossip_exchange(set_byte(pg_temp.message('b'), 0, 2) || pg_temp.varint(3600001) || pg_temp.item('{}'::vclock::bytea) || '\x0000');
\echo :SQLSTATE
SELECT gossip_exchange(set_byte(pg_temp.message('b'), 0, 2) || pg_temp.varint(1000) || pg_temp.item('\x00'::bytea) || '\x0000');
\echo :SQLSTATE
-- A position whose space has a NUL.
SELECT gossip_exchange(set_byte(pg_temp.message('b'), 0, 2) || pg_temp.varint(1000) || pg_temp.item('{}'::vclock::bytea) || '\x01' || pg_temp.item('\x00'::bytea) || '\x0000' || pg_temp.item('{}'::vclock::bytea) || '\x000000000000');
\echo :SQLSTATE
-- A stream whose slot has no name of ours; a byte too many.
SELECT gossip_exchange(set_byte(pg_temp.message('b'), 0, 2) || pg_temp.varint(1000) || pg_temp.item('{}'::vclock::bytea) || '\x01' || pg_temp.item('space') || '\x0000' || pg_temp.item('{}'::vclock::bytea) || '\x0000000001' || pg_temp.item('op') || pg_temp.item('6f1c2a34-0000-4000-8000-000000000001') || '\x01' || pg_temp.item('x'';') || '\x000000');
\echo :SQLSTATE
SELECT gossip_exchange(set_byte(pg_temp.message('b'), 0, 2) || pg_temp.varint(1000) || pg_temp.item('{}'::vclock::bytea) || '\x000000');
\echo :SQLSTATE
SELECT gossip_exchange('\x01');
\echo :SQLSTATE
SELECT gossip_exchange('\x01ffffffffffffffffffffffffffffff');
\echo :SQLSTATE
SELECT gossip_exchange(pg_temp.message('b') || '\x00');
\echo :SQLSTATE
SELECT gossip_exchange(pg_temp.message('b', incarnation => 0));
\echo :SQLSTATE
SELECT gossip_exchange(pg_temp.message('a#2'));
\echo :SQLSTATE
SELECT gossip_exchange(pg_temp.message('b', claim => '\x01' || pg_temp.item('\x00'::bytea) || pg_temp.item('{}'::vclock::bytea) || decode(repeat('00', 32), 'hex')));
\echo :SQLSTATE
SELECT gossip_exchange(pg_temp.message('b', "position" => '\x01' || pg_temp.item(repeat('x', 129)) || '\x0000'));
\echo :SQLSTATE
SELECT gossip_exchange(pg_temp.message('b', "position" => '\x01' || pg_temp.item('space') || '\x01050400' || '\x00'));
\echo :SQLSTATE
SELECT gossip_exchange(pg_temp.message('b', batch => pg_temp.batch('', '{}'::constraint_state::bytea, '{"b":10}')));
\echo :SQLSTATE
SELECT gossip_exchange(pg_temp.message('b', batch => pg_temp.batch('learned', '\x00', '{"b":10}')));
\echo :SQLSTATE
SELECT gossip_exchange(pg_temp.message('b', place => repeat('x', 129)));
\echo :SQLSTATE
-- A message of this node itself, however it came back, is refused.
SELECT uuid AS own_uuid FROM local_node \gset
\set VERBOSITY sqlstate
SELECT gossip_exchange(pg_temp.message('regress', :'own_uuid'));
SELECT gossip_exchange(pg_temp.message('regress'));
\set VERBOSITY default
-- The answer speaks for what the exchange stores, so it must not be rolled back: no transaction block.
BEGIN;
SELECT gossip_exchange(pg_temp.message('b'));
\echo :SQLSTATE
ROLLBACK;
CALL pg_temp.fails($$ SELECT gossip_exchange(pg_temp.message('b')) $$);
-- Nothing came of any of them.
SELECT (SELECT count(*) FROM node) AS nodes, (SELECT count(*) FROM state) AS states,
       (SELECT count(*) FROM peer_cursor) AS cursors, (SELECT count(*) FROM ack) AS acks;

--
-- gossip_exchange: a peer says hello, gives a state, is given one, and leaves
--

SELECT state_add_constraint('mine', 'cost');
-- Who has not said what it holds is given everything, by name and value.
SELECT gossip_exchange(pg_temp.message('b')) AS answer \gset
SELECT substr(:'answer'::bytea, 1, 1) = '\x01' AS version,
       position(pg_temp.item('regress') || decode(replace(:'own_uuid', '-', ''), 'hex') IN :'answer'::bytea) AS hello,
       position(pg_temp.item('mine') || pg_temp.item(value::bytea) IN :'answer'::bytea) > 0 AS row FROM state;
SELECT name, uuid, incarnation, status FROM node WHERE name <> 'regress';
-- Who speaks the version before is answered in it; the present one adds who is alive.
SELECT substr(gossip_exchange(set_byte(pg_temp.message('b'), 0, 2) || pg_temp.varint(1000) || pg_temp.item('{"b":5}'::vclock::bytea) || '\x0000'), 1, 1)
       = '\x02' AS version;
-- Who holds everything is given nothing.
SELECT pg_temp.item(frontier) || pg_temp.item(ceiling) || digest AS claim, ceiling AS ceiling FROM gossip_claim() \gset
SELECT gossip_exchange(pg_temp.message('b', claim => '\x01'::bytea || :'claim')) AS answer \gset
SELECT position(pg_temp.item('mine') IN :'answer'::bytea) > 0 AS row;
-- What it says that it holds is kept.
SELECT node, frontier = :'ceiling'::bytea::vclock AS frontier, ceiling = :'ceiling'::bytea::vclock AS ceiling,
       acknowledged_at <= clock_timestamp() AS acknowledged FROM ack;
-- Rows are merged; with the last of them moves the frontier.
SELECT constraint_add(constraint_state(), 'area', 'b') AS given \gset
SELECT octet_length(gossip_exchange(pg_temp.message('b', batch => pg_temp.batch('learned', :'given'::constraint_state::bytea, '{"b":10}')))) > 0 AS answered;
SELECT name, value, xid IS NULL AS not_own, learned_from FROM state ORDER BY name;
SELECT node, space, given, until, after_xid, after_name, resync, pending, frontier, ceiling, mismatches FROM peer_cursor;
SELECT vclock_get(frontier::vclock, 'b') AS b, vclock_get(frontier::vclock, 'regress') = vclock_get(ceiling::vclock, 'regress') AS exact FROM gossip_claim();
-- The same again changes nothing.
SELECT xmin AS before FROM state WHERE name = 'learned' \gset
SELECT octet_length(gossip_exchange(pg_temp.message('b', batch => pg_temp.batch('learned', :'given'::constraint_state::bytea, '{"b":10}')))) > 0 AS answered;
SELECT xmin = :'before' AS unchanged FROM state WHERE name = 'learned';
-- A state changed on both sides has both changes, and is no longer just what the peer gave.
SELECT constraint_add(constraint_state(), 'area', 'b') AS given \gset
SELECT octet_length(gossip_exchange(pg_temp.message('b', batch => pg_temp.batch('mine', :'given'::constraint_state::bytea, '{"b":11}')))) > 0 AS answered;
SELECT value, learned_from FROM state WHERE name = 'mine';
-- A stamp too far ahead is refused: the row is not stored, counted, and the frontier does not pass it.
SELECT constraint_move(constraint_state(), 1, 1, hlc(clock_timestamp() + interval '1 hour', 0), 'b') AS given \gset
SELECT octet_length(gossip_exchange(pg_temp.message('b', batch => pg_temp.batch('ahead', :'given'::constraint_state::bytea, '{"b":12}')))) > 0 AS answered;
SELECT (SELECT count(*) FROM state WHERE name = 'ahead') AS stored, vclock_get(frontier, 'b') AS frontier FROM peer_cursor;
SELECT peer, rows_in, rows_out > 0 AS rows_out, bytes_in > 0 AS bytes_in, bytes_out > 0 AS bytes_out, full_syncs, rounds, refused,
       regexp_replace(last_error, 'The stamp .* is \d+ ms', 'The stamp S is N ms') AS last_error FROM peer_statistics() WHERE peer = 'b';
-- Another node under the same name is refused.
\set VERBOSITY default
CREATE TEMP TABLE refused AS SELECT failures FROM peer_statistics() WHERE peer = 'b';
\set VERBOSITY sqlstate
SELECT gossip_exchange(pg_temp.message('b', uuid => '00000000-0000-0000-0000-00000000000c'));
\set VERBOSITY default
SELECT s.failures - r.failures AS failures, s.last_error FROM peer_statistics() s, refused r WHERE s.peer = 'b';
-- A later life of the same node is not.
SELECT octet_length(gossip_exchange(pg_temp.message('b', incarnation => 2))) > 0 AS answered;
SELECT incarnation FROM node WHERE name = 'b';
-- Leaving: no member any more, and its name stays taken. The worker takes the peer down.
SELECT add_peer('b', 'host=127.0.0.1 port=1 sslmode=disable');
SELECT octet_length(gossip_exchange(pg_temp.message('b', incarnation => 2, leaving => true))) > 0 AS answered;
SELECT name, status, (SELECT count(*) FROM member WHERE node = 'b') AS members FROM node WHERE name = 'b';
DO $$
BEGIN
  FOR attempt IN 1..300 LOOP
    EXIT WHEN NOT EXISTS (SELECT FROM coord.peer);
    PERFORM pg_sleep(0.1);
  END LOOP;
END
$$;
SELECT count(*) FROM peer;

-- Only a peer may call it. It needs no right on any table for that.
CREATE ROLE regress_peer IN ROLE coord_peer;
CREATE ROLE regress_agent IN ROLE coord_agent, coord_monitor;
SELECT pg_temp.message('c', uuid => '00000000-0000-0000-0000-00000000000c') AS hello \gset
SET ROLE regress_peer;
SELECT octet_length(coord.gossip_exchange(:'hello')) > 0 AS answered;
CALL pg_temp.fails($$ SELECT * FROM coord.state $$);
CALL pg_temp.fails($$ SELECT * FROM coord.gossip_round('b') $$);
CALL pg_temp.fails($$ SELECT * FROM coord.peer_statistics() $$);
SET ROLE regress_agent;
CALL pg_temp.fails($$ SELECT coord.gossip_exchange('') $$);
CALL pg_temp.fails($$ SELECT * FROM coord.gossip_round('b') $$);
CALL pg_temp.fails($$ SELECT coord.gossip_farewell() $$);
SELECT count(*) FROM coord.gossip_claim();
RESET ROLE;
DROP ROLE regress_peer;
DROP ROLE regress_agent;

--
-- state_learn: what gossip does with rows
--

DELETE FROM state;
SELECT constraint_record_satisfied(constraint_state(), 'b', 5) AS five, constraint_record_satisfied(constraint_record_satisfied(constraint_state(), 'b', 5), 'b', 1) AS six \gset
-- Two new states; one of them given twice is merged first.
SELECT * FROM state_learn('b', ARRAY['x', 'y', 'x'], ARRAY[:'five'::constraint_state::bytea, :'five'::constraint_state::bytea, :'six'::constraint_state::bytea]);
SELECT name, value, xid, learned_from FROM state ORDER BY name;
-- What is held already changes nothing.
SELECT * FROM state_learn('b', ARRAY['x'], ARRAY[:'five'::constraint_state::bytea]);
-- More of the same peer: it is still known to hold exactly this.
SELECT * FROM state_learn('c', ARRAY['y'], ARRAY[:'six'::constraint_state::bytea]);
SELECT name, learned_from FROM state ORDER BY name;
-- Changed here: nobody else is known to hold it.
SELECT state_record_satisfied('y', 1);
SELECT learned_from IS NULL AS own, constraint_satisfied(value) FROM state WHERE name = 'y';
SELECT * FROM state_learn('b', ARRAY['y'], ARRAY[constraint_record_violations(:'six', 'b', 1)::bytea]);
SELECT learned_from IS NULL AS mixed, constraint_satisfied(value), constraint_violations(value) FROM state WHERE name = 'y';
-- Nothing to learn, and nothing valid.
SELECT * FROM state_learn('b', '{}', '{}');
CALL pg_temp.fails($$ SELECT * FROM state_learn('b', ARRAY['x', 'z'], ARRAY['{"context":{"b":9}}'::constraint_state::bytea, '\x00']) $$);
SELECT constraint_context(value) FROM state WHERE name = 'x';
SELECT count(*) FROM state_waiting;
-- Its short patience with locks is its own, not that of the transaction around it.
BEGIN;
SHOW lock_timeout;
SELECT * FROM state_learn('b', ARRAY['w'], ARRAY[:'five'::constraint_state::bytea]);
SHOW lock_timeout;
ROLLBACK;

-- As it was.
DELETE FROM state;
DELETE FROM ack;
DELETE FROM peer_cursor;
DELETE FROM roster WHERE name <> 'regress';
SELECT name, status FROM node;
