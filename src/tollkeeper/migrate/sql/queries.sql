-- records_kind --
-- 'r': the table of a program before the log; 'v': the view over the log; null: never migrated.
SELECT c.relkind::text FROM pg_class AS c WHERE c.oid = to_regclass('public.tollkeeper_migrations');

-- read_old_records --
-- What every release since the first keeps under these names; services ask only this.
SELECT version, name, checksum, applied_at, duration_ms
FROM public.tollkeeper_migrations
ORDER BY version;

-- read_records --
SELECT version, name, checksum, digest, source, run_id, applied_at, duration_ms
FROM public.tollkeeper_migrations
ORDER BY version;

-- create_log --
-- What was done to the schema. Rows are added and never changed. What is applied follows from them;
-- everyone may read that much: a service is ready when its schema is there.
CREATE TABLE public.tollkeeper_migration_log (
    number bigint PRIMARY KEY,
    at timestamptz NOT NULL,
    run_id uuid NOT NULL,
    happening text NOT NULL,
    version integer,
    name text,
    checksum text,
    digest text,
    source text,
    duration_ms integer,
    details json NOT NULL,
    previous_hash bytea NOT NULL UNIQUE,
    hash bytea NOT NULL,
    CONSTRAINT tollkeeper_migration_log_number CHECK (number > 0),
    CONSTRAINT tollkeeper_migration_log_version CHECK (version > 0),
    CONSTRAINT tollkeeper_migration_log_hashes CHECK (
        octet_length(hash) = 32 AND octet_length(previous_hash) = 32
        AND (checksum IS NULL OR checksum ~ '^[0-9a-f]{64}$') AND (digest IS NULL OR digest ~ '^[0-9a-f]{64}$')
    )
);
CREATE FUNCTION public.refuse_migration_log_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'tollkeeper_migration_log is append-only: % refused', TG_OP
        USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER tollkeeper_migration_log_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON public.tollkeeper_migration_log
FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_migration_log_change();
DROP TABLE IF EXISTS public.tollkeeper_migrations;
CREATE VIEW public.tollkeeper_migrations AS
SELECT last.version, last.name, last.checksum, last.applied_at, last.duration_ms, last.digest, last.source, last.run_id
FROM (
    SELECT DISTINCT ON (version)
        version, name, checksum, at AS applied_at, duration_ms, digest, source, run_id, happening
    FROM public.tollkeeper_migration_log
    WHERE happening IN ('adopted', 'applied', 'taken_back')
    ORDER BY version, number DESC
) AS last
WHERE last.happening <> 'taken_back';
GRANT SELECT ON public.tollkeeper_migrations TO PUBLIC;

-- read_log --
SELECT number, at, run_id, happening, version, name, checksum, digest, source, duration_ms, details, previous_hash, hash
FROM public.tollkeeper_migration_log
ORDER BY number;

-- last_log_row --
SELECT number, hash
FROM public.tollkeeper_migration_log
ORDER BY number DESC
LIMIT 1;

-- add_log_row --
INSERT INTO public.tollkeeper_migration_log (
    number, at, run_id, happening, version, name, checksum, digest, source, duration_ms, details, previous_hash, hash
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13);

-- try_lock --
-- One runner per database, also one of a release that knows no other lock. The numbers are 'toll' and
-- 'migr' in ASCII. Never the blocking form: who waits inside a statement holds a snapshot, and a concurrent
-- index build would wait for it for ever.
SELECT pg_try_advisory_lock(1953459308, 1835624306);

-- unlock --
-- False when the lock is not ours.
SELECT pg_advisory_unlock(1953459308, 1835624306);

-- try_work_lock --
-- Held by the session that changes the schema: the server may still run the last statement of a runner that
-- was killed, when that one's other session has ended. 'toll' and 'work'.
SELECT pg_try_advisory_lock(1953459308, 2003792491);

-- unlock_work --
SELECT pg_advisory_unlock(1953459308, 2003792491);

-- holds_lock --
-- Whether this session still is the one runner.
SELECT EXISTS (
    SELECT FROM pg_locks AS held
    WHERE held.pid = pg_backend_pid() AND held.locktype = 'advisory' AND held.granted
        AND held.classid = 1953459308 AND held.objid = 1835624306 AND held.objsubid = 2
);

-- find_lock_holder --
-- Who migrates this database; no row if the lock has just been released.
SELECT activity.pid, activity.application_name, activity.client_addr::text, activity.backend_start
FROM pg_locks AS held
JOIN pg_stat_activity AS activity ON activity.pid = held.pid
WHERE held.locktype = 'advisory' AND held.granted
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND held.classid = 1953459308 AND held.objid IN (1835624306, 2003792491) AND held.objsubid = 2
  AND held.pid <> pg_backend_pid()
ORDER BY held.objid
LIMIT 1;

