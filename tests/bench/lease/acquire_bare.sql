\set k random(1, 10000)
INSERT INTO bare AS l (resource, holder, epoch, expires_at) VALUES ('r' || :k, 'c' || :client_id, 1, clock_timestamp() + interval '1 ms') ON CONFLICT (resource) DO UPDATE SET holder = excluded.holder, epoch = l.epoch + 1, expires_at = excluded.expires_at WHERE l.expires_at <= clock_timestamp() RETURNING epoch, expires_at;
