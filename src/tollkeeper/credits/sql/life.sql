-- partition_ends --
-- Up to when there are partitions without a gap from now on, by table; null: there is none for now. Bounds of holds are
-- the times inside their ids.
WITH RECURSIVE bounds AS (
    SELECT
        i.inhparent,
        regexp_match(pg_get_expr(c.relpartbound, c.oid), $$FROM \('([^']+)'\) TO \('([^']+)'\)$$) AS ends
    FROM pg_inherits AS i
    JOIN pg_class AS c ON c.oid = i.inhrelid
    WHERE NOT i.inhdetachpending
        AND i.inhparent IN (
            'credit_transactions'::regclass, 'holds'::regclass, 'idempotency_keys'::regclass
        )
),
partitions AS (
    SELECT
        inhparent,
        CASE
            WHEN inhparent = 'holds'::regclass
                THEN to_timestamp(('x' || lpad(left(replace(ends[1], '-', ''), 12), 16, '0'))::bit(64)::bigint / 1000.0)
            ELSE ends[1]::timestamptz
        END AS from_time,
        CASE
            WHEN inhparent = 'holds'::regclass
                THEN to_timestamp(('x' || lpad(left(replace(ends[2], '-', ''), 12), 16, '0'))::bit(64)::bigint / 1000.0)
            ELSE ends[2]::timestamptz
        END AS to_time
    FROM bounds
    WHERE ends IS NOT NULL
),
reached AS (
    SELECT inhparent, to_time
    FROM partitions
    WHERE from_time <= now() AND to_time > now()
    UNION
    SELECT p.inhparent, p.to_time
    FROM reached AS r
    JOIN partitions AS p ON p.inhparent = r.inhparent AND p.from_time = r.to_time
)
SELECT tables.name, max(r.to_time) AS to_time
FROM (VALUES ('credit_transactions'), ('holds'), ('idempotency_keys')) AS tables (name)
LEFT JOIN reached AS r ON r.inhparent = tables.name::regclass
GROUP BY tables.name;

-- extensions --
-- Which schedulers and partition managers are installed in this database.
SELECT extname FROM pg_extension WHERE extname IN ('pg_cron', 'pg_partman') ORDER BY extname;

-- take_archive_lock --
-- One archivist at a time; held by the session.
SELECT pg_try_advisory_lock(hashtextextended('tollkeeper.credits.archive', 0));

-- release_archive_lock --
-- Lets the next archivist in.
SELECT pg_advisory_unlock(hashtextextended('tollkeeper.credits.archive', 0));

-- archivable_partitions --
-- Partitions of credit_transactions that ended $1 quarters before $2 and before now, oldest first, and the statements
-- that write their bounds down: `bound` is null once they stand there, `validate` once all rows were looked at. The
-- server writes them: names are never formatted here.
SELECT
    p.partition,
    CASE
        WHEN k.oid IS NULL THEN format(
            'ALTER TABLE %I ADD CONSTRAINT archive_bounds CHECK (created_at >= %L AND created_at < %L) NOT VALID',
            p.partition, p.ends[1], p.ends[2]
        )
    END AS bound,
    CASE
        WHEN k.convalidated IS NOT TRUE THEN format('ALTER TABLE %I VALIDATE CONSTRAINT archive_bounds', p.partition)
    END AS validate
FROM (
    SELECT
        c.oid, c.relname AS partition,
        regexp_match(pg_get_expr(c.relpartbound, c.oid), $$FROM \('([^']+)'\) TO \('([^']+)'\)$$) AS ends
    FROM pg_inherits AS i
    JOIN pg_class AS c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'credit_transactions'::regclass AND NOT i.inhdetachpending
) AS p
LEFT JOIN pg_constraint AS k ON k.conrelid = p.oid AND k.conname = 'archive_bounds'
WHERE p.ends[2]::timestamptz <= least(now(), $2::timestamptz) - $1 * interval '3 months'
ORDER BY p.ends[2]::timestamptz;

-- archive_partition --
-- Takes a partition from the live table to the archive.
SELECT archive_partition($1);

-- archived_partitions --
-- The archive's partitions and those that have a seal, oldest first, each with its seal, whether that was not checked
-- for $1, and what was wrong; `is_there` is false of one that was taken away. One that somebody took back to
-- credit_transactions is in the ledger as any other there.
SELECT
    coalesce(p.partition, s.partition) AS partition, p.partition IS NOT NULL AS is_there,
    coalesce(p.ends[1]::timestamptz, s.from_time) AS from_time,
    coalesce(p.ends[2]::timestamptz, s.to_time) AS to_time,
    s.note, s.transactions, s.root, coalesce(c.checked_at, '-infinity') <= now() - $1::interval AS is_due, c.problem
