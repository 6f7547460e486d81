# With an hour between two rounds of the timer, only the push at commit can have carried a change.

use strict;
use warnings;

use PgTest::Link;
use PgTest::Mesh;
use Test::More;

my $mesh = PgTest::Mesh->new(names => [ 'a', 'b', 'c' ], conf => "coord.gossip_interval = '1h'");
my @deadline = (timeout => 10);

$mesh->join_all;
foreach my $name ($mesh->names)
{
	$mesh->wait_for($name, 'SELECT bool_and(rounds > 0) FROM coord.peer_status', 't',
		"adding peers makes $name contact them at once", @deadline);
}

my $satisfied = q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 's'};
$mesh->sql('a', q{SELECT coord.state_record_satisfied('s', 1)});
$mesh->wait_for($_, $satisfied, '1', "a commit on a is pushed to $_ at once", @deadline) foreach 'b', 'c';

# Many commits in a row: a push under way must not swallow the one after it.
$mesh->sql('a', join "\n", map { "SELECT coord.state_record_satisfied('s', 1);" } 1 .. 200);
$mesh->wait_for('c', $satisfied, '201', 'the last of many commits in a row is pushed too', @deadline);

$mesh->sql('c', q{BEGIN; SELECT coord.state_record_satisfied('s', 1000); ROLLBACK});
$mesh->sql('c', q{BEGIN; SELECT coord.state_add_constraint('t', 'x'); SELECT coord.state_add_constraint('u', 'x'); COMMIT});
$mesh->wait_for('a', q{SELECT count(*) FROM coord.state WHERE name IN ('t', 'u')}, '2',
	'a transaction is pushed as a whole', @deadline);
is($mesh->sql('a', $satisfied), '201', 'what is rolled back is not told');

# ---- a peer that fails is tried again by the timer, not by every commit

my $nobody = PgTest::Link->new(1);
$nobody->cut;
$mesh->add_peer('a', 'nobody', port => $nobody->port);
$mesh->wait_for('a', q{SELECT failures > 0 FROM coord.peer_status WHERE peer = 'nobody'});
$mesh->sql('a', q{SELECT coord.state_record_satisfied('s', 1)}) foreach 1 .. 20;
$mesh->wait_for('b', $satisfied, '221', 'commits are pushed to the peers that answer', @deadline);
cmp_ok($mesh->sql('a', q{SELECT failures FROM coord.peer_status WHERE peer = 'nobody'}), '<', 5,
	'twenty commits do not mean twenty attempts to reach a peer that does not answer');

# ---- nor is the timer needed to notice that there is nothing to do any more

$mesh->sql('c', 'DROP EXTENSION pg_test');
$mesh->wait_for('c', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_test worker'}, '0',
	'DROP EXTENSION makes the worker leave, long before the timer', timeout => 15);

done_testing();
