-- Fencing: a write under an epoch that is not current is refused inside its own transaction.
SET search_path = public, coord;
\set SHOW_CONTEXT never
SELECT node_init('regress');
CREATE FUNCTION at(seconds int) RETURNS void LANGUAGE sql AS $$
  SELECT set_config('coord.clock_offset', (seconds * 1000)::text, false) $$;

--
-- Tokens
--
SELECT fence('door', 1);
SELECT epoch FROM lease_acquire('door', 'a', '30 s');
SELECT fence('door', 1);
SELECT fence('door', 2);
SELECT fence('door', 0);
SELECT fence('door', -1);
SELECT at(30);
SELECT fence('door', 1);
SELECT epoch FROM lease_acquire('door', 'b', '30 s');
SELECT fence('door', 1);
SELECT fence('door', 2);
SELECT lease_release('door', 'b', 2);
SELECT fence('door', 2);
SELECT at(0);
-- Not an error that clients repeat blindly, and with the name of a constraint.
DO $$
DECLARE
  state text;
  name text;
BEGIN
  PERFORM coord.fence('door', 1);
EXCEPTION WHEN check_violation THEN
  GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, name = CONSTRAINT_NAME;
  RAISE NOTICE '% %', state, name;
END $$;

--
-- A table of one resource
--
CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL DEFAULT 0);
SELECT protect_table('account', 'ledger');
SELECT target, resource, resource_column, epoch_column, is_complete, refusals FROM protected_table;
SELECT holder, epoch FROM lease_acquire('ledger', 'a', '30 s');
-- No token, no write: whoever it is, and however many rows it hits.
INSERT INTO account VALUES (1);
UPDATE account SET balance = 1;
DELETE FROM account;
TRUNCATE account;
COPY account FROM stdin;
1	1
\.
-- With it every kind of write.
BEGIN;
SELECT fence_set('ledger', 1);
INSERT INTO account VALUES (1), (2);
COPY account FROM stdin;
3	3
4	4
\.
UPDATE account SET balance = balance + 1;
INSERT INTO account VALUES (1, 5) ON CONFLICT (id) DO UPDATE SET balance = excluded.balance;
MERGE INTO account a USING (VALUES (1), (9)) v(id) ON a.id = v.id
  WHEN MATCHED THEN UPDATE SET balance = 7
  WHEN NOT MATCHED THEN INSERT VALUES (v.id, 9);
DELETE FROM account WHERE id = 2;
TABLE account ORDER BY id;
TRUNCATE account;
INSERT INTO account VALUES (1, 100);
COMMIT;
-- The token was that transaction's.
UPDATE account SET balance = 0;
-- It is undone with the savepoint it came after.
BEGIN;
SAVEPOINT s;
SELECT fence_set('ledger', 1);
UPDATE account SET balance = 101;
ROLLBACK TO s;
UPDATE account SET balance = 102;
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT fence_set('ledger', 1);
RELEASE s;
UPDATE account SET balance = 101;
COMMIT;
-- A token that does not pass is refused when it is named.
SELECT fence_set('ledger', 2);
-- Not even replication's role, which skips ordinary triggers, goes past it.
BEGIN;
SET LOCAL session_replication_role = replica;
UPDATE account SET balance = 103;
ROLLBACK;
BEGIN;
ALTER TABLE account DISABLE TRIGGER ALL;
SELECT is_complete FROM protected_table;
ROLLBACK;
-- A holder that was paused past its time is refused when it goes on, inside its own transaction.
BEGIN;
SELECT fence_set('ledger', 1);
UPDATE account SET balance = 110;
SELECT at(31);
UPDATE account SET balance = 111;
ROLLBACK;
SELECT at(31);
-- And whatever it has already written cannot be committed under the next epoch.
SELECT holder, epoch FROM lease_acquire('ledger', 'b', '30 s');
BEGIN;
SELECT fence_set('ledger', 1);
ROLLBACK;
-- A transaction that takes the lease itself goes on with the new epoch, and not with the old one.
BEGIN;
SELECT fence_set('ledger', 2);
UPDATE account SET balance = 120;
SELECT lease_release('ledger', 'b', 2);
UPDATE account SET balance = 121;
ROLLBACK;
BEGIN;
SELECT fence_set('ledger', 2);
SAVEPOINT s;
SELECT lease_release('ledger', 'b', 2);
SELECT epoch FROM lease_acquire('ledger', 'b', '30 s');
SELECT fence_set('ledger', 3);
UPDATE account SET balance = 130;
ROLLBACK TO s;
UPDATE account SET balance = 131;
COMMIT;
SELECT balance FROM account;
SELECT target, refusals FROM protected_table;
SELECT labels, value FROM metrics WHERE name = 'coord_fence_refused_total';
SELECT unprotect_table('account');
SELECT unprotect_table('account');
UPDATE account SET balance = 140;
SELECT count(*) FROM protected_table;
SELECT at(0);

