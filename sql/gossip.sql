-- Gossip: what this node has been given, what its peers say they hold, and the exchange itself.

CREATE TABLE peer_cursor (
  node text COLLATE "C" PRIMARY KEY,
  space text,
  given pg_snapshot,
  until pg_snapshot,
  after_xid bigint,
  after_name text COLLATE "C",
  resync boolean NOT NULL DEFAULT false,
  pending vclock NOT NULL DEFAULT '{}',
  frontier vclock NOT NULL DEFAULT '{}',
  ceiling vclock NOT NULL DEFAULT '{}',
  log_position pg_lsn,
  mismatches bigint NOT NULL DEFAULT 0,
  mismatched_at timestamptz
);
COMMENT ON TABLE peer_cursor IS 'how far this node has been given the changes of each peer; rebuilt by gossip, never dumped';
COMMENT ON COLUMN peer_cursor.space IS 'transaction-number space of the snapshots; void in any other';
COMMENT ON COLUMN peer_cursor.given IS 'all that this snapshot of the peer sees has been given';
COMMENT ON COLUMN peer_cursor.until IS 'larger snapshot that is being given in parts';
COMMENT ON COLUMN peer_cursor.after_xid IS 'last part given ended with this transaction';
COMMENT ON COLUMN peer_cursor.after_name IS 'last part given ended with this state';
COMMENT ON COLUMN peer_cursor.resync IS 'everything is asked for anew';
COMMENT ON COLUMN peer_cursor.pending IS 'frontier of the peer, reached once no learned row waits';
COMMENT ON COLUMN peer_cursor.frontier IS 'held completely through this peer';
COMMENT ON COLUMN peer_cursor.ceiling IS 'no change at or above it came through this peer';
COMMENT ON COLUMN peer_cursor.log_position IS 'furthest place that the transaction log of the peer was flushed to when it gave a part';
COMMENT ON COLUMN peer_cursor.mismatches IS 'times the contents differed at the same frontier';
COMMENT ON COLUMN peer_cursor.mismatched_at IS 'when they last did';

