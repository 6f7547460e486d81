-- Reports: what nodes tell each other of leases and committed runs. The rules are in src/gossip/report.rs.

CREATE TABLE report_cursor (
  node text COLLATE "C" PRIMARY KEY,
  space text COLLATE "C" NOT NULL,
  given pg_snapshot,
  until pg_snapshot,
  after_xid bigint,
  after_number bigint
);
COMMENT ON TABLE report_cursor IS 'how far this node has been given the reports of each peer';
COMMENT ON COLUMN report_cursor.space IS 'transaction-number space of the snapshots';
COMMENT ON COLUMN report_cursor.given IS 'everything this snapshot of the peer sees has been given';
COMMENT ON COLUMN report_cursor.until IS 'a larger snapshot that is being given in parts';

CREATE FUNCTION report_body(report lease_report) RETURNS jsonb
  LANGUAGE sql STABLE
  RETURN jsonb_build_object('lease', jsonb_build_object(
    'resource', report.resource, 'node', report.node, 'holder', report.holder, 'epoch', report.epoch,
    'has_ended', report.has_ended, 'version', report.version,
    'time_left', (extract(epoch FROM report.expires_at - coord.lease_now()) * 1000000)::bigint));
COMMENT ON FUNCTION report_body(lease_report) IS 'a report as it travels; nodes do not compare their clocks';

CREATE FUNCTION report_body(report intent_report) RETURNS jsonb
  LANGUAGE sql STABLE
  RETURN jsonb_build_object('run', jsonb_build_object(
    'agent', report.agent, 'run_id', report.run_id, 'scope', report.scope, 'node', report.node,
    'op_id', report.op_id, 'epoch', report.epoch, 'holder', report.holder));
COMMENT ON FUNCTION report_body(intent_report) IS 'a report as it travels';

-- Each branch is one range of an index, in its order, and stops at the limit.
CREATE FUNCTION report_since(in_progress xid8[], first xid8, after_xid xid8, after_number bigint, until pg_snapshot, most bigint, reader text)
  RETURNS TABLE (local_xid xid8, number bigint, report jsonb)
  LANGUAGE sql STABLE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  (SELECT l.local_xid, l.number, CASE WHEN l.learned_from IS DISTINCT FROM reader THEN coord.report_body(l) END
     FROM coord.lease_report l
    WHERE l.local_xid = ANY (in_progress) AND (l.local_xid, l.number) > (after_xid, after_number)
      AND pg_visible_in_snapshot(l.local_xid, until)
    ORDER BY l.local_xid, l.number LIMIT most)
  UNION ALL
  (SELECT l.local_xid, l.number, CASE WHEN l.learned_from IS DISTINCT FROM reader THEN coord.report_body(l) END
     FROM coord.lease_report l
    WHERE l.local_xid >= first AND (l.local_xid, l.number) > (after_xid, after_number)
      AND pg_visible_in_snapshot(l.local_xid, until)
    ORDER BY l.local_xid, l.number LIMIT most)
  UNION ALL
  (SELECT i.local_xid, i.number, CASE WHEN i.learned_from IS DISTINCT FROM reader THEN coord.report_body(i) END
     FROM coord.intent_report i
    WHERE i.local_xid = ANY (in_progress) AND (i.local_xid, i.number) > (after_xid, after_number)
      AND pg_visible_in_snapshot(i.local_xid, until)
    ORDER BY i.local_xid, i.number LIMIT most)
  UNION ALL
  (SELECT i.local_xid, i.number, CASE WHEN i.learned_from IS DISTINCT FROM reader THEN coord.report_body(i) END
     FROM coord.intent_report i
    WHERE i.local_xid >= first AND (i.local_xid, i.number) > (after_xid, after_number)
      AND pg_visible_in_snapshot(i.local_xid, until)
    ORDER BY i.local_xid, i.number LIMIT most)
  ORDER BY 1, 2 LIMIT most
$$;
COMMENT ON FUNCTION report_since(xid8[], xid8, xid8, bigint, pg_snapshot, bigint, text) IS 'reports that a reader has not been given, in order; NULL for one that came from the reader itself';

