-- What the extension puts into a database, and who may use it. A new object shows up here.
-- In a database of its own, where no worker makes partitions of the log.
SELECT current_database() AS regression \gset
CREATE DATABASE regress_surface TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C';
\c regress_surface
CREATE EXTENSION pg_test;
SET search_path = public, coord;
CREATE TEMP VIEW own AS
  SELECT d.classid, d.objid FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
   WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'pg_test';
CREATE TEMP VIEW own_function AS
  SELECT p.* FROM pg_proc p JOIN own o ON o.classid = 'pg_proc'::regclass AND o.objid = p.oid;

--
-- The allow-list: functions that everybody may execute. They are those of types, operators, casts
-- and aggregates, and all are IMMUTABLE: they neither write nor reveal anything.
--
SELECT p.oid::regprocedure AS public_function
  FROM own_function p
 WHERE EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE')
 ORDER BY p.oid::regprocedure::text COLLATE "C";
-- Of these none is volatile or stable, but what the trigger of a streamed table asks, as whoever writes there.
SELECT p.oid::regprocedure, p.provolatile
  FROM own_function p
 WHERE p.provolatile <> 'i'
   AND EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a WHERE a.grantee = 0)
 ORDER BY 1;
-- Everything else is for the owner and these roles.
SELECT p.oid::regprocedure AS function, string_agg(a.grantee::regrole::text, ', ' ORDER BY a.grantee::regrole::text COLLATE "C") AS roles
  FROM own_function p
  LEFT JOIN LATERAL aclexplode(p.proacl) a ON a.grantee <> p.proowner
 WHERE NOT EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a WHERE a.grantee = 0)
 GROUP BY p.oid ORDER BY p.oid::regprocedure::text COLLATE "C";
-- Tables and views: nothing for everybody.
SELECT c.relname, c.relkind, a.grantee::regrole AS role, string_agg(a.privilege_type, ', ' ORDER BY a.privilege_type) AS privileges
  FROM pg_class c JOIN own o ON o.classid = 'pg_class'::regclass AND o.objid = c.oid
  LEFT JOIN LATERAL aclexplode(c.relacl) a ON a.grantee <> c.relowner
 GROUP BY c.relname, c.relkind, a.grantee ORDER BY c.relname, a.grantee::regrole::text COLLATE "C";
SELECT count(*) FROM pg_class c JOIN own o ON o.classid = 'pg_class'::regclass AND o.objid = c.oid
  CROSS JOIN LATERAL aclexplode(c.relacl) a WHERE a.grantee = 0;
-- The schema may be used by everybody, and objects created in it by nobody.
SELECT a.grantee = 0 AS "public", a.privilege_type FROM pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) a
 WHERE n.nspname = 'coord' AND a.grantee <> n.nspowner;
-- Roles cannot log in and have no powers of their own.
SELECT rolname, rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls
  FROM pg_roles WHERE rolname LIKE 'coord\_%' ORDER BY rolname;

--
-- How functions run
--

-- With other rights than the caller's: only what peers call.
SELECT oid::regprocedure AS security_definer FROM own_function WHERE prosecdef;
-- Types and operators run in parallel workers.
SELECT oid::regprocedure AS not_parallel_safe FROM own_function WHERE provolatile = 'i' AND proparallel <> 's';
-- Values of a type of ours: strict, so that no function in C ever sees a NULL. One in SQL a query can take in
-- only when it is not.
SELECT p.oid::regprocedure AS not_strict FROM own_function p JOIN pg_language l ON l.oid = p.prolang
 WHERE p.provolatile = 'i' AND p.prokind = 'f' AND l.lanname <> 'sql' AND NOT p.proisstrict;
-- No function looks names up along the caller's search_path: it is fixed, or the body was parsed
-- at creation, or it is Rust that runs no SQL (the list).
SELECT oid::regprocedure AS search_path FROM own_function
 WHERE provolatile <> 'i' AND prokind = 'f' AND prosqlbody IS NULL
   AND NOT coalesce(proconfig, '{}') @> '{"search_path=pg_catalog, coord, pg_temp"}'
 ORDER BY oid::regprocedure::text COLLATE "C";
SELECT oid::regprocedure AS c_function, probin FROM own_function
 WHERE prolang = (SELECT oid FROM pg_language WHERE lanname = 'c') AND probin <> '$libdir/pg_test';

