# Workers share a few leases while their server is killed. The full size is in tests/soak/030_lease.pl.

use strict;
use warnings;

use PgTest::LeaseChaos;
use PgTest::Mesh;
use Test::More;

my $mesh = PgTest::Mesh->new(names => ['a'], conf => 'restart_after_crash = on');
PgTest::LeaseChaos->new($mesh, 'a', workers => 4, rounds => 25, kills => 4)->run;

done_testing();
