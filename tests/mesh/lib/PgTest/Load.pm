
=head1 NAME

PgTest::Load - a session that repeats a statement until it is told to stop

=head1 SYNOPSIS

  my $load = PgTest::Load->new($node, q{SELECT 'ok' FROM coord.state_record_satisfied('s', 1)});
  ...
  my @answers = $load->stop;    # one line per acknowledged commit

Each statement is a transaction of its own. When the server dies, the answers are those that came before.

=cut

package PgTest::Load;

use strict;
use warnings;

use Carp;
use File::Temp ();
use POSIX ();
use PostgreSQL::Test::Utils ();
use Time::HiRes qw(sleep);

# Seconds between two statements: three such sessions leave the machine time for gossip.
my $pause = 0.005;

sub new
{
	my ($class, $node, $statement, $dbname) = @_;
	my $output = File::Temp->new;
	my $connection = $node->connstr($dbname // 'postgres');
	my $psql = $node->installed_command('psql');
	my $pid = fork // croak "fork: $!";
	if ($pid == 0)
	{
		my $is_told = 0;
		local $SIG{TERM} = sub { $is_told = 1; };
		local $SIG{PIPE} = 'IGNORE';
		open STDOUT, '>', $output->filename or POSIX::_exit(1);
		open STDERR, '>', '/dev/null' or POSIX::_exit(1);
		my $feed;
		open $feed, '|-', $psql, '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $connection, '-f', '-' or POSIX::_exit(1);
		$feed->autoflush(1);
		while (!$is_told && print {$feed} "$statement;\n") { sleep $pause; }
		close $feed;
		# None of the test's END blocks and destructors here.
		POSIX::_exit(0);
	}
	return bless { output => $output, pid => $pid, owner => $$ }, $class;
}

# Lines so far.
sub answers
{
	my ($self) = @_;
	return split /\n/, PostgreSQL::Test::Utils::slurp_file($self->{output}->filename);
}

sub stop
{
	my ($self) = @_;
	if (my $pid = delete $self->{pid})
	{
		local $?;
		kill 'TERM', $pid;
		waitpid $pid, 0;
	}
	return $self->answers;
}

sub DESTROY
{
	my ($self) = @_;
	$self->stop if $$ == $self->{owner};
	return;
}

1;