-- Rows are taken in the order of their keys: two peers may give the same ones at once. Of itself a node
-- believes nobody; what an earlier life has granted lies below the epochs of this one.
CREATE FUNCTION report_learn(sender text, reports jsonb) RETURNS void
  LANGUAGE sql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  INSERT INTO coord.lease_report AS r (resource, node, holder, epoch, has_ended, expires_at, version, learned_from)
  SELECT l.resource, l.node, l.holder, l.epoch, l.has_ended,
         coord.lease_now() + l.time_left * interval '1 microsecond', l.version, sender
    FROM jsonb_array_elements(reports) AS e(report)
   CROSS JOIN LATERAL jsonb_to_record(e.report -> 'lease')
     AS l(resource text, node text, holder text, epoch bigint, has_ended boolean, version bigint, time_left bigint)
   WHERE e.report ? 'lease' AND NOT EXISTS (SELECT FROM coord.local_node n WHERE n.name = l.node)
   ORDER BY l.resource COLLATE "C", l.node COLLATE "C"
  ON CONFLICT ON CONSTRAINT lease_report_pkey DO UPDATE
     SET holder = excluded.holder, epoch = excluded.epoch, has_ended = excluded.has_ended,
         expires_at = excluded.expires_at, heard_at = DEFAULT, version = excluded.version,
         learned_from = excluded.learned_from, local_xid = DEFAULT, number = DEFAULT
   WHERE (excluded.epoch, excluded.has_ended, excluded.version) > (r.epoch, r.has_ended, r.version);

  INSERT INTO coord.intent_report (agent, run_id, scope, node, op_id, epoch, holder, learned_from)
  SELECT i.agent, i.run_id, i.scope, i.node, i.op_id, i.epoch, i.holder, sender
    FROM jsonb_array_elements(reports) AS e(report)
   CROSS JOIN LATERAL jsonb_to_record(e.report -> 'run')
     AS i(agent text, run_id text, scope text, node text, op_id text, epoch bigint, holder text)
   WHERE e.report ? 'run' AND NOT EXISTS (SELECT FROM coord.local_node n WHERE n.name = i.node)
   ORDER BY i.agent COLLATE "C", i.run_id COLLATE "C", i.scope COLLATE "C", i.node COLLATE "C"
  ON CONFLICT DO NOTHING
$$;
COMMENT ON FUNCTION report_learn(text, jsonb) IS 'keeps the reports that are newer than what is known';

CREATE TRIGGER gossip_wake BEFORE INSERT ON intent_report
  FOR EACH ROW WHEN (NEW.learned_from IS NULL) EXECUTE FUNCTION gossip_wake();
COMMENT ON TRIGGER gossip_wake ON intent_report IS 'a committed run is pushed to the peers at commit';

-- What a node held that has left, or was removed here, keeps nobody waiting. Its epochs still count, and
-- so does what it reports later.
CREATE FUNCTION lease_report_lapse() RETURNS trigger
  LANGUAGE plpgsql
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  UPDATE coord.lease_report r SET expires_at = coord.lease_now()
   WHERE r.node = OLD.node AND r.learned_from IS NOT NULL AND r.expires_at > coord.lease_now();
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION lease_report_lapse() IS 'takes the leases of a node for expired that is no member any more';
CREATE TRIGGER lease_report_lapse AFTER DELETE ON member
  FOR EACH ROW EXECUTE FUNCTION lease_report_lapse();
COMMENT ON TRIGGER lease_report_lapse ON member IS 'leases of a node that has left count as expired';

-- Runs committed before the database became a node.
CREATE FUNCTION intent_report_own() RETURNS bigint
  LANGUAGE sql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
  WITH reported AS (
    INSERT INTO coord.intent_report (agent, run_id, scope, node, op_id, epoch, holder)
    SELECT i.agent, i.run_id, i.scope, n.name, i.op_id, i.epoch, i.holder
      FROM coord.local_node n
     CROSS JOIN coord.intent i
     WHERE i.status = 'committed' AND NOT EXISTS (SELECT FROM coord.intent_report r WHERE r.learned_from IS NULL)
    ON CONFLICT DO NOTHING
    RETURNING 1)
  SELECT count(*) FROM reported
$$;
COMMENT ON FUNCTION intent_report_own() IS 'reports the committed runs of this node, if none is reported yet; returns how many there are';

REVOKE ALL ON FUNCTION intent_report_own(), lease_report_lapse(), report_body(lease_report), report_body(intent_report), report_since(xid8[], xid8, xid8, bigint, pg_snapshot, bigint, text), report_learn(text, jsonb) FROM PUBLIC;
GRANT SELECT ON report_cursor TO coord_monitor;
