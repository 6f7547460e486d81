-- Streams: append-only tables that travel by logical replication. What should exist is in these tables; the worker
-- makes it so, on each node for itself: publication and slots where rows come from, subscriptions where they go.

CREATE TABLE stream (
  name text COLLATE "C" PRIMARY KEY,
  target regclass NOT NULL UNIQUE,
  publication text COLLATE "C" NOT NULL
    GENERATED ALWAYS AS ('coord_stream_' || CASE WHEN octet_length(name) > 50 THEN md5(name) ELSE name END) STORED
);
COMMENT ON TABLE stream IS 'tables whose rows are streamed to the peers; add one with coord.stream_add';
COMMENT ON COLUMN stream.publication IS 'its name on every node';
INSERT INTO stream (name, target) VALUES ('op', 'op');
SELECT pg_catalog.pg_extension_config_dump('stream', $$WHERE name <> 'op'$$);

CREATE TABLE stream_offer (
  node text COLLATE "C" NOT NULL,
  stream text COLLATE "C" NOT NULL,
  life uuid NOT NULL,
  own_life uuid NOT NULL,
  slot text COLLATE "C" NOT NULL UNIQUE,
  settled_after xid8,
  base bigint,
  state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'ready', 'streaming')),
  reason text,
  since timestamptz NOT NULL DEFAULT clock_timestamp(),
  slots_lost bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (node, stream)
);
COMMENT ON TABLE stream_offer IS 'streams that peers take from this node; never dumped';
COMMENT ON COLUMN stream_offer.life IS 'life of the peer that asked';
COMMENT ON COLUMN stream_offer.own_life IS 'life of this node that the slot belongs to';
COMMENT ON COLUMN stream_offer.settled_after IS 'what is not streamed is of transactions up to this one; NULL until the slot is there';
COMMENT ON COLUMN stream_offer.base IS 'what is not streamed lies below; NULL until all those have ended';
COMMENT ON COLUMN stream_offer.slots_lost IS 'how often its slot was lost and made anew';

CREATE TABLE stream_source (
  node text COLLATE "C" NOT NULL,
  stream text COLLATE "C" NOT NULL,
  own_life uuid NOT NULL,
  actor text COLLATE "C" NOT NULL,
  slot text COLLATE "C",
  base bigint,
  offered text COLLATE "C",
  is_covered boolean NOT NULL DEFAULT false,
  horizon bigint,
  heard_at timestamptz,
  pace interval,
  failure text,
  state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'connecting', 'copying', 'catching up', 'streaming', 'stalled')),
  reason text,
  since timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (node, stream)
);
COMMENT ON TABLE stream_source IS 'streams that this node takes from peers; never dumped';
COMMENT ON COLUMN stream_source.actor IS 'life of the peer whose rows they are';
COMMENT ON COLUMN stream_source.slot IS 'where to take it from: the slot there, and the subscription here, have this name';
COMMENT ON COLUMN stream_source.offered IS 'why there is no slot yet, as the peer says';
COMMENT ON COLUMN stream_source.is_covered IS 'everything below base is here';
COMMENT ON COLUMN stream_source.horizon IS 'every row of a transaction below has come, or is below base';
COMMENT ON COLUMN stream_source.heard_at IS 'when the last heartbeat came through the stream';
COMMENT ON COLUMN stream_source.pace IS 'time between two of them, as the peer has it';
COMMENT ON COLUMN stream_source.failure IS 'why no subscription could be made';

CREATE TABLE heartbeat (
  stream text COLLATE "C" NOT NULL,
  origin text COLLATE "C" NOT NULL,
  horizon bigint NOT NULL,
  pace interval NOT NULL
);
COMMENT ON TABLE heartbeat IS 'written to be streamed: which rows of an origin a reader has, once it has come this far';

-- Which rows a session writes for replication.

CREATE FUNCTION stream_origin() RETURNS integer
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'stream_origin_wrapper';
COMMENT ON FUNCTION stream_origin() IS 'replication origin of the rows that this session applies; NULL when it applies none';

CREATE FUNCTION stream_gate() RETURNS uuid
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'stream_gate_wrapper';
COMMENT ON FUNCTION stream_gate() IS 'the life of this node; lets nothing be applied before this node knows its life: a copy of its database would take rows that are not for it';

CREATE FUNCTION stream_actor() RETURNS text
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'stream_actor_wrapper';
COMMENT ON FUNCTION stream_actor() IS 'the life of this node, once it is known, whoever asks';

CREATE FUNCTION stream_slot() RETURNS text
  LANGUAGE sql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
  RETURN (SELECT s.subname FROM pg_subscription s JOIN pg_replication_origin o ON o.roname = 'pg_' || s.oid
           WHERE o.roident = coord.stream_origin());
COMMENT ON FUNCTION stream_slot() IS 'the subscription whose rows this session applies';

