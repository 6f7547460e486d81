-- Leases: who is granted one, for how long, and what its holder can do with it.
SET search_path = public, coord;
-- Renewals stay in shared memory once the worker of the node has said so on disk.
SELECT node_init('regress');
DO $$ BEGIN
  FOR i IN 1..1000 LOOP EXIT WHEN coord.lease_memory_is_open(); PERFORM pg_sleep(0.02); END LOOP;
END $$;
SELECT lease_memory_is_open();
-- Time is moved, not waited for: `at` is a point of it, in seconds from the first grant.
CREATE FUNCTION at(seconds int) RETURNS void LANGUAGE sql AS $$
  SELECT set_config('coord.clock_offset', (seconds * 1000)::text, false) $$;
CREATE FUNCTION seconds_left(timestamptz) RETURNS int LANGUAGE sql AS $$
  SELECT round(extract(epoch FROM $1 - coord.lease_now()))::int $$;

--
-- Grants
--

-- The first grant of a resource has epoch 1.
SELECT resource, holder, epoch, seconds_left(expires_at) FROM lease_acquire('job', 'a', '30 s');
SELECT resource, holder, epoch, seconds_left(expires_at) FROM lease_current('job');
-- Held: refused, with who has it. The time is that of the test.
DO $$
DECLARE
  detail text;
  message text;
  state text;
BEGIN
  PERFORM coord.lease_acquire('job', 'b', '30 s');
EXCEPTION WHEN lock_not_available THEN
  GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, message = MESSAGE_TEXT, state = RETURNED_SQLSTATE;
  RAISE NOTICE '% % %', state, message,
    regexp_replace(detail, 'until .*\.$', 'until <time>.');
END $$;
-- The holder is refused too: it may be a second process of the same name.
SELECT lease_try_acquire('job', 'a', '30 s') IS NULL AS refused;
SELECT lease_try_acquire('job', 'b', '30 s') IS NULL AS refused;

-- A client that did not hear the answer repeats the request, and gets that grant.
SELECT holder, epoch FROM lease_acquire('repeated', 'a', '30 s', '11111111-1111-1111-1111-111111111111');
SELECT holder, epoch FROM lease_acquire('repeated', 'a', '30 s', '11111111-1111-1111-1111-111111111111');
SELECT holder, epoch FROM lease_try_acquire('repeated', 'a', '30 s', '11111111-1111-1111-1111-111111111111');
SELECT lease_try_acquire('repeated', 'a', '30 s', '22222222-2222-2222-2222-222222222222') IS NULL AS refused;
SELECT lease_try_acquire('repeated', 'b', '30 s', '11111111-1111-1111-1111-111111111111') IS NULL AS refused;

-- A grant that is rolled back never was, and its epoch is given again.
BEGIN;
SELECT epoch FROM lease_acquire('undone', 'a', '30 s');
SELECT epoch FROM lease_current('undone');
ROLLBACK;
SELECT lease_current('undone') IS NULL AS free;
SELECT epoch FROM lease_acquire('undone', 'b', '30 s');
BEGIN;
SAVEPOINT s;
SELECT epoch FROM lease_acquire('undone 2', 'a', '30 s');
ROLLBACK TO s;
SELECT lease_current('undone 2') IS NULL AS free;
SELECT epoch FROM lease_acquire('undone 2', 'b', '30 s');
COMMIT;
SELECT holder, epoch FROM lease_current('undone 2');

-- The lock is held to the end of the transaction, and what it wrote before with it.
CREATE TABLE wrote (n int);
BEGIN;
INSERT INTO wrote VALUES (1);
SELECT epoch FROM lease_acquire('late', 'a', '30 s');
COMMIT;

