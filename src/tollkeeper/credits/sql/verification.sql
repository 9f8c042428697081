-- unhurried --
-- Takes the time limit from the statements of this unit of work: one chain may have millions of rows.
SELECT set_config('statement_timeout', '0', true);

-- accounts_of --
-- The first accounts of a stretch in key order, its bounds as in `chains`; of one tenant, if $6 names it. What
-- the client could not read comes as what no account has: whoever wrote it must not keep anybody from reading the
-- others. A number that is missing is the smallest there is, a text empty, a time that no calendar has infinite.
SELECT
    account_id, shard,
    coalesce(tenant_id, '') AS tenant_id,
    coalesce(balance, -9223372036854775808) AS balance,
    coalesce(reserved, -9223372036854775808) AS reserved,
    coalesce(version, -9223372036854775808) AS version,
    coalesce(head_hash, '') AS head_hash,
    CASE WHEN created_at BETWEEN '0001-01-02' AND '9999-12-30' THEN created_at ELSE 'infinity' END AS created_at,
    CASE WHEN next_expiry NOT BETWEEN '0001-01-02' AND '9999-12-30' THEN 'infinity' ELSE next_expiry END AS next_expiry,
    CASE WHEN frozen_at NOT BETWEEN '0001-01-02' AND '9999-12-30' THEN 'infinity' ELSE frozen_at END AS frozen_at
FROM accounts
WHERE (shard, account_id, 0::bigint) > ($1::integer, $2::text, $3::bigint)
    AND (shard, account_id) <= ($4::integer, $5::text)
    AND ($6::text IS NULL OR tenant_id = $6)
ORDER BY shard, account_id
LIMIT $7;

-- chains --
-- Rows of chains in key order, for a binary COPY: the stored hash, the shard, then the canonical fields in
-- the chain's order, so that what is hashed is a slice of the stream. Behind $1, $2, $3 (shard, account,
-- sequence), up to the account $4, $5; shards are integers here, so that a place can be behind every smallint.
-- COPY counts microseconds from 2000, the chain from 1970: 262,968 hours. No sum leaves the calendar, whatever
-- stands in the row.
SELECT
    hash, shard, transaction_id, amount, balance, reserved, sequence,
    CASE WHEN created_at < '200000-01-01 00:00:00+00' THEN created_at + interval '262968 hours' ELSE created_at END
        AS created_us,
    fingerprint, account_id, kind, description,
    sha256(convert_to(metadata::text, 'UTF8')) AS metadata_sha256,
    reference_id, freed,
    CASE WHEN expires_at < '200000-01-01 00:00:00+00' THEN expires_at + interval '262968 hours' ELSE expires_at END
        AS expires_us,
    allowance, sha256(convert_to(payment::text, 'UTF8')) AS payment_sha256
FROM ledger_transactions
WHERE (shard, account_id, sequence) > ($1::integer, $2::text, $3::bigint)
    AND (shard, account_id) <= ($4::integer, $5::text)
ORDER BY shard, account_id, sequence, created_at;

-- has_side_rows --
-- Whether there are holds or refunds in a stretch of accounts; its bounds as in `chains`.
SELECT
    EXISTS (
        SELECT
        FROM holds
        WHERE (shard, account_id, 0::bigint) > ($1::integer, $2::text, $3::bigint)
            AND (shard, account_id) <= ($4::integer, $5::text)
    )
    OR EXISTS (
        SELECT
        FROM refunds
        WHERE (shard, account_id, 0::bigint) > ($1::integer, $2::text, $3::bigint)
            AND (shard, account_id) <= ($4::integer, $5::text)
    );

-- wrong_holds --
-- What the holds of a stretch say of themselves and what its transactions say of them, where these differ, or
-- where the transactions themselves took more than the hold allows (`is_beyond`); one row for each hold that is
-- wrong, missing or surplus. Sums are numeric: no value makes them fail.
SELECT
    coalesce(said.account_id, h.account_id) AS account_id,
    coalesce(h.hold_id, said.hold_id) AS hold_id,
    (said.gone <= said.amount AND said.overrun <= said.allowance) IS FALSE AS is_beyond
FROM (
    SELECT
        shard, account_id, hold_id, amount, captured, released, allowance, overrun, created_at, expires_at, state
    FROM holds
    WHERE (shard, account_id, 0::bigint) > ($1::integer, $2::text, $3::bigint)
        AND (shard, account_id) <= ($4::integer, $5::text)
) AS h
FULL JOIN (
    SELECT
        shard,
        account_id,
        coalesce(reference_id, transaction_id) AS hold_id,
        sum(amount) FILTER (WHERE kind IN ('hold', 'extend')) AS amount,
        coalesce(sum(freed), 0) AS gone,
        -- What a capture takes above what it frees came out of the allowance.
        coalesce(sum(least(amount, freed)) FILTER (WHERE kind = 'capture'), 0) AS captured,
        coalesce(sum(amount) FILTER (WHERE kind = 'capture'), 0)
        - coalesce(sum(least(amount, freed)) FILTER (WHERE kind = 'capture'), 0) AS overrun,
        max(allowance) AS allowance,
        max(created_at) FILTER (WHERE kind = 'hold') AS created_at,
        max(expires_at) FILTER (WHERE kind = 'hold') AS expires_at,
        max(sequence) FILTER (WHERE kind = 'extend') AS extended,
        bool_or(kind = 'expire') AS is_expired
    FROM ledger_transactions
    WHERE (shard, account_id, 0::bigint) > ($1::integer, $2::text, $3::bigint)
        AND (shard, account_id) <= ($4::integer, $5::text)
        AND kind IN ('hold', 'capture', 'release', 'extend', 'expire')
    GROUP BY 1, 2, 3
) AS said ON said.hold_id = h.hold_id AND said.shard = h.shard
WHERE (said.gone <= said.amount AND said.overrun <= said.allowance) IS NOT TRUE
    OR (
        h.account_id, h.amount, h.captured, h.released, h.allowance, h.overrun, h.created_at, h.expires_at, h.state
    ) IS DISTINCT FROM (
        said.account_id, said.amount, said.captured, said.gone - said.captured, said.allowance, said.overrun,
        said.created_at,
        CASE
            WHEN said.extended IS NULL THEN said.expires_at
            ELSE (
                SELECT max(e.expires_at)
                FROM ledger_transactions AS e
                WHERE e.shard = h.shard AND e.account_id = h.account_id AND e.sequence = said.extended
            )
        END,
        CASE WHEN said.is_expired THEN 'expired' WHEN said.gone = said.amount THEN 'settled' ELSE 'open' END
    )
