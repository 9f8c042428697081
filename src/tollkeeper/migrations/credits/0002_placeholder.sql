-- Stands for the holds' migration in this branch only.
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

-- squawk-ignore require-concurrent-index-creation
CREATE INDEX credit_transactions_by_id ON credit_transactions (transaction_id);
