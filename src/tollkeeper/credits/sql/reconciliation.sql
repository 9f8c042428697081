-- findings --
-- What frozen accounts were frozen for.
SELECT f.account_id, f.faults
FROM unnest($1::account_place[]) AS wanted
JOIN freezes AS f ON f.shard = wanted.shard AND f.account_id = wanted.account_id AND f.lifted_at IS NULL;

-- tails --
-- Where the chains of accounts end, and what their open holds reserve.
SELECT wanted.account_id, t.sequence, t.balance, t.reserved, t.hash, held.held
FROM unnest($1::account_place[]) AS wanted
LEFT JOIN LATERAL (
    SELECT c.sequence, c.balance, c.reserved, c.hash
    FROM credit_transactions AS c
    WHERE c.shard = wanted.shard AND c.account_id = wanted.account_id
    ORDER BY c.sequence DESC, c.created_at DESC
    LIMIT 1
) AS t ON true
CROSS JOIN LATERAL (
    SELECT coalesce(sum(h.amount - h.captured - h.released), 0)::bigint AS held
    FROM holds AS h
    WHERE h.shard = wanted.shard AND h.account_id = wanted.account_id AND h.state = 'open'
) AS held;

-- lift_freeze --
-- Lifts a freeze: transaction, key, account and freeze together.
SELECT lift_freeze($1::written_transaction, $2, $3, $4);

-- open_freezes --
-- A page of frozen accounts, the longest frozen first. $1 behind this number; $2 of this tenant, null: of all.
SELECT
    f.number, f.account_id, a.tenant_id, f.frozen_at, f.version, f.faults, f.evidence, f.evidence_sha256,
    f.evidence_problem
FROM freezes AS f
JOIN accounts AS a ON a.shard = f.shard AND a.account_id = f.account_id
WHERE f.lifted_at IS NULL AND f.number > $1 AND ($2::text IS NULL OR a.tenant_id = $2)
ORDER BY f.number
LIMIT $3;

-- take_reconciliation_lock --
-- One reconciler at a time; held by the session.
SELECT pg_try_advisory_lock(hashtextextended('tollkeeper.credits.reconciliation', 0));

-- release_reconciliation_lock --
-- Lets the next reconciler in.
SELECT pg_advisory_unlock(hashtextextended('tollkeeper.credits.reconciliation', 0));

-- changed_accounts --
-- Accounts behind a place whose row is not what it was when they were last reconciled. Compares all accounts in
-- one snapshot, so it asks no clock and misses no commit.
SELECT a.shard, a.account_id
FROM accounts AS a
LEFT JOIN reconciled_accounts AS r ON r.shard = a.shard AND r.account_id = a.account_id
WHERE a.frozen_at IS NULL
    AND (a.shard, a.account_id) > ($1::smallint, $2::text)
    AND (
        r.sequence IS DISTINCT FROM a.version OR r.balance <> a.balance OR r.reserved <> a.reserved
        OR r.head_hash <> a.head_hash
    )
ORDER BY a.shard, a.account_id
LIMIT $3;

-- accounts_beside_reconciled --
-- Accounts, each with where it was last reconciled. The limits keep these lookups by key: as joins they would
-- be planned as scans of all accounts.
SELECT
    a.account_id, a.tenant_id, a.shard, a.balance, a.reserved, a.version, a.head_hash, a.frozen_at,
    CASE WHEN a.created_at BETWEEN '0001-01-02' AND '9999-12-30' THEN a.created_at ELSE 'infinity' END AS created_at,
    CASE
        WHEN a.next_expiry NOT BETWEEN '0001-01-02' AND '9999-12-30' THEN 'infinity' ELSE a.next_expiry
    END AS next_expiry,
    r.sequence AS reconciled_sequence, r.balance AS reconciled_balance,
    r.reserved AS reconciled_reserved, r.head_hash AS reconciled_hash
FROM unnest($1::account_place[]) AS wanted
CROSS JOIN LATERAL (
    SELECT b.*
    FROM accounts AS b
    WHERE b.shard = wanted.shard AND b.account_id = wanted.account_id
    LIMIT 1
) AS a
LEFT JOIN LATERAL (
    SELECT p.*
    FROM reconciled_accounts AS p
    WHERE p.shard = wanted.shard AND p.account_id = wanted.account_id
    LIMIT 1
) AS r ON true
ORDER BY a.shard, a.account_id;

