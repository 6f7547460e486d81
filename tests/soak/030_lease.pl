# Eight workers share a few leases while their server is killed again and again: never two holders,
# never a write under an epoch that is over.
#
# LEASE_ROUNDS (500) says how often each worker tries to acquire a lease, LEASE_KILLS (60) how often the
# server is killed meanwhile. Afterwards the history of leases is forgotten, which takes up to a minute.

use strict;
use warnings;

use PgTest::LeaseChaos;
use PgTest::Mesh;
use Test::More;

my $mesh = PgTest::Mesh->new(names => ['a'], conf => 'restart_after_crash = on');
PgTest::LeaseChaos->new($mesh, 'a', workers => 8, rounds => $ENV{LEASE_ROUNDS} // 500, kills => $ENV{LEASE_KILLS} // 60, patience => 3600)->run;

my $lines = 'SELECT count(*) FROM coord.lease_history';
cmp_ok($mesh->sql('a', $lines), '>', 0, 'there is a history');
$mesh->sql('a', q{ALTER SYSTEM SET coord.lease_history_retention = 0});
$mesh->sql('a', 'SELECT pg_reload_conf()');
$mesh->wait_for('a', $lines, '0', 'which is forgotten when nothing of it is to be kept', timeout => 600);
$mesh->sql('a', q{ALTER SYSTEM SET coord.lease_history_retention = -1});
$mesh->sql('a', 'SELECT pg_reload_conf()');
is($mesh->sql('a', 'SELECT count(*) > 0 FROM coord.lease'), 't', 'the leases are kept');

done_testing();