--
-- What a dump keeps: what no peer could give back
--
SELECT unnest(extconfig)::regclass AS dumped, unnest(extcondition) AS condition FROM pg_extension WHERE extname = 'pg_test' ORDER BY 1;
SELECT c.relname AS not_dumped FROM pg_class c JOIN own o ON o.classid = 'pg_class'::regclass AND o.objid = c.oid
 WHERE c.relkind = 'r' AND NOT c.oid = ANY (SELECT unnest(extconfig) FROM pg_extension WHERE extname = 'pg_test') ORDER BY 1;

--
-- Every object says what it is
--
SELECT pg_describe_object(o.classid, o.objid, 0) AS without_comment
  FROM own o
 WHERE NOT EXISTS (SELECT FROM pg_description d WHERE d.classoid = o.classid AND d.objoid = o.objid AND d.objsubid = 0)
   -- made by PostgreSQL itself: array and row types, operator families, rules of views
   AND NOT (o.classid = 'pg_type'::regclass AND EXISTS (SELECT FROM pg_type t WHERE t.oid = o.objid AND (t.typelem <> 0 OR t.typrelid <> 0)))
   AND o.classid <> 'pg_opfamily'::regclass
   AND NOT (o.classid = 'pg_namespace'::regclass)
 ORDER BY 1;
-- Triggers are not members of an extension themselves.
SELECT t.tgname, t.tgrelid::regclass, t.tgfoid::regprocedure, obj_description(t.oid, 'pg_trigger') IS NOT NULL AS comment
  FROM pg_trigger t JOIN own o ON o.classid = 'pg_class'::regclass AND o.objid = t.tgrelid ORDER BY 1, 2;
-- Columns whose name does not say it all have comments; these have none.
SELECT c.relname, string_agg(a.attname, ', ' ORDER BY a.attnum) AS without_comment
  FROM pg_class c JOIN own o ON o.classid = 'pg_class'::regclass AND o.objid = c.oid
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relkind IN ('r', 'v') AND col_description(c.oid, a.attnum) IS NULL
 GROUP BY c.relname ORDER BY c.relname;

--
-- Types and operators
--
SELECT t.typname, t.typlen, t.typbyval, t.typalign, t.typstorage FROM pg_type t JOIN own o ON o.classid = 'pg_type'::regclass AND o.objid = t.oid
 WHERE t.typtype = 'b' AND t.typelem = 0 ORDER BY t.typname;
SELECT o.oid::regoperator AS operator, o.oprcom::regoperator AS commutator, o.oprnegate::regoperator AS negator, o.oprcanmerge AS merges, o.oprcanhash AS hashes
  FROM pg_operator o JOIN own w ON w.classid = 'pg_operator'::regclass AND w.objid = o.oid ORDER BY o.oid::regoperator::text COLLATE "C";
SELECT castsource::regtype, casttarget::regtype, castcontext, castmethod FROM pg_cast c JOIN own o ON o.classid = 'pg_cast'::regclass AND o.objid = c.oid
 ORDER BY castsource::regtype::text COLLATE "C", casttarget::regtype::text COLLATE "C";
SELECT a.aggfnoid::regprocedure AS aggregate, a.aggtranstype::regtype AS state_type, a.aggtransfn = a.aggcombinefn AS combines_as_it_goes, a.aggsortop::regoperator AS sort
  FROM pg_aggregate a JOIN own_function p ON p.oid = a.aggfnoid ORDER BY a.aggfnoid::regprocedure::text COLLATE "C";
SELECT m.amname, c.opcname, c.opcdefault FROM pg_opclass c JOIN pg_am m ON m.oid = c.opcmethod JOIN own o ON o.classid = 'pg_opclass'::regclass AND o.objid = c.oid ORDER BY 1, 2;
-- PostgreSQL's own check of the operator classes.
SELECT c.opcname, amvalidate(c.oid) FROM pg_opclass c JOIN own o ON o.classid = 'pg_opclass'::regclass AND o.objid = c.oid ORDER BY c.opcname;
DROP VIEW own_function, own;

--
-- Settings
--
SELECT name, setting, unit, context, min_val, max_val FROM pg_settings WHERE name LIKE 'coord.%' ORDER BY name;

\c :regression
DROP DATABASE regress_surface;
