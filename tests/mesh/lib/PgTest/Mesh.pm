
=head1 NAME

PgTest::Mesh - several real servers that know each other as peers

=head1 SYNOPSIS

  use PgTest::Mesh;
  use Test::More;

  my $mesh = PgTest::Mesh->new(names => [ 'a', 'b', 'c' ], conf => "coord.gossip_interval = '100ms'");
  $mesh->join_all;
  $mesh->sql('a', 'SELECT ...');
  $mesh->wait_for('b', 'SELECT count(*) = 2 FROM ...', 't', 'b sees both');
  $mesh->kill9('c');
  $mesh->restart_after_kill('c');
  done_testing();

A test waits for a condition with a deadline, never for a fixed time. When a file fails, the ends of
its servers' logs are printed; the servers stop when it ends.

=cut

package PgTest::Mesh;

use strict;
use warnings;

use Carp;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(sleep time);

# How often a wait looks again, in seconds.
my $poll_interval = 0.1;

# Every mesh of this file, for the report in END.
my @meshes;

# The settings of a node. What Cluster.pm sets before is made for tests of a single small server.
my $settings = <<'CONF';
shared_preload_libraries = 'pg_test'
wal_level = logical
# Peers connect over TCP, psql by the socket.
listen_addresses = '127.0.0.1'
# These tests are about what survives.
fsync = on
shared_buffers = 32MB
max_connections = 60
max_wal_senders = 20
max_replication_slots = 20
max_logical_replication_workers = 20
max_worker_processes = 40
max_prepared_transactions = 10
# Statements of every gossip round would bury the rest.
log_statement = ddl
coord.gossip_interval = '200ms'
CONF

=head1 METHODS

=head2 new(names => [...], conf => '...')

Creates and starts one node for each name, in order. C<conf> comes last, so it wins.

=cut

