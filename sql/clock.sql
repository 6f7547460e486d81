-- Clocks: coord.vclock (partial order) and coord.hlc (total order).

CREATE TYPE vclock;

CREATE FUNCTION vclock_in(cstring) RETURNS vclock
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'vclock_in_wrapper';
CREATE FUNCTION vclock_out(vclock) RETURNS cstring
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'vclock_out_wrapper';
CREATE FUNCTION vclock_recv(internal) RETURNS vclock
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'vclock_recv_wrapper';
CREATE FUNCTION vclock_send(vclock) RETURNS bytea
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'vclock_send_wrapper';

CREATE TYPE vclock (
  INPUT = vclock_in, OUTPUT = vclock_out, RECEIVE = vclock_recv, SEND = vclock_send,
  STORAGE = extended
);
COMMENT ON TYPE vclock IS 'vector clock: actor to counter, {"a":3,"b":7}';
COMMENT ON FUNCTION vclock_in(cstring) IS 'I/O';
COMMENT ON FUNCTION vclock_out(vclock) IS 'I/O';
COMMENT ON FUNCTION vclock_recv(internal) IS 'I/O';
COMMENT ON FUNCTION vclock_send(vclock) IS 'I/O';

CREATE TYPE causality AS ENUM ('equal', 'before', 'after', 'concurrent');
COMMENT ON TYPE causality IS 'how one clock relates to another';

CREATE FUNCTION vclock_increment(clock vclock, actor text) RETURNS vclock
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'vclock_increment_wrapper';
COMMENT ON FUNCTION vclock_increment(vclock, text) IS 'clock with one more event of the actor';

CREATE FUNCTION vclock_get(clock vclock, actor text) RETURNS bigint
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'vclock_get_wrapper';
COMMENT ON FUNCTION vclock_get(vclock, text) IS 'counter of the actor, 0 when it has none';

CREATE FUNCTION vclock_entries(clock vclock, OUT actor text, OUT counter bigint) RETURNS SETOF record
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE ROWS 10 AS 'MODULE_PATHNAME', 'vclock_entries_wrapper';
COMMENT ON FUNCTION vclock_entries(vclock) IS 'entries in order of actor';

CREATE FUNCTION vclock_merge(a vclock, b vclock) RETURNS vclock
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'vclock_merge_wrapper';
COMMENT ON FUNCTION vclock_merge(vclock, vclock) IS 'least upper bound: the higher counter of each actor';

CREATE FUNCTION vclock_meet(a vclock, b vclock) RETURNS vclock
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'vclock_meet_wrapper';
COMMENT ON FUNCTION vclock_meet(vclock, vclock) IS 'greatest lower bound: the lower counter of each actor, absent is zero';

CREATE FUNCTION vclock_relation(a vclock, b vclock) RETURNS text
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'vclock_compare_wrapper';
COMMENT ON FUNCTION vclock_relation(vclock, vclock) IS 'implementation of vclock_compare';

CREATE FUNCTION vclock_compare(a vclock, b vclock) RETURNS causality
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN CASE coord.vclock_relation(a, b)
           WHEN 'equal' THEN 'equal'::coord.causality
           WHEN 'before' THEN 'before'::coord.causality
           WHEN 'after' THEN 'after'::coord.causality
           ELSE 'concurrent'::coord.causality
         END;
COMMENT ON FUNCTION vclock_compare(vclock, vclock) IS 'how a relates to b in happened-before';

CREATE FUNCTION vclock_eq(vclock, vclock) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'flat_eq_wrapper';
CREATE FUNCTION vclock_ne(vclock, vclock) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'flat_ne_wrapper';
CREATE FUNCTION vclock_covers(vclock, vclock) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'vclock_covers_wrapper';
CREATE FUNCTION vclock_covered_by(vclock, vclock) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'vclock_covered_by_wrapper';
CREATE FUNCTION vclock_concurrent(vclock, vclock) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'vclock_concurrent_wrapper';
CREATE FUNCTION vclock_hash(vclock) RETURNS integer
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'flat_hash_wrapper';
CREATE FUNCTION vclock_hash_extended(vclock, bigint) RETURNS bigint
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'flat_hash_extended_wrapper';
COMMENT ON FUNCTION vclock_eq(vclock, vclock) IS 'implementation of = operator';
COMMENT ON FUNCTION vclock_ne(vclock, vclock) IS 'implementation of <> operator';
COMMENT ON FUNCTION vclock_covers(vclock, vclock) IS 'implementation of @> operator';
COMMENT ON FUNCTION vclock_covered_by(vclock, vclock) IS 'implementation of <@ operator';
COMMENT ON FUNCTION vclock_concurrent(vclock, vclock) IS 'implementation of <||> operator';
COMMENT ON FUNCTION vclock_hash(vclock) IS 'hash';
COMMENT ON FUNCTION vclock_hash_extended(vclock, bigint) IS 'hash';

