UPDATE bare SET expires_at = clock_timestamp() + interval '1 h' WHERE resource = 'own' || :client_id AND holder = 'a' AND epoch = 1;
