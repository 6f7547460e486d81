-- Named constraint states. A state is changed under this node's actor and travels by gossip.

CREATE FUNCTION state_row_digest(name text, value constraint_state) RETURNS bytea
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'state_row_digest_wrapper';
COMMENT ON FUNCTION state_row_digest(text, constraint_state) IS 'digest of a named state, name and value with their lengths';

CREATE TABLE state (
  name text COLLATE "C" PRIMARY KEY CHECK (octet_length(name) BETWEEN 1 AND 255),
  value constraint_state NOT NULL,
  xid xid8 DEFAULT change_xid(),
  local_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
  learned_from text COLLATE "C",
  is_provisional boolean NOT NULL DEFAULT life_is_provisional(),
  changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  digest bytea NOT NULL GENERATED ALWAYS AS (coord.state_row_digest(name, value)) STORED,
  bucket smallint NOT NULL GENERATED ALWAYS AS ((hashtextextended(name, 0) & 1023)::smallint) STORED
);
COMMENT ON TABLE state IS 'named constraint states; change them through coord.state_*';
COMMENT ON COLUMN state.xid IS 'highest transaction that changed it on this node; NULL when none did';
COMMENT ON COLUMN state.local_xid IS 'transaction of the last change, made here or learned';
COMMENT ON COLUMN state.learned_from IS 'peer that is known to hold exactly this value, because it gave it';
COMMENT ON COLUMN state.is_provisional IS 'changed here before it was known in which life; such a row is never given';
COMMENT ON COLUMN state.changed_at IS 'time of the last change made on this node';
COMMENT ON COLUMN state.digest IS 'digest of name and value';
COMMENT ON COLUMN state.bucket IS 'unit in which digests are summed up again after a change';

CREATE INDEX state_local_xid ON state (local_xid, name);
CREATE INDEX state_xid ON state (xid);
CREATE INDEX state_bucket ON state (bucket);
CREATE INDEX state_provisional ON state (name) WHERE is_provisional;

SELECT pg_catalog.pg_extension_config_dump('state', '');

-- The functions run as their owner, so that an agent changes states through them and in no other way:
-- a value written past them would be taken for damage and repaired. Who may call them is the check.
--
-- `xid` only grows: transactions may change a state in another order than their numbers, and what
-- the node holds must stay below the highest. `local_xid` is the last writer's, whichever that is: a
-- cursor that saw the earlier one still has the later one in progress.

CREATE FUNCTION state_add_constraint(name text, id text) RETURNS void
  LANGUAGE sql VOLATILE STRICT SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  BEGIN ATOMIC
    INSERT INTO coord.state AS s (name, value)
      VALUES ($1, coord.constraint_add(coord.constraint_state(), $2, coord.node_actor()))
    ON CONFLICT ON CONSTRAINT state_pkey DO UPDATE
      SET value = coord.constraint_add(s.value, $2, coord.node_actor()),
          xid = greatest(s.xid, excluded.xid), local_xid = DEFAULT, learned_from = DEFAULT,
          is_provisional = s.is_provisional OR excluded.is_provisional, changed_at = DEFAULT;
  END;
COMMENT ON FUNCTION state_add_constraint(text, text) IS 'adds a constraint to a state, creating the state if need be';

CREATE FUNCTION state_remove_constraint(name text, id text) RETURNS void
  LANGUAGE sql VOLATILE STRICT SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  BEGIN ATOMIC
    INSERT INTO coord.state AS s (name, value)
      VALUES ($1, coord.constraint_state())
    ON CONFLICT ON CONSTRAINT state_pkey DO UPDATE
      SET value = coord.constraint_remove(s.value, $2),
          xid = greatest(s.xid, excluded.xid), local_xid = DEFAULT, learned_from = DEFAULT,
          is_provisional = s.is_provisional OR excluded.is_provisional, changed_at = DEFAULT
      WHERE coord.constraint_contains(s.value, $2);
  END;
COMMENT ON FUNCTION state_remove_constraint(text, text) IS 'removes a constraint from a state';