CREATE OPERATOR = (
  LEFTARG = vclock, RIGHTARG = vclock, FUNCTION = vclock_eq,
  COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, HASHES
);
CREATE OPERATOR <> (
  LEFTARG = vclock, RIGHTARG = vclock, FUNCTION = vclock_ne,
  COMMUTATOR = <>, NEGATOR = =, RESTRICT = neqsel, JOIN = neqjoinsel
);
CREATE OPERATOR @> (
  LEFTARG = vclock, RIGHTARG = vclock, FUNCTION = vclock_covers,
  COMMUTATOR = <@, RESTRICT = contsel, JOIN = contjoinsel
);
CREATE OPERATOR <@ (
  LEFTARG = vclock, RIGHTARG = vclock, FUNCTION = vclock_covered_by,
  COMMUTATOR = @>, RESTRICT = contsel, JOIN = contjoinsel
);
CREATE OPERATOR <||> (
  LEFTARG = vclock, RIGHTARG = vclock, FUNCTION = vclock_concurrent,
  COMMUTATOR = <||>, RESTRICT = contsel, JOIN = contjoinsel
);
CREATE OPERATOR || (LEFTARG = vclock, RIGHTARG = vclock, FUNCTION = vclock_merge, COMMUTATOR = ||);
COMMENT ON OPERATOR = (vclock, vclock) IS 'equal';
COMMENT ON OPERATOR <> (vclock, vclock) IS 'not equal';
COMMENT ON OPERATOR @> (vclock, vclock) IS 'dominates or equals';
COMMENT ON OPERATOR <@ (vclock, vclock) IS 'is dominated by or equals';
COMMENT ON OPERATOR <||> (vclock, vclock) IS 'is concurrent with';
COMMENT ON OPERATOR || (vclock, vclock) IS 'merge';

CREATE OPERATOR CLASS vclock_hash_ops DEFAULT FOR TYPE vclock USING hash AS
  OPERATOR 1 =,
  FUNCTION 1 vclock_hash(vclock),
  FUNCTION 2 vclock_hash_extended(vclock, bigint);
COMMENT ON OPERATOR CLASS vclock_hash_ops USING hash IS 'equality of vector clocks';

CREATE CAST (vclock AS jsonb) WITH INOUT;
CREATE CAST (jsonb AS vclock) WITH INOUT;
COMMENT ON CAST (vclock AS jsonb) IS 'the text form as jsonb';
COMMENT ON CAST (jsonb AS vclock) IS 'a clock from its text form';

CREATE FUNCTION vclock(bytea) RETURNS vclock
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'vclock_from_bytea_wrapper';
COMMENT ON FUNCTION vclock(bytea) IS 'a clock from its binary form, checked as strictly as on the wire';
CREATE CAST (vclock AS bytea) WITHOUT FUNCTION;
CREATE CAST (bytea AS vclock) WITH FUNCTION vclock(bytea);
COMMENT ON CAST (vclock AS bytea) IS 'the binary form';
COMMENT ON CAST (bytea AS vclock) IS 'a clock from its binary form';

CREATE AGGREGATE vclock_merge_agg(vclock) (
  SFUNC = vclock_merge, STYPE = vclock, COMBINEFUNC = vclock_merge, PARALLEL = SAFE
);
CREATE AGGREGATE vclock_meet_agg(vclock) (
  SFUNC = vclock_meet, STYPE = vclock, COMBINEFUNC = vclock_meet, PARALLEL = SAFE
);
COMMENT ON AGGREGATE vclock_merge_agg(vclock) IS 'merge of all clocks, NULL over no rows';
COMMENT ON AGGREGATE vclock_meet_agg(vclock) IS 'meet of all clocks, NULL over no rows';

