-- up
-- The role of the service, and the row that health checks write to.

SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

-- Roles belong to the whole server: another database, or a runner beside us, may have made it.
DO $$
BEGIN
    CREATE ROLE tollkeeper_locator NOLOGIN;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

CREATE TABLE health_probe (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    probed_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);

COMMENT ON TABLE health_probe IS 'one row, written by every health check';

INSERT INTO health_probe DEFAULT VALUES;

GRANT SELECT, UPDATE (probed_at) ON health_probe TO tollkeeper_locator;

-- verify
SELECT count(*) = 1 FROM health_probe;
SELECT has_column_privilege('tollkeeper_locator', 'health_probe', 'probed_at', 'UPDATE');

-- down derived:health_probe
DROP TABLE health_probe;