--
-- Expiry
--
SELECT at(29);
SELECT holder, seconds_left(expires_at) FROM lease_current('job');
SELECT at(31);
SELECT lease_current('job') IS NULL AS expired;
SELECT state, holder, epoch, time_left FROM lease_status WHERE resource = 'job';
-- Nobody took it: it can be renewed, and cannot be acquired any more.
SELECT seconds_left(lease_renew('job', 'a', 1, '30 s'));
SELECT lease_try_acquire('job', 'b', '30 s') IS NULL AS refused;
SELECT at(62);
SELECT holder, epoch FROM lease_acquire('job', 'b', '30 s');
-- Lost: with the epoch claimed, the current one, and why.
SELECT lease_renew('job', 'a', 1, '30 s');
SELECT lease_release('job', 'a', 1);
SELECT lease_renew('job', 'a', 2, '30 s');
SELECT lease_renew('job', 'b', 3, '30 s');
SELECT lease_renew('never', 'a', 1, '30 s');

-- A renewal may shorten, and is not undone by a rollback.
BEGIN;
SELECT seconds_left(lease_renew('job', 'b', 2, '5 s'));
ROLLBACK;
SELECT seconds_left(expires_at) FROM lease_current('job');
SELECT seconds_left(lease_renew('job', 'b', 2, '1 h'));

-- Many at once: a lease that is lost does not keep the others from being renewed.
SELECT resource, epoch, seconds_left(expires_at), refusal
  FROM lease_renew_all('b', '{"job": 2, "undone": 1, "repeated": 1, "never": 1}', '40 s') ORDER BY resource;
SELECT * FROM lease_renew_all('b', '[1]', '40 s');
SELECT * FROM lease_renew_all('b', '{"job": "2"}', '40 s');

--
-- Release and revocation
--
SELECT lease_release('job', 'b', 2);
SELECT lease_current('job') IS NULL AS free;
SELECT lease_release('job', 'b', 2);
SELECT lease_renew('job', 'b', 2, '30 s');
SELECT state, holder, epoch, ended FROM lease_status WHERE resource = 'job';
-- The next grant has the next epoch, however short the lease was.
SELECT epoch FROM lease_acquire('job', 'b', '30 s');
BEGIN;
SELECT lease_release('job', 'b', 3);
ROLLBACK;
SELECT holder, epoch FROM lease_current('job');
SELECT lease_revoke('job', 'maintenance');
SELECT lease_revoke('job', 'maintenance');
SELECT lease_revoke('never', 'maintenance');
-- Also after its time, when its holder could still renew it.
SELECT epoch FROM lease_acquire('paused', 'a', '1 ms');
SELECT lease_current('paused') IS NULL AS expired FROM (SELECT pg_sleep(0.01)) slept;
SELECT lease_revoke('paused', 'does not answer');
SELECT lease_renew('paused', 'a', 1, '30 s');
SELECT lease_renew('job', 'b', 3, '30 s');
SELECT lease_release_all('b');
SELECT lease_release_all('nobody');
SELECT resource, state, holder, epoch, ended, waiters, writers FROM lease_status ORDER BY resource;
SELECT resource, epoch, event, holder, reason FROM lease_history ORDER BY resource, epoch, recorded_at;

--
-- Bad input
--
SELECT lease_acquire('', 'a', '30 s');
SELECT lease_acquire(repeat('x', 256), 'a', '30 s');
SELECT lease_acquire('x', '', '30 s');
SELECT lease_acquire('x', NULL, '30 s');
SELECT lease_acquire(NULL, 'a', '30 s');
SELECT lease_acquire('x', 'a', NULL);
SELECT lease_acquire('x', 'a', '0.9 ms');
SELECT lease_acquire('x', 'a', '10 years 1 us');
SELECT lease_acquire('x', 'a', '-1 s');
SELECT lease_acquire('x', 'a', '30 s', max_wait => '-1 s');
SELECT lease_acquire('x', 'a', '30 s', max_wait => '61 s');
SELECT lease_acquire('x', 'a', '30 s', terminate_writers => NULL);
SELECT lease_renew('x', 'a', 1, '0');
SELECT lease_renew(NULL, 'a', 1, '30 s');
SELECT lease_current(NULL);
SELECT epoch FROM lease_acquire(repeat('x', 255), repeat('y', 255), '10 years');
SELECT epoch FROM lease_acquire('short', 'a', '1 ms');

