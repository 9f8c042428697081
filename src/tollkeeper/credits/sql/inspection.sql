-- ledger_standing --
-- What all accounts together stand at; sums are numeric, and text for whoever keeps them.
SELECT
    count(*) AS accounts,
    coalesce(sum(version), 0)::bigint AS booked,
    coalesce(sum(balance), 0)::text AS balance,
    coalesce(sum(reserved), 0)::text AS reserved
FROM accounts;

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
JOIN credit_transactions AS t
    ON t.shard = wanted.shard AND t.account_id = wanted.account_id AND t.sequence = wanted.sequence;
