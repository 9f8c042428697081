-- up
-- The ledger: accounts, their immutable transactions, the idempotency keys, and their partitions.
--
-- Every key begins with `shard`, the first byte of SHA-256(account_id): it chooses the lane today and
-- is the distribution column when these become Citus tables.

SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

-- Roles belong to the whole server: another database, or a runner beside us, may have made it.
DO $$
BEGIN
    CREATE ROLE tollkeeper_credits NOLOGIN;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

-- The truth. Narrow and without a secondary index, so that updates stay in their page (HOT).
CREATE TABLE accounts (
    created_at timestamptz NOT NULL,
    balance bigint NOT NULL,
    reserved bigint NOT NULL,
    version bigint NOT NULL,
    shard smallint NOT NULL,
    account_id text COLLATE "C" NOT NULL,
    tenant_id text COLLATE "C" NOT NULL,
    head_hash bytea NOT NULL,
    PRIMARY KEY (shard, account_id),
    CONSTRAINT accounts_never_negative CHECK (reserved >= 0 AND balance >= reserved),
    CONSTRAINT accounts_version CHECK (version >= 0),
    CONSTRAINT accounts_shard CHECK (shard BETWEEN 0 AND 255),
    CONSTRAINT accounts_id CHECK (octet_length(account_id) BETWEEN 1 AND 128),
    CONSTRAINT accounts_tenant CHECK (octet_length(tenant_id) BETWEEN 1 AND 128),
    CONSTRAINT accounts_head CHECK (octet_length(head_hash) = 32)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

COMMENT ON COLUMN accounts.version IS 'sequence of the last transaction; every commit compares and swaps it';

-- One row for every accepted operation, with the state after it. Append-only.
-- No foreign key to accounts: the statement that inserts a row has just swapped the account's version,
-- and a foreign key would lock the account's row once more for every row inserted.
CREATE TABLE credit_transactions (
    created_at timestamptz NOT NULL,
    sequence bigint NOT NULL,
    amount bigint NOT NULL,
    balance bigint NOT NULL,
    reserved bigint NOT NULL,
    transaction_id uuid NOT NULL,
    shard smallint NOT NULL,
    account_id text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    fingerprint bytea NOT NULL,
    hash bytea NOT NULL,
    description text,
    metadata json,
    PRIMARY KEY (shard, account_id, sequence, created_at),
    CONSTRAINT credit_transactions_kind CHECK (kind IN ('topup', 'consume')),
    CONSTRAINT credit_transactions_amount CHECK (amount > 0),
    CONSTRAINT credit_transactions_never_negative CHECK (reserved >= 0 AND balance >= reserved),
    CONSTRAINT credit_transactions_sequence CHECK (sequence >= 1),
    CONSTRAINT credit_transactions_digests CHECK (octet_length(hash) = 32 AND octet_length(fingerprint) = 32)
) PARTITION BY RANGE (created_at);

COMMENT ON COLUMN credit_transactions.metadata IS 'canonical JSON text, kept to the byte: its SHA-256 is in the chain';

-- Which request made which transaction. Scope of a key: its account. Uniqueness follows from the swap of
-- the account's version: two commits of one key need two versions, and the second one reads the first's key.
CREATE TABLE idempotency_keys (
    created_at timestamptz NOT NULL,
    sequence bigint NOT NULL,
    key_tag bigint NOT NULL,
    shard smallint NOT NULL,
    account_id text COLLATE "C" NOT NULL,
    key_hash bytea NOT NULL,
    CONSTRAINT idempotency_keys_hash CHECK (octet_length(key_hash) = 32)
) PARTITION BY RANGE (created_at);

-- The first eight bytes of the hash find the row in a third of the index the whole hash would need.
CREATE INDEX idempotency_keys_lookup ON idempotency_keys (shard, key_tag);

COMMENT ON COLUMN idempotency_keys.key_hash IS 'SHA-256 of the key';
COMMENT ON COLUMN idempotency_keys.key_tag IS 'the first eight bytes of key_hash, as a signed integer';

-- What a batch hands to the statements that load and commit it: arrays of rows. With one array for each
-- column instead, driver and server both spent a tenth more on an operation.
CREATE TYPE account_place AS (shard smallint, account_id text);
CREATE TYPE key_place AS (shard smallint, account_id text, key_tag bigint, key_hash bytea);
CREATE TYPE moved_account AS (
    shard smallint, account_id text, expected bigint, balance bigint, reserved bigint, version bigint, head_hash bytea
);
CREATE TYPE opened_account AS (
    shard smallint, account_id text, tenant_id text, balance bigint, reserved bigint, version bigint, head_hash bytea
);
CREATE TYPE accepted_transaction AS (
    shard smallint, account_id text, transaction_id uuid, kind text, amount bigint, balance bigint, reserved bigint,
    sequence bigint, fingerprint bytea, hash bytea, description text, metadata text, key_hash bytea, key_tag bigint
);

CREATE FUNCTION refuse_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'credit_transactions is append-only: % refused', TG_OP
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER credit_transactions_append_only
BEFORE UPDATE OR DELETE ON credit_transactions
FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Creates the partitions that rows of `at` and of the time after it need; returns how many were new.
-- LIKE and ATTACH instead of PARTITION OF: attaching does not stop readers and writers.
CREATE FUNCTION create_partitions(at timestamptz, quarters_ahead integer, days_ahead integer)
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET lock_timeout = '2s' AS $$
DECLARE
    parent text;
    child text;
    lower_bound timestamptz;
    upper_bound timestamptz;
    made integer := 0;
BEGIN
    -- One creator at a time; released with the commit.
    PERFORM pg_advisory_xact_lock(hashtextextended('tollkeeper.create_partitions', 0));
    FOR parent, child, lower_bound, upper_bound IN
        SELECT 'credit_transactions', to_char(q, '"credit_transactions_"YYYY"q"Q'), q, q + interval '3 months'
        FROM generate_series(date_trunc('quarter', at), at + quarters_ahead * interval '3 months', interval '3 months') AS q
        UNION ALL
        SELECT 'idempotency_keys', to_char(d, '"idempotency_keys_"YYYYMMDD'), d, d + interval '1 day'
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

REVOKE ALL ON FUNCTION create_partitions(timestamptz, integer, integer) FROM public;
GRANT EXECUTE ON FUNCTION create_partitions(timestamptz, integer, integer) TO tollkeeper_credits;
GRANT SELECT, INSERT, UPDATE ON accounts TO tollkeeper_credits;
GRANT SELECT, INSERT ON credit_transactions TO tollkeeper_credits;
GRANT SELECT, INSERT ON idempotency_keys TO tollkeeper_credits;

SELECT create_partitions(now(), 2, 7);
