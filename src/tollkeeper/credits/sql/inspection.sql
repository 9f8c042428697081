-- ledger_standing --
-- What all accounts together stand at; sums are numeric, and text for whoever keeps them.
SELECT
    count(*) AS accounts,
    coalesce(sum(version), 0)::bigint AS booked,
    coalesce(sum(balance), 0)::text AS balance,
    coalesce(sum(reserved), 0)::text AS reserved
FROM accounts;

-- has_archive --
-- Whether the schema is one that has an archive: a backup may be older.
SELECT to_regclass('ledger_transactions') IS NOT NULL;

-- stand_in_for_archive --
-- Lets the verifier's statements read a ledger whose schema has no archive yet: names of this session, empty but for
-- the view.
DO $$
BEGIN
    IF to_regclass('ledger_transactions') IS NULL THEN
        CREATE TEMPORARY VIEW ledger_transactions AS
        SELECT
            created_at, sequence, amount, balance, reserved, transaction_id, shard, account_id, kind, fingerprint, hash,
            description, metadata, reference_id, freed, expires_at, allowance, payment
        FROM credit_transactions;
        CREATE TEMPORARY TABLE archived_transactions (LIKE credit_transactions);
        CREATE TEMPORARY TABLE partition_seals (from_time timestamptz, partition text);
        CREATE TEMPORARY TABLE seal_checks (partition text, problem text);
    END IF;
END
$$;

-- ledger_totals --
-- What all transactions together say: the sum is that of the balances.
SELECT
    count(*) AS transactions,
    coalesce(sum(
        CASE
            WHEN kind IN ('topup', 'refund') THEN amount
            WHEN kind IN ('consume', 'capture') THEN -amount
            ELSE 0
        END
    ), 0)::text AS total
FROM ledger_transactions;

-- totals_before_archive --
-- As `ledger_totals`, of a schema that has no archive yet.
SELECT
    count(*) AS transactions,
    coalesce(sum(
        CASE
            WHEN kind IN ('topup', 'refund') THEN amount
            WHEN kind IN ('consume', 'capture') THEN -amount
            ELSE 0
        END
    ), 0)::text AS total
FROM credit_transactions;

-- ledger_heads --
-- Every account with the head of its chain, in order.
SELECT shard, account_id, tenant_id, version, balance, reserved, head_hash
FROM accounts
ORDER BY shard, account_id;

-- negative_accounts --
SELECT account_id FROM accounts WHERE (reserved >= 0 AND balance >= reserved) IS NOT TRUE ORDER BY shard, account_id LIMIT 10;

-- ledger_links --
-- Hash and balance after these transactions.
SELECT wanted.shard, wanted.account_id, wanted.sequence, t.hash, t.balance
FROM unnest($1::smallint[], $2::text[], $3::bigint[]) AS wanted (shard, account_id, sequence)
JOIN ledger_transactions AS t
    ON t.shard = wanted.shard AND t.account_id = wanted.account_id AND t.sequence = wanted.sequence;

-- links_before_archive --
-- As `ledger_links`, of a schema that has no archive yet.
SELECT wanted.shard, wanted.account_id, wanted.sequence, t.hash, t.balance
FROM unnest($1::smallint[], $2::text[], $3::bigint[]) AS wanted (shard, account_id, sequence)
JOIN credit_transactions AS t
    ON t.shard = wanted.shard AND t.account_id = wanted.account_id AND t.sequence = wanted.sequence;
