-- up
-- The schema's life: partitions made ahead, an archive for those that are old, and a summary of the balances.

SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

-- Partitions of credit_transactions come here when they are old: out of the indexes and plans of what is written
-- to, and never out of the ledger. Nothing is inserted: a partition is attached as it is.
CREATE TABLE archived_transactions (LIKE credit_transactions INCLUDING ALL) PARTITION BY RANGE (created_at);

COMMENT ON TABLE archived_transactions IS 'partitions of credit_transactions that are older than is configured';

CREATE TRIGGER archived_transactions_append_only
BEFORE INSERT OR UPDATE OR DELETE ON archived_transactions
FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Every transaction, wherever its partition is. A partition changes its table in one commit that locks both:
-- no statement finds its rows twice, or not at all.
CREATE VIEW ledger_transactions AS
SELECT
    created_at, sequence, amount, balance, reserved, transaction_id, shard, account_id, kind, fingerprint, hash,
    description, metadata, reference_id, freed, expires_at, allowance, payment
FROM credit_transactions
UNION ALL
SELECT
    created_at, sequence, amount, balance, reserved, transaction_id, shard, account_id, kind, fingerprint, hash,
    description, metadata, reference_id, freed, expires_at, allowance, payment
FROM archived_transactions;

COMMENT ON VIEW ledger_transactions IS 'the transactions of credit_transactions and of the archive';

-- What an archived partition was when it was archived. Append-only.
CREATE TABLE partition_seals (
    from_time timestamptz NOT NULL,
    to_time timestamptz NOT NULL,
    sealed_at timestamptz NOT NULL,
    transactions bigint NOT NULL,
    partition text COLLATE "C" PRIMARY KEY,
    root bytea NOT NULL,
    note text COLLATE "C" NOT NULL,
    CONSTRAINT partition_seals_root CHECK (octet_length(root) = 32)
);

COMMENT ON COLUMN partition_seals.root IS
'root of the Merkle tree over the rows in the order of shard, account, sequence and time';
COMMENT ON COLUMN partition_seals.note IS 'what the seal says, and below it the signature if there was a key';

CREATE TRIGGER partition_seals_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON partition_seals
FOR EACH STATEMENT EXECUTE FUNCTION refuse_checkpoint_change();

-- When each seal was last compared with its partition, and what was wrong. It can be emptied: all are compared anew.
CREATE TABLE seal_checks (
    checked_at timestamptz NOT NULL,
    partition text COLLATE "C" PRIMARY KEY,
    problem text
);

-- Takes a partition from credit_transactions to archived_transactions. Its bounds must stand in a constraint
-- `archive_bounds` that has been validated, so that attaching reads nothing. The partition is locked first, and let go:
-- who waits for a long reader waits where no commit does. Then the table is locked before its partition, as all
-- statements lock them: in the other order, readers that hold the table and queue for the partition would keep us from
-- the table, and all commits with us, until we give up. Two commits, as DETACH CONCURRENTLY needs them, would
-- leave the rows in neither table for as long as the longest reader lives.
CREATE FUNCTION archive_partition(child text) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET lock_timeout = '200ms' AS $$
DECLARE
    bounds text;
BEGIN
    PERFORM FROM pg_constraint AS k
    WHERE k.conrelid = format('%I', child)::regclass AND k.conname = 'archive_bounds' AND k.contype = 'c' AND k.convalidated;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'partition % has no validated constraint archive_bounds', child
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    SELECT pg_get_expr(c.relpartbound, c.oid) INTO bounds FROM pg_class AS c WHERE c.oid = format('%I', child)::regclass;
    BEGIN
        EXECUTE format('LOCK TABLE ONLY %I IN ACCESS EXCLUSIVE MODE', child);
        RAISE EXCEPTION 'nobody reads it' USING ERRCODE = 'TK001';
    EXCEPTION
        WHEN SQLSTATE 'TK001' THEN NULL;  -- what the block has locked is let go
    END;
    LOCK TABLE ONLY credit_transactions IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('LOCK TABLE ONLY %I IN ACCESS EXCLUSIVE MODE', child);
    EXECUTE format('ALTER TABLE credit_transactions DETACH PARTITION %I', child);
    EXECUTE format('ALTER TABLE archived_transactions ATTACH PARTITION %I %s', child, bounds);
    EXECUTE format('ALTER TABLE %I DROP CONSTRAINT archive_bounds', child);
END
$$;

REVOKE ALL ON FUNCTION archive_partition(text) FROM public;

-- As before, over the archive, too.
CREATE OR REPLACE VIEW audit_log_chain AS
SELECT
    t.account_id || '/' || t.sequence AS id,
    t.shard,
    t.account_id,
    t.sequence,
    t.transaction_id,
    t.created_at,
    CASE
        WHEN t.sequence > 1 THEN before.hash
        ELSE sha256(
            '\x01'::bytea
            || int4send(octet_length(a.account_id)) || int4send(octet_length(a.tenant_id))
            || convert_to(a.account_id, 'UTF8') || convert_to(a.tenant_id, 'UTF8')
        )
    END AS previous_hash,
    t.hash AS current_hash,
    covering.checkpoint,
    covering.signature
