-- commit_with_alerts --
-- `commit`, to the letter, and with it what the batch does to alerts. A statement of its own because few batches do
-- anything to them, and these parts cost a batch of 28 operations a fifteenth of its commit even when they do nothing.
-- $7 thresholds that fired or were armed again; $8 alerts that fired; $9 alerts that end.
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
),
switched AS (
    UPDATE account_alerts AS w
    SET armed = n.armed, last_alert = n.last_alert
    FROM unnest($7::alert_threshold[]) AS n
    WHERE w.shard = n.shard AND w.account_id = n.account_id AND w.threshold = n.threshold
        AND (n.account_id IN (SELECT landed.account_id FROM landed)) IS TRUE
),
fired AS (
    INSERT INTO alerts (
        shard, alert_id, account_id, tenant_id, threshold, hysteresis, available, transaction_id, sequence,
        fired_at, rearmed_at, rearmed_sequence
    )
    SELECT
        n.shard, n.alert_id, n.account_id, n.tenant_id, n.threshold, n.hysteresis, n.available, n.transaction_id,
        n.sequence, $4, CASE WHEN n.rearmed_sequence IS NOT NULL THEN $4 END, n.rearmed_sequence
    FROM unnest($8::fired_alert[]) AS n
    WHERE (n.account_id IN (SELECT landed.account_id FROM landed)) IS TRUE
    ON CONFLICT DO NOTHING
),
ended AS (
    UPDATE alerts AS a
    SET rearmed_at = $4, rearmed_sequence = n.sequence
    FROM unnest($9::ended_alert[]) AS n
    WHERE a.shard = n.shard AND a.alert_id = n.alert_id AND a.rearmed_at IS NULL
        AND (n.account_id IN (SELECT landed.account_id FROM landed)) IS TRUE
)
SELECT account_id FROM landed;

-- thresholds --
-- The thresholds of accounts.
SELECT w.account_id, w.threshold, w.hysteresis, w.armed, w.last_alert
FROM unnest($1::account_place[]) AS wanted
JOIN account_alerts AS w ON w.shard = wanted.shard AND w.account_id = wanted.account_id
ORDER BY w.account_id, w.threshold;

-- account_for_alerts --
-- An account as it stands, its row locked until its thresholds are set, and the database's clock.
SELECT
    account_id, tenant_id, shard, balance, reserved, version, head_hash, created_at, next_expiry, frozen_at, alert_at,
    alert_revision, clock_timestamp() AS now
FROM accounts
WHERE shard = $1 AND account_id = $2
FOR UPDATE;

-- watched_account --
-- One account as it stands, with what alerts need of it.
SELECT
    account_id, tenant_id, shard, balance, reserved, version, head_hash, created_at, next_expiry, frozen_at, alert_at,
    alert_revision
FROM accounts
WHERE shard = $1 AND account_id = $2;

-- shown_thresholds --
-- The thresholds of an account, each with when it last fired.
SELECT w.account_id, w.threshold, w.hysteresis, w.armed, w.last_alert, a.fired_at
FROM account_alerts AS w
LEFT JOIN alerts AS a ON a.shard = w.shard AND a.alert_id = w.last_alert
WHERE w.shard = $1 AND w.account_id = $2
ORDER BY w.threshold;

-- set_thresholds --
-- Puts thresholds in the place of an account's, whose row is locked, with what fires and what ends by that.
-- $1 shard; $2 account; $3 alert_at; $4 revision; $5 the time; $6 thresholds; $7 alerts that fired; $8 alerts that end.
WITH account AS (
    UPDATE accounts
    SET alert_at = $3, alert_revision = $4
    WHERE shard = $1 AND account_id = $2
),
removed AS (
    DELETE FROM account_alerts AS w
    WHERE w.shard = $1 AND w.account_id = $2
        AND NOT EXISTS (SELECT FROM unnest($6::alert_threshold[]) AS n WHERE n.threshold = w.threshold)
),
kept AS (
    INSERT INTO account_alerts AS w (shard, account_id, threshold, hysteresis, armed, last_alert)
    SELECT n.shard, n.account_id, n.threshold, n.hysteresis, n.armed, n.last_alert
    FROM unnest($6::alert_threshold[]) AS n
    ON CONFLICT (shard, account_id, threshold) DO UPDATE
    SET hysteresis = excluded.hysteresis, armed = excluded.armed, last_alert = excluded.last_alert
),
fired AS (
    INSERT INTO alerts (
        shard, alert_id, account_id, tenant_id, threshold, hysteresis, available, transaction_id, sequence, fired_at
    )
    SELECT
        n.shard, n.alert_id, n.account_id, n.tenant_id, n.threshold, n.hysteresis, n.available, n.transaction_id,
        n.sequence, $5
    FROM unnest($7::fired_alert[]) AS n
    ON CONFLICT DO NOTHING
)
UPDATE alerts AS a
SET rearmed_at = $5, rearmed_sequence = n.sequence
FROM unnest($8::ended_alert[]) AS n
WHERE a.shard = n.shard AND a.alert_id = n.alert_id AND a.rearmed_at IS NULL;

