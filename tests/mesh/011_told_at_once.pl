# With an hour between two rounds of the timer, only the push at commit can have carried a change.

use strict;
use warnings;

use PgTest::Link;
use PgTest::Mesh;
use Test::More;

my $mesh = PgTest::Mesh->new(names => [ 'a', 'b', 'c' ], conf => "coord.gossip_interval = '1h'");
my @deadline = (timeout => 10);

# a and c know only b, so what goes from one to the other is pushed twice.
foreach my $pair ([ 'a', 'b' ], [ 'b', 'c' ])
{
	my ($left, $right) = @$pair;
	$mesh->add_peer($left, $right);
	$mesh->add_peer($right, $left);
	$mesh->wait_for($left, "SELECT rounds > 0 FROM coord.peer_status WHERE peer = '$right'",
		't', "adding a peer makes $left contact $right at once", @deadline);
}

my $satisfied = q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 's'};
$mesh->sql('a', q{SELECT coord.state_record_satisfied('s', 1)});
$mesh->wait_for('b', $satisfied, '1', 'a commit is pushed to the peer at once', @deadline);
$mesh->wait_for('c', $satisfied, '1', 'what a peer learned it pushes on at once', @deadline);

# Many commits in a row: a push under way must not swallow the one after it.
$mesh->sql('a', join "\n", map { "SELECT coord.state_record_satisfied('s', 1);" } 1 .. 200);
$mesh->wait_for('c', $satisfied, '201', 'the last of many commits in a row is pushed too', @deadline);

$mesh->sql('c', q{BEGIN; SELECT coord.state_record_satisfied('s', 1000); ROLLBACK});
$mesh->sql('c', q{BEGIN; SELECT coord.state_add_constraint('t', 'x'); SELECT coord.state_add_constraint('u', 'x'); COMMIT});
$mesh->wait_for('a', q{SELECT count(*) FROM coord.state WHERE name IN ('t', 'u')}, '2',
	'a transaction is pushed as a whole', @deadline);
is($mesh->sql('a', $satisfied), '201', 'what is rolled back is not told');

# Acknowledgements follow the pushes, so nobody needs the timer to know where the others are.
$mesh->wait_for($_, 'SELECT bool_and(converged) FROM coord.convergence', 't',
	"node $_ knows of convergence without waiting for the timer", @deadline) foreach $mesh->names;

# ---- a peer that fails is tried again by the timer, not by every commit

my $nobody = PgTest::Link->new(1);
$nobody->cut;
$mesh->add_peer('a', 'nobody', port => $nobody->port);
$mesh->wait_for('a', q{SELECT failures > 0 FROM coord.peer_status WHERE peer = 'nobody'});
$mesh->sql('a', q{SELECT coord.state_record_satisfied('s', 1)}) foreach 1 .. 20;
$mesh->wait_for('b', $satisfied, '221', 'commits are pushed to the peers that answer', @deadline);
cmp_ok($mesh->sql('a', q{SELECT failures FROM coord.peer_status WHERE peer = 'nobody'}), '<', 5,
	'twenty commits do not mean twenty attempts to reach a peer that does not answer');

done_testing();