CREATE FUNCTION heartbeat_hear() RETURNS trigger
  LANGUAGE plpgsql
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  life uuid := coord.stream_gate();
BEGIN
  -- What an earlier life was given through this stream, a restored node may lack.
  UPDATE coord.stream_source s
     SET horizon = greatest(s.horizon, NEW.horizon), heard_at = clock_timestamp(), pace = NEW.pace
   WHERE (s.stream, s.actor, s.slot, s.own_life) = (NEW.stream, NEW.origin, coord.stream_slot(), life);
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION heartbeat_hear() IS 'notes how far a stream has come';
CREATE TRIGGER heartbeat_hear BEFORE INSERT ON heartbeat
  FOR EACH ROW WHEN (coord.stream_origin() IS NOT NULL) EXECUTE FUNCTION heartbeat_hear();
ALTER TABLE heartbeat ENABLE ALWAYS TRIGGER heartbeat_hear;
COMMENT ON TRIGGER heartbeat_hear ON heartbeat IS 'those of other nodes are not kept';

-- What nodes say to each other of streams.

CREATE FUNCTION stream_is_enabled() RETURNS boolean
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN current_setting('coord.streaming')::boolean;
COMMENT ON FUNCTION stream_is_enabled() IS 'coord.streaming';

CREATE FUNCTION stream_wanted(peer text) RETURNS text[]
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  RETURN ARRAY(SELECT s.name FROM coord.stream s
                WHERE coord.stream_is_enabled() AND EXISTS (SELECT FROM coord.peer p WHERE p.name = peer) ORDER BY s.name);
COMMENT ON FUNCTION stream_wanted(text) IS 'streams that this node wants of a peer';

CREATE FUNCTION stream_offered(peer text) RETURNS jsonb
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  RETURN (SELECT coalesce(jsonb_agg(jsonb_build_object(
            'stream', o.stream, 'life', o.life, 'slot', CASE WHEN o.base IS NOT NULL THEN o.slot END, 'base', coalesce(o.base, 0), 'reason', o.reason)
            ORDER BY o.stream), '[]')
            FROM coord.stream_offer o WHERE o.node = peer);
COMMENT ON FUNCTION stream_offered(text) IS 'streams that a peer can take from this node';

CREATE FUNCTION stream_slot_name(origin text, reader text) RETURNS text
  LANGUAGE sql VOLATILE STRICT
  RETURN format('coord_%s_%s_%s', left(regexp_replace(lower(origin), '[^a-z0-9_]', '_', 'g'), 16),
                left(regexp_replace(lower(reader), '[^a-z0-9_]', '_', 'g'), 16), left(md5(gen_random_uuid()::text), 8));
COMMENT ON FUNCTION stream_slot_name(text, text) IS 'a name for a slot that no other has had';

-- Rows of a peer's operations that gossip has left to a stream which is no more are to come by gossip: its
-- cursors begin anew, and pass over what is held.
CREATE FUNCTION stream_source_end(ended stream_source) RETURNS void
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  IF ended.stream <> 'op' THEN
    RETURN;
  END IF;
  IF ended.is_covered AND ended.horizon IS NOT NULL THEN
    INSERT INTO coord.report_cursor AS c (node, space, frontier)
    VALUES (ended.node, '', jsonb_build_object(ended.actor, ended.horizon)::coord.vclock)
    ON CONFLICT (node) DO UPDATE SET frontier = c.frontier OPERATOR(coord.||) excluded.frontier;
  END IF;
  IF ended.state = 'streaming' THEN
    PERFORM FROM coord.report_cursor c ORDER BY c.node FOR UPDATE;
    UPDATE coord.report_cursor SET space = '', given = NULL, until = NULL, after_xid = NULL, after_name = NULL;
  END IF;
END
$$;
COMMENT ON FUNCTION stream_source_end(stream_source) IS 'leaves to gossip what a stream will not bring';

