# Two nodes cannot reach each other; the third relays. After healing only what is new travels.

use strict;
use warnings;

use PgTest::Link;
use PgTest::Mesh;
use Test::More;

my $mesh = PgTest::Mesh->new(names => [ 'a', 'b', 'c' ], conf => <<'CONF');
coord.gossip_interval = '100ms'
coord.peer_timeout = '500ms'
CONF
my %link = (
	ab => PgTest::Link->new($mesh->node('b')->port),
	ba => PgTest::Link->new($mesh->node('a')->port));
$mesh->add_peer('a', 'b', port => $link{ab}->port);
$mesh->add_peer('b', 'a', port => $link{ba}->port);
foreach my $name ('a', 'b')
{
	$mesh->add_peer($name, 'c');
	$mesh->add_peer('c', $name);
}
my $satisfied = q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 's'};
my $full_syncs = q{SELECT string_agg(peer || ' ' || full_syncs, ', ' ORDER BY peer) FROM coord.peer_status};

sub record { $mesh->sql($_, q{SELECT coord.state_record_satisfied('s', 1)}) foreach @_; return; }

record($mesh->names);
$mesh->converges('the mesh converges before the partition');
my %syncs_before = map { $_ => $mesh->sql($_, $full_syncs) } $mesh->names;

foreach my $how ('cut', 'hold')
{
	my $what = $how eq 'cut' ? 'cut off' : 'silent';
	my $base = $mesh->sql('a', $satisfied);
	$_->$how foreach values %link;
	$mesh->wait_for('a', q{SELECT reachable FROM coord.peer_status WHERE peer = 'b'}, 'f', "a sees that b is $what");
	$mesh->wait_for('b', q{SELECT reachable FROM coord.peer_status WHERE peer = 'a'}, 'f', "b sees that a is $what");

	record($mesh->names);
	$mesh->wait_for($_, $satisfied, $base + 3, "$_ has what all recorded, while a and b are $what") foreach $mesh->names;
	is($mesh->sql('a', q{SELECT converged FROM coord.convergence WHERE peer = 'b'}), 'f',
		"a does not call itself converged with b, which is $what");
	$mesh->wait_for('a', q{SELECT converged FROM coord.convergence WHERE peer = 'c'}, 't', 'and does with c, which is not');

	$_->heal foreach values %link;
	record('b');
	$mesh->converges("the mesh converges after a and b were $what");
	$mesh->wait_for('a', q{SELECT reachable FROM coord.peer_status WHERE peer = 'b'}, 't', 'b is reachable again');
}

# ---- the relay is not there: nothing can pass, and nobody claims it did

$_->cut foreach values %link;
$mesh->node('c')->stop;
my $base = $mesh->sql('a', $satisfied);
record('a', 'b');
$mesh->wait_for('a', q{SELECT bool_and(NOT reachable) FROM coord.peer_status}, 't', 'a sees that it is alone');
is($mesh->sql($_, $satisfied), $base + 1, "$_ alone has its own change only") foreach 'a', 'b';
is($mesh->sql($_, 'SELECT bool_or(converged) FROM coord.convergence'), 'f', "$_ alone is converged with nobody") foreach 'a', 'b';
cmp_ok($mesh->sql('a', q{SELECT lag_states FROM coord.peer_status WHERE peer = 'b'}), '==', 1, 'a shows what b lacks');
$mesh->node('c')->start;
$mesh->wait_for($_, $satisfied, $base + 2, "$_ has both changes once there is a relay") foreach $mesh->names;
$_->heal foreach values %link;
$mesh->converges('the mesh converges after all partitions');
is($mesh->sql($_, $full_syncs), $syncs_before{$_}, "$_ needed no full resync") foreach 'a', 'b';

# ---- the third is gone for good, having told of a commit above a transaction that was still open

my $open = $mesh->node('c')->background_psql('postgres');
$open->query_safe('BEGIN');
$open->query_safe('SELECT pg_current_xact_id()');
my $last = $mesh->sql('a', $satisfied) + 1;
record('c');
$mesh->wait_for($_, $satisfied, $last, "$_ has the last change of the third") foreach 'a', 'b';
$mesh->kill9('c');
eval { $open->quit };
my %of = (a => 'b', b => 'a');
foreach my $name ('a', 'b')
{
	$mesh->sql($name, q{SELECT coord.remove_peer('c')});
	is($mesh->content($name), $mesh->content($of{$name}), "$name has what $of{$name} has");
	$mesh->wait_for($name, 'SELECT bool_and(converged) FROM coord.convergence', 't',
		"$name and $of{$name} are converged, though nobody will ever say that the third had nothing more", timeout => 10);
}

done_testing();
