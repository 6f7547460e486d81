# PostgreSQL 15, 16 and 18 are one mesh: what agents record on any of them has the same bytes on all,
# whichever is killed, and whoever leaves.

use strict;
use warnings;

use PgTest::Load;
use PgTest::Mesh;
use Test::More;

my %version = (a => 15, b => 16, c => 18);
my $mesh = PgTest::Mesh->new(conf => "coord.gossip_interval = '100ms'");
$mesh->add($_, install_path => $ENV{"SERVER_$version{$_}"} // die "SERVER_$version{$_} is not set") foreach sort keys %version;
foreach my $name ($mesh->names)
{
	is($mesh->sql($name, q{SELECT current_setting('server_version_num')::int / 10000}), $version{$name},
		"node $name is on PostgreSQL $version{$name}");
}
$mesh->join_all;

# ---- the same bytes

foreach my $name ($mesh->names)
{
	$mesh->sql($name, <<SQL);
SELECT coord.state_add_constraint('s', 'of-$name'), coord.state_add_constraint('s', 'shared'),
       coord.state_record_satisfied('s', 10), coord.state_record_violations('s', 3), coord.state_move('s', 1, -2);
SELECT coord.state_add_constraint('gone', 'x');
SELECT coord.state_remove_constraint('gone', 'x');
SELECT coord.state_add_constraint(E'odd ''name'' \\t\\\\ ä', E'odd "id" \\n ü');
SELECT coord.state_record_satisfied('many-' || n, n) FROM generate_series(1, 500) n;
SQL
}
$mesh->converges('three versions converge');

# What each computes from the same bytes: text, operators, hashes, aggregates, digests.
my %of = (
	'the text form' => q{SELECT value FROM coord.state WHERE name = 's'},
	'the totals' => q{SELECT sum(coord.constraint_satisfied(value)) FROM coord.state},
	'the hashes' => q{SELECT sum(hashtextextended(name, 1)), sum(coord.constraint_hash_extended(value, 1)) FROM coord.state},
	'the buckets of digests' => q{SELECT sum(bucket) FROM coord.state},
	'the merge of all states' => q{SELECT encode(coord.state_digest(coord.constraint_merge_agg(value)), 'hex') FROM coord.state},
	'the roster' => q{SELECT string_agg(format('%s %s %s', name, incarnation, status), ',' ORDER BY name) FROM coord.node},
	'the members' => q{SELECT string_agg(node || ' ' || role, ',' ORDER BY node) FROM coord.member});
foreach my $what (sort keys %of)
{
	my $expected = $mesh->sql('a', $of{$what});
	isnt($expected, '', "node a has $what");
	is($mesh->sql($_, $of{$what}), $expected, "node $_ has the same: $what") foreach 'b', 'c';
}

# ---- each is killed

my $total = q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 'load'};
# Written in the same transaction as the count, so it says what was committed, also where the answer was lost.
my $record = q{WITH entry AS (INSERT INTO ledger VALUES (1) RETURNING 1) }
  . q{SELECT 'ok' FROM coord.state_record_satisfied('load', (SELECT count(*) FROM entry))};
$mesh->sql($_, 'CREATE TABLE ledger (n int)') foreach $mesh->names;

sub recorded
{
	my $sum = 0;
	$sum += $mesh->sql($_, 'SELECT count(*) FROM ledger') foreach $mesh->names;
	return $sum;
}

foreach my $killed ($mesh->names)
{
	my %load = map { $_ => PgTest::Load->new($mesh->node($_), $record) } $mesh->names;
	$mesh->wait_for($_, 'SELECT count(*) > ' . $mesh->sql($_, 'SELECT count(*) FROM ledger') . ' + 50 FROM ledger')
	  foreach $mesh->names;
	$mesh->kill9($killed);
	my $acknowledged = grep { $_ eq 'ok' } $load{$killed}->stop;
	my ($other) = grep { $_ ne $killed } $mesh->names;
	my $before = $mesh->sql($other, $total);
	$mesh->wait_for($other, "SELECT ($total) > $before + 50", 't', "the others go on without PostgreSQL $version{$killed}");
	$mesh->restart_after_kill($killed);
	cmp_ok($mesh->sql($killed, 'SELECT count(*) FROM ledger'), '>=', $acknowledged, 'it has every commit it acknowledged');
	is(scalar(grep { $_ ne 'ok' } map { $load{$_}->stop } grep { $_ ne $killed } $mesh->names), 0, 'no session on the others saw an error');
	$mesh->wait_for($killed, 'SELECT coord.node_actor()', $killed, 'it goes on in its life');
	$mesh->converges('and all converge');
	is($mesh->sql($_, $total), recorded(), "node $_ has all that was committed, once") foreach $mesh->names;
}

# ---- one leaves

$mesh->sql('b', 'SELECT coord.node_leave()');
$mesh->wait_for($_, q{SELECT string_agg(peer, ',') FROM coord.convergence}, $_ eq 'a' ? 'c' : 'a', "$_ no longer has the node that left as a peer")
  foreach 'a', 'c';
is($mesh->sql($_, q{SELECT string_agg(node, ',' ORDER BY node) FROM coord.member}), 'a,c', "on $_ it is no member") foreach 'a', 'c';
$mesh->sql($_, $record) foreach 'a', 'c';
$mesh->converges('those that stay converge', 'a', 'c');
is($mesh->sql($_, $total), recorded(), "node $_ has all that was committed") foreach 'a', 'c';
is($mesh->sql('b', $total), recorded() - 2, 'the node that left keeps what it had');
$mesh->sql('b', 'DROP EXTENSION pg_test');

# ---- and one is added, on the newest version

$mesh->add('d', install_path => $ENV{SERVER_18});
foreach my $name ('a', 'c')
{
	$mesh->add_peer('d', $name);
	$mesh->add_peer($name, 'd');
}
$mesh->sql('d', q{SELECT coord.state_record_satisfied('s', 1)});
$mesh->converges('a new node gets everything', 'a', 'c', 'd');

done_testing();
