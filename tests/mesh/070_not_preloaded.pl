# Without preloading, types and plain functions work, and what needs shared memory says so.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('plain');
$node->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
$node->start;

my $sql = sub { $node->safe_psql('postgres', $_[0]) };
$sql->('CREATE EXTENSION pg_test');
is($sql->(q{SELECT '{"a":1}'::coord.vclock OPERATOR(coord.||) '{"b":2}'}), '{"a":1,"b":2}', 'clocks merge');
$sql->(q{SELECT coord.node_init('plain')});
$sql->(q{SELECT coord.state_record_satisfied('s', 3)});
is($sql->(q{SELECT coord.constraint_satisfied(value) FROM coord.state}), '3', 'a state is recorded and committed');
is($node->psql('postgres', 'SELECT coord.hlc_now()', stderr => \my $err), 3, 'the hybrid clock is refused');
like($err, qr/needs pg_test to be preloaded.*shared_preload_libraries/s, 'with the setting to change');
$sql->('CREATE DATABASE other');
# The hook of DROP DATABASE is not there either.
$sql->('DROP DATABASE other');
is($sql->('SELECT count(*) FROM coord.convergence'), '0', 'the views are there');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/PANIC|panicked|was not initialized|was terminated by signal/,
	'nothing crashed');

done_testing();
