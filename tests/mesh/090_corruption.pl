# Content that changed behind the back of the bookkeeping is found out by its digest, repaired by a
# full resync, and that once.

use strict;
use warnings;

use PgTest::Mesh;
use Test::More;

my $mesh = PgTest::Mesh->new(names => [ 'a', 'b', 'c' ], conf => "coord.gossip_interval = '100ms'");
$mesh->join_all;
$mesh->sql('a', q{SELECT coord.state_add_constraint('s' || i, 'id-' || j) FROM generate_series(1, 20) i, generate_series(1, 3) j});
$mesh->sql($_, q{SELECT coord.state_record_satisfied('s1', 10)}) foreach $mesh->names;
$mesh->converges('three nodes converge');

my $mismatches = 'SELECT sum(mismatches) FROM coord.convergence';
my $full_syncs = 'SELECT sum(full_syncs) FROM coord.peer_status';
my %syncs = map { $_ => $mesh->sql($_, $full_syncs) } $mesh->names;

# Neither xid nor local_xid say that something changed; the triggers do not see it either.
sub corrupt
{
	my ($name, $state, $value) = @_;
	$mesh->sql($name, 'SET session_replication_role = replica;'
		  . " UPDATE coord.state SET value = ($value)::coord.constraint_state WHERE name = '$state'");
	return;
}

my @cases = (
	[   'a constraint that vanished', 's2',
		q{jsonb_set(value::jsonb, '{constraints}', (value::jsonb->'constraints') - 'id-2')} ],
	[ 'a count that went down', 's1', q{jsonb_set(value::jsonb, '{satisfied,a}', '3')} ]);

foreach my $case (@cases)
{
	my ($what, $state, $value) = @$case;
	my $before = $mesh->sql('b', $mismatches);
	my $content = $mesh->content('b');
	corrupt('b', $state, $value);
	isnt($mesh->content('b'), $content, "$what: b holds something else than before");
	$mesh->wait_for('b', "SELECT sum(mismatches) > $before FROM coord.convergence", 't', "$what is found out and counted");
	$mesh->converges("after $what the nodes come to hold the same again");
	my $repaired = 0;
	$repaired += $mesh->sql($_, $full_syncs) - $syncs{$_} foreach $mesh->names;
	cmp_ok($repaired, '>', 0, 'by a full resync');
	cmp_ok($repaired, '<=', 12, 'at most two for each node and peer');

	# No resync goes on when all is well again.
	%syncs = map { $_ => $mesh->sql($_, $full_syncs) } $mesh->names;
	my $rounds = $mesh->sql('b', 'SELECT sum(rounds) FROM coord.peer_status');
	$mesh->wait_for('b', "SELECT sum(rounds) > $rounds + 30 FROM coord.peer_status");
	is($mesh->sql($_, $full_syncs), $syncs{$_}, "$_ is not resynced for ever") foreach $mesh->names;
	is($mesh->sql($_, 'SELECT bool_and(converged) FROM coord.convergence'), 't', "$_ stays converged") foreach $mesh->names;
}
is($mesh->sql($_, q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 's1'}), '30',
	"the count that went down is whole again on $_") foreach $mesh->names;

done_testing();
