# Operations travel by logical replication where the servers have it; gossip repairs what that loses.

use strict;
use warnings;

use PgTest::Lease qw(session stop_worker);
use PgTest::Load;
use PgTest::Mesh;
use Test::More;

my $mesh = PgTest::Mesh->new(
	names => [ 'a', 'b', 'c' ],
	conf => "coord.gossip_interval = '100ms'\ncoord.heartbeat_interval = '100ms'\nwal_retrieve_retry_interval = '200ms'"
);

sub turn { return sprintf q{SELECT coord.record_turn('personal', '%s', '%s', '%s') ->> 'op_id'}, @_; }

# One stream as its reader, or its origin, has it.
sub stream { return sprintf q{SELECT state FROM coord.stream_status WHERE stream = '%s' AND peer = '%s' AND direction = '%s'}, @_; }

my $content = q{SELECT coord.state_hash() || ' ' || (SELECT md5(coalesce(string_agg(o.op_id, ',' ORDER BY o.op_id), '')) FROM coord.op o)};

# A test: all nodes come to hold the same operations, all that any has appended, and fold them to the same.
sub agrees
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $count = 0;
	$count += $mesh->sql($_, qq{SELECT count(*) FROM coord.op WHERE split_part(origin, '#', 1) = '$_'}) foreach $mesh->names;
	subtest $what => sub {
		$mesh->wait_for($_, 'SELECT count(*) FROM coord.op', $count, "$_ has all $count operations") foreach $mesh->names;
		my %contents = map { $mesh->sql($_, $content) => 1 } $mesh->names;
		is(scalar keys %contents, 1, 'the same ones, and the same of them');
		is($mesh->sql($_, 'SELECT coord.op_refold()'), '0', "$_ folds them again to the same") foreach $mesh->names;
	};
	return;
}

sub streams
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach my $name ($mesh->names)
	{
		$mesh->wait_for($name, q{SELECT count(*) FROM coord.stream_status WHERE stream = 'op' AND state = 'streaming'}, '4', "$name: $what")
		  or diag($mesh->sql($name, 'SELECT * FROM coord.stream_status'));
	}
	return;
}

# ---- from nothing, while somebody writes

$mesh->sql('a', turn('early', 'user', "before there is a stream, $_")) foreach 1 .. 3;
my $writer = session($mesh->node('a'));
$writer->query_safe('BEGIN');
my $xid = $writer->query_safe('SELECT pg_current_xact_id()::text');
$mesh->join_all;
my $waits = q{SELECT state || ': ' || reason FROM coord.stream_status WHERE peer = '%s' AND direction = '%s'};
$mesh->wait_for('a', sprintf($waits, 'b', 'out'), "waiting: waiting for transaction $xid", 'a slot waits for whoever writes');
$mesh->wait_for('b', sprintf($waits, 'a', 'in'), "waiting: waiting for transaction $xid", 'and its reader knows for whom');
$mesh->wait_for('b', stream('op', 'c', 'in'), 'streaming', 'others do not');
$writer->query_safe(turn('early', 'user', 'while a stream begins'));
$writer->query_safe('COMMIT');
streams('streams from both peers and to both');
agrees('what is older than the streams comes as well');

# ---- by streams alone

my %worker = map { $_ => stop_worker($mesh->node($_)) } $mesh->names;
$mesh->sql($_, turn('talk', 'user', "from $_")) foreach $mesh->names;
agrees('what is appended while no worker runs');
kill 'CONT', values %worker;

# What streams bring, gossip leaves out; and a stream is complete up to its heartbeats.
my $covers = q{SELECT f OPERATOR(coord.@>) '%s' FROM (SELECT coord.%s() AS f) q};
streams('all streams go on');
$mesh->sql('a', turn('talk', 'user', 'once more'));
my $held = $mesh->sql('a', 'SELECT coord.frontier()');
$mesh->wait_for($_, sprintf($covers, $held, 'stable_frontier'), 't', "$_ knows that all hold it") foreach $mesh->names;
is($mesh->sql('b', q{SELECT count(*) FROM coord.stream_source s JOIN coord.report_cursor c ON c.node = s.node
                      WHERE s.node = 'a' AND coord.vclock_get(c.frontier, s.actor) >= s.horizon}), '0', 'by what streams say, not by what gossip does');
