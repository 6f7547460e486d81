-- Conversations.
SET search_path = public, coord;
\set SHOW_CONTEXT never
SELECT node_init('regress');
CREATE VIEW said AS SELECT scope, conversation_id, role, content, tool_calls, tool_use_id FROM turn;

-- A conversation with a tool.
SELECT r ->> 'op_id' ~ '^op-[0-9a-f]{32}$' AS recorded FROM record_turn('personal', 'c1', 'user', 'What is the weather in Oslo?') r;
SELECT record_turn('personal', 'c1', 'assistant', 'Let me see.', '[{"id": "t1", "name": "weather", "arguments": {"city": "Oslo"}}]') IS NOT NULL AS recorded;
SELECT record_turn('personal', 'c1', 'tool_result', 'Rain, 4 degrees', tool_use_id => 't1') IS NOT NULL AS recorded;
SELECT record_turn('personal', 'c1', 'assistant', 'It rains.', at => '2126-11-22 10:00+01') IS NOT NULL AS recorded;
SELECT role, content, tool_calls, tool_use_id FROM transcript('c1');
SELECT at AT TIME ZONE 'UTC' AS at FROM transcript('c1') WHERE content = 'It rains.';
SELECT payload FROM op WHERE payload ->> 'content' = 'It rains.';
SELECT jsonb_pretty(resume('c1'));

-- What no turn is.
SELECT record_turn('personal', 'c1', 'system', 'x');
SELECT record_turn('personal', 'c1', NULL, 'x');
SELECT record_turn('personal', '', 'user', 'x');
SELECT record_turn('personal', NULL, 'user', 'x');
SELECT record_turn('nobody', 'c1', 'user', 'x');
SELECT record_turn('personal', 'c1', 'assistant', '', '{"id": "t1"}');
SELECT record_turn('personal', 'c1', 'assistant', '', '[{"id": "t1", "name": "f"}]');
SELECT count(*) FROM transcript('c1');

-- Interrupted: a result comes late, one does not come, and one comes that nobody asked for.
SELECT count(record_turn('personal', 'c2', t.role, t.content, t.calls, t.result))
  FROM (VALUES
    (1, 'user', 'Compare Oslo and Rome.', NULL::jsonb, NULL),
    (2, 'assistant', 'I ask.', '[{"id": "o", "name": "weather", "arguments": {"city": "Oslo", "n": 1.50}}, {"id": "r", "name": "weather", "arguments": {"city": "Rome"}}]', NULL),
    (3, 'user', 'Oslo is enough.', NULL, NULL),
    (4, 'tool', 'Rain', NULL, 'o'),
    (5, 'tool', 'Storm', NULL, 'x'),
    (6, 'user', 'Well?', NULL, NULL),
    (7, 'assistant', 'Rain.', NULL, NULL),
    (8, 'assistant', 'More?', NULL, NULL)) t(n, role, content, calls, result);
SELECT count(*) FROM transcript('c2');
SELECT m ->> 'role' AS role, m ->> 'content' AS content, m -> 'tool_calls' AS tool_calls, m ->> 'tool_use_id' AS tool_use_id
  FROM jsonb_array_elements(resume('c2')) m;

-- Turns that say speaker and text.
SELECT op_append('shared:acme', 'conversation', '{"conversation_id": "c3", "speaker": "assistant", "text": "Hello"}') IS NOT NULL AS appended;
SELECT op_append('shared:acme', 'conversation', '{"conversation_id": "c3", "speaker": "alice", "text": "Hi", "at": "soon"}') IS NOT NULL AS appended;
SELECT op_append('shared:acme', 'conversation', '{"conversation_id": "c3", "role": "tool_result", "content": "?"}') IS NOT NULL AS appended;
SELECT * FROM said WHERE conversation_id = 'c3' ORDER BY content COLLATE "C";
SELECT resume('c3'), resume('never held');

-- Which there are, the latest first.
SELECT conversation_id, first_at <= last_at AS in_order FROM conversations('personal');
SELECT conversation_id FROM conversations('shared:acme');
SELECT count(*) FROM conversations('shared:nobody');

