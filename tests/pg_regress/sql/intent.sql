-- Intents: an effect that must happen once, dispatched under the lease of its agent.
SET search_path = public, coord;
SELECT node_init('regress');
\set SHOW_CONTEXT never
CREATE FUNCTION at(seconds int) RETURNS void LANGUAGE sql AS $$
  SELECT set_config('coord.clock_offset', (seconds * 1000)::text, false) $$;

-- Operations by their place among the intents of the log.
CREATE FUNCTION said(answer jsonb) RETURNS text LANGUAGE sql AS $$
  SELECT coalesce(replace(answer::text, o.op_id, 'op-' || (SELECT count(*) FROM op p WHERE p.surface = 'intent' AND p.seq <= o.seq)), answer::text)
    FROM (SELECT) here LEFT JOIN op o ON o.op_id = substring(answer::text FROM 'op-[0-9a-f]{32}') $$;

-- Nobody holds the lease: nothing may be done.
SELECT said(fence_check('mailer', 'run 1', 'a', 1));
SELECT epoch FROM lease_acquire('mailer', 'a', '30 s');
SELECT said(fence_check('mailer', 'run 1', 'a', 1));
-- Before the effect, and after it.
SELECT said(intent_record('mailer', 'run 1', 'a', 1, 'pending'));
SELECT said(fence_check('mailer', 'run 1', 'a', 1));
SELECT said(intent_record('mailer', 'run 1', 'a', 1, 'committed'));
SELECT said(fence_check('mailer', 'run 1', 'a', 1));
-- Saying so again changes nothing, and nothing else can be said any more.
SELECT said(intent_record('mailer', 'run 1', 'a', 1, 'committed'));
SELECT said(intent_record('mailer', 'run 1', 'a', 1, 'pending'));
SELECT said(intent_record('mailer', 'run 1', 'a', 1, 'failed'));

-- A failed run can be tried again.
SELECT said(intent_record('mailer', 'run 2', 'a', 1, 'pending'));
SELECT said(intent_record('mailer', 'run 2', 'a', 1, 'pending'));
SELECT said(intent_record('mailer', 'run 2', 'a', 1, 'failed'));
SELECT said(intent_record('mailer', 'run 2', 'a', 1, 'failed'));
SELECT attempt, status FROM intent WHERE run_id = 'run 2';
SELECT said(intent_record('mailer', 'run 2', 'a', 1, 'pending'));
SELECT attempt, status FROM intent WHERE run_id = 'run 2';

-- The holder is late, and superseded.
SELECT at(30);
SELECT said(fence_check('mailer', 'run 2', 'a', 1));
SELECT epoch FROM lease_acquire('mailer', 'b', '30 s');
SELECT said(fence_check('mailer', 'run 2', 'a', 1));
SELECT said(fence_check('mailer', 'run 2', 'a', 2));
SELECT said(fence_check('mailer', 'run 2', 'b', 2));
SELECT said(fence_check('mailer', 'run 1', 'b', 2));
-- The new holder begins the run again; what the old one says of it is too late,
SELECT said(intent_record('mailer', 'run 2', 'b', 2, 'pending'));
SELECT said(intent_record('mailer', 'run 2', 'a', 1, 'failed'));
-- unless it has happened.
SELECT said(intent_record('mailer', 'run 2', 'a', 1, 'committed'));
SELECT said(fence_check('mailer', 'run 2', 'b', 2));
SELECT said(intent_record('mailer', 'run 2', 'b', 2, 'failed'));
SELECT lease_release('mailer', 'b', 2);
SELECT said(fence_check('mailer', 'run 3', 'b', 2));
SELECT said(fence_check('mailer', 'run 2', 'b', 2));
SELECT agent, run_id, scope, attempt, epoch, holder, status, said(to_jsonb(op_id)) AS op_id FROM intent ORDER BY run_id;

-- Scopes are told apart when recording; what has happened in one has happened.
SELECT said(intent_record('mailer', 'run 4', 'b', 2, 'pending', 'shared:acme'));
SELECT said(intent_record('mailer', 'run 4', 'b', 2, 'committed'));
SELECT scope, status FROM intent WHERE run_id = 'run 4' ORDER BY scope;
SELECT fence_check('mailer', 'run 4', 'b', 2) -> 'decision' ->> 'decision' AS decision;

