
=head1 NAME

PgTest::LeaseChaos - workers that share a few leases on a server that is killed again and again

=head1 SYNOPSIS

  PgTest::LeaseChaos->new($mesh, 'a', workers => 4, rounds => 25, kills => 3)->run;

Each worker, a process, acquires a lease, writes under it, renews it, releases it or walks away, with
pauses between, some of them longer than the lease. It goes on after the crash of the server with what it
was told before. What it was told is in its log; what happened is in the database.

Order is told by one sequence. A number of it is taken while the lock of the lease is held, so the
numbers of one epoch are all below those of the next, unless what is tested here fails.

=cut

package PgTest::LeaseChaos;

use strict;
use warnings;

use List::Util qw(min sum0);
use POSIX ();
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(sleep time);

my @resources = ('r1', 'r2', 'r3');

sub new
{
	my ($class, $mesh, $name, %size) = @_;
	return bless { mesh => $mesh, name => $name, folder => PostgreSQL::Test::Utils::tempdir(),
		workers => 4, rounds => 25, kills => 3, patience => 300, %size }, $class;
}

=head1 METHODS

=head2 run()

Lets the workers work and kills the server meanwhile; tests that every promise was kept.

=cut

sub run
{
	my ($self) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$self->{mesh}->sql($self->{name}, <<'SQL');
CREATE SEQUENCE serial;
CREATE TABLE granted (serial bigint PRIMARY KEY, resource text, epoch bigint, worker text);
CREATE TABLE written (serial bigint PRIMARY KEY, resource text, epoch bigint, worker text);
SELECT coord.protect_table('written', resource_column => 'resource');
SQL
	my $seed = $ENV{LEASE_SEED} // int rand 1_000_000;
	note("LEASE_SEED=$seed repeats the workers' choices");
	$self->{pid} = { map { $_ => $self->_start($_, $seed + $_) } 1 .. $self->{workers} };
	srand $seed;
	my $is_done = eval { $self->_kill_at_random; };
	diag($@) unless $is_done;
	kill 'KILL', -$_ foreach grep { defined } values %{ $self->{pid} };
	ok($is_done, "$self->{workers} workers end their $self->{rounds} rounds, through @{[ $self->_kinds ]}");
	$self->{mesh}->wait_for($self->{name}, 'SELECT true');
	$self->_check;
	return;
}

sub _log { return "$_[0]{folder}/worker$_[1].log"; }

sub _lines
{
	my ($self, $worker) = @_;
	return -e $self->_log($worker) ? split /\n/, PostgreSQL::Test::Utils::slurp_file($self->_log($worker)) : ();
}

# ---- a worker

