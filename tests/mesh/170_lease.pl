# Leases of one server: what survives which end of it, a holder that is stopped past its time, and what
# others are told.

use strict;
use warnings;

use JSON::PP ();
use PgTest::Lease qw(ahead refusal session pid_of answer stop_and_wait stop_worker wait_until);
use PgTest::Mesh;
use PostgreSQL::Test::Utils ();
use Test::More;

my $mesh = PgTest::Mesh->new(conf => <<'CONF', names => []);
restart_after_crash = on
# What is not forced to disk stays off it for a while.
wal_writer_delay = '10s'
CONF

sub acquire { return sprintf q{SELECT epoch FROM coord.lease_acquire('%s', '%s', '%s')}, @_; }
sub stored { return sprintf q{SELECT extract(epoch FROM expires_at) FROM coord.lease WHERE resource = '%s'}, @_; }
sub effective { return sprintf q{SELECT extract(epoch FROM expires_at) FROM coord.lease_status WHERE resource = '%s'}, @_; }
sub state { return sprintf q{SELECT format('%%s %%s %%s', state, holder, epoch) FROM coord.lease_status WHERE resource = '%s'}, @_; }
sub renew { return sprintf q{SELECT extract(epoch FROM coord.lease_renew('%s', '%s', %s, '%s'))}, @_; }
sub wait_for_memory { return $mesh->wait_for($_[0], 'SELECT coord.lease_memory_is_open()'); }

# ---- not preloaded: a renewal is part of the transaction, and as durable

$mesh->add('plain', conf => "shared_preload_libraries = ''");
$mesh->sql('plain', q{CREATE TABLE account (id int, epoch bigint); SELECT coord.protect_table('account', 'job', epoch_column => 'epoch')});
is($mesh->sql('plain', acquire('job', 'a', '10 min')), '1', 'not preloaded: a lease is granted');
like(refusal($mesh->node('plain'), acquire('job', 'b', '10 min')), qr/^55P03: lease "job" is held\nDETAIL:  Held by "a" at epoch 1 until/,
	'and refused to another');
my $granted = $mesh->sql('plain', stored('job'));
$mesh->sql('plain', 'BEGIN; ' . ahead(60) . renew('job', 'a', 1, '10 min') . '; ROLLBACK');
is($mesh->sql('plain', effective('job')), $granted, 'a renewal that rolls back never was');
my $renewed = $mesh->sql('plain', ahead(60) . renew('job', 'a', 1, '10 min'));
cmp_ok($renewed, '>=', $granted + 60, 'one that commits moves the expiry');
is($mesh->sql('plain', stored('job')), $renewed, 'in the table');
$mesh->sql('plain', q{SELECT coord.fence('job', 1); INSERT INTO account VALUES (1, 1)});
like(refusal($mesh->node('plain'), 'INSERT INTO account VALUES (2, NULL)'), qr/^23514: no fencing token for lease "job"/, 'a write without a token is refused');
like(refusal($mesh->node('plain'), 'INSERT INTO account VALUES (2, 2)'), qr/^23514: stale fencing token 2 for lease "job"/, 'and one with another');
$mesh->kill9('plain');
$mesh->restart_after_kill('plain');
is($mesh->sql('plain', effective('job')), $renewed, 'after a crash the expiry is the renewed one');
is($mesh->sql('plain', ahead(700) . acquire('job', 'b', '10 min')), '2', 'and then another is granted the lease');
like(refusal($mesh->node('plain'), 'INSERT INTO account VALUES (2, 1)'), qr/^23514: stale fencing token 1 for lease "job"/, 'the old token is refused');
is($mesh->sql('plain', q{SELECT coord.lease_release('job', 'b', 2)}), 't', 'it is released');
is($mesh->sql('plain', acquire('job', 'a', '10 min')), '3', 'and granted at once');
is($mesh->sql('plain', 'SELECT coord.lease_memory_is_open()'), 'f', 'all without shared memory');
$mesh->node('plain')->stop;

# ---- a clean restart

