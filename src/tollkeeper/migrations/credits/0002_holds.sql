-- up
-- Holds and refunds: credits promised before they are taken, and given back after.
--
-- What a hold is at any time follows from its transactions; the rows here are the state that the next
-- decision needs, changed in the same statement as the account, under the account's version.

-- The constraints are checked at once and not later: the rows before have two kinds and no new column.
-- squawk-ignore-file constraint-missing-not-valid

SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

-- No open hold of the account expires before this moment; null: it has none. A decision at or after it
-- looks for expired holds first, so that their credits are free at once, sweeper or not.
ALTER TABLE accounts ADD COLUMN next_expiry timestamptz;

-- What a transaction says beyond its amount. Null for top-ups without payment and for consumptions.
ALTER TABLE credit_transactions
    ADD COLUMN reference_id uuid,
    ADD COLUMN freed bigint,
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN allowance bigint,
    ADD COLUMN payment json;

COMMENT ON COLUMN credit_transactions.reference_id IS
'the hold that is captured, released, extended or expired; the transaction that is refunded';
COMMENT ON COLUMN credit_transactions.freed IS 'how much less is reserved after a capture, release or expiry';
COMMENT ON COLUMN credit_transactions.allowance IS 'of a hold: how much may be captured above it';
COMMENT ON COLUMN credit_transactions.payment IS 'masked before it came here; canonical JSON text, kept to the byte';

-- The partitions have the constraints as their own, too: they were attached, not made from the parent.
DO $$
DECLARE
    each regclass;
BEGIN
    ALTER TABLE credit_transactions
        DROP CONSTRAINT credit_transactions_kind,
        DROP CONSTRAINT credit_transactions_amount;
    FOR each IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'credit_transactions'::regclass LOOP
        EXECUTE format(
            'ALTER TABLE %s DROP CONSTRAINT IF EXISTS credit_transactions_kind, '
            'DROP CONSTRAINT IF EXISTS credit_transactions_amount', each);
    END LOOP;
END
$$;

ALTER TABLE credit_transactions
    ADD CONSTRAINT credit_transactions_kind CHECK (
        kind IN ('topup', 'consume', 'hold', 'capture', 'release', 'extend', 'expire', 'refund')
    ),
    -- An extension in time alone adds nothing.
    ADD CONSTRAINT credit_transactions_amount CHECK (amount > 0 OR (kind = 'extend' AND amount = 0)),
    -- One constraint with the usual kinds first: it is checked for every row that is written.
    ADD CONSTRAINT credit_transactions_shape CHECK (
        CASE
            WHEN kind IN ('topup', 'consume') THEN
                reference_id IS NULL AND freed IS NULL AND expires_at IS NULL AND allowance IS NULL
                AND (payment IS NULL OR kind = 'topup')
            WHEN payment IS NOT NULL THEN false
            WHEN kind = 'hold' THEN
                reference_id IS NULL AND freed IS NULL AND expires_at IS NOT NULL AND allowance IS NOT NULL AND allowance >= 0
            WHEN kind = 'extend' THEN
                reference_id IS NOT NULL AND freed IS NULL AND expires_at IS NOT NULL AND allowance IS NULL
            WHEN kind = 'refund' THEN
                reference_id IS NOT NULL AND freed IS NULL AND expires_at IS NULL AND allowance IS NULL
            ELSE
                reference_id IS NOT NULL AND freed IS NOT NULL AND freed >= 0 AND expires_at IS NULL AND allowance IS NULL
        END
    );

-- A refund and a proof find their transaction by its id alone. Ids begin with the time, so the index only
-- grows at its right end.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX credit_transactions_by_id ON credit_transactions (transaction_id);

-- Partitioned by the time inside the id, so that a hold's partition is known from its id.
CREATE TABLE holds (
    hold_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    amount bigint NOT NULL,
    captured bigint NOT NULL,
    released bigint NOT NULL,
    allowance bigint NOT NULL,
    overrun bigint NOT NULL,
    shard smallint NOT NULL,
    state text COLLATE "C" NOT NULL,
    account_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, hold_id),
    CONSTRAINT holds_amount CHECK (amount > 0),
    CONSTRAINT holds_never_more_than_held CHECK (captured >= 0 AND released >= 0 AND captured + released <= amount),
    CONSTRAINT holds_overrun CHECK (overrun >= 0 AND overrun <= allowance),
    CONSTRAINT holds_state CHECK (state IN ('open', 'settled', 'expired')),
    CONSTRAINT holds_open CHECK ((state = 'open') = (captured + released < amount))
) PARTITION BY RANGE (hold_id);

