# What nodes leave out of their logs, and who has been away meanwhile.

use strict;
use warnings;

use PgTest::Lease qw(refusal session stop_worker);
use PgTest::Mesh;
use Test::More;

# By gossip: a stream brings also what has been left out since.
my $mesh = PgTest::Mesh->new(names => [ 'a', 'b', 'c' ], conf => "wal_level = replica\ncoord.gossip_interval = '100ms'\ncoord.gossip_batch = 50");
my @voters = ('a', 'b');

sub turn { return sprintf q{SELECT coord.record_turn('personal', '%s', 'user', '%s') ->> 'op_id'}, @_; }

# Operations of one node, of which half are soon needless.
sub appended
{
	my ($from) = @_;
	return qq{SELECT jsonb_array_length(coord.op_append_many((
		SELECT jsonb_agg(jsonb_build_object('scope', 'shared:acme', 'surface', 'declagent', 'payload', jsonb_build_object('id', n % 20, 'n', n, 'by', '$from')))
		  FROM generate_series(1, 200) n)))};
}

# All operations of the mesh are held, and folded to the same.
sub agrees
{
	my ($what, @names) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	subtest $what => sub {
		my $frontier = q{SELECT coord.frontier()};
		my %frontiers;
		foreach my $attempt (1 .. 300)
		{
			%frontiers = map { $mesh->sql($_, $frontier) => 1 } @names;
			last if keys %frontiers == 1;
			select undef, undef, undef, 0.2;
		}
		is(scalar keys %frontiers, 1, 'all hold the same') or diag join "\n", keys %frontiers;
		my %hashes = map { $mesh->sql($_, 'SELECT coord.state_hash()') => 1 } @names;
		is(scalar keys %hashes, 1, 'and have folded it to the same');
		is($mesh->sql($_, 'SELECT coord.op_refold()'), '0', "$_ folds its log again to the same") foreach @names;
		is($mesh->sql($_, 'SELECT count(*) FROM coord.conflict'), '0', "$_ refuses nothing") foreach @names;
	};
	return;
}

# A checkpoint of everything that a node holds.
sub checkpoint
{
	my ($name) = @_;
	$mesh->wait_for($name, q{SELECT coord.stable_frontier() OPERATOR(coord.=) coord.frontier()}, 't', "what $name holds is stable");
	return $mesh->sql($name, q{SELECT coord.checkpoint() ->> 'checkpoint_hash'});
}

# What could be left out of the log of a node, and was.
sub compacted
{
	my ($name) = @_;
	my $whole = $mesh->sql($name, 'SELECT count(*) FROM coord.op');
	$mesh->sql($name, "SET coord.op_retention = 0;\nCALL coord.op_compact();");
	return $whole - $mesh->sql($name, 'SELECT count(*) FROM coord.op');
}

$mesh->join_all;
foreach my $name (@voters)
{
	$mesh->wait_for($name, q{SELECT count(*) FROM coord.member}, '3');
	$mesh->sql($name, q{SELECT coord.member_set('c', 'observer')});
}
$mesh->sql($_, appended($_)) foreach $mesh->names;
$mesh->sql($_, turn('talk', "first words of $_")) foreach $mesh->names;
agrees('before anything is left out', $mesh->names);
$mesh->wait_for($_, 'SELECT NOT EXISTS (SELECT FROM coord.op_default)', 't', "the worker of $_ has made partitions") foreach $mesh->names;

# ---- the same checkpoint everywhere

my %hashes = map { checkpoint($_) => 1 } $mesh->names;
is(scalar keys %hashes, 1, 'all fold the same checkpoint');
is((keys %hashes)[0], $mesh->sql('a', 'SELECT coord.state_hash()'), 'which is the state');
agrees('checkpoints', $mesh->names);
is($mesh->sql('b', q{SELECT count(DISTINCT state_hash) FROM coord.checkpoint}), '1', 'each has heard of those of the others');
$mesh->node('c')->backup('old');

# ---- one is away: it has said something that nobody has heard, and what goes on it does not hear

