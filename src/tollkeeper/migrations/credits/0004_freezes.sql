-- up
-- Freezes: an account that is not what its transactions say takes no money operation until somebody answers for it.
--
-- The worker reconciles and freezes, as the owner. The service's role reads freezes and lifts one only through a
-- function that writes the lifting into the account's chain.

-- The constraints are checked at once and not later: the rows before have no such kind.
-- squawk-ignore-file constraint-missing-not-valid

SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

-- Null: not frozen. In the row that every commit compares and swaps, so that no commit misses it; without an
-- index, so that updates stay in their page (HOT).
ALTER TABLE accounts ADD COLUMN frozen_at timestamptz;

-- What a commit changes, and nothing else: neither whose an account is nor whether it is frozen.
REVOKE UPDATE ON accounts FROM tollkeeper_credits;
GRANT UPDATE (balance, reserved, version, head_hash, next_expiry) ON accounts TO tollkeeper_credits;

-- One row for every freeze, open until it is lifted. Append-only but for the lifting, once.
CREATE TABLE freezes (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    frozen_at timestamptz NOT NULL,
    version bigint NOT NULL,
    lifted_at timestamptz,
    lifted_sequence bigint,
    evidence_sha256 bytea,
    shard smallint NOT NULL,
    account_id text COLLATE "C" NOT NULL,
    faults jsonb NOT NULL,
    found bytea[],
    evidence text,
    evidence_problem text,
    lifted_by text,
    reason text,
    CONSTRAINT freezes_lifting CHECK (
        (lifted_at IS NULL) = (lifted_sequence IS NULL) AND (lifted_at IS NULL) = (reason IS NULL)
    ),
    CONSTRAINT freezes_evidence CHECK (
        (evidence IS NULL) = (evidence_sha256 IS NULL) AND (evidence IS NULL) = (evidence_problem IS NOT NULL)
    )
);

CREATE UNIQUE INDEX freezes_open ON freezes (shard, account_id) WHERE lifted_at IS NULL;
CREATE INDEX freezes_by_account ON freezes (shard, account_id, number);

COMMENT ON COLUMN freezes.version IS 'version of the account when it was frozen';
COMMENT ON COLUMN freezes.found IS 'digest of what stood there, for each fault that lifting accepts';
COMMENT ON COLUMN freezes.evidence IS 'name of the file that holds what was found';
COMMENT ON COLUMN freezes.evidence_problem IS 'why there is no such file';
COMMENT ON COLUMN freezes.lifted_sequence IS
'the transaction of kind unfreeze that lifted it; 0: there is none, the account was thawed in the database';
COMMENT ON COLUMN freezes.lifted_by IS 'id of the API key';

CREATE FUNCTION refuse_freeze_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF OLD.lifted_at IS NULL AND NEW.lifted_at IS NOT NULL
            AND to_jsonb(NEW) - '{lifted_at,lifted_sequence,lifted_by,reason}'::text[]
                = to_jsonb(OLD) - '{lifted_at,lifted_sequence,lifted_by,reason}'::text[]
        THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'freezes are append-only, and lifted once: % refused', TG_OP
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER freezes_append_only BEFORE UPDATE OR DELETE ON freezes
FOR EACH ROW EXECUTE FUNCTION refuse_freeze_change();
CREATE TRIGGER freezes_no_truncate BEFORE TRUNCATE ON freezes
FOR EACH STATEMENT EXECUTE FUNCTION refuse_freeze_change();

