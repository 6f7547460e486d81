-- Reports: what nodes tell each other of leases and operations. The rules are in src/gossip/report.rs.

CREATE TABLE report_cursor (
  node text COLLATE "C" PRIMARY KEY,
  space text COLLATE "C" NOT NULL,
  given pg_snapshot,
  until pg_snapshot,
  after_xid bigint,
  after_name text COLLATE "C",
  log_position pg_lsn NOT NULL DEFAULT '0/0',
  has_left boolean NOT NULL DEFAULT false,
  frontier vclock NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE report_cursor IS 'how far this node has been given the reports of each peer';
COMMENT ON COLUMN report_cursor.space IS 'transaction-number space of the snapshots';
COMMENT ON COLUMN report_cursor.given IS 'everything this snapshot of the peer sees has been given';
COMMENT ON COLUMN report_cursor.until IS 'a larger snapshot that is being given in parts';
COMMENT ON COLUMN report_cursor.log_position IS 'furthest place that the transaction log of the peer was flushed to when it gave reports';
COMMENT ON COLUMN report_cursor.frontier IS 'operations held completely through this peer';
COMMENT ON COLUMN report_cursor.has_left IS 'the peer has left or was removed: the worker is to take its leases for expired, and then to begin anew with it';

-- A time left is kept within what a lease can have, whatever clocks have done since it was granted.
CREATE FUNCTION report_body(report lease_report) RETURNS jsonb
  LANGUAGE sql STABLE
  RETURN jsonb_build_object('lease', jsonb_build_object(
    'resource', report.resource, 'node', report.node, 'holder', report.holder, 'epoch', report.epoch,
    'has_ended', report.has_ended, 'version', report.version,
    'time_left', (extract(epoch FROM greatest(least(report.expires_at - coord.lease_now(), interval '10 years'), interval '0'))
                  * 1000000)::bigint));
COMMENT ON FUNCTION report_body(lease_report) IS 'a report as it travels; nodes do not compare their clocks';

CREATE FUNCTION report_body(report op) RETURNS jsonb
  LANGUAGE sql STABLE
  RETURN jsonb_build_object('op', jsonb_build_object(
    'origin', report.origin, 'seq', report.seq, 'xid', report.xid::text::bigint, 'hlc', report.hlc, 'op_id', report.op_id,
    'scope', report.scope, 'surface', report.surface, 'payload', report.payload::text,
    'recorded_at', (extract(epoch FROM report.recorded_at) * 1000000)::bigint, 'tenant_id', report.tenant_id));
COMMENT ON FUNCTION report_body(op) IS 'an operation as it travels by gossip';

CREATE FUNCTION report_version(report lease_report, sender text) RETURNS bigint
  LANGUAGE sql STABLE
  RETURN CASE WHEN report.has_lapsed AND (report.node = sender OR EXISTS (SELECT FROM coord.member m WHERE m.node = report.node)) THEN -1
              ELSE report.version END;
COMMENT ON FUNCTION report_version(lease_report, text) IS 'what a report has to lie above to be news: of a node that is a member again, or says so itself, it can be the same one';

CREATE FUNCTION op_insert(ops jsonb[]) RETURNS bigint
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  WITH admitted AS (
    INSERT INTO coord.op (origin, seq, xid, hlc, op_id, scope, surface, payload, recorded_at, tenant_id)
    SELECT o.origin, o.seq, o.xid::text::xid8, o.hlc, o.op_id, o.scope, o.surface, o.payload::jsonb,
           'epoch'::timestamptz + o.recorded_at * interval '1 microsecond', o.tenant_id
      FROM unnest(ops) AS e(op)
     CROSS JOIN LATERAL jsonb_to_record(e.op)
       AS o(origin text, seq bigint, xid bigint, hlc coord.hlc, op_id text, scope text, surface text, payload text,
            recorded_at bigint, tenant_id uuid)
     ORDER BY o.scope COLLATE "C", o.surface COLLATE "C", coord.op_key(o.surface, o.payload::jsonb) COLLATE "C"
    RETURNING 1)
  SELECT count(*) FROM admitted
$$;
COMMENT ON FUNCTION op_insert(jsonb[]) IS 'puts operations into the log, in the order of what they fold into; returns how many were new';

-- A record may be in the hands of a transaction that stays open. The wait for it is cut short; and then one by
-- one, so that no operation waits for another's: one whose record is held is in the log, and folded later.
CREATE FUNCTION op_learn(ops jsonb[]) RETURNS bigint
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  patience text := current_setting('lock_timeout');
  held text[] := '{}';
  subject text;
  admitted bigint := 0;
BEGIN
  IF cardinality(ops) = 0 THEN
    RETURN 0;
  END IF;
  -- In one order, and with patience: whoever else brings these is done in a moment.
  PERFORM coord.op_origin_lock(o.origin)
     FROM (SELECT DISTINCT e.op ->> 'origin' COLLATE "C" AS origin FROM unnest(ops) AS e(op) ORDER BY 1) o;
  BEGIN
    PERFORM set_config('lock_timeout', '100ms', true);
    admitted := coord.op_insert(ops);
  EXCEPTION WHEN lock_not_available THEN
    PERFORM set_config('lock_timeout', '1ms', true);
    FOR place IN 1..cardinality(ops) LOOP
      subject := concat_ws(' ', ops[place] ->> 'scope', ops[place] ->> 'surface',
                           coord.op_key(ops[place] ->> 'surface', (ops[place] ->> 'payload')::jsonb));
      BEGIN
        IF subject = ANY (held) THEN
          RAISE lock_not_available;
        END IF;
        admitted := admitted + coord.op_insert(ops[place:place]);
      EXCEPTION WHEN lock_not_available THEN
        held := held || subject;
        INSERT INTO coord.fold_waiting (origin, seq)
        SELECT n.origin, n.seq
          FROM (SELECT ops[place] ->> 'origin' AS origin, (ops[place] ->> 'seq')::bigint AS seq) n
         WHERE NOT EXISTS (SELECT FROM coord.op o WHERE (o.origin, o.seq) = (n.origin, n.seq))
        ON CONFLICT DO NOTHING;
        admitted := admitted + coord.op_insert(ops[place:place]);
      END;
    END LOOP;
  END;
  PERFORM set_config('lock_timeout', patience, true);
  RETURN admitted;
END
$$;
COMMENT ON FUNCTION op_learn(jsonb[]) IS 'puts operations that a peer gave into the log and waits for nobody; returns how many were new';

-- Rows are taken in the order of their keys: two peers may give the same ones at once; and what is no news
-- is not touched. Of its own leases a node believes nobody: what an earlier life has granted lies below the
-- epochs of this one. What a node said that has left or was removed goes on being passed on, for instance to a peer
-- that begins a new life and by it: it is no news, or lapses as it comes.
CREATE FUNCTION report_learn(sender text, reports jsonb) RETURNS bigint
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  INSERT INTO coord.lease_report AS r (resource, node, holder, epoch, has_ended, expires_at, version, learned_from, has_lapsed)
  SELECT l.resource, l.node, l.holder, l.epoch, l.has_ended,
         coord.lease_now() + CASE WHEN h.has_left THEN 0 ELSE l.time_left END * interval '1 microsecond', l.version, sender, h.has_left
    FROM jsonb_array_elements(reports) AS e(report)
   CROSS JOIN LATERAL jsonb_to_record(e.report -> 'lease')
     AS l(resource text, node text, holder text, epoch bigint, has_ended boolean, version bigint, time_left bigint)
   CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM coord.roster n WHERE n.name = l.node AND n.status = 'left') AS has_left) h
   WHERE e.report ? 'lease'
     AND NOT EXISTS (SELECT FROM coord.local_node n WHERE n.name = l.node)
     AND NOT EXISTS (SELECT FROM coord.lease_report k
                      WHERE (k.resource, k.node) = (l.resource, l.node)
                        AND (k.epoch, k.has_ended, coord.report_version(k, sender)) >= (l.epoch, l.has_ended, l.version))
   ORDER BY l.resource COLLATE "C", l.node COLLATE "C"
  ON CONFLICT ON CONSTRAINT lease_report_pkey DO UPDATE
     SET holder = excluded.holder, epoch = excluded.epoch, has_ended = excluded.has_ended,
         expires_at = excluded.expires_at, heard_at = DEFAULT, version = excluded.version,
         learned_from = excluded.learned_from, local_xid = DEFAULT, number = DEFAULT, has_lapsed = excluded.has_lapsed
   WHERE (excluded.epoch, excluded.has_ended, excluded.version) > (r.epoch, r.has_ended, coord.report_version(r, sender));

  SELECT coord.op_learn(ARRAY(SELECT e.report -> 'op' FROM jsonb_array_elements(reports) AS e(report) WHERE e.report ? 'op'))