FROM ledger_transactions AS t
LEFT JOIN accounts AS a ON a.shard = t.shard AND a.account_id = t.account_id
LEFT JOIN LATERAL (
    SELECT p.hash
    FROM ledger_transactions AS p
    WHERE p.shard = t.shard AND p.account_id = t.account_id AND p.sequence = t.sequence - 1
    ORDER BY p.created_at
    LIMIT 1
) AS before ON true
LEFT JOIN LATERAL (
    SELECT l.checkpoint, rtrim(split_part(c.note, E'\n\n', 2), E'\n') AS signature
    FROM checkpoint_leaves AS l
    JOIN checkpoints AS c ON c.number = l.checkpoint
    WHERE l.shard = t.shard AND l.account_id = t.account_id AND l.sequence >= t.sequence
    ORDER BY l.sequence, l.checkpoint
    LIMIT 1
) AS covering ON true;


-- As before, over the archive, too.
CREATE OR REPLACE FUNCTION lift_freeze(lifting written_transaction, at timestamptz, following_expiry timestamptz, actor text)
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
    FROM ledger_transactions AS t
    WHERE t.shard = lifting.shard AND t.account_id = lifting.account_id;
    IF last_row.sequence > 0 THEN
        SELECT t.sequence, t.balance, t.reserved INTO last_row
        FROM ledger_transactions AS t
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


-- As before, over the archive, too.
CREATE OR REPLACE VIEW usage_rows AS
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
                                FROM ledger_transactions AS hold
                                WHERE hold.transaction_id = about.reference_id AND hold.account_id = about.account_id
                                    AND hold.created_at >= uuid7_moment(about.reference_id)
                                    AND hold.created_at < uuid7_moment(about.reference_id) + interval '1 millisecond'
                                LIMIT 1
                            )
                        END
                    )
                FROM ledger_transactions AS about
                WHERE about.transaction_id = t.reference_id AND about.account_id = t.account_id
                    AND about.created_at >= uuid7_moment(t.reference_id)
                    AND about.created_at < uuid7_moment(t.reference_id) + interval '1 millisecond'
                LIMIT 1
            )
        END,
        ''
    ) COLLATE "C" AS feature
FROM ledger_transactions AS t;


-- As before, with the bounds as a constraint while a partition is attached: then nothing is scanned, whatever is in it,
-- and what was detached by hand comes back. It is dropped again: every row that is written would be checked against it.
CREATE OR REPLACE FUNCTION create_partitions(at timestamptz, quarters_ahead integer, days_ahead integer)
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET lock_timeout = '2s' AS $$
DECLARE
    parent text;
    child text;
    key text;
    lower_bound text;
    upper_bound text;
    holder text;
    made integer := 0;
BEGIN
    -- One creator at a time; released with the commit.
    PERFORM pg_advisory_xact_lock(hashtextextended('tollkeeper.create_partitions', 0));
    FOR parent, child, key, lower_bound, upper_bound IN
        SELECT
            'credit_transactions', to_char(q, '"credit_transactions_"YYYY"q"Q'), 'created_at',
            q::text, (q + interval '3 months')::text
        FROM generate_series(date_trunc('quarter', at), at + quarters_ahead * interval '3 months', interval '3 months') AS q
        UNION ALL
        SELECT
            'holds', to_char(q, '"holds_"YYYY"q"Q'), 'hold_id',
            uuid7_bound(q)::text, uuid7_bound(q + interval '3 months')::text
        FROM generate_series(date_trunc('quarter', at), at + quarters_ahead * interval '3 months', interval '3 months') AS q
        UNION ALL
        SELECT
            'idempotency_keys', to_char(d, '"idempotency_keys_"YYYYMMDD'), 'created_at',
            d::text, (d + interval '1 day')::text
        FROM generate_series(date_trunc('day', at), at + days_ahead * interval '1 day', interval '1 day') AS d
    LOOP
        SELECT i.inhparent::regclass::text INTO holder FROM pg_inherits AS i WHERE i.inhrelid = to_regclass(format('%I', child));
        CONTINUE WHEN holder = parent;
        IF holder IS NOT NULL THEN
            RAISE EXCEPTION '% belongs to %: the time % is not one to write at', child, holder, lower_bound
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        IF to_regclass(format('%I', child)) IS NULL THEN
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', child, parent);
            IF parent = 'credit_transactions' THEN
                EXECUTE format(
                    'CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()',
                    child);
            END IF;
        END IF;
        BEGIN
            EXECUTE format('ALTER TABLE %I ADD CONSTRAINT attach_bounds CHECK (%I >= %L AND %I < %L)',
                child, key, lower_bound, key, upper_bound);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                parent, child, lower_bound, upper_bound);
            EXECUTE format('ALTER TABLE %I DROP CONSTRAINT attach_bounds', child);
            made := made + 1;
        EXCEPTION
            -- A table of that name that somebody else made: the others must not wait for it. The ends of the
            -- partitions tell.
            WHEN check_violation OR datatype_mismatch OR undefined_column OR invalid_table_definition OR wrong_object_type THEN
                RAISE WARNING '% is no partition of %: %', child, parent, SQLERRM;
        END;
    END LOOP;
    RETURN made;
