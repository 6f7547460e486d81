-- Where the log of this node stands among those of the others.

CREATE FUNCTION sync_status() RETURNS jsonb
  LANGUAGE sql STABLE
  SET search_path = pg_catalog, coord, pg_temp
  RETURN jsonb_build_object(
    'device_id', coord.node_actor(),
    'state_hash', coord.state_hash(),
    'journal_frontier', coord.frontier()::jsonb,
    'stable_frontier', coord.stable_frontier()::jsonb,
    'base_checkpoint', (SELECT b.state_hash FROM coord.op_base b),
    'roster', (SELECT jsonb_agg(jsonb_build_object('node', n.name, 'incarnation', n.incarnation, 'status', n.status) ORDER BY n.name)
                 FROM coord.node n));
COMMENT ON FUNCTION sync_status() IS 'who this node is, what it holds, what all hold, and who all are';

CREATE FUNCTION sync_pump(peer text) RETURNS jsonb
  LANGUAGE c VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  AS 'MODULE_PATHNAME', 'sync_pump_wrapper';
COMMENT ON FUNCTION sync_pump(text) IS 'one exchange of operations with a peer now: pushed, push_deduped, folded, acked, state_hash';

REVOKE ALL ON FUNCTION sync_status(), sync_pump(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sync_status() TO coord_monitor;
