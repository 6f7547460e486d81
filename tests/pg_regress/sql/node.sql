-- A node of the mesh: its name, its peers, and the members that count.
\getenv abs_srcdir PG_ABS_SRCDIR
\set ECHO none
\set include :abs_srcdir '/include/fails.sql'
\i :include
\set ECHO all
SET search_path = public, coord;

--
-- A database that has no name yet
--

SELECT current_database() AS regression \gset
CREATE DATABASE regress_unnamed TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C';
\c regress_unnamed
\set ECHO none
\i :include
\set ECHO all
CREATE EXTENSION pg_test;
SET search_path = public, coord;
CALL pg_temp.fails($$ SELECT node_name() $$);
CALL pg_temp.fails($$ SELECT node_actor() $$);
CALL pg_temp.fails($$ SELECT node_summary() $$);
CALL pg_temp.fails($$ SELECT node_leave() $$);
CALL pg_temp.fails($$ SELECT add_peer('b', 'host=127.0.0.1 port=1') $$);
CALL pg_temp.fails($$ SELECT state_add_constraint('s', 'x') $$);
CALL pg_temp.fails($$ SELECT state_record_satisfied('s', 1) $$);
CALL pg_temp.fails($$ SELECT state_record_violations('s', 1) $$);
CALL pg_temp.fails($$ SELECT state_move('s', 1, 1) $$);
CALL pg_temp.fails($$ SELECT gossip_claim() $$);
-- What names a peer or member says that there is none.
CALL pg_temp.fails($$ SELECT remove_peer('b') $$);
CALL pg_temp.fails($$ SELECT gossip_round('b') $$);
CALL pg_temp.fails($$ SELECT member_set('b', 'voter') $$);
-- The views are there, and empty.
SELECT (SELECT count(*) FROM node) AS nodes, (SELECT count(*) FROM member) AS members,
       (SELECT count(*) FROM peer) AS peers, (SELECT count(*) FROM peer_status) AS statuses;
SELECT * FROM convergence;

-- Without a name one is minted, of the node's uuid.
BEGIN;
SELECT node_init() ~ '^node-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' AS minted;
SELECT node_name() = 'node-' || uuid AS of_its_uuid, node_actor() = node_name() AS first_life FROM local_node;
SELECT node_init(NULL) = node_name() AS same;
ROLLBACK;
SELECT count(*) FROM local_node;
-- 1 to 56 bytes, so that PostgreSQL's 63 have room for more than the name.
CALL pg_temp.fails($$ SELECT node_init('') $$);
CALL pg_temp.fails($$ SELECT node_init(repeat('x', 57)) $$);
CALL pg_temp.fails($$ SELECT node_init(repeat('é', 29)) $$);
-- # is what separates name and incarnation in an actor.
CALL pg_temp.fails($$ SELECT node_init('a#2') $$);
CALL pg_temp.fails($$ SELECT node_init('a b') $$);
CALL pg_temp.fails($$ SELECT node_init(E'a\n') $$);
CALL pg_temp.fails($$ SELECT node_init(E'a\u00a0b') $$);
BEGIN;
SELECT node_init(repeat('é', 28)) AS name \gset
SELECT octet_length(:'name'), node_name() = :'name' AS named;
-- DROP EXTENSION takes the peers and their credentials along.
SELECT add_peer('b', 'host=127.0.0.1 port=1 password=secret');
SELECT add_peer(repeat('x', 56), 'host=127.0.0.1 port=1');
SELECT name, octet_length(server) FROM peer ORDER BY name;
DROP EXTENSION pg_test;
SELECT (SELECT count(*) FROM pg_foreign_server) AS servers, (SELECT count(*) FROM pg_user_mapping) AS mappings;
ROLLBACK;
\c :regression
DROP DATABASE regress_unnamed;

-- A node must be UTF8: names and values are compared bytewise between databases.
CREATE DATABASE regress_latin1 TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C';
\c regress_latin1
\set ECHO none
\i :include
\set ECHO all
CREATE EXTENSION pg_test;
CALL pg_temp.fails($$ SELECT coord.node_init('a') $$);
\c :regression
DROP DATABASE regress_latin1;

