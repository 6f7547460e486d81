SELECT coord.lease_try_acquire('hot', 'c' || :client_id, '1 ms');