$writer->query_safe('BEGIN');
$writer->query_safe(turn('open', 'user', 'still writing'));
$xid = $writer->query_safe('SELECT pg_current_xact_id()::text::bigint');
$mesh->sql('a', turn('open', 'user', 'done'));
my $of_a = q{SELECT coord.vclock_get(coord.%s(), 'a') %s %d};
$mesh->wait_for($_, q{SELECT string_agg(content, ' ') FROM coord.transcript('open')}, 'done', "$_ has what was committed beside an open transaction") foreach 'b', 'c';
is($mesh->sql($_, sprintf $of_a, 'frontier', '<=', $xid), 't', "$_ calls nothing complete above it") foreach $mesh->names;
$writer->query_safe('COMMIT');
$mesh->wait_for($_, sprintf($of_a, 'frontier', '>', $xid), 't', "$_ does once it has ended") foreach $mesh->names;
is($mesh->sql('c', q{SELECT count(*) FROM coord.transcript('open')}), '2', 'and by then has it');

# A record that a local transaction holds waits alone.
my $tool = q{SELECT coord.op_append('personal', 'registry:tool', '{"id": "%s", "by": "%s"}') IS NOT NULL};
my $holder = session($mesh->node('b'));
$holder->query_safe('BEGIN');
$holder->query_safe(sprintf $tool, 'held', 'b');
$mesh->sql('a', sprintf $tool, 'held', 'a') foreach 1 .. 3;
$mesh->sql('a', sprintf $tool, 'free', 'a');
$mesh->wait_for('b', q{SELECT string_agg(key, ',') FROM coord.record WHERE surface = 'registry:tool'}, 'free', 'another record is folded');
is($mesh->sql('b', q{SELECT count(*) FROM coord.fold_waiting}), '3', 'the one that is held waits');
$holder->query_safe('COMMIT');
$holder->quit;
$mesh->wait_for('b', q{SELECT count(*) FROM coord.fold_waiting}, '0', 'until the transaction ends');
agrees('then they fold to the same');

# ---- load on three nodes, one of which is killed

my %load = map { $_ => PgTest::Load->new($mesh->node($_), turn('load', 'user', "from $_")) } $mesh->names;
$mesh->wait_for('a', q{SELECT count(*) > 200 AND count(DISTINCT origin) = 3 FROM coord.transcript('load')});
$mesh->kill9('b');
$load{b}->stop;
my $so_far = $mesh->sql('a', q{SELECT count(*) FROM coord.transcript('load')});
$mesh->wait_for('c', qq{SELECT count(*) > $so_far + 50 FROM coord.transcript('load')}, 't', 'the others go on without the killed node');
$mesh->restart_after_kill('b');
$load{$_}->stop foreach 'a', 'c';
agrees('after the crash of a node under load');
streams('the same streams go on');

# ---- a stream that is stuck

my $subscription = $mesh->sql('c', q{SELECT slot FROM coord.stream_status WHERE peer = 'a' AND direction = 'in'});
$mesh->sql('c', "ALTER SUBSCRIPTION $subscription DISABLE");
$mesh->sql('a', turn('stuck', 'user', "of a stream that is stuck, $_")) foreach 1 .. 3;
$mesh->wait_for('c', stream('op', 'a', 'in'), 'stalled', 'a stream without heartbeats is called stalled');
agrees('and gossip brings what it does not');
$mesh->sql('c', "ALTER SUBSCRIPTION $subscription ENABLE");
streams('until it goes on');
agrees('and brings the same again');

# ---- a slot that is lost

$mesh->node('c')->stop;
$mesh->node('a')->append_conf('postgresql.conf', "max_slot_wal_keep_size = '1MB'");
$mesh->node('a')->reload;
foreach my $segment (1 .. 3)
{
	$mesh->sql('a', turn('lost', 'user', "in segment $segment"));
	$mesh->sql('a', 'SELECT pg_switch_wal()');
}
$mesh->sql('a', 'CHECKPOINT');
$mesh->wait_for('a', q{SELECT slots_lost FROM coord.stream_status WHERE peer = 'c' AND direction = 'out'}, '1', 'a slot is lost while its reader is away');
$mesh->node('c')->start;
streams('another one takes its place');
agrees('and nothing is missing');

# ---- a table of the user's own

$mesh->sql($_, 'CREATE TABLE reading (sensor text, at int, value float, origin text, PRIMARY KEY (sensor, at))') foreach $mesh->names;
$mesh->sql('a', q{INSERT INTO reading VALUES ('door', 0, 0, 'a')});
is($mesh->sql($_, q{SELECT coord.stream_add('reading')}), 'public.reading', "$_ streams a table") foreach $mesh->names;
$mesh->sql($_, sprintf q{INSERT INTO reading VALUES ('%s', generate_series(1, 10), 1)}, $_) foreach $mesh->names;
$mesh->wait_for($_, q{SELECT count(*) FROM reading}, '31', "$_ has the rows of all, also the one from before") foreach $mesh->names;
is($mesh->sql('b', q{SELECT string_agg(DISTINCT origin, ',') FROM reading WHERE sensor = 'c'}), 'c', 'each with its origin');