-- By what is true now, whatever the transaction's snapshot shows.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM intent WHERE run_id = 'run 5';
SELECT intent_record('mailer', 'run 5', 'b', 2, 'committed') ->> 'recorded' AS recorded;
SELECT fence_check('mailer', 'run 5', 'b', 2) ->> 'may_dispatch' AS may_dispatch;
COMMIT;

-- Bad input
SELECT said(intent_record('mailer', 'run 6', 'b', 0, 'pending'));
SELECT said(intent_record('mailer', 'run 6', 'b', 3, 'pending'));
SELECT said(intent_record('nobody', 'run 6', 'b', 1, 'pending'));
SELECT said(intent_record('mailer', 'run 6', 'b', 2, 'done'));
SELECT said(intent_record('mailer', '', 'b', 2, 'pending'));
SELECT said(intent_record('', 'run 6', 'b', 2, 'pending'));
SELECT said(intent_record('mailer', 'run 6', '', 2, 'pending'));
SELECT said(intent_record('mailer', 'run 6', 'b', 2, 'pending', 'shared:'));
SELECT said(intent_record('mailer', 'run 6', 'b', 2, 'pending', 'public'));
SELECT said(intent_record('mailer', 'run 6', 'b', 2, NULL));
SELECT count(*) FROM intent WHERE run_id = 'run 6';
-- An agent records and asks, and cannot write the table.
SET ROLE coord_agent;
SELECT coord.intent_record('mailer', 'run 7', 'b', 2, 'pending') ->> 'recorded' AS recorded;
SELECT coord.fence_check('mailer', 'run 7', 'b', 2) -> 'decision' ->> 'decision' AS decision;
UPDATE coord.intent SET status = 'committed';
RESET ROLE;
\set VERBOSITY sqlstate
SELECT said(intent_record('mailer', 'run 6', 'b', 3, 'pending'));
\set VERBOSITY default
SET client_min_messages = warning;
-- The ledger is what the log folds into.
SELECT op_refold();
SELECT op_append('personal', 'intent', '{"agent": "mailer", "run_id": "run 8"}') IS NOT NULL AS appended;
SELECT count(*) FROM intent WHERE run_id = 'run 8';
-- What intent_record refuses, op_append does.
SELECT op_append('personal', 'intent', '{"agent": "mailer", "run_id": "run 8", "holder": "b", "epoch": 9, "status": "pending", "attempt": 1}');

-- A database that is no node has no log; once it is one, what it recorded goes there.
SELECT current_database() AS regression \gset
CREATE DATABASE regress_intent TEMPLATE template0 ENCODING 'UTF8';
\c regress_intent
CREATE EXTENSION pg_test;
SET search_path = public, coord;
SELECT epoch FROM lease_acquire('mailer', 'a', '30 s');
SELECT intent_record('mailer', 'run 1', 'a', 1, 'pending') ->> 'recorded' AS recorded;
SELECT intent_record('mailer', 'run 1', 'a', 1, 'failed') ->> 'recorded' AS recorded;
SELECT intent_record('mailer', 'run 1', 'a', 1, 'pending') ->> 'recorded' AS recorded;
SELECT intent_record('mailer', 'run 2', 'a', 1, 'committed') ->> 'recorded' AS recorded;
SELECT intent_record('mailer', 'run 2', 'a', 1, 'pending');
SELECT fence_check('mailer', 'run 2', 'a', 1) -> 'decision' ->> 'decision' AS decision;
SELECT run_id, attempt, status, op_id ~ '^op-[0-9a-f]{32}$' AS op_id, hlc FROM intent ORDER BY run_id;
SELECT count(*) FROM op;
SELECT state_hash() = repeat('0', 64) AS nothing_folded, op_refold();
BEGIN;
SELECT node_init('late');
SELECT intent_log();
COMMIT;
SELECT i.run_id, i.attempt, i.status, i.op_id = o.op_id AS is_logged FROM intent i JOIN op o ON o.hlc = i.hlc ORDER BY i.run_id;
SELECT intent_log(), op_refold();
SELECT fence_check('mailer', 'run 2', 'a', 1) -> 'decision' ->> 'decision' AS decision;
\c :regression
DROP DATABASE regress_intent WITH (FORCE);
SET search_path = public, coord;
SET client_min_messages = warning;
DROP FUNCTION said;
DROP FUNCTION at;
DROP EXTENSION pg_test CASCADE;
CREATE EXTENSION pg_test;
