-- up
-- Checkpoints: signed Merkle roots over the heads of accounts, and the leaves under them.
--
-- Made by the worker, which acts as the owner; the service's role may only read them. Nothing here
-- is written by a commit of the ledger, and `accounts` gets no index: its updates stay HOT.

SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

-- One row for every signed note, numbered without gaps. Append-only.
CREATE TABLE checkpoints (
    number bigint PRIMARY KEY,
    made_at timestamptz NOT NULL,
    leaves bigint NOT NULL,
    root bytea NOT NULL,
    note text COLLATE "C" NOT NULL,
    CONSTRAINT checkpoints_number CHECK (number >= 1),
    CONSTRAINT checkpoints_leaves CHECK (leaves >= 1),
    CONSTRAINT checkpoints_root CHECK (octet_length(root) = 32)
);

COMMENT ON COLUMN checkpoints.note IS 'what was signed and the signatures, to the byte, as it is published';

-- The heads that a checkpoint covers: every account that changed since the checkpoint before. Append-only.
-- No foreign key: leaves and their checkpoint are written in one unit of work by the one maker.
CREATE TABLE checkpoint_leaves (
    sequence bigint NOT NULL,
    checkpoint bigint NOT NULL,
    position bigint NOT NULL,
    balance bigint NOT NULL,
    reserved bigint NOT NULL,
    shard smallint NOT NULL,
    account_id text COLLATE "C" NOT NULL,
    tenant_id text COLLATE "C" NOT NULL,
    head_hash bytea NOT NULL,
    -- Which checkpoint covers a transaction: the first entry of its account at or behind its sequence.
    PRIMARY KEY (shard, account_id, sequence, checkpoint),
    CONSTRAINT checkpoint_leaves_head CHECK (octet_length(head_hash) = 32)
);

-- A tree's leaves in order.
CREATE INDEX checkpoint_leaves_in_order ON checkpoint_leaves (checkpoint, position);

COMMENT ON COLUMN checkpoint_leaves.position IS 'place in the tree, from 0, in order of shard and account';

-- The version at which each account was last covered: what the maker compares `accounts` with. It can be
-- emptied: every account is then covered once more.
CREATE TABLE checkpointed_accounts (
    version bigint NOT NULL,
    shard smallint NOT NULL,
    account_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, account_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- How far each HTTP target has taken them. A file says that itself.
CREATE TABLE checkpoint_publications (
    number bigint NOT NULL,
    target bytea PRIMARY KEY,
    CONSTRAINT checkpoint_publications_target CHECK (octet_length(target) = 32)
);

COMMENT ON COLUMN checkpoint_publications.target IS 'SHA-256 of its URL, which may hold a secret';

CREATE FUNCTION refuse_checkpoint_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER checkpoints_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON checkpoints
FOR EACH STATEMENT EXECUTE FUNCTION refuse_checkpoint_change();

CREATE TRIGGER checkpoint_leaves_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON checkpoint_leaves
FOR EACH STATEMENT EXECUTE FUNCTION refuse_checkpoint_change();

-- The chain as an auditor reads it: each transaction's hash, the hash before it (the genesis of its account
-- for the first), and the signature of the first checkpoint that covers it; null as long as none does.
CREATE VIEW audit_log_chain AS
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

COMMENT ON VIEW audit_log_chain IS 'every transaction with its hash, the hash before it, and who signed for it';

GRANT SELECT ON checkpoints, checkpoint_leaves, audit_log_chain TO tollkeeper_credits;