--
-- Every isolation level grants by what is true now, not by what the transaction's snapshot shows.
--
SELECT at(0);
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) > 0 AS snapshot_taken FROM lease;
SELECT epoch FROM lease_acquire('level', 'a', '30 s');
COMMIT;
SELECT lease_release('level', 'a', 1);
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT epoch FROM lease_acquire('level', 'b', '30 s');
SELECT lease_release('level', 'b', 2);
SELECT epoch FROM lease_acquire('level', 'c', '30 s');
COMMIT;
SELECT holder, epoch FROM lease_current('level');
-- In a transaction that only reads nothing can be granted.
BEGIN READ ONLY;
SELECT lease_acquire('level 2', 'a', '30 s');
ROLLBACK;
BEGIN READ ONLY;
SELECT seconds_left(lease_renew('level', 'c', 3, '20 s'));
COMMIT;

--
-- Leases of other nodes, by hearsay
--
SELECT at(0);
CREATE FUNCTION hear(resource text, node text, epoch bigint, time_left interval, version bigint DEFAULT 1, has_ended boolean DEFAULT false)
  RETURNS void LANGUAGE sql AS $$
  SELECT report_learn('c', jsonb_build_array(jsonb_build_object('lease', jsonb_build_object(
    'resource', resource, 'node', node, 'holder', 'far', 'epoch', epoch, 'has_ended', has_ended, 'version', version,
    'time_left', (extract(epoch FROM time_left) * 1000000)::bigint)))) $$;
SELECT epoch FROM lease_acquire('heard', 'a', '10 s');
SELECT hear('heard', 'b', 4, '60 s');
-- What this node has granted comes first.
SELECT holder, epoch, node FROM lease_current('heard');
SELECT at(20);
SELECT holder, epoch, node, seconds_left(expires_at), heard_at IS NOT NULL AS heard FROM lease_current('heard');
SELECT lease_try_acquire('heard', 'a', '10 s') IS NULL AS refused;
DO $$ BEGIN
  PERFORM coord.lease_acquire('heard', 'a', '10 s');
EXCEPTION WHEN object_not_in_prerequisite_state THEN
  RAISE NOTICE '%', SQLERRM;
END $$;
-- An older report changes nothing; a later one of the same grant moves its expiry, and its end counts for more.
SELECT hear('heard', 'b', 3, '90 s', 9);
SELECT hear('heard', 'b', 4, '90 s', 1);
SELECT epoch, seconds_left(expires_at) FROM lease_current('heard');
SELECT hear('heard', 'b', 4, '90 s', 2);
SELECT epoch, seconds_left(expires_at) FROM lease_current('heard');
-- Nobody knows this node better than itself.
SELECT hear('heard', 'regress', 40, '90 s');
SELECT epoch, node FROM lease_current('heard');
-- Of several nodes the highest epoch counts, among those that have not come to their end.
SELECT hear('heard', 'd', 7, '30 s');
SELECT epoch, node FROM lease_current('heard');
SELECT hear('heard', 'd', 7, '0', 2, true);
SELECT epoch, node FROM lease_current('heard');
SELECT hear('heard', 'b', 4, '0', 1, true);
SELECT lease_current('heard') IS NULL AS free;
SELECT epoch FROM lease_acquire('heard', 'a', '10 s');
-- Of what it does not know a node has heard too.
SELECT hear('never here', 'b', 5, '10 s');
SELECT holder, epoch, node FROM lease_current('never here');
SELECT fence_check('never here', 'run', 'far', 4) -> 'decision' AS older, fence_check('never here', 'run', 'far', 5) -> 'decision' AS same;
SELECT at(40);
SELECT epoch FROM lease_acquire('never here', 'a', '10 s');
SELECT resource, node, epoch, has_ended, learned_from FROM lease_report ORDER BY resource COLLATE "C", node;
-- What a node held that is no member any more counts as over, also when somebody else repeats it. Its end is no secret:
-- once it is a member again, the same report counts again.
SELECT at(0);
CREATE FUNCTION of_far() RETURNS TABLE (epoch bigint, seconds_left int) LANGUAGE sql AS $$
  SELECT c.epoch, seconds_left(c.expires_at) FROM lease_current('far') c WHERE c.epoch IS NOT NULL $$;
