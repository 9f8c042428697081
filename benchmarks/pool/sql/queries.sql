-- one --
-- The least a statement can be.
SELECT 1;

-- sleep --
-- Keep the connection for $1 seconds, at no cost to the machine.
SELECT pg_sleep($1);

-- create_marks --
-- What writers write to, and what cancelled callers leave nothing in.
CREATE TABLE pool_marks (
    mark_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    marked_at timestamptz NOT NULL DEFAULT now()
);

-- write --
-- One durable row; says since when the server that took it runs.
INSERT INTO pool_marks DEFAULT VALUES
RETURNING extract(EPOCH FROM pg_postmaster_start_time())::double precision AS started_s;

-- local_setting --
-- A setting that ends with the unit of work: who finds it later finds a dirty connection.
SET LOCAL statement_timeout = '7s';

-- inspect --
-- What a session still has of an earlier holder; slow, so that as many as ask get one each.
SELECT
    pg_backend_pid() AS pid,
    current_setting('statement_timeout') AS statement_timeout,
    (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'transactionid')
        AS locks
FROM pg_sleep(0.05);

-- sessions --
-- Sessions of a pool as the server sees them, and those that are at work or inside a unit of work.
SELECT count(*) AS open, count(*) FILTER (WHERE state <> 'idle') AS busy
FROM pg_stat_activity
WHERE datname = current_database() AND application_name = $1;

-- log_connections --
-- Have the server note every connection that arrives.
ALTER SYSTEM SET log_connections = on;

-- reload --
-- Read the settings anew.
SELECT pg_reload_conf();
