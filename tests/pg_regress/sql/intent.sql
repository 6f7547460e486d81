-- Intents: an effect that must happen once, dispatched under the lease of its agent.
SET search_path = public, coord;
\set SHOW_CONTEXT never
CREATE FUNCTION at(seconds int) RETURNS void LANGUAGE sql AS $$
  SELECT set_config('coord.clock_offset', (seconds * 1000)::text, false) $$;

-- Nobody holds the lease: nothing may be done.
SELECT fence_check('mailer', 'run 1', 'a', 1);
SELECT epoch FROM lease_acquire('mailer', 'a', '30 s');
SELECT fence_check('mailer', 'run 1', 'a', 1);
-- Before the effect, and after it.
SELECT intent_record('mailer', 'run 1', 'a', 1, 'pending');
SELECT fence_check('mailer', 'run 1', 'a', 1);
SELECT intent_record('mailer', 'run 1', 'a', 1, 'committed');
SELECT fence_check('mailer', 'run 1', 'a', 1);
-- Saying so again changes nothing, and nothing else can be said any more.
SELECT intent_record('mailer', 'run 1', 'a', 1, 'committed');
SELECT intent_record('mailer', 'run 1', 'a', 1, 'pending');
SELECT intent_record('mailer', 'run 1', 'a', 1, 'failed');

-- A failed run can be tried again.
SELECT intent_record('mailer', 'run 2', 'a', 1, 'pending');
SELECT intent_record('mailer', 'run 2', 'a', 1, 'pending');
SELECT intent_record('mailer', 'run 2', 'a', 1, 'failed');
SELECT intent_record('mailer', 'run 2', 'a', 1, 'failed');
SELECT attempt, status FROM intent WHERE run_id = 'run 2';
SELECT intent_record('mailer', 'run 2', 'a', 1, 'pending');
SELECT attempt, status FROM intent WHERE run_id = 'run 2';

-- The holder is late, and superseded.
SELECT at(30);
SELECT fence_check('mailer', 'run 2', 'a', 1);
SELECT epoch FROM lease_acquire('mailer', 'b', '30 s');
SELECT fence_check('mailer', 'run 2', 'a', 1);
SELECT fence_check('mailer', 'run 2', 'a', 2);
SELECT fence_check('mailer', 'run 2', 'b', 2);
SELECT fence_check('mailer', 'run 1', 'b', 2);
-- The new holder begins the run again; what the old one says of it is too late,
SELECT intent_record('mailer', 'run 2', 'b', 2, 'pending');
SELECT intent_record('mailer', 'run 2', 'a', 1, 'failed');
-- unless it has happened.
SELECT intent_record('mailer', 'run 2', 'a', 1, 'committed');
SELECT fence_check('mailer', 'run 2', 'b', 2);
SELECT intent_record('mailer', 'run 2', 'b', 2, 'failed');
SELECT lease_release('mailer', 'b', 2);
SELECT fence_check('mailer', 'run 3', 'b', 2);
SELECT fence_check('mailer', 'run 2', 'b', 2);
SELECT agent, run_id, scope, attempt, epoch, holder, status, op_id FROM intent ORDER BY run_id;

-- Scopes are told apart when recording; what has happened in one has happened.
SELECT intent_record('mailer', 'run 4', 'b', 2, 'pending', 'shared:acme');
SELECT intent_record('mailer', 'run 4', 'b', 2, 'committed');
SELECT scope, status FROM intent WHERE run_id = 'run 4' ORDER BY scope;
SELECT fence_check('mailer', 'run 4', 'b', 2) -> 'decision' ->> 'decision' AS decision;

-- By what is true now, whatever the transaction's snapshot shows.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM intent WHERE run_id = 'run 5';
SELECT intent_record('mailer', 'run 5', 'b', 2, 'committed') ->> 'recorded' AS recorded;
SELECT fence_check('mailer', 'run 5', 'b', 2) ->> 'may_dispatch' AS may_dispatch;
COMMIT;

-- Bad input
SELECT intent_record('mailer', 'run 6', 'b', 0, 'pending');
SELECT intent_record('mailer', 'run 6', 'b', 3, 'pending');
SELECT intent_record('nobody', 'run 6', 'b', 1, 'pending');
SELECT intent_record('mailer', 'run 6', 'b', 2, 'done');
SELECT intent_record('mailer', '', 'b', 2, 'pending');
SELECT intent_record('', 'run 6', 'b', 2, 'pending');
SELECT intent_record('mailer', 'run 6', '', 2, 'pending');
SELECT intent_record('mailer', 'run 6', 'b', 2, 'pending', 'shared:');
SELECT intent_record('mailer', 'run 6', 'b', 2, 'pending', 'public');
SELECT intent_record('mailer', 'run 6', 'b', 2, NULL);
SELECT count(*) FROM intent WHERE run_id = 'run 6';
-- An agent records and asks, and cannot write the table.
SET ROLE coord_agent;
SELECT coord.intent_record('mailer', 'run 7', 'b', 2, 'pending') ->> 'recorded' AS recorded;
SELECT coord.fence_check('mailer', 'run 7', 'b', 2) -> 'decision' ->> 'decision' AS decision;
UPDATE coord.intent SET status = 'committed';
RESET ROLE;
\set VERBOSITY sqlstate
SELECT intent_record('mailer', 'run 6', 'b', 3, 'pending');
\set VERBOSITY default
SET client_min_messages = warning;
DROP FUNCTION at;
DROP EXTENSION pg_test CASCADE;
CREATE EXTENSION pg_test;