-- alerts_of_account --
-- A page of an account's alerts behind an id, oldest first. $1 shard; $2 account; $3 tenant or null; $4 id; $5 state
-- or null; $6 limit. Compared as a row, so that no other index than the account's begins behind the id.
SELECT
    alert_id, account_id, tenant_id, threshold, hysteresis, available, sequence, transaction_id, fired_at, rearmed_at,
    rearmed_sequence, acknowledged_at, acknowledged_by, note
FROM alerts
WHERE shard = $1 AND account_id = $2 AND ($3::text IS NULL OR tenant_id = $3)
    AND (shard, account_id, alert_id) > ($1, $2, $4)
    AND ($5::text IS NULL OR $5 = CASE
        WHEN rearmed_at IS NOT NULL THEN 'rearmed' WHEN acknowledged_at IS NOT NULL THEN 'acknowledged' ELSE 'open'
    END)
ORDER BY alert_id
LIMIT $6;

-- alerts_of_tenant --
-- A page of a tenant's alerts behind an id, oldest first. $1 tenant; $2 id; $3 state or null; $4 limit.
-- Compared as above.
SELECT
    alert_id, account_id, tenant_id, threshold, hysteresis, available, sequence, transaction_id, fired_at, rearmed_at,
    rearmed_sequence, acknowledged_at, acknowledged_by, note
FROM alerts
WHERE tenant_id = $1 AND (tenant_id, alert_id) > ($1, $2)
    AND ($3::text IS NULL OR $3 = CASE
        WHEN rearmed_at IS NOT NULL THEN 'rearmed' WHEN acknowledged_at IS NOT NULL THEN 'acknowledged' ELSE 'open'
    END)
ORDER BY alert_id
LIMIT $4;

-- alerts_standing --
-- A page of the alerts that stand, of everybody, behind an id, oldest first: those that were acknowledged, or those
-- that were not. $1 id; $2 which; $3 limit.
SELECT
    alert_id, account_id, tenant_id, threshold, hysteresis, available, sequence, transaction_id, fired_at, rearmed_at,
    rearmed_sequence, acknowledged_at, acknowledged_by, note
FROM alerts
WHERE rearmed_at IS NULL AND alert_id > $1 AND (acknowledged_at IS NOT NULL) = $2
ORDER BY alert_id
LIMIT $3;

-- alerts_of_all --
-- A page of everybody's alerts behind an id, oldest first; or of those alone that ended. $1 id; $2 which; $3 limit.
SELECT
    alert_id, account_id, tenant_id, threshold, hysteresis, available, sequence, transaction_id, fired_at, rearmed_at,
    rearmed_sequence, acknowledged_at, acknowledged_by, note
FROM alerts
WHERE alert_id > $1 AND (NOT $2 OR rearmed_at IS NOT NULL)
ORDER BY alert_id
LIMIT $3;

-- acknowledge_alert --
-- Notes once who knows of an alert. $1 shard; $2 id; $3 tenant or null; $4 the key's id; $5 note.
UPDATE alerts
SET acknowledged_at = clock_timestamp(), acknowledged_by = $4, note = $5
WHERE shard = $1 AND alert_id = $2 AND ($3::text IS NULL OR tenant_id = $3) AND acknowledged_at IS NULL
RETURNING
    alert_id, account_id, tenant_id, threshold, hysteresis, available, sequence, transaction_id, fired_at, rearmed_at,
    rearmed_sequence, acknowledged_at, acknowledged_by, note;

-- alert --
-- One alert. $1 shard; $2 id; $3 tenant or null.
SELECT
    alert_id, account_id, tenant_id, threshold, hysteresis, available, sequence, transaction_id, fired_at, rearmed_at,
    rearmed_sequence, acknowledged_at, acknowledged_by, note
FROM alerts
WHERE shard = $1 AND alert_id = $2 AND ($3::text IS NULL OR tenant_id = $3);

-- count_open_alerts --
-- How many alerts stand that nobody has acknowledged.
SELECT count(*)
FROM alerts
WHERE rearmed_at IS NULL AND acknowledged_at IS NULL;
