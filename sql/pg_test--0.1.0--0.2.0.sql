-- 0.1.0 to 0.2.0: who is alive; a move follows what it replaces.
\echo Use "ALTER EXTENSION pg_test UPDATE TO '0.2.0'" to load this file. \quit

CREATE FUNCTION peer_liveness(OUT peer text, OUT state text, OUT phi double precision, OUT reason text)
  RETURNS SETOF record
  LANGUAGE c VOLATILE STRICT ROWS 10 AS 'MODULE_PATHNAME', 'peer_liveness_wrapper';
COMMENT ON FUNCTION peer_liveness() IS 'what the failure detector thinks of the peers; empty while no worker judges them';

REVOKE ALL ON FUNCTION peer_liveness() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION peer_liveness() TO coord_monitor;

CREATE OR REPLACE VIEW node AS
  SELECT r.name, r.uuid, r.incarnation, r.first_seen,
         CASE WHEN n.name IS NOT NULL AND r.status = 'alive' THEN clock_timestamp()
              ELSE greatest(r.last_seen, s.last_contact) END AS last_seen,
         CASE WHEN r.status = 'alive' AND d.state <> 'unknown' THEN d.state ELSE r.status END AS status
    FROM coord.roster r
    LEFT JOIN coord.local_node n ON n.name = r.name
    LEFT JOIN coord.peer_statistics() s ON s.peer = r.name
    LEFT JOIN coord.peer_liveness() d ON d.peer = r.name;
COMMENT ON COLUMN node.status IS 'alive, suspect, dead or left; alive for a node that is no peer and has not left';

CREATE OR REPLACE VIEW peer_status AS
  SELECT p.name AS peer,
         CASE WHEN r.status = 'left' THEN 'left' ELSE coalesce(d.state, 'unknown') END AS state,
         s.last_contact,
         nullif(s.round_trip, 0) * interval '1 microsecond' AS round_trip,
         s.rounds, s.full_syncs, s.rows_in, s.rows_out, s.bytes_in, s.bytes_out,
         a.frontier,
         coalesce(clock_timestamp() - l.oldest, interval '0') AS lag,
         l.states AS lag_states,
         s.refused, s.failures, s.last_failure, s.last_error,
         d.phi,
         CASE WHEN d.peer IS NULL THEN 'not judged: no gossip worker runs here, or it has not looked yet' ELSE d.reason END AS reason,
         CASE WHEN s.last_failure >= coalesce(s.last_answer, '-infinity') THEN false
              WHEN s.last_answer IS NOT NULL THEN true END AS reachable
    FROM coord.peer p
    LEFT JOIN coord.roster r ON r.name = p.name
    LEFT JOIN coord.peer_statistics() s ON s.peer = p.name
    LEFT JOIN coord.peer_liveness() d ON d.peer = p.name
    LEFT JOIN coord.ack a ON a.node = p.name
    CROSS JOIN LATERAL (
      SELECT min(st.changed_at) AS oldest, count(*) AS states
        FROM coord.state st
       WHERE st.xid >= coalesce(coord.vclock_get(a.frontier, (SELECT n.actor FROM coord.local_node n)), 0)::text::xid8) l;
COMMENT ON COLUMN peer_status.state IS 'alive, suspect, dead, left, or unknown (not heard yet since the server started)';
COMMENT ON COLUMN peer_status.phi IS 'how unlikely it is that the peer is alive and so long silent: n stands for 1 in 10^n';
COMMENT ON COLUMN peer_status.reason IS 'why the state is what it is';
COMMENT ON COLUMN peer_status.reachable IS 'whether the last message of this node to the peer was answered; a peer can be alive, heard of through others, and not reachable';

CREATE OR REPLACE VIEW problem AS
  SELECT 1 AS rank, NULL::text AS peer, 'the database is not a node: call coord.node_init' AS reason
   WHERE NOT EXISTS (SELECT FROM coord.local_node)
  UNION ALL
  SELECT 2, NULL, 'no gossip worker runs: nothing that changes here is told by itself'
    FROM coord.local_node WHERE coord.gossip_worker() IS NULL
  UNION ALL
  SELECT 3, NULL, 'the incarnation is not known: what is counted meanwhile is told once a peer has confirmed it'
    FROM coord.local_node WHERE coord.life_is_provisional()
  UNION ALL
  SELECT 4, c.peer, format('contents differ from those of peer "%s" at the same frontier', c.peer)
    FROM coord.convergence c WHERE NOT c.digests_agree AND NOT coord.life_is_provisional()
  UNION ALL
  SELECT CASE s.state WHEN 'dead' THEN 5 ELSE 6 END, s.peer,
         format('peer "%s" is %s: %s', s.peer, s.state, concat_ws('; ', s.reason, CASE WHEN NOT s.reachable THEN s.last_error END))
    FROM coord.peer_status s WHERE s.state IN ('suspect', 'dead')
  UNION ALL
  SELECT 7, s.peer, format('peer "%s" is not reached from here: %s', s.peer, s.last_error)
    FROM coord.peer_status s WHERE s.state IN ('alive', 'unknown') AND NOT s.reachable
  UNION ALL
  SELECT 8, s.peer, format('peer "%s" lacks changes made %s ago', s.peer, date_trunc('second', s.lag))
    FROM coord.peer_status s WHERE s.lag > interval '1 min' AND s.state <> 'dead' AND s.reachable;

