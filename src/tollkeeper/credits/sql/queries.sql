-- load --
-- One snapshot of a batch: the database's clock, the accounts, and the keys that are known.
-- $1 accounts; $2 keys; $3 how long keys are kept.
-- The clock is read after the snapshot was taken. The bound on created_at leaves three partitions: yesterday's
-- and the day's before, or tomorrow's. There is no other bound: when the clock was set back, keys that were kept
-- in a time to come must be found all the same.
SELECT
    clock_timestamp() AS created_at, NULL::text AS account_id, NULL::text AS tenant_id, NULL::smallint AS shard,
    NULL::bigint AS balance, NULL::bigint AS reserved, NULL::bigint AS version, NULL::bytea AS head_hash,
    NULL::timestamptz AS next_expiry, NULL::timestamptz AS frozen_at, NULL::bigint AS alert_at,
    NULL::bigint AS alert_revision, NULL::bytea AS key_hash
UNION ALL
SELECT a.created_at, a.account_id, a.tenant_id, a.shard, a.balance, a.reserved, a.version, a.head_hash,
    a.next_expiry, a.frozen_at, a.alert_at, a.alert_revision, NULL
FROM unnest($1::account_place[]) AS wanted
JOIN accounts AS a ON a.shard = wanted.shard AND a.account_id = wanted.account_id
UNION ALL
SELECT
    i.created_at, i.account_id, NULL, i.shard, NULL, NULL, i.sequence, NULL, NULL, NULL, NULL, NULL, i.key_hash
FROM unnest($2::key_place[]) AS wanted
JOIN idempotency_keys AS i
    ON i.shard = wanted.shard AND i.key_tag = wanted.key_tag
    AND i.account_id = wanted.account_id AND i.key_hash = wanted.key_hash
    AND i.created_at > now() - $3::interval;

-- holds --
-- Holds by their ids.
SELECT
    h.hold_id, h.account_id, h.shard, h.amount, h.captured, h.released, h.allowance, h.overrun, h.state,
    h.expires_at, h.created_at
FROM unnest($1::hold_place[]) AS wanted
JOIN holds AS h ON h.shard = wanted.shard AND h.hold_id = wanted.hold_id;

-- open_holds --
-- The open holds of accounts that are over at $2, soonest first, and the first that is not yet.
SELECT
    h.hold_id, h.account_id, h.shard, h.amount, h.captured, h.released, h.allowance, h.overrun, h.state,
    h.expires_at, h.created_at
FROM unnest($1::account_place[]) AS wanted
CROSS JOIN LATERAL (
    SELECT due.*
    FROM holds AS due
    WHERE due.shard = wanted.shard AND due.account_id = wanted.account_id AND due.state = 'open'
        AND due.expires_at <= $2
    UNION ALL
    (
        SELECT later.*
        FROM holds AS later
        WHERE later.shard = wanted.shard AND later.account_id = wanted.account_id AND later.state = 'open'
            AND later.expires_at > $2
        ORDER BY later.expires_at
        LIMIT 1
    )
) AS h
ORDER BY h.account_id, h.expires_at, h.hold_id;

-- refundables --
-- Transactions by their ids, with what was refunded of them. An id begins with the time of its row:
-- the bounds on created_at leave one partition.
SELECT t.transaction_id, t.account_id, t.shard, t.kind, t.amount AS taken, coalesce(r.refunded, 0) AS refunded
FROM unnest($1::transaction_place[], $2::timestamptz[]) AS wanted (shard, transaction_id, written_at)
JOIN ledger_transactions AS t
    ON t.transaction_id = wanted.transaction_id AND t.shard = wanted.shard
    AND t.created_at >= wanted.written_at AND t.created_at < wanted.written_at + interval '1 millisecond'
LEFT JOIN refunds AS r ON r.shard = wanted.shard AND r.transaction_id = wanted.transaction_id;

-- hold --
-- One hold.
SELECT
    h.hold_id, h.account_id, h.shard, h.amount, h.captured, h.released, h.allowance, h.overrun, h.state,
    h.expires_at, h.created_at, a.tenant_id
FROM holds AS h
JOIN accounts AS a ON a.shard = h.shard AND a.account_id = h.account_id
WHERE h.shard = $1 AND h.hold_id = $2;