CREATE FUNCTION state_record_satisfied(name text, n bigint) RETURNS void
  LANGUAGE sql VOLATILE STRICT SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  BEGIN ATOMIC
    INSERT INTO coord.state AS s (name, value)
      VALUES ($1, coord.constraint_record_satisfied(coord.constraint_state(), coord.node_actor(), $2))
    ON CONFLICT ON CONSTRAINT state_pkey DO UPDATE
      SET value = coord.constraint_record_satisfied(s.value, coord.node_actor(), $2),
          xid = greatest(s.xid, excluded.xid), local_xid = DEFAULT, learned_from = DEFAULT,
          is_provisional = s.is_provisional OR excluded.is_provisional, changed_at = DEFAULT;
  END;
COMMENT ON FUNCTION state_record_satisfied(text, bigint) IS 'adds n satisfied checks to a state';

CREATE FUNCTION state_record_violations(name text, n bigint) RETURNS void
  LANGUAGE sql VOLATILE STRICT SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  BEGIN ATOMIC
    INSERT INTO coord.state AS s (name, value)
      VALUES ($1, coord.constraint_record_violations(coord.constraint_state(), coord.node_actor(), $2))
    ON CONFLICT ON CONSTRAINT state_pkey DO UPDATE
      SET value = coord.constraint_record_violations(s.value, coord.node_actor(), $2),
          xid = greatest(s.xid, excluded.xid), local_xid = DEFAULT, learned_from = DEFAULT,
          is_provisional = s.is_provisional OR excluded.is_provisional, changed_at = DEFAULT;
  END;
COMMENT ON FUNCTION state_record_violations(text, bigint) IS 'adds n violations to a state';

CREATE FUNCTION state_stamp(state constraint_state) RETURNS hlc
  LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'state_stamp_wrapper';
COMMENT ON FUNCTION state_stamp(constraint_state) IS 'stamp for a move: above the clock, and above that of the position it replaces';

-- The stamp is taken in the update itself, under the row lock, so that of two moves on one node
-- the later one wins.
CREATE FUNCTION state_move(name text, x integer, y integer) RETURNS void
  LANGUAGE sql VOLATILE STRICT SECURITY DEFINER
  SET search_path = pg_catalog, coord, pg_temp
  BEGIN ATOMIC
    INSERT INTO coord.state AS s (name, value)
      VALUES ($1, coord.constraint_move(coord.constraint_state(), $2, $3, coord.hlc_now(), coord.node_actor()))
    ON CONFLICT ON CONSTRAINT state_pkey DO UPDATE
      SET value = coord.constraint_move(s.value, $2, $3, coord.state_stamp(s.value), coord.node_actor()),
          xid = greatest(s.xid, excluded.xid), local_xid = DEFAULT, learned_from = DEFAULT,
          is_provisional = s.is_provisional OR excluded.is_provisional, changed_at = DEFAULT;
  END;
COMMENT ON FUNCTION state_move(text, integer, integer) IS 'moves a state to a position';

CREATE TABLE state_waiting (
  name text COLLATE "C" PRIMARY KEY,
  value constraint_state NOT NULL
);
COMMENT ON TABLE state_waiting IS 'learned values whose row a local transaction holds; merged when it ends';

CREATE FUNCTION state_insert_learned(names text[], vals constraint_state[], giver text) RETURNS bigint
  LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  inserted bigint;
BEGIN
  INSERT INTO coord.state AS s (name, value, xid, learned_from, is_provisional)
  SELECT l.name, l.value, NULL, giver, false
    FROM unnest(names, vals) AS l(name, value)
   WHERE NOT EXISTS (SELECT FROM coord.state s WHERE s.name = l.name)
   ORDER BY l.name
  ON CONFLICT ON CONSTRAINT state_pkey DO UPDATE
    SET value = s.value OPERATOR(coord.||) excluded.value,
        local_xid = DEFAULT,
        learned_from = CASE WHEN excluded.value OPERATOR(coord.@>) s.value THEN giver END;
  GET DIAGNOSTICS inserted = ROW_COUNT;
  RETURN inserted;
END
$$;
COMMENT ON FUNCTION state_insert_learned(text[], constraint_state[], text) IS 'inserts learned values of states that are new here';

CREATE FUNCTION state_learn(sender text, names text[], vals bytea[], OUT changed bigint, OUT waiting bigint)
  LANGUAGE plpgsql VOLATILE STRICT
  SET search_path = pg_catalog, coord, pg_temp
