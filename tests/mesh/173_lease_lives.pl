# Leases of a node that is restored, copied or promoted, and of one that does not know its life; a
# protected table that replication writes to.

use strict;
use warnings;

use PgTest::Lease qw(ahead refusal wait_until);
use PgTest::Mesh;
use PostgreSQL::Test::Utils ();
use Test::More;

my $mesh = PgTest::Mesh->new(names => [ 'a', 'b' ], conf => <<'CONF');
coord.gossip_interval = '100ms'
wal_retrieve_retry_interval = '100ms'
CONF
$mesh->join_all;
my $second_life = 2**40;

sub acquire { return sprintf q{SELECT epoch FROM coord.lease_acquire('%s', '%s', '%s')}, @_; }
sub renew { return sprintf q{SELECT extract(epoch FROM coord.lease_renew('%s', '%s', %s, '%s'))}, @_; }
sub effective { return sprintf q{SELECT extract(epoch FROM expires_at) FROM coord.lease_status WHERE resource = '%s'}, @_; }
my $incarnation = 'SELECT incarnation FROM coord.local_node';

# Gives the first epoch of a new life, as soon as the node knows that it has one.
sub first_of_life
{
	my ($node, $dbname, $what) = @_;
	my $stdout = '';
	my $is_granted = eval {
		wait_until('a grant', sub {
			return $node->psql($dbname, ahead(36_000) . acquire('job', 'b', '1 h'), stdout => \$stdout) == 0;
		});
		1;
	};
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($is_granted, "$what: leases are granted")
	  or diag(refusal($node, ahead(36_000) . acquire('job', 'b', '1 h'), $dbname), $node->safe_psql($dbname, 'SELECT * FROM coord.problem'));
	is($stdout, $second_life + 1, "$what: above whatever the first life can have granted");
	like(refusal($node, ahead(36_000) . q{SELECT coord.fence('job', 1)}, $dbname), qr/^23514: stale fencing token 1 for lease "job"/, "$what: the old token is refused");
	return;
}

$mesh->sql('a', q{CREATE TABLE account (id int); SELECT coord.protect_table('account', 'job')});
is($mesh->sql('a', acquire('job', 'a', '1 h')), '1', 'a lease of the first life');
$mesh->sql('a', q{SELECT coord.state_record_satisfied('s', 1)});
$mesh->converges('two nodes converge');

# ---- a node that does not know yet in which life it is

$mesh->node('b')->stop;
$mesh->node('a')->restart;
like(refusal($mesh->node('a'), acquire('other', 'a', '1 h')), qr/^55000: this node does not know yet in which life it is/, 'until a peer has answered nothing is granted');
is($mesh->sql('a', q{SELECT count(*) FROM coord.lease WHERE resource = 'other'}), '0', 'and nothing is left of it');
cmp_ok($mesh->sql('a', renew('job', 'a', 1, '1 h')), '>', 0, 'what was granted is renewed');
$mesh->sql('a', q{BEGIN; SELECT coord.fence_set('job', 1); INSERT INTO account VALUES (1); COMMIT});
is($mesh->sql('a', 'SELECT count(*) FROM account'), '1', 'and written under');
$mesh->node('b')->start;
$mesh->wait_for('a', 'SELECT coord.node_actor()', 'a');
is($mesh->sql('a', acquire('other', 'a', '1 h')), '1', 'once one has, in the life that goes on');

# ---- a dump, restored elsewhere

# Of a node without peers: beside its original a restored one would contend with it for the life.
my ($single, $fresh) = ($mesh->add('single'), $mesh->add('fresh'));
$single->safe_psql('postgres', q{CREATE TABLE account (id int); SELECT coord.protect_table('account', 'job')});
is($mesh->sql('single', acquire('job', 'a', '1 h')), '1', 'a lease of a node that is dumped');
my $folder = PostgreSQL::Test::Utils::tempdir();
$fresh->command_ok([ 'pg_dump', '--format=custom', '-f', "$folder/dump", '-d', $single->connstr('postgres') ], 'pg_dump');
$single->stop;
$fresh->safe_psql('postgres', 'CREATE DATABASE restored TEMPLATE template0');
$fresh->command_ok([ 'pg_restore', '--exit-on-error', '-d', $fresh->connstr('restored'), "$folder/dump" ], 'pg_restore');
is($fresh->safe_psql('restored', q{SELECT format('%s %s', holder, epoch) FROM coord.lease_current('job')}), 'a 1', 'a dump has the lease');
is($fresh->safe_psql('restored', q{SELECT string_agg(format('%s %s', resource, epoch), ',') FROM coord.lease_history}), 'job 1', 'and its history');
is($fresh->safe_psql('restored', q{SELECT is_complete FROM coord.protected_table}), 't', 'and what it protects');
like(refusal($fresh, 'INSERT INTO account VALUES (2)', 'restored'), qr/^23514: no fencing token for lease "job"/, 'which is protected');
first_of_life($fresh, 'restored', 'a restored dump');
$fresh->stop;

# ---- a base backup that starts as a server of its own

$mesh->node('a')->backup('base');
my $copy = PostgreSQL::Test::Cluster->new('copy');
$copy->init_from_backup($mesh->node('a'), 'base');
$copy->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'\nport = " . $copy->port);
$copy->start;
like(refusal($copy, acquire('new', 'a', '1 h')), qr/^55000: this node does not know yet/, 'a copy beside its original is granted nothing');
$copy->stop;

