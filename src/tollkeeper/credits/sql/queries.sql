-- load --
-- One snapshot of a batch: the database's clock, the accounts, and the keys that are known.
-- $1 accounts; $2 keys; $3 how long keys are kept.
-- The clock is read after the snapshot was taken. The bounds on created_at leave two or three partitions.
SELECT
    clock_timestamp() AS created_at, NULL::text AS account_id, NULL::text AS tenant_id, NULL::smallint AS shard,
    NULL::bigint AS balance, NULL::bigint AS reserved, NULL::bigint AS version, NULL::bytea AS head_hash,
    NULL::bytea AS key_hash
UNION ALL
SELECT a.created_at, a.account_id, a.tenant_id, a.shard, a.balance, a.reserved, a.version, a.head_hash, NULL
FROM unnest($1::account_place[]) AS wanted
JOIN accounts AS a ON a.shard = wanted.shard AND a.account_id = wanted.account_id
UNION ALL
SELECT i.created_at, i.account_id, NULL, i.shard, NULL, NULL, i.sequence, NULL, i.key_hash
FROM unnest($2::key_place[]) AS wanted
JOIN idempotency_keys AS i
    ON i.shard = wanted.shard AND i.key_tag = wanted.key_tag
    AND i.account_id = wanted.account_id AND i.key_hash = wanted.key_hash
    AND i.created_at > now() - $3::interval AND i.created_at < now() + $3::interval;

-- lock_accounts --
-- Takes the row locks of a batch in sorted order: whoever holds them cannot lose the race.
SELECT a.version
FROM unnest($1::smallint[], $2::text[]) AS wanted (shard, account_id)
JOIN accounts AS a ON a.shard = wanted.shard AND a.account_id = wanted.account_id
ORDER BY a.shard, a.account_id
FOR UPDATE OF a;

-- commit --
-- The whole effect of a batch, with a compare-and-swap on every account's version: accounts, transactions
-- and idempotency keys together or, for an account that moved meanwhile, not at all. Returns who landed.
-- $1 moved accounts, sorted; $2 opened accounts, sorted; $3 transactions in order; $4 the time.
-- `(x IN (...)) IS TRUE` keeps the test a hashed lookup: as a join it would be quadratic without hash joins.
WITH moved AS (
    UPDATE accounts AS a
    SET balance = s.balance, reserved = s.reserved, version = s.version, head_hash = s.head_hash
    FROM unnest($1::moved_account[]) AS s
    WHERE a.shard = s.shard AND a.account_id = s.account_id AND a.version = s.expected
    RETURNING a.account_id
),
opened AS (
    INSERT INTO accounts (shard, account_id, tenant_id, balance, reserved, version, head_hash, created_at)
    SELECT o.shard, o.account_id, o.tenant_id, o.balance, o.reserved, o.version, o.head_hash, $4
    FROM unnest($2::opened_account[]) AS o
    ON CONFLICT DO NOTHING
    RETURNING account_id
),
landed AS (
    SELECT account_id FROM moved
    UNION ALL
    SELECT account_id FROM opened
),
accepted AS MATERIALIZED (
    SELECT t.*
    FROM unnest($3::accepted_transaction[]) AS t
    WHERE (t.account_id IN (SELECT landed.account_id FROM landed)) IS TRUE
),
written AS (
    INSERT INTO credit_transactions (
        shard, account_id, transaction_id, kind, amount, balance, reserved,
        sequence, fingerprint, hash, description, metadata, created_at
    )
    SELECT
        shard, account_id, transaction_id, kind, amount, balance, reserved,
        sequence, fingerprint, hash, description, metadata::json, $4
    FROM accepted
),
kept AS (
    INSERT INTO idempotency_keys (shard, account_id, key_tag, key_hash, sequence, created_at)
    SELECT shard, account_id, key_tag, key_hash, sequence, $4
    FROM accepted
)
SELECT account_id FROM landed;

-- transactions_by_key --
-- The transactions that known keys made: the first answers, to be given again.
SELECT
    t.transaction_id, t.account_id, t.shard, t.kind, t.amount, t.balance, t.reserved, t.sequence,
    t.fingerprint, t.hash, t.created_at, t.description, t.metadata
FROM unnest($1::smallint[], $2::text[], $3::bigint[], $4::timestamptz[])
    AS wanted (shard, account_id, sequence, created_at)
JOIN credit_transactions AS t
    ON t.shard = wanted.shard AND t.account_id = wanted.account_id
    AND t.sequence = wanted.sequence AND t.created_at = wanted.created_at;

-- account --
-- One account as it stands.
SELECT account_id, tenant_id, shard, balance, reserved, version, head_hash, created_at
FROM accounts
WHERE shard = $1 AND account_id = $2;

-- history --
-- A page of an account's transactions after a sequence, oldest first.
SELECT
    transaction_id, account_id, shard, kind, amount, balance, reserved, sequence,
    fingerprint, hash, created_at, description, metadata
FROM credit_transactions
WHERE shard = $1 AND account_id = $2 AND sequence > $3
ORDER BY sequence
LIMIT $4;

-- accounts_after --
-- A page of accounts in key order, for verification.
SELECT account_id, tenant_id, shard, balance, reserved, version, head_hash, created_at
FROM accounts
WHERE (shard, account_id) > ($1::smallint, $2::text)
ORDER BY shard, account_id
LIMIT $3;

-- chain --
-- All transactions of one account, oldest first; read through a cursor.
SELECT
    transaction_id, account_id, shard, kind, amount, balance, reserved, sequence,
    fingerprint, hash, created_at, description, metadata
FROM credit_transactions
WHERE shard = $1 AND account_id = $2
ORDER BY sequence, created_at;

-- create_partitions --
-- Makes the partitions for now and the time ahead; returns how many were missing.
SELECT create_partitions(clock_timestamp(), $1, $2);

-- expired_key_partitions --
-- Statements that remove what idempotency_keys no longer needs, oldest first: a detach that blocks nobody
-- (or finishes one that was cut short), then the drop. The server writes them: names are never formatted here.
SELECT
    c.relname AS partition,
    CASE
        WHEN h.inhparent IS NULL THEN NULL
        WHEN h.inhdetachpending THEN format('ALTER TABLE idempotency_keys DETACH PARTITION %I FINALIZE', c.relname)
        ELSE format('ALTER TABLE idempotency_keys DETACH PARTITION %I CONCURRENTLY', c.relname)
    END AS detach,
    format('DROP TABLE %I', c.relname) AS remove
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = current_schema()
LEFT JOIN pg_inherits AS h ON h.inhrelid = c.oid
WHERE c.relkind = 'r'
    AND c.relname ~ '^idempotency_keys_[0-9]{8}$'
    AND to_date(right(c.relname, 8), 'YYYYMMDD') + 1 <= (now() AT TIME ZONE 'UTC') - $1::interval
ORDER BY c.relname;

-- take_maintenance --
-- One maintainer at a time; held by the session.
SELECT pg_try_advisory_lock(hashtextextended('tollkeeper.credits.maintenance', 0));

-- release_maintenance --
-- Lets the next maintainer in.
SELECT pg_advisory_unlock(hashtextextended('tollkeeper.credits.maintenance', 0));
