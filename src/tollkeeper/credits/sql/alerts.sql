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
