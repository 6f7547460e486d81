# Shared memory has room for so many leases: whoever waited for one and went away, by whatever way, has
# not taken its place for good.

use strict;
use warnings;

use PgTest::Mesh;
use POSIX ();
use Test::More;

my $room = 64;
my $mesh = PgTest::Mesh->new(names => ['a'], conf => "coord.lease_entries = $room");
my $node = $mesh->node('a');
$mesh->wait_for('a', 'SELECT coord.lease_memory_is_open()');
my $others = 5;
my $waves = 6;
my $size = 20;
$mesh->sql('a', sprintf q{SELECT count(coord.lease_acquire('waited for ' || n, 'a', '1 h')) FROM generate_series(1, %d) n;
SELECT count(coord.lease_acquire('other ' || n, 'a', '1 h')) FROM generate_series(1, %d) n}, $waves * $size, $others);

# A renewal in memory is not undone by a rollback, one in the table is.
sub kept_in_memory
{
	my $kept = 0;
	foreach my $n (1 .. $others)
	{
		my $expiry = "SELECT expires_at FROM coord.lease_status WHERE resource = 'other $n'";
		my $before = $mesh->sql('a', $expiry);
		$mesh->sql('a', "BEGIN; SELECT coord.lease_renew('other $n', 'a', 1, '1 h'); ROLLBACK");
		$kept++ if $mesh->sql('a', $expiry) ne $before;
	}
	return $kept;
}

sub wait_for_leases
{
	my ($first) = @_;
	foreach my $n ($first .. $first + $size - 1)
	{
		my $pid = fork // die "fork: $!";
		next if $pid;
		open STDERR, '>', '/dev/null' or POSIX::_exit(1);
		exec $node->installed_command('psql'), '-XAtq', '-d', $node->connstr('postgres') . ' application_name=waiter',
		  '-c', "SELECT coord.lease_acquire('waited for $n', 'b', '1 h', max_wait => '60 s')" or POSIX::_exit(1);
	}
	return;
}

my $waiting = q{FROM pg_stat_activity WHERE application_name = 'waiter' AND wait_event_type = 'Extension'};
foreach my $how ('cancel', 'terminate')
{
	foreach my $wave (0 .. $waves - 1)
	{
		wait_for_leases(1 + $wave * $size);
		$mesh->wait_for('a', "SELECT count(*) $waiting", $size);
		$mesh->sql('a', "SELECT pg_${how}_backend(pid) $waiting");
		1 while wait > 0;
	}
	# What is left of them ends a little after their sessions.
	$mesh->wait_for('a', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'waiter'}, '0');
	is(kept_in_memory(), $others, "after $how of those who waited, renewals of other leases find room");
	# Renewals that are not written yet need their place: begin anew.
	$mesh->node('a')->restart;
	$mesh->wait_for('a', 'SELECT coord.lease_memory_is_open()');
}

done_testing();
