# Nodes and their processes are killed while they gossip under load. What was committed is there
# afterwards, once.

use strict;
use warnings;

use PgTest::Load;
use PgTest::Mesh;
use Test::More;

my $mesh = PgTest::Mesh->new(names => [ 'a', 'b', 'c' ], conf => <<'CONF');
coord.gossip_interval = '100ms'
restart_after_crash = on
CONF
my $total = q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 'load'};
my $worker = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_test worker' AND datname = 'postgres'};
my $launcher = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_test launcher'};

# The ledger is written in the same transaction as the count, so it says what was committed, also
# where the answer was lost.
$mesh->sql($_, 'CREATE TABLE ledger (node text)') foreach $mesh->names;
$mesh->join_all;
my $record = q{WITH entry AS (INSERT INTO ledger VALUES (coord.node_name()) RETURNING 1)
SELECT 'ok' FROM coord.state_record_satisfied('load', (SELECT count(*) FROM entry))};
$record =~ s/\n/ /g;

sub ledgers
{
	my $sum = 0;
	$sum += $mesh->sql($_, 'SELECT count(*) FROM ledger') foreach $mesh->names;
	return $sum;
}

# ---- the whole server

my %load = map { $_ => PgTest::Load->new($mesh->node($_), $record) } $mesh->names;
my $of_c = q{SELECT coalesce(max((value::jsonb->'satisfied'->>'c')::bigint), 0) FROM coord.state WHERE name = 'load'};
$mesh->wait_for('a', "SELECT coord.constraint_satisfied(value) > 100 AND ($of_c) > 20 FROM coord.state WHERE name = 'load'");
# A clock far ahead of the wall: after the crash the wall alone cannot make stamps larger.
$mesh->sql('c', q{SELECT coord.hlc_observe(coord.hlc(clock_timestamp() + interval '4 min', 0))});
my $stamp = $mesh->sql('c', q{SELECT coord.max(coord.hlc_now()) FROM generate_series(1, 1000)});
my $acknowledged_at_kill = $mesh->sql('c', 'SELECT count(*) FROM ledger');

$mesh->kill9('c');
my $acknowledged = grep { $_ eq 'ok' } $load{c}->stop;
my $before = $mesh->sql('a', $total);
$mesh->wait_for('b', "SELECT coord.constraint_satisfied(value) > $before + 50 FROM coord.state WHERE name = 'load'",
	't', 'the others go on without the killed node');
$mesh->restart_after_kill('c');

is($mesh->sql('c', "SELECT coord.hlc_now() OPERATOR(coord.>) '$stamp'"), 't', 'no stamp is given out twice across a crash');
my $committed = $mesh->sql('c', 'SELECT count(*) FROM ledger');
cmp_ok($committed, '>=', $acknowledged, 'the killed node still has every commit it acknowledged');
cmp_ok($committed, '>=', $acknowledged_at_kill, 'and every commit that was visible');
my $lost = grep { $_ ne 'ok' } map { $load{$_}->stop } 'a', 'b';
is($lost, 0, 'no session on the others saw an error');
$mesh->converges('the mesh converges after the crash of a node');
is($mesh->sql($_, $total), ledgers(), "node $_ has all that was committed, once") foreach $mesh->names;

# ---- processes of one server; the server restarts itself, as after any crash

foreach my $case ([ 'the worker', $worker ], [ 'the launcher', $launcher ])
{
	my ($what, $query) = @$case;
	$mesh->wait_for('a', "SELECT EXISTS ($query)");
	my $started = $mesh->sql('a', 'SELECT pg_postmaster_start_time()');
	my $load = PgTest::Load->new($mesh->node('a'), $record);
	$mesh->wait_for('a', 'SELECT count(*) > ' . $mesh->sql('a', 'SELECT count(*) FROM ledger') . ' + 20 FROM ledger');
	my $pid = $mesh->sql('a', $query);
	kill 'KILL', $pid;
	# Its sessions are gone too.
	$load->stop;
	$mesh->wait_for('a', "SELECT pid <> $pid FROM ($query) q", 't', "$what comes back after kill -9");
	is($mesh->sql('a', 'SELECT pg_postmaster_start_time()'), $started, 'the server restarted itself');
	$mesh->sql('a', $record);
	$mesh->converges("gossip goes on after kill -9 of $what");
	is($mesh->sql('b', $total), ledgers(), 'and nothing committed is lost');
}

# ---- terminated by an administrator

# What happens to the worker when its launcher is another one by then is part of it.
foreach my $case ([ 'worker', $worker ], [ 'launcher', $launcher ], [ 'worker', $worker ])
{
	my ($what, $query) = @$case;
	$mesh->wait_for('a', "SELECT EXISTS ($query)");
	my $pid = $mesh->sql('a', $query);
	$mesh->sql('a', "SELECT pg_terminate_backend($pid)");
	$mesh->wait_for('a', "SELECT pid <> $pid FROM ($query) q", 't', "a terminated $what is started again", timeout => 15);
	$mesh->sql('a', $record);
	$mesh->converges("gossip goes on after the $what was terminated");
	is($mesh->sql('c', $total), ledgers(), 'and nothing committed is lost');
}

done_testing();
