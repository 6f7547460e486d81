# A node that is restarted goes on; one that was restored, copied or promoted begins a new life, and
# nothing that a peer was told is lost or counted twice.

use strict;
use warnings;

use File::Find ();
use PgTest::Counter;
use PgTest::Mesh;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils ();
use Test::More;

my $mesh = PgTest::Mesh->new(names => [ 'a', 'b', 'c' ], conf => "coord.gossip_interval = '100ms'");
$mesh->join_all;
my $life = q{SELECT format('%s %s', incarnation, coord.node_actor()) FROM coord.local_node};
my $counter = PgTest::Counter->new($mesh);
my $actors = q{SELECT string_agg(actor, ',') FROM coord.state, coord.vclock_entries(coord.constraint_context(value)) WHERE name = 's'};
my $reasons = q{SELECT string_agg(format('%s: %s', incarnation, reason), E'\n' ORDER BY at) FROM coord.incarnation_log WHERE node = 'a' AND event = 'begun'};

sub data_of { return $mesh->node($_[0])->data_dir; }

# Puts files back as a storage snapshot does: into the same directory, over the same files.
sub roll_back
{
	my ($name, $copy) = @_;
	my $data = data_of($name);
	File::Find::finddepth({ no_chdir => 1, wanted => sub {
		my $file = $File::Find::name;
		return if -e $copy . substr($file, length $data);
		-d $file && !-l $file ? rmdir $file : unlink $file;
	} }, $data);
	PostgreSQL::Test::Utils::system_or_bail('cp', '-a', "$copy/.", $data);
	return;
}

$counter->record($_, 3) foreach $mesh->names;
$counter->is_whole('at first');

# ---- a restart

$mesh->node('a')->restart;
$mesh->wait_for('a', $life, '1 a', 'a restarted node goes on in its life');

# ---- a restart while nobody answers

