
=head1 NAME

PgTest::Lease - what tests of leases share

=head1 SYNOPSIS

  use PgTest::Lease qw(ahead refusal session stop_and_wait);

  $mesh->sql('a', ahead(60) . q{SELECT coord.lease_acquire('job', 'b', '30 s')});
  like(refusal($mesh->node('a'), q{SELECT coord.lease_acquire('job', 'b', '30 s')}), qr/^55P03: lease "job" is held/);

Tests move the lease clock of their session, they do not sleep.

=cut

package PgTest::Lease;

use strict;
use warnings;

use Exporter 'import';
use Time::HiRes qw(sleep time);

our @EXPORT_OK = qw(ahead refusal session pid_of answer stop_and_wait stop_worker wait_until);

=head1 FUNCTIONS

=head2 ahead($seconds)

A statement: from here on this session takes the lease clock to be so far ahead, or back.

=cut

sub ahead { return sprintf 'SET coord.clock_offset = %d; ', 1000 * $_[0]; }

=head2 refusal($node, $query, $dbname)

SQLSTATE, message, DETAIL and HINT that the query fails with; empty when it does not.

=cut

sub refusal
{
	my ($node, $query, $dbname) = @_;
	my $err = '';
	$node->psql($dbname // 'postgres', $query, stderr => \$err, extra_params => [ '-v', 'VERBOSITY=verbose' ], timeout => 60);
	return _tidy($err);
}

sub _tidy
{
	my ($err) = @_;
	return '' unless $err =~ s/^.*?(?:ERROR|FATAL):  //s;
	$err =~ s/^(?:LOCATION|STATEMENT|CONTEXT|LINE \d+|SCHEMA|TABLE|CONSTRAINT).*\n?//mg;
	return $err;
}

=head2 session($node), pid_of($session)

A session that goes on after an error; the process id of its backend.

=cut

sub session { return $_[0]->background_psql('postgres', on_error_stop => 0); }

sub pid_of { return $_[0]->query_safe('SELECT pg_backend_pid()'); }

=head2 answer($session, $query)

What the session prints, results first, then what it was refused.

=cut

sub answer
{
	my ($session, $query) = @_;
	my $result = $session->query("\\set VERBOSITY verbose\n$query");
	my $refused = _tidy($session->{stderr});
	$session->{stderr} = '';
	return join "\n", grep { length } $result, $refused;
}

=head2 stop_and_wait($pid)

SIGSTOP, and returns when the process has stopped.

=cut

sub stop_and_wait
{
	my ($pid) = @_;
	kill 'STOP', $pid or die "no process $pid";
	wait_until("process $pid stops", sub {
		open my $stat, '<', "/proc/$pid/stat" or die "no process $pid";
		return <$stat> =~ /^\d+ \(.*\) T/;
	});
	return;
}

=head2 stop_worker($node)

Stops the worker of a node while it waits for something to do: else others could wait for what it holds, be it only
a lock in shared memory. Returns its process.

=cut

sub stop_worker
{
	my ($node) = @_;
	my $pid = $node->safe_psql('postgres', 'SELECT coord.gossip_worker()');
	wait_until('the worker stops while it has nothing to do', sub {
		stop_and_wait($pid);
		my $timed_out = 0;
		my (undef, $waits) = $node->psql('postgres', "SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid",
			timeout => 5, timed_out => \$timed_out);
		return 1 if !$timed_out && $waits eq 't';
		kill 'CONT', $pid;
		return 0;
	});
	return $pid;
}

=head2 wait_until($what, $condition)

Asks again until the condition holds, for up to 60 s; dies then.

=cut

sub wait_until
{
	my ($what, $condition) = @_;
	my $deadline = time + 60;
	until ($condition->())
	{
		die "waited in vain: $what" if time > $deadline;
		sleep 0.05;
	}
	return;
}

1;
