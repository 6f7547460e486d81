-- The node itself, the roster of nodes it has heard of, and the members that count.

CREATE FUNCTION node_place() RETURNS text
  LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'node_place_wrapper';
COMMENT ON FUNCTION node_place() IS 'where this database is: system identifier, timeline, database and data directory';

CREATE TABLE local_node (
  is_local boolean PRIMARY KEY DEFAULT true CHECK (is_local),
  name text COLLATE "C" NOT NULL,
  uuid uuid NOT NULL,
  incarnation bigint NOT NULL DEFAULT 1 CHECK (incarnation > 0),
  actor text COLLATE "C" NOT NULL,
  life uuid NOT NULL DEFAULT gen_random_uuid(),
  place text NOT NULL DEFAULT node_place(),
  started timestamptz NOT NULL DEFAULT pg_postmaster_start_time(),
  doubtful_since pg_lsn,
  config_epoch bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE local_node IS 'this node: one row once node_init was called';
COMMENT ON COLUMN local_node.incarnation IS 'which life of the node this is';
COMMENT ON COLUMN local_node.actor IS 'what this life counts under in clocks and states';
COMMENT ON COLUMN local_node.life IS 'tells two lives of the same number apart';
COMMENT ON COLUMN local_node.place IS 'where this life was last known to go on; anywhere else a new one begins';
COMMENT ON COLUMN local_node.started IS 'start of the server since which the peers have confirmed this life';
COMMENT ON COLUMN local_node.doubtful_since IS 'where the transaction log ended at the first start since which the life has not been confirmed';
COMMENT ON COLUMN local_node.config_epoch IS 'raised by each change of membership';

CREATE TABLE roster (
  name text COLLATE "C" PRIMARY KEY,
  uuid uuid NOT NULL,
  incarnation bigint NOT NULL,
  life uuid,
  place text,
  first_seen timestamptz NOT NULL DEFAULT clock_timestamp(),
  last_seen timestamptz NOT NULL DEFAULT clock_timestamp(),
  status text NOT NULL DEFAULT 'alive' CHECK (status IN ('alive', 'left'))
);
COMMENT ON TABLE roster IS 'every node ever heard of; a name stays with its uuid for ever, because its counters do';
COMMENT ON COLUMN roster.life IS 'latest life it was met in';
COMMENT ON COLUMN roster.place IS 'where it was met';
COMMENT ON COLUMN roster.last_seen IS 'last contact that changed something here; coord.node has the latest';

CREATE TABLE member (
  node text COLLATE "C" PRIMARY KEY,
  role text NOT NULL CHECK (role IN ('voter', 'observer')),
  config_epoch bigint NOT NULL
);
COMMENT ON TABLE member IS 'nodes that count: voters decide, observers only receive';
COMMENT ON COLUMN member.config_epoch IS 'config epoch at which this row was last changed';

CREATE TABLE incarnation_log (
  node text COLLATE "C" NOT NULL,
  incarnation bigint NOT NULL,
  life uuid NOT NULL,
  place text NOT NULL,
  event text NOT NULL CHECK (event IN ('begun', 'met', 'refused')),
  reason text NOT NULL,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (node, incarnation, life, place, event)
);
COMMENT ON TABLE incarnation_log IS 'lives of this node and of those it met, and why each began or was refused';
COMMENT ON COLUMN incarnation_log.event IS 'begun (here), met (a peer in a new life) or refused (a life that is over, or lived elsewhere)';
COMMENT ON COLUMN incarnation_log.place IS 'system identifier, timeline, database and data directory';

SELECT pg_catalog.pg_extension_config_dump('local_node', '');
SELECT pg_catalog.pg_extension_config_dump('roster', '');
SELECT pg_catalog.pg_extension_config_dump('member', '');
SELECT pg_catalog.pg_extension_config_dump('incarnation_log', '');

CREATE FUNCTION node_init(name text DEFAULT NULL) RETURNS text
  LANGUAGE c VOLATILE PARALLEL UNSAFE
  SET search_path = pg_catalog, coord, pg_temp
  AS 'MODULE_PATHNAME', 'node_init_wrapper';
COMMENT ON FUNCTION node_init(text) IS 'names this database as a node of the mesh; NULL mints a name';

CREATE FUNCTION node_required() RETURNS text
  LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'node_required_wrapper';
COMMENT ON FUNCTION node_required() IS 'raises 55000: the database is not a node yet';

CREATE FUNCTION node_name() RETURNS text
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN coalesce((SELECT n.name FROM coord.local_node n), coord.node_required());
COMMENT ON FUNCTION node_name() IS 'name of this node; 55000 when it has none';

CREATE FUNCTION life_is_confirmed(place text, started timestamptz) RETURNS boolean
  LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'life_is_confirmed_wrapper';
COMMENT ON FUNCTION life_is_confirmed(text, timestamptz) IS 'whether a life last confirmed there and then goes on in this server';

CREATE FUNCTION life_is_provisional() RETURNS boolean
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN coalesce((SELECT NOT coord.life_is_confirmed(n.place, n.started) FROM coord.local_node n), false);
COMMENT ON FUNCTION life_is_provisional() IS 'whether this node has yet to ask its peers which life it is in';

CREATE FUNCTION actor_provisional(name text) RETURNS text
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'actor_provisional_wrapper';
COMMENT ON FUNCTION actor_provisional(text) IS 'what a node counts under until it knows its life; never told to a peer';

CREATE FUNCTION node_actor() RETURNS text
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN coalesce((SELECT CASE WHEN coord.life_is_confirmed(n.place, n.started) THEN n.actor
                               ELSE coord.actor_provisional(n.name) END
                     FROM coord.local_node n), coord.node_required());
COMMENT ON FUNCTION node_actor() IS 'what this life of the node counts under: the name, name#2 from the second life on, name#0 until it is known which';

CREATE FUNCTION change_xid() RETURNS xid8
  LANGUAGE sql VOLATILE
  RETURN CASE WHEN NOT coord.life_is_provisional() THEN pg_current_xact_id() END;
COMMENT ON FUNCTION change_xid() IS 'transaction number of a local change; NULL while the life is provisional';

CREATE FUNCTION config_epoch_raise() RETURNS bigint
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    UPDATE coord.local_node SET config_epoch = config_epoch + 1 RETURNING config_epoch;
  END;
COMMENT ON FUNCTION config_epoch_raise() IS 'the next config epoch';

CREATE FUNCTION member_set(node text, role text) RETURNS bigint
  LANGUAGE c VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  AS 'MODULE_PATHNAME', 'member_set_wrapper';
COMMENT ON FUNCTION member_set(text, text) IS 'makes a known node a voter or an observer; returns the config epoch';

-- Peers: one foreign server and user mapping each, so that credentials live where PostgreSQL
-- keeps credentials.

CREATE FUNCTION peer_options_check(options text[], catalog oid) RETURNS void
  LANGUAGE c VOLATILE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'peer_options_check_wrapper';
COMMENT ON FUNCTION peer_options_check(text[], oid) IS 'validator of the options of a peer';

CREATE FOREIGN DATA WRAPPER coord_mesh NO HANDLER VALIDATOR peer_options_check;
COMMENT ON FOREIGN DATA WRAPPER coord_mesh IS 'peers of the mesh; managed by coord.add_peer and coord.remove_peer';

CREATE VIEW peer AS
  SELECT substr(s.srvname::text, 7) COLLATE "C" AS name, s.srvname::text AS server
    FROM pg_catalog.pg_foreign_server s
    JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw
   WHERE w.fdwname = 'coord_mesh' AND left(s.srvname::text, 6) = 'coord_';
COMMENT ON VIEW peer IS 'peers of this node and the foreign servers that describe them';

CREATE FUNCTION add_peer(name text, conninfo text) RETURNS void
  LANGUAGE c VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  AS 'MODULE_PATHNAME', 'add_peer_wrapper';
COMMENT ON FUNCTION add_peer(text, text) IS 'adds a peer and makes it a voter; conninfo with host, port, dbname, user, password, passfile, sslmode, sslrootcert, sslcert, sslkey';

CREATE FUNCTION remove_peer(name text) RETURNS void
  LANGUAGE c VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
  AS 'MODULE_PATHNAME', 'remove_peer_wrapper';
COMMENT ON FUNCTION remove_peer(text) IS 'removes a peer and its membership';

REVOKE ALL ON FUNCTION node_init(text), config_epoch_raise(), member_set(text, text),
  add_peer(text, text), remove_peer(text), peer_options_check(text[], oid) FROM PUBLIC;
REVOKE ALL ON FUNCTION node_name(), node_actor(), node_required(), node_place(), change_xid(),
  life_is_confirmed(text, timestamptz), life_is_provisional(), actor_provisional(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION node_name(), node_actor(), node_required(), node_place(), change_xid(),
  life_is_confirmed(text, timestamptz), life_is_provisional(), actor_provisional(text)
  TO coord_agent, coord_monitor;
GRANT SELECT ON local_node TO coord_agent, coord_monitor;
GRANT SELECT ON roster, member, peer, incarnation_log TO coord_monitor;