FROM (
    SELECT
        c.relname AS partition,
        regexp_match(pg_get_expr(c.relpartbound, c.oid), $$FROM \('([^']+)'\) TO \('([^']+)'\)$$) AS ends
    FROM pg_inherits AS i
    JOIN pg_class AS c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'archived_transactions'::regclass AND NOT i.inhdetachpending
) AS p
FULL JOIN partition_seals AS s ON s.partition = p.partition
LEFT JOIN seal_checks AS c ON c.partition = s.partition
WHERE p.partition IS NOT NULL
    OR NOT EXISTS (
        SELECT
        FROM pg_inherits AS l
        WHERE l.inhrelid = to_regclass(quote_ident(s.partition)) AND l.inhparent = 'credit_transactions'::regclass
    )
ORDER BY 3, 1;

-- archived_digests --
-- What stands in the rows of an archived partition, as digests, in the order of the seal; read through a cursor.
-- Everything that is stored of a row is in its digest, its place and its hash in the chain among it.
SELECT
    sha256(record_send(ROW(
        created_at, sequence, amount, balance, reserved, transaction_id, shard, account_id, kind, fingerprint, hash,
        description, metadata, reference_id, freed, expires_at, allowance, payment
    ))) AS digest
FROM archived_transactions
WHERE created_at >= $1 AND created_at < $2
ORDER BY shard, account_id, sequence, created_at;

-- archived_sums --
-- How many transactions of each kind an archived partition has, and their amounts; sums as text, without a limit.
SELECT coalesce(kind, '') AS kind, count(*) AS transactions, coalesce(sum(amount), 0)::text AS amount
FROM archived_transactions
WHERE created_at >= $1 AND created_at < $2
GROUP BY 1
ORDER BY 1;

-- add_seal --
-- Writes down what an archived partition is.
INSERT INTO partition_seals (partition, from_time, to_time, sealed_at, transactions, root, note)
VALUES ($1, $2, $3, $4, $5, $6, $7);

-- mark_seal --
-- Remembers how a seal compared with its partition.
INSERT INTO seal_checks AS c (partition, checked_at, problem)
VALUES ($1, now(), $2)
ON CONFLICT (partition) DO UPDATE SET checked_at = excluded.checked_at, problem = excluded.problem;

-- broken_seals --
-- Archived partitions that are not there, or were not what their seal says when that was last checked; not those that
-- somebody took back to credit_transactions.
SELECT
    s.partition,
    CASE WHEN i.inhrelid IS NULL THEN 'it is not in the archive' ELSE c.problem END AS problem
FROM partition_seals AS s
LEFT JOIN seal_checks AS c ON c.partition = s.partition
LEFT JOIN pg_inherits AS i
    ON i.inhrelid = to_regclass(quote_ident(s.partition))
    AND i.inhparent IN ('archived_transactions'::regclass, 'credit_transactions'::regclass)
WHERE i.inhrelid IS NULL OR (c.problem IS NOT NULL AND i.inhparent = 'archived_transactions'::regclass)
ORDER BY s.from_time, s.partition;

-- take_summary_lock --
-- One refreshes the summary at a time; held by the session.
SELECT pg_try_advisory_lock(hashtextextended('tollkeeper.credits.summary', 0));

-- release_summary_lock --
-- Lets the next one in.
SELECT pg_advisory_unlock(hashtextextended('tollkeeper.credits.summary', 0));

-- summary_state --
-- Whether the summary can be read, when it was last true, and whether that is less than $1 ago.
SELECT c.relispopulated AS is_populated, r.as_of, coalesce(r.as_of > now() - $1::interval, false) AS is_fresh
FROM pg_class AS c
LEFT JOIN summary_refreshes AS r ON true
WHERE c.oid = 'credit_balances_summary'::regclass;

-- is_summary_current --
-- Whether the summary says what the accounts say now: of every number in it, in one snapshot.
SELECT NOT EXISTS (
    SELECT
    FROM balances_by_tenant AS n
    FULL JOIN credit_balances_summary AS s ON s.tenant_id = n.tenant_id
    WHERE (n.tenant_id, n.accounts, n.balance, n.reserved, n.available, n.frozen)
        IS DISTINCT FROM (s.tenant_id, s.accounts, s.balance, s.reserved, s.available, s.frozen)
);

-- populate_summary --
-- Fills a summary that nobody can read yet.
REFRESH MATERIALIZED VIEW credit_balances_summary;

-- refresh_summary --
-- Brings the summary up to date beside its readers; writes only the rows that differ.
REFRESH MATERIALIZED VIEW CONCURRENTLY credit_balances_summary;

-- mark_summary --
-- The summary is what the accounts said when this unit of work began.
INSERT INTO summary_refreshes AS r (as_of)
VALUES (now())
ON CONFLICT (is_only_row) DO UPDATE SET as_of = excluded.as_of
RETURNING as_of;