ORDER BY 1, 2
LIMIT $6;

-- wrong_expiries --
-- Accounts of a stretch of which an open hold expires before the account expects it.
SELECT a.account_id
FROM (
    SELECT shard, account_id, min(expires_at) AS expires_at
    FROM holds
    WHERE state = 'open'
        AND (shard, account_id, 0::bigint) > ($1::integer, $2::text, $3::bigint)
        AND (shard, account_id) <= ($4::integer, $5::text)
    GROUP BY 1, 2
) AS h
JOIN accounts AS a ON a.shard = h.shard AND a.account_id = h.account_id
WHERE (a.next_expiry <= h.expires_at) IS NOT TRUE
ORDER BY 1
LIMIT $6;

-- wrong_refunds --
-- As `wrong_holds` for refunds: the refunded transactions whose sums differ from the refunds' own, or of which
-- more was given back than they took (`is_beyond`): nothing but consumptions and captures takes.
SELECT
    coalesce(said.account_id, r.account_id) AS account_id,
    coalesce(r.transaction_id, said.reference_id) AS transaction_id,
    (said.refunded <= coalesce(said.taken, 0)) IS FALSE AS is_beyond
FROM (
    SELECT shard, account_id, transaction_id, taken, refunded
    FROM refunds
    WHERE (shard, account_id, 0::bigint) > ($1::integer, $2::text, $3::bigint)
        AND (shard, account_id) <= ($4::integer, $5::text)
) AS r
FULL JOIN (
    SELECT given.shard, given.account_id, given.reference_id, max(taken.amount) AS taken, given.refunded
    FROM (
        SELECT shard, account_id, reference_id, sum(amount) AS refunded
        FROM ledger_transactions
        WHERE (shard, account_id, 0::bigint) > ($1::integer, $2::text, $3::bigint)
            AND (shard, account_id) <= ($4::integer, $5::text)
            AND kind = 'refund'
        GROUP BY 1, 2, 3
    ) AS given
    LEFT JOIN ledger_transactions AS taken
        ON taken.transaction_id = given.reference_id AND taken.shard = given.shard
        AND taken.account_id = given.account_id AND taken.kind IN ('consume', 'capture')
    GROUP BY given.shard, given.account_id, given.reference_id, given.refunded
) AS said ON said.reference_id = r.transaction_id AND said.shard = r.shard
WHERE (said.refunded <= said.taken) IS NOT TRUE
    OR (r.account_id, r.taken, r.refunded) IS DISTINCT FROM (said.account_id, said.taken, said.refunded)
ORDER BY 1, 2
LIMIT $6;

-- partition_gaps --
-- Stretches of time without a partition for transactions, from the first account to now; as text in UTC, which
-- there is for whatever time an account has.
WITH partitions AS (
    SELECT
        (regexp_match(bounds.text, $$FROM \('([^']+)'\)$$))[1]::timestamptz AS from_time,
        (regexp_match(bounds.text, $$TO \('([^']+)'\)$$))[1]::timestamptz AS to_time
    FROM pg_inherits AS i
    JOIN pg_class AS c ON c.oid = i.inhrelid
    CROSS JOIN LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) AS text) AS bounds
    WHERE i.inhparent IN ('credit_transactions'::regclass, 'archived_transactions'::regclass) AND NOT i.inhdetachpending
),
life AS (
    SELECT min(created_at) AS first_account, now() AS today FROM accounts
),
edges AS (
    SELECT lag(to_time, 1, '-infinity') OVER (ORDER BY from_time) AS gap_from, from_time AS gap_to
    FROM partitions
    UNION ALL
    SELECT coalesce(max(to_time), '-infinity'), 'infinity'
    FROM partitions
),
gaps AS (
    SELECT greatest(e.gap_from, l.first_account) AS gap_from, least(e.gap_to, l.today) AS gap_to
    FROM edges AS e
    CROSS JOIN life AS l
)
SELECT (gap_from AT TIME ZONE 'UTC')::text AS gap_from, (gap_to AT TIME ZONE 'UTC')::text AS gap_to
FROM gaps
WHERE gap_from < gap_to
ORDER BY gaps.gap_from;