INSERT INTO member VALUES ('far away', 'voter', 1);
SELECT hear('far', 'far away', 6, '60 s');
SELECT * FROM of_far();
DELETE FROM member WHERE node = 'far away';
SELECT report_lapse();
SELECT hear('far', 'far away', 6, '60 s');
SELECT * FROM of_far();
INSERT INTO member VALUES ('far away', 'voter', 1);
SELECT hear('far', 'far away', 6, '60 s');
SELECT * FROM of_far();
-- What a node said before it left, and is heard after that, is over as it comes; its epochs count.
INSERT INTO roster (name, uuid, incarnation, status) VALUES ('gone', gen_random_uuid(), 1, 'left');
SELECT hear('after', 'gone', 9, '60 s');
SELECT lease_current('after') IS NULL AS free;
SELECT epoch FROM lease_acquire('after', 'a', '10 s');
DELETE FROM member WHERE node = 'far away';
DELETE FROM roster WHERE name = 'gone';
DROP FUNCTION hear, of_far;
SELECT at(0);

--
-- Prepared transactions
--
BEGIN;
SELECT epoch FROM lease_acquire('prepared', 'a', '30 s');
PREPARE TRANSACTION 'grant';
SELECT lease_current('prepared') IS NULL AS free;

-- The codes that a program goes by.
\set VERBOSITY sqlstate
SELECT lease_acquire('level', 'b', '30 s');
SELECT lease_renew('level', 'b', 2, '30 s');
SELECT lease_acquire('x', 'a', '0');
BEGIN;
SELECT epoch FROM lease_acquire('prepared', 'a', '30 s');
PREPARE TRANSACTION 'grant';
\set VERBOSITY default

--
-- Where a row was last seen is a guess: it may have moved, be another's, or be beyond the end
--
TRUNCATE lease;
SET client_min_messages = error;
DO $$ BEGIN
  FOR i IN 1..200 LOOP
    PERFORM coord.lease_acquire('first', 'a', '30 s');
    PERFORM coord.lease_release('first', 'a', i);
  END LOOP;
END $$;
RESET client_min_messages;
SELECT epoch FROM lease_acquire('second', 'a', '30 s');
SELECT ctid > '(1,0)' AS lies_behind FROM lease WHERE resource = 'second';
SELECT epoch FROM lease_current('second');
VACUUM FULL lease;
SELECT ctid > '(1,0)' AS lies_behind FROM lease WHERE resource = 'second';
SELECT epoch FROM lease_current('second');
-- Its place is another's, after it was rolled back and cleared away.
BEGIN;
SELECT epoch FROM lease_acquire('undone', 'a', '30 s');
SELECT ctid AS place FROM lease WHERE resource = 'undone' \gset
SELECT epoch FROM lease_current('undone');
ROLLBACK;
VACUUM (FREEZE) lease;
SELECT epoch FROM lease_acquire('third', 'a', '30 s');
SELECT ctid = :'place' AS is_there FROM lease WHERE resource = 'third';
SELECT lease_current('undone') IS NULL AS is_undone;
-- Emptied, the table begins anew, and memory with it, once that commits.
SELECT fence('second', 1);
BEGIN;
TRUNCATE lease;
SAVEPOINT s;
SELECT fence('second', 1);
ROLLBACK;
SELECT fence('second', 1);
TRUNCATE lease;
SELECT fence('second', 1);
SELECT lease_current('third') IS NULL AS is_gone;
SELECT epoch FROM lease_acquire('third', 'a', '30 s');
\set SHOW_CONTEXT never
-- One by one no grant is forgotten.
DELETE FROM lease WHERE resource = 'third';
UPDATE lease SET ended = 'revoked' WHERE resource = 'third';
-- A row that somebody writes by hand is known to nobody once it is rolled back.
BEGIN;
INSERT INTO lease (resource, holder, epoch, acquired_at, expires_at, ttl, memory)
  SELECT 'by hand', 'a', 7, l.acquired_at, l.expires_at, l.ttl, l.memory FROM lease l WHERE l.resource = 'third';
