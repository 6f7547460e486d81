# Who may speak: passwords, names, roles, and messages that are none.

use strict;
use warnings;

use PgTest::Mesh;
use PostgreSQL::Test::Utils ();
use Test::More;

# Peers log in over TCP. The statements of this test that contain passwords stay out of the log, so
# that what is found there would be the extension's doing.
my $mesh = PgTest::Mesh->new(names => [ 'a', 'b', 'c' ], conf => "coord.gossip_interval = '100ms'\nlog_statement = none");
my $password = 'right-Pa55word';
my $wrong = 'wrong-Pa55word';
foreach my $name ($mesh->names)
{
	my $node = $mesh->node($name);
	$mesh->sql($name, "CREATE ROLE speaker LOGIN PASSWORD '$password' IN ROLE coord_peer; CREATE ROLE stranger LOGIN");
	PostgreSQL::Test::Utils::append_to_file($node->data_dir . '/pg_hba.conf.new',
		"local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n");
	rename $node->data_dir . '/pg_hba.conf.new', $node->data_dir . '/pg_hba.conf' or die "pg_hba.conf: $!";
	$node->reload;
}
my @login = (user => 'speaker', password => $password);

# ---- the password

$mesh->add_peer('a', 'b', user => 'speaker', password => $wrong);
$mesh->add_peer('a', 'c', @login);
$mesh->add_peer('c', 'a', @login);
$mesh->sql('a', q{SELECT coord.state_record_satisfied('s', 1)});
$mesh->wait_for('a', q{SELECT last_error ~ '^28P01: password authentication failed' FROM coord.peer_status WHERE peer = 'b'},
	't', 'a wrong password is shown as the last error of that peer');
$mesh->wait_for('c', q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 's'}, '1',
	'membership in coord_peer is enough, and a peer that fails disturbs no other');
is($mesh->sql('b', 'SELECT count(*) FROM coord.state'), '0', 'nothing reached the peer with the wrong password');

my ($status, undef, $refusal) = $mesh->node('a')->psql('postgres', q{SELECT coord.gossip_round('b')});
is($status, 3, 'a round by hand with that peer fails too');
unlike($refusal, qr/\Q$wrong\E/, 'and its message does not have the password');

$mesh->sql('a', q{SELECT coord.remove_peer('b')});
$mesh->add_peer('a', 'b', @login);
$mesh->add_peer('b', 'a', @login);
$mesh->wait_for('b', q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 's'}, '1', 'with the right password it works');

# ---- what the peer's role may do

