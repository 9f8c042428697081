-- take_usage_lock --
-- One roller at a time; held by the session.
SELECT pg_try_advisory_lock(hashtextextended('tollkeeper.credits.usage', 0));

-- release_usage_lock --
-- Lets the next roller in.
SELECT pg_advisory_unlock(hashtextextended('tollkeeper.credits.usage', 0));

-- accounts_to_roll --
-- Accounts behind a place that have transactions which are not rolled up, in key order. Compares all accounts in one
-- snapshot, so it asks no clock and misses no commit.
SELECT a.shard, a.account_id
FROM accounts AS a
LEFT JOIN rolled_accounts AS r ON r.shard = a.shard AND r.account_id = a.account_id
WHERE a.version > coalesce(r.sequence, 0) AND (a.shard, a.account_id) > ($1::integer, $2::text)
ORDER BY a.shard, a.account_id
LIMIT $3;

-- roll_up --
-- Rolls up what is new of accounts ($1, in key order), at most $2 transactions together. Each account's progress is
-- compared and swapped, and its rollups follow: both or none, whoever else rolls up. An account that lacks one of the
-- rows, or has one too many, is left alone: its usage is then counted from its rows.
WITH wanted AS MATERIALIZED (
    SELECT
        a.shard, a.account_id, a.version, coalesce(r.sequence, 0) AS sequence,
        sum(a.version - coalesce(r.sequence, 0)) OVER (ORDER BY a.shard, a.account_id)
        - (a.version - coalesce(r.sequence, 0)) AS before
    FROM unnest($1::account_place[]) AS w
    JOIN accounts AS a ON a.shard = w.shard AND a.account_id = w.account_id
    LEFT JOIN rolled_accounts AS r ON r.shard = a.shard AND r.account_id = a.account_id
    WHERE a.version > coalesce(r.sequence, 0)
),
taken AS MATERIALIZED (
    SELECT
        shard, account_id, version, sequence,
        sequence + least(version - sequence, $2::bigint - before)::bigint AS upto
    FROM wanted
    WHERE before < $2::bigint
),
sums AS MATERIALIZED (
    SELECT
        t.shard, t.account_id, date_bin('15 minutes', t.created_at, timestamptz '2000-01-01T00:00:00Z') AS begins_at,
        t.feature, sum(t.consumed) AS consumed, sum(t.purchased) AS purchased, sum(t.refunded) AS refunded,
        sum(t.consumptions) AS consumptions, count(*) AS transactions, max(t.balance) AS peak_balance
    FROM taken AS k
    CROSS JOIN LATERAL (
        SELECT r.*
        FROM usage_rows AS r
        WHERE r.shard = k.shard AND r.account_id = k.account_id AND r.sequence > k.sequence AND r.sequence <= k.upto
    ) AS t
    GROUP BY 1, 2, 3, 4
),
whole AS MATERIALIZED (
    SELECT k.shard, k.account_id, k.sequence, k.upto
    FROM taken AS k
    JOIN (
        SELECT shard, account_id, sum(transactions) AS found
        FROM sums
        GROUP BY shard, account_id
    ) AS s ON s.shard = k.shard AND s.account_id = k.account_id
    WHERE s.found = k.upto - k.sequence
),
moved AS (
    UPDATE rolled_accounts AS r
    SET sequence = w.upto
    FROM whole AS w
    WHERE r.shard = w.shard AND r.account_id = w.account_id AND r.sequence = w.sequence
    RETURNING r.shard, r.account_id
),
begun AS (
    INSERT INTO rolled_accounts (shard, account_id, sequence)
    SELECT shard, account_id, upto FROM whole WHERE sequence = 0
    ON CONFLICT DO NOTHING
    RETURNING shard, account_id
),
landed AS MATERIALIZED (
    SELECT shard, account_id FROM moved
    UNION ALL
    SELECT shard, account_id FROM begun
),
written AS (
    INSERT INTO usage_rollups AS u (
        shard, account_id, begins_at, feature, consumed, purchased, refunded, consumptions, transactions, peak_balance
    )
    SELECT
        s.shard, s.account_id, s.begins_at, s.feature, s.consumed, s.purchased, s.refunded, s.consumptions,
        s.transactions, s.peak_balance
    FROM sums AS s
    JOIN landed AS l ON l.shard = s.shard AND l.account_id = s.account_id
    ON CONFLICT (shard, account_id, begins_at, feature) DO UPDATE
    SET
        consumed = u.consumed + excluded.consumed, purchased = u.purchased + excluded.purchased,
        refunded = u.refunded + excluded.refunded, consumptions = u.consumptions + excluded.consumptions,
        transactions = u.transactions + excluded.transactions,
        peak_balance = greatest(u.peak_balance, excluded.peak_balance)
)
SELECT
    k.shard, k.account_id, k.upto - k.sequence AS transactions, k.upto < k.version AS has_more,
    l.account_id IS NOT NULL AS has_landed