SELECT fence('by hand', 7);
ROLLBACK;
SELECT epoch FROM lease_acquire('by hand', 'a', '30 s');
SELECT fence('by hand', 7);
-- A number that is given again is that of another lease.
TRUNCATE lease RESTART IDENTITY;
SELECT epoch FROM lease_acquire('third', 'a', '30 s');
SELECT fence('third', 1);
TRUNCATE lease RESTART IDENTITY;
SELECT epoch FROM lease_acquire('another', 'b', '30 s');
SELECT fence('third', 1);
SELECT epoch FROM lease_acquire('third', 'a', '30 s');
SELECT fence('third', 1);
BEGIN;
SELECT fence('third', 1);
SAVEPOINT s;
SELECT lease_release('third', 'a', 1);
SELECT lease_current('third') IS NULL AS free;
ROLLBACK TO s;
SELECT epoch FROM lease_current('third');
COMMIT;
TRUNCATE lease;
SELECT fence('third', 1);
SELECT epoch FROM lease_acquire('third', 'a', '30 s');

-- An index of columns is kept up; one of expressions or of a part of the rows is refused.
CREATE INDEX lease_by_holder ON lease (holder, resource);
SELECT count(lease_acquire('indexed ' || i, 'h', '30 s')) FROM generate_series(1, 300) i;
SELECT lease_release_all('h');
SELECT count(lease_acquire('indexed ' || i, 'h' || i % 3, '30 s')) FROM generate_series(1, 300) i;
SET enable_seqscan = off;
EXPLAIN (COSTS OFF) SELECT resource FROM lease WHERE holder = 'h2' ORDER BY resource;
SELECT count(*), min(resource), max(resource) FROM lease WHERE holder = 'h2';
SELECT count(*) FROM lease WHERE holder = 'h';
RESET enable_seqscan;
DROP INDEX lease_by_holder;
CREATE INDEX lease_by_expiry ON lease USING brin (expires_at);
SELECT lease_release('indexed 1', 'h1', 2);
SELECT epoch FROM lease_acquire('indexed 1', 'h1', '9 years');
SET enable_seqscan = off;
SELECT count(*) FROM lease WHERE expires_at > now() + interval '8 years';
RESET enable_seqscan;
DROP INDEX lease_by_expiry;
-- One that is being built hears of nothing until it is ready.
CREATE INDEX lease_by_holder ON lease (holder);
UPDATE pg_index SET indisready = false WHERE indexrelid = 'lease_by_holder'::regclass;
SELECT epoch FROM lease_acquire('not ready', 'n', '30 s');
UPDATE pg_index SET indisready = true WHERE indexrelid = 'lease_by_holder'::regclass;
SELECT epoch FROM lease_acquire('ready', 'n', '30 s');
SET enable_seqscan = off;
SELECT resource FROM lease WHERE holder = 'n';
RESET enable_seqscan;
DROP INDEX lease_by_holder;
CREATE INDEX lease_by_length ON lease (length(resource));
SELECT lease_acquire('not indexed', 'a', '30 s');
DROP INDEX lease_by_length;
CREATE INDEX history_of_granted ON lease_history (resource) WHERE event = 'granted';
SELECT lease_acquire('not indexed', 'a', '30 s');
DROP INDEX history_of_granted;

-- Created again, the extension knows nothing of the leases of before, nor do the sessions that wrote under them.
SELECT epoch FROM lease_acquire('again', 'a', '30 s');
SELECT lease_release('again', 'a', 1);
SELECT epoch FROM lease_acquire('again', 'a', '30 s');
SELECT fence('again', 2);
SET client_min_messages = warning;
DROP TABLE IF EXISTS account, wrote;
DROP FUNCTION at, seconds_left;
DROP EXTENSION pg_test CASCADE;
CREATE EXTENSION pg_test;
SELECT epoch FROM lease_acquire('again', 'b', '30 s');
SELECT fence('again', 2);
SELECT fence('again', 1);
-- What comes next finds a database without a node.