my @as_speaker = (connstr => $mesh->node('a')->connstr('postgres') . ' user=speaker');
my @as_stranger = (connstr => $mesh->node('a')->connstr('postgres') . ' user=stranger');
my @relations = split /\n/, $mesh->sql('a', q{SELECT c.oid::regclass FROM pg_class c
 WHERE c.relnamespace = 'coord'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')});
cmp_ok(scalar @relations, '>', 5, 'there are tables to protect');
my @open = grep { $mesh->sqlstate('a', "SELECT * FROM $_", @as_speaker) ne '42501' } @relations;
is("@open", 'coord.heartbeat', 'the role of a peer reads no table or view but the heartbeats, which a new stream copies');
is($mesh->sqlstate('a', q{INSERT INTO coord.state (name, value) VALUES ('x', '{}')}, @as_speaker), '42501', 'it writes no state');
is($mesh->sqlstate('a', q{DELETE FROM coord.peer_cursor}, @as_speaker), '42501', 'nor any cursor');
is($mesh->sqlstate('a', q{SELECT coord.state_record_satisfied('s', 1)}, @as_speaker), '42501', 'it records nothing');
is($mesh->sqlstate('a', q{SELECT coord.state_learn('b', '{}', '{}')}, @as_speaker), '42501', 'it does not store past the protocol');
is($mesh->sqlstate('a', q{SELECT coord.gossip_round('b')}, @as_speaker), '42501', 'it starts no round');
is($mesh->sqlstate('a', q{SELECT coord.add_peer('z', 'host=x')}, @as_speaker), '42501', 'it adds no peer');
is($mesh->sqlstate('a', q{SELECT coord.gossip_exchange('\x01')}, @as_stranger), '42501', 'a role outside coord_peer cannot speak at all');

# ---- messages

# A message as the protocol has it: numbers are varints (postcard), each byte string has its length.
sub varint
{
	my ($number) = @_;
	my $bytes = '';
	while ($number >= 128) { $bytes .= chr($number & 127 | 128); $number >>= 7; }
	return $bytes . chr $number;
}
sub bytes { return varint(length $_[0]) . $_[0]; }
my $version = "\x01";
my $uuid = 'sixteen bytes.. ';
my $life = 'another sixteen.';
sub hello { my ($name, $its_uuid) = @_; return bytes($name) . ($its_uuid // $uuid) . varint(1) . $life . bytes('there') . "\x01"; }
my $nothing_else = "\0" x 7;
sub exchange { return sprintf q{SELECT coord.gossip_exchange('\x%s')}, unpack 'H*', $_[0]; }

is($mesh->sqlstate('a', exchange($version . hello('guest') . $nothing_else), @as_speaker), '', 'a message made by hand is understood');
is($mesh->sqlstate('a', 'BEGIN; ' . exchange($version . hello('guest') . $nothing_else), @as_speaker), '25001',
	'inside a transaction block nothing is exchanged, since the answer would speak of what may roll back');

# Random bytes, cut-off messages, and messages with one byte changed. Seeded, so that a failure repeats.
srand 42;
my $state = $mesh->sql('a', q{SELECT encode(value::bytea, 'hex') FROM coord.state WHERE name = 's'});
my $space = bytes('space');
my $snapshot = varint(5) . varint(9) . varint(1) . varint(5);
my $position = $space . "\x01$snapshot" . "\x01" . $snapshot . varint(7) . bytes('name');
my $clock = $mesh->sql('a', q{SELECT encode('{"guest":5}'::coord.vclock::bytea, 'hex')});
my $batch = $position . "\x01" . bytes(pack 'H*', $clock) . varint(1) . bytes('row') . bytes(pack 'H*', $state)
  . $position . bytes(pack 'H*', $clock) . "\x01" . bytes(pack 'H*', $clock);
my $claim = bytes(pack 'H*', $clock) . bytes(pack 'H*', $clock) . 'd' x 32;
my $full = $version . hello('guest') . "\x01$claim" . "\x01$position" . "\0\0" . "\x01$batch" . varint(300)
  . "\x01" . varint(1) . $life . bytes('here') . "\x01" . varint(5) . varint(7) . varint(300);
is($mesh->sqlstate('c', exchange($full)), '', 'a message with everything in it is understood');

my @messages = ('');
push @messages, join '', map { chr int rand 256 } 1 .. 1 + int rand 200 foreach 1 .. 100;
push @messages, $version . join '', map { chr int rand 256 } 1 .. 1 + int rand 200 foreach 1 .. 300;
push @messages, substr $full, 0, $_ foreach 0 .. length($full) - 1;
push @messages, "$full.";
my %codes = codes(@messages);
is(join(' ', sort keys %codes), '22P03', 'bytes that are no message are refused as such');

my @changed;
foreach my $place (0 .. length($full) - 1)
{
	foreach (1 .. 6) { my $copy = $full; substr $copy, $place, 1, chr int rand 256; push @changed, $copy; }
}
%codes = codes(@changed);
# A changed byte can make another valid message (then there is no error), a name that is none, or one
# that belongs to somebody else.
my @unexpected = grep { !/^(22P03|22P02|22003|22023|54000|42710)$/ } keys %codes;
is("@unexpected", '', 'a message with a changed byte is refused with a proper error, or taken')
  or diag(join "\n", map { "$_: " . unpack 'H*', $codes{$_} } @unexpected);
note(join ' ', 'codes:', sort keys %codes);
is($mesh->sql('c', 'SELECT 1'), '1', 'the server is there after all that');
unlike(PostgreSQL::Test::Utils::slurp_file($mesh->node('c')->logfile), qr/panicked|was terminated by signal|PANIC:/,
	'and nothing in it crashed or panicked');

# Errors by SQLSTATE, with a message that caused each. All go through one session, as a peer's would.
sub codes
{
	my @sent = @_;
	my (%found, $out, $err);
	$mesh->node('c')->psql('postgres', join("\n", map { exchange($_) . ';' } @sent),
		stdout => \$out, stderr => \$err, on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	while ($err =~ /<stdin>:(\d+): ERROR:  (\w{5})/g) { $found{$2} //= $sent[ $1 - 1 ]; }
	$found{"no connection: $err"} = '' if $err =~ /connection/;
	return %found;
}

# ---- names

# c's roster has the guests of the messages above; b's does not.
$mesh->sql('b', q{SELECT coord.state_record_satisfied('of-b', 1)});
$mesh->wait_for('a', q{SELECT count(*) FROM coord.state WHERE name = 'of-b'}, '1');
$mesh->sql('b', q{SELECT coord.remove_peer('a')});
$mesh->sql('a', q{SELECT coord.remove_peer('b')});
$mesh->sql('b', q{SELECT coord.state_record_satisfied('secret-of-b', 1)});
$mesh->sql('a', sprintf q{SELECT coord.add_peer('x', '%s')}, $mesh->conninfo('b', @login));
$mesh->wait_for('a', q{SELECT last_error ~ 'peer "x" calls itself "b"' FROM coord.peer_status WHERE peer = 'x'}, 't',
	'a peer added under a wrong name is found out');
is($mesh->sql('a', q{SELECT count(*) FROM coord.state WHERE name = 'secret-of-b'}), '0', 'and nothing of it is applied');
is($mesh->sql('a', q{SELECT count(*) FROM coord.roster WHERE name = 'x'}), '0', 'nor is the wrong name kept as a node');
$mesh->sql('a', q{SELECT coord.remove_peer('x')});

# Another node that calls itself b, where a knows the first one.
my $twin = $mesh->add('twin');
$twin->safe_psql('postgres', 'DROP EXTENSION pg_test');
$twin->safe_psql('postgres', 'CREATE EXTENSION pg_test');
$twin->safe_psql('postgres', q{SELECT coord.node_init('b')});
$twin->safe_psql('postgres', q{SELECT coord.state_record_satisfied('of-twin', 1)});
$mesh->sql('a', sprintf q{SELECT coord.add_peer('b', '%s')}, $mesh->conninfo('twin'));
$mesh->sql('twin', sprintf q{SELECT coord.add_peer('a', '%s')}, $mesh->conninfo('a', @login));
$mesh->wait_for($$_[0], qq{SELECT last_error ~ 'the name "b" belongs to another node' FROM coord.peer_status WHERE peer = '$$_[1]'}, 't',
	"a name taken by another node is refused, and $$_[2] shows it")
  foreach [ 'a', 'b', 'the one that knows the name' ], [ 'twin', 'a', 'the one that took it' ];
is($mesh->sql('a', q{SELECT count(*) FROM coord.state WHERE name = 'of-twin'}), '0', 'nothing of the second one is applied');
is($mesh->sql('twin', q{SELECT count(*) FROM coord.state}), '1', 'and nothing is given to it');

# ---- the logs

foreach my $name ($mesh->names)
{
	my $log = PostgreSQL::Test::Utils::slurp_file($mesh->node($name)->logfile);
	unlike($log, qr/\Q$password\E|\Q$wrong\E/, "no password is in the log of $name");
}
is($mesh->sql('a', q{SELECT count(*) FROM coord.peer_status WHERE last_error ~ 'Pa55word'}), '0', 'nor in what peer_status shows');
is($mesh->sqlstate('a', q{SELECT umoptions FROM pg_user_mapping}, @as_stranger), '42501', 'other roles cannot read it');

done_testing();
