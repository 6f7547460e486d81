# ALTER EXTENSION UPDATE: a node of the version before works with the new library, keeps its data, and
# becomes what a fresh one is.

use strict;
use warnings;

use PgTest::Mesh;
use Test::More;

my $mesh = PgTest::Mesh->new(names => ['new'], conf => "coord.gossip_interval = '100ms'");
$mesh->add('old', version => '0.1.0');
$mesh->join_all;
my $satisfied = q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 's'};
sub record { $mesh->sql($_, q{SELECT coord.state_record_satisfied('s', 1)}) foreach @_; return; }

# ---- the new library, and the objects of the version before

is($mesh->sql('old', q{SELECT extversion FROM pg_extension WHERE extname = 'pg_test'}), '0.1.0', 'a node of the version before');
record('old', 'new');
$mesh->converges('it converges with one of this version');
$mesh->wait_for('old', 'SELECT state FROM coord.peer_status', 'reachable', 'its views say what they said');
is($mesh->sql('old', 'SELECT ok FROM coord.health()'), 't', 'and it is well');
$mesh->wait_for('new', 'SELECT state FROM coord.peer_status', 'alive', 'it is alive to the other');

unlike(PostgreSQL::Test::Utils::slurp_file($mesh->node('old')->logfile), qr/does not exist/, 'and nothing is asked of it that it has not');

# What users have built on it.
$mesh->sql('old', <<'SQL');
CREATE TABLE seen (id int PRIMARY KEY, clock coord.vclock NOT NULL, at coord.hlc, progress coord.constraint_state);
INSERT INTO seen SELECT i, coord.vclock_increment('{}', 'a' || i), coord.hlc_now(), coord.constraint_add(coord.constraint_state(), 'x', 'me')
  FROM generate_series(1, 100) i;
CREATE INDEX ON seen (at);
CREATE VIEW lagging AS SELECT peer, lag FROM coord.peer_status WHERE lag > interval '1 h';
CREATE FUNCTION count_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM coord.state_record_satisfied('rows', 1); RETURN NULL; END $$;
CREATE TRIGGER count_row AFTER INSERT ON seen FOR EACH ROW EXECUTE FUNCTION count_row();
GRANT SELECT ON coord.peer_status TO PUBLIC;
SQL
my $rows = q{SELECT md5(string_agg(s::text, ' ' ORDER BY id)) FROM seen s};
my $seen = $mesh->sql('old', $rows);
my $content = $mesh->content('old');

# ---- the update

$mesh->sql('old', 'ALTER EXTENSION pg_test UPDATE');
is($mesh->sql('old', q{SELECT extversion FROM pg_extension WHERE extname = 'pg_test'}),
	$mesh->sql('new', q{SELECT extversion FROM pg_extension WHERE extname = 'pg_test'}), 'the node is of this version now');
is($mesh->content('old'), $content, 'its states are what they were');
is($mesh->sql('old', $rows), $seen, 'so is a table of the user');
is($mesh->sql('old', 'SELECT coord.node_actor()'), 'old', 'its life goes on');
is($mesh->sql('old', 'SELECT count(*) FROM lagging'), 0, 'a view of the user works');
$mesh->sql('old', q{INSERT INTO seen VALUES (0, '{"a":1}')});
record('old', 'new');
$mesh->wait_for($_, $satisfied, 4, "$_ has what both record afterwards") foreach $mesh->names;
$mesh->wait_for('new', q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 'rows'}, 1, 'and what a trigger of the user records');
$mesh->converges('they converge');
$mesh->wait_for('old', q{SELECT state || ' ' || reachable FROM coord.peer_status}, 'alive true', 'the views say what they say now');
is($mesh->sql('old', q{SELECT has_table_privilege('public', 'coord.peer_status', 'SELECT')}), 't', 'a privilege of the user is still there');
$mesh->sql('old', 'REVOKE SELECT ON coord.peer_status FROM PUBLIC');

# ---- nothing tells it from a fresh one

my $objects = <<'SQL';
WITH member AS (
  SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS object
    FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
   WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'pg_test'
), acl AS (
  SELECT classid, objid, object, unnest(coalesce(p.proacl, c.relacl, t.typacl)) ::text AS part
    FROM member
    LEFT JOIN pg_proc p ON classid = 'pg_proc'::regclass AND p.oid = objid
    LEFT JOIN pg_class c ON classid = 'pg_class'::regclass AND c.oid = objid
    LEFT JOIN pg_type t ON classid = 'pg_type'::regclass AND t.oid = objid
)
SELECT string_agg(line, E'\n' ORDER BY line COLLATE "C") FROM (
  SELECT format('%s: %s', object, obj_description(objid, classid::regclass::name)) AS line FROM member
  UNION ALL
  SELECT format('%s: %s', m.object, pg_get_functiondef(p.oid)) FROM member m JOIN pg_proc p ON p.oid = m.objid AND m.classid = 'pg_proc'::regclass
   WHERE p.prokind <> 'a'
  UNION ALL
  SELECT format('%s: %s', m.object, pg_get_viewdef(c.oid)) FROM member m JOIN pg_class c ON c.oid = m.objid AND m.classid = 'pg_class'::regclass
   WHERE c.relkind = 'v'
  UNION ALL
  SELECT format('%s.%s: %s %s %s %s', m.object, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull, col_description(a.attrelid, a.attnum))
    FROM member m JOIN pg_attribute a ON a.attrelid = m.objid AND m.classid = 'pg_class'::regclass WHERE a.attnum > 0
  UNION ALL
  SELECT format('%s: %s', m.object, pg_get_constraintdef(k.oid)) FROM member m JOIN pg_constraint k ON k.conrelid = m.objid AND m.classid = 'pg_class'::regclass
  UNION ALL
  SELECT format('%s: %s', m.object, pg_get_indexdef(i.indexrelid)) FROM member m JOIN pg_index i ON i.indrelid = m.objid AND m.classid = 'pg_class'::regclass
  UNION ALL
  SELECT format('%s: %s', m.object, pg_get_triggerdef(t.oid)) FROM member m JOIN pg_trigger t ON t.tgrelid = m.objid AND m.classid = 'pg_class'::regclass
  UNION ALL
  SELECT format('%s: may %s', object, part) FROM acl
) l
SQL
my %lines = map { $_ => [ split /\n/, $mesh->sql($_, $objects) ] } $mesh->names;
cmp_ok(scalar @{ $lines{new} }, '>', 500, 'every object is looked at');
is_deeply($lines{old}, $lines{new}, 'an updated node has what a fresh one has');

done_testing();
