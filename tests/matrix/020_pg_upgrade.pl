# pg_upgrade from PostgreSQL 15 to 18, with data: a node comes out of it with the same states, begins a
# new life by itself, and nothing is lost or counted twice.

use strict;
use warnings;

use File::Copy ();
use PgTest::Counter;
use PgTest::Mesh;
use PostgreSQL::Test::Utils ();
use Test::More;

my ($old_server, $new_server) = map { $ENV{"SERVER_$_"} // die "SERVER_$_ is not set" } 15, 18;
my $mesh = PgTest::Mesh->new(conf => "coord.gossip_interval = '100ms'");
$mesh->add($_, install_path => $old_server) foreach 'a', 'b';
$mesh->join_all;

my $counter = PgTest::Counter->new($mesh);
my $life = q{SELECT format('%s %s', incarnation, coord.node_actor()) FROM coord.local_node};

# Since a security release (15.20 is of it) servers mark each column of every table with an option that
# 18.4, which is older, cannot read; its pg_upgrade then fails, with or without this extension. A cluster
# made before that release has no such marks, and this makes one of that kind.
sub stop_for_upgrade
{
	my ($name) = @_;
	my $node = $mesh->node($name);
	$node->safe_psql('postgres', 'CREATE TABLE probe (n int)');
	my ($dump) = PostgreSQL::Test::Utils::run_command([ "$new_server/bin/pg_dump", '-t', 'probe', '-d', $node->connstr('postgres') ]);
	$node->safe_psql('postgres', 'DROP TABLE probe');
	if ($dump =~ /SET \(pg_attver=/)
	{
		note("node $name: marks are removed that this PostgreSQL 18 cannot read");
		$node->safe_psql($_, q{SET allow_system_table_mods = on;
			UPDATE pg_attribute SET attoptions = NULL WHERE attoptions::text LIKE '{pg_attver=%}'}) foreach 'postgres', 'template1';
	}
	$node->stop;
	return;
}

# Puts PostgreSQL 18 in the place of a stopped 15, with its data; not started yet.
sub upgrade
{
	my ($name, @options) = @_;
	my $old = $mesh->node($name);
	my $new = $mesh->server($name . '18', install_path => $new_server, port => $old->port, initdb => ['--no-data-checksums']);
	my ($out, $err) = PostgreSQL::Test::Utils::run_command(
		[ "$new_server/bin/pg_upgrade", '--no-sync', '--retain', '-d', $old->data_dir, '-D', $new->data_dir,
			'-b', "$old_server/bin", '-B', "$new_server/bin", '-s', PostgreSQL::Test::Utils::tempdir_short(),
			'-p', PostgreSQL::Test::Cluster::get_free_port(), '-P', PostgreSQL::Test::Cluster::get_free_port(), @options ]);
	is($? >> 8, 0, "pg_upgrade of node $name works") or die "$out\n$err";
	my $said = join '', map { PostgreSQL::Test::Utils::slurp_file($_) } glob $new->data_dir . '/pg_upgrade_output.d/*/log/*.log';
	like($said, qr/database system is ready/, 'its log shows both servers');
	$mesh->replace($name, $new);
	unlike($said, qr/LOG:  .*\bpg_test (?:launcher|worker)|LOG:  pg_test: |PANIC|terminated by signal/, 'in which the preloaded library did nothing');
	return ($old, $new);
}

# ---- data

$mesh->sql('a', <<'SQL');
SELECT coord.state_add_constraint('gone', 'x');
SELECT coord.state_remove_constraint('gone', 'x');
SELECT coord.state_add_constraint(E'odd ''name'' \t\\ ä', E'odd "id" \n ü');
SELECT coord.state_record_violations('many-' || n, n) FROM generate_series(1, 500) n;
SELECT coord.member_set('b', 'observer');
CREATE TABLE own (id int PRIMARY KEY, seen coord.vclock, at coord.hlc, value coord.constraint_state);
CREATE INDEX ON own (at);
CREATE INDEX ON own USING hash (seen);
INSERT INTO own SELECT n, coord.vclock_increment('{}', 'x' || n), coord.hlc_now(),
                       coord.constraint_add(coord.constraint_state(), 'i' || n, 'x') FROM generate_series(1, 100) n;
SQL
$counter->record('a', 3);
$counter->record('b', 2);
# A clock far ahead of the wall: after the upgrade the wall alone cannot make stamps larger.
$mesh->sql('a', q{SELECT coord.hlc_observe(coord.hlc(clock_timestamp() + interval '4 min', 0))});
$mesh->sql('a', q{SELECT coord.state_move('s', 1, 1)});
my $stamp = $mesh->sql('a', 'SELECT coord.max(coord.hlc_now()) FROM generate_series(1, 1000)');
$counter->is_whole('on 15');

my %of = (
	'the states' => q{SELECT md5(string_agg(format('%s %s', name, encode(value::bytea, 'hex')), E'\n' ORDER BY name)), count(*) FROM coord.state},
	'the members' => q{SELECT string_agg(format('%s %s %s', node, role, config_epoch), ',' ORDER BY node) FROM coord.member},
	'the log of lives' => q{SELECT string_agg(l::text, ',' ORDER BY at) FROM coord.incarnation_log l},
	'the roster' => q{SELECT string_agg(format('%s %s %s %s', name, uuid, incarnation, life), ',' ORDER BY name) FROM coord.roster},
	'who it is' => q{SELECT format('%s %s %s %s', name, uuid, life, config_epoch) FROM coord.local_node},
	'its peers' => q{SELECT string_agg(format('%s %s %s', name, server, umoptions), ',') FROM coord.peer JOIN pg_user_mappings ON srvname = server},
	'its extension' => q{SELECT extversion, cardinality(extconfig) FROM pg_extension WHERE extname = 'pg_test'},
	'what belongs to the extension' => q{SELECT count(*) FROM pg_depend WHERE deptype = 'e' AND classid <> 'pg_type'::regclass AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_test')},
	'who may do what' => q{SELECT md5(string_agg(format('%s %s', oid::regprocedure, proacl), ',' ORDER BY oid::regprocedure::text)) FROM pg_proc WHERE pronamespace = 'coord'::regnamespace},
	'own columns of its types' => q{SELECT md5(string_agg(format('%s %s %s', seen, at, encode(value::bytea, 'hex')), ',' ORDER BY id)) FROM own});
my %before = map { $_ => $mesh->sql('a', $of{$_}) } keys %of;

# ---- a is upgraded

stop_for_upgrade('a');
$counter->record('b', 2);
$mesh->node('b')->stop;
my ($old, $new) = upgrade('a');
File::Copy::copy($old->data_dir . '/pg_test.hlc', $new->data_dir . '/pg_test.hlc') or die "pg_test.hlc: $!";
$new->start;
is($mesh->sql('a', q{SELECT current_setting('server_version_num')::int / 10000}), '18', 'it is on PostgreSQL 18');
is($mesh->sql('a', $of{$_}), $before{$_}, "$_: as before") foreach sort keys %of;
is($mesh->sql('a', 'SELECT count(*) FROM coord.state WHERE digest <> coord.state_row_digest(name, value)'), '0', 'digests fit');
is($mesh->sql('a', "SET enable_seqscan = off; SELECT count(*) FROM own WHERE at OPERATOR(coord.<=) '$stamp' AND seen OPERATOR(coord.=) '{\"x7\":1}'"), '1', 'indexes work');
is($mesh->sql('a', "SELECT coord.hlc_now() OPERATOR(coord.>) '$stamp'"), 't', 'the clock goes on above every stamp given out before');
is($mesh->sql('a', $life), '1 a#0', 'until the peer has answered, it counts under an actor of its own');
$counter->record('a', 2);

$mesh->node('b')->start;
$mesh->wait_for('a', $life, '2 a#2', 'by itself it begins a new life');
is($mesh->sql('a', q{SELECT reason FROM coord.incarnation_log WHERE node = 'a' AND incarnation = 2}),
	'restored into another server', 'and says why');
$counter->is_whole('with 15 and 18');
$counter->record('a', 3);
$counter->record('b', 3);
$counter->is_whole('after changes on both');
is($mesh->sql('b', q{SELECT string_agg(format('%s %s', incarnation, event), ',' ORDER BY incarnation) FROM coord.incarnation_log WHERE node = 'a' AND incarnation > 1}),
	'2 met', 'its peer took note of the new life');
$mesh->wait_for($_, 'SELECT ok FROM coord.health()', 't', "node $_ is in good health") foreach $mesh->names;
is($mesh->sql('a', 'SELECT string_agg(role, $$,$$ ORDER BY node) FROM coord.member'), 'voter,observer', 'roles are as they were');

# What is authoritative is still known to pg_dump.
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
$new->command_ok([ 'pg_dump', '-f', $dump, '-d', $new->connstr('postgres') ], 'pg_dump works');
my @copied = PostgreSQL::Test::Utils::slurp_file($dump) =~ /^COPY coord\.(\w+)/mg;
is("@{[ sort @copied ]}", 'conflict incarnation_log intent lease lease_history local_node member op_dumped quarantine retention_rule roster state stream', 'and the dump has what is authoritative');

# ---- back to the old server, which was left as it was

$new->stop;
$mesh->replace('a', $old);
$old->start;
$mesh->wait_for('a', $life, '3 a#3', 'the old server takes over again, in one more life');
$counter->is_whole('back on 15');
$counter->record('a', 2);
$counter->is_whole('after changes there');
$old->stop;
$mesh->replace('a', $new);
$new->start;
$mesh->wait_for('a', $life, '4 a#4', 'and so does the new one');
$counter->is_whole('on 18 again');

# ---- b is upgraded too, its files linked, and without the file of its clock

stop_for_upgrade('b');
$counter->record('a', 1);
upgrade('b', '--link');
$mesh->node('b')->start;
$counter->record('b', 1);
$mesh->wait_for('b', $life, '2 b#2', 'b begins a new life too');
$counter->is_whole('on 18');
$mesh->sql('b', q{SELECT coord.state_move('s', 7, 7)});
$mesh->wait_for('a', q{SELECT coord.constraint_position(value)::text FROM coord.state WHERE name = 's'}, '(7,7)',
	'its clock went on from the stamps that its peer gave back');
$counter->is_whole('at the end');

# Nothing of the extension has come loose.
$mesh->sql('b', 'DROP TABLE IF EXISTS own; SELECT coord.node_leave()');
$mesh->sql('b', 'DROP EXTENSION pg_test');
is($mesh->sql('b', q{SELECT count(*) FROM pg_proc WHERE pronamespace = 'coord'::regnamespace}), '0', 'the extension can be dropped');
is($mesh->sql('b', q{SELECT count(*) FROM pg_type WHERE typnamespace = 'coord'::regnamespace}), '0', 'with its types');

done_testing();
