# Five nodes at default settings: nobody is suspected while the machine has far more to do than it
# can, and a crash is seen by all others.
#
# SECONDS_STARVED (600) says how long the first part takes, CRASHES (20) how many the second has. The
# times are printed beside their bar; only a false suspicion fails the test.

use strict;
use warnings;

use List::Util qw(max);
use PgTest::Mesh;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

my $seconds = $ENV{SECONDS_STARVED} // 600;
my $crashes = $ENV{CRASHES} // 20;
my $bar = 5.0;

my @names = ('a' .. 'e');
my $mesh = PgTest::Mesh->new(names => \@names, conf => "coord.gossip_interval = '1s'");
$mesh->join_all;
my $accusations = qr/pg_test: peer "\w+" is (?:suspect|dead)/;

sub all_alive
{
	$mesh->wait_for($_, q{SELECT bool_and(state = 'alive') FROM coord.peer_status}) foreach @names;
	return;
}

# Processes that never sleep: eight for each processor.
sub starve
{
	my $processors = grep { /^processor/ } split /^/, PostgreSQL::Test::Utils::slurp_file('/proc/cpuinfo');
	return map {
		my $pid = fork // die "fork: $!";
		if ($pid == 0)
		{
			my $i = 0;
			while (getppid() != 1) { $i++ foreach 1 .. 1_000_000; }
			POSIX::_exit(0);
		}
		$pid;
	} 1 .. 8 * $processors;
}

all_alive();
my %before = map { $_ => $mesh->logged($_, $accusations) } @names;
my @burning = starve();
my $end = time + $seconds;
while (time < $end)
{
	$mesh->sql($names[ rand @names ], q{SELECT coord.state_record_satisfied('s', 1)});
	sleep 0.5;
}
kill 'KILL', @burning;
waitpid $_, 0 foreach @burning;
is($mesh->logged($_, $accusations), $before{$_}, "$_ suspected nobody in $seconds s of starvation") foreach @names;
$mesh->converges('and the mesh converges');

my @times;
foreach my $crash (1 .. $crashes)
{
	my $victim = $names[ rand @names ];
	my @others = grep { $_ ne $victim } @names;
	# At any moment between two beats.
	sleep 3 + rand 1;
	$mesh->kill9($victim);
	my $start = time;
	my $is_dead = "SELECT state FROM coord.peer_status WHERE peer = '$victim'";
	$mesh->wait_for($_, $is_dead, 'dead') foreach @others;
	push @times, time - $start;
	note(sprintf 'crash %d: %s is dead to all others after %.1f s', $crash, $victim, $times[-1]);
	$mesh->restart_after_kill($victim);
	all_alive();
}
my @sorted = sort { $a <=> $b } @times;
diag(sprintf 'a crash is seen by all of 5 nodes: median %.1f s, longest %.1f s of %d; bar %.1f s',
	$sorted[ $#sorted / 2 ], max(@times), $crashes, $bar);
pass("$crashes crashes were seen by all");

done_testing();
