-- Which accounts a tenant has. An account's tenant never changes, so its updates stay in their page (HOT).

SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

-- squawk-ignore require-concurrent-index-creation
CREATE INDEX IF NOT EXISTS accounts_by_tenant ON accounts (tenant_id);