# In place of the original.
is($mesh->sql('a', ahead(36_000) . acquire('job', 'c', '1 min')), '2', 'a grant after the backup');
$mesh->sql('a', q{SELECT coord.state_record_satisfied('s', 1)});
$mesh->converges('the nodes converge', 'a', 'b');
$mesh->put_back('a', 'base');
first_of_life($mesh->node('a'), 'postgres', 'a base backup');
is($mesh->sql('a', $incarnation), '2', 'which is the second life');
like(refusal($mesh->node('a'), q{SELECT coord.fence('job', 2)}), qr/^23514: stale fencing token 2/, 'and so is the token that the backup knows nothing of');

# ---- promotion: the new primary knows no more of renewals in memory than a crashed server does

$mesh->wait_for('a', 'SELECT coord.lease_memory_is_open()');
$mesh->node('a')->backup('standby');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($mesh->node('a'), 'standby', has_streaming => 1);
$standby->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'\nport = " . $standby->port);
$standby->start;
my $epoch = $mesh->sql('a', acquire('short', 'a', '2 s'));
is($mesh->sql('a', ahead(-7200) . acquire('long', 'a', '1 h')), $epoch, 'two leases of the second life');
is($standby->safe_psql('postgres', 'SELECT pg_is_in_recovery()'), 't', 'a standby');
# It looks at leases while its primary is down for a moment, as monitoring does.
$mesh->node('a')->stop;
$standby->poll_query_until('postgres', 'SELECT is_closed FROM coord.lease_memory') or die 'the standby was not told';
is($standby->safe_psql('postgres', 'SELECT count(*) > 0 FROM coord.lease_status'), 't', 'shows the leases');
$mesh->node('a')->start;
$mesh->wait_for('a', 'SELECT coord.lease_memory_is_open()');
# By now it has run for longer than the short ttl.
$standby->poll_query_until('postgres', q{SELECT clock_timestamp() > pg_postmaster_start_time() + interval '3 s'}) or die;
my $renewed_long = $mesh->sql('a', renew('long', 'a', $epoch, '1 h'));
my $renewed_short = $mesh->sql('a', renew('short', 'a', $epoch, '2 s'));
$mesh->node('a')->wait_for_catchup($standby);
$mesh->crash('a');
$standby->promote;
# The standby has been up for a moment only, so the difference between these two is which start counts.
cmp_ok($standby->safe_psql('postgres', effective('long')), '>=', $renewed_long - 600,
	'the promoted one knows that renewals are lost, whatever it saw before');
cmp_ok($standby->safe_psql('postgres', effective('short')), '>=', $renewed_short,
	'and counts a lease as held for its ttl from the promotion');
$mesh->sql('b', q{SELECT coord.remove_peer('a')});
$mesh->sql('b', sprintf q{SELECT coord.add_peer('a', '%s')}, $mesh->conninfo('b', port => $standby->port));
$standby->poll_query_until('postgres', 'SELECT incarnation = 3 FROM coord.local_node') or diag 'no third life';
$standby->poll_query_until('postgres', q{SELECT coord.node_actor() = 'a#3'});
is($standby->safe_psql('postgres', ahead(72_000) . acquire('short', 'b', '1 h')), 2 * $second_life + 1, 'and the next grant is of its own life');

# ---- a protected table that a subscription writes to

$mesh->sql('b', 'CREATE TABLE plain (id int PRIMARY KEY); CREATE TABLE fenced (id int PRIMARY KEY, epoch bigint); CREATE PUBLICATION plain FOR TABLE plain; CREATE PUBLICATION fenced FOR TABLE fenced');
$standby->safe_psql('postgres', 'CREATE TABLE plain (id int PRIMARY KEY); CREATE TABLE fenced (id int PRIMARY KEY, epoch bigint)');
$standby->safe_psql('postgres', q{SELECT coord.protect_table('plain', 'sub'); SELECT coord.protect_table('fenced', 'sub', epoch_column => 'epoch')});
$epoch = $standby->safe_psql('postgres', acquire('sub', 'b', '1 h'));
$standby->safe_psql('postgres', sprintf q{CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION %s}, $_, $mesh->conninfo('b'), $_) foreach 'plain', 'fenced';
$mesh->sql('b', qq{INSERT INTO plain VALUES (1); INSERT INTO fenced VALUES (1, $epoch)});
$standby->poll_query_until('postgres', 'SELECT count(*) = 1 FROM fenced')
  and pass('replication applies a row that brings the current epoch');
wait_until('the refusal in the log', sub { PostgreSQL::Test::Utils::slurp_file($standby->logfile) =~ /ERROR:  no fencing token for lease "sub"/ });
pass('and is refused a row without a token, which its worker logs');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM plain'), '0', 'nothing of it is there');
$standby->poll_query_until('postgres', q{SELECT sync_error_count + apply_error_count > 0 FROM pg_stat_subscription_stats WHERE subname = 'plain'})
  and pass('the errors are counted');
$standby->safe_psql('postgres', q{SELECT coord.unprotect_table('plain')});
$standby->poll_query_until('postgres', 'SELECT count(*) = 1 FROM plain') and pass('once the table is not protected any more, replication goes on');
# An epoch that is not current stops the subscription in the same way.
$standby->safe_psql('postgres', ahead(36_000) . acquire('sub', 'c', '1 h'));
$mesh->sql('b', qq{INSERT INTO fenced VALUES (2, $epoch)});
wait_until('the refusal in the log', sub { PostgreSQL::Test::Utils::slurp_file($standby->logfile) =~ /ERROR:  stale fencing token $epoch for lease "sub"/ });
pass('a row of an epoch that is over is refused');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM fenced'), '1', 'and is not there');
$standby->safe_psql('postgres', "DROP SUBSCRIPTION $_") foreach 'plain', 'fenced';

done_testing();
