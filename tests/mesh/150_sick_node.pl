# One node is sick, or the way to it is; the others go on, and it does once it is well.

use strict;
use warnings;

use IO::Socket::UNIX;
use PgTest::Link;
use PgTest::Mesh;
use Test::More;

my $mesh = PgTest::Mesh->new(names => [ 'a', 'b', 'c' ], conf => <<'CONF');
coord.gossip_interval = '100ms'
coord.peer_timeout = '2s'
CONF
my $link = PgTest::Link->new($mesh->node('b')->port);
$mesh->sql('b', 'CREATE ROLE gossiper LOGIN IN ROLE coord_peer');
$mesh->add_peer('a', 'b', port => $link->port, user => 'gossiper');
$mesh->add_peer('c', 'b', user => 'gossiper');
$mesh->add_peer(@$_) foreach [ 'a', 'c' ], [ 'b', 'a' ], [ 'b', 'c' ], [ 'c', 'a' ];
my $satisfied = q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 's'};
my $recorded = 0;

sub record
{
	foreach (@_) { $mesh->sql($_, q{SELECT coord.state_record_satisfied('s', 1)}); $recorded++; }
	return;
}

sub everybody_has_it
{
	my ($what, @names) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is_deeply([ grep { !$mesh->wait_for($_, $satisfied, $recorded) } @names ], [], $what);
}

record($mesh->names);
$mesh->converges('the mesh converges');

# ---- a slow link

$link->slow;
my $rounds = q{SELECT string_agg(rounds::text, ' ' ORDER BY peer) FROM coord.peer_status};
my ($slow, $fast) = split / /, $mesh->sql('a', $rounds);
record('a');
everybody_has_it('a slow link delays nobody else', 'a', 'c');
$mesh->wait_for('a', "SELECT rounds > $fast + 20 FROM coord.peer_status WHERE peer = 'c'");
($slow) = map { $_ - $slow } split / /, $mesh->sql('a', $rounds);
cmp_ok($slow, '<', 10, 'rounds with c do not wait for rounds with b');
everybody_has_it('and b has it too', 'b');

# ---- answers do not pass

$link->heal;
$mesh->wait_for('a', q{SELECT reachable FROM coord.peer_status WHERE peer = 'b'}, 't');
$mesh->converges('the mesh converges after the slow link');
$link->mute;
record('a');
everybody_has_it('what a records reaches b, whether it hears so or not', $mesh->names);
$mesh->wait_for('a', q{SELECT reachable FROM coord.peer_status WHERE peer = 'b'}, 'f', 'a gets no answer from b');
like($mesh->sql('a', q{SELECT last_error FROM coord.peer_status WHERE peer = 'b'}), qr/no answer within 2000 ms/, 'and says so');
record('b');
everybody_has_it('b tells a itself', $mesh->names);
$link->heal;
$mesh->converges('the mesh converges after the silence');

# ---- all connections of b are in use

my $administrator = $mesh->node('b')->background_psql('postgres');
my @sessions;

# A session that does nothing: the packet that begins one, and trust does the rest.
sub fill
{
	my $path = sprintf '%s/.s.PGSQL.%d', $mesh->node('b')->host, $mesh->node('b')->port;
	my $parameters = join("\0", user => 'gossiper', database => 'postgres') . "\0\0";
	foreach (1 .. 70)
	{
		my $socket = IO::Socket::UNIX->new(Peer => $path) or next;
		syswrite $socket, pack('NN', 8 + length $parameters, 196608) . $parameters;
		push @sessions, $socket;
	}
	return;
}

# The peers' own connections end a little after they are told to, and the peers come back at once.
my $unreachable = q{SELECT NOT reachable FROM coord.peer_status WHERE peer = 'b'};
my $deadline = time + 60;
while (time < $deadline && grep { $mesh->sql($_, $unreachable) ne 't' } 'a', 'c')
{
	fill();
	$administrator->query_safe(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pg_test gossip'});
	fill() foreach 1 .. 3;
}
foreach my $name ('a', 'c')
{
	$mesh->wait_for($name, q{SELECT reachable FROM coord.peer_status WHERE peer = 'b'}, 'f', "$name is not let in by b");
	like($mesh->sql($name, q{SELECT last_error FROM coord.peer_status WHERE peer = 'b'}), qr/^.*53300: .*(?:too many clients|remaining connection slots)/,
		'and says why');
	is($mesh->sql($name, q{SELECT state FROM coord.peer_status WHERE peer = 'b'}), 'alive', "b is alive to $name");
}
record('a', 'c');
is($administrator->query_safe('SELECT count(*) > 0 FROM coord.state'), 't', 'who is in b works on');
$administrator->query_safe(q{SELECT coord.state_record_satisfied('s', 1)});
$recorded++;
everybody_has_it('what each records reaches the others: b calls them', 'a', 'c');
$administrator->quit;
@sessions = ();
$mesh->wait_for($_, q{SELECT reachable FROM coord.peer_status WHERE peer = 'b'}, 't', "$_ is let in again") foreach 'a', 'c';
$mesh->converges('the mesh converges after the crowd');

# ---- the disk of a node is full

SKIP:
{
	my $disk = $ENV{SMALL_DISK};
	skip 'no small file system could be mounted', 8 unless $disk;
	$mesh->add('d', folder => $disk, conf => <<'CONF');
max_wal_size = 8MB
min_wal_size = 2MB
wal_keep_size = 0
max_slot_wal_keep_size = 1MB
CONF
	foreach my $name ('a', 'b', 'c')
	{
		$mesh->add_peer('d', $name);
		$mesh->add_peer($name, 'd');
	}
	record('d');
	$mesh->converges('a fourth node joins, on a small disk');

	# Until nothing more fits: in a table of the user's, in one page steps, and in a file.
	system("dd if=/dev/zero of=$disk/filler bs=4k 2>/dev/null");
	my ($written, $refusal) = (0, '');
	while (!$refusal && $written < 10_000)
	{
		my (undef, undef, $error) = $mesh->node('d')->psql('postgres',
			q{SELECT coord.state_add_constraint('big-' || gen_random_uuid(), repeat(md5(random()::text), 20)) FROM generate_series(1, 100)});
		$refusal = $error;
		$written += 100;
	}
	like($refusal, qr/No space left on device|server closed the connection|could not connect|not yet accepting|in recovery mode|connection to server/, 'the disk of d is full');
	record('a', 'b', 'c');
	$mesh->sql('a', q{SELECT coord.state_add_constraint('for-d-' || i, repeat(md5(i::text), 20)) FROM generate_series(1, 2000) i});
	everybody_has_it('the others go on', 'a', 'b', 'c');
	$mesh->wait_for($_, q{SELECT bool_and(converged) FROM coord.convergence WHERE peer <> 'd'}, 't', "$_ is converged with the others") foreach 'a', 'b', 'c';

	unlink "$disk/filler";
	# A server that could not write its transaction log has stopped.
	my $node = $mesh->node('d');
	if (!eval { $node->psql('postgres', 'SELECT 1') == 0 })
	{
		$node->stop('immediate', fail_ok => 1);
		$mesh->restart_after_kill('d');
	}
	everybody_has_it('d has everything once there is room', 'd');
	$mesh->converges('the mesh converges after the full disk');
}

done_testing();
