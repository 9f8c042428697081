-- create_rowlock --
-- The row-lock ledger's tables: what a careful team would write, without anything that only slows it
-- down: no foreign keys, no triggers, no partitions, one index each, and room for HOT updates.
CREATE TABLE accounts (
    account_id text COLLATE "C" PRIMARY KEY,
    tenant_id text COLLATE "C" NOT NULL,
    balance bigint NOT NULL CHECK (balance >= 0),
    version bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);
CREATE TABLE transactions (
    account_id text COLLATE "C" NOT NULL,
    sequence bigint NOT NULL,
    transaction_id uuid NOT NULL,
    kind text COLLATE "C" NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    balance bigint NOT NULL CHECK (balance >= 0),
    description text,
    metadata json,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, sequence)
);
CREATE TABLE idempotency_keys (
    key_hash bytea PRIMARY KEY,
    account_id text COLLATE "C" NOT NULL,
    sequence bigint NOT NULL,
    fingerprint bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- open_rowlock --
-- Accounts with a first balance.
INSERT INTO accounts (account_id, tenant_id, balance, version)
SELECT account_id, 'tenant', $2, 0 FROM unnest($1::text[]) AS wanted (account_id);

-- find_key --
-- Was this request made before?
SELECT account_id, sequence, fingerprint FROM idempotency_keys WHERE key_hash = $1;

-- lock_account --
-- The account, ours until the commit.
SELECT balance, version FROM accounts WHERE account_id = $1 FOR UPDATE;

-- update_account --
-- The new balance.
UPDATE accounts SET balance = $2, version = $3 WHERE account_id = $1;

-- insert_transaction --
-- The row of the ledger.
INSERT INTO transactions (account_id, sequence, transaction_id, kind, amount, balance, description, metadata)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- insert_key --
-- The request is known from now on.
INSERT INTO idempotency_keys (key_hash, account_id, sequence, fingerprint) VALUES ($1, $2, $3, $4);

-- sums --
-- Accounts below zero, the sum of all balances, and the number of transactions.
SELECT
    (SELECT count(*) FROM accounts WHERE balance < 0 OR reserved < 0 OR reserved > balance)
    + (SELECT count(*) FROM credit_transactions WHERE balance < 0) AS negative,
    (SELECT sum(balance)::bigint FROM accounts) AS balance,
    (SELECT count(*) FROM credit_transactions) AS transactions,
    (SELECT coalesce(sum(CASE kind WHEN 'topup' THEN amount ELSE -amount END), 0)::bigint FROM credit_transactions)
        AS moved;

-- open_still_accounts --
-- Accounts that nobody moves, as the service would have opened them: at their genesis.
INSERT INTO accounts (created_at, balance, reserved, version, shard, account_id, tenant_id, head_hash)
SELECT
    now(), 0, 0, 0, get_byte(sha256(convert_to(name, 'UTF8')), 0), name, 'tenant',
    sha256(
        '\x01'::bytea || int4send(octet_length(name)) || int4send(octet_length('tenant'))
        || convert_to(name, 'UTF8') || 'tenant'::bytea
    )
FROM (SELECT 'still-' || number AS name FROM generate_series(1, $1::integer) AS number) AS names;

-- analyze_accounts --
-- As autovacuum would have done long before there are that many.
ANALYZE accounts;

-- forget_marks --
-- As if every account at work had moved since the last checkpoint.
UPDATE checkpointed_accounts SET version = -1 WHERE account_id >= 'account-' AND account_id < 'account.';

-- make_quarters --
-- Partitions of $1 quarters up to the present one.
SELECT create_partitions(now() - $1::integer * interval '3 months' + interval '3 months', $1::integer - 1, 0);

-- make_old_quarter --
-- The partitions of the quarter that was $1 quarters ago.
SELECT create_partitions(now() - $1::integer * interval '3 months', 0, 0);

-- fill_quarters --
-- Transactions number $1 up to $2 of $3, spread evenly over the time of $4 quarters up to now, as rows of 10,000 accounts;
-- of no account that is there, and of no chain: they are read, not verified.
INSERT INTO credit_transactions (
    created_at, sequence, amount, balance, reserved, transaction_id, shard, account_id, kind, fingerprint, hash
)
SELECT
    date_trunc('quarter', now()) - ($4::integer - 1) * interval '3 months'
    + (n::double precision / $3::bigint) * (now() - date_trunc('quarter', now()) + ($4::integer - 1) * interval '3 months'),
    n / 10000 + 1, n % 1000 + 1, n, 0, gen_random_uuid(), n % 256, 'filled-' || n % 10000,
    CASE WHEN n % 10 = 0 THEN 'topup' ELSE 'consume' END, sha256(int8send(n)), sha256(int8send(-n))
FROM generate_series($1::bigint, $2::bigint - 1) AS n;

-- make_unpartitioned --
-- The same rows in one table, in the same order, with the indexes it would have: the time is in the key of the other one
-- only because it is partitioned by it.
CREATE TABLE unpartitioned (
    LIKE credit_transactions INCLUDING ALL EXCLUDING INDEXES,
    PRIMARY KEY (shard, account_id, sequence)
);
CREATE INDEX unpartitioned_by_id ON unpartitioned (transaction_id);

-- fill_unpartitioned --
-- Copies the rows of a quarter, so many quarters ago.
INSERT INTO unpartitioned
SELECT t.*
FROM credit_transactions AS t
WHERE t.created_at >= date_trunc('quarter', now()) - $1::integer * interval '3 months'
    AND t.created_at < date_trunc('quarter', now()) - ($1::integer - 1) * interval '3 months';

-- settle_tables --
-- As autovacuum leaves them.
VACUUM (ANALYZE) credit_transactions, unpartitioned;

-- quarter --
-- The bounds of the quarter that was $1 quarters ago.
SELECT
    date_trunc('quarter', now()) - $1::integer * interval '3 months',
    date_trunc('quarter', now()) - ($1::integer - 1) * interval '3 months';

-- one_core --
-- No parallel workers: how much is read counts, not by how many.
SET max_parallel_workers_per_gather = 0;

-- quarter_partitioned --
-- How many transactions there are from $1 to $2.
SELECT count(*)
FROM credit_transactions
WHERE created_at >= $1::timestamptz AND created_at < $2::timestamptz;

-- quarter_unpartitioned --
-- The same of the table without partitions.
SELECT count(*)
FROM unpartitioned
WHERE created_at >= $1::timestamptz AND created_at < $2::timestamptz;
