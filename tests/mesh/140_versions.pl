# A node of this version and one that knows only the protocol version before.

use strict;
use warnings;

use PgTest::Mesh;
use Test::More;

my $mesh = PgTest::Mesh->new(names => [ 'new', 'old' ], conf => "coord.gossip_interval = '100ms'");

# What the version before does with a message it does not know.
$mesh->sql('old', <<'SQL');
ALTER FUNCTION coord.gossip_exchange(bytea) RENAME TO gossip_exchange_one;
CREATE FUNCTION coord.gossip_exchange(message bytea) RETURNS bytea LANGUAGE plpgsql AS $$
BEGIN
  IF get_byte(message, 0) <> 1 THEN
    RAISE 'invalid binary form of type gossip message' USING ERRCODE = '22P03',
      DETAIL = format('It has protocol version %s; this node speaks version 1.', get_byte(message, 0));
  END IF;
  RETURN coord.gossip_exchange_one(message);
END
$$;
SQL
$mesh->add_peer('new', 'old');

my $satisfied = q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 's'};
$mesh->sql($_, q{SELECT coord.state_record_satisfied('s', 1)}) foreach $mesh->names;
$mesh->wait_for($_, $satisfied, 2, "$_ has what both recorded") foreach $mesh->names;
$mesh->wait_for('new', 'SELECT bool_and(converged) FROM coord.convergence', 't', 'they converge');
$mesh->wait_for('new', q{SELECT state FROM coord.peer_status}, 'alive', 'who does not tell its heartbeats is alive while it answers');
is($mesh->sql('new', 'SELECT failures FROM coord.peer_status'), 0, 'no round failed for it');
is($mesh->logged('old', qr/ERROR:  invalid binary form of type gossip message/), 1, 'the older node was asked once in the newer version');
my $rounds = $mesh->sql('new', 'SELECT rounds FROM coord.peer_status');
$mesh->wait_for('new', "SELECT rounds > $rounds + 10 FROM coord.peer_status");
is($mesh->logged('old', qr/ERROR:  invalid binary form of type gossip message/), 1, 'and not again on that connection');


# ---- the older node is upgraded

$mesh->sql('old', 'DROP FUNCTION coord.gossip_exchange(bytea); ALTER FUNCTION coord.gossip_exchange_one(bytea) RENAME TO gossip_exchange');
$mesh->node('old')->restart;
$mesh->sql('old', q{SELECT coord.state_record_satisfied('s', 1)});
$mesh->wait_for('new', $satisfied, 3, 'they go on once both speak the new version');
$mesh->wait_for('new', q{SELECT state FROM coord.peer_status}, 'alive', 'and are alive to each other');

done_testing();