CREATE FUNCTION stream_hear(peer text, peer_life uuid, peer_actor text, wanted text[], offers jsonb) RETURNS void
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  ended coord.stream_source;
BEGIN
  DELETE FROM coord.stream_offer o WHERE o.node = peer AND NOT o.stream = ANY (wanted);
  INSERT INTO coord.stream_offer AS o (node, stream, life, own_life, slot)
  SELECT peer, s.name, peer_life, n.life, coord.stream_slot_name(n.name, peer)
    FROM coord.stream s, coord.local_node n
   WHERE s.name = ANY (wanted) AND s.name = ANY (coord.stream_wanted(peer))
     AND NOT EXISTS (SELECT FROM coord.stream_offer k
                      WHERE (k.node, k.stream, k.life, k.own_life) = (peer, s.name, peer_life, n.life))
  ON CONFLICT (node, stream) DO UPDATE
     SET life = excluded.life, own_life = excluded.own_life, slot = excluded.slot, settled_after = NULL, base = NULL, state = 'waiting',
         reason = NULL, since = excluded.since
   WHERE (o.life, o.own_life) <> (excluded.life, excluded.own_life);

  -- What was offered to an earlier life is not for this one, which may lack what that one was given.
  IF EXISTS (SELECT FROM jsonb_to_recordset(offers) AS o(life uuid), coord.local_node n WHERE o.life <> n.life) THEN
    RETURN;
  END IF;
  -- A slot of another name is another stream: what the one before has not brought, this one may not bring either.
  FOR ended IN
    DELETE FROM coord.stream_source s
     WHERE s.node = peer
       AND NOT EXISTS (SELECT FROM jsonb_to_recordset(offers) AS o(stream text, slot text)
                        WHERE o.stream = s.stream AND o.slot IS NOT DISTINCT FROM s.slot AND s.actor = peer_actor)
    RETURNING s.*
  LOOP
    PERFORM coord.stream_source_end(ended);
  END LOOP;
  INSERT INTO coord.stream_source AS k (node, stream, own_life, actor, slot, base, offered)
  SELECT peer, s.name, n.life, peer_actor, o.slot, o.base, o.reason
    FROM jsonb_to_recordset(offers) AS o(stream text, slot text, base bigint, reason text)
    JOIN coord.stream s ON s.name = o.stream
    CROSS JOIN coord.local_node n
   WHERE s.name = ANY (coord.stream_wanted(peer))
     AND NOT EXISTS (SELECT FROM coord.stream_source k
                      WHERE (k.node, k.stream) = (peer, s.name) AND (k.base, k.offered) IS NOT DISTINCT FROM (o.base, o.reason))
  ON CONFLICT (node, stream) DO UPDATE SET base = excluded.base, offered = excluded.offered;
END
$$;
COMMENT ON FUNCTION stream_hear(text, uuid, text, text[], jsonb) IS 'a peer has said which streams it wants, and which it has';

-- What should exist against what does. Every statement finds nothing to do when all is as it should be.

CREATE VIEW stream_slot_missing AS
  SELECT o.slot
    FROM coord.stream_offer o
    JOIN coord.stream s ON s.name = o.stream
    JOIN pg_catalog.pg_publication p ON p.pubname = s.publication
   WHERE o.settled_after IS NULL;
COMMENT ON VIEW stream_slot_missing IS 'slots that are to be made, or have just been';

CREATE FUNCTION stream_tend_offers() RETURNS boolean
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  is_logical boolean := current_setting('wal_level') = 'logical';
  each record;
BEGIN
  DELETE FROM coord.stream s WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = s.target);
  DELETE FROM coord.stream_offer o
   WHERE NOT o.stream = ANY (coord.stream_wanted(o.node))
      OR NOT EXISTS (SELECT FROM coord.local_node n WHERE n.life = o.own_life);
  -- A slot that is lost, or gone, has left out rows: another one begins, under another name.
  UPDATE coord.stream_offer o
     SET slot = coord.stream_slot_name(coord.node_name(), o.node), settled_after = NULL, base = NULL, state = 'waiting',
         reason = 'the slot was lost', since = clock_timestamp(), slots_lost = o.slots_lost + 1
   WHERE o.settled_after IS NOT NULL
     AND NOT EXISTS (SELECT FROM pg_replication_slots r WHERE r.slot_name = o.slot AND r.wal_status IS DISTINCT FROM 'lost');
  -- What has been committed can still be unseen, and was not streamed when that was before the slot began.
  UPDATE coord.stream_offer o
     SET base = coalesce((SELECT p.local_xid::text::bigint + 1 FROM coord.op p ORDER BY p.local_xid DESC LIMIT 1), 0), reason = NULL
   WHERE o.base IS NULL AND o.settled_after < pg_snapshot_xmin(pg_current_snapshot());
  UPDATE coord.stream_offer o
     SET state = f.state, reason = f.reason, since = CASE WHEN o.state = f.state THEN o.since ELSE clock_timestamp() END
    FROM (SELECT k.node, k.stream,
                 CASE WHEN k.base IS NULL THEN 'waiting' WHEN r.active THEN 'streaming' ELSE 'ready' END AS state,
                 CASE WHEN k.base IS NOT NULL THEN NULL
                      WHEN NOT is_logical THEN 'wal_level is ' || current_setting('wal_level')
                      WHEN k.settled_after IS NOT NULL THEN 'waiting for transaction ' || pg_snapshot_xmin(pg_current_snapshot())
                      ELSE coalesce((SELECT 'waiting for transaction ' || l.transactionid
                                       FROM pg_locks l
                                      WHERE l.pid = r.active_pid AND NOT l.granted AND l.locktype = 'transactionid'), k.reason) END AS reason
            FROM coord.stream_offer k LEFT JOIN pg_replication_slots r ON r.slot_name = k.slot) f
   WHERE (o.node, o.stream) = (f.node, f.stream) AND (o.state, o.reason) IS DISTINCT FROM (f.state, f.reason);

  -- A publication that a dump has brought back has lost the tables of the extension. One that is younger than a
  -- slot cannot be read through that.
  FOR each IN
    SELECT p.pubname
      FROM pg_publication p
     WHERE p.pubname LIKE 'coord\_stream\_%'
       AND NOT EXISTS (SELECT FROM coord.stream s JOIN coord.stream_offer o ON o.stream = s.name
                        WHERE s.publication = p.pubname
                          AND (SELECT count(*) FROM pg_publication_rel r
                                WHERE r.prpubid = p.oid AND r.prrelid IN (s.target, 'coord.heartbeat'::regclass)) = 2)
  LOOP
    EXECUTE format('DROP PUBLICATION %I', each.pubname);
  END LOOP;
  FOR each IN
    SELECT s.publication, s.target, s.name
      FROM coord.stream s
     WHERE is_logical AND EXISTS (SELECT FROM coord.stream_offer o WHERE o.stream = s.name)
       AND NOT EXISTS (SELECT FROM pg_publication p WHERE p.pubname = s.publication)
  LOOP
    UPDATE coord.stream_offer o
       SET slot = coord.stream_slot_name(coord.node_name(), o.node), settled_after = NULL, base = NULL, state = 'waiting'
     WHERE o.stream = each.name AND o.settled_after IS NOT NULL;
    BEGIN
      -- What is each node's own stays at home. An earlier life of this node is this node too.
      EXECUTE format('CREATE PUBLICATION %I FOR TABLE %s %s WHERE (split_part(origin, ''#'', 1) = %L), '
                     'TABLE coord.heartbeat WHERE (stream = %L) WITH (publish = ''insert'', publish_via_partition_root = true)',
                     each.publication, each.target,
                     CASE each.name WHEN 'op' THEN '(origin, seq, xid, hlc, op_id, scope, surface, payload, recorded_at, tenant_id)' END,
                     coord.node_name(), each.name);
    EXCEPTION WHEN OTHERS THEN
      -- A table that is locked, or has become another one, holds up no other stream.
      UPDATE coord.stream_offer o SET reason = SQLERRM WHERE o.stream = each.name;
    END;
  END LOOP;
  RETURN is_logical AND EXISTS (SELECT FROM coord.stream_slot_missing);