$mesh->add('a');
wait_for_memory('a');
$mesh->sql('a', q{CREATE TABLE account (id int, note text); SELECT coord.protect_table('account', 'job')});
# Expired at once, or not: by the clock of the session that acquires.
$mesh->sql('a', acquire('clean', 'a', '10 min') . ';' . ahead(-3600) . acquire('late', 'a', '10 min') . ';' . acquire('prepared', 'a', '2 h'));
$renewed = $mesh->sql('a', ahead(60) . renew('clean', 'a', 1, '10 min'));
$mesh->sql('a', q{CREATE TABLE queue (id int); SELECT coord.protect_table('queue', 'prepared')});
$mesh->sql('a', q{BEGIN; SELECT coord.fence_set('prepared', 1); INSERT INTO queue VALUES (1); PREPARE TRANSACTION 'half done'});
$mesh->node('a')->restart;
is($mesh->sql('a', stored('clean')), $renewed, 'a clean end writes renewals to the table');
is($mesh->sql('a', effective('clean')), $renewed, 'after it the lease expires when it did before');
is($mesh->sql('a', state('late')), 'expired a 1', 'and a lease that has expired is free at once');
wait_for_memory('a');
is($mesh->sql('a', acquire('late', 'b', '10 min')), '2', 'another is granted it');

# ---- a prepared transaction of a writer, across that restart

my $takeover = ahead(7300) . acquire('prepared', 'b', '10 min');
like(refusal($mesh->node('a'), $takeover), qr/^55P03: lease "prepared" cannot change its holder now\nDETAIL:  .*prepared transaction "half done"/,
	'a takeover names the prepared transaction in its way');
is($mesh->sql('a', q{SELECT writers FROM coord.lease_status WHERE resource = 'prepared'}), '1', 'it counts as a writer');
$mesh->sql('a', q{COMMIT PREPARED 'half done'});
is($mesh->sql('a', $takeover), '2', 'its commit lets the lease go');
is($mesh->sql('a', 'SELECT count(*) FROM queue'), '1', 'and its write came before the takeover');

# ---- kill -9 of the postmaster alone: what is left of the server may still write renewals back

$mesh->sql('a', ahead(-3600) . acquire('taken', 'a', '10 min') . ';' . acquire('renewed', 'a', '10 min'));
$renewed = $mesh->sql('a', renew('renewed', 'a', 1, '10 min'));
is($mesh->sql('a', q{SET synchronous_commit = off; } . acquire('taken', 'b', '10 min')), '2', 'a takeover commits, with synchronous_commit off');
$mesh->kill9('a');
$mesh->restart_after_kill('a');
is($mesh->sql('a', state('taken')), 'held b 2', 'it is there after kill -9 of the postmaster');
is($mesh->sql('a', q{SELECT count(*) FROM coord.lease_history WHERE resource = 'taken' AND epoch = 2 AND event = 'granted'}), '1', 'with its history');
cmp_ok($mesh->sql('a', effective('renewed')), '>=', $renewed, 'a lease renewed in memory is held as long as its holder was told');
like(refusal($mesh->node('a'), acquire('renewed', 'b', '10 min')), qr/^55P03: lease "renewed" is held/, 'another is refused');

# ---- kill -9 of all processes at once: nothing is written back

wait_for_memory('a');
$mesh->sql('a', ahead(-3600) . acquire($_, 'a', '10 min')) foreach 'unwritten', 'expired', 'async';
$mesh->sql('a', acquire('released', 'a', '10 min') . q{; SELECT coord.lease_release('released', 'a', 1)});
$mesh->sql('a', acquire('longer', 'a', '1 min') . ';' . renew('longer', 'a', 1, '1 h'));
$mesh->wait_for('a', q{SELECT ttl FROM coord.lease WHERE resource = 'longer'}, '01:00:00', 'a renewal to a longer ttl reaches the table by itself');
# That waits for no disk, but what is tested here is a crash after it got there.
$mesh->sql('a', 'SELECT pg_switch_wal()');
$renewed = $mesh->sql('a', renew('unwritten', 'a', 1, '10 min'));
is($mesh->sql('a', q{SET synchronous_commit = off; } . acquire('async', 'b', '10 min')), '2', 'a takeover commits, with synchronous_commit off');
$mesh->crash('a');
$mesh->restart_after_kill('a');
is($mesh->sql('a', state('async')), 'held b 2', 'it is there after a crash');
is($mesh->sql('a', state('unwritten')), 'held a 1', 'a lease renewed in memory alone counts as held after a crash');
cmp_ok($mesh->sql('a', effective('unwritten')), '>=', $renewed, 'at least as long as its holder was told');
like(refusal($mesh->node('a'), acquire('unwritten', 'b', '10 min')), qr/^55P03: lease "unwritten" is held/, 'another is refused');
is($mesh->sql('a', state('expired')), 'held a 1', 'so does one that had expired: it might have been renewed');
is($mesh->sql('a', state('released')), 'free a 1', 'one that was released is free');
wait_for_memory('a');
# From the start, which lies between the making of the memory and now.
my $from_start = q{SELECT s.expires_at BETWEEN m.memory + s.ttl AND coord.lease_now() + s.ttl
	FROM (SELECT expires_at, interval '%2$s' AS ttl FROM coord.lease_status WHERE resource = '%1$s') s, coord.lease_memory m};
