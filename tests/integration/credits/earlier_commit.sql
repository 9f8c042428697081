-- The commit statement of the release before alerts, as it was: it runs beside this one while a release is rolled out.
WITH moved AS (
    UPDATE accounts AS a
    SET
        balance = s.balance, reserved = s.reserved, version = s.version, head_hash = s.head_hash,
        next_expiry = s.next_expiry
    FROM unnest($1::settled_account[]) AS s
    WHERE a.shard = s.shard AND a.account_id = s.account_id AND a.version = s.expected AND a.frozen_at IS NULL
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
