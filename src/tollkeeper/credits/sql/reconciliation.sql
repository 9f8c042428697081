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
    FROM ledger_transactions AS c
    WHERE c.shard = wanted.shard AND c.account_id = wanted.account_id
    ORDER BY c.sequence DESC, c.created_at DESC
    LIMIT 1
) AS t ON true
CROSS JOIN LATERAL (
    -- As text: no value that somebody wrote makes it fail.
    SELECT coalesce(sum(h.amount::numeric - h.captured - h.released), 0)::text AS held
    FROM holds AS h
    WHERE h.shard = wanted.shard AND h.account_id = wanted.account_id AND h.state = 'open'
) AS held;

-- lift_freeze --
-- Lifts a freeze: transaction, key, account and freeze together.
SELECT lift_freeze($1::written_transaction, $2, $3, $4);

-- open_freezes --
-- A page of frozen accounts, the longest frozen first: also those whose row is gone since. $1 behind this number;
-- $2 of this tenant, null: of all.
SELECT
    f.number, f.account_id, a.tenant_id, least(greatest(f.frozen_at, '0001-01-02'), '9999-12-30') AS frozen_at,
    f.version, f.faults, f.evidence, f.evidence_sha256, f.evidence_problem
FROM freezes AS f
LEFT JOIN accounts AS a ON a.shard = f.shard AND a.account_id = f.account_id
WHERE f.lifted_at IS NULL AND f.number > $1
    AND (a.account_id IS NULL OR a.frozen_at IS NOT NULL)
    AND ($2::text IS NULL OR a.tenant_id = $2)
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
    AND (a.shard, a.account_id) > ($1::integer, $2::text)
    AND (
        r.sequence IS DISTINCT FROM a.version OR r.balance IS DISTINCT FROM a.balance
        OR r.reserved IS DISTINCT FROM a.reserved OR r.head_hash IS DISTINCT FROM a.head_hash
    )
ORDER BY a.shard, a.account_id
LIMIT $3;

-- accounts_beside_reconciled --
-- Accounts, each with where it was last reconciled. What is null or no time comes as a value that no account has, as
-- in `accounts_of`: whoever wrote it must not keep anybody from reading the others. The limits keep these lookups
-- by key: as joins they would be planned as scans of all accounts.
SELECT
    a.account_id, a.shard,
    coalesce(a.tenant_id, '') AS tenant_id,
    coalesce(a.balance, -9223372036854775808) AS balance,
    coalesce(a.reserved, -9223372036854775808) AS reserved,
    coalesce(a.version, -9223372036854775808) AS version,
    coalesce(a.head_hash, '') AS head_hash,
    CASE WHEN a.created_at BETWEEN '0001-01-02' AND '9999-12-30' THEN a.created_at ELSE 'infinity' END AS created_at,
    CASE
        WHEN a.next_expiry NOT BETWEEN '0001-01-02' AND '9999-12-30' THEN 'infinity' ELSE a.next_expiry
    END AS next_expiry,
    CASE WHEN a.frozen_at NOT BETWEEN '0001-01-02' AND '9999-12-30' THEN 'infinity' ELSE a.frozen_at END AS frozen_at,
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
    CASE WHEN t.created_at < '200000-01-01 00:00:00+00' THEN t.created_at + interval '262968 hours' ELSE t.created_at END
        AS created_us,
    t.fingerprint, t.account_id, t.kind, t.description,
    sha256(convert_to(t.metadata::text, 'UTF8')) AS metadata_sha256,
    t.reference_id, t.freed,
    CASE WHEN t.expires_at < '200000-01-01 00:00:00+00' THEN t.expires_at + interval '262968 hours' ELSE t.expires_at END
        AS expires_us,
    t.allowance, sha256(convert_to(t.payment::text, 'UTF8')) AS payment_sha256