-- hlc ------------------------------------------------------------------------------------------

CREATE TYPE hlc;

CREATE FUNCTION hlc_in(cstring) RETURNS hlc
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_in_wrapper';
CREATE FUNCTION hlc_out(hlc) RETURNS cstring
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_out_wrapper';
CREATE FUNCTION hlc_recv(internal) RETURNS hlc
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_recv_wrapper';
CREATE FUNCTION hlc_send(hlc) RETURNS bytea
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_send_wrapper';

CREATE TYPE hlc (
  INPUT = hlc_in, OUTPUT = hlc_out, RECEIVE = hlc_recv, SEND = hlc_send,
  INTERNALLENGTH = 8, PASSEDBYVALUE, ALIGNMENT = double
);
COMMENT ON TYPE hlc IS 'hybrid logical clock: milliseconds and counter, 2026-11-21T07:00:00.123Z/5';
COMMENT ON FUNCTION hlc_in(cstring) IS 'I/O';
COMMENT ON FUNCTION hlc_out(hlc) IS 'I/O';
COMMENT ON FUNCTION hlc_recv(internal) IS 'I/O';
COMMENT ON FUNCTION hlc_send(hlc) IS 'I/O';

CREATE FUNCTION hlc_eq(hlc, hlc) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_eq_wrapper';
CREATE FUNCTION hlc_ne(hlc, hlc) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_ne_wrapper';
CREATE FUNCTION hlc_lt(hlc, hlc) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_lt_wrapper';
CREATE FUNCTION hlc_le(hlc, hlc) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_le_wrapper';
CREATE FUNCTION hlc_gt(hlc, hlc) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_gt_wrapper';
CREATE FUNCTION hlc_ge(hlc, hlc) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_ge_wrapper';
CREATE FUNCTION hlc_cmp(hlc, hlc) RETURNS integer
  LANGUAGE c IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_cmp_wrapper';
CREATE FUNCTION hlc_hash(hlc) RETURNS integer
  LANGUAGE c IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_hash_wrapper';
CREATE FUNCTION hlc_hash_extended(hlc, bigint) RETURNS bigint
  LANGUAGE c IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_hash_extended_wrapper';
CREATE FUNCTION hlc_larger(hlc, hlc) RETURNS hlc
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_larger_wrapper';
CREATE FUNCTION hlc_smaller(hlc, hlc) RETURNS hlc
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_smaller_wrapper';
COMMENT ON FUNCTION hlc_eq(hlc, hlc) IS 'implementation of = operator';
COMMENT ON FUNCTION hlc_ne(hlc, hlc) IS 'implementation of <> operator';
COMMENT ON FUNCTION hlc_lt(hlc, hlc) IS 'implementation of < operator';
COMMENT ON FUNCTION hlc_le(hlc, hlc) IS 'implementation of <= operator';
COMMENT ON FUNCTION hlc_gt(hlc, hlc) IS 'implementation of > operator';
COMMENT ON FUNCTION hlc_ge(hlc, hlc) IS 'implementation of >= operator';
COMMENT ON FUNCTION hlc_cmp(hlc, hlc) IS 'less-equal-greater';
COMMENT ON FUNCTION hlc_hash(hlc) IS 'hash';
COMMENT ON FUNCTION hlc_hash_extended(hlc, bigint) IS 'hash';
COMMENT ON FUNCTION hlc_larger(hlc, hlc) IS 'larger of two';
COMMENT ON FUNCTION hlc_smaller(hlc, hlc) IS 'smaller of two';

