-- create_database --
-- For psql: creates the database :name unless it exists.
SELECT format('CREATE DATABASE %I', :'name')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name')
\gexec

-- check_role --
-- What a host says of itself: its role, the WAL it writes, and how far it (or its slowest standby) is behind.
-- A standby without a receiver has received nothing lately, so it may look as if it were not behind.
SELECT
    pg_is_in_recovery() AS in_recovery,
    current_setting('transaction_read_only')::boolean AS read_only,
    CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_lsn()) END AS wal_file,
    CASE
        WHEN NOT pg_is_in_recovery()
            THEN (SELECT max(extract(EPOCH FROM replay_lag)) FROM pg_stat_replication)
        WHEN
            pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()
            AND EXISTS (SELECT FROM pg_stat_wal_receiver)
            THEN 0
        ELSE extract(EPOCH FROM clock_timestamp() - pg_last_xact_replay_timestamp())
    END::double precision AS lag_s,
    current_setting('max_connections')::integer AS max_connections,
    current_setting('superuser_reserved_connections')::integer
    + coalesce(current_setting('reserved_connections', true)::integer, 0) AS reserved

-- probe_write --
-- Write to the one row, unless another process does at this moment.
WITH free AS (
    SELECT only_row FROM health_probe FOR UPDATE SKIP LOCKED
),

written AS (
    UPDATE health_probe SET probed_at = clock_timestamp()
    FROM free
    WHERE health_probe.only_row = free.only_row
    RETURNING health_probe.only_row
)

SELECT
    (SELECT count(*) FROM health_probe) AS rows,
    (SELECT count(*) FROM written) AS written

-- write_elsewhere --
-- Write a message to the log that nobody reads: it has to be as durable as any commit, and needs no row.
SELECT
    1 AS rows,
    (pg_logical_emit_message(true, 'tollkeeper.health', '') IS NOT NULL)::integer AS written

-- takes_no_writes --
-- Behind a pooler the greeting is of whichever server it met first.
SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean
