-- has_records --
-- False on a database that was never migrated.
SELECT to_regclass('public.tollkeeper_migrations') IS NOT NULL;

-- create_records --
-- What has been applied. Everyone may read it: a service is ready when its schema is there.
CREATE TABLE IF NOT EXISTS public.tollkeeper_migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL,
    duration_ms integer NOT NULL,
    CONSTRAINT tollkeeper_migrations_version CHECK (version > 0),
    CONSTRAINT tollkeeper_migrations_checksum CHECK (checksum ~ '^[0-9a-f]{64}$')
);
GRANT SELECT ON public.tollkeeper_migrations TO PUBLIC;

-- read_records --
SELECT version, name, checksum, applied_at, duration_ms
FROM public.tollkeeper_migrations
ORDER BY version;

-- add_record --
INSERT INTO public.tollkeeper_migrations (version, name, checksum, applied_at, duration_ms)
VALUES ($1, $2, $3, $4, $5);

-- try_lock --
-- One runner per database. The numbers are 'toll' and 'migr' in ASCII. Never the blocking form: who
-- waits inside a statement holds a snapshot, and a concurrent index build would wait for it for ever.
SELECT pg_try_advisory_lock(1953459308, 1835624306);

-- unlock --
-- False when the lock is not ours, as behind a pooler that changed the backend under us.
SELECT pg_advisory_unlock(1953459308, 1835624306);

-- find_lock_holder --
-- Who migrates this database; no row if the lock has just been released.
SELECT activity.pid, activity.application_name, activity.client_addr::text, activity.backend_start
FROM pg_locks AS held
JOIN pg_stat_activity AS activity ON activity.pid = held.pid
WHERE held.locktype = 'advisory' AND held.granted
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND held.classid = 1953459308 AND held.objid = 1835624306 AND held.objsubid = 2;

-- notice_dead_client --
-- A killed runner's backend would run its statement to the end, with all locks. (Not on Windows.)
SELECT set_config('client_connection_check_interval', '1s', false)
WHERE version() !~* 'windows|visual c|mingw';

-- limit_lock_wait --
-- SET LOCAL lock_timeout: while a change waits for its lock, everyone else queues behind it.
SELECT set_config('lock_timeout', $1, true);
