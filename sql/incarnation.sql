-- Which life of a node this is: confirmed by the peers, begun anew, or in doubt.
--
-- Whoever counted under the provisional actor holds a row lock in coord.state until his transaction
-- ends, and so the table in ROW EXCLUSIVE mode. SHARE ROW EXCLUSIVE waits for those, and whoever comes
-- later sees which life it is. The same for grants of leases, whose epochs lie in a life, and for operations.

CREATE FUNCTION constraint_fold(state constraint_state, from_actor text, into_actor text) RETURNS constraint_state
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'constraint_fold_wrapper';
COMMENT ON FUNCTION constraint_fold(constraint_state, text, text) IS 'counts the events of one actor, which nobody else has seen, as those of another';

CREATE FUNCTION life_confirm() RETURNS void
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  LOCK TABLE coord.state IN SHARE ROW EXCLUSIVE MODE;
  UPDATE coord.local_node SET started = pg_postmaster_start_time(), doubtful_since = NULL;
  UPDATE coord.state s
     SET value = coord.constraint_fold(s.value, coord.actor_provisional(n.name), n.actor),
         xid = greatest(s.xid, pg_current_xact_id()), local_xid = DEFAULT, learned_from = DEFAULT,
         is_provisional = false, changed_at = DEFAULT
    FROM coord.local_node n
   WHERE s.is_provisional;
END
$$;
COMMENT ON FUNCTION life_confirm() IS 'the life of this node goes on: what was counted meanwhile is counted under its actor';

-- The new life tells everything it holds as a change of its own, so that no number of an earlier one,
-- perhaps of another server, is compared with any of this one; and it asks for everything.
CREATE FUNCTION life_begin(number bigint, why text) RETURNS void
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
BEGIN
  LOCK TABLE coord.state, coord.lease, coord.op IN SHARE ROW EXCLUSIVE MODE;
  -- Above every number that the life before can have given out.
  PERFORM setval('coord.op_seq', greatest((number - 1) << 40, (SELECT last_value FROM coord.op_seq)));
  UPDATE coord.local_node
     SET incarnation = number, actor = name || '#' || number, life = DEFAULT, place = DEFAULT,
         started = DEFAULT, doubtful_since = NULL;
  UPDATE coord.state s
     SET value = CASE WHEN s.is_provisional
                      THEN coord.constraint_fold(s.value, coord.actor_provisional(n.name), n.actor)
                      ELSE s.value END,
         xid = pg_current_xact_id(), local_xid = DEFAULT, learned_from = DEFAULT,
         is_provisional = false, changed_at = DEFAULT
    FROM coord.local_node n;
  -- What others were heard to hold stays true, and is what they are told when they ask.
  UPDATE coord.peer_cursor
     SET resync = true, space = NULL, given = NULL, until = NULL, after_xid = NULL, after_name = NULL;
  UPDATE coord.report_cursor
     SET space = '', given = NULL, until = NULL, after_xid = NULL, after_name = NULL;
  UPDATE coord.roster r
     SET incarnation = n.incarnation, life = n.life, place = n.place, last_seen = clock_timestamp()
    FROM coord.local_node n
   WHERE r.name = n.name;
  INSERT INTO coord.incarnation_log (node, incarnation, life, place, event, reason)
  SELECT n.name, n.incarnation, n.life, n.place, 'begun', why FROM coord.local_node n;
END
$$;
COMMENT ON FUNCTION life_begin(bigint, text) IS 'a new life of this node begins';

CREATE FUNCTION life_doubt() RETURNS void
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    UPDATE coord.local_node SET started = '-infinity' WHERE started <> '-infinity';
  END;
COMMENT ON FUNCTION life_doubt() IS 'this node asks its peers again which life it is in';

CREATE FUNCTION life_check() RETURNS trigger
  LANGUAGE c AS 'MODULE_PATHNAME', 'life_check_wrapper';
COMMENT ON FUNCTION life_check() IS 'refuses a provisional change once the life is known';
CREATE TRIGGER life_check BEFORE INSERT OR UPDATE ON state
  FOR EACH ROW WHEN (NEW.is_provisional) EXECUTE FUNCTION life_check();
COMMENT ON TRIGGER life_check ON state IS 'a transaction with an old snapshot does not count under the provisional actor any more';

REVOKE ALL ON FUNCTION life_check(), life_confirm(), life_begin(bigint, text), life_doubt(),
  constraint_fold(constraint_state, text, text) FROM PUBLIC;
