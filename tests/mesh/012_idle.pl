# A mesh with nothing to say: a round costs the ping, no rows, no transaction log.

use strict;
use warnings;

use PgTest::Mesh;
use Test::More;

# What writes to the log by itself is off: autovacuum, and with wal_level minimal the background
# writer's list of running transactions. Pages are not logged for hint bits either.
my $mesh = PgTest::Mesh->new(names => [ 'a', 'b' ], conf => <<'CONF');
coord.gossip_interval = '50ms'
wal_level = minimal
max_wal_senders = 0
wal_log_hints = off
autovacuum = off
checkpoint_timeout = 1h
CONF
$mesh->join_all;
my %peer = (a => 'b', b => 'a');

# Waits for so many rounds of both nodes.
sub pass_rounds
{
	my ($count) = @_;
	my %from = map { $_ => $mesh->sql($_, 'SELECT sum(rounds) FROM coord.peer_status') } $mesh->names;
	$mesh->wait_for($_, "SELECT sum(rounds) >= $from{$_} + $count FROM coord.peer_status") foreach $mesh->names;
	return;
}

# Bytes per idle round; each node's counters have the rounds of both directions.
sub idle_bytes
{
	my $counters = 'SELECT bytes_in + bytes_out FROM coord.peer_status';
	my $rounds = 'SELECT rounds FROM coord.peer_status';
	my @before = ($mesh->sql('a', $counters), $mesh->sql('a', $rounds) + $mesh->sql('b', $rounds));
	pass_rounds(40);
	my @after = ($mesh->sql('a', $counters), $mesh->sql('a', $rounds) + $mesh->sql('b', $rounds));
	return ($after[0] - $before[0]) / ($after[1] - $before[1]);
}

$mesh->sql('a', q{SELECT coord.state_record_satisfied('first', 1)});
$mesh->converges('two nodes converge');
pass_rounds(5);
my $bytes_of_one = idle_bytes();

$mesh->sql('a', q{SELECT coord.state_add_constraint('many-' || i, repeat('x', 200)) FROM generate_series(1, 500) i});
$mesh->converges('they converge with many states');
pass_rounds(5);

my $rows = 'SELECT rows_in, rows_out, full_syncs FROM coord.peer_status';
my %rows_before = map { $_ => $mesh->sql($_, $rows) } $mesh->names;
my $bytes_of_many = idle_bytes();
is($mesh->sql($_, $rows), $rows_before{$_}, "idle rounds of $_ move no row") foreach $mesh->names;
cmp_ok($bytes_of_many, '<', $bytes_of_one + 64, 'an idle round costs the same with one state and with 501');
note(sprintf 'bytes per idle round: %.0f and %.0f', $bytes_of_one, $bytes_of_many);

# ---- the transaction log

$mesh->sql($_, 'CHECKPOINT') foreach $mesh->names;
pass_rounds(5);
my $position = 'SELECT pg_current_wal_insert_lsn()';
my %position_before = map { $_ => $mesh->sql($_, $position) } $mesh->names;
pass_rounds(40);
foreach my $name ($mesh->names)
{
	my $now = $mesh->sql($name, $position);
	is($now, $position_before{$name}, "idle rounds of $name write no transaction log") or show_log($name, $position_before{$name}, $now);
}

sub show_log
{
	my ($name, $from, $to) = @_;
	my $records = "SELECT string_agg(resource_manager || ' ' || record_type || ' ' || description, E'\n')"
	  . " FROM pg_get_wal_records_info('$from', '$to')";
	$mesh->node($name)->psql('postgres', "CREATE EXTENSION pg_walinspect; $records", stdout => \my $out, stderr => \my $err);
	diag($out || $err);
	return;
}

# ---- and when a little is said, only that is said

my $in = $mesh->sql('b', 'SELECT rows_in FROM coord.peer_status');
$mesh->sql('a', q{SELECT coord.state_add_constraint('many-' || i, 'y') FROM generate_series(1, 10) i});
$mesh->converges('they converge after ten changes');
# Both directions can bring a row in the same moment.
cmp_ok($mesh->sql('b', 'SELECT rows_in FROM coord.peer_status') - $in, '<=', 20, 'ten changes among 501 states carry those ten');

done_testing();
