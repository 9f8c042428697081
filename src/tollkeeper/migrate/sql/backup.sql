-- look_at_server --
-- Who answers. Behind a pooler the backend is another one than the greeting named.
SELECT
    pg_backend_pid() AS pid,
    pg_is_in_recovery() AS is_standby,
    session_user::text AS session_user,
    current_setting('server_version') AS version;

-- take_database_lock --
-- One backup, restore or rollback of a database at a time; $1 is its name, $2 what is done. Held by the session, in a
-- database that all of them stand in.
SELECT pg_try_advisory_lock(hashtextextended('tollkeeper.' || $2 || ' ' || $1, 0));

-- release_database_lock --
SELECT pg_advisory_unlock(hashtextextended('tollkeeper.' || $2 || ' ' || $1, 0));

-- foreign_dumps --
-- Dumps of a database that are not ours: their locks would meet what follows.
SELECT
    format(
        '%s from %s, backend %s, since %s',
        application_name, coalesce(client_addr::text, 'this machine'), pid, backend_start
    ) AS holder
FROM pg_stat_activity
WHERE datname = $1 AND application_name IN ('pg_dump', 'pg_dumpall', 'pg_restore');

-- export_snapshot --
SELECT pg_export_snapshot();

-- look_at_database --
-- What identifies a database and cannot be in its dump.
SELECT
    d.oid::bigint AS oid,
    pg_database_size(d.oid) AS size_bytes,
    pg_current_wal_lsn()::text AS lsn
FROM pg_database AS d
WHERE d.datname = current_database();

-- system_identifier --
-- Fails where the role may not execute it.
SELECT system_identifier::text FROM pg_control_system();

-- properties --
-- $1: a database. `to_jsonb` reads columns that not every version has.
SELECT
    d.datname::text AS name,
    pg_get_userbyid(d.datdba)::text AS owner,
    pg_encoding_to_char(d.encoding)::text AS encoding,
    d.datcollate::text AS collate,
    d.datctype::text AS ctype,
    d.datlocprovider::text AS provider,
    coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') AS locale,
    t.spcname::text AS tablespace,
    d.datconnlimit AS connection_limit,
    d.datallowconn AS is_open,
    shobj_description(d.oid, 'pg_database') AS comment,
    d.datacl::text[] AS acl,
    ARRAY(
        SELECT ARRAY[coalesce(r.rolname::text, ''), setting.value]
        FROM pg_db_role_setting AS s
        LEFT JOIN pg_roles AS r ON r.oid = s.setrole
        CROSS JOIN LATERAL unnest(s.setconfig) AS setting (value)
        WHERE s.setdatabase = d.oid
        ORDER BY 1
    ) AS settings
FROM pg_database AS d
JOIN pg_tablespace AS t ON t.oid = d.dattablespace
WHERE d.datname = $1;

-- dependent_roles --
-- Every role that owns something in this database, or the database itself, or was granted something.
SELECT DISTINCT r.rolname::text AS role
FROM pg_shdepend AS s
JOIN pg_roles AS r ON r.oid = s.refobjid
WHERE s.refclassid = 'pg_authid'::regclass
    AND s.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
    AND (s.dbid <> 0 OR (
        s.classid = 'pg_database'::regclass
        AND s.objid = (SELECT oid FROM pg_database WHERE datname = current_database())
    ))
UNION
SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = current_database()
UNION
-- What the first superuser owns is recorded nowhere else.
SELECT pg_get_userbyid(c.relowner)::text
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
UNION
SELECT r.rolname::text
FROM pg_db_role_setting AS s
JOIN pg_roles AS r ON r.oid = s.setrole
JOIN pg_database AS d ON d.oid = s.setdatabase
WHERE d.datname = current_database()
ORDER BY 1;

-- missing_roles --
SELECT wanted.role FROM unnest($1::text[]) AS wanted (role)
WHERE NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = wanted.role)
ORDER BY 1;