-- account_holds --
-- A page of an account's open holds after an id, oldest first.
SELECT
    hold_id, account_id, shard, amount, captured, released, allowance, overrun, state, expires_at, created_at
FROM holds
WHERE shard = $1 AND account_id = $2 AND state = 'open' AND hold_id > $3
ORDER BY hold_id
LIMIT $4;

-- transaction --
-- One transaction by its id, with its account's tenant.
SELECT
    t.transaction_id, t.account_id, t.shard, t.kind, t.amount, t.balance, t.reserved, t.sequence,
    t.fingerprint, t.hash, t.created_at, t.description, t.metadata,
    t.reference_id, t.freed, t.expires_at, t.allowance, t.payment, a.tenant_id
FROM ledger_transactions AS t
JOIN accounts AS a ON a.shard = t.shard AND a.account_id = t.account_id
WHERE t.transaction_id = $2 AND t.shard = $1
    AND t.created_at >= $3 AND t.created_at < $3::timestamptz + interval '1 millisecond';

-- due_accounts --
-- Accounts with holds whose time is over, for the sweeper; the longest overdue first. Of a frozen account none.
SELECT due.account_id, due.shard
FROM (
    SELECT h.account_id, h.shard, min(h.expires_at) AS since
    FROM holds AS h
    WHERE h.state = 'open' AND h.expires_at <= clock_timestamp()
    GROUP BY h.account_id, h.shard
) AS due
JOIN accounts AS a ON a.shard = due.shard AND a.account_id = due.account_id
WHERE a.frozen_at IS NULL
ORDER BY due.since
LIMIT $1;

-- lock_accounts --
-- Takes the row locks of a batch in sorted order: whoever holds them cannot lose the race.
SELECT a.version
FROM unnest($1::smallint[], $2::text[]) AS wanted (shard, account_id)
JOIN accounts AS a ON a.shard = wanted.shard AND a.account_id = wanted.account_id
ORDER BY a.shard, a.account_id
FOR UPDATE OF a;

-- commit --
-- The whole effect of a batch, with a compare-and-swap on every account's version: accounts, transactions
-- and idempotency keys together or, for an account that moved or was frozen or whose thresholds were changed
-- meanwhile, not at all. Returns who landed.
-- $1 moved accounts, sorted; $2 opened accounts, sorted; $3 transactions in order; $4 the time; $5 holds and
-- $6 refunds in their final state.
-- `(x IN (...)) IS TRUE` keeps the test a hashed lookup: as a join it would be quadratic without hash joins.
WITH moved AS (
    UPDATE accounts AS a
    SET
        balance = s.balance, reserved = s.reserved, version = s.version, head_hash = s.head_hash,
        next_expiry = s.next_expiry
    FROM unnest($1::swapped_account[]) AS s
    WHERE a.shard = s.shard AND a.account_id = s.account_id AND a.version = s.expected AND a.frozen_at IS NULL
        AND a.alert_revision IS NOT DISTINCT FROM s.alert_revision
    RETURNING a.account_id
),
opened AS (
    INSERT INTO accounts (
        shard, account_id, tenant_id, balance, reserved, version, head_hash, next_expiry, created_at
    )
    SELECT
        o.shard, o.account_id, o.tenant_id, o.balance, o.reserved, o.version, o.head_hash, o.next_expiry, $4
    FROM unnest($2::started_account[]) AS o
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
    FROM unnest($3::written_transaction[]) AS t
    WHERE (t.account_id IN (SELECT landed.account_id FROM landed)) IS TRUE
),
written AS (
    INSERT INTO credit_transactions (
        shard, account_id, transaction_id, kind, amount, balance, reserved, sequence, fingerprint, hash,
        description, metadata, created_at, reference_id, freed, expires_at, allowance, payment
    )
    SELECT
        shard, account_id, transaction_id, kind, amount, balance, reserved, sequence, fingerprint, hash,
        description, metadata::json, $4, reference_id, freed, expires_at, allowance, payment::json
    FROM accepted
),
kept AS (
    INSERT INTO idempotency_keys (shard, account_id, key_tag, key_hash, sequence, created_at)
    SELECT shard, account_id, key_tag, key_hash, sequence, $4
    FROM accepted
    WHERE key_hash IS NOT NULL
),
held AS (
    INSERT INTO holds AS h (
        shard, hold_id, account_id, amount, captured, released, allowance, overrun, state, expires_at, created_at
    )
    SELECT
        n.shard, n.hold_id, n.account_id, n.amount, n.captured, n.released, n.allowance, n.overrun, n.state,
        n.expires_at, n.created_at
    FROM unnest($5::written_hold[]) AS n
    WHERE (n.account_id IN (SELECT landed.account_id FROM landed)) IS TRUE
    ON CONFLICT (shard, hold_id) DO UPDATE
    SET
        amount = excluded.amount, captured = excluded.captured, released = excluded.released,
        overrun = excluded.overrun, state = excluded.state, expires_at = excluded.expires_at
),
refunded AS (
    INSERT INTO refunds (shard, transaction_id, account_id, taken, refunded)
    SELECT n.shard, n.transaction_id, n.account_id, n.taken, n.refunded
    FROM unnest($6::written_refund[]) AS n
    WHERE (n.account_id IN (SELECT landed.account_id FROM landed)) IS TRUE
    ON CONFLICT (shard, transaction_id) DO UPDATE SET refunded = excluded.refunded
)
SELECT account_id FROM landed;

-- transactions_by_key --
-- The transactions that known keys made: the first answers, to be given again.
SELECT
    t.transaction_id, t.account_id, t.shard, t.kind, t.amount, t.balance, t.reserved, t.sequence,
    t.fingerprint, t.hash, t.created_at, t.description, t.metadata,
    t.reference_id, t.freed, t.expires_at, t.allowance, t.payment
FROM unnest($1::smallint[], $2::text[], $3::bigint[], $4::timestamptz[])
    AS wanted (shard, account_id, sequence, created_at)
JOIN credit_transactions AS t
    ON t.shard = wanted.shard AND t.account_id = wanted.account_id
    AND t.sequence = wanted.sequence AND t.created_at = wanted.created_at;

-- account --
-- One account as it stands.
SELECT account_id, tenant_id, shard, balance, reserved, version, head_hash, created_at, next_expiry, frozen_at
FROM accounts
WHERE shard = $1 AND account_id = $2;

-- history --
-- A page of an account's transactions after a sequence, oldest first, as far as they are not archived.
SELECT
    transaction_id, account_id, shard, kind, amount, balance, reserved, sequence,
    fingerprint, hash, created_at, description, metadata, reference_id, freed, expires_at, allowance, payment
FROM credit_transactions
WHERE shard = $1 AND account_id = $2 AND sequence > $3
ORDER BY sequence
LIMIT $4;

-- whole_history --
-- A page of an account's transactions after a sequence, oldest first, wherever they are.
SELECT
    transaction_id, account_id, shard, kind, amount, balance, reserved, sequence,
    fingerprint, hash, created_at, description, metadata, reference_id, freed, expires_at, allowance, payment
FROM ledger_transactions
WHERE shard = $1 AND account_id = $2 AND sequence > $3
ORDER BY sequence
LIMIT $4;

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

-- take_checkpoint_lock --
-- One maker of checkpoints at a time; held by the session.
SELECT pg_try_advisory_lock(hashtextextended('tollkeeper.credits.checkpoint', 0));

-- release_checkpoint_lock --
-- Lets the next maker in.
SELECT pg_advisory_unlock(hashtextextended('tollkeeper.credits.checkpoint', 0));

-- last_checkpoint --
-- The newest checkpoint, and the database's clock, which stands in the next one.
SELECT now() AS now, c.number, c.note
FROM (VALUES (1)) AS always (is_there)
LEFT JOIN LATERAL (SELECT number, note FROM checkpoints ORDER BY number DESC LIMIT 1) AS c ON true;

-- unexplained_leaves --
-- How many leaves there are of a checkpoint that is not made yet, or of later ones: rightly none.
SELECT count(*)
FROM checkpoint_leaves
WHERE checkpoint >= $1;

-- add_leaves --
-- The leaves of a checkpoint: every account whose version is not the one it was last covered at. Compares
-- all accounts in one snapshot, so it asks no clock and misses no commit, however late that became visible.
INSERT INTO checkpoint_leaves (
    checkpoint, position, shard, account_id, tenant_id, sequence, head_hash, balance, reserved
)
SELECT
    $1, row_number() OVER (ORDER BY a.shard, a.account_id) - 1,
    a.shard, a.account_id, a.tenant_id, a.version, a.head_hash, a.balance, a.reserved
FROM accounts AS a
LEFT JOIN checkpointed_accounts AS c ON c.shard = a.shard AND c.account_id = a.account_id
WHERE c.version IS DISTINCT FROM a.version;

-- leaves --
-- The leaves of a checkpoint in order; read through a cursor.
SELECT tenant_id, account_id, sequence, head_hash, balance, reserved
FROM checkpoint_leaves
WHERE checkpoint = $1
ORDER BY position;

-- mark_accounts --
-- Remembers at which versions a checkpoint covers its accounts.
INSERT INTO checkpointed_accounts AS c (shard, account_id, version)
SELECT l.shard, l.account_id, l.sequence
FROM checkpoint_leaves AS l
WHERE l.checkpoint = $1
ORDER BY l.shard, l.account_id
ON CONFLICT (shard, account_id) DO UPDATE SET version = excluded.version;

-- add_checkpoint --
-- A checkpoint whose leaves are there.
INSERT INTO checkpoints (number, made_at, leaves, root, note) VALUES ($1, $2, $3, $4, $5);

-- checkpoints_after --
-- A page of checkpoints, oldest first.
SELECT number, note
FROM checkpoints
WHERE number > $1
ORDER BY number
LIMIT $2;

-- checkpoint --
-- One checkpoint.
SELECT number, note
FROM checkpoints
WHERE number = $1;

-- published_up_to --
-- The last checkpoint that an HTTP target has taken.
SELECT number
FROM checkpoint_publications
WHERE target = $1;

-- published --
-- An HTTP target has taken a checkpoint.
INSERT INTO checkpoint_publications AS p (target, number)
VALUES ($1, $2)
ON CONFLICT (target) DO UPDATE SET number = excluded.number;

-- take_publication_lock --
-- One at a time publishes to a target; held by the session.
SELECT pg_try_advisory_lock(hashtextextended('tollkeeper.credits.publication.' || encode($1::bytea, 'hex'), 0));

-- release_publication_lock --
-- Lets the next publisher in.
SELECT pg_advisory_unlock(hashtextextended('tollkeeper.credits.publication.' || encode($1::bytea, 'hex'), 0));

-- leaves_beside_ledger --
-- A page of a checkpoint's leaves, each with what the ledger says today about the same account and sequence.
-- $1 checkpoint; $2 first position; $3 limit.
SELECT
    l.position, l.tenant_id, l.account_id, l.sequence, l.head_hash, l.balance, l.reserved,
    a.version AS account_version, a.tenant_id AS account_tenant, t.hash AS transaction_hash,
    t.balance AS transaction_balance, t.reserved AS transaction_reserved
FROM (
    SELECT position, shard, tenant_id, account_id, sequence, head_hash, balance, reserved
    FROM checkpoint_leaves
    WHERE checkpoint = $1 AND position >= $2
    ORDER BY position
    LIMIT $3
) AS l
LEFT JOIN accounts AS a ON a.shard = l.shard AND a.account_id = l.account_id
LEFT JOIN LATERAL (
    SELECT c.hash, c.balance, c.reserved
    FROM ledger_transactions AS c
    WHERE c.shard = l.shard AND c.account_id = l.account_id AND c.sequence = l.sequence
    ORDER BY c.created_at
    LIMIT 1
) AS t ON true
ORDER BY l.position;

-- hash_at --
-- The hash of one transaction.
SELECT hash
FROM ledger_transactions
WHERE shard = $1 AND account_id = $2 AND sequence = $3
ORDER BY created_at
LIMIT 1;

-- covering_leaf --
-- The first leaf of an account at or behind a sequence, and its checkpoint's note.
SELECT l.checkpoint, l.position, l.tenant_id, l.account_id, l.sequence, l.head_hash, l.balance, l.reserved, c.note
FROM checkpoint_leaves AS l
JOIN checkpoints AS c ON c.number = l.checkpoint
WHERE l.shard = $1 AND l.account_id = $2 AND l.sequence >= $3
ORDER BY l.sequence, l.checkpoint
LIMIT 1;
