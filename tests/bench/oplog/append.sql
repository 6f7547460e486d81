\set k random(1, 1000)
SELECT coord.op_append('personal', 'conversation', jsonb_build_object('conversation_id', 'c' || :k, 'role', 'user', 'content', 'The fjord is cold, and the sun is not out yet.'));