END
$$;
COMMENT ON FUNCTION stream_tend_offers() IS 'keeps offers and publications as they should be; returns whether slots are missing';

CREATE FUNCTION stream_tend_slots() RETURNS bigint
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  orphan record;
  removed bigint := 0;
BEGIN
  FOR orphan IN
    SELECT r.slot_name, r.active_pid
      FROM pg_replication_slots r
     WHERE r.database = current_database() AND r.plugin = 'pgoutput' AND NOT r.temporary AND r.slot_name ~ '^coord_.+_[0-9a-f]{8}$'
       AND NOT EXISTS (SELECT FROM coord.stream_offer o WHERE o.slot = r.slot_name)
  LOOP
    -- A reader comes back soon, and would keep the slot.
    PERFORM pg_terminate_backend(orphan.active_pid, 1000) WHERE orphan.active_pid IS NOT NULL;
    PERFORM pg_drop_replication_slot(orphan.slot_name);
    removed := removed + 1;
  END LOOP;
  RETURN removed;
END
$$;
COMMENT ON FUNCTION stream_tend_slots() IS 'removes slots that no peer is to read; returns how many';

CREATE VIEW stream_subscription AS
  SELECT b.oid, b.subname::text COLLATE "C" AS name, b.subenabled AS is_enabled
    FROM pg_catalog.pg_subscription b
   WHERE b.subdbid = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database());
COMMENT ON VIEW stream_subscription IS 'subscriptions of this database, whoever made them';

CREATE VIEW stream_orphan AS
  SELECT b.name AS subscription
    FROM coord.stream_subscription b
   WHERE b.name ~ '^coord_.+_[0-9a-f]{8}$' AND NOT EXISTS (SELECT FROM coord.stream_source s WHERE s.slot = b.name);
COMMENT ON VIEW stream_orphan IS 'subscriptions that are to be removed';

CREATE VIEW stream_missing AS
  SELECT s.slot FROM coord.stream_source s
   WHERE s.slot IS NOT NULL AND NOT EXISTS (SELECT FROM coord.stream_subscription b WHERE b.name = s.slot);
COMMENT ON VIEW stream_missing IS 'subscriptions that are to be made, by their slots';

CREATE FUNCTION stream_tend_sources() RETURNS boolean
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  frontier coord.vclock := coord.frontier();
  ended coord.stream_source;
  judged record;