AS $$
DECLARE
  merged_names text[];
  merged_values coord.constraint_state[];
  giver text := CASE WHEN NOT EXISTS (SELECT FROM coord.state_waiting) THEN sender END;
  patience text := current_setting('lock_timeout');
BEGIN
  -- One value per name, together with what waited. Names are sorted: whoever merges takes row
  -- locks in that order.
  WITH waited AS (DELETE FROM coord.state_waiting RETURNING name, value)
  SELECT array_agg(m.name ORDER BY m.name), array_agg(m.value ORDER BY m.name)
    INTO merged_names, merged_values
    FROM (SELECT a.name, coord.constraint_merge_agg(a.value) AS value
            FROM (SELECT i.name COLLATE "C" AS name, i.value::coord.constraint_state AS value
                    FROM unnest(names, vals) AS i(name, value)
                  UNION ALL
                  SELECT w.name, w.value FROM waited w) a
           GROUP BY a.name) m;

  -- A row that somebody holds is passed over: gossip waits for nobody's transaction.
  WITH learned AS (
    SELECT l.name, l.value FROM unnest(merged_names, merged_values) AS l(name, value)
  ), free AS (
    SELECT s.name
      FROM coord.state s JOIN learned l ON l.name = s.name
     WHERE NOT s.value OPERATOR(coord.@>) l.value
     ORDER BY s.name
       FOR UPDATE OF s SKIP LOCKED
  )
  UPDATE coord.state s
     SET value = s.value OPERATOR(coord.||) l.value,
         local_xid = DEFAULT,
         learned_from = CASE WHEN l.value OPERATOR(coord.@>) s.value THEN giver END
    FROM learned l JOIN free f ON f.name = l.name
   WHERE s.name = l.name;
  GET DIAGNOSTICS changed = ROW_COUNT;

  -- A name that is new here may be in the hands of a transaction that has not committed it yet.
  -- There is no SKIP LOCKED for that, so the wait is cut short; and then one by one, so that no
  -- name waits for another's transaction.
  IF EXISTS (SELECT FROM unnest(merged_names) AS l(name)
              WHERE NOT EXISTS (SELECT FROM coord.state s WHERE s.name = l.name)) THEN
    BEGIN
      PERFORM set_config('lock_timeout', '100ms', true);
      changed := changed + coord.state_insert_learned(merged_names, merged_values, giver);
    EXCEPTION WHEN lock_not_available THEN
      PERFORM set_config('lock_timeout', '1ms', true);
      FOR place IN 1..cardinality(merged_names) LOOP
        BEGIN
          changed := changed + coord.state_insert_learned(
            merged_names[place:place], merged_values[place:place], giver);
        EXCEPTION WHEN lock_not_available THEN
          NULL; -- kept below, merged by a later call
        END;
      END LOOP;
    END;
    PERFORM set_config('lock_timeout', patience, true);
  END IF;

  INSERT INTO coord.state_waiting AS w (name, value)
  SELECT l.name, l.value
    FROM unnest(merged_names, merged_values) AS l(name, value)
   WHERE NOT EXISTS (SELECT FROM coord.state s
                      WHERE s.name = l.name AND s.value OPERATOR(coord.@>) l.value)
  ON CONFLICT (name) DO UPDATE SET value = w.value OPERATOR(coord.||) excluded.value;
  -- Also what another session has put there meanwhile.
  SELECT count(*) INTO waiting FROM coord.state_waiting;
END
$$;
COMMENT ON FUNCTION state_learn(text, text[], bytea[]) IS 'merges values that a peer gave; rows held by others wait';

REVOKE ALL ON FUNCTION state_add_constraint(text, text), state_remove_constraint(text, text),
  state_record_satisfied(text, bigint), state_record_violations(text, bigint),
  state_move(text, integer, integer), state_stamp(constraint_state), state_learn(text, text[], bytea[]),
  state_insert_learned(text[], constraint_state[], text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION state_add_constraint(text, text), state_remove_constraint(text, text),
  state_record_satisfied(text, bigint), state_record_violations(text, bigint),
  state_move(text, integer, integer) TO coord_agent;
GRANT SELECT ON state TO coord_agent, coord_monitor;