--
-- Naming
--

\set ECHO none
\i :include
\set ECHO all
SET search_path = public, coord;
SELECT node_init('regress');
SELECT node_init('regress'), node_init(NULL), node_init(), node_name(), node_actor();
CALL pg_temp.fails($$ SELECT node_init('another') $$);
SELECT n.name, n.uuid = l.uuid AS same_uuid, n.incarnation, n.first_seen <= n.last_seen AS seen, n.status
  FROM node n JOIN local_node l USING (name);
SELECT node, role FROM member;
SELECT node_summary() ~ '^regress: \d+ states, 0 peers \(0 converged\), \d+ rounds, digest [0-9a-f]{16}$' AS summary;
CALL pg_temp.fails($$ INSERT INTO local_node (name, uuid, actor) VALUES ('second', gen_random_uuid(), 'second') $$);

--
-- Peers
--

SELECT config_epoch AS epoch FROM local_node \gset
-- Where a peer is goes into its foreign server, who we are there into the user mapping.
SELECT add_peer('b', 'host=127.0.0.1 port=1 dbname=app user=mesh password=secret sslmode=disable');
SELECT name, server FROM peer;
SELECT s.srvname, w.fdwname, s.srvoptions, m.umoptions, m.umuser::regrole
  FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
  JOIN pg_user_mapping m ON m.umserver = s.oid;
-- A new peer is a voter, and that is a new configuration.
SELECT node, role, config_epoch - :epoch AS epoch FROM member WHERE node = 'b';
SELECT config_epoch - :epoch AS epoch FROM local_node;
-- What is left out has a default; URLs are read too.
BEGIN;
SELECT add_peer('c', 'host=127.0.0.1');
SELECT add_peer('d', 'postgresql://mesh:s%20p@127.0.0.1:1,127.0.0.2:2/app?sslmode=require');
-- Files: what the peer must show is an option of the server, what we show one of the user mapping.
SELECT add_peer('e', 'host=db-e sslmode=verify-full sslrootcert=/etc/mesh/ca.crt sslcert=/etc/mesh/me.crt sslkey=/etc/mesh/me.key');
SELECT add_peer('f', 'postgresql://db-f:1,[::1]/app?sslmode=verify-ca&sslrootcert=%2Fetc%2Fmesh%2Fca.crt&passfile=/etc/mesh/passfile');
-- An empty value is none, of a keyword given twice the last one counts.
SELECT add_peer('g', 'host=db-f host = db-g password='''' sslrootcert='''' sslmode=require');
SELECT s.srvname, s.srvoptions, m.umoptions
  FROM pg_foreign_server s JOIN pg_user_mapping m ON m.umserver = s.oid ORDER BY s.srvname;
ROLLBACK;