stop_worker($mesh->node('c'));
$mesh->suspend($_) foreach @voters;
$mesh->sql('c', turn('talk', 'unheard'));
$mesh->sql('c', q{SELECT coord.op_append('shared:acme', 'declagent', '{"id": "of c"}')});
$mesh->crash('c');
$mesh->resume($_) foreach @voters;
$mesh->sql($_, appended($_)) foreach @voters, @voters;
foreach my $n (1 .. 10)
{
	$mesh->sql($_, turn('talk', "without c, $_ $n")) foreach @voters;
}
$mesh->sql('a', q{INSERT INTO coord.retention_rule (surface, keep_last) VALUES ('conversation', 5)});
agrees('two of three go on', @voters);
my $before = $mesh->sql('a', 'SELECT count(*) FROM coord.op');
checkpoint('a');
$mesh->wait_for($_, q{SELECT count(*) FROM coord.turn}, '5', "what a trims is trimmed on $_") foreach @voters;
agrees('also after that', @voters);
my $base = checkpoint('a');
is($base, $mesh->sql('b', 'SELECT coord.state_hash()'), 'the next checkpoint is of what is left');
my $patient = session($mesh->node('a'));
$patient->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
$patient->query_safe('SELECT pg_current_snapshot()');
$patient->query_until(qr/reads on/, <<'SQL');
\echo reads on
DO $$
BEGIN
  WHILE NOT EXISTS (SELECT FROM pg_stat_activity WHERE query ~ 'CALL coord.op_compact' AND wait_event = 'PgSleep' AND pid <> pg_backend_pid()) LOOP
    PERFORM pg_sleep(0.01), pg_stat_clear_snapshot();
  END LOOP;
END $$;
COMMIT;
SQL
cmp_ok(compacted('a'), '>', $before / 2, 'most of the log is left out, when a transaction that reads it has ended');
$patient->quit;
is(checkpoint('b'), $base, 'b makes the same checkpoint');
cmp_ok(compacted('b'), '>', $before / 2, 'and leaves out the same');
agrees('logs without it fold to the same', @voters);
is(checkpoint('a'), $base, 'also for a checkpoint');
is($mesh->sql('a', q{SELECT coord.sync_status() ->> 'base_checkpoint'}), $base, 'which the log stands on');

# ---- it comes back

$mesh->restart_after_kill('c');
agrees('what it had said arrives, and it is given what is left', $mesh->names);
is($mesh->sql('a', q{SELECT payload ->> 'id' FROM coord.record WHERE key = 'of c'}), 'of c', 'on the others');
is($mesh->sql('a', q{SELECT count(*) FROM coord.op WHERE payload ->> 'content' = 'unheard'}), '1', 'a turn that came late is in their logs');
is($mesh->sql($_, q{SELECT count(*) FROM coord.turn WHERE content = 'unheard'}), '0', "and trimmed on $_, as older ones are") foreach $mesh->names;
my $rebased = $mesh->sql('c', 'SELECT coord.rebase()');
is($rebased, sprintf('{"rebased": true, "base_checkpoint": "%s"}', $mesh->sql('c', q{SELECT coord.sync_status() ->> 'base_checkpoint'})), 'it takes a checkpoint of its peers');
is($mesh->sql('c', q{SELECT coord.rebase() ->> 'rebased'}), 'false', 'once');
like(refusal($mesh->node('c'), q{BEGIN; SELECT coord.rebase()}), qr/^25001: coord.rebase cannot run inside a transaction block/, 'in a transaction of its own');
%hashes = map { checkpoint($_) => 1 } $mesh->names;
is(scalar keys %hashes, 1, 'all fold the same checkpoint again');

# ---- a new node is given what is left

$mesh->add('d');
$mesh->add_peer('d', 'a');
$mesh->add_peer('a', 'd');
$mesh->sql('a', q{SELECT coord.member_set('d', 'observer')});
is($mesh->sql('d', q{SELECT (coord.rebase() ->> 'base_checkpoint') IS NOT NULL}), 't', 'a new node takes everything, and a checkpoint, in one call');
agrees('and has folded the same', 'a', 'd');

# ---- one is put back to before all that

$mesh->put_back('c', 'old');
$mesh->wait_for('c', 'SELECT coord.node_actor()', 'c#2', 'a restored node begins a new life');
$mesh->sql('c', turn('talk', 'in a new life'));
agrees('it loses nothing that the others know, and brings back nothing that is left out', $mesh->names);
is($mesh->sql('c', q{SELECT count(*) FROM coord.turn WHERE content LIKE 'first words%'}), '0', 'nor what is trimmed');

# ---- a transaction that stays open has said something that is older than what is trimmed