sub _start
{
	my ($self, $worker, $seed) = @_;
	my $node = $self->{mesh}->node($self->{name});
	my ($psql, $connection, $log) = ($node->installed_command('psql'), $node->connstr('postgres'), $self->_log($worker));
	my $pid = fork // die "fork: $!";
	return $pid if $pid;
	# Its psql ends with it.
	POSIX::setpgid(0, 0);
	srand $seed;
	open STDOUT, '>>', $log or POSIX::_exit(1);
	open STDERR, '>&', \*STDOUT or POSIX::_exit(1);
	STDOUT->autoflush(1);
	my $run = sub {
		open my $feed, '|-', $psql, '-XAtq', '-d', "$connection connect_timeout=10 application_name=worker$worker", '-f', '-' or POSIX::_exit(1);
		local $SIG{PIPE} = 'IGNORE';
		print {$feed} $_[0];
		close $feed;
		return $? >> 8;
	};
	foreach my $round (1 .. $self->{rounds})
	{
		my $resource = $resources[ rand @resources ];
		# Once it has a lease, it goes on in a new session with the epoch that it was told.
		my $is_over = 0;
		while (!$is_over)
		{
			my ($epoch) = map { /^granted \Q$resource\E (\d+) .*# $round$/ ? $1 : () } $self->_lines($worker);
			my $script = defined $epoch ? "\\set epoch $epoch\n" . _use($resource, $worker, $round) : _acquire($resource, $worker, $round);
			# 2: the server was not there, or is not there any more.
			$is_over = $run->($script) != 2;
			sleep 0.1 unless $is_over;
		}
		print "round $round\n";
	}
	# None of the test's END blocks and destructors here.
	POSIX::_exit(0);
}

sub _pause { return sprintf 'SELECT FROM pg_sleep(%.3f);', rand() < 0.1 ? rand 0.6 : rand 0.05; }

sub _durably { return rand() < 0.5 ? '' : 'SET LOCAL synchronous_commit = off;'; }

# The ttl is the same throughout a round: one that grows reaches the disk a little later.
my $ttl;

sub _acquire
{
	my ($resource, $worker, $round) = @_;
	$ttl = 50 + int rand(rand() < 0.2 ? 2000 : 300);
	my $wait = rand() < 0.3 ? 0 : 1000;
	my $terminates = rand() < 0.2 ? 'true' : 'false';
	my ($durably, $use) = (_durably(), _use($resource, $worker, $round));
	return <<SQL;
\\set VERBOSITY sqlstate
SET statement_timeout = '30s';
\\set epoch 0
BEGIN;
$durably
SELECT epoch, extract(epoch FROM expires_at) AS until
  FROM coord.lease_acquire('$resource', 'w$worker', '$ttl ms', max_wait => '$wait ms', terminate_writers => $terminates) \\gset
\\if :ERROR
\\echo refused $resource :SQLSTATE
ROLLBACK;
\\else
INSERT INTO granted VALUES (nextval('serial'), '$resource', :epoch, 'w$worker');
COMMIT;
\\if :ERROR
\\else
\\echo granted $resource :epoch :until # $round
$use
\\endif
\\endif
SQL
}

sub _use
{
	my ($resource, $worker, $round) = @_;
	my $script = "\\set VERBOSITY sqlstate\nSET statement_timeout = '30s';\n";
	foreach (1 .. 1 + int rand 3)
	{
		$script .= _pause() . "\n";
		$script .= _renew($resource, $worker) if rand() < 0.6;
		my $durably = _durably();
		my $kind = $durably ? 'async' : 'durable';
		my $pause = _pause();
		$script .= <<SQL;
\\set serial 0
BEGIN;
$durably
SELECT FROM coord.fence_set('$resource', :epoch);
$pause
INSERT INTO written VALUES (nextval('serial'), '$resource', :epoch, 'w$worker') RETURNING serial \\gset
COMMIT;
\\if :ERROR
\\else
\\echo wrote $resource :epoch :serial $kind
\\endif
SQL
	}
	return $script if rand() < 0.3;
	return $script . <<SQL;
SELECT extract(epoch FROM coord.lease_now()) AS now \\gset
\\if :ERROR
\\else
\\echo releasing $resource :epoch :now
SELECT coord.lease_release('$resource', 'w$worker', :epoch) AS is_released \\gset
\\endif
SQL
}

sub _renew
{
	my ($resource, $worker) = @_;
	return <<SQL;
SELECT extract(epoch FROM coord.lease_renew('$resource', 'w$worker', :epoch, '$ttl ms')) AS until \\gset
\\if :ERROR
\\echo lost $resource :epoch :SQLSTATE
\\else
\\echo renewed $resource :epoch :until
\\endif
SQL
}

# ---- kills

sub _kinds
{
	my ($self) = @_;
	my %done = %{ $self->{done} // {} };
	return join(', ', map { "$done{$_} $_" } sort keys %done) || 'no kills';
}

# Spread over the rounds, whatever the machine's speed. True once all workers have ended by themselves.
sub _kill_at_random
{
	my ($self) = @_;
	my ($mesh, $name) = @{$self}{ 'mesh', 'name' };
	my $total = $self->{workers} * $self->{rounds};
	my %kinds = (
		'kill -9 of a backend' => sub {
			my ($pid) = $self->_ask(q{SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'worker%' ORDER BY random() LIMIT 1});
			return defined $pid && kill 'KILL', $pid;
		},
		'kill -9 of the postmaster' => sub { $mesh->kill9($name); $mesh->restart_after_kill($name); return 1; },
		'kill -9 of all processes' => sub { $mesh->crash($name); $mesh->restart_after_kill($name); return 1; },
		'fast restart' => sub { $mesh->node($name)->restart; return 1; });
	# Each kind in turn, in another order each time.
	my @next;
	my $kills = 0;
	my $deadline = time + $self->{patience};
	while (grep { defined } values %{ $self->{pid} })
	{
		die "not done after $self->{patience} s\n" if time > $deadline;
		foreach my $worker (keys %{ $self->{pid} })
		{
			my $pid = $self->{pid}{$worker} // next;
			next if waitpid($pid, POSIX::WNOHANG()) == 0;
			my $status = $?;
			$self->{pid}{$worker} = undef;
			die "worker $worker ended with $status\n" if $status;
		}
		my $rounds = sum0(map { scalar grep { /^round / } $self->_lines($_) } keys %{ $self->{pid} });
		if ($kills < $self->{kills} && $rounds >= $total * ($kills + 0.5) / $self->{kills})
		{
			@next = sort { $a->[0] <=> $b->[0] } map { [ rand, $_ ] } sort keys %kinds unless @next;
			my $kind = $next[0][1];
			if ($kinds{$kind}->())
			{
				shift @next;
				$kills++;
				$self->{done}{$kind}++;
			}
		}
		sleep 0.05 + rand 0.1;
	}
	return 1;
}

# The answer's lines; none while the server is not there.
sub _ask
{
	my ($self, $query) = @_;
	my $stdout = '';
	return () if $self->{mesh}->node($self->{name})->psql('postgres', $query, stdout => \$stdout, stderr => \my $stderr, timeout => 30) != 0;
	return split /\n/, $stdout;
}

# ---- what must hold

# What a worker may be refused with: another holder, a lost lease, a stale token and what follows it in
# its transaction; and the end of its session or server.
my %is_expected = map { $_ => 1 } qw(55P03 55000 23514 25P02 57P01 57P02 57P03);

# For each resource and epoch: what a worker was told, in its order.
sub _told
{
	my ($self) = @_;
	my (%told, @twice, @unexpected);
	my %figures = map { $_ => 0 } qw(granted renewed lost wrote refused);
	foreach my $worker (1 .. $self->{workers})
	{
		foreach my $line ($self->_lines($worker))
		{
			if ($line =~ /(?:ERROR|FATAL|PANIC):  (\w{5})$/)
			{
				$figures{"refused $1"}++;
				push @unexpected, "worker $worker: $line" unless $is_expected{$1};
			}
			my ($what, $resource, @rest) = split / /, $line;
			next unless defined $figures{$what} || $what eq 'releasing';
			$figures{$what}++ if defined $figures{$what} && !($what eq 'wrote' && !$rest[1]);
			next if $what eq 'refused' || $what eq 'lost';
			my ($epoch, $value, $kind) = @rest;
			my $lease = $told{$resource}{$epoch} //= { worker => "w$worker" };
			push @twice, "$resource $epoch" if $lease->{worker} ne "w$worker";
			$lease->{until} = $value if $what eq 'granted' || $what eq 'renewed';
			# From the moment it begins to release, it does not rely on the lease any more.
			$lease->{given_up} //= $value if $what eq 'releasing';
			$lease->{is_told} = 1 if $what eq 'granted';
			push @{ $lease->{serials} }, $value if $what eq 'wrote' && $value && $kind eq 'durable';
		}
	}
	return (\%told, \@twice, \@unexpected, \%figures);
}

sub _check
{
	my ($self) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($told, $twice, $unexpected, $figures) = $self->_told;
	my $sql = sub { return $self->{mesh}->sql($self->{name}, $_[0]) };
	is(join("\n", @$unexpected), '', 'nothing went wrong but what was meant to');
	is("@$twice", '', 'no epoch was told to two workers');

	my %granted;
	foreach (split /\n/, $sql->(q{SELECT resource, epoch, holder, extract(epoch FROM recorded_at) FROM coord.lease_history WHERE event = 'granted'}))
	{
		my ($resource, $epoch, $holder, $at) = split /\|/;
		$granted{$resource}{$epoch} = { holder => $holder, at => $at };
	}
	my (@unknown, @overlapping);
	foreach my $resource (sort keys %$told)
	{
		my @epochs = sort { $a <=> $b } keys %{ $granted{$resource} };
		my %next = map { $epochs[$_] => $epochs[ $_ + 1 ] } 0 .. $#epochs - 1;
		foreach my $epoch (sort { $a <=> $b } keys %{ $told->{$resource} })
		{
			my $lease = $told->{$resource}{$epoch};
			next unless $lease->{is_told};
			my $row = $granted{$resource}{$epoch};
			push @unknown, "$resource $epoch of $lease->{worker}" if !$row || $row->{holder} ne $lease->{worker};
			next unless $row && $next{$epoch};
			my $end = min(grep { defined } $lease->{until}, $lease->{given_up});
			my $after = $granted{$resource}{ $next{$epoch} };
			push @overlapping, sprintf('%s: %s relies on epoch %d until %.6f, %s was granted %d at %.6f',
				$resource, $lease->{worker}, $epoch, $end, $after->{holder}, $next{$epoch}, $after->{at})
			  if $after->{at} < $end;
		}
	}
	is(join("\n", @unknown), '', 'every grant that a worker was told of is in the history');
	is(join("\n", @overlapping), '', 'nobody is granted a lease while another relies on it');

	is($sql->(q{SELECT string_agg(format('%s %s', resource, epoch), ', ') FROM
		(SELECT resource, epoch, worker FROM granted EXCEPT SELECT resource, epoch, holder FROM coord.lease_history WHERE event = 'granted') q}),
		'', 'what was written with a grant has the grant');
	is($sql->(q{SELECT string_agg(format('%s %s', resource, epoch), ', ') FROM
		(SELECT resource, epoch, holder FROM coord.lease_history WHERE event = 'granted' EXCEPT SELECT resource, epoch, worker FROM granted) q}),
		'', 'and a grant what was written with it');
	is($sql->(q{SELECT string_agg(q::text, ', ') FROM
		(SELECT *, lag(epoch) OVER (PARTITION BY resource ORDER BY serial) AS before FROM granted) q WHERE epoch <= before}),
		'', 'epochs grow in the order of grants');
	is($sql->(q{SELECT string_agg(q::text, ', ') FROM
		(SELECT *, lag(recorded_at) OVER (PARTITION BY resource ORDER BY epoch) AS before FROM coord.lease_history WHERE event = 'granted') q WHERE recorded_at <= before}),
		'', 'and in time');
	is($sql->(q{SELECT string_agg(q::text, ', ') FROM
		(SELECT *, max(epoch) OVER (PARTITION BY resource ORDER BY serial) AS newest FROM
			(SELECT *, true AS is_grant FROM granted UNION ALL SELECT *, false FROM written) u) q WHERE epoch <> newest}),
		'', 'every write is of the epoch that was the newest when it was written, and no grant comes before a write of an older one');
	my @durable = map { @{ $_->{serials} // [] } } map { values %$_ } values %$told;
	is($sql->(sprintf q{SELECT count(*) FROM unnest('{%s}'::bigint[]) s WHERE NOT EXISTS (SELECT FROM written WHERE serial = s)}, join ',', @durable),
		'0', 'and no durable write is lost');
	cmp_ok($figures->{$_}, '>', 0, "there were some: $_") foreach 'granted', 'renewed', 'wrote';
	diag(sprintf '%d rounds, %s: %s', $self->{workers} * $self->{rounds}, $self->_kinds, join ', ', map { "$_ $figures->{$_}" } sort keys %$figures);
	return;
}

1;
