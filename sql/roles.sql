-- Roles of the mesh. They belong to the server, not to the database, so an earlier database may
-- have created them already.
DO $$
DECLARE
  role_name name;
BEGIN
  FOREACH role_name IN ARRAY ARRAY['coord_agent', 'coord_peer', 'coord_monitor'] LOOP
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role_name) THEN
      BEGIN
        EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', role_name);
      EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL; -- another database created it at the same moment
      END;
    END IF;
  END LOOP;
  IF NOT pg_catalog.pg_has_role('pg_monitor', 'coord_monitor', 'MEMBER') THEN
    BEGIN
      GRANT coord_monitor TO pg_monitor;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
      NULL; -- as above
    END;
  END IF;
END
$$;

GRANT USAGE ON SCHEMA coord TO PUBLIC;