is($mesh->sql('a', sprintf $from_start, 'expired', '10 min'), 't', 'held for its ttl from the start');
is($mesh->sql('a', sprintf $from_start, 'longer', '1 h'), 't', 'the longer ttl where it was renewed to that');
my %before = map { $_ => $mesh->sql('a', effective($_)) } 'unwritten', 'expired', 'longer', 'async';

# A clean restart soon after does not take back what the crash has left in doubt.
$mesh->node('a')->restart;
cmp_ok($mesh->sql('a', effective($_)), '>=', $before{$_}, "after a clean restart that follows it is held as long: $_") foreach sort keys %before;
wait_for_memory('a');
is($mesh->sql('a', ahead(700) . acquire('unwritten', 'b', '10 min')), '2', 'after its ttl another is granted it');
like(refusal($mesh->node('a'), q{SELECT coord.fence('unwritten', 1)}), qr/^23514: stale fencing token 1/, 'and the old token is refused');

# ---- kill -9 of a backend in the middle of a takeover: the server restarts itself

sub crash
{
	my ($pid) = @_;
	my $memory = $mesh->sql('a', 'SELECT memory FROM coord.lease_memory');
	kill 'KILL', $pid or die "no process $pid";
	$mesh->wait_for('a', "SELECT memory <> '$memory' AND coord.lease_memory_is_open() FROM coord.lease_memory");
	return;
}

$mesh->sql('a', ahead(-3600) . acquire('middle', 'a', '10 min'));
my $session = session($mesh->node('a'));
is(answer($session, 'BEGIN;' . acquire('middle', 'b', '10 min') . ';'), '2', 'a takeover under way');
crash(pid_of($session));
$session->{run}->kill_kill;
is($mesh->sql('a', state('middle')), 'held a 1', 'that is killed leaves the lease as it was, held for its ttl');
is($mesh->sql('a', q{SELECT count(*) FROM coord.lease_history WHERE resource = 'middle'}), '1', 'no history');
$mesh->sql('a', renew('middle', 'a', 1, '10 min'));
pass('and its holder can renew it');
is($mesh->sql('a', ahead(700) . acquire('middle', 'c', '10 min')), '2', 'the next takeover has the epoch that was never granted');

# ---- a holder that is stopped past its time

is($mesh->sql('a', acquire('job', 'a', '10 min')), '1', 'a holder');
$session = session($mesh->node('a'));
my $holder = pid_of($session);
answer($session, q{BEGIN; SELECT coord.fence_set('job', 1); INSERT INTO account VALUES (1, 'stopped');});
stop_and_wait($holder);
$takeover = ahead(700) . q{SELECT epoch FROM coord.lease_acquire('job', 'b', '1 h'%s)};
like(refusal($mesh->node('a'), sprintf $takeover, ''), qr/^55P03: lease "job" cannot change its holder now\nDETAIL:  .*: process $holder\.\nHINT:/,
	'stopped with a write in flight: a takeover names its process');
is($mesh->sql('a', state('job')), 'held a 1', 'and changes nothing');
like(refusal($mesh->node('a'), sprintf $takeover, ', terminate_writers => true'),
	qr/^55P03: lease "job" cannot change its holder now\nDETAIL:  .*: process $holder\.\nHINT:  A stopped process does not terminate before it goes on/,
	'a termination does not reach it, which is said');
kill 'CONT', $holder;
is($mesh->sql('a', sprintf $takeover, q{, max_wait => '60 s'}), '2', 'once it goes on the termination arrives, and the takeover succeeds');
is($mesh->sql('a', 'SELECT count(*) FROM account'), '0', 'nothing of what it wrote is there');
eval { $session->{run}->kill_kill; };

