-- fails(statement) runs a statement that must fail and shows the whole error as a caller sees it:
-- SQLSTATE and message, DETAIL and HINT. What the statement did is rolled back.
CREATE PROCEDURE pg_temp.fails(statement text) LANGUAGE plpgsql AS $$
DECLARE
  message text;
  detail text;
  hint text;
BEGIN
  EXECUTE statement;
  RAISE INFO 'NO ERROR: %', statement;
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
  RAISE INFO '%: %', SQLSTATE,
    message || CASE WHEN detail <> '' THEN E'\n  DETAIL: ' || detail ELSE '' END
            || CASE WHEN hint <> '' THEN E'\n  HINT: ' || hint ELSE '' END;
END
$$;
