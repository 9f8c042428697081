-- up transaction:false
-- Which accounts a tenant has. An account's tenant never changes, so its updates stay in their page (HOT).
-- Without timeouts: it waits for older snapshots, and nobody queues behind it.
-- squawk-ignore require-lock-timeout, require-statement-timeout
CREATE INDEX CONCURRENTLY IF NOT EXISTS accounts_by_tenant ON accounts (tenant_id);

-- verify
SELECT count(*) = 1 FROM pg_index WHERE indexrelid = to_regclass('accounts_by_tenant') AND indisvalid;

-- down
DROP INDEX IF EXISTS accounts_by_tenant;