$$;
COMMENT ON FUNCTION report_learn(text, jsonb) IS 'keeps the reports that are newer than what is known, and operations; returns how many of these were new';

CREATE FUNCTION gossip_wake_appended() RETURNS trigger
  LANGUAGE c AS 'MODULE_PATHNAME', 'gossip_wake_appended_wrapper';
COMMENT ON FUNCTION gossip_wake_appended() IS 'wakes the worker when the transaction commits, for peers that no stream brings its operations to';
CREATE TRIGGER gossip_wake AFTER INSERT ON op
  FOR EACH STATEMENT WHEN (NOT coord.op_is_from_elsewhere()) EXECUTE FUNCTION gossip_wake_appended();
COMMENT ON TRIGGER gossip_wake ON op IS 'operations are pushed to the peers at commit';

-- What a peer held that has left, or was removed here, keeps nobody waiting. Its epochs still count, and what
-- it reports later counts again. The worker does it: exchanges must not wait for a session that removes a
-- peer in a transaction of its own.
CREATE FUNCTION report_lapse_ask() RETURNS trigger
  LANGUAGE plpgsql
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  INSERT INTO coord.report_cursor AS c (node, space, has_left) VALUES (OLD.node, '', true)
  ON CONFLICT (node) DO UPDATE SET has_left = true;
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION report_lapse_ask() IS 'asks the worker to take the leases of a node for expired that is no member any more';
CREATE TRIGGER report_lapse AFTER DELETE ON member
  FOR EACH ROW EXECUTE FUNCTION report_lapse_ask();