BEGIN
  FOR ended IN
    DELETE FROM coord.stream_source s
     WHERE NOT s.stream = ANY (coord.stream_wanted(s.node))
        OR NOT EXISTS (SELECT FROM coord.local_node n WHERE n.life = s.own_life)
    RETURNING s.*
  LOOP
    PERFORM coord.stream_source_end(ended);
  END LOOP;
  UPDATE coord.stream_source s SET is_covered = true
   WHERE NOT s.is_covered AND s.slot IS NOT NULL
     AND (s.stream <> 'op' OR coord.vclock_get(frontier, s.actor) >= s.base);
  FOR judged IN
    SELECT j.source, j.state, r.reason
      FROM (SELECT s AS source, b.is_enabled,
                   CASE WHEN s.slot IS NULL THEN 'waiting'
                        WHEN b.oid IS NULL OR s.heard_at IS NULL THEN 'connecting'
                        WHEN s.heard_at < clock_timestamp() - greatest(10 * s.pace, interval '10 s') THEN 'stalled'
                        WHEN NOT s.is_covered THEN 'catching up'
                        WHEN EXISTS (SELECT FROM pg_subscription_rel r WHERE r.srsubid = b.oid AND r.srsubstate <> 'r') THEN 'copying'
                        ELSE 'streaming' END AS state
              FROM coord.stream_source s LEFT JOIN coord.stream_subscription b ON b.name = s.slot) j
      CROSS JOIN LATERAL
           (SELECT CASE WHEN j.state = 'waiting' THEN coalesce((j.source).offered, 'the peer makes a slot')
                        WHEN j.is_enabled IS NULL THEN (j.source).failure
                        WHEN NOT j.is_enabled THEN 'the subscription is disabled'
                        WHEN j.state = 'connecting' THEN 'no heartbeat has come'
                        WHEN j.state = 'stalled' THEN 'no heartbeat comes'
                        WHEN j.state = 'catching up' THEN 'gossip brings what is older than the slot' END AS reason) r
     WHERE ((j.source).state, (j.source).reason) IS DISTINCT FROM (j.state, r.reason)
  LOOP
    UPDATE coord.stream_source s
       SET state = judged.state, reason = judged.reason,
           since = CASE WHEN (judged.source).state = judged.state THEN s.since ELSE clock_timestamp() END
     WHERE (s.node, s.stream) = ((judged.source).node, (judged.source).stream) AND s.slot IS NOT DISTINCT FROM (judged.source).slot;
    IF judged.state <> 'streaming' THEN
      PERFORM coord.stream_source_end(judged.source);
    END IF;
  END LOOP;
  RETURN EXISTS (SELECT FROM coord.stream_missing) OR EXISTS (SELECT FROM coord.stream_orphan);
END
$$;
COMMENT ON FUNCTION stream_tend_sources() IS 'judges the streams that this node takes; returns whether subscriptions are missing, or left over';

-- What waits for other transactions and for the network: a process of its own does it.

CREATE FUNCTION stream_slot_create(slot text) RETURNS void
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  SELECT pg_create_logical_replication_slot(slot, 'pgoutput')
   WHERE NOT EXISTS (SELECT FROM pg_replication_slots r WHERE r.slot_name = slot)
$$;
COMMENT ON FUNCTION stream_slot_create(text) IS 'makes a slot; waits for every transaction that writes';

-- Whatever began before the slot did has a lower number than this transaction.
CREATE FUNCTION stream_slot_made(slot text) RETURNS void
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  UPDATE coord.stream_offer o SET settled_after = pg_current_xact_id()
   WHERE o.slot = $1
     AND EXISTS (SELECT FROM pg_replication_slots r WHERE r.slot_name = $1 AND r.confirmed_flush_lsn IS NOT NULL)
$$;
COMMENT ON FUNCTION stream_slot_made(text) IS 'notes that a slot is there';

