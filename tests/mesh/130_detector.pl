# Who is alive: crashes, one-way cuts, a paused machine, a node that leaves.

use strict;
use warnings;

use JSON::PP;
use PgTest::Link;
use PgTest::Mesh;
use Test::More;

my $mesh = PgTest::Mesh->new(names => [ 'a', 'b', 'c', 'd' ], conf => <<'CONF');
coord.gossip_interval = '200ms'
coord.peer_timeout = '500ms'
CONF
my $link = PgTest::Link->new($mesh->node('b')->port);
foreach my $here ($mesh->names)
{
	foreach my $peer (grep { $_ ne $here } $mesh->names)
	{
		$mesh->add_peer($here, $peer, "$here$peer" eq 'ab' ? (port => $link->port) : ());
	}
}
my $satisfied = q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 's'};

sub record { $mesh->sql($_, q{SELECT coord.state_record_satisfied('s', 1)}) foreach @_; return; }

sub state_is
{
	my ($here, $peer, $state, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $mesh->wait_for($here, "SELECT state FROM coord.peer_status WHERE peer = '$peer'", $state, $what);
}

sub all_alive
{
	my ($what, @names) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $alive = q{SELECT bool_and(state = 'alive') FROM coord.peer_status};
	return is_deeply([ grep { !$mesh->wait_for($_, $alive) } @names ], [], $what);
}

record($mesh->names);
$mesh->converges('the mesh converges');
all_alive('everybody is alive to everybody', $mesh->names);

# ---- a crash, told to who listens

my $listener = $mesh->node('a')->background_psql('postgres');
$listener->query_safe('LISTEN coord_node');
$mesh->kill9('d');
state_is($_, 'd', 'dead', "$_ sees that d is dead") foreach 'a', 'b', 'c';
is($mesh->sql('a', q{SELECT status FROM coord.node WHERE name = 'd'}), 'dead', 'the roster says so too');
like($mesh->sql('a', q{SELECT reason FROM coord.peer_status WHERE peer = 'd'}), qr/^silent for \d+\.\d s$/, 'and why');
cmp_ok($mesh->sql('a', q{SELECT phi FROM coord.peer_status WHERE peer = 'd'}), '>=', 10, 'phi is beyond the threshold by a quarter');
like($mesh->sql('a', 'SELECT reason FROM coord.health()'), qr/^peer "d" is dead: silent for \d+\.\d s; .*refused/, 'health() names it');

my $told = $listener->query_safe('SELECT 1');
my @payloads = map { decode_json($_) } $told =~ /with payload "(\{.*?\})"/g;
my $changes = join ', ', map { "$_->{node} $_->{previous} $_->{state}" } @payloads;
# Suspicion can be over before the next look.
like($changes, qr/^(?:d alive suspect, d suspect dead|d alive dead)$/, 'who listens is told of each change, once');
is_deeply([ sort keys %{ $payloads[0] } ], [qw(node phi previous reason state)], 'with phi and reason');

record('a', 'b', 'c');
$mesh->wait_for($_, $satisfied, 7, "$_ has what the three record without d") foreach 'a', 'b', 'c';

$mesh->restart_after_kill('d');
all_alive('d is back, and alive to everybody, as they are to it', $mesh->names);
$mesh->converges('the mesh converges after the crash');

# ---- one way only: a cannot call b, b can call a

$link->cut;
$mesh->wait_for('a', q{SELECT reachable FROM coord.peer_status WHERE peer = 'b'}, 'f', 'a cannot reach b');
record('b');
$mesh->wait_for('a', $satisfied, 8, 'what b records reaches a');
is($mesh->sql('a', q{SELECT state FROM coord.peer_status WHERE peer = 'b'}), 'alive', 'b is alive to a: it calls');
$mesh->wait_for('a', q{SELECT reason ~ 'peer "b" is not reached from here: ' FROM coord.health()}, 't', 'health() tells the two apart');
$link->heal;
$mesh->wait_for('a', q{SELECT reachable FROM coord.peer_status WHERE peer = 'b'}, 't', 'a reaches b again');

# ---- both ways: each hears of the other through the rest

my $far = PgTest::Link->new($mesh->node('a')->port);
$mesh->sql('b', sprintf q{ALTER SERVER coord_a OPTIONS (SET port '%s')}, $far->port);
$mesh->wait_for('b', q{SELECT reachable FROM coord.peer_status WHERE peer = 'a'}, 't', 'b calls a through a link');
$_->cut foreach $link, $far;
$mesh->wait_for($$_[0], "SELECT NOT reachable FROM coord.peer_status WHERE peer = '$$_[1]'", 't', "$$_[0] cannot reach $$_[1]")
  foreach [ 'a', 'b' ], [ 'b', 'a' ];
# Twice as long as d was silent when it was called dead.
$mesh->wait_for('a', q{SELECT clock_timestamp() - last_contact > interval '3 s' FROM coord.peer_status WHERE peer = 'b'}, 't',
	'a hears nothing from b itself');
is($mesh->sql($$_[0], "SELECT state FROM coord.peer_status WHERE peer = '$$_[1]'"), 'alive', "$$_[1] is alive to $$_[0], which hears of it through others")
  foreach [ 'a', 'b' ], [ 'b', 'a' ];
$_->heal foreach $link, $far;

# ---- a machine is paused for longer than others wait

my $accusations = qr/pg_test: peer "\w+" is (?:suspect|dead)/;
my %before = map { $_ => $mesh->logged($_, $accusations) } $mesh->names;
$mesh->suspend('c');
state_is($_, 'c', 'dead', "$_ sees that c does not go on") foreach 'a', 'b', 'd';
record('a');
$mesh->wait_for('d', $satisfied, 9, 'what a records reaches d meanwhile');
$mesh->resume('c');
all_alive('c is alive again, and so are the others to it', $mesh->names);
is($mesh->logged('c', $accusations), $before{c}, 'c did not hold its own pause against the others');
$mesh->converges('the mesh converges after the pause');

# ---- a node leaves: that is no death

$listener->query_safe('SELECT 1');
$mesh->sql('d', 'SELECT coord.node_leave()');
$mesh->wait_for('a', q{SELECT count(*) FROM coord.peer}, 2, 'a has removed d');
is($mesh->sql('a', q{SELECT status FROM coord.node WHERE name = 'd'}), 'left', 'd has left');
like($listener->query_safe('SELECT 1'), qr/with payload "\{"node":"d",.*"state":"left"\}"/, 'who listens is told');
record('b');
$mesh->wait_for('c', $satisfied, 10);
is($mesh->sql('c', q{SELECT status FROM coord.node WHERE name = 'd'}), 'left', 'and it does not come back through a third');
$listener->quit;

done_testing();