COMMENT ON TRIGGER report_lapse ON member IS 'leases of a node that has left count as expired';

CREATE FUNCTION report_lapse() RETURNS bigint
  LANGUAGE sql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  WITH gone AS (
    UPDATE coord.report_cursor c
       SET has_left = false, space = '', given = NULL, until = NULL, after_xid = NULL, after_name = NULL, log_position = '0/0'
     WHERE c.has_left
    RETURNING c.node
  ), live AS (
    SELECT r.resource, r.node
      FROM coord.lease_report r JOIN gone g ON g.node = r.node
     WHERE r.learned_from IS NOT NULL AND r.expires_at > coord.lease_now()
     ORDER BY r.resource, r.node
       FOR UPDATE OF r
  ), lapsed AS (
    UPDATE coord.lease_report r SET expires_at = coord.lease_now(), has_lapsed = true
      FROM live l WHERE (r.resource, r.node) = (l.resource, l.node)
    RETURNING 1)
  SELECT count(*) FROM lapsed
$$;
COMMENT ON FUNCTION report_lapse() IS 'takes the leases of peers that have left for expired; returns how many there were';

-- Epochs of a life lie in a range of their own, unless higher ones were heard of.
CREATE FUNCTION report_epoch_range() RETURNS bigint
  LANGUAGE sql STABLE
  SET search_path = pg_catalog, coord, pg_temp
  RETURN greatest((SELECT max(l.epoch) FROM coord.lease l), (SELECT max(r.epoch) FROM coord.lease_report r), 0) >> 40;
COMMENT ON FUNCTION report_epoch_range() IS 'the highest range of epochs in which any lease was granted, here or as far as was heard';

-- What is kept beside the log, to be admitted later, is not held: nobody can be given it from here.
CREATE FUNCTION op_frontier_capped(frontier vclock) RETURNS vclock
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  RETURN CASE WHEN EXISTS (SELECT FROM coord.conflict c WHERE c.reason IN ('clock', 'quarantined')) THEN
    (SELECT coalesce(jsonb_object_agg(e.actor, least(e.counter, r.first)), '{}')::coord.vclock
       FROM coord.vclock_entries(frontier) e
       LEFT JOIN (SELECT c.origin, min((c.op ->> 'xid')::bigint) AS first
                    FROM coord.conflict c WHERE c.reason IN ('clock', 'quarantined') GROUP BY c.origin) r ON r.origin = e.actor)
    ELSE frontier END;