-- Up to where each account agreed with its transactions, and what stood there. It can be emptied: every account
-- is then reconciled from its first transaction.
CREATE TABLE reconciled_accounts (
    sequence bigint NOT NULL,
    balance bigint NOT NULL,
    reserved bigint NOT NULL,
    shard smallint NOT NULL,
    account_id text COLLATE "C" NOT NULL,
    head_hash bytea NOT NULL,
    PRIMARY KEY (shard, account_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- Behind which account the pass over all chains goes on, so that a restart does not begin it anew.
CREATE TABLE reconciliation_progress (
    is_only_row boolean PRIMARY KEY DEFAULT true,
    passes bigint NOT NULL DEFAULT 0,
    after text COLLATE "C",
    CONSTRAINT reconciliation_progress_one_row CHECK (is_only_row)
);

INSERT INTO reconciliation_progress DEFAULT VALUES;

COMMENT ON COLUMN reconciliation_progress.after IS 'shard and id of the last account that was looked at; null: a pass begins';
COMMENT ON COLUMN reconciliation_progress.passes IS 'how often all chains were verified to the end';

-- The kind that lifts a freeze. Partitions have the constraints as their own: they were attached.
DO $$
DECLARE
    each regclass;
BEGIN
    ALTER TABLE credit_transactions
        DROP CONSTRAINT credit_transactions_kind,
        DROP CONSTRAINT credit_transactions_amount,
        DROP CONSTRAINT credit_transactions_shape;
    FOR each IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'credit_transactions'::regclass LOOP
        EXECUTE format(
            'ALTER TABLE %s DROP CONSTRAINT IF EXISTS credit_transactions_kind, '
            'DROP CONSTRAINT IF EXISTS credit_transactions_amount, '
            'DROP CONSTRAINT IF EXISTS credit_transactions_shape', each);
    END LOOP;
END
$$;

ALTER TABLE credit_transactions
    ADD CONSTRAINT credit_transactions_kind CHECK (
        kind IN ('topup', 'consume', 'hold', 'capture', 'release', 'extend', 'expire', 'refund', 'unfreeze')
    ),
    -- An extension in time alone adds nothing; lifting a freeze moves nothing.
    ADD CONSTRAINT credit_transactions_amount CHECK (
        (amount > 0 AND kind <> 'unfreeze') OR (amount = 0 AND kind IN ('extend', 'unfreeze'))
    ),
    -- As before, with the new kind: it says nothing but why.
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
            WHEN kind = 'unfreeze' THEN
                reference_id IS NULL AND freed IS NULL AND expires_at IS NULL AND allowance IS NULL
                AND description IS NOT NULL
            ELSE
                reference_id IS NOT NULL AND freed IS NOT NULL AND freed >= 0 AND expires_at IS NULL AND allowance IS NULL
        END
    );

CREATE TYPE account_point AS (shard smallint, account_id text, sequence bigint, most bigint);
CREATE TYPE reconciled_account AS (
    shard smallint, account_id text, sequence bigint, balance bigint, reserved bigint, head_hash bytea
);

-- Lifts a freeze with the transaction that says why: row, key, account and freeze together or not at all. The
-- account is restated from the last row of its chain, whatever its own row says; `lifting` must follow that row
-- and leave its balances as they are. The only way for the service's role to thaw an account.
CREATE FUNCTION lift_freeze(lifting written_transaction, at timestamptz, following_expiry timestamptz, actor text)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE
    last_row record;
BEGIN
    PERFORM FROM accounts AS a
    WHERE a.shard = lifting.shard AND a.account_id = lifting.account_id AND a.frozen_at IS NOT NULL
    FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'account % is not frozen', lifting.account_id USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    SELECT coalesce(max(t.sequence), 0) AS sequence, 0::bigint AS balance, 0::bigint AS reserved INTO last_row
    FROM credit_transactions AS t
    WHERE t.shard = lifting.shard AND t.account_id = lifting.account_id;
    IF last_row.sequence > 0 THEN
        SELECT t.sequence, t.balance, t.reserved INTO last_row
        FROM credit_transactions AS t
        WHERE t.shard = lifting.shard AND t.account_id = lifting.account_id AND t.sequence = last_row.sequence
        ORDER BY t.created_at DESC
        LIMIT 1;
    END IF;
    IF lifting.kind IS DISTINCT FROM 'unfreeze'
        OR (lifting.sequence, lifting.balance, lifting.reserved)
            IS DISTINCT FROM (last_row.sequence + 1, last_row.balance, last_row.reserved)
    THEN
        RAISE EXCEPTION 'a freeze of account % is lifted by a transaction that follows its last one and moves nothing',
            lifting.account_id USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    INSERT INTO credit_transactions (
        shard, account_id, transaction_id, kind, amount, balance, reserved, sequence, fingerprint, hash,
        description, metadata, created_at
    )
    VALUES (
        lifting.shard, lifting.account_id, lifting.transaction_id, lifting.kind, lifting.amount, lifting.balance,
        lifting.reserved, lifting.sequence, lifting.fingerprint, lifting.hash, lifting.description,
        lifting.metadata::json, at
    );
    INSERT INTO idempotency_keys (shard, account_id, key_tag, key_hash, sequence, created_at)
    VALUES (lifting.shard, lifting.account_id, lifting.key_tag, lifting.key_hash, lifting.sequence, at);
    UPDATE accounts AS a
    SET
        balance = lifting.balance, reserved = lifting.reserved, version = lifting.sequence,
        head_hash = lifting.hash, next_expiry = following_expiry, frozen_at = NULL
    WHERE a.shard = lifting.shard AND a.account_id = lifting.account_id;
    UPDATE freezes AS f
    SET lifted_at = at, lifted_sequence = lifting.sequence, lifted_by = actor, reason = lifting.description
    WHERE f.shard = lifting.shard AND f.account_id = lifting.account_id AND f.lifted_at IS NULL;
    -- What it stands at now was accepted: reconciling goes on from here.
    INSERT INTO reconciled_accounts AS r (shard, account_id, sequence, balance, reserved, head_hash)
    VALUES (
        lifting.shard, lifting.account_id, lifting.sequence, lifting.balance, lifting.reserved, lifting.hash
    )
    ON CONFLICT (shard, account_id) DO UPDATE
    SET
        sequence = excluded.sequence, balance = excluded.balance, reserved = excluded.reserved,
        head_hash = excluded.head_hash;
END
$$;

REVOKE ALL ON FUNCTION lift_freeze(written_transaction, timestamptz, timestamptz, text) FROM public;
GRANT EXECUTE ON FUNCTION lift_freeze(written_transaction, timestamptz, timestamptz, text) TO tollkeeper_credits;
GRANT SELECT ON freezes TO tollkeeper_credits;
