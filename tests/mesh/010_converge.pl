# Three nodes come to hold the same, late comers too, and nothing recorded is lost on the way.

use strict;
use warnings;

use IPC::Run ();
use PgTest::Mesh;
use PostgreSQL::Test::Utils ();
use Test::More;

my $mesh = PgTest::Mesh->new(names => [ 'a', 'b', 'c' ], conf => "coord.gossip_interval = '100ms'");
my @abc = ('a', 'b', 'c');

# Before anyone knows a peer, so that each really has something of its own.
foreach my $name (@abc)
{
	$mesh->sql($name, <<SQL);
SELECT coord.state_add_constraint('robot', 'from-$name');
SELECT coord.state_add_constraint('robot', 'shared');
SELECT coord.state_add_constraint('only-$name', 'x');
SELECT coord.state_record_satisfied('robot', 100);
SELECT coord.state_record_violations('robot', 10);
SELECT coord.state_move('robot', 1, 2);
SQL
}
is($mesh->sql('a', q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 'robot'}),
	'100', 'a node without peers holds its own counts only');
is($mesh->sql('a', 'SELECT count(*) FROM coord.convergence'), '0', 'a node without peers claims convergence with nobody');

$mesh->join_all;
$mesh->converges('three nodes that recorded apart hold the same bytes');
foreach my $name (@abc)
{
	is( $mesh->sql($name, <<'SQL'), 'from-a,from-b,from-c,shared|300|30|t|4',
SELECT (SELECT string_agg(i, ',') FROM coord.constraint_ids(value) i), coord.constraint_satisfied(value),
       coord.constraint_violations(value), coord.constraint_position(value) ~= '(1,2)', (SELECT count(*) FROM coord.state)
  FROM coord.state WHERE name = 'robot'
SQL
		"node $name has the constraints of all, and counts that add up");
}

# ---- a removal stays

$mesh->sql('b', q{SELECT coord.state_remove_constraint('robot', 'shared')});
$mesh->wait_for($_, q{SELECT NOT coord.constraint_contains(value, 'shared') FROM coord.state WHERE name = 'robot'},
	't', "a constraint removed on b disappears from $_") foreach @abc;
$mesh->sql('c', q{SELECT coord.state_record_satisfied('robot', 1)});
$mesh->converges('after the removal the nodes converge again');
is( $mesh->sql($_, q{SELECT coord.constraint_contains(value, 'shared') FROM coord.state WHERE name = 'robot'}),
	'f', "nobody brings the removed constraint back to $_") foreach @abc;
$mesh->sql('c', q{SELECT coord.state_add_constraint('robot', 'shared')});
$mesh->wait_for('a', q{SELECT coord.constraint_contains(value, 'shared') FROM coord.state WHERE name = 'robot'},
	't', 'a removed constraint can be added again');

# ---- many sessions on one state

my $work = PostgreSQL::Test::Utils::tempdir();
open my $script, '>', "$work/record.sql" or die "record.sql: $!";
print {$script} "SELECT coord.state_record_satisfied('busy', 1);\n";
close $script;
my @runs = map {
	my $node = $mesh->node($_);
	IPC::Run::start(
		[   $node->installed_command('pgbench'), '-n', '-c', '8', '-j', '2', '-t', '25', '-h', $node->host,
			'-p', $node->port, '-f', "$work/record.sql", 'postgres' ],
		'>', \my $out, '2>', \my $err, IPC::Run::timeout(60));
} 'a', 'b';
is(scalar(grep { !$_->finish } @runs), 0, 'eight sessions on each of two nodes record into one state at once');
$mesh->converges('the nodes converge after that');
is($mesh->sql($_, q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 'busy'}),
	'400', "node $_ has every one of their counts") foreach @abc;

# ---- one that comes late

$mesh->add('d');
foreach my $name (@abc)
{
	$mesh->add_peer('d', $name);
	$mesh->add_peer($name, 'd');
}
$mesh->converges('a node that joins late gets everything');
is($mesh->sql('d', q{SELECT string_agg(name, ',' ORDER BY name) FROM coord.node WHERE status = 'alive'}),
	'a,b,c,d', 'the late node knows all nodes');

like( $mesh->sql('d', 'SELECT coord.node_summary()'),
	qr/^d: 5 states, 3 peers \(3 converged\), [1-9]\d* rounds, digest [0-9a-f]{16}$/,
	'the summary is one line with name, states, peers, rounds and digest');

done_testing();