END
$$;

-- The balances as they are, by tenant: reads all accounts.
CREATE VIEW balances_by_tenant AS
SELECT
    tenant_id,
    count(*) AS accounts,
    sum(balance) AS balance,
    sum(reserved) AS reserved,
    sum(balance) - sum(reserved) AS available,
    count(frozen_at) AS frozen
FROM accounts
GROUP BY tenant_id;

-- The balances as they were a few minutes ago. Many accounts are left to the worker's first refresh: a migration
-- reads no table for minutes.
DO $$
BEGIN
    EXECUTE
        'CREATE MATERIALIZED VIEW credit_balances_summary'
        ' WITH (autovacuum_vacuum_threshold = 20, autovacuum_vacuum_scale_factor = 0.1)'
        ' AS SELECT tenant_id, accounts, balance, reserved, available, frozen FROM balances_by_tenant WITH'
        || CASE WHEN EXISTS (SELECT FROM accounts OFFSET 1000000) THEN ' NO DATA' ELSE ' DATA' END;
END
$$;

-- Refreshing concurrently needs it.
-- squawk-ignore require-concurrent-index-creation
CREATE UNIQUE INDEX credit_balances_summary_by_tenant ON credit_balances_summary (tenant_id);

-- When the summary was last known to be what the accounts say. Not in the summary: every row of it would change with
-- every refresh.
CREATE TABLE summary_refreshes (
    is_only_row boolean PRIMARY KEY DEFAULT true,
    as_of timestamptz,
    CONSTRAINT summary_refreshes_one_row CHECK (is_only_row)
) WITH (fillfactor = 10);

INSERT INTO summary_refreshes (as_of)
SELECT CASE WHEN relispopulated THEN now() END FROM pg_class WHERE oid = 'credit_balances_summary'::regclass;

COMMENT ON COLUMN summary_refreshes.as_of IS 'null: never';

GRANT SELECT ON
archived_transactions, ledger_transactions, partition_seals, seal_checks, balances_by_tenant, credit_balances_summary,
summary_refreshes
TO tollkeeper_credits;

SELECT create_partitions(now(), 4, 1);

-- verify
SELECT count(*) >= 5 FROM pg_inherits WHERE inhparent = 'credit_transactions'::regclass;
SELECT count(*) >= 5 FROM pg_inherits WHERE inhparent = 'holds'::regclass;
SELECT count(*) = 0 FROM pg_constraint WHERE conname = 'attach_bounds';
SELECT c.relispopulated = (r.as_of IS NOT NULL)
FROM summary_refreshes AS r
JOIN pg_class AS c ON c.oid = 'credit_balances_summary'::regclass;

-- down derived:summary_refreshes,credit_balances_summary,seal_checks
-- What is archived would go with its table: it must be attached to credit_transactions before.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_inherits WHERE inhparent = 'archived_transactions'::regclass) THEN
        RAISE EXCEPTION 'there are archived partitions: attach them to credit_transactions first'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$$;

CREATE OR REPLACE VIEW audit_log_chain AS
SELECT
    t.account_id || '/' || t.sequence AS id,
    t.shard,
    t.account_id,
    t.sequence,
    t.transaction_id,
    t.created_at,
    CASE
        WHEN t.sequence > 1 THEN before.hash
        ELSE sha256(
            '\x01'::bytea
            || int4send(octet_length(a.account_id)) || int4send(octet_length(a.tenant_id))
            || convert_to(a.account_id, 'UTF8') || convert_to(a.tenant_id, 'UTF8')
        )
    END AS previous_hash,
    t.hash AS current_hash,
    covering.checkpoint,
    covering.signature
FROM credit_transactions AS t
LEFT JOIN accounts AS a ON a.shard = t.shard AND a.account_id = t.account_id
LEFT JOIN LATERAL (
    SELECT p.hash
    FROM credit_transactions AS p
    WHERE p.shard = t.shard AND p.account_id = t.account_id AND p.sequence = t.sequence - 1
    ORDER BY p.created_at
    LIMIT 1
) AS before ON true
LEFT JOIN LATERAL (
    SELECT l.checkpoint, rtrim(split_part(c.note, E'\n\n', 2), E'\n') AS signature
    FROM checkpoint_leaves AS l
    JOIN checkpoints AS c ON c.number = l.checkpoint
    WHERE l.shard = t.shard AND l.account_id = t.account_id AND l.sequence >= t.sequence
    ORDER BY l.sequence, l.checkpoint
    LIMIT 1
) AS covering ON true;


CREATE OR REPLACE FUNCTION lift_freeze(lifting written_transaction, at timestamptz, following_expiry timestamptz, actor text)
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

CREATE OR REPLACE VIEW usage_rows AS
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


DROP TABLE summary_refreshes;
DROP MATERIALIZED VIEW credit_balances_summary;
DROP VIEW balances_by_tenant;
DROP FUNCTION archive_partition(text);
DROP TABLE seal_checks;
DROP TABLE partition_seals;
DROP VIEW ledger_transactions;
DROP TABLE archived_transactions;