--
-- A table whose rows name their resource
--
CREATE TABLE task (id int PRIMARY KEY, owner text, done boolean NOT NULL DEFAULT false);
SELECT protect_table('task', resource_column => 'owner');
SELECT resource, epoch FROM lease_acquire('agent 1', 'a', '30 s');
SELECT resource, epoch FROM lease_acquire('agent 2', 'a', '30 s');
BEGIN;
SELECT fence_set('agent 1', 1), fence_set('agent 2', 1);
INSERT INTO task SELECT n, 'agent ' || 1 + n % 2 FROM generate_series(1, 4) n;
COMMIT;
BEGIN;
SELECT fence_set('agent 1', 1);
UPDATE task SET done = true WHERE owner = 'agent 1';
SAVEPOINT s;
UPDATE task SET done = true;
ROLLBACK TO s;
-- Moving a row takes the token of where it was and of where it goes.
UPDATE task SET owner = 'agent 1' WHERE id = 1;
ROLLBACK TO s;
UPDATE task SET owner = 'agent 2' WHERE id = 2;
ROLLBACK TO s;
SELECT fence_set('agent 2', 1);
UPDATE task SET owner = 'agent 1' WHERE id = 1;
DELETE FROM task WHERE id = 3;
INSERT INTO task VALUES (9, NULL);
ROLLBACK TO s;
TRUNCATE task;
ROLLBACK;
-- What counts is the row as it is stored, not as the statement gave it.
CREATE FUNCTION reassign() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.owner := 'agent 2'; RETURN NEW; END $$;
CREATE TRIGGER zzz BEFORE INSERT ON task FOR EACH ROW EXECUTE FUNCTION reassign();
BEGIN;
SELECT fence_set('agent 1', 1);
INSERT INTO task VALUES (5, 'agent 1');
ROLLBACK;
DROP TRIGGER zzz ON task;
ALTER TABLE task RENAME owner TO holder;
BEGIN;
SELECT fence_set('agent 1', 1);
INSERT INTO task VALUES (5, 'agent 1');
ROLLBACK;
DROP TABLE task;

--
-- Rows that bring their token: no statement before it is needed
--
CREATE TABLE event (id int PRIMARY KEY, note text, epoch bigint);
SELECT protect_table('event', 'ledger', epoch_column => 'epoch');
INSERT INTO event VALUES (1, 'a', 1);
INSERT INTO event VALUES (1, 'a', 2);
INSERT INTO event VALUES (2, 'a', NULL);
UPDATE event SET note = 'b', epoch = 2;
-- The epoch that some earlier writer left in the row is not the token of this one.
UPDATE event SET note = 'c';
DELETE FROM event;
INSERT INTO event VALUES (1, 'd', 2) ON CONFLICT (id) DO UPDATE SET note = excluded.note, epoch = excluded.epoch;
INSERT INTO event VALUES (1, 'e', 2) ON CONFLICT (id) DO UPDATE SET note = excluded.note;
BEGIN;
SELECT fence_set('ledger', 2);
UPDATE event SET note = 'f';
DELETE FROM event WHERE id = 0;
COMMIT;
TABLE event;
DROP TABLE event;

