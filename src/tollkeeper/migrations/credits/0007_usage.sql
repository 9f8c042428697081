-- up
-- Usage: what was consumed, purchased and refunded, in quarters of an hour.
--
-- The worker rolls transactions up behind the writes; no commit does more than before. What is rolled up and
-- what is not yet are added where usage is asked for, in one snapshot: an answer equals a scan of the rows.

SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

-- Of quarters of an hour and not of hours: every time zone of today is whole quarters from UTC (India is 5:30,
-- Nepal 5:45), so days and months of all of them are sums of these rows.
-- Sums are numeric: an account may take in and spend 2^63-1 more than once in a quarter of an hour.
CREATE TABLE usage_rollups (
    begins_at timestamptz NOT NULL,
    consumptions bigint NOT NULL,
    transactions bigint NOT NULL,
    peak_balance bigint NOT NULL,
    shard smallint NOT NULL,
    account_id text COLLATE "C" NOT NULL,
    feature text COLLATE "C" NOT NULL,
    consumed numeric NOT NULL,
    purchased numeric NOT NULL,
    refunded numeric NOT NULL,
    PRIMARY KEY (shard, account_id, begins_at, feature),
    CONSTRAINT usage_rollups_counts CHECK (transactions >= 1 AND consumptions BETWEEN 0 AND transactions)
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.05);

COMMENT ON COLUMN usage_rollups.feature IS 'what the credits were spent on; empty: not said';
COMMENT ON COLUMN usage_rollups.peak_balance IS 'highest balance after one of the transactions';

-- Up to which transaction each account is rolled up: by sequence, so that no clock is trusted. Changed in the
-- same statement as the rollups.
CREATE TABLE rolled_accounts (
    sequence bigint NOT NULL,
    shard smallint NOT NULL,
    account_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, account_id),
    CONSTRAINT rolled_accounts_sequence CHECK (sequence >= 1)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- The feature that metadata names; null: none, or one that cannot be. The first test keeps out what JSON may
-- write and text cannot hold: whoever wrote it must not keep anybody from reading the other rows. A backslash that
-- is one (C:\udata) is written as two, and begins nothing.
CREATE FUNCTION usage_feature(metadata json) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT CASE
        WHEN replace(metadata::text, '\\', '') ~ '\\u(0000|[dD][89a-fA-F])' THEN NULL
        WHEN json_typeof(metadata -> 'feature') <> 'string' THEN NULL
        WHEN char_length(metadata ->> 'feature') > 128 THEN NULL
        ELSE metadata ->> 'feature'
    END
$$;

-- The millisecond in which a UUIDv7 was minted. An id begins with the time of its row: this leaves one partition.
CREATE FUNCTION uuid7_moment(id uuid) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT timestamptz 'epoch'
        + ('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint * interval '1 millisecond'
$$;

-- Transactions as usage counts them. A capture without a feature has its hold's, a refund that of what it gives
-- back.
CREATE VIEW usage_rows AS
SELECT
    t.shard,
    t.account_id,
    t.sequence,
    t.created_at,
    t.balance,
    CASE WHEN t.kind IN ('consume', 'capture') THEN t.amount ELSE 0 END AS consumed,
    CASE WHEN t.kind = 'topup' THEN t.amount ELSE 0 END AS purchased,
    CASE WHEN t.kind = 'refund' THEN t.amount ELSE 0 END AS refunded,
    CASE WHEN t.kind IN ('consume', 'capture') THEN 1 ELSE 0 END AS consumptions,
    coalesce(
        usage_feature(t.metadata),
        CASE
            WHEN t.kind IN ('capture', 'refund') THEN (
                SELECT
                    coalesce(
                        usage_feature(about.metadata),
                        CASE
                            WHEN about.kind = 'capture' THEN (
                                SELECT usage_feature(hold.metadata)
                                FROM credit_transactions AS hold
                                WHERE hold.transaction_id = about.reference_id AND hold.account_id = about.account_id
                                    AND hold.created_at >= uuid7_moment(about.reference_id)
                                    AND hold.created_at < uuid7_moment(about.reference_id) + interval '1 millisecond'
                                LIMIT 1
                            )
                        END
                    )
                FROM credit_transactions AS about
                WHERE about.transaction_id = t.reference_id AND about.account_id = t.account_id
                    AND about.created_at >= uuid7_moment(t.reference_id)
                    AND about.created_at < uuid7_moment(t.reference_id) + interval '1 millisecond'
                LIMIT 1
            )
        END,
        ''
    ) COLLATE "C" AS feature
FROM credit_transactions AS t;

COMMENT ON VIEW usage_rows IS 'what each transaction adds to usage, and under which feature';

GRANT SELECT ON usage_rollups, rolled_accounts, usage_rows TO tollkeeper_credits;

-- verify
SELECT count(*) = 0 FROM usage_rollups;
SELECT uuid7_moment(uuid7_bound('2026-01-31T12:00:00.001Z')) = '2026-01-31T12:00:00.001Z';
SELECT usage_feature('{"feature": "chat"}') = 'chat' AND usage_feature('{"feature": 7}') IS NULL;
SELECT usage_feature('{"feature": "C:\\udata"}') = 'C:\udata' AND usage_feature('{"feature": "C:\\\udc00"}') IS NULL;

-- down derived:usage_rollups,rolled_accounts
DROP VIEW usage_rows;
DROP FUNCTION usage_feature(json);
DROP FUNCTION uuid7_moment(uuid);
DROP TABLE usage_rollups;
DROP TABLE rolled_accounts;
