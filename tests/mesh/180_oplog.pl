# The operation log of a mesh by gossip: append anywhere, the same everywhere.

use strict;
use warnings;

use PgTest::Lease qw(refusal session stop_worker);
use PgTest::Load;
use PgTest::Mesh;
use Test::More;

my $mesh = PgTest::Mesh->new(names => [ 'a', 'b', 'c' ], conf => "wal_level = replica\ncoord.gossip_interval = '100ms'");

sub turn { return sprintf q{SELECT coord.record_turn('personal', '%s', '%s', '%s') ->> 'op_id'}, @_; }

# What a node holds and has made of it; equal on nodes that hold the same.
my $content = q{SELECT coord.state_hash() || ' ' || (SELECT md5(coalesce(string_agg(o.op_id, ',' ORDER BY o.op_id), '')) FROM coord.op o)};

# A test: all nodes come to hold the same operations, whose number this is, and fold them to the same.
sub agrees
{
	my ($count, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	subtest $what => sub {
		$mesh->wait_for($_, 'SELECT count(*) FROM coord.op', $count, "$_ has $count operations") foreach $mesh->names;
		my %contents = map { $mesh->sql($_, $content) => 1 } $mesh->names;
		is(scalar keys %contents, 1, 'the same ones, and the same of them');
		is($mesh->sql($_, 'SELECT coord.op_refold()'), '0', "$_ folds them again to the same") foreach $mesh->names;
		is($mesh->sql($_, 'SELECT count(*) FROM coord.conflict'), '0', "$_ refuses none") foreach $mesh->names;
	};
	return;
}

# ---- a conversation of two nodes that know each other through the third alone

# Numbers of transactions on b lie above those of the others.
$mesh->sql('b', q{DO $$ BEGIN FOR n IN 1..5000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$});
$mesh->add_peer(@$_) foreach [ 'a', 'b' ], [ 'b', 'a' ], [ 'b', 'c' ], [ 'c', 'b' ];
$mesh->sql('a', turn('trip', 'user', 'Where shall we go?'));
$mesh->wait_for('c', q{SELECT count(*) FROM coord.transcript('trip')}, '1', 'c hears through b what was said on a');
$mesh->sql('c', q{SELECT coord.record_turn('personal', 'trip', 'assistant', 'I look.', '[{"id": "1", "name": "map", "arguments": {"scale": 1.50}}]')});
$mesh->sql('c', q{SELECT coord.record_turn('personal', 'trip', 'tool', 'Oslo', tool_use_id => '1')});
$mesh->wait_for('a', q{SELECT count(*) FROM coord.transcript('trip')}, '3', 'and a what was answered on c');
$mesh->sql('a', turn('trip', 'user', 'Good.'));
agrees(4, 'a conversation');
foreach my $question (q{SELECT string_agg(t::text, E'\n') FROM coord.transcript('trip') t}, q{SELECT coord.resume('trip')},
	q{SELECT string_agg(c::text, E'\n') FROM coord.conversations('personal') c})
{
	my %answers = map { $mesh->sql($_, $question) => 1 } $mesh->names;
	is(scalar keys %answers, 1, 'is the same on all: ' . substr $question, 0, 40);
}
is($mesh->sql('b', q{SELECT string_agg(content, ' ') FROM coord.transcript('trip')}), 'Where shall we go? I look. Oslo Good.', 'in the order in which it was led');
is($mesh->sql('b', q{SELECT every(op_id = coord.op_id(op) AND (xid <> local_xid) = (origin <> 'b')) FROM coord.op}), 't',
	'operations keep their names and the transactions of their origin');

# ---- all kinds of records, written on all nodes at once, under the same keys

my $surfaces = q{ARRAY['knowledge', 'skill', 'trajectory', 'run', 'declagent', 'registry:tool', 'routing']};
$mesh->sql($_, qq{SELECT coord.op_append_many((
	SELECT jsonb_agg(jsonb_build_object('scope', 'shared:acme', 'surface', s, 'payload', jsonb_build_object('id', n, 'by', '$_')) ORDER BY random())
	  FROM unnest($surfaces) s, generate_series(1, 20) n))}) foreach $mesh->names;
agrees(4 + 3 * 7 * 20, 'records written on all nodes at once');
is($mesh->sql('a', 'SELECT count(*) FROM coord.record'), 6 * 20, 'one row for each key');
is($mesh->sql('a', 'SELECT count(*) FROM coord.observation'), 3 * 20, 'and every observation');

# ---- frontiers

my $covers = q{SELECT f OPERATOR(coord.@>) '%s' FROM (SELECT coord.%s() AS f) q};
my $held = $mesh->sql('a', 'SELECT coord.frontier()');
$mesh->wait_for($_, sprintf($covers, $held, 'frontier'), 't', "$_ comes to hold completely what a holds") foreach 'b', 'c';
# c and a have not met: each knows what the other holds from nobody.
$mesh->add_peer(@$_) foreach [ 'a', 'c' ], [ 'c', 'a' ];
$mesh->wait_for($_, sprintf($covers, $held, 'stable_frontier'), 't', "$_ knows that all hold it") foreach $mesh->names;

# A transaction that stays open: others are delivered at once, and nothing is called complete above it.
my $open = session($mesh->node('a'));
$open->query_safe('BEGIN');
$open->query_safe(turn('open', 'user', 'still writing'));
my $xid = $open->query_safe('SELECT pg_current_xact_id()::text::bigint');
$mesh->sql('a', turn('open', 'user', 'done'));
my $of_a = q{SELECT coord.vclock_get(coord.%s(), 'a') %s %d};
$mesh->wait_for($_, q{SELECT string_agg(content, ' ') FROM coord.transcript('open')}, 'done', "$_ has what was committed beside it") foreach 'b', 'c';
$mesh->sql('a', turn('open', 'user', 'more'));
$mesh->wait_for('c', q{SELECT count(*) FROM coord.transcript('open')}, '2', 'and what came later');
is($mesh->sql($_, sprintf $of_a, 'frontier', '<=', $xid), 't', "$_ calls nothing complete above it") foreach $mesh->names;
$open->query_safe('COMMIT');
$mesh->wait_for($_, sprintf($of_a, 'frontier', '>', $xid), 't', "$_ does once it has ended") foreach $mesh->names;
is($mesh->sql('c', q{SELECT count(*) FROM coord.transcript('open')}), '3', 'and by then has it');
$open->query_safe('BEGIN');
$open->query_safe(turn('open', 'user', 'never said'));
$open->query_safe('ROLLBACK');
$open->quit;
$mesh->sql('a', turn('open', 'user', 'the end'));
my $count = 4 + 3 * 7 * 20 + 4;
agrees($count, 'after a rollback, which left a hole');
is($mesh->sql('a', q{SELECT max(seq) - count(*) FROM coord.op WHERE origin = 'a'}), '1', 'of one number');

# One that holds a record which another node writes too: only that record waits.
$open = session($mesh->node('b'));
$open->query_safe('BEGIN');
my $tool = q{SELECT coord.op_append('personal', 'registry:tool', '{"id": "%s", "by": "%s"}') IS NOT NULL};
$open->query_safe(sprintf $tool, 'held', 'b');
$mesh->sql('a', sprintf $tool, 'held', 'a');
$mesh->sql('a', sprintf $tool, 'free', 'a');
$mesh->sql('a', turn('open', 'user', 'beside it'));
$mesh->wait_for('b', q{SELECT string_agg(key, ',') FROM coord.record WHERE surface = 'registry:tool' AND scope = 'personal'}, 'free', 'another record is folded');
$mesh->wait_for('b', q{SELECT count(*) FROM coord.fold_waiting}, '1', 'the one that is held waits');
is($mesh->sql('b', q{SELECT payload ->> 'by' FROM coord.op WHERE payload ->> 'id' = 'held'}), 'a', 'and its operation is in the log');
$mesh->wait_for('c', q{SELECT count(*) FROM coord.transcript('open') WHERE content = 'beside it'}, '1', 'nobody else waits');
$open->query_safe('COMMIT');
$open->quit;
$count += 4;
$mesh->wait_for('b', q{SELECT count(*) FROM coord.fold_waiting}, '0', 'until the transaction ends');
agrees($count, 'then they fold to the same');
is($mesh->sql('c', q{SELECT payload ->> 'by' FROM coord.record WHERE key = 'held'}), 'a', 'of which the later one stays');

# A member that only observes holds nothing back.
my $later = q{SELECT coord.vclock_get(coord.%s(), 'a')};
$mesh->node('c')->stop;
$mesh->sql('a', turn('open', 'user', 'without c'));
++$count;
my $ahead = $mesh->sql('a', sprintf $later, 'frontier');
$mesh->wait_for('b', sprintf($of_a, 'frontier', '>=', $ahead), 't', 'b holds what c has not heard of');
is($mesh->sql('a', sprintf $of_a, 'stable_frontier', '<', $ahead), 't', 'a voter that is away holds back what is stable');
$mesh->sql('a', q{SELECT coord.member_set('c', 'observer')});
$mesh->wait_for('a', sprintf($of_a, 'stable_frontier', '>=', $ahead), 't', 'an observer does not');
$mesh->sql('a', q{SELECT coord.member_set('c', 'voter')});
$mesh->node('c')->start;
agrees($count, 'once it is back');

# ---- an exchange by hand, while the workers are stopped

my %worker = map { $_ => stop_worker($mesh->node($_)) } $mesh->names;
$mesh->sql('a', turn('pump', 'user', "from a, $_")) foreach 1 .. 3;
$mesh->sql('b', turn('pump', 'user', "from b, $_")) foreach 1 .. 2;
$count += 5;
my $pump = q{SELECT p - 'state_hash' FROM coord.sync_pump('b') p};
is($mesh->sql('a', $pump), '{"acked": true, "folded": 2, "pushed": 3, "push_deduped": 0}', 'gives what the peer lacks and takes what it gives');
is($mesh->sql('a', $pump), '{"acked": true, "folded": 0, "pushed": 0, "push_deduped": 0}', 'and then nothing');
is($mesh->sql('a', q{SELECT coord.sync_pump('b') ->> 'state_hash'}), $mesh->sql('b', 'SELECT coord.state_hash()'), 'both have folded the same');
like(refusal($mesh->node('a'), q{BEGIN; SELECT coord.sync_pump('b')}), qr/^25001: coord.sync_pump cannot run inside a transaction block/, 'it is a transaction of its own');
like(refusal($mesh->node('a'), q{SELECT coord.sync_pump('x')}), qr/^42704: peer "x" does not exist/, 'with a known peer');
kill 'CONT', values %worker;
agrees($count, 'once the workers go on');

# ---- load on three nodes, one of which is killed

my %load = map { $_ => PgTest::Load->new($mesh->node($_), turn('load', 'user', "from $_")) } $mesh->names;
$mesh->wait_for('a', q{SELECT count(*) > 200 AND count(DISTINCT origin) = 3 FROM coord.transcript('load')});
$mesh->kill9('b');
my %acknowledged = (b => [ $load{b}->stop ]);
my $so_far = $mesh->sql('a', q{SELECT count(*) FROM coord.transcript('load')});
$mesh->wait_for('c', qq{SELECT count(*) > $so_far + 50 FROM coord.transcript('load')}, 't', 'the others go on without the killed node');
$mesh->restart_after_kill('b');
$acknowledged{$_} = [ $load{$_}->stop ] foreach 'a', 'c';
# What each node has appended itself, it has kept.
$count = 0;
$count += $mesh->sql($_, qq{SELECT count(*) FROM coord.op WHERE split_part(origin, '#', 1) = '$_'}) foreach $mesh->names;
agrees($count, 'after the crash of a node under load');
foreach my $name ($mesh->names)
{
	my $list = join ',', map { "'$_'" } grep { /^op-/ } @{ $acknowledged{$name} };
	is($mesh->sql('a', "SELECT count(*) FROM unnest(ARRAY[$list]) n WHERE NOT EXISTS (SELECT FROM coord.op o WHERE o.op_id = n)"), '0',
		"nothing that $name acknowledged is missing");
}

# ---- two bring the same to a database whose default is stricter than what that needs

my $isolation = q{ALTER SYSTEM %s default_transaction_isolation%s};
$mesh->sql('c', sprintf $isolation, 'SET', q{ = 'repeatable read'});
$mesh->node('c')->reload;
$mesh->wait_for('c', 'SHOW default_transaction_isolation', 'repeatable read');
%load = map { $_ => PgTest::Load->new($mesh->node($_), sprintf $tool, 'strict', $_) } 'a', 'b';
$mesh->wait_for('c', q{SELECT count(*) > 100 AND count(DISTINCT origin) = 2 FROM coord.op WHERE payload ->> 'id' = 'strict'}, 't', 'it is given what is appended on both');
$_->stop foreach values %load;
$count = 0;
$count += $mesh->sql($_, qq{SELECT count(*) FROM coord.op WHERE split_part(origin, '#', 1) = '$_'}) foreach $mesh->names;
agrees($count, 'and comes to hold the same');
$mesh->sql('c', sprintf $isolation, 'RESET', '');
$mesh->node('c')->reload;

# ---- a node restored from an old backup

$mesh->node('c')->backup('old');
$mesh->sql('c', turn('lost', 'user', "after the backup, $_")) foreach 1 .. 3;
$count += 3;
agrees($count, 'before the restore');
$mesh->put_back('c', 'old');
$mesh->wait_for('c', 'SELECT coord.node_actor()', 'c#2', 'a restored node begins a new life');
$mesh->sql('c', turn('lost', 'user', 'in a new life'));
++$count;
agrees($count, 'after the restore: what it had lost came back from the others');
is($mesh->sql('c', q{SELECT string_agg(DISTINCT origin, ',' ORDER BY origin) FROM coord.transcript('lost')}), 'c,c#2', 'of both lives');
is($mesh->sql('c', q{SELECT min(seq) > 1::bigint << 40 FROM coord.op WHERE origin = 'c#2'}), 't', 'whose numbers lie apart');

done_testing();
