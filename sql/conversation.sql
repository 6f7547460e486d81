-- Conversations: turns that agents on any node append, read in one order on all of them.

CREATE FUNCTION turn_role(role text) RETURNS text
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'turn_role_wrapper';
COMMENT ON FUNCTION turn_role(text) IS 'the role as it is kept; 22023 for one that no turn has';

CREATE FUNCTION turn_check(conversation_id text, tool_calls text) RETURNS boolean
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'turn_check_wrapper';
COMMENT ON FUNCTION turn_check(text, text) IS 'true, or an error for what no turn says';

CREATE FUNCTION turn_payload(conversation_id text, role text, content text, tool_calls jsonb, tool_use_id text, at timestamptz)
  RETURNS jsonb
  LANGUAGE sql STABLE PARALLEL SAFE
  SET search_path = pg_catalog, coord, pg_temp
  RETURN CASE WHEN coord.turn_check(coalesce(conversation_id, ''), coalesce(tool_calls, '[]')::text) THEN
    jsonb_build_object('conversation_id', conversation_id, 'role', coord.turn_role(coalesce(role, '')), 'content', coalesce(content, ''),
                       'at', to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
    || CASE WHEN tool_calls <> '[]' THEN jsonb_build_object('tool_calls', tool_calls) ELSE '{}' END
    || CASE WHEN tool_use_id IS NOT NULL THEN jsonb_build_object('tool_use_id', tool_use_id) ELSE '{}' END END;
COMMENT ON FUNCTION turn_payload(text, text, text, jsonb, text, timestamptz) IS 'payload of the operation that a turn is';

CREATE FUNCTION record_turn(scope text, conversation_id text, role text, content text, tool_calls jsonb DEFAULT NULL,
                            tool_use_id text DEFAULT NULL, at timestamptz DEFAULT now()) RETURNS jsonb
  LANGUAGE sql VOLATILE
  SET search_path = pg_catalog, coord, pg_temp
  RETURN coord.op_append(scope, 'conversation', coord.turn_payload(conversation_id, role, content, tool_calls, tool_use_id, at));
COMMENT ON FUNCTION record_turn(text, text, text, text, jsonb, text, timestamptz) IS 'appends a turn to a conversation; returns what op_append does';

CREATE FUNCTION transcript_position(after jsonb) RETURNS hlc
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN CASE jsonb_typeof(after -> 'hlc')
           WHEN 'object' THEN coord.hlc(to_timestamp((after #>> '{hlc,wall_ms}')::bigint / 1000.0), (after #>> '{hlc,counter}')::integer)
           ELSE (after ->> 'hlc')::coord.hlc END;
COMMENT ON FUNCTION transcript_position(jsonb) IS 'stamp of a row that was seen, as a column or as op_append returns it';

-- Bodies that order stamps are texts: pg_upgrade restores functions before the operator class that they need.

-- Without a search path of its own it becomes a part of the query that calls it.
CREATE FUNCTION transcript(conversation_id text, after jsonb DEFAULT NULL, max integer DEFAULT NULL) RETURNS SETOF turn
  LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT t.* FROM coord.turn t,
           (SELECT coalesce(coord.transcript_position(after), coord.hlc('1970-01-01 00:00+00'::timestamptz, 0)) AS hlc,
                   coalesce(after OPERATOR(pg_catalog.->>) 'op_id', '') AS op_id) a
     WHERE t.conversation_id OPERATOR(pg_catalog.=) transcript.conversation_id
       AND t.hlc OPERATOR(coord.>=) a.hlc AND (t.hlc OPERATOR(coord.>) a.hlc OR t.op_id OPERATOR(pg_catalog.>) a.op_id)
     ORDER BY t.hlc, t.op_id
     LIMIT max
$$;
COMMENT ON FUNCTION transcript(text, jsonb, integer) IS 'turns of a conversation in order, from the one after the row {"hlc": …, "op_id": …} on';

CREATE FUNCTION turns_resume(turns text) RETURNS text
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'turns_resume_wrapper';
COMMENT ON FUNCTION turns_resume(text) IS 'a JSON array of turns as one of messages that a model can be given';

CREATE FUNCTION resume(conversation_id text) RETURNS jsonb
  LANGUAGE sql STABLE PARALLEL SAFE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
    SELECT coord.turns_resume(coalesce(json_agg(json_build_object(
             'role', t.role, 'content', t.content, 'tool_calls', t.tool_calls, 'tool_use_id', t.tool_use_id)
             ORDER BY t.hlc, t.op_id), '[]')::text)::jsonb
      FROM coord.turn t
     WHERE t.conversation_id = resume.conversation_id
$$;
COMMENT ON FUNCTION resume(text) IS 'a conversation as a model can be given it: roles alternate, every call has its result';

CREATE FUNCTION conversations(scope text) RETURNS TABLE (conversation_id text, first_at timestamptz, last_at timestamptz)
  LANGUAGE sql STABLE PARALLEL SAFE
  SET search_path = pg_catalog, coord, pg_temp
AS $$
    SELECT c.conversation_id, f.at, l.at
      FROM (SELECT DISTINCT k.conversation_id FROM coord.conversation k WHERE k.scope = conversations.scope) c
     CROSS JOIN LATERAL (SELECT t.at FROM coord.turn t
                          WHERE t.conversation_id = c.conversation_id AND t.scope = conversations.scope
                          ORDER BY t.hlc, t.op_id LIMIT 1) f
     CROSS JOIN LATERAL (SELECT t.hlc, t.at FROM coord.turn t
                          WHERE t.conversation_id = c.conversation_id AND t.scope = conversations.scope
                          ORDER BY t.hlc DESC, t.op_id DESC LIMIT 1) l
     ORDER BY l.hlc DESC, c.conversation_id
$$;
COMMENT ON FUNCTION conversations(text) IS 'conversations of a scope, the latest first';

REVOKE ALL ON FUNCTION turn_role(text), turn_check(text, text), turn_payload(text, text, text, jsonb, text, timestamptz),
  record_turn(text, text, text, text, jsonb, text, timestamptz), transcript_position(jsonb),
  transcript(text, jsonb, integer), turns_resume(text), resume(text), conversations(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION turn_role(text), turn_check(text, text), turn_payload(text, text, text, jsonb, text, timestamptz),
  record_turn(text, text, text, text, jsonb, text, timestamptz), transcript_position(jsonb),
  transcript(text, jsonb, integer), turns_resume(text), resume(text), conversations(text) TO coord_agent;