FROM unnest($1::account_point[]) WITH ORDINALITY AS p (shard, account_id, sequence, most, place)
CROSS JOIN LATERAL (
    SELECT c.*
    FROM ledger_transactions AS c
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

-- drop_point --
-- Forgets where an account was reconciled.
DELETE FROM reconciled_accounts WHERE shard = $1 AND account_id = $2;

-- row_at_point --
-- The row of an account's chain at a sequence.
SELECT hash, balance, reserved
FROM ledger_transactions
WHERE shard = $1 AND account_id = $2 AND sequence = $3
ORDER BY created_at DESC
LIMIT 1;

-- remember_vanished --
-- Remembers an account that has transactions and is not there, as if it had been reconciled: `standing` counts it.
INSERT INTO reconciled_accounts (shard, account_id, sequence, balance, reserved, head_hash)
SELECT $1, $2, 0, 0, 0, ''
WHERE EXISTS (SELECT FROM ledger_transactions WHERE shard = $1 AND account_id = $2)
    AND NOT EXISTS (SELECT FROM accounts WHERE shard = $1 AND account_id = $2)
ON CONFLICT (shard, account_id) DO NOTHING;

-- values_found --
-- What stands where faults were found, as digests: of rows at sequences $3, each with the row before it, which its
-- hash and its balance hang on; of holds and refunds $4, each with the transactions about it.
WITH said AS (
    SELECT coalesce(reference_id, transaction_id) AS row_id, string_agg(hash, '' ORDER BY sequence, created_at) AS hashes
    FROM ledger_transactions
    WHERE shard = $1 AND account_id = $2 AND (reference_id = ANY($4::uuid[]) OR transaction_id = ANY($4::uuid[]))
    GROUP BY 1
)

SELECT wanted.sequence, NULL AS row_id, sha256(rows.digests) AS digest
FROM unnest($3::bigint[]) AS wanted (sequence)
CROSS JOIN LATERAL (
    SELECT coalesce(max(b.sequence), wanted.sequence) AS sequence
    FROM ledger_transactions AS b
    WHERE b.shard = $1 AND b.account_id = $2 AND b.sequence < wanted.sequence
) AS before
CROSS JOIN LATERAL (
    SELECT
        string_agg(
            sha256(record_send(ROW(
                t.created_at, t.sequence, t.amount, t.balance, t.reserved, t.transaction_id, t.kind, t.fingerprint, t.hash,
                t.description, t.metadata, t.reference_id, t.freed, t.expires_at, t.allowance, t.payment
            ))),
            '' ORDER BY t.sequence, t.created_at
        ) AS digests
    FROM ledger_transactions AS t
    WHERE t.shard = $1 AND t.account_id = $2 AND t.sequence BETWEEN before.sequence AND wanted.sequence
) AS rows
UNION ALL
SELECT
    0,
    wanted.row_id,
    sha256(
        coalesce(
            (
                SELECT record_send(ROW(
                    h.hold_id, h.created_at, h.expires_at, h.amount, h.captured, h.released, h.allowance, h.overrun,
                    h.state, h.account_id
                ))
                FROM holds AS h
                WHERE h.shard = $1 AND h.hold_id = wanted.row_id
            ),
            ''
        )
        || coalesce(
            (
                SELECT record_send(ROW(r.transaction_id, r.taken, r.refunded, r.account_id))
                FROM refunds AS r
                WHERE r.shard = $1 AND r.transaction_id = wanted.row_id
            ),
            ''
        )
        || coalesce((SELECT s.hashes FROM said AS s WHERE s.row_id = wanted.row_id), '')
    )
FROM unnest($4::uuid[]) AS wanted (row_id);

-- accepted --
-- What was accepted by lifting freezes of an account: as far as the rows that lifted them stand in its chain.
SELECT DISTINCT found.digest
FROM freezes AS f
CROSS JOIN LATERAL (
    SELECT
    FROM ledger_transactions AS t
    WHERE t.shard = f.shard AND t.account_id = f.account_id AND t.sequence = f.lifted_sequence AND t.kind = 'unfreeze'
    LIMIT 1
) AS lifting
CROSS JOIN LATERAL unnest(f.found) AS found (digest)
WHERE f.shard = $1 AND f.account_id = $2 AND f.lifted_at IS NOT NULL;

-- freeze_account --
-- Freezes an account that is not frozen, whatever its columns hold; returns it as it is stored: as JSON of the
-- server's.
UPDATE accounts AS a
SET frozen_at = clock_timestamp()
WHERE a.shard = $1 AND a.account_id = $2 AND a.frozen_at IS NULL
RETURNING
    coalesce(a.tenant_id, '') AS tenant_id, coalesce(a.version, -9223372036854775808) AS version, a.frozen_at,
    to_json(a)::text AS stored;

-- close_freeze --
-- Closes the open freeze of an account that is not frozen. Nothing in its chain lifted it: nothing is accepted.
UPDATE freezes
SET lifted_at = clock_timestamp(), lifted_sequence = 0, reason = 'thawed in the database'
WHERE shard = $1 AND account_id = $2 AND lifted_at IS NULL;

-- add_freeze --
-- Writes down a freeze.
INSERT INTO freezes (
    shard, account_id, frozen_at, version, faults, found, evidence, evidence_sha256, evidence_problem
)
VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7, $8, $9);