COMMENT ON FUNCTION op_frontier_capped(vclock) IS 'of each origin only what lies below the first operation that is not admitted yet';

-- Which operations are held completely: for each origin a number of a transaction there, below which all have
-- ended. One's own number stands still while the log does, so that a quiet mesh has nothing to say. What the
-- base of the log covers was held once, and stays so whatever is left out, also in a later life.
CREATE FUNCTION op_frontier_of(actor text, horizon bigint) RETURNS vclock
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  RETURN coord.op_frontier_capped(
    coalesce((SELECT coord.vclock_merge_agg(h.frontier)
                FROM (SELECT c.frontier FROM coord.report_cursor c
                      UNION ALL
                      SELECT jsonb_build_object(s.actor, s.horizon)::coord.vclock
                        FROM coord.stream_source s WHERE s.stream = 'op' AND s.is_covered AND s.horizon > 0
                      UNION ALL
                      SELECT b.frontier FROM coord.op_base b) h), '{}')
    OPERATOR(coord.||) jsonb_build_object(actor, coalesce(
      (SELECT least(o.local_xid::text::bigint + 1, horizon) FROM coord.op o ORDER BY o.local_xid DESC LIMIT 1), 0))::coord.vclock);
COMMENT ON FUNCTION op_frontier_of(text, bigint) IS 'operations that this node holds completely, at a snapshot with this horizon';

CREATE FUNCTION frontier() RETURNS vclock
  LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  RETURN coalesce((SELECT coord.op_frontier_of(n.actor, pg_snapshot_xmin(pg_current_snapshot())::text::bigint)
                     FROM coord.local_node n), coord.node_required()::coord.vclock);
COMMENT ON FUNCTION frontier() IS 'per origin, the horizon below which this node holds every operation';

-- The DELETE is not published. As for gossip, the number stands still while the log does.
CREATE FUNCTION heartbeat_send() RETURNS bigint
  LANGUAGE sql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  DELETE FROM coord.heartbeat;
  WITH sent AS (
    INSERT INTO coord.heartbeat (stream, origin, horizon, pace)
    SELECT o.stream, n.actor, coord.vclock_get(coord.frontier(), n.actor), current_setting('coord.heartbeat_interval')::interval
      FROM coord.local_node n, (SELECT DISTINCT stream FROM coord.stream_offer WHERE base IS NOT NULL) o
    RETURNING 1)
  SELECT count(*) FROM sent
$$;
COMMENT ON FUNCTION heartbeat_send() IS 'tells whoever reads a stream how far it is complete; returns how many streams are read';

CREATE FUNCTION op_acknowledge(peer text, held vclock) RETURNS void
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  UPDATE coord.ack a SET op_frontier = held, acknowledged_at = clock_timestamp()
   WHERE a.node = peer AND a.op_frontier OPERATOR(coord.<>) held
$$;
COMMENT ON FUNCTION op_acknowledge(text, vclock) IS 'a peer has said which operations it holds';

CREATE FUNCTION stable_frontier() RETURNS vclock
  LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  RETURN (SELECT coord.vclock_meet_agg(h.frontier)
            FROM (SELECT coord.frontier() AS frontier
                  UNION ALL
                  SELECT coalesce(a.op_frontier, '{}')
                    FROM coord.member m LEFT JOIN coord.ack a ON a.node = m.node
                   WHERE m.role = 'voter' AND m.node <> coord.node_name()) h);
COMMENT ON FUNCTION stable_frontier() IS 'what this node and every voter hold, as far as they have said';

REVOKE ALL ON FUNCTION report_version(lease_report, text), report_body(lease_report), report_body(op), op_insert(jsonb[]), op_learn(jsonb[]), report_learn(text, jsonb),
  gossip_wake_appended(), report_lapse_ask(), report_lapse(), report_epoch_range(), op_frontier_capped(vclock), op_frontier_of(text, bigint), frontier(), heartbeat_send(),
  op_acknowledge(text, vclock), stable_frontier() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION frontier(), stable_frontier() TO coord_agent, coord_monitor;
GRANT SELECT ON report_cursor TO coord_monitor;