# What is idle, and not stopped, is terminated at once.
$session = session($mesh->node('a'));
answer($session, ahead(700) . q{BEGIN; SELECT coord.fence_set('job', 2); INSERT INTO account VALUES (2, 'idle');});
is($mesh->sql('a', ahead(5000) . q{SELECT epoch FROM coord.lease_acquire('job', 'a', '1 h', terminate_writers => true)}), '3', 'an idle writer is terminated');
is($mesh->sql('a', 'SELECT count(*) FROM account'), '0', 'and nothing of what it wrote is there');
eval { $session->{run}->kill_kill; };

# Stopped before it writes, at every isolation level, with a snapshot older than the takeover.
my $epoch = 3;
foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	$session = session($mesh->node('a'));
	my $pid = pid_of($session);
	is(answer($session, qq{BEGIN ISOLATION LEVEL $level; SELECT epoch FROM coord.lease WHERE resource = 'job';}), $epoch, "$level: a holder looks");
	stop_and_wait($pid);
	# Sent while it is stopped: what it does first when it goes on.
	$session->{stdin} .= "\\set VERBOSITY verbose\nSELECT coord.fence_set('job', $epoch);\n";
	$session->{run}->pump_nb;
	is($mesh->sql('a', ahead(10_000 * $epoch) . acquire('job', "of $level", '1 h')), $epoch + 1, 'stopped before its write, it does not delay a takeover');
	kill 'CONT', $pid;
	like(answer($session, ''), qr/^23514: stale fencing token $epoch for lease "job"\nDETAIL:  The current epoch is @{[ $epoch + 1 ]}, held by "of $level"/,
		'and on wake-up it is refused');
	like(answer($session, q{INSERT INTO account VALUES (3, 'late');}), qr/^25P02/, 'with its transaction');
	answer($session, 'ROLLBACK;');
	$session->quit;
	$epoch++;
}
is($mesh->sql('a', 'SELECT count(*) FROM account'), '0', 'no late write is there');

# ---- NOTIFY