-- counting_statements --
-- The statement that counts each table of this database, with a digest of its contents where it is no bigger than $1
-- bytes. What belongs to an extension is the extension's.
SELECT
    format('%I.%I', n.nspname, c.relname) AS name,
    pg_table_size(c.oid) AS size_bytes,
    CASE
        WHEN pg_table_size(c.oid) <= $1::bigint THEN format(
            'SELECT count(*) AS rows, coalesce(sum(hashtextextended(ROW(each.*)::text, 0)), 0)::text AS digest'
            ' FROM ONLY %I.%I AS each', n.nspname, c.relname
        )
        ELSE format('SELECT count(*) AS rows, NULL::text AS digest FROM ONLY %I.%I', n.nspname, c.relname)
    END AS statement
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't'
    AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    AND NOT EXISTS (
        SELECT FROM pg_depend AS d
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
    )
ORDER BY 1;

-- flaws --
-- What a sound database does not have. `conindid` and partitions: a parent's index is invalid until all have theirs.
SELECT format('constraint %I of %s was never validated', conname, conrelid::regclass) AS flaw
FROM pg_constraint WHERE NOT convalidated
UNION ALL
SELECT format('index %s is invalid', indexrelid::regclass) FROM pg_index WHERE NOT indisvalid
UNION ALL
SELECT format('materialized view %s is not populated', oid::regclass)
FROM pg_class WHERE relkind = 'm' AND NOT relispopulated
ORDER BY 1;

-- sequence_statements --
-- For each sequence that a column takes its numbers from, the statement that says whether it is behind the column.
SELECT
    format('%I.%I', sn.nspname, s.relname) AS name,
    format(
        'SELECT coalesce(max(%I)::numeric > (SELECT last_value FROM %I.%I), false) FROM %I.%I',
        a.attname, sn.nspname, s.relname, tn.nspname, t.relname
    ) AS statement
FROM pg_class AS s
JOIN pg_namespace AS sn ON sn.oid = s.relnamespace
JOIN pg_sequence AS q ON q.seqrelid = s.oid AND q.seqincrement > 0
JOIN pg_depend AS d
    ON d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.refclassid = 'pg_class'::regclass
    AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0
JOIN pg_class AS t ON t.oid = d.refobjid
JOIN pg_namespace AS tn ON tn.oid = t.relnamespace
JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
WHERE s.relkind = 'S'
ORDER BY 1;

-- database_exists --
SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1);

-- creation_statement --
-- A new empty database with the encoding, locale, tablespace and owner of another; in the usual tablespace where there is
-- none of that name. The usual one is not named: whoever names it needs a right to it that few have.
SELECT
    format(
        'CREATE DATABASE %I OWNER %I TEMPLATE template0 ENCODING %L LC_COLLATE %L LC_CTYPE %L',
        $1::text, $2::text, $3::text, $4::text, $5::text
    )
    || coalesce((
        SELECT format(' TABLESPACE %I', t.spcname)
        FROM pg_tablespace AS t
        WHERE t.spcname = $6::text
            AND t.oid <> (SELECT d.dattablespace FROM pg_database AS d WHERE d.datname = 'template0')
    ), '')
    || CASE $7::text
        WHEN 'i' THEN format(' LOCALE_PROVIDER icu ICU_LOCALE %L', $8::text)
        WHEN 'b' THEN format(' LOCALE_PROVIDER builtin BUILTIN_LOCALE %L', $8::text)
        ELSE ' LOCALE_PROVIDER libc'
    END;

