SELECT coord.lease_renew('busy', 'a', 1, '1 h');