my $listener = session($mesh->node('a'));
answer($listener, 'LISTEN coord_lease;');
my @told;
sub hear
{
	my ($count) = @_;
	@told = ();
	wait_until("$count notifications", sub {
		my $output = answer($listener, 'SELECT 1;');
		while ($output =~ /^Asynchronous notification "coord_lease" with payload "(.*)" received from server process with PID (\d+)\.$/mg)
		{
			push @told, { %{ JSON::PP::decode_json($1) }, pid => $2 };
		}
		return @told >= $count;
	});
	return join ', ', map { "$_->{event} $_->{resource} $_->{holder} $_->{epoch}" } @told;
}
my $worker = $mesh->sql('a', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_test worker'});
$mesh->sql('a', acquire('news', 'a', '10 min'));
is(hear(1), 'granted news a 1', 'a listener is told of a grant');
is($told[0]{pid}, $worker, 'by the worker');
like($told[0]{expires_at}, qr/^\d{4}-\d\d-\d\dT/, 'and until when');
$mesh->sql('a', q{SELECT coord.lease_release('news', 'a', 1)});
is(hear(1), 'released news a 1', 'of a release');
$mesh->sql('a', acquire('news', 'b', '10 min') . q{; SELECT coord.lease_revoke('news', 'maintenance "now"')});
is(hear(2), 'granted news b 2, revoked news b 2', 'and of a revocation');
is($told[1]{reason}, 'maintenance "now"', 'with its reason');
$mesh->sql('a', 'BEGIN;' . acquire('news', 'c', '10 min') . '; ROLLBACK;' . acquire('news', 'd', '10 min'));
is(hear(1), 'granted news d 3', 'not of a grant that rolled back');

# More than memory keeps, while nobody looks there; and what lies elsewhere by then.
my $stopped = stop_worker($mesh->node('a'));
$mesh->sql('a', q{SELECT count(coord.lease_acquire('crowd ' || n, 'a', '1 min')) FROM generate_series(1, 3000) n});
kill 'CONT', $stopped;
hear(3000);
is(join(' ', scalar @told, scalar keys %{ { map { $_->{resource} => 1 } @told } }), '3000 3000', 'of thousands that came at once, each one once');
$stopped = stop_worker($mesh->node('a'));
$mesh->sql('a', acquire("moved $_", 'a', '1 min')) foreach 1 .. 3;
$mesh->sql('a', 'VACUUM FULL coord.lease_history');
kill 'CONT', $stopped;
is(hear(3), 'granted moved 1 a 1, granted moved 2 a 1, granted moved 3 a 1', 'and of those in a table that was rewritten meanwhile');
$listener->quit;

# ---- a longer ttl while another transaction has the row: the worker comes back to it

$mesh->sql('a', acquire($_, 'a', '1 min')) foreach 'row in use', 'first', 'second';
$session = session($mesh->node('a'));
answer($session, q{BEGIN; SELECT coord.lease_release('row in use', 'a', 1);});
$mesh->sql('a', renew('row in use', 'a', 1, '1 h'));
my $ttl = q{SELECT ttl FROM coord.lease WHERE resource = '%s'};
# What comes later and gets there shows that the worker has been at it.
$mesh->sql('a', renew('first', 'a', 1, '1 h'));
$mesh->wait_for('a', sprintf($ttl, 'first'), '01:00:00');
is($mesh->sql('a', sprintf $ttl, 'row in use'), '00:01:00', 'the row of a lease that is being released is not waited for');
answer($session, 'ROLLBACK;');
$session->quit;
$mesh->sql('a', renew('second', 'a', 1, '1 h'));
$mesh->wait_for('a', sprintf($ttl, 'second'), '01:00:00');
$mesh->wait_for('a', sprintf($ttl, 'row in use'), '01:00:00', 'after its rollback the longer ttl gets there as soon as others', timeout => 10);

# ---- the worker is another one while a change of a lease is in flight

$mesh->sql('a', acquire('in flight', 'a', '10 min'));
$mesh->sql('a', ahead(300) . renew('in flight', 'a', 1, '10 min'));
$session = session($mesh->node('a'));
answer($session, q{BEGIN; SELECT coord.lease_release('in flight', 'a', 1);});
$mesh->sql('a', "SELECT pg_terminate_backend($worker)");
$mesh->wait_for('a', "SELECT coord.lease_memory_is_open() AND pid <> $worker FROM pg_stat_activity WHERE backend_type = 'pg_test worker'");
answer($session, 'ROLLBACK;');
$session->quit;
is($mesh->sql('a', ahead(700) . q{SELECT holder FROM coord.lease_current('in flight')}), 'a', 'a lease whose release rolled back is held as long as it was renewed, also under another worker');
my $is_timed_out;
$mesh->node('a')->psql('postgres', renew('in flight', 'a', 1, '10 min'), timeout => 20, timed_out => \$is_timed_out);
ok(!$is_timed_out, 'and can be renewed');
# It can neither be cancelled nor terminated.
if ($is_timed_out)
{
	crash($_) foreach $mesh->sql('a', q{SELECT pid FROM pg_stat_activity WHERE query LIKE '%lease_renew(''in flight''%' AND pid <> pg_backend_pid()});
}

# What was renewed is held while it is being written back.
$mesh->sql('a', acquire('closing', 'a', '10 min'));
$mesh->sql('a', ahead(300) . renew('closing', 'a', 1, '10 min'));
my $reader = session($mesh->node('a'));
answer($reader, 'BEGIN; LOCK TABLE coord.lease IN SHARE MODE;');
$mesh->sql('a', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pg_test worker'});
$mesh->wait_for('a', 'SELECT coord.lease_memory_is_open()', 'f');
is($mesh->sql('a', ahead(700) . q{SELECT holder FROM coord.lease_current('closing')}), 'a', 'a lease is held while an ending worker writes back');
answer($reader, 'ROLLBACK;');
$reader->quit;
wait_for_memory('a');
is($mesh->sql('a', ahead(700) . q{SELECT holder FROM coord.lease_current('closing')}), 'a', 'and when another worker has begun');

# A renewal of what its own transaction was granted: memory is closed when it commits, and opened after.
my $own = session($mesh->node('a'));
$renewed = answer($own, 'BEGIN;' . acquire('own', 'a', '10 min') . ' \\g /dev/null' . "\n" . renew('own', 'a', 1, '1 h') . ';');
like($renewed, qr/^\d+\.\d+$/, 'a transaction renews what it was granted');
my $is_open = 'SELECT coord.lease_memory_is_open()';
my $blocker = session($mesh->node('a'));
answer($blocker, 'BEGIN; LOCK TABLE coord.lease_memory;');
$mesh->sql('a', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pg_test worker'});
$mesh->wait_for('a', $is_open, 'f');
answer($own, 'COMMIT;');
$own->quit;
answer($blocker, 'ROLLBACK;');
$blocker->quit;
wait_for_memory('a');
is($mesh->sql('a', effective('own')), $renewed, 'and holds it until then, also when another worker opens the memory');

# ---- how long history is kept

# What is too old goes when the worker begins, and every minute.
sub restart_with_retention
{
	my ($minutes) = @_;
	$mesh->sql('a', "ALTER SYSTEM SET coord.lease_history_retention = $minutes");
	$mesh->node('a')->restart;
	my $listener = session($mesh->node('a'));
	answer($listener, 'LISTEN coord_lease;');
	# A worker that tells of changes has been at the history before.
	wait_until('a notification', sub {
		$mesh->sql('a', acquire('told', 'a', '1 min') . q{; SELECT coord.lease_revoke('told', 'enough')});
		return answer($listener, 'SELECT 1;') =~ /^Asynchronous notification "coord_lease"/m;
	});
	$listener->quit;
	return;
}
restart_with_retention(-1);
# Recorded by the clock of the session that acquires.
$mesh->sql('a', ahead(-$_->[1]) . acquire("granted $_->[0]", 'a', '10 min')) foreach [ 'long ago', 8 * 86_400 ], [ 'an hour ago', 3_600 ], [ 'now', 0 ];
my $kept = q{SELECT string_agg(resource, ', ' ORDER BY recorded_at) FROM coord.lease_history WHERE resource LIKE 'granted %'};
restart_with_retention(-1);
is($mesh->sql('a', $kept), 'granted long ago, granted an hour ago, granted now', 'history is kept for ever with a retention of -1');
restart_with_retention(1440);
is($mesh->sql('a', $kept), 'granted an hour ago, granted now', 'with one of a day what is older goes');
restart_with_retention(30);
is($mesh->sql('a', $kept), 'granted now', 'with one of half an hour too');
is($mesh->sql('a', q{SELECT count(*) FROM coord.lease WHERE resource LIKE 'granted %'}), '3', 'the leases are kept');
$mesh->sql('a', 'ALTER SYSTEM RESET coord.lease_history_retention');
$mesh->sql('a', 'SELECT pg_reload_conf()');

# ---- the extension created again

$mesh->sql('a', acquire('again', 'a', '1 h') . ';' . renew('again', 'a', 1, '1 h') . q{; SELECT coord.lease_release('again', 'a', 1);} . acquire('again', 'a', '1 h'));
$mesh->sql('a', 'DROP EXTENSION pg_test CASCADE; CREATE EXTENSION pg_test');
is($mesh->sql('a', acquire('again', 'b', '10 min')), '1', 'after DROP EXTENSION and CREATE EXTENSION epochs begin at 1');
$mesh->sql('a', q{SELECT coord.node_init('a')});
wait_for_memory('a');
is($mesh->sql('a', q{SELECT string_agg(format('%s %s %s %s', resource, state, holder, epoch), ', ') FROM coord.lease_status}), 'again held b 1',
	'nothing of the old memory counts');
like(refusal($mesh->node('a'), renew('again', 'a', 2, '10 min')), qr/^55000: lease "again" is lost\nDETAIL:  Claimed epoch 2, current epoch 1: never held/,
	'and the old holder is refused');
is($mesh->sql('a', renew('again', 'b', 1, '10 min') . ' > 0'), 't', 'the new one renews');

# Before the worker has noticed, the new table says nothing of the memory that renewals stay in.
stop_worker($mesh->node('a'));
$mesh->sql('a', q{DROP EXTENSION pg_test CASCADE; CREATE EXTENSION pg_test; SELECT coord.node_init('a')});
$mesh->sql('a', ahead(-3600) . acquire('early', 'a', '10 min'));
$renewed = $mesh->sql('a', renew('early', 'a', 1, '10 min'));
$mesh->crash('a');
$mesh->restart_after_kill('a');
cmp_ok($mesh->sql('a', effective('early')), '>=', $renewed, 'a lease renewed at once after CREATE EXTENSION is held as long, after a crash too');

unlike(PostgreSQL::Test::Utils::slurp_file($mesh->node('a')->logfile), qr/PANIC|panicked|terminated by signal (?!9)/, 'nothing crashed by itself');

done_testing();
