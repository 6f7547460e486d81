
=head1 NAME

PgTest::Link - a network path to one server that can be cut

=head1 SYNOPSIS

  my $link = PgTest::Link->new($mesh->node('b')->port);
  $mesh->sql('a', sprintf q{SELECT coord.add_peer('b', '%s')}, $mesh->conninfo('b', port => $link->port));
  $link->cut;     # connections break, new ones are closed at once
  $link->hold;    # connections are accepted, nothing is passed on any more
  $link->mute;    # what is asked passes, no answer does
  $link->slow;    # everything passes, each piece a third of a second late
  $link->heal;    # as at first; what was open before is closed
  $link->count;   # connections open now
  $link->accepted; # connections ever taken

  my $nowhere = PgTest::Link->black_hole;    # swallows packets: not even the handshake is answered

A process per link passes bytes on. A command returns once it is in effect. The process ends with its
object, and with the test.

=cut

package PgTest::Link;

use strict;
use warnings;

use Carp;
use IO::Handle;
use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Socket qw(AF_UNIX SOCK_STREAM PF_UNSPEC);
use Time::HiRes qw(sleep);

sub new
{
	my ($class, $target) = @_;
	my $listener = IO::Socket::INET->new(Listen => 64, LocalAddr => '127.0.0.1', LocalPort => 0, Proto => 'tcp')
	  or croak "cannot listen: $!";
	socketpair(my $control, my $far, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or croak "socketpair: $!";
	my $pid = fork // croak "fork: $!";
	if ($pid == 0)
	{
		close $control;
		# None of the test's END blocks and destructors here.
		eval { _serve($listener, $far, $target); };
		POSIX::_exit(0);
	}
	close $far;
	$control->autoflush(1);
	return bless { control => $control, pid => $pid, owner => $$, port => $listener->sockport }, $class;
}

# A socket that listens and has its queue full: the kernel drops what else asks for a connection.
sub black_hole
{
	my ($class) = @_;
	my $listener = IO::Socket::INET->new(Listen => 0, LocalAddr => '127.0.0.1', LocalPort => 0, Proto => 'tcp')
	  or croak "cannot listen: $!";
	# Listen => 0 is taken for "not given" by some versions.
	listen($listener, 0) or croak "listen: $!";
	my @fill;
	for (1 .. 4)
	{
		my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $listener->sockport, Blocking => 0);
		push @fill, $socket if $socket;
	}
	return bless { listener => $listener, fill => \@fill, owner => $$, port => $listener->sockport }, $class;
}

sub port { return $_[0]->{port}; }
sub cut { return $_[0]->_command('cut'); }
sub hold { return $_[0]->_command('hold'); }
sub mute { return $_[0]->_command('mute'); }
sub slow { return $_[0]->_command('slow'); }
sub heal { return $_[0]->_command('heal'); }
sub count { return $_[0]->_command('count'); }
sub accepted { return $_[0]->_command('accepted'); }

sub _command
{
	my ($self, $command) = @_;
	my $control = $self->{control} // croak 'a black hole takes no commands';
	print {$control} "$command\n";
	my $answer = <$control> // croak 'the link has ended';
	chomp $answer;
	return $answer;
}

sub DESTROY
{
	my ($self) = @_;
	return if $$ != $self->{owner} || !$self->{pid};
	local $?;
	kill 'KILL', $self->{pid};
	waitpid $self->{pid}, 0;
	return;
}

# ---- in the process of the link

sub _serve
{
	my ($listener, $control, $target) = @_;
	local $SIG{PIPE} = 'IGNORE';
	my $mode = 'heal';
	my $accepted = 0;
	# Each end's file number leads to the other end; a held connection has none.
	my (%other, %socket);
	my $select = IO::Select->new($listener, $control);
	my $drop = sub {
		foreach my $end (grep { defined } @_)
		{
			$select->remove($end);
			delete $other{ fileno $end };
			delete $socket{ fileno $end };
			close $end;
		}
	};

	while (1)
	{
		foreach my $ready ($select->can_read)
		{
			if ($ready == $control)
			{
				sysread($control, my $command, 64) or return;
				chomp $command;
				my %figures = (count => sub { scalar grep { !$_->{far} } values %other }, accepted => sub { $accepted });
				if (!$figures{$command})
				{
					$mode = $command;
					$drop->(values %socket) if $mode eq 'cut' || $mode eq 'heal';
				}
				my $answer = $figures{$command} ? $figures{$command}->() : $mode;
				syswrite $control, "$answer\n";
				# The list of what was ready may name sockets that are closed now.
				last;
			}
			if ($ready == $listener)
			{
				my $near = $listener->accept or next;
				$accepted++;
				if ($mode eq 'cut') { close $near; next; }
				my $far;
				if ($mode ne 'hold')
				{
					$far = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $target);
					if (!$far) { close $near; next; }
				}
				$socket{ fileno $near } = $near;
				$other{ fileno $near } = { end => $far, far => 0 };
				# What is held is not read, so the sender does not even see an end.
				next unless $far;
				$socket{ fileno $far } = $far;
				$other{ fileno $far } = { end => $near, far => 1 };
				$select->add($near, $far);
				next;
			}
			next unless defined fileno $ready && $other{ fileno $ready };
			my $end = $other{ fileno $ready }{end};
			if ($mode eq 'hold' || ($mode eq 'mute' && $other{ fileno $ready }{far}))
			{
				$select->remove($ready);
				next;
			}
			sleep 0.33 if $mode eq 'slow';
			my $length = sysread $ready, my $bytes, 65536;
			if (!$length || !_write_all($end, $bytes)) { $drop->($ready, $end); }
		}
	}
	return;
}

sub _write_all
{
	my ($socket, $bytes) = @_;
	while (length $bytes)
	{
		my $written = syswrite $socket, $bytes;
		return 0 unless $written;
		substr $bytes, 0, $written, '';
	}
	return 1;
}

1;