-- find_dump --
-- A dump or restore of this database that somebody runs.
SELECT activity.pid, activity.application_name, activity.client_addr::text, activity.backend_start
FROM pg_stat_activity AS activity
WHERE activity.datname = current_database() AND activity.application_name IN ('pg_dump', 'pg_restore')
ORDER BY activity.backend_start
LIMIT 1;

-- is_standby --
SELECT pg_is_in_recovery();

-- backend_pid --
SELECT pg_backend_pid();

-- be_patient --
-- Whatever role and database have as their defaults: a file says itself how long it may take, and one session is
-- idle while the other works, or while a backup is taken. Each statement sees what others have committed, as both
-- sessions add to one log; and strings are what we read them as. (`transaction_timeout` is there since 17.)
SELECT
    set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false),
    set_config('idle_session_timeout', '0', false), set_config('idle_in_transaction_session_timeout', '0', false),
    set_config('default_transaction_read_only', 'off', false),
    set_config('default_transaction_isolation', 'read committed', false),
    set_config('standard_conforming_strings', 'on', false),
    (
        SELECT set_config(known.name, '0', false) FROM pg_settings AS known WHERE known.name = 'transaction_timeout'
    ) AS transaction_timeout;

-- notice_dead_client --
-- A killed runner's backend would run its statement to the end, with all locks. (Not on Windows.)
SELECT set_config('client_connection_check_interval', '1s', false)
WHERE version() !~* 'windows|visual c|mingw';

-- note_quickly --
-- Of the session that notes progress: whatever lasts afterwards takes these rows with it, being behind them in
-- the server's log; and of what does not last nobody needs to know where it was cut.
SELECT set_config('synchronous_commit', 'off', false);

-- limit_lock_wait --
-- SET LOCAL lock_timeout: while a change waits for its lock, everyone else queues behind it.
SELECT set_config('lock_timeout', $1, true);

-- limit_nothing --
-- For a statement outside of a unit of work: building an index concurrently waits for every older snapshot,
-- behind which nobody queues.
SELECT set_config('lock_timeout', '0', false), set_config('statement_timeout', '0', false);

-- lock_wait --
-- For which lock a session waits, since when, and for whom.
SELECT
    extract(epoch FROM clock_timestamp() - held.waitstart)::float8 AS waited_s,
    held.mode, held.relation::regclass::text AS relation,
    (
        SELECT string_agg(format('%s %s', blocker.pid, coalesce(nullif(blocker.application_name, ''), '?')), ', ')
        FROM pg_stat_activity AS blocker
        WHERE blocker.pid = ANY (pg_blocking_pids($1))
    ) AS blockers
FROM pg_locks AS held
WHERE held.pid = $1 AND NOT held.granted AND held.waitstart IS NOT NULL;

-- locks_taken --
-- The locks of this unit of work on relations that others know.
SELECT held.relation::regclass::text AS relation, held.mode
FROM pg_locks AS held
JOIN pg_class AS c ON c.oid = held.relation
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE held.pid = pg_backend_pid() AND held.granted AND held.locktype = 'relation'
    AND n.nspname NOT IN ('pg_catalog', 'pg_toast', 'information_schema')
    AND c.oid = ANY ($1::oid[]);

-- relations --
-- Every relation that holds rows, with the file it is kept in: another file means that it was rewritten.
SELECT c.oid, c.oid::regclass::text AS name, c.relkind::text, c.relfilenode, c.reltuples
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm', 'i')
    AND n.nspname NOT IN ('pg_catalog', 'pg_toast', 'information_schema') AND n.nspname !~ '^pg_(temp|toast_temp)';

-- columns --
-- Every column of every table.
SELECT a.attrelid AS oid, a.attnum, a.attname::text AS name
FROM pg_attribute AS a
JOIN pg_class AS c ON c.oid = a.attrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
    AND n.nspname NOT IN ('pg_catalog', 'pg_toast', 'information_schema') AND n.nspname !~ '^pg_(temp|toast_temp)';

-- counting_rows --
-- The statement that counts a table's rows, or those in which one of its columns says something.
SELECT CASE
    WHEN $2::text IS NULL THEN format('SELECT count(*) FROM %s', $1::oid::regclass)
    ELSE format('SELECT count(%I) FROM %s', $2::text, $1::oid::regclass)
END;

-- locking_writers_out --
-- The statement after which nobody but us writes to a table.
SELECT format('LOCK TABLE %s IN SHARE MODE', $1::oid::regclass);

-- deleted_rows --
-- What this unit of work has deleted, what savepoints have undone included.
SELECT counted.relid AS oid, counted.n_tup_del AS rows
FROM pg_stat_xact_user_tables AS counted
WHERE counted.n_tup_del > 0;

-- invalid_index --
-- The statement that drops what a cut CREATE INDEX CONCURRENTLY left; no row if there is nothing.
SELECT format('DROP INDEX CONCURRENTLY %s', i.indexrelid::regclass)
FROM pg_index AS i
WHERE i.indexrelid = to_regclass($1) AND NOT i.indisvalid;