CREATE OR REPLACE FUNCTION health(OUT ok boolean, OUT reason text, OUT detail jsonb)
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    SELECT count(p.rank) = 0,
           string_agg(p.reason, '; ' ORDER BY p.rank, p.peer),
           jsonb_build_object(
             'node', n.name, 'incarnation', n.incarnation, 'worker', coord.gossip_worker(),
             'confirmed', NOT coord.life_is_provisional(),
             'states', (SELECT count(*) FROM coord.state),
             'waiting', (SELECT count(*) FROM coord.state_waiting),
             'problems', coalesce(jsonb_agg(p.reason ORDER BY p.rank, p.peer) FILTER (WHERE p.rank IS NOT NULL), '[]'),
             'peers', (SELECT coalesce(jsonb_object_agg(s.peer, jsonb_build_object(
                                'state', s.state, 'phi', s.phi, 'reason', s.reason, 'reachable', s.reachable,
                                'converged', c.converged, 'mismatches', c.mismatches,
                                'lag_seconds', extract(epoch FROM s.lag), 'last_error', s.last_error)), '{}')
                         FROM coord.peer_status s JOIN coord.convergence c ON c.peer = s.peer))
      FROM (SELECT) here
      LEFT JOIN coord.local_node n ON true
      LEFT JOIN coord.problem p ON true
     GROUP BY n.name, n.incarnation;
  END;

CREATE OR REPLACE VIEW metrics AS
  SELECT 'coord_healthy' AS name, '{}'::jsonb AS labels, h.ok::int::double precision AS value FROM coord.health() h
  UNION ALL SELECT 'coord_incarnation', '{}', n.incarnation FROM coord.local_node n
  UNION ALL SELECT 'coord_states', '{}', count(*) FROM coord.state
  UNION ALL SELECT 'coord_states_waiting', '{}', count(*) FROM coord.state_waiting
  UNION ALL SELECT 'coord_clock_refused_total', '{}', coord.hlc_refused()
   WHERE current_setting('shared_preload_libraries') ~ '\mpg_test\M'
  UNION ALL
  SELECT m.name, jsonb_build_object('peer', s.peer) || m.labels, m.value
    FROM coord.peer_status s
    JOIN coord.convergence c ON c.peer = s.peer
    CROSS JOIN LATERAL (VALUES
      ('coord_peer_alive', '{}'::jsonb, (s.state = 'alive')::int::double precision),
      ('coord_peer_phi', '{}', s.phi),
      ('coord_peer_reachable', '{}', coalesce(s.reachable, false)::int),
      ('coord_peer_converged', '{}', c.converged::int),
      ('coord_peer_mismatches_total', '{}', c.mismatches),
      ('coord_peer_rounds_total', '{}', s.rounds),
      ('coord_peer_failures_total', '{}', s.failures),
      ('coord_peer_full_syncs_total', '{}', s.full_syncs),
      ('coord_peer_refused_total', '{}', s.refused),
      ('coord_peer_rows_total', '{"direction": "in"}', s.rows_in),
      ('coord_peer_rows_total', '{"direction": "out"}', s.rows_out),
      ('coord_peer_bytes_total', '{"direction": "in"}', s.bytes_in),
      ('coord_peer_bytes_total', '{"direction": "out"}', s.bytes_out),
      ('coord_peer_lag_seconds', '{}', extract(epoch FROM s.lag)),
      ('coord_peer_round_trip_seconds', '{}', extract(epoch FROM s.round_trip))) m(name, labels, value)
   WHERE m.value IS NOT NULL;

COMMENT ON COLUMN peer_cursor.log_position IS 'furthest place that the transaction log of the peer was flushed to when it gave a part';
COMMENT ON COLUMN ack.log_position IS 'furthest place that its transaction log was flushed to when it said so';
COMMENT ON FUNCTION add_peer(text, text) IS 'adds a peer and makes it a voter; conninfo with host, port, dbname, user, password, passfile, sslmode, sslrootcert, sslcert, sslkey';

CREATE FUNCTION state_stamp(state constraint_state) RETURNS hlc
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'state_stamp_wrapper';
COMMENT ON FUNCTION state_stamp(constraint_state) IS 'stamp for a move: above the clock, and above that of the position it replaces';

REVOKE ALL ON FUNCTION state_stamp(constraint_state) FROM PUBLIC;

-- The stamp is taken in the update itself, under the row lock, so that of two moves on one node
-- the later one wins.
CREATE OR REPLACE FUNCTION state_move(name text, x integer, y integer) RETURNS void
  LANGUAGE sql VOLATILE STRICT SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  BEGIN ATOMIC
    INSERT INTO coord.state AS s (name, value)
      VALUES ($1, coord.constraint_move(coord.constraint_state(), $2, $3, coord.hlc_now(), coord.node_actor()))
    ON CONFLICT ON CONSTRAINT state_pkey DO UPDATE
      SET value = coord.constraint_move(s.value, $2, $3, coord.state_stamp(s.value), coord.node_actor()),
          xid = greatest(s.xid, excluded.xid), local_xid = DEFAULT, learned_from = DEFAULT,
          is_provisional = s.is_provisional OR excluded.is_provisional, changed_at = DEFAULT;
  END;