-- setting_statements --
-- What gives database $1 the connection limit $2, the ACL $3 and the settings $4 (of role or of all; `name=value`), in
-- order. The owner's own rights are those of any owner.
SELECT format('ALTER DATABASE %I CONNECTION LIMIT %s', $1::text, $2::integer) AS statement
UNION ALL
SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', $1::text) WHERE $3::text[] IS NOT NULL
UNION ALL
SELECT format(
    'GRANT %s ON DATABASE %I TO %s%s', entry.privilege_type, $1::text,
    CASE WHEN entry.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(entry.grantee)) END,
    CASE WHEN entry.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
)
FROM aclexplode($3::text[]::aclitem[]) AS entry
UNION ALL
SELECT format(
    CASE
        WHEN setting.role = '' THEN 'ALTER DATABASE %1$I SET %3$I TO %4$s'
        ELSE 'ALTER ROLE %2$I IN DATABASE %1$I SET %3$I TO %4$s'
    END,
    $1::text, setting.role, split_part(setting.pair, '=', 1),
    CASE
        -- A list of names: as one literal it would be one name.
        WHEN split_part(setting.pair, '=', 1) IN (
            'search_path', 'temp_tablespaces', 'session_preload_libraries', 'local_preload_libraries'
        )
        THEN (
            SELECT string_agg(quote_literal(btrim(btrim(part), '"')), ', ')
            FROM regexp_split_to_table(substr(setting.pair, strpos(setting.pair, '=') + 1), ',') AS part
        )
        ELSE quote_literal(substr(setting.pair, strpos(setting.pair, '=') + 1))
    END
)
FROM unnest($4::text[], $5::text[]) AS setting (role, pair);

-- comment_statement --
SELECT format('COMMENT ON DATABASE %I IS %L', $1::text, $2::text);

-- connections_statement --
SELECT format(
    'ALTER DATABASE %I ALLOW_CONNECTIONS %s', $1::text, CASE WHEN $2::boolean THEN 'true' ELSE 'false' END
);

-- rename_statement --
SELECT format('ALTER DATABASE %I RENAME TO %I', $1::text, $2::text);

-- drop_statement --
-- $2: end whoever is in it.
SELECT format('DROP DATABASE IF EXISTS %I%s', $1::text, CASE WHEN $2::boolean THEN ' WITH (FORCE)' ELSE '' END);

-- analyze --
ANALYZE;

-- marked_databases --
-- Databases that carry a note of ours.
SELECT datname::text AS name, datallowconn AS is_open, shobj_description(oid, 'pg_database') AS note
FROM pg_database
WHERE shobj_description(oid, 'pg_database') LIKE 'tollkeeper: %'
ORDER BY datname;

-- hindrances --
-- What keeps a database from being renamed or forgotten, or would be lost with it without a word.
SELECT format('prepared transaction %L is open: commit it or roll it back', gid) AS hindrance
FROM pg_prepared_xacts WHERE database = $1
UNION ALL
SELECT format('replication slot %I belongs to it: drop it, and make it anew afterwards', slot_name)
FROM pg_replication_slots WHERE database = $1
UNION ALL
SELECT format('subscription %I belongs to it: disable and drop it, and make it anew afterwards', s.subname)
FROM pg_subscription AS s
JOIN pg_database AS d ON d.oid = s.subdbid
WHERE d.datname = $1;

-- terminate_others --
-- Ends every session in a database but ours; autovacuum gives way by itself. It is known by having no user: of what kind
-- a process is, not every role may see.
SELECT count(pg_terminate_backend(pid))
FROM pg_stat_activity
WHERE datname = $1 AND NOT (pid = ANY($2::integer[])) AND usesysid IS NOT NULL;

-- arriving --
-- Sessions that are about to enter a database: they hold its lock until they can be seen among the others. Who is asked
-- first, before `present`, misses nobody.
SELECT count(*)
FROM pg_locks AS l
JOIN pg_database AS d ON d.oid = l.objid
WHERE l.locktype = 'object' AND l.classid = 'pg_database'::regclass AND d.datname = $1
    AND NOT (l.pid = ANY($2::integer[]));

-- present --
SELECT count(*)
FROM pg_stat_activity
WHERE datname = $1 AND NOT (pid = ANY($2::integer[])) AND usesysid IS NOT NULL;

-- databases --
SELECT datname::text AS name FROM pg_database ORDER BY datname;

-- data_directory --
-- Null where the role may not ask.
SELECT setting FROM pg_settings WHERE name = 'data_directory';