$mesh->sql('a', q{UPDATE coord.retention_rule SET keep_last = 2});
my $open = session($mesh->node('b'));
$open->query_safe('BEGIN');
$open->query_safe(turn('talk', 'late'));
$mesh->sql('a', turn('talk', "meanwhile, $_")) foreach 1 .. 3;
$mesh->wait_for('a', q{SELECT coord.vclock_get(coord.stable_frontier(), 'a') = coord.vclock_get(coord.frontier(), 'a')});
$mesh->sql('a', q{SELECT coord.checkpoint()});
$mesh->wait_for('b', q{SELECT string_agg(content, ', ' ORDER BY hlc) FROM coord.turn}, 'meanwhile, 2, meanwhile, 3', 'b trims');
$open->query_safe('COMMIT');
$open->quit;
agrees('the transaction ends', $mesh->names);
is($mesh->sql($_, q{SELECT string_agg(content, ', ' ORDER BY hlc) FROM coord.turn}), 'meanwhile, 2, meanwhile, 3', "what it said is trimmed on $_") foreach $mesh->names;

# ---- a voter that is away keeps others from leaving out what it lacks

$mesh->sql('c', turn('talk', 'c is here'));
$mesh->sql($_, q{SELECT coord.member_set('c', 'voter')}) foreach @voters;
agrees('with a third voter', $mesh->names);
$mesh->node('c')->stop;
$mesh->sql('a', q{SELECT coord.op_append('shared:acme', 'declagent', jsonb_build_object('id', 'busy', 'n', n)) FROM generate_series(1, 100) n});
$mesh->wait_for('b', q{SELECT count(*) FROM coord.op WHERE payload ->> 'id' = 'busy'}, '100', 'b holds it');
$mesh->sql('a', 'SELECT coord.checkpoint()');
compacted('a');
is($mesh->sql('a', q{SELECT count(*) FROM coord.op WHERE payload ->> 'id' = 'busy'}), '100', 'nothing is left out that it lacks');
$mesh->node('c')->start;
agrees('once it is back', $mesh->names);
checkpoint('a');
compacted('a');
is($mesh->sql('a', q{SELECT count(*) FROM coord.op WHERE payload ->> 'id' = 'busy'}), '1', 'it can go');
agrees('at last', $mesh->names);

# ---- the worker does all of that by itself, and waits for nobody

$mesh->sql('b', q{ALTER SYSTEM SET coord.op_retention = 0});
$mesh->node('b')->reload;
$mesh->sql('b', q{INSERT INTO coord.retention_rule (surface, keep_last) VALUES ('conversation', 1)});
$mesh->sql('b', appended('b')) foreach 1 .. 3;
agrees('before the worker comes to it', $mesh->names);
my ($count, $dropped) = ('SELECT count(*) FROM coord.op', 'SELECT sum(dropped) FROM coord.op_partition');
($before, my $so_far) = ($mesh->sql('b', $count), $mesh->sql('b', $dropped));
$open = session($mesh->node('b'));
$open->query_safe('BEGIN');
$open->query_safe(q{SELECT coord.op_append('personal', 'skill', '{"id": "slow"}')});
$mesh->sql('b', q{UPDATE coord.op_base SET since = since - interval '2 h'});
$mesh->wait_for($_, q{SELECT string_agg(content, ', ') FROM coord.turn}, 'c is here', "its rule trims on $_") foreach $mesh->names;
$mesh->sql('b', q{UPDATE coord.op_compaction SET looked_at = looked_at - interval '2 h'});
$mesh->wait_for('b', q{SELECT count(*) FROM coord.op_compaction WHERE replacement IS NOT NULL}, '1', 'it copies what stays while a transaction is open');
$mesh->sql('b', q{SELECT coord.op_append('personal', 'skill', '{"id": "quick"}')});
cmp_ok($mesh->sql('b', $count), '>', $before, 'and while that is, the log is whole');
my $reader = session($mesh->node('b'));
$reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
$reader->query_safe('SELECT pg_current_snapshot()');
$before = $mesh->sql('b', $count);
$open->query_safe('COMMIT');
$open->quit;
like(refusal($mesh->node('b'), q{SELECT coord.op_compaction_end(0)}), qr/^55P03: a transaction may yet read/, 'also one that may yet read the whole log is waited for');
is($reader->query_safe($count), $before, 'which it does');
$reader->query_safe('COMMIT');
$reader->quit;
$mesh->wait_for('b', q{SELECT count(*) FROM coord.op_compaction WHERE replacement IS NOT NULL}, '0', 'then the rest is left out');
cmp_ok($mesh->sql('b', $count), '<', $before - 400, 'of the log');
cmp_ok($mesh->sql('b', $dropped), '>', $so_far + 400, 'and counted');
agrees('and all is well', $mesh->names);
is($mesh->sql('a', q{SELECT string_agg(key, ', ' ORDER BY key) FROM coord.record WHERE surface = 'skill'}), 'quick, slow', 'what was said meanwhile is there');

done_testing();
