\set k random(1, 1000)
INSERT INTO bare (seq, op_id, payload) SELECT n, 'op-' || md5(n::text), jsonb_build_object('conversation_id', 'c' || :k, 'role', 'user', 'content', 'The fjord is cold, and the sun is not out yet.') FROM nextval('bare_seq') n;
