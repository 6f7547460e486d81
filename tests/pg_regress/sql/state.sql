-- Named constraint states, changed under this node's actor.
\getenv abs_srcdir PG_ABS_SRCDIR
\set ECHO none
\set include :abs_srcdir '/include/fails.sql'
\i :include
\set ECHO all
SET search_path = public, coord;
SELECT node_init('regress');
DELETE FROM state;

-- The first call creates the state.
SELECT state_add_constraint('plan', 'cost');
SELECT name, value FROM state;
-- Every later one is a change of it, counted under the node's actor.
SELECT state_add_constraint('plan', 'area'), state_add_constraint('plan', 'cost');
SELECT state_record_satisfied('plan', 3), state_record_satisfied('plan', 4), state_record_violations('plan', 1);
SELECT value FROM state WHERE name = 'plan';
SELECT constraint_satisfied(value), constraint_violations(value), satisfaction_rate(value), constraint_context(value) FROM state WHERE name = 'plan';
SELECT state_remove_constraint('plan', 'cost');
SELECT constraint_ids(value) FROM state WHERE name = 'plan';
-- The later of two moves wins, within one statement too. Its stamp is the server's.
SELECT state_move('plan', 1, 1), state_move('plan', 2, -2);
SELECT constraint_position(value) FROM state WHERE name = 'plan';
SELECT state_move('plan', 3, 3);
SELECT constraint_position(value), (value::jsonb #>> '{position,at}')::hlc < hlc_now() AS stamped, value::jsonb #>> '{position,actor}' AS actor FROM state WHERE name = 'plan';
-- A move follows what it replaces, also where the clock has lost the stamps it gave out, and the clock follows it.
SELECT hlc(hlc_time(hlc_now()) + interval '4 min', 0) AS ahead \gset
UPDATE state SET value = constraint_move(value, 7, 7, :'ahead', 'elsewhere') WHERE name = 'plan';
SELECT state_move('plan', 8, 8);
SELECT constraint_position(value), (value::jsonb #>> '{position,at}')::hlc > :'ahead' AS stamped, hlc_now() > (value::jsonb #>> '{position,at}')::hlc AS followed FROM state WHERE name = 'plan';
-- Each of them creates the state.
SELECT state_record_satisfied('satisfied', 1), state_record_violations('violated', 2), state_move('moved', 5, 6), state_remove_constraint('removed', 'x');
SELECT name, constraint_satisfied(value) AS satisfied, constraint_violations(value) AS violated, constraint_position(value) AS position, constraint_count(value) AS count
  FROM state WHERE name <> 'plan' ORDER BY name;
SELECT value FROM state WHERE name = 'removed';

-- What is kept beside the value.
SELECT name, xid = local_xid AS own, learned_from, changed_at <= clock_timestamp() AS changed,
       digest = state_row_digest(name, value) AS digest, bucket BETWEEN 0 AND 1023 AS bucket FROM state ORDER BY name;
SELECT xid AS before FROM state WHERE name = 'plan' \gset
SELECT state_record_satisfied('plan', 1);
SELECT xid > :'before' AS raised FROM state WHERE name = 'plan';
-- Removing what is not there is no change.
SELECT xid AS before FROM state WHERE name = 'plan' \gset
SELECT state_remove_constraint('plan', 'never added');
SELECT xid = :'before' AS unchanged FROM state WHERE name = 'plan';

-- What is rolled back leaves nothing.
SELECT value AS before FROM state WHERE name = 'plan' \gset
BEGIN;
SELECT state_record_satisfied('plan', 1000), state_add_constraint('rolled back', 'x');
SAVEPOINT s;
SELECT state_add_constraint('plan', 'in a savepoint');
ROLLBACK TO s;
SELECT constraint_contains(value, 'in a savepoint') FROM state WHERE name = 'plan';
ROLLBACK;
SELECT value = :'before' AS unchanged FROM state WHERE name = 'plan';
SELECT count(*) FROM state WHERE name = 'rolled back';
-- A prepared transaction changes the state when it commits.
BEGIN;
SELECT state_record_satisfied('prepared', 1);
PREPARE TRANSACTION 'regress_state';
SELECT count(*) FROM state WHERE name = 'prepared';
COMMIT PREPARED 'regress_state';
SELECT value FROM state WHERE name = 'prepared';
-- Many rows in one statement.
SELECT count(state_record_satisfied('many ' || n % 10, n)) FROM generate_series(1, 100) n;
SELECT count(*), sum(constraint_satisfied(value)) FROM state WHERE name LIKE 'many %';

-- A name is 1 to 255 bytes.
CALL pg_temp.fails($$ SELECT state_add_constraint('', 'x') $$);
CALL pg_temp.fails($$ SELECT state_record_satisfied(repeat('x', 256), 1) $$);
CALL pg_temp.fails($$ SELECT state_record_violations(repeat('é', 128), 1) $$);
SELECT state_record_satisfied(repeat('é', 127) || 'x', 1);
SELECT octet_length(name) FROM state WHERE name LIKE 'é%';
-- Arguments are checked as in the functions of the type.
CALL pg_temp.fails($$ SELECT state_add_constraint('plan', '') $$);
CALL pg_temp.fails($$ SELECT state_record_satisfied('plan', -1) $$);
CALL pg_temp.fails($$ SELECT state_record_violations('plan', -1) $$);
CALL pg_temp.fails($$ SELECT state_record_satisfied('plan', 9223372036854775807) $$);
-- NULL does nothing.
SELECT count(*) AS before FROM state \gset
SELECT state_add_constraint(NULL, 'x'), state_add_constraint('null', NULL), state_remove_constraint('null', NULL),
       state_record_satisfied('null', NULL), state_record_violations(NULL, 1), state_move('null', NULL, 1);
SELECT count(*) - :before AS created FROM state;

-- Agents change states and read them; monitors read; others do neither.
CREATE ROLE regress_agent IN ROLE coord_agent;
CREATE ROLE regress_monitor IN ROLE coord_monitor;
CREATE ROLE regress_plain;
SET ROLE regress_agent;
SELECT coord.state_add_constraint('by agent', 'x'), coord.state_record_satisfied('by agent', 1),
       coord.state_record_violations('by agent', 1), coord.state_move('by agent', 1, 1), coord.state_remove_constraint('by agent', 'x');
SELECT coord.constraint_context(value) FROM coord.state WHERE name = 'by agent';
CALL pg_temp.fails($$ DELETE FROM coord.state $$);
CALL pg_temp.fails($$ SELECT coord.state_learn('b', '{}', '{}') $$);
CALL pg_temp.fails($$ SELECT * FROM coord.state_waiting $$);
SET ROLE regress_monitor;
SELECT count(*) FROM coord.state WHERE name = 'by agent';
CALL pg_temp.fails($$ SELECT coord.state_record_satisfied('by agent', 1) $$);
CALL pg_temp.fails($$ UPDATE coord.state SET value = coord.constraint_state() $$);
SET ROLE regress_plain;
CALL pg_temp.fails($$ SELECT coord.state_add_constraint('by plain', 'x') $$);
CALL pg_temp.fails($$ SELECT coord.state_remove_constraint('by plain', 'x') $$);
CALL pg_temp.fails($$ SELECT coord.state_record_satisfied('by plain', 1) $$);
CALL pg_temp.fails($$ SELECT coord.state_record_violations('by plain', 1) $$);
CALL pg_temp.fails($$ SELECT coord.state_move('by plain', 1, 1) $$);
CALL pg_temp.fails($$ SELECT * FROM coord.state $$);
RESET ROLE;
DROP ROLE regress_agent;
DROP ROLE regress_monitor;
DROP ROLE regress_plain;

DELETE FROM state;
