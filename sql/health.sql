-- What an administrator and a monitoring system look at.

-- Each problem with its rank: what stops everything comes before what concerns one peer.
CREATE VIEW problem AS
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
COMMENT ON VIEW problem IS 'what is wrong with this node now, the worst first by rank';
COMMENT ON COLUMN problem.rank IS '1 is worst';
COMMENT ON COLUMN problem.peer IS 'peer it concerns; NULL when it concerns all';

CREATE FUNCTION health(OUT ok boolean, OUT reason text, OUT detail jsonb)
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
COMMENT ON FUNCTION health() IS 'one row: is all well, and if not what is wrong, the worst first';

CREATE VIEW metrics AS
  SELECT 'coord_healthy' AS name, '{}'::jsonb AS labels, h.ok::int::double precision AS value FROM coord.health() h
  UNION ALL SELECT 'coord_incarnation', '{}', n.incarnation FROM coord.local_node n
  UNION ALL SELECT 'coord_states', '{}', count(*) FROM coord.state
  UNION ALL SELECT 'coord_states_waiting', '{}', count(*) FROM coord.state_waiting
  UNION ALL SELECT 'coord_clock_refused_total', '{}', coord.hlc_refused()
   WHERE current_setting('shared_preload_libraries') ~ '\mpg_test\M'
  UNION ALL SELECT 'coord_lease_memory_open', '{}', coord.lease_memory_is_open()::int
  UNION ALL SELECT 'coord_lease_writers', '{}', count(DISTINCT (k.pid, k.prepared)) FROM coord.lease_locker k
   WHERE k.granted AND (k.kind = 1 AND k.mode = 'RowShareLock' OR k.kind = 2 AND k.mode = 'ShareLock')
  UNION ALL SELECT 'coord_lease_waiters', '{}', count(DISTINCT k.pid) FROM coord.lease_locker k WHERE NOT k.granted
  UNION ALL SELECT 'coord_lease_reports', '{}', count(*) FROM coord.lease_report r WHERE r.learned_from IS NOT NULL
  UNION ALL SELECT 'coord_fence_refused_total', jsonb_build_object('table', t.target), t.refusals
    FROM coord.protected_table t WHERE t.refusals IS NOT NULL
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
COMMENT ON VIEW metrics IS 'everything that can be counted, for scraping; names ending in _total only grow while the server runs';
COMMENT ON COLUMN metrics.labels IS 'peer, direction and table, where they apply';

REVOKE ALL ON FUNCTION health() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION health() TO coord_monitor;
GRANT SELECT ON problem, metrics, state_waiting TO coord_monitor;
