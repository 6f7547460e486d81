-- What an administrator and a monitoring system look at.
SELECT current_database() AS regression \gset
CREATE DATABASE regress_health TEMPLATE template0 ENCODING 'UTF8';
\c regress_health
CREATE EXTENSION pg_test;
SELECT ok, reason, detail FROM coord.health();
SELECT name, labels FROM coord.metrics ORDER BY name COLLATE "C";
\c :regression
DROP DATABASE regress_health;
SET search_path = public, coord;
CREATE PROCEDURE pg_temp.wait_for(condition text) LANGUAGE plpgsql AS $$
DECLARE
  deadline timestamptz := clock_timestamp() + interval '30 s';
  holds boolean;
BEGIN
  LOOP
    EXECUTE 'SELECT ' || condition INTO holds;
    EXIT WHEN holds;
    IF clock_timestamp() > deadline THEN
      RAISE EXCEPTION 'waited in vain for %', condition;
    END IF;
    COMMIT;
    PERFORM pg_sleep(0.05);
  END LOOP;
END
$$;

SELECT node_init('regress');
CALL pg_temp.wait_for('ok FROM coord.health()');
SELECT ok, reason, detail->>'node' AS node, detail->'confirmed' AS confirmed, detail->'problems' AS problems,
       detail->'peers' AS peers, detail->'worker' = to_jsonb(gossip_worker()) AS worker FROM health();

-- A peer that refuses connections, and then a life that nobody can confirm: the worse comes first.
SELECT add_peer('silent', 'host=127.0.0.1 port=1');
CALL pg_temp.wait_for($$ NOT reachable FROM coord.peer_status $$);
CALL pg_temp.wait_for($$ state = 'dead' FROM coord.peer_status $$);
SELECT ok, regexp_replace(reason, '[0-9.]+ s', 'N s') AS reason FROM health();
SELECT detail->'peers'->'silent'->>'state' AS state, detail->'peers'->'silent'->'converged' AS converged FROM health();
SELECT phi >= 10 AS phi, reason ~ '^never heard, listening for [0-9.]+ s$' AS reason, reachable FROM peer_status;
SELECT life_doubt();
CALL pg_temp.wait_for('life_is_provisional()');
SELECT ok, regexp_replace(reason, '[0-9.]+ s;', 'N s;') AS reason FROM health();
SELECT rank, peer FROM problem ORDER BY rank;
-- Everything that is counted has a name, and a peer's has the peer.
SELECT name, labels FROM metrics ORDER BY name COLLATE "C", labels;
SELECT name, value FROM metrics WHERE name IN ('coord_healthy', 'coord_peer_alive', 'coord_peer_reachable', 'coord_peer_converged') ORDER BY name COLLATE "C";

-- Monitoring tools log in as members of pg_monitor.
SELECT pg_has_role('pg_monitor', 'coord_monitor', 'MEMBER') AS member;
SET ROLE pg_monitor;
SELECT ok FROM coord.health();
SELECT count(*) > 5 AS counted FROM coord.metrics;
SELECT count(*) AS waiting FROM coord.state_waiting;
RESET ROLE;

-- With nobody left to ask the life goes on.
SELECT remove_peer('silent');
CALL pg_temp.wait_for('ok FROM coord.health()');
