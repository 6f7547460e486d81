\set k random(1, 10000)
SELECT coord.lease_try_acquire('r' || :k, 'c' || :client_id, '1 ms');
