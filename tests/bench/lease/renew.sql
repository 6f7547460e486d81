SELECT coord.lease_renew('own' || :client_id, 'a', 1, '1 h');
