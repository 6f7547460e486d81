# What ten nodes on one machine cost while there is nothing to say: processor time of each server at
# default settings, and of one without the extension. SECONDS_IDLE (60) says for how long.

use strict;
use warnings;

use List::Util qw(max sum);
use PgTest::Mesh;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

my $seconds = $ENV{SECONDS_IDLE} // 60;
my $bar = 2.0;

my @names = map { "n$_" } 0 .. 9;
my $mesh = PgTest::Mesh->new(names => \@names, conf => "coord.gossip_interval = '1s'");
$mesh->join_all;
$mesh->sql($_, q{SELECT coord.state_record_satisfied('s', 1)}) foreach @names;
$mesh->converges('ten nodes converge');
my $plain = PostgreSQL::Test::Cluster->new('plain');
$plain->init;
$plain->start;

# Seconds of processor time of a server's processes, ended ones among them.
sub processor_time
{
	my ($postmaster) = @_;
	my $ticks = 0;
	foreach my $pid ($postmaster, split /\s+/, `ps -o pid= --ppid $postmaster`)
	{
		next unless $pid && open my $file, '<', "/proc/$pid/stat";
		my @fields = split / /, (split /\) /, scalar <$file>)[-1];
		# utime, stime; of the postmaster also its children's that have ended.
		$ticks += sum(@fields[ 11 .. ($pid == $postmaster ? 14 : 12) ]);
	}
	return $ticks / POSIX::sysconf(POSIX::_SC_CLK_TCK());
}

# The first rounds open connections.
sleep 5;
my %postmaster = (plain => $plain->{_pid}, map { $_ => $mesh->node($_)->{_pid} } @names);
my %before = map { $_ => processor_time($postmaster{$_}) } keys %postmaster;
my $start = time;
sleep $seconds;
my $elapsed = time - $start;
my %used = map { $_ => 100 * (processor_time($postmaster{$_}) - $before{$_}) / $elapsed } keys %postmaster;
diag(sprintf 'idle, per cent of a core: each of ten nodes %.2f (most %.2f), a server without the extension %.2f; bar %.1f',
	sum(@used{@names}) / @names, max(@used{@names}), $used{plain}, $bar);
$mesh->converges('they still agree');
cmp_ok($mesh->sql($_, 'SELECT min(rounds) FROM coord.peer_status'), '>', 0, "$_ kept gossiping") foreach @names;

done_testing();