sub new
{
	my ($class, %params) = @_;
	my $self = bless { nodes => {}, names => [], conf => $params{conf} // '' }, $class;
	push @meshes, $self;
	$self->add($_) foreach @{ $params{names} };
	return $self;
}

=head2 add($name, conf => '...', folder => '...', install_path => '...', version => '...')

Creates and starts one more node: a server with the extension in database postgres and a node name,
and no peers yet. With a folder its data lies there, in small segments of transaction log; with an
install_path it is the server there; with a version the extension is that one. Returns its
PostgreSQL::Test::Cluster.

=cut

sub add
{
	my ($self, $name, %params) = @_;
	my $node = $self->server($name, %params);
	_move($node->data_dir, "$params{folder}/$name") if $params{folder};
	$self->{nodes}{$name} = $node;
	push @{ $self->{names} }, $name;
	$node->start;
	my $version = $params{version} ? "VERSION '$params{version}'" : '';
	$node->safe_psql('postgres', "CREATE EXTENSION pg_test $version");
	$node->safe_psql('postgres', "SELECT coord.node_init('$name')");
	return $node;
}

=head2 server($name, %params)

A server as add makes it, not started and not yet a node; also C<port> and C<initdb>, more options of it.

=cut

sub server
{
	my ($self, $name, %params) = @_;
	my %place = map { $_ => $params{$_} } grep { defined $params{$_} } 'install_path', 'port';
	my $node = PostgreSQL::Test::Cluster->new($name, %place);
	my @options = ('--no-locale', '-E', 'UTF8', $params{folder} ? ('--wal-segsize=1') : (), @{ $params{initdb} // [] });
	$node->init(allows_streaming => 'logical', extra => \@options);
	$node->append_conf('postgresql.conf', join("\n", $settings, $self->{conf}, $params{conf} // ''));
	return $node;
}

=head2 forget($name)

Stops a node that has left the mesh.

=cut

sub forget
{
	my ($self, $name) = @_;
	$self->node($name)->stop;
	$self->{names} = [ grep { $_ ne $name } $self->names ];
	return;
}

=head2 put_back($name, $backup)

Kills the node's server and starts it from a base backup of it, in its place.

=cut

sub put_back
{
	my ($self, $name, $backup) = @_;
	my $data = $self->node($name)->data_dir;
	$self->kill9($name);
	rename $data, "$data.before" or die "could not move the data directory: $!";
	PostgreSQL::Test::RecursiveCopy::copypath($self->node($name)->backup_dir . "/$backup", $data);
	chmod 0700, $data or die "chmod: $!";
	$self->restart_after_kill($name);
	return;
}

=head2 replace($name, $node)

Another server takes the node's place, as after pg_upgrade.

=cut

sub replace
{
	my ($self, $name, $node) = @_;
	$self->node($name);
	$self->{nodes}{$name} = $node;
	return;
}

sub _move
{
	my ($from, $to) = @_;
	PostgreSQL::Test::Utils::system_or_bail('cp', '-a', $from, $to);
	PostgreSQL::Test::Utils::system_or_bail('rm', '-r', $from);
	symlink $to, $from or die "symlink: $!";
	return;
}

=head2 node($name), names()

The node as PostgreSQL::Test::Cluster has it; the names in the order of their creation.

=cut

sub node
{
	my ($self, $name) = @_;
	return $self->{nodes}{$name} // die "the mesh has no node $name";
}

sub names
{
	my ($self) = @_;
	return @{ $self->{names} };
}

=head2 conninfo($name, port => ..., dbname => ..., user => ..., password => ...)

How peers reach the node; options given replace the usual ones. With a port the name can be that of no
node of the mesh.

=cut

sub conninfo
{
	my ($self, $name, %options) = @_;
	# initdb was run without a superuser's name, so it took the one of the system's user.
	my %all = (host => '127.0.0.1', dbname => 'postgres', user => scalar getpwuid($>), %options);
	$all{port} //= $self->node($name)->port;
	return join ' ', map { "$_=$all{$_}" } sort keys %all;
}

=head2 add_peer($here, $peer, %options)

Makes C<$peer> a peer of C<$here>; options as for conninfo.

=cut

sub add_peer
{
	my ($self, $here, $peer, %options) = @_;
	$self->sql($here, sprintf q{SELECT coord.add_peer('%s', '%s')}, $peer, $self->conninfo($peer, %options));
	return;
}

=head2 join_all(@names)

Makes the nodes, by default all of them, peers of each other.

=cut

sub join_all
{
	my ($self, @names) = @_;
	@names = $self->names unless @names;
	foreach my $here (@names)
	{
		foreach my $peer (grep { $_ ne $here } @names)
		{
			$self->add_peer($here, $peer);
		}
	}
	return;
}

=head2 sql($name, $query)

The query's result; an error ends the test file.

=cut

sub sql
{
	my ($self, $name, $query) = @_;
	return $self->node($name)->safe_psql('postgres', $query);
}

=head2 wait_for($name, $query, $expected, $what, timeout => 60)

Runs the query until it gives C<$expected> (default: t). An error counts as another result, since the
server may be restarting. With C<$what> it is a test of that name and returns whether it passed;
without, it is a step of the way, and ends the file when it fails.

=cut

sub wait_for
{
	my ($self, $name, $query, $expected, $what, %params) = @_;
	$expected //= 't';
	my $timeout = $params{timeout} // 60;
	my $start = time;
	my ($last, $error);

	while ((my $left = $start + $timeout - time) > 0)
	{
		my ($out, $err, $timed_out) = ('', '', 0);
		# A server that is stopped with a signal accepts the connection and never answers.
		my $status = $self->node($name)->psql('postgres', $query, stdout => \$out, stderr => \$err,
			timeout => int($left) + 1, timed_out => \$timed_out);
		($last, $error) = ($out, $timed_out ? 'no answer' : $err);
		if (!$timed_out && $status == 0 && $out eq $expected)
		{
			pass($what) if defined $what;
			return 1;
		}
		sleep $poll_interval;
	}

	my $report = sprintf "node %s, after %.0f s\n  query:    %s\n  expected: %s\n  last:     %s\n",
	  $name, time - $start, $query, $expected, $last // '(none)';
	$report .= "  error:    $error\n" if $error;
	diag($report);
	croak "node $name: waited in vain" unless defined $what;
	# The line to name is the caller's.
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return fail($what);
}

=head2 content($name)

Every state with its bytes, one per line.

=cut

sub content
{
	my ($self, $name) = @_;
	return $self->sql($name,
		q{SELECT string_agg(format('%s %s', name, encode(value::bytea, 'hex')), E'\n' ORDER BY name) FROM coord.state});
}

=head2 converges($what, @names)

A test: each of the nodes, by default all of them, comes to call itself converged with all of its peers,
and then their states are equal byte for byte and their digests too.

=cut

sub converges
{
	my ($self, $what, @names) = @_;
	@names = $self->names unless @names;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $is_reached = eval {
		$self->wait_for($_, 'SELECT count(*) > 0 AND bool_and(converged) FROM coord.convergence') foreach @names;
		1;
	};
	return fail($what) unless $is_reached;
	my %seen = map { ($self->content($_) . "\n" . $self->digest($_) => $_) } @names;
	return pass($what) if keys %seen == 1;
	diag("$seen{$_}:\n$_") foreach sort keys %seen;
	return fail($what);
}

=head2 digest($name)

The digest over all states, in hexadecimal.

=cut

sub digest
{
	my ($self, $name) = @_;
	return $self->sql($name, q{SELECT encode(digest, 'hex') FROM coord.gossip_claim()});
}

=head2 sqlstate($name, $query, %params)

The SQLSTATE the query fails with, or an empty string; parameters as for psql of PostgreSQL::Test::Cluster.

=cut

sub sqlstate
{
	my ($self, $name, $query, %params) = @_;
	my (undef, undef, $err) = $self->node($name)->psql('postgres', $query,
		extra_params => [ '-v', 'VERBOSITY=sqlstate' ], %params);
	return $err =~ /(?:ERROR|FATAL):  (\w{5})/ ? $1 : '';
}

=head2 kill9($name)

Kills the postmaster with SIGKILL and waits until it is gone. Its children notice a little later.

=cut

sub kill9
{
	my ($self, $name) = @_;
	my $node = $self->node($name);
	my $pid = $node->{_pid} // die "node $name is not running";
	$node->kill9;
	$self->{killed}{$name} = $pid;
	my $deadline = time + 60;
	while (_is_running($pid))
	{
		die "postmaster $pid of node $name outlives SIGKILL" if time > $deadline;
		sleep 0.01;
	}
	return;
}

=head2 crash($name)

Kills every process of the node at once, so that none can still tidy up, as children of a postmaster do
that was killed alone.

=cut

sub crash
{
	my ($self, $name) = @_;
	$self->suspend($name);
	my ($postmaster, @children) = $self->_processes($name);
	kill 'KILL', $_ foreach @children;
	$self->kill9($name);
	return;
}

=head2 suspend($name), resume($name)

Stops every process of the node with SIGSTOP, as a machine does that is paused; lets them go on.

=cut

sub suspend
{
	my ($self, $name) = @_;
	# The postmaster first, so that no new process escapes.
	kill 'STOP', $_ foreach $self->_processes($name);
	return;
}

sub resume
{
	my ($self, $name) = @_;
	kill 'CONT', $_ foreach reverse $self->_processes($name);
	return;
}

sub _processes
{
	my ($self, $name) = @_;
	my $postmaster = $self->node($name)->{_pid} // die "node $name is not running";
	my @children = grep { /^\d+$/ } split /\s+/, `ps -o pid= --ppid $postmaster`;
	return ($postmaster, @children);
}

=head2 logged($name, $pattern)

How many lines of the server's log match.

=cut

sub logged
{
	my ($self, $name, $pattern) = @_;
	return scalar grep { /$pattern/ } split /^/, PostgreSQL::Test::Utils::slurp_file($self->node($name)->logfile);
}

=head2 restart_after_kill($name)

Starts the node again. For up to 2 s that fails: the killed postmaster still has its process id until
its parent takes notice ("lock file already exists"), and its children may still hold the shared memory.

=cut

sub restart_after_kill
{
	my ($self, $name) = @_;
	my $node = $self->node($name);
	my $deadline = time + 10;
	while (!$node->start(fail_ok => 1))
	{
		# Cluster.pm takes the killed postmaster's process id for a running server.
		my $pid = $node->{_pid};
		die "node $name starts, and does not get ready"
		  if defined $pid && $pid != ($self->{killed}{$name} // 0);
		$node->{_pid} = undef;
		die "node $name does not start again:\n" . $self->log_tail($name) if time > $deadline;
		sleep $poll_interval;
	}
	return;
}

=head2 log_tail($name, $count)

The last lines, by default 60, of the server's log.

=cut

sub log_tail
{
	my ($self, $name, $count) = @_;
	$count //= 60;
	my $file = $self->node($name)->logfile;
	return '' unless -e $file;
	my @lines = split /^/, PostgreSQL::Test::Utils::slurp_file($file);
	splice @lines, 0, @lines - $count if @lines > $count;
	return join '', @lines;
}

# A zombie has ended, though its process id still exists.
sub _is_running
{
	my ($pid) = @_;
	return 0 unless kill 0, $pid;
	open my $stat, '<', "/proc/$pid/stat" or return -d '/proc/self' ? 0 : 1;
	my $line = <$stat> // '';
	return $line !~ /^\d+ \(.*\) Z/;
}

# Runs before Cluster.pm's END, which stops the servers.
END
{
	my $exit_code = $?;
	my $failed = $exit_code != 0 || !PostgreSQL::Test::Utils::all_tests_passing();
	foreach my $mesh (@meshes)
	{
		foreach my $name ($mesh->names)
		{
			diag("---- end of the log of node $name\n" . $mesh->log_tail($name)) if $failed;
			# A test that stopped a postmaster with SIGSTOP and then failed: only a running one can stop.
			my $pid = $mesh->node($name)->{_pid};
			$mesh->resume($name) if defined $pid;
		}
	}
	$? = $exit_code;
}

1;
