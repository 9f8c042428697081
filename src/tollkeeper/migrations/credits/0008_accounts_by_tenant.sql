-- up transaction:false
-- Which accounts a tenant has. An account's tenant never changes, so its updates stay in their page (HOT).
-- The runner sets both timeouts: a statement that is alone in its file cannot.
-- squawk-ignore require-lock-timeout, require-statement-timeout
CREATE INDEX CONCURRENTLY IF NOT EXISTS accounts_by_tenant ON accounts (tenant_id);

-- verify
SELECT count(*) = 1 FROM pg_index WHERE indexrelid = to_regclass('accounts_by_tenant') AND indisvalid;

-- down
DROP INDEX CONCURRENTLY IF EXISTS accounts_by_tenant;
