# Streams of a database that was copied, and of one that was put back.

use strict;
use warnings;

use PgTest::Lease qw(session);
use PgTest::Mesh;
use Test::More;

my $mesh = PgTest::Mesh->new(
	names => [ 'a', 'b', 'c' ],
	conf => "coord.gossip_interval = '100ms'\ncoord.heartbeat_interval = '100ms'\nwal_retrieve_retry_interval = '200ms'"
);

sub turn { return sprintf q{SELECT coord.record_turn('personal', 'talk', 'user', '%s') ->> 'op_id'}, @_; }

my $streams = q{SELECT count(*) FROM coord.stream_status WHERE stream = 'op' AND state = 'streaming'};
my $count = 'SELECT count(*) FROM coord.op';

$mesh->join_all;
$mesh->wait_for($_, $streams, '4', "$_ streams") foreach $mesh->names;
$mesh->sql('a', turn("before the copy, $_")) foreach 1 .. 3;
$mesh->wait_for($_, $count, '3') foreach $mesh->names;

# ---- a copy has the subscriptions of the original, and what it took the original would lack

$mesh->node('b')->backup('base');
my $twin = PostgreSQL::Test::Cluster->new('twin');
$twin->init_from_backup($mesh->node('b'), 'base');
$twin->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'\nport = " . $twin->port);
my $own = $mesh->sql('b', q{SELECT string_agg(subname, ' ') FROM pg_subscription});
$mesh->sql('b', "ALTER SUBSCRIPTION $_ DISABLE") foreach split / /, $own;
$twin->start;
$mesh->sql('a', turn('while the slot is free for the copy'));
ok($twin->wait_for_log(qr/ERROR:  this node does not know yet in which life it is/), 'replication brings a copy nothing');
is($twin->safe_psql('postgres', $count), '3', 'and it holds what it was copied with');
$mesh->sql('b', "ALTER SUBSCRIPTION $_ ENABLE") foreach split / /, $own;
$twin->stop;
$mesh->wait_for('b', $count, '4', 'the original has what was meant for it');
$mesh->wait_for($_, $streams, '4', "$_ streams on") foreach $mesh->names;
is($mesh->sql('b', q{SELECT string_agg(subname, ' ') FROM pg_subscription}), $own, 'by the same streams');

# ---- a node put back to an old backup makes streams of its new life

$mesh->node('c')->backup('old');
$mesh->sql($_, turn("after the backup, on $_")) foreach $mesh->names;
$mesh->wait_for($_, $count, '7') foreach $mesh->names;
$own = $mesh->sql('c', q{SELECT string_agg(subname, ' ') FROM pg_subscription});
$mesh->put_back('c', 'old');
$mesh->wait_for('c', 'SELECT coord.node_actor()', 'c#2', 'a restored node begins a new life');
$mesh->wait_for('c', $count, '7', 'and is given again what it had, and what it had said');
$mesh->sql($_, turn("in the new life, on $_")) foreach $mesh->names;
$mesh->wait_for($_, $count, '10', "$_ has what came later") foreach $mesh->names;
$mesh->wait_for($_, $streams, '4', "$_ streams") foreach $mesh->names;
isnt($mesh->sql('c', q{SELECT string_agg(subname, ' ') FROM pg_subscription}), $own, 'by other streams');
$mesh->wait_for('a', q{SELECT count(*) FROM pg_replication_slots}, '2', 'those of the life before are gone');
my %hashes = map { $mesh->sql($_, 'SELECT coord.state_hash()') => 1 } $mesh->names;
is(scalar keys %hashes, 1, 'all have folded the same');

done_testing();