# ---- a node that cannot stream

my $plain = $mesh->add('d', conf => 'wal_level = replica');
$mesh->add_peer('a', 'd');
$mesh->add_peer('d', 'a');
$mesh->wait_for('d', stream('op', 'a', 'in'), 'streaming', 'it reads streams');
$mesh->wait_for('a', sprintf($waits, 'd', 'in'), 'waiting: wal_level is replica', 'what it cannot do, its reader knows');
$mesh->sql('d', turn('plain', 'user', 'by gossip'));
$mesh->sql('a', turn('plain', 'assistant', 'by a stream'));
agrees('and its operations travel by gossip, also to those it does not know');

# Its rows are operations. What a table does not take is kept, and stops nobody.
my $read = q{SELECT count(*), count(DISTINCT origin) FROM reading};
$mesh->sql('c', 'ALTER TABLE reading ADD CHECK (value < 100)');
$mesh->sql('d', 'CREATE TABLE reading (sensor text, at int, value float, origin text, PRIMARY KEY (sensor, at))');
$mesh->sql('d', q{INSERT INTO reading VALUES ('d', 0, 0.1, 'd')});
$mesh->sql('d', q{SELECT coord.stream_add('reading')});
$mesh->sql('d', q{INSERT INTO reading VALUES ('d', generate_series(1, 9), 0.1)});
$mesh->sql('d', q{INSERT INTO reading VALUES ('d', 10, 100), ('d', 11, 'NaN')});
$mesh->wait_for('a', $read, '43|4', 'rows of a table travel by gossip as well');
$mesh->wait_for('b', $read, '43|4', 'from node to node');
$mesh->wait_for('c', $read, '41|4', 'past the ones that a table refuses');
is($mesh->sql('c', q{SELECT string_agg(reason || ' ' || (op #>> '{payload,row,at}'), ',' ORDER BY seq) FROM coord.conflict}), 'refused 10,refused 11', 'which are kept');
$mesh->sql('c', 'ALTER TABLE reading DROP CONSTRAINT reading_value_check');
is($mesh->sql('c', 'SELECT coord.op_refold()'), '2', 'and put in when it takes them');
is($mesh->sql('c', 'SELECT count(*) FROM coord.conflict'), '0', 'which settles it');
$mesh->wait_for('d', q{SELECT count(*) FROM reading}, '23', 'it has those of its peer');
my $rows = q{SELECT string_agg(r::text, ' ' ORDER BY at) FROM reading r WHERE sensor = 'd'};
my $said = $mesh->sql('d', $rows);
is($mesh->sql($_, $rows), $said, "as they are, on $_") foreach 'a', 'b', 'c';
$mesh->sql('d', q{SELECT coord.stream_remove('reading')});
$mesh->sql('d', q{INSERT INTO reading VALUES ('d', 12, 0, 'd')});
agrees('nothing else has travelled');
$mesh->sql('d', 'SELECT coord.node_leave()');
$mesh->wait_for('a', q{SELECT count(*) FROM coord.stream_status WHERE peer = 'd'}, '0', 'a has nothing for it when it has left');
$mesh->forget('d');

# ---- away with it, on both sides

$mesh->sql($_, q{SELECT coord.stream_remove('reading')}) foreach $mesh->names;
$mesh->wait_for($_, q{SELECT count(*) FROM coord.stream_status WHERE stream <> 'op'}, '0', "$_ ends streaming a table") foreach $mesh->names;

my $remains = q{SELECT (SELECT count(*) FROM pg_replication_slots) || ' ' || (SELECT count(*) FROM pg_subscription) || ' ' || (SELECT count(*) FROM pg_publication)};
$mesh->wait_for('a', $remains, '2 2 1', 'two slots, two subscriptions, one publication');
$mesh->sql('a', q{SELECT coord.remove_peer('c')});
$mesh->wait_for($_, $remains, '1 1 1', "$_ has removed what was for the peer that was removed") foreach 'a', 'c';
$mesh->sql('c', 'SELECT coord.node_leave()');
$mesh->wait_for('c', $remains, '0 0 0', 'a node that leaves leaves nothing');
$mesh->wait_for('b', $remains, '1 1 1', 'and its peer has removed what was for it');
$mesh->node('c')->safe_psql('template1', 'DROP DATABASE postgres WITH (FORCE)');
pass('then its database can be dropped');
$mesh->sql('b', 'DROP EXTENSION pg_test CASCADE');
$mesh->wait_for('b', $remains, '0 0 0', 'nor does DROP EXTENSION');
$writer->quit;

done_testing();