CREATE TABLE ack (
  node text COLLATE "C" PRIMARY KEY,
  frontier vclock NOT NULL,
  ceiling vclock NOT NULL,
  digest bytea NOT NULL,
  log_position pg_lsn NOT NULL,
  acknowledged_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  op_frontier vclock NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE ack IS 'what each node last said that it holds; rebuilt by gossip, never dumped';
COMMENT ON COLUMN ack.frontier IS 'it holds every change of a state below';
COMMENT ON COLUMN ack.ceiling IS 'it holds no change at or above';
COMMENT ON COLUMN ack.digest IS 'digest over the content of its states';
COMMENT ON COLUMN ack.op_frontier IS 'it holds every operation below';
COMMENT ON COLUMN ack.log_position IS 'furthest place that its transaction log was flushed to when it said so';

-- The check of who calls: only members of coord_peer may execute it, and it does nothing but store
-- what passes validation. So a peer needs no right on any table.
CREATE FUNCTION gossip_exchange(message bytea) RETURNS bytea
  LANGUAGE c VOLATILE STRICT SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  AS 'MODULE_PATHNAME', 'gossip_exchange_wrapper';
COMMENT ON FUNCTION gossip_exchange(bytea) IS 'what peers call: stores a message and answers it';

CREATE FUNCTION gossip_round(peer text, OUT sent bigint, OUT received bigint, OUT changed bigint, OUT converged boolean)
  RETURNS SETOF record
  LANGUAGE c VOLATILE STRICT ROWS 1
  SET search_path = pg_catalog, coord, pg_temp
  AS 'MODULE_PATHNAME', 'gossip_round_wrapper';
COMMENT ON FUNCTION gossip_round(text) IS 'one exchange with a peer now: rows sent, received, changed here, and whether both hold the same';

CREATE FUNCTION gossip_claim(OUT frontier bytea, OUT ceiling bytea, OUT digest bytea)
  RETURNS SETOF record
  LANGUAGE c VOLATILE STRICT ROWS 1
  SET search_path = pg_catalog, coord, pg_temp
  AS 'MODULE_PATHNAME', 'gossip_claim_wrapper';
COMMENT ON FUNCTION gossip_claim() IS 'what this node holds now';

CREATE FUNCTION gossip_farewell() RETURNS void
  LANGUAGE c VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  AS 'MODULE_PATHNAME', 'gossip_farewell_wrapper';
COMMENT ON FUNCTION gossip_farewell() IS 'tells every peer that this node leaves';

CREATE FUNCTION node_leave() RETURNS void
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  PERFORM coord.gossip_farewell();
  PERFORM coord.remove_peer(p.name) FROM coord.peer p;
  UPDATE coord.roster r SET status = 'left', last_seen = clock_timestamp()
    FROM coord.local_node n WHERE r.name = n.name;
END
$$;
COMMENT ON FUNCTION node_leave() IS 'takes this node out of the mesh, on both sides; its states stay';

CREATE FUNCTION gossip_worker() RETURNS integer
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'gossip_worker_wrapper';
COMMENT ON FUNCTION gossip_worker() IS 'process of the gossip worker of this database; NULL when there is none';

CREATE FUNCTION gossip_wake() RETURNS trigger
  LANGUAGE c AS 'MODULE_PATHNAME', 'gossip_wake_wrapper';
COMMENT ON FUNCTION gossip_wake() IS 'wakes the worker when the transaction commits';
CREATE FUNCTION gossip_launch() RETURNS trigger
  LANGUAGE c AS 'MODULE_PATHNAME', 'gossip_launch_wrapper';
COMMENT ON FUNCTION gossip_launch() IS 'asks for a worker when the transaction commits';

-- Only changes made here, which alone set xid and changed_at: what was learned from one peer goes to
-- the others with the timer, unless they have it by then from where it was made.
CREATE TRIGGER gossip_wake BEFORE INSERT OR UPDATE OF changed_at ON state
  FOR EACH ROW WHEN (NEW.xid IS NOT NULL) EXECUTE FUNCTION gossip_wake();
CREATE TRIGGER gossip_wake AFTER INSERT OR UPDATE OR DELETE ON member
  FOR EACH STATEMENT EXECUTE FUNCTION gossip_wake();
CREATE TRIGGER gossip_launch AFTER INSERT OR UPDATE ON local_node
  FOR EACH STATEMENT EXECUTE FUNCTION gossip_launch();
COMMENT ON TRIGGER gossip_wake ON state IS 'changes are pushed to the peers at commit';
COMMENT ON TRIGGER gossip_wake ON member IS 'a new peer is contacted at commit';
COMMENT ON TRIGGER gossip_launch ON local_node IS 'a node has a worker';

-- Views ----------------------------------------------------------------------------------------

CREATE FUNCTION peer_statistics(
    OUT peer text, OUT last_contact timestamptz, OUT last_answer timestamptz, OUT last_failure timestamptz, OUT round_trip bigint,
    OUT rounds bigint, OUT failures bigint, OUT full_syncs bigint, OUT rows_in bigint,
    OUT rows_out bigint, OUT bytes_in bigint, OUT bytes_out bigint, OUT refused bigint, OUT last_error text)
  RETURNS SETOF record
  LANGUAGE c VOLATILE STRICT ROWS 10 AS 'MODULE_PATHNAME', 'peer_statistics_wrapper';
COMMENT ON FUNCTION peer_statistics() IS 'contact with peers since the server started; empty when not preloaded';

CREATE FUNCTION peer_liveness(OUT peer text, OUT state text, OUT phi double precision, OUT reason text)
  RETURNS SETOF record
  LANGUAGE c VOLATILE STRICT ROWS 10 AS 'MODULE_PATHNAME', 'peer_liveness_wrapper';
COMMENT ON FUNCTION peer_liveness() IS 'what the failure detector thinks of the peers; empty while no worker judges them';

CREATE VIEW node AS
  SELECT r.name, r.uuid, r.incarnation, r.first_seen,
         CASE WHEN n.name IS NOT NULL AND r.status = 'alive' THEN clock_timestamp()
              ELSE greatest(r.last_seen, s.last_contact) END AS last_seen,
         CASE WHEN r.status = 'alive' AND d.state <> 'unknown' THEN d.state ELSE r.status END AS status
    FROM coord.roster r
    LEFT JOIN coord.local_node n ON n.name = r.name
    LEFT JOIN coord.peer_statistics() s ON s.peer = r.name
    LEFT JOIN coord.peer_liveness() d ON d.peer = r.name;
COMMENT ON VIEW node IS 'roster of the mesh: every node ever heard of';
COMMENT ON COLUMN node.status IS 'alive, suspect, dead or left; alive for a node that is no peer and has not left';

CREATE VIEW peer_status AS
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
COMMENT ON VIEW peer_status IS 'each peer: contact, traffic, what it has acknowledged and how far it lags';
COMMENT ON COLUMN peer_status.state IS 'alive, suspect, dead, left, or unknown (not heard yet since the server started)';
COMMENT ON COLUMN peer_status.phi IS 'how unlikely it is that the peer is alive and so long silent: n stands for 1 in 10^n';
COMMENT ON COLUMN peer_status.reason IS 'why the state is what it is';
COMMENT ON COLUMN peer_status.reachable IS 'whether the last message of this node to the peer was answered; a peer can be alive, heard of through others, and not reachable';
COMMENT ON COLUMN peer_status.frontier IS 'what the peer says it holds completely';
COMMENT ON COLUMN peer_status.lag IS 'age of the oldest change made here that the peer has not acknowledged';
COMMENT ON COLUMN peer_status.lag_states IS 'states changed here that the peer has not acknowledged';

-- The rule of protocol.rs, compare(): each covers the other and the digests agree, or both claim the
-- very same and neither has anything of its own on the way.
CREATE VIEW convergence AS
  SELECT c.peer, c.peer_covers_mine, c.covers_peer,
         CASE WHEN c.peer_covers_mine AND c.covers_peer OR c.is_alike THEN c.digests_equal END AS digests_agree,
         coalesce((c.peer_covers_mine AND c.covers_peer OR c.is_alike) AND c.digests_equal, false) AS converged,
         c.mismatches, c.mismatched_at, c.acknowledged_at
    FROM (SELECT p.name AS peer,
                 coalesce(a.frontier OPERATOR(coord.@>) me.ceiling, false) AS peer_covers_mine,
                 coalesce(me.frontier OPERATOR(coord.@>) a.ceiling, false) AS covers_peer,
                 a.frontier OPERATOR(coord.=) me.frontier AND a.ceiling OPERATOR(coord.=) me.ceiling
                   AND a.digest = me.digest
                   AND coord.vclock_get(me.frontier, n.actor) >= coord.vclock_get(me.ceiling, n.actor)
                   AND coord.vclock_get(me.frontier, r.actor) >= coord.vclock_get(me.ceiling, r.actor) AS is_alike,
                 a.digest = me.digest AS digests_equal,
                 coalesce(k.mismatches, 0) AS mismatches, k.mismatched_at, a.acknowledged_at
            FROM coord.peer p
            CROSS JOIN (SELECT g.frontier::coord.vclock, g.ceiling::coord.vclock, g.digest
                          FROM coord.gossip_claim() g) me
            CROSS JOIN coord.local_node n
            LEFT JOIN (SELECT o.name, o.name || CASE WHEN o.incarnation > 1 THEN '#' || o.incarnation ELSE '' END AS actor
                         FROM coord.roster o) r ON r.name = p.name
            LEFT JOIN coord.ack a ON a.node = p.name
            LEFT JOIN coord.peer_cursor k ON k.node = p.name) c;
COMMENT ON VIEW convergence IS 'per peer: does each hold all of the other, and do the digests agree';
COMMENT ON COLUMN convergence.peer_covers_mine IS 'the peer has acknowledged everything this node holds';
COMMENT ON COLUMN convergence.covers_peer IS 'this node holds everything the peer said it holds';
COMMENT ON COLUMN convergence.digests_agree IS 'NULL while one lacks something; false is corruption, repaired by a full resync';
COMMENT ON COLUMN convergence.mismatches IS 'times that digests differed at the same frontier';

CREATE FUNCTION node_summary() RETURNS text
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    SELECT format('%s: %s states, %s peers (%s converged), %s rounds, digest %s',
                  coord.node_name(),
                  (SELECT count(*) FROM coord.state),
                  (SELECT count(*) FROM coord.peer),
                  (SELECT count(*) FROM coord.convergence c WHERE c.converged),
                  (SELECT coalesce(sum(s.rounds), 0) FROM coord.peer_statistics() s),
                  left(encode(g.digest, 'hex'), 16))
      FROM coord.gossip_claim() g;
  END;
COMMENT ON FUNCTION node_summary() IS 'one line: name, states, peers, rounds, digest';

REVOKE ALL ON FUNCTION gossip_exchange(bytea), gossip_round(text), gossip_claim(), gossip_farewell(),
  node_leave(), peer_statistics(), peer_liveness(), node_summary(), gossip_worker(), gossip_wake(), gossip_launch() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gossip_exchange(bytea) TO coord_peer;
GRANT EXECUTE ON FUNCTION gossip_claim(), peer_statistics(), peer_liveness(), node_summary(), gossip_worker() TO coord_monitor;
GRANT SELECT ON peer_cursor, ack, node, peer_status, convergence TO coord_monitor;