COMMENT ON COLUMN holds.amount IS 'what was reserved, extensions included';
COMMENT ON COLUMN holds.captured IS 'taken from what was reserved';
COMMENT ON COLUMN holds.released IS 'given back unused: released, left over by a final capture, or expired';
COMMENT ON COLUMN holds.overrun IS 'taken above what was reserved, within the allowance';

CREATE INDEX holds_by_account ON holds (shard, account_id, hold_id);

-- Only open holds are in it: it stays as small as what is under way.
CREATE INDEX holds_open_by_account ON holds (shard, account_id, expires_at) WHERE state = 'open';

-- What was given back of a consumption or a capture; a row from the first refund on.
CREATE TABLE refunds (
    transaction_id uuid NOT NULL,
    taken bigint NOT NULL,
    refunded bigint NOT NULL,
    shard smallint NOT NULL,
    account_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, transaction_id),
    CONSTRAINT refunds_never_more_than_taken CHECK (refunded > 0 AND refunded <= taken)
);

CREATE INDEX refunds_by_account ON refunds (shard, account_id);

-- What a batch hands to its statements. New types beside the old ones: a service of the version before goes
-- on working while this one is rolled out.
CREATE TYPE settled_account AS (
    shard smallint, account_id text, expected bigint, balance bigint, reserved bigint, version bigint, head_hash bytea,
    next_expiry timestamptz
);
CREATE TYPE started_account AS (
    shard smallint, account_id text, tenant_id text, balance bigint, reserved bigint, version bigint, head_hash bytea,
    next_expiry timestamptz
);
CREATE TYPE written_transaction AS (
    shard smallint, account_id text, transaction_id uuid, kind text, amount bigint, balance bigint, reserved bigint,
    sequence bigint, fingerprint bytea, hash bytea, description text, metadata text, key_hash bytea, key_tag bigint,
    reference_id uuid, freed bigint, expires_at timestamptz, allowance bigint, payment text
);
CREATE TYPE hold_place AS (shard smallint, hold_id uuid);
CREATE TYPE transaction_place AS (shard smallint, transaction_id uuid);
CREATE TYPE written_hold AS (
    shard smallint, hold_id uuid, account_id text, amount bigint, captured bigint, released bigint, allowance bigint,
    overrun bigint, state text, expires_at timestamptz, created_at timestamptz
);
CREATE TYPE written_refund AS (shard smallint, transaction_id uuid, account_id text, taken bigint, refunded bigint);

-- The smallest UUIDv7 of a moment.
CREATE FUNCTION uuid7_bound(at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT rpad(lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0'), 32, '0')::uuid
$$;

-- As before, with the partitions of holds.
CREATE OR REPLACE FUNCTION create_partitions(at timestamptz, quarters_ahead integer, days_ahead integer)
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET lock_timeout = '2s' AS $$
DECLARE
    parent text;
    child text;
    lower_bound text;
    upper_bound text;
    made integer := 0;
BEGIN
    -- One creator at a time; released with the commit.
    PERFORM pg_advisory_xact_lock(hashtextextended('tollkeeper.create_partitions', 0));
    FOR parent, child, lower_bound, upper_bound IN
        SELECT 'credit_transactions', to_char(q, '"credit_transactions_"YYYY"q"Q'), q::text, (q + interval '3 months')::text
        FROM generate_series(date_trunc('quarter', at), at + quarters_ahead * interval '3 months', interval '3 months') AS q
        UNION ALL
        SELECT 'holds', to_char(q, '"holds_"YYYY"q"Q'), uuid7_bound(q)::text, uuid7_bound(q + interval '3 months')::text
        FROM generate_series(date_trunc('quarter', at), at + quarters_ahead * interval '3 months', interval '3 months') AS q
        UNION ALL
        SELECT 'idempotency_keys', to_char(d, '"idempotency_keys_"YYYYMMDD'), d::text, (d + interval '1 day')::text
        FROM generate_series(date_trunc('day', at), at + days_ahead * interval '1 day', interval '1 day') AS d
    LOOP
        CONTINUE WHEN to_regclass(child) IS NOT NULL;
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', child, parent);
        IF parent = 'credit_transactions' THEN
            EXECUTE format(
                'CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', child);
        END IF;
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
            parent, child, lower_bound, upper_bound);
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;

-- Without its account, transactions would be nobody's, and the next account of that name would inherit them.
CREATE FUNCTION refuse_removal() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'accounts stay: % refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER accounts_stay BEFORE DELETE OR TRUNCATE ON accounts
FOR EACH STATEMENT EXECUTE FUNCTION refuse_removal();

GRANT SELECT, INSERT, UPDATE ON holds, refunds TO tollkeeper_credits;

SELECT create_partitions(now(), 2, 7);