my $snapshot = PostgreSQL::Test::Utils::tempdir() . '/snapshot';
$mesh->node($_)->stop foreach $mesh->names;
PostgreSQL::Test::Utils::system_or_bail('cp', '-a', data_of('a'), $snapshot);
$mesh->node('a')->start;
is($mesh->sql('a', $life), '1 a#0', 'until a peer has answered, it counts under an actor of its own');
$counter->record('a', 4);
like($mesh->sql('a', $actors), qr/a#0/, 'and is used without waiting');
is($mesh->sql('a', q{SELECT count(*) FROM coord.state WHERE is_provisional}), '1', 'such states are marked');
$mesh->node($_)->start foreach 'b', 'c';
$mesh->wait_for('a', $life, '1 a', 'peers that know nothing else let the life go on');
$counter->is_whole('after a start alone');
is($mesh->sql($_, $actors), 'a,b,c', "nobody is told of the provisional actor: node $_") foreach $mesh->names;
is($mesh->sql('a', $reasons), '1: named', 'no other life began');

# ---- a storage snapshot, put back in place: only the peers can tell

$mesh->node('a')->stop;
roll_back('a', $snapshot);
$mesh->node('a')->start;
$mesh->wait_for('a', $life, '2 a#2', 'a node whose peers know more begins a new life');
like($mesh->sql('a', $reasons), qr/^2: a peer knows of changes of this node up to transaction \d+, this node of those below \d+$/m,
	'and says why');
$counter->is_whole('after a storage snapshot');
$counter->record('a', 2);
$counter->is_whole('after changes of the new life');

# The same again, with changes before the first contact: under the old actor they would collide.
$mesh->node($_)->stop foreach $mesh->names;
roll_back('a', $snapshot);
$mesh->node('a')->start;
$counter->record('a', 3);
$mesh->node($_)->start foreach 'b', 'c';
$mesh->wait_for('a', $life, '3 a#3', 'a life that was begun before is not begun again');
$counter->is_whole('after changes before the first contact');

# ---- a base backup

$mesh->node('a')->backup('base');
$counter->record('a', 2);
$counter->is_whole('after the backup');
$mesh->kill9('a');
my $before = data_of('a') . '.before';
rename data_of('a'), $before or die "could not move the data directory: $!";
PostgreSQL::Test::RecursiveCopy::copypath($mesh->node('a')->backup_dir . '/base', data_of('a'));
chmod 0700, data_of('a');
$mesh->restart_after_kill('a');
$mesh->wait_for('a', $life, '4 a#4', 'a node restored from a base backup begins a new life');
like($mesh->sql('a', $reasons), qr/^4: started from a copy of the data directory$/m, 'and says why');
$counter->record('a', 1);
$counter->is_whole('after a base backup');

# ---- a copy that runs beside the original

my $twin = PostgreSQL::Test::Cluster->new('twin');
$twin->init_from_backup($mesh->node('a'), 'base');
$twin->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'\nport = " . $twin->port);
$twin->start;
my $refused = q{SELECT count(*) FROM coord.incarnation_log WHERE node = 'a' AND event = 'refused'};
$mesh->wait_for('b', "SELECT ($refused) > 0", 't', 'the copy is refused, and logged where it asked');
is($mesh->sql('b', q{SELECT count(DISTINCT place) > 1 FROM coord.incarnation_log WHERE node = 'a' AND incarnation IN (3, 4)}),
	't', 'both places are shown');
$twin->poll_query_until('postgres', q{SELECT bool_or(last_error LIKE 'life 4 of this node goes on at %, this one is at %') FROM coord.peer_status})
  or diag($twin->safe_psql('postgres', 'SELECT peer, last_error FROM coord.peer_status'));
is($twin->safe_psql('postgres', 'SELECT coord.node_actor()'), 'a#0', 'the copy counts under the provisional actor');
$counter->record('a', 1);
$counter->is_whole('beside a copy');
is($mesh->sql('a', $life), '4 a#4', 'the original goes on');
$twin->stop;

# ---- a template

$mesh->sql('a', 'CREATE DATABASE other TEMPLATE template0');
$mesh->node('a')->safe_psql('other', 'CREATE EXTENSION pg_test');
$mesh->node('a')->safe_psql('other', q{SELECT coord.node_init('alone')});
$mesh->node('a')->safe_psql('other', q{SELECT coord.state_record_satisfied('s', 5)});
# The worker sits in the database, and would make CREATE DATABASE fail: it is sent away, and cannot come back.
$mesh->sql('a', 'ALTER DATABASE other ALLOW_CONNECTIONS false');
$mesh->wait_for('a', q{SELECT count(pg_terminate_backend(pid, 5000)) = 0 FROM pg_stat_activity WHERE datname = 'other'});
$mesh->sql('a', 'CREATE DATABASE copy TEMPLATE other');
my $copied = q{SELECT format('%s %s', incarnation, coord.node_actor()) FROM coord.local_node};
is($mesh->node('a')->safe_psql('copy', $copied), '1 alone#0', 'a database made from a template knows that it is a copy');
$mesh->node('a')->safe_psql('copy', q{SELECT coord.state_record_satisfied('s', 2)});
ok($mesh->node('a')->poll_query_until('copy', $copied, '2 alone#2'), 'and with its first change, having no peer to ask, begins a new life')
  or diag($mesh->node('a')->safe_psql('copy', 'SELECT * FROM coord.local_node'));
is($mesh->node('a')->safe_psql('copy', q{SELECT reason FROM coord.incarnation_log WHERE incarnation = 2}),
	'copied within the server', 'and says why');
is($mesh->node('a')->safe_psql('copy', q{SELECT value::jsonb->>'satisfied' FROM coord.state WHERE name = 's'}),
	'{"alone": 5, "alone#2": 2}', 'in which it counts');

# ---- promotion

$mesh->node('a')->backup('standby');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($mesh->node('a'), 'standby', has_streaming => 1);
$standby->start;
$counter->record('a', 1);
$counter->is_whole('before the promotion');
$mesh->node('a')->wait_for_catchup($standby);
is($standby->safe_psql('postgres', 'SELECT coord.node_actor()'), 'a#4', 'a standby shows the life of its primary');
my $port = $mesh->node('a')->port;
$mesh->kill9('a');
$standby->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'");
$standby->restart;
$standby->promote;
foreach my $name ('b', 'c')
{
	$mesh->sql($name, q{SELECT coord.remove_peer('a')});
	$mesh->sql($name, sprintf q{SELECT coord.add_peer('a', '%s port=%s')}, ($mesh->conninfo($name) =~ s/port=\d+//r), $standby->port);
}
$standby->poll_query_until('postgres', q{SELECT incarnation = 5 AND coord.node_actor() = 'a#5' FROM coord.local_node})
  or diag($standby->safe_psql('postgres', 'SELECT * FROM coord.local_node'));
like($standby->safe_psql('postgres', $reasons), qr/^5: promoted or recovered to another timeline$/m, 'a promoted standby is a new life');
$standby->safe_psql('postgres', q{SELECT coord.state_record_satisfied('s', 10)});
$mesh->wait_for('b', "SELECT coord.constraint_satisfied(value) = ${\ ($counter->counted + 10)} FROM coord.state WHERE name = 's'", 't', 'and goes on where the primary was');

done_testing();