CALL pg_temp.fails($$ SELECT add_peer('b', 'host=127.0.0.1 port=1') $$);
CALL pg_temp.fails($$ SELECT add_peer('regress', 'host=127.0.0.1 port=1') $$);
CALL pg_temp.fails($$ SELECT add_peer('', 'host=127.0.0.1 port=1') $$);
CALL pg_temp.fails($$ SELECT add_peer('a#2', 'host=127.0.0.1 port=1') $$);
-- A bad connection string is refused without showing any of it, for it may hold a password.
CALL pg_temp.fails($$ SELECT add_peer('c', '') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'secret') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'port=1 password=secret') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1 port=secret') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1 port=1 pasword=secret') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1 port=1 password=''secret') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'postgresql://mesh:secret@127.0.0.1:x/app') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1 port=1 options=-cfoo=secret') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'hostaddr=127.0.0.1 port=1') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1 password=my secret') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1 password=my Secret=') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'postgresql://mesh:secret%@127.0.0.1/app') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1,127.0.0.2,127.0.0.3 port=1,2') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1,') $$);
-- What checks the peer needs something to check against.
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1 sslmode=verify-full') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1 sslmode=verify-ca') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1 sslmode=allow') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1 sslmode=verify-full sslrootcert=system') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1 sslmode=require sslrootcert=ca.crt') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1 passfile=~/.pgpass') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1 sslcert=/etc/mesh/me.crt') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1 sslkey=/etc/mesh/me.key') $$);
CALL pg_temp.fails($$ SELECT add_peer('c', 'host=127.0.0.1 sslcrl=/etc/mesh/ca.crl') $$);
-- Nothing is left of any of them.
SELECT count(*) FROM pg_foreign_server;
SELECT config_epoch - :epoch AS epoch FROM local_node;
-- Options given by hand are checked as well.
CALL pg_temp.fails($$ CREATE SERVER coord_c FOREIGN DATA WRAPPER coord_mesh OPTIONS (password 'secret') $$);
CALL pg_temp.fails($$ ALTER SERVER coord_b OPTIONS (SET port 'x') $$);
CALL pg_temp.fails($$ ALTER USER MAPPING FOR CURRENT_USER SERVER coord_b OPTIONS (ADD host 'x') $$);
CALL pg_temp.fails($$ ALTER SERVER coord_b OPTIONS (SET sslmode 'verify-full') $$);
CALL pg_temp.fails($$ ALTER SERVER coord_b OPTIONS (ADD sslkey '/etc/mesh/me.key') $$);
CALL pg_temp.fails($$ ALTER USER MAPPING FOR CURRENT_USER SERVER coord_b OPTIONS (ADD sslkey '/etc/mesh/me.key') $$);
CALL pg_temp.fails($$ ALTER USER MAPPING FOR CURRENT_USER SERVER coord_b OPTIONS (ADD passfile 'passfile') $$);
BEGIN;
ALTER SERVER coord_b OPTIONS (SET sslmode 'verify-full', ADD sslrootcert '/etc/mesh/ca.crt');
ALTER USER MAPPING FOR CURRENT_USER SERVER coord_b OPTIONS (DROP password, ADD sslcert '/etc/mesh/me.crt', ADD sslkey '/etc/mesh/me.key');
SELECT s.srvoptions, m.umoptions FROM pg_foreign_server s JOIN pg_user_mapping m ON m.umserver = s.oid WHERE s.srvname = 'coord_b';
ROLLBACK;
ALTER SERVER coord_b OPTIONS (SET port '2');
SELECT srvoptions FROM pg_foreign_server WHERE srvname = 'coord_b';

--
-- Members
--

SELECT config_epoch AS epoch FROM local_node \gset
SELECT member_set('b', 'observer') - :epoch AS epoch;
SELECT node, role, config_epoch - :epoch AS epoch FROM member WHERE node = 'b';
-- The same again is no change.
SELECT member_set('b', 'observer') - :epoch AS epoch;
SELECT member_set('b', 'voter') - :epoch AS epoch;
-- The node itself is a member like others.
SELECT member_set('regress', 'observer') - :epoch AS epoch;
SELECT member_set('regress', 'voter') - :epoch AS epoch;
CALL pg_temp.fails($$ SELECT member_set('nobody', 'voter') $$);
CALL pg_temp.fails($$ SELECT member_set('b', 'leader') $$);
SELECT node, role, config_epoch - :epoch AS epoch FROM member ORDER BY node;

--
-- Who may do what
--