-- rows_behind --
-- The first transactions of accounts behind a sequence each, at most so many of each account, in the order of the
-- accounts; in the form of `chains`, for a binary COPY.
SELECT
    t.hash, t.shard, t.transaction_id, t.amount, t.balance, t.reserved, t.sequence,
    t.created_at + interval '262968 hours' AS created_us, t.fingerprint, t.account_id, t.kind, t.description,
    sha256(convert_to(t.metadata::text, 'UTF8')) AS metadata_sha256,
    t.reference_id, t.freed,
    CASE WHEN t.expires_at < '200000-01-01 00:00:00+00' THEN t.expires_at + interval '262968 hours' ELSE t.expires_at END
        AS expires_us,
    t.allowance, sha256(convert_to(t.payment::text, 'UTF8')) AS payment_sha256
FROM unnest($1::account_point[]) WITH ORDINALITY AS p (shard, account_id, sequence, most, place)
CROSS JOIN LATERAL (
    SELECT c.*
    FROM credit_transactions AS c
    WHERE c.shard = p.shard AND c.account_id = p.account_id AND c.sequence > p.sequence
    ORDER BY c.sequence, c.created_at
    LIMIT p.most
) AS t
ORDER BY p.place, t.sequence, t.created_at;

-- mark_reconciled --
-- Remembers up to where accounts agree with their transactions.
INSERT INTO reconciled_accounts AS r (shard, account_id, sequence, balance, reserved, head_hash)
SELECT n.shard, n.account_id, n.sequence, n.balance, n.reserved, n.head_hash
FROM unnest($1::reconciled_account[]) AS n
ON CONFLICT (shard, account_id) DO UPDATE
SET
    sequence = excluded.sequence, balance = excluded.balance, reserved = excluded.reserved,
    head_hash = excluded.head_hash;

-- lifted_freezes --
-- What was accepted by lifting freezes of an account: rows up to a sequence, and the faults that were known.
SELECT f.lifted_sequence, f.faults
FROM freezes AS f
WHERE f.shard = $1 AND f.account_id = $2 AND f.lifted_at IS NOT NULL;

-- freeze_account --
-- Freezes an account that is not frozen; returns what it stands at.
UPDATE accounts AS a
SET frozen_at = clock_timestamp()
WHERE a.shard = $1 AND a.account_id = $2 AND a.frozen_at IS NULL
RETURNING
    a.account_id, a.tenant_id, a.shard, a.balance, a.reserved, a.version, a.head_hash, a.frozen_at,
    CASE WHEN a.created_at BETWEEN '0001-01-02' AND '9999-12-30' THEN a.created_at ELSE 'infinity' END AS created_at,
    CASE
        WHEN a.next_expiry NOT BETWEEN '0001-01-02' AND '9999-12-30' THEN 'infinity' ELSE a.next_expiry
    END AS next_expiry;

-- add_freeze --
-- Writes down a freeze. One that is open already stays: somebody thawed the account past its lifting.
INSERT INTO freezes (shard, account_id, frozen_at, version, faults, evidence, evidence_sha256, evidence_problem)
VALUES ($1, $2, $3, $4, $5::text::json, $6, $7, $8)
ON CONFLICT (shard, account_id) WHERE lifted_at IS NULL DO NOTHING;

-- rows_at --
-- The transactions of an account at some sequences, and its last one, as they are stored: as JSON of the server's,
-- which has a text for whatever stands there.
SELECT to_json(t)::text AS stored
FROM credit_transactions AS t
WHERE t.shard = $1 AND t.account_id = $2
    AND t.sequence = ANY(array_append(
        $3::bigint[],
        (SELECT max(m.sequence) FROM credit_transactions AS m WHERE m.shard = $1 AND m.account_id = $2)
    ))
ORDER BY t.sequence, t.created_at;

-- standing --
-- How the accounts stand as a whole: how many are frozen, below zero, and gone since they were reconciled.
SELECT
    (SELECT count(*) FROM freezes WHERE lifted_at IS NULL) AS frozen,
    (SELECT count(*) FROM accounts WHERE balance < 0 OR balance < reserved) AS negative,
    (
        SELECT count(*)
        FROM reconciled_accounts AS r
        LEFT JOIN accounts AS a ON a.shard = r.shard AND a.account_id = r.account_id
        WHERE a.account_id IS NULL
    ) AS vanished;

-- count_frozen --
-- How many freezes are not lifted.
SELECT count(*) FROM freezes WHERE lifted_at IS NULL;

-- accounts_between --
-- Accounts behind a place up to another, in key order.
SELECT account_id
FROM accounts
WHERE (shard, account_id) > ($1::smallint, $2::text) AND (shard, account_id) <= ($3::smallint, $4::text)
ORDER BY shard, account_id;

-- progress --
-- Behind which account the pass over all chains goes on.
SELECT after FROM reconciliation_progress;

-- advance --
-- The pass over all chains has come so far; $2: it has ended.
UPDATE reconciliation_progress SET after = $1, passes = passes + $2::boolean::integer;
