# A worker is in nobody's way: not when the server stops, not when the extension or the database goes,
# whatever its peers do at that moment.

use strict;
use warnings;

use IPC::Run ();
use PgTest::Link;
use PgTest::Load;
use PgTest::Mesh;
use Test::More;
use Time::HiRes qw(time);

# Peers get the longest time allowed, so that nothing here ends because a peer's time was up. Without streams, with
# which PostgreSQL does not drop a database.
my $mesh = PgTest::Mesh->new(names => [ 'a', 'b' ], conf => <<'CONF');
wal_level = replica
coord.gossip_interval = '20ms'
coord.peer_timeout = '60s'
CONF
my ($left, $right) = map { $mesh->node($_) } 'a', 'b';
my $silent = PgTest::Link->new($right->port);
$silent->hold;
my $black_hole = PgTest::Link->black_hole;
my $workers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_test worker' AND datname = '%s'};

sub took
{
	my ($limit, $what, $work) = @_;
	my $start = time;
	$work->();
	my $seconds = time - $start;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	cmp_ok($seconds, '<', $limit, $what);
	note(sprintf '%s: %.2f s', $what, $seconds);
	return;
}

sub wait_until
{
	my ($condition, $what, $limit) = @_;
	my $deadline = time + ($limit // 30);
	until ($condition->())
	{
		die "waited in vain: $what" if time > $deadline;
		select undef, undef, undef, 0.02;
	}
	return;
}

# ---- stop, while one peer accepts and never answers and another swallows packets

my %held = (silent => $silent, hole => $black_hole);
foreach my $name (sort keys %held)
{
	$mesh->add_peer('a', $name, port => $held{$name}->port);
}
wait_until(sub { $silent->count > 0 }, 'the silent peer is asked');
my $session = IPC::Run::start(
	[ $left->installed_command('psql'), '-XAtq', '-d', $left->connstr('postgres'), '-c', q{SELECT coord.gossip_round('hole')} ],
	'>', \my $out, '2>', \my $err);
$mesh->wait_for('a', q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%gossip_round(''hole%' AND pid <> pg_backend_pid()}, '1');
took(3, 'a server whose peers do not answer stops in under 3 s', sub { $left->stop('fast') });
$session->finish;
$left->start;
wait_until(sub { $silent->count > 1 }, 'the silent peer is asked again');
took(3, 'and restarts as quickly', sub { $left->restart });

# ---- settings

$mesh->add_peer('a', 'b');
$mesh->add_peer('b', 'a');
$mesh->wait_for('a', q{SELECT rounds > 2 FROM coord.peer_status WHERE peer = 'b'}, 't', 'peers that do not answer hold up nobody else');
$mesh->sql('b', q{ALTER SYSTEM SET coord.gossip_interval = '1h'});
$right->reload;
my $of_b = q{SELECT rounds FROM coord.peer_status WHERE peer = 'a'};
my $last = -1;
# One round may be under way still. Ten former intervals without any show that there is an hour now.
wait_until(sub { my $seen = $last; $last = $mesh->sql('b', "SELECT pg_sleep(0.2); $of_b"); $last =~ s/\s//g; $seen == $last },
	'the longer interval is in force');
pass('a longer gossip_interval takes effect without a restart');
$mesh->sql('b', q{ALTER SYSTEM SET coord.gossip_interval = '20ms'});
$right->reload;
$mesh->wait_for('b', "SELECT rounds > $last + 5 FROM coord.peer_status WHERE peer = 'a'", 't',
	'a shorter gossip_interval takes effect at once, not when the longer one has passed', timeout => 10);

$right->restart;

# ---- CREATE DATABASE

took(15, 'databases are created from template1 while workers run', sub { $left->safe_psql('postgres', "CREATE DATABASE other$_") foreach 1 .. 3 });
$left->restart;
took(10, 'and right after a start, when each database is looked at', sub { $left->safe_psql('postgres', 'CREATE DATABASE other4') });

# ---- two nodes on one server

$left->safe_psql('other1', q{CREATE EXTENSION pg_test});
$left->safe_psql('other1', q{SELECT coord.node_init('o')});
$left->safe_psql('other1', sprintf q{SELECT coord.add_peer('a', '%s')}, $mesh->conninfo('a'));
$mesh->sql('a', sprintf q{SELECT coord.add_peer('o', '%s')}, $mesh->conninfo('a', dbname => 'other1'));
$mesh->sql('a', q{SELECT coord.state_record_satisfied('s', 1)});
$left->safe_psql('other1', q{SELECT coord.state_record_satisfied('s', 2)});
ok($left->poll_query_until('other1', q{SELECT coord.constraint_satisfied(value) = 3 FROM coord.state WHERE name = 's'}),
	'two nodes of one server gossip with each other');
$mesh->wait_for('a', q{SELECT converged FROM coord.convergence WHERE peer = 'o'}, 't', 'and know that they have converged');

# ---- DROP DATABASE

$left->safe_psql('other1', sprintf q{SELECT coord.add_peer('silent', '%s')}, $mesh->conninfo('b', port => $silent->port));
my $load = PgTest::Load->new($left, q{SELECT coord.state_record_satisfied('s', 1)}, 'other1');
$mesh->wait_for('a', sprintf($workers, 'other1'), '1');
is($mesh->sqlstate('a', 'DROP DATABASE other1'), '55006', 'plain DROP DATABASE of a node says that the database is in use');
took(5, 'DROP DATABASE WITH (FORCE) takes a node with a busy worker away at once',
	sub { $left->safe_psql('postgres', 'DROP DATABASE other1 WITH (FORCE)') });
$load->stop;
$mesh->wait_for('a', sprintf($workers, 'other1'), '0', 'its worker is gone');
$mesh->wait_for('a', q{SELECT reachable FROM coord.peer_status WHERE peer = 'o'}, 'f', 'the other node of the server sees that it is gone');

$mesh->wait_for('a', q{SELECT converged FROM coord.convergence WHERE peer = 'b'}, 't',
	'those that stay converge, though the one that is gone left its last change half told', timeout => 10)
  or diag(map { "$_: " . $mesh->sql($_, q{SELECT string_agg(format('%s holds %s, ceiling %s', node, frontier, ceiling), '; ') FROM coord.peer_cursor}) . "\n" } 'a', 'b');

$left->safe_psql('other2', q{CREATE EXTENSION pg_test});
$left->safe_psql('other2', q{SELECT coord.node_init('p')});
$mesh->wait_for('a', sprintf($workers, 'other2'), '1', 'another database becomes a node and has a worker');
$left->safe_psql('other2', 'DROP EXTENSION pg_test');
$mesh->wait_for('a', sprintf($workers, 'other2'), '0', 'without the extension the worker leaves');
took(6, 'then plain DROP DATABASE works', sub { $left->safe_psql('postgres', 'DROP DATABASE other2') });

# ---- DROP EXTENSION with the worker busy

foreach my $turn (1 .. 3)
{
	my @loads = map { PgTest::Load->new($_, q{SELECT coord.state_record_satisfied('s', 1)}) } $left, $right;
	$mesh->wait_for('b', sprintf($workers, 'postgres'), '1');
	# A worker that finds its tables locked, and then finds them again.
	is(persistently('BEGIN; DROP EXTENSION pg_test; ROLLBACK'), '', "DROP EXTENSION can be rolled back, turn $turn");
	$mesh->sql('b', q{SELECT coord.state_record_satisfied('s', 1)});
	is(persistently('DROP EXTENSION pg_test'), '', "DROP EXTENSION works with peers and a busy worker, turn $turn");
	$_->stop foreach @loads;
	$mesh->wait_for('b', sprintf($workers, 'postgres'), '0', 'the worker leaves with it');
	is($mesh->sql('b', 'SELECT (SELECT count(*) FROM pg_foreign_server), (SELECT count(*) FROM pg_user_mapping)'),
		'0|0', 'servers and user mappings of the peers are gone');
	is($mesh->sql('b', q{SELECT count(*) FROM pg_depend WHERE refclassid = 'pg_namespace'::regclass AND refobjid = 'coord'::regnamespace}),
		'0', 'and all that was in the schema');

	$mesh->sql('b', 'CREATE EXTENSION pg_test');
	joins_anew("b$turn");
}

# So quickly that the worker cannot have noticed that it was away.
foreach my $turn (4 .. 6)
{
	is(persistently("BEGIN; DROP EXTENSION pg_test; CREATE EXTENSION pg_test; SELECT coord.node_init('b$turn'); COMMIT"),
		'', "the extension is made anew in one transaction, turn $turn");
	joins_anew("b$turn");
}

# DROP EXTENSION locks one object after the other, and so can meet a session that records halfway:
# PostgreSQL then ends one of the two, and an administrator repeats.
sub persistently
{
	my ($query) = @_;
	my $sqlstate;
	foreach (1 .. 20)
	{
		$sqlstate = $mesh->sqlstate('b', $query);
		last if $sqlstate ne '40P01';
	}
	return $sqlstate;
}

# A new node; its old name belongs to the old one for ever.
sub joins_anew
{
	my ($name) = @_;
	$mesh->sql('b', "SELECT coord.node_init('$name')");
	$mesh->wait_for('b', sprintf($workers, 'postgres'), '1', 'the extension made anew has a worker');
	$mesh->add_peer('b', 'a');
	$mesh->sql('a', sprintf q{SELECT coord.add_peer('%s', '%s')}, $name, $mesh->conninfo('b'));
	$mesh->wait_for('b', q{SELECT count(*) FROM coord.state WHERE name = 's'}, '1', 'it has what the mesh has', timeout => 20);
	# A peer that the worker of the old extension did not know.
	my $asked = $silent->accepted;
	$mesh->add_peer('b', 'silent', port => $silent->port);
	ok(eval { wait_until(sub { $silent->accepted > $asked }, 'the new peer is asked', 10); 1 }, 'its worker asks the new peers');
	# The old one is no peer any more; the mesh is left to those that are there.
	$mesh->sql('a', "SELECT coord.remove_peer('$name')");
	return;
}

done_testing();