CREATE OPERATOR = (
  LEFTARG = hlc, RIGHTARG = hlc, FUNCTION = hlc_eq,
  COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, HASHES, MERGES
);
CREATE OPERATOR <> (
  LEFTARG = hlc, RIGHTARG = hlc, FUNCTION = hlc_ne,
  COMMUTATOR = <>, NEGATOR = =, RESTRICT = neqsel, JOIN = neqjoinsel
);
CREATE OPERATOR < (
  LEFTARG = hlc, RIGHTARG = hlc, FUNCTION = hlc_lt,
  COMMUTATOR = >, NEGATOR = >=, RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
CREATE OPERATOR <= (
  LEFTARG = hlc, RIGHTARG = hlc, FUNCTION = hlc_le,
  COMMUTATOR = >=, NEGATOR = >, RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
CREATE OPERATOR > (
  LEFTARG = hlc, RIGHTARG = hlc, FUNCTION = hlc_gt,
  COMMUTATOR = <, NEGATOR = <=, RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);
CREATE OPERATOR >= (
  LEFTARG = hlc, RIGHTARG = hlc, FUNCTION = hlc_ge,
  COMMUTATOR = <=, NEGATOR = <, RESTRICT = scalargesel, JOIN = scalargejoinsel
);
COMMENT ON OPERATOR = (hlc, hlc) IS 'equal';
COMMENT ON OPERATOR <> (hlc, hlc) IS 'not equal';
COMMENT ON OPERATOR < (hlc, hlc) IS 'less than';
COMMENT ON OPERATOR <= (hlc, hlc) IS 'less than or equal';
COMMENT ON OPERATOR > (hlc, hlc) IS 'greater than';
COMMENT ON OPERATOR >= (hlc, hlc) IS 'greater than or equal';

CREATE OPERATOR CLASS hlc_ops DEFAULT FOR TYPE hlc USING btree AS
  OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >,
  FUNCTION 1 hlc_cmp(hlc, hlc);
CREATE OPERATOR CLASS hlc_hash_ops DEFAULT FOR TYPE hlc USING hash AS
  OPERATOR 1 =,
  FUNCTION 1 hlc_hash(hlc),
  FUNCTION 2 hlc_hash_extended(hlc, bigint);
COMMENT ON OPERATOR CLASS hlc_ops USING btree IS 'total order of stamps';
COMMENT ON OPERATOR CLASS hlc_hash_ops USING hash IS 'equality of stamps';

CREATE AGGREGATE max(hlc) (
  SFUNC = hlc_larger, STYPE = hlc, COMBINEFUNC = hlc_larger, SORTOP = >, PARALLEL = SAFE
);
CREATE AGGREGATE min(hlc) (
  SFUNC = hlc_smaller, STYPE = hlc, COMBINEFUNC = hlc_smaller, SORTOP = <, PARALLEL = SAFE
);
COMMENT ON AGGREGATE max(hlc) IS 'latest stamp';
COMMENT ON AGGREGATE min(hlc) IS 'earliest stamp';

CREATE FUNCTION hlc(at timestamptz, counter integer) RETURNS hlc
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_from_parts_wrapper';
COMMENT ON FUNCTION hlc(timestamptz, integer) IS 'stamp of a time (cut to milliseconds) and a counter of 0 to 65535';

CREATE FUNCTION hlc_time(stamp hlc) RETURNS timestamptz
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_time_wrapper';
COMMENT ON FUNCTION hlc_time(hlc) IS 'time of a stamp, in milliseconds';

CREATE FUNCTION hlc_milliseconds(stamp hlc) RETURNS bigint
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_milliseconds_wrapper';
COMMENT ON FUNCTION hlc_milliseconds(hlc) IS 'time of a stamp, in milliseconds since 1970';

CREATE FUNCTION hlc_counter(stamp hlc) RETURNS integer
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_counter_wrapper';
COMMENT ON FUNCTION hlc_counter(hlc) IS 'counter of a stamp';

CREATE FUNCTION hlc_now() RETURNS hlc
  LANGUAGE c VOLATILE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_now_wrapper';
COMMENT ON FUNCTION hlc_now() IS 'stamp above every stamp given out or observed on this server';

CREATE FUNCTION hlc_observe(remote hlc) RETURNS hlc
  LANGUAGE c VOLATILE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_observe_wrapper';
COMMENT ON FUNCTION hlc_observe(hlc) IS 'stamp above the one given as well; one too far ahead is refused (22023)';

CREATE FUNCTION hlc_refused() RETURNS bigint
  LANGUAGE c VOLATILE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hlc_refused_wrapper';
COMMENT ON FUNCTION hlc_refused() IS 'stamps refused for being too far ahead since the server started';

REVOKE ALL ON FUNCTION hlc_now(), hlc_observe(hlc), hlc_refused() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION hlc_now(), hlc_observe(hlc) TO coord_agent, coord_peer;
GRANT EXECUTE ON FUNCTION hlc_refused() TO coord_monitor;
