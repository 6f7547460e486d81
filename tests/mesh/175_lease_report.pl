# Leases of other nodes, by hearsay: refused while they last, granted above their epochs afterwards.

use strict;
use warnings;

use JSON::PP;
use PgTest::Lease qw(ahead refusal);
use PgTest::Mesh;
use Test::More;

my $mesh = PgTest::Mesh->new(names => [ 'a', 'b', 'c' ], conf => "coord.gossip_interval = '200ms'");

sub acquire { return sprintf q{SELECT epoch FROM coord.lease_acquire('%s', '%s', '%s')}, @_; }
sub epoch_of { return "SELECT coalesce((SELECT epoch FROM coord.lease_current('$_[0]')), 0)"; }
sub check
{
	my ($where, @claim) = @_;
	my $answer = decode_json($mesh->sql($where, sprintf q{SELECT coord.fence_check('%s', '%s', '%s', %d)}, @claim));
	return join ' ', map { $answer->{decision}{$_} // () } qw(decision current_epoch current_holder committed_op_id);
}

# ---- before there is anybody to hear: what is there is told to whoever comes

is($mesh->sql('a', acquire('early', 'x', '1 h')), '1', 'a grants a lease while it is alone');
is($mesh->sql('a', 'SELECT count(*) FROM coord.lease_report'), '0', 'and reports to nobody');
$mesh->sql('a', q{SELECT coord.intent_record('early', 'run-1', 'x', 1, 'committed')});

# a and c reach each other through b alone.
$mesh->add_peer(@$_) foreach [ 'a', 'b' ], [ 'b', 'a' ], [ 'b', 'c' ], [ 'c', 'b' ];
$mesh->wait_for($_, epoch_of('early'), '1', "$_ hears of it") foreach 'b', 'c';
is(check('c', 'early', 'run-1', 'x', 1), check('a', 'early', 'run-1', 'x', 1), 'a run committed on a is committed on c, by the same record')
	if $mesh->wait_for('c', q{SELECT count(*) FROM coord.intent}, '1', 'and of the run committed under it');

# ---- held elsewhere

is($mesh->sql('a', acquire('job', 'agent-1', '1 h')), '1', 'a grants another');
$mesh->wait_for('c', epoch_of('job'), '1', 'c hears of it through b');
like($mesh->sql('c', q{SELECT holder, epoch, node, expires_at - clock_timestamp() BETWEEN '50 min' AND '61 min', clock_timestamp() - heard_at < '1 min' FROM coord.lease_current('job')}),
	qr/^agent-1\|1\|a\|t\|t$/, 'who holds it, where, until when, and since when that is known');
is($mesh->sql('a', q{SELECT node IS NULL AND heard_at IS NULL FROM coord.lease_current('job')}), 't', 'where it is held, it is no hearsay');
like(refusal($mesh->node('c'), acquire('job', 'agent-2', '1 h')),
	qr/^55000: lease "job" is held on another node\nDETAIL:  Held by "agent-1" at epoch 1 until [^,]+, as heard .+\.\nHINT:  Acquire it on node "a", or here once it has ended there\./,
	'c refuses it and names the node');
is($mesh->sql('c', q{SELECT coord.lease_try_acquire('job', 'agent-2', '1 h') IS NULL}), 't', 'and gives NULL to whoever tries');
like(refusal($mesh->node('c'), q{SELECT coord.lease_acquire('job', 'agent-2', '1 h', max_wait => '300 ms')}), qr/^55000: lease "job" is held on another node/, 'it waits for its end in vain');

# ---- fence_check never says proceed from hearsay

is(check('a', 'job', 'run-1', 'agent-1', 1), 'proceed', 'on a the holder may proceed');
is(check('c', 'job', 'run-1', 'agent-1', 1), 'not_held', 'on c it may not');
is($mesh->sql('a', q{SELECT coord.intent_record('job', 'run-0', 'agent-1', 1, 'committed') ->> 'recorded'}), 'true', 'a run is committed on a');
$mesh->wait_for('c', q{SELECT coord.fence_check('job', 'run-0', 'agent-1', 1) -> 'decision' ->> 'decision'}, 'already_committed', 'c hears that it is');
is($mesh->sql('c', q{SELECT coord.intent_record('job', 'run-0', 'agent-1', 1, 'pending')}), '{"reason": "run already committed (terminal guard)", "recorded": false}', 'and does not let it begin again');
is($mesh->sql('c', q{SELECT coord.intent_record('job', 'run-0', 'agent-1', 1, 'committed') ->> 'op_id'}),
	$mesh->sql('a', q{SELECT op_id FROM coord.intent WHERE run_id = 'run-0'}), 'to commit it again is to name the same record');
like(refusal($mesh->node('c'), q{SELECT coord.intent_record('job', 'run-2', 'agent-1', 2, 'pending')}), qr/^22023: epoch 2 of lease "job" was never issued/, 'an epoch that was never heard of was never issued');

# ---- renewals and ends are heard

my $left = q{SELECT coalesce((SELECT expires_at - clock_timestamp() FROM coord.lease_current('job')), '0') BETWEEN interval '%s' AND '%s'};
$mesh->sql('a', q{SELECT coord.lease_renew('job', 'agent-1', 1, '5 min')});
$mesh->wait_for('c', sprintf($left, '4 min', '6 min'), 't', 'a shorter time is heard');
$mesh->sql('a', q{SELECT coord.lease_renew('job', 'agent-1', 1, '3 h')});
$mesh->wait_for('c', sprintf($left, '2 h', '4 h'), 't', 'and a longer one');
$mesh->sql('a', q{SELECT coord.lease_release('job', 'agent-1', 1)});
$mesh->wait_for('c', epoch_of('job'), '0', 'and the end');
is(check('c', 'job', 'run-1', 'agent-1', 1), 'not_held', 'then nobody holds it');
is($mesh->sql('c', acquire('job', 'agent-2', '1 h')), '2', 'c grants it above the epoch it heard');
$mesh->wait_for('a', epoch_of('job'), '2', 'a hears of that');
is(check('a', 'job', 'run-1', 'agent-1', 1), 'stale_epoch 2 agent-2', 'and the first holder is stale there too');
like(refusal($mesh->node('a'), acquire('job', 'agent-1', '1 h')), qr/^55000: .*HINT:  Acquire it on node "c"/s, 'so that a refuses it');

# A session whose clock is past the expiry that was heard.
is($mesh->sql('a', ahead(2 * 3600) . acquire('job', 'agent-1', '1 h')), '3', 'after its end a grants it again, above');

# ---- a lease that is renewed for long looks held for long, and costs the others little

$mesh->sql('a', acquire('short', 'x', '4 s'));
$mesh->wait_for('b', epoch_of('short'), '1', 'a short lease is heard');
my $rounds = 45;
my ($is_held, %written) = (0);
foreach my $round (1 .. $rounds)
{
	$mesh->sql('a', q{SELECT coord.lease_renew('short', 'x', 1, '4 s'); SELECT pg_sleep(0.1)});
	$is_held += $mesh->sql('b', epoch_of('short'));
	$written{ $mesh->sql('b', q{SELECT local_xid FROM coord.lease_report WHERE resource = 'short'}) } = 1;
}
is($is_held, $rounds, 'renewed again and again it is held on b all the time');
cmp_ok(scalar keys %written, '<', $rounds / 3, 'and is written there far less often');

# ---- cut off: both grant; this is no mutual exclusion

$mesh->sql('b', q{SELECT coord.remove_peer('a')});
$mesh->sql('a', q{SELECT coord.remove_peer('b')});
$mesh->wait_for('b', epoch_of('early'), '0', 'a peer that was removed keeps nobody waiting: what it held counts as over');
is($mesh->sql('b', acquire('early', 'y', '1 h')), '2', 'and is granted above it');
$mesh->sql('b', q{SELECT coord.lease_release('early', 'y', 2)});
is($mesh->sql('a', acquire('alone', 'x', '1 h')), '1', 'two nodes that do not hear of each other');
is($mesh->sql('b', acquire('alone', 'y', '1 h')), '1', 'grant the same');
$mesh->add_peer(@$_) foreach [ 'a', 'b' ], [ 'b', 'a' ];
$mesh->wait_for('c', q{SELECT count(*) FROM coord.lease_report WHERE resource = 'alone'}, '2', 'when they do again, a third hears of both');
$mesh->wait_for('b', epoch_of('early'), '1', 'what a holds counts again once it is a peer again');
is($mesh->sql('a', q{SELECT holder FROM coord.lease_current('alone')}), 'x', 'a goes on with its own');
is($mesh->sql('b', q{SELECT holder FROM coord.lease_current('alone')}), 'y', 'b with its own');
is($mesh->sql('c', ahead(2 * 3600) . acquire('alone', 'z', '1 h')), '2', 'and whoever grants next grants above both');

# ---- a crash loses nothing that was heard, and a restart finds its place

$mesh->kill9('c');
$mesh->restart_after_kill('c');
is($mesh->sql('c', q{SELECT string_agg(node || epoch, ' ' ORDER BY node) FROM coord.lease_report WHERE resource = 'job'}), 'a3 c2', 'what was heard before a crash is known after it');
$mesh->sql('a', acquire('late', 'x', '1 h'));
$mesh->wait_for('c', epoch_of('late'), '1', 'and what comes after it is heard');

# ---- what a node has committed it knows again after its disk was put back

$mesh->node('c')->backup('before');
$mesh->sql('c', acquire('own', 'x', '1 h'));
is($mesh->sql('c', q{SELECT coord.intent_record('own', 'run-1', 'x', 1, 'committed') ->> 'recorded'}), 'true', 'c commits a run');
$mesh->wait_for('b', q{SELECT coord.fence_check('own', 'run-1', 'x', 1) -> 'decision' ->> 'decision'}, 'already_committed', 'b hears of it');
$mesh->node('c')->stop('immediate');
my $restored = PostgreSQL::Test::Cluster->new('c2', port => $mesh->node('c')->port);
$restored->init_from_backup($mesh->node('c'), 'before');
$mesh->replace('c', $restored);
$restored->start;
$mesh->wait_for('c', q{SELECT coord.fence_check('own', 'run-1', 'x', 1) -> 'decision' ->> 'decision'}, 'already_committed', 'c, restored from before, hears of it again');
like($mesh->sql('c', 'SELECT coord.node_actor()'), qr/^c#\d+$/, 'in a new life');
cmp_ok($mesh->sql('c', acquire('own', 'y', '1 h')), '>', 1 << 40, 'in which it grants above all that it can have granted before');

# ---- more than one message holds

$mesh->sql('a', q{SELECT count(coord.lease_acquire('many-' || n, 'x', '1 h')) FROM generate_series(1, 2500) n});
$mesh->wait_for('c', q{SELECT count(*) FROM coord.lease_report WHERE resource LIKE 'many-%'}, '2500', 'thousands at once are heard');

# ---- a node that leaves

$mesh->sql('a', 'SELECT coord.node_leave()');
$mesh->wait_for('b', q{SELECT count(*) FROM coord.lease_report r WHERE r.node = 'a' AND NOT r.has_ended AND r.expires_at > coord.lease_now()}, '0', 'what a node held that has left counts as over');
is($mesh->sql('b', acquire('late', 'y', '1 h')), '2', 'and is granted above it');

done_testing();
