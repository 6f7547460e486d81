# TLS: who answers, who asks, and where the secrets are not.

use strict;
use warnings;

use IPC::Run ();
use PgTest::Mesh;
use PostgreSQL::Test::Utils ();
use Test::More;

# ---- certificates

my $files = PostgreSQL::Test::Utils::tempdir();
my $curve = [ '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes' ];
my @secrets;

sub path { return "$files/$_[0]"; }

sub write_file
{
	my ($name, $content, $mode) = @_;
	my $path = path($name);
	unlink $path;
	PostgreSQL::Test::Utils::append_to_file($path, $content);
	chmod $mode // 0600, $path or die "$path: $!";
	return $path;
}

sub openssl
{
	my @arguments = @_;
	my $output;
	IPC::Run::run([ 'openssl', @arguments ], '<', \undef, '>&', \$output) or die "openssl @arguments:\n$output";
	return;
}

sub keep_secret
{
	my ($name) = @_;
	chmod 0600, path("$name.key") or die "$name.key: $!";
	push @secrets, grep { !/-----/ } split /\n/, PostgreSQL::Test::Utils::slurp_file(path("$name.key"));
	return;
}

# The system's configuration of openssl has no say here.
write_file('request.conf', "[req]\ndistinguished_name = name\nprompt = no\n[name]\nCN = unused\n"
	. "[authority]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = keyCertSign\n");
write_file('index', '');
write_file('issue.conf', "[ca]\ndefault_ca = mesh\n[mesh]\ndatabase = $files/index\nnew_certs_dir = $files\n"
	. "default_md = sha256\npolicy = name\nrand_serial = yes\nunique_subject = no\n[name]\ncommonName = supplied\n");

sub make_authority
{
	my ($name) = @_;
	openssl('req', '-x509', @$curve, '-config', path('request.conf'), '-extensions', 'authority', '-subj', "/CN=$name",
		'-days', 3650, '-keyout', path("$name.key"), '-out', path("$name.crt"));
	keep_secret($name);
	return;
}

