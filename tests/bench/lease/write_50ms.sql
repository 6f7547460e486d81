BEGIN;
SELECT coord.fence_set('busy', 1);
UPDATE slow SET n = n + 1 WHERE id = :client_id;
SELECT pg_sleep(0.05);
COMMIT;
