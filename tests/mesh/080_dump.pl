# A dump has what is authoritative and nothing that must be found out anew.

use strict;
use warnings;

use PgTest::Mesh;
use PostgreSQL::Test::Utils ();
use Test::More;

my $mesh = PgTest::Mesh->new(names => [ 'a', 'b' ], conf => "coord.gossip_interval = '100ms'");
$mesh->join_all;
foreach my $name ($mesh->names)
{
	$mesh->sql($name, <<SQL);
SELECT coord.state_add_constraint('s', 'of-$name'), coord.state_record_satisfied('s', 7), coord.state_move('s', 1, 2);
SELECT coord.state_add_constraint('gone', 'x');
SELECT coord.state_remove_constraint('gone', 'x');
SELECT coord.state_add_constraint(E'odd ''name'' \\t\\\\ ä', E'odd "id" \\n ü');
SQL
}
$mesh->converges('two nodes converge before the dump');
my $content = $mesh->content('a');
# The log, of which a part lies in a partition that the worker has made.
$mesh->sql('a', q{SELECT coord.op_append('personal', 'declagent', '{"id": "first"}')});
$mesh->wait_for('a', 'SELECT count(*) FROM coord.op_partition WHERE NOT EXISTS (SELECT FROM coord.op_default)', '1', 'the worker makes a partition');
$mesh->sql('a', q{SELECT coord.op_append('personal', 'declagent', '{"id": "second"}')});
# A row of a streamed table, as an operation.
$mesh->sql('a', q{CREATE TABLE reading (id int PRIMARY KEY, origin text); SELECT coord.stream_add('reading'); SELECT coord.stream_say('public.reading', '{"id": 1, "origin": "b"}')});
my $log = q{SELECT string_agg(o.op_id, ' ' ORDER BY o.op_id) || coord.state_hash() FROM coord.op o};
my $actor = 'SELECT format(\'%s %s %s\', name, incarnation, uuid) FROM coord.local_node';

# Where it is restored to has no workers of its own in the way.
my $fresh = $mesh->add('fresh');
my $folder = PostgreSQL::Test::Utils::tempdir();
my $source = $mesh->node('a');
my $target = 'host=' . $fresh->host . ' port=' . $fresh->port;

my %restore = (
	plain => [ [ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-f', "$folder/plain", '-d', "$target dbname=plain" ] ],
	custom => [ [ 'pg_restore', '--exit-on-error', '-d', "$target dbname=custom", "$folder/custom" ] ]);
foreach my $format (sort keys %restore)
{
	$fresh->command_ok([ 'pg_dump', '--no-subscriptions', '--no-publications', "--format=$format", '-f', "$folder/$format", '-d', $source->connstr('postgres') ],
		"pg_dump in $format format works");
	$fresh->safe_psql('postgres', "CREATE DATABASE $format TEMPLATE template0");
	my ($out, $err) = PostgreSQL::Test::Utils::run_command($restore{$format}[0]);
	is($err, '', "it is restored without an error or warning");
	is( $fresh->safe_psql($format,
			q{SELECT string_agg(format('%s %s', name, encode(value::bytea, 'hex')), E'\n' ORDER BY name) FROM coord.state}),
		$content, 'the states have the same bytes');
	is($fresh->safe_psql($format, $log), $mesh->sql('a', $log), 'the log has the same operations, and is folded to the same');
	is($fresh->safe_psql($format, 'SELECT count(*) FROM coord.state WHERE digest <> coord.state_row_digest(name, value)'),
		'0', 'and digests that fit');
	note("restored as: " . $fresh->safe_psql($format, $actor) . ', dumped from: ' . $mesh->sql('a', $actor));
	note('peers: ' . $fresh->safe_psql($format, q{SELECT string_agg(name, ',') FROM coord.peer}));
	note('workers: ' . $fresh->safe_psql($format, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_test worker' AND datname = current_database()}));
}

# Not looked up in the database: the worker of a restored node fills them as soon as it reaches a peer.
my @copied = PostgreSQL::Test::Utils::slurp_file("$folder/plain") =~ /^COPY coord\.(\w+)/mg;
is("@{[ sort @copied ]}", 'conflict incarnation_log intent lease lease_history local_node member op_dumped quarantine retention_rule roster state stream', 'the dump has what is authoritative, and nothing that gossip finds out anew');

done_testing();
