
=head1 NAME

PgTest::Counter - counts what is recorded in a mesh, so that a lost or doubled count shows

=head1 SYNOPSIS

  my $counter = PgTest::Counter->new($mesh);
  $counter->record('a', 3);
  $counter->is_whole('after the restart');    # tests: every node has every count, once

Each change is one more check and another constraint of the state C<s>, so that a counter used twice
would show.

=cut

package PgTest::Counter;

use strict;
use warnings;

use Test::More;

my $satisfied = q{SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 's'};
my $ids = q{SELECT string_agg(id, ',' ORDER BY id) FROM coord.state, coord.constraint_ids(value) id WHERE name = 's'};

sub new
{
	my ($class, $mesh) = @_;
	return bless { mesh => $mesh, counted => 0 }, $class;
}

=head1 METHODS

=head2 record($name, $times)

So many changes on a node, each a transaction of its own.

=cut

sub record
{
	my ($self, $name, $times) = @_;
	foreach (1 .. $times)
	{
		my $id = 'id' . ++$self->{counted};
		$self->{mesh}->sql($name, "SELECT coord.state_record_satisfied('s', 1), coord.state_add_constraint('s', '$id')");
	}
	return;
}

=head2 counted()

How many there were.

=cut

sub counted { return $_[0]->{counted}; }

=head2 is_whole($what)

Tests: the mesh converges, and every node has every count once and every constraint.

=cut

sub is_whole
{
	my ($self, $what) = @_;
	my $mesh = $self->{mesh};
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$mesh->converges("$what: the mesh converges");
	my $expected = join ',', sort map { "id$_" } 1 .. $self->{counted};
	foreach my $name ($mesh->names)
	{
		is($mesh->sql($name, $satisfied), $self->{counted}, "$what: node $name has every count, once");
		is($mesh->sql($name, $ids), $expected, "$what: node $name has every constraint");
	}
	return;
}

1;
