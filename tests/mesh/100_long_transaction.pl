# A transaction that stays open delays what is called complete, and nothing that is delivered.

use strict;
use warnings;

use PgTest::Mesh;
use Test::More;

my $mesh = PgTest::Mesh->new(names => [ 'a', 'b', 'c' ], conf => "coord.gossip_interval = '100ms'");
$mesh->join_all;
$mesh->sql('a', q{SELECT coord.state_record_satisfied('first', 1)});
$mesh->converges('three nodes converge');

my $satisfied = q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = '%s'};
sub pass_rounds
{
	my ($name, $count) = @_;
	my $from = $mesh->sql($name, 'SELECT sum(rounds) FROM coord.peer_status');
	$mesh->wait_for($name, "SELECT sum(rounds) >= $from + $count FROM coord.peer_status");
	return;
}

# ---- on the side that gives

my $open = $mesh->node('a')->background_psql('postgres');
$open->query_safe(q{BEGIN});
$open->query_safe(q{SELECT coord.state_record_satisfied('late', 5)});
$open->query_safe(q{SELECT coord.state_record_satisfied('first', 5)});

foreach my $count (1 .. 20) { $mesh->sql('a', qq{SELECT coord.state_record_satisfied('other', 1)}); }
$mesh->wait_for($_, sprintf($satisfied, 'other'), '20', "$_ is given what committed after the open transaction began") foreach 'b', 'c';
pass_rounds($_, 10) foreach $mesh->names;
is($mesh->sql($_, q{SELECT count(*) FROM coord.state WHERE name = 'late'}), '0', "$_ has nothing of the open transaction") foreach $mesh->names;
is($mesh->sql('a', 'SELECT bool_or(converged) FROM coord.convergence'), 'f', 'a calls itself converged with nobody while it is open');
is($mesh->sql($_, q{SELECT converged FROM coord.convergence WHERE peer = 'a'}), 'f', "nor does $_ with a") foreach 'b', 'c';
is($mesh->sql($_, 'SELECT coalesce(bool_and(digests_agree), true) FROM coord.convergence'), 't', "$_ takes that for unfinished, not for corruption") foreach $mesh->names;

# A batch without rows would otherwise be stored again and again.
my $in = 'SELECT sum(rows_in) FROM coord.peer_status';
my %rows = map { $_ => $mesh->sql($_, $in) } 'b', 'c';
pass_rounds($_, 10) foreach $mesh->names;
is($mesh->sql($_, $in), $rows{$_}, "$_ is not given rows again while it is open") foreach 'b', 'c';

$open->query_safe('COMMIT');
$mesh->wait_for($_, sprintf($satisfied, 'late'), '5', "$_ is given the late commit, below what it had been given") foreach 'b', 'c';
$mesh->converges('after the commit the nodes converge');
is($mesh->sql($_, sprintf($satisfied, 'first')), '6', "$_ has both changes of a state that was changed before and in it") foreach $mesh->names;

# One that rolls back, and one that only has a number: both end, and convergence comes back.
$open->query_safe(q{BEGIN});
$open->query_safe(q{SELECT coord.state_record_satisfied('never', 5)});
$mesh->sql('a', q{SELECT coord.state_record_satisfied('other', 1)});
$mesh->wait_for('b', sprintf($satisfied, 'other'), '21', 'again what commits is delivered');
$open->query_safe('ROLLBACK');
$mesh->converges('after a rollback the nodes converge');
is($mesh->sql('b', q{SELECT count(*) FROM coord.state WHERE name = 'never'}), '0', 'what was rolled back is nowhere');

$open->query_safe(q{CREATE TABLE elsewhere (i int)});
$open->query_safe(q{BEGIN});
$open->query_safe(q{INSERT INTO elsewhere VALUES (1)});
pass_rounds($_, 5) foreach $mesh->names;
$mesh->converges('a transaction open in some other table, with nothing recorded since, keeps nobody from convergence');
$open->query_safe('COMMIT');

# Two transactions change one state, and the one with the lower number does so last. The state's
# row then bears the lower number, and yet the higher one is held.
$open->query_safe(q{BEGIN});
$open->query_safe(q{SELECT pg_current_xact_id()});
$mesh->sql('a', q{SELECT coord.state_record_satisfied('other', 1)});
$mesh->wait_for('b', sprintf($satisfied, 'other'), '22', 'the higher number is delivered first');
$open->query_safe(q{SELECT coord.state_record_satisfied('other', 1)});
$open->query_safe('COMMIT');
$mesh->wait_for('b', sprintf($satisfied, 'other'), '23', 'then the lower one');
$mesh->converges('transactions on one state in another order than their numbers do not keep the nodes from convergence');

# ---- on the side that takes