# A certificate NAME.crt with its NAME.key.
sub issue
{
	my ($name, %params) = @_;
	write_file("$name.extensions", "basicConstraints = CA:FALSE\n" . ($params{names} ? "subjectAltName = $params{names}\n" : ''));
	openssl('req', '-new', @$curve, '-config', path('request.conf'), '-subj', '/CN=' . ($params{common_name} // 'server'),
		'-keyout', path("$name.key"), '-out', path("$name.request"));
	my $authority = $params{authority} // 'ca';
	openssl('ca', '-batch', '-notext', '-config', path('issue.conf'), '-cert', path("$authority.crt"), '-keyfile', path("$authority.key"),
		'-startdate', '20200101000000Z', '-enddate', $params{until} // '20991231000000Z',
		'-extfile', path("$name.extensions"), '-in', path("$name.request"), '-out', path("$name.crt"));
	keep_secret($name);
	return;
}

make_authority($_) foreach 'ca', 'other-ca';
my $here = 'IP:127.0.0.1, DNS:localhost';
issue('right', names => $here);
issue('by-name', names => 'DNS:localhost');
issue('elsewhere', names => 'DNS:elsewhere.example, IP:192.0.2.1');
issue('expired', names => $here, until => '20210203040506Z');
issue('foreign', names => $here, authority => 'other-ca');
issue('client', common_name => 'node_a');
issue('stranger', common_name => 'stranger');
issue('foreign-client', common_name => 'node_a', authority => 'other-ca');

# ---- two servers

# Every statement is logged, and all that the extension could say. What this test itself says with a
# password in it is kept out, so that what is found there would be the extension's doing.
my $mesh = PgTest::Mesh->new(names => [ 'a', 'b' ],
	conf => "coord.gossip_interval = '100ms'\nlog_statement = all\nlog_min_messages = debug1\nssl_ca_file = '$files/ca.crt'");
plan(skip_all => 'this server was built without TLS') if $mesh->sql('a', 'SHOW ssl_library') eq '';
my $password = 'in-the-conninfo-Pa55word';
my $kept = 'in-the-passfile-Pa55word';
push @secrets, $password, $kept;
my $port = $mesh->node('b')->port;

sub quietly { return $mesh->sql($_[0], "SET log_statement = none; $_[1]"); }

foreach my $name ($mesh->names)
{
	my $node = $mesh->node($name);
	quietly($name, "CREATE ROLE by_password LOGIN PASSWORD '$password' IN ROLE coord_peer;
	                CREATE ROLE by_passfile LOGIN PASSWORD '$kept' IN ROLE coord_peer");
	$mesh->sql($name, 'CREATE ROLE node_a LOGIN IN ROLE coord_peer');
	write_file('pg_hba.conf', "local all all trust\nhostssl all node_a 127.0.0.1/32 cert\nhostssl all all 127.0.0.1/32 scram-sha-256\n");
	rename path('pg_hba.conf'), $node->data_dir . '/pg_hba.conf' or die "pg_hba.conf: $!";
	serve($name, 'right');
}

sub reload
{
	my ($name) = @_;
	my $before = $mesh->sql($name, 'SELECT pg_conf_load_time()');
	$mesh->node($name)->reload;
	# New sessions are of the postmaster as it is then.
	$mesh->wait_for($name, "SELECT pg_conf_load_time() > '$before'");
	return;
}

# The server shows another certificate, to new connections only; so those there are end.
sub serve
{
	my ($name, $certificate) = @_;
	write_file("server-$name.$_", PostgreSQL::Test::Utils::slurp_file(path("$certificate.$_"))) foreach 'crt', 'key';
	$mesh->sql($name, "ALTER SYSTEM SET ssl_$$_[0]_file = '" . path("server-$name.$$_[1]") . "'") foreach [ 'cert', 'crt' ], [ 'key', 'key' ];
	$mesh->sql($name, 'ALTER SYSTEM SET ssl = on');
	reload($name);
	hang_up($name);
	return;
}

sub hang_up
{
	my ($name) = @_;
	$mesh->sql($name, q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pg_test gossip'});
	return;
}

my @with_password = (user => 'by_password', password => $password);
my @with_passfile = (user => 'by_passfile', passfile => path('passfile'));
my @with_certificate = (user => 'node_a', sslcert => path('client.crt'), sslkey => path('client.key'));
my @check_chain = (sslmode => 'verify-ca', sslrootcert => path('ca.crt'));
my @check_all = (sslmode => 'verify-full', sslrootcert => path('ca.crt'));

# How a reaches b from now on.
sub reach
{
	my %options = @_;
	$mesh->sql('a', q{SELECT coord.remove_peer(name) FROM coord.peer});
	quietly('a', sprintf q{SELECT coord.add_peer('b', '%s')}, $mesh->conninfo('b', %options));
	return;
}

# b knows no way to a, so what it sees has come on a's own connection.
my $recorded = 0;
sub is_reached
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$recorded++;
	$mesh->sql('a', q{SELECT coord.state_record_satisfied('s', 1)});
	return $mesh->wait_for('b', q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 's'}, $recorded, $what);
}

my @shown;
sub is_refused
{
	my ($reason, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $since = $mesh->sql('a', 'SELECT clock_timestamp()');
	my $is_refused = $mesh->wait_for('a', "SELECT last_failure > '$since' AND last_error ~ '$reason' FROM coord.peer_status WHERE peer = 'b'", 't', $what);
	my $shown = $mesh->sql('a', q{SELECT last_error FROM coord.peer_status WHERE peer = 'b'});
	note($shown);
	push @shown, $shown;
	return $is_refused;
}

# ---- the server's certificate

reach(@with_password, @check_all);
quietly('b', sprintf q{SELECT coord.add_peer('a', '%s')}, $mesh->conninfo('a', @with_password, @check_all));
$mesh->sql('a', q{SELECT coord.state_add_constraint('of-a', 'x')});
$mesh->sql('b', q{SELECT coord.state_add_constraint('of-b', 'x')});
$mesh->converges('with verify-full on both sides the nodes converge');
is($mesh->sql('b', q{SELECT bool_and(s.ssl) FROM pg_stat_ssl s JOIN pg_stat_activity USING (pid) WHERE application_name = 'pg_test gossip'}), 't',
	'and what they say is encrypted');
$mesh->sql('b', q{SELECT coord.remove_peer('a')});

reach(@with_password, @check_all, host => 'localhost');
is_reached('verify-full takes a name of the certificate for the host');

serve('b', 'elsewhere');
reach(@with_password, @check_all);
is_refused('certificate not valid for name "127.0.0.1".*elsewhere.example', 'verify-full refuses a certificate of another host');
reach(@with_password, @check_chain);
is_reached('verify-ca takes it, for it does not look at the name');
$mesh->sql('a', q{ALTER SERVER coord_b OPTIONS (SET sslmode 'verify-full')});
is_refused('certificate not valid for name', 'a stricter mode is taken up, although a connection was open');
reach(@with_password, sslmode => 'require');
is_reached('require does not ask who answers');

serve('b', 'by-name');
reach(@with_password, @check_all, host => '127.0.0.1,localhost');
is_reached('each of several hosts is checked by its own name');
reach(@with_password, @check_all, host => '127.0.0.1,127.0.0.1', port => "1,$port");
is_refused("127.0.0.1 port 1: .*Connection refused.*; 127.0.0.1 port $port: .*certificate not valid for name", 'and where none will do each has its reason');

serve('b', 'expired');
reach(@with_password, @check_all);
is_refused('certificate expired: it was valid until 2021-02-03 04:05:06 UTC', 'verify-full refuses an expired certificate');
reach(@with_password, @check_chain);
is_refused('certificate expired', 'verify-ca does too');
serve('b', 'right');
is_reached('a renewed certificate is taken up');
serve('b', 'expired');
is_refused('certificate expired', 'and so is one that expires');

serve('b', 'foreign');
foreach my $mode ('verify-full', 'verify-ca', 'require', 'prefer')
{
	reach(@with_password, sslmode => $mode, sslrootcert => path('ca.crt'));
	is_refused('unknown issuer', "$mode with a root certificate refuses a certificate of another authority");
}
serve('b', 'other-ca');
reach(@with_password, sslmode => 'verify-ca', sslrootcert => path('other-ca.crt'));
is_refused('server certificate refused: it is the certificate of an authority', 'an authority is no server');
serve('b', 'foreign');
write_file('trusted.crt', PostgreSQL::Test::Utils::slurp_file(path('ca.crt')));
reach(@with_password, sslmode => 'verify-full', sslrootcert => path('trusted.crt'));
is_refused('unknown issuer', 'an authority that is not trusted is refused');
write_file('trusted.crt', PostgreSQL::Test::Utils::slurp_file(path('other-ca.crt')));
is_reached('until the file has it');
unlink path('trusted.crt');
hang_up('b');
is_refused('could not use sslrootcert file ".*trusted.crt": No such file', 'a file that is gone is named');
serve('b', 'right');

# ---- our own certificate

reach(@check_all, @with_certificate);
is_reached('a client certificate is enough to log in');
reach(@check_all, user => 'node_a');
is_refused('connection requires a valid client certificate', 'without one there is no login');
reach(@check_all, user => 'node_a', sslcert => path('stranger.crt'), sslkey => path('stranger.key'));
is_refused('28000: certificate authentication failed for user "node_a"', 'nor with that of somebody else');
reach(@check_all, user => 'node_a', sslcert => path('foreign-client.crt'), sslkey => path('foreign-client.key'));
# The server hangs up at once, sometimes before what it said is read.
is_refused('TLS alert UnknownCA|[Rr]eset by peer|[Bb]roken pipe', 'nor with one of another authority');
reach(@check_all, user => 'node_a', sslcert => path('client.crt'), sslkey => path('stranger.key'));
is_refused('could not use sslkey file ".*stranger.key": it is not the key of the certificate in sslcert', 'nor with a key that is not its own');
write_file('no.key', PostgreSQL::Test::Utils::slurp_file(path('client.crt')));
reach(@check_all, user => 'node_a', sslcert => path('client.crt'), sslkey => path('no.key'));
is_refused('there is no private key in PEM form', 'nor with a file that has none');
reach(@check_all, @with_certificate);
is_reached('with the right one it works again');
chmod 0644, path('client.key') or die $!;
hang_up('b');
is_refused('could not use sslkey file ".*client.key": it has group or world access, its mode must be 0600 or less',
	'a key that others can read is refused');
chmod 0600, path('client.key') or die $!;
is_reached('until they cannot');

# ---- the password file

write_file('passfile', "# what fits first counts\n*:1:*:*:wrong\n127.0.0.1:$port:postgres:by_passfile:$kept\n*:*:*:*:wrong\n", 0600);
reach(@check_all, @with_passfile);
is_reached('a password file is enough to log in');
chmod 0640, path('passfile') or die $!;
hang_up('b');
is_refused('could not use passfile file ".*passfile": it has group or world access', 'one that others can read is refused');
write_file('passfile', "other:*:*:*:$kept\n");
is_refused('password missing \(no line of the passfile fits\)', 'one that has no fitting line is too');
write_file('passfile', "*:*:*:by_passfile:$kept\n");
is_reached('and a new line is taken up');

# ---- no TLS there

$mesh->sql('b', 'ALTER SYSTEM SET ssl = off');
reload('b');
hang_up('b');
reach(@with_password, sslmode => 'require');
is_refused('server does not support TLS', 'require refuses a server without TLS');
reach(@with_password, @check_all);
is_refused('server does not support TLS', 'and so does verify-full');
serve('b', 'right');
is_reached('until it has');

# ---- the secrets

quietly('b', sprintf q{SELECT coord.add_peer('a', '%s')}, $mesh->conninfo('a', @check_all, @with_certificate));
$mesh->sql('a', q{SELECT coord.remove_peer('b')});
# By default the statement that fails is logged with the error.
my (undef, undef, $refusal) = $mesh->node('a')->psql('postgres', "SET log_statement = none;
	SELECT coord.add_peer('x', 'host=x password=$password sslmode=verify-full');
	SHOW log_min_error_statement", stdout => \my $setting, on_error_stop => 0);
push @shown, $refusal;
like($refusal, qr/The sslmode verify-full needs the option "sslrootcert"/, 'a connection string that is refused');
is($setting, 'error', 'has changed no setting of the session');
is(quietly('a', "SELECT coord.add_peer('x', 'host=127.0.0.1 port=1 password=$password'); SHOW log_min_error_statement"), "\nerror",
	'nor has one that is taken');
$mesh->sql('a', q{SELECT coord.remove_peer('x')});
# Not quietly: nothing in these is secret.
$mesh->add_peer('a', 'b', @check_all, @with_passfile);
$mesh->converges('the nodes converge, one with a certificate and one with a password file');
my $secrets = join '|', map { quotemeta } @secrets;
cmp_ok(scalar @secrets, '>', 20, 'there are passwords and lines of keys to look for');
foreach my $name ($mesh->names)
{
	my $log = PostgreSQL::Test::Utils::slurp_file($mesh->node($name)->logfile);
	like($log, qr/statement: SELECT coord\.add_peer\('b', '.*passfile=/, 'statements are logged') if $name eq 'a';
	unlike($log, qr/$secrets/, "no password and no key is in the log of $name, whatever is logged");
}
unlike(join("\n", @shown), qr/$secrets/, 'nor in any reason that was shown');
is($mesh->sql('a', q{SELECT count(*) FROM pg_foreign_server WHERE srvoptions::text ~ 'Pa55word|sslkey|passfile'}), '0',
	'nor in what every role can read');
# What a log does show is what somebody told the server while it logs statements.
$mesh->add_peer('a', 'x', port => 1, @with_password);
like(PostgreSQL::Test::Utils::slurp_file($mesh->node('a')->logfile), qr/statement: .*\Q$password\E/,
	'a password in a statement that is logged is in the log');

done_testing();
