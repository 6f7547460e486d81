# The wall clock is stepped while the server runs: leases expire by time that has passed, not by what the
# wall shows. The server is made to see another clock by a library, which takes a C compiler to build.

use strict;
use warnings;

use PgTest::Lease qw(ahead refusal);
use PgTest::Mesh;
use PostgreSQL::Test::Utils ();
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
my ($library, $offset) = ("$folder/wall_clock.so", "$folder/offset");
my ($source) = grep { -e } map { "$_/wall_clock.c" } @INC;
plan skip_all => 'there is no C compiler' if system("cc -shared -fPIC -o '$library' '$source' -ldl") != 0;

sub set_wall
{
	my ($seconds) = @_;
	# In place: every process of the server has it mapped.
	open my $file, -e $offset ? '+<:raw' : '>:raw', $offset or die "$offset: $!";
	syswrite $file, pack 'q', $seconds;
	close $file;
	return;
}
set_wall(0);

my $mesh = PgTest::Mesh->new(names => []);
sub faked
{
	my ($work) = @_;
	local @ENV{ 'LD_PRELOAD', 'WALL_CLOCK_OFFSET' } = ($library, $offset);
	$work->();
	return;
}
sub wait_for_memory { return $mesh->wait_for('a', 'SELECT coord.lease_memory_is_open()'); }
faked(sub { $mesh->add('a') });
wait_for_memory();

sub acquire { return sprintf q{SELECT epoch FROM coord.lease_acquire('%s', '%s', '%s')}, @_; }
sub effective { return sprintf q{SELECT extract(epoch FROM expires_at) FROM coord.lease_status WHERE resource = '%s'}, @_; }
sub state { return sprintf q{SELECT format('%%s %%s %%s', state, holder, epoch) FROM coord.lease_status WHERE resource = '%s'}, @_; }
my $left = q{SELECT extract(epoch FROM expires_at - coord.lease_now()) FROM coord.lease_status WHERE resource = 'job'};
my $wall = 'extract(epoch FROM clock_timestamp())';

# By how much the server's wall clock differs from the machine's.
sub step
{
	my ($seconds) = @_;
	set_wall($seconds);
	$mesh->wait_for('a', "SELECT abs($wall - @{[ time ]} - $seconds) < 300");
	return;
}

# As long as the steps below do not count, none of these leases comes near its end.
sub begin
{
	my ($epoch) = @_;
	is($mesh->sql('a', acquire('job', "of $epoch", '1 h')), $epoch, 'a lease');
	return;
}
# A lease whose time has passed.
my $old = 'old';
sub is_unmoved
{
	my ($what, $epoch, $before) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($mesh->sql('a', state('job')), "held of $epoch $epoch", "$what: the lease is held");
	my $now = $mesh->sql('a', $left);
	ok($now <= $before && $now > $before - 600, "$what: for as long as before") or diag("$before s before, $now s now");
	like(refusal($mesh->node('a'), 'BEGIN;' . acquire('job', 'thief', '1 h') . '; ROLLBACK'), qr/^55P03: lease "job" is held/, "$what: another is refused");
	is(refusal($mesh->node('a'), "SELECT coord.fence('job', $epoch)"), '', "$what: the token passes");
	is($mesh->sql('a', state($old)), 'expired a 1', "$what: what had expired stays so");
	return;
}

$mesh->sql('a', ahead(-1800) . acquire($old, 'a', '10 min'));
begin(1);
my $before = $mesh->sql('a', $left);
my $expires = $mesh->sql('a', effective('job'));
foreach my $seconds (7200, -7200)
{
	my $what = $seconds > 0 ? 'two hours forward' : 'two hours back';
	step($seconds);
	is_unmoved($what, 1, $before);
	is($mesh->sql('a', effective('job')), $expires, "$what: the expiry has not moved");
	ok(abs($mesh->sql('a', q{SELECT extract(epoch FROM coord.lease_renew('job', 'of 1', 1, '1 h'))}) - $expires) < 600, "$what: a renewal goes by the same clock");
	$expires = $mesh->sql('a', effective('job'));
	$before = $mesh->sql('a', $left);
}
is($mesh->sql('a', ahead(3700) . acquire('job', 'of 2', '1 h')), '2', 'once its time has passed, another is granted it');
$mesh->sql('a', q{SELECT coord.lease_release('job', 'of 2', 2)});

# ---- a clean restart carries a step over

my $epoch = 3;
foreach my $seconds (7200, -7200)
{
	my $what = ($seconds > 0 ? 'forward' : 'back') . ', then a clean restart';
	begin($epoch);
	$before = $mesh->sql('a', $left);
	step($seconds);
	faked(sub { $mesh->node('a')->restart });
	is_unmoved($what, $epoch, $before);
	$mesh->sql('a', "SELECT coord.lease_release('job', 'of $epoch', $epoch)");
	wait_for_memory();
	$epoch++;
}

# ---- after a crash nobody can say how far it was: the lease is held for its ttl at least

foreach my $seconds (7200, -7200)
{
	my $what = ($seconds > 0 ? 'forward' : 'back') . ', then a crash';
	begin($epoch);
	step($seconds);
	$mesh->crash('a');
	faked(sub { $mesh->restart_after_kill('a') });
	is($mesh->sql('a', state('job')), "held of $epoch $epoch", "$what: the lease is held");
	cmp_ok($mesh->sql('a', $left), '>', 3000, "$what: for its ttl at least");
	$mesh->sql('a', "SELECT coord.lease_release('job', 'of $epoch', $epoch)");
	wait_for_memory();
	$epoch++;
}

# ---- another worker takes over the same memory: nothing has ended

# Since the crash the first one counts as held for its ttl.
$old = 'older';
$mesh->sql('a', ahead(-1800) . acquire($old, 'a', '10 min'));

foreach my $seconds (7200, -7200)
{
	my $what = ($seconds > 0 ? 'forward' : 'back') . ', then another worker';
	step(0);
	faked(sub { $mesh->node('a')->restart });
	wait_for_memory();
	begin($epoch);
	$before = $mesh->sql('a', $left);
	step($seconds);
	my $worker = $mesh->sql('a', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_test worker'});
	$mesh->sql('a', "SELECT pg_terminate_backend($worker)");
	$mesh->wait_for('a', "SELECT coord.lease_memory_is_open() AND pid <> $worker FROM pg_stat_activity WHERE backend_type = 'pg_test worker'");
	is_unmoved($what, $epoch, $before);
	$mesh->sql('a', "SELECT coord.lease_release('job', 'of $epoch', $epoch)");
	$epoch++;
}

done_testing();