# b holds the row of one state, and a state by the name of another that is not there yet.
my $holder = $mesh->node('b')->background_psql('postgres');
$holder->query_safe('BEGIN');
$holder->query_safe(q{SELECT coord.state_record_satisfied('first', 100)});
$holder->query_safe(q{SELECT coord.state_record_satisfied('new', 100)});
$mesh->sql('a', q{SELECT coord.state_record_satisfied('first', 1), coord.state_record_satisfied('new', 1), coord.state_record_satisfied('other', 1)});
$mesh->wait_for('b', sprintf($satisfied, 'other'), '24', 'a state that nobody holds is merged at once', timeout => 10);
$mesh->wait_for('b', q{SELECT string_agg(name, ',' ORDER BY name) FROM coord.state_waiting}, 'first,new',
	'those whose row or name a transaction holds wait');
$mesh->wait_for('c', sprintf($satisfied, 'new'), '1', 'other nodes do not wait for them');
$mesh->sql('a', q{SELECT coord.state_record_satisfied('another', 1)});
$mesh->wait_for('b', sprintf($satisfied, 'another'), '1', 'a state that is new is merged while they wait', timeout => 10);
pass_rounds($_, 10) foreach $mesh->names;
is($mesh->sql('b', q{SELECT converged FROM coord.convergence WHERE peer = 'a'}), 'f', 'b is not converged while they wait');
is($mesh->sql('a', q{SELECT converged FROM coord.convergence WHERE peer = 'b'}), 'f', 'nor does a take it for that');
is($mesh->sql('a', q{SELECT sum(mismatches) FROM coord.convergence}), '0', 'and nothing is taken for corruption');
$holder->query_safe('COMMIT');
$mesh->converges('when the transaction has ended they are merged and the nodes converge');
is($mesh->sql($_, sprintf($satisfied, 'first') . ' UNION ALL ' . sprintf($satisfied, 'new')), "107\n101", "$_ has the changes of both sides") foreach $mesh->names;
is($mesh->sql('b', 'SELECT count(*) FROM coord.state_waiting'), '0', 'nothing waits any more');

# While b stores what c gives, a row that a gives has to wait: b must not take itself for complete
# because c's batch had nothing to wait for.
my $keeper = $mesh->node('b')->background_psql('postgres');
$holder->query_safe('BEGIN');
$holder->query_safe(q{SELECT coord.state_record_satisfied('first', 100)});
$keeper->query_safe('BEGIN');
$keeper->query_safe(q{SELECT FROM coord.peer_cursor WHERE node = 'c' FOR UPDATE});
$mesh->sql('c', q{SELECT coord.state_record_satisfied('other', 1)});
$mesh->wait_for('b', q{SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'pg_test gossip'});
$mesh->sql('a', q{SELECT coord.state_record_satisfied('first', 1)});
$mesh->wait_for('b', q{SELECT string_agg(name, ',') FROM coord.state_waiting}, 'first');
$keeper->query_safe('COMMIT');
$mesh->wait_for('b', sprintf($satisfied, 'other'), '25', 'what c gave is stored');
is($mesh->sql('b', q{SELECT frontier OPERATOR(coord.@>) pending FROM coord.peer_cursor WHERE node = 'a'}), 'f',
	'b does not claim to hold what still waits');
$holder->query_safe('COMMIT');
$keeper->quit;
$mesh->converges('when that has been merged too the nodes converge');
is($mesh->sql($_, 'SELECT sum(mismatches) FROM coord.convergence'), '0', "$_ never took any of this for corruption") foreach $mesh->names;

# ---- with an hour between two rounds of the timer

$mesh->sql($_, q{ALTER SYSTEM SET coord.gossip_interval = '1h'}) foreach $mesh->names;
$_->restart foreach map { $mesh->node($_) } $mesh->names;
$holder->quit;
$open->quit;
$holder = $mesh->node('b')->background_psql('postgres');
$mesh->sql('a', q{SELECT coord.state_record_satisfied('first', 1)});
$mesh->wait_for('b', sprintf($satisfied, 'first'), '209', undef, timeout => 20);
$holder->query_safe('BEGIN');
$holder->query_safe(q{SELECT coord.state_record_satisfied('first', 1)});
$mesh->sql('a', q{SELECT coord.state_record_satisfied('first', 1)});
$mesh->wait_for('b', 'SELECT count(*) FROM coord.state_waiting', '1');
$holder->query_safe('COMMIT');
$mesh->wait_for('b', sprintf($satisfied, 'first'), '211', 'the commit that lets a state go has what waited for it merged at once', timeout => 10);
$mesh->wait_for('a', sprintf($satisfied, 'first'), '211', 'and is pushed itself', timeout => 10);
$holder->quit;

done_testing();