-- close_thawed --
-- As `close_freeze`, for all accounts that are not frozen; also for those that were where no account belongs.
UPDATE freezes AS f
SET lifted_at = clock_timestamp(), lifted_sequence = 0, reason = 'thawed in the database'
WHERE f.lifted_at IS NULL
    AND NOT EXISTS (
        SELECT
        FROM accounts AS a
        WHERE a.shard = f.shard AND a.account_id = f.account_id AND a.frozen_at IS NOT NULL
    )
    AND (
        f.shard <> get_byte(sha256(convert_to(f.account_id, 'UTF8')), 0)
        OR EXISTS (SELECT FROM accounts AS a WHERE a.shard = f.shard AND a.account_id = f.account_id)
    );

-- adopt_frozen --
-- Writes down freezes of accounts that somebody froze in the database, so that they are listed and can be lifted; gives
-- a moment to those that are frozen since one that no calendar has.
WITH adopted AS (
    UPDATE accounts AS a
    SET frozen_at = clock_timestamp()
    WHERE a.frozen_at IS NOT NULL
        AND (
            a.frozen_at NOT BETWEEN '0001-01-02' AND '9999-12-30'
            OR NOT EXISTS (
                SELECT
                FROM freezes AS f
                WHERE f.shard = a.shard AND f.account_id = a.account_id AND f.lifted_at IS NULL
            )
        )
    RETURNING a.shard, a.account_id, coalesce(a.version, -9223372036854775808) AS version, a.frozen_at
)

INSERT INTO freezes (shard, account_id, frozen_at, version, faults, evidence_problem)
SELECT shard, account_id, frozen_at, version, '[]', 'frozen in the database, not by reconciliation'
FROM adopted
ON CONFLICT (shard, account_id) WHERE lifted_at IS NULL DO NOTHING;

-- rows_at --
-- The transactions of an account at some sequences, and its last one, as they are stored: as JSON of the server's,
-- which has a text for whatever stands there.
SELECT to_json(t)::text AS stored
FROM ledger_transactions AS t
WHERE t.shard = $1 AND t.account_id = $2
    AND t.sequence = ANY(array_append(
        $3::bigint[],
        (SELECT max(m.sequence) FROM ledger_transactions AS m WHERE m.shard = $1 AND m.account_id = $2)
    ))
ORDER BY t.sequence, t.created_at;

-- standing --
-- How the accounts stand as a whole: how many are frozen, below zero, and gone since they were reconciled.
SELECT
    count(*) FILTER (WHERE a.frozen_at IS NOT NULL) AS frozen,
    count(*) FILTER (WHERE a.balance < 0 OR a.balance < a.reserved) AS negative,
    (
        SELECT count(*)
        FROM reconciled_accounts AS r
        LEFT JOIN accounts AS b ON b.shard = r.shard AND b.account_id = r.account_id
        WHERE b.account_id IS NULL
    ) AS vanished
FROM accounts AS a;

-- count_frozen --
-- How many accounts are frozen.
SELECT count(*) FROM accounts WHERE frozen_at IS NOT NULL;

-- accounts_between --
-- The first accounts behind a place up to another, in key order.
SELECT shard, account_id
FROM accounts
WHERE (shard, account_id) > ($1::integer, $2::text) AND (shard, account_id) <= ($3::integer, $4::text)
ORDER BY shard, account_id
LIMIT $5;

-- places_of --
-- Where accounts of these names are, whether they belong there or not.
SELECT shard, account_id
FROM accounts
WHERE account_id = ANY($1::text[]);

-- progress --
-- Behind which account the pass over all chains goes on.
SELECT after FROM reconciliation_progress;

-- advance --
-- The pass over all chains has come so far; $2: it has ended. Makes the row again if somebody took it away.
INSERT INTO reconciliation_progress AS p (after, passes)
VALUES ($1, $2::boolean::integer)
ON CONFLICT (is_only_row) DO UPDATE SET after = excluded.after, passes = p.passes + excluded.passes;
