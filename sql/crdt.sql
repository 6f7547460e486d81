-- State that merges: coord.constraint_state.

CREATE TYPE constraint_state;

CREATE FUNCTION constraint_state_in(cstring) RETURNS constraint_state
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_state_in_wrapper';
CREATE FUNCTION constraint_state_out(constraint_state) RETURNS cstring
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_state_out_wrapper';
CREATE FUNCTION constraint_state_recv(internal) RETURNS constraint_state
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_state_recv_wrapper';
CREATE FUNCTION constraint_state_send(constraint_state) RETURNS bytea
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_state_send_wrapper';

CREATE TYPE constraint_state (
  INPUT = constraint_state_in, OUTPUT = constraint_state_out,
  RECEIVE = constraint_state_recv, SEND = constraint_state_send,
  STORAGE = extended
);
COMMENT ON TYPE constraint_state IS 'active constraints, satisfied and violated counts and a position, merged as one lattice';
COMMENT ON FUNCTION constraint_state_in(cstring) IS 'I/O';
COMMENT ON FUNCTION constraint_state_out(constraint_state) IS 'I/O';
COMMENT ON FUNCTION constraint_state_recv(internal) IS 'I/O';
COMMENT ON FUNCTION constraint_state_send(constraint_state) IS 'I/O';

CREATE FUNCTION constraint_state() RETURNS constraint_state
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_state_empty_wrapper';
COMMENT ON FUNCTION constraint_state() IS 'the empty state';

CREATE FUNCTION constraint_add(state constraint_state, id text, actor text) RETURNS constraint_state
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_add_wrapper';
COMMENT ON FUNCTION constraint_add(constraint_state, text, text) IS 'adds an active constraint; wins over a concurrent removal';

CREATE FUNCTION constraint_remove(state constraint_state, id text) RETURNS constraint_state
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_remove_wrapper';
COMMENT ON FUNCTION constraint_remove(constraint_state, text) IS 'removes a constraint as far as its additions were observed';

CREATE FUNCTION constraint_record_satisfied(state constraint_state, actor text, n bigint) RETURNS constraint_state
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_record_satisfied_wrapper';
COMMENT ON FUNCTION constraint_record_satisfied(constraint_state, text, bigint) IS 'adds n to the satisfied count of the actor';

CREATE FUNCTION constraint_record_violations(state constraint_state, actor text, n bigint) RETURNS constraint_state
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_record_violations_wrapper';
COMMENT ON FUNCTION constraint_record_violations(constraint_state, text, bigint) IS 'adds n to the violated count of the actor';

CREATE FUNCTION constraint_move(state constraint_state, x integer, y integer, at hlc, actor text) RETURNS constraint_state
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_move_wrapper';
COMMENT ON FUNCTION constraint_move(constraint_state, integer, integer, hlc, text) IS 'sets the position; the last writer by (hlc, actor) wins';

CREATE FUNCTION constraint_ids(state constraint_state) RETURNS SETOF text
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE ROWS 100 AS 'MODULE_PATHNAME', 'constraint_ids_wrapper';
COMMENT ON FUNCTION constraint_ids(constraint_state) IS 'active constraints, sorted bytewise';

CREATE FUNCTION constraint_contains(state constraint_state, id text) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_contains_wrapper';
COMMENT ON FUNCTION constraint_contains(constraint_state, text) IS 'is the constraint active?';

CREATE FUNCTION constraint_count(state constraint_state) RETURNS bigint
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_count_wrapper';
COMMENT ON FUNCTION constraint_count(constraint_state) IS 'number of active constraints';

CREATE FUNCTION constraint_satisfied(state constraint_state) RETURNS numeric
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_satisfied_wrapper';
COMMENT ON FUNCTION constraint_satisfied(constraint_state) IS 'satisfied count over all actors';

CREATE FUNCTION constraint_violations(state constraint_state) RETURNS numeric
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_violations_wrapper';
COMMENT ON FUNCTION constraint_violations(constraint_state) IS 'violated count over all actors';

CREATE FUNCTION satisfaction_rate(state constraint_state) RETURNS double precision
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'satisfaction_rate_wrapper';
COMMENT ON FUNCTION satisfaction_rate(constraint_state) IS 'satisfied / (satisfied + violated), NULL when nothing was recorded';

CREATE FUNCTION constraint_position(state constraint_state) RETURNS point
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_position_wrapper';
COMMENT ON FUNCTION constraint_position(constraint_state) IS 'position, NULL until it is set';

CREATE FUNCTION constraint_context(state constraint_state) RETURNS vclock
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_context_wrapper';
COMMENT ON FUNCTION constraint_context(constraint_state) IS 'causal context: the changes of each actor the state has seen';

CREATE FUNCTION constraint_merge(a constraint_state, b constraint_state) RETURNS constraint_state
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_merge_wrapper';
COMMENT ON FUNCTION constraint_merge(constraint_state, constraint_state) IS 'least upper bound of two states';

CREATE FUNCTION constraint_delta(state constraint_state, since vclock) RETURNS constraint_state
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_delta_wrapper';
COMMENT ON FUNCTION constraint_delta(constraint_state, vclock) IS 'the part of a state that one whose context covers since lacks';

CREATE FUNCTION state_digest(state constraint_state) RETURNS bytea
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'state_digest_wrapper';
COMMENT ON FUNCTION state_digest(constraint_state) IS '32 bytes over the full canonical state (BLAKE3)';