FROM taken AS k
LEFT JOIN landed AS l ON l.shard = k.shard AND l.account_id = k.account_id
ORDER BY k.shard, k.account_id;

-- has_accounts --
-- Whether a tenant has an account.
SELECT EXISTS (SELECT FROM accounts WHERE tenant_id = $1);

-- usage --
-- Usage of an account ($1, $2) or of a tenant's accounts ($3) from $4 until before $5: rollups, and the rows that are
-- not rolled up, in one snapshot. By feature ($7), or by the buckets between the moments $6; those behind the bucket
-- $8 and the feature $9, at most $10 rows. The first row is the sum of all.
WITH members AS MATERIALIZED (
    SELECT a.shard, a.account_id, a.version, coalesce(r.sequence, 0) AS sequence
    FROM (
        SELECT shard, account_id, version FROM accounts WHERE shard = $1::smallint AND account_id = $2::text
        UNION ALL
        SELECT shard, account_id, version FROM accounts WHERE tenant_id = $3::text
    ) AS a
    LEFT JOIN rolled_accounts AS r ON r.shard = a.shard AND r.account_id = a.account_id
),
parts AS (
    SELECT
        CASE WHEN $7::boolean THEN 0 ELSE width_bucket(u.begins_at, $6::timestamptz[]) END AS bucket,
        CASE WHEN $7::boolean THEN u.feature ELSE '' END COLLATE "C" AS feature,
        u.consumed, u.purchased, u.refunded, u.consumptions, u.transactions, u.peak_balance
    FROM members AS m
    JOIN usage_rollups AS u
        ON u.shard = m.shard AND u.account_id = m.account_id AND u.begins_at >= $4 AND u.begins_at < $5
    UNION ALL
    SELECT
        CASE WHEN $7::boolean THEN 0 ELSE width_bucket(t.created_at, $6::timestamptz[]) END,
        CASE WHEN $7::boolean THEN t.feature ELSE '' END COLLATE "C",
        t.consumed, t.purchased, t.refunded, t.consumptions, 1, t.balance
    FROM members AS m
    JOIN usage_rows AS t
        ON t.shard = m.shard AND t.account_id = m.account_id AND t.sequence > m.sequence
        AND t.created_at >= $4 AND t.created_at < $5
    WHERE m.version > m.sequence
)
SELECT
    bucket, feature, grouping(bucket) = 1 AS is_total, coalesce(sum(consumed), 0) AS consumed,
    coalesce(sum(purchased), 0) AS purchased, coalesce(sum(refunded), 0) AS refunded,
    coalesce(sum(consumptions), 0)::bigint AS consumptions, coalesce(sum(transactions), 0)::bigint AS transactions,
    max(peak_balance) AS peak_balance
FROM parts
GROUP BY GROUPING SETS ((bucket, feature), ())
HAVING grouping(bucket) = 1 OR (bucket, feature) > ($8::integer, $9::text)
ORDER BY grouping(bucket) DESC, bucket, feature
LIMIT $10;
