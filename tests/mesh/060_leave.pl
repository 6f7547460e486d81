# A node leaves the mesh: both sides forget how to reach each other, nobody else notices, and it may
# come back.

use strict;
use warnings;

use PgTest::Load;
use PgTest::Mesh;
use Test::More;

# Rounds follow each other closely, so that some are always under way while a node leaves.
my $mesh = PgTest::Mesh->new(names => [ 'a', 'b', 'c' ], conf => "coord.gossip_interval = '10ms'");
my $record = q{SELECT coord.state_record_satisfied('s', 1)};
my $servers = q{SELECT count(*) FROM pg_foreign_server WHERE srvname = 'coord_%s'};
my $epoch = 'SELECT config_epoch FROM coord.local_node';

$mesh->join_all;
$mesh->sql($_, $record) foreach $mesh->names;
$mesh->converges('three nodes converge');
my %epoch_before = map { $_ => $mesh->sql($_, $epoch) } $mesh->names;

foreach my $turn (1 .. 3)
{
	my @loads = map { PgTest::Load->new($mesh->node($_), $record) } 'a', 'b';
	$mesh->sql('c', 'SELECT coord.node_leave()');
	is($mesh->sql('c', 'SELECT count(*) FROM coord.peer'), '0', "turn $turn: the node that left has no peers");
	is($mesh->sql('c', q{SELECT count(*) FROM pg_user_mappings}), '0', 'nor their credentials');
	$mesh->wait_for($_, sprintf($servers, 'c'), '0', "$_ no longer has it as a peer", timeout => 20) foreach 'a', 'b';
	# A round that was under way may come after the farewell. More rounds: it would show by now.
	$mesh->wait_for($_, 'SELECT sum(rounds) > ' . $mesh->sql($_, 'SELECT sum(rounds) FROM coord.peer_status') . ' + 5 FROM coord.peer_status')
	  foreach 'a', 'b';
	is($mesh->sql($_, q{SELECT status FROM coord.node WHERE name = 'c'}), 'left', "on $_ its status is left") foreach $mesh->names;
	is($mesh->sql($_, q{SELECT string_agg(node, ',' ORDER BY node) FROM coord.member}), 'a,b', "on $_ it is no member") foreach 'a', 'b';
	$_->stop foreach @loads;
	foreach my $name ('a', 'b')
	{
		my $now = $mesh->sql($name, $epoch);
		cmp_ok($now, '>', $epoch_before{$name}, "$name has a higher config epoch");
	}
	$mesh->converges('those that stay converge without it', 'a', 'b');

	# It goes on alone, and brings what it did when it comes back.
	$mesh->sql('c', $record);
	is($mesh->sql('c', 'SELECT count(*) FROM coord.convergence'), '0', 'the node that left is in convergence with nobody');
	foreach my $name ('a', 'b')
	{
		$mesh->add_peer('c', $name);
		$mesh->add_peer($name, 'c');
	}
	$mesh->converges('it joins again and all converge');
	is($mesh->sql($_, q{SELECT string_agg(name || ' ' || status, ',' ORDER BY name) FROM coord.node}),
		'a alive,b alive,c alive', "on $_ all are alive") foreach $mesh->names;
	%epoch_before = map { $_ => $mesh->sql($_, $epoch) } $mesh->names;
}

# ---- one side only

$mesh->sql('a', q{SELECT coord.remove_peer('b')});
$mesh->sql('b', q{SELECT coord.remove_peer('a')});
$mesh->sql('a', $record);
$mesh->converges('two that are no peers of each other converge through the third');
is($mesh->sqlstate('a', q{SELECT coord.remove_peer('b')}), '42704', 'a peer can be removed once');

# ---- a peer that cannot be told does not keep a node from leaving

$mesh->node('b')->stop;
my ($status, undef, $warning) = $mesh->node('c')->psql('postgres', 'SELECT coord.node_leave()');
is($status, 0, 'a node leaves although a peer is down');
like($warning, qr/WARNING:  peer "b" was not told/, 'and says which peer was not told');
$mesh->wait_for('a', sprintf($servers, 'c'), '0', 'the others are told');
$mesh->node('b')->start;
$mesh->wait_for('b', q{SELECT reachable FROM coord.peer_status WHERE peer = 'c'}, 't',
	'the one that was not told still reaches it: remove_peer is for that');
is($mesh->sql('c', q{SELECT status FROM coord.node WHERE name = 'c'}), 'left', 'though it knows itself that it has left');

done_testing();