CREATE FUNCTION constraint_eq(constraint_state, constraint_state) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'flat_eq_wrapper';
CREATE FUNCTION constraint_ne(constraint_state, constraint_state) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'flat_ne_wrapper';
CREATE FUNCTION constraint_covers(constraint_state, constraint_state) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_covers_wrapper';
CREATE FUNCTION constraint_covered_by(constraint_state, constraint_state) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_covered_by_wrapper';
CREATE FUNCTION constraint_hash(constraint_state) RETURNS integer
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'flat_hash_wrapper';
CREATE FUNCTION constraint_hash_extended(constraint_state, bigint) RETURNS bigint
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'flat_hash_extended_wrapper';
COMMENT ON FUNCTION constraint_eq(constraint_state, constraint_state) IS 'implementation of = operator';
COMMENT ON FUNCTION constraint_ne(constraint_state, constraint_state) IS 'implementation of <> operator';
COMMENT ON FUNCTION constraint_covers(constraint_state, constraint_state) IS 'implementation of @> operator';
COMMENT ON FUNCTION constraint_covered_by(constraint_state, constraint_state) IS 'implementation of <@ operator';
COMMENT ON FUNCTION constraint_hash(constraint_state) IS 'hash';
COMMENT ON FUNCTION constraint_hash_extended(constraint_state, bigint) IS 'hash';

CREATE OPERATOR = (
  LEFTARG = constraint_state, RIGHTARG = constraint_state, FUNCTION = constraint_eq,
  COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, HASHES
);
CREATE OPERATOR <> (
  LEFTARG = constraint_state, RIGHTARG = constraint_state, FUNCTION = constraint_ne,
  COMMUTATOR = <>, NEGATOR = =, RESTRICT = neqsel, JOIN = neqjoinsel
);
CREATE OPERATOR @> (
  LEFTARG = constraint_state, RIGHTARG = constraint_state, FUNCTION = constraint_covers,
  COMMUTATOR = <@, RESTRICT = contsel, JOIN = contjoinsel
);
CREATE OPERATOR <@ (
  LEFTARG = constraint_state, RIGHTARG = constraint_state, FUNCTION = constraint_covered_by,
  COMMUTATOR = @>, RESTRICT = contsel, JOIN = contjoinsel
);
CREATE OPERATOR || (
  LEFTARG = constraint_state, RIGHTARG = constraint_state, FUNCTION = constraint_merge,
  COMMUTATOR = ||
);
COMMENT ON OPERATOR = (constraint_state, constraint_state) IS 'equal';
COMMENT ON OPERATOR <> (constraint_state, constraint_state) IS 'not equal';
COMMENT ON OPERATOR @> (constraint_state, constraint_state) IS 'has seen all that the other has';
COMMENT ON OPERATOR <@ (constraint_state, constraint_state) IS 'has seen nothing that the other has not';
COMMENT ON OPERATOR || (constraint_state, constraint_state) IS 'merge';

CREATE OPERATOR CLASS constraint_state_hash_ops DEFAULT FOR TYPE constraint_state USING hash AS
  OPERATOR 1 =,
  FUNCTION 1 constraint_hash(constraint_state),
  FUNCTION 2 constraint_hash_extended(constraint_state, bigint);
COMMENT ON OPERATOR CLASS constraint_state_hash_ops USING hash IS 'equality of constraint states';

CREATE CAST (constraint_state AS jsonb) WITH INOUT;
CREATE CAST (jsonb AS constraint_state) WITH INOUT;
COMMENT ON CAST (constraint_state AS jsonb) IS 'the text form as jsonb';
COMMENT ON CAST (jsonb AS constraint_state) IS 'a state from its text form';

CREATE FUNCTION constraint_state(bytea) RETURNS constraint_state
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_state_from_bytea_wrapper';
COMMENT ON FUNCTION constraint_state(bytea) IS 'a state from its binary form, checked as strictly as on the wire';
CREATE CAST (constraint_state AS bytea) WITHOUT FUNCTION;
CREATE CAST (bytea AS constraint_state) WITH FUNCTION constraint_state(bytea);
COMMENT ON CAST (constraint_state AS bytea) IS 'the binary form';
COMMENT ON CAST (bytea AS constraint_state) IS 'a state from its binary form';

CREATE AGGREGATE constraint_merge_agg(constraint_state) (
  SFUNC = constraint_merge, STYPE = constraint_state, COMBINEFUNC = constraint_merge, PARALLEL = SAFE
);
COMMENT ON AGGREGATE constraint_merge_agg(constraint_state) IS 'merge of all states, NULL over no rows';

-- Digests of sets of rows are added up modulo 2^256, so that they can be kept in parts.

CREATE FUNCTION digest_add(bytea, bytea) RETURNS bytea
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'digest_add_wrapper';
COMMENT ON FUNCTION digest_add(bytea, bytea) IS 'sum of two digests modulo 2^256';

CREATE AGGREGATE digest_sum(bytea) (
  SFUNC = digest_add, STYPE = bytea, COMBINEFUNC = digest_add, PARALLEL = SAFE
);
COMMENT ON AGGREGATE digest_sum(bytea) IS 'sum of digests modulo 2^256, NULL over no rows';