-- In pages: after the last row seen, or after what record_turn returned.
SELECT count(record_turn('personal', 'long', 'user', 'turn ' || n)) FROM generate_series(1, 10) n;
SELECT content FROM transcript('long', max => 3);
SELECT content FROM transcript('long', (SELECT jsonb_build_object('hlc', hlc, 'op_id', op_id) FROM turn WHERE content = 'turn 3'), 3);
SELECT content FROM transcript('long', (SELECT op_receipt(op) FROM op WHERE payload ->> 'content' = 'turn 8'));
SELECT content FROM transcript('long', record_turn('personal', 'long', 'user', 'the last'));
SELECT transcript('long', '{"hlc": "yesterday"}');

-- By index alone, however long it is.
INSERT INTO turn SELECT 'personal', 'c' || n % 50, hlc('2026-11-01 00:00+00', n % 60000), 'op-' || md5(n::text), 'x', 'user', 'text', NULL, NULL, now()
  FROM generate_series(1, 20000) n;
ANALYZE turn;
BEGIN;
SELECT seq_scan, idx_tup_fetch FROM pg_stat_xact_all_tables WHERE relid = 'coord.turn'::regclass \gset
SELECT count(*) FROM transcript('c7', '{"hlc": "2026-11-01T00:00:00.000Z/100", "op_id": "op-"}', 100);
SELECT seq_scan - :seq_scan AS whole_table, idx_tup_fetch - :idx_tup_fetch AS rows_by_index
  FROM pg_stat_xact_all_tables WHERE relid = 'coord.turn'::regclass;
COMMIT;
SELECT op_refold();
SELECT count(*) FROM turn WHERE origin = 'x';

-- An agent needs no rights on the tables to write, and may read them.
CREATE ROLE regress_talker LOGIN IN ROLE coord_agent;
SET ROLE regress_talker;
SELECT record_turn('personal', 'c1', 'user', 'Thanks.') IS NOT NULL AS recorded;
SELECT content FROM transcript('c1') OFFSET 4;
INSERT INTO turn SELECT * FROM turn;
RESET ROLE;
DROP VIEW said;
DROP ROLE regress_talker;

-- Triggers of one's own are fired, and nothing is written where nothing may be.
CREATE FUNCTION public.tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE INFO '% %', TG_TABLE_NAME, TG_OP; RETURN NULL; END $$;
CREATE TRIGGER told AFTER INSERT ON turn FOR EACH ROW EXECUTE FUNCTION public.tell();
SELECT record_turn('personal', 'told', 'user', 'one') IS NOT NULL AS recorded;
SELECT jsonb_array_length(op_append_many('[{"scope": "personal", "surface": "conversation", "payload": {"conversation_id": "told", "text": "two"}}]'));
DROP TRIGGER told ON turn;
DROP FUNCTION public.tell();
-- Indexes of one's own are kept, of what is appended here and of what comes from elsewhere.
CREATE INDEX shouted ON turn (upper(content)) WHERE conversation_id = 'told';
SELECT record_turn('personal', 'told', 'user', 'indexed') IS NOT NULL AS recorded;
INSERT INTO op (origin, seq, xid, hlc, op_id, scope, surface, payload)
SELECT 'y', 1, '1', h, op_id('y', 1, h, 'personal', 'conversation', p::text, ''), 'personal', 'conversation', p
  FROM (SELECT hlc_now() AS h, '{"conversation_id": "told", "text": "indexed too"}'::jsonb AS p) c;
SET enable_seqscan = off;
SELECT content FROM turn WHERE conversation_id = 'told' AND upper(content) LIKE 'INDEXED%' AND upper(content) >= 'INDEXED' ORDER BY hlc;
RESET enable_seqscan;
DROP INDEX shouted;
SELECT count(*), op_refold() AS differing FROM transcript('told');
BEGIN READ ONLY;
SELECT record_turn('personal', 'told', 'user', 'three');
ROLLBACK;