CREATE ROLE regress_plain;
CREATE ROLE regress_monitor IN ROLE coord_monitor;
SET ROLE regress_plain;
-- The password is for superusers.
SELECT umoptions FROM pg_user_mappings WHERE srvname = 'coord_b';
CALL pg_temp.fails($$ SELECT umoptions FROM pg_user_mapping $$);
SELECT count(*) FROM pg_foreign_server WHERE srvoptions::text LIKE '%secret%';
CALL pg_temp.fails($$ SELECT coord.add_peer('c', 'host=127.0.0.1 port=1') $$);
CALL pg_temp.fails($$ SELECT coord.remove_peer('b') $$);
CALL pg_temp.fails($$ SELECT coord.node_init('regress') $$);
CALL pg_temp.fails($$ SELECT coord.node_leave() $$);
CALL pg_temp.fails($$ SELECT coord.member_set('b', 'observer') $$);
CALL pg_temp.fails($$ SELECT coord.node_name() $$);
CALL pg_temp.fails($$ SELECT coord.config_epoch_raise() $$);
CALL pg_temp.fails($$ SELECT * FROM coord.peer $$);
CALL pg_temp.fails($$ SELECT * FROM coord.local_node $$);
CALL pg_temp.fails($$ SELECT * FROM coord.node $$);
CALL pg_temp.fails($$ SELECT * FROM coord.member $$);
CALL pg_temp.fails($$ CREATE SERVER mine FOREIGN DATA WRAPPER coord_mesh $$);
RESET ROLE;
-- Whoever is given a peer's server may say where it is, not which files of the server's user prove who we are.
BEGIN;
GRANT USAGE ON FOREIGN DATA WRAPPER coord_mesh TO regress_plain;
ALTER SERVER coord_b OWNER TO regress_plain;
GRANT USAGE ON SCHEMA coord TO regress_plain;
SET ROLE regress_plain;
ALTER SERVER coord_b OPTIONS (SET host 'db-b');
CREATE USER MAPPING FOR CURRENT_USER SERVER coord_b OPTIONS (user 'mesh', password 'other');
CALL pg_temp.fails($$ ALTER USER MAPPING FOR CURRENT_USER SERVER coord_b OPTIONS (ADD passfile '/etc/mesh/passfile') $$);
CALL pg_temp.fails($$ ALTER USER MAPPING FOR CURRENT_USER SERVER coord_b OPTIONS (ADD sslcert '/etc/mesh/me.crt', ADD sslkey '/etc/mesh/me.key') $$);
ROLLBACK;
-- Also with the right to call it, adding a peer is for superusers.
BEGIN;
GRANT EXECUTE ON FUNCTION add_peer(text, text), remove_peer(text) TO regress_plain;
SET ROLE regress_plain;
CALL pg_temp.fails($$ SELECT coord.add_peer('c', 'host=127.0.0.1 port=1') $$);
CALL pg_temp.fails($$ SELECT coord.remove_peer('b') $$);
ROLLBACK;
SET ROLE regress_monitor;
SELECT coord.node_name(), (SELECT count(*) FROM coord.peer) AS peers, (SELECT count(*) FROM coord.member) AS members,
       (SELECT count(*) FROM coord.node WHERE name = 'regress') AS nodes, (SELECT count(*) FROM coord.peer_status) AS statuses,
       (SELECT count(*) FROM coord.convergence) AS convergence;
SELECT coord.node_summary() LIKE 'regress: %' AS summary;
CALL pg_temp.fails($$ SELECT coord.member_set('b', 'observer') $$);
RESET ROLE;
DROP ROLE regress_plain;
DROP ROLE regress_monitor;

--
-- Removing peers, and leaving
--

SELECT config_epoch AS epoch FROM local_node \gset
SELECT remove_peer('b');
SELECT (SELECT count(*) FROM peer) AS peers, (SELECT count(*) FROM pg_user_mapping) AS mappings, (SELECT count(*) FROM member WHERE node = 'b') AS members;
SELECT config_epoch - :epoch AS epoch FROM local_node;
CALL pg_temp.fails($$ SELECT remove_peer('b') $$);
-- The old name may be used again for the same node.
SELECT add_peer('b', 'host=127.0.0.1 port=1 sslmode=disable');
-- A peer that cannot be told is named; the node leaves all the same.
SELECT node_leave();
SELECT (SELECT count(*) FROM peer) AS peers, (SELECT status FROM node WHERE name = 'regress') AS status;
SELECT node, role FROM member;
-- It can come back: with its first peer it is alive again.
SELECT add_peer('b', 'host=127.0.0.1 port=1 sslmode=disable');
SELECT status FROM node WHERE name = 'regress';
SELECT remove_peer('b');