--
-- Partitions, children, cascades
--
CREATE TABLE log (id int, day int) PARTITION BY RANGE (day);
CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (1) TO (10);
CREATE TABLE log_2 (id int, day int);
SELECT protect_table('log', 'ledger');
ALTER TABLE log ATTACH PARTITION log_2 FOR VALUES FROM (10) TO (20);
SELECT target, is_complete FROM protected_table ORDER BY target::text;
INSERT INTO log VALUES (1, 1);
INSERT INTO log_1 VALUES (1, 1);
INSERT INTO log_2 VALUES (1, 11);
TRUNCATE log_1;
SET session_replication_role = replica;
INSERT INTO log_1 VALUES (1, 1);
INSERT INTO log_2 VALUES (1, 11);
RESET session_replication_role;
-- Protecting it again takes in what was attached since.
SELECT protect_table('log', 'ledger');
SELECT target, is_complete FROM protected_table ORDER BY target::text;
TRUNCATE log_2;
BEGIN;
SELECT fence_set('ledger', 2);
INSERT INTO log VALUES (1, 1), (2, 11);
UPDATE log SET day = 12 WHERE id = 1;
SELECT tableoid::regclass, * FROM log ORDER BY id;
COMMIT;
DROP TABLE log;
CREATE TABLE base (id int);
CREATE TABLE child (extra int) INHERITS (base);
SELECT protect_table('base', 'ledger');
INSERT INTO child VALUES (1, 1);
UPDATE base SET id = 2;
SELECT unprotect_table('base');
INSERT INTO child VALUES (1, 1);
DROP TABLE base CASCADE;
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE item (id int, parent int REFERENCES parent ON DELETE CASCADE);
INSERT INTO parent VALUES (1);
INSERT INTO item VALUES (1, 1);
SELECT protect_table('item', 'ledger');
DELETE FROM parent;
TRUNCATE parent CASCADE;
BEGIN;
SELECT fence_set('ledger', 2);
DELETE FROM parent;
COMMIT;
SELECT count(*) FROM item;
DROP TABLE parent, item;

--
-- Many leases in one transaction take one lock
--
CREATE TABLE many (resource text);
SELECT protect_table('many', resource_column => 'resource');
SELECT count(lease_acquire('many ' || n, 'a', '1 h')) FROM generate_series(1, 200) n;
BEGIN;
SELECT count(fence_set('many ' || n, 1)) FROM generate_series(1, 200) n;
INSERT INTO many SELECT 'many ' || n FROM generate_series(1, 200) n;
SELECT l.mode, l.objsubid, count(*) FROM pg_locks l WHERE l.locktype = 'userlock' GROUP BY 1, 2 ORDER BY 1, 2;
ROLLBACK;
DROP TABLE many;

--
-- What cannot be protected
--
SELECT protect_table('account');
SELECT protect_table('account', 'x', 'id');
SELECT protect_table('account', resource_column => 'none');
SELECT protect_table('account', resource_column => 'id');
SELECT protect_table('account', 'x', epoch_column => 'balance');
SELECT protect_table('account', '');
SELECT protect_table(NULL, 'x');
CREATE VIEW seen AS SELECT 1 AS n;
SELECT protect_table('seen', 'x');

--
-- An agent that may not read coord.lease writes under a lease, and protects only what it owns.
--
CREATE ROLE regress_agent IN ROLE coord_agent;
SELECT protect_table('account', 'ledger');
GRANT SELECT, UPDATE ON account TO regress_agent;
SET ROLE regress_agent;
SELECT count(*) FROM coord.lease;
BEGIN;
SELECT coord.fence_set('ledger', 2);
UPDATE public.account SET balance = 150;
COMMIT;
SELECT coord.unprotect_table('public.account');
SELECT coord.lease_revoke('ledger', 'x');
SELECT coord.lease_release('ledger', 'b', 2);
RESET ROLE;
CREATE ROLE regress_other;
GRANT SELECT, UPDATE ON account TO regress_other;
SET ROLE regress_other;
UPDATE public.account SET balance = 160;
SELECT coord.fence('ledger', 2);
RESET ROLE;
SELECT unprotect_table('account');
DROP OWNED BY regress_agent, regress_other;
DROP ROLE regress_agent, regress_other;
\set VERBOSITY sqlstate
SELECT fence('door', 1);
\set VERBOSITY default
-- What comes next finds a database without a node.
SET client_min_messages = warning;
DROP TABLE IF EXISTS account, wrote;
DROP FUNCTION at;
DROP EXTENSION pg_test CASCADE;
CREATE EXTENSION pg_test;
