-- up
-- The row that health checks write to: a server that answers and cannot be written to is not a primary.

SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

CREATE TABLE health_probe (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    probed_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);

COMMENT ON TABLE health_probe IS 'one row, written by every health check';

INSERT INTO health_probe DEFAULT VALUES;

GRANT SELECT, UPDATE (probed_at) ON health_probe TO tollkeeper_access;

-- verify
SELECT count(*) = 1 FROM health_probe;

-- down derived:health_probe
DROP TABLE health_probe;