CREATE FUNCTION stream_conninfo(peer text) RETURNS text
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  RETURN (SELECT string_agg(format('%s=''%s''', o.option_name, replace(replace(o.option_value, '\', '\\'), '''', '\''')), ' ')
            FROM coord.peer p
            JOIN pg_foreign_server s ON s.srvname = p.server
            LEFT JOIN pg_user_mapping m ON m.umserver = s.oid AND m.umuser = s.srvowner
            CROSS JOIN LATERAL pg_options_to_table(s.srvoptions || m.umoptions) o
           WHERE p.name = peer);
COMMENT ON FUNCTION stream_conninfo(text) IS 'how libpq reaches a peer; with the password, if one is given there';

CREATE FUNCTION stream_subscribe(slot text) RETURNS void
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  source coord.stream_source;
BEGIN
  SELECT s.* INTO STRICT source FROM coord.stream_source s WHERE s.slot = $1;
  -- Operations that are older than the slot come by gossip; rows of other tables are copied.
  EXECUTE format('CREATE SUBSCRIPTION %I CONNECTION %L PUBLICATION %I WITH (create_slot = false, slot_name = %L, copy_data = %s, '
                 'synchronous_commit = ''on'', streaming = off%s)',
                 slot, coord.stream_conninfo(source.node) || format(' application_name=%s', slot),
                 (SELECT t.publication FROM coord.stream t WHERE t.name = source.stream), slot, (source.stream <> 'op')::text,
                 CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN ', origin = none' END);
  UPDATE coord.stream_source s SET failure = NULL WHERE s.slot = $1;
END
$$;
COMMENT ON FUNCTION stream_subscribe(text) IS 'begins to take a stream; connects to the peer';

CREATE FUNCTION stream_unsubscribe(subscription text) RETURNS void
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  EXECUTE format('ALTER SUBSCRIPTION %I DISABLE', subscription);
  EXECUTE format('ALTER SUBSCRIPTION %I SET (slot_name = NONE)', subscription);
  EXECUTE format('DROP SUBSCRIPTION %I', subscription);
END
$$;
COMMENT ON FUNCTION stream_unsubscribe(text) IS 'ends taking a stream; its slot is the peer''s affair';

-- For administrators.

CREATE VIEW stream_status AS
  SELECT s.node AS peer, s.stream, 'in' AS direction,
         CASE WHEN q.origin IS NOT NULL THEN 'quarantined' ELSE s.state END AS state,
         CASE WHEN q.origin IS NOT NULL THEN q.reason ELSE s.reason END AS reason,
         coalesce(q.since, s.since) AS since, s.slot, s.horizon, NULL::bigint AS backlog, NULL::bigint AS slots_lost
    FROM coord.stream_source s
    LEFT JOIN coord.quarantine q ON q.origin = s.actor AND s.stream = 'op'
  UNION ALL
  SELECT o.node, o.stream, 'out', o.state, o.reason, o.since, o.slot, o.base,
         pg_wal_lsn_diff(pg_current_wal_insert_lsn(), coalesce(r.confirmed_flush_lsn, r.restart_lsn))::bigint, o.slots_lost
    FROM coord.stream_offer o
    LEFT JOIN pg_catalog.pg_replication_slots r ON r.slot_name = o.slot;
COMMENT ON VIEW stream_status IS 'streams from peers (in) and to them (out)';
COMMENT ON COLUMN stream_status.state IS 'in: waiting, connecting, copying, catching up, streaming, stalled, quarantined; out: waiting, ready, streaming';
COMMENT ON COLUMN stream_status.reason IS 'why it does not stream';
COMMENT ON COLUMN stream_status.slot IS 'name of the slot and of the subscription';
COMMENT ON COLUMN stream_status.horizon IS 'in: rows of all transactions of the peer below have come; out: where the slot began';
COMMENT ON COLUMN stream_status.backlog IS 'bytes of the transaction log that the peer has yet to take';
COMMENT ON COLUMN stream_status.slots_lost IS 'how often the slot was lost and made anew';

CREATE FUNCTION stream_key(target regclass) RETURNS SETOF name
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  SELECT a.attname
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
   WHERE i.indrelid = target AND i.indisprimary
   ORDER BY a.attnum
$$;
COMMENT ON FUNCTION stream_key(regclass) IS 'columns of the primary key of a table';

CREATE FUNCTION stream_admit() RETURNS trigger
  LANGUAGE plpgsql
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  is_here boolean;
BEGIN
  IF coord.stream_origin() IS NULL THEN
    NEW.origin := coalesce(NEW.origin, coord.stream_actor());
    RETURN NEW;
  END IF;
  PERFORM coord.stream_gate();
  EXECUTE format('SELECT true FROM %s t WHERE %s', TG_RELID::regclass, TG_ARGV[0]) INTO is_here USING NEW;
  IF is_here THEN
    RETURN NULL;
  END IF;
  RETURN NEW;
END
$$;
COMMENT ON FUNCTION stream_admit() IS 'names the origin of a row, and passes over one that has come before';

-- Rows that no stream can carry travel in the operation log, by gossip, and stay there.

CREATE FUNCTION stream_is_possible() RETURNS boolean
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN current_setting('coord.streaming')::boolean AND current_setting('wal_level') = 'logical';
COMMENT ON FUNCTION stream_is_possible() IS 'whether streams can carry what is written here';

CREATE FUNCTION stream_say(stream text, said jsonb) RETURNS void
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  SELECT coord.op_append_own('personal', 'row', jsonb_build_object('stream', stream, 'row', said))
$$;
COMMENT ON FUNCTION stream_say(text, jsonb) IS 'appends a row of a stream to the operation log';

-- Casts, defaults, checks and triggers of a table run with the rights of whoever puts rows in, or reads them.
CREATE FUNCTION stream_owner_check(target oid) RETURNS void
  LANGUAGE plpgsql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE c.oid = target AND r.rolsuper) THEN
    RAISE insufficient_privilege USING MESSAGE = format('table %s is streamed and belongs to a role that is no superuser', target::regclass);
  END IF;
END
$$;
COMMENT ON FUNCTION stream_owner_check(oid) IS 'raises 42501 where somebody could run what he likes with the rights of the extension';

-- A value as text reads back as the same one, whatever the session likes.
CREATE FUNCTION stream_log() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  SET extra_float_digits = 3
  SET intervalstyle = iso_8601
  SET datestyle = iso
AS $$
BEGIN
  PERFORM coord.stream_owner_check(TG_RELID);
  IF coord.stream_origin() IS NULL AND NEW.origin = coord.stream_actor() THEN
    PERFORM coord.stream_say(TG_ARGV[0], to_jsonb(NEW));
  END IF;
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION stream_log() IS 'appends an own row to the operation log';

-- As replication applies rows: neither foreign keys nor ordinary triggers are asked. What the table here has more is
-- filled in by it.
CREATE FUNCTION stream_put(target regclass, said jsonb) RETURNS bigint
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  SET session_replication_role = replica
  SET datestyle = iso
AS $$
DECLARE
  missing text := (SELECT string_agg(format('"%s"', k.name), ', ')
                     FROM jsonb_object_keys(said) AS k(name)
                    WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE (a.attrelid, a.attname) = (target, k.name) AND NOT a.attisdropped));
  given text := (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
                   FROM pg_attribute a
                  WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND said ? a.attname);
  added bigint;
BEGIN
  PERFORM coord.stream_owner_check(target);
  IF missing IS NOT NULL THEN
    RAISE undefined_column USING MESSAGE = format('table %s has no column %s', target, missing);
  END IF;
  EXECUTE format('INSERT INTO %1$s (%2$s) OVERRIDING SYSTEM VALUE SELECT %2$s FROM jsonb_populate_record(NULL::%1$s, $1) ON CONFLICT (%3$s) DO NOTHING',
                 target, given, array_to_string(ARRAY(SELECT quote_ident(k) FROM coord.stream_key(target) k), ', ')) USING said;
  GET DIAGNOSTICS added = ROW_COUNT;
  RETURN added;
END
$$;
COMMENT ON FUNCTION stream_put(regclass, jsonb) IS 'puts a row from elsewhere into a streamed table; returns how many that are new there';

-- What cannot be put in stops nobody.
CREATE FUNCTION stream_fold(ops op[]) RETURNS bigint
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  said record;
  folded bigint := 0;
BEGIN
  FOR said IN
    SELECT o AS op, o.origin, o.seq, s.target, o.payload -> 'row' AS "row"
      FROM unnest(ops) o JOIN coord.stream s ON s.name = o.payload ->> 'stream'
     WHERE o.surface = 'row' AND s.name <> 'op' AND o.origin IS DISTINCT FROM (SELECT n.actor FROM coord.local_node n)
       AND EXISTS (SELECT FROM coord.stream_key(s.target))
     ORDER BY o.hlc, o.op_id
  LOOP
    BEGIN
      IF split_part(said."row" ->> 'origin', '#', 1) IS DISTINCT FROM split_part(said.origin, '#', 1) THEN
        RAISE check_violation USING MESSAGE = 'a row of another origin';
      END IF;
      folded := folded + coord.stream_put(said.target, said."row");
      DELETE FROM coord.conflict c WHERE (c.origin, c.seq, c.reason) = (said.origin, said.seq, 'refused');
    EXCEPTION
      WHEN lock_not_available OR transaction_rollback OR insufficient_resources OR operator_intervention THEN
        RAISE;
      WHEN OTHERS THEN
        PERFORM coord.op_refuse(said.op::coord.op, 'refused', SQLERRM);
    END;
  END LOOP;
  RETURN folded;
END
$$;
COMMENT ON FUNCTION stream_fold(op[]) IS 'puts rows that came as operations into the tables that are streamed here; returns how many were new there';

CREATE FUNCTION stream_refold(stream text, since xid8 DEFAULT '0') RETURNS bigint
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  said coord.op;
  folded bigint := 0;
BEGIN
  FOR said IN SELECT o.* FROM coord.op o WHERE o.local_xid >= since AND o.surface = 'row' AND o.payload ->> 'stream' = stream LOOP
    folded := folded + coord.stream_fold(ARRAY[said]);
  END LOOP;
  RETURN folded;
END
$$;
COMMENT ON FUNCTION stream_refold(text, xid8) IS 'puts in what the log has of a streamed table, since a transaction, and the table lacks; returns how many rows that were';

CREATE FUNCTION stream_refuse(target text, reason text) RETURNS void
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'stream_refuse_wrapper';
COMMENT ON FUNCTION stream_refuse(text, text) IS 'raises 22023: a table cannot be streamed';

CREATE FUNCTION stream_obstacle(target regclass) RETURNS text
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  RETURN (SELECT CASE WHEN c.relkind NOT IN ('r', 'p') OR c.relpersistence <> 'p' THEN 'It is not a permanent table.'
                      WHEN c.relnamespace = 'coord'::regnamespace THEN 'It belongs to the extension.'
                      WHEN NOT EXISTS (SELECT FROM pg_attribute a
                                        WHERE a.attrelid = c.oid AND a.attname = 'origin' AND a.atttypid = 'text'::regtype AND NOT a.attisdropped)
                        THEN 'It has no column "origin" of type text.'
                      WHEN NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) THEN 'It has no primary key.'
                      WHEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate)
                        THEN 'Its primary key is deferrable.'
                      WHEN NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.oid = c.relowner) THEN 'It belongs to a role that is no superuser.' END
            FROM pg_class c WHERE c.oid = target);
COMMENT ON FUNCTION stream_obstacle(regclass) IS 'why a table cannot be streamed; NULL when it can';

CREATE FUNCTION stream_add(target regclass) RETURNS text
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  SET extra_float_digits = 3
  SET intervalstyle = iso_8601
  SET datestyle = iso
AS $$
DECLARE
  obstacle text := coord.stream_obstacle(target);
  added text;
  begun xid8;
BEGIN
  PERFORM coord.read_committed_required('coord.stream_add');
  IF obstacle IS NOT NULL THEN
    PERFORM coord.stream_refuse(target::text, obstacle);
  END IF;
  DELETE FROM coord.stream s WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = s.target);
  INSERT INTO coord.stream (name, target)
  SELECT n.nspname || '.' || c.relname, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1
  ON CONFLICT ON CONSTRAINT stream_target_key DO NOTHING
  RETURNING name INTO added;
  IF added IS NULL THEN
    RETURN (SELECT s.name FROM coord.stream s WHERE s.target = $1);
  END IF;
  EXECUTE format('CREATE TRIGGER coord_stream_admit BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION coord.stream_admit(%L)', target,
    (SELECT string_agg(format('t.%1$I = ($1).%1$I', k), ' AND ') FROM coord.stream_key(target) k));
  EXECUTE format('CREATE TRIGGER coord_stream_log AFTER INSERT ON %s FOR EACH ROW WHEN (NOT coord.stream_is_possible()) EXECUTE FUNCTION coord.stream_log(%L)',
    target, added);
  EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER coord_stream_admit, ENABLE ALWAYS TRIGGER coord_stream_log', target);
  IF NOT coord.stream_is_possible() THEN
    EXECUTE format('SELECT coord.stream_say($1, to_jsonb(t)) FROM %s %s t WHERE split_part(t.origin, ''#'', 1) = split_part($2, ''#'', 1)',
                   CASE WHEN (SELECT c.relkind FROM pg_class c WHERE c.oid = target) = 'r' THEN 'ONLY' END, target)
      USING added, coord.stream_actor();
  END IF;
  -- Whoever brings rows does not see this stream before this transaction has ended: what came meanwhile is put in
  -- while nobody can bring more.
  begun := pg_snapshot_xmin(pg_current_snapshot());
  PERFORM coord.stream_refold(added);
  LOCK TABLE coord.op IN SHARE ROW EXCLUSIVE MODE;
  PERFORM coord.stream_refold(added, begun);
  RETURN added;
END
$$;
COMMENT ON FUNCTION stream_add(regclass) IS 'streams an insert-only table with a primary key and a column "origin" to the peers that stream it too; returns the name of the stream';

CREATE FUNCTION stream_remove(target regclass) RETURNS boolean
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  DELETE FROM coord.stream s WHERE s.target = $1 AND s.name <> 'op';
  IF FOUND THEN
    EXECUTE format('DROP TRIGGER coord_stream_admit ON %s', target);
    EXECUTE format('DROP TRIGGER coord_stream_log ON %s', target);
    RETURN true;
  END IF;
  RETURN false;
END
$$;
COMMENT ON FUNCTION stream_remove(regclass) IS 'ends streaming a table, in both directions; returns whether it was streamed';

-- A trigger on a table of the user's own runs as whoever writes there.
REVOKE ALL ON FUNCTION stream_slot(), heartbeat_hear(), stream_is_enabled(),
  stream_wanted(text), stream_offered(text), stream_slot_name(text, text), stream_source_end(stream_source),
  stream_hear(text, uuid, text, text[], jsonb), stream_tend_offers(), stream_tend_slots(), stream_tend_sources(),
  stream_slot_create(text), stream_slot_made(text), stream_conninfo(text), stream_subscribe(text), stream_unsubscribe(text),
  stream_key(regclass), stream_admit(), stream_say(text, jsonb), stream_owner_check(oid), stream_log(), stream_put(regclass, jsonb), stream_fold(op[]), stream_refold(text, xid8),
  stream_refuse(text, text), stream_obstacle(regclass), stream_add(regclass), stream_remove(regclass) FROM PUBLIC;
GRANT SELECT ON heartbeat TO coord_peer;
GRANT SELECT ON stream, stream_offer, stream_source, stream_status TO coord_monitor;
